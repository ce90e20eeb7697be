"""Data as tools leave them, found by someone who tried to make the program do the wrong thing without a word."""

import io
import json

import numpy as np
import pytest
import rasterio
from owed import make, opened, picture, sample
from PIL import Image
from test_raster import write_tiff

from lib.competitions import open_competition
from lib.errors import DataError
from lib.files import read_json, write_json
from lib.run.index import Index
from lib.scenes import raster
from lib.scenes.masks import read_objects


# ---- JPEGs that decode into wrong pixels ------------------------------------------------------------------
def jpeg(**options):
    """Return a JPEG of noise, whose pixels take most of the file."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def zeroed(data):
    """Zeros from the middle on, as a download leaves them that reserved its space and was broken off."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


DAMAGE = {
    "cut, with an end mark": lambda data: data[: len(data) // 2] + raster.JPEG_END,
    "zeros to the end": zeroed,
    "a header of twice the height": lambda data: data.replace(b"\x00\xa0\x00\xa0", b"\x01\x40\x00\xa0", 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_jpeg_that_only_warns_is_remarked(tmp_path, name):
    path = tmp_path / "a.jpg"
    path.write_bytes(DAMAGE[name](jpeg()))
    (remark,) = raster.read(path).remarks
    assert remark.kind == raster.DAMAGED


def test_half_a_progressive_jpeg_is_remarked_and_one_without_its_end_refused(tmp_path):
    path, data = tmp_path / "a.jpg", jpeg(progressive=True)
    path.write_bytes(data[: len(data) // 2] + raster.JPEG_END)
    assert [remark.kind for remark in raster.read(path).remarks] == [raster.DAMAGED]
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.jpg: .*fetch this file again"):
        raster.read(path)


def test_a_whole_jpeg_with_a_thumbnail_or_more_behind_it_is_not_remarked(tmp_path):
    path, data = tmp_path / "a.jpg", jpeg()
    thumb = b"Photoshop 3.0" + jpeg()[:20] + raster.JPEG_END  # an end mark before the pixels is none of theirs
    app = b"\xff\xed" + (len(thumb) + 2).to_bytes(2, "big") + thumb
    for whole in (data, data + b"\xff\xda" * 9, data[:2] + app + data[2:]):
        path.write_bytes(whole)
        assert raster.read(path).remarks == ()
    path.write_bytes(zeroed(data[:2] + app + data[2:]))
    assert [remark.kind for remark in raster.read(path).remarks] == [raster.DAMAGED]


def test_a_damaged_jpeg_is_no_mask(tmp_path):
    mask = np.zeros((160, 160), np.uint8)
    mask[40:120, 40:120] = 255
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    assert read_objects(tmp_path / "a.jpg")[0].sum() == 6400
    (tmp_path / "a.jpg").write_bytes(data[:-60] + raster.JPEG_END)
    with pytest.raises(DataError, match=r"a\.jpg: expected a readable image"):
        read_objects(tmp_path / "a.jpg")


# ---- masks ------------------------------------------------------------------------------------------------
@pytest.fixture
def square():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 1
    return mask


def test_a_palette_of_black_and_white_is_read_as_it_is_seen(tmp_path, square):
    """Pillow gives the colour that fills most of a picture the lower index, others the darker one."""
    quantized = Image.fromarray(np.repeat(square[..., None] * np.uint8(255), 3, axis=2)).quantize(2)
    assert quantized.getpalette()[:3] == [255, 255, 255]
    quantized.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_objects(tmp_path / "a.png")[0], square)
    Image.fromarray(square * np.uint8(255)).convert("1").save(tmp_path / "b.bmp")
    np.testing.assert_array_equal(read_objects(tmp_path / "b.bmp")[0], square)


def test_a_palette_of_other_colours_keeps_its_indices(tmp_path, square):
    image = Image.fromarray(square * np.uint8(7), "P")
    for palette in ([0] * 768, [0] * 21 + [255, 0, 0] + [0] * 744, [255] * 3 + [0] * 18 + [9, 9, 9] + [0] * 744):
        image.putpalette(palette)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_objects(tmp_path / "a.png")[0], square)


def test_small_numbers_in_a_lossy_mask_are_not_taken_for_nothing(tmp_path, square):
    Image.fromarray(square).save(tmp_path / "a.jpg", quality=95)
    with pytest.raises(DataError, match="which of them are objects"):
        read_objects(tmp_path / "a.jpg")
    Image.fromarray(square * 0).save(tmp_path / "b.jpg")
    assert not read_objects(tmp_path / "b.jpg")[0].any()


# ---- which files are which --------------------------------------------------------------------------------
def kinds(competition):
    return {(finding.kind, finding.scene) for finding in competition.inspect()}


def in_folders(root, *places):
    """Write pictures in a folder per class, each another one; returns the root."""
    for number, place in enumerate(places):
        picture(root / "train" / place, number)
    return root


def test_folders_that_tools_leave_behind_are_no_classes(tmp_path):
    root = in_folders(
        tmp_path, "cat/1.png", "dog/2.png", ".ipynb_checkpoints/1.png", "__MACOSX/cat/2.png", "cat/.3.png"
    )
    competition = open_competition("labels", root)
    assert competition.classes == ("cat", "dog") and len(competition.scenes("train")) == 2
    assert kinds(competition) == set()
    assert competition.remarks() == ["2 classes told from the labels (data.options.classes states them): cat, dog"]


def test_folders_that_may_be_no_classes_are_asked_about(tmp_path):
    root = in_folders(tmp_path, "train/cat/1.png", "val/dog/2.png", "cat/3.png")
    (root / "train/bird").mkdir()
    part, empty = "folder named like a part of the data, taken for a class", "folder of a class without a picture"
    assert kinds(open_competition("labels", root)) == {(part, "train"), (part, "val"), (empty, "bird")}
    stated = open_competition("labels", root, {"classes": ["cat", "train", "val"]})
    assert kinds(stated) == {(empty, "bird")}


@pytest.mark.parametrize("word", ["-1", "?", "unknown", "None", "N/A"])
def test_a_label_that_may_mean_none_is_asked_about(tmp_path, word):
    root = make("labels", tmp_path / "data")
    (root / "train.csv").write_text(f"id,label\na0,cat\na1,dog\na2,{word}\n")
    assert kinds(open_competition("labels", root)) == {("label that may mean none, taken for a class", word)}
    assert kinds(open_competition("labels", root, {"classes": ["cat", "dog", word]})) == set()


def test_labels_that_are_measured_are_asked_about(tmp_path):
    root = in_folders(tmp_path, *(f"{number}.png" for number in range(12)))
    (root / "train.csv").write_text("id,label\n" + "".join(f"{n},{n / 7:.4f}\n" for n in range(12)))
    (remark,) = open_competition("labels", root).remarks()
    assert "12 classes" in remark and "and 2 more, for 12 pictures: are the labels classes" in remark


def test_a_picture_under_two_labels_is_named(tmp_path):
    root = in_folders(tmp_path, "cat/1.png", "dog/2.png", "cat/3.png")
    (root / "train/dog/9.png").write_bytes((root / "train/cat/1.png").read_bytes())
    (root / "train/cat/8.png").write_bytes((root / "train/cat/3.png").read_bytes())
    assert kinds(open_competition("labels", root)) == {("one picture under two names and labels", "dog_9")}


def test_groups_that_are_written_in_two_ways_are_named(tmp_path):
    root = make("labels", tmp_path / "data")
    (root / "train.csv").write_text("id,label,group\na0,cat,P1\na1,dog,p1\na2,cat,p2\n")
    assert kinds(open_competition("labels", root)) == {("groups that may be one, told apart", "P1")}


def test_archives_that_were_not_unpacked_are_named(tmp_path):
    root = make("binary_rle", tmp_path / "data")
    for name in ("test_images2.zip", "TEST.tar.gz", "train_images.zip", "challenge.zip"):
        (root / name).touch()
    kind = "archive that is not unpacked"
    assert kinds(opened("binary_rle", root)) == {(kind, "test_images2.zip"), (kind, "TEST.tar.gz")}


def test_what_looks_like_a_sample_and_is_not_read_is_named(tmp_path):
    root = make("binary_rle", tmp_path / "data")
    sample("binary_rle", root, ["t1", "t2", "t3", "t1"]).rename(root / "SampleSubmission (1).csv")
    kind = "file like a sample submission that is not used"
    assert kinds(opened("binary_rle", root)) == {(kind, "SampleSubmission (1).csv")}
    assert kinds(opened("binary_rle", root, sample=None)) == set()
    twice = "row of the sample that is there more than once"
    assert kinds(opened("binary_rle", root, sample="SampleSubmission (1).csv")) == {(twice, "t1")}


def test_a_folder_that_is_a_link_is_not_passed_over(tmp_path):
    root = make("binary_rle", tmp_path / "data")
    (root / "train_images").rename(root / "real")
    (root / "train_images").symlink_to("real")
    assert kinds(opened("binary_rle", root)) == set()


def test_images_of_which_a_table_has_no_id_are_not_empty(tmp_path):
    root = make("multiclass_rle", tmp_path / "data")
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\ntrain_images\\b0,1,1 3\n")
    with pytest.raises(DataError, match="of which none can be used"):
        opened("multiclass_rle", root).scenes("train")
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na0,1,1 3\n")
    assert len(opened("multiclass_rle", root).scenes("train")) == 3


# ---- videos -----------------------------------------------------------------------------------------------
def clips(root, lines, frames=range(1, 18)):
    for number in frames:
        picture(root / f"jumping/0001/{number:05d}.png", number)
    (root / "clips.txt").write_text(lines)
    return open_competition("videos", root, {"annotations": "clips.txt", "test": None})


def test_annotated_clips_are_whole_and_apart(tmp_path):
    assert kinds(clips(tmp_path / "a", "jumping/0001 1 8 0\njumping/0001 9 17 1\n")) == set()
    shared = clips(tmp_path / "b", "jumping/0001 1 9 0\njumping/0001 9 17 1\n")
    assert kinds(shared) == {("annotated clips that share frames", "jumping_0001_9")}
    beyond = clips(tmp_path / "c", "jumping/0001 1 8 0\njumping/0001 9 99 1\n")
    assert kinds(beyond) == {("annotated frames that are not there", "jumping_0001_9")}


def test_clips_that_begin_with_one_frame_are_two_of_one_id_whatever_their_labels(tmp_path):
    competition = clips(tmp_path, "jumping/0001 1 8 0\njumping/0001 1 17 1\n")
    assert kinds(competition) == {("two videos of one id", "jumping_0001_1")}


def test_a_frame_may_be_called_by_any_sign_that_is_a_digit(tmp_path):
    competition = clips(tmp_path, "jumping/0001 1 17 1\n")
    (tmp_path / "jumping/0001/00003.png").rename(tmp_path / "jumping/0001/\u00b2.png")  # a superscript 2
    assert kinds(competition) == set()


def test_a_folder_of_frames_that_are_broken_or_of_other_sizes_is_named(tmp_path):
    competition = clips(tmp_path, "jumping/0001 1 17 1\n")
    Image.new("RGB", (9, 7)).save(tmp_path / "jumping/0001/00003.png")
    assert kinds(competition) == {("frames of several sizes, brought to that of the first", "jumping_0001")}
    (tmp_path / "jumping/0001/00003.png").write_bytes(b"\x89PNG")
    assert kinds(competition) == {("video cut short", "jumping_0001")}


# ---- pairs ------------------------------------------------------------------------------------------------
SQUARE = "POLYGON ((2 2, 8 2, 8 8, 2 8, 2 2))"


def pair(root, pre=(SQUARE,), post=(SQUARE,), kind="building", **metadata):
    """Write a data set whose first pair has these outlines; return what is found in it alone."""
    make("xview2", root)
    for side, outlines in (("pre", pre), ("post", post)):
        path = root / f"train/labels/storm_00000000_{side}_disaster.json"
        rows = [{"wkt": wkt, "properties": {"feature_type": kind, "subtype": "destroyed"}} for wkt in outlines]
        path.write_text(json.dumps({"features": {"xy": rows}, "metadata": metadata}))
    competition = opened("xview2", root)
    own = [finding for finding in competition.inspect() if finding.scene == "storm_00000000"]
    return [finding.kind for finding in own if "1024" not in finding.kind]


@pytest.mark.parametrize(("given", "expected"), [
    ({"img_name": "storm_00000000_PRE_disaster.png", "width": 16, "height": 16}, ["label that names another image"]),
    ({"width": 1024, "height": 1024}, ["label drawn at another size"] * 2),
    ({"width": 1024.0, "height": 1024.0}, ["label drawn at another size"] * 2),
    ({"kind": "road"}, ["outline of no building, drawn as one"] * 2),
    ({"pre": ["POLYGON ((0.1 0.1, 0.6 0.1, 0.6 0.6, 0.1 0.1))"]}, ["outlines that are not in pixels"]),
    ({"post": [SQUARE, "POLYGON EMPTY"]}, ["outline without a vertex"]),
    ({"post": []}, ["buildings in one label of a pair alone"]),
    ({"pre": [], "post": []}, []),
    ({}, []),
])  # fmt: skip
def test_labels_that_are_not_of_their_image_are_named(tmp_path, given, expected):
    assert pair(tmp_path / "data", **given) == expected


def test_one_image_before_and_after_is_named(tmp_path):
    root = make("xview2", tmp_path / "data")
    images = root / "train/images"
    before = (images / "storm_00000001_pre_disaster.png").read_bytes()
    (images / "storm_00000001_post_disaster.png").write_bytes(before)
    found = kinds(opened("xview2", root))
    assert {scene for kind, scene in found if kind == "pre and post are one image"} == {"storm_00000001"}


def test_a_pair_that_counts_in_two_units_is_named(tmp_path):
    root = make("xview2", tmp_path / "data")
    for side, offset in (("pre", 0), ("post", -0.1)):
        path = root / f"train/images/storm_00000001_{side}_disaster.png"
        pixels = raster.read_image(path).transpose(2, 0, 1).astype(np.uint16) * 9 + 1000
        path.unlink()
        write_tiff(path.with_suffix(".tif"), pixels)
        with rasterio.open(path.with_suffix(".tif"), "r+") as file:
            file.scales, file.offsets = (1e-4,) * 3, (offset,) * 3
    found = {(kind, scene) for kind, scene in kinds(opened("xview2", root)) if "1024" not in kind}
    assert found == {("pre and post count brightness in other units", "storm_00000001")}


def test_a_palette_that_was_made_anew_is_named(tmp_path, square):
    """Classes are the stored indices, which such a file has exchanged."""
    root = make("voc", tmp_path / "data")
    palettes = {"a0": [0, 0, 0, 128, 0, 0], "a1": [128, 0, 0, 0, 0, 0], "a2": [9, 9, 9, 128, 0, 0]}
    for key, colours in palettes.items():
        image = Image.fromarray(square[:16, 10:26], "P")
        image.putpalette(colours + [0] * 762)
        image.save(root / f"SegmentationClass/{key}.png")
    kind = "palette in which class 0 has a colour and another is black, indices are used"
    assert kinds(opened("voc", root)) == {(kind, "a1")}


def test_a_mask_whose_palette_was_made_anew_is_asked_about(tmp_path, square):
    """Red on black in which either may have come first: the object is what is red."""
    path = tmp_path / "mask.png"
    for mask, colours in ((square, [0, 0, 0, 128, 0, 0]), (1 - square, [128, 0, 0, 0, 0, 0])):
        image = Image.fromarray(mask, "P")
        image.putpalette(colours + [0] * 762)
        image.save(path)
        if not colours[0]:
            np.testing.assert_array_equal(read_objects(path)[0], square)
    with pytest.raises(DataError, match=r"a palette in which 0 is black, got a colour for 0 and black for 1"):
        read_objects(path)
    np.testing.assert_array_equal(read_objects(path, [0])[0], square)


def test_a_folder_of_masks_that_a_class_has_not_is_named(tmp_path):
    root = make("voc", tmp_path / "data")
    options = {"classes": ["none", "cat", "dog"], "lists": None, "images": "JPEGImages"}
    masks = {"cat": "SegmentationClass", "dog": "dogs"}
    kind = "class without a mask of any picture, it is part of the background"
    assert kinds(open_competition("voc", root, {**options, "masks": masks})) == {(kind, "dog")}


def test_objects_one_by_one_are_those_of_their_image(tmp_path, square):
    for number, key in enumerate(("a", "b", "c")):
        picture(tmp_path / f"stage1_train/{key}/images/{key}.png", number)
        (tmp_path / f"stage1_train/{key}/masks").mkdir()
        Image.fromarray(square[:16, 10:26] * np.uint8(255)).save(tmp_path / f"stage1_train/{key}/masks/1.png")
    (tmp_path / "stage1_train/a/images/a.png").rename(tmp_path / "stage1_train/a/images/b.png")
    (tmp_path / "stage1_train/c/masks/1.png").unlink()
    odd = {("image named like another one", "a"), ("folder of masks without a mask, read as no object", "c")}
    assert kinds(open_competition("binary_rle", tmp_path)) == odd


def test_two_columns_of_runs_are_asked_about(tmp_path):
    root = make("binary_rle", tmp_path / "data")
    (root / "train.csv").write_text("id,rle,EncodedPixels\na0,1 3,7 7\na1,5 4,\na2,,\n")
    assert kinds(opened("binary_rle", root)) == {("several columns of runs, the first is read", "train.csv")}
    assert kinds(opened("binary_rle", root, rle_column="EncodedPixels")) == set()


# ---- names ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["binary_rle", "labels", "videos"])
def test_a_name_that_is_not_utf8_is_named_and_its_scene_left_out(tmp_path, name):
    """An é of Latin-1, as archives of other systems leave it."""
    root = make(name, tmp_path / "set")
    for path in (path for path in root.rglob("*") if path.stem in ("a1", "t2")):
        path.rename(path.with_name(path.name.replace(path.stem, f"{path.stem[0]}\udce9")))
    competition = opened(name, root)
    found = [finding.scene for finding in competition.inspect() if finding.kind.startswith("name of a file that is")]
    assert [text.removesuffix(".png") for text in found] == ["a\\udce9", "t\\udce9"]
    assert [scene.id for scene in competition.scenes("train")] == ["a0", "a2"]
    assert [scene.id for scene in competition.scenes("test")] == ["t1", "t3"]


def test_a_frame_whose_name_is_not_utf8_is_read_by_nobody_and_its_video_is(tmp_path):
    root = make("videos", tmp_path / "set")
    picture(root / "train/videos/a1/2\udce9.png", 1)
    competition = opened("videos", root)
    (scene,) = [scene for scene in competition.scenes("train") if scene.id == "a1"]
    assert competition.read(scene).shape[0] == 1
    write_json(tmp_path / "index.json", Index(competition, {"train": [scene], "test": []}, {}).look().files)
    assert "train/videos/a1/2\udce9.png" in read_json(tmp_path / "index.json")


def test_a_folder_of_a_class_whose_name_is_not_utf8_is_refused(tmp_path):
    for folder in ("cat", "dog", "caf\udce9"):
        picture(tmp_path / "train" / folder / "x.png", len(folder))
    with pytest.raises(DataError, match=r"expected names in UTF-8, found 'caf\\udce9'; rename the folder"):
        open_competition("labels", tmp_path).scenes("train")
