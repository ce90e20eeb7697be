"""Whether two georeferenced images show one place: their footprints are brought into the CRS of the first. How large a
pixel is in metres."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio import warp
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from lib.errors import DataError
from lib.files import State, file_state
from lib.scenes import raster
from lib.scenes.bands import Remark

APART = 3.0
"""Corners further apart than this many pixels are remarked."""
SCALE = 0.02
"""So is a pixel larger or smaller than the other by more than this share."""


@dataclass(frozen=True)
class Offset:
    """How the second of two images lies on the first."""

    pixels: float
    """The largest distance of two corresponding corners, in pixels of the first."""
    scale: tuple[float, float]
    """(width, height) of a pixel of the second, in pixels of the first."""
    overlap: float
    """Share of the first that the second covers too."""


def offset(first: str | Path, second: str | Path) -> Offset | None:
    """Compare where two images lie; None where one of them does not say or cannot be read, or has a CRS that cannot be
    transformed."""
    return _offset(file_state(first), file_state(second))


@lru_cache(maxsize=4096)
def _offset(first: State, second: State) -> Offset | None:
    """Compare the files as they are now; every read of a pair asks for it."""
    try:
        ours, theirs = raster.place(first[0]), raster.place(second[0])
    except DataError:
        return None  # whoever reads that image says so
    if ours is None or theirs is None:
        return None
    (crs, transform, (height, width)), (other, to_other, (rows, columns)) = ours, theirs
    corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], float)
    try:
        world = warp.transform(other, crs, *applied(to_other, corners).T)
    except (RasterioError, rasterio.errors.CRSError, ValueError):
        return None
    mapped = applied(~transform, np.column_stack(world[:2]))  # (4, 2) in pixels of the first
    if not np.isfinite(mapped).all():
        return Offset(np.inf, (np.nan, np.nan), 0.0)
    box, there = shapely.box(0, 0, width, height), shapely.convex_hull(shapely.MultiPoint(mapped))
    own = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    sides = np.hypot(*(mapped[[1, 3]] - mapped[[0, 0]]).T) / (columns, rows)
    return Offset(
        float(np.hypot(*(mapped - own).T).max()),
        (float(sides[0]), float(sides[1])),
        float(shapely.area(shapely.intersection(box, there)) / box.area),
    )


def remarks(first: str | Path, second: str | Path) -> list[Remark]:
    """Return what is to be said of where a pair lies: nothing where both lie on one grid or one of them is nowhere."""
    found = offset(first, second)
    if found is None:
        return []
    said = []
    if max(abs(side - 1) for side in found.scale) > SCALE:
        sides = " x ".join(f"{side:.2f}" for side in found.scale)
        said.append(Remark("pre and post differ in pixel size", f"a pixel of post is {sides} pixels of pre"))
    if found.pixels > APART:
        detail = f"corners are up to {found.pixels:.1f} pixels apart, {found.overlap:.0%} of pre is in post"
        said.append(Remark("pre and post lie apart", detail))
    return said


def refuse_apart(first: str | Path, second: str | Path) -> None:
    """Raise DataError for a pair of which no pixel shows one place, by what both files say of where they lie."""
    found = offset(first, second)
    if found is not None and not found.overlap > 0:
        raise DataError(f"{second}: expected the place of {first}, got another that has nothing in common with it; "
                        "pair the images that show one place, or mend their georeference")  # fmt: skip


def metres(crs: CRS, transform: rasterio.Affine, at: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Return (width, height) in metres of a pixel at (column, row) of a raster.

    It is measured in a transverse Mercator projection that is centred there, whose scale is 1 in its centre: so units
    of the CRS and the scale of Web Mercator do not matter.
    """
    column, row = at
    east, north = applied(transform, np.array([(column, row), (column + 1, row), (column, row + 1)], float)).T
    longitude, latitude = warp.transform(crs, CRS.from_epsg(4326), east[:1], north[:1])[:2]
    local = CRS.from_proj4(f"+proj=tmerc +lat_0={latitude[0]:.9f} +lon_0={longitude[0]:.9f} +k=1 +datum=WGS84 +units=m")
    x, y = (np.asarray(axis) for axis in warp.transform(crs, local, east, north)[:2])
    return float(np.hypot(x[1] - x[0], y[1] - y[0])), float(np.hypot(x[2] - x[0], y[2] - y[0]))


def applied(transform: rasterio.Affine, points: np.ndarray) -> np.ndarray:
    """Map points (N, 2), as (column, row), by an affine transform."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return np.column_stack([a * points[:, 0] + b * points[:, 1] + c, d * points[:, 0] + e * points[:, 1] + f])
