"""Laws of the post-processing steps, against slow loops over scipy's components."""

import cv2
import numpy as np
import pytest
import skimage
from scipy import ndimage

from lib.competitions import open_competition
from lib.competitions.xview2 import postprocess
from lib.competitions.xview2.postprocess import Decoded
from lib.errors import ConfigError

EIGHT = np.ones((3, 3))
NOTHING = np.zeros((1, 1), np.uint8), np.zeros((5, 1, 1), np.uint8)


def on_arrays(step):
    """Return a step as a function of four arrays that gives both masks."""
    return lambda *arrays, **options: step(Decoded(*arrays), **options)[:2]


STEPS = {name: on_arrays(step) for name, step in postprocess.STEPS.items()}
watershed_vote, object_vote, remove_small, fill_holes, *_ = STEPS.values()


def apply(steps, localization, damage, loc_levels, cls_levels):
    """Clean an answer as the competition does."""
    answer, levels = {"localization": localization, "damage": damage}, {"loc": loc_levels[None], "cls": cls_levels}
    cleaned = open_competition("xview2", "nowhere").clean(answer, steps, levels)
    return cleaned["localization"], cleaned["damage"]


def random_answer(seed, size=(48, 56)):
    """Blobs of all sizes, some with holes and some touching the border, with mixed damage, and levels."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(size), 1.3)
    localization = ((field > 0.1 * field.std()) & (rng.random(size) < 0.97)).astype(np.uint8)
    damage = (localization * rng.integers(1, 5, size)).astype(np.uint8)
    loc_levels = np.clip(128 + 400 * field, 0, 255).astype(np.uint8)
    cls_levels = rng.integers(0, 200, (5, *size)).astype(np.uint8)
    return localization, damage, loc_levels, cls_levels


def parts(mask, structure=EIGHT):
    """The components of a mask, each as a boolean mask."""
    labels, count = ndimage.label(mask, structure)
    return [labels == index for index in range(1, count + 1)]


SETTINGS = {
    "watershed_vote": {},
    "object_vote": {},
    "remove_small": {"min_area": 20},
    "fill_holes": {"max_area": 9},
    "opening": {"radius": 1.5},
    "closing": {"radius": 1.5},
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_keeps_its_inputs_types_and_an_empty_scene(name):
    answer = random_answer(0)
    before = [array.copy() for array in answer]
    localization, damage = STEPS[name](*answer, **SETTINGS[name])
    assert all(np.array_equal(array, copy) for array, copy in zip(answer, before))
    assert localization.dtype == damage.dtype == np.uint8
    assert set(np.unique(localization)) <= {0, 1} and not damage[localization == 0].any()
    assert damage[localization > 0].all()
    for fill in (0, 255):  # nothing found; all found, in one piece
        mask = np.full((20, 30), fill // 255, np.uint8)
        levels = np.full((5, 20, 30), fill, np.uint8)
        result = STEPS[name](mask, mask * 3, levels[0], levels, **SETTINGS[name])
        assert np.array_equal(result[0], mask) and np.array_equal(result[1], mask * 3)


@pytest.mark.parametrize("name", ["object_vote", "remove_small", "fill_holes"])
@pytest.mark.parametrize("seed", range(3))
def test_doing_it_twice_changes_nothing_more(name, seed):
    localization, damage, *levels = random_answer(seed)
    once = STEPS[name](localization, damage, *levels, **SETTINGS[name])
    twice = STEPS[name](*once, *levels, **SETTINGS[name])
    assert np.array_equal(once[0], twice[0]) and np.array_equal(once[1], twice[1])
    assert not np.array_equal(once[1], damage)


@pytest.mark.parametrize("name", STEPS)
def test_buildings_of_one_class_stay_so(name):
    localization, _, *levels = random_answer(4)
    damage = np.zeros_like(localization)
    for index, building in enumerate(parts(localization)):
        damage[building] = 1 + index % 4
    cleaned, classes = STEPS[name](localization, damage, *levels, **SETTINGS[name])
    kept = (cleaned & localization) > 0
    assert np.array_equal(classes[kept], damage[kept])


# ---- object vote ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("connectivity", "structure"), [(8, EIGHT), (4, None)])
def test_object_vote_equals_a_loop_and_keeps_the_footprint(connectivity, structure):
    localization, damage, *levels = random_answer(5)
    footprint, voted = object_vote(localization, damage, *levels, connectivity=connectivity)
    expected = damage.copy()
    for building in parts(localization, structure):
        votes = [(damage[building] == label).sum() for label in (1, 2, 3, 4)]
        expected[building] = 1 + votes.index(max(votes))
    assert np.array_equal(footprint, localization) and np.array_equal(voted, expected)


def test_object_vote_counts_beyond_255_buildings_and_ties_low():
    localization = np.zeros((60, 60), np.uint8)
    localization[::2, 0::3] = localization[::2, 1::3] = 1  # 600 buildings of two pixels
    damage = localization * 4
    damage[::2, 0::3] = np.arange(600).reshape(30, 20) % 4 + 1  # against a 4: a tie that the other class wins
    voted = object_vote(localization, damage, *NOTHING)[1]
    assert np.array_equal(voted[::2, 0::3], damage[::2, 0::3])
    assert np.array_equal(voted[::2, 1::3], damage[::2, 0::3])


def test_object_vote_leaves_pixels_without_class_out():
    damage = np.array([[0, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 3]], np.uint8)
    localization = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], np.uint8)
    voted = object_vote(localization, damage, *NOTHING)[1]
    assert voted.tolist() == [[2, 2, 2, 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 3]]


# ---- remove small, fill holes ---------------------------------------------------------------------------
@pytest.mark.parametrize("min_area", [0, 1, 2, 7, 40, 10_000])
def test_remove_small_removes_exactly_the_components_below_the_area(min_area):
    localization, damage, *levels = random_answer(6)
    expected = localization.copy()
    for building in parts(localization):
        if building.sum() < min_area:
            expected[building] = 0
    cleaned, classes = remove_small(localization, damage, *levels, min_area=min_area)
    assert np.array_equal(cleaned, expected) and np.array_equal(classes, damage * expected)


@pytest.mark.parametrize("max_area", [0, 1, 4, 30, 10_000])
def test_fill_holes_fills_exactly_the_enclosed_gaps_up_to_the_area(max_area):
    localization, damage, *levels = random_answer(7)
    expected = localization.copy()
    for gap in parts(localization == 0, None):
        inner = np.zeros_like(gap)
        inner[1:-1, 1:-1] = True
        if gap.sum() <= max_area and not (gap & ~inner).any():
            expected[gap] = 1
    cleaned, classes = fill_holes(localization, damage, *levels, max_area=max_area)
    assert np.array_equal(cleaned, expected)
    assert np.array_equal(classes[localization > 0], damage[localization > 0])
    for row, column in np.argwhere(cleaned > localization):
        near = damage[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
        assert classes[row, column] in near[near > 0]


def test_gaps_at_the_border_are_no_holes():
    solid = np.ones((6, 7), np.uint8)
    for gap in ((0, 3), (5, 3), (3, 0), (3, 6), (0, 0), (2, 2)):
        notched = solid.copy()
        notched[gap] = 0
        assert fill_holes(notched, notched, *NOTHING, max_area=5)[0][gap] == (gap == (2, 2))


def test_fill_holes_takes_the_nearest_class():
    damage = np.full((5, 9), 1, np.uint8)
    damage[:, 5:] = 3
    damage[2, 2:7] = 0
    cleaned, classes = fill_holes((damage > 0).astype(np.uint8), damage, *NOTHING, max_area=5)
    assert cleaned.all() and classes[2].tolist() == [1, 1, 1, 1, 1, 3, 3, 3, 3]


# ---- watershed vote -------------------------------------------------------------------------------------
def two_roofs():
    """Two sure roofs joined by a valley off the middle, with a minority class on each; levels are unsure."""
    loc_levels = np.zeros((9, 24), np.uint8)
    loc_levels[1:8, 1:23] = 230
    loc_levels[1:8, 15:17] = (120, 90)  # the valley: column 16 is its lowest
    loc_levels[1:8, 8:15] = 180  # not sure enough for a seed: the left roof reaches to the valley
    localization = (loc_levels > 60).astype(np.uint8)
    damage = localization * 1
    damage[:, 16:] *= 4
    damage[3:5, 3:5], damage[3:5, 19:21] = 2, 3
    return localization, damage, loc_levels, np.full((5, 9, 24), 100, np.uint8)


def test_watershed_vote_cleans_every_region_and_parts_in_the_valley():
    localization, damage, *levels = two_roofs()
    footprint, voted = watershed_vote(localization, damage, *levels)
    assert footprint is localization
    assert (voted[1:8, 1:15] == 1).all() and (voted[1:8, 17:23] == 4).all()


def test_faithful_watershed_vote_forgets_the_last_region_and_parts_half_way():
    localization, damage, *levels = two_roofs()
    voted = watershed_vote(localization, damage, *levels, faithful=True)[1]
    assert (voted[1:8, 1:8] == 1).all()  # the first region is cleaned
    assert np.array_equal(voted[:, 13:], damage[:, 13:])  # the last one is left alone
    damage[1:8, 12:15] = 4  # columns that belong to the right roof half way between the seeds, left of the valley
    assert (watershed_vote(localization, damage, *levels)[1][1:8, 12:15] == 1).all()
    assert (watershed_vote(localization, damage, *levels, faithful=True)[1][1:8, 13:15] == 4).all()


def vote_region_by_region(localization, damage, loc_levels, cls_levels, faithful):
    """The vote as one would write it down, with skimage's properties of each region."""
    seeds = skimage.measure.label(loc_levels / 255.0 > 0.8, connectivity=2)
    relief = (loc_levels == 0).astype(np.uint8) if faithful else 255 - loc_levels
    regions = skimage.segmentation.watershed(relief, seeds, mask=localization > 0)
    voted, unsure = damage.copy(), cls_levels[1:].max(axis=0) / 255.0 < 0.6
    for region in skimage.measure.regionprops(regions):
        here = regions == region.label
        votes = np.bincount(damage[here], minlength=5)
        won = votes.max() > 0.6 * votes.sum() and votes.argmax() > 0 and region.euler_number == 1
        if won and not (faithful and region.label == regions.max()):
            voted[here & unsure] = votes.argmax()
    return voted


@pytest.mark.parametrize("faithful", [False, True])
def test_watershed_vote_is_what_it_is_region_by_region(faithful):
    rng, changed = np.random.default_rng(0), 0

    def field(channels, sigma):
        found = rng.random((80, 90, channels), np.float32)
        blurred = cv2.GaussianBlur(found, (0, 0), sigma).reshape(80, 90, channels).transpose(2, 0, 1)
        return np.rint(255 * (blurred - blurred.min()) / np.ptp(blurred)).astype(np.uint8)

    for _ in range(4):
        loc_levels, cls_levels = field(1, 2)[0], field(5, 6)
        localization = (loc_levels > 120).astype(np.uint8)
        for damage in (localization * (1 + cls_levels[1:].argmax(axis=0).astype(np.uint8)), localization * 2):
            voted = watershed_vote(localization, damage, loc_levels, cls_levels, faithful=faithful)[1]
            expected = vote_region_by_region(localization, damage, loc_levels, cls_levels, faithful)
            np.testing.assert_array_equal(voted, expected)
            changed += int((voted != damage).sum())
    assert changed > 50


def test_watershed_vote_leaves_sure_pixels_split_votes_and_rings():
    localization, damage, loc_levels, cls_levels = two_roofs()
    cls_levels[2, 3, 3] = 153  # 0.6 is not below 0.6
    cls_levels[2, 3, 4] = 152
    voted = watershed_vote(localization, damage, loc_levels, cls_levels)[1]
    assert voted[3, 3] == 2 and voted[3, 4] == 1

    split = damage.copy()
    split[:, 1:8] *= 2
    split[:, 8:16] = localization[:, 8:16] * 3  # no class covers more than 60 % of the left region
    assert np.array_equal(watershed_vote(localization, split, loc_levels, cls_levels)[1][:, 1:15], split[:, 1:15])

    ring = localization.copy()
    ring[4, 4] = 0
    voted = watershed_vote(ring, damage * ring, loc_levels, cls_levels)[1]
    assert np.array_equal(voted[:, :15], (damage * ring)[:, :15]) and (voted[1:8, 17:23] == 4).all()


# ---- apply ----------------------------------------------------------------------------------------------
def test_apply_runs_steps_in_their_order():
    localization, damage, *levels = random_answer(8)
    steps = [{"name": "fill_holes", "max_area": 9}, {"name": "remove_small", "min_area": 30}, {"name": "object_vote"}]
    expected = localization, damage
    expected = fill_holes(*expected, *levels, max_area=9)
    expected = remove_small(*expected, *levels, min_area=30)
    expected = object_vote(*expected, *levels)
    result = apply(steps, localization, damage, *levels)
    assert np.array_equal(result[0], expected[0]) and np.array_equal(result[1], expected[1])
    assert apply([], localization, damage, *levels)[1] is damage

    ring = np.pad(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8), 1)
    steps = [{"name": "fill_holes", "max_area": 1}, {"name": "remove_small", "min_area": 9}]
    assert apply(steps, ring, ring, *NOTHING)[0].sum() == 9
    assert apply(steps[::-1], ring, ring, *NOTHING)[0].sum() == 0


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"name": "sharpen"}, "got 'sharpen'"),
        ({"min_area": 3}, "got None"),
        ({"name": "remove_small"}, "min_area"),
        ({"name": "object_vote", "min_area": 3}, "min_area: unknown key"),
    ],
)
def test_apply_names_what_it_does_not_know(step, says):
    with pytest.raises(ConfigError, match=says):
        apply([step], *random_answer(9))
