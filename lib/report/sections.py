"""The sections of a report: what an experiment's folder holds, as tables, charts and sentences."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lib.choose.choice import Decision
from lib.choose.figures import Surface
from lib.competitions.contract import APART
from lib.config.reference import difference, written
from lib.report import charts, phases
from lib.report.blocks import Cell, Chapter, DataTable, Lines, Piece, Tiles, Words
from lib.report.contents import Contents
from lib.report.costs import costs, repeating
from lib.report.data import audit, folds, scenes
from lib.report.logs import Log

ROWS = 100
"""Most rows of a table of classes, domains or settings; there may be thousands."""

UNDECIDED = "Nothing is decided or scored out of fold yet; the first section says why."

Section = Callable[[Contents, str], Iterator[Piece]]
"""Yields what a section says of one experiment; the text begins the names of its charts."""


def chapters(experiments: Sequence[Contents]) -> list[Chapter]:
    """Return all sections, each with the pieces of every experiment."""
    return [
        Chapter(key, title, [list(section(one, f"{key}{number}")) for number, one in enumerate(experiments)])
        for key, (title, section) in SECTIONS.items()
    ]


# ---- scores -------------------------------------------------------------------------------------------
def summary(one: Contents, key: str) -> Iterator[Piece]:
    """The score, what to expect, and the source's figures."""
    if (decision := one.decision) is None or not decision.scores:
        why = one.absent.get("decision") or "No scene was predicted out of fold, so there is no score."
        yield Words(f"{one.standing[:1].upper()}{one.standing[1:]}. {why}", absent=True)
        return
    yield Tiles(list(_tiles(decision)))
    yield Words(f"Scored on {decision.coverage}, each scene by networks that never saw it.")
    if decision.expected is not None and decision.score_without_search is not None:
        yield Words("Weights and settings were chosen on the scenes of this score, so it is too good to be expected on "
                    "others; the expected score decodes each fold with what the other folds chose.")  # fmt: skip
    elif decision.score_without_search is not None:
        yield Words("All scenes are of one fold, so what to expect on unseen scenes is not known.")
    yield charts.scores(f"{key}-scores", decision)
    if (theirs := one.reference) is None:
        return
    yield Words(f"Figures of the source: {theirs.source}, measured on {theirs.data}.")
    rows = [
        (name, decision.scores.get(name), written(figure),
         difference(decision.scores[name], figure) if name in decision.scores else None)
        for name, figure in theirs.scores.items()
    ]  # fmt: skip
    yield DataTable("Beside the source's figures", ("score", "ours", "source", "difference"), rows)


def _tiles(decision: Decision) -> Iterator[tuple[str, Cell, str]]:
    yield "score", decision.score, "out of fold, with the chosen settings"
    if decision.interval95 is not None:
        yield "95 % interval", list(decision.interval95), "over scenes drawn anew"
    if decision.expected is not None:
        yield "expected", decision.expected, "on unseen scenes, by nested cross-validation"
    if decision.score_without_search is not None:
        yield "without the search", decision.score_without_search, "with the settings of the experiment file"
    if decision.expected_gain is not None:
        yield "worth of the search", decision.expected_gain, "expected less without the search"


def by_part(one: Contents, key: str) -> Iterator[Piece]:
    """Every named score, and all of them by fold, domain and object."""
    if (decision := one.decision) is None or not decision.scores:
        yield Words(UNDECIDED, absent=True)
        return
    yield _table("By class, over all scenes", "score", {name: {"value": v} for name, v in decision.scores.items()})
    flat = {name: table for name, table in decision.tables.items() if not _is_matrix(table)}
    for name, table in flat.items():
        yield _table(f"By {name.removesuffix('s')}", name, {row: {"value": value} for row, value in table.items()})
    if not flat:
        yield Words("This competition counts nothing by object.")
    for title, parts in (("fold", decision.per_fold), ("event or domain", decision.per_domain)):
        if parts:
            yield _table(f"By {title}", title, parts)


def _table(caption: str, first: str, parts: Mapping[str, Mapping[str, Any]]) -> DataTable:
    columns = list(dict.fromkeys(name for own in parts.values() for name in own))
    rows = [(part, *(own.get(name) for name in columns)) for part, own in list(parts.items())[:ROWS]]
    caption += f" ({len(parts) - ROWS} more are in decode.json)" if len(parts) > ROWS else ""
    shade = [[v if isinstance(v, float) and 0 <= v <= 1 else None for v in row[1:]] for row in rows]
    return DataTable(caption, (first, *columns), rows, shade)


def _is_matrix(table: Mapping[str, Any]) -> bool:
    return any(isinstance(row, Mapping) for row in table.values())


def confusion(one: Contents, key: str) -> Iterator[Piece]:
    """Every matrix of counts, shaded by the share of its row."""
    tables = one.decision.tables if one.decision is not None else {}
    matrices = {name: table for name, table in tables.items() if _is_matrix(table)}
    for name, table in matrices.items():
        columns = list(next(iter(table.values())))
        rows, shade = [], []
        for truth, counts in table.items():
            total = sum(counts.values())
            rows.append((truth, *counts.values(), total))
            shade.append([count / total if total else 0.0 for count in counts.values()] + [None])
        yield DataTable(f"{name}: truth by rows, answer by columns; shaded by the share of the row",
                        ("truth", *columns, "all"), rows, shade)  # fmt: skip
    if not matrices:
        yield Words("No matrix was counted: the competition has none, or nothing was scored.", absent=True)


# ---- the search ---------------------------------------------------------------------------------------
def search(one: Contents, key: str) -> Iterator[Piece]:
    """What was chosen, what it was chosen from, and what that is worth."""
    if (decision := one.decision) is None:
        yield Words(UNDECIDED, absent=True)
        return
    worth = {
        "points that were compared": decision.points,
        "score without the search": decision.score_without_search,
        "score of the search on its own scenes": decision.searched_score,
        "expected score": decision.expected_score,
        "expected gain": decision.expected_gain,
        "expected with equal weights": decision.expected_with_equal_weights,
        "expected with settings per domain": decision.expected_score_per_domain,
        "expected with the flattest best": decision.expected_with_flattest_best,
    }
    if decision.score_without_search is None:
        yield Words("Nothing was searched: the settings are those of the experiment file.")
    else:
        rows = [(name, value) for name, value in worth.items() if value is not None]
        yield DataTable("What the search is worth", ("", "value"), rows)
    without = decision.chosen_without_fold
    columns = ("setting", "chosen", *(f"without fold {fold}" for fold in without))
    params = {name: value for name, value in decision.params.items() if name not in APART}
    if len(params) > ROWS:
        yield Words(f"The first {ROWS} of {len(params)} settings are shown; all are in decode.json.")
    rows = [(name, _plain(value), *(_plain(own["params"].get(name)) for own in without.values()))
            for name, value in list(params.items())[:ROWS]]  # fmt: skip
    rows += [(f"weight of {name}", _plain(value), *(_plain(own["weights"].get(name)) for own in without.values()))
             for name, value in decision.weights.items()]  # fmt: skip
    rows.append(("views", decision.tta, *(own["tta"] for own in without.values())))
    rows.append(("CRF", _plain(decision.crf), *(_plain(own["crf"]) for own in without.values())))
    yield DataTable("Chosen on all folds, and without each", columns, rows)
    yield from _also_tried(decision)


def _also_tried(decision: Decision) -> Iterator[Piece]:
    for domain, own in list(decision.params.get("per_domain", {}).items())[:ROWS]:
        yield Words(f"Settings of {domain}: {', '.join(f'{name} {value}' for name, value in own.items())}.")
    if decision.postprocess_tried:
        yield DataTable("Post-processing that was tried", ("steps", "score", "accepted"), [
            (", ".join(str(step.get("name")) for step in chain.steps) or "none", chain.score,
             "yes" if chain.accepted else "no") for chain in decision.postprocess_tried])  # fmt: skip
    if decision.plans:
        names = ("models", "views", "score", "seconds a scene", "")
        yield DataTable("What fewer models and views would score", names, [
            (", ".join(plan.models), plan.tta, plan.score, plan.seconds,
             "best for its seconds" if plan.best_for_its_seconds else "") for plan in decision.plans])  # fmt: skip


def surface(one: Contents, key: str) -> Iterator[Piece]:
    """The scores around the chosen point, and the plateau of equally good ones."""
    if one.figures is None:
        yield Words(one.absent["figures"], absent=True)
        return
    if (found := one.figures.surface) is None:
        yield Words("No surface was recorded: nothing was searched, or weights were selected greedily.", absent=True)
        return
    where = (
        "the chosen point" if found.on_grid else "the best point; the settings that were kept are none of those tried"
    )
    yield Words(f"{found.points:,} points were compared; {found.within:,} score within {found.plateau:g} of the best "
                f"({found.best:.4f}) and count as equally good. The flattest of them is taken. The cuts go through "
                f"{where} ({found.score:.4f}).")  # fmt: skip
    yield charts.profiles(f"{key}-profiles", found)
    yield from _planes(found)


def _planes(found: Surface) -> Iterator[Piece]:
    for plane in found.planes[:2]:
        first, second = plane.axes
        flat = [score for row in plane.scores for score in row]
        low, span = min(flat), max(flat) - min(flat) or 1.0
        rows = [(_named(value), *row) for value, row in zip(found.axes[first], plane.scores, strict=True)]
        yield DataTable(
            f"Score by {first} (rows) and {second} (columns); outlined: the cut point, dotted: on the plateau",
            (first, *map(_named, found.axes[second])),
            rows,
            [[(score - low) / span for score in row] for row in plane.scores],
            frozenset({(found.point[first], found.point[second])}),
            frozenset((i, j) for i, row in enumerate(plane.scores) for j, score in enumerate(row)
                      if score >= found.best - found.plateau),
        )  # fmt: skip


# ---- training -----------------------------------------------------------------------------------------
def by_model(logs: Mapping[str, Log]) -> dict[str, dict[str, Log]]:
    """Return model -> fold -> log of logs by checkpoint ("net/fold0")."""
    found: dict[str, dict[str, Log]] = {}
    for name, log in logs.items():
        model, _, fold = name.partition("/")
        found.setdefault(model, {})[fold.replace("fold", "fold ")] = log
    return found


def training(one: Contents, key: str) -> Iterator[Piece]:
    """Learning curves of every model, and its new bests."""
    if not one.logs:
        yield Words(one.absent.get("logs", "There is no log of training."), absent=True)
    for number, (model, logs) in enumerate(by_model(one.logs).items()):
        yield charts.curves(f"{key}-curves{number}", model, logs)
    bests = []
    for model, logs in by_model(one.logs).items():
        for fold, log in logs.items():
            if best := [f"{row['epoch']}: {row['score.select']:.4f}" for row in log if row["new_best"]]:
                bests.append(f"{model} {fold}, epoch: validation score of each new best: {', '.join(best)}")
    if bests:
        yield Lines("New bests", bests)


def history(one: Contents, key: str) -> Iterator[Piece]:
    """The phases of training."""
    if not one.logs:
        yield Words(one.absent.get("logs", "There is no log of training."), absent=True)
    for model, logs in by_model(one.logs).items():
        for fold, log in logs.items():
            if table := phases.table(f"{model} {fold}", log):
                yield table


def reliability(one: Contents, key: str) -> Iterator[Piece]:
    """What networks state against what is found, before and after temperatures."""
    calibrated = one.decision.calibration if one.decision is not None else {}
    for number, (model, own) in enumerate(calibrated.items()):
        told = {"before": own["before"]["bins"], "after, held out": own["after"]["bins"]}
        yield charts.reliability(f"{key}-model{number}", f"{model}: reliability before and after its temperature", told)
        rows = [(when, *(own[side][name] for name in ("log_loss", "brier", "error")))
                for when, side in (("before", "before"), ("after", "after"))]  # fmt: skip
        taken = "taken" if own["accepted"] else "not taken, since held-out log-loss does not fall"
        yield DataTable(f"{model}: temperature {own['temperature']:.3f}, {taken}",
                        ("", "log-loss", "Brier score", "calibration error"), rows)  # fmt: skip
    if not calibrated:
        yield Words("No temperatures were fitted; blend.calibrate: true fits one per model and judges it held out.",
                    absent=True)  # fmt: skip
    if one.figures is None:
        yield Words(one.absent["figures"], absent=True)
        return
    for number, (task, sure) in enumerate(one.figures.reliability.items()):
        yield charts.reliability(f"{key}-task{number}", f"{task}: reliability of the averages that are decoded "
                                 f"(calibration error {sure.error:.4f})", {"averages": sure.bins})  # fmt: skip


def _plain(value: Any) -> Cell:
    """Return a setting with the digits it has; True and False as yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if value is None or isinstance(value, int) else _named(value)


def _named(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value == [] else str(value)


SECTIONS: dict[str, tuple[str, Section]] = {
    "summary": ("Score", summary),
    "search": ("What was chosen", search),
    "parts": ("By class, fold, event and object", by_part),
    "confusion": ("Confusion", confusion),
    "scenes": ("Worst and best scenes", scenes),
    "training": ("Learning curves", training),
    "phases": ("Phases of training", history),
    "reliability": ("Reliability", reliability),
    "surface": ("Threshold surface", surface),
    "folds": ("Folds", folds),
    "audit": ("Audit and data check", audit),
    "costs": ("Time and memory", costs),
    "repeat": ("To repeat it", repeating),
}
"""Section by its anchor, in the order of the page."""
