"""figures.json: scores of scenes, cuts through the search and reliability, beside slow or hand-worked ones."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lib.choose import figures
from lib.choose.choice import Choice, Variant
from lib.choose.figures import Figures
from lib.competitions import open_competition
from lib.competitions.contract import FALSE_ALARM, MISSED, OTHER_CLASS, Scene
from lib.ensemble import calibration
from lib.ensemble.search import lattice
from lib.errors import ArtifactError
from lib.report import pictures
from lib.tasks import BinaryMask, Label, MulticlassMask, MultilabelMask


def ratio(counts):
    return counts[..., 0] / np.maximum(1, counts[..., 1])


# ---- scenes -------------------------------------------------------------------------------------------
def test_a_scene_is_scored_alone_and_left_out():
    counts = np.array([[1, 10], [9, 10], [2, 2]])
    scenes = [Scene(name, {}, "here") for name in "abc"]
    found = figures.scene_scores(SimpleNamespace(score=ratio), scenes, {"a": 0, "b": 1, "c": 1}, counts)
    assert [(one.id, one.fold, one.score) for one in found] == [("a", 0, 0.1), ("b", 1, 0.9), ("c", 1, 1.0)]
    assert [one.without for one in found] == [round(11 / 12, 6), 0.25, 0.5], "the worst scene leaves the best behind"


# ---- the surface --------------------------------------------------------------------------------------
GRID = lattice({"threshold": [0.3, 0.5], "fixed": [1], "area": [0, 5, 10]}, {"other": 2})
SCORES = np.array([0.1, 0.2, 0.3, 0.75, 0.8, 0.79])  # threshold by rows, area by columns


def chosen(**params):
    return Choice({"net": 1.0}, {"other": 2, "fixed": 1, **params}, Variant("flips"))


def test_a_surface_is_cut_through_the_chosen_point():
    found = figures.surface(GRID, SCORES, chosen(threshold=0.5, area=0), 0.015)
    assert found.axes == {"threshold": [0.3, 0.5], "area": [0, 5, 10]} and found.point == {"threshold": 1, "area": 0}
    assert (found.on_grid, found.score, found.best, found.within, found.points) == (True, 0.75, 0.8, 2, 6)
    assert found.profiles == {"threshold": [0.1, 0.75], "area": [0.75, 0.8, 0.79]}
    assert [plane.scores for plane in found.planes] == [[[0.1, 0.2, 0.3], [0.75, 0.8, 0.79]]]


def test_settings_that_are_no_point_are_said_to_be_none_and_nothing_searched_has_no_surface():
    found = figures.surface(GRID, SCORES, chosen(threshold=0.42, area=0), 0)
    assert not found.on_grid and found.point == {"threshold": 1, "area": 1} and found.within == 1
    assert figures.surface(lattice({}, {}), np.array([0.5]), chosen(), 0) is None


# ---- reliability --------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", [BinaryMask(("a",)), MultilabelMask(("a", "b")), MulticlassMask(("n", "a", "b")),
                                  Label(("yes",)), Label(tuple("abc"))])  # fmt: skip
def test_what_is_stated_and_found_is_counted_as_a_slow_loop_does(task):
    rng = np.random.default_rng(3)
    shape = (7, 9) if task.dense else (1, 4)
    levels = rng.integers(0, 256, (task.channels, *shape), dtype=np.uint8)
    highest = 2**task.channels if task.kind == "multilabel" else max(2, task.channels)
    target = rng.integers(0, highest, shape if task.dense else (1, 1)).astype(np.uint8)
    if task.dense:
        target[0, :3] = 255
    slow = np.zeros((256, 2), np.int64)
    for y, x in np.ndindex(shape):
        truth = target[y if task.dense else 0, x if task.dense else 0]
        if truth == 255:
            continue
        if task.kind == "multiclass":
            winner = max(range(task.channels), key=lambda c: (int(levels[c, y, x]), -c))
            slow[levels[winner, y, x], int(winner == truth)] += 1
            continue
        for channel in range(task.channels):
            slow[levels[channel, y, x], int(truth >> channel & 1 if task.kind == "multilabel" else truth > 0)] += 1
    np.testing.assert_array_equal(calibration.stated(task, levels, target), slow)


def test_reliability_is_that_of_the_same_levels():
    counts = np.zeros((256, 2), np.int64)
    counts[51], counts[204] = (8, 2), (1, 9)  # 0.2 is found in 0.2, 0.8 in 0.9
    (sure,) = figures.reliability({"loc": counts, "none": counts * 0}).values()
    assert sure.pixels == 20 and sure.error == pytest.approx(0.05)
    assert [own for own in sure.bins if own[0]] == [(10, pytest.approx(0.2), 0.2), (10, pytest.approx(0.8), 0.9)]


# ---- the file -----------------------------------------------------------------------------------------
def test_the_file_is_read_as_it_was_written_and_a_damaged_one_is_a_sentence(tmp_path):
    written = Figures(surface=figures.surface(GRID, SCORES, chosen(threshold=0.5, area=5), 0.01),
                      reliability=figures.reliability({"loc": np.ones((256, 2), np.int64)}))  # fmt: skip
    written.write(tmp_path / "figures.json")
    assert Figures.read(tmp_path / "figures.json") == written
    broken = json.loads((tmp_path / "figures.json").read_text())
    del broken["surface"]["best"]
    (tmp_path / "figures.json").write_text(json.dumps(broken))
    with pytest.raises(ArtifactError, match=r"figures.json: surface.best: .*05_ensemble.py --split oof --force"):
        Figures.read(tmp_path / "figures.json")


# ---- where answers are wrong --------------------------------------------------------------------------
def kinds(found):
    return {kind: np.argwhere(mask).tolist() for kind, mask in found.items()}


def test_errors_of_class_indices_and_of_masks_that_overlap(tmp_path):
    voc = open_competition("voc", tmp_path, {"classes": ["none", "a", "b"]})
    truth, answer = np.array([[1, 1, 0, 255, 2]], np.uint8), np.array([[0, 2, 1, 1, 2]], np.uint8)
    assert kinds(voc.errors(answer, truth)) == {MISSED: [[0, 0]], FALSE_ALARM: [[0, 2]], OTHER_CLASS: [[0, 1]]}
    rows = open_competition("multiclass_rle", tmp_path, {"classes": ["a", "b"]})
    truth, answer = np.array([[[1, 1, 0]], [[0, 0, 0]]]), np.array([[[1, 0, 0]], [[1, 0, 0]]])
    assert kinds(rows.errors(answer, truth)) == {MISSED: [[0, 1]], FALSE_ALARM: [[0, 0]]}
    assert rows.errors(np.float64(0.3), 1) == {} == rows.errors(np.zeros(3), np.zeros(3))


def test_errors_of_objects_and_of_pairs(tmp_path):
    objects = open_competition("binary_rle", tmp_path, {})
    found = kinds(objects.errors(np.array([[7, 0, 2]]), np.array([[1, 1, 0]])))
    assert found[MISSED] == [[0, 1]] and found[FALSE_ALARM] == [[0, 2]] and not found[OTHER_CLASS]
    pairs = open_competition("xview2", tmp_path, {})
    truth = {"localization": np.array([[1, 1, 0, 1]]), "damage": np.array([[2, 2, 0, 1]])}
    answer = {"localization": np.array([[1, 0, 1, 1]]), "damage": np.array([[3, 2, 4, 1]])}
    assert kinds(pairs.errors(answer, truth)) == {MISSED: [[0, 1]], FALSE_ALARM: [[0, 2]], OTHER_CLASS: [[0, 0]]}


# ---- pictures -----------------------------------------------------------------------------------------
def test_errors_are_outlined_in_the_colour_of_their_kind_but_for_thin_ones():
    mask, edge = np.zeros((2, 128, 128), bool)
    mask[40:80, 40:80] = True
    edge[:, 100:102] = True  # one pixel wide where the picture has half the size
    competition = SimpleNamespace(labelled=lambda scene: True, truth=lambda scene: "truth",
                                  errors=lambda answer, truth: {MISSED: mask, FALSE_ALARM: edge})  # fmt: skip
    panels = [("before", np.full((64, 64, 3), 8, np.uint8)), ("after", np.full((64, 64, 3), 40, np.uint8)),
              ("truth", np.zeros((64, 64, 3), np.uint8)), ("prediction", np.zeros((64, 64, 3), np.uint8))]  # fmt: skip
    note, image = pictures.outline_errors(competition, Scene("a", {}), "answer", panels)
    assert note == "red: missed, blue: false alarm"
    red = (image == pictures.COLOURS[MISSED]).all(2)
    assert red[20, 20:40].all() and red[20:40, 39].all() and not red[23:37, 23:37].any()
    assert (image[~red] == 20).all(), "the last image before the truth, dimmed; the thin error has no outline"
    assert not red[:, 48:].any() and not red[:18].any()
    assert pictures.outline_errors(SimpleNamespace(labelled=lambda scene: False), None, None, panels) is None


def test_the_scenes_that_drag_the_score_down_come_first_and_none_twice(tmp_path, monkeypatch):
    names = "abcd"
    scored = [figures.SceneScore(id=name, fold=0, domain="", score=0.5, without=value)
              for name, value in zip(names, (0.2, 0.9, 0.8, 0.3))]  # fmt: skip
    Figures(scenes=scored).write(tmp_path / "figures.json")
    strata = {"a": {"x": True, "y": True}, "b": {"x": False, "y": False}, "c": {"x": True, "y": False}}
    run = SimpleNamespace(
        graph=SimpleNamespace(decode=lambda: None),
        store=SimpleNamespace(folder=lambda unit: tmp_path),
        competition=SimpleNamespace(scenes=lambda split: [Scene(name, {}) for name in "abc"],
                                    strata=lambda scene: strata[scene.id]),
    )  # fmt: skip
    monkeypatch.setattr(pictures, "averaged_scenes", lambda run, split: [Scene(name, {}) for name in "abc"])
    assert [(one.id, one.why) for one in pictures.wanted(run)] == [("b", "worst"), ("c", "worst"), ("a", "worst")]
    monkeypatch.setattr(pictures, "WORST", 1)
    assert [(one.id, one.why) for one in pictures.wanted(run)] == [("b", "worst"), ("a", "best"), ("c", "best")]
    (tmp_path / "figures.json").unlink()
    assert [(one.id, one.why) for one in pictures.wanted(run)] == [(name, "fullest") for name in "acb"]


@pytest.mark.parametrize(("name", "options"), [("voc", {"classes": ["none", "a", "b b"]}), ("xview2", {}),
                                               ("multiclass_rle", {"classes": ["a", "b"]})])  # fmt: skip
def test_a_legend_has_the_colours_that_are_painted(tmp_path, name, options):
    competition = open_competition(name, tmp_path, options)
    for number, (kind, colour) in enumerate(competition.legend().items(), 1):
        answer = np.full((1, 1), number, np.uint8)
        if name == "xview2":
            answer = {"localization": np.ones((1, 1)), "damage": answer % 5}
        if name == "multiclass_rle":
            answer = np.arange(1, 3)[:, None, None] == number
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        painted = competition.paint(np.zeros((1, 1, 3), np.uint8), answer)[0, 0]
        assert (painted == (wanted if name == "xview2" else wanted // 2)).all(), kind


def test_one_class_or_a_label_needs_no_legend(tmp_path):
    assert open_competition("binary_rle", tmp_path, {}).legend() == {}
    assert open_competition("labels", tmp_path, {"classes": ["a", "b"]}).legend() == {}
