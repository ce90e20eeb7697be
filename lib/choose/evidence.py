"""What choosing looks at: the out-of-fold scenes, what networks predicted for them, and their truth.

Every pass over the scenes reads predictions and truth anew, one scene at a time in each process that shares them, so
memory does not grow with their number. Tables of counts are whole numbers: they are added as they come, and the sums
are the same in any order.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lib.choose.choice import Choice, Variant, Weights
from lib.competitions.contract import Answer, Levels, Scene, settings_for
from lib.config.sections import Experiment, Search
from lib.ensemble import blend as blending
from lib.ensemble import calibration, crf
from lib.ensemble.search import Lattice, add
from lib.errors import ArtifactError, DataError
from lib.run import cores
from lib.run.cli import Run
from lib.run.clock import Clock
from lib.scenes.probs import levels_path, read_levels

if TYPE_CHECKING:
    from lib.run.executor import Sharing

AT_ONCE = 16
"""At most so many scenes are counted by a process before it hands over its tables, which may have 60 MB each."""

SAMPLED = 1 << 17
"""Most pixels of a scene by which it is told how sure averages are: of 1024 x 1024 every third in both directions."""

Look = Callable[..., Any]
"""A function (scene, further arguments) -> what a pass wants to know of it; processes import it by its name."""
Sums = dict[Any, Any]
"""Key -> what is added up under it: tables of counts, or whatever else has a sum that no order changes."""
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
            averaged[task] = weighted(members, weights, self.run.config.blend.truncate)
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


def weighted(members: Sequence[tuple[str, int, np.ndarray]], weights: Weights, truncate: bool) -> np.ndarray:
    """Average the levels of a task's networks, (model, number of its folds, (C, H, W) uint8) each: (C, H, W) uint8.

    The folds of a model share its weight, models without a weight are out.
    """
    kept = [(Fraction(str(weights[model])) / folds, own) for model, folds, own in members if model in weights]
    return blending.blend([own for _, own in kept], [share for share, _ in kept], truncate)


@dataclass
class Predictions:
    """Gives the predictions of one scene after the other; ``folders`` has all scenes."""

    run: Run
    folders: Mapping[str, Folders]
    temperatures: Mapping[str, float]

    def __call__(self, scene: Scene) -> Members:
        return Members(self.run, scene, self.folders[scene.id], self.temperatures)


def predicted(run: Run, split: str, temperatures: Mapping[str, float] | None = None) -> tuple[list[Scene], Predictions]:
    """Return the scenes of a split that the ensemble has predicted, and what gives the predictions of one of them.

    temperatures: of its models. ArtifactError where the models do not cover the same scenes, or a scene is in two
    folds' out-of-fold predictions.
    """
    folders = _folders(run, split)
    scenes = [scene for scene in run.competition.scenes("train" if split == "oof" else "test") if scene.id in folders]
    return scenes, Predictions(run, folders, temperatures or {})


def _folders(run: Run, split: str) -> dict[str, Folders]:
    """Return scene id -> where everything lies that is averaged for it."""
    found: dict[str, Folders] = defaultdict(dict)
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
                found[scene].setdefault(model.task, {}).setdefault(name, []).append(source)
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
    predictions of a scene; pool: the processes that share a pass, none but this one by default. DataError where there
    is no scene.
    """

    def __init__(
        self,
        run: Run,
        fold_of: Mapping[str, int],
        scenes: Sequence[Scene],
        members: Callable[[Scene], Members],
        pool: "Sharing | None" = None,
    ):
        if not scenes:
            raise DataError("no out-of-fold scene has been predicted; run stage 04 with --split oof")
        self.run, self.fold_of, self.scenes, self.members = run, fold_of, scenes, members
        self.competition = run.competition
        self.search = run.config.search or Search(axes={})  # without a search one that has no axes
        self.folds = sorted({fold_of[scene.id] for scene in scenes})
        self.clock = Clock()
        """Where the time of all passes went, in all processes together."""
        self.counts_sureness = False
        """Whether it is counted, too, how often what an average states is found, wherever its detail is."""
        self._pool = pool
        self._known: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = [({}, {}) for _ in scenes]
        """Per scene: its tallies and details, by choice, that earlier passes have told."""

    def each(self, title: str, every: int = 1) -> Iterator["OutOfFoldScene"]:
        """Yield every scene, or every so many, in this process, with a progress bar of that title."""
        for scene in tqdm(self.scenes[::every], title, leave=False, disable=None):
            yield OutOfFoldScene(self, scene)

    def added(self, title: str, look: Look, *arguments: Any, every: int = 1) -> Sums:
        """Add up over every scene, or every so many, the tables of whole numbers that ``look`` returns by their keys.

        ``arguments``: what ``look`` is given after the scene. Keys come in the order of the scenes that have them.
        """
        sums: Sums = {}
        first: dict[Hashable, tuple[int, int]] = {}
        for tables, own in self._pass(title, _add, (look, *arguments), range(0, len(self.scenes), every)):
            for key, table in tables.items():
                add(sums, key, table)
                first[key] = min(first.get(key, own[key]), own[key])
        return {key: sums[key] for key in sorted(sums, key=first.__getitem__)}

    def listed(self, title: str, look: Look, *arguments: Any, every: int = 1) -> list[Any]:
        """Return what ``look(scene, *arguments)`` returns for every scene, or every so many, in their order."""
        places = range(0, len(self.scenes), every)
        found = dict(one for some in self._pass(title, _list, (look, *arguments), places) for one in some)
        return [found[place] for place in sorted(found)]

    def judged(self, title: str, choices: Mapping[int, Sequence[Choice]]) -> list[tuple[list[np.ndarray], np.ndarray]]:
        """Return of every scene the tallies of the choices of its fold, and the detail of the first of them.

        What earlier passes have told is not told again; where they have told all of it, there is no further pass.
        """
        keys = {fold: [_key(choice) for choice in own] for fold, own in choices.items()}
        wanted = [keys[self.fold_of[scene.id]] for scene in self.scenes]
        missing = [place for place, (own, (tallies, details)) in enumerate(zip(wanted, self._known))
                   if own[0] not in details or not tallies.keys() >= {*own}]  # fmt: skip
        for _ in self._pass(title, _judge, (choices,), missing):
            pass
        return [
            ([tallies[key] for key in own], details[own[0]]) for own, (tallies, details) in zip(wanted, self._known)
        ]

    def sureness(self, choice: Choice) -> dict[str, np.ndarray]:
        """Return task -> (256, 2) as ``calibration.stated`` counts, of the averages of a choice that was judged."""
        end = _average_key(choice)
        sums: dict[str, np.ndarray] = {}
        for _, details in self._known:
            for key, table in details.items():
                task, found, average = key.rpartition(" ")
                if found and average == end:
                    add(sums, task, table)
        return sums

    def _pass(self, title: str, method: Callable, arguments: tuple, asked: Sequence[int]) -> Iterator[Any]:
        """Yield what ``method(self, scenes by place, *arguments)`` returns, as it comes, for shares of those asked for.

        Scenes of one fold and domain share tables, so a process gets them together: then it has few to hand over.
        """
        places, size = list(asked), 1
        if self._pool is not None and len(self._pool) > 1:
            places.sort(key=lambda place: (self.fold_of[self.scenes[place].id], self.scenes[place].domain, place))
            size = max(1, min(AT_ONCE, len(places) // (4 * len(self._pool))))
        calls = [(places[start : start + size], method, arguments) for start in range(0, len(places), size)]
        with tqdm(total=len(places), desc=title, leave=False, disable=None) as bar:
            for found, told, seconds in self._answers(calls):
                for name, own in seconds.items():
                    self.clock.add(name, own)
                for place, (tallies, details) in told.items():
                    self._known[place][0].update(tallies)
                    self._known[place][1].update(details)
                yield found
                bar.update(len(told))

    def _answers(self, calls: list[tuple]) -> Iterator[Any]:
        if self._pool is None or len(self._pool) == 1:
            yield from (_look(self, *call) for call in calls)
            return
        held = copy(self)
        held._pool, held._known, held.clock = None, [], None  # type: ignore[assignment]  # of this process alone
        with closing(cores.share(self._pool, held, _look, calls)) as answers:
            yield from answers


def _look(
    scenes: OutOfFold, places: Sequence[int], method: Callable, arguments: tuple
) -> tuple[Any, dict, dict[str, float]]:
    """Call ``method`` for some scenes; beside what it returns the tallies and details that each scene has told, and
    where the time went."""
    told: dict[int, tuple[dict, dict]] = {}
    clock = Clock()

    def opened() -> Iterator[tuple[int, OutOfFoldScene]]:
        for place in places:  # one is open at a time
            item = OutOfFoldScene(scenes, scenes.scenes[place], clock)
            yield place, item
            told[place] = item.tallies, item.details

    with clock("decode"):
        found = method(opened(), *arguments)
    return found, told, clock.seconds


def _add(opened: Iterator[tuple[int, "OutOfFoldScene"]], look: Look, *arguments: Any) -> tuple[Sums, dict]:
    """Add up what ``look`` returns for some scenes; beside it the first scene of each key, and its place there."""
    sums: Sums = {}
    first: dict[Hashable, tuple[int, int]] = {}
    for place, item in opened:
        for number, (key, table) in enumerate(look(item, *arguments).items()):
            add(sums, key, table)
            first[key] = min(first.get(key, (place, number)), (place, number))
    return sums, first


def _list(opened: Iterator[tuple[int, "OutOfFoldScene"]], look: Look, *arguments: Any) -> list[tuple[int, Any]]:
    """Return (place of the scene, what ``look`` returns for it) of some scenes."""
    return [(place, look(item, *arguments)) for place, item in opened]


def _judge(opened: Iterator[tuple[int, "OutOfFoldScene"]], choices: Mapping[int, Sequence[Choice]]) -> None:
    """Tally some scenes with each choice of their fold, and take the details of the first."""
    for _, item in opened:
        item.detail(choices[item.fold][0])
        for choice in choices[item.fold]:
            item.tally(choice)


def _key(choice: Choice) -> str:
    """Return what stands for a choice: of equal ones the same, and short, for it is kept beside each scene."""
    return hashlib.sha256(repr(choice).encode()).hexdigest()[:16]


def _average_key(choice: Choice) -> str:
    """Return what stands for the average of a choice."""
    return _key(Choice(choice.weights, {}, choice.variant))


class OutOfFoldScene:
    """One scene during a pass: its averages, its answers, and how these count against its truth.

    What was told of it is in ``tallies`` and ``details``, by what stands for a choice: equal ones are decoded once,
    since folds often agree.
    """

    def __init__(self, source: OutOfFold, scene: Scene, clock: Clock | None = None):
        self.clock = Clock() if clock is None else clock
        self.scene, self.fold = scene, source.fold_of[scene.id]
        self.members = source.members(scene)
        self.competition = source.competition
        self._counts_sureness = source.counts_sureness
        self.tallies: dict[str, np.ndarray] = {}
        self.details: dict[str, np.ndarray] = {}
        self._averaged: tuple[Weights, Variant, Levels] | None = None
        self._decoded: dict[str, Answer] = {}
        self._answered: tuple[Choice, Answer] | None = None

    @cached_property
    def truth(self) -> Answer:
        """The answer that the official scorer compares with."""
        with self.clock("read"):
            return self.competition.truth(self.scene)

    def average(self, weights: Weights, variant: Variant) -> Levels:
        """Return task -> (C, H, W) uint8; the last average is remembered."""
        if self._averaged is None or self._averaged[:2] != (weights, variant):
            with self.clock("read"):
                levels = self.members.average(weights, variant)
            self._averaged, self._decoded = (weights, variant, levels), {}
        return self._averaged[2]

    def count(self, weights: Weights, variant: Variant, grid: Lattice) -> np.ndarray:
        """Count every point of a grid of decode settings: (P, K) int64."""
        return self.competition.count(self.average(weights, variant), self.truth, grid)

    def answer(self, choice: Choice) -> Answer:
        """Average and decode as a choice says, and clean; what chains of steps begin with is decoded once."""
        if self._answered is None or self._answered[0] != choice:
            levels, params = self.average(choice.weights, choice.variant), settings_for(self.scene, choice.params)
            steps = params.get("postprocess", ())
            settings = {name: value for name, value in params.items() if name != "postprocess"}
            if (key := repr(settings)) not in self._decoded:
                self._decoded[key] = self.competition.decode(levels, settings)
            answer = self._decoded[key]
            self._answered = choice, self.competition.clean(answer, steps, levels) if steps else answer
        return self._answered[1]

    def tally(self, choice: Choice) -> np.ndarray:
        """Count the answer of a choice, (K,) int64."""
        key = _key(choice)
        if key not in self.tallies:
            self.tallies[key] = self.competition.tally(self.answer(choice), self.truth)
        return self.tallies[key]

    def detail(self, choice: Choice) -> np.ndarray:
        """Count what further tables need of the answer of a choice, (M,) int64."""
        key = _key(choice)
        if key not in self.details:
            self.details[key] = self.competition.detail(self.answer(choice), self.truth)
            if self._counts_sureness:
                self._count_sureness(choice)
        return self.details[key]

    def _count_sureness(self, choice: Choice) -> None:
        """Count among the details how often what the average of a choice states is found, once per average.

        Of a large scene pixels on a regular grid are counted, at most SAMPLED of them.
        """
        for task, levels in self.average(choice.weights, choice.variant).items():
            if (key := f"{task} {_average_key(choice)}") not in self.details:
                step = math.ceil(math.sqrt(levels[0].size / SAMPLED))
                target = self.competition.training_target(self.scene, task)[::step, ::step]
                self.details[key] = calibration.stated(self.competition.tasks[task], levels[:, ::step, ::step], target)


def out_of_fold(run: Run, temperatures: Mapping[str, float] | None = None, pool: "Sharing | None" = None) -> OutOfFold:
    """Open the out-of-fold scenes of an experiment; ``temperatures``: of its models; ``pool``: who shares a pass."""
    table = run.folds()
    fold_of = {scene: int(fold) for scene, fold in zip(table["id"], table["fold"], strict=True)}
    return OutOfFold(run, fold_of, *predicted(run, "oof", temperatures), pool)
