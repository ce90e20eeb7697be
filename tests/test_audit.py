"""The audit finds what was planted, and nothing where nothing is."""

import json
from collections import namedtuple
from math import cos, radians, sin

import numpy as np
import pandas as pd
import pytest

from lib.errors import DataError
from lib.scenes import audit
from lib.scenes.pairs import FLAT

Place = namedtuple("Place", "id domain position group", defaults=("", None, ""))

SAME, OTHER = 0x5A3C_96E1_0F78_D2B4, 0x2D87_1C5B_E936_4AF0  # hashes far apart


# ---- the report ---------------------------------------------------------------------------------------
FLAGS = ["minor", "major", "never"]


def planted() -> tuple[pd.DataFrame, list[Place], dict[str, int]]:
    """Six scenes in three folds: a twin, a neighbour, two flat images and a shared domain, each across folds."""
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
    hashes = {"a_1": OTHER, "a_2": SAME, "a_3": SAME, "b_1": SAME ^ 0b11, "b_2": FLAT, "b_3": FLAT}
    return table, scenes, hashes


def test_everything_planted_is_found():
    table, scenes, hashes = planted()
    report = audit.audit(
        table, scenes, audit.Looks(hashes), ["minor", "major", "never"], groups=["g", "g", "h", "i", "j", "k"]
    )
    assert json.loads(json.dumps(report)) == report
    assert report["folds"]["0"] == {"scenes": 2, "minor": 2, "major": 1, "never": 0}
    assert [gap for gap in report["absent"] if gap["flag"] != "never"] == [{"fold": 2, "flag": "minor"}]
    assert report["domains"] == {"count": 2, "shared": 1, "examples": {"a": [0, 1]}}
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
    said = audit.lines(audit.audit(table, scenes, audit.Looks(hashes), FLAGS, groups=list("gghijk")))
    for words in (
        'fold 2 holds no scene with "minor"', 'no scene at all has "never"',
        "1 of 5 units that the scheme keeps whole", "(g in folds 0 and 1)",
        "3 pairs of near-duplicate images", "a_2 and a_3",
        "2 images show nothing", "2 of 4 located scenes", "2 scenes have no position", "1 of 2 domains",
    ):  # fmt: skip
        assert sum(words in line for line in said) == 1, (words, said)
    assert not any('"major"' in line for line in said)


def test_a_clean_division_has_nothing_to_remark():
    scenes = [Place("a_1", "a", (0.0, 0.0)), Place("a_2", "a", (0.004, 0.0)), Place("b_1", "b", (9.0, 9.0))]
    table = pd.DataFrame({"id": ["a_1", "a_2", "b_1"], "fold": [0, 0, 1], "minor": [True, False, True]})
    hashes = {"a_1": SAME, "a_2": SAME, "b_1": OTHER}
    report = audit.audit(table, scenes, audit.Looks(hashes), ["minor"], groups=["a", "a", "b"])
    assert audit.lines(report) == ["nothing to remark"]
    assert report["neighbours"]["pairs"] == 1  # within one fold, no leak


def test_unequal_scene_sets_are_refused():
    table, scenes, hashes = planted()
    with pytest.raises(DataError, match="a_1"):
        audit.audit(table, scenes[1:], audit.Looks(hashes), ["minor"])


# ---- groups -------------------------------------------------------------------------------------------
def division(**fold_of: int) -> pd.DataFrame:
    return pd.DataFrame({"id": list(fold_of), "fold": list(fold_of.values())})


def direction(degrees: float) -> np.ndarray:
    """One frame's unit vector: (1, 2) float32."""
    return np.array([[cos(radians(degrees)), sin(radians(degrees))]], np.float32)


def test_split_groups_are_told_whatever_the_scheme():
    scenes = [Place("a", group="tom"), Place("b", group="tom"), Place("c", group="ann"), Place("d")]
    table = division(a=0, b=1, c=1, d=0)
    report = audit.audit(table, scenes, audit.Looks({}), [], groups=list("abcd"))  # scheme "scene": each its own
    assert report["scene_groups"] == {"count": 2, "shared": 1, "examples": {"tom": [0, 1]}}
    assert report["groups"]["shared"] == 0
    (line,) = audit.lines(report)
    assert "1 of 2 groups have scenes in more than one fold (tom in folds 0 and 1)" in line
    assert (
        len(audit.lines(audit.audit(table, scenes, audit.Looks({}), [], groups=["tom", "tom", "ann", "d"]))) == 1
    )  # said once
    alone = audit.audit(table, [Place(name) for name in "abcd"], audit.Looks({}), [], groups=list("abcd"))
    assert alone["scene_groups"] is alone["groups_alike"] is alone["published"] is None
    assert audit.lines(alone) == ["nothing to remark"]


def test_groups_that_straddle_the_published_split_are_named():
    scenes = [Place("a", group="v1"), Place("b", group="v1"), Place("c", group="v2"), Place("d"), Place("e")]
    shipped = {"a": "val", "b": "train", "c": "val", "d": "train", "elsewhere": "test"}
    report = audit.audit(division(a=0, b=0, c=1, d=1, e=0), scenes, audit.Looks({}), [], published=shipped)
    assert report["published"] == {"count": 2, "shared": 1, "examples": {"v1": ["train", "val"]}}
    (line,) = audit.lines(report)
    assert "1 of 2 groups lie in more than one split of the data as shipped (v1 in train and val)" in line


def test_look_alikes_are_those_of_other_folds_and_groups_that_no_hash_found(monkeypatch):
    scenes = [Place("a", group="g"), Place("b", group="g"), Place("c"), Place("d"), Place("e"), Place("f"), Place("h")]
    table = division(a=0, b=1, c=1, d=0, e=1, f=1, h=0)
    seen = {"a": 0.0, "b": 1.0, "c": 20.0, "d": 5.0, "e": 90.0, "f": 170.0}  # h was not embedded
    hashes = {"a": OTHER, "c": SAME, "d": SAME, "h": OTHER ^ 0b1}
    embeddings = {name: direction(degrees) for name, degrees in seen.items()}
    monkeypatch.setattr(audit, "LOOK_ALIKE", cos(radians(19.5)))
    report = audit.audit(table, scenes, audit.Looks(hashes, embeddings), [])
    assert json.loads(json.dumps(report)) == report
    # a b: one group; a d: one fold; a c: 20 degrees; c d: copies by hash; b c: one fold; b d: 4 degrees
    assert report["near_duplicates"]["examples"] == [{"ids": ["c", "d"], "folds": [1, 0], "bits": 0}]
    alike = report["look_alikes"]
    assert (alike["embedded"], alike["pairs_across_folds"]) == (6, 1)
    assert alike["examples"] == [{"ids": ["b", "d"], "folds": [1, 0], "cosine": 0.998}]
    assert alike["share_of_all_pairs"] == pytest.approx(4 / 14, abs=1e-6)  # ad bc bd cd of 15 pairs but a b
    said = audit.lines(report)
    assert sum("1 further pairs of scenes in different folds look alike, such as b and d" in line for line in said) == 1
    assert not any("of one kind" in line for line in said)  # too few to say so


class Seen:
    """Says which pairs show the same, and remembers which were asked for."""

    def __init__(self, *same):
        self.told, self.asked = {frozenset(pair) for pair in same}, []

    def same(self, one, other):
        self.asked.append(one + other)
        return {one, other} in self.told

    copies = same


def test_what_pixels_do_not_bear_is_not_said(monkeypatch):
    scenes = [Place(name) for name in "abcdef"]
    hashes = {"a": SAME, "b": SAME ^ 0b1, "c": OTHER, "d": OTHER}
    embeddings = {"e": direction(0.0), "f": direction(1.0), "a": direction(90.0), "c": direction(91.0)}
    table = division(a=0, b=1, c=0, d=1, e=0, f=1)
    seen = Seen("cd")
    report = audit.audit(table, scenes, audit.Looks(hashes, embeddings, seen), [])
    assert report["near_duplicates"]["pairs_across_folds"] == 1
    assert report["near_duplicates"]["examples"][0]["ids"] == ["c", "d"]
    assert (report["look_alikes"]["resembling"], report["look_alikes"]["pairs_across_folds"]) == (1, 0)
    assert sorted(seen.asked) == ["ab", "cd", "ef"]  # a c lie in one fold, nothing would be said of them
    said = audit.lines(report)
    assert sum("1 pairs of near-duplicate images" in line and "c and d" in line for line in said) == 1
    assert sum("1 pairs of scenes in different folds resemble" in line for line in said) == 1 and len(said) == 2
    assert not any("look alike" in line or "a and b" in line for line in said)
    found = audit.audit(table, scenes, audit.Looks(hashes, embeddings, Seen("ab", "cd", "ef")), [])
    assert found["near_duplicates"]["pairs_across_folds"] == 2 and found["look_alikes"]["pairs_across_folds"] == 1
    monkeypatch.setattr(audit, "COMPARED", 0)
    capped = audit.lines(audit.audit(table, scenes, audit.Looks({}, embeddings, Seen("ef")), []))
    assert any("the pixels of the nearest 0 were compared" in line for line in capped)


def test_two_names_of_one_group_are_told_even_within_a_fold(monkeypatch):
    scenes = [
        Place("a1", group="tom"), Place("a2", group="tom"), Place("b1", group="thomas"), Place("b2", group="thomas"),
        Place("c1", group="ann"), Place("x"), Place("y"),
    ]  # fmt: skip
    table = division(a1=0, a2=0, b1=0, b2=0, c1=1, x=1, y=1)
    seen = {"a1": 0.0, "a2": 30.0, "b1": 5.0, "b2": 28.0, "c1": 180.0, "x": 90.0, "y": 90.0}
    embeddings = {name: direction(degrees) for name, degrees in seen.items()}
    hashes = {"c1": SAME, "x": SAME ^ 0b1}
    monkeypatch.setattr(audit, "LOOK_ALIKE", cos(radians(10)))
    report = audit.audit(table, scenes, audit.Looks(hashes, embeddings), [])
    assert json.loads(json.dumps(report)) == report
    assert report["groups_alike"] == {
        "pairs": 2,  # x and y are alone: no matter of groups
        "scene_pairs": 3,
        "examples": [
            {"groups": ["group ann", "scene x"], "scene_pairs": 1, "ids": ["c1", "x"], "bits": 1, "cosine": None},
            {"groups": ["group thomas", "group tom"], "scene_pairs": 2, "ids": ["a2", "b2"], "bits": None,
             "cosine": 0.999},
        ],
    }  # fmt: skip
    assert report["look_alikes"]["pairs_across_folds"] == 0
    (line,) = audit.lines(report)
    assert "2 pairs of groups may each be one under two names" in line and "group ann and scene x" in line
    assert audit.audit(table, scenes, audit.Looks(hashes), [])["look_alikes"] is None


def test_pictures_of_one_kind_are_called_so():
    scenes = [Place(str(k)) for k in range(12)]
    table = division(**{str(k): k % 3 for k in range(12)})
    report = audit.audit(table, scenes, audit.Looks({}, {scene.id: direction(3.0) for scene in scenes}), [])
    assert report["look_alikes"]["pairs_across_folds"] == 48
    assert any("100.0% of all pairs look alike: the images may only be of one kind" in x for x in audit.lines(report))


def test_a_scene_counts_with_all_its_frames():
    scenes = [Place("a"), Place("b"), Place("c"), Place("d")]
    hashes = {"a": (FLAT, SAME), "b": [OTHER, SAME ^ 0b1], "c": (FLAT, FLAT), "d": ()}
    report = audit.audit(division(a=0, b=1, c=0, d=1), scenes, audit.Looks(hashes), [])
    assert report["near_duplicates"]["examples"] == [{"ids": ["a", "b"], "folds": [0, 1], "bits": 1}]
    assert report["flat_images"] == {"count": 1, "examples": ["c"]}
