"""The report of an experiment, several side by side, or a workdir in a browser.

    python -m lib.report workdir/demo                     its page, from what lies in its folder
    python -m lib.report workdir/old workdir/new          a table of scores, and a page with what differs
    python -m lib.report serve workdir                    all experiments, with runs in progress

Each is an experiment folder of a workdir, or of two an experiment file, which stands for the figures of its source
(``reference``):

    python -m lib.report configs/animals_effnetb3.yaml workdir/animals_effnetb3
"""

import argparse
import sys
from pathlib import Path

from lib.config.load import load
from lib.errors import ConfigError
from lib.files import write_bytes
from lib.report import page, serve
from lib.report.contents import REPORT, read
from lib.report.tables import compare
from lib.run import cli


@cli.exits
def main(argv=None):
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["serve"]:
        return serve.main(arguments[1:])
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("experiments", nargs="+", type=Path, metavar="EXPERIMENT",
                       help="experiment folder of a workdir, or an experiment file")  # fmt: skip
    flags.add_argument("--out", type=Path, help="the page (default: report/report.html of a single experiment, "
                       "report/beside.html of the last of several)")  # fmt: skip
    args = flags.parse_args(arguments)
    folders = [path for path in args.experiments if path.suffix not in (".yaml", ".yml")]
    if len(args.experiments) == 1 and not folders:
        raise ConfigError(f"{args.experiments[0]}: expected an experiment folder of a workdir; a file stands for the "
                          "figures of its source, beside a folder")  # fmt: skip
    if folders:
        own = page.PAGE if len(args.experiments) == 1 else "beside.html"
        out = args.out or folders[-1] / REPORT / own
        files = [path for path in args.experiments if path not in folders]
        theirs = load(files[0]).reference if files else None
        made = page.sealed(page.render([read(folder, reference=theirs) for folder in folders]))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, made)
        print(f"report: {out}")
    for path in args.experiments[1:]:
        print(compare(args.experiments[0], path))


if __name__ == "__main__":
    sys.exit(main())
