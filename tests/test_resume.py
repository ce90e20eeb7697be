"""Killed at any moment and started again, a stage ends with the same bytes as an unbroken run.

The process kills itself with SIGKILL at the n-th atomic rename or the n-th training step, which covers the moments
before, between and after everything that is written.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import starts
from conftest import ROOT, Experiment

pytestmark = pytest.mark.slow


def killed(experiment: Experiment, moment: str, number: int, stage: str, *arguments: str) -> int | None:
    """Run a stage that dies at its n-th rename or step, or is interrupted there; returns its exit code."""
    return starts.run(stage, *experiment.flags, *arguments, before=partial(arm, moment, number))


def arm(moment: str, number: int) -> None:
    """Send this process the signal at the n-th moment of its kind."""
    from lib.training.stepper import Stepper

    owner, name = (os, "replace") if moment == "rename" else (Stepper, "_step")
    original, count = getattr(owner, name), itertools.count(1)

    def counted(*a, **k):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGINT if moment == "interrupt" else signal.SIGKILL)
        return original(*a, **k)

    setattr(owner, name, counted)


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


@pytest.mark.parametrize("number", [3, 11])
def test_prediction_resumes_to_the_same_levels(experiment, finished, number):
    unit = "04_probs/cls/cls/fold0"
    forget(experiment, unit)
    flags = ("--only", "cls", "--fold", "0")
    assert killed(experiment, "rename", number, "04_predict_tta", *flags) == -signal.SIGKILL
    assert experiment.run("04_predict_tta", *flags) == 0
    same_files(experiment.root / unit, finished.root / unit, "*.tif")


@pytest.mark.parametrize(("stage", "number"), [("05_ensemble", 4), ("05_ensemble", 14), ("06_make_submission", 3)])
def test_later_stages_resume_to_the_same_submission(experiment, finished, stage, number):
    later = [s for s in ("05_ensemble", "06_make_submission") if s >= stage]
    folders = {"05_ensemble": "05_ensemble", "06_make_submission": "06_submission"}
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
    first = starts.start("02_train_loc", *experiment.flags, *flags)
    try:
        while not (experiment.root / "02_loc/loc/fold0.partial/unit.json").exists():
            assert first.is_alive()
            time.sleep(0.1)
        assert experiment.run("02_train_loc", *flags) == 2
        assert f"being built by process {first.pid}" in capsys.readouterr().err
    finally:
        first.kill()
        first.join()


def test_kills_at_random_instants_end_with_the_same_bytes():
    """A handful; ``python tests/kills.py`` makes as many as one likes."""
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "--kills", "5", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "5 ended with the same bytes" in done.stdout, done.stdout + done.stderr
