"""A calibrated logistic head for the classes of objects, from few labels, beside what the networks say of them.

Three ways to use the labels stand beside each other, from the simplest to the richest, and cross-validation on the
labels themselves chooses: the networks' own probabilities as they are; the same with gains and a bias per class
(vector scaling, Guo et al. 2017), which mends an event's other frequencies; and a logistic head on the features as
well. A way that is not better by more than its standard error loses to a simpler one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.errors import DataError

FLOOR = 1e-4
"""The least probability that a network's word is taken for."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the L2 penalty that are tried on features."""
SPLITS = 5
FEWEST = 5
"""With fewer labels the networks' probabilities stay as they are."""

AS_IT_IS, SCALED, HEAD = "as it is", "scaled", "head"


@dataclass
class Adapted:
    """What came out of the labels: a way, and what it was worth in cross-validation."""

    way: str
    """"as it is", "scaled" or "head"."""
    strength: float | None
    """Inverse strength of the penalty, None where nothing was fitted."""
    losses: dict[str, float]
    """Way and strength -> its cross-validated mean negative log-likelihood on the labels."""
    seen: np.ndarray
    """Class numbers that have a label."""
    labels: int
    """How many labels there were."""
    model: Pipeline | None = None

    def probabilities(self, features: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """Return the probability of each class: (N, K) float64, rows sum to 1.

        features: (N, F). prior: (N, K) what the networks say. A class without a label cannot be learnt: it keeps the
        networks' probability, the less of it the more labels there are that are not of it (by Laplace's rule of
        succession, K / (n + K)).
        """
        own = normalised(prior)
        if self.model is None:
            return own
        found = np.zeros_like(own)
        found[:, self.seen] = self.model.predict_proba(_inputs(self.way, features, prior))
        unseen = np.setdiff1d(np.arange(own.shape[1]), self.seen)
        share = own.shape[1] / (self.labels + own.shape[1]) * own[:, unseen]
        found[:, self.seen] *= 1 - share.sum(1, keepdims=True)
        found[:, unseen] = share
        return found


def fit(features: np.ndarray, prior: np.ndarray, classes: np.ndarray, seed: int = 0) -> Adapted:
    """Learn from labelled objects. features: (N, F); prior: (N, K) of the networks; classes: (N,) int in 0..K-1.

    Labels of one class alone teach nothing about others: the way is then "as it is". DataError for arrays that do not
    belong together.
    """
    if not len(features) == len(prior) == len(classes):
        raise DataError(f"labels: expected one for each object, got {len(classes)} for {len(features)} objects")
    classes, seen = np.asarray(classes, int), np.unique(classes)
    plain = Adapted(AS_IT_IS, None, {}, seen, len(classes))
    if len(classes) < FEWEST or len(seen) < 2:
        return plain
    ways: list[tuple[str, float | None]] = [(AS_IT_IS, None), *((SCALED, strength) for strength in STRENGTHS[1:])]
    ways += [(HEAD, strength) for strength in STRENGTHS] if features.shape[1] else []
    losses = {way: _validated(way, features, prior, classes, seed) for way in ways}
    best = min(ways, key=lambda way: losses[way].mean())
    for way in ways:  # from the simplest
        worse = losses[way] - losses[best]
        if worse.mean() <= worse.std(ddof=1) / np.sqrt(len(worse)):
            best = way
            break
    plain.losses = {" ".join(str(part) for part in way if part is not None): float(loss.mean())
                    for way, loss in losses.items()}  # fmt: skip
    if best[1] is None:
        return plain
    return _fitted(best, features, prior, classes, plain.losses)


def propose(features: np.ndarray, probs: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return which objects to label next: ``count`` indices, uncertain ones that differ from each other.

    Of the ten times as many objects of the highest entropy, those of at least half the highest are grouped by k-means
    on their features, weighted by entropy, and each group gives its most uncertain one. features: (N, F);
    probs: (N, K).
    """
    entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(1)
    ordered = np.argsort(-entropy, kind="stable")[: 10 * count]
    candidates = ordered[entropy[ordered] >= entropy[ordered[:1]] / 2]
    if len(candidates) <= count:
        return ordered[:count]
    scaled = StandardScaler().fit_transform(features[candidates])
    groups = KMeans(count, n_init=1, random_state=seed).fit_predict(scaled, sample_weight=entropy[candidates] + 1e-9)
    first = [int(np.flatnonzero(groups == group)[0]) for group in np.unique(groups)]  # candidates are in order
    return candidates[sorted(first)]


def calibration_error(probs: np.ndarray, classes: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error of the best class: bins of equally many objects (Nixon et al. 2019)."""
    confidence, right = probs.max(1), probs.argmax(1) == classes
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts) / len(order))


def _validated(way: tuple[str, float | None], features: np.ndarray, prior: np.ndarray, classes: np.ndarray,
               seed: int) -> np.ndarray:  # fmt: skip
    """Return the negative log-likelihood of each label under a way that was fitted without it."""
    losses = np.empty(len(classes))
    folds = KFold(min(SPLITS, len(classes)), shuffle=True, random_state=seed)
    for learnt, judged in folds.split(features):
        own = _fitted(way, features[learnt], prior[learnt], classes[learnt], {})
        probs = own.probabilities(features[judged], prior[judged])
        losses[judged] = -np.log(np.maximum(probs[np.arange(len(judged)), classes[judged]], FLOOR))
    return losses


def _fitted(way: tuple[str, float | None], features: np.ndarray, prior: np.ndarray, classes: np.ndarray,
            losses: dict[str, float]) -> Adapted:  # fmt: skip
    kind, strength = way
    seen = np.unique(classes)
    if strength is None or len(seen) < 2:
        return Adapted(AS_IT_IS, None, losses, seen, len(classes))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    model.fit(_inputs(kind, features, prior), classes)
    return Adapted(kind, strength, losses, seen, len(classes), model)


def _inputs(kind: str, features: np.ndarray, prior: np.ndarray) -> np.ndarray:
    words = np.log(normalised(prior))
    return words if kind == SCALED else np.concatenate([words, features], axis=1)


def normalised(prior: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) of at least FLOOR whose rows sum to 1, float64."""
    kept = np.maximum(np.asarray(prior, np.float64), FLOOR)
    return kept / kept.sum(1, keepdims=True)


def drawn(classes: Sequence[int] | np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw which objects a person has labelled: ``count`` indices at random, without any balance."""
    generator: Any = np.random.default_rng(seed)
    return generator.permutation(len(classes))[:count]
