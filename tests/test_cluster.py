"""Scenes that look alike never lie in two folds where ``folds.cluster`` asks for it."""

import json
from itertools import combinations

import cv2
import numpy as np
import pandas as pd
import pytest
from test_embed import embedder, picture, worn

from lib.competitions import open_competition
from lib.config.sections import Folds
from lib.errors import ConfigError
from lib.scenes import embed, folds
from lib.stages import folds as stage

THINGS = 6


# ---- joining ------------------------------------------------------------------------------------------
def slow_join(groups, pairs):
    """Give both groups of a pair the lower name, again and again until nothing changes."""
    groups = list(groups)
    while True:
        before = list(groups)
        for i, j in pairs:
            low, high = sorted((groups[i], groups[j]))
            groups = [low if name == high else name for name in groups]
        if groups == before:
            return groups


@pytest.mark.parametrize("seed", range(5))
def test_joining_equals_renaming_until_nothing_changes(seed):
    rng = np.random.default_rng(seed)
    groups = [f"g{n}" for n in rng.integers(0, 30, 60)]
    pairs = rng.integers(0, 60, (12, 2))
    assert folds.join(groups, pairs) == slow_join(groups, pairs)


def test_pairs_chain_and_the_first_name_is_kept_in_any_order():
    groups = ["d", "c", "b", "a", "b"]
    for order in ([(0, 1), (1, 2)], [(1, 2), (0, 1)], [(2, 0), (1, 0)]):
        assert folds.join(groups, np.array(order)) == ["b", "b", "b", "a", "b"]
    assert folds.join(groups, np.empty((0, 2))) == groups


# ---- stage 01 -----------------------------------------------------------------------------------------
def brighter(image):
    """A copy that only the light tells from the picture: what a hash finds."""
    return np.clip(image * 1.1 + 5, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of THINGS things, three of each: as it is, worn (or only brighter), mirrored; two are a stated group."""
    embedder()  # skips where there is none
    root = tmp_path_factory.mktemp("photos")
    (root / "train").mkdir()
    rows = ["id,label,group"]
    for thing in range(THINGS):
        image = picture(thing)
        for kind, seen in {
            "a": image,
            "b": worn(image) if thing % 2 else brighter(image),
            "c": np.ascontiguousarray(image[:, ::-1]),
        }.items():
            cv2.imwrite(str(root / "train" / f"{kind}{thing}.png"), seen)
            rows.append(f"{kind}{thing},{'yes' if thing % 2 else 'no'},{'' if kind == 'c' else f'thing{thing}'}")
    (root / "train.csv").write_text("\n".join(rows))
    return root


def divided(photos, folder, **section):
    """Return the folds by id, the audit's report and what was said."""
    folder.mkdir(exist_ok=True)
    competition = open_competition("labels", photos, {})
    said = list(stage.split(competition, Folds(n=3, **section), folder))
    table = pd.read_csv(folder / "folds.csv").set_index("id")
    return table, json.loads((folder / "audit.json").read_text()), said


def leaks(report):
    return report["look_alikes"]["pairs_across_folds"] + report["near_duplicates"]["pairs_across_folds"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["scene", "group"])
def test_look_alikes_lie_in_one_fold_and_the_audit_finds_none_across(photos, tmp_path, scheme):
    plain, before, _ = divided(photos, tmp_path / "plain", scheme=scheme)
    assert leaks(before) > 0
    table, report, said = divided(photos, tmp_path / "clustered", scheme=scheme, cluster=True)
    assert leaks(report) == 0 and report["groups"]["shared"] == 0
    for thing in range(THINGS):
        assert table.loc[[f"a{thing}", f"b{thing}", f"c{thing}"], "fold"].nunique() == 1
    groups = THINGS * (3 if scheme == "scene" else 2)
    (line,) = [line for line in said if line.startswith("  look-alikes")]
    assert (
        f"join {3 * THINGS} scenes into {THINGS} clusters, the largest of 3; {THINGS} groups, {groups} before" in line
    )
    first = "a{}" if scheme == "scene" else "group_thing{}"
    assert set(table["group"]) == {first.format(thing) for thing in range(THINGS)}
    assert table["fold"].value_counts().tolist() == [2 * 3] * 3
    assert list(plain["fold"]) != list(table["fold"])


@pytest.mark.slow
def test_the_same_folds_come_out_again(photos, tmp_path):
    one, two = (divided(photos, tmp_path / name, cluster=True)[0] for name in ("one", "two"))
    assert one.equals(two)


def test_a_higher_bound_joins_fewer(photos, tmp_path):
    competition = open_competition("labels", photos, {})
    scenes = competition.scenes("train")
    ids = [scene.id for scene in scenes]
    looks = stage.looks_of(competition, scenes)
    vectors = np.concatenate([looks.embeddings[i] for i in ids])
    counts = []
    for bound in (0.7, True, 0.95, 1.0):
        groups, _ = stage.joined(ids, looks, ids, Folds(n=3, cluster=bound))
        least = 0.85 if bound is True else bound
        for i, j in combinations(range(len(ids)), 2):
            if vectors[i] @ vectors[j] >= least + 1e-5:
                assert groups[i] == groups[j]
        counts.append(len(set(groups)))
    assert counts == sorted(counts) and counts[0] < THINGS < counts[-1]


def test_nothing_alike_leaves_the_groups_as_they_are(photos):
    competition = open_competition("labels", photos, {})
    scenes = [scene for scene in competition.scenes("train") if scene.id.startswith("a")]
    ids = [scene.id for scene in scenes]
    groups, (line,) = stage.joined(ids, stage.looks_of(competition, scenes), ids, Folds(n=3, cluster=True))
    assert groups == ids and "none in different groups" in line


@pytest.mark.slow
def test_one_cluster_of_nearly_all_is_said_and_too_few_groups_name_the_setting(photos, tmp_path):
    competition = open_competition("labels", photos, {})
    scenes = competition.scenes("train")
    ids = [scene.id for scene in scenes]
    _, said = stage.joined(ids, stage.looks_of(competition, scenes), ids, Folds(n=3, cluster=0.5))
    assert "more than a fold's share" in said[-1] and "above 0.5" in said[-1]
    with pytest.raises(ConfigError, match="set folds.cluster higher"):
        list(stage.split(competition, Folds(n=THINGS + 1, cluster=True), tmp_path))


# ---- refused ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("section", "said"), [
    ({"cluster": 0.3}, "greater than or equal to 0.5"),
    ({"cluster": 1.2}, "less than or equal to 1"),
    ({"cluster": True, "file": "folds.csv"}, "folds are taken from file"),
    ({"cluster": 0.9, "embed": False}, "needs embed"),
])  # fmt: skip
def test_what_cannot_be_is_refused(section, said):
    with pytest.raises(ValueError, match=said):
        Folds(**section)


def test_without_the_network_of_features_it_is_an_error(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "load", lambda: (None, "images are compared by their hashes alone (no weights)"))
    with pytest.raises(ConfigError, match="folds.cluster: expected the features of a network"):
        divided(photos, tmp_path / "none", cluster=True)
    divided(photos, tmp_path / "plain")  # the audit alone goes on without
