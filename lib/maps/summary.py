"""How many objects of each class there are and what area they cover, in all and per cell of a square grid."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from lib.files import whole_file
from lib.maps.grid import Grid
from lib.maps.vectors import DIGITS, WGS84, library, moved, plain

ALL = "all"
"""Class name under which all classes together stand."""


@dataclass
class Summary:
    """Counts of the objects that were added; what is added twice counts twice."""

    grid: Grid
    classes: Sequence[str]
    cell: float
    """Side of a cell in metres; it is rounded to whole pixels of the grid, whose upper left corner is a cell's."""
    objects: np.ndarray = field(init=False)
    areas: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        wide, high = self.grid.pixel
        self.size = max(1, round(self.cell / wide)), max(1, round(self.cell / high))  # columns, rows of a cell
        self.objects, self.areas = np.zeros(len(self.classes), np.int64), np.zeros(len(self.classes))
        self._cells: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros((2, len(self.classes))))

    def add(self, classes: np.ndarray, areas: np.ndarray, centres: np.ndarray) -> None:
        """Count objects. classes: (N,) places in ``classes``, -1 of none, which is not counted; areas: (N,) in square
        metres; centres: (N, 2) column and row of the grid. The centre says in which cell an object is counted."""
        known = classes >= 0
        classes, areas, centres = classes[known], areas[known], centres[known]
        np.add.at(self.objects, classes, 1)
        np.add.at(self.areas, classes, areas)
        columns, rows = np.floor(centres / self.size).astype(np.int64).T
        for row, column, one, area in zip(rows.tolist(), columns.tolist(), classes.tolist(), areas.tolist()):
            self._cells[row, column][:, one] += (1, area)

    def table(self) -> pd.DataFrame:
        """Return a row for each class, and one for all: class, objects, share of the objects, area_m2."""
        total = max(int(self.objects.sum()), 1)
        rows = [(name, int(count), count / total, area) for name, count, area
                in zip(self.classes, self.objects, self.areas)]  # fmt: skip
        rows.append((ALL, int(self.objects.sum()), float(self.objects.sum() > 0), float(self.areas.sum())))
        found = pd.DataFrame(rows, columns=["class", "objects", "share", "area_m2"])
        return found.round({"share": 4, "area_m2": 1})

    def cells(self) -> Any:
        """Return a GeoDataFrame of the cells that have objects, in the CRS of the grid.

        Columns: ``cell`` ("row-column"), ``objects``, ``area_m2``, ``lon`` and ``lat`` of the centre, and of each class
        ``n_<class>`` and ``area_<class>``.
        """
        geopandas = library("geopandas")
        keys = sorted(self._cells)
        held = np.stack([self._cells[key] for key in keys]) if keys else np.zeros((0, 2, len(self.classes)))
        wide, high = self.size
        boxes = np.array([shapely.box(c * wide, r * high, min((c + 1) * wide, self.grid.width),
                                      min((r + 1) * high, self.grid.height)) for r, c in keys], object)  # fmt: skip
        shapes = moved(boxes, self.grid.transform)
        frame: dict[str, Any] = {"cell": [f"{row}-{column}" for row, column in keys],
                                 "objects": held[:, 0].sum(axis=1).astype(np.int64),
                                 "area_m2": np.round(held[:, 1].sum(axis=1), 1)}  # fmt: skip
        for number, name in enumerate(self.classes):
            frame[f"n_{plain(name)}"] = held[:, 0, number].astype(np.int64)
            frame[f"area_{plain(name)}"] = np.round(held[:, 1, number], 1)
        found = geopandas.GeoDataFrame(frame, geometry=shapes, crs=self.grid.crs.to_wkt())
        centres = shapely.get_coordinates(shapely.centroid(np.asarray(found.geometry.to_crs(WGS84).array)))
        found.insert(3, "lon", np.round(centres[:, 0], DIGITS))
        found.insert(4, "lat", np.round(centres[:, 1], DIGITS))
        return found


def write_csv(path: Path, frame: Any) -> None:
    """Write a table as CSV, without geometry."""
    with whole_file(path) as stream:
        pd.DataFrame(frame.drop(columns="geometry", errors="ignore")).to_csv(stream, index=False, lineterminator="\n")
