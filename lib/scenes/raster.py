"""Images and masks on disk: PNG, JPEG, TIFF and GeoTIFF, read with GDAL (twice as fast as OpenCV on a PNG).

GDAL alone is not enough for PNG: a file cut short reads without an error, with pixels that never were in the image.
So the chunks of a PNG are walked first (0.2 ms per MB). Truncated JPEG and TIFF make GDAL fail by itself.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from lib.errors import DataError
from lib.files import write_bytes

# Most images have no place on Earth, and that is no news. A filter around each read would race between threads.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
STRETCH = (1.0, 99.0)
"""Percentiles that become 0 and 255 when an image has more than 8 bits per sample."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    One band is repeated, alpha is dropped, a palette is looked up. Of many bands those marked red, green and blue are
    taken, else the first three. Samples of more than 8 bits (or floats) are stretched linearly, all bands alike, from
    the 1st and 99th percentile of the pixels that are not 0 in every band: such files rarely use their whole range.
    Raises DataError when the file is missing, truncated or not an image.
    """
    with _open(path) as source:
        bands = source.read(_rgb_bands(source))  # (1 | 3, H, W)
        if source.colorinterp[0] == ColorInterp.palette:
            bands = _palette(source)[bands[0]].transpose(2, 0, 1)
        elif bits := source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
            bands = bands * (255 // (2 ** int(bits) - 1)) if int(bits) < 8 else bands
    if bands.dtype != np.uint8:
        bands = _stretch(bands)
    return cv2.merge([bands[0], bands[len(bands) // 2], bands[-1]])  # (H, W, 3)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as (H, W) uint8: the stored values, a palette's indices included.

    Raises DataError as ``read_image`` does, and when bands differ from each other or values do not fit uint8.
    """
    with _open(path) as source:
        bands = source.read([i for i, kind in enumerate(source.colorinterp, 1) if kind != ColorInterp.alpha])
    if (bands != bands[:1]).any():
        raise DataError(f"{path}: expected one value per pixel, got {len(bands)} differing bands (a picture?)")
    mask = bands[0].astype(np.uint8)
    if not np.array_equal(mask, bands[0]):
        raise DataError(f"{path}: expected mask values 0..255, got {bands[0].min()}..{bands[0].max()}")
    return mask


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the header. Raises DataError when the file is missing or not an image."""
    with _open(path, whole=False) as source:
        return source.height, source.width


def stated_size(path: str | Path) -> tuple[int, int] | tuple[None, None]:
    """Return ``image_size``, or (None, None) of a file without a header that can be read."""
    try:
        return image_size(path)
    except DataError:
        return None, None


def centre(path: str | Path) -> tuple[float, float] | None:
    """Return (longitude, latitude) in degrees of a georeferenced image's centre, from the header; else None."""
    with _open(path, whole=False) as source:
        return source.lnglat() if source.crs else None


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) RGB uint8 as PNG; the file appears under its name only when it is whole."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"{path}: expected (H, W) or (H, W, 3) uint8, got {array.shape} {array.dtype}")
    _, data = cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])
    write_bytes(path, data.tobytes())


@contextmanager
def _open(path: str | Path, whole: bool = True) -> Iterator[rasterio.DatasetReader]:
    """Open an image for reading; what GDAL says becomes a DataError. ``whole``: insist that a PNG is complete."""
    if not Path(path).is_file():
        raise DataError(f"{path}: expected an image file, found none")
    try:
        if whole:
            _check_png(Path(path))
        # Without EMPTY_DIR, GDAL lists the whole image folder at every open, looking for sidecar files.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(path) as source:
            yield source
    except (RasterioError, OSError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{path}: expected a readable image, got {reason}; fetch this file again") from error


def _check_png(path: Path) -> None:
    """Raise DataError unless every chunk of a PNG is there with the right checksum; other formats pass."""
    data = path.read_bytes()
    if not data.startswith(PNG_SIGNATURE):
        return
    try:
        png_end(data)
    except DataError as error:
        raise DataError(f"{path}: {error}; fetch this file again") from error


def png_fault(data: bytes) -> str:
    """Say why the bytes of a file are not a PNG that is whole and ends where the file does, "" if they are.

    GDAL, and other readers, take some of these files without an error.
    """
    if data[:8] != PNG_SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        return "is not a PNG"
    try:
        end = png_end(data)
    except DataError as error:
        return "is cut short" if "truncated" in str(error) else "is damaged: a chunk has a wrong checksum"
    return "has bytes after the end of the PNG" if end < len(data) else ""


def png_end(data: bytes) -> int:
    """Walk the chunks of a PNG, the bytes of a file with its signature, and return where the last one ends.

    Raises DataError, which says what is wrong and names no file, where one is cut short or has a wrong checksum.
    """
    at, name = len(PNG_SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (len(data), b"")
        end = at + 8 + length
        if end + 4 > len(data):
            raise DataError(f"truncated PNG ({len(data)} bytes, no end mark)")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DataError(f"damaged PNG (wrong checksum at byte {at})")
        at = end + 4
    return at


def _rgb_bands(source: rasterio.DatasetReader) -> list[int]:
    """Return the 1-based bands to read: red, green, blue, or the single grey or palette band."""
    kinds = list(source.colorinterp)
    if all(kind in kinds for kind in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)):
        return [kinds.index(kind) + 1 for kind in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)]
    return [1, 2, 3] if source.count >= 3 else [1]


def _palette(source: rasterio.DatasetReader) -> np.ndarray:
    """Return the colours of a palette image as (256, 3) uint8."""
    colours = np.zeros((256, 3), np.uint8)
    for index, colour in source.colormap(1).items():
        colours[index] = colour[:3]
    return colours


def _stretch(bands: np.ndarray) -> np.ndarray:
    """Map (C, H, W) of any number type to uint8 between the STRETCH percentiles; NaN becomes 0."""
    values = np.nan_to_num(bands.astype(np.float32), posinf=0.0, neginf=0.0)
    seen = values[:, values.any(axis=0)]  # (C, pixels)
    if not seen.size:
        return np.zeros(bands.shape, np.uint8)
    low, high = np.percentile(seen, STRETCH)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low or 1.0))  # numpy 1 would keep float32
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
