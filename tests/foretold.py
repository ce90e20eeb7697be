"""Experiments whose stage 04 was never run: levels made from the truth and noise lie where it would write them."""

from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import yaml

from lib.competitions import open_competition, synthetic
from lib.config.load import load
from lib.run.artifacts import Store
from lib.run.cli import Run
from lib.run.graph import SPLITS, Graph
from lib.scenes.folds import write_folds
from lib.scenes.probs import levels_path, write_levels


def opened(folder: Path, config: dict) -> Run:
    """Write the scenes and the experiment file of a ``config`` into a folder and return its run."""
    path, root = folder / "experiment.yaml", folder / "data"
    path.write_text(yaml.safe_dump({"name": "foretold", **config, "data": {"root": str(root), **config["data"]}}))
    read = load(path)
    if wanted := read.data.synthetic:
        synthetic.write(read.competition, root, **wanted.model_dump())
    competition = open_competition(read.competition, root, read.data.options)
    ids = [[scene.id for scene in competition.scenes(split)] for split in ("train", "test")]
    graph = Graph(read, *ids, tasks=competition.tasks)
    return Run(read, competition, Store(folder / "workdir" / read.name), graph, None, None, SPLITS, False, False)


def foretell(run: Run, seed: int = 0) -> None:
    """Write the folds, and the levels of every network on its out-of-fold and on the test scenes."""
    scenes = run.competition.scenes("train")
    table = pd.DataFrame(
        {"id": [one.id for one in scenes], "fold": [k % run.config.folds.n for k in range(len(scenes))]}
    )
    table["group"], table["domain"] = table["id"], [one.domain for one in scenes]
    with mock.patch("os.fsync"):  # none need survive a power cut
        with run.store.build(run.graph.folds(), {}) as folder:
            write_folds(folder / "folds.csv", table)
        for number, (name, model) in enumerate(run.config.models.items()):
            for fold in run.config.folds_of(model):
                for split, chosen in (
                    ("oof", scenes[fold :: run.config.folds.n]),
                    ("test", run.competition.scenes("test")),
                ):
                    with run.store.build(run.graph.probs(name, fold, split), {"scenes": len(chosen)}) as folder:
                        for place, scene in enumerate(chosen):
                            _write(run, folder, scene, model.task, np.random.default_rng([seed, number, fold, place]))


def _write(run: Run, folder: Path, scene, role: str, rng: np.random.Generator) -> None:
    task, sets = run.competition.tasks[role], run.config.predict.tta_sets
    shape = (task.channels, *(run.competition.size(scene) if task.dense else (1, 1)))
    for views in sets:
        found = rng.random(shape, np.float32)
        if run.competition.labelled(scene):
            found += 0.5 * task.truth(run.competition.target(scene, role))
        if task.dense:
            found = cv2.GaussianBlur(found.transpose(1, 2, 0), (0, 0), 1.5).reshape(*shape[1:], -1).transpose(2, 0, 1)
        if task.kind == "multiclass":
            found /= found.sum(axis=0)
        else:
            found /= 1.5
        path = levels_path(folder, sets, views, scene.id)
        path.parent.mkdir(exist_ok=True)
        write_levels(path, np.rint(255 * np.clip(found, 0, 1)).astype(np.uint8), task.classes)
