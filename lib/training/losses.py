"""Losses on logits: weighted sums of named terms, computed in float32 outside autocast.

Half precision breaks these losses silently: a sum over 8 x 512 x 512 float16 probabilities is infinite, a clamp at
1 - 1e-5 rounds to 1, and the gradient of a confidently wrong pixel vanishes. So every term starts from log-sigmoid or
log-softmax of float32 logits. Every term but ``lovasz``, which ranks the pixels, is a ratio of sums over the whole
batch, ignored pixels left out, so that processes which add up their sums get the loss of the undivided batch.

FocalLossWithDice of xView2's second place 2020 is {"focal": ce_weight, "damage_dice": d, "building_dice": d}; its
localization loss is {"dice": 1, "focal": 1} of kind binary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import ConfigError
from lib.tasks import IGNORE

EPSILON = {"binary": 1e-3, "multiclass": 1e-5}
"""Smoothing of soft Dice, Jaccard and Tversky, in pixels, as in 2020."""
MIN_CLASS_PIXELS = 10
"""A class with no more target pixels than this in the batch has no part in ``damage_dice``, as in 2020."""

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pixels:
    """A batch as the terms see it; C is 2 for the binary kind (background, foreground)."""

    log_probs: Tensor  # (B, C, H, W) float32
    target: Tensor  # (B, H, W) int64, 0 where not valid
    valid: Tensor  # (B, H, W) bool
    weights: Tensor  # (C,) float32
    gamma: float
    alpha: float
    beta: float
    epsilon: float
    reduce: Reduce

    @cached_property
    def probs(self) -> Tensor:
        """Probabilities, 0 at ignored pixels: (B, C, H, W) float32."""
        return self.log_probs.exp() * self.valid[:, None]


def cross_entropy(pixels: Pixels) -> Tensor:
    """Mean negative log-likelihood, each pixel weighted by its class: sum(w * nll) / sum(w), as torch's nll_loss."""
    return _weighted_mean(pixels, -_at_target(pixels))


def focal(pixels: Pixels) -> Tensor:
    """Focal loss (Lin et al. 2017) on the probability of the true class, weighted mean as ``cross_entropy``."""
    log_p = _at_target(pixels)
    miss = -torch.expm1(log_p)  # 1 - p, exact where p is near 1
    return _weighted_mean(pixels, -(miss**pixels.gamma) * log_p)


def foreground_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice of the foreground over the whole batch (binary)."""
    return _dice(pixels, pixels.probs[:, 1:], (pixels.target == 1)[:, None])[0].squeeze()


def mean_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_dice(pixels, pixels.probs, _one_hot(pixels, 0)))


def damage_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice of each foreground class with more than ten target pixels, summed, over their full number."""
    losses, counts = _dice(pixels, pixels.probs[:, 1:], _one_hot(pixels, 1))
    return (losses * (counts > MIN_CLASS_PIXELS)).mean()


def building_dice(pixels: Pixels) -> Tensor:
    """1 - soft Dice of "any class but the background", with probability 1 - p(background)."""
    foreground = pixels.probs[:, 1:].sum(1, keepdim=True)
    return _dice(pixels, foreground, (pixels.target > 0)[:, None])[0].squeeze()


def damage_ce(pixels: Pixels) -> Tensor:
    """Cross-entropy over the foreground classes alone, at foreground pixels: which class, given that there is one.

    The metric looks at damage only where the truth has a building; with ``building_bce`` this is the cross-entropy of
    all classes in two parts, each with its own mean, so that the many background pixels do not drown the rare classes.
    """
    foreground = pixels.target > 0
    given = pixels.log_probs[:, 1:] - torch.logsumexp(pixels.log_probs[:, 1:], dim=1, keepdim=True)
    log_p = given.gather(1, (pixels.target - 1).clamp(min=0)[:, None]).squeeze(1)  # (B, H, W)
    return _weighted_mean(pixels, -log_p, pixels.weights[pixels.target] * foreground)


def building_bce(pixels: Pixels) -> Tensor:
    """Binary cross-entropy of "any class but the background", unweighted mean over pixels."""
    foreground = torch.logsumexp(pixels.log_probs[:, 1:], dim=1)
    log_p = torch.where(pixels.target > 0, foreground, pixels.log_probs[:, 0])
    return _weighted_mean(pixels, -log_p, torch.ones_like(log_p))


def foreground_jaccard(pixels: Pixels) -> Tensor:
    """1 - soft IoU of the foreground over the whole batch (binary)."""
    return _tversky(pixels, pixels.probs[:, 1:], (pixels.target == 1)[:, None], 1, 1)[0].squeeze()


def mean_jaccard(pixels: Pixels) -> Tensor:
    """1 - soft IoU over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_tversky(pixels, pixels.probs, _one_hot(pixels, 0), 1, 1))


def foreground_tversky(pixels: Pixels) -> Tensor:
    """1 - soft Tversky index (Salehi et al. 2017) of the foreground over the whole batch (binary)."""
    truth = (pixels.target == 1)[:, None]
    return _tversky(pixels, pixels.probs[:, 1:], truth, pixels.alpha, pixels.beta)[0].squeeze()


def mean_tversky(pixels: Pixels) -> Tensor:
    """1 - soft Tversky index over the batch, mean of the classes that have target pixels."""
    return _mean_present(*_tversky(pixels, pixels.probs, _one_hot(pixels, 0), pixels.alpha, pixels.beta))


def lovasz_hinge(pixels: Pixels) -> Tensor:
    """Lovász hinge (Berman et al. 2018) of the foreground over the whole batch (binary)."""
    logits = pixels.log_probs[:, 1] - pixels.log_probs[:, 0]  # (B, H, W)
    errors = F.relu(1 - logits * (2 * pixels.target - 1)) * pixels.valid
    return _lovasz(errors[:, None], (pixels.target == 1)[:, None])[0].squeeze()


def lovasz_softmax(pixels: Pixels) -> Tensor:
    """Lovász-softmax (Berman et al. 2018) over the batch, mean of the classes that have target pixels."""
    truth = _one_hot(pixels, 0)
    return _mean_present(*_lovasz((truth.float() - pixels.probs).abs(), truth))


TERMS = {
    "binary": {
        "dice": foreground_dice,
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
        "damage_ce": damage_ce,
        "damage_dice": damage_dice,
        "building_bce": building_bce,
        "building_dice": building_dice,
        "jaccard": mean_jaccard,
        "tversky": mean_tversky,
        "lovasz": lovasz_softmax,
    },
}


class Loss:
    """A weighted sum of terms; call it with logits and target.

    kind: ``binary`` (one channel of logits, target 0, 1) or ``multiclass`` (C channels, target 0 .. C-1). terms: name
    -> weight; a term of weight 0 is reported and not trained. class_weights: one per class, background first, used by
    focal, ce and bce. tversky_alpha, tversky_beta: weights of false positives and of false negatives. reduce: adds a
    vector of sums over processes, differentiably, with a backward pass that adds too
    (``torch.distributed.nn.functional.all_reduce``): every process then has the whole batch's loss, and DDP's mean of
    gradients is that loss's gradient; ``lovasz`` has no such sums and is refused.
    """

    def __init__(
        self,
        kind: str,
        terms: Mapping[str, float],
        *,
        class_weights: Sequence[float] | None = None,
        ignore: int = IGNORE,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        reduce: Reduce | None = None,
    ):
        if kind not in TERMS:
            raise ConfigError(f"loss: expected kind {' or '.join(TERMS)}, got {kind!r}")
        if unknown := terms.keys() - TERMS[kind].keys():
            raise ConfigError(
                f"loss: unknown {kind} term {', '.join(sorted(unknown))}; there are {', '.join(TERMS[kind])}"
            )
        if min(terms.values(), default=-1) < 0 or not any(terms.values()):
            raise ConfigError(f"loss: expected weights of at least 0, one of them positive, got {dict(terms)}")
        if focal_gamma != 0 and focal_gamma < 1:
            raise ConfigError(f"loss: expected focal_gamma 0, or 1 and more, got {focal_gamma}")
        if min(tversky_alpha, tversky_beta) <= 0:
            raise ConfigError(f"loss: expected tversky weights above 0, got {tversky_alpha} and {tversky_beta}")
        if reduce is not None and "lovasz" in terms:
            raise ConfigError("loss: lovasz ranks a batch's pixels, not exact over several processes; take jaccard")
        self.kind, self.terms, self.class_weights = kind, dict(terms), class_weights
        self.ignore, self.focal_gamma, self.reduce = ignore, focal_gamma, reduce
        self.tversky_alpha, self.tversky_beta = tversky_alpha, tversky_beta

    def __call__(self, logits: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and each raw term, detached: float32 scalars.

        logits: (B, C, H, W), any float dtype. target: (B, H, W) uint8, ``ignore`` where no truth is known.
        """
        with torch.autocast(logits.device.type, enabled=False):
            pixels = self._pixels(logits.float(), target)
            values = {name: TERMS[self.kind][name](pixels) for name in self.terms}
            total = sum(weight * values[name] for name, weight in self.terms.items() if weight > 0)
        return total, {name: value.detach() for name, value in values.items()}

    def _pixels(self, logits: Tensor, target: Tensor) -> Pixels:
        channels = logits.shape[1]
        if logits.shape[:1] + logits.shape[2:] != target.shape or (self.kind == "binary") != (channels == 1):
            raise ValueError(f"loss: {self.kind} logits {tuple(logits.shape)} do not fit target {tuple(target.shape)}")
        if self.kind == "binary":
            log_probs = F.logsigmoid(torch.cat([-logits, logits], dim=1))  # (B, 2, H, W)
        else:
            log_probs = F.log_softmax(logits, dim=1)
        classes = log_probs.shape[1]
        weights = self.class_weights or [1.0] * classes
        if len(weights) != classes:
            raise ConfigError(f"loss: expected {classes} class_weights, got {len(weights)}")
        valid = target != self.ignore
        return Pixels(
            log_probs=log_probs,
            target=target.long().where(valid, 0),
            valid=valid,
            weights=torch.tensor(weights, dtype=torch.float32, device=logits.device),
            gamma=self.focal_gamma,
            alpha=self.tversky_alpha,
            beta=self.tversky_beta,
            epsilon=EPSILON[self.kind],
            reduce=self.reduce or (lambda sums: sums),
        )


def _at_target(pixels: Pixels) -> Tensor:
    """Log-probability of the true class: (B, H, W)."""
    return pixels.log_probs.gather(1, pixels.target[:, None]).squeeze(1)


def _weighted_mean(pixels: Pixels, losses: Tensor, weights: Tensor | None = None) -> Tensor:
    weights = (pixels.weights[pixels.target] if weights is None else weights) * pixels.valid  # (B, H, W)
    total, weight = pixels.reduce(torch.stack([(losses * weights).sum(), weights.sum()]))
    return total / weight.clamp(min=1e-12)  # 0 where every pixel is ignored


def _one_hot(pixels: Pixels, first: int) -> Tensor:
    """Where the target is each class from ``first`` on: (B, C - first, H, W) bool, nowhere at ignored pixels."""
    classes = torch.arange(first, pixels.log_probs.shape[1], device=pixels.target.device)
    return (pixels.target[:, None] == classes[:, None, None]) & pixels.valid[:, None]


def _mean_present(losses: Tensor, counts: Tensor) -> Tensor:
    """Mean of the losses, (K,), of the classes with target pixels; 0 where no class has any."""
    present = counts > 0
    return (losses * present).sum() / present.sum().clamp(min=1)


def _dice(pixels: Pixels, probs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - soft Dice and the number of target pixels, per channel over the whole batch: 2 x (K,) float32."""
    overlap, predicted, true = _areas(pixels, probs, truth)
    return 1 - (2 * overlap + pixels.epsilon) / (predicted + true + pixels.epsilon), true


def _tversky(pixels: Pixels, probs: Tensor, truth: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """As ``_dice``, of the Tversky index: alpha weighs false positives, beta false negatives; 1 and 1 is the IoU."""
    overlap, predicted, true = _areas(pixels, probs, truth)
    union = overlap + alpha * (predicted - overlap) + beta * (true - overlap)
    return 1 - (overlap + pixels.epsilon) / (union + pixels.epsilon), true


def _areas(pixels: Pixels, probs: Tensor, truth: Tensor) -> Tensor:
    """Return overlap, predicted and true pixels, per channel over the whole batch: (3, K) float32.

    probs: (B, K, H, W) float32; truth: (B, K, H, W) bool; both empty at ignored pixels.
    """
    sums = torch.stack([(probs * truth).sum((0, 2, 3)), probs.sum((0, 2, 3)), truth.sum((0, 2, 3)).float()])
    return pixels.reduce(sums)


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
