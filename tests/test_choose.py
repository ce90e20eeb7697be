"""Weights, settings and settings per domain, chosen together on out-of-fold scenes of an invented competition."""

from types import SimpleNamespace

import numpy as np
import pytest

from lib.choose import evidence as ensemble
from lib.choose import fit as decode
from lib.choose import medians as stability
from lib.choose import plans, unseen
from lib.competitions.contract import Grid, Scene
from lib.config.sections import Search
from lib.ensemble import search as searching
from lib.ensemble.thresholds import spread


class Accuracy:
    """Call a pixel where the level reaches a threshold; the score is the share of right pixels."""

    def defaults(self):
        return {"threshold": 0.5}

    def grid(self, axes, fixed):
        points = searching.lattice(axes, {**self.defaults(), **fixed})
        return Grid(points, points.shape)

    def truth(self, scene):
        return scene.files["truth"]

    def decode(self, levels, params):
        threshold = np.median(levels["loc"]) / 255 if params["threshold"] == "own" else params["threshold"]
        called = levels["loc"][0] / 255 >= threshold
        return ~called if {"name": "invert"} in params.get("postprocess", ()) else called

    def tally(self, answer, truth):
        return np.array([(answer == truth).sum(), truth.size])

    def count(self, levels, truth, grid):
        return np.stack([self.tally(self.decode(levels, point), truth) for point in grid.points])

    def score(self, counts):
        return counts[..., 0] / counts[..., 1]

    class_scores = score


PLAIN, USUAL = ensemble.Variant("none"), ensemble.Variant("flips")


def average(levels, weights, variant):
    """Models share a name where sets of views differ: "a" is predicted with the largest, "a/none" with the smallest."""
    levels = {m: levels.get(f"{m}/{variant.tta}", levels[m]) for m in weights}
    total = sum(weights.values())
    return {"loc": np.rint(sum(levels[m] * (w / total) for m, w in weights.items())).astype(np.uint8)[None]}


def run_of(scenes, weights, **search):
    """Return a run over invented scenes: (fold, domain, truth (N,), {model: levels (N,)})."""
    found = []
    for i, (fold, domain, truth, levels) in enumerate(scenes):
        scene = Scene(f"{fold}-{i}", {"truth": truth}, domain)
        parts = SimpleNamespace(average=lambda w, variant, levels=levels: average(levels, w, variant))
        found.append((scene, parts))
    config = SimpleNamespace(search=Search(**search), decode={}, seed=0)
    fold_of = {scene.id: int(scene.id[0]) for scene, _ in found}
    run = SimpleNamespace(competition=Accuracy(), config=config, found=found)
    return run, fold_of, decode.Choice(weights, {"threshold": 0.5}, USUAL)


def source(run):
    return lambda: iter(run.found)


def scene(fold, domain, wanted, seed, noisy=True):
    """A scene whose classes are told apart at ``wanted``; model b is noise."""
    rng = np.random.default_rng(seed)
    truth = rng.random(400) < 0.5
    good = np.clip(255 * wanted + np.where(truth, 20, -20) + rng.normal(0, 8, 400), 0, 255).astype(np.uint8)
    return fold, domain, truth, {"a": good, "b": rng.integers(0, 256, 400).astype(np.uint8)}


def test_weights_are_fitted_and_a_network_of_noise_gets_none():
    scenes = [scene(k % 3, "", 0.5, k) for k in range(6)]
    weights = [{"a": 1 - w, "b": w} for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    axes = {"threshold": (0.4, 0.5, 0.6)}
    run, fold_of, fixed = run_of(scenes, {"a": 0.5, "b": 0.5}, axes=axes, plateau=0)
    choice, without, said = decode._search(run, source(run), fold_of, weights, fixed, [USUAL])
    assert choice.weights == {"a": 1.0, "b": 0.0} and choice.params["threshold"] == 0.5
    assert said["expected_score"] > said["score_without_search"] + 0.05
    assert set(without) == {0, 1, 2} and all(c.weights["b"] == 0 for c in without.values())
    assert said["points"] == 15


def test_domains_get_their_own_threshold_and_unseen_ones_the_common():
    scenes = [scene(k % 3, "dark" if k % 2 else "light", 0.3 if k % 2 else 0.7, k) for k in range(12)]
    axes = {"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}
    run, fold_of, fixed = run_of(scenes, {"a": 1.0, "b": 0.0}, axes=axes, plateau=0, per_domain=True)
    choice, without, said = decode._search(run, source(run), fold_of, [fixed.weights], fixed, [USUAL])
    resolved = {d: decode.settings_for(Scene("x", {}, d), choice.params)["threshold"] for d in ("dark", "light", "new")}
    assert resolved["dark"] == 0.3 and resolved["light"] == 0.7
    assert resolved["new"] == choice.params["threshold"]
    assert said["expected_score"] == said["expected_score_per_domain"] > 0.95
    # the held-out score is what decoding each fold with its own choice gives
    tallies = sum(without[fold_of[s.id]].tally(run, s, parts) for s, parts in run.found)
    assert float(run.competition.score(tallies)) == pytest.approx(said["expected_score"])


def test_domains_that_gain_nothing_apart_keep_common_settings(capsys):
    scenes = [scene(k % 3, "one" if k % 2 else "two", 0.5, k) for k in range(12)]
    run, fold_of, _ = run_of(scenes, {}, axes={"threshold": (0.3, 0.5)}, plateau=0, per_domain=True)
    fixed = decode.Choice({"a": 1.0, "b": 0.0}, {"threshold": 0.3}, USUAL)
    choice, _, said = decode._search(run, source(run), fold_of, [fixed.weights], fixed, [USUAL])
    assert choice.params == {"threshold": 0.5}
    assert said["expected_score_per_domain"] == said["expected_score"]
    assert "all domains keep the same settings" in capsys.readouterr().out


def test_steps_are_chosen_with_the_settings_of_each_fold():
    scenes = [scene(k % 2, "", 0.5, k) for k in range(4)]
    run, fold_of, fixed = run_of(scenes, {"a": 1.0, "b": 0.0}, axes={"threshold": (0.3, 0.5)}, plateau=0,
                                 postprocess=[[{"name": "invert"}]])  # fmt: skip
    fixed = decode.Choice(fixed.weights, {"threshold": 0.3}, USUAL)
    choice, without, _ = decode._search(run, source(run), fold_of, [fixed.weights], fixed, [USUAL])
    kept, said = decode._postprocess(run, source(run), fold_of, choice, without)
    assert kept.params["postprocess"] == [] and not any(row["accepted"] for row in said["postprocess_tried"])
    assert said["postprocess_tried"][1]["score"] < 0.5 < said["postprocess_tried"][0]["score"]


def test_greedy_selection_finds_the_same_and_says_what_equal_weights_would_give():
    scenes = [scene(k % 3, "", 0.5, k) for k in range(6)]
    run, fold_of, fixed = run_of(scenes, {"a": 0.5, "b": 0.5}, axes={"threshold": (0.4, 0.5, 0.6)}, plateau=0)
    model = SimpleNamespace(task="loc")
    run.config.models, run.config.blend = {"a": model, "b": model}, SimpleNamespace(rounds=4)
    run.graph = SimpleNamespace(models=lambda task: run.config.models)
    choice, without, said = decode._greedy(run, source(run), fold_of, fixed)
    assert choice.weights == {"a": 1.0, "b": 0.0} and choice.params["threshold"] == 0.5
    assert said["expected_score"] > said["expected_with_equal_weights"] + 0.05
    assert set(without) == {0, 1, 2} and said["greedy_path"][0]["score"] == pytest.approx(said["searched_score"])


# ---- variants, medians, unseen domains, fewer models ---------------------------------------------------
def viewed(fold, seed, helps):
    """A scene whose largest set of views is less noisy than the smallest, or the other way round."""
    _, domain, truth, levels = scene(fold, "", 0.5, seed)
    rng = np.random.default_rng(seed + 100)
    noisy = np.clip(levels["a"] + rng.normal(0, 40, 400), 0, 255).astype(np.uint8)
    first, second = (noisy, levels["a"]) if helps else (levels["a"], noisy)
    return fold, domain, truth, {"a/none": first, "a": second}


@pytest.mark.parametrize("helps", [True, False])
def test_the_set_of_views_is_chosen_with_the_threshold(helps):
    run, fold_of, fixed = run_of([viewed(k % 3, k, helps) for k in range(6)], {"a": 1.0},
                                 axes={"threshold": (0.4, 0.5, 0.6)}, plateau=0)  # fmt: skip
    fixed = decode.Choice(fixed.weights, {"threshold": 0.6}, USUAL)
    choice, without, said = decode._search(run, source(run), fold_of, [fixed.weights], fixed, [PLAIN, USUAL])
    assert choice.variant == (USUAL if helps else PLAIN) and choice.params["threshold"] == 0.5
    assert said["points"] == 6 and {c["tta"] for c in said["chosen_without_fold"].values()} == {choice.variant.tta}
    tallies = sum(without[fold_of[s.id]].tally(run, s, parts) for s, parts in run.found)
    assert float(run.competition.score(tallies)) == pytest.approx(said["expected_score"])


def test_the_median_winner_is_used_and_its_worth_is_held_out():
    scenes = [scene(k % 3, "", wanted, k) for k, wanted in enumerate((0.3, 0.3, 0.5, 0.5, 0.4, 0.7))]
    values = (0.3, 0.4, 0.5, 0.6, 0.7)
    run, fold_of, _ = run_of(scenes, {}, axes={"threshold": values}, plateau=0, choose="median")
    fixed = decode.Choice({"a": 1.0, "b": 0.0}, {"threshold": 0.7}, USUAL)
    choice, without, _ = decode._search(run, source(run), fold_of, [fixed.weights], fixed, [USUAL])
    settled, held, said = stability.median(run, source(run), fold_of, choice, without)
    for left_out, found in [(None, settled), *held.items()]:
        own = [(s, p) for s, p in run.found if fold_of[s.id] != left_out]
        grid = run.competition.grid({"threshold": values}, {})
        counted = [run.competition.count(p.average(fixed.weights, USUAL), s.files["truth"], grid) for s, p in own]
        moved = spread(np.stack(counted), values, run.competition.score, 0, stability.DRAWS, 0)
        assert found.params["threshold"] == values[moved.median]
    assert said["stability"]["threshold"]["quantiles"]["0.5"] == settled.params["threshold"]
    tallies = sum(held[fold_of[s.id]].tally(run, s, parts) for s, parts in run.found)
    assert said["expected_score"] == float(run.competition.score(tallies))


@pytest.mark.parametrize("moves", [True, False])
def test_settings_for_unseen_domains_are_kept_only_where_held_out_domains_gain(moves, capsys):
    places = (0.3, 0.5, 0.7) if moves else (0.5, 0.5, 0.5)
    scenes = [scene(k % 2, "abc"[k % 3], places[k % 3], k) for k in range(6)]
    axes = {"threshold": (0.3, 0.5, 0.7)}
    run, _, fixed = run_of(scenes, {"a": 1.0, "b": 0.0}, axes=axes, plateau=0, unseen={"threshold": "own"})
    choice, said = unseen.settle(run, source(run), fixed, run.competition.grid(axes, {}))
    assert said["unseen_domains"]["kept"] == moves
    resolved = {d: decode.settings_for(Scene("x", {}, d), choice.params)["threshold"] for d in "abcx"}
    assert resolved == {"a": 0.5, "b": 0.5, "c": 0.5, "x": "own" if moves else 0.5}
    assert ("which are kept" if moves else "not kept") in capsys.readouterr().out


def test_fewer_models_and_views_are_scored_with_the_chosen_settings():
    run, _, _ = run_of([viewed(k % 3, k, True) for k in range(6)], {}, axes={})
    for _, parts in run.found:
        levels = parts.average({"a": 1}, USUAL)["loc"][0], parts.average({"a": 1}, PLAIN)["loc"][0]
        own = {"a": levels[0], "a/none": levels[1], "b": levels[1], "b/none": levels[1]}
        parts.average = lambda w, variant, own=own: average(own, w, variant)
    models = {name: SimpleNamespace(task="loc") for name in "ab"}
    run.config.models, run.config.predict = models, SimpleNamespace(tta_sets=("none", "flips"))
    run.config.folds_of = lambda model: (0, 1)
    run.graph = SimpleNamespace(probs=lambda name, fold, split: (name, fold, split))
    made = {"a": {"seconds_per_scene": 4.0}, "b": {"seconds": 20.0, "scenes": 10}}
    run.store = SimpleNamespace(manifest=lambda unit: made[unit[0]])
    choice = decode.Choice({"a": 0.75, "b": 0.25}, {"threshold": 0.5}, USUAL)
    rows = plans.judge(run, source(run), choice, 6)
    assert [row["seconds"] for row in rows] == [0.5, 1.0, 1.5, 2.0, 4.0, 6.0]
    for row in rows:
        weights = {name: choice.weights[name] for name in row["models"]}
        own = decode.Choice(weights, choice.params, ensemble.Variant(row["tta"]))
        assert row["score"] == run.competition.score(sum(own.tally(run, s, p) for s, p in run.found))
    best = [row for row in rows if row["best_for_its_seconds"]]
    assert best[-1]["models"] == ["a"] and best[-1]["tta"] == "flips", "with b it is dearer and no better"
    assert len(plans.table(rows, list(models))) == 1 + len(best)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SCENES", 2)
        some = plans.judge(run, source(run), choice, 6)
    whole = decode.Choice({"a": 0.75, "b": 0.25}, choice.params, USUAL)
    third = run.competition.score(sum(whole.tally(run, *run.found[i]) for i in (0, 3)))
    assert [row["score"] for row in some if row["seconds"] == 6.0] == [third]
    run.config.models = {"a": models["a"]}
    run.config.predict.tta_sets = ("flips",)
    assert plans.judge(run, source(run), decode.Choice({"a": 1.0}, {}, USUAL), 6) == []


def test_of_many_models_some_sets_are_judged_and_each_keeps_every_task():
    tasks = {f"m{i}": "loc" if i < 4 else "cls" for i in range(9)}
    config = SimpleNamespace(models={n: SimpleNamespace(task=t) for n, t in tasks.items()},
                             predict=SimpleNamespace(tta_sets=("none",)))  # fmt: skip
    found = plans.subsets(SimpleNamespace(config=config), {name: 1 + i for i, name in enumerate(tasks)})
    assert all({tasks[n] for n in kept} == {"loc", "cls"} for kept in found)
    assert tuple(tasks) in found and ("m3", "m8") in found and tuple(n for n in tasks if n != "m5") in found
    assert len(found) < 2 * len(tasks) + 2
