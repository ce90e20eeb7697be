"""Train the localization networks, one per model and fold, in float32.

Reads:  01_folds/folds.csv and the training scenes
Writes: 02_loc/<model>/fold<k>/best.safetensors, network.json, log.jsonl

    python 02_train_loc.py --config configs/xview2.yaml --only dpn92 --fold 0
    torchrun --nproc-per-node 4 02_train_loc.py --config configs/xview2.yaml --only dpn92 --fold 0
"""

import sys

from lib.run import cli, runtime


@cli.exits
def main(argv=None):
    run = cli.start(__doc__, argv, task="loc")
    if not run.has("loc"):
        return
    with runtime.process_group():
        for unit in run.pending(run.checkpoints("loc")):
            from lib.stages.train import train  # here, since it takes seconds and there may be nothing to do

            train(run, unit)


if __name__ == "__main__":
    sys.exit(main())
