"""Stage 06: decode the averaged scenes, write the competition's files, read them back, lint and score them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose.choice import Decision
from lib.competitions.contract import Answer, Scene, settings_for, told
from lib.errors import ArtifactError
from lib.run.artifacts import Unit
from lib.run.cli import Run, say
from lib.stages.ensemble import averages


def units(run: Run) -> list[Unit]:
    """Return what stage 06 builds for the splits that were asked for."""
    return [run.graph.submission(split) for split in run.splits if run.has_split(split)]


def fallbacks(run: Run, split: str) -> dict[str, str]:
    """Return the scenes of a split that some network could not predict, with what it said, sorted by id."""
    predicted = [unit for unit in run.graph.blend(split).upstream if unit.name == split]
    failed: dict[str, str] = {}
    for unit in predicted:
        if run.store.folder(unit).exists():
            failed |= run.store.manifest(unit).get("failed", {})
    return dict(sorted(failed.items()))


def write(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write the submission of a unit's split and lint what lies on disk; returns what the manifest records.

    Says which scenes have the fallback of stage 04, and what the competition writes otherwise than was asked for.
    Out-of-fold files are read back and scored like any other. ArtifactError where the linter finds anything, or the
    score of the files is not the score of stage 05.
    """
    decision, split = Decision.of(run), unit.name
    competition, scenes = run.competition, []

    def answers() -> Iterator[tuple[Scene, Answer]]:
        for scene, levels in tqdm(averages(run, split), f"submission {split}", leave=False, disable=None):
            scenes.append(scene)
            yield scene, competition.decode(levels, settings_for(scene, decision.params))

    competition.write_submission(answers(), folder)
    owed = competition.scenes("test") if split == "test" else []
    if missing := sorted({scene.id for scene in owed} - {scene.id for scene in scenes}):
        raise ArtifactError(f"{folder}: expected an answer to each of {len(owed)} test scenes, found none to "
                            f"{len(missing)} ({', '.join(missing[:3])}); run stages 04 and 05 again")  # fmt: skip
    faults = competition.lint(folder, scenes)
    if faults:
        raise ArtifactError(f"{folder}: the submission is not valid: " + "; ".join(faults))
    for caveat in competition.caveats(scenes):
        say(f"  {caveat}")
    outcome: dict[str, Any] = {"scenes": len(scenes), "lint": "valid"}
    if failed := fallbacks(run, split):
        say(f"  {len(failed)} of {len(scenes)} scenes have the fallback {run.config.predict.fallback} instead of a "
            f"prediction: {told(failed)}")  # fmt: skip
        outcome["fallback"] = sorted(failed)
    if split == "oof":
        tallies = [competition.tally(competition.read_submission(folder, s), competition.truth(s)) for s in scenes]
        outcome["scores"] = competition.scores(np.sum(tallies, 0))
        if outcome["scores"] != decision.scores:
            raise ArtifactError(f"{folder}: the files score {outcome['scores']}, stage 05 found {decision.scores}")
    return outcome
