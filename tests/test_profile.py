"""Where the time went, from the clocks in the manifests of an experiment."""

import pytest

from lib.files import read_json, write_json
from lib.report import contents
from lib.report.costs import costs
from lib.report.times import by_stage, times
from lib.tools import profile


def unit(root, key, seconds, **entries):
    (root / key).mkdir(parents=True)
    write_json(root / key / "manifest.json", {"fingerprint": "f", "files": {}, "seconds": seconds, **entries})


@pytest.fixture
def experiment(tmp_path):
    root = tmp_path / "workdir" / "exp<1>"
    unit(root, "01_folds", 3.0)
    unit(root, "02_loc/net/fold0", 10.0, clock={"read": 1.5, "forward": 2.0, "backward": 4.0})
    unit(root, "02_loc/net/fold1", 20.0, clock={"read": 2.5, "forward": 5.0, "backward": 9.25, "optimizer": 1.0})
    unit(root, "02_loc/net/fold2.partial", 99.0, clock={"read": 99.0})
    unit(root, "02_loc/net/fold0.old", 99.0, clock={"read": 99.0})
    unit(root, "04_probs/loc/net/fold0/oof", 4.0, clock={"read": 3.0, "store": 2.0})
    return root


def test_a_row_per_unit_with_what_no_name_has(experiment):
    rows, without = times(experiment)
    assert without == ["01_folds"]
    assert [row["unit"] for row in rows] == ["02_loc/net/fold0", "02_loc/net/fold1", "04_probs/loc/net/fold0/oof"]
    assert [row["other"] for row in rows] == [
        2.5,
        2.25,
        None,
    ]  # threads of the last one add up to more than its seconds
    assert rows[0]["optimizer"] is None and rows[0]["backward"] == 4.0


def test_stages_are_sums_of_their_units(experiment):
    stages = by_stage(times(experiment)[0])
    assert [row["stage"] for row in stages] == ["02_loc", "04_probs", "all"]
    loc, probs, everything = stages
    assert (loc["seconds"], loc["read"], loc["optimizer"], loc["store"], loc["other"]) == (30.0, 4.0, 1.0, None, 4.75)
    assert (probs["store"], probs["other"]) == (2.0, None)
    assert (everything["seconds"], everything["read"], everything["store"]) == (34.0, 7.0, 2.0)
    assert [row["stage"] for row in by_stage(times(experiment / "none")[0])] == []


def test_the_tool_prints_both_tables_and_names_units_without_times(experiment, capsys):
    assert not profile.main([str(experiment)])
    out = capsys.readouterr().out
    units, stages, rest = out.split("\n\n")
    head = units.splitlines()[0].split()
    assert head == ["unit", "seconds", "read", "forward", "backward", "optimizer", "store", "other"]
    assert "02_loc/net/fold1" in units and "9.25" in units and "validate" not in out
    assert [line.split()[0] for line in stages.splitlines()] == ["stage", "02_loc", "04_probs", "all"]
    assert rest == "without times (made by an earlier version): 01_folds\n"


def test_a_folder_without_units_is_refused_with_a_sentence(tmp_path, capsys):
    assert profile.main([str(tmp_path)]) == 2
    assert "expected an experiment's folder with finished units" in capsys.readouterr().err


def test_the_report_has_the_seconds_by_stage_and_names_units_without_times(experiment):
    stages, words, others = list(costs(contents.read(experiment), "costs"))[:3]
    assert list(stages.columns[:3]) == ["stage", "seconds", "read"] and stages.rows[0][:3] == ["02_loc", 30.0, 4.0]
    assert "earlier version): 01_folds" in words.text and others.rows == [("01_folds", 3.0)]


def test_memory_and_processors_are_told_by_stage_where_units_recorded_them(experiment):
    for fold, memory in ((0, 700.5), (1, 900.25)):
        path = experiment / f"02_loc/net/fold{fold}/manifest.json"
        write_json(path, {**read_json(path), "peak_memory_mib": memory, "cpu_seconds": 1.5, "device": "cpu: x"})
    found = [one for one in costs(contents.read(experiment), "costs") if one.kind == "table"]
    (table,) = [one for one in found if one.caption.startswith("Memory")]
    assert table.rows == [("02_loc", 900.25, 3.0, "cpu: x")]
