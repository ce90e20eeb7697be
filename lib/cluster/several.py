"""The units of several experiments as one plan; an experiment that learns from another one waits for what it reads."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

from lib.cluster.flow import Disk
from lib.cluster.plan import JobPlan, StageJob
from lib.config.load import load
from lib.errors import ConfigError, PipelineError
from lib.run import cli, faults
from lib.run.graph import lessons


class Several:
    """The plans of several experiments; a job's name is its experiment, ``/`` and its name there.

    Every job of an experiment that learns from others waits for the jobs that make what it reads of them, for each
    stage begins with a look at that. What the experiment itself has is looked at anew then.
    """

    def __init__(self, plans: Mapping[str, Disk], learns: Mapping[str, Sequence[str]]):
        """plans: experiment -> its plan. learns: experiment -> units of others, as ``graph.lessons`` returns them."""
        self.plans, self.learns = plans, learns
        self.waiting = {name for name in plans if learns.get(name)}
        """Experiments whose plan was opened before what they learn from was there."""
        self.jobs: dict[str, StageJob] = {}
        self._join()

    def _join(self) -> None:
        """Name the jobs of all plans, and let those of an experiment wait for what it learns from."""
        joined = {f"{name}/{job.name}": replace(job, experiment=name) for name, plan in self.plans.items()
                  for job in plan.jobs.values()}  # fmt: skip
        read = {name: frozenset(job for job in joined if any(fnmatchcase(job, unit) for unit in units))
                for name, units in self.learns.items()}  # fmt: skip

        def placed(job: StageJob, names: Collection[str]) -> frozenset[str]:
            return frozenset(f"{job.experiment}/{name}" for name in names)

        self.jobs = {
            name: replace(job, name=name, needs=placed(job, job.needs) | read.get(job.experiment, frozenset()),
                          after=placed(job, job.after))
            for name, job in joined.items()
        }  # fmt: skip

    def _own(self, job: StageJob) -> tuple[Disk, StageJob]:
        """Return the plan of a job's experiment, and the job as that has it now."""
        plan = self.plans[job.experiment]
        return plan, plan.jobs[job.name.removeprefix(f"{job.experiment}/")]

    def look(self, job: StageJob) -> None:
        """Look at a job's experiment anew. What is wrong with it now is said by its own commands."""
        plan, own = self._own(job)
        with suppress(PipelineError, OSError):
            plan.look(own)
            self._join()

    def done(self, job: StageJob, before: bool = False) -> bool:
        """Tell whether what a job makes is there; asked of a job for the first time when all that it needs is done."""
        if job.experiment in self.waiting:
            self.waiting.discard(job.experiment)
            self.look(job)
        plan, own = self._own(job)
        return plan.done(own, before)

    def needs(self, job: StageJob) -> tuple[str, ...]:
        """Return the files that a worker must see before it starts a job."""
        plan, own = self._own(job)
        return plan.needs(own)

    def mark(self, job: StageJob) -> str:
        """Return a digest of what a job makes."""
        plan, own = self._own(job)
        return plan.mark(own)

    def written(self, job: StageJob) -> int:
        """Return how many scenes of a job are there."""
        plan, own = self._own(job)
        return plan.written(own)

    def begun(self, job: StageJob) -> bool:
        """Tell whether another process builds the unit of a job at present, or has begun to."""
        plan, own = self._own(job)
        return plan.begun(own)

    def seconds(self, job: StageJob) -> float | None:
        """Return how long the units of a finished job took."""
        plan, own = self._own(job)
        return plan.seconds(own)


def opened(
    wanted: Mapping[str, argparse.Namespace], stages: Collection[str], refuse: Callable[[JobPlan], None]
) -> tuple[dict[str, JobPlan], dict[str, list[str]], dict[str, str]]:
    """Open the plans of experiments; returns those that can be run, what each learns, and why others cannot be run.

    wanted: experiment -> flags, as of ``cli.experiment_flags``. refuse: raises PipelineError for a plan that cannot be
    run here.
    """
    plans: dict[str, JobPlan] = {}
    learns: dict[str, list[str]] = {}
    wrong: dict[str, str] = {}
    for name, args in wanted.items():
        try:
            learns[name] = lessons(load(args.config, args.overrides))
        except ConfigError as error:
            wrong[name] = str(error)
    teachers = {name: {unit.partition("/")[0] for unit in units} & wanted.keys() for name, units in learns.items()}
    left = list(learns)
    while ready := [name for name in left if not teachers[name] & set(left)]:
        for name in ready:
            left.remove(name)
            if bad := sorted(teachers[name] & wrong.keys()):
                wrong[name] = f"not run, since it learns from {bad[0]}"
                continue
            try:
                plans[name] = JobPlan(partial(cli.open_run, wanted[name], coming=teachers[name]), stages)
                refuse(plans[name])
            except Exception as error:
                if not (said := str(error) if isinstance(error, PipelineError) else faults.sentence(error)):
                    raise
                plans.pop(name, None)
                wrong[name] = said
    for name in left:
        wrong[name] = f"not run, since it learns from {', '.join(sorted(teachers[name]))}, which learns from it in turn"
    return {name: plans[name] for name in wanted if name in plans}, learns, wrong
