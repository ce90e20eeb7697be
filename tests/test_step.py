"""One step of the training: it waits for nothing, an overflow is skipped, and a full device takes it whole or not."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_fit import CLASSES, CPU, Squares, fit, network, place, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

from lib.config.sections import Distill, Optimizer
from lib.errors import ArtifactError, NonFiniteError
from lib.training.fit import Fit
from lib.training.losses import Criterion
from lib.training.optim import build_optimizer
from lib.training.precision import Arithmetic, FiniteStatistics
from lib.training.stepper import Stepper
from lib.training.update import make_state, move, stands_still
from lib.training.watch import Meter, PastStep, Watch

pytestmark = pytest.mark.slow  # networks are built and run

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh")
"""Operations for which a host waits for its GPU: those that read a number, those whose result has a size that depends
on numbers, and the copy of new Python numbers (``lift_fresh`` is what torch.tensor calls)."""


class Waits(TorchDispatchMode):
    """Lists the operations for which a host would wait."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        chooses = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITS or chooses:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def batch(start=0, count=4):
    return default_collate([Squares()[i] for i in range(start, start + count)])


def stepper(section, net=None, task=CLASSES, lag=100, data=None, folder=Path()) -> Stepper:
    made = Stepper(net or network(), task, data or Squares(), section, place(folder))
    made.watch = Watch(CPU, lag)
    made.prepare(0)
    made.network.train()
    return made


def test_the_counter_of_waits_sees_what_it_must_see():
    x = torch.arange(4.0)
    for waits in (lambda: x[0].item(), lambda: bool(x.sum() > 0), lambda: float(x[1]), lambda: x[x > 1],
                  lambda: torch.tensor([1.0]), lambda: x.nonzero(), lambda: torch.equal(x, x)):  # fmt: skip
        with Waits() as counter:
            waits()
        assert counter.found
    with Waits() as counter:
        torch.where(x > 1, x, 0).sum()
    assert not counter.found


@pytest.mark.parametrize("changes", [
    {"precision": "float32"},
    {"precision": "bfloat16", "accumulate": 2, "optimizer": {"name": "adam", "lr": 1e-3}},
    {"precision": "float16", "cpu_precision": "float16"},
    {"precision": "float16", "cpu_precision": "float16", "optimizer": {"name": "sgd", "lr": 1e-3}, "clip": None},
    {"mix": {"mixup": 1.0}}, {"mix": {"cutmix": 1.0}}, {"freeze_encoder_epochs": 1},
], ids=str)  # fmt: skip
def test_a_step_waits_for_nothing(changes):
    own = stepper(train(ema=0.9, **changes))
    samples = batch()
    own.take(samples, 0, 0, 0)  # the first one makes constants and the optimizer's state
    with Waits() as counter:
        own.take(samples, 0, 1, 0)
        own.take(samples, 0, 2, 0)
    assert counter.found == []
    assert [numbers["loss"] for _, numbers in own.watch.seen(everything=True)] != []


LOSSES = [
    ("multiclass", {"terms": {"ce": 1, "focal": 1, "dice": 1, "jaccard": 1, "tversky": 1, "lovasz": 1, "class_ce": 1,
                              "class_dice": 1, "foreground_bce": 1, "foreground_dice": 1, "boundary_bce": 1},
                    "class_weights": [1, 2, 3, 4, 5], "smoothing": 0.1, "ohem": 0.5, "focal_alpha": 0.25,
                    "focal_mode": "one_vs_rest"}),
    ("binary", {"terms": {"bce": 1, "focal": 1, "dice": 1, "jaccard": 1, "tversky": 1, "lovasz": 1}, "ohem": 0.5}),
    ("multilabel", {"terms": {"bce": 1, "focal": 1, "dice": 1, "jaccard": 1, "tversky": 1, "lovasz": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "section"), LOSSES, ids=[kind for kind, _ in LOSSES])
def test_no_loss_waits(kind, section):
    own = train(loss=section, distill={"experiment": "teacher"})
    channels = {"binary": 1}.get(kind, 5)
    criterion = Criterion(kind, own.loss, own.distill)
    heads = {"logits": torch.randn(2, channels, 8, 8, requires_grad=True)}
    if kind == "multiclass":
        heads |= {"boundary": torch.randn(2, 1, 8, 8), "aux": torch.randn(2, 5, 8, 8)}
    target, other = (torch.randint(0, 2, (2, 8, 8), dtype=torch.uint8) for _ in range(2))
    teacher = torch.rand(2, channels, 8, 8)
    criterion(heads, target, other, 0.7, teacher)
    with Waits() as counter:
        loss, _ = criterion(heads, target, other, 0.7, teacher)
        loss.backward()
    assert counter.found == [] and isinstance(own.distill, Distill)


# ---- the look, some steps later -----------------------------------------------------------------------
def test_sums_on_the_device_are_pythons_to_the_bit():
    rows = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    meter, expected = Meter({"a": 0.1, "old": 2.0}), {"a": 0.1, "b": 0.0, "c": 0.0, "old": 2.0}
    for row in rows:
        meter.add(("a", "b", "c"), row.double() / 3)
        for name, value in zip("abc", row.tolist(), strict=True):
            expected[name] += value / 3
    assert meter.read() == expected == Meter(meter.read()).read()


def test_numbers_are_given_out_so_many_steps_later():
    watch = Watch(CPU, lag=2)
    seen = []
    for number in range(5):
        watch.put(PastStep(0, number, ()), ("loss",), torch.tensor([number], dtype=torch.float64))
        seen.append([(step.number, numbers["loss"]) for step, numbers in watch.seen()])
    assert seen == [[], [], [(0, 0.0)], [(1, 1.0)], [(2, 2.0)]]
    assert [step.number for step, _ in watch.seen(everything=True)] == [3, 4]
    assert Watch(CPU).lag == 0


class OneBad(Squares):
    """The same pairs in a stream without end, of which one sample makes the loss infinite by its brightness."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 8

    def __getitem__(self, i):
        item = super().__getitem__(i)
        image = item["image"].float()
        return {**item, "image": image * torch.inf if i in self.bad else image, "id": f"sample{i}"}


def test_a_bad_loss_is_found_later_and_named_and_no_weight_has_moved_since():
    own = stepper(train(batch_size=2, ema=0.9), lag=3, data=OneBad([3]))
    for number in range(2):
        if number == 1:
            before = {name: p.clone() for name, p in own.network.named_parameters()}
        own.take(default_collate([own.dataset[2 * number], own.dataset[2 * number + 1]]), 0, number, 0)
    for number in (2, 3):
        own.take(default_collate([own.dataset[2 * number], own.dataset[2 * number + 1]]), 0, number, 0)
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 2: the loss is not finite .*normalize.*sample2, sample3"):
        own.take(batch(8, 2), 1, 0, 0)
    assert all(p.equal(before[name]) for name, p in own.network.named_parameters())


def test_the_scenes_of_one_of_several_processes_are_called_so(monkeypatch):
    own = stepper(train(batch_size=2), data=OneBad([1]), lag=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(NonFiniteError, match="scenes of process 1 sample0, sample1"):
        own.take(default_collate([own.dataset[0], own.dataset[1]]), 0, 0, 0)


@pytest.mark.slow
def test_without_a_scaler_the_run_ends_and_its_state_stays_good(tmp_path):
    section = train(batch_size=2, epochs=3)
    with pytest.raises(NonFiniteError, match="epoch 2, step 1: .* scenes sample8, sample9"):
        fit(tmp_path, section, data=OneBad([9]))
    with pytest.raises(NonFiniteError, match="epoch 2, step 1: .* scenes sample8, sample9"):
        fit(tmp_path, section, data=OneBad([9]))  # resumed: the same batch, the same end
    log = fit(tmp_path, section, data=OneBad([]))
    whole = tmp_path / "whole"
    whole.mkdir()
    assert [line["loss"] for line in log] == [line["loss"] for line in fit(whole, section, data=OneBad([]))]
    assert (whole / "best.safetensors").read_bytes() == (tmp_path / "best.safetensors").read_bytes()


# ---- float16 ------------------------------------------------------------------------------------------
HALF = {"precision": "float16", "cpu_precision": "float16", "batch_size": 2, "epochs": 3, "ema": 0.9}


@pytest.mark.slow
def test_a_batch_that_overflows_is_skipped_counted_and_said(tmp_path):
    said = []
    own = Fit(network(), CLASSES, OneBad([9]), lambda _: {"select": 0.0}, train(**HALF), place(tmp_path))
    own.stepper.say = said.append
    own.run()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    amp = [line["amp"] for line in log]
    assert [line["nonfinite_losses"] for line in amp] == [0, 1, 1]
    assert amp[1]["skipped_steps"] == amp[0]["skipped_steps"] + 1
    assert len(said) == 1 and "epoch 2, step 1: the loss is not finite" in said[0] and "sample8, sample9" in said[0]
    assert "normalize" in said[0]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in log)
    for state in (own.network.state_dict(), own.average.tensors):
        assert all(tensor.isfinite().all() for tensor in state.values()), "the statistics of norms too"


def test_a_skipped_loss_has_no_part_in_the_means_and_moves_nothing():
    own = stepper(train(**HALF), data=OneBad([3]))
    own.take(batch(0, 2), 0, 0, 0)
    before = {name: p.clone() for name, p in own.network.named_parameters()}
    sums, updates = own.meter.read(), int(own.average.updates)
    own.take(default_collate([own.dataset[2], own.dataset[3]]), 0, 1, 0)
    assert own.meter.read() == {**sums, "nonfinite_losses": 1.0}
    assert all(p.equal(before[name]) for name, p in own.network.named_parameters())
    assert int(own.average.updates) == updates


@pytest.mark.slow
def test_too_many_skipped_steps_in_a_row_end_the_run_and_a_resume_counts_on(tmp_path):
    section = train(**HALF, max_skipped_steps=6)
    (tmp_path / "a").mkdir()
    with pytest.raises(NonFiniteError, match=r"epoch 3, step 2: .* normalize.*sample18, sample19; float16 skipped 6"):
        fit(tmp_path / "a", section, data=OneBad(range(8, 24)))

    class Dies(OneBad):
        def __getitem__(self, i):
            if i == 16:
                raise RuntimeError("power cut")
            return super().__getitem__(i)

    (tmp_path / "b").mkdir()
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "b", section, data=Dies(range(8, 24)))
    with pytest.raises(NonFiniteError, match="epoch 3, step 2: .*; float16 skipped 6"):
        fit(tmp_path / "b", section, data=OneBad(range(8, 24)))


@pytest.mark.slow
def test_float16_with_skipped_steps_resumes_to_the_same_bytes(tmp_path):
    section, data = train(**HALF), OneBad([2, 9])
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    lines = fit(tmp_path / "whole", section, data=data)

    class Dies(OneBad):
        def __getitem__(self, i):
            if i == 19:
                raise RuntimeError("power cut")
            return super().__getitem__(i)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "broken", section, data=Dies([2, 9]))
    again = fit(tmp_path / "broken", section, data=data)
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    assert [(line["loss"], line["amp"]) for line in lines] == [(line["loss"], line["amp"]) for line in again]


def test_statistics_that_are_not_finite_are_put_back_one_by_one():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)).train()
    statistics = FiniteStatistics(net)
    before = net[1].running_mean.clone()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[[[1.0]]], [[[torch.inf]]]]))
        net(torch.rand(2, 1, 4, 4) + 1)
    after = net[1].running_mean.clone()
    statistics.put_back()
    assert not after[1].isfinite() and net[1].running_mean[1] == before[1]
    assert net[1].running_mean[0] == after[0] != before[0]
    assert all(buffer.isfinite().all() for buffer in net.buffers())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_an_overflow_at_the_first_step_leaves_the_optimizer_as_new(name):
    """Also of SGD, whose fused form in torch leaves the momentum of such a step uninitialised."""
    results = []
    for overflows in (True, False):
        net = network()
        optimizer = build_optimizer(net, Optimizer(name=name, lr=0.1), 0.1)
        arithmetic = Arithmetic("float16", CPU)
        for skipped in (True, False, False)[not overflows :]:
            scaled = arithmetic.scaler.scale(torch.tensor(torch.inf if skipped else 0.5))
            for p in net.parameters():
                p.grad = torch.full_like(p, float(scaled))
            arithmetic.scaler.unscale_(optimizer)
            assert bool(arithmetic.step(optimizer, torch.tensor(True))) is not skipped
        results.append([p.detach().clone() for p in net.parameters()])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_a_scale_that_is_halved_to_nothing_moves_nothing():
    """Else the steps that follow would count as taken, and a run with a large train.max_skipped_steps never end."""
    net = network()
    optimizer = build_optimizer(net, Optimizer(name="adamw", lr=0.1), 0.1)
    arithmetic = Arithmetic("float16", CPU)
    arithmetic.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-148)
    moved = []
    for _ in range(4):
        scaled = arithmetic.scaler.scale(torch.tensor(torch.inf))
        for p in net.parameters():
            p.grad = torch.full_like(p, float(scaled))
        arithmetic.scaler.unscale_(optimizer)
        moved.append(bool(arithmetic.step(optimizer, torch.tensor(True))))
    assert arithmetic.scaler.get_scale() == 0 and moved == [False] * 4


# ---- a full device ------------------------------------------------------------------------------------
@contextmanager
def full(monkeypatch, optimizer_class, when):
    """Let ``when(call, optimizer)`` decide, at each call of step, whether memory is full; it may move weights first."""
    step, calls = optimizer_class.step, []

    def watched(self, *arguments, **keywords):
        calls.append(1)
        if when(len(calls), self):
            raise torch.OutOfMemoryError("no room in the optimizer")
        return step(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(optimizer_class, "step", watched)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_device_that_is_full_in_the_optimizer_takes_the_step_once(tmp_path, monkeypatch, precision, call):
    """Whether while the state is made (call 1) or before the weights move: the batch is computed again, in parts."""
    section = train(epochs=4, precision=precision, cpu_precision="float16", loss={"terms": {"ce": 1}})
    logs = []
    for name, fails in (("plain", 0), ("full", call)):
        (tmp_path / name).mkdir()
        with full(monkeypatch, torch.optim.AdamW, lambda number, _, at=fails: number == at):
            logs.append(fit(tmp_path / name, section, net=network(norm="group_everywhere")))
    plain, after = ([line["loss"] for line in log] for log in logs)
    assert after == pytest.approx(plain, rel=2e-2 if precision == "float16" else 1e-4)
    assert [line["amp"]["scale"] for line in logs[0]] == [line["amp"]["scale"] for line in logs[1]]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_half_a_step_is_not_taken_twice(tmp_path, monkeypatch, precision):
    section = train(epochs=3, precision=precision, cpu_precision="float16")

    def in_the_middle(call, optimizer):
        if call != 4:
            return False
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].add_(1.0)
        return True

    for name in ("whole", "full"):
        (tmp_path / name).mkdir()
    fit(tmp_path / "whole", section)
    with full(monkeypatch, torch.optim.AdamW, in_the_middle):
        with pytest.raises(ArtifactError, match="some have moved already.*goes on from the last state"):
            fit(tmp_path / "full", section)
    fit(tmp_path / "full", section)
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "full")]
    assert weights[0] == weights[1]


def test_what_fused_optimizers_moved_is_told_from_their_counts():
    net = network()
    for p in net.parameters():
        p.grad = torch.ones_like(p)

    def then_fails(optimizer):
        optimizer.step()
        raise torch.OutOfMemoryError

    for name in ("adamw", "adam", "sgd"):
        optimizer = build_optimizer(net, Optimizer(name=name, lr=0.1), 0.1)
        make_state(optimizer)
        with pytest.raises(ArtifactError, match="some have moved already"):
            move(optimizer, lambda optimizer=optimizer: then_fails(optimizer))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_step_that_stands_still_moves_nothing_and_one_that_need_not_is_the_plain_one(name):
    nets = [network(), network()]
    optimizers = [build_optimizer(net, Optimizer(name=name, lr=0.1, weight_decay=0.1), 0.1) for net in nets]
    for bad in (1.0, 0.0, 0.0, 1.0, 0.0):
        for net in nets:
            generator = torch.Generator().manual_seed(1)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
        make_state(optimizers[0])
        before = [p.detach().clone() for p in nets[0].parameters()]
        with stands_still(optimizers[0], torch.tensor(bad)):
            optimizers[0].step()
        if bad:
            assert all(p.equal(b) for p, b in zip(nets[0].parameters(), before, strict=True))
        else:
            optimizers[1].step()
    assert all(a.equal(b) for a, b in zip(*(net.parameters() for net in nets), strict=True))
