"""Siamese networks for a pair of images: one encoder sees each image, the decoder sees both.

The plan of the damage nets of xView2's second place 2020: at every skip level the decoder gets the features of both
images, at the bottleneck those of the post image alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.errors import ConfigError
from lib.models.branches import build_branches
from lib.models.layers import Normalize, take
from lib.models.segmentation import Design, NetworkParts, SegmentationNet, build_parts

FUSIONS = ("concat", "diff", "sum")
BOTTLENECKS = ("post", "both")
STATISTICS = ("joint", "separate")
DEEPEST_ONLY = ("deeplabv3", "pspnet")
"""Decoders that use only the deepest features; with a post-only bottleneck they would never see the other image."""


@dataclass(frozen=True)
class Fusion:
    """How the features of two images become one. Raises ConfigError for unknown words."""

    fusion: str = "concat"
    """``concat`` (2C channels), ``diff`` (post - pre, with its sign: whether something came or went), ``sum``."""
    bottleneck: str = "post"
    """The deepest features are the ``post`` image's alone, or ``both`` images' fused like the other levels."""
    statistics: str = "joint"
    """Of the encoder's batch norms in training. ``joint`` runs both images as one batch, so that training normalises by
    the same mixture of dates that the running averages describe at inference, from twice the pixels; ``separate`` runs
    the encoder twice, each date by its own statistics, as in 2020. In evaluation both are the same."""

    def __post_init__(self) -> None:
        known = {"fusion": FUSIONS, "bottleneck": BOTTLENECKS, "statistics": STATISTICS}
        for name, words in known.items():
            if getattr(self, name) not in words:
                raise ConfigError(f"{name}: expected one of {', '.join(words)}, got {getattr(self, name)!r}")


class SiameseNet(SegmentationNet):
    """Encode two images by one encoder and fuse their features level by level.

    forward: (B, 6, H, W) uint8 or float in 0..255, channels of the pre image before those of the post image, H and W
    multiples of ``stride`` -> logits (B, classes, H, W).
    """

    def __init__(self, parts: NetworkParts, normalize: Normalize, dropout: float, fusion: Fusion):
        super().__init__(parts, normalize, dropout)
        self.fusion = fusion

    def encode(self, x: Tensor) -> list[Tensor]:
        pre, post = x[:, :3], x[:, 3:]  # 2 x (B, 3, H, W)
        if self.fusion.statistics == "joint":
            both = self.encoder(torch.cat([pre, post]))  # levels of (2B, C, h, w)
            before, after = zip(*(_halves(level, pre.shape[0]) for level in both))
        else:
            before, after = self.encoder(pre), self.encoder(post)
        return fuse(before, after, self.fusion.fusion, self.fusion.bottleneck)


def _halves(level: Tensor, count: int) -> tuple[Tensor, ...]:
    """Divide (2B, C, h, w) into two of ``count`` = B, as slices, which an export for any B can follow; while gradients
    are wanted, as chunks, whose gradients are joined and not added."""
    return level.chunk(2) if torch.is_grad_enabled() else (level[:count], level[count:])


def build(*, classes: int, images: int, dropout: float = 0.0, **options: Any) -> SiameseNet:
    """Build a Siamese network; options as in ``Fusion`` and ``segmentation.Design``."""
    fusion, others = take(Fusion, options)
    design = Design.of(**others)
    if images != 2:
        raise ConfigError(f"architecture siamese: expected 2 images, got {images}; use architecture segmentation")
    if design.decoder == "dpt" or (design.decoder in DEEPEST_ONLY and fusion.bottleneck == "post"):
        raise ConfigError(
            f"architecture siamese: decoder {design.decoder} cannot fuse skip levels; choose another decoder"
            + (", or bottleneck both" if design.decoder in DEEPEST_ONLY else "")
        )

    def fused(channels: list[int]) -> list[int]:
        return fused_channels(channels, fusion.fusion, fusion.bottleneck)

    parts = build_parts(classes, 3, design, fused)
    parts.branches = build_branches(parts.decoder, parts.head, design.auxiliary)
    return SiameseNet(parts, design.normalization(images), dropout, fusion)


def fuse(pre: Sequence[Tensor], post: Sequence[Tensor], fusion: str, bottleneck: str) -> list[Tensor]:
    """Fuse the features of two images, each level (B, C, h, w), to what the decoder gets at that level."""
    levels = []
    for before, after in zip(pre, post, strict=True):
        if fusion == "concat":
            levels.append(torch.cat([before, after], dim=1))
        else:
            levels.append(after - before if fusion == "diff" else after + before)
    if bottleneck == "post":
        levels[-1] = post[-1]
    return levels


def fused_channels(channels: Sequence[int], fusion: str, bottleneck: str) -> list[int]:
    """Return how many channels ``fuse`` gives at each level for an encoder's channel counts."""
    fused = [2 * c if fusion == "concat" else c for c in channels]
    if bottleneck == "post":
        fused[-1] = channels[-1]
    return fused
