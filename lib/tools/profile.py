"""Where the time of an experiment went: seconds of each unit and of each stage by what they were spent on.

read: images, targets and probabilities; augment; forward, backward, optimizer: a training step, or the networks of
stage 04; validate; decode; store: writing files; wait: for a loader, another process or a queue; other: what none of
these has. Threads add up, so the names of a unit may have more than its seconds. A GPU is not waited for: work that it
still does counts where the processor waits for it. Of a unit that went on after a stop, the last run counts.

    python -m lib.tools.profile workdir/demo
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.errors import ArtifactError
from lib.report.times import Row, by_stage, columns, note, times
from lib.run import cli
from lib.tools import table


@cli.exits
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lib.tools.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="folder of an experiment, WORKDIR/NAME")
    print(profile(parser.parse_args(argv).experiment))


def profile(experiment: Path) -> str:
    """Return the tables of an experiment's folder. Raises ArtifactError where it has no finished unit."""
    rows, without = times(experiment)
    if not rows and not without:
        raise ArtifactError(f"{experiment}: expected an experiment's folder with finished units (01_folds, ...), found "
                            "none; name WORKDIR/NAME")  # fmt: skip
    parts = [_text(rows), _text(by_stage(rows)), note(without)]
    return "\n\n".join(part for part in parts if part)


def _text(rows: Sequence[Row]) -> str:
    shown = [
        {name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()} for row in rows
    ]
    return table.text(shown, columns(rows))


if __name__ == "__main__":
    sys.exit(main())
