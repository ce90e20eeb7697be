"""Blending equals exact rational arithmetic, keeps equal inputs, and refuses what cannot be averaged."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from lib.ensemble.blend import blend, simplex


def exact_mean(levels, weights):
    """Weighted mean of each element as a Fraction, one element at a time."""
    weights = [Fraction(str(weight)) for weight in weights]
    columns = zip(*(array.ravel().tolist() for array in levels))
    return [sum(w * v for w, v in zip(weights, column)) / sum(weights) for column in columns]


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 1, 1, 1], [0.7, 0.3], [2, 0, 1], [199, 200], [0.25, 0.5, 0.125], [1e-4, 3, 0.1]]
)
def test_blend_is_the_exact_mean_rounded_half_up_or_cut(weights):
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, 256, (2, 9, 11), dtype=np.uint8) for _ in weights]
    levels[0].flat[:2], levels[1].flat[:2] = (254, 0), (255, 1)
    mean = exact_mean(levels, weights)
    assert blend(levels, weights).ravel().tolist() == [floor(value + Fraction(1, 2)) for value in mean]
    assert blend(levels, weights, truncate=True).ravel().tolist() == [floor(value) for value in mean]


def test_half_a_level_rounds_up():
    pair = [np.array([[[0, 254, 100]]], np.uint8), np.array([[[1, 255, 103]]], np.uint8)]
    assert blend(pair, [0.5, 0.5]).tolist() == [[[1, 255, 102]]]
    assert blend(pair, [3, 3], truncate=True).tolist() == [[[0, 254, 101]]]


@pytest.mark.parametrize("weights", [[1] * 16, [0.1] * 10, [1 / 3, 1 / 7, 0.9], [1e9, 1], [1e-12, 1e-13]])
@pytest.mark.parametrize("truncate", [False, True])
def test_equal_inputs_blend_to_themselves(weights, truncate):
    same = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(blend([same] * len(weights), weights, truncate), same)


def test_weights_without_short_decimals_stay_within_rounding():
    rng = np.random.default_rng(1)
    weights = rng.random(7).tolist()
    levels = [rng.integers(0, 256, (1, 40, 40), dtype=np.uint8) for _ in weights]
    error = blend(levels, weights) - np.average(levels, axis=0, weights=weights)
    assert np.abs(error).max() <= 0.51


def test_only_ratios_and_not_the_order_matter():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 256, (2, 5, 70_000), dtype=np.uint8)  # longer than one block
    a, b = a[:, None], b[:, None]
    assert np.array_equal(blend([a, b], [1, 3]), blend([b, a], [0.6, 0.2]))
    assert np.array_equal(blend([a[:, :, ::2], b[:, :, ::2]], [1, 3]), blend([a, b], [1, 3])[:, :, ::2])
    assert np.array_equal(blend([a], [0.3]), a)


@pytest.mark.parametrize(
    ("levels", "weights", "says"),
    [
        ([np.zeros((1, 2, 2), np.uint8)], [], "at least one"),
        ([np.zeros((1, 2, 2), np.uint8)], [1, 1], "one weight per array"),
        ([np.zeros((1, 2, 2), np.uint8)] * 2, [1, -1], "got -1"),
        ([np.zeros((1, 2, 2), np.uint8)] * 2, [1, float("nan")], "got nan"),
        ([np.zeros((1, 2, 2), np.uint8)] * 2, [0, 0.0], "positive sum"),
        ([np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 3), np.uint8)], [1, 1], r"\(1, 2, 3\)"),
        ([np.zeros((1, 2, 2), np.float32)], [1], "float32"),
    ],
)
def test_what_cannot_be_averaged_is_refused(levels, weights, says):
    with pytest.raises(ValueError, match=says):
        blend(levels, weights)


def test_the_simplex_is_every_share_once():
    assert simplex(2, 0.25) == [(0, 1), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1, 0)]
    assert simplex(1, 0.1) == [(1.0,)]
    three = simplex(3, 0.25)
    assert len(three) == len(set(three)) == 15 and all(abs(sum(shares) - 1) < 1e-12 for shares in three)
