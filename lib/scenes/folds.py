"""Divide scenes into folds: groups stay whole, flags and sizes are balanced, the result depends on the seed alone.

``folds.csv`` has a row per scene: ``id`` (a string, whatever it looks like), ``fold`` (0 .. n-1), yes/no flags as
``True``/``False``; any other column stays text. The layout is that of selimsef's xView2 file
(``id, fold, nondamage, minor, major, destroyed, empty``), so his file can be given in place of ours.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lib.errors import ConfigError, DataError
from lib.files import whole_file
from lib.settings import some

BLOCK_KM = 2.0
"""Side of a spatial block; four by four tiles of xBD (1024 pixels of about 0.5 m)."""

KM_PER_DEGREE = 111.32
"""Length of one degree of latitude; good to 0.6 % anywhere, which only moves block borders."""


def assign(table: pd.DataFrame, flags: Sequence[str], n_folds: int, seed: int) -> np.ndarray:
    """Give each row of ``table`` its fold: (N,) int64 in 0 .. n_folds-1, in row order.

    ``table`` needs ``id`` and ``group`` (text) and the boolean columns named by ``flags``. Iterative stratification
    (Sechidis, Tsoumakas, Vlahavas 2011) carried over to groups: the flag with the fewest scenes left is dealt first,
    its largest groups before its small ones, and a group goes to the fold that so far has the least of what the group
    brings, each flag and the number of scenes weighted by one over its total. Every fold has a quota of N / n_folds
    scenes and closes when that is reached, so no fold exceeds its quota by a whole group, and one-scene groups give
    sizes that differ by at most one. Row order has no influence. ConfigError if there are fewer groups than folds.

    scikit-learn's StratifiedGroupKFold balances one label per scene; a scene here has several at once, and the rare
    combinations are the ones that matter.
    """
    names = sorted(set(table["group"]))
    if n_folds < 2:
        raise ConfigError(f"folds: expected at least 2 folds, got {n_folds}")
    if len(names) < n_folds:
        raise ConfigError(
            f"folds: expected at least as many groups as folds, got {len(names)} groups for {n_folds} folds; "
            "ask for fewer folds or a finer grouping"
        )
    rng = np.random.default_rng(seed)
    rng.shuffle(names)  # ties below are broken by this order
    member = table["group"].map({name: g for g, name in enumerate(names)}).to_numpy()
    brings = np.zeros((len(names), len(flags) + 1), np.int64)  # column 0: number of scenes; then one per flag
    np.add.at(brings, member, np.column_stack([np.ones(len(table), bool), table[list(flags)].to_numpy(bool)]))
    quota = len(table) // n_folds + (rng.permutation(n_folds) < len(table) % n_folds)  # (n_folds,), sums to N
    weight = 1.0 / np.maximum(brings.sum(axis=0), 1)

    fold = np.full(len(names), -1)
    has = np.zeros((n_folds, brings.shape[1]), np.int64)
    for batch in _rarest_first(brings, fold):
        for g in batch:
            is_open = has[:, 0] < quota
            fits = is_open & (has[:, 0] + brings[g, 0] <= quota)
            is_empty = has[:, 0] == 0
            if (fold < 0).sum() == is_empty.sum():  # as many groups left as empty folds: each gets one
                allowed = is_empty
            else:
                allowed = fits if fits.any() else is_open
            burden = has @ (brings[g] * weight)
            fold[g] = np.argmin(np.where(allowed, burden, np.inf))
            has[fold[g]] += brings[g]
    return fold[member]


def _rarest_first(brings: np.ndarray, fold: np.ndarray) -> Iterable[np.ndarray]:
    """Yield batches of undealt groups: those with the flag that has the fewest scenes left, at last those with none.

    brings: (G, 1 + flags); fold: (G,), negative while undealt, filled by the caller between batches.
    """
    while True:
        left = brings * (fold < 0)[:, None]
        totals = left[:, 1:].sum(axis=0)
        if not totals.any():
            break
        rarest = 1 + np.argmin(np.where(totals > 0, totals, np.iinfo(np.int64).max))
        holders = np.flatnonzero(left[:, rarest])
        yield holders[np.lexsort((holders, -left[holders, 0], -left[holders, rarest]))]
    rest = np.flatnonzero(fold < 0)
    yield rest[np.argsort(-brings[rest, 0], kind="stable")]


# ---- groups ---------------------------------------------------------------------------------------------------------
def groups(scenes: Sequence, scheme: str, block_km: float = BLOCK_KM) -> list[str]:
    """Name each scene's group under ``scheme``; scenes as in the contract.

    "scene": every scene is its own group, as in the 2020 solutions; neighbours and whole events are shared by folds.
    "event": all scenes of a domain together; measures an unseen disaster. "block": scenes of one square of the map
    together; a scene without a position is its own group. "group": scenes of one ``group`` (a video, a person)
    together; one without is its own. ConfigError for another scheme or a scene without a domain.
    """
    if scheme not in GROUPS:
        raise ConfigError(f"folds: expected a grouping among {', '.join(GROUPS)}, got {scheme!r}")
    return GROUPS[scheme](scenes, block_km)


def join(groups: Sequence[str], pairs: np.ndarray) -> list[str]:
    """Make one group of the groups of any two scenes that are paired: N names and (P, 2) of their places -> N names.

    Pairs chain: where a is paired with b and b with c, all three become one. A joint group has the first of its names,
    so that the result depends neither on the order of scenes nor on that of pairs.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    ends = member[np.asarray(pairs, np.int64).reshape(-1, 2)]  # (P, 2)
    links = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, part = connected_components(links, directed=False)  # (G,)
    _, first = np.unique(part, return_index=True)
    return [str(name) for name in names[first[part[member]]]]


def blocks(positions: Sequence[tuple[float, float] | None], size_km: float = BLOCK_KM) -> list[str]:
    """Name the map square of each (lng, lat) in degrees; "" where the position is None.

    A fixed grid, not connected tiles: xBD's tiles are cut from whole mosaics, so chains of neighbours join a city,
    often an event, into one group that cannot be balanced. A square has a known size; what is left is the neighbours
    on both sides of a border, which the audit counts. Rows are ``size_km`` of latitude; columns use the cosine of their
    row's middle, so the name of a square depends on nothing but the place.
    """
    if size_km <= 0:
        raise ConfigError(f"folds: expected a block size above 0 km, got {size_km}")
    return ["" if place is None else _block(*place, size_km) for place in positions]


def _block(lng: float, lat: float, size_km: float) -> str:
    row = int(np.floor(lat * KM_PER_DEGREE / size_km))
    middle = (row + 0.5) * size_km / KM_PER_DEGREE
    column = int(np.floor(lng * KM_PER_DEGREE * np.cos(np.radians(middle)) / size_km))
    return f"block_{column}_{row}"


def _own(scenes: Sequence, _: float) -> list[str]:
    return [scene.id for scene in scenes]


def _event(scenes: Sequence, _: float) -> list[str]:
    nameless = [scene.id for scene in scenes if not scene.domain]
    if nameless:
        raise ConfigError(
            f"folds: grouping by event needs every scene's event, {some(nameless)} have none; group by scene"
        )
    return [scene.domain for scene in scenes]


def _near(scenes: Sequence, block_km: float) -> list[str]:
    named = blocks([scene.position for scene in scenes], block_km)
    return [block or f"scene_{scene.id}" for block, scene in zip(named, scenes, strict=True)]


def _stated(scenes: Sequence, _: float) -> list[str]:
    return [f"group_{scene.group}" if scene.group else f"scene_{scene.id}" for scene in scenes]


GROUPS: dict[str, Callable[[Sequence, float], list[str]]] = {
    "scene": _own,
    "event": _event,
    "block": _near,
    "group": _stated,
}


# ---- folds.csv ------------------------------------------------------------------------------------------------------
def read_folds(path: str | Path) -> pd.DataFrame:
    """Read a ``folds.csv``: ``id`` text exactly as written, ``fold`` int64, True/False columns bool, others text.

    DataError if it cannot be parsed, a column is missing, an id is blank or repeated, or a fold is not a whole number.
    """
    path = Path(path)
    try:  # everything as text first: pandas would read the ids 0001 and 1e5 as numbers and NA as missing
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: expected a table of folds, got no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a CSV file, got one that does not parse ({error})") from error
    return checked(path, table)


def checked(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of text columns as ``read_folds`` does; ``path``: where it was read. Raises DataError."""
    path = Path(path)
    missing = [name for name in ("id", "fold") if name not in table.columns]
    if missing:
        raise DataError(f"{path}: expected the columns id and fold, got {', '.join(table.columns)}")
    _check_ids(path, table["id"])
    is_number = table["fold"].str.fullmatch("[0-9]{1,9}").astype(bool)
    if not is_number.all():
        wrong = [f"{row.id} has {row.fold!r}" for row in table[~is_number].itertuples()]
        raise DataError(f"{path}: expected folds 0, 1, 2 ..., but {some(wrong)}")
    table["fold"] = table["fold"].astype("int64")
    for name in table.columns.difference(["id", "fold", "group", "domain"]):
        said = table[name].str.lower()  # spreadsheets write TRUE
        if len(table) and said.isin(["true", "false"]).all():
            table[name] = (said == "true").astype(bool)
    return table


def write_folds(path: str | Path, table: pd.DataFrame) -> None:
    """Write ``table`` as a ``folds.csv`` that ``read_folds`` gives back; a kill leaves the old file or the new one."""
    path = Path(path)
    _check_ids(path, table["id"])
    first = ["id", "fold"]
    ordered = table[first + [name for name in table.columns if name not in first]]
    with whole_file(path) as file:
        ordered.to_csv(file, index=False, lineterminator="\n")


def check(table: pd.DataFrame, scene_ids: Iterable[str], n_folds: int | None = None) -> None:
    """Raise DataError unless ``table`` holds exactly ``scene_ids`` and, if given, every fold 0 .. n_folds-1."""
    wanted, given = set(scene_ids), set(table["id"])
    parts = []
    if wanted - given:
        parts.append(f"{len(wanted - given)} scenes have no fold ({some(sorted(wanted - given))})")
    if given - wanted:
        parts.append(f"{len(given - wanted)} ids are not among the scenes ({some(sorted(given - wanted))})")
    if parts:
        raise DataError(f"folds: expected one row for each of the {len(wanted)} scenes, but {' and '.join(parts)}")
    folds = sorted(set(table["fold"].tolist()))
    if n_folds is not None and folds != list(range(n_folds)):
        raise DataError(f"folds: expected the folds 0 to {n_folds - 1}, got {', '.join(map(str, folds))}")


def _check_ids(path: Path, ids: pd.Series) -> None:
    if (ids == "").any():
        raise DataError(f"{path}: expected an id in every row, got {int((ids == '').sum())} rows without one")
    repeated = sorted(set(ids[ids.duplicated()]))
    if repeated:
        raise DataError(f"{path}: expected every id once, got {len(repeated)} repeated ({some(repeated)})")
