"""From the files of windows to rasters of the whole area: a VRT over them, copied as a Cloud Optimized GeoTIFF.

GDAL copies block by block and reduces for the overviews, so memory does not grow with the area.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.windows import Window

from lib.errors import ArtifactError
from lib.files import run_out, whole_path, write_bytes
from lib.maps.grid import Grid
from lib.maps.sources import environment
from lib.run import cores

NODATA = 255
"""What the raster of class numbers has where there are no data."""
BLOCK = 512
"""Sides of the tiles of a finished raster."""


@dataclass(frozen=True)
class WindowFile:
    """The file of a window."""

    window: Window
    path: Path


def mosaic(grid: Grid, parts: Sequence[WindowFile], band: int, mask: int | None = None,
           colours: Mapping[str, str] | None = None) -> str:  # fmt: skip
    """Return a VRT of one band of the parts, of which ``mask`` is the band that says what is valid.

    colours: name -> "#rrggbb" of the numbers from 1 on, for a raster of class numbers, in which NODATA has no data.
    """
    transform = ", ".join(f"{number!r}" for number in grid.transform.to_gdal())
    inner = _sources(parts, band)
    if colours is not None:
        inner = f"<NoDataValue>{NODATA}</NoDataValue>{_palette(colours)}{inner}"
    masked = ""
    if mask is not None:
        stretched = _sources(parts, mask, scale=255)
        masked = f'<MaskBand><VRTRasterBand dataType="Byte">{stretched}</VRTRasterBand></MaskBand>'
    return (f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}"><SRS>{escape(grid.crs.to_wkt())}</SRS>'
            f"<GeoTransform>{transform}</GeoTransform>"
            f'<VRTRasterBand dataType="Byte" band="1">{inner}</VRTRasterBand>{masked}</VRTDataset>')  # fmt: skip


def _sources(parts: Sequence[WindowFile], band: int, scale: int = 1) -> str:
    kind = "SimpleSource" if scale == 1 else "ComplexSource"
    found = []
    for part in parts:
        size = f'xSize="{int(part.window.width)}" ySize="{int(part.window.height)}"'
        place = f'xOff="{int(part.window.col_off)}" yOff="{int(part.window.row_off)}"'
        found.append(
            f'<{kind}><SourceFilename relativeToVRT="0">{escape(str(part.path.resolve()))}</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/><DstRect {place} {size}/>'
            + (f"<ScaleRatio>{scale}</ScaleRatio>" if scale != 1 else "")
            + f"</{kind}>"
        )
    return "".join(found)


def _palette(colours: Mapping[str, str]) -> str:
    entries = {number: colour for number, colour in enumerate(colours.values(), 1)}
    rows = []
    for number in range(256):
        red, green, blue = (int(entries.get(number, "#000000")[n : n + 2], 16) for n in (1, 3, 5))
        rows.append(f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="{255 if number in entries else 0}"/>')
    return f"<ColorInterp>Palette</ColorInterp><ColorTable>{''.join(rows)}</ColorTable>"


def write(path: Path, vrt: str, exact: bool) -> None:
    """Write a VRT as a COG with overviews, whole or not at all. exact: of class numbers, which are never averaged."""
    beside = path.with_suffix(".vrt")
    write_bytes(beside, vrt.encode())
    try:
        with environment(), whole_path(path) as partial:
            rasterio.shutil.copy(
                beside,
                partial,
                driver="COG",
                BLOCKSIZE=BLOCK,
                COMPRESS="DEFLATE",
                OVERVIEW_RESAMPLING="NEAREST" if exact else "AVERAGE",
                BIGTIFF="IF_SAFER",
                NUM_THREADS=str(cores.cores()),
            )
    except RasterioError as error:
        if run_out(error) is not None:
            raise
        raise ArtifactError(f"{path}: could not be written ({error.__cause__ or error}); run the same command again "
                            "to go on") from error  # fmt: skip
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
