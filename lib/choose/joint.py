"""Choose weights, views, CRF and decode settings together, and settings for each domain, on counts of all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lib.choose.choice import Choice, Chosen, Variant, Weights
from lib.choose.evidence import (
    OutOfFold,
    OutOfFoldScene,
    settings_to_try,
    variants,
    weights_to_try,
)
from lib.competitions.contract import Grid
from lib.ensemble import search as searching
from lib.run.cli import say

MIN_SCENES = 2
"""A domain with fewer out-of-fold scenes to choose on takes the settings of all."""

Place = tuple[int, str]
"""Fold and domain; the domain is "" where domains are not told apart."""


@dataclass(frozen=True)
class Candidates:
    """All that the joint search compares; a point of its tables is a variant, weights and settings, in this order."""

    variants: Sequence[Variant]
    weights: Sequence[Weights]
    grid: Grid

    def __len__(self) -> int:
        return len(self.variants) * len(self.weights) * len(self.grid.points)

    def __getitem__(self, point: int) -> Choice:
        """Return the choice that a point stands for."""
        average, settings = divmod(point, len(self.grid.points))
        variant, weights = divmod(average, len(self.weights))
        return Choice(self.weights[weights], dict(self.grid.points[settings]), self.variants[variant])

    def count(self, item: OutOfFoldScene) -> np.ndarray:
        """Count one scene for all points: (P, K) int64."""
        return np.concatenate([item.count(w, variant, self.grid) for variant in self.variants for w in self.weights])

    def rows(self, choice: Choice) -> slice | None:
        """Return the points under a choice's weights and variant; None where they are not among the candidates."""
        if choice.weights not in self.weights or choice.variant not in self.variants:
            return None
        average = self.variants.index(choice.variant) * len(self.weights) + self.weights.index(choice.weights)
        return slice(average * len(self.grid.points), (average + 1) * len(self.grid.points))


def choose_jointly(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Search the weights, variants and settings that the experiment allows."""
    config = scenes.run.config
    return choose_among(
        scenes,
        chosen,
        Candidates(variants(config), weights_to_try(config), settings_to_try(scenes.run, chosen.fixed)),
    )


def choose_among(scenes: OutOfFold, chosen: Chosen, candidates: Candidates) -> Chosen:
    """Count all candidates in one pass over the scenes, choose one, and one without each fold.

    The fixed settings are kept where no candidate scores higher, also by each choice without a fold.
    """
    competition, search = scenes.competition, scenes.search
    counts: dict[Place, np.ndarray] = {}  # -> (P, K)
    baseline: dict[int, np.ndarray] = {}
    scenes_in: Counter[Place] = Counter()
    for item in scenes.each("search"):
        place = item.fold, item.scene.domain if search.per_domain or search.unseen else ""
        table = candidates.count(item)
        counts[place] = counts[place] + table if place in counts else table
        baseline[item.fold] = baseline.get(item.fold, 0) + item.tally(chosen.fixed)
        scenes_in[place] += 1

    def pick(table: np.ndarray) -> int:
        shape = (len(candidates.weights), *candidates.grid.shape)
        return searching.choose_variant(
            table, len(candidates.variants), competition.score, competition.class_scores, shape, search.plateau
        )

    def choice(point: int | None) -> Choice:
        return chosen.fixed if point is None else candidates[point]

    without_search = float(competition.score(sum(baseline.values())))
    notes = {**chosen.notes, "points": len(candidates), "score_without_search": without_search}
    by_fold = searching.merge(counts, lambda place: place[0])
    if len(by_fold) < 2:
        say("  one fold only: the gain of the search on unseen scenes cannot be estimated")
        (total,) = by_fold.values()
        return _with_domains(replace(chosen, choice=candidates[pick(total)], notes=notes), candidates, counts)
    nested = searching.nested(by_fold, competition.score, pick, baseline)
    found = replace(chosen, choice=choice(nested.point), without={k: choice(p) for k, p in nested.chosen.items()})
    if nested.point is None:
        say("  the search found nothing better than the fixed settings, which are kept; do its axes hold them?")
        return _with_domains(replace(found, notes=notes), candidates, counts)
    notes["searched_score"] = nested.in_sample
    if search.per_domain:
        apart = _Domains(scenes, candidates, counts, scenes_in)
        expected = apart.expected(nested.chosen, baseline)
        notes["expected_score_per_domain"] = expected
        if expected > nested.expected:
            without = {k: found.fixed if p is None else apart.choice(p, k) for k, p in nested.chosen.items()}
            found = replace(found, choice=apart.choice(nested.point), without=without)
        else:
            say(f"  all domains keep the same settings: expected {nested.expected:.4f}, apart {expected:.4f}")
    notes["chosen_without_fold"] = {str(k): own.to_json() for k, own in found.without.items()}
    return _with_domains(replace(found, notes=notes), candidates, counts)


def _with_domains(found: Chosen, candidates: Candidates, counts: Mapping[Place, np.ndarray]) -> Chosen:
    """Keep what was counted for each domain under the chosen weights and variant; a later step may need it."""
    rows = candidates.rows(found.choice)
    if rows is None:
        return found
    own = {place: table[rows] for place, table in counts.items()}
    return replace(found, by_domain=searching.merge(own, lambda place: place[1]))


class _Domains:
    """Settings chosen for each domain under the weights and the variant that all domains share."""

    def __init__(
        self,
        scenes: OutOfFold,
        candidates: Candidates,
        counts: Mapping[Place, np.ndarray],
        scenes_in: Mapping[Place, int],
    ):
        """counts, scenes_in: (fold, domain) -> its table, its number of scenes."""
        self.score, self.plateau = scenes.competition.score, scenes.search.plateau
        self.candidates, self.counts, self.scenes_in = candidates, counts, scenes_in

    def point(self, domain: str, common: int, left_out: int | None) -> int:
        """Return the point of a domain, chosen without a fold; the common one where fewer than MIN_SCENES are left."""
        places = [place for place in self.counts if place[1] == domain and place[0] != left_out]
        if sum(self.scenes_in[place] for place in places) < MIN_SCENES:
            return common
        grid = self.candidates.grid
        first = common // len(grid.points) * len(grid.points)  # the first point under the common weights and variant
        table = sum(self.counts[place][first : first + len(grid.points)] for place in places)
        return first + searching.choose(table, self.score, grid.shape, self.plateau)

    def choice(self, common: int, left_out: int | None = None) -> Choice:
        """Return the common choice with the settings in which each domain differs from it."""
        choice, apart = self.candidates[common], {}
        for domain in sorted({domain for _, domain in self.counts}):
            own = self.candidates[self.point(domain, common, left_out)].params
            if differing := {name: value for name, value in own.items() if value != choice.params[name]}:
                apart[domain] = differing
        return choice.change(per_domain=apart) if apart else choice

    def expected(self, chosen: Mapping[int, int | None], baseline: Mapping[int, np.ndarray]) -> float:
        """Return the score of each fold with the settings per domain that the other folds choose.

        chosen: fold -> common point without it, or None for the fixed settings; baseline: fold -> counts of these.
        """
        held_out = sum(
            table[self.point(domain, chosen[fold], fold)]
            for (fold, domain), table in self.counts.items()
            if chosen[fold] is not None
        )
        return float(self.score(held_out + sum(baseline[fold] for fold, point in chosen.items() if point is None)))
