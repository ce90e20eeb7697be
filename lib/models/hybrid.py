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
from lib.models.bifpn import BiFPN
from lib.models.branches import build_branches
from lib.models.heads import boundary_head
from lib.models.layers import head, take, train_depthwise_in_float32, use_group_norm
from lib.models.recompute import recompute
from lib.models.segmentation import Design, SegmentationNet, build_parts

MERGES = ("add", "concat", "bifpn")


class Pyramid(nn.Module):
    """Bring levels (B, C_i, h_i, w_i), each twice as large as the one before, to ``width`` channels, and merge them.

    The result has the size of the last. add: their sum there. concat: side by side, width * levels channels. bifpn:
    see ``lib/models/bifpn.py``; it has so many ``layers``.
    """

    def __init__(self, channels: Sequence[int], width: int, merge: str, layers: int = 3):
        super().__init__()
        self.merge = merge
        self.lateral = nn.ModuleList(_convolve(c, width) for c in channels)
        self.out_channels = width * (len(channels) if merge == "concat" else 1)
        if merge == "bifpn":
            self.bifpn = BiFPN(len(channels), width, layers)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        maps = [lateral(level) for lateral, level in zip(self.lateral, levels)]
        if self.merge == "bifpn":
            return self.bifpn(maps)
        size = levels[-1].shape[-2:]
        maps = [F.interpolate(level, size, mode="bilinear", align_corners=False) for level in maps]
        if self.merge == "concat":
            return torch.cat(maps, dim=1)  # (B, width * levels, h, w)
        return sum(maps[1:], maps[0])


class HybridDecoder(nn.Module):
    """Decode encoder features [1/1, 1/2, ..., 1/32] into (B, out_channels, h, w) at the size of the last step."""

    def __init__(self, aspp: ASPP, unet: UnetDecoder, pyramid: Pyramid):
        super().__init__()
        self.aspp, self.unet, self.pyramid = aspp, unet, pyramid

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decode(features)[0]

    def decode(self, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the output and what the steps of the U-Net but the last give, the deepest first."""
        levels = [self.aspp(features[-1])]
        skips = [*features[-2:0:-1], None]  # nothing is concatenated at full size
        for block, finer, skip in zip(self.unet.blocks, features[-2::-1], skips):
            levels.append(block(levels[-1], *finer.shape[-2:], skip_connection=skip))
        return self.pyramid(levels), levels[1:-1]


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
    bifpn_layers: int = 3
    """Of merge bifpn; EfficientDet-D0 has 3, D7 has 8."""

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise ConfigError(f"merge: expected one of {', '.join(MERGES)}, got {self.merge!r}")
        if len(self.atrous_rates) != 3 or not all(isinstance(rate, int) and rate > 0 for rate in self.atrous_rates):
            raise ConfigError(f"atrous_rates: expected three positive whole numbers, got {list(self.atrous_rates)}")
        for name in ("aspp_channels", "fpn_channels", "bifpn_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number from 1 up, got {value!r}")
        if self.merge != "bifpn" and self.bifpn_layers != HybridOptions.bifpn_layers:
            raise ConfigError(f"bifpn_layers: belongs to merge bifpn, got merge {self.merge}; leave it out")


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
    pyramid = Pyramid(levels, own.fpn_channels, own.merge, own.bifpn_layers)
    train_depthwise_in_float32(pyramid)
    for part in (aspp, pyramid):
        initialize_decoder(part)
        if design.norm != "batch":
            use_group_norm(part)
    if design.grad_checkpointing:
        recompute(pyramid)
    parts.decoder = HybridDecoder(aspp, parts.decoder, pyramid)
    parts.head = head(pyramid.out_channels, classes, kernel=3, upsampling=design.upsample_logits)
    parts.boundary = boundary_head(parts.head) if design.boundary else None
    parts.branches = build_branches(parts.decoder, parts.head, design.auxiliary)
    return SegmentationNet(parts, design.normalization(images), dropout)


def _convolve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
