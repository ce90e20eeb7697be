"""Train the damage classifiers, one per model and fold, in mixed precision (float16 on a GPU).

Reads:  01_folds/folds.csv, the training scenes, and the localization checkpoints a model starts from or is scored with
Writes: 03_cls/<model>/fold<k>/best.safetensors, network.json, log.jsonl

    python 03_train_cls.py --config configs/xview2.yaml --only densenet161 --fold 0
    torchrun --nproc-per-node 4 03_train_cls.py --config configs/xview2.yaml --only densenet161 --fold 0
"""

import sys

from lib.run import cli, runtime


@cli.exits
def main(argv=None):
    run = cli.start(__doc__, argv, task="cls")
    if not run.has("cls"):
        return
    with runtime.process_group():
        for unit in run.pending(run.checkpoints("cls")):
            from lib.stages.train import train  # here, since it takes seconds and there may be nothing to do

            train(run, unit)


if __name__ == "__main__":
    sys.exit(main())
