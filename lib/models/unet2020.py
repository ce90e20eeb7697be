"""A U-Net decoder without norms.

It is that of the second place of xView2 2020, github.com/selimsef/xview2_solution.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn


class UNet2020Decoder(nn.Module):
    """Decode encoder features [1/1, 1/2, ..., 1/32] into (B, decoder_channels[-1], H/2, W/2).

    A step: nearest x2, 3x3 convolution, ReLU; concatenate the skip; 3x3 convolution, ReLU. ``decoder_channels`` go
    from the deepest step to the finest, one fewer than the encoder's depth: the last step of 2020 is bilinear x2 and
    a 1x1 convolution, which commute, so the head does them in the cheap order.
    """

    def __init__(self, encoder_channels: Sequence[int], decoder_channels: Sequence[int]):
        super().__init__()
        skips = list(encoder_channels[1:-1])[::-1]
        inputs = [encoder_channels[-1], *decoder_channels[:-1]]
        if len(decoder_channels) != len(skips):
            raise ValueError(f"decoder_channels: expected {len(skips)} numbers, got {list(decoder_channels)}")
        self.up = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, decoder_channels))
        self.merge = nn.ModuleList(nn.Conv2d(o + s, o, 3, padding=1) for o, s in zip(decoder_channels, skips))
        initialize_decoder(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        x, *skips = features[:0:-1]
        for up, merge, skip in zip(self.up, self.merge, skips):
            x = F.relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")))
            x = F.relu(merge(torch.cat([x, skip], dim=1)))
        return x
