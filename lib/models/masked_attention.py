"""The transformer decoder of Mask2Former (Cheng et al. 2022, arXiv 2112.01527): queries that look where they found
something.

Each query has a vector from which a mask and a class are read at any time. A layer lets every query look at one level
of the pixel features, but only at the foreground of the mask it has at that moment (masked attention), then at the
other queries. Layers look in turn at the levels 1/32, 1/16, 1/8, 1/32 ... As in the paper the masked attention comes
before the self-attention, norms come after the sum, and nothing is dropped out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.layers import Queries


@dataclass(frozen=True)
class Transformer:
    """The transformer decoder of a MaskFormer. Raises ConfigError for numbers that do not go together."""

    queries: int = 100
    """How many masks are proposed."""
    channels: int = 256
    """Of queries, features and embeddings, a multiple of 4 and of ``heads``."""
    layers: int = 9
    """Three are one look at every level."""
    heads: int = 8
    feedforward: int = 2048
    """Channels inside each layer's feed-forward network."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}: expected a whole number from 1 up, got {value!r}")
        if self.channels % math.lcm(4, self.heads):
            raise ConfigError(f"channels: expected a multiple of 4 and of heads ({self.heads}), got {self.channels}")


class Attention(nn.Module):
    """Attention with several heads and a choice of keys for each query."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Return (B, Q, D) for queries (B, Q, D), keys and values (B, N, D), and ``allowed`` (B, Q, N) bool."""
        projected = (self.query(queries), self.key(keys), self.value(values))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)  # (B, heads, ., D / heads)
        mask = None if allowed is None else allowed[:, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Masked attention to the pixels, attention among the queries, a network of two layers on each."""

    def __init__(self, channels: int, heads: int, feedforward: int):
        super().__init__()
        self.to_pixels, self.to_queries = Attention(channels, heads), Attention(channels, heads)
        self.feedforward = nn.Sequential(nn.Linear(channels, feedforward), nn.ReLU(), nn.Linear(feedforward, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, queries: Tensor, places: Tensor, pixels: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        """Return the queries (B, Q, D) after this layer.

        places: what tells the queries apart, (Q, D). pixels: keys and values (B, N, D). allowed: (B, Q, N) bool.
        """
        to_pixels, to_queries, after = self.norms
        queries = to_pixels(queries + self.to_pixels(queries + places, *pixels, allowed))
        placed = queries + places
        queries = to_queries(queries + self.to_queries(placed, placed, queries))
        return after(queries + self.feedforward(queries))


class QueryDecoder(nn.Module):
    """Read masks and classes from learned queries, before the first layer and after each.

    classes: K, without "no object". levels: how many levels of features the layers take turns with.
    """

    def __init__(self, classes: int, sizes: Transformer, levels: int = 3):
        super().__init__()
        channels = sizes.channels
        self.query_embed = nn.Embedding(sizes.queries, channels)
        self.query_pos_embed = nn.Embedding(sizes.queries, channels)
        self.level_embed = nn.Embedding(levels, channels)
        self.layers = nn.ModuleList(DecoderLayer(channels, sizes.heads, sizes.feedforward) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(channels)
        self.label = nn.Linear(channels, classes + 1)  # the last is "no object"
        self.mask = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels),
        )  # fmt: skip

    def forward(self, levels: Sequence[Tensor], pixels: Tensor) -> list[Queries]:
        """Return what the queries propose, layers + 1 times; ``levels`` and ``pixels`` are (B, D, h, w) each."""
        memory = [self._memory(level, embed) for level, embed in zip(levels, self.level_embed.weight)]
        queries = self.query_embed.weight.expand(len(pixels), -1, -1)  # (B, Q, D)
        found = [self.propose(queries, pixels)]
        for i, layer in enumerate(self.layers):
            level = i % len(levels)
            allowed = foreground(found[-1].masks, levels[level].shape[-2:])
            queries = layer(queries, self.query_pos_embed.weight, memory[level], allowed)
            found.append(self.propose(queries, pixels))
        return found

    def propose(self, queries: Tensor, pixels: Tensor) -> Queries:
        """Read classes and masks from queries (B, Q, D) and the embeddings of pixels (B, D, h, w)."""
        queries = self.norm(queries)
        return Queries(self.label(queries), torch.einsum("bqd,bdhw->bqhw", self.mask(queries), pixels))

    def _memory(self, level: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, h * w, D) of a level: its features with its embedding; keys know their place."""
        channels, height, width = level.shape[1:]
        place = positions(channels, height, width, level.device).to(level.dtype)
        values = level.flatten(2).transpose(1, 2) + embed
        return values + place.flatten(1).t(), values


@torch.no_grad()
def foreground(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Tell where each query may look: the pixels of its mask, or all where its mask is empty: (B, Q, h * w) bool.

    masks: logits (B, Q, ., .), resized to ``size`` (h, w); a probability of one half is foreground.
    """
    inside = F.interpolate(masks.float(), tuple(size), mode="bilinear", align_corners=False).flatten(2) >= 0
    return inside | ~inside.any(-1, keepdim=True)


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
