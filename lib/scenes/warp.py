"""Move pixels: windows, mirrored borders, turns, slides, and the elastic field that an affine warp may take along.

Arrays are (H, W) or (H, W, 3) uint8; a point of a crop is (column u, row v), as OpenCV has it.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

ELASTIC_GRID = 2.5
"""An elastic field is drawn on a grid that makes its smoothing so many grid points wide, and enlarged."""

FOURS = 1 << 26
"""Most bytes of a copy with four channels: a scene of 4096 x 4096 pixels."""
_memory = threading.local()

REMAP_LIMIT = 32767
"""cv2.remap takes no side this long or longer; whole slides are."""


def place(rng: np.random.Generator, size: int, side: int, show: tuple[int, int, int] | None) -> int:
    """Draw the start of a window of ``side`` pixels along an axis: inside the scene if it fits, around it if not.

    show: (low, high, point): the window holds [low, high) or, where that is longer, a part of it with ``point``.
    """
    first, last = sorted((0, size - side))
    if show and side <= size:
        low, high, point = show
        if high - low <= side:
            first, last = max(first, high - side), min(last, low)
        else:
            first, last = max(low, point - side + 1), min(high - side, point)
    return int(rng.integers(first, last, endpoint=True))


def cut(array: np.ndarray, top: int, left: int, side: int, fill: int | None = None) -> np.ndarray:
    """Cut a square out of (H, W) or (H, W, 3); what lies outside is mirrored, or ``fill``."""
    height, width = array.shape[:2]
    inside = array[max(top, 0) : top + side, max(left, 0) : left + side]
    if inside.shape[:2] == (side, side):
        return inside.copy()
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(
        inside,
        max(-top, 0),
        max(top + side - height, 0),
        max(-left, 0),
        max(left + side - width, 0),
        border,
        value=fill or 0,
    )


def turn(array: np.ndarray, element: int) -> np.ndarray:
    """Apply element 0..7 of the dihedral group to (H, W) or (H, W, 3): bits are transpose, up-down, left-right.

    OpenCV copies: numpy's rotated views of interleaved colours are ten times slower to make contiguous.
    """
    if element & 4:
        array = cv2.transpose(array)
    if element & 3:
        array = cv2.flip(array, {1: 1, 2: 0, 3: -1}[element & 3])
    return array


def slide(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Move an image by (rows, columns), fractions of a pixel included; the border is mirrored."""
    matrix, (height, width) = np.array([[1, 0, by[1]], [0, 1, by[0]]]), image.shape[:2]
    return in_fours(image, (0, height), (0, width), lambda array: cv2.warpAffine(
        array, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))  # fmt: skip


def elastic(rng: np.random.Generator, size: int, alpha: float, sigma: float) -> np.ndarray:
    """Draw an elastic displacement field: (size, size, 2) float32 in pixels, columns then rows (Simard et al. 2003).

    It is alpha times noise, uniform in -1..1, smoothed by a Gaussian of sigma pixels; so its standard deviation is
    alpha / (2 sqrt(3 pi) sigma). Smooth noise needs few points: it is drawn on a grid of about sigma / ELASTIC_GRID
    pixels and enlarged by cubic interpolation, ten times faster. A margin is drawn too, so that the field is as strong
    at its border as inside.
    """
    step = max(round(sigma / ELASTIC_GRID), 1)
    margin = math.ceil(4 * sigma / step)
    points = math.ceil(size / step) + 2 * margin
    noise = rng.random((points, points, 2), dtype=np.float32) * 2 - 1
    field: np.ndarray = cv2.GaussianBlur(noise, (0, 0), sigma / step) * (alpha / step)  # fewer points, weaker averaging
    field = cv2.resize(field, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    inner = slice(margin * step, margin * step + size)
    return field[inner, inner]


def warp(array: np.ndarray, matrix: np.ndarray, size: int, fill: int | None = None) -> np.ndarray:
    """Sample a crop of ``size`` pixels through an affine map (2, 3) from crop to scene.

    fill None is for images (bilinear, mirrored border), a value is for masks (nearest, filled border).
    """
    how, border = sampling(fill)
    corners = matrix @ [[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1], [1, 1, 1, 1]]
    columns, rows = reach(corners[0], array.shape[1]), reach(corners[1], array.shape[0])
    return in_fours(array, rows, columns, lambda array: cv2.warpAffine(
        array, matrix, (size, size), flags=how | cv2.WARP_INVERSE_MAP, borderMode=border, borderValue=fill or 0,
    ))  # fmt: skip


def bend(array: np.ndarray, points: np.ndarray, fill: int | None = None) -> np.ndarray:
    """Sample a crop at ``points`` (H, W, 2) of the scene, with the rules of ``warp``."""
    how, border = sampling(fill)
    columns, rows = reach(points[..., 0], array.shape[1]), reach(points[..., 1], array.shape[0])
    if max(array.shape[:2]) >= REMAP_LIMIT:
        array, points = array[slice(*rows), slice(*columns)], points - np.array((columns[0], rows[0]), np.float32)
        rows, columns = (0, array.shape[0]), (0, array.shape[1])
    no_second: Any = None  # OpenCV's types overlook that one map of points is enough
    return in_fours(array, rows, columns, lambda array: cv2.remap(
        array, points, no_second, how, borderMode=border, borderValue=fill or 0))  # fmt: skip


def in_fours(
    array: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], move: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Move an array by a function that looks at its ``rows`` and ``columns`` [start, stop) alone; return the result.

    Of colours (H, W, 3) uint8 a copy with a fourth channel is moved: OpenCV gives the same values in half the time. Of
    the copy, whose memory is used again, the window alone is filled in.
    """
    count = array.shape[0] * array.shape[1] * 4
    if array.shape[2:] != (3,) or array.dtype != np.uint8 or count > FOURS:
        return move(array)
    if getattr(_memory, "fours", np.empty(0)).size < count:
        _memory.fours = np.empty(count, np.uint8)
    four = _memory.fours[:count].reshape(*array.shape[:2], 4)
    window = slice(*rows), slice(*columns)
    cv2.cvtColor(array[window], cv2.COLOR_RGB2RGBA, dst=four[window])
    return cv2.cvtColor(move(four), cv2.COLOR_RGBA2RGB)


def reach(along: np.ndarray, size: int) -> tuple[int, int]:
    """Return the part [start, stop) of an axis that sampling ``along`` it can need, mirrored borders included."""
    low, high = math.floor(along.min()), math.ceil(along.max())
    mirrored = max(-low, high - (size - 1), 0)
    return max(low - mirrored - 1, 0), min(high + mirrored + 2, size)


def sampling(fill: int | None) -> tuple[int, int]:
    """Return OpenCV's interpolation and border for an image (None) or a mask."""
    if fill is None:
        return cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101
    return cv2.INTER_NEAREST, cv2.BORDER_CONSTANT


def bent(matrix: np.ndarray, field: np.ndarray, u: float, v: float) -> np.ndarray:
    """Return where an affine map, taken after a displacement, sends each pixel of a crop: (H, W, 2) float32.

    matrix: (2, 3) from crop to scene. field: (H, W, 2). The crop's point (u, v) stays where the affine map alone
    sends it.
    """
    height, width = field.shape[:2]
    still = field[min(max(round(v), 0), height - 1), min(max(round(u), 0), width - 1)]
    points = field - still
    points[..., 0] += np.arange(width, dtype=np.float32)
    points[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    return cv2.transform(points, matrix)
