"""The terms of a loss: each turns a batch of pixels into one number.

Half precision breaks these losses silently: a sum over 8 x 512 x 512 float16 probabilities is infinite, a clamp at
1 - 1e-5 rounds to 1, and the gradient of a confidently wrong pixel vanishes. So every term starts from log-sigmoid or
log-softmax of float32 logits. Every term but ``lovasz``, which ranks the pixels, is a ratio of sums over the whole
batch, ignored pixels left out, so that processes which add up their sums get the loss of the undivided batch; where
hard pixels are mined, each process mines its own.

Binary and multiclass pixels have one class each (sigmoid is the softmax of two); multilabel classes are yes-or-no
questions of their own, as are the classes of a multiclass focal loss of mode ``one_vs_rest``.

The terms, beside the usual dice, focal, ce, bce, jaccard, tversky and lovasz: of exclusive classes, ``foreground_bce``
and ``foreground_dice`` ask only whether there is any foreground (class 0 is the background), ``class_ce`` and
``class_dice`` which class of the foreground it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.config.sections import Loss

MIN_CLASS_PIXELS = 10
"""A class with no more target pixels than this in the batch has no part in ``class_dice``, as in 2020."""

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pixels:
    """A batch as the terms see it; C is 2 for the binary kind (background, foreground)."""

    logits: Tensor  # (B, C, H, W) float32, as the network gave them: one channel for the binary kind
    log_probs: Tensor  # (B, C, H, W) float32
    target: Tensor  # (B, H, W) int64, 0 where not valid
    truth: Tensor  # (B, C, H, W) bool, False where not valid
    valid: Tensor  # (B, H, W) bool
    weights: Tensor  # (C,) float32
    alphas: Tensor  # (2, C) float32, of the focal term: where a class is not the truth, and where it is
    epsilon: float
    loss: Loss
    reduce: Reduce

    @cached_property
    def probs(self) -> Tensor:
        """Probabilities, 0 at ignored pixels: (B, C, H, W) float32."""
        return self.log_probs.exp() * self.valid[:, None]

    def smoothed(self, classes: int) -> tuple[float, float]:
        """Return what label smoothing gives to the true class and to each other one, of so many."""
        smoothing = self.loss.smoothing
        if self.loss.smoothing_form == "paper":
            return 1 - smoothing, smoothing / (classes - 1)
        return 1 - smoothing + smoothing / classes, smoothing / classes


def cross_entropy(pixels: Pixels) -> Tensor:
    """Mean negative log-likelihood, each pixel weighted by its class: sum(w * nll) / sum(w), as torch's nll_loss.

    Smoothed, a pixel costs sum(q_c * w_c * -log p_c) over the classes; the denominator stays, as torch has it.
    """
    weights = pixels.weights[pixels.target]  # (B, H, W)
    losses = weights * -_at_target(pixels)
    if pixels.loss.smoothing:
        true, other = pixels.smoothed(len(pixels.weights))
        all_classes = -(pixels.weights[:, None, None] * pixels.log_probs).sum(1)
        losses = (true - other) * losses + other * all_classes
    kept = _mined(pixels, losses)
    return _ratio(losses * kept, weights * kept, pixels.reduce)


def focal(pixels: Pixels) -> Tensor:
    """Focal loss (Lin et al. 2017) on the probability of the true class, weighted mean as ``cross_entropy``.

    Alpha multiplies the loss of a pixel and, unlike its class weight, has no part in the denominator. ``focal_clamp``
    keeps probability and truth off 0 and 1, as selimsef/xview2_solution did in its localization loss (losses.py).
    """
    log_p, clamp = _at_target(pixels), pixels.loss.focal_clamp
    if clamp:
        p = log_p.exp().clamp(clamp, 1 - clamp)
        log_p = torch.log(clamp * (1 - p) + (1 - clamp) * p)
    return _weighted_mean(pixels, pixels.alphas[1][pixels.target] * _focal(log_p, pixels.loss.focal_gamma))


def bce_one_vs_rest(pixels: Pixels) -> Tensor:
    """Mean over pixels and all classes of each class's binary cross-entropy, weighted by class: sum(w * l) / sum(w).

    Each class is a question of two answers: smoothing has K = 2. A pixel is as hard as its classes together.
    """
    weights = pixels.weights[:, None, None]
    losses = -log_answer(pixels.logits, pixels.truth)  # (B, C, H, W)
    if pixels.loss.smoothing:
        true, other = pixels.smoothed(2)
        losses = true * losses - other * log_answer(pixels.logits, ~pixels.truth)
    losses = weights * losses
    kept = _mined(pixels, losses.sum(1))[:, None]
    return _ratio(losses * kept, weights * kept, pixels.reduce)


def focal_one_vs_rest(pixels: Pixels) -> Tensor:
    """Focal loss of each class against the rest by its own sigmoid, mean as ``bce_one_vs_rest``."""
    alpha = torch.where(pixels.truth, pixels.alphas[1, :, None, None], pixels.alphas[0, :, None, None])  # (B, C, H, W)
    return _weighted_mean_of_classes(
        pixels, alpha * _focal(log_answer(pixels.logits, pixels.truth), pixels.loss.focal_gamma)
    )


def binary_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice of the foreground over the whole batch (binary).

    The probabilities are added up as they lie in memory: a copy, as ``foreground_dice`` makes, rounds otherwise, and a
    network that was begun before would end with other weights.
    """
    return _dice(pixels, pixels.probs[:, 1:], pixels.truth[:, 1:])[0].squeeze()


def foreground_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice of "any class but the background" over the whole batch, with probability 1 - p(background)."""
    foreground = pixels.probs[:, 1:].sum(1, keepdim=True)
    return _dice(pixels, foreground, (pixels.target > 0)[:, None])[0].squeeze()


def mean_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_dice(pixels, pixels.probs, pixels.truth))


def class_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice of each foreground class with more than ten target pixels, summed, over their full number."""
    losses, counts = _dice(pixels, pixels.probs[:, 1:], pixels.truth[:, 1:])
    return (losses * (counts > MIN_CLASS_PIXELS)).mean()


def class_ce(pixels: Pixels) -> Tensor:
    """Cross-entropy over the foreground classes alone, at foreground pixels: which class, given that there is one.

    For metrics that look at classes only where the truth has foreground, as xView2's at damage. With
    ``foreground_bce`` it is the cross-entropy of all classes in two parts, each with its own mean, so that the many
    background pixels do not drown the rare classes.
    """
    foreground = pixels.target > 0
    given = pixels.log_probs[:, 1:] - torch.logsumexp(pixels.log_probs[:, 1:], dim=1, keepdim=True)
    log_p = given.gather(1, (pixels.target - 1).clamp(min=0)[:, None]).squeeze(1)  # (B, H, W)
    return _weighted_mean(pixels, -log_p, pixels.weights[pixels.target] * foreground)


def foreground_bce(pixels: Pixels) -> Tensor:
    """Binary cross-entropy of "any class but the background", unweighted mean over pixels."""
    foreground = torch.logsumexp(pixels.log_probs[:, 1:], dim=1)
    log_p = torch.where(pixels.target > 0, foreground, pixels.log_probs[:, 0])
    return _weighted_mean(pixels, -log_p, torch.ones_like(log_p))


def foreground_jaccard(pixels: Pixels) -> Tensor:
    """1 - soft IoU of the foreground over the whole batch (binary)."""
    return _tversky(pixels, pixels.probs[:, 1:], pixels.truth[:, 1:])[0].squeeze()


def mean_jaccard(pixels: Pixels) -> Tensor:
    """1 - soft IoU over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_tversky(pixels, pixels.probs, pixels.truth))


def foreground_tversky(pixels: Pixels) -> Tensor:
    """1 - soft Tversky index (Salehi et al. 2017) of the foreground over the whole batch (binary)."""
    return _tversky(pixels, pixels.probs[:, 1:], pixels.truth[:, 1:], pixels.loss)[0].squeeze()


def mean_tversky(pixels: Pixels) -> Tensor:
    """1 - soft Tversky index over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_tversky(pixels, pixels.probs, pixels.truth, pixels.loss))


def lovasz_hinge(pixels: Pixels) -> Tensor:
    """Lovász hinge (Berman et al. 2018) of the foreground over the whole batch (binary)."""
    return _hinge(pixels, pixels.truth[:, 1:])[0].squeeze()


def mean_lovasz_hinge(pixels: Pixels) -> Tensor:
    """Lovász hinge of each class's logits over the batch, mean of the classes that have target pixels (multilabel)."""
    return _mean_present(*_hinge(pixels, pixels.truth))


def lovasz_softmax(pixels: Pixels) -> Tensor:
    """Lovász-softmax (Berman et al. 2018) over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_lovasz((pixels.truth.float() - pixels.probs).abs(), pixels.truth))


TERMS = {
    "binary": {
        "dice": binary_dice,
        "focal": focal,
        "bce": cross_entropy,
        "jaccard": foreground_jaccard,
        "tversky": foreground_tversky,
        "lovasz": lovasz_hinge,
    },
    "multiclass": {
        "dice": mean_dice,
        "focal": focal,
        "ce": cross_entropy,
        "class_ce": class_ce,
        "class_dice": class_dice,
        "foreground_bce": foreground_bce,
        "foreground_dice": foreground_dice,
        "jaccard": mean_jaccard,
        "tversky": mean_tversky,
        "lovasz": lovasz_softmax,
    },
    "multilabel": {
        "dice": mean_dice,
        "focal": focal_one_vs_rest,
        "bce": bce_one_vs_rest,
        "jaccard": mean_jaccard,
        "tversky": mean_tversky,
        "lovasz": mean_lovasz_hinge,
    },
}
"""Kind -> name -> term; ``boundary_bce`` is a further one of every kind."""


def _at_target(pixels: Pixels) -> Tensor:
    """Log-probability of the true class: (B, H, W)."""
    return pixels.log_probs.gather(1, pixels.target[:, None]).squeeze(1)


def log_answer(logits: Tensor, truth: Tensor) -> Tensor:
    """Log-probability, by sigmoid, of what is true: logits and truth (bool) of any one shape."""
    return F.logsigmoid(torch.where(truth, logits, -logits))


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    miss = -torch.expm1(log_p)  # 1 - p, exact where p is near 1
    return -(miss**gamma) * log_p


def _weighted_mean(pixels: Pixels, losses: Tensor, weights: Tensor | None = None) -> Tensor:
    weights = pixels.weights[pixels.target] if weights is None else weights  # (B, H, W)
    return mean(losses, weights * pixels.valid, pixels.reduce)


def _weighted_mean_of_classes(pixels: Pixels, losses: Tensor) -> Tensor:
    """Mean of losses (B, C, H, W) over valid pixels and classes, weighted by class."""
    return mean(losses, pixels.weights[:, None, None] * pixels.valid[:, None], pixels.reduce)


def hardest(losses: Tensor, valid: Tensor, share: float, least: int) -> Tensor:
    """Mark the hardest pixels (online hard example mining, Shrivastava et al. 2016): bool of the shape of ``losses``.

    losses: any shape. Of the n valid pixels the round(share * n) of largest loss are marked, but at least ``least``
    (all where there are not so many); of equal ones the first.
    """
    order = losses.detach().where(valid, -torch.inf).flatten().argsort(descending=True, stable=True)
    count = (share * valid.sum()).round().clamp(min=least)
    marked = torch.zeros_like(order, dtype=torch.bool)
    marked[order] = torch.arange(len(order), device=order.device) < count
    return marked.view_as(valid) & valid


def _mined(pixels: Pixels, losses: Tensor) -> Tensor:
    """Tell which pixels count for a term whose weighted losses (B, H, W) are these: (B, H, W) bool."""
    if pixels.loss.ohem is None:
        return pixels.valid
    return hardest(losses, pixels.valid, pixels.loss.ohem, pixels.loss.ohem_min)


def mean(losses: Tensor, weights: Tensor, reduce: Reduce) -> Tensor:
    """Weighted mean over all processes; losses and weights of shapes that broadcast."""
    return _ratio(losses * weights, weights, reduce)


def _ratio(losses: Tensor, weights: Tensor, reduce: Reduce) -> Tensor:
    total, weight = reduce(torch.stack([losses.sum(), weights.sum()]))
    return total / weight.clamp(min=1e-12)  # 0 where every pixel is ignored


def _mean_present(losses: Tensor, counts: Tensor) -> Tensor:
    """Mean of the losses, (K,), of the classes with target pixels; 0 where no class has any."""
    present = counts > 0
    return (losses * present).sum() / present.sum().clamp(min=1)


def _dice(pixels: Pixels, probs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - soft Dice and the number of target pixels, per channel over the whole batch: 2 x (K,) float32."""
    overlap, predicted, true = _areas(pixels, probs, truth)
    return 1 - (2 * overlap + pixels.epsilon) / (predicted + true + pixels.epsilon), true


def _tversky(pixels: Pixels, probs: Tensor, truth: Tensor, weights: Loss | None = None) -> tuple[Tensor, Tensor]:
    """As ``_dice``, of the Tversky index, with the weights of false positives and negatives; both 1 is the IoU."""
    alpha, beta = (weights.tversky_alpha, weights.tversky_beta) if weights else (1, 1)
    overlap, predicted, true = _areas(pixels, probs, truth)
    union = overlap + alpha * (predicted - overlap) + beta * (true - overlap)
    return 1 - (overlap + pixels.epsilon) / (union + pixels.epsilon), true


def _areas(pixels: Pixels, probs: Tensor, truth: Tensor) -> Tensor:
    """Return overlap, predicted and true pixels, per channel over the whole batch: (3, K) float32.

    probs: (B, K, H, W) float32; truth: (B, K, H, W) bool; both empty at ignored pixels.
    """
    sums = torch.stack([(probs * truth).sum((0, 2, 3)), probs.sum((0, 2, 3)), truth.sum((0, 2, 3)).float()])
    return pixels.reduce(sums)


def _hinge(pixels: Pixels, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Lovász hinge of logits (B, K, H, W) against truth of that shape; returns as ``_lovasz``."""
    errors = F.relu(1 - pixels.logits * (2 * truth.float() - 1)) * pixels.valid[:, None]
    return _lovasz(errors, truth)


def _lovasz(errors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Lovász extension of 1 - IoU at the errors and the number of target pixels: (K,) float32, (K,) int64.

    errors: (B, K, H, W) float32, at least 0; truth: (B, K, H, W) bool; both 0 at ignored pixels, which so cost nothing.
    A pixel weighs what 1 - IoU grows by when it goes wrong after all of larger error: 1 / union if true, else
    IoU / union (in float32 a difference of two such 1 - IoU has few digits left among millions of pixels).
    """
    errors, truth = errors.transpose(0, 1).flatten(1), truth.transpose(0, 1).flatten(1)  # (K, B * H * W)
    ranked, order = errors.sort(dim=1, descending=True)
    truth = truth.gather(1, order)
    count = truth.sum(1, keepdim=True)
    kept = count - truth.cumsum(1)  # intersection and union once this pixel is wrong: integers, exact
    union = count + (~truth).cumsum(1)
    iou_before = (kept / (union - 1).clamp(min=1)).where(union > 1, 1.0)  # used where not true; nothing to find: 1
    weights = torch.where(truth, 1.0, iou_before) / union
    return (ranked * weights).sum(1), count.squeeze(1)
