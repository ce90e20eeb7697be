"""The files that show one side of an area (before, after), as their headers describe them.

A file may be a raster of any kind that GDAL reads, a folder of such, a VRT, a COG, also behind http(s), of which only
the parts that are needed are fetched.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio import warp
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from lib.errors import DataError
from lib.files import file_state
from lib.scenes import bands
from lib.scenes.bands import Remark
from lib.scenes.place import applied, metres

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg")
"""Endings of the files of a folder that are taken."""
SETTINGS: dict[str, Any] = {
    "GDAL_CACHEMAX": 64 << 20,  # bytes; by itself GDAL takes a twentieth of the machine's memory
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_TIMEOUT": 120,
}
"""How GDAL reads and writes all rasters of an area."""
RADAR = re.compile(r"\b(VV|VH|HH|HV|sigma0|gamma0|beta0|backscatter|amplitude)\b", re.IGNORECASE)
ADDRESS = re.compile(r"(https?|s3|gs|az)://|/vsi")
RESAMPLING = ("nearest", "bilinear", "cubic", "lanczos", "average")


@dataclass(frozen=True)
class SourceFile:
    """One file, as its header describes it. ``path``: as GDAL opens it."""

    path: str
    crs: CRS
    transform: rasterio.Affine
    shape: tuple[int, int]
    """(height, width)."""
    bands: tuple[int, ...]
    """1-based numbers of red, green and blue, or of the only one."""
    alpha: int
    """Number of the band that says what is valid; 0: there is none."""
    dtype: str
    palette: bool
    masked: bool
    """Whether the file itself says which pixels have data."""
    overviews: tuple[int, ...]
    remarks: tuple[Remark, ...] = ()

    @cached_property
    def pixel(self) -> tuple[float, float]:
        """(width, height) of a pixel in metres, in the middle of the file."""
        return metres(self.crs, self.transform, (self.shape[1] / 2, self.shape[0] / 2))

    def outline(self, crs: CRS) -> shapely.Polygon:
        """Return the file's outline in a CRS; its sides may be bent there, so they have many corners."""
        height, width = self.shape
        across, down = np.linspace(0, width, 22), np.linspace(0, height, 22)
        ring = [*((x, 0) for x in across), *((width, y) for y in down), *((x, height) for x in across[::-1]),
                *((0, y) for y in down[::-1])]  # fmt: skip
        x, y = applied(self.transform, np.array(ring)).T
        found = np.column_stack(warp.transform(self.crs, crs, x, y)[:2])
        if not np.isfinite(found).all():
            raise DataError(f"{self.path}: expected a place that {crs.to_string()} has, found one outside of it; give "
                            "another --crs")  # fmt: skip
        return shapely.make_valid(shapely.Polygon(found))

    @property
    def state(self) -> list[Any]:
        """Return what tells whether the file is still the same; of one behind http its address alone."""
        return list(file_state(self.path)) if Path(self.path).exists() else [self.path, *self.shape]


@contextmanager
def environment() -> Iterator[None]:
    """Let GDAL read and write with SETTINGS inside."""
    with rasterio.Env(**SETTINGS):
        yield


def find(given: Sequence[str], side: str) -> list[str]:
    """Return the files that were given for a side, those of folders by name. DataError where there is none."""
    found: list[str] = []
    for one in given:
        path = Path(one)
        if path.is_dir():
            inside = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"--{side} {one}: expected a folder of images ({', '.join(SUFFIXES)}), found none in "
                                "it; name the folder that has them, or the files")  # fmt: skip
            found += inside
        elif path.exists() or ADDRESS.match(one):
            found.append(one)
        else:
            raise DataError(f"--{side} {one}: expected a file, a folder or an address (https://...), found nothing "
                            "there; correct the path")  # fmt: skip
    return list(dict.fromkeys(found))


def describe(path: str, one_band: bool = False) -> SourceFile:
    """Read the header of a file. DataError where it cannot be read, has no place on Earth or shows no colours.

    one_band: whether a single band is taken for grey.
    """
    try:
        with opened(path) as page:
            return _described(path, page, one_band)
    except (RasterioError, OSError) as error:
        raise DataError(f"{path}: expected a raster that GDAL can read, got {error.__cause__ or error}; fetch it "
                        "again, or correct the path") from error  # fmt: skip


def _described(path: str, page: rasterio.DatasetReader, one_band: bool) -> SourceFile:
    if not page.crs or page.transform.is_identity:
        raise DataError(f"{path}: expected a raster with a place on Earth, found "
                        + ("no coordinate system" if not page.crs else "no transform from pixels to coordinates")
                        + " in it; give it one (gdal_translate -a_srs EPSG:... -a_ullr ...)")  # fmt: skip
    if any(kind.startswith("complex") for kind in page.dtypes):
        raise DataError(f"{path}: expected red, green and blue, got {page.dtypes[0]} samples, which radar has before "
                        "it is detected; networks that were trained on colours see nothing in it")  # fmt: skip
    numbers, remarks = bands.bands_of(page)
    said = [*(text or "" for text in page.descriptions), *page.tags().values()]
    palette = bands.palette_of(page) is not None
    if radar := next((match[0] for text in said if (match := RADAR.search(text))), ""):
        raise DataError(f"{path}: expected red, green and blue, got radar (its header says {radar}); networks that "
                        "were trained on colours see nothing in it: give an optical image")  # fmt: skip
    if len(numbers) == 1 and not palette and not one_band:
        kinds = f"{page.count} band{'s' * (page.count > 1)} ({', '.join(kind.name for kind in page.colorinterp[:4])})"
        raise DataError(f"{path}: expected red, green and blue, got {kinds}: radar (SAR), or panchromatic? Give an "
                        "image in colours, describe its bands as Red, Green, Blue, or add --one-band if the networks "
                        "were trained on grey images")  # fmt: skip
    alpha = next((n for n in range(1, page.count + 1) if bands.is_alpha(page, n) and n not in numbers), 0)
    masked = bands.masked(page, numbers) or palette or np.dtype(page.dtypes[0]).kind == "f"
    return SourceFile(path, page.crs, page.transform, (page.height, page.width), tuple(numbers), alpha, page.dtypes[0],
                  palette, masked, tuple(page.overviews(numbers[0])), tuple(remarks))  # fmt: skip


def opened(path: str, level: int | None = None) -> rasterio.DatasetReader:
    """Open a file, or an overview of it; of one behind an address nothing is asked for but itself."""
    more = {} if level is None else {"overview_level": level}
    beside = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if ADDRESS.match(path) else {}
    with rasterio.Env(**beside):
        return rasterio.open(path, **more)
