"""The same flags, words and exit codes for all six stages.

A stage script asks ``start`` for a ``Run``, walks ``Run.pending(units)`` and builds each. Errors written for the user
end with exit code 2, an interrupt with 130.
"""

import argparse
import errno
import functools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lib.competitions import open_competition
from lib.competitions.contract import Competition, Scene
from lib.config.load import load
from lib.config.sections import Experiment
from lib.errors import ArtifactError, PipelineError
from lib.run import runtime
from lib.run.artifacts import Store, Unit
from lib.run.graph import SPLITS, Graph, check_only, teachers
from lib.scenes.folds import read_folds

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


@dataclass
class Run:
    """One call of one stage: the experiment, its data, its store, and what was asked for."""

    config: Experiment
    competition: Competition
    store: Store
    graph: Graph
    only: str | None
    fold: int | None
    splits: tuple[str, ...]
    force: bool
    strict: bool
    device: Any

    def pending(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """Yield the units that must be built, and say of every other one why it is skipped."""
        for unit in units:
            if runtime.agree(runtime.rank() == 0 and self._must_build(unit)):
                yield unit

    def _must_build(self, unit: Unit) -> bool:
        self.store.recover(unit)
        status = self.store.status(unit)
        if status == "frozen" or (status == "done" and not self.force):
            note = "; made by other code than today's, --force rebuilds it" if self.store.older_code(unit) else ""
            say(f"{unit.key}: skipped, {'done' if status == 'done' else 'taken from --inputs'}{note}")
            return False
        for needed in unit.upstream:
            self.store.require(needed)
        reason = {
            "done": "rebuilding (--force)",
            "stale": "stale (settings or inputs changed), rebuilding",
            "damaged": f"damaged ({self.store.fault(self.store.folder(unit))}), rebuilding",
            "partial": "starting anew (--force)" if self.force else "resuming",
            "missing": "building",
        }[status]
        say(f"{unit.key}: {reason}")
        return True

    @contextmanager
    def build(self, unit: Unit, record: dict[str, Any]) -> Iterator[Path]:
        """Yield the folder of a unit to build; what ``record`` holds at the end goes into its manifest.

        Under torchrun the first process owns the folder, the others may read in it.
        """
        if runtime.rank() > 0:
            runtime.barrier()
            yield self.store.partial(unit)
            runtime.barrier()
            return
        record.update(seed=self.config.seed, **runtime.provenance(self.device))
        started = time.time()
        with self.store.build(unit, record, fresh=self.force) as folder:
            runtime.barrier()
            yield folder
            runtime.barrier()
        say(f"{unit.key}: done in {duration(time.time() - started)}")

    def has(self, task: str) -> bool:
        """Tell whether the experiment has a model of ``task``; say so where it has none."""
        found = task in self.competition.tasks and bool(self.graph.models(task))
        if not found:
            say(f"nothing to do: this experiment has no {task} model")
        return found

    def has_split(self, split: str) -> bool:
        """Tell whether there are scenes of ``split``; out-of-fold scenes always exist."""
        return split == "oof" or bool(self.graph.test_ids)

    def folds(self) -> pd.DataFrame:
        """Return the finished folds.csv; ArtifactError naming the command where stage 01 has to run."""
        return read_folds(self.store.require(self.graph.folds()) / "folds.csv")

    def scenes(self, split: str) -> list[Scene]:
        """Return the labelled ("train") or the unlabelled ("test") scenes."""
        return self.competition.scenes(split)


def say(line: str) -> None:
    """Print one line of progress; only the first of several processes speaks."""
    if runtime.rank() == 0:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Write seconds as people do: 12.3 s, 4 min 05 s."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def parser(doc: str) -> argparse.ArgumentParser:
    """Return the flags that all stages share."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", type=Path, default=DEMO, help="experiment file (default: the embedded demo)")
    flags.add_argument("--workdir", type=Path, default=Path("workdir"), help="where results lie (default: workdir)")
    flags.add_argument("--inputs", type=Path, action="append", default=[], metavar="FOLDER",
                       help="read-only experiment folder: its folds, checkpoints and decode are taken")  # fmt: skip
    flags.add_argument("--only", metavar="MODEL", help="this model only")
    flags.add_argument("--fold", type=int, metavar="K", help="this fold only")
    flags.add_argument("--split", choices=SPLITS, help="out-of-fold or test scenes only (stages 04 to 06)")
    flags.add_argument("--force", action="store_true", help="rebuild finished units too")
    flags.add_argument("--strict", action="store_true", help="findings of the data check are errors (stage 01)")
    flags.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                       help="change one value of the experiment file")  # fmt: skip
    return flags


def start(doc: str, argv: Sequence[str] | None = None, task: str | None = None) -> Run:
    """Read the flags, the experiment and the list of scenes; write the embedded demo set where it is asked for."""
    return open_run(parser(doc).parse_args(argv), task)


def open_run(args: argparse.Namespace, task: str | None = None) -> Run:
    """Turn parsed flags into a Run."""
    quiet()
    config = load(args.config, args.overrides)
    if config.data.synthetic:
        from lib.competitions import synthetic  # here, since inference elsewhere goes without it

        wanted = config.data.synthetic
        synthetic.write(config.competition, config.data.root, scenes=wanted.scenes,
                        test_scenes=wanted.test_scenes, size=wanted.size, seed=wanted.seed)  # fmt: skip
    memo = args.workdir / config.name / ".facts.json"
    competition = open_competition(config.competition, config.data.root, config.data.options, memo)
    store = Store(args.workdir / config.name, tuple(args.inputs), runtime.code_version())
    frozen = any((root / "01_folds" / "manifest.json").exists() for root in args.inputs)
    graph = Graph(
        config,
        train_ids=() if frozen else [scene.id for scene in competition.scenes("train")],
        test_ids=[scene.id for scene in competition.scenes("test")],
        flags=_flags(args),
        teachers={} if frozen else teachers(config, args.workdir),
    )
    check_only(graph, task, args.only, args.fold)
    return Run(config, competition, store, graph, args.only, args.fold, (args.split,) if args.split else SPLITS,
               args.force, args.strict, runtime.device())  # fmt: skip


def lint(args: argparse.Namespace) -> int:
    """Check any submission of the experiment's competition; returns the exit code, 2 where something is wrong."""
    quiet()
    config = load(args.config, args.overrides)
    competition = open_competition(config.competition, config.data.root, config.data.options)
    faults = competition.lint(args.lint, sample=args.sample)
    for fault in faults:
        say(f"{args.lint}: {fault}")
    say(f"{args.lint}: " + (f"{len(faults)} faults" if faults else "valid"))
    return 2 if faults else 0


def _flags(args: argparse.Namespace) -> str:
    parts = []
    if args.config != DEMO:
        parts.append(f"--config {args.config}")
    if args.workdir != Path("workdir"):
        parts.append(f"--workdir {args.workdir}")
    parts += [f"--inputs {root}" for root in args.inputs] + [f"--set {override}" for override in args.overrides]
    return " ".join(parts)


def quiet() -> None:
    """Silence remarks of libraries that name nothing a user could change."""
    logging.getLogger("timm").setLevel(logging.ERROR)
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def exits(main: Callable) -> Callable:
    """Turn a stage's outcome into an exit code: 0, 2 with one clear sentence, 130 after an interrupt."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except PipelineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, run the same command again to go on", file=sys.stderr)
            return 130
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            full = ArtifactError("the disk is full; free some space and run the same command again, it resumes")
            print(f"error: {full}", file=sys.stderr)
            return 2

    return wrapped
