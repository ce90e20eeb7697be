"""Confusion matrix, IoU and Dice, against hand-worked cases, loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from lib import metrics as masks
from lib.errors import DataError
from lib.tasks import strongest


@pytest.mark.parametrize("seed", range(4))
def test_confusion_and_its_scores_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, answer = rng.integers(0, 5, (2, 3, 20, 30)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = 255
    y, z = truth[truth != 255], answer[truth != 255]
    matrix = masks.confusion(answer, truth, classes=5)
    np.testing.assert_array_equal(matrix, confusion_matrix(y, z, labels=range(5)))
    np.testing.assert_allclose(masks.iou(matrix), jaccard_score(y, z, average=None, labels=range(5)))
    np.testing.assert_allclose(masks.pixel_accuracy(matrix), (y == z).mean())
    mean = jaccard_score(y, z, average="macro", labels=range(5))
    np.testing.assert_allclose(masks.mean_present(masks.iou(matrix)), mean)


def test_absent_classes_are_told_from_wrong_ones():
    truth, answer = np.array([[0, 0, 1, 255]]), np.array([[0, 0, 2, 3]])  # 1 missed, 2 invented, 3 and 4 absent
    matrix = masks.confusion(answer, truth, classes=5)
    np.testing.assert_array_equal(masks.iou(matrix), [1, 0, 0, np.nan, np.nan])
    assert masks.mean_present(masks.iou(matrix)) == pytest.approx(1 / 3)
    nothing = np.zeros((2, 2), np.int64)
    assert np.isnan(masks.pixel_accuracy(nothing)) and np.isnan(masks.mean_present(masks.iou(nothing)))


def test_scores_work_over_leading_axes_and_counts_add_up():
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 3, (2, 6, 8, 8))
    each = np.stack([masks.confusion(a, t, classes=3) for a, t in zip(answer, truth, strict=True)])
    np.testing.assert_array_equal(each.sum(0), masks.confusion(answer, truth, classes=3))
    np.testing.assert_array_equal(masks.iou(each), np.stack([masks.iou(matrix) for matrix in each]))
    np.testing.assert_array_equal(masks.pixel_accuracy(each), (truth == answer).mean(axis=(1, 2)))


def test_confusion_refuses_what_it_would_count_wrongly():
    truth = np.zeros((4, 4), np.uint8)
    with pytest.raises(DataError, match=r"answer: expected class indices 0\.\.2, got 0\.\.3"):
        masks.confusion(np.eye(4, dtype=np.uint8) * 3, truth, classes=3)
    with pytest.raises(DataError, match="truth"):
        masks.confusion(truth, truth.astype(np.int64) - 1, classes=3)
    with pytest.raises(DataError, match="shape"):
        masks.confusion(truth[:2], truth, classes=3)
    with pytest.raises(DataError, match="shape"):
        masks.binary_counts(truth[:1], truth)


def test_dice_pooled_and_per_image():
    rng = np.random.default_rng(1)
    truth = (rng.random((5, 12, 9)) > 0.6).astype(np.uint8)
    probs = rng.random((5, 12, 9)).astype(np.float32)
    truth[:, 0] = 255
    counts = masks.binary_counts(probs > 0.5, truth)
    kept, answer = truth[:, 1:], probs[:, 1:] > 0.5
    assert masks.dice(counts.sum(0)) == pytest.approx(f1_score(kept.ravel(), answer.ravel()))
    expected = [f1_score(t.ravel(), a.ravel()) for t, a in zip(kept, answer, strict=True)]
    np.testing.assert_allclose(masks.dice(counts), expected)


def test_dice_of_empty_images():
    empty, one = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    one[1, 2, 2] = 1
    np.testing.assert_array_equal(masks.dice(masks.binary_counts(one, empty)), [1, 0])
    np.testing.assert_array_equal(masks.dice(masks.binary_counts(empty, one)), [1, 0])
    np.testing.assert_array_equal(masks.dice(masks.binary_counts(empty, empty), empty=0.0), [0, 0])
    ignored = np.full((4, 4), 255)
    assert masks.dice(masks.binary_counts(np.ones((4, 4)), ignored)) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 3, 4), (5, 300, 257), (3, 2, 70_000), (254, 5, 6), (300, 2, 3), (2, 0, 5)])
def test_the_strongest_class_is_argmax_s_the_first_of_equals(dtype, shape):
    planes = np.random.default_rng(0).integers(0, 6, shape).astype(dtype)
    found = strongest(planes)
    np.testing.assert_array_equal(found, planes.argmax(0))
    assert found.dtype == np.uint8 or len(planes) > 255
