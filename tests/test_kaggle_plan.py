"""The kernel's plan: what it keeps in how many seconds, what it says, and passes that keep to the clock."""

import json
from math import inf
from pathlib import Path

import pytest

from lib.choose.choice import Decision, Subset
from lib.config.load import load
from lib.errors import ArtifactError
from lib.inference.tta import VIEWS
from lib.kaggle import passes
from lib.kaggle.passes import Budget, OutOfTime, carry_out, evenly_spaced, reduced_run
from lib.kaggle.plan import RESERVE, Costs, KernelPlan, Timing, describe, make_plan, reduced, subsets_of
from lib.run.artifacts import Store
from lib.run.cli import Run
from lib.run.graph import Graph

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
BOTH = ("a", "b")
FULL = Subset(BOTH, "flips", 0.80)


def costs(**changes) -> Costs:
    """100 scenes; a network of a: 1 s to load, per scene 0.1 s and 0.1 s for each view; b twice as slow per view."""
    stated = {"scenes": 100, "workers": 1, "folds": {"a": 4, "b": 2}, "read": 0.0, "finish": 0.0,
              "timings": {"a": Timing(1.0, 0.1, 0.1), "b": Timing(1.0, 0.1, 0.2)}}  # fmt: skip
    return Costs(**{**stated, **changes})


# ---- costs --------------------------------------------------------------------------------------------
def test_costs_add_up():
    assert costs().predicting(["a"], "none", 1) == pytest.approx(1 + 100 * 0.2)
    assert costs().predicting(["a"], "flips", 9) == pytest.approx(4 * (1 + 100 * 0.5)), "4 folds are all there are"
    assert costs().predicting(BOTH, "hflip", 3) == pytest.approx(3 * (1 + 30) + 2 * (1 + 50))
    assert costs(workers=2).predicting(["a"], "none", 1) == pytest.approx(1 + 50 * 0.2), "each worker loads it"
    assert costs(read=0.01, finish=0.1).finishing(BOTH, 3) == pytest.approx(100 * (5 * 0.01 + 0.1))
    slow = costs(finish=0.1)
    assert slow.total(Subset(("a",), "none"), 1) == pytest.approx((21 + 10) * (1 + RESERVE)), "one submission"
    assert slow.total(Subset(("a",), "none"), 2) == pytest.approx((42 + 20) * (1 + RESERVE)), "and after fold 1"


# ---- the choice ---------------------------------------------------------------------------------------
SUBSETS = [FULL, Subset(BOTH, "none", 0.78), Subset(("a",), "flips", 0.79), Subset(("a",), "none", 0.70),
           Subset(("b",), "flips", 0.79), Subset(("b",), "none", 0.72)]  # fmt: skip


def needed(subset: Subset, folds: int) -> float:
    return costs().total(subset, folds)


def test_what_fits_is_not_touched_even_where_less_scored_more():
    compared = [*SUBSETS, Subset(("a",), "hflip", 0.99)]
    found = make_plan(costs(), FULL, compared, needed(FULL, 4))
    assert (found.subset.models, found.subset.tta, found.folds) == (BOTH, "flips", 4)
    assert make_plan(costs(), FULL, [], inf).subset.models == BOTH


def test_of_what_fits_with_all_folds_the_best_score_wins_and_ties_go_to_the_cheaper():
    found = make_plan(costs(), FULL, SUBSETS, needed(FULL, 4) - 1)
    assert (found.subset.models, found.subset.tta, found.folds, found.subset.score) == (
        ("b",),
        "flips",
        4,
        0.79,
    )  # 2 folds: cheaper than a
    assert needed(SUBSETS[4], 4) < needed(SUBSETS[2], 4)
    found = make_plan(costs(), FULL, SUBSETS, needed(SUBSETS[5], 4))
    assert (found.subset.models, found.subset.tta, found.folds) == (("b",), "none", 4)


def test_no_plan_exceeds_the_seconds_and_more_seconds_never_score_less():
    scores = []
    for seconds in range(0, 700, 3):
        found = make_plan(costs(), FULL, SUBSETS, seconds)
        assert found is None or needed(found.subset, found.folds) <= seconds
        if found and found.compared and found.folds == 4:
            scores.append(found.subset.score)
    assert scores == sorted(scores) and len(set(scores)) > 3


def test_folds_are_left_out_only_where_nothing_fits_with_all_of_them():
    only_a = [Subset(("a",), "flips", 0.79)]
    full = only_a[0]
    found = make_plan(costs(), full, only_a, needed(full, 3) + 1)
    assert (found.folds, found.subset.tta, found.compared) == (3, "flips", True)
    cheap = Subset(("a",), "none", 0.1)
    assert make_plan(costs(), full, [*only_a, cheap], needed(full, 3) + 1).subset.tta == "none", "all folds come first"


def test_views_that_were_not_compared_come_last_and_without_a_score():
    full = Subset(("a",), "flips", 0.79)
    found = make_plan(costs(), full, [], needed(full, 1) - 1)
    assert (found.folds, found.subset.tta, found.compared, found.subset.score) == (2, "none", False, None)
    assert "none (1) instead of flips (4), which were not compared out of fold" in describe(costs(), full, found, 9)
    compared = [full, Subset(("a",), "none", 0.7)]
    assert make_plan(costs(), full, compared, needed(full, 1) - 1).compared
    assert make_plan(costs(), full, compared, 1.0) is None


def test_the_plan_is_told_with_what_it_costs():
    said = describe(costs(), FULL, make_plan(costs(), FULL, SUBSETS, 90), 90)
    assert "everything needs 7 min 04 s, 1 min 30 s are left" in said
    assert "left out: the model a; views: none (1) instead of flips (4); so it needs 1 min 08 s" in said
    assert "out-of-fold score 0.7200, 0.8000 with everything" in said
    assert describe(costs(), FULL, make_plan(costs(), FULL, [], inf), 9999).endswith("nothing is left out")
    fewer = make_plan(costs(), FULL, [FULL], needed(FULL, 2))
    assert "folds: 2 of 4 (what they are worth is not known out of fold)" in describe(costs(), FULL, fewer, 9)
    assert "nothing is predicted" in describe(costs(), FULL, None, -5) and "0.0 s are left" in describe(
        costs(), FULL, None, -5)  # fmt: skip


# ---- the experiment -----------------------------------------------------------------------------------
LOC, CLS = "loc_lite0", "cls_lite0"


def test_a_reduced_experiment_needs_no_model_that_it_leaves_out():
    config = load(DEMO, ["models.cls_lite0.train.init_from=loc_lite0", "models.cls_lite0.train.localization=loc_lite0"])
    small = reduced(config, Subset((CLS,), "none"), 1)
    assert list(small.models) == [CLS] and small.predict.tta_sets == ("none",)
    assert small.folds_of(small.models[CLS]) == (0,)
    assert [unit.key for unit in Graph(small, (), ("t",)).checkpoint(CLS, 0).upstream] == ["01_folds"]
    whole = Graph(reduced(config, Subset(tuple(config.models), config.predict.tta)), (), ("t",))
    assert whole.config.folds_of(whole.config.models[LOC]) == config.folds_of(config.models[LOC])
    assert whole.submission("test").upstream[0].facts == Graph(config, (), ("t",)).submission("test").upstream[0].facts


def decided(**changes) -> Decision:
    """Return a decision that says no more than it must."""
    stated = {"params": {}, "weights": {}, "tta": "flips", "crf": False,
              "scenes": 1, "scores": {"score": 0.5}, "interval95": (0.4, 0.6), "per_domain": {}, "per_fold": {},
              "tables": {}, "coverage": "all"}  # fmt: skip
    return Decision(**{**stated, **changes})


def test_subsets_are_what_decode_json_compared():
    config = load(DEMO, ["predict.tta=[none, flips]"])
    everything = Subset((LOC, CLS), "flips")
    assert subsets_of(config, decided()) == (everything, []), "no plans: all models, the views that were chosen"
    plans = [Subset((CLS, LOC), "none", 0.7, 1.0), Subset((LOC, CLS), "flips", 0.8, 4.0)]
    full, compared = subsets_of(config, decided(tta="none", plans=plans))
    assert full == Subset((LOC, CLS), "none", 0.7, 1.0)
    assert [subset.tta for subset in compared] == ["none", "flips"]
    with pytest.raises(ArtifactError, match="its plans name gone"):
        subsets_of(config, decided(plans=[Subset(("gone", LOC), "none", 0.7)]))


def test_a_model_whose_fitted_weight_is_0_is_not_predicted():
    spare = json.dumps(load(DEMO).models[LOC].model_dump(mode="json"))
    config = load(DEMO, [f"models.spare={spare}", "blend.fit=0.5"])
    plans = [Subset(names, "flips", 0.7) for names in ((LOC, CLS, "spare"), (LOC, CLS), ("spare", CLS))]
    weights = {LOC: 1.0, CLS: 1.0, "spare": 0.0}
    full, compared = subsets_of(config, decided(weights=weights, plans=plans))
    assert full.models == (LOC, CLS) and {subset.models for subset in compared} == {(LOC, CLS)}
    stated = subsets_of(load(DEMO, [f"models.spare={spare}"]), decided(weights=weights))[0]
    assert stated.models == (LOC, CLS, "spare")


# ---- passes -------------------------------------------------------------------------------------------
class Clock:
    """Time that passes only where the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Kernel:
    """The demo experiment with frozen checkpoints; networks and submissions only take time."""

    def __init__(self, folder: Path, monkeypatch):
        self.config = load(DEMO, ["folds.n=4", "models.cls_lite0.folds=[0, 1, 3]"])
        inputs = folder / "inputs"
        for name, role in ((LOC, "02_loc"), (CLS, "03_cls")):
            for fold in self.config.folds_of(self.config.models[name]):
                frozen = inputs / role / name / f"fold{fold}"
                frozen.mkdir(parents=True)
                (frozen / "manifest.json").write_text('{"fingerprint": "f", "files": {}}')
        graph = Graph(self.config, (), ("t",))
        store = Store(folder / "work", (inputs,))
        self.run = Run(self.config, None, store, graph, None, None, ("test",), False, False).on("cpu")
        self.clock, self.done, self.handed = Clock(), [], []
        self.seconds = {LOC: 10.0, CLS: 20.0}
        self.slow = {}
        monkeypatch.setattr(passes, "predict", self.predict)
        monkeypatch.setattr(Store, "older_code", lambda *_: False)

    def predict(self, run, units, pool, tick):
        (unit,) = units
        _, _, name, fold, _ = unit.key.split("/")
        with run.store.build(unit, {"failed": {"t": "broken"}} if fold == "fold3" else {}):
            for _ in range(4):
                self.clock.now += self.slow.get((name, fold), self.seconds[name]) / 4
                tick()
        self.done.append((name, int(fold[-1])))

    def hand_in(self, run):
        self.handed.append({name: run.config.folds_of(model) for name, model in run.config.models.items()})
        self.clock.now += sum(map(len, self.handed[-1].values())) / 2  # half a second a network

    def carry_out(self, seconds=inf, models=(LOC, CLS), folds=4):
        plan = KernelPlan(Subset(models, "none"), folds, 0.0)
        return carry_out(self.run, plan, None, self.hand_in, Budget(seconds, self.clock), 0.5)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    return Kernel(tmp_path, monkeypatch)


def test_every_pass_predicts_one_fold_of_every_model_and_two_submissions_are_written(kernel):
    assert kernel.carry_out() == {"t": "broken"}
    order = [(LOC, 0), (CLS, 0), (LOC, 1), (CLS, 1), (LOC, 2), (CLS, 3), (LOC, 3)]
    assert sorted(kernel.done[:2]) == sorted(order[:2]) and sorted(kernel.done[2:4]) == sorted(order[2:4])
    assert sorted(kernel.done) == sorted(order)
    assert kernel.handed == [{LOC: (0,), CLS: (0,)}, {LOC: (0, 1, 2, 3), CLS: (0, 1, 3)}]


def test_a_single_fold_is_submitted_once(kernel):
    kernel.carry_out(folds=1)
    assert kernel.handed == [{LOC: (0,), CLS: (0,)}]


def test_a_pass_that_will_not_end_in_time_is_left_out_and_said(kernel, capsys):
    kernel.carry_out(seconds=92)  # 30 a pass, 1 for a submission of 2 networks, so 3 for one of 6
    assert kernel.handed == [{LOC: (0,), CLS: (0,)}, {LOC: (0, 1), CLS: (0, 1)}] and kernel.clock.now == 63
    assert "2 of 4 folds left out: the next one needs 33.0 s, 31.0 s are left" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", range(31, 125, 9))
def test_the_end_is_in_the_budget_whatever_it_is(kernel, seconds):
    kernel.carry_out(seconds=seconds)
    assert kernel.clock.now <= seconds and kernel.handed
    assert set(kernel.handed[-1][LOC]) == {fold for name, fold in kernel.done if name == LOC}


def test_a_pass_slower_than_the_earlier_ones_is_given_up(kernel, capsys):
    kernel.slow = {(CLS, "fold1"): 400.0}
    kernel.carry_out(seconds=100)
    assert kernel.handed == [{LOC: (0,), CLS: (0,)}] and "used up in fold 2 of 4; this fold is left out" in (
        capsys.readouterr().out)  # fmt: skip
    assert kernel.clock.now < 200, "not to its end"


def test_a_first_pass_that_does_not_end_in_time_is_an_error(kernel):
    with pytest.raises(OutOfTime, match="used up in fold 1 of 4"):
        kernel.carry_out(seconds=20)
    assert not kernel.handed


def test_models_of_a_plan_are_all_that_is_predicted(kernel):
    kernel.carry_out(models=(CLS,), folds=2)
    assert kernel.done == [(CLS, 0), (CLS, 1)]
    assert reduced_run(kernel.run, Subset((CLS,), "none"), 2).graph.blend("test").facts["weights"].keys() == {CLS}


def test_measured_scenes_are_spread_over_the_set():
    assert evenly_spaced(range(10), 3) == [0, 3, 6] and evenly_spaced(range(2), 3) == [0, 1] and len(VIEWS["none"]) == 1
