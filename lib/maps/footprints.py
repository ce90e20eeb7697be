"""Given polygons get classes instead of predicted ones: outlines from OpenStreetMap, Overture, Microsoft, or a GIS.

An outline is laid over the rasters to a quarter of a pixel: each pixel counts by how much of it lies inside. What a
footprint gets is the mean of the levels over its area, and of the answer the class that has most of its area.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from lib.errors import ConfigError, DataError
from lib.maps.grid import Grid
from lib.maps.polygons import BLOCK, NO_DATA, Layers, Objects
from lib.maps.vectors import WGS84, Legend, library, moved, placed, plain, table

FINE = 4
"""A pixel is divided into FINE x FINE parts to see how much of it lies inside an outline."""
PARQUET = (".parquet", ".geoparquet")
PREFIX = "src_"
"""What the columns of the file of footprints are called by in the result."""


@dataclass(frozen=True)
class Footprints:
    """The footprints that may have a pixel of an area."""

    outlines: np.ndarray
    """(N,) shapely polygons or multipolygons in pixels of the grid."""
    given: Any
    """A GeoDataFrame of them as they were given, in the CRS of the grid, with a plain index."""
    notes: tuple[str, ...]
    """Sentences on what was left out or read differently."""


def read(path: Path, grid: Grid) -> Footprints:
    """Read the footprints whose bounding box touches a grid, from any file that GDAL reads, or from GeoParquet.

    Outlines that cross themselves are mended; what is no polygon is left out. A file that states no CRS is taken for
    longitude and latitude. Raises ConfigError for a missing library, DataError where the file cannot be read or has no
    polygon in the area.
    """
    path, notes = Path(path), []
    if not path.exists():
        raise DataError(f"{path}: expected a file of footprints (GeoJSON, GPKG, GeoParquet), found none")
    found, total = (_parquet if path.suffix.lower() in PARQUET else _vectors)(path, grid)
    if found.crs is None:
        found = found.set_crs(WGS84)
        notes.append(f"{path.name} states no CRS; it was read as longitude and latitude (WGS 84)")
    found = found[~(found.geometry.isna() | found.geometry.is_empty)].to_crs(grid.crs.to_wkt())
    shapes = np.asarray(found.geometry.array)
    valid = shapely.is_valid(shapes)
    if not valid.all():
        shapes = np.where(valid, shapes, shapely.make_valid(shapes))
        notes.append(f"{path.name}: {int((~valid).sum())} outlines that cross themselves were mended")
    flat = np.isin(shapely.get_type_id(shapes), (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON))
    parts = np.array([_surface(shape) if not plane else shape for shape, plane in zip(shapes, flat)], object)
    kept = np.array([not shape.is_empty for shape in parts], bool)
    if not kept.all():
        notes.append(f"{path.name}: {int((~kept).sum())} shapes without a surface (points, lines) were left out")
    found, parts = found[kept].reset_index(drop=True), parts[kept]
    pixels = moved(parts, ~grid.transform)
    near = shapely.intersects(pixels, shapely.box(0, 0, grid.width, grid.height)) if len(pixels) else np.zeros(0, bool)
    found, pixels = found[near].reset_index(drop=True), pixels[near]
    if not len(found):
        raise DataError(f"{path}: expected footprints within the area, found none of its {total} shapes there; is it "
                        "another place, or does the file state another CRS than it has?")  # fmt: skip
    if outside := total - len(found) - int((~kept).sum()):
        notes.append(f"{path.name}: {outside} of {total} footprints lie outside of the area and were left out")
    return Footprints(pixels, found.set_geometry(parts[near], crs=found.crs), tuple(notes))


def _vectors(path: Path, grid: Grid) -> tuple[Any, int]:
    """Read a file by GDAL, of an indexed one the rows around a grid alone; returns them and how many there are."""
    pyogrio = library("pyogrio")
    try:
        about = pyogrio.read_info(path, force_feature_count=True)
        crs = rasterio.crs.CRS.from_user_input(about["crs"] or WGS84)
        box = transform_bounds(grid.crs, crs, *grid.bounds)
        return pyogrio.read_dataframe(path, bbox=box), int(about["features"])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, rasterio.errors.CRSError) as error:
        raise DataError(f"{path}: expected footprints (GeoJSON, GPKG, GeoParquet), got {error}") from error


def _parquet(path: Path, grid: Grid) -> tuple[Any, int]:
    """Read GeoParquet; its rows outside of the grid are dropped by the caller."""
    try:
        importable = library("pyarrow")
    except ConfigError as error:
        raise ConfigError(f"{path}: GeoParquet is read with pyarrow, which is not installed; pip install pyarrow, or "
                          "convert the file to a GeoPackage") from error  # fmt: skip
    try:
        found = library("geopandas").read_parquet(path)
    except (importable.lib.ArrowInvalid, ValueError, OSError) as error:
        raise DataError(f"{path}: expected GeoParquet with a column of geometry, got {error}") from error
    return found, len(found)


def _surface(shape: shapely.Geometry) -> shapely.Geometry:
    """Return the polygons of a geometry, an empty one where it has none."""
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def measured(layers: Layers, outlines: np.ndarray, classes: int, block: int = BLOCK) -> Objects:
    """Return what the rasters hold under outlines (N,) in pixels, in parts of a pixel (1 / FINE squared of it).

    ``votes[:, 0]`` is the area in which the answer has nothing; where nothing is known counts for nothing. ``first`` is
    the place of the outline. The raster is read once, in blocks. An outline too small for a part has its pixel.
    """
    height, width = layers.shape
    votes = np.zeros((len(outlines), classes + 1), np.int64)
    sums = np.zeros((len(outlines), len(layers.levels)), np.int64)
    tree, touched = shapely.STRtree(outlines), np.zeros(len(outlines), bool)
    for top in range(0, height, block):
        for left in range(0, width, block):
            window = Window(left, top, min(block, width - left), min(block, height - top))
            wanted = np.sort(tree.query(shapely.box(left, top, left + window.width, top + window.height)))
            if not len(wanted):
                continue
            answer = layers.answer(window)
            levels = [read(window) for read in layers.levels.values()]
            for number in wanted.tolist():
                part = _part(outlines[number], window)
                if part is None:
                    continue
                rows, columns = part
                weights = _weights(outlines[number], columns.start + left, rows.start + top,
                                   (rows.stop - rows.start, columns.stop - columns.start))  # fmt: skip
                touched[number] |= bool(weights.any())
                _count(votes[number], sums[number], weights, answer[part], [plane[part] for plane in levels])
    for number in np.flatnonzero(~touched).tolist():
        point = shapely.point_on_surface(outlines[number])
        if 0 <= point.x < width and 0 <= point.y < height:
            window, weight = Window(int(point.x), int(point.y), 1, 1), np.ones((1, 1), np.int64)
            levels = [read(window) for read in layers.levels.values()]
            _count(votes[number], sums[number], weight, layers.answer(window), levels)
    return Objects(outlines, np.arange(len(outlines)), votes, sums)


def _part(outline: shapely.Geometry, window: Window) -> tuple[slice, slice] | None:
    """Return the rows and columns of a window that the bounding box of an outline touches."""
    left, top, right, bottom = np.array(outline.bounds) - np.tile([window.col_off, window.row_off], 2)
    columns = slice(max(0, int(np.floor(left))), min(window.width, int(np.ceil(right))))
    rows = slice(max(0, int(np.floor(top))), min(window.height, int(np.ceil(bottom))))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _weights(outline: shapely.Geometry, left: int, top: int, shape: tuple[int, int]) -> np.ndarray:
    """Return how many parts of each pixel of (h, w) lie inside an outline: int64, 0 .. FINE squared."""
    height, width = shape
    to_pixels = rasterio.Affine(1 / FINE, 0, left, 0, 1 / FINE, top)
    fine = rasterize([(outline, 1)], (height * FINE, width * FINE), transform=to_pixels, dtype=np.uint8)
    return fine.reshape(height, FINE, width, FINE).sum(axis=(1, 3), dtype=np.int64)


def _count(votes: np.ndarray, sums: np.ndarray, weights: np.ndarray, answer: np.ndarray,
           levels: list[np.ndarray]) -> None:  # fmt: skip
    """Add what lies under one outline to its votes (classes + 1,) and sums (levels,), in place."""
    known = answer != NO_DATA
    votes += np.bincount(answer[known], weights[known], len(votes)).astype(np.int64)
    sums += np.array([int((plane[known] * weights[known]).sum()) for plane in levels], np.int64)


def graded(found: Objects, footprints: Footprints, grid: Grid, legend: Legend) -> Any:
    """Return the footprints as a GeoDataFrame in the CRS of the grid, with the columns of ``vectors.table``, and

    ``seen``: share of its known area in which the answer has an object (0: the networks saw none there, and the class
    is the one of the highest levels); ``known``: share of its area of which anything is known; and under PREFIX the
    columns that the file had. Where nothing is known, ``class`` and all probabilities are missing.
    """
    frame = table(found, grid, legend)
    parts, size = found.votes.sum(axis=1), np.maximum(shapely.area(found.outlines) * FINE**2, 1)
    frame["pixels"] = np.round(parts / FINE**2, 2)
    frame["outline"] = "given"
    own = {name: frame[name] for name in frame.columns if name not in ("area_m2", "lon", "lat", "geometry", "event",
                                                                       "model")}  # fmt: skip
    own["seen"] = np.round(found.votes[:, 1:].sum(axis=1) / np.maximum(parts, 1), 4)
    own["known"] = np.round(np.minimum(parts / size, 1), 4)
    for name in footprints.given.columns.difference([footprints.given.geometry.name], sort=False):
        own[PREFIX + plain(name)] = footprints.given[name].to_numpy()
    result = placed(own, np.asarray(footprints.given.geometry.array), grid.crs, legend)
    unknown = parts == 0
    result.loc[unknown, ["class", "confidence", *legend.columns.values()]] = None
    return result
