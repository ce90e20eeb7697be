"""What trackers are told of an experiment: each training as it goes, and what stage 05 found with its worst scenes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lib.choose.choice import Decision
from lib.competitions.contract import Scene, settings_for
from lib.config.sections import TrackerName, plain
from lib.run import manifest
from lib.run.artifacts import Unit
from lib.run.cli import Run
from lib.run.manifest import STATE
from lib.stages.ensemble import averages
from lib.training import trackers
from lib.training.trackers import Followed

LOG = "log.jsonl"
WORST = 4
"""Out-of-fold scenes that are shown."""


@contextmanager
def training(run: Run, unit: Unit, folder: Path) -> Iterator[Followed]:
    """Follow the training of a unit that is built in ``folder``, from where its log stands."""
    goes_on = (folder / STATE).exists() and (folder / LOG).exists()
    lines = manifest.read_lines(folder / LOG) if goes_on and run.config.track else []
    with trackers.follow(run.config.track, run.store.root, unit.key, lines) as followed:
        if run.config.track:
            followed.begin(settings_of(run.config.name, unit.key, unit.facts), lines)
        yield followed


def settings_of(experiment: str, unit: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tracker shows as the settings of a training: its facts, and whose they are."""
    stage, model, fold = unit.split("/")
    return {"experiment": experiment, "stage": stage[:2], "model": model, "fold": int(fold.removeprefix("fold")),
            **{name: value for name, value in facts.items() if name != "fold"}}  # fmt: skip


def outcome(run: Run, names: Sequence[TrackerName]) -> None:
    """Tell trackers what stage 05 decided, what it scores and what the worst out-of-fold scenes look like."""
    unit = run.graph.decode()
    if not names or run.store.status(unit) not in ("done", "frozen"):
        return
    trackers.require(names)
    decision = Decision.of(run)
    line = {"epoch": 1, "scores": dict(decision.scores), **figures(decision),
            "decided": manifest.content(run.store.manifest(unit))}  # fmt: skip
    with trackers.follow(names, run.store.root, unit.key, [line]) as followed:
        followed.leave(followed.told())  # the same decision is told once
        chosen = {"params": decision.params, "weights": decision.weights, "tta": decision.tta, "crf": decision.crf}
        followed.begin({"experiment": run.config.name, "settings": plain(run.config), "chosen": chosen}, [line])
        followed.scores({**decision.scores, **figures(decision)})
        for scene, score, picture in worst(run, decision) if followed.listens else ():
            followed.picture(f"worst/{scene.id} {score:.4f}", picture)


def figures(decision: Decision) -> dict[str, float]:
    """Return what stage 05 says beside the scores: what to expect, and where the score lies when scenes change."""
    found = {"expected_score": decision.expected, "scenes": decision.scenes}
    low, high = decision.interval95 or (None, None)
    return {name: value for name, value in {**found, "interval95_low": low, "interval95_high": high}.items()
            if value is not None}  # fmt: skip


def worst(run: Run, decision: Decision) -> Iterator[tuple[Scene, float, np.ndarray]]:
    """Yield the out-of-fold scenes that score lowest alone, the worst first: scene, score, panels side by side."""
    competition, scored = run.competition, []
    for scene, levels in averages(run, "oof"):
        answer = competition.decode(levels, settings_for(scene, decision.params))
        scored.append((float(competition.score(competition.tally(answer, competition.truth(scene)))), scene.id))
    lowest = dict((name, score) for score, name in sorted(scored)[:WORST])
    shown = []
    for scene, levels in averages(run, "oof"):
        if scene.id in lowest:
            answer = competition.decode(levels, settings_for(scene, decision.params))
            shown.append((lowest[scene.id], scene, beside(image for _, image in competition.panels(scene, answer))))
    for score, scene, picture in sorted(shown, key=lambda item: (item[0], item[1].id)):
        yield scene, score, picture


def beside(images: Iterator[np.ndarray]) -> np.ndarray:
    """Put pictures (H, W, 3) uint8 side by side, at most 512 pixels high each, with white between them."""
    small = []
    for image in images:
        step = -(-image.shape[0] // 512)
        small += [image[::step, ::step], np.full((len(image[::step]), 4, 3), 255, np.uint8)]
    height = max(len(image) for image in small)
    padded = [np.pad(image, ((0, height - len(image)), (0, 0), (0, 0)), constant_values=255) for image in small[:-1]]
    return np.concatenate(padded, axis=1)
