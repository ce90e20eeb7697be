"""Objects: touching houses stay apart, pooling is the mean of a building and nothing else."""

import cv2
import numpy as np
import pytest
import skimage

from lib.competitions.xview2 import objects
from lib.competitions.xview2.decode import DEFAULTS, decode
from lib.competitions.xview2.objects import FLOOR, LastScene, euler_numbers, pool, segment


def two_touching_houses() -> np.ndarray:
    building = np.zeros((20, 41), np.uint8)
    building[4:16, 3:19] = 220
    building[4:16, 22:38] = 220
    building[6:14, 19:22] = 110  # a bridge that the network is not sure of
    return building


def test_houses_that_touch_below_the_seed_stay_apart():
    labels = segment(two_touching_houses(), 180)
    assert labels.max() == 2 and labels[8, 5] != labels[8, 30]
    assert (labels[6:14, 19:22] > 0).all(), "the bridge belongs to one house or the other"
    assert segment(two_touching_houses(), 100).max() == 1, "a seed below the bridge joins them"


def test_objects_cover_exactly_what_is_connected_to_a_seed_above_the_floor():
    building = np.zeros((12, 30), np.uint8)
    building[2:6, 2:6] = 200
    building[6:8, 2:6] = FLOOR  # still part of it
    building[8:9, 2:6] = FLOOR - 1  # not any more
    building[2:6, 20:24] = 100  # no seed in it
    labels = segment(building, 150)
    expected = np.zeros_like(building, bool)
    expected[2:8, 2:6] = True
    np.testing.assert_array_equal(labels > 0, expected)


def test_pooling_is_the_rounded_mean_of_each_object_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (4, 30, 25), dtype=np.uint8)
    labels = rng.integers(0, 6, (30, 25)).astype(np.int32)
    pooled = pool(levels, labels)
    for channel in range(4):
        for label in range(6):
            here = labels == label
            if label == 0:
                np.testing.assert_array_equal(pooled[channel][here], levels[channel][here])
            else:
                assert (pooled[channel][here] == np.rint(levels[channel][here].mean())).all()
    np.testing.assert_array_equal(pool(pooled, labels), pooled)


def test_no_object_at_all_changes_nothing():
    levels = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    np.testing.assert_array_equal(pool(levels, np.zeros((6, 5), np.int32)), levels)
    assert segment(np.zeros((6, 5), np.uint8), 128).max() == 0


def test_with_objects_a_building_has_one_class():
    rng = np.random.default_rng(1)
    building = two_touching_houses()
    cls = np.zeros((5, *building.shape), np.uint8)
    cls[1], cls[3] = 100, rng.integers(60, 160, building.shape)  # major wins in most pixels, not in all
    loc = building[None]
    mixed = decode(loc, cls, DEFAULTS)[1]
    assert set(np.unique(mixed[4:16, 3:19])) == {1, 3}
    whole = decode(loc, cls, {**DEFAULTS, "object_seed": 0.7})[1]
    assert set(np.unique(whole[4:16, 3:19])) == {3}


@pytest.mark.parametrize("seed", range(4))
def test_euler_numbers_are_those_that_skimage_finds_region_by_region(seed):
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.random((50, 60), np.float32), (0, 0), 1 + seed / 2)
    labels = (np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])) * (1 + (np.arange(60) > 30))).astype(np.int32)
    found = euler_numbers(labels)
    expected = {region.label: region.euler_number for region in skimage.measure.regionprops(labels)}
    assert len(found) == labels.max() + 1 and found[0] == 0
    assert {label: int(found[label]) for label in expected} == expected and len({*expected.values()}) > 3
    assert euler_numbers(np.zeros((3, 4), np.int32)).tolist() == [0]


def test_what_was_made_of_the_last_scene_is_made_once_and_never_given_for_another(monkeypatch):
    made, memo = [], LastScene()

    def ask(key, *arrays):
        return memo.get(key, lambda: made.append(key) or (key, *(array.copy() for array in arrays)), *arrays)

    one = np.arange(6, dtype=np.uint8)
    first = ask("a", one)
    assert ask("a", one.copy()) is first and ask("b", one)[0] == "b" and made == ["a", "b"]
    one[0] = 9
    assert ask("a", one)[1][0] == 9, "an array that was changed in place is another"
    assert made == ["a", "b", "a"] and ask("a", one, one) is not ask("a", one)
    monkeypatch.setattr(objects, "REMEMBERED", 5)
    assert ask("a", one) is not ask("a", one), "large arrays are not kept"
