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
from PIL import Image, ImageOps
from rasterio.transform import from_origin

from lib.errors import DataError
from lib.scenes import place
from lib.scenes.blemishes import blemishes
from lib.scenes.raster import centre, image_size, read, read_image, read_mask, stated_size, validity, write_png
from lib.settings import Limits, limits, set_limits

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
        for look in (read_image, read_mask, image_size, centre):
            with pytest.raises(DataError):
                look(tmp_path / name)


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


# ---- what is not valid is not looked at -----------------------------------------------------------------
@pytest.fixture
def hole():
    """Which pixels of the photo are data."""
    valid = np.ones((60, 80), bool)
    valid[:4, 10:70] = valid[30:33] = False
    return valid


def kinds(path):
    return [remark.kind for remark in read(path).remarks]


@pytest.mark.parametrize("dtype, nodata, scale", [(np.uint16, 65535, 7), (np.uint16, 0, 7), (np.int16, -9999, 7),
    (np.float32, -9999, 1 / 255), (np.float32, np.nan, 1.0), (np.float64, -1.7e308, 3.3),
    (np.float32, -3.4028235e38, 9), (np.uint8, 7, 1), (np.int32, -2147483648, 7000)])  # fmt: skip
@pytest.mark.parametrize("bands", [1, 3])
def test_nodata_of_any_number_type_moves_no_other_pixel(tmp_path, photo, hole, dtype, nodata, scale, bands):
    """The oracle is the same image without a nodata value, cut to the pixels that are data."""
    values = (photo.transpose(2, 0, 1)[:bands].astype(float) * scale + 8).astype(dtype)
    values[values == nodata] += 1
    write_tiff(tmp_path / "plain.tif", values[:, hole][:, None])
    write_tiff(tmp_path / "holes.tif", np.where(hole, values, dtype(nodata)), nodata=nodata)
    picture = read(tmp_path / "holes.tif")
    np.testing.assert_array_equal(picture.valid, hole)
    assert not picture.pixels[~hole].any()
    np.testing.assert_array_equal(picture.pixels[hole], read_image(tmp_path / "plain.tif")[0])
    np.testing.assert_array_equal(validity(tmp_path / "holes.tif"), hole)
    assert picture.pixels[hole].std() > 10 and kinds(tmp_path / "holes.tif") == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["alpha", "inside", "beside"])
def test_alpha_and_masks_hide_pixels_at_any_depth(tmp_path, photo, hole, dtype, kind):
    values = photo.transpose(2, 0, 1).astype(dtype) * dtype(1 if dtype == np.uint8 else 9)
    values[:, ~hole] = np.iinfo(dtype).max
    write_tiff(tmp_path / "plain.tif", values[:, hole][:, None])
    path = tmp_path / "a.tif"
    if kind == "alpha":
        alpha = hole.astype(dtype) * np.iinfo(dtype).max
        write_tiff(path, np.concatenate([values, alpha[None]]), photometric="RGB", alpha="YES")
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "inside"):
            write_tiff(path, values)
            with rasterio.open(path, "r+") as file:
                file.write_mask(hole)
        assert (tmp_path / "a.tif.msk").is_file() == (kind == "beside")
    picture = read(path)
    np.testing.assert_array_equal(picture.valid, hole)
    assert not picture.pixels[~hole].any() and picture.remarks == ()
    np.testing.assert_array_equal(picture.pixels[hole], read_image(tmp_path / "plain.tif")[0])
    np.testing.assert_array_equal(validity(path), hole)


def test_transparent_colours_and_palette_entries_of_a_png_hide_pixels(tmp_path, photo, hole):
    black = photo | 1
    black[~hole] = 0
    Image.fromarray(black).save(tmp_path / "rgb.png", transparency=(0, 0, 0))  # as some tiles of xBD are
    Image.fromarray(black[..., 0]).save(tmp_path / "grey.png", transparency=0)
    picture = Image.fromarray(hole * np.uint8(2) + ~hole)
    picture.putpalette([9, 8, 7, 50, 60, 70, 250, 240, 230])
    picture.save(tmp_path / "palette.png", transparency=1)
    for name in ("rgb", "grey", "palette"):
        found = read(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(found.valid, hole)
        np.testing.assert_array_equal(validity(tmp_path / f"{name}.png"), hole)
        assert not found.pixels[~hole].any() and found.pixels[hole].any()
    write_png(tmp_path / "plain.png", photo)
    assert read(tmp_path / "plain.png").valid.all() and validity(tmp_path / "plain.png") is None


def test_validity_of_an_image_that_was_just_read_is_known_and_of_a_changed_one_read_anew(tmp_path, photo, hole):
    other = np.roll(hole, 7, axis=0)
    for number, valid in enumerate((hole, other, hole)):
        write_tiff(tmp_path / "a.tif", np.where(valid, photo.transpose(2, 0, 1) | 1, np.uint8(0)), nodata=0)
        os.utime(tmp_path / "a.tif", ns=(number, number))
        np.testing.assert_array_equal(validity(tmp_path / "a.tif"), valid)
        np.testing.assert_array_equal(read(tmp_path / "a.tif").valid, valid)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(bytes(len(data)))  # as if it had not changed: it is not opened again
    os.utime(tmp_path / "a.tif", ns=(number, number))
    np.testing.assert_array_equal(validity(tmp_path / "a.tif"), valid)


def test_what_is_not_a_number_is_not_data_whether_declared_or_not(tmp_path, photo, hole):
    values = photo.transpose(2, 0, 1).astype(np.float32)
    values[:, ~hole] = np.inf
    values[0, 50, 50] = np.nan  # one band of a pixel
    write_tiff(tmp_path / "a.tif", values)
    picture = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.valid, hole)
    np.testing.assert_array_equal(validity(tmp_path / "a.tif"), hole)
    assert picture.pixels[50, 50].tolist() == [0, *photo[50, 50, 1:]], "whole numbers of 0..255 stay as they are"


def test_a_value_that_fills_pixels_without_being_declared_is_remarked(tmp_path, photo, hole):
    values = photo.transpose(2, 0, 1).astype(np.int16) * 7
    values[:, ~hole] = -9999
    write_tiff(tmp_path / "a.tif", values)
    assert kinds(tmp_path / "a.tif") == ["a value fills pixels and is not declared as nodata"]
    assert "-9999 in 10.0%" in read(tmp_path / "a.tif").remarks[0].detail and "--nodata -9999 FILE" in str(
        read(tmp_path / "a.tif")
    )
    write_tiff(tmp_path / "b.tif", values, nodata=-9999)
    write_tiff(tmp_path / "c.tif", np.where(hole, values, 5).astype(np.int16))
    bright = (photo.transpose(2, 0, 1).astype(int) * 500).clip(0, 65535)
    assert 0.001 < (bright == 65535).all(axis=0).mean() < 0.9, "some is overexposed"
    write_tiff(tmp_path / "d.tif", bright.astype(np.uint16))
    assert kinds(tmp_path / "b.tif") == kinds(tmp_path / "c.tif") == kinds(tmp_path / "d.tif") == []
    huge = np.where(hole, photo.transpose(2, 0, 1) * 1e300, np.finfo(float).min)
    write_tiff(tmp_path / "e.tif", huge, nodata=np.finfo(float).min)
    np.testing.assert_array_equal(read(tmp_path / "e.tif").valid, hole)
    assert np.corrcoef(read_image(tmp_path / "e.tif")[hole].ravel(), photo[hole].ravel())[0, 1] > 0.99


# ---- from many bits to eight ----------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.uint32])
def test_whole_numbers_of_a_byte_are_not_stretched(tmp_path, photo, dtype):
    narrow = photo // 4 + 40
    write_tiff(tmp_path / "a.tif", narrow.transpose(2, 0, 1).astype(dtype))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), narrow)
    Image.fromarray(narrow[..., 0].astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 1], narrow[..., 0])


def test_a_pair_is_stretched_together_over_the_valid_pixels_of_both(tmp_path, photo, hole):
    pre = photo.transpose(2, 0, 1).astype(np.uint16) * 4 + 100
    post = pre * 3 + 500
    files = [tmp_path / "pre.tif", tmp_path / "post.tif"]
    write_tiff(files[0], np.where(hole, pre, 0).astype(np.uint16), nodata=0)
    write_tiff(files[1], post)
    low, high = np.percentile(np.concatenate([pre[:, hole].ravel(), post.ravel()]).astype(np.float32), (1, 99))
    for own, other, values, valid in ((*files, pre, hole), (*files[::-1], post, np.ones_like(hole))):
        expected = np.clip((values - low) / (high - low) * 255, 0, 255).transpose(1, 2, 0) * valid[..., None]
        np.testing.assert_allclose(read(own, [other]).pixels, expected, atol=0.51)
    assert read_image(files[0]).mean() > 2 * read(files[0], [files[1]]).pixels.mean(), "alone each fills its range"
    write_tiff(files[1], post * 2)  # a file that changed is read anew
    assert read(files[0], [files[1]]).pixels.mean() < 0.8 * expected.mean()
    for other in (photo.transpose(2, 0, 1), post[:1], post.astype(np.float32)):  # of another kind: each alone
        write_tiff(files[1], other)
        np.testing.assert_array_equal(read(files[0], [files[1]]).pixels, read_image(files[0]))
    files[1].write_bytes(b"broken")
    np.testing.assert_array_equal(read(files[0], [files[1]]).pixels, read_image(files[0]))


# ---- bands, pages, orientation --------------------------------------------------------------------------
def described(path, bands, names, marks=None):
    write_tiff(path, bands)
    with rasterio.open(path, "r+") as file:
        file.descriptions = names
        if marks:
            file.colorinterp = marks
    return path


def test_bands_go_by_their_descriptions_where_colours_are_not_marked(tmp_path, photo):
    red, green, blue = photo.transpose(2, 0, 1).astype(np.uint16)
    planet = described(tmp_path / "a.tif", np.stack([blue, green, red, red * 9]), ("Blue", "Green", "Red", "NIR"))
    np.testing.assert_array_equal(read_image(planet), photo)
    edge = described(
        tmp_path / "b.tif", np.stack([green * 9, blue, red, red * 9, green]),
        ("Red Edge", "band 2: blue", "Red (665 nm)", "NIR", "green"),
    )  # fmt: skip
    np.testing.assert_array_equal(read_image(edge), photo)
    assert kinds(planet) == kinds(edge) == []
    eight = np.stack([blue, green, red, red * 0]).astype(np.uint8)  # GDAL marks four bands of bytes as RGB and alpha
    marked = described(tmp_path / "c.tif", eight, ("Blue", "Green", "Red", "NIR"))
    np.testing.assert_array_equal(read_image(marked), photo)
    assert kinds(marked) == ["bands are marked otherwise than described, the description is used"]
    assert read(marked).valid.all() and validity(marked) is None, "a NIR band is not an alpha band"


@pytest.mark.parametrize("count, said", [(4, ["4 bands, order not known, the first three taken"]), (3, []), (1, []),
    (2, ["2 bands, order not known, the first one taken"]), (8, ["8 bands, order not known, the first three taken"]),
])  # fmt: skip
def test_bands_without_a_name_are_taken_in_order_and_remarked(tmp_path, photo, count, said):
    planes = np.resize(photo.transpose(2, 0, 1), (count, 60, 80)).astype(np.uint16)
    write_tiff(tmp_path / "a.tif", planes)
    expected = planes[:3] if count >= 3 else planes[[0, 0, 0]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected.transpose(1, 2, 0))
    assert kinds(tmp_path / "a.tif") == said


def pages(path, *arrays):
    first, *rest = map(Image.fromarray, arrays)
    first.save(path, save_all=True, append_images=rest)
    return path


def test_three_pages_or_planes_of_one_band_are_rgb(tmp_path, photo):
    """The TIFFs of HuBMAP 2021 hold three grey pages, or three planes that are not marked as colours."""
    planes = np.ascontiguousarray(photo.transpose(2, 0, 1))
    paged = pages(tmp_path / "pages.tif", *planes)
    write_tiff(tmp_path / "planar.tif", planes, photometric="MINISBLACK", interleave="band")
    for path in (paged, tmp_path / "planar.tif"):
        np.testing.assert_array_equal(read_image(path), photo)
        assert kinds(path) == [] and image_size(path) == (60, 80)


def test_thumbnails_and_stacks_are_remarked_and_the_largest_page_is_read(tmp_path, photo):
    thumb = pages(tmp_path / "thumb.tif", photo[::4, ::4].copy(), photo)
    np.testing.assert_array_equal(read_image(thumb), photo)
    assert kinds(thumb) == ["first page is a thumbnail, the largest is read"] and image_size(thumb) == (60, 80)
    assert read(thumb).remarks[0].detail == "2 pages: 15 x 20, 60 x 80"
    stack = pages(tmp_path / "stack.tif", *[photo[..., 0] // n for n in (1, 2, 3, 4)])
    np.testing.assert_array_equal(read_image(stack)[..., 1], photo[..., 0])
    assert kinds(stack) == ["stack of pages, the first is read"]
    assert kinds(pages(tmp_path / "colours.tif", photo, photo, photo)) == ["stack of pages, the first is read"]
    smaller = pages(tmp_path / "levels.tif", photo, photo[::2, ::2].copy())
    assert kinds(smaller) == ["further pages are smaller, the first is read"]
    np.testing.assert_array_equal(read_image(smaller), photo)


def test_complex_samples_are_refused(tmp_path, photo):
    write_tiff(tmp_path / "radar.tif", (photo[None, ..., 0] * (1 + 2j)).astype(np.complex64))
    for look in (read_image, read_mask, image_size):
        with pytest.raises(DataError, match="radar.tif: expected real samples, got complex64.*magnitude"):
            look(tmp_path / "radar.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_applied_as_others_do_and_not_to_masks(tmp_path, photo, orientation, suffix):
    tags = Image.Exif()
    tags[0x0112] = orientation
    path, plain = tmp_path / f"a.{suffix}", tmp_path / f"plain.{suffix}"
    for file, options in ((path, {"exif": tags}), (plain, {})):
        Image.fromarray(photo).save(file, quality=100, lossless=True, **options)
    with Image.open(path) as file:
        turned = np.array(ImageOps.exif_transpose(file).convert("RGB"))
    if suffix == "jpg":  # OpenCV turns other formats in its later releases alone
        assert np.abs(cv2.imread(str(path))[..., ::-1].astype(int) - turned).mean() < 2
    assert turned.shape[:2] == ((80, 60) if orientation > 4 else (60, 80))
    picture = read(path)
    apart = np.abs(picture.pixels.astype(int) - turned).mean()
    assert apart < 2, "two decoders of JPEG; the wrong turn gives over 20"
    assert image_size(path) == picture.valid.shape == turned.shape[:2]
    assert kinds(path) == (["EXIF orientation applied"] if orientation > 1 else [])
    np.testing.assert_array_equal(read_image(path, turned=False), read_image(plain))
    if suffix == "png":
        Image.fromarray(photo[..., 0]).save(path, exif=tags)
        np.testing.assert_array_equal(read_mask(path), photo[..., 0])


def test_exif_orientation_of_a_tiff_is_applied_to_pixels_and_validity(tmp_path, photo, hole):
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(np.dstack([photo, hole * np.uint8(255)]), "RGBA").save(tmp_path / "a.tif", exif=tags)
    picture = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.valid, np.rot90(hole, -1))
    np.testing.assert_array_equal(picture.pixels, np.rot90(photo * hole[..., None], -1))
    np.testing.assert_array_equal(validity(tmp_path / "a.tif"), picture.valid)
    for at in range(4, 60):  # damaged tags turn nothing and stop nothing
        broken = bytearray((tmp_path / "a.tif").read_bytes())
        broken[at] ^= 0xFF
        (tmp_path / "b.tif").write_bytes(broken)
        stated_size(tmp_path / "b.tif")


# ---- sizes ----------------------------------------------------------------------------------------------
def declared(path, width, height):
    """Write a PNG of a few bytes that declares any size, with right checksums."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    packed = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def test_an_image_above_the_limit_is_named_and_not_read(tmp_path, photo):
    for path, size in ((declared(tmp_path / "bomb.png", 60_000, 60_000), "60000 x 60000"),
                       (tmp_path / "large.tif", "30000 x 30000")):  # fmt: skip
        if not path.exists():  # 900 million pixels in a small file
            with rasterio.open(path, "w", driver="GTiff", width=30_000, height=30_000, count=1, dtype="uint8",
                               sparse_ok=True, tiled=True):  # fmt: skip
                pass
        for look in (read_image, read_mask, image_size, validity, centre):
            with pytest.raises(DataError, match=rf"{path.name}: expected at most 250000000 pixels, got {size};.*"
                                                "data.limits.image_pixels"):  # fmt: skip
                look(path)
        assert stated_size(path) == (None, None)
    write_png(tmp_path / "a.png", photo)
    before = limits()
    try:
        set_limits(Limits(image_pixels=60 * 80 - 1))
        with pytest.raises(DataError, match="expected at most 4799 pixels, got 60 x 80"):
            read_image(tmp_path / "a.png")
        set_limits(Limits(image_pixels=60 * 80))
        read_image(tmp_path / "a.png")
    finally:
        set_limits(before)


# ---- what looks wrong -----------------------------------------------------------------------------------
def test_rims_clouds_and_images_of_one_colour_are_blemishes(tmp_path, photo):
    def found(image):
        write_png(tmp_path / "a.png", image)
        return [remark.kind for remark in blemishes(read(tmp_path / "a.png"))]

    bright = photo // 2 + 60
    assert found(bright) == []
    rim, cloud = bright.copy(), bright.copy()
    rim[:, :9], cloud[20:40, 30:50] = 0, 255
    assert found(rim) == ["black areas with hard edges"] and found(cloud) == ["white areas with hard edges"]
    assert found(np.where(rim == 0, rim, cloud)) == ["black areas with hard edges", "white areas with hard edges"]
    assert found(np.zeros_like(photo)) == ["image all black"] and found(photo * 0 + 9) == ["image of one colour"]
    faded = np.minimum(np.arange(80, dtype=np.uint8), 40)[None, :, None] // 4 * np.ones((60, 1, 3), np.uint8)
    assert (faded == 0).mean() > 0.04 and found(faded) == [], "dark ground that fades out is no rim"
    few = bright.copy()
    few[:5, :5] = 0
    assert found(few) == []
    hidden = np.dstack([rim, np.where(rim[..., 0] == 0, 0, 255)]).astype(np.uint8)
    Image.fromarray(hidden, "RGBA").save(tmp_path / "b.png")
    (remark,) = blemishes(read(tmp_path / "b.png"))
    assert remark.kind == "pixels without data" and remark.detail.startswith("11.")
    Image.fromarray(hidden * np.array([1, 1, 1, 0], np.uint8), "RGBA").save(tmp_path / "c.png")
    assert [remark.kind for remark in blemishes(read(tmp_path / "c.png"))] == ["image without valid pixels"]


# ---- places ---------------------------------------------------------------------------------------------
def placed(path, photo, crs, transform):
    write_tiff(path, photo.transpose(2, 0, 1), crs=crs, transform=transform)
    return path


def test_footprints_of_a_pair_are_compared_in_one_crs(tmp_path, photo):
    origin = (500_000.0, 4_100_000.0)  # UTM 15N
    pre = placed(tmp_path / "pre.tif", photo, "EPSG:32615", from_origin(*origin, 0.6, 0.6))

    def post(dx=0.0, dy=0.0, size=0.6, crs="EPSG:32615"):
        return placed(tmp_path / "post.tif", photo, crs, from_origin(origin[0] + dx, origin[1] + dy, size, size))

    assert place.remarks(pre, post()) == [] == place.remarks(pre, post(dx=1.2))  # 0 and 2 pixels
    (remark,) = place.remarks(pre, post(dx=6, dy=-6))
    assert remark == ("pre and post lie apart", "corners are up to 14.1 pixels apart, 73% of pre is in post")
    assert [r.kind for r in place.remarks(pre, post(size=0.5))] == ["pre and post differ in pixel size",
                                                                  "pre and post lie apart"]  # fmt: skip
    place.refuse_apart(pre, post(dx=6))
    with pytest.raises(DataError, match="post.tif: expected the place of .*pre.tif"):
        place.refuse_apart(pre, post(dx=500_000))
    with pytest.raises(DataError, match="nothing in common"):
        place.refuse_apart(pre, post(dx=80 * 0.6))  # side by side
    west, south, east, north = rasterio.warp.transform_bounds(
        "EPSG:32615", "EPSG:4326", origin[0], origin[1] - 36, origin[0] + 48, origin[1]
    )
    degrees = rasterio.transform.from_bounds(west, south, east, north, 80, 60)
    other = placed(tmp_path / "degrees.tif", photo, "EPSG:4326", degrees)
    assert place.remarks(pre, other) == [] and place.offset(pre, other).pixels < 1
    write_png(tmp_path / "plain.png", photo)
    assert place.offset(pre, tmp_path / "plain.png") is None and place.remarks(tmp_path / "plain.png", pre) == []
