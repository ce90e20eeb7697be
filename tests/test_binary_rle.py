"""HuBMAP, DSB and salt layouts: what is written natively reads back, scores right, and is submitted as it came."""

import os
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import rasterio

from lib import metrics as masks
from lib.competitions import open_competition
from lib.competitions.binary_rle import instances
from lib.competitions.binary_rle.competition import COLOURFUL
from lib.competitions.contract import Scene
from lib.competitions.synthetic import binary_rle as synthetic
from lib.errors import ConfigError, DataError
from lib.scenes import raster, rle, stain
from lib.scenes.view import resize
from lib.tasks import BinaryMask, MultilabelMask

SIZE = 128
HERE = Path(__file__).parents[1]
DSB = Path(os.environ.get("SHARED_DATA", HERE / "../shared/data")) / "dsb2018"
needs_dsb = pytest.mark.skipif(not (DSB / "stage1_train").is_dir(), reason="the nuclei of DSB 2018 are not here")


def opened(root, **options):
    return open_competition("binary_rle", root, options)


@pytest.fixture(scope="module")
def hubmap(tmp_path_factory):
    root = tmp_path_factory.mktemp("hubmap")
    synthetic.write(root, scenes=12, test_scenes=3, size=SIZE, seed=7)
    return root


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuclei")
    synthetic.write_nested(root, scenes=8, test_scenes=2, size=SIZE, seed=7)
    return root


@cache
def drawn(split="train", count=12):
    """The label maps as they were drawn, before any file."""
    return {key: labels for key, _, _, labels in synthetic._drawn(split, count, SIZE, 7)}


def perfect(competition, scene):
    """Levels of a network that knows the target."""
    task = competition.tasks["loc"]
    return {"loc": task.truth(competition.target(scene, "loc")).astype(np.uint8) * 255}


def noisy(competition, scene, seed=0):
    rng = np.random.default_rng([seed, *scene.id.encode()])
    levels = perfect(competition, scene)["loc"].astype(np.float32)
    noise = np.stack([cv2.GaussianBlur(rng.normal(0, 1, level.shape), (0, 0), 2) for level in levels])
    return {"loc": np.clip(0.6 * levels + 60 + 300 * noise, 0, 255).astype(np.uint8)}


# ---- reading ------------------------------------------------------------------------------------------
def test_scenes_of_a_table(hubmap):
    competition = opened(hubmap, domain="organ", group="patient", source="data_source", class_name="unit")
    scenes = competition.scenes("train")
    table = pd.read_csv(hubmap / "train.csv", dtype=str, keep_default_na=False).set_index("id")
    assert [s.id for s in scenes] == sorted(table.index) and {"0001", "1e5", "007f3a"} <= set(table.index)
    for scene in scenes:
        row = table.loc[scene.id]
        assert (scene.domain, scene.group, scene.pixel_size) == (row.organ, row.patient, float(row.pixel_size))
        assert scene.source == scene.data_source == row.data_source
        shape = raster.image_size(scene.files["image"])
        assert shape == (int(row.img_height), int(row.img_width))
        image = competition.read(scene, "image")
        assert image.shape == (*shape, 3) and image.dtype == np.uint8
    assert competition.tasks == {"loc": BinaryMask(("unit",))} and competition.images == ("image",)
    test = competition.scenes("test")
    assert [s.id for s in test] == ["2e3", "9001", "9002"] and {s.domain for s in test} == {"kidney", "spleen"}
    assert {s.files["image"].suffix for s in scenes} == {".png", ".jpg", ".tiff"}
    assert competition.published_split() == {}


def test_truth_is_what_was_drawn_with_empty_images_empty(hubmap):
    competition = opened(hubmap)
    empty = 0
    for scene in competition.scenes("train"):
        truth = competition.truth(scene)
        np.testing.assert_array_equal(truth, drawn()[scene.id] > 0)
        np.testing.assert_array_equal(competition.target(scene, "loc"), truth)
        assert truth.dtype == np.uint8 and competition.strata(scene)["empty"] == (not truth.any())
        empty += not truth.any()
    assert empty == 2
    with pytest.raises(DataError, match="2e3: expected a truth"):
        competition.truth(competition.scenes("test")[0])


def test_strata_part_the_scenes_with_objects_at_the_median(hubmap):
    competition = opened(hubmap)
    table = pd.DataFrame([competition.strata(s) for s in competition.scenes("train")])
    assert list(table) == list(competition.flags) and (table.sum(axis=1) == 1).all()
    assert table.sum().to_dict() == {"empty": 2, "small": 5, "large": 5}


def test_objects_of_nested_folders(nuclei):
    competition = opened(nuclei, metric="object_map", border=True, class_name="nucleus", domain="colour")
    assert competition.tasks == {"loc": MultilabelMask(("nucleus", "border"))}
    for scene in competition.scenes("train"):
        truth, expected = competition.truth(scene), drawn()[scene.id]
        assert truth.dtype == np.int32 and truth.max() == expected.max()
        for number in range(1, expected.max() + 1):  # the numbers follow the files' names
            assert len(np.unique(truth[expected == number])) == 1
        target = competition.target(scene, "loc")
        np.testing.assert_array_equal(target & 1, expected > 0)
        np.testing.assert_array_equal(target >> 1, instances.borders(truth, 2))
    stains = {s.id: s.domain for s in competition.scenes("train") + competition.scenes("test")}
    assert stains["0001"] == "brightfield" and stains["1e5"] == "fluorescence" and stains["9001"] == "fluorescence"
    assert competition.header == ("ImageId", "EncodedPixels")


def test_rows_per_object_are_objects_too(nuclei, tmp_path):
    """stage1_train_labels.csv in place of the masks folders."""
    rows = []
    for key, labels in drawn(count=8).items():
        folder = tmp_path / "stage1_train" / key / "images"
        folder.mkdir(parents=True)
        (folder / f"{key}.png").write_bytes((nuclei / "stage1_train" / key / "images" / f"{key}.png").read_bytes())
        rows += [(key, text) for text in rle.encode_labels(labels) or [""]]
    pd.DataFrame(rows, columns=["ImageId", "EncodedPixels"]).to_csv(tmp_path / "stage1_train_labels.csv", index=False)
    competition = opened(tmp_path, metric="object_map")
    for scene in competition.scenes("train"):
        np.testing.assert_array_equal(competition.truth(scene), drawn()[scene.id])
    assert competition.header == ("ImageId", "EncodedPixels") and competition.scenes("test") == []
    assert competition.rule.origin == 1 and competition.rule.order == "column"


def salt(root, order="column", origin=1, masks_too=True, texts_of=None):
    """Square images as in salt: train/images, train/masks, train.csv with rle_mask."""
    rng = np.random.default_rng(3)
    rows = []
    for folder in ("train/images", "train/masks", "test/images"):
        (root / folder).mkdir(parents=True)
    for k in range(6):
        y, x = np.ogrid[:101, :101]
        mask = ((y - rng.uniform(30, 70)) ** 2 + (x - rng.uniform(0, 20)) ** 2 < 900) | (y > 95)
        mask = mask if k else np.zeros((101, 101), bool)
        image = (60 + 90 * mask + rng.normal(0, 10, mask.shape)).clip(0, 255).astype(np.uint8)
        raster.write_png(root / f"train/images/{k:03d}e1.png", image)
        if masks_too:
            raster.write_png(root / f"train/masks/{k:03d}e1.png", mask.astype(np.uint8) * 255)
        rows.append((f"{k:03d}e1", rle.encode(mask, order, origin)))
    raster.write_png(root / "test/images/a.png", image)
    pd.DataFrame(rows, columns=["id", "rle_mask"]).to_csv(root / "train.csv", index=False)


@pytest.mark.parametrize(("order", "origin"), rle.RULES)
@pytest.mark.parametrize("masks_too", [True, False])
def test_square_images_show_their_order_by_masks_or_pictures(tmp_path, order, origin, masks_too):
    salt(tmp_path, order, origin, masks_too)
    competition = opened(tmp_path)
    assert (competition.rule.order, competition.rule.origin) == (order, origin)
    assert ("mask files" if masks_too else "steeper") in competition.rule.why
    (remark,) = competition.remarks()
    assert remark.startswith(f"RLE order detected: {order} order from {origin}") and competition.inspect() == []
    assert competition.header == ("id", "rle_mask") and len(competition.scenes("train")) == 6
    assert competition.truth(competition.scenes("train")[0]).sum() == 0  # an empty cell is an empty mask
    stated = opened(tmp_path, order=order, origin=origin)
    assert stated.rule.why == "stated" and stated.remarks() == []


def test_mask_files_alone_need_no_table(tmp_path):
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_masks").mkdir()
    for key in ("0001", "1e5"):
        raster.write_png(tmp_path / "train_images" / f"{key}.png", np.eye(9, 12, dtype=np.uint8) + 50)
        raster.write_png(tmp_path / "train_masks" / f"{key}.png", np.eye(9, 12, dtype=np.uint8) * 255)
    competition = opened(tmp_path)
    np.testing.assert_array_equal(competition.truth(competition.scenes("train")[1]), np.eye(9, 12))
    assert (competition.rule.order, competition.rule.origin) == ("column", 1) and competition.header == ("id", "rle")
    assert competition.inspect() == [] and "RLE order assumed: column order from 1" in competition.remarks()[0]
    raster.write_png(tmp_path / "train_masks" / "1e5.png", np.eye(9, dtype=np.uint8))
    assert "broken truth" in [f.kind for f in opened(tmp_path).inspect()]
    with pytest.raises(DataError, match=r"scene 1e5: .*1e5.png: expected the size of its image .* got \(9, 9\)"):
        competition.truth(competition.scenes("train")[1])


def test_undecidable_runs_are_refused_until_stated(tmp_path):
    (tmp_path / "train").mkdir()
    raster.write_png(tmp_path / "train" / "a.png", np.full((20, 20), 9, np.uint8))
    (tmp_path / "train.csv").write_text("id,encoding\na,45 3\n")
    competition = opened(tmp_path)
    with pytest.raises(DataError, match="state the order.*data.options.order"):
        competition.truth(competition.scenes("train")[0])
    assert "RLE order unknown" in [f.kind for f in competition.inspect()]
    stated = opened(tmp_path, order="row", origin=0)
    assert np.argwhere(stated.truth(stated.scenes("train")[0])).tolist() == [[2, 5], [2, 6], [2, 7]]


def test_pictures_of_any_kind_are_read(tmp_path):
    (tmp_path / "train_images").mkdir()
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (12, 17, 3), np.uint8)
    alpha = rng.integers(0, 2, (12, 17, 1), np.uint8) * 255
    folder = tmp_path / "train_images"
    (folder / "alpha.png").write_bytes(cv2.imencode(".png", np.concatenate([colour[..., ::-1], alpha], 2))[1].tobytes())
    raster.write_png(folder / "grey.png", colour[..., 0])
    deep = rng.integers(0, 65536, (3, 12, 17), np.uint16)
    with rasterio.open(
        folder / "deep.tif", "w", driver="GTiff", width=17, height=12, count=3, dtype="uint16",
        transform=rasterio.Affine(1, 0, 5, 0, -1, 5), crs="EPSG:4326",
    ) as file:  # fmt: skip
        file.write(deep)
    (tmp_path / "train.csv").write_text("id,rle\n" + "".join(f"{key},1 3\n" for key in ("alpha", "deep", "grey")))
    competition = opened(tmp_path, order="column", origin=1)
    read = {scene.id: competition.read(scene, "image") for scene in competition.scenes("train")}
    np.testing.assert_array_equal(read["alpha"], colour * (alpha > 0))  # what is transparent is not looked at
    np.testing.assert_array_equal(read["grey"], np.repeat(colour[..., :1], 3, 2))
    assert read["deep"].shape == (12, 17, 3) and read["deep"].dtype == np.uint8
    assert np.corrcoef(read["deep"].ravel(), np.moveaxis(deep, 0, 2).ravel())[0, 1] > 0.99


def test_slices_are_neighbours_within_their_group(hubmap):
    competition = opened(hubmap, group="patient", slices=3)
    assert competition.images == ("image-1", "image", "image+1")
    scenes = {scene.id: scene for scene in competition.scenes("train")}
    stack = sorted(key for key, scene in scenes.items() if scene.group == "kidney-0")
    assert stack == ["0001", "007f3a"]
    path = {key: scene.files["image"] for key, scene in scenes.items()}
    first, last = scenes[stack[0]], scenes[stack[1]]
    assert (first.files["image-1"], first.files["image+1"]) == (path[stack[0]], path[stack[1]])
    assert (last.files["image-1"], last.files["image+1"]) == (path[stack[0]], path[stack[1]])
    neighbour = competition.read(last, "image")
    np.testing.assert_array_equal(competition.read(first, "image+1"), resize(neighbour, (128, 128)))
    assert neighbour.shape[:2] != (128, 128), "a neighbour of another size is resized"
    by_width = opened(hubmap, group="organ", slices=5, slice_column="img_width")
    assert by_width.images == ("image-2", "image-1", "image", "image+1", "image+2")
    table = pd.read_csv(hubmap / "train.csv", dtype={"id": str})
    stack = table[table.organ == "kidney"].sort_values(["img_width", "id"])["id"].tolist()
    scenes = {scene.id: scene for scene in by_width.scenes("train")}
    assert scenes[stack[2]].files["image-2"] == path[stack[0]] and scenes[stack[2]].files["image+2"] == path[stack[4]]
    assert scenes[stack[0]].files["image-2"] == path[stack[0]]


def test_a_split_column_is_published(hubmap, tmp_path):
    (tmp_path / "train_images").symlink_to(hubmap / "train_images")
    table = pd.read_csv(hubmap / "train.csv", dtype=str, keep_default_na=False)
    table["split"] = ["train", "validation"] * 6
    table.to_csv(tmp_path / "train.csv", index=False)
    assert opened(tmp_path).published_split() == dict(zip(table["id"], table["split"]))


def test_a_test_set_may_be_denied(hubmap):
    assert len(opened(hubmap).scenes("test")) == 3 and opened(hubmap, test=None).scenes("test") == []


def test_masks_may_be_denied_and_stated_ones_must_be_there(tmp_path, nuclei):
    salt(tmp_path)
    for path in (tmp_path / "train/masks").iterdir():
        raster.write_png(path, np.ones(raster.image_size(path), np.uint8))
    by_masks, by_runs = opened(tmp_path, order="column"), opened(tmp_path, masks=None, order="column", origin=1)
    scene, own = by_masks.scenes("train")[1], by_runs.scenes("train")[1]
    assert by_masks.truth(scene).all() and "mask" in scene.files
    assert 0 < by_runs.truth(own).mean() < 1 and "mask" not in own.files
    with pytest.raises(DataError, match="elsewhere: expected masks, found none; set data.options.masks"):
        opened(tmp_path, masks="elsewhere").scenes("train")
    with pytest.raises(DataError, match="expected labelled scenes with masks"):
        opened(nuclei, masks=None).scenes("train")  # their masks lie one by one beside each image, and have no runs


def test_masks_may_be_named_by_a_pattern(tmp_path):
    for key in ("0001", "1e5"):
        (tmp_path / "train_images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        raster.write_png(tmp_path / "train_images" / f"{key}.png", np.eye(9, 12, dtype=np.uint8) + 50)
        raster.write_png(tmp_path / "masks" / f"{key}_mask.png", np.eye(9, 12, dtype=np.uint8) * 255)
        raster.write_png(tmp_path / "masks" / f"{key}_edge.png", np.ones((9, 12), np.uint8))
    competition = opened(tmp_path, masks="masks/*_mask.png")
    assert [scene.id for scene in competition.scenes("train")] == ["0001", "1e5"]
    passed = [(finding.kind, finding.scene) for finding in competition.inspect()]
    assert passed == [("file in masks that no scene uses", f"masks/{key}_edge.png") for key in ("0001", "1e5")]
    np.testing.assert_array_equal(competition.truth(competition.scenes("train")[1]), np.eye(9, 12))
    with pytest.raises(DataError, match="_seg.png: expected masks, found none"):
        opened(tmp_path, masks="masks/*_seg.png").scenes("train")


def test_group_and_domain_may_be_found_in_the_id(tmp_path):
    salt(tmp_path)
    competition = opened(tmp_path, group="^..(.)", domain="e.$")
    scenes = competition.scenes("train")
    assert [(scene.group, scene.domain) for scene in scenes] == [(str(k), "e1") for k in range(6)]
    assert {(f.kind, f.scene) for f in competition.inspect()} == {
        ("id in which domain finds nothing", "a"), ("id in which group finds nothing", "a"),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="data.options.group: expected a regular expression"):
        opened(tmp_path, group="(")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"metric": "iou"}, "metric: expected 'dice'"),
        ({"order": "diagonal"}, "order: expected 'auto'"),
        ({"origin": 2}, "origin: expected 'auto'"),
        ({"slices": 2, "group": "patient"}, "slices: expected an odd number"),
        ({"slices": 3}, "a group that says"),
        ({"border": "yes"}, "border: expected"),
        ({"header": ["id"]}, "header of two words"),
        ({"domain": "stain"}, "domain: expected a column of the table \\(patient, organ.*or a pattern that ids match"),
        ({"group": "person"}, "group: expected a column"),
        ({"rle_column": "runs"}, "rle_column"),
        ({"border": True}, "need every object by itself"),
        ({"metric": "object_map"}, "need every object by itself"),
    ],
)
def test_impossible_options_are_refused(hubmap, options, fault):
    with pytest.raises(ConfigError, match=fault):
        opened(hubmap, **options).scenes("train")


def test_missing_data_are_named(tmp_path):
    with pytest.raises(DataError, match="expected a folder of images.*data.options.train"):
        opened(tmp_path).scenes("train")
    (tmp_path / "train_images").mkdir()
    raster.write_png(tmp_path / "train_images" / "a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="expected labelled scenes with masks, or with rows of runs"):
        opened(tmp_path).scenes("train")
    with pytest.raises(DataError, match="labels.csv: expected a CSV"):
        opened(tmp_path, table="labels.csv").scenes("train")


def test_the_data_doctor_names_what_is_broken(hubmap, nuclei, tmp_path):
    assert opened(hubmap).inspect() == []
    (tmp_path / "train_images").mkdir()
    table = pd.read_csv(hubmap / "train.csv", dtype=str, keep_default_na=False)
    for path in (hubmap / "train_images").iterdir():
        (tmp_path / "train_images" / path.name).write_bytes(path.read_bytes())
    table.loc[table.id == "0001", "img_width"] = "77"
    table = pd.concat([table, pd.DataFrame([dict(table.iloc[0], id="ghost")])])
    table[table.id != "0010"].to_csv(tmp_path / "train.csv", index=False)
    broken = tmp_path / "train_images" / "0012.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    raster.write_png(tmp_path / "train_images" / "0001.png", np.zeros((4, 4), np.uint8))
    found = {(f.kind, f.scene) for f in opened(tmp_path, train="train_images").inspect()}
    assert {("size differs from the table", "0001"), ("truth without image", "ghost"), ("image without truth", "0010"),
            ("unreadable image", "0012"), ("image in two formats", "0001")} <= found  # fmt: skip
    objects = tmp_path / "stage1_train" / "x"
    (objects / "images").mkdir(parents=True)
    (objects / "masks").mkdir()
    raster.write_png(objects / "images" / "x.png", np.eye(8, 9, dtype=np.uint8) + 7)
    for name, columns in (("a", 5), ("b", 2), ("c", 0)):
        mask = np.zeros((8, 9), np.uint8)
        mask[:4, :columns] = 255
        raster.write_png(objects / "masks" / f"{name}.png", mask)
    findings = opened(tmp_path, train="stage1_train", table="train.csv").inspect()
    details = {f.kind: f.detail for f in findings if f.scene == "x"}
    assert details == {"object without pixels": "number 3 of 3", "objects overlap": "8 pixels"}


# ---- scores -------------------------------------------------------------------------------------------
def slow_dice(answer, truth):
    both = sum(bool(a) and bool(t) for a, t in zip(answer.ravel().tolist(), truth.ravel().tolist()))
    size = int((answer > 0).sum() + (truth > 0).sum())
    return 2 * both / size if size else 1.0


@pytest.mark.parametrize("metric", ["dice", "dice_pooled"])
def test_dice_equals_the_slow_one_and_counts_add_up(hubmap, metric):
    competition = opened(hubmap, metric=metric)
    scenes, total, single, pixels = competition.scenes("train"), 0, [], 0
    for scene in scenes:
        truth = competition.truth(scene)
        answer = competition.decode(noisy(competition, scene), {"threshold": 0.5})
        total = total + competition.tally(answer, truth)
        single.append(slow_dice(answer, truth))
        pixels = pixels + masks.binary_counts(answer, truth)
    assert 0.0 in single and max(single) < 1  # an empty image got a false pixel
    expected = {"dice": np.mean(single), "dice_pooled": float(masks.dice(pixels))}
    scores = competition.scores(total)
    assert list(scores)[0] == "score" and scores["score"] == pytest.approx(expected[metric], abs=1e-9)
    assert {k: scores[k] for k in expected} == pytest.approx(expected, abs=1e-9)
    assert competition.score(np.stack([total, 2 * total])) == pytest.approx([expected[metric]] * 2, abs=1e-9)
    assert competition.class_scores(total[None]).shape == (1, 1)
    assert all(np.isfinite(v) for v in competition.scores(np.zeros_like(total)).values())


@pytest.mark.parametrize("metric", ["dice", "object_map"])
def test_perfect_levels_score_one_and_empty_answers_what_the_rule_says(tmp_path, metric):
    synthetic.write_nested(tmp_path, scenes=8, test_scenes=0, size=256, seed=7)
    competition = opened(tmp_path, metric=metric, border=True)
    total, nothing, empty = 0, 0, 0
    for scene in competition.scenes("train"):
        truth = competition.truth(scene)
        total = total + competition.tally(competition.decode(perfect(competition, scene), {}), truth)
        answer = competition.decode({"loc": np.zeros((2, *truth.shape), np.uint8)}, {})
        nothing = nothing + competition.tally(answer, truth)
        empty += not truth.any()
    assert competition.scores(total)["score"] == 1.0
    assert competition.scores(nothing)["score"] == pytest.approx(empty / 8) and empty == 1
    with pytest.raises(ConfigError, match="decode.speed: unknown setting"):
        competition.decode({"loc": np.zeros((2, 4, 4), np.uint8)}, {"speed": 1})


AXES = {
    "threshold alone": ({"threshold": [0.0, 0.3, 0.5, 0.7, 1.0]}, {}),
    "several": ({"threshold": [0.3, 0.6], "min_area": [0, 20, 60], "fill_holes": [0, 1]}, {}),
    "objects": ({"threshold": [0.4, 0.6], "instances": [0, 1], "seed_threshold": [0.5, 0.8]}, {"min_area": 8}),
    "with a step": ({"threshold": [0.3, 0.5]}, {"postprocess": [{"name": "remove_small", "min_area": 30}]}),
}


@pytest.mark.parametrize("metric", ["dice", "object_map"])
@pytest.mark.parametrize("axes", AXES)
def test_counting_a_grid_equals_decoding_every_point(nuclei, metric, axes):
    competition = opened(nuclei, metric=metric, border=True)
    grid = competition.grid(AXES[axes][0], {**competition.defaults(), **AXES[axes][1]})
    for scene in competition.scenes("train")[:3]:
        truth, levels = competition.truth(scene), noisy(competition, scene)
        counted = competition.count(levels, truth, grid)
        assert counted.shape == (len(grid), 18 if metric == "object_map" else 5) and counted.dtype == np.int64
        for point, row in zip(grid, counted, strict=True):
            np.testing.assert_array_equal(row, competition.tally(competition.decode(levels, point), truth))
    with pytest.raises(ConfigError, match="search.axes.sharpness"):
        competition.grid({"sharpness": [1]}, {})


def test_panels_show_image_truth_and_prediction(nuclei):
    competition = opened(nuclei, metric="object_map")
    scene = competition.scenes("train")[0]
    panels = competition.panels(scene, competition.truth(scene))
    assert [title for title, _ in panels] == ["image", "truth", "prediction"]
    image, truth, prediction = (panel for _, panel in panels)
    outside = cv2.dilate((competition.truth(scene) > 0).astype(np.uint8), np.ones((3, 3))) == 0
    for panel in (truth, prediction):
        np.testing.assert_array_equal(panel[outside], image[outside])
        assert (panel != image).any()
    assert [t for t, _ in competition.panels(competition.scenes("test")[0], image[..., 0])] == ["image", "prediction"]


# ---- submission ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("order", "origin"), rle.RULES)
@pytest.mark.parametrize("metric", ["dice", "object_map"])
def test_a_submission_reads_back_lints_clean_and_scores_the_same(nuclei, tmp_path, metric, order, origin):
    competition = opened(nuclei, metric=metric, order=order, origin=origin)
    scenes = competition.scenes("train")
    answers = {s.id: competition.decode(noisy(competition, s), {"threshold": 0.6, "min_area": 9}) for s in scenes}
    answers["0004"] = np.zeros_like(answers["0004"])
    (path,) = competition.write_submission(((s, answers[s.id]) for s in scenes), tmp_path)
    assert competition.lint(tmp_path, scenes) == [] and competition.lint(path, scenes) == []
    rows = path.read_text().splitlines()
    objects = sum(len(np.unique(a)) - 1 for a in answers.values())
    assert rows[0] == "ImageId,EncodedPixels" and "0004," in rows and any(row.startswith("1e5,") for row in rows)
    empty = sum(not a.any() for a in answers.values())
    assert len(rows) - 1 == (objects + empty if metric == "object_map" else len(scenes))
    for scene in scenes:
        back, truth = competition.read_submission(tmp_path, scene), competition.truth(scene)
        np.testing.assert_array_equal(back > 0, answers[scene.id] > 0)
        np.testing.assert_array_equal(competition.tally(back, truth), competition.tally(answers[scene.id], truth))
    text = dict(line.split(",") for line in rows[1:])["0001"]
    first = answers["0001"] == answers["0001"].max() if metric == "object_map" else answers["0001"]
    assert text == rle.encode(first, order, origin)


def test_the_submission_follows_the_training_runs_and_the_sample(hubmap, tmp_path):
    competition = opened(hubmap)
    scenes = competition.scenes("test")
    shapes = {scene.id: raster.image_size(scene.files["image"]) for scene in scenes}
    answers = [(s, drawn("test", 3)[s.id].astype(bool).view(np.uint8)) for s in scenes]
    (path,) = competition.write_submission(answers, tmp_path)
    assert competition.lint(tmp_path) == [] and competition.lint(path, sample=hubmap / "sample_submission.csv") == []
    assert path.read_text().splitlines()[0] == "id,rle"
    for scene, answer in answers:
        np.testing.assert_array_equal(competition.read_submission(tmp_path, scene), answer)
    lines = path.read_text().splitlines()
    huge = shapes["2e3"][0] * shapes["2e3"][1]
    for wrong, fault in (
        ([lines[0], *lines[2:]], "missing, it was asked for (2e3)"),
        ([lines[0], f"2e3,{huge} 2", *lines[2:]], "a run outside of the image (2e3)"),
        ([lines[0], "2e3,9 2 4 1", *lines[2:]], "runs out of order (2e3)"),
        ([lines[0], "2e3,nan", *lines[2:]], "NaN where an empty mask is an empty text (2e3)"),
        ([*lines, lines[1]], "id written more than once (2e3)"),
        ([*lines, "2000.0,"], "not one of the scenes asked for (2000.0)"),
        (["id,mask", *lines[1:]], "expected the header 'id,rle'"),
    ):
        (tmp_path / "wrong.csv").write_text("\n".join(wrong) + "\n")
        found = competition.lint(tmp_path / "wrong.csv")
        assert any(fault in line for line in found), (fault, found)
    assert "found nothing there" in competition.lint(tmp_path / "no")[0]
    with pytest.raises(DataError, match="expected a row for 'ghost'"):
        competition.read_submission(tmp_path, Scene("ghost", scenes[0].files))


# ---- synthetic set ------------------------------------------------------------------------------------
def test_synthetic_scenes_do_not_depend_on_their_number(hubmap, tmp_path):
    synthetic.write(tmp_path, scenes=5, test_scenes=1, size=SIZE, seed=7)
    images = sorted(tmp_path.glob("*_images/*"))
    assert len(images) == 6
    for path in images:
        assert path.read_bytes() == (hubmap / path.relative_to(tmp_path)).read_bytes()


def test_synthetic_stains_look_different_and_some_discs_touch(hubmap):
    table = pd.read_csv(hubmap / "train.csv", dtype=str).set_index("id")
    for path in (hubmap / "train_images").iterdir():
        image = raster.read_image(path)
        saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean()
        assert (saturation > COLOURFUL) == (table.loc[path.stem, "organ"] == "kidney")
    touching = [instances.components((m > 0).view(np.uint8)).max() < m.max() for m in drawn().values()]
    assert sum(touching) > 6
    assert len({m.shape for m in drawn().values()}) >= 3


# ---- real nuclei --------------------------------------------------------------------------------------
@needs_dsb
@pytest.mark.slow
def test_real_nuclei():
    competition = opened(DSB, metric="object_map", border=True, domain="colour", class_name="nucleus")
    scenes = competition.scenes("train")
    assert len(scenes) == 28
    assert sorted(s.domain for s in scenes) == ["brightfield"] * 14 + ["fluorescence"] * 14
    total = 0
    for scene in scenes:
        truth = competition.truth(scene)
        total = total + competition.tally(competition.decode(perfect(competition, scene), {}), truth)
    assert total[-1] == 552 and competition.header == ("ImageId", "EncodedPixels")
    assert competition.scores(total)["object_map"] > 0.995  # one nucleus is parted by its own neighbours


def test_every_image_is_given_the_stated_stain(hubmap):
    plain = opened(hubmap)
    brightfield = [s for s in plain.scenes("train") if plain.read(s, "image").mean() > 128]
    own = stain.measure(plain.read(brightfield[0], "image"))
    reference = own._replace(mean=tuple(np.add(own.mean, (-12, 8, -6))))  # a darker, redder slide
    same = opened(hubmap, stain={"mean": list(reference.mean), "std": list(reference.std)})
    apart = {who: np.mean([np.abs(np.subtract(stain.measure(who.read(s, "image")).mean, reference.mean)).max()
                           for s in brightfield]) for who in (plain, same)}  # fmt: skip
    assert apart[same] < apart[plain] / 2
    with pytest.raises(ConfigError, match=r"stain.mean.2: required.*\n.*stain.std: required"):
        opened(hubmap, stain={"mean": [1, 2]})


def test_a_table_with_several_classes_per_image_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    raster.write_png(tmp_path / "train" / "a.png", np.full((20, 20, 3), 9, np.uint8))
    (tmp_path / "train.csv").write_text("id,class,segmentation\na,stomach,45 3\na,bowel,\n")
    with pytest.raises(ConfigError, match=r"train.csv: column 'class' gives rows .*multiclass_rle") as error:
        opened(tmp_path, order="row", origin=0).scenes("train")
    assert "\n" not in str(error.value)
    (tmp_path / "train.csv").write_text("\ufeffid,class,segmentation\na,stomach,45 3\n", encoding="utf-8")
    assert len(opened(tmp_path, order="row", origin=0).scenes("train")) == 1
