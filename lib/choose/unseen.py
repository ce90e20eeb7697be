"""Stage 05: settings for a domain that no labelled scene shows, judged by leaving out one domain after the other.

A threshold that fits the known organs or sources may be far off on a new one; a setting such as ``threshold: otsu``
looks at the scene itself. It is kept for unseen domains only where it scores higher on domains that are held out.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from lib.choose.evidence import Parts
from lib.competitions.contract import Scene
from lib.ensemble import search as searching
from lib.run.cli import Run, say


def settle(run: Run, source: Callable[[], Iterator[tuple[Scene, Parts]]], choice, grid) -> tuple[Any, dict[str, Any]]:
    """Add ``search.unseen`` to a choice if held-out domains score higher with it.

    Each domain is decoded with the settings that all other domains choose on the ``grid`` (a single point where nothing
    is searched), with and without what ``search.unseen`` replaces; weights and variant are those of the choice. Returns
    (the choice, what decode.json says).
    """
    competition, search = run.competition, run.config.search
    counts: dict[str, Any] = {}
    for scene, found in tqdm(source(), "unseen domains", leave=False, disable=None):
        table = competition.count(found.average(choice.weights, choice.variant), competition.truth(scene), grid)
        counts[scene.domain] = counts[scene.domain] + table if scene.domain in counts else table
    if len(counts) < 2:
        say("  one domain only: what settings for an unseen one are worth cannot be told, none are used")
        return choice, {}
    everything, stated = sum(counts.values()), dict(search.unseen)
    common: dict[str, dict[str, Any]] = {}
    for domain, own in counts.items():
        point = searching.choose(everything - own, competition.score, grid.shape, search.plateau)
        common[domain] = dict(grid.points[point])
    plain, replaced = 0, 0
    for scene, found in tqdm(source(), "unseen domains, held out", leave=False, disable=None):
        for_all = replace(choice, params=common[scene.domain])
        plain = plain + for_all.tally(run, scene, found)
        replaced = replaced + replace(choice, params={**common[scene.domain], **stated}).tally(run, scene, found)
    scores = {"common_settings": float(competition.score(plain)), "stated_settings": float(competition.score(replaced))}
    kept = scores["stated_settings"] > scores["common_settings"]
    said = {"unseen_domains": {**scores, "settings": stated, "kept": kept}}
    say("  domains held out one by one score {common_settings:.4f} with the others' settings, {stated_settings:.4f} "
        "with those of search.unseen, which are {}kept".format("" if kept else "not ", **scores))  # fmt: skip
    if not kept:
        return choice, said
    return replace(choice, params={**choice.params, "seen": sorted(counts), "unseen": stated}), said
