"""Targets from probabilities, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lib.competitions.contract import Scene
from lib.errors import ConfigError
from lib.stages import pseudo
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


def test_scenes_with_a_fallback_or_without_an_image_teach_nothing(tmp_path, monkeypatch, capsys):
    made = {"fingerprint": "", "files": {}, "facts": {"predict": {}}, "failed": {"b": "no image"}}
    (tmp_path / "manifest.json").write_text(json.dumps(made))
    monkeypatch.setattr(pseudo, "pseudo_folders", lambda *_: [tmp_path])
    monkeypatch.setattr(pseudo, "require_same_folds", lambda *_: None)
    scenes = [Scene(name, {}) for name in "abcd"]
    competition = SimpleNamespace(scenes=lambda split: scenes, tasks={"loc": BinaryMask(("x",))},
                                  incomplete=lambda scene: "no twin" if scene.id == "c" else "")  # fmt: skip
    run = SimpleNamespace(competition=competition, store=SimpleNamespace(root=tmp_path / "mine"))
    asked, model = SimpleNamespace(experiment="theirs", ratio=2.0), SimpleNamespace(task="loc")
    assert pseudo.labels(run, model, asked, 0).ids == {"a", "d"}
    assert "2 of 4 unlabelled scenes have no image or only the fallback of theirs" in capsys.readouterr().out
    del scenes[3], scenes[0]
    with pytest.raises(ConfigError, match="none of 2 unlabelled scenes has an image and a prediction of theirs"):
        pseudo.labels(run, model, asked, 0)
