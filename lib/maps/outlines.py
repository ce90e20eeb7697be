"""Outlines on the edges of pixels become straighter ones: "simple" with fewer corners, "regular" as houses are built.

All of them work on shapely polygons whose x and y count one unit (metres), so that a right angle is one on the ground.
"""

from collections.abc import Callable, Sequence

import numpy as np
import shapely
from shapely import Polygon, affinity

KINDS = ("pixels", "simple", "regular")
"""What outlines can be asked for."""
RECTANGLE = 0.85
"""Least intersection over union of an object and its smallest rectangle for the rectangle to stand for it."""
LEAST = 0.8
"""The same for an outline of right angles, and for one with fewer corners."""
HOW = ("pixels", "simple", "rectangle", "right angles")
"""What came of an outline, as the column "outline" says it."""


def outlined(polygons: np.ndarray, kind: str, pixel: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the outlines that were asked for, (N,) shapely polygons, and of each what it is, (N,) of HOW.

    polygons: (N,) in pixels; they come back in pixels. kind: of KINDS. pixel: (width, height) of a pixel in metres.
    """
    if kind == "pixels":
        return polygons, np.full(len(polygons), "pixels")
    scale = np.array(pixel)
    tolerance = float(scale.max())
    method = regular if kind == "regular" else simple
    found = [method(polygon, tolerance) for polygon in _moved(polygons, lambda points: points * scale)]
    shapes = np.array([polygon for polygon, _ in found], object)
    return _moved(shapes, lambda points: points / scale), np.array([how for _, how in found], "U12")


def simple(polygon: Polygon, tolerance: float) -> tuple[Polygon, str]:
    """Leave out corners by Douglas and Peucker's rule: no corner was further than ``tolerance`` from what is left.

    A small object that is no longer itself then, its intersection over union being less than LEAST, keeps its pixels.
    """
    found = shapely.simplify(polygon, tolerance, preserve_topology=True)
    whole = found.geom_type == "Polygon" and found.is_valid and _iou(found, polygon) >= LEAST
    return (found, "simple") if whole else (polygon, "pixels")


def regular(polygon: Polygon, tolerance: float) -> tuple[Polygon, str]:
    """Give an object the outline of a house: its smallest rectangle in any direction, or one of right angles, or the
    simple one.

    The rectangle lies around all corners of pixels, so it is drawn in on all sides alike until it has the area of the
    pixels; it is taken where its intersection over union with these is at least RECTANGLE then. Otherwise the simple
    outline is turned so that the rectangle lies straight; each of its sides becomes a horizontal or a vertical line, as
    it is longer, in its middle (sides of one direction that follow one another are one line in their mean, weighted by
    length), and the corners are where these lines meet. That is taken where it is valid and its intersection over union
    is at least LEAST. Holes are made simple and stay where they lie within the new outline.
    """
    shell = Polygon(polygon.exterior)
    box = shapely.minimum_rotated_rectangle(shell)
    if box.geom_type == "Polygon" and _iou(drawn := _drawn_in(box, shell.area), shell) >= RECTANGLE:
        return _with_holes(drawn, polygon, tolerance), "rectangle"
    plain, how = simple(shell, tolerance)
    if box.geom_type == "Polygon" and (square := _right_angles(plain, box)) is not None:
        if _iou(square, shell) >= LEAST:
            return _with_holes(square, polygon, tolerance), "right angles"
    return _with_holes(plain, polygon, tolerance), how


def _drawn_in(box: Polygon, area: float) -> Polygon:
    """Return a rectangle whose sides all move inwards by one length, so that it has this area."""
    corners = shapely.get_coordinates(box.exterior)
    long, short = np.hypot(*(corners[1] - corners[0])), np.hypot(*(corners[2] - corners[1]))
    inwards = (long + short - np.sqrt((long + short) ** 2 - 4 * max(long * short - area, 0))) / 4  # (l-2d)(s-2d) = area
    return box.buffer(-float(inwards), join_style="mitre")


def _right_angles(plain: Polygon, box: Polygon) -> Polygon | None:
    """Return a polygon of the directions of ``box`` alone, None where its lines do not meet in a valid one."""
    corners = shapely.get_coordinates(box.exterior)
    along = corners[1] - corners[0]
    angle, centre = float(np.degrees(np.arctan2(along[1], along[0]))), plain.centroid
    points = shapely.get_coordinates(affinity.rotate(plain, -angle, centre).exterior)[:-1]
    lines = _lines(points)
    if len(lines) < 4:
        return None
    ends = []
    for (vertical, place), (_, other) in zip(lines, lines[1:] + lines[:1]):
        ends.append((place, other) if vertical else (other, place))
    found = affinity.rotate(Polygon(ends), angle, centre)
    return found if found.is_valid and found.area > 0 else None


def _lines(points: np.ndarray) -> list[tuple[bool, float]]:
    """Return the sides of a ring (N, 2) as lines that are vertical in turn: (vertical, its x or else its y)."""
    steps = np.roll(points, -1, axis=0) - points
    middle = points + steps / 2
    vertical = np.abs(steps[:, 1]) > np.abs(steps[:, 0])
    starts = np.flatnonzero(vertical != np.roll(vertical, 1))
    if not len(starts):
        return []
    lengths, lines = np.hypot(*steps.T), []
    for start, end in zip(starts, [*starts[1:], starts[0] + len(points)]):
        sides = np.arange(start, end) % len(points)
        across = middle[sides, 0 if vertical[start] else 1]
        lines.append((bool(vertical[start]), float(np.average(across, weights=lengths[sides]))))
    return lines


def _with_holes(shell: Polygon, polygon: Polygon, tolerance: float) -> Polygon:
    """Return a new shell with the holes of a polygon that lie within it, made simple."""
    holes: Sequence[Polygon] = [simple(Polygon(ring), tolerance)[0] for ring in polygon.interiors]
    kept = [hole.exterior for hole in holes if shell.contains_properly(hole)]
    return Polygon(shell.exterior, kept) if kept else Polygon(shell.exterior)


def _iou(one: Polygon, other: Polygon) -> float:
    common = one.intersection(other).area
    return common / (one.area + other.area - common)


def _moved(polygons: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return shapely.transform(polygons, change) if len(polygons) else polygons
