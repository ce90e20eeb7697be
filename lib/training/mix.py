"""Mix the images of a batch and their targets alike: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Every sample has one partner in its batch, and all samples of a batch have the same share lam. A loss under several
processes is a ratio of sums that are added over the processes, and sums can only be weighed by one common share. So
the random numbers depend on (seed, step) alone: all processes draw the same lam, and each mixes its own samples. That
is why a sample has other partners in a run of several processes than in a run of one.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from lib.config.sections import Mix
from lib.errors import ConfigError

MIX = 3
"""Name of the random stream, beside those of the data set."""


class Mixed(NamedTuple):
    """A batch of mixed images and what is true of it: ``target`` to the share ``lam``, ``other`` to the rest."""

    image: Tensor
    target: Tensor
    other: Tensor | None
    """The partners' targets, None where ``target`` says all."""
    lam: float
    teacher: Tensor | None


def draw(seed: int, step: int) -> np.random.Generator:
    """Return the random numbers of a batch; ``step`` counts all batches of the training."""
    return np.random.default_rng((seed, MIX, step))


def mix(image: Tensor, target: Tensor, dense: bool, settings: Mix, rng: np.random.Generator,
        teacher: Tensor | None = None) -> Mixed:  # fmt: skip
    """Mix a batch as ``settings`` say, or give it back as it is; a function of its arguments alone.

    image: (B, C, H, W), uint8 or float, 0..255. target: (B, H, W) uint8, of labels (``dense`` false) (B, 1, 1).
    teacher: softened probabilities of another network, (B, K, H, W) or (B, K, 1, 1) float.
    Raises ConfigError where there is mixing and one sample alone.
    """
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

    A mixed image's teacher is the average of two, so that the loss against it is lam times the one against its own and
    1 - lam times the one against its partner's; what a teacher would say of the mixed image is not known offline.
    """
    lam = float(rng.beta(alpha, alpha))
    places = turn(len(image), rng)
    if lam == 1:
        return Mixed(image, target, None, 1.0, teacher)
    return Mixed(_average(image.float(), places, lam), target, target.roll(places, 0), lam,
                 None if teacher is None else _average(teacher, places, lam))  # fmt: skip


def cutmix(image: Tensor, target: Tensor, rng: np.random.Generator, alpha: float, dense: bool,
           teacher: Tensor | None = None) -> Mixed:  # fmt: skip
    """Paste a box of its partner, at its own place, into each image, of the image's dtype.

    Masks and their teachers are pasted alike, and one target says all. Of labels lam is the share of the image that
    remains, exactly.
    """
    lam = float(rng.beta(alpha, alpha))
    places = turn(len(image), rng)
    height, width = image.shape[-2:]
    top, left, bottom, right = box(height, width, lam, rng)
    remains = (height * width - (bottom - top) * (right - left)) / (height * width)
    if remains == 1:
        return Mixed(image, target, None, 1.0, teacher)

    def paste(onto: Tensor) -> Tensor:
        out = onto.clone()
        out[..., top:bottom, left:right] = onto[..., top:bottom, left:right].roll(places, 0)
        return out

    if dense:
        return Mixed(paste(image), paste(target), None, 1.0, None if teacher is None else paste(teacher))
    return Mixed(paste(image), target, target.roll(places, 0), remains,
                 None if teacher is None else _average(teacher, places, remains))  # fmt: skip


def turn(count: int, rng: np.random.Generator) -> int:
    """Draw by how many places a batch is turned, so that each sample meets another one: its partner.

    Since batches are shuffled, this is as random as any pairing, and a GPU needs no list of partners, for which it
    would have to wait.
    """
    return int(rng.integers(1, count))


def box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw CutMix's box: top, left, bottom, right, the ends excluded.

    Its sides are sqrt(1 - lam) of the image's, its centre lies anywhere, and what sticks out is cut off.
    """
    cut = (1 - lam) ** 0.5
    tall, wide = int(height * cut), int(width * cut)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, left = y - tall // 2, x - wide // 2
    return max(top, 0), max(left, 0), min(top + tall, height), min(left + wide, width)


def _average(values: Tensor, places: int, lam: float) -> Tensor:
    return lam * values + (1 - lam) * values.roll(places, 0)
