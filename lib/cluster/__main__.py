"""Run stages 01 to 06 of an experiment as units on several workers: of this machine, or of a Dask scheduler.

    python -m lib.cluster --config configs/x.yaml --local 2
    python -m lib.cluster --config configs/x.yaml --scheduler tcp://head:8786

Every unit (a model trained on a fold, a checkpoint's predictions of a split, what stage 05 chooses, an average, a
submission) is made by its own command, as soon as what it reads is there. What is done is told by the workdir: the same
command goes on where the last one ended, and a second one beside it does not harm. ``docs/cluster.md`` has the recipes.
Each unit's log is ``workdir/<experiment>/logs/<unit>.log``.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lib.cluster.engines import Dask, Engine, Local
from lib.cluster.flow import Flow, Rules
from lib.cluster.plan import KINDS, ROOT, JobPlan
from lib.cluster.several import Several, opened
from lib.errors import ArtifactError, ConfigError
from lib.run import cli, runtime
from lib.run.graph import SPLITS

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def add_engine(flags: argparse.ArgumentParser, needed: bool = True) -> None:
    """Add the flags that choose an engine."""
    one = flags.add_mutually_exclusive_group(required=needed)
    one.add_argument("--scheduler", metavar="ADDRESS", help="the workers of this Dask scheduler, as tcp://head:8786")
    one.add_argument("--local", type=int, metavar="N", help="so many units at a time on this machine")


def open_engine(args: argparse.Namespace) -> Engine | None:
    """Return the engine that the flags of ``add_engine`` choose, if any. Raises ConfigError where it cannot be had."""
    if args.scheduler is not None:
        return Dask(args.scheduler)
    if args.local is None:
        return None
    if args.local < 1:
        raise ConfigError(f"--local {args.local}: expected a number of units at a time, 1 or more")
    return Local(args.local)


def setting(plan: JobPlan, engine: Engine) -> Rules:
    """Return how the loop starts the commands of a plan."""
    config = plan.run.config
    threads = config.cluster.threads or engine.threads()
    environment: dict[str, str | None] = {} if threads is None else {**dict.fromkeys(THREADS), THREADS[0]: str(threads)}
    return Rules(plan.run.store.root.absolute() / "logs", ROOT, Path.cwd(), environment, config.cluster.retries,
                   config.cluster.part)  # fmt: skip


def run(args: argparse.Namespace, engine: Engine, stages: Sequence[str] = tuple(KINDS), how: Rules | None = None,
        pressed=lambda: False) -> dict[str, str]:  # fmt: skip
    """Run the stages of the experiment that the flags of ``cli.experiment_flags`` name; returns what ``Flow.run`` does.

    how: instead of what the experiment says of it.
    """
    plan = JobPlan(lambda: cli.open_run(args), stages)
    engine.refuse(plan.run.config.cluster.asks)
    return Flow(plan, engine, how or setting(plan, engine), cli.say).run(pressed)


def run_several(wanted: Mapping[str, argparse.Namespace], engine: Engine, stages: Sequence[str] = tuple(KINDS),
                pressed: Callable[[], bool] = lambda: False) -> dict[str, str]:  # fmt: skip
    """Run the stages of several experiments as one graph of units; returns experiment -> "" or what became of it.

    wanted: experiment -> its flags, as of ``cli.experiment_flags``. One that cannot be run is named, others are run.
    """
    plans, learns, wrong = opened(wanted, stages, lambda plan: engine.refuse(plan.run.config.cluster.asks))
    for name, why in wrong.items():
        cli.say(f"{name}: cannot run: {why}")
    own = {name: setting(plan, engine) for name, plan in plans.items()}
    units = Flow(Several(plans, learns), engine, Rules(ROOT, ROOT, Path.cwd()), cli.say, own).run(pressed)
    return {name: wrong.get(name) or fault({unit: why for unit, why in units.items() if unit.startswith(f"{name}/")})
            for name in wanted}  # fmt: skip


def fault(outcome: Mapping[str, str]) -> str:
    """Say in one sentence which units are not done and why, "" where all are. outcome: as ``Flow.run`` returns it."""
    bad = {name: why for name, why in outcome.items() if why}
    if not bad:
        return ""
    first = next((name for name, why in bad.items() if not why.startswith("not run")), next(iter(bad)))
    more = len(bad) - 1
    return f"{first}: {bad[first]}" + (
        f" (and {more} more unit{'s are' if more > 1 else ' is'} not done)" if more else ""
    )


@cli.exits
def main(argv=None):
    flags = cli.experiment_flags(__doc__)
    flags.add_argument("--split", choices=SPLITS, help="out-of-fold or test scenes only (stages 04 to 06)")
    add_engine(flags)
    args = flags.parse_args(argv)
    started = time.monotonic()
    engine = open_engine(args)
    assert engine is not None, "one of the two flags is needed"
    try:
        with runtime.interruptible() as pressed:
            outcome = run(args, engine, pressed=pressed)
    finally:
        engine.close()
    if bad := fault(outcome):
        raise ArtifactError(bad)
    from lib.report import page  # here, since it takes seconds

    cli.say(f"all units are done, in {cli.duration(time.monotonic() - started)}")
    cli.say(page.write(cli.open_run(args)))


if __name__ == "__main__":
    sys.exit(main())
