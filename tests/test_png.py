"""The pixels of plain PNGs: what is added up here is what GDAL, OpenCV and a loop over bytes read."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from rasterio.io import MemoryFile

from lib.scenes import png


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def file_of(rows, kind=(8, 0, 0, 0, 0), parts=2, extra=b""):
    """Pack rows (H, 1 + bytes) uint8, each led by its filter, as a PNG whose pixels lie in several chunks."""
    packed = zlib.compress(rows.tobytes())
    cuts = np.linspace(0, len(packed), parts + 1).astype(int)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", rows.shape[1] - 1, len(rows), *kind))
    body = b"".join(chunk(b"IDAT", packed[a:b]) for a, b in zip(cuts, cuts[1:]))
    return png.SIGNATURE + head + extra + body + chunk(b"IEND", b"")


def unfiltered(rows):
    """Undo filters 0 and 1 byte by byte."""
    found = []
    for kind, *row in rows.tolist():
        left = 0
        for i, value in enumerate(row):
            row[i] = left = (value + left * kind) % 256
        found.append(row)
    return np.array(found, np.uint8)


@pytest.fixture(params=["isal", "zlib"])
def codec(request, monkeypatch):
    module = pytest.importorskip("isal.isal_zlib") if request.param == "isal" else zlib
    monkeypatch.setattr(png, "_codec", lambda: module)


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (5, 32), (4, 97), (33, 64)])
@pytest.mark.parametrize("kind", [0, 1])
def test_rows_as_they_are_and_differences_to_the_left(shape, kind, codec):
    rows = np.random.default_rng(sum(shape)).integers(0, 256, (shape[0], shape[1] + 1), dtype=np.uint8)
    rows[:, 0] = kind
    data = file_of(rows)
    assert png.fault(data) == ""
    found = png.plain_grey(data, png.inflate(data, 1 << 20))
    np.testing.assert_array_equal(found, unfiltered(rows))
    with MemoryFile(data) as memory, memory.open() as image:
        np.testing.assert_array_equal(found, image.read(1))


def test_what_opencv_writes_is_read_without_gdal(codec):
    mask = np.kron(np.random.default_rng(0).integers(0, 5, (8, 8), dtype=np.uint8), np.ones((8, 8), np.uint8))
    data = cv2.imencode(".png", mask)[1].tobytes()
    np.testing.assert_array_equal(png.plain_grey(data, png.inflate(data, 1 << 20)), mask)


def test_other_forms_are_left_to_gdal():
    rows = np.ones((32, 33), np.uint8)
    plain = file_of(rows)
    pixels = png.inflate(plain, 1 << 20)
    assert png.plain_grey(plain, pixels) is not None
    for kind in ((8, 3, 0, 0, 0), (4, 0, 0, 0, 0), (8, 0, 0, 0, 1), (8, 0, 0, 1, 0), (8, 0, 1, 0, 0)):
        assert png.plain_grey(file_of(rows, kind), pixels) is None
    assert png.plain_grey(file_of(rows, extra=chunk(b"ABCD", b"")), pixels) is None
    assert png.plain_grey(plain, pixels[:-1]) is None and png.plain_grey(plain, pixels + b"0") is None
    for kind in (0, 2, 3, 4, 9):
        mixed = rows.copy()
        mixed[7, 0] = kind
        assert png.plain_grey(file_of(mixed), mixed.tobytes()) is None


def test_a_stream_that_does_not_end_where_it_says_has_no_pixels(codec):
    rows = np.random.default_rng(1).integers(0, 5, (64, 65), dtype=np.uint8)
    whole = file_of(rows, parts=1)
    assert png.inflate(whole, 1 << 20) == rows.tobytes()
    packed = zlib.compress(rows.tobytes())
    for wrong in (packed[:-1], packed[:40], packed + b"more", packed[:-1] + bytes([packed[-1] ^ 1]),
                  packed[:50] + bytes([packed[50] ^ 255]) + packed[51:], b"", b"\0" * 9):  # fmt: skip
        data = whole[:33] + chunk(b"IDAT", wrong) + chunk(b"IEND", b"")
        assert png.fault(data) == "" and png.inflate(data, 1 << 20) is None


def test_no_more_is_unpacked_than_asked_for(codec):
    """Ten megabytes of zeros in ten kilobytes."""
    packed = zlib.compress(bytes(10 << 20))
    data = png.SIGNATURE + chunk(b"IHDR", bytes(13)) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert png.inflate(data, 1 << 16) is None
