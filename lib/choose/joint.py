"""Choose weights, views, CRF and decode settings together, and settings for each domain, on counts of all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib.choose.choice import Choice, Chosen, Variant, Weights
from lib.choose.evidence import OutOfFold, OutOfFoldScene, settings_to_try, variants, weights_to_try
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
    grid: searching.Lattice

    def __len__(self) -> int:
        return len(self.variants) * len(self.weights) * len(self.grid)

    def __getitem__(self, point: int) -> Choice:
        """Return the choice that a point stands for."""
        average, settings = divmod(point, len(self.grid))
        variant, weights = divmod(average, len(self.weights))
        return Choice(self.weights[weights], self.grid[settings], self.variants[variant])

    def count(self, item: OutOfFoldScene) -> np.ndarray:
        """Count one scene for all points: (P, K) int64."""
        return np.concatenate([item.count(w, variant, self.grid) for variant in self.variants for w in self.weights])

    def rows(self, choice: Choice) -> slice | None:
        """Return the points under a choice's weights and variant; None where they are not among the candidates."""
        if choice.weights not in self.weights or choice.variant not in self.variants:
            return None
        average = self.variants.index(choice.variant) * len(self.weights) + self.weights.index(choice.weights)
        return slice(average * len(self.grid), (average + 1) * len(self.grid))


COUNTED, FIXED = "counted", "fixed"


def count(
    item: OutOfFoldScene, candidates: Candidates, fixed: Choice, apart: bool
) -> dict[tuple[str, Any], np.ndarray]:
    """Count one scene for all candidates, by its place, and for the fixed choice, by its fold.

    apart: whether domains are told apart.
    """
    place = item.fold, item.scene.domain if apart else ""
    return {(COUNTED, place): candidates.count(item), (FIXED, item.fold): item.tally(fixed)}


def choose_jointly(scenes: OutOfFold, chosen: Chosen) -> Chosen:
    """Search the weights, variants and settings that the experiment allows."""
    config, grid = scenes.run.config, settings_to_try(scenes.run, chosen.fixed)
    return choose_among(scenes, chosen, Candidates(variants(config), weights_to_try(config), grid))


def choose_among(scenes: OutOfFold, chosen: Chosen, candidates: Candidates) -> Chosen:
    """Count all candidates in one pass over the scenes, choose one, and one without each fold.

    The fixed settings are kept where no candidate scores higher, also by each choice without a fold.
    """
    competition, search = scenes.competition, scenes.search
    apart = search.per_domain or bool(search.unseen)
    found = scenes.added("search", count, candidates, chosen.fixed, apart)
    counts = {place: table for (what, place), table in found.items() if what == COUNTED}  # -> (P, K)
    baseline = {fold: table for (what, fold), table in found.items() if what == FIXED}
    scenes_in = Counter((scenes.fold_of[one.id], one.domain if apart else "") for one in scenes.scenes)

    def pick(table: np.ndarray) -> int:
        shape = (len(candidates.weights), *candidates.grid.shape)
        return searching.choose_variant(
            table, len(candidates.variants), competition.score, competition.class_scores, shape, search.plateau
        )

    without_search = float(competition.score(searching.total(baseline.values())))
    notes: dict[str, Any] = {"points": len(candidates), "score_without_search": without_search}
    by_fold = searching.merge(counts, lambda place: place[0])
    every: dict[int | None, Choice]
    if len(by_fold) < 2:
        say("  one fold only: the gain of the search on unseen scenes cannot be estimated")
        every = {None: candidates[pick(searching.total(by_fold.values()))]}
    else:
        nested = searching.nested(by_fold, competition.score, pick, baseline)
        points: dict[int | None, int | None] = {None: nested.point} | {k: point for k, point in nested.chosen.items()}
        every = {k: chosen.fixed if point is None else candidates[point] for k, point in points.items()}
        if nested.point is None:
            say("  the search found nothing better than the fixed settings, which are kept; do its axes hold them?")
        else:
            notes["searched_score"] = nested.in_sample
            if search.per_domain:
                domains = _Domains(scenes, candidates, counts, scenes_in)
                expected = domains.expected(nested.chosen, baseline)
                notes["expected_score_per_domain"] = expected
                if expected > nested.expected:
                    every |= {k: domains.choice(point, k) for k, point in points.items() if point is not None}
                else:
                    say(f"  all domains keep the same settings: expected {nested.expected:.4f}, apart {expected:.4f}")
            notes["chosen_without_fold"] = {str(k): own.to_json() for k, own in every.items() if k is not None}
    settled = chosen.settle(every, notes)
    if rows := candidates.rows(settled.choice):  # a later step may need what was counted under this average
        own = {place: table[rows] for place, table in counts.items()}
        by_domain = searching.merge(own, lambda place: place[1])
        settled = replace(settled, by_domain=by_domain,
                          counted=(candidates.grid, searching.total(by_domain.values())))  # fmt: skip
    return settled


@dataclass(frozen=True)
class _Domains:
    """Settings chosen for each domain under the weights and the variant that all domains share."""

    scenes: OutOfFold
    candidates: Candidates
    counts: Mapping[Place, np.ndarray]
    scenes_in: Mapping[Place, int]

    def point(self, domain: str, common: int, left_out: int | None) -> int:
        """Return the point of a domain, chosen without a fold; the common one where fewer than MIN_SCENES are left."""
        places = [place for place in self.counts if place[1] == domain and place[0] != left_out]
        if sum(self.scenes_in[place] for place in places) < MIN_SCENES:
            return common
        grid = self.candidates.grid
        first = common // len(grid) * len(grid)  # the first point under the common weights and variant
        table = searching.total(self.counts[place][first : first + len(grid)] for place in places)
        return first + searching.choose(table, self.scenes.competition.score, grid.shape, self.scenes.search.plateau)

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
        held_out = [baseline[fold] for fold, common in chosen.items() if common is None]
        for (fold, domain), table in self.counts.items():
            if (common := chosen[fold]) is not None:
                held_out.append(table[self.point(domain, common, fold)])
        return float(self.scenes.competition.score(searching.total(held_out)))
