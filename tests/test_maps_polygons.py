"""Objects of a class raster: nothing is lost or added, and nothing depends on how the raster is read."""

import numpy as np
import pytest
import shapely
import skimage
from rasterio.features import rasterize
from scipy import ndimage

from lib.maps import polygons
from lib.maps.outlines import LEAST, RECTANGLE, outlined, regular
from lib.maps.polygons import NO_DATA, Finder, Layers, part


def noise(height: int, width: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return blobs of several classes with a rim without data, and levels."""
    rng = np.random.default_rng(seed)
    inside = ndimage.gaussian_filter(rng.random((height, width)), 1.5) > 0.5
    answer = inside * rng.integers(1, classes + 1, (height, width))
    answer[:3, : width // 2] = NO_DATA
    return answer.astype(np.uint8), {"a": rng.integers(0, 256, (height, width)).astype(np.uint8)}


def found(answer, levels=None, classes=3, **options) -> dict[int, tuple]:
    """Return first pixel -> (outline, votes, sums) of all objects."""
    objects = {}
    for batch in Finder(Layers.of_arrays(answer, levels), classes, **options):
        for row in zip(batch.first.tolist(), batch.outlines, batch.votes.tolist(), batch.sums.tolist(), strict=True):
            assert row[0] not in objects
            objects[row[0]] = row[1:]
    return objects


@pytest.mark.parametrize("apart", [False, True])
def test_polygons_drawn_again_are_the_raster(apart):
    answer, levels = noise(37, 41)
    objects = found(answer, levels, block=8, apart=apart)
    known = np.where(answer == NO_DATA, 0, answer)
    value = {first: known.flat[first] if apart else 1 for first in objects}
    drawn = rasterize([(outline, value[first]) for first, (outline, *_) in objects.items()], answer.shape)
    assert np.array_equal(drawn, known if apart else known > 0)
    assert sum(outline.area for outline, *_ in objects.values()) == np.count_nonzero(known)
    assert all(outline.is_valid and outline.geom_type == "Polygon" for outline, *_ in objects.values())


def test_objects_are_those_of_another_library():
    answer, levels = noise(50, 60, seed=3)
    objects = found(answer, levels, block=16)
    labels, count = ndimage.label((answer > 0) & (answer != NO_DATA))
    assert len(objects) == count
    for first, (outline, votes, sums) in objects.items():
        inside = labels == labels.flat[first]
        assert np.flatnonzero(inside)[0] == first and outline.area == inside.sum()
        assert votes == [0, *((answer[inside] == number).sum() for number in (1, 2, 3))]
        assert sums == [levels["a"][inside].sum(dtype=int)]


@pytest.mark.parametrize("options", [{}, {"apart": True}, {"parting": ("a", 200)}], ids=["whole", "apart", "parted"])
def test_the_size_of_a_block_changes_nothing(options):
    answer, levels = noise(33, 48, seed=1)
    levels["a"] = np.rint(255 * ndimage.gaussian_filter(levels["a"] / 255, 1)).astype(np.uint8)
    levels["a"] = np.where(levels["a"] > 130, 230, levels["a"]).astype(np.uint8)
    whole = found(answer, levels, block=1000, **options)
    assert len(whole) >= 5
    for block in (4, 9, 16, 29):
        assert found(answer, levels, block=block, **options) == whole, block


def test_a_house_across_four_blocks_is_one():
    answer = np.zeros((16, 16), np.uint8)
    answer[5:11, 6:12] = 2
    ((outline, votes, _),) = found(answer, block=8).values()
    assert outline.equals(shapely.box(6, 5, 12, 11)) and votes == [0, 0, 36, 0]


def test_arms_that_meet_below_are_one_object():
    answer = np.zeros((12, 12), np.uint8)
    answer[0:12, 1] = answer[0:12, 9] = answer[11, 1:10] = 1  # a U, whose arms meet in the last row
    assert len(found(answer, block=4)) == 1
    answer[11] = 0
    assert len(found(answer, block=4)) == 2


def test_touching_classes_are_one_object_or_two():
    answer = np.zeros((6, 8), np.uint8)
    answer[1:5, 1:4], answer[1:5, 4:7] = 1, 3
    assert [votes for _, votes, _ in found(answer).values()] == [[0, 12, 0, 12]]
    assert [votes for _, votes, _ in found(answer, apart=True).values()] == [[0, 12, 0, 0], [0, 0, 0, 12]]


def test_pixels_that_touch_at_a_corner_are_two_objects_and_a_hole_stays():
    answer = np.zeros((8, 8), np.uint8)
    answer[0, 0] = answer[1, 1] = 1
    answer[3:8, 3:8], answer[5, 5] = 1, 0
    objects = found(answer, block=4)
    assert [outline.area for outline, *_ in objects.values()] == [1, 1, 24]
    assert len(list(objects.values())[2][0].interiors) == 1


@pytest.mark.parametrize("value", [0, NO_DATA])
def test_nothing_there_is_no_object(value):
    assert found(np.full((9, 9), value, np.uint8), block=4) == {}


def test_what_fills_the_raster_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(polygons, "MOST", 50)
    answer = np.zeros((20, 20), np.uint8)
    answer[2:18, 2:18], answer[0, 0] = 1, 2
    finder = Finder(Layers.of_arrays(answer), 2, block=8)
    assert [len(batch) for batch in finder] == [1]
    assert [(box.height, box.width) for box in finder.too_large] == [(16, 16)]


def test_no_window_is_larger_than_a_block_or_an_object():
    answer, _ = noise(200, 150, seed=5)
    asked = []

    def read(window):
        asked.append(window.height * window.width)
        return answer[window.toslices()]

    objects = [row for batch in Finder(Layers(answer.shape, read), 3, block=16) for row in batch.outlines]
    largest = max((box[2] - box[0]) * (box[3] - box[1]) for box in shapely.bounds(objects))
    assert max(asked) <= max(16 * 16, largest)


def test_houses_whose_walls_touch_are_parted_at_the_saddle():
    level = np.zeros((12, 21), np.uint8)
    level[2:10, 2:19] = 140
    level[3:9, 3:9] = level[3:9, 12:18] = 250
    answer = (level > 0).astype(np.uint8)
    answer[0, 0] = 1  # without a seed: it stays
    level[0, 0] = 130
    assert len(found(answer, {"a": level})) == 2
    objects = found(answer, {"a": level}, block=7, parting=("a", 204))
    assert sorted(outline.area for outline, *_ in objects.values())[0] == 1 and len(objects) == 3
    seeds = skimage.measure.label(level >= 204)
    for outline, *_ in objects.values():
        assert len(set(seeds[rasterize([outline], answer.shape) > 0].tolist()) - {0}) <= 1
    assert sum(outline.area for outline, *_ in objects.values()) == answer.sum()


def test_parts_never_leave_their_object():
    labels = skimage.measure.label(noise(40, 40, seed=2)[0] > 0, connectivity=1).astype(np.int32)
    parts = part(labels, np.random.default_rng(0).integers(0, 256, labels.shape).astype(np.uint8), 230)
    assert ((parts > 0) == (labels > 0)).all()
    pairs = np.unique(np.column_stack([parts.ravel(), labels.ravel()]), axis=0)
    assert len(np.unique(pairs[:, 0])) == len(pairs)  # a part has one object


def test_parting_objects_that_are_apart_by_class_is_refused():
    with pytest.raises(ValueError, match="parting: goes with objects of several classes"):
        Finder(Layers.of_arrays(np.zeros((2, 2), np.uint8)), 1, apart=True, parting=("a", 1))


# ---- outlines -------------------------------------------------------------------------------------------
def pixels(shape: shapely.Polygon, size: int = 60) -> shapely.Polygon:
    """Return a shape as a raster has it."""
    ((outline, *_),) = found(rasterize([shape], (size, size)).astype(np.uint8)).values()
    return outline


def iou(one, other) -> float:
    return one.intersection(other).area / one.union(other).area


@pytest.mark.parametrize("angle", [0, 17, 45, 80])
def test_a_rectangle_comes_back_as_a_rectangle(angle):
    house = shapely.affinity.rotate(shapely.box(15, 20, 45, 38), angle)
    shape, how = regular(seen := pixels(house), 1.0)
    assert how == "rectangle" and len(shape.exterior.coords) == 5
    assert iou(shape, house) > 0.93 and shape.area == pytest.approx(seen.area, rel=1e-9)


@pytest.mark.parametrize("angle", [0, 20, 45])
def test_a_house_with_a_wing_has_right_angles(angle):
    house = shapely.affinity.rotate(shapely.box(10, 12, 50, 28).union(shapely.box(10, 28, 24, 46)), angle, (30, 30))
    shape, how = regular(seen := pixels(house), 1.0)
    assert how == "right angles" and iou(shape, house) > 0.9 and iou(shape, seen) >= LEAST
    sides = np.diff(shapely.get_coordinates(shape.exterior), axis=0)
    turns = (sides * np.roll(sides, -1, axis=0)).sum(axis=1) / np.hypot(*sides.T) ** 2
    assert np.abs(turns).max() < 1e-6 and len(sides) == 6


def test_what_is_not_built_in_right_angles_is_made_simple():
    tree = shapely.affinity.rotate(shapely.Polygon([(10, 10), (50, 12), (12, 50)]), 7)
    shape, how = regular(seen := pixels(tree), 1.0)
    assert how == "simple" and len(shape.exterior.coords) < len(seen.exterior.coords) / 4
    assert iou(shape, seen) > RECTANGLE


def test_a_court_stays_open():
    house = shapely.box(10, 10, 50, 50).difference(shapely.box(25, 25, 35, 35))
    shape, how = regular(pixels(house), 1.0)
    assert how == "rectangle" and len(shape.interiors) == 1 and shape.area == pytest.approx(1500, abs=20)


def test_one_pixel_has_an_outline_of_every_kind():
    pixel = np.array([shapely.box(3, 4, 4, 5)], object)
    for kind in ("pixels", "simple", "regular"):
        (shape,), _ = outlined(pixel, kind, (0.5, 0.5))
        assert shape.is_valid and shape.area == pytest.approx(1)


def test_right_angles_are_those_on_the_ground():
    house = shapely.affinity.rotate(shapely.box(10, 10, 40, 22), 30)
    flat = shapely.affinity.scale(house, 0.5, 1, origin=(0, 0))  # pixels twice as wide as high
    (shape,), (how,) = outlined(np.array([pixels(flat)], object), "regular", (2.0, 1.0))
    sides = np.diff(shapely.get_coordinates(shape.exterior) * (2, 1), axis=0)
    assert how == "rectangle" and abs(sides[0] @ sides[1]) < 1e-6
    assert np.array_equal(outlined(np.array([flat], object), "pixels", (2.0, 1.0))[0], np.array([flat], object))
