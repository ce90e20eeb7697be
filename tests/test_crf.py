"""The guided filter against regressions window by window, mean field against exact messages, outlines against edges."""

import numpy as np
import pytest
from pydantic import ValidationError

from lib.ensemble.crf import Crf, Guide, refine


def scene(seed=0, size=64, classes=2):
    """A disc (and a bar) on a plain ground: image, truth, and levels that are noisy and blurred over the outline."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    truth = ((y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 3.2) ** 2).astype(np.uint8)
    if classes == 3:
        truth[: size // 8] = 2
    colours = np.array([[60, 90, 60], [170, 120, 90], [40, 60, 150]])
    image = (colours[truth] + rng.normal(0, 4, (size, size, 3))).clip(0, 255).astype(np.uint8)
    scores = 1.2 * (np.arange(classes)[:, None, None] == truth) + rng.normal(0, 1.0, (classes, size, size))
    probs = np.exp(scores) / np.exp(scores).sum(0)
    return image, truth, np.rint(255 * probs).astype(np.uint8)


def iou(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def test_guided_filter_equals_a_regression_in_every_window():
    rng = np.random.default_rng(1)
    image, plane, radius = rng.integers(0, 256, (13, 14, 3), dtype=np.uint8), rng.random((13, 14), np.float32), 2
    found = Guide(image, radius, 10.0).filter(plane)
    colours = image / 255.0
    pixel = (6, 7)  # all windows that hold it lie inside
    lines = []
    for i, j in np.ndindex(2 * radius + 1, 2 * radius + 1):
        top, left = pixel[0] - radius + i - radius, pixel[1] - radius + j - radius
        window = np.s_[top : top + 2 * radius + 1, left : left + 2 * radius + 1]
        x, y = colours[window].reshape(-1, 3), plane[window].ravel()
        slope = np.linalg.solve(np.cov(x.T, bias=True) + (10 / 255) ** 2 * np.eye(3),
                                ((x - x.mean(0)) * (y - y.mean())[:, None]).mean(0))  # fmt: skip
        lines.append(slope @ (colours[pixel] - x.mean(0)) + y.mean())
    assert found[pixel] == pytest.approx(np.mean(lines), abs=1e-4)


def test_noisy_probabilities_come_to_respect_the_edges_of_the_image():
    image, truth, levels = scene()
    before, refined = levels[1] >= 128, refine(levels[1:], image, exclusive=False)
    assert iou(before, truth > 0) < 0.75
    assert iou(refined[0] >= 128, truth > 0) > 0.97
    blurred = refine(levels[1:], image, exclusive=False, settings=Crf(alike=0.0, near=8.0))
    assert iou(blurred[0] >= 128, truth > 0) < iou(refined[0] >= 128, truth > 0)


def test_three_classes_improve_each():
    image, truth, levels = scene(1, classes=3)
    refined = refine(levels, image, exclusive=True)
    for c in range(3):
        before, after = (iou(array.argmax(0) == c, truth == c) for array in (levels, refined))
        assert after > 0.9 > before


def test_two_exclusive_classes_equal_a_yes_or_no():
    image, _, levels = scene(2, size=32)
    pair = np.stack([255 - levels[1], levels[1]])
    two, one = refine(pair, image, exclusive=True), refine(pair[1:], image, exclusive=False)
    assert np.abs(two[1].astype(int) - one[0]).max() <= 1
    both = refine(pair, image, exclusive=False)
    assert np.array_equal(both[1:], one)  # channels that do not exclude one another do not hear one another


def test_mean_field_agrees_with_exact_messages_of_every_pixel_to_every_other():
    image, truth, levels = scene(3, size=28)
    y, x = np.mgrid[:28, :28].reshape(2, -1)
    apart = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 2
    colour = ((image.reshape(-1, 1, 3).astype(float) - image.reshape(1, -1, 3)) ** 2).sum(2) / 2
    kernels = [2.0 * _rows(np.exp(-apart / 3.0**2)), 6.0 * _rows(np.exp(-apart / 8.0**2 - colour / 20.0**2))]
    p = levels[1].ravel().clip(1, 254) / 255
    belief = p
    for _ in range(5):
        heard = sum(kernel @ (2 * belief - 1) for kernel in kernels)
        belief = 1 / (1 + np.exp(-heard) * (1 - p) / p)
    exact = belief.reshape(28, 28) >= 0.5
    ours = refine(levels[1:], image, exclusive=False, settings=Crf(alike_radius=8))[0] >= 128
    assert (exact == ours).mean() > 0.97 and (exact == truth).mean() > 0.97 > (levels[1] >= 128).mean()


def _rows(kernel):
    return kernel / kernel.sum(1, keepdims=True)


def test_a_uniform_image_only_smooths():
    rng = np.random.default_rng(4)
    grey = np.full((40, 40, 3), 90, np.uint8)
    flat = np.full((1, 40, 40), 200, np.uint8)
    assert len(np.unique(refine(flat, grey, exclusive=False))) == 1
    guided = Guide(grey, 3, 10.0)
    plane = rng.random((40, 40), np.float32)
    padded = np.pad(plane, 6, mode="symmetric")
    weights = np.convolve(np.full(7, 1 / 7), np.full(7, 1 / 7))  # two boxes, one after the other
    rows = np.stack([np.convolve(row, weights, "valid") for row in padded])
    smooth = np.stack([np.convolve(column, weights, "valid") for column in rows.T]).T
    assert np.allclose(guided.filter(plane), smooth, atol=1e-4)
    noisy = np.rint(255 * rng.beta(2, 2, (1, 40, 40))).astype(np.uint8)
    mirrored = refine(noisy[:, ::-1], grey, exclusive=False)[:, ::-1]
    refined = refine(noisy, grey, exclusive=False)
    assert np.abs(mirrored.astype(int) - refined).max() <= 1
    edges = [(np.diff(array[0] >= 128, axis=1) != 0).mean() for array in (noisy, refined)]
    assert edges[1] < edges[0] / 3


def test_it_repeats_itself_and_changes_nothing_when_off():
    image, _, levels = scene(5, size=32)
    kept = levels.copy()
    assert np.array_equal(refine(levels, image, True), refine(levels, image, True)) and np.array_equal(levels, kept)
    assert np.array_equal(refine(levels, image, True, settings=Crf(iterations=0)), levels)
    assert np.array_equal(refine(levels, image, True, settings=Crf(near=0.0, alike=0.0)), levels)
    with pytest.raises(ValueError, match="of their size"):
        refine(levels, image[1:], True)
    with pytest.raises(ValidationError, match="greater than 0"):
        Crf(alike_radius=0)
