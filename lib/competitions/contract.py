"""What a competition is: where its scenes are, what they look like, and how an answer is scored and submitted.

A new competition is one new file with a class ``Competition`` that fulfils this contract; no other room names it.
Ids are strings; images are uint8; probabilities cross this border as uint8 *levels* (level / 255 = probability).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.tasks import Task

Answer = Any
"""What a competition wants for one scene; shaped by the competition (xView2: two masks by name)."""

Levels = Mapping[str, np.ndarray]
"""Blended probabilities of one scene: task name -> (C, H, W) uint8, level / 255 = probability."""


@dataclass(frozen=True)
class Scene:
    """The unit that gets one prediction. ``files`` maps a role ("pre", "post_label") to its path."""

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


@dataclass(frozen=True)
class Finding:
    """Something the data doctor found. ``kind`` is a short stable phrase, ``scene`` an id or a file name."""

    kind: str
    scene: str
    detail: str = ""


def summarize(findings: Iterable[Finding], names: int = 3) -> list[str]:
    """Return one line per kind of finding, in order of first appearance: how many, and the first ``names`` scenes."""
    scenes_of: dict[str, list[str]] = {}
    for finding in findings:
        scenes_of.setdefault(finding.kind, []).append(finding.scene)
    lines = []
    for kind, scenes in scenes_of.items():
        first = list(dict.fromkeys(scenes))
        more = f" and {len(first) - names} more" if len(first) > names else ""
        lines.append(f"{kind}: {len(scenes)} ({', '.join(first[:names])}{more})")
    return lines


APART = ("per_domain", "seen", "unseen")
"""Keys of chosen settings that say for which scenes other settings hold."""


def settings_for(scene: Scene, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decode settings of a scene: ``params``, and over them what holds for its domain.

    That is in ``params["per_domain"]``, or is ``params["unseen"]`` where ``params["seen"]`` does not list the domain.
    """
    common = {name: value for name, value in params.items() if name not in APART}
    if "unseen" in params and scene.domain not in params["seen"]:
        return common | dict(params["unseen"])
    return common | dict(params.get("per_domain", {}).get(scene.domain, {}))


@dataclass(frozen=True)
class Grid:
    """The decode settings a search tries: ``points[p]`` is a dict that ``decode`` accepts; ``shape`` orders them
    as a lattice (row-major) so that neighbours of a point are known to the plateau rule."""

    points: Sequence[Mapping[str, Any]]
    shape: tuple[int, ...]


class Competition(ABC):
    """One competition's data, truth, metric and submission."""

    name: str
    tasks: Mapping[str, Task]
    """Stage role ("loc", "cls") -> what its network outputs."""
    images: tuple[str, ...]
    """Names of the images of a scene ("pre", "post"); a model's config picks among them."""
    flags: tuple[str, ...]
    """Names of the yes/no facts that folds balance, in folds.csv order."""

    # ---- data -----------------------------------------------------------------------------------------
    @abstractmethod
    def scenes(self, split: str) -> list[Scene]:
        """Return the scenes of "train" (labelled, tiers merged) or "test", sorted by id; reads no pixels."""

    @abstractmethod
    def inspect(self) -> list[Finding]:
        """Read everything once and report what is missing, broken or suspicious."""

    def remarks(self) -> list[str]:
        """Return what was told from the data rather than stated, in sentences; stage 01 prints them."""
        return []

    @abstractmethod
    def read(self, scene: Scene, image: str) -> np.ndarray:
        """Read one image of a scene as (H, W, 3) uint8 RGB; for a label task its F frames, (F, H, W, 3).

        Raises DataError naming scene and file.
        """

    @abstractmethod
    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return the training target of a task: (H, W) uint8 in the form the task states, 255 = ignored."""

    @abstractmethod
    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return ``flags`` of a labelled scene (which classes it holds, whether it is empty)."""

    def published_split(self) -> dict[str, str]:
        """Return scene id -> the split the data was shipped in, for the audit; empty where there is none to check."""
        return {}

    # ---- answers --------------------------------------------------------------------------------------
    @abstractmethod
    def truth(self, scene: Scene) -> Answer:
        """Return the answer the official scorer compares with."""

    @abstractmethod
    def decode(self, levels: Levels, params: Mapping[str, Any]) -> Answer:
        """Turn one scene's blended probabilities into its answer."""

    @abstractmethod
    def defaults(self) -> dict[str, Any]:
        """Return the decode settings used where no search has run."""

    @abstractmethod
    def grid(self, axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> Grid:
        """Return the lattice of decode settings spanned by the named ``axes``; all others are as in ``fixed``."""

    @abstractmethod
    def count(self, levels: Levels, truth: Answer, grid: Grid) -> np.ndarray:
        """Count one scene for every point of the grid: (P, K) int64. Counts of scenes are added before scoring."""

    @abstractmethod
    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one decoded answer: (K,) int64; equals ``count`` at the point that decoded it."""

    @abstractmethod
    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the official score of summed counts: (..., K) int64 -> (...) float64, higher is better."""

    @abstractmethod
    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the per-part scores that no post-processing may make worse: (..., K) -> (..., S) float64."""

    @abstractmethod
    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return every named score of summed counts (K,), the official one under its official keys."""

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count what further tables need, one scene: (M,) int64, added over scenes; none by default."""
        return np.zeros(0, np.int64)

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return named further results of summed details (M,): scores, or matrices as {row: {column: count}}."""
        return {}

    @abstractmethod
    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return titled (H, W, 3) uint8 pictures for the report: the images, the truth where known, the answer."""

    # ---- submission -----------------------------------------------------------------------------------
    @abstractmethod
    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write every format the competition takes into ``folder``; return the files, streamed scene by scene."""

    @abstractmethod
    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one scene's answer back from what ``write_submission`` wrote."""

    @abstractmethod
    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a submission (a folder or a CSV file); empty when it is valid."""
