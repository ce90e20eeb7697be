"""Stages 04 to 06 on the test scenes, with folds, checkpoints and decode settings from read-only weights."""

import argparse
import json
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import inf
from pathlib import Path

import numpy as np
import torch

from lib.choose.choice import Decision, Subset
from lib.competitions import open_competition
from lib.competitions.contract import SUBMISSION, Answer, Competition, Scene
from lib.config.load import load
from lib.config.sections import Experiment
from lib.errors import ArtifactError, ConfigError, DataError, PipelineError
from lib.files import whole_path
from lib.inference.scene import sizes
from lib.kaggle import gates
from lib.kaggle.passes import Budget, carry_out, measure, reduced_run
from lib.kaggle.plan import KernelPlan, describe, make_plan, subsets_of
from lib.run import cli, runtime
from lib.run.cli import Run, say
from lib.run.executor import STARTS, Pool
from lib.stages import ensemble, submit
from lib.stages.predict import open_pool, told

SAMPLES = "*sample_submission*.csv"
BYTES_PER_LEVEL = 0.5
"""Disk that one level takes, compressed; measured 0.4 on xBD."""

ESTIMATE_FROM = 32
"""Scenes whose sizes stand for all when the disk is judged."""


# ---- checks -------------------------------------------------------------------------------------------
@dataclass
class Job:
    """What a kernel does: the run of everything that it may predict, what was compared out of fold, and who works."""

    run: Run
    full: Subset
    compared: list[Subset]
    pool: Pool
    budget: Budget


def open_job(config: Path, args: argparse.Namespace, clock: Callable[[], float]) -> Job:
    """Open the experiment on the data found here; PipelineError where data, device, disk or settings will not do.

    Of several sets of views only the one is left that was chosen out of fold. ``clock``: seconds since the start.
    """
    changes = [*carried(args.weights), *settings(load(config), args)]
    check_device()
    data = find_data(config, args, changes)
    wanted = ["--config", config, "--workdir", args.scratch, "--inputs", args.weights, "--split", "test"]
    for change in (f"data.root={json.dumps(str(data))}", "data.synthetic=null", *changes):
        wanted += ["--set", change]
    run = cli.open_run(cli.parser("").parse_args([str(word) for word in wanted]))
    full, compared = subsets_of(run.config, Decision.of(run))
    run = reduced_run(run, full)
    scenes = run.competition.scenes("test")
    gates.check_disk(args.scratch, estimate(run, scenes))
    pool = open_pool(run, args.start)
    minutes = run.config.predict.budget_minutes
    say(f"kernel: {len(scenes)} test scenes in {data}; predicted by {workers(pool)}"
        + (f" in {minutes:g} minutes" if minutes else ""))  # fmt: skip
    for caveat in run.competition.caveats(scenes):
        say(f"kernel: ! {caveat}")
    return Job(run, full, compared, pool, Budget(60 * minutes if minutes else inf, clock))


def workers(pool: Pool) -> str:
    """Say how many workers there are, and where."""
    if pool.devices[0].type == "cpu":
        return f"{len(pool)} worker{'s' * (len(pool) > 1)} on the CPU, no GPU here"
    places = Counter(torch.cuda.get_device_name(device) for device in dict.fromkeys(pool.devices))
    return f"{len(pool)} worker{'s' * (len(pool) > 1)} on " + ", ".join(f"{n} x {name}" for name, n in places.items())


def settings(experiment: Experiment, args: argparse.Namespace) -> Iterator[str]:
    """Yield what the kernel's settings change in the experiment. ConfigError for one that means nothing."""
    if args.start not in STARTS:
        raise ConfigError(f"KERNEL_START: expected {' or '.join(STARTS)}, got {args.start!r}")
    for name, kind, value in (("workers", int, args.workers), ("budget_minutes", float, args.budget_minutes)):
        if value:
            try:
                number = kind(value)
            except ValueError:
                number = 0
            if not 0 < number < inf:
                raise ConfigError(f"KERNEL_{name.upper()}: expected a number above 0, or nothing, got {value!r}")
            yield f"predict.{name}={number}"
    if experiment.predict.compile:
        yield "predict.compile=false"  # a machine without a compiler would predict nothing
    if experiment.predict.fallback is None:
        yield "predict.fallback=0"  # nothing may stop the rest


def check_device() -> None:
    """Refuse a GPU that is there and cannot be used, instead of days on the CPU. Raises ConfigError."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not torch.cuda.is_available():
        if present() and not hidden:
            raise ConfigError(
                f"this machine has a GPU that torch {torch.__version__} cannot use (a build for CPUs, or an older "
                "driver); choose another image or another GPU, or set CUDA_VISIBLE_DEVICES= to predict on the CPU"
            )
        return
    device = runtime.device()  # ConfigError for a GPU that this torch has no code for
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"{torch.cuda.get_device_name(device)}: fails at the first operation ({said}); start the "
                          "machine again, or choose another GPU") from error  # fmt: skip


def present() -> bool:
    """Tell whether the machine has an NVIDIA GPU, usable or not."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def carried(weights: Path) -> Iterator[str]:
    """Yield the changes by which options of the competition name the files that came along with the weights."""
    for file in sorted((weights / gates.CARRIED).glob("*/*")):
        yield f"data.options.{file.parent.name}={json.dumps(str(file.resolve()))}"


def find_data(config: Path, args: argparse.Namespace, changes: Sequence[str] = ()) -> Path:
    """Return the folder of the competition's data: as given, by its name, or the only one with test scenes.

    DataError where there is none, or more than one.
    """
    experiment = load(config, changes)

    def fits(folder: Path) -> bool:
        try:
            data = experiment.data
            opened = open_competition(experiment.competition, folder, data.options, limits=data.limits)
            return bool(opened.scenes("test"))
        except (PipelineError, OSError):
            return False

    if args.data is not None:
        if not args.data.is_dir():
            raise DataError(f"{args.data}: no such folder of the competition's data; set KERNEL_DATA to where it is")
        if not fits(args.data):
            raise DataError(f"{args.data}: no test scenes found in it; set KERNEL_DATA to the folder that holds them")
        return args.data
    found: list[Path] = []
    for folder in gates.folders(args.input, 3):
        known = {args.weights.resolve(), *found}  # nothing below these
        if known.isdisjoint((folder.resolve(), *folder.resolve().parents)) and args.competition in ("", folder.name):
            found += [folder.resolve()] if fits(folder) else []
    if not found:
        named = f" called {args.competition}" if args.competition else ""
        raise DataError(f"{args.input}: no folder{named} with test scenes; attach the competition's data or set "
                        "KERNEL_DATA")  # fmt: skip
    if len(found) > 1:
        raise DataError(f"{', '.join(map(str, found))}: each has test scenes; set KERNEL_DATA to the right one")
    return found[0]


def estimate(run: Run, scenes: list[Scene]) -> float:
    """Return about how many bytes the probabilities of all scenes will take."""
    channels = sum(
        run.competition.tasks[model.task].channels * (len(run.config.folds_of(model)) + 1)
        for model in run.config.models.values()
    )
    first = scenes[:: max(1, len(scenes) // ESTIMATE_FROM)]
    tasks = run.competition.tasks.values()
    dense = any(task.dense for task in tasks)
    pixels = np.mean([np.prod(size) for size in sizes(run.competition, first).values()]) if dense else 1
    return float(pixels) * len(scenes) * channels * BYTES_PER_LEVEL


# ---- submissions --------------------------------------------------------------------------------------
def predict(job: Job, working: Path) -> int:
    """Write a first submission, predict, replace it by better ones; returns the exit code.

    Whatever fails is printed and ends with 1: the submission that stands then is worth more than none.
    """
    target, run, budget = working / SUBMISSION, job.run, job.budget

    def hand_in(part: Run) -> None:
        """Average, decode, write and lint what the networks have predicted, then put it in place."""
        part.make("05", ensemble.units(part), partial(ensemble.write, part))
        part.make("06", submit.units(part), partial(submit.write, part))
        put(part.store.require(part.graph.submission("test")) / SUBMISSION, target)
        say(f"kernel: {target} holds the predictions of {len(part.graph.test_ids)} scenes by {networks(part)}, linted")

    try:
        with job.pool as pool:
            pool.start()  # first of all: what is forked later would inherit threads
            say(f"kernel: {target}: {first_submission(run, target)}, until the networks have answered")
            plan: KernelPlan | None = KernelPlan(job.full, run.config.folds.n, 0.0)
            reading = 0.0
            if budget.seconds < inf:
                costs = measure(run, pool, run.store.root / "measured")
                plan, reading = make_plan(costs, job.full, job.compared, budget.left()), costs.scenes * costs.read
                say("kernel: plan: " + describe(costs, job.full, plan, budget.left()))
            if plan is None:
                return 1
            failed = carry_out(run, plan, pool, hand_in, budget, reading)
    except PipelineError as error:
        say(f"kernel: {error}")
        return 1
    except Exception:  # noqa: BLE001 any fault of data, library or machine; the submission outlives it
        traceback.print_exc()
        return 1
    if failed:
        say(f"kernel: {len(failed)} of {len(run.graph.test_ids)} scenes could not be predicted and have the fallback: "
            + told(failed))  # fmt: skip
    say(f"kernel: done in {cli.duration(budget.clock())}")
    return 0


def networks(run: Run) -> str:
    """Say how many networks a run averages."""
    count = sum(len(run.config.folds_of(model)) for model in run.config.models.values())
    return f"{count} network{'s' * (count > 1)}"


def first_submission(run: Run, target: Path) -> str:
    """Put the competition's sample submission in place where it fits the scenes, else empty answers; returns which."""
    competition, scenes = run.competition, run.competition.scenes("test")
    for sample in sorted(Path(run.config.data.root).glob(SAMPLES)):
        if not competition.lint(sample, scenes):
            put(sample, target)
            return f"the competition's {sample.name}"
    folder = run.store.root / "first"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    competition.write_submission(empty(competition, scenes), folder)
    if faults := competition.lint(folder / SUBMISSION, scenes):
        raise ArtifactError(f"{folder / SUBMISSION}: not valid: {'; '.join(faults)}")
    put(folder / SUBMISSION, target)
    shutil.rmtree(folder)
    return "empty answers"


def empty(competition: Competition, scenes: list[Scene]) -> Iterator[tuple[Scene, Answer]]:
    """Yield every scene with the answer to probabilities of zero, decoded once per size."""

    @cache
    def answer(shape: tuple[int, int]) -> Answer:
        levels = {
            name: np.zeros((task.channels, *(shape if task.dense else (1, 1))), np.uint8)
            for name, task in competition.tasks.items()
        }
        return competition.decode(levels, competition.defaults())

    dense = any(task.dense for task in competition.tasks.values())
    size_of = sizes(competition, scenes) if dense else {}
    for scene in scenes:
        yield scene, answer(size_of.get(scene.id, (1, 1)))


def put(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is at every moment what it was before, or the whole copy."""
    with whole_path(target) as partial:
        shutil.copyfile(source, partial)
