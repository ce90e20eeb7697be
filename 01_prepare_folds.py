"""Check the data, split the labelled scenes into folds, audit the split.

Reads:  the competition's files under data.root, and the folds.csv that folds.file names, if any
Writes: 01_folds/folds.csv (id, fold, class flags), 01_folds/audit.json, 01_folds/findings.csv, and 01_folds/places.json
        where scenes have a place on Earth

    python 01_prepare_folds.py --config configs/xview2_cpu.yaml --set data.root=/data/xbd
"""

import sys
from contextlib import ExitStack

from lib.run import cli


@cli.exits
def main(argv=None):
    run = cli.start(__doc__, argv, inspects=True)
    with ExitStack() as stack:
        if run.survey is not None:
            stack.callback(run.survey.close)
        for unit in run.pending([run.graph.folds()]):
            from lib.stages import folds  # here, since it takes seconds and there may be nothing to do

            record: dict[str, object] = {"stage": "01"}
            with run.build(unit, record) as folder:
                for line in folds.check(run.competition, folder, run.strict, run.survey, run.config.folds.embed):
                    cli.say(line)
                for line in folds.split(run.competition, run.config.folds, folder, run.survey):
                    cli.say(line)
                for line in folds.places(run.competition, folder):
                    cli.say(line)
                assert run.index is not None, "stage 01 looks at all data"
                run.index.write(folder)
                if run.survey is not None:
                    record["clock"] = run.survey.clock.seconds
        if run.strict:  # of an earlier run without it, too
            from lib.stages import folds

            folds.refuse(run.store.require(run.graph.folds()))


if __name__ == "__main__":
    sys.exit(main())
