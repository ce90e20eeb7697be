"""Weights, settings and settings per domain, chosen together on out-of-fold scenes of an invented competition."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from lib.choose import evidence, fit, medians, plans
from lib.choose.choice import Choice, Chosen, Decision, Subset, Variant
from lib.choose.evidence import OutOfFold, settings_to_try
from lib.choose.greedy import choose_greedily
from lib.choose.joint import Candidates, choose_among
from lib.choose.medians import take_medians
from lib.choose.postprocess import choose_postprocessing
from lib.choose.unseen import add_unseen_settings
from lib.competitions.contract import Scene, settings_for
from lib.config.sections import Blend, Predict, Search
from lib.ensemble import search as searching
from lib.ensemble.thresholds import spread
from lib.errors import ArtifactError, DataError
from lib.tasks import BinaryMask


class Accuracy:
    """Call a pixel where the level reaches a threshold; the score is the share of right pixels."""

    def __init__(self):
        self.drawn, self.counted = [], []

    def defaults(self):
        return {"threshold": 0.5}

    def grid(self, axes, fixed):
        return searching.lattice(axes, {**self.defaults(), **fixed})

    def truth(self, scene):
        self.drawn.append(scene.id)
        return scene.files["truth"]

    def decode(self, levels, params):
        threshold = np.median(levels["loc"]) / 255 if params["threshold"] == "own" else params["threshold"]
        return self.clean(levels["loc"][0] / 255 >= threshold, params.get("postprocess", ()), levels)

    def clean(self, answer, steps, levels):
        return ~answer if {"name": "invert"} in steps else answer

    def tally(self, answer, truth):
        return np.array([(answer == truth).sum(), truth.size])

    def count(self, levels, truth, grid):
        self.counted.append(len(grid))
        return np.stack([self.tally(self.decode(levels, point), truth) for point in grid])

    def score(self, counts):
        return counts[..., 0] / counts[..., 1]

    class_scores = score

    def scores(self, counts):
        return {"score": float(self.score(counts))}

    def detail(self, answer, truth):
        return self.tally(answer, truth)

    def tables(self, details):
        return {}


PLAIN, USUAL = Variant("none"), Variant("flips")
ONLY_A = {"a": 1.0, "b": 0.0}


def average(levels, weights, variant):
    """Models share a name where sets of views differ: "a" is predicted with the largest, "a/none" with the smallest."""
    levels = {m: levels.get(f"{m}/{variant.tta}", levels[m]) for m in weights}
    total = sum(weights.values())
    return {"loc": np.rint(sum(levels[m] * (w / total) for m, w in weights.items())).astype(np.uint8)[None]}


def out_of_fold(scenes, **search) -> OutOfFold:
    """Return invented scenes, each (fold, domain, truth (N,), {model: levels (N,)}); ``search``: the section."""
    found, levels_of, fold_of = [], {}, {}
    for i, (fold, domain, truth, levels) in enumerate(scenes):
        found.append(Scene(f"{fold}-{i}", {"truth": truth}, domain))
        levels_of[found[-1].id], fold_of[found[-1].id] = levels, fold
    models = {name: SimpleNamespace(task="loc", weight=weight) for name, weight in ONLY_A.items()}
    config = SimpleNamespace(search=Search(**search) if search else None, decode={}, seed=0, models=models,
                             blend=Blend(), predict=Predict(tta="flips"), folds_of=lambda model: (0, 1))  # fmt: skip
    run = SimpleNamespace(competition=Accuracy(), config=config,
                          graph=SimpleNamespace(models=lambda task: config.models))  # fmt: skip

    def members(scene):
        return SimpleNamespace(average=lambda w, variant: average(levels_of[scene.id], w, variant))

    return OutOfFold(run, fold_of, found, members)


def nothing(scenes, weights=ONLY_A, threshold=0.5) -> Chosen:
    return Chosen.nothing(Choice(weights, {"threshold": threshold}, USUAL), scenes.folds)


def search(scenes, chosen, weights=None, variants=(USUAL,)) -> Chosen:
    grid = settings_to_try(scenes.run, chosen.fixed)
    return choose_among(scenes, chosen, Candidates(list(variants), weights or [chosen.fixed.weights], grid))


def held_out(scenes, chosen) -> float:
    """Decode each fold with the choice made without it."""
    tallies = sum(item.tally(chosen.without[item.fold]) for item in scenes.each(""))
    return float(scenes.competition.score(tallies))


def score_of(scenes, choice, some=slice(None)) -> float:
    return float(scenes.competition.score(sum(item.tally(choice) for item in list(scenes.each(""))[some])))


def scene(fold, domain, wanted, seed, noisy=True):
    """A scene whose classes are told apart at ``wanted``; model b is noise."""
    rng = np.random.default_rng(seed)
    truth = rng.random(400) < 0.5
    good = np.clip(255 * wanted + np.where(truth, 20, -20) + rng.normal(0, 8, 400), 0, 255).astype(np.uint8)
    return fold, domain, truth, {"a": good, "b": rng.integers(0, 256, 400).astype(np.uint8)}


def test_weights_are_fitted_and_a_network_of_noise_gets_none():
    scenes = out_of_fold([scene(k % 3, "", 0.5, k) for k in range(6)], axes={"threshold": (0.4, 0.5, 0.6)}, plateau=0)
    weights = [{"a": 1 - w, "b": w} for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
    chosen = search(scenes, nothing(scenes, {"a": 0.5, "b": 0.5}), weights)
    assert chosen.choice.weights == ONLY_A and chosen.choice.params["threshold"] == 0.5
    assert held_out(scenes, chosen) > chosen.notes["score_without_search"] + 0.05
    assert set(chosen.without) == {0, 1, 2} and all(c.weights["b"] == 0 for c in chosen.without.values())
    assert chosen.notes["points"] == 15


def two_domains(**search) -> OutOfFold:
    scenes = [scene(k % 3, "dark" if k % 2 else "light", 0.3 if k % 2 else 0.7, k) for k in range(12)]
    return out_of_fold(scenes, axes={"threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}, plateau=0, **search)


def test_domains_get_their_own_threshold_and_unseen_ones_the_common():
    scenes = two_domains(per_domain=True)
    chosen = search(scenes, nothing(scenes))
    params = chosen.choice.params
    resolved = {d: settings_for(Scene("x", {}, d), params)["threshold"] for d in ("dark", "light", "new")}
    assert resolved["dark"] == 0.3 and resolved["light"] == 0.7
    assert resolved["new"] == params["threshold"]
    # the held-out score is what decoding each fold with its own choice gives
    expected = chosen.notes["expected_score_per_domain"]
    assert held_out(scenes, chosen) == pytest.approx(expected) and expected > 0.95


def test_domains_that_gain_nothing_apart_keep_common_settings(capsys):
    scenes = out_of_fold([scene(k % 3, "one" if k % 2 else "two", 0.5, k) for k in range(12)],
                         axes={"threshold": (0.3, 0.5)}, plateau=0, per_domain=True)  # fmt: skip
    chosen = search(scenes, nothing(scenes, threshold=0.3))
    assert chosen.choice.params == {"threshold": 0.5}
    assert chosen.notes["expected_score_per_domain"] == held_out(scenes, chosen)
    assert "all domains keep the same settings" in capsys.readouterr().out


def test_steps_are_chosen_with_the_settings_of_each_fold():
    scenes = out_of_fold([scene(k % 2, "", 0.5, k) for k in range(4)], axes={"threshold": (0.3, 0.5)}, plateau=0,
                         postprocess=[[{"name": "invert"}]])  # fmt: skip
    chosen = choose_postprocessing(scenes, search(scenes, nothing(scenes, threshold=0.3)))
    plain, inverted = chosen.notes["postprocess_tried"]
    assert [own.params["postprocess"] for own in chosen.every().values()] == [[], [], []]
    assert not plain.accepted and not inverted.accepted and inverted.score < 0.5 < plain.score


def test_greedy_selection_finds_the_same_and_says_what_equal_weights_would_give():
    scenes = out_of_fold([scene(k % 3, "", 0.5, k) for k in range(6)], axes={"threshold": (0.4, 0.5, 0.6)}, plateau=0)
    scenes.run.config.blend = Blend(select="greedy", rounds=4)
    chosen = choose_greedily(scenes, nothing(scenes, {"a": 0.5, "b": 0.5}))
    assert chosen.choice.weights == ONLY_A and chosen.choice.params["threshold"] == 0.5
    assert held_out(scenes, chosen) > chosen.notes["expected_with_equal_weights"] + 0.05
    assert chosen.notes["score_without_search"] == score_of(scenes, chosen.fixed)
    assert set(chosen.without) == {0, 1, 2}
    assert chosen.notes["greedy_path"][0]["score"] == pytest.approx(chosen.notes["searched_score"])


# ---- what to expect -----------------------------------------------------------------------------------
def by_hand(scenes) -> Chosen:
    """Take all steps as ``decide`` does."""
    config = scenes.run.config
    chosen = nothing(scenes, evidence.stated_weights(config))
    for step in fit.steps(config):
        chosen = step(scenes, chosen)
    return chosen


def turned(fold, size, seed):
    """A scene whose levels say the opposite of its truth."""
    _, domain, truth, levels = scene(fold, "", 0.5, seed)
    return fold, domain, ~truth[:size], {model: own[:size] for model, own in levels.items()}


def test_steps_accepted_after_a_search_that_found_nothing_are_cross_validated(capsys):
    """Inverting helps the larger fold alone, so each fold is decoded in the wrong way by the choice without it."""
    scenes = out_of_fold([turned(0, 400, 1), turned(0, 400, 2), scene(1, "", 0.5, 3)], axes={"threshold": (0.45, 0.5)},
                         plateau=0, postprocess=[[{"name": "invert"}]])  # fmt: skip
    scenes.run.config.decode = {"threshold": 0.42}  # better than all values of the axis
    decision = fit.decide(scenes, {}, {})
    assert "found nothing better than the fixed settings" in capsys.readouterr().out
    assert decision.params == {"threshold": 0.42, "postprocess": [{"name": "invert"}]} and decision.score > 0.6
    assert decision.expected_score < 0.1 < decision.score_without_search
    assert decision.expected_gain == decision.expected_score - decision.score_without_search < 0


def test_what_is_expected_is_what_decoding_each_fold_without_it_gives_whatever_steps_are_taken():
    moved = [scene(k % 3, "abc"[k % 2], wanted, k) for k, wanted in enumerate((0.3, 0.3, 0.5, 0.5, 0.4, 0.7))]
    axes = {"threshold": (0.3, 0.4, 0.5, 0.6, 0.7)}
    median, unseen = {"choose": "median"}, {"unseen": {"threshold": "own"}}
    for asked in ({}, {"per_domain": True}, median, unseen, median | unseen | {"postprocess": [[{"name": "invert"}]]}):
        scenes = out_of_fold(moved, axes=axes, plateau=0, **asked)
        scenes.run.config.decode = {"threshold": 0.7}
        decision = fit.decide(scenes, {}, {})
        chosen = Chosen.nothing(Choice(ONLY_A, {"threshold": 0.7}, USUAL), scenes.folds)
        for step in fit.steps(scenes.run.config):
            chosen = step(scenes, chosen)
        assert decision.params == chosen.choice.params and decision.score == score_of(scenes, chosen.choice)
        assert decision.expected_score == held_out(scenes, chosen), asked
        assert decision.expected_gain == decision.expected_score - decision.score_without_search


def test_where_nothing_is_chosen_the_score_is_to_be_expected_and_of_one_fold_nothing_is_known():
    decision = fit.decide(out_of_fold([scene(k % 2, "", 0.5, k) for k in range(4)]), {}, {})
    assert decision.expected == decision.score > 0.9
    assert not {"expected_score", "expected_gain", "score_without_search"} & decision.model_dump(
        exclude_unset=True).keys()  # fmt: skip
    one = fit.decide(out_of_fold([scene(0, "", 0.5, k) for k in range(4)], axes={"threshold": (0.3, 0.5)}), {}, {})
    assert one.expected is one.expected_score is None and "expected_gain" not in one.model_fields_set
    assert one.coverage == "4 of 4 scenes, folds 0"
    with pytest.raises(DataError, match="run stage 04 with --split oof"):
        out_of_fold([])


# ---- passes -------------------------------------------------------------------------------------------
def test_predictions_and_truth_of_a_scene_are_read_once_per_pass():
    scenes = out_of_fold([scene(k % 2, "ab"[k // 2 % 2], 0.5, k) for k in range(6)], plateau=0,
                         axes={"threshold": (0.4, 0.5)}, unseen={"threshold": "own"}, choose="median",
                         postprocess=[[{"name": "invert"}]])  # fmt: skip
    read = []
    members = scenes.members
    scenes.members = lambda scene: read.append(scene.id) or members(scene)
    fit.decide(scenes, {}, {})
    assert read == [own.id for own in scenes.scenes] * 4, "search, medians, unseen domains, post-processing with score"
    assert scenes.competition.drawn == read


def test_sums_come_in_the_order_of_the_scenes_that_have_them_first():
    scenes = out_of_fold([scene(fold, domain, 0.5, 0) for fold, domain in ((1, "b"), (0, "b"), (1, "a"), (0, "a"))])
    found = scenes.added("", lambda item: {"all": np.ones(2, np.int64), item.scene.domain: np.full(2, item.fold)})
    assert {key: table.tolist() for key, table in found.items()} == {"all": [4, 4], "b": [1, 1], "a": [1, 1]}
    assert list(found) == ["all", "b", "a"]
    assert scenes.listed("", lambda item: item.scene.id) == ["1-0", "0-1", "1-2", "0-3"]
    assert scenes.listed("", lambda item: item.scene.id, every=3) == ["1-0", "0-3"]


@pytest.mark.parametrize("per_domain", [True, False])
def test_the_grid_is_counted_once_for_the_search_and_for_unseen_domains(per_domain):
    scenes = two_domains(per_domain=per_domain, unseen={"threshold": "own"})
    chosen = by_hand(scenes)
    assert scenes.competition.counted == [6] * 12 and "unseen_domains" in chosen.notes
    alone = two_domains(unseen={"threshold": "own"})
    counted_anew = add_unseen_settings(alone, nothing(alone))
    assert counted_anew.notes["unseen_domains"] == chosen.notes["unseen_domains"]


# ---- variants, medians, unseen domains, fewer models ---------------------------------------------------
def viewed(fold, seed, helps):
    """A scene whose largest set of views is less noisy than the smallest, or the other way round."""
    _, domain, truth, levels = scene(fold, "", 0.5, seed)
    rng = np.random.default_rng(seed + 100)
    noisy = np.clip(levels["a"] + rng.normal(0, 40, 400), 0, 255).astype(np.uint8)
    first, second = (noisy, levels["a"]) if helps else (levels["a"], noisy)
    return fold, domain, truth, {"a/none": first, "a": second, "b/none": first, "b": first}


@pytest.mark.parametrize("helps", [True, False])
def test_the_set_of_views_is_chosen_with_the_threshold(helps):
    scenes = out_of_fold([viewed(k % 3, k, helps) for k in range(6)], axes={"threshold": (0.4, 0.5, 0.6)}, plateau=0)
    chosen = search(scenes, nothing(scenes, {"a": 1.0}, 0.6), variants=(PLAIN, USUAL))
    choice = chosen.choice
    assert choice.variant == (USUAL if helps else PLAIN) and choice.params["threshold"] == 0.5
    notes = chosen.notes
    assert notes["points"] == 6 and {c["tta"] for c in notes["chosen_without_fold"].values()} == {choice.variant.tta}


def test_the_median_winner_is_used_and_fixed_settings_stay():
    scenes = [scene(k % 3, "", wanted, k) for k, wanted in enumerate((0.3, 0.3, 0.5, 0.5, 0.4, 0.7))]
    values = (0.3, 0.4, 0.5, 0.6, 0.7)
    scenes = out_of_fold(scenes, axes={"threshold": values}, plateau=0, choose="median")
    searched = search(scenes, nothing(scenes, threshold=0.7))
    chosen = take_medians(scenes, searched)
    for left_out, found in chosen.every().items():
        own = [item for item in scenes.each("") if item.fold != left_out]
        grid = scenes.competition.grid({"threshold": values}, {})
        counted = [item.count(ONLY_A, USUAL, grid) for item in own]
        moved = spread(np.stack(counted), values, scenes.competition.score, 0, medians.DRAWS, 0)
        assert found.params["threshold"] == values[moved.median]
    stability = chosen.notes["stability"]["threshold"]
    assert stability["quantiles"]["0.5"] == chosen.choice.params["threshold"]
    assert chosen.notes["expected_with_flattest_best"] == held_out(scenes, searched)
    fixed = nothing(scenes)
    assert take_medians(scenes, fixed).every() == fixed.every()


@pytest.mark.parametrize("moves", [True, False])
def test_settings_for_unseen_domains_are_kept_only_where_held_out_domains_gain(moves, capsys):
    places = (0.3, 0.5, 0.7) if moves else (0.5, 0.5, 0.5)
    scenes = out_of_fold([scene(k % 2, "abc"[k % 3], places[k % 3], k) for k in range(6)],
                         axes={"threshold": (0.3, 0.5, 0.7)}, plateau=0, unseen={"threshold": "own"})  # fmt: skip
    chosen = add_unseen_settings(scenes, nothing(scenes))
    assert chosen.notes["unseen_domains"]["kept"] == moves
    resolved = {d: settings_for(Scene("x", {}, d), chosen.choice.params)["threshold"] for d in "abcx"}
    assert resolved == {"a": 0.5, "b": 0.5, "c": 0.5, "x": "own" if moves else 0.5}
    assert ("which are kept" if moves else "not kept") in capsys.readouterr().out


def test_a_fold_that_alone_shows_a_domain_is_decoded_with_the_settings_for_unseen_ones():
    scenes = out_of_fold([scene(k % 3, "abc"[k % 3], (0.3, 0.5, 0.7)[k % 3], k) for k in range(6)],
                         axes={"threshold": (0.3, 0.5, 0.7)}, plateau=0, unseen={"threshold": "own"})  # fmt: skip
    decision = fit.decide(scenes, {}, {})
    assert decision.params["seen"] == ["a", "b", "c"]
    assert decision.expected_score == pytest.approx(decision.unseen_domains["stated_settings"])


def test_fewer_models_and_views_are_scored_with_the_chosen_settings(monkeypatch):
    scenes = out_of_fold([viewed(k % 3, k, True) for k in range(6)])
    config = scenes.run.config
    config.predict = Predict(tta=("none", "flips"))
    made = {"a": {"seconds_per_scene": 4.0}, "b": {"seconds": 20.0, "scenes": 10}}
    scenes.run.graph = SimpleNamespace(probs=lambda name, fold, split: (name, fold, split))
    scenes.run.store = SimpleNamespace(manifest=lambda unit: made[unit[0]])
    choice = Choice({"a": 0.75, "b": 0.25}, {"threshold": 0.5}, USUAL)
    rows = plans.compare(scenes, choice)
    assert [row.seconds for row in rows] == [0.5, 1.0, 1.5, 2.0, 4.0, 6.0]
    for row in rows:
        weights = {name: choice.weights[name] for name in row.models}
        assert row.score == score_of(scenes, Choice(weights, choice.params, Variant(row.tta)))
    best = [row for row in rows if row.best_for_its_seconds]
    assert best[-1].models == ("a",) and best[-1].tta == "flips", "with b it is dearer and no better"
    assert len(plans.table(rows, list(config.models))) == 1 + len(best)
    monkeypatch.setattr(plans, "SCENES", 2)
    some = plans.compare(scenes, choice)
    assert [row.score for row in some if row.seconds == 6.0] == [score_of(scenes, choice, slice(None, None, 3))]
    config.models, config.predict = {"a": config.models["a"]}, Predict(tta="flips")
    assert plans.compare(scenes, Choice({"a": 1.0}, {}, USUAL)) == []


def test_of_many_models_some_sets_are_judged_and_each_keeps_every_task():
    tasks = {f"m{i}": "loc" if i < 4 else "cls" for i in range(9)}
    config = SimpleNamespace(models={n: SimpleNamespace(task=t) for n, t in tasks.items()},
                             predict=SimpleNamespace(tta_sets=("none",)))  # fmt: skip
    found = plans.subsets(config, {name: 1 + i for i, name in enumerate(tasks)})
    assert all({tasks[n] for n in kept} == {"loc", "cls"} for kept in found)
    assert tuple(tasks) in found and ("m3", "m8") in found and tuple(n for n in tasks if n != "m5") in found
    assert len(found) < 2 * len(tasks) + 2


# ---- decode.json --------------------------------------------------------------------------------------
def test_a_decision_is_read_as_it_was_written(tmp_path):
    decision = fit.decide(two_domains(per_domain=True, postprocess=[[{"name": "invert"}]]), {"a": 1.5}, {})
    for name in ("first.json", "second.json"):
        decision.write(tmp_path / name)
        decision = Decision.read(tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.json", "second.json"))
    assert first == second and list(json.loads(first))[:6] == [
        "params",
        "weights",
        "tta",
        "crf",
        "temperatures",
        "points",
    ]
    assert json.loads(first)["per_fold"]["0"]["scenes"] == 4 and b'"scenes": 4,' in first


def test_older_and_newer_files_are_read_and_odd_ones_are_named_with_the_command(tmp_path):
    path = tmp_path / "decode.json"
    whole = fit.decide(out_of_fold([scene(k % 2, "", 0.5, k) for k in range(4)]), {}, {}).model_dump(exclude_unset=True)

    def read(**changes) -> Decision:
        content = {key: value for key, value in {**whole, **changes}.items() if value is not None}
        path.write_text(json.dumps(content))
        return Decision.read(path, "python 05_ensemble.py --config mine.yaml")

    older = read(tta=None, crf=None, plans=None, temperatures=None, added_later=1)
    assert (older.variant(Variant("d4", True)), older.plans, older.temperatures) == (Variant("d4", True), [], {})
    assert read(plans=[{"models": ["a"], "tta": "none", "score": 0.5}]).plans == [Subset(("a",), "none", 0.5)]
    for changes, words in (
        ({"weights": {"a": "much"}}, "weights.a: "),
        ({"scores": None}, "scores: Field required"),
        ({"scores": {}}, "scores: "),
        ({"params": [1]}, "params: "),
        ({"plans": [{"models": "a"}]}, "plans.0.models: "),
        ({"crf": 7, "tta": 1}, "1 more"),
        ({"tta": "d5"}, "expected one of none, hflip, flips, d4, found 'd5'"),
        ({"plans": [{"models": ["a"], "tta": "all"}]}, "expected one of none, hflip, flips, d4, found 'all'"),
        ({"plans": [{"models": ["a"], "tta": "none", "seconds": -1}]}, "plans.0.seconds: "),
        ({"weights": {"a": float("nan")}}, "weights.a: expected a finite number"),
        ({"weights": {"a": -0.5}}, "weights.a: "),
        ({"weights": {"a": 0.0}}, "weights: Value error, expected one above 0"),
        ({"params": {"threshold": float("inf")}}, "params.threshold: expected a finite number"),
        ({"greedy_path": [{"score": float("nan")}]}, "greedy_path.0.score: expected a finite number"),
        ({"temperatures": {"a": 0}}, "temperatures.a: "),
        ({"scenes": -4}, "scenes: "),
        ({"points": -1}, "points: "),
        ({"per_fold": {"0": {"scenes": -2}}}, "per_fold: Value error, 0: expected counts, found -2"),
        ({"tables": {"confusion": {"cat": {"dog": -3}}}}, "tables: Value error, confusion: expected counts, found -3"),
        ({"tables": {"confusion": [1]}}, "confusion: expected scores by name, or rows of counts, found [1]"),
        ({"tables": {"confusion": {"cat": {"dog": "many"}}}}, "expected scores by name, or rows of counts"),
        ({"tables": {"confusion": {"cat": {"dog": 1}, "dog": 2}}}, "expected scores by name, or rows of counts"),
        ({"tables": {"confusion": {"cat": {"dog": 1}, "dog": {}}}}, "confusion: expected rows of the same columns"),
        ({"params": {"per_domain": [1]}}, "params: Value error, expected settings by name in per_domain and unseen"),
        ({"params": {"per_domain": {"day": 1}}}, "params: Value error, expected settings by name"),
        ({"params": {"unseen": {"threshold": 0.5}, "seen": 5}}, "expected unseen with a list of the domains"),
        ({"params": {"unseen": {"threshold": 0.5}}}, "expected unseen with a list of the domains"),
    ):
        with pytest.raises(ArtifactError) as caught:
            read(**changes)
        said = str(caught.value)
        assert said.startswith(f"{path}: ") and words in said
        assert said.endswith("to write it anew, run: python 05_ensemble.py --config mine.yaml")
    path.write_text("[1, 2]")
    with pytest.raises(ArtifactError, match="decode.json: Input should be"):
        Decision.read(path)


# ---- models of different folds -------------------------------------------------------------------------
def run_of(folds: dict[str, tuple[int, ...]], scenes: str = "equal"):
    """Return a run of models trained on these folds of six scenes; scene s<k> and t<k> are in fold k."""
    models = {name: SimpleNamespace(task="loc", folds=own) for name, own in folds.items()}
    config = SimpleNamespace(models=models, folds_of=lambda model: model.folds, blend=SimpleNamespace(scenes=scenes))
    table = pd.DataFrame({"id": [f"{letter}{fold}" for fold in range(3) for letter in "st"],
                          "fold": [fold for fold in range(3) for _ in "st"]})  # fmt: skip
    graph = SimpleNamespace(probs=lambda *key: key, test_ids=("x",))
    return SimpleNamespace(config=config, folds=lambda: table, graph=graph, store=SimpleNamespace(require=lambda k: k))


def test_scenes_that_not_all_models_have_predicted_are_refused_or_left_out():
    folds = {"a": (0, 1, 2), "b": (1, 2), "c": (2, 0)}
    with pytest.raises(ArtifactError, match=r"cover the same oof scenes .* \(blend.scenes: common\)"):
        evidence._folders(run_of(folds), "oof")
    found = evidence._folders(run_of(folds, "common"), "oof")
    assert set(found) == {"s2", "t2"}
    assert {name: len(folders) for name, folders in found["s2"]["loc"].items()} == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ArtifactError, match="no scene that every model has predicted"):
        evidence._folders(run_of({"a": (0,), "b": (1,)}, "common"), "oof")
    of_test = evidence._folders(run_of(folds), "test")
    assert {name: len(folders) for name, folders in of_test["x"]["loc"].items()} == {"a": 3, "b": 2, "c": 2}


def test_a_decision_without_scenes_has_no_scores_and_only_then(tmp_path):
    fields = {"params": {}, "weights": {"a": 1.0}, "scores": {}, "interval95": None, "per_domain": {}, "per_fold": {},
              "tables": {}, "coverage": "none"}  # fmt: skip
    decision = Decision(scenes=0, **fields)
    assert np.isnan(decision.score) and decision.expected is None
    decision.write(tmp_path / "decode.json")
    assert Decision.read(tmp_path / "decode.json") == decision
    with pytest.raises(ValidationError, match="expected those of 3 scenes, found none"):
        Decision(scenes=3, **fields)


def test_of_a_large_scene_pixels_on_a_regular_grid_tell_how_sure_averages_are(monkeypatch):
    """Levels and truth of a scene in which every pixel has a level of its own, counted once per average."""
    monkeypatch.setattr(evidence, "SAMPLED", 16)
    levels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    read = []

    def target(scene, task):
        read.append(task)
        return (levels[0] >= 32).astype(np.uint8)

    competition = SimpleNamespace(tasks={"loc": BinaryMask(("a",))}, training_target=target, truth=lambda scene: None,
                                  detail=lambda answer, truth: np.zeros(1), decode=lambda *given: 0)  # fmt: skip
    source = SimpleNamespace(fold_of={"a": 0}, competition=competition, counts_sureness=True, _known=[],
                             members=lambda scene: SimpleNamespace(average=lambda *given: {"loc": levels}))  # fmt: skip
    item = evidence.OutOfFoldScene(source, Scene("a", {}))
    choice = Choice(ONLY_A, {}, USUAL)
    for settings in ({}, {"threshold": 0.3}):  # two choices of the same average
        item.detail(choice.change(**settings))
    source._known = [({}, item.details)]
    (counts,) = OutOfFold.sureness(source, choice).values()
    seen = levels[0, ::2, ::2].ravel()
    assert read == ["loc"] and counts.sum() == 16
    assert [counts[level].tolist() for level in seen] == [[int(level < 32), int(level >= 32)] for level in seen]
    assert not OutOfFold.sureness(source, Choice({"b": 1.0}, {}, USUAL))
