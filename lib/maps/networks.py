"""In a worker: the averaged levels of one window of an area after the other, from all networks of an experiment.

What stages 04 and 05 do with a scene is done with a window, by the same functions: a network's tiles, views and
precision, rounding to levels, temperatures and weights. Windows are read ahead and written behind.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
import torch
from rasterio import features
from rasterio.windows import Window
from torch import Tensor

from lib.choose.choice import Variant
from lib.choose.evidence import weighted
from lib.ensemble import calibration
from lib.errors import ArtifactError, ConfigError
from lib.inference.pipeline import Pipeline, Steps
from lib.inference.predict import Predictor, resized
from lib.maps.frames import Cut, Edges, Frame, cuts
from lib.maps.grid import Grid
from lib.maps.sides import Side
from lib.maps.sources import environment
from lib.models import checkpoint
from lib.run.cli import Run, quiet
from lib.scenes.probs import quantise, refuse_other_classes, write_levels

ROOM = 192 << 20
"""Bytes of images that a worker reads ahead."""
KEPT = 1 << 30
"""Bytes of weights that a worker keeps loaded on a CPU; networks beyond that are loaded again for each window."""
RATIOS = (1, 2, 4, 8)
"""How many of an area's pixels to a side may be one of a network's."""
SEEN = "seen"
DISAGREEMENT, VALID = "disagreement", "valid"
"""Bands of a window's file beside the classes."""


class Member(NamedTuple):
    """One network of the ensemble."""

    model: str
    fold: int
    folds: int
    """How many folds share the model's weight."""
    task: str


@dataclass
class AreaJob:
    """What all workers know of an area."""

    run: Run
    grid: Grid
    sides: dict[str, Side]
    """Name of an image -> the files that show it."""
    size: int
    """Sides of a window in pixels, a multiple of BLOCK."""
    members: Sequence[Member]
    weights: dict[str, float]
    variant: Variant
    temperatures: dict[str, float]
    asked: Any
    """What is asked for, a polygon in the CRS of the grid: where all images overlap, within the user's area."""
    limit: Any
    """The user's own area, a polygon; None: no other limit than the images."""
    folder: Path
    """Where windows are kept until the rasters are made of them."""
    _held: dict[str, Any] = field(default_factory=dict)

    def windows(self) -> list[tuple[int, int]]:
        """Return (row, column) of all windows that hold something of what is asked for."""
        shapely.prepare(self.asked)
        down, across = (range(-(-side // self.size)) for side in self.grid.shape)
        return [(row, column) for row in down for column in across
                if self.asked.intersects(shapely.box(*self.grid.part(self.window(row, column)).bounds))]  # fmt: skip

    def window(self, row: int, column: int) -> Window:
        """Return the pixels of a window."""
        return self.grid.window(row * self.size, column * self.size, self.size)

    def path(self, row: int, column: int) -> Path:
        """Return the file of a window: the levels of all classes, then the disagreement, then 1 where it is valid."""
        return self.folder / "windows" / f"{row}_{column}.tif"

    @cached_property
    def names(self) -> list[tuple[str, str]]:
        """(Task, class) of each channel of a window's file before the disagreement."""
        tasks = dict.fromkeys(member.task for member in self.members)
        return [(task, name) for task in tasks for name in self.run.competition.tasks[task].classes]

    def within(self, window: Window) -> np.ndarray:
        """Tell which pixels of a window have their centres in the user's area: (h, w) bool."""
        inside = np.ones((int(window.height), int(window.width)), bool)
        if self.limit is None:
            return inside
        for cell, own, target in self.grid.cells(window):  # so that rounding is the same for windows of any size
            part = self.grid.part(cell)
            inside[target] = features.geometry_mask([self.limit], part.shape, part.transform, invert=True)[own]
        return inside


@dataclass
class AreaWindow:
    """A window on its way through the steps of a worker."""

    place: tuple[int, int]
    window: Window
    images: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> (3, H, W) uint8 of what all tiles show that reach into the window."""
    seen: np.ndarray | None = None
    """(H, W) bool: where all images have data, and the user asks for it."""
    span: tuple[Cut, Cut] = ((0, 0), (0, 0))
    """Rows and columns of the area that ``images`` hold."""
    planes: np.ndarray | None = None
    """What is written, (channels + 2, h, w) uint8."""
    tiles: int = 0
    """Tiles that networks were asked for."""
    small: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    """(Name of an image, or SEEN; how many of the area's pixels make one, to a side) -> the same, smaller."""


class Written(NamedTuple):
    """What became of a window."""

    place: tuple[int, int]
    pixels: int
    """How many of its pixels are valid."""
    tiles: int


class AreaNetworks:
    """What a worker predicts with: a device, and the networks that it has loaded."""

    job: AreaJob

    def __init__(self, device: torch.device):
        quiet()
        self.device = device
        self.pipeline: Pipeline[AreaWindow, AreaWindow, AreaWindow, Written] | None = None
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def open(self, job: AreaJob) -> None:
        """Take an area on."""
        job.run = job.run.on(self.device)
        self.job, self.edges = job, Edges(job.folder / "edges")
        self.predictors: OrderedDict[int, Predictor] = OrderedDict()
        self.asked = set(job.windows())
        self.described = [checkpoint.read_description(self._folder(member)) for member in job.members]
        self.ratios = [ratio_of(job.run, member) for member in job.members]
        self.frames = [self._frame(number) for number in range(len(job.members))]

    # ---- many windows: read ahead, write behind -------------------------------------------------------
    def feed(self, row: int, column: int) -> list[Written]:
        """Take a window in, behind those taken before; returns what has become of earlier ones."""
        if self.pipeline is None:
            steps = Steps(self.read, self.compute, self.write, self.expect, self.weigh)
            self.pipeline = Pipeline(steps, ROOM, ahead=1, behind=1)  # what threads have freed, they keep
        window = self.job.window(row, column)
        return self.pipeline.feed(AreaWindow((row, column), window, span=self.span(window)))

    def drain(self) -> list[Written] | None:
        """Compute one more window of those taken in; returns as ``feed``, None where none is left."""
        written = None if self.pipeline is None else self.pipeline.drain()
        if written is None:
            self.drop()
        return written

    def drop(self) -> None:
        """Give up the windows that were taken in; those that are computed are written when this returns."""
        pipeline, self.pipeline = self.pipeline, None
        if pipeline is not None:
            pipeline.close()

    def peak(self) -> float:
        """Return the most memory that this process has had, in MiB; on a GPU that of the device."""
        from lib.run.runtime import peak_memory_mib

        return peak_memory_mib(self.device)

    # ---- one window, step by step ---------------------------------------------------------------------
    def span(self, window: Window) -> tuple[Cut, Cut]:
        """Return the rows and columns of the area that the tiles of all networks show which reach into a window."""
        ends, whole = [], max(self.ratios)
        for frame, ratio in zip(self.frames, self.ratios):
            rows, columns = frame.span(frame.around(window, ratio))
            ends.append((rows[0] * ratio, rows[1] * ratio, columns[0] * ratio, columns[1] * ratio))
        low, high = np.min(ends, axis=0) // whole * whole, -(-np.max(ends, axis=0) // whole) * whole
        return (int(low[0]), int(high[1])), (int(low[2]), int(high[3]))

    def expect(self, reading: AreaWindow) -> int:
        """Return about how many bytes a window will hold that has data."""
        (top, bottom), (left, right) = reading.span
        written = (len(self.job.names) + 2) * self.job.size**2
        return (3 * len(self.job.sides) + 1) * (bottom - top) * (right - left) + written

    def weigh(self, reading: AreaWindow) -> int:
        """Return about how many bytes a window holds that is read."""
        return self.expect(reading) if reading.images else 0

    def read(self, reading: AreaWindow) -> AreaWindow:
        """Read what the tiles show that reach into a window, of all images; nothing where the window has no data."""
        job, ((top, bottom), (left, right)) = self.job, reading.span
        hull = Window(left, top, right - left, bottom - top)  # type: ignore[call-arg]
        seen = job.within(hull) if job.limit is not None else np.ones((bottom - top, right - left), bool)
        reading.seen = seen
        with environment():
            for name, side in job.sides.items():
                if not self._own(reading, seen).any():
                    break
                pixels, valid = side.read(hull)
                seen &= valid
                reading.images[name] = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        if not self._own(reading, seen).any():
            reading.images.clear()
            reading.seen = None
        return reading

    def _own(self, reading: AreaWindow, seen: np.ndarray) -> np.ndarray:
        """Return the part of an array over ``span`` that is the window's own."""
        (top, bottom), (left, right) = cuts(reading.window)
        (first, _), (west, _) = reading.span
        return seen[top - first : bottom - first, left - west : right - west]

    def compute(self, reading: AreaWindow) -> AreaWindow:
        """Ask all networks and average what they say."""
        job, competition = self.job, self.job.run.competition
        planes = np.zeros((len(job.names) + 2, int(reading.window.height), int(reading.window.width)), np.uint8)
        if reading.seen is not None:
            valid = self._own(reading, reading.seen)
            spread, start = planes[-2], 0
            for task in dict.fromkeys(member.task for member in job.members):
                known, found = competition.tasks[task], []
                for number, member in enumerate(job.members):
                    if member.task == task:
                        levels = self.levels(number, reading)
                        tempered = calibration.apply(
                            levels, job.temperatures.get(member.model, 1), known.kind == "multiclass"
                        )
                        found.append((member.model, member.folds, tempered))
                stop = start + known.channels
                planes[start:stop] = weighted(found, job.weights, job.run.config.blend.truncate)
                heard = [levels for model, _, levels in found if job.weights.get(model)]
                for channel in range(known.channels):
                    own = [levels[channel] for levels in heard]
                    np.maximum(spread, np.maximum.reduce(own) - np.minimum.reduce(own), out=spread)
                start = stop
            planes *= valid
            planes[-1] = valid
        reading.planes, reading.seen = planes, None
        reading.images.clear()  # nobody needs them any more
        reading.small.clear()
        return reading

    def levels(self, number: int, reading: AreaWindow) -> np.ndarray:
        """Return what one network says of a window, (C, h, w) uint8, rounded as stage 04 does."""
        frame, ratio, size = self.frames[number], self.ratios[number], self.job.size // self.ratios[number]
        own = frame.around(reading.window, ratio)
        (top, bottom), (left, right) = cuts(own)
        total: Any = None
        for row, column in frame.tiles(own):
            rows, down = frame.rows.shared(row, top, bottom)
            columns, across = frame.columns.shared(column, left, right)
            path = self.edges.path(number, (row, column), reading.place)
            held = self.edges.get(path, (rows.stop - rows.start, columns.stop - columns.start))
            if held is not None:
                part = torch.from_numpy(held).to(self.device)
            elif (probs := self._tile(number, row, column, reading)) is None:
                continue
            else:
                part = probs[:, rows, columns]
                for other in frame.windows(row, column, size, halo=int(ratio > 1)):
                    if other != reading.place and other in self.asked and not self.job.path(*other).exists():
                        self._keep(number, (row, column), other, probs)
            if total is None:
                total = part.new_zeros((part.shape[0], bottom - top, right - left))
            weights = torch.outer(frame.rows.weights[row][rows], frame.columns.weights[column][columns])
            total[:, down, across].addcmul_(part, weights.to(part.device))
        height, width = int(reading.window.height), int(reading.window.width)
        if total is None:
            return np.zeros((len(self.described[number]["classes"]), height, width), np.uint8)
        probs = total.cpu().numpy()
        if ratio > 1:
            first, west = int(reading.window.row_off) - top * ratio, int(reading.window.col_off) - left * ratio
            probs = resized(probs, (probs.shape[1] * ratio, probs.shape[2] * ratio))
            probs = probs[:, first : first + height, west : west + width]
        truncate = self.job.run.config.predict.truncate
        return np.stack([quantise(plane, truncate) for plane in probs])  # one by one: the product is as large as probs

    def _small(self, reading: AreaWindow, name: str, ratio: int) -> np.ndarray:
        """Return an image that was read, (3, h, w), or ``seen`` (h, w), in pixels of which each is ``ratio`` to a
        side."""
        assert reading.seen is not None
        if ratio == 1:
            return reading.seen if name == SEEN else reading.images[name]
        if (name, ratio) not in reading.small:
            height, width = (side // ratio for side in reading.seen.shape)
            if name == SEEN:
                found = reading.seen.reshape(height, ratio, width, ratio).any(axis=(1, 3))
            else:
                found = resized(reading.images[name], (height, width))
            reading.small[name, ratio] = found
        return reading.small[name, ratio]

    def _tile(self, number: int, row: int, column: int, reading: AreaWindow) -> Tensor | None:
        """Return what a network says of a tile, probs (C, h, w); None where nothing in it is asked for and has data."""
        frame, ratio = self.frames[number], self.ratios[number]
        first, west = (cut[0] // ratio for cut in reading.span)
        down, across = frame.rows.shown(row) - first, frame.columns.shown(column) - west
        if not self._small(reading, SEEN, ratio)[np.ix_(down, across)].any():
            return None
        images = [self._small(reading, name, ratio) for name in self.described[number]["images"]]
        stack = [image[:, down[:, None], across] for image in images]
        reading.tiles += 1
        try:
            return self._predictor(number).window(np.concatenate(stack))
        except torch.OutOfMemoryError as error:
            raise ArtifactError("the memory of the GPU is full; lower predict.tile, or --window") from error

    def _keep(self, number: int, tile: tuple[int, int], other: tuple[int, int], probs: Tensor) -> None:
        """Keep what a tile says of another window."""
        frame = self.frames[number]
        (top, bottom), (left, right) = cuts(frame.around(self.job.window(*other), self.ratios[number]))
        rows, _ = frame.rows.shared(tile[0], top, bottom)
        columns, _ = frame.columns.shared(tile[1], left, right)
        self.edges.put(self.edges.path(number, tile, other), probs[:, rows, columns].cpu().numpy())

    def write(self, reading: AreaWindow) -> Written:
        """Write the file of a window, and forget what was kept for it."""
        assert reading.planes is not None
        path = self.job.path(*reading.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [*(f"{task} {name}" for task, name in self.job.names), DISAGREEMENT, VALID]
        write_levels(path, reading.planes, names)
        self.edges.drop(reading.place)
        return Written(reading.place, int(reading.planes[-1].sum()), reading.tiles)

    # ---- networks -------------------------------------------------------------------------------------
    def _folder(self, member: Member) -> Path:
        run = self.job.run
        return run.store.require(run.graph.checkpoint(member.model, member.fold))

    def _frame(self, number: int) -> Frame:
        """Lay a network's tiles over the area as it sees it."""
        predictor, ratio = self._predictor(number), self.ratios[number]
        height, width = (side // ratio for side in self.job.grid.shape)
        return Frame.of((height, width), predictor.tile, predictor.overlap, predictor.network.stride, predictor.pad)

    def _predictor(self, number: int) -> Predictor:
        """Return a network that is ready to predict; as many are kept as fit."""
        if number in self.predictors:
            self.predictors.move_to_end(number)
            return self.predictors[number]
        job, member = self.job, self.job.members[number]
        run, folder = job.run, self._folder(member)
        task, model = run.competition.tasks[member.task], run.config.models[member.model]
        refuse_other_classes(folder, self.described[number]["classes"], task.classes)
        weight = (folder / checkpoint.WEIGHTS).stat().st_size
        room = KEPT if self.device.type == "cpu" else torch.cuda.get_device_properties(self.device).total_memory // 2
        while self.predictors and (len(self.predictors) + 1) * weight > room:
            self.predictors.popitem(last=False)
        looks = run.predict_of(member.model).model_copy(update={"tta": job.variant.tta})
        network = checkpoint.load_network(folder)
        self.predictors[number] = Predictor(network, task.activate, looks, model.view, self.device, model.pad)
        return self.predictors[number]


def ratio_of(run: Run, member: Member) -> int:
    """Return how many pixels of an area to a side are one that a network sees: 1, or as its view shrinks scenes.

    ConfigError for views that depend on the size of a scene, and others that windows could not tell to a pixel.
    """
    view, scales = run.config.models[member.model].view, run.config.predict.scales
    ratio = 1 / view.scale
    if view.size or view.pixel_size or tuple(scales) != (1.0,) or ratio not in RATIOS:
        allowed = ", ".join(f"{1 / one:g}" for one in RATIOS)
        raise ConfigError(f"models.{member.model}.view, predict.scales: expected a view.scale of {allowed} and no "
                          "other size or scale for an area, got others; choose its pixels by --pixel-size")  # fmt: skip
    return int(ratio)
