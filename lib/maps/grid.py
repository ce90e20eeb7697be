"""The grid that all rasters of an area share: where its pixels lie on Earth."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window

from lib.scenes.place import applied, metres

BLOCK = 256
"""Sides in pixels of the cells in which an area is read and written; windows are whole cells."""


@dataclass(frozen=True)
class Grid:
    """Square or oblong pixels in a CRS, north up: pixel (row, column) -> ``transform * (column, row)``."""

    crs: CRS
    transform: rasterio.Affine
    """From (column, row) of a pixel's upper left corner to coordinates of the CRS."""
    width: int
    height: int

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Return (left, bottom, right, top) in coordinates of the CRS."""
        left, top, right, bottom = applied(self.transform, np.array([(0, 0), (self.width, self.height)], float)).ravel()
        return (float(min(left, right)), float(min(top, bottom)), float(max(left, right)), float(max(top, bottom)))

    @property
    def shape(self) -> tuple[int, int]:
        """Return (height, width)."""
        return self.height, self.width

    @property
    def profile(self) -> dict[str, Any]:
        """Return what ``rasterio.open(path, "w", **profile)`` needs to know of a tiled GeoTIFF on this grid, but for
        ``count`` and ``dtype``."""
        return {
            "driver": "GTiff",
            "crs": self.crs,
            "transform": self.transform,
            "width": self.width,
            "height": self.height,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "compress": "DEFLATE",
            "bigtiff": "IF_SAFER",
        }

    def window(self, row: int, column: int, size: int) -> Window:
        """Return the window of ``size`` x ``size`` pixels that begins there; smaller where the grid ends."""
        return Window(column, row, min(size, self.width - column), min(size, self.height - row))

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the windows of ``size`` x ``size`` pixels that cover the grid, row by row from the upper left."""
        for row in range(0, self.height, size):
            for column in range(0, self.width, size):
                yield self.window(row, column, size)

    def cells(self, window: Window) -> Iterator[tuple[Window, tuple[slice, slice], tuple[slice, slice]]]:
        """Yield the cells that a window reaches into: of each its pixels of the grid, which rows and columns of it lie
        in the window, and which of the window they are. Cells are the same for every window."""
        top, left, height, width = (int(one) for one in (window.row_off, window.col_off, window.height, window.width))
        for row in range(top // BLOCK * BLOCK, top + height, BLOCK):
            for column in range(left // BLOCK * BLOCK, left + width, BLOCK):
                up, down = max(row, top), min(row + BLOCK, top + height)
                west, east = max(column, left), min(column + BLOCK, left + width)
                inside = slice(up - row, down - row), slice(west - column, east - column)
                target = slice(up - top, down - top), slice(west - left, east - left)
                yield self.window(row, column, BLOCK), inside, target

    def part(self, window: Window) -> "Grid":
        """Return the grid of a window of this one, which may reach beyond it."""
        moved = self.moved(window.col_off, window.row_off)
        return Grid(self.crs, moved.transform, int(window.width), int(window.height))

    def moved(self, columns: float, rows: float) -> "Grid":
        """Return a grid of the same size that begins so many pixels (fractions too) further right and down."""
        [(x, y)] = applied(self.transform, np.array([(columns, rows)], float))
        a, b, _, d, e, _ = tuple(self.transform)[:6]
        return Grid(self.crs, rasterio.Affine(a, b, float(x), d, e, float(y)), self.width, self.height)

    def resized(self, height: int, width: int) -> "Grid":
        """Return a grid of other pixels over the same place."""
        across, down = self.width / width, self.height / height
        a, b, c, d, e, f = tuple(self.transform)[:6]
        moved = rasterio.Affine(a * across, b * down, c, d * across, e * down, f)
        return Grid(self.crs, moved, width, height)

    @property
    def pixel(self) -> tuple[float, float]:
        """Return (width, height) of a pixel in metres, in the middle of the grid."""
        return metres(self.crs, self.transform, (self.width / 2, self.height / 2))

    @property
    def pixel_area(self) -> float:
        """Return the area of a pixel in square metres, in the middle of the grid."""
        wide, high = self.pixel
        return wide * high

    def to_json(self) -> dict[str, Any]:
        """Return the grid as a JSON object, the CRS as WKT."""
        transform = list(self.transform)[:6]
        return {"crs": self.crs.to_wkt(), "transform": transform, "width": self.width, "height": self.height}

    @classmethod
    def from_json(cls, held: dict[str, Any]) -> "Grid":
        """Return the grid that ``to_json`` told of."""
        return cls(CRS.from_wkt(held["crs"]), rasterio.Affine(*held["transform"]), held["width"], held["height"])
