"""The audit finds what was planted, and nothing where nothing is."""

import json
from collections import namedtuple
from math import asin, cos, radians, sin, sqrt

import cv2
import numpy as np
import pandas as pd
import pytest

from lib.errors import DataError
from lib.scenes import audit

Place = namedtuple("Place", "id domain position", defaults=("", None))


def picture(seed: int, size: int = 256) -> np.ndarray:
    """A picture with large and small features: (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    field = sum(
        weight * cv2.resize(rng.normal(size=(n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
        for n, weight in ((5, 26), (17, 16), (60, 9), (size, 4))
    )
    return np.clip(100 + field, 0, 255).astype(np.uint8)


def bits_apart(a: int, b: int) -> int:
    return bin(a ^ b).count("1")


# ---- hashes -------------------------------------------------------------------------------------------
COPIES = {
    "darker": lambda image: np.clip(image * 0.7 + 8, 0, 255).astype(np.uint8),
    "brighter": lambda image: np.clip(image * 1.2 + 5, 0, 255).astype(np.uint8),
    "other gain per channel": lambda image: np.clip(image * (1.1, 1.0, 0.9), 0, 255).astype(np.uint8),
    "JPEG": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1),
    "half size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "odd size": lambda image: cv2.resize(image, (301, 277)),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_keep_their_hash_within_the_threshold(change):
    for seed in range(8):
        image = picture(seed)
        apart = bits_apart(audit.perceptual_hash(image), audit.perceptual_hash(COPIES[change](image)))
        assert apart <= audit.DUPLICATE_BITS, (seed, apart)


def test_other_scenes_have_other_hashes():
    hashes = [audit.perceptual_hash(picture(seed)) for seed in range(60)]
    apart = [bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > audit.DUPLICATE_BITS
    assert 28 < np.mean(apart) < 35


def test_flat_pictures_have_the_flat_hash_and_others_never():
    for value in (0, 90, 255):
        assert audit.perceptual_hash(np.full((64, 64, 3), value, np.uint8)) == audit.FLAT
    for seed in range(20):
        assert 20 < bin(audit.perceptual_hash(picture(seed))).count("1") <= 32


def test_near_duplicates_equal_a_slow_search():
    rng = np.random.default_rng(0)
    hashes = [int(x) for x in rng.integers(1, 2**63, 600)]
    for i, j, flips in [(3, 500, 0), (4, 5, 6), (255, 256, 3), (257, 599, 7), (10, 300, 1)]:
        hashes[j] = hashes[i] ^ sum(1 << int(bit) for bit in rng.choice(64, flips, replace=False))
    hashes[100] = hashes[101] = audit.FLAT
    slow = [
        (i, j, bits_apart(hashes[i], hashes[j]))
        for i in range(600)
        for j in range(i + 1, 600)
        if bits_apart(hashes[i], hashes[j]) <= 6 and audit.FLAT not in (hashes[i], hashes[j])
    ]
    assert sorted(map(tuple, audit.near_duplicates(hashes, 6).tolist())) == slow
    assert len(slow) == 4
    assert audit.near_duplicates([], 6).shape == (0, 3)


# ---- neighbours ---------------------------------------------------------------------------------------
def haversine_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    (lng1, lat1), (lng2, lat2) = (tuple(map(radians, place)) for place in (a, b))
    h = sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lng2 - lng1) / 2) ** 2
    return 2 * 6371.0 * asin(sqrt(h))


def test_neighbours_equal_a_slow_search():
    rng = np.random.default_rng(1)
    places = [(float(x), float(y)) for x, y in rng.uniform((-122.80, 38.40), (-122.70, 38.50), (200, 2))]
    places += [(179.9999, -18.0), (-179.9999, -18.0)]  # 21 m apart, across the date line
    with_gaps = [None if i % 7 == 0 else place for i, place in enumerate(places)]
    slow = [
        (i, j)
        for i in range(len(places))
        for j in range(i + 1, len(places))
        if with_gaps[i] and with_gaps[j] and haversine_km(places[i], places[j]) <= 0.75
    ]
    assert (200, 201) in slow
    assert list(map(tuple, audit.neighbours(with_gaps, 0.75).tolist())) == slow
    assert audit.neighbours([None, (0.0, 0.0)], 1.0).shape == (0, 2)


# ---- the report ---------------------------------------------------------------------------------------
def planted() -> tuple[pd.DataFrame, list[Place], dict[str, int]]:
    """Six scenes in three folds: a twin, a neighbour, two flat images and a shared event, each across folds."""
    scenes = [
        Place("a_1", "a", (10.000, 50.0)), Place("a_2", "a", (10.007, 50.0)), Place("a_3", "a", (10.2, 50.0)),
        Place("b_1", "b", (20.0, 50.0)), Place("b_2", "b"), Place("b_3", "b"),
    ]  # fmt: skip
    table = pd.DataFrame(
        {
            "id": ["b_3", "b_2", "b_1", "a_3", "a_2", "a_1"],  # another order than the scenes
            "fold": [2, 2, 2, 0, 1, 0],
            "minor": [False, False, False, True, True, True],
            "major": [True, False, True, True, True, False],
            "never": [False] * 6,
        }
    )
    same = audit.perceptual_hash(picture(0))
    hashes = {
        "a_1": audit.perceptual_hash(picture(1)), "a_2": same, "a_3": same, "b_1": same ^ 0b11,
        "b_2": audit.FLAT, "b_3": audit.FLAT,
    }  # fmt: skip
    return table, scenes, hashes


def test_everything_planted_is_found():
    table, scenes, hashes = planted()
    report = audit.audit(table, scenes, hashes, ["minor", "major", "never"], groups=["g", "g", "h", "i", "j", "k"])
    assert json.loads(json.dumps(report)) == report
    assert report["folds"]["0"] == {"scenes": 2, "minor": 2, "major": 1, "never": 0}
    assert [gap for gap in report["absent"] if gap["flag"] != "never"] == [{"fold": 2, "flag": "minor"}]
    assert report["events"] == {"count": 2, "shared": 1, "examples": {"a": [0, 1]}}
    assert report["groups"] == {"count": 5, "shared": 1, "examples": {"g": [0, 1]}}
    twins = report["near_duplicates"]
    assert twins["pairs_across_folds"] == 3  # a_2 a_3 b_1 in folds 1 0 2; the flat pair is none
    assert twins["examples"][0] == {"ids": ["a_2", "a_3"], "folds": [1, 0], "bits": 0}
    assert report["flat_images"] == {"count": 2, "examples": ["b_2", "b_3"]}
    near = report["neighbours"]
    assert (near["located"], near["pairs_across_folds"], near["scenes_with_neighbour_in_other_fold"]) == (4, 1, 2)
    assert near["examples"] == [{"ids": ["a_1", "a_2"], "folds": [0, 1]}]


def test_the_report_in_words():
    table, scenes, hashes = planted()
    said = audit.lines(audit.audit(table, scenes, hashes, ["minor", "major", "never"], groups=list("gghijk")))
    for words in (
        'fold 2 holds no scene with "minor"', 'no scene at all has "never"', "1 of 5 groups are split over folds (g",
        "3 pairs of near-duplicate images", "a_2 and a_3", "2 images show nothing", "2 of 4 located scenes",
        "2 scenes have no position", "1 of 2 events",
    ):  # fmt: skip
        assert sum(words in line for line in said) == 1, (words, said)
    assert not any('"major"' in line for line in said)


def test_a_clean_division_has_nothing_to_remark():
    scenes = [Place("a_1", "a", (0.0, 0.0)), Place("a_2", "a", (0.004, 0.0)), Place("b_1", "b", (9.0, 9.0))]
    table = pd.DataFrame({"id": ["a_1", "a_2", "b_1"], "fold": [0, 0, 1], "minor": [True, False, True]})
    hashes = {name: audit.perceptual_hash(picture(seed)) for seed, name in ((0, "a_1"), (0, "a_2"), (1, "b_1"))}
    report = audit.audit(table, scenes, hashes, ["minor"], groups=["a", "a", "b"])
    assert audit.lines(report) == ["nothing to remark"]
    assert report["neighbours"]["pairs"] == 1  # within one fold, no leak


def test_unequal_scene_sets_are_refused():
    table, scenes, hashes = planted()
    with pytest.raises(DataError, match="a_1"):
        audit.audit(table, scenes[1:], hashes, ["minor"])
