"""Where a network's tiles lie on an area, and what tiles that reach into several windows hand from one to the next.

The tiles are those that stage 04 would lay over the whole area if it were one scene, and a pixel adds up what its tiles
say in the same order, so that the sums are the same to the bit however the area is cut into windows. A tile is computed
once: what it says of windows that are not done yet is kept on disk, as float32, until they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rasterio.windows import Window
from torch import Tensor

from lib.files import whole_file
from lib.inference import tiles

Cut = tuple[int, int]
"""First and last but one of pixels along an axis."""


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of an area."""

    size: int
    """Pixels of the area."""
    pad: int
    """Pixels that the area is mirrored outward on either side."""
    tile: int
    starts: Sequence[int]
    """First pixel of each tile, counted from where the mirrored ones begin."""
    weights: Sequence[Tensor]
    """Weights (tile,) of each tile; at every pixel they add up to 1."""
    index: np.ndarray
    """Of each pixel with the mirrored ones, the pixel of the area that it shows."""

    @classmethod
    def of(cls, size: int, pad: int, tile: int, total: int, placed: Sequence[tuple[int, Tensor]]) -> "Axis":
        """Describe the ``placed`` tiles of an area of ``size`` pixels, which with what is mirrored are ``total``."""
        inner = size + 2 * pad
        index = _mirrored(_mirrored(np.arange(total), inner) - pad, size)
        return cls(size, pad, tile, [start for start, _ in placed], [weights for _, weights in placed], index)

    def reaching(self, first: int, last: int) -> list[int]:
        """Return the numbers of the tiles that reach into the pixels from ``first`` to before ``last``."""
        first, last = first + self.pad, last + self.pad
        return [number for number, start in enumerate(self.starts) if start < last and start + self.tile > first]

    def shared(self, number: int, first: int, last: int) -> tuple[slice, slice]:
        """Return which pixels of a tile lie between ``first`` and ``last``, and which of those they are."""
        start = self.starts[number] - self.pad
        low, high = max(start, first), min(start + self.tile, last)
        return slice(low - start, high - start), slice(low - first, high - first)

    def shown(self, number: int) -> np.ndarray:
        """Return the pixels of the area that a tile shows, (tile,) whole numbers."""
        return self.index[self.starts[number] : self.starts[number] + self.tile]

    def span(self, numbers: Sequence[int]) -> Cut:
        """Return the first and last but one of the area's pixels that some tiles show."""
        shown = [self.shown(number) for number in numbers]
        return min(int(own.min()) for own in shown), max(int(own.max()) for own in shown) + 1


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Return pixels of 0 .. size - 1 for any whole numbers, mirrored at both ends as often as it takes."""
    period = max(2 * (size - 1), 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)


@dataclass(frozen=True)
class Frame:
    """The tiles of one network on an area."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, shape: tuple[int, int], tile: int, overlap: int, stride: int, pad: int = 0) -> "Frame":
        """Lay tiles over an area of (height, width) as ``Predictor`` does over a scene of this size."""
        pads = [min(pad, side - 1) for side in shape]
        placed = tiles.place((shape[0] + 2 * pads[0], shape[1] + 2 * pads[1]), tile, overlap, stride)
        rows = Axis.of(shape[0], pads[0], placed.tile[0], placed.shape[0], placed.rows)
        return cls(rows, Axis.of(shape[1], pads[1], placed.tile[1], placed.shape[1], placed.columns))

    def reaching(self, window: Window) -> tuple[list[int], list[int]]:
        """Return the numbers of the rows and of the columns of tiles that reach into a window."""
        (top, bottom), (left, right) = cuts(window)
        return self.rows.reaching(top, bottom), self.columns.reaching(left, right)

    def span(self, window: Window) -> tuple[Cut, Cut]:
        """Return the rows and columns of the area that the tiles show which reach into a window."""
        rows, columns = self.reaching(window)
        return self.rows.span(rows), self.columns.span(columns)

    def tiles(self, window: Window) -> Iterator[tuple[int, int]]:
        """Yield (row, column) of the tiles that reach into a window, in the order in which they are added up."""
        rows, columns = self.reaching(window)
        for row in rows:
            for column in columns:
                yield row, column

    def windows(self, row: int, column: int, size: int, halo: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (row, column) of the windows of ``size`` pixels, with ``halo`` around, into which a tile reaches."""
        for down in _reached(self.rows, row, size, halo):
            for across in _reached(self.columns, column, size, halo):
                yield down, across

    def around(self, window: Window, ratio: int) -> Window:
        """Return what a window of an area is on a network's smaller image of it, of which a pixel is ``ratio`` of the
        area's to a side, with what bilinear interpolation looks at around it."""
        (top, bottom), (left, right) = cuts(window)
        halo = ratio > 1
        up, west = max(0, top // ratio - halo), max(0, left // ratio - halo)
        down, east = min(self.rows.size, bottom // ratio + halo), min(self.columns.size, right // ratio + halo)
        return Window(west, up, east - west, down - up)


def _reached(axis: Axis, number: int, size: int, halo: int) -> range:
    start = axis.starts[number] - axis.pad
    end = min(axis.size, start + axis.tile)
    return range(max(0, start - halo) // size, (min(axis.size, end + halo) - 1) // size + 1)


def cuts(window: Window) -> tuple[Cut, Cut]:
    """Return rows and columns of a window."""
    top, left = int(window.row_off), int(window.col_off)
    return (top, top + int(window.height)), (left, left + int(window.width))


class Edges:
    """What tiles say of windows that are still to come, in a folder: one file for a network, a tile and a window."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, network: int, tile: tuple[int, int], window: tuple[int, int]) -> Path:
        """Return where that lies."""
        return self.folder / f"{window[0]}_{window[1]}" / f"{network}_{tile[0]}_{tile[1]}.npy"

    def put(self, path: Path, probs: np.ndarray) -> None:
        """Keep probs (K, h, w) float32."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb") as stream:
            np.save(stream, probs, allow_pickle=False)

    def get(self, path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the probs of (h, w) ``shape`` that were kept; None where there are none, or not all of them."""
        try:
            held = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return held if held.dtype == np.float32 and held.shape[1:] == shape else None

    def drop(self, window: tuple[int, int]) -> None:
        """Forget what was kept for a window."""
        folder = self.folder / f"{window[0]}_{window[1]}"
        for path in folder.glob("*.npy"):
            path.unlink(missing_ok=True)
