"""Stage 05: how far the best thresholds move when scenes are drawn anew, and the median of them instead of the best.

A threshold that is best on few scenes is a draw of luck. With ``search.choose: median`` every axis of the search, the
others held at the flattest best point, is searched again on scenes drawn with replacement, and the median of the
winners is used: for one map the same as letting its binarisations at all winners vote.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose.evidence import Parts
from lib.competitions.contract import Scene
from lib.ensemble.thresholds import spread
from lib.run.cli import Run

DRAWS = 500


def median(run: Run, source: Callable[[], Iterator[tuple[Scene, Parts]]], fold_of: Mapping[str, int], choice,
           without: Mapping[int, Any]):  # fmt: skip
    """Replace the searched settings of a choice, and of each choice without a fold, by the medians of the winners.

    Returns (the choice, fold -> the choice without it, what decode.json says). What a fold's choice is drawn from
    leaves out that fold, so the expected score stays honest.
    """
    competition, search = run.competition, run.config.search
    axes = {name: sorted(values) for name, values in search.axes.items() if len(values) > 1}
    everyone = {None: choice, **without}
    tables: dict[tuple[Any, str], list[np.ndarray]] = {(k, name): [] for k in everyone for name in axes}
    for scene, found in tqdm(source(), "stability", leave=False, disable=None):
        truth, known = competition.truth(scene), {}
        for k, own in everyone.items():
            if fold_of[scene.id] == k:
                continue
            if repr(own) not in known:  # folds often choose the same settings
                levels = found.average(own.weights, own.variant)
                known[repr(own)] = {
                    name: competition.count(levels, truth, competition.grid({name: values}, own.params))
                    for name, values in axes.items()
                }
            for name, table in known[repr(own)].items():
                tables[k, name].append(table)
    said: dict[str, Any] = {}
    settled = {}
    for k, own in everyone.items():
        values = {}
        for name, tried in axes.items():
            moved = spread(np.stack(tables[k, name]), tried, competition.score, search.plateau, DRAWS, run.config.seed)
            values[name] = tried[moved.median]
            if k is None:
                mean, high = moved.regret
                said[name] = {"used": values[name], "flattest_best": own.params[name],
                              "quantiles": {str(q): value for q, value in moved.quantiles.items()},
                              "regret_of_the_best": {"mean": mean, "quantile_0.95": high}}  # fmt: skip
        settled[k] = replace(own, params={**own.params, **values})
    result: dict[str, Any] = {"stability": said}
    if without:
        held_out = 0
        for scene, found in tqdm(source(), "stability, held out", leave=False, disable=None):
            held_out = held_out + settled[fold_of[scene.id]].tally(run, scene, found)
        result["expected_score"] = float(competition.score(held_out))
    best = settled.pop(None)
    return best, settled, result
