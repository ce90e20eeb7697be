"""Parameter groups, schedules, freezing and the moving average, against their formulas."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lib.errors import ConfigError
from lib.models import build
from lib.training.ema import Ema
from lib.training.optim import Schedule, build_optimizer, freeze, is_frozen, param_groups, set_lr, unfreeze


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
    groups = {group["name"]: group for group in param_groups(net, 1e-3, 0.01, encoder_lr_scale=0.1)}
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
    optimizer = build_optimizer("adamw", net, 0.1, weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6)


def test_sgd_is_nesterov():
    net = nn.Linear(1, 1, bias=False)
    start = net.weight.item()
    optimizer = build_optimizer("sgd", net, 0.1, momentum=0.5)
    velocity, expected = 0.0, start
    for gradient in (1.0, 2.0, -1.0):
        net.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        velocity = 0.5 * velocity + gradient
        expected -= 0.1 * (gradient + 0.5 * velocity)
    assert net.weight.item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match="adamw, adam, sgd"):
        build_optimizer("rmsprop", net, 0.1)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(name):
    torch.manual_seed(1)
    one = Net()
    first = build_optimizer(name, one, 0.01, weight_decay=0.1)
    step(one, first)
    two = copy.deepcopy(one)
    second = build_optimizer(name, two, 0.01, weight_decay=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for net, optimizer in ((one, first), (two, second)):
        torch.manual_seed(2)
        set_lr(optimizer, 0.003)
        step(net, optimizer)
    assert all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_a_gradient_that_overflowed_moves_nothing():
    net = Net()
    optimizer, scaler = build_optimizer("adamw", net, 0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(net.state_dict())
    for factor, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(factor * net.head.weight.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert net.head.weight.equal(before["head.weight"]) != moves
    assert torch.allclose(net.head.weight, before["head.weight"] - 0.1, atol=1e-6)  # Adam's first step is lr * sign


# ---- schedules ----------------------------------------------------------------------------------------


def test_piecewise_is_the_table_of_2020():
    table = {0: 3e-5, 1: 7e-5, 10: 5e-5, 20: 2e-5, 30: 1e-5, 50: 1e-6}
    schedule = Schedule("piecewise", 60 * 7, steps_per_epoch=7, table=table)
    expected = [3e-5] * 1 + [7e-5] * 9 + [5e-5] * 10 + [2e-5] * 10 + [1e-5] * 20 + [1e-6] * 10
    assert [schedule.lr_at(s) for s in range(60 * 7)] == [lr for lr in expected for _ in range(7)]
    assert schedule.peak == 3e-5


def test_cosine_counts_its_steps_without_the_warmup():
    schedule = Schedule("cosine", 25, lr=0.4, warmup_steps=5)
    for s in range(5):
        assert schedule.lr_at(s) == pytest.approx(0.4 * (s + 1) / 5)
    for t in range(20):
        assert schedule.lr_at(5 + t) == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi * t / 20)))
    floor = Schedule("cosine", 20, lr=0.4, min_lr=0.1)
    assert floor.lr_at(0) == pytest.approx(0.4)
    assert floor.lr_at(10) == pytest.approx(0.25)
    assert floor.lr_at(20) == floor.lr_at(99) == pytest.approx(0.1)


def test_poly_and_constant():
    poly = Schedule("poly", 110, lr=0.01, warmup_steps=10, power=0.9)
    assert [poly.lr_at(10 + t) for t in range(100)] == pytest.approx([0.01 * (1 - t / 100) ** 0.9 for t in range(100)])
    constant = Schedule("constant", 10, lr=0.5, warmup_steps=2)
    assert [constant.lr_at(s) for s in range(10)] == [0.25] + [0.5] * 9


def test_multistep_warms_up_stays_and_falls_to_shares_of_the_peak():
    """The animal report: five epochs of warmup to 5e-4, half of it from epoch 50, a tenth of that from epoch 100."""
    n, peak = 3, 5e-4
    schedule = Schedule("multistep", 120 * n, lr=peak, steps_per_epoch=n, warmup_steps=5 * n,
                        factors={100: 0.05, 50: 0.5})  # fmt: skip
    expected = [peak * (s + 1) / (5 * n) for s in range(5 * n)]
    expected += [peak] * 45 * n + [peak * 0.5] * 50 * n + [peak * 0.05] * 20 * n
    assert [schedule.lr_at(s) for s in range(120 * n)] == pytest.approx(expected, rel=1e-12)
    assert schedule.peak == peak


def test_a_step_within_the_warmup_scales_it():
    schedule = Schedule("multistep", 8, lr=1.0, steps_per_epoch=2, warmup_steps=4, factors={1: 0.5})
    assert [schedule.lr_at(s) for s in range(6)] == pytest.approx([0.25, 0.5, 0.375, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "step"}, "expected one of piecewise, cosine, constant, poly, multistep"),
        ({"kind": "multistep"}, "factors of epoch: share"),
        ({"kind": "multistep", "factors": {0: 0.5}}, "from epoch 1 on"),
        ({"kind": "multistep", "factors": {5: -0.5}}, "at least 0"),
        ({"kind": "piecewise", "table": {1: 0.1}}, "entry for epoch 0"),
        ({"kind": "cosine", "lr": 0.0}, "lr above 0"),
        ({"kind": "cosine", "total_steps": 0}, "at least one step"),
    ],
)
def test_impossible_schedules_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        Schedule(**{"kind": "cosine", "total_steps": 10, "lr": 0.1} | options)


# ---- freezing -----------------------------------------------------------------------------------------


def test_a_frozen_module_stands_still_until_it_is_unfrozen():
    net = Net()
    optimizer = build_optimizer("adamw", net, 0.1, weight_decay=0.1)
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


# ---- moving average -----------------------------------------------------------------------------------


def test_the_average_is_its_closed_form():
    net = nn.Linear(1, 1, bias=False)
    values = [3.0, -1.0, 4.0, 1.0, 5.0]
    net.weight.data.fill_(values[0])
    ema = Ema(net, decay=0.25)
    expected = values[0]
    for t, value in enumerate(values[1:]):
        net.weight.data.fill_(value)
        ema.update(net)
        decay = min(0.25, (1 + t) / (10 + t))  # 1/10, 2/11, then 0.25
        expected = decay * expected + (1 - decay) * value
    assert float(ema.tensors["weight"]) == pytest.approx(expected, rel=1e-6)
    assert ema.updates == 4


def test_statistics_are_averaged_and_counters_copied():
    net = Net()
    ema = Ema(net, decay=0.9)
    before = net.encoder[1].running_mean.clone()
    step(net.train())
    ema.update(net)
    expected = 0.1 * before + 0.9 * net.encoder[1].running_mean
    assert torch.allclose(ema.tensors["encoder.1.running_mean"], expected)
    assert int(ema.tensors["encoder.1.num_batches_tracked"]) == 1


def test_equal_weights_average_to_themselves():
    net = Net()
    ema = Ema(net, decay=0.999)
    for _ in range(20):
        ema.update(net)
    assert all(ema.tensors[name].equal(tensor) for name, tensor in net.state_dict().items())


def test_the_average_is_lent_and_given_back():
    net = Net()
    ema = Ema(net, decay=0.5)
    optimizer = build_optimizer("sgd", net, 0.1)
    step(net, optimizer)
    own = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyboardInterrupt), ema.swapped_in(net):
        assert all(tensor.equal(ema.tensors[name]) for name, tensor in net.state_dict().items())
        assert not net.head.weight.equal(own["head.weight"])
        raise KeyboardInterrupt
    assert all(tensor.equal(own[name]) for name, tensor in net.state_dict().items())
    assert optimizer.param_groups[0]["params"][0] is net.encoder[0].weight


def test_the_average_goes_on_from_a_checkpoint(tmp_path):
    net = Net()
    one = Ema(net, decay=0.99)
    step(net.train())
    one.update(net)
    torch.save(one.state_dict(), tmp_path / "ema.pt")
    two = Ema(Net(), decay=0.5)
    two.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    step(net)
    for ema in (one, two):
        ema.update(net)
    assert two.updates == 2
    assert all(two.tensors[name].equal(tensor) for name, tensor in one.tensors.items())
