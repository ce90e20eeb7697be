"""Labels from a GIS on the objects of an area: which they mean, how objects are described, what is written."""

import areas
import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch

from lib.errors import ConfigError, DataError
from lib.inference.pooled import Pooled
from lib.maps import adapt
from lib.maps.__main__ import main
from lib.maps.area_file import Area
from lib.maps.grid import Grid
from lib.models import build
from lib.tasks import MulticlassMask
from lib.tools import adapt as tool

pytest.importorskip("pyogrio", reason="needs requirements-maps.txt")
NAMES = ("fine", "gone")
CRS, EAST, NORTH = "EPSG:32615", 360_000, 4_100_000
SQUARES = [shapely.box(EAST + x, NORTH, EAST + x + 10, NORTH + 10) for x in (0, 20, 40)]


@pytest.fixture
def objects():
    return geopandas.GeoDataFrame({"id": [0, 1, 2]}, geometry=SQUARES, crs=CRS)


def at(east, north):
    return shapely.Point(EAST + east, NORTH + north)


def labels(folder, shapes, classes, crs=CRS, column="class"):
    path = folder / "labels.gpkg"
    geopandas.GeoDataFrame({column: classes}, geometry=shapes, crs=crs).to_file(path, engine="pyogrio")
    return path


def test_points_mean_what_they_lie_in_and_polygons_what_they_share_most_with(tmp_path, objects):
    given = [at(25, 5), shapely.box(EAST + 5, NORTH, EAST + 22, NORTH + 10), at(100, 100), at(1, 1)]
    found = adapt.read_labels(labels(tmp_path, given, ["gone", "fine", "gone", ""]), "class", objects, NAMES)
    assert dict(zip(found.objects.tolist(), found.classes.tolist())) == {1: 1, 0: 0}
    assert found.notes == ("labels.gpkg: 1 rows have no class and were left out",
                           "labels.gpkg: 1 labels lie on no object and were left out")  # fmt: skip


def test_labels_may_be_in_another_crs(tmp_path, objects):
    given = objects.geometry.centroid.to_crs("EPSG:4326").to_numpy()[2:]
    found = adapt.read_labels(labels(tmp_path, given, ["gone"], "EPSG:4326"), "class", objects, NAMES)
    assert found.objects.tolist() == [2]


@pytest.mark.parametrize(("classes", "column", "error", "words"), [
    (["burnt"], "class", ConfigError, "column class: expected fine, gone, got burnt"),
    (["fine"], "clas", ConfigError, "expected a column 'clas'; did you mean class?, found class"),
])  # fmt: skip
def test_labels_that_cannot_be_meant_are_refused(tmp_path, objects, classes, column, error, words):
    with pytest.raises(error, match=words.replace("?", r"\?")):
        adapt.read_labels(labels(tmp_path, [at(5, 5)], classes), column, objects, NAMES)


def test_labels_of_another_place_are_refused(tmp_path, objects):
    with pytest.raises(DataError, match="expected labels on the objects of the area, found none of 1 there"):
        adapt.read_labels(labels(tmp_path, [at(500, 500)], ["fine"]), "class", objects, NAMES)


def test_objects_are_described_part_by_part_as_in_the_whole(tmp_path, monkeypatch):
    """One lies over the border of a part, two outside of the area's images in part, one has no pixel."""
    images = {name: areas.image(200, 260, seed) for seed, name in enumerate(("pre", "post"))}
    for name, planes in images.items():
        areas.write(tmp_path / f"{name}.tif", planes)
    with rasterio.open(tmp_path / "pre.tif") as page:
        transform, crs = page.transform, page.crs
    grid = Grid(crs, transform, 260, 200)
    made = Area(grid, ["x"], {}, {}, "", None, images={n: [str(tmp_path / f"{n}.tif")] for n in images})
    sides = adapt.sides_of(made, ("pre", "post"))
    torch.manual_seed(0)
    network = build(architecture="segmentation", classes=3, images=2, encoder="tu-test_efficientnet",
                    decoder="unet", decoder_channels=[16, 16, 8, 8], upsample_logits=2)  # fmt: skip
    pooled = Pooled(network, MulticlassMask(("background", *NAMES)).activate, torch.device("cpu"), "float32")
    boxes = [(3, 4, 30, 40), (90, 20, 110, 60), (200, 150, 255, 199)]
    shapes = adapt.vectors.moved(np.array([shapely.box(*box) for box in boxes], object), transform)
    whole = adapt.described(made, sides, shapes, [pooled])
    labels = np.zeros((200, 260), np.int32)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        labels[top:bottom, left:right] = number
    direct = pooled(np.concatenate([images["pre"], images["post"]]), labels, 3)
    np.testing.assert_allclose(whole.probs, direct.probs, atol=1e-4)
    np.testing.assert_allclose(whole.features, direct.features, atol=1e-4)
    monkeypatch.setattr(adapt, "CORE", 64)
    monkeypatch.setattr(adapt, "MARGIN", 96)
    parts = adapt.described(made, sides, shapes, [pooled, pooled])
    assert parts.features.shape == (3, 2 * whole.features.shape[1])
    np.testing.assert_allclose(parts.probs, whole.probs, atol=0.05)  # a network sees less around


@pytest.mark.slow
def test_an_area_is_named_anew_by_the_labels_of_some_of_its_objects(tmp_path, capsys):
    flags = areas.experiment(tmp_path)
    boxes = [
        shapely.box(EAST + x, NORTH - y, EAST + x + 10, NORTH - y + 8) for x in range(5, 130, 25) for y in (30, 90)
    ]
    geopandas.GeoDataFrame(geometry=boxes, crs=CRS).to_file(tmp_path / "footprints.gpkg", engine="pyogrio")
    for seed, name in enumerate(("pre", "post")):
        areas.write(tmp_path / f"{name}.tif", areas.image(270, 300, seed))
    sides = [part for name in ("pre", "post") for part in (f"--{name}", str(tmp_path / f"{name}.tif"))]
    given = ["--footprints", str(tmp_path / "footprints.gpkg"), "--out", str(tmp_path / "area")]
    assert main([*flags, *sides, *given, "--window", "512"]) == 0
    area, found = adapt.objects_of(tmp_path / "area")
    assert len(found) == len(boxes)
    classes = [area.classes[0], area.classes[3]] * 2
    path = labels(tmp_path, found.geometry.representative_point().to_numpy()[:4], classes, found.crs)
    capsys.readouterr()
    assert tool.main([*flags, "--model", "cls", "--area", str(tmp_path / "area"), "--labelled", str(path),
                      "--next", "2"]) == 0  # fmt: skip
    assert f"4 of {len(found)} objects are labelled" in capsys.readouterr().out
    made = geopandas.read_file(tmp_path / "area" / "adapted.gpkg")
    assert made["class"][:4].tolist() == classes and made["labelled"].sum() == 4
    assert sorted(made["label_next"][made["label_next"] > 0]) == [1, 2]
    assert not made["labelled"][made["label_next"] > 0].any()
    assert set(made["class_before"]) <= {*area.classes}
    np.testing.assert_allclose(made[[f"p_{name}" for name in area.classes[:4]]].sum(axis=1), 1, atol=1e-3)
    assert tool.main([*flags, "--model", "cls", "--area", str(tmp_path / "area")]) == 2
    assert "--area and --labelled go together" in capsys.readouterr().err
