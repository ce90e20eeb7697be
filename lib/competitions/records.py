"""The CSV files of users, read as people have them: labels, samples, boxes, folds.

Everything is text, so that an id like 0001 or 1e5 stays what it is. A byte order mark, semicolons or tabs, blanks and
blank lines are no trouble; one bad row is named and left out, and the rest is read.
"""

import csv
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lib.errors import DataError

Meaning = TypeVar("Meaning")

csv.field_size_limit(2**31 - 1)  # the runs of one large image are longer than Python's limit for a field
_LONGEST = 100
"""A field goes on over at most so many lines; a quotation mark that is not closed by then is taken for a mistake."""
_CUT = (32_766, 32_767)
"""Length of a text that a spreadsheet has cut, the last of whose characters may have been a blank."""
_HALF = re.compile("[\udc80-\udcff]")
_NOT_UTF8 = "{path}: expected a text file in UTF-8, such as a CSV file, got {found}; save it as UTF-8 again"
NOT_TEXT = {"nan", "none", "null", "na", "<na>"}
"""What programs write for a field without a text."""


@dataclass(frozen=True)
class OddRow:
    """Something about a row of a table that somebody should know of; ``kind`` is a short stable phrase."""

    kind: str
    line: int
    """The line of the file where the row begins, from 1."""
    detail: str = ""


@dataclass(frozen=True)
class Records:
    """A table as it is read: ``rows[i]`` maps each column to its text and begins in line ``lines[i]`` of the file."""

    columns: tuple[str, ...] = ()
    rows: Sequence[dict[str, str]] = ()
    lines: Sequence[int] = ()
    odd: Sequence[OddRow] = ()
    """The rows that were left out, and why."""


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 where a byte order mark says so. Raises DataError."""
    text = _decoded(path)
    if number := next((n for n, line in enumerate(text.split("\n"), 1) if not _is_sound(line)), 0):
        raise DataError(_NOT_UTF8.format(path=path, found=f"bytes that are none in line {number}"))
    return text


def _decoded(path: Path) -> str:
    """Read a text with \n at the ends of its lines, in which bytes that are not UTF-8 are kept as half characters."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a CSV file or a list, got {error.strerror}; check the path") from error
    try:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = raw.decode("utf-16")
        else:
            text = raw.decode("utf-8-sig", errors="surrogateescape")
    except UnicodeError as error:
        raise DataError(_NOT_UTF8.format(path=path, found=error)) from error
    for mark in ("\ufeff", "\u200b"):  # of files that were put together, and a space that nobody sees
        text = text.replace(mark, "")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_sound(text: str) -> bool:
    """Tell whether a text has no half characters."""
    return text.isascii() or not _HALF.search(text)


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a user's table one by one, header first, as ``numbered_rows`` does. Raises DataError."""
    for line, row in numbered_rows(path):
        if not all(map(_is_sound, row)):
            raise DataError(_NOT_UTF8.format(path=path, found=f"bytes that are none in line {line}"))
        yield row


def numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line of the file from 1, fields) for the header and each row of a user's table. Raises DataError.

    Fields are parted by what parts the header: commas, semicolons or tabs. Blanks around a field and blank lines are
    left out. A quotation mark that no other one closes spoils its own row alone: that has one field too few or many.
    Bytes that are not UTF-8 become half characters (``surrogateescape``), but for those of a header.
    """
    lines = _decoded(path).split("\n")
    part, width, at = ",", 0, 0
    while at < len(lines):
        line, text = at + 1, lines[at]
        if not width and text.strip(" \t,;"):
            part = max(",;\t", key=re.sub('"[^"]*"', "", text).count)  # of equal counts the first
            if not _is_sound(text):
                raise DataError(_NOT_UTF8.format(path=path, found=f"bytes that are none in line {line}"))
        row, at = _fields(lines, at, part, width)
        if any(row):
            width = width or len(row)
            yield line, row


def _fields(lines: Sequence[str], at: int, part: str, width: int) -> tuple[list[str], int]:
    """Return the fields of the row that begins in ``lines[at]``, and where the next one begins.

    A row goes on in the next lines where a quotation mark asks for it and its fields are then ``width`` (0: any).
    """
    if '"' not in lines[at]:
        return [field.strip() for field in lines[at].split(part)], at + 1
    row, end = _quoted(lines[at : at + 1], part), at + 1
    if lines[at].count('"') % 2:
        closing = next((n for n in range(end, min(len(lines), end + _LONGEST)) if lines[n].count('"') % 2), None)
        longer = [] if closing is None else _quoted(lines[at : closing + 1], part, strict=True)
        if closing is not None and longer and len(longer) == (width or len(longer)):
            row, end = longer, closing + 1
    return [field.strip() for field in row], end


def _quoted(lines: Sequence[str], part: str, strict: bool = False) -> list[str]:
    """Return the fields of lines that are one row; none where they are several rows, or no row.

    ``strict``: a quotation mark must end its field.
    """
    try:
        (row,) = csv.reader([f"{line}\n" for line in lines], delimiter=part, strict=strict)
    except (csv.Error, ValueError):
        return []
    return row


def read_records(path: Path) -> Records:
    """Read a user's table. A row that does not fit the header is left out, and so is one that is there already.

    Empty fields beyond the header are those of a spreadsheet and nothing strange. Raises DataError where there is no
    header, where two columns have one name, and where no row at all fits the header.
    """
    numbered = numbered_rows(path)
    _, header = next(numbered, (0, []))
    while header and not header[-1]:
        header.pop()
    if not header:
        raise DataError(f"{path}: expected a header and rows, got an empty file")
    if repeated := [name for name, times in Counter(header).items() if times > 1]:
        raise DataError(f"{path}: expected every column once, got {repeated[0]!r} twice; rename one of them")
    rows, lines, odd = [], [], []
    first: dict[tuple[str, ...], int] = {}
    for line, row in numbered:
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if not all(map(_is_sound, row)):
            odd.append(OddRow("row left out", line, "expected UTF-8, got bytes that are none; save the file as UTF-8"))
        elif len(row) != len(header):
            odd.append(OddRow("row left out", line, f"expected {len(header)} fields as in the header, got {len(row)}"))
        elif any(len(field) in _CUT for field in row):
            odd.append(OddRow("row left out", line, "expected a whole text, got one cut at 32,767 characters, the most "
                              "that a spreadsheet holds; take the file that no spreadsheet has saved"))  # fmt: skip
        elif first.setdefault(tuple(row), line) != line:
            odd.append(OddRow("row written twice, read once", line, f"as line {first[tuple(row)]}"))
        else:
            rows.append(dict(zip(header, row, strict=True)))
            lines.append(line)
    if odd and not rows:
        raise DataError(
            f"{path}: expected rows as its header says ({', '.join(header)[:80]}), got {len(odd)} others "
            f"(line {odd[0].line}: {odd[0].detail}); part the fields of all lines by the same sign"
        )
    return Records(tuple(header), rows, lines, odd)


# ---- what a text means -------------------------------------------------------------------------------
def matched(
    written: Iterable[str], known: Mapping[str, Meaning], suffixes: Sequence[str] = (), shared: bool = False
) -> dict[str, Meaning]:
    """Return what each text that a table writes means, by the names in ``known``, where only one thing can be meant.

    A text means the name it is; or else one that differs from it by ``suffixes`` (of files, in lower case), by upper
    and lower case or ``\\`` for ``/``, or, of numbers, by zeros in front or ``.0`` behind, which spreadsheets and
    pandas change. What a text names exactly no other text can mean, unless it may be ``shared``, as a class is.
    """
    texts = dict.fromkeys(written)
    found = {text: known[text] for text in texts if text in known}
    for form in (bare, _folded, _plain):
        taken = set() if shared else set(found.values())
        means: dict[str, set[Meaning]] = defaultdict(set)
        for name, meaning in known.items():
            if meaning not in taken:
                means[form(name, suffixes)].add(meaning)
        for text in texts.keys() - found.keys():
            if len(meant := means.get(form(text, suffixes), set())) == 1:
                found[text] = next(iter(meant))
    return found


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return the names, sorted, of each set of several that ``matched`` takes for one."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        found.setdefault(_plain(name), []).append(name)
    return [several for several in found.values() if len(several) > 1]


def spellings(texts: Iterable[str]) -> list[str]:
    """Return each text once, sorted; of those that ``matched`` takes for one the most frequent, or the first."""
    times = Counter(texts)
    best: dict[str, str] = {}
    for text in sorted(times, key=lambda text: (-times[text], text)):
        best.setdefault(_plain(text), text)
    return sorted(best.values())


def bare(text: str, suffixes: Sequence[str] = ()) -> str:
    """Return the name of a file without its suffix, where that is one of these."""
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in suffixes else text


def _folded(text: str, suffixes: Sequence[str] = ()) -> str:
    """Return a name of a file however its letters and folders are written; an é may be one character or two."""
    return unicodedata.normalize("NFC", bare(text, suffixes)).replace("\\", "/").removeprefix("./").casefold()


def _plain(text: str, suffixes: Sequence[str] = ()) -> str:
    """Return a name as ``matched`` compares it at last: a number without zeros in front and without ``.0`` behind."""
    name = _folded(text, suffixes)
    whole = name.removesuffix(".0")
    return (whole.lstrip("0") or "0") if whole.isascii() and whole.isdigit() else name


def is_missing(text: str) -> bool:
    """Tell whether a field says nothing: an empty text, or what pandas makes of one."""
    return text.lower() in ("", "nan", "<na>")


def runs_of(text: str) -> str:
    """Return the runs that a field holds; "" for an empty mask, which may also be written as nan, none or -1."""
    parts = text.split(maxsplit=1)
    if len(parts) < 2 and text.strip().lower() in ("", "-1", *NOT_TEXT):
        return ""
    return " ".join(text.split()) if "\t" in text or "\n" in text else text
