"""Files of any kind, place and size of pixels become one side of an area on its grid."""

import json
import re
import subprocess
import sys
from pathlib import Path

import areas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from rasterio import warp
from rasterio.crs import CRS
from rasterio.windows import Window

from lib.errors import ConfigError, DataError
from lib.maps import layout, register, sides, sources
from lib.maps.grid import Grid
from lib.scenes import raster

UTM, PLACED = areas.PLACE


def grid_of(height: int, width: int, transform=PLACED) -> Grid:
    return Grid(UTM, transform, width, height)


def side_of(*paths: Path, grid: Grid | None = None, **more) -> sides.Side:
    """Open files as a side on a grid, by default on that of the first file."""
    held = [sources.describe(str(path), more.pop("one_band", False)) for path in paths]
    made = sides.Side("pre", held, grid or Grid(held[0].crs, held[0].transform, *held[0].shape[::-1]), **more)
    sides.learn([made])
    return made


def whole(side: sides.Side) -> tuple[np.ndarray, np.ndarray]:
    return side.read(side.grid.window(0, 0, 10_000))


def with_alpha(planes: np.ndarray) -> np.ndarray:
    alpha = np.full((1, *planes.shape[1:]), 255, np.uint8)
    alpha[:, :, :20] = 0
    return np.concatenate([planes, alpha])


IMAGE = areas.image(90, 120)
HIDDEN = np.where(np.arange(120) < 20, 0, IMAGE).astype(np.uint8)
WIDE = IMAGE.astype(np.uint16) * 7 + 100
KINDS = {
    "bytes": (IMAGE, {}),
    "nodata": (HIDDEN, {"nodata": 0}),
    "alpha": (with_alpha(IMAGE), {}),
    "sixteen bits": (WIDE, {}),
    "sixteen bits with nodata": (np.where(np.arange(120) < 20, 0, WIDE).astype(np.uint16), {"nodata": 0}),
    "floats with NaN": (np.where(np.arange(120) < 20, np.nan, IMAGE / 255).astype(np.float32), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_on_its_own_grid_a_file_is_what_a_scene_of_it_is(tmp_path, kind):
    planes, more = KINDS[kind]
    path = areas.write(tmp_path / "a.tif", planes, **more)
    pixels, valid = whole(side_of(path))
    expected = raster.read(path)
    np.testing.assert_array_equal(valid, expected.valid)
    np.testing.assert_array_equal(pixels, expected.pixels)
    assert valid.mean() == (1 if kind in ("bytes", "sixteen bits") else 100 / 120)


def test_bands_are_taken_by_what_they_are_called(tmp_path):
    planes = np.concatenate([IMAGE[::-1], IMAGE[:1] // 2])
    with rasterio.open(areas.write(tmp_path / "a.tif", planes, photometric="MINISBLACK"), "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp.gray] + [rasterio.enums.ColorInterp.undefined] * 3
        file.descriptions = ("Blue", "Green", "Red", "NIR")
    pixels, valid = whole(side_of(tmp_path / "a.tif"))
    np.testing.assert_array_equal(pixels, np.moveaxis(IMAGE, 0, -1))
    assert valid.all()


def test_a_palette_is_looked_up(tmp_path):
    path = areas.write(tmp_path / "a.tif", (IMAGE[:1] // 64))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (1, 2, 3, 255), 1: (9, 8, 7, 255), 2: (0, 200, 0, 255), 3: (50, 60, 70, 255)})
    np.testing.assert_array_equal(whole(side_of(path))[0], raster.read(path).pixels)


def test_another_coordinate_system_and_pixel_size_is_warped(tmp_path):
    smooth = np.stack([np.add.outer(np.arange(200) * 0.5, np.arange(200) * 0.6) + shift for shift in (0, 20, 40)])
    degrees = CRS.from_epsg(4326)
    transform, width, height = warp.calculate_default_transform(UTM, degrees, 200, 200, *grid_of(200, 200).bounds)
    moved = np.zeros((3, height, width), np.uint8)
    warp.reproject(smooth.astype(np.float32), moved, src_transform=PLACED, src_crs=UTM, dst_transform=transform,
                   dst_crs=degrees, resampling=rasterio.enums.Resampling.bilinear)  # fmt: skip
    path = areas.write(tmp_path / "a.tif", moved, degrees, transform, nodata=0)
    pixels, valid = whole(side_of(path, grid=grid_of(200, 200)))
    inside = valid[20:-20, 20:-20]
    assert inside.all()
    off = np.abs(pixels.astype(float) - np.moveaxis(smooth, 0, -1))[20:-20, 20:-20]
    assert off.max() < 2.5


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
def test_a_pixel_does_not_depend_on_the_window_that_asks_for_it(tmp_path, resampling):
    path = areas.write(tmp_path / "a.tif", areas.image(700, 650), transform=PLACED * rasterio.Affine.rotation(7))
    grid = grid_of(600, 580, rasterio.Affine(0.6, 0, 360010, 0, -0.6, 4100010))
    side = side_of(path, grid=grid, resampling=resampling)
    pixels, valid = whole(side)
    for window in (Window(0, 0, 100, 50), Window(200, 130, 300, 257), Window(255, 255, 2, 2)):
        rows, columns = window.toslices()
        own, known = side.read(window)
        np.testing.assert_array_equal(own, pixels[rows, columns])
        np.testing.assert_array_equal(known, valid[rows, columns])
    assert 0.3 < valid.mean() < 1


@pytest.mark.parametrize("overviews", [False, True])
def test_pixels_of_a_coarser_grid_are_means(tmp_path, overviews):
    planes = np.random.default_rng(0).integers(1, 255, (3, 512, 512), np.uint8)
    path = areas.write(tmp_path / "a.tif", planes, tiled=True)
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    pixels, valid = whole(side_of(path, grid=grid_of(128, 128, rasterio.Affine(2, 0, 360000, 0, -2, 4100000))))
    means = planes.reshape(3, 128, 4, 128, 4).mean((2, 4)).transpose(1, 2, 0)
    assert valid.all() and np.corrcoef(pixels.ravel(), means.ravel())[0, 1] > 0.8  # of every fourth pixel it is 0.25


def test_of_files_that_overlap_the_first_with_data_is_taken(tmp_path):
    first = np.full((3, 60, 60), 50, np.uint8)
    first[:, :30] = 0
    areas.write(tmp_path / "a.tif", first, nodata=0)
    areas.write(tmp_path / "b.tif", np.full((3, 60, 60), 90, np.uint8), transform=PLACED.translation(0, 0) * PLACED)
    areas.write(tmp_path / "c.tif", np.full((3, 60, 60), 120, np.uint8),
                transform=rasterio.Affine(0.5, 0, 360030, 0, -0.5, 4100000))  # fmt: skip
    held = sources.find([str(tmp_path)], "pre")
    assert [Path(path).name for path in held] == ["a.tif", "b.tif", "c.tif"]
    pixels, valid = whole(side_of(*map(Path, held), grid=grid_of(60, 140)))
    assert (pixels[:30, :60] == 90).all() and (pixels[30:, :60] == 50).all()
    assert (pixels[:, 60:120] == 120).all() and not valid[:, 120:].any() and valid[:, :120].all()


def test_a_black_rim_has_no_data_and_a_shadow_has(tmp_path):
    turned = np.where(np.add.outer(np.arange(200), np.arange(240)) < 120, 0, areas.image(200, 240)).astype(np.uint8)
    turned[:, 150:160, 150:170] = 0
    path = areas.write(tmp_path / "a.tif", turned)
    side = side_of(path)
    pixels, valid = whole(side)
    np.testing.assert_array_equal(valid, np.add.outer(np.arange(200), np.arange(240)) >= 120)
    assert any("black rim" in line for line in sides.learn([side]))


@pytest.mark.parametrize(("planes", "more", "said"), [
    (IMAGE[:1], {}, "expected red, green and blue, got 1 band"),
    (IMAGE[:2], {}, "radar \\(SAR\\), or panchromatic"),
    (IMAGE[:3], {"crs": None}, "expected a raster with a place on Earth"),
    ((IMAGE[:3] + 1j).astype(np.complex64), {"photometric": "MINISBLACK"}, "radar has before it is detected"),
])  # fmt: skip
def test_what_networks_cannot_see_is_refused(tmp_path, planes, more, said):
    path = areas.write(tmp_path / "a.tif", planes, **more)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{said}"):
        sources.describe(str(path))


def test_radar_is_told_by_the_names_of_its_bands(tmp_path):
    with rasterio.open(areas.write(tmp_path / "a.tif", IMAGE), "r+") as file:
        file.descriptions = ("VV", "VH", "VV/VH")
    with pytest.raises(DataError, match="got radar \\(its header says VV\\)"):
        sources.describe(str(tmp_path / "a.tif"))


def test_a_single_band_is_taken_for_grey_where_that_is_asked_for(tmp_path):
    path = areas.write(tmp_path / "a.tif", IMAGE[:1])
    pixels, _ = whole(side_of(path, one_band=True))
    np.testing.assert_array_equal(pixels, np.repeat(IMAGE[0][..., None], 3, 2))


def test_sixteen_bits_of_a_pair_are_stretched_alike(tmp_path):
    paths = [areas.write(tmp_path / f"{n}.tif", (areas.image(80, 80, n).astype(np.uint16) * (n + 4))) for n in (0, 1)]
    made = [side_of(path) for path in paths]
    sides.learn(made)
    for side, path, other in zip(made, paths, paths[::-1], strict=True):
        np.testing.assert_array_equal(whole(side)[0], raster.read(path, [other]).pixels)


# ---- behind http --------------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path):
    """An http server on loopback with the files of a folder: its address, and a function that tells how many bytes it
    has given. It is a process of its own: GDAL does not let this one's threads work while it waits for an answer."""
    command = [sys.executable, Path(__file__).with_name("ranges.py"), tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}", lambda: int((tmp_path / "given").read_text())
        process.terminate()


def test_of_a_cog_behind_http_only_the_parts_that_are_needed_are_fetched(tmp_path, server):
    address, given = server
    planes = np.random.default_rng(0).integers(1, 255, (3, 1024, 1024), np.uint8)
    areas.write(tmp_path / "plain.tif", planes)
    rasterio.shutil.copy(tmp_path / "plain.tif", tmp_path / "a.tif", driver="COG", BLOCKSIZE=256, COMPRESS="DEFLATE")
    with sources.environment():
        source = sources.describe(f"{address}/a.tif")
        side = sides.Side("pre", [source], grid_of(1024, 1024))
        pixels, valid = side.read(Window(300, 520, 100, 100))
    np.testing.assert_array_equal(pixels, np.moveaxis(planes[:, 520:620, 300:400], 0, -1))
    assert valid.all()
    assert 0 < given() < (tmp_path / "a.tif").stat().st_size / 3


def test_a_file_that_is_not_behind_an_address_is_named(server):
    address, _ = server
    with sources.environment(), pytest.raises(DataError, match=f"{address}/none.tif: expected a raster"):
        sources.describe(f"{address}/none.tif")


def test_a_path_without_a_file_and_a_folder_without_images_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, said in (("nothing.tif", "found nothing there"), ("empty", "found none in it")):
        with pytest.raises(DataError, match=f"--post {re.escape(str(tmp_path / name))}: .*{said}"):
            sources.find([str(tmp_path / name)], "post")


def test_a_vrt_is_read_like_any_file(tmp_path):
    path = areas.write(tmp_path / "a.tif", IMAGE)
    rasterio.shutil.copy(path, tmp_path / "a.vrt", driver="VRT")
    np.testing.assert_array_equal(whole(side_of(tmp_path / "a.vrt"))[0], np.moveaxis(IMAGE, 0, -1))


# ---- the grid -----------------------------------------------------------------------------------------
def laid(folder: Path, **asked) -> layout.Layout:
    """Choose the grid of two images of 100 m (UTM, 0.5 m) and 120 m (degrees) that overlap in part."""
    pre = areas.write(folder / "pre.tif", areas.image(200, 200))
    degrees = rasterio.Affine(5e-6, 0, -94.5735, 0, -5e-6, 37.0360)
    post = areas.write(folder / "post.tif", areas.image(200, 300), CRS.from_epsg(4326), degrees)
    held = {"pre": [sources.describe(str(pre))], "post": [sources.describe(str(post))]}
    return layout.choose(held, asked.get("crs"), asked.get("pixel_size"), asked.get("trained"), asked.get("limit"))


def test_the_grid_is_that_of_the_images_in_metres_and_says_what_lies_outside(tmp_path):
    found = laid(tmp_path)
    assert found.grid.crs == UTM and tuple(found.grid.transform)[:2] == (0.5, 0.0)
    assert (found.grid.transform.c - 360000) % 0.5 == 0  # the pixels of pre
    said = " ".join(found.notes)
    for part in (
        "km2 that pre shows lie outside of what post shows",
        "km2 that post shows lie outside",
        "pre 0.50 x 0.50 m",
    ):
        assert part in said
    west, south, east, north = found.asked.bounds
    assert 360000 <= west < east <= 360100.01 and 4099899.9 <= south < north <= 4100000.01
    assert abs(layout.square_kilometres(shapely.box(360000, 4099900, 360100, 4100000), UTM) - 0.01) < 1e-5


@pytest.mark.parametrize(("asked", "crs", "side"), [
    ({"pixel_size": 0.3}, UTM, 0.3),
    ({"trained": 0.45}, UTM, 0.45),
    ({"trained": 0.49}, UTM, 0.5),  # near enough to the images' own to leave their pixels where they are
    ({"crs": CRS.from_epsg(4326), "pixel_size": 0.5}, CRS.from_epsg(4326), None),
])  # fmt: skip
def test_pixels_are_as_given_or_as_those_that_networks_were_trained_on(tmp_path, asked, crs, side):
    grid = laid(tmp_path, **asked).grid
    assert grid.crs == crs
    if side is not None:
        assert (grid.transform.a, grid.transform.e) == (side, -side)
    else:
        assert grid.pixel == pytest.approx((0.5, 0.5), rel=1e-3)


def test_images_in_degrees_get_the_utm_zone_of_their_middle(tmp_path):
    transform = rasterio.Affine(5e-6, 0, 151.2, 0, -5e-6, -33.8)
    path = areas.write(tmp_path / "a.tif", areas.image(100, 100), CRS.from_epsg(4326), transform)
    found = layout.choose({"post": [sources.describe(str(path))]}, None, None, None)
    assert found.grid.crs.to_epsg() == 32756 and found.grid.pixel_area**0.5 == pytest.approx(0.506, abs=0.003)


def test_images_of_two_places_are_refused(tmp_path):
    held = {}
    for name, west in (("pre", 360000), ("post", 365000)):
        path = areas.write(
            tmp_path / f"{name}.tif", areas.image(50, 50), transform=rasterio.Affine(1, 0, west, 0, -1, 4e6)
        )
        held[name] = [sources.describe(str(path))]
    with pytest.raises(DataError, match="pre and post: expected images of one place"):
        layout.choose(held, None, None, None)


CIRCLE = shapely.Point(360050, 4099950).buffer(20)


@pytest.mark.parametrize("form", ["wkt", "ewkt", "geojson", "gpkg"])
def test_an_aoi_is_read_in_every_form(tmp_path, form):
    degrees = layout._moved(CIRCLE, UTM, layout.DEGREES)
    text = {"wkt": shapely.to_wkt(degrees, -1), "ewkt": f"SRID=32615;{shapely.to_wkt(CIRCLE, -1)}"}.get(form)
    if form == "geojson":
        text = str(tmp_path / "aoi.geojson")
        feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(degrees)}
        Path(text).write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    elif form == "gpkg":
        geopandas = pytest.importorskip("geopandas")
        text = str(tmp_path / "aoi.gpkg")
        geopandas.GeoDataFrame(geometry=[CIRCLE], crs=32615).to_file(text)
    polygon, crs = layout.read_limit(text)
    assert layout._moved(polygon, crs, UTM).symmetric_difference(CIRCLE).area < 0.01


WRONG = [("POINT (1 2)", "expected polygons, found none"), ("POLYGON ((1", "expected a file"), ("none.json", "No such")]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_an_aoi_without_polygons_is_refused(text, said):
    with pytest.raises(ConfigError, match=f"--aoi .*{said}"):
        layout.read_limit(text)


def test_an_aoi_beside_the_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="--aoi: expected a polygon where the images overlap \\(around -94.57"):
        laid(tmp_path, limit=(shapely.box(10, 50, 11, 51), layout.DEGREES))


# ---- registration -------------------------------------------------------------------------------------
def shifted(folder: Path, right: int, down: int, noise: float = 0.0) -> list[sides.Side]:
    """Return two sides of which the later one shows things so many pixels too far right and down."""
    large = areas.image(700, 700, 5)
    rng = np.random.default_rng(6)
    after = large[:, 50 - down : 650 - down, 50 - right : 650 - right] + rng.normal(0, 1 + 250 * noise, (3, 600, 600))
    areas.write(folder / "pre.tif", large[:, 50:650, 50:650])
    areas.write(folder / "post.tif", after.clip(1, 255).astype(np.uint8))
    return [side_of(folder / f"{name}.tif") for name in ("pre", "post")]


def test_a_shift_is_measured_written_and_taken_back(tmp_path):
    first, later = shifted(tmp_path, 12, -7)
    asked = shapely.box(*first.grid.bounds)
    field = register.measure(first, later, asked)
    assert field.shift == pytest.approx((12, -7), abs=0.3)
    told = re.search(r"post lies (\S+) m beside the first image \((\S+) m to the east, (\S+) m to the north\)",
                     field.sentence("post"))  # fmt: skip
    assert [float(number) for number in told.groups()] == pytest.approx([6.95, 6.0, 3.5], abs=0.1)
    field.write(tmp_path / "field.geojson")
    arrows = json.loads((tmp_path / "field.geojson").read_text())["features"]
    told = [arrow["properties"] for arrow in arrows if arrow["properties"]["agrees"]]
    assert len(told) >= 3 and np.median([one["east_m"] for one in told]) == pytest.approx(6, abs=0.2)
    (west, south), (east, north) = arrows[0]["geometry"]["coordinates"]
    assert east > west and north > south
    taken = later.on(first.grid, (12.0, -7.0))
    assert register.measure(first, taken, asked).shift == pytest.approx((0, 0), abs=0.2)
    expected, _ = whole(first)
    pixels, valid = whole(taken)
    inside = np.s_[20:-20, 20:-20]
    assert valid[inside].all() and np.abs(pixels[inside].astype(int) - expected[inside]).mean() < 2


def test_images_that_have_nothing_in_common_tell_no_shift(tmp_path):
    areas.write(tmp_path / "pre.tif", areas.image(400, 400, 1))
    areas.write(tmp_path / "post.tif", areas.image(400, 400, 2))
    first, later = (side_of(tmp_path / f"{name}.tif") for name in ("pre", "post"))
    field = register.measure(first, later, shapely.box(*first.grid.bounds))
    assert field.shift is None and "registration: not told" in field.sentence("post")
