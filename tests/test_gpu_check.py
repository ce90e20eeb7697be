"""The check of a machine: what it measures here, and, by fakes, what it makes of a GPU."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from sisters import COMMON, EXPERIMENTS, SEGMENTATION, TRAIN
from torch import nn

from lib.config.sections import Model, Predict
from lib.errors import DataError
from lib.tasks import BinaryMask, Label, MulticlassMask, MultilabelMask
from lib.tools import gpu_check, gpu_measure
from lib.tools.gpu_check import BAD, LEFT_OUT, NOTE, OK, Checks, Options
from lib.tools.gpu_measure import Subject, largest_batch

pytestmark = pytest.mark.slow  # networks are built and run

CPU = torch.device("cpu")
MASK = {"task": "loc", "network": {**SEGMENTATION, "images": ["image"]},
        "train": {**TRAIN, "augment": "light", "loss": {"terms": {"bce": 1, "dice": 1}}}}  # fmt: skip


BINARY = BinaryMask(("x",))


def subject(task=BINARY, device=CPU, precision="bfloat16", **train) -> Subject:
    model = Model.model_validate({**MASK, "train": {**MASK["train"], **train}})
    return Subject(model, task, Predict(precision=precision, tile=64), device)


def checks(found: Subject | None = None, seconds=0.001, compiles=False, data=None) -> Checks:
    def none():
        raise DataError("no scenes")

    return Checks("net", found or subject(), Options(seconds, compiles), data or none)


# ---- the largest batch ---------------------------------------------------------------------------------
def device_with(room: int, tried: list[int]):
    def step(batch):
        tried.append(batch)
        if batch > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7, 8, 9, 100, 1023])
@pytest.mark.parametrize("start", [1, 3, 8])
def test_the_largest_batch_is_found_by_doubling_and_halving(room, start):
    tried = []
    assert largest_batch(device_with(room, tried), start, lambda: True) == (room, room + 1)
    assert tried[0] == start and len(tried) == len(set(tried)) <= 22


def test_the_search_for_the_largest_batch_ends_when_its_time_is_up_or_at_its_end():
    tried, clock = [], iter([True, True, False])
    assert largest_batch(device_with(10, tried), 3, lambda: next(clock)) == (6, 12) and tried == [3, 6, 12]
    assert largest_batch(device_with(10, []), 3, lambda: False) == (3, None), "the first is tried in any case"
    assert largest_batch(device_with(10, []), 16, lambda: False) == (0, 16)
    assert largest_batch(device_with(10**9, []), 4, lambda: True) == (gpu_measure.MOST, None)


# ---- times ---------------------------------------------------------------------------------------------
def test_a_time_is_the_median_after_one_call_that_warms_up_and_keeps_to_its_budget(monkeypatch):
    takes, clock = iter([100, 2, 1, 3, 9, 9, 9]), [0.0]
    monkeypatch.setattr(gpu_measure.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += next(takes)

    assert gpu_measure.seconds_per_call(call, CPU, budget=6) == 2
    assert clock[0] == 106
    assert gpu_measure.seconds_per_call(call, CPU, budget=0.1) == 9, "one at least"


@pytest.mark.parametrize("task", [
    BinaryMask(("x",)), MulticlassMask(("a", "b", "c")), MultilabelMask(("a", "b", "c")), Label(("a", "b")),
    Label(tuple(map(str, range(300)))),
])  # fmt: skip
def test_random_images_and_targets_have_the_form_of_the_task(task):
    found = subject(task)
    image, target = found.images(2), found.targets(2)
    assert image.shape == (2, 3, 64, 64) and image.dtype == torch.uint8
    assert target.shape == ((2, 64, 64) if task.dense else (2, 1, 1))
    assert target.dtype == (torch.int32 if task.is_wide else torch.uint8)
    assert task.truth(target[0].numpy()).shape[0] == task.channels


def test_a_step_moves_the_weights_by_the_model_s_own_loss_and_optimizer():
    step = gpu_measure.Step(subject(ema=0.9, freeze_encoder_epochs=1))
    network = step.stepper.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step(2)
    step(3)
    after = network.state_dict()
    encoder = [name for name, _ in network.named_parameters() if name.startswith("encoder.")]
    assert any(not torch.equal(after[name], before[name]) for name in encoder), "as after the frozen epochs"
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("batch", [4, 3])
def test_a_step_that_does_not_fit_is_no_step_in_parts(batch):
    """Training would go on with a batch in parts; the question here is what fits at once. 3 cannot be halved."""
    step = gpu_measure.Step(subject())
    forward = step.stepper.network.forward

    def crowded(x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(x)

    step.stepper.network.forward = crowded
    with pytest.raises(torch.OutOfMemoryError):
        step(batch)
    step(2)
    assert largest_batch(step, 3, lambda: True) == (2, 3)


def test_a_student_s_step_has_a_teacher():
    gpu_measure.Step(subject(distill={"experiment": "other", "temperature": 2.0}))(2)


@pytest.mark.parametrize("branch", ["head", "decoder"])
def test_a_step_has_the_further_tasks_that_the_network_learns(branch):
    tasks = {"loc": BINARY, "cls": MulticlassMask(("a", "b", "c"))}
    asked = {"cls": {"branch": branch, "loss": {"terms": {"ce": 1}}}}
    found = replace(subject(auxiliary=asked), tasks=tasks)
    assert found.targets(2).shape == (2, 2, 64, 64)
    step = gpu_measure.Step(found)
    step(2)
    assert [name for name, p in step.stepper.network.named_parameters() if p.grad is None] == []
    assert all(line.verdict != BAD for line in checks(found).step())


def test_class_weights_that_would_be_counted_on_data_are_left_out():
    found = subject(MulticlassMask(("a", "b")), loss={"terms": {"ce": 1}, "class_weights": "auto"})
    gpu_measure.Step(found)(2)


# ---- differences ---------------------------------------------------------------------------------------
def test_the_conversion_of_norms_is_compared_with_the_plain_network(monkeypatch):
    (good,) = checks().conversion()
    assert good.verdict == OK and good.numbers["difference"] == 0
    monkeypatch.setattr(gpu_measure, "share_norms", nn.SyncBatchNorm.convert_sync_batchnorm)
    (wrong,) = checks().conversion()
    assert wrong.verdict == BAD and wrong.numbers["difference"] > 0.01, "torch's own drops timm's activations"


def test_levels_of_half_precision_are_compared_with_those_of_float32():
    left_out, half = checks().precision()
    assert (left_out.check, left_out.verdict) == ("float16", LEFT_OUT)
    assert half.check == "bfloat16" and 0 < half.numbers["levels"] < 255 and half.numbers["changed"] < 0.2
    network = subject().network()
    same = gpu_measure.precision_difference(subject(), network, "float32")
    assert (same.levels, same.changed, same.finite) == (0, 0.0, True)


class NoNumbers(nn.Module):
    """Its logits are no numbers under autocast, as where activations pass float16's largest number."""

    stride = 16

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        out = self.conv(x.float() / 255)
        return out * float("nan") if torch.is_autocast_enabled("cpu") else out


def test_probabilities_that_are_not_finite_are_bad_in_the_precision_that_is_used(monkeypatch):
    found = gpu_measure.precision_difference(subject(), NoNumbers(), "bfloat16")
    assert not found.finite and found.changed == 1
    monkeypatch.setattr(Subject, "network", lambda self: NoNumbers())
    assert [line.verdict for line in checks(subject(precision="bfloat16")).precision()] == [LEFT_OUT, BAD]
    assert [line.verdict for line in checks(subject(precision="float32")).precision()] == [LEFT_OUT, NOTE]


@pytest.mark.parametrize(("checkpoint", "verdict"), [(None, NOTE), ("folder", BAD)])
def test_changed_classes_are_bad_where_the_weights_are_trained(monkeypatch, tmp_path, checkpoint, verdict):
    difference = gpu_measure.Difference(levels=200, changed=0.3, finite=True)
    monkeypatch.setattr(gpu_measure, "precision_difference", lambda *_: difference)
    monkeypatch.setattr(Subject, "network", lambda self: None)
    found = subject()
    trained = Subject(found.model, found.task, found.predict, CPU, checkpoint and tmp_path)
    _, line = checks(trained).precision()
    assert line.verdict == verdict and "30.00% change class" in line.found


# ---- a GPU, by fakes -----------------------------------------------------------------------------------
class FakeGpu:
    """A device with room for so many crops, 100 MiB each of 1,000."""

    type = "cuda"

    def __init__(self, monkeypatch, room):
        self.room, self.batch = room, 0
        monkeypatch.setattr(gpu_measure, "Step", lambda *_, **__: self.step)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1000 * 2**20))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
        monkeypatch.setattr(gpu_check.runtime, "peak_memory_mib", lambda _: 100.0 * self.batch)

    def step(self, batch):
        self.batch = batch
        if batch > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_memory_of_the_configured_batch_and_the_largest_one(monkeypatch):
    gpu = FakeGpu(monkeypatch, room=9)
    own, largest = checks(subject(device=gpu), seconds=60).memory()
    assert (own.found, own.verdict) == ("400 of 1,000 MiB", OK)
    assert (largest.found, largest.verdict, largest.numbers) == ("9 crops", OK, {"fits": 9, "does_not_fit": 10})
    parts, _ = checks(subject(device=gpu, accumulate=2), seconds=60).memory()
    assert parts.check == "memory of 2 crops", "a step computes its batch in parts"


def test_a_configured_batch_that_does_not_fit_is_bad(monkeypatch):
    found = checks(subject(device=FakeGpu(monkeypatch, room=3)), seconds=60)
    own, largest = found.memory()
    assert own.verdict == BAD and "accumulate" in own.why and largest.found == "3 crops"
    nothing = list(checks(subject(device=FakeGpu(monkeypatch, room=0)), seconds=60).memory())
    assert [line.verdict for line in nothing] == [BAD, BAD]


def test_a_search_that_was_too_short_says_so(monkeypatch):
    _, largest = checks(subject(device=FakeGpu(monkeypatch, room=9)), seconds=1e-9).memory()
    assert largest.found == "4 crops or more" and "time" in largest.why


def test_a_full_device_is_a_line_and_the_rest_goes_on(monkeypatch):
    found = checks(subject(device=FakeGpu(monkeypatch, room=0)), seconds=0.001)
    for name in ("conversion", "precision", "prediction"):
        monkeypatch.setattr(found, name, lambda: iter(()))
    lines = {line.check: line for line in found.lines()}
    assert lines["training step"].verdict == BAD and "memory is full" in lines["training step"].found
    assert lines["memory of 4 crops"].verdict == BAD and lines["loader"].verdict == LEFT_OUT


@pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError])
def test_what_fails_is_a_line_with_its_first_words(monkeypatch, error):
    def fails():
        raise error("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nmore")
        yield

    found = checks()
    for name in ("conversion", "precision", "step", "prediction", "memory", "loader"):
        monkeypatch.setattr(found, name, fails if name == "step" else lambda: iter(()))
    (line,) = found.lines()
    assert (line.check, line.verdict) == ("training step", BAD)
    assert line.why == "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"


def test_times_say_what_is_faster_than_what_is_configured(monkeypatch):
    takes = {(True, False): 0.010, (False, False): 0.020, (True, True): 0.004}  # (channels last, compiled)

    monkeypatch.setattr(gpu_measure, "Step", lambda _, compile, channels_last: lambda _: (channels_last, compile))
    monkeypatch.setattr(gpu_measure, "seconds_per_call", lambda call, *_: takes[call()])
    found = checks(compiles=True)
    own, other, compiled = found.step()
    assert (own.check, own.found, own.verdict) == ("step, channels_last", "4 crops in 10.0 ms", OK)
    assert (other.verdict, other.why) == (OK, "100% slower than as configured")
    assert (compiled.verdict, compiled.why) == (NOTE, "60% faster than as configured")
    assert found.step_seconds == 0.010


@pytest.mark.parametrize(("pace", "on_gpu", "verdict"), [(401.0, True, OK), (399.0, True, BAD), (399.0, False, NOTE)])
def test_a_gpu_that_waits_for_its_loader_is_bad(monkeypatch, pace, on_gpu, verdict):
    monkeypatch.setattr(gpu_measure, "loader_pace", lambda *_: pace)
    found = checks(subject(device=FakeGpu(monkeypatch, room=9)) if on_gpu else subject(), data=lambda: [])
    found.step_seconds = 0.01  # 4 crops
    (line,) = found.loader()
    assert line.verdict == verdict and line.numbers["step_samples_per_second"] == 400


# ---- the command ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_check")
    tree = {"name": "check", **COMMON, **EXPERIMENTS["binary_rle"]}
    tree["data"] = {**tree["data"], "root": str(folder / "data")}
    (folder / "x.yaml").write_text(yaml.safe_dump(tree))
    return folder


def command(folder, *arguments):
    place = ["--config", str(folder / "x.yaml"), "--workdir", str(folder / "workdir")]
    return gpu_check.main([*place, "--seconds", "0.01", *arguments])


def test_the_command_needs_no_data_and_writes_none(experiment, capsys):
    assert command(experiment, "models.patch.train.batch_size=2", "--out", str(experiment / "found.json")) == 0
    said, found = capsys.readouterr().out, json.loads((experiment / "found.json").read_text())
    assert not (experiment / "data").exists()
    lines = {line["check"]: line for line in found["lines"]}
    assert found["machine"]["device"] == "cpu" and found["experiment"] == "check"
    assert lines["loader"]["verdict"] == lines["memory"]["verdict"] == lines["float16"]["verdict"] == LEFT_OUT
    assert lines["step, channels_last"]["found"].startswith("2 crops in ")
    assert lines["bfloat16"]["numbers"]["weights"] == "random"
    assert all(line["model"] == "patch" and (line["why"] or line["verdict"] == OK) for line in found["lines"])
    assert "nothing is wrong" in said and "SyncBN conversion" in said


@pytest.mark.slow
def test_with_data_the_loader_is_measured_and_with_a_checkpoint_its_weights_are_used(experiment, capsys, monkeypatch):
    from conftest import stage

    flags = ("--config", str(experiment / "x.yaml"), "--workdir", str(experiment / "workdir"))
    assert stage("01_prepare_folds", *flags) == 0 and stage("02_train_loc", *flags, "--fold", "0") == 0
    code = command(experiment, "--out", str(experiment / "found.json"))
    lines = {line["check"]: line for line in json.loads((experiment / "found.json").read_text())["lines"]}
    assert lines["bfloat16"]["numbers"]["weights"] == "trained"
    assert lines["loader"]["verdict"] in (OK, BAD) and lines["loader"]["numbers"]["samples_per_second"] > 0
    assert code == (1 if any(line["verdict"] == BAD for line in lines.values()) else 0)


def test_a_bad_line_ends_with_1_and_wrong_flags_with_2(experiment, capsys, monkeypatch):
    monkeypatch.setattr(Checks, "lines", lambda self: iter([self.line("memory", "not in 8 MiB", BAD, "lower it")]))
    assert command(experiment) == 1
    assert "1 of 1 lines are BAD" in capsys.readouterr().out
    assert command(experiment, "--seconds", "0") == 2
    assert command(experiment, "--only", "other") == 2
    assert "--only other: expected one of patch" in capsys.readouterr().err
    assert command(experiment, "--set", "models.patch.train.batch_size=0") == 2
    assert "models.patch.train.batch_size: expected greater than or equal to 1, got 0" in capsys.readouterr().err
