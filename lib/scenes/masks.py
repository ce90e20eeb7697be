"""Mask files of one class, in the forms in which people ship them: 0/1, 0/255, 16-bit 0/65535, JPEG, with grey edges.

Two values, one of them 0, leave no doubt: what is not 0 is the object. Grey between black and white comes from lossy
compression or from resizing; such a mask is cut at half, since cutting it above 0 makes every object larger (by 8 % and
more where a JPEG holds 0..7 and 248..255). Other masks are not guessed at: who reads them states which values are
objects. Small numbers in a lossy format are among them, since it does not keep a 1 apart from a 0.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.errors import DataError
from lib.scenes import raster
from lib.scenes.bands import Remark

GREY = 0.05
"""At most this share of the pixels, or EDGE of those that are not black, are between black and white in a mask of two
tones."""
EDGE = 0.2
FEW = 3
"""So few values are numbers of their own, and no grey."""


def read_objects(path: str | Path, objects: Sequence[int] = ()) -> tuple[np.ndarray, list[Remark]]:
    """Read a mask as (H, W) uint8, 1 = object, and return what is to be said of it.

    objects: the values that are objects; of a mask of two tones 0 or the other. (): what is not 0. Raises DataError as
    ``raster.read_mask`` does, and where values are not stated and not clear.
    """
    grey, exact, colours = raster.read_grey(path)
    held = np.unique(grey)
    if not objects and (index := black_but_0(colours, held.tolist())):
        raise DataError(f"{path}: expected a palette in which 0 is black, got a colour for 0 and black for {index}; "
                        "which of its values are objects?")  # fmt: skip
    if _of_two_tones(grey, len(held), exact):
        light = (grey >= _white(grey) / 2).view(np.uint8)
        said = Remark("grey mask, cut at half", f"{path}: {len(held)} values from {held[0]} to {held[-1]}")
        return 1 - light if tuple(objects) == (0,) else light, [said] if len(held) > 2 else []
    if objects:
        return np.isin(grey, objects).view(np.uint8), []
    if len(held) > 2 or (len(held) == 2 and held[0] != 0) or (held.any() and not exact):
        shown = ", ".join(map(str, held[:6].tolist())) + (", ..." if len(held) > 6 else "")
        raise DataError(f"{path}: expected a mask of 0 and one other value, got {len(held)} values ({shown}); which of "
                        "them are objects?")  # fmt: skip
    return (grey > 0).view(np.uint8), []


def black_but_0(colours: np.ndarray | None, held: Sequence[int]) -> int:
    """Return the index, of those that a mask holds, that its palette shows black while it shows index 0 in a colour.

    colours: (N, 3 or more) uint8. 0 where there is none. So it is where a tool has made the palette anew, as by the
    frequency of colours.
    """
    if colours is None or 0 not in held or not colours[0, :3].any():
        return 0
    return next((index for index in held if not colours[index, :3].any()), 0)


def _white(grey: np.ndarray) -> int | float:
    """Return what is white in a mask of this number type and these values."""
    if grey.dtype == np.uint8:
        return 255
    most = grey.max(initial=0)
    return 65535 if grey.dtype == np.uint16 and most > 255 else 255 if most > 1 else 1


def _of_two_tones(grey: np.ndarray, values: int, exact: bool) -> bool:
    """Tell whether a mask is black and white but for its edges, or for what lossy compression made of it."""
    if exact and values <= FEW:
        return False
    top = _white(grey)
    if 0 < grey.max() < (0.75 if exact else 0.25) * top or (exact and grey.min() > 0.25 * top):
        return False  # small numbers, such as those of objects
    bright = np.count_nonzero(grey > top / 4)
    return bool(bright - np.count_nonzero(grey >= 0.75 * top) <= max(GREY * grey.size, EDGE * bright))
