"""Stage 04: the probabilities of one checkpoint, on its own validation scenes and on the test scenes.

Where ``predict.logits`` asks for it, also its logits on the scenes that it was trained on, for students of another
experiment (``train.distill``).
"""

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.competitions.contract import Scene, told
from lib.errors import ArtifactError, ConfigError, DataError, PipelineError
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack, sizes, stated_sizes
from lib.models import checkpoint
from lib.run.artifacts import Unit
from lib.run.cli import Run, quiet, say
from lib.run.executor import Pool, devices
from lib.run.graph import LOGITS
from lib.scenes.probs import file_name, levels_path, quantise, refuse_other_classes, write_levels, write_logits


def open_pool(run: Run, start: str = "spawn") -> Pool:
    """Return the processes that share the scenes of a run; they begin when they are first needed."""
    return Pool(Networks, devices(run.config.predict.workers, run.device), start)


def predict(run: Run, units: list[Unit], pool: Pool | None = None, tick: Callable[[], None] | None = None) -> None:
    """Predict the given splits with one checkpoint, which is loaded once; scene by scene, each file whole.

    A scene that fails gets ``predict.fallback`` and is named in the manifest; without a fallback, or where every scene
    fails, its error is raised. ``tick`` is called after every scene; what it raises stops the unit, to be resumed.
    """
    if not units:
        return
    _, _, name, place, _ = units[0].key.split("/")
    fold = int(place.removeprefix("fold"))
    pool = Pool(Networks, [run.device]) if pool is None else pool
    looks = run.predict_of(name)
    used = pool.each("load", run, name, fold)[0]
    if line := precision_line(run, name, used):
        say(f"  {line}")
    for unit in units:
        record: dict[str, Any] = {"stage": "04", "precision": {"asked": looks.precision, "used": used,
                                                               "tf32": looks.tf32}}  # fmt: skip
        with run.build(unit, record) as out:
            scenes = scenes_of(run, unit.name, fold)
            require_whole(run, scenes)
            record["scenes"] = len(scenes)
            earlier = taken_over(run, unit, scenes)
            seconds, failed = [], {}
            calls = ((scene, out) for scene in scenes)
            method = "teach" if unit.name == LOGITS else "predict"
            with closing(pool.share(method, calls)) as outcomes:
                for outcome in tqdm(outcomes, unit.key, len(scenes), leave=False, disable=None):
                    seconds.append(outcome.seconds)
                    if outcome.error:
                        failed[outcome.scene] = outcome.error
                    if tick:
                        tick()
            if failed:
                record["failed"] = fall_back(run, name, scenes, failed, out)
            if earlier:
                record["seconds_per_scene"] = earlier  # of more scenes than were predicted now
            elif timed := sorted(filter(None, seconds)):
                record["seconds_per_scene"] = round(timed[len(timed) // 2], 4)  # the median: the first one warms up


def taken_over(run: Run, unit: Unit, scenes: list[Scene]) -> float | None:
    """Keep the files of the scenes that a unit to be built anew has right already, and say of how many.

    Returns the seconds that a scene took then; None where none is kept.
    """
    sets = run.config.predict.tta_sets[-1:] if unit.name == LOGITS else run.config.predict.tta_sets
    files = {scene.id: [levels_path(Path(), sets, views, scene.id).as_posix() for views in sets] for scene in scenes}
    if not run.force and (taken := run.store.reuse(unit, files)):
        say(f"  {len(taken)} of {len(scenes)} scenes are as they were and are kept")
        return run.store.manifest(unit).get("seconds_per_scene")
    return None


def require_whole(run: Run, scenes: list[Scene]) -> None:
    """Say before anything is predicted which scenes lack files or have images of several sizes.

    They take ``predict.fallback``; DataError where there is none.
    """
    faults = {scene.id: fault for scene in scenes if (fault := run.competition.incomplete(scene))}
    if faults and run.config.predict.fallback is None:
        raise DataError(f"{len(faults)} of {len(scenes)} scenes cannot be predicted: {told(faults)}; mend their files, "
                        "or set predict.fallback (0: nothing is found there), which they are given then")  # fmt: skip


def precision_line(run: Run, name: str, used: str) -> str:
    """Say where a model does not predict in what was asked for, or not in the float32 that its task is promised."""
    model, asked = run.config.models[name], run.predict_of(name).precision
    said = [f"{asked} asked, {used} used on this CPU"] if used != asked else []
    if run.competition.tasks[model.task].float32 and used != "float32":
        said.append(f"task {model.task} promises float32; models.{name}.precision asks for {asked}")
    return "; ".join(said)


def fall_back(run: Run, name: str, scenes: list[Scene], failed: Mapping[str, str], out: Path) -> dict[str, str]:
    """Write the fallback of the scenes that failed; returns scene id -> its error, sorted.

    They come last, so that a unit that is resumed tries them again. ArtifactError where every scene failed: then the
    network or the machine is at fault.
    """
    failed = dict(sorted(failed.items()))
    if len(failed) == len(scenes):
        raise ArtifactError(f"{name}: each of {len(scenes)} scenes failed, which no fallback is for; {told(failed)}")
    task, value = run.competition.tasks[run.config.models[name].task], run.config.predict.fallback
    size_of = sizes(run.competition, scenes) if task.dense else dict.fromkeys(failed, (1, 1))
    known = stated_sizes(run.competition, scenes) if task.dense else size_of
    for scene in failed:
        constant = value if scene in known else 0  # of no image a mask is empty
        levels = quantise(np.full((task.channels, *size_of[scene]), constant, np.float32), run.config.predict.truncate)
        for views in run.config.predict.tta_sets:
            path = levels_path(out, run.config.predict.tta_sets, views, scene)
            path.parent.mkdir(exist_ok=True)
            write_levels(path, levels, task.classes)
    say(f"  {len(failed)} of {len(scenes)} scenes could not be predicted and have the fallback {value}: {told(failed)}")
    return failed


# ---- in a worker --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """What became of a scene. ``seconds``: 0 for one that was there; ``error``: "" for one that is written."""

    scene: str
    seconds: float
    error: str = ""


class Measured(NamedTuple):
    """What a network takes in a worker: seconds to load it, and of each scene (read and write, predict)."""

    load: float
    seconds: dict[str, tuple[float, float]]
    failed: dict[str, str]
    folder: Path
    """Where the levels of these scenes lie."""


class Networks:
    """What a worker predicts with: a device, and the checkpoint that it has loaded."""

    run: Run
    """That of the loaded checkpoint."""

    def __init__(self, device: torch.device):
        quiet()
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def load(self, run: Run, name: str, fold: int) -> str:
        """Load a checkpoint of model ``name``; returns the precision that is really used."""
        self.run = run.on(self.device)
        folder = run.store.require(run.graph.checkpoint(name, fold))
        self.description = checkpoint.read_description(folder)
        model = run.config.models[name]
        task = run.competition.tasks[model.task]
        refuse_other_classes(folder, self.description["classes"], task.classes)
        self.kind, network = task.kind, checkpoint.load_network(folder)
        self.predictor = Predictor(network, task.activate, run.predict_of(name), model.view, self.device, model.pad)
        return self.predictor.precision

    def predict(self, scene: Scene, out: Path) -> Outcome:
        """Write the levels of one scene, one file per set of views, if they are not there.

        An error of the scene is returned where there is a fallback; one of the disk, of the GPU or of the settings is
        raised.
        """
        predict = self.run.config.predict
        paths = self.paths(out, scene)
        if all(path.exists() for path in paths.values()):  # files of an interrupted run are whole
            return Outcome(scene.id, 0.0)
        started = time.perf_counter()
        try:
            levels = self.levels(scene, self.read(scene))
        except Exception as error:  # noqa: BLE001 whatever is wrong with this scene, the others go on
            if predict.fallback is None and isinstance(error, torch.OutOfMemoryError):
                raise ArtifactError(f"scene {scene.id}: the memory of the GPU is full; lower predict.tile") from error
            if predict.fallback is None or isinstance(error, ConfigError):
                raise
            return Outcome(scene.id, time.perf_counter() - started, self.reason(error))
        self.write(levels, paths)
        return Outcome(scene.id, time.perf_counter() - started)

    def teach(self, scene: Scene, out: Path) -> Outcome:
        """Write the logits of one scene, with the largest set of views, if they are not there.

        The logits of views and windows are averaged as probabilities are. Of exclusive classes only differences mean
        anything; so that float16 holds them well, they are kept as differences to the largest. An error of the scene is
        raised: no student should learn a fallback.
        """
        path = out / file_name(scene.id)
        if path.exists():
            return Outcome(scene.id, 0.0)
        started = time.perf_counter()
        plain = copy.copy(self.predictor)
        plain.activate, plain.sets = Tensor.float, self.predictor.sets[-1:]
        (logits,) = self.every_set(plain, scene, self.read(scene)).values()
        if self.kind == "multiclass":
            logits = logits - logits.max(axis=0)
        write_logits(path, logits, self.description["classes"])
        return Outcome(scene.id, time.perf_counter() - started)

    def measure(self, run: Run, name: str, fold: int, scenes: Sequence[Scene], wanted: int, folder: Path) -> Measured:
        """Load a checkpoint and predict ``wanted`` of the scenes, the first one twice, since the first time warms up.

        Levels go below ``folder``, to a place of this worker's own; scenes that fail are passed over.
        """
        started = time.perf_counter()
        self.load(run, name, fold)
        found = Measured(time.perf_counter() - started, {}, {}, folder / str(os.getpid()))
        found.folder.mkdir(parents=True)
        warm = False
        for scene in scenes:
            try:
                if not warm:
                    self.levels(scene, self.read(scene))
                    warm = True
                started = time.perf_counter()
                image = self.read(scene)
                read = time.perf_counter()
                levels = self.levels(scene, image)
                predicted = time.perf_counter()
            except Exception as error:  # noqa: BLE001 as in ``predict``
                found.failed[scene.id] = self.reason(error)
                continue
            self.write(levels, self.paths(found.folder, scene))
            written = time.perf_counter()
            found.seconds[scene.id] = read - started + written - predicted, predicted - read
            if len(found.seconds) == wanted:
                break
        return found

    def read(self, scene: Scene) -> np.ndarray:
        """Read what the network is given of a scene. Raises DataError for one that is not whole."""
        if fault := self.run.competition.incomplete(scene):
            raise DataError(f"scene {scene.id}: {fault}")
        return read_stack(self.run.competition, scene, self.description["images"])

    def paths(self, folder: Path, scene: Scene) -> dict[str, Path]:
        """Return set of views -> the file of a scene's levels."""
        sets = self.predictor.sets
        return {views: levels_path(folder, sets, views, scene.id) for views in sets}

    def write(self, levels: Mapping[str, np.ndarray], paths: Mapping[str, Path]) -> None:
        """Write the levels of each set of views."""
        for name, found in levels.items():
            paths[name].parent.mkdir(exist_ok=True)
            write_levels(paths[name], found, self.description["classes"])

    def levels(self, scene: Scene, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return set of views -> levels (C, H, W) uint8."""
        probs = self.every_set(self.predictor, scene, image)
        return {name: quantise(found, self.run.config.predict.truncate) for name, found in probs.items()}

    @staticmethod
    def every_set(predictor: Predictor, scene: Scene, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return set of views -> what a predictor says; a scene too large for the GPU is tried in smaller windows."""
        smaller = None
        try:
            return predictor.every_set(image, scene.pixel_size)
        except torch.cuda.OutOfMemoryError:
            smaller = halved(predictor)
            if smaller is None:
                raise
        torch.cuda.empty_cache()  # only here, since the error holds what fills the memory
        say(f"  {scene.id}: the GPU's memory is full, windows of {smaller.tile} pixels instead")
        return smaller.every_set(image, scene.pixel_size)

    def reason(self, error: Exception) -> str:
        """Return in one line why a scene failed.

        ArtifactError where the GPU does nothing any more: then no scene is to blame, and all would fail.
        """
        if self.device.type == "cuda":
            try:
                torch.ones(8, device=self.device).sum().item()
            except RuntimeError as fault:
                said = str(fault).splitlines()[0]
                raise ArtifactError(f"{self.device}: the GPU no longer answers ({said}); run again") from fault
        words = (str(error).strip().splitlines() or ["no message"])[0]
        return words if isinstance(error, PipelineError) else f"{type(error).__name__}: {words}"


def halved(predictor: Predictor) -> Predictor | None:
    """Return the predictor with windows of half the side, a multiple of the network's stride; None for the smallest."""
    stride = predictor.network.stride
    tile = predictor.tile // 2 // stride * stride
    if tile < stride:
        return None
    smaller = copy.copy(predictor)
    smaller.tile, smaller.overlap = tile, min(predictor.overlap // 2, tile - stride)
    return smaller


def scenes_of(run: Run, split: str, fold: int) -> list[Scene]:
    """Return the scenes of a split, or those of ``LOGITS``, that the checkpoint of ``fold`` predicts."""
    if split == "test":
        return run.competition.scenes("test")
    table = run.folds()
    own = set(table["id"][table["fold"] != fold if split == LOGITS else table["fold"] == fold])
    return [scene for scene in run.competition.scenes("train") if scene.id in own]
