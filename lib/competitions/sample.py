"""The sample submission: which scenes are answered, how their ids are written, in what order, under what header.

Ids are compared as text. The sample and the files may differ in what says nothing about the scene: a suffix of a
picture or video (``0001.png`` and ``0001``), a folder, which is a ``_`` in an id (``cats/1`` and ``cats_1``), and what
spreadsheets and pandas change (``records.matched``: ``1`` or ``1.0`` for ``0001``). What is written is what the sample
writes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib.competitions.records import matched, read_rows
from lib.competitions.suffixes import OTHER_PICTURES, OTHER_VIDEOS, PICTURES, VIDEOS
from lib.competitions.tables import Name
from lib.errors import DataError

NAMES = ("sample_submission.csv", "stage1_sample_submission.csv")
"""What a sample submission is called, where no option says so."""
SUFFIXES = (*PICTURES, *OTHER_PICTURES, *VIDEOS, *OTHER_VIDEOS)
LEADING = 3
"""So many fields of each row are kept: the most that name one, and the answer, which may stand before a name."""


@dataclass(frozen=True)
class Sample:
    """What a sample submission says; its answers are not kept."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Name, ...]
    """The first LEADING fields of each row, names first, in the order of the file."""

    def ordered(self, order: Sequence[int]) -> "Sample":
        """Return the sample with the fields of its rows in another order: the columns ``order`` of the file."""
        return replace(self, rows=tuple(tuple(row[column] for column in order) for row in self.rows)) if order else self

    def names(self, count: int) -> list[Name]:
        """Return the names of its rows, ``count`` leading fields each, every name once, in the order of the file."""
        return list(dict.fromkeys(row[:count] for row in self.rows))


@dataclass(frozen=True)
class Owed:
    """The scenes that a sample names, beside those of which there are files."""

    written: dict[str, str]
    """Scene id -> the id as the sample writes it, in the sample's order."""
    without_file: tuple[str, ...]
    """Ids of ``written`` that no file is of."""
    not_named: tuple[str, ...]
    """Ids of files that the sample does not name, sorted."""


def read(path: Path) -> Sample:
    """Read a sample submission. Raises DataError for one without a header, or with rows of another length."""
    rows = [tuple(row) for row in read_rows(path)]
    if not rows:
        raise DataError(f"{path}: expected a header and rows of a sample submission, found an empty file")
    header = rows[0]
    if odd := [row for row in rows if len(row) != len(header)]:
        raise DataError(f"{path}: expected {len(header)} fields in every row as in the header, found {len(odd)} other "
                        f"rows (first: {','.join(odd[0])[:80]!r}); fetch the file again, or set data.options.sample to "
                        "null to do without it")  # fmt: skip
    return Sample(path, header, tuple(row[:LEADING] for row in rows[1:]))


def owed(texts: Iterable[str], listed: Collection[str]) -> Owed:
    """Match the ids of a sample with those of files.

    ``texts``: ids as the sample writes them, in its order. ``listed``: ids of the scenes of which there are files. An
    id without a file is kept as it is written, with ``_`` for a slash.
    """
    flat_of = {text: text.replace("/", "_") for text in texts}
    means = matched(flat_of.values(), {scene_id: scene_id for scene_id in listed}, SUFFIXES)
    written: dict[str, str] = {}
    lacking: list[str] = []
    for text, flat in flat_of.items():
        meant = means.get(flat, flat)
        found = meant if meant not in written else flat
        if found not in listed or found in written:
            lacking.append(found)
        written.setdefault(found, text)
    return Owed(written, tuple(lacking), tuple(sorted(set(listed) - written.keys())))


def check_header(sample: Sample, expected: Sequence[str], way_out: str = "") -> None:
    """Raise DataError for a sample whose header has not as many columns as a row of the answer has fields.

    ``expected``: what the fields are, in words. ``way_out``: what might have been meant.
    """
    if len(sample.header) != len(expected):
        raise DataError(f"{sample.path}: expected a header of {len(expected)} columns ({', '.join(expected)[:200]}), "
                        f"found {', '.join(sample.header)[:200]}; {way_out or 'mend the file'}, or set "
                        "data.options.sample to null to do without it")  # fmt: skip
