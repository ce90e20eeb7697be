"""What is asked for an area and how it will be made: networks, images, grid, registration; all that can be refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import shapely
from rasterio.crs import CRS

from lib.choose.choice import Decision
from lib.competitions.contract import Scene, settings_for
from lib.errors import ConfigError, PipelineError
from lib.files import digest
from lib.maps import decode, layout, register, sources
from lib.maps.grid import BLOCK
from lib.maps.networks import AreaJob, Member, ratio_of
from lib.maps.sides import Side, learn
from lib.models import checkpoint
from lib.run import manifest
from lib.run.cli import Run
from lib.scenes.place import metres
from lib.stages.ensemble import averaging_of

PARTS = ".parts"
"""Below the folder of the results: what is kept until they are whole."""
FIELD = "registration.geojson"
LOOKED = 20
"""Scenes whose pixel size is asked for."""


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    images: Mapping[str, Sequence[str]]
    """Name of an image -> files, folders, addresses."""
    out: Path
    limit: tuple[Any, CRS] | None = None
    """The user's area and its CRS."""
    crs: CRS | None = None
    pixel_size: float | None = None
    """In metres."""
    resampling: str = "bilinear"
    register: bool = False
    """Whether later images are moved onto the first."""
    window: int = 2048
    """Sides in pixels of what is held at once."""
    one_band: bool = False
    event: str = ""
    decode: Mapping[str, Any] = field(default_factory=dict)
    """Decode settings in place of those that were chosen."""
    force: bool = False

    def faults(self) -> list[str]:
        """Return what is wrong with it, in sentences; reads no image."""
        found = []
        if self.window < BLOCK or self.window % BLOCK:
            found.append(f"--window: expected a multiple of {BLOCK} pixels, got {self.window}")
        if self.pixel_size is not None and not 0 < self.pixel_size < 1000:
            found.append(f"--pixel-size: expected metres above 0, got {self.pixel_size:g}")
        if self.resampling not in sources.RESAMPLING:
            found.append(f"--resampling: expected one of {', '.join(sources.RESAMPLING)}, got {self.resampling}")
        if self.out.exists() and not self.out.is_dir():
            found.append(f"--out {self.out}: expected a folder, found a file")
        return found


@dataclass
class AreaPlan:
    """An area before anything of it is predicted."""

    run: Run
    request: Request
    decision: Decision
    settings: dict[str, Any]
    """Decode settings."""
    classes: dict[str, str]
    """Class -> colour."""
    job: AreaJob
    notes: list[str]
    facts: str
    """What the levels depend on."""

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.request.out


def prepare(run: Run, request: Request) -> AreaPlan:
    """Look at all that is given, and refuse what cannot be done."""
    if faults := request.faults():
        raise ConfigError("; ".join(faults))
    classes = run.competition.raster_classes()
    decision = Decision.of(run)
    weights, variant, temperatures = averaging_of(run)
    scene = Scene("area", {}, domain=request.event)
    settings = {**settings_for(scene, decision.params), **request.decode}
    decode.refuse_scene_settings(run.competition, settings)
    members = _members(run, weights)
    described = [checkpoint.read_description(folder_of(run, member)) for member in members]
    needed = [name for name in run.competition.images if any(name in one["images"] for one in described)]
    if missing := [name for name in needed if name not in request.images]:
        raise ConfigError(f"--{missing[0]}: expected an image that the networks of this experiment look at "
                          f"({', '.join(needed)}), got none")  # fmt: skip
    notes = []
    if variant.crf:
        notes.append("blend.crf: was left out, since it looks at a scene as a whole; thresholds were chosen with it")
    with sources.environment():
        held = {name: [sources.describe(path, request.one_band) for path in sources.find(request.images[name], name)]
                for name in needed}  # fmt: skip
        trained = None if request.pixel_size else _trained(run)
        sides, asked, said = _sides(request, held, trained, max(ratio_of(run, member) for member in members))
    notes += said
    for name in request.images.keys() - {*needed}:
        notes.append(f"{name}: no network of this experiment looks at it, so it was not used")
    grid = sides[needed[0]].grid
    job = AreaJob(run, grid, sides, request.window, members, dict(weights), variant, dict(temperatures), *asked,
                  request.out / PARTS)  # fmt: skip
    return AreaPlan(run, request, decision, settings, classes, job, notes, _facts(run, job))


def _members(run: Run, weights: Mapping[str, float]) -> list[Member]:
    """Return the networks that have a weight, task by task."""
    found = []
    for task in dict.fromkeys(model.task for model in run.config.models.values()):
        for name, model in run.config.models.items():
            if model.task == task and weights.get(name):
                folds = run.config.folds_of(model)
                found += [Member(name, fold, len(folds), task) for fold in folds]
    return found


def folder_of(run: Run, member: Member) -> Path:
    return run.store.require(run.graph.checkpoint(member.model, member.fold))


def _trained(run: Run) -> float | None:
    """Return the side of a pixel in metres of the scenes that the networks were trained on; None where nothing says."""
    found = []
    try:
        for scene in run.competition.scenes("train")[:LOOKED] if run.graph.train_ids else ():
            if (place := run.competition.place(scene)) is not None:
                height, width = place.size
                wide, high = metres(CRS.from_user_input(place.crs), place.affine, (width / 2, height / 2))
                found.append((wide * high) ** 0.5)
    except (PipelineError, OSError):
        return None
    return round(median(found), 3) if found else None


def _sides(
    request: Request, held: Mapping[str, Sequence[sources.SourceFile]], trained: float | None, whole: int
) -> tuple[dict[str, Side], tuple[Any, Any], list[str]]:
    """Lay out the grid and open the sides on it; beside them what is asked for, the user's area, and what is to be
    said. Where they are to be registered, twice: once to measure, and once where the moved images overlap."""
    laid = partial(layout.choose, held, request.crs, request.pixel_size, trained, request.limit, whole=whole)
    found = laid()
    sides = {name: Side(name, own, found.grid, request.resampling) for name, own in held.items()}
    notes = learn([*sides.values()])
    first, *later = sides
    moves: dict[str, tuple[float, float]] = {}
    for name in later:
        measured = register.measure(sides[first], sides[name], found.asked)
        request.out.mkdir(parents=True, exist_ok=True)
        measured.write(request.out / FIELD)
        notes.append(measured.sentence(name))
        shift = measured.shift
        if not request.register or shift is None:
            notes[-1] += "; not applied" + ("" if request.register or shift is None else ", --register does")
            continue
        sides[name] = sides[name].on(found.grid, shift)
        moves[name] = sides[name].moved_by()
        notes[-1] += "; applied"
    if moves:
        found = laid(moves=moves)
        for name, side in sides.items():
            unit = found.grid.transform
            east, north = moves.get(name, (0.0, 0.0))
            sides[name] = side.on(found.grid, (east / unit.a, north / unit.e))
        left = [register.measure(sides[first], sides[name], found.asked).sentence(name) for name in moves]
        notes += [f"after that, {sentence}" for sentence in left]
    return sides, (found.asked, found.limit), [*found.notes, *notes]


def _facts(run: Run, job: AreaJob) -> str:
    """Return what stands for all that the levels depend on."""
    made = [manifest.read(folder_of(run, member)) for member in job.members]
    predict = run.config.predict
    sides = {
        name: [side.resampling, side.shift, {str(form): own for form, own in side.bounds.items()},
               *((one.state, one.bands) for one in side.sources)]
        for name, side in job.sides.items()
    }  # fmt: skip
    return digest({
        "grid": job.grid.to_json(),
        "window": job.size,
        "sides": sides,
        "limit": None if job.limit is None else shapely.to_wkt(job.limit, rounding_precision=9),
        "networks": [[*member, manifest.content(one)] for member, one in zip(job.members, made, strict=True)],
        "weights": job.weights,
        "temperatures": job.temperatures,
        "views": job.variant.tta,
        "predict": [predict.tile, predict.overlap, predict.truncate, predict.tf32, predict.compile,
                    *(run.predict_of(member.model).precision for member in job.members)],
        "truncate": run.config.blend.truncate,
    })  # fmt: skip
