"""What looks wrong with the pixels of an image: black rims, clouds painted white, images of one colour.

A satellite tile at the edge of its strip is black outside of it, and some data sets paint clouds white. A file may
declare such pixels as nodata; where it does not, a network is shown them as if they were ground.
"""

import cv2
import numpy as np

from lib.scenes.bands import Remark
from lib.scenes.raster import Picture

LEAST = 0.01
"""Share of an image from which on an area of one colour is remarked."""
EDGE = 16
"""By so many levels of 255 the pixels around an area differ from it: what fades out, such as the dark ground of a
fluorescence image, does not end so."""
HARD = {0: 0.75, 255: 0.95}
"""Level -> share of the ring around an area that does. An overexposed sky behind houses reaches 0.87 in CamVid."""
RING = np.ones((5, 5), np.uint8)


def blemishes(picture: Picture) -> list[Remark]:
    """Return what is to be said of the pixels of an image, none of which is an error."""
    pixels, valid = picture.pixels, picture.valid
    found = []
    if not valid.any():
        return [Remark("image without valid pixels", "nodata, alpha or a mask cover all of it")]
    if not valid.all():
        found.append(Remark("pixels without data", f"{1 - valid.mean():.1%} are not valid and are not learnt from"))
    first = pixels.reshape(-1, 3)[valid.argmax()]
    some = (pixels[::64, ::64] == first).all(axis=-1) | ~valid[::64, ::64]  # of most images these tell
    if some.all() and ((cv2.inRange(pixels, tuple(first.tolist()), tuple(first.tolist())) > 0) | ~valid).all():
        if not first.any():
            return [*found, Remark("image all black", "")]
        return [*found, Remark("image of one colour", ", ".join(map(str, first.tolist())))]
    for kind, level in (("black areas with hard edges", 0), ("white areas with hard edges", 255)):
        if share := _painted(pixels, valid, level):
            detail = f"{share:.1%} of the pixels; if they show nothing, declare them as nodata or alpha"
            found.append(Remark(kind, detail))
    return found


def _painted(pixels: np.ndarray, valid: np.ndarray, level: int) -> float:
    """Return which share of an image is areas of LEAST and more that are ``level`` in every band and end at once."""
    flat = cv2.inRange(pixels, (level,) * 3, (level,) * 3)
    flat[~valid] = 0
    least = LEAST * flat.size
    if cv2.countNonZero(flat) < least:
        return 0.0
    count, parts, stats, _ = cv2.connectedComponentsWithStats(flat, connectivity=8)
    total = 0
    for part in range(1, count):
        left, top, width, height, area = stats[part]
        if area < least:
            continue
        window = (slice(max(0, top - 2), top + height + 2), slice(max(0, left - 2), left + width + 2))
        own = (parts[window] == part).view(np.uint8)
        ring = (cv2.dilate(own, RING) > own) & valid[window]
        planes = cv2.split(pixels[window])  # the band that is furthest from the level counts
        away = np.maximum.reduce(planes) if level == 0 else np.uint8(255) - np.minimum.reduce(planes)
        if ring.any() and (away[ring] >= EDGE).mean() >= HARD[level]:
            total += int(area)
    return total / flat.size
