"""Mix the images of a batch and their targets alike: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Every sample has one partner in its batch and one share lam, the same for all: in a loss that adds up sums over several
processes a share of each sample's own, or of each process's, would weigh the sums wrongly. So random numbers come from
(seed, step) alone, all processes draw the same, and each mixes its own samples. With more processes a sample so has
other partners than with one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.errors import ConfigError

MIX = 3
"""Name of the random stream, beside those of the data set."""


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed; nothing by default. With both alphas a batch is mixed one way or the other, evenly."""

    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha); the bag of tricks takes 0.2."""
    cutmix: float = 0.0
    """Alpha of CutMix's; the paper takes 1."""
    probability: float = 1.0
    """Share of batches that are mixed at all."""


class Mixed(NamedTuple):
    """A batch of mixed images and what is true of it: ``target`` to the share ``lam``, ``other`` to the rest."""

    image: Tensor
    target: Tensor
    other: Tensor | None
    """The partners' targets, None where ``target`` says all."""
    lam: float
    teacher: Tensor | None


def mix(image: Tensor, target: Tensor, dense: bool, settings: Mixing, seed: int, step: int,
        teacher: Tensor | None = None) -> Mixed:  # fmt: skip
    """Mix a batch as ``settings`` say, or give it back as it is; a function of its arguments alone.

    image: (B, C, H, W), uint8 or float, 0..255. target: (B, H, W) uint8, of labels (``dense`` false) (B, 1, 1). step:
    counts all batches of the training. teacher: probabilities of another network, (B, K, H, W) or (B, K, 1, 1) float.
    Raises ConfigError where there is mixing and one sample alone.
    """
    rng = np.random.default_rng((seed, MIX, step))
    if not (settings.mixup or settings.cutmix) or rng.random() >= settings.probability:
        return Mixed(image, target, None, 1.0, teacher)
    if len(image) < 2:
        raise ConfigError("mix: expected at least two samples per step and process, got one; raise the batch size")
    if settings.mixup and (not settings.cutmix or rng.random() < 0.5):
        return mixup(image, target, rng, settings.mixup, teacher)
    return cutmix(image, target, rng, settings.cutmix, dense, teacher)


def mixup(image: Tensor, target: Tensor, rng: np.random.Generator, alpha: float,
          teacher: Tensor | None = None) -> Mixed:  # fmt: skip
    """Average each image with its partner, lam ~ Beta(alpha, alpha): image float32 0..255, and both targets.

    A mixed image's teacher is the average of two; what a teacher would say of the mixed image is not known offline.
    """
    lam = float(rng.beta(alpha, alpha))
    partner = partners(len(image), rng)
    if lam == 1:
        return Mixed(image, target, None, 1.0, teacher)
    return Mixed(_average(image.float(), partner, lam), target, target[partner], lam,
                 None if teacher is None else _average(teacher, partner, lam))  # fmt: skip


def cutmix(image: Tensor, target: Tensor, rng: np.random.Generator, alpha: float, dense: bool,
           teacher: Tensor | None = None) -> Mixed:  # fmt: skip
    """Paste a box of its partner, at its own place, into each image, of the image's dtype.

    Masks and their teachers are pasted alike, and one target says all. Of labels lam is the share of the image that
    remains, exactly.
    """
    lam = float(rng.beta(alpha, alpha))
    partner = partners(len(image), rng)
    height, width = image.shape[-2:]
    top, left, bottom, right = box(height, width, lam, rng)
    remains = (height * width - (bottom - top) * (right - left)) / (height * width)
    if remains == 1:
        return Mixed(image, target, None, 1.0, teacher)

    def paste(onto: Tensor) -> Tensor:
        out = onto.clone()
        out[..., top:bottom, left:right] = onto[partner][..., top:bottom, left:right]
        return out

    if dense:
        return Mixed(paste(image), paste(target), None, 1.0, None if teacher is None else paste(teacher))
    return Mixed(paste(image), target, target[partner], remains,
                 None if teacher is None else _average(teacher, partner, remains))  # fmt: skip


def partners(count: int, rng: np.random.Generator) -> Tensor:
    """Give each of a batch a partner, never itself: (count,) int64. Batches are shuffled, so a turn is as good."""
    return torch.arange(count).roll(int(rng.integers(1, count)))


def box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw CutMix's box: top, left, bottom, right, the ends excluded.

    Its sides are sqrt(1 - lam) of the image's, its centre lies anywhere, and what sticks out is cut off.
    """
    cut = (1 - lam) ** 0.5
    tall, wide = int(height * cut), int(width * cut)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = y - tall // 2, x - wide // 2
    return max(top, 0), max(left, 0), min(top + tall, height), min(left + wide, width)


def _average(values: Tensor, partner: Tensor, lam: float) -> Tensor:
    return lam * values + (1 - lam) * values[partner]
