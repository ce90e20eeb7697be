"""Where a scene lies on Earth: told by its image, or else by a label that has its outlines in pixels and in degrees."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from lib.errors import DataError
from lib.scenes import raster

IMAGE, LABEL = "image", "label"
"""Who tells a place."""
DEGREES = "EPSG:4326"
FURTHEST = 1.0
"""A label tells no place where a corner lies further than this many pixels from where its place puts it."""


@dataclass(frozen=True)
class Location:
    """Where the pixels of a scene lie."""

    crs: str
    """WKT, or as "EPSG:4326"; longitude, or east, comes first."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): the upper left corner of a pixel lies at x = a * column + b * row + c and
    y = d * column + e * row + f."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    told_by: str = IMAGE
    """IMAGE: by its georeference; LABEL: fitted to outlines."""
    residual: float = 0.0
    """How far the furthest corner of a label lies from where this place puts it, in pixels; 0 of an image."""

    @property
    def affine(self) -> rasterio.Affine:
        """Return the transform as rasterio has it."""
        return rasterio.Affine(*self.transform)

    def to_json(self) -> dict[str, Any]:
        """Return the place as a JSON object."""
        return {"crs": self.crs, "transform": list(self.transform), "size": list(self.size), "told_by": self.told_by,
                "residual": self.residual}  # fmt: skip

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> "Location":
        """Return what ``to_json`` told of. Raises KeyError, TypeError or ValueError for anything else."""
        transform, (height, width) = tuple(map(float, held["transform"])), held["size"]
        if len(transform) != 6:
            raise ValueError(f"expected 6 numbers of a transform, got {len(transform)}")
        return cls(
            str(held["crs"]), transform, (int(height), int(width)), str(held["told_by"]), float(held["residual"])
        )


def of_image(path: str | Path) -> Location | None:
    """Return the place of a georeferenced image from its header; None where it has none, or cannot be read (whoever
    reads its pixels says so)."""
    try:
        known = raster.place(path)
    except DataError:
        return None
    if known is None:
        return None
    crs, transform, size = known
    code = crs.to_authority(confidence_threshold=100)
    return Location(":".join(code) if code else crs.to_wkt(), tuple(transform)[:6], size)


def fitted(
    pixels: np.ndarray, degrees: np.ndarray, size: tuple[int, int], affine: np.ndarray | None
) -> Location | None:
    """Return the place that corners tell, (N, 2) in pixels and (N, 2) longitude and latitude, by an affine map (3, 2)
    from (x, y, 1) to degrees; None without a map, or where it leaves a corner further than FURTHEST pixels away."""
    if affine is None or len(pixels) != len(degrees) or not len(pixels) or not np.isfinite(degrees).all():
        return None
    (a, d), (b, e), (c, f) = affine.tolist()
    if not a * e - b * d:
        return None
    back = (degrees - (c, f)) @ np.linalg.inv(affine[:2])
    residual = float(np.hypot(*(back - pixels).T).max())
    return Location(DEGREES, (a, b, c, d, e, f), size, LABEL, round(residual, 4)) if residual <= FURTHEST else None
