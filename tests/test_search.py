"""Flat tops, nested validation against a plain loop, acceptance and intervals, on a metric made for the test."""

from functools import partial
from itertools import product

import numpy as np
import pytest

from lib.competitions.decoding import Setting, axis_faults
from lib.ensemble.search import MAX_POINTS, accept, bootstrap, choose, choose_variant, lattice, nested


def share(counts):
    """A metric that is not the mean of its parts: hits / (hits + misses); counts: (..., 2)."""
    hits, misses = np.moveaxis(counts, -1, 0)
    return hits / np.maximum(hits + misses, 1)


def table(scores):
    """Counts (P, 2) that score as given, in thousandths."""
    thousandths = np.round(np.ravel(scores) * 1000).astype(np.int64)
    return np.stack([thousandths, 1000 - thousandths], axis=-1)


# ---- lattice --------------------------------------------------------------------------------------------
def test_lattice_lists_all_combinations_with_the_last_axis_fastest():
    grid = lattice({"b": [0.1, 0.2], "a": [1, 2, 3]}, {"a": 0, "b": 0, "c": 7})
    expected = [{"a": a, "b": b, "c": 7} for b, a in product([0.1, 0.2], [1, 2, 3])]
    assert grid.shape == (2, 3) and len(grid) == 6
    assert list(grid) == expected and [grid[i] for i in np.arange(6)] == expected
    assert grid[-1] == expected[-1]
    with pytest.raises(IndexError):
        grid[6]


def test_lattice_without_axes_is_the_defaults():
    grid = lattice({}, {"a": 1})
    assert grid.shape == () and list(grid) == [{"a": 1}]
    assert choose(table([0.3]), share, grid.shape, plateau=0.01) == 0


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"d": [1]}, "search.axes.d: unknown setting"),
        ({"a": []}, "search.axes.a: expected distinct"),
        ({"a": [1, 2, 1.0]}, "search.axes.a: expected distinct"),
        ({"a": range(2000), "b": range(1000)}, "2,000,000"),
    ],
)
def test_what_cannot_be_searched_is_refused(axes, says):
    settings = {"a": Setting(0, "one setting"), "b": Setting(0, "another one")}
    assert says in "\n".join(axis_faults(settings, axes, MAX_POINTS))
    assert MAX_POINTS < 2_000_000


# ---- choose ---------------------------------------------------------------------------------------------
def test_flat_top_is_preferred_to_a_needle_within_the_plateau():
    scores = [0.10, 0.70, 0.10, 0.40, 0.69, 0.69, 0.69, 0.40]
    assert choose(table(scores), share, (8,), plateau=0.02) == 5
    assert choose(table(scores), share, (8,), plateau=0.005) == 1  # too far below the best to count as equal


def test_flat_top_in_two_axes_counts_diagonal_neighbours():
    scores = np.full((5, 5), 0.2)
    scores[0, 4] = 0.7
    scores[1:4, 0:3] = 0.695
    scores[1, 0] = 0.3  # a bad corner: only a step along both axes at once meets it
    scores[4, 1:4] = 0.6
    point = choose(table(scores), share, scores.shape, plateau=0.01)
    means = {
        (i, j): scores[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean()
        for i, j in np.ndindex(scores.shape)
        if scores[i, j] >= 0.69
    }
    assert np.unravel_index(point, scores.shape) == max(means, key=means.get)


def test_choice_equals_a_plain_loop_over_neighbours():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(rng.integers(1, 5, 3))
        scores = rng.integers(600, 640, shape) / 1000
        means = np.empty(shape)
        for place in np.ndindex(shape):
            steps = product(*(range(max(p - 1, 0), min(p + 2, n)) for p, n in zip(place, shape)))
            means[place] = np.mean([scores[step] for step in steps])
        near = [place for place in np.ndindex(shape) if scores[place] >= scores.max() - 0.0125]
        expected = max(near, key=lambda place: (round(means[place], 12), scores[place]))
        assert choose(table(scores), share, shape, plateau=0.0125) == np.ravel_multi_index(expected, shape)


def test_equal_scores_give_the_first_point():
    assert choose(table(np.full(12, 0.5)), share, (3, 4), plateau=0.1) == 0


def test_choice_ignores_points_below_the_plateau_however_flat_they_lie():
    assert choose(table([0.9, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8]), share, (7,), plateau=0.05) == 0


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected 6 finite scores"):
        choose(table([0.1, 0.2]), share, (2, 3), plateau=0.1)
    with pytest.raises(ValueError, match="1 that are not finite"):
        choose(table([0.1, 0.2]), lambda counts: np.array([np.nan, 1]), (2,), plateau=0.1)


# ---- nested ---------------------------------------------------------------------------------------------
def random_groups(seed, names="abcd", points=12):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 50, (points, 2)) for name in names}


def nothing(groups):
    """A baseline that every point beats: no hit in one try."""
    return {name: np.array([0, 1]) for name in groups}


def test_nested_equals_a_plain_loop():
    groups, shape = random_groups(1), (3, 4)
    pick = partial(choose, score=share, shape=shape, plateau=0.01)
    result = nested(groups, share, pick, nothing(groups))
    held_out, chosen = np.zeros(2, int), {}
    for left_out in groups:
        rest = np.zeros((12, 2), int)
        for name, counts in groups.items():
            if name != left_out:
                rest += counts
        chosen[left_out] = choose(rest, share, shape, 0.01)
        held_out += groups[left_out][chosen[left_out]]
    total = np.sum(list(groups.values()), axis=0)
    assert result.chosen == chosen and result.expected == held_out[0] / held_out.sum()
    assert result.point == choose(total, share, shape, 0.01)
    assert result.in_sample == share(total[result.point])


def test_settings_without_a_search_are_kept_where_nothing_scores_higher_by_each_fold_for_itself():
    groups = {"a": table([0.5, 0.4]), "b": table([0.5, 0.7]), "c": table([0.5, 0.7])}
    baseline = {"a": table([0.7])[0], "b": table([0.6])[0], "c": table([0.6])[0]}
    found = nested(groups, share, partial(choose, score=share, shape=(2,), plateau=0.0), baseline)
    assert found.point is None and found.in_sample == pytest.approx(1.9 / 3)
    assert found.chosen == {"a": 1, "b": None, "c": None}
    assert found.expected == pytest.approx((0.4 + 0.6 + 0.6) / 3)


def test_nested_does_not_depend_on_the_order_or_names_of_groups():
    groups = random_groups(2)
    pick = partial(choose, score=share, shape=(12,), plateau=0.01)
    result = nested(groups, share, pick, nothing(groups))
    others = {name.upper(): groups[name] for name in "dbca"}
    renamed = nested(others, share, pick, nothing(others))
    assert (renamed.point, renamed.in_sample, renamed.expected) == (result.point, result.in_sample, result.expected)
    assert renamed.chosen == {name.upper(): point for name, point in result.chosen.items()}


def test_nested_exposes_a_gain_that_is_only_noise():
    rng = np.random.default_rng(3)
    optimism = []
    for _ in range(30):
        hits = rng.binomial(40, 0.5, (4, 200))  # every point is as good as any other
        groups = {fold: np.stack([row, 40 - row], axis=-1) for fold, row in enumerate(hits)}
        result = nested(groups, share, partial(choose, score=share, shape=(200,), plateau=0.0), nothing(groups))
        optimism.append((result.in_sample - 0.5, result.expected - 0.5))
    in_sample, expected = np.mean(optimism, axis=0)
    assert in_sample > 0.08 and abs(expected) < 0.03


def test_nested_needs_two_groups_and_a_whole_baseline():
    with pytest.raises(ValueError, match="at least 2 groups"):
        nested(random_groups(4, "a"), share, np.argmax, {"a": np.ones(2)})
    with pytest.raises(ValueError, match="baseline"):
        nested(random_groups(4, "ab"), share, np.argmax, baseline={"a": np.ones(2)})


# ---- accept, bootstrap ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("candidate", "accepted"), [([6, 5], True), ([9, 4], False), ([5, 5], False), ([5, 6], True), ([4, 4], False)]
)
def test_a_step_is_accepted_only_if_no_class_pays_for_it(candidate, accepted):
    def total(counts):
        return counts.sum(axis=-1)

    assert accept(np.array([5, 5]), np.array(candidate), total, lambda counts: counts) is accepted


def test_bootstrap_holds_the_score_and_is_seeded():
    rng = np.random.default_rng(5)
    hits = rng.integers(0, 100, 60)
    scenes = np.stack([hits, 100 - hits], axis=-1)
    low, high = bootstrap(scenes, share, n=500, seed=1)
    assert low < share(scenes.sum(axis=0)) < high
    assert (low, high) == bootstrap(scenes, share, n=500, seed=1) != bootstrap(scenes, share, n=500, seed=2)
    error = np.std(hits) / 100 / np.sqrt(len(hits))  # scenes of equal weight: the textbook standard error of a mean
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    narrow = bootstrap(scenes, share, n=500, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_of_equal_scenes_is_a_point():
    scenes = np.tile([3, 1], (5, 1))
    assert bootstrap(scenes, share) == (0.75, 0.75)
    with pytest.raises(ValueError, match="at least one scene"):
        bootstrap(scenes[:0], share)


# ---- variants -----------------------------------------------------------------------------------------
def two_classes(counts):
    """Mean of the right answers of two classes out of ten each, (..., 2)."""
    return counts.mean(-1) / 10


def test_a_variant_is_taken_only_where_it_scores_higher_and_no_class_gets_worse():
    plain = np.array([[5, 5], [6, 4]])  # two points
    better, uneven, best = [[6, 6], [5, 5]], [[10, 4], [3, 3]], [[5, 5], [7, 6]]

    def chosen(*variants):
        table = np.concatenate([plain, *map(np.array, variants)])
        return choose_variant(table, 1 + len(variants), two_classes, lambda c: c / 10, (2,), 0.0)

    assert chosen() == choose(plain, two_classes, (2,), 0.0)
    assert chosen(better) == 2 and chosen(uneven) < 2, "the second class of the uneven one falls from 5 to 4"
    assert chosen(better, uneven, best) == 7 and chosen(best, better) == 3
    assert chosen(plain) < 2, "the same score is no reason"


def test_nested_choice_of_a_variant_never_sees_the_fold_it_is_scored_on():
    folds = {0: np.array([[9, 9], [1, 1]]), 1: np.array([[1, 1], [2, 2]]), 2: np.array([[1, 1], [2, 2]])}
    pick = partial(choose_variant, variants=2, score=two_classes, class_scores=lambda c: c / 10, shape=(1,),
                   plateau=0.0)  # fmt: skip
    found = nested(folds, two_classes, pick, {k: np.zeros(2, int) for k in folds})
    assert found.point == 0 and found.chosen == {0: 1, 1: 0, 2: 0}
    assert found.expected == two_classes(np.array([1 + 1 + 1, 3]))
