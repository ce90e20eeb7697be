"""Stage 04 on several machines: other workers predict scenes of a unit that its owner predicts, too, and seals.

The owner, the ordinary command, goes over the scenes from the first to the last and finds those that are there already.
Part I of N takes every Nth scene that is not there, from the last one on, so that they meet somewhere in the middle and
nobody waits for anybody. A scene that two of them predict at the same time is the only work that is done twice.

A scene's files are written in a folder of this process's own, and get their names in the unit's folder by links. A link
replaces nothing: what the owner seals is never exchanged afterwards, and nothing half-written lies there.
"""

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from lib.competitions.contract import Scene
from lib.errors import ArtifactError, ConfigError
from lib.run.artifacts import Unit
from lib.run.cli import Run, say
from lib.run.executor import Pool
from lib.run.graph import LOGITS
from lib.scenes.probs import levels_path
from lib.stages.predict import open_pool, passed, scenes_of

OWN = ".parts"
"""Below an experiment's folder: where parts write before they give."""
PATIENCE = 60.0
"""Seconds to wait for another process that is about to begin the unit."""


def read(text: str) -> tuple[int, int]:
    """Return I and N of "I/N", 1 <= I <= N. Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--part {text}: expected I/N, part I of N with I from 1 to N, as 2/4")
    return number, count


def give(run: Run, part: str) -> None:
    """Predict a part of the scenes of all units that the flags ask for and that are not finished."""
    number, count = read(part)
    with contextlib.ExitStack() as stack:
        pool = None
        for units in run.predictions():
            for unit in units:
                if run.store.status(unit) in ("done", "frozen"):
                    say(f"{unit.key}: finished, nothing to help with")
                    continue
                for needed in unit.upstream:
                    run.store.require(needed)
                pool = pool or stack.enter_context(open_pool(run))
                given, failed = _give(run, unit, pool, number, count)
                said = f"; {failed} could not be predicted and are left to the owner" if failed else ""
                say(f"{unit.key}: part {number} of {count} has given {given} scenes{said}")


def _give(run: Run, unit: Unit, pool: Pool, number: int, count: int) -> tuple[int, int]:
    """Predict one part of a unit; returns how many scenes it gave, and how many failed."""
    folder = begin(run, unit)
    _, _, name, place, _ = unit.key.split("/")
    fold, logits = int(place.removeprefix("fold")), unit.name == LOGITS
    asked = run.config.predict.tta_sets
    sets = asked[-1:] if logits else asked
    scenes = scenes_of(run, unit.name, fold)
    files = {scene.id: [levels_path(Path(), sets, views, scene.id) for views in sets] for scene in scenes}
    left = [scene for scene in reversed(scenes) if not there(folder, files[scene.id])][number - 1 :: count]
    pool.each("load", run, name, fold)
    given = failed = 0
    (run.store.root / OWN).mkdir(exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=run.store.root / OWN, prefix=unit.key.replace("/", "__") + "."))

    def waiting() -> Iterator[Scene]:
        for scene in left:
            if not folder.is_dir():
                return
            if not there(folder, files[scene.id]):
                yield scene

    try:
        with closing(passed(pool, waiting(), own, logits)) as outcomes:
            for outcome in outcomes:
                if outcome.error:
                    failed += 1
                elif not publish(own, folder, files[outcome.scene]):
                    break
                else:
                    given += 1
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return given, failed


def begin(run: Run, unit: Unit) -> Path:
    """Return the folder that a unit is built in; waits a while for a process that is about to begin it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return run.store.begin(unit)
        except ArtifactError as error:
            if "is being built by" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.2)


def there(folder: Path, names: Sequence[Path]) -> bool:
    """Tell whether all files of a scene are in a folder."""
    return all((folder / name).exists() for name in names)


def publish(own: Path, folder: Path, names: Sequence[Path]) -> bool:
    """Give a scene's files their names in the unit's folder, where it has none; False where that folder is no more.

    It is no more when the owner has sealed it, for then every scene was there.
    """
    try:
        for name in names:
            target = folder / name
            if target.parent != folder:
                target.parent.mkdir(exist_ok=True)
            try:
                os.link(own / name, target)
            except FileExistsError:
                pass
            except FileNotFoundError:
                raise
            except OSError:  # a disk without hard links
                if not target.exists():
                    os.replace(own / name, target)
            (own / name).unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True
