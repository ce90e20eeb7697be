"""Stains: a jitter in optical density, and normalisation to a reference."""

import cv2
import numpy as np
import pytest
from skimage.color import rgb_from_hed

from lib.scenes.augment import StainJitter
from lib.scenes.stain import StainStats, measure, normalise, restain

PURPLE_PINK = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # Ruifrok & Johnston
OTHER_LAB = 1.5 * np.array([[0.55, 0.78, 0.30], [0.25, 0.92, 0.30]])  # other dyes, laid on thicker


def tissue(stains: np.ndarray = PURPLE_PINK, seed: int = 0) -> np.ndarray:
    """Light through two dyes whose amounts lie in blobs, and glass on the right: (80, 100, 3) uint8."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(80, 100, 2)), (0, 0), 3)
    amounts = np.clip(0.35 + 2.5 * noise, 0.05, None)
    amounts[:, 75:] = 0
    return np.rint(255 * np.exp(-amounts @ stains)).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_a_restaining_of_nothing_changes_nothing():
    brown = np.full((4, 4, 3), (150, 100, 50), np.uint8)  # neither haematoxylin nor eosin
    for image in (tissue(), brown, np.random.default_rng(0).integers(1, 256, (30, 30, 3), dtype=np.uint8)):
        assert np.abs(restain(image, (1, 1, 1), (0, 0, 0)).astype(int) - image).max() <= 1


@pytest.mark.parametrize("stain", range(3))
def test_twice_the_stain_is_twice_its_optical_density(stain):
    amounts = np.linspace(0, 0.8, 50)[None, :, None]
    light = 255 * np.exp(-amounts * rgb_from_hed[stain])  # (1, 50, 3)
    factors, shifts = np.ones(3), np.zeros(3)
    factors[stain], shifts[stain] = 2.0, 0.1
    out = restain(np.rint(light).astype(np.uint8), factors, shifts)
    expected = 255 * np.exp(-(2 * amounts + 0.1) * rgb_from_hed[stain])
    assert np.abs(out - expected).max() < 2.5  # rounding of the input, magnified


def test_jitter_draws_within_its_limits_and_leaves_glass_white():
    jitter = StainJitter(scale=0.3, shift=0.1)
    jitter.set_random_seed(0)
    drawn = [jitter.get_params() for _ in range(500)]
    factors, shifts = (np.array([d[key] for d in drawn]) for key in ("factors", "shifts"))
    assert factors.shape == shifts.shape == (500, 3)
    assert 0.7 <= factors.min() < 0.71 and 1.29 < factors.max() <= 1.3
    assert -0.1 <= shifts.min() < -0.098 and 0.098 < shifts.max() <= 0.1
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.15  # each stain on its own
    white = np.full((4, 4, 3), 255, np.uint8)
    assert restain(white, (1.3, 0.7, 1.3), (0, 0, 0)).min() == 255
    assert restain(white, (1, 1, 1), (-0.1, -0.1, -0.1)).min() == 255  # saturates and does not wrap


def test_the_reference_maps_to_itself():
    image = tissue()
    out = normalise(image, measure(image))
    assert out.dtype == np.uint8 and np.abs(out.astype(int) - image).max() <= 1
    np.testing.assert_array_equal(out, normalise(image, measure(image)))


def test_two_stainings_of_one_tissue_come_together():
    one, two, other = tissue(), tissue(OTHER_LAB), tissue(seed=5)
    before = distance(one, two)
    assert before > 10
    assert distance(one, normalise(two, measure(one))) < 0.4 * before
    reference = measure(other)
    assert distance(normalise(one, reference), normalise(two, reference)) < 0.4 * before


def test_normalised_tissue_has_the_references_colours():
    reference = measure(tissue(seed=7))
    got = measure(normalise(tissue(OTHER_LAB), reference))
    np.testing.assert_allclose(got.mean, reference.mean, atol=1.5)
    np.testing.assert_allclose(got.std, reference.std, rtol=0.15)


def test_statistics_are_those_of_the_tissue_alone():
    image = tissue()
    stats = measure(image)
    lab = cv2.cvtColor(image[:, :75].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = lab[lab[..., 0] < 85]  # all but the palest
    np.testing.assert_allclose(stats.mean, lab.mean(0), atol=2)
    more_glass = np.concatenate([image, np.full((80, 300, 3), 255, np.uint8)], 1)
    np.testing.assert_allclose(measure(more_glass), stats, rtol=1e-4)


def test_glass_stays_glass():
    white = np.full((20, 20, 3), 255, np.uint8)
    dark = StainStats((40.0, 20.0, -20.0), (10.0, 5.0, 5.0))
    assert measure(white) is None
    np.testing.assert_array_equal(normalise(white, dark), white)
    out = normalise(tissue(), dark)
    assert out[:, 75:].min() >= 254 and out[:, :75].mean() < tissue()[:, :75].mean()


def test_an_even_scene_is_not_blown_up():
    image = np.full((20, 20, 3), (180, 120, 160), np.uint8)
    image[::2] += 1
    out = normalise(image, StainStats((60.0, 20.0, -10.0), (20.0, 10.0, 10.0)))
    assert np.ptp(out.reshape(-1, 3).astype(int), axis=0).max() < 40
