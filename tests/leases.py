"""Leases under two processes on two mounts of one folder: how often are both in, how often are both sealed?

``python tests/leases.py [--acquisitions 1000]``: two processes, each with its own path of one folder (``mount --bind``
where that is allowed, else a symbolic link) and each as if on a machine of its own, ask for one lease again and again.

1. *Excluded*: whoever is in creates a file with O_EXCL and removes it; one that finds it is a violation.
2. *Fenced*: they build one unit of the store over and over with signs of life every few milliseconds, and are stopped
   (SIGSTOP) for longer than the silence, or killed, at random instants. What was sealed is told from the manifests: a
   unit that is not whole, or two seals of one round, are violations.
"""

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lib.errors import ArtifactError
from lib.files import write_bytes
from lib.run import lease
from lib.run.artifacts import Store, Unit

FORK = multiprocessing.get_context("fork")
SILENCE = 0.15
"""Seconds of silence here."""


@contextmanager
def two_paths(folder: Path, mount: bool = True):
    """Yield two paths of one folder and how the second was made."""
    first, second = folder / "first", folder / "second"
    first.mkdir()
    second.mkdir()
    if mount and subprocess.run(["mount", "--bind", first, second], stderr=subprocess.DEVNULL).returncode == 0:
        try:
            yield first, second, "mount --bind"
        finally:
            subprocess.run(["umount", second], check=True)
        return
    second.rmdir()
    second.symlink_to(first)
    yield first, second, "symbolic link"


@dataclass
class Found:
    """What came of it."""

    acquired: int = 0
    violations: int = 0
    by: Counter = field(default_factory=Counter)


def become(number: int) -> None:
    """Make this process one of a machine of its own."""
    lease._place = lambda: f"machine{number}"
    lease._host = lambda: f"machine{number}"


def _goes_in(root: Path, number: int, wanted: int, total, end) -> None:
    become(number)
    acquired = violations = 0
    while total.value < wanted:
        try:
            with lease.hold(root / ".locks" / "unit.lease", "unit", watch=False):
                try:
                    os.close(os.open(root / "inside", os.O_CREAT | os.O_EXCL))
                    time.sleep(random.random() * 0.001)
                    os.unlink(root / "inside")
                except OSError:
                    violations += 1
                acquired += 1
                with total.get_lock():
                    total.value += 1
        except ArtifactError:
            pass
        time.sleep(random.random() * 0.002)
    end.send((acquired, violations))


def excluded(paths: tuple[Path, Path], acquisitions: int) -> Found:
    """Let two processes in by turns; returns how often which of them was in and how often both."""
    total, found, ends, processes = FORK.Value("i", 0), Found(), [], []
    for number, root in enumerate(paths):
        mine, theirs = FORK.Pipe(False)
        ends.append(mine)
        processes.append(FORK.Process(target=_goes_in, args=(root, number, acquisitions, total, theirs)))
        processes[-1].start()
    for number, end in enumerate(ends):
        acquired, violations = end.recv()
        found.by[number] += acquired
        found.violations += violations
    for process in processes:
        process.join()
    found.acquired = sum(found.by.values())
    return found
