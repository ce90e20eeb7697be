"""One area from its images to its rasters: predict window by window, copy as COGs, decode block by block.

Below the folder of the results lies ``.parts`` until they are whole: the windows that are done, and run.json, the facts
that they depend on. A run that was interrupted goes on with the windows that are there; one with other facts says so
and begins anew. When all rasters are written the facts stay in run.json beside them, and the same command decodes
again without asking the networks.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.files import read_json, write_json
from lib.inference.pipeline import through
from lib.maps import decode, networks, rasters, sources
from lib.maps.area_file import AREA, Area
from lib.maps.networks import AreaNetworks
from lib.maps.plan import PARTS, AreaPlan
from lib.maps.rasters import WindowFile
from lib.maps.sides import Side
from lib.run import cores, manifest
from lib.run.cli import duration, say
from lib.run.executor import Pool, devices
from lib.run.runtime import peak_memory_mib

FACTS = "run.json"
EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def make(plan: AreaPlan) -> Area:
    """Make the rasters of an area, or what is left of them to make, and area.json; returns what that says."""
    levels, done = _levels(plan), plan.out / FACTS
    there = _held(done) == plan.facts and all((plan.out / name).exists() for name in levels)
    if there and not plan.request.force:
        say("rasters of levels: there already, made from the same; --force makes them anew")
    else:
        _begin(plan)
        predict(plan)
        _write_levels(plan, levels)
        write_json(done, {"facts": plan.facts})
    area = _decode(plan, levels)
    area.write(plan.out)
    shutil.rmtree(plan.out / PARTS, ignore_errors=True)
    return area


def _held(path: Path) -> str | None:
    """Return the facts that a file records; None where it is not there or damaged."""
    try:
        found = read_json(path)
        return found["facts"] if isinstance(found, dict) else None
    except (OSError, ValueError, KeyError):
        return None


def _begin(plan: AreaPlan) -> None:
    """Make the folder of the windows; what lies there of another run goes."""
    parts, old = plan.out / PARTS, plan.out / FACTS
    plan.out.mkdir(parents=True, exist_ok=True)
    for path in (old, plan.out / AREA):  # from now on the rasters there are not of one run
        path.unlink(missing_ok=True)
    if parts.exists() and (plan.request.force or _held(parts / FACTS) != plan.facts):
        why = "--force" if plan.request.force else "other images, networks or settings"
        say(f"{parts}: windows of another run ({why}), begun anew")
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    write_json(parts / FACTS, {"facts": plan.facts})


# ---- windows ------------------------------------------------------------------------------------------
def predict(plan: AreaPlan) -> None:
    """Ask the networks for every window that is not there, in workers of which each has a device of its own."""
    job = plan.job
    asked = job.windows()
    left = [place for place in asked if not job.path(*place).exists()]
    say(f"windows of {job.size} pixels: {len(asked)}"
        + (f", {len(asked) - len(left)} of them done already" if len(left) < len(asked) else "")
        + f"; {len(job.members)} networks, views {job.variant.tta}")  # fmt: skip
    if not left:
        return
    started, pixels, tiles = time.monotonic(), 0, 0
    with Pool(AreaNetworks, devices(plan.run.config.predict.workers, plan.run.device)) as pool:
        pool.each("open", job)
        progress = Countdown(len(left))
        with closing(through(pool, in_bands(left, len(pool)))) as written:
            for one in progress.over(written):
                pixels, tiles = pixels + one.pixels, tiles + one.tiles
        peak = max(pool.each("peak"))
    square = job.grid.pixel_area * pixels / 1e6
    say(f"predicted {square:.4f} km2 in {duration(time.monotonic() - started)}: {tiles} tiles, at most {peak:.0f} MiB "
        f"in a worker, {peak_memory_mib(plan.run.device):.0f} MiB here")  # fmt: skip


def in_bands(places: Sequence[tuple[int, int]], workers: int) -> list[tuple[int, int]]:
    """Return windows in an order in which each worker goes through rows of its own, from left to right: so that
    neighbours are seldom at work at the same time, and tiles that they share are computed once."""
    if workers < 2:
        return list(places)
    size = -(-len(places) // workers)
    bands = [list(places[start : start + size]) for start in range(0, len(places), size)]
    return [band[number] for number in range(size) for band in bands if number < len(band)]


class Countdown:
    """Say how far work has come and when it will end: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.started = self.said = time.monotonic()

    def over(self, done: Iterable[Any]) -> Iterator[Any]:
        """Pass on what comes."""
        with tqdm(total=self.total, desc="windows", leave=False, disable=None, file=sys.stderr) as bar:
            for one in done:
                self.done += 1
                bar.update()
                if bar.disable and time.monotonic() - self.said >= EVERY and self.done < self.total:
                    self.said = time.monotonic()
                    left = (self.said - self.started) / self.done * (self.total - self.done)
                    say(f"  window {self.done} of {self.total}, about {duration(left)} left")
                yield one


# ---- rasters ------------------------------------------------------------------------------------------
def _levels(plan: AreaPlan) -> dict[str, tuple[str, str]]:
    """Return file -> (task, class) of the rasters of levels, in the order of a window's channels."""
    return {f"{task}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)}.tif": (task, name) for task, name in plan.job.names}


def _spread(plan: AreaPlan) -> str | None:
    """Return the file of the disagreement, None where no task has two networks."""
    tasks = [member.task for member in plan.job.members]
    return f"{networks.DISAGREEMENT}.tif" if len(set(tasks)) < len(tasks) else None


def _write_levels(plan: AreaPlan, levels: Mapping[str, tuple[str, str]]) -> None:
    job = plan.job
    parts = [WindowFile(job.window(*place), job.path(*place)) for place in job.windows()]
    wanted = dict(zip(levels, range(1, len(levels) + 1)))
    if (spread := _spread(plan)) is not None:
        wanted[spread] = len(levels) + 1
    for name, band in tqdm(wanted.items(), "rasters", leave=False, disable=None):
        rasters.write(plan.out / name, rasters.mosaic(job.grid, parts, band, mask=len(levels) + 2), exact=False)


def _decode(plan: AreaPlan, levels: Mapping[str, tuple[str, str]]) -> Area:
    """Write the raster of class numbers; returns what area.json says."""
    run, request, job = plan.run, plan.request, plan.job
    by_task: dict[str, list[Path]] = {}
    for name, (task, _) in levels.items():
        by_task.setdefault(task, []).append(plan.out / name)
    folder = plan.out / PARTS / "decode"
    decoding = decode.Decoding(run.competition, plan.settings, job.grid, by_task, folder)
    with cores.open_pool(run.config.data.workers, len(decoding.parts())) as pool:
        parts = decode.run(decoding, pool)
    answer = f"{run.competition.raster_name}.tif"
    rasters.write(plan.out / answer, rasters.mosaic(job.grid, parts, 1, colours=plan.classes), exact=True)
    named: dict[str, str] = {}
    for file, (task, name) in levels.items():
        named[name if name not in named else f"{task} {name}"] = file
    last = [*job.sides.values()][-1]
    east, south = (side * count for side, count in zip(job.grid.pixel, last.shift))
    notes = list(plan.notes)
    if decoding.halo:
        notes.append(f"settings of the decoding look at objects: blocks of {decode.CORE} pixels were decoded with "
                     f"{decode.HALO} pixels around them; an object further across than that may change its class at "
                     "the border of a block")  # fmt: skip
    images = {name: [one.path for one in side.sources] for name, side in job.sides.items()}
    fingerprint = manifest.read(run.store.require(run.graph.decode()))["fingerprint"]
    return Area(job.grid, list(plan.classes), plan.classes, named, answer, _spread(plan), request.event,
                f"{run.config.name} {fingerprint}", images, (-east, south), notes)  # fmt: skip


def previews(sides: Mapping[str, Side], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the images of an area at a smaller size: name -> (h, w, 3) uint8."""
    found = {}
    for name, side in sides.items():
        small, (right, down) = side.grid.resized(*shape), side.shift
        moved = side.on(small, (right * shape[1] / side.grid.width, down * shape[0] / side.grid.height))
        with sources.environment():
            found[name] = moved.read(small.window(0, 0, max(shape)))[0]
    return found
