"""Run rows of benchmarks by one protocol, so that their ratios hold on a machine that is not quiet.

All sides of a row run in one process and take turns in rotating order (A B C, B C A, ...), at least five rounds. A
ratio is the median of the ratios within each round. Rows of one thread go by CPU time; rows of several threads go by
wall time and are left out while other processes keep the cores busy, for there a thread that waits for another's core
makes any figure. Peak memory is taken in a fresh process for each side.
"""

import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

Side = Callable[[], Any]
BUSY = 0.5
"""Cores that others may keep busy beside a row of several threads."""
LOAD = 1.5
"""Load average above which the run is said to be no quiet one."""
LIMIT = "limit"
PACKAGES = ("numpy", "opencv-python-headless", "torch", "rasterio", "orjson", "rlemasklib", "pycocotools", "monai")


def same(ours: Any, other: Any) -> bool:
    """Tell whether two results are equal: texts, numbers, arrays, tensors, lists of these."""
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(other) and all(map(same, ours, other))
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, other)
    return np.array_equal(ours, other) if isinstance(ours, np.ndarray) else bool(ours == other)


@dataclass(frozen=True)
class Race:
    """Sides that do the same work.

    ``make``: folder -> side -> function, or the reason why there is none; ours first. It imports what the sides need.
    """

    name: str
    make: Callable[[Path], Mapping[str, Side | str]]
    goals: Mapping[str, float] = field(default_factory=dict)
    """Side -> how many times as long as ours it should take, at least; of a limit: the share of our time, at least."""
    agree: Callable[[Any, Any], bool] = same
    """Whether (our result, another side's result) agree."""
    repeats: int = 1
    """Calls that are timed together, for work of less than some milliseconds."""
    rounds: int = 5
    threads: int = 1
    """Of OpenCV and torch while the row runs; above 1 the row goes by wall time."""
    wall: bool = False
    """Go by wall time with one thread, too: for work that waits for something."""
    memory: bool = False
    """Take each side's peak memory, too."""
    per: float = 1
    """Items of one call (scenes, samples): times are of one of them."""

    @property
    def by_wall(self) -> bool:
        """Whether ratios are of wall time, else of CPU time."""
        return self.wall or self.threads > 1


@dataclass(frozen=True)
class Figure:
    """Something that is measured by itself. ``measure``: folder -> column (with its unit) -> number or text."""

    name: str
    measure: Callable[[Path], Mapping[str, Any]]
    threads: int = 1
    """Above 1: left out while others keep the cores busy, as such races are."""


def missing(package: str) -> str:
    """Return why a side cannot be run, "" where its package is installed."""
    return "" if importlib.util.find_spec(package) else "not installed"


# ---- one row ------------------------------------------------------------------------------------------
def run(row: Race | Figure, force: bool = False) -> dict[str, Any]:
    """Run one row and return it as JSON; "left_out" says why it was not run. Raises ValueError where sides differ."""
    about = {"row": row.name, "threads": row.threads}
    busy = others() if row.threads > 1 and not force else 0.0
    if busy > BUSY:
        return {**about, "left_out": f"other processes keep {busy:.1f} cores busy; it needs a quiet machine"}
    with _threads(row.threads), tempfile.TemporaryDirectory() as folder:
        if isinstance(row, Figure):
            return {**about, "figures": dict(row.measure(Path(folder)))}
        return {**about, **_race(row, Path(folder))}


def _race(row: Race, folder: Path) -> dict[str, Any]:
    made = row.make(folder)
    sides = {name: side for name, side in made.items() if callable(side)}
    absent = {name: {"left_out": why} for name, why in made.items() if isinstance(why, str)}
    ours, *rest = sides
    result = sides[ours]()
    for name in rest:
        other = sides[name]()  # limits too: each side's first call is not timed
        if not name.startswith(LIMIT) and not row.agree(result, other):
            raise ValueError(f"{row.name}: {name} does not agree with {ours}")
    del result
    times = {name: _Times() for name in sides}
    gc.collect()
    gc.disable()  # garbage of one side is not collected in another's time
    try:
        for turn in range(row.rounds):
            for name in [*sides][turn % len(sides) :] + [*sides][: turn % len(sides)]:
                times[name].take(sides[name], row.repeats)
    finally:
        gc.enable()
    found: dict[str, Any] = {}
    for name, taken in times.items():
        wall, cpu = np.array(taken.wall), np.array(taken.cpu)
        own = np.array(times[ours].wall if row.by_wall else times[ours].cpu)
        ratios = (wall if row.by_wall else cpu) / np.maximum(own, 1e-9)
        scale = 1e3 / row.repeats / row.per
        found[name] = {"wall_ms": float(np.median(wall)) * scale, "cpu_ms": float(np.median(cpu)) * scale,
                       "ratio": float(np.median(ratios)), "lowest": float(ratios.min()),
                       "highest": float(ratios.max()), "goal": row.goals.get(name)}  # fmt: skip
    return {"by": "wall" if row.by_wall else "cpu", "rounds": row.rounds, "sides": {**found, **absent}}


class _Times:
    """Seconds of one side, by round."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def take(self, side: Side, repeats: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            side()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


# ---- memory -------------------------------------------------------------------------------------------
def peak(work: Side) -> float:
    """Return by how many MiB the memory of this process rises while ``work`` runs (Linux; NaN elsewhere).

    ``ru_maxrss`` would not do: a process inherits it from the one that started it.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return float("nan")


def _status(key: str) -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if key in line).split()[1])


def peak_of(row: Race, side: str) -> float:
    """Return the peak of one side in this process, which should be a fresh one; its data are there beforehand."""
    with _threads(row.threads), tempfile.TemporaryDirectory() as folder:
        work = row.make(Path(folder))[side]
        return peak(work) if callable(work) else float("nan")


def peaks(module: str, row: Race, quick: bool, sides: Mapping[str, Any]) -> dict[str, float]:
    """Return side -> MiB by which its peak rises, each side run once in a process of its own."""
    found = {}
    for side in sides:
        asked = json.dumps({"module": module, "row": row.name, "side": side, "quick": quick})
        child = subprocess.run([sys.executable, "-m", "tests.benchmarks", "--memory-of", asked], check=True,
                               capture_output=True, text=True)  # fmt: skip
        found[side] = float(child.stdout)
    return found


# ---- the machine --------------------------------------------------------------------------------------
def others(seconds: float = 1.0) -> float:
    """Return how many cores other processes keep busy; the load average where the system tells no more."""
    try:
        before, own = _busy(), time.process_time()
        time.sleep(seconds)
        return max(0.0, (_busy() - before - (time.process_time() - own)) / seconds)
    except OSError:
        return os.getloadavg()[0]


def _busy() -> float:
    """Return the seconds that all cores together have worked since the system started."""
    user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Say on what this runs: processor, cores, memory, versions, date, load and what others keep busy."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": _processor(), "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d %H:%M"),
            "load": round(os.getloadavg()[0], 2), "others_busy": round(others(), 2), "versions": versions}  # fmt: skip


def _processor() -> str:
    """Name the processor, with the model number, for a rented machine's processor may have no further name."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    about = {key.strip(): value.strip() for key, _, value in lines}
    return f"{about.get('model name', platform.machine())}, model {about.get('model', '?')}"
