"""Optimizers, learning-rate schedules and freezing.

A schedule is a pure function of the step: a run that resumes needs to know only where it was.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lib.errors import ConfigError

OPTIMIZERS = ("adamw", "adam", "sgd")
KINDS = ("piecewise", "cosine", "constant", "poly", "multistep")
NO_DECAY = ("relative_position_bias_table", "pos_embed", "cls_token")
"""Transformers' tables of positions, which their papers do not decay."""


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, encoder_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Split parameters into encoder and rest, each with decay and without: biases, norms and positions never decay.

    A parameter of at most one dimension is a bias or a norm's (He et al. 2018, "Bag of Tricks", section 3.1). Frozen
    parameters are included, so that unfreezing needs no new optimizer. A group carries its ``name`` and ``lr_scale``.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part = "encoder" if name.startswith("encoder.") else "rest"
        decays = parameter.ndim > 1 and not any(table in name for table in NO_DECAY)
        scale = encoder_lr_scale if part == "encoder" else 1.0
        key = part if decays else f"{part}, no decay"
        group = {"params": [], "name": key, "lr": lr * scale, "lr_scale": scale}
        group["weight_decay"] = weight_decay if decays else 0.0
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    encoder_lr_scale: float = 1.0,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """Build ``adamw`` (decoupled decay), ``adam`` (decay added to the gradient) or ``sgd`` (Nesterov momentum)."""
    groups = param_groups(model, lr, weight_decay, encoder_lr_scale)
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

    kind: ``constant``; ``piecewise``: ``table`` of {first epoch: lr}, as the winners of 2020 give theirs;
    ``multistep``: lr, then ``factors`` of {first epoch: share of lr}, shares of lr itself and not of the one before;
    ``cosine``: half a cosine from lr to ``min_lr``; ``poly``: lr * (1 - t / T) ** power, not below ``min_lr``.
    In cosine and poly, t and T count the steps after the warmup (He et al. 2018, section 3.3). Warmup is linear over
    ``warmup_steps``: step s has (s + 1) / warmup_steps of what would follow it.
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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"schedule: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind == "piecewise" and 0 not in self.table:
            raise ConfigError(f"schedule: expected a table of epoch: lr with an entry for epoch 0, got {self.table}")
        if self.kind == "multistep" and (min(self.factors, default=0) < 1 or min(self.factors.values()) < 0):
            raise ConfigError(
                f"schedule: expected factors of epoch: share of lr, from epoch 1 on and at least 0, got {self.factors}"
            )
        if self.kind != "piecewise" and self.lr <= 0:
            raise ConfigError(f"schedule: expected lr above 0, got {self.lr}")
        if self.total_steps < 1 or self.steps_per_epoch < 1 or self.warmup_steps < 0:
            raise ConfigError(f"schedule: expected at least one step and no negative warmup, got {self}")

    @property
    def peak(self) -> float:
        """The learning rate that the schedule starts from after its warmup."""
        return self.table[0] if self.kind == "piecewise" else self.lr

    def lr_at(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * self._lr_without_warmup(step)

    def _lr_without_warmup(self, step: int) -> float:
        epoch = step // self.steps_per_epoch
        if self.kind == "piecewise":
            return _latest(self.table, epoch)
        if self.kind == "multistep":
            return self.lr * _latest({0: 1.0, **self.factors}, epoch)
        if self.kind == "constant":
            return self.lr
        length = max(1, self.total_steps - self.warmup_steps)
        t = min(max(0, step - self.warmup_steps), length) / length  # 0..1
        if self.kind == "cosine":
            return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * t)) / 2
        return max(self.min_lr, self.lr * (1 - t) ** self.power)


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
