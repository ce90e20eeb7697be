"""Augmentation: one geometry for all images and the mask, the recipe's numbers, and a seed that decides everything."""

from dataclasses import replace

import albumentations as A
import numpy as np
import pytest

from lib.errors import ConfigError
from lib.scenes.augment import EIGENVALUES, EIGENVECTORS, PRESETS, Augment, Focus, Lighting, build, compose, place

PAIR = ("pre", "post")


def coordinates(height: int = 200, width: int = 180) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """An image that tells where each pixel comes from: red = row, green = column; and both as masks."""
    row, column = np.mgrid[:height, :width].astype(np.uint8)
    image = np.dstack([row, column, np.zeros_like(row)])
    return {"pre": image, "post": image.copy()}, row, column


def photo(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (90, 110, 3), dtype=np.uint8) for name in PAIR}


def geometry(preset: str, crop: int = 64, **changes) -> Augment:
    return Augment(replace(PRESETS[preset], colour=list, **changes), crop, PAIR)


@pytest.mark.parametrize("preset", PRESETS)
def test_images_and_mask_share_their_geometry(preset):
    images, row, column = coordinates()
    augment = geometry(preset, shift=0.0)
    for seed in range(40):
        out, rows = augment(images, row, seed)
        columns = augment(images, column, seed)[1]
        np.testing.assert_array_equal(out["pre"], out["post"])
        inside = rows != 255
        np.testing.assert_array_equal(inside, columns != 255)
        assert inside.mean() > 0.5
        for mask, channel in ((rows, 0), (columns, 1)):
            off = np.abs(mask.astype(int) - out["pre"][..., channel])[inside]
            assert off.max() <= 1  # nearest against bilinear: half a pixel of the scene, rounded


def test_a_shift_moves_all_images_but_the_first_and_never_the_mask():
    images, row, _ = coordinates()
    still, shaken = geometry("none", shift=0.0), geometry("none", shift=3.0)
    moves = []
    for seed in range(30):
        (a, mask), (b, shaken_mask) = still(images, row, seed), shaken(images, row, seed)
        np.testing.assert_array_equal(a["pre"], b["pre"])
        np.testing.assert_array_equal(mask, shaken_mask)
        inner = (slice(12, -12), slice(12, -12), 0)
        moves.append(float((b["post"][inner].astype(int) - a["post"][inner]).mean()))  # red tells the row
    assert abs(np.mean(moves)) < 1.5 and 2 < np.std(moves) < 4


def test_shapes_and_types():
    images, row, _ = coordinates()
    out, mask = build("selim2020_loc", 48, PAIR)(images, row, 3)
    assert list(out) == ["pre", "post"]
    assert all(image.shape == (48, 48, 3) and image.dtype == np.uint8 for image in out.values())
    assert mask.shape == (48, 48) and mask.dtype == np.uint8


@pytest.mark.parametrize("preset", PRESETS)
def test_a_seed_decides_everything(preset):
    images, mask = photo(), np.random.default_rng(1).integers(0, 5, (90, 110), dtype=np.uint8)
    originals = {name: image.copy() for name, image in images.items()}
    one, two = build(preset, 40, PAIR), build(preset, 40, PAIR)
    seen = set()
    for seed in range(30):
        a, b = one(images, mask, seed), two(images, mask, seed)
        assert all(np.array_equal(a[0][name], b[0][name]) for name in PAIR) and np.array_equal(a[1], b[1])
        seen.add(a[0]["pre"].tobytes())
        two(images, mask, seed + 1000)  # what came before does not matter
    assert len(seen) == 30
    assert all(np.array_equal(images[name], originals[name]) for name in PAIR)


def affine(out: np.ndarray) -> tuple[float, float]:
    """Fit the warp of a crop of coordinates: zoom (scene pixels per crop pixel), angle mod 90 in -45..45 degrees."""
    v, u = np.mgrid[:out.shape[0], :out.shape[1]]
    ones = np.ones(v.size)
    slope = np.linalg.lstsq(np.column_stack([v.ravel(), u.ravel(), ones]), out[..., 0].ravel(), rcond=None)[0]
    angle = np.degrees(np.arctan2(slope[1], slope[0])) % 90
    return float(np.hypot(slope[0], slope[1])), angle - 90 if angle > 45 else angle


@pytest.mark.parametrize("preset, scale, limit, scaled, rotated", [
    ("none", (1, 1), 0, 0, 0),
    ("selim2020_loc", (0.7, 1.3), 45, 0.8, 0.4),
    ("selim2020_cls", (0.8, 1.2), 10, 1.0, 0.1),
    ("light", (0.8, 1.25), 0, 0.5, 0),
])
def test_scale_and_rotation_follow_the_recipe(preset, scale, limit, scaled, rotated):
    images, row, _ = coordinates(254, 254)
    augment = geometry(preset, crop=50)
    middle = Focus((126, 126, 128, 128), (127, 127))  # keeps mirrored borders out of the fit
    fits = np.array([affine(augment(images, row, seed, middle)[0]["pre"]) for seed in range(300)])
    zoom, angle = fits.T
    assert scale[0] - 0.02 <= zoom.min() and zoom.max() <= scale[1] + 0.02
    assert np.abs(angle).max() <= limit + 0.5
    assert abs((np.abs(zoom - 1) > 0.01).mean() - scaled) < 0.12
    assert abs((np.abs(angle) > 0.4).mean() - rotated) < 0.1
    if limit:
        assert angle.min() < -limit / 2 and angle.max() > limit / 2


def test_all_eight_turns_come_up_equally():
    images, row, _ = coordinates(64, 64)
    augment = geometry("light", scale_p=0.0)
    counts = {}
    for seed in range(400):
        out = augment(images, row, seed)[0]["pre"]
        counts[out.tobytes()] = counts.get(out.tobytes(), 0) + 1
    assert len(counts) == 8 and min(counts.values()) > 25


def test_a_window_of_twice_the_crop_is_sampled_at_pixel_centres():
    images, row, _ = coordinates(128, 128)
    out, mask = geometry("none", scale=(2, 2))(images, row, 0)
    expected = 2 * np.arange(64) + 0.5  # the middle between two rows of the scene
    assert np.abs(out["pre"][:, 0, 0] - expected).max() <= 0.5
    assert mask.max() < 255


def test_windows_stay_inside_a_scene_that_is_large_enough():
    images, row, _ = coordinates(60, 70)
    augment = geometry("light", crop=48, scale=(1.0, 4.0), scale_p=1.0)
    assert all((augment(images, row, seed)[1] != 255).all() for seed in range(100))


@pytest.mark.parametrize("height, width", [(20, 30), (1, 5), (100, 10)])
def test_a_small_scene_is_mirrored_and_its_border_ignored(height, width):
    images, row, _ = coordinates(height, width)
    for seed in range(5):
        out, mask = geometry("none")(images, row, seed)
        inside = mask != 255
        assert inside.sum() == min(height, 64) * min(width, 64)
        top, left = np.argwhere(inside)[0]
        start = out["pre"][top, left, 0]
        scene = images["pre"][start:start + 64]
        padded = scene
        for axis, before in ((0, top), (1, left)):
            pads = [(0, 0)] * 3
            pads[axis] = (before, 64 - before - scene.shape[axis])
            padded = np.pad(padded, pads, mode="reflect" if scene.shape[axis] > 1 else "edge")
        np.testing.assert_array_equal(out["pre"], padded)


def test_place_is_uniform_over_every_window_that_shows_what_it_must():
    rng = np.random.default_rng(0)
    for size, side, show in [(20, 8, None), (20, 8, (3, 6, 4)), (20, 8, (0, 2, 1)), (20, 8, (5, 17, 9)), (6, 8, None),
                             (6, 8, (1, 3, 2)), (8, 8, (7, 8, 7))]:
        legal = set()
        for start in range(-20, 21):
            window = range(start, start + side)
            if side <= size and not (window[0] >= 0 and window[-1] < size):
                continue
            if side > size and not (window[0] <= 0 and window[-1] >= size - 1):
                continue
            if show and side <= size:
                low, high, point = show
                whole = window[0] <= low and window[-1] >= high - 1
                part = low <= window[0] and window[-1] < high and point in window
                if not (whole if high - low <= side else part):
                    continue
            legal.add(start)
        drawn = [place(rng, size, side, show) for _ in range(400)]
        assert set(drawn) == legal
        counts = np.bincount(np.array(drawn) + 20)
        assert counts[counts > 0].min() > 400 / len(legal) / 3


def test_the_focus_component_is_in_the_crop():
    rng = np.random.default_rng(2)
    images = photo()
    moving = [geometry(preset, crop=40) for preset in ("light", "selim2020_loc", "selim2020_cls")]
    for seed in range(200):
        height, width = rng.integers(3, 30, 2)
        top, left = rng.integers(90 - height + 1), rng.integers(110 - width + 1)
        mask = np.zeros((90, 110), np.uint8)
        mask[top:top + height, left:left + width] = 2
        focus = Focus((top, left, top + height, left + width), (top + height // 2, left + width // 2))
        still = geometry("none", crop=40)(images, mask, seed, focus)[1]
        assert (still == 2).sum() == height * width
        assert all((augment(images, mask, seed, focus)[1] == 2).any() for augment in moving)


def test_a_focus_larger_than_the_crop_shows_its_point():
    mask = np.zeros((90, 110), np.uint8)
    mask[:, 30:33] = mask[40:43] = 1  # a cross, mostly holes
    focus = Focus((0, 0, 90, 110), (41, 31))
    assert all((geometry("none", crop=20)(photo(), mask, seed, focus)[1] == 1).any() for seed in range(50))


def test_shared_colour_is_the_same_for_all_images_and_per_image_is_not():
    images = photo()
    images["post"] = images["pre"]
    mask = np.zeros((90, 110), np.uint8)
    for preset in ("selim2020_loc", "selim2020_cls", "light"):
        shared, apart = build(preset, 40, PAIR, jitter="shared"), build(preset, 40, PAIR, jitter="per_image")
        assert all(np.array_equal(*shared(images, mask, seed)[0].values()) for seed in range(30))
        same = [np.array_equal(*apart(images, mask, seed)[0].values()) for seed in range(30)]
        assert np.mean(same) < 0.5
    assert PRESETS["selim2020_loc"].jitter == PRESETS["selim2020_cls"].jitter == "shared"
    assert PRESETS["light"].jitter == "per_image"


def test_colour_leaves_the_mask_alone():
    images, row, _ = coordinates()
    for seed in range(20):
        np.testing.assert_array_equal(build("selim2020_loc", 40, PAIR)(images, row, seed)[1],
                                      geometry("selim2020_loc", 40)(images, row, seed)[1])


def test_lighting_adds_a_colour_axis_of_imagenet():
    image = np.full((4, 4, 3), 100, np.uint8)
    lighting = Lighting(sigma=0.3)
    alpha = np.array([0.5, -0.4, 0.3])
    shift = [sum(255 * EIGENVECTORS[colour, axis] * alpha[axis] * EIGENVALUES[axis] for axis in range(3))
             for colour in range(3)]
    out = lighting.apply(image, shift=np.array(shift))
    assert np.abs(out[0, 0] - (100 + np.array(shift))).max() <= 0.5
    lighting.set_random_seed(0)
    drawn = np.array([lighting.get_params()["shift"] for _ in range(2000)])
    expected = np.sqrt(((255 * 0.3 * EIGENVECTORS * EIGENVALUES) ** 2).sum(1))
    np.testing.assert_allclose(drawn.std(0), expected, rtol=0.1)
    pipeline = compose([Lighting(sigma=1e6, p=1)], PAIR)
    pipeline.set_random_seed(0)  # a shift near zero, possible by chance, would not saturate
    white = pipeline(image=image, post=image)["image"]
    assert set(np.unique(white)) <= {0, 255}  # it saturates and does not wrap


@pytest.mark.parametrize("transforms", [
    lambda: [A.GaussNoise(var_limit=(10, 50))],
    lambda: [A.OneOf([A.ImageCompression(quality_lower=99)])],
])
@pytest.mark.filterwarnings("ignore:Argument")
def test_an_unknown_argument_is_an_error(transforms):
    with pytest.raises(ValueError, match="not valid"):
        compose(transforms(), PAIR)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="selim2020_loc"):
        build("selim", 64, PAIR)
    with pytest.raises(ConfigError, match="per_image"):
        build("light", 64, PAIR, jitter="both")
