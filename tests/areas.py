"""Small areas for tests: mosaics that are written here, and finished experiments of networks that nobody trained."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
import yaml
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from lib.choose.choice import DECODE
from lib.choose.fit import stated
from lib.competitions import open_competition
from lib.config.load import load
from lib.models import build, checkpoint
from lib.run.artifacts import Store
from lib.run.graph import Graph
from lib.scenes.folds import write_folds

NETWORK = {
    "architecture": "segmentation",
    "encoder": "tu-test_efficientnet",
    "options": {"decoder": "unet", "decoder_channels": [16, 16, 8, 8], "upsample_logits": 2},
}
TRAIN = {"epochs": 1, "batch_size": 1, "crop": 64, "optimizer": {"lr": 1.0e-3}, "sampling": {"samples": 1}}
PLACE = (CRS.from_epsg(32615), rasterio.Affine(0.5, 0, 360000, 0, -0.5, 4100000))
"""CRS and transform of images: half a metre, north up."""


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a picture of blobs at several scales, (3, height, width) uint8, never 0."""
    rng = np.random.default_rng(seed)
    total = np.zeros((3, height, width))
    for size in (4, 16, 64):
        coarse = rng.normal(size=(3, -(-height // size) + 1, -(-width // size) + 1))
        total += np.kron(coarse, np.ones((size, size)))[:, :height, :width] * size**0.5
    return (128 + 90 * total / np.abs(total).max()).clip(1, 255).astype(np.uint8)


def write(path: Path, planes: np.ndarray, crs: Any = PLACE[0], transform: Any = PLACE[1], **more: Any) -> Path:
    """Write (C, H, W) as a GeoTIFF; of four bands the last one is alpha."""
    profile = {"driver": "GTiff", "count": len(planes), "dtype": planes.dtype, "crs": crs, "transform": transform}
    if len(planes) in (3, 4):
        more.setdefault("photometric", "RGB")
    with rasterio.open(path, "w", height=planes.shape[1], width=planes.shape[2], **profile, **more) as file:
        if len(planes) == 4:
            file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        file.write(planes)
    return path


def experiment(folder: Path, folds: Sequence[int] = (0,), view: Any = None, pad: int = 0, **changes: Any) -> list[str]:
    """Write an experiment with random networks of these folds; returns the flags that name it.

    view, pad: of all models. changes: sections in place of the usual ones.
    """
    models = {"loc": ("loc", "pre"), "cls": ("cls", "pre", "post")}
    held = {
        "name": "tiny",
        "seed": 3,
        "competition": "xview2",
        "data": {"root": str(folder / "no_data")},
        "folds": {"n": 2},
        "models": {
            name: {"task": task, "folds": list(folds), "view": view or {}, "pad": pad,
                   "network": {**NETWORK, "images": list(images)},
                   "train": {**TRAIN, "loss": {"terms": {"bce": 1} if task == "loc" else {"ce": 1}}}}
            for name, (task, *images) in models.items()
        },
        "predict": {"tta": "none", "tile": 128, "overlap": 0.25, "precision": "float32"},
        **changes,
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(held))
    config = load(path, ())
    competition = open_competition(config.competition, config.data.root, config.data.options)
    root = folder / "trained"
    store, graph = Store(root), Graph(config, [], [], tasks=competition.tasks)

    def add(unit, fill) -> None:
        with store.build(unit, {"stage": unit.key[:2]}, fresh=True) as out:
            fill(out)

    table = pd.DataFrame({"id": [], "fold": []}, dtype=str)
    add(graph.folds(), lambda out: write_folds(out / "folds.csv", table))
    for number, (name, model) in enumerate(config.models.items()):
        for fold in config.folds_of(model):
            fill = partial(_network, model=model, competition=competition, seed=10 * number + fold)
            add(graph.checkpoint(name, fold), fill)
    decision = stated(config, competition)
    add(graph.decode(), lambda out: decision.write(out / DECODE))
    return ["--config", str(path), "--workdir", str(folder / "workdir"), "--inputs", str(root)]


def _network(folder: Path, model: Any, competition: Any, seed: int) -> None:
    """Write a network that nobody trained, whose last layer is loud enough for its answers to differ."""
    task = competition.tasks[model.task]
    torch.manual_seed(seed)
    arguments = model.network.arguments(task.channels)
    network = build(encoder_weights="none", **arguments)
    state = network.state_dict()
    *_, last = (name for name, tensor in state.items() if name.endswith("weight") and tensor.shape[0] == task.channels)
    state[last] = state[last] * 40
    checkpoint.describe(folder, arguments, model.network.images, task.classes)
    checkpoint.save_weights(folder, state)
