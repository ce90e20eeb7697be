"""Parameter groups, schedules and freezing, against their formulas and against timm and torch."""

import copy
import math
import pickle

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from lib.config.sections import Optimizer, Schedule
from lib.models import build
from lib.training.optim import (
    LearningRate,
    Plateau,
    build_optimizer,
    freeze,
    is_frozen,
    layers_below_head,
    param_groups,
    peak_lr,
    set_lr,
    unfreeze,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def step(net, optimizer=None):
    loss = net(torch.randn(2, 3, 8, 8)).square().mean()
    if optimizer:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---- parameter groups and optimizers ------------------------------------------------------------------


def test_norms_and_biases_do_not_decay():
    net = build("siamese", classes=5, images=2, encoder="tu-test_convnext", decoder_channels=(8, 8, 8, 8, 8))
    optimizer = Optimizer(lr=1e-3, weight_decay=0.01, encoder_lr_scale=0.1)
    groups = {group["name"]: group for group in param_groups(net, optimizer, 1e-3)}
    decayed = {id(p) for name in ("encoder", "rest") for p in groups[name]["params"]}
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    for module in net.modules():
        is_norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or name == "bias":
                assert id(parameter) not in decayed
            elif isinstance(module, nn.Conv2d | nn.Linear):
                assert id(parameter) in decayed
    encoder = {id(p) for p in net.encoder.parameters()}
    for name, group in groups.items():
        assert all((id(p) in encoder) == name.startswith("encoder") for p in group["params"])
        assert group["weight_decay"] == (0.0 if "no decay" in name else 0.01)
        assert group["lr"] == pytest.approx(1e-4 if name.startswith("encoder") else 1e-3)


def test_decay_shrinks_weights_and_only_them():
    net = Net()
    net.requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    optimizer = build_optimizer(net, Optimizer(name="adamw", lr=0.1, weight_decay=0.5), 0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6)


def test_sgd_is_nesterov():
    net = nn.Linear(1, 1, bias=False)
    start = net.weight.item()
    optimizer = build_optimizer(net, Optimizer(name="sgd", lr=0.1), 0.1)
    velocity, expected = 0.0, start
    for gradient in (1.0, 2.0, -1.0):
        net.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * (gradient + 0.9 * velocity)
    assert net.weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(name):
    torch.manual_seed(1)
    one = Net()
    first = build_optimizer(one, Optimizer(name=name, lr=0.01, weight_decay=0.1), 0.01)
    step(one, first)
    two = copy.deepcopy(one)
    second = build_optimizer(two, Optimizer(name=name, lr=0.01, weight_decay=0.1), 0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for net, optimizer in ((one, first), (two, second)):
        torch.manual_seed(2)
        set_lr(optimizer, 0.003)
        step(net, optimizer)
    assert all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_a_gradient_that_overflowed_moves_nothing():
    net = Net()
    optimizer = build_optimizer(net, Optimizer(name="adamw", lr=0.1), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(net.state_dict())
    for factor, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(factor * net.head.weight.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert net.head.weight.equal(before["head.weight"]) != moves
    assert torch.allclose(net.head.weight, before["head.weight"] - 0.1, atol=1e-6)  # Adam's first step is lr * sign


def test_without_the_exception_everything_decays():
    groups = param_groups(Net(), Optimizer(lr=1e-3, weight_decay=0.01, no_bias_decay=False), 1e-3)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("encoder", 0.01), ("rest", 0.01)]
    assert sum(len(group["params"]) for group in groups) == len(list(Net().parameters()))


def test_the_learning_rate_is_scaled_with_the_batch():
    assert peak_lr(Optimizer(lr_base=0.1), 1024) == pytest.approx(0.4)  # He et al. 2018: 0.1 * b / 256
    assert peak_lr(Optimizer(lr_base=0.1, lr_base_batch=64), 8) == pytest.approx(0.0125)
    assert peak_lr(Optimizer(lr=0.1), 8) == 0.1


# ---- layer-wise decay ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "test_resnet"])
def test_layer_decay_of_a_classifier_is_timms(name):
    theirs = timm.create_model(name, num_classes=2)
    scales = {id(p): group["lr_scale"] for group in param_groups_layer_decay(theirs, layer_decay=0.5)
              for p in group["params"]}  # fmt: skip
    expected = {name: scales[id(p)] for name, p in theirs.named_parameters()}
    net = build("classifier", classes=2, images=1, encoder=name)
    groups = param_groups(net, Optimizer(lr=1.0, weight_decay=0.01, layer_decay=0.5), 1.0)
    ours = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = {name: ours[id(p)] for name, p in net.encoder.model.named_parameters()}
    assert named == {name: pytest.approx(expected[name]) for name in named}
    assert len(set(named.values())) > 3
    assert {ours[id(p)] for p in net.head.parameters()} == {1.0}
    for group in groups:
        assert group["lr"] == group["lr_scale"]
        assert group["weight_decay"] == (0.0 if group["name"].endswith("no decay") else 0.01)


@pytest.mark.parametrize(
    ("encoder", "below"),
    [
        ("tu-test_efficientnet", {"conv_stem": 5, "blocks.0": 5, "blocks.1": 4, "blocks.4": 1}),
        ("tu-test_resnet", {"conv1": 5, "bn1": 5, "layer1": 4, "layer4": 1}),
        ("tu-test_convnext", {"stem_0": 4, "stages_0": 4, "stages_1": 3, "stages_3": 1}),
        ("resnet18", {"conv1": 6, "bn1": 5, "layer1": 4, "layer4": 1}),
    ],
)
def test_an_encoder_of_feature_maps_falls_from_map_to_map(encoder, below):
    net = build("segmentation", classes=1, images=1, encoder=encoder, decoder="fpn")
    layers = layers_below_head(net.encoder)
    assert layers.keys() == dict(net.encoder.named_parameters()).keys()
    for name, layer in layers.items():
        for start, expected in below.items():
            if name.removeprefix("model.").startswith(f"{start}."):
                assert layer == expected, name
    groups = param_groups(net, Optimizer(lr=1e-2, weight_decay=0.0, encoder_lr_scale=0.1, layer_decay=0.5), 1e-2)
    assert len({id(p) for group in groups for p in group["params"]}) == len(list(net.parameters()))
    assert {group["lr_scale"] for group in groups if group["name"].startswith("rest")} == {1.0}
    assert max(g["lr_scale"] for g in groups if g["name"].startswith("encoder")) == pytest.approx(0.1 * 0.5)


# ---- schedules ----------------------------------------------------------------------------------------


def rate(kind, total_steps, lr=1.0, steps_per_epoch=1, warmup_steps=0, **options) -> LearningRate:
    schedule = Schedule(kind=kind, warmup_epochs=warmup_steps / steps_per_epoch, **options)
    return LearningRate(schedule, lr, total_steps // steps_per_epoch, steps_per_epoch)


def test_piecewise_is_the_table_of_2020():
    table = {0: 3e-5, 1: 7e-5, 10: 5e-5, 20: 2e-5, 30: 1e-5, 50: 1e-6}
    schedule = rate("piecewise", 60 * 7, steps_per_epoch=7, table=table)
    expected = [3e-5] * 1 + [7e-5] * 9 + [5e-5] * 10 + [2e-5] * 10 + [1e-5] * 20 + [1e-6] * 10
    assert [schedule.at(s) for s in range(60 * 7)] == [lr for lr in expected for _ in range(7)]


def test_cosine_counts_its_steps_without_the_warmup():
    schedule = rate("cosine", 25, lr=0.4, warmup_steps=5)
    for s in range(5):
        assert schedule.at(s) == pytest.approx(0.4 * (s + 1) / 5)
    for t in range(20):
        assert schedule.at(5 + t) == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi * t / 20)))
    floor = rate("cosine", 20, lr=0.4, min_lr=0.1)
    assert floor.at(0) == pytest.approx(0.4)
    assert floor.at(10) == pytest.approx(0.25)
    assert floor.at(20) == floor.at(99) == pytest.approx(0.1)


def test_cosine_is_timms_with_its_warmup_outside_of_t():
    """timm's warmup starts at 0 and ours at 1 / warmup_steps: a step earlier; the cosines are the same."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = CosineLRScheduler(optimizer, t_initial=20, lr_min=0.01, warmup_t=5, warmup_prefix=True)
    ours = rate("cosine", 25, lr=0.4, warmup_steps=5, min_lr=0.01)
    assert [ours.at(s) for s in range(5, 25)] == pytest.approx([theirs._get_lr(s)[0] for s in range(5, 25)])
    assert [ours.at(s) for s in range(4)] == pytest.approx([theirs._get_lr(s + 1)[0] for s in range(4)])


def test_step_and_exponential():
    n = 3
    step = rate("step", 120 * n, lr=0.1, steps_per_epoch=n, factor=0.1, every=30, warmup_steps=5 * n)
    expected = [0.1] * 30 * n + [0.01] * 30 * n + [0.001] * 30 * n + [0.0001] * 30 * n  # He et al. 2018
    expected[: 5 * n] = [0.1 * (i + 1) / (5 * n) for i in range(5 * n)]
    assert [step.at(s) for s in range(120 * n)] == pytest.approx(expected)
    exponential = rate("exponential", 120 * n, lr=0.1, steps_per_epoch=n, factor=0.94)
    expected = [0.1 * 0.94 ** (s // n) for s in range(120 * n)]
    assert [exponential.at(s) for s in range(120 * n)] == pytest.approx(expected)


@pytest.mark.parametrize("options", [{}, {"peak_at": 0.1, "div": 10.0, "final_div": 100.0}, {"peak_at": 0.01}])
def test_one_cycle_is_torchs(options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    names = {"peak_at": "pct_start", "div": "div_factor", "final_div": "final_div_factor"}
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.4, total_steps=47, cycle_momentum=False, **{names[k]: v for k, v in options.items()}
    )
    ours = rate("one_cycle", 47, lr=0.4, **options)
    for step in range(47):
        assert ours.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < 46:
            theirs.step()
    assert ours.at(99) == ours.at(46)


def test_a_cycle_of_few_steps_still_has_its_peak():
    assert rate("one_cycle", 2, lr=0.4, peak_at=0.5).at(0) == pytest.approx(0.4)
    assert rate("one_cycle", 1, lr=0.4).at(0) == pytest.approx(0.4 / 25 / 1e4)


def test_plateau_is_torchs(tmp_path):
    scores = [0.1, 0.2, 0.2, 0.15, 0.19, 0.3, 0.3, 0.3, 0.3, 0.29, 0.31, 0.0, 0.0, 0.0, 0.0, 0.0]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=1, threshold=0.0)
    schedule, plateau = rate("plateau", 100, factor=0.5, min_lr=0.05, patience=2), Plateau(patience=2)
    for i, score in enumerate(scores):
        theirs.step(score)
        before = plateau.reductions
        assert plateau.update(score) == (plateau.reductions > before)
        expected = max(0.05, optimizer.param_groups[0]["lr"])
        assert schedule.at(i, plateau.reductions) == pytest.approx(expected)
        torch.save(plateau.state_dict(), tmp_path / "plateau.pt")  # a run may stop after any validation
        plateau = Plateau(patience=2)
        plateau.load_state_dict(torch.load(tmp_path / "plateau.pt", weights_only=True))
    assert plateau.reductions == 5


def test_poly_and_constant():
    poly = rate("poly", 110, lr=0.01, warmup_steps=10, power=0.9)
    assert [poly.at(10 + t) for t in range(100)] == pytest.approx([0.01 * (1 - t / 100) ** 0.9 for t in range(100)])
    constant = rate("constant", 10, lr=0.5, warmup_steps=2)
    assert [constant.at(s) for s in range(10)] == [0.25] + [0.5] * 9


def test_poly_begins_again_after_its_period():
    """The schedule of 2020 ends at 100,000 steps however long the training is, and goes on from its beginning."""
    schedule = rate("poly", 250, lr=0.01, power=0.9, period=100)
    expected = [0.01 * (1 - step % 100 / 100) ** 0.9 for step in range(250)]
    assert [schedule.at(step) for step in range(250)] == pytest.approx(expected)
    assert schedule.at(100) == 0.01


def test_multistep_warms_up_stays_and_falls_to_shares_of_the_peak():
    """The animal report: five epochs of warmup to 5e-4, half of it from epoch 50, a tenth of that from epoch 100."""
    n, peak = 3, 5e-4
    schedule = rate("multistep", 120 * n, lr=peak, steps_per_epoch=n, warmup_steps=5 * n,
                        factors={100: 0.05, 50: 0.5})  # fmt: skip
    expected = [peak * (s + 1) / (5 * n) for s in range(5 * n)]
    expected += [peak] * 45 * n + [peak * 0.5] * 50 * n + [peak * 0.05] * 20 * n
    assert [schedule.at(s) for s in range(120 * n)] == pytest.approx(expected, rel=1e-12)


def test_a_step_within_the_warmup_scales_it():
    schedule = rate("multistep", 8, lr=1.0, steps_per_epoch=2, warmup_steps=4, factors={1: 0.5})
    assert [schedule.at(s) for s in range(6)] == pytest.approx([0.25, 0.5, 0.375, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "steps"}, "'constant', 'cosine', 'exponential', 'multistep'"),
        ({"kind": "step"}, "need a factor"),
        ({"kind": "exponential", "factor": 1.5}, "less than 1"),
        ({"kind": "step", "factor": 0.1, "every": 0}, "every"),
        ({"kind": "one_cycle", "peak_at": 1.2}, "peak_at"),
        ({"kind": "one_cycle", "warmup_epochs": 5}, "rises by itself"),
        ({"kind": "multistep"}, "needs factors"),
        ({"kind": "multistep", "factors": {0: 0.5}}, "from epoch 1 on"),
        ({"kind": "multistep", "factors": {5: -0.5}}, "at least 0"),
        ({"kind": "piecewise", "table": {1: 0.1}}, "entry for epoch 0"),
        ({"kind": "plateau", "factor": 0.5}, "needs a patience"),
        ({"kind": "cosine", "period": 100}, "only kind poly takes one"),
        ({"kind": "poly", "period": 0}, "period"),
    ],
)
def test_impossible_schedules_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        Schedule(**options)


@pytest.mark.parametrize("options", [{"name": "rmsprop", "lr": 0.1}, {"lr": 0}, {"lr": 0.1, "layer_decay": 1.5}, {}])
def test_impossible_optimizers_are_refused(options):
    with pytest.raises(ValidationError):
        Optimizer(**options)


# ---- freezing -----------------------------------------------------------------------------------------


def test_a_frozen_module_stands_still_until_it_is_unfrozen():
    net = Net()
    optimizer = build_optimizer(net, Optimizer(name="adamw", lr=0.1, weight_decay=0.1), 0.1)
    freeze(net.encoder)
    freeze(net.encoder)  # twice is once
    before = copy.deepcopy(net.state_dict())
    net.train()
    x = torch.randn(2, 3, 8, 8)
    assert net(x).equal(net(x))  # no dropout
    step(net, optimizer)
    for name, tensor in net.state_dict().items():
        assert tensor.equal(before[name]) == name.startswith("encoder.")
    assert net.training and is_frozen(net.encoder)

    unfreeze(net.encoder)
    net.train()
    step(net, optimizer)
    moved = {name for name, tensor in net.state_dict().items() if not tensor.equal(before[name])}
    assert moved == set(before)


def test_norm_statistics_of_a_frozen_encoder_may_move_as_in_2020():
    net = Net()
    freeze(net.encoder, norms=False)
    before = copy.deepcopy(net.state_dict())
    net.train()
    optimizer = build_optimizer(net, Optimizer(name="adam", lr=0.1), 0.1)
    step(net, optimizer)
    moved = {name for name, tensor in net.encoder.state_dict().items() if not tensor.equal(before[f"encoder.{name}"])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    assert is_frozen(net.encoder) and net.encoder.training
    unfreeze(net.encoder)
    step(net, optimizer)
    assert not is_frozen(net.encoder)
    assert not net.encoder[0].weight.equal(before["encoder.0.weight"])


def test_freezing_survives_copies():
    net = Net()
    freeze(net.encoder)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other.train()
        step(other)
        assert not other.encoder[1].training
        unfreeze(other.encoder)
        other.train()
        step(other)
        assert other.encoder[1].training
    assert is_frozen(net.encoder)
