"""The U-Net decoder of 2020, without norms.

It is that of xView2's second place, github.com/selimsef/xview2_solution (``models/unet.py``,
``models/siamese_unet.py``), in both its forms: plain, and with scSE blocks, which his SE-ResNeXt networks have. The
defaults are the plain form with the starting weights of segmentation-models-pytorch and pixel centres kept; the options
give his.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder
from torch import Tensor, nn

from lib.models.layers import head

STARTS = ("smp", "he_normal")


@dataclass(frozen=True)
class UNet2020Options:
    """The decoder's options in an experiment file. Raises ValueError for what is impossible."""

    decoder_channels: tuple[int, ...] = (256, 256, 128, 64)
    """Channels of each step from the deepest to the finest, one fewer than the encoder's depth."""
    scse: bool = False
    """An scSE block ends every step and doubles its channels, see ``ConcatScse``."""
    last_channels: int | None = None
    """Channels of a last step at full size: nearest x2, 3x3 convolution, ReLU. None: the logits are upsampled."""
    align_corners: bool = False
    """Upsample the logits so that the corners of both grids coincide, as in 2020; false: pixel centres stay."""
    start: str = "smp"
    """Starting weights of decoder and head: those of smp (He uniform; Xavier for the head), or ``he_normal`` with
    biases 0, as in 2020. A last step starts as torch has it, as his did."""

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start: expected one of {', '.join(STARTS)}, got {self.start!r}")
        for name in ("scse", "align_corners"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        if self.last_channels is not None and (not isinstance(self.last_channels, int) or self.last_channels < 1):
            raise ValueError(f"last_channels: expected a whole number from 1 up, got {self.last_channels!r}")
        if self.last_channels is not None and self.align_corners:
            raise ValueError("align_corners: no logits are upsampled with last_channels; leave it out")


class ConcatScse(nn.Module):
    """Weigh the channels, weigh the pixels, and give both: (B, C, H, W) -> (B, 2C, H, W).

    Concurrent squeeze and excitation of Roy et al. 2018 (arXiv 1808.08127) in its form "concatenation", with C / 2
    channels between the two layers that weigh the channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 2, 1)
        self.excite = nn.Conv2d(channels // 2, channels, 1)
        self.pixels = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()  # (B, C, 1, 1)
        return torch.cat([x * channels, x * self.pixels(x).sigmoid()], dim=1)


class UNet2020Decoder(nn.Module):
    """Decode encoder features [1/1, 1/2, ..., 1/32] into (B, ``out_channels``, H/2, W/2), or (H, W) with a last step.

    A step: nearest x2, 3x3 convolution, ReLU; concatenate the skip; 3x3 convolution, ReLU; scSE where it is asked for.
    The last step of the plain form in 2020 is bilinear x2 and a 1x1 convolution, which commute, so the head does them
    in the cheap order.
    """

    def __init__(self, encoder_channels: Sequence[int], decoder_channels: Sequence[int], scse: bool = False,
                 last_channels: int | None = None):  # fmt: skip
        super().__init__()
        skips = list(encoder_channels[1:-1])[::-1]
        ends = [2 * channels if scse else channels for channels in decoder_channels]
        inputs = [encoder_channels[-1], *ends[:-1]]
        if len(decoder_channels) != len(skips):
            raise ValueError(f"decoder_channels: expected {len(skips)} numbers, got {list(decoder_channels)}")
        self.up = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(inputs, decoder_channels))
        self.merge = nn.ModuleList(nn.Conv2d(o + s, o, 3, padding=1) for o, s in zip(decoder_channels, skips))
        self.scse = nn.ModuleList(ConcatScse(channels) for channels in decoder_channels) if scse else None
        initialize_decoder(self)
        self.last = nn.Conv2d(ends[-1], last_channels, 3, padding=1) if last_channels else None
        self.out_channels = last_channels or ends[-1]

    def forward(self, features: list[Tensor]) -> Tensor:
        x, *skips = features[:0:-1]
        for step, skip in enumerate(skips):
            x = F.relu(self.up[step](F.interpolate(x, scale_factor=2.0, mode="nearest")))
            x = F.relu(self.merge[step](torch.cat([x, skip], dim=1)))
            x = self.scse[step](x) if self.scse is not None else x
        if self.last is not None:
            x = F.relu(self.last(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return x


def build_decoder(channels: Sequence[int], classes: int, options: UNet2020Options) -> tuple[UNet2020Decoder, Any]:
    """Build the decoder for an encoder's ``channels`` at 1/1, 1/2, ... and the head that gives logits at full size."""
    decoder = UNet2020Decoder(channels, options.decoder_channels, options.scse, options.last_channels)
    upsampling = 1 if options.last_channels else 2
    top = head(decoder.out_channels, classes, kernel=1, upsampling=upsampling, align_corners=options.align_corners)
    if options.start == "he_normal":
        for name, module in nn.ModuleDict({"decoder": decoder, "head": top}).named_modules():
            if isinstance(module, nn.Conv2d) and name != "decoder.last":
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return decoder, top
