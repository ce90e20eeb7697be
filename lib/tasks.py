"""What a network outputs: class names, activation, target form. Only tasks know sigmoid from softmax.

logits: (B, C, ...) any float dtype. probs: (B, C, ...) float32 in [0, 1], channel i is ``task.classes[i]``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and most who ask for the classes of a task have no tensors
    from torch import Tensor

IGNORE = 255
"""Target value that no loss and no score looks at; so a uint8 target holds at most 254 classes."""

WIDE_IGNORE = -1
"""The same in the int32 targets of labels with more classes."""

HALF = 128
"""The lowest level (level / 255) above one half."""

BLOCK = 1 << 16
"""Pixels of a block in ``strongest``."""


def known(target: Any) -> Any:
    """Tell where a target, an array or a tensor, holds a truth: bool of its shape, False where it is ignored."""
    return target != (IGNORE if target.itemsize == 1 else WIDE_IGNORE)


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as columns and settings have them: letters, digits and underscores."""
    return tuple(re.sub(r"\W+", "_", name).strip("_") or f"class_{name}" for name in classes)


def strongest(planes: np.ndarray) -> np.ndarray:
    """Return the number of the highest plane at each pixel, the first of equals: (C, H, W) -> (H, W) whole numbers.

    As ``planes.argmax(0)``, in a seventh of its time: block by block, so that what is compared stays in the cache.
    """
    if len(planes) > IGNORE:
        return planes.argmax(0)
    found = np.zeros(planes.shape[1:], np.uint8)
    rows = max(1, BLOCK // max(1, planes.shape[2]))
    for start in range(0, len(found), rows):
        block, numbers = planes[:, start : start + rows], found[start : start + rows]
        best, above = block[0].copy(), np.empty(numbers.shape, bool)
        for number, plane in enumerate(block[1:], 1):
            np.greater(plane, best, out=above)
            np.maximum(best, plane, out=best)
            np.maximum(numbers, above.view(np.uint8) * np.uint8(number), out=numbers)
    return found


@dataclass(frozen=True)
class Task:
    """One kind of network output; subclasses fix the activation and the form of the target.

    ``classes`` names the channels of the probabilities; ``kind`` is the field's word for the form
    (binary, multiclass, multilabel: as in segmentation-models-pytorch's losses).
    """

    classes: tuple[str, ...]
    float32: bool = False
    """Must be trained in float32, and is judged and predicted in it unless a model states another precision."""
    dense = True
    """One answer per pixel; else one per frame, and probs are (B, C, 1, 1)."""

    @property
    def kind(self) -> str:
        """The form of the target."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of logits a network gives for this task."""
        return len(self.classes)

    @property
    def is_wide(self) -> bool:
        """Whether the classes are too many for uint8 targets."""
        return self.kind == "multiclass" and self.channels >= IGNORE

    def as_target(self, values: np.ndarray, valid: np.ndarray | bool = True) -> np.ndarray:
        """Turn whole numbers in the form of the task into a target of its dtype, ignored where not ``valid``."""
        ignore, dtype = (WIDE_IGNORE, np.int32) if self.is_wide else (IGNORE, np.uint8)
        return np.where(valid, values, ignore).astype(dtype)

    def activate(self, logits: "Tensor") -> "Tensor":
        """Turn logits (B, C, ...) into probs (B, C, ...) float32 in [0, 1]."""
        raise NotImplementedError

    def truth(self, target: np.ndarray) -> np.ndarray:
        """Turn a target (H, W) uint8 into (C, H, W) bool, what a perfect network says; ignored pixels hold anything."""
        raise NotImplementedError

    def called(self, levels: np.ndarray) -> np.ndarray:
        """Turn levels (C, H, W) uint8 into (C, H, W) bool: which class a network calls where nothing was tuned."""
        raise NotImplementedError


@dataclass(frozen=True)
class BinaryMask(Task):
    """One foreground class; target: (H, W) uint8 in {0, 1, 255}."""

    kind = "binary"

    def activate(self, logits: "Tensor") -> "Tensor":
        return logits.float().sigmoid()

    def truth(self, target: np.ndarray) -> np.ndarray:
        return target[None] > 0

    def called(self, levels: np.ndarray) -> np.ndarray:
        return levels >= HALF


@dataclass(frozen=True)
class MulticlassMask(Task):
    """Exclusive classes, channel = class index; target: (H, W) uint8 in {0 .. C-1, 255}."""

    kind = "multiclass"

    def activate(self, logits: "Tensor") -> "Tensor":
        return logits.float().softmax(dim=1)

    def truth(self, target: np.ndarray) -> np.ndarray:
        return np.arange(self.channels)[:, None, None] == target

    def called(self, levels: np.ndarray) -> np.ndarray:
        return self.truth(strongest(levels))


@dataclass(frozen=True)
class MultilabelMask(Task):
    """Classes that may overlap, at most seven; target: (H, W) uint8, bit c is set where class c is, 255 is ignored."""

    kind = "multilabel"

    def activate(self, logits: "Tensor") -> "Tensor":
        return logits.float().sigmoid()

    def truth(self, target: np.ndarray) -> np.ndarray:
        return (target >> np.arange(self.channels, dtype=np.uint8)[:, None, None]) & 1 > 0

    def called(self, levels: np.ndarray) -> np.ndarray:
        return levels >= HALF


@dataclass(frozen=True)
class Label(Task):
    """One label for a whole frame, a mask of one pixel: logits (B, C, 1, 1), target (1, 1) uint8.

    Of more than 254 classes the target is int32, and -1 is ignored. One class is a yes or no, more are exclusive. The
    probabilities of a scene of F frames are (C, 1, F).
    """

    dense = False

    @property
    def kind(self) -> str:
        """The form of the target, as that of a mask."""
        return self._mask.kind

    @property
    def _mask(self) -> Task:
        return BinaryMask(self.classes) if self.channels == 1 else MulticlassMask(self.classes)

    def activate(self, logits: "Tensor") -> "Tensor":
        return self._mask.activate(logits)

    def truth(self, target: np.ndarray) -> np.ndarray:
        return self._mask.truth(target)

    def called(self, levels: np.ndarray) -> np.ndarray:
        return self._mask.called(levels)
