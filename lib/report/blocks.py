"""What a section of the report is made of; the template knows how each kind looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

Cell = Any
"""A text, a number, None for nothing, or a list of these that stand in one cell."""


@dataclass(frozen=True)
class Words:
    """A paragraph; ``absent``: it says what is missing and how to get it."""

    text: str
    absent: bool = False
    kind: str = "words"


@dataclass(frozen=True)
class Tiles:
    """A few figures that matter most: (label, value, what it means)."""

    tiles: Sequence[tuple[str, Cell, str]]
    kind: str = "tiles"


@dataclass(frozen=True)
class DataTable:
    """A table; the first column names the rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    shade: Sequence[Sequence[float | None]] = ()
    """For each row and column but the first: how deep the cell is shaded, 0 to 1; None: not at all."""
    marked: frozenset[tuple[int, int]] = frozenset()
    """Row and column, without the first, of cells with a frame: what was chosen."""
    dotted: frozenset[tuple[int, int]] = frozenset()
    """The same of cells with a dot: as good as the best."""
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A drawn chart and its numbers."""

    key: str
    title: str
    svg: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kind: str = "chart"


@dataclass(frozen=True)
class Panel:
    """One picture, inlined."""

    title: str
    source: str
    """A data URI."""
    width: int
    height: int
    note: str = ""


@dataclass(frozen=True)
class ScenePanels:
    """One scene: its pictures side by side and under a swipe."""

    key: str
    name: str
    facts: Sequence[tuple[str, Cell]]
    panels: Sequence[Panel]
    kind: str = "scene"


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures, each with a caption."""

    caption: str
    panels: Sequence[Panel]
    kind: str = "thumbnails"


@dataclass(frozen=True)
class ColourKey:
    """What colours mean: name -> "#rrggbb"."""

    colours: Mapping[str, str]
    kind: str = "legend"


@dataclass(frozen=True)
class Lines:
    """Lines as they are typed or printed."""

    caption: str
    lines: Sequence[str]
    kind: str = "lines"


Piece = Words | Tiles | DataTable | Chart | ScenePanels | Thumbnails | ColourKey | Lines


@dataclass(frozen=True)
class Chapter:
    """A section of the page: for each experiment its pieces."""

    key: str
    title: str
    pieces: Sequence[Sequence[Piece]] = field(default_factory=list)
