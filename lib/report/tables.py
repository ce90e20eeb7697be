"""The decision of stage 05, the history of training and the comparison of two experiments, as lines of text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.choose import plans
from lib.choose.choice import DECODE, Decision
from lib.competitions.contract import APART
from lib.run.cli import Run


def decision_table(run: Run) -> str:
    """Return decode.json as a table: settings, scores, what to expect on unseen scenes."""
    decision, theirs = Decision.of(run), run.config.reference
    lines = ["", f"out-of-fold scores ({decision.coverage})"]
    for name, value in decision.scores.items():
        lines.append(f"  {name:32s} {value:.4f}" + (f"  (source: {theirs[name]:g})" if name in theirs else ""))
    if decision.interval95 is not None:
        low, high = decision.interval95
        lines.append(f"  {'95 % interval over scenes':32s} {low:.4f} .. {high:.4f}")
    if decision.score_without_search is not None:
        lines.append(f"  {'score without the search':32s} {decision.score_without_search:.4f}")
        shown = "unknown (one fold only)" if decision.expected is None else f"{decision.expected:.4f}"
        lines.append(f"  {'expected on unseen scenes':32s} {shown}  (nested cross-validation)")
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
    return ", ".join(f"{name} {value}" for name, value in settings.items())


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


def milestones(run: Run) -> list[str]:
    """Return a line per epoch that was a new best, checkpoint by checkpoint, as the training logs have them."""
    lines = []
    for name, model in run.config.models.items():
        for fold in run.config.folds_of(model):
            log = run.store.folder(run.graph.checkpoint(name, fold)) / "log.jsonl"
            rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            best = [row for row in rows if row.get("new_best")]
            shown = [f"{row['epoch']}: {row['scores']['select']:.4f}" for row in best]
            if shown:
                lines.append(f"  {name} fold {fold}, epoch: validation score of each new best: {', '.join(shown)}")
    return lines


def compare(old: Path, new: Path) -> str:
    """Return a table of two experiments' out-of-fold scores: old, new, gain in percent of the old."""
    found = [Decision.read(folder / "05_ensemble" / "decode" / DECODE) for folder in (old, new)]
    before, after = (
        {**row.scores, "expected on unseen scenes": float("nan") if row.expected is None else row.expected}
        for row in found
    )
    lines = [f"{'':32s} {old.name:>12s} {new.name:>12s}      gain"]
    for name in [name for name in before if name in after]:
        gain = f"{100 * (after[name] / before[name] - 1):+8.1f} %" if before[name] else "        -"
        lines.append(f"{name:32s} {before[name]:12.4f} {after[name]:12.4f} {gain}")
    return "\n".join(lines)
