"""A head for the classes of objects from few labels: features under objects, the ways to learn, how they are judged."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from lib.config.sections import Predict
from lib.ensemble import adapt
from lib.errors import ConfigError, DataError
from lib.inference.pooled import Described, Pooled, pool
from lib.inference.predict import Predictor
from lib.models import build
from lib.tasks import MulticlassMask
from lib.tools import adapt as tool

TASK = MulticlassMask(("background", "fine", "gone"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- features under objects ---------------------------------------------------------------------------
def test_pooled_features_are_the_means_over_the_pixels_of_each_object(rng):
    """The image is padded below and to the right, and a feature covers eight pixels."""
    features = torch.from_numpy(rng.normal(size=(5, 4, 6)).astype(np.float32))  # of an image of 32 x 48
    labels = np.zeros((30, 41), np.int32)
    labels[2:19, 3:22], labels[25, 40], labels[20:24, 5:9] = 1, 2, 4  # the second has one pixel, the third none
    expected = np.zeros((4, 5))
    for row, column in np.argwhere(labels):
        expected[labels[row, column] - 1] += features[:, row * 4 // 32, column * 6 // 48].numpy()
    expected /= np.maximum(np.bincount(labels.ravel(), minlength=5)[1:, None], 1)
    np.testing.assert_allclose(pool(features, labels, (32, 48), 4), expected, atol=1e-5)
    assert pool(features, np.zeros((30, 41), np.int32), (32, 48), 0).shape == (0, 5)


def test_probabilities_under_objects_are_those_of_the_predictor(rng):
    torch.manual_seed(0)
    network = build(architecture="segmentation", classes=3, images=1, encoder="tu-test_efficientnet",
                    decoder="unet", decoder_channels=[16, 16, 8, 8], upsample_logits=2)  # fmt: skip
    image, labels = rng.integers(0, 255, (3, 70, 90), np.uint8), np.zeros((70, 90), np.int32)
    labels[5:30, 7:40], labels[69, 89] = 1, 2
    found = Pooled(network, TASK.activate, torch.device("cpu"), "float32")(image, labels, 2)
    probs = Predictor(network, TASK.activate, Predict(tta="none", precision="float32"))(image)
    for number in (1, 2):
        np.testing.assert_allclose(found.probs[number - 1], probs[:, labels == number].mean(1), atol=1e-5)
    assert found.features.shape == (2, found.encoder + 8) and np.isfinite(found.features).all()


def test_a_network_without_a_decoder_is_refused():
    network = build(architecture="classifier", classes=3, images=1, encoder="tu-test_efficientnet")
    with pytest.raises(ConfigError, match="features under objects: expected a network of an encoder and a decoder"):
        Pooled(network, TASK.activate, torch.device("cpu"), "float32")


def test_objects_hang_together_and_have_the_class_of_most_of_their_pixels():
    target = np.zeros((8, 8), np.uint8)
    target[0:2, 0:3], target[2, 2] = 1, 2  # touching: one object, six pixels against one
    target[5, 5] = 2
    target[7, 0:3] = 255
    labels, classes = tool.objects(target)
    assert classes.tolist() == [1, 2]
    assert labels.max() == 2 and (labels[0:3, 0:3] > 0).sum() == 7 and not labels[7].any()
    labels, classes = tool.objects(np.zeros((8, 8), np.uint8))
    assert not labels.any() and not len(classes)


# ---- learning -----------------------------------------------------------------------------------------
def event(rng, size=600):
    """Three classes that two features tell apart, and a prior that confuses the second with the third."""
    classes = rng.integers(0, 3, size)
    features = np.stack([classes == 1, classes == 2], 1) * 3 + rng.normal(size=(size, 2))
    prior = np.full((size, 3), 0.1)
    prior[np.arange(size), np.where(classes == 0, 0, 1)] = 0.8
    return features.astype(np.float32), prior, classes


def test_a_head_learns_what_the_networks_confuse(rng):
    features, prior, classes = event(rng)
    head = adapt.fit(features[:100], prior[:100], classes[:100])
    probs = head.probabilities(features[100:], prior[100:])
    before, after = ((p.argmax(1) == classes[100:]).mean() for p in (prior[100:], probs))
    assert head.way == adapt.HEAD and before < 0.75 and after > 0.93
    np.testing.assert_allclose(probs.sum(1), 1)
    assert head.losses["head 1.0"] < head.losses["scaled 1.0"] < head.losses["as it is"]


def test_networks_that_are_right_stay_as_they_are(rng):
    """Of labels drawn by the prior itself, with features that say nothing."""
    prior = rng.dirichlet([1, 1, 1], 60)
    classes = np.array([rng.choice(3, p=row) for row in prior])
    head = adapt.fit(rng.normal(size=(60, 30)), prior, classes)
    assert head.way == adapt.AS_IT_IS
    np.testing.assert_allclose(head.probabilities(np.zeros((60, 30)), prior), prior, atol=1e-3)


def test_an_event_of_other_frequencies_is_mended_without_features(rng):
    classes = rng.choice(3, 400, p=[0.1, 0.1, 0.8])
    prior = np.full((400, 3), 0.25)
    prior[np.arange(400), classes] = 0.5
    prior[:, 0] *= 6  # an event of the past had mostly the first
    head = adapt.fit(np.zeros((200, 0)), prior[:200], classes[:200])
    assert head.way == adapt.SCALED
    assert (head.probabilities(np.zeros((200, 0)), prior[200:]).argmax(1) == classes[200:]).mean() > 0.97


@pytest.mark.parametrize("classes", [[], [1], [0, 1, 2, 1], [2] * 30])
def test_too_few_labels_or_one_class_alone_change_nothing(rng, classes):
    prior = rng.dirichlet([1, 1, 1], 40)
    head = adapt.fit(rng.normal(size=(len(classes), 4)), prior[: len(classes)], np.array(classes, int))
    assert head.way == adapt.AS_IT_IS
    assert (head.probabilities(rng.normal(size=(40, 4)), prior).argmax(1) == prior.argmax(1)).all()


def test_a_class_without_a_label_keeps_what_laplace_leaves_it(rng):
    features, prior, classes = event(rng)
    some = np.flatnonzero(classes < 2)[:60]
    head = adapt.fit(features[some], prior[some], classes[some])
    assert head.way != adapt.AS_IT_IS and head.seen.tolist() == [0, 1]
    np.testing.assert_allclose(head.probabilities(features, prior)[:, 2], prior[:, 2] * 3 / 63)


def test_labels_and_objects_must_be_as_many():
    with pytest.raises(DataError, match="labels: expected one for each object, got 2 for 3 objects"):
        adapt.fit(np.zeros((3, 1)), np.ones((3, 2)), np.zeros(2))


def test_what_to_label_next_is_uncertain_and_differs(rng):
    """Four groups of uncertain objects, one of which is large, among certain ones."""
    centres = np.repeat(np.eye(4) * 20, [70, 5, 5, 5], axis=0)
    features = np.concatenate([centres + rng.normal(size=centres.shape), rng.normal(size=(300, 4)) - 40])
    probs = np.tile([0.98, 0.02], (385, 1))
    probs[:85] = 0.55, 0.45
    found = adapt.propose(features, probs, 4 * 3)
    assert len(set(found.tolist())) == 12 and (found < 85).all()
    assert set(np.digitize(found, [70, 75, 80])) == {0, 1, 2, 3}
    assert len(adapt.propose(features[:3], probs[:3], 12)) == 3


# ---- judging ------------------------------------------------------------------------------------------
def test_calibration_error_of_a_case_worked_by_hand():
    """Two bins of two: mean confidence .6 with one right of two, and .95 with both right."""
    probs = np.array([[0.6, 0.4], [0.6, 0.4], [0.95, 0.05], [0.95, 0.05]])
    assert adapt.calibration_error(probs, np.array([0, 1, 0, 0]), bins=2) == pytest.approx((0.1 + 0.05) / 2)


def test_scores_are_those_of_scikit_learn(rng):
    probs, classes = rng.dirichlet([1, 1, 1], 200), rng.integers(0, 2, 200)  # the third class does not occur
    found = tool.scores(probs, classes, ("a", "b", "c"))
    each = f1_score(classes, probs.argmax(1), average=None, labels=[0, 1])
    assert found["f1 a"] == pytest.approx(each[0]) and found["f1"] == pytest.approx(each.mean())
    assert np.isnan(found["f1 c"]) and found["accuracy"] == (probs.argmax(1) == classes).mean()


def test_more_labels_are_judged_on_the_objects_that_have_none(rng, capsys):
    features, prior, classes = event(rng, 150)
    probs = np.concatenate([np.zeros((150, 1)), prior], axis=1)
    known = tool.LeftOut("storm", 0, Described(features, probs, 1), Described(features * 0, probs, 2), classes)
    rows = tool.judged(known, ("a", "b", "c"), (0, 50, 150), seeds=3)
    assert [(row["labelled"], row["way"]) for row in rows] == [
        (0, "none"), (50, "none"), (50, "adapted"), (50, "labels alone")]  # fmt: skip
    assert rows[2]["f1"] > rows[1]["f1"] + 0.1 > rows[3]["f1"] + 0.1  # features of nothing teach nothing
    assert rows[2]["chosen"] == "3 head"
    assert "storm: 150 labels are not tried, it has 150 objects" in capsys.readouterr().out


def test_domains_in_one_fold_are_judged_and_others_are_named():
    import pandas as pd

    scenes = [SimpleNamespace(id=f"{event}{k}", domain=event) for event in "abc" for k in range(2)]
    folds = pd.DataFrame({"id": [scene.id for scene in scenes], "fold": [0, 0, 1, 1, 0, 1]})
    run = SimpleNamespace(folds=lambda: folds, competition=SimpleNamespace(scenes=lambda split: scenes))
    assert tool.left_out(run) == ({"a": 0, "b": 1}, ["c"])
