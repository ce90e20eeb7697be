"""Tables, files and counts of objects: what stands in them is what was found, and other readers find the same."""

import json
import os
import sqlite3
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.warp import transform_geom

for needed in ("geopandas", "pyogrio", "pyproj"):
    pytest.importorskip(needed, reason="requirements-maps.txt")

from lib.errors import ArtifactError, ConfigError, DataError
from lib.maps import footprints, outputs, vectors
from lib.maps.area_file import Area
from lib.maps.grid import Grid
from lib.maps.outputs import OutputOptions, write_all
from lib.maps.polygons import Finder, Layers
from lib.maps.vectors import Legend, table

GRID = Grid(CRS.from_epsg(32615), rasterio.Affine(0.5, 0, 365000, 0, -0.5, 4105000), 64, 48)
CLASSES = ("whole", "light-harm", "ruin")
COLOURS = {"whole": "#46be5a", "light-harm": "#fadc3c", "ruin": "#dc2828"}
LEGEND = Legend(CLASSES, COLOURS, ("house", *CLASSES), "an event", "a model")
SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))
JOPLIN = SHARED / "geotiff_joplin" / "footprints.geojson"


def rasters() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return three objects: 4 x 4 of ruin, 6 x 10 two thirds whole, one pixel with as many votes for two classes."""
    answer, levels = np.zeros((48, 64), np.uint8), {name: np.zeros((48, 64), np.uint8) for name in LEGEND.levels}
    answer[4:8, 6:10] = 3
    levels["ruin"][4:8, 6:10], levels["whole"][4:8, 6:10], levels["house"][4:8, 6:10] = 204, 51, 255
    answer[20:26, 30:40], answer[20:22, 30:40] = 1, 2
    levels["whole"][20:26, 30:40], levels["light-harm"][20:22, 30:40] = 153, 255
    answer[40, 60], answer[40, 61] = 2, 3
    levels["light-harm"][40, 60:62], levels["ruin"][40, 60:62] = 100, 102
    answer[:, :3] = 255
    return answer, levels


def objects(answer, levels):
    batches = list(Finder(Layers.of_arrays(answer, levels), 3))
    assert len(batches) == 1
    return batches[0]


def area(folder: Path, disagreement: bool = False) -> Area:
    """Write the rasters of an area and return what area.json says of them."""
    answer, levels = rasters()
    planes = {"answer": answer} | {f"p_{number}": plane for number, plane in enumerate(levels.values())}
    if disagreement:
        planes["spread"] = np.full(answer.shape, 51, np.uint8)
    for name, plane in planes.items():
        with rasterio.open(folder / f"{name}.tif", "w", count=1, dtype="uint8", **GRID.profile) as file:
            file.write(plane, 1)
    files = {name: f"p_{number}.tif" for number, name in enumerate(levels)}
    spread = "spread.tif" if disagreement else None
    said = ("The left rim has no data.",)
    held = Area(GRID, CLASSES, COLOURS, files, "answer.tif", spread, "an event", "a model", notes=said)
    held.write(folder)
    return held


def test_a_table_says_class_probabilities_and_confidence():
    frame = table(objects(*rasters()), GRID, LEGEND)
    assert frame["class"].tolist() == ["ruin", "whole", "ruin"]  # of equal votes the higher level
    assert frame["pixels"].tolist() == [16, 60, 2]
    assert frame["p_ruin"].tolist() == [0.8, 0.0, 0.4] and frame["p_whole"].tolist() == [0.2, 0.6, 0.0]
    assert frame["p_light_harm"].tolist() == [0.0, pytest.approx(1 / 3, abs=1e-4), pytest.approx(100 / 255, abs=1e-4)]
    assert frame["confidence"].tolist() == [0.8, 0.6, 0.4] and frame["p_house"].tolist() == [1, 0, 0]
    assert frame["id"].tolist() == [4 * 64 + 6, 20 * 64 + 30, 40 * 64 + 60]
    assert set(frame["event"]) == {"an event"} and set(frame["model"]) == {"a model"}
    assert frame.crs == "EPSG:32615" and frame.geometry[0].equals(shapely.box(365003, 4104996, 365005, 4104998))


def test_without_levels_there_is_no_confidence():
    answer, _ = rasters()
    frame = table(objects(answer, {}), GRID, Legend(CLASSES, COLOURS, ()))
    assert frame["class"].tolist() == ["ruin", "whole", "light-harm"] and frame["confidence"].isna().all()


def test_areas_are_those_of_an_equal_area_projection():
    shapes = [shapely.box(-94.5, 37.05, -94.499, 37.051), shapely.box(10, 60, 10.01, 60.01),
              shapely.box(0, 0, 0.02, 0.02).difference(shapely.box(0.005, 0.005, 0.01, 0.01))]  # fmt: skip
    flat = [shapely.geometry.shape(transform_geom("EPSG:4326", "EPSG:6933", shapely.segmentize(shape, 1e-4)))
            for shape in shapes]  # fmt: skip
    assert vectors.areas(np.array(shapes, object)) == pytest.approx([shape.area for shape in flat], rel=1e-6)
    both = shapely.MultiPolygon([shapes[0], shapes[1]])
    assert vectors.areas(np.array([both], object)) == pytest.approx(flat[0].area + flat[1].area, rel=1e-6)


def test_area_and_centre_are_those_on_the_ground():
    frame = table(objects(*rasters()), GRID, LEGEND)
    scale = 0.9998  # of UTM, about 135 km from its central meridian
    assert frame["area_m2"].to_numpy() == pytest.approx(
        frame["pixels"].to_numpy() * 0.25 / scale**2, rel=5e-4, abs=0.006
    )
    x, y = rasterio.warp.transform("EPSG:4326", GRID.crs, frame["lon"], frame["lat"])
    assert x[0] == pytest.approx(365004, abs=0.02) and y[0] == pytest.approx(4104997, abs=0.02)


def geometry_of(blob: bytes) -> shapely.Geometry:
    """Read a geometry of a GeoPackage as its standard states it: GP, version, flags, srs, envelope, WKB."""
    assert blob[:2] == b"GP"
    return shapely.from_wkb(blob[8 + (0, 32, 48, 48, 64)[blob[3] >> 1 & 7] :])


@pytest.mark.parametrize("batch", [1, 5000])
def test_both_files_hold_what_the_table_holds(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(vectors, "BATCH", batch)
    frame = table(objects(*rasters()), GRID, LEGEND)
    with vectors.opened(tmp_path / "a.gpkg", tmp_path / "a.geojson") as writer:
        for number in range(len(frame)):
            writer.add(frame.iloc[number : number + 1])
    with sqlite3.connect(tmp_path / "a.gpkg") as database:
        rows = database.execute("SELECT id, class, p_ruin, geom FROM objects ORDER BY id").fetchall()
        ((srs,),) = database.execute("SELECT srs_id FROM gpkg_contents WHERE table_name = 'objects'").fetchall()
    assert srs == 32615 and [row[:3] for row in rows] == list(zip(frame["id"], frame["class"], frame["p_ruin"]))
    assert all(geometry_of(row[3]).equals(shape) for row, shape in zip(rows, frame.geometry, strict=True))

    held = json.loads((tmp_path / "a.geojson").read_text())
    assert held["type"] == "FeatureCollection" and "crs" not in held and len(held["features"]) == 3
    for feature, (_, row) in zip(held["features"], frame.iterrows(), strict=True):
        assert feature["properties"] == {name: row[name] for name in frame.columns if name != "geometry"}
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.exterior.is_ccw  # RFC 7946
        assert (shape.centroid.x, shape.centroid.y) == pytest.approx((row["lon"], row["lat"]), abs=2e-7)
        assert all(len(repr(number).partition(".")[2]) <= 7 for point in shape.exterior.coords for number in point)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.geojson", "a.gpkg"]


def test_an_area_without_objects_has_files_with_their_columns(tmp_path):
    held = area(tmp_path)
    with rasterio.open(tmp_path / held.answer, "r+") as file:
        file.write(np.zeros(GRID.shape, np.uint8), 1)
    said = write_all(tmp_path)
    assert ": 0 objects (whole 0, light-harm 0, ruin 0), 0 m2" in said[0]
    import geopandas

    frame = geopandas.read_file(tmp_path / "objects.gpkg", layer="objects")
    assert len(frame) == 0 and {"class", "confidence", "p_ruin", "area_m2", "event"} <= {*frame.columns}
    assert json.loads((tmp_path / "objects.geojson").read_text())["features"] == []


def test_everything_of_an_area_is_written_and_agrees(tmp_path):
    area(tmp_path, disagreement=True)
    said = write_all(tmp_path, pictures={}, options=OutputOptions(cell=10, block=16))
    assert "3 objects (whole 1, light-harm 0, ruin 2)" in said[0]
    import geopandas

    frame = geopandas.read_file(tmp_path / "objects.gpkg", layer="objects")
    assert frame["disagreement"].tolist() == [0.2, 0.2, 0.2]
    rows = (tmp_path / "summary.csv").read_text().splitlines()
    assert rows[0] == "class,objects,share,area_m2" and rows[1].startswith("whole,1,0.3333,15.")
    assert rows[-1].startswith("all,3,1.0,")
    cells = geopandas.read_file(tmp_path / "objects.gpkg", layer="cells")
    assert cells["cell"].tolist() == ["0-0", "1-1", "2-3"] and cells["n_ruin"].tolist() == [1, 0, 1]
    assert cells["area_m2"].sum() == pytest.approx(frame["area_m2"].sum(), abs=0.2)
    assert cells.geometry[0].bounds == (365000, 4104990, 365010, 4105000)
    assert cells.geometry[2].bounds == (365030, 4104980 - 4, 365032, 4104980)  # cut where the grid ends
    seen = geopandas.read_file(tmp_path / "objects.gpkg", layer="area")
    assert seen.geometry[0].bounds == (365001.5, 4104976, 365032, 4105000)  # without the rim
    assert seen["notes"][0] == "The left rim has no data."


def test_small_objects_are_left_out_and_counted(tmp_path):
    area(tmp_path)
    said = write_all(tmp_path, options=OutputOptions(least_area=3.9))  # 16 pixels are 4 m2
    assert "2 objects (whole 1, light-harm 0, ruin 1)" in said[0]
    assert said[-1] == "1 objects of less than 3.9 m2 were left out"


def test_qgis_finds_colours_in_the_package_and_beside_the_files(tmp_path):
    area(tmp_path)
    write_all(tmp_path)
    with sqlite3.connect(tmp_path / "objects.gpkg") as database:
        styles = dict(database.execute("SELECT f_table_name, styleQML FROM layer_styles WHERE useAsDefault"))
        tables = {name for (name,) in database.execute("SELECT table_name FROM gpkg_contents")}
    assert styles.keys() == {"objects", "cells"} and "layer_styles" in tables
    assert (tmp_path / "objects.qml").read_text() == styles["objects"]
    root = ET.fromstring(styles["objects"].partition("\n")[2])
    renderer = root.find("renderer-v2")
    assert renderer.get("type") == "categorizedSymbol" and renderer.get("attr") == "class"
    colour_of = {symbol.get("name"): symbol.find("layer/Option/Option[@name='outline_color']").get("value")
                 for symbol in renderer.iter("symbol")}  # fmt: skip
    shown = {one.get("value"): colour_of[one.get("symbol")] for one in renderer.iter("category")}
    assert shown == {"whole": "70,190,90,255", "light-harm": "250,220,60,255", "ruin": "220,40,40,255"}
    assert all((tmp_path / f"p_{number}.qml").exists() for number in range(4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (OutputOptions(outlines="round"), "outlines: "),
        (OutputOptions(part=1.5), "part: expected a probability above 0, at most 1, got 1.5"),
        (OutputOptions(part=0.8, apart=True), "it does not go with apart"),
        (OutputOptions(part_by="house"), "part_by: says by which levels"),
        (OutputOptions(part=0.8, part_by="roof"), "part_by: "),
        (OutputOptions(cell=0), "cell: expected metres above 0, got 0"),
        (OutputOptions(least_area=-1), "least_area: expected square metres, 0 or more, got -1"),
    ],
)
def test_options_that_are_wrong_are_refused(tmp_path, options, words):
    area(tmp_path)
    with pytest.raises(ConfigError, match=words):
        write_all(tmp_path, options=options)


@pytest.mark.parametrize(
    ("tasks", "classes", "by"),
    [
        ({"cls": ["background", "whole", "ruin"], "loc": ["house"]}, ["whole", "ruin"], "house"),
        ({"loc": ["nucleus"]}, ["nucleus"], "nucleus"),
        ({"loc": ["background", "cat", "dog"]}, ["cat", "dog"], None),
        ({}, ["whole"], None),
    ],
)
def test_objects_are_parted_by_the_task_that_finds_them(tasks, classes, by):
    assert outputs.seeding(tasks, classes) == by
    nothing = np.zeros((2, 2), np.uint8)
    layers = Layers.of_arrays(nothing, {name: nothing for names in tasks.values() for name in names})
    if by is None:
        with pytest.raises(ConfigError, match="part_by: expected one of"):
            OutputOptions(part=0.8).finder(layers, classes, tasks)
    else:
        assert OutputOptions(part=0.8).finder(layers, classes, tasks).parting == (by, 204)


def test_an_area_that_is_not_whole_is_refused(tmp_path):
    area(tmp_path)
    (tmp_path / "p_1.tif").unlink()
    with pytest.raises(ArtifactError, match="p_1.tif: expected a raster of the area"):
        write_all(tmp_path)


def test_a_missing_library_is_one_sentence(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(vectors.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match="expected geopandas, which is not installed; .*requirements-maps.txt"):
        vectors.library("geopandas")


# ---- footprints -----------------------------------------------------------------------------------------
def given(path: Path, shapes: list, crs: str | None = "EPSG:32615", **columns) -> Path:
    import geopandas

    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def metres(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    """Return a box of pixels of the grid in its CRS."""
    return shapely.box(365000 + left / 2, 4105000 - bottom / 2, 365000 + right / 2, 4105000 - top / 2)


def test_the_objects_as_footprints_get_what_the_objects_have():
    answer, levels = rasters()
    layers, own = Layers.of_arrays(answer, levels), objects(answer, levels)
    for block in (7, 1000):
        again = footprints.measured(layers, own.outlines, 3, block)
        assert np.array_equal(again.votes, own.votes * 16) and np.array_equal(again.sums, own.sums * 16)


def test_a_pixel_counts_by_its_part_inside():
    answer, levels = rasters()
    outlines = np.array([shapely.box(5.5, 4, 7, 8), shapely.box(4.3, 4.3, 4.35, 4.35)], object)
    found = footprints.measured(Layers.of_arrays(answer, levels), outlines, 3)
    assert found.votes[0].tolist() == [4 * 8, 0, 0, 4 * 16] and found.sums[0].tolist() == [
        255 * 64,
        51 * 64,
        0,
        204 * 64,
    ]
    assert found.votes[1].tolist() == [1, 0, 0, 0]  # smaller than a part of a pixel: its pixel


def test_footprints_get_classes(tmp_path):
    area(tmp_path)
    path = given(tmp_path / "osm.gpkg", [metres(6, 4, 10, 8), metres(28, 20, 42, 26), metres(50, 4, 52, 6),
                                         metres(0, 30, 2, 32), metres(500, 0, 510, 10), metres(-4, 20, 8, 24)],
                 name=["a", "b", "c", "d", "e", "f"])  # fmt: skip
    said = write_all(tmp_path, path)
    import geopandas

    frame = geopandas.read_file(tmp_path / "objects.gpkg", layer="objects").set_index("src_name")
    assert frame["class"].dropna().to_dict() == {"a": "ruin", "b": "whole", "c": "whole", "f": "whole"}
    assert frame.loc["a", "confidence"] == 0.8 and frame.loc["a", "area_m2"] == pytest.approx(4, rel=1e-3)
    assert frame.loc["b", "seen"] == pytest.approx(60 / 84, abs=1e-3) and frame.loc["c", "seen"] == 0
    assert frame.loc["d", "known"] == 0 and np.isnan(frame.loc["d", "confidence"])
    assert frame.loc["f", "known"] == pytest.approx(5 / 12, abs=1e-3)  # beyond the grid, and under the rim
    assert any("1 of 6 footprints lie outside of the area" in line for line in said)
    assert any("1 of 5 footprints lie where nothing is known" in line for line in said)
    assert "footprints (whole 3, light-harm 0, ruin 1)" in said[0]


def test_footprints_of_any_crs_and_form_are_read(tmp_path):
    parts = shapely.MultiPolygon([metres(6, 4, 10, 8), metres(20, 4, 24, 8)])
    bow = shapely.Polygon([(365010, 4104990), (365014, 4104994), (365014, 4104990), (365010, 4104994)])
    import geopandas

    frame = geopandas.GeoDataFrame(geometry=[parts, bow, shapely.Point(365010, 4104990), None], crs=GRID.crs.to_wkt())
    frame.to_crs("EPSG:4326").to_file(tmp_path / "a.geojson")
    found = footprints.read(tmp_path / "a.geojson", GRID)
    assert len(found.outlines) == 2 and found.outlines[0].area == pytest.approx(32, rel=1e-3)
    assert "1 outlines that cross themselves were mended" in found.notes[0]
    assert "without a surface" in found.notes[1]
    bare = tmp_path / "b.csv"
    (left, right), (top, bottom) = rasterio.warp.transform(GRID.crs, "EPSG:4326", (365003, 365005), (4104998, 4104996))
    bare.write_text(f'WKT,n\n"{shapely.box(left, bottom, right, top).wkt}",1\n')
    assert any("states no CRS" in note for note in footprints.read(bare, GRID).notes)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.geojson", None, "expected a file of footprints"),
        ("a.geojson", "{", "expected footprints"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}', "found none of its 0 shapes"),
    ],
)
def test_files_that_are_no_footprints_are_refused(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        footprints.read(tmp_path / name, GRID)


def test_geoparquet_is_read_or_says_what_it_needs(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    real = vectors.importlib.import_module

    def absent(name):
        if name == "pyarrow":
            raise ModuleNotFoundError(name)
        return real(name)

    with monkeypatch.context() as patch:
        patch.setattr(vectors.importlib, "import_module", absent)
        with pytest.raises(ConfigError, match="GeoParquet is read with pyarrow"):
            footprints.read(tmp_path / "a.parquet", GRID)
    pytest.importorskip("pyarrow", reason="GeoParquet needs it")
    import geopandas

    frame = geopandas.GeoDataFrame({"n": [1]}, geometry=[metres(6, 4, 10, 8)], crs=GRID.crs.to_wkt())
    frame.to_parquet(tmp_path / "b.parquet")
    assert footprints.read(tmp_path / "b.parquet", GRID).outlines[0].equals(shapely.box(6, 4, 10, 8))


@pytest.mark.skipif(not JOPLIN.exists(), reason="real footprints are not here")
def test_real_footprints_are_read():
    grid = Grid(CRS.from_epsg(26915), rasterio.Affine(0.6, 0, 365000, 0, -0.6, 4106000), 4000, 4000)
    found = footprints.read(JOPLIN, grid)
    assert 0 < len(found.outlines) <= 2823 and shapely.is_valid(found.outlines).all()
