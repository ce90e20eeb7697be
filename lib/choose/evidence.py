"""Stage 05: what is averaged for each scene, and the averages on disk."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.competitions.contract import Levels, Scene
from lib.config.sections import Predict
from lib.ensemble import blend as blending
from lib.ensemble import calibration, crf
from lib.errors import ArtifactError, DataError
from lib.run.artifacts import Unit, read_json
from lib.run.cli import Run
from lib.scenes.probs import file_name, levels_path, read_levels, write_levels

DECODE = "decode.json"


# ---- members ------------------------------------------------------------------------------------------
Members = dict[str, dict[str, list[Path]]]
"""Task -> model -> the folders of levels of one scene: one of its own fold, or all folds' for a test scene."""
Weights = Mapping[str, float]
"""Model -> its weight in the average of its task."""


@dataclass(frozen=True)
class Variant:
    """What besides the weights decides an average: the set of views, whether a CRF refines it."""

    tta: str
    crf: bool = False


Calibrate = Callable[[str, str, np.ndarray], np.ndarray]
Refine = Callable[[str, np.ndarray], np.ndarray]


def members(run: Run, split: str) -> dict[str, Members]:
    """Return scene id -> everything that is averaged for it.

    ArtifactError where the models of the ensemble do not cover the same scenes, or a scene is in two folds' oof.
    """
    found: dict[str, Members] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    covered: dict[str, set[str]] = {}
    table = run.folds() if split == "oof" else None
    for name, model in run.config.models.items():
        covered[name] = set()
        for fold in run.config.folds_of(model):
            source = run.store.require(run.graph.probs(name, fold, split))
            for scene in run.graph.test_ids if table is None else table["id"][table["fold"] == fold]:
                if split == "oof" and scene in covered[name]:
                    raise ArtifactError(f"{scene}: in two folds' out-of-fold predictions of {name}; run stage 01 anew")
                covered[name].add(scene)
                found[scene][model.task][name].append(source)
    first, *others = covered
    for other in others:
        if odd := covered[first] ^ covered[other]:
            raise ArtifactError(
                f"{other} and {first} do not cover the same {split} scenes ({len(odd)} differ, e.g. {min(odd)}): "
                "an ensemble needs equal scenes; train and predict the missing folds, or set the models' folds alike"
            )
    return found


class Parts:
    """The levels of one scene's members, each read once, averaged under any weights and variant.

    predict: how they were predicted; calibrate: (task, model, levels) -> levels, done to each member; refine: (task,
    levels) -> levels, to each average of a variant with a CRF.
    """

    def __init__(self, scene: Scene, members: Members, predict: Predict, truncate: bool = False,
                 calibrate: Calibrate | None = None, refine: Refine | None = None):  # fmt: skip
        self.scene, self.members, self.predict = scene, members, predict
        self.truncate, self.calibrate, self.refine = truncate, calibrate, refine
        self.names: dict[str, tuple[str, ...]] = {}
        """Task -> names of its channels, of what has been read."""
        self._read: dict[str, dict[str, list[tuple[str, int, np.ndarray]]]] = {}

    def levels(self, tta: str) -> dict[str, list[tuple[str, int, np.ndarray]]]:
        """Return task -> (model, number of its folds, (C, H, W) uint8) of each member under a set of views."""
        if tta not in self._read:
            self._read[tta] = {task: list(self._levels(tta, task, own)) for task, own in self.members.items()}
        return self._read[tta]

    def _levels(self, tta: str, task: str, folders: dict[str, list[Path]]) -> Iterator[tuple[str, int, np.ndarray]]:
        for model, sources in folders.items():
            for source in sources:
                levels, names = read_levels(levels_path(source, self.predict.tta_sets, tta, self.scene.id))
                if self.names.setdefault(task, names) != names:
                    raise ArtifactError(f"{source}: expected channels {self.names[task]}, got {names}")
                yield model, len(sources), self.calibrate(task, model, levels) if self.calibrate else levels

    def average(self, weights: Weights, variant: Variant) -> Levels:
        """Return task -> (C, H, W) uint8; the folds of a model share its weight, models without a weight are out."""
        averaged = {}
        for task, members in self.levels(variant.tta).items():
            kept = [(Fraction(str(weights[model])) / folds, own) for model, folds, own in members if model in weights]
            averaged[task] = blending.blend([own for _, own in kept], [share for share, _ in kept], self.truncate)
            if variant.crf and self.refine:
                averaged[task] = self.refine(task, averaged[task])
        return averaged


def parts(run: Run, split: str, temperatures: Mapping[str, float] | None = None) -> Iterator[tuple[Scene, Parts]]:
    """Yield every scene of a split that the ensemble has predicted, one at a time; ``temperatures``: of its models."""
    sources = members(run, split)
    for scene in run.scenes("train" if split == "oof" else "test"):
        if scene.id in sources:
            yield scene, Parts(scene, sources[scene.id], run.config.predict, run.config.blend.truncate,
                               _calibrate(run, temperatures or {}), _refine(run, scene))  # fmt: skip


def _calibrate(run: Run, temperatures: Mapping[str, float]) -> Calibrate | None:
    """Return what gives each model its temperature, None where none has one."""
    tasks = run.competition.tasks
    if all(temperature == 1 for temperature in temperatures.values()):
        return None
    return lambda task, model, levels: calibration.apply(levels, temperatures[model], tasks[task].kind == "multiclass")


def _refine(run: Run, scene: Scene) -> Refine | None:
    """Return the CRF on the scene's first image, None where it is off."""
    options, tasks = run.config.blend.crf, run.competition.tasks
    if options is None:
        return None

    def refine(task: str, levels: np.ndarray) -> np.ndarray:
        if not tasks[task].dense:
            return levels
        try:
            image = run.competition.read(scene, run.competition.images[0])
        except DataError:  # its levels are the fallback of stage 04
            return levels
        return crf.refine(levels, image, tasks[task].kind == "multiclass", crf.Crf(**options))

    return refine


def stated(run: Run) -> dict[str, float]:
    """Return the weights that the experiment states."""
    return {name: model.weight for name, model in run.config.models.items()}


def usual(run: Run) -> Variant:
    """Return the variant that is used where nothing is chosen: the largest set of views, the CRF where it is on."""
    blend = run.config.blend
    return Variant(run.config.predict.tta_sets[-1], blend.crf is not None and not blend.choose_crf)


def variants(run: Run) -> list[Variant]:
    """Return the variants to choose from, the plainest first."""
    refined = (False, True) if run.config.blend.choose_crf else (usual(run).crf,)
    return [Variant(tta, crf) for crf in refined for tta in run.config.predict.tta_sets]


def candidates(run: Run) -> list[dict[str, float]]:
    """Return the weights to try: those of the experiment, or all shares in steps of ``blend.fit`` for every task."""
    if run.config.blend.fit is None:
        return [stated(run)]
    lists = []
    for task in dict.fromkeys(model.task for model in run.config.models.values()):
        names = list(run.graph.models(task))
        lists.append([dict(zip(names, shares)) for shares in blending.simplex(len(names), run.config.blend.fit)])
    return [{name: w for part in combination for name, w in part.items()} for combination in product(*lists)]


# ---- blend --------------------------------------------------------------------------------------------
def blend(run: Run, split: str, folder: Path) -> int:
    """Write the average over models and folds for every scene of a split; returns the number of scenes."""
    weights, temperatures, variant, done = stated(run), {}, usual(run), 0
    if run.config.averages_are_fitted:
        chosen = read_json(run.store.require(run.graph.decode()) / DECODE)
        weights, temperatures = chosen["weights"], chosen["temperatures"]
        variant = Variant(chosen.get("tta", variant.tta), chosen.get("crf", variant.crf))  # older files have neither
    for scene, found in tqdm(parts(run, split, temperatures), f"blend {split}", leave=False, disable=None):
        for task, levels in found.average(weights, variant).items():
            path = folder / task / file_name(scene.id)
            path.parent.mkdir(exist_ok=True)
            write_levels(path, levels, found.names[task])
        done += 1
    return done


def covered(run: Run, split: str) -> list[Scene]:
    """Return the scenes of a split that the ensemble has predicted; nothing is read but the units' lists of files."""
    files = run.store.manifest(run.graph.blend(split))["files"]
    tasks = {model.task for model in run.config.models.values()}
    scenes = run.scenes("train" if split == "oof" else "test")
    return [scene for scene in scenes if all(f"{task}/{file_name(scene.id)}" in files for task in tasks)]


def blended(run: Run, split: str) -> Iterator[tuple[Scene, Levels]]:
    """Yield every blended scene of a split with its levels, one at a time."""
    folder = run.store.require(run.graph.blend(split))
    tasks = {model.task for model in run.config.models.values()}
    for scene in covered(run, split):
        yield scene, {task: read_levels(folder / task / file_name(scene.id))[0] for task in tasks}


def units(run: Run) -> list[Unit]:
    """Return what stage 05 builds for the splits that were asked for; fitted weights come before what they average."""
    blends = [run.graph.blend(split) for split in run.splits if run.has_split(split)]
    return ([run.graph.decode()] if "oof" in run.splits else []) + blends
