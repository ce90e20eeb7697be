"""ASPP, U-Net and FPN in one decoder, on any encoder.

The deepest features see far (atrous spatial pyramid pooling, Chen et al. 2017, arXiv 1706.05587), a U-Net brings them
back to full size, and a feature pyramid lets the head see every level of the way, not only the last. It is the first
baseline of lesson notes on HuBMAP + HPA 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.heads import boundary_head
from lib.models.layers import head, take, use_group_norm
from lib.models.segmentation import Design, SegmentationNet, build_parts

MERGES = ("add", "concat", "weighted")
EPSILON = 1e-4
"""Keeps the weighted merge finite when no weight is positive (EfficientDet's value)."""


class Pyramid(nn.Module):
    """Bring levels (B, C_i, h_i, w_i) to ``width`` channels and the size of the last, and merge them.

    add: their sum. concat: side by side, width * levels channels. weighted: sum w_i x_i / (eps + sum w_i) with learned
    w_i = relu(v_i), the fast normalised fusion of EfficientDet's BiFPN (Tan et al. 2020, arXiv 1911.09070, eq. 4).
    """

    def __init__(self, channels: Sequence[int], width: int, merge: str):
        super().__init__()
        self.merge = merge
        self.lateral = nn.ModuleList(_convolve(c, width) for c in channels)
        self.out_channels = width * (len(channels) if merge == "concat" else 1)
        if merge == "weighted":
            self.weights = nn.Parameter(torch.ones(len(channels)))

    def shares(self) -> Tensor:
        """Return what part each level has in the weighted merge, (levels,) float32 in 0..1."""
        weights = F.relu(self.weights.float())
        return weights / (EPSILON + weights.sum())

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        size = levels[-1].shape[-2:]
        maps = [
            F.interpolate(lateral(level), size, mode="bilinear", align_corners=False)  # (B, width, h, w)
            for lateral, level in zip(self.lateral, levels)
        ]
        if self.merge == "concat":
            return torch.cat(maps, dim=1)  # (B, width * levels, h, w)
        if self.merge == "weighted":
            maps = [share * level for share, level in zip(self.shares().unbind(), maps)]
        return sum(maps[1:], maps[0])


class HybridDecoder(nn.Module):
    """Decode encoder features [1/1, 1/2, ..., 1/32] into (B, out_channels, h, w) at the size of the last step."""

    def __init__(self, aspp: ASPP, unet: UnetDecoder, pyramid: Pyramid):
        super().__init__()
        self.aspp, self.unet, self.pyramid = aspp, unet, pyramid

    def forward(self, features: list[Tensor]) -> Tensor:
        levels = [self.aspp(features[-1])]
        skips = [*features[-2:0:-1], None]  # nothing is concatenated at full size
        for block, finer, skip in zip(self.unet.blocks, features[-2::-1], skips):
            levels.append(block(levels[-1], *finer.shape[-2:], skip_connection=skip))
        return self.pyramid(levels)


@dataclass(frozen=True)
class HybridOptions:
    """What a hybrid has of its own. Raises ConfigError for what is unknown or impossible."""

    aspp_channels: int = 256
    """What the ASPP makes of the deepest features."""
    atrous_rates: Sequence[int] = (3, 6, 9)
    """DeepLabV3's 6, 12, 18 at 1/16 are 3, 6, 9 at 1/32."""
    aspp_dropout: float = 0.5
    fpn_channels: int = 32
    """Of each level in the pyramid; the ASPP is its first, each step of the U-Net a further one."""
    merge: str = "concat"
    """See ``Pyramid``."""

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise ConfigError(f"merge: expected one of {', '.join(MERGES)}, got {self.merge!r}")
        if len(self.atrous_rates) != 3 or not all(isinstance(rate, int) and rate > 0 for rate in self.atrous_rates):
            raise ConfigError(f"atrous_rates: expected three positive whole numbers, got {list(self.atrous_rates)}")
        for name, value in (("aspp_channels", self.aspp_channels), ("fpn_channels", self.fpn_channels)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number from 1 up, got {value!r}")


def build(*, classes: int, images: int, dropout: float = 0.0, **options: Any) -> SegmentationNet:
    """Build the hybrid; it sees all ``images`` at once, as 3 * images input channels.

    dropout: of whole channels before the head. Options as in ``HybridOptions`` and, for decoder unet, in
    ``segmentation.Design``: its norm ``group`` lets a batch of one image train, ``batch`` cannot (the ASPP pools to one
    pixel).
    """
    own, others = take(HybridOptions, options)
    design = Design.of(**others, decoder="unet")
    parts = build_parts(classes, 3 * images, design, lambda channels: [*channels[:-1], own.aspp_channels])
    deepest, rates = parts.encoder.out_channels[-1], tuple(own.atrous_rates)
    aspp = ASPP(deepest, own.aspp_channels, rates, separable=False, dropout=own.aspp_dropout)
    levels = [own.aspp_channels, *(block.conv2[0].out_channels for block in parts.decoder.blocks)]
    pyramid = Pyramid(levels, own.fpn_channels, own.merge)
    for part in (aspp, pyramid):
        initialize_decoder(part)
        if design.norm != "batch":
            use_group_norm(part)
    parts.decoder = HybridDecoder(aspp, parts.decoder, pyramid)
    parts.head = head(pyramid.out_channels, classes, kernel=3, upsampling=design.upsample_logits)
    parts.boundary = boundary_head(parts.head) if design.boundary else None
    return SegmentationNet(parts, design.normalization(images), dropout)


def _convolve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
