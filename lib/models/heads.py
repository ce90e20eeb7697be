"""Heads beside the semantic one, which only training uses: object boundaries, and an auxiliary FCN on the encoder."""

from copy import deepcopy
from typing import Any

from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from torch import nn

from lib.errors import ConfigError

AUX_LEVEL = 4
"""The auxiliary head reads the features at 1/16 (mmseg's ``in_index`` 2 of a Swin or ResNet); where a decoder asks
for a dilated encoder (deeplabv3) they are finer."""


def boundary_head(semantic: Any) -> nn.Sequential:
    """Build a head that gives (B, 1, H, W) boundary logits: a 3x3 convolution, then the semantic head's upsampling."""
    convolution, *rest = semantic
    layers = nn.Sequential(nn.Conv2d(convolution.in_channels, 1, 3, padding=1), *deepcopy(rest))
    initialize_head(layers)
    return layers


def aux_head(channels: list[int], classes: int) -> nn.Sequential:
    """Build the auxiliary head of mmseg's UPerNet, an ``FCNHead``, for an encoder's ``channels`` at 1/1, 1/2, ...

    3x3 convolution to 256 channels, norm, ReLU, dropout of 10 % of the channels, 1x1 convolution: (B, C, H/16, W/16)
    -> logits (B, classes, H/16, W/16). Raises ConfigError where the encoder ends before 1/16.
    """
    if len(channels) <= AUX_LEVEL:
        raise ConfigError(
            f"aux_head: expected an encoder that goes down to 1/16, got one of depth {len(channels) - 1}; "
            "set encoder_depth to 4 or 5, or choose another decoder"
        )
    body = nn.Sequential(nn.Conv2d(channels[AUX_LEVEL], 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
    initialize_decoder(body)
    last = nn.Conv2d(256, classes, 1)
    nn.init.normal_(last.weight, std=0.01)  # mmseg's; near zero, so that it starts without an opinion
    nn.init.zeros_(last.get_parameter("bias"))
    return nn.Sequential(*body, nn.Dropout2d(0.1), last)
