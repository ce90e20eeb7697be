"""Scores of a network on the full validation scenes of its fold; the key ``select`` decides which epoch is kept.

Every number is named for what it is. ``oracle_...`` scores a network together with a perfect answer to the other tasks,
which is more than the competition's score; ``argmax_...`` scores the argmax of a network of several classes, whose
foreground is the answer to the other tasks, as the 2nd place of xView2 2020 chose its epochs; ``dice2020`` is the mean
of each image's Dice, as in the 2020 codes, and ``pixel_f1`` the Dice of all pixels together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from lib import metrics
from lib.competitions.contract import Competition, Levels, Scene, settings_for
from lib.config.sections import Model, Predict
from lib.errors import ArtifactError
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack
from lib.models.layers import Network
from lib.run import runtime
from lib.scenes.probs import quantise
from lib.scenes.view import View
from lib.tasks import HALF, Task, known


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
    return np.stack([(m & counted).sum((1, 2)) for m in (called, truth, np.ones_like(truth))], axis=1)


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
            mine += (self._judge(predict, scene) for scene in self.scenes[runtime.rank() :: runtime.world_size()])
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

    def _judge(self, predict: Predictor, scene: Scene) -> Judged:
        levels = quantise(predict(read_stack(self.competition, scene, self.model.network.images), scene.pixel_size))
        shown, task = self.model.network.images, self.task
        target = self.competition.training_target(scene, self.model.task, shown)  # levels: (C, H, W) uint8
        judged = Judged(class_shares(levels, target, task))
        if task.dense and task.kind == "binary":
            judged.counts = metrics.binary_counts(levels[0] >= HALF, target)
        judged.tallies = self._tallies(scene, levels)
        return judged

    def _tallies(self, scene: Scene, levels: np.ndarray) -> dict[str, np.ndarray]:
        competition, found = self.competition, {}
        rest = [name for name in competition.tasks if name != self.model.task]
        truth, params = competition.truth(scene), settings_for(scene, self.params)
        if all(name in self.others for name in rest):
            full: Levels = {self.model.task: levels, **{name: self.others[name](scene) for name in rest}}
            found["official"] = competition.tally(competition.decode(full, params), truth)
        if rest and self.model.task != "loc":
            oracle = {name: true_levels(competition.target(scene, name), competition.tasks[name]) for name in rest}
            answer = competition.decode({self.model.task: levels, **oracle}, params)
            found["oracle"] = competition.tally(answer, truth)
        if self.model.train.select == "argmax":
            plain = competition.decode(argmax_levels(levels, self.task, self.model.task, rest), competition.defaults())
            found["argmax"] = competition.tally(plain, truth)
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
