"""Work that is shared by the cores of the CPU: functions called in processes, or in this one where there is little.

Stages 01 and 05 go from scene to scene with no network to compute, so each core takes scenes of its own. What it
returns is put together in an order that does not depend on who was first, so the number of cores changes no result.
"""

import math
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.run import runtime

if TYPE_CHECKING:  # imported where they are used: torch takes seconds, and a stage may have nothing to do
    import torch

    from lib.run.executor import Pool, Sharing

ENOUGH = 32
"""Scenes for each process, from which on one more earns the seconds that it takes to begin."""
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MEMORY = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Files of a group's limit and of what it uses, of version 2 and of version 1."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def cores(own: Path = CGROUP, root: Path = CGROUPS) -> int:
    """Return how many cores this process may use: those it may run on, or fewer where a container's quota says so.

    own: the file that names the process's control group. root: the folder with the settings of all groups.
    """
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(known, *(_quota(group, known) for group in _groups(own, root))))


def free_memory(own: Path = CGROUP, root: Path = CGROUPS, machine: Path = Path("/proc/meminfo")) -> float:
    """Return how many bytes the machine, or a container of this process, has free; infinite where nothing says it.

    What the system keeps of files counts as free, for it gives that back. own, root: as of ``cores``.
    """
    found = [float("inf")]
    with suppress(OSError, ValueError, KeyError):
        found.append(_numbers(machine)["MemAvailable:"] * 1024)
    for group in _groups(own, root):
        for limit, used in MEMORY:
            with suppress(OSError, ValueError, KeyError):
                most, taken = int((group / limit).read_text()), int((group / used).read_text())  # "max" is no number
                parts = _numbers((group / limit).with_name("memory.stat"))
                files = (parts.get(f"total_{name}", parts.get(name, 0)) for name in ("inactive_file", "active_file"))
                found.append(float(most - taken + sum(files)))
    return max(min(found), 0.0)


def _numbers(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines}


def _groups(own: Path, root: Path) -> list[Path]:
    """Return the folders of the control groups that bind this process."""
    groups = [root]
    with suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):  # version 2; a group is bound by those above it, too
                name = Path(line.removeprefix("0::").strip().lstrip("/"))
                groups += [root / name, *(root / parent for parent in name.parents)]
    return groups


def _quota(group: Path, otherwise: int) -> int:
    """Return the cores that a control group of version 2 or 1 allows, rounded up; ``otherwise`` without a limit."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError, ZeroDivisionError):  # not there, or "max"
            allowed, period = map(int, " ".join((group / name).read_text(encoding="utf-8") for name in names).split())
            return math.ceil(allowed / period) if allowed > 0 else otherwise
    return otherwise


def open_pool(wanted: int | None, scenes: int) -> "Pool":
    """Return the processes that share scenes on the CPU; they begin when they are first needed.

    wanted: ``data.workers``; None: one per core, but not more than have ENOUGH scenes each. Under torchrun it is one.
    """
    import torch

    from lib.run.executor import Pool

    number = 1 if runtime.world_size() > 1 else wanted or max(1, min(cores(), scenes // ENOUGH))
    return Pool(Hand, [torch.device("cpu")] * number)


class Hand:
    """Calls functions in a worker, with an object that all of them look at."""

    def __init__(self, device: "torch.device | None" = None):
        self.held: Any = None

    def hold(self, held: Any) -> None:
        """Keep an object for later calls."""
        self.held = held

    def call(self, function: Callable, *arguments: Any) -> Any:
        """Call ``function(held, *arguments)``; the function can be imported by its name."""
        return function(self.held, *arguments)


def share(pool: "Sharing", held: Any, function: Callable, calls: Iterable[tuple]) -> Generator[Any, None, None]:
    """Call ``function(held, *arguments)`` for each of many arguments by whoever is free; yields results as they come.

    Close the generator to give up. ArtifactError where a worker dies.
    """
    with _one_thread():
        pool.start()
    pool.each("hold", held)
    yield from pool.share("call", ((function, *arguments) for arguments in calls))


@contextmanager
def _one_thread():
    """Give processes that begin now one thread each for the libraries that ask the environment."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
