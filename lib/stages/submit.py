"""Stage 06: decode the blended scenes, write the competition's files, read them back, lint and score them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose.evidence import DECODE, blended
from lib.competitions.contract import Answer, Scene, settings_for
from lib.errors import ArtifactError
from lib.run.artifacts import read_json
from lib.run.cli import Run


def write(run: Run, split: str, folder: Path) -> dict[str, Any]:
    """Write the submission of a split and lint what lies on disk; out-of-fold files are scored like any other.

    ArtifactError where the linter finds anything, or the score of the files is not the score of stage 05.
    """
    chosen = read_json(run.store.require(run.graph.decode()) / DECODE)
    competition, scenes = run.competition, []

    def answers() -> Iterator[tuple[Scene, Answer]]:
        for scene, levels in tqdm(blended(run, split), f"submission {split}", leave=False, disable=None):
            scenes.append(scene)
            yield scene, competition.decode(levels, settings_for(scene, chosen["params"]))

    competition.write_submission(answers(), folder)
    faults = competition.lint(folder, scenes)
    if faults:
        raise ArtifactError(f"{folder}: the submission is not valid: " + "; ".join(faults))
    outcome: dict[str, Any] = {"scenes": len(scenes), "lint": "valid"}
    if split == "oof":
        tallies = [competition.tally(competition.read_submission(folder, s), competition.truth(s)) for s in scenes]
        outcome["scores"] = competition.scores(np.sum(tallies, 0))
        if outcome["scores"] != chosen["scores"]:
            raise ArtifactError(f"{folder}: the files score {outcome['scores']}, stage 05 found {chosen['scores']}")
    return outcome
