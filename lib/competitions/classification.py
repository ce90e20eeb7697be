"""What competitions share whose scenes have one label each (a picture, a video).

Labels are in a table, or the folders are the classes::

    root/train/0001.png, root/train.csv        a row per scene: id, label and, where known, group, domain, split
    root/train/cats/0001.png                   files in sub-folders; an id is a file's name, or its path in train/
    root/train/cheetah/0001.jpg                or, without a table, a folder per class
    root/test/0002.png                         no labels
    root/sample_submission.csv                 where there is one, its order of rows is kept

An id with a path in it, cats/0001.png, is cats_0001.png in all results but the submission.
"""

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from lib.competitions.contract import Competition
from lib.competitions.listing import Expression, find_in_ids, odd_rows, otherwise
from lib.competitions.records import NOT_TEXT, Records, bare, is_missing, matched, read_records
from lib.competitions.scene import Answer, Finding, Row, Scene
from lib.errors import DataError
from lib.metrics import confusion_table
from lib.scenes import identical
from lib.scenes.raster import Size
from lib.settings import Section

Folders = str | tuple[str, ...]
"""A folder, or the first one of several that is there."""


ROLES = ("domain", "group", "source")
"""What an option may find in a column or in the id."""


class Columns(Section):
    """Names of the columns of a table of labels; only the first two must be there, and those that are stated."""

    id: str = "id"
    """Which scene."""
    label: str = "label"
    """What it is."""
    group: str = "group"
    """What must stay together in a fold."""
    domain: str = "domain"
    """Where it comes from."""
    source: str = "source"
    """Which data set it was taken from."""
    split: str = "split"
    """The split it was shipped in, for the audit."""


class ClassificationOptions(Section):
    """Options of every competition of this kind."""

    train: Folders = "train"
    """Folder of the labelled scenes."""
    test: Folders | None = "test"
    """Folder of the test scenes; null: there is no test set."""
    columns: Columns = Columns()
    """Names of the table's columns, in part."""
    group: Expression | None = None
    """What must stay together in a fold: a column, or else a regular expression searched in the id (its first group, or
    all of the match)."""
    domain: Expression | None = None
    """Where a scene comes from: a column, or else a regular expression searched in the id."""
    source: Expression | None = None
    """Which data set a scene was taken from, for ``train.sampling.sources``: a column, or else a regular expression
    searched in the id; without either, its domain."""
    sample: str | None = "sample_submission.csv"
    """Sample submission, which says what scenes are answered, in what order and under what header. null: none is
    used."""


NO_CLASSES = (".", "__MACOSX")
"""How the names of folders begin that tools leave behind, and that hold no scenes."""
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "unlabeled", "unlabelled", "images",
         "augmented"}  # fmt: skip
"""Names of folders, in small letters, that are those of a part of the data rather than of a class."""
NOTHING = {"-1", "?", "-", "n/a", "unknown", "undefined", "unlabeled", "unlabelled", *NOT_TEXT}
"""Labels, in small letters, that may say that there is none."""


@dataclass(frozen=True)
class Record:
    """What the data says of a labelled scene. ``id``: as the table writes it; ``paths``: the files it may mean."""

    id: str
    label: str
    paths: Sequence[Path]
    more: Mapping[str, str] = field(default_factory=dict)
    """Column -> text, those that are known out of group, domain, source, split."""
    span: tuple[int, int] | None = None
    """First and last frame that belong to it, where a folder holds several scenes."""


@dataclass(frozen=True)
class Labelled:
    """A scene with its label, the index of its class."""

    scene: Scene
    label: int
    record: Record


class Classification(Competition):
    """Scenes with a label each under ``root``."""

    noun: ClassVar[str]
    """What a scene is called."""
    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes that an id may do without."""
    bare_ids: ClassVar[bool] = True
    """Whether ids do without them where no table says how they are written."""
    odd_label: ClassVar[str] = "label is none of the classes"
    """The finding of a label that ``index_of`` does not know."""

    def __init__(self, root: Path, options: Any, memo: Path | None = None):
        super().__init__(root, options, memo)
        self._row_ids: dict[str, str] = {}  # scene id -> the id as the table and the submission write it
        self._odd_rows: list[Finding] = []  # of what ``records`` were read from

    @property
    @abstractmethod
    def table(self) -> Path:
        """The table of labels; where it is not there, the folders are the classes."""

    @abstractmethod
    def is_scene(self, path: Path) -> bool:
        """Tell by names whether a file, or a folder, is a scene."""

    @abstractmethod
    def index_of(self, label: str) -> int | None:
        """Return the index of a label's class, None for a label that there is not."""

    # ---- scenes ---------------------------------------------------------------------------------------
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the scenes of "train", those without a label last, or of "test"."""
        if split == "train":
            labelled, bare, findings = self._joined
            return [*(row.scene for row in labelled.values()), *bare], findings
        if (folder := self._folder("test")) is None:
            return [], []
        paths, known = list(self._walk(folder)), self._test_ids
        with_suffix = any(PurePosixPath(name).suffix.lower() in self.suffixes for name in known)
        whole = with_suffix if known else not self.bare_ids
        names = [path.relative_to(folder).as_posix() for path in paths]
        if not any("/" in name for name in known):
            paths = [path for path in paths if path.parent == folder] or paths
            flat = [path.name for path in paths]
            names = flat if self.sampled or len({*map(self._last_key, flat)}) == len(flat) else names
        findings = self._named_like_classes(folder, paths)
        ids = [self._keys(name)[0 if whole else -1] for name in names]
        named, odd = self._named(ids, strict=False)
        findings += odd
        scenes: dict[str, Scene] = {}
        for row_id, path in zip(ids, paths, strict=True):
            scene = self.scene(row_id, path, {role: found.get(row_id, "") for role, found in named.items()})
            if scenes.setdefault(scene.id, scene) is not scene:
                findings.append(Finding(f"two {self.noun}s of one id", scene.id, f"{path} is not used"))
        return list(scenes.values()), findings

    def places(self, split: str) -> list[str]:
        stated = getattr(self.options, split) or ()
        return [stated] if isinstance(stated, str) else list(stated)

    def usual_folders(self, split: str) -> Sequence[str]:
        default = type(self.options).model_fields[split].default
        return [default] if isinstance(default, str) else default

    def read_files(self) -> list[Path]:
        named = [path for record in self.records for path in record.paths]  # of what a label is wrong of is said
        return [*super().read_files(), self.table, *named]

    def scene(self, row_id: str, path: Path, more: Mapping[str, str]) -> Scene:
        """Return the scene of an id and a file."""
        domain, group, source = (more.get(role, "") for role in ROLES)
        self._row_ids[_flat(row_id)] = row_id
        return Scene(_flat(row_id), {self.files[0]: path}, domain, group=group, source=source)

    def labelled(self, scene: Scene) -> bool:
        known = self._joined[0].get(scene.id)
        return known is not None and known.scene.files == scene.files

    def known(self, scene: Scene) -> Labelled:
        """Return a labelled scene. Raises DataError for one without a label."""
        if not self.labelled(scene):
            raise DataError(f"scene {scene.id}: expected a label, found none; is this a test {self.noun}?")
        return self._joined[0][scene.id]

    def fact_files(self, scene: Scene) -> list[Path]:
        return [*scene.files.values(), self.table]

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (1, 1) uint8, of more than 254 classes int32: the index of the class."""
        return self.tasks[task].as_target(np.full((1, 1), self.truth(scene)))

    def truth(self, scene: Scene) -> Answer:
        """Return the index of the class. Raises DataError for a scene without a label."""
        return self.known(scene).label

    def published_split(self) -> dict[str, str]:
        """Return the ``split`` column of the table, where it has one."""
        splits = {key: row.record.more.get("split", "") for key, row in self._joined[0].items()}
        return {key: split for key, split in splits.items() if split}

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of the classes, truth by rows."""
        return {"confusion": confusion_table(details, self.flags)}

    # ---- submission -----------------------------------------------------------------------------------
    def row_id(self, scene: Scene) -> str:
        """Return a scene's id as the table and the submission write it."""
        return self._text_of_scene.get(scene.id) or self._row_ids.get(scene.id, scene.id)

    def scene_of(self, row: Row) -> str:
        return self._scene_of_text.get(row[0], _flat(row[0]))

    def size(self, scene: Scene) -> Size:
        """Return that a row needs no size to be understood."""
        return None, None

    # ---- files ----------------------------------------------------------------------------------------
    def _folder(self, option: str) -> Path | None:
        """Return the folder of an option, the first of several that is there; None where there is none.

        Raises DataError for a stated one that is not there.
        """
        stated = getattr(self.options, option) or ()
        folders = [self.root / name for name in ((stated,) if isinstance(stated, str) else stated)]
        found = next((folder for folder in folders if folder.is_dir()), None)
        if found is None and folders and option in self.options.model_fields_set:
            raise DataError(f"{folders[0]}: expected a folder, found none; set data.options.{option}")
        return found

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yield the scenes of a folder and of the folders in it, sorted."""
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if self.is_scene(path):
                yield path
            elif path.is_dir() and not path.name.startswith(NO_CLASSES):
                yield from self._walk(path)

    def _last_key(self, name: str) -> str:
        return self._keys(name)[-1]

    def _named_like_classes(self, folder: Path, paths: Sequence[Path]) -> list[Finding]:
        """Report the folders of test scenes that have the name of a class, which is not taken for their label."""
        held = Counter(path.relative_to(folder).parts[0] for path in paths if path.parent != folder)
        labels = {record.label for record in self.records} if held else set()
        return [Finding("test folder named like a class, which is not taken for a label", name, f"{count} {self.noun}s")
                for name, count in sorted(held.items()) if name in labels]  # fmt: skip

    def _keys(self, name: str) -> tuple[str, ...]:
        """Return what may be the id of a file: its name or path, and the same without its suffix."""
        return name, bare(name, self.suffixes)

    @cached_property
    def _rows(self) -> tuple[tuple[str, ...], list[dict[str, str]]]:
        """The columns and rows of the table; none where it is not there."""
        read = read_records(self.table) if self.table.is_file() else Records()
        self._odd_rows += odd_rows(self.table, read)
        return read.columns, list(read.rows)

    @cached_property
    def _test_ids(self) -> list[str]:
        """Ids as the sample has them, or else the table."""
        sample = [text for (text,) in self.sampled.names(1)] if self.sampled else []
        return sample or [row.get(self.options.columns.id, "") for row in self._rows[1]]

    def _named(self, ids: Sequence[str], strict: bool = True) -> tuple[dict[str, dict[str, str]], list[Finding]]:
        """Return ROLES of ids, where an option asks for what is found in them and for no column."""
        named, findings = {}, []
        for option in ROLES:
            wanted, columns = getattr(self.options, option), self._rows[0]
            if wanted is not None and wanted not in columns:
                named[option], odd = find_in_ids(option, wanted, ids, columns, strict)
                findings += odd
        return named, findings

    @cached_property
    def records(self) -> list[Record]:
        """What the table, or else the folders say of labelled scenes; "" as label where it says nothing."""
        columns, rows = self._rows
        train = self._folder("train")
        if not columns:
            return self._records_of_folders(train)
        if train is None:
            raise DataError(f"{self.root}: expected a folder of {self.noun}s ({self.options.train}), found none; set "
                            "data.root or data.options.train")  # fmt: skip
        roles = self.options.columns
        must = [getattr(roles, role) for role in ("id", "label", *sorted(roles.model_fields_set - {"id", "label"}))]
        if missing := [column for column in must if column not in columns]:
            raise DataError(f"{self.table}: expected the columns {', '.join(must)}, found no "
                            f"{' and no '.join(missing)}; set data.options.columns")  # fmt: skip
        names, places = self._by_id(train), roles.model_dump()
        places |= {role: stated for role in ROLES if (stated := getattr(self.options, role)) in columns}
        texts = [{role: "" if is_missing(text := row.get(column, "")) else text for role, column in places.items()}
                 for row in rows]  # fmt: skip
        means = matched((row["id"] for row in texts), names, self.suffixes)
        changed = {PurePosixPath(text).name: paths[0].name for text, paths in means.items() if text not in names}
        self._odd_rows += otherwise("ids written otherwise than their files, read as those", self.table.name,
                                    changed, self.suffixes)  # fmt: skip
        return [Record(row["id"], row["label"], means.get(row["id"], ()), row) for row in texts]

    def _records_of_folders(self, train: Path | None) -> list[Record]:
        """Return a record for each scene in a folder per class."""
        folders = sorted(path for path in train.iterdir() if path.is_dir() and not path.name.startswith(NO_CLASSES)
                         and not self.is_scene(path)) if train else []  # fmt: skip
        found = []
        for folder in folders:
            held = list(self._walk(folder))
            if not held:
                self._odd_rows.append(Finding(f"folder of a class without a {self.noun}", folder.name))
            elif folder.name.lower() in PARTS and folder.name not in self.stated_classes:
                self._odd_rows.append(Finding("folder named like a part of the data, taken for a class", folder.name,
                                              f"{len(held)} {self.noun}s; move it if it is none"))  # fmt: skip
            for path in held:
                name = self._keys(path.relative_to(folder).as_posix())[-1 if self.bare_ids else 0]
                found.append(Record(f"{folder.name}_{_flat(name)}", folder.name, [path], {"group": ""}))
        if not found:
            raise DataError(f"{self.root}: expected the table {self.table.relative_to(self.root)}, or a folder of "
                            f"{self.noun}s per class in {self.options.train}, found neither; set data.root or "
                            "data.options")  # fmt: skip
        return found

    def _by_id(self, folder: Path) -> dict[str, tuple[Path, ...]]:
        """Return the files that each id may mean: their paths in the folder or the data and, where no other has it,
        their names."""
        places = {path.relative_to(folder).as_posix(): path for path in self._walk(folder)}
        by_name: dict[str, list[Path]] = defaultdict(list)
        for path in places.values():
            for key in dict.fromkeys(self._keys(path.name)):
                by_name[key].append(path)
        stems: dict[str, list[Path]] = {}
        for place, path in places.items():
            stems.setdefault(self._keys(place)[-1], [path])  # of two files with one stem the first has it
        found = {path.relative_to(self.root).as_posix(): [path] for path in places.values()}
        found |= dict(by_name) | stems | {place: [path] for place, path in places.items()}
        return {key: tuple(paths) for key, paths in found.items()}

    @cached_property
    def _joined(self) -> tuple[dict[str, Labelled], list[Scene], list[Finding]]:
        """The labelled scenes by id, those without a label, and what is strange about labels and files."""
        stated = [record for record in self.records if record.label]  # others are not labelled
        given: dict[Any, dict[Any, str]] = defaultdict(dict)  # what is labelled -> class -> how that is written
        for record in stated:
            index = self.index_of(record.label)
            given[_labelled_by(record)].setdefault(record.label if index is None else index, record.label)
        named, findings = self._named([record.id for record in stated])
        findings = [*self._odd_rows, *self.odd_labels(), *findings]
        found: dict[str, Labelled] = {}
        done: dict[Any, Record] = {}
        for record in stated:
            key, what, label = _flat(record.id), _labelled_by(record), self.index_of(record.label)
            if len(given[what]) > 1:
                findings.append(Finding("label given twice", key, " and ".join(sorted(given[what].values()))))
            elif key in found and what not in done:
                findings.append(Finding(f"two {self.noun}s of one id", key, "its first row is used"))
            elif what in done:
                same = done[what]
                how = f"as {same.id}" if same.id != record.id else "its first row is used"
                findings.append(Finding(f"several rows of one {self.noun} with one label", key, how))
            elif len(record.paths) != 1:
                several = f"{len(record.paths)} have this name; ids must be paths" if record.paths else record.label
                findings.append(Finding(f"label without {self.noun}", key, several))
            elif label is None:
                findings.append(Finding(self.odd_label, key, repr(record.label)))
            else:
                more = {**record.more, **{role: texts.get(record.id, "") for role, texts in named.items()}}
                found[key] = Labelled(self.scene(record.id, record.paths[0], more), label, record)
            done.setdefault(what, record)
        used = {path for record in stated for path in record.paths}
        folder = self._folder("train") if self._rows[0] else None
        rest = [path for path in self._walk(folder) if path not in used] if folder else []
        return found, [Scene(path.name, {self.files[0]: path}) for path in rest], findings

    @property
    def stated_classes(self) -> Sequence[str]:
        """Names of the classes that the options state."""
        return ()

    def odd_labels(self) -> list[Finding]:
        """Return the labels that were understood otherwise than they are written, or may be meant otherwise."""
        times = Counter(record.label for record in self.records)
        return [Finding("label that may mean none, taken for a class", label, f"{number} {self.noun}s")
                for label, number in sorted(times.items()) if label.lower() in NOTHING
                and label not in self.stated_classes and self.index_of(label) is not None]  # fmt: skip

    def inspect(self) -> list[Finding]:
        """Inspect as the contract says, and name files of the same bytes that have two labels."""
        return super().inspect() + self._contradictions()

    def _contradictions(self) -> list[Finding]:
        known = {key: row for key, row in self._joined[0].items() if row.record.span is None}
        found = []
        for one, *others in identical.same_bytes([row.scene for row in known.values()], self.files):
            for other in (other for other in others if known[other].label != known[one].label):
                labels = f"{known[one].record.label} and {known[other].record.label}"
                found.append(Finding(f"one {self.noun} under two names and labels", other, f"as {one}: {labels}"))
        return found


def _labelled_by(record: Record) -> Any:
    """Return what a record labels: its file, with the frames of it that are meant, or its id where no file is known."""
    return (record.paths[0], record.span) if len(record.paths) == 1 else _flat(record.id)


def _flat(row_id: str) -> str:
    """Return an id without slashes, as files can be called."""
    return row_id.replace("/", "_")
