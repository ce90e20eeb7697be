"""Score masks of any competition from one confusion matrix: accuracy, IoU, Dice.

Masks: (..., H, W) class indices, leading axes are images. Pixels whose truth is ``IGNORE`` count nowhere.
Confusion: (..., C, C) int64, row = true class, column = answered class; matrices of images are added, then scored.
Counts: (..., 3) int64 = true positives, false positives, false negatives of the foreground.
"""

from collections.abc import Sequence

import numpy as np

from lib.errors import DataError
from lib.tasks import IGNORE


def confusion(answer: np.ndarray, truth: np.ndarray, classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Count true against answered classes over all pixels of one image or of many together: (C, C) int64.

    answer, truth: any equal shape, integers in 0 .. classes - 1, truth also ``ignore``. Raises DataError otherwise.
    """
    _check_shapes(answer, truth)
    counted = truth != ignore
    answer, truth = answer[counted], truth[counted]  # (pixels,)
    for name, values in (("answer", answer), ("truth", truth)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise DataError(
                f"{name}: expected class indices 0..{classes - 1}, got {values.min()}..{values.max()}; "
                "check the number of classes and the ignored value"
            )
    key = truth.astype(np.intp) * classes + answer
    return np.bincount(key, minlength=classes * classes).reshape(classes, classes)


def pixel_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Return the share of right pixels: (..., C, C) -> (...) float64, NaN where no pixel was counted."""
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), np.sum(matrix, axis=(-2, -1)), np.nan)


def iou(matrix: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class: (..., C, C) -> (..., C) float64.

    NaN marks a class found neither in the truth nor in the answer; one that was only answered has 0.
    """
    return overlap_iou(overlaps(matrix))


def overlaps(matrix: np.ndarray) -> np.ndarray:
    """Reduce a confusion to what IoU needs, additive as well: (..., C, C) -> (..., C, 3) int64 per class.

    The three are the pixels answered rightly (the intersection), all those answered, all true ones.
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.stack([hits, np.sum(matrix, axis=-2), np.sum(matrix, axis=-1)], axis=-1)


def overlap_iou(counts: np.ndarray) -> np.ndarray:
    """Return ``iou`` from ``overlaps``: (..., C, 3) -> (..., C) float64, NaN for a class found in neither."""
    hits, answered, true = np.moveaxis(np.asarray(counts), -1, 0)
    return ratio(hits, answered + true - hits, np.nan)


def mean_present(values: np.ndarray) -> np.ndarray:
    """Average over the classes that are not NaN: (..., C) -> (...) float64, NaN if there are none."""
    there = ~np.isnan(values)
    return ratio(np.sum(values, axis=-1, where=there), there.sum(-1), np.nan)


def binary_counts(answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Count foreground pixels of each image: (..., H, W) -> (..., 3) int64. Any value above 0 is foreground."""
    _check_shapes(answer, truth)
    counted = truth != IGNORE
    answer, truth = (answer > 0) & counted, (truth > 0) & counted
    tp = np.sum(answer & truth, axis=(-2, -1))
    return np.stack([tp, np.sum(answer, axis=(-2, -1)) - tp, np.sum(truth, axis=(-2, -1)) - tp], axis=-1)


def dice(counts: np.ndarray, empty: float = 1.0) -> np.ndarray:
    """Return Dice, which is F1, of counts: (..., 3) -> (...) float64; ``empty`` where truth and answer are empty.

    Sum the counts of all images first for the pooled score; pass them as they are for one Dice per image.
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts), -1, 0)
    return ratio(2 * tp, 2 * tp + fp + fn, empty)


def ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> np.ndarray:
    """Divide (...) arrays that broadcast, giving ``empty`` where the whole is 0: (...) float64."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(whole.shape, empty, np.float64), where=whole != 0)


def _check_shapes(answer: np.ndarray, truth: np.ndarray) -> None:
    if answer.shape != truth.shape:
        raise DataError(f"answer: expected the shape of the truth, {truth.shape}, got {answer.shape}; resize it first")


def confusion_table(counts: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return a confusion of C classes, (C * C,) counts with truth by rows, as {true class: {answered class: count}}."""
    rows = counts.reshape(len(names), len(names)).tolist()
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, rows, strict=True)}
