"""The objects of a finished area get classes from a few that a person has labelled in a GIS.

Each object is described by what the networks of one model compute under it (``lib.inference.pooled``); a head learns
from the labelled ones (``lib.ensemble.adapt``) and names the classes of all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize
from rasterio.windows import Window
from tqdm import tqdm

from lib.ensemble import adapt
from lib.errors import ArtifactError, ConfigError, DataError
from lib.files import whole_path
from lib.inference.pooled import Described, Pooled
from lib.maps import sources, vectors
from lib.maps.area_file import Area
from lib.maps.outputs import PACKAGE
from lib.maps.sides import Side, learn
from lib.settings import did_you_mean

CORE, MARGIN = 1024, 128
"""Sides in pixels of the parts of an area that networks see at once, and what they see around the objects of a part."""


@dataclass
class LabelledObjects:
    """What a file of labels says of the objects of an area."""

    objects: np.ndarray
    """(L,) int: places of the labelled objects in the table."""
    classes: np.ndarray
    """(L,) int: place of each one's class in the list of classes."""
    notes: tuple[str, ...]


def objects_of(folder: Path) -> tuple[Area, Any]:
    """Return a finished area, and the GeoDataFrame of its objects or footprints. Raises ArtifactError, ConfigError."""
    area, path, pyogrio = Area.read(folder), folder / PACKAGE, vectors.library("pyogrio")
    try:
        found = pyogrio.read_dataframe(path, layer=vectors.OBJECTS)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise ArtifactError(f"{path}: expected the objects of an area, got {error}; make the area without --rasters"
                            ) from error  # fmt: skip
    if not len(found):
        raise DataError(f"{path}: has no objects that could be labelled; give --footprints when the area is made")
    return area, found


def sides_of(area: Area, names: Sequence[str]) -> dict[str, Side]:
    """Open the images of an area again, on its grid, and where they were moved to."""
    if missing := [name for name in names if name not in area.images]:
        raise ConfigError(f"the area was made without the image {missing[0]}, at which this model looks")
    sides = {name: Side(name, [sources.describe(str(path), one_band=True) for path in area.images[name]], area.grid)
             for name in area.images}  # fmt: skip
    *_, last = sides
    wide, high = area.grid.pixel
    sides[last] = sides[last].on(area.grid, (-area.shift[0] / wide, area.shift[1] / high))
    learn([*sides.values()])
    return {name: sides[name] for name in names}


def described(area: Area, sides: Mapping[str, Side], shapes: np.ndarray, networks: Sequence[Pooled]) -> Described:
    """Describe objects (N,), polygons in the CRS of the area, by several networks.

    Features stand beside each other, probabilities are their mean. The part of an object that lies further than
    MARGIN outside the CORE of its centre is not looked at.
    """
    pixels = vectors.moved(shapes, ~area.grid.transform)
    centres = shapely.get_coordinates(shapely.centroid(pixels)).reshape(-1, 2)
    cells = np.clip(centres // CORE, 0, None).astype(int)
    features: Any = None
    probs: Any = None
    encoder = 0
    for _, numbers in tqdm([*_by_cell(cells)], "objects", leave=False, disable=None):
        left, top = (max(0, int(side) * CORE - MARGIN) for side in cells[numbers[0]])
        window = Window(left, top, min(CORE + 2 * MARGIN, area.grid.width - left),
                        min(CORE + 2 * MARGIN, area.grid.height - top))  # fmt: skip
        if window.width < 1 or window.height < 1:
            continue
        image = np.concatenate([np.moveaxis(side.read(window)[0], -1, 0) for side in sides.values()])
        to_window = rasterio.Affine.translation(left, top)
        drawn = [(pixels[number], place) for place, number in enumerate(numbers, 1)]
        labels = rasterize(drawn, image.shape[1:], transform=to_window, all_touched=True, dtype=np.int32)
        found = [network(image, labels, len(numbers)) for network in networks]
        if features is None:
            features = np.zeros((len(shapes), sum(one.features.shape[1] for one in found)), np.float32)
            probs = np.zeros((len(shapes), found[0].probs.shape[1]), np.float32)
            encoder = found[0].encoder
        features[numbers] = np.concatenate([one.features for one in found], axis=1)
        probs[numbers] = np.mean([one.probs for one in found], axis=0)
    if features is None:
        raise DataError("no object lies within the area")
    return Described(features, probs, encoder)


def _by_cell(cells: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    order = np.lexsort(cells.T)
    ordered = cells[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)])
    for start, stop in zip(starts, [*starts[1:], len(order)]):
        yield (int(ordered[start, 0]), int(ordered[start, 1])), order[start:stop]


def read_labels(path: Path, column: str, objects: Any, names: Sequence[str]) -> LabelledObjects:
    """Read points or polygons with a class, from any file that GDAL reads, and find the objects that they mean.

    A point means the object that it lies in; a polygon the one that it shares most area with. Of several labels of one
    object the last counts. Raises ConfigError for a column or a class that is not there, DataError where no label means
    an object.
    """
    pyogrio, notes = vectors.library("pyogrio"), []
    try:
        given = pyogrio.read_dataframe(path)
    except pyogrio.errors.DataSourceError as error:
        raise DataError(f"{path}: expected points or polygons with a class, got {error}") from error
    if column not in given:
        raise ConfigError(f"{path}: expected a column {column!r}{did_you_mean(column, given.columns)}, found "
                          f"{', '.join(given.columns)}; name it with --column")  # fmt: skip
    if given.crs is None:
        given = given.set_crs(vectors.WGS84)
        notes.append(f"{path.name} states no CRS; it was read as longitude and latitude (WGS 84)")
    given = given.to_crs(objects.crs)
    texts, place = given[column].astype(str).str.strip(), {name: number for number, name in enumerate(names)}
    blank = given[column].isna() | (texts == "")
    if wrong := sorted(set(texts[~blank]) - place.keys()):
        raise ConfigError(f"{path}, column {column}: expected {', '.join(names)}, got {', '.join(wrong[:5])}")
    tree, meant, outside = shapely.STRtree(np.asarray(objects.geometry.array)), {}, 0
    for shape, text, empty in zip(given.geometry, texts, blank, strict=True):
        hits = tree.query(shape, predicate="intersects") if shape is not None and not empty else []
        if not len(hits):
            outside += not empty
            continue
        own = objects.geometry.array[hits]
        best = hits[int(np.argmax(shapely.area(shapely.intersection(np.asarray(own), shape))))]
        meant[int(best)] = place[text]
    if blank.any():
        notes.append(f"{path.name}: {int(blank.sum())} rows have no class and were left out")
    if outside:
        notes.append(f"{path.name}: {outside} labels lie on no object and were left out")
    if not meant:
        raise DataError(f"{path}: expected labels on the objects of the area, found none of {len(given)} there; is it "
                        "another place?")  # fmt: skip
    return LabelledObjects(np.array([*meant], int), np.array([*meant.values()], int), tuple(notes))


def write(path: Path, objects: Any, probs: np.ndarray, names: Sequence[str], labelled: LabelledObjects,
          suggested: np.ndarray) -> None:  # fmt: skip
    """Write the objects with their new classes as a GeoPackage.

    ``class`` and ``confidence`` are the new ones, ``class_before`` and ``confidence_before`` those of the area,
    ``p_<class>`` the new probability of each class, ``labelled`` whether a person has named it (whose word then
    stands, with confidence 1), ``label_next`` 1, 2, ... for those that should be labelled next.
    """
    found = objects.rename(columns={name: f"{name}_before" for name in ("class", "confidence")})
    best, sure = probs.argmax(1), probs.max(1)
    best[labelled.objects], sure[labelled.objects] = labelled.classes, 1.0
    next_ = np.zeros(len(found), int)
    next_[suggested] = np.arange(1, len(suggested) + 1)
    known = np.zeros(len(found), bool)
    known[labelled.objects] = True
    new = {"class": np.array([*names], object)[best], "confidence": np.round(sure, 4),
           **{f"p_{name}": np.round(probs[:, number], 4) for number, name in enumerate(names)},
           "labelled": known, "label_next": next_}  # fmt: skip
    found = found.drop(columns=[name for name in new if name in found]).assign(**new)
    with whole_path(path) as partial:
        vectors.write_layer(partial, vectors.OBJECTS, found)


def adapted(
    seen: Described, names: Sequence[str], labelled: LabelledObjects, count: int
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Learn from labelled objects; returns the head, (N, K) probabilities of all, and which to label next."""
    prior = adapt.normalised(seen.probs[:, -len(names) :])
    head = adapt.fit(seen.features[labelled.objects], prior[labelled.objects], labelled.classes)
    probs = head.probabilities(seen.features, prior)
    others = np.setdiff1d(np.arange(len(prior)), labelled.objects)
    suggested = others[adapt.propose(seen.features[others], probs[others], count)] if count else others[:0]
    return head, probs, suggested
