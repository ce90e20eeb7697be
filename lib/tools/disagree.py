"""Where two or more submissions disagree: rows ranked by how far apart their scores or their masks are.

Any CSV: the first column (or ``--id``) names the row, the others hold numbers, run-length masks or words, which is seen
by looking. A row that is repeated (one per object) counts as one mask, the union. Masks are compared as runs: neither
the images' shapes nor the order of pixels matters.

    python -m lib.tools.disagree old/submission.csv new/submission.csv
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.errors import DataError
from lib.run import cli
from lib.scenes import rle
from lib.tools import table
from lib.tools.probe import WARNING

RUNS = re.compile(r"\s*(\d+\s+\d+\s*)*")


def disagree(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """Return the cells in which submissions are not all the same, furthest apart first.

    tables: name -> what ``read`` gives. A row holds id, column, difference, and each submission's value: numbers
    (difference: largest - smallest), words (1), or pixels of a mask (1 - the smallest IoU of two of them, with the
    smallest iou and dice beside it; two empty masks are equal). Raises DataError where ids or columns are not
    the same, and for damaged runs.
    """
    names, frames = list(tables), list(tables.values())
    if len(frames) < 2:
        raise DataError(f"expected two submissions or more, got {len(frames)}")
    for name, frame in zip(names[1:], frames[1:], strict=True):
        if list(frame.columns) != list(frames[0].columns):
            raise DataError(f"{name}: expected columns {', '.join(frames[0])}, got {', '.join(frame)}")
        if odd := set(frame.index) ^ set(frames[0].index):
            raise DataError(f"{name} and {names[0]} have not the same ids ({len(odd)} differ, e.g. {min(odd)!r})")
    rows = []
    for column in frames[0]:
        cells = [frame[column].reindex(frames[0].index) for frame in frames]
        rows += _compare(column, dict(zip(names, cells, strict=True)))
    return sorted(rows, key=lambda row: (-row["difference"], row["id"]))


def _compare(column: str, cells: Mapping[str, pd.Series]) -> list[dict[str, Any]]:
    """Return the rows of one column that differ; cells: submission -> a list of texts for every id."""
    ids = next(iter(cells.values())).index
    texts = np.array([["\n".join(parts) for parts in series] for series in cells.values()], dtype=object)  # (S, rows)
    numbers = pd.to_numeric(pd.Series(texts.ravel()), errors="coerce").to_numpy(np.float64).reshape(texts.shape)
    moved = np.flatnonzero((texts != texts[0]).any(axis=0))
    if np.isfinite(numbers).all():
        apart = numbers.max(axis=0) - numbers.min(axis=0)
        return [
            {"id": ids[i], "column": column, "difference": float(apart[i]), **_named(cells, numbers[:, i].tolist())}
            for i in np.flatnonzero(apart > 0)
        ]
    if not all(RUNS.fullmatch(text) for text in texts.ravel()):
        return [
            {"id": ids[i], "column": column, "difference": 1.0, **_named(cells, texts[:, i].tolist())} for i in moved
        ]
    rows = []
    for i in moved:
        masks = [_runs(f"{name}: {ids[i]}", series.iloc[i]) for name, series in cells.items()]
        shares = [overlap(a, b) for a, b in combinations(masks, 2)]
        iou, dice = min(share[0] for share in shares), min(share[1] for share in shares)
        pixels = [int(mask[:, 1].sum()) for mask in masks]
        rows.append({"id": ids[i], "column": column, "difference": 1 - iou, "iou": iou, "dice": dice,
                     **_named(cells, pixels)})  # fmt: skip
    return [row for row in rows if row["difference"] > 0]


def _named(cells: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(cells, values, strict=True))


def _runs(where: str, texts: Sequence[str]) -> np.ndarray:
    """Return the union of the masks that texts hold: (R, 2) int64 of first pixel and length, sorted and apart."""
    parts = []
    for text in texts:
        runs, fault = rle.parse(text, origin=0)
        if fault:
            raise DataError(f"{where}: expected sorted, separate 'start length' pairs, got {fault}: {text[:40]!r}")
        parts.append(runs)
    runs = np.concatenate(parts)
    if len(parts) < 2 or not len(runs):
        return runs
    runs = runs[runs[:, 0].argsort(kind="stable")]
    ends = np.maximum.accumulate(runs.sum(axis=1))
    first = np.concatenate([[True], runs[1:, 0] > ends[:-1]])  # starts after everything before it
    starts = runs[first, 0]
    return np.stack([starts, ends[np.append(first[1:], True)] - starts], axis=1)


def overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return IoU and Dice of two masks given as runs, (R, 2) int64 of first pixel and length each, sorted and apart.

    Two empty masks are equal: 1. No pixel is drawn.
    """
    both = int((_covered(b, a.sum(axis=1)) - _covered(b, a[:, 0])).sum())
    total = int(a[:, 1].sum() + b[:, 1].sum())
    return (both / (total - both), 2 * both / total) if total else (1.0, 1.0)


def _covered(runs: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Count the pixels of a mask that lie before each of ``pixels``: (R, 2) runs, (N,) -> (N,) int64."""
    if not len(runs):
        return np.zeros(len(pixels), np.int64)
    before = np.concatenate([[0], np.cumsum(runs[:, 1])])
    at = np.searchsorted(runs[:, 0], pixels, side="right") - 1  # the run that begins last, -1: none does
    inside = np.minimum(pixels - runs[at, 0], runs[at, 1])
    return np.where(at < 0, 0, before[at] + inside)


def read(path: Path, column: str | None = None) -> pd.DataFrame:
    """Read a submission as text: index id, columns of lists, one text for each row of that id. Raises DataError.

    ``column``: the one with the ids, else the first.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a CSV file, got {error}") from error
    column = frame.columns[0] if column is None else column
    if column not in frame or len(frame.columns) < 2:
        raise DataError(f"{path}: expected a column {column!r} and others, got {', '.join(frame.columns)}")
    return frame.groupby(column, sort=False).agg(list)


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("submissions", nargs="+", type=Path, help="two CSV files or more")
    flags.add_argument("--id", help="the column that names a row (default: the first)")
    flags.add_argument("--rows", type=int, default=30, help="rows to print (default: 30)")
    flags.add_argument("--least", type=float, default=0.0, help="smallest difference to print")
    flags.add_argument("--out", type=Path, help="write all rows that differ to this CSV")
    args = flags.parse_args(argv)
    tables = {str(path): read(path, args.id) for path in args.submissions}
    found = [row for row in disagree(tables) if row["difference"] >= args.least]
    if args.out:
        table.write_csv(args.out, found)
    if found:
        print(table.text(found[: args.rows]))
    count = sum(frame.size for frame in list(tables.values())[:1])
    print(f"{len(found)} of {count} values differ" + (f" by {args.least:g} or more" if args.least else "")
          + (f"; the first {args.rows} are shown" if len(found) > args.rows else ""))  # fmt: skip
    print(WARNING)


if __name__ == "__main__":
    sys.exit(main())
