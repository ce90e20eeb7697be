"""Stage 04: the probabilities of one checkpoint, on its own validation scenes and on the test scenes.

Where ``predict.logits`` asks for it, also its logits on the scenes that it was trained on, for students of another
experiment (``train.distill``).
"""

import copy
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.competitions.contract import Scene, told
from lib.errors import ArtifactError, ConfigError, DataError, PipelineError
from lib.inference.pipeline import Pipeline, Steps, through
from lib.inference.predict import Predictor, Prepared
from lib.inference.scene import read_stack, sizes, stated_sizes
from lib.models import checkpoint
from lib.run.artifacts import Unit
from lib.run.cli import Run, quiet, say
from lib.run.clock import NAMES, Clock
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
            with closing(passed(pool, scenes, out, unit.name == LOGITS)) as outcomes:
                for outcome in tqdm(outcomes, unit.key, len(scenes), leave=False, disable=None):
                    seconds.append(outcome.seconds)
                    if outcome.error:
                        failed[outcome.scene] = outcome.error
                    if tick:
                        tick()
            record |= shares(pool.each("spent"))
            if failed:
                record["failed"] = fall_back(run, name, scenes, failed, out)
            if earlier:
                record["seconds_per_scene"] = earlier  # of more scenes than were predicted now
            elif timed := sorted(filter(None, seconds)):
                record["seconds_per_scene"] = round(timed[len(timed) // 2], 4)  # the median: the first one warms up


def passed(pool: Pool, scenes: Iterable[Scene], out: Path, logits: bool) -> Generator["Outcome", None, None]:
    """Pass scenes through the workers, each of which reads ahead and writes behind; yields what became of them.

    Where it is given up, what the networks have answered is written before it returns, and nothing afterwards.
    """
    return through(pool, ((scene, out, logits) for scene in scenes))


def shares(workers: Sequence["Times"]) -> dict[str, Any]:
    """Return for a manifest where the time of all workers went.

    ``clock``: seconds by name. ``network_busy``: the share of their time in which networks computed; left out where
    there was no scene to predict.
    """
    sums = {name: round(sum(times.clock.get(name, 0.0) for times in workers), 3) for name in NAMES}
    elapsed = sum(times.elapsed for times in workers)
    busy = {"network_busy": round(sum(times.busy for times in workers) / elapsed, 3)} if elapsed else {}
    return {"clock": {name: seconds for name, seconds in sums.items() if seconds}, **busy}


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
    places = {scene.id: run.competition.georeference(scene) for scene in scenes if scene.id in failed}
    for scene in failed:
        constant = value if scene in known else 0  # of no image a mask is empty
        levels = quantise(np.full((task.channels, *size_of[scene]), constant, np.float32), run.config.predict.truncate)
        for views in run.config.predict.tta_sets:
            path = levels_path(out, run.config.predict.tta_sets, views, scene)
            path.parent.mkdir(exist_ok=True)
            write_levels(path, levels, task.classes, places[scene])
    say(f"  {len(failed)} of {len(scenes)} scenes could not be predicted and have the fallback {value}: {told(failed)}")
    return failed


# ---- in a worker --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """What became of a scene. ``seconds``: 0 for one that was there; ``error``: "" for one that is written."""

    scene: str
    seconds: float
    error: str = ""


@dataclass
class Passing:
    """A scene on its way through the steps of a worker."""

    scene: Scene
    predictor: Predictor
    paths: dict[str, Path]
    """Set of views -> the file that is written."""
    lenient: bool
    """Whether an error is the scene's outcome, instead of being raised."""
    logits: bool = False
    """Whether logits are written, instead of levels."""
    seconds: float = 0.0
    seen: Prepared | None = None
    answers: list[Tensor] = field(default_factory=list)
    outcome: Outcome | None = None
    """What became of it, as soon as that is known."""

    def there(self) -> bool:
        """Tell whether its files are written."""
        return all(path.exists() for path in self.paths.values())


class Times(NamedTuple):
    """Where the time of a worker went with the scenes of a unit."""

    clock: dict[str, float]
    """Seconds of its threads together: read, forward, store (rounding too), wait (of the network, for a scene)."""
    busy: float
    """Seconds in which the network computed."""
    elapsed: float
    """Seconds from the beginning of its first scene to the end of its last one."""


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
        self.pipeline: Pipeline[Passing, Passing, Passing, Outcome] | None = None
        self.clock, self.times = Clock(), Times({}, 0.0, 0.0)
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
        return self.write(self.compute(self.read(self.levels_of(scene, out))))

    def teach(self, scene: Scene, out: Path) -> Outcome:
        """Write the logits of one scene, with the largest set of views, if they are not there.

        The logits of views and windows are averaged as probabilities are. Of exclusive classes only differences mean
        anything; so that float16 holds them well, they are kept as differences to the largest. An error of the scene is
        raised: no student should learn a fallback.
        """
        return self.write(self.compute(self.read(self.logits_of(scene, out))))

    # ---- many scenes: read ahead, write behind --------------------------------------------------------
    def feed(self, scene: Scene, out: Path, logits: bool = False) -> list[Outcome]:
        """Take a scene in, to be predicted (or with ``logits`` taught) behind those taken before; they are computed
        here while others are read and written. Returns what has become of earlier ones, in their order; raises as
        ``predict`` and ``teach``, of an earlier scene too."""
        if self.pipeline is None:
            self.clock = Clock()
            self.pipeline = Pipeline(Steps(self.read, self.compute, self.write, self.expect, self.weigh))
        return self.pipeline.feed(self.logits_of(scene, out) if logits else self.levels_of(scene, out))

    def drain(self) -> list[Outcome] | None:
        """Compute one more scene of those taken in; returns and raises as ``feed``, None where none is left."""
        outcomes = None if self.pipeline is None else self.pipeline.drain()
        if outcomes is None:
            self.drop()
        return outcomes

    def drop(self) -> None:
        """Give up the scenes that were taken in; those that are computed are written when this returns."""
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            pipeline.close()
            self.clock.add("wait", pipeline.elapsed - pipeline.busy)
            self.times = Times(self.clock.seconds, pipeline.busy, pipeline.elapsed)

    def spent(self) -> Times:
        """Return where the time went with the scenes that were fed last and drained."""
        times, self.times = self.times, Times({}, 0.0, 0.0)
        return times

    # ---- one scene, step by step ----------------------------------------------------------------------
    def levels_of(self, scene: Scene, folder: Path) -> Passing:
        """Return a scene whose levels shall be written below a folder."""
        sets = self.predictor.sets
        paths = {views: levels_path(folder, sets, views, scene.id) for views in sets}
        return Passing(scene, self.predictor, paths, lenient=self.run.config.predict.fallback is not None)

    def logits_of(self, scene: Scene, folder: Path) -> Passing:
        """Return a scene whose logits, with the largest set of views, shall be written into a folder."""
        plain = copy.copy(self.predictor)
        plain.activate, plain.sets = Tensor.float, self.predictor.sets[-1:]
        return Passing(scene, plain, {plain.sets[0]: folder / file_name(scene.id)}, lenient=False, logits=True)

    def expect(self, passing: Passing) -> int | None:
        """Return about how many bytes a scene will hold, from the header of its image; None where nobody knows."""
        if passing.there():
            return 0
        with suppress(Exception):  # reading the scene tells what is wrong with it
            height, width = self.run.competition.size(passing.scene)
            if height and width and self.kind != "label":
                return self.bytes_of((3 * len(self.description["images"]), height, width))
        return None

    def weigh(self, passing: Passing) -> int:
        """Return about how many bytes a scene holds until it is written."""
        return sum(self.bytes_of(tuple(image.shape)) for image in passing.seen.images) if passing.seen else 0

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Return about how many bytes go with an image (C, H, W) uint8, or with frames (F, C, H, W): it and a resized
        one, and of a dense task probabilities and levels, once more as float32 while one set of views is rounded."""
        classes, sets = len(self.description["classes"]), len(self.predictor.sets)
        answers = (5 * sets + 4) * classes * shape[-2] * shape[-1] if len(shape) == 3 else 0
        return 2 * math.prod(shape) + answers

    def read(self, passing: Passing) -> Passing:
        """Read and prepare what the network is given of a scene, unless its files are there: those of an interrupted
        run are whole."""
        if passing.there():
            passing.outcome = Outcome(passing.scene.id, 0.0)
            return passing
        with self.clock("read"), self.attempt(passing):
            scene, competition = passing.scene, self.run.competition
            if fault := competition.incomplete(scene):
                raise DataError(f"scene {scene.id}: {fault}")
            image = read_stack(competition, scene, self.description["images"])
            passing.seen = passing.predictor.prepare(image, scene.pixel_size)
        return passing

    def compute(self, passing: Passing) -> Passing:
        """Ask the network; a scene too large for the GPU is tried in smaller windows."""
        if passing.outcome or passing.seen is None:
            return passing
        with self.clock("forward"), self.attempt(passing):
            passing.answers = self.answers(passing.predictor, passing.seen, passing.scene.id)
            passing.seen.images.clear()  # they are as large as the answers, and nobody needs them any more
        return passing

    def write(self, passing: Passing) -> Outcome:
        """Round what the network said and write it; returns what became of the scene."""
        with self.clock("store"):
            return self._write(passing)

    def _write(self, passing: Passing) -> Outcome:
        seen, classes = passing.seen, self.description["classes"]
        found: dict[str, np.ndarray] = {}
        if passing.outcome is None and seen is not None:
            with self.attempt(passing):
                found = passing.predictor.finish(seen, passing.answers)
                if not passing.logits:
                    found = {views: quantise(probs, self.run.config.predict.truncate) for views, probs in found.items()}
        if passing.outcome:
            return passing.outcome
        started = time.perf_counter()
        for views, values in found.items():
            path = passing.paths[views]
            if passing.logits:
                values = values - values.max(axis=0) if self.kind == "multiclass" else values
                write_logits(path, values, classes)
            else:
                path.parent.mkdir(exist_ok=True)
                write_levels(path, values, classes, self.run.competition.georeference(passing.scene))
        return Outcome(passing.scene.id, passing.seconds + time.perf_counter() - started)

    @contextmanager
    def attempt(self, passing: Passing) -> Iterator[None]:
        """Time a step of a scene. Its error becomes the scene's outcome, or is raised: where there is no fallback, or
        where the settings are to blame."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:  # noqa: BLE001 whatever is wrong with this scene, the others go on
            scene = passing.scene.id
            if not passing.lenient and isinstance(error, torch.OutOfMemoryError):
                raise ArtifactError(f"scene {scene}: the memory of the GPU is full; lower predict.tile") from error
            if not passing.lenient or isinstance(error, ConfigError):
                raise
            passing.outcome = Outcome(scene, passing.seconds + time.perf_counter() - started, self.reason(error))
        finally:
            passing.seconds += time.perf_counter() - started

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
            for _ in range(1 if warm else 2):
                times = [time.perf_counter()]
                passing = replace(self.levels_of(scene, found.folder), lenient=True)
                for step in (self.read, self.compute):
                    step(passing)
                    times.append(time.perf_counter())
                if passing.outcome:
                    break
            warm = warm or not passing.outcome
            outcome = self.write(passing)
            if outcome.error:
                found.failed[scene.id] = outcome.error
                continue
            started, read, computed = times
            found.seconds[scene.id] = read - started + time.perf_counter() - computed, computed - read
            if len(found.seconds) == wanted:
                break
        return found

    @staticmethod
    def answers(predictor: Predictor, seen: Prepared, scene: str) -> list[Tensor]:
        """Return what a predictor answers; a scene too large for the GPU is tried in smaller windows."""
        smaller = None
        try:
            return predictor.answers(seen)
        except torch.cuda.OutOfMemoryError:
            smaller = halved(predictor)
            if smaller is None:
                raise
        torch.cuda.empty_cache()  # only here, since the error holds what fills the memory
        say(f"  {scene}: the GPU's memory is full, windows of {smaller.tile} pixels instead")
        return smaller.answers(seen)

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
