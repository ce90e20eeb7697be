"""Metrics of yes-or-no labels against scikit-learn and a slow exact definition."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn import metrics

from lib.competitions.videos import metric as scoring
from lib.errors import DataError


def drawn(seed, negatives=37, positives=53, ties=False):
    """Return overlapping scores and their labels; ``ties``: on a coarse grid, so that many are equal."""
    rng = np.random.default_rng(seed)
    scores = np.r_[rng.beta(2, 3, negatives), rng.beta(3, 2, positives)].round(1 if ties else 3)
    return scores, np.r_[np.zeros(negatives, int), np.ones(positives, int)]


def exact_eer(scores, labels):
    """Walk along the ROC, point by point in whole numbers, to where false acceptance and false rejection meet."""
    negative, positive = scores[labels == 0], scores[labels == 1]
    before = None
    for threshold in [*sorted(set(scores)), 2.0]:
        far = Fraction(int((negative >= threshold).sum()), len(negative))
        frr = Fraction(int((positive < threshold).sum()), len(positive))
        if frr >= far:
            if before is None or frr == far:
                return float(frr)
            gap = before[0] - before[1]
            share = gap / (gap + frr - far)
            return float(before[1] + share * (frr - before[1]))
        before = far, frr
    raise AssertionError("the rates must meet")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_agree_with_scikit_learn(seed, ties):
    scores, labels = drawn(seed, 20 + seed, 50 - 3 * seed, ties)
    counts = scoring.histogram(scores, labels)
    assert scoring.auc(counts) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    clipped = np.clip(scores, scoring.EPS, 1 - scoring.EPS)
    assert scoring.log_loss(counts) == pytest.approx(metrics.log_loss(labels, clipped), abs=1e-9)
    for threshold in (0.3, 0.5):
        expected = metrics.accuracy_score(labels, scores >= threshold)
        assert scoring.accuracy(counts, threshold) == pytest.approx(expected, abs=1e-12)
        each = metrics.recall_score(labels, scores >= threshold, average=None)
        assert scoring.recall(counts, threshold) == pytest.approx(each, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_equal_error_rate_is_exact(seed, ties):
    scores, labels = drawn(seed, 20 + seed, 50 - 3 * seed, ties)
    found = float(scoring.eer(scoring.histogram(scores, labels)))
    assert found == pytest.approx(exact_eer(scores, labels), abs=1e-12)
    far, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert found == pytest.approx(brentq(lambda x: 1 - x - np.interp(x, far, tpr), 0, 1), abs=1e-6)


def test_threshold_of_equal_errors_balances_them():
    scores, labels = drawn(3, 400, 600)
    threshold = float(scoring.eer_threshold(scoring.histogram(scores, labels)))
    far, frr = (scores[labels == 0] >= threshold).mean(), (scores[labels == 1] < threshold).mean()
    assert abs(far - frr) < 0.01
    # apart: anything from .301 to .7 separates, the middle is safest
    counts = scoring.histogram(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1]))
    assert scoring.eer(counts) == 0 and scoring.eer_threshold(counts) == pytest.approx(0.5005)


def test_worked_case():
    # negatives .2 .6, positives .4 .8: at .5 one of each is wrong; 3 of the 4 pairs are in order
    counts = scoring.histogram(np.array([0.2, 0.6, 0.4, 0.8]), np.array([0, 0, 1, 1]))
    assert (scoring.eer(counts), scoring.auc(counts), scoring.accuracy(counts)) == (0.5, 0.75, 0.5)
    assert scoring.log_loss(counts) == pytest.approx(-np.log([0.8, 0.4, 0.4, 0.8]).mean())


def test_histograms_add_and_keep_leading_axes():
    parts = [scoring.histogram(*drawn(seed)) for seed in range(3)]
    whole = scoring.histogram(*(np.concatenate(both) for both in zip(*(drawn(seed) for seed in range(3)))))
    np.testing.assert_array_equal(sum(parts), whole)
    for metric in (scoring.auc, scoring.eer, scoring.eer_threshold, scoring.accuracy, scoring.log_loss):
        together = metric(np.stack(parts)[:, None])
        assert together.shape == (3, 1)
        assert together[:, 0] == pytest.approx([float(metric(part)) for part in parts], abs=0)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_one_class_gives_chance_and_says_so(labels):
    counts = scoring.histogram(np.full(len(labels), 0.9), np.array(labels, int))
    assert scoring.one_class(counts) and not scoring.one_class(scoring.histogram(*drawn(0)))
    assert (scoring.auc(counts), scoring.eer(counts), scoring.eer_threshold(counts)) == (0.5, 0.5, 0.5)
    assert np.isfinite([scoring.accuracy(counts), scoring.log_loss(counts), *scoring.recall(counts)]).all()


def test_a_sure_mistake_costs_a_finite_loss():
    counts = scoring.histogram(np.array([0.0, 1.0]), np.array([1, 0]))
    assert 30 < scoring.log_loss(counts) < 40
    assert scoring.log_loss(counts, eps=0.01) == pytest.approx(-np.log(0.01))


@pytest.mark.parametrize("scores", [[np.nan], [1.01], [-0.2]])
def test_scores_outside_the_unit_interval_are_refused(scores):
    with pytest.raises(DataError, match="expected numbers in"):
        scoring.histogram(np.array(scores), np.array([1]))


def test_labels_other_than_0_and_1_are_refused():
    with pytest.raises(DataError, match="one 0 or 1"):
        scoring.histogram(np.array([0.5]), np.array([2]))
    with pytest.raises(DataError, match="one 0 or 1"):
        scoring.histogram(np.array([0.5, 0.5]), np.array([1]))
