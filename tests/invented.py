"""Workdirs with true manifests and no networks: what the tools read, without running a stage."""

import json
from pathlib import Path
from unittest import mock

from lib.config.sections import Experiment
from lib.files import write_json
from lib.run.artifacts import Store
from lib.run.graph import Graph

TRAIN = {
    "epochs": 1,
    "batch_size": 2,
    "crop": 64,
    "loss": {"terms": {"bce": 1.0}},
    "optimizer": {"lr": 1.0e-3},
}
NETWORK = {"architecture": "unet", "images": ["image"], "encoder": "none"}
TREE = {
    "name": "any",
    "competition": "voc",
    "data": {"root": "data"},
    "folds": {"n": 2},
    "models": {"net": {"task": "loc", "network": NETWORK, "train": TRAIN}},
}
GIT = {"commit": "0123456789abcdef", "dirty": True}
SECONDS = {"01": 1.0, "02": 20.0, "04": 3.5, "05": 0.5}
"""Of every unit of a stage."""


def experiment(name: str, **changes) -> Experiment:
    """Return the invented experiment; ``changes`` are whole sections, ``train`` and ``lr`` those of its model."""
    lr, train = changes.pop("lr", 1.0e-3), changes.pop("train", {})
    model = {**TREE["models"]["net"], "train": {**TRAIN, "optimizer": {"lr": lr}, **train}}
    return Experiment.model_validate({**TREE, "models": {"net": model}, **changes, "name": name})


def decoded(score: float, **more) -> dict:
    """Return a decode.json."""
    return {"params": {}, "weights": {"net": 1.0}, "tta": "flips", "crf": False,
            "scenes": 7, "scores": {"score": score, "iou": score / 2},
            "interval95": [score - 0.1, score + 0.1], "per_domain": {}, "per_fold": {}, "tables": {},
            "coverage": "7 of 7 scenes, folds 0-1", **more}  # fmt: skip


def build(workdir: Path, config: Experiment, decode: dict | None, log: list[dict] = ()) -> Path:
    """Write the units of an experiment, up to the training without ``decode``; returns its folder."""
    graph, store = Graph(config, ["a", "b"], ["t"]), Store(workdir / config.name)
    folds = config.folds_of(config.models["net"])
    units = [graph.folds(), *(graph.checkpoint("net", k) for k in folds)]
    if decode is not None:
        units += [*(graph.probs("net", k, "oof") for k in folds), graph.decode()]
    for unit in units:
        with mock.patch("os.fsync"), store.build(unit, {"git": GIT}) as folder:  # none need survive a power cut
            if unit == graph.decode():
                write_json(folder / "decode.json", decode)
            if unit.key.startswith("02"):
                (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        manifest = workdir / config.name / unit.key / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "seconds": SECONDS[unit.key[:2]]}))
    return workdir / config.name
