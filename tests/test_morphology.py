"""Opening and closing against hand-worked masks and scipy, per label against slow loops, and in every competition."""

import numpy as np
import pytest
import skimage
from scipy import ndimage

from lib.competitions import label_map, open_competition
from lib.competitions.binary_rle import instances
from lib.competitions.xview2 import postprocess
from lib.ensemble.morphology import closing, open_and_close, opening

RADII = [1, 1.5, 2, 3.7]


def disk(radius):
    reach = int(radius)
    offsets = range(-reach, reach + 1)
    return np.array([[y * y + x * x <= radius * radius for x in offsets] for y in offsets])


def slow(mask, radius, first, second, ignored):
    """What scipy says, with all outside of the image as it does not matter to each of the two operations."""
    grown = first(mask > 0, disk(radius), border_value=ignored[0])
    return second(grown, disk(radius), border_value=ignored[1]).astype(mask.dtype)


def slow_opening(mask, radius):
    return slow(mask, radius, ndimage.binary_erosion, ndimage.binary_dilation, (1, 0))


def slow_closing(mask, radius):
    return slow(mask, radius, ndimage.binary_dilation, ndimage.binary_erosion, (0, 1))


def blobs(seed, shape=(37, 45), labels=1):
    """Blobs of all sizes, some at the border, with holes and specks; several labels touch each other."""
    rng = np.random.default_rng(seed)
    mask = (ndimage.gaussian_filter(rng.normal(size=shape), 1.2) > 0.05) ^ (rng.random(shape) < 0.04)
    stripes = 1 + np.arange(shape[1]) * labels // shape[1]
    return np.where(mask, stripes[None], 0)


# ---- hand-worked --------------------------------------------------------------------------------------
def picture(text):
    return np.array([[int(mark) for mark in line.split()[0]] for line in text.strip().splitlines()], np.uint8)


def test_a_speck_and_a_bridge_are_opened_away_and_a_square_loses_corners_under_a_cross():
    before = picture("""
        0000000000
        0111000010
        0111111100
        0111001110
        0000000100
    """)
    after = picture("""
        0000000000
        0011000000
        0111100100
        0011001110
        0000000100
    """)
    np.testing.assert_array_equal(opening(before, 1), after)


def test_a_crack_is_closed_and_a_wide_gap_is_not():
    before = picture("""
        00000000000
        00110110001
        00110110001
        00110110001
        00000000000
    """)
    after = picture("""
        00000000000
        00110110001
        00111110001
        00110110001
        00000000000
    """)
    np.testing.assert_array_equal(closing(before, 1), after)


def test_what_lies_at_the_border_stays():
    full = np.ones((4, 6), np.uint8)
    for radius in RADII:
        np.testing.assert_array_equal(opening(full, radius), full)
        np.testing.assert_array_equal(closing(full, radius), full)
    assert not ndimage.binary_closing(full).all(), "scipy's as it stands eats the border"


# ---- against scipy and scikit-image -------------------------------------------------------------------
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_scipys(radius, seed):
    mask = blobs(seed).astype(np.uint8)
    opened, closed = opening(mask, radius), closing(mask, radius)
    np.testing.assert_array_equal(opened, slow_opening(mask, radius))
    np.testing.assert_array_equal(closed, slow_closing(mask, radius))
    assert opened.dtype == closed.dtype == np.uint8
    if radius == 1:
        assert 0 < opened.sum() < mask.sum() < closed.sum() < mask.size


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_inside_of_the_image_they_equal_scikit_image(radius):
    mask = np.pad(blobs(9), 12).astype(np.uint8)
    footprint = skimage.morphology.disk(radius)
    np.testing.assert_array_equal(opening(mask, radius), skimage.morphology.opening(mask, footprint))
    np.testing.assert_array_equal(closing(mask, radius), skimage.morphology.closing(mask, footprint))


@pytest.mark.parametrize("radius", RADII)
def test_doing_it_twice_changes_nothing_more_and_inputs_stay(radius):
    mask = blobs(5).astype(np.uint8)
    before = mask.copy()
    for operation in (opening, closing):
        once = operation(mask, radius)
        np.testing.assert_array_equal(operation(once, radius), once)
    np.testing.assert_array_equal(mask, before)


# ---- labels -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [np.uint8, np.int32])
@pytest.mark.parametrize("radius", RADII)
def test_each_label_is_opened_and_closed_by_itself(radius, kind):
    labels = blobs(3, labels=5).astype(kind)
    labels[labels == 2] = 0  # a number that is not there
    opened, closed = np.zeros_like(labels), labels.copy()
    for label in (1, 3, 4, 5):
        opened[slow_opening((labels == label).astype(np.uint8), radius) > 0] = label
        closed[(slow_closing((labels == label).astype(np.uint8), radius) > 0) & (closed == 0)] = label
    np.testing.assert_array_equal(opening(labels, radius), opened)
    np.testing.assert_array_equal(closing(labels, radius), closed)
    assert opening(labels, radius).dtype == kind
    kept = labels > 0
    np.testing.assert_array_equal(closing(labels, radius)[kept], labels[kept])  # none takes from another


def test_nothing_and_a_single_pixel():
    empty = np.zeros((3, 4), np.int32)
    np.testing.assert_array_equal(opening(empty, 2), empty)
    np.testing.assert_array_equal(closing(empty, 2), empty)
    one = np.ones((1, 1), np.uint8)
    assert opening(one, 5) == closing(one, 5) == 1  # all that there is


def test_both_at_once_open_first():
    mask = blobs(1).astype(np.uint8)
    np.testing.assert_array_equal(open_and_close(mask, 1, 2), closing(opening(mask, 1), 2))
    for radii in ((0, 0), (0.9, 0.5)):
        np.testing.assert_array_equal(open_and_close(mask, *radii), mask)


# ---- competitions -------------------------------------------------------------------------------------
OPTIONS = {
    "binary_rle": {},
    "voc": {"classes": ["nothing", "cat", "dog"]},
    "multiclass_rle": {"classes": ["a", "b"]},
    "xview2": {},
}


def levels_of(competition, seed=0):
    rng = np.random.default_rng(seed)
    return {role: np.clip(128 + 500 * ndimage.gaussian_filter(rng.normal(size=(task.channels, 40, 44)), (0, 1.2, 1.2)),
                          0, 255).astype(np.uint8) for role, task in competition.tasks.items()}  # fmt: skip


@pytest.mark.parametrize("name", ["binary_rle", "voc", "multiclass_rle"])
def test_sizes_are_searched_beside_the_other_settings(name, tmp_path):
    competition = open_competition(name, tmp_path, OPTIONS[name])
    ending, other = (
        ("_b", "threshold_b") if name == "multiclass_rle" else ("", {"voc": "gain_cat"}.get(name, "threshold"))
    )
    axes = {f"opening{ending}": (0, 1, 2.0), other: (0.4, 0.6), f"closing{ending}": (0, 1.5)}
    assert competition.faults({}, axes) == []
    levels = levels_of(competition)
    truth = competition.decode(levels_of(competition, seed=1), {})
    grid = competition.grid(axes, competition.defaults())
    table = competition.count(levels, truth, grid)
    for point, row in zip(grid, table, strict=True):
        np.testing.assert_array_equal(row, competition.tally(competition.decode(levels, point), truth))
    assert len(np.unique(table, axis=0)) == 12


@pytest.mark.parametrize("name", ["binary_rle", "voc", "multiclass_rle"])
def test_nobody_who_does_not_ask_is_told_of_them(name, tmp_path):
    """Else decode.json of every finished experiment would change."""
    competition = open_competition(name, tmp_path, OPTIONS[name])
    quiet = competition.complete({}).keys() - competition.defaults().keys()
    assert quiet == {key for key in competition.settings if key.startswith(("opening", "closing"))} and quiet


def test_each_class_of_rows_has_radii_of_its_own(tmp_path):
    competition = open_competition("multiclass_rle", tmp_path, OPTIONS["multiclass_rle"])
    levels = levels_of(competition)
    plain = competition.decode(levels, {})
    cleaned = competition.decode(levels, {"opening_a": 2, "closing_b": 1})
    np.testing.assert_array_equal(cleaned[0], slow_opening(plain[0], 2))
    np.testing.assert_array_equal(cleaned[1], slow_closing(plain[1], 1))


def test_classes_that_exclude_each_other_cannot_be_closed(tmp_path):
    competition = open_competition("multiclass_rle", tmp_path, {"classes": ["a", "b"], "exclusive": True})
    assert competition.faults({"opening_a": 1}, {}) == []
    (fault,) = competition.faults({"closing_a": 1}, {})
    assert fault.startswith("decode.closing_a: unknown setting")


def test_the_steps_of_single_arrays_are_these_functions():
    for steps in (instances.STEPS, label_map.STEPS):
        assert steps["opening"] is opening and steps["closing"] is closing


def test_steps_of_buildings_take_the_damage_along():
    """An opened footprint loses its damage; what is closed takes the class of the nearest building pixel."""
    localization = picture("""
        000000000
        011101110
        011101110
        011101110
        000000010
    """)
    damage = localization * np.array([0, 1, 1, 1, 0, 3, 3, 3, 0], np.uint8)
    decoded = postprocess.Decoded(localization, damage, np.zeros((5, 9), np.uint8), np.zeros((5, 5, 9), np.uint8))
    opened, kept = postprocess.opening(decoded, radius=1.5)[:2]
    np.testing.assert_array_equal(opened[4], 0)
    np.testing.assert_array_equal(opened[:4], localization[:4])
    np.testing.assert_array_equal(kept, damage * opened)
    closed, filled = postprocess.closing(decoded, radius=1.5)[:2]
    np.testing.assert_array_equal(closed, slow_closing(localization, 1.5))
    assert closed[1:4, 4].all() and set(filled[1:4, 4].tolist()) <= {1, 3}
    np.testing.assert_array_equal(filled[localization > 0], damage[localization > 0])
    np.testing.assert_array_equal(filled > 0, closed > 0)


@pytest.mark.parametrize("name", ["binary_rle", "voc", "xview2"])
@pytest.mark.parametrize(("step", "said"), [
    ({"name": "opening"}, "search.postprocess.0.0.radius: required, but missing"),
    ({"name": "closing", "radius": 0.5}, "search.postprocess.0.0.radius: expected greater than or equal to 1, got 0.5"),
    ({"name": "closing", "radius": 101}, "search.postprocess.0.0.radius: expected less than or equal to 100, got 101"),
    ({"name": "opening", "size": 3}, "search.postprocess.0.0.size: unknown key"),
])  # fmt: skip
def test_wrong_steps_are_refused_early(name, step, said, tmp_path):
    faults = open_competition(name, tmp_path, OPTIONS[name]).faults({}, {}, [[step]])
    assert any(fault.startswith(said) for fault in faults), faults


@pytest.mark.parametrize(("decode", "axes", "said"), [
    ({"opening": -1}, {}, "decode.opening: expected a number from 0 to 100, got -1"),
    ({"openning": 1}, {}, "decode.openning: unknown setting; did you mean opening?"),
    ({}, {"closing": (1, 200)}, "search.axes.closing: expected a number from 0 to 100, got 200"),
])  # fmt: skip
def test_wrong_radii_are_refused_early(decode, axes, said, tmp_path):
    assert open_competition("binary_rle", tmp_path, {}).faults(decode, axes) == [said]
