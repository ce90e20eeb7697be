"""Killed at any moment and started again, a stage ends with the same bytes as an unbroken run.

The process kills itself with SIGKILL at the n-th atomic rename or the n-th training step, which covers the moments
before, between and after everything that is written.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, Experiment

pytestmark = pytest.mark.slow

RUNNER = """
import importlib, os, signal, sys
sys.path.insert(0, {root!r})
from lib.training.stepper import Stepper
moment, number, stage = sys.argv[1], int(sys.argv[2]), sys.argv[3]
count = 0
def die(*_):
    global count
    count += 1
    if count == number:
        os.kill(os.getpid(), signal.SIGKILL if moment != "interrupt" else signal.SIGINT)
if moment == "rename":
    replace = os.replace
    def counted(*a, **k):
        die()
        return replace(*a, **k)
    os.replace = counted
else:
    step = Stepper._step
    def counted(self, *a, **k):
        die()
        return step(self, *a, **k)
    Stepper._step = counted
sys.exit(importlib.import_module(stage).main(sys.argv[4:]))
"""


def killed(experiment: Experiment, moment: str, number: int, stage: str, *arguments: str) -> int:
    command = [sys.executable, "-c", RUNNER.format(root=str(ROOT)), moment, str(number), stage]
    done = subprocess.run([*command, *experiment.flags, *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode


def forget(experiment: Experiment, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(experiment.root / stage)


def same_files(one, two, pattern: str) -> None:
    names = sorted(p.relative_to(one) for p in one.rglob(pattern))
    assert names and names == sorted(p.relative_to(two) for p in two.rglob(pattern))
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.parametrize(("stage", "folder", "model", "moment", "number"), [
    ("02_train_loc", "02_loc", "loc", "step", 2),
    ("02_train_loc", "02_loc", "loc", "rename", 5),
    ("02_train_loc", "02_loc", "loc", "rename", 9),
    ("03_train_cls", "03_cls", "cls", "step", 6),
    ("03_train_cls", "03_cls", "cls", "rename", 2),
    ("03_train_cls", "03_cls", "cls", "rename", 7),
])  # fmt: skip
def test_training_resumes_to_the_same_bytes(experiment, finished, stage, folder, model, moment, number):
    forget(experiment, folder)
    flags = ("--only", model, "--fold", "0")
    assert killed(experiment, moment, number, stage, *flags) == -signal.SIGKILL
    assert not (experiment.root / folder / model / "fold0").exists()
    assert experiment.run(stage, *flags) == 0
    same_files(experiment.root / folder / model / "fold0", finished.root / folder / model / "fold0", "*.safetensors")


def test_training_with_saves_inside_an_epoch_ends_with_the_same_bytes(experiment, finished):
    forget(experiment, "02_loc")
    flags = ("--only", "loc", "--fold", "0", "--set", "models.loc.train.save_minutes=1.0e-6")
    assert killed(experiment, "step", 5, "02_train_loc", *flags) == -signal.SIGKILL
    assert (experiment.root / "02_loc/loc/fold0.partial/last.pt").exists()
    assert experiment.run("02_train_loc", *flags) == 0
    same_files(experiment.root / "02_loc/loc/fold0", finished.root / "02_loc/loc/fold0", "*.safetensors")


@pytest.mark.parametrize(("stage", "number"), [
    ("04_predict_tta", 3), ("04_predict_tta", 11), ("05_ensemble", 4), ("05_ensemble", 14), ("06_make_submission", 3),
])  # fmt: skip
def test_later_stages_resume_to_the_same_submission(experiment, finished, stage, number):
    later = [s for s in ("04_predict_tta", "05_ensemble", "06_make_submission") if s >= stage]
    folders = {"04_predict_tta": "04_probs", "05_ensemble": "05_ensemble", "06_make_submission": "06_submission"}
    forget(experiment, *(folders[s] for s in later))
    assert killed(experiment, "rename", number, stage) == -signal.SIGKILL
    for name in later:
        assert experiment.run(name) == 0
    same_files(experiment.root / "06_submission", finished.root / "06_submission", "submission.csv")
    same_files(experiment.root / "06_submission", finished.root / "06_submission", "xview2.zip")


def test_an_interrupt_saves_the_state_and_exits_with_130(experiment, finished):
    forget(experiment, "02_loc")
    flags = ("--only", "loc", "--fold", "0")
    assert killed(experiment, "interrupt", 2, "02_train_loc", *flags) == 130
    assert (experiment.root / "02_loc/loc/fold0.partial/last.pt").exists()
    assert experiment.run("02_train_loc", *flags) == 0
    same_files(experiment.root / "02_loc/loc/fold0", finished.root / "02_loc/loc/fold0", "*.safetensors")


def test_a_second_process_on_the_same_unit_is_told_who_holds_it(experiment, capsys):
    forget(experiment, "02_loc")
    flags = ("--only", "loc", "--fold", "0", "--set", "models.loc.train.epochs=500")
    command = [sys.executable, str(ROOT / "02_train_loc.py"), *experiment.flags, *flags]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (experiment.root / "02_loc/loc/fold0.partial/unit.json").exists():
            assert first.poll() is None
            time.sleep(0.1)
        assert experiment.run("02_train_loc", *flags) == 2
        assert f"being built by process {first.pid}" in capsys.readouterr().err
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()


def test_kills_at_random_instants_end_with_the_same_bytes():
    """A handful; ``python tests/kills.py`` makes as many as one likes."""
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "--kills", "5", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "5 ended with the same bytes" in done.stdout, done.stdout + done.stderr
