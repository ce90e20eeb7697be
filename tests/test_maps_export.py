"""A submission on the map: its objects lie where the labels say, whoever made it."""

import json

import numpy as np
import pytest
import shapely
from test_place import georeferenced, run  # noqa: F401

for needed in ("geopandas", "pyogrio", "pyproj"):
    pytest.importorskip(needed, reason="requirements-maps.txt")
pytestmark = pytest.mark.slow  # stages 05 and 06 on embedded scenes

from lib.errors import ConfigError, DataError
from lib.maps import export as command
from lib.maps.export import export
from lib.maps.outputs import OutputOptions
from lib.run import cli


def test_an_exported_submission_lies_where_the_labels_say(run, tmp_path):  # noqa: F811
    said = export(run, "oof", tmp_path, None, OutputOptions())
    held = json.loads((tmp_path / "oof.geojson").read_text())["features"]
    shapes = {}
    for feature in held:
        shapes.setdefault(feature["properties"]["scene"], []).append(shapely.geometry.shape(feature["geometry"]))
    compared = 0
    for scene in run.competition.scenes("train"):
        label = json.loads(scene.files["pre_label"].read_text())["features"]["lng_lat"]
        outlines = shapely.from_wkt([feature["wkt"] for feature in label])
        if not len(outlines):
            continue
        back = ~run.competition.place(scene).affine
        flat = (back.a, back.b, back.d, back.e, back.c, back.f)
        tile = shapely.box(0, 0, *reversed(run.competition.size(scene)))
        theirs = shapely.union_all([shapely.affinity.affine_transform(one, flat) for one in outlines]).intersection(
            tile
        )
        ours = shapely.union_all([shapely.affinity.affine_transform(one, flat) for one in shapes[scene.id]])
        assert ours.centroid.distance(theirs.centroid) < 1
        # the official drawing rounds corners to whole pixels and takes in the pixels of the outline: 1.5 to each side
        reach = 1.5 * 2**0.5 + 0.05
        assert ours.difference(theirs.buffer(reach)).is_empty and theirs.difference(ours.buffer(reach)).is_empty
        compared += 1
    assert compared >= 3
    by_image = {scene.id for scene in georeferenced(run, "train")}
    for feature in held:
        properties = feature["properties"]
        assert properties["confidence"] == properties["p_" + properties["class"].replace("-", "_")] > 0.2
        assert properties["place"] == ("image" if properties["scene"] in by_image else "label")
    sure = [feature["properties"]["confidence"] == 1 for feature in held]
    assert np.mean(sure) > 0.6  # others are row houses of several grades
    assert said[0].startswith(f"{tmp_path / 'oof.gpkg'}: {len(held)} objects (")


def test_scenes_without_a_place_are_named(run, tmp_path, monkeypatch):  # noqa: F811
    said = export(run, "test", tmp_path, None, OutputOptions(outlines="regular"))
    assert any("the place of 2 scenes is not known, so they are left out: " in line for line in said)
    features = json.loads((tmp_path / "test.geojson").read_text())["features"]
    assert {feature["properties"]["outline"] for feature in features} == {"rectangle"}
    theirs = export(run, "test", tmp_path / "other", run.store.folder(run.graph.submission("test")), OutputOptions())
    assert theirs[0].partition(": ")[2].partition("; ")[0] == said[0].partition(": ")[2].partition("; ")[0]
    monkeypatch.setattr(run.competition, "place", lambda scene: None)
    with pytest.raises(DataError, match="test: expected scenes with a place on Earth, found none among 3"):
        export(run, "test", tmp_path, None, OutputOptions())
    with pytest.raises(DataError, match="expected a folder in which a submission.csv lies"):
        export(run, "test", tmp_path, tmp_path, OutputOptions())


def test_the_command_writes_both_splits_and_says_where_a_split_has_no_place(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(cli, "open_run", lambda args: run)
    assert command.main(["--out", str(tmp_path), "--outlines", "simple"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{split}.{end}" for split in ("oof", "test") for end in ("gpkg", "geojson", "qml")}
    real = run.competition.place
    labelled = {scene.id for scene in run.competition.scenes("train")}
    monkeypatch.setattr(run.competition, "place", lambda scene: real(scene) if scene.id in labelled else None)
    assert command.main(["--out", str(tmp_path)]) == 0
    assert "test: expected scenes with a place on Earth, found none among 3" in capsys.readouterr().out
    monkeypatch.setattr(run.competition, "place", lambda scene: None)
    with pytest.raises(DataError, match="oof: expected scenes .*; test: expected scenes"):
        command.main(["--out", str(tmp_path)])


def test_flags_that_do_not_go_together_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--submission", "theirs"])
    assert "--submission: state --split oof or --split test" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cell: expected metres above 0"):
        command.main(["--cell", "-1"])
