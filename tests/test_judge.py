"""What a validation looks at besides the score, and that several processes find what one finds."""

import json
from pathlib import Path

import numpy as np
import pytest
import starts

from lib.competitions import open_competition
from lib.tasks import IGNORE, BinaryMask, Label, MulticlassMask, MultilabelMask
from lib.training.judge import argmax_levels, class_shares, is_collapsed, true_levels


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


# ---- several processes ---------------------------------------------------------------------------------
def judge_in(folder: Path, processes: int) -> list[dict]:
    """Run tests/judging.py in so many processes (gloo); returns what each of them found."""
    folder.mkdir()
    script = Path(__file__).with_name("judging.py")
    assert starts.ranks(processes, script, folder) == [0] * processes
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> tuple[dict, list[dict]]:
    """What one process finds, and what each of two finds."""
    folder = tmp_path_factory.mktemp("judging")
    return judge_in(folder / "one", 1)[0], judge_in(folder / "two", 2)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["loc", "cls"])
def test_two_processes_score_as_one_to_the_bit(processes, role):
    """Five scenes over two processes: an odd number; the tallies are floats whose sum depends on its order."""
    one, two = processes
    assert two[0][role]["scores"] == two[1][role]["scores"] == one[role]["scores"]
    assert one[role]["scores"]["oracle_score" if role == "cls" else "pixel_f1"] > 0
    assert {found[role]["training"] for found in two} == {True}, "the mode is left as it was"


@pytest.mark.slow
def test_each_process_asks_for_localization_of_its_own_scenes_alone(processes):
    one, two = processes
    assert one["cls"]["asked"] == ["s0", "s1", "s2", "s3", "s4"]
    assert [found["cls"]["asked"] for found in two] == [["s0", "s2", "s4"], ["s1", "s3"]]


@pytest.mark.slow
def test_all_processes_judge_the_network_of_the_first(processes):
    """Norm statistics differ without SyncBN; rank 0's are what is saved, so they are what is judged."""
    one, two = processes
    assert two[0]["loc"]["mean"] == two[1]["loc"]["mean"] == one["loc"]["mean"] == [0.0]


@pytest.mark.slow
def test_a_scene_that_fails_in_one_process_ends_the_validation_in_all(processes):
    one, two = processes
    assert one["broken"]["error"] == "OSError: no such picture"
    assert [found["broken"]["error"] for found in two] == [
        "ArtifactError: validation failed in process 1: OSError: no such picture", "OSError: no such picture",
    ]  # fmt: skip


# ---- the argmax alone ----------------------------------------------------------------------------------
def f1(called, true):
    overlap = (called & true).sum()
    return 2 * overlap / (called.sum() + true.sum())


def test_the_argmax_score_is_the_selection_of_2020(tmp_path):
    """Its rule, in the terms of the original: building F1 of "argmax > 0" against the truth, which it feeds to the
    scorer the other way round; F1 of each damage class among the truth's buildings, as their harmonic mean."""
    competition = open_competition("xview2", tmp_path)
    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(rng.integers(0, 5, (8, 8)), 8, 0), 8, 1).astype(np.uint8)
    levels = rng.integers(0, 200, (5, 64, 64)).astype(np.uint8)
    levels[truth, np.arange(64)[:, None], np.arange(64)] += 50
    full = argmax_levels(levels, competition.tasks["cls"], "cls", ["loc"])
    assert set(np.unique(full["loc"])) == {0, 255} and full["loc"].shape == (1, 64, 64)
    answer = competition.decode(full, competition.defaults())
    found = competition.scores(competition.tally(answer, {"localization": (truth > 0).astype(np.uint8),
                                                               "damage": truth}))  # fmt: skip
    argmax, inside = levels.argmax(0), truth > 0
    classes = [f1((argmax == c) & inside, truth == c) for c in range(1, 5)]
    damage = 4 / sum(1 / (value + 1e-6) for value in classes)
    assert found["localization_f1"] == pytest.approx(f1(argmax > 0, inside))
    assert found["score"] == pytest.approx(0.3 * f1(argmax > 0, inside) + 0.7 * damage)
