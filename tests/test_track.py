"""Trackers: their files are read by their own readers; resume, failures, nothing where it is off."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lib.errors import ConfigError
from lib.tools import track as tool
from lib.training import trackers
from lib.training.trackers import flat, follow

LINES = [
    {"epoch": 1, "lr": 0.001, "loss": 0.5, "raw_dice": 0.4, "weighted_dice": 0.2, "amp": {"precision": "float32"},
     "images_per_second": 12.5, "new_best": True, "scores": {"score": 0.25, "f1_no-damage": 0.125}},
    {"epoch": 2, "lr": 0.0005, "loss": 0.25, "raw_dice": 0.3, "weighted_dice": 0.1, "amp": {"skipped": 2},
     "gpu_memory_mib": None, "scores": {"score": 0.75, "f1_no-damage": float("nan")}},
]  # fmt: skip
SETTINGS = {"model": "unet", "network": {"encoder": "resnet18", "images": ["pre", "post"]}, "fold": 0}
PICTURE = np.zeros((6, 8, 3), np.uint8) + np.array([200, 100, 50], np.uint8)


def tell(name, experiment, lines=LINES, scores=None, before=()):
    """Follow a training whose log has ``before`` already, and tell of ``lines``."""
    with follow([name], experiment, "02_loc/unet/fold0", before) as run:
        run.begin(SETTINGS, before)
        for line in lines:
            run.line(line)
        if scores is not None:
            run.scores(scores)
            run.picture("worst/scene_1", PICTURE)


def test_a_line_becomes_numbers_by_name():
    first = {"lr": 0.001, "loss": 0.5, "raw/dice": 0.4, "weighted/dice": 0.2, "new_best": 1.0,
             "images_per_second": 12.5, "scores/score": 0.25, "scores/f1_no-damage": 0.125}  # fmt: skip
    second = {"lr": 0.0005, "loss": 0.25, "raw/dice": 0.3, "weighted/dice": 0.1, "amp/skipped": 2.0,
              "scores/score": 0.75}  # fmt: skip
    assert flat(LINES[0]) == first
    assert flat(LINES[1]) == second, "what is no finite number is left out"


# ---- their own readers --------------------------------------------------------------------------------
@pytest.mark.slow
def test_tensorboard_reads_curves_settings_scores_and_pictures_and_a_resumed_run_is_one(tmp_path):
    pytest.importorskip("tensorboard", reason="needs requirements-track.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experiment = tmp_path / "demo"
    tell("tensorboard", experiment, LINES[:1])
    tell("tensorboard", experiment, LINES[1:], {"score": 0.75}, before=LINES[:1])
    (run,) = (experiment / "tracking/tensorboard/02_loc/unet/fold0").iterdir()
    reader = EventAccumulator(str(run)).Reload()
    curve = [(event.step, event.value) for event in reader.Scalars("scores/score")]
    assert curve == [(1, 0.25), (2, 0.75)], "each epoch once, though the second process was told of both"
    assert [event.step for event in reader.Scalars("raw/dice")] == [1, 2]
    assert [(e.step, e.value) for e in reader.Scalars("final/score")] == [(2, 0.75)]
    (text,) = reader.Tensors("settings/text_summary")
    assert b"resnet18" in text.tensor_proto.string_val[0]
    (picture,) = reader.Images("worst/scene_1")
    assert (picture.width, picture.height) == (8, 6)


@pytest.mark.slow
def test_mlflow_reads_curves_settings_scores_and_pictures_and_a_resumed_run_is_one(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs requirements-track.txt")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = tmp_path / "demo"
    tell("mlflow", experiment, LINES[:1])
    tell("mlflow", experiment, LINES[1:], {"score": 0.75}, before=LINES[:1])
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(experiment / "tracking/mlflow").as_uri())
    known = client.get_experiment_by_name("demo")
    (run,) = client.search_runs([known.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "02_loc/unet/fold0"
    history = client.get_metric_history(run.info.run_id, "scores/score")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.75)]
    assert run.data.metrics["final/score"] == 0.75 and run.data.params["network.encoder"] == "resnet18"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/worst_scene_1.png"]
    path = client.download_artifacts(run.info.run_id, "settings.json")
    assert json.loads(open(path).read()) == SETTINGS


def records(path):
    """Yield the records of a file of W&B: LevelDB's log format, messages of their own protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.mark.slow
def test_wandb_reads_curves_and_settings_and_both_parts_of_a_resumed_run_have_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs requirements-track.txt")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    experiment = tmp_path / "demo"
    tell("wandb", experiment, LINES[:1])
    tell("wandb", experiment, LINES[1:], {"score": 0.75}, before=LINES[:1])
    paths = sorted((experiment / "tracking/wandb").glob("offline-run-*/run-*.wandb"))
    found = [record for path in paths for record in records(path)]
    assert len(paths) == 2 and len({path.name for path in paths}) == 1, "the second part is of the same run"
    told = []
    for record in found:
        items = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        if "scores/score" in items:
            told.append((items["epoch"], items["scores/score"]))
    assert told == [(1, 0.25), (2, 0.75)]
    runs = [record.run for record in found if record.HasField("run")]
    assert {(run.project, run.display_name) for run in runs} == {("demo", "02_loc/unet/fold0")}
    assert any("resnet18" in update.value_json for record in found for update in record.config.update) or any(
        "resnet18" in update.value_json for run in runs for update in run.config.update
    )
    assert list((experiment / "tracking/wandb").glob("offline-run-*/files/media/images/worst/*.png"))


# ---- runs ---------------------------------------------------------------------------------------------
class Spy:
    """A tracker that remembers what it is told, or fails at it."""

    def __init__(self, subject, fails=""):
        self.subject, self.fails, self.told = subject, fails, []

    def __getattr__(self, method):
        def call(*arguments):
            self.told.append((method, *arguments))
            if method == self.fails:
                raise OSError("the disk is gone\nand more")

        return call


@pytest.fixture
def spies(monkeypatch):
    """Trackers that remember; ``spies.fails`` makes the next ones fail at a method."""

    class Spies(list):
        fails = ""

        def open_run(self, subject):
            if self.fails == "open":
                raise RuntimeError("no server")
            self.append(Spy(subject, self.fails))
            return self[-1]

    found = Spies()
    monkeypatch.setattr(trackers.importlib, "import_module", lambda name: found)
    return found


def test_a_training_that_begins_anew_is_a_new_run_and_one_that_goes_on_is_not(tmp_path, spies):
    tell("wandb", tmp_path / "x", LINES[:1])
    tell("wandb", tmp_path / "x", LINES[1:], before=LINES[:1])
    tell("wandb", tmp_path / "x", [{**LINES[0], "loss": 0.9}])
    first, second, third = (spy.subject for spy in spies)
    assert first.run == second.run != third.run and (first.goes_on, second.goes_on, third.goes_on) == (
        False, True, False)  # fmt: skip
    assert [call[0] for call in spies[1].told] == ["epoch", "close"] and spies[1].told[0][1] == 2


def test_a_training_that_was_followed_from_the_middle_on_is_told_from_its_beginning(tmp_path, spies):
    tell("wandb", tmp_path / "x", LINES[1:], before=LINES[:1])
    assert [call[1] for call in spies[0].told if call[0] == "epoch"] == [1, 2]


def test_a_run_that_was_killed_before_its_first_epoch_is_no_second_run(tmp_path, spies):
    tell("wandb", tmp_path / "x", [])
    tell("wandb", tmp_path / "x", LINES[:1])
    assert spies[0].subject.run == spies[1].subject.run and spies[1].subject.goes_on


@pytest.mark.parametrize("method", ["open", "settings", "epoch", "scores", "picture", "close"])
def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tmp_path, spies, capsys, method):
    spies.fails = method
    tell("wandb", tmp_path / "x", LINES, {"score": 1.0})
    said = capsys.readouterr().out
    assert said.count("track: wandb failed") == 1 and "goes on without it" in said
    assert "and more" not in said
    assert len([call for spy in spies for call in spy.told if call[0] == method]) <= 1


def test_an_error_of_the_training_passes_and_the_run_is_marked(tmp_path, spies):
    with pytest.raises(KeyboardInterrupt):
        with follow(["wandb"], tmp_path / "x", "02_loc/unet/fold0") as run:
            run.begin(SETTINGS)
            raise KeyboardInterrupt
    assert spies[0].told[-1] == ("close", True)


def test_other_processes_of_torchrun_and_an_empty_list_open_nothing(tmp_path, spies, monkeypatch):
    with follow([], tmp_path / "x", "02_loc/unet/fold0") as run:
        run.begin(SETTINGS)
        run.line(LINES[0])
    monkeypatch.setattr(trackers.runtime, "rank", lambda: 1)
    tell("wandb", tmp_path / "x")
    assert not spies and not (tmp_path / "x").exists()


def test_a_missing_package_is_refused_with_the_file_to_install(monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "mlflow", "no_such_package")
    trackers.require(["tensorboard"] if trackers.importlib.util.find_spec("tensorboard") else [])
    with pytest.raises(ConfigError, match="track: mlflow needs the package no_such_package.*requirements-track.txt"):
        trackers.require(["mlflow"])


@pytest.mark.slow
def test_without_trackers_none_of_their_packages_is_imported():
    code = ("import sys; sys.modules['wandb'] = None; "  # which timm imports by itself, where it is installed
            "import lib.stages.train, lib.stages.track; own = [name for name in sys.modules if 'trackers.' in name]; "
            "print(own + [name for name in ('tensorboard', 'mlflow', 'onnx') if name in sys.modules])")  # fmt: skip
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ---- stages and the tool ------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_training_that_is_followed_has_the_same_weights_and_fingerprint(experiment):
    pytest.importorskip("tensorboard", reason="needs requirements-track.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    unit = experiment.root / "02_loc/loc/fold0"
    before = {name: (unit / name).read_bytes() for name in ("best.safetensors", "log.jsonl")}
    fingerprint = json.loads((unit / "manifest.json").read_text())["fingerprint"]
    flags = ("--only", "loc", "--fold", "0", "--set", "track=[tensorboard]")
    assert experiment.run("02_train_loc", *flags) == 0
    assert (unit / "log.jsonl").read_bytes() == before["log.jsonl"], "track alone makes nothing stale"
    assert experiment.run("02_train_loc", *flags, "--force") == 0
    assert (unit / "best.safetensors").read_bytes() == before["best.safetensors"]
    made = json.loads((unit / "manifest.json").read_text())
    assert made["fingerprint"] == fingerprint and set(made["files"]) == {
        "best.safetensors",
        "log.jsonl",
        "network.json",
    }
    (run,) = (experiment.root / "tracking/tensorboard/02_loc/loc/fold0").iterdir()
    reader = EventAccumulator(str(run)).Reload()
    log = [json.loads(line) for line in (unit / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([event.value for event in reader.Scalars("loss")], [line["loss"] for line in log],
                               rtol=1e-6)  # fmt: skip
    assert len(made["scores"]) > 1
    for name, value in made["scores"].items():
        assert reader.Scalars(f"final/{name}")[0].value == pytest.approx(value, rel=1e-6), name


@pytest.mark.slow
def test_the_tool_tells_what_was_trained_without_and_does_so_once(finished, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="needs requirements-track.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copytree(finished.root, tmp_path / "workdir/tiny")
    folder = tmp_path / "workdir/tiny"
    assert tool.main([str(folder), "--to", "tensorboard"]) == 0
    said = capsys.readouterr().out
    assert said.count("3 of 3 epochs to tensorboard") == 4 and "--config" in said
    assert tool.main([str(folder), "--to", "tensorboard", "--config", str(finished.config)]) == 0
    assert capsys.readouterr().out.count("tensorboard has them all") == 4
    (run,) = (folder / "tracking/tensorboard/03_cls/cls/fold1").iterdir()
    assert len(EventAccumulator(str(run)).Reload().Scalars("loss")) == 3, "nothing was told twice"
    (run,) = (folder / "tracking/tensorboard/05_ensemble/decode").iterdir()
    reader = EventAccumulator(str(run)).Reload()
    decision = json.loads((folder / "05_ensemble/decode/decode.json").read_text())
    assert reader.Scalars("final/score")[0].value == pytest.approx(decision["scores"]["score"])
    pictures = reader.Tags()["images"]
    assert len(pictures) == 4 and all(name.startswith("worst/synthetic-") for name in pictures)
    assert tool.main([str(tmp_path), "--to", "tensorboard"]) == 2
    assert "expected the folder of an experiment with logs" in capsys.readouterr().err
