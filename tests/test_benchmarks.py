"""The runner of the benchmarks: turns, ratios, what it refuses, how it prints. Nothing asserts how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from tests.benchmarks import __main__ as command
from tests.benchmarks import harness
from tests.benchmarks.harness import Figure, Race


@pytest.fixture
def hand(monkeypatch):
    """Clocks that only ``work`` moves: (wall seconds, CPU seconds)."""
    now = SimpleNamespace(wall=0.0, cpu=0.0)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now.wall)
    monkeypatch.setattr(harness.time, "process_time", lambda: now.cpu)

    def work(calls, name, wall, cpu, result=0):
        def side():
            calls.append(name)
            now.wall, now.cpu = now.wall + wall, now.cpu + cpu
            return result

        return side

    return work


def test_sides_take_turns_and_ratios_are_medians_over_rounds(hand):
    calls, slow = [], iter([9, 1, 2, 3, 100])  # of the second side, after its first call

    def b():
        hand(calls, "b", 0, next(slow) if calls.count("b") else 7)()
        return 0

    sides = {"a": hand(calls, "a", 5, 2), "b": b, "c": "not there", "limit": hand(calls, "l", 1, 1, result=7)}
    found = harness.run(Race("row", lambda _: sides, goals={"b": 1.5}, rounds=5))
    assert "".join(calls) == "abl" + "abl" + "bla" + "lab" + "abl" + "bla"
    sides = found["sides"]
    assert found["by"] == "cpu" and sides["c"] == {"left_out": "not there"}
    assert sides["a"] == {"wall_ms": 5000, "cpu_ms": 2000, "ratio": 1, "lowest": 1, "highest": 1, "goal": None}
    assert (sides["b"]["ratio"], sides["b"]["lowest"], sides["b"]["highest"]) == (3 / 2, 0.5, 50)
    assert sides["b"]["goal"] == 1.5 and sides["limit"]["ratio"] == 0.5


def test_times_are_of_one_item_and_rows_of_several_threads_go_by_wall_time(hand, monkeypatch):
    monkeypatch.setattr(harness, "others", lambda: 0.2)
    calls = []
    row = Race(
        "row", lambda _: {"a": hand(calls, "a", 4, 6), "b": hand(calls, "b", 12, 6)}, repeats=2, per=4, threads=2
    )
    found = harness.run(row)
    assert found["by"] == "wall" and found["sides"]["b"]["ratio"] == 3
    assert found["sides"]["a"]["wall_ms"] == 1000 and found["sides"]["a"]["cpu_ms"] == 1500
    assert len(calls) == 2 * (1 + 5 * 2)


def test_several_threads_are_not_timed_beside_other_work(monkeypatch):
    monkeypatch.setattr(harness, "others", lambda: 1.3)
    row = Figure("two threads", lambda _: pytest.fail("it ran"), threads=2)
    assert "1.3 cores busy" in harness.run(row)["left_out"]
    assert harness.run(Figure("one thread", lambda _: {"s": 1}))["figures"] == {"s": 1}
    assert harness.run(Figure("forced", lambda _: {"s": 2}, threads=2), force=True)["figures"] == {"s": 2}


@pytest.mark.parametrize(
    ("ours", "other"),
    [("1 2", "1 3"), (np.arange(3), np.arange(4)), ([np.arange(2), "a"], [np.arange(2), "b"]), ([1, 2], [1])],
)
def test_sides_that_differ_fail(ours, other):
    with pytest.raises(ValueError, match="row: b does not agree with a"):
        harness.run(Race("row", lambda _: {"a": lambda: ours, "b": lambda: other}, rounds=1))
    harness.run(Race("row", lambda _: {"a": lambda: ours, "limit": lambda: other}, rounds=1))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a Linux system tells it")
def test_peak_memory_is_of_the_work_alone():
    """In a fresh process, which has no memory of earlier work to use again."""
    script = "import numpy; from tests.benchmarks import harness; print(harness.peak(lambda: numpy.ones(50 << 17)))"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 45 < float(said) < 60


@pytest.fixture
def made(monkeypatch):
    """Three rows in place of a benchmark's own, and no look at the machine."""
    rows = (Race("race", lambda _: {"ours": lambda: 1, "peer": lambda: 1, "other": "not installed"}, rounds=1),
            Race("broken", lambda _: {"ours": lambda: 1, "peer": lambda: 2}),
            Figure("4 scenes", lambda _: {"s": 1.234, "MiB": 12345}),
            Figure("8 scenes", lambda _: {"s": 2.5, "MiB": 7}),
            )  # fmt: skip
    monkeypatch.setattr(command, "rows_of", lambda name, quick: [*rows])
    monkeypatch.setattr(harness, "others", lambda: 0.0)


def test_tables_name_the_machine_and_a_row_that_fails_loses_no_other(made, capsys):
    assert command.main(["rle", "--markdown"]) == 1
    out, err = capsys.readouterr()
    assert "### rle" in out and "| race | ours |" in out and "|  | other |" in out and "not installed" in out
    assert "| row | s | MiB |\n| --- | --- | --- |\n| 4 scenes | 1.23 | 12,345 |\n| 8 scenes | 2.5 | 7 |" in out
    assert "broken: failed: ValueError: broken: peer does not agree with ours" in out
    assert "load" in out.splitlines()[-1] and "numpy" in out.splitlines()[-1] and "broken" in err


def test_json_is_one_object_and_rows_can_be_named(made, capsys):
    assert command.main(["rle", "--json", "--row", "scenes"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["benchmarks"]["rle"]] == ["4 scenes", "8 scenes"]
    assert found["machine"]["cores"] and found["machine"]["versions"]["numpy"] == np.__version__


def test_other_names_are_refused_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        command.main(["rel"])
    err = capsys.readouterr().err
    assert "expected some of" in err and "rle, samples, scoring" in err and "got rel" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", command.names())
def test_the_sides_of_each_benchmark_agree_on_little_data(name, monkeypatch):
    monkeypatch.setattr(harness, "others", lambda: 0.0)
    rows = command.rows_of(name, quick=True)
    assert rows and len({row.name for row in rows}) == len(rows)
    for row in rows:
        harness.run(row)
