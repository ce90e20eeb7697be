"""Predict every checkpoint's own validation scenes (oof) and the test scenes, with flip test-time augmentation.

Reads:  02_loc/..., 03_cls/..., 01_folds/folds.csv, the images
Writes: 04_probs/<task>/<model>/fold<k>/{oof,test}/<scene>.tif, uint8 levels with one named band per class

    python 04_predict_tta.py --config configs/xview2_cpu.yaml --split test
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lib.run import cli
from lib.stages.predict import fold_splits, open_pool, predict


@cli.exits
def main(argv=None):
    run = cli.start(__doc__, argv)
    with open_pool(run) as pool:
        for units in fold_splits(run):
            predict(run, list(run.pending(units)), pool)


if __name__ == "__main__":
    sys.exit(main())
