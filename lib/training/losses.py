"""Losses on logits: weighted sums of named terms, computed in float32 outside autocast (see ``terms``).

``{focal: w, class_dice: d, foreground_dice: d}`` is the damage loss of xView2's second place 2020 (FocalLossWithDice),
``{dice: 1, focal: 1}`` of kind binary its localization loss.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.config.losses import ALIASES, loss_faults
from lib.config.sections import BOUNDARY, QUERY, Distill, Loss
from lib.errors import ConfigError
from lib.models.layers import Outputs
from lib.tasks import known
from lib.training.boundary import boundary_bce
from lib.training.distill import distill
from lib.training.queries import query_terms
from lib.training.terms import TERMS, Pixels, Reduce, focal_one_vs_rest

EPSILON = {"binary": 1e-3, "multiclass": 1e-5, "multilabel": 1e-5}
"""Smoothing of soft Dice, Jaccard and Tversky, in pixels, as in 2020."""
MULTILABEL_CLASSES = 7
"""A bit field of eight classes could equal 255, which is ignored."""


class Criterion:
    """A weighted sum of terms; call it with what a network gives and the target.

    kind: ``binary`` (one channel of logits, target 0, 1), ``multiclass`` (C channels, target 0 .. C-1) or
    ``multilabel`` (C channels, at most 7; bit c of the target is class c). The section ``Loss`` says what its fields
    mean; this is what it leaves open:

    Terms. Of several classes, dice, jaccard, tversky and lovasz are means over those that have target pixels in the
    batch; false alarms of an absent class are left to ce, bce and focal, which leave no class out. Only focal, ce and
    bce use ``class_weights``, one per class, background first. ``boundary_bce`` is the plain mean of the boundary
    head's binary cross-entropy over pixels; query_class, query_bce and query_dice train the queries of a maskformer
    (``queries``); all other terms apply to the auxiliary head too, times ``aux_weight``.

    Focal losses of kind multiclass. In mode ``softmax`` alpha is one number that multiplies the whole term, so it is no
    more than another weight of the term. ``per_class``: the factor of a pixel by its true class; one number a means a
    for every foreground class and 1 - a for the background. ``one_vs_rest``: every class by its own sigmoid, a for its
    pixels and 1 - a for all others. Binary focal losses are ``per_class``, multilabel ones ``one_vs_rest``.

    Label smoothing. ``paper`` gives 1 - eps to the true one of K classes and eps / (K - 1) to each other (He et al.
    2019, bag of tricks), ``torch`` gives eps / K to all and 1 - eps more to the true one (Szegedy et al. 2016); for
    small K the two are far apart. How hard a pixel is for ``ohem`` is its loss in the term, class weight and smoothing
    included.

    distill: weight and temperature of a further term, the cross-entropy against a teacher. reduce: adds a vector of
    sums over processes, differentiably, with a backward pass that adds too (``stepper.all_sum``). Then every process
    has the loss of the whole batch, and DDP's mean of gradients is the gradient of that loss. ``lovasz`` has no such
    sums and is refused; ``ohem`` takes the hardest pixels of each process.
    """

    def __init__(self, kind: str, loss: Loss, distill: Distill | None = None, reduce: Reduce | None = None):
        if faults := list(loss_faults(loss, kind)):
            raise ConfigError("\n".join(f"loss.{fault}" for fault in faults))
        if reduce is not None and "lovasz" in loss.terms:
            raise ConfigError("loss: lovasz ranks a batch's pixels, not exact over several processes; take jaccard")
        self.kind, self.loss, self.distill = kind, loss, distill
        beside = (*QUERY, BOUNDARY)
        self.functions = {name: TERMS[kind][ALIASES.get(name, name)] for name in loss.terms if name not in beside}
        self.queries = [name for name in QUERY if name in loss.terms]
        if loss.focal_mode == "one_vs_rest":
            self.functions["focal"] = focal_one_vs_rest
        self.reduce = reduce or (lambda sums: sums)
        self._factors: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        outputs: Tensor | Outputs,
        target: Tensor,
        other: Tensor | None = None,
        lam: float = 1.0,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and each raw term, detached: float32 scalars.

        outputs: logits (B, C, H, W), any float dtype, or what a network with further heads gives. target: (B, H, W)
        uint8, 255 where no truth is known, or int32 and -1. An auxiliary head adds ``aux_weight`` times its weighted
        sum of terms, reported unscaled as ``aux``. The heads of a decoder's steps at 1/2, 1/4, ... of the size add
        theirs against every second, fourth, ... pixel of the target, reported as ``level_2``, ``level_4``, ... Raises
        ConfigError where ``boundary_bce`` finds no boundary head, or a query term no queries.

        other: the second target of mixed images; every value is then lam times that of ``target`` plus 1 - lam times
        that of ``other``, each over its own valid pixels, which for ce and bce is the loss against mixed labels. lam is
        one number for the batch, on all processes; 1 leaves ``other`` unread. teacher: (B, C, H, W) float in [0, 1],
        softened probabilities (``distill.soften``) for the images as they are, mixed as they are; ``distill`` leaves
        out pixels that either target ignores.
        """
        if not 0 <= lam <= 1 or (lam < 1 and other is None):
            raise ValueError(f"loss: expected lam in 0 .. 1, and below 1 a second target, got {lam}")
        if (teacher is None) != (self.distill is None):
            raise ValueError("loss: distill and a teacher's probabilities go together, got only one of them")
        heads: Outputs = {"logits": outputs} if isinstance(outputs, Tensor) else outputs
        mixed = other if lam < 1 else None
        with torch.autocast(target.device.type, enabled=False):
            total, values = self._against(heads, target)
            if mixed is not None:
                second, others = self._against(heads, mixed)
                total = lam * total + (1 - lam) * second
                values = {name: lam * value + (1 - lam) * others[name] for name, value in values.items()}
            if self.distill is not None and teacher is not None:
                valid = known(target) if mixed is None else known(target) & known(mixed)
                values["distill"] = distill(heads["logits"].float(), teacher.float(), self.distill.temperature,
                                            self.kind, valid, self.reduce)  # fmt: skip
                total = total + self.distill.weight * values["distill"]
        return total, {name: value.detach() for name, value in values.items()}

    def _against(self, heads: Outputs, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and each raw term of all heads against one target."""
        values = self._values(heads["logits"], target, list(self.functions))
        if BOUNDARY in self.loss.terms:
            if "boundary" not in heads:
                raise ConfigError(
                    f"loss: {BOUNDARY} needs a network with a boundary head, got one that gives only "
                    f"{', '.join(heads)}; give it one, or leave the term out"
                )
            values[BOUNDARY] = boundary_bce(heads["boundary"], target, self.loss.boundary_width, self.reduce)
        if self.queries:
            if "queries" not in heads:
                raise ConfigError(f"loss: {self.queries[0]} needs a maskformer; take it or leave the term out")
            found = query_terms(heads["queries"], target, self.loss, self.reduce)
            values |= {name: found[name] for name in self.queries}
        total = self._weighted_sum(values)
        further = {"aux": heads["aux"]} if "aux" in heads else {}
        for level in heads.get("levels", ()):
            further[f"level_{target.shape[-1] // level.shape[-1]}"] = level
        trained, weights = [name for name in self.functions if self.loss.terms[name] > 0], self.weights
        for name, logits in further.items():
            step = target.shape[-1] // logits.shape[-1]
            coarse = target[:, step // 2 :: step, step // 2 :: step]  # of each square of pixels, one in its middle
            values[name] = self._weighted_sum(self._values(logits, coarse, trained))
            total = total + weights[name] * values[name] if weights[name] else total
        return total, values

    @property
    def weights(self) -> dict[str, float]:
        """Return what each value that a call reports counts in the total, by name."""
        loss, levels = self.loss, range(1, 7)
        weights = {**loss.terms, "aux": loss.aux_weight}
        if self.distill:
            weights["distill"] = self.distill.weight
        return weights | {f"level_{2**k}": loss.deep_weight**k for k in levels}

    def _values(self, logits: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        if not names:
            return {}
        pixels = self._pixels(logits.float(), target)
        return {name: self.functions[name](pixels) for name in names}

    def _weighted_sum(self, values: Mapping[str, Tensor]) -> Tensor:
        weighted = [self.loss.terms[name] * value for name, value in values.items() if self.loss.terms[name] > 0]
        return cast(Tensor, sum(weighted))

    def _pixels(self, logits: Tensor, target: Tensor) -> Pixels:
        single = logits.shape[1] == 1
        fits = {"binary": single, "multiclass": not single, "multilabel": True}[self.kind]
        if logits.shape[:1] + logits.shape[2:] != target.shape or not fits:
            raise ValueError(f"loss: {self.kind} logits {tuple(logits.shape)} do not fit target {tuple(target.shape)}")
        if self.kind == "binary":
            log_probs = F.logsigmoid(torch.cat([-logits, logits], dim=1))  # (B, 2, H, W)
        elif self.kind == "multiclass":
            log_probs = F.log_softmax(logits, dim=1)
        else:
            log_probs = F.logsigmoid(logits)
        classes = log_probs.shape[1]
        weights, alphas = self._class_factors(classes, logits.device)
        valid = known(target)
        return Pixels(
            logits=logits,
            log_probs=log_probs,
            target=target.long().where(valid, 0),
            truth=_truth(self.kind, target, classes) & valid[:, None],
            valid=valid,
            weights=weights,
            alphas=alphas,
            epsilon=EPSILON[self.kind],
            loss=self.loss,
            reduce=self.reduce,
        )

    def _class_factors(self, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ``Pixels.weights`` and ``alphas``; they go to the device once, as the host waits for such a copy."""
        if (classes, device) not in self._factors:
            weights = self.loss.class_weights or [1.0] * classes
            if len(weights) != classes:
                raise ConfigError(f"loss: expected {classes} class_weights, got {len(weights)}")
            both = (weights, _alphas(self.loss, self.kind, classes))
            on_device = [torch.tensor(values, dtype=torch.float32, device=device) for values in both]
            self._factors[classes, device] = on_device[0], on_device[1]
        return self._factors[classes, device]


def _alphas(loss: Loss, kind: str, classes: int) -> list[list[float]]:
    """Return the focal factor of each class where it is not the truth, and where it is: 2 x (C,)."""
    alpha = loss.focal_alpha
    if alpha is None:
        return [[1.0] * classes] * 2
    if not isinstance(alpha, (int, float)):
        true = list(alpha)
    elif kind == "binary" or loss.focal_mode == "per_class":
        true = [1 - alpha] + [alpha] * (classes - 1)
    else:
        true = [alpha] * classes
    if len(true) != classes:
        raise ConfigError(f"loss: expected one focal_alpha or {classes}, got {len(true)}")
    return [[1 - a for a in true], true]


def _truth(kind: str, target: Tensor, classes: int) -> Tensor:
    """Tell which classes a pixel has, whether or not it is ignored: (B, C, H, W) bool."""
    index = torch.arange(classes, device=target.device)[:, None, None]
    if kind != "multilabel":
        return target[:, None] == index
    if classes > MULTILABEL_CLASSES:
        raise ConfigError(f"loss: expected at most {MULTILABEL_CLASSES} multilabel classes, got {classes}")
    return (target[:, None] & (1 << index).to(target.dtype)) != 0
