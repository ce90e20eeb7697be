"""Figures of a source stand beside our scores, with the source and the difference, and never among them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from invented import build, decoded, experiment
from sisters import EXPERIMENTS

from lib.choose.choice import Decision
from lib.competitions import open_competition
from lib.config.check import competition_faults
from lib.config.load import load
from lib.config.reference import Reference, difference
from lib.config.sections import plain
from lib.errors import ConfigError
from lib.report import __main__ as report
from lib.report import tables
from lib.report.tables import compare
from lib.tools import sheet

ANIMALS = ROOT / "configs" / "animals_unet.yaml"
STATED = {"source": "a paper, table 2", "data": "its validation split", "scores": {"score": 0.7, "iou": [0.2, 0.3]}}


def reference(**scores) -> Reference:
    return Reference.model_validate({**STATED, "scores": scores})


# ---- one line per score -------------------------------------------------------------------------------
def test_every_shared_score_has_ours_the_sources_and_the_difference():
    first, score, iou = reference(score=0.7, iou=[0.2, 0.3], foreign=1).beside({"score": 0.65, "iou": 0.25, "x": 1})
    assert first == "beside the figures of a paper, table 2, measured on its validation split:"
    assert score.split() == ["score", "ours", "0.6500", "source", "0.7", "difference", "-0.0500"]
    assert iou.split() == ["iou", "ours", "0.2500", "source", "0.2", "to", "0.3", "difference", "+0.0000"]


def test_nothing_is_said_where_no_score_has_a_name_of_ours():
    assert reference(score=0.7).beside({"dice2020": 0.9}) == []


@pytest.mark.parametrize(("ours", "apart"), [(0.1, -0.1), (0.2, 0), (0.25, 0), (0.3, 0), (0.45, 0.15)])
def test_the_difference_to_a_range_is_that_to_its_nearer_end(ours, apart):
    assert difference(ours, (0.2, 0.3)) == pytest.approx(apart)


# ---- refused ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("change", "sentence"), [
    ("reference={source: a paper, scores: {score: 0.7}}", "reference.data: required, but missing"),
    ("reference={source: a paper, data: a split, scores: {}}", "reference.scores: "),
    ("reference={source: '', data: a split, scores: {score: 0.7}}", "reference.source: "),
    ("reference={source: a paper, data: a split, scores: {score: [0.3, 0.2]}}", "lower end first"),
    ("reference={source: a paper, data: a split, score: 0.7}", "reference.score: unknown key; did you mean scores?"),
])  # fmt: skip
def test_a_reference_without_its_parts_is_refused(change, sentence):
    with pytest.raises(ConfigError) as caught:
        load(ANIMALS, [change])
    assert sentence in str(caught.value)


def test_a_score_that_the_competition_does_not_have_is_refused_before_work_begins(tmp_path):
    config = load(ANIMALS, [f"data.root={tmp_path}", "reference.scores={iou_lyon: 0.2, score: 0.1}"])
    competition = open_competition("voc", tmp_path, config.data.options)
    (fault,) = competition_faults(config, competition)
    assert fault.startswith("reference.scores: expected one of score, pixel_accuracy, iou, iou_background,")
    assert fault.endswith("got 'iou_lyon'; did you mean iou_lion?")


@pytest.mark.parametrize("name", sorted((ROOT / "configs").glob("animals_*.yaml")), ids=lambda path: path.stem)
def test_shipped_figures_have_names_of_our_scores(name, tmp_path):
    config = load(name, [f"data.root={tmp_path}"])
    assert config.reference.scores
    assert competition_faults(config, open_competition("voc", tmp_path, config.data.options)) == []


@pytest.mark.parametrize("name", [*EXPERIMENTS, "xview2"])
def test_names_and_numbers_of_counts_are_known_without_data(name, tmp_path):
    options = EXPERIMENTS.get(name, {"data": {}})["data"].get("options", {})
    options |= {"classes": ["rings", "checks", "bars"]} if name == "labels" else {}
    competition = open_competition(name, tmp_path, options)
    role, task = next(iter(competition.tasks.items()))
    levels = {role: np.zeros((task.channels, 8, 8), np.uint8) for role, task in competition.tasks.items()}
    answer = competition.decode(levels if task.dense else {role: levels[role][:, :1]}, {})
    truth = {"labels": 0, "videos": 0}.get(name, answer)
    counts = competition.tally(answer, truth)
    assert counts.shape == (competition.counted,)
    assert tuple(competition.scores(counts)) == competition.score_names()


# ---- the older form -----------------------------------------------------------------------------------
def test_scores_alone_are_taken_and_said_to_be_of_no_named_source():
    older = Reference.model_validate({"score": 0.9})
    assert older.scores == {"score": 0.9} and "not named" in older.beside({"score": 0.9})[0]


# ---- tools --------------------------------------------------------------------------------------------
def finished(folder, name, score, **changes):
    """Return the folder of an invented experiment whose stage 05 recorded its reference."""
    config = experiment(name, **changes)
    root = build(folder, config, decoded(score))
    manifest = root / "05_ensemble/decode/manifest.json"
    stated = {"reference": plain(config.reference)} if config.reference else {}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **stated}))
    return root


def test_the_sheet_has_the_figures_in_columns_of_their_own(tmp_path):
    finished(tmp_path, "a", 0.6, reference=STATED)
    finished(tmp_path, "b", 0.8)
    with_source, without = sheet.sheet(sheet.experiments(tmp_path))
    assert (with_source["score"], with_source["oof.iou"]) == (0.6, 0.3)  # ours stay ours
    assert with_source["source"] == "a paper, table 2" and with_source["source.data"] == "its validation split"
    assert with_source["source.score"] == 0.7 and with_source["difference.score"] == pytest.approx(-0.1)
    assert with_source["source.iou"] == (0.2, 0.3) and with_source["difference.iou"] == 0
    assert without["score"] == 0.8 and without["source.score"] is None and without["difference.score"] is None
    shown = sheet.shown([with_source, without]).splitlines()
    assert {"source.score", "difference.score", "source"} <= set(shown[0].split())
    assert "a paper, table 2" in shown[2]  # below b, which scores higher


def test_the_sheet_without_any_source_has_no_such_columns(tmp_path):
    finished(tmp_path, "b", 0.8)
    (row,) = sheet.sheet(sheet.experiments(tmp_path))
    assert not any(name.startswith(("source", "difference")) for name in row)


def test_a_changed_reference_makes_no_result_stale(tmp_path):
    finished(tmp_path, "a", 0.6, reference=STATED)
    build(tmp_path, experiment("a"), decoded(0.6))
    (row,) = sheet.sheet(sheet.experiments(tmp_path))
    assert row["status"] == "finished"


def test_two_sources_compared_give_the_gains_that_the_report_itself_states():
    """Its table of gains per class: 9.7, 58.5, 217.9, 353.4, 157.3, 123.7 and 66.3 %."""
    text = compare(ROOT / "configs/animals_attention_unet.yaml", ROOT / "configs/animals_effnetb3.yaml")
    lines = text.splitlines()
    gains = [line.split()[-2] for line in lines if line.startswith("iou_")]
    assert gains == ["+9.7", "+58.5", "+217.9", "+353.4", "+157.3", "+123.7", "+66.3"]
    assert "animals_attention_unet*" in lines[0] and lines[-1].startswith("* animals_effnetb3: ")


def test_an_experiment_is_compared_with_its_source(tmp_path, capsys):
    root = finished(tmp_path, "a", 0.35)
    assert report.main([str(ROOT / "configs/animals_effnetb3.yaml"), str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("score ")]
    assert line.split() == ["score", "0.7000", "0.3500", "-50.0", "%"]
    assert "Animal Segmentation" in lines[-1] and "validation split" in lines[-1]
    assert "Figures of the source: " in (root / "report/beside.html").read_text()


def test_a_range_is_shown_and_has_no_gain(tmp_path):
    root = finished(tmp_path, "a", 0.35)
    (line,) = [x for x in compare(ANIMALS, root).splitlines() if x.startswith("score ")]
    assert line.split() == ["score", "0.1", "to", "0.15", "0.3500", "-"]


def test_a_file_without_a_reference_is_refused_with_a_sentence(tmp_path, capsys):
    root = finished(tmp_path, "a", 0.35)
    assert report.main([str(ROOT / "configs/demo.yaml"), str(root)]) == 2
    assert "reference: expected the figures of the experiment's source" in capsys.readouterr().err


def test_a_figure_that_is_none_of_our_scores_is_said_at_the_end(monkeypatch):
    monkeypatch.setattr(
        Decision, "of", lambda run: Decision(**decoded(0.6, per_fold={"0": {"scenes": 7, "score": 0.6}}))
    )
    config = SimpleNamespace(reference=reference(score=0.7, top5=0.9), models={})
    lines = tables.decision_table(SimpleNamespace(config=config)).splitlines()
    assert "  the source's top5: none of our scores here" in lines
    assert "  beside the figures of a paper, table 2, measured on its validation split:" in lines
    ours = [line for line in lines if line.startswith("  score  ")]
    assert [line.split() for line in ours] == [["score", "0.6000"]]  # a line of its own, without the source's figure
