"""Scores of a network on the full validation scenes of its fold; the key ``select`` decides which epoch is kept.

Every number is named for what it is. ``oracle_...`` scores a network together with a perfect answer to the other tasks,
which is more than the competition's score; ``argmax_...`` scores the argmax of a network of several classes, whose
foreground is the answer to the other tasks, as the 2nd place of xView2 2020 chose its epochs; ``dice2020`` is the mean
of each image's Dice, as in the 2020 codes, and ``pixel_f1`` the Dice of all pixels together.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from lib import metrics
from lib.competitions.contract import Answer, Competition, Levels, Scene, settings_for
from lib.config.sections import Model, Predict
from lib.errors import ArtifactError
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack
from lib.models.layers import Network
from lib.run import runtime
from lib.run.executor import portable
from lib.scenes.probs import quantise
from lib.scenes.view import View
from lib.tasks import HALF, Task, known
from lib.training import loader

AHEAD = 1 << 30
"""Bytes of scenes that are read ahead at most."""
COUNTERS = 4
"""Threads that count scenes; as many scenes more than one may wait, or fewer where they are large."""


def plain_predictor(network: Network, activate: Callable[[Tensor], Tensor], predict: Predict, view: View) -> Predictor:
    """Return the predictor of a validation: one view, one scale, not compiled, since a network that learns is another
    one each time; else as stage 04; on the network's own device."""
    settings = predict.model_copy(update={"tta": "none", "scales": (1.0,), "compile": False})
    return Predictor(network, activate, settings, view, next(network.parameters()).device)


def true_levels(target: np.ndarray, task: Task) -> np.ndarray:
    """Return the levels (C, H, W) uint8 of a network that knows the target (H, W); ignored pixels count as true."""
    return np.where(task.truth(target), 255, 0).astype(np.uint8)


def class_shares(levels: np.ndarray, target: np.ndarray, task: Task) -> np.ndarray:
    """Count three things per class: the pixels called by it, its true pixels, and all pixels: (C, 3) int64.

    Ignored pixels are left out of all three. levels: (C, H, W) uint8; target: (H, W), or (1, 1) for the label of all
    frames (C, 1, F).
    """
    called = task.called(levels)
    truth, counted = (np.broadcast_to(a, called.shape) for a in (task.truth(target), known(target)))
    planes = zip(called & counted, truth & counted, counted, strict=True)
    return np.array([[np.count_nonzero(plane) for plane in of_class] for of_class in planes], np.int64)


def is_collapsed(shares: np.ndarray) -> bool:
    """Tell whether a network gives the same answer everywhere though the truth has several: shares (C, 3)."""
    called, true, everywhere = shares.T
    constant = (called == 0) | (called == everywhere)
    varied = (true > 0) & (true < everywhere)
    return bool(varied.any() and constant.all())


def argmax_levels(levels: np.ndarray, task: Task, role: str, rest: Sequence[str]) -> Levels:
    """Return the levels of a network that is sure of its argmax: all or nothing, (C, H, W) uint8.

    levels: (C, H, W) uint8 of exclusive classes, background first. The tasks of ``rest``, of one class each, are
    answered by its foreground (1, H, W). Feed it to a decoding without settings and every pixel is its argmax.
    """
    called = task.called(levels)
    foreground = np.where(called[1:].any(0, keepdims=True), 255, 0).astype(np.uint8)
    return {role: np.where(called, 255, 0).astype(np.uint8), **dict.fromkeys(rest, foreground)}


@dataclass
class Shown:
    """What the files of one scene hold: what the network is shown, and what its answer is compared with."""

    stack: np.ndarray
    """``read_stack``."""
    target: np.ndarray
    """The training target of the network's task."""
    truth: Answer
    perfect: dict[str, np.ndarray]
    """Targets of the other tasks, where their perfect answer is asked for."""

    @property
    def nbytes(self) -> int:
        """Bytes of its images and targets."""
        return self.stack.nbytes + self.target.nbytes + sum(target.nbytes for target in self.perfect.values())


class Reading(Dataset):
    """Item i is what is shown of scene i, or the error that it raised; made in this process or in loader processes."""

    def __init__(self, competition: Competition, model: Model, scenes: Sequence[Scene]):
        self.competition, self.model, self.scenes = competition, model, scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Shown | Exception:
        try:
            return self.read(self.scenes[index])
        except Exception as error:  # noqa: BLE001 raised again by whoever asked
            return portable(error)

    def read(self, scene: Scene) -> Shown:
        """Read a scene. Raises what the competition raises."""
        competition, shown, role = self.competition, self.model.network.images, self.model.task
        rest = others_of(competition, role) if role != "loc" else []
        return Shown(read_stack(competition, scene, shown), competition.training_target(scene, role, shown),
                     competition.truth(scene), {name: competition.target(scene, name) for name in rest})  # fmt: skip


def others_of(competition: Competition, role: str) -> list[str]:
    """Return the competition's other tasks."""
    return [name for name in competition.tasks if name != role]


@dataclass
class Judged:
    """What one scene adds to the scores."""

    shares: np.ndarray
    """``class_shares`` (C, 3)."""
    counts: np.ndarray | None = None
    """``metrics.binary_counts`` of a task with one foreground class."""
    tallies: dict[str, np.ndarray] = field(default_factory=dict)
    """The competition's counts: official, with the other networks' answers; oracle, with a perfect answer of these;
    argmax, of the network's argmax alone."""


def in_turn(shares: Sequence[Sequence[Judged]]) -> Iterable[Judged]:
    """Yield the first of every process's share, then the second of each: the order in which they were dealt out."""
    for row in zip_longest(*shares):
        yield from (scene for scene in row if scene is not None)


class Judge:
    """Scores networks of one model on the validation scenes of one fold.

    Several processes share the scenes; what these add to the scores is summed in the order of the scenes, so that every
    process returns the numbers of a single one, to the bit.

    decode: settings in place of the competition's own. others: task -> levels of a scene from an out-of-fold network,
    for the competition's other tasks; without them only the scores with a perfect answer to those tasks are known.
    """

    def __init__(self, competition: Competition, model: Model, scenes: Sequence[Scene], predict: Predict,
                 decode: Mapping[str, Any], others: Mapping[str, Callable[[Scene], np.ndarray]]):  # fmt: skip
        self.competition, self.model, self.scenes = competition, model, scenes
        self.predict, self.others = predict, others
        self.task = competition.tasks[model.task]
        self.params = {**competition.defaults(), **decode}
        self.largest: int | None = None

    def __call__(self, network: Network) -> dict[str, float]:
        """Return the scores of ``network`` as the first process holds it; its training mode is left as it was.

        Where a scene fails in one process, all raise: that one its error, the others ArtifactError.
        """
        training = network.training
        runtime.share([*network.parameters(), *network.buffers()])
        predict = plain_predictor(network, self.task.activate, self.predict, self.model.view)
        mine: list[Judged] = []
        failure: Exception | None = None
        try:
            mine += self._judged(predict, self.scenes[runtime.rank() :: runtime.world_size()])
        except Exception as error:  # noqa: BLE001 raised below, when the others know
            failure = error
        network.train(training)
        found = runtime.gather((mine, failure and f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for number, (_, said) in enumerate(found):
            if said is not None:
                raise ArtifactError(f"validation failed in process {number}: {said}")
        return self._scores(list(in_turn([scenes for scenes, _ in found])))

    def _judged(self, predict: Predictor, scenes: Sequence[Scene]) -> Iterator[Judged]:
        """Yield what each scene adds, in their order.

        With loader processes (``train.workers``) these read the scenes that come next, and threads count those that
        were, while the network computes. Scenes of more than ``AHEAD`` bytes are read and counted one by one.
        """
        reading = Reading(self.competition, self.model, scenes)
        workers, counters = min(self.model.train.workers, len(scenes)), 0
        if workers:
            room = AHEAD // self._largest(reading)
            workers, counters = min(workers, room), min(COUNTERS, room // 4)  # probabilities are wider than pixels
        if not workers:
            for scene in scenes:
                shown = reading.read(scene)
                yield self._count(scene, shown, *self._look(predict, scene, shown))
            return
        counting: deque[Future[Judged]] = deque()
        with closing(loader.ahead(reading, workers)) as items, ThreadPoolExecutor(COUNTERS, "count") as pool:
            for scene, item in zip(scenes, items, strict=True):
                if isinstance(item, Exception):
                    raise item
                counting.append(pool.submit(self._count, scene, item, *self._look(predict, scene, item)))
                if len(counting) > counters:
                    yield counting.popleft().result()
            while counting:
                yield counting.popleft().result()

    def _largest(self, reading: Reading) -> int:
        """Return about how many bytes the largest scene takes; the first one is read, and known from then on."""
        if self.largest is None:
            first, sizes = reading.scenes[0], [self.competition.size(scene) for scene in reading.scenes]
            areas = [height * width if height and width else 0 for height, width in sizes]
            self.largest = max(reading.read(first).nbytes * max(areas) // areas[0] if areas[0] else 0, 1)
        return self.largest

    def _look(self, predict: Predictor, scene: Scene, shown: Shown) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the network's probabilities of a scene, and the levels of the other networks."""
        found = predict(shown.stack, scene.pixel_size)
        rest = others_of(self.competition, self.model.task)
        known = all(name in self.others for name in rest)
        return found, {name: self.others[name](scene) for name in rest} if known else {}

    def _count(self, scene: Scene, shown: Shown, probs: np.ndarray, others: Mapping[str, np.ndarray]) -> Judged:
        levels, task = quantise(probs), self.task  # (C, H, W) uint8
        judged = Judged(class_shares(levels, shown.target, task))
        if task.dense and task.kind == "binary":
            judged.counts = metrics.binary_counts(levels[0] >= HALF, shown.target)
        judged.tallies = self._tallies(scene, shown, levels, others)
        return judged

    def _tallies(
        self, scene: Scene, shown: Shown, levels: np.ndarray, others: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        competition, role, found = self.competition, self.model.task, {}
        rest, params = others_of(competition, role), settings_for(scene, self.params)
        if len(others) == len(rest):
            full: Levels = {role: levels, **others}
            found["official"] = competition.tally(competition.decode(full, params), shown.truth)
        if rest and role != "loc":
            oracle = {name: true_levels(target, competition.tasks[name]) for name, target in shown.perfect.items()}
            answer = competition.decode({role: levels, **oracle}, params)
            found["oracle"] = competition.tally(answer, shown.truth)
        if self.model.train.select == "argmax":
            plain = competition.decode(argmax_levels(levels, self.task, role, rest), competition.defaults())
            found["argmax"] = competition.tally(plain, shown.truth)
        return found

    def _scores(self, judged: Sequence[Judged]) -> dict[str, float]:
        scores: dict[str, float] = {}
        if counts := [scene.counts for scene in judged if scene.counts is not None]:
            scores["pixel_f1"] = float(metrics.dice(np.sum(counts, 0), empty=0.0))  # pooled over all scenes
            scores["dice2020"] = float(metrics.dice(np.stack(counts)).mean())  # mean over scenes, empty with empty = 1
        for name, prefix in (("official", ""), ("oracle", "oracle_"), ("argmax", "argmax_")):
            if tallies := [scene.tallies[name] for scene in judged if name in scene.tallies]:
                named = self.competition.scores(np.sum(tallies, 0))
                scores |= {f"{prefix}{k}": float(v) for k, v in named.items()}
        scores["select"] = self._select(scores)
        return {**scores, "collapsed": float(is_collapsed(np.sum([scene.shares for scene in judged], 0)))}

    def _select(self, scores: Mapping[str, float]) -> float:
        """Return the number that decides which epoch is kept.

        The first of these that is known: where the fold lacks a class, the score over the classes that it has; the
        competition's score; the F1 of pixels; the scores with a perfect answer to the other tasks.
        """
        if self.model.train.select == "dice2020":
            wanted: tuple[str, ...] = ("dice2020", "oracle_score")
        elif self.model.train.select == "argmax":
            wanted = ("argmax_score_present_classes", "argmax_score")
        else:
            wanted = ("score_present_classes", "score", "pixel_f1", "oracle_score_present_classes", "oracle_score")
        return next(scores[name] for name in wanted if name in scores)
