"""Boundaries of a mask, and the loss of a head that shows them."""

import math

import torch.nn.functional as F
from torch import Tensor

from lib.tasks import IGNORE
from lib.training.terms import Reduce, log_answer, mean


def boundaries(target: Tensor, width: int) -> Tensor:
    """Mark the pixels that have a pixel of another class at most ``width`` rows and columns away: (B, H, W) bool.

    target: (B, H, W) uint8; in the bit fields of a multilabel task any two different values are different classes.
    Ignored pixels are not marked, and they and what lies beyond the edge are not neighbours of any pixel.
    """
    valid = target != IGNORE
    value = target.float()
    highest = _max_within(value.where(valid, -math.inf), width)
    lowest = -_max_within((-value).where(valid, -math.inf), width)
    return (highest != lowest) & valid


def boundary_bce(logits: Tensor, target: Tensor, width: int, reduce: Reduce) -> Tensor:
    """Mean binary cross-entropy of ``boundaries`` over the pixels with truth: float32 scalar.

    logits: (B, 1, H, W) any float dtype; target: (B, H, W) uint8. ValueError where they do not fit together.
    """
    if logits.shape != target[:, None].shape:
        raise ValueError(f"loss: boundary logits {tuple(logits.shape)} do not fit target {tuple(target.shape)}")
    truth = boundaries(target, width)  # (B, H, W)
    return mean(-log_answer(logits[:, 0].float(), truth), (target != IGNORE).float(), reduce)


def _max_within(value: Tensor, width: int) -> Tensor:
    """Largest value of each pixel's window of 2 * width + 1, cut at the edge: (B, H, W)."""
    return F.max_pool2d(value[:, None], 2 * width + 1, stride=1, padding=width)[:, 0]
