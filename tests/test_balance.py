"""Class weights from frequencies, against a hand-worked case."""

import numpy as np
import pytest

from lib.errors import ConfigError
from lib.tasks import BinaryMask, MulticlassMask, MultilabelMask
from lib.training.balance import RANGE, median_frequency


def test_median_frequency_by_hand():
    first = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 255, 255]], np.uint8)  # 6 of 8, 2 of 8
    second = np.array([[0, 0, 0, 2, 2, 2, 2, 2, 2, 2]], np.uint8)  # 3 of 10, 7 of 10
    # frequencies where present: background 9/18 = .5, one 2/8 = .25, two 7/10 = .7; median .5
    assert median_frequency([first, second], MulticlassMask(("a", "b", "c"))) == (1.0, 2.0, 0.7143)


def test_an_absent_class_weighs_one_and_extremes_are_kept_in_range():
    target = np.zeros((1, 1000), np.uint8)
    target[0, 0] = 1
    background, foreground = median_frequency([target], BinaryMask(("x",)))
    assert background == pytest.approx(0.5005, abs=1e-3) and foreground == RANGE[1]
    assert median_frequency([np.zeros((2, 2), np.uint8)], MulticlassMask(("a", "b"))) == (1.0, 1.0)


def test_overlapping_classes_are_refused():
    with pytest.raises(ConfigError, match="exclusive"):
        median_frequency([], MultilabelMask(("a", "b")))
