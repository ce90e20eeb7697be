"""Replace searched settings by medians, because a threshold that is best on few scenes is best by luck.

With ``search.choose: median`` the scenes are drawn many times with replacement (a bootstrap). On each draw one axis of
the search is searched anew, while the other settings stay at the flattest best point. The median of the values that win
is used. For a single map this is what a majority vote of its binarisations at all winning values would give.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lib.choose.choice import Choice, Chosen
from lib.choose.evidence import OutOfFold, OutOfFoldScene
from lib.ensemble.search import total
from lib.ensemble.thresholds import spread

DRAWS = 500


Tables = dict[tuple[int | None, str], np.ndarray]
"""Left-out fold and axis -> (values, K)."""


def count_axes(
    item: OutOfFoldScene,
    axes: Mapping[str, Sequence[float]],
    searched: Mapping[int | None, Choice],
    without: Mapping[int, Choice],
) -> tuple[np.ndarray, Tables]:
    """Tally one scene with what was chosen without its fold, and count each axis around each choice for other folds."""
    competition = item.competition
    tables: Tables = {}
    known: dict[str, dict[str, np.ndarray]] = {}  # folds often choose the same settings
    for k, own in searched.items():
        if item.fold == k:
            continue
        if repr(own) not in known:
            known[repr(own)] = {
                name: item.count(own.weights, own.variant, competition.grid({name: values}, own.params))
                for name, values in axes.items()
            }
        tables |= {(k, name): table for name, table in known[repr(own)].items()}
    return item.tally(without[item.fold]), tables


def take_medians(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Replace the searched settings of the choice, and of each choice without a fold, by the medians of the winners.

    The draws for a choice without a fold leave out that fold's scenes. Fixed settings that no search improved stay,
    and with a single fold nothing is changed.
    """
    if not chosen.without:
        return chosen
    competition, search = scenes.competition, scenes.search
    axes = {name: sorted(values) for name, values in search.axes.items() if len(values) > 1}
    searched = {k: own for k, own in chosen.every().items() if own != chosen.fixed}
    looks = scenes.listed("medians", count_axes, axes, searched, chosen.without)
    held_out = [tally for tally, _ in looks]
    tables = {
        (k, name): [table[k, name] for _, table in looks if (k, name) in table] for k in searched for name in axes
    }
    stability: dict[str, dict[str, Any]] = {}
    settled = chosen.every()
    for k, own in searched.items():
        values = {}
        for name, tried in axes.items():
            moved = spread(np.stack(tables[k, name]), tried, competition.score, search.plateau, DRAWS,
                           scenes.run.config.seed)  # fmt: skip
            values[name] = tried[moved.median]
            if k is None:
                mean, high = moved.regret
                stability[name] = {"used": values[name], "flattest_best": own.params[name],
                                   "quantiles": {str(q): value for q, value in moved.quantiles.items()},
                                   "regret_of_the_best": {"mean": mean, "quantile_0.95": high}}  # fmt: skip
        settled[k] = own.change(**values)
    notes = {"expected_with_flattest_best": float(competition.score(total(held_out))), "stability": stability}
    return chosen.settle(settled, notes)
