"""Fit the temperature of each model on out-of-fold scenes."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import asdict
from typing import Any

import numpy as np

from lib.choose.evidence import OutOfFold, OutOfFoldScene, default_variant
from lib.ensemble import calibration
from lib.run.cli import say


def gather(item: OutOfFoldScene, tta: str) -> dict[tuple[str, int], calibration.Evidence]:
    """Take from one scene what a fit needs of each model, by model and fold."""
    competition, found = item.competition, {}
    for task, members in item.members.levels(tta).items():
        target = competition.training_target(item.scene, task)
        for model, _, levels in members:
            own = np.broadcast_to(target, levels.shape[1:])
            found[model, item.fold] = calibration.gather(competition.tasks[task], levels, own)
    return found


def fit_temperatures(scenes: OutOfFold) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Fit each model's temperature; it stays 1 where held-out log-loss does not fall, and where there is one fold.

    Returns (model -> temperature, model -> what ``Decision.calibration`` says: how reliable the model is before and
    after, each fold held out).
    """
    pixels: dict[str, dict[Hashable, calibration.Evidence]] = defaultdict(dict)
    for (model, fold), own in scenes.added("calibrate", gather, default_variant(scenes.run.config).tta).items():
        pixels[model][fold] = own
    temperatures, reports = {}, {}
    for model, by_fold in pixels.items():
        if len(by_fold) < 2:
            say(f"  {model}: one fold only, its temperature stays 1")
            temperatures[model] = 1.0
            continue
        fitted = calibration.cross_fit(by_fold)
        temperatures[model] = fitted.temperature if fitted.accepted else 1.0
        reports[model] = {"temperature": fitted.temperature, "accepted": fitted.accepted,
                          "before": asdict(fitted.before), "after": asdict(fitted.after)}  # fmt: skip
        say(f"  {model}: temperature {fitted.temperature:.2f}{'' if fitted.accepted else ', not taken'}; held out, "
            f"log-loss {fitted.before.log_loss:.4f} -> {fitted.after.log_loss:.4f}, "
            f"calibration error {fitted.before.error:.4f} -> {fitted.after.error:.4f}")  # fmt: skip
    return temperatures, reports
