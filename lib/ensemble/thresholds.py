"""A threshold as something uncertain: how far the best one moves, and what to take where none can be chosen.

Levels are uint8, level / 255 = probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.ensemble.search import Score, choose

CLEAR = 0.8
"""Separability from which on levels are taken for two classes: an even slope has 0.75."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the winning values, as they are reported."""

CHUNK = 1 << 24
"""Numbers of drawn count tables that are held at a time: 128 MB."""


# ---- how far the best threshold moves -------------------------------------------------------------------
@dataclass(frozen=True)
class Spread:
    """Which values win when scenes are drawn anew."""

    wins: np.ndarray
    """(P,) share of the draws that a value wins."""
    quantiles: Mapping[float, float]
    """Quantile -> value; 0.5 is the (lower) median of the winners."""
    regret: tuple[float, float]
    """Score lost against the best value of the draw, by the value that wins on all scenes: mean and 95 % quantile."""

    @property
    def median(self) -> int:
        """Index of the (lower) median of the winners.

        A mask cut at this threshold has the pixels that at least half of the masks cut at each winner have.
        """
        return int(np.searchsorted(np.cumsum(self.wins), 0.5 - 1e-9))


def spread(
    tables: np.ndarray, values: Sequence[float], score: Score, plateau: float = 0.0, n: int = 1000, seed: int = 0
) -> Spread:
    """Choose a value (a threshold) again on each of ``n`` sets of scenes drawn with replacement (Efron 1979).

    tables: (S, P, K) int64, additive counts of S scenes at P ascending ``values``; add up what must not be split (a
    video's scenes) beforehand. The choice is that of ``search.choose``, its plateau included.
    """
    if tables.ndim != 3 or not tables.shape[0] or tables.shape[1] != len(values) or list(values) != sorted(values):
        raise ValueError(f"spread: expected counts (S, {len(values)}, K) of ascending values and at least one scene, "
                         f"got {tables.shape} at {list(values)}")  # fmt: skip
    scenes, points, _ = tables.shape
    usual = choose(tables.sum(0), score, (points,), plateau)
    times_drawn = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), size=n)  # (n, S)
    winners, lost = np.empty(n, np.intp), np.empty(n)
    step = max(1, CHUNK // tables[0].size)
    for start in range(0, n, step):
        for i, drawn in enumerate(np.tensordot(times_drawn[start : start + step], tables, 1), start):  # (P, K)
            winners[i] = choose(drawn, score, (points,), plateau)
            scores = score(drawn)
            lost[i] = scores.max() - scores[usual]
    wins = np.bincount(winners, minlength=points) / n
    reached = np.cumsum(wins)
    found = {q: float(values[min(int(np.searchsorted(reached, q - 1e-9)), points - 1)]) for q in QUANTILES}
    return Spread(wins, found, (float(lost.mean()), float(np.quantile(lost, 0.95))))


# ---- without a truth ------------------------------------------------------------------------------------
def of_scene(levels: np.ndarray, otherwise: float) -> float:
    """Return the threshold that parts a scene's levels (H, W) uint8, ``otherwise`` where there are no two classes."""
    found = otsu(np.bincount(levels.ravel(), minlength=256))
    return found[0] if found and found[1] >= CLEAR else otherwise


def otsu(counts: np.ndarray) -> tuple[float, float] | None:
    """Part a histogram (256,) of levels in two, for a domain that no labelled scene shows (Otsu 1979).

    Returns (threshold, separability): the cut with the largest variance between the two classes, the middle one where
    several have it (a gap without pixels), and that variance as a share of the whole, 1 for two single levels. None
    where fewer than two levels occur. An even slope has 0.75, so that near or below it there are no two classes.
    """
    counts, level = np.asarray(counts, np.float64), np.arange(256)
    total = counts.sum()
    if (counts > 0).sum() < 2:
        return None
    below, mass = counts.cumsum()[:-1], (counts * level).cumsum()[:-1]  # (255,) up to and with each level
    mean = (counts * level).sum() / total
    inside = (below > 0) & (below < total)
    between = np.zeros(255)
    np.divide((mean * below - mass) ** 2, below * (total - below), out=between, where=inside)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    cut = (best[0] + best[-1]) / 2 + 0.5  # between this level and the next
    variance = (counts * (level - mean) ** 2).sum() / total
    return float(cut / 255), float(between.max() / variance)
