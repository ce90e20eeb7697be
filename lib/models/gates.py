"""Attention gates (Oktay et al. 2018): what a decoder takes from a skip is weighted pixel by pixel."""

from collections.abc import Sequence

import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder, UnetDecoderBlock
from torch import Tensor, nn


class Gate(nn.Module):
    """Oktay's additive attention: query (B, Q, h, w), skip (B, S, h, w) -> the skip, weighted pixel by pixel.

    weights = sigmoid(psi(relu(query' + key'))), (B, 1, h, w): the decoder's map is the query, the encoder's skip key
    and value; ' and psi are 1x1 convolutions with norm. The query is upsampled before the gate, not the weights after.
    """

    def __init__(self, query: int, skip: int):
        super().__init__()
        inner = max(1, skip // 2)
        self.query = nn.Sequential(nn.Conv2d(query, inner, 1), nn.BatchNorm2d(inner))
        self.key = nn.Sequential(nn.Conv2d(skip, inner, 1), nn.BatchNorm2d(inner))
        self.psi = nn.Sequential(nn.ReLU(), nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, query: Tensor, skip: Tensor) -> Tensor:
        return skip * self.psi(self.query(query) + self.key(skip))


class GatedBlock(UnetDecoderBlock):
    """A step of smp's U-Net decoder with a ``gate`` on its skip: upsample, gate, concatenate, convolve."""

    gate: Gate

    def forward(
        self, feature_map: Tensor, target_height: int, target_width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        query = F.interpolate(feature_map, size=(target_height, target_width), mode=self.interpolation_mode)
        skip = self.gate(query, skip_connection)
        return super().forward(query, target_height, target_width, skip)  # its own upsampling has nothing left to do


def gate_skips(decoder: UnetDecoder, channels: Sequence[int]) -> None:
    """Put a gate on every skip of smp's U-Net decoder, in place; the names of its own weights stay.

    ``channels`` are those of the features it gets, at 1/1, 1/2, ...; a level without any (the 1/2 of a Swin) has no
    skip, and no gate.
    """
    for block, skip in zip(decoder.blocks, list(channels[1:-1])[::-1]):
        if skip:
            block.gate = Gate(block.conv1[0].in_channels - skip, skip)
            initialize_decoder(block.gate)
            block.__class__ = GatedBlock
