"""Patterns over several folders keep every picture, and a mask is always the mask of its own picture."""

import itertools

import numpy as np
import pytest

from lib.competitions import open_competition
from lib.competitions.contract import summarize
from lib.competitions.voc.pictures import differing
from lib.scenes.raster import read_image, read_mask, write_png

CLASSES = ["nothing", "thing"]


def put(path, value, mask=False):
    """Write a picture whose first pixel, or a mask whose count of objects' pixels, is a number of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.full((6, 9, 3), 90, np.uint8)
    drawn[0, 0] = value
    write_png(path, (np.arange(54).reshape(6, 9) < value).astype(np.uint8) if mask else drawn)


def opened(root, **options):
    return open_competition("voc", root, {"classes": CLASSES, "lists": None, **options})


def numbers(scenes):
    """Return id -> (the number in the picture, the number in its mask or None)."""
    return {s.id: (int(read_image(s.files["image"])[0, 0, 0]),
                   int(read_mask(s.files["mask"]).sum()) if "mask" in s.files else None) for s in scenes}  # fmt: skip


def cases(root, counts, image="case{}/images/{:04d}.png", mask="case{}/masks/{:04d}.png"):
    """Write folders in which names repeat; every picture has a number of its own, and so has its mask."""
    number = itertools.count(1)
    for case, count in counts.items():
        for name in range(count):
            value = next(number)
            put(root / image.format(case, name), value)
            put(root / mask.format(case, name), value, mask=True)
    return sum(counts.values())


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 10))))
def test_every_picture_is_kept_and_has_its_own_mask_in_whatever_order_folders_are_listed(tmp_path, order):
    total = cases(tmp_path, {1: 3, 2: 5, 10: 2})
    competition = opened(tmp_path, images=[f"case{k}/images" for k in (1, 2, 10)],
                         masks=[f"case{k}/masks/*.png" for k in order])  # fmt: skip
    found = numbers(competition.scenes("train"))
    assert len(found) == total == 10 and all(picture == mask for picture, mask in found.values())
    assert sorted(found)[:3] == ["case10_0000", "case10_0001", "case1_0000"] and len({*found.values()}) == total
    assert [line for line in summarize(competition.inspect()) if "ignored" not in line] == []


@pytest.mark.parametrize(("image", "mask", "first"), [
    ("a/x/{}.png", "a/y/{}.png", "a_1"),
    ("left/{}.png", "left_masks/{}.png", "left_1"),
    ("img/L_{}.png", "masks/L_{}.png", "L_1"),
    ("img/{}_L.png", "masks/{}_L.png", "L_1"),
])  # fmt: skip
def test_ids_have_the_parts_in_which_the_patterns_differ(tmp_path, image, mask, first):
    others = [pattern.replace("a/", "b/").replace("left", "right").replace("L", "R") for pattern in (image, mask)]
    for value, (one, own) in enumerate(((image, mask), others), 1):
        put(tmp_path / one.format(1), value)
        put(tmp_path / own.format(1), value, mask=True)
    competition = opened(tmp_path, images=[image.format("*"), others[0].format("*")],
                         masks=[others[1].format("*"), mask.format("*")])  # fmt: skip
    found = numbers(competition.scenes("train"))
    assert first in found and len(found) == 2 and all(picture == own for picture, own in found.values())


def test_names_that_do_not_collide_are_ids_as_they_are(tmp_path):
    for value, place in enumerate(("a/img/1", "b/img/2"), 1):
        put(tmp_path / f"{place}.png", value)
        put(tmp_path / f"{place.replace('img', 'msk')}.png", value, mask=True)
    competition = opened(tmp_path, images=["a/img", "b/img"], masks=["b/msk", "a/msk"])
    assert numbers(competition.scenes("train")) == {"1": (1, 1), "2": (2, 2)}


def test_names_that_repeat_in_the_folders_of_splits_are_kept(tmp_path):
    for value, split in enumerate(("train", "val", "test"), 1):
        put(tmp_path / split / "0001.png", value)
        put(tmp_path / f"{split}annot" / "0001.png", value, mask=True)
    competition = opened(tmp_path, images="{split}", masks="{split}annot")
    assert numbers(competition.scenes("train")) == {"train_0001": (1, 1), "val_0001": (2, 2)}
    assert numbers(competition.scenes("test")) == {"0001": (3, 3)}, "a submission names it as it is"
    assert competition.published_split()["val_0001"] == "val"


def test_lines_of_a_list_say_by_their_folders_which_picture_is_meant(tmp_path):
    cases(tmp_path, {1: 2, 2: 2})
    (tmp_path / "train.txt").write_text("case2/images/0001.png case2/masks/0001.png\ncase1_0000\n0000\n/case9/0001\n")
    competition = opened(tmp_path, images=["case1/images", "case2/images"], masks=["case2/masks", "case1/masks"],
                         lists="{split}.txt")  # fmt: skip
    assert numbers(competition.scenes("train")) == {"case1_0000": (1, 1), "case2_0001": (4, 4)}
    said = {(finding.kind, finding.scene, finding.detail) for finding in competition.inspect()}
    kind = "listed id of several pictures, none is used"
    assert {(kind, "0000", "case1_0000, case2_0000"), (kind, "/case9/0001", "case1_0001, case2_0001")} <= said


def test_a_mask_whose_picture_is_not_clear_is_nobodys(tmp_path):
    cases(tmp_path, {1: 2, 2: 1}, mask="masks{}/{:04d}.png")  # masks1, masks2: whose these are is not said
    put(tmp_path / "case1/images/0007.png", 7)
    put(tmp_path / "masks1/0007.png", 7, mask=True)
    competition = opened(tmp_path, images=["case1/images", "case2/images"], masks=["masks1", "masks2"])
    assert numbers(competition.scenes("train")) == {"case1_0001": (2, 2), "case1_0007": (7, 7)}, "names of one alone"
    said = {(f.kind, f.scene): f.detail for f in competition.inspect()}
    kind = "mask that may be of several pictures, none is used"
    paths = ", ".join(str(tmp_path / f"masks{k}/0000.png") for k in (1, 2))
    assert said[kind, "case1_0000"] == said[kind, "case2_0000"] == paths


def test_a_folder_without_masks_lends_none(tmp_path):
    cases(tmp_path, {1: 1})
    put(tmp_path / "case2/images/0000.png", 9)
    competition = opened(tmp_path, images=["case1/images", "case2/images"], masks="case1/masks")
    assert numbers(competition.scenes("train")) == {"case1_0000": (1, 1)}
    assert numbers(competition.scenes("test")) == {"case2_0000": (9, None)}
    assert not any("several pictures" in finding.kind for finding in competition.inspect())


def test_one_picture_in_two_formats_is_said(tmp_path):
    put(tmp_path / "img/1.png", 3)
    (tmp_path / "img/1.png").rename(tmp_path / "img/1.bmp")
    put(tmp_path / "img/1.png", 3)
    put(tmp_path / "masks/1.png", 3, mask=True)
    competition = opened(tmp_path, images=["img/*.png", "img/*.bmp"], masks="masks")
    assert numbers(competition.scenes("train")) == {"1": (3, 3)}
    (line,) = summarize(competition.inspect())
    assert line == "two pictures of one id: 1 (1)"


@pytest.mark.parametrize(("patterns", "parts"), [
    (["a/*"], [()]), (["a/x/*", "b/x/*"], [("a",), ("b",)]), (["a/*", "a/b/*"], [(), ("b",)]),
    (["a/x/*.png", "b/y/x/*.jpg"], [("a",), ("b", "y")]), (["d/*.jpg", "d/*.png"], [(), ()]),
    (["d/l_*.png", "d/r_*.png"], [("l",), ("r",)]), (["d/*_l.png", "e/*_r.png"], [("d", "l"), ("e", "r")]),
])  # fmt: skip
def test_parts_that_differ(patterns, parts):
    assert list(differing(patterns).values()) == parts
