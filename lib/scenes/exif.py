"""How a photograph has to be turned before it is looked at: the orientation that cameras write into a file.

Browsers, image viewers and ``cv2.imread`` turn a picture so; GDAL and, unless it is asked, PIL do not. The tag is in
a JPEG's EXIF block, in the eXIf chunk of a PNG, the EXIF chunk of a WebP, and in the first directory of a TIFF.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

UPRIGHT = 1
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width."""
MEANING = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored from top to bottom",
    5: "transposed",
    6: "turned by 90 degrees clockwise",
    7: "transposed over the other diagonal",
    8: "turned by 90 degrees counter-clockwise",
}
"""What is done to the stored rows of each orientation."""

_TAG = 0x0112
_SHORT = 3


def orientation(path: str | Path) -> int:
    """Return the orientation that a file states, 1 to 8; 1, upright, where it states none that can be understood."""
    try:
        with open(path, "rb") as file:
            found = _of_tiff(_exif(file))
    except (OSError, struct.error):
        return UPRIGHT
    return found if found in MEANING else UPRIGHT


def turn(planes: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (..., H, W) as an orientation wants it to be seen; returns a view."""
    if orientation in SIDEWAYS:
        planes = planes.swapaxes(-1, -2)
    if orientation in (2, 3, 6, 7):
        planes = planes[..., ::-1]
    return planes[..., ::-1, :] if orientation in (3, 4, 7, 8) else planes


def _exif(file: BinaryIO) -> bytes:
    """Return the TIFF structure that holds the tags, b"" where there is none."""
    head = file.read(12)
    if head[:4] in (b"II*\0", b"MM\0*"):
        return _first_directory(file, head)
    if head[:2] == b"\xff\xd8":
        return _of_jpeg(file)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _chunk(file, 8, ">I4s", b"eXIf", b"IDAT")
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return _chunk(file, 12, "<4sI", b"EXIF", b"")
    return b""


def _first_directory(file: BinaryIO, head: bytes) -> bytes:
    """Return a TIFF's header and first directory, wherever in the file that stands, as one structure."""
    order = "<" if head[:1] == b"I" else ">"
    file.seek(struct.unpack_from(order + "I", head, 4)[0])
    (count,) = struct.unpack(order + "H", file.read(2))
    return head[:4] + struct.pack(order + "IH", 8, count) + file.read(12 * count)


def _of_jpeg(file: BinaryIO) -> bytes:
    """Return the content of a JPEG's EXIF segment."""
    file.seek(2)
    while True:
        marker, length = struct.unpack(">HH", file.read(4))
        if marker == 0xFFDA or marker >> 8 != 0xFF:  # the pixels begin
            return b""
        body = file.read(length - 2) if marker == 0xFFE1 else b""
        if body.startswith(b"Exif\0\0"):
            return body[6:]
        if not body:
            file.seek(length - 2, 1)


def start_of_scan(data: bytes) -> int:
    """Return where the pixels of a JPEG begin: the byte of the first marker SOS, or where its segments end before."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def _chunk(file: BinaryIO, at: int, form: str, wanted: bytes, last: bytes) -> bytes:
    """Return the content of the chunk ``wanted`` of a PNG or WebP; the search ends at a chunk ``last``."""
    while True:
        file.seek(at)
        first, second = struct.unpack(form, file.read(8))
        name, length = (second, first) if isinstance(second, bytes) else (first, second)
        if name == wanted:
            return file.read(length).removeprefix(b"Exif\0\0")
        if name == last:
            return b""
        at += 8 + length + (4 if form.startswith(">") else length % 2)  # a PNG's checksum, a WebP's padding


def _of_tiff(data: bytes) -> int:
    """Return the value of the orientation tag of a TIFF structure, 0 where it has none."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return 0
    order = "<" if data[:1] == b"I" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if (tag, kind) == (_TAG, _SHORT):
            return struct.unpack_from(order + "H", data, entry + 8)[0]
    return 0
