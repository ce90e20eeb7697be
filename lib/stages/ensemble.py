"""Stage 05: average the probabilities, choose the decode settings on out-of-fold scenes, say what to expect of them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.competitions.contract import Levels, Scene
from lib.ensemble import blend as blending
from lib.ensemble import search as searching
from lib.errors import ArtifactError, DataError
from lib.run.artifacts import Unit, write_json
from lib.run.cli import Run, say
from lib.scenes.probs import file_name, read_levels, write_levels
from lib.stages import folds

DECODE = "decode.json"


# ---- blend --------------------------------------------------------------------------------------------
def blend(run: Run, split: str, folder: Path) -> int:
    """Write the average over models and folds for every scene of a split; returns the number of scenes."""
    sources = members(run, split)
    scenes = [scene for scene in run.scenes("train" if split == "oof" else "test") if scene.id in sources]
    for scene in tqdm(scenes, f"blend {split}", leave=False, disable=None):
        for task, parts in sources[scene.id].items():
            path = folder / task / file_name(scene.id)
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # files of an interrupted run are whole
                continue
            levels, weights, names = [], [], None
            for source, weight in parts:
                found, found_names = read_levels(source / file_name(scene.id))
                if names not in (None, found_names):
                    raise ArtifactError(f"{source}: expected channels {names}, got {found_names}")
                levels.append(found)
                weights.append(weight)
                names = found_names
            write_levels(path, blending.blend(levels, weights, run.config.blend.truncate), names)
    return len(scenes)


def members(run: Run, split: str) -> dict[str, dict[str, list[tuple[Path, float]]]]:
    """Return scene id -> task -> (folder of levels, weight) of everything that is averaged for it.

    ArtifactError where the models of the ensemble do not cover the same scenes, or a scene is in two folds' oof.
    """
    found: dict[str, dict[str, list[tuple[Path, float]]]] = defaultdict(lambda: defaultdict(list))
    covered: dict[str, set[str]] = {}
    table = folds.table(run) if split == "oof" else None
    for name, model in run.config.models.items():
        covered[name] = set()
        for fold in run.config.folds_of(model):
            source = run.store.require(run.graph.probs(name, fold, split))
            for scene in run.graph.test_ids if table is None else table["id"][table["fold"] == fold]:
                if split == "oof" and scene in covered[name]:
                    raise ArtifactError(f"{scene}: in two folds' out-of-fold predictions of {name}; run stage 01 anew")
                covered[name].add(scene)
                found[scene][model.task].append((source, model.weight))
    first, *others = covered
    for other in others:
        if odd := covered[first] ^ covered[other]:
            raise ArtifactError(
                f"{other} and {first} do not cover the same {split} scenes ({len(odd)} differ, e.g. {min(odd)}): "
                "an ensemble needs equal scenes; train and predict the missing folds, or set the models' folds alike"
            )
    return found


# ---- read back ----------------------------------------------------------------------------------------
def covered(run: Run, split: str) -> list[Scene]:
    """Return the scenes of a split that the ensemble has predicted; nothing is read but the units' lists of files."""
    files = run.store.manifest(run.graph.blend(split))["files"]
    tasks = {model.task for model in run.config.models.values()}
    scenes = run.scenes("train" if split == "oof" else "test")
    return [scene for scene in scenes if all(f"{task}/{file_name(scene.id)}" in files for task in tasks)]


def blended(run: Run, split: str) -> Iterator[tuple[Scene, Levels]]:
    """Yield every blended scene of a split with its levels, one at a time."""
    folder = run.store.require(run.graph.blend(split))
    tasks = {model.task for model in run.config.models.values()}
    for scene in covered(run, split):
        yield scene, {task: read_levels(folder / task / file_name(scene.id))[0] for task in tasks}


# ---- decode settings ----------------------------------------------------------------------------------
def fit_decode(run: Run, folder: Path) -> dict[str, Any]:
    """Choose the decode settings on out-of-fold scenes and write decode.json; returns what it holds."""
    competition, search = run.competition, run.config.search
    table = folds.table(run)
    fold_of = dict(zip(table["id"], table["fold"], strict=True))
    defaults = {**competition.defaults(), **run.config.decode}
    groups = sorted({fold_of[scene.id] for scene in covered(run, "oof")})
    result: dict[str, Any] = {"params": defaults}
    choices = {}
    if search:
        grid = competition.grid(search.axes, defaults)
        result |= _search(run, grid, fold_of, defaults)
        choices = {int(k): row["params"] for k, row in result.get("chosen_without_fold", {}).items()}
        if search.postprocess:
            result |= _postprocess(run, fold_of, result["params"], choices)
    result |= _outcome(run, fold_of, result["params"])
    result["coverage"] = f"{result['scenes']} of {len(table)} scenes, folds {_span(groups)}"
    write_json(folder / DECODE, result)
    return result


def _search(run: Run, grid, fold_of: Mapping[str, int], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Count all points of the grid in one pass over the scenes, then choose and cross-validate the choice."""
    competition, search = run.competition, run.config.search
    counts: dict[int, np.ndarray] = {}
    baseline: dict[int, np.ndarray] = {}
    for scene, levels in tqdm(blended(run, "oof"), "search", leave=False, disable=None):
        fold, truth = fold_of[scene.id], competition.truth(scene)
        table = competition.count(levels, truth, grid)  # (P, K)
        own = competition.tally(competition.decode(levels, defaults), truth)  # (K,)
        counts[fold] = counts[fold] + table if fold in counts else table
        baseline[fold] = baseline.get(fold, 0) + own
    if len(counts) < 2:
        total = next(iter(counts.values()))
        point = searching.choose(total, competition.score, grid.shape, search.plateau)
        say("  one fold only: the gain of the search on unseen scenes cannot be estimated")
        return {"params": dict(grid.points[point]), "points": len(grid.points),
                "score_without_search": float(competition.score(sum(baseline.values()))),
                "expected_score": None}  # fmt: skip
    nested = searching.nested(counts, competition.score, grid.shape, search.plateau, baseline)
    if nested.in_sample <= nested.baseline:
        say("  the search found nothing better than the fixed settings, which are kept; do its axes hold them?")
        return {"params": defaults, "points": len(grid.points), "score_without_search": nested.baseline,
                "expected_score": nested.baseline}  # fmt: skip
    return {
        "params": dict(grid.points[nested.point]),
        "points": len(grid.points),
        "score_without_search": nested.baseline,
        "searched_score": nested.in_sample,
        "expected_score": nested.expected,
        "expected_gain": nested.gain,
        "chosen_without_fold": {
            str(k): {"point": int(p), "params": dict(grid.points[p])} for k, p in nested.chosen.items()
        },
    }


def _postprocess(run: Run, fold_of: Mapping[str, int], params: dict, choices: Mapping[int, dict]) -> dict[str, Any]:
    """Try each chain of steps; keep the best that is accepted. Each held-out fold repeats the choice without itself."""
    competition = run.competition
    chains = [(), *run.config.search.postprocess]
    full = [0] * len(chains)
    # held[k][j][c]: counts of fold j's scenes under the settings chosen without fold k and chain c
    held = {k: {j: [0] * len(chains) for j in choices} for k in choices}
    for scene, levels in tqdm(blended(run, "oof"), "post-processing", leave=False, disable=None):
        fold = fold_of[scene.id]
        known: dict[str, list[np.ndarray]] = {}  # folds often choose the same settings
        for setting, sums in [(params, full), *((choices[k], held[k][fold]) for k in choices)]:
            key = repr(setting)
            if key not in known:
                known[key] = _count_chains(competition, levels, competition.truth(scene), setting, chains)
            sums[:] = [total + counts for total, counts in zip(sums, known[key])]
    kept = _best_chain(competition, full)
    result: dict[str, Any] = {
        "params": {**params, "postprocess": [dict(step) for step in chains[kept]]},
        "postprocess_tried": [
            {"steps": [dict(s) for s in chain], "score": float(competition.score(counts)),
             "accepted": c > 0 and searching.accept(full[0], counts, competition.score, competition.class_scores)}
            for c, (chain, counts) in enumerate(zip(chains, full, strict=True))
        ],
    }  # fmt: skip
    if choices:
        honest = 0
        for k, by_fold in held.items():
            rest = [sum(by_fold[j][c] for j in by_fold if j != k) for c in range(len(chains))]
            honest = honest + by_fold[k][_best_chain(competition, rest)]
        result["expected_score"] = float(competition.score(honest))
    return result


def _count_chains(competition, levels: Levels, truth: Any, setting: dict, chains: list) -> list[np.ndarray]:
    """Count one scene decoded with ``setting`` and each chain of post-processing steps."""
    counted = []
    for chain in chains:
        answer = competition.decode(levels, {**setting, "postprocess": [dict(step) for step in chain]})
        counted.append(competition.tally(answer, truth))
    return counted


def _best_chain(competition, counts: list[np.ndarray]) -> int:
    """Return the accepted chain with the highest score, 0 (no post-processing) where none is accepted."""
    accepted = [
        c for c in range(1, len(counts))
        if searching.accept(counts[0], counts[c], competition.score, competition.class_scores)
    ]  # fmt: skip
    return max(accepted, key=lambda c: float(competition.score(counts[c])), default=0)


def _outcome(run: Run, fold_of: Mapping[str, int], params: Mapping[str, Any]) -> dict[str, Any]:
    """Decode every out-of-fold scene with the final settings; score them in all, per fold and per domain."""
    competition = run.competition
    tallies, domains, own_folds, details = [], [], [], []
    for scene, levels in tqdm(blended(run, "oof"), "score", leave=False, disable=None):
        answer, truth = competition.decode(levels, params), competition.truth(scene)
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


def units(run: Run) -> list[Unit]:
    """Return what stage 05 builds for the splits that were asked for."""
    found = []
    for split in run.splits:
        if run.has_split(split):
            found.append(run.graph.blend(split))
        if split == "oof":
            found.append(run.graph.decode())
    return found
