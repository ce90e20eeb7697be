"""Pseudo-labels: unlabelled scenes join the training with what an earlier experiment is sure of (Lee 2013).

The networks of the earlier experiment that label scenes for fold k are those trained without fold k, so nothing of a
validation scene's truth comes back through them.
"""

from functools import partial
from pathlib import Path

import numpy as np

from lib.competitions.contract import Scene
from lib.config.sections import Model, Pseudo
from lib.ensemble.blend import blend
from lib.errors import ConfigError
from lib.run.artifacts import MANIFEST, read_json
from lib.run.cli import Run
from lib.run.graph import pseudo_folders
from lib.scenes import folds
from lib.scenes.probs import file_name, read_levels
from lib.scenes.view import View
from lib.tasks import Task
from lib.training.pseudo import confident


def order(labelled: list[int], first: int, count: int, share: float) -> list[int]:
    """Add the scenes ``first`` .. ``first + count - 1`` to a round so often that they are ``share`` of it."""
    wanted = round(len(labelled) * share / (1 - share))
    return labelled + [first + k % count for k in range(wanted)]


def scenes(run: Run, model: Model, fold: int) -> list[Scene]:
    """Return the scenes that get pseudo-labels. ConfigError where the earlier experiment divides scenes otherwise."""
    found = run.scenes("test")
    if not found:
        raise ConfigError("train.pseudo: the competition has no unlabelled scenes here")
    earlier = run.store.root.parent / model.train.pseudo.experiment
    theirs, ours = folds.read_folds(earlier / "01_folds" / "folds.csv"), run.folds()
    if dict(zip(theirs["id"], theirs["fold"])) != dict(zip(ours["id"], ours["fold"])):
        raise ConfigError(f"train.pseudo: {earlier.name} divides the scenes into other folds, so its networks for fold "
                          f"{fold} may have seen validation scenes; take its folds.csv as folds.file")  # fmt: skip
    return found


def target(run: Run, model: Model, fold: int, view: View | None):
    """Return scene -> pseudo-label at the size the network sees."""
    task = run.competition.tasks[model.task]
    sources = [_largest(folder) for folder in pseudo_folders(run.store.root.parent, model, fold)]
    return partial(target_seen, sources, task, model.train.pseudo, view)


def _largest(folder: Path) -> Path:
    """Return where the levels of the largest set of views lie, which have a folder of their own beside others."""
    sets = read_json(folder / MANIFEST)["facts"]["predict"].get("tta", "")
    return folder if isinstance(sets, str) else folder / sets[-1]


def target_seen(sources: list[Path], task: Task, pseudo: Pseudo, view: View | None, scene: Scene) -> np.ndarray:
    """Average the levels of all sources and keep what is sure."""
    levels = [read_levels(source / file_name(scene.id))[0] for source in sources]
    found = confident(blend(levels, [1] * len(levels)), task, pseudo.ratio)
    return view.mask(found, scene.pixel_size) if view else found
