"""Choose decode settings from additive count tables, and say honestly what the choice is worth.

A count table is (P, K) int64: K counts (true positives, ...) for each of P settings on a lattice. Counts of scenes are
added before scoring, so one table per group of scenes is all that a search has to keep; nothing here knows a metric.
``score`` maps counts (..., K) to (...) float64, higher is better.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]
Key = TypeVar("Key", bound=Hashable)
Name = TypeVar("Name", bound=Hashable)

MAX_POINTS = 500_000
"""Largest lattice: at 15 counts of 8 bytes its table is 60 MB, and nested validation keeps one per group."""


@dataclass(frozen=True)
class Lattice(Sequence[dict[str, Any]]):
    """All combinations of the values of ``axes`` in row-major order (last axis fastest); other settings stay at
    ``defaults``. A point is made when asked for, so a hundred thousand of them cost nothing."""

    axes: Mapping[str, tuple[float, ...]]
    defaults: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values per axis, in the order of ``axes``."""
        return tuple(len(values) for values in self.axes.values())

    def __len__(self) -> int:
        return prod(self.shape)

    def __getitem__(self, point: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        """Return the settings of one point."""
        if not -len(self) <= point < len(self):
            raise IndexError(f"lattice of {len(self)} points has no point {point}")
        place = np.unravel_index(point % len(self), self.shape) if self.axes else ()
        return {**self.defaults, **{name: values[i] for (name, values), i in zip(self.axes.items(), place)}}


def lattice(axes: Mapping[str, Sequence[float]], defaults: Mapping[str, Any]) -> Lattice:
    """Span the lattice of the named axes; ``Competition.faults`` says which axes cannot be searched."""
    return Lattice({name: tuple(values) for name, values in axes.items()}, dict(defaults))


def choose(counts: np.ndarray, score: Score, shape: Sequence[int], plateau: float) -> int:
    """Pick the point to use: not the highest one, but the middle of the flattest top.

    counts: (P, K) with P = prod(shape), row-major. Among all points that score within ``plateau`` (absolute) of the
    best, the one with the highest mean score over its lattice neighbourhood wins: the box of one step along every axis
    at once, itself included, steps over the border left out. Equal means go to the higher score, then to the
    first point. ``plateau=0`` still prefers the flatter of equally good points. Returns the index of the point.
    """
    scores = np.asarray(score(counts), dtype=np.float64)
    if scores.shape != (prod(shape),) or not np.isfinite(scores).all():
        raise ValueError(
            f"choose: expected {prod(shape)} finite scores, got {scores.shape} with "
            f"{int((~np.isfinite(scores)).sum())} that are not finite"
        )
    surroundings = scores.reshape(shape)
    for axis in range(len(shape)):
        surroundings = _mean_of_neighbours(surroundings, axis)
    surroundings = surroundings.ravel().round(12)  # sums in another order must not decide between equal tops
    near_best = np.flatnonzero(scores >= scores.max() - plateau)
    return int(near_best[np.lexsort((-scores[near_best], -surroundings[near_best]))[0]])


def choose_variant(
    counts: np.ndarray, variants: int, score: Score, class_scores: Score, shape: Sequence[int], plateau: float
) -> int:
    """Pick the point to use where the lattice was counted once per variant (a set of views, a refinement).

    counts: (variants * P, K), variant by variant. The first variant is the plain one; another is taken only where, each
    at its own best point, it scores higher and no class gets worse (``accept``). Returns the index of the point.
    """
    tables = counts.reshape(variants, -1, counts.shape[-1])
    points = [choose(table, score, shape, plateau) for table in tables]
    best, chosen = 0, [table[point] for table, point in zip(tables, points)]
    for variant in range(1, variants):
        if accept(chosen[0], chosen[variant], score, class_scores) and score(chosen[variant]) > score(chosen[best]):
            best = variant
    return best * tables.shape[1] + points[best]


def _mean_of_neighbours(values: np.ndarray, axis: int) -> np.ndarray:
    """Average each value with those one step before and after it along ``axis``, as far as they exist."""
    values = np.moveaxis(values, axis, 0)
    total, seen = values.copy(), np.ones((len(values),) + (1,) * (values.ndim - 1))
    total[1:] += values[:-1]
    total[:-1] += values[1:]
    seen[1:] += 1
    seen[:-1] += 1
    return np.moveaxis(total / seen, 0, axis)


def total(tables: Iterable[np.ndarray]) -> np.ndarray:
    """Add up count tables, at least one."""
    return reduce(np.add, tables)


def add(counts: dict[Key, np.ndarray], key: Key, table: np.ndarray) -> None:
    """Add a count table to that of a key, which need not be there yet."""
    counts[key] = counts[key] + table if key in counts else table


def merge(counts: Mapping[Key, np.ndarray], group: Callable[[Key], Name]) -> dict[Name, np.ndarray]:
    """Add up the count tables of all keys that ``group`` maps to the same name."""
    merged: dict[Name, np.ndarray] = {}
    for key, table in counts.items():
        add(merged, group(key), table)
    return merged


@dataclass(frozen=True)
class Nested(Generic[Key]):
    """What a search found (``point``) and what it may be expected to give on unseen scenes (``expected``).

    A point of None stands for the settings used without a search, the baseline, where nothing scored higher.
    """

    point: int | None
    """Chosen on all groups: the one to use."""
    in_sample: float
    """Score of the choice on the scenes that it was made on: optimistic."""
    expected: float
    """Score of the pooled held-out counts, each group decoded with the point that the other groups chose: honest."""
    chosen: Mapping[Key, int | None]
    """Group -> the point that the other groups chose; close together when the optimum is stable."""


def nested(
    counts_by_group: Mapping[Key, np.ndarray],
    score: Score,
    pick: Callable[[np.ndarray], int],
    baseline: Mapping[Key, np.ndarray],
) -> Nested[Key]:
    """Search with nested cross-validation: what is held out never takes part in the choice it is scored with.

    counts_by_group: group (a fold, an event) -> (P, K); pick: counts (P, K) -> the point to use, such as ``choose``
    with its score, shape and plateau; baseline: group -> (K,) of the settings used without a search, which are kept
    where the picked point does not score higher on the groups that picked it.
    Held-out counts are added over groups and scored once, because the mean of group scores is another metric (a group
    that lacks a class would sink it). Raises ValueError on fewer than two groups.
    """
    if len(counts_by_group) < 2:
        raise ValueError(f"nested: expected at least 2 groups to hold out one at a time, got {len(counts_by_group)}")
    if set(baseline) != set(counts_by_group):
        raise ValueError(
            f"nested: expected a baseline for groups {sorted(map(str, counts_by_group))}, "
            f"got {sorted(map(str, baseline))}"
        )
    everything, base = total(counts_by_group.values()), total(baseline.values())

    def choose_without(group: Key | None) -> tuple[int | None, np.ndarray]:
        """Return what the groups but one choose, None for the baseline, and their counts under it."""
        counts, without_search = everything, base
        if group is not None:
            counts, without_search = counts - counts_by_group[group], without_search - baseline[group]
        point = pick(counts)
        return (point, counts[point]) if score(counts[point]) > score(without_search) else (None, without_search)

    point, found = choose_without(None)
    chosen = {group: choose_without(group)[0] for group in counts_by_group}
    held_out = (baseline[k] if own is None else counts_by_group[k][own] for k, own in chosen.items())
    return Nested(point, float(score(found)), float(score(total(held_out))), chosen)


def accept(base_counts: np.ndarray, candidate_counts: np.ndarray, score: Score, class_scores: Score) -> bool:
    """Say whether a post-processing step stays: the score improves and no class gets worse.

    counts: (K,) summed over scenes; class_scores maps (K,) to (S,). The rule is nnU-Net's (Isensee et al. 2021).
    """
    better = score(candidate_counts) > score(base_counts)
    return bool(better and np.all(class_scores(candidate_counts) >= class_scores(base_counts)))


def bootstrap(
    scene_counts: np.ndarray, score: Score, n: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Give the interval in which the score lies when scenes are drawn anew, with replacement (Efron 1979, percentile).

    scene_counts: (S, K) of the decoded scenes; ``level``: share of the ``n`` drawn scores between the ends returned.
    """
    scenes = len(scene_counts)
    if not scenes:
        raise ValueError("bootstrap: expected the counts of at least one scene, got none")
    times_drawn = np.random.default_rng(seed).multinomial(scenes, np.full(scenes, 1 / scenes), size=n)  # (n, S)
    low, high = np.quantile(score(times_drawn @ scene_counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
