"""Temperatures: known distortions are undone, the winner stays, figures equal slow sums over single pixels."""

import numpy as np
import pytest

from lib.ensemble.calibration import BINS, apply, cross_fit, fit, gather, reliability
from lib.tasks import BinaryMask, Label, MulticlassMask, MultilabelMask

ONE, FOUR = BinaryMask(("a",)), MulticlassMask(("a", "b", "c", "d"))


def levels_of(probs):
    return np.rint(255 * probs).astype(np.uint8)


def sigmoid_scene(rng, temperature=1.0, size=200):
    """Truth drawn from p, levels that state p ** (1 / temperature), normalised: T = 1 / temperature undoes it."""
    p = rng.beta(0.8, 1.2, (1, size, size))
    yes, no = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    return levels_of(yes / (yes + no)), (rng.random(p.shape) < p)[0].astype(np.uint8)


def softmax_scene(rng, temperature=1.0, size=150):
    p = rng.dirichlet(np.full(4, 0.8), (size, size)).transpose(2, 0, 1)
    truth = (rng.random((size, size)) > p.cumsum(0)).sum(0).clip(max=3).astype(np.uint8)
    stated = p ** (1 / temperature)
    return levels_of(stated / stated.sum(0)), truth


@pytest.mark.parametrize(("task", "scene"), [(ONE, sigmoid_scene), (FOUR, softmax_scene)])
@pytest.mark.parametrize("distortion", [1.0, 0.5, 2.0])
def test_a_known_distortion_is_undone_and_a_calibrated_set_stays(task, scene, distortion):
    evidence = gather(task, *scene(np.random.default_rng(0), distortion), limit=30_000)
    assert fit(evidence) == pytest.approx(1 / distortion, rel=0.05)


def test_reliability_equals_a_loop_over_pixels():
    rng = np.random.default_rng(1)
    levels, truth = sigmoid_scene(rng, 0.5, size=20)
    levels = levels.clip(1, 254)  # away from the floor, so that stated probabilities are the levels'
    found = reliability({0: gather(ONE, levels, truth)}, {0: 1.0})
    brier, loss, bins = 0.0, 0.0, [[] for _ in range(BINS)]
    for level, y in zip(levels.ravel().tolist(), truth.ravel().tolist()):
        p = level / 255
        brier += (p - y) ** 2 / truth.size
        loss -= np.log(p if y else 1 - p) / truth.size
        bins[min(level * BINS // 255, BINS - 1)].append((p, y))
    error = sum(abs(np.mean(b, 0) @ [1, -1]) * len(b) for b in bins if b) / truth.size
    assert (found.brier, found.log_loss, found.error) == pytest.approx((brier, loss, error))
    assert [n for n, _, _ in found.bins] == [len(b) for b in bins]


def test_reliability_of_classes_looks_at_the_winner():
    levels = np.array([[210, 45, 45], [45, 210, 210], [0, 0, 0], [0, 0, 0]], np.uint8)[:, None]  # (4, 1, 3)
    found = reliability({0: gather(FOUR, levels, np.array([[0, 1, 3]], np.uint8))}, {0: 1.0})
    n, stated, right = found.bins[12]  # of 0.8 to 0.867
    assert (n, right) == (3, pytest.approx(2 / 3)) and stated == pytest.approx(210 / 255, abs=2e-3)
    assert found.error == pytest.approx(abs(stated - 2 / 3))
    p, q = 210 / 255, 45 / 255
    assert found.brier == pytest.approx((2 * 2 * q**2 + p**2 + q**2 + 1) / 3, abs=3e-3)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.5, 6.0])
def test_no_class_overtakes_another_and_yes_stays_yes(temperature):
    levels, _ = softmax_scene(np.random.default_rng(2), size=60)
    tempered = apply(levels, temperature, exclusive=True).astype(int)
    winner = np.take_along_axis(tempered, levels.argmax(0)[None], 0)
    assert (winner >= tempered).all()
    order = np.sign(levels[:, None].astype(int) - levels[None]) * np.sign(tempered[:, None] - tempered[None])
    assert (order >= 0).all()
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    moved = apply(ramp, temperature, exclusive=False).ravel()
    assert (np.diff(moved.astype(int)) >= 0).all() and np.array_equal(moved >= 128, np.arange(256) >= 128)
    assert np.array_equal(moved[::-1], 255 - moved)


def test_apply_equals_the_formula_and_one_changes_nothing():
    levels, _ = softmax_scene(np.random.default_rng(3), size=30)
    levels = levels.clip(1)
    p = (levels / 255.0) ** (1 / 2.5)
    assert np.abs(apply(levels, 2.5, True) - 255 * p / p.sum(0)).max() <= 0.5 + 1e-9
    assert np.array_equal(apply(levels, 1.0, True), levels)
    p = np.arange(1, 255) / 255
    expected = 255 / (1 + np.exp(-np.log(p / (1 - p)) / 2.5))
    assert np.abs(apply(np.arange(256, dtype=np.uint8), 2.5, False)[1:-1] - expected).max() <= 0.5 + 1e-9


def test_evidence_is_additive_and_leaves_ignored_pixels_out():
    rng = np.random.default_rng(4)
    for task, scene in ((ONE, sigmoid_scene), (FOUR, softmax_scene)):
        levels, truth = scene(rng, size=24)
        truth[:5] = 255
        halves = gather(task, levels[:, :12], truth[:12]) + gather(task, levels[:, 12:], truth[12:])
        whole = gather(task, levels, truth)
        rows = [sorted(zip(e.levels.tolist(), e.truth.tolist(), e.times.tolist())) for e in (halves, whole)]
        assert rows[0] == rows[1] and whole.times.sum() == (truth != 255).sum()


def test_multilabel_channels_are_pooled_and_a_label_holds_for_all_frames():
    levels = np.array([[[10, 200]], [[30, 40]]], np.uint8)  # (2, 1, 2)
    both = gather(MultilabelMask(("a", "b")), levels, np.array([[2, 1]], np.uint8))
    assert sorted(zip(both.levels[:, 0].tolist(), both.truth.tolist())) == [(10, 0), (30, 1), (40, 0), (200, 1)]
    frames = gather(Label(("fake",)), np.array([[[9, 9, 8]]], np.uint8), np.ones((1, 1), np.uint8))
    assert (frames.levels[:, 0].tolist(), frames.times.tolist()) == ([8, 9], [1, 2])
    assert gather(FOUR, np.zeros((4, 9, 9), np.uint8), np.zeros((9, 9), np.uint8), limit=10).times.sum() == 10


def test_what_is_held_out_has_no_part_in_its_temperature():
    rng = np.random.default_rng(5)
    parts = {k: gather(ONE, *sigmoid_scene(rng, d, size=80)) for k, d in enumerate((0.5, 0.5, 2.0))}
    found = cross_fit(parts)
    assert found.without[2] == pytest.approx(2.0, rel=0.1) == fit(parts[0] + parts[1])
    alone = [reliability({k: parts[k]}, {k: found.without[k]}).log_loss for k in parts]
    assert found.after.log_loss == pytest.approx(np.mean(alone))
    same = cross_fit({k: parts[k] for k in (0, 1)})
    assert same.accepted and same.after.error < same.before.error / 3
    with pytest.raises(ValueError, match="at least 2 groups"):
        cross_fit({0: parts[0]})
    with pytest.raises(ValueError, match="none"):
        fit(gather(ONE, np.zeros((1, 2, 2), np.uint8), np.full((2, 2), 255, np.uint8)))
