"""Folders of images with tables beside them, as most competitions on segmentation ship them.

Images of a split lie in one folder (``train_images/10044.tiff``; an id is the file's stem), or each in a folder of its
own with its masks (``stage1_train/00ae65c1/images/00ae65c1.png``). A table says by id what else is known of them.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib.competitions import records
from lib.competitions.listing import SUFFIXES, odd_rows, otherwise
from lib.competitions.sample import Sample, check_header
from lib.competitions.scene import Finding, Scene
from lib.competitions.suffixes import is_picture
from lib.errors import DataError

FOLDERS = {
    "train": ("train_images", "train/images", "stage1_train", "train"),
    "test": ("test_images", "test/images", "stage1_test", "test"),
}
ID_COLUMNS = ("id", "ImageId", "image_id", "img")
RLE_COLUMNS = ("rle", "rle_mask", "encoding", "EncodedPixels", "segmentation")
CLASS_COLUMNS = ("class", "ClassId", "class_id", "label", "category")

NO_ONE_IMAGE = "folder without its one image"

Files = dict[str, Path]
"""Role -> path of one image's files."""


@dataclass(frozen=True)
class Table:
    """A table with one or several rows per image; without columns where there is no such file."""

    path: Path = Path()
    columns: tuple[str, ...] = ()
    id_column: str = "id"
    rows: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)
    """Image id -> its rows, in the order of the file."""
    lines: Mapping[str, list[int]] = field(default_factory=dict)
    """Image id -> the line of the file in which each of its rows begins, from 1."""
    findings: Sequence[Finding] = ()
    """The rows that were left out or understood otherwise than they are written."""

    @property
    def others(self) -> list[str]:
        """The columns but that of ids."""
        return [name for name in self.columns if name != self.id_column]

    def value(self, image_id: str, column: str) -> str:
        """Return what an image's first row says in a column, "" without such a row or column, or where that is nan."""
        text = self.rows[image_id][0].get(column, "") if image_id in self.rows else ""
        return "" if records.is_missing(text) else text

    @property
    def names_files(self) -> bool:
        """Whether ids are names of files, with their suffix."""
        return any(Path(image_id).suffix.lower() in SUFFIXES for image_id in self.rows)

    def of_images(self, ids: Iterable[str]) -> "Table":
        """Return the table with its ids written as those of the images are, as far as these can be meant."""
        means = records.matched(self.rows, {image_id: image_id for image_id in ids}, SUFFIXES)
        rows: dict[str, list[dict[str, str]]] = {}
        lines: dict[str, list[int]] = {}
        spelt: dict[str, str] = {}
        findings = list(self.findings)
        for written, own in self.rows.items():
            key = means.get(written, written)
            if spelt.setdefault(key, written) != written:
                findings.append(Finding("two ids of one image in a table", key, f"{spelt[key]} and {written}"))
            rows.setdefault(key, []).extend(own)
            lines.setdefault(key, []).extend(self.lines[written])
        findings += otherwise("ids written otherwise than their files, read as those", self.path.name, means, SUFFIXES)
        return replace(self, rows=rows, lines=lines, findings=findings)

    def runs(self, column: str) -> dict[str, list[str]]:
        """Return image id -> the runs that a column holds in each of its rows, "" for an empty mask."""
        return {key: [records.runs_of(row[column]) for row in own] for key, own in self.rows.items()}

    def classes_and_runs(self) -> dict[str, list[tuple[str, str]]]:
        """Return image id -> the class and the runs that each of its rows holds, "" for an empty mask.

        Raises DataError where there is a table without such columns.
        """
        names = self.column(CLASS_COLUMNS), self.column(RLE_COLUMNS)
        if self.columns and not all(names):
            raise DataError(
                f"{self.path}: expected a column out of {', '.join(CLASS_COLUMNS)} and one out of "
                f"{', '.join(RLE_COLUMNS)}, got {', '.join(self.columns)[:120]}; rename them in the file"
            )
        runs = self.runs(names[1])
        return {key: [(row[names[0]], text) for row, text in zip(own, runs[key])] for key, own in self.rows.items()}

    def differing(self, columns: Iterable[str]) -> list[Finding]:
        """Report the images whose rows do not say the same in these columns, of which ``value`` reads the first."""
        read = [name for name in dict.fromkeys(columns) if name in self.columns]
        several = {key: rows for key, rows in self.rows.items() if len(rows) > 1}
        return [Finding("rows of one image differ, the first is read", key, f"{self.path.name}: {name}")
                for key, rows in several.items() for name in read if len({row[name] for row in rows}) > 1]  # fmt: skip

    def where(self, image_id: str, number: int) -> str:
        """Return the file and the line of an image's row, for messages."""
        return f"{self.path.name} line {self.lines[image_id][number]}"

    def column(self, known: Sequence[str]) -> str:
        """Return the first of the names that is a column, "" where none is."""
        return next((name for name in known if name in self.columns), "")


def read_table(path: Path | None, id_column: str = "") -> Table:
    """Read a table by image id. Raises DataError."""
    if path is None:
        return Table()
    read = records.read_records(path)
    columns = read.columns
    table = Table(path, columns, id_column or next((name for name in ID_COLUMNS if name in columns), ""))
    if table.id_column not in columns:
        wanted = f"a column {id_column}" if id_column else f"a column of ids out of {', '.join(ID_COLUMNS)}"
        raise DataError(
            f"{path}: expected {wanted} in its first line, got {', '.join(columns)[:120]}; rename it in the file, or "
            "set data.options.id_column where the competition has it"
        )
    findings = odd_rows(path, read)
    rows: dict[str, list[dict[str, str]]] = {}
    lines: dict[str, list[int]] = {}
    for record, line in zip(read.rows, read.lines, strict=True):
        if records.is_missing(image_id := record[table.id_column]):
            findings.append(Finding("row without an id, left out", f"{path.name} line {line}"))
            continue
        rows.setdefault(image_id, []).append(record)
        lines.setdefault(image_id, []).append(line)
    return replace(table, rows=rows, lines=lines, findings=findings)


def header_of_classes(table: Table, sample: Sample | None) -> tuple[str, ...]:
    """Return the columns of ids, classes and runs of a submission: the sample's, else the table's, else Kaggle's.

    Raises DataError for a sample that has not three.
    """
    if sample is not None:
        check_header(sample, (f"ids: {' or '.join(ID_COLUMNS)}", f"classes: {' or '.join(CLASS_COLUMNS)}", "runs"))
        return sample.header
    own_names = table.id_column, table.column(CLASS_COLUMNS), table.column(RLE_COLUMNS)
    return own_names if all(own_names) and table.columns else ("id", "class", "segmentation")


def order_of_classes(header: Sequence[str]) -> tuple[int, ...]:
    """Return which columns of three hold ids, classes and runs, by their names; () where they do in this order.

    A column of no known name holds what no other one does.
    """
    rest = list(range(len(header)))
    places: list[int | None] = []
    for known in (ID_COLUMNS, CLASS_COLUMNS, RLE_COLUMNS):
        places.append(next((column for column in rest if header[column] in known), None))
        rest = [column for column in rest if column != places[-1]]
    order = tuple(rest.pop(0) if place is None and rest else place or 0 for place in places)
    return () if len(header) != 3 or order == (0, 1, 2) else order


def first(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of the names that exists under ``root``."""
    return next((root / name for name in names if (root / name).exists()), None)


def image_folder(root: Path, split: str, stated: str | None) -> Path | None:
    """Return the folder of a split's images, the ``stated`` one or one of FOLDERS; None for a test split without one.

    ``stated``: "" for one of FOLDERS, None for none. Raises DataError where a stated folder or that of "train" is
    missing.
    """
    if stated is None:
        return None
    known = (stated,) if stated else FOLDERS[split]
    folder = first(root, known)
    if folder is not None and folder.is_dir():
        return folder
    if split == "test" and not stated:
        return None
    raise DataError(f"{root}: expected a folder of images ({', '.join(known)}), found none; set data.root, or "
                    f"data.options.{split} to its name")  # fmt: skip


def list_images(folder: Path) -> tuple[dict[str, Files], list[Finding]]:
    """List the images of a folder by id, the stem of the file, or of one folder per image with images/ and masks/."""
    listed: dict[str, Files] = {}
    findings: list[Finding] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "images").is_dir():
            pictures = [file for file in sorted((path / "images").iterdir()) if is_picture(file)]
            if len(pictures) != 1:
                findings.append(Finding(NO_ONE_IMAGE, path.name, f"{len(pictures)} in {path}/images"))
                continue
            listed[path.name] = {"image": pictures[0]}
            if pictures[0].stem != path.name and (folder / pictures[0].stem).is_dir():
                findings.append(Finding("image named like another one", path.name, str(pictures[0])))
            if (path / "masks").is_dir():
                listed[path.name]["masks"] = path / "masks"
        elif is_picture(path):
            earlier = listed.setdefault(path.stem, {"image": path})["image"]
            if earlier != path:
                findings.append(Finding("image in two formats", path.stem, f"{earlier.name} is used, not {path.name}"))
    return listed, findings


def find_images(
    root: Path, split: str, pattern: str | None, expression: str = "", suffix: bool = False
) -> tuple[dict[str, Path], list[Finding]]:
    """Return id -> image of a split, sorted, and what is not used.

    ``pattern`` names a folder, or the files themselves where it has a ``*``.
    ``expression``: searched in a file's path below ``root``, its groups joined by "_" are the id, but for those that
    took no part in the match; without groups or a match that is the file's name, with its ``suffix`` or without. Of two
    files with one id the first by name is taken.
    """
    folder = None if "*" in (pattern or "") else image_folder(root, split, pattern)
    paths = folder.iterdir() if folder else root.glob(pattern) if pattern else ()
    found: dict[str, Path] = {}
    findings = []
    for path in sorted(filter(is_picture, paths)):
        match = re.search(expression, path.relative_to(root).as_posix())
        image_id = ("_".join(filter(None, match.groups())) if match else "") or (path.name if suffix else path.stem)
        if (first := found.setdefault(image_id, path)) != path:
            findings.append(Finding("two images of one id", image_id, f"{first} is used, not {path}"))
    return dict(sorted(found.items())), findings


def slice_names(count: int) -> tuple[str, ...]:
    """Return the names of a slice and its neighbours: 3 -> image-1, image, image+1."""
    return tuple(f"image{step:+d}" if step else "image" for step in range(-(count // 2), count // 2 + 1))


def stacked(
    scenes: Sequence[Scene], images: Sequence[str], stacks: Mapping[str, str], places: Mapping[str, str] | None = None
) -> list[Scene]:
    """Give each scene the files of its neighbours in its stack; the ends repeat themselves.

    ``images``: as ``slice_names`` gives them. ``stacks``: id -> name of its stack; a scene without one stands alone.
    ``places``: id -> the text of its place in the stack, a number; where it is empty, ids are the order.
    """
    if len(images) == 1:
        return list(scenes)
    members: dict[str, list[Scene]] = {}
    for scene in scenes:
        members.setdefault(stacks.get(scene.id) or f"\0{scene.id}", []).append(scene)
    found = []
    for stack in members.values():
        stack.sort(key=lambda s: (float((places or {}).get(s.id) or "0"), s.id))
        for at, scene in enumerate(stack):
            neighbours = {image: stack[min(max(at + step, 0), len(stack) - 1)].files["image"]
                          for step, image in enumerate(images, -(len(images) // 2))}  # fmt: skip
            found.append(replace(scene, files={**scene.files, **neighbours}))
    return sorted(found, key=lambda scene: scene.id)


def is_number(text: str) -> bool:
    """Tell whether a text of a table is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
