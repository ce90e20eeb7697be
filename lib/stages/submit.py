"""Stage 06: decode the averaged scenes, write the competition's files, read them back, lint and score them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose.choice import Decision
from lib.competitions.contract import Answer, Competition, Scene, settings_for
from lib.errors import ArtifactError
from lib.run.artifacts import Unit
from lib.run.cli import Run, say
from lib.run.clock import Clock
from lib.scenes import cog
from lib.scenes.probs import file_name
from lib.stages.ensemble import averages, failed_scenes

MAPS = "maps"
"""Folder of the answers of georeferenced scenes, beside the submission."""


def units(run: Run) -> list[Unit]:
    """Return what stage 06 builds for the splits that were asked for."""
    return [run.graph.submission(split) for split in run.splits if run.has_split(split)]


def write(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write the submission of a unit's split and check what lies on disk; returns what the manifest records.

    A scene whose image is georeferenced also has its answer as a COG in ``maps``, which nobody hands in. A test
    submission must answer all test scenes. Says what the competition writes otherwise than was asked for; the
    manifest names the scenes that have the fallback of stage 04. Out-of-fold files are scored like any other.
    ArtifactError where the linter finds anything, the files hold other answers, or their score is not the score of
    stage 05.
    """
    decision, split = Decision.of(run), unit.name
    competition, scenes = run.competition, []
    mapped: list[bool] = []

    clock = Clock()

    def answers() -> Iterator[tuple[Scene, Answer]]:
        averaged = iter(tqdm(averages(run, split), f"submission {split}", leave=False, disable=None))
        while True:
            with clock("read"):
                scene, levels = next(averaged, (None, {}))
            if scene is None:
                return
            scenes.append(scene)
            with clock("decode"):
                answer = competition.decode(levels, settings_for(scene, decision.params))
            with clock("store"):
                mapped.append(write_map(competition, scene, answer, folder))
            yield scene, answer

    owed = None  # out of fold those that networks without their fold have predicted
    if split == "test":
        owed = [scene for scene in competition.scenes("test") if scene.id in run.graph.test_ids]
    with clock("store"):
        faults = competition.submit(answers(), folder, owed)
    if faults:
        raise ArtifactError(f"{folder}: the submission is not valid: " + "; ".join(faults))
    for caveat in competition.caveats(scenes):
        say(f"  {caveat}")
    outcome: dict[str, Any] = {"scenes": len(scenes), "lint": "valid"}
    if any(mapped):
        outcome["maps"] = sum(mapped)
        say(f"  {sum(mapped)} of {len(scenes)} scenes are georeferenced: their answers lie in {MAPS}/, too, as GeoTIFF")
    if failed := failed_scenes(run, split):
        outcome["fallback"] = failed
    if split == "oof":
        with clock("read"):
            tallies = [competition.tally(competition.read_submission(folder, s), competition.truth(s)) for s in scenes]
        outcome["scores"] = competition.scores(np.sum(tallies, 0))
        if outcome["scores"] != decision.scores:
            raise ArtifactError(f"{folder}: the files score {outcome['scores']}, stage 05 found {decision.scores}")
    return {**outcome, "clock": clock.seconds}


def write_map(competition: Competition, scene: Scene, answer: Answer, folder: Path) -> bool:
    """Write the class numbers of an answer as a COG below ``folder``; returns False for a scene without a georeference,
    of which nothing is written."""
    place = competition.georeference(scene)
    if place is None:
        return False
    (folder / MAPS).mkdir(exist_ok=True)
    colours = dict(enumerate(competition.raster_classes().values(), 1))
    cog.write_classes(folder / MAPS / file_name(scene.id), competition.class_raster(answer), place, colours)
    return True
