"""The sample submission: which scenes are answered, how their ids are written, in what order, under what header.

Ids are compared as text. The sample and the files may differ in what says nothing about the scene: a suffix of a
picture or video (``0001.png`` and ``0001``), a folder, which is a ``_`` in an id (``cats/1`` and ``cats_1``), and what
spreadsheets and pandas change (``records.matched``: ``1`` or ``1.0`` for ``0001``). What is written is what the sample
writes.
"""

from abc import ABC
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.competitions.records import matched, read_rows
from lib.competitions.scene import Row, Scene
from lib.competitions.suffixes import OTHER_PICTURES, OTHER_VIDEOS, PICTURES, VIDEOS
from lib.competitions.tables import NO_ROWS, Form, Name
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


class Sampled(ABC):
    """What the sample submission says of a competition: which scenes are answered, and how their ids are written."""

    # What of the contract it goes by; contract.py says what each means.
    root: Path
    options: Any
    form: Form
    _list: Callable[[str], list[Scene]]

    @cached_property
    def sample(self) -> Path | None:
        """The sample submission: the one that ``data.options.sample`` states, else one of the usual name.

        Raises DataError where one is stated and not there.
        """
        stated = self.options.sample if "sample" in self.options.model_fields_set else ""
        if stated is None:
            return None
        known = [self.root / name for name in ((stated,) if stated else NAMES)]
        found = next((path for path in known if path.is_file()), None)
        if stated and found is None:
            raise DataError(f"{known[0]}: expected a sample submission, found none; set data.options.sample")
        return found

    @cached_property
    def sampled(self) -> Sample | None:
        """What the sample submission says; None where there is none. Raises DataError."""
        return self.read_sample(self.sample) if self.sample else None

    def read_sample(self, path: Path) -> Sample:
        """Read any sample submission, each row with its names first. Raises DataError."""
        found = read(path)
        return found.ordered(self.column_order(found.header))

    def column_order(self, header: Sequence[str]) -> tuple[int, ...]:
        """Return the column of a file with this header in which each field of a row stands; () where in their order."""
        return ()

    @cached_property
    def owed(self) -> Owed | None:
        """Which scenes the sample names; None where there is none, or it has no rows, or there is no test set here.

        Raises DataError where it names none of the test scenes that are there.
        """
        listed = {scene.id for scene in self._list("test")} if self.sampled and self.sampled.rows else set()
        if self.sampled is None or not listed:
            return None
        texts = [self.id_in(name) for name in self.sampled.names(1)]  # ``form`` may need the training runs
        found = owed(texts, listed)
        if len(found.not_named) == len(listed):
            raise DataError(
                f"{self.sampled.path}: expected the ids of the test scenes, found {len(found.written)} ids of which "
                f"none has a file (the first row is {','.join(self.sampled.rows[0])[:80]!r}, the first file's id is "
                f"{found.not_named[0]!r}); set "
                "data.options.sample to the file of this test set, or to null to do without it"
            )
        return found

    def header_of(self, expected: Sequence[str]) -> tuple[str, ...]:
        """Return the sample's header, () without one.

        ``expected``: what the columns of an answer are, in words. Raises DataError for a header of another length.
        """
        if self.sampled is None:
            return ()
        check_header(self.sampled, expected)
        return self.sampled.header

    def check_sample(self) -> None:
        """Raise DataError for a sample whose header no submission of this competition can have.

        Asked before scenes are listed, since stage 06 would else be the first to notice.
        """
        _ = self.form

    def id_in(self, row: Row) -> str:
        """Return the id in a row as the submission writes it; by default its first field."""
        return row[0]

    def scene_of(self, row: Row) -> str:
        """Return the id of the scene that a row belongs to."""
        text = self.id_in(row)
        return self._scene_of_text.get(text, text)

    def row_id(self, scene: Scene) -> str:
        """Return a scene's id as the submission writes it: as the sample does, where it names the scene."""
        return self._text_of_scene.get(scene.id, scene.id)

    def row_names(self, scene: Scene) -> list[Name]:
        """Return the names of rows that a submission must have for a scene; by default one, the scene's id."""
        return [(self.row_id(scene),)]

    def scenes_of(self, sample: Path) -> list[str]:
        """Return the ids of the scenes that a sample submission names. Raises DataError where it names none."""
        found = self.read_sample(sample)
        if not found.rows:
            raise DataError(f"{sample}: {NO_ROWS}")
        return list(dict.fromkeys(map(self.scene_of, found.names(1))))

    @cached_property
    def _text_of_scene(self) -> dict[str, str]:
        try:
            return dict(self.owed.written) if self.owed else {}
        except DataError:
            return {}  # a submission alone is looked at; where scenes are listed, this is raised

    @cached_property
    def _scene_of_text(self) -> dict[str, str]:
        return {text: scene_id for scene_id, text in self._text_of_scene.items()}
