"""Rows of named values as text for a terminal, and as a CSV file."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.files import write_bytes

Row = Mapping[str, Any]


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the names that occur in any row, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def cell(value: Any) -> str:
    """Write one value: nothing for None, text as it is, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Return aligned columns under their names, numbers to the right; "" without rows."""
    columns = columns_of(rows) if columns is None else list(columns)
    if not rows or not columns:
        return ""
    shown = [[_short(row.get(name)) for name in columns] for row in rows]
    numbers = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in columns]
    widths = [max(map(len, cells)) for cells in zip(columns, *shown)]
    aligned = [[f"{c:>{w}}" if n else f"{c:{w}}" for c, w, n in zip(line, widths, numbers)]
               for line in (columns, *shown)]  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else cell(value)


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Write all rows, the file whole or not at all. ``columns``: the header, else all names of all rows."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, columns_of(rows) if columns is None else columns, lineterminator="\n")
    table.writeheader()
    table.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue().encode())
