"""A norm on each feature map of an encoder whose own stages end without one.

A Swin normalises in front of each block, so what its stages pass on is a sum of residuals that grows from block to
block, and heads would see each level at another scale. Its authors' segmentation code, mmsegmentation (``norm0`` to
``norm3``) and transformers' ``SwinBackbone`` all put a LayerNorm over the channels between each stage and the heads;
timm's feature extractor gives the bare sums. The next stage goes on with these, here as there.
"""

from typing import Any

from segmentation_models_pytorch.encoders.timm_universal import TimmUniversalEncoder
from timm.layers import LayerNorm2d
from torch import Tensor, nn

EPSILON = 1e-5
"""Of the norms there, torch's own value."""


class NormedEncoder(TimmUniversalEncoder):
    """smp's ``tu-`` encoder with ``norms``, one for each of its last feature maps."""

    norms: nn.ModuleList

    def forward(self, x: Tensor) -> list[Tensor]:
        features = super().forward(x)
        first = len(features) - len(self.norms)
        return features[:first] + [norm(level) for norm, level in zip(self.norms, features[first:], strict=True)]


def needs_norms(encoder: str) -> bool:
    """Tell whether an encoder's feature maps are bare sums of residuals: those of a Swin (v1, v2, S3) are."""
    return encoder.startswith("tu-swin")


def norm_features(encoder: Any) -> None:
    """Put a LayerNorm over the channels on each feature map of smp's encoder of a Swin, in place.

    (B, C, h, w) keeps its shape; weights begin as 1 and 0 and are called ``norms.<k>``, all others keep their names.
    """
    channels = [c for c in encoder.out_channels[1:] if c]  # the map at 1/2 of a Swin has none
    encoder.norms = nn.ModuleList(LayerNorm2d(c, eps=EPSILON) for c in channels)
    encoder.__class__ = NormedEncoder
