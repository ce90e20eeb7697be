"""What a network outputs: class names, activation, target form. Only tasks know sigmoid from softmax.

logits: (B, C, ...) any float dtype. probs: (B, C, ...) float32 in [0, 1], channel i is ``task.classes[i]``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = 255
"""Target value that no loss and no score looks at."""


@dataclass(frozen=True)
class Task:
    """One kind of network output; subclasses fix the activation and the form of the target.

    ``classes`` names the channels of the probabilities; ``kind`` is the field's word for the form
    (binary, multiclass, multilabel: as in segmentation-models-pytorch's losses).
    """

    classes: tuple[str, ...]
    kind = ""

    @property
    def channels(self) -> int:
        """Number of logits a network gives for this task."""
        return len(self.classes)

    def activate(self, logits: Tensor) -> Tensor:
        """Turn logits (B, C, ...) into probs (B, C, ...) float32 in [0, 1]."""
        raise NotImplementedError


@dataclass(frozen=True)
class BinaryMask(Task):
    """One foreground class; target: (H, W) uint8 in {0, 1, 255}."""

    kind = "binary"

    def activate(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits.float())


@dataclass(frozen=True)
class MulticlassMask(Task):
    """Exclusive classes, channel = class index; target: (H, W) uint8 in {0 .. C-1, 255}."""

    kind = "multiclass"

    def activate(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits.float(), dim=1)
