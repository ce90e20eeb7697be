"""Learning curves: what the logs say, the stars where the score is above all before."""

import csv

import pytest
from invented import build, experiment

from lib.errors import ArtifactError
from lib.report import logs as logs_of
from lib.tools import curves

SCORES = {1: 0.2, 2: None, 3: 0.1, 4: 0.5, 5: 0.5}


def line(epoch: int, score: float | None, **more) -> dict:
    row = {"epoch": epoch, "loss": 1 / epoch, "raw_bce": 2 / epoch, "raw_dice": 0.5, "weighted_bce": 1.0, **more}
    row["amp"] = {"precision": "float32"}
    return row if score is None else {**row, "scores": {"select": score, "iou": score / 2}, "new_best": True}


LOG = [line(epoch, score) for epoch, score in SCORES.items()]


def test_a_log_is_a_row_per_epoch_with_flat_names(tmp_path):
    logs = curves.read_logs(build(tmp_path, experiment("a"), None, LOG))
    assert list(logs) == ["net/fold0", "net/fold1"]
    log = logs["net/fold0"]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4, 5]
    assert (log[3]["score.iou"], log[3]["amp.precision"]) == (0.25, "float32")
    assert curves.series(log, "score.select") == ([1, 3, 4, 5], [0.2, 0.1, 0.5, 0.5])
    assert curves.terms(log) == ["bce", "dice"]


def test_a_new_best_is_above_all_before_it_whatever_the_log_calls_best():
    rows = [{"epoch": e} if s is None else {"epoch": e, "score.select": s, "new_best": True} for e, s in SCORES.items()]
    assert [row["new_best"] for row in logs_of.mark_best(rows)] == [True, False, False, True, False]


def test_a_network_in_training_shows_its_present_log(tmp_path):
    root = build(tmp_path, experiment("a"), None, LOG)
    (root / "02_loc/net/fold0").rename(root / "02_loc/net/fold0.partial")
    again = root / "02_loc/net/fold1.partial"
    again.mkdir()
    (again / "log.jsonl").write_text('{"epoch": 1, "loss": 3.0, "raw_bce": 3.0}\n')
    logs = curves.read_logs(root)
    assert {name: len(log) for name, log in logs.items()} == {"net/fold0": 5, "net/fold1": 1}


def test_without_logs_or_with_a_broken_one_there_is_one_sentence(tmp_path):
    with pytest.raises(ArtifactError, match="expected logs"):
        curves.read_logs(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(ArtifactError, match="line 2: not valid JSON"):
        logs_of.rows_of(tmp_path / "log.jsonl")


def test_the_command_draws_several_experiments_and_writes_every_epoch(tmp_path, capsys):
    roots = [build(tmp_path, experiment(name), None, LOG) for name in ("a", "b")]
    assert curves.main([str(root) for root in roots]) == 0
    picture = roots[0] / "report/curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out
    with open(picture.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 5
    assert {row["experiment"] for row in rows} == {"a", "b"}
    assert [row["new_best"] for row in rows[:5]] == ["true", "false", "false", "true", "false"]


def test_the_panels_hold_the_curves_and_the_stars(tmp_path, monkeypatch):
    logs = {"a": curves.read_logs(build(tmp_path, experiment("a"), None, LOG))}
    kept = []
    monkeypatch.setattr(curves.plt, "close", kept.append)
    curves.draw(logs, tmp_path / "curves.png")
    monkeypatch.undo()
    left, right = kept[0].axes
    assert [list(drawn.get_ydata()) for drawn in left.lines[:2]] == [[2 / e for e in SCORES], [0.5] * 5]
    score, stars = right.lines[:2]
    assert list(score.get_xdata()) == [1, 3, 4, 5] and list(stars.get_xdata()) == [1, 4]
    curves.plt.close(kept[0])
