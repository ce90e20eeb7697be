"""The mean of Dice over images as counts that may be added, beside those of the pixels of all images together.

Counts: (..., 5) int64 = images, the sum of their Dice in fixed point, then tp, fp, fn of their pixels. An empty answer
to an empty truth has a Dice of 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lib import metrics

FIXED = 2**32
"""One, in fixed point: means over images stay whole numbers, so that their sum does not depend on the order."""
K = 5


def tally(answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count masks (..., H, W), above 0 = foreground, image by image: (..., 5) int64."""
    return count(metrics.binary_counts(answer, truth))


def count(pixels: np.ndarray) -> np.ndarray:
    """Count images apart: (..., 3) int64 tp, fp, fn of each -> (..., 5) int64."""
    dice = np.rint(metrics.dice(pixels, empty=1.0) * FIXED).astype(np.int64)
    return np.concatenate([np.ones_like(dice)[..., None], dice[..., None], pixels], axis=-1)


def mean(counts: np.ndarray) -> np.ndarray:
    """Return the mean Dice of added counts: (..., 5) -> (...) float64, 0 for no image."""
    return metrics.ratio(counts[..., 1] / FIXED, counts[..., 0], 0.0)


def pooled(counts: np.ndarray) -> np.ndarray:
    """Return the Dice of all pixels together: (..., 5) -> (...) float64, 1 where truth and answer are empty."""
    return metrics.dice(counts[..., 2:K])


class PerClass:
    """Scores of a competition whose answers are masks (C, H, W) and whose score is the mean over images and classes."""

    names: tuple[str, ...]
    """The classes, as columns and settings have them."""

    @property
    def counted(self) -> int:
        return K * len(self.names)

    def tally(self, answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Count one answer: (5 C,) int64, five for each class."""
        return tally(answer, truth).ravel()

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the mean of Dice over images and classes: (..., 5 C) -> (...) float64."""
        return self.class_scores(counts).mean(-1)

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the mean Dice of each class: (..., 5 C) -> (..., C) float64."""
        return mean(counts.reshape(*counts.shape[:-1], len(self.names), K))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return the mean Dice of each class."""
        return {f"dice_{name}": value for name, value in zip(self.names, self.class_scores(counts), strict=True)}
