"""Write, read and lint the files that competitions take: Kaggle's run-length CSV and xView2's pairs of PNGs.

CSV: a row per (scene, class), ``<scene id>_<class id>,<runs>`` under the header ``ImageId_ClassId,EncodedPixels``; runs
count the pixels of the whole image down the columns from 1, and an empty mask is an empty text. For xView2, class 0 is
the building mask and 1..4 are the damage classes, exclusive and erased outside of the buildings. Competitions with one
class give a row to each scene under a header of their own (``id,rle``), or a row to each object, so that ids repeat.

PNGs: two masks per scene, ``test_localization_00000_prediction.png`` and ``test_damage_00000_prediction.png``. A *pair*
is a scene's name in these files, here "test_00000". Scenes with such an id keep it; others, named by their disaster,
are numbered by their place in the order of ids, and ``scene_ids.csv`` beside the PNGs says which is which.

Writers are context managers that give a function to call once per row or scene, so nothing is held in memory and
one pass over the answers can feed both formats. Every file appears under its name only when it is whole.

A little longer than 300 lines because each format's writer, reader and linter stand together.
"""

import csv
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from lib.errors import DataError
from lib.scenes import raster, rle
from lib.scoring import xview2

COLUMNS = ("ImageId_ClassId", "EncodedPixels")
KINDS = ("localization", "damage")
SCENE_IDS = "scene_ids.csv"

_PAIR = re.compile(r"(test|hold)_\d{5}")
_PNG_NAME = re.compile(r"(test|hold)_(localization|damage)_(\d{5})_prediction\.png")
_NOT_TEXT = {"nan", "none", "null", "na", "<na>"}


# ---- Kaggle CSV ---------------------------------------------------------------------------------------
@contextmanager
def write_rle_csv(
    path: Path, columns: Sequence[str] = COLUMNS, repeats: bool = False
) -> Iterator[Callable[[str, str], None]]:
    """Open a CSV to write and give ``add(row_id, runs)``; rows keep the order of the calls.

    ``columns``: the two words of the header; ``repeats``: an id may have several rows, one per object.
    Nothing is left behind when an error leaves the block. ``add`` raises DataError on a repeated id.
    """
    with _whole_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        seen = set()

        def add(row_id: str, runs: str) -> None:
            if row_id in seen and not repeats:
                raise DataError(f"{path}: expected one row per scene and class, got {row_id!r} twice; check the ids")
            seen.add(row_id)
            table.writerow((row_id, runs))

        yield add


def read_rle_csv(path: Path, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    """Read a CSV as row id -> runs, all text: "" stays an empty mask, and an id like 0001 or 1e5 what it is.

    Raises DataError on another header, on rows of other than two fields and on repeated ids.
    """
    header, *rows = list(_read_rows(path)) or [[]]
    table = dict(row for row in rows if len(row) == len(columns))
    if header != list(columns) or len(table) != len(rows):
        raise DataError(
            f"{path}: expected {','.join(columns)} and one row of two fields per id, got {','.join(header)[:80]!r} and "
            f"{len(rows) - len(table)} faulty of {len(rows)} rows; run the linter on it"
        )
    return table


def read_object_csv(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Read a CSV with a row per object as scene id -> runs of its objects; [] for a scene with one row of empty text.

    Raises DataError on another header and on rows of other than two fields.
    """
    header, *rows = list(_read_rows(path)) or [[]]
    if header != list(columns) or any(len(row) != len(columns) for row in rows):
        raise DataError(
            f"{path}: expected {','.join(columns)} and rows of two fields, got {','.join(header)[:80]!r}; lint it"
        )
    objects: dict[str, list[str]] = {}
    for scene_id, text in rows:
        objects.setdefault(scene_id, []).extend([text] if text.strip() else [])
    return objects


def pair_rows(scene_id: str, localization: np.ndarray, damage: np.ndarray) -> list[tuple[str, str]]:
    """Return the five (row id, runs) of an xView2 answer; masks: (H, W) uint8, damage in 0..4."""
    texts = [rle.encode(localization), *rle.encode_labels(damage * (localization > 0), count=len(xview2.CLASSES))]
    return [(f"{scene_id}_{class_id}", text) for class_id, text in enumerate(texts)]


def lint_rle_csv(
    path: Path,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    sample: Path | None = None,
    *,
    columns: Sequence[str] = COLUMNS,
    origin: int = 1,
    repeats: bool = False,
) -> list[str]:
    """Return what is wrong with a CSV, one sentence per kind of fault with its count and first rows; [] if valid.

    ``shapes``: scene id (or whole row id) -> (height, width); every one of them must then occur, and no others.
    ``sample``: the competition's sample submission, whose header, ids, number and order of rows are the standard.
    ``columns``: the header that is expected without a sample; ids of another one than xView2's are scenes, without a
    class. ``origin``: number of the first pixel. ``repeats``: an id has a row per object, no two of which may overlap,
    or a single empty one; a sample then says only which ids there are.
    """
    classes = tuple(columns) == COLUMNS
    faults: dict[str, list[str]] = defaultdict(list)
    ids: list[str] = []
    runs_of: dict[str, list[np.ndarray]] = defaultdict(list)
    known: set[str] = set()
    rows = _read_rows(path)
    try:
        header = next(rows, [])
        for line, row in enumerate(rows, 2):
            if len(row) != len(columns):
                faults[f"{len(row)} instead of {len(columns)} fields"].append(f"line {line}")
                continue
            row_id, text = row
            ids.append(row_id)
            scene_id = row_id if not classes or shapes is None or row_id in shapes else row_id.rpartition("_")[0]
            known.add(scene_id)
            height, width = (shapes or {}).get(scene_id, (None, None))
            if text.strip().lower() in _NOT_TEXT:
                faults["NaN where an empty mask is an empty text"].append(row_id)
                text = ""
            runs, fault = rle.parse(text, height and height * width, origin)
            if fault:
                faults[fault].append(row_id)
            elif repeats:
                runs_of[row_id].append(runs)
            if shapes is not None and scene_id not in shapes:
                faults["not one of the scenes asked for"].append(row_id)
        standard = [] if sample is None else list(_read_rows(sample))
    except DataError as error:
        return [str(error)]

    if repeats:
        faults["objects that overlap"] = [scene_id for scene_id, runs in runs_of.items() if _overlap(runs)]
        faults["an empty row beside others"] = [
            scene_id for scene_id, runs in runs_of.items() if len(runs) > 1 and not all(map(len, runs))
        ]
    else:
        faults["id written more than once"] = [row_id for row_id, times in Counter(ids).items() if times > 1]
    faults["scene without any row"] = [scene_id for scene_id in shapes or () if scene_id not in known]
    findings = []
    expected = standard[0] if standard else list(columns)
    if header != expected:
        findings.append(f"{path}: expected the header {','.join(expected)!r}, got {','.join(header)[:80]!r}")
    if not ids:
        findings.append(f"{path}: expected rows below the header, got none")
    if standard:
        wanted = [row[0] for row in standard[1:] if row]
        if repeats:
            ids, wanted = sorted(set(ids)), sorted(set(wanted))
        findings += _compare_with_sample(path, ids, wanted, faults)
    return findings + [_sentence(path, "row", kind, names) for kind, names in faults.items() if names]


def _overlap(runs: Sequence[np.ndarray]) -> bool:
    """Tell whether two of a scene's objects, (runs, 2) start and length each, share a pixel."""
    together = np.concatenate(runs)
    together = together[together[:, 0].argsort(kind="stable")]
    return bool((together[1:, 0] < together[:-1].sum(axis=1)).any())


def _compare_with_sample(path: Path, ids: list[str], wanted: list[str], faults: dict[str, list[str]]) -> list[str]:
    """Add rows missing from and foreign to the sample to ``faults``; return findings on their number and order."""
    here, there = set(ids), set(wanted)
    faults["missing, the sample has it"] = [row_id for row_id in wanted if row_id not in here]
    faults["not in the sample"] = [row_id for row_id in ids if row_id not in there]
    if len(ids) != len(wanted):
        return [f"{path}: expected {len(wanted)} rows as in the sample, got {len(ids)}"]
    moved = [(line, mine) for line, (mine, theirs) in enumerate(zip(ids, wanted, strict=True), 2) if mine != theirs]
    if moved and here == there:
        line, row_id = moved[0]
        return [f"{path}: expected the sample's order of rows, got {len(moved)} moved (first: {row_id}, line {line})"]
    return []


def _read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV one by one, header first; blank lines are rows without fields. Raises DataError."""
    limit = csv.field_size_limit(2**31 - 1)  # the runs of one large image are longer than Python's limit for a field
    try:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.reader(file)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8, got {error}") from error
    finally:
        csv.field_size_limit(limit)


# ---- xView2 PNGs --------------------------------------------------------------------------------------
@contextmanager
def write_png_pairs(folder: Path) -> Iterator[Callable[[str, np.ndarray, np.ndarray], None]]:
    """Open a folder for xView2's PNGs and give ``add(scene_id, localization, damage)``; writes ``scene_ids.csv`` last.

    Masks: (1024, 1024) uint8 in 0..4. Scenes must come sorted by id, so that their numbers do not depend on the run.
    ``add`` raises DataError on another order, on an id that gets a number already used, and on other masks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scene_of: dict[str, str] = {}  # pair -> scene id

    def add(scene_id: str, localization: np.ndarray, damage: np.ndarray) -> None:
        last = next(reversed(scene_of.values()), None)
        if last is not None and scene_id <= last:
            raise DataError(f"{folder}: expected scenes sorted by id, got {scene_id!r} after {last!r}; sort them first")
        pair = scene_id if _PAIR.fullmatch(scene_id) else f"test_{len(scene_of):05d}"
        if pair in scene_of:
            raise DataError(f"{folder}: {scene_id!r} would be {pair}, as another scene is; submit them apart")
        for kind, mask in zip(KINDS, (localization, damage), strict=True):
            if mask.shape != xview2.SHAPE or mask.dtype != np.uint8 or mask.max() > len(xview2.CLASSES):
                raise DataError(
                    f"{scene_id}: expected a {kind} mask of 1024 x 1024 uint8 in 0..4, got {mask.shape} {mask.dtype} "
                    f"up to {mask.max(initial=0)}; the official scorer would refuse it"
                )
            raster.write_png(png_path(folder, pair, kind), mask)
        scene_of[pair] = scene_id

    yield add
    with _whole_file(folder / SCENE_IDS) as file:
        csv.writer(file, lineterminator="\n").writerows([("scene_id", "pair"), *((s, p) for p, s in scene_of.items())])


def png_path(folder: Path, pair: str, kind: str) -> Path:
    """Return where a pair's mask lies: ("test_00000", "damage") -> folder/test_damage_00000_prediction.png."""
    split, number = pair.split("_")
    return Path(folder) / f"{split}_{kind}_{number}_prediction.png"


def read_pairs(folder: Path) -> dict[str, str]:
    """Return scene id -> pair from ``scene_ids.csv``. Raises DataError where it is missing or damaged."""
    rows = list(_read_rows(Path(folder) / SCENE_IDS))
    if rows[:1] != [["scene_id", "pair"]] or any(len(row) != 2 or not _PAIR.fullmatch(row[1]) for row in rows[1:]):
        raise DataError(f"{Path(folder) / SCENE_IDS}: expected rows of scene_id,pair; write the submission again")
    return dict(rows[1:])


def read_png_pair(folder: Path, scene_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a scene's (localization, damage), (1024, 1024) uint8 each, back from what ``write_png_pairs`` wrote."""
    pair = scene_id if _PAIR.fullmatch(scene_id) else read_pairs(folder).get(scene_id)
    if pair is None:
        raise DataError(f"{folder}: expected {scene_id!r} in {SCENE_IDS}, found it not; write the submission again")
    localization, damage = (xview2.read_mask(png_path(folder, pair, kind)) for kind in KINDS)
    return localization, damage


def zip_pngs(folder: Path, path: Path) -> None:
    """Pack the official PNGs of a folder, and nothing else, into an archive; equal PNGs give equal bytes."""
    names = sorted(file.name for file in Path(folder).iterdir() if _PNG_NAME.fullmatch(file.name))
    with _whole_file(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # else they depend on who packs
            archive.writestr(entry, (Path(folder) / name).read_bytes())  # stored: a PNG does not shrink further


def lint_png_pairs(folder: Path, pairs: Iterable[str] | None = None, threads: int = 2) -> list[str]:
    """Return what the official scorer would stop at or overlook in a folder, as ``lint_rle_csv`` does; [] if valid.

    ``pairs``: the pairs that must be there, as "test_00000"; without them, each PNG must have its partner.
    PNGs under other names are reported too: the official scorer would not see them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder}: expected a folder of PNGs, found none"]
    faults: dict[str, list[str]] = defaultdict(list)
    found = []
    for name in sorted(file.name for file in folder.glob("*.png")):
        if match := _PNG_NAME.fullmatch(name):
            found.append(f"{match[1]}_{match[3]}")
        else:
            faults["is not named like test_damage_00000_prediction.png, the official scorer overlooks it"].append(name)
    wanted = sorted(set(found) if pairs is None else set(pairs))
    if not wanted:
        return [f"{folder}: expected files like test_damage_00000_prediction.png, found none"]
    paths = [png_path(folder, pair, kind) for pair in wanted for kind in KINDS]
    with ThreadPoolExecutor(threads) as pool:
        for path, refusal in zip(paths, pool.map(lambda path: xview2.inspect_mask(path)[1], paths), strict=True):
            if refusal:
                faults[refusal].append(path.name)
    return [_sentence(folder, "file", kind, names) for kind, names in faults.items()]


# ---- shared by both -----------------------------------------------------------------------------------
def _sentence(path: Path, noun: str, kind: str, names: list[str]) -> str:
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{path}: {len(names)} {noun}{'s' if len(names) > 1 else ''}: {kind} ({first})"


@contextmanager
def _whole_file(path: Path, mode: str = "w") -> Iterator[TextIO]:
    """Open a file that appears under its name only when the block ends without an error."""
    partial = Path(f"{path}.tmp")
    text = {} if "b" in mode else {"newline": "", "encoding": "utf-8"}
    try:
        with open(partial, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
