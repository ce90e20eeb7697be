"""The loop of ``lib.cluster``: order, retries, errors of users, locks of others, helpers; with commands that are fakes.

Each fake takes a millisecond or two. The real stages run through it in ``test_many_machines.py``.
"""

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from lib.cluster import __main__ as command
from lib.cluster import engines, guard, launch
from lib.cluster.engines import Local
from lib.cluster.flow import Flow, Rules
from lib.cluster.launch import Call
from lib.cluster.plan import JobPlan, StageJob
from lib.cluster.progress import Progress, remaining
from lib.config.sections import Asks
from lib.errors import ConfigError
from lib.run import cli
from lib.run.artifacts import Unit

CHAIN = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
BUSY = "unit b is being built by process 7 on elsewhere; wait or stop it"


class Disk:
    """A plan whose units are names in a set, and work that puts them there; ``script`` says how each attempt ends.

    A script's steps: "ok", an exit code, (code, words), "vanish" (ends well, makes nothing), an exception, a function.
    """

    def __init__(self, graph: dict[str, tuple[str, ...]], script: dict[str, list] | None = None, scenes: int = 0):
        self.jobs = {name: StageJob(name, ("04_x.py" if scenes else "02_x.py", "--only", name), (), frozenset(needs),
                               scenes=scenes) for name, needs in graph.items()}  # fmt: skip
        self.script = {name: iter(steps) for name, steps in (script or {}).items()}
        self.there: set[str] = set()
        self.asked: list[str] = []
        self.lock = threading.Lock()

    def work(self, call: Call, **more: str) -> dict:
        name = call.command[2]
        with self.lock:
            missing = set(self.jobs[name].needs) - self.there
            assert not missing, f"{name} began before {missing}"
            self.asked.append(name)
            step = next(self.script.get(name, iter(())), "ok")
        time.sleep(0.001)
        step = step(call) if callable(step) else step
        if isinstance(step, BaseException):
            raise step
        if step == "ok":
            self.there.add(name)
        code, said = step if isinstance(step, tuple) else (0 if step in ("ok", "vanish") else step, "")
        return {"code": code, "host": "here", "process": 1, "seconds": 0.001, "said": said}

    def done(self, job: StageJob, before: bool = False) -> bool:
        return job.name in self.there

    def needs(self, job: StageJob) -> tuple[str, ...]:
        return ()

    def mark(self, job: StageJob) -> str:
        return "mark"

    def written(self, job: StageJob) -> int:
        return job.scenes if job.name in self.there else 0

    def begun(self, job: StageJob) -> bool:
        return True

    def seconds(self, job: StageJob) -> float | None:
        return None

    def look(self, job: StageJob | None = None) -> None:
        pass


class Flowing:
    """A flow over a fake disk: what it was asked to run, what came of it, and what was said."""

    def __init__(self, folder: Path, disk: Disk, slots: int = 2, **setting):
        self.disk, self.said = disk, []
        self.engine = Local(slots, gpus=[], work=disk.work)
        how = {"retries": 2, "tick": 0.001, "patience": (0.002, 0.004), "visible": 0.01} | setting
        self.flow = Flow(disk, self.engine, Rules(folder, folder, folder, **how), self.said.append)

    def run(self, **options) -> dict[str, str]:
        try:
            return self.flow.run(**options)
        finally:
            self.engine.close()


def test_a_unit_runs_when_what_it_reads_is_there_and_two_run_side_by_side(tmp_path):
    both = threading.Barrier(2, timeout=5)  # b and c only go on together

    def meet(call):
        both.wait()
        return "ok"

    disk = Disk(CHAIN, {"b": [meet], "c": [meet]})
    assert Flowing(tmp_path, disk).run() == dict.fromkeys("abcd", "")
    assert disk.asked[0] == "a" and disk.asked[-1] == "d" and sorted(disk.asked) == list("abcd")


def test_what_is_on_the_disk_is_not_run_again(tmp_path):
    disk = Disk(CHAIN)
    disk.there |= {"a", "b"}
    flowing = Flowing(tmp_path, disk)
    assert set(flowing.run().values()) == {""} and sorted(disk.asked) == ["c", "d"]
    assert flowing.said[-1] == "2 units were done already"
    assert Flowing(tmp_path, disk).run() == dict.fromkeys("abcd", "") and len(disk.asked) == 2


def test_a_lost_unit_is_started_again_so_often_and_no_more(tmp_path):
    killed = RuntimeError("killed")
    disk = Disk(CHAIN, {"b": [137, killed], "c": [1, 130, killed, "ok"]})
    flowing = Flowing(tmp_path, disk)
    outcome = flowing.run()
    assert disk.asked.count("b") == 3 and outcome["b"] == ""
    assert disk.asked.count("c") == 3 and outcome["c"].startswith("lost 3 times")
    assert str(tmp_path / "c.log") in outcome["c"] and outcome["d"] == "not run, since it needs c"
    assert "b: lost, exit code 137; starting it again, 1 of 2 times" in flowing.said
    assert "b: its worker was lost (RuntimeError: killed)" in flowing.said
    assert "c: lost, exit code 130; starting it again, 2 of 2 times" in flowing.said


def test_a_unit_that_was_killed_after_its_last_rename_is_done(tmp_path):
    def late(call):
        disk.there.add("b")
        return 137

    disk = Disk(CHAIN, {"b": [late]})
    assert set(Flowing(tmp_path, disk).run().values()) == {""} and disk.asked.count("b") == 1


def test_an_error_of_the_user_is_not_retried_and_the_others_finish(tmp_path):
    disk = Disk({**CHAIN, "e": ("c",)}, {"b": [(2, "scene 7: no label; mend it")]})
    flowing = Flowing(tmp_path, disk)
    outcome = flowing.run()
    assert sorted(disk.asked) == ["a", "b", "c", "e"]
    assert outcome["b"] == f"scene 7: no label; mend it; its log: {tmp_path / 'b.log'}"
    assert outcome["d"] == "not run, since it needs b" and outcome["e"] == "" == outcome["c"]
    assert "d: not run, since it needs b" in flowing.said


def test_a_unit_that_another_process_builds_is_waited_for_and_looked_at_again(tmp_path):
    def other(call):
        threading.Timer(0.003, disk.there.add, ["b"]).start()
        return 2, BUSY

    disk = Disk(CHAIN, {"b": [(2, BUSY), (2, BUSY), (2, BUSY), (2, BUSY), other], "c": [(2, BUSY)]})
    flowing = Flowing(tmp_path, disk, patience=(0.01, 0.02), retries=0)
    assert set(flowing.run().values()) == {""}
    assert disk.asked.count("b") == 5 and disk.asked.count("c") == 2
    assert any(line.startswith("b: is being built by process 7 on elsewhere; looking") for line in flowing.said)
    assert "[3/4] b: done by another process" in flowing.said


def test_what_ended_well_and_is_not_there_is_said(tmp_path):
    outcome = Flowing(tmp_path, Disk(CHAIN, {"b": ["vanish"]})).run()
    assert "the disk does not have what it makes" in outcome["b"]


def test_what_ended_well_may_take_a_while_to_be_seen(tmp_path):
    def slow(call):
        threading.Timer(0.01, disk.there.add, ["b"]).start()
        return "vanish"

    disk = Disk(CHAIN, {"b": [slow]})
    assert set(Flowing(tmp_path, disk, visible=2).run().values()) == {""}


def test_a_stop_asks_what_runs_to_save_and_ends_the_run(tmp_path):
    seen = threading.Event()

    def until_stopped(call):
        seen.set()
        while not os.path.exists(call.stop):
            time.sleep(0.001)
        return 130

    disk = Disk(CHAIN, {"b": [until_stopped]})
    flowing = Flowing(tmp_path, disk)
    with pytest.raises(KeyboardInterrupt):
        flowing.run(stop=seen.is_set)
    assert "d" not in disk.asked and not list(tmp_path.glob(".stop*"))
    assert any(line.startswith("stopping: ") for line in flowing.said)


def test_workers_that_nothing_waits_for_help_and_the_owner_alone_decides(tmp_path):
    parts = []

    def helper_or_owner(call):
        if "--part" in call.command:
            parts.append(call.command[call.command.index("--part") + 1])
            return 2, "a helper's trouble is nobody's"
        while len(parts) < 3:
            time.sleep(0.001)
        return "ok"

    disk = Disk({"a": ()}, {"a": itertools.repeat(helper_or_owner)}, scenes=100)
    disk.jobs["a"] = StageJob("a", disk.jobs["a"].command, (Unit("a", {}),), scenes=100)
    flowing = Flowing(tmp_path, disk, slots=4, part=25)
    assert flowing.run() == {"a": ""}
    assert sorted(parts) == ["1/3", "2/3", "3/3"]
    assert "a: 3 more workers help with the 100 scenes that are left" in flowing.said


@pytest.mark.parametrize(("count", "slots", "part", "helpers"), [(100, 4, 60, 0), (100, 4, 50, 1), (100, 1, 10, 0),
                                                                  (100, 4, 0, 0)])  # fmt: skip
def test_few_scenes_or_no_free_worker_call_no_helper(tmp_path, count, slots, part, helpers):
    class Engine:
        def __init__(self):
            self.slots, self.most, self.keys = slots, slots, []

        def submit(self, call, asks, key):
            self.keys.append(key)
            return Future()

    disk, engine = Disk({"a": ()}, scenes=count), Engine()
    disk.jobs["a"] = StageJob("a", disk.jobs["a"].command, (Unit("a", {}),), scenes=count)
    flow = Flow(disk, engine, Rules(tmp_path, tmp_path, tmp_path, part=part), lambda line: None)
    flow._start(), flow._help(), flow._help()
    assert engine.keys[0] == "a-mark-1" and len(engine.keys) == 1 + helpers


# ---- what is said of the whole run --------------------------------------------------------------------
def test_the_time_to_go_is_the_work_that_is_left_shared_by_all():
    jobs = [StageJob(str(n), (f"0{stage}_x.py",)) for n, stage in enumerate((2, 2, 4))]
    assert remaining(jobs, {"02": [10.0, 20.0], "04": [4.0]}, {}, 2) == (17.0, [])
    assert remaining(jobs, {"02": [10.0, 20.0], "04": [4.0]}, {"0": 5.0}, 8) == (15.0, [])
    assert remaining(jobs, {"04": [4.0]}, {}, 2) == (4.0, ["02"])
    assert remaining(jobs, {}, {}, 2) == (0.0, ["02", "04"])


def test_the_line_of_a_run_has_units_scenes_seconds_and_the_rest():
    progress, jobs = Progress(), [StageJob("x", ("02_x.py",)), StageJob("y", ("05_x.py",))]
    progress.total = 4
    progress.count(jobs[0], 30.0), progress.count(jobs[0], 50.0)
    line = progress.line(jobs, {"x": 10.0}, (3, 12), 2, 75)
    assert line == ("2 of 4 units done, 1 running, scenes 3 of 12, 1 min 15 s so far, about 30.0 s to go besides stage "
                    "05, which is not timed yet")  # fmt: skip
    more = [*jobs, *(StageJob(name, (f"{name}_x.py",)) for name in ("03", "04"))]
    line = progress.line(more, {"x": 10.0}, (0, 0), 2, 75)
    assert line.endswith("1 min 15 s so far, about 30.0 s to go besides stages 03, 04 and 05, which are not timed yet")
    assert progress.line(jobs[:1], {"x": 10.0}, (0, 0), 2, 75).endswith("about 30.0 s to go")


def test_of_a_time_that_is_not_known_the_line_says_nothing():
    """All that is left and timed runs for longer than it should; or nothing that is left is timed."""
    progress = Progress()
    progress.total, jobs = 4, [StageJob(name, (f"{name}_x.py",)) for name in ("02", "03", "04")]
    progress.count(jobs[0], 30.0)
    for left, running in ((jobs, {"02": 31.0}), (jobs[:1], {"02": 31.0}), (jobs[1:], {}), (jobs[:1], {"02": 29.5})):
        assert (
            progress.line(left, running, (0, 0), 2, 75)
            == f"1 of 4 units done, {len(running)} running, 1 min 15 s so far"
        )


# ---- the engine of one machine ------------------------------------------------------------------------
def test_each_thread_has_a_gpu_of_its_own_and_who_asks_for_two_gets_two():
    seen, both = [], threading.Barrier(2, timeout=5)

    def work(call, **more):
        both.wait()
        seen.append(more["CUDA_VISIBLE_DEVICES"])

    engine = Local(2, gpus=["3", "5"], work=work)
    for handle in [engine.submit(None, Asks(), "") for _ in range(2)]:
        handle.result()
    assert sorted(seen) == ["3", "5"]
    seen.clear()
    for handle in [engine.submit(None, Asks(gpus=1), "") for _ in range(2)]:
        handle.result()
    assert sorted(seen) == ["3", "5"]
    engine.work = lambda call, **more: more["CUDA_VISIBLE_DEVICES"]
    assert sorted(engine.submit(None, Asks(gpus=2), "").result().split(",")) == ["3", "5"]
    engine.close()


@pytest.mark.parametrize(("slots", "own", "expected"), [(2, None, "passive"), (2, "active", "active"), (1, None, None)])
def test_threads_of_units_side_by_side_give_their_core_away_while_they_wait(monkeypatch, slots, own, expected):
    """Unless the user says otherwise; a unit that is alone is as one that is started by hand."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    engine = Local(slots, gpus=[], memory=1.0, work=lambda call, **more: more.get("OMP_WAIT_POLICY"))
    assert engine.submit(None, Asks(), "unit").result() == expected
    engine.close()


def test_memory_is_never_given_twice():
    used, most, lock = [0], [0], threading.Lock()

    def work(call, **more):
        with lock:
            used[0] += 6
            most[0] = max(most[0], used[0])
        time.sleep(0.002)
        with lock:
            used[0] -= 6

    engine = Local(4, gpus=[], memory=13.0, work=work)
    for handle in [engine.submit(None, Asks(memory=6), "") for _ in range(8)]:
        handle.result()
    assert most == [12] and engine.memory == 13.0
    engine.close()


def test_gpus_are_those_that_the_environment_shows(monkeypatch):
    for value, found in (("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-abc", ["GPU-abc"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert engines.gpus_here() == found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    assert engines.gpus_here() == []
    listed = "GPU 0: NVIDIA A (UUID: GPU-1)\n  MIG 1g: (UUID: MIG-2)\nGPU 1: NVIDIA A (UUID: GPU-3)\n"
    monkeypatch.setattr(engines.shutil, "which", lambda name: name)
    monkeypatch.setattr(engines.subprocess, "run", lambda *a, **k: argparse.Namespace(stdout=listed))
    assert engines.gpus_here() == ["0", "1"]


def test_more_than_the_machine_has_is_refused_before_anything_runs():
    asks = {"train": Asks(gpus=2, memory=100)}
    with pytest.raises(ConfigError, match=r"cluster.asks.train.gpus: asks for 2, this machine has 1; --set"):
        Local(1, gpus=["0"], memory=200).refuse(asks)
    with pytest.raises(ConfigError, match=r"cluster.asks.train.memory: asks for 100 GiB, this machine has 7.5"):
        Local(1, gpus=["0", "1"], memory=7.5).refuse(asks)


def test_without_the_package_or_a_scheduler_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"--scheduler: needs .*pip install -r requirements-cluster.txt"):
        engines.Dask("tcp://127.0.0.1:1")


# ---- one command in a process of its own --------------------------------------------------------------
def call(folder: Path, source: str, **changes) -> Call:
    script = folder / "script.py"
    script.write_text(source)
    return Call((str(script),), str(folder), str(folder / "log"), str(folder / "stop"), **changes)


def test_a_command_has_its_log_its_code_and_its_last_words(tmp_path):
    asked = call(tmp_path, "import os; print(os.environ['X']); print('error: no; mend\\nit'); os._exit(2)",
                 environment={"X": "7", "HOME": None})  # fmt: skip
    result = launch.run(asked)
    assert (result["code"], result["said"]) == (2, "no; mend\nit")
    head, *rest = (tmp_path / "log").read_text().splitlines()
    assert head.startswith("== ") and head.endswith(f"python {tmp_path / 'script.py'}") and rest[0] == "7"
    killed = launch.run(call(tmp_path, "import os; print('far', flush=True); os.kill(os.getpid(), 9)"))
    assert (killed["code"], killed["said"]) == (137, "far")


def test_a_file_asks_a_command_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "LOOK", 0.01)
    asked = call(tmp_path, "import signal, time, os, sys\nsignal.signal(15, lambda *a: os._exit(130))\n"
                           "open('stop', 'w')\ntime.sleep(60)")  # fmt: skip
    assert launch.run(asked)["code"] == launch.STOPPED
    assert launch.run(asked)["said"] == "it was to stop before it began"


def test_a_command_that_nobody_waits_for_any_more_is_ended(tmp_path):
    """Its worker was killed: the pipe to the guard ends, and so does the command, though it takes its time."""
    script = tmp_path / "script.py"
    script.write_text("import signal, time, os\nsignal.signal(15, lambda *a: (open('saved', 'w'), os._exit(130)))\n"
                      "open('begun', 'w')\ntime.sleep(60)")  # fmt: skip
    asked = [sys.executable, "-S", launch.GUARD, str(tmp_path / "log"), sys.executable, "-S", str(script)]
    worker = subprocess.Popen(asked, stdin=subprocess.PIPE, cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.005)
    worker.stdin.close()
    assert worker.wait(10) == 130 and (tmp_path / "saved").exists()


def test_a_command_waits_until_it_sees_what_it_reads(tmp_path):
    asked = call(tmp_path, "", needs=(str(tmp_path / "upstream" / "manifest.json"),), visible=0.05)
    result = launch.run(asked)
    assert result["code"] == launch.UNSEEN and "upstream/manifest.json, found nothing there" in result["said"]
    (tmp_path / "upstream").mkdir()
    threading.Timer(0.02, (tmp_path / "upstream" / "manifest.json").touch).start()
    assert launch.unseen(asked.needs, 5) == ""
    gone = Call((str(tmp_path / "none.py"),), str(tmp_path), str(tmp_path / "log"), "", visible=0.01)
    assert "same paths on every machine" in launch.run(gone)["said"]
    assert guard.GRACE > 0


# ---- the jobs of an experiment ------------------------------------------------------------------------
@pytest.fixture
def opened(finished):
    """Open a plan of the tiny experiment with settings."""

    def plan(*changes: str, flags=(), stages=tuple(command.KINDS)) -> JobPlan:
        parser = cli.experiment_flags("")
        parser.add_argument("--split")
        sets = [word for change in changes for word in ("--set", change)]
        args = parser.parse_args([*finished.flags, *sets, *flags])
        return JobPlan(lambda: cli.open_run(args), stages)

    return plan


def test_jobs_are_the_units_of_the_graph_in_their_order(opened):
    plan = opened()
    jobs = plan.jobs
    assert list(jobs)[0] == "01_folds" and list(jobs)[-1] == "06_submission/test"
    assert jobs["03_cls/cls/fold1"].needs == {"01_folds", "02_loc/loc/fold1"}
    assert jobs["03_cls/cls/fold1"].command[-4:] == ("--only", "cls", "--fold", "1")
    assert jobs["04_probs/loc/loc/fold0/oof"].needs == {"02_loc/loc/fold0"}
    assert jobs["04_probs/loc/loc/fold0/oof"].scenes == 3 and jobs["04_probs/loc/loc/fold0/test"].scenes == 2
    decode = jobs["05_ensemble/decode"]
    assert [unit.key for unit in decode.units] == ["05_ensemble/decode", "05_ensemble/oof"] and decode.scenes == 6
    assert len(decode.needs) == 5 and "05_ensemble/oof" not in jobs
    assert jobs["06_submission/test"].needs == {"05_ensemble/test", "05_ensemble/decode"}
    assert jobs["06_submission/test"].after == {"06_submission/oof"}  # both write the report
    assert all(plan.done(job) for job in jobs.values()) and plan.seconds(decode) > 0
    assert plan.needs(decode)[0].endswith("oof/manifest.json") and all(Path(p).exists() for p in plan.needs(decode))
    assert plan.mark(decode) == opened().mark(decode) != plan.mark(jobs["01_folds"])


def test_a_change_of_a_setting_leaves_what_does_not_depend_on_it(opened):
    plan = opened("predict.tta=none")
    undone = {name for name, job in plan.jobs.items() if not plan.done(job)}
    assert undone == {name for name in plan.jobs if name[:2] in ("04", "05", "06")}
    before = opened()
    assert plan.mark(plan.jobs["06_submission/oof"]) != before.mark(before.jobs["06_submission/oof"])


def test_logits_come_after_the_splits_that_their_command_looks_after(opened):
    jobs = opened("predict.logits=true").jobs
    logits = jobs["04_probs/loc/loc/fold0/logits"]
    assert logits.needs == {"01_folds", "02_loc/loc/fold0", "04_probs/loc/loc/fold0/oof",
                            "04_probs/loc/loc/fold0/test"}  # fmt: skip
    assert logits.scenes == 3 and logits.command.count("predict.logits=true") == 2


def test_one_split_and_some_stages_alone(opened):
    assert [name[:2] for name in opened(flags=["--split", "test"]).jobs][-2:] == ["05", "06"]
    assert not any("oof" in name or "decode" in name for name in opened(flags=["--split", "test"]).jobs)
    assert {job.stage for job in opened(stages=("01", "02")).jobs.values()} == {"01", "02"}
    strict = opened(flags=["--strict"]).jobs
    assert strict["01_folds"].command[-1] == "--strict" and "--strict" not in strict["02_loc/loc/fold0"].command


def test_values_with_blanks_reach_a_command_as_they_are(opened):
    job = opened("search.axes.w_minor=[1, 2]").jobs["01_folds"]
    assert job.command[-1] == "search.axes.w_minor=[1, 2]"


def test_units_ask_for_what_the_experiment_says(opened):
    jobs = opened("cluster.asks={train: {gpus: 2, memory: 32}, predict: {gpus: 1}}").jobs
    assert jobs["02_loc/loc/fold0"].asks == jobs["03_cls/cls/fold0"].asks == Asks(gpus=2, memory=32)
    assert jobs["04_probs/loc/loc/fold0/oof"].asks == Asks(gpus=1) and jobs["01_folds"].asks == Asks()
    for wrong in ("{train: {gpu: 1}}", "{training: {gpus: 1}}", "{train: {gpus: -1}}", "{train: {memory: -1}}"):
        with pytest.raises(ConfigError, match="cluster.asks"):
            opened(f"cluster.asks={wrong}")


def test_the_experiment_says_how_units_are_started(opened):
    plan = opened("cluster.retries=5", "cluster.part=10", "cluster.threads=3")
    how = command.setting(plan, Local(1, gpus=[]))
    assert (how.retries, how.part) == (5, 10)
    assert how.environment == {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": None, "OPENBLAS_NUM_THREADS": None}
    assert command.setting(opened(), Local(1, gpus=[])).environment == {}  # as a stage that is started by hand


@pytest.mark.parametrize(("part", "shares"), [(64, ["05_ensemble/decode"]), (0, [])])
def test_what_counts_scenes_is_told_of_the_scheduler_unless_nobody_may_help(opened, tmp_path, part, shares):
    plan = opened(f"cluster.part={part}")
    flow = Flow(plan, Local(1, gpus=[]), Rules(tmp_path, tmp_path, tmp_path, part=part), lambda line: None)
    assert [name for name, job in plan.jobs.items() if flow._task(job, name).shares] == shares


def test_a_dask_worker_adds_the_address_that_it_uses_itself(tmp_path, monkeypatch):
    class Worker:
        class scheduler:
            address = "tcp://10.0.0.1:8786"

    monkeypatch.setitem(sys.modules, "distributed", argparse.Namespace(get_worker=lambda: Worker))
    monkeypatch.setattr(launch, "run", lambda call: call.command)
    call = Call(("05_ensemble.py", "--split", "oof"), str(tmp_path), "log", "stop")
    assert launch.on_worker(call) == call.command
    told = launch.on_worker(dataclasses.replace(call, shares=True))
    assert told == (*call.command, "--scheduler", "tcp://10.0.0.1:8786")


def test_nothing_makes_a_result_stale_that_only_says_how_units_run(opened):
    plan = opened("cluster.retries=5", "cluster.asks={train: {memory: 1}}", "cluster.threads=3", "cluster.part=2")
    assert all(plan.done(job) for job in plan.jobs.values())


def test_a_finished_experiment_has_nothing_to_do(experiment, capsys):
    assert command.main([*experiment.flags, "--local", "2"]) == 0
    said = capsys.readouterr().out
    assert "18 units were done already" in said and "submission:" in said
    assert command.main([*experiment.flags, "--local", "0"]) == 2
    assert "--local 0: expected a number of units" in capsys.readouterr().err


def test_a_failed_unit_ends_the_run_in_one_sentence(experiment, capsys, monkeypatch):
    import shutil

    shutil.rmtree(experiment.root / "06_submission")
    said = {"code": 2, "host": "h", "process": 1, "seconds": 0.0, "said": "scene 3 is odd"}
    monkeypatch.setattr(command, "Local", lambda n: Local(n, gpus=[], work=lambda call, **more: said))
    assert command.main([*experiment.flags, "--local", "1"]) == 2
    error = capsys.readouterr().err
    log = experiment.root / "logs" / "06_submission__oof.log"
    assert error == f"error: 06_submission/oof: scene 3 is odd; its log: {log} (and 1 more unit is not done)\n"
