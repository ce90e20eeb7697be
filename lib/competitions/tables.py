"""The CSV files of all competitions: read, written and linted in one place.

Everything is text, so that an id like 0001 or 1e5 stays what it is and an empty text is an empty mask. The tables of
users are read as ``records.py`` says. A submission is read exactly, for a scorer forgives nothing.

The leading fields of a row name it; the last ones are the answer. Where that is a mask, its text are runs, ``first
length first length ...``, in which the pixels of the whole image are counted.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.competitions.records import NOT_TEXT
from lib.errors import DataError
from lib.files import whole_file
from lib.scenes import rle
from lib.scenes.raster import Size

if TYPE_CHECKING:
    from lib.competitions.sample import Sample

Name = tuple[str, ...]
"""The fields that name a row: an id, or an id and a class."""

SUBMISSION = "submission.csv"
"""Every competition writes its answers under this name; further formats lie beside it."""
NO_ROWS = "expected rows of a sample submission, found a header alone; fetch the file again"
CELL = 32_767
"""The most characters that a spreadsheet keeps in a cell; it cuts off the rest without a word."""
CUT = f"exactly {CELL:,} characters and none longer: cut off by a spreadsheet; take the file as it was before"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Form:
    """What the rows of a submission look like."""

    columns: tuple[str, ...]
    """The header."""
    names: int = 1
    """So many leading fields name a row."""
    repeats: bool = False
    """A name has a row for each of its objects, or a single empty one; otherwise it has exactly one row."""
    origin: int | None = 1
    """The last field holds runs, whose pixels are counted from here; None: it holds something else."""
    order: tuple[int, ...] = ()
    """The column of the file in which each field stands, where they do not stand there in the order of a row."""

    def fields(self, line: Sequence[str]) -> Name:
        """Return the fields of a row in their order: its names first, the answer last."""
        return tuple(line[column] for column in self.order) if self.order else tuple(line)

    def line(self, row: Sequence[str]) -> Name:
        """Return a row as the file has it."""
        return tuple(row[self.order.index(column)] for column in range(len(row))) if self.order else tuple(row)


# ---- read and write -----------------------------------------------------------------------------------
def exact_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a submission as they are, header first; blank lines are rows without fields. Raises DataError.

    Quotes that do not close, or after which a field goes on, are an error.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file, strict=True)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8, got {error}") from error


def read(path: Path, form: Form) -> list[Name]:
    """Read a submission as its rows, without the header.

    Raises DataError on another header, on rows with another number of fields, and on names that repeat but should not.
    """
    header, *rows = list(exact_rows(path)) or [[]]
    found = [form.fields(row) for row in rows if len(row) == len(form.columns)]
    distinct = len(found) if form.repeats else len({row[: form.names] for row in found})
    if tuple(header) != form.columns or distinct != len(rows):
        raise DataError(
            f"{path}: expected the header {','.join(form.columns)!r} and rows of {len(form.columns)} fields"
            f"{'' if form.repeats else ', one for each name'}; found the header {','.join(header)[:80]!r} and "
            f"{len(rows) - distinct} of {len(rows)} rows that are otherwise"
        )
    return found


@contextmanager
def write(path: Path, form: Form) -> Iterator[Callable[..., None]]:
    """Open a submission to write and give ``add(*row)``; rows keep the order of the calls, and none is held in memory.

    The file appears under its name only when the block ends without an error. ``add`` raises DataError on a name that
    repeats but should not, and ValueError on a row that does not fit the header.
    """
    with whole_file(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(form.columns)
        seen: set[Name] = set()

        def add(*row: str) -> None:
            name = row[: form.names]
            if len(row) != len(form.columns):
                raise ValueError(f"{path}: expected a row of {', '.join(form.columns)}, got {row}")
            if name in seen and not form.repeats:
                raise DataError(f"{path}: expected each name once, got {','.join(name)!r} twice; check the ids")
            seen.add(name)
            table.writerow(form.line(row))

        yield add


def same_names(path: Path, sample: "Sample", form: Form) -> bool:
    """Tell whether a submission and a sample name the same rows, in any order; false where it cannot be read."""
    try:
        rows = list(exact_rows(path))[1:]
        mine = {form.fields(row)[: form.names] if len(row) == len(form.columns) else tuple(row) for row in rows if row}
    except DataError:
        return False
    return mine == set(sample.names(form.names))


def keep_order(path: Path, names: Sequence[Name], form: Form, scene_of: Callable[[Name], str]) -> None:
    """Write a submission again in the order of ``names``, unless it has that order or answers other scenes too.

    A row whose name is none of these stands where its scene begins in ``names``. ``scene_of``: the id of the scene that
    a row belongs to.
    """
    places = {name: place for place, name in enumerate(names)}
    begins: dict[str, int] = {}
    for name, place in places.items():
        begins.setdefault(scene_of(name), place)
    rows = read(path, form)
    if any(scene_of(row) not in begins for row in rows):
        return
    ordered = sorted(rows, key=lambda row: places.get(row[: form.names], begins[scene_of(row)]))
    if ordered != rows:
        with write(path, form) as add:
            for row in ordered:
                add(*row)


# ---- lint ---------------------------------------------------------------------------------------------
def lint(
    path: Path,
    form: Form,
    sizes: Mapping[Name, Size] | None = None,
    sample: "Sample | None" = None,
    fault: Callable[[Sequence[str]], str] = lambda row: "",
) -> list[str]:
    """Return what is wrong with a submission, a sentence per kind of fault with its count and first rows; [] if valid.

    ``sizes``: the names that must occur, and no others, each with its image's size. A name may be shorter than those of
    the rows: (id,) asks for at least one row of that id. ``sample``: the competition's sample submission, whose header,
    names, number and order of rows are the standard; with ``form.repeats`` only its names are. Runs must be sorted,
    separate and inside of the image, and the objects of one name must not overlap; where a row holds something else,
    ``fault`` says what is wrong with it, "" if nothing.
    """
    if sample and not sample.rows:
        return [f"{sample.path}: {NO_ROWS}"]
    faults: dict[str, list[str]] = defaultdict(list)
    names: list[Name] = []
    runs_of: dict[str, list[np.ndarray]] = defaultdict(list)
    length = len(next(iter(sizes))) if sizes else form.names
    longest = 0
    rows = exact_rows(path)
    try:
        header = next(rows, [])
        for line, written in enumerate(rows, 2):
            if len(written) != len(form.columns):
                faults[f"{len(written)} instead of {len(form.columns)} fields"].append(f"line {line}")
                continue
            row = form.fields(written)
            name, size = row[: form.names], (sizes or {}).get(row[:length])
            names.append(name)
            longest = max(longest, len(row[-1]))
            if form.origin is not None and len(row[-1]) == CELL:
                faults[CUT].append(_shown(name))
            if form.origin is None:
                kind = fault(row)
            else:
                runs, kind = _runs(row[-1], size, form.origin)
                if form.repeats and kind in ("", _NAN):
                    runs_of[_shown(name)].append(runs)
            if kind:
                faults[kind].append(_shown(name))
            if sizes is not None and row[:length] not in sizes:
                faults["not one of the scenes asked for"].append(_shown(name))
    except DataError as error:
        return [str(error)]

    if longest > CELL:
        faults.pop(CUT, None)
    if form.repeats:
        faults["objects that overlap"] = [name for name, runs in runs_of.items() if rle.overlap(runs)]
        faults["an empty row beside others"] = [
            name for name, runs in runs_of.items() if len(runs) > 1 and not all(map(len, runs))
        ]
    else:
        faults["id written more than once"] = [_shown(name) for name, times in Counter(names).items() if times > 1]
    known = {name[:length] for name in names}
    faults["missing, it was asked for"] = [_shown(name) for name in sizes or () if name not in known]
    findings = []
    expected = list(sample.header if sample else form.columns)
    if header != expected:
        findings.append(f"{path}: expected the header {','.join(expected)!r}, got {','.join(header)[:80]!r}")
    if not names:
        findings.append(f"{path}: expected rows below the header, got none")
    if sample:
        wanted = [row[: form.names] for row in sample.rows]
        if form.repeats:
            names, wanted = sorted(set(names)), sorted(set(wanted))
        findings += _compare_with_sample(path, names, wanted, faults)
    return findings + [sentence(path, "row", kind, found) for kind, found in faults.items() if found]


_NAN = "NaN where an empty mask is an empty text"


def _runs(text: str, size: Size | None, origin: int) -> tuple[np.ndarray, str]:
    """Read runs as ((runs, 2) int64 first pixel and length, what is wrong with them)."""
    if text.strip().lower() in NOT_TEXT:
        return rle.parse("")[0], _NAN
    height, width = size or (None, None)
    return rle.parse(text, None if height is None or width is None else height * width, origin)


def _compare_with_sample(path: Path, names: list[Name], wanted: list[Name], faults: dict[str, list[str]]) -> list[str]:
    """Add rows missing from and foreign to the sample to ``faults``; return findings on their number and order."""
    here, there = set(names), set(wanted)
    faults["missing, the sample has it"] = [_shown(name) for name in wanted if name not in here]
    faults["not in the sample"] = [_shown(name) for name in names if name not in there]
    if len(names) != len(wanted):
        return [f"{path}: expected {len(wanted)} rows as in the sample, got {len(names)}"]
    moved = [(line, mine) for line, (mine, theirs) in enumerate(zip(names, wanted, strict=True), 2) if mine != theirs]
    if moved and here == there:
        line, name = moved[0]
        return [f"{path}: expected the sample's order of rows, got {len(moved)} moved (first: {_shown(name)}, line "
                f"{line})"]  # fmt: skip
    return []


def _shown(name: Name) -> str:
    return ",".join(name)


def number(text: str) -> float:
    """Read a decimal number as scorers do; NaN for any other text, such as "0_1", that Python takes for one."""
    return float(text) if _NUMBER.fullmatch(text) else float("nan")


def sentence(path: Path, noun: str, kind: str, names: list[str]) -> str:
    """Say how many rows or files have a fault, and name the first three."""
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    plural = noun if len(names) == 1 else f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{path}: {len(names)} {plural}: {kind} ({first})"
