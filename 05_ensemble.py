"""Average the probabilities of all models and folds; choose thresholds and class weights on out-of-fold scenes.

Reads:  04_probs/..., 01_folds/folds.csv, the training labels
Writes: 05_ensemble/{oof,test}/<task>/<scene>.tif, 05_ensemble/decode/decode.json (settings, scores, what to expect)
        and figures.json beside it, report/report.html

    python 05_ensemble.py --config configs/xview2_cpu.yaml
    python 05_ensemble.py --config configs/xview2_cpu.yaml --scheduler tcp://head:8786   (docs/cluster.md)
"""

import os
import sys
from contextlib import ExitStack

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lib.config.sections import plain
from lib.report import page, tables
from lib.run import cli
from lib.stages import ensemble


@cli.exits
def main(argv=None):
    flags = cli.parser(__doc__)
    flags.add_argument("--scheduler", metavar="ADDRESS", help="free workers of this Dask scheduler count scenes too")
    args = flags.parse_args(argv)
    run = cli.open_run(args)

    with ExitStack() as stack:
        pool = None

        def write(unit, folder):
            nonlocal pool
            pool = pool or stack.enter_context(ensemble.open_pool(run))  # here, since there may be nothing to do
            if unit != run.graph.decode():
                return ensemble.write(run, unit, folder, pool)
            from lib.choose import fit  # as above: it takes seconds
            from lib.cluster.hands import helped

            theirs = {"reference": plain(run.config.reference)} if run.config.reference else {}
            with helped(pool, args.scheduler, len(run.graph.train_ids), cli.say) as sharing:
                decision, clock = fit.choose(run, folder, sharing)
            return {"scores": decision.scores, **theirs, "clock": clock}

        run.make("05", ensemble.units(run), write)
    for line in ensemble.fallbacks(run):
        cli.say(line)
    if "oof" in run.splits:
        cli.say(tables.decision_table(run))
        cli.say(page.named(run))


if __name__ == "__main__":
    sys.exit(main())
