"""Pseudo-labels: unlabelled scenes join the training with what an earlier experiment is sure of (Lee 2013).

The networks of the earlier experiment that label scenes for fold k are those trained without fold k, so nothing of a
validation scene's truth comes back through them.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from lib.competitions.contract import Scene
from lib.config.sections import Model, Predict, Pseudo
from lib.ensemble.blend import blend
from lib.errors import ArtifactError, ConfigError
from lib.run import manifest
from lib.run.cli import Run, say
from lib.run.graph import pseudo_folders
from lib.run.manifest import MANIFEST
from lib.scenes.probs import levels_path, read_levels
from lib.stages.folds import require_same_folds
from lib.tasks import Task
from lib.training.pseudo import confident


@dataclass(frozen=True)
class PseudoLabels:
    """Scenes without a label and the targets that they get."""

    scenes: tuple[Scene, ...]
    sources: tuple[tuple[Path, tuple[str, ...]], ...]
    """Folders of stage 04 and the sets of views that lie in each."""
    task: Task
    ratio: float

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of the scenes."""
        return frozenset(scene.id for scene in self.scenes)

    def __call__(self, scene: Scene) -> np.ndarray:
        """Average the levels of all sources and keep what is sure: a target of the task, 255 elsewhere."""
        paths = [levels_path(folder, sets, sets[-1], scene.id) for folder, sets in self.sources]
        found = [read_levels(manifest.check(path), self.task.classes)[0] for path in paths]
        return confident(blend(found, [1] * len(found)), self.task, self.ratio)


def order(labelled: list[int], first: int, count: int, share: float) -> list[int]:
    """Add the scenes ``first`` .. ``first + count - 1`` to a round so often that they are ``share`` of it."""
    wanted = round(len(labelled) * share / (1 - share))
    return labelled + [first + k % count for k in range(wanted)]


def labels(run: Run, model: Model, asked: Pseudo, fold: int) -> PseudoLabels:
    """Return the pseudo-labels for a fold, without those of scenes that have a fallback or no image.

    ConfigError where the earlier experiment divides scenes otherwise, and where no scene is left.
    """
    scenes = run.competition.scenes("test")
    if not scenes:
        raise ConfigError("train.pseudo: the competition has no unlabelled scenes here")
    require_same_folds(run, "train.pseudo", asked.experiment, fold)
    sources = [(folder, _sets_of_views(folder)) for folder in pseudo_folders(run.store.root.parent, model, fold)]
    failed = {scene for folder, _ in sources for scene in manifest.read(folder).get("failed", {})}
    seen = [scene for scene in scenes if scene.id not in failed and not run.competition.incomplete(scene)]
    if not seen:
        raise ConfigError(f"train.pseudo: none of {len(scenes)} unlabelled scenes has an image and a prediction of "
                          f"{asked.experiment}; mend their files and run stage 04 there again")  # fmt: skip
    if len(seen) < len(scenes):
        say(f"  {len(scenes) - len(seen)} of {len(scenes)} unlabelled scenes have no image or only the fallback of "
            f"{asked.experiment}, and teach nothing")  # fmt: skip
    return PseudoLabels(tuple(seen), tuple(sources), run.competition.tasks[model.task], asked.ratio)


def _sets_of_views(folder: Path) -> tuple[str, ...]:
    facts = manifest.read(folder).get("facts", {})
    try:
        return Predict.model_validate(facts.get("predict")).tta_sets
    except ValidationError as error:
        raise ArtifactError(f"{folder / MANIFEST}: damaged (facts.predict: {error.errors()[0]['msg']}); run stage 04 "
                            "of that experiment again with --force") from error  # fmt: skip
