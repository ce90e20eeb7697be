"""Scores of a network on the full validation scenes of its fold; the key ``select`` decides which epoch is kept.

Every number is named for what it is. ``oracle_...`` scores a network together with a perfect answer to the other tasks,
which is more than the competition's score; ``argmax_...`` scores the argmax of a network of several classes, whose
foreground is the answer to the other tasks, as the 2nd place of xView2 2020 chose its epochs; ``dice2020`` is the mean
of each image's Dice, as in the 2020 codes, and ``pixel_f1`` the Dice of all pixels together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lib import metrics
from lib.competitions.contract import Competition, Levels, Scene, settings_for
from lib.config.sections import Model, Predict
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack
from lib.models.layers import Network
from lib.scenes.probs import quantise
from lib.scenes.view import View
from lib.tasks import HALF, IGNORE, Task


def plain_predictor(network: Network, activate: Callable[[Tensor], Tensor], predict: Predict, view: View) -> Predictor:
    """Return the predictor of a validation: one view and one scale, else as stage 04; on the network's own device."""
    settings = predict.model_copy(update={"tta": "none", "scales": (1.0,)})
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
    truth, counted = (np.broadcast_to(a, called.shape) for a in (task.truth(target), target != IGNORE))
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


class Judge:
    """Scores networks of one model on the validation scenes of one fold.

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
        """Return the scores of ``network``; the network's training mode is left as it was."""
        training, task = network.training, self.task
        predict = plain_predictor(network, task.activate, self.predict, self.model.view)
        judged: dict[str, list[np.ndarray]] = {"official": [], "oracle": [], "argmax": []}
        counts, shares = [], np.zeros((task.channels, 3), np.int64)
        for scene in self.scenes:
            image = read_stack(self.competition, scene, self.model.network.images)
            levels = quantise(predict(image, scene.pixel_size))  # (C, H, W) uint8
            target = self.competition.target(scene, self.model.task)
            if task.dense and task.kind == "binary":
                counts.append(metrics.binary_counts(levels[0] >= HALF, target))
            shares += class_shares(levels, target, task)
            self._tally(judged, scene, levels)
        network.train(training)
        return {**self._scores(judged, counts), "collapsed": float(is_collapsed(shares))}

    def _tally(self, judged: dict[str, list[np.ndarray]], scene: Scene, levels: np.ndarray) -> None:
        competition = self.competition
        rest = [name for name in competition.tasks if name != self.model.task]
        truth, params = competition.truth(scene), settings_for(scene, self.params)
        if all(name in self.others for name in rest):
            full: Levels = {self.model.task: levels, **{name: self.others[name](scene) for name in rest}}
            judged["official"].append(competition.tally(competition.decode(full, params), truth))
        if rest and self.model.task != "loc":
            oracle = {name: true_levels(competition.target(scene, name), competition.tasks[name]) for name in rest}
            answer = competition.decode({self.model.task: levels, **oracle}, params)
            judged["oracle"].append(competition.tally(answer, truth))
        if self.model.train.select == "argmax":
            plain = competition.decode(argmax_levels(levels, self.task, self.model.task, rest), competition.defaults())
            judged["argmax"].append(competition.tally(plain, truth))

    def _scores(self, judged: Mapping[str, list[np.ndarray]], counts: list[np.ndarray]) -> dict[str, float]:
        scores: dict[str, float] = {}
        if counts:
            scores["pixel_f1"] = float(metrics.dice(np.sum(counts, 0), empty=0.0))  # pooled over all scenes
            scores["dice2020"] = float(metrics.dice(np.stack(counts)).mean())  # mean over scenes, empty with empty = 1
        for name, tallies in judged.items():
            if tallies:
                prefix = "" if name == "official" else f"{name}_"
                scores |= {f"{prefix}{k}": float(v) for k, v in self.competition.scores(np.sum(tallies, 0)).items()}
        scores["select"] = self._select(scores)
        return scores

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
