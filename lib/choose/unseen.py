"""Decide on settings for domains that no labelled scene shows, by leaving out one domain after the other.

A threshold that fits the known organs or sources may be far off on a new one; a setting such as ``threshold: otsu``
looks at the scene itself. It is kept for unseen domains only where it scores higher on domains that are held out.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lib.choose.choice import Choice, Chosen
from lib.choose.evidence import OutOfFold, OutOfFoldScene, settings_to_try
from lib.ensemble import search as searching
from lib.run.cli import say


def add_unseen_settings(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Add ``search.unseen`` to the choice if held-out domains score higher with it.

    Each domain is decoded with the settings that all other domains choose, and with what ``search.unseen`` replaces in
    them; weights and variant are those of the choice. A choice without a fold takes the same settings for the domains
    that only this fold shows.
    """
    competition, search, choice = scenes.competition, scenes.search, chosen.choice
    grid = settings_to_try(scenes.run, chosen.fixed)
    tables = chosen.by_domain or _count_domains(scenes, choice, grid)
    if len(tables) < 2:
        say("  one domain only: what settings for an unseen one are worth cannot be told, none are used")
        return chosen
    everything, stated = searching.total(tables.values()), dict(search.unseen)
    points = {
        domain: searching.choose(everything - own, competition.score, grid.shape, search.plateau)
        for domain, own in tables.items()
    }
    common = {domain: replace(choice, params={**grid[point], **stated}) for domain, point in points.items()}
    (replaced,) = scenes.added("unseen domains", tally_by_domain, common).values()
    scores = {
        "common_settings": float(
            competition.score(searching.total(table[points[domain]] for domain, table in tables.items()))
        ),
        "stated_settings": float(competition.score(replaced)),
    }
    kept = scores["stated_settings"] > scores["common_settings"]
    say("  domains held out one by one score {common_settings:.4f} with the others' settings, {stated_settings:.4f} "
        "with those of search.unseen, which are {}kept".format("" if kept else "not ", **scores))  # fmt: skip
    notes = {"unseen_domains": {**scores, "settings": stated, "kept": kept}}
    if not kept:
        return chosen.settle(chosen.every(), notes)

    def with_unseen(own: Choice, left_out: int | None) -> Choice:
        seen = {scene.domain for scene in scenes.scenes if scenes.fold_of[scene.id] != left_out}
        return own.change(seen=sorted(seen), unseen=stated)

    return chosen.settle({fold: with_unseen(own, fold) for fold, own in chosen.every().items()}, notes)


def _count_domains(scenes: OutOfFold, choice: Choice, grid: searching.Lattice) -> Mapping[str, np.ndarray]:
    """Count the grid under a choice's weights and variant: domain -> (P, K)."""
    return scenes.added("domains", count_domain, choice, grid)


def count_domain(item: OutOfFoldScene, choice: Choice, grid: searching.Lattice) -> dict[str, np.ndarray]:
    """Count one scene for a grid under a choice's weights and variant, by its domain."""
    return {item.scene.domain: item.count(choice.weights, choice.variant, grid)}


def tally_by_domain(item: OutOfFoldScene, choices: Mapping[str, Choice]) -> dict[str, np.ndarray]:
    """Tally one scene with the choice of its domain; all scenes have one key."""
    return {"": item.tally(choices[item.scene.domain])}
