"""Which members an average takes, and how much of each: greedy selection.

A member is a name: a model, a view, or both. Weights and subsets are judged by functions that are given, so nothing
here knows an image or a metric. What is chosen on folds is counted on the fold that had no part in it.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import gcd

import numpy as np

from lib.ensemble.search import Score, choose

Weights = dict[str, float]
Bag = tuple[str, ...]
"""Members by name, sorted, repeated as often as they were drawn."""
Counts = Mapping[Hashable, np.ndarray]
"""Fold -> additive counts, (K,) int64 or (P, K) for P decode settings."""
Evaluate = Callable[[list[Weights]], Sequence[Counts]]

ALL = object()  # the path that leaves no fold out


@dataclass(frozen=True)
class Selection:
    """What greedy selection found and what may be expected of it on unseen scenes."""

    weights: Weights
    """Shares that add up to 1 within each group of names; names that were never drawn have 0."""
    point: int
    """Decode setting chosen with these weights, 0 where counts have no settings."""
    in_sample: float
    expected: float | None
    """Score of the held-out counts under the weights and setting that the other folds chose; None for one fold."""
    equal: float | None
    """The same for equal weights of all names, the setting chosen without the fold as well."""
    without: Mapping[Hashable, tuple[Weights, int]]
    """Fold -> what the others chose."""
    path: tuple[tuple[Weights, float], ...]
    """Best weights after each round and their score on all folds."""
    evaluated: int
    """Different weights that were counted."""


def greedy(
    groups: Sequence[Sequence[str]],
    evaluate: Evaluate,
    score: Score,
    rounds: int,
    shape: Sequence[int] = (),
    plateau: float = 0.0,
) -> Selection:
    """Select members one at a time, each round the one that helps the average most (Caruana et al. 2004).

    groups: the names that are averaged with one another (the models of a task); every group keeps at least one. The
    first bag is the best combination of single members. Then ``rounds`` more names are drawn; the same name may be
    drawn again, and its weight grows. Of the bags on the way, the smallest within ``plateau`` of the best is used.

    evaluate: weights -> for each {fold: counts}; called once per round with all that is new, for one pass over the
    scenes. ``score``, ``shape`` and ``plateau`` choose the decode setting of (P, K) counts, as ``search.choose`` does.
    Where a function f of the weights alone is to be maximised, without scenes, give
    ``evaluate=lambda lists: [{0: np.array([f(w)])} for w in lists]`` and ``score=lambda counts: counts[..., 0]``.
    Raises ValueError on groups that are empty or share a name.
    """
    names = [name for group in groups for name in group]
    if not groups or not all(groups) or len(set(names)) < len(names) or rounds < 0:
        raise ValueError(f"greedy: expected groups of distinct names and rounds >= 0, got {list(groups)}, {rounds}")
    known: dict[tuple, dict[Hashable, np.ndarray]] = {}

    def count(bags: Sequence[Bag]) -> None:
        """Evaluate what no bag of the same shares has been evaluated for."""
        new = list({_shares(bag, groups): bag for bag in bags if _shares(bag, groups) not in known}.values())
        if not new:
            return
        for bag, counts in zip(new, evaluate([_weights(bag, groups) for bag in new]), strict=True):
            known[_shares(bag, groups)] = {k: np.atleast_2d(table) for k, table in counts.items()}

    def judge(bag: Bag, left_out: Hashable) -> tuple[int, float]:
        """Return the setting that all folds but one choose for a bag, and its score on them."""
        counts = known[_shares(bag, groups)]
        total = sum(table for fold, table in counts.items() if fold != left_out)
        point = choose(total, score, shape, plateau)
        return point, float(score(total[point]))

    singles, everything = [tuple(sorted(one)) for one in product(*groups)], tuple(sorted(names))
    count([*singles, everything])
    folds = list(known[_shares(everything, groups)])
    left_out = [ALL, *(folds if len(folds) > 1 else ())]
    paths: dict[Hashable, list[Bag]] = {k: [max(singles, key=lambda bag, k=k: judge(bag, k)[1])] for k in left_out}
    for _ in range(rounds):
        grown = {k: [tuple(sorted((*path[-1], name))) for name in names] for k, path in paths.items()}
        count(list(chain.from_iterable(grown.values())))
        for k, bags in grown.items():
            paths[k].append(max(bags, key=lambda bag, k=k: judge(bag, k)[1]))

    def kept(k: Hashable) -> Bag:
        scores = [judge(bag, k)[1] for bag in paths[k]]
        return next(bag for bag, value in zip(paths[k], scores) if value >= max(scores) - plateau)

    def held_out(bag_of: Mapping[Hashable, Bag]) -> float:
        return float(score(sum(known[_shares(bag, groups)][k][judge(bag, k)[0]] for k, bag in bag_of.items())))

    best = kept(ALL)
    point, in_sample = judge(best, ALL)
    bag_of = {k: kept(k) for k in left_out if k is not ALL}
    return Selection(
        weights=_weights(best, groups),
        point=point,
        in_sample=in_sample,
        expected=held_out(bag_of) if bag_of else None,
        equal=held_out(dict.fromkeys(bag_of, everything)) if bag_of else None,
        without={k: (_weights(bag, groups), judge(bag, k)[0]) for k, bag in bag_of.items()},
        path=tuple((_weights(bag, groups), judge(bag, ALL)[1]) for bag in paths[ALL]),
        evaluated=len(known),
    )


def _shares(bag: Bag, groups: Sequence[Sequence[str]]) -> tuple:
    """Return what decides an average: the ratios within each group, in lowest terms."""
    drawn = Counter(bag)
    times = [[drawn[name] for name in group] for group in groups]
    return tuple(tuple(n // gcd(*own) for n in own) for own in times)


def _weights(bag: Bag, groups: Sequence[Sequence[str]]) -> Weights:
    drawn = Counter(bag)
    return {name: drawn[name] / sum(drawn[other] for other in group) for group in groups for name in group}
