"""Stage 05: choose weights and decode settings on out-of-fold scenes, and say what to expect of them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.choose import medians as stability
from lib.choose import plans, unseen
from lib.choose.evidence import DECODE, Parts, Variant, Weights, candidates, parts, stated, usual, variants
from lib.choose.temperatures import temperatures_of
from lib.competitions.contract import Grid, Scene, settings_for
from lib.config.sections import Search
from lib.ensemble import search as searching
from lib.ensemble import selection
from lib.errors import DataError
from lib.files import write_json
from lib.run.cli import Run, say

Source = Callable[[], Iterator[tuple[Scene, Parts]]]
"""Gives one pass over the out-of-fold scenes."""

MIN_SCENES = 2
"""A domain with fewer out-of-fold scenes to choose on takes the settings of all."""


@dataclass(frozen=True)
class Choice:
    """How scenes are turned into answers: weights of the models, decode settings (also per domain)."""

    weights: Weights
    params: Mapping[str, Any]
    variant: Variant

    def answer(self, run: Run, scene: Scene, found: Parts) -> Any:
        """Average and decode one scene."""
        return run.competition.decode(found.average(self.weights, self.variant), settings_for(scene, self.params))

    def tally(self, run: Run, scene: Scene, found: Parts) -> np.ndarray:
        """Count one scene's answer."""
        return run.competition.tally(self.answer(run, scene, found), run.competition.truth(scene))

    def said(self) -> dict[str, Any]:
        """Return the choice as decode.json has it."""
        return {"params": self.params, "weights": self.weights, "tta": self.variant.tta, "crf": self.variant.crf}

    def with_steps(self, steps: Sequence[Mapping[str, Any]]) -> "Choice":
        """Return the same choice with a chain of post-processing steps."""
        return replace(self, params={**self.params, "postprocess": [dict(step) for step in steps]})


def fit_decode(run: Run, folder: Path) -> dict[str, Any]:
    """Choose weights and decode settings on out-of-fold scenes and write decode.json; returns what it holds."""
    table = run.folds()
    fold_of = dict(zip(table["id"], table["fold"], strict=True))
    temperatures, result = temperatures_of(run, fold_of) if run.config.blend.calibrate else ({}, {})
    source = partial(parts, run, "oof", temperatures)
    weights = candidates(run)
    fixed = Choice(stated(run), {**run.competition.defaults(), **run.config.decode}, usual(run))
    choice, without = fixed, {}
    if run.config.blend.select:
        choice, without, found = _greedy(run, source, fold_of, fixed)
        result |= found
    elif run.config.search or len(weights) * len(variants(run)) > 1:
        choice, without, found = _search(run, source, fold_of, weights, fixed, variants(run))
        result |= found
    search = run.config.search
    if search and search.choose == "median" and without:
        choice, without, found = stability.median(run, source, fold_of, choice, without)
        result |= {"expected_with_flattest_best": result.get("expected_score")} | found
    if search and search.unseen:
        choice, found = unseen.settle(run, source, choice, _grid(run, fixed))
        result |= found
    if search and search.postprocess:
        choice, found = _postprocess(run, source, fold_of, choice, without)
        result |= found
    result |= _outcome(run, source, fold_of, choice)
    result["plans"] = plans.judge(run, source, choice, result["scenes"])
    groups = sorted({int(k) for k in result["per_fold"]})
    result["coverage"] = f"{result['scenes']} of {len(table)} scenes, folds {_span(groups)}"
    result = {**choice.said(), "temperatures": temperatures, **result}
    write_json(folder / DECODE, result)
    return result


def _grid(run: Run, fixed: Choice) -> Grid:
    """Return the lattice of settings that is searched around the fixed ones; a single point without a search."""
    common = {name: value for name, value in fixed.params.items() if name != "per_domain"}
    return run.competition.grid(run.config.search.axes if run.config.search else {}, common)


def _greedy(run: Run, source: Source, fold_of: Mapping[str, int], fixed: Choice):
    """Select the models' weights greedily, the settings chosen with them; returns as ``_search``."""
    competition, search = run.competition, run.config.search or Search(axes={})
    grid = _grid(run, fixed)
    baseline = 0

    def evaluate(lists: Sequence[Weights]) -> list[dict[int, np.ndarray]]:
        tables: list[dict[int, np.ndarray]] = [{} for _ in lists]
        for scene, found in tqdm(source(), "greedy selection", leave=False, disable=None):
            truth, fold = competition.truth(scene), fold_of[scene.id]
            for table, weights in zip(tables, lists, strict=True):
                counts = competition.count(found.average(weights, fixed.variant), truth, grid)
                table[fold] = table[fold] + counts if fold in table else counts
        return tables

    for scene, found in source():
        baseline = baseline + fixed.tally(run, scene, found)
    tasks = dict.fromkeys(model.task for model in run.config.models.values())
    groups = [list(run.graph.models(task)) for task in tasks]
    found = selection.greedy(groups, evaluate, competition.score, run.config.blend.rounds, grid.shape, search.plateau)
    best = Choice(found.weights, dict(grid.points[found.point]), fixed.variant)
    without = {k: Choice(w, dict(grid.points[point]), fixed.variant) for k, (w, point) in found.without.items()}
    base = float(competition.score(baseline))
    return best, without, {
        "points": found.evaluated * len(grid.points), "score_without_search": base, "searched_score": found.in_sample,
        "expected_score": found.expected, "expected_with_equal_weights": found.equal,
        "greedy_path": [{"weights": dict(weights), "score": score} for weights, score in found.path],
        "chosen_without_fold": {str(k): c.said() for k, c in without.items()},
    }  # fmt: skip


def _search(run: Run, source: Source, fold_of: Mapping[str, int], weights: Sequence[Weights], fixed: Choice,
            variants: Sequence[Variant]):  # fmt: skip
    """Count all points of the grid under all variants and weights in one pass over the scenes, choose, cross-validate.

    Returns (the choice, fold -> the choice without that fold, what decode.json says of it).
    """
    competition, search = run.competition, run.config.search or Search(axes={})
    grid = _grid(run, fixed)
    shape = (len(weights), *grid.shape)
    counts: dict[tuple[int, str], np.ndarray] = {}  # (fold, domain) -> (weights x points, K)
    baseline: dict[int, np.ndarray] = {}
    scenes_in: Counter[tuple[int, str]] = Counter()
    for scene, found in tqdm(source(), "search", leave=False, disable=None):
        truth, key = competition.truth(scene), (fold_of[scene.id], scene.domain if search.per_domain else "")
        table = np.concatenate(
            [competition.count(found.average(w, variant), truth, grid) for variant in variants for w in weights]
        )
        counts[key] = counts[key] + table if key in counts else table
        baseline[key[0]] = baseline.get(key[0], 0) + fixed.tally(run, scene, found)
        scenes_in[key] += 1
    if not counts:
        raise DataError("no out-of-fold scene has been predicted; run stage 04 with --split oof")

    def choice(point: int) -> Choice:
        place, inner = divmod(point, len(grid.points))
        variant, which = divmod(place, len(weights))
        return Choice(weights[which], dict(grid.points[inner]), variants[variant])

    def pick(table: np.ndarray) -> int:
        return searching.choose_variant(
            table, len(variants), competition.score, competition.class_scores, shape, search.plateau
        )

    by_fold = searching.merge(counts, lambda key: key[0])
    said = {"points": len(variants) * len(weights) * len(grid.points)}
    if len(by_fold) < 2:
        total = next(iter(by_fold.values()))
        say("  one fold only: the gain of the search on unseen scenes cannot be estimated")
        best = choice(pick(total))
        base = float(competition.score(sum(baseline.values())))
        return best, {}, said | {"score_without_search": base, "expected_score": None}
    nested = searching.nested(by_fold, competition.score, shape, search.plateau, baseline, pick)
    said["score_without_search"] = nested.baseline
    if nested.in_sample <= nested.baseline:
        say("  the search found nothing better than the fixed settings, which are kept; do its axes hold them?")
        return fixed, {}, said | {"expected_score": nested.baseline}
    best, without = choice(nested.point), {k: choice(point) for k, point in nested.chosen.items()}
    said |= {"searched_score": nested.in_sample, "expected_score": nested.expected, "expected_gain": nested.gain}
    if search.per_domain:
        inner = (grid.shape, search.plateau, len(grid.points))
        apart = _per_domain(competition, counts, scenes_in, nested, inner)
        said["expected_score_per_domain"] = apart.expected
        if apart.expected > nested.expected:
            said |= {"expected_score": apart.expected, "expected_gain": apart.expected - nested.baseline}
            best = _for_domains(best, apart.points, choice)
            without = {k: _for_domains(without[k], points, choice) for k, points in apart.without.items()}
        else:
            say(f"  all domains keep the same settings: expected {nested.expected:.4f}, apart {apart.expected:.4f}")
    said["chosen_without_fold"] = {str(k): c.said() for k, c in without.items()}
    return best, without, said


@dataclass(frozen=True)
class _Apart:
    """Settings chosen for each domain: on all folds (``points``), and without each fold."""

    points: Mapping[str, int]
    without: Mapping[int, Mapping[str, int]]
    expected: float


def _per_domain(competition, counts, scenes_in: Mapping, nested: searching.Nested, inner: tuple) -> _Apart:
    """Choose a point per domain under the weights that all domains share; nested as in ``_search``.

    counts, scenes_in: (fold, domain) -> its table, its number of scenes. A domain with fewer than MIN_SCENES scenes to
    choose on takes the common point.
    """
    shape, plateau, size = inner
    domains = sorted({domain for _, domain in counts})

    def choose(domain: str, common: int, left_out: int | None) -> int:
        keys = [key for key in counts if key[1] == domain and key[0] != left_out]
        if sum(scenes_in[key] for key in keys) < MIN_SCENES:
            return common
        first = common // size * size  # the first point under the common variant and weights
        table = sum(counts[key][first : first + size] for key in keys)
        return first + searching.choose(table, competition.score, shape, plateau)

    without = {k: {d: choose(d, point, k) for d in domains} for k, point in nested.chosen.items()}
    held_out = sum(table[without[k][domain]] for (k, domain), table in counts.items())
    points = {domain: choose(domain, nested.point, None) for domain in domains}
    return _Apart(points, without, float(competition.score(held_out)))


def _for_domains(common: Choice, points: Mapping[str, int], choice: Callable[[int], Choice]) -> Choice:
    """Add to a choice the settings in which each domain differs from it."""
    apart = {}
    for domain, point in points.items():
        own = choice(point).params
        if differing := {name: value for name, value in own.items() if value != common.params[name]}:
            apart[domain] = differing
    return replace(common, params={**common.params, "per_domain": apart}) if apart else common


def _postprocess(run: Run, source: Source, fold_of: Mapping[str, int], choice: Choice, without: Mapping[int, Choice]):
    """Try each chain of steps; keep the best that is accepted. Each held-out fold repeats the choice without itself.

    Returns (the choice with its steps, what decode.json says of it).
    """
    competition = run.competition
    chains = [(), *run.config.search.postprocess]
    full = [0] * len(chains)
    # held[k][j][c]: counts of fold j's scenes under the settings chosen without fold k and chain c
    held = {k: {j: [0] * len(chains) for j in without} for k in without}
    for scene, found in tqdm(source(), "post-processing", leave=False, disable=None):
        fold = fold_of[scene.id]
        known: dict[str, list[np.ndarray]] = {}  # folds often choose the same settings
        for some, sums in [(choice, full), *((without[k], held[k][fold]) for k in without)]:
            if repr(some) not in known:
                known[repr(some)] = [some.with_steps(chain).tally(run, scene, found) for chain in chains]
            sums[:] = [total + counts for total, counts in zip(sums, known[repr(some)])]
    kept = _best_chain(competition, full)
    result: dict[str, Any] = {
        "postprocess_tried": [
            {"steps": [dict(s) for s in chain], "score": float(competition.score(counts)),
             "accepted": c > 0 and searching.accept(full[0], counts, competition.score, competition.class_scores)}
            for c, (chain, counts) in enumerate(zip(chains, full, strict=True))
        ],
    }  # fmt: skip
    if without:
        honest = 0
        for k, by_fold in held.items():
            rest = [sum(by_fold[j][c] for j in by_fold if j != k) for c in range(len(chains))]
            honest = honest + by_fold[k][_best_chain(competition, rest)]
        result["expected_score"] = float(competition.score(honest))
    return choice.with_steps(chains[kept]), result


def _best_chain(competition, counts: list[np.ndarray]) -> int:
    """Return the accepted chain with the highest score, 0 (no post-processing) where none is accepted."""
    accepted = [
        c for c in range(1, len(counts))
        if searching.accept(counts[0], counts[c], competition.score, competition.class_scores)
    ]  # fmt: skip
    return max(accepted, key=lambda c: float(competition.score(counts[c])), default=0)


def _outcome(run: Run, source: Source, fold_of: Mapping[str, int], choice: Choice) -> dict[str, Any]:
    """Decode every out-of-fold scene with the final settings; score them in all, per fold and per domain."""
    competition = run.competition
    tallies, domains, own_folds, details = [], [], [], []
    for scene, found in tqdm(source(), "score", leave=False, disable=None):
        answer, truth = choice.answer(run, scene, found), competition.truth(scene)
        tallies.append(competition.tally(answer, truth))
        details.append(competition.detail(answer, truth))
        domains.append(scene.domain)
        own_folds.append(str(fold_of[scene.id]))
    if not tallies:
        raise DataError("no out-of-fold scene has been predicted; run stage 04 with --split oof")
    counts = np.stack(tallies)  # (S, K)
    return {
        "scenes": len(counts),
        "scores": competition.scores(counts.sum(0)),
        "interval95": list(searching.bootstrap(counts, competition.score, seed=run.config.seed)),
        "per_domain": _by(competition, counts, domains),
        "per_fold": _by(competition, counts, own_folds),
        "tables": competition.tables(np.sum(details, 0)),
    }


def _by(competition, counts: np.ndarray, keys: list[str]) -> dict[str, Any]:
    named = np.asarray(keys)
    return {
        key: {"scenes": int((named == key).sum()), **competition.scores(counts[named == key].sum(0))}
        for key in sorted(set(keys))
    }


def _span(numbers: list[int]) -> str:
    whole = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if whole else ", ".join(map(str, numbers))
