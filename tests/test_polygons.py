"""Outlines to masks: the official rule, holes, order, borders, and the official targets themselves."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from lib.errors import DataError
from lib.scenes.polygons import parse, rasterize
from lib.scenes.raster import read_mask

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data"))
CODES = {"no-damage": 1, "un-classified": 1, "minor-damage": 2, "major-damage": 3, "destroyed": 4}


def slow(polygons, shape):
    """Draw one polygon after the other, each on a mask of its own, as the official script does."""
    mask = np.zeros(shape, np.uint8)
    for text, value in polygons:
        polygon = shapely.from_wkt(text)
        one = np.zeros(shape, np.uint8)
        cv2.fillPoly(one, [np.array(polygon.exterior.coords).round().astype(np.int32)], 1)
        for ring in polygon.interiors:
            cv2.fillPoly(one, [np.array(ring.coords).round().astype(np.int32)], 0)
        mask[one > 0] = value
    return mask


def test_hand_made_square_with_a_hole():
    square = "POLYGON ((1.4 1.4, 7.4 1.4, 7.4 7.4, 1.4 7.4, 1.4 1.4), (2.6 2.6, 5.4 2.6, 5.4 5.4, 2.6 5.4, 2.6 2.6))"
    expected = np.array(
        [
            [0, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 4, 4, 4, 4, 4, 4, 4, 0],
            [0, 4, 4, 4, 4, 4, 4, 4, 0],
            [0, 4, 4, 0, 0, 0, 4, 4, 0],
            [0, 4, 4, 0, 0, 0, 4, 4, 0],
            [0, 4, 4, 0, 0, 0, 4, 4, 0],
            [0, 4, 4, 4, 4, 4, 4, 4, 0],
            [0, 4, 4, 4, 4, 4, 4, 4, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
    )
    mask = rasterize([(square, 4)], (9, 9))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_vertices_are_rounded_not_cut():
    assert rasterize([("POLYGON ((1.6 1.6, 3.4 1.6, 3.4 3.4, 1.6 3.4, 1.6 1.6))", 1)], (6, 6)).sum() == 4  # 2..3
    assert rasterize([("POLYGON ((0.5 0.5, 2.5 0.5, 2.5 2.5, 0.5 2.5, 0.5 0.5))", 1)], (6, 6)).sum() == 9  # 0..2


def test_a_thin_triangle_has_no_pixel_too_many():
    """OpenCV before 4.11 draws a fourth pixel, (1, 2), and differs from xBD's targets wherever an edge is steep."""
    mask = rasterize([("POLYGON ((1 1, 0 3, 0 2, 1 1))", 1)], (5, 5))
    assert np.argwhere(mask).tolist() == [[1, 1], [2, 0], [3, 0]]


def test_later_polygons_cover_earlier_ones_and_show_through_holes():
    below, ring = shapely.box(0, 0, 9, 9), shapely.box(1, 1, 8, 8) - shapely.box(3, 3, 6, 6)
    mask = rasterize([(below, 1), (ring, 2)], (10, 10))
    assert (mask[0, 0], mask[2, 2], mask[4, 4]) == (1, 2, 1)
    assert (rasterize([(ring, 2), (below, 1)], (10, 10)) == 1).all()


def test_random_polygons_equal_the_slow_way():
    rng = np.random.default_rng(0)
    polygons = []
    for value in rng.integers(1, 5, 60).tolist():
        outline = shapely.Point(rng.uniform(-10, 138, 2)).buffer(rng.uniform(1, 30), quad_segs=3)
        hole = shapely.affinity.scale(outline, 0.5, 0.4) if value > 2 else shapely.Polygon()
        polygons.append((outline.difference(hole).wkt, value))
    np.testing.assert_array_equal(rasterize(polygons, (128, 96)), slow(polygons, (128, 96)))


def test_multipolygons_empty_polygons_and_none():
    two = "MULTIPOLYGON (((0 0, 3 0, 3 3, 0 3, 0 0)), ((10 10, 13 10, 13 13, 10 13, 10 10)))"
    assert rasterize([(two, 1), ("POLYGON EMPTY", 2)], (20, 20)).sum() == 32
    assert not rasterize([], (20, 20)).any()
    assert len(parse([])) == 0


@pytest.mark.parametrize(
    "text",
    [
        "POLYGON ((0 0, 1 0",
        "POINT (0 0)",
        "",
        None,
        ["POINT (0 0)"],
        "POLYGON ((0 0, nan 1, 1 1, 0 0))",
        "POLYGON ((0 0, 1e12 1, 1 1, 0 0))",
    ],  # fmt: skip
)
def test_bad_polygons_are_named(text):
    good = "POLYGON ((0 0, 1 0, 1 1, 0 0))"
    with pytest.raises(DataError, match="polygon 1: expected"):
        rasterize([(good, 1), (text, 2)], (8, 8))


@pytest.mark.skipif(not (SHARED / "xview2_metric").is_dir(), reason="needs the real tiles")
def test_real_tiles_equal_the_official_targets():
    ids = json.loads((SHARED / "xview2_metric/image_ids.json").read_text())
    buildings = 0
    for number, scene in ids.items():
        for kind, side in (("localization", "pre"), ("damage", "post")):
            path = next((SHARED / "xbd").glob(f"*/labels/{scene}_{side}_disaster.json"))
            features = json.loads(path.read_text())["features"]["xy"]
            drawn = [(f["wkt"], CODES[f["properties"].get("subtype", "no-damage")]) for f in features]
            target = read_mask(SHARED / f"xview2_metric/targets/test_{kind}_{number}_target.png")
            np.testing.assert_array_equal(rasterize(drawn, target.shape), target)
            buildings += len(features)
    assert buildings == 2 * 537
