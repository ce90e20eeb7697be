"""Compare two experiment folders of a workdir: ``python -m lib.report OLD NEW``."""

import sys
from pathlib import Path

from lib.report.tables import compare

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m lib.report OLD_EXPERIMENT_FOLDER NEW_EXPERIMENT_FOLDER")
    print(compare(Path(sys.argv[1]), Path(sys.argv[2])))
