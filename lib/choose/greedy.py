"""Choose the models' weights by greedy selection, and the decode settings with them."""

from collections.abc import Hashable, Sequence

import numpy as np

from lib.choose.choice import Choice, Chosen, Variant, Weights
from lib.choose.evidence import OutOfFold, OutOfFoldScene, settings_to_try
from lib.ensemble import selection
from lib.ensemble.search import Lattice, total

Key = tuple[int | None, int]
"""Place among the weights to evaluate, None for the fixed choice; and fold."""


def count(
    item: OutOfFoldScene, lists: Sequence[Weights], variant: Variant, grid: Lattice, fixed: Choice | None
) -> dict[Key, np.ndarray]:
    """Count one scene for a grid of settings under each of many weights, and the fixed choice where it is given."""
    tables: dict[Key, np.ndarray] = {
        (place, item.fold): item.count(weights, variant, grid) for place, weights in enumerate(lists)
    }
    return tables if fixed is None else tables | {(None, item.fold): item.tally(fixed)}


def choose_greedily(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Select weights model by model, each time with the settings that are best for them; without each fold likewise."""
    run, competition = scenes.run, scenes.competition
    grid, variant = settings_to_try(run, chosen.fixed), chosen.fixed.variant
    baseline: dict[int, np.ndarray] = {}

    def evaluate(lists: list[dict[str, float]]) -> list[dict[Hashable, np.ndarray]]:
        fixed = None if baseline else chosen.fixed
        tables: list[dict[Hashable, np.ndarray]] = [{} for _ in lists]
        for (place, fold), table in scenes.added("greedy selection", count, lists, variant, grid, fixed).items():
            (baseline if place is None else tables[place])[fold] = table
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
