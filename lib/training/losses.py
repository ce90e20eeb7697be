"""Losses on logits: weighted sums of named terms, computed in float32 outside autocast (see ``terms``).

FocalLossWithDice of xView2's second place 2020 is {"focal": ce_weight, "damage_dice": d, "building_dice": d}; its
localization loss is {"dice": 1, "focal": 1} of kind binary.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import ConfigError
from lib.tasks import IGNORE
from lib.training.boundary import boundary_bce
from lib.training.distill import distill
from lib.training.terms import SMOOTHING_FORMS, TERMS, Pixels, Reduce, focal_one_vs_rest

EPSILON = {"binary": 1e-3, "multiclass": 1e-5, "multilabel": 1e-5}
"""Smoothing of soft Dice, Jaccard and Tversky, in pixels, as in 2020."""
MULTILABEL_CLASSES = 7
"""A bit field of eight classes could equal ``IGNORE``."""
BOUNDARY = "boundary_bce"
"""The term, of every kind, on the boundary head."""
FOCAL_MODES = ("softmax", "per_class", "one_vs_rest")


class Loss:
    """A weighted sum of terms; call it with what a network gives and the target.

    kind: ``binary`` (one channel of logits, target 0, 1), ``multiclass`` (C channels, target 0 .. C-1) or
    ``multilabel`` (C channels, at most 7; bit c of the target is class c). terms: name -> weight; a term of weight 0 is
    reported and not trained. Of several classes, dice, jaccard, tversky and lovasz are means of those that have target
    pixels in the batch: false alarms of an absent class are left to ce, bce and focal, which leave no class out.
    class_weights: one per class, background first, used by focal, ce and bce.

    focal_alpha is one number or one per class; what it means is ``focal_mode``'s to say, for the multiclass kind:
    ``softmax``: one number, which multiplies the whole term, and so only is another weight (alone in a loss: another
    learning rate); ``per_class``: the factor of a pixel by its true class, where one number a is a for every foreground
    class and 1 - a for the background; ``one_vs_rest``: every class by its own sigmoid, a for its pixels and 1 - a for
    all others. A binary focal loss is ``per_class`` and a multilabel one ``one_vs_rest``; there is nothing to choose.

    boundary_width: how far from another class a pixel counts as boundary in ``boundary_bce``, the plain mean of the
    boundary head's binary cross-entropy over pixels. aux_weight: of all other terms, on the auxiliary head.
    tversky_alpha, tversky_beta: weights of false positives and of false negatives.

    smoothing: eps of label smoothing, of the terms ce and bce. smoothing_form: ``paper`` gives 1 - eps to the true one
    of K classes and eps / (K - 1) to each other (He et al. 2019, bag of tricks), ``torch`` gives eps / K to all and
    1 - eps more to the true one (Szegedy et al. 2016); far apart for small K. ohem: share of a batch's pixels, the
    hardest, that count in ce and bce, but at least ``ohem_min``; how hard a pixel is tells its loss in that term, class
    weight and smoothing included. distill: {"weight", "temperature"} of the term ``distill`` against a teacher.

    reduce: adds a vector of sums over
    processes, differentiably, with a backward pass that adds too (``torch.distributed.nn.functional.all_reduce``):
    every process then has the whole batch's loss, and DDP's mean of gradients is that loss's gradient; ``lovasz`` has
    no such sums and is refused; ``ohem`` takes the hardest pixels of each process.
    """

    def __init__(
        self,
        kind: str,
        terms: Mapping[str, float],
        *,
        class_weights: Sequence[float] | None = None,
        ignore: int = IGNORE,
        focal_gamma: float = 2.0,
        focal_alpha: float | Sequence[float] | None = None,
        focal_mode: str = "softmax",
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        boundary_width: int = 1,
        aux_weight: float = 0.4,
        smoothing: float = 0.0,
        smoothing_form: str = "paper",
        ohem: float | None = None,
        ohem_min: int = 1,
        distill: Mapping[str, float] | None = None,
        reduce: Reduce | None = None,
    ):
        if kind not in TERMS:
            raise ConfigError(f"loss: expected kind {' or '.join(TERMS)}, got {kind!r}")
        known = [*TERMS[kind], BOUNDARY]
        if unknown := terms.keys() - known:
            raise ConfigError(f"loss: unknown {kind} term {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        if min(terms.values(), default=-1) < 0 or not any(w for name, w in terms.items() if name != BOUNDARY):
            raise ConfigError(
                f"loss: expected weights of at least 0, one of them positive and not {BOUNDARY}'s, got {dict(terms)}"
            )
        if focal_gamma != 0 and focal_gamma < 1:
            raise ConfigError(f"loss: expected focal_gamma 0, or 1 and more, got {focal_gamma}")
        if min(tversky_alpha, tversky_beta) <= 0:
            raise ConfigError(f"loss: expected tversky weights above 0, got {tversky_alpha} and {tversky_beta}")
        if boundary_width < 1 or aux_weight < 0:
            raise ConfigError(
                f"loss: expected boundary_width of at least 1 and aux_weight of at least 0, got {boundary_width} "
                f"and {aux_weight}"
            )
        if reduce is not None and "lovasz" in terms:
            raise ConfigError("loss: lovasz ranks a batch's pixels, not exact over several processes; take jaccard")
        _check_focal(kind, terms, focal_alpha, focal_mode)
        _check_tricks(terms, smoothing, smoothing_form, ohem, ohem_min, distill)
        self.kind, self.terms, self.class_weights = kind, dict(terms), class_weights
        self.functions = TERMS[kind] | ({"focal": focal_one_vs_rest} if focal_mode == "one_vs_rest" else {})
        self.ignore, self.focal_gamma, self.reduce = ignore, focal_gamma, reduce or (lambda sums: sums)
        self.focal_alpha, self.focal_mode = focal_alpha, focal_mode
        self.tversky_alpha, self.tversky_beta = tversky_alpha, tversky_beta
        self.boundary_width, self.aux_weight = boundary_width, aux_weight
        self.smoothing, self.smoothing_form = smoothing, smoothing_form
        self.ohem, self.ohem_min, self.distill = ohem, ohem_min, distill

    def __call__(
        self,
        outputs: Tensor | Mapping[str, Tensor],
        target: Tensor,
        other: Tensor | None = None,
        lam: float = 1.0,
        teacher: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and each raw term, detached: float32 scalars.

        outputs: logits (B, C, H, W), any float dtype, or a mapping of ``logits`` and, where the network has such heads,
        ``boundary`` (B, 1, H, W) and ``aux`` (B, C, H, W), logits all. target: (B, H, W) uint8, ``ignore`` where no
        truth is known. An auxiliary head adds ``aux_weight`` times its weighted sum of terms, reported unscaled as
        ``aux``. Raises ConfigError where ``boundary_bce`` finds no boundary head.

        other: the second target of mixed images; every value is then lam times that of ``target`` plus 1 - lam times
        that of ``other``, each over its own valid pixels, which for ce and bce is the loss against mixed labels. lam is
        one number for the batch, on all processes; 1 leaves ``other`` unread. teacher: (B, C, H, W) float in [0, 1],
        probabilities for the images as they are, mixed as they are; ``distill`` leaves out pixels that either target
        ignores.
        """
        if not 0 <= lam <= 1 or (lam < 1 and other is None):
            raise ValueError(f"loss: expected lam in 0 .. 1, and below 1 a second target, got {lam}")
        if (teacher is None) != (self.distill is None):
            raise ValueError("loss: distill and a teacher's probabilities go together, got only one of them")
        heads = {"logits": outputs} if isinstance(outputs, Tensor) else outputs
        mixed = other is not None and lam < 1
        with torch.autocast(target.device.type, enabled=False):
            total, values = self._against(heads, target)
            if mixed:
                second, others = self._against(heads, other)
                total = lam * total + (1 - lam) * second
                values = {name: lam * value + (1 - lam) * others[name] for name, value in values.items()}
            if self.distill is not None:
                valid = (target != self.ignore) & (other != self.ignore) if mixed else target != self.ignore
                values["distill"] = distill(heads["logits"].float(), teacher.float(), self.distill["temperature"],
                                            self.kind, valid, self.reduce)  # fmt: skip
                total = total + self.distill["weight"] * values["distill"]
        return total, {name: value.detach() for name, value in values.items()}

    def _against(self, heads: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and each raw term of all heads against one target."""
        values = self._values(heads["logits"], target, [name for name in self.terms if name != BOUNDARY])
        if BOUNDARY in self.terms:
            if "boundary" not in heads:
                raise ConfigError(
                    f"loss: {BOUNDARY} needs a network with a boundary head, got one that gives only "
                    f"{', '.join(heads)}; give it one, or leave the term out"
                )
            values[BOUNDARY] = boundary_bce(heads["boundary"], target, self.boundary_width, self.ignore, self.reduce)
        total = self._weighted_sum(values)
        if "aux" in heads:
            trained = [name for name, weight in self.terms.items() if weight > 0 and name != BOUNDARY]
            values["aux"] = self._weighted_sum(self._values(heads["aux"], target, trained))
            total = total + self.aux_weight * values["aux"] if self.aux_weight else total
        return total, values

    def _values(self, logits: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        pixels = self._pixels(logits.float(), target)
        return {name: self.functions[name](pixels) for name in names}

    def _weighted_sum(self, values: Mapping[str, Tensor]) -> Tensor:
        return sum(self.terms[name] * value for name, value in values.items() if self.terms[name] > 0)

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
        weights = self.class_weights or [1.0] * classes
        if len(weights) != classes:
            raise ConfigError(f"loss: expected {classes} class_weights, got {len(weights)}")
        alphas = _alphas(self.focal_alpha, self.focal_mode, self.kind, classes)
        valid = target != self.ignore
        return Pixels(
            logits=logits,
            log_probs=log_probs,
            target=target.long().where(valid, 0),
            truth=_truth(self.kind, target, classes) & valid[:, None],
            valid=valid,
            weights=torch.tensor(weights, dtype=torch.float32, device=logits.device),
            alphas=torch.tensor(alphas, dtype=torch.float32, device=logits.device),
            gamma=self.focal_gamma,
            alpha=self.tversky_alpha,
            beta=self.tversky_beta,
            epsilon=EPSILON[self.kind],
            smoothing=self.smoothing,
            smoothing_form=self.smoothing_form,
            ohem=self.ohem,
            ohem_min=self.ohem_min,
            reduce=self.reduce,
        )


def _check_focal(kind: str, terms: Mapping[str, float], alpha: float | Sequence[float] | None, mode: str) -> None:
    """Raise ConfigError where no focal term can be meant by this alpha and mode."""
    if mode not in FOCAL_MODES:
        raise ConfigError(f"loss: expected focal_mode {', '.join(FOCAL_MODES)}, got {mode!r}")
    if kind != "multiclass" and mode != "softmax":
        raise ConfigError(f"loss: {kind} focal losses have one form; leave focal_mode {mode} out")
    if "focal" not in terms and (alpha is not None or mode != "softmax"):
        raise ConfigError("loss: focal_alpha and focal_mode belong to the term focal, and there is none")
    if mode == "per_class" and alpha is None:
        raise ConfigError("loss: focal_mode per_class needs focal_alpha, one number or one per class")
    if alpha is None:
        return
    single = isinstance(alpha, (int, float))
    if kind == "multiclass" and mode == "softmax":
        if not single:
            raise ConfigError(f"loss: focal_mode softmax takes one focal_alpha; {list(alpha)} is for per_class")
        if alpha <= 0:
            raise ConfigError(f"loss: expected focal_alpha above 0, got {alpha}")
    elif single or kind == "multilabel" or mode == "one_vs_rest":  # where 1 - alpha is a factor too
        values = [alpha] if single else alpha
        if not all(0 < value < 1 for value in values):
            raise ConfigError(f"loss: expected focal_alpha between 0 and 1, got {alpha}")
    elif min(alpha, default=-1) < 0 or not any(alpha):
        raise ConfigError(f"loss: expected focal_alpha of at least 0, one of them positive, got {list(alpha)}")


def _check_tricks(
    terms: Mapping[str, float],
    smoothing: float,
    form: str,
    ohem: float | None,
    ohem_min: int,
    distill: Mapping[str, float] | None,
) -> None:
    """Raise ConfigError for a smoothing, mining or distillation that cannot be meant."""
    if not 0 <= smoothing < 0.5:  # at one half, of two classes none is true
        raise ConfigError(f"loss: expected smoothing of at least 0 and below 0.5, got {smoothing}")
    if form not in SMOOTHING_FORMS:
        raise ConfigError(f"loss: expected smoothing_form {' or '.join(SMOOTHING_FORMS)}, got {form!r}")
    if ohem is not None and not 0 < ohem <= 1 or ohem_min < 1:
        raise ConfigError(f"loss: expected ohem in 0 .. 1 and ohem_min of at least 1, got {ohem} and {ohem_min}")
    if (smoothing or ohem is not None) and not terms.keys() & {"ce", "bce"}:
        raise ConfigError("loss: smoothing and ohem belong to the terms ce and bce, and there is neither")
    if distill is not None and (distill.keys() != {"weight", "temperature"} or min(distill.values()) <= 0):
        raise ConfigError(f"loss: expected distill with weight and temperature above 0, got {dict(distill)}")


def _alphas(alpha: float | Sequence[float] | None, mode: str, kind: str, classes: int) -> list[list[float]]:
    """Return the focal factor of each class where it is not the truth, and where it is: 2 x (C,)."""
    if alpha is None:
        return [[1.0] * classes] * 2
    if not isinstance(alpha, (int, float)):
        true = list(alpha)
    elif kind == "binary" or mode == "per_class":
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
