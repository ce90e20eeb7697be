"""What crosses the border between competitions and the other rooms: scenes, what is found wrong with them, answers.

Ids are strings; images are uint8; probabilities are uint8 *levels* (level / 255 = probability).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.settings import some

SPLITS = ("train", "test")

Answer = Any
"""What a competition wants for one scene, in a shape of its own choice (a mask, two masks by name, a number)."""

Levels = Mapping[str, np.ndarray]
"""Blended probabilities of one scene: task role -> (C, H, W) uint8, level / 255 = probability."""

Params = Mapping[str, Any]
"""Decode settings by name, and under ``postprocess`` a chain of steps."""

Axes = Mapping[str, Sequence[Any]]
"""Decode setting -> the values that a search tries."""

Chain = Sequence[Mapping[str, Any]]
"""Post-processing steps in their order, each ``{"name": ..., <option>: <value>}``."""

Row = Sequence[str]
"""A row of a submission, all text."""

APART = ("per_domain", "seen", "unseen")
"""Keys of chosen settings that say for which scenes other settings hold."""


@dataclass(frozen=True)
class Scene:
    """The unit that gets one prediction.

    ``files`` maps a role to its path: each of the competition's ``files`` (by default its ``images``) that is there,
    and on labelled scenes each of its ``labels``. The size of a scene is that of the first of its images.
    """

    id: str
    files: Mapping[str, Path] = field(hash=False)
    domain: str = ""
    """Where it comes from (disaster event, organ, video source); scores are also given per domain."""
    position: tuple[float, float] | None = None
    """(longitude, latitude) of the centre in degrees, where known."""
    group: str = ""
    """What must never be split over folds (a video, a patient, a person); "": the scene stands alone."""
    pixel_size: float | None = None
    """Physical size of a pixel, in the competition's unit, where known."""
    source: str = ""
    """The data set that it was taken from, where that is told apart from its domain."""

    @property
    def data_source(self) -> str:
        """What ``train.sampling.sources`` goes by: the source, or else the domain."""
        return self.source or self.domain


@dataclass(frozen=True)
class Finding:
    """Something the data doctor found. ``kind`` is a short stable phrase, ``scene`` an id or a file name."""

    kind: str
    scene: str
    detail: str = ""

    def __post_init__(self) -> None:
        """Make texts printable: a name of a file may have bytes that are not UTF-8."""
        for name in ("kind", "scene", "detail"):
            object.__setattr__(self, name, getattr(self, name).encode(errors="backslashreplace").decode())


def is_text(text: str) -> bool:
    """Tell whether a text can be written, which the name of a file with bytes that are not UTF-8 cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def summarize(findings: Iterable[Finding], names: int = 3) -> list[str]:
    """Return one line per kind of finding, in order of first appearance: how many, and the first ``names`` scenes."""
    scenes_of: dict[str, list[str]] = {}
    for finding in findings:
        scenes_of.setdefault(finding.kind, []).append(finding.scene)
    lines = []
    for kind, scenes in scenes_of.items():
        lines.append(f"{kind}: {len(scenes)} ({some(list(dict.fromkeys(scenes)), names)})")
    return lines


def told(failed: Mapping[str, str], names: int = 3) -> str:
    """Say which scenes failed, scene id -> its error, and of the first ``names`` why."""
    first = [f"{scene} ({error})" for scene, error in list(failed.items())[:names]]
    return "; ".join(first) + (f"; and {len(failed) - names} more" if len(failed) > names else "")


def settings_for(scene: Scene, params: Params) -> dict[str, Any]:
    """Return the decode settings of a scene: ``params``, and over them what holds for its domain.

    That is in ``params["per_domain"]``, or is ``params["unseen"]`` where ``params["seen"]`` does not list the domain.
    """
    common = {name: value for name, value in params.items() if name not in APART}
    if "unseen" in params and scene.domain not in params["seen"]:
        return common | dict(params["unseen"])
    return common | dict(params.get("per_domain", {}).get(scene.domain, {}))
