"""From images of an area to what people open, by the one command."""

import json

import areas
import numpy as np
import pytest
import rasterio
import shapely

for needed in ("geopandas", "pyogrio", "pyproj"):
    pytest.importorskip(needed, reason="requirements-maps.txt")

import geopandas

from lib.errors import ConfigError
from lib.maps.__main__ import main

pytestmark = pytest.mark.slow  # networks are asked


def looking_at(*images: str) -> dict:
    """Return models that all look at these images."""
    network = {**areas.NETWORK, "images": list(images)}
    return {name: {"task": name, "folds": [0], "network": network,
                   "train": {**areas.TRAIN, "loss": {"terms": {"bce": 1} if name == "loc" else {"ce": 1}}}}
            for name in ("loc", "cls")}  # fmt: skip


def house(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    """Return a box of pixels in the CRS of ``areas.PLACE``."""
    (x, y), (far, low) = [(360000 + c / 2, 4100000 - r / 2) for c, r in ((left, top), (right, bottom))]
    return shapely.box(x, low, far, y)


def test_a_post_image_alone_grades_given_footprints(tmp_path, capsys):
    flags = areas.experiment(tmp_path, models=looking_at("post"))
    areas.write(tmp_path / "post.tif", areas.image(192, 256, 1))
    outlines = [house(20, 20, 60, 50), house(100, 90, 130, 140), house(300, 0, 310, 9)]
    geopandas.GeoDataFrame({"name": ["a", "b", "out"]}, geometry=outlines, crs="EPSG:32615").to_file(
        tmp_path / "a.gpkg"
    )
    out = tmp_path / "area"
    asked = [*flags, "--post", str(tmp_path / "post.tif"), "--out", str(out), "--window", "256", "--event", "a flood"]
    assert main([*asked, "--footprints", str(tmp_path / "a.gpkg")]) == 0
    found = geopandas.read_file(out / "objects.gpkg", layer="objects").set_index("src_name")
    assert {*found.index} == {"a", "b"} and found["class"].notna().all() and (found["known"] == 1).all()
    assert {*found["event"]} == {"a flood"} and found["model"].str.startswith("tiny ").all()
    with rasterio.open(out / "loc_building.tif") as file:
        level = file.read(1)[20:50, 20:60].mean() / 255
    assert found.loc["a", "p_building"] == pytest.approx(level, abs=1e-4)
    page = json.loads((out / "map.html").read_text().partition('id="data">')[2].partition("</script>")[0])
    assert [image["name"] for image in page["images"]] == ["post"]
    assert "1 of 3 footprints lie outside of the area" in capsys.readouterr().out


def test_networks_that_look_at_both_images_need_both(tmp_path):
    flags = areas.experiment(tmp_path)
    areas.write(tmp_path / "post.tif", areas.image(192, 256, 1))
    with pytest.raises(ConfigError, match="--pre: expected an image"):
        main.__wrapped__([*flags, "--post", str(tmp_path / "post.tif"), "--out", str(tmp_path / "area")])


def test_objects_of_an_area_are_the_same_for_every_window(tmp_path):
    flags = areas.experiment(tmp_path)
    for number, name in enumerate(("pre", "post")):
        areas.write(tmp_path / f"{name}.tif", areas.image(300, 310, number))
    images = ["--pre", str(tmp_path / "pre.tif"), "--post", str(tmp_path / "post.tif")]
    made, settings = [], []
    for window in ("256", "512"):
        out = tmp_path / window
        asked = [*flags, *images, "--out", str(out), "--window", window, "--least-area", "4"]
        assert main([*asked, "--rasters"]) == 0
        assert not (out / "objects.gpkg").exists()
        if not settings:  # so that the networks, which nobody trained, find something here and there
            with rasterio.open(out / "loc_building.tif") as file:
                often = float(np.quantile(file.read(1), 0.8)) / 255
            settings = [f"--decode={name}={often}" for name in ("loc_threshold", "loc_threshold_damaged")]
        assert main([*asked, *settings]) == 0
        rows = json.loads((out / "objects.geojson").read_text())["features"]
        made.append(sorted(rows, key=lambda row: row["properties"]["id"]))
    assert made[0] == made[1] and len(made[0]) > 3
    assert min(row["properties"]["pixels"] for row in made[0]) >= 16
