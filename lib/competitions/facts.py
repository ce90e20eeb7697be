"""What the label of a scene says, remembered on disk from one stage to the next.

Every stage lists the scenes that can be used, and whether a scene can be is written in its label. Reading thousands of
labels takes longer than all else that a stage with nothing to do has to do.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib import files
from lib.scenes import raster


@dataclass(frozen=True)
class Facts:
    """What the label of a scene says; every value is one that JSON holds."""

    flags: Mapping[str, bool] = field(default_factory=dict)
    """The competition's ``flags`` of the scene."""
    position: tuple[float, float] | None = None
    """(longitude, latitude) of the centre in degrees, where known."""
    error: str = ""
    """Why the scene cannot be used; empty if it can."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else a competition wants to know of a scene without reading it again."""


class Memo:
    """Facts in a JSON file, each with the names, sizes and times of the files that it was read from.

    An entry whose files changed is not given out. A memo of another competition or of other options, or one that
    cannot be read, counts as empty and is written anew; one that cannot be written is done without.
    """

    def __init__(self, path: Path, owner: str):
        """``owner``: the competition and its options, on which facts depend as well."""
        self._path, self._owner = Path(path), owner
        self._old: dict[str, Any] = {}
        self._used: dict[str, Any] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            held = files.read_json(self._path)
            self._old = dict(held["scenes"]) if held["owner"] == owner else {}

    def get(self, key: str, state: list[Any]) -> Facts | None:
        """Return the facts that were read from files of this state, None where there are none."""
        with suppress(KeyError, TypeError, ValueError):
            entry = self._old[key]
            if entry["state"] != state:
                return None
            position = entry["position"] and (float(entry["position"][0]), float(entry["position"][1]))
            self._used[key] = entry
            return Facts(dict(entry["flags"]), position, "", dict(entry["more"]))
        return None

    def put(self, key: str, state: list[Any], facts: Facts) -> None:
        """Remember facts; those of a scene that cannot be used are read anew each time, in case it was mended."""
        if not facts.error:
            self._used[key] = {"state": state, **asdict(facts)}

    def save(self) -> None:
        """Write the entries that were asked for, unless they are what the file holds."""
        if self._used != self._old:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(self._path, json.dumps({"owner": self._owner, "scenes": self._used}).encode())
            self._old = dict(self._used)


def state_of(paths: list[Path]) -> list[Any]:
    """Return size and time of each file, of a folder those of all files in it, None for one that is not there."""
    found: list[Any] = []
    for path in paths:
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else [path, *raster.with_image(path)]
            found += [[file.name, (state := file.stat()).st_size, files.time_of(state)] for file in inside]
        except OSError:
            found.append(None)
    return found
