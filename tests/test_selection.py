"""Greedy weights against a plain loop and against leakage."""

import numpy as np
import pytest

from lib.ensemble.selection import greedy

NAMES = ("a", "b", "c")


def accuracy(counts):
    right, wrong = np.moveaxis(counts, -1, 0)
    return right / np.maximum(right + wrong, 1)


class Members:
    """Noisy opinions on yes or no, three folds; ``evaluate`` counts right and wrong answers of averages."""

    def __init__(self, seed=0, noise=(0.5, 0.6, 1.5), thresholds=(0.5,), size=400):
        rng = np.random.default_rng(seed)
        self.truth = rng.random((3, size)) < 0.5
        self.said = {name: self.truth + rng.normal(0, s, self.truth.shape) for name, s in zip(NAMES, noise)}
        self.thresholds, self.calls = thresholds, []

    def counts(self, weights):
        mean = sum(weights[name] * said for name, said in self.said.items())
        right = np.stack([((mean >= t) == self.truth).sum(1) for t in self.thresholds], 1)  # (3, P)
        return {fold: np.stack([r, self.truth.shape[1] - r], -1) for fold, r in enumerate(right)}

    def evaluate(self, lists):
        self.calls.append(lists)
        return [self.counts(weights) for weights in lists]


def by_hand(members, folds, rounds):
    """Caruana's loop on some folds, one threshold; returns the best bag as weights."""

    def value(bag):
        weights = {name: bag.count(name) / len(bag) for name in NAMES}
        counts = members.counts(weights)
        return accuracy(sum(counts[k][0] for k in folds))

    bag = max([[name] for name in NAMES], key=value)
    path = [bag]
    for _ in range(rounds):
        bag = max([[*bag, name] for name in NAMES], key=value)
        path.append(bag)
    best = max(path, key=value)
    return {name: best.count(name) / len(best) for name in NAMES}


@pytest.mark.parametrize("seed", range(4))
def test_greedy_equals_a_plain_loop_with_every_fold_left_out_once(seed):
    members = Members(seed)
    found = greedy([NAMES], members.evaluate, accuracy, rounds=6)
    assert found.weights == pytest.approx(by_hand(members, (0, 1, 2), 6))
    held_out = 0
    for k in range(3):
        weights = by_hand(members, [j for j in range(3) if j != k], 6)
        assert found.without[k][0] == pytest.approx(weights)
        held_out = held_out + members.counts(found.without[k][0])[k][0]
    assert found.expected == accuracy(held_out)
    assert found.equal == accuracy(sum(t[0] for t in members.counts(dict.fromkeys(NAMES, 1 / 3)).values()))
    assert found.in_sample == max(score for _, score in found.path) >= found.path[0][1]


def test_each_round_is_one_pass_and_no_weights_are_counted_twice():
    members = Members()
    found = greedy([NAMES], members.evaluate, accuracy, rounds=5)
    assert len(members.calls) <= 6 and all(members.calls)
    keys = [tuple(round(w[name], 9) for name in NAMES) for call in members.calls for w in call]
    assert len(set(keys)) == len(keys) == found.evaluated


def test_a_name_drawn_twice_weighs_more_and_a_bad_one_nothing():
    found = greedy([NAMES], Members(1, noise=(0.5, 0.7, 30.0), size=4000).evaluate, accuracy, rounds=8)
    assert found.weights["a"] > found.weights["b"] > found.weights["c"] == 0
    assert sum(found.weights.values()) == pytest.approx(1) and found.expected > found.equal


def test_thresholds_are_chosen_with_the_weights_on_the_same_folds():
    members = Members(2, thresholds=(0.1, 0.4, 0.5, 0.9))
    found = greedy([NAMES], members.evaluate, accuracy, rounds=4, shape=(4,))
    table = sum(members.counts(found.weights).values())
    assert found.point == accuracy(table).argmax() and found.in_sample == accuracy(table).max()
    for k, (weights, point) in found.without.items():
        counts = members.counts(weights)
        assert point == accuracy(sum(t for j, t in counts.items() if j != k)).argmax()


def test_chosen_on_noise_the_expectation_is_no_better_than_chance():
    gains = []
    for seed in range(12):
        found = greedy([NAMES], Members(seed, noise=(60, 60, 60), size=60).evaluate, accuracy, rounds=2)
        gains.append((found.in_sample - 0.5, found.expected - 0.5))
    searched, honest = np.mean(gains, 0)
    assert searched > 0.02 and abs(honest) < searched / 2


def test_every_group_keeps_a_member_and_a_plain_score_is_enough():
    aim = {"a": 0.75, "b": 0.25, "x": 0.0, "y": 1.0}
    found = greedy(
        [("a", "b"), ("x", "y")],
        lambda lists: [{0: np.array([-sum((w[n] - aim[n]) ** 2 for n in aim)])} for w in lists],
        lambda counts: counts[..., 0],
        rounds=4,
    )
    assert found.weights == aim and found.expected is None and not found.without
    small = greedy([("a", "b")], lambda lists: [{0: np.array([-abs(w["a"] - 0.6)])} for w in lists],
                   lambda counts: counts[..., 0], rounds=5, plateau=0.11)  # fmt: skip
    assert small.weights == {"a": 0.5, "b": 0.5}  # near enough, and smaller than three to two
    for groups in ([], [()], [("a",), ("a",)]):
        with pytest.raises(ValueError, match="distinct names"):
            greedy(groups, None, None, 1)
