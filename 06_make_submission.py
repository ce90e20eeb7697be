"""Decode the blended probabilities, write the submission, read it back and lint it.

Reads:  05_ensemble/{oof,test}, 05_ensemble/decode/decode.json
Writes: 06_submission/test (what is handed in), 06_submission/oof (the same for scenes with known truth), report/

    python 06_make_submission.py --config configs/xview2_cpu.yaml
    python 06_make_submission.py --config configs/xview2_cpu.yaml --lint submission.zip
    python 06_make_submission.py --lint submission.csv --sample sample_submission.csv

--lint needs to know which scenes are owed: those of the data of --config (with --split oof its labelled ones), or those
of --sample.
"""

import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lib.errors import ConfigError
from lib.report import page
from lib.run import cli
from lib.stages import ensemble, submit


@cli.exits
def main(argv=None):
    flags = cli.parser(__doc__)
    flags.add_argument("--lint", type=Path, metavar="PATH", help="check this submission only: a folder, zip or CSV")
    flags.add_argument("--sample", type=Path, metavar="CSV", help="with --lint: the competition's sample submission")
    args = flags.parse_args(argv)
    if args.lint:
        return cli.lint(args)
    if args.sample:
        raise ConfigError("--sample: goes with --lint; what stage 06 writes follows the sample beside the data")
    run = cli.open_run(args)
    run.make("06", submit.units(run), partial(submit.write, run))
    for unit in submit.units(run):
        if same := run.competition.sameness(run.store.folder(unit)):
            cli.say(f"! {same}: what was predicted and chosen tells its scenes not apart")
    for line in ensemble.fallbacks(run):
        cli.say(line)
    cli.say(page.write(run))
    if run.config.track:
        from lib.stages import track  # here, since a kernel goes without it

        track.outcome(run, run.config.track)


if __name__ == "__main__":
    sys.exit(main())
