"""Which models, views and folds a number of seconds is spent on: numbers in, a plan out.

A plan is an experiment too: the same one with fewer models, fewer folds and one set of views (``reduced``), so stages
04 to 06 run it as they run any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

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
class Option:
    """Models with the views they predict, and what they score out of fold with all of their folds; none: not known."""

    models: tuple[str, ...]
    tta: str
    score: float | None = None


@dataclass(frozen=True)
class Plan:
    """An option, how many folds of each model it takes at most, and the seconds it needs."""

    models: tuple[str, ...]
    tta: str
    folds: int
    seconds: float
    score: float | None = None
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

    def total(self, models: Sequence[str], tta: str, folds: int) -> float:
        """Return the seconds until the last submission is there, with the one after the first fold and a reserve."""
        finishing = self.finishing(models, folds) + (self.finishing(models, 1) if folds > 1 else 0)
        return (self.predicting(models, tta, folds) + finishing) * (1 + RESERVE)


def choose(costs: Costs, full: Option, options: Sequence[Option], seconds: float = inf) -> Plan | None:
    """Return the plan to carry out in ``seconds``, None where none fits.

    Everything, if it fits. Else of what was compared out of fold and fits with all folds the highest score, ties to the
    cheaper; else with as many folds as possible, since no out-of-fold score tells what they are worth. View sets that
    were not compared come last.
    """

    def plan(option: Option, folds: int, compared: bool = True) -> Plan:
        cost = costs.total(option.models, option.tta, folds)
        return Plan(option.models, option.tta, folds, cost, option.score if compared else None, compared)

    def best(plans: Iterator[Plan]) -> Plan | None:
        fitting = [found for found in plans if found.seconds <= seconds]
        return max(fitting, key=worth, default=None)

    def worth(found: Plan) -> tuple[float, ...]:
        unknown = -inf if found.score is None else found.score
        return (0 if found.compared else len(VIEWS[found.tta])), unknown, -found.seconds

    measured = list(options) or [full]
    known = {(option.models, option.tta) for option in measured}
    smaller = dict.fromkeys(
        Option(option.models, tta)
        for option in measured
        for tta, views in VIEWS.items()
        if len(views) < len(VIEWS[option.tta]) and (option.models, tta) not in known
    )
    if everything := best(plan(option, costs.most) for option in [full]):
        return everything
    for candidates, compared in ((measured, True), (smaller, False)):
        for folds in range(costs.most, 0, -1):
            if found := best(plan(option, folds, compared) for option in candidates):
                return found
    return None


def sentence(costs: Costs, full: Option, plan: Plan | None, left: float) -> str:
    """Say what was measured, what all of it needs, what is left of the budget, and what the plan leaves out."""
    measured = ", ".join(f"{name} {t.scene:.3f} s and {t.view:.3f} s per view" for name, t in costs.timings.items())
    shared = f" in each of {costs.workers} workers" if costs.workers > 1 else ""
    whole = duration(costs.total(full.models, full.tta, costs.most))
    said = (f"a scene takes{shared} {measured}, its answer {costs.finish:.3f} s; everything needs {whole}, "
            f"{duration(max(0, left))} are left")  # fmt: skip
    if plan is None:
        return f"{said}; not even one fold with one view fits, so nothing is predicted"
    dropped = []
    if gone := [name for name in full.models if name not in plan.models]:
        dropped.append(f"the model{'s' * (len(gone) > 1)} {', '.join(gone)}")
    if plan.tta != full.tta:
        dropped.append(f"views: {plan.tta} ({len(VIEWS[plan.tta])}) instead of {full.tta} ({len(VIEWS[full.tta])})"
                       + ("" if plan.compared else ", which were not compared out of fold"))  # fmt: skip
    if plan.folds < costs.most:
        dropped.append(f"folds: {plan.folds} of {costs.most} (what they are worth is not known out of fold)")
    if not dropped:
        return f"{said}; nothing is left out"
    scores = "" if plan.score is None else f"; out-of-fold score {plan.score:.4f}" + (
        "" if full.score is None else f", {full.score:.4f} with everything")  # fmt: skip
    return f"{said}; left out: {'; '.join(dropped)}; so it needs {duration(plan.seconds)}{scores}"


# ---- the experiment -----------------------------------------------------------------------------------
def options_of(config: Experiment, decode: Mapping[str, Any]) -> tuple[Option, list[Option]]:
    """Return everything, and what decode.json says was compared out of fold.

    Everything is what the experiment would submit: all models but those whose fitted weight is 0, with the views that
    were chosen, or the largest set where nothing was chosen. ArtifactError for names that the experiment does not have.
    """
    weights = decode.get("weights", {}) if config.blend.is_fitted else {}
    counting = [name for name in config.models if weights.get(name, 1) > 0]
    tta = decode.get("tta") or config.predict.tta_sets[-1]
    options = []
    for stated in decode.get("plans") or ():
        if unknown := [name for name in (*stated["models"], stated["tta"]) if name not in {*config.models, *VIEWS}]:
            raise ArtifactError(f"decode.json: its plans name {', '.join(unknown)}, which the experiment does not have")
        models = tuple(name for name in counting if name in stated["models"])
        tasks = {model.task for model in config.models.values()}
        if tasks == {config.models[name].task for name in models}:  # weights of 0 may leave a task without a model
            options.append(Option(models, stated["tta"], stated["score"]))
    scores = {(option.models, option.tta): option.score for option in options}
    full = tuple(counting)
    return Option(full, tta, scores.get((full, tta))), options


def reduced(config: Experiment, models: Sequence[str], tta: str, folds: int | None = None) -> Experiment:
    """Return the experiment with some models, one set of views, and at most ``folds`` folds of each model.

    Its checkpoints are there, so what they were trained from is not asked for again.
    """
    kept = {}
    for name in models:
        model = config.models[name]
        train = model.train.model_copy(update={"init_from": None, "localization": None})
        kept[name] = model.model_copy(update={"folds": config.folds_of(model)[:folds], "train": train})
    return config.model_copy(update={"models": kept, "predict": config.predict.model_copy(update={"tta": tta})})
