"""What choosing looks at: the out-of-fold scenes, what networks predicted for them, and their truth.

Every pass over the scenes reads the predictions anew, one scene at a time, so memory does not grow with their number.
The truth is drawn once and kept compressed, because drawing polygons takes longer than reading levels.
"""

import pickle
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import islice, product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.choose.choice import Choice, Variant, Weights
from lib.competitions.contract import Answer, Levels, Scene, settings_for
from lib.config.sections import Experiment, Search
from lib.ensemble import blend as blending
from lib.ensemble import calibration, crf
from lib.ensemble.search import Lattice
from lib.errors import ArtifactError, DataError
from lib.run.cli import Run
from lib.scenes.probs import levels_path, read_levels

TRUTHS_IN_MEMORY = 1 << 28
"""Bytes of compressed truths that are kept in memory; beyond them they lie in a temporary file."""

Folders = dict[str, dict[str, list[Path]]]
"""Task -> model -> the folders of levels of one scene: one of its own fold, or all folds' for a test scene."""


# ---- what networks predicted --------------------------------------------------------------------------
@dataclass
class Members:
    """The levels of one scene's networks, each read once, averaged under any weights and variant."""

    run: Run
    scene: Scene
    folders: Folders
    temperatures: Mapping[str, float]
    """Model -> its temperature; 1 where none is stated."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Task -> names of its channels, of what has been read."""
    _read: dict[str, dict[str, list[tuple[str, int, np.ndarray]]]] = field(default_factory=dict)

    def levels(self, tta: str) -> dict[str, list[tuple[str, int, np.ndarray]]]:
        """Return task -> (model, number of its folds, (C, H, W) uint8) of each network under a set of views."""
        if tta not in self._read:
            self._read[tta] = {task: list(self._levels(tta, task, own)) for task, own in self.folders.items()}
        return self._read[tta]

    def _levels(self, tta: str, task: str, folders: dict[str, list[Path]]) -> Iterator[tuple[str, int, np.ndarray]]:
        known = self.run.competition.tasks[task]
        for model, sources in folders.items():
            for source in sources:
                path = levels_path(source, self.run.config.predict.tta_sets, tta, self.scene.id)
                levels, self.names[task] = read_levels(self.run.store.check(path), known.classes)
                exclusive = known.kind == "multiclass"
                yield model, len(sources), calibration.apply(levels, self.temperatures.get(model, 1), exclusive)

    def average(self, weights: Weights, variant: Variant) -> Levels:
        """Return task -> (C, H, W) uint8; the folds of a model share its weight, models without a weight are out."""
        averaged = {}
        for task, members in self.levels(variant.tta).items():
            kept = [(Fraction(str(weights[model])) / folds, own) for model, folds, own in members if model in weights]
            shares, levels = [share for share, _ in kept], [own for _, own in kept]
            averaged[task] = blending.blend(levels, shares, self.run.config.blend.truncate)
            if variant.crf:
                averaged[task] = self._refined(task, averaged[task])
        return averaged

    def _refined(self, task: str, levels: np.ndarray) -> np.ndarray:
        """Refine an average by the CRF on the scene's first image, where it is on and the scene can be read."""
        competition, options = self.run.competition, self.run.config.blend.crf
        if options is None or not competition.tasks[task].dense:
            return levels
        try:
            image = competition.read(self.scene, competition.images[0])
        except DataError:  # its levels are the fallback of stage 04
            return levels
        if image.shape[:2] != levels.shape[-2:]:  # so are those of a scene whose images differ in size
            return levels
        settings = crf.Crf.model_validate(options)
        return crf.refine(levels, image, competition.tasks[task].kind == "multiclass", settings)


def predicted(
    run: Run, split: str, temperatures: Mapping[str, float] | None = None
) -> tuple[list[Scene], Callable[[Scene], Members]]:
    """Return the scenes of a split that the ensemble has predicted, and what gives the predictions of one of them.

    temperatures: of its models. ArtifactError where the models do not cover the same scenes, or a scene is in two
    folds' out-of-fold predictions.
    """
    folders = _folders(run, split)
    scenes = [scene for scene in run.competition.scenes("train" if split == "oof" else "test") if scene.id in folders]

    def members(scene: Scene) -> Members:
        return Members(run, scene, folders[scene.id], temperatures or {})

    return scenes, members


def _folders(run: Run, split: str) -> dict[str, Folders]:
    """Return scene id -> where everything lies that is averaged for it."""
    found: dict[str, Folders] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
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
    if split == "oof" and run.config.blend.scenes == "common":
        common = set.intersection(*covered.values())
        if not common:
            raise ArtifactError("blend.scenes: there is no scene that every model has predicted out of fold; set the "
                                "models' folds so that they have one in common")  # fmt: skip
        return {scene: own for scene, own in found.items() if scene in common}
    for other in others:
        if odd := covered[first] ^ covered[other]:
            raise ArtifactError(
                f"{other} and {first} do not cover the same {split} scenes ({len(odd)} differ, e.g. {min(odd)}): "
                "an ensemble needs equal scenes; train and predict the missing folds, set the models' folds alike, or "
                "take the scenes that all cover (blend.scenes: common)"
            )
    return found


# ---- what can be chosen -------------------------------------------------------------------------------
def stated_weights(config: Experiment) -> dict[str, float]:
    """Return the weights that the experiment states."""
    return {name: model.weight for name, model in config.models.items()}


def default_variant(config: Experiment) -> Variant:
    """Return the variant that is used where nothing is chosen: the largest set of views, the CRF where it is on."""
    return Variant(config.predict.tta_sets[-1], config.blend.crf is not None and not config.blend.choose_crf)


def variants(config: Experiment) -> list[Variant]:
    """Return the variants to choose from, the plainest first."""
    refined = (False, True) if config.blend.choose_crf else (default_variant(config).crf,)
    return [Variant(tta, crf) for crf in refined for tta in config.predict.tta_sets]


def weights_to_try(config: Experiment) -> list[dict[str, float]]:
    """Return the weights to try: those of the experiment, or all shares in steps of ``blend.fit`` for every task."""
    if config.blend.fit is None:
        return [stated_weights(config)]
    lists = []
    for task in dict.fromkeys(model.task for model in config.models.values()):
        names = [name for name, model in config.models.items() if model.task == task]
        lists.append([dict(zip(names, shares)) for shares in blending.simplex(len(names), config.blend.fit)])
    return [{name: w for part in combination for name, w in part.items()} for combination in product(*lists)]


def settings_to_try(run: Run, fixed: Choice) -> Lattice:
    """Return the lattice of settings that is searched around the fixed ones; a single point without a search."""
    common = {name: value for name, value in fixed.params.items() if name != "per_domain"}
    return run.competition.grid(run.config.search.axes if run.config.search else {}, common)


# ---- out-of-fold scenes -------------------------------------------------------------------------------
class OutOfFold:
    """The labelled scenes with the predictions of networks that never saw them, for one pass after the other.

    fold_of: scene id -> fold, of all labelled scenes; scenes: those that have been predicted; members: what gives the
    predictions of a scene; folder: where truths lie that memory is too small for. DataError where there is no scene.
    """

    def __init__(
        self,
        run: Run,
        fold_of: Mapping[str, int],
        scenes: Sequence[Scene],
        members: Callable[[Scene], Members],
        folder: Path | None = None,
    ):
        if not scenes:
            raise DataError("no out-of-fold scene has been predicted; run stage 04 with --split oof")
        self.run, self.fold_of, self.scenes, self.members = run, fold_of, scenes, members
        self.competition = run.competition
        self.search = run.config.search or Search(axes={})  # without a search one that has no axes
        self.folds = sorted({fold_of[scene.id] for scene in scenes})
        self._truths = tempfile.SpooledTemporaryFile(TRUTHS_IN_MEMORY, dir=None if folder is None else str(folder))
        self._places: dict[str, tuple[int, int]] = {}

    def each(self, title: str, every: int = 1) -> Iterator["OutOfFoldScene"]:
        """Yield every scene, or every so many, with a progress bar of that title."""
        chosen = list(islice(self.scenes, 0, None, every))
        for scene in tqdm(chosen, title, leave=False, disable=None):
            yield OutOfFoldScene(self, scene)

    def truth(self, scene: Scene) -> Answer:
        """Return a scene's truth, drawn where it is asked for first, then kept compressed."""
        if scene.id not in self._places:
            truth = self.competition.truth(scene)
            packed = zlib.compress(pickle.dumps(truth, protocol=5), level=1)
            self._truths.seek(0, 2)
            self._places[scene.id] = self._truths.tell(), len(packed)
            self._truths.write(packed)
            return truth
        start, length = self._places[scene.id]
        self._truths.seek(start)
        return pickle.loads(zlib.decompress(self._truths.read(length)))


class OutOfFoldScene:
    """One scene during a pass: its averages, its answers, and how these count against its truth."""

    def __init__(self, source: OutOfFold, scene: Scene):
        self.scene, self.fold = scene, source.fold_of[scene.id]
        self.members = source.members(scene)
        self._source = source
        self._averaged: tuple[Weights, Variant, Levels] | None = None
        self._answered: tuple[Choice, Answer] | None = None
        self._tallies: dict[str, np.ndarray] = {}

    @cached_property
    def truth(self) -> Answer:
        """The answer that the official scorer compares with."""
        return self._source.truth(self.scene)

    def average(self, weights: Weights, variant: Variant) -> Levels:
        """Return task -> (C, H, W) uint8; the last average is remembered."""
        if self._averaged is None or self._averaged[:2] != (weights, variant):
            self._averaged = weights, variant, self.members.average(weights, variant)
        return self._averaged[2]

    def count(self, weights: Weights, variant: Variant, grid: Lattice) -> np.ndarray:
        """Count every point of a grid of decode settings: (P, K) int64."""
        return self._source.competition.count(self.average(weights, variant), self.truth, grid)

    def answer(self, choice: Choice) -> Answer:
        """Average and decode as a choice says; the last answer is remembered."""
        if self._answered is None or self._answered[0] != choice:
            levels, params = self.average(choice.weights, choice.variant), settings_for(self.scene, choice.params)
            self._answered = choice, self._source.competition.decode(levels, params)
        return self._answered[1]

    def tally(self, choice: Choice) -> np.ndarray:
        """Count the answer of a choice, (K,) int64; equal choices are decoded once, since folds often agree."""
        key = repr(choice)
        if key not in self._tallies:
            self._tallies[key] = self._source.competition.tally(self.answer(choice), self.truth)
        return self._tallies[key]


def out_of_fold(run: Run, folder: Path, temperatures: Mapping[str, float] | None = None) -> OutOfFold:
    """Open the out-of-fold scenes of an experiment; ``temperatures``: of its models."""
    table = run.folds()
    fold_of = {scene: int(fold) for scene, fold in zip(table["id"], table["fold"], strict=True)}
    return OutOfFold(run, fold_of, *predicted(run, "oof", temperatures), folder)
