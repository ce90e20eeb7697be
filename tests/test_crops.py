"""Crops: one per object and class, cut where the object is, grouped by scene, read by the labels competition."""

import csv

import numpy as np
import yaml
from conftest import TINY

from lib.competitions import open_competition
from lib.tools import crops


def test_objects_are_components_of_one_class():
    target = np.zeros((8, 10), np.uint8)
    target[1:4, 1:4] = 1
    target[1:4, 4:6] = 2  # touches the first, another class
    target[6, 0:3] = 1
    target[5:8, 7:9] = 255
    assert list(crops.objects(target, 1)) == [(1, (1, 1, 4, 4)), (1, (6, 0, 7, 3)), (2, (1, 4, 4, 6))]
    assert list(crops.objects(target, 4)) == [(1, (1, 1, 4, 4)), (2, (1, 4, 4, 6))]


def test_a_crop_is_the_square_around_the_box_and_mirrors_at_the_border():
    image = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    np.testing.assert_array_equal(crops.crop(image, (4, 4, 8, 8), 1.5, 6), image[3:9, 3:9])
    corner = crops.crop(image, (0, 0, 2, 2), 2.0, 4)
    np.testing.assert_array_equal(corner, np.pad(image, ((1, 0), (1, 0), (0, 0)), mode="reflect")[:4, :4])


def test_the_crops_of_a_competition_are_a_labels_competition(tmp_path):
    data = {"root": str(tmp_path / "data"), "synthetic": {"scenes": 4, "test_scenes": 0, "size": 256, "seed": 1}}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "data": data}))
    out = tmp_path / "crops"
    assert crops.main(["--config", str(config), "--task", "cls", "--out", str(out)]) == 0
    rows = list(csv.DictReader(open(out / "train.csv")))
    source = open_competition("xview2", tmp_path / "data")
    wanted = [(source.tasks["cls"].classes[value], scene.id) for scene in source.scenes("train")
              for value, _ in crops.objects(source.target(scene, "cls"), 20)]  # fmt: skip
    assert wanted and [(row["label"], row["group"]) for row in rows] == wanted
    labels = open_competition("labels", out)
    scenes = labels.scenes("train")
    assert [scene.id for scene in scenes] == sorted(row["id"] for row in rows)
    assert {scene.group for scene in scenes} == {row["group"] for row in rows}
    assert labels.read(scenes[0], "image").shape == (1, 64, 64, 3)
    assert crops.main(["--config", str(config), "--task", "cls", "--out", str(out)]) == 2, "not over others' files"
    assert crops.main(["--config", str(config), "--task", "loc", "--out", str(tmp_path / "new")]) == 2
