"""Test scenes that are training scenes: the same bytes, the same video under another name, near-duplicates."""

import hashlib
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from owed import make, opened

from lib.scenes import leaks
from lib.scenes.pairs import FLAT, perceptual_hash
from lib.scenes.raster import read_image, write_png
from lib.stages.folds import against_test, looks_of


def blurred(seed: int) -> np.ndarray:
    """Return a picture with structure, (64, 64, 3) uint8."""
    noise = np.random.default_rng(seed).random((64, 64, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def scenes(**files):
    return [SimpleNamespace(id=name, files={"image": path}) for name, path in files.items()]


def by_digest(train, test):
    """The slow oracle: the hash of every file against that of every other."""

    def digest(path):
        return [hashlib.md5(file.read_bytes()).hexdigest()
                for file in (sorted(path.iterdir()) if path.is_dir() else [path])]  # fmt: skip

    return sorted((t.id, s.id) for t in test for s in train if digest(t.files["image"]) == digest(s.files["image"]))


def test_the_same_bytes_are_found_whatever_their_name_and_only_these(tmp_path):
    for seed in range(6):
        write_png(tmp_path / f"{seed}.png", blurred(seed))
    other = bytearray((tmp_path / "3.png").read_bytes())
    other[-20] ^= 1  # of the same size
    (tmp_path / "other.png").write_bytes(other)
    for name in ("copy", "again"):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{name}.jpg")
    for name, seeds in (("clip", (1, 2)), ("same", (1, 2)), ("turned", (2, 1))):
        (tmp_path / name).mkdir()
        for frame, seed in enumerate(seeds):
            shutil.copy(tmp_path / f"{seed}.png", tmp_path / name / f"{frame}.png")
    (tmp_path / "empty.png").write_bytes(b"")
    train = scenes(a=tmp_path / "0.png", b=tmp_path / "3.png", c=tmp_path / "clip", d=tmp_path / "again.jpg")
    test = scenes(u=tmp_path / "copy.jpg", v=tmp_path / "other.png", w=tmp_path / "same", x=tmp_path / "turned",
                  y=tmp_path / "5.png")  # fmt: skip
    found = leaks.same_files(train, test, ["image"])
    assert found == [("u", "a"), ("u", "d"), ("w", "c")] == by_digest(train, test)
    test += [SimpleNamespace(id="nothing", files={}), *scenes(empty=tmp_path / "empty.png")]
    assert leaks.same_files([*train, *scenes(e=tmp_path / "empty.png")], test, ["image"]) == found


def test_a_picture_that_shows_nothing_is_nobodys_copy(tmp_path):
    """430 test tiles of TGS salt are one black picture, and so are 80 of its training tiles."""
    for name, image in (("black", np.zeros((64, 64, 3), np.uint8)), ("field", blurred(0))):
        write_png(tmp_path / f"{name}.png", image)
    train = scenes(black=tmp_path / "black.png", field=tmp_path / "field.png", gone=tmp_path / "field.png")
    test = scenes(night=tmp_path / "black.png", copy=tmp_path / "field.png", unread=tmp_path / "field.png")
    hashes = {"train": {"black": FLAT, "field": 77, "gone": []}, "test": {"night": FLAT, "copy": 77, "unread": []}}
    found = leaks.report(train, test, ["image"], hashes)["same_files"]
    assert (found["scenes"], found["pairs"]) == (2, 4)
    assert ["night", "black"] not in leaks.report(train[:1], test[:1], ["image"], hashes)["same_files"]["examples"]


def test_near_duplicates_are_of_one_test_and_one_training_scene(tmp_path):
    pictures = [blurred(seed) for seed in range(5)]
    train = {f"a{k}": perceptual_hash(picture) for k, picture in enumerate(pictures)} | {
        "twin": perceptual_hash(pictures[0])
    }
    darker = np.rint(pictures[2] * 0.8).astype(np.uint8)
    test = {"new": perceptual_hash(blurred(77)), "darker": [perceptual_hash(blurred(78)), perceptual_hash(darker)],
            "black": FLAT, "gone": []}  # fmt: skip
    found = leaks.copies(train, test)
    assert [pair[:2] for pair in found] == [("darker", "a2")] and found[0][2] <= 6
    assert leaks.copies({}, test) == leaks.copies(train, {}) == []


@pytest.mark.parametrize("name", ["binary_rle", "labels", "videos", "xview2"])
def test_stage_01_says_which_test_scenes_are_known(name, tmp_path):
    root = make(name, tmp_path / "data")
    place = {"binary_rle": ("train_images/a1.png", "test_images/t2.png", "test_images/t3.png"),
             "labels": ("train/a1.png", "test/t2.png", "test/t3.png"),
             "videos": ("train/videos/a1/1.png", "test/videos/t2/1.png", "test/videos/t3/1.png"),
             "xview2": ("train/images/storm_00000001_pre_disaster.png", "test/images/test_pre_00004.png",
                        "test/images/test_pre_00005.png")}[name]  # fmt: skip
    picture = blurred(5)
    write_png(root / place[0], picture)
    shutil.copy(root / place[0], root / place[1])
    write_png(root / place[2], np.clip(picture.astype(int) + 9, 0, 255).astype(np.uint8))
    for number, path in enumerate(place if name == "xview2" else ()):  # of which both sides have one size
        write_png(root / path.replace("_pre_", "_post_"), blurred(90 + number))
    competition = opened(name, root)
    train = competition.scenes("train")
    found = against_test(competition, train, looks_of(competition, train, by_features=False))
    known, (_, second, third) = train[1].id, [scene.id for scene in competition.scenes("test")]
    assert found["scenes"] == found["hashed"] == 3
    assert found["same_files"] == {"scenes": 1, "pairs": 1, "examples": [[second, known]]}
    assert found["near_duplicates"]["scenes"] == 1 and found["near_duplicates"]["examples"][0]["ids"] == [third, known]
    said = list(leaks.lines(found))
    assert said[0].startswith("1 of 3 test scenes are training scenes under another name or place, with the same byte")
    assert f", such as {second} (test) and {known} (train): " in said[0]
    assert said[1].startswith(f"1 of 3 test scenes are near-duplicates of training scenes, such as {third} (test) and")
    (root / place[1]).write_bytes(b"no picture")
    (root / place[2]).unlink()
    competition = opened(name, root)
    found = against_test(competition, train, looks_of(competition, train, by_features=False))
    assert list(leaks.lines(found)) == [] and found["hashed"] == {"xview2": 1}.get(name, 1)
    assert (read_image(root / place[0]) == picture).all()
