"""Compare the scores of two experiments: ``python -m lib.report OLD NEW``.

Each is an experiment folder of a workdir, or an experiment file, which stands for the figures of its source
(``reference``).

    python -m lib.report workdir/old workdir/new
    python -m lib.report configs/animals_effnetb3.yaml workdir/animals_effnetb3
"""

import argparse
import sys
from pathlib import Path

from lib.report.tables import compare
from lib.run import cli


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new"):
        flags.add_argument(name, type=Path, help="experiment folder of a workdir, or an experiment file")
    args = flags.parse_args(argv)
    print(compare(args.old, args.new))


if __name__ == "__main__":
    sys.exit(main())
