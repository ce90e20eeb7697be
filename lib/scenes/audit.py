"""Tell what a division into folds cannot measure: absent classes, shared events, near-duplicates, neighbours.

Nothing here is an error. Most 2020 solutions divided neighbouring tiles at random, which is right for a test set drawn
the same way; it only says little about a place or a disaster not seen before. The report has the numbers.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lib.scenes import folds

FLAT = 0
"""Hash of an image without structure (black, one colour); every other hash has about half of its bits set."""

DUPLICATE_BITS = 6
"""Hashes this close or closer are called near-duplicates (of 63 bits; unrelated images differ in about 31)."""

NEIGHBOUR_KM = 0.75
"""Centres this close or closer are called neighbours: an xBD tile spans about 0.5 km, so corners touch at 0.7 km."""

EARTH_KM = 6371.0
EXAMPLES = 20
"""At most this many pairs or names are listed; counts are always complete."""


# ---- near-duplicates ------------------------------------------------------------------------------------------------
def perceptual_hash(image: np.ndarray) -> int:
    """Hash an image so that copies keep it: (H, W, 3) uint8 RGB -> 64-bit int, ``FLAT`` where there is no structure.

    The image is reduced to 32 x 32 grey values; bit k tells whether the k-th of the 8 x 8 lowest cosine frequencies is
    above their median (pHash: Zauner 2010). Light, contrast, size and JPEG hardly change it. The mean is left out.
    """
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)  # (32, 32, 3): before grey, it is far smaller
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)  # (32, 32)
    if grey.std() < 1.0:
        return FLAT
    waves = cv2.dct(grey)[:8, :8].ravel()  # (64,)
    bits = waves > np.median(waves[1:])
    bits[0] = False
    return int(np.packbits(bits).view(">u8")[0])


def near_duplicates(hashes: Sequence[int], bits: int = DUPLICATE_BITS) -> np.ndarray:
    """Find pairs i < j of hashes at most ``bits`` bits apart: (P, 3) int64 of i, j, bits; ``FLAT`` never pairs."""
    codes = np.asarray(hashes, np.uint64)
    found = [np.empty((0, 3), np.int64)]
    for start in range(0, len(codes), 256):  # 256 x N at a time: 20 MB for 10,000 scenes
        rows = codes[start : start + 256]
        distance = np.bitwise_count(rows[:, None] ^ codes[None, start:])  # (<=256, N - start)
        near = (distance <= bits) & (rows != FLAT)[:, None] & (codes[start:] != FLAT)
        i, j = np.nonzero(np.triu(near, k=1))
        found.append(np.column_stack([i + start, j + start, distance[i, j]]))
    return np.concatenate(found)


# ---- neighbours -----------------------------------------------------------------------------------------------------
def neighbours(positions: Sequence[tuple[float, float] | None], distance_km: float = NEIGHBOUR_KM) -> np.ndarray:
    """Find pairs i < j of (lng, lat) in degrees at most ``distance_km`` apart: (P, 2) int64; None never pairs."""
    known = np.array([i for i, place in enumerate(positions) if place is not None], np.int64)
    if len(known) < 2:
        return np.empty((0, 2), np.int64)
    lng, lat = np.radians([positions[i] for i in known]).T
    on_sphere = EARTH_KM * np.column_stack([np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat)])
    pairs = known[cKDTree(on_sphere).query_pairs(distance_km, output_type="ndarray")]  # chord = arc at this scale
    return pairs[np.lexsort(pairs.T[::-1])]


# ---- the report -----------------------------------------------------------------------------------------------------
def audit(
    table: pd.DataFrame,
    scenes: Sequence,
    hashes: Mapping[str, int],
    flags: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    duplicate_bits: int = DUPLICATE_BITS,
    neighbour_km: float = NEIGHBOUR_KM,
) -> dict:
    """Report on a division into folds as a dict that JSON can hold; ``lines`` puts it into words.

    table: ``id``, ``fold`` and the boolean columns ``flags``. scenes: the same ids in any order, with ``domain`` and
    ``position``. hashes: id -> ``perceptual_hash``, for all or some scenes. groups: each scene's group in the order of
    ``scenes``, where the division was meant to keep groups whole (a given ``folds.csv`` may not have). DataError if the
    ids of ``table`` and ``scenes`` differ.
    """
    ids = [scene.id for scene in scenes]
    folds.check(table, ids)
    table = table.set_index("id")
    fold = table["fold"].loc[ids].to_numpy()  # (N,)
    n_folds = int(fold.max()) + 1
    coverage = {
        str(k): {"scenes": int((fold == k).sum())}
        | {flag: int(table.loc[table["fold"] == k, flag].sum()) for flag in flags}
        for k in range(n_folds)
    }
    duplicates = near_duplicates([hashes.get(name, FLAT) for name in ids], duplicate_bits)
    duplicates = duplicates[fold[duplicates[:, 0]] != fold[duplicates[:, 1]]]
    adjacent = neighbours([scene.position for scene in scenes], neighbour_km)
    across = adjacent[fold[adjacent[:, 0]] != fold[adjacent[:, 1]]]
    flat = sorted(name for name in ids if hashes.get(name) == FLAT)
    return {
        "scenes": len(ids),
        "folds": coverage,
        "absent": [
            {"fold": k, "flag": flag} for k in range(n_folds) for flag in flags if coverage[str(k)][flag] == 0
        ],
        "events": _spread([scene.domain for scene in scenes], fold),
        "groups": None if groups is None else _spread(groups, fold),
        "near_duplicates": {
            "hashed": len(set(ids) & set(hashes)),
            "max_bits": duplicate_bits,
            "pairs_across_folds": len(duplicates),
            "examples": [
                {"ids": [ids[i], ids[j]], "folds": [int(fold[i]), int(fold[j])], "bits": int(bits)}
                for i, j, bits in duplicates[np.argsort(duplicates[:, 2], kind="stable")][:EXAMPLES]
            ],
        },
        "flat_images": {"count": len(flat), "examples": flat[:EXAMPLES]},
        "neighbours": {
            "located": sum(scene.position is not None for scene in scenes),
            "max_km": neighbour_km,
            "pairs": len(adjacent),
            "pairs_across_folds": len(across),
            "scenes_with_neighbour_in_other_fold": len(np.unique(across)),
            "examples": [
                {"ids": [ids[i], ids[j]], "folds": [int(fold[i]), int(fold[j])]} for i, j in across[:EXAMPLES]
            ],
        },
    }


def _spread(names: Sequence[str], fold: np.ndarray) -> dict:
    """Tell which names have scenes in more than one fold; "" is no name."""
    lies_in: dict[str, set[int]] = {}
    for name, k in zip(names, fold.tolist(), strict=True):
        if name:
            lies_in.setdefault(name, set()).add(k)
    shared = {name: sorted(lies_in[name]) for name in sorted(lies_in) if len(lies_in[name]) > 1}
    return {"count": len(lies_in), "shared": len(shared), "examples": dict(list(shared.items())[:EXAMPLES])}


def lines(report: Mapping) -> list[str]:
    """Put an audit's report into sentences, the gravest first."""
    said = []
    everywhere = {flag: [] for row in report["folds"].values() for flag in row if flag != "scenes"}
    for gap in report["absent"]:
        everywhere[gap["flag"]].append(gap["fold"])
    for flag, gaps in everywhere.items():
        if len(gaps) == len(report["folds"]):
            said.append(f'no scene at all has "{flag}": it can be neither learned nor scored')
        else:
            said += [
                f'fold {k} holds no scene with "{flag}": it tells nothing about those, and a mean over classes '
                "takes a missing class as 0"
                for k in gaps
            ]
    groups, events = report["groups"], report["events"]
    if groups and groups["shared"]:
        said.append(f"{groups['shared']} of {groups['count']} groups are split over folds ({_first(groups)})")
    twins = report["near_duplicates"]
    if twins["pairs_across_folds"]:
        a, b = twins["examples"][0]["ids"]
        said.append(
            f"{twins['pairs_across_folds']} pairs of near-duplicate images lie in different folds, "
            f"such as {a} and {b}: their scores are too good"
        )
    flat = report["flat_images"]
    if flat["count"]:
        said.append(
            f"{flat['count']} images show nothing (one colour) and were not compared, such as {flat['examples'][0]}"
        )
    near = report["neighbours"]
    if near["pairs_across_folds"]:
        said.append(
            f"{near['scenes_with_neighbour_in_other_fold']} of {near['located']} located scenes have a neighbour "
            f"within {near['max_km']:g} km in another fold: scores tell little about a new place "
            "(group by block to measure that)"
        )
    if near["located"] < report["scenes"]:
        said.append(f"{report['scenes'] - near['located']} scenes have no position; their neighbours are not known")
    if events["shared"]:
        said.append(
            f"{events['shared']} of {events['count']} events have scenes in more than one fold: scores tell little "
            "about a new disaster (group by event to measure that)"
        )
    return said or ["nothing to remark"]


def _first(spread: Mapping) -> str:
    name, lies_in = next(iter(spread["examples"].items()))
    return f"{name} over folds {', '.join(map(str, lies_in))}"
