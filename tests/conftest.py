"""A tiny experiment on the embedded scenes: the real stages, the real formats, networks of a few layers."""

import fcntl
import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = ROOT / "tests" / "offline"
runpy.run_path(str(OFFLINE / "sitecustomize.py"))  # no test reaches the network, nor a process that it starts
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and stages with it
os.fsync = lambda descriptor: None  # no test loses power, and a disk takes its time for each file
Opened = TypeVar("Opened")
STAGES = ("01_prepare_folds", "02_train_loc", "03_train_cls", "04_predict_tta", "05_ensemble", "06_make_submission")

NETWORK = {
    "architecture": "siamese",
    "images": ["pre", "post"],
    "encoder": "tu-test_efficientnet",
    "options": {"decoder": "unet", "decoder_channels": [16, 16, 8, 8], "upsample_logits": 2},
}
VIEW = {"scale": 0.25}
TRAIN = {
    "epochs": 3,
    "batch_size": 2,
    "crop": 64,
    "sampling": {"samples": 6},
    "optimizer": {"lr": 1.0e-3, "weight_decay": 0.01},
    "clip": 1.0,
    "ema": 0.9,
    "validate_every": 2,
}
TINY = {
    "name": "tiny",
    "seed": 3,
    "competition": "xview2",
    "data": {"root": "data", "synthetic": {"scenes": 6, "test_scenes": 2, "size": 1024, "seed": 1}},
    "folds": {"n": 2},
    "models": {
        "loc": {
            "task": "loc",
            "view": VIEW,
            "network": NETWORK,
            "train": {
                **TRAIN,
                "sampling": {"samples": 6, "focus": {"building": 1}, "focus_probability": 0.5},
                "loss": {"terms": {"dice": 1, "focal": 1}},
            },
        },
        "cls": {
            "task": "cls",
            "view": VIEW,
            "network": NETWORK,
            "train": {
                **TRAIN,
                "init_from": "loc",
                "localization": "loc",
                "precision": "float16",
                "sampling": {
                    "samples": 6,
                    "focus": {"minor-damage": 1},
                    "focus_first": "class",
                    "focus_probability": 0.5,
                },
                "loss": {
                    "terms": {"focal": 2, "damage_dice": 0.5, "building_dice": 0.5},
                    "class_weights": [1, 1, 5, 3, 3],
                },
            },
        },
    },
    "predict": {"tta": "hflip", "tile": 256},
    "search": {
        "axes": {"loc_threshold": [0.3, 0.5], "loc_threshold_damaged": [0.2, 0.4], "w_minor": [1, 2]},
        "postprocess": [[{"name": "object_vote"}]],
    },
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that need the finished experiment first: one process makes it, none waits; that takes long: slow."""
    items.sort(key=lambda item: "finished" not in getattr(item, "fixturenames", ()))
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def stage(name: str, *arguments: str) -> int:
    """Run a stage in this process; returns its exit code."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name).main([str(a) for a in arguments])


class Experiment:
    """The tiny experiment in a folder of its own; data and finished stages may be shared with others."""

    def __init__(self, folder: Path, data: Path):
        self.folder = folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "root": str(data)}}))
        self.workdir = folder / "workdir"
        self.root = self.workdir / "tiny"
        self.flags = ("--config", str(self.config), "--workdir", str(self.workdir))

    def run(self, name: str, *arguments: str) -> int:
        return stage(name, *self.flags, *arguments)


def made_once(factory: pytest.TempPathFactory, name: str, opened: Callable[[Path], Opened]) -> Opened:
    """Return an experiment with all six stages done, which the first of pytest's processes that asks for it makes.

    Tests must not change it. name: of its folder, which all processes share. opened: opens it in that folder.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it ends with its process
        folder.mkdir(exist_ok=True)
        experiment = opened(folder)
        if not (done := folder.with_suffix(".done")).exists():
            for stage_name in STAGES:
                assert experiment.run(stage_name) == 0, stage_name
            done.touch()
    return experiment


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Experiment:
    """The tiny experiment with all six stages done; tests must not change it."""
    return made_once(tmp_path_factory, "finished", lambda folder: Experiment(folder, folder / "xbd"))


@pytest.fixture(scope="session")
def scenes(finished) -> Path:
    """The folder of the tiny experiment's scenes, written by its first stage; tests must not change it."""
    return finished.folder / "xbd"


@pytest.fixture
def forked(monkeypatch) -> None:
    """Workers are forked from this process and begin at once; a spawned one imports torch and its neighbours first.

    What goes to and fro is pickled either way. Spawned ones are at work in test_kaggle.py and test_cores.py.
    """
    from lib.run.executor import Pool

    begin = Pool.__init__
    monkeypatch.setattr(Pool, "__init__", lambda pool, make, devices, start="": begin(pool, make, devices, "fork"))


@pytest.fixture
def experiment(tmp_path, scenes, finished) -> Experiment:
    """A copy of the finished experiment that a test may change."""
    import shutil

    own = Experiment(tmp_path, scenes)
    shutil.copytree(finished.root, own.root)
    return own
