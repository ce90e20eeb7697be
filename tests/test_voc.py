"""The VOC adapter: layouts, masks, the pooled mIoU, submissions and their faults, the synthetic set, the real sets."""

import os
import pickle
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio

from lib.competitions import label_map, open_competition, synthetic
from lib.competitions.contract import summarize
from lib.competitions.synthetic.voc import CLASSES
from lib.competitions.voc.competition import palette
from lib.config.load import load
from lib.errors import ConfigError, DataError
from lib.scenes.raster import read_mask, write_png

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SHARED_DATA", ROOT / "../shared/data"))
real_pets = pytest.mark.skipif(not (SHARED / "pets_voc").is_dir(), reason="needs the real photos")
real_streets = pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="needs the real frames")


def Competition(root, **options):
    """Open the competition as an experiment does."""
    return open_competition("voc", root, options)


ABC = ["background", "cat", "big dog"]
SHAPE = (20, 30)


def picture(path, seed=0, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(1, 256, (*shape, 3), dtype=np.uint8))


def mask(seed=0, classes=3, shape=SHAPE):
    """Draw blocks of classes with a few ignored pixels; class 0 and 255 are always there."""
    rng = np.random.default_rng(seed)
    drawn = np.kron(rng.integers(0, classes, (shape[0] // 5, shape[1] // 5)), np.ones((5, 5), int)).astype(np.uint8)
    drawn[0], drawn[1, 3:9] = 0, 255
    return drawn


def put_mask(path, drawn):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, drawn)


def put_palette_mask(path, drawn, colours=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = drawn.shape
    with rasterio.open(path, "w", driver="PNG", width=width, height=height, count=1, dtype="uint8") as file:
        shown = palette() if colours is None else colours
        file.write_colormap(1, {index: (*map(int, colour), 255) for index, colour in enumerate(shown)})
        file.write(drawn, 1)


def voc(root, train=("a_1", "a_2", "b_1"), val=("b_2",), test=("c_1",), put=put_palette_mask):
    """Write a set in PASCAL's own layout."""
    for seed, name in enumerate((*train, *val, *test)):
        picture(root / "JPEGImages" / f"{name}.jpg", seed)
        if name not in test:
            put(root / "SegmentationClass" / f"{name}.png", mask(seed))
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, ids in (("train", train), ("val", val), ("trainval", (*train, *val)), ("test", test)):
        (lists / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
    return root


def ids(competition, split="train"):
    return [scene.id for scene in competition.scenes(split)]


def perfect(truth, classes):
    """Return levels of a network that knows the truth; ignored pixels hold nonsense."""
    noise = np.random.default_rng(0).integers(0, 256, (classes, *truth.shape), dtype=np.uint8)
    known = np.where(np.arange(classes)[:, None, None] == truth, 255, 0).astype(np.uint8)
    return {"loc": np.where(truth == 255, noise, known)}


# ---- layouts ------------------------------------------------------------------------------------------
def test_pascal_layout_by_default(tmp_path):
    competition = Competition(voc(tmp_path), classes=ABC, group="^([a-z])_", domain="_(.)$")
    assert ids(competition) == ["a_1", "a_2", "b_1", "b_2"] and ids(competition, "test") == ["c_1"]
    first = competition.scenes("train")[0]
    assert (first.group, first.domain) == ("a", "1")
    assert competition.read(first, "image").shape == (*SHAPE, 3)
    np.testing.assert_array_equal(competition.target(first, "loc"), mask(0))
    assert competition.flags == ("cat", "big_dog") and competition.tasks["loc"].classes == tuple(ABC)
    assert set(competition.strata(first)) == set(competition.flags)
    shipped = {"a_1": "train", "a_2": "train", "b_1": "train", "b_2": "val", "c_1": "test"}
    assert competition.published_split() == shipped
    assert competition.inspect() == []
    assert pickle.loads(pickle.dumps(competition)).scenes("train") == competition.scenes("train")


def test_domain_is_the_group_where_no_other_is_named(tmp_path):
    scenes = Competition(voc(tmp_path), classes=ABC, group="^[a-z]").scenes("train")
    assert [scene.domain for scene in scenes] == [scene.group for scene in scenes] == ["a", "a", "b", "b"]
    assert {scene.group for scene in Competition(tmp_path, classes=ABC).scenes("train")} == {""}


def test_folders_of_splits_with_lists_of_paths_and_missing_frames(tmp_path):
    for split, names in (("train", ("v1_1", "v2_1")), ("val", ("v1_2",)), ("test", ("v3_1",))):
        for seed, name in enumerate(names):
            picture(tmp_path / split / f"{name}.png", seed)
            put_mask(tmp_path / f"{split}annot" / f"{name}.png", mask(seed, 4))
        listed = [*names, f"{split}_gone_1", f"{split}_gone_2"]
        rows = [f"/SegNet/{split}/{name}.png /SegNet/{split}annot/{name}.png" for name in listed]
        (tmp_path / f"{split}.txt").write_text("\n".join(rows) + "\n\n")
    layout = {"images": "{split}", "masks": "{split}annot", "ignore": [3], "classes": ABC, "group": "^(v.)"}
    competition = Competition(tmp_path, **layout, lists="{split}.txt", train_splits=["train", "val", "test"])
    assert ids(competition) == ["v1_1", "v1_2", "v2_1", "v3_1"] and ids(competition, "test") == []
    [line] = summarize(competition.inspect())
    assert line == "listed picture is not here: 6 (train_gone_1, train_gone_2, val_gone_1 and 3 more)"
    in_splits = {}
    for scene in competition.scenes("train"):
        in_splits.setdefault(scene.group, set()).add(competition.published_split()[scene.id])
    assert in_splits == {"v1": {"train", "val"}, "v2": {"train"}, "v3": {"test"}}  # v1 lies on both sides
    own_test = Competition(tmp_path, **layout, lists="{split}.txt")
    assert ids(own_test) == ["v1_1", "v1_2", "v2_1"] and ids(own_test, "test") == ["v3_1"]
    by_folder = Competition(tmp_path, **layout, lists=None)
    assert ids(by_folder) == ids(own_test) and by_folder.published_split()["v1_2"] == "val"
    target = competition.target(competition.scenes("train")[0], "loc")
    np.testing.assert_array_equal(target, np.where(mask(0, 4) == 3, 255, mask(0, 4)))


def test_one_folder_without_lists_and_other_pictures_in_it(tmp_path):
    for seed, name in enumerate(("x", "y", "z")):
        picture(tmp_path / "res" / f"{name}.jpg", seed)
        picture(tmp_path / "res" / f"{name}.png", seed + 9)  # not asked for
    put_palette_mask(tmp_path / "res/label/x_mask.png", mask(0))
    put_palette_mask(tmp_path / "res/label/y_mask.png", mask(1))
    competition = Competition(tmp_path, classes=ABC, images="res/*.jpg", masks="res/label/*_mask.png", lists=None)
    assert ids(competition) == ["x", "y"] and ids(competition, "test") == ["z"]
    assert competition.published_split() == {}
    assert all(scene.files["image"].suffix == ".jpg" for scene in competition.scenes("train"))


def test_the_doctor_names_what_is_wrong_and_usable_scenes_remain(tmp_path):
    root = voc(tmp_path, train=("a_1", "a_2", "a_3", "a_4", "a_5", "a_6", "a_7"))
    masks = root / "SegmentationClass"
    (masks / "a_1.png").unlink()
    put_mask(masks / "a_2.png", mask(0, 3, (25, 30)))
    put_mask(masks / "a_3.png", np.full(SHAPE, 7, np.uint8))
    whole = (masks / "a_4.png").read_bytes()
    (masks / "a_4.png").write_bytes(whole[: len(whole) // 2])
    put_mask(masks / "a_5.png", np.full(SHAPE, 255, np.uint8))
    (root / "JPEGImages/a_6.jpg").write_bytes(b"no picture")
    with open(root / "ImageSets/Segmentation/val.txt", "a") as file:
        file.write("a_7\n")
    competition = Competition(root, classes=ABC)
    assert ids(competition) == ["a_5", "a_7", "b_2"]  # a_6 has no readable size
    found = Counter((finding.kind, finding.scene) for finding in competition.inspect())
    assert found == Counter({
        ("image without label", "a_1"): 1,  # though in train and in trainval
        ("label cannot be used", "a_2"): 1, ("label cannot be used", "a_3"): 1, ("label cannot be used", "a_4"): 1,
        ("unreadable image", "a_6"): 1, ("mask all ignored", "a_5"): 1,
        ("in two splits", "a_7"): 1,
    })  # fmt: skip
    details = {f.scene: f.detail for f in competition.inspect() if f.kind == "label cannot be used"}
    assert "got 7" in details["a_3"] and "(25, 30)" in details["a_2"]


@pytest.mark.parametrize("test_split", ["test", None])
def test_masks_that_match_no_picture_are_named_rather_than_the_pictures(tmp_path, test_split):
    for name in ("a_1", "a_2"):
        picture(tmp_path / f"res/{name}.jpg")
        put_mask(tmp_path / f"res/label/{name}_mask.png", mask(0))
    layout = {"classes": ABC, "images": "res/*.jpg", "lists": None, "test_split": test_split}
    with pytest.raises(DataError, match=r"2 pictures in res/\*.jpg, found 0 masks in label/\*.png; set .*masks"):
        Competition(tmp_path, **layout, masks="label/*.png").scenes("train")
    with pytest.raises(DataError, match=r"found 2 masks in res/label; a picture's id is a_1, a mask's a_1_mask; set"):
        Competition(tmp_path, **layout, masks="res/label").scenes("train")


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"expected ImageSets/Segmentation/\{split\}.txt.*no such path"):
        Competition(tmp_path / "nowhere", classes=ABC).scenes("train")
    root = voc(tmp_path / "set")
    with pytest.raises(DataError, match="none can be used.*classes 0..1"):
        Competition(root, classes=ABC[:2], train_splits=["val"]).scenes("train")
    with pytest.raises(ConfigError, match="group: expected a pattern that ids match"):
        Competition(root, classes=ABC, group="^video").scenes("train")
    with pytest.raises(DataError, match="has this scene a truth"):
        competition = Competition(root, classes=ABC)
        competition.truth(competition.scenes("test")[0])
    for options in ({}, {"classes": ["one"]}, {"classes": ["a b", "a_b"]}, {"classes": ["background", "fold"]},
                    {"classes": ABC, "ignore": [300]}, {"classes": ABC, "colours": [[0, 0, 0]]},
                    {"classes": ABC, "images": "*/a/*"}, {"classes": ABC, "group": "("},
                    {"classes": ABC, "train_splits": []}, {"classes": ABC, "lists": "all.txt"}):  # fmt: skip
        with pytest.raises(ConfigError, match="data.options"):
            Competition(root, **options)


# ---- masks --------------------------------------------------------------------------------------------
def test_palette_has_pascals_colours():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128),
             20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {index: tuple(palette()[index].tolist()) for index in known} == known
    assert len(np.unique(palette(), axis=0)) == 256


def test_index_palette_and_colour_masks_say_the_same(tmp_path):
    odd = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)

    def in_colours(path, drawn):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, odd[drawn])

    targets = []
    for name, put, colours in (
        ("index", put_mask, None), ("palette", put_palette_mask, None),
        ("odd", lambda path, drawn: put_palette_mask(path, drawn, odd), None),
        ("colours", in_colours, odd[:3].tolist()), ("looked up", put_palette_mask, "voc"),
    ):  # fmt: skip
        competition = Competition(voc(tmp_path / name, put=put), classes=ABC, colours=colours)
        targets.append(competition.target(competition.scenes("train")[0], "loc"))
        lines = summarize(competition.inspect())
        assert lines == (["colours of no class, ignored: 4 (a_1, a_2, b_1 and 1 more)"] if name == "colours" else [])
    for target in targets:
        np.testing.assert_array_equal(target, mask(0))
    with pytest.raises(DataError, match="data.options.colours"):
        Competition(tmp_path / "colours", classes=ABC).scenes("train")


def test_a_mask_of_0_and_255_is_not_taken_for_ignored_without_a_word(tmp_path):
    def in_white(path, drawn):
        put_mask(path, np.where(drawn == 1, 255, 0).astype(np.uint8))

    root, two = voc(tmp_path / "set", put=in_white), ["background", "cat"]
    with pytest.raises(DataError, match=r"found only 0 and 255 in 4 of 4.*colours: \[\[0, 0, 0\], \[255, 255, 255\]\]"):
        Competition(root, classes=two).scenes("train")
    competition = Competition(root, classes=two, colours=[[0, 0, 0], [255, 255, 255]])
    np.testing.assert_array_equal(competition.truth(competition.scenes("train")[0]), mask(0) == 1)
    put_mask(root / "SegmentationClass/a_1.png", mask(0, 2))  # a set in which another mask holds the class
    mixed = Competition(root, classes=two)
    assert ids(mixed) == ["a_1", "a_2", "b_1", "b_2"]
    (line,) = summarize(mixed.inspect())
    assert line == "mask of 0 and 255 alone: 3 (a_2, b_1, b_2)" and "colours" in mixed.inspect()[0].detail
    put_mask(root / "SegmentationClass/a_1.png", np.zeros(SHAPE, np.uint8))
    nothing = Competition(root, classes=two, ignore=[255], train_splits=["train"])
    with pytest.raises(DataError, match="in 2 of 3"):  # even where it is said that 255 counts nowhere: nothing is left
        nothing.scenes("train")

    def in_grey(path, drawn):
        put_mask(path, np.where(drawn > 1, 7, 0).astype(np.uint8))

    coloured = voc(tmp_path / "coloured", put=in_grey)
    by_colour = Competition(coloured, classes=two, colours=[[0, 0, 0], [9, 9, 9]])  # 7 is no colour of a class
    assert len(by_colour.scenes("train")) == 4
    assert {finding.kind for finding in by_colour.inspect()} == {"colours of no class, ignored"}


def test_a_folder_of_masks_per_class(tmp_path):
    for seed, name in enumerate("wxyz"):
        picture(tmp_path / "images" / f"{name}.jpg", seed)
    cat, dog = (np.zeros(SHAPE, np.uint8) for _ in range(2))
    cat[2:9, 3:20], dog[5:15, 10:25] = 255, 1
    for name, drawn in (("cat/w", cat), ("dog/w", dog), ("cat/x", cat), ("dog/y", np.zeros(SHAPE, np.uint8))):
        put_mask(tmp_path / "masks" / f"{name}.png", drawn)
    layout = {"classes": ABC, "images": "images", "lists": None, "masks": {"cat": "masks/cat", "big dog": "masks/dog"}}
    competition = Competition(tmp_path, **layout)
    assert ids(competition) == ["w", "x", "y"] and ids(competition, "test") == ["z"]
    both, one, none = competition.scenes("train")
    np.testing.assert_array_equal(competition.truth(both), np.where(dog > 0, 2, np.where(cat > 0, 1, 0)))
    np.testing.assert_array_equal(competition.truth(one), cat > 0)
    assert competition.strata(both) == {"cat": True, "big_dog": True} and not any(competition.strata(none).values())
    (finding,) = competition.inspect()
    assert (finding.kind, finding.scene) == ("masks of classes overlap, the later class is used", "w")
    assert finding.detail == f"{((cat > 0) & (dog > 0)).sum()} pixels"
    turned = Competition(tmp_path, **{**layout, "masks": {"big dog": "masks/dog", "cat": "masks/cat"}})
    np.testing.assert_array_equal(turned.truth(both), np.where(cat > 0, 1, np.where(dog > 0, 2, 0)))
    put_mask(tmp_path / "masks/dog/x.png", dog[1:])
    assert ids(Competition(tmp_path, **layout)) == ["w", "y"]
    for masks in ({}, {"fox": "masks/fox"}, {"background": "masks/cat"}, {"cat": "*/x"}):
        with pytest.raises(ConfigError, match="data.options"):
            Competition(tmp_path, **{**layout, "masks": masks})
    with pytest.raises(ConfigError, match="a folder per class"):
        Competition(tmp_path, **layout, colours="voc")


@pytest.mark.parametrize(("options", "said"), [
    ({"classes": [False, True]}, "quote them: YAML reads no, yes, on, off and numbers"),
    ({"classes": [0, 1]}, "found 0, 1; quote them"),
    ({"class": ABC}, "data.options.class: unknown key; did you mean classes?"),
    ({"classes": ABC, "colors": "voc"}, "data.options.colors: unknown key; did you mean colours?"),
    ({"classes": ABC, "images": 3}, "data.options.images"), ({"classes": "abc"}, "expected a list of names"),
    ({"classes": ABC, "group": "("}, "data.options.group: expected a regular expression"),
    ({"classes": ["background", "domain"]}, "none of id, fold, group, domain"),
])  # fmt: skip
def test_wrong_options_are_told_in_sentences(tmp_path, options, said):
    with pytest.raises(ConfigError) as error:
        Competition(tmp_path, **options)
    assert said in str(error.value)


def test_settings_are_checked_without_data(tmp_path):
    competition = Competition(tmp_path / "nowhere", classes=ABC)
    chains = [[{"name": "majority", "radius": 2}, {"name": "remove_smal"}, {"name": "majority", "radius": -1}]]
    said = "\n".join(competition.faults({"gain_cat": -1}, {"gain_dog": [1, 2]}, chains))
    assert "decode.gain_cat: expected a number from 0 to 1000, got -1" in said
    assert "search.axes.gain_dog: unknown setting" in said and "did you mean remove_small?" in said
    assert "search.postprocess.0.2.radius" in said
    assert competition.faults({"postprocess": [{"name": "object_vote"}]}, {"min_area": [0, 5]})[0].startswith(
        "decode.postprocess: cannot be searched around"
    )
    assert competition.faults({"gain_big_dog": 2}, {"min_area": [0, 5]}) == []


# ---- the metric ---------------------------------------------------------------------------------------
def slow_iou(answers, truths, classes):
    """Return the IoU of each class over all pixels of all pictures, None where there is no union."""
    values = []
    for c in range(classes):
        both = either = 0
        for answer, truth in zip(answers, truths):
            for a, t in zip(answer.ravel().tolist(), truth.ravel().tolist()):
                if t != 255:
                    both += a == c and t == c
                    either += a == c or t == c
        values.append(both / either if either else None)
    return values


def test_pooled_miou_equals_a_slow_one_and_absent_classes_are_skipped(tmp_path):
    competition = Competition(tmp_path, classes=[*ABC, "never"])
    truths = [mask(seed) for seed in range(4)]
    answers = [np.where(np.random.default_rng(seed).random(SHAPE) < 0.3, np.uint8(seed % 3), t % 255)
               for seed, t in enumerate(truths)]  # fmt: skip
    counts = np.stack([competition.tally(a, t) for a, t in zip(answers, truths)])
    wanted = slow_iou(answers, truths, 4)
    assert wanted[3] is None
    scores = competition.scores(counts.sum(0))
    assert scores["score"] == scores["iou"] == pytest.approx(np.mean(wanted[:3]))
    assert [scores[f"iou_{name}"] for name in competition.names] == pytest.approx([*wanted[:3], 0])
    right = sum(int(((a == t) & (t != 255)).sum()) for a, t in zip(answers, truths))
    assert scores["pixel_accuracy"] == pytest.approx(right / sum(int((t != 255).sum()) for t in truths))
    assert list(scores)[0] == "score" and all(np.isfinite(list(scores.values())))
    assert counts.dtype == np.int64 and competition.score(counts).shape == (4,)
    assert competition.class_scores(counts).shape == (4, 4)
    assert float(competition.score(counts.sum(0))) != pytest.approx(float(competition.score(counts).mean()))  # pooled
    invented = answers[0].copy()
    invented[5, 5] = 3  # now the class is answered, with IoU 0, and counts
    assert competition.scores(competition.tally(invented, truths[0]))["score"] < competition.score(counts[0])
    nothing = competition.scores(competition.tally(answers[0], np.full(SHAPE, 255, np.uint8)))
    assert set(nothing.values()) == {0.0}


def test_confusion_by_hand(tmp_path):
    competition = Competition(tmp_path, classes=ABC)
    truth, answer = np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]], np.uint8)
    np.testing.assert_array_equal(competition.tally(answer, truth), [1, 1, 2, 1, 2, 1, 0, 0, 0])
    table = competition.tables(competition.detail(answer, truth))["confusion"]
    assert table == {"background": {"background": 1, "cat": 1, "big_dog": 0},
                     "cat": {"background": 0, "cat": 1, "big_dog": 0},
                     "big_dog": {"background": 0, "cat": 0, "big_dog": 0}}  # fmt: skip
    assert competition.scores(competition.tally(answer, truth))["score"] == pytest.approx((1 / 2 + 1 / 2) / 2)


# ---- decoding -----------------------------------------------------------------------------------------
def test_winner_takes_gains_and_ties_go_to_the_lower_class():
    levels = np.array([[[100, 50, 0]], [[100, 100, 0]], [[50, 200, 0]]], np.uint8)
    assert label_map.winner(levels, [1, 1, 1]).tolist() == [[0, 2, 0]]
    assert label_map.winner(levels, [1, 1, 2]).tolist() == [[0, 2, 0]]
    assert label_map.winner(levels, [0.999, 1, 0.5]).tolist() == [[1, 1, 0]]
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (5, 40, 30), dtype=np.uint8)
    np.testing.assert_array_equal(label_map.winner(levels, [1] * 5), levels.argmax(0))
    gains = [0.7, 1.25, 1, 2, 0.1]
    thousandths = levels.astype(int) * np.array([700, 1250, 1000, 2000, 100])[:, None, None]
    np.testing.assert_array_equal(label_map.winner(levels, gains), thousandths.argmax(0))


def test_small_parts_become_background_and_the_majority_rules():
    drawn = np.zeros((9, 9), np.uint8)
    drawn[0:3, 0:3], drawn[3, 3], drawn[6, 6], drawn[8, 0:2] = 1, 1, 1, 2  # (3, 3) hangs on by its corner
    wanted = drawn.copy()
    wanted[6, 6] = wanted[8, 0:2] = 0
    np.testing.assert_array_equal(label_map.remove_small(drawn, 3), wanted)
    np.testing.assert_array_equal(label_map.remove_small(drawn, 0), drawn)
    smooth = label_map.majority(drawn, 1)
    assert smooth[6, 6] == 0 and smooth[1, 1] == 1 and smooth[0, 0] == 1
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 4, (12, 10)).astype(np.uint8)
    padded = np.pad(drawn, 2, mode="symmetric")
    slow = [[np.bincount(padded[y : y + 5, x : x + 5].ravel()).argmax() for x in range(10)] for y in range(12)]
    np.testing.assert_array_equal(label_map.majority(drawn, 2), slow)
    parts = np.array([[1, 1, 2, 0, 2], [0, 2, 0, 0, 1], [0, 0, 0, 0, 0], [3, 0, 1, 1, 3]], np.uint8)
    voted = [[1, 1, 1, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [3, 0, 1, 1, 1]]  # the first two objects are tied
    assert label_map.object_vote(parts).tolist() == voted
    assert label_map.object_vote(np.zeros((2, 2), np.uint8)).tolist() == [[0, 0], [0, 0]]
    competition = Competition("nowhere", classes=ABC)
    with pytest.raises(ConfigError, match="expected one of remove_small, majority, object_vote, .*, got 'blur'"):
        competition.decode(perfect(drawn, 3), {"postprocess": [{"name": "blur"}]})
    with pytest.raises(ConfigError, match="radius: required, but missing"):
        competition.decode(perfect(drawn, 3), {"postprocess": [{"name": "majority", "size": 2}]})


def test_perfect_levels_score_one_and_the_table_equals_decoded_points(tmp_path):
    competition = Competition(voc(tmp_path), classes=ABC)
    total = 0
    for scene in competition.scenes("train"):
        truth = competition.truth(scene)
        total = total + competition.tally(competition.decode(perfect(truth, 3), competition.defaults()), truth)
    assert competition.scores(total)["score"] == competition.scores(total)["pixel_accuracy"] == 1.0
    levels = {"loc": np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)}
    grid = competition.grid({"gain_cat": [0.5, 1.0, 2.0], "min_area": [0, 4]}, competition.defaults())
    table = competition.count(levels, truth, grid)
    assert grid.shape == (3, 2) and table.shape == (6, 9) and table.dtype == np.int64
    for point, counts in zip(grid, table):
        np.testing.assert_array_equal(competition.tally(competition.decode(levels, point), truth), counts)
    assert len(np.unique(table, axis=0)) == 6
    with pytest.raises(ConfigError, match="decode.gain_cat: expected a number from 0 to 1000, got -1"):
        competition.decode(levels, {"gain_cat": -1})
    with pytest.raises(ConfigError, match="gain_dog"):
        competition.decode(levels, {"gain_dog": 2})
    steps = {"postprocess": [{"name": "majority", "radius": 2}]}
    np.testing.assert_array_equal(competition.decode(levels, steps), label_map.majority(levels["loc"].argmax(0), 2))
    with pytest.raises(ConfigError, match="postprocess"):
        competition.grid({"min_area": [0, 4]}, {**competition.defaults(), **steps})


# ---- submission ---------------------------------------------------------------------------------------
@pytest.fixture
def submitted(tmp_path):
    """Return a competition and the folder of a valid submission of its training scenes, answers by id beside it."""
    competition = Competition(voc(tmp_path / "set"), classes=ABC)
    answers = {scene.id: competition.truth(scene) % 255 for scene in competition.scenes("train")}
    answers["b_1"][:] = 0  # an empty answer
    folder = tmp_path / "out"
    competition.write_submission(((s, answers[s.id]) for s in competition.scenes("train")), folder)
    return competition, folder, answers


def test_submission_reads_back_and_is_valid(submitted):
    competition, folder, answers = submitted
    scenes = competition.scenes("train")
    for scene in scenes:
        np.testing.assert_array_equal(competition.read_submission(folder, scene), answers[scene.id])
    rows = (folder / "submission.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 2 and rows[5:7] == ["b_1_1,", "b_1_2,"]
    for path in (folder, folder / "masks", folder / "submission.csv"):
        assert competition.lint(path, scenes) == competition.lint(path) == []
    assert competition.lint(folder, scenes, sample=folder / "submission.csv") == []


@pytest.mark.parametrize("fault, said", [
    ("png missing", "picture without a PNG: 1 (a_1)"), ("png foreign", "not one of the scenes asked for: 1 (q.png)"),
    ("png size", "not of its picture's size: 1 (a_1.png)"), ("png class", "none of the classes 0..2: 1 (a_1.png)"),
    ("png cut", "is cut short: 1 (a_1.png)"), ("row missing", "missing, it was asked for (a_1_2)"),
    ("row foreign", "not one of the scenes asked for (q_1)"), ("row class", "not one of the scenes asked for (a_1_3)"),
    ("row outside", "a run outside of the image (a_1_1)"), ("row twice", "id written more than once (a_1_1)"),
    ("differ", "1 pictures differ from the PNGs (first: a_1)"), ("no csv", "found nothing there"),
    ("no pngs", "expected index PNGs"),
])  # fmt: skip
def test_every_fault_of_a_submission_is_found(submitted, fault, said):
    competition, folder, answers = submitted
    png, table = folder / "masks/a_1.png", folder / "submission.csv"
    lines = table.read_text().splitlines()
    if fault == "png missing":
        png.unlink()
    elif fault == "png foreign":
        write_png(folder / "masks/q.png", answers["a_1"])
    elif fault == "png size":
        write_png(png, answers["a_1"][:-1])
    elif fault == "png class":
        write_png(png, np.where(answers["a_1"] == 1, 3, answers["a_1"]).astype(np.uint8))
    elif fault == "png cut":
        png.write_bytes(png.read_bytes()[:50])
    elif fault == "differ":
        write_png(png, np.roll(answers["a_1"], 1, axis=1))
    elif fault == "no csv":
        table.unlink()
    elif fault == "no pngs":
        for path in (folder / "masks").iterdir():
            path.unlink()
    else:
        lines = {"row missing": [lines[0], *lines[1:2], *lines[3:]], "row foreign": [*lines, "q_1,"],
                 "row class": [*lines, "a_1_3,"], "row outside": [lines[0], "a_1_1,600 2", *lines[2:]],
                 "row twice": [*lines, lines[1]]}[fault]  # fmt: skip
        table.write_text("\n".join(lines) + "\n")
    faults = competition.lint(folder, competition.scenes("train"))
    assert any(said in line for line in faults), faults
    if fault not in ("png missing", "png size", "png foreign", "row foreign", "no pngs"):  # these need the data to see
        assert competition.lint(folder)


def test_a_bare_table_must_have_all_rows_of_each_picture(submitted):
    competition, folder, _ = submitted
    table = folder / "submission.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("a_2_1")) + "\n")
    assert "missing, it was asked for (a_2_1)" in " ".join(competition.lint(table))
    assert "nothing there" in competition.lint(folder / "elsewhere")[0]


def test_panels_show_picture_truth_and_answer(submitted):
    competition, _, answers = submitted
    panels = competition.panels(competition.scenes("train")[0], answers["a_1"])
    assert [title for title, _ in panels] == ["image", "truth", "prediction"]
    assert all(image.shape == (*SHAPE, 3) and image.dtype == np.uint8 for _, image in panels)
    image, _, predicted = (image for _, image in panels)
    np.testing.assert_array_equal(predicted, image // 2 + palette()[answers["a_1"]] // 2)
    assert len(competition.panels(competition.scenes("test")[0], answers["a_1"])) == 2


# ---- the synthetic set --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    root = tmp_path_factory.mktemp("animals") / "set"
    synthetic.write("voc", root, scenes=12, test_scenes=4, size=128, seed=7)
    return Competition(root, classes=CLASSES, group=r"^[a-z]+\d+", domain="^[a-z]+")


def test_the_synthetic_set_is_native_and_holds_what_is_hard(animals):
    scenes = animals.scenes("train")
    assert len(scenes) == 12 and len(animals.scenes("test")) == 4 and animals.inspect() == []
    assert not any("mask" in scene.files for scene in animals.scenes("test"))
    assert {scene.domain for scene in scenes} == {"forest", "savanna"} and len({s.group for s in scenes}) == 4
    videos = {}
    for scene in scenes:
        for name, there in animals.strata(scene).items():
            videos.setdefault(name, set()).update({scene.group} if there else ())
    assert all(len(videos[name]) == 2 for name in CLASSES[1:])  # learned in one fold, scored in the other
    assert [s.id for s in scenes if not any(animals.strata(s).values())] == ["savanna00_001"]
    in_splits = {}
    for scene in scenes:
        in_splits.setdefault(scene.group, set()).add(animals.published_split()[scene.id])
    assert {group for group, splits in in_splits.items() if len(splits) > 1} == {"savanna00"}
    assert len({animals.read(scene, "image").shape for scene in scenes}) == 2
    grey = [s.id for s in scenes if np.ptp(animals.read(s, "image").astype(int), axis=-1).max() == 0]
    assert grey == ["savanna02_002"]
    with rasterio.open(scenes[0].files["mask"]) as file:
        assert file.colorinterp[0] == rasterio.enums.ColorInterp.palette
    outline = [read_mask(s.files["mask"]) == 255 for s in scenes if any(animals.strata(s).values())]
    assert all(0.01 < share.mean() < 0.25 for share in outline)


def test_the_synthetic_set_depends_on_the_seed_alone(tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        synthetic.write("voc", tmp_path / name, scenes=4, test_scenes=1, size=64, seed=seed)
    contents = {name: {p.relative_to(tmp_path / name): p.read_bytes() for p in sorted((tmp_path / name).rglob("*.*g"))}
                for name in ("one", "same", "other")}  # fmt: skip
    assert contents["one"] == contents["same"] and contents["one"].keys() == contents["other"].keys()
    pictures = [path for path in contents["one"] if path.suffix == ".jpg"]
    assert len(pictures) == 5 and all(contents["one"][path] != contents["other"][path] for path in pictures)


# ---- configs and real sets ----------------------------------------------------------------------------
def configured(name, root):
    """Open the competition as an experiment file does, elsewhere."""
    experiment = load(ROOT / f"configs/{name}.yaml")
    return open_competition("voc", root, experiment.data.options)


def test_appendix_b_number_for_number():
    model = load(ROOT / "configs/animals_effnetb3.yaml").models["effnetb3"]
    train = model.train
    assert (train.epochs, train.batch_size, train.crop, train.optimizer.lr) == (200, 8, 512, 5e-4)
    assert (train.loss.focal_alpha, train.loss.focal_gamma, train.augment) == (0.75, 3.0, "animals")
    assert train.loss.terms == {"focal": 1, "boundary_bce": 0.3} and train.precision == "float32"
    assert (train.schedule.factors, train.schedule.warmup_epochs) == ({50: 0.5, 100: 0.05}, 5)
    assert model.network.encoder == "tu-efficientnet_b3" and model.network.options["skips"] == "expansion"


def test_reference_figures_agree_with_their_comments():
    """The arithmetic that the headers of the animals configs claim."""
    attention = [0.804, 0.419, 0.223, 0.133, 0.260, 0.312, 0.407]
    effnet = [0.882, 0.664, 0.709, 0.603, 0.669, 0.698, 0.677]
    assert np.mean(attention) == pytest.approx(0.3654, abs=5e-5) and np.mean(effnet) == pytest.approx(0.7003, abs=5e-5)
    gains = [f"+{100 * (new / old - 1):.1f} %" for old, new in zip(attention, effnet)]
    text = (ROOT / "configs/animals_effnetb3.yaml").read_text()
    assert f"gain    {', '.join(gains)} over" in text
    assert 44 * 8 / 72.5 == pytest.approx(4.9, abs=0.05) and 0.879 + 0.735 == pytest.approx(1.614)
    for name in ("animals_unet", "animals_attention_unet", "animals_effnetb3"):
        classes = load(ROOT / f"configs/{name}.yaml").data.options["classes"]
        assert len(classes) == 7 and tuple(classes) == CLASSES


@real_pets
def test_real_pets_are_read_as_they_are():
    competition = configured("pets_cpu", SHARED / "pets_voc")
    scenes = competition.scenes("train")
    assert len(scenes) == 26 and competition.scenes("test") == []
    assert {finding.kind for finding in competition.inspect()} == {"file in test/res that no scene uses"}
    held = Counter(name for scene in scenes for name, there in competition.strata(scene).items() if there)
    assert held == {"cat": 18, "dog": 8}
    total = sum(competition.tally(competition.decode(perfect(t, 3), {}), t) for t in map(competition.truth, scenes))
    assert competition.scores(total)["score"] == 1.0
    ignored = sum(int((competition.truth(scene) == 255).sum()) for scene in scenes)
    assert ignored > 0 and competition.detail(t := competition.truth(scenes[0]), t).sum() == (t != 255).sum()


@real_streets
def test_real_streets_show_that_their_splits_share_videos():
    competition = configured("camvid_cpu", SHARED / "camvid")
    scenes = competition.scenes("train")
    assert len(scenes) == 44 and competition.scenes("test") == []
    assert Counter(s.group for s in scenes) == {"0001TP": 14, "0016E5": 14, "0006R0": 8, "Seq05VD": 8}
    [line] = summarize(competition.inspect())
    assert line.startswith("listed picture is not here: 657 (")
    splits = {}
    for scene in scenes:
        splits.setdefault(scene.group, set()).add(competition.published_split()[scene.id])
    assert splits == {"0001TP": {"train", "test"}, "0016E5": {"train", "val"}, "0006R0": {"train"}, "Seq05VD": {"test"}}
    truth = competition.truth(scenes[0])
    stored = read_mask(scenes[0].files["mask"])
    assert set(np.unique(truth)) <= {*range(11), 255}
    np.testing.assert_array_equal(truth == 255, stored == 11)
