"""Tell what a division into folds cannot measure: absent classes, split groups, near-duplicates, neighbours.

Nothing here is an error. Most 2020 solutions divided neighbouring tiles at random, which is right for a test set drawn
the same way; it only says little about a place, a video or a person not seen before. The report has the numbers.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.scenes import folds
from lib.scenes.matching import Matcher
from lib.scenes.pairs import DUPLICATE_BITS, FLAT, LOOK_ALIKE, NEIGHBOUR_KM, look_alikes, near_duplicates, neighbours

EXAMPLES = 20
"""At most this many pairs or names are listed; counts are always complete."""

COMPARED = 300
"""At most so many pairs that only look alike to a network have their pixels compared, about 0.1 s each."""

ONE_KIND = 0.01
"""Where a larger share of all pairs looks alike, the cause may be the kind of picture and not a common source."""

FEW = 10
"""With fewer such pairs than this a share says nothing (3 scenes have but 3 pairs)."""


@dataclass(frozen=True)
class Looks:
    """What scenes look like, by id; scenes may be missing."""

    hashes: Mapping[str, int | Sequence[int]]
    """``perceptual_hash`` of a scene's image, or of each of several frames."""
    embeddings: Mapping[str, np.ndarray] | None = None
    """(n, D) unit vectors of ``lib/scenes/embed.py``; none: not compared."""
    matcher: Matcher | None = None
    """Compares the pixels of scenes that hash or embedding call alike; without it these are taken at their word."""


def audit(
    table: pd.DataFrame,
    scenes: Sequence,
    looks: Looks,
    flags: Sequence[str],
    groups: Sequence[str] | None = None,
    published: Mapping[str, str] | None = None,
) -> dict:
    """Report on a division into folds as a dict that JSON can hold; ``lines`` puts it into words.

    table: ``id``, ``fold`` and the boolean columns ``flags``. scenes: the same ids in any order, with ``domain``,
    ``position`` and ``group`` ("": alone). groups: each scene's group in the order of ``scenes``, where the division
    was meant to keep groups whole (a given ``folds.csv`` may not have). published: id -> split as shipped; ids not in
    ``scenes`` are passed over. DataError if the ids of ``table`` and ``scenes`` differ.
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
    own = [scene.group for scene in scenes]
    hashes, embeddings = looks.hashes, looks.embeddings
    pairs = _confirmed(scenes, _alike(scenes, fold, hashes, embeddings or {}), looks.matcher)
    copies = pairs[pairs["copy"] & pairs["leaks"]].sort_values("bits", kind="stable")
    adjacent = neighbours([scene.position for scene in scenes], NEIGHBOUR_KM)
    across = adjacent[fold[adjacent[:, 0]] != fold[adjacent[:, 1]]]
    flat = sorted(name for name in ids if name in hashes and set(np.atleast_1d(hashes[name]).tolist()) == {FLAT})
    return {
        "scenes": len(ids),
        "folds": coverage,
        "absent": [{"fold": k, "flag": flag} for k in range(n_folds) for flag in flags if coverage[str(k)][flag] == 0],
        "domains": _spread([scene.domain for scene in scenes], fold.tolist()),
        "groups": None if groups is None else _spread(groups, fold.tolist()),
        "scene_groups": _spread(own, fold.tolist()) if any(own) else None,
        "published": _published(scenes, published) if any(own) and published else None,
        "near_duplicates": {
            "hashed": len(set(ids) & set(hashes)),
            "max_bits": DUPLICATE_BITS,
            "pairs_across_folds": len(copies),
            "examples": [
                {"ids": [ids[p.i], ids[p.j]], "folds": [int(fold[p.i]), int(fold[p.j])], "bits": int(p.bits)}
                for p in copies.head(EXAMPLES).itertuples()
            ],
        },
        "look_alikes": None if embeddings is None else _look_alikes(scenes, fold, embeddings, pairs),
        "groups_alike": _groups_alike(scenes, pairs) if any(own) else None,
        "flat_images": {"count": len(flat), "examples": flat[:EXAMPLES]},
        "neighbours": {
            "located": sum(scene.position is not None for scene in scenes),
            "max_km": NEIGHBOUR_KM,
            "pairs": len(adjacent),
            "pairs_across_folds": len(across),
            "scenes_with_neighbour_in_other_fold": len(np.unique(across)),
            "examples": [
                {"ids": [ids[i], ids[j]], "folds": [int(fold[i]), int(fold[j])]} for i, j in across[:EXAMPLES]
            ],
        },
    }


def _alike(scenes: Sequence, fold: np.ndarray, hashes: Mapping, embeddings: Mapping) -> pd.DataFrame:
    """List the pairs of scenes that hash or embedding call alike, in order of their positions i < j in ``scenes``.

    Columns i, j; bits and cosine, NaN where the pair is not alike by that; leaks: the folds differ; strangers: the
    groups differ.
    """
    copies = near_duplicates([hashes.get(scene.id, FLAT) for scene in scenes], DUPLICATE_BITS)
    alike, closeness = look_alikes([embeddings.get(scene.id) for scene in scenes], LOOK_ALIKE)
    pairs = pd.DataFrame(copies, columns=["i", "j", "bits"]).merge(
        pd.DataFrame({"i": alike[:, 0], "j": alike[:, 1], "cosine": closeness.astype(np.float64)}),
        on=["i", "j"], how="outer", sort=True,
    )  # fmt: skip
    i, j = pairs["i"].to_numpy(), pairs["j"].to_numpy()
    member = np.unique(_members(scenes), return_inverse=True)[1]
    return pairs.assign(leaks=fold[i] != fold[j], strangers=member[i] != member[j])


def _confirmed(scenes: Sequence, pairs: pd.DataFrame, matcher: Matcher | None) -> pd.DataFrame:
    """Compare the pixels of the pairs that something would be said of: all by hash, the COMPARED nearest by embedding.

    Adds the columns copy and same (hash or embedding is right), and compared (its embeddings were put to the test).
    """
    grouped = np.array([bool(scene.group) for scene in scenes])
    spoken_of = pairs["leaks"] | (pairs["strangers"] & (grouped[pairs["i"]] | grouped[pairs["j"]]))
    copy = pairs["bits"].notna() & (spoken_of | (matcher is None))
    alike = pairs["cosine"].notna() & spoken_of
    if matcher is None:
        return pairs.assign(copy=copy, same=alike, compared=alike)
    ids = [scene.id for scene in scenes]
    ends = list(zip(pairs["i"], pairs["j"], strict=True))
    copy = pd.Series([hint and matcher.copies(ids[i], ids[j]) for (i, j), hint in zip(ends, copy)], pairs.index, bool)
    nearest = pairs[alike & pairs["strangers"] & ~copy].sort_values("cosine", ascending=False, kind="stable")
    compared = pd.Series(pairs.index.isin(nearest.index[:COMPARED]), pairs.index)
    same = [at and matcher.same(ids[i], ids[j]) for (i, j), at in zip(ends, compared)]
    return pairs.assign(copy=copy, same=pd.Series(same, pairs.index, bool), compared=compared)


def _members(scenes: Sequence) -> list[str]:
    """Name what each scene belongs to: its group, or itself."""
    return [f"group {scene.group}" if scene.group else f"scene {scene.id}" for scene in scenes]


def _look_alikes(scenes: Sequence, fold: np.ndarray, embeddings: Mapping, pairs: pd.DataFrame) -> dict:
    """Report scenes of different folds and groups whose embeddings are alike though no hash says so.

    ``resembling``: all of these. ``compared``: those whose pixels were compared. ``pairs_across_folds``: those of them
    that show the same.
    """
    strangers = pairs[pairs["cosine"].notna() & pairs["strangers"]]
    resembling = strangers[~strangers["copy"] & strangers["leaks"]]
    found = resembling[resembling["same"]].sort_values("cosine", ascending=False, kind="stable")
    embedded = [scene for scene in scenes if len(embeddings.get(scene.id, ()))]
    within = sum(math.comb(n, 2) for n in Counter(_members(embedded)).values())
    compared = math.comb(len(embedded), 2) - within
    return {
        "embedded": len(embedded),
        "min_cosine": LOOK_ALIKE,
        "resembling": len(resembling),
        "compared": int(resembling["compared"].sum()),
        "pairs_across_folds": len(found),
        "share_of_all_pairs": round(len(strangers) / max(compared, 1), 6),
        "examples": [
            {
                "ids": [scenes[p.i].id, scenes[p.j].id],
                "folds": [int(fold[p.i]), int(fold[p.j])],
                "cosine": round(p.cosine, 3),
            }
            for p in found.head(EXAMPLES).itertuples()
        ],
    }


def _groups_alike(scenes: Sequence, pairs: pd.DataFrame) -> dict:
    """Report pairs of groups (or a group and a lone scene) that hold like scenes, in whatever folds, the nearest first.

    One video or person may be listed under two ids. Two lone scenes are no matter of groups.
    """
    names, member = np.unique(_members(scenes), return_inverse=True)
    grouped = np.array([bool(scene.group) for scene in scenes])
    found = pairs[pairs["strangers"] & (grouped[pairs["i"]] | grouped[pairs["j"]]) & (pairs["copy"] | pairs["same"])]
    ends = np.sort(np.column_stack([member[found["i"]], member[found["j"]]]), axis=1)  # (P, 2)
    found = found.assign(a=ends[:, 0], b=ends[:, 1]).sort_values(["bits", "cosine"], ascending=[True, False])
    met = found.assign(alike=found.groupby(["a", "b"])["i"].transform("size")).drop_duplicates(["a", "b"])
    return {
        "pairs": len(met),
        "scene_pairs": len(found),
        "examples": [
            {
                "groups": [str(names[p.a]), str(names[p.b])],
                "scene_pairs": int(p.alike),
                "ids": [scenes[p.i].id, scenes[p.j].id],
                "bits": None if math.isnan(p.bits) else int(p.bits),
                "cosine": None if math.isnan(p.cosine) else round(p.cosine, 3),
            }
            for p in met.head(EXAMPLES).itertuples()
        ],
    }


def _published(scenes: Sequence, published: Mapping[str, str]) -> dict:
    """Tell which groups have scenes in more than one split of the data as shipped."""
    known = [scene for scene in scenes if scene.id in published]
    return _spread([scene.group for scene in known], [published[scene.id] for scene in known])


def _spread(names: Sequence[str], places: Sequence) -> dict:
    """Tell which names have scenes in more than one place (fold or split); "" is no name."""
    lies_in: dict[str, set] = {}
    for name, place in zip(names, places, strict=True):
        if name:
            lies_in.setdefault(name, set()).add(place)
    shared = {name: sorted(lies_in[name]) for name in sorted(lies_in) if len(lies_in[name]) > 1}
    return {"count": len(lies_in), "shared": len(shared), "examples": dict(list(shared.items())[:EXAMPLES])}


# ---- in words -------------------------------------------------------------------------------------------------------
def lines(report: Mapping) -> list[str]:
    """Put an audit's report into sentences, the gravest first."""
    said = [*_about_flags(report), *_about_groups(report), *_about_twins(report), *_about_places(report)]
    return said or ["nothing to remark"]


def _about_flags(report: Mapping) -> Iterator[str]:
    everywhere: dict[str, list[int]] = {
        flag: [] for row in report["folds"].values() for flag in row if flag != "scenes"
    }
    for gap in report["absent"]:
        everywhere[gap["flag"]].append(gap["fold"])
    for flag, gaps in everywhere.items():
        if len(gaps) == len(report["folds"]):
            yield f'no scene at all has "{flag}": nothing about such scenes can be learned or scored'
            continue
        for k in gaps:
            yield (
                f'fold {k} holds no scene with "{flag}": it tells nothing about those, and a mean over classes '
                "takes a missing class as 0"
            )


def _about_groups(report: Mapping) -> Iterator[str]:
    real, kept, shipped = report["scene_groups"], report["groups"], report["published"]
    if real and real["shared"]:
        yield (
            f"{real['shared']} of {real['count']} groups have scenes in more than one fold "
            f"({_first(real, 'in folds')}): scores tell little about a new group (scheme group keeps groups whole)"
        )
    if kept and kept["shared"] and (real is None or kept["examples"] != real["examples"]):
        yield (
            f"{kept['shared']} of {kept['count']} units that the scheme keeps whole have scenes in more than one fold "
            f"({_first(kept, 'in folds')})"
        )
    if shipped and shipped["shared"]:
        yield (
            f"{shipped['shared']} of {shipped['count']} groups lie in more than one split of the data as shipped "
            f"({_first(shipped, 'in')}): scores on that split tell little about a new group"
        )


def _about_twins(report: Mapping) -> Iterator[str]:
    copies, alike, groups = report["near_duplicates"], report["look_alikes"], report["groups_alike"]
    if copies["pairs_across_folds"]:
        yield (
            f"{copies['pairs_across_folds']} pairs of near-duplicate images lie in different folds, "
            f"such as {_both(copies['examples'][0])}: one is scored by networks that were trained on the other"
        )
    if groups and groups["pairs"]:
        best = groups["examples"][0]
        yield (
            f"{groups['pairs']} pairs of groups may each be one under two names "
            f"({groups['scene_pairs']} pairs of their scenes are alike), such as {' and '.join(best['groups'])} "
            f"({_both(best)}: {_how_near(best)})"
        )
    if alike and alike["pairs_across_folds"]:
        best = alike["examples"][0]
        yield (
            f"{alike['pairs_across_folds']} further pairs of scenes in different folds look alike, such as "
            f"{_both(best)} ({_how_near(best)}): scores tell little about a new place, video or person"
        )
        if alike["share_of_all_pairs"] > ONE_KIND and alike["pairs_across_folds"] >= FEW:
            yield (
                f"{alike['share_of_all_pairs']:.1%} of all pairs look alike: the images may only be of one kind, "
                "so look at the examples in the audit's file"
            )
    if alike and (unlike := alike["resembling"] - alike["pairs_across_folds"]):
        rest = alike["resembling"] - alike["compared"]
        yield (
            f"{unlike} pairs of scenes in different folds resemble each other to a network, but "
            + (f"the pixels of the nearest {alike['compared']} were compared and " if rest else "")
            + "their pixels do not match: pictures of one kind, as it seems"
        )
    flat = report["flat_images"]
    if flat["count"]:
        yield f"{flat['count']} images show nothing, or nearly so, and were not compared, such as {flat['examples'][0]}"


def _about_places(report: Mapping) -> Iterator[str]:
    near, domains = report["neighbours"], report["domains"]
    if near["pairs_across_folds"]:
        yield (
            f"{near['scenes_with_neighbour_in_other_fold']} of {near['located']} located scenes have a neighbour "
            f"within {near['max_km']:g} km in another fold: scores tell little about a new place "
            "(scheme block measures that)"
        )
    if 0 < near["located"] < report["scenes"]:
        yield f"{report['scenes'] - near['located']} scenes have no position; their neighbours are not known"
    if domains["shared"]:
        yield (
            f"{domains['shared']} of {domains['count']} domains have scenes in more than one fold: scores tell little "
            "about a new one (scheme event measures that)"
        )


def _first(spread: Mapping, where: str) -> str:
    name, lies_in = next(iter(spread["examples"].items()))
    *others, last = map(str, lies_in)
    return f"{name} {where} {', '.join(others)} and {last}"


def _both(example: Mapping) -> str:
    return " and ".join(example["ids"])


def _how_near(example: Mapping) -> str:
    """Say by what two scenes are alike: the cosine, where embeddings were compared, or else the bits."""
    if example["cosine"] is not None:
        return f"similarity {example['cosine']:.2f}"
    return f"hashes {example['bits']} bits apart"
