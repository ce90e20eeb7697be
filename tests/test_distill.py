"""Distillation against its definition in float64, timm's form of it, its laws, and what a file keeps of a teacher."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lib.config.sections import Distill, Loss
from lib.scenes.probs import quantise, read_logits, write_logits
from lib.training.distill import distill, soften
from lib.training.losses import Criterion
from lib.training.mix import mixup

CHANNELS = {"binary": 1, "multiclass": 4, "multilabel": 3}
PIXEL_TERM = {"binary": "bce", "multiclass": "ce", "multilabel": "bce"}


def activate(kind, logits):
    return torch.softmax(logits, 1) if kind == "multiclass" else torch.sigmoid(logits)


def pair(kind, shape=(2, 5, 4), scale=1.0):
    generator = torch.Generator().manual_seed(0)
    shape = (shape[0], CHANNELS[kind], *shape[1:])
    return tuple(torch.randn(shape, generator=generator) * scale for _ in range(2))


def softmax(logits, temperature):
    powers = [math.exp(r / temperature) for r in logits]
    return [power / sum(powers) for power in powers]


def taught(logits, teacher, temperature, kind, *more):
    return distill(logits, soften(teacher, temperature, kind), temperature, kind, *more)


def slow(kind, logits, teacher, temperature, valid):
    """T^2 times the cross-entropy, pixel by pixel; a yes-or-no channel is a softmax of (0, z)."""
    each = []
    for b, y, x in np.ndindex(*valid.shape):
        z, r = logits[b, :, y, x].double().tolist(), teacher[b, :, y, x].double().tolist()
        questions = [(z, r)] if kind == "multiclass" else [([0.0, a], [0.0, q]) for a, q in zip(z, r, strict=True)]
        losses = []
        for a, q in questions:
            total = sum(math.exp(v / temperature) for v in a)
            log_p = [v / temperature - math.log(total) for v in a]
            losses.append(-sum(s * t for s, t in zip(softmax(q, temperature), log_p, strict=True)))
        if valid[b, y, x]:
            each.append(np.mean(losses))
    return temperature**2 * np.mean(each)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("kind", CHANNELS)
def test_distillation_by_its_definition(kind, temperature):
    logits, teacher = pair(kind)
    valid = torch.arange(40).view(2, 5, 4) % 3 > 0
    expected = slow(kind, logits, teacher, temperature, valid)
    assert taught(logits, teacher, temperature, kind, valid).item() == pytest.approx(expected, rel=1e-5)
    labels, teacher = pair(kind, (6, 1, 1))
    valid = torch.ones(6, 1, 1, dtype=torch.bool)
    expected = slow(kind, labels, teacher, temperature, valid)
    assert taught(labels, teacher, temperature, kind).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("kind", CHANNELS)
def test_a_teacher_equal_to_the_student_teaches_nothing(kind, temperature):
    logits, other = pair(kind)
    logits.requires_grad_()
    gradients = []
    for teacher in (logits, other, logits.half()):  # the last: what is on disk of it
        gradients.append(torch.autograd.grad(taught(logits, teacher, temperature, kind), logits)[0].abs().max())
    assert gradients[0] < 1e-5 * gradients[1]
    assert gradients[2] < 1e-3 * gradients[1]


@pytest.mark.parametrize("kind", CHANNELS)
def test_at_temperature_one_it_is_cross_entropy_against_soft_labels(kind):
    logits, teacher = pair(kind)
    if kind == "multiclass":
        expected = nn.functional.cross_entropy(logits, activate(kind, teacher))
    else:
        expected = nn.functional.binary_cross_entropy_with_logits(logits, activate(kind, teacher))
    assert taught(logits, teacher, 1.0, kind).item() == pytest.approx(expected.item(), rel=1e-5)


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
    """Its value lacks an entropy."""
    task = pytest.importorskip("timm.task", reason="timm distils from 1.0.24 on")
    logits, teacher = pair("multiclass", (6, 1, 1))
    logits.requires_grad_()
    own = taught(logits, teacher, temperature, "multiclass")
    student = logits.flatten(1)
    timms = task.LogitDistillationTask(Known(student), Known(teacher.flatten(1)), nn.CrossEntropyLoss(),
                                       distill_loss_weight=1.0, temperature=temperature, verbose=False)  # fmt: skip
    theirs = timms(torch.zeros(6, 3, 1, 1), torch.zeros(6, dtype=torch.int64))["kd_loss"]
    soft = (teacher.flatten(1) / temperature).softmax(1)
    entropy = temperature**2 * -(soft * soft.log()).sum(1).mean()
    assert own.item() == pytest.approx((theirs + entropy).item(), rel=1e-5)
    own, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (own, theirs))
    assert own.abs().max() > 0.01
    assert torch.allclose(own, theirs, rtol=1e-3, atol=1e-5)


def test_certain_teachers_are_finite():
    """At the ends of float16 a teacher is as certain as can be."""
    teacher = torch.tensor([0.0, -65504.0, -65504.0], dtype=torch.float16).view(1, 3, 1, 1)
    for temperature in (1.0, 20.0):
        logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
        value = taught(logits, teacher, temperature, "multiclass")
        gradient = torch.autograd.grad(value, logits)[0].flatten()
        assert gradient.tolist() == pytest.approx([temperature * (1 / 3 - s) for s in (1, 0, 0)], rel=1e-4)
        yes = torch.zeros(1, 1, 1, 1, requires_grad=True)
        for certain in (-1, 1):
            value = taught(yes, torch.full_like(yes, 65504.0 * certain), temperature, "binary")
            assert value.isfinite() and torch.autograd.grad(value, yes)[0].sign().item() == -certain


@pytest.mark.parametrize("kind", CHANNELS)
def test_the_gradient_survives_in_logits_on_disk_and_not_in_levels(tmp_path, kind):
    """At T = 20 the tail of a teacher is what it has to say, and levels cut the tail off.

    Students and teachers of a sure network: logits of standard deviation 6. The levels are read as their logarithm,
    raised to a quarter of a level, as students once did: an error of 22 % (binary, multilabel) and 40 % (four classes),
    against 0.015 % of float16.
    """
    temperature, names = 20.0, [f"class_{k}" for k in range(CHANNELS[kind])]
    student, teacher = pair(kind, (1, 40, 30), scale=6.0)
    student.requires_grad_()

    def gradient(logits):
        return torch.autograd.grad(taught(student, logits.double(), temperature, kind), student)[0]

    exact = gradient(teacher)

    def error(logits):
        return ((gradient(logits) - exact).norm() / exact.norm()).item()

    write_logits(tmp_path / "a.tif", teacher[0].numpy(), names)
    kept, read = read_logits(tmp_path / "a.tif")
    assert kept.dtype == np.float16 and read == tuple(names)
    assert error(torch.from_numpy(kept)[None]) < 0.001
    levels = torch.from_numpy(quantise(activate(kind, teacher).numpy())).double() / 255
    floor = 0.25 / 255
    assert error(levels.clamp(min=floor).log() if kind == "multiclass" else torch.logit(levels, eps=floor)) > 0.2


def test_a_mixed_teacher_is_the_mixture_of_what_each_teaches():
    logits, teacher = pair("multiclass", (4, 1, 1))
    target = torch.zeros(4, 1, 1, dtype=torch.uint8)
    soft = soften(teacher, 20.0, "multiclass")
    mixed = mixup(torch.zeros(4, 3, 8, 8), target, np.random.default_rng(0), 0.4, soft)
    order = [next(k for k in range(4) if k != own and torch.allclose(
        mixed.teacher[own], mixed.lam * soft[own] + (1 - mixed.lam) * soft[k])) for own in range(4)]  # fmt: skip
    own, others = (distill(logits, part, 20.0, "multiclass") for part in (soft, soft[order]))
    expected = mixed.lam * own + (1 - mixed.lam) * others
    assert distill(logits, mixed.teacher, 20.0, "multiclass").item() == pytest.approx(expected.item(), rel=1e-6)


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
    teacher = soften(teacher, 4.0, kind)
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
        taught(logits, teacher[:1], 2.0, "binary")
    for wrong in ((0, 2), (1, 0)):
        with pytest.raises(ValidationError, match="greater than 0"):
            teaching(*wrong)
