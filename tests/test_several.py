"""Several experiments as one graph of units: whose units wait for whom, what harms whom; with commands that are fakes.

The last test runs a sweep of real stages, one after another and two units at a time, and compares every byte.
"""

import threading
import time
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import kills
import pytest
import yaml
from conftest import stage
from invented import TREE, experiment
from test_flow import BUSY, Disk, Flowing
from test_many_machines import forked

from lib.cluster import __main__ as command
from lib.cluster import several
from lib.cluster.engines import Local
from lib.cluster.flow import Flow, Rules
from lib.cluster.launch import Call
from lib.cluster.plan import JobPlan, StageJob
from lib.cluster.several import Several, opened
from lib.config.sections import Asks, Experiment
from lib.errors import DataError
from lib.run.artifacts import Store
from lib.run.graph import Graph
from lib.tools import sweep

CHAIN = {"01_folds": (), "02_loc/net/fold0": ("01_folds",), "04_probs/loc/net/fold0/logits": ("02_loc/net/fold0",)}
LOGITS = "{}/04_probs/loc/*/fold0/logits"


class Seen(Disk):
    """A fake disk that remembers when it was looked at anew; ``fails`` raises then."""

    def __init__(self, graph: dict[str, tuple[str, ...]], script: dict[str, list] | None = None, fails: bool = False):
        super().__init__(graph, script)
        self.jobs = {name: StageJob(name, (f"{name[:2]}_x.py", "--only", name), (), job.needs)
                     for name, job in self.jobs.items()}  # fmt: skip
        self.fails, self.looks = fails, []

    def look(self, job: StageJob | None = None) -> None:
        assert job is not None and job is self.jobs[job.name]  # its own, by its own name
        self.looks.append(job.name)
        if self.fails:
            raise DataError("the data are gone")


class Together(Flowing):
    """A flow over the fake disks of several experiments."""

    def __init__(self, folder: Path, disks: dict[str, Disk], learns: dict[str, list[str]] | None = None, slots: int = 2,
                 retries: dict[str, int] | None = None):  # fmt: skip
        self.folder, self.disks, self.said = folder, disks, []
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.engine = Local(slots, gpus=[], work=self.work)
        own = {name: Rules(folder / name / "logs", folder, folder, retries=(retries or {}).get(name, 2))
               for name in disks}  # fmt: skip
        how = Rules(folder, folder, folder, tick=0.001, patience=(0.002, 0.004), visible=0.01)
        self.plan = Several(disks, learns or {})
        self.flow = Flow(self.plan, self.engine, how, self.said.append, own)

    def work(self, call: Call, **more: str) -> dict:
        log = Path(call.log)  # workdir/<experiment>/logs/<unit>.log
        assert log.name == call.command[2].replace("/", "__") + ".log" and log.parent.is_dir()
        with self.lock:
            self.asked.append(f"{log.parents[1].name}/{call.command[2]}")
        return self.disks[log.parents[1].name].work(call, **more)


def test_units_of_several_experiments_run_side_by_side_with_logs_of_their_own(tmp_path):
    both = threading.Barrier(2, timeout=5)

    def meet(call):
        both.wait()
        return "ok"

    disks: dict[str, Disk] = {name: Seen(CHAIN, {"02_loc/net/fold0": [meet]}) for name in ("a", "b")}
    together = Together(tmp_path, disks)
    assert together.run() == {f"{name}/{unit}": "" for name in ("a", "b") for unit in CHAIN}
    assert [disk.looks for disk in disks.values()] == [["01_folds"], ["01_folds"]]  # stage 01 knows more than before
    assert any(line.startswith("[6/6] ") for line in together.said)
    assert "a/02_loc/net/fold0: started" in together.said


def test_who_learns_waits_for_what_it_reads_and_looks_at_it_then(tmp_path):
    student, teacher = Seen(CHAIN), Seen(CHAIN | {"06_submission/test": ("02_loc/net/fold0",)})

    def late(call):
        time.sleep(0.01)
        assert not student.looks  # nobody has looked for it before it is there
        return "ok"

    teacher.script["04_probs/loc/net/fold0/logits"] = iter([late])
    together = Together(tmp_path, {"student": student, "other": Seen(CHAIN), "teacher": teacher},
                        {"student": [LOGITS.format("teacher")]}, slots=3)  # fmt: skip
    assert not any(together.run().values())
    asked = together.asked
    first = asked.index("student/01_folds")
    assert asked.index("teacher/04_probs/loc/net/fold0/logits") < first
    assert asked.index("other/02_loc/net/fold0") < first  # which learns from nobody
    assert student.looks == ["01_folds", "01_folds"] and teacher.looks == ["01_folds"]
    needs = together.plan.jobs["student/02_loc/net/fold0"].needs
    assert needs == {"student/01_folds", "teacher/04_probs/loc/net/fold0/logits"}


def test_a_users_error_harms_its_experiment_and_who_learns_from_it_alone(tmp_path):
    teacher = Seen(CHAIN, {"02_loc/net/fold0": [(2, "scene 7: no label; mend it")]})
    disks = {"teacher": teacher, "student": Seen(CHAIN), "other": Seen(CHAIN)}
    together = Together(tmp_path, disks, {"student": [LOGITS.format("teacher")]})
    outcome = together.run()
    log = tmp_path / "teacher" / "logs" / "02_loc__net__fold0.log"
    assert outcome["teacher/02_loc/net/fold0"] == f"scene 7: no label; mend it; its log: {log}"
    assert not disks["student"].asked and len(disks["other"].asked) == 3
    of = {name: command.fault({unit: why for unit, why in outcome.items() if unit.startswith(name)}) for name in disks}
    assert of["teacher"].startswith("teacher/02_loc/net/fold0: scene 7: no label; mend it; its log: ")
    assert of["teacher"].endswith(" (and 1 more unit is not done)") and of["other"] == ""
    assert of["student"] == ("student/01_folds: not run, since it needs teacher/04_probs/loc/net/fold0/logits "
                             "(and 2 more units are not done)")  # fmt: skip


def test_a_lost_worker_costs_a_start_as_often_as_its_own_experiment_allows(tmp_path):
    lost = [RuntimeError("killed"), 137, "ok"]
    disks: dict[str, Disk] = {name: Seen(CHAIN, {"02_loc/net/fold0": list(lost)}) for name in ("a", "b")}
    outcome = Together(tmp_path, disks, retries={"a": 1, "b": 2}).run()
    assert outcome["a/02_loc/net/fold0"].startswith("lost 2 times")
    assert disks["b"].asked.count("02_loc/net/fold0") == 3 and outcome["b/02_loc/net/fold0"] == ""


def test_ctrl_c_saves_what_runs_of_all_experiments(tmp_path):
    seen = threading.Semaphore(0)
    saved = []

    def until_stopped(call):
        seen.release()
        while not Path(call.stop).exists():
            time.sleep(0.001)
        saved.append(Path(call.stop).parents[1].name)
        return 130

    disks: dict[str, Disk] = {name: Seen(CHAIN, {"01_folds": [until_stopped]}) for name in ("a", "b")}
    with pytest.raises(KeyboardInterrupt):
        Together(tmp_path, disks).run(stop=lambda: seen.acquire(blocking=False) and seen.acquire())
    assert sorted(saved) == ["a", "b"] and not list(tmp_path.rglob(".stop*"))


def test_what_is_wrong_with_data_that_changed_is_said_by_the_experiments_own_commands(tmp_path):
    disks = {"a": Seen(CHAIN, {"02_loc/net/fold0": [(2, "the data are gone")]}, fails=True), "b": Seen(CHAIN)}
    outcome = Together(tmp_path, disks).run()
    assert outcome["a/01_folds"] == "" and outcome["a/02_loc/net/fold0"].startswith("the data are gone; its log: ")
    assert not any(why for name, why in outcome.items() if name.startswith("b/"))


def test_folds_that_another_process_made_are_looked_at_too(tmp_path):
    disk = Seen(CHAIN)

    def other(call):
        disk.there.add("01_folds")
        return 2, BUSY

    disk.script["01_folds"] = iter([(2, BUSY), other])
    assert not any(Together(tmp_path, {"a": disk}).run().values()) and disk.looks


def test_who_waits_for_a_place_is_not_asked_for_on_the_disk_all_the_time(tmp_path):
    """A grid may have a thousand units that could start."""
    counted: list[str] = []

    class Counting(Seen):
        def done(self, job, before=False):
            counted.append(job.name)
            return super().done(job, before)

    def slow(call):
        time.sleep(0.03)
        return "ok"

    graph: dict[str, tuple[str, ...]] = {f"02_loc/net/fold{fold}": () for fold in range(6)}
    disks: dict[str, Disk] = {"a": Counting(graph, {name: [slow] for name in graph})}
    assert not any(Together(tmp_path, disks, slots=1).run().values())
    assert len(counted) <= 2 * 6 + 6 * 5 / 2  # before and after its own run, and when a place becomes free


# ---- opening ------------------------------------------------------------------------------------------
class Opening:
    """Stands in for the plans of real experiments: remembers what was opened and which teachers may come later."""

    def __init__(self, monkeypatch, folder: Path):
        self.folder, self.coming = folder, {}
        monkeypatch.setattr(several, "JobPlan", lambda open_run, stages: open_run())
        monkeypatch.setattr(several.cli, "open_run", self.open_run)

    def open_run(self, args: Namespace, coming: Collection[str]) -> str:
        name = args.config.stem
        if name == "nodata":
            raise DataError("no scenes there")
        self.coming[name] = set(coming)
        return name

    def wanted(self, **lessons: dict) -> dict[str, Namespace]:
        for name, train in lessons.items():
            net = TREE["models"]["net"]
            tree = {**TREE, "name": name, "models": {"net": {**net, "train": {**net["train"], **train}}}}
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        return {name: Namespace(config=self.folder / f"{name}.yaml", overrides=[]) for name in lessons}


def taught_by(name: str) -> dict:
    return {"distill": {"experiment": name}}


def test_a_teacher_may_come_later_where_the_same_run_makes_it(tmp_path, monkeypatch):
    opening = Opening(monkeypatch, tmp_path)
    wanted = opening.wanted(student=taught_by("teacher"), teacher={}, alone=taught_by("elsewhere"),
                            pupil={"pseudo": {"experiment": "student", "models": ["net"]}})  # fmt: skip
    plans, learns, wrong = opened(wanted, ("01",), lambda plan: None)
    assert list(plans) == ["student", "teacher", "alone", "pupil"] and not wrong
    assert opening.coming == {"teacher": set(), "alone": set(), "student": {"teacher"}, "pupil": {"student"}}
    assert learns["student"] == [f"teacher/04_probs/loc/*/fold{fold}/logits" for fold in (0, 1)]
    assert learns["pupil"] == [f"student/04_probs/loc/net/fold{fold}/test" for fold in (0, 1)]


def test_experiments_that_cannot_be_run_are_named_and_the_others_run(tmp_path, monkeypatch):
    opening = Opening(monkeypatch, tmp_path)
    wanted = opening.wanted(odd={"epochs": "many"}, nodata={}, after=taught_by("nodata"), fine={},
                            one=taught_by("two"), two=taught_by("one"), three=taught_by("two"))  # fmt: skip

    def refuse(plan):
        if plan == "fine2":
            raise DataError("asks for 9 GPUs")

    plans, _, wrong = opened(wanted | opening.wanted(fine2={}), ("01",), refuse)
    assert list(plans) == ["fine"]
    assert "models.net.train.epochs" in wrong.pop("odd")
    assert wrong == {
        "nodata": "no scenes there",
        "after": "not run, since it learns from nodata",
        "fine2": "asks for 9 GPUs",
        "one": "not run, since it learns from two, which learns from it in turn",
        "two": "not run, since it learns from one, which learns from it in turn",
        "three": "not run, since it learns from two, which learns from it in turn",
    }


def plan_of(workdir: Path, config: Experiment) -> JobPlan:
    """Return the plan of an invented experiment with one scene."""
    run = SimpleNamespace(graph=Graph(config, ["a"], []), config=config, store=Store(workdir / config.name),
                          strict=False, splits=("oof",), has_split=lambda split: True)  # fmt: skip
    return JobPlan(lambda: run)


def test_scenes_with_a_fallback_are_tried_again_though_no_place_was_free_at_first(tmp_path):
    plan = plan_of(tmp_path, experiment("a"))
    for name, record in (
        ("01_folds", {}),
        ("02_loc/net/fold0", {}),
        ("04_probs/loc/net/fold0/oof", {"failed": {"a": "odd"}}),
    ):
        with plan.run.store.build(plan.jobs[name].units[0], record):
            pass
    job = plan.jobs["04_probs/loc/net/fold0/oof"]
    assert [plan.done(job, before) for before in (True, True, False)] == [False, False, True]


def test_a_worker_must_see_what_the_teacher_made_before_a_student_starts(tmp_path):
    """On a disk of many machines names may be seen late, and each stage of a student looks at its teacher first."""
    teacher, config = experiment("teacher"), experiment("student", train=taught_by("teacher"))
    lessons, store = Graph(teacher, ["a"], []), Store(tmp_path / "teacher")
    plan = plan_of(tmp_path, config)
    assert plan.needs(plan.jobs["01_folds"]) == ()
    for unit in (lessons.folds(), *(lessons.checkpoint("net", fold) for fold in (0, 1)),
                 *(lessons.logits("net", fold) for fold in (0, 1))):  # fmt: skip
        with store.build(unit, {}):
            pass
    logits = [str(tmp_path / f"teacher/04_probs/loc/net/fold{fold}/logits/manifest.json") for fold in (0, 1)]
    assert plan.needs(plan.jobs["01_folds"]) == tuple(logits)
    assert set(plan.needs(plan.jobs["02_loc/net/fold1"])) == {*logits, str(tmp_path / "student/01_folds/manifest.json")}


def test_a_sweep_gives_its_experiments_and_stages_to_the_engine(tmp_path, monkeypatch, capsys):
    asked = {}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TREE, "name": "base"}))
    (tmp_path / "grid.yaml").write_text("seed: [0, 1]\n")

    def run_several(wanted, engine, stages, pressed):
        asked.update(wanted=wanted, slots=engine.slots, stages=stages, pressed=pressed())
        return {"base-seed0": "", "base-seed1": "scene 7 is odd"}

    monkeypatch.setattr(sweep, "run_several", run_several)
    flags = ["--config", str(tmp_path / "base.yaml"), "--grid", str(tmp_path / "grid.yaml"), "--workdir",
             str(tmp_path / "w"), "--set", "folds.n=3", "--stages", "02..04"]  # fmt: skip
    assert sweep.main([*flags, "--local", "3"]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "failed: base-seed1: scene 7 is odd"
    assert (asked["slots"], asked["stages"], asked["pressed"]) == (3, ["02", "03", "04"], False)
    assert [one.overrides for one in asked["wanted"].values()] == [["folds.n=3", f"seed={s}", f"name=base-seed{s}"]
                                                                   for s in (0, 1)]  # fmt: skip
    assert {one.workdir for one in asked["wanted"].values()} == {tmp_path / "w"}
    assert sweep.main([*flags, "--local", "0"]) == 2
    assert "--local 0: expected a number of units" in capsys.readouterr().err


def test_each_experiment_asks_for_what_its_own_file_says(tmp_path):
    disk = Seen({"02_loc/net/fold0": ()})
    disk.jobs["02_loc/net/fold0"] = StageJob("02_loc/net/fold0", ("02_x.py", "--only", "x"), asks=Asks(memory=3))
    joined = Several({"a": disk, "b": Seen({"02_loc/net/fold0": ()})}, {})
    assert [job.asks.memory for job in joined.jobs.values()] == [3, 0]


# ---- real stages --------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_real_sweep_with_a_teacher_has_the_bytes_and_the_table_of_the_sequential_one(tmp_path, monkeypatch, capsys):
    """The student is stated first, so that only its waiting puts the teacher before it."""
    data = {"root": str(tmp_path / "data"), "synthetic": {**kills.EXPERIMENT["data"]["synthetic"], "test_scenes": 0}}
    net, logits = kills.EXPERIMENT["models"]["net"], {**kills.EXPERIMENT["predict"], "logits": True}
    train = {**net["train"], "epochs": 1, "workers": 0}
    taught = {**train, "distill": {"experiment": "teacher-tile64", "temperature": 2}}
    for name, own, more in (("student", taught, {}), ("teacher", train, {"predict": logits})):
        tree = {**kills.EXPERIMENT, "name": name, "data": data, "models": {"net": {**net, "train": own}}, **more}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "grid.yaml").write_text("predict.tile: [64]\n")
    monkeypatch.setattr(sweep, "run_command", lambda c: stage(Path(c[1]).stem, *c[2:]))
    monkeypatch.setattr(command, "Local", lambda count: Local(count, gpus=[], work=forked))

    def swept(workdir: str, names: tuple[str, str], *flags: str) -> list[str]:
        files = [str(tmp_path / f"{name}.yaml") for name in names]
        assert sweep.main(["--config", *files, "--grid", str(tmp_path / "grid.yaml"), "--workdir",
                           str(tmp_path / workdir), *flags]) == 0  # fmt: skip
        return capsys.readouterr().out.splitlines()

    alone = swept("alone", ("teacher", "student"))
    both = swept("both", ("student", "teacher"), "--local", "2")
    for name in ("teacher-tile64", "student-tile64"):
        for units in ("01_folds", "02_loc", "04_probs", "05_ensemble"):
            mine, whole = (tmp_path / workdir / name / units for workdir in ("both", "alone"))
            assert not kills.Trials.differences(mine, whole), (name, units)
        assert (tmp_path / "both" / name / "logs" / "05_ensemble__decode.log").is_file()
    assert timeless(both) == timeless(alone) and len(timeless(both)) == 3
    again = swept("both", ("student", "teacher"), "--local", "2")
    assert "11 units were done already" in again and timeless(again) == timeless(both)


def timeless(said: list[str]) -> list[list[str]]:
    """Return the table that a sweep of two experiments ends with, without seconds and the order of equal scores."""
    cells = sorted(line.split() for line in said[-3:])
    return [[cell for place, cell in enumerate(row) if place != len(row) - 2] for row in cells]
