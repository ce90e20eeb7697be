"""What a stage says of the units that it is asked for: skipped, tried again, taken over, refused."""

import json
import os

import pytest
from invented import experiment

from lib.errors import ArtifactError
from lib.run import cli
from lib.run.artifacts import MANIFEST, Store
from lib.run.cli import Run
from lib.run.graph import Graph
from lib.stages.ensemble import fallbacks


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The invented experiment with its stages up to 05 done; one scene failed in both folds."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(cli, "say", print)
    config = experiment("own")
    graph, store = Graph(config, ["a", "b"], ["t", "u"]), Store(tmp_path / "own", code="now")
    probs = [graph.probs("net", fold, "test") for fold in (0, 1)]
    for unit in (graph.folds(), *(graph.checkpoint("net", fold) for fold in (0, 1)), *probs):
        with store.build(unit, {"failed": {"u": "broken"}} if unit in probs else {}) as folder:
            (folder / "file").write_text(unit.key)
    return Run(config, None, store, graph, None, None, ("oof", "test"), False, False)


def test_a_unit_in_which_scenes_failed_tries_them_again_until_they_are_there(run, capsys):
    probs = run.graph.probs("net", 0, "test")
    assert list(run.pending([probs])) == [probs]
    assert "test: scenes with the fallback: 1 (u), trying them again" in capsys.readouterr().out
    assert run.store.status(probs) == "done", "and until then what is there is used"
    with run.store.build(probs, {}):
        pass
    assert list(run.pending([probs])) == [] and "skipped, done" in capsys.readouterr().out


def test_the_stages_after_it_say_how_many_scenes_have_the_fallback(run):
    assert list(fallbacks(run)) == ["test: scenes with the fallback of stage 04: 1 (u); stage 04 tries them again "
                                    "whenever it is run"]  # fmt: skip
    for fold in (0, 1):
        with run.store.build(run.graph.probs("net", fold, "test"), {}):
            pass
    assert list(fallbacks(run)) == []


def test_a_finished_unit_with_a_file_that_is_not_its_own_is_refused(run):
    net = run.graph.checkpoint("net", 0)
    (run.store.root / net.key / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"fold0/notes.txt: expected only what .* lists, found 1 .*; move them"):
        list(run.pending([net]))


def test_a_unit_of_an_earlier_version_is_taken_over_and_that_is_said_once(run, capsys):
    net = run.graph.checkpoint("net", 0)
    path = run.store.root / net.key / MANIFEST
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in ("sha256", "content")}))
    assert list(run.pending([net])) == [] and "of an earlier version: taken as it is" in capsys.readouterr().out
    assert list(run.pending([net])) == [] and "earlier version" not in capsys.readouterr().out
    assert json.loads(path.read_text())["sha256"] == content["sha256"]


def test_why_a_unit_is_built_anew_is_said(run, capsys):
    folds, net = run.graph.folds(), run.graph.checkpoint("net", 1)
    with run.store.build(folds, {}) as folder:
        (folder / "file").write_text("other folds")
    assert list(run.pending([net])) == [net]
    (run.store.root / folds.key / "file").write_text("OTHER FOLDS")
    assert list(run.pending([folds])) == [folds]
    said = capsys.readouterr().out
    assert "02_loc/net/fold1: stale (made from another 01_folds), rebuilding" in said
    assert "01_folds: damaged (" in said and "file: its bytes changed after it was written" in said
