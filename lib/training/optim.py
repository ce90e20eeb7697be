"""Optimizers, learning-rate schedules and freezing.

A schedule is a pure function of the step: a run that resumes needs to know only where it was. The plateau's is one of
the step and of the reductions so far, which ``Plateau`` counts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import nn

from lib.config.sections import Optimizer, Schedule
from lib.models.layers import Network

MOMENTUM = 0.9
"""Of sgd."""
NO_DECAY = ("relative_position_bias_table", "pos_embed", "cls_token", "query_embed", "level_embed")
"""Transformers' tables of positions, queries and levels, which their papers do not decay."""


def peak_lr(optimizer: Optimizer, batch: int) -> float:
    """Return the learning rate as stated, or ``lr_base`` scaled linearly from its batch (Goyal et al. 2017).

    ``batch`` is what one step of the optimizer sees: the samples of all processes and all accumulated parts together,
    which is what ``train.batch_size`` counts, so nothing is to be multiplied here.
    """
    if optimizer.lr is not None:
        return optimizer.lr
    assert optimizer.lr_base is not None, "the section takes one of lr and lr_base"
    return optimizer.lr_base * batch / optimizer.lr_base_batch


def param_groups(network: Network, optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
    """Split parameters into encoder and rest, each with decay and without: biases, norms and positions never decay.

    A parameter of at most one dimension is a bias or a norm's (He et al. 2018, "Bag of Tricks", section 3.1); without
    ``no_bias_decay`` all decay alike. ``layer_decay``: the encoder's learning rate falls by this factor with every
    layer further below the head (Bao et al. 2021, BEiT), see ``layers_below_head``. Frozen parameters are included, so
    that unfreezing needs no new optimizer. A group carries its ``name`` and ``lr_scale``.
    """
    decay = optimizer.layer_decay
    below = {} if decay is None else layers_below_head(network.encoder)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        part, scale = "rest", 1.0
        if name.startswith("encoder."):
            part, scale = "encoder", optimizer.encoder_lr_scale
            if decay is not None:
                layer = below.get(name.removeprefix("encoder."), 0)  # norms on feature maps are part of no layer
                part, scale = f"encoder, {layer} below the head", scale * decay**layer
        is_weight = parameter.ndim > 1 and not any(table in name for table in NO_DECAY)
        decays = is_weight or not optimizer.no_bias_decay
        key = part if decays else f"{part}, no decay"
        group = {"params": [], "name": key, "lr": lr * scale, "lr_scale": scale}
        group["weight_decay"] = optimizer.weight_decay if decays else 0.0
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


def layers_below_head(encoder: Any) -> dict[str, int]:
    """Return how many layers each parameter of an encoder lies below the head, by name; the topmost are 1.

    What a layer is: for whole timm models what they say themselves, mostly a block (what timm calls the head's own,
    as a last norm, is 0); for an encoder of feature maps, what lies between two of them; else each child.
    """
    prefix, inner = "", encoder
    while not hasattr(inner, "group_matcher") and isinstance(getattr(inner, "model", None), nn.Module):
        inner, prefix = inner.model, f"{prefix}model."
    if hasattr(inner, "group_matcher"):
        names = [name for name, _ in inner.named_parameters()]
        head = "of ours, unknown to the matcher"  # the matcher counts what it does not know to the head
        named = ((name, None) for name in [*names, head])
        layers = group_with_matcher(named, inner.group_matcher(coarse=False), reverse=True)
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


def build_optimizer(network: Network, optimizer: Optimizer, lr: float) -> torch.optim.Optimizer:
    """Build ``adamw`` (decoupled decay), ``adam`` (decay added to the gradient) or ``sgd`` (Nesterov momentum)."""
    groups = param_groups(network, optimizer, lr)
    if optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if optimizer.name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each optimizer step, counted from 0; ``schedule`` says its form, ``peak`` its height."""

    schedule: Schedule
    peak: float
    epochs: int
    steps_per_epoch: int

    def at(self, step: int, reductions: int = 0) -> float:
        """Return the learning rate of optimizer step ``step``, after so many ``reductions`` of a plateau."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * self._without_warmup(step, reductions)

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear ramp."""
        return round(self.schedule.warmup_epochs * self.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """All steps of the training."""
        return self.epochs * self.steps_per_epoch

    def _without_warmup(self, step: int, reductions: int) -> float:
        asked, epoch = self.schedule, step // self.steps_per_epoch
        factor = asked.factor or 1.0  # the kinds that use it insist on it
        if asked.kind == "piecewise":
            return _latest(asked.table or {}, epoch)
        if asked.kind == "multistep":
            return self.peak * _latest({0: 1.0, **(asked.factors or {})}, epoch)
        if asked.kind == "constant":
            return self.peak
        if asked.kind == "step":
            return self.peak * factor ** (epoch // asked.every)
        if asked.kind == "exponential":
            return self.peak * factor**epoch
        if asked.kind == "plateau":
            return max(asked.min_lr, self.peak * factor**reductions)
        if asked.kind == "one_cycle":
            return self._one_cycle(min(step, self.total_steps - 1))
        length = max(1, self.total_steps - self.warmup_steps)
        t = min(max(0, step - self.warmup_steps), length) / length  # 0..1
        if asked.period is not None:
            t = max(0, step - self.warmup_steps) % asked.period / asked.period
        if asked.kind == "cosine":
            return _cosine(self.peak, asked.min_lr, t)
        return max(asked.min_lr, self.peak * (1 - t) ** asked.power)

    def _one_cycle(self, step: int) -> float:
        asked = self.schedule
        first = self.peak / asked.div
        top, end = asked.peak_at * self.total_steps - 1, self.total_steps - 1  # torch's positions, top not rounded
        if 0 < top and step <= top:
            return _cosine(first, self.peak, step / top)
        return _cosine(self.peak, first / asked.final_div, (step - top) / (end - top) if end > top else 0.0)


@dataclass
class Plateau:
    """Count the reductions of a plateau schedule: one after every ``patience`` validations without a new best.

    Scores are higher-is-better, as ``select``. torch's ReduceLROnPlateau with one less patience and no threshold.
    """

    patience: int
    best: float | None = None
    since_best: int = 0
    reductions: int = 0

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


def freeze(module: Any, norms: bool = True) -> None:
    """Stop ``module`` from learning: no gradients, and evaluation mode (norm statistics, dropout) in every forward.

    norms: false, it stays in the mode of ``model.train()``, so that norm statistics go on moving; else evaluation mode
    is set again at each forward, so a later ``model.train()`` does not undo it. Under DDP, wrap the model anew after
    each change: the wrapper waits for the gradients of the parameters that could have some when it was made.
    """
    if not is_frozen(module):
        module.requires_grad_(False)
        if norms:
            module.eval()
        module.freeze_hook = module.register_forward_pre_hook(_evaluate if norms else _as_it_is)


def unfreeze(module: Any) -> None:
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


def _as_it_is(module: nn.Module, args: tuple) -> None:
    """Mark a module as frozen and do nothing else."""
