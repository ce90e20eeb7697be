"""The loop over the jobs of a run: start what can start, look at the disk for what is done, start again what was lost.

What a command says decides nothing but what is tried next. It ended with

- exit code 2: the user has to mend something. The job has failed, what needs it is not run, all else goes on.
- exit code 2 and "is being built by": another process has the unit. After a wait the disk is looked at again.
- anything else, or its worker is gone: it is started again, ``cluster.retries`` times, and goes on where it stopped.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lib.cluster import launch
from lib.cluster.engines import Engine, Handle, Result
from lib.cluster.launch import Call
from lib.cluster.plan import StageJob
from lib.cluster.progress import Progress
from lib.errors import ArtifactError, ConfigError
from lib.files import digest
from lib.run.cli import duration

TICK = 0.1
"""Seconds between two looks at what runs."""
LINE = 30.0
"""Seconds between two lines about the whole run."""
PATIENCE = (2.0, 60.0)
"""Seconds to wait for a unit that another process builds: at first, and at most, doubled each time."""
STOPPING = 90.0
"""Seconds that running units have to save and stop."""
LOCKED = re.compile(r"is being built by (.+?); wait or stop it")
USER = 2


class Disk(Protocol):
    """What the loop asks of a plan: the jobs, and what lies there."""

    @property
    def jobs(self) -> Mapping[str, StageJob]:
        """Return name -> job, each after those that it needs."""

    def done(self, job: StageJob, before: bool = False) -> bool:
        """Tell whether what a job makes is there."""

    def needs(self, job: StageJob) -> tuple[str, ...]:
        """Return the files that a worker must see first."""

    def mark(self, job: StageJob) -> str:
        """Return what is the same in every process that wants the job done."""

    def written(self, job: StageJob) -> int:
        """Return how many of its scenes are there."""

    def begun(self, job: StageJob) -> bool:
        """Tell whether its folder is there to be helped with."""

    def seconds(self, job: StageJob) -> float | None:
        """Return how long a finished job took."""

    def look(self, job: StageJob) -> None:
        """Look at the data anew, of which a job of stage 01 has made an index."""


@dataclass(frozen=True)
class Rules:
    """How a loop starts commands and how patient it is."""

    logs: Path
    """Folder of the logs."""
    scripts: Path
    """Folder of the stage scripts."""
    folder: Path
    """Where commands run."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    retries: int = 3
    part: int = 0
    """A free worker helps where at least so many scenes are left for each; 0: none helps."""
    tick: float = TICK
    line: float = LINE
    patience: tuple[float, float] = PATIENCE
    visible: float = launch.VISIBLE


@dataclass
class Trial:
    """One job that is not done: how often it was tried and lost, and when it may be tried next."""

    number: int = 0
    lost: int = 0
    wait: float = 0.0
    """Seconds to the next look at a unit that another process builds."""
    at: float = 0.0
    """Not before."""
    looked: bool = False
    """Whether the disk has been asked for what it makes."""


class Flow:
    """The loop. ``run`` returns job -> "" for one that is done, else what became of it."""

    def __init__(self, plan: Disk, engine: Engine, rules: Rules, say: Callable[[str], None],
                 own: Mapping[str, Rules] | None = None):  # fmt: skip
        """own: experiment -> how its commands are started, where a run has several; ``rules`` are those of the loop."""
        self.plan, self.engine, self.rules, self.say, self.own = plan, engine, rules, say, own or {}
        self.started = time.monotonic()
        self.outcome: dict[str, str] = {}
        self.running: dict[str, tuple[Handle, float]] = {}
        self.helping: dict[str, list[tuple[Handle, Call]]] = {}
        self.helped: dict[str, int] = {}
        """Job -> scenes that were left when workers were sent to help; more are sent when half of them are there."""
        self.trials: dict[str, Trial] = {}
        self.stops: dict[str, Path] = {}
        """Running job -> the file that asks it to stop."""
        self.progress = Progress()
        self.progress.total = sum(len(job.units) or 1 for job in self.plan.jobs.values())
        self.skipped = 0

    # ---- the loop -------------------------------------------------------------------------------------
    def run(self, stop: Callable[[], bool] = lambda: False) -> dict[str, str]:
        """Run all jobs; KeyboardInterrupt after ``stop`` says so and what ran has saved and stopped."""
        spoken = self.started
        while not self.plan.jobs.keys() <= self.outcome.keys():
            for line in self.engine.news():
                self.say(line)
            if stop():
                self._stop()
                raise KeyboardInterrupt
            ended = self._collect()
            started = self._start()
            self._help()
            if time.monotonic() - spoken > self.rules.line:
                spoken = time.monotonic()
                self.say(self._line())
            if not (ended or started):
                time.sleep(self.rules.tick)
        if self.skipped:
            self.say(f"{self.skipped} units were done already")
        return self.outcome

    def _collect(self) -> bool:
        """Take the results of what has ended; tells whether anything has."""
        ended = [name for name, (handle, _) in self.running.items() if handle.done()]
        for name in ended:
            handle, began = self.running.pop(name)
            self.stops.pop(name).unlink(missing_ok=True)
            try:
                result: Result | None = handle.result()
            except (ArtifactError, ConfigError):
                raise
            except BaseException as error:  # noqa: BLE001 whatever a worker or its network died of
                if isinstance(error, KeyboardInterrupt):
                    raise
                result = None
                said = (str(error).strip().splitlines() or [""])[0]
                self.say(f"{name}: its worker was lost ({type(error).__name__}{f': {said}' if said else ''})")
            self._judge(self.plan.jobs[name], result, result["seconds"] if result else time.monotonic() - began)
        for name, helpers in list(self.helping.items()):
            self.helping[name] = [(handle, call) for handle, call in helpers if not handle.done()]
        return bool(ended)

    def _judge(self, job: StageJob, result: Result | None, seconds: float) -> None:
        """Look at the disk, then at what a command said; note the job's outcome, or when it is tried again."""
        trial, log = self.trials[job.name], self._log(job)
        if result is None or result["code"] != USER:
            job = self._anew(job)
        if self._seen(job, result):
            self._finish(job, seconds, f"done in {duration(seconds)}" + (f" on {result['host']}" if result else ""))
            return
        code, said = (result["code"], str(result["said"])) if result else (None, "")
        if code == 0:
            self._fail(job, "its command ended well, but the disk does not have what it makes: the data changed "
                            f"meanwhile, or the workdir is not shared; see {log}")  # fmt: skip
        elif code == launch.UNSEEN:
            self._fail(job, said)
        elif code == USER and (owner := LOCKED.search(said)):
            first, most = self.rules.patience
            trial.wait = min(trial.wait * 2 or first, most)
            trial.at = time.monotonic() + trial.wait
            self.say(f"{job.name}: is being built by {owner[1]}; looking again in {duration(trial.wait)}")
        elif code == USER:
            self._fail(job, f"{said}; its log: {log}")
        else:
            trial.lost += 1
            why = f"exit code {code}" if result else ""
            retries = self._rules(job).retries
            if trial.lost > retries:
                last = f", last with {why or 'its worker'}: {said}" if result else ""
                self._fail(job, f"lost {trial.lost} times{last}; its log: {log}")
                return
            self.say(f"{job.name}: lost{f', {why}' if why else ''}; starting it again, {trial.lost} of "
                     f"{retries} times")  # fmt: skip

    def _anew(self, job: StageJob) -> StageJob:
        """Return a job that has ended as the plan has it now: from stage 01 on the index of the data is known."""
        if job.stage == "01":
            self.plan.look(job)
        return self.plan.jobs[job.name]

    def _rules(self, job: StageJob) -> Rules:
        return self.own.get(job.experiment, self.rules)

    def _seen(self, job: StageJob, result: Result | None) -> bool:
        """Tell whether the disk has what a job makes; one that ended well elsewhere may take a while to be seen."""
        end = time.monotonic() + (self.rules.visible if result and result["code"] == 0 else 0)
        while not self.plan.done(job):
            if time.monotonic() >= end:
                return False
            time.sleep(self.rules.tick)
        return True

    def _finish(self, job: StageJob, seconds: float | None, how: str) -> None:
        self.outcome[job.name] = ""
        for _ in job.units or [job]:
            self.progress.count(job, None if seconds is None else seconds / max(len(job.units), 1))
        if how:
            self.say(f"[{self.progress.done}/{self.progress.total}] {job.title}: {how}")

    def _fail(self, job: StageJob, why: str) -> None:
        self.outcome[job.name] = why
        self.say(f"{job.title}: failed: {why}")

    def _log(self, job: StageJob, suffix: str = "") -> Path:
        return launch.log_of(self._rules(job).logs, job.name.removeprefix(f"{job.experiment}/") + suffix)

    # ---- starting -------------------------------------------------------------------------------------
    def _start(self) -> bool:
        """Start, or skip, all jobs whose time has come; tells whether anything was."""
        changed = False
        for name in list(self.plan.jobs):
            if name in self.outcome or name in self.running or (job := self.plan.jobs.get(name)) is None:
                continue
            bad = [other for other in job.needs if self.outcome.get(other)]
            if bad:
                self.outcome[name] = f"not run, since it needs {bad[0]}"
                self.say(f"{job.title}: {self.outcome[name]}")
                changed = True
                continue
            here = self.plan.jobs.keys()
            if not all(self.outcome.get(other) == "" for other in job.needs & here):
                continue
            if not job.after & here <= self.outcome.keys():
                continue
            trial = self.trials.setdefault(name, Trial())
            full = self._used() >= self.engine.most
            if time.monotonic() < trial.at or full and (trial.looked or trial.number):
                continue
            trial.looked = True
            job = self._anew(job) if trial.number else job
            if self.plan.done(job, before=not trial.number):
                self.skipped += 0 if trial.number else len(job.units) or 1
                self._finish(job, self.plan.seconds(job), "done by another process" if trial.number else "")
            elif not full:
                self._submit(job, trial)
            else:
                continue
            changed = True
        return changed

    def _used(self) -> int:
        """Return how many places of the engine are taken."""
        return len(self.running) + sum(len(helpers) for helpers in self.helping.values())

    def _submit(self, job: StageJob, trial: Trial) -> None:
        trial.number += 1
        key = f"{job.name}-{self.plan.mark(job)}-{trial.number}"
        call = self._task(job, key)
        self.stops[job.name] = Path(call.stop)
        Path(call.stop).unlink(missing_ok=True)
        how = ("started" if trial.number == 1 else "started again") if self._used() < self.engine.slots else "queued"
        self.running[job.name] = self.engine.submit(call, job.asks, key), time.monotonic()
        self.say(f"{job.title}: {how}")

    def _task(self, job: StageJob, key: str, extra: tuple[str, ...] = (), suffix: str = "") -> Call:
        log, rules = self._log(job, suffix), self._rules(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        return Call((str(rules.scripts / job.command[0]), *job.command[1:], *extra), str(rules.folder), str(log),
                    str(log.with_name(f".stop-{digest(key)}")), self.plan.needs(job), rules.environment,
                    self.rules.visible, shares=job.counts and rules.part > 0)  # fmt: skip

    def _help(self) -> None:
        """Let workers that nothing else waits for predict scenes of a unit that another worker builds."""
        free = self.engine.slots - self._used()
        running = [self.plan.jobs[name] for name in self.running]
        splits = [job for job in running if job.parts and self._rules(job).part]
        for job in splits:
            if free <= 0:
                return
            left = job.scenes - self.plan.written(job) if not self.helping.get(job.name) else 0
            helpers = min(free // len(splits) or 1, left // self._rules(job).part - 1)
            if helpers < 1 or left > self.helped.get(job.name, 2 * left) // 2 or not self.plan.begun(job):
                continue
            self.helped[job.name] = left
            for part in range(1, helpers + 1):
                key = f"{job.name}-{self.plan.mark(job)}-{self.trials[job.name].number}-part{part}of{helpers}"
                call = self._task(job, key, ("--part", f"{part}/{helpers}"), f"/part{part}")
                self.helping.setdefault(job.name, []).append((self.engine.submit(call, job.asks, key), call))
            self.say(f"{job.name}: {helpers} more worker{'s' * (helpers > 1)} help{'s' * (helpers == 1)} with the "
                     f"{left} scenes that are left")  # fmt: skip
            free -= helpers

    # ---- the end --------------------------------------------------------------------------------------
    def _line(self) -> str:
        now = time.monotonic()
        left = [job for name, job in self.plan.jobs.items() if name not in self.outcome]
        scenes = [job for job in self.plan.jobs.values() if job.scenes]
        there = sum(job.scenes if self.outcome.get(job.name) == "" else self.plan.written(job) for job in scenes)
        return self.progress.line(left, {name: now - began for name, (_, began) in self.running.items()},
                                  (there, sum(job.scenes for job in scenes)), self.engine.slots,
                                  now - self.started)  # fmt: skip

    def _stop(self) -> None:
        """Ask all that runs to save and stop, and wait for it."""
        calls = [*self.stops.values(), *(Path(call.stop) for helpers in self.helping.values() for _, call in helpers)]
        handles = [handle for handle, _ in self.running.values()]
        handles += [handle for helpers in self.helping.values() for handle, _ in helpers]
        self.say(f"stopping: {len(self.running)} units save what they have")
        for path in calls:
            path.touch()
        end = time.monotonic() + STOPPING
        while not all(handle.done() for handle in handles) and time.monotonic() < end:
            time.sleep(self.rules.tick)
        for path in calls if all(handle.done() for handle in handles) else ():
            path.unlink(missing_ok=True)
