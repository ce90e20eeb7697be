"""Write small invented data sets in a competition's native layout: the embedded demo, and what the tests run on.

Each is drawn by the module of the competition's name and read through the same adapter as real data.
``python -m lib.competitions.synthetic xview2 FOLDER`` writes one.
"""

import csv
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lib.errors import ConfigError
from lib.files import read_json

VERSION = 2
"""Raised when a set's pictures or labels change, so that an older set on disk is not taken for this one."""


def names() -> list[str]:
    """Return the competitions that have an embedded set."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def write(
    competition: str, root: Path, *, scenes: int = 12, test_scenes: int = 4, size: int = 1024, seed: int = 7
) -> None:
    """Write ``scenes`` labelled and ``test_scenes`` unlabelled scenes of about ``size`` pixels under ``root``, once.

    The set is drawn in a folder beside ``root`` and renamed when whole; ``synthetic.json`` in it holds its parameters.
    A whole set with the same parameters is left alone. On one machine equal parameters give equal bytes. ConfigError
    for an unknown competition, impossible parameters, or when ``root`` holds something else.
    """
    if competition not in names():
        raise ConfigError(f"synthetic data: expected one of {', '.join(names())}, got {competition!r}")
    if min(scenes, test_scenes) < 0 or size < 64:
        raise ConfigError(
            "synthetic data: expected scene counts of at least 0 and a size of at least 64, "
            f"got scenes {scenes}, test_scenes {test_scenes}, size {size}"
        )
    root = Path(root)
    wanted = {
        "competition": competition,
        "scenes": scenes,
        "test_scenes": test_scenes,
        "size": size,
        "seed": seed,
        "version": VERSION,
    }
    if _is_there(root, wanted):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.partial.", dir=root.parent))
    partial.chmod(0o755)
    try:
        drawn = importlib.import_module(f"lib.competitions.synthetic.{competition}")
        drawn.write(partial, scenes=scenes, test_scenes=test_scenes, size=size, seed=seed)
        (partial / "synthetic.json").write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        try:
            os.rename(partial, root)  # onto nothing, or an empty folder
        except OSError:  # another process was faster
            if not _is_there(root, wanted):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table of a set, the header first."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _is_there(root: Path, wanted: dict) -> bool:
    """Tell whether ``root`` already is the wanted set; ConfigError if it is anything but absent or empty."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = dict(read_json(root / "synthetic.json"))
    except (OSError, ValueError, TypeError):
        raise ConfigError(
            f"{root}: expected a set of synthetic data or nothing, got something else; name another folder"
        ) from None
    differing = [f"{k} {found.get(k)!r} instead of {value!r}" for k, value in wanted.items() if found.get(k) != value]
    if differing:
        raise ConfigError(
            f"{root}: expected synthetic data with these parameters, got {', '.join(differing)}; "
            "delete the folder or name another one"
        )
    return True
