"""Whether a PNG is whole.

GDAL and other readers take a file that was cut short without an error, with pixels that never were in the image. So its
chunks are walked (0.2 ms per MB).
"""

import struct
import zlib
from pathlib import Path

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
