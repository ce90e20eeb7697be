"""The U-Net (Ronneberger et al. 2015, padded and with batch norm) and the Attention U-Net (Oktay et al. 2018).

Both learn from nothing: they have no pretrained encoder, so ``encoder`` and ``encoder_weights`` are ``none``. With
base 64 and 3 channels in they have 31.04 M and 34.88 M weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.gates import Gate
from lib.models.heads import boundary_head
from lib.models.layers import Normalize, head, use_group_norm
from lib.models.segmentation import NORMS, Parts, SegmentationNet

STEPS = 4
UPSAMPLINGS = ("transposed", "bilinear")
OPTIONS = ("base", "upsampling", "norm", "dropout", "boundary")


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
        x, *skips = features[::-1]
        for up, gate, merge, skip in zip(self.up, self.gates, self.merge, skips):
            x = up(x)
            x = merge(torch.cat([gate(x, skip), x], dim=1))
        return x


def build_unet(*, upsampling: str = "transposed", **options: Any) -> SegmentationNet:
    """Build the U-Net; options as in ``build_attention_unet``."""
    return _build(Plain, upsampling=upsampling, **options)


def build_attention_unet(*, upsampling: str = "bilinear", **options: Any) -> SegmentationNet:
    """Build the Attention U-Net, which sees all images at once, as 3 * images input channels.

    base: channels at full size, doubled by each of the four steps down. upsampling: ``transposed`` (a 2x2 transposed
    convolution) or ``bilinear`` (then a 3x3 convolution, norm and ReLU). norm: as in ``segmentation.build_parts``.
    dropout: of whole channels before the last convolution. boundary: a second head, for training alone.
    Raises ConfigError for what is unknown or impossible.
    """
    return _build(Gate, upsampling=upsampling, **options)


def _build(
    gate: Callable[[int, int], nn.Module],
    *,
    classes: int,
    images: int,
    encoder: str,
    upsampling: str,
    encoder_weights: str | Path | None = "none",
    base: int = 64,
    norm: str = "batch",
    dropout: float = 0.0,
    boundary: bool = False,
    **unknown: Any,
) -> SegmentationNet:
    for name, value, known in (
        ("encoder", encoder, ("none",)),
        ("encoder_weights", encoder_weights or "none", ("none",)),
        ("upsampling", upsampling, UPSAMPLINGS),
        ("norm", norm, NORMS),
    ):
        if value not in known:
            raise ConfigError(f"{name}: expected {' or '.join(known)} with this architecture, got {str(value)!r}")
    if not isinstance(base, int) or base < 2:
        raise ConfigError(f"base: expected a whole number from 2 up, got {base!r}")
    if not isinstance(boundary, bool):
        raise ConfigError(f"boundary: expected true or false, got {boundary!r}")
    if unknown:
        raise ConfigError(f"model: unknown option {', '.join(sorted(unknown))}; it has {', '.join(OPTIONS)}")
    channels = [base * 2**step for step in range(STEPS + 1)]
    parts = Parts(Encoder(3 * images, channels), Decoder(channels, gate, upsampling), head(base, classes, 1, 1))
    for part in (parts.encoder, parts.decoder):
        initialize_decoder(part)
    if boundary:
        parts.boundary = boundary_head(parts.head)
    if norm != "batch":
        use_group_norm(parts.decoder)
    if norm == "group_everywhere":
        use_group_norm(parts.encoder)
    return SegmentationNet(parts, Normalize(encoder, images), dropout)


def _convolve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_convolve(inputs, outputs), _convolve(outputs, outputs))


def _transposed(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)


def _bilinear(inputs: int, outputs: int) -> nn.Sequential:
    upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(upsample, _convolve(inputs, outputs))
