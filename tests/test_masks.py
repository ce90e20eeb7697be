"""Mask files of one class as people ship them: the object is the same pixels whatever numbers stand for it."""

import cv2
import numpy as np
import pytest
from PIL import Image
from test_raster import write_tiff

from lib.errors import DataError
from lib.scenes.masks import read_objects
from lib.scenes.raster import read_image


@pytest.fixture
def disc():
    y, x = np.ogrid[:96, :128]
    return ((y - 50) ** 2 + (x - 60) ** 2 < 900).astype(np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("value, dtype", [(1, np.uint8), (255, np.uint8), (7, np.uint8), (65535, np.uint16),
                                          (1, np.uint16), (255, np.uint16)])  # fmt: skip
def test_two_values_of_any_depth_are_one_mask(tmp_path, disc, value, dtype):
    """16-bit 0/65535 is the form of every mask of TGS salt that is not empty."""
    path = save(tmp_path / "a.png", disc.astype(dtype) * dtype(value))
    mask, remarks = read_objects(path)
    np.testing.assert_array_equal(mask, disc)
    assert mask.dtype == np.uint8 and remarks == []
    np.testing.assert_array_equal(read_objects(path, [0])[0], 1 - disc)
    for even in (0, value):
        flat = save(tmp_path / "flat.png", np.full((9, 9), even, dtype))
        assert read_objects(flat)[0].all() == (even > 0) and read_objects(flat)[1] == []


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_jpeg_is_cut_at_half_and_not_above_zero(tmp_path, disc, quality):
    path = save(tmp_path / "a.jpg", disc * np.uint8(255), quality=quality)
    held = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert (held > 0).sum() > 1.08 * disc.sum(), "what a cut above 0 would take for an object"
    mask, (remark,) = read_objects(path)
    assert np.count_nonzero(mask != disc) <= 0.01 * disc.sum() and remark.kind == "grey mask, cut at half"
    np.testing.assert_array_equal(read_objects(path, [0])[0], 1 - mask)
    again = save(tmp_path / "again.png", held)  # the same values in a format that keeps them
    np.testing.assert_array_equal(read_objects(again)[0], mask)
    colour = save(tmp_path / "rgb.jpg", np.dstack([disc * np.uint8(255)] * 3), quality=quality)
    assert np.count_nonzero(read_objects(colour)[0] != disc) <= 0.01 * disc.sum()
    empty = save(tmp_path / "empty.jpg", np.zeros((40, 40), np.uint8))
    assert not read_objects(empty)[0].any() and read_objects(empty)[1] == []


def test_grey_edges_of_a_resized_mask_are_cut_at_half(tmp_path, disc):
    small = cv2.resize(disc * np.uint8(255), (64, 48), interpolation=cv2.INTER_AREA)
    assert 0 < np.isin(small, (0, 255), invert=True).mean() < 0.1
    mask, (remark,) = read_objects(save(tmp_path / "a.png", small))
    np.testing.assert_array_equal(mask, small >= 128)
    assert remark.kind == "grey mask, cut at half"


def test_values_that_could_mean_anything_are_asked_about(tmp_path, disc):
    three = disc.copy()
    three[:10] = 2
    for name, mask, held in (("a", three, "0, 1, 2"), ("b", disc + 1, "1, 2"), ("c", three * 127, "0, 127, 254"),
                             ("d", np.arange(96 * 128).reshape(96, 128) // 2000, "0, 1, 2")):  # fmt: skip
        path = save(tmp_path / f"{name}.png", mask.astype(np.uint8))
        with pytest.raises(DataError, match=rf"{name}.png: expected a mask of 0 and one other.*\({held}.*objects\?"):
            read_objects(path)
    np.testing.assert_array_equal(read_objects(tmp_path / "a.png", [1, 2])[0], three > 0)
    np.testing.assert_array_equal(read_objects(tmp_path / "a.png", [2])[0], three == 2)
    np.testing.assert_array_equal(read_objects(tmp_path / "b.png", [2])[0], disc)
    assert not read_objects(tmp_path / "a.png", [9])[0].any()


def test_a_picture_is_no_mask_lossy_or_not(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    for name in ("a.png", "a.jpg"):
        with pytest.raises(DataError, match="differing bands"):
            read_objects(save(tmp_path / name, picture))
    with pytest.raises(DataError, match="which of"):
        read_objects(save(tmp_path / "grey.jpg", picture[..., 0], quality=95))


def test_a_mask_of_several_pages_is_refused(tmp_path, disc):
    Image.fromarray(disc).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(1 - disc)] * 2)
    with pytest.raises(DataError, match="a.tif: expected a mask of one page, got 3"):
        read_objects(tmp_path / "a.tif")


def test_a_mask_in_alpha_alone_is_not_an_empty_one(tmp_path, disc):
    """Exported overlays hold the object in alpha, over one colour."""
    for colour in (0, 255):
        overlay = np.dstack([np.full((96, 128, 3), colour, np.uint8), disc * np.uint8(255)])
        with pytest.raises(
            DataError, match="a.png: expected a mask in its colours, got one colour and a mask in alpha"
        ):
            read_objects(save(tmp_path / "a.png", overlay))
    plain = np.dstack([np.zeros((96, 128, 3), np.uint8), np.full((96, 128), 255, np.uint8)])
    assert not read_objects(save(tmp_path / "b.png", plain))[0].any()


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_in_which_white_is_zero_shows_what_others_show(tmp_path, disc, bits):
    top = 2**bits - 1
    stored = (top - disc.astype(np.uint32) * top).astype(np.uint16 if bits == 16 else np.uint8)
    options = {"nbits": 1} if bits == 1 else {}
    write_tiff(tmp_path / "a.tif", stored[None], photometric="MINISWHITE", **options)
    np.testing.assert_array_equal(read_objects(tmp_path / "a.tif")[0], disc)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], disc * np.uint8(255))
    if bits == 8:
        with Image.open(tmp_path / "a.tif") as file:
            np.testing.assert_array_equal(np.array(file), disc * np.uint8(255))
