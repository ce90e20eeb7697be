"""The U-Net (Ronneberger et al. 2015, padded and with batch norm) and the Attention U-Net (Oktay et al. 2018).

Both learn from nothing: they have no pretrained encoder, so ``encoder`` and ``encoder_weights`` are ``none``. With
base 64 and 3 channels in they have 31.04 M and 34.88 M weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.branches import build_branches
from lib.models.gates import Gate
from lib.models.heads import boundary_head
from lib.models.layers import Normalize, head, take, use_group_norm
from lib.models.recompute import recompute
from lib.models.segmentation import NORMS, NetworkParts, SegmentationNet
from lib.models.steps import level_heads

STEPS = 4
UPSAMPLINGS = ("transposed", "bilinear")


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> features at 1/1, 1/2, ..., 1/16; between two levels a 2x2 maximum."""

    def __init__(self, in_channels: int, channels: Sequence[int]):
        super().__init__()
        self.out_channels, self.output_stride = list(channels), 2 ** (len(channels) - 1)
        self.blocks = nn.ModuleList(_double(i, o) for i, o in zip([in_channels, *channels], channels))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return features


class Plain(nn.Module):
    """The gate of a U-Net without attention: every weight is one."""

    def __init__(self, query: int, skip: int):
        super().__init__()

    def forward(self, query: Tensor, skip: Tensor) -> Tensor:
        return skip


class Decoder(nn.Module):
    """Decode features [1/1, ..., 1/16] into (B, channels[0], H, W); a step: x2, gate the skip, concatenate, convolve.

    ``channels`` are the encoder's, and those of the steps too.
    """

    def __init__(self, channels: Sequence[int], gate: Callable[[int, int], nn.Module], upsampling: str):
        super().__init__()
        outputs = list(channels[-2::-1])
        up = _transposed if upsampling == "transposed" else _bilinear
        self.up = nn.ModuleList(up(i, o) for i, o in zip(channels[::-1], outputs))
        self.gates = nn.ModuleList(gate(o, o) for o in outputs)
        self.merge = nn.ModuleList(_double(2 * o, o) for o in outputs)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decode(features)[0]

    def decode(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the output and what all steps but the last give, the deepest first."""
        x, *skips = features[::-1]
        steps = []
        for up, gate, merge, skip in zip(self.up, self.gates, self.merge, skips):
            x = up(x)
            x = merge(torch.cat([gate(x, skip), x], dim=1))
            steps.append(x)
        return x, steps[:-1]


@dataclass(frozen=True, kw_only=True)
class UNetOptions:
    """What these networks have to choose. Raises ConfigError for what is unknown or impossible."""

    encoder: str
    """``none``, as the encoder's weights."""
    encoder_weights: str | Path | None = "none"
    base: int = 64
    """Channels at full size, doubled by each of the four steps down."""
    upsampling: str
    """``transposed`` (a 2x2 transposed convolution) or ``bilinear`` (then a 3x3 convolution, norm and ReLU)."""
    norm: str = "batch"
    """As in ``segmentation.Design``."""
    dropout: float = 0.0
    """Of whole channels before the last convolution."""
    boundary: bool = False
    """A second head, for training alone."""
    deep_supervision: bool = False
    """A head on every step of the decoder, for training alone (see ``steps``)."""
    auxiliary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Branches for further tasks, for training alone (see ``branches``); set by ``train.auxiliary``."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass (see ``recompute``)."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("encoder", self.encoder, ("none",)),
            ("encoder_weights", self.encoder_weights or "none", ("none",)),
            ("upsampling", self.upsampling, UPSAMPLINGS),
            ("norm", self.norm, NORMS),
        ):
            if value not in known:
                raise ConfigError(f"{name}: expected {' or '.join(known)} with this architecture, got {str(value)!r}")
        if not isinstance(self.base, int) or self.base < 2:
            raise ConfigError(f"base: expected a whole number from 2 up, got {self.base!r}")
        for name in ("boundary", "deep_supervision", "grad_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: expected true or false, got {getattr(self, name)!r}")


def build_unet(*, classes: int, images: int, **options: Any) -> SegmentationNet:
    """Build the U-Net; it sees all images at once, as 3 * images input channels. Upsampling is ``transposed``."""
    return _build(Plain, classes, images, {"upsampling": "transposed", **options})


def build_attention_unet(*, classes: int, images: int, **options: Any) -> SegmentationNet:
    """Build the Attention U-Net; it sees all images at once, as 3 * images input channels. Upsampling: ``bilinear``."""
    return _build(Gate, classes, images, {"upsampling": "bilinear", **options})


def _build(
    gate: Callable[[int, int], nn.Module], classes: int, images: int, options: Mapping[str, Any]
) -> SegmentationNet:
    asked, unknown = take(UNetOptions, options)
    if unknown:
        own = ", ".join(field.name for field in fields(UNetOptions) if not field.name.startswith("encoder"))
        raise ConfigError(f"model: unknown option {', '.join(sorted(unknown))}; it has {own}")
    channels = [asked.base * 2**step for step in range(STEPS + 1)]
    parts = NetworkParts(
        Encoder(3 * images, channels), Decoder(channels, gate, asked.upsampling), head(asked.base, classes, 1, 1)
    )
    for part in (parts.encoder, parts.decoder):
        initialize_decoder(part)
    if asked.boundary:
        parts.boundary = boundary_head(parts.head)
    if asked.deep_supervision:
        parts.levels = level_heads(channels[-2::-1], classes)
    if asked.norm != "batch":
        use_group_norm(parts.decoder)
    if asked.norm == "group_everywhere":
        use_group_norm(parts.encoder)
    if asked.grad_checkpointing:
        recompute(parts.encoder)
        recompute(parts.decoder)
    parts.branches = build_branches(parts.decoder, parts.head, asked.auxiliary)
    return SegmentationNet(parts, Normalize(asked.encoder, images), asked.dropout)


def _convolve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_convolve(inputs, outputs), _convolve(outputs, outputs))


def _transposed(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)


def _bilinear(inputs: int, outputs: int) -> nn.Sequential:
    upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(upsample, _convolve(inputs, outputs))
