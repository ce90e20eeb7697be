"""The xView2 adapter: which scenes there are, what their labels become, and what the data doctor finds."""

import json
import os
import pickle
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from lib.competitions import open_competition
from lib.competitions.contract import Finding, Scene, summarize
from lib.competitions.xview2 import decode as decoding
from lib.errors import ConfigError, DataError
from lib.scenes.raster import read_mask, write_png
from lib.settings import Limits, set_limits

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))
real = pytest.mark.skipif(not (SHARED / "xbd").is_dir(), reason="needs the real tiles")

SIZE = 48


def box(x, y, side=8):
    return f"POLYGON (({x} {y}, {x + side} {y}, {x + side} {y + side}, {x} {y + side}, {x} {y}))"


HOUSES = [
    (box(2, 2), "no-damage"), (box(14, 2), "minor-damage"), (box(26, 2), "destroyed"), (box(2, 20), "un-classified"),
]  # fmt: skip


def label(houses, side, place=(10.0, 50.0)):
    """Return a label's JSON text; one pixel is 0.001 degrees, north up, corner at ``place``."""
    xy, lng_lat = [], []
    for number, (wkt, subtype) in enumerate(houses):
        properties = {"feature_type": "building", "uid": str(number)} | ({"subtype": subtype} if side == "post" else {})
        xy.append({"properties": properties, "wkt": wkt})
        points = np.array([p.split() for p in wkt[10:-2].split(", ")], float) * (0.001, -0.001) + place
        lng_lat.append({"properties": properties, "wkt": f"POLYGON (({', '.join(f'{x} {y}' for x, y in points)}))"})
    return json.dumps({"features": {"xy": xy, "lng_lat": lng_lat}, "metadata": {"width": SIZE, "height": SIZE}})


def image(seed, size=SIZE):
    return np.random.default_rng(seed).integers(1, 256, (size, size, 3), dtype=np.uint8)


def add(tier, name, houses=HOUSES, labelled=True, place=(10.0, 50.0)):
    """Write one whole scene into a tier."""
    for folder in ("images", "labels") if labelled else ("images",):
        (tier / folder).mkdir(parents=True, exist_ok=True)
    for seed, side in enumerate(("pre", "post")):
        write_png(tier / "images" / f"{name}_{side}_disaster.png", image(seed))
        if labelled:
            (tier / "labels" / f"{name}_{side}_disaster.json").write_text(label(houses, side, place))


@pytest.fixture
def root(tmp_path):
    add(tmp_path / "train", "big-storm_00000001")
    add(tmp_path / "train", "big-storm_00000000", houses=[])
    add(tmp_path / "tier3", "old_fire_00000000", houses=HOUSES[:1], place=(20.0, 40.0))
    add(tmp_path / "test", "big-storm_00000007", labelled=False)
    return tmp_path


def opened(root, **options):
    return open_competition("xview2", root, options)


def ids(scenes):
    return [scene.id for scene in scenes]


# ---- scenes -------------------------------------------------------------------------------------------
def test_tiers_are_merged_and_test_stays_apart(root):
    competition = open_competition("xview2", root)
    train = competition.scenes("train")
    assert ids(train) == ["big-storm_00000000", "big-storm_00000001", "old_fire_00000000"]
    assert [scene.domain for scene in train] == ["big-storm", "big-storm", "old_fire"]
    assert ids(competition.scenes("test")) == ["big-storm_00000007"]
    assert set(train[0].files) == {"pre", "post", "pre_label", "post_label"}
    assert competition.scenes("train") is train
    with pytest.raises(ValueError, match="oof"):
        competition.scenes("oof")


def test_hold_is_train_with_labels_and_test_without(root):
    add(root / "hold", "storm_00000003")
    add(root / "hold", "storm_00000004", labelled=False)
    assert "storm_00000003" in ids(opened(root).scenes("train"))
    shutil.rmtree(root / "hold" / "labels")
    assert ids(opened(root).scenes("test")) == ["big-storm_00000007", "storm_00000003", "storm_00000004"]


def test_tiers_that_are_stated_are_the_labelled_ones(root):
    add(root / "hold", "storm_00000003")
    competition = opened(root, tiers=["train"])
    assert ids(competition.scenes("train")) == ["big-storm_00000000", "big-storm_00000001"]
    assert ids(competition.scenes("test")) == ["big-storm_00000007", "storm_00000003"]  # tier3 is in neither
    add(root / "tier2", "flood_00000001")
    own = opened(root, tiers=["tier2", "hold"])
    assert ids(own.scenes("train")) == ["flood_00000001", "storm_00000003"]
    assert ids(own.scenes("test")) == ["big-storm_00000007"]
    with pytest.raises(DataError, match="teir3/images.*data.options.tiers"):
        opened(root, tiers=["train", "teir3"]).scenes("train")
    with pytest.raises(ConfigError, match="data.options.tiers"):
        opened(root, tiers=[])
    with pytest.raises(ConfigError, match="data.options.tier: unknown key; did you mean tiers"):
        opened(root, tier="train")


def test_labels_in_the_test_folder_do_not_make_it_train(root):
    add(root / "test", "storm_00000009")
    competition = opened(root)
    assert "storm_00000009" in ids(competition.scenes("test"))
    assert "storm_00000009" not in ids(competition.scenes("train"))


def test_names_of_the_challenge_and_hidden_files(root):
    for number in ("00000", "00123"):
        for side in ("pre", "post"):
            write_png(root / "test/images" / f"test_{side}_{number}.png", image(0))
    (root / "test/images/._test_pre_00000.png").write_bytes(b"")
    (root / "test/images/Thumbs.db").write_bytes(b"")
    scenes = opened(root).scenes("test")
    assert ids(scenes) == ["big-storm_00000007", "test_00000", "test_00123"]
    assert all(isinstance(scene.id, str) for scene in scenes)
    assert [scene.domain for scene in scenes] == ["big-storm", "", ""]


def test_test_scenes_read_no_labels_and_train_scenes_no_pixels(root):
    for path in root.glob("*/images/*"):
        path.write_bytes(path.read_bytes()[:100])  # header only
    (root / "test/labels").mkdir()
    (root / "test/labels/big-storm_00000007_pre_disaster.json").write_text("not json")
    competition = opened(root)
    assert len(competition.scenes("train")) == 3 and len(competition.scenes("test")) == 1


def test_root_may_be_one_tier(root):
    assert ids(opened(root / "tier3").scenes("train")) == ["old_fire_00000000"]
    assert ids(opened(root / "test").scenes("test")) == ["big-storm_00000007"]
    assert opened(root / "tier3").scenes("test") == []


def test_wrong_roots_are_explained(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    competition = opened(other / "none")  # opening needs no data: a submission can be linted without any
    for ask in (lambda: competition.scenes("train"), lambda: competition.scenes("test"), competition.inspect):
        with pytest.raises(DataError, match="train/images.*no such path"):
            ask()
    with pytest.raises(DataError, match="no folder"):
        opened(other).scenes("train")
    shutil.copytree(root, other / "xbd")
    with pytest.raises(DataError, match=f"set data.root to {other / 'xbd'}"):
        opened(other).scenes("train")
    with pytest.raises(DataError, match="none can be used .none of them is whole"):
        shutil.rmtree(root / "train/labels")
        shutil.rmtree(root / "tier3")
        opened(root).scenes("train")


def test_unknown_option_is_refused(root):
    with pytest.raises(ConfigError, match="unclassified.*'drop'"):
        opened(root, unclassified="drop")


def test_position_is_the_centre_of_the_tile(root):
    empty, full, fire = opened(root).scenes("train")
    assert empty.position is None
    assert full.position == pytest.approx((10.0 + 0.001 * SIZE / 2, 50.0 - 0.001 * SIZE / 2), abs=1e-9)
    assert fire.position == pytest.approx((20.0 + 0.001 * SIZE / 2, 40.0 - 0.001 * SIZE / 2), abs=1e-9)


def test_geotiff_scenes(tmp_path):
    add(tmp_path / "tier1", "storm_00000000")
    add(tmp_path / "tier1", "storm_00000001", houses=[])
    for path in sorted((tmp_path / "tier1/images").glob("*.png")):
        pixels = image(3 if "post" in path.name else 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(
                path.with_suffix(".tif"), "w", driver="GTiff", count=3, height=SIZE, width=SIZE, dtype="uint8",
                crs="EPSG:4326", transform=from_origin(10.0, 50.0, 0.001, 0.001),
            ) as file:  # fmt: skip
                file.write(pixels.transpose(2, 0, 1))
        path.unlink()
    competition = opened(tmp_path)
    scenes = competition.scenes("train")
    assert ids(scenes) == ["storm_00000000", "storm_00000001"]
    np.testing.assert_array_equal(competition.read(scenes[0], "post"), image(3))
    for scene in scenes:  # the empty one has it from the image
        assert scene.position == pytest.approx((10.024, 49.976))
    assert {f.kind for f in competition.inspect()} == {"size is not 1024x1024"}


# ---- targets ------------------------------------------------------------------------------------------
def test_targets_by_hand(root):
    _, scene, _ = opened(root).scenes("train")
    loc, cls = np.zeros((SIZE, SIZE), int), np.zeros((SIZE, SIZE), int)
    for (x, y), value in (((2, 2), 1), ((14, 2), 2), ((26, 2), 4), ((2, 20), 255)):
        loc[y : y + 9, x : x + 9] = 1
        cls[y : y + 9, x : x + 9] = value
    as_no_damage = np.where(cls == 255, 1, cls)
    ignoring, counting = opened(root), opened(root, unclassified="no-damage")
    for competition, expected in ((ignoring, cls), (counting, as_no_damage)):
        np.testing.assert_array_equal(competition.target(scene, "loc"), loc)
        np.testing.assert_array_equal(competition.target(scene, "cls"), expected)
        np.testing.assert_array_equal(competition.truth(scene)["localization"], loc)
        np.testing.assert_array_equal(competition.truth(scene)["damage"], as_no_damage)
        assert {mask.dtype for mask in competition.truth(scene).values()} == {np.dtype(np.uint8)}


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"features": []}', '{"features": {"xy": null}}', '{"features": {"xy": "abc"}}',
             '{"features": {"xy": [1]}}', '{"features": {"xy": [], "lng_lat": 3}}', "[" * 100_000],
)  # fmt: skip
def test_labels_of_any_shape_leave_the_scene_out(root, text):
    (root / "train/labels/big-storm_00000001_pre_disaster.json").write_text(text)
    competition = opened(root)
    assert ids(competition.scenes("train")) == ["big-storm_00000000", "old_fire_00000000"]
    assert ("label does not parse", "big-storm_00000001") in {(f.kind, f.scene) for f in competition.inspect()}


def building(wkt='"POLYGON ((0 0, 9 0, 9 9, 0 0))"', subtype='"destroyed"', more=""):
    return f'{{"features": {{"xy": [{{"wkt": {wkt}, "properties": {{"subtype": {subtype}{more}}}}}], "lng_lat": []}}}}'


DEEP = "[" * 98 + "]" * 98


@pytest.mark.parametrize("text", [
    "[" * 990 + "]" * 990, building(wkt="[" * 500 + "]" * 500), building(subtype="[" * 500 + "]" * 500),
    building(wkt="3"), building(wkt="null"), building(wkt='""'), building(wkt='"POINT (1 1)"'), building(wkt="{}"),
    building(subtype="3"), building(subtype="[]"), building(subtype='{"a": []}'), building(more=f', "more": {DEEP}'),
    building(more=', "more": "' + "x" * 2000 + '"'), "\ufeff", '{"features": {"xy": {"wkt": 1}, "lng_lat": []}}',
])  # fmt: skip
def test_a_label_of_odd_contents_is_named_and_stops_nothing(root, text):
    """Deep or large ones too; how deep and how large they may be are settings."""
    (root / "train/labels/big-storm_00000001_post_disaster.json").write_text(text)
    competition = open_competition("xview2", root, {}, limits=Limits(json_bytes=1900, json_depth=20))
    try:
        assert ids(competition.scenes("train")) == ["big-storm_00000000", "old_fire_00000000"]
        assert "big-storm_00000001" in {finding.scene for finding in competition.inspect()}
    finally:
        set_limits(Limits())


def test_a_label_within_the_limits_may_hold_more_than_is_read(root):
    (root / "train/labels/big-storm_00000001_post_disaster.json").write_text(building(more=f', "more": {DEEP[2:-2]}'))
    assert "big-storm_00000001" in ids(opened(root).scenes("train"))


def test_strata(root):
    competition = opened(root)
    empty, full, fire = (competition.strata(scene) for scene in competition.scenes("train"))
    assert tuple(full) == competition.flags
    assert full == {"nondamage": True, "minor": True, "major": False, "destroyed": True, "empty": False}
    assert [name for name, value in empty.items() if value] == ["empty"]
    assert [name for name, value in fire.items() if value] == ["nondamage"]


def test_test_scenes_have_no_truth(root):
    competition = opened(root)
    with pytest.raises(DataError, match="big-storm_00000007.*pre label"):
        competition.truth(competition.scenes("test")[0])


def test_reading_a_truncated_image_names_scene_and_file(root):
    competition = opened(root)
    scene = competition.scenes("train")[0]
    scene.files["post"].write_bytes(scene.files["post"].read_bytes()[:1500])
    with pytest.raises(DataError, match=f"scene {scene.id}: .*{scene.files['post'].name}.*truncated"):
        competition.read(scene, "post")


def test_a_copy_in_another_process_gives_the_same(root):
    competition = opened(root, unclassified="no-damage")
    scenes = competition.scenes("train")
    other, others = pickle.loads(pickle.dumps((competition, scenes)))
    np.testing.assert_array_equal(other.target(others[1], "cls"), competition.target(scenes[1], "cls"))


@real
def test_real_truth_equals_the_official_targets():
    competition = opened(SHARED / "xbd")
    scenes = {scene.id: scene for scene in competition.scenes("train")}
    assert (len(scenes), len(competition.scenes("test"))) == (16, 6)
    for number, name in json.loads((SHARED / "xview2_metric/image_ids.json").read_text()).items():
        for kind, mask in competition.truth(scenes[name]).items():
            target = read_mask(SHARED / f"xview2_metric/targets/test_{kind}_{number}_target.png")
            np.testing.assert_array_equal(mask, target)
    assert ids(filter(lambda s: competition.strata(s)["empty"], scenes.values())) == ["santa-rosa-wildfire_00000087"]
    assert [s.id for s in scenes.values() if s.position is None] == ["santa-rosa-wildfire_00000087"]


# ---- data doctor --------------------------------------------------------------------------------------
def test_the_doctor_finds_every_planted_defect(root):
    def edit(path, change):
        features = json.loads(path.read_text())
        change(features["features"]["xy"])
        path.write_text(json.dumps(features))

    train = root / "train"
    planted = {}
    for number, kind in enumerate((
        "pair without twin", "label without image", "image without label", "label does not parse", "truncated label",
        "no features", "pre and post differ in size", "unknown subtype", "missing subtype", "polygon outside the tile",
        "invalid polygon", "not a polygon", "image all black", "unreadable image", "empty image", "duplicate id",
    ), start=100):  # fmt: skip
        name = planted[kind] = f"broken_{number:08d}"
        add(train, name)
        pre, post = (train / "images" / f"{name}_{side}_disaster.png" for side in ("pre", "post"))
        pre_label, post_label = (train / "labels" / f"{name}_{side}_disaster.json" for side in ("pre", "post"))
        match kind:
            case "pair without twin":
                post.unlink()
                post_label.unlink()
            case "label without image":
                pre.unlink()
                post.unlink()
            case "image without label":
                post_label.unlink()
            case "label does not parse":
                pre_label.write_bytes(b"\xff\xfe nonsense")
            case "truncated label":
                post_label.write_text(post_label.read_text()[:-40])
            case "no features":
                post_label.write_text('{"features": {"xy": [{"wkt": "POLYGON EMPTY"}]}}')
            case "pre and post differ in size":
                write_png(post, image(0, size=SIZE * 2))
            case "unknown subtype":
                edit(post_label, lambda xy: xy[0]["properties"].update(subtype="ruined"))
            case "missing subtype":
                edit(post_label, lambda xy: xy[1]["properties"].pop("subtype"))
            case "polygon outside the tile":
                edit(pre_label, lambda xy: xy[3].update(wkt=box(SIZE - 3, 5)))
            case "invalid polygon":
                edit(pre_label, lambda xy: xy[2].update(wkt="POLYGON ((1 1, 2 2"))
            case "not a polygon":
                edit(post_label, lambda xy: xy[2].update(wkt=["POINT (1 1)"]))
            case "image all black":
                write_png(pre, np.zeros((SIZE, SIZE, 3), np.uint8))
            case "unreadable image":
                pre.write_bytes(pre.read_bytes()[:2000])
            case "empty image":
                post.write_bytes(b"")
            case "duplicate id":
                add(root / "tier3", name)
    (train / "images" / "readme_pre_disaster.png").write_bytes(b"")
    pre = train / "images/big-storm_00000001_pre_disaster.png"
    shutil.copy(pre, pre.with_suffix(".tif"))

    findings = opened(root).inspect()
    found = {(f.kind, f.scene) for f in findings if f.kind != "size is not 1024x1024"}
    alias = {
        "truncated label": "label does not parse", "no features": "label does not parse",
        "missing subtype": "unknown subtype", "not a polygon": "invalid polygon", "empty image": "unreadable image",
    }  # fmt: skip
    expected = {(alias.get(kind, kind), name) for kind, name in planted.items()}
    expected |= {("unknown file name", "readme_pre_disaster.png"), ("image in two formats", "big-storm_00000001")}
    assert found == expected
    assert all(f.detail for f in findings)
    small = Counter(f.kind for f in findings)["size is not 1024x1024"]
    assert small == 4 + len(planted) + 1 - 2  # every scene but those without an image or with two sizes; one twice

    usable = ids(opened(root).scenes("train"))
    kept = {"polygon outside the tile", "image all black", "unreadable image", "duplicate id"}
    assert {kind for kind, name in planted.items() if name in usable} == kept
    assert len(set(usable)) == len(usable)


def test_a_sound_set_has_no_findings_but_its_size(root):
    assert {f.kind for f in opened(root).inspect()} == {"size is not 1024x1024"}


@pytest.mark.slow
@real
def test_the_doctor_names_only_the_rims_of_real_tiles_which_their_files_declare_as_transparent():
    black = {}
    for path in (SHARED / "xbd").rglob("*_disaster.png"):
        with Image.open(path) as file:  # another reader
            if file.info.get("transparency") == (0, 0, 0):
                black[path] = 1 - np.array(file.convert("RGB")).any(-1).mean()
    expected = {str(path): f"{share:.1%}" for path, share in black.items() if share}
    findings = opened(SHARED / "xbd").inspect()
    assert {f.kind for f in findings} == {"pixels without data"} and len(findings) == len(expected) == 6
    assert {f.detail.split(": ")[0]: f.detail.split(": ")[1].split()[0] for f in findings} == expected


def test_duplicate_between_train_and_test_is_found(root):
    add(root / "test", "big-storm_00000001", labelled=False)
    duplicates = [f for f in opened(root).inspect() if f.kind == "duplicate id"]
    assert [f.scene for f in duplicates] == ["big-storm_00000001"]
    assert "train" in duplicates[0].detail and "test" in duplicates[0].detail


def test_summary_counts_and_names_the_first():
    findings = [Finding("black", name) for name in "dcba"] + [Finding("cut", "x", "detail"), Finding("cut", "x")]
    assert summarize(findings) == ["black: 4 (d, c, b and 1 more)", "cut: 2 (x)"]
    assert summarize([]) == []


# ---- answers ------------------------------------------------------------------------------------------
@pytest.fixture
def case(root):
    """Return a competition, its full scene, and levels in which that scene can be recognised but not perfectly."""
    competition = opened(root)
    scene = competition.scenes("train")[1]
    truth, rng = competition.truth(scene), np.random.default_rng(0)
    loc = np.clip(truth["localization"] * 120 + rng.integers(0, 120, (1, SIZE, SIZE)), 0, 255).astype(np.uint8)
    votes = rng.random((5, SIZE, SIZE)) + 0.5 * (np.arange(5)[:, None, None] == truth["damage"])
    cls = np.rint(votes / votes.sum(0) * 255).astype(np.uint8)
    return competition, scene, {"loc": loc, "cls": cls}


def test_counts_of_the_grid_equal_tallies_of_decoded_points(case):
    competition, scene, levels = case
    truth = competition.truth(scene)
    axes = {"loc_threshold": (0.3, 0.5), "w_minor": (0.5, 1.0, 2.0), "fuse": (0.0, 0.5)}
    grid = competition.grid(axes, competition.defaults() | {"loc_threshold_damaged": 0.2})
    counts = competition.count(levels, truth, grid)
    assert grid.shape == (2, 3, 2) and counts.shape == (12, 15)
    assert grid[11]["w_minor"] == 2.0 and grid[11]["loc_threshold_damaged"] == 0.2
    for point, row in zip(grid, counts):
        np.testing.assert_array_equal(row, competition.tally(competition.decode(levels, point), truth))
    assert len(np.unique(counts, axis=0)) > 6
    assert competition.score(counts).shape == (12,) and competition.class_scores(counts).shape == (12, 5)


def test_scores_have_the_official_keys_and_stay_finite(case):
    competition, scene, _ = case
    truth = competition.truth(scene)
    scores = competition.scores(competition.tally(truth, truth))
    assert {"score", "damage_f1", "localization_f1", "damage_f1_no_damage", "damage_f1_destroyed"} <= set(scores)
    assert scores["score"] == pytest.approx(0.3000028)  # one class is absent: the official score is capped
    assert scores["score_present_classes"] == pytest.approx(1.0, abs=1e-5)
    assert all(np.isfinite(value) for value in competition.scores(np.zeros(15, np.int64)).values())
    parts = competition.class_scores(competition.tally(truth, truth))
    np.testing.assert_array_equal(parts, [1, 1, 1, 0, 1])


def test_decode_fills_in_defaults_and_refuses_the_unknown(case):
    competition, _, levels = case
    for key, mask in competition.decode(levels, competition.defaults()).items():
        np.testing.assert_array_equal(mask, competition.decode(levels, {})[key])
    for params, says in (
        ({"w_minr": 2.0}, "decode.w_minr: unknown setting; did you mean w_minor"),
        ({"loc_threshold": 1.5}, "decode.loc_threshold: expected a number from 0 to 1, got 1.5"),
        ({"fuse": -0.1}, "decode.fuse: expected a number from 0 to 1, got -0.1"),
        ({"w_minor": -1}, "decode.w_minor: expected a number from 0 to 1000, got -1"),
        ({"preset": "first2020"}, "decode.preset: expected one of selim2020"),
        ({"preset": "selim2020", "w_minor": 2.0}, "fixes every setting, got also w_minor"),
    ):
        with pytest.raises(ConfigError, match=says):
            competition.decode(levels, params)
    with pytest.raises(ConfigError, match="preset"):
        competition.grid({"w_minor": (1.0, 2.0)}, {"preset": "selim2020"})


def test_preset_is_that_of_the_ensemble(case):
    competition, _, levels = case
    localization, damage = decoding.selim2020(levels["loc"], levels["cls"])
    answer = competition.decode(levels, competition.defaults() | {"preset": "selim2020", "postprocess": []})
    np.testing.assert_array_equal(answer["localization"], localization)
    np.testing.assert_array_equal(answer["damage"], damage)


def test_post_processing_steps_run_in_order(case):
    competition, _, levels = case
    plain = competition.decode(levels, {})
    voted = competition.decode(levels, {"postprocess": [{"name": "object_vote"}]})
    assert not np.array_equal(plain["damage"], voted["damage"])
    np.testing.assert_array_equal(plain["localization"], voted["localization"])


def test_panels_show_the_damage_colours_where_there_is_a_building(case):
    competition, scene, levels = case
    truth = competition.truth(scene)
    panels = dict(competition.panels(scene, {"localization": truth["localization"] * 0, "damage": truth["damage"]}))
    assert list(panels) == ["before", "after", "truth", "prediction"]
    np.testing.assert_array_equal(panels["prediction"], panels["after"] // 2)  # damage without building is no answer
    assert len(np.unique(panels["truth"][truth["localization"] > 0], axis=0)) == 3  # un-classified shows as no-damage
    assert list(dict(competition.panels(competition.scenes("test")[0], truth))) == ["before", "after", "prediction"]


# ---- submission ---------------------------------------------------------------------------------------
@pytest.fixture
def answers(root):
    """Return a competition of two full-size test scenes with random blobs for answers."""
    shutil.rmtree(root / "test")
    folder = root / "test/images"
    folder.mkdir(parents=True)
    rng, answers = np.random.default_rng(1), []
    for name in ("storm_00000001", "storm_00000005"):
        for side in ("pre", "post"):
            write_png(folder / f"{name}_{side}_disaster.png", np.full((1024, 1024, 3), 9, np.uint8))
    competition = opened(root)
    for scene in competition.scenes("test"):
        damage = np.kron(rng.integers(0, 5, (16, 16), dtype=np.uint8), np.ones((64, 64), np.uint8))
        answers.append((scene, {"localization": (damage > 0).astype(np.uint8), "damage": damage}))
    return competition, answers


def test_submission_reads_back_and_passes_its_linter(answers, tmp_path):
    competition, given = answers
    folder = tmp_path / "out"
    folder.mkdir()
    files = competition.write_submission(iter(given), folder)
    assert all(file.is_file() for file in files)
    assert {"submission.csv", "xview2.zip", "test_damage_00001_prediction.png"} <= {file.name for file in files}
    for scene, answer in given:
        back = competition.read_submission(folder, scene)
        assert back.keys() == answer.keys()
        for kind in back:
            np.testing.assert_array_equal(back[kind], answer[kind])
    scenes = [scene for scene, _ in given]
    assert competition.lint(folder, scenes) == []
    without_data = opened(tmp_path / "none")
    for part in ("", "xview2", "xview2.zip", "submission.csv"):
        assert without_data.lint(folder / part) == []
    assert without_data.lint(folder, sample=folder / "submission.csv") == []


@pytest.mark.parametrize("defect", ["png", "row", "value", "scene", "disagree", "zip", "sample", "nothing", "ids"])
def test_linter_finds(answers, tmp_path, defect):
    competition, given = answers
    folder = tmp_path / "out"
    folder.mkdir()
    competition.write_submission(given, folder)
    scenes, sample = [scene for scene, _ in given], None
    table, png = folder / "submission.csv", folder / "xview2/test_damage_00001_prediction.png"
    lines = table.read_text().splitlines(keepends=True)
    if defect == "png":
        png.write_bytes(png.read_bytes()[:200])
    elif defect == "row":
        table.write_text("".join(lines[:-1]))
    elif defect == "value":
        write_png(png, np.full((1024, 1024), 255, np.uint8))
    elif defect == "scene":
        scenes = scenes[:1]
    elif defect == "disagree":
        table.write_text("".join([*lines[:-1], lines[-1].split(",")[0] + ",1 1\n"]))
    elif defect == "zip":
        (folder / "xview2.zip").write_bytes((folder / "xview2.zip").read_bytes()[:500])
    elif defect == "sample":
        sample = tmp_path / "sample.csv"
        sample.write_text("".join([lines[0], *reversed(lines[1:])]))
    elif defect == "nothing":
        shutil.rmtree(folder)
    elif defect == "ids":
        (folder / "xview2/scene_ids.csv").unlink()
    assert competition.lint(folder, scenes, sample)
    assert competition.lint(folder, None, sample) or defect == "scene"


def test_tiles_of_another_size_have_their_rows_and_no_official_pairs(case, tmp_path):
    competition, scene, levels = case
    answer = competition.decode(levels, {})
    assert competition.write_submission([(scene, answer)], tmp_path) == [tmp_path / "submission.csv"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("sub", "xview2"))] == ["submission.csv"]
    assert competition.lint(tmp_path, [scene]) == competition.lint(tmp_path / "submission.csv", [scene]) == []
    back = competition.read_submission(tmp_path, scene)
    np.testing.assert_array_equal(back["localization"], answer["localization"])
    np.testing.assert_array_equal(competition.tally(back, competition.truth(scene)),
                                  competition.tally(answer, competition.truth(scene)))  # fmt: skip
    (line,) = competition.caveats([scene])
    assert line.startswith("1 of 1 scenes are not 1024x1024 pixels (first: big-storm_00000001): the official PNG pairs")


def test_one_tile_of_another_size_leaves_out_the_pairs_of_all(answers, tmp_path):
    competition, given = answers
    odd = Scene("storm_00000003", {})
    masks = {"localization": np.ones((512, 512), np.uint8), "damage": np.ones((512, 512), np.uint8)}
    folder = tmp_path / "handed"
    folder.mkdir()
    written = competition.write_submission([given[0], (odd, masks), given[1]], folder)
    assert written == [folder / "submission.csv"] and [path.name for path in folder.iterdir()] == ["submission.csv"]
    assert len((folder / "submission.csv").read_text().splitlines()) == 1 + 3 * 5
    assert competition.caveats([scene for scene, _ in given]) == []
    competition.write_submission(given, folder)
    assert competition.lint(folder, [scene for scene, _ in given]) == []
    shutil.rmtree(folder / "xview2")
    assert competition.lint(folder, [scene for scene, _ in given]), "pairs of 1024x1024 that are not there"
