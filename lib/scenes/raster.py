"""Images and masks on disk: PNG, JPEG, TIFF and GeoTIFF, read with GDAL (twice as fast as OpenCV on a PNG).

GDAL alone is not enough for PNG, whose chunks are walked first (``png.py``). Truncated TIFF makes GDAL fail by itself,
and so does a JPEG that simply ends. One whose data are broken inside, or are zeros to the end as a download leaves them
that was broken off, is decoded into grey or wrong pixels with a mere warning: that is remarked.

Which pixels are valid, a file says by a nodata value, an alpha band, an internal mask or a .msk file beside it, and NaN
and infinity never are. Pixels that are not valid are 0 in the image, and no percentile and no training target has them.
"""

import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from lib.errors import DataError
from lib.files import State, file_state, write_bytes
from lib.scenes import bands, exif, png
from lib.scenes.bands import Remark
from lib.settings import limits

# Most images have no place on Earth, and that is no news. A filter around each read would race between threads.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

JPEG_END = b"\xff\xd9"
DAMAGED = "damaged JPEG, some of its pixels may be wrong"
LOSSY = ("JPEG", "WEBP", "JPEG2000")
"""Drivers and compressions that do not keep the values of a mask."""

Size = tuple[int, int] | tuple[None, None]
"""(height, width) of an image; without numbers where they are not known."""

_PAGE = re.compile(r"Page \d+ \((\d+)P x (\d+)L x (\d+)B\)")


@dataclass(frozen=True)
class Picture:
    """An image as it was read."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB, 0 where it is not valid."""
    valid: np.ndarray
    """(H, W) bool: False where the file says that there are no data."""
    remarks: tuple[Remark, ...] = ()


def read(path: str | Path, beside: Sequence[str | Path] = (), turned: bool = True) -> Picture:
    """Read an image with what of it is valid; ``beside``: the other images of its pair, which are stretched with it.
    ``turned``: as its EXIF orientation wants it to be seen.

    One band is repeated, alpha is not a colour, a palette is looked up. Of many bands those marked red, green and blue
    are taken, else those that are described so, else the first three, which is remarked. Three pages of one band each
    are red, green and blue; of other pages the first of the largest is taken.

    Samples that are not bytes, but whole numbers of 0..255 (and not all 0 or 1), stay as they are. Others are stretched
    linearly, all bands alike, from the 1st to the 99th percentile (STRETCH) of the valid pixels that are not 0 in every
    band: such files rarely use their whole range. Both come from all images of a pair together, so that one value means
    one brightness before and after; an image beside it of another number type or number of bands does not count.
    Raises DataError when the file is missing, truncated, not an image, too large (``data.limits``) or complex.
    """
    key = (_picture, str(path), *map(str, beside), turned)
    return keep(key, lambda: _picture(path, beside, turned))


_kept: ContextVar[dict[tuple, Any] | None] = ContextVar("what is kept", default=None)


@contextmanager
def kept() -> Iterator[None]:
    """Keep what this thread reads inside, so that each file is decoded once; nobody may change what it is given."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def keep(key: tuple, make: Callable[[], Any]) -> Any:
    """Return what ``make`` reads, within ``kept`` what it has read under this key before."""
    held = _kept.get()
    if held is None:
        return make()
    if key not in held:
        held[key] = make()
    return held[key]


def _picture(path: str | Path, beside: Sequence[str | Path], turned: bool) -> Picture:
    own = _read(path, turned)
    planes, known, remarks = own.planes, own.known, own.remarks
    if planes.dtype != np.uint8:
        remarks += bands.fill(own)
        bounds = _bounds_of(tuple(file_state(file) for file in (path, *beside))) if beside else bands.bounds_of([own])
        planes = bands.stretch(own, bounds)
    valid = np.ones(planes.shape[1:], bool) if known is None else known.max(axis=0)
    if known is not None:
        planes = planes * valid
    pixels = cv2.merge([planes[0], planes[len(planes) // 2], planes[-1]])
    return Picture(pixels, valid, remarks)


def read_image(path: str | Path, turned: bool = True) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, as ``read`` does."""
    return read(path, turned=turned).pixels


def validity(path: str | Path) -> np.ndarray | None:
    """Return which pixels of an image are valid, (H, W) bool; None where all are.

    Of most images the header tells that; of one that was read a moment ago it is still known.
    """
    known, valid = _remembered(file_state(path))
    if known:
        return valid
    with _open(path, whole=False) as file:
        if not any(bands.may_hide(page) for page in file.pages):
            return None
    own = _read(path)
    return None if own.known is None else own.known.max(axis=0)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as (H, W) uint8: the stored values, a palette's indices included.

    Raises DataError as ``read`` does, and when bands differ from each other or values do not fit uint8.
    """
    planes, *_ = _mask_planes(path)
    if (planes != planes[:1]).any():
        raise DataError(f"{path}: expected one value per pixel, got {len(planes)} differing bands (a picture?)")
    if planes[0].size and not 0 <= planes[0].min() <= planes[0].max() <= 255:
        raise DataError(f"{path}: expected mask values 0..255, got {planes[0].min()}..{planes[0].max()}")
    mask = planes[0].astype(np.uint8)
    if not np.array_equal(mask, planes[0]):
        raise DataError(f"{path}: expected whole numbers 0..255 as mask values, got fractions")
    return mask


def read_grey(path: str | Path) -> tuple[np.ndarray, bool, np.ndarray | None]:
    """Read a mask of one class as (H, W) of the stored number type, tell whether its format keeps values, and return
    the palette whose indices these are, None where they are none.

    Bands that differ by no more than lossy compression does are averaged. Black and white of a palette are 0 and 255,
    whichever of them has the lower index: tools that reduce a picture to two colours put either first. Raises DataError
    as ``read_mask`` does.
    """
    planes, exact, colours = _mask_planes(path)
    if colours is not None:
        seen = _black_and_white(indices := planes[0], colours)
        return seen, exact, colours if seen is indices else None
    if len(planes) == 1 or not (planes != planes[:1]).any():
        return planes[0], exact, None
    if exact or np.ptp(planes.astype(np.int16), axis=0).max() > 32:
        raise DataError(f"{path}: expected one value per pixel, got {len(planes)} differing bands (a picture?)")
    return planes.mean(axis=0).astype(planes.dtype), exact, None


def keeps_values(path: str | Path) -> bool:
    """Tell from the header whether the format of a mask keeps its values. Raises DataError as ``read`` does."""
    with _open(path, whole=False) as file:
        return _is_exact(file.pages[0])


def palette(path: str | Path) -> np.ndarray | None:
    """Return the colours of an image's palette from the header, (256, 4) uint8 or more rows: red, green, blue, alpha;
    None without one. Raises DataError as ``read`` does."""
    with _open(path, whole=False) as file:
        return bands.palette_of(file.pages[0])


def scaling(path: str | Path) -> tuple[tuple[float, float], ...]:
    """Return (scale, offset) of each band from the header: by which its samples are multiplied, what is added then.

    Raises DataError as ``read`` does.
    """
    with _open(path, whole=False) as file:
        return tuple(zip(file.pages[0].scales, file.pages[0].offsets, strict=True))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from the header, as the image is seen. Raises DataError as ``read`` does."""
    return keep((_size, str(path)), lambda: _size(path))


def _size(path: str | Path) -> tuple[int, int]:
    with _open(path, whole=False) as file:
        size = file.pages[0].height, file.pages[0].width
        return size[::-1] if file.orientation in exif.SIDEWAYS else size


def stated_size(path: str | Path) -> Size:
    """Return ``image_size``, or (None, None) of a file without a header that can be read."""
    try:
        return image_size(path)
    except DataError:
        return None, None


def centre(path: str | Path) -> tuple[float, float] | None:
    """Return (longitude, latitude) in degrees of a georeferenced image's centre, from the header; else None."""
    with _open(path, whole=False) as file:
        return file.pages[0].lnglat() if file.pages[0].crs else None


def place(path: str | Path) -> tuple[rasterio.crs.CRS, rasterio.Affine, tuple[int, int]] | None:
    """Return (CRS, transform from pixels to it, (height, width)) of a georeferenced image; else None."""
    with _open(path, whole=False) as file:
        page = file.pages[0]
        known = page.crs and not page.transform.is_identity
        return (page.crs, page.transform, (page.height, page.width)) if known else None


def with_image(path: str | Path) -> list[Path]:
    """Return the files that are read with an image: the mask of its valid pixels, where one lies beside it."""
    mask = Path(f"{path}.msk")
    return [mask] if mask.is_file() else []


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) RGB uint8 as PNG; the file appears under its name only when it is whole."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"{path}: expected (H, W) or (H, W, 3) uint8, got {array.shape} {array.dtype}")
    _, data = cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])
    write_bytes(path, data.tobytes())


# ---- files --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _File:
    """An open image: its pages that are read, how it has to be turned, and what is to be said of both."""

    pages: list[rasterio.DatasetReader]
    orientation: int
    remarks: tuple[Remark, ...]
    held: int
    """How many pages the file has."""


@contextmanager
def _open(path: str | Path, whole: bool = True, strict: bool = False) -> Iterator[_File]:
    """Open an image for reading; what GDAL says becomes a DataError.

    ``whole``: insist that a PNG is complete. ``strict``: what libjpeg only warns of is an error too.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: expected an image file, found none")
    try:
        if whole:
            png.check(path)
        # Without EMPTY_DIR, GDAL lists the whole image folder at every open, looking for sidecar files.
        sidecars = "TRUE" if with_image(path) else "EMPTY_DIR"
        warned = {"GDAL_ERROR_ON_LIBJPEG_WARNING": "YES"} if strict else {}  # stated as NO, it would allow more
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN=sidecars, **warned), ExitStack() as stack:
            source = stack.enter_context(rasterio.open(path))
            names, remarks = _pages(source)
            if whole and source.driver == "JPEG" and not _has_end(Path(path)):
                remarks.append(Remark(DAMAGED, "it has no end mark; fetch this file again"))
            pages = [stack.enter_context(rasterio.open(name)) for name in names] or [source]
            for page in pages:
                _refuse(path, page)
            turned = exif.UPRIGHT if source.crs else exif.orientation(path)
            if turned != exif.UPRIGHT:
                detail = f"orientation {turned}: {exif.MEANING[turned]}; masks are read as they are stored"
                remarks.append(Remark("EXIF orientation applied", detail))
            yield _File(pages, turned, tuple(remarks), len(source.subdatasets) or 1)
    except (RasterioError, OSError, UnicodeEncodeError) as error:  # the last for a name that is not UTF-8
        reason = error.__cause__ or error
        raise DataError(f"{path}: expected a readable image, got {reason}; fetch this file again") from error
    except MemoryError as error:
        raise DataError(f"{path}: expected an image that fits into memory, got {error}; cut it into tiles") from error


def _refuse(path: str | Path, page: rasterio.DatasetReader) -> None:
    """Raise DataError for an image that would fill the memory, or whose samples are no brightness."""
    if page.height * page.width > (most := limits().image_pixels):
        raise DataError(f"{path}: expected at most {most} pixels, got {page.height} x {page.width}; cut it into tiles, "
                        "or raise data.limits.image_pixels if it is right and fits into memory")  # fmt: skip
    if any(kind.startswith("complex") for kind in page.dtypes):
        raise DataError(f"{path}: expected real samples, got {page.dtypes[0]} (radar that was not detected?); write "
                        "its magnitude")  # fmt: skip


def _pages(source: rasterio.DatasetReader) -> tuple[list[str], list[Remark]]:
    """Return the names of the pages of a TIFF to read, none where it has but one, and what is to be said of them."""
    names = source.subdatasets if source.driver == "GTiff" else []
    if len(names) < 2:
        return [], []
    tags = source.tags(ns="SUBDATASETS")
    found = [_PAGE.match(tags.get(f"SUBDATASET_{number}_DESC", "")) for number in range(1, len(names) + 1)]
    forms = [tuple(map(int, match.groups())) if match else (0, 0, 0) for match in found]
    if len(names) == 3 and len(set(forms)) == 1 and forms[0][2] == 1 and source.colorinterp[0] != ColorInterp.palette:
        return names, []
    areas = [width * height for width, height, _ in forms]
    largest = areas.index(max(areas))
    shown = ", ".join(f"{height} x {width}" for width, height, _ in forms[:4]) + (", ..." if len(forms) > 4 else "")
    if largest:
        kind = "first page is a thumbnail, the largest is read"
    elif areas.count(areas[0]) > 1:
        kind = "stack of pages, the first is read"
    else:
        kind = "further pages are smaller, the first is read"
    return [names[largest]], [Remark(kind, f"{len(names)} pages: {shown}")]


def _has_end(path: Path) -> bool:
    """Tell whether a JPEG has its end mark behind the beginning of its pixels."""
    data = path.read_bytes()
    return data.rfind(JPEG_END) > exif.start_of_scan(data)


def _read(path: str | Path, turned: bool = True) -> bands.Bands:
    """Read the colours of an image; a palette is looked up, less than 8 bits fill uint8. A JPEG whose data are broken
    is read as far as it can be, with a remark."""
    try:
        return _decoded(path, turned, strict=True)
    except DataError as error:
        if "libjpeg" not in str(error):
            raise
        fault = str(error).partition("libjpeg: ")[2]
    found = _decoded(path, turned)  # raises where nothing but an error comes of it
    return found._replace(remarks=(*found.remarks, Remark(DAMAGED, fault)))


def _decoded(path: str | Path, turned: bool, strict: bool = False) -> bands.Bands:
    """Read the colours as ``_read`` does; ``strict``: raise DataError for a JPEG whose data are broken."""
    with _open(path, strict=strict) as file:
        read = [bands.read_page(page) for page in file.pages]
        turn = file.orientation if turned else exif.UPRIGHT
        planes = np.concatenate([planes for planes, _, _ in read]) if len(read) > 1 else read[0][0]
        known = None
        if any(mask is not None for _, mask, _ in read):
            full = [np.ones((1, *own.shape[1:]), bool) if mask is None else mask for own, mask, _ in read]
            known = exif.turn(np.concatenate(full), turn)
        if turned:
            bits = None if known is None else np.packbits(known.max(axis=0))
            _recent.append((file_state(path), exif.turn(planes, turn).shape[1:], bits))
        remarks = dict.fromkeys(remark for *_, own in read for remark in own)
        return bands.Bands(exif.turn(planes, turn), known, (*file.remarks, *remarks))


_recent: deque[tuple[State, tuple[int, ...], np.ndarray | None]] = deque(maxlen=16)
"""Of the images that this process has read last: state, shape, a bit for each pixel whether it is valid (None: all).

A training sample needs an image and then its validity for the target; decoding the file again would take as long.
"""


def _remembered(state: State) -> tuple[bool, np.ndarray | None]:
    """Return whether an image was read a moment ago, and which pixels were valid, (H, W) bool, None for all."""
    for held, shape, bits in reversed(list(_recent)):  # without a lock, which a fork might find closed for ever
        if held == state:
            return True, None if bits is None else np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(
                shape
            )
    return False, None


@lru_cache(maxsize=4096)
def _bounds_of(states: tuple[State, ...]) -> bands.Bounds | None:
    """Return the bounds of an image, the first, together with those beside it; a file that changed is read anew."""
    own = _read(states[0][0])
    read = [own]
    for path, *_ in states[1:]:
        with suppress(DataError):  # whoever reads that image says so
            read.append(_read(path))
    form = own.planes.dtype, len(own.planes)
    return bands.bounds_of([one for one in read if (one.planes.dtype, len(one.planes)) == form])


def _mask_planes(path: str | Path) -> tuple[np.ndarray, bool, np.ndarray | None]:
    """Read the bands of a mask but alpha as they are stored, whether the format keeps values, and its palette."""
    with _open(path, strict=True) as file:
        page = file.pages[0]
        if file.held > 1:
            raise DataError(f"{path}: expected a mask of one page, got {file.held}; write each to a file of its own")
        colours = [n for n in range(1, page.count + 1) if page.colorinterp[n - 1] != ColorInterp.alpha] or [1]
        planes = bands.upright(page, page.read(colours))
        if len(colours) < page.count and (planes == planes[:1, :1, :1]).all() and np.ptp(page.read(page.count)):
            raise DataError(f"{path}: expected a mask in its colours, got one colour and a mask in alpha; write alpha "
                            "as a mask of its own")  # fmt: skip
        return planes, _is_exact(page), bands.palette_of(page)


def _is_exact(page: rasterio.DatasetReader) -> bool:
    """Tell from the header whether a page keeps the values that were written."""
    tags = page.tags(ns="IMAGE_STRUCTURE")
    packed = (page.driver.upper(), tags.get("COMPRESSION", "").upper())
    lossless = "LOSSLESS" in tags.get("COMPRESSION_REVERSIBILITY", "")
    return lossless or not any(name.endswith(LOSSY) for name in packed)


def _black_and_white(indices: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return 0 and 255 for the indices (H, W) of a palette (N, 4) where all that are used are black or white and differ
    in that; else the indices."""
    tones = np.array([[0] * 3, [255] * 3])
    held = np.unique(indices)
    used = colours[held, :3]
    plain = (used[:, None] == tones).all(-1).any(-1).all() and len(np.unique(used[:, 0])) == len(held)
    return colours[indices, 0] if plain and (colours[:, :3] == 255).all(-1).any() else indices
