"""Find pairs of scenes that are alike, by hash or by embedding, or near each other on the map.

A perceptual hash finds copies, whatever their light, size or JPEG; an embedding (``lib/scenes/embed.py``) also crops,
mirror images and other moments of one video. Both only suggest a pair: whether it is one the pixels tell
(``matching.py``). A scene counts with its nearest frame.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scipy.spatial import cKDTree

from lib.scenes.matching import has_structure

FLAT = 0
"""Hash of an image that shows nothing, or nearly so; every other hash has about half of its bits set."""

DUPLICATE_BITS = 6
"""Hashes this close or closer are called near-duplicates (of 63 bits; unrelated images differ in about 31)."""

LOOK_ALIKE = 0.85
"""Cosine of two ``lib/scenes/embed.py`` vectors from which on two images look alike.

Measured, pairs of images of one source against pairs of different sources (quantiles 50 %, 95 %, maximum):

    street videos (CamVid, 4 videos)   same video 0.72 0.82 0.96    other video 0.65 0.74 0.80
    clips of moving people (4 clips)   same clip  0.87 0.95 0.98    other clip  0.54 0.70 0.76
    satellite tiles (xBD, 22 tiles)    same place 0.81 0.89 0.93    other tile  0.52 0.65 0.76   (before and after)
    photos of animals (26)                                          other photo 0.43 0.68 0.79

So 0 of 3538 unrelated pairs are found (0.80 is where the first would be), and 61 % of the frame pairs of one clip,
4 % of one street video (the car drives on: the neighbours in time), 75 % of crops to 80 % of the side, all mirror
images; no hash finds the last two. Where all pictures are of one kind it is different: nuclei on black reach 0.93, and
noisy seismic tiles 0.96.
"""

NEIGHBOUR_KM = 0.75
"""Centres this close or closer are called neighbours: an xBD tile spans about 0.5 km, so corners touch at 0.7 km."""

EARTH_KM = 6371.0
ONES = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1).astype(np.uint8)
"""How many bits of each 16-bit number are set: ``np.bitwise_count`` for numpy before 2.0."""

BLOCK = 256
"""Frames compared with all others at a time: 10 MB for 10,000 scenes of one frame."""


# ---- near-duplicates ------------------------------------------------------------------------------------------------
def frames(pixels: np.ndarray) -> list[np.ndarray]:
    """Pick what stands for a scene: its image (H, W, 3), or first, middle and last of its frames (F, H, W, 3)."""
    if pixels.ndim == 3:
        return [pixels]
    n = len(pixels)
    return [pixels[k] for k in sorted({0, n // 2, n - 1})] if n else []


def perceptual_hash(image: np.ndarray) -> int:
    """Hash an image so that copies keep it: (H, W, 3) uint8 RGB -> 64-bit int, ``FLAT`` where there is no structure.

    The image is reduced to 32 x 32 grey values; bit k tells whether the k-th of the 8 x 8 lowest cosine frequencies is
    above their median (pHash: Zauner 2010). Light, contrast, size and JPEG hardly change it. The mean is left out.
    """
    if is_flat(image):
        return FLAT
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)  # (32, 32, 3): before grey, it is far smaller
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)  # (32, 32)
    waves = cv2.dct(grey)[:8, :8].ravel()  # (64,)
    bits = waves > np.median(waves[1:])
    bits[0] = False
    return int(np.packbits(bits).view(">u8")[0])


def is_flat(image: np.ndarray) -> bool:
    """Tell whether an image (H, W, 3) uint8 shows too little to be known again, so that its hash is ``FLAT``."""
    return not has_structure(image)


def near_duplicates(hashes: Sequence[int | Sequence[int]], bits: int = DUPLICATE_BITS) -> np.ndarray:
    """Find pairs i < j of scenes with frames at most ``bits`` bits apart; ``FLAT`` never pairs.

    hashes: per scene its hash, or one per frame. Returns (P, 3) int64 of i, j and the fewest bits between their frames.
    """
    codes = [np.atleast_1d(np.asarray(code, np.uint64)) for code in hashes]
    i, j, closeness = _pairs([code[code != FLAT] for code in codes], _agreement, 64 - bits)
    return np.column_stack([i, j, 64 - closeness]).astype(np.int64)


def look_alikes(embeddings: Sequence[np.ndarray | None], cosine: float = LOOK_ALIKE) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs i < j of scenes with frames whose unit vectors have at least this cosine.

    embeddings: per scene (n, D) float32, a row per frame; None or no row: not compared; a zero row resembles nothing.
    Returns (P, 2) int64 of i, j and (P,) float32, the highest cosine between their frames.
    """
    vectors = [np.empty((0, 1), np.float32) if v is None else np.asarray(v, np.float32) for v in embeddings]
    i, j, closeness = _pairs(vectors, lambda rows, columns: rows @ columns.T, cosine)
    return np.column_stack([i, j]).astype(np.int64), np.minimum(closeness, 1.0).astype(np.float32)


def _agreement(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return how many of 64 bits agree: (R,) and (C,) uint64 -> (R, C) uint8."""
    differ = (rows[:, None] ^ columns).view(np.uint16)  # (R, 4 * C)
    return 64 - sum(ONES[differ[:, part::4]] for part in range(4))


def _pairs(
    frames_of: Sequence[np.ndarray], compare: Callable[[np.ndarray, np.ndarray], np.ndarray], least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return i, j, closeness of the scenes i < j whose closest frames have ``compare(...) >= least``, in order of i, j.

    frames_of: per scene (n, ...), n >= 0. compare: (R, ...), (C, ...) -> (R, C). About ``BLOCK`` frames at a time.
    """
    known = np.array([s for s, own in enumerate(frames_of) if len(own)], np.int64)  # (S,)
    if len(known) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    stacked = np.concatenate([frames_of[s] for s in known])  # (M, ...)
    starts = np.cumsum([0, *(len(frames_of[s]) for s in known)])  # (S + 1,): first frame of each scene, then M
    found, first = [], 0
    while first < len(known):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK, side="right")) - 1)
        a = starts[first]
        close = compare(stacked[a : starts[last]], stacked[a:])  # (about BLOCK, M - a)
        close = np.maximum.reduceat(close, starts[first:-1] - a, axis=1)  # (about BLOCK, S - first): best frame each
        close = np.maximum.reduceat(close, starts[first:last] - a, axis=0)  # (last - first, S - first)
        i, j = np.nonzero(np.triu(close >= least, k=1))
        found.append((known[i + first], known[j + first], close[i, j]))
        first = last
    i, j, closeness = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, closeness


# ---- neighbours -----------------------------------------------------------------------------------------------------
def neighbours(positions: Sequence[tuple[float, float] | None], distance_km: float = NEIGHBOUR_KM) -> np.ndarray:
    """Find pairs i < j of (lng, lat) in degrees at most ``distance_km`` apart: (P, 2) int64; None never pairs."""
    known = np.array([i for i, place in enumerate(positions) if place is not None], np.int64)
    if len(known) < 2:
        return np.empty((0, 2), np.int64)
    lng, lat = np.radians([positions[i] for i in known]).T
    on_sphere = EARTH_KM * np.column_stack([np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat)])
    pairs = known[cKDTree(on_sphere).query_pairs(distance_km, output_type="ndarray")]  # chord = arc at this scale
    return pairs[np.lexsort(pairs.T[::-1])]
