"""The codec of probabilities: exact on levels, rounding on floats, whole or not at all."""

import os

import cv2
import numpy as np
import pytest

from lib.errors import ArtifactError, NonFiniteError
from lib.scenes.probs import quantise, read_levels, read_logits, write_levels, write_logits

NAMES = ("background", "no-damage", "minor-damage")


def levels(channels: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (channels, height, width), dtype=np.uint8)


@pytest.mark.parametrize("height, width", [(1, 1), (17, 33), (255, 257), (300, 600)])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_round_trip(tmp_path, channels, height, width):
    path = tmp_path / "scene.tif"
    written = levels(channels, height, width)
    write_levels(path, written, NAMES[:channels])
    read, names = read_levels(path)
    np.testing.assert_array_equal(read, written)
    assert read.dtype == np.uint8 and names == NAMES[:channels]
    assert os.listdir(tmp_path) == ["scene.tif"]


@pytest.mark.parametrize("channels", [1, 3, 254, 255, 1000])
def test_logits_round_trip_as_float16(tmp_path, channels):
    """More than 254 classes are rows of one band; nothing of that is seen outside."""
    names = tuple(f"klasse {k}, ä" for k in range(channels))
    written = np.random.default_rng(0).normal(0, 30, (channels, 1, 7)).astype(np.float32)
    written[0, 0, :2] = 1e9, -1e9
    write_logits(tmp_path / "a.tif", written, names)
    read, found = read_logits(tmp_path / "a.tif")
    np.testing.assert_array_equal(read, np.clip(written, -65504, 65504).astype(np.float16))
    assert read.dtype == np.float16 and found == names
    written = levels(channels, 2, 5)
    write_levels(tmp_path / "b.tif", written, names)
    read, found = read_levels(tmp_path / "b.tif")
    np.testing.assert_array_equal(read, written)
    assert found == names


def test_logits_and_levels_are_not_taken_for_each_other(tmp_path):
    write_logits(tmp_path / "a.tif", np.zeros((3, 4, 4)), NAMES)
    write_levels(tmp_path / "b.tif", levels(3, 4, 4), NAMES)
    with pytest.raises(ArtifactError, match="expected uint8 bands"):
        read_levels(tmp_path / "a.tif")
    with pytest.raises(ArtifactError, match="expected float32 bands"):
        read_logits(tmp_path / "b.tif")
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="expected finite numbers"):
            write_logits(tmp_path / "c.tif", np.full((3, 4, 4), bad), NAMES)
    assert sorted(os.listdir(tmp_path)) == ["a.tif", "b.tif"]


def test_floats_are_rounded_to_the_nearest_level(tmp_path):
    probs = np.linspace(0, 1, 3 * 40 * 50, dtype=np.float32).reshape(3, 40, 50)
    write_levels(tmp_path / "a.tif", probs, NAMES)
    read, _ = read_levels(tmp_path / "a.tif")
    nearest = np.abs(probs.astype(np.float64)[..., None] * 255 - np.arange(256)).argmin(-1)
    np.testing.assert_array_equal(read, nearest)


def test_every_level_survives_as_a_probability():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise(every.astype(np.float32) / 255), every)
    assert quantise(np.float32([1 + 1e-6, -1e-6])).tolist() == [255, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_probability_is_refused_and_nothing_is_written(tmp_path, bad):
    probs = np.full((3, 4, 4), 0.5, np.float32)
    probs[1, 2, 3] = bad
    with pytest.raises(NonFiniteError):
        write_levels(tmp_path / "a.tif", probs, NAMES)
    assert os.listdir(tmp_path) == []


def test_names_must_match_the_channels(tmp_path):
    with pytest.raises(ValueError, match="name"):
        write_levels(tmp_path / "a.tif", levels(2, 4, 4), NAMES)


@pytest.mark.parametrize("content", ["noise", "flat"])
def test_a_truncated_file_is_noticed_at_any_length(tmp_path, content):
    path = tmp_path / "a.tif"
    write_levels(path, levels(3, 300, 280) if content == "noise" else np.zeros((3, 300, 280), np.uint8), NAMES)
    whole = path.read_bytes()
    for length in {0, 1, 8, 100, *np.linspace(200, len(whole) - 1, 40).astype(int).tolist(), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="a.tif"):
            read_levels(path)


def test_a_missing_file_and_a_foreign_tiff_are_artifact_errors(tmp_path):
    with pytest.raises(ArtifactError, match="none.tif"):
        read_levels(tmp_path / "none.tif")
    cv2.imwrite(str(tmp_path / "b.tif"), np.zeros((8, 8), np.uint16))
    with pytest.raises(ArtifactError, match="bands"):
        read_levels(tmp_path / "b.tif")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    old = levels(3, 20, 20)
    write_levels(path, old, NAMES)

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError):
        write_levels(path, 255 - old, NAMES)
    np.testing.assert_array_equal(read_levels(path)[0], old)


def test_levels_of_other_classes_or_in_another_order_are_refused(tmp_path):
    write_levels(tmp_path / "a.tif", np.zeros((2, 3, 3), np.uint8), ("cat", "dog"))
    assert read_levels(tmp_path / "a.tif", ("cat", "dog"))[1] == ("cat", "dog")
    with pytest.raises(ArtifactError, match=r"classes of this experiment \(dog, cat\), found others \(cat, dog\)"):
        read_levels(tmp_path / "a.tif", ("dog", "cat"))
