"""Pixels decide whether two pictures show one thing: copies and crops do, pictures of one kind do not."""

import itertools
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_pairs import COPIES, picture

from lib.scenes import matching, pairs
from lib.scenes.matching import Matcher, correlation, fine_structure, has_structure

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))


def sea_bed(seed, water=230, depth=2):
    """A seismic tile as many are: water of one colour, and along the bottom a strip that is all that differs."""
    tile = np.full((101, 101, 3), water, np.uint8)
    strip = np.random.default_rng(seed).integers(0, 256, (depth, 101, 1), dtype=np.uint8)
    tile[-depth:] = strip
    return tile


def texture(seed):
    """A tile of noise along slanted layers: one kind of picture, never the same."""
    noise = np.random.default_rng(seed).normal(size=(101, 101)).astype(np.float32)
    layered = cv2.GaussianBlur(noise, (0, 0), sigmaX=4, sigmaY=1)
    return np.repeat(np.clip(128 + 200 * layered, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def matcher(**frames):
    return Matcher(lambda scene_id: frames[scene_id])


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_confirmed(change):
    for seed in range(6):
        image = picture(seed)
        assert matcher(a=[image], b=[COPIES[change](image)]).copies("a", "b"), seed


def test_crops_mirror_images_and_turned_ones_show_the_same():
    image = picture(3)
    turned = cv2.warpAffine(
        image, cv2.getRotationMatrix2D((128, 128), 10, 1.1), (256, 256), borderMode=cv2.BORDER_REFLECT
    )
    for seen in (image[25:230, 25:230], np.ascontiguousarray(image[:, ::-1]), turned):
        own = matcher(a=[image], b=[seen])
        assert own.same("a", "b") and own.same("b", "a")


def test_other_pictures_are_neither():
    shown = {str(seed): [picture(seed)] for seed in range(3)} | {f"t{seed}": [texture(seed)] for seed in range(4)}
    own = matcher(**shown)
    for a, b in itertools.combinations_with_replacement(shown, 2):
        assert own.same(a, b) == (a == b), (a, b)


def test_a_line_below_empty_water_is_no_evidence():
    tiles = [sea_bed(seed) for seed in range(4)] + [sea_bed(9, water=20)]
    assert not any(map(has_structure, tiles))
    assert {pairs.perceptual_hash(tile) for tile in tiles} == {pairs.FLAT}
    assert not matcher(a=[tiles[0]], b=[tiles[0]]).same("a", "b")  # not even with itself: nothing is told
    assert has_structure(texture(0)) and has_structure(picture(0))


def test_a_few_nuclei_on_black_are_evidence():
    slide = np.zeros((256, 320, 3), np.uint8)
    for x, y in ((40, 30), (150, 60), (260, 120), (90, 200)):
        cv2.circle(slide, (x, y), 9, (70, 70, 70), -1)
    assert has_structure(slide)
    assert matcher(a=[slide], b=[np.clip(slide * 1.3, 0, 255).astype(np.uint8)]).copies("a", "b")
    assert not matcher(a=[slide], b=[np.ascontiguousarray(slide[:, ::-1])]).copies("a", "b")


def test_a_shift_is_found_and_light_does_not_matter():
    image = picture(1)
    fine, moved = fine_structure(image), fine_structure(np.roll(image, (8, -8), (0, 1)))
    assert correlation(fine, moved) > 0.9 > correlation(fine, fine_structure(picture(2)))
    assert correlation(fine, -fine) < matching.COPY


def test_scenes_without_frames_match_nothing():
    assert not matcher(a=[], b=[picture(0)]).same("a", "b")


@pytest.mark.skipif(not (SHARED / "dsb2018").is_dir(), reason="needs the real slides")
def test_nuclei_that_features_call_alike_do_not_match():
    """Twelve pairs and more of these 28 slides are alike to a network (0.85); no two show the same nuclei."""
    files = sorted((SHARED / "dsb2018/stage1_train").glob("*/images/*.png"))[:8]
    slides = {path.stem: [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])] for path in files}
    own = matcher(**slides)
    assert not any(own.same(a, b) for a in slides for b in slides if a < b)


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="needs the real frames")
def test_frames_of_one_place_match():
    """The only two frames of 44 that a hash names: a street a moment later."""
    files = [path for path in sorted((SHARED / "camvid").glob("*/*.png")) if "annot" not in str(path)]
    frames = [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for path in files]
    ((i, j, _),) = pairs.near_duplicates([pairs.perceptual_hash(frame) for frame in frames])
    assert matcher(a=[frames[i]], b=[frames[j]]).copies("a", "b")
