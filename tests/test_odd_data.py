"""Data as tools leave them, found by someone who tried to make the program do the wrong thing without a word."""

import io

import numpy as np
import pytest
from PIL import Image

from lib.errors import DataError
from lib.scenes import raster
from lib.scenes.masks import read_objects


# ---- JPEGs that decode into wrong pixels ------------------------------------------------------------------
def jpeg(**options):
    """Return a JPEG of noise, whose pixels take most of the file."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def zeroed(data):
    """Zeros from the middle on, as a download leaves them that reserved its space and was broken off."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


DAMAGE = {
    "cut, with an end mark": lambda data: data[: len(data) // 2] + raster.JPEG_END,
    "zeros to the end": zeroed,
    "a header of twice the height": lambda data: data.replace(b"\x00\xa0\x00\xa0", b"\x01\x40\x00\xa0", 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_jpeg_that_only_warns_is_remarked(tmp_path, name):
    path = tmp_path / "a.jpg"
    path.write_bytes(DAMAGE[name](jpeg()))
    (remark,) = raster.read(path).remarks
    assert remark.kind == raster.DAMAGED


def test_half_a_progressive_jpeg_is_remarked_and_one_without_its_end_refused(tmp_path):
    path, data = tmp_path / "a.jpg", jpeg(progressive=True)
    path.write_bytes(data[: len(data) // 2] + raster.JPEG_END)
    assert [remark.kind for remark in raster.read(path).remarks] == [raster.DAMAGED]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.jpg: .*fetch this file again"):
        raster.read(path)


def test_a_whole_jpeg_with_a_thumbnail_or_more_behind_it_is_not_remarked(tmp_path):
    path, data = tmp_path / "a.jpg", jpeg()
    thumb = b"Photoshop 3.0" + jpeg()[:20] + raster.JPEG_END  # an end mark before the pixels is none of theirs
    app = b"\xff\xed" + (len(thumb) + 2).to_bytes(2, "big") + thumb
    for whole in (data, data + b"\xff\xda" * 9, data[:2] + app + data[2:]):
        path.write_bytes(whole)
        assert raster.read(path).remarks == ()
    path.write_bytes(zeroed(data[:2] + app + data[2:]))
    assert [remark.kind for remark in raster.read(path).remarks] == [raster.DAMAGED]


def test_a_damaged_jpeg_is_no_mask(tmp_path):
    mask = np.zeros((160, 160), np.uint8)
    mask[40:120, 40:120] = 255
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    assert read_objects(tmp_path / "a.jpg")[0].sum() == 6400
    (tmp_path / "a.jpg").write_bytes(data[:-60] + raster.JPEG_END)
    with pytest.raises(DataError, match=r"a\.jpg: expected a readable image"):
        read_objects(tmp_path / "a.jpg")


# ---- masks ------------------------------------------------------------------------------------------------
@pytest.fixture
def square():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 1
    return mask


def test_a_palette_of_black_and_white_is_read_as_it_is_seen(tmp_path, square):
    """Pillow gives the colour that fills most of a picture the lower index, others the darker one."""
    quantized = Image.fromarray(np.repeat(square[..., None] * np.uint8(255), 3, axis=2)).quantize(2)
    assert quantized.getpalette()[:3] == [255, 255, 255]
    quantized.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_objects(tmp_path / "a.png")[0], square)
    Image.fromarray(square * np.uint8(255)).convert("1").save(tmp_path / "b.bmp")
    np.testing.assert_array_equal(read_objects(tmp_path / "b.bmp")[0], square)


def test_a_palette_of_other_colours_keeps_its_indices(tmp_path, square):
    image = Image.fromarray(square * np.uint8(7), "P")
    for palette in ([0] * 768, [0] * 21 + [255, 0, 0] + [0] * 744, [255] * 3 + [0] * 18 + [9, 9, 9] + [0] * 744):
        image.putpalette(palette)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_objects(tmp_path / "a.png")[0], square)


def test_small_numbers_in_a_lossy_mask_are_not_taken_for_nothing(tmp_path, square):
    Image.fromarray(square).save(tmp_path / "a.jpg", quality=95)
    with pytest.raises(DataError, match="which of them are objects"):
        read_objects(tmp_path / "a.jpg")
    Image.fromarray(square * 0).save(tmp_path / "b.jpg")
    assert not read_objects(tmp_path / "b.jpg")[0].any()
