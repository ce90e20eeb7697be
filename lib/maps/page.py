"""The page map.html: the objects over both images, one file that opens without a network, on a phone or a desktop.

It holds the images as JPEG of at most PIXELS on their longer side, and the objects as numbers: their outlines in pixels
of the grid, or where there are more than MOST of them their centres alone, which the page says.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely

from lib.files import write_bytes
from lib.maps.grid import Grid
from lib.maps.styles import GREY
from lib.maps.vectors import Legend

PIXELS = 2048
"""Longest side of an image within the page; one of 2048 x 2048 takes about 1 MB."""
QUALITY = 80
MOST = 30_000
"""Objects of which the page draws outlines; about 100 bytes each."""
FINE = 10
"""Outlines that are not on the edges of pixels are kept to this part of a pixel."""
TEMPLATE = "map.html"


def preview_size(grid: Grid, most: int = PIXELS) -> tuple[int, int]:
    """Return (height, width) of an image of a whole grid for the page."""
    scale = min(1.0, most / max(grid.shape))
    return max(1, round(grid.height * scale)), max(1, round(grid.width * scale))


@dataclass
class Gathered:
    """The objects of a page, gathered batch by batch."""

    most: int = MOST
    rows: list[list[Any]] = field(default_factory=list)
    """Of each object: class (place in the legend, -1 of none), confidence in percent (-1 where not known), area in
    square metres, longitude, latitude, and its rings or else its centre in pixels."""
    _held: list[shapely.Geometry] = field(default_factory=list)

    def add(self, frame: Any, outlines: np.ndarray, classes: np.ndarray) -> None:
        """Add objects. frame: of ``vectors.table``; outlines: (N,) in pixels; classes: (N,) int64."""
        confidence = np.nan_to_num(frame["confidence"].to_numpy(float) * 100, nan=-1).round().astype(int)
        columns = (classes, confidence, frame["area_m2"].round(1), frame["lon"].round(6), frame["lat"].round(6))
        self.rows += [list(row) for row in zip(*(np.asarray(column).tolist() for column in columns))]
        if self.as_points:
            kept = [*self._held, *outlines] if len(self.rows) - len(outlines) <= self.most else outlines
            self._held = [] if kept is not outlines else self._held
            outlines = shapely.centroid(np.array(kept, object))
        self._held += list(outlines)

    @property
    def as_points(self) -> bool:
        """Whether there are too many objects for their outlines."""
        return len(self.rows) > self.most

    def objects(self) -> list[list[Any]]:
        """Return the rows, each with its rings: x, y of the first corner, then the steps to the others, in 1 / FINE
        of a pixel; of points the corner alone."""
        return [[*row, *_rings(shape)] for row, shape in zip(self.rows, self._held)]


def _rings(shape: shapely.Geometry) -> list[list[int]]:
    if shape.geom_type == "Point":
        return [np.rint(np.array([shape.x, shape.y]) * FINE).astype(int).tolist()]
    rings = [ring for part in shapely.get_parts(shape) for ring in (part.exterior, *part.interiors)]
    found = []
    for ring in rings:
        points = np.rint(shapely.get_coordinates(ring)[:-1] * FINE).astype(int)
        found.append(np.vstack([points[:1], np.diff(points, axis=0)]).ravel().tolist())
    return found


def write(path: Path, grid: Grid, legend: Legend, shown: Gathered, pictures: Mapping[str, np.ndarray],
          notes: Sequence[str] = ()) -> None:  # fmt: skip
    """Write the page. pictures: name ("pre", "post") -> (h, w, 3) uint8 RGB of the whole grid, at any size; the first
    two can be swiped. notes: sentences on what was left out, shown at its end."""
    import jinja2  # here, since it is needed for no raster

    said = list(notes)
    if shown.as_points:
        said.insert(0, f"{len(shown.rows)} objects are drawn as points: this page holds the outlines of at most "
                       f"{shown.most}. The GeoPackage has them all.")  # fmt: skip
    shrunk = {name: _shrunk(picture) for name, picture in list(pictures.items())[:2]}
    for name, picture in shrunk.items():
        if picture.shape[1] < grid.width:
            said.append(f"The image {name} is shown at 1 pixel for {grid.width / picture.shape[1]:.1f} of the area's.")
    wide, high = grid.pixel
    data = {
        "size": [grid.width, grid.height],
        "metres": [round(wide, 4), round(high, 4)],
        "fine": FINE,
        "points": shown.as_points,
        "classes": [{"name": name, "colour": legend.colours.get(name, GREY)} for name in legend.classes],
        "images": [{"name": name, "src": _embedded(picture)} for name, picture in shrunk.items()],
        "objects": shown.objects(),
    }
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined)
    title = legend.event or "Area"
    text = environment.get_template(TEMPLATE).render(title=title, model=legend.model, notes=said, data=data)
    write_bytes(path, text.encode())


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """Return an image (h, w, 3) uint8 at most PIXELS long."""
    scale = min(1.0, PIXELS / max(picture.shape[:2]))
    if scale == 1:
        return picture
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _embedded(picture: np.ndarray) -> str:
    """Return an image (h, w, 3) uint8 RGB as the address of a JPEG."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
