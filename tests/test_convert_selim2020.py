"""Released weights of 2020: the converted networks against their published forward, and what is refused."""

import json
import os
import pickle
import shlex
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, stage
from networks2020 import FILES, NETWORKS
from test_docs_commands import Reader

from lib.choose.choice import Decision
from lib.competitions import open_competition
from lib.config.load import load
from lib.models import build
from lib.models.checkpoint import load_network
from lib.models.names2020 import rename
from lib.tools import convert_selim2020 as tool

pytestmark = pytest.mark.slow  # networks of full size

CONFIG = ROOT / "configs/xview2_selim2020.yaml"
HEADER = CONFIG.read_text(encoding="utf-8").partition("name: ")[0]


@pytest.fixture(scope="module")
def config():
    return load(CONFIG)


def images(number: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3 * number, 64, 96), generator=torch.Generator().manual_seed(number)).byte()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_answers_as_the_published_one(config, name):
    """Random weights, float64, so that nothing but the forwards themselves can differ; normalised in float32."""
    spec = config.models[name].network
    x = images(len(spec.images))
    network = build(encoder_weights="none", **spec.arguments(1 if "loc" in name else 5)).eval()
    mean, std = ([*values] * len(spec.images) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = (x / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(network.normalize(x), normalised, atol=1e-5)
    state, expected = NETWORKS[name](network.normalize(x).double())
    renamed, unknown = rename({f"module.{key}": tensor for key, tensor in state.items()}, spec.encoder)
    assert not unknown
    del state
    own = {key: tensor for key, tensor in network.state_dict().items() if key.startswith("normalize.")}
    network.load_state_dict(renamed | own)
    with torch.inference_mode():
        found = network.double()(x)
    assert expected.std() > 0.05, "an oracle that says something"
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "millions"),
    {
        "d92_loc": 49.118209,
        "d161_loc": 41.016321,
        "d92_softmax": 54.740229,
        "d161_softmax": 46.426181,
        "se50_pseudo": 39.634171,
        "b2_softmax": 10.477975,
        "r101_sgd": 97.395029,
    }.items(),  # fmt: skip
)
def test_networks_have_the_parameters_of_2020(config, name, millions):
    """Counted in selimsef/xview2_solution at 5d0caba, encoders without their classifiers."""
    spec = config.models[name].network
    with torch.device("meta"):
        network = build(encoder_weights="none", **spec.arguments(1 if "loc" in name else 5))
    assert sum(weight.numel() for weight in network.parameters()) == round(millions * 1e6)


def test_the_experiment_has_the_votes_of_2020(config):
    """predict_single.py lists 6 files for localization and 15 for damage, one of them counted twice."""
    votes = {"loc": [], "cls": []}
    for model in config.models.values():
        votes[model.task] += [model.weight / len(config.folds_of(model))] * len(config.folds_of(model))
    assert votes["loc"] == [1.0] * 6
    assert sorted(votes["cls"]) == [1.0] * 14 + [2.0]
    assert (config.models["d92_loc"].pad, config.predict.precision, config.predict.tile) == (16, "float32", 1024 + 32)


# ---- files ----------------------------------------------------------------------------------------------
def released(folder: Path, name: str, fold: int, **more) -> Path:
    """Write a file as his training did: the older format, apex' prefix, scores as numpy's numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 if "loc" in name else 2
    state, _ = NETWORKS[name](images(number).double() / 255)
    content = {"epoch": 7, "state_dict": OrderedDict((f"module.{key}", tensor) for key, tensor in state.items()),
               "dice_best": np.float64(0.8), "xview_best": 0.7, **more}  # fmt: skip
    path = folder / FILES[name].format(fold)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def b2(tmp_path_factory) -> Path:
    """One released file; tests must not change it."""
    return released(tmp_path_factory.mktemp("weights"), "b2_softmax", 1)


def convert(*arguments: object) -> int:
    return tool.main([str(argument) for argument in (*arguments, "--config", CONFIG)])


def test_a_folder_of_files_becomes_an_experiments_folder(b2, tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):  # a second time changes nothing
        assert convert(b2.parent, "--out", out) == 0
    said = capsys.readouterr().out
    assert f"{b2.name}: b2_softmax of fold 1" in said
    assert "--set models.d92_loc.folds=[] " in said and "--set models.b2_softmax.folds=[1]" in said
    folder = out / "03_cls/b2_softmax/fold1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["converted"]["file"] == b2.name and len(manifest["converted"]["sha256"]) == 64
    assert {"epoch": 7.0, "dice_best": 0.8, "xview_best": 0.7}.items() <= manifest["converted"].items()
    network = load_network(folder)
    state = torch.load(b2, weights_only=False)["state_dict"]
    assert network.head[0].weight.equal(state["module.final.0.weight"])
    assert network.encoder.model.blocks[1][0].se.conv_reduce.bias.equal(
        state["module.encoder_stages.1.2._se_reduce.bias"]
    )
    decision = Decision.read(out / "05_ensemble/decode/decode.json")
    assert decision.params["preset"] == "selim2020" and decision.weights["se50_pseudo"] == 4
    assert decision.scenes == 0 and decision.expected is None and np.isnan(decision.score)


def test_his_folds_take_the_place_of_the_decision(b2, tmp_path):
    table = tmp_path / "folds.csv"
    table.write_text("id,fold,nondamage,minor,major,destroyed,empty\na_00000001,3,True,False,False,False,False\n")
    assert convert(b2, "--out", tmp_path / "out", "--folds", table) == 0
    assert (tmp_path / "out/01_folds/folds.csv").read_text().splitlines()[1].startswith("a_00000001,3,True")
    assert not (tmp_path / "out/05_ensemble").exists(), "stage 05 scores the out-of-fold scenes"


def test_another_name_is_explained_by_flags(b2, tmp_path, capsys):
    other = tmp_path / "mine.pth"
    other.write_bytes(b2.read_bytes())
    assert convert(other, "--out", tmp_path / "out") == 2
    assert "its name does not tell model and fold" in capsys.readouterr().err
    assert convert(other, "--out", tmp_path / "out", "--model", "b2_softmax", "--fold", 0) == 0
    assert (tmp_path / "out/03_cls/b2_softmax/fold0/best.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: expected a file of weights or a folder of them, found nothing there"),
        (["{b2}", "--model", "b2_softmax"], "--model and --fold go together"),
        (["{b2}", "--model", "b2_softmax", "--fold", "9"], "has no fold 9 of a model b2_softmax"),
        (["{b2}", "--model", "d92_softmax", "--fold", "0"], "is not the network of d92_softmax; tensors: "),
        (["{b2}", "{copy}"], "are both b2_softmax of fold 1; keep one of them"),
        (["{b2}", "--set", "search.axes.w_minor=[1, 2]"], "chooses on out-of-fold scenes"),
        (["{b2}", "--set", "models.b2_softmax.network.encoder=resnet34"], "expected one of his, tu-dpn92"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(b2, tmp_path, arguments, words, capsys):
    copy = tmp_path / f"{b2.name}.pth"
    copy.symlink_to(b2)
    arguments = [argument.format(b2=b2, copy=copy) for argument in arguments]
    assert convert(*arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "out/03_cls").exists()


def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(b2, tmp_path, capsys):
    content = torch.load(b2, weights_only=False)
    state = content["state_dict"]
    del state["module.final.0.bias"]
    state["module.encoder_stages.7.0.weight"] = torch.zeros(1)
    state["module.decoder_stages.0.layer.1.bias"] = torch.zeros(3)
    torch.save(content, tmp_path / b2.name)
    assert convert(tmp_path / b2.name, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "1 unknown (encoder_stages.7.0.weight); 1 missing (head.0.bias); 1 of another shape (decoder.up.3.bias)" in (
        error
    )
    assert not (tmp_path / "out/03_cls/b2_softmax/fold1").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["module.final.0.bias"].fill_(np.nan), "1 not finite (head.0.bias)"),
        (
            lambda state: state.update({"module.final.0.bias": torch.zeros(5).cfloat()}),
            "1 of another type (head.0.bias)",
        ),
        (lambda state: state.update({"module.final.0.bias": torch.zeros(5).int()}), "1 of another type (head.0.bias)"),
        (lambda state: state.update({"final.0.bias": torch.ones(5)}), "1 unknown (final.0.bias)"),
    ],
    ids=["nan", "complex", "integers", "twice"],
)
def test_weights_that_cannot_be_his_are_refused(b2, tmp_path, change, words, capsys):
    content = torch.load(b2, weights_only=False)
    change(content["state_dict"])
    torch.save(content, tmp_path / b2.name)
    assert convert(tmp_path / b2.name, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err


def test_nothing_else_is_written_over(b2, tmp_path, capsys):
    """A trained experiment stays as it is, and a conversion for test scenes is none for out-of-fold scenes."""
    table = tmp_path / "folds.csv"
    table.write_text("id,fold\na_00000001,3\n")
    out = tmp_path / "out"
    assert convert(b2, "--out", out) == 0
    assert convert(b2, "--out", out, "--folds", table) == 2
    assert "out: was converted for test scenes; name another folder" in capsys.readouterr().err
    manifest = out / "01_folds/manifest.json"
    trained = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "converted"}
    manifest.write_text(json.dumps(trained))
    before = (out / "03_cls/b2_softmax/fold1/manifest.json").stat().st_mtime_ns
    assert convert(b2, "--out", out) == 2
    assert "out: holds an experiment that was not converted" in capsys.readouterr().err
    manifest.unlink()
    assert convert(b2, "--out", out) == 2
    assert "out: holds results of an experiment" in capsys.readouterr().err
    assert (out / "03_cls/b2_softmax/fold1/manifest.json").stat().st_mtime_ns == before


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["code", "text", "cut", "list"])
def test_a_file_that_is_not_his_is_refused_and_runs_nothing(b2, tmp_path, kind, capsys):
    path, mark = tmp_path / b2.name, tmp_path / "mark"
    if kind == "code":
        torch.save({"epoch": Hostile(mark), "state_dict": {}}, path, _use_new_zipfile_serialization=False)
    elif kind == "text":
        path.write_text("<html>Not Found</html>")
    elif kind == "cut":
        path.write_bytes(b2.read_bytes()[:1_000_000])
    else:
        torch.save([torch.zeros(1)], path)
    assert convert(path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    expected = {"code": "it asks for posix.system", "list": "expected a dict with state_dict"}.get(kind, "")
    assert error.startswith(f"error: {path}: ") and expected in error and "Traceback" not in error
    assert not mark.exists()
    with pytest.raises((pickle.UnpicklingError, RuntimeError, EOFError, TypeError, KeyError)):  # it is hostile indeed
        assert torch.load(path, weights_only=True)["state_dict"]


# ---- stages ---------------------------------------------------------------------------------------------
SMALL = ["predict.tta=none", *(f"models.{name}.view.scale=0.125" for name in NETWORKS)]
"""Networks see scenes at an eighth of their size, once."""


def alone(*kept: str) -> list[str]:
    """Return the settings that leave out all models but these, which are trained on fold 0."""
    return [f"models.{name}.folds={[0] if name in kept else []}" for name in load(CONFIG).models]


def sets(changes: list[str]) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.slow
def test_the_commands_of_the_header_score_released_weights_on_a_test_folder(
    tmp_path, scenes, finished, monkeypatch, request, capsys
):
    """Bash reads the lines of the header; only the folder of the data and settings that make it small are changed."""
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, str(CONFIG), request)
    monkeypatch.setattr(reader, "substitutions", dict)
    data, weights = tmp_path / "data", tmp_path / "weights"
    (data / "test").mkdir(parents=True)
    (data / "test/images").symlink_to(scenes / "test/images")  # a test folder alone, no labels
    (data / "test/targets").mkdir()
    for path in (finished.root / "06_submission/test/xview2").glob("*_prediction.png"):
        (data / "test/targets" / path.name.replace("_prediction", "_target")).write_bytes(path.read_bytes())
    for name in ("d92_loc", "b2_softmax"):
        released(weights, name, 0)
    lines = [line[4:] for line in HEADER.splitlines() if line.startswith("#   ") and "for s in" not in line]
    lines = lines[next(i for i, line in enumerate(lines) if "convert_selim2020" in line) :]
    assert len(lines) <= 6 and lines[-1].startswith("python -m lib.competitions.xview2.metric")
    script = "\n".join(lines).replace("/data/xbd", str(data))
    small = " ".join(shlex.quote(word) for word in sets([*SMALL, *alone("d92_loc", "b2_softmax")]))
    reader.type(script.replace("$flags", f"$flags {small}"))
    said = capsys.readouterr().out
    scores = json.loads(said.splitlines()[-1])
    assert 0 <= scores["score"] <= 1 and scores["localization_f1"] > 0
    assert "no scene was predicted out of fold" in said


@pytest.mark.slow
def test_all_stages_of_the_experiment_in_two_steps_and_out_of_fold(tmp_path, scenes, finished, capsys):
    kept = ("d92_loc", "b2_softmax", "se50_pseudo")
    changes = [f"data.root={scenes}", "folds.n=2", "folds.embed=false", *SMALL, *alone(*kept)]
    for name in kept:
        train = {"epochs": 2, "batch_size": 2, "crop": 64, "workers": 0, "sampling.samples": 2}
        changes += [f"models.{name}.network.encoder_weights=none"]
        changes += [f"models.{name}.train.{key}={value}" for key, value in train.items()]
    flags = ["--config", CONFIG, "--workdir", tmp_path, *sets(changes)]
    for name in ("01_prepare_folds", "02_train_loc", "03_train_cls", "04_predict_tta", "05_ensemble",
                 "06_make_submission"):  # fmt: skip
        assert stage(name, *flags) == 0, (name, capsys.readouterr().err)
    root = tmp_path / "xview2_selim2020"
    decision = Decision.read(root / "05_ensemble/decode/decode.json")
    assert decision.scenes == 3 and list(decision.per_fold) == ["0"] and decision.params["preset"] == "selim2020"
    lines = (root / "03_cls/b2_softmax/fold0/log.jsonl").read_text().splitlines()
    scores = json.loads(lines[-1])["scores"]
    assert scores["select"] == scores.get("argmax_score_present_classes", scores["argmax_score"])
    assert (root / "06_submission/test/xview2.zip").exists()


def test_the_experiment_opens_without_data(tmp_path, config):
    """Converting needs no data: the classes of the tasks are known without."""
    tasks = open_competition(config.competition, tmp_path / "nowhere", config.data.options).tasks
    assert len(tasks["cls"].classes) == 5
    assert yaml.safe_load(CONFIG.read_text())["models"]["d92_pseudo"]["seed"] != config.seed
