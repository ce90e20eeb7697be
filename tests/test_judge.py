"""What a validation looks at besides the score: does a network still tell classes apart?"""

import numpy as np
import pytest

from lib.tasks import IGNORE, BinaryMask, Label, MulticlassMask, MultilabelMask
from lib.training.judge import class_shares, is_collapsed, true_levels


def shares(levels, target, task):
    return class_shares(np.asarray(levels, np.uint8), np.asarray(target, np.uint8), task)


def test_shares_by_hand_leave_ignored_places_out():
    target = [[0, 1, 1, IGNORE]]
    found = shares([[[0, 200, 0, 255]]], target, BinaryMask(("x",)))
    assert found.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(("levels", "collapsed"), [
    ([[[0, 0, 0, 0]]], True),
    ([[[255, 255, 255, 255]]], True),
    ([[[255, 0, 0, 0]]], False),
])  # fmt: skip
def test_a_binary_network_that_says_always_the_same_is_collapsed(levels, collapsed):
    assert is_collapsed(shares(levels, [[0, 1, 1, 0]], BinaryMask(("x",)))) == collapsed


def test_a_multiclass_network_that_knows_only_the_background_is_collapsed():
    task, target = MulticlassMask(("a", "b", "c")), [[0, 1, 2, 0]]
    assert is_collapsed(shares([[[255] * 4], [[0] * 4], [[0] * 4]], target, task))
    assert not is_collapsed(shares([[[255, 0, 255, 255]], [[0, 255, 0, 0]], [[0] * 4]], target, task))


def test_where_the_truth_is_the_same_everywhere_nothing_collapses():
    assert not is_collapsed(shares([[[0, 0]]], [[0, 0]], BinaryMask(("x",))))


def test_the_label_of_a_video_holds_for_all_its_frames():
    found = shares([[[200, 10, 130]]], [[1]], Label(("live",)))
    assert found.tolist() == [[2, 3, 3]]


@pytest.mark.parametrize("task", [BinaryMask(("x",)), MulticlassMask(("a", "b")), MultilabelMask(("a", "b"))])
def test_true_levels_are_called_as_the_truth(task):
    target = np.array([[0, 1], [1, 0]], np.uint8)
    np.testing.assert_array_equal(task.called(true_levels(target, task)), task.truth(target))


def test_bits_of_a_multilabel_target():
    truth = MultilabelMask(("a", "b", "c")).truth(np.array([[0, 1, 2, 3, 5]], np.uint8))
    assert truth.astype(int).tolist() == [[[0, 1, 0, 1, 1]], [[0, 0, 1, 1, 0]], [[0, 0, 0, 0, 1]]]
