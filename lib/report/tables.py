"""The decision of stage 05 and the comparison of two experiments, as lines of text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.choose import plans
from lib.choose.choice import DECODE, Decision
from lib.competitions.contract import APART
from lib.config.load import load
from lib.config.reference import Figure, written
from lib.errors import ConfigError
from lib.run.cli import Run
from lib.settings import some

EXPECTED = "expected on unseen scenes"
SETTINGS = 254
"""The most settings that are shown; thousands of classes have a gain each."""


def decision_table(run: Run) -> str:
    """Return decode.json as a table: settings, scores, what to expect on unseen scenes."""
    decision, reference = Decision.of(run), run.config.reference
    lines = ["", f"out-of-fold scores ({decision.coverage})"]
    lines += [f"  {name:32s} {value:.4f}" for name, value in decision.scores.items()]
    if decision.interval95 is not None:
        low, high = decision.interval95
        lines.append(f"  {'95 % interval over scenes':32s} {low:.4f} .. {high:.4f}")
    if decision.score_without_search is not None:
        lines.append(f"  {'score without the search':32s} {decision.score_without_search:.4f}")
        shown = "unknown (one fold only)" if decision.expected is None else f"{decision.expected:.4f}"
        lines.append(f"  {EXPECTED:32s} {shown}  (nested cross-validation)")
    if reference is not None:
        lines += [f"  {line}" for line in reference.beside(decision.scores)]
        if absent := [name for name in reference.scores if name not in decision.scores]:
            lines.append(f"  the source's {' and '.join(absent)}: none of our scores here")
    params = decision.params
    lines.append("  settings: " + _pairs({name: value for name, value in params.items() if name not in APART}))
    apart = params.get("per_domain", {}) | ({"unseen domains": params["unseen"]} if "unseen" in params else {})
    lines += [f"  {domain}: {_pairs(own)}" for domain, own in apart.items()]
    lines.append("  weights: " + ", ".join(f"{name} {value:g}" for name, value in decision.weights.items()))
    lines.append(f"  views: {decision.tta}" + (", refined by a CRF" if decision.crf else ""))
    if decision.plans:
        lines += plans.table(decision.plans, list(run.config.models))
    if len(decision.per_domain) > 1:
        lines += _by_table(decision.per_domain, "domain")
    if decision.per_fold:
        lines += _by_table(decision.per_fold, "fold")
    for name, table in decision.tables.items():
        lines += _matrix(name, table)
    return "\n".join([*lines, ""])


def _pairs(settings: Mapping[str, Any]) -> str:
    """Return names and values in one line, the first SETTINGS of very many."""
    return some([f"{name} {value}" for name, value in settings.items()], SETTINGS)


def _matrix(name: str, table: Mapping[str, Any]) -> list[str]:
    """Return a named list of scores as one line, or a matrix as one line per row."""
    rows = {key: row for key, row in table.items() if isinstance(row, Mapping)}
    if not rows:
        return [f"  {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in table.items())]
    columns = list(next(iter(rows.values())))
    width = max(len(name), *map(len, rows))
    lines = [f"  {name:{width}s}  " + "  ".join(f"{column:>12s}" for column in columns) + "   (rows: truth)"]
    return lines + [f"  {key:{width}s}  " + "  ".join(f"{row[c]:12d}" for c in columns) for key, row in rows.items()]


def _by_table(rows: Mapping[str, Mapping[str, Any]], title: str) -> list[str]:
    """Return one line per domain or fold, with its scene count and scores; parts of a score are named by their end."""
    short: dict[str, str] = {}
    for name in next(iter(rows.values())):
        parent = max((p for p in short if name.startswith(f"{p}_")), key=len, default="")
        short[name] = name.removeprefix(f"{parent}_")
    names = [name for name in short if name != "scenes" and list(short.values()).count(short[name]) == 1]
    width = max(len(title), *map(len, rows))
    lines = [f"  {title:{width}s} scenes  " + "  ".join(f"{short[name]:>7s}" for name in names)]
    for key, row in rows.items():
        cells = "  ".join(f"{row[name]:{max(7, len(short[name]))}.4f}" for name in names)
        lines.append(f"  {key:{width}s} {row['scenes']:6d}  {cells}")
    return lines


def compare(old: Path, new: Path) -> str:
    """Return a table of two experiments' out-of-fold scores: old, new, gain in percent of the old.

    Each is an experiment folder of a workdir, or an experiment file, which stands for its ``reference``, the figures of
    its source, marked with a star. Raises ArtifactError where a folder holds no decision, ConfigError where a file
    cannot be read or has no ``reference``.
    """
    (first, before, about_first), (second, after, about_second) = map(_side, (old, new))
    lines = [f"{'':32s} {first:>12s} {second:>12s}      gain"]
    for name in [name for name in before if name in after]:
        lines.append(f"{name:32s} {_cell(before[name])} {_cell(after[name])} {_gain(before[name], after[name])}")
    return "\n".join([*lines, *dict.fromkeys(about_first + about_second)])


def _side(path: Path) -> tuple[str, Mapping[str, Figure], list[str]]:
    """Return the heading of a column, its scores by name, and what must be said of where these are from."""
    if path.suffix not in (".yaml", ".yml"):
        decision = Decision.read(path / "05_ensemble" / "decode" / DECODE)
        expected = float("nan") if decision.expected is None else decision.expected
        return path.name, {**decision.scores, EXPECTED: expected}, []
    if (reference := load(path).reference) is None:
        raise ConfigError(f"{path}: reference: expected the figures of the experiment's source, found none; name an "
                          "experiment folder, or a file that has them")  # fmt: skip
    return f"{path.stem}*", reference.scores, [f"* {path.stem}: {reference.source}, measured on {reference.data}"]


def _cell(figure: Figure) -> str:
    return f"{written(figure):>12s}" if isinstance(figure, tuple) else f"{figure:12.4f}"


def _gain(before: Figure, after: Figure) -> str:
    """Return the gain in percent; of a range there is none."""
    if isinstance(before, tuple) or isinstance(after, tuple) or not before:
        return "        -"
    return f"{100 * (after / before - 1):+8.1f} %"
