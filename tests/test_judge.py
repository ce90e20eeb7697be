"""What a validation looks at besides the score, and that several processes find what one finds."""

import json
import multiprocessing
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import starts

from lib.competitions import open_competition
from lib.competitions.contract import Scene
from lib.config.sections import Predict
from lib.tasks import IGNORE, BinaryMask, Label, MulticlassMask, MultilabelMask
from lib.training.judge import Judge, Reading, argmax_levels, class_shares, is_collapsed, true_levels


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


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_of_exclusive_classes_the_first_of_the_highest_is_called(classes):
    levels = np.random.default_rng(0).integers(0, 4, (classes, 30, 40)).astype(np.uint8)
    task = MulticlassMask(tuple("abcde"[:classes]))
    np.testing.assert_array_equal(task.called(levels), np.arange(classes)[:, None, None] == levels.argmax(0))


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
@pytest.mark.parametrize("role", ["loc", "cls"])
def test_scenes_that_are_read_ahead_score_as_those_read_one_by_one(processes, role):
    one, two = processes
    assert all(found[f"{role} ahead"]["scores"] == one[role]["scores"] for found in (one, *two))
    assert one[f"{role} ahead"]["asked"] == one[role]["asked"]
    assert one["broken ahead"]["error"] == "OSError: no such picture"
    assert two[0]["broken ahead"] == two[0]["broken"]


class Waiting:
    """A competition that leaves a file for each scene it has read, and counts one when the network is at the next."""

    tasks = {"loc": BinaryMask(("x",))}

    def __init__(self, folder: Path):
        self.folder, self.begun = folder, defaultdict(threading.Event)

    def __getstate__(self):
        return {"folder": self.folder}

    def defaults(self):
        return {}

    def size(self, scene):
        return 4, 4

    def read(self, scene, _):
        (self.folder / scene.id).touch()
        return np.full((4, 4, 3), int(scene.id), np.uint8)

    def training_target(self, scene, role, images):
        return np.ones((4, 4), np.uint8)

    def truth(self, scene):
        return int(scene.id)

    def decode(self, levels, _):
        return int(levels["loc"].max())

    def tally(self, answer, truth):
        following = self.begun[truth + 1].wait(20) if self.begun else False
        return np.array([answer, following])

    def scores(self, counts):
        return {"score": float(counts[0])}


def waiting(folder: Path, workers: int, scenes: int):
    asked = SimpleNamespace(task="loc", network=SimpleNamespace(images=("image",)),
                            train=SimpleNamespace(select="score", workers=workers))  # fmt: skip
    return Judge(Waiting(folder), asked, [Scene(str(number), {}) for number in range(scenes)], Predict(), {}, {})


def test_scenes_are_read_and_counted_while_the_network_computes(tmp_path):
    """Before the network answers, another process has read the next scene but one; while it is at a scene, the one
    before is counted, which waits for that."""
    judge, ahead = waiting(tmp_path, 2, 6), []

    def predict(stack, pixel_size):
        number = int(stack[0, 0, 0])
        judge.competition.begun[number].set()
        following, began = tmp_path / str(min(number + 2, 5)), time.monotonic()
        while not following.exists() and time.monotonic() - began < 20:
            time.sleep(0.002)
        ahead.append(following.exists())
        if number == 5:
            judge.competition.begun[6].set()
        return stack[:1] / np.float32(255)

    found = [judged.tallies["official"].tolist() for judged in judge._judged(predict, judge.scenes)]
    assert found == [[number, True] for number in range(6)] and all(ahead)
    assert not multiprocessing.active_children()
    alone = waiting(tmp_path, 0, 6)
    one_by_one = [judged.tallies["official"].tolist() for judged in alone._judged(quick, alone.scenes)]
    assert [count for count, _ in one_by_one] == [count for count, _ in found]


def quick(stack, pixel_size):
    return stack[:1] / np.float32(255)


def test_a_network_that_fails_leaves_no_process_behind(tmp_path):
    judge = waiting(tmp_path, 1, 4)
    with pytest.raises(ZeroDivisionError):
        list(judge._judged(lambda *_: 1 / 0, judge.scenes))
    assert not multiprocessing.active_children()


def test_large_scenes_are_read_one_by_one(tmp_path, monkeypatch):
    judge, size = waiting(tmp_path, 3, 1), 4 * 4 * 3 + 4 * 4
    assert judge._largest(Reading(judge.competition, judge.model, judge.scenes)) == size
    monkeypatch.setattr("lib.training.judge.AHEAD", size - 1)
    monkeypatch.setattr("lib.training.loader.ahead", lambda *_: 1 / 0)
    assert len(list(judge._judged(quick, judge.scenes))) == 1


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
