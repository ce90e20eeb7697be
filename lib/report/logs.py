"""Training logs: a row per epoch, the terms of the loss, new bests."""

import math
from pathlib import Path
from typing import Any

from lib.errors import ArtifactError
from lib.run.manifest import read_lines

TERM = "raw_"

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
    names = dict.fromkeys(name for row in log for name in row)
    return [name.removeprefix(TERM) for name in names if name.startswith(TERM)]


def series(log: Log, name: str) -> tuple[list[int], list[float]]:
    """Return the epochs that have a value, and the values."""
    pairs = [(row["epoch"], row[name]) for row in log if row.get(name) is not None]
    return [epoch for epoch, _ in pairs], [value for _, value in pairs]
