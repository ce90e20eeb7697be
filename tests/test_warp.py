"""Where pixels go: windows that show what they must, and the elastic field."""

import cv2
import numpy as np
import pytest
from albumentations.augmentations.geometric.functional import generate_displacement_fields

from lib.scenes.warp import bend, bent, elastic, place


def test_place_is_uniform_over_every_window_that_shows_what_it_must():
    rng = np.random.default_rng(0)
    for size, side, show in [
        (20, 8, None),
        (20, 8, (3, 6, 4)),
        (20, 8, (0, 2, 1)),
        (20, 8, (5, 17, 9)),
        (6, 8, None),
        (6, 8, (1, 3, 2)),
        (8, 8, (7, 8, 7)),
    ]:
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


@pytest.mark.parametrize("alpha, sigma", [(100, 10), (50, 8), (20, 2), (5, 1), (60, 7.3)])
def test_an_elastic_field_has_simards_strength_and_smoothness(alpha, sigma):
    rng = np.random.default_rng(0)
    draws = np.array([elastic(rng, 96, alpha, sigma) for _ in range(30)])  # (30, 96, 96, 2)
    assert draws.shape == (30, 96, 96, 2) and draws.dtype == np.float32
    expected = alpha / (2 * np.sqrt(3 * np.pi) * sigma)
    assert draws.std() == pytest.approx(expected, rel=0.1)
    border = np.concatenate([draws[:, :4].ravel(), draws[:, :, -4:].ravel()])
    assert border.std() == pytest.approx(expected, rel=0.2)  # as strong as inside
    lag = round(1.5 * sigma)  # smoothed noise is correlated like a Gaussian of sigma * sqrt(2)
    for a, b in ((draws[:, lag:], draws[:, :-lag]), (draws[:, :, lag:], draws[:, :, :-lag])):
        assert (a * b).mean() / draws.var() == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.12)
    assert abs(np.corrcoef(draws[..., 0].ravel(), draws[..., 1].ravel())[0, 1]) < 0.15


def test_an_elastic_field_is_as_strong_as_albumentations():
    theirs = [
        generate_displacement_fields((160, 160), 100, 10, False, (0, 0), np.random.default_rng(seed), "uniform")
        for seed in range(12)
    ]
    ours = [elastic(np.random.default_rng(seed), 160, 100, 10) for seed in range(12)]
    inner = slice(40, -40)  # theirs is stronger at the border, where one noise value is repeated
    assert np.std(ours) == pytest.approx(np.std(np.array(theirs)[:, :, inner, inner]), rel=0.15)


def test_the_reports_field_never_folds():
    for seed in range(20):
        (dx_dv, dx_du), (dy_dv, dy_du) = (
            np.gradient(plane) for plane in np.moveaxis(elastic(np.random.default_rng(seed), 128, 100, 10), -1, 0)
        )
        assert ((1 + dx_du) * (1 + dy_dv) - dx_dv * dy_du).min() > 0.2


def test_bending_is_the_affine_map_of_displaced_points_and_leaves_the_focus_alone():
    rng = np.random.default_rng(3)
    field = rng.normal(0, 2, (40, 40, 2)).astype(np.float32)
    matrix = np.array([[0.9, 0.3, 12.0], [-0.2, 1.1, 20.0]])
    points = bent(matrix, field, u=30.2, v=9.7)
    for row, column in rng.integers(0, 40, (50, 2)):
        moved = np.array([column, row]) + field[row, column] - field[10, 30]
        np.testing.assert_allclose(points[row, column], matrix @ [*moved, 1], atol=1e-4)
    np.testing.assert_allclose(points[10, 30], matrix @ [30, 10, 1], atol=1e-4)


def test_bent_pixels_are_sampled_once_bilinear_and_masks_nearest():
    rng = np.random.default_rng(4)
    image = cv2.GaussianBlur(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8), (0, 0), 1.5)
    mask = rng.integers(0, 5, (50, 50), dtype=np.uint8)
    points = rng.uniform(1, 48, (20, 20, 2)).astype(np.float32)
    points[0, 0] = (-3, 10)  # outside
    seen, labels = bend(image, points), bend(mask, points, 255)
    assert labels[0, 0] == 255
    np.testing.assert_allclose(seen[0, 0].astype(float), image[10, 3], atol=1)  # mirrored
    for i, j in np.argwhere(np.ones((20, 20)))[1:]:
        x, y = points[i, j]
        left, top = int(x), int(y)
        a, b = x - left, y - top
        window = image[top : top + 2, left : left + 2].astype(float)  # (2, 2, 3)
        blend = (window * (np.outer([1 - b, b], [1 - a, a]))[..., None]).sum((0, 1))
        assert np.abs(seen[i, j] - blend).max() < 3.5  # OpenCV knows a 32nd of a pixel
        if abs(a - 0.5) > 0.05 and abs(b - 0.5) > 0.05:
            assert labels[i, j] == mask[round(float(y)), round(float(x))]


@pytest.mark.parametrize("corner", [(5.5, -4.0), (5.5, 20000.25), (5.5, 39985.75)])
def test_a_scene_too_long_for_remap_is_bent_like_a_piece_of_it(corner):
    """At the left border, inside and at the right border."""
    row, column = np.mgrid[:40, :40000]
    scene = np.dstack([row, np.abs(column % 256 - 128), column // 256]).astype(np.uint8)
    v, u = np.mgrid[:20, :20].astype(np.float32)
    points = np.dstack([u + np.float32(corner[1]), v + np.float32(corner[0])])
    first = min(max(int(corner[1]) - 50, 0), 40000 - 200)
    piece = cv2.remap(
        np.ascontiguousarray(scene[:, first : first + 200]),
        points - np.float32((first, 0)),
        None,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    np.testing.assert_array_equal(bend(scene, points), piece)
    labels = bend(scene[..., 0].copy(), points, 255)
    outside = (points[..., 0] < -0.5) | (points[..., 0] > 39999.5)
    np.testing.assert_array_equal(labels == 255, outside)
