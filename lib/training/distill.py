"""Learn from a teacher's probabilities (Hinton et al. 2015), in the form of the bag of tricks (He et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.training.terms import Reduce, mean

FLOOR = 0.25 / 255
"""What a probability of level 0 is taken for: the middle of all that rounds to it. A temperature of 20 makes much of
the difference between small probabilities, and levels know of none below half a level."""


def distill(
    logits: Tensor,
    teacher: Tensor,
    temperature: float,
    kind: str,
    valid: Tensor | None = None,
    reduce: Reduce = lambda sums: sums,
) -> Tensor:
    """Return T^2 times the cross-entropy of softmax(r / T) and softmax(z / T), mean over valid pixels: float32 scalar.

    logits: z, (B, C, H, W). teacher: probabilities (B, C, H, W) float in [0, 1], raised to ``FLOOR`` where they are
    smaller; r is their logarithm (a softmax is the same whatever constant is added to it). kind, reduce: as in
    ``losses.Criterion``; each channel of binary and multilabel logits is a choice of two, and their mean is taken.
    valid: (B, H, W) bool. The smallest value is not 0 but T^2 times the entropy of the softened teacher; the gradient
    is that of the Kullback-Leibler divergence. ValueError where teacher and logits differ in shape.
    """
    if teacher.shape != logits.shape:
        raise ValueError(f"distill: teacher {tuple(teacher.shape)} does not fit logits {tuple(logits.shape)}")
    logits, teacher = logits.float() / temperature, teacher.detach().float()
    if kind == "multiclass":
        soft = torch.softmax(teacher.clamp(min=FLOOR).log() / temperature, dim=1)
        losses = -(soft * F.log_softmax(logits, dim=1)).sum(1)  # (B, H, W)
    else:
        soft = torch.sigmoid(torch.logit(teacher, eps=FLOOR) / temperature)
        losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1)  # (B, H, W)
    weights = torch.ones_like(losses) if valid is None else valid.float()
    return temperature**2 * mean(losses, weights, reduce)
