"""Objects: the DSB metric against explicit loops, and parting, bordering and cleaning them."""

import numpy as np
import pytest
from scipy import ndimage

from lib import metrics as masks
from lib.competitions.binary_rle import instances
from lib.competitions.binary_rle import metric as scoring
from lib.competitions.decoding import step_of
from lib.errors import ConfigError, DataError


def disc(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def random_labels(seed, shape=(40, 50), count=12):
    rng, labels = np.random.default_rng(seed), np.zeros(shape, np.int32)
    for number in rng.permutation(np.arange(1, count + 1)):
        labels[disc(shape, rng.uniform(0, shape), rng.uniform(2, 7))] = number * 3  # numbers with gaps
    return labels


# ---- metric -------------------------------------------------------------------------------------------
def slow_precision(answer, truth):
    """Kaggle's page, word by word: per threshold match objects one by one."""
    values = []
    for k in range(10, 20):
        hits, hit_true = 0, set()
        for a in np.unique(answer[answer > 0]):
            for t in np.unique(truth[truth > 0]):
                both, either = ((answer == a) & (truth == t)).sum(), ((answer == a) | (truth == t)).sum()
                if both / either > k / 20:
                    hits += 1
                    hit_true.add(t)
        assert hits == len(hit_true)
        answered, true = len(np.unique(answer[answer > 0])), len(np.unique(truth[truth > 0]))
        called = hits + (answered - hits) + (true - hits)
        values.append(hits / called if called else 1.0)
    return np.mean(values)


@pytest.mark.parametrize("seed", range(12))
def test_precision_equals_explicit_loops(seed):
    truth = random_labels(seed)
    answer = np.roll(truth, (seed % 3, seed % 2), (0, 1)) if seed % 4 else random_labels(seed + 100)
    answer = np.where(answer == 9, 0, answer) * 7
    counts = scoring.count(answer, truth)
    assert counts.shape == (scoring.K,) and counts.dtype == np.int64
    assert float(scoring.mean_precision(counts, 1)) == pytest.approx(slow_precision(answer, truth), abs=1e-9)


def test_precision_by_hand():
    truth, answer = np.zeros((10, 40), np.int32), np.zeros((10, 40), np.int32)
    truth[:, 0:10], truth[:, 20:30] = 1, 2
    answer[:, 0:8], answer[:, 35:40] = 5, 6  # IoU 0.8: hit above 0.5 .. 0.75, not above 0.8; the other one misses
    counts = scoring.count(answer, truth)
    np.testing.assert_array_equal(counts[1:11], [1] * 6 + [0] * 4)
    assert counts[-2:].tolist() == [2, 2]
    assert scoring.mean_precision(counts, 1) == pytest.approx(6 / 10 * 1 / 3, abs=1e-9)
    assert scoring.f1(counts, 0.75) == 0.5 and scoring.f1(counts, 0.8) == 0


def test_exactly_at_a_threshold_is_no_hit():
    truth, answer = np.zeros((1, 40), np.int32), np.zeros((1, 40), np.int32)
    truth[0, :20], answer[0, :10] = 1, 1  # IoU 0.5
    assert not scoring.count(answer, truth)[1:11].any()
    answer[0, :11] = 1
    assert scoring.count(answer, truth)[1:11].tolist() == [1] + [0] * 9  # 0.55 is not above 0.55


def test_empty_images():
    empty, one = np.zeros((5, 5), np.int32), np.eye(5, dtype=np.int32)
    for answer, truth, expected in ((empty, empty, 1.0), (empty, one, 0.0), (one, empty, 0.0), (one, one, 1.0)):
        assert scoring.mean_precision(scoring.count(answer, truth), 1) == expected
    assert scoring.f1(np.zeros(scoring.K, np.int64), 0.5) == 1 and scoring.mean_precision(np.zeros(scoring.K), 0) == 0


def test_counts_of_images_add_up_to_the_mean():
    pairs = [(random_labels(seed), random_labels(seed + 1)) for seed in range(5)]
    total = sum(scoring.count(*pair) for pair in pairs)
    single = [float(scoring.mean_precision(scoring.count(*pair), 1)) for pair in pairs]
    assert float(scoring.mean_precision(total, 5)) == pytest.approx(np.mean(single), abs=1e-9)


def test_other_maps_are_refused():
    with pytest.raises(DataError, match="one shape"):
        scoring.count(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(DataError, match="whole numbers"):
        scoring.count(np.zeros((2, 2)), np.zeros((2, 2), int))


# ---- parting ------------------------------------------------------------------------------------------
def test_equal_touching_discs_are_parted_equally():
    shape = (60, 110)
    left, right = disc(shape, (30, 34), 21), disc(shape, (30, 75), 21)
    truth = np.where(left, 1, np.where(right, 2, 0)).astype(np.int32)
    border = instances.borders(truth, 2)
    levels = 255 * np.stack([left | right, border]).astype(np.uint8)
    answer = instances.decode(levels, instances.DEFAULTS | {"instances": 1})
    areas = np.bincount(answer.ravel())[1:]
    assert len(areas) == 2 and areas.sum() == (left | right).sum()
    assert abs(int(areas[0]) - int(areas[1])) <= 0.02 * areas.sum()
    assert scoring.mean_precision(scoring.count(answer, truth), 1) == 1.0


def test_overlapping_discs_are_parted_equally_by_unsure_pixels_between_them():
    shape = (80, 120)
    left, right = disc(shape, (40, 40), 24), disc(shape, (40, 80), 24)
    y, x = np.ogrid[: shape[0], : shape[1]]
    sure = np.where(left | right, 255 - 100 * np.exp(-((x - 60) ** 2) / 60.0), 0).astype(np.uint8)
    answer = instances.split((left | right).astype(np.uint8), sure, 220)
    areas = np.bincount(answer.ravel())[1:]
    assert len(areas) == 2 and abs(int(areas[0]) - int(areas[1])) <= 0.02 * areas.sum()


@pytest.mark.parametrize("radii", [(24, 24), (24, 14)])
def test_a_waist_parts_discs_that_no_border_tells_apart(radii):
    shape, gap = (80, 120), int(0.8 * sum(radii))
    centres = (40, 38), (40, 38 + gap)
    discs = [disc(shape, centre, radius) for centre, radius in zip(centres, radii)]
    mask = np.logical_or(*discs).astype(np.uint8)
    mask[2:4, 2:4] = mask[70:72, 60:62] = 1  # too flat to have a top of their own, and objects all the same
    levels = 255 * mask[None]
    whole = instances.decode(levels, instances.DEFAULTS | {"instances": 1})
    parted = instances.decode(levels, instances.DEFAULTS | {"instances": 1, "seed_depth": 2})
    assert whole.max() == 3 and parted.max() == 4
    np.testing.assert_array_equal(parted > 0, mask > 0)
    first, second = (parted == parted[centre] for centre in centres)
    assert not (first & second).any()
    for own, other, part in ((*discs, first), (*discs[::-1], second)):
        assert (part & own & ~other).sum() > 0.97 * (own & ~other).sum()
    if radii[0] == radii[1]:
        assert abs(int(first.sum()) - int(second.sum())) <= 0.02 * mask.sum()
    assert instances.decode(levels, instances.DEFAULTS | {"instances": 1, "seed_depth": 20}).max() == 3


def test_a_part_without_a_seed_is_an_object_and_nothing_is_lost():
    mask = np.zeros((30, 30), np.uint8)
    mask[2:8, 2:8] = mask[20:24, 20:24] = 1
    mask[8, 8] = 1  # touches the first one by a corner
    sure = np.where(mask, 100, 0).astype(np.uint8)
    sure[3:6, 3:6] = 250
    labels = instances.split(mask, sure, 200)
    assert labels.dtype == np.int32 and labels.max() == 2
    np.testing.assert_array_equal(labels > 0, mask > 0)
    assert labels[8, 8] == labels[4, 4] != labels[21, 21]
    assert not instances.split(np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.uint8), 1).any()


def test_inside_is_object_without_border():
    levels = np.array([[[255, 200, 255, 0]], [[0, 128, 255, 9]]], np.uint8)
    expected = np.rint(levels[0] / 255 * (1 - levels[1] / 255) * 255)
    np.testing.assert_array_equal(instances.inside(levels), expected)
    np.testing.assert_array_equal(instances.inside(levels[:1]), levels[0])


def slow_borders(labels, width):
    border = np.zeros(labels.shape, bool)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            near = labels[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            border[y, x] = len(np.unique(near[near > 0])) > 1
    return border


@pytest.mark.parametrize("width", [1, 2, 3])
def test_borders_equal_the_rule_pixel_by_pixel(width):
    labels = random_labels(width, count=8)
    got, expected = instances.borders(labels, width), slow_borders(labels, width)
    freed = expected & ~got
    assert not (got & ~expected).any()
    for label in np.unique(labels[labels > 0]):
        own = labels == label
        assert (own & ~got).any()  # a seed is left to each object
        assert freed[own].sum() == (1 if expected[own].all() else 0)
    assert not freed[labels == 0].any()
    assert not instances.borders(np.zeros((6, 6), np.int32), width).any()


# ---- cleaning -----------------------------------------------------------------------------------------
def test_small_objects_go_and_the_rest_is_numbered_anew():
    labels = np.zeros((10, 20), np.int32)
    labels[1:3, 1:3], labels[1:5, 6:10], labels[6:9, 12:19] = 1, 2, 3
    cleaned = instances.remove_small(labels, 5)
    assert np.unique(cleaned).tolist() == [0, 1, 2] and not cleaned[1:3, 1:3].any() and cleaned[7, 15] == 2
    np.testing.assert_array_equal(instances.remove_small((labels > 0).astype(np.uint8), 5), cleaned > 0)
    assert instances.remove_small(labels, 5).dtype == np.int32
    diagonal = np.eye(6, dtype=np.uint8)
    assert instances.remove_small(diagonal, 6).sum() == 6 and instances.remove_small(diagonal, 7).sum() == 0


def test_holes_are_filled_by_the_nearest_object():
    ring = disc((21, 21), (10, 10), 8) & ~disc((21, 21), (10, 10), 4)
    filled = instances.fill_holes(ring.astype(np.uint8))
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(ring))
    halves = np.where(ring, 1 + (np.arange(21) > 10), 0).astype(np.int32)
    filled = instances.fill_holes(halves)
    assert filled.dtype == np.int32 and filled[10, 7] == 1 and filled[10, 14] == 2
    open_ring = ring.astype(np.uint8)
    open_ring[10, :10] = 0
    np.testing.assert_array_equal(instances.fill_holes(open_ring), open_ring)


def test_decode_settings_and_steps():
    levels = np.zeros((1, 12, 12), np.uint8)
    levels[0, 2:9, 2:9], levels[0, 5, 5], levels[0, 11, 11] = 128, 0, 127
    plain = instances.decode(levels, instances.DEFAULTS)
    assert plain.dtype == np.uint8 and plain.sum() == 48  # 128 / 255 is above one half, 127 / 255 is not
    assert instances.decode(levels, instances.DEFAULTS | {"threshold": 0.4}).sum() == 49
    assert instances.decode(levels, instances.DEFAULTS | {"threshold": 0.4, "min_area": 2}).sum() == 48
    assert instances.decode(levels, instances.DEFAULTS | {"fill_holes": 1}).sum() == 49
    assert instances.remove_small(instances.fill_holes(plain), 50).sum() == 0
    with pytest.raises(ConfigError, match="remove_small, fill_holes, .*, got 'sharpen'"):
        step_of({"name": "sharpen"}, instances.STEPS)
    with pytest.raises(ConfigError, match="max_area: unknown key; did you mean min_area"):
        step_of({"name": "remove_small", "max_area": 3}, instances.STEPS)


def test_thresholds_counted_at_once_equal_one_by_one():
    rng = np.random.default_rng(0)
    levels, truth = rng.integers(0, 256, (30, 41), np.uint8), rng.integers(0, 2, (30, 41), np.uint8)
    thresholds = [0.0, 0.2, 0.5, 0.999, 1.0]
    counted = instances.count_thresholds(levels, truth, thresholds)
    for threshold, row in zip(thresholds, counted, strict=True):
        answer = instances.decode(levels[None], instances.DEFAULTS | {"threshold": threshold})
        np.testing.assert_array_equal(row, masks.binary_counts(answer, truth))
