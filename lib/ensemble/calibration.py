"""Make probabilities mean what they say: one temperature per network, fitted on out-of-fold scenes.

p becomes p^(1/T) / sum of p^(1/T) over the classes, or over yes and no. T > 1 makes a network less sure, T < 1 surer,
and no class overtakes another. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

What a fit has to know of a scene is how often each combination of levels goes with each truth. For a yes or no these
are 256 x 2 numbers; of exclusive classes up to ``limit`` pixels per scene are kept. Both are added over scenes.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import reduce
from math import exp, log
from operator import add

import numpy as np
from scipy.optimize import minimize_scalar

from lib.tasks import IGNORE, Task, known, strongest

BOUNDS = 0.1, 10.0
"""Temperatures that are tried; a fit that ends on one of them says that there is too little to fit."""
FLOOR = 0.25
"""Level that stands for a stored 0, shared by all classes but one: the middle of what is rounded down to it."""
BINS = 15


@dataclass(frozen=True)
class Evidence:
    """Pixels, equal ones counted together. C = 1 is a yes or no (truth 0 or 1), else C classes (truth 0 .. C-1)."""

    levels: np.ndarray
    """(N, C) uint8."""
    truth: np.ndarray
    """(N,) uint8."""
    times: np.ndarray
    """(N,) int64, how often."""

    def __add__(self, other: "Evidence") -> "Evidence":
        """Add the pixels of another scene."""
        rows = np.concatenate([np.column_stack([e.levels, e.truth]) for e in (self, other)])
        return _together(rows, np.concatenate([self.times, other.times]))


def gather(task: Task, levels: np.ndarray, target: np.ndarray, limit: int = 20_000) -> Evidence:
    """Take from one scene what a fit needs: levels (C, H, W) uint8, target uint8 in the task's form, 255 ignored.

    A target of one pixel, a label, holds for all of the scene. Yes-or-no channels are pooled, exact whatever the size;
    of exclusive classes ``limit`` pixels are taken, evenly spaced in reading order.
    """
    target = np.broadcast_to(target, levels.shape[1:])
    counted = target != IGNORE
    if task.kind == "multiclass":
        rows = np.column_stack([levels[:, counted].T, target[counted]])  # (N, C + 1)
        if len(rows) > limit:
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(np.intp)]
        return _together(rows, np.ones(len(rows), np.int64))
    return as_evidence(stated(task, levels, target))


def stated(task: Task, levels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count how often each level was right: (256, 2) int64, by the level and whether what it stands for was found.

    levels: (C, H, W) uint8; target: in the task's form. A yes or no counts its level, channels pooled; exclusive
    classes count the level of the winner, the first of equals. Ignored pixels count nowhere.
    """
    target = np.broadcast_to(target, levels.shape[1:])
    counted = known(target)
    if task.kind == "multiclass":
        sure, right = levels.max(0)[counted], (strongest(levels) == target)[counted]
    else:
        sure, right = levels[:, counted], np.broadcast_to(task.truth(target), levels.shape)[:, counted]
    found = np.bincount(sure.ravel().astype(np.intp) * 2 + right.ravel(), minlength=512)
    return found.reshape(256, 2).astype(np.int64)


def as_evidence(counts: np.ndarray) -> Evidence:
    """Turn what ``stated`` counts into pixels of a yes or no."""
    found = counts.ravel()
    seen = np.flatnonzero(found)
    return Evidence((seen // 2)[:, None].astype(np.uint8), (seen % 2).astype(np.uint8), found[seen])


def _together(rows: np.ndarray, times: np.ndarray) -> Evidence:
    """Count equal rows (levels, truth) together."""
    if not len(rows):
        return Evidence(rows[:, :-1], rows[:, -1], times)
    packed = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()
    _, first, group = np.unique(packed, return_index=True, return_inverse=True)
    sums = np.zeros(len(first), np.int64)
    np.add.at(sums, group.ravel(), times)
    return Evidence(rows[first, :-1], rows[first, -1], sums)


# ---- temperature --------------------------------------------------------------------------------------
def fit(evidence: Evidence) -> float:
    """Return the temperature with the lowest log-loss, within BOUNDS. Raises ValueError where no pixel is counted."""
    if not evidence.times.sum():
        raise ValueError("calibration: expected pixels that count, got none")
    logs = _log_probabilities(evidence.levels)
    found = minimize_scalar(
        lambda x: _log_loss(_tempered(logs, exp(x)), evidence.truth, evidence.times),
        bounds=[log(bound) for bound in BOUNDS], method="bounded", options={"xatol": 1e-5},
    )  # fmt: skip
    return float(exp(found.x))


def apply(levels: np.ndarray, temperature: float, exclusive: bool) -> np.ndarray:
    """Apply a temperature: (C, H, W) uint8 -> (C, H, W) uint8; ``exclusive``: the channels are classes of a softmax.

    Rounding may make two classes equal, but never turns their order round; T = 1 changes nothing.
    """
    if not temperature > 0:
        raise ValueError(f"calibration: expected a temperature above 0, got {temperature}")
    if temperature == 1:
        return levels
    if not exclusive:
        yes = np.exp(_tempered(_log_probabilities(np.arange(256, dtype=np.uint8)[:, None]), temperature)[:, 1])
        return np.rint(255 * yes).astype(np.uint8)[levels]
    powers = (np.maximum(np.arange(256), floor(len(levels))) / 255) ** (1 / temperature)
    powered = powers[levels]  # (C, H, W) float64
    powered *= 255 / powered.sum(0)
    return np.rint(powered, out=powered).astype(np.uint8)


def floor(classes: int) -> float:
    """Return the level that stands for a stored 0 of each of so many classes; a yes or no has two."""
    return FLOOR / max(1, classes - 1)


def _log_probabilities(levels: np.ndarray) -> np.ndarray:
    """Turn levels (N, C) into the logarithms of (N, K) numbers whose ratios are those of the probabilities.

    K = C, or 2 (no, yes) where C = 1.
    """
    shares = levels.astype(np.float64)
    if shares.shape[1] == 1:
        shares = np.concatenate([255 - shares, shares], axis=1)
    return np.log(np.maximum(shares, floor(shares.shape[1])))


def _tempered(logs: np.ndarray, temperature: float) -> np.ndarray:
    """Return log probabilities (N, K) at a temperature."""
    scaled = logs / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def _log_loss(log_probabilities: np.ndarray, truth: np.ndarray, times: np.ndarray) -> float:
    return float(-(log_probabilities[np.arange(len(truth)), truth] * times).sum() / times.sum())


# ---- reliability --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reliability:
    """How well probabilities and frequencies agree; lower is better in all three figures."""

    log_loss: float
    brier: float
    """Mean square of probability - truth (Brier 1950), summed over exclusive classes."""
    error: float
    """Expected calibration error: mean over pixels of |stated - found| of their bin (Naeini et al. 2015)."""
    bins: tuple[tuple[int, float, float], ...]
    """Per bin of the stated probability: pixels, mean stated, share found; zeros where it is empty."""


def reliability(parts: Mapping[Hashable, Evidence], temperatures: Mapping[Hashable, float]) -> Reliability:
    """Compare stated probabilities with what was found, pooled over groups, each under its own temperature.

    A yes or no states the probability of yes; exclusive classes state that of the winner, found where it is right.
    """
    stated, found, times, losses, squares = [], [], [], 0.0, 0.0
    for group, evidence in parts.items():
        logs = _tempered(_log_probabilities(evidence.levels), temperatures[group])
        probabilities, n = np.exp(logs), int(evidence.times.sum())  # (N, K)
        if not n:
            continue
        losses += n * _log_loss(logs, evidence.truth, evidence.times)
        off = probabilities - (np.arange(probabilities.shape[1]) == evidence.truth[:, None])
        if evidence.levels.shape[1] == 1:
            stated.append(probabilities[:, 1])
            found.append(evidence.truth > 0)
            off = off[:, 1:]
        else:
            winner = evidence.levels.argmax(axis=1)  # that of the levels: ties go to the lower class, as in decoding
            stated.append(probabilities.max(axis=1))
            found.append(winner == evidence.truth)
        squares += float(((off**2).sum(axis=1) * evidence.times).sum())
        times.append(evidence.times)
    if not times:
        raise ValueError("calibration: expected pixels that count, got none")
    sure, right, often = np.concatenate(stated), np.concatenate(found), np.concatenate(times)
    place = np.minimum((sure * BINS + 1e-9).astype(np.intp), BINS - 1)  # every 17th level is an edge
    sums = [np.bincount(place, weights, BINS) for weights in (often, often * sure, often * right)]
    total = float(often.sum())
    return Reliability(
        losses / total,
        squares / total,
        float(np.abs(sums[1] - sums[2]).sum() / total),
        tuple((int(n), float(s / max(n, 1)), float(f / max(n, 1))) for n, s, f in zip(*sums)),
    )


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it is worth on scenes that had no part in it."""

    temperature: float
    """Fitted on all groups."""
    without: Mapping[Hashable, float]
    """Group -> temperature fitted on the other groups."""
    before: Reliability
    after: Reliability
    """Each group under the temperature of the others."""

    @property
    def accepted(self) -> bool:
        """Whether held-out log-loss improves."""
        return self.after.log_loss < self.before.log_loss


def cross_fit(by_group: Mapping[Hashable, Evidence]) -> Calibration:
    """Fit a temperature, and judge it by nested validation. Raises ValueError on fewer than two groups with pixels."""
    by_group = {group: evidence for group, evidence in by_group.items() if evidence.times.sum()}
    if len(by_group) < 2:
        raise ValueError(f"calibration: expected at least 2 groups with pixels that count, got {len(by_group)}")
    without = {group: fit(reduce(add, (e for other, e in by_group.items() if other != group))) for group in by_group}
    return Calibration(
        fit(reduce(add, by_group.values())),
        without,
        reliability(by_group, dict.fromkeys(by_group, 1.0)),
        reliability(by_group, without),
    )
