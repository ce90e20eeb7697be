"""From the bands of an image file to red, green and blue of one byte: which bands, which samples are data, how bright.

Everything here takes an open rasterio dataset or arrays; files are opened in ``raster.py``.
"""

import re
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags

STRETCH = (1.0, 99.0)
"""Percentiles that become 0 and 255 when an image has more than 8 bits per sample."""

FILLS = (-9999.0, -99999.0, -32768.0, -32767.0)
"""Values that files without a declaration fill with what is not known, besides the ends of the number type."""
FILLED = 0.001
"""Share of pixels from which on such a value is remarked."""
FAR = 0.1
"""By more than this share of what the others span it is away from all of them."""

_COLOURS = ("red", "green", "blue")
_MARKS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_NAME = re.compile(rf"(?:band\W*\d*\W*)?({'|'.join(_COLOURS)})(?:\W*\(.*\))?", re.IGNORECASE)


class Remark(NamedTuple):
    """What somebody should know of how a file was read: a short stable phrase, and what it is about in this file."""

    kind: str
    detail: str


class Bands(NamedTuple):
    """The colours of an image as they are stored."""

    planes: np.ndarray
    """(1 | 3, H, W)."""
    known: np.ndarray | None
    """(1 | 3, H, W) bool, which samples are data, of one plane for all bands; None: all."""
    remarks: tuple[Remark, ...]


def read_page(page: rasterio.DatasetReader) -> tuple[np.ndarray, np.ndarray | None, list[Remark]]:
    """Read the colours of a page, which of their samples are data, and what is to be said of it, as ``Bands`` has them.

    A palette is looked up, samples of less than 8 bits fill uint8.
    """
    bands, remarks = bands_of(page)
    planes, known = _with_mask(page, bands)
    planes = upright(page, planes)
    if (colours_of := palette_of(page)) is not None:
        colours = colours_of[planes[0]]  # (H, W, 4)
        seen = colours[None, ..., 3] > 0
        known = seen if known is None else known & seen
        planes = colours[..., :3].transpose(2, 0, 1)
    elif bits := page.tags(1, ns="IMAGE_STRUCTURE").get("NBITS"):
        planes = planes * (255 // (2 ** int(bits) - 1)) if int(bits) < 8 else planes
    if planes.dtype.kind == "f" and not (finite := np.isfinite(planes)).all():
        known = finite if known is None else known & finite
    return planes, None if known is None or known.all() else known, remarks


def upright(page: rasterio.DatasetReader, planes: np.ndarray) -> np.ndarray:
    """Return samples as other tools show them: those of a TIFF in which white is 0 are turned over."""
    if not _white_is_zero(page) or planes.dtype.kind not in "iu":
        return planes
    bits = page.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    most = 2 ** int(bits) - 1 if bits else np.iinfo(planes.dtype).max
    return planes.dtype.type(most) - planes


def _white_is_zero(page: rasterio.DatasetReader) -> bool:
    return page.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"


def bands_of(source: rasterio.DatasetReader) -> tuple[list[int], list[Remark]]:
    """Return the 1-based bands to read, red, green, blue or a single one, and what is to be said of the choice."""
    kinds = list(source.colorinterp)
    names = [(match[1].lower() if (match := _NAME.fullmatch((text or "").strip())) else "")
             for text in source.descriptions]  # fmt: skip
    marked = [kinds.index(mark) + 1 for mark in _MARKS] if all(mark in kinds for mark in _MARKS) else []
    described = [names.index(name) + 1 for name in _COLOURS] if all(name in names for name in _COLOURS) else []
    if marked and described and marked != described:
        detail = f"described as {', '.join(text or '?' for text in source.descriptions)}"
        return described, [Remark("bands are marked otherwise than described, the description is used", detail)]
    if marked or described:
        return marked or described, []
    rest = [number for number in range(1, source.count + 1) if not is_alpha(source, number)] or [1]
    if len(rest) in (1, 3):
        return rest, []
    taken, said = (rest[:3], "first three") if len(rest) > 3 else (rest[:1], "first one")
    detail = f"marked {', '.join(kind.name for kind in kinds[:8])}; describe them as Red, Green, Blue"
    return taken, [Remark(f"{len(rest)} bands, order not known, the {said} taken", detail)]


def is_alpha(source: rasterio.DatasetReader, number: int) -> bool:
    """Tell whether a band is alpha: marked so, and not described as another, as the NIR of a four-band TIFF may be."""
    described = (source.descriptions[number - 1] or "").lower()
    return source.colorinterp[number - 1] == ColorInterp.alpha and (not described or "alpha" in described)


def may_hide(page: rasterio.DatasetReader) -> bool:
    """Tell from the header whether some pixels of a page may not be valid, so that they have to be looked at."""
    return (
        np.dtype(page.dtypes[0]).kind == "f"
        or page.colorinterp[0] == ColorInterp.palette
        or masked(page, bands_of(page)[0])
    )


def masked(source: rasterio.DatasetReader, bands: Sequence[int]) -> bool:
    """Tell from the header whether some pixels of the bands may not be valid."""
    flags = [set(source.mask_flag_enums[band - 1]) for band in bands]
    if all(MaskFlags.all_valid in own for own in flags):
        return False
    by_alpha = all(MaskFlags.alpha in own for own in flags)
    return not by_alpha or any(is_alpha(source, number) for number in range(1, source.count + 1))


def _with_mask(page: rasterio.DatasetReader, bands: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Read bands and which of their samples are data; once, where GDAL alone would decode a PNG again for each mask."""
    flags = set(page.mask_flag_enums[bands[0] - 1])
    if not masked(page, bands):
        return page.read(bands), None
    if MaskFlags.alpha in flags:
        alpha = next(number for number in range(1, page.count + 1) if is_alpha(page, number))
        read = page.read([*bands, alpha])
        return read[:-1], read[-1:] > 0
    planes = page.read(bands)
    if MaskFlags.nodata not in flags:  # a mask of its own, for all bands
        return planes, page.read_masks(bands[:1]) > 0
    if planes.dtype.kind == "f":  # GDAL knows how near two floats must be to be one
        return planes, page.read_masks(bands) > 0
    if MaskFlags.per_dataset in flags:  # one colour of all bands together
        colour = [float(text) for text in page.tags()["NODATA_VALUES"].split()]
        other = [_differs(plane, colour[band - 1]) for plane, band in zip(planes, bands, strict=True)]
        return planes, reduce(np.bitwise_or, other)[None]
    nodata = [page.nodatavals[band - 1] for band in bands]
    return planes, np.stack([_differs(plane, value) for plane, value in zip(planes, nodata, strict=True)])


def _differs(plane: np.ndarray, value: float | None) -> np.ndarray:
    """Tell which whole numbers of a plane are not ``value``; comparing with a float would convert all of them."""
    held = (
        value is not None
        and float(value).is_integer()
        and np.iinfo(plane.dtype).min <= value <= np.iinfo(plane.dtype).max
    )
    return plane != plane.dtype.type(value) if held else np.ones(plane.shape, bool)


def palette_of(source: rasterio.DatasetReader) -> np.ndarray | None:
    """Return the colours of a palette image, (256, 4) uint8 or more rows: red, green, blue, alpha; None of others."""
    if source.colorinterp[0] != ColorInterp.palette or _white_is_zero(source):
        return None
    entries = source.colormap(1)
    colours = np.full((max(256, *entries) + 1, 4), (0, 0, 0, 255), np.uint8)
    for index, colour in entries.items():
        colours[index] = colour
    return colours


# ---- from any number type to bytes --------------------------------------------------------------------
class Bounds(NamedTuple):
    """The values that become 0 and 255."""

    low: float
    high: float


_BYTES = Bounds(0.0, 255.0)


def bounds_of(images: Sequence[Bands]) -> Bounds | None:
    """Return which values become 0 and 255 in images that belong together; None where they are 0 all over."""
    seen = np.concatenate([samples(image) for image in images])
    if not seen.size:
        return None
    whole = images[0].planes.dtype.kind in "iub" or np.array_equal(seen, np.rint(seen))
    if whole and seen.min() >= 0 and 1 < seen.max() <= 255:
        return _BYTES
    low, high = np.percentile(seen, STRETCH).tolist()
    return Bounds(min(low, 0.0) if low == high else low, high)  # one value beside 0 is white and not black


def samples(image: Bands) -> np.ndarray:
    """Return the samples that are data, of pixels that are not 0 in every band: (N,) floats."""
    looked = image.planes.any(axis=0)
    if image.known is not None:
        return _real(image.planes[np.broadcast_to(image.known & looked, image.planes.shape)])
    return _real(image.planes[:, looked].ravel())


def fill(image: Bands) -> tuple[Remark, ...]:
    """Remark a value that fills pixels without data as a rule, where the file does not declare it as nodata."""
    planes, kind = image.planes, image.planes.dtype
    known = planes if image.known is None else planes[np.broadcast_to(image.known, planes.shape)]
    if not known.size:
        return ()
    least, most = (np.finfo(kind).min, np.finfo(kind).max) if kind.kind == "f" else (np.iinfo(kind).min or -1,
                                                                                     np.iinfo(kind).max)  # fmt: skip
    for value in {known.min().item(), known.max().item()} & {float(least), float(most), *FILLS}:
        share, others = (planes == value).all(axis=0).mean(), known[known != value].astype(np.float64)
        if share < FILLED or not others.size:
            continue
        if np.abs(others - value).min() > FAR * np.ptp(others):  # what is overexposed has neighbours
            detail = f"{value:g} in {share:.1%} of the pixels; declare it (rio edit-info --nodata {value:g} FILE)"
            return (Remark("a value fills pixels and is not declared as nodata", detail),)
    return ()


def stretch(image: Bands, bounds: Bounds | None) -> np.ndarray:
    """Map samples of any number type to (C, H, W) uint8 between the bounds; those that are not data become 0."""
    if bounds is None:
        return np.zeros(image.planes.shape, np.uint8)
    planes = image.planes if image.known is None else np.where(image.known, image.planes, image.planes.dtype.type(0))
    values = _real(planes).astype(np.float64)  # numpy 1 would compute in float32
    scaled = np.rint((values - bounds.low) * (255.0 / (bounds.high - bounds.low or 1.0))).clip(0, 255).astype(np.uint8)
    return scaled if image.known is None else scaled * image.known


def _real(samples: np.ndarray) -> np.ndarray:
    """Return samples as floats: float64 as it is, since float32 does not hold its largest, all others as float32."""
    return samples if samples.dtype == np.float64 else samples.astype(np.float32)
