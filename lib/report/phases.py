"""The history of training in phases: how far each term of the loss fell from the first epoch of a phase to its last."""

from collections.abc import Sequence

from lib.report.blocks import Cell, DataTable
from lib.report.logs import TERM, Log, series, terms

SHARES = (0.05, 0.20, 0.50, 0.89, 1.0)
"""Where phases end, as shares of all epochs: after 5, 20, 50, 89 and 100 of 100. A published report on three networks
for animals divides its history so (row A25 of ARCHITECTURE.md)."""


def phases(epochs: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last epoch of each phase; of few epochs there are fewer phases, none is empty."""
    if not epochs:
        return []
    ends = sorted({max(1, round(share * len(epochs))) for share in SHARES})
    return [(epochs[start], epochs[end - 1]) for start, end in zip([0, *ends], ends)]


def table(model: str, log: Log) -> DataTable | None:
    """Return a row per phase with every loss term, unweighted, and the loss, from its first epoch to its last.

    The last row has the fall of each from its first value to the lowest at the end of a phase, in percent, as the
    report of ``SHARES`` states it. None without epochs.
    """
    spans = phases([row["epoch"] for row in log])
    names = [*(TERM + name for name in terms(log)), "loss"]
    if not spans:
        return None
    columns = {name: dict(zip(*series(log, name))) for name in names}
    rows: list[list[Cell]] = [[_span(span), *(_change(columns[name], span) for name in names)] for span in spans]
    rows.append(["fall to the lowest end", *(_fall(columns[name], spans) for name in names)])
    return DataTable(f"{model}: phases of training", ("epochs", *(name.removeprefix(TERM) for name in names)), rows)


def _span(span: tuple[int, int]) -> str:
    return f"{span[0]}" if span[0] == span[1] else f"{span[0]} to {span[1]}"


def _within(values: dict[int, float], span: tuple[int, int]) -> list[float]:
    return [value for epoch, value in values.items() if span[0] <= epoch <= span[1]]


def _change(values: dict[int, float], span: tuple[int, int]) -> str:
    own = _within(values, span)
    return "" if not own else f"{own[0]:.3f}" if len(own) == 1 else f"{own[0]:.3f} → {own[-1]:.3f}"


def _fall(values: dict[int, float], spans: Sequence[tuple[int, int]]) -> str:
    """Return by how much the lowest end of a phase is below the first value; "" where that says nothing."""
    ends = [own[-1] for span in spans if (own := _within(values, span))]
    first = next(iter(values.values()), 0)
    return f"{100 * (1 - min(ends) / first):.1f}\u202f%" if ends and first > 0 else ""
