"""Augmentation: one geometry for all images and the mask, the recipe's numbers, and a seed that decides everything.

Long because of its last part: golden images of every preset, how they are made and compared.
"""

import os
from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest

from lib.errors import ConfigError
from lib.scenes.augment import (
    EIGENVALUES,
    EIGENVECTORS,
    OLDER,
    PRESETS,
    Augment,
    Focus,
    Lighting,
    Preset,
    StainJitter,
    build,
    compose,
)
from lib.scenes.raster import read_image, write_png

PAIR = ("pre", "post")
NAMES = [name for name in PRESETS if name not in OLDER]
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_CROP, GOLDEN_SEEDS, THUMBNAILS, THUMBNAIL = 40, (1, 2), 48, 5


def coordinates(height: int = 200, width: int = 180) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """An image that tells where each pixel comes from: red = row, green = column; and both as masks."""
    row, column = np.mgrid[:height, :width].astype(np.uint8)
    image = np.dstack([row, column, np.zeros_like(row)])
    return {"pre": image, "post": image.copy()}, row, column


def mirrored(places: np.ndarray, n: int) -> np.ndarray:
    """Return the indices below ``n`` of places on a line that is mirrored at its ends, which are not repeated.

    np.pad does the same since numpy 2.0; before, it is wrong where more is added than there is.
    """
    away = np.abs(places) % max(2 * (n - 1), 1)
    return np.minimum(away, 2 * (n - 1) - away)


def photo(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (90, 110, 3), dtype=np.uint8) for name in PAIR}


def geometry(preset: str, crop: int = 64, **changes) -> Augment:
    return Augment(replace(PRESETS[preset], colour=list, **changes), crop, PAIR)


@pytest.mark.parametrize("preset", NAMES)
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


@pytest.mark.parametrize("preset", NAMES)
def test_what_is_known_of_a_scene_moves_with_it_and_keeps_its_values(preset):
    """Planes of other names, as a teacher's logits: bent like an image, neither recoloured nor shaken."""
    images, row, column = coordinates()
    augment, plain = build(preset, 48, PAIR), geometry(preset, 48, shift=0.0)
    for seed in range(12):
        out, mask = augment({**images, "rows": row, "columns": column}, row, seed)
        alone, alone_mask = augment(images, row, seed)
        assert list(out) == [*PAIR, "rows", "columns"] and out["rows"].shape == (48, 48)
        np.testing.assert_array_equal(mask, alone_mask)
        assert all(np.array_equal(out[name], alone[name]) for name in PAIR)
        still = plain(images, row, seed)[0]["pre"]
        np.testing.assert_array_equal(out["rows"], still[..., 0])
        np.testing.assert_array_equal(out["columns"], still[..., 1])


def test_shapes_and_types():
    images, row, _ = coordinates()
    out, mask = build("aerial_strong", 48, PAIR)(images, row, 3)
    assert list(out) == ["pre", "post"]
    assert all(image.shape == (48, 48, 3) and image.dtype == np.uint8 for image in out.values())
    assert mask.shape == (48, 48) and mask.dtype == np.uint8


@pytest.mark.parametrize("preset", NAMES)
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


def test_one_image_alone_is_bent_like_two():
    images, row, _ = coordinates()
    augment = geometry("animals", elastic_p=1.0)
    alone = Augment(replace(PRESETS["animals"], colour=list, elastic_p=1.0), 64, PAIR[:1])
    for seed in range(10):
        np.testing.assert_array_equal(augment(images, row, seed)[0]["pre"], alone(images, row, seed)[0]["pre"])


def test_bending_follows_the_recipe():
    """A pixel of the crop shows its own place plus a displacement of Simard's deviation, as often as asked."""
    images, row, _ = coordinates(134, 134)
    augment = geometry("animals", crop=128, rotate_p=0.0)
    moves = []
    for seed in range(60):
        crop = augment(images, row, seed)[0]["pre"].astype(float)
        moved = np.dstack([crop[..., 0] - np.arange(128)[:, None], crop[..., 1] - np.arange(128)])[16:-16, 16:-16]
        if np.ptp(moved) > 6:  # not a plain cut, whose place differs by up to 6 pixels
            moves.append(moved - moved.mean((0, 1)))
        else:
            assert np.ptp(moved, axis=(0, 1)).max() == 0
    assert 18 < len(moves) < 42
    assert np.std(moves) == pytest.approx(100 / (2 * np.sqrt(3 * np.pi) * 10), rel=0.15)


def affine(out: np.ndarray) -> tuple[float, float]:
    """Fit the warp of a crop of coordinates: zoom (scene pixels per crop pixel), angle mod 90 in -45..45 degrees."""
    v, u = np.mgrid[: out.shape[0], : out.shape[1]]
    ones = np.ones(v.size)
    slope = np.linalg.lstsq(np.column_stack([v.ravel(), u.ravel(), ones]), out[..., 0].ravel(), rcond=None)[0]
    angle = np.degrees(np.arctan2(slope[1], slope[0])) % 90
    return float(np.hypot(slope[0], slope[1])), angle - 90 if angle > 45 else angle


@pytest.mark.parametrize(
    "preset, scale, limit, scaled, rotated",
    [
        ("none", (1, 1), 0, 0, 0),
        ("aerial_strong", (0.7, 1.3), 45, 0.8, 0.4),
        ("aerial_mild", (0.8, 1.2), 10, 1.0, 0.1),
        ("light", (0.8, 1.25), 0, 0.5, 0),
        ("animals", (1, 1), 30, 0, 0.5),
        ("faces", (0.8, 1.1), 10, 1.0, 0.5),
    ],
)
def test_scale_and_rotation_follow_the_recipe(preset, scale, limit, scaled, rotated):
    images, row, _ = coordinates(254, 254)
    augment = geometry(preset, crop=50, elastic=None)
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


def test_a_horizontal_flip_never_turns_the_picture_over():
    images, row, _ = coordinates(64, 64)
    augment = geometry("faces", scale_p=0.0, rotate_p=0.0)
    plain = images["pre"]
    mirrored = [bool((augment(images, row, seed)[0]["pre"] == plain[:, ::-1]).all()) for seed in range(200)]
    upright = [bool((augment(images, row, seed)[0]["pre"] == plain).all()) for seed in range(200)]
    assert all(a != b for a, b in zip(mirrored, upright)) and 70 < sum(mirrored) < 130
    still = geometry("animals", rotate_p=0.0, elastic_p=0.0)
    assert all((still(images, row, seed)[0]["pre"] == plain).all() for seed in range(20))  # no flip in the report


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


def test_an_area_is_a_window_inside_the_scene_of_any_proportions():
    images, row, _ = coordinates(180, 240)
    augment = geometry("bag_of_tricks", crop=48, area=(0.08, 0.4), flip="none")  # no window sticks out
    shares, ratios = [], []
    for seed in range(400):
        out, mask = augment(images, row, seed)
        assert (mask != 255).all()
        v, u = np.mgrid[:48, :48]
        away = np.column_stack([v.ravel(), u.ravel(), np.ones(v.size)])
        down, along = (np.linalg.lstsq(away, out["pre"][..., c].ravel(), rcond=None)[0][c] * 48 for c in (0, 1))
        shares.append(down * along / (180 * 240))
        ratios.append(along / down)
    assert 0.07 < min(shares) < 0.1 and 0.38 < max(shares) < 0.41 and abs(np.mean(shares) - 0.24) < 0.02
    assert 0.72 < min(ratios) < 0.79 and 1.28 < max(ratios) < 1.37 and abs(np.mean(np.log(ratios))) < 0.04
    whole = geometry("bag_of_tricks", crop=48)
    assert max(np.prod(whole.draw_window(np.random.default_rng(k), (180, 240))) for k in range(300)) > 0.9 * 180 * 240


def test_the_largest_window_of_allowed_proportions_is_taken_where_none_fits():
    images, row, _ = coordinates(20, 200)
    augment = geometry("bag_of_tricks", crop=20, area=(0.9, 1.0), flip="none")
    for seed in range(10):
        columns = augment(images, row, seed)[0]["pre"][..., 1].astype(int)
        assert abs(np.ptp(columns) - 80 / 3 * 19 / 20) <= 2  # 4/3 of the height


@pytest.mark.parametrize("height, width", [(20, 30), (1, 5), (100, 10)])
def test_a_small_scene_is_mirrored_and_its_border_ignored(height, width):
    images, row, _ = coordinates(height, width)
    for seed in range(5):
        out, mask = geometry("none")(images, row, seed)
        inside = mask != 255
        assert inside.sum() == min(height, 64) * min(width, 64)
        top, left = np.argwhere(inside)[0]
        start = out["pre"][top, left, 0]
        scene = images["pre"][start : start + 64]
        rows, columns = (mirrored(np.arange(64) - before, n) for before, n in zip((top, left), scene.shape))
        np.testing.assert_array_equal(out["pre"], scene[np.ix_(rows, columns)])


def test_the_focus_component_is_in_the_crop():
    rng = np.random.default_rng(2)
    images = photo()
    moving = [geometry(preset, crop=40) for preset in ("light", "aerial_strong", "aerial_mild")]
    moving.append(geometry("animals", crop=40, elastic=(400, 10), elastic_p=1.0))  # would push it far out of the crop
    for seed in range(200):
        height, width = rng.integers(3, 30, 2)
        top, left = rng.integers(90 - height + 1), rng.integers(110 - width + 1)
        mask = np.zeros((90, 110), np.uint8)
        mask[top : top + height, left : left + width] = 2
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
    for preset in ("aerial_strong", "aerial_mild", "light"):
        shared, apart = build(preset, 40, PAIR, jitter="shared"), build(preset, 40, PAIR, jitter="per_image")
        assert all(np.array_equal(*shared(images, mask, seed)[0].values()) for seed in range(30))
        same = [np.array_equal(*apart(images, mask, seed)[0].values()) for seed in range(30)]
        assert np.mean(same) < 0.5
    assert PRESETS["aerial_strong"].jitter == PRESETS["aerial_mild"].jitter == "shared"
    assert PRESETS["light"].jitter == "per_image"


def test_colour_leaves_the_mask_alone():
    images, row, _ = coordinates()
    for seed in range(20):
        np.testing.assert_array_equal(
            build("aerial_strong", 40, PAIR)(images, row, seed)[1], geometry("aerial_strong", 40)(images, row, seed)[1]
        )


def test_lighting_adds_a_colour_axis_of_imagenet():
    image = np.full((4, 4, 3), 100, np.uint8)
    lighting = Lighting(sigma=0.3)
    alpha = np.array([0.5, -0.4, 0.3])
    shift = [
        sum(255 * EIGENVECTORS[colour, axis] * alpha[axis] * EIGENVALUES[axis] for axis in range(3))
        for colour in range(3)
    ]
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


def golden_scene() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A scene that shows every change: colours, edges, fine texture, up and left unlike down and right. 88 x 96."""
    y, x = np.mgrid[:88, :96] / 16
    red = 150 + 70 * np.sin(x) * np.cos(0.7 * y) + 3 * y
    green = 120 + 60 * np.sin(0.8 * y + 1) + 8 * x
    blue = 170 + 50 * np.cos(1.3 * x + 0.9 * y) - 9 * x
    mask = 80 * (np.hypot(x - 2, y - 2.2) < 1.2) + 160 * (np.abs(x - 4) + np.abs(y - 3.4) < 1)
    image = np.dstack([red, green, blue]) - 0.4 * mask[..., None]
    image[::4, 1::4] += 25
    pre = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    post = np.clip(np.rint(0.8 * image[..., [0, 2, 1]] + 20), 0, 255).astype(np.uint8)
    return {"pre": pre, "post": post}, mask.astype(np.uint8)


def golden_pieces(preset: Preset) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Crops (40, 40, 3) and masks (40, 40) of two seeds; of many, every eighth pixel, for what is seldom drawn."""
    images, mask = golden_scene()
    augment = Augment(preset, GOLDEN_CROP, PAIR)
    crops, masks, thumbnails = [], [], []
    for seed in GOLDEN_SEEDS:
        out, labels = augment(images, mask, seed)
        crops += [out["pre"], out["post"]]
        masks.append(labels)
    for seed in range(THUMBNAILS):
        thumbnails.append(augment(images, mask, 100 + seed)[0]["pre"][4::8, 4::8])  # no means: they hide blur and noise
    return crops, masks, thumbnails


def golden_sheet(preset: Preset) -> np.ndarray:
    """Lay the pieces out as one picture (90, 120, 3): a row per seed (pre, post, mask), then the thumbnails."""
    crops, masks, thumbnails = golden_pieces(preset)
    rows = [np.hstack([crops[2 * k], crops[2 * k + 1], np.dstack([mask] * 3)]) for k, mask in enumerate(masks)]
    per_row = rows[0].shape[1] // THUMBNAIL
    rows += [np.hstack(thumbnails[k : k + per_row]) for k in range(0, THUMBNAILS, per_row)]
    return np.vstack(rows)


def golden_distance(sheet: np.ndarray, golden: np.ndarray) -> tuple[float, float]:
    """Return the largest mean difference of a crop or thumbnail in levels, and the share of mask pixels that differ."""
    off = np.abs(sheet.astype(float) - golden)
    end = GOLDEN_CROP * len(GOLDEN_SEEDS)
    crops = off[:end, : 2 * GOLDEN_CROP].reshape(len(GOLDEN_SEEDS), GOLDEN_CROP, 2, GOLDEN_CROP, 3).mean((1, 3, 4))
    small = off[end:].reshape(-1, THUMBNAIL, off.shape[1] // THUMBNAIL, THUMBNAIL, 3).mean((1, 3, 4))
    return float(max(crops.max(), small.max())), float((off[:end, 2 * GOLDEN_CROP :, 0] > 0).mean())


def like_golden(sheet: np.ndarray, golden: np.ndarray) -> bool:
    """Allow what a library's new release may round differently."""
    levels, mask = golden_distance(sheet, golden)
    return levels < 1.5 and mask <= 0.005


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_still_makes_its_golden_images(name):
    """Meant to change? ``GOLDEN=write pytest tests/test_augment.py -k golden``, look at the pictures, commit them."""
    path, sheet = GOLDEN / f"augment_{name}.png", golden_sheet(PRESETS[name])
    if os.environ.get("GOLDEN") == "write":
        write_png(path, sheet)
        pytest.skip(f"wrote {path.name}")
    assert like_golden(sheet, read_image(path)), f"{name}: off by {golden_distance(sheet, read_image(path))}"


@pytest.mark.parametrize(
    "name, change",
    [
        ("animals", {"elastic": (60, 10)}),
        ("animals", {"flip": "horizontal"}),
        ("faces", {"rotate": 13}),
        ("tissue", {"scale": (0.6, 2.0)}),
        ("satellite", {"shift": 0.0}),
        ("bag_of_tricks", {"area": (0.25, 1.0)}),
        ("bag_of_tricks", {"ratio": (1, 1)}),
        ("satellite", {"jitter": "shared"}),
        ("animals", {"colour": lambda: [A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.7, 1.2), 0, p=0.5)]}),
        ("tissue", {"colour": lambda: [StainJitter(scale=0.3, shift=0.05, p=0.7), *PRESETS["tissue"].colour()[1:]]}),
        ("faces", {"colour": lambda: PRESETS["faces"].colour()[:-1]}),
    ],
)
def test_golden_images_tell_a_changed_argument(name, change):
    golden = read_image(GOLDEN / f"augment_{name}.png")
    assert not like_golden(golden_sheet(replace(PRESETS[name], **change)), golden)


@pytest.mark.parametrize(
    "transforms",
    [
        lambda: [A.GaussNoise(var_limit=(10, 50))],
        lambda: [A.OneOf([A.ImageCompression(quality_lower=99)])],
    ],
)
@pytest.mark.filterwarnings("ignore:Argument")
def test_an_unknown_argument_is_an_error(transforms):
    with pytest.raises(ValueError, match="not valid"):
        compose(transforms(), PAIR)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="aerial_strong"):
        build("selim", 64, PAIR)
    with pytest.raises(ConfigError, match="per_image"):
        build("light", 64, PAIR, jitter="both")


@pytest.mark.parametrize("old", OLDER)
def test_a_preset_keeps_its_older_name(old):
    assert build(old, 32, PAIR).preset == build(OLDER[old], 32, PAIR).preset
