"""Predict scenes of any size with a network that wants windows: mirrored borders, overlapping windows, soft seams.

The windows form a grid and their blending weights are outer products, so rows and columns are normalised apart: the
weights that meet at a pixel add up to 1, no division map is kept, and finished rows leave as soon as no window reaches
them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lib.errors import ConfigError

Forward = Callable[[Tensor], Tensor]


class Rows(Protocol):
    """An image (C, H, W) whose rows are read when they are asked for: a tensor, or an open raster."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, part: tuple[slice, slice]) -> Tensor:
        """Return (C, rows, W) for ``[:, top:bottom]``."""


def pyramid(n: int) -> Tensor:
    """Weigh by the distance to the nearer end of the window: (n,) float32, 1, 2, 3 .. 3, 2, 1."""
    ramp = torch.arange(1.0, n + 1)
    return torch.minimum(ramp, ramp.flip(0))


def mirror(image: Tensor, height: int, width: int) -> Tensor:
    """Pad (..., H, W) below and to the right by reflection to (..., height, width); works down to H or W = 1."""
    for axis, size in ((-2, height), (-1, width)):
        n = image.shape[axis]
        if size > n:
            period = max(2 * (n - 1), 1)
            index = torch.arange(size) % period
            image = image.index_select(axis, torch.minimum(index, period - index).to(image.device))
    return image


def mirrored(image: Tensor, stride: int) -> Tensor:
    """Pad (..., H, W) as ``mirror`` does until its sides are multiples of ``stride``."""
    height, width = image.shape[-2:]
    return mirror(image, -(-height // stride) * stride, -(-width // stride) * stride)


def grid(size: int, tile: int, step: int) -> list[tuple[int, Tensor]]:
    """Place windows along one axis: [(start, weights (tile,) float32)]; at every pixel the weights add up to 1.

    The last window is moved back to end with the scene. Windows of equal weights have the same tensor.
    """
    starts = [*range(0, size - tile, step), size - tile]
    total = torch.zeros(size)
    for start in starts:
        total[start : start + tile] += pyramid(tile)
    found: list[tuple[int, Tensor]] = []
    for start in starts:
        weights = pyramid(tile) / total[start : start + tile]
        found.append((start, next((known for _, known in found if torch.equal(known, weights)), weights)))
    return found


@dataclass(frozen=True)
class Placed:
    """Where the windows of a scene are, and how they weigh."""

    shape: tuple[int, int]
    """(height, width) of the scene with what is mirrored below and to the right: multiples of the stride."""
    tile: tuple[int, int]
    """(height, width) of a window; that of the scene where it is smaller than a tile."""
    rows: list[tuple[int, Tensor]]
    """(first row, weights by row) of each row of windows; a pixel weighs the product of its row's and column's."""
    columns: list[tuple[int, Tensor]]


def place(shape: tuple[int, int], tile: int, overlap: int, stride: int) -> Placed:
    """Place the windows of a scene of (height, width); arguments and errors as in ``predict_tiled``."""
    if tile < 1 or tile % stride:
        raise ConfigError(f"tile: expected a positive multiple of the network's stride {stride}, got {tile}")
    if not 0 <= overlap <= tile - stride:
        raise ConfigError(f"overlap: expected 0 .. tile - stride = {tile - stride} pixels, got {overlap}")
    tall, broad = (-(-side // stride) * stride for side in shape)  # with what is mirrored
    high, wide = min(tile, tall), min(tile, broad)
    step = (tile - overlap) // stride * stride  # windows start on the network's own grid
    return Placed((tall, broad), (high, wide), grid(tall, high, step), grid(broad, wide, step))


def predict_bands(forward: Forward, image: Rows, tile: int, overlap: int, stride: int) -> Iterator[tuple[int, Tensor]]:
    """Predict a scene from top to bottom: yield (first row, probs (K, rows, W) float32), each row once.

    Holds the rows of one row of windows and their probabilities, whatever the height. A yielded band lives until the
    next one is asked for. Arguments and errors as in ``predict_tiled``.
    """
    height, width = image.shape[-2:]
    placed = place((height, width), tile, overlap, stride)
    rows, columns, broad, high, wide = placed.rows, placed.columns, placed.shape[1], *placed.tile
    if len(rows) == len(columns) == 1:
        yield 0, forward(mirrored(image[:, :height], stride)[None])[0, :, :height, :width].float()
        return

    kinds = [{id(weights): weights for _, weights in axis} for axis in (rows, columns)]
    weights = {
        (down, across): torch.outer(kinds[0][down], kinds[1][across]) for down in kinds[0] for across in kinds[1]
    }
    band: Any = None  # (K, high, W), as soon as a window has told how many channels there are
    above = 0  # rows of the band that hold something of earlier windows
    for (top, down), following in zip(rows, [top for top, _ in rows[1:]] + [height]):
        first, right = max(0, min(top, height - stride)), 0  # what the last rows mirror may lie above their window
        strip = mirror(image[:, first : top + high], top + high - first, broad)[:, top - first :]
        for left, across in columns:
            probs = forward(strip[None, :, :, left : left + wide])[0].float()  # (K, high, wide)
            if band is None:
                band = probs.new_empty(probs.shape[0], high, broad)
                weights = {ids: known.to(band.device) for ids, known in weights.items()}
            part = band[:, :, left : left + wide]
            _add(part, probs, weights[id(down), id(across)], above, max(0, right - left))
            right = left + wide
            del probs  # so that the next window's take its place, instead of pages that the system has to clear first
        finished = following - top
        yield top, band[:, :finished, :width]
        above = high - finished
        for start in range(finished, high, finished):  # move the rest up, in steps that do not overlap themselves
            part = band[:, start : start + finished]
            band[:, start - finished : start - finished + part.shape[1]] = part


def _add(part: Tensor, probs: Tensor, weights: Tensor, above: int, before: int) -> None:
    """Add weighted probs (K, h, w) to a part of the band whose first rows and columns hold something; the rest of it is
    written for the first time, which spares to empty and to read it."""
    part[:, :above].addcmul_(probs[:, :above], weights[:above])
    part[:, above:, :before].addcmul_(probs[:, above:, :before], weights[above:, :before])
    torch.mul(probs[:, above:, before:], weights[above:, before:], out=part[:, above:, before:])


def predict_tiled(forward: Forward, image: Tensor, tile: int, overlap: int, stride: int) -> Tensor:
    """Predict a scene of any size: image (C, H, W) -> probs (K, H, W) float32 on the CPU.

    forward: (1, C, h, w) in the image's dtype -> probs (1, K, h, w); h, w are multiples of ``stride`` up to ``tile``.
    tile, overlap: pixels; neighbours share at least ``overlap``. A scene no larger than a tile is one forward.
    Raises ConfigError for impossible tile or overlap.
    """
    probs: Any = None  # (K, H, W), as soon as a band has told K
    for top, band in predict_bands(forward, image, tile, overlap, stride):
        if probs is None:
            probs = torch.empty(band.shape[0], *image.shape[-2:])
        probs[:, top : top + band.shape[1]] = band
    return probs
