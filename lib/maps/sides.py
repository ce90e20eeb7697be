"""One side of an area (before, after): its files as pixels on the area's grid, and which of these are valid.

``rasterio.WarpedVRT`` brings files to the grid, cell by cell: a cell is read in the same way whoever asks for it, so
that pixels do not depend on how an area is cut into windows.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import rasterio
import shapely
from rasterio import warp
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from lib.errors import DataError
from lib.maps.grid import Grid
from lib.maps.sources import SourceFile, opened
from lib.scenes import bands
from lib.scenes.place import applied

TOLERANCE = 0.001
"""Pixels by which the approximate transformation may be wrong; GDAL's own value depends on where a read begins."""
SAMPLE = 2048
"""Sides of the reduced image from which the brightness of a file and its black rim are told."""
SAMPLES = 16 << 20
"""Pixels that all files of an area together are looked at with."""
RIM = 0.002
"""Share of a file's pixels that must be black from its border on so as to be called a rim."""
OPEN = 32
"""Files of a side that are kept open."""


@dataclass(frozen=True)
class Glance:
    """What is known of a file from a reduced image of it."""

    samples: bands.Bands
    rim: np.ndarray | None
    """(h, w) bool over the whole file: where it is black from the border on; None where it has no rim."""


def look(source: SourceFile, most: int) -> Glance:
    """Read a reduced image of a file, of at most ``most`` pixels and at least a few thousand."""
    height, width = source.shape
    side = max(64, min(SAMPLE, int(most**0.5)))
    shape = tuple(max(1, min(size, side)) for size in (height, width))
    with opened(source.path) as page:
        planes = page.read(source.bands, out_shape=(len(source.bands), *shape))
        known = page.read_masks(source.bands, out_shape=(len(source.bands), *shape)) > 0 if source.masked else None
        if source.palette:
            colours = bands.palette_of(page)[planes[0]]  # type: ignore[index]
            planes, known = colours[..., :3].transpose(2, 0, 1), colours[None, ..., 3] > 0
        planes = bands.upright(page, planes) if not source.palette else planes
    if planes.dtype.kind == "f":
        finite = np.isfinite(planes)
        known = finite if known is None else known & finite
    rim = None if source.masked else _rim(np.asarray(~planes.any(axis=0)))
    return Glance(bands.Bands(planes, known, ()), rim)


def _rim(black: np.ndarray) -> np.ndarray | None:
    """Return which of the black pixels (H, W) bool hang together with the border, a pixel wider on each side."""
    _, parts = cv2.connectedComponents(black.view(np.uint8), connectivity=4)
    ends = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    rim = np.isin(parts, ends[ends > 0])
    if rim.mean() < RIM:
        return None
    return cv2.dilate(rim.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)


@dataclass
class Side:
    """All files that show one side of an area, on its grid. Where several show a place, the first that has data there
    is taken. Threads may read at the same time."""

    name: str
    sources: Sequence[SourceFile]
    grid: Grid
    resampling: str = "bilinear"
    shift: tuple[float, float] = (0.0, 0.0)
    """(columns, rows) by which what the files show lies too far right and down."""
    bounds: dict[tuple[str, int], bands.Bounds | None] = field(default_factory=dict)
    """(number type, number of bands) -> the values that become 0 and 255."""
    rims: dict[str, np.ndarray] = field(default_factory=dict)
    """Path -> where a file is black from its border on, a reduced (h, w) bool over all of it."""

    def __post_init__(self) -> None:
        self._open: OrderedDict[str, tuple[WarpedVRT, rasterio.DatasetReader]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock", "outlines")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def on(self, grid: Grid, shift: tuple[float, float] | None = None) -> "Side":
        """Return the same files on another grid, perhaps with another shift."""
        return replace(self, grid=grid, shift=self.shift if shift is None else shift)

    @property
    def target(self) -> Grid:
        """The grid in the coordinates of the files: that of the area, moved to where the files show it."""
        return self.grid.moved(*self.shift) if any(self.shift) else self.grid

    @cached_property
    def outlines(self) -> list[shapely.Polygon]:
        """The outline of each file in the CRS of the grid, where the area is in it."""
        return [source.outline(self.grid.crs) for source in self.sources]

    def moved_by(self) -> tuple[float, float]:
        """Return the shift in coordinates of the CRS."""
        zero, there = self.grid.transform, self.target.transform
        return there.c - zero.c, there.f - zero.f

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read a window of the grid: (h, w, 3) uint8 RGB, 0 where it is not valid, and (h, w) bool, what is valid.

        Raises DataError naming the file that cannot be read.
        """
        shape = int(window.height), int(window.width)
        pixels, valid = np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)
        with self._lock:  # each thread's own handles would cost a hundred MiB
            for cell, inside, target in self.grid.cells(window):
                own, known = self._cell(cell)
                pixels[target], valid[target] = own[inside], known[inside]
        return pixels, valid

    def _cell(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read one cell of the grid, which the border of the grid may cut: (h, w, 3) uint8 and (h, w) bool."""
        shape = int(window.height), int(window.width)
        pixels, valid = np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)
        box = shapely.box(*self.target.part(window).bounds)
        for source, outline in zip(self.sources, self.outlines):
            if valid.all():
                break
            if not outline.intersects(box):
                continue
            try:
                own, known = self._read(source, window)
            except (RasterioError, OSError) as error:
                raise DataError(f"{source.path}: expected a raster that GDAL can read, got {error.__cause__ or error}; "
                                "fetch it again, and run the same command again to go on") from error  # fmt: skip
            new = known & ~valid
            pixels[new], valid[new] = own[new], True
        return pixels, valid

    def _read(self, source: SourceFile, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read what a file shows of a window: (h, w, 3) uint8, 0 where it is not valid, and (h, w) bool."""
        vrt, page = self._vrt(source)
        planes = vrt.read(list(source.bands), window=window)
        valid = vrt.read(source.alpha or vrt.count, window=window) > 0
        if source.palette:
            colours = bands.palette_of(page)[planes[0]]  # type: ignore[index]
            planes, valid = colours[..., :3].transpose(2, 0, 1), valid & (colours[..., 3] > 0)
        elif bits := page.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
            planes = bands.upright(page, planes)
            planes = planes * (255 // (2 ** int(bits) - 1)) if int(bits) < 8 else planes
        else:
            planes = bands.upright(page, planes)
        if planes.dtype.kind == "f":
            finite = np.isfinite(planes).all(axis=0)
            planes, valid = np.where(finite, planes, planes.dtype.type(0)), valid & finite
        if source.path in self.rims:
            valid &= planes.any(axis=0) | ~self._in_rim(source, window)
        if planes.dtype != np.uint8:
            key = str(planes.dtype), len(planes)
            planes = bands.stretch(bands.Bands(planes, None, ()), self.bounds.get(key))
        pixels = np.moveaxis(planes[[0, len(planes) // 2, -1]], 0, -1)
        return np.where(valid[..., None], pixels, np.uint8(0)), valid

    def _in_rim(self, source: SourceFile, window: Window) -> np.ndarray:
        """Tell which pixels of a window lie where the reduced image of a file has its rim: (h, w) bool."""
        part, rim = self.target.part(window), self.rims[source.path]
        columns, rows = np.meshgrid(np.arange(part.width) + 0.5, np.arange(part.height) + 0.5)
        points = applied(part.transform, np.column_stack([columns.ravel(), rows.ravel()]))
        there = np.column_stack(warp.transform(part.crs, source.crs, *points.T)[:2])
        across, down = applied(~source.transform, there).T
        across = np.clip(across * rim.shape[1] / source.shape[1], 0, rim.shape[1] - 1).astype(np.intp)
        down = np.clip(down * rim.shape[0] / source.shape[0], 0, rim.shape[0] - 1).astype(np.intp)
        return rim[down, across].reshape(part.shape)

    def _vrt(self, source: SourceFile) -> tuple[WarpedVRT, rasterio.DatasetReader]:
        """Return a file on the grid, and the file; some of them are kept open."""
        if source.path in self._open:
            self._open.move_to_end(source.path)
            return self._open[source.path]
        if len(self._open) >= OPEN:
            _, old = self._open.popitem(last=False)
            for one in old:
                one.close()
        self._open[source.path] = self._warped(source)
        return self._open[source.path]

    def _warped(self, source: SourceFile) -> tuple[WarpedVRT, rasterio.DatasetReader]:
        grid = self.target
        scales = [own / wanted for own, wanted in zip(source.pixel, grid.pixel)]  # of the grid's pixels to the file's
        fits = [number for number, factor in enumerate(source.overviews) if factor * 1.01 <= 1 / max(scales)]
        page = opened(source.path, fits[-1] if fits else None)
        reduced = source.shape[1] / page.width
        options: dict[str, Any] = {"src_alpha": source.alpha} if source.alpha else {"add_alpha": True}
        vrt = WarpedVRT(
            page,
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling["nearest" if source.palette else self.resampling],
            tolerance=TOLERANCE,
            # as one number for all reads: GDAL would tell it anew for each of them
            XSCALE=round(scales[0] * reduced, 6),
            YSCALE=round(scales[1] * reduced, 6),
            UNIFIED_SRC_NODATA="YES",
            **options,
        )
        return vrt, page


def learn(sides: Sequence[Side]) -> list[str]:
    """Look at reduced images of all files: which values become 0 and 255, as for the images of a pair all alike, and
    which files have black rims. Sets ``bounds`` and ``rims`` of the sides; returns what is to be said."""
    sources = [(side, source) for side in sides for source in side.sources]
    looks = [look(source, SAMPLES // len(sources)) for _, source in sources]
    said = []
    for (side, source), own in zip(sources, looks, strict=True):
        for remark in (*source.remarks, *bands.fill(own.samples)):
            said.append(f"{source.path}: {remark.kind} ({remark.detail})")
        if own.rim is not None:
            side.rims[source.path] = own.rim
            said.append(f"{source.path}: has a black rim ({own.rim.mean():.0%} of it), taken as without data")
    for form in dict.fromkeys((str(one.samples.planes.dtype), len(one.samples.planes)) for one in looks):
        if form[0] == "uint8":
            continue
        alike = [one.samples for one in looks if (str(one.samples.planes.dtype), len(one.samples.planes)) == form]
        bounds = bands.bounds_of(alike)
        for side in sides:
            side.bounds[form] = bounds
        if bounds is not None and tuple(bounds) != (0.0, 255.0):
            said.append(f"{form[0]} samples from {bounds.low:g} to {bounds.high:g} become 0 to 255, in all files alike")
    return said
