"""Folds: groups whole, sizes and flags balanced, one seed one answer, ids untouched."""

from collections import namedtuple
from math import asin, ceil, cos, radians, sin, sqrt

import numpy as np
import pandas as pd
import pytest

from lib.errors import ConfigError, DataError
from lib.scenes import folds

FLAGS = ["nondamage", "minor", "major", "destroyed", "empty"]
Place = namedtuple("Place", "id domain position", defaults=("", None))


def xbd_like(n: int, seed: int, n_groups: int = 0) -> pd.DataFrame:
    """Scenes with about xBD's share of empty scenes and damage; ``n_groups`` 0: each its own group."""
    rng = np.random.default_rng(seed)
    empty = rng.random(n) < 0.43
    held = {flag: (rng.random(n) < share) & ~empty for flag, share in zip(FLAGS, (0.82, 0.33, 0.32, 0.3), strict=False)}
    table = pd.DataFrame({"id": [f"s{i:05d}" for i in range(n)]} | held | {"empty": empty})
    table["group"] = table["id"] if not n_groups else [f"g{g}" for g in rng.zipf(1.6, n) % n_groups]
    return table


def test_sizes_are_those_of_the_2020_file():
    fold = folds.assign(xbd_like(9168, 0), FLAGS, 10, seed=0)
    assert sorted(np.bincount(fold)) == [916] * 2 + [917] * 8


@pytest.mark.parametrize("n, k, seed", [(16, 4, 0), (61, 5, 1), (400, 7, 2), (1000, 10, 3)])
def test_single_scenes_are_balanced_in_size_and_in_every_flag(n, k, seed):
    table = xbd_like(n, seed)
    fold = folds.assign(table, FLAGS, k, seed)
    sizes = np.bincount(fold, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    for flag in FLAGS:
        held = np.bincount(fold[table[flag]], minlength=k)
        assert held.max() - held.min() <= 2, flag


def test_a_flag_held_by_as_many_scenes_as_folds_reaches_every_fold():
    for seed in range(20):
        table = xbd_like(200, seed)
        table["minor"] = False
        table.loc[table.sample(5, random_state=seed).index, "minor"] = True
        fold = folds.assign(table, FLAGS, 5, seed)
        assert sorted(fold[table["minor"]]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n_groups, k", [(5, 5), (12, 3), (40, 4), (90, 10)])
def test_groups_stay_whole_and_no_fold_overflows_by_a_group(n_groups, k):
    for seed in range(5):
        table = xbd_like(500, seed, n_groups)
        fold = pd.Series(folds.assign(table, FLAGS, k, seed))
        assert (fold.groupby(table["group"].to_numpy()).nunique() == 1).all()
        sizes = np.bincount(fold, minlength=k)
        assert sizes.min() >= 1
        assert sizes.max() <= ceil(500 / k) + table["group"].value_counts().max() - 1


def test_small_groups_balance_flags_nearly_as_well_as_single_scenes():
    table = xbd_like(2000, 4)
    table["group"] = [f"g{i}" for i in np.random.default_rng(4).integers(0, 300, 2000)]
    fold = folds.assign(table, FLAGS, 5, seed=4)
    for flag in FLAGS:
        held = np.bincount(fold[table[flag]], minlength=5)
        assert np.ptp(held) <= 0.06 * held.mean(), (flag, held)


def test_row_order_and_repetition_change_nothing_but_the_seed_does():
    table = xbd_like(300, 5, n_groups=120)
    first = dict(zip(table["id"], folds.assign(table, FLAGS, 5, 11), strict=True))
    mixed = table.sample(frac=1, random_state=1)
    assert dict(zip(mixed["id"], folds.assign(mixed, FLAGS, 5, 11), strict=True)) == first
    assert dict(zip(table["id"], folds.assign(table, FLAGS, 5, 12), strict=True)) != first


def test_impossible_requests_are_refused():
    table = xbd_like(30, 0, n_groups=3)
    with pytest.raises(ConfigError, match="3 groups for 5 folds"):
        folds.assign(table, FLAGS, 5, 0)
    with pytest.raises(ConfigError, match="at least 2"):
        folds.assign(table, FLAGS, 1, 0)


# ---- groups -------------------------------------------------------------------------------------------
def haversine_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    (lng1, lat1), (lng2, lat2) = (tuple(map(radians, place)) for place in (a, b))
    h = sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lng2 - lng1) / 2) ** 2
    return 2 * 6371.0 * asin(sqrt(h))


@pytest.mark.parametrize("lat", [-41.0, 0.0, 14.4, 38.5, 64.0])
def test_a_block_is_a_square_of_its_size(lat):
    rng = np.random.default_rng(0)
    places = [tuple(place) for place in rng.uniform((-122.8, lat), (-122.6, lat + 0.1), (150, 2)).tolist()]
    names = folds.blocks(places, 2.0)
    pairs = [(i, j) for i in range(150) for j in range(i) if names[i] == names[j]]
    together = [haversine_km(places[i], places[j]) for i, j in pairs]
    assert len(together) > 20
    assert max(together) <= 2.0 * sqrt(2) * 1.01
    assert len(set(names)) <= ceil(0.1 * 111.32 / 2 + 1) * ceil(0.2 * 111.32 * cos(radians(abs(lat))) / 2 + 1)


def test_a_block_does_not_depend_on_the_other_scenes():
    places = [(-122.74, 38.47), (-122.73, 38.47), None, (-94.5, 37.06)]
    names = folds.blocks(places, 2.0)
    assert [folds.blocks([place], 2.0)[0] for place in places] == names
    assert names[2] == ""
    assert names[0] != names[3]


def test_groupings():
    scenes = [
        Place("a_1", "a", (10.0001, 50.0001)), Place("a_2", "a", (10.0002, 50.0001)), Place("b_1", "b", (20.0, 50.0)),
        Place("b_2", "b"), Place("b_3", "b"),
    ]  # fmt: skip
    assert folds.groups(scenes, "scene") == ["a_1", "a_2", "b_1", "b_2", "b_3"]
    assert folds.groups(scenes, "event") == ["a", "a", "b", "b", "b"]
    block = folds.groups(scenes, "block", block_km=1.0)
    assert block[0] == block[1]
    assert len(set(block)) == 4  # scenes without a position stand alone
    with pytest.raises(ConfigError, match="x_1"):
        folds.groups([Place("x_1")], "event")
    with pytest.raises(ConfigError, match="'city'"):
        folds.groups(scenes, "city")
    with pytest.raises(ConfigError, match="above 0"):
        folds.groups(scenes, "block", block_km=0)


# ---- folds.csv ----------------------------------------------------------------------------------------
STRANGE = ["0001", "1e5", "00e1", "NA", "nan", "", "True", "-3", "1.0", "a,b", 'say "x"', " pad ", "é_00000001"]


def test_strange_ids_survive_a_round_trip(tmp_path):
    ids = [name for name in STRANGE if name]
    table = pd.DataFrame({"minor": [i % 2 == 0 for i in range(len(ids))], "id": ids, "note": ids})
    table.insert(2, "fold", range(len(ids)))
    folds.write_folds(tmp_path / "folds.csv", table)
    again = folds.read_folds(tmp_path / "folds.csv")
    assert list(again.columns) == ["id", "fold", "minor", "note"]
    assert again["id"].tolist() == ids
    assert all(type(name) is str for name in again["id"])
    assert again["fold"].tolist() == table["fold"].tolist()
    assert again["minor"].dtype == bool and again["minor"].tolist() == table["minor"].tolist()
    assert again["note"].tolist() == ids
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_the_2020_layout_is_read(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text(
        "id,fold,nondamage,minor,major,destroyed,empty\r\n"
        "guatemala-volcano_00000000,3,True,False,False,False,False\r\n"
        "joplin-tornado_00000001,0,TRUE,TRUE,FALSE,TRUE,FALSE\r\n",
        encoding="utf-8-sig",
    )
    table = folds.read_folds(path)
    assert table["fold"].tolist() == [3, 0]
    assert table[FLAGS].dtypes.eq(bool).all()
    assert table.loc[1, FLAGS].tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,fold\na,0\n", "columns id and fold, got name, fold"),
        ("id,fold\na,0\nb,1\na,2\n", r"1 repeated \(a\)"),
        ("id,fold\na,0\nb,1.5\n", "b has '1.5'"),
        ("id,fold\na,0\nb,-1\n", "b has '-1'"),
        ("id,fold\na,0\n,1\n", "1 rows without one"),
        ("", "does not parse"),
        ('id,fold\n"a,0\n', "does not parse"),
    ],
)
def test_broken_tables_are_refused(tmp_path, text, words):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        folds.read_folds(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.csv"):
        folds.read_folds(tmp_path / "nowhere.csv")


def test_writing_refuses_what_reading_would():
    with pytest.raises(DataError, match="repeated"):
        folds.write_folds("never-written.csv", pd.DataFrame({"id": ["a", "a"], "fold": [0, 1]}))


def test_check_compares_scene_sets():
    table = pd.DataFrame({"id": ["a", "b", "c", "d"], "fold": [0, 1, 0, 1]})
    folds.check(table, ["d", "c", "b", "a"], n_folds=2)
    with pytest.raises(DataError, match=r"1 scenes have no fold \(e\) and 2 ids are not among the scenes \(a, b\)"):
        folds.check(table, ["c", "d", "e"])
    with pytest.raises(DataError, match=r"w, x, y and 1 more"):
        folds.check(table, ["a", "b", "c", "d", "w", "x", "y", "z"])
    with pytest.raises(DataError, match="folds 0 to 2, got 0, 1"):
        folds.check(table, ["a", "b", "c", "d"], n_folds=3)
