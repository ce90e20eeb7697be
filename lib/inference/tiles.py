"""Predict scenes of any size with a network that wants windows: mirrored borders, overlapping windows, soft seams.

The windows form a grid and their blending weights are outer products, so rows and columns are normalised apart: the
weights that meet at a pixel add up to 1, no division map is kept, and finished rows leave as soon as no window reaches
them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lib.errors import ConfigError

Forward = Callable[[Tensor], Tensor]


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

    The last window is moved back to end with the scene.
    """
    starts = [*range(0, size - tile, step), size - tile]
    total = torch.zeros(size)
    for start in starts:
        total[start : start + tile] += pyramid(tile)
    return [(start, pyramid(tile) / total[start : start + tile]) for start in starts]


def predict_bands(
    forward: Forward, image: Tensor, tile: int, overlap: int, stride: int
) -> Iterator[tuple[int, Tensor]]:
    """Predict a scene from top to bottom: yield (first row, probs (K, rows, W) float32), each row once.

    Holds the padded image and one row of windows, whatever the height. A yielded band lives until the next one is
    asked for. Arguments and errors as in ``predict_tiled``.
    """
    if tile < 1 or tile % stride:
        raise ConfigError(f"tile: expected a positive multiple of the network's stride {stride}, got {tile}")
    if not 0 <= overlap <= tile - stride:
        raise ConfigError(f"overlap: expected 0 .. tile - stride = {tile - stride} pixels, got {overlap}")
    height, width = image.shape[-2:]
    image = mirrored(image, stride)
    high, wide = min(tile, image.shape[-2]), min(tile, image.shape[-1])
    step = (tile - overlap) // stride * stride  # windows start on the network's own grid
    rows = grid(image.shape[-2], high, step)
    columns = grid(image.shape[-1], wide, step)
    if len(rows) == len(columns) == 1:
        yield 0, forward(image[None])[0, :, :height, :width].float()
        return

    band: Any = None  # (K, high, W), as soon as a window has told how many channels there are
    for (top, down), following in zip(rows, [top for top, _ in rows[1:]] + [height]):
        for left, across in columns:
            probs = forward(image[None, :, top : top + high, left : left + wide])[0].float()  # (K, high, wide)
            if band is None:
                band = probs.new_zeros(probs.shape[0], high, image.shape[-1])
            weights = torch.outer(down, across).to(probs.device)
            band[:, :, left : left + wide].addcmul_(probs, weights)
        finished = following - top
        yield top, band[:, :finished, :width]
        for start in range(finished, high, finished):  # move the rest up, in steps that do not overlap themselves
            part = band[:, start : start + finished]
            band[:, start - finished : start - finished + part.shape[1]] = part
        band[:, high - finished :] = 0


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
