"""Stages 01 and 05 on more and more scenes of real size: time that grows with their number, memory that does not.

Scenes are made of a few drawn ones. Each has a first picture of its own (another part of the drawing, so that scenes
are no copies of one another) and a label at a place of its own; its second picture and the levels that networks would
have written are links. The grid of the search and its post-processing are those of ``configs/xview2.yaml``. A stage
runs as it always does, in a process of its own; memory is what all its processes have for themselves, shared pages
divided among them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
import yaml

from lib.competitions import open_competition
from lib.competitions.synthetic import xview2 as drawn
from lib.config.load import load
from lib.run.artifacts import Store
from lib.run.cores import cores
from lib.run.graph import Graph
from lib.run.manifest import read_json
from lib.scenes import raster
from lib.scenes.folds import read_folds
from lib.scenes.probs import file_name, write_levels
from tests.benchmarks.bench_search import levels
from tests.benchmarks.harness import Figure, Race

ROOT = Path(__file__).resolve().parents[2]
DRAWN, DOMAINS = 4, 5
ARCHIVE, BOX = 9168, 16
"""Labelled scenes of xBD, and the cores of the machine for which their time is computed."""
TRAIN = {"epochs": 1, "batch_size": 2, "crop": 64, "optimizer": {"lr": 1.0e-3}}
NETWORK = {"architecture": "siamese", "images": ["pre", "post"], "encoder": "tu-test_efficientnet",
           "options": {"decoder": "unet", "decoder_channels": [16, 16, 8, 8], "upsample_logits": 2}}  # fmt: skip
LOSSES = {"loc": {"dice": 1}, "cls": {"focal": 1}}


def rows(quick: bool) -> list[Race | Figure]:
    """Return stages 01 and 05 by number of scenes, and stage 05 by number of models, on all cores of this machine."""
    if quick:
        return [Figure("4 scenes, 2 models, 128 pixels", partial(measure, 4, 2, 128), threads=cores())]
    sizes = ((16, 2), (320, 2), (640, 2), (1280, 2), (64, 4), (64, 8))
    return [Figure(f"{scenes:,} scenes, {models} models", partial(measure, scenes, models, 1024), threads=cores())
            for scenes, models in sizes]  # fmt: skip


def measure(scenes: int, models: int, size: int, folder: Path) -> dict[str, Any]:
    """Return seconds and peak MiB of both stages, and what they compute to for the whole archive on a larger box."""
    config = write(folder, scenes, models, size)
    found: dict[str, Any] = {}
    for stage, script in (("01", "01_prepare_folds.py"), ("05", "05_ensemble.py")):
        if stage == "05":
            foretell(folder, config, models, size)
        seconds, mib = run([sys.executable, script, "--config", str(config), "--workdir", str(folder / "workdir"),
                            *(["--split", "oof"] if stage == "05" else [])])  # fmt: skip
        units = {"01": {"01": "01_folds"}, "05": {"05": "05_ensemble/decode", "averages": "05_ensemble/oof"}}[stage]
        found[f"{stage} s"] = seconds
        for name, unit in units.items():
            own = read_json(folder / "workdir" / "growth" / unit / "manifest.json")["seconds"]
            if name != "01":
                found[f"{name}: unit s"] = own
        found[f"{stage} peak MiB"] = mib
        found[f"{stage} ms per scene and core"] = seconds * cores() / scenes * 1e3
        found[f"{stage} min for {ARCHIVE:,} on {BOX} cores, computed"] = seconds * cores() / scenes * ARCHIVE / BOX / 60
    return found


def write(folder: Path, scenes: int, models: int, size: int) -> Path:
    """Write the scenes and the experiment file below a folder; returns the latter."""
    base = folder / "drawn"
    base.mkdir()
    drawn.write(base, scenes=DRAWN, test_scenes=0, size=size, seed=1)
    known = open_competition("xview2", base, {}).scenes("train")
    pictures = [[raster.read_image(one.files[side]) for side in ("pre", "post")] for one in known]
    labels = [[json.loads(one.files[role].read_text()) for role in ("pre_label", "post_label")] for one in known]
    for kind in ("images", "labels"):
        (folder / "data" / "train" / kind).mkdir(parents=True)
    for number, (_, post) in enumerate(pictures):
        raster.write_png(base / f"{number}.png", post)
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(partial(_scene, folder, pictures, labels), range(scenes)))
    grid = yaml.safe_load((ROOT / "configs" / "xview2.yaml").read_text())["search"]
    own = {f"{role}{number}": {"task": role, "network": NETWORK, "train": {**TRAIN, "loss": {"terms": LOSSES[role]}}}
           for role in LOSSES for number in range(models // 2)}  # fmt: skip
    path = folder / "growth.yaml"
    path.write_text(yaml.safe_dump({"name": "growth", "competition": "xview2", "data": {"root": str(folder / "data")},
                                    "folds": {"n": min(4, scenes // 2)}, "models": own,
                                    "predict": {"tta": "none"}, "search": grid}))  # fmt: skip
    return path


def _scene(folder: Path, pictures: list, labels: list, number: int) -> None:
    """Write one scene: a part of a drawing, turned round at its edges, and labels at a place of their own."""
    rng, which = np.random.default_rng(number), number % DRAWN
    train, name = folder / "data" / "train", f"made{number % DOMAINS}_{number:08d}"
    pre = np.roll(pictures[which][0], rng.integers(0, 1024, 2), axis=(0, 1))[:: rng.choice([-1, 1])]
    pre = np.clip(pre * rng.uniform(0.7, 1.2, 3), 0, 255).astype(np.uint8)
    cv2.imwrite(str(train / "images" / f"{name}_pre_disaster.png"), np.ascontiguousarray(pre[..., ::-1]))
    os.link(folder / "drawn" / f"{which}.png", train / "images" / f"{name}_post_disaster.png")
    away = np.array([0.02 * (number % 100), 0.02 * (number // 100)])  # degrees: some kilometres
    for side, label in zip(("pre", "post"), labels[which]):
        places = [one["wkt"] for one in label["features"]["lng_lat"]]
        moved = shapely.to_wkt(shapely.transform(shapely.from_wkt(places), lambda points: points + away), 12)
        lng_lat = [{**one, "wkt": wkt} for one, wkt in zip(label["features"]["lng_lat"], moved)]
        metadata = {**label.get("metadata", {}), "img_name": f"{name}_{side}_disaster.png"}
        whole = {**label, "features": {**label["features"], "lng_lat": lng_lat}, "metadata": metadata}
        (train / "labels" / f"{name}_{side}_disaster.json").write_text(json.dumps(whole))


def foretell(folder: Path, path: Path, models: int, size: int) -> None:
    """Link the levels of all networks to where stage 04 would write them."""
    config = load(path)
    competition = open_competition("xview2", config.data.root, {})
    scenes = {scene.id: scene for scene in competition.scenes("train")}
    graph, store = Graph(config, [*scenes], [], tasks=competition.tasks), Store(folder / "workdir" / config.name)
    table = read_folds(store.folder(graph.folds()) / "folds.csv")
    for which in range(DRAWN):
        truth = next(competition.truth(scene)["damage"] for scene in scenes.values()
                     if int(scene.id[-8:]) % DRAWN == which)  # fmt: skip
        for name, model in config.models.items():
            made = levels(truth, np.random.default_rng([which, *name.encode()]))[("loc", "cls").index(model.task)]
            write_levels(folder / "drawn" / f"{name}-{which}.tif", made, competition.tasks[model.task].classes)
    for name, model in config.models.items():
        for fold in config.folds_of(model):
            with store.build(graph.probs(name, fold, "oof"), {"scenes": 0, "seconds_per_scene": 1.0}) as out:
                for scene in table["id"][table["fold"] == fold]:
                    os.link(folder / "drawn" / f"{name}-{int(scene[-8:]) % DRAWN}.tif", out / file_name(scene))


def run(command: list[str]) -> tuple[float, float]:
    """Run a stage; returns its wall seconds, and the MiB that it and its processes had at most, together."""
    started, most = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        while process.poll() is None:
            most = max(most, sum(map(_own, _family(process.pid))) / 1024)
            time.sleep(0.2)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode())
    return time.perf_counter() - started, most


def _family(process: int) -> list[int]:
    """Return a process and all that descend from it (Linux)."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for one in found:
        found += parents.get(one, [])
    return found


def _own(process: int) -> int:
    """Return the KiB of memory of a process, its part of what it shares with others (PSS)."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
