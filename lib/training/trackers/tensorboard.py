"""TensorBoard: ``tensorboard --logdir workdir/<experiment>/tracking/tensorboard``."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.training.trackers import TrackedRun, Tracker


def open_run(subject: TrackedRun) -> Tracker:
    """Open the folder of a run; what a killed process wrote after its last epoch stays."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(SummaryWriter(subject.folder / "tensorboard" / subject.unit / subject.run))


class TensorBoard:
    """A run is a folder; scalars are by epoch, settings and scores are texts and scalars."""

    def __init__(self, writer: Any):
        self.writer, self.last = writer, 0

    def settings(self, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        self.writer.add_text("settings", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self.last = epoch
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def scores(self, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self.writer.add_scalar(f"final/{name}", value, self.last)

    def picture(self, name: str, image: np.ndarray) -> None:
        self.writer.add_image(name, image, self.last, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self.writer.close()
