"""Stages 04 to 06 on the test scenes, with folds, checkpoints and decode settings from read-only weights."""

import argparse
import json
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.competitions import open_competition
from lib.competitions.contract import Answer, Competition, Scene
from lib.errors import ArtifactError, ConfigError, DataError, PipelineError
from lib.kaggle import gates
from lib.run import cli, runtime
from lib.run.cli import Run, say
from lib.run.config import load
from lib.scenes import raster
from lib.stages import ensemble, submit
from lib.stages.predict import fold_splits
from lib.stages.predict import predict as predict_scenes

SUBMISSION = "submission.csv"
SAMPLES = "*sample_submission*.csv"
BYTES_PER_LEVEL = 0.5
"""Disk that one level takes, compressed; measured 0.4 on xBD."""

ESTIMATE_FROM = 32
"""Scenes whose sizes stand for all when the disk is judged."""


# ---- checks -------------------------------------------------------------------------------------------
def open_run(config: Path, args: argparse.Namespace) -> Run:
    """Open the experiment on the data found here; PipelineError where data, device or disk will not do."""
    check_device()
    data = find_data(config, args)
    wanted = ["--config", config, "--workdir", args.scratch, "--inputs", args.weights, "--split", "test",
              "--set", f"data.root={json.dumps(str(data))}", "--set", "data.synthetic=null"]  # fmt: skip
    run = cli.open_run(cli.parser("").parse_args([str(word) for word in wanted]))
    scenes = run.scenes("test")
    gates.check_disk(args.scratch, estimate(run, scenes))
    device = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "no GPU here, the CPU"
    say(f"kernel: {len(scenes)} test scenes in {data}; {device} predicts")
    return run


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


def find_data(config: Path, args: argparse.Namespace) -> Path:
    """Return the folder of the competition's data: as given, by its name, or the only one with test scenes.

    DataError where there is none, or more than one.
    """
    experiment = load(config)

    def fits(folder: Path) -> bool:
        try:
            return bool(open_competition(experiment.competition, folder, experiment.data.options).scenes("test"))
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
    pixels = np.mean([np.prod(size(run.competition, scene)) for scene in first]) if any(t.dense for t in tasks) else 1
    return float(pixels) * len(scenes) * channels * BYTES_PER_LEVEL


def size(competition: Competition, scene: Scene) -> tuple[int, int]:
    """Return the (height, width) of a scene, from the header of its image where there is one."""
    for role in (*competition.images, "image"):
        if role in scene.files:
            return raster.image_size(scene.files[role])
    return competition.read(scene, competition.images[0]).shape[-3:-1]


# ---- submissions --------------------------------------------------------------------------------------
def predict(run: Run, working: Path) -> int:
    """Write a first submission, predict, replace it by the real one; returns the exit code.

    Whatever fails is printed and ends with 1: the submission that stands then is worth more than none.
    """
    target = working / SUBMISSION
    try:
        say(f"kernel: {target}: {first_submission(run, target)}, until the networks have answered")
        started = time.monotonic()
        for units in fold_splits(run):
            predict_scenes(run, list(run.pending(units)))
        for unit in run.pending(ensemble.units(run)):
            record: dict[str, Any] = {"stage": "05"}
            with run.build(unit, record) as folder:
                record["scenes"] = ensemble.blend(run, "test", folder)
        for unit in run.pending([run.graph.submission("test")]):
            record = {"stage": "06"}
            with run.build(unit, record) as folder:
                record |= submit.write(run, "test", folder)
        put(run.store.require(run.graph.submission("test")) / SUBMISSION, target)
    except PipelineError as error:
        say(f"kernel: {error}")
        return 1
    except Exception:  # noqa: BLE001 any fault of data, library or machine; the submission outlives it
        traceback.print_exc()
        return 1
    say(f"kernel: {target} holds the predictions of {len(run.graph.test_ids)} scenes "
        f"({cli.duration(time.monotonic() - started)}), linted")  # fmt: skip
    return 0


def first_submission(run: Run, target: Path) -> str:
    """Put the competition's sample submission in place where it fits the scenes, else empty answers; returns which."""
    competition, scenes = run.competition, run.scenes("test")
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
    for scene in scenes:
        yield scene, answer(size(competition, scene) if dense else (1, 1))


def put(source: Path, target: Path) -> None:
    """Copy a file so that ``target`` is at every moment what it was before, or the whole copy."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    with open(temporary, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, target)
