"""Run a grid of settings over one or more experiment files, and print what came of each.

The grid is YAML, setting -> values; all combinations are run, or with ``mode: zip`` the first values, the second ones
and so on::

    models.unet.train.optimizer.lr: [1.0e-3, 5.0e-4]
    models.unet.train.loss.focal_gamma: [2, 4]
    seed: [0, 1]

Each combination is an experiment of its own, named by its settings, and runs stage by stage. What is finished is
skipped, so the same command again goes on after Ctrl-C, and a grid may grow. Several files and a grid of seeds make an
ablation. One combination that fails is named at the end; the others go on.

    python -m lib.tools.sweep --config configs/x.yaml --grid sweep.yaml --stages 01..05

With ``--local N`` or ``--scheduler ADDRESS`` the units of all combinations run side by side, on this machine or on the
workers of a Dask scheduler, as ``python -m lib.cluster`` runs those of one experiment (docs/cluster.md); logs are in
``workdir/<experiment>/logs``. An experiment that learns from another one of the sweep (``train.distill``,
``train.pseudo``) waits for it. The results are the same.
"""

import argparse
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from lib.cluster.__main__ import add_engine, open_engine, run_several
from lib.cluster.engines import Engine
from lib.config.load import load
from lib.errors import ConfigError
from lib.files import digest
from lib.run import cli, runtime
from lib.tools import table
from lib.tools.sheet import FINISHED, sheet

ROOT = Path(__file__).resolve().parents[2]
MODES = ("product", "zip")
INTERRUPTED = 130
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,16}")
"""Values that may stand in a folder's name as they are; others by a hash."""

Runner = Callable[[Sequence[str]], int]
"""Runs a command; returns its exit code."""
Outcome = dict[str, str]
"""Name of an experiment -> "" where all went well, else what failed."""


@dataclass(frozen=True)
class Combination:
    """One experiment of the sweep: a file, and the settings that replace its own."""

    name: str
    config: Path
    settings: Mapping[str, Any]

    def overrides(self) -> list[str]:
        """Return its settings, and the name, as ``--set`` takes them."""
        return [f"{key}={yaml_value(value)}" for key, value in self.settings.items()] + [f"name={self.name}"]

    def flags(self, workdir: Path, overrides: Sequence[str] = ()) -> list[str]:
        """Return the flags with which a stage runs it. overrides: changes of all experiments."""
        changes = [word for change in (*overrides, *self.overrides()) for word in ("--set", change)]
        return ["--config", str(self.config), "--workdir", str(workdir), *changes]


def yaml_value(value: Any) -> str:
    """Write a value in one line of YAML (JSON would turn 1.0e-05 into a word)."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]


# ---- the grid -----------------------------------------------------------------------------------------
def read_grid(path: Path) -> tuple[dict[str, list[Any]], str]:
    """Read a grid: (setting -> values, mode). Raises ConfigError."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a YAML file, got {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings with lists of values, got {type(tree).__name__}")
    mode = tree.pop("mode", MODES[0])
    if mode not in MODES:
        raise ConfigError(f"{path}: mode: expected one of {', '.join(MODES)}, got {mode!r}")
    for key, values in tree.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key}: expected a list of values, got {values!r}")
    if "name" in tree:
        raise ConfigError(f"{path}: name: experiments are named by their settings, leave it out")
    if mode == "zip" and len({len(values) for values in tree.values()}) > 1:
        counts = ", ".join(f"{key} {len(values)}" for key, values in tree.items())
        raise ConfigError(f"{path}: mode: zip needs lists of one length, got {counts}")
    return {str(key): values for key, values in tree.items()}, mode


def combinations(base: str, config: Path, grid: Mapping[str, Sequence[Any]], mode: str = MODES[0]) -> list[Combination]:
    """Return the experiments of a grid, the last setting changing fastest. Raises ConfigError for one there twice.

    A name is ``base`` and each setting's value, so it stays the same when a list gets longer.
    """
    together = zip(*grid.values(), strict=True) if mode == "zip" else itertools.product(*grid.values())
    short = _short_names(list(grid))
    made: dict[str, Combination] = {}
    for values in together:
        name = "-".join([base, *(f"{short[key]}{_label(value)}" for key, value in zip(grid, values, strict=True))])
        if name in made:
            raise ConfigError(f"grid: {name} occurs twice; every combination needs values of its own")
        made[name] = Combination(name, config, dict(zip(grid, values, strict=True)))
    return list(made.values())


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return for every dotted key the shortest end that no other key of the grid has."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        end = next(e for e in ends if sum(k == e or k.endswith(f".{e}") for k in keys) == 1 or e == key)
        short[key] = re.sub(r"[^A-Za-z0-9_.-]", "_", end)
    return short


def _label(value: Any) -> str:
    text = yaml_value(value)
    return text if PLAIN.fullmatch(text) else f"_{digest(value)[:8]}"


# ---- running ------------------------------------------------------------------------------------------
def scripts(stages: str) -> list[Path]:
    """Return the stage scripts of "01..05", "01,02" or "04". Raises ConfigError."""
    found = {path.name[:2]: path for path in sorted(ROOT.glob("0[1-6]_*.py"))}
    first, dots, last = stages.partition("..")
    wanted = [s for s in found if first <= s <= last] if dots else stages.split(",")
    named = {first, last} if dots else set(wanted)
    if not wanted or not named <= found.keys():
        raise ConfigError(f"--stages {stages}: expected stages of {', '.join(found)}, as 01..05 or 02,03")
    return [found[stage] for stage in wanted]


def run(todo: Sequence[Combination], workdir: Path, stages: Sequence[Path], runner: Runner,
        overrides: Sequence[str] = (), stop: Callable[[], bool] = lambda: False) -> Outcome:  # fmt: skip
    """Run the stages of every combination, one after another.

    Settings are checked first, without running anything. Raises KeyboardInterrupt after a stage that was interrupted,
    or once ``stop`` says so.
    """
    outcome = {}
    for number, one in enumerate(todo, 1):
        cli.say(f"[{number}/{len(todo)}] {one.name}")
        outcome[one.name] = ""
        try:
            load(one.config, [*overrides, *one.overrides()])
        except ConfigError as error:
            outcome[one.name] = str(error)
            cli.say(f"  cannot run: {error}")
            continue
        for script in stages:
            code = runner([sys.executable, str(script), *one.flags(workdir, overrides)])
            if code == INTERRUPTED or stop():
                raise KeyboardInterrupt
            if code:
                outcome[one.name] = f"{script.name} ended with exit code {code}"
                cli.say(f"  {outcome[one.name]}; going on with the next experiment")
                break
    return outcome


def run_together(todo: Sequence[Combination], workdir: Path, stages: Sequence[Path], engine: Engine,
                 overrides: Sequence[str] = (), stop: Callable[[], bool] = lambda: False) -> Outcome:  # fmt: skip
    """Run the stages of all combinations side by side, unit by unit as an engine has places; errors as of ``run``."""
    wanted = {one.name: cli.experiment_flags("").parse_args(one.flags(workdir, overrides)) for one in todo}
    return run_several(wanted, engine, [script.name[:2] for script in stages], stop)


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say where and how experiments are run."""
    flags.add_argument("--workdir", type=Path, default=Path("workdir"), help="where results lie (default: workdir)")
    flags.add_argument("--stages", default="01..05", help="stages to run (default: 01..05)")
    add_engine(flags, needed=False)


@contextmanager
def runs(
    args: argparse.Namespace, overrides: Sequence[str] = ()
) -> Iterator[Callable[[Sequence[Combination]], Outcome]]:
    """Yield a function that runs combinations as the flags of ``add_flags`` say. Raises ConfigError."""
    stages = scripts(args.stages)
    engine = open_engine(args)
    try:
        with runtime.interruptible() as pressed:
            if engine is None:
                yield lambda todo: run(todo, args.workdir, stages, run_command, overrides, pressed)
            else:
                yield lambda todo: run_together(todo, args.workdir, stages, engine, overrides, pressed)
    finally:
        if engine is not None:
            engine.close()


def run_command(command: Sequence[str]) -> int:
    """Run a command to its end, with our terminal; Ctrl-C reaches it from there, a SIGTERM is passed on to it."""
    child = subprocess.Popen(list(command))
    with runtime.passing_on(child.terminate):
        return child.wait()


# ---- what came of it ----------------------------------------------------------------------------------
def results(todo: Sequence[Combination], outcome: Mapping[str, str], workdir: Path) -> list[dict[str, Any]]:
    """Return a row per file and settings, best mean score first, what has no score last.

    A grid with ``seed`` gives mean and spread (standard deviation over seeds, n - 1) of those seeds that are finished;
    ``unfinished`` counts the others.
    """
    begun = [workdir / one.name for one in todo if (workdir / one.name).is_dir()]
    found = {row["name"]: row for row in sheet(begun)}
    groups: dict[str, list[Combination]] = {}
    for one in todo:
        key = digest([str(one.config), {k: v for k, v in one.settings.items() if k != "seed"}])
        groups.setdefault(key, []).append(one)
    rows = []
    several = len({one.config for one in todo}) > 1
    for members in groups.values():
        done = [found[m.name] for m in members if not outcome.get(m.name) and _finished(found.get(m.name))]
        scores = [row["score"] for row in done]
        row: dict[str, Any] = {"config": members[0].config.stem} if several else {}
        row |= {key: value for key, value in members[0].settings.items() if key != "seed"}
        row["score"] = fmean(scores) if scores else None
        if any("seed" in m.settings for m in members):
            row["spread"] = stdev(scores) if len(scores) > 1 else None
            row["seeds"] = len(scores)
        expected = [r["expected_score"] for r in done]
        row["expected_score"] = fmean(expected) if expected and None not in expected else None
        row["seconds"] = round(sum(r["seconds"] for r in done), 1)
        row["unfinished"] = len(members) - len(done)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))


def _finished(row: Mapping[str, Any] | None) -> bool:
    return row is not None and row["status"] == FINISHED


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", type=Path, nargs="+", required=True, help="experiment files")
    flags.add_argument("--grid", type=Path, required=True, help="YAML: setting -> list of values")
    add_flags(flags)
    flags.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                       help="change one value in all experiments")  # fmt: skip
    args = flags.parse_args(argv)
    grid, mode = read_grid(args.grid)
    todo = [one for path in args.config for one in combinations(load(path, args.overrides).name, path, grid, mode)]
    if len({one.name for one in todo}) < len(todo):
        raise ConfigError("--config: two of the files have the same name inside; give each experiment its own")
    with runs(args, args.overrides) as run_all:
        outcome = run_all(todo)
    print(table.text(results(todo, outcome, args.workdir)))
    failed = {name: why for name, why in outcome.items() if why}
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
