"""Contact sheets: every scene has its cell, whatever the competition; what is broken is seen and listed."""

import csv

import cv2
import numpy as np
import pytest
from sisters import EXPERIMENTS

from lib.competitions import NAMES, open_competition, synthetic
from lib.tools import contact


def test_of_frames_the_middle_one_is_shown():
    frames = np.stack([np.full((2, 3, 3), k, np.uint8) for k in range(5)])
    assert (contact.still(frames) == 2).all()
    assert (contact.still(frames[3]) == 3).all() and contact.still(frames[3]).shape == (2, 3, 3)


@pytest.mark.parametrize(("shape", "box"), [((40, 80), (8, 16)), ((300, 30), (16, 2)), ((5, 5), (16, 16))])
def test_a_thumbnail_keeps_the_image_s_proportions(shape, box):
    small = contact.thumbnail(np.zeros((*shape, 3), np.uint8), 16)
    assert small.shape == (16, 16, 3)
    black = (small == 0).all(axis=2)
    assert (black.any(axis=1).sum(), black.any(axis=0).sum()) == box


def test_a_long_id_loses_its_middle_and_keeps_its_ends():
    text = contact._fitting("hurricane-of-the-year_" + "0" * 60 + "_4711", 160)
    assert text.startswith("hurr") and text.endswith("4711") and ".." in text
    assert cv2.getTextSize(text, contact.FONT, contact.SIZE, 1)[0][0] <= 160
    assert contact._fitting("short", 160) == "short"


def test_pages_hold_all_cells_in_order():
    cells = [np.full((10, 8, 3), k, np.uint8) for k in range(7)]
    first, second = contact.pages(iter(cells), columns=2, rows=2)
    step = 10 + contact.GAP, 8 + contact.GAP
    for sheet, numbers in ((first, (0, 1, 2, 3)), (second, (4, 5, 6))):
        for place, number in enumerate(numbers):
            top, left = (contact.GAP + at * s for at, s in zip(divmod(place, 2), step))
            assert (sheet[top : top + 10, left : left + 8] == number).all()
    assert list(contact.pages(iter([]))) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_competition_has_a_contact_sheet_of_images_and_of_truths(name, tmp_path):
    synthetic.write(name, tmp_path / "data", scenes=5, test_scenes=1, size=64, seed=1)
    competition = open_competition(name, tmp_path / "data", OPTIONS.get(name))
    scenes = competition.scenes("train")
    sheets = {}
    for truth in (False, True):
        written, findings = contact.write(competition, tmp_path / "out", truth, side=48, columns=2, rows=2)
        assert len(written) == -(-len(scenes) // 4) and len(written) == len(list((tmp_path / "out").glob("*.jpg")))
        sheets[truth] = cv2.imread(str(written[0]))
    assert sheets[True].shape == sheets[False].shape and (sheets[True] != sheets[False]).any()
    with open(tmp_path / "out" / "findings.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(findings)


OPTIONS = {name: experiment["data"].get("options") for name, experiment in EXPERIMENTS.items()}


def test_a_corrupt_file_gets_a_cross_and_a_line_in_the_list(tmp_path):
    synthetic.write("voc", tmp_path / "data", scenes=5, test_scenes=1, size=64, seed=1)
    competition = open_competition("voc", tmp_path / "data", OPTIONS["voc"])
    scene = competition.scenes("train")[1]
    path = scene.files["image"]
    path.write_bytes(path.read_bytes()[:200])
    cells = list(contact.pictures(competition, competition.scenes("train"), False, 48))
    crossed = [bool((cell == contact.FAULT).all(axis=2).any()) for cell in cells]
    assert crossed == [s.id == scene.id for s in competition.scenes("train")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/contact_009.jpg").write_bytes(b"of an earlier sheet")
    written, _ = contact.write(competition, tmp_path / "out", side=48)
    assert list((tmp_path / "out").glob("*.jpg")) == written
    assert scene.id in (tmp_path / "out/findings.csv").read_text()


@pytest.mark.slow
def test_the_command_takes_the_flags_of_a_stage(experiment):
    assert contact.main([*experiment.flags, "--side", "32", "--columns", "3"]) == 0
    (picture,) = (experiment.root / "report/contact").glob("*.jpg")
    assert cv2.imread(str(picture)).shape[1] == 3 * (32 + contact.GAP) + contact.GAP
