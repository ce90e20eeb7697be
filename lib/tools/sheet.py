"""The experiment sheet: a CSV row for every experiment of a workdir, from what its manifests say.

A row holds name, status, git commit ("+": with uncommitted changes), the out-of-fold score, what to expect on unseen
scenes, the score without the search, every other named score, the figures of the experiment's source (``reference``) in
columns of their own with the difference to ours, folds, scenes, seconds per stage, and of the settings those that are
not the same everywhere. Unfinished, stale and damaged experiments have a row too: ``status`` says why
they hold no score, or one of other settings.

    python -m lib.tools.sheet --workdir workdir
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.choose.choice import DECODE, Decision
from lib.config.reference import Reference, difference
from lib.errors import ArtifactError
from lib.report.units import CHOICE, FINISHED, Manifests, differences, experiments, manifests, standing, stated
from lib.run import cli
from lib.tools import table

STAGES = ("01", "02", "03", "04", "05", "06")


def sheet(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return a row per experiment folder; every row has the same columns, None where there is no value."""
    rows, settings, whole = [], [], []
    for folder in folders:
        try:
            row, own, known = _read(folder)
        except (ArtifactError, KeyError, TypeError) as error:
            row, own, known = {"status": f"damaged: {_sentence(error)}"}, {}, False
        rows.append({"name": folder.name, **row})
        settings.append(own)
        whole.append(known)
    differing = differences(settings, whole)
    columns = list(dict.fromkeys([*_FIRST, *(name for row in rows for name in row if name not in _LAST), *_LAST]))
    return [{**{name: row.get(name) for name in columns}, **{key: own.get(key) for key in differing}}
            for row, own in zip(rows, settings, strict=True)]  # fmt: skip


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return an experiment's row, its settings, and whether these are all."""
    found = manifests(folder)
    row = {"status": standing(folder, found), **_facts(found)}
    if CHOICE in found and not row["status"].startswith("damaged"):
        decision = Decision.read(folder / CHOICE / DECODE)
        row |= outcome(decision) | beside(found[CHOICE].get("reference"), decision)
    return row | seconds(found), stated(found), CHOICE in found


_FIRST = ("name", "status", "commit", "score", "expected_score", "score_without_search", "low95", "high95")
_LAST = ("folds", "scenes", "seconds", *(f"seconds.{stage}" for stage in STAGES))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, ArtifactError) else f"a manifest lacks {error}"


# ---- what one experiment says -------------------------------------------------------------------------
def _facts(found: Manifests) -> dict[str, Any]:
    """Return commit and the number of folds that networks were trained on."""
    newest = found.get(CHOICE) or (found[max(found)] if found else {})
    git = newest.get("git", {})
    commit = git.get("commit", "")[:12] + ("+" if git.get("dirty") else "")
    folds = {m["facts"]["fold"] for m in found.values() if "network" in m["facts"]}
    return {"commit": commit, "folds": len(folds)}


def outcome(decision: Decision) -> dict[str, Any]:
    """Return the scores of a decision, other named ones as ``oof.<name>``.

    Without a search the score without it is the score itself. What to expect is None after a search on one fold.
    """
    low, high = decision.interval95 or (None, None)
    searched = decision.score_without_search is not None
    row = {
        "score": decision.score,
        "expected_score": decision.expected,
        "score_without_search": decision.score_without_search if searched else decision.score,
        "low95": low,
        "high95": high,
        "scenes": decision.scenes,
    }
    return row | {f"oof.{name}": value for name, value in decision.scores.items() if name != "score"}


def beside(stated: Mapping[str, Any] | None, decision: Decision) -> dict[str, Any]:
    """Return a source's figures for scores that we have too, each with our score less the figure; {} without any.

    stated: the section ``reference`` as stage 05 recorded it.
    """
    if stated is None:
        return {}
    theirs = Reference.model_validate(stated)
    row: dict[str, Any] = {"source": theirs.source, "source.data": theirs.data}
    for name in (name for name in theirs.scores if name in decision.scores):
        row[f"source.{name}"] = theirs.scores[name]
        row[f"difference.{name}"] = difference(decision.scores[name], theirs.scores[name])
    return row


def seconds(found: Manifests) -> dict[str, float]:
    """Return the seconds of all units and of those of each stage; of a unit that was resumed, its last part only."""
    spent = {"seconds": sum(m["seconds"] for m in found.values())}
    for stage in STAGES:
        spent[f"seconds.{stage}"] = sum(m["seconds"] for key, m in found.items() if key.startswith(stage))
    return {name: round(value, 1) for name, value in spent.items()}


# ---- terminal -----------------------------------------------------------------------------------------
def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the sheet for a terminal: scores and differing settings, then a line for everything not finished."""
    done = [row for row in rows if row["status"] == FINISHED]
    columns = table.columns_of(rows)
    theirs = [name for name in ("source.score", "difference.score", "source") if name in columns]
    scores = ["name", "score", "expected_score", "score_without_search", *theirs, "seconds"]
    settings = columns[columns.index(_LAST[-1]) + 1 :] if rows else []
    lines = [table.text(sorted(done, key=lambda row: -row["score"]), scores + settings)] if done else []
    lines += [f"{row['name']}: {row['status']}" for row in rows if row["status"] != FINISHED]
    return "\n".join(lines)


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("names", nargs="*", help="experiments of the workdir (default: all)")
    flags.add_argument("--workdir", type=Path, default=Path("workdir"), help="where results lie (default: workdir)")
    flags.add_argument("--out", type=Path, help="the CSV (default: sheet.csv in the workdir)")
    args = flags.parse_args(argv)
    folders = experiments(args.workdir)
    if unknown := set(args.names) - {folder.name for folder in folders}:
        raise ArtifactError(f"{args.workdir}: holds no experiment {', '.join(sorted(unknown))}")
    rows = sheet(folder for folder in folders if not args.names or folder.name in args.names)
    out = args.out or args.workdir / "sheet.csv"
    table.write_csv(out, rows)
    print(shown(rows) or f"{args.workdir}: no experiments yet")
    print(f"sheet: {out}")


if __name__ == "__main__":
    sys.exit(main())
