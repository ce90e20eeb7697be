"""Score objects of an image by how well each is found: the metric of Kaggle's Data Science Bowl 2018.

Label maps: (H, W) integers, 0 is background, every other value one object; numbers need not follow each other.
Counts: (13,) int64, added over images: the image's precision in fixed point, hits at the ten thresholds, objects
answered, objects true. How many images were added is counted by the caller, who has other scores to average too.
"""

import numpy as np

from lib.competitions.mean_dice import FIXED
from lib.errors import DataError
from lib.metrics import ratio

THRESHOLDS = tuple(k / 20 for k in range(10, 20))
"""IoU 0.5, 0.55 ... 0.95."""
K = len(THRESHOLDS) + 3


def count(answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count one image: (13,) int64.

    A true object is hit at threshold t by an answered one whose IoU with it is above t (above, as the competition's
    page says); above one half, no object can hit two. The image's precision is the mean over thresholds of
    TP / (TP + FP + FN); an image without objects that is answered without objects has precision 1, which the page
    leaves open (its images all had nuclei). Raises DataError on maps of other shapes or types.
    """
    twentieths, answered, true = _overlaps(answer, truth)
    hits = np.array([(twentieths >= k).sum() for k in range(10, 20)])  # (10,)
    called = answered + true - hits  # TP + FP + FN
    precision = float(np.mean(hits / called)) if answered + true else 1.0
    return np.array([round(precision * FIXED), *hits, answered, true], np.int64)


def _overlaps(answer: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return for each pair that overlaps the largest k with IoU > k / 20 (exact, in whole numbers), and both counts."""
    if answer.shape != truth.shape or answer.dtype.kind not in "bui" or truth.dtype.kind not in "bui":
        raise DataError(
            f"label maps: expected whole numbers of one shape, got {answer.shape} {answer.dtype} and {truth.shape} "
            f"{truth.dtype}; resize probabilities, not answers"
        )
    (found, found_areas), (real, real_areas) = (np.unique(m[m > 0], return_counts=True) for m in (answer, truth))
    both = (answer > 0) & (truth > 0)
    key = np.searchsorted(real, truth[both]) * max(1, len(found)) + np.searchsorted(found, answer[both])  # (pixels,)
    pairs, shared = np.unique(key, return_counts=True)
    union = real_areas[pairs // max(1, len(found))] + found_areas[pairs % max(1, len(found))] - shared
    return (20 * shared - 1) // union, len(found), len(real)


def mean_precision(counts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the official score of added counts: (..., 13) and numbers of images (...) -> (...), 0 for no image."""
    return ratio(counts[..., 0] / FIXED, images, 0.0)


def f1(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Return F1 of the objects of all images together at one of THRESHOLDS: (..., 13) -> (...), 1 for no object."""
    hits = counts[..., 1 + THRESHOLDS.index(threshold)]
    return ratio(2 * hits, counts[..., -2] + counts[..., -1], 1.0)
