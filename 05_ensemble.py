"""Average the probabilities of all models and folds; choose thresholds and class weights on out-of-fold scenes.

Reads:  04_probs/..., 01_folds/folds.csv, the training labels
Writes: 05_ensemble/{oof,test}/<task>/<scene>.tif, 05_ensemble/decode/decode.json (settings, scores, what to expect)

    python 05_ensemble.py --config configs/xview2_cpu.yaml
"""

import os
import sys
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lib import report
from lib.choose import evidence as ensemble
from lib.choose import fit as decode
from lib.run import cli


@cli.exits
def main(argv=None):
    run = cli.start(__doc__, argv)
    for unit in run.pending(ensemble.units(run)):
        record: dict[str, Any] = {"stage": "05"}
        with run.build(unit, record) as folder:
            if unit == run.graph.decode():
                record["scores"] = decode.fit_decode(run, folder)["scores"]
            else:
                record["scenes"] = ensemble.blend(run, unit.key.rsplit("/", 1)[1], folder)
    if "oof" in run.splits:
        cli.say(report.decode_table(run))


if __name__ == "__main__":
    sys.exit(main())
