"""What is different between experiments that stand side by side."""

from collections.abc import Sequence

from lib.report.blocks import Cell, Chapter, DataTable, Piece, Words
from lib.report.contents import Contents
from lib.report.tables import EXPECTED
from lib.report.units import CHOICE, differences, stated


def differing(experiments: Sequence[Contents], names: Sequence[str]) -> Chapter:
    """Return the section that compares scores and lists the settings that are not the same everywhere."""
    return Chapter("differences", "What differs", [[_scores(experiments, names), *_settings(experiments, names)]])


def _scores(experiments: Sequence[Contents], names: Sequence[str]) -> Piece:
    """Return every score of every experiment, with the gain over the first in percent."""
    found = []
    for one in experiments:
        scores: dict[str, float | None] = {}
        if one.decision is not None:
            scores = {**one.decision.scores, EXPECTED: one.decision.expected}
        found.append({name: value for name, value in scores.items() if value is not None})
    rows: list[list[Cell]] = []
    for score in dict.fromkeys(score for own in found for score in own):
        first = found[0].get(score)
        row: list[Cell] = [score, *(own.get(score) for own in found)]
        for own in found[1:]:
            value = own.get(score)
            row.append(f"{100 * (value / first - 1):+.1f}\u202f%" if value is not None and first else None)
        rows.append(row)
    if not rows:
        return Words("None of them has scores yet.", absent=True)
    columns = ("score", *names, *(f"gain of {name}" for name in names[1:]))
    return DataTable("Out-of-fold scores", columns, rows)


def _settings(experiments: Sequence[Contents], names: Sequence[str]) -> list[Piece]:
    settings = [stated(one.manifests) for one in experiments]
    keys = differences(settings, [CHOICE in one.manifests for one in experiments])
    if not keys:
        return [Words("Their settings are the same, as far as they are known.")]
    rows = [(key, *("not stated" if own.get(key) is None else str(own[key]) for own in settings)) for key in keys]
    return [DataTable("Settings that are not the same", ("setting", *names), rows)]
