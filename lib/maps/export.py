"""Objects of a submission on the map: ``python -m lib.maps export``.

Of every scene whose place on Earth is known, the answer becomes polygons in a GeoPackage and in GeoJSON, with the
probabilities of stage 05 beside their classes. A scene's place is told by its image (GeoTIFF), or fitted to a label
that has its outlines in pixels and in degrees.

    python -m lib.maps export --config configs/xview2_cpu.yaml --out out
    python -m lib.maps export --config configs/xview2_cpu.yaml --split test --submission theirs --out out
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rasterio.crs import CRS

from lib.competitions.contract import SUBMISSION, Competition, Scene
from lib.errors import ArtifactError, DataError
from lib.maps import outputs, styles, vectors
from lib.maps.grid import Grid
from lib.maps.outputs import OutputOptions
from lib.maps.polygons import Layers, Objects
from lib.maps.vectors import Legend
from lib.run import cli
from lib.run.cli import Run
from lib.scenes.georeference import Location
from lib.scenes.probs import file_name, read_levels
from lib.settings import some
from lib.stages.folds import recorded_places


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--submission", type=Path, metavar="FOLDER",
                       help=f"with --split: a folder with another {SUBMISSION} than that of stage 06")  # fmt: skip
    flags.add_argument("--out", type=Path, metavar="FOLDER", help="where files go (default: maps/ of the experiment)")
    outputs.add_flags(flags)
    args = flags.parse_args(arguments)
    options = outputs.options_of(args)
    if args.submission is not None and args.split is None:
        flags.error("--submission: state --split oof or --split test, whose scenes it answers")
    for name in ("geopandas", "pyogrio", "pyproj"):
        vectors.library(name)
    run = cli.open_run(args)
    out = args.out or run.store.root / "maps"
    splits, nowhere = [split for split in run.splits if run.has_split(split)], []
    for split in splits:
        try:
            cli.say("\n".join(export(run, split, out, args.submission, options)))
        except DataError as error:  # of no scene of this split is the place known
            nowhere.append(str(error))
    if len(nowhere) == len(splits):
        raise DataError("; ".join(nowhere))
    for line in nowhere:
        cli.say(line)
    return 0


def export(run: Run, split: str, out: Path, submission: Path | None, options: OutputOptions) -> list[str]:
    """Write what a submission answers for the scenes of a split; returns sentences on it.

    Raises DataError where no scene of the split has a place, ArtifactError for a stage that has to be run first.
    """
    competition = run.competition
    scenes = competition.scenes("train" if split == "oof" else "test")
    if submission is None:
        folder = run.store.require(run.graph.submission(split))
        levels = Averages.of(run, split)
        scenes = [scene for scene in scenes if levels.has(scene)]
        made_by = run.store.manifest(run.graph.submission(split))["fingerprint"]
        model = f"{run.config.name} {made_by}"
    else:
        folder, levels, model = _folder_of(submission), Averages({}, {}), str(submission)
    known = recorded_places(run.store.folder(run.graph.folds()))
    places = {scene.id: place for scene in scenes if (place := competition.place(scene) or known.get(scene.id))}
    if not places:
        raise DataError(f"{split}: expected scenes with a place on Earth, found none among {len(scenes)}; images must "
                        "be georeferenced (GeoTIFF), or labels must have their outlines in degrees, too")  # fmt: skip
    Path(out).mkdir(parents=True, exist_ok=True)
    colours = competition.raster_classes()
    package, counts = Path(out) / f"{split}.gpkg", []
    with vectors.opened(package, package.with_suffix(".geojson")) as writer:
        placed = [scene for scene in scenes if scene.id in places]
        for scene in placed:
            legend = Legend([*colours], colours, levels.names, scene.domain, model)
            frame = scene_objects(_Answered(competition, folder, scene), places[scene.id], levels, legend, options)
            counts.append(frame[["class", "area_m2"]])
            writer.add(frame)
        writer.flush()
        style = styles.objects_qml(colours)
        styles.write_into(writer.package, {vectors.OBJECTS: style})
    styles.write(Path(out), {split: style})
    return [*_said(split, package, pd.concat(counts), len(places), len(scenes)),
            *_without([scene.id for scene in scenes if scene.id not in places], split)]  # fmt: skip


def _said(split: str, package: Path, found: pd.DataFrame, placed: int, scenes: int) -> Iterator[str]:
    each = ", ".join(f"{name} {count:,}" for name, count in found["class"].value_counts().items())
    yield (f"{package}: {len(found):,} objects ({each or 'none'}), {found['area_m2'].sum():,.0f} m2, in {placed} of "
           f"{scenes} scenes ({split}); the same in {package.stem}.geojson")  # fmt: skip


def _without(scenes: Sequence[str], split: str) -> list[str]:
    if not scenes:
        return []
    return [f"{split}: the place of {len(scenes)} scenes is not known, so they are left out: {some(scenes)}"]


def _folder_of(submission: Path) -> Path:
    """Return the folder of a submission, from which scenes are read. Raises DataError where there is none."""
    folder = submission.parent if submission.name == SUBMISSION else submission
    if not (folder / SUBMISSION).is_file():
        raise DataError(f"{submission}: expected a folder in which a {SUBMISSION} lies, found none")
    return folder


@dataclass(frozen=True)
class Averages:
    """The averaged levels of stage 05 by scene."""

    folders: Mapping[str, Path]
    """Task -> folder of its files."""
    classes: Mapping[str, tuple[str, ...]]
    """Task -> names of its channels."""
    check: Callable[[Path], Path] = Path
    """Returns the path of a file whose bytes are those that were written."""

    @classmethod
    def of(cls, run: Run, split: str) -> "Averages":
        """Return the averages of a split. Raises ArtifactError that names the stage to run first."""
        folder = run.store.require(run.graph.blend(split))
        tasks = dict.fromkeys(model.task for model in run.config.models.values())
        return cls({task: folder / task for task in tasks},
                   {task: run.competition.tasks[task].classes for task in tasks}, run.store.check)  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Return a name for each plane of ``read``: the class, of a second task that has it, too, "<task> <class>"."""
        found: list[str] = []
        for task, classes in self.classes.items():
            found += [f"{task} {name}" if name in found else name for name in classes]
        return found

    def has(self, scene: Scene) -> bool:
        """Tell whether a scene has been averaged."""
        return all((folder / file_name(scene.id)).is_file() for folder in self.folders.values())

    def read(self, scene: Scene) -> dict[str, np.ndarray]:
        """Return the levels of a scene, (H, W) uint8 by name."""
        planes = [plane for task, folder in self.folders.items()
                  for plane in read_levels(self.check(folder / file_name(scene.id)), self.classes[task])[0]
                  ]  # fmt: skip
        return dict(zip(self.names, planes, strict=True))


@dataclass(frozen=True)
class _Answered:
    """A scene and where its answer lies."""

    competition: Competition
    folder: Path
    scene: Scene

    def numbers(self, place: Location) -> np.ndarray:
        """Return the class numbers of the answer (H, W). Raises ArtifactError for an answer of another size."""
        found = self.competition.class_raster(self.competition.read_submission(self.folder, self.scene))
        if found.shape != place.size:
            raise ArtifactError(f"{self.folder}: scene {self.scene.id}: expected an answer of {place.size} rows and "
                                f"columns, as its place has, got {found.shape}; run stage 01 with --force")  # fmt: skip
        return found


def scene_objects(
    answered: _Answered, place: Location, levels: Averages, legend: Legend, options: OutputOptions
) -> Any:
    """Return the objects of one scene as a GeoDataFrame in longitude and latitude: the columns of ``vectors.table``,
    ``scene`` first, and ``place``, which says who told it."""
    numbers = answered.numbers(place)
    layers = Layers.of_arrays(numbers, levels.read(answered.scene))
    grid = Grid(CRS.from_user_input(place.crs), place.affine, place.size[1], place.size[0])
    none = Objects.none(len(legend.classes), len(legend.levels))
    found = [batch.only(batch.pixels * grid.pixel_area >= options.least_area)
             for batch in options.finder(layers, legend.classes, levels.classes)] or [none]  # fmt: skip
    frame = pd.concat([vectors.table(one, grid, legend, options.outlines) for one in found])
    frame.insert(0, "scene", answered.scene.id)
    frame.insert(len(frame.columns) - 1, "place", place.told_by)
    return frame.to_crs(vectors.WGS84)
