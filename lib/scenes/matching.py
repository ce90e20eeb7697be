"""Tell by their pixels whether two pictures show one thing: what a hash or a network's features say is only a hint.

A hash sees the 63 lowest frequencies, and features see what kind of picture it is; both agree by chance where all
pictures are of one kind. What decides here is detail that neither has used: the fine structure of a small picture, or
points that move together from one picture to the other.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import cv2
import numpy as np

SIDE = 64
"""Side in pixels of the small picture whose fine structure is compared."""
BLOCKS = 8
"""Rows and columns of blocks that a small picture is divided into."""
COARSE = 4.0
"""Standard deviation in pixels of the blur that is taken away from it: what is left, a hash has not seen."""
VISIBLE = 2.0
"""A block has structure where its fine structure varies by so many grey levels."""
SPREAD = 3
"""A picture has structure where so many rows and so many columns of blocks have: the sea bed below empty water, one
line that many salt tiles share, has one or two."""
SHIFT = 3
"""The small pictures may lie so many pixels apart."""
COPY = 0.6
"""Correlation of fine structure from which on two pictures are copies. Copies that a hash finds (other light, JPEG of
quality 15, half the size, cropped by 2 %) have 0.63 and more, of 1,800 the median 0.99; 99.9 % of pairs of others have
at most 0.31, but for neighbouring frames and neighbouring seismic lines, which do show one thing."""
DETAIL = 256
"""Longer side in pixels of the picture in which points are looked for."""
POINTS = 400
"""At most so many points (SIFT: Lowe 2004) are compared."""
TOGETHER = 10
"""Points that move together, from which on two pictures show one thing. Of pairs that features call alike, those of one
place (9 of street videos) have 12 to 278, those of one kind alone (63 of salt tiles, 14 of nuclei) at most 5."""

Points = tuple[np.ndarray, np.ndarray]
"""(N, 2) float32 x and y, and (N, 128) float32 descriptors."""


def fine_structure(image: np.ndarray) -> np.ndarray:
    """Return a small picture without its coarse structure: (H, W, 3) uint8 RGB -> (SIDE, SIDE) float32, mean near 0."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), COARSE)


def has_structure(image: np.ndarray) -> bool:
    """Tell whether an image (H, W, 3) uint8 shows enough to be known again, and not one colour, or a line in it."""
    side = SIDE // BLOCKS
    blocks = fine_structure(image).reshape(BLOCKS, side, BLOCKS, side).std(axis=(1, 3)) >= VISIBLE
    return bool(min(blocks.any(axis=0).sum(), blocks.any(axis=1).sum()) >= SPREAD)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the highest normalised correlation of two ``fine_structure`` at most SHIFT pixels apart, -1 to 1."""
    return float(cv2.matchTemplate(a, b[SHIFT:-SHIFT, SHIFT:-SHIFT], cv2.TM_CCOEFF_NORMED).max())


def points_of(image: np.ndarray) -> Points:
    """Find the points of an image (H, W, 3) uint8 RGB, whose longer side is made DETAIL."""
    height, width = image.shape[:2]
    scale = DETAIL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
    found, descriptors = cv2.SIFT.create(nfeatures=POINTS).detectAndCompute(grey, None)
    places = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
    return places, np.zeros((0, 128), np.float32) if descriptors is None else descriptors


def together(a: Points, b: Points) -> int:
    """Count the points of two pictures that one shift, turn and scale maps on each other."""
    if min(len(a[0]), len(b[0])) < 2:
        return 0
    nearest = cv2.BFMatcher().knnMatch(a[1], b[1], k=2)
    clear = [first for first, second in nearest if first.distance < 0.8 * second.distance]  # Lowe's ratio
    if len(clear) < 4:
        return 0
    _, inside = cv2.estimateAffinePartial2D(
        a[0][[match.queryIdx for match in clear]], b[0][[match.trainIdx for match in clear]], ransacReprojThreshold=4
    )
    return 0 if inside is None else int(inside.sum())


class Matcher:
    """Compare scenes by the pixels of the frames that stand for them, which are read when they are asked for."""

    def __init__(self, frames_of: Callable[[str], Sequence[np.ndarray]]):
        """``frames_of``: scene id -> its frames, (H, W, 3) uint8 RGB each; none where it cannot be read."""
        self._frames = lru_cache(maxsize=8)(frames_of)
        self._fine = lru_cache(maxsize=1024)(lambda scene_id: [
            fine_structure(frame) for frame in self._frames(scene_id) if has_structure(frame)])  # fmt: skip
        self._points = lru_cache(maxsize=256)(lambda scene_id, mirrored: [
            points_of(np.ascontiguousarray(frame[:, ::-1]) if mirrored else frame)
            for frame in self._frames(scene_id) if has_structure(frame)])  # fmt: skip

    def copies(self, one: str, other: str, theirs: "Matcher | None" = None) -> bool:
        """Tell whether a frame of one scene is a copy of a frame of the other, which may be among ``theirs``."""
        return any(correlation(a, b) >= COPY for a in self._fine(one) for b in (theirs or self)._fine(other))

    def same(self, one: str, other: str) -> bool:
        """Tell whether a frame of one scene shows what a frame of the other does: a copy, a crop, a mirror image."""
        return self.copies(one, other) or any(
            together(a, b) >= TOGETHER
            for mirrored in (False, True)
            for a in self._points(one, mirrored)
            for b in self._points(other, False)
        )
