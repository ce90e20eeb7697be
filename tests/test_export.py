"""Exported files give our levels under onnxruntime and torch.export, at every size, and say what QGIS reads."""

import argparse
import ast
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from lib.ensemble import calibration
from lib.errors import ArtifactError, ConfigError
from lib.models import build
from lib.tasks import BinaryMask, Label, MulticlassMask, MultilabelMask
from lib.tools import export, export_graph
from lib.tools.export_graph import Asked, Averaged, GraphMember, compare, levels_of, pictures_of, tempered

onnx = pytest.importorskip("onnx", reason="needs requirements-export.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")
pytest.importorskip("onnxscript", reason="needs requirements-export.txt")

CLASSES = MulticlassMask(("nothing", "whole", "broken"))


def member(net, channels=range(3), share=1.0, temperature=1.0) -> GraphMember:
    return GraphMember("net/fold0", net, tuple(channels), share, temperature)


ASKED = Asked()


def written(tmp_path, members, task, asked=ASKED):
    """Export to ONNX; return the file, and what the comparison found."""
    program = export_graph.trace(members, task, asked)
    model = export_graph.onnx_model(program, {})
    path = tmp_path / "model.onnx"
    return path, export_graph.write_onnx(path, model, partial(compare, members=members, task=task, asked=asked))


# ---- equality -----------------------------------------------------------------------------------------
class Small(torch.nn.Module):
    """A network of one convolution whose three answers differ; ``images``: how many it sees."""

    stride = 32

    def __init__(self, seed=0, images=1):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Conv2d(3 * images, 3, 3, padding=1)

    def forward(self, x):
        return self.layer(x.float() / 64 - 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "net"),
    [
        (BinaryMask(("house",)), {"architecture": "unet", "classes": 1, "encoder": "none", "base": 2}),
        (Label(("cat", "dog", "fox")), {"architecture": "classifier", "encoder": "tu-test_efficientnet", "classes": 3}),
    ],
    ids=["unet", "classifier"],
)
def test_an_onnx_file_has_our_levels_at_several_sizes_and_batches(tmp_path, task, net):
    """A Siamese network is exported below, by the command."""
    torch.manual_seed(0)
    own = build(**net, images=1).eval()
    if not task.dense:
        own.head.weight.data *= 1000  # of an encoder without training all pictures have nearly the same features
    path, found = written(tmp_path, [member(own)], task)
    assert found["largest"] <= 1 and len({tuple(shape) for shape in found["shapes"]}) == 3
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,), (probs,) = session.get_inputs(), session.get_outputs()
    assert (image.name, probs.name) == ("image", "probabilities")
    assert image.shape == ["batch", 3, "height", "width"] and probs.shape[:2] == ["batch", task.channels]
    side = export_graph.stride_of([member(own)])
    pictures = pictures_of((1, 2 * side, 5 * side), 3, seed=9)  # a size that was not traced
    (answer,) = session.run(None, {"image": pictures.astype(np.float32) / 255})
    with torch.inference_mode():
        plain = task.activate(own(torch.from_numpy(pictures))).numpy()  # without anything of the exporter
    assert np.abs(np.rint(answer * 255) - np.rint(plain * 255)).max() <= 1
    assert plain.std() > 0.001, "the answers of this network differ, so that agreement says something"


@pytest.mark.slow
def test_the_average_is_that_of_stage_05_with_its_weights_flips_and_images(tmp_path):
    nets = [Small(0), Small(1, images=2)]
    both = [member(nets[0], share=0.75), member(nets[1], (3, 4, 5, 0, 1, 2), share=0.25)]  # it sees [post, pre]
    path, found = written(tmp_path, both, CLASSES, Asked(largest=255, views="hflip"))
    assert found["largest"] <= 1
    picture = pictures_of((2, 96, 64), 6, seed=4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"image": picture.astype(np.float32)})
    x = torch.from_numpy(picture)
    seen = [x[:, :3], torch.cat([x[:, 3:], x[:, :3]], 1)]
    with torch.inference_mode():
        each = [(CLASSES.activate(net(one)) + CLASSES.activate(net(one.flip(-1))).flip(-1)) / 2
                for net, one in zip(nets, seen, strict=True)]  # fmt: skip
    np.testing.assert_allclose(answer, (0.75 * each[0] + 0.25 * each[1]).numpy(), atol=2e-5)


@pytest.mark.parametrize("task", [MultilabelMask(("a", "b", "c")), CLASSES], ids=["overlapping", "exclusive"])
def test_an_average_with_temperatures_is_nearly_that_of_stage_05(task):
    own = [member(Small(2), share=0.5, temperature=1.7), member(Small(3), share=0.5)]
    module = Averaged(own, task, 1)

    def run(image):
        with torch.inference_mode():
            return module(torch.from_numpy(image)).numpy()

    found = compare(run, own, task, ASKED)
    assert found["largest"] == 0 and found["to_stage_05"] <= 3


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_temperature_is_that_of_the_levels(exclusive, temperature):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (1 if not exclusive else 3, 40, 40)).astype(np.uint8)
    if exclusive:
        shares = rng.dirichlet([0.6] * 3, (40, 40)).transpose(2, 0, 1)
        levels = np.rint(shares * 255).astype(np.uint8)
    else:
        levels[0].ravel()[:256] = np.arange(256)
    wanted = calibration.apply(levels, temperature, exclusive)
    found = tempered(torch.from_numpy(levels[None] / np.float32(255)), temperature, exclusive)[0].numpy()
    assert np.abs(np.rint(found * 255) - wanted).max() <= 1


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (5, 1, 2), (1, 2, 1)])
def test_fixed_padding_is_that_of_tensorflow_for_multiples_of_the_stride(kernel, stride, dilation):
    from timm.layers import Conv2dSame

    own = torch.nn.Sequential(Conv2dSame(2, 3, kernel, stride=stride, dilation=dilation))
    fixed = export_graph._of_fixed_padding(own)
    for shape in ((1, 2, 32, 64), (2, 2, 96, 32)):
        x = torch.rand(shape)
        assert fixed(x).equal(own(x))
    assert type(own[0]) is Conv2dSame, "the network itself stays as it is"


# ---- what is refused ----------------------------------------------------------------------------------
class Constant(torch.nn.Module):
    """A network that needs no weights: the classes are red, green and blue."""

    stride = 32

    def forward(self, x):
        return x.float() / 32


def test_a_file_with_other_levels_is_not_kept(tmp_path):
    own = [member(Constant())]
    module = Averaged(own, CLASSES, 1)

    def run(image, off=0.0):
        with torch.inference_mode():
            return (module(torch.from_numpy(image)).numpy() + np.float32(off)).clip(0, 1)

    check = partial(compare, members=own, task=CLASSES, asked=Asked())
    assert check(run)["largest"] == 0
    with pytest.raises(ArtifactError, match=r"expected at most 1 of 255, found [23] \(.*it is not kept"):
        check(partial(run, off=2.2 / 255))
    path = tmp_path / "model.onnx"
    with pytest.raises(ArtifactError):
        with export_graph.whole_path(path) as partial_path:
            partial_path.write_bytes(b"a file")
            check(partial(run, off=2.2 / 255))
    assert list(tmp_path.iterdir()) == []


def test_levels_of_stage_05_are_averages_of_whole_levels():
    """Two networks with 10.4 and 20.4 of 255 have the levels 10 and 20, and an average of 15."""

    class Says(torch.nn.Module):
        stride = 32

        def __init__(self, level):
            super().__init__()
            self.logit = float(np.log(level / (255 - level)))

        def forward(self, x):
            return torch.full_like(x[:, :1].float(), self.logit)

    own = [member(Says(10.4), share=0.5), member(Says(20.4), share=0.5)]
    levels = levels_of(own, BinaryMask(("a",)), pictures_of((1, 32, 32), 3))
    assert levels.shape == (1, 1, 32, 32) and (levels == 15).all()


def test_a_package_that_is_missing_is_a_sentence_that_names_the_file():
    with pytest.raises(ConfigError, match="needs the package no_such_one, .* pip install -r requirements-export.txt"):
        export_graph.needed("no_such_one")


@pytest.mark.slow
def test_a_network_that_takes_one_size_alone_is_exported_for_it(tmp_path):
    class Stubborn(Constant):
        def forward(self, x):
            return super().forward(x.reshape(x.shape[0], 3, 64, 64))

    own = [member(Stubborn())]
    with pytest.raises(ConfigError, match="torch.export cannot follow net/fold0: .*--size 512"):
        export_graph.trace(own, CLASSES, Asked())
    with pytest.raises(ConfigError, match="--size 60: expected a multiple of the networks' stride 32"):
        export_graph.trace(own, CLASSES, Asked(size=60))
    path, found = written(tmp_path, own, CLASSES, Asked(size=64))
    assert found["largest"] <= 1
    assert onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape == ["batch", 3, 64, 64]


# ---- the command --------------------------------------------------------------------------------------
def deepness(path) -> dict:
    """Read what the plugin reads of a file, as it reads it: JSON texts among the custom metadata."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    held = session.get_modelmeta().custom_metadata_map
    names = json.loads(held["class_names"])
    assert [int(number) for number in names] == list(range(len(names))), "it refuses gaps"
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    return {
        "type": json.loads(held["model_type"]), "classes": list(names.values()),
        "tile": int(json.loads(held["tile_size"])),
        "overlap": int(json.loads(held["tiles_overlap"])), "threshold": float(json.loads(held["seg_thresh"])),
        "small": int(json.loads(held["seg_small_segment"])), "input": image.shape, "output": output.shape,
        "resolution": float(json.loads(held.get("resolution", "0"))),
    }  # fmt: skip


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A damage network of the tiny experiment, a Siamese one; tests must not change it."""
    out = tmp_path_factory.mktemp("exported")
    flags = ["--config", str(finished.config), "--workdir", str(finished.root.parent)]
    assert export.main([*flags, "--out", str(out), "--task", "cls", "--fold", "1", "--tile", "64",
                        "--resolution", "200", "--license", "mit"]) == 0  # fmt: skip
    return out


@pytest.mark.slow
def test_the_command_writes_every_file_with_what_qgis_reads(exported):
    names = {path.name for path in (exported / "cls").iterdir()}
    assert names == {"model.onnx", "qgis.onnx", "model.pt2", "networks", "README.md", "export.json"}
    assert [path.name for path in (exported / "cls/networks/cls").iterdir()] == ["fold1"]
    said = json.loads((exported / "cls/export.json").read_text())
    assert all(found["largest"] <= 1 for found in said["checked"].values()) and len(said["checked"]) == 3
    assert said["networks"] == {"cls/fold1": 1.0}
    for name, size in (("qgis.onnx", [1, 6, 64, 64]), ("model.onnx", ["batch", 6, "height", "width"])):
        found = deepness(exported / "cls" / name)
        assert found["input"] == size and found["output"] == [size[0], 5, *size[2:]]
        assert (found["type"], found["tile"], found["resolution"], found["threshold"]) == ("Segmentor", 64, 200, 0)
        assert found["classes"] == ["background", "no-damage", "minor-damage", "major-damage", "destroyed"]


def test_one_class_has_a_background_for_qgis_and_a_threshold():
    from lib.config.load import load

    config = load(ROOT / "configs/xview2_cpu.yaml")
    own = [GraphMember("loc_lite0/fold0", Constant(), (0, 1, 2), 1.0)]
    card = export.Card(config, "loc", BinaryMask(("building",)), ("pre",), own, ASKED, None, [], "other", None)
    found = export.cards.metadata(card, 512, 0.25)
    assert found["class_names"] == {0: "background", 1: "building"} and found["seg_thresh"] == 0.5
    assert found["tile_size"] == found["tiles_size"] == 512 and found["tiles_overlap"] == 25
    assert "resolution" not in found and found["input_range"] == [0, 1] and found["stride"] == 32
    text = export.cards.text(card, {})
    assert "stage 05 has not been run" in text and "apache-2.0" in text
    noisy = config.models["loc_lite0"].network.model_copy(update={"encoder": "mit_b0", "encoder_weights": "hub"})
    models = {"loc_lite0": config.models["loc_lite0"].model_copy(update={"network": noisy})}
    bound = export.Card(config.model_copy(update={"models": models}), *list(vars(card).values())[1:])
    assert "research or evaluation only" in export.cards.text(bound, {}), "a licence that excludes prizes is said"
    assert export.cards.began_with(card, "cls_lite0") == "bundled", "it starts from loc_lite0"


@pytest.mark.slow
def test_the_lines_of_the_model_card_run(exported, monkeypatch):
    card = (exported / "cls/README.md").read_text()
    assert card.startswith("---\nlicense: mit\npipeline_tag: image-segmentation\n")
    assert "pre red, pre green, pre blue, post red" in card and "apache-2.0" in card and "score" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(exported / "cls")
    scope: dict = {}
    exec(compile(ast.parse(code), "card", "exec"), scope)
    assert scope["levels"].shape == (2, 5, 64, 96) and scope["probabilities"].sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_one_network_alone_is_that_checkpoint_and_weights_are_those_of_stage_05(finished):
    from lib.config import check
    from lib.run.artifacts import Store

    config, competition = check.open_experiment(finished.config, [], finished.root.parent)
    source = export.Finished(config, competition, Store(finished.root), "")
    members, images, folders = export.read_members(source, "cls", [("cls", 1)], None, [])
    assert [m.name for m in members] == ["cls/fold1"] and members[0].share == 1 and images == ("pre", "post")
    theirs = load_file(folders["cls/fold1"] / "best.safetensors")
    assert folders["cls/fold1"] == finished.root / "03_cls/cls/fold1"
    assert all(tensor.equal(theirs[name]) for name, tensor in members[0].network.state_dict().items())
    both = [("cls", 0), ("cls", 1)]
    decision = source.decision()
    hot = decision.model_copy(update={"temperatures": {"cls": 1.5}})
    members, _, _ = export.read_members(source, "cls", both, hot, [])
    assert [(m.share, m.temperature) for m in members] == [(0.5, 1.5)] * 2
    none = decision.model_copy(update={"weights": {"loc": 1.0, "cls": 0.0}})
    with pytest.raises(ConfigError, match="stage 05 gave none of them a weight"):
        export.read_members(source, "cls", both, none, [])
    said = export.said_of(source, ["cls"], decision, Asked(views="d4"))
    assert any("view" in line for line in said) and any("--tta" in line for line in said)


def test_qgis_has_no_file_for_what_it_cannot_show():
    assert "label of a whole picture" in export.no_tile(False, ASKED, 512, 32)
    assert "values of 0..1" in export.no_tile(True, Asked(largest=255), 512, 32)
    assert export.no_tile(True, ASKED, 512, 32) == ""


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(finished, tmp_path, capsys):
    shutil.copytree(finished.root, tmp_path / "workdir/tiny")
    flags = ["--config", str(finished.config), "--workdir", str(tmp_path / "workdir"), "--out", str(tmp_path / "out")]

    def refused(*more: str) -> str:
        assert export.main([*flags, *more]) == 2
        return capsys.readouterr().err

    assert "--task: expected one of loc, cls, got 'los'; did you mean loc?" in refused("--task", "los")
    assert "--push: expected one task" in refused("--push", "me/model")
    assert "--tile 70: expected a multiple" in refused("--task", "loc", "--tile", "70")
    other = ("--set", "models.loc.network.options={decoder: unet, decoder_channels: [8, 8, 8, 8], upsample_logits: 2}")
    assert "02_loc/loc/fold0 was made with another network" in refused("--task", "loc", *other)
    path = tmp_path / "workdir/tiny/02_loc/loc/fold0/best.safetensors"
    state = load_file(path)
    save_file({name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}, path)
    assert "its bytes changed after it was written" in refused("--task", "loc")
    shutil.rmtree(tmp_path / "workdir/tiny/03_cls/cls/fold1")
    assert "03_cls/cls/fold1 has not been made; run: python 03_train_cls.py" in refused("--task", "cls")
    assert not (tmp_path / "out/loc/model.onnx").exists()


def test_a_push_without_a_network_is_a_sentence_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match="--push me/model: the Hugging Face hub was not reached .*hf upload me/model"):
        export.push(tmp_path, "me/model", public=False)


def test_models_that_see_scenes_at_two_sizes_have_no_common_file():
    from lib.config.load import load

    config = load(ROOT / "configs/xview2_selim2020.yaml")
    first = next(name for name, model in config.models.items() if model.task == "loc")
    models = {first: config.models[first],
              "other": config.models[first].model_copy(update={"view": config.models[first].view.model_copy(
                  update={"scale": 0.5})})}  # fmt: skip
    source = argparse.Namespace(graph=argparse.Namespace(models=lambda task, only: models), config=config)
    with pytest.raises(ConfigError, match="expected models that see scenes at one size.*--only"):
        list(export.networks(source, "loc", None, None))
