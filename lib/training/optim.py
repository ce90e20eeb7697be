"""Optimizers, learning-rate schedules and freezing.

A schedule is a pure function of the step: a run that resumes needs to know only where it was. The plateau's is one of
the step and of the reductions so far, which ``Plateau`` counts.

Longer than 300 lines because all forms of the schedule stand side by side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from lib.errors import ConfigError

OPTIMIZERS = ("adamw", "adam", "sgd")
KINDS = (
    "piecewise", "cosine", "constant", "poly", "multistep", "step", "exponential", "one_cycle", "plateau",
)  # fmt: skip
NO_DECAY = ("relative_position_bias_table", "pos_embed", "cls_token")
"""Transformers' tables of positions, which their papers do not decay."""


def scaled_lr(lr_base: float, lr_base_batch: int, batch: int) -> float:
    """Scale a learning rate found at ``lr_base_batch`` linearly to ``batch`` (Goyal et al. 2017; He et al. 2018, 3.1).

    ``batch`` is what one step of the optimizer sees: the samples of all processes and all accumulated parts together,
    which is what ``train.batch_size`` counts, so nothing is to be multiplied here.
    """
    if lr_base <= 0 or lr_base_batch < 1 or batch < 1:
        raise ConfigError(f"lr scaling: expected a rate above 0 and batches, got {lr_base} at {lr_base_batch}, {batch}")
    return lr_base * batch / lr_base_batch


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    encoder_lr_scale: float = 1.0,
    *,
    no_bias_decay: bool = True,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Split parameters into encoder and rest, each with decay and without: biases, norms and positions never decay.

    A parameter of at most one dimension is a bias or a norm's (He et al. 2018, "Bag of Tricks", section 3.1); without
    ``no_bias_decay`` all decay alike. layer_decay: the encoder's learning rate falls by this factor with every layer
    further below the head (Bao et al. 2021, BEiT), see ``layers_below_head``. Frozen parameters are included, so that
    unfreezing needs no new optimizer. A group carries its ``name`` and ``lr_scale``.
    """
    below = layers_below_head(model.encoder) if layer_decay is not None else {}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part, scale = "rest", 1.0
        if name.startswith("encoder."):
            part, scale = "encoder", encoder_lr_scale
            if below:
                layer = below[name.removeprefix("encoder.")]
                part, scale = f"encoder, {layer} below the head", scale * layer_decay**layer
        decays = not no_bias_decay or (parameter.ndim > 1 and not any(table in name for table in NO_DECAY))
        key = part if decays else f"{part}, no decay"
        group = {"params": [], "name": key, "lr": lr * scale, "lr_scale": scale}
        group["weight_decay"] = weight_decay if decays else 0.0
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


def layers_below_head(encoder: nn.Module) -> dict[str, int]:
    """Return how many layers each parameter of an encoder lies below the head, by name; the topmost are 1.

    What a layer is: for whole timm models what they say themselves, mostly a block (what timm calls the head's own,
    as a last norm, is 0); for an encoder of feature maps, what lies between two of them; else each child.
    """
    inner, prefix = encoder, ""
    while not hasattr(inner, "group_matcher") and isinstance(getattr(inner, "model", None), nn.Module):
        inner, prefix = inner.model, f"{prefix}model."
    if hasattr(inner, "group_matcher"):
        names = [(name, None) for name, _ in inner.named_parameters()]
        head = "of ours, unknown to the matcher"  # what it does not know, it counts to the head
        layers = group_with_matcher([*names, (head, None)], inner.group_matcher(coarse=False), reverse=True)
        top = layers.pop(head)
    else:
        layers = _stages(inner)
        top = max(layers.values(), default=0) + 1
    return {prefix + name: top - layer for name, layer in layers.items()}


def _stages(encoder: nn.Module) -> dict[str, int]:
    """Number the parts of an encoder from 0, in the order of its definition: each ends with a feature map's module.

    timm lists those modules in ``feature_info``; in an encoder without it, every child ends a part.
    """
    info = getattr(encoder, "feature_info", None)
    names = [name for name, _ in encoder.named_children()] if info is None else info.module_name()
    ends = {name.replace(".", "_") for name in names}  # timm flattens stages.0 to stages_0 in some
    layers, stage, inside = {}, 0, None
    for name, module in encoder.named_modules():
        if inside is not None and not name.startswith(f"{inside}."):
            stage, inside = stage + 1, None
        if inside is None and name.replace(".", "_") in ends:
            inside = name
        for own, _ in module.named_parameters(recurse=False):
            layers[f"{name}.{own}" if name else own] = stage
    numbers = {stage: i for i, stage in enumerate(sorted(set(layers.values())))}  # parts without weights do not count
    return {name: numbers[stage] for name, stage in layers.items()}


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    encoder_lr_scale: float = 1.0,
    momentum: float = 0.9,
    no_bias_decay: bool = True,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """Build ``adamw`` (decoupled decay), ``adam`` (decay added to the gradient) or ``sgd`` (Nesterov momentum)."""
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay: expected a factor above 0 and at most 1, got {layer_decay}")
    groups = param_groups(
        model, lr, weight_decay, encoder_lr_scale, no_bias_decay=no_bias_decay, layer_decay=layer_decay
    )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=True)
    raise ConfigError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@dataclass(frozen=True)
class Schedule:
    """A learning rate for each optimizer step, counted from 0.

    kind:
    ``constant``;
    ``piecewise``: ``table`` of {first epoch: lr}, as the winners of 2020 give theirs;
    ``multistep``: lr, then ``factors`` of {first epoch: share of lr}, shares of lr itself and not of the one before;
    ``step``: lr * ``factor`` ** (epoch // ``every``); He et al. 2018: 0.1 every 30 epochs;
    ``exponential``: lr * ``factor`` ** epoch, as 0.94;
    ``cosine``: half a cosine from lr to ``min_lr``;
    ``poly``: lr * (1 - t / T) ** ``power``, not below ``min_lr``;
    ``one_cycle``: a cosine from lr / ``div`` up to lr over the share ``peak_at`` of all steps, and another down to
    lr / ``div`` / ``final_div`` at the last one (Smith and Topin 2017; torch's OneCycleLR);
    ``plateau``: lr * ``factor`` ** reductions, not below ``min_lr``, see ``Plateau``.
    In cosine and poly, t and T count the steps after the warmup (He et al. 2018, section 3.3); in the others epochs
    count from the beginning. Warmup is linear over ``warmup_steps``: step s has (s + 1) / warmup_steps of what would
    follow it; one_cycle is its own warmup.
    """

    kind: str
    total_steps: int
    lr: float = 0.0
    steps_per_epoch: int = 1
    table: Mapping[int, float] = field(default_factory=dict)
    factors: Mapping[int, float] = field(default_factory=dict)
    warmup_steps: int = 0
    min_lr: float = 0.0
    power: float = 0.9
    factor: float | None = None
    every: int = 1
    peak_at: float = 0.3
    div: float = 25.0
    final_div: float = 1e4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"schedule: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind == "piecewise" and 0 not in self.table:
            raise ConfigError(f"schedule: expected a table of epoch: lr with an entry for epoch 0, got {self.table}")
        if self.kind == "multistep" and (min(self.factors, default=0) < 1 or min(self.factors.values()) < 0):
            raise ConfigError(
                f"schedule: expected factors of epoch: share of lr, from epoch 1 on and at least 0, got {self.factors}"
            )
        if self.kind in ("step", "exponential", "plateau") and not (self.factor and 0 < self.factor <= 1):
            raise ConfigError(f"schedule: {self.kind} needs a factor above 0 and at most 1, got {self.factor}")
        if self.every < 1:
            raise ConfigError(f"schedule: expected steps every 1 epoch or more, got {self.every}")
        if self.kind == "one_cycle" and (not 0 <= self.peak_at <= 1 or min(self.div, self.final_div) <= 0):
            raise ConfigError(
                "schedule: one_cycle needs peak_at in 0..1 and divisors above 0, got "
                f"{self.peak_at}, {self.div}, {self.final_div}"
            )
        if self.kind == "one_cycle" and self.warmup_steps:
            raise ConfigError("schedule: one_cycle rises by itself; set the warmup to 0 and use peak_at")
        if self.kind != "piecewise" and self.lr <= 0:
            raise ConfigError(f"schedule: expected lr above 0, got {self.lr}")
        if self.total_steps < 1 or self.steps_per_epoch < 1 or self.warmup_steps < 0:
            raise ConfigError(f"schedule: expected at least one step and no negative warmup, got {self}")

    def lr_at(self, step: int, reductions: int = 0) -> float:
        """Return the learning rate of optimizer step ``step``, after so many ``reductions`` of a plateau."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * self._lr_without_warmup(step, reductions)

    def _lr_without_warmup(self, step: int, reductions: int) -> float:
        epoch = step // self.steps_per_epoch
        if self.kind == "piecewise":
            return _latest(self.table, epoch)
        if self.kind == "multistep":
            return self.lr * _latest({0: 1.0, **self.factors}, epoch)
        if self.kind == "constant":
            return self.lr
        if self.kind == "step":
            return self.lr * self.factor ** (epoch // self.every)
        if self.kind == "exponential":
            return self.lr * self.factor**epoch
        if self.kind == "plateau":
            return max(self.min_lr, self.lr * self.factor**reductions)
        if self.kind == "one_cycle":
            return self._one_cycle(min(step, self.total_steps - 1))
        length = max(1, self.total_steps - self.warmup_steps)
        t = min(max(0, step - self.warmup_steps), length) / length  # 0..1
        if self.kind == "cosine":
            return _cosine(self.lr, self.min_lr, t)
        return max(self.min_lr, self.lr * (1 - t) ** self.power)

    def _one_cycle(self, step: int) -> float:
        first = self.lr / self.div
        top, end = self.peak_at * self.total_steps - 1, self.total_steps - 1  # torch's positions, top not rounded
        if 0 < top and step <= top:
            return _cosine(first, self.lr, step / top)
        return _cosine(self.lr, first / self.final_div, (step - top) / (end - top) if end > top else 0.0)


@dataclass
class Plateau:
    """Count the reductions of a plateau schedule: one after every ``patience`` validations without a new best.

    Scores are higher-is-better, as ``select``. torch's ReduceLROnPlateau with one less patience and no threshold.
    """

    patience: int
    best: float | None = None
    since_best: int = 0
    reductions: int = 0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(f"schedule: plateau needs a patience of at least 1 validation, got {self.patience}")

    def update(self, score: float) -> bool:
        """Take the score of a validation; tell whether the learning rate falls now."""
        if self.best is None or score > self.best:
            self.best, self.since_best = float(score), 0
        else:
            self.since_best += 1
        falls = self.since_best >= self.patience
        if falls:
            self.reductions, self.since_best = self.reductions + 1, 0
        return falls

    def state_dict(self) -> dict[str, float | int | None]:
        """Return what a checkpoint needs: plain numbers."""
        return {"best": self.best, "since_best": self.since_best, "reductions": self.reductions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.best, self.since_best, self.reductions = state["best"], state["since_best"], state["reductions"]


def _cosine(start: float, end: float, t: float) -> float:
    """Go from ``start`` to ``end`` on half a cosine, t in 0..1."""
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2


def _latest(values: Mapping[int, float], epoch: int) -> float:
    return values[max(first for first in values if first <= epoch)]


def freeze(module: nn.Module) -> None:
    """Stop ``module`` from learning: no gradients, and evaluation mode (norm statistics, dropout) in every forward.

    The mode is set again at each forward, so a later ``model.train()`` does not undo it. Under DDP, wrap the model
    before it is first frozen, with find_unused_parameters: the wrapper knows only parameters that had gradients then.
    """
    if not is_frozen(module):
        module.requires_grad_(False)
        module.eval()
        module.freeze_hook = module.register_forward_pre_hook(_evaluate)


def unfreeze(module: nn.Module) -> None:
    """Let a frozen ``module`` learn again, in the mode of the next ``model.train()``."""
    if is_frozen(module):
        module.requires_grad_(True)
        module.freeze_hook.remove()
        del module.freeze_hook


def is_frozen(module: nn.Module) -> bool:
    """Tell whether ``freeze`` holds the module."""
    return hasattr(module, "freeze_hook")


def _evaluate(module: nn.Module, args: tuple) -> None:
    module.eval()
