"""Pixels as people have them, in every competition: what is not valid teaches nothing, odd masks are asked about."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from test_raster import declared, write_tiff
from test_xview2 import HOUSES, add, box

from lib.competitions import open_competition
from lib.config.load import load
from lib.errors import ConfigError, DataError
from lib.scenes import place, rle, stain
from lib.scenes.raster import read_image
from lib.scenes.view import View
from lib.settings import Limits, limits, set_limits
from lib.stages.train import Seen

SHAPE = (40, 60)


def picture(seed=0):
    return np.random.default_rng(seed).integers(40, 200, (*SHAPE, 3), np.uint8)


def disc(seed=0):
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return ((y - 15 - seed) ** 2 + (x - 25 - seed) ** 2 < 90).astype(np.uint8)


def put(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def found(competition):
    return {(finding.kind, finding.scene) for finding in competition.inspect()}


def objects(root, masks, runs=None, suffix="png", **options):
    """Write images with masks (id -> array), and runs beside them, and open them."""
    for seed, (key, mask) in enumerate(masks.items()):
        put(root / f"train_images/{key}.png", picture(seed))
        put(root / f"train_masks/{key}.{suffix}", mask)
    if runs is not None:
        (root / "train.csv").write_text("id,rle\n" + "".join(f"{key},{text}\n" for key, text in runs.items()))
    return open_competition("binary_rle", root, {"order": "column", "origin": 1, **options})


# ---- pixels without data ----------------------------------------------------------------------------------
@pytest.fixture
def masked(tmp_path):
    """Images with a hole in the middle of the object, one by nodata and one by alpha, and one without."""
    hole = np.zeros(SHAPE, bool)
    hole[10:16] = True
    (tmp_path / "train_images").mkdir()
    planes = picture().transpose(2, 0, 1).astype(np.uint16) * 9
    write_tiff(tmp_path / "train_images/nodata.tif", np.where(hole, 65535, planes).astype(np.uint16), nodata=65535)
    put(tmp_path / "train_images/alpha.png", np.dstack([picture(), ~hole * np.uint8(255)]))
    put(tmp_path / "train_images/whole.png", picture())
    for key in ("nodata", "alpha", "whole"):
        put(tmp_path / f"train_masks/{key}.png", disc() * np.uint8(255))
    return tmp_path, hole


def test_what_is_not_valid_is_ignored_in_training_and_stays_in_the_truth(masked):
    root, hole = masked
    competition = open_competition("binary_rle", root, {})
    for scene in competition.scenes("train"):
        gone = hole if scene.id != "whole" else np.zeros_like(hole)
        np.testing.assert_array_equal(competition.training_target(scene, "loc"), np.where(gone, 255, disc()))
        np.testing.assert_array_equal(competition.truth(scene), disc())
        assert not competition.read(scene, "image")[gone].any()
        seen = Seen(competition, "loc", competition.tasks["loc"], View(scale=0.5), images=("image",))
        np.testing.assert_array_equal(seen.target(scene) == 255, gone[::2, ::2])
        assert seen.image(scene, "image").shape == (20, 30, 3)
        guessed = replace(seen, view=View(), pseudo=lambda _: disc())
        guessed.pseudo.ids = {scene.id}
        np.testing.assert_array_equal(guessed.target(scene), np.where(gone, 255, disc()))
    assert found(competition) == {("pixels without data", "alpha"), ("pixels without data", "nodata")}


def test_flags_of_a_label_map_do_not_count_what_no_image_shows(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:10], labels[20:30] = 1, 2
    alpha = np.full(SHAPE, 255, np.uint8)
    alpha[:10] = 0
    put(tmp_path / "JPEGImages/a.png", np.dstack([picture(), alpha]))
    put(tmp_path / "SegmentationClass/a.png", labels)
    competition = open_competition("voc", tmp_path, {"classes": ["background", "cat", "dog"], "lists": None})
    (scene,) = competition.scenes("train")
    assert competition.strata(scene) == {"cat": False, "dog": True}


def test_stain_is_measured_where_there_is_data(tmp_path):
    rng = np.random.default_rng(0)
    tissue = np.clip([180, 120, 170] + rng.normal(0, 12, (*SHAPE, 3)), 1, 255).astype(np.uint8)
    rim = tissue.copy()
    rim[:, :25] = 0
    np.testing.assert_allclose(stain.measure(rim), stain.measure(tissue[:, 25:]), atol=1e-4)
    reference = stain.StainStats((60.0, 30.0, -20.0), (9.0, 6.0, 5.0))
    moved = stain.normalise(rim, reference)
    np.testing.assert_array_equal(moved[:, 25:], stain.normalise(tissue[:, 25:].copy(), reference))
    assert not moved[:, :25].any()


def test_the_domain_by_colour_does_not_count_what_is_not_valid(tmp_path):
    alpha = np.zeros(SHAPE, np.uint8)
    alpha[:2] = 255
    put(tmp_path / "train_images/a.png", np.dstack([picture() // [1, 1, 9], alpha]).astype(np.uint8))
    put(tmp_path / "train_masks/a.png", disc())
    (scene,) = open_competition("binary_rle", tmp_path, {"domain": "colour"}).scenes("train")
    assert scene.domain == "brightfield"


# ---- masks of one class -----------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["0/1", "16 bit", "jpeg"])
def test_masks_in_any_form_give_the_same_truth(tmp_path, form):
    masks = {key: disc(seed) for seed, key in enumerate("abc")}
    value = {"0/1": np.uint8(1), "16 bit": np.uint16(65535), "jpeg": np.uint8(255)}[form]
    competition = objects(tmp_path, {k: m * value for k, m in masks.items()}, suffix="jpg" if form == "jpeg" else "png")
    for scene in competition.scenes("train"):
        differing = np.count_nonzero(competition.truth(scene) != masks[scene.id])
        assert differing <= (0.03 * masks[scene.id].sum() if form == "jpeg" else 0)
    said = {("grey mask, cut at half", key) for key in masks} if form == "jpeg" else set()
    assert found(competition) == said


def test_16_bit_masks_beside_runs_show_how_these_count(tmp_path):
    """The form of TGS salt: 0/65535 as 16 bits, and the same as runs down the columns, or an empty text."""
    masks = {key: disc(seed) * np.uint16(65535) for seed, key in enumerate("abc")} | {"d": np.zeros(SHAPE, np.uint16)}
    runs = {key: rle.encode((mask > 0).astype(np.uint8), "column", 1) for key, mask in masks.items()}
    competition = objects(tmp_path, masks, runs, order="auto", origin="auto")
    assert (competition.rule.order, competition.rule.origin) == ("column", 1) and "mask files" in competition.rule.why
    assert found(competition) == set() and len(competition.scenes("train")) == 4
    assert [competition.truth(scene).sum() for scene in competition.scenes("train")] == [
        np.count_nonzero(mask) for mask in masks.values()
    ]


def test_masks_of_three_values_are_asked_about_and_an_option_decides(tmp_path):
    three = disc()
    three[:5] = 2
    masks = {"a": three, "b": disc()}
    competition = objects(tmp_path, masks)
    assert [scene.id for scene in competition.scenes("train")] == ["b"]
    (finding,) = competition.inspect()
    assert (finding.kind, finding.scene) == ("broken truth", "a")
    assert finding.detail.endswith("got 3 values (0, 1, 2); which of them are objects? Say data.options.objects")
    for stated, expected in (([1], three == 1), ([1, 2], three > 0)):
        competition = objects(tmp_path, masks, objects=stated)
        np.testing.assert_array_equal(competition.truth(competition.scenes("train")[0]), expected)
        assert competition.inspect() == []
    with pytest.raises(ConfigError, match="data.options.objects"):
        objects(tmp_path, masks, objects="white")


def test_inverted_masks_are_asked_about_once_for_the_set(tmp_path):
    masks = {key: (1 - disc(seed)) * np.uint8(255) for seed, key in enumerate("abcd")}
    masks["e"] = np.full(SHAPE, 255, np.uint8)
    assert objects(tmp_path, masks).inspect()[-1].detail.startswith("what is not 0 covers most of 5 of 5 images")
    assert found(objects(tmp_path, masks)) == {("masks look inverted", "train"), ("object everywhere", "e")}
    turned = objects(tmp_path, masks, objects=[0])
    np.testing.assert_array_equal(turned.truth(turned.scenes("train")[0]), disc())
    assert found(turned) == set() and turned.strata(turned.scenes("train")[4])["empty"]
    assert found(objects(tmp_path, masks, objects=[255])) == {("object everywhere", "e")}
    upright = {key: disc(seed) * np.uint8(255) for seed, key in enumerate("abcd")}
    assert found(objects(tmp_path, upright | {"e": masks["e"]})) == {("object everywhere", "e")}


def test_an_image_whose_mask_file_is_gone_is_named_where_its_runs_hold_objects(tmp_path):
    masks = {key: disc(seed) for seed, key in enumerate("abc")} | {"d": np.zeros(SHAPE, np.uint8)}
    runs = {key: rle.encode(mask, "column", 1) for key, mask in masks.items()}
    objects(tmp_path, masks, runs)
    for key in "bd":  # nothing is lost of d, which is empty
        (tmp_path / f"train_masks/{key}.png").unlink()
    competition = open_competition("binary_rle", tmp_path, {"order": "column", "origin": 1})
    assert found(competition) == {("no mask file where others have one, its runs are read", "b")}
    np.testing.assert_array_equal(competition.truth(competition.scenes("train")[1]), masks["b"])


def test_a_mask_that_contradicts_its_runs_is_named(tmp_path):
    masks = {key: disc(seed) for seed, key in enumerate("abcde")}
    runs = {key: rle.encode(mask, "row", 1) for key, mask in masks.items()}
    runs |= {"b": rle.encode(disc(9), "row", 1), "c": "1 999999"}
    stated = objects(tmp_path, masks, runs, order="row")
    assert found(stated) == {("mask contradicts its runs", "b"), ("runs beside a mask cannot be drawn", "c")}
    np.testing.assert_array_equal(stated.truth(stated.scenes("train")[1]), masks["b"])
    told = objects(tmp_path, masks, runs, order="auto", origin="auto")
    assert told.rule.order == "row" and told.rule.why == "so the runs of 3 of 5 images give their mask files"
    assert found(told) == found(stated)


# ---- label maps -------------------------------------------------------------------------------------------
def label_maps(root, mask, name="a.png", **options):
    put(root / "JPEGImages/a.png", picture())
    put(root / "SegmentationClass" / name, mask)
    return open_competition("voc", root, {"classes": ["background", "cat"], "lists": None, **options})


@pytest.mark.parametrize(("mask", "name", "sentence"), [
    (disc() * np.uint16(65535), "a.png", "expected mask values 0..255, got 0..65535.*competition binary_rle"),
    (disc() * np.uint8(255), "a.png", r"found only 0 and 255.*\[\[0, 0, 0\], \[255, 255, 255\]\], or take competition"),
    (disc() * np.uint8(255), "a.jpg", "expected classes 0..1.*a JPEG does not keep the numbers of classes.*PNG"),
])  # fmt: skip
def test_label_maps_that_cannot_be_meant_are_named_with_the_way_out(tmp_path, mask, name, sentence):
    with pytest.raises(DataError, match=sentence):
        label_maps(tmp_path, mask, name).scenes("train")


@pytest.mark.parametrize("form", ["16 bit", "jpeg", "ignored"])
def test_masks_of_classes_are_read_as_masks_of_objects(tmp_path, form):
    mask, name, options = disc() * np.uint16(65535), "a.png", {}
    if form == "jpeg":
        mask, name = disc() * np.uint8(255), "a.jpg"
    if form == "ignored":
        mask, options = disc() + np.uint8(9) * (disc(9) > disc()), {"ignore": [9]}
    competition = label_maps(tmp_path, mask, name, masks={"cat": "SegmentationClass"}, **options)
    (scene,) = competition.scenes("train")
    assert np.count_nonzero(competition.target(scene, "loc") != disc()) <= (
        0.03 * disc().sum() if form == "jpeg" else 0
    )
    assert found(competition) == ({("grey mask, cut at half", "a")} if form == "jpeg" else set())


def test_masks_of_classes_with_other_values_are_asked_about(tmp_path):
    mask = disc() + np.uint8(9) * (disc(9) > disc())
    competition = label_maps(tmp_path, mask, masks={"cat": "SegmentationClass"})
    with pytest.raises(
        DataError, match=r"got 3 values \(0, 1, 9\); which of them are objects\? Say data.options.ignore"
    ):
        competition.scenes("train")


def test_exif_turns_a_picture_and_no_mask_of_colours(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    colours = [[0, 0, 0], [200, 10, 10]]
    upright = np.array(colours, np.uint8)[np.rot90(disc(), -1)]
    put(tmp_path / "JPEGImages/a.png", picture(), exif=tags)
    put(tmp_path / "SegmentationClass/a.png", np.ascontiguousarray(upright), exif=tags)  # as an annotator saw it
    competition = open_competition(
        "voc", tmp_path, {"classes": ["background", "cat"], "lists": None, "colours": colours}
    )
    (scene,) = competition.scenes("train")
    np.testing.assert_array_equal(competition.target(scene, "loc"), np.rot90(disc(), -1))
    np.testing.assert_array_equal(competition.read(scene, "image"), np.rot90(picture(), -1))
    assert found(competition) == {("EXIF orientation applied", "a")}


# ---- pairs ------------------------------------------------------------------------------------------------
SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))


def pair(root, shift=0.0, houses=HOUSES, nodata=None):
    """Write a scene of two 16-bit GeoTIFFs, the second ``shift`` metres east of the first."""
    add(root / "train", "big-storm_00000001", houses)
    values = np.random.default_rng(0).integers(200, 3000, (3, 48, 48)).astype(np.uint16)
    if nodata is not None:
        values[:, nodata] = 0
    for side, east, factor in (("pre", 0.0, 1), ("post", shift, 2)):
        png = root / f"train/images/big-storm_00000001_{side}_disaster.png"
        png.unlink()
        write_tiff(png.with_suffix(".tif"), values * factor, crs="EPSG:32615", nodata=0, photometric="RGB",
                   transform=from_origin(500_000 + east, 4_100_000, 0.5, 0.5))  # fmt: skip
    return open_competition("xview2", root)


def test_a_pair_keeps_its_difference_in_brightness(tmp_path):
    competition = pair(tmp_path)
    (scene,) = competition.scenes("train")
    pre, post = (competition.read(scene, side).astype(float) for side in ("pre", "post"))
    alone = [read_image(scene.files[side]).astype(float) for side in ("pre", "post")]
    assert np.abs(alone[0] - alone[1]).mean() < 1 and post.mean() > 1.8 * pre.mean()
    assert "size is not 1024x1024" == " ".join(f.kind for f in competition.inspect())


def test_a_pair_that_lies_apart_is_a_finding_and_one_of_two_places_an_error(tmp_path):
    near = pair(tmp_path, shift=10.0)
    assert ("pre and post lie apart", "big-storm_00000001") in found(near) and len(near.scenes("train")) == 1
    far = pair(tmp_path, shift=500_000.0)
    with pytest.raises(DataError, match="expected labelled scenes.*expected the place of .*nothing in common"):
        far.scenes("train")
    with pytest.raises(DataError, match="scene big-storm_00000001: .*nothing in common"):
        far.read(near.scenes("train")[0], "pre")
    assert ("unreadable image", "big-storm_00000001") in found(far)


def test_flags_of_a_pair_come_from_the_pixels_of_its_target(tmp_path):
    covered = [(box(2, 2), "minor-damage"), (box(2, 2), "destroyed"), (box(60, 2), "major-damage"),
               (box(20, 20), "un-classified")]  # fmt: skip
    competition = pair(tmp_path, houses=covered)
    (scene,) = competition.scenes("train")
    flags = {"nondamage": False, "minor": False, "major": False, "destroyed": True, "empty": False}
    assert competition.strata(scene) == flags, "one is covered by the next, one lies outside of the tile"
    hidden = np.zeros((48, 48), bool)
    hidden[:15] = True
    competition = pair(tmp_path, houses=covered, nodata=hidden)
    (scene,) = competition.scenes("train")
    assert competition.strata(scene) == flags | {"destroyed": False}
    bare = pair(tmp_path, houses=[], nodata=hidden)
    assert bare.strata(bare.scenes("train")[0])["empty"], "pixels without data are no buildings"


def test_a_target_is_ignored_where_one_of_the_shown_images_has_no_data(tmp_path):
    competition = pair(tmp_path)
    (scene,) = competition.scenes("train")
    hidden = np.zeros((48, 48), bool)
    hidden[:15] = True
    with rasterio.open(scene.files["post"], "r+") as file:
        file.write(np.where(hidden, 0, file.read()))
    expected = np.where(hidden, 255, competition.target(scene, "loc"))
    np.testing.assert_array_equal(competition.training_target(scene, "loc"), expected)
    np.testing.assert_array_equal(competition.training_target(scene, "loc", ("pre", "post")), expected)
    np.testing.assert_array_equal(competition.training_target(scene, "loc", ("pre",)), competition.target(scene, "loc"))


@pytest.mark.skipif(not (SHARED / "bright").is_dir(), reason="needs the real GeoTIFFs")
def test_real_pairs_lie_where_their_authors_say():
    (pre,), (post,) = (list((SHARED / "bright").glob(f"*_{side}_disaster.tif")) for side in ("pre", "post"))
    assert place.offset(pre, post) == place.Offset(0.0, (1.0, 1.0), 1.0) and place.remarks(pre, post) == []
    tiles = {side: sorted((SHARED / "geotiff_joplin" / side).glob("*.tif")) for side in ("pre", "post")}
    pairs = [place.offset(pre, post) for pre in tiles["pre"] for post in tiles["post"]]
    assert {pair.overlap > 0 for pair in pairs} == {True, False}, "both sides overlap in part"
    for pair in pairs:  # 0.6 m before; after 6e-6 degrees, 0.53 m by 0.67 m
        assert pair.scale == pytest.approx((0.53 / 0.6, 0.667 / 0.6), abs=0.01)


# ---- limits -----------------------------------------------------------------------------------------------
def test_a_stated_limit_holds_where_data_are_opened_and_where_they_are_sent(tmp_path):
    before = limits()
    masks = {key: disc() for key in "ab"}
    objects(tmp_path, masks)
    put(tmp_path / "train_images/b.png", np.kron(picture(), np.ones((2, 2, 1), np.uint8)))
    put(tmp_path / "train_masks/b.png", np.kron(disc(), np.ones((2, 2), np.uint8)))
    try:
        options = {"order": "column", "origin": 1}
        competition = open_competition("binary_rle", tmp_path, options, limits=Limits(image_pixels=40 * 60))
        assert [scene.id for scene in competition.scenes("train")] == ["a"]
        assert found(competition) == {("unreadable image", "b")}, "the stage that names it goes on"
        sent = pickle.dumps(competition)
        set_limits(Limits())
        pickle.loads(sent)
        assert limits().image_pixels == 40 * 60
        assert len(open_competition("binary_rle", tmp_path, options).scenes("train")) == 2
        assert limits() == Limits()
    finally:
        set_limits(before)
    (tmp_path / "a.yaml").write_text("name: a\ncompetition: binary_rle\ndata: {root: x, limits: {image_pixels: 0}}\n")
    with pytest.raises(ConfigError, match="data.limits.image_pixels: .*greater than or equal to 1"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["binary_rle", "voc", "labels", "xview2"])
def test_no_image_stops_the_check_of_the_data(tmp_path, name):
    """A PNG of a few bytes that declares 60,000 x 60,000 pixels, labelled as the others are."""
    options = {"voc": {"classes": ["background", "cat"], "lists": None}, "labels": {"classes": ["a", "b"]}}.get(
        name, {}
    )
    folder = {"binary_rle": "train_images", "voc": "JPEGImages", "labels": "train"}.get(name)
    for key in "abc" if folder else ():
        put(tmp_path / folder / f"{key}.png", picture())
        put(tmp_path / {"voc": "SegmentationClass"}.get(name, "train_masks") / f"{key}.png", disc())
    if name == "labels":
        (tmp_path / "train.csv").write_text("id,label\na,a\nb,b\nc,a\n")
    for number in range(3) if name == "xview2" else ():
        add(tmp_path / "train", f"big-storm_0000000{number}")
    path = tmp_path / folder / "b.png" if folder else tmp_path / "train/images/big-storm_00000001_pre_disaster.png"
    declared(path, 60_000, 60_000)
    competition = open_competition(name, tmp_path, options)
    (finding,) = [finding for finding in competition.inspect() if finding.kind == "unreadable image"]
    assert "expected at most 250000000 pixels, got 60000 x 60000" in finding.detail and str(path) in finding.detail
    assert len(competition.scenes("train")) == (3 if name == "labels" else 2)
