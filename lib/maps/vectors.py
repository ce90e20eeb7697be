"""Objects as rows of a table with a place on Earth, written to a GeoPackage and to GeoJSON as they are found.

Both files are written by pyogrio, batch by batch, so that a country does not fill the memory. GeoJSON is that of RFC
7946: longitude and latitude in WGS 84 with 7 digits (1 cm).
"""

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import rasterio
import shapely

from lib.errors import ConfigError
from lib.files import whole_file, whole_path
from lib.maps.area_file import Area
from lib.maps.grid import Grid
from lib.maps.outlines import outlined
from lib.maps.polygons import Objects
from lib.scenes.place import applied

OBJECTS, CELLS, AREA = "objects", "cells", "area"
"""Layers of the GeoPackage."""
DISAGREEMENT = "disagreement"
DIGITS = 7
BATCH = 5000
"""Rows that are gathered before they are written."""
WGS84 = "EPSG:4326"


def library(name: str) -> Any:
    """Return an optional library. Raises ConfigError that names the file with which it is installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"maps: expected {name}, which is not installed; pip install -r requirements-maps.txt"
                          ) from error  # fmt: skip


@dataclass(frozen=True)
class Legend:
    """What the numbers of objects mean, and where they come from."""

    classes: Sequence[str]
    """Names of the class numbers from 1."""
    colours: Mapping[str, str]
    """Class name -> "#rrggbb"."""
    levels: Sequence[str]
    """Names of the columns of ``Objects.sums``; DISAGREEMENT is no probability but the spread of the networks."""
    event: str = ""
    model: str = ""

    @classmethod
    def of(cls, area: Area) -> "Legend":
        """Return the legend of a finished area."""
        levels = [*area.levels, *([DISAGREEMENT] if area.disagreement else [])]
        return cls(area.classes, area.colours, levels, area.event, area.model)

    @property
    def columns(self) -> dict[str, str]:
        """Return the name of each level -> its column."""
        return {name: name if name == DISAGREEMENT else f"p_{plain(name)}" for name in self.levels}


def plain(name: str) -> str:
    """Return the name of a class as the name of a column, which a GIS need not quote: letters, digits, low lines."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def table(found: Objects, grid: Grid, legend: Legend, outlines: str = "pixels") -> Any:
    """Return objects as a GeoDataFrame in the CRS of their grid, a row for each.

    Columns: ``id``; ``class``, the one that most pixels of the object have in the answer, where thresholds and class
    weights have been applied (of equal ones the one with the higher levels); ``p_<class>``, the mean of the levels of
    each class over the object's pixels, 0..1; ``confidence``, the probability of the object's class, missing where its
    levels are not known; ``disagreement``, the mean spread of the networks, 0..1, where there are several; ``pixels``;
    ``area_m2`` of the outline on the ellipsoid; ``lon`` and ``lat`` of its centroid in degrees; ``outline``, how it was
    drawn (``outlines.HOW``); ``event`` and ``model``.
    """
    count = len(found)
    means = found.sums / np.maximum(found.pixels, 1)[:, None] / 255  # (N, levels)
    best = chosen(found, legend)
    frame: dict[str, Any] = {"id": found.first, "class": np.array([*legend.classes], object)[best]}
    place = {name: number for number, name in enumerate(legend.levels)}
    known = np.array([place.get(name, -1) for name in legend.classes])[best] if count else np.zeros(0, int)
    confidence = np.full(count, np.nan)
    confidence[known >= 0] = means[np.flatnonzero(known >= 0), known[known >= 0]]
    frame["confidence"] = np.round(confidence, 4)
    for (_, column), values in zip(legend.columns.items(), means.T):
        frame[column] = np.round(values, 4)
    shapes, how = outlined(found.outlines, outlines, grid.pixel if outlines != "pixels" else (1.0, 1.0))
    frame |= {"pixels": found.pixels, "outline": how.astype(object)}
    return placed(frame, moved(shapes, grid.transform), grid.crs, legend)


def chosen(found: Objects, legend: Legend) -> np.ndarray:
    """Return the place in ``legend.classes`` of the class that most pixels of each object have, (N,) int64; of equal
    ones that with the higher levels, then the first."""
    votes = found.votes[:, 1:]
    place = {name: number for number, name in enumerate(legend.levels)}
    sums = np.stack([found.sums[:, place[name]] if name in place else np.zeros(len(found), np.int64)
                     for name in legend.classes], axis=1)  # fmt: skip
    return np.where(votes == votes.max(axis=1, keepdims=True), sums, -1).argmax(axis=1)


def placed(frame: dict[str, Any], shapes: np.ndarray, crs: rasterio.crs.CRS, legend: Legend) -> Any:
    """Return columns and outlines (N,) in a CRS as a GeoDataFrame, with area, centroid, event and model."""
    geopandas = library("geopandas")
    found = geopandas.GeoDataFrame(frame, geometry=shapes, crs=crs.to_wkt())
    degrees = found.geometry.to_crs(WGS84).array
    centres = shapely.get_coordinates(shapely.centroid(np.asarray(degrees)))
    extra = {"area_m2": np.round(areas(np.asarray(degrees)), 2), "lon": np.round(centres[:, 0], DIGITS),
             "lat": np.round(centres[:, 1], DIGITS), "event": legend.event, "model": legend.model}  # fmt: skip
    return found.assign(**extra)[[*frame, *extra, "geometry"]]


def areas(polygons: np.ndarray) -> np.ndarray:
    """Return the area of polygons in longitude and latitude on the ellipsoid of WGS 84, (N,) float64 in square metres.

    Sides are geodesics; holes are taken off.
    """
    geod = library("pyproj").Geod(ellps="WGS84")
    return np.array([sum(abs(geod.geometry_area_perimeter(shapely.Polygon(part.exterior))[0])
                         - sum(abs(geod.geometry_area_perimeter(shapely.Polygon(hole))[0]) for hole in part.interiors)
                         for part in shapely.get_parts(polygon)) for polygon in polygons], float)  # fmt: skip


def moved(shapes: np.ndarray, transform: rasterio.Affine) -> np.ndarray:
    """Bring shapes (N,) from pixels into the coordinates of a transform."""
    return shapely.transform(shapes, lambda points: applied(transform, points)) if len(shapes) else shapes


class Writer:
    """A GeoPackage and a GeoJSON file that are being written; ``opened`` gives one."""

    def __init__(self, package: Path, stream: IO[bytes]):
        self.package, self.rows = package, 0
        self._stream, self._held, self._started = stream, [], False  # type: ignore[var-annotated]

    def add(self, frame: Any) -> None:
        """Write rows of objects; all of one file have the same columns and CRS."""
        self._held.append(frame)
        if not self._started or sum(map(len, self._held)) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if not self._held:
            return
        frame = pd.concat(self._held) if len(self._held) > 1 else self._held[0]
        self._held = []
        write_layer(self.package, OBJECTS, frame, append=self._started)
        self._started = True
        for line in lines(frame):
            self._stream.write((b",\n" if self.rows else b"\n") + line)
            self.rows += 1


@contextmanager
def opened(package: Path, geojson: Path) -> Iterator[Writer]:
    """Open both files for writing; they get their names when the block has ended well."""
    with whole_path(package) as partial, whole_file(geojson, "wb") as stream:
        stream.write(b'{"type": "FeatureCollection", "features": [')
        writer = Writer(partial, stream)
        yield writer
        writer.flush()
        stream.write(b"\n]}\n")


def lines(frame: Any) -> list[bytes]:
    """Return the rows of a GeoDataFrame as GeoJSON features (RFC 7946), a text without a line end each."""
    if not len(frame):
        return []
    held = BytesIO()
    with quiet():
        library("pyogrio").write_dataframe(frame.to_crs(WGS84), held, driver="GeoJSONSeq", geometry_type=None,
                                           layer_options={"COORDINATE_PRECISION": str(DIGITS)})  # fmt: skip
    return held.getvalue().splitlines()


def write_layer(package: Path, layer: str, frame: Any, append: bool = False) -> None:
    """Write a layer of multipolygons of a GeoPackage, or add rows to it; a frame without geometry is a table."""
    options: dict[str, Any] = (
        {"geometry_type": "MultiPolygon", "promote_to_multi": True} if hasattr(frame, "crs") else {}
    )
    with quiet():
        library("pyogrio").write_dataframe(frame, package, layer=layer, driver="GPKG", append=append, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Let GDAL not remark that a file has the name of one that is being written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*extension.*")
        yield
