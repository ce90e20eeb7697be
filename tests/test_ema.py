"""The averages of weights: the moving one against its closed form, the equal one against the mean and torch."""

import copy

import pytest
import torch
from test_optim import Net, step
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from lib.config.sections import Optimizer
from lib.models import build
from lib.training.ema import Ema, Swa, estimate_norms
from lib.training.optim import build_optimizer, freeze


def batches(count=3, size=2, side=8):
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (count, size, 3, side, side), dtype=torch.uint8, generator=generator)
    return [{"image": image, "id": ["a"] * size} for image in images]


class Bytes(Net):
    """As a real network, it takes bytes."""

    def forward(self, x):
        return super().forward(x.float() / 255)


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
    optimizer = build_optimizer(net, Optimizer(name="sgd", lr=0.1), 0.1)
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


def test_many_tensors_at_once_are_one_by_one_to_the_bit():
    """Also where the device tells whether the weights moved, and where they did not, nothing changes."""
    net, waiting = Net().train(), Net().train()
    waiting.load_state_dict(net.state_dict())
    ema, told = Ema(net, decay=0.7), Ema(waiting, decay=0.7)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for update in range(6):
        for each in (net, waiting):
            torch.manual_seed(update)
            step(each)
        keep = min(0.7, (1 + update) / (10 + update))
        for name, tensor in net.state_dict().items():
            if expected[name].is_floating_point():
                expected[name].lerp_(tensor, 1 - keep)
            else:
                expected[name].copy_(tensor)
        ema.update(net)
        told.update(waiting, torch.tensor(True))
        before = {name: tensor.clone() for name, tensor in told.tensors.items()}
        with torch.no_grad():
            waiting.head.weight.add_(1)
            told.update(waiting, torch.tensor(False))
            waiting.head.weight.copy_(net.head.weight)
        assert all(tensor.equal(told.tensors[name]) for name, tensor in before.items())
    for name, tensor in expected.items():
        assert tensor.equal(ema.tensors[name]) and tensor.equal(told.tensors[name]), name
    assert told.state_dict()["updates"] == ema.state_dict()["updates"] == 6


# ---- equal average ------------------------------------------------------------------------------------


def test_equal_average_is_the_mean_and_torchs():
    net = Net()
    swa, theirs, kept = Swa(net), AveragedModel(net, use_buffers=True), []
    optimizer = build_optimizer(net, Optimizer(name="sgd", lr=0.1), 0.1)
    for _ in range(4):
        step(net, optimizer)
        swa.update(net)
        theirs.update_parameters(net)
        kept.append(copy.deepcopy(net.state_dict()))
    for name, parameter in theirs.module.named_parameters():
        assert torch.allclose(swa.tensors[name], parameter, rtol=1e-5, atol=1e-7)
        mean = torch.stack([state[name] for state in kept]).mean(0)
        assert torch.allclose(swa.tensors[name], mean, rtol=1e-5, atol=1e-7)
    assert not swa.tensors["head.weight"].allclose(net.head.weight)
    assert swa.updates == 4


def test_the_first_epoch_replaces_the_start():
    net = Net()
    swa = Swa(net)
    net.head.weight.data.fill_(3.0)
    swa.update(net)
    assert swa.tensors["head.weight"].equal(net.head.weight)


def test_the_equal_average_goes_on_from_a_checkpoint(tmp_path):
    net = Net()
    one = Swa(net)
    optimizer = build_optimizer(net, Optimizer(name="sgd", lr=0.1), 0.1)
    step(net, optimizer)
    one.update(net)
    torch.save(one.state_dict(), tmp_path / "swa.pt")
    two = Swa(Net())
    two.load_state_dict(torch.load(tmp_path / "swa.pt", weights_only=True))
    step(net, optimizer)
    for swa in (one, two):
        swa.update(net)
    assert all(two.tensors[name].equal(tensor) for name, tensor in one.tensors.items())


def test_statistics_are_those_of_the_averaged_weights():
    net = Bytes()
    net.encoder[2].p = 0.0  # torch's update_bn leaves dropout on
    swa, optimizer = Swa(net), build_optimizer(net, Optimizer(name="sgd", lr=0.1), 0.1)
    step(net, optimizer)
    swa.update(net)
    own = copy.deepcopy(net.state_dict())
    net.eval()
    swa.reestimate(net, batches())
    assert all(tensor.equal(own[name]) for name, tensor in net.state_dict().items()) and not net.encoder[1].training
    theirs = Bytes()
    theirs.encoder[2].p = 0.0
    theirs.load_state_dict(swa.tensors)
    update_bn([batch["image"] for batch in batches()], theirs)
    for name in ("running_mean", "running_var"):
        ours = swa.tensors[f"encoder.1.{name}"]
        assert torch.allclose(ours, getattr(theirs.encoder[1], name), rtol=1e-5)
        assert not torch.allclose(ours, own[f"encoder.1.{name}"])
    assert theirs.encoder[1].momentum == net.encoder[1].momentum == 0.1


def test_only_norms_train_while_they_are_estimated():
    net = build("classifier", classes=2, images=1, encoder="test_efficientnet", drop_rate=0.5, drop_path_rate=0.5)
    net.train()
    results = []
    for _ in range(2):
        estimate_norms(net, batches(side=32))
        results.append(copy.deepcopy(net.state_dict()))
    assert all(tensor.equal(results[1][name]) for name, tensor in results[0].items())
    assert all(module.training for module in net.modules())


def test_frozen_norms_stay_and_nothing_is_read_without_norms():
    net = Bytes()
    freeze(net.encoder)
    before = copy.deepcopy(net.state_dict())
    estimate_norms(net, iter([]))
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="at least one batch"):
        estimate_norms(nn.BatchNorm2d(3), iter([]))
