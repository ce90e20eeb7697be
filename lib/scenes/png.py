"""Whether a PNG is whole, and the pixels of the plainest ones.

GDAL and other readers take a file that was cut short without an error, with pixels that never were in the image. So its
chunks are walked (0.2 ms per MB).
"""

import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lib.errors import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check(path: str | Path) -> None:
    """Raise DataError unless every chunk of a PNG is there with the right checksum; other formats pass."""
    data = Path(path).read_bytes()
    if not data.startswith(SIGNATURE):
        return
    try:
        end_of(data)
    except DataError as error:
        raise DataError(f"{path}: {error}; fetch this file again") from error


def fault(data: bytes) -> str:
    """Say why the bytes of a file are not a PNG that is whole and ends where the file does, "" if they are.

    GDAL, and other readers, take some of these files without an error.
    """
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        return "is not a PNG"
    try:
        end = end_of(data)
    except DataError as error:
        return "is cut short" if "truncated" in str(error) else "is damaged: a chunk has a wrong checksum"
    return "has bytes after the end of the PNG" if end < len(data) else ""


def end_of(data: bytes) -> int:
    """Walk the chunks of a PNG, the bytes of a file with its signature, and return where the last one ends.

    Raises DataError, which says what is wrong and names no file, where one is cut short or has a wrong checksum.
    """
    at, name = len(SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at) if at + 12 <= len(data) else (len(data), b"")
        end = at + 8 + length
        if end + 4 > len(data):
            raise DataError(f"truncated PNG ({len(data)} bytes, no end mark)")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DataError(f"damaged PNG (wrong checksum at byte {at})")
        at = end + 4
    return at


# ---- pixels -------------------------------------------------------------------------------------------
def inflate(data: bytes, most: int) -> bytes | None:
    """Unpack the pixels of a PNG, whose chunks are whole, with the byte before each row that says how it is filtered.

    None where their stream does not end where it says it does. Of each chunk, and of all together, not more than about
    ``most`` bytes are unpacked.
    """
    codec = _codec()
    stream, at, found, size = codec.decompressobj(), len(SIGNATURE), [], 0
    try:
        while at < len(data) and size <= most:
            length, name = struct.unpack_from(">I4s", data, at)
            if name == b"IDAT":
                found.append(stream.decompress(data[at + 8 : at + 8 + length], most))
                size += len(found[-1])
            at += 12 + length
    except codec.error:
        return None
    return b"".join(found) if stream.eof and not stream.unused_data else None


@cache
def _codec() -> Any:
    """Return the module that unpacks: the optional isal (``requirements-fast.txt``), twice as fast, or zlib."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


def plain_grey(data: bytes, pixels: bytes) -> np.ndarray | None:
    """Return (H, W) uint8 of an 8-bit grey PNG of the plainest form, from what ``inflate`` gave; None of all others.

    That is what OpenCV writes: no chunks but those of the pixels, and all rows as they are or all as differences from
    the left neighbour. GDAL adds these up one after the other, here whole columns are added.
    """
    width, height, *kind = struct.unpack_from(">IIBBBBB", data, 16)
    if kind != [8, 0, 0, 0, 0] or len(pixels) != height * (width + 1) or not pixels:
        return None
    if data[33 + 4 : 33 + 8] != b"IDAT" or not _only_pixels(data):
        return None
    rows = np.frombuffer(pixels, np.uint8).reshape(height, width + 1)
    filters = rows[:, 0]
    if not filters.any():
        return np.ascontiguousarray(rows[:, 1:])
    if (filters != 1).any():
        return None
    columns = cv2.transpose(rows)[1:]
    few = _FEW if width % _FEW == 0 else 1
    groups = columns.reshape(width // few, few, height)  # sums within groups of columns, then over the groups
    for n in range(1, few):
        np.add(groups[:, n], groups[:, n - 1], out=groups[:, n])
    for n in range(1, len(groups)):
        np.add(groups[n], groups[n - 1, -1], out=groups[n])
    return cv2.transpose(columns)


_FEW = 32
"""Columns of a group; about the root of a tile's width, so that the fewest calls are made."""


def _only_pixels(data: bytes) -> bool:
    """Tell whether nothing but IDAT stands between a PNG's header and its end."""
    at = 33
    while data[at + 4 : at + 8] == b"IDAT":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return data[at + 4 : at + 8] == b"IEND"
