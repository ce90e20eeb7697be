"""Where the time of an experiment went: what the manifests of its units recorded by their ``clock``."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.run import manifest
from lib.run.clock import NAMES

Row = dict[str, Any]
"""unit (or stage), seconds, then seconds by a name of ``NAMES`` and ``other``, what no name has; None where none is."""


def times(experiment: Path) -> tuple[list[Row], list[str]]:
    """Return a row per unit of an experiment's folder, and the units that recorded no clock, in order of the stages.

    Seconds are of the run that finished a unit. Threads add up, so names may have more than a unit's seconds. Raises
    ArtifactError for a manifest that cannot be read.
    """
    rows: list[Row] = []
    without = []
    for path in sorted(experiment.glob("0[1-6]_*/**/" + manifest.MANIFEST)):
        if any(part.endswith((".partial", ".old")) for part in path.parts):
            continue
        made, unit = manifest.read(path.parent), path.parent.relative_to(experiment).as_posix()
        if isinstance(clock := made.get("clock"), Mapping):
            rows.append(_row("unit", unit, made.get("seconds", 0.0), clock))
        else:
            without.append(unit)
    return rows, without


def by_stage(rows: Iterable[Row]) -> list[Row]:
    """Add up the rows of units by stage: "02_loc", "03_cls", ..., and all of them."""
    rows = list(rows)
    stages = dict.fromkeys(row["unit"].partition("/")[0] for row in rows)
    sums = [_sum(stage, [row for row in rows if row["unit"].partition("/")[0] == stage]) for stage in stages]
    return sums + [_sum("all", rows)] * (len(sums) > 1)


def _sum(stage: str, rows: Sequence[Row]) -> Row:
    clock = {name: sum(row[name] or 0 for row in rows) for name in NAMES if any(row[name] is not None for row in rows)}
    other = [row["other"] for row in rows if row["other"] is not None]
    return {**_row("stage", stage, sum(row["seconds"] for row in rows), clock), "other": sum(other) if other else None}


def _row(title: str, name: str, seconds: float, clock: Mapping[str, float]) -> Row:
    other = seconds - sum(clock.values())
    return {title: name, "seconds": round(float(seconds), 1), **{name: clock.get(name) for name in NAMES},
            "other": round(other, 3) if other > 0 else None}  # fmt: skip


def columns(rows: Iterable[Row]) -> list[str]:
    """Return the columns in which any row has something."""
    rows = list(rows)
    return [name for name in (rows[0] if rows else {}) if any(row[name] is not None for row in rows)]


def note(without: Sequence[str]) -> str:
    """Say which units have no clock, "" where all have one."""
    return f"without times (made by an earlier version): {', '.join(without)}" if without else ""
