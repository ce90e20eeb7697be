"""Stage 05: what fewer models and fewer views would score out of fold, and what they would cost.

A kernel with a clock picks among these, see ``lib/kaggle/plan.py``; a person reads which model is worth its seconds.
Every combination is judged with the settings and the weights that were chosen for all (the weights of those left add
up to their share), so nothing is chosen anew on the scenes that judge it.
"""

from collections.abc import Callable, Iterator
from itertools import chain, combinations, islice, product
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose.evidence import Parts, Variant
from lib.competitions.contract import Scene, settings_for
from lib.inference.tta import VIEWS
from lib.run.cli import Run

MOST = 64
"""Combinations that are judged; with more of them only those that leave out one model, or keep the heaviest ones."""
SCENES = 256
"""Scenes they are judged on, evenly spread where there are more: each decodes every combination."""


def subsets(run: Run, weights: dict[str, float]) -> list[tuple[str, ...]]:
    """Return the sets of models to judge: all that keep a model of each task, or a few of them where there are many."""
    names = [name for name in run.config.models if weights[name] > 0]
    tasks = {run.config.models[name].task for name in names}

    def whole(kept: tuple[str, ...]) -> bool:
        return {run.config.models[name].task for name in kept} == tasks

    every = chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))
    if 2 ** len(names) * len(run.config.predict.tta_sets) <= MOST:
        return [kept for kept in every if whole(kept)]
    strongest = [max((n for n in names if run.config.models[n].task == task), key=weights.get) for task in tasks]
    fewer = [tuple(n for n in names if n != left) for left in names]
    ranked = sorted(names, key=lambda name: -weights[name])
    growing = [tuple(n for n in names if n in ranked[:size] or n in strongest) for size in range(len(names) + 1)]
    return [kept for kept in dict.fromkeys([*growing, *fewer]) if whole(kept)]


def seconds(run: Run) -> dict[str, float]:
    """Return model -> seconds per scene that its networks took out of fold, with the largest set of views."""
    found = {}
    for name, model in run.config.models.items():
        made = [run.store.manifest(run.graph.probs(name, fold, "oof")) for fold in run.config.folds_of(model)]
        per_scene = [
            m["seconds_per_scene"] if "seconds_per_scene" in m else m["seconds"] / max(1, m["scenes"]) for m in made
        ]
        found[name] = float(np.mean(per_scene))
    return found


def judge(run: Run, source: Callable[[], Iterator[tuple[Scene, Parts]]], choice, scenes: int) -> list[dict[str, Any]]:
    """Score every combination of models and views in one pass over the out-of-fold scenes, ``scenes`` in number.

    Returns rows of models, tta, score, seconds (per scene, one fold network of each model, on this machine) and
    ``best_for_its_seconds``, from the cheapest to the dearest; [] where there is nothing to leave out.
    """
    sets, kept = run.config.predict.tta_sets, subsets(run, choice.weights)
    if len(sets) * len(kept) < 2:
        return []
    competition, counts = run.competition, {}
    some = islice(source(), 0, None, -(-scenes // SCENES))  # a scene that is passed over is not read
    for scene, found in tqdm(some, "fewer models and views", leave=False, disable=None):
        truth, params = competition.truth(scene), settings_for(scene, choice.params)
        for models, tta in product(kept, sets):
            weights = {name: choice.weights[name] for name in models}
            levels = found.average(weights, Variant(tta, choice.variant.crf))
            tally = competition.tally(competition.decode(levels, params), truth)
            counts[models, tta] = counts.get((models, tta), 0) + tally
    cost = seconds(run)
    largest = len(VIEWS[sets[-1]])
    rows = [
        {"models": list(models), "tta": tta, "score": float(competition.score(counts[models, tta])),
         "seconds": round(sum(cost[name] for name in models) * len(VIEWS[tta]) / largest, 4)}
        for models, tta in product(kept, sets)
    ]  # fmt: skip
    return _marked(sorted(rows, key=lambda row: (row["seconds"], -row["score"])))


def _marked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark the rows, ascending in seconds, that score higher than everything as cheap or cheaper."""
    best = -np.inf
    for row in rows:
        row["best_for_its_seconds"] = row["score"] > best
        best = max(best, row["score"])
    return rows


def table(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Return the rows that are best for their seconds as lines: seconds, score, views, models left out."""
    lines = ["  seconds a scene    score  views and models that are best for so many seconds"]
    for row in rows:
        if row["best_for_its_seconds"]:
            out = [name for name in names if name not in row["models"]]
            lines.append(f"  {row['seconds']:15.2f}  {row['score']:7.4f}  {row['tta']}"
                         + (f", without {', '.join(out)}" if out else ", all models"))  # fmt: skip
    return lines
