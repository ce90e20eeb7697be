"""Weights & Biases: runs are kept offline unless ``WANDB_MODE`` says otherwise; ``wandb sync`` uploads them."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.training.trackers import TrackedRun, Tracker


def open_run(subject: TrackedRun) -> Tracker:
    """Open a run under an id that a resumed training has again; its part of the run is a folder of its own offline."""
    import wandb

    subject.folder.mkdir(parents=True, exist_ok=True)
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    resume: Any = {} if mode == "offline" else {"resume": "allow"}  # offline it has no say: the server joins equal ids
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", subject.experiment), group=subject.experiment, name=subject.unit,
        id=subject.id, dir=str(subject.folder), mode=mode, reinit="finish_previous", **resume,
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False),
    )  # fmt: skip
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return Wandb(run)


class Wandb:
    """A run; every value is drawn over its epoch, whatever step the package counts."""

    def __init__(self, run: Any):
        self.run = run

    def settings(self, settings: Mapping[str, Any]) -> None:
        self.run.config.update(dict(settings), allow_val_change=True)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self.run.log({"epoch": epoch, **values})

    def scores(self, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self.run.summary[f"final/{name}"] = value

    def picture(self, name: str, image: np.ndarray) -> None:
        import wandb

        self.run.log({name: wandb.Image(image)})

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
