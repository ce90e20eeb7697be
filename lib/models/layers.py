"""Layers that every network shares: input normalisation, group norm for batch norm, float32 depthwise training."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypedDict, TypeVar, cast

import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers import Conv2dSame, GroupNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN = ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3)
NATIVE = {"dpn": DPN, "inceptionv4": HALF, "inceptionresnetv2": HALF, "xception": HALF}
"""Native smp encoders (by start of name) whose weights were not trained with the ImageNet mean and std. smp itself
keeps these numbers on the hub only; they are those of Cadene's pretrained-models, where the weights come from."""


STATISTICS = ("encoder", "imagenet")
"""By what an input is normalised."""

Kind = TypeVar("Kind")


class Queries(NamedTuple):
    """What the queries of a mask classification network propose: one mask each, and what it is of."""

    classes: Tensor
    """(B, Q, K + 1) logits of K exclusive classes and, last, of "no object"."""
    masks: Tensor
    """(B, Q, h, w) logits, one for each pixel and query; h and w may be a part of the image's size."""


class _Logits(TypedDict):
    logits: Tensor


class Outputs(_Logits, total=False):
    """What a network with more than logits gives while it trains; in evaluation every network gives its logits alone.

    A plain dict, since DDP, torch.compile and pytree walk dicts and would not look into a class of ours. All tensors
    are logits, ``logits`` itself (B, C, H, W). A network has only the keys of the heads that it has.
    """

    boundary: Tensor
    """(B, 1, H, W), of the boundaries of objects."""
    aux: Tensor
    """(B, C, H, W), of an auxiliary head on the encoder."""
    levels: list[Tensor]
    """(B, C, h, w) each, of the steps of a decoder before the last, from the finest to the coarsest."""
    tasks: dict[str, Tensor]
    """(B, C, H, W) by the name of each auxiliary task, C its own."""
    queries: list[Queries]
    """Of every layer of a transformer decoder, the last one last."""


class Network(nn.Module):
    """What every architecture gives beside its logits."""

    stride: int
    """The sides of an input are multiples of it."""
    encoder: Any
    """A module: the part with pretrained weights, which may be frozen and learns at a rate of its own."""
    source: dict[str, str | int] | None
    """Where the encoder's pretrained weights came from, None without."""


def take(kind: type[Kind], options: Mapping[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """Divide the options of a network: a dataclass of those that are its fields, and the others as they are."""
    own = {field.name for field in fields(cast(Any, kind))}
    mine = {name: value for name, value in options.items() if name in own}
    return kind(**mine), {name: value for name, value in options.items() if name not in own}


def mean_std(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel mean and std, for images in 0..1, that an encoder's pretraining used; needs no network."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return (tuple(config.mean), tuple(config.std)) if config else IMAGENET
    return next((value for start, value in NATIVE.items() if encoder.startswith(start)), IMAGENET)


class Normalize(nn.Module):
    """Normalise (B, 3 * images, H, W) uint8 or float in 0..255 channel by channel, always computed in float32.

    By ``encoder``'s own mean and std, or, where ``statistics`` is ``imagenet``, by ImageNet's whatever the encoder. The
    buffers ``mean`` and ``std`` are in 0..255 units, the three values repeated for each image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: str, images: int, statistics: str = "encoder"):
        super().__init__()
        found = IMAGENET if statistics == "imagenet" else mean_std(encoder)
        for name, values in zip(("mean", "std"), found):
            self.register_buffer(name, torch.tensor(values * images, dtype=torch.float32).mul(255).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:
            raise ValueError(f"network input: expected {self.mean.shape[1]} channels, got shape {tuple(x.shape)}")
        return ((x.float() - self.mean.float()) / self.std.float()).to(self.mean.dtype)


def use_group_norm(module: nn.Module, groups: int = 32) -> None:
    """Replace every batch norm below ``module`` by group norm, in place, so that a batch of one image can train.

    Groups: the largest divisor of the channels up to ``groups`` that leaves at least two channels a group (with one,
    a 1x1 map would always normalise to zero). Weights and biases are kept. Wu and He 2018; 32 groups at batch 1 is
    what the winner of HuBMAP 2022 used.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _group_norm(child, groups))
        else:
            use_group_norm(child, groups)


def _group_norm(norm: _BatchNorm, groups: int) -> nn.GroupNorm:
    channels = norm.num_features
    groups = max(g for g in range(1, groups + 1) if channels % g == 0 and (g == 1 or channels // g >= 2))
    new: nn.GroupNorm
    if hasattr(norm, "act"):  # timm fuses norm, drop and activation into one layer
        new = GroupNormAct(channels, groups, eps=norm.eps, affine=norm.affine)
        new.drop, new.act = norm.get_submodule("drop"), norm.get_submodule("act")
    else:
        new = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        new.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return new


class Float32Training(nn.Module):
    """A convolution that trains in float32 under CPU autocast, and infers in autocast's precision."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


class Float32Conv2d(Float32Training, nn.Conv2d):
    """``nn.Conv2d`` as ``Float32Training``."""


class Float32Conv2dSame(Float32Training, Conv2dSame):
    """timm's ``Conv2dSame`` as ``Float32Training``."""


def train_depthwise_in_float32(module: nn.Module) -> None:
    """Let every depthwise convolution below ``module`` train in float32 under CPU autocast; weights and names stay.

    Their bfloat16 gradients have no fast kernel on a CPU (5x5, and any with stride 2: 4 to 25 times float32's time).
    A step of a Siamese U-Net on EfficientNet-Lite0 took 1.7 times as long without this, and longer than in float32.
    """
    swaps = {nn.Conv2d: Float32Conv2d, Conv2dSame: Float32Conv2dSame}
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and type(conv) in swaps and conv.groups == conv.in_channels > 1:
            conv.__class__ = swaps[type(conv)]


def head(channels: int, classes: int, kernel: int, upsampling: int, align_corners: bool = False) -> nn.Sequential:
    """Build the last convolution and the bilinear upsampling of its logits, by default with pixel centres kept."""
    layers = nn.Sequential(nn.Conv2d(channels, classes, kernel, padding=kernel // 2))
    if upsampling > 1:
        layers.append(nn.Upsample(scale_factor=upsampling, mode="bilinear", align_corners=align_corners))
    smp.base.initialization.initialize_head(layers)
    return layers
