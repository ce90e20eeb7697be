"""Which training scenes are kept on disk (``train.cache: disk``), and what each of them is made from.

The folder of a part follows what all its arrays depend on: the competition with its options, the view, the task, and
the sources and libraries that make them. The name of a file follows what its scene's files hold, as the index of
stage 01 says. Folds, models and experiments that see the same share the files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from lib.competitions.contract import Scene
from lib.config.sections import Model
from lib.files import digest
from lib.inference.scene import stated_sizes
from lib.run import manifest, runtime
from lib.run.cli import Run, say
from lib.run.cores import cores
from lib.run.graph import pseudo_folders
from lib.run.index import DataState, Index
from lib.tasks import Task
from lib.training import cache
from lib.training.cache import Part
from lib.training.dataset import TrainingSet, focus_values, spots_of

if TYPE_CHECKING:
    from lib.stages.train import Seen

MAKERS = ("competitions", "scenes")
"""Rooms whose sources decide what an array holds, beside the view's settings."""
LIBRARIES = ("numpy", "opencv-python-headless", "rasterio", "shapely")


def keep(run: Run, model: Model, data: TrainingSet, seen: "Seen", fold: int) -> TrainingSet:
    """Return a training set whose images and targets are read from the disk, after what it lacks was written there.

    A teacher's logits stay where they are. Raises as ``cache.fill``.
    """
    root = run.store.root.parent / cache.FOLDER
    earlier = [manifest.content(manifest.read(folder)) for folder in pseudo_folders(root.parent, model, fold)]
    sums = _Sums(run, digest([earlier, model.train.pseudo.model_dump(mode="json")]) if model.train.pseudo else "")
    common = {
        "competition": run.config.competition,
        "options": run.config.data.options,
        "view": seen.view.model_dump(mode="json"),
    }
    made_by = digest([runtime.code_version(MAKERS), *(runtime.versions()[name] for name in LIBRARIES)])

    def part(kind: str, make, digests: Mapping[str, str], per_pixel: int | None, **more) -> Part:
        folder = root / f"{run.config.competition}-{kind}-{digest({**common, 'kind': kind, **more})}.{made_by}"
        return Part(folder, make, digests, per_pixel if seen.task.dense else None)

    def of_task(kind: str, task: Task, make, per_pixel: int) -> Part:
        more = {"task": repr(task), "shown": seen.images, "tables": sums.tables}
        return part(kind, make, sums.labels, per_pixel, **more)

    images = {name: part(name, partial(_image, seen, name), sums.images, 3) for name in data.images}
    target = of_task(f"{seen.role}", seen.task, seen.target, 1)
    auxiliary = {role: (task, of_task(role, task, make, 1)) for role, (task, make) in data.auxiliary.items()}
    spots = None
    if seen.task.dense:
        values = sorted(focus_values(seen.task, dict.fromkeys(seen.task.classes, 1.0)))
        spots = of_task(f"{seen.role}-spots", seen.task, partial(_spots, target, values), 0)
    parts = [*images.values(), target, *(made for _, made in auxiliary.values()), *([spots] if spots else [])]
    stated = stated_sizes(run.competition, data.scenes) if seen.task.dense else {}

    def size(scene: Scene) -> tuple[int, int] | None:
        return seen.view.shape(stated[scene.id], scene.pixel_size) if scene.id in stated else None

    cache.fill(parts, data.scenes, model.train.workers and max(model.train.workers, _cores()), say, size)
    return replace(data, read=partial(_read, images), target=target, auxiliary=auxiliary, spots=spots)


class _Sums:
    """Digests of what scenes are made from."""

    def __init__(self, run: Run, taught: str):
        """taught: digest of the pseudo-labels, "" without."""
        state = run.graph.data
        if state is None or not state.scenes["train"]:  # no index of stage 01: sizes and times stand for the bytes
            named = {split: run.competition.scenes(split) for split in ("train", "test")}
            state = Index(run.competition, named, {}).look(by_time=True).data
        self.tables: Mapping[str, str] = state.tables
        unlabelled = dict(self._of(state, "test", False))
        self.images = unlabelled | dict(self._of(state, "train", False))
        self.labels = {i: digest([one, taught]) for i, one in unlabelled.items()} | dict(self._of(state, "train", True))

    @staticmethod
    def _of(state: DataState, split: str, labels: bool) -> Mapping[str, str]:
        """An image may be read with others beside it, and a label at their size: all images of a scene count."""
        return state.by_scene(split, state.images, labels)


def _image(seen: "Seen", name: str, scene: Scene) -> np.ndarray:
    return seen.image(scene, name)


def _spots(target: Part, values: Sequence[int], scene: Scene) -> np.ndarray:
    return spots_of(target(scene), values)


def _read(images: Mapping[str, Part], scene: Scene, name: str) -> np.ndarray:
    return images[name](scene)


def _cores() -> int:
    """Return how many cores each process of this machine has for itself."""
    return max(cores() // runtime.local_processes(), 1)
