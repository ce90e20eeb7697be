"""Targets from probabilities, by hand."""

import numpy as np

from lib.tasks import BinaryMask, Label, MulticlassMask, MultilabelMask
from lib.training.pseudo import confident


def levels(*rows):
    return np.array(rows, np.uint8)[:, None]  # (C, 1, W)


def test_a_yes_or_no_is_sure_from_the_ratio_on():
    found = confident(levels([255, 180, 170, 85, 70, 0]), BinaryMask(("x",)), 2.0)
    assert found.tolist() == [[1, 1, 1, 0, 0, 0]]  # 170 : 85 is exactly two to one
    assert confident(levels([169, 86, 128]), BinaryMask(("x",)), 2.0).tolist() == [[255, 255, 255]]


def test_the_best_class_must_beat_the_next():
    found = confident(levels([100, 120, 10], [50, 100, 20], [105, 35, 225]), MulticlassMask(("a", "b", "c")), 1.2)
    assert found.tolist() == [[255, 0, 2]]


def test_all_overlapping_classes_must_be_sure():
    found = confident(levels([250, 250, 130, 0], [250, 0, 250, 0]), MultilabelMask(("a", "b")), 3.0)
    assert found.tolist() == [[3, 1, 255, 0]]


def test_a_video_is_what_its_mean_frame_is():
    assert confident(levels([255, 255, 60]), Label(("live",)), 2.0).tolist() == [[1]]
    assert confident(levels([255, 0]), Label(("live",)), 1.1).tolist() == [[255]]
