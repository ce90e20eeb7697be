"""Choose the models' weights by greedy selection, and the decode settings with them."""

from collections.abc import Hashable

import numpy as np

from lib.choose.choice import Choice, Chosen, Weights
from lib.choose.evidence import OutOfFold, settings_to_try
from lib.ensemble import selection
from lib.ensemble.search import add, total


def choose_greedily(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Select weights model by model, each time with the settings that are best for them; without each fold likewise."""
    run, competition = scenes.run, scenes.competition
    grid, variant = settings_to_try(run, chosen.fixed), chosen.fixed.variant
    baseline: dict[int, np.ndarray] = {}

    def evaluate(lists: list[dict[str, float]]) -> list[dict[Hashable, np.ndarray]]:
        tables: list[dict[Hashable, np.ndarray]] = [{} for _ in lists]
        first_pass = not baseline
        for item in scenes.each("greedy selection"):
            for table, weights in zip(tables, lists, strict=True):
                add(table, item.fold, item.count(weights, variant, grid))
            if first_pass:
                add(baseline, item.fold, item.tally(chosen.fixed))
        return tables

    def choice(weights: Weights, point: int) -> Choice:
        return Choice(weights, grid[point], variant)

    tasks = dict.fromkeys(model.task for model in run.config.models.values())
    groups = [list(run.graph.models(task)) for task in tasks]
    rounds, plateau = run.config.blend.rounds, scenes.search.plateau
    found = selection.greedy(groups, evaluate, competition.score, rounds, grid.shape, plateau)
    without: dict[int | None, Choice] = {
        fold: choice(*found.without[fold]) for fold in scenes.folds if fold in found.without
    }
    notes = {
        "points": found.evaluated * len(grid),
        "score_without_search": float(competition.score(total(baseline.values()))),
        "searched_score": found.in_sample,
        "expected_with_equal_weights": found.equal,
        "greedy_path": [{"weights": dict(weights), "score": score} for weights, score in found.path],
        "chosen_without_fold": {str(k): own.to_json() for k, own in without.items()},
    }
    return chosen.settle({None: choice(found.weights, found.point), **without}, notes)
