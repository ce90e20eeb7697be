"""Nothing that lies beside the scenes is passed over without a word, and what was looked for is said."""

import shutil

import numpy as np
import pytest
from owed import ids_of, make, opened, picture, sample

from lib.competitions import NAMES
from lib.competitions.contract import summarize
from lib.competitions.passed import passed_over
from lib.scenes.raster import write_png

PLACES = {"binary_rle": "test_images", "multiclass_rle": "test_images", "voc": "JPEGImages", "labels": "test",
          "xview2": "test/images", "videos": "test/videos", "bright": "pre-event"}  # fmt: skip
"""Where the test scenes lie."""


def kinds(competition) -> dict[str, list[str]]:
    """Return kind of finding -> the scenes or files, without what is said of the invented pictures."""
    found: dict[str, list[str]] = {}
    for finding in competition.inspect():
        if "1024x1024" not in finding.kind and "ignored" not in finding.kind:
            found.setdefault(finding.kind, []).append(finding.scene)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_set_has_nothing_passed_over(name, tmp_path):
    root = make(name, tmp_path / "data")
    sample(name, root, ids_of(name))
    assert kinds(opened(name, root)) == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_no_scene_is_a_finding(name, tmp_path):
    """The members that the real sets had: other suffixes, class folders, a public half, notes, hidden files."""
    root = make(name, tmp_path / "data")
    test = root / PLACES[name]
    for odd in ("t8.webp", "t9.gif", "Thumbs.db", ".t1.png", "._t2.jpg"):
        (test / odd).write_bytes(b"x")
    (root / "public/videos").mkdir(parents=True)
    (root / "public/videos/9.mp4").write_bytes(b"x")
    for number, path in enumerate((root / "more/images/a.jpg", root / "more/images/b.jpg", root / "__MACOSX/c.png")):
        picture(path.with_suffix(".png"), 50 + number)
        if path.suffix == ".jpg":
            path.with_suffix(".png").rename(path)
    found = kinds(opened(name, root))
    beside = "file beside pictures or videos that is none"
    expected = {
        "file of a suffix that is not read (.webp)": [f"{PLACES[name]}/t8.webp"],
        "file of a suffix that is not read (.gif)": [f"{PLACES[name]}/t9.gif"],
        "file in public/videos that no scene uses": ["public/videos/9.mp4"],
        "file in more/images that no scene uses": ["more/images/a.jpg", "more/images/b.jpg"],
        beside: [f"{PLACES[name]}/Thumbs.db"],
    }
    assert found == expected


@pytest.mark.parametrize(("name", "folder"), [("binary_rle", "test_images"), ("multiclass_rle", "test_images")])
def test_class_folders_in_the_test_folder_are_named(name, folder, tmp_path):
    root = make(name, tmp_path / "data")
    picture(root / folder / "cats" / "t1.png", 70)
    picture(root / folder / "dogs" / "t1.png", 71)
    competition = opened(name, root)
    assert [scene.id for scene in competition.scenes("test")] == ids_of(name)
    assert kinds(competition) == {f"file in {folder}/{kind} that no scene uses": [f"{folder}/{kind}/t1.png"]
                                  for kind in ("cats", "dogs")}  # fmt: skip


def test_pictures_in_class_folders_keep_apart_and_their_folder_is_no_label(tmp_path):
    root = make("labels", tmp_path / "data", ())
    for number, place in enumerate(("cat/1", "dog/1", "dog/2", "else/3")):
        picture(root / f"test/{place}.png", 60 + number)
    competition = opened("labels", root)
    assert [scene.id for scene in competition.scenes("test")] == ["cat_1", "dog_1", "dog_2", "else_3"]
    assert [competition.row_id(scene) for scene in competition.scenes("test")] == ["cat/1", "dog/1", "dog/2", "else/3"]
    assert kinds(competition) == {"test folder named like a class, which is not taken for a label": ["cat", "dog"]}
    (root / "test/dog/1.png").unlink()
    assert [scene.id for scene in opened("labels", root).scenes("test")] == ["1", "2", "3"]


def test_of_many_folders_none_is_named_in_the_kind(tmp_path):
    for number in range(7):
        picture(tmp_path / f"f{number}/a.png", number)
    (line,) = summarize_of(tmp_path, [])
    assert line == "file that no scene uses: 7 (f0/a.png, f1/a.png, f2/a.png and 4 more)"
    assert summarize_of(tmp_path, [tmp_path / "f0/a.png", tmp_path / "f1", tmp_path / "f2"])[0].startswith(
        "file in f3 th"
    )
    assert summarize_of(tmp_path, [tmp_path / f"f{number}" for number in range(7)]) == []


def summarize_of(root, used) -> list[str]:
    from lib.competitions.contract import Finding

    return summarize(Finding(*found) for found in passed_over(root, used))


def test_results_links_and_known_folders(tmp_path):
    picture(tmp_path / "work/mine/report/a.png", 1)
    (tmp_path / "work/mine/01_folds.partial").mkdir()
    picture(tmp_path / "train/targets/a.png", 2)
    picture(tmp_path / "elsewhere/b.png", 3)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/round").symlink_to(tmp_path / "data")
    assert passed_over(tmp_path / "work", []) == []
    assert passed_over(tmp_path / "train", [], ["targets"]) == []
    assert passed_over(tmp_path / "data", []) == [("file in link that no scene uses", "link/b.png", "link")]


def test_a_file_of_a_name_that_a_finding_has_is_still_named_in_another_folder(tmp_path):
    root = make("xview2", tmp_path / "data")
    for folder in ("test/images", "more", "other"):
        (root / folder).mkdir(exist_ok=True)
        write_png(root / folder / "odd.png", np.ones((4, 4, 3), np.uint8))
    found = kinds(opened("xview2", root))
    assert found.pop("unknown file name") == ["odd.png"]
    assert sorted(sum(found.values(), [])) == ["more/odd.png", "other/odd.png", "test/images/odd.png"]


@pytest.mark.parametrize(("name", "places"), [
    ("binary_rle", "test_images, test/images, stage1_test, test"), ("labels", "test"),
    ("xview2", "hold/images, test/images"), ("multiclass_rle", "test_images, test/images, stage1_test, test"),
    ("videos", "public_test/videos, test/videos"), ("voc", "ImageSets/Segmentation/test.txt"),
])  # fmt: skip
def test_no_test_scenes_are_said_with_the_places_that_were_looked_at(name, places, tmp_path):
    root = make(name, tmp_path / "data", ())
    assert opened(name, root).summary() == [f"3 training scenes listed; 0 test scenes found; looked in {places}"]
    sample(name, root, ids_of(name))
    assert (
        opened(name, root).summary()[1].startswith("sample_submission.csv names 3 scenes; the submission has its head")
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_the_sample_binds_and_what_does_not_fit_is_said(name, tmp_path):
    root = make(name, tmp_path / "data")
    first, second, third = ids_of(name)
    sample(name, root, [third, "unknown_00000009", first])
    competition = opened(name, root)
    found = kinds(competition)
    assert found.pop("the sample names it, there is no file of it") == ["unknown_00000009"]
    assert found.pop("test file that the sample does not name") == [second] and found == {}
    lines = competition.summary()
    assert lines[0] == "3 training scenes listed; 3 test scenes"
    header = ",".join(competition.sampled.header)
    assert lines[1].endswith(f"names 3 scenes; the submission has its header {header} and its order of rows")
    assert lines[2].startswith("1 of 3 test scenes cannot be predicted: they take predict.fallback, or stop stage 04")


def test_rows_of_a_sample_that_are_none_of_an_answer_are_said(tmp_path):
    root = make("multiclass_rle", tmp_path / "data")
    (root / "sample_submission.csv").write_text("ImageId,ClassId,EncodedPixels\nt3,0,\nt1,1,\nt2,0,\n")
    competition = opened("multiclass_rle", root)
    assert kinds(competition) == {"row of the sample that no answer has": ["t3,0", "t2,0"],
                                  "row that the sample has not": ["t1,2", "t2,1", "t2,2", "t3,1", "t3,2"]}  # fmt: skip


def test_the_unlabelled_half_of_hold_is_said(tmp_path):
    root = make("xview2", tmp_path / "data")
    shutil.copytree(root / "train", root / "hold")
    for folder in ("images", "labels"):
        for path in sorted((root / "hold" / folder).iterdir()):
            path.rename(path.with_name(path.name.replace("storm", "flood")))
    for path in sorted((root / "hold/labels").glob("flood_0000000[12]*")):
        path.unlink()
    competition = opened("xview2", root)
    assert "flood_00000000" in [scene.id for scene in competition.scenes("train")]
    kind = "scene of hold without a label: neither trained on nor answered"
    assert kinds(competition)[kind] == ["flood_00000001", "flood_00000002"]
    competition = opened("xview2", root, tiers=["train"])
    assert {"flood_00000001", "flood_00000002"} < {scene.id for scene in competition.scenes("test")}


def test_images_whose_ids_collide_are_said(tmp_path):
    root = make("multiclass_rle", tmp_path / "data")
    picture(root / "days/day1/a0.png", 80)
    picture(root / "days/day2/a0.png", 81)
    picture(root / "days/day2/a1.png", 82)
    found = kinds(opened("multiclass_rle", root, train="days/*/*.png"))
    assert found["two images of one id"] == ["a0"] and not any("days" in kind for kind in found)
    apart = opened("multiclass_rle", root, train="days/*/*.png", id=r"(day\d)/(a\d)")
    assert "two images of one id" not in kinds(apart)
    assert [scene.id for scene in apart._list("train")] == ["day1_a0", "day2_a0", "day2_a1"]
    some = opened("multiclass_rle", root, train="days/*/*.png", id=r"(day1)?/(a\d)")
    assert [scene.id for scene in some._list("train")] == ["a0", "a1", "day1_a0"], "a group need not match"


def test_rows_of_a_test_table_without_an_image_are_said(tmp_path):
    root = make("binary_rle", tmp_path / "data")
    (root / "test.csv").write_text("id,organ\nt1,x\nt2,x\nt9,x\n")
    assert kinds(opened("binary_rle", root)) == {"row of the test table without image": ["t9"]}
