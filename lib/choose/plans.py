"""What fewer models and fewer views would score out of fold, so that a kernel with a clock knows what to leave out.

Three modules share this work. Here, in stage 05, every subset of models with every set of views is scored on scenes
whose truth is known; decode.json lists them under ``plans``. ``lib/kaggle/plan.py`` takes these scores and what a
network takes on the machine where it runs, and picks the subset and the number of folds that fit a budget: the plan.
``lib/kaggle/passes.py`` measures these times before, and afterwards carries the plan out, fold by fold, as long as the
clock allows. What folds are worth is not known here, because out of fold each scene has one network of each model.

Every subset is scored with the settings and the weights that were chosen for all models (the weights of those left add
up to their share), so nothing is chosen anew on the scenes that judge it.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, combinations, product

import numpy as np

from lib.choose.choice import Choice, Subset, Variant, Weights
from lib.choose.evidence import OutOfFold, OutOfFoldScene
from lib.config.sections import Experiment
from lib.inference.tta import VIEWS
from lib.run.cli import Run

MOST = 64
"""Subsets that are scored; where there are more, only those that leave out one model, or keep the heaviest ones."""
SCENES = 256
"""Scenes they are scored on, evenly spread where there are more: each is decoded for every subset."""


def weighted_models(config: Experiment, weights: Weights) -> tuple[str, ...]:
    """Return the models that count in an average, in the experiment's order: those whose weight is not 0."""
    return tuple(name for name in config.models if weights.get(name, 1) > 0)


def serves_all_tasks(config: Experiment, models: Iterable[str]) -> bool:
    """Tell whether some of the models are enough for an answer: one for each task that the experiment has."""
    return {config.models[name].task for name in models} == {model.task for model in config.models.values()}


def subsets(config: Experiment, weights: Weights) -> list[tuple[str, ...]]:
    """Return the sets of models to score: all that serve every task, or a few of them where there are many models."""
    names = weighted_models(config, weights)
    every = chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1))
    if 2 ** len(names) * len(config.predict.tta_sets) <= MOST:
        return [kept for kept in every if serves_all_tasks(config, kept)]
    tasks = {config.models[name].task for name in names}
    strongest = [max((n for n in names if config.models[n].task == task), key=weights.__getitem__) for task in tasks]
    fewer = [tuple(n for n in names if n != left) for left in names]
    ranked = sorted(names, key=lambda name: -weights[name])
    growing = [tuple(n for n in names if n in ranked[:size] or n in strongest) for size in range(len(names) + 1)]
    return [kept for kept in dict.fromkeys([*growing, *fewer]) if serves_all_tasks(config, kept)]


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


def tally_each(item: OutOfFoldScene, choices: Sequence[Choice]) -> dict[int, np.ndarray]:
    """Tally one scene with each of many choices, by their places."""
    return {place: item.tally(smaller) for place, smaller in enumerate(choices)}


def compare(scenes: OutOfFold, choice: Choice) -> list[Subset]:
    """Score every subset of models with every set of views, from the cheapest to the dearest.

    [] where there is nothing to leave out.
    """
    config, competition = scenes.run.config, scenes.competition
    combined = list(product(subsets(config, choice.weights), config.predict.tta_sets))
    if len(combined) < 2:
        return []
    choices = [
        Choice({name: choice.weights[name] for name in models}, choice.params, Variant(tta, choice.variant.crf))
        for models, tta in combined
    ]
    every = -(-len(scenes.scenes) // SCENES)
    counts = scenes.added("fewer models and views", tally_each, choices, every=every)
    cost, largest = seconds(scenes.run), len(VIEWS[config.predict.tta_sets[-1]])
    needed = [round(sum(cost[name] for name in models) * len(VIEWS[tta]) / largest, 4) for models, tta in combined]
    scores = [float(competition.score(counts[place])) for place in range(len(combined))]
    rows, best = [], -np.inf
    for place in sorted(range(len(combined)), key=lambda place: (needed[place], -scores[place])):
        rows.append(Subset(*combined[place], scores[place], needed[place], scores[place] > best))
        best = max(best, scores[place])
    return rows


def table(rows: Sequence[Subset], names: Sequence[str]) -> list[str]:
    """Return the rows that are best for their seconds as lines: seconds, score, views, models left out."""
    lines = ["  seconds a scene    score  views and models that are best for so many seconds"]
    for row in rows:
        if row.best_for_its_seconds:
            out = [name for name in names if name not in row.models]
            lines.append(f"  {row.seconds:15.2f}  {row.score:7.4f}  {row.tta}"
                         + (f", without {', '.join(out)}" if out else ", all models"))  # fmt: skip
    return lines
