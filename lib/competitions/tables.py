"""CSV files that competitions take: written, read back and linted.

A row per (scene, class), ``<scene id>_<class id>,<runs>`` under the header ``ImageId_ClassId,EncodedPixels``; runs
count the pixels of the whole image down the columns from 1, and an empty mask is an empty text. Competitions with one
class give a row to each scene under a header of their own (``id,rle``), or a row to each object, so that ids repeat.

Writers are context managers that give a function to call once per row, so nothing is held in memory. Every file appears
under its name only when it is whole.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lib.errors import DataError
from lib.files import whole_file
from lib.scenes import rle

COLUMNS = ("ImageId_ClassId", "EncodedPixels")

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
    with whole_file(path) as file:
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
    header, *rows = list(read_rows(path)) or [[]]
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
    header, *rows = list(read_rows(path)) or [[]]
    if header != list(columns) or any(len(row) != len(columns) for row in rows):
        raise DataError(
            f"{path}: expected {','.join(columns)} and rows of two fields, got {','.join(header)[:80]!r}; lint it"
        )
    objects: dict[str, list[str]] = {}
    for scene_id, text in rows:
        objects.setdefault(scene_id, []).extend([text] if text.strip() else [])
    return objects


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
    rows = read_rows(path)
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
        standard = [] if sample is None else list(read_rows(sample))
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
    return findings + [sentence(path, "row", kind, names) for kind, names in faults.items() if names]


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


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV one by one, header first; blank lines are rows without fields. Raises DataError."""
    limit = csv.field_size_limit(2**31 - 1)  # the runs of one large image are longer than Python's limit for a field
    try:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.reader(file)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8, got {error}") from error
    finally:
        csv.field_size_limit(limit)


def sentence(path: Path, noun: str, kind: str, names: list[str]) -> str:
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{path}: {len(names)} {noun}{'s' if len(names) > 1 else ''}: {kind} ({first})"
