"""Stage 04: the probabilities of one checkpoint, on its own validation scenes and on the test scenes."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.competitions.contract import Scene
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack
from lib.models import checkpoint
from lib.run import runtime
from lib.run.artifacts import Unit
from lib.run.cli import Run, say
from lib.run.config import Model, Predict
from lib.scenes.probs import file_name, quantise, write_levels
from lib.scenes.view import View
from lib.stages import folds


def fold_splits(run: Run) -> Iterator[list[Unit]]:
    """Yield, checkpoint by checkpoint, the splits to predict with it."""
    for name, model in run.graph.models(only=run.only).items():
        for fold in run.config.folds_of(model):
            if run.fold in (None, fold):
                yield [run.graph.probs(name, fold, split) for split in run.splits if run.has_split(split)]


def predict(run: Run, units: list[Unit]) -> None:
    """Predict the given splits with one checkpoint, which is loaded once; scene by scene, each file whole."""
    if not units:
        return
    _, _, name, fold, _ = units[0].key.split("/")
    folder = run.store.require(run.graph.checkpoint(name, int(fold.removeprefix("fold"))))
    description = checkpoint.read_description(folder)
    predictor, used = open_predictor(run, folder, name)
    for unit in units:
        split = unit.key.rsplit("/", 1)[1]
        record: dict[str, Any] = {"stage": "04", "precision": {"asked": run.config.predict.precision, "used": used}}
        with run.build(unit, record) as out:
            scenes = scenes_of(run, split, int(fold.removeprefix("fold")))
            record["scenes"] = len(scenes)
            seconds = []
            for scene in tqdm(scenes, unit.key, leave=False, disable=None):
                seconds.append(predict_scene(run, predictor, description, scene, out))
            if timed := sorted(filter(None, seconds)):
                record["seconds_per_scene"] = round(timed[len(timed) // 2], 4)  # the median: the first one warms up


def predict_scene(run: Run, predictor: Predictor, description: Mapping[str, Any], scene: Scene, out: Path) -> float:
    """Write the levels of one scene, one file per set of views; returns the seconds it took, 0 for what was there."""
    paths = {name: levels_path(out, run.config.predict, name, scene.id) for name in predictor.sets}
    if all(path.exists() for path in paths.values()):  # files of an interrupted run are whole
        return 0.0
    started = time.perf_counter()
    image = read_stack(run.competition, scene, description["images"])
    for name, probs in predictor.every_set(image, scene.pixel_size).items():
        paths[name].parent.mkdir(exist_ok=True)
        write_levels(paths[name], quantise(probs, run.config.predict.truncate), description["classes"])
    return time.perf_counter() - started


def levels_path(folder: Path, predict: Predict, views: str, scene: str) -> Path:
    """Return where a unit of this stage has a scene's levels; several sets of views lie in a folder each."""
    return (folder if len(predict.tta_sets) == 1 else folder / views) / file_name(scene)


def open_predictor(run: Run, folder: Path, name: str) -> tuple[Predictor, str]:
    """Build the predictor of a checkpoint of model ``name``; returns it and the precision it really uses."""
    asked, model = run.config.predict, run.config.models[name]
    used = runtime.precision_on(run.device, asked.precision)
    if used != asked.precision:
        say(f"  {asked.precision} asked, {used} used on this CPU")
    predictor = Predictor(checkpoint.load_network(folder), run.competition.tasks[model.task].activate,
                          run.device, used, views=asked.tta_sets, tile=asked.tile,
                          overlap=int(asked.tile * asked.overlap), view=view_of(model),
                          scales=asked.scales)  # fmt: skip
    return predictor, used


def view_of(model: Model) -> View:
    """Return the size at which a model sees scenes."""
    return View(**model.view.model_dump())


def scenes_of(run: Run, split: str, fold: int) -> list[Scene]:
    """Return the scenes of a split that the checkpoint of ``fold`` predicts."""
    if split == "test":
        return run.scenes("test")
    table = folds.table(run)
    own = set(table["id"][table["fold"] == fold])
    return [scene for scene in run.scenes("train") if scene.id in own]
