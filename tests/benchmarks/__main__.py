"""Run benchmarks and print each row beside its peers and its limit.

A ratio above 1 says how many times as long as ours the side takes; of a limit, which does only the part that cannot be
left out, it is the share of our time that this part takes. In brackets: the lowest and highest ratio of a round.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.tools import table
from tests.benchmarks import harness
from tests.benchmarks.harness import LOAD, Figure, Race

FOLDER = Path(__file__).parent
Found = dict[str, list[dict[str, Any]]]
"""Name of a benchmark -> its rows as ``harness.run`` returns them."""


def names() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def rows_of(name: str, quick: bool) -> list[Race | Figure]:
    """Return the rows of a benchmark, whose data are not made yet."""
    return importlib.import_module(f"tests.benchmarks.bench_{name}").rows(quick)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 1 where a row failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names())}; without one, all")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    form.add_argument("--markdown", action="store_true", help="tables for docs/RESULTS.md")
    parser.add_argument("--quick", action="store_true", help="little data: does it run? Its figures mean nothing")
    parser.add_argument("--row", default="", metavar="TEXT", help="only rows whose name has this text")
    parser.add_argument("--official", type=Path, metavar="FILE", help="the official xview2_metrics.py, a scoring peer")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="xBD scenes for the rows of samples; else drawn ones"
    )
    parser.add_argument("--force", action="store_true", help="run rows of several threads beside other work, too")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the fresh process of ``harness.peaks``
    asked = parser.parse_args(argv)
    if asked.memory_of:
        return _memory(json.loads(asked.memory_of))
    if unknown := sorted(set(asked.names) - set(names())):
        parser.error(f"expected some of {', '.join(names())}, got {', '.join(unknown)}")
    if asked.official:
        os.environ["XVIEW2_METRICS"] = str(asked.official.resolve())
    if asked.data:
        os.environ["XVIEW2_DATA"] = str(asked.data.resolve())
    about, found = harness.machine(), {}
    for name in asked.names or names():
        found[name] = [_run(name, row, asked) for row in rows_of(name, asked.quick) if asked.row in row.name]
        if not asked.json:
            print(_section(name, found[name], asked.markdown), flush=True)
    about["load_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps({"machine": about, "benchmarks": found}, indent=2) if asked.json else _machine(about))
    return int(any("failed" in row for rows in found.values() for row in rows))


def _memory(asked: Mapping[str, Any]) -> int:
    row = next(row for row in rows_of(asked["module"], asked["quick"]) if row.name == asked["row"])
    if isinstance(row, Race):
        print(harness.peak_of(row, asked["side"]))
    return 0


def _run(name: str, row: Race | Figure, asked: argparse.Namespace) -> dict[str, Any]:
    print(f"  {name}: {row.name}", file=sys.stderr, flush=True)
    try:
        found = harness.run(row, asked.force)
        if isinstance(row, Race) and row.memory:
            timed = [side for side, values in found.get("sides", {}).items() if "left_out" not in values]
            for side, mib in harness.peaks(name, row, asked.quick, timed).items():
                found["sides"][side]["peak_mib"] = round(mib, 1)
        return found
    except Exception as error:  # one row that fails does not lose the others
        print(f"  {name}: {row.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return {"row": row.name, "threads": row.threads, "failed": f"{type(error).__name__}: {error}"}


# ---- tables -------------------------------------------------------------------------------------------
def _section(name: str, rows: Sequence[Mapping[str, Any]], markdown: bool) -> str:
    """Return the tables of one benchmark: its races, its figures by their columns, and what was not run."""
    lines = [line for row in rows if "sides" in row for line in _lines(row)]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "figures" in row:
            shown = {key: _number(value) for key, value in row["figures"].items()}
            groups.setdefault(tuple(shown), []).append({"row": row["row"], **shown})
    tables = [part for part in (lines, *groups.values()) if part]
    left = [f"{row['row']}: {key.replace('_', ' ')}: {row[key]}" for row in rows for key in ("left_out", "failed")
            if key in row]  # fmt: skip
    parts = [_markdown(part) if markdown else table.text(part) for part in tables] + ["\n".join(left)] * bool(left)
    return f"\n{'### ' if markdown else ''}{name}\n\n" + "\n\n".join(parts)


def _lines(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one line per side of a race."""
    lines = []
    memory = any("peak_mib" in side for side in row["sides"].values())
    for n, (name, side) in enumerate(row["sides"].items()):
        line = {"row": "" if n else row["row"], "side": name}
        if "left_out" in side:
            lines.append({**line, "ratio": side["left_out"]})
            continue
        spread = f"{side['ratio']:.2f} ({side['lowest']:.2f}..{side['highest']:.2f})"
        goal = f"{side['goal']:.3g}" if side["goal"] is not None else ""
        line |= {"wall ms": _number(side["wall_ms"]), "CPU ms": _number(side["cpu_ms"]),
                 "ratio": "" if not n else spread, "wanted": goal}  # fmt: skip
        line |= {"by": row["by"], "threads": str(row["threads"])}
        lines.append(line | ({"peak MiB": _number(side["peak_mib"])} if "peak_mib" in side else {}) if memory else line)
    return lines


def _number(value: Any) -> str:
    """Write a number with three digits that count, text as it is."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return table.cell(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _markdown(lines: Sequence[Mapping[str, str]]) -> str:
    columns = table.columns_of(lines)
    shown = [columns, ["---"] * len(columns), *([line.get(name, "") for name in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown)


def _machine(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    warning = f" The load was above {LOAD}: go by CPU times and ratios, not by wall times." * (about["load"] > LOAD)
    return (f"\n{about['processor']}, {about['cores']} cores, {about['date']}; load {about['load']} before and "
            f"{about['load_after']} after, {about['others_busy']} cores busy with other work at the start; "
            f"{versions}.{warning}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
