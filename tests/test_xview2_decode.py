"""The joint decode against a pixel-by-pixel reading of its rule; the grid against decode and the official counts."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from lib.competitions.decoding import threshold_level
from lib.competitions.xview2.decode import DEFAULTS, count_grid, decode, selim2020
from lib.ensemble.search import lattice
from lib.errors import ConfigError


def random_scene(seed, size=(37, 41)):
    """Levels with the extremes and many equal values in them, and a truth whose two masks differ."""
    rng = np.random.default_rng(seed)
    loc = rng.choice(np.array([0, 1, 51, 63, 64, 76, 100, 127, 128, 200, 254, 255], np.uint8), (1, *size))
    cls = rng.choice(np.array([0, 10, 20, 40, 51, 60, 80, 100, 120, 255], np.uint8), (5, *size))
    cls[0] = rng.integers(0, 256, size)
    loc_truth = (rng.random(size) < 0.4).astype(np.uint8)
    damage_truth = np.where(rng.random(size) < 0.9, loc_truth, 1 - loc_truth) * rng.integers(1, 5, size)
    return loc, cls, loc_truth, damage_truth.astype(np.uint8)


def slow_decode(loc, cls, params):
    """Read the rule pixel by pixel in exact fractions."""
    _, fuse, high, low, likely, *weights = (Fraction(str(params[name])) for name in DEFAULTS)  # per pixel
    localization, damage = np.zeros(loc.shape[1:], np.uint8), np.zeros(loc.shape[1:], np.uint8)
    for place in np.ndindex(loc.shape[1:]):
        background, *classes = (int(plane[place]) for plane in cls)
        fused = ((1 - fuse) * int(loc[0][place]) + fuse * (255 - background) + Fraction(1, 2)) // 1
        damaged = min(sum(classes[1:]), 255)
        if fused >= high * 255 or (fused >= low * 255 and damaged >= likely * 255):
            localization[place] = 1
            products = [weight * level for weight, level in zip([1, *weights], classes)]
            damage[place] = 1 + products.index(max(products))
    return localization, damage


def official_counts(lp, dp, lt, dt):
    """The official script's counts, spelled out."""
    dp = dp * (lp > 0)
    scored = dt > 0
    counts = [((lp > 0) & (lt > 0)).sum(), ((lp > 0) & (lt == 0)).sum(), ((lp == 0) & (lt > 0)).sum()]
    for label in (1, 2, 3, 4):
        predicted, true = dp[scored] == label, dt[scored] == label
        counts += [(predicted & true).sum(), (predicted & ~true).sum(), (~predicted & true).sum()]
    return counts


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loc_threshold": 0.25, "loc_threshold_damaged": 0.2, "damage_threshold": 0.4, "w_minor": 1.5},
        {"fuse": 0.3, "loc_threshold": 0.38, "loc_threshold_damaged": 0.14, "w_minor": 2.5, "w_major": 1.25},
        {"fuse": 1.0, "loc_threshold": 1.0, "loc_threshold_damaged": 0.0, "w_minor": 0.0, "w_destroyed": 0.5},
        {"fuse": 0.5, "loc_threshold": 0.2, "loc_threshold_damaged": 0.9, "damage_threshold": 1.0, "w_major": 0.1},
    ],
)
def test_decode_follows_its_rule_pixel_by_pixel(changes):
    loc, cls, _, _ = random_scene(seed=1)
    params = {**DEFAULTS, **changes}
    localization, damage = decode(loc, cls, params)
    expected = slow_decode(loc, cls, params)
    assert localization.dtype == damage.dtype == np.uint8
    assert np.array_equal(localization, expected[0]) and np.array_equal(damage, expected[1])


@pytest.mark.parametrize(("probability", "level"), [(0, 0), (1, 255), (0.2, 51), (0.25, 64), (0.8, 204), (0.001, 1)])
def test_threshold_is_the_first_level_that_reaches_it(probability, level):
    assert threshold_level(probability) == level


def test_every_level_is_its_own_threshold():
    assert [threshold_level(level / 255) for level in range(256)] == list(range(256))
    assert [threshold_level(np.nextafter(level / 255, 1)) for level in range(255)] == list(range(1, 256))


def test_equal_products_go_to_the_lower_class():
    cls = np.array([0, 110, 100, 100, 110], np.uint8).reshape(5, 1, 1)
    loc = np.full((1, 1, 1), 255, np.uint8)
    assert decode(loc, cls, {**DEFAULTS, "w_minor": 1.1})[1].item() == 1  # 110 against 100 x 1.1
    assert decode(loc, cls, {**DEFAULTS, "w_minor": 1.101, "w_major": 1.101})[1].item() == 2
    assert decode(loc, np.zeros_like(cls), DEFAULTS)[1].item() == 1


GRIDS = {
    "all axes": {
        "fuse": [0.0, 0.3, 1.0],
        "loc_threshold": [0.5, 0.25, 1.0],
        "loc_threshold_damaged": [0.2, 0.0, 0.6],
        "damage_threshold": [0.4, 0.9],
        "w_minor": [2.0, 0.5],
        "w_major": [1.0, 2.0],
        "w_destroyed": [1.0, 0.25, 4.0],
    },
    "another order, some axes": {
        "w_destroyed": [3.0, 0.0, 1.0],
        "loc_threshold": [0.3, 0.25],
        "w_minor": [1.0, 0.1],
        "fuse": [0.25, 0.1],
    },
    "equal thresholds, equal weights in levels": {
        "loc_threshold": [0.2, 0.1999, 0.198],
        "damage_threshold": [0.0, 0.001, 1.0],
        "w_major": [1.0, 1.0001],
    },
    "objects": {"w_minor": [1.0, 2.0], "object_seed": [0.0, 0.4, 0.9], "loc_threshold": [0.3, 0.5], "fuse": [0.0, 0.5]},
    "one point": {},
}


@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("kind", ["random", "no truth", "all building", "zeros", "full"])
def test_grid_counts_every_point_as_decode_and_the_official_counts_do(axes, kind):
    loc, cls, loc_truth, damage_truth = random_scene(seed=3)
    if kind == "no truth":
        loc_truth, damage_truth = np.zeros_like(loc_truth), np.zeros_like(damage_truth)
    elif kind == "all building":
        loc_truth, damage_truth = np.ones_like(loc_truth), np.maximum(damage_truth, 1)
    elif kind in ("zeros", "full"):
        loc, cls = np.full_like(loc, 255 * (kind == "full")), np.full_like(cls, 255 * (kind == "full"))
    grid = lattice(axes, {**DEFAULTS, "loc_threshold_damaged": 0.1})
    counts = count_grid(loc, cls, loc_truth, damage_truth, grid)
    assert counts.shape == (len(grid), 15) and counts.dtype == np.int64
    for point, params in enumerate(grid):
        expected = official_counts(*decode(loc, cls, params), loc_truth, damage_truth)
        assert counts[point].tolist() == expected, params


def test_grid_counts_are_those_of_the_scoring_room():
    scoring = pytest.importorskip("lib.competitions.xview2.metric")
    loc, cls, loc_truth, damage_truth = random_scene(seed=4)
    grid = lattice({"loc_threshold": [0.3, 0.6], "w_minor": [1.0, 2.0]}, DEFAULTS)
    counts = count_grid(loc, cls, loc_truth, damage_truth, grid)
    for point, params in enumerate(grid):
        assert np.array_equal(counts[point], scoring.count(*decode(loc, cls, params), loc_truth, damage_truth))


def test_counts_of_halves_add_up_to_the_whole():
    loc, cls, loc_truth, damage_truth = random_scene(seed=5, size=(40, 30))
    grid = lattice({"loc_threshold": [0.1, 0.4, 0.7], "w_major": [0.5, 2.0]}, DEFAULTS)
    halves = [
        count_grid(loc[:, rows], cls[:, rows], loc_truth[rows], damage_truth[rows], grid)
        for rows in (slice(0, 17), slice(17, 40))
    ]
    assert np.array_equal(sum(halves), count_grid(loc, cls, loc_truth, damage_truth, grid))


def slow_selim(loc, cls):
    """The 2020 post-processing in its own array layout, with a plain loop over regions."""
    from skimage import measure, segmentation

    localization, damage = loc[0] / 255.0, np.moveaxis(cls[1:], 0, -1) / 255.0
    background = np.zeros((*localization.shape, 1))
    background[:, :, 0] = 1 - np.sum(damage, axis=2)
    scaled = np.concatenate([0.8 * background, damage], axis=-1)
    scaled[:, :, 2:] *= 2.0
    building = (localization > 0.25) | (np.argmax(scaled, axis=-1) > 0)
    labels, sure = np.argmax(damage, axis=-1) + 1, np.max(damage, axis=-1)
    seeds = measure.label(localization > 0.8, connectivity=2)
    regions = segmentation.watershed((1 - localization).astype("uint8"), seeds, mask=building)
    voted = labels.copy()
    for index in range(1, regions.max()):
        region = regions == index
        votes, label = max(((labels[region] == c).sum(), -c) for c in (1, 2, 3, 4))
        pieces = ndimage.label(region, np.ones((3, 3)))[1]
        holes = ndimage.label(np.pad(~region, 1, constant_values=True))[1] - 1
        if votes > 0.6 * region.sum() and pieces - holes == 1:
            voted[region & (sure < 0.6)] = -label
    return building, voted


def test_selim2020_equals_the_original_arithmetic():
    rng = np.random.default_rng(6)
    field = ndimage.gaussian_filter(rng.standard_normal((48, 48)), 3)
    field = 300 * field / np.abs(field).max() + rng.normal(0, 25, field.shape)  # seeds that touch at corners, too
    loc = np.clip(127 + field, 0, 255).astype(np.uint8)[None]
    cls = rng.integers(0, 65, (5, 48, 48), dtype=np.uint8)
    blocks = rng.integers(0, 4, (4, 4)).repeat(12, axis=0).repeat(12, axis=1)  # a leading class per block
    cls[1:][np.arange(4)[:, None, None] == blocks] += 120
    loc[:, :, 36:] = 0  # only the argmax can make a building here: ties, 0.8 x (255 - sum) against 2 x major
    for pixel in np.ndindex(48, 12):
        major = 2 * rng.integers(10, 37)
        minor, destroyed = rng.integers(0, np.minimum(major, (255 - 7 * major // 2) // 2) + 1, 2)
        none = 255 - 5 * major // 2 - major - minor - destroyed
        cls[(slice(1, 5), pixel[0], 36 + pixel[1])] = min(none, 2 * major), minor, major, destroyed
    localization, damage = selim2020(loc, cls)
    expected = slow_selim(loc, cls)
    assert np.array_equal(localization, expected[0]) and np.array_equal(damage, expected[1])
    assert damage.min() == 1 and (damage != cls[1:].argmax(axis=0) + 1).any()  # written everywhere; some were outvoted


def test_what_cannot_be_decoded_is_refused():
    loc, cls, loc_truth, damage_truth = random_scene(seed=7)
    with pytest.raises(ValueError, match="cls"):
        decode(loc, cls[:4], DEFAULTS)
    with pytest.raises(ValueError, match="float32"):
        decode(loc.astype(np.float32), cls, DEFAULTS)
    hundred = np.arange(100) / 100
    with pytest.raises(ConfigError, match="100 loc_threshold x 1 loc_threshold_damaged x 100 damage_threshold"):
        axes = {"loc_threshold": hundred, "damage_threshold": hundred}
        count_grid(loc, cls, loc_truth, damage_truth, lattice(axes, DEFAULTS))
    grid = lattice({}, DEFAULTS)
    with pytest.raises(ValueError, match="0..4, got 255"):
        count_grid(loc, cls, loc_truth, np.full_like(damage_truth, 255), grid)
    with pytest.raises(ValueError, match="truth of shape"):
        count_grid(loc, cls, loc_truth[1:], damage_truth[1:], grid)
