"""A small MaskFormer (Cheng et al. 2021, arXiv 2107.06278): queries that each propose a mask and say what it is of.

Encoder -> FPN to 1/4, the pixel embeddings; learned queries look at the features at 1/32 through a transformer decoder
and become class probabilities and mask embeddings. It is the paper's *semantic inference* that makes one probability
per class and pixel of them, in training too: the network is trained by the pixel losses of the others, not by matching
masks to objects, so a query need not stand for one object, and the "no object" class only takes weight away. It is made
for exclusive classes or one. It starts more slowly than a U-Net and wants a smaller learning rate (the paper's: 1e-4).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.layers import take
from lib.models.segmentation import Design, SegmentationNet, build_parts

TINY = 1e-6
"""Added to probabilities before their logarithm."""


@dataclass(frozen=True)
class Transformer:
    """The transformer decoder of a MaskFormer. Raises ConfigError for numbers that do not go together."""

    queries: int = 100
    """How many masks are proposed."""
    channels: int = 256
    """Of queries and embeddings, a multiple of 4 and of ``heads``."""
    layers: int = 3
    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads", "channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number from 1 up, got {value!r}")
        if self.channels % math.lcm(4, self.heads):
            raise ConfigError(f"channels: expected a multiple of 4 and of heads ({self.heads}), got {self.channels}")


class MaskDecoder(nn.Module):
    """Decode encoder features [1/1, ..., 1/32] into logits (B, classes, H/4, W/4), float32.

    s_k = sum over queries q of softmax(class logits)_qk * sigmoid(mask logits)_q, and the logits are log s_k, so that
    their softmax is s_k / sum s. With one class there is a second one inside, the background, and the logit is
    log s_1 - log s_0, so that its sigmoid is the same share.
    """

    def __init__(self, pixels: Any, deepest_channels: int, classes: int, sizes: Transformer):
        """``pixels`` makes the embeddings of pixels out of features; ``deepest_channels`` are those of the last one."""
        super().__init__()
        channels, dropout = sizes.channels, sizes.dropout
        self.pixels, self.classes = pixels, classes
        self.pixel_embedding = nn.Conv2d(pixels.out_channels, channels, 3, padding=1)
        self.memory = nn.Conv2d(deepest_channels, channels, 1)
        self.queries = nn.Embedding(sizes.queries, channels)
        layer = nn.TransformerDecoderLayer(
            channels, sizes.heads, 4 * channels, dropout, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerDecoder(layer, sizes.layers, norm=nn.LayerNorm(channels))
        self.label = nn.Linear(channels, max(2, classes) + 1)  # the last is "no object"
        self.mask_embedding = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels),
        )  # fmt: skip

    def forward(self, features: list[Tensor]) -> Tensor:
        memory = self.memory(features[-1])  # (B, D, h, w)
        _, channels, height, width = memory.shape
        memory = memory + positions(channels, height, width, memory.device).to(memory.dtype)
        queries = self.queries.weight.expand(len(memory), -1, -1)  # (B, Q, D)
        queries = self.transformer(queries, memory.flatten(2).transpose(1, 2))
        pixels = self.pixel_embedding(self.pixels(features))  # (B, D, H/4, W/4)
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_embedding(queries), pixels)
        return combine(self.label(queries), masks, self.classes)  # (B, classes, H/4, W/4)


def combine(labels: Tensor, masks: Tensor, classes: int) -> Tensor:
    """Turn class logits (B, Q, K + 1) and mask logits (B, Q, h, w) into logits (B, classes, h, w), in float32.

    K is ``classes``, or 2 where that is 1; see ``MaskDecoder``.
    """
    with torch.autocast(masks.device.type, enabled=False):
        labels = labels.float().softmax(-1)[..., :-1]  # (B, Q, K)
        sums = torch.einsum("bqk,bqhw->bkhw", labels, masks.float().sigmoid())
        logits = torch.log(sums + TINY)
        return logits if classes > 1 else logits[:, 1:] - logits[:, :1]


def positions(channels: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the sine embedding of DETR (Carion et al. 2020), (channels, height, width) float32 in -1..1.

    The first half tells rows, the second columns, as sines and cosines of 2 pi times the place in the map (0..1).
    """
    steps = channels // 4
    frequencies = 10_000.0 ** (-torch.arange(steps, device=device, dtype=torch.float32) / steps)
    waves = []
    for size in (height, width):
        angle = (torch.arange(size, device=device) + 0.5) / size * 2 * math.pi * frequencies[:, None]  # (steps, size)
        waves.append(torch.cat([angle.sin(), angle.cos()]))
    rows, columns = waves
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])


def build(*, classes: int, images: int, **options: Any) -> SegmentationNet:
    """Build a small MaskFormer; it sees all ``images`` at once, as 3 * images input channels.

    Options as in ``Transformer`` and, for decoder fpn, in ``segmentation.Design``.
    """
    sizes, others = take(Transformer, options)
    design = Design.of(**others, decoder="fpn")
    parts = build_parts(classes, 3 * images, design)
    parts.decoder = MaskDecoder(parts.decoder, parts.encoder.out_channels[-1], classes, sizes)
    parts.head = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
    return SegmentationNet(parts, design.normalization(images))
