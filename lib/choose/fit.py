"""Stage 05: choose weights and decode settings on out-of-fold scenes, and say what to expect of them.

Choosing is a list of steps. Each changes the choice made on all folds and, in the same way, the choice made without
each fold. After the last one every scene is decoded twice: with the choice, which gives the score, and with the choice
made without its fold, which gives the score to expect on unseen scenes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.choose import figures, plans
from lib.choose.choice import DECODE, Choice, Chosen, Decision, Numbers
from lib.choose.evidence import OutOfFold, default_variant, out_of_fold, stated_weights, variants, weights_to_try
from lib.choose.figures import FIGURES, Figures, SceneScore
from lib.choose.greedy import choose_greedily
from lib.choose.joint import choose_jointly
from lib.choose.medians import take_medians
from lib.choose.postprocess import choose_postprocessing
from lib.choose.temperatures import fit_temperatures
from lib.choose.unseen import add_unseen_settings
from lib.competitions.contract import Competition
from lib.config.sections import Experiment
from lib.ensemble.search import bootstrap, total
from lib.run.cli import Run
from lib.run.clock import Clock

if TYPE_CHECKING:
    from lib.run.executor import Sharing

Step = Callable[[OutOfFold, Chosen], Chosen]
"""Takes what is chosen so far and returns what is chosen after it."""


def choose(run: Run, folder: Path, pool: "Sharing | None" = None) -> tuple[Decision, dict[str, float]]:
    """Choose on the out-of-fold scenes of an experiment, which ``pool`` shares; write decode.json into ``folder``.

    Beside it figures.json has what a report draws. Returns what was decided and the seconds of all processes by what
    they went to.
    """
    clock = Clock()
    temperatures: dict[str, float] = {}
    notes: dict[str, Any] = {}
    if run.config.blend.calibrate:
        scenes = out_of_fold(run, pool=pool)
        scenes.clock = clock
        temperatures, notes["calibration"] = fit_temperatures(scenes)
    scenes = out_of_fold(run, temperatures, pool)
    scenes.clock = clock
    scenes.counts_sureness = True
    decision, drawn = decide_and_draw(scenes, temperatures, notes)
    decision.write(folder / DECODE)
    drawn.write(folder / FIGURES)
    return decision, clock.seconds


def steps(config: Experiment) -> list[Step]:
    """Return the steps that the experiment asks for, in their order; none where everything is fixed."""
    search = config.search
    asked: list[Step] = []
    if config.blend.select:
        asked.append(choose_greedily)
    elif search or len(variants(config)) * len(weights_to_try(config)) > 1:
        asked.append(choose_jointly)
    if search and search.choose == "median":
        asked.append(take_medians)
    if search and search.unseen:
        asked.append(add_unseen_settings)
    if search and search.postprocess:
        asked.append(choose_postprocessing)
    return asked


def decide(scenes: OutOfFold, temperatures: dict[str, float], notes: dict[str, Any]) -> Decision:
    """Take all steps and judge what they chose; ``notes``: fields of the decision that are known before."""
    return decide_and_draw(scenes, temperatures, notes)[0]


def decide_and_draw(
    scenes: OutOfFold, temperatures: dict[str, float], notes: dict[str, Any]
) -> tuple[Decision, Figures]:
    """Return what ``decide`` decides, and what a report draws of it."""
    config, competition = scenes.run.config, scenes.competition
    fixed = Choice(stated_weights(config), {**competition.defaults(), **config.decode}, default_variant(config))
    chosen = Chosen.nothing(fixed, scenes.folds)
    asked = steps(config)
    for step in asked:
        chosen = step(scenes, chosen)
    scored, expected, alone = score(scenes, chosen)
    if asked:
        notes = {**notes, **chosen.notes, "expected_score": expected}
        if expected is not None:
            notes["expected_gain"] = expected - notes["score_without_search"]
    decision = Decision(
        **chosen.choice.to_json(),
        **notes,
        **scored,
        temperatures=temperatures,
        plans=plans.compare(scenes, chosen.choice),
        coverage=f"{len(scenes.scenes)} of {len(scenes.fold_of)} scenes, folds {_span(scenes.folds)}",
    )
    drawn = None
    if chosen.counted is not None:
        grid, counts = chosen.counted
        drawn = figures.surface(grid, competition.score(counts), chosen.choice, scenes.search.plateau)
    sure = figures.reliability(scenes.sureness(chosen.choice))
    return decision, Figures(scenes=alone, surface=drawn, reliability=sure)


def stated(config: Experiment, competition: Competition) -> Decision:
    """Return the decision of an experiment in which nothing is chosen and no labelled scene tells what that is worth.

    For networks that come finished from elsewhere; the settings are those of the experiment file.
    """
    fixed = Choice(stated_weights(config), {**competition.defaults(), **config.decode}, default_variant(config))
    return Decision(**fixed.to_json(), scenes=0, scores={}, interval95=None, per_domain={}, per_fold={}, tables={},
                    coverage="no scene was predicted out of fold")  # fmt: skip


def score(scenes: OutOfFold, chosen: Chosen) -> tuple[dict[str, Any], float | None, list[SceneScore]]:
    """Decode every scene with the choice, and with the choice made without its fold.

    Returns (the fields of the decision that say what the choice scores, the score to expect on unseen scenes, the
    scores of the scenes). The second is the score of all scenes decoded without their fold, counted together; None
    where there is one fold only.
    """
    competition = scenes.competition

    own = {fold: [chosen.choice, *([chosen.without[fold]] if chosen.without else [])] for fold in scenes.folds}
    judged = scenes.judged("score", own)
    counts = np.stack([tallies[0] for tallies, _ in judged])  # (S, K)
    held_out = [tallies[1] for tallies, _ in judged if chosen.without]
    scored = {
        "scenes": len(counts),
        "scores": competition.scores(counts.sum(0)),
        "interval95": bootstrap(counts, competition.score, seed=scenes.run.config.seed),
        "per_domain": _by(competition, counts, [scene.domain for scene in scenes.scenes]),
        "per_fold": _by(competition, counts, [str(scenes.fold_of[scene.id]) for scene in scenes.scenes]),
        "tables": competition.tables(np.sum([detail for _, detail in judged], 0)),
    }
    alone = figures.scene_scores(competition, scenes.scenes, scenes.fold_of, counts)
    return scored, float(competition.score(total(held_out))) if held_out else None, alone


def _by(competition: Competition, counts: np.ndarray, keys: Sequence[str]) -> dict[str, Numbers]:
    """Score the scenes of each key apart, with their number."""
    named = np.asarray(keys)
    return {
        key: {"scenes": int((named == key).sum()), **competition.scores(counts[named == key].sum(0))}
        for key in sorted(set(keys))
    }


def _span(numbers: Sequence[int]) -> str:
    whole = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ", ".join(map(str, numbers))
