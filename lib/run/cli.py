"""The same flags, words and exit codes for all six stages.

A stage script asks ``start`` for a ``Run`` and lets it make the units: all of them by ``Run.make``, or one at a time by
walking ``Run.pending(units)`` and calling ``Run.build``. Errors written for the user end with exit code 2, an interrupt
(Ctrl-C, SIGTERM, the end of the terminal) with 130.
"""

import argparse
import functools
import io
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.competitions import open_competition
from lib.competitions.contract import Competition, Scene
from lib.config import check
from lib.config.load import load, refusal
from lib.config.sections import Experiment, Predict
from lib.errors import ConfigError, DataError, PipelineError
from lib.run import faults, manifest, runtime
from lib.run.artifacts import Store, Unit
from lib.run.graph import FOLDS, SPLITS, STAGE_OF_TASK, Graph, check_only, taught, teachers
from lib.run.index import Index, current, known_files
from lib.settings import some

if TYPE_CHECKING:  # imported where they are used: a stage that has nothing to do answers without them
    import pandas as pd
    import torch

    from lib.run.survey import Survey
    from lib.scenes import folds as _  # noqa: F401 - tells the kernel's builder what ``Run.folds`` needs

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
    index: Index | None = None
    """The files of the data as they lie there now; of stage 01 alone."""
    survey: "Survey | None" = None
    """What was told of the files, in processes on all cores; of stage 01 alone."""

    @cached_property
    def device(self) -> "torch.device":
        """The device of this process. Raises ConfigError for a GPU this torch has no code for."""
        return runtime.device()

    def on(self, device: "torch.device") -> "Run":
        """Return the same run on another device."""
        other = copy(self)
        other.device = device
        return other

    def predict_of(self, name: str) -> Predict:
        """Return how the networks of a model look at scenes, in the precision that holds for it."""
        return self.config.predict_of(self.config.models[name], self.competition.tasks)

    def checkpoints(self, task: str) -> Iterator[Unit]:
        """Yield the checkpoints that the flags ask for: every model of the task on every fold it is trained on."""
        for name, model in self.graph.models(task, self.only).items():
            for fold in self.config.folds_of(model):
                if self.fold in (None, fold):
                    yield self.graph.checkpoint(name, fold)

    def predictions(self) -> Iterator[list[Unit]]:
        """Yield, checkpoint by checkpoint, the splits that the flags ask to predict with it, and wanted logits."""
        for name, model in self.graph.models(only=self.only).items():
            for fold in self.config.folds_of(model):
                if self.fold in (None, fold):
                    units = [self.graph.probs(name, fold, split) for split in self.splits if self.has_split(split)]
                    keeps_logits = self.config.predict.logits and self.splits == SPLITS
                    yield [*units, self.graph.logits(name, fold)] if keeps_logits else units

    def pending(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """Yield the units that must be built, and say of every other one why it is skipped."""
        for unit in units:
            if runtime.agree(runtime.rank() == 0 and self._must_build(unit)):
                yield unit

    def _must_build(self, unit: Unit) -> bool:
        self.store.recover(unit)
        status = self.store.status(unit)
        if unit.name != "test":  # test scenes are in no fold
            self.store.refuse_mixed(unit, self.graph.folds())
        failed = list(self.store.manifest(unit).get("failed", {})) if status == "done" else []
        if status == "frozen" or (status == "done" and not self.force and not failed):
            self.store.refuse_strangers(unit)
            note = "; made by other code than today's, --force rebuilds it" if self.store.older_code(unit) else ""
            if status == "done" and self.store.adopt(unit):
                note += "; of an earlier version: taken as it is, and its checksums are recorded now"
            say(f"{unit.key}: skipped, {'done' if status == 'done' else 'taken from --inputs'}{note}")
            return False
        for needed in unit.upstream:
            self.store.require(needed)
        again = f"scenes with the fallback: {len(failed)} ({some(failed)}), trying them again"
        reason = {
            "done": "rebuilding (--force)" if self.force else again,
            "stale": f"stale (made {self.store.outdated(unit)}), rebuilding",
            "damaged": f"damaged ({self.store.fault(unit)}), rebuilding",
            "partial": "starting anew (--force)" if self.force else "resuming",
            "missing": "building",
        }[status]
        say(f"{unit.key}: {reason}")
        return True

    @contextmanager
    def build(self, unit: Unit, record: dict[str, Any]) -> Iterator[Path]:
        """Yield the folder of a unit to build; what ``record`` holds at the end goes into its manifest.

        So do the most memory that this process has held until then, and the seconds that its threads computed. Under
        torchrun the first process owns the folder, the others may read in it.
        """
        if runtime.rank() > 0:
            runtime.barrier()
            yield self.store.partial(unit)
            runtime.barrier()
            return
        record.update(seed=self.config.seed, **runtime.provenance(self.device))
        started, computed = time.time(), time.process_time()
        with self.store.build(unit, record, fresh=self.force) as folder:
            runtime.barrier()
            yield folder
            runtime.barrier()
            record["peak_memory_mib"] = runtime.peak_memory_mib(self.device)
            record["cpu_seconds"] = round(time.process_time() - computed, 1)
        busy = f", the network busy {record['network_busy']:.0%} of the time" if "network_busy" in record else ""
        say(f"{unit.key}: done in {duration(time.time() - started)}{busy}")

    def make(self, stage: str, units: Iterable[Unit], write: Callable[[Unit, Path], dict[str, Any]]) -> None:
        """Build every unit that must be built: ``write(unit, folder)`` fills it and returns what its manifest says."""
        for unit in self.pending(units):
            record: dict[str, Any] = {"stage": stage}
            with self.build(unit, record) as folder:
                record |= write(unit, folder)

    def has(self, task: str) -> bool:
        """Tell whether the experiment has a model of ``task``; say so where it has none."""
        found = task in self.competition.tasks and bool(self.graph.models(task))
        if not found:
            say(f"nothing to do: this experiment has no {task} model")
        return found

    def has_split(self, split: str) -> bool:
        """Tell whether there are scenes of ``split``; out-of-fold scenes always exist."""
        return split == "oof" or bool(self.graph.test_ids)

    def folds(self) -> "pd.DataFrame":
        """Return the finished folds.csv; ArtifactError naming the command where stage 01 has to run."""
        from lib.scenes.folds import read_folds

        return read_folds(self.store.require(self.graph.folds()) / "folds.csv")


def say(line: str) -> None:
    """Print one line of progress; only the first of several processes speaks."""
    if runtime.rank() == 0:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """Write seconds as people do: 12.3 s, 4 min 05 s."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def experiment_flags(doc: str) -> argparse.ArgumentParser:
    """Return the flags that say which experiment is meant, for what runs several of its stages."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", type=Path, default=DEMO, help="experiment file (default: the embedded demo)")
    flags.add_argument("--workdir", type=Path, default=Path("workdir"), help="where results lie (default: workdir)")
    flags.add_argument("--inputs", type=Path, action="append", default=[], metavar="FOLDER",
                       help="read-only experiment folder: its folds, checkpoints and decode are taken")  # fmt: skip
    flags.add_argument("--strict", action="store_true", help="findings of the data check are errors (stage 01)")
    flags.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                       help="change one value of the experiment file")  # fmt: skip
    flags.set_defaults(only=None, fold=None, split=None, force=False)
    return flags


def parser(doc: str) -> argparse.ArgumentParser:
    """Return the flags that all stages share."""
    flags = experiment_flags(doc)
    flags.add_argument("--only", metavar="MODEL", help="this model only")
    flags.add_argument("--fold", type=int, metavar="K", help="this fold only")
    flags.add_argument("--split", choices=SPLITS, help="out-of-fold or test scenes only (stages 04 to 06)")
    flags.add_argument("--force", action="store_true", help="rebuild finished units too")
    return flags


def start(doc: str, argv: Sequence[str] | None = None, task: str | None = None, inspects: bool = False) -> Run:
    """Read the flags, the experiment and the list of scenes; arguments and errors as of ``open_run``."""
    return open_run(parser(doc).parse_args(argv), task, inspects)


def open_run(args: argparse.Namespace, task: str | None = None, inspects: bool = False,
             coming: Collection[str] = (), brings_scenes: bool = False) -> Run:  # fmt: skip
    """Turn parsed flags into a Run; write the embedded demo set where it is asked for.

    task: the role that the stage trains. inspects: the stage looks into the data itself, so that it may begin without a
    usable scene. coming: experiments to learn from that need not have come so far yet (``graph.teachers``).
    brings_scenes: what is to be predicted lies elsewhere, so that with folds from ``--inputs`` the data need not be
    there. Raises ConfigError with all that is wrong with the settings, DataError where there are no scenes.
    """
    quiet()
    code = runtime.code_version()
    frozen = _attached(args.inputs)
    made_by = "" if frozen else f"{code} {runtime.versions()}"
    config, competition = check.open_experiment(args.config, args.overrides, args.workdir, made_by)
    store = Store(args.workdir / config.name, tuple(args.inputs), code)
    for root in args.inputs:
        if store.root.is_dir() and root.samefile(store.root):
            raise ConfigError(f"--inputs {root}: expected another folder than that of this experiment, whose results "
                              "are taken anyway; leave it out")  # fmt: skip
    train, test = [], [] if brings_scenes and frozen else competition.scenes("test")
    survey = None
    if inspects and not frozen:
        from lib.run.survey import Survey  # here, since the other stages go without it

        survey = Survey(competition, config.data.workers)
        survey.read_labels()
    try:
        train = [] if frozen else competition.scenes("train")
    except DataError:
        if not inspects:
            raise
    if faults := check.scene_faults(config, train):
        raise refusal(args.config, faults)
    graph = Graph(
        config,
        train_ids=[scene.id for scene in train],
        test_ids=[scene.id for scene in test],
        flags=_flags(args),
        teachers={} if frozen else teachers(config, args.workdir, coming),
        tasks=competition.tasks,
    )
    if survey is not None and train and known_files(store.folder(graph.folds()), store.root) is None:
        survey.see(config.folds.embed, sums=True)  # all of it is needed, and its bytes are to be read once
    found = look(graph, store, competition, {"train": train, "test": test}, inspects)
    graph.taught = {} if frozen else taught(config, args.workdir, coming)
    check_only(graph, task, args.only, args.fold)
    run = Run(config, competition, store, graph, args.only, args.fold, (args.split,) if args.split else SPLITS,
              args.force, args.strict, found if inspects else None, survey)  # fmt: skip
    if task is not None:
        _check_weights(run, task, args)
    return run


def look(graph: Graph, store: Store, competition: Competition, scenes: Mapping[str, list[Scene]],
         inspects: bool = False) -> Index | None:  # fmt: skip
    """Compare the data with the index of stage 01 and return today's; units are stale where they read what has changed.

    An index that an earlier version has not made is made in stage 01 (``inspects``), and its want is said elsewhere.
    """
    folder = store.folder(graph.folds())
    found = current(store.root, folder, competition, scenes, first=inspects)
    if found is not None:
        graph.data = found.data
        if inspects and store.is_old(graph.folds()):
            found.write(folder)
    elif (folder / manifest.MANIFEST).exists():
        say(f"{FOLDS}: has no index of the data, being of an earlier version, so that changed files are not noticed; "
            f"{graph.folds().command} makes one and keeps the folds")  # fmt: skip
    return found


def _attached(inputs: Sequence[Path]) -> bool:
    """Tell whether the folders of ``--inputs`` hold finished folds. ConfigError where one is no experiment's folder."""
    stages = ("01_folds", *(folder for folder, _ in STAGE_OF_TASK.values()), "04_probs", "05_ensemble")
    for root in inputs:
        if not root.is_dir():
            raise ConfigError(f"--inputs {root}: expected an experiment's folder, found "
                              + ("a file" if root.exists() else "nothing there"))  # fmt: skip
        if not any((root / stage).is_dir() for stage in stages):
            raise ConfigError(f"--inputs {root}: expected an experiment's folder, as workdir/<name>, found none of "
                              f"{', '.join(stages)} in it")  # fmt: skip
    return any((root / "01_folds" / "manifest.json").exists() for root in inputs)


def _check_weights(run: Run, task: str, args: argparse.Namespace) -> None:
    """Raise ConfigError unless the pretrained weights of all models that are yet to be trained are to be had."""
    waiting = {unit.key.split("/")[1] for unit in run.checkpoints(task)
               if args.force or run.store.status(unit) not in ("done", "frozen")}  # fmt: skip
    if waiting:
        from lib.config.networks import weight_faults

        if faults := weight_faults(run.config, sorted(waiting)):
            raise refusal(args.config, faults)


def lint(args: argparse.Namespace) -> int:
    """Check any submission of the experiment's competition; returns the exit code, 2 where something is wrong.

    The scenes of the data that an experiment names, or a sample, say which answers are owed. Without either, that no
    answer is missing cannot be told, and the last line says so.
    """
    quiet()
    config = load(args.config, args.overrides)
    competition = open_competition(config.competition, config.data.root, config.data.options, limits=config.data.limits)
    if args.lint.exists() and not (args.lint.is_file() or args.lint.is_dir()):
        raise DataError(f"{args.lint}: expected a file or a folder, found a pipe or a device; save it as a file")
    scenes, unknown = _owed(args, competition)
    written = (args.lint.parent / manifest.MANIFEST).is_file()  # by stage 06: then all that lies there must agree
    faults = competition.lint(args.lint.parent if written else args.lint, scenes, args.sample)
    if faults:
        for fault in faults:
            say(fault)
        judged = f", judged as one of {config.competition}"
        if args.config == DEMO:
            judged += ", the competition of the demo; name your experiment with --config"
        say(f"{args.lint}: {len(faults)} fault{'s' * (len(faults) > 1)}{judged}")
        return 2
    if same := competition.sameness(args.lint):
        say(f"! {same}; is it the right file?")
    if scenes is None and args.sample is None:
        say(f"{args.lint}: no fault found, but whether an answer is missing was NOT checked: {unknown}; to check it, "
            "name the experiment and its data (--config FILE --set data.root=FOLDER) or --sample CSV")  # fmt: skip
    else:
        say(f"{args.lint}: valid")
    return 0


def _owed(args: argparse.Namespace, competition: Competition) -> tuple[list[Scene] | None, str]:
    """Return the scenes that a submission must answer, or None and why they are not known.

    They are those of the test set, with ``--split oof`` those with labels. The embedded demo is asked only where it is
    named: it is what the other stages take without ``--config``.
    """
    if args.config == DEMO and not any(change.startswith("data.") for change in args.overrides):
        return None, "no --config says which scenes there are"
    try:
        scenes = competition.scenes("train" if args.split == "oof" else "test")
    except DataError as error:
        return None, str(error)
    return (scenes, "") if scenes else (None, f"{competition.root} has no test scenes")


def _flags(args: argparse.Namespace) -> str:
    parts = []
    if args.config != DEMO:
        parts += ["--config", str(args.config)]
    if args.workdir != Path("workdir"):
        parts += ["--workdir", str(args.workdir)]
    parts += [word for root in args.inputs for word in ("--inputs", str(root))]
    parts += [word for override in args.overrides for word in ("--set", override)]
    return shlex.join(parts)


def quiet() -> None:
    """Silence remarks of libraries that name nothing a user could change."""
    logging.getLogger("timm").setLevel(logging.ERROR)
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def exits(main: Callable) -> Callable:
    """Turn a stage's outcome into an exit code: 0, 2 with one clear sentence, 130 after an interrupt.

    An error of the machine (disk, permissions, memory) is a sentence too; only what nobody foresaw has a traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know the letters of a name
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with runtime.terminable():
                return main(argv) or 0
        except PipelineError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept, run the same command again to go on", file=sys.stderr)
            return 130
        except Exception as error:
            if not (said := faults.sentence(error)):
                raise
            print(f"error: {said}", file=sys.stderr)
            return 2

    return wrapped
