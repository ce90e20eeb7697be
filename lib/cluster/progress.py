"""What is said of a whole run: units and scenes that are done, seconds, and about how long the rest will take."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean

from lib.cluster.plan import StageJob
from lib.run.cli import duration

SHORT = 1.0
"""Seconds; of a shorter time to go nothing is said, since it is no more than a guess."""


def remaining(left: Iterable[StageJob], known: Mapping[str, list[float]], running: Mapping[str, float],
              slots: int) -> tuple[float, list[str]]:  # fmt: skip
    """Return about how many seconds the jobs that are left take, and the stages of which none is done yet.

    known: stage -> seconds of its finished jobs. running: job -> seconds since it was started. slots: jobs that run at
    the same time. A job takes as long as those of its stage took on average; the answer is the sum over the jobs,
    shared by all slots, or what the longest still takes, whichever is more. It is 0 where each of them runs for longer
    than that already.
    """
    seconds, unknown = [], []
    for job in left:
        if not known.get(job.stage):
            unknown.append(job.stage)
            continue
        seconds.append(max(fmean(known[job.stage]) - running.get(job.name, 0.0), 0.0))
    if not seconds:
        return 0.0, sorted(set(unknown))
    return max(sum(seconds) / max(slots, 1), *seconds), sorted(set(unknown))


def stages(numbers: list[str]) -> str:
    """Name stages: "stage 05, which is", or "stages 02, 04 and 05, which are"."""
    *others, last = numbers
    return f"stages {', '.join(others)} and {last}, which are" if others else f"stage {last}, which is"


class Progress:
    """Counts what a run has done; says it in lines."""

    def __init__(self) -> None:
        self.known: dict[str, list[float]] = defaultdict(list)
        self.done, self.total = 0, 0

    def count(self, job: StageJob, seconds: float | None) -> None:
        """Count a finished job; seconds None where the disk does not say how long it took."""
        self.done += 1
        if seconds is not None:
            self.known[job.stage].append(seconds)

    def line(self, left: list[StageJob], running: Mapping[str, float], scenes: tuple[int, int], slots: int,
             since: float) -> str:  # fmt: skip
        """Return the line of the whole run. scenes: (there, all). since: seconds since the run was started.

        It has a time to go where that is known of something that is left, and names the stages of which it is not.
        """
        parts = [f"{self.done} of {self.total} units done", f"{len(running)} running"]
        if scenes[1]:
            parts.append(f"scenes {scenes[0]} of {scenes[1]}")
        parts.append(f"{duration(since)} so far")
        seconds, unknown = remaining(left, self.known, running, slots)
        if seconds >= SHORT:
            parts.append(f"about {duration(seconds)} to go")
            if unknown:
                parts[-1] += f" besides {stages(unknown)} not timed yet"
        return ", ".join(parts)
