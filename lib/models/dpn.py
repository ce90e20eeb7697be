"""The end of timm's DPN encoders: the batch norm and ReLU that follow the last block.

timm's list of feature maps ends with the last block, whose 2,688 channels are the raw sums and concatenations of all
before. The paper (Chen et al. 2017), its ImageNet weights and the networks of xView2's second place 2020 pass them
through a batch norm and a ReLU first. (timm's own classifier has an ELU there.)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

NAME = "conv5_bn_ac"
EPSILON = 1e-3
"""Of all batch norms of a DPN."""


class BnRelu(nn.Module):
    """Batch norm and ReLU of a feature map, (B, C, h, w), or of its parts, which are concatenated first."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPSILON)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        return self.bn(x if isinstance(x, Tensor) else torch.cat(x, dim=1)).relu()


def is_dpn(encoder: str) -> bool:
    """Tell whether an encoder's name is that of a DPN of timm's."""
    return encoder.startswith("tu-dpn")


def norm_the_end(encoder: Any, state: Mapping[str, Tensor] | None) -> None:
    """Let smp's ``tu-dpn...`` encoder end with its batch norm and ReLU, in place.

    state: the pretrained file's tensors, of which those of the norm are taken; ``weights.install`` says what is absent.
    An encoder of less depth, which does not reach the last block, is left as it is.
    """
    model = encoder.model
    last, info = f"features_{NAME}", model.feature_info.info[-1]
    flat = info["module"].replace(".", "_")
    if not flat.startswith("features_conv5_") or flat not in model.return_layers:
        return
    model[last] = BnRelu(info["num_chs"])
    model.return_layers[last] = model.return_layers.pop(flat)
    info["module"] = f"features.{NAME}"
    prefix = f"features.{NAME}.bn."
    found = {name.removeprefix(prefix): tensor for name, tensor in (state or {}).items() if name.startswith(prefix)}
    if found:
        model[last].bn.load_state_dict(found, strict=False)
