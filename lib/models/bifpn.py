"""EfficientDet's BiFPN (Tan et al. 2020, arXiv 1911.09070, section 3): pyramid levels exchange what they know, in both
directions, several times over, and learn how much each input of a node counts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-4
"""Keeps the fusion finite when no weight is positive (the paper's value)."""


class NormalisedFusion(nn.Module):
    """The fast normalised fusion (eq. 3): sum of w_i x_i / (eps + sum of w_i), with learned w_i = relu(v_i).

    Inputs are maps of one shape (B, C, h, w), as many as ``inputs``; so is the result.
    """

    def __init__(self, inputs: int):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))

    def shares(self) -> Tensor:
        """Return what part each input has, (inputs,) float32 in 0..1."""
        weights = F.relu(self.weights.float())
        return weights / (EPSILON + weights.sum())

    def forward(self, *maps: Tensor) -> Tensor:
        shares = self.shares().to(maps[0].dtype)
        fused = [share * level for share, level in zip(shares.unbind(), maps, strict=True)]
        return sum(fused[1:], fused[0])


class Node(nn.Module):
    """Fuse maps (B, width, h, w), then a depthwise separable 3x3 convolution, norm and SiLU, as in the paper's text."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.fusion = NormalisedFusion(inputs)
        self.convolution = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        return self.convolution(self.fusion(*maps))


class BiFPNLayer(nn.Module):
    """One layer: levels [(B, width, h, w), (B, width, 2h, 2w), ...], from the deepest to the finest -> the same shapes.

    Going down to finer levels, a middle level i has td_i = node(in_i, up(td_deeper)); going back up,
    out_i = node(in_i, td_i, down(out_finer)). The ends have one input less and one node: the finest is
    out = node(in, up(td_deeper)), the deepest out = node(in, down(out_finer)), and where a td of the deepest is asked
    for, it is the input itself. ``up`` takes the nearest pixel, ``down`` is a 3x3 maximum of stride 2, as in the
    authors' code.
    """

    def __init__(self, levels: int, width: int):
        super().__init__()
        self.finer = nn.ModuleList(Node(2, width) for _ in range(levels - 1))
        self.deeper = nn.ModuleList(Node(3 if i else 2, width) for i in range(levels - 1))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        between = [levels[0]]
        for node, level in zip(self.finer, levels[1:], strict=True):
            between.append(node(level, F.interpolate(between[-1], level.shape[-2:], mode="nearest")))
        outputs = between[-1:]
        for i in range(len(levels) - 2, -1, -1):
            down = F.max_pool2d(outputs[0], 3, stride=2, padding=1)
            inputs = (levels[i], between[i], down) if i else (levels[0], down)
            outputs.insert(0, self.deeper[i](*inputs))
        return outputs


class BiFPN(nn.Module):
    """``layers`` times ``BiFPNLayer``; then all levels, at the size of the finest, are fused once more, by weights.

    [(B, width, h, w), (B, width, 2h, 2w), ...] -> (B, width, H, W), H and W those of the last. EfficientDet has a head
    on each level, and for segmentation one on the finest alone, which would leave part of the last layer untrained.
    """

    def __init__(self, levels: int, width: int, layers: int):
        super().__init__()
        self.layers = nn.Sequential(*(BiFPNLayer(levels, width) for _ in range(layers)))
        self.fusion = NormalisedFusion(levels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        levels = self.layers(levels)
        size = levels[-1].shape[-2:]
        return self.fusion(*(F.interpolate(level, size, mode="bilinear", align_corners=False) for level in levels))
