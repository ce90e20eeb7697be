"""Score yes-or-no labels of whole scenes: equal error rate, area under the ROC curve, accuracy, log-loss.

Scores are rounded to per mille. So one histogram, (..., 2, 1001) int64, holds all there is to know: row 0 counts the
negative scenes of every score, row 1 the positive ones. Histograms of scenes are added, then scored; the metrics below
are exact, ties included. A scene is called positive at ``score >= threshold``.

Where only one of the classes is there, no ROC curve exists: ``auc`` and ``eer`` then are 0.5, chance, and
``one_class`` says so. Without any scene ``accuracy`` is 0 and ``log_loss`` that of a coin.
"""

import numpy as np

from lib.errors import DataError
from lib.metrics import ratio

STEPS = 1000
BINS = STEPS + 1
CHANCE = 0.5
EPS = 1e-15
"""How far ``log_loss`` keeps a score from 0 and 1."""


def per_mille(scores: np.ndarray) -> np.ndarray:
    """Round scores in [0, 1], any shape, to (...) int64 in 0..1000. Raises DataError for others and for NaN."""
    scores = np.asarray(scores, np.float64)
    if not np.all((scores >= 0) & (scores <= 1)):  # written so that NaN fails too
        raise DataError(f"scores: expected numbers in [0, 1], got {scores.min(initial=1)} .. {scores.max(initial=0)}")
    return np.rint(scores * STEPS).astype(np.int64)


def histogram(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count scenes by label and rounded score: scores (N,) in [0, 1], labels (N,) in {0, 1} -> (2, 1001) int64."""
    bins, labels = per_mille(scores), np.asarray(labels)
    if bins.ndim != 1 or bins.shape != labels.shape or not np.isin(labels, (0, 1)).all():
        raise DataError(f"labels: expected one 0 or 1 per score, got {labels.shape} for {bins.shape}")
    return np.bincount(labels.astype(np.int64) * BINS + bins, minlength=2 * BINS).reshape(2, BINS)


def one_class(counts: np.ndarray) -> np.ndarray:
    """Tell where fewer than both classes are there: (..., 2, 1001) -> (...) bool."""
    return (counts.sum(-1) == 0).any(-1)


def auc(counts: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve: (..., 2, 1001) -> (...) float64.

    The chance that a positive scene scores above a negative one, ties half (Mann and Whitney 1947).
    """
    negative, positive = counts[..., 0, :], counts[..., 1, :]
    pairs = negative.sum(-1) * positive.sum(-1)
    below = np.cumsum(negative, -1) - negative  # negatives that score less
    won = (positive * (2 * below + negative)).sum(-1)
    return ratio(won, 2 * pairs, CHANCE)


def eer(counts: np.ndarray) -> np.ndarray:
    """Return the equal error rate, where false acceptance = false rejection: (..., 2, 1001) -> (...) float64.

    Between neighbouring thresholds both rates are interpolated linearly, as a line between two points of the ROC does.
    """
    accepted, rejected, gap = _errors(counts)
    totals = counts.sum(-1)
    high = np.argmax(gap >= 0, -1)[..., None]  # first threshold that rejects as much as it accepts, or more
    low = np.maximum(high - 1, 0)
    before, after = (np.take_along_axis(gap, at, -1)[..., 0].astype(np.float64) for at in (low, high))
    ends = [np.take_along_axis(rejected, at, -1)[..., 0] for at in (low, high)]
    share = np.divide(-before, after - before, out=np.zeros(before.shape), where=after > before)
    rejections = ends[0] + share * (ends[1] - ends[0])
    return np.divide(rejections, totals[..., 1], out=np.full(share.shape, CHANCE), where=~one_class(counts))


def eer_threshold(counts: np.ndarray) -> np.ndarray:
    """Return the threshold whose two error rates are closest: (..., 2, 1001) -> (...) float64 in [0, 1].

    Of equally good ones the middle, which is the safest choice where the classes lie apart.
    """
    gap = np.abs(_errors(counts)[2])
    best = gap == gap.min(-1, keepdims=True)
    first, last = np.argmax(best, -1), gap.shape[-1] - 1 - np.argmax(best[..., ::-1], -1)
    return np.where(one_class(counts), CHANCE, (first + last) / (2 * STEPS))


def accuracy(counts: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return the share of scenes called rightly: (..., 2, 1001) -> (...) float64."""
    return ratio(_right(counts, threshold).sum(-1), counts.sum((-1, -2)), 0.0)


def recall(counts: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return the share of each class called rightly, negative then positive: (..., 2, 1001) -> (..., 2) float64.

    0 where a class is not there.
    """
    return ratio(_right(counts, threshold), counts.sum(-1), 0.0)


def log_loss(counts: np.ndarray, eps: float = EPS) -> np.ndarray:
    """Return the mean negative log-likelihood, scores kept in [eps, 1 - eps]: (..., 2, 1001) -> (...) float64."""
    probs = np.clip(np.arange(BINS) / STEPS, eps, 1 - eps)
    loss = -np.stack([np.log1p(-probs), np.log(probs)])  # (2, 1001)
    return ratio((counts * loss).sum((-1, -2)), counts.sum((-1, -2)), np.log(2))


def _right(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Count the scenes of each class that are called rightly: (..., 2, 1001) -> (..., 2)."""
    above = np.arange(BINS) / STEPS >= threshold
    return np.stack([counts[..., 0, ~above].sum(-1), counts[..., 1, above].sum(-1)], -1)


def _errors(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count negatives accepted and positives rejected at thresholds 0 .. 1001 per mille, (..., 1002) int64 each.

    The third array is (rejected / positives - accepted / negatives) * positives * negatives: whole numbers, so that
    equal rates are found equal. It never falls.
    """
    rejected = np.zeros((*counts.shape[:-1], BINS + 1), np.int64)  # (..., 2, 1002)
    np.cumsum(counts, -1, out=rejected[..., 1:])
    totals = rejected[..., -1:]
    accepted = totals[..., 0, :] - rejected[..., 0, :]
    return accepted, rejected[..., 1, :], rejected[..., 1, :] * totals[..., 0, :] - accepted * totals[..., 1, :]
