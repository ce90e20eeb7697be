"""Where a scene lies travels from its pre image through levels and averages to answers and to the map."""

import json
from dataclasses import replace
from types import SimpleNamespace

import foretold
import numpy as np
import pytest
import rasterio
import torch
from conftest import TINY
from rasterio.transform import Affine

from lib.choose import fit
from lib.competitions import open_competition
from lib.competitions.contract import Scene
from lib.errors import ArtifactError
from lib.scenes import cog, georeference
from lib.scenes.georeference import Location
from lib.scenes.probs import levels_path, read_levels, write_levels
from lib.stages import ensemble, folds, submit
from lib.stages.predict import Networks, Passing

UTM = Location("EPSG:32615", (0.5, 0.0, 365000.0, 0.0, -0.5, 4105000.0), (24, 16))
CONFIG = {
    **TINY,
    "data": {"synthetic": {"scenes": 4, "test_scenes": 3, "size": 128, "seed": 1}},
    "models": {name: {**TINY["models"][name], "train": {**TINY["models"][name]["train"], "init_from": None}}
               for name in ("loc", "cls")},
    "predict": {"tta": "none", "tile": 64},
    "search": None,
}  # fmt: skip


def read(path) -> tuple:
    with rasterio.open(path) as file:
        return file.crs, file.transform


# ---- what tells a place ---------------------------------------------------------------------------------
def test_a_place_goes_to_json_and_back():
    place = replace(UTM, told_by="label", residual=0.25)
    assert Location.from_json(json.loads(json.dumps(place.to_json()))) == place
    with pytest.raises((KeyError, ValueError, TypeError)):
        Location.from_json({**place.to_json(), "transform": [1, 2, 3]})


def test_an_image_tells_its_place_and_others_tell_none(tmp_path):
    profile = {"driver": "GTiff", "height": 24, "width": 16, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", crs="EPSG:32615", transform=UTM.affine, **profile) as file:
        file.write(np.zeros((3, 24, 16), np.uint8))
    with rasterio.open(tmp_path / "b.tif", "w", **profile) as file:
        file.write(np.zeros((3, 24, 16), np.uint8))
    (tmp_path / "c.tif").write_bytes(b"II*\0 broken")
    assert georeference.of_image(tmp_path / "a.tif") == UTM
    assert [georeference.of_image(tmp_path / name) for name in ("b.tif", "c.tif", "none.tif")] == [None] * 3


def test_corners_tell_a_place_or_none():
    pixels = np.array([(0, 0), (10, 0), (10, 8), (3, 7.0)])
    affine = np.array([(5e-6, 1e-7), (2e-7, -4e-6), (-94.5, 37.0)])
    degrees = np.column_stack([pixels, np.ones(4)]) @ affine
    place = georeference.fitted(pixels, degrees, (24, 16), affine)
    assert place.told_by == "label" and place.residual < 0.001 and place.size == (24, 16)
    assert place.affine * (10, 8) == pytest.approx(tuple(degrees[2]), abs=1e-12)
    moved = degrees + [(0, 0), (0, 0), (3e-6, 0), (0, 0)]  # half a pixel and a bit
    assert georeference.fitted(pixels, moved, (24, 16), affine).residual == pytest.approx(0.6, abs=0.01)
    for far in (degrees + (1e-5, 0), np.full((4, 2), np.nan), degrees[:3]):
        assert georeference.fitted(pixels, far, (24, 16), affine) is None
    assert georeference.fitted(pixels, degrees, (24, 16), None) is None
    assert georeference.fitted(pixels, degrees, (24, 16), np.zeros((3, 2))) is None


# ---- what carries it ------------------------------------------------------------------------------------
def test_levels_carry_a_place_of_their_size_and_are_as_before_without_one(tmp_path):
    probs = np.random.default_rng(0).random((2, 24, 16), np.float32)
    write_levels(tmp_path / "with.tif", probs, ("a", "b"), UTM)
    write_levels(tmp_path / "without.tif", probs, ("a", "b"))
    write_levels(tmp_path / "other.tif", probs, ("a", "b"), replace(UTM, size=(24, 17)))
    assert read(tmp_path / "with.tif") == (rasterio.crs.CRS.from_epsg(32615), UTM.affine)
    assert (tmp_path / "other.tif").read_bytes() == (tmp_path / "without.tif").read_bytes()
    assert read(tmp_path / "without.tif")[0] is None
    found, names = read_levels(tmp_path / "with.tif")
    assert np.array_equal(found, read_levels(tmp_path / "without.tif")[0]) and names == ("a", "b")


def test_a_mask_is_a_cog_with_colours_and_overviews(tmp_path):
    numbers = np.zeros((1100, 900), np.uint8)
    numbers[100:200, 300:500] = 2
    place = replace(UTM, size=numbers.shape)
    cog.write_classes(tmp_path / "a.tif", numbers, place, {1: "#46be5a", 2: "#dc2828"})
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and file.overviews(1)
        assert file.colormap(1)[2] == (220, 40, 40, 255) and file.colormap(1)[1] == (70, 190, 90, 255)
        assert (file.crs, file.transform) == (rasterio.crs.CRS.from_epsg(32615), UTM.affine)
        assert np.array_equal(file.read(1), numbers)
        assert {*np.unique(file.read(1, out_shape=(275, 225)))} == {0, 2}  # no mixture of classes
        assert not file.dataset_mask()[0, 0] and file.dataset_mask()[150, 400]


def test_a_prediction_carries_the_place(tmp_path):
    competition = SimpleNamespace(georeference=lambda scene: UTM)
    network = Networks(torch.device("cpu"))
    network.run = SimpleNamespace(
        competition=competition, config=SimpleNamespace(predict=SimpleNamespace(truncate=False))
    )
    network.description = {"classes": ["a"]}
    passing = Passing(Scene("s", {}), SimpleNamespace(finish=lambda *_: {"none": np.zeros((1, 24, 16), np.float32)}),
                      {"none": tmp_path / "s.tif"}, False, seen=SimpleNamespace())  # fmt: skip
    assert network._write(passing).error == ""
    assert read(tmp_path / "s.tif")[1] == UTM.affine


# ---- all of it ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The stages after stage 04 on the embedded scenes, of which one event is GeoTIFF, with the truth as levels."""
    patch = pytest.MonkeyPatch()
    patch.setattr(foretold, "_write", truth)
    made = foretold.opened(tmp_path_factory.mktemp("placed"), CONFIG)
    foretold.foretell(made)
    patch.setattr("os.fsync", lambda descriptor: None)
    with made.store.build(made.graph.decode(), {}) as folder:
        fit.choose(made, folder)
    for split in ("oof", "test"):
        with made.store.build(made.graph.blend(split), {}) as folder:
            ensemble.write(made, made.graph.blend(split), folder)
        with made.store.build(made.graph.submission(split), {}) as folder:
            submit.write(made, made.graph.submission(split), folder)
    patch.undo()
    return made


def truth(run, folder, scene, role, rng) -> None:
    """Write the truth of a labelled scene as levels, of others a square that stands for a building."""
    task, competition = run.competition.tasks[role], run.competition
    target = np.zeros(competition.size(scene), np.uint8)
    target[40:60, 30:70] = 1
    if competition.labelled(scene):
        answer = competition.truth(scene)
        target = answer["localization"] if role == "loc" else answer["damage"]
    levels = task.truth(target).astype(np.uint8) * 255
    place = competition.georeference(scene)
    write_levels(levels_path(folder, run.config.predict.tta_sets, "none", scene.id), levels, task.classes, place)


def georeferenced(run, split: str) -> list[Scene]:
    found = [scene for scene in run.competition.scenes(split) if scene.files["pre"].suffix == ".tif"]
    assert found and len(found) < len(run.competition.scenes(split))
    return found


@pytest.mark.slow
def test_averages_and_answers_of_geotiff_scenes_carry_their_place(run):
    for split, scenes in (("oof", "train"), ("test", "test")):
        averages, answers = (run.store.folder(unit) for unit in (run.graph.blend(split), run.graph.submission(split)))
        lie = {scene.id: read(scene.files["pre"]) for scene in georeferenced(run, scenes)}
        for scene in run.competition.scenes(scenes):
            for task in ("loc", "cls"):
                crs, transform = read(averages / task / f"{scene.id}.tif")
                assert (crs, transform) == lie.get(scene.id, (None, Affine.identity()))
        assert {path.stem for path in (answers / "maps").iterdir()} == {*lie}
        for name, held in lie.items():
            assert read(answers / "maps" / f"{name}.tif") == held
            scene = next(one for one in run.competition.scenes(scenes) if one.id == name)
            answer = run.competition.read_submission(answers, scene)
            with rasterio.open(answers / "maps" / f"{name}.tif") as file:
                assert np.array_equal(file.read(1), run.competition.class_raster(answer))


@pytest.mark.slow
def test_stage_01_records_places_and_nothing_depends_on_them(run, tmp_path):
    (line,) = folds.places(run.competition, tmp_path)
    recorded = folds.recorded_places(tmp_path)
    train = {scene.id: scene for scene in run.competition.scenes("train")}
    assert all(recorded[name] == run.competition.place(scene) for name, scene in train.items() if name in recorded)
    by_image = {scene.id for split in ("train", "test") for scene in georeferenced(run, split)}
    assert {name for name, place in recorded.items() if place.told_by == "image"} == by_image
    assert any(place.told_by == "label" and place.residual < 0.01 for place in recorded.values())
    assert line.startswith(f"  place on Earth: known of {len(recorded)} of 7 scenes, {len(by_image)} by their images, ")
    assert "places.json" in run.graph.folds().beside
    assert folds.recorded_places(tmp_path / "none") == {}
    (tmp_path / "places.json").write_text('{"a": {"crs": 1}}')
    with pytest.raises(ArtifactError, match="expected the places of scenes"):
        folds.recorded_places(tmp_path)


@pytest.mark.slow
def test_facts_of_earlier_versions_tell_the_place_too(run, tmp_path):
    root, options = run.competition.root, run.config.data.options
    names = {scene.id: run.competition.place(scene) for scene in run.competition.scenes("train")}
    first = open_competition("xview2", root, options, tmp_path / "facts.json")
    first.scenes("train")
    held = json.loads((tmp_path / "facts.json").read_text())
    assert {name.split("/")[-1]: entry["more"] for name, entry in held["scenes"].items()}
    again = open_competition("xview2", root, options, tmp_path / "facts.json")
    assert {scene.id: again.place(scene) for scene in again.scenes("train")} == names
    for entry in held["scenes"].values():
        entry["more"] = {}
    (tmp_path / "facts.json").write_text(json.dumps(held))
    old = open_competition("xview2", root, options, tmp_path / "facts.json")
    assert {scene.id: old.place(scene) for scene in old.scenes("train")} == names
