"""Several tasks on one encoder: branches, their loss, their targets, and a training of it from end to end."""

import copy
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, stage
from reloading import reloaded

from lib.competitions.contract import Scene
from lib.config import check
from lib.config.sections import Loss, Sampling, Train
from lib.errors import ConfigError, DataError
from lib.models import build, checkpoint
from lib.scenes.augment import build as build_augment
from lib.scenes.probs import read_levels
from lib.tasks import IGNORE, BinaryMask, MulticlassMask
from lib.training.dataset import CropDataset, TrainingSet
from lib.training.losses import Criterion
from lib.training.tasks import TasksCriterion, build_criterion

pytestmark = pytest.mark.slow  # networks are built and run

SMALL = [16, 16, 8, 8, 8]
HEAD, DECODER = {"classes": 1, "branch": "head"}, {"classes": 2, "branch": "decoder"}
BOTH = {"loc": HEAD, "parts": DECODER}
NETWORKS = {
    "unet": {"encoder": "tu-test_efficientnet", "decoder_channels": SMALL, "dropout": 0.1},
    "upernet": {"encoder": "tu-test_efficientnet", "decoder": "upernet", "decoder_channels": 16, "aux_head": True},
    "siamese": {"architecture": "siamese", "images": 2, "encoder": "tu-test_resnet", "decoder_channels": SMALL,
                "grad_checkpointing": True},
    "hybrid": {"architecture": "hybrid", "encoder": "tu-test_efficientnet", "decoder_channels": SMALL,
               "aspp_channels": 12, "fpn_channels": 8, "merge": "add", "deep_supervision": True},
    "scratch": {"architecture": "attention_unet", "encoder": "none", "base": 4, "boundary": True},
}  # fmt: skip


def tiny(**options):
    torch.manual_seed(0)
    return build(**{"architecture": "segmentation", "classes": 3, "images": 1} | options)


def picture(images=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3 * images, 64, 64), dtype=torch.uint8, generator=generator)


# ---- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_branch_trains_and_evaluation_is_as_without(name, tmp_path):
    options = NETWORKS[name]
    arguments = {"architecture": "segmentation", "classes": 3, "images": 1} | options | {"auxiliary": BOTH}
    plain, net = tiny(**options), tiny(**arguments)
    x = picture(options.get("images", 1))
    outputs = net(x)
    assert {task: tuple(y.shape) for task, y in outputs["tasks"].items()} == {
        "loc": (2, 1, 64, 64), "parts": (2, 2, 64, 64)
    }  # fmt: skip
    values = [outputs["logits"], *outputs["tasks"].values(), *outputs.get("levels", ())]
    sum(y.square().mean() for y in (*values, *(outputs[k] for k in ("aux", "boundary") if k in outputs))).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    missing = net.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(key.startswith("branches.") for key in missing)
    with torch.inference_mode():
        logits = net.eval()(x)
        assert logits.equal(plain.eval()(x))
    loaded = reloaded(net, arguments, tmp_path)
    with torch.inference_mode():
        assert loaded(x).equal(logits)


def test_a_head_shares_the_decoder_and_a_decoder_does_not():
    for kind, shared in (("head", True), ("decoder", False)):
        net = tiny(**NETWORKS["unet"], auxiliary={"loc": {"classes": 1, "branch": kind}})
        net(picture())["tasks"]["loc"].square().mean().backward()
        assert (net.decoder.blocks[0].conv1[0].weight.grad is not None) == shared
        assert net.encoder.model.conv_stem.weight.grad.any()
        assert net.head[0].weight.grad is None


# ---- the loss -----------------------------------------------------------------------------------------


def settings(**auxiliary):
    return Train(epochs=1, batch_size=2, crop=32, loss=Loss(terms={"ce": 1}), optimizer={"lr": 1e-3},
                 auxiliary=auxiliary)  # fmt: skip


def test_the_total_is_the_own_loss_and_the_others_by_their_weights():
    torch.manual_seed(0)
    own, loc = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8, requires_grad=True)
    target = torch.stack([torch.randint(0, 3, (2, 8, 8)), torch.randint(0, 2, (2, 8, 8))], dim=1).to(torch.uint8)
    target[0, 1, :4] = IGNORE
    train = settings(loc={"loss": {"terms": {"bce": 2, "dice": 1}}, "weight": 0.3})
    criterion = build_criterion(MulticlassMask(("a", "b", "c")), {"loc": BinaryMask(("b",))}, train, None)
    assert isinstance(criterion, TasksCriterion)
    total, values = criterion({"logits": own, "tasks": {"loc": loc}}, target)
    one, _ = Criterion("multiclass", train.loss)(own, target[:, 0])
    two, _ = Criterion("binary", Loss(terms={"bce": 2, "dice": 1}))(loc, target[:, 1])
    assert total.item() == pytest.approx((one + 0.3 * two).item(), rel=1e-6)
    assert (values.keys(), values["loc"].item()) == ({"ce", "loc"}, pytest.approx(two.item()))
    assert (criterion.weights["ce"], criterion.weights["loc"]) == (1, 0.3)
    assert all(g.any() for g in torch.autograd.grad(total, [own, loc]))
    mixed, _ = criterion({"logits": own, "tasks": {"loc": loc}}, target, target.flip(0), 0.25)
    other, _ = criterion({"logits": own, "tasks": {"loc": loc}}, target.flip(0))
    assert mixed.item() == pytest.approx((0.25 * total + 0.75 * other).item(), rel=1e-5)


def test_without_auxiliary_tasks_the_loss_is_the_plain_one():
    assert isinstance(build_criterion(MulticlassMask(("a", "b")), {}, settings(), None), Criterion)


# ---- the targets --------------------------------------------------------------------------------------


def crops(auxiliary, preset="aerial_strong"):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 80, 3), dtype=np.uint8)
    mask = (rng.random((90, 80)) > 0.5).astype(np.uint8) * np.arange(1, 81, dtype=np.uint8)
    data = TrainingSet(
        MulticlassMask(tuple(str(i) for i in range(100))), [Scene("s", {})], ("image",), lambda scene, name: image,
        lambda scene: mask, auxiliary={"loc": (BinaryMask(("b",)), lambda scene: auxiliary(mask))},
    )  # fmt: skip
    return CropDataset(data, build_augment(preset, 64, ("image",), scale=(0.5, 2.5)), Sampling(), seed=1)


@pytest.mark.parametrize("preset", ["none", "aerial_strong", "tissue"])
def test_every_target_is_cut_turned_and_filled_as_the_first(preset):
    dataset = crops(lambda mask: (mask > 0).astype(np.uint8), preset)
    ignored = 0  # what lies outside the scene, for the presets that turn
    for k in range(12):
        target = dataset[k]["target"]
        assert (target.shape, target.dtype) == ((2, 64, 64), torch.uint8)
        own, loc = target
        assert torch.where(own == IGNORE, IGNORE, (own > 0).to(torch.uint8)).equal(loc)
        ignored += int((own == IGNORE).sum())
    assert (ignored > 0) == (preset != "none")


def test_a_target_of_another_size_is_refused_with_the_scene():
    with pytest.raises(DataError, match="scene s, mask loc: expected uint8 .90, 80. like its target"):
        crops(lambda mask: mask[1:])[0]


# ---- from end to end ----------------------------------------------------------------------------------


def experiment(folder, **auxiliary):
    tree = copy.deepcopy(TINY) | {"name": "shared", "search": None}
    tree["data"] = {"root": str(folder / "data"), "synthetic": {"scenes": 4, "test_scenes": 0, "size": 256, "seed": 1}}
    cls = tree["models"].pop("cls")
    cls["train"] |= {"init_from": None, "localization": None, "precision": "float32", "epochs": 2,
                     "auxiliary": auxiliary}  # fmt: skip
    tree["models"] = {"cls": cls}
    path = folder / "shared.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["head", "decoder"])
def test_a_damage_network_learns_localization_beside_and_predicts_damage(branch, tmp_path):
    loss = {"terms": {"dice": 1, "bce": 1}}
    path = experiment(tmp_path, loc={"loss": loss, "weight": 0.5, "branch": branch})
    flags = ("--config", str(path), "--workdir", str(tmp_path / "workdir"))
    assert stage("01_prepare_folds", *flags) == 0
    assert stage("03_train_cls", *flags, "--fold", "0") == 0
    folder = tmp_path / "workdir" / "shared" / "03_cls" / "cls" / "fold0"
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert last["raw_loc"] > 0 and last["weighted_loc"] == pytest.approx(0.5 * last["raw_loc"], abs=2e-6)
    parts = sum(value for name, value in last.items() if name.startswith("weighted_"))
    assert last["loss"] == pytest.approx(parts, rel=1e-4)
    described = checkpoint.read_description(folder)
    assert described["network"]["auxiliary"] == {"loc": {"classes": 1, "branch": branch}}
    assert stage("04_predict_tta", *flags, "--fold", "0", "--split", "oof") == 0
    predicted = tmp_path / "workdir" / "shared" / "04_probs" / "cls" / "cls" / "fold0" / "oof"
    files = [path for path in predicted.iterdir() if path.name != "manifest.json"]
    assert len(files) == 2
    levels, classes = read_levels(files[0])
    assert levels.shape == (5, 256, 256) and len(classes) == 5


@pytest.mark.parametrize(
    ("auxiliary", "words"),
    [
        ({"lok": {}}, "train.auxiliary.lok: expected one of loc, got 'lok'; did you mean loc"),
        ({"cls": {}}, "train.auxiliary.cls: expected one of loc, got 'cls'"),
        ({"loc": {"loss": {"terms": {"ce": 1}}}}, "train.auxiliary.loc.loss.terms: expected one of dice"),
        ({"loc": {"loss": {"terms": {"dice": 1}, "class_weights": "auto"}}}, "class_weights: auto is for the"),
        ({"loc": {"loss": {"terms": {"dice": 1, "boundary_bce": 1}}}}, "boundary_bce belongs to the network's own"),
        ({"loc": {"branch": "tail"}}, "train.auxiliary.loc.branch: expected"),
        ({"loc": {"weight": 0}}, "train.auxiliary.loc.weight: expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_work_begins(auxiliary, words, tmp_path):
    plain = {"loss": {"terms": {"dice": 1}}}
    path = experiment(tmp_path, **{task: plain | options for task, options in auxiliary.items()})
    with pytest.raises(ConfigError, match=words):
        check.open_experiment(path, (), tmp_path / "workdir", "code")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("models.cls.network.options.auxiliary={}", "network.options.auxiliary: follows from train.auxiliary"),
        ("models.cls.train.precision=float16", "loc: this task must be trained in float32, got"),
        ("models.cls.train.pseudo={experiment: x, models: [a]}", "choose one of auxiliary and pseudo"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it_is_refused(change, words, tmp_path):
    path = experiment(tmp_path, loc={"loss": {"terms": {"dice": 1}}})
    with pytest.raises(ConfigError, match=words):
        check.open_experiment(path, (change,), tmp_path / "workdir", "code")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "maskformer", "encoder": "tu-test_resnet"}, "auxiliary"),
        ({"architecture": "classifier", "encoder": "test_resnet"}, "unknown option auxiliary"),
        ({"encoder": "tu-test_vit", "decoder": "dpt"}, "auxiliary: a network with decoder dpt has no branches"),
        ({"encoder": "tu-test_resnet", "auxiliary": {"loc": {"classes": 1}}}, "auxiliary: expected classes and"),
        ({"encoder": "tu-test_resnet", "auxiliary": {"loc": 1}}, "auxiliary: expected classes and"),
        ({"encoder": "tu-test_resnet", "auxiliary": 1}, "auxiliary: expected tasks, each with its classes and branch"),
    ],
)  # fmt: skip
def test_networks_without_branches_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**{"auxiliary": BOTH} | options)
