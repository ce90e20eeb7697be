"""The training loop: it learns, holds its precision contract, and several processes follow the losses of one."""

import json
from pathlib import Path

import pytest
import starts
import torch
from conftest import NETWORK, ROOT, TINY, stage
from torch import nn

from lib.config.sections import Train
from lib.errors import ArtifactError, NonFiniteError
from lib.models import build
from lib.tasks import MulticlassMask
from lib.training.fit import Fit, Place
from lib.training.precision import Arithmetic, first_nonfinite

pytestmark = pytest.mark.slow  # networks are built and run

CLASSES = MulticlassMask(("background", "no-damage", "minor-damage", "major-damage", "destroyed"))
CPU = torch.device("cpu")


class Squares(torch.utils.data.Dataset):
    """Pairs whose post image shows the class of a square by its colour; sample i is always the same."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        rng = torch.Generator().manual_seed(i % 4)
        image = torch.randint(90, 110, (6, 32, 32), dtype=torch.uint8, generator=rng)
        target = torch.zeros(32, 32, dtype=torch.uint8)
        kind = 1 + i % 4
        target[8:24, 8:24] = kind
        image[:3, 8:24, 8:24] += 60
        image[3:, 8:24, 8:24] += 30 * kind
        return {"image": image, "target": target, "id": f"scene{i % 4}"}


def train(**changes) -> Train:
    base = {
        "epochs": 12, "batch_size": 4, "crop": 64, "clip": 1.0,
        "loss": {"terms": {"focal": 2, "damage_dice": 0.5, "building_dice": 0.5}},
        "optimizer": {"lr": 3.0e-3}, "validate_every": 100,
    }  # fmt: skip
    return Train.model_validate(base | changes)


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    spec = {**NETWORK, "options": {**NETWORK["options"], **options}}
    return build(spec["architecture"], classes=5, images=2, encoder=spec["encoder"], **spec["options"])


def place(folder: Path) -> Place:
    return Place(folder, CPU, 0, lambda line: None)


def fit(tmp_path: Path, section: Train, data=None, net=None) -> list[dict]:
    Fit(net or network(), CLASSES, data or Squares(), lambda _: {"select": 0.0}, section, place(tmp_path)).run()
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_batch_can_be_overfitted(tmp_path, precision):
    log = fit(tmp_path, train(epochs=25, precision=precision))
    assert log[-1]["loss"] < 0.35 * log[0]["loss"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clock_says_where_the_time_went(tmp_path, workers):
    class Timed(Squares):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"seconds": torch.tensor([1.0, 2.0], dtype=torch.float64)}

    section = train(epochs=2, workers=workers, validate_every=1)
    run = Fit(network(), CLASSES, Timed(), lambda _: {"select": 0.0}, section, place(tmp_path))
    run.run()
    found = run.clock.seconds
    assert found["read"] == 2 * 4 * 1.0 and found["augment"] == 2 * 4 * 2.0
    assert all(found[name] > 0 for name in ("forward", "backward", "optimizer", "validate", "store"))
    assert set(found) == {"read", "augment", "forward", "backward", "optimizer", "validate", "store", "wait"}


@pytest.mark.slow
def test_true_float16_scales_the_loss_skips_overflows_and_learns(tmp_path):
    log = fit(tmp_path, train(epochs=10, precision="float16", cpu_precision="float16"))
    health = log[-1]["amp"]
    assert health["precision"] == "float16" and health["scale"] > 1
    assert all(line["loss"] == line["loss"] for line in log) and log[-1]["loss"] < log[0]["loss"]


def test_an_overflow_in_float16_is_skipped_counted_and_named(tmp_path):
    net = network()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    section = train(epochs=1, precision="float16", cpu_precision="float16")
    own = Fit(net, CLASSES, Squares(), lambda _: {"select": 0.0}, section, place(tmp_path))
    own.arithmetic.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    own.run()
    health = json.loads((tmp_path / "log.jsonl").read_text())["amp"]
    assert health["skipped_steps"] == 1 and health["scale"] == 2.0**59 and health["first_nonfinite_layer"]
    assert all(torch.equal(start[name], p) for name, p in net.named_parameters()), "a skipped step moves nothing"


def test_float16_becomes_bfloat16_on_a_cpu_and_the_log_says_so(tmp_path):
    assert fit(tmp_path, train(epochs=1, precision="float16"))[0]["amp"]["precision"] == "bfloat16"


def test_the_float32_contract_is_asserted(tmp_path):
    half = Arithmetic("bfloat16", CPU)
    with pytest.raises(RuntimeError, match="autocast is on"):
        half.assert_float32(network(), tf32=False)
    with pytest.raises(RuntimeError, match="parameters are not float32"):
        Arithmetic("float32", CPU).assert_float32(network().half(), tf32=False)


def test_a_loss_that_is_not_finite_stops_and_names_the_scenes_and_the_layer(tmp_path):
    net = network()
    with torch.no_grad():
        net.head[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"first non-finite layer head\.0; scenes scene0, scene1, scene2, scene3"):
        fit(tmp_path, train(), net=net)
    assert first_nonfinite(net, torch.zeros(1, 6, 64, 64), Arithmetic("float32", CPU)) == "head.0"


def test_accumulation_in_parts_follows_the_whole_batch(tmp_path):
    """Pixel means over equal parts average to the mean of the whole, so the first loss is the same."""
    terms = {"terms": {"ce": 1}}
    whole = fit(tmp_path / "a", train(epochs=1, loss=terms), net=_made(tmp_path / "a", norm="group_everywhere"))
    section = train(epochs=1, loss=terms, accumulate=2)
    parts = fit(tmp_path / "b", section, net=_made(tmp_path / "b", norm="group_everywhere"))
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert parts[0]["gradient_norm"] == pytest.approx(whole[0]["gradient_norm"], rel=1e-4)


def _made(folder: Path, **options) -> nn.Module:
    folder.mkdir()
    return network(**options)


def test_a_frozen_encoder_stands_still_norm_statistics_too(tmp_path):
    net = network()
    before = {k: v.clone() for k, v in net.encoder.state_dict().items()}
    fit(tmp_path, train(epochs=2, freeze_encoder_epochs=2), net=net)
    assert all(torch.equal(before[k], v) for k, v in net.encoder.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["siamese", "maskformer"])
def test_two_processes_follow_the_losses_of_one(architecture, tmp_path):
    """With gloo: same total batch, same losses within float tolerance (group norms: gloo has no SyncBN)."""
    import yaml

    data = {"root": str(tmp_path / "xbd"), "synthetic": {**TINY["data"]["synthetic"], "size": 256}}
    tree = {**TINY, "data": data}
    loc = tree["models"]["loc"]
    options = {**NETWORK["options"], "norm": "group_everywhere"}
    terms, spec = loc["train"]["loss"]["terms"], NETWORK
    if architecture == "maskformer":
        options = {"queries": 4, "channels": 16, "layers": 3, "heads": 2, "feedforward": 32, "norm": "group_everywhere"}
        terms, spec = {"query_class": 2, "query_bce": 5, "query_dice": 5}, NETWORK | {"architecture": architecture}
    section = {**loc["train"], "ema": None, "loss": {"terms": terms}, "clip": 1.0, "validate_every": 3}
    loc = {**loc, "network": {**spec, "options": options}, "train": section}
    config = tmp_path / "ddp.yaml"
    config.write_text(yaml.safe_dump({**tree, "models": {"loc": loc}, "search": None}))
    logs = []
    for name in ("one", "two"):
        flags = ["--config", str(config), "--workdir", str(tmp_path / name)]
        assert stage("01_prepare_folds", *flags) == 0
        if name == "one":
            assert stage("02_train_loc", *flags, "--fold", "0") == 0
        else:
            assert starts.ranks(2, ROOT / "02_train_loc.py", *flags, "--fold", "0") == [0, 0]
        log = tmp_path / name / "tiny/02_loc/loc/fold0/log.jsonl"
        logs.append([json.loads(line) for line in log.read_text().splitlines()])
    one, two = logs
    assert len(one) == len(two) == 3
    for a, b in zip(one, two):
        for key in ("loss", *(f"raw_{name}" for name in terms), "gradient_norm"):
            assert b[key] == pytest.approx(a[key], rel=2e-3), key
    assert two[-1]["scores"]["pixel_f1"] == pytest.approx(one[-1]["scores"]["pixel_f1"], abs=2e-3)


def crowd(net, room):
    """Let a network's device have room for so many crops at a time; returns the sizes that were refused."""
    forward, refused = net.forward, []

    def watched(x):
        if len(x) > room:
            refused.append(len(x))
            raise torch.OutOfMemoryError("no room")
        return forward(x)

    net.forward = watched
    return refused


def test_a_full_device_gets_the_batch_in_parts_and_the_steps_stay_the_same(tmp_path):
    section = train(epochs=2, loss={"terms": {"ce": 1}})
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    net = network(norm="group_everywhere")  # batch norm would see other batches
    refused = crowd(net, room=1)
    small = fit(tmp_path / "small", section, net=net)
    large = fit(tmp_path / "large", section, net=network(norm="group_everywhere"))
    assert refused == [4, 2]
    assert [line["loss"] for line in small] == pytest.approx([line["loss"] for line in large], rel=1e-4)


def test_no_room_for_a_single_crop_says_what_to_change(tmp_path):
    net = network()
    crowd(net, room=0)
    with pytest.raises(ArtifactError, match="lower train.batch_size or train.crop"):
        fit(tmp_path, train(epochs=1), net=net)


def test_training_stops_after_so_many_validations_without_a_new_best(tmp_path):
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.9, 0.9])
    section = train(epochs=6, validate_every=1, patience=2)
    Fit(network(), CLASSES, Squares(), lambda _: {"select": next(scores)}, section, place(tmp_path)).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["new_best"] for line in lines] == [True, True, False, False]


class Breaks(Squares):
    """The same pairs, but the power fails at one of them."""

    def __init__(self, at):
        self.at = at

    def __getitem__(self, i):
        if i == self.at:
            raise RuntimeError("power cut")
        return super().__getitem__(i)


TRICKS = {
    "swa": {"swa_from": 1, "swa_batches": 2},
    "mixup and cutmix": {"mix": {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8}},
    "plateau": {"schedule": {"kind": "plateau", "factor": 0.5, "patience": 1}, "validate_every": 1},
    "scaled rate, all weights decay": {"optimizer": {"name": "sgd", "lr_base": 0.1, "lr_base_batch": 64,
                                                     "no_bias_decay": False, "layer_decay": 0.7}},
    "smoothing and hard pixels": {"loss": {"terms": {"ce": 1}, "smoothing": 0.1, "ohem": 0.5}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TRICKS)
def test_every_trick_trains_and_resumes_to_the_same_bytes(tmp_path, name):
    section = train(epochs=4, **TRICKS[name])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    lines = fit(whole, section)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, section, data=Breaks(at=9))  # in the third epoch
    again = fit(broken, section)
    assert (whole / "best.safetensors").read_bytes() == (broken / "best.safetensors").read_bytes()
    assert [line["loss"] for line in lines] == [line["loss"] for line in again]
    if name == "plateau":  # the judge always says 0.0: a reduction after every validation but the first
        assert [line["lr"] for line in lines] == pytest.approx([3.0e-3, 3.0e-3, 1.5e-3, 0.75e-3])


def test_swa_is_the_mean_of_the_weights_at_the_ends_of_its_epochs(tmp_path):
    ends = []

    class Spy(Fit):
        def _averaged(self):
            ends.append({n: p.detach().clone() for n, p in self.network.named_parameters()})
            return super()._averaged()

    section = train(epochs=3, swa_from=1, swa_batches=1, validate_every=1)
    done = Spy(network(), CLASSES, Squares(), lambda _: {"select": 0.0}, section, place(tmp_path))
    done.run()
    for name in ends[0]:
        torch.testing.assert_close(done.average.tensors[name], (ends[1][name] + ends[2][name]) / 2)


def test_a_run_that_is_broken_within_an_epoch_draws_the_same_dropout(tmp_path):
    """Whatever else draws from torch's generator when a run starts again would shift all that is drawn after it."""

    def trained(folder: Path, breaks: bool) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        net = network()
        net.head.insert(0, nn.Dropout(0.5))
        section = train(epochs=2, batch_size=2)
        own = Fit(net, CLASSES, Squares(), lambda _: {"select": 0.0}, section, place(folder))
        if breaks:
            take = own.stepper.take

            def once(*arguments):
                take(*arguments)
                own.step += 1
                own._save()
                raise InterruptedError

            own.stepper.take = once
        own.run()
        return net.state_dict()

    with pytest.raises(InterruptedError):
        trained(tmp_path / "broken", breaks=True)
    whole, resumed = trained(tmp_path / "whole", breaks=False), trained(tmp_path / "broken", breaks=False)
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
