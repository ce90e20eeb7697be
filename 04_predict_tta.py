"""Predict every checkpoint's own validation scenes (oof) and the test scenes, with flip test-time augmentation.

Reads:  02_loc/..., 03_cls/..., 01_folds/folds.csv, the images
Writes: 04_probs/<task>/<model>/fold<k>/{oof,test}/<scene>.tif, uint8 levels with one named band per class

    python 04_predict_tta.py --config configs/xview2_cpu.yaml --split test
    python 04_predict_tta.py --config configs/xview2.yaml --only dpn92 --fold 0 --split test --part 2/4

With --part it helps another process, which makes the unit by the same command without --part, and seals nothing.
"""

import os
import sys
from contextlib import ExitStack

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lib.run import cli


@cli.exits
def main(argv=None):
    flags = cli.parser(__doc__)
    flags.add_argument("--part", metavar="I/N", help="predict part I of N of the scenes that are left, for another "
                       "process that makes the unit")  # fmt: skip
    args = flags.parse_args(argv)
    run = cli.open_run(args)
    if args.part:
        from lib.stages import parts

        return parts.give(run, args.part)
    with ExitStack() as stack:
        pool = None
        for units in run.predictions():
            if pending := list(run.pending(units)):
                from lib.stages.predict import open_pool, predict  # here, since there may be nothing to do

                pool = pool or stack.enter_context(open_pool(run))
                predict(run, pending, pool)


if __name__ == "__main__":
    sys.exit(main())
