"""Distillation against its definition in float64, timm's form of it, and its laws."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lib.config.sections import Distill, Loss
from lib.training.distill import FLOOR, distill
from lib.training.losses import Criterion

CHANNELS = {"binary": 1, "multiclass": 4, "multilabel": 3}
PIXEL_TERM = {"binary": "bce", "multiclass": "ce", "multilabel": "bce"}


def activate(kind, logits):
    return torch.softmax(logits, 1) if kind == "multiclass" else torch.sigmoid(logits)


def pair(kind, shape=(2, 5, 4), scale=1.0):
    generator = torch.Generator().manual_seed(0)
    shape = (shape[0], CHANNELS[kind], *shape[1:])
    student, teacher = (torch.randn(shape, generator=generator) * scale for _ in range(2))
    return student, activate(kind, teacher)


def soften(probabilities, temperature):
    """Softmax of log p / T: each p to the power of 1 / T, made to add up to 1."""
    powers = [max(p, FLOOR) ** (1 / temperature) for p in probabilities]
    return [power / sum(powers) for power in powers]


def slow(kind, logits, teacher, temperature, valid):
    """T^2 times the cross-entropy, pixel by pixel; a yes-or-no channel is a softmax of (0, z)."""
    each = []
    for b, y, x in np.ndindex(*valid.shape):
        z, p = logits[b, :, y, x].double().tolist(), teacher[b, :, y, x].double().tolist()
        questions = [(z, p)] if kind == "multiclass" else [([0.0, a], [1 - q, q]) for a, q in zip(z, p, strict=True)]
        losses = []
        for a, q in questions:
            total = sum(math.exp(v / temperature) for v in a)
            log_p = [v / temperature - math.log(total) for v in a]
            losses.append(-sum(s * t for s, t in zip(soften(q, temperature), log_p, strict=True)))
        if valid[b, y, x]:
            each.append(np.mean(losses))
    return temperature**2 * np.mean(each)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("kind", CHANNELS)
def test_distillation_by_its_definition(kind, temperature):
    logits, teacher = pair(kind)
    valid = torch.arange(40).view(2, 5, 4) % 3 > 0
    expected = slow(kind, logits, teacher, temperature, valid)
    assert distill(logits, teacher, temperature, kind, valid).item() == pytest.approx(expected, rel=1e-5)
    labels, teacher = pair(kind, (6, 1, 1))
    valid = torch.ones(6, 1, 1, dtype=torch.bool)
    expected = slow(kind, labels, teacher, temperature, valid)
    assert distill(labels, teacher, temperature, kind).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("kind", CHANNELS)
def test_a_teacher_equal_to_the_student_teaches_nothing(kind, temperature):
    logits, other = pair(kind)
    logits.requires_grad_()
    gradients = []
    for teacher in (activate(kind, logits.detach()), other):
        gradients.append(torch.autograd.grad(distill(logits, teacher, temperature, kind), logits)[0].abs().max())
    assert gradients[0] < 1e-5 * gradients[1]
    exact = activate(kind, logits.detach())
    levels = (exact * 255).round() / 255  # what is on disk of it
    rounded = torch.autograd.grad(distill(logits, levels, temperature, kind), logits)[0].abs().max()
    assert rounded < 0.05 * gradients[1]


@pytest.mark.parametrize("kind", CHANNELS)
def test_at_temperature_one_it_is_cross_entropy_against_soft_labels(kind):
    logits, teacher = pair(kind)
    if kind == "multiclass":
        expected = nn.functional.cross_entropy(logits, teacher)
    else:
        expected = nn.functional.binary_cross_entropy_with_logits(logits, teacher)
    assert distill(logits, teacher, 1.0, kind).item() == pytest.approx(expected.item(), rel=1e-5)


class Known(nn.Module):
    """A network that gives these logits whatever it sees."""

    num_classes, in_chans = 4, 3
    pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_gradient_is_timms(temperature):
    """timm's teachers give logits, for which the logarithms of probabilities serve; its value lacks an entropy."""
    task = pytest.importorskip("timm.task", reason="timm distils from 1.0.24 on")
    logits, teacher = pair("multiclass", (6, 1, 1))
    logits.requires_grad_()
    own = distill(logits, teacher, temperature, "multiclass")
    student = logits.flatten(1)
    timms = task.LogitDistillationTask(Known(student), Known(teacher.log().flatten(1)), nn.CrossEntropyLoss(),
                                       distill_loss_weight=1.0, temperature=temperature, verbose=False)  # fmt: skip
    theirs = timms(torch.zeros(6, 3, 1, 1), torch.zeros(6, dtype=torch.int64))["kd_loss"]
    soft = (teacher.log().flatten(1) / temperature).softmax(1)
    entropy = temperature**2 * -(soft * soft.log()).sum(1).mean()
    assert own.item() == pytest.approx((theirs + entropy).item(), rel=1e-5)
    own, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (own, theirs))
    assert own.abs().max() > 0.01
    assert torch.allclose(own, theirs, rtol=1e-3, atol=1e-5)


def test_certain_teachers_are_finite_and_softened_from_the_floor():
    teacher = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    for temperature in (1.0, 20.0):
        logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
        value = distill(logits, teacher, temperature, "multiclass")
        gradient = torch.autograd.grad(value, logits)[0].flatten()
        soft = soften([1, 0, 0], temperature)
        assert gradient.tolist() == pytest.approx([temperature * (1 / 3 - s) for s in soft], rel=1e-4)
        yes = torch.zeros(1, 1, 1, 1, requires_grad=True)
        for certain in (0.0, 1.0):
            value = distill(yes, torch.full_like(yes, certain), temperature, "binary")
            assert value.isfinite() and torch.autograd.grad(value, yes)[0].sign().item() == 1 - 2 * certain


def teaching(weight, temperature):
    return Distill(experiment="teacher", weight=weight, temperature=temperature)


@pytest.mark.parametrize("kind", CHANNELS)
def test_a_loss_adds_it_by_its_weight_at_the_pixels_with_truth(kind):
    logits, teacher = pair(kind)
    target = torch.ones(2, 5, 4, dtype=torch.uint8)
    target[0, 2] = 255
    other = torch.zeros_like(target)
    other[1, 3] = 255
    terms = {PIXEL_TERM[kind]: 1.0}
    plain, loss = Criterion(kind, Loss(terms=terms)), Criterion(kind, Loss(terms=terms), teaching(0.3, 4.0))
    total, values = loss(logits, target, teacher=teacher)
    expected = distill(logits, teacher, 4.0, kind, target != 255)
    assert values["distill"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert total.item() == pytest.approx((plain(logits, target)[0] + 0.3 * expected).item(), rel=1e-6)
    mixed = loss(logits, target, other, 0.25, teacher)[0]
    expected = distill(logits, teacher, 4.0, kind, (target != 255) & (other != 255))
    rest = plain(logits, target, other, 0.25)[0]
    assert mixed.item() == pytest.approx((rest + 0.3 * expected).item(), rel=1e-6)
    logits.requires_grad_()
    ignored = (target == 255)[:, None].expand_as(logits)
    assert not torch.autograd.grad(loss(logits, target, teacher=teacher)[0], logits)[0][ignored].any()


def test_a_teacher_and_its_weight_go_together():
    logits, teacher = pair("binary")
    target = torch.ones(2, 5, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="go together"):
        Criterion("binary", Loss(terms={"bce": 1}))(logits, target, teacher=teacher)
    with pytest.raises(ValueError, match="go together"):
        Criterion("binary", Loss(terms={"bce": 1}), teaching(1, 2))(logits, target)
    with pytest.raises(ValueError, match="does not fit logits"):
        distill(logits, teacher[:1], 2.0, "binary")
    for wrong in ((0, 2), (1, 0)):
        with pytest.raises(ValidationError, match="greater than 0"):
            teaching(*wrong)
