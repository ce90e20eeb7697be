"""Choose the models' weights by greedy selection, and the decode settings with them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lib.choose.choice import Choice, Chosen, Weights
from lib.choose.evidence import OutOfFold, settings_to_try
from lib.ensemble import selection


def choose_greedily(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Select weights model by model, each time with the settings that are best for them; without each fold likewise."""
    run, competition = scenes.run, scenes.competition
    grid, variant = settings_to_try(run, chosen.fixed), chosen.fixed.variant
    baseline: dict[int, np.ndarray] = {}

    def evaluate(lists: Sequence[Weights]) -> list[dict[int, np.ndarray]]:
        tables: list[dict[int, np.ndarray]] = [{} for _ in lists]
        first_pass = not baseline
        for item in scenes.each("greedy selection"):
            for table, weights in zip(tables, lists, strict=True):
                counts = item.count(weights, variant, grid)
                table[item.fold] = table[item.fold] + counts if item.fold in table else counts
            if first_pass:
                baseline[item.fold] = baseline.get(item.fold, 0) + item.tally(chosen.fixed)
        return tables

    def choice(weights: Weights, point: int) -> Choice:
        return Choice(weights, dict(grid.points[point]), variant)

    tasks = dict.fromkeys(model.task for model in run.config.models.values())
    groups = [list(run.graph.models(task)) for task in tasks]
    rounds, plateau = run.config.blend.rounds, scenes.search.plateau
    found = selection.greedy(groups, evaluate, competition.score, rounds, grid.shape, plateau)
    without: Mapping[int, Choice] = {k: choice(*own) for k, own in found.without.items()}
    notes = {
        "points": found.evaluated * len(grid.points),
        "score_without_search": float(competition.score(sum(baseline.values()))),
        "searched_score": found.in_sample,
        "expected_with_equal_weights": found.equal,
        "greedy_path": [{"weights": dict(weights), "score": score} for weights, score in found.path],
        "chosen_without_fold": {str(k): own.to_json() for k, own in without.items()},
    }
    best = choice(found.weights, found.point)
    return replace(chosen, choice=best, without=without, notes={**chosen.notes, **notes})
