"""Kill stages at random instants, start them again, and compare every byte with an undisturbed run.

    python tests/kills.py --kills 200 --seed 1

A tiny experiment (64 pixels, a U-Net of 30,000 weights, two loader processes) runs once undisturbed. Then a stage is
forked from this process, which has imported everything, and gets a SIGKILL: at a random instant of its start-up, of an
epoch, of a save, of a validation, between the last epoch and the seal, in the seal or in the exchange of folders; or
one of its loader processes gets it. Some starts are cold, as from a shell, so that imports are hit too. What lasts too
short to be hit is made longer: between the last epoch and the end, each change of a name waits some milliseconds. The
stage is run again at once and must end with the bytes of the undisturbed run and leave nothing behind.
"""

import argparse
import importlib
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # a process with threads cannot be forked safely
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import multiprocessing

import yaml

STAGES = ("01_prepare_folds", "02_train_loc", "04_predict_tta", "05_ensemble", "06_make_submission")
UNITS = {"02_train_loc": "02_loc", "04_predict_tta": "04_probs", "05_ensemble": "05_ensemble",
         "06_make_submission": "06_submission"}  # fmt: skip
"""Stage -> the folder of its units."""
EXPERIMENT = {
    "name": "tiny", "seed": 3, "competition": "binary_rle", "folds": {"n": 2},
    "data": {"root": "data", "synthetic": {"scenes": 4, "test_scenes": 2, "size": 64, "seed": 1}},
    "models": {"net": {
        "task": "loc", "folds": [0],
        "network": {"architecture": "unet", "encoder": "none", "images": ["image"], "options": {"base": 2}},
        "train": {"epochs": 3, "batch_size": 2, "crop": 32, "sampling": {"samples": 4}, "augment": "light", "ema": 0.9,
                  "workers": 2, "optimizer": {"lr": 0.01}, "validate_every": 1, "save_minutes": 0.0001,
                  "loss": {"terms": {"bce": 1, "dice": 1}}},
    }},
    "predict": {"tta": "hflip", "tile": 64},
    "search": {"axes": {"threshold": [0.3, 0.4, 0.5, 0.6]}},
}  # fmt: skip
TIMES = ("manifest.json", "log.jsonl")
"""Files that hold times, which differ from run to run."""

SHORT = ("after the last epoch", "seal", "exchange")
"""Phases that last too short to be hit; each change of a name in them waits ``PAUSE`` seconds."""
PAUSE = 0.005
PHASES = ("start-up", "epoch", "save", "validation", "after the last epoch", "scenes", "seal", "exchange", "end")
PLAN = (
    ("02_train_loc", "start-up", 2), ("02_train_loc", "epoch", 3), ("02_train_loc", "loader process", 4),
    ("02_train_loc", "save", 3), ("02_train_loc", "validation", 2), ("02_train_loc", "after the last epoch", 2),
    ("02_train_loc", "seal", 3), ("02_train_loc", "exchange", 2), ("02_train_loc", "cold start", 1),
    ("04_predict_tta", "start-up", 1), ("04_predict_tta", "scenes", 2), ("04_predict_tta", "seal", 1),
    ("05_ensemble", "start-up", 1), ("05_ensemble", "scenes", 2), ("05_ensemble", "seal", 1),
    ("06_make_submission", "start-up", 1), ("06_make_submission", "scenes", 2), ("06_make_submission", "exchange", 1),
)  # fmt: skip
"""Stage, where it is killed, and how often compared with the others."""


@dataclass
class Told:
    """What a forked stage tells this process: in which phase it is, which phases it has entered, and when."""

    shared: mmap.mmap
    pipe: int

    def enter(self, phase: str) -> None:
        self.shared[0] = PHASES.index(phase)
        os.write(self.pipe, bytes([PHASES.index(phase)]))

    def load(self) -> None:
        """Tell of a loader process, whose number follows."""
        child = random.choice(multiprocessing.active_children()).pid if multiprocessing.active_children() else 0
        os.write(self.pipe, bytes([255]) + int(child or 0).to_bytes(4, "big"))


def warm() -> None:
    """Import all that stages import."""
    for module in (*STAGES, "lib.stages.train", "lib.stages.predict", "lib.stages.folds", "lib.choose.fit",
                   "lib.config.networks", "lib.competitions.binary_rle.competition",
                   "lib.competitions.synthetic.binary_rle"):  # fmt: skip
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    if len(os.listdir("/proc/self/task")) > 1:
        raise SystemExit("expected a process without threads to fork from")


def hook(told: Told) -> None:
    """Make a stage tell its phases."""
    from lib.run import artifacts
    from lib.run.artifacts import Store
    from lib.stages import ensemble, predict, submit
    from lib.training import fit, state
    from lib.training.stepper import Stepper

    def within(owner: object, name: str, phase: str, after: str | None = None, also: Callable | None = None) -> None:
        real = getattr(owner, name)

        def call(*arguments, **more):
            before = PHASES[told.shared[0]]
            told.enter(phase)
            if also:
                also()
            try:
                return real(*arguments, **more)
            finally:
                told.enter(after or before)
                if after in SHORT:
                    time.sleep(PAUSE)

        setattr(owner, name, call)

    def slow(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments, **more):
            if PHASES[told.shared[0]] in SHORT:
                time.sleep(PAUSE)
            return real(*arguments, **more)

        setattr(os, name, call)

    for name in ("replace", "rename", "unlink", "rmdir", "fsync", "scandir"):
        slow(name)
    within(Stepper, "take", "epoch", also=told.load)
    within(state, "save", "save", "epoch")
    within(fit.Fit, "_judge", "validation", "epoch")
    within(fit.Fit, "run", "epoch", "after the last epoch")
    within(Store, "_seal", "seal")
    within(artifacts, "_publish", "exchange", "start-up")
    within(predict.Networks, "compute", "scenes")
    within(ensemble, "write_levels", "scenes")
    within(submit, "averages", "scenes", "scenes")


def fork(stage: str, arguments: list[str], log: Path) -> tuple[int, int, mmap.mmap]:
    """Start a stage in a forked process; returns its number, the pipe in which it tells its phases, and the present."""
    shared = mmap.mmap(-1, 1)
    mine, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.close(mine)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            told = Told(shared, theirs)
            hook(told)
            told.enter("start-up")
            code = importlib.import_module(stage).main(arguments)
            told.enter("end")
        except BaseException:  # noqa: BLE001 a process that was forked must not go on as the one it was forked from
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(theirs)
    return child, mine, shared


def finish(stage: str, arguments: list[str], log: Path) -> tuple[int, list[tuple[float, int]]]:
    """Run a stage to its end; returns its exit code and when it entered which phase."""
    child, pipe, _ = fork(stage, arguments, log)
    entered = []
    while told := os.read(pipe, 1):
        if told[0] == 255:
            os.read(pipe, 4)
        else:
            entered.append((time.monotonic(), told[0]))
    os.close(pipe)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), entered


class Trials:
    """An experiment that was run once undisturbed, and trials that start from copies of it."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        config = folder / "tiny.yaml"
        config.write_text(yaml.safe_dump({**EXPERIMENT, "data": {**EXPERIMENT["data"], "root": str(folder / "data")}}))
        self.flags = ["--config", str(config), "--workdir"]
        self.lasts: dict[tuple[str, str], list[float]] = {}
        """Stage and phase -> how long the undisturbed run was in it, each time."""
        for stage in STAGES:
            self.measure(stage)

    def measure(self, stage: str) -> None:
        """Run a stage undisturbed and remember how long its phases last."""
        code, entered = finish(stage, [*self.flags, str(self.folder / "whole")], self.folder / "log.txt")
        if code:
            raise SystemExit(f"{stage} ended with {code}: {(self.folder / 'log.txt').read_text()}")
        for (start, phase), (end, _) in zip(entered, entered[1:], strict=False):
            self.lasts.setdefault((stage, PHASES[phase]), []).append(end - start)

    def trial(self, stage: str, where: str) -> tuple[str, str]:
        """Kill a stage once and run it again; returns where the kill really fell and what came of it, "" for all well.

        Where the kill came too late, for the stage had ended, it is "too late".
        """
        workdir = self.folder / "trial"
        shutil.rmtree(workdir, ignore_errors=True)
        earlier = ["01_folds", *(UNITS[s] for s in STAGES[1 : STAGES.index(stage)])]
        for unit in (*earlier, ".checked.json", ".facts.json"):
            source, target = self.folder / "whole" / "tiny" / unit, workdir / "tiny" / unit
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copy(source, target)
        arguments = [*self.flags, str(workdir)]
        fell = self.cold(stage, arguments) if where == "cold start" else self.warm_kill(stage, where, arguments)
        if fell == "too late":
            return fell, ""
        log = self.folder / "again.txt"
        code, _ = finish(stage, arguments, log)
        if code:
            return fell, f"the next run ended with {code}: {log.read_text()[-800:]}"
        return fell, self.differences(workdir / "tiny" / UNITS[stage], self.folder / "whole" / "tiny" / UNITS[stage])

    def cold(self, stage: str, arguments: list[str]) -> str:
        """Start a stage as from a shell and kill it after some seconds."""
        command = [sys.executable, str(ROOT / f"{stage}.py"), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(self.rng.uniform(0, 12))
        process.kill()
        return "cold start" if process.wait() == -signal.SIGKILL else "too late"

    def warm_kill(self, stage: str, where: str, arguments: list[str]) -> str:
        """Start a stage in a forked process and kill it, or one of its loader processes, at a random instant."""
        phase = "epoch" if where == "loader process" else where
        times = self.lasts[(stage, phase)]
        number = self.rng.randrange(len(times))
        child, pipe, shared = fork(stage, arguments, self.folder / "killed.txt")
        left, loader = number + 1, 0
        while left and (told := os.read(pipe, 1)):
            if told[0] == 255:
                loader = int.from_bytes(os.read(pipe, 4), "big")
            elif told[0] == PHASES.index(phase):
                left -= 1
        if where == "loader process":  # the number of one follows
            while (told := os.read(pipe, 1)) and not loader:
                loader = int.from_bytes(os.read(pipe, 4), "big") if told[0] == 255 else 0
        time.sleep(self.rng.uniform(0, times[number]))
        fell = PHASES[shared[0]]
        with suppress(ProcessLookupError):
            os.kill(loader if where == "loader process" and loader else child, signal.SIGKILL)
        while os.read(pipe, 1 << 16):
            pass
        os.close(pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if where == "loader process":
            said = (self.folder / "killed.txt").read_text()
            if code == 2 and "a process that loads samples died (SIGKILL)" in said and "Traceback" not in said:
                return where
            return "too late" if code == 0 else f"{where}: exit code {code}, {said[-800:]}"
        return fell if code == -signal.SIGKILL else "too late"

    @staticmethod
    def differences(mine: Path, whole: Path) -> str:
        """Say what differs between two folders of units, but for times; "" where nothing does."""
        names = [{str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (mine, whole)]
        if odd := sorted(names[0] ^ names[1]):
            return f"there in one alone: {', '.join(odd)}"
        differing = [name for name in sorted(names[0]) if not name.endswith(TIMES)
                     and (mine / name).read_bytes() != (whole / name).read_bytes()]  # fmt: skip
        return f"other bytes: {', '.join(differing)}" if differing else ""


def run(kills: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Kill so often; returns (stage, where it fell) -> how often, and what went wrong."""
    warm()
    trials = Trials(folder, seed)
    cases = [case[:2] for case in PLAN for _ in range(case[2])]
    trials.rng.shuffle(cases)
    fallen: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    number = 0
    while fallen.total() < kills:
        stage, where = cases[number % len(cases)]
        number += 1
        fell, fault = trials.trial(stage, where)
        if fell == "too late":
            continue
        if fell.startswith("loader process: "):
            fell, fault = "loader process", fell
        fallen[stage, fell] += 1
        if fault:
            wrong.append(f"{stage}, {fell}: {fault}")
            print(wrong[-1], flush=True)
    return fallen, wrong


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=200, help="how many kills (default: 200)")
    flags.add_argument("--seed", type=int, default=0, help="seed of the instants (default: 0)")
    args = flags.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fallen, wrong = run(args.kills, args.seed, Path(folder))
    for (stage, where), count in sorted(fallen.items()):
        print(f"{stage:20s} {where:22s} {count:4d}")
    same = fallen.total() - len(wrong)
    print(f"{fallen.total()} kills in {time.monotonic() - started:.0f} s, {same} ended with the same bytes")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
