"""Stage 05: the averages over models, folds and views on disk, written and read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.choose.choice import Decision
from lib.choose.evidence import default_variant, predicted, stated_weights
from lib.competitions.contract import Levels, Scene
from lib.run import manifest
from lib.run.artifacts import Unit
from lib.run.cli import Run
from lib.scenes.probs import file_name, read_levels, write_levels
from lib.settings import some


def units(run: Run) -> list[Unit]:
    """Return what stage 05 builds for the splits that were asked for; fitted weights come before what they average."""
    averages = [run.graph.blend(split) for split in run.splits if run.has_split(split)]
    return ([run.graph.decode()] if "oof" in run.splits else []) + averages


def write(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write the average for every scene of a unit's split; returns what its manifest records."""
    weights, variant, temperatures = stated_weights(run.config), default_variant(run.config), {}
    if run.config.averages_are_fitted:
        decision = Decision.of(run)
        weights, variant, temperatures = decision.weights, decision.variant(variant), decision.temperatures
    scenes, members = predicted(run, unit.name, temperatures)
    for scene in tqdm(scenes, f"average {unit.name}", leave=False, disable=None):
        found = members(scene)
        for task, levels in found.average(weights, variant).items():
            path = folder / task / file_name(scene.id)
            path.parent.mkdir(exist_ok=True)
            write_levels(path, levels, found.names[task])
    return {"scenes": len(scenes)}


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
