"""Stage 05: the temperature of each model, fitted on out-of-fold scenes."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose.evidence import parts, usual
from lib.ensemble import calibration
from lib.run.cli import Run, say


def temperatures_of(run: Run, fold_of: Mapping[str, int]) -> tuple[dict[str, float], dict[str, Any]]:
    """Fit each model's temperature on out-of-fold scenes; kept at 1 where held-out log-loss does not fall.

    Returns (model -> temperature, what decode.json says of it: reliability before and after, each fold held out).
    """
    evidence: dict[str, dict[int, calibration.Evidence]] = defaultdict(dict)
    for scene, found in tqdm(parts(run, "oof"), "calibrate", leave=False, disable=None):
        fold = fold_of[scene.id]
        for task, members in found.levels(usual(run).tta).items():
            target = run.competition.target(scene, task)
            for model, _, levels in members:
                own = np.broadcast_to(target, levels.shape[1:])
                new = calibration.gather(run.competition.tasks[task], levels, own)
                known = evidence[model]
                known[fold] = known[fold] + new if fold in known else new
    temperatures, said = {}, {}
    for model, by_fold in evidence.items():
        if len(by_fold) < 2:
            say(f"  {model}: one fold only, its temperature stays 1")
            temperatures[model] = 1.0
            continue
        fitted = calibration.cross_fit(by_fold)
        temperatures[model] = fitted.temperature if fitted.accepted else 1.0
        said[model] = {"temperature": fitted.temperature, "accepted": fitted.accepted,
                       "before": asdict(fitted.before), "after": asdict(fitted.after)}  # fmt: skip
        say(f"  {model}: temperature {fitted.temperature:.2f}{'' if fitted.accepted else ', not taken'}; held out, "
            f"log-loss {fitted.before.log_loss:.4f} -> {fitted.after.log_loss:.4f}, "
            f"calibration error {fitted.before.error:.4f} -> {fitted.after.error:.4f}")  # fmt: skip
    return temperatures, {"calibration": said}
