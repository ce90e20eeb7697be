"""Which numbers of false positives and false negatives fit a reported score of hard yes-or-no answers.

Enumerates all pairs. With few scenes, or many decimals, a leaderboard's score gives the count of errors away (Zalo AI
2022, where answers were 0 or 1: "the model is wrong on 2 videos only").

    python -m lib.tools.probe --metric accuracy --positives 300 --negatives 500 --score 0.9975
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np

from lib.errors import ConfigError
from lib.metrics import ratio
from lib.run import cli
from lib.tools import table

WARNING = (
    "Warning: a leaderboard is a small sample, and what is tuned on its answers fits that sample alone (in 2022 "
    "one ensemble's equal error rate went from 0.021 public to 0.064 private). Choose by out-of-fold scores, and see "
    "whether the rules allow probing."
)
EPS = 1e-15
"""How far ``log_loss`` keeps a hard answer from 0 and 1."""
MAX_PAIRS = 10**9
"""More pairs than this are refused: minutes of work, and a list that says nothing."""
CHUNK = 2**20
SHOWN = 40


def accuracy(fp, fn, positives, negatives):
    """Return the share of right answers."""
    return 1 - (fp + fn) / (positives + negatives)


def precision(fp, fn, positives, negatives):
    """Return the share of right answers among the positive ones, 0 without any."""
    return ratio(positives - fn, positives - fn + fp, 0.0)


def recall(fp, fn, positives, negatives):
    """Return the share of positives that were found, 0 without any."""
    return ratio(positives - fn + 0 * fp, positives, 0.0)


def f1(fp, fn, positives, negatives):
    """Return 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall, also called Dice; 1 for 0 / 0."""
    hits = positives - fn
    return ratio(2 * hits + 0 * fp, 2 * hits + fp + fn, 1.0)


def iou(fp, fn, positives, negatives):
    """Return TP / (TP + FP + FN), also called Jaccard; 1 for 0 / 0."""
    hits = positives - fn
    return ratio(hits + 0 * fp, hits + fp + fn, 1.0)


def balanced_accuracy(fp, fn, positives, negatives):
    """Return the mean of the two classes' shares of right answers; a class that is not there has 0."""
    return (ratio(positives - fn, positives, 0.0) + ratio(negatives - fp, negatives, 0.0)) / 2


def eer(fp, fn, positives, negatives):
    """Return the equal error rate of hard answers, 0.5 without one of the classes.

    Their ROC curve has one corner; the rate lies on the line from it to (0, 0) or to (1, 1), as scikit-learn's curve
    and linear interpolation have it.
    """
    if not positives or not negatives:
        return np.full(np.broadcast_shapes(np.shape(fp), np.shape(fn)), 0.5)
    accepted, rejected = np.broadcast_arrays(fp / negatives, fn / positives)
    below = accepted >= rejected  # the curve meets the diagonal before the corner
    return np.where(below, accepted, rejected) / np.where(below, accepted + 1 - rejected, 1 - accepted + rejected)


def log_loss(fp, fn, positives, negatives, eps=EPS):
    """Return the mean negative log-likelihood of answers kept in [eps, 1 - eps].

    Computed as scorers do, in float64: 1 - (1 - eps) is not eps there, so a false positive costs a little more or less.
    """
    right = positives + negatives - fp - fn
    total = -fn * np.log(eps) - fp * np.log(1 - (1 - eps)) - right * np.log1p(-eps)
    return total / (positives + negatives)


METRICS: dict[str, Callable] = {
    "accuracy": accuracy,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "dice": f1,
    "iou": iou,
    "balanced_accuracy": balanced_accuracy,
    "eer": eer,
    "log_loss": log_loss,
}
"""Name -> function of (FP, FN, positives, negatives), FP and FN integer arrays, to (...) float64."""


def probe(metric: str, positives: int, negatives: int, score: float, decimals: int, **options: float) -> np.ndarray:
    """Return all pairs whose metric rounds to ``score``: (K, 2) int64 of FP and FN, fewest errors first.

    A metric half-way between two roundings fits both. ``options``: further arguments of the metric. Raises ConfigError.
    """
    if metric not in METRICS:
        raise ConfigError(f"--metric {metric}: expected one of {', '.join(METRICS)}")
    if min(positives, negatives) < 0 or not positives + negatives:
        raise ConfigError(f"expected counts of scenes, got {positives} positives and {negatives} negatives")
    if (positives + 1) * (negatives + 1) > MAX_PAIRS:
        raise ConfigError(f"{positives} positives x {negatives} negatives: expected at most {MAX_PAIRS:.0e} pairs")
    slack = 0.5 * 10.0**-decimals * (1 + 1e-9) + 1e-12  # a score may be off by the last bits
    fp = np.arange(negatives + 1)[None]  # (1, N + 1)
    rows = max(1, CHUNK // (negatives + 1))
    pairs = []
    for first in range(0, positives + 1, rows):
        fn = np.arange(first, min(first + rows, positives + 1))[:, None]  # (rows, 1)
        values = METRICS[metric](fp, fn, positives, negatives, **options)  # (rows, N + 1)
        missed, found = np.nonzero(np.abs(values - score) <= slack)
        pairs.append(np.stack([found, missed + first], axis=1))
    fitting = np.concatenate(pairs)
    return fitting[np.lexsort((fitting[:, 0], fitting.sum(axis=1)))]


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--metric", required=True, choices=METRICS)
    flags.add_argument("--positives", required=True, type=int, metavar="P", help="scenes whose truth is yes")
    flags.add_argument("--negatives", required=True, type=int, metavar="N", help="scenes whose truth is no")
    flags.add_argument("--score", required=True, help="the score as reported, e.g. 0.9876")
    flags.add_argument("--decimals", type=int, help="decimals of the score (default: as many as --score has)")
    flags.add_argument("--eps", type=float, help=f"log_loss: how far answers are kept from 0 and 1 (default: {EPS:g})")
    args = flags.parse_args(argv)
    try:
        score = float(args.score)
    except ValueError as error:
        raise ConfigError(f"--score {args.score}: expected a number") from error
    if args.eps is not None and args.metric != "log_loss":
        raise ConfigError(f"--eps: only log_loss clips answers, not {args.metric}")
    decimals = len(args.score.partition(".")[2]) if args.decimals is None else args.decimals
    options = {} if args.eps is None else {"eps": args.eps}
    pairs = probe(args.metric, args.positives, args.negatives, score, decimals, **options)
    rows = [{"false positives": int(fp), "false negatives": int(fn), "errors": int(fp + fn)} for fp, fn in pairs]
    if rows:
        print(table.text(rows[:SHOWN]))
        print(f"{len(rows)} pairs fit, {rows[0]['errors']} to {rows[-1]['errors']} errors"
              + (f"; the first {SHOWN} are shown" if len(rows) > SHOWN else ""))  # fmt: skip
    else:
        print("no pair fits: are the answers hard, the counts right, and is the metric this one?")
    print(WARNING)


if __name__ == "__main__":
    sys.exit(main())
