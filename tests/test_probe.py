"""The score probe against other people's metrics, and against all pairs in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn import metrics

from lib.competitions.videos import metric as labels
from lib.errors import ConfigError
from lib.tools import probe

P, N = 7, 11
OTHERS = {
    "accuracy": metrics.accuracy_score,
    "precision": lambda y, p: metrics.precision_score(y, p, zero_division=0),
    "recall": metrics.recall_score,
    "f1": metrics.f1_score,
    "dice": metrics.f1_score,
    "iou": metrics.jaccard_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "eer": lambda y, p: float(labels.eer(labels.histogram(p, y))),
    "log_loss": lambda y, p: metrics.log_loss(y, np.clip(p, 1e-15, 1 - 1e-15), labels=[0, 1]),
}


def answers(fp: int, fn: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and hard answers with that many errors."""
    truth = np.repeat([1, 0], [P, N])
    answer = np.repeat([0, 1, 1, 0], [fn, P - fn, fp, N - fp])
    return truth, answer.astype(float)


@pytest.mark.parametrize("metric", probe.METRICS)
def test_a_metric_is_what_others_compute_from_the_answers(metric):
    assert set(OTHERS) == set(probe.METRICS)
    for fp in (0, 1, 4, N):
        for fn in (0, 2, P):
            truth, answer = answers(fp, fn)
            ours = float(probe.METRICS[metric](np.array(fp), np.array(fn), P, N))
            assert ours == pytest.approx(OTHERS[metric](truth, answer), abs=1e-6), (fp, fn)


EXACT = {
    "accuracy": lambda fp, fn: Fraction(P + N - fp - fn, P + N),
    "f1": lambda fp, fn: Fraction(2 * (P - fn), 2 * (P - fn) + fp + fn),
    "iou": lambda fp, fn: Fraction(P - fn, P + fp),
    "balanced_accuracy": lambda fp, fn: (Fraction(P - fn, P) + Fraction(N - fp, N)) / 2,
}


@pytest.mark.parametrize("metric", EXACT)
@pytest.mark.parametrize(("fp", "fn"), [(0, 0), (2, 1), (5, 5), (N, P)])
@pytest.mark.parametrize("decimals", [1, 3])
def test_all_fitting_pairs_are_found_and_no_other(metric, fp, fn, decimals, monkeypatch):
    monkeypatch.setattr(probe, "CHUNK", 30)  # several chunks
    reported = Fraction(round(EXACT[metric](fp, fn) * 10**decimals), 10**decimals)
    near = Fraction(1, 2 * 10**decimals)
    slow = {(a, b) for a in range(N + 1) for b in range(P + 1) if abs(EXACT[metric](a, b) - reported) <= near}
    pairs = probe.probe(metric, P, N, float(reported), decimals)
    assert {tuple(pair) for pair in pairs.tolist()} == slow and (fp, fn) in slow
    assert len(pairs) == len(slow) and (np.diff(pairs.sum(axis=1)) >= 0).all()


def test_an_accuracy_gives_the_number_of_errors_away():
    pairs = probe.probe("accuracy", 300, 500, 0.9975, 4)  # 2 of 800 are wrong
    assert pairs.tolist() == [[0, 2], [1, 1], [2, 0]]
    assert probe.probe("accuracy", 300, 500, 0.9980, 4).tolist() == []


def test_an_equal_error_rate_of_hard_answers_by_hand():
    # 1 of 4 negatives accepted, no positive rejected: from (0, 0) to the corner (1/4, 1), 4x = 1 - x
    assert probe.eer(np.array(1), np.array(0), 3, 4) == pytest.approx(0.2)
    assert probe.probe("eer", 3, 4, 0.2, 3).tolist() == [[1, 0]]


def test_a_log_loss_depends_on_where_answers_are_clipped():
    one_wrong = -np.log(0.01) / 10 - 0.9 * np.log(0.99)
    assert probe.probe("log_loss", 4, 6, round(one_wrong, 5), 5, eps=0.01).tolist() == [[0, 1], [1, 0]]
    assert not len(probe.probe("log_loss", 4, 6, round(one_wrong, 5), 5))


def test_the_command_reads_the_decimals_off_the_score_and_warns(capsys):
    call = ["--metric", "accuracy", "--positives", "300", "--negatives", "500"]
    assert probe.main([*call, "--score", "0.9975"]) == 0
    said = capsys.readouterr().out
    assert "3 pairs fit, 2 to 2 errors" in said and probe.WARNING in said
    assert probe.main([*call, "--score", "0.9980"]) == 0
    assert "no pair fits" in capsys.readouterr().out
    assert probe.main([*call, "--score", "high"]) == probe.main([*call, "--score", "0.9", "--eps", "0.1"]) == 2


def test_impossible_counts_are_refused():
    for positives, negatives, said in ((-1, 3, "counts"), (0, 0, "counts"), (10**6, 10**6, "pairs")):
        with pytest.raises(ConfigError, match=said):
            probe.probe("f1", positives, negatives, 0.5, 2)
