"""Cloud-optimised GeoTIFF: tiled, with overviews, so that a GIS or a browser reads the part that it shows."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil

from lib.files import write_bytes
from lib.scenes.georeference import Location

OPTIONS = {"driver": "COG", "compress": "DEFLATE", "bigtiff": "IF_SAFER"}


def colour_table(colours: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
    """Return value -> red, green, blue, alpha of class numbers and their "#rrggbb"; 0 is transparent."""
    return {0: (0, 0, 0, 0)} | {value: (*bytes.fromhex(colour[1:]), 255) for value, colour in colours.items()}


def write_classes(path: Path, numbers: np.ndarray, place: Location, colours: Mapping[int, str]) -> None:
    """Write class numbers (H, W) uint8 that lie somewhere as a COG with its colours, whole or not at all.

    colours: number -> "#rrggbb". 0, where nothing is, is the file's nodata value, so that a GIS shows what lies below.
    """
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": numbers.shape[0], "width": numbers.shape[1],
               "crs": place.crs, "transform": place.affine, "nodata": 0}  # fmt: skip
    with rasterio.MemoryFile() as plain, rasterio.MemoryFile() as made:
        with plain.open(**profile) as file:
            file.write(numbers, 1)
            file.write_colormap(1, colour_table(colours))
        rasterio.shutil.copy(plain.name, made.name, overview_resampling="nearest", **OPTIONS)
        write_bytes(path, made.getbuffer())
