"""Weights, settings and settings per domain, chosen together on out-of-fold scenes of an invented competition."""

from types import SimpleNamespace

import numpy as np
import pytest

from lib.competitions.contract import Grid, Scene
from lib.ensemble import search as searching
from lib.run.config import Search
from lib.stages import decode


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
        called = levels["loc"][0] / 255 >= params["threshold"]
        return ~called if {"name": "invert"} in params.get("postprocess", ()) else called

    def tally(self, answer, truth):
        return np.array([(answer == truth).sum(), truth.size])

    def count(self, levels, truth, grid):
        return np.stack([self.tally(self.decode(levels, point), truth) for point in grid.points])

    def score(self, counts):
        return counts[..., 0] / counts[..., 1]

    class_scores = score


def average(levels, weights):
    total = sum(weights.values())
    return {"loc": np.rint(sum(levels[m] * (w / total) for m, w in weights.items())).astype(np.uint8)[None]}


def run_of(scenes, weights, **search):
    """Return a run over invented scenes: (fold, domain, truth (N,), {model: levels (N,)})."""
    found = []
    for i, (fold, domain, truth, levels) in enumerate(scenes):
        scene = Scene(f"{fold}-{i}", {"truth": truth}, domain)
        parts = SimpleNamespace(average=lambda w, levels=levels: average(levels, w))
        found.append((scene, parts))
    config = SimpleNamespace(search=Search(**search), decode={}, seed=0)
    fold_of = {scene.id: int(scene.id[0]) for scene, _ in found}
    run = SimpleNamespace(competition=Accuracy(), config=config, found=found)
    return run, fold_of, decode.Choice(weights, {"threshold": 0.5})


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
    choice, without, said = decode._search(run, source(run), fold_of, weights, fixed)
    assert choice.weights == {"a": 1.0, "b": 0.0} and choice.params["threshold"] == 0.5
    assert said["expected_score"] > said["score_without_search"] + 0.05
    assert set(without) == {0, 1, 2} and all(c.weights["b"] == 0 for c in without.values())
    assert said["points"] == 15


def test_domains_get_their_own_threshold_and_unseen_ones_the_common():
    scenes = [scene(k % 3, "dark" if k % 2 else "light", 0.3 if k % 2 else 0.7, k) for k in range(12)]
    axes = {"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}
    run, fold_of, fixed = run_of(scenes, {"a": 1.0, "b": 0.0}, axes=axes, plateau=0, per_domain=True)
    choice, without, said = decode._search(run, source(run), fold_of, [fixed.weights], fixed)
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
    fixed = decode.Choice({"a": 1.0, "b": 0.0}, {"threshold": 0.3})
    choice, _, said = decode._search(run, source(run), fold_of, [fixed.weights], fixed)
    assert choice.params == {"threshold": 0.5}
    assert said["expected_score_per_domain"] == said["expected_score"]
    assert "all domains keep the same settings" in capsys.readouterr().out


def test_steps_are_chosen_with_the_settings_of_each_fold():
    scenes = [scene(k % 2, "", 0.5, k) for k in range(4)]
    run, fold_of, fixed = run_of(scenes, {"a": 1.0, "b": 0.0}, axes={"threshold": (0.3, 0.5)}, plateau=0,
                                 postprocess=[[{"name": "invert"}]])  # fmt: skip
    fixed = decode.Choice(fixed.weights, {"threshold": 0.3})
    choice, without, _ = decode._search(run, source(run), fold_of, [fixed.weights], fixed)
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
