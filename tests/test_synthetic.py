"""The synthetic set: native names and labels, truth that fits the pictures, the same bytes every time."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import shapely

from lib.competitions import open_competition, synthetic
from lib.competitions.synthetic import xview2 as tiles
from lib.errors import ConfigError
from lib.scenes.raster import read_image

SIZE, SCENES, TEST_SCENES = 320, 8, 4
CLASSES = {"no-damage": 1, "minor-damage": 2, "major-damage": 3, "destroyed": 4, "un-classified": 0}
REAL = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "xbd"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "xbd"
    synthetic.write("xview2", folder, scenes=SCENES, test_scenes=TEST_SCENES, size=SIZE, seed=7)
    return folder


def labels(root: Path, moment: str = "post") -> dict[str, dict]:
    """Read the labels of all labelled scenes: scene id -> content."""
    found = sorted(root.glob(f"*/labels/*_{moment}_disaster.json"))
    return {path.name.removesuffix(f"_{moment}_disaster.json"): json.loads(path.read_text()) for path in found}


def outlines(label: dict, form: str = "xy") -> list[shapely.Polygon]:
    return [shapely.from_wkt(feature["wkt"]) for feature in label["features"][form]]


def subtypes(label: dict) -> list[str]:
    return [feature["properties"]["subtype"] for feature in label["features"]["xy"]]


def images(root: Path, scene: str) -> tuple[np.ndarray, np.ndarray]:
    pre, post = (next(root.glob(f"*/images/{scene}_{moment}_disaster.*")) for moment in ("pre", "post"))
    return read_image(pre), read_image(post)


def affine(label: dict) -> tuple[np.ndarray, float]:
    """Fit (x, y, 1) -> (lng, lat) to the two forms of the outlines: (3, 2) and the largest error in degrees."""
    xy, place = (np.concatenate([p.exterior.coords for p in outlines(label, form)]) for form in ("xy", "lng_lat"))
    known = np.column_stack([xy, np.ones(len(xy))])
    fit = np.linalg.lstsq(known, place, rcond=None)[0]
    return fit, float(np.abs(known @ fit - place).max())


# ---- layout -------------------------------------------------------------------------------------------
def test_files_have_native_names_and_come_in_pairs(root):
    pattern = re.compile(r"(synthetic-[a-z]+_\d{8})_(pre|post)_disaster\.(png|tif|json)")
    scenes = {"images": {}, "labels": {}}
    for path in sorted(root.glob("*/*/*")):
        found = pattern.fullmatch(path.name)
        assert found, path
        scenes[path.parent.name].setdefault((path.parents[1].name, found[1]), set()).add(found[2])
    assert all(moments == {"pre", "post"} for part in scenes.values() for moments in part.values())
    assert len(scenes["images"]) == SCENES + TEST_SCENES
    assert len({scene for _, scene in scenes["images"]}) == SCENES + TEST_SCENES
    assert sum(tier == "test" for tier, _ in scenes["images"]) == TEST_SCENES
    assert {pair for pair in scenes["images"] if pair[0] != "test"} == set(scenes["labels"])
    assert sorted(path.name for path in root.iterdir()) == ["synthetic.json", "test", "tier3", "train"]
    assert not (root / "test" / "labels").exists()


def test_images_are_of_the_asked_size_and_not_empty(root):
    for path in root.glob("*/images/*"):
        image = read_image(path)
        assert image.shape == (SIZE, SIZE, 3)
        assert image.std() > 8


def test_pre_labels_hold_the_same_buildings_without_subtype(root):
    before, after = labels(root, "pre"), labels(root, "post")
    assert before.keys() == after.keys() and len(after) == SCENES
    for scene, label in after.items():
        assert [f["wkt"] for f in before[scene]["features"]["xy"]] == [f["wkt"] for f in label["features"]["xy"]]
        for form in ("xy", "lng_lat"):
            uids = [feature["properties"]["uid"] for feature in label["features"][form]]
            assert uids == [feature["properties"]["uid"] for feature in before[scene]["features"][form]]
            assert uids == [feature["properties"]["uid"] for feature in label["features"]["xy"]]
            assert len(set(uids)) == len(uids)
        for moment, one in (("pre", before[scene]), ("post", label)):
            assert one["metadata"]["img_name"].startswith(f"{scene}_{moment}_disaster.")
            assert (one["metadata"]["width"], one["metadata"]["height"]) == (SIZE, SIZE)
        assert all("subtype" not in feature["properties"] for feature in before[scene]["features"]["xy"])


@pytest.mark.skipif(not REAL.is_dir(), reason="no real xBD at hand")
def test_labels_have_the_keys_of_real_ones(root):
    for moment in ("pre", "post"):
        real = max(labels(REAL, moment).values(), key=lambda label: len(label["features"]["xy"]))
        ours = max(labels(root, moment).values(), key=lambda label: len(label["features"]["xy"]))
        assert ours.keys() == real.keys()
        assert ours["metadata"].keys() == real["metadata"].keys()
        for key, value in real["metadata"].items():
            assert type(ours["metadata"][key]) is type(value), key
        for form in ("xy", "lng_lat"):
            assert ours["features"][form][0].keys() == real["features"][form][0].keys()
            assert ours["features"][form][0]["properties"].keys() == real["features"][form][0]["properties"].keys()


@pytest.mark.slow
def test_the_adapter_reads_a_full_size_set_without_remarks(tmp_path):
    synthetic.write("xview2", tmp_path / "xbd", scenes=3, test_scenes=1)
    competition = open_competition("xview2", tmp_path / "xbd")
    assert competition.inspect() == []
    scenes = competition.scenes("train")
    assert len(scenes) == 3 and len(competition.scenes("test")) == 1
    for scene in scenes:
        assert set(np.unique(competition.target(scene, "cls"))) >= {0, 1, 2, 3, 4}


# ---- places -------------------------------------------------------------------------------------------
def test_degrees_are_an_affine_map_of_pixels_and_tiles_lie_side_by_side(root):
    fits = {}
    for scene, label in labels(root).items():
        if label["features"]["xy"]:
            fits[scene], error = affine(label)
            assert error < 1e-9  # 0.1 mm
    first, second = fits["synthetic-flood_00000000"], fits["synthetic-flood_00000001"]
    assert np.allclose(np.array([SIZE, 0, 1]) @ first, np.array([0, 0, 1]) @ second, rtol=0, atol=1e-9)
    metres = np.abs(np.diag(first[:2])) * 111_320 * (np.cos(np.radians(first[2, 1])), 1)
    assert np.allclose(metres, 0.5, rtol=1e-3)


def test_geotiffs_carry_the_transform_of_their_labels(root):
    tiffs = sorted(root.glob("tier3/images/*.tif"))
    assert tiffs and not list(root.glob("train/images/*.tif"))
    compared = 0
    for path in tiffs:
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 4326
            transform = file.transform
        label = json.loads((root / "tier3" / "labels" / f"{path.stem}.json").read_text())
        for pixel, place in zip(outlines(label), outlines(label, "lng_lat"), strict=True):
            a, b, c, d, e, f = transform[:6]
            x, y = np.array(pixel.exterior.coords).T
            expected = np.column_stack([a * x + b * y + c, d * x + e * y + f])
            assert np.allclose(expected, place.exterior.coords, rtol=0, atol=1e-9)
            compared += 1
    assert compared > 5


# ---- content ------------------------------------------------------------------------------------------
def test_the_set_holds_every_kind_of_scene_and_building(root):
    kinds = [subtypes(label) for label in labels(root).values()]
    counts = {name: sum(kind.count(name) for kind in kinds) for name in CLASSES}
    assert all(counts[name] >= 10 for name in CLASSES if name != "un-classified"), counts
    assert counts["un-classified"] >= 1
    assert [] in kinds
    assert any(set(kind) == {"no-damage"} for kind in kinds)
    assert len({label["metadata"]["disaster"] for label in labels(root).values()}) == 3
    touching = [
        (a, b)
        for label in labels(root).values()
        for i, a in enumerate(outlines(label))
        for b in outlines(label)[:i]
        if a.distance(b) < 1e-6
    ]
    assert len(touching) >= 3


def test_outlines_are_valid_and_inside_the_tile(root):
    frame = shapely.box(0, 0, SIZE, SIZE)
    at_border = 0
    for label in labels(root).values():
        for outline in outlines(label):
            assert outline.is_valid and outline.area >= 40
            assert frame.buffer(1e-6).contains(outline)
            at_border += outline.boundary.intersects(frame.boundary)
    assert at_border >= 3


def test_what_happened_shows_where_the_label_says(root):
    """The worse the class, the more a building's pixels change; ground beside undamaged roofs changes little."""
    change = {value: [] for value in CLASSES.values()}
    for scene, label in labels(root).items():
        mask = np.full((SIZE, SIZE), 255, np.uint8)
        for outline, subtype in zip(outlines(label), subtypes(label), strict=True):
            points = np.rint(np.array(outline.exterior.coords)).astype(np.int32)
            cv2.fillPoly(mask, [points], CLASSES[subtype])
        pre, post = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float) for image in images(root, scene))
        light = np.median(post - pre)
        for value, pixels in change.items():
            pixels.append(np.abs(post - pre - light)[mask == value])
    mean = {value: np.concatenate(pixels).mean() for value, pixels in change.items()}
    assert mean[2] > 1.3 * mean[1] and mean[3] > 1.5 * mean[1] and mean[4] > 1.8 * mean[1], mean


def test_roofs_lie_where_the_outlines_are(root):
    """Outlines moved off the roofs cross more grass: a roof is less green than what surrounds it."""

    def greenness(shift: int) -> float:
        found = []
        for scene, label in labels(root).items():
            if not label["features"]["xy"] or "wildfire" in scene:
                continue
            mask = np.zeros((SIZE, SIZE), np.uint8)
            for outline in outlines(label):
                cv2.fillPoly(mask, [np.rint(np.array(outline.exterior.coords) + shift).astype(np.int32)], 1)
            pre = images(root, scene)[0].astype(float)
            found.append((pre[..., 1] - (pre[..., 0] + pre[..., 2]) / 2)[mask == 1])
        return float(np.concatenate(found).mean())

    assert greenness(0) < min(greenness(-4), greenness(4)) - 0.5


# ---- writing ------------------------------------------------------------------------------------------
def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_seed_gives_the_same_bytes_whatever_else_is_written(root, tmp_path):
    synthetic.write("xview2", tmp_path / "again", scenes=SCENES, test_scenes=TEST_SCENES, size=SIZE, seed=7)
    assert contents(tmp_path / "again") == contents(root)
    synthetic.write("xview2", tmp_path / "fewer", scenes=2, test_scenes=1, size=SIZE, seed=7)
    fewer = contents(tmp_path / "fewer")
    del fewer["synthetic.json"]
    assert fewer.items() <= contents(root).items()
    synthetic.write("xview2", tmp_path / "other", scenes=2, test_scenes=1, size=SIZE, seed=8)
    other = contents(tmp_path / "other")
    assert not any(other[name] == data for name, data in fewer.items())


def test_a_whole_set_is_left_alone_and_another_is_not_replaced(tmp_path):
    root = tmp_path / "deep" / "xbd"
    root.mkdir(parents=True)  # an empty folder is no obstacle
    small = {"scenes": 1, "test_scenes": 1, "size": 64, "seed": 1}
    synthetic.write("xview2", root, **small)
    (root / "train" / "mark").touch()
    synthetic.write("xview2", root, **small)
    assert (root / "train" / "mark").exists()
    with pytest.raises(ConfigError, match="seed 1 instead of 2.*delete"):
        synthetic.write("xview2", root, **small | {"seed": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="mine: expected a set of synthetic data"):
        synthetic.write("xview2", tmp_path / "mine", **small)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_set_is_written_anew(tmp_path, monkeypatch):
    small = {"scenes": 1, "test_scenes": 1, "size": 64, "seed": 1}
    write_png, written = tiles.write_png, []

    def fails_at_the_third(path, picture):
        written.append(path)
        if len(written) == 3:
            raise OSError("disk full")
        write_png(path, picture)

    monkeypatch.setattr(tiles, "write_png", fails_at_the_third)
    with pytest.raises(OSError):
        synthetic.write("xview2", tmp_path / "xbd", **small)
    assert not (tmp_path / "xbd").exists()
    monkeypatch.undo()
    synthetic.write("xview2", tmp_path / "xbd", **small)
    synthetic.write("xview2", tmp_path / "unbroken", **small)
    assert contents(tmp_path / "xbd") == contents(tmp_path / "unbroken")
    assert not list(tmp_path.glob("*.partial*"))


def test_impossible_parameters_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected one of .*xview2.*, got 'imagenet'"):
        synthetic.write("imagenet", tmp_path / "x")
    with pytest.raises(ConfigError, match="size 32"):
        synthetic.write("xview2", tmp_path / "x", size=32)


def test_the_command_line_writes_a_set(tmp_path, capsys, monkeypatch):
    arguments = ["xview2", str(tmp_path / "xbd"), "--scenes", "1", "--test-scenes", "1", "--size", "64"]
    monkeypatch.setattr(sys, "argv", ["synthetic", *arguments])
    runpy.run_module("lib.competitions.synthetic", run_name="__main__")
    assert "1 labelled and 1 unlabelled" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["synthetic", *arguments, "--seed", "8"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("lib.competitions.synthetic", run_name="__main__")
    assert stopped.value.code == 2
    assert "seed 7 instead of 8" in capsys.readouterr().err
