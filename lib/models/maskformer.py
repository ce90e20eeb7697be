"""MaskFormer with masked attention (Mask2Former, Cheng et al. 2022, arXiv 2112.01527), for semantic masks.

A feature pyramid makes three levels of features, 1/32, 1/16 and 1/8, and embeddings of the pixels at 1/4. Learned
queries look at the levels in turn (``masked_attention``); each proposes one mask and says what it is of, or that it is
of nothing. In training the network gives the proposals of every layer, which the loss terms query_class, query_bce and
query_dice match to the classes of the target (``lib/training/queries.py``). In evaluation ``semantic_logits`` makes one
probability per class and pixel of the last layer's.

Differences from the paper: a plain feature pyramid (that of MaskFormer, Cheng et al. 2021, arXiv 2107.06278) takes the
place of deformable attention in the pixel decoder, and each class of a crop is one segment, since targets are semantic.
Classes are exclusive, or there is one class and the background. It wants a smaller learning rate than a U-Net (the
paper's: 1e-4, a tenth of it for the encoder) and clipped gradients (the paper's: 0.01).
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.layers import Normalize, Outputs, Queries, take, use_group_norm
from lib.models.masked_attention import QueryDecoder, Transformer
from lib.models.recompute import recompute
from lib.models.segmentation import Design, NetworkParts, SegmentationNet, build_parts

TINY = 1e-30
"""Added to scores before their logarithm: finite where no query speaks, no matter anywhere else."""
QUERIES_AT_ONCE = 16
"""Masks that are brought to full size together; all hundred of a large image would take a gigabyte."""


class PixelDecoder(nn.Module):
    """A feature pyramid (Lin et al. 2017) as in MaskFormer, with group norms.

    channels: of the features at 1/4, 1/8, 1/16, 1/32. From the deepest level on, a level is a 3x3 convolution of the
    sum of its own features, after a 1x1 convolution, and the enlarged level below.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        *finer, deepest = channels
        self.lateral = nn.ModuleList(_convolve(c, width, 1) for c in reversed(finer))
        self.smooth = nn.ModuleList(
            nn.Sequential(_convolve(c, width, 3), nn.ReLU()) for c in (deepest, *[width] * len(finer))
        )
        self.pixels = nn.Conv2d(width, width, 3, padding=1)
        use_group_norm(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return levels [1/32, 1/16, 1/8] and embeddings of the pixels (1/4), all of ``width`` channels."""
        *finer, deepest = features
        levels = [self.smooth[0](deepest)]
        for level, lateral, smooth in zip(reversed(finer), self.lateral, self.smooth[1:]):
            enlarged = F.interpolate(levels[-1], level.shape[-2:], mode="nearest")
            levels.append(smooth(lateral(level) + enlarged))
        return levels[:-1], self.pixels(levels[-1])


class MaskDecoder(nn.Module):
    """Decode encoder features [1/1, ..., 1/32] into what the queries propose, layer by layer."""

    def __init__(self, pixels: PixelDecoder, queries: QueryDecoder):
        super().__init__()
        self.pixels, self.queries = pixels, queries

    def forward(self, features: Sequence[Tensor]) -> list[Queries]:
        return self.queries(*self.pixels(features[2:]))


class MaskFormer(SegmentationNet):
    """Encoder, pixel decoder and queries.

    forward: as ``SegmentationNet``; in training ``Outputs`` with ``queries``. Its ``logits``, which only pixel terms of
    a loss read, then come from masks at 1/4 and are enlarged, a sixteenth of the work.
    """

    def __init__(self, parts: NetworkParts, normalize: Normalize, classes: int):
        super().__init__(parts, normalize)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor | Outputs:
        found = self.decoder(self.features(x))
        size = x.shape[-2:]
        if not self.training:
            return semantic_logits(found[-1], size, self.classes)
        coarse = semantic_logits(found[-1], found[-1].masks.shape[-2:], self.classes)
        logits = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
        return {"logits": logits, "queries": found}


def semantic_logits(found: Queries, size: Sequence[int], classes: int) -> Tensor:
    """Turn proposals into logits (B, classes, H, W) of ``size``, float32: the paper's semantic inference.

    The score of class k is s_k = sum over queries q of softmax(class logits)_qk * sigmoid(mask logits)_q, the mask
    logits enlarged before their sigmoid. Logits are log s_k, so their softmax is s_k / sum s and the class of the
    largest logit is that of the largest score. With one class there is a second one inside, the background, and the
    logit is log s_1 - log s_0, so its sigmoid is s_1 / (s_0 + s_1).
    """
    with torch.autocast(found.masks.device.type, enabled=False):
        shares = found.classes.float().softmax(-1)[..., :-1]  # (B, Q, K)
        scores = []
        for share, masks in zip(shares.split(QUERIES_AT_ONCE, dim=1), found.masks.split(QUERIES_AT_ONCE, dim=1)):
            masks = F.interpolate(masks.float(), tuple(size), mode="bilinear", align_corners=False).sigmoid()
            scores.append(torch.einsum("bqk,bqhw->bkhw", share, masks))
        logits = torch.log(sum(scores[1:], scores[0]) + TINY)
        return logits if classes > 1 else logits[:, 1:] - logits[:, :1]


def build(*, classes: int, images: int, **options: Any) -> MaskFormer:
    """Build a MaskFormer; it sees all ``images`` at once, as 3 * images input channels.

    Options as in ``Transformer`` and, for the encoder, in ``segmentation.Design``. Raises ConfigError for others, and
    for fewer queries than classes.
    """
    sizes, others = take(Transformer, options)
    own, inside = {field.name for field in fields(Transformer)}, max(2, classes)
    of_decoder = {"decoder_options", "attention_gates", "upsample_logits", "deep_supervision", "auxiliary"}
    known = (own | {field.name for field in fields(Design)}) - of_decoder - {"decoder", "boundary", "aux_head"}
    if unknown := others.keys() - known:
        raise ConfigError(
            f"model: unknown option {', '.join(sorted(unknown))} for maskformer; it has {', '.join(sorted(known))} (a "
            "checkpoint with other options is of the earlier network of this name: train it again)"
        )
    if sizes.queries < inside:
        raise ConfigError(f"queries: expected one for each of {inside} classes at least, got {sizes.queries}")
    design = Design.of(**others, decoder="fpn")
    parts = build_parts(classes, 3 * images, design)
    pixels = PixelDecoder(parts.encoder.out_channels[2:], sizes.channels)
    parts.decoder, parts.head = MaskDecoder(pixels, QueryDecoder(inside, sizes)), nn.Identity()
    if design.grad_checkpointing:
        recompute(parts.decoder)
    return MaskFormer(parts, design.normalization(images), classes)


def _convolve(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
