"""Which grid an area gets: its CRS, the size of its pixels, how far it reaches; and what lies outside of it."""

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio import warp
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from shapely import affinity

from lib.errors import ConfigError, DataError
from lib.maps.grid import Grid
from lib.maps.sources import SourceFile
from lib.scenes.place import metres

DEGREES = CRS.from_epsg(4326)
NEAR = 0.05
"""An image whose pixels differ by no more than this share from the wanted ones keeps its own."""
MOST = 2**40
"""Most pixels of an area."""


@dataclass(frozen=True)
class Layout:
    """The grid of an area, and what belongs to it."""

    grid: Grid
    asked: Any
    """Where all images overlap, within the user's area: a polygon in the CRS of the grid."""
    limit: Any
    """The user's area in the CRS of the grid; None where there is none."""
    notes: list[str]
    """How the grid was chosen, and what lies outside."""


def choose(sides: Mapping[str, Sequence[SourceFile]], crs: CRS | None, pixel_size: float | None,
           trained: float | None, limit: tuple[Any, CRS] | None = None,
           moves: Mapping[str, tuple[float, float]] = MappingProxyType({}), whole: int = 1) -> Layout:  # fmt: skip
    """Choose the grid of an area.

    sides: name of an image -> its files. crs, pixel_size (metres): where they are given. trained: the side of a pixel
    in metres of the scenes that the networks were trained on, where it is known. limit: the user's area and its CRS.
    moves: name of an image -> by how much it shows things too far to the east and north, in the CRS. whole: number of
    which the sides of the grid are multiples.
    DataError where the images have no place in common, or none in the user's area.
    """
    sources = [source for own in sides.values() for source in own]
    notes: list[str] = []
    crs = _crs(sources, sides, notes) if crs is None else crs
    outlines = {}
    for name, own in sides.items():
        east, north = moves.get(name, (0.0, 0.0))
        together = shapely.union_all([source.outline(crs) for source in own])
        outlines[name] = affinity.translate(together, -east, -north)
    overlap = shapely.intersection_all(list(outlines.values()))
    if overlap.area <= 0:
        raise DataError(f"{' and '.join(outlines)}: expected images of one place, got images without a common pixel ("
                        + "; ".join(f"{name} at {_centre(one, crs)}" for name, one in outlines.items())
                        + "); pair the files that show one place")  # fmt: skip
    within = None if limit is None else _moved(*limit, crs)
    asked = overlap if within is None else shapely.intersection(overlap, within)
    if asked.area <= 0:
        raise DataError(f"--aoi: expected a polygon where the images overlap (around {_centre(overlap, crs)}), got one "
                        f"around {_centre(within, crs)}; degrees are longitude, latitude")  # fmt: skip
    for name, one in outlines.items():
        outside = shapely.difference(one, overlap)
        if len(outlines) > 1 and (area := square_kilometres(outside, crs)) >= 0.0001:
            others = " and ".join(other for other in outlines if other != name)
            notes.append(f"{area:.4f} km2 that {name} shows lie outside of what {others} shows; they have no result")
    inside = "" if within is None else f", {square_kilometres(asked, crs):.4f} km2 of them within --aoi"
    notes.append(f"all images overlap on {square_kilometres(overlap, crs):.4f} km2{inside}")
    grid = _grid(sides, crs, asked, pixel_size, trained, notes)
    height, width = (-(-side // whole) * whole for side in grid.shape)
    return Layout(Grid(crs, grid.transform, width, height), asked, within, notes)


def _crs(sources: Sequence[SourceFile], sides: Mapping[str, Sequence[SourceFile]], notes: list[str]) -> CRS:
    """Return the CRS of the files where one of them is in metres, else the UTM zone of the middle of their overlap."""
    metric = list(dict.fromkeys(source.crs for source in sources if _is_metric(source.crs)))
    if len(metric) == 1:
        notes.append(f"coordinate system: {_name(metric[0])}, that of the files in metres")
        return metric[0]
    outlines = [shapely.union_all([source.outline(DEGREES) for source in own]) for own in sides.values()]
    shared = shapely.intersection_all(outlines)
    middle = (shared if shared.area > 0 else outlines[0]).centroid
    zone = min(60, int((middle.x + 180) // 6) + 1)
    chosen = CRS.from_epsg((32600 if middle.y >= 0 else 32700) + zone)
    notes.append(f"coordinate system: {_name(chosen)}, the UTM zone of the middle")
    return chosen


def _is_metric(crs: CRS) -> bool:
    """Tell whether a unit of a CRS is a metre on the ground, which it is not in Web Mercator."""
    return bool(crs.is_projected) and crs.linear_units_factor[1] == 1.0 and crs.to_epsg() != 3857


def _name(crs: CRS) -> str:
    code = crs.to_epsg()
    title = re.match(r'\w+\["([^"]+)"', crs.to_wkt())
    return (title[1] if title else "unnamed") + (f" (EPSG:{code})" if code else "")


def _grid(sides: Mapping[str, Sequence[SourceFile]], crs: CRS, asked: Any, pixel_size: float | None,
          trained: float | None, notes: list[str]) -> Grid:  # fmt: skip
    """Choose the pixels of an area and lay them over what is asked for."""
    *_, last = sides.values()
    own = median([(source.pixel[0] * source.pixel[1]) ** 0.5 for source in last])
    wanted = pixel_size or trained or own
    why = "as given" if pixel_size else "as in the scenes that the networks were trained on" if trained else (
        f"as in {[*sides][-1]}")  # fmt: skip
    sources = [source for held in sides.values() for source in held]
    near = [source for source in sources if source.crs == crs and _straight(source)
            and all(abs(side / wanted - 1) <= NEAR for side in source.pixel)]  # fmt: skip
    kept = near[0] if near and not pixel_size else None
    left, bottom, right, top = asked.bounds
    if kept is not None:  # its pixels stay where they are
        wide, high = kept.transform.a, -kept.transform.e
        x0, y0 = kept.transform.c, kept.transform.f
        why = f"those of {kept.path}"
    elif _is_metric(crs):
        wide = high = wanted
        x0 = y0 = 0.0
    else:
        middle = asked.centroid
        unit = metres(crs, rasterio.Affine(1e-6, 0, middle.x, 0, -1e-6, middle.y))
        wide, high = wanted * 1e-6 / unit[0], wanted * 1e-6 / unit[1]
        x0 = y0 = 0.0
    first, last_column = np.floor((left - x0) / wide + 1e-4), np.ceil((right - x0) / wide - 1e-4)
    upper, lower = np.floor((y0 - top) / high + 1e-4), np.ceil((y0 - bottom) / high - 1e-4)
    width, height = max(1, int(last_column - first)), max(1, int(lower - upper))
    if width * height > MOST:
        raise ConfigError(f"--pixel-size: expected an area of at most {MOST:.1e} pixels, got {width} x {height}; are "
                          "the pixels in metres?")  # fmt: skip
    transform = rasterio.Affine(wide, 0, x0 + first * wide, 0, -high, y0 - upper * high)
    grid = Grid(crs, transform, width, height)
    side = (grid.pixel_area) ** 0.5
    notes.append(f"{width} x {height} pixels of {side:.3f} m ({why}); the images have "
                 + ", ".join(f"{name} {_sizes(held)}" for name, held in sides.items()))  # fmt: skip
    return grid


def _straight(source: SourceFile) -> bool:
    return source.transform.is_rectilinear and source.transform.a > 0 and source.transform.e < 0


def _sizes(sources: Sequence[SourceFile]) -> str:
    found = sorted({f"{source.pixel[0]:.2f} x {source.pixel[1]:.2f} m" for source in sources})
    return " and ".join(found[:3]) + (", ..." if len(found) > 3 else "")


def _centre(geometry: Any, crs: CRS) -> str:
    """Write where the middle of a geometry is, in degrees."""
    middle = _moved(geometry.centroid, crs, DEGREES)
    return f"{middle.x:.5f}, {middle.y:.5f}"


def _moved(geometry: Any, crs: CRS, target: CRS) -> Any:
    """Return a geometry in another CRS."""
    if crs == target:
        return geometry
    return shapely.geometry.shape(warp.transform_geom(crs, target, shapely.geometry.mapping(geometry)))


def square_kilometres(geometry: Any, crs: CRS) -> float:
    """Return the area of a geometry on the ground, in an equal-area projection around its middle."""
    if geometry.is_empty:
        return 0.0
    middle = _moved(geometry.centroid, crs, DEGREES)
    local = CRS.from_proj4(f"+proj=laea +lat_0={middle.y:.6f} +lon_0={middle.x:.6f} +datum=WGS84 +units=m")
    return float(_moved(geometry, crs, local).area) / 1e6


# ---- the user's area ----------------------------------------------------------------------------------
def read_limit(text: str) -> tuple[Any, CRS]:
    """Return the polygons of ``--aoi`` as one, and their CRS: a file (GeoJSON, GeoPackage, Shapefile), or WKT, in
    longitude and latitude unless it begins with ``SRID=...;``. ConfigError where that holds no polygon."""
    path = Path(text) if len(text) < 4000 and "(" not in text else None
    try:
        if path is None:
            srid = re.match(r"\s*SRID=(\d+);", text, re.IGNORECASE)
            found, crs = [shapely.from_wkt(text[srid.end() :] if srid else text)], CRS.from_epsg(int(srid[1]) if srid else 4326)  # noqa: E501  # fmt: skip
        elif path.suffix.lower() in (".geojson", ".json"):
            found, crs = _geojson(json.loads(path.read_text(encoding="utf-8")))
        else:
            found, crs = _by_pyogrio(path)
    except (OSError, ValueError, KeyError, TypeError, CRSError, RasterioError, shapely.errors.ShapelyError) as error:
        raise ConfigError(f"--aoi {text[:80]}: expected a file of polygons (GeoJSON, GeoPackage) or WKT such as "
                          f"'POLYGON ((...))', got {error}") from error  # fmt: skip
    polygons = [shapely.make_valid(one) for one in found if one is not None and one.area > 0]
    if not polygons:
        raise ConfigError(f"--aoi {text[:80]}: expected polygons, found none in it")
    return shapely.union_all(polygons), crs


def _geojson(held: dict[str, Any]) -> tuple[list[Any], CRS]:
    named = held.get("crs", {}).get("properties", {}).get("name")  # before RFC 7946 files could say it
    features = held["features"] if held["type"] == "FeatureCollection" else [held]
    shapes = [feature["geometry"] if feature["type"] == "Feature" else feature for feature in features]
    return [shapely.geometry.shape(one) for one in shapes if one], CRS.from_user_input(named or 4326)


def _by_pyogrio(path: Path) -> tuple[list[Any], CRS]:
    try:
        pyogrio = importlib.import_module("pyogrio")
    except ModuleNotFoundError as error:
        raise ConfigError(f"--aoi {path}: files other than GeoJSON are read by pyogrio, which is not installed; "
                          "pip install -r requirements-maps.txt, or give GeoJSON") from error  # fmt: skip
    try:
        meta, _, geometries, _ = pyogrio.raw.read(path)
    except pyogrio.errors.DataSourceError as error:
        raise ValueError(str(error)) from error
    return list(shapely.from_wkb(geometries)), CRS.from_user_input(meta["crs"] or 4326)
