"""Which models, views and folds a number of seconds is spent on: numbers in, a plan out.

What subsets of models and views are worth comes from stage 05, see ``lib/choose/plans.py``, where it is told how this
module and ``lib/kaggle/passes.py`` share the work. A plan is an experiment too: the same one with fewer models, fewer
folds and one set of views (``reduced``), so stages 04 to 06 run it as they run any other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from lib.choose.choice import Decision, Subset
from lib.choose.evidence import stated_weights
from lib.choose.plans import serves_all_tasks, weighted_models
from lib.config.sections import Experiment
from lib.errors import ArtifactError
from lib.inference.tta import VIEWS
from lib.run.cli import duration

RESERVE = 0.1
"""Share of all measured times that is kept for what was not measured."""


@dataclass(frozen=True)
class Timing:
    """What a network of a model takes here, in seconds."""

    load: float
    """To build it and read its weights, once."""
    scene: float
    """To read a scene and to write its levels."""
    view: float
    """To predict one view of a scene."""


@dataclass(frozen=True)
class KernelPlan:
    """What a kernel carries out: models with their views, how many folds of each model, and the seconds it needs."""

    subset: Subset
    folds: int
    """Most folds of a model; a model that has fewer gives all it has."""
    seconds: float
    compared: bool = True
    """Whether these models with these views were compared out of fold."""


@dataclass(frozen=True)
class Costs:
    """What things cost on this machine. ``folds``: model -> how many folds it was trained on."""

    scenes: int
    workers: int
    folds: Mapping[str, int]
    timings: Mapping[str, Timing]
    read: float
    """Seconds to read one network's levels of a scene, for the average."""
    finish: float
    """Seconds per scene to decode it, to write its answer and to lint it."""

    @property
    def most(self) -> int:
        """Return the number of folds of the model with the most."""
        return max(self.folds.values())

    def networks(self, models: Sequence[str], folds: int) -> dict[str, int]:
        """Return model -> how many of its networks a plan with at most ``folds`` folds predicts with."""
        return {name: min(folds, self.folds[name]) for name in models}

    def predicting(self, models: Sequence[str], tta: str, folds: int) -> float:
        """Return the seconds of stage 04."""
        views, total = len(VIEWS[tta]), 0.0
        for name, count in self.networks(models, folds).items():
            timing = self.timings[name]
            total += count * (timing.load + self.scenes * (timing.scene + views * timing.view) / self.workers)
        return total

    def finishing(self, models: Sequence[str], folds: int) -> float:
        """Return the seconds of stages 05 and 06."""
        return self.scenes * (self.read * sum(self.networks(models, folds).values()) + self.finish)

    def total(self, subset: Subset, folds: int) -> float:
        """Return the seconds until the last submission is there, with the one after the first fold and a reserve."""
        models = subset.models
        finishing = self.finishing(models, folds) + (self.finishing(models, 1) if folds > 1 else 0)
        return (self.predicting(models, subset.tta, folds) + finishing) * (1 + RESERVE)


def make_plan(costs: Costs, full: Subset, compared: Sequence[Subset], seconds: float = inf) -> KernelPlan | None:
    """Return the plan to carry out in ``seconds``, None where none fits.

    Everything (``full``), if it fits. Else of the subsets that were compared out of fold and fit with all folds the one
    with the highest score, ties to the cheaper; else with as many folds as possible, since no out-of-fold score tells
    what they are worth. View sets that were not compared come last.
    """

    def best(subsets: Iterable[Subset], folds: int, known: bool = True) -> KernelPlan | None:
        plans = [KernelPlan(subset, folds, costs.total(subset, folds), known) for subset in subsets]
        return max((plan for plan in plans if plan.seconds <= seconds), key=worth, default=None)

    def worth(plan: KernelPlan) -> tuple[float, ...]:
        score = -inf if plan.subset.score is None else plan.subset.score
        return (0 if plan.compared else len(VIEWS[plan.subset.tta])), score, -plan.seconds

    if everything := best([full], costs.most):
        return everything
    candidates = list(compared) or [full]
    known = {(subset.models, subset.tta) for subset in candidates}
    fewer_views = dict.fromkeys(
        Subset(subset.models, tta)
        for subset in candidates
        for tta, views in VIEWS.items()
        if len(views) < len(VIEWS[subset.tta]) and (subset.models, tta) not in known
    )
    for subsets, scored in ((candidates, True), (fewer_views, False)):
        for folds in range(costs.most, 0, -1):
            if found := best(subsets, folds, scored):
                return found
    return None


def describe(costs: Costs, full: Subset, plan: KernelPlan | None, left: float) -> str:
    """Say what was measured, what all of it needs, what is left of the budget, and what the plan leaves out."""
    measured = ", ".join(f"{name} {t.scene:.3f} s and {t.view:.3f} s per view" for name, t in costs.timings.items())
    shared = f" in each of {costs.workers} workers" if costs.workers > 1 else ""
    whole = duration(costs.total(full, costs.most))
    line = (f"a scene takes{shared} {measured}, its answer {costs.finish:.3f} s; everything needs {whole}, "
            f"{duration(max(0, left))} are left")  # fmt: skip
    if plan is None:
        return f"{line}; not even one fold with one view fits, so nothing is predicted"
    kept, dropped = plan.subset, []
    if gone := [name for name in full.models if name not in kept.models]:
        dropped.append(f"the model{'s' * (len(gone) > 1)} {', '.join(gone)}")
    if kept.tta != full.tta:
        dropped.append(f"views: {kept.tta} ({len(VIEWS[kept.tta])}) instead of {full.tta} ({len(VIEWS[full.tta])})"
                       + ("" if plan.compared else ", which were not compared out of fold"))  # fmt: skip
    if plan.folds < costs.most:
        dropped.append(f"folds: {plan.folds} of {costs.most} (what they are worth is not known out of fold)")
    if not dropped:
        return f"{line}; nothing is left out"
    scores = "" if kept.score is None else f"; out-of-fold score {kept.score:.4f}" + (
        "" if full.score is None else f", {full.score:.4f} with everything")  # fmt: skip
    return f"{line}; left out: {'; '.join(dropped)}; so it needs {duration(plan.seconds)}{scores}"


# ---- the experiment -----------------------------------------------------------------------------------
def subsets_of(config: Experiment, decision: Decision) -> tuple[Subset, list[Subset]]:
    """Return everything, and the subsets that stage 05 compared.

    Everything is what the experiment would submit: all models but those whose weight is 0, with the views that were
    chosen. ArtifactError for names that the experiment does not have.
    """
    weights = decision.weights if config.blend.is_fitted else stated_weights(config)
    models = weighted_models(config, weights)
    compared = []
    for row in decision.plans:
        if unknown := [name for name in (*row.models, row.tta) if name not in {*config.models, *VIEWS}]:
            raise ArtifactError(f"decode.json: its plans name {', '.join(unknown)}, which the experiment does not have")
        kept = tuple(name for name in models if name in row.models)
        if serves_all_tasks(config, kept):  # weights of 0 may leave a task without a model
            compared.append(replace(row, models=kept))
    full = Subset(models, decision.tta)
    known = {(row.models, row.tta): row for row in compared}
    return known.get((full.models, full.tta), full), compared


def reduced(config: Experiment, subset: Subset, folds: int | None = None) -> Experiment:
    """Return the experiment with some models, one set of views, and at most ``folds`` folds of each model.

    Its checkpoints are there, so what they were trained from is not asked for again.
    """
    kept = {}
    for name in subset.models:
        model = config.models[name]
        train = model.train.model_copy(update={"init_from": None, "localization": None})
        kept[name] = model.model_copy(update={"folds": config.folds_of(model)[:folds], "train": train})
    return config.model_copy(update={"models": kept, "predict": config.predict.model_copy(update={"tta": subset.tta})})
