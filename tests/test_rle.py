"""Run-length text: round trips, and a slow pixel-by-pixel reading of Kaggle's rule."""

from itertools import groupby

import numpy as np
import pytest

from lib.errors import DataError
from lib.scenes import rle

RULES = [("column", 1), ("column", 0), ("row", 1), ("row", 0)]


def slow_encode(mask, order="column", origin=1):
    pixels = (mask != 0).flatten(order="F" if order == "column" else "C").tolist()
    runs, at = [], origin
    for value, group in groupby(pixels):
        length = len(list(group))
        runs += [at, length] if value else []
        at += length
    return " ".join(str(number) for number in runs)


def slow_decode(text, shape, order="column", origin=1):
    pixels = np.zeros(shape[0] * shape[1], np.uint8)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[0::2], numbers[1::2], strict=True):
        for i in range(start - origin, start - origin + length):
            pixels[i] = 1
    return pixels.reshape(shape, order="F" if order == "column" else "C")


def hand_made():
    corners = np.zeros((5, 4), np.uint8)
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    first, last = np.zeros((3, 7), np.uint8), np.zeros((3, 7), np.uint8)
    first[0, 0], last[-1, -1] = 1, 1
    wide = np.zeros((40, 10007), np.uint8)  # numbers of one to six digits, in several strips
    wide[:, [0, 1, 9999, 10006]] = 1
    wide[7, ::3] = 1
    tall = np.ones((20011, 33), np.uint8)
    tall[[0, 9998, 20010], :] = 0
    return {
        "all_ones": np.ones((3, 4), np.uint8),
        "empty": np.zeros((3, 4), np.uint8),
        "one_pixel": np.ones((1, 1), np.uint8),
        "one_background_pixel": np.zeros((1, 1), np.uint8),
        "no_pixels": np.zeros((0, 5), np.uint8),
        "corners": corners,
        "first": first,
        "last": last,
        "wide": wide,
        "tall": tall,
        "wide_full": np.ones((300, 1100), np.uint8),
    }


MASKS = hand_made()


@pytest.fixture(params=["orjson, large", "pure, small"])
def way(request, monkeypatch):
    """Each way to write and to draw: with and without orjson, as a large and as a small image."""
    if request.param == "pure, small":
        monkeypatch.setattr(rle, "_orjson", lambda: None)
    else:
        pytest.importorskip("orjson")
        monkeypatch.setattr(rle, "_CACHED", 0)
        monkeypatch.setattr(rle, "_RUNS", 7)


@pytest.mark.parametrize(("order", "origin"), RULES)
@pytest.mark.parametrize("name", MASKS)
def test_hand_made_masks(name, order, origin, way):
    mask = MASKS[name]
    text = rle.encode(mask, order, origin)
    assert text == slow_encode(mask, order, origin)
    decoded = rle.decode(text, mask.shape, order, origin)
    assert decoded.dtype == np.uint8 and decoded.shape == mask.shape and decoded.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(decoded, mask)


def test_kaggles_rule_by_hand():
    mask = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    assert rle.encode(mask) == "2 3"
    assert rle.encode(mask, "row") == "2 1 4 2"
    assert rle.encode(mask, "row", origin=0) == "1 1 3 2"
    assert rle.encode(np.ones((3, 4), bool)) == "1 12"
    assert rle.encode(np.zeros((3, 4), bool)) == ""
    np.testing.assert_array_equal(rle.decode("", (2, 3)), np.zeros((2, 3)))


def test_runs_that_touch_are_drawn_as_one(way):
    np.testing.assert_array_equal(rle.decode("2 2 4 3 7 1 9 4", (3, 4)), slow_decode("2 6 9 4", (3, 4)))
    np.testing.assert_array_equal(rle.decode("1 6 7 6", (3, 4)), np.ones((3, 4)))
    np.testing.assert_array_equal(rle.decode("", (3, 4)), np.zeros((3, 4)))


@pytest.mark.parametrize("seed", range(60))
def test_random_masks(seed, way):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 90, 2))
    order, origin = RULES[seed % 4]
    mask = rng.random(shape) < rng.choice([0.02, 0.3, 0.5, 0.97])
    expected = slow_encode(mask, order, origin)
    byte = mask * rng.integers(1, 256, dtype=np.uint8)
    for form in (mask, byte, mask.astype(np.int64) << 40, np.asfortranarray(byte)):
        assert rle.encode(form, order, origin) == expected
    assert rle.encode(mask[::-1, ::2], order, origin) == slow_encode(mask[::-1, ::2], order, origin)
    np.testing.assert_array_equal(slow_decode(expected, shape, order, origin), mask)
    np.testing.assert_array_equal(rle.decode(expected, shape, order, origin), mask)


@pytest.mark.parametrize("seed", range(24))
def test_label_maps_equal_one_encoding_per_label(seed):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 12, (9, 7)), np.ones((3, 4), int))  # (27, 28)
    labels = labels.astype([np.uint8, np.int32, np.uint16][seed % 3])
    labels[labels == 5] = 0
    order, origin = RULES[seed % 4]
    expected = [slow_encode(labels == i, order, origin) for i in range(1, 16)]
    assert rle.encode_labels(labels, order, origin, count=15) == expected
    assert rle.encode_labels(labels, order, origin) == expected[: labels.max()]
    assert expected[4] == ""


def test_label_maps_without_labels_and_wrong_ones():
    empty = np.zeros((4, 6), np.uint8)
    assert rle.encode_labels(empty) == []
    assert rle.encode_labels(empty, count=3) == ["", "", ""]
    with pytest.raises(DataError, match=r"labels 0\.\.3, got 0\.\.4"):
        rle.encode_labels(empty + np.eye(4, 6, dtype=np.uint8) * 4, count=3)
    with pytest.raises(DataError, match="got -1"):
        rle.encode_labels(empty.astype(int) - 1)


def test_other_arrays_are_refused():
    for wrong in (np.zeros((2, 2)), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(DataError, match="expected .H, W. bool or integers"):
            rle.encode(wrong)
    with pytest.raises(ValueError, match="diagonal"):
        rle.encode(np.zeros((2, 2), np.uint8), order="diagonal")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1 2 3", "odd count"),
        ("5", "odd count"),
        ("1 0", "length 0"),
        ("0 3", "outside"),
        ("13 1", "outside"),
        ("12 2", "outside"),
        ("1 99999999999999999999999", "outside"),
        ("99999999999999999999999 9223372036854775807", "outside"),
        ("4 1 1 1", "out of order"),
        ("1 3 3 1", "overlapping"),
        ("2 1 2 1", "overlapping"),
        ("1 -2", "whole numbers"),
        ("1.0 2.0", "whole numbers"),
        ("nan", "whole numbers"),
        ("1,2", "whole numbers"),
        ("١ ٢", "whole numbers"),
        (float("nan"), "not a text"),
        (None, "not a text"),
    ],
)
def test_faulty_texts(text, fault):
    with pytest.raises(DataError, match=fault):
        rle.decode(text, (3, 4))
    assert fault in rle.parse(text, 12)[1]


def test_touching_runs_and_blanks_are_valid():
    np.testing.assert_array_equal(rle.decode(" 1 2  3 1 ", (3, 1))[:, 0], [1, 1, 1])
    np.testing.assert_array_equal(rle.decode("   ", (2, 1))[:, 0], [0, 0])
    runs, fault = rle.parse("1 2 3 1")
    assert fault == "" and runs.tolist() == [[0, 2], [2, 1]]
    assert rle.parse("0 2", 2, origin=0)[1] == "" and "outside" in rle.parse("1 2", 2, origin=0)[1]


# ---- detection ------------------------------------------------------------------------------------------
def blobs(shape, seed, touching=True):
    """A few discs; with ``touching``, one lies over the top border and one over the bottom and right ones."""
    rng, (height, width) = np.random.default_rng(seed), shape
    y, x = np.ogrid[:height, :width]
    radius = min(shape) / 6
    inner = (rng.uniform(2 * radius, height - 2 * radius), rng.uniform(2 * radius, width - 2 * radius))
    centres = [inner, (0, width / 3), (height, width / 2), (height / 2, width)] if touching else [inner]
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 < radius**2 for cy, cx in centres], axis=0)


def one_pixel_mask(shape):
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2, shape[1] // 2] = True
    return mask


@pytest.mark.parametrize(("order", "origin"), RULES)
@pytest.mark.parametrize(
    "shapes", [[(40, 60)] * 3, [(101, 100), (100, 101), (100, 100)], [(30, 90), (90, 30), (64, 64)]]
)
def test_the_way_of_writing_is_detected(shapes, order, origin):
    masks = [blobs(shape, seed) for seed, shape in enumerate(shapes)]
    masks += [np.zeros((50, 70), bool), one_pixel_mask((50, 70))]  # nothing to learn from, and no obstacle
    texts = [slow_encode(mask, order, origin) for mask in masks]
    found = rle.detect(texts, [mask.shape for mask in masks])
    assert (found.order, found.origin) == (order, origin)
    assert "unequal neighbours" in found.why and "4 masks with an object" in found.why


@pytest.mark.parametrize(("order", "origin"), RULES)
def test_square_images_need_their_pictures(order, origin):
    rng = np.random.default_rng(0)
    masks = [blobs((64, 64), seed) for seed in range(6)]
    pictures = [(60 + 80 * mask + rng.normal(0, 15, mask.shape)).clip(0, 255).astype(np.uint8) for mask in masks]
    texts, shapes = [slow_encode(mask, order, origin) for mask in masks], [(64, 64)] * 6
    with pytest.raises(DataError, match="state the order"):
        rle.detect(texts, shapes)
    with pytest.raises(DataError, match="prefer neither"):
        rle.detect(texts, shapes, lambda i: rng.integers(0, 255, (64, 64), np.uint8))
    found = rle.detect(texts, shapes, lambda i: np.dstack([pictures[i]] * 3))
    assert (found.order, found.origin) == (order, origin) and "steeper" in found.why


def test_runs_that_leave_the_image_settle_the_origin():
    last = np.zeros((20, 30), bool)
    last[4:9, 5:20] = last[-1, -1] = True
    found = rle.detect([slow_encode(last)], [last.shape])
    assert (found.order, found.origin) == ("column", 1) and "runs from 0 would leave the image" in found.why
    assert rle.detect([slow_encode(last[::-1, ::-1], origin=0)], [last.shape]).origin == 0
    with pytest.raises(DataError, match="no order or origin puts all runs inside"):
        rle.detect(["1 601"], [(20, 30)])
    with pytest.raises(DataError, match="no order or origin"):  # the first says 0, the second 1
        rle.detect(["0 2", "599 2"], [(20, 30)] * 2)


def test_masks_that_show_nothing_are_refused_until_it_is_stated():
    inner = [blobs((40, 60), seed, touching=False) for seed in range(4)]
    texts, shapes = [slow_encode(mask, "row", 0) for mask in inner], [(40, 60)] * 4
    with pytest.raises(DataError, match="count from 0 or from 1.*state the origin"):
        rle.detect(texts, shapes)
    assert rle.detect(texts, shapes, origin=0).order == "row"
    for nothing in ([], [""], [slow_encode(one_pixel_mask((9, 8)))]):
        with pytest.raises(DataError, match="state the order"):
            rle.detect(nothing, [(9, 8)] * len(nothing))
    assert rle.detect([], [], order="row", origin=1) == rle.Rule("row", 1, "stated")


def test_the_one_mask_that_shows_the_origin_is_found_among_many():
    masks = [blobs((40, 60), seed, touching=seed == 23) for seed in range(60)]
    for order, origin in RULES:
        found = rle.detect([slow_encode(mask, order, origin) for mask in masks], [(40, 60)] * 60, budget=1)
        assert (found.order, found.origin) == (order, origin)
