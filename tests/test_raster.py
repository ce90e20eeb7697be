"""Images on disk: what is written is read, every kind becomes RGB, and a broken file is never a grey picture."""

import os
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from lib.errors import DataError
from lib.scenes.raster import centre, image_size, read_image, read_mask, write_png

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def write_tiff(path, bands, **profile):
    """Write (C, H, W) as GeoTIFF; without a place on earth by default."""
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **profile
        ) as file:
            file.write(bands)


def test_png_round_trip_and_other_readers(tmp_path, photo):
    write_png(tmp_path / "rgb.png", photo)
    write_png(tmp_path / "mask.png", photo[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), photo)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "rgb.png")), photo)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), photo[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "mask.png"), np.repeat(photo[..., :1], 3, axis=2))
    assert image_size(tmp_path / "rgb.png") == (60, 80)
    assert sorted(os.listdir(tmp_path)) == ["mask.png", "rgb.png"]
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "float.png", photo / 255)


def test_reading_is_silent_about_missing_georeference(tmp_path, photo):
    write_png(tmp_path / "a.png", photo)
    program = "import sys; from lib.scenes.raster import read_image; print(read_image(sys.argv[1]).shape)"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, tmp_path / "a.png"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("(60, 80, 3)\n", "")


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 1 - 1e-9])
def test_png_cut_short_is_an_error(tmp_path, photo, share, interlace):
    Image.fromarray(photo).save(tmp_path / "a.png", interlace=interlace)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="a.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix, options", [(".jpg", {}), (".tif", {}), (".tif", {"compression": "tiff_deflate"})])
def test_other_formats_cut_short_are_errors(tmp_path, photo, suffix, options):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(photo).save(path, **options)
    assert np.abs(read_image(path).astype(int) - photo).mean() < 5  # jpeg is lossy
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=path.name):
        read_image(path)


def test_a_flipped_byte_anywhere_is_an_error(tmp_path, photo):
    write_png(tmp_path / "a.png", photo[:12, :12])
    data = (tmp_path / "a.png").read_bytes()
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 0x10
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(DataError, match="b.png"):
            read_image(tmp_path / "b.png")


def test_missing_files_folders_and_texts_are_errors(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    for name in ("none.png", ".", "text.png"):
        for read in (read_image, read_mask, image_size, centre):
            with pytest.raises(DataError):
                read(tmp_path / name)


def test_bytes_after_the_end_of_a_png_do_no_harm(tmp_path, photo):
    write_png(tmp_path / "a.png", photo)
    with open(tmp_path / "a.png", "ab") as file:
        file.write(b"trailing" + zlib.compress(b"junk"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


def test_alpha_grey_palette_and_one_bit(tmp_path, photo):
    alpha = np.dstack([photo, np.full((60, 80), 7, np.uint8)])
    Image.fromarray(alpha, "RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), photo)
    Image.fromarray(alpha[..., 2:], "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), np.repeat(photo[..., 2:], 3, axis=2))
    np.testing.assert_array_equal(read_mask(tmp_path / "la.png"), photo[..., 2])

    labels = (photo[..., 0] > 127).astype(np.uint8) * 2
    palette = Image.fromarray(labels)
    palette.putpalette([9, 8, 7, 0, 0, 0, 250, 240, 230])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), labels)
    np.testing.assert_array_equal(
        read_image(tmp_path / "palette.png"), np.array([[9, 8, 7], [0, 0, 0], [250, 240, 230]], np.uint8)[labels]
    )

    Image.fromarray(labels > 0).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bit.png"), labels > 0)
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[..., 1], (labels > 0) * np.uint8(255))


def test_a_picture_is_not_a_mask(tmp_path, photo):
    write_png(tmp_path / "photo.png", photo)
    with pytest.raises(DataError, match="differing bands"):
        read_mask(tmp_path / "photo.png")
    write_tiff(tmp_path / "big.tif", np.array([[[0, 1], [2, 300]]], np.uint16))
    with pytest.raises(DataError, match="0..255"):
        read_mask(tmp_path / "big.tif")


def test_geotiff_bands_and_centre(tmp_path, photo):
    planes = photo.transpose(2, 0, 1)
    place = {"crs": "EPSG:4326", "transform": from_origin(10.0, 50.0, 0.001, 0.002)}
    write_tiff(tmp_path / "four.tif", np.concatenate([planes, planes[:1]]), photometric="RGB", **place)
    np.testing.assert_array_equal(read_image(tmp_path / "four.tif"), photo)
    assert centre(tmp_path / "four.tif") == pytest.approx((10.0 + 40 * 0.001, 50.0 - 30 * 0.002))
    write_png(tmp_path / "plain.png", photo)
    assert centre(tmp_path / "plain.png") is None

    write_tiff(tmp_path / "bgr.tif", np.concatenate([planes[::-1], planes[:1]]))
    with rasterio.open(tmp_path / "bgr.tif", "r+") as file:
        colours = rasterio.enums.ColorInterp
        file.colorinterp = (colours.blue, colours.green, colours.red, colours.undefined)
    np.testing.assert_array_equal(read_image(tmp_path / "bgr.tif"), photo)


@pytest.mark.parametrize("dtype, scale", [(np.uint16, 7), (np.int16, 7), (np.float32, 1 / 255)])
def test_more_than_eight_bits_are_stretched_between_percentiles(tmp_path, photo, dtype, scale):
    bands = (photo.transpose(2, 0, 1).astype(float) * scale + (100 if scale > 1 else 0)).astype(dtype)
    bands[:, :5] = 0  # no data
    write_tiff(tmp_path / "deep.tif", bands)
    low, high = np.percentile(bands[:, 5:], (1, 99))
    expected = np.clip((bands.astype(float) - low) / (high - low) * 255, 0, 255).transpose(1, 2, 0)
    np.testing.assert_allclose(read_image(tmp_path / "deep.tif"), expected, atol=0.51)


def test_deep_images_without_contrast_do_not_fail(tmp_path):
    write_tiff(tmp_path / "flat.tif", np.full((1, 4, 4), 9, np.uint16))
    write_tiff(tmp_path / "black.tif", np.zeros((3, 4, 4), np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert read_image(tmp_path / "flat.tif").shape == (4, 4, 3)
    assert not read_image(tmp_path / "black.tif").any()
