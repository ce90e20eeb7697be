"""The experiment sheet: scores and settings as decode.json and the manifests have them; nothing is dropped."""

import csv
import json

import pytest
from invented import GIT, build, decoded, experiment

from lib.choose.choice import Decision
from lib.errors import ArtifactError
from lib.run.artifacts import Store
from lib.run.graph import Graph
from lib.tools import sheet, table


def test_a_row_holds_scores_seconds_and_only_the_settings_that_differ(tmp_path):
    searched = decoded(0.8, expected_score=0.75, score_without_search=0.7)
    build(tmp_path, experiment("a"), searched)
    build(tmp_path, experiment("b", lr=5.0e-4, seed=1, predict={"tta": "flips"}), decoded(0.6))  # flips: the default
    first, second = sheet.sheet(sheet.experiments(tmp_path))
    assert list(first) == list(second)
    assert [first[k] for k in ("name", "status", "commit")] == ["a", "finished", "0123456789ab+"]
    assert [first[k] for k in ("score", "expected_score", "score_without_search")] == [0.8, 0.75, 0.7]
    assert first["oof.iou"] == 0.4
    assert [first[k] for k in ("folds", "scenes")] == [2, 7]
    assert first["seconds"] == 1 + 2 * 20 + 2 * 3.5 + 0.5
    assert [first[f"seconds.{s}"] for s in sheet.STAGES] == [1, 40, 0, 7, 0.5, 0]
    settings = list(first)[list(first).index("seconds.06") + 1 :]
    assert settings == ["models.net.train.optimizer.lr", "seed"]
    assert [[row[k] for k in settings] for row in (first, second)] == [[1.0e-3, 0], [5.0e-4, 1]]


def test_without_a_search_the_score_is_its_own_expectation_and_with_one_fold_there_is_none(tmp_path):
    fixed = sheet.outcome(Decision(**decoded(0.6)))
    assert fixed["expected_score"] == fixed["score_without_search"] == 0.6
    one_fold = sheet.outcome(Decision(**decoded(0.6, score_without_search=0.5, expected_score=None)))
    assert one_fold["expected_score"] is None and one_fold["score_without_search"] == 0.5


def test_a_default_is_shown_where_another_experiment_has_something_else(tmp_path):
    build(tmp_path, experiment("a"), decoded(0.5))
    build(tmp_path, experiment("b", predict={"overlap": 0.5}, train={"clip": 1.0}), decoded(0.5))
    build(tmp_path, experiment("c", search={"axes": {"threshold": [0.4, 0.5]}}), decoded(0.5))
    rows = sheet.sheet(sheet.experiments(tmp_path))
    assert [row["predict.overlap"] for row in rows] == [0.25, 0.5, 0.25]
    assert [row["models.net.train.clip"] for row in rows] == [None, 1.0, None]
    assert [row["search.axes.threshold"] for row in rows] == [None, None, [0.4, 0.5]]


def test_unfinished_stale_and_damaged_experiments_are_named(tmp_path):
    build(tmp_path, experiment("done"), decoded(0.5))
    half = build(tmp_path, experiment("half", lr=0.1), None)
    (half / "04_probs/loc/net/fold0/oof.partial").mkdir(parents=True)
    (half / "04_probs/loc/net/fold0/oof.partial/unit.json").write_text("{}")
    build(tmp_path, experiment("old"), decoded(0.5))
    build(tmp_path, experiment("old", lr=0.2), None)  # trained anew, not predicted
    (build(tmp_path, experiment("gone"), decoded(0.5)) / "05_ensemble/decode/decode.json").unlink()
    odd = decoded(0.5) | {"scores": {"score": "high"}}
    build(tmp_path, experiment("odd"), odd)
    (build(tmp_path, experiment("torn"), decoded(0.5)) / "01_folds/manifest.json").write_text("{")
    (tmp_path / "pictures").mkdir()  # no experiment
    status = {row["name"]: row["status"] for row in sheet.sheet(sheet.experiments(tmp_path))}
    assert status.pop("done") == "finished"
    assert status["half"] == "unfinished: 3 units done, last 02_loc/net/fold1; begun 04_probs/loc/net/fold0/oof"
    assert status["old"].startswith("stale: 04_probs/loc/net/fold")
    assert status["gone"].startswith("damaged: ") and "decode.json: deleted" in status["gone"]
    assert status["torn"].startswith("damaged: ") and "not valid JSON" in status["torn"]
    assert status["odd"].startswith("damaged: ") and "decode.json: scores.score" in status["odd"]
    assert set(status) == {"half", "old", "gone", "torn", "odd"}
    shown = sheet.shown(sheet.sheet(sheet.experiments(tmp_path)))
    assert all(f"\n{name}: {why}" in shown for name, why in status.items())


def test_a_network_of_other_bytes_makes_an_experiment_stale(tmp_path):
    config = experiment("again")
    build(tmp_path, config, decoded(0.5))
    with Store(tmp_path / "again").build(Graph(config, ["a", "b"], ["t"]).checkpoint("net", 0), {"git": GIT}) as folder:
        (folder / "best.safetensors").write_text("trained by other code")
    (row,) = sheet.sheet(sheet.experiments(tmp_path))
    assert row["status"] == "stale: 04_probs/loc/net/fold0/oof was made with another 02_loc/net/fold0"


def test_what_an_unfinished_experiment_has_not_said_is_no_difference(tmp_path):
    build(tmp_path, experiment("done", predict={"overlap": 0.5}, train={"clip": 1.0}), decoded(0.5))
    build(tmp_path, experiment("half", lr=0.1), None)
    rows = sheet.sheet(sheet.experiments(tmp_path))
    assert "predict.overlap" not in rows[0] and rows[1]["models.net.train.optimizer.lr"] == 0.1


def test_the_command_writes_every_row(tmp_path, capsys):
    build(tmp_path, experiment("a"), decoded(0.5))
    build(tmp_path, experiment("b", lr=0.1), None)
    assert sheet.main(["--workdir", str(tmp_path)]) == 0
    with open(tmp_path / "sheet.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["score"]) for row in rows] == [("a", "0.5"), ("b", "")]
    assert "b: unfinished" in capsys.readouterr().out
    assert sheet.main(["--workdir", str(tmp_path), "nobody"]) == 2
    with pytest.raises(ArtifactError, match="no such folder"):
        sheet.experiments(tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_real_experiment_says_what_its_decode_json_says(finished):
    (row,) = sheet.sheet([finished.root])
    found = json.loads((finished.root / "05_ensemble/decode/decode.json").read_text())
    assert row["status"] == "finished"
    assert row["score"] == found["scores"]["score"]
    assert row["expected_score"] == found["expected_score"]
    assert (row["folds"], row["scenes"]) == (2, 6)
    settings = sheet.stated(sheet.manifests(finished.root))
    assert settings["models.cls.train.sampling.focus.minor-damage"] == 1
    assert settings["models.loc.train.batch_size"] == 2
    assert settings["models.loc.train.accumulate"] == 1  # a default


def test_a_table_aligns_numbers_to_the_right_and_words_to_the_left():
    rows = [{"name": "a", "n": 10}, {"name": "longer", "n": None, "x": 0.25}]
    assert table.text(rows) == "name     n       x\na       10\nlonger      0.2500"
