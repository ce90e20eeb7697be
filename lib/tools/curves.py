"""Learning curves: the loss terms and the validation score of every epoch, with a star at each new best.

Reads the training logs of whole experiments, those of networks still in training included; several experiments are
drawn over each other. Beside the picture lies a CSV with a row per epoch and everything the logs say.

    python -m lib.tools.curves workdir/demo workdir/other
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lib.files import whole_file
from lib.report.logs import TERM, Log, read_logs, series, terms
from lib.run import cli
from lib.tools import table

STYLES = ("-", "--", ":", "-.")
LEGEND = 24
"""Most names in a legend; more would hide the curves."""


def as_rows(experiments: Mapping[str, Mapping[str, Log]]) -> list[dict[str, Any]]:
    """Return all epochs of all checkpoints in one table."""
    return [
        {"experiment": name, "checkpoint": checkpoint, **row}
        for name, logs in experiments.items()
        for checkpoint, log in logs.items()
        for row in log
    ]


def draw(experiments: Mapping[str, Mapping[str, Log]], path: Path) -> None:
    """Draw a row of two panels for every model, loss terms and validation score, and write it as a PNG.

    A colour is a checkpoint, a line style a loss term.
    """
    models = list(dict.fromkeys(name.split("/")[0] for logs in experiments.values() for name in logs))
    figure, axes = plt.subplots(len(models), 2, figsize=(13, 4.2 * len(models)), squeeze=False)
    for (left, right), model in zip(axes, models, strict=True):
        lines = [
            (f"{experiment}: {name}" if len(experiments) > 1 else name, log)
            for experiment, logs in experiments.items()
            for name, log in logs.items()
            if name.split("/")[0] == model
        ]
        _draw_model(left, right, lines)
        left.set_title(f"{model}: loss terms, unweighted")
        right.set_title(f"{model}: validation score")
        for axis in (left, right):
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "wb") as file:
        figure.savefig(file, dpi=100, format=path.suffix.removeprefix(".") or None)
    plt.close(figure)


def _draw_model(left, right, lines: Sequence[tuple[str, Log]]) -> None:
    names = list(dict.fromkeys(term for _, log in lines for term in terms(log)))
    for number, (label, log) in enumerate(lines):
        colour = plt.get_cmap("tab10")(number % 10)
        for place, term in enumerate(names):
            left.plot(*series(log, TERM + term), STYLES[place % len(STYLES)], color=colour, linewidth=1.2)
        right.plot(*series(log, "score.select"), "-o", color=colour, markersize=3, label=label)
        best = [row for row in log if row["new_best"]]
        right.plot(*series(best, "score.select"), "*", color=colour, markersize=11)
    for place, term in enumerate(names):
        left.plot([], [], STYLES[place % len(STYLES)], color="black", label=term)
    left.legend(fontsize=8)
    if len(lines) <= LEGEND:
        right.legend(fontsize=8)


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("experiments", nargs="+", type=Path, help="folders of experiments in a workdir")
    flags.add_argument("--out", type=Path, help="the PNG (default: report/curves.png of the first experiment)")
    args = flags.parse_args(argv)
    logs = {folder.resolve().name: read_logs(folder) for folder in args.experiments}
    if len(logs) < len(args.experiments):  # equal names in several workdirs
        logs = {str(folder): read_logs(folder) for folder in args.experiments}
    out = args.out or args.experiments[0] / "report" / "curves.png"
    draw(logs, out)
    table.write_csv(out.with_suffix(".csv"), as_rows(logs))
    print(f"curves: {out}\ntable:  {out.with_suffix('.csv')}")


if __name__ == "__main__":
    sys.exit(main())
