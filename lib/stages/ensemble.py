"""Stage 05: the averages over models, folds and views on disk, written and read."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from lib.choose.choice import Decision, Variant, Weights
from lib.choose.evidence import Predictions, default_variant, predicted, stated_weights
from lib.competitions.contract import Levels, Scene
from lib.run import cores, manifest
from lib.run.artifacts import Unit
from lib.run.cli import Run
from lib.run.clock import Clock
from lib.scenes.georeference import Location
from lib.scenes.probs import file_name, read_levels, write_levels
from lib.settings import some

if TYPE_CHECKING:
    from lib.run.executor import Pool


def units(run: Run) -> list[Unit]:
    """Return what stage 05 builds for the splits that were asked for; fitted weights come before what they average."""
    averages = [run.graph.blend(split) for split in run.splits if run.has_split(split)]
    return ([run.graph.decode()] if "oof" in run.splits else []) + averages


def open_pool(run: Run) -> "Pool":
    """Return the processes that share the scenes of a run; they begin when they are first needed."""
    return cores.open_pool(run.config.data.workers, max(len(run.graph.train_ids), len(run.graph.test_ids)))


def write(run: Run, unit: Unit, folder: Path, pool: "Pool | None" = None) -> dict[str, Any]:
    """Write the average for every scene of a unit's split, which ``pool`` shares; returns what its manifest records."""
    weights, variant, temperatures = averaging_of(run)
    scenes, members = predicted(run, unit.name, temperatures)
    clock, average = Clock(), Averaging(members, weights, variant, folder, run.competition.georeference)
    calls = [(scene,) for scene in scenes]
    with closing(cores.share(pool or cores.open_pool(1, 0), average, Averaging.write, calls)) as written:
        for seconds in tqdm(written, f"average {unit.name}", len(scenes), leave=False, disable=None):
            for name, own in seconds.items():
                clock.add(name, own)
    return {"scenes": len(scenes), "clock": clock.seconds}


def averaging_of(run: Run) -> tuple[Weights, Variant, Mapping[str, float]]:
    """Return how an experiment averages its networks: weights, set of views with the CRF or without, temperatures.

    Where decode.json has a say in it, as it says; ArtifactError where it is missing then.
    """
    if not run.config.averages_are_fitted:
        return stated_weights(run.config), default_variant(run.config), {}
    decision = Decision.of(run)
    return decision.weights, decision.variant(default_variant(run.config)), decision.temperatures


@dataclass(frozen=True)
class Averaging:
    """What the average of a scene is made from, and where it is written."""

    members: Predictions
    weights: Weights
    variant: Variant
    folder: Path
    georeference: Callable[[Scene], Location | None]
    """Where a scene lies, as the file of its average says then."""

    def write(self, scene: Scene) -> dict[str, float]:
        """Write the average of one scene, one file per task; returns the seconds by what they went to."""
        clock, found = Clock(), self.members(scene)
        with clock("read"):
            averages = found.average(self.weights, self.variant)
        with clock("store"):
            place = self.georeference(scene)
            for task, levels in averages.items():
                path = self.folder / task / file_name(scene.id)
                path.parent.mkdir(exist_ok=True)
                write_levels(path, levels, found.names[task], place)
        return clock.seconds


def averaged_scenes(run: Run, split: str) -> list[Scene]:
    """Return the scenes of a split that have been averaged; nothing is read but the unit's list of files."""
    files = run.store.manifest(run.graph.blend(split))["files"]
    tasks = {model.task for model in run.config.models.values()}
    scenes = run.competition.scenes("train" if split == "oof" else "test")
    return [scene for scene in scenes if all(f"{task}/{file_name(scene.id)}" in files for task in tasks)]


def averages(run: Run, split: str) -> Iterator[tuple[Scene, Levels]]:
    """Yield every averaged scene of a split with its levels, one at a time."""
    folder = run.store.require(run.graph.blend(split))
    tasks = {model.task: run.competition.tasks[model.task] for model in run.config.models.values()}
    for scene in averaged_scenes(run, split):
        paths = {role: run.store.check(folder / role / file_name(scene.id)) for role in tasks}
        yield scene, {role: read_levels(paths[role], task.classes)[0] for role, task in tasks.items()}


def failed_scenes(run: Run, split: str) -> list[str]:
    """Return the scenes of a split that some network could not predict, sorted by id."""
    made = [manifest.made(run.store.folder(run.graph.probs(name, fold, split)))
            for name, model in run.config.models.items() for fold in run.config.folds_of(model)]  # fmt: skip
    return sorted({scene for one in made if one is not None for scene in one.get("failed", {})})


def fallbacks(run: Run) -> Iterator[str]:
    """Say of the splits that were asked for which scenes some network could not predict."""
    for split in run.splits:
        if failed := failed_scenes(run, split):
            yield (f"{split}: scenes with the fallback of stage 04: {len(failed)} ({some(failed)}); stage 04 tries "
                   "them again whenever it is run")  # fmt: skip
