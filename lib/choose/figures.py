"""figures.json: what a report draws of a decision and decode.json does not hold; it decides nothing.

It lies beside decode.json and is written from what choosing has counted anyway: the score of every scene, the scores
around the chosen point of the search, and how often what the averages stated was found.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.choose.choice import Choice
from lib.competitions.contract import Competition, Scene
from lib.ensemble import calibration
from lib.ensemble.search import Lattice
from lib.errors import ArtifactError
from lib.files import write_json
from lib.run.manifest import read_json

FIGURES = "figures.json"
PLANES = 6
"""Pairs of axes whose scores are kept, those that move the score most."""

Bins = tuple[tuple[int, float, float], ...]
"""Per bin of the stated probability: how often, mean stated, share found."""


class SceneScore(BaseModel):
    """What one out-of-fold scene has in the score."""

    model_config = ConfigDict(frozen=True)
    id: str
    fold: int
    domain: str
    score: float
    """The official score of this scene alone."""
    without: float
    """The official score of all other scenes; above that of all where the scene drags it down."""


class Plane(BaseModel):
    """Scores over two axes, the other settings as chosen; a row per value of the first."""

    model_config = ConfigDict(frozen=True)
    axes: tuple[str, str]
    scores: list[list[float]]


class Surface(BaseModel):
    """The scores that a search saw, cut through the point it chose."""

    model_config = ConfigDict(frozen=True)
    axes: dict[str, list[Any]]
    """Axis -> the values that were tried."""
    point: dict[str, int]
    """Axis -> the place of the value that was chosen, or of the best where the choice is no point of the grid."""
    on_grid: bool
    """Whether the choice is one of the points; fixed settings that were kept need not be."""
    score: float
    """At the point."""
    best: float
    """The highest of all points."""
    plateau: float
    """Points within so much of the best count as equally good."""
    within: int
    """How many points do."""
    points: int
    profiles: dict[str, list[float]]
    """Axis -> the score at each of its values, the other settings as chosen."""
    planes: list[Plane]
    """Of the pairs of axes that move the score most, the first most of all."""


class Sure(BaseModel):
    """How reliable the averages of one task are: what they state against what was found."""

    model_config = ConfigDict(frozen=True)
    pixels: int
    """How many were counted; of a large scene those on a regular grid."""
    error: float
    """Expected calibration error, as ``Reliability.error``."""
    bins: Bins


class Figures(BaseModel):
    """The contents of figures.json."""

    model_config = ConfigDict(frozen=True)
    scenes: list[SceneScore] = []
    surface: Surface | None = None
    """None where nothing was searched, or weights were selected greedily."""
    reliability: dict[str, Sure] = Field({})
    """Task -> that of its averages, under the temperatures that are used."""

    @classmethod
    def read(cls, path: Path) -> "Figures":
        """Read figures.json; ArtifactError for a file that is missing or holds something else."""
        content = read_json(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtifactError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; to write it anew, run: "
                                "python 05_ensemble.py --split oof --force") from error  # fmt: skip

    def write(self, path: Path) -> None:
        """Write figures.json."""
        write_json(path, self.model_dump(mode="json"))


def scene_scores(
    competition: Competition, scenes: Sequence[Scene], fold_of: Mapping[str, int], counts: np.ndarray
) -> list[SceneScore]:
    """Score every scene alone, and all scenes without it. counts: (S, K) in the order of ``scenes``."""
    alone, without = competition.score(counts), competition.score(counts.sum(0) - counts)
    return [
        SceneScore(id=scene.id, fold=fold_of[scene.id], domain=scene.domain, score=round(float(own), 6),
                   without=round(float(others), 6))
        for scene, own, others in zip(scenes, np.broadcast_to(alone, len(scenes)), without, strict=True)
    ]  # fmt: skip


def surface(grid: Lattice, scores: np.ndarray, choice: Choice, plateau: float) -> Surface | None:
    """Cut the scores of a search, one per point of ``grid``, through what was chosen; None where nothing was tried.

    Where the choice is no point of the grid, since the fixed settings were kept, they are cut through the best point.
    """
    axes = {name: list(values) for name, values in grid.axes.items() if len(values) > 1}
    if not axes:
        return None
    whole, names = np.asarray(scores, np.float64).reshape(grid.shape), list(grid.axes)
    on_grid = all(choice.params.get(name) in values for name, values in grid.axes.items())
    place = (
        tuple(list(grid.axes[name]).index(choice.params[name]) for name in names)
        if on_grid
        else tuple(int(i) for i in np.unravel_index(int(whole.argmax()), whole.shape))
    )

    def cut(*free: str) -> np.ndarray:
        return whole[tuple(slice(None) if name in free else place[at] for at, name in enumerate(names))]

    planes = [Plane(axes=pair, scores=_rounded(cut(*pair))) for pair in combinations(axes, 2)]
    planes.sort(key=lambda plane: -float(np.ptp(plane.scores)))
    return Surface(
        axes=axes,
        point={name: place[names.index(name)] for name in axes},
        on_grid=on_grid,
        score=float(whole[place]),
        best=float(whole.max()),
        plateau=plateau,
        within=int((whole >= whole.max() - plateau).sum()),
        points=whole.size,
        profiles={name: _rounded(cut(name)) for name in axes},
        planes=planes[:PLANES],
    )


def reliability(counts: Mapping[str, np.ndarray]) -> dict[str, Sure]:
    """Return how reliable averages are. counts: task -> (256, 2) int64 as ``calibration.stated`` counts them."""
    found = {}
    for task, table in counts.items():
        if total := int(table.sum()):
            own = calibration.reliability({0: calibration.as_evidence(table)}, {0: 1.0})
            found[task] = Sure(pixels=total, error=own.error, bins=own.bins)
    return found


def _rounded(scores: np.ndarray) -> list:
    return np.round(scores, 6).tolist()
