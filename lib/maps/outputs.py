"""What is made of the rasters of a finished area: objects in a GeoPackage and as GeoJSON, counts, styles, a page."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio.features import shapes as traced
from rasterio.windows import Window
from tqdm import tqdm

from lib.errors import ArtifactError, ConfigError
from lib.maps import footprints, outlines, page, sources, styles, summary, vectors
from lib.maps.area_file import Area
from lib.maps.polygons import BLOCK, NO_DATA, Finder, Layers, Objects
from lib.maps.vectors import Legend
from lib.settings import one_of

PACKAGE, GEOJSON, PAGE = "objects.gpkg", "objects.geojson", "map.html"
CLASSES_CSV, CELLS_CSV = "summary.csv", "cells.csv"
OVERVIEW = 1024
"""Longest side in pixels at which the outline of what was seen (layer "area") is traced."""


@dataclass(frozen=True)
class OutputOptions:
    """How objects are made and shown."""

    outlines: str = "pixels"
    """What outlines are: on the edges of pixels, "simple" or "regular" (``outlines.py``)."""
    part: float | None = None
    """Objects that touch are parted, each part beginning where the probability is at least this; None: not parted."""
    part_by: str | None = None
    """By which levels; None: by those of the task that finds objects without a class."""
    apart: bool = False
    """Whether touching pixels of different classes are different objects."""
    least_area: float = 0.0
    """Square metres of the smallest object that is kept, by its pixels."""
    cell: float = 250.0
    """Side of a cell in metres in which objects are counted."""
    block: int = BLOCK
    """Rows and columns that are read at once; nothing but the time depends on it."""

    def faults(self) -> list[str]:
        """Return what is wrong with them, in sentences."""
        found = []
        if self.outlines not in outlines.KINDS:
            found.append(one_of("outlines", self.outlines, outlines.KINDS))
        if self.part is not None and not 0 < self.part <= 1:
            found.append(f"part: expected a probability above 0, at most 1, got {self.part}")
        if self.part is not None and self.apart:
            found.append("part: parts objects that may have several classes, so it does not go with apart; remove one")
        if self.part is None and self.part_by is not None:
            found.append("part_by: says by which levels objects are parted, but part is not stated; state it")
        if not self.least_area >= 0:
            found.append(f"least_area: expected square metres, 0 or more, got {self.least_area}")
        if not self.cell > 0:
            found.append(f"cell: expected metres above 0, got {self.cell}")
        return found

    def finder(self, layers: Layers, classes: Sequence[str], tasks: Mapping[str, Sequence[str]]) -> Finder:
        """Return what finds objects as asked. tasks: task -> names of its levels. Raises ConfigError where it is not
        known by which levels they are to be parted."""
        parting = None
        if self.part is not None:
            by = self.part_by or seeding(tasks, classes)
            if by is None:
                raise ConfigError(f"part_by: expected one of {', '.join(layers.levels)}, got none; no task of "
                                  "the experiment finds objects without a class, so state by whose levels")  # fmt: skip
            if by not in layers.levels:
                raise ConfigError(one_of("part_by", by, [*layers.levels]))
            parting = by, int(np.ceil(self.part * 255))
        return Finder(layers, len(classes), self.block, self.apart, parting)


def seeding(tasks: Mapping[str, Sequence[str]], classes: Sequence[str]) -> str | None:
    """Return the levels that tell objects from what is none: the first of a task that has no class of the answer, or
    those of the only class; None where there are neither."""
    others = [names for names in tasks.values() if not {*names} & {*classes}]
    if others:
        return others[0][0]
    return classes[0] if len(classes) == 1 and any(classes[0] in names for names in tasks.values()) else None


def add_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags of ``OutputOptions`` to a command."""
    said = {
        "outlines": "outlines on the edges of pixels (default), with fewer corners, or regular",
        "part": "part objects that touch: each part begins where the probability is at least this",
        "part-by": "the class whose probability that is (default: that of the task that finds objects)",
        "apart": "touching pixels of different classes are different objects",
        "least-area": "leave out objects of fewer square metres (default: none)",
        "cell": "side of the cells in which objects are counted (default: %(default)g)",
    }
    flags.add_argument("--outlines", choices=outlines.KINDS, default=OutputOptions.outlines, help=said["outlines"])
    flags.add_argument("--part", type=float, metavar="PROBABILITY", help=said["part"])
    flags.add_argument("--part-by", metavar="CLASS", help=said["part-by"])
    flags.add_argument("--apart", action="store_true", help=said["apart"])
    flags.add_argument(
        "--least-area", type=float, default=OutputOptions.least_area, metavar="M2", help=said["least-area"]
    )
    flags.add_argument("--cell", type=float, default=OutputOptions.cell, metavar="METRES", help=said["cell"])


def options_of(args: argparse.Namespace) -> OutputOptions:
    """Return the options that flags state. Raises ConfigError with all that is wrong with them."""
    options = OutputOptions(args.outlines, args.part, args.part_by, args.apart, args.least_area, args.cell)
    if faults := options.faults():
        raise ConfigError("; ".join(faults))
    return options


def require_libraries() -> None:
    """Raise ConfigError where a library is missing that vectors need."""
    for name in ("geopandas", "pyogrio", "pyproj"):
        vectors.library(name)


def write_all(folder: Path, given: Path | None = None, pictures: Mapping[str, np.ndarray] | None = None,
              options: OutputOptions | None = None) -> list[str]:  # fmt: skip
    """Write beside the rasters of an area what people and a GIS open; returns sentences on it.

    folder: has area.json and its rasters. given: a file of footprints, which get classes instead of the objects that
    the networks found. pictures: name of an image -> (h, w, 3) uint8 RGB of the whole grid at any size
    (``page.preview_size``), for the page. Raises ConfigError for options and missing libraries, ArtifactError for an
    area that is not whole, DataError for footprints.
    """
    options = options or OutputOptions()
    if faults := options.faults():
        raise ConfigError("; ".join(faults))
    require_libraries()
    area = Area.read(Path(folder))
    with sources.environment(), opened(folder, area) as layers:
        work = _Work(Path(folder), area, layers, options, Path(given) if given else None)
        return work.write(pictures or {})


@contextmanager
def opened(folder: Path, area: Area) -> Iterator[Layers]:
    """Open the rasters of an area as layers. Raises ArtifactError for one that is missing or of another size."""
    with ExitStack() as stack:

        def read(name: str) -> Callable[[Window], np.ndarray]:
            try:
                file = stack.enter_context(rasterio.open(folder / name))
            except rasterio.errors.RasterioError as error:
                raise ArtifactError(f"{folder / name}: expected a raster of the area, got {error}; make the area anew"
                                    ) from error  # fmt: skip
            if file.shape != area.grid.shape:
                raise ArtifactError(f"{folder / name}: expected {area.grid.shape} rows and columns, as area.json says, "
                                    f"got {file.shape}; make the area anew")  # fmt: skip
            return lambda window: file.read(1, window=window)

        levels = {name: read(file) for name, file in area.levels.items()}
        if area.disagreement:
            levels[vectors.DISAGREEMENT] = read(area.disagreement)
        yield Layers(area.grid.shape, read(area.answer), levels)


@dataclass
class _Work:
    folder: Path
    area: Area
    layers: Layers
    options: OutputOptions
    given: Path | None

    def write(self, pictures: Mapping[str, np.ndarray]) -> list[str]:
        grid, legend = self.area.grid, Legend.of(self.area)
        self.notes: list[str] = []
        counted = summary.Summary(grid, legend.classes, self.options.cell)
        shown, place = page.Gathered(), {name: number for number, name in enumerate(legend.classes)}
        with vectors.opened(self.folder / PACKAGE, self.folder / GEOJSON) as writer:
            for frame in self.frames(legend):
                writer.add(frame)
                classes = frame["class"].map(place).fillna(-1).to_numpy(np.int64)
                drawn = vectors.moved(np.asarray(frame.geometry.array), ~grid.transform)
                counted.add(classes, frame["area_m2"].to_numpy(float), _centres(drawn))
                shown.add(frame, drawn, classes)
            writer.flush()
            self.beside(writer.package, counted, legend)
        notes = [*self.area.notes, *self.notes]
        page.write(self.folder / PAGE, grid, legend, shown, pictures, notes)
        return [*self.said(counted, writer.rows), *self.notes]

    def frames(self, legend: Legend) -> Iterator[Any]:
        """Yield the objects in tables; an empty one first, so that a file without objects has its columns."""
        grid, classes = self.area.grid, len(legend.classes)
        if self.given is not None:
            found = footprints.read(self.given, grid)
            self.notes += found.notes
            measured = footprints.measured(self.layers, found.outlines, classes, self.options.block)
            frame = footprints.graded(measured, found, grid, legend)
            if unknown := int(frame["class"].isna().sum()):
                self.notes.append(f"{unknown} of {len(frame)} footprints lie where nothing is known: without a class")
            yield frame
            return
        tasks: dict[str, list[str]] = {}
        for name, file in self.area.levels.items():
            tasks.setdefault(file.partition("_")[0], []).append(name)  # their files are called <task>_<class>
        finder = self.options.finder(self.layers, legend.classes, tasks)
        yield vectors.table(Objects.none(classes, len(legend.levels)), grid, legend, self.options.outlines)
        small = 0
        for batch in tqdm(finder, "objects", leave=False, disable=None):
            large = batch.pixels * grid.pixel_area >= self.options.least_area
            small += int((~large).sum())
            yield vectors.table(batch.only(large), grid, legend, self.options.outlines)
        if small:
            self.notes.append(f"{small:,} objects of less than {self.options.least_area:g} m2 were left out")
        for box in finder.too_large:
            self.notes.append(
                f"an object of {box.height} x {box.width} pixels at row {box.row_off}, column {box.col_off} was left "
                "out of the polygons: that is no object but an answer that fills the raster"
            )

    def beside(self, package: Path, counted: summary.Summary, legend: Legend) -> None:
        """Write the other layers, the styles and the tables."""
        cells, table = counted.cells(), counted.table()
        vectors.write_layer(package, vectors.CELLS, cells)
        vectors.write_layer(package, vectors.AREA, self.seen(legend))
        vectors.write_layer(package, "summary", table)
        colours = {name: legend.colours.get(name, styles.GREY) for name in legend.classes}
        made = {vectors.OBJECTS: styles.objects_qml(colours), vectors.CELLS: styles.cells_qml()}
        styles.write_into(package, made)
        levels = [*self.area.levels.values(), *filter(None, [self.area.disagreement])]
        styles.write(self.folder, made | {Path(name).stem: styles.levels_qml() for name in levels})
        summary.write_csv(self.folder / CLASSES_CSV, table)
        summary.write_csv(self.folder / CELLS_CSV, cells)

    def seen(self, legend: Legend) -> Any:
        """Return a GeoDataFrame of one row: the outline of where anything is known, to a pixel of an overview."""
        grid = self.area.grid
        height, width = page.preview_size(grid, OVERVIEW)
        with rasterio.open(self.folder / self.area.answer) as file:
            known = (file.read(1, out_shape=(height, width)) != NO_DATA).astype(np.uint8)
        found = [shapely.geometry.shape(geometry) for geometry, _ in traced(known, mask=known > 0)]
        scale = rasterio.Affine.scale(grid.width / width, grid.height / height)
        whole = vectors.moved(vectors.moved(np.array([shapely.MultiPolygon(found)], object), scale), grid.transform)
        return vectors.placed({"notes": [" ".join(self.area.notes)]}, whole, grid.crs, legend)

    def said(self, counted: summary.Summary, rows: int) -> list[str]:
        """Say what was found and where it lies."""
        total = counted.table().iloc[-1]
        each = ", ".join(f"{name} {count:,}" for name, count in zip(counted.classes, counted.objects.tolist()))
        what = "footprints" if self.given is not None else "objects"
        return [
            f"{self.folder / PACKAGE}: {rows:,} {what} ({each}), {total['area_m2']:,.0f} m2; the same in {GEOJSON}",
            f"counts per class in {CLASSES_CSV}, per cell of {self.options.cell:g} m in {CELLS_CSV}",
            f"{self.folder / PAGE}: the result over the images, opens without a network",
        ]


def _centres(shapes: np.ndarray) -> np.ndarray:
    """Return the centroids (N, 2) of shapes."""
    return shapely.get_coordinates(shapely.centroid(shapes)).reshape(-1, 2)
