"""Deep supervision (Lee et al. 2015, arXiv 1409.5185): the steps of a U-Net's decoder have heads of their own.

Each step but the last says at its own size what it sees, and is trained to be right there, as in nnU-Net (Isensee et
al. 2021). It is for training alone: in evaluation the network is the one without.
"""

from collections.abc import Sequence
from typing import Any

from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn


def level_heads(channels: Sequence[int], classes: int) -> nn.ModuleList:
    """Build a 1x1 convolution for each step but the last; ``channels`` are those of all steps, the deepest first."""
    levels = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in channels[:-1])
    initialize_head(levels)
    return levels


def decode(decoder: Any, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a decoder's output and what all steps but the last give on the way to it, the deepest first.

    ``decoder`` is smp's of a U-Net or MAnet, or has a method ``decode`` that gives the same; features at 1/1, 1/2, ...
    """
    if not isinstance(decoder, UnetDecoder | MAnetDecoder):
        return decoder.decode(features)
    steps = [decoder.center(features[-1])]
    skips = [*features[-2:0:-1], None]  # nothing is concatenated at full size
    for block, finer, skip in zip(decoder.blocks, features[-2::-1], skips):
        size = finer.shape[-2:] if isinstance(decoder, UnetDecoder) else ()
        steps.append(block(steps[-1], *size, skip))
    return steps[-1], steps[1:-1]
