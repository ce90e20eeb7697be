"""Is this machine fit for an experiment? A table with a verdict per line, in a few minutes, before days of training.

For each model, with random images, and with random weights where no checkpoint is finished: whether its norms stay what
they are when they are converted for several GPUs, how far half precision is from float32, how long a step and a
prediction take (with either memory layout, and compiled), how much memory a step takes and which batch is the largest,
and whether the loader keeps up, for which the data must be there. Exit status 1 where a verdict is bad::

    python -m lib.tools.gpu_check --config configs/xview2.yaml data.root=/data/xbd models.dpn92.train.batch_size=16

On a CPU it leaves out what only a GPU has, and says so.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib.competitions.contract import Competition
from lib.config import check
from lib.config.load import load
from lib.config.sections import Experiment
from lib.errors import ArtifactError, ConfigError, DataError, PipelineError
from lib.files import write_json
from lib.run import cli, runtime
from lib.run.cli import Run
from lib.stages.train import samples
from lib.tools import gpu_measure as measure
from lib.tools import table
from lib.tools.gpu_measure import Subject

OK, BAD, NOTE, LEFT_OUT = "ok", "BAD", "note", "left out"
CONVERTED = 1e-5
"""What a logit may change by when norms are converted; the right conversion changes nothing."""
CHANGED = {"trained": 0.02, "random": 0.05}
"""Share of pixels that may change class in half precision. Random weights amplify its error, so that more than this is
a note with them and bad with trained ones. Our own choice."""
COLUMNS = ("model", "check", "found", "verdict", "why")
FASTER = 0.05
"""Share of a time from which on a setting is worth a word."""
SEARCH = 4
"""Measurements whose time the search for the largest batch may take."""
SCENES = 32
"""Scenes at most from which the loader is fed, since it may read all of them into memory before it begins."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    model: str
    check: str
    found: str
    verdict: str
    why: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    """What was measured, for the JSON file."""


@dataclass(frozen=True)
class Options:
    """How much is measured. ``seconds``: for each measurement; ``compiles``: whether networks are compiled too."""

    seconds: float
    compiles: bool


# ---- one model ----------------------------------------------------------------------------------------
class Checks:
    """All measurements of one model. ``data`` gives the samples of training, or raises PipelineError without data."""

    def __init__(self, name: str, subject: Subject, options: Options, data: Callable[[], Any]):
        self.name, self.subject, self.options, self.data = name, subject, options, data
        self.train = subject.model.train
        self.on_gpu = subject.device.type == "cuda"
        self.step_seconds: float | None = None

    def lines(self) -> Iterator[Line]:
        """Measure; yields line after line. What fails is a line too, and the next measurement goes on."""
        for what, measured in (("SyncBN conversion", self.conversion), ("half precision", self.precision),
                               ("training step", self.step), ("prediction", self.prediction),
                               ("memory", self.memory), ("loader", self.loader)):  # fmt: skip
            try:
                yield from measured()
            except torch.OutOfMemoryError:
                yield self.line(
                    what, "the device's memory is full", BAD, "lower train.batch_size, crop or predict.tile"
                )
            except Exception as error:  # noqa: BLE001 libraries raise of all kinds, as for a batch of one
                yield self.line(what, "failed", BAD, (str(error).strip().splitlines() or [type(error).__name__])[0])
            if self.on_gpu:
                torch.cuda.empty_cache()

    def line(self, what: str, found: str, verdict: str, why: str = "", **numbers: Any) -> Line:
        """Return a line about this model."""
        return Line(self.name, what, found, verdict, why, numbers)

    def conversion(self) -> Iterator[Line]:
        """Compare a network with the one whose norms are converted for several GPUs."""
        difference = measure.sync_batchnorm_difference(self.subject)
        good = difference <= CONVERTED
        yield self.line("SyncBN conversion", f"logits change by {difference:g} at most", OK if good else BAD,
                        "" if good else "do not train it on several GPUs", difference=difference)  # fmt: skip

    def precision(self) -> Iterator[Line]:
        """Compare the levels of float16 and of bfloat16 with those of float32."""
        network = self.subject.network()
        used = runtime.precision_on(self.subject.device, self.subject.predict.precision)
        for name in ("float16", "bfloat16"):
            if name == "float16" and not self.on_gpu:
                yield self.line(name, "", LEFT_OUT, "a CPU has no fast float16; bfloat16 takes its place there")
                continue
            found = measure.precision_difference(self.subject, network, name)
            weights = "random" if self.subject.checkpoint is None else "trained"
            good = found.finite and found.changed <= CHANGED[weights]
            said = (f"largest difference {found.levels} of 255, {found.changed:.2%} change class" if found.finite
                    else "probabilities are not finite")  # fmt: skip
            bad = BAD if name == used and (weights == "trained" or not found.finite) else NOTE
            why = f"{'it predicts in this; ' if name == used else ''}{weights} weights"
            yield self.line(name, said, OK if good else bad, why, weights=weights, **asdict(found))

    def step(self) -> Iterator[Line]:
        """Time a step of training with either layout, and compiled."""
        part = self.subject.part

        def seconds(channels_last: bool, compiles: bool = False) -> float:
            step = measure.Step(self.subject, compile=compiles, channels_last=channels_last)
            return measure.seconds_per_call(lambda: step(part), self.subject.device, self.options.seconds)

        own = self.train.channels_last
        self.step_seconds = seconds(own)
        yield from self._times("step", f"{part} crops", self.step_seconds, seconds, own)

    def prediction(self) -> Iterator[Line]:
        """Time a prediction with either layout, and compiled."""

        def seconds(channels_last: bool, compiles: bool = False) -> float:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            return measure.forward_seconds(self.subject, self.options.seconds, layout, compiles)

        what = "one window" if self.subject.task.dense else f"{measure.FRAMES} frames"
        yield from self._times("prediction", what, seconds(False), seconds, False)

    def _times(self, what: str, of: str, before: float, seconds: Callable[..., float], own: bool) -> Iterator[Line]:
        """Yield the time as configured, and what the other layout and compiling would change. ``own``: the layout."""
        names = {True: "channels_last", False: "contiguous"}
        yield self.line(f"{what}, {names[own]}", f"{of} in {1e3 * before:.1f} ms", OK, "as configured", seconds=before)
        yield self._faster(f"{what}, {names[not own]}", of, before, seconds(not own))
        if self.options.compiles:
            yield self._faster(f"{what}, compiled", of, before, seconds(own, compiles=True))
        else:
            why = "not asked for" if self.on_gpu else "takes minutes on a CPU; --compile does it"
            yield self.line(f"{what}, compiled", "", LEFT_OUT, why)

    def _faster(self, what: str, of: str, before: float, now: float) -> Line:
        gain = 1 - now / before
        said = f"{abs(gain):.0%} {'faster' if gain > 0 else 'slower'} than as configured"
        return self.line(what, f"{of} in {1e3 * now:.1f} ms", NOTE if gain > FASTER else OK, said, seconds=now)

    def memory(self) -> Iterator[Line]:
        """Find the memory that a step takes, and the largest batch."""
        if not self.on_gpu:
            yield self.line("memory", "", LEFT_OUT, "a CPU has no memory of its own")
            return
        device, part = self.subject.device, self.subject.part
        step, peaks = measure.Step(self.subject), {}
        until = time.monotonic() + SEARCH * self.options.seconds

        def tried(batch: int) -> None:
            torch.cuda.reset_peak_memory_stats(device)
            step(batch)
            peaks[batch] = runtime.peak_memory_mib(device)

        fits, full = measure.largest_batch(tried, part, lambda: time.monotonic() < until)
        whole = torch.cuda.get_device_properties(device).total_memory / 2**20
        own = f"{peaks[part]:,.0f} of {whole:,.0f} MiB" if part in peaks else f"not in {whole:,.0f} MiB"
        yield self.line(f"memory of {part} crops", own, OK if part in peaks else BAD,
                        "" if part in peaks else "set train.accumulate higher, or train.batch_size or crop lower",
                        mib=peaks.get(part), device_mib=whole)  # fmt: skip
        known = full is not None and full - fits <= 1
        said = f"{fits} crops" if known else f"{fits} crops or more" + (f", below {full}" if full else "")
        yield self.line("largest batch", said if fits else "none found", OK if fits else BAD,
                        "" if known else "the time for the search was up", fits=fits, does_not_fit=full)  # fmt: skip

    def loader(self) -> Iterator[Line]:
        """Compare the pace of the loader with that of the steps."""
        try:
            dataset = self.data()
        except (PipelineError, OSError) as error:
            yield self.line("loader", "", LEFT_OUT, f"no samples: {str(error).splitlines()[0]}")
            return
        pace = measure.loader_pace(dataset, self.train, self.subject.device, self.options.seconds)
        numbers = {"samples_per_second": pace}
        if self.step_seconds is None:
            yield self.line("loader", f"{pace:.1f} crops/s", NOTE, "no step to compare it with", **numbers)
            return
        wanted = self.subject.part / self.step_seconds
        numbers["step_samples_per_second"] = wanted
        why = f"the device waits: raise train.workers ({self.train.workers}) or keep scenes with train.cache"
        verdict = OK if pace >= wanted else BAD if self.on_gpu else NOTE
        said = "" if pace >= wanted else why if self.on_gpu else "they share the processors here"
        yield self.line("loader", f"{pace:.1f} crops/s, steps take {wanted:.1f}", verdict, said, **numbers)


# ---- the experiment -----------------------------------------------------------------------------------
def opened(config: Path, overrides: Sequence[str], workdir: Path) -> tuple[Experiment, Competition, Run | None]:
    """Open an experiment, with its data where they are there; the embedded demo set is not written for this.

    PipelineError where the settings are wrong, or where not even the classes are known without the data.
    """
    changes = list(overrides)
    first = load(config, changes)
    if first.data.synthetic and not first.data.root.exists():
        changes.append("data.synthetic=null")
    words = ["--config", str(config), "--workdir", str(workdir)]
    words += [word for change in changes for word in ("--set", change)]
    try:
        run = cli.open_run(cli.parser("").parse_args(words))
    except (DataError, ArtifactError):  # no scenes, or a teacher that has not come so far
        return *check.open_experiment(config, changes, workdir), None
    return run.config, run.competition, run


def training_samples(run: Run | None, name: str) -> Any:
    """Return the samples of a model's training, without pseudo-labels and teachers. DataError without data."""
    if run is None:
        raise DataError("no scenes in data.root, or what the experiment learns from is not there yet")
    model = run.config.models[name]
    plain = model.model_copy(update={"train": model.train.model_copy(update={"pseudo": None, "distill": None})})
    return samples(run, plain, run.competition.scenes("train")[:SCENES], 0)


def finished(run: Run | None, name: str) -> Path | None:
    """Return the folder of the model's first finished checkpoint, if there is one."""
    if run is not None:
        for fold in run.config.folds_of(run.config.models[name]):
            with suppress(ArtifactError):
                return run.store.require(run.graph.checkpoint(name, fold))
    return None


def checked(experiment: Experiment, competition: Competition, run: Run | None, options: Options,
            only: str | None = None) -> Iterator[Line]:  # fmt: skip
    """Yield the lines of each model, or of one."""
    device = runtime.device()
    for name, model in experiment.models.items():
        if only in (None, name):
            predict = experiment.predict_of(model, competition.tasks)
            subject = Subject(model, competition.tasks[model.task], predict, device, finished(run, name),
                              competition.tasks)  # fmt: skip
            yield from Checks(name, subject, options, partial(training_samples, run, name)).lines()


def machine() -> dict[str, Any]:
    """Return what the figures belong to: device, its memory, torch, processors."""
    device = runtime.device()
    about = {"device": "cpu", "torch": torch.__version__, "processors": os.cpu_count(), "system": platform.platform()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"device": properties.name, "memory_mib": properties.total_memory // 2**20, "cuda": torch.version.cuda}
    return about


@cli.exits
def main(argv: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="change one value of the experiment")
    flags.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="sets",
                       help="the same, as the stages take it")  # fmt: skip
    flags.add_argument("--config", type=Path, default=cli.DEMO, help="experiment file (default: the embedded demo)")
    flags.add_argument("--workdir", type=Path, default=Path("workdir"), help="where results lie (default: workdir)")
    flags.add_argument("--only", metavar="MODEL", help="this model only")
    flags.add_argument("--seconds", type=float, default=2.0, help="time for each measurement (default: 2)")
    flags.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None,
                       help="measure compiled networks too (default: on a GPU)")  # fmt: skip
    flags.add_argument("--out", type=Path, help="write all figures to this JSON file")
    args = flags.parse_args(argv)
    if not args.seconds > 0:
        raise ConfigError(f"--seconds: expected a number above 0, got {args.seconds:g}")
    experiment, competition, run = opened(args.config, [*args.overrides, *args.sets], args.workdir)
    if args.only not in (None, *experiment.models):
        raise ConfigError(f"--only {args.only}: expected one of {', '.join(experiment.models)}")
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    compiles = about["device"] != "cpu" if args.compile is None else args.compile
    lines = []
    for line in checked(experiment, competition, run, Options(args.seconds, compiles), args.only):
        lines.append(line)
        print(f"{line.model}  {line.check}: {line.verdict}", file=sys.stderr, flush=True)
    print(table.text([{key: getattr(line, key) for key in COLUMNS} for line in lines]))
    bad = [line for line in lines if line.verdict == BAD]
    print(f"{len(bad)} of {len(lines)} lines are {BAD}" if bad else "nothing is wrong with what was measured")
    if args.out:
        write_json(
            args.out, {"machine": about, "experiment": experiment.name, "lines": [asdict(line) for line in lines]}
        )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
