"""Learn from a teacher's logits (Hinton et al. 2015), in the form of the bag of tricks (He et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.training.terms import Reduce, mean


def soften(logits: Tensor, temperature: float, kind: str) -> Tensor:
    """Return softmax(r / T) of a teacher's logits r (B, C, H, W), any float dtype: float32 of the same shape.

    kind: as in ``losses.Criterion``; each channel of binary and multilabel logits is a choice of two, softened by its
    own sigmoid. Targets that are mixed (``mix``) are mixed after this, as the labels beside them are.
    """
    scaled = logits.detach().float() / temperature
    return torch.softmax(scaled, dim=1) if kind == "multiclass" else torch.sigmoid(scaled)


def distill(
    logits: Tensor,
    soft: Tensor,
    temperature: float,
    kind: str,
    valid: Tensor | None = None,
    reduce: Reduce = lambda sums: sums,
) -> Tensor:
    """Return T^2 times the cross-entropy of softmax(r / T) and softmax(z / T), mean over valid pixels: float32 scalar.

    logits: z, (B, C, H, W). soft: softmax(r / T) as ``soften`` gives it, (B, C, H, W) float in [0, 1]. kind, reduce: as
    in ``losses.Criterion``; of binary and multilabel logits the mean over channels is taken. valid: (B, H, W) bool.
    The smallest value is not 0 but T^2 times the entropy of the softened teacher; the gradient is that of the
    Kullback-Leibler divergence. ValueError where teacher and logits differ in shape.
    """
    if soft.shape != logits.shape:
        raise ValueError(f"distill: teacher {tuple(soft.shape)} does not fit logits {tuple(logits.shape)}")
    logits, soft = logits.float() / temperature, soft.detach().float()
    if kind == "multiclass":
        losses = -(soft * F.log_softmax(logits, dim=1)).sum(1)  # (B, H, W)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1)  # (B, H, W)
    weights = torch.ones_like(losses) if valid is None else valid.float()
    return temperature**2 * mean(losses, weights, reduce)
