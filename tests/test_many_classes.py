"""More classes than uint8 can tell: labels of 300 and more classes, from the target to the submission (row B5)."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import STAGES, stage
from sisters import COMMON, EXPERIMENTS

from lib.competitions import open_competition
from lib.config.sections import Loss
from lib.tasks import Label, MulticlassMask, known
from lib.training.balance import median_frequency
from lib.training.judge import class_shares
from lib.training.losses import Criterion
from lib.training.pseudo import confident

MANY = 300


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of each class, told apart by their colour: red, green and blue of seven shades each."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for k in range(MANY):
        folder = root / "train" / f"class_{k:03d}"
        folder.mkdir(parents=True)
        colour = np.array([k % 7, k // 7 % 7, k // 49], np.float64) * 36 + 18
        for number in range(2):
            picture = np.clip(colour + rng.normal(0, 4, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), picture)
    (root / "test").mkdir()
    for k in (3, 255, 299):
        cv2.imwrite(str(root / f"test/{k}.png"), cv2.imread(str(root / f"train/class_{k:03d}/0.png")))
    return root


@pytest.mark.parametrize(("classes", "dtype", "ignored"), [(254, np.uint8, 255), (255, np.int32, -1)])
def test_targets_are_as_wide_as_their_classes_need(classes, dtype, ignored):
    for task in (Label(tuple(map(str, range(classes)))), MulticlassMask(tuple(map(str, range(classes))))):
        target = task.as_target(np.array([[0, classes - 1, 0]]), np.array([[True, True, False]]))
        assert target.dtype == dtype and target.tolist() == [[0, classes - 1, ignored]]
        assert known(target).tolist() == known(torch.from_numpy(target)).tolist() == [[True, True, False]]
        assert task.truth(target)[:, 0].nonzero()[0].tolist()[:2] == [0, classes - 1]


def test_a_class_255_is_learned_and_an_unknown_label_is_not():
    """The value that uint8 targets ignore is a class like any other here; torch's own loss is the oracle."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, MANY, 1, 1, generator=generator).requires_grad_()
    target = torch.tensor([255, 299, -1, 0], dtype=torch.int32)[:, None, None]
    total, _ = Criterion("multiclass", Loss(terms={"ce": 1}))(logits, target)
    expected = torch.nn.functional.cross_entropy(logits[:, :, 0, 0], target.flatten().long(), ignore_index=-1)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, oracle = (torch.autograd.grad(value, logits)[0] for value in (total, expected))
    assert torch.allclose(gradient, oracle, atol=1e-7) and not gradient[2].any() and gradient[0].any()


def test_pseudo_labels_weights_and_shares_know_wide_targets():
    task = Label(tuple(map(str, range(MANY))))
    levels = np.zeros((MANY, 1, 1), np.uint8)
    levels[255], levels[7] = 200, 150
    assert confident(levels, task, 1.2).tolist() == [[255]] and confident(levels, task, 1.5).tolist() == [[-1]]
    targets = [task.as_target(np.full((1, 1), value)) for value in (0, 0, 255, 299)]
    weights = median_frequency([*targets, confident(levels, task, 1.5)], task)
    assert [weights[value] for value in (0, 1, 255, 299)] == [1.0] * 4 and len(weights) == MANY
    shares = class_shares(levels, targets[2], task)
    assert shares[255].tolist() == [1, 1, 1] and shares.sum(0).tolist() == [1, 1, MANY]
    assert not class_shares(levels, confident(levels, task, 1.5), task).any()


def test_scores_of_many_classes_need_no_confusion(pictures):
    competition = open_competition("labels", pictures, {})
    rng = np.random.default_rng(2)
    truths = rng.integers(0, MANY, 400)
    calls = np.where(rng.random(400) < 0.5, truths, rng.integers(0, MANY, 400))
    counts = 0
    for truth, call in zip(truths.tolist(), calls.tolist(), strict=True):
        levels = rng.integers(0, 5, (MANY, 1, 1), np.uint8)
        levels[call] = 255
        answer = competition.decode({"cls": levels}, {})
        counts = counts + competition.tally(answer, truth)
        assert competition.detail(answer, truth).size == 0
    scores = competition.scores(counts)
    assert counts.shape == (3 * MANY + 2,) and competition.tables(np.zeros(0)) == {}
    assert scores["accuracy"] == pytest.approx((truths == calls).mean())
    hits, answered, true = (np.bincount(a, minlength=MANY) for a in (truths[truths == calls], calls, truths))
    f1 = 2 * hits / np.maximum(answered + true, 1)
    assert scores["macro_f1"] == pytest.approx(f1[answered + true > 0].mean())
    np.testing.assert_allclose(competition.class_scores(counts), f1)
    assert "f1_class_255" not in scores


@pytest.mark.slow
def test_three_hundred_classes_from_the_folds_to_the_submission(pictures, tmp_path):
    """Chance is right once in 300 times; the network must be right ten times as often, above class 255 too."""
    model = EXPERIMENTS["labels"]["models"]["pictures"] | {"folds": [0]}
    train = {**model["train"], "epochs": 8, "batch_size": 30, "crop": 32, "augment": "none", "precision": "float32",
             "sampling": {}, "optimizer": {"lr": 1.0e-2}, "validate_every": 8}  # fmt: skip
    tree = {**COMMON, "name": "many", "competition": "labels", "data": {"root": str(pictures), "workers": 1},
            "folds": {"n": 2, "embed": False},
            "models": {"net": {**model, "view": {"size": 32, "fit": "square"}, "train": train}}}  # fmt: skip
    config = tmp_path / "many.yaml"
    config.write_text(yaml.safe_dump(tree))
    for name in STAGES:
        assert stage(name, "--config", str(config), "--workdir", str(tmp_path)) == 0, name
    root = tmp_path / "many"
    scores = json.loads((root / "05_ensemble/decode/decode.json").read_text())["scores"]
    assert scores["accuracy"] > 10 / MANY
    table = list(csv.reader((root / "06_submission/oof/submission.csv").open()))[1:]
    assert any(name.startswith(label) and label > "class_254" for name, label in table)
    rows = list(csv.reader((root / "06_submission/test/probabilities.csv").open()))
    assert len(rows) == 4 and len(rows[0]) == MANY + 1
    assert json.loads((root / "06_submission/test/manifest.json").read_text())["lint"] == "valid"
