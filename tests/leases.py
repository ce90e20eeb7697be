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
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.errors import ArtifactError
from lib.files import file_state, write_bytes
from lib.run import lease, manifest
from lib.run.artifacts import MANIFEST, Store, Unit

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


def excluded(paths: Sequence[Path], acquisitions: int) -> Found:
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


# ---- stopped and killed owners ------------------------------------------------------------------------
def _builds(root: Path, number: int, rounds: int) -> None:
    """Build the unit of each round that is not there; write down what was sealed. Ends with 2 if a lease is lost."""
    become(number)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # who waits for whom
    lease.BEAT, lease.LEASE_SILENCE = SILENCE / 10, SILENCE
    for turn in range(rounds):
        unit = Unit("02_loc/net/fold0", {"round": turn}, "python 02.py")
        store = Store(root)
        while True:
            with suppress(ArtifactError, OSError):
                store.recover(unit)
                made = manifest.made(root / unit.key)
                if made is not None and made["facts"]["round"] >= turn:
                    break
                with store.build(unit, {"by": number}) as folder:
                    for part in range(4):
                        write_bytes(folder / f"part{part}", b"%d" % turn)
                        time.sleep(0.002)
                with open(root / f"sealed{number}", "a") as told:
                    told.write(f"{turn}\n")
                break


def fenced(paths: Sequence[Path], rounds: int, seed: int = 0) -> Found:
    """Build so many units by two processes that are stopped and killed; see above for what is a violation."""
    rng, found = random.Random(seed), Found()
    notes = [paths[0] / f"sealed{number}" for number in range(2)]
    for path in notes:
        path.touch()

    def start(number: int):
        process = FORK.Process(target=_builds, args=(paths[number], number, rounds))
        process.start()
        return process

    processes = [start(0), start(1)]
    store, seen = Store(paths[0]), ("", 0, 0)
    while any(process.is_alive() for process in processes):
        time.sleep(rng.random() * 0.03)
        number = rng.randrange(2)
        process = processes[number]
        if process.is_alive() and rng.random() < 0.8:
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(rng.random() * 3 * SILENCE)
            os.kill(process.pid, signal.SIGCONT)
            found.by["stopped"] += 1
        elif process.is_alive():
            process.kill()
            process.join()
            found.by["killed"] += 1
        for number, process in enumerate(processes):
            if not process.is_alive() and process.exitcode != 0:
                found.by["ended having lost the lease"] += process.exitcode == 2
                processes[number] = start(number)
        final = paths[0] / "02_loc/net/fold0"
        if seen != (seen := file_state(final / MANIFEST)) and seen[1] and final.exists():
            found.violations += bool(store.fault(Unit("02_loc/net/fold0", {}))) and file_state(final / MANIFEST) == seen
    sealed = [path.read_text().split() for path in notes]
    found.acquired, found.by["sealed by the first"] = sum(map(len, sealed)), len(sealed[0])
    found.violations += sum(count - 1 for count in Counter(sealed[0] + sealed[1]).values())
    return found


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--acquisitions", type=int, default=1000, help="how often a lease is acquired (default: 1000)")
    flags.add_argument("--rounds", type=int, default=100, help="how many units are built (default: 100)")
    args = flags.parse_args()
    wrong = 0
    for what, count in ((excluded, args.acquisitions), (fenced, args.rounds)):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder, two_paths(Path(folder)) as (*paths, how):
            found = what(paths, count)
        told = ", ".join(f"{name}: {number}" for name, number in sorted(found.by.items(), key=str))
        print(f"{what.__name__}, two paths by {how}: {found.acquired} acquisitions or seals in "
              f"{time.monotonic() - begun:.0f} s, {found.violations} violations ({told})")  # fmt: skip
        wrong += found.violations
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
