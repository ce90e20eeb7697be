"""Learning curves: the loss terms and the validation score of every epoch, with a star at each new best.

Reads the training logs of whole experiments, those of networks still in training included; several experiments are
drawn over each other. Beside the picture lies a CSV with a row per epoch and everything the logs say.

    python -m lib.tools.curves workdir/demo workdir/other
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lib.errors import ArtifactError
from lib.files import whole_file
from lib.run import cli
from lib.run.manifest import read_lines
from lib.tools import table

TERM = "raw_"
STYLES = ("-", "--", ":", "-.")
LEGEND = 24
"""Most names in a legend; more would hide the curves."""

Log = list[dict[str, Any]]
"""One row per epoch: epoch, loss, lr, raw and weighted terms, scores by their names, ``new_best``."""


def read_logs(experiment: Path) -> dict[str, Log]:
    """Return the log of every checkpoint of an experiment's folder: "unet/fold0" -> rows. Raises ArtifactError."""
    logs = {}
    for path in sorted(experiment.glob("0[23]_*/*/fold*/log.jsonl")):
        name = f"{path.parts[-3]}/{path.parts[-2].removesuffix('.partial')}"
        if not path.parts[-2].endswith(".old"):
            logs[name] = mark_best(rows_of(path))  # of a network that is trained anew, the new log
    if not logs:
        raise ArtifactError(f"{experiment}: expected logs of training, found none; run stage 02 or 03")
    return logs


def rows_of(path: Path) -> Log:
    """Read a log.jsonl: one row per epoch, its validation's scores as ``score.<name>``. Raises ArtifactError."""
    rows = []
    for entry in read_lines(path):
        groups = {name: entry.pop(name, {}) for name in ("scores", "amp", "gpu_percent")}
        rows.append(entry | {f"{group.removesuffix('s')}.{name}": value
                             for group, values in groups.items() for name, value in values.items()})  # fmt: skip
    return rows


def mark_best(rows: Log) -> Log:
    """Say in ``new_best`` of every row whether its validation score is above all before it.

    Networks that keep their last epoch call each of them best in the log; here the word has one meaning.
    """
    best, marked = -math.inf, []
    for row in rows:
        score = row.get("score.select", -math.inf)
        marked.append({**row, "new_best": score > best})
        best = max(best, score)
    return marked


def terms(log: Log) -> list[str]:
    """Return the names of the loss terms, without ``raw_``."""
    return [name.removeprefix(TERM) for name in table.columns_of(log) if name.startswith(TERM)]


def series(log: Log, name: str) -> tuple[list[int], list[float]]:
    """Return the epochs that have a value, and the values."""
    pairs = [(row["epoch"], row[name]) for row in log if row.get(name) is not None]
    return [epoch for epoch, _ in pairs], [value for _, value in pairs]


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
