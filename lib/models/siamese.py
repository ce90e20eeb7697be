"""Siamese networks for a pair of images: one encoder sees each image, the decoder sees both.

The plan of the damage nets of xView2's second place 2020: at every skip level the decoder gets the features of both
images, at the bottleneck those of the post image alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lib.errors import ConfigError
from lib.models.layers import Normalize
from lib.models.segmentation import Parts, SegmentationNet, build_parts

FUSIONS = ("concat", "diff", "sum")
BOTTLENECKS = ("post", "both")
STATISTICS = ("joint", "separate")
DEEPEST_ONLY = ("deeplabv3", "pspnet")
"""Decoders that use only the deepest features; with a post-only bottleneck they would never see the other image."""


class SiameseNet(SegmentationNet):
    """Encode two images by one encoder and fuse their features level by level.

    forward: (B, 6, H, W) uint8 or float in 0..255, channels of the pre image before those of the post image, H and W
    multiples of ``stride`` -> logits (B, classes, H, W).
    """

    def __init__(
        self, parts: Parts, normalize: Normalize, dropout: float, fusion: str, bottleneck: str, statistics: str
    ):
        super().__init__(parts, normalize, dropout)
        self.fusion, self.bottleneck, self.statistics = fusion, bottleneck, statistics

    def encode(self, x: Tensor) -> list[Tensor]:
        pre, post = x[:, :3], x[:, 3:]  # 2 x (B, 3, H, W)
        if self.statistics == "joint":
            both = self.encoder(torch.cat([pre, post]))  # levels of (2B, C, h, w)
            before, after = zip(*(level.chunk(2) for level in both))
        else:
            before, after = self.encoder(pre), self.encoder(post)
        return fuse(before, after, self.fusion, self.bottleneck)


def build(
    *,
    classes: int,
    images: int,
    encoder: str,
    fusion: str = "concat",
    bottleneck: str = "post",
    statistics: str = "joint",
    dropout: float = 0.0,
    decoder: str = "unet",
    **options: Any,
) -> SiameseNet:
    """Build a Siamese network; further options as in ``segmentation.build_parts``.

    fusion: ``concat`` (2C channels), ``diff`` (post - pre, with its sign: whether something came or went), ``sum``.
    bottleneck: the deepest features are the ``post`` image's alone, or ``both`` images' fused like the other levels.
    statistics: of the encoder's batch norms in training. ``joint`` runs both images as one batch, so that training
    normalises by the same mixture of dates that the running averages describe at inference, from twice the pixels;
    ``separate`` runs the encoder twice, each date by its own statistics, as in 2020. In evaluation both are the same.
    """
    for name, value, known in (
        ("fusion", fusion, FUSIONS),
        ("bottleneck", bottleneck, BOTTLENECKS),
        ("statistics", statistics, STATISTICS),
    ):
        if value not in known:
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if images != 2:
        raise ConfigError(f"architecture siamese: expected 2 images, got {images}; use architecture segmentation")
    if decoder == "dpt" or (decoder in DEEPEST_ONLY and bottleneck == "post"):
        raise ConfigError(
            f"architecture siamese: decoder {decoder} cannot fuse skip levels; choose another decoder"
            + (", or bottleneck both" if decoder in DEEPEST_ONLY else "")
        )

    def fused(channels: list[int]) -> list[int]:
        return fused_channels(channels, fusion, bottleneck)

    parts = build_parts(classes=classes, in_channels=3, encoder=encoder, decoder=decoder, fuse=fused, **options)
    return SiameseNet(parts, Normalize(encoder, images), dropout, fusion, bottleneck, statistics)


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
