"""Training targets from probabilities: only where the network is sure."""

import numpy as np

from lib.tasks import Task


def confident(levels: np.ndarray, task: Task, ratio: float) -> np.ndarray:
    """Turn levels (C, H, W) uint8 into a target (H, W) of ``task``, ignored where the network is not sure.

    Sure means that the best class is at least ``ratio`` times as probable as the next; of a yes or no the two are p and
    1 - p, and where classes overlap all of them must be sure. The label of a video is that of its mean frame: (1, 1).
    """
    levels = levels.astype(np.float64)
    if not task.dense:
        levels = levels.mean(axis=2, keepdims=True)  # (C, 1, 1)
    if task.kind == "multiclass":
        second, first = np.sort(levels, axis=0)[-2:]  # (H, W) each
        target, sure = levels.argmax(axis=0), first >= ratio * second
    else:
        other = 255 - levels
        yes = levels > other
        sure = (np.maximum(levels, other) >= ratio * np.minimum(levels, other)).all(axis=0)
        target = (yes << np.arange(len(levels))[:, None, None]).sum(axis=0)
    return task.as_target(target, sure)
