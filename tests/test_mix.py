"""Mixing: shares and areas by their definition, masks like labels, and a step that decides everything."""

import numpy as np
import pytest
import torch

from lib.config.sections import Loss, Mix
from lib.errors import ConfigError
from lib.training.losses import Criterion
from lib.training.mix import box, cutmix, draw, mix, mixup, turn


def batch(count=4, size=(20, 30), classes=3, labels=False, seed=0):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (count, 6, *size), dtype=np.uint8))
    target = torch.from_numpy(rng.integers(0, classes, (count, *((1, 1) if labels else size)), dtype=np.uint8))
    teacher = torch.softmax(torch.randn(count, classes, *target.shape[1:], generator=torch.Generator().manual_seed(1)),
                            dim=1)  # fmt: skip
    return image, target, teacher


def seeds(alpha, low, high):
    """Seeds whose lam lies between."""
    return [seed for seed in range(60) if low < np.random.default_rng(seed).beta(alpha, alpha) < high]


@pytest.mark.parametrize("labels", [False, True])
def test_mixup_averages_images_and_teachers_and_keeps_both_targets(labels):
    image, target, teacher = batch(labels=labels)
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lam, turn = float(rng.beta(0.4, 0.4)), int(rng.integers(1, 4))
        mixed = mixup(image, target, np.random.default_rng(seed), 0.4, teacher)
        assert mixed.lam == lam and mixed.target is target
        for own, partner in enumerate(torch.arange(4).roll(turn).tolist()):
            assert own != partner
            expected = lam * image[own].double() + (1 - lam) * image[partner].double()
            assert torch.allclose(mixed.image[own].double(), expected, atol=1e-4)
            assert mixed.other[own].equal(target[partner])
            assert torch.allclose(mixed.teacher[own], lam * teacher[own] + (1 - lam) * teacher[partner])
        assert mixed.image.dtype == torch.float32 and 0 <= mixed.image.min() and mixed.image.max() <= 255
        seen.add(turn)
    assert seen == {1, 2, 3}


def test_the_loss_of_a_mixed_batch_is_the_cross_entropy_against_mixed_labels():
    image, target, _ = batch(labels=True, count=6)
    logits = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    mixed = mixup(image, target, np.random.default_rng(3), 1.0)
    one_hot = torch.nn.functional.one_hot
    soft = mixed.lam * one_hot(mixed.target.long(), 3) + (1 - mixed.lam) * one_hot(mixed.other.long(), 3)
    expected = torch.nn.functional.cross_entropy(logits.flatten(1), soft.view(6, 3))
    got = Criterion("multiclass", Loss(terms={"ce": 1}))(logits, mixed.target, mixed.other, mixed.lam)[0]
    assert got.item() == pytest.approx(expected.item(), rel=1e-5) and 0.1 < mixed.lam < 0.9


def slow_paste(values, partner, edges):
    """Each pixel from the partner where it lies in the box."""
    top, left, bottom, right = edges
    out = values.clone()
    for y in range(top, bottom):
        for x in range(left, right):
            out[..., y, x] = values[partner][..., y, x]
    return out


def test_cutmix_pastes_masks_and_teachers_as_it_pastes_images():
    image, target, teacher = batch()
    changed = 0
    for seed in seeds(1.0, 0.05, 0.95)[:12]:
        rng = np.random.default_rng(seed)
        lam, partner = float(rng.beta(1, 1)), torch.arange(4).roll(turn(4, rng))
        edges = box(20, 30, lam, rng)
        mixed = cutmix(image, target, np.random.default_rng(seed), 1.0, True, teacher)
        assert mixed.lam == 1 and mixed.other is None and mixed.image.dtype == torch.uint8
        for got, values in ((mixed.image, image), (mixed.target, target), (mixed.teacher, teacher)):
            assert got.equal(slow_paste(values, partner, edges))
        changed += not mixed.image.equal(image)
    assert changed > 8


def test_cutmix_of_labels_counts_the_pixels_that_remain():
    image = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 17, 23).contiguous()
    target = torch.arange(5, dtype=torch.uint8).view(5, 1, 1)
    shares = set()
    for seed in range(40):
        mixed = cutmix(image, target, np.random.default_rng(seed), 1.0, False)
        for own in range(5):
            remains = (mixed.image[own, 0] == own).sum().item() / (17 * 23)
            assert mixed.lam == remains
            if mixed.other is not None:
                assert (mixed.image[own, 0] == mixed.other[own]).sum().item() == 17 * 23 - round(remains * 17 * 23)
        shares.add(mixed.lam)
    assert len(shares) > 20


def test_masks_mix_as_labels_do():
    """Scenes of one class each: the mask's share of either class is what the label's lam says, in either mixing."""
    image = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    labels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1)
    masks = labels.expand(4, 16, 16).contiguous()
    logits = torch.randn(4, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    loss = Criterion("multiclass", Loss(terms={"ce": 1}))
    for settings in (Mix(mixup=1.0), Mix(cutmix=1.0)):
        for step in range(10):
            mask = mix(image, masks, True, settings, draw(0, step))
            label = mix(image, labels, False, settings, draw(0, step))
            assert mask.image.equal(label.image)
            dense = loss(logits.expand(4, 4, 16, 16), mask.target, mask.other, mask.lam)[0]
            single = loss(logits, label.target, label.other, label.lam)[0]
            assert dense.item() == pytest.approx(single.item(), rel=1e-5)


def test_a_share_of_one_is_no_mixing():
    image, target, teacher = batch()

    class Certain:
        """Beta of an alpha near 0, as often."""

        def beta(self, *alphas):
            return 1.0

        def integers(self, *ends):
            return 1

    for mixed in (mixup(image, target, Certain(), 0.2, teacher), cutmix(image, target, Certain(), 1.0, True, teacher),
                  cutmix(image, target, Certain(), 1.0, False, teacher)):  # fmt: skip
        assert mixed.image is image and mixed.target is target and mixed.teacher is teacher
        assert mixed.lam == 1 and mixed.other is None


def test_the_box_has_the_share_that_was_drawn_and_its_centre_lies_anywhere():
    rng = np.random.default_rng(0)
    boxes = np.array([box(100, 200, 0.75, rng) for _ in range(2000)])
    top, left, bottom, right = boxes.T
    assert top.min() == left.min() == 0 and bottom.max() == 100 and right.max() == 200
    inside = (top > 0) & (left > 0) & (bottom < 100) & (right < 200)
    assert set(bottom[inside] - top[inside]) == {50} and set(right[inside] - left[inside]) == {100}
    assert abs(inside.mean() - 0.25) < 0.05  # a centre at least half a box from every edge
    assert box(10, 10, 1.0, rng)[2] - box(10, 10, 1.0, rng)[0] <= 10
    assert box(10, 10, 0.0, np.random.default_rng(1)) != (0, 0, 0, 0)


def test_seed_and_step_decide_everything():
    image, target, teacher = batch()
    settings = Mix(mixup=0.4, cutmix=1.0, probability=0.7)
    steps = [mix(image, target, True, settings, draw(5, step), teacher) for step in range(60)]
    for step in (59, 3, 20):  # a resumed run takes up anywhere
        again = mix(image, target, True, settings, draw(5, step), teacher)
        assert again.image.equal(steps[step].image) and again.lam == steps[step].lam
    plain = [mixed.image is image for mixed in steps]
    up = [mixed.lam < 1 for mixed in steps]
    pasted = [mixed.lam == 1 and mixed.image is not image for mixed in steps]
    assert 8 < sum(plain) < 32 and 10 < sum(up) < 32 and 8 < sum(pasted) < 32
    assert len({mixed.lam for mixed in steps}) == sum(up) + 1
    others = [mix(image, target, True, settings, draw(6, step)).lam for step in range(60)]
    assert others != [mixed.lam for mixed in steps]


def test_lam_follows_the_beta_distribution():
    image, target, _ = batch(2, (2, 2))
    lams = np.array([mix(image, target, True, Mix(mixup=0.2), draw(0, step)).lam for step in range(1500)])
    assert lams.mean() == pytest.approx(0.5, abs=0.04)
    assert lams.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.015)


def test_every_process_draws_the_same_and_mixes_its_own_share():
    image, target, _ = batch(8)
    for settings in (Mix(mixup=0.4), Mix(cutmix=1.0)):
        for step in range(5):
            halves = [mix(image[part], target[part], True, settings, draw(0, step)) for part in (slice(4), slice(4, 8))]
            assert halves[0].lam == halves[1].lam
            swapped = mix(image[torch.arange(8).roll(4)][:4], target[4:], True, settings, draw(0, step))
            assert swapped.image.equal(halves[1].image) and swapped.target.equal(halves[1].target)


def test_nothing_is_mixed_by_default_and_one_sample_alone_cannot_be():
    image, target, _ = batch(1)
    assert mix(image, target, True, Mix(), draw(0, 0)).image is image
    with pytest.raises(ConfigError, match="at least two samples"):
        mix(image, target, True, Mix(mixup=0.2), draw(0, 0))


def test_the_memory_format_stays():
    image, target, _ = batch()
    image = image.to(memory_format=torch.channels_last)
    for settings in (Mix(mixup=0.4), Mix(cutmix=1.0)):
        assert mix(image, target, True, settings, draw(0, 1)).image.is_contiguous(memory_format=torch.channels_last)
