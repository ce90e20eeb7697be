"""Otsu against scikit-image, bootstrap of the best threshold against a loop."""

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from lib.competitions.binary_rle.instances import count_thresholds
from lib.competitions.decoding import threshold_level
from lib.ensemble.thresholds import of_scene, otsu, spread

VALUES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def dice(counts):
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def tables(seed, scenes, best, noise=0.15, size=30):
    """Counts of scenes whose best threshold is near ``best``."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(scenes):
        truth = rng.random((size, size)) < 0.3
        probs = np.where(truth, best + 0.15, best - 0.15) + rng.normal(0, noise, truth.shape)
        found.append(count_thresholds(np.rint(255 * probs.clip(0, 1)).astype(np.uint8), truth, VALUES))
    return np.stack(found)


def test_otsu_equals_scikit_image_where_no_gap_leaves_a_choice():
    rng = np.random.default_rng(1)
    for a, b in ((30, 180), (80, 140), (10, 250)):
        values = np.concatenate([rng.normal(a, 20, 4000), rng.normal(b, 25, 1500), rng.uniform(0, 255, 3000)])
        levels = np.rint(values.clip(0, 255)).astype(np.uint8)
        counts = np.bincount(levels.ravel(), minlength=256)
        threshold, share = otsu(counts)
        theirs = threshold_otsu(hist=(counts, np.arange(256)))  # classes: up to it, above it
        assert threshold_level(threshold) == theirs + 1
        assert 0 < share < 1


def test_otsu_cuts_a_gap_in_the_middle_and_says_how_clear_it_is():
    counts = np.zeros(256, np.int64)
    counts[[10, 201]] = 70, 30
    threshold, share = otsu(counts)
    assert threshold_level(threshold) == 106 and share == pytest.approx(1.0)
    assert otsu(np.ones(256))[1] == pytest.approx(0.75, abs=1e-4)
    assert otsu(np.bincount([7, 7], minlength=256)) is None and otsu(np.zeros(256)) is None


# ---- bootstrap ------------------------------------------------------------------------------------------
def test_spread_equals_a_loop_over_draws():
    counts = tables(2, scenes=4, best=0.45, noise=0.4, size=9)
    found = spread(counts, VALUES, dice, n=50, seed=3)
    draws = np.random.default_rng(3).multinomial(4, np.full(4, 0.25), size=50)
    winners, lost, usual = [], [], dice(counts.sum(0)).argmax()
    for drawn in draws:
        scores = dice(sum(int(t) * table for t, table in zip(drawn, counts)))
        winners.append(int(scores.argmax()))
        lost.append(scores.max() - scores[usual])
    assert found.wins.tolist() == [winners.count(p) / 50 for p in range(len(VALUES))]
    assert len(set(winners)) > 1
    assert found.median == sorted(winners)[24] and found.quantiles[0.5] == VALUES[found.median]
    assert found.quantiles[0.05] == VALUES[sorted(winners)[2]] and found.quantiles[0.95] == VALUES[sorted(winners)[47]]
    assert found.regret == pytest.approx((np.mean(lost), np.quantile(lost, 0.95)))


def test_the_median_is_what_binarisations_at_all_winners_come_to():
    found = spread(tables(4, scenes=5, best=0.4, noise=0.4, size=9), VALUES, dice, n=40)
    winners = np.repeat(VALUES, np.rint(found.wins * 40).astype(int))
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert len(set(winners)) > 1
    votes = np.mean([ramp >= threshold_level(winner) for winner in winners], axis=0)
    assert np.array_equal(votes >= 0.5, ramp >= threshold_level(VALUES[found.median]))


def test_values_must_ascend():
    with pytest.raises(ValueError, match="ascending"):
        spread(tables(5, 2, best=0.3), VALUES[::-1], dice)


def test_a_scene_without_two_classes_takes_the_other_threshold():
    two = np.where(np.arange(4000).reshape(50, 80) % 7 == 0, 90, 20).astype(np.uint8)
    assert 20 / 255 < of_scene(two, 0.5) < 90 / 255
    slope = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert of_scene(slope, 0.5) == 0.5 and of_scene(np.zeros((4, 4), np.uint8), 0.3) == 0.3
