"""Class weights from how often each class occurs in the training targets."""

from collections.abc import Iterable

import numpy as np

from lib.errors import ConfigError
from lib.tasks import Task, known

RANGE = (0.1, 10.0)
"""A weight outside of this would make the mean of a batch a matter of a few pixels."""


def median_frequency(targets: Iterable[np.ndarray], task: Task) -> tuple[float, ...]:
    """Return a weight per class, background first: the median of all frequencies over its own, kept in RANGE.

    The frequency of a class is its share of the pixels of the targets that hold it (Eigen and Fergus 2015); a class
    that never occurs weighs 1. A task of one class gets two weights, of background and foreground. targets: (H, W)
    in the form of ``task``; ignored pixels are left out. ConfigError for classes that may overlap.
    """
    if task.kind == "multilabel":
        raise ConfigError("class_weights: auto needs exclusive classes, this task's may overlap; state them")
    classes = 2 if task.channels == 1 else task.channels
    own, around = np.zeros(classes), np.zeros(classes)
    for target in targets:
        counted = target[known(target)]
        found = np.bincount((counted > 0) if task.channels == 1 else counted, minlength=classes)[:classes]
        own += found
        around += np.where(found > 0, counted.size, 0)
    frequency = np.divide(own, around, out=np.zeros(classes), where=around > 0)
    occurs = frequency > 0
    weights = np.ones(classes)
    if occurs.any():
        weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
    return tuple(float(weight) for weight in np.clip(weights, *RANGE).round(4))
