"""Branches for further tasks: one encoder that learns several tasks, each with a head or a decoder of its own.

So UPerNet (Xiao et al. 2018, arXiv 1807.10221) parses scenes, objects, parts and materials with one network. Branches
are for training alone: in evaluation a network answers its own task.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn

from lib.errors import ConfigError

KINDS = ("head", "decoder")


class Branch(nn.Module):
    """A task's own head, on the decoder of all or on one of its own: logits (B, classes, H, W)."""

    def __init__(self, decoder: nn.Module | None, head: nn.Module):
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(self, features: list[Tensor], decoded: Tensor) -> Tensor:
        """``features`` are what the network's decoder got, ``decoded`` (B, C, h, w) is what it gave."""
        return self.head(decoded if self.decoder is None else self.decoder(features))


def build_branches(decoder: nn.Module, head: Any, asked: Mapping[str, Mapping[str, Any]]) -> nn.ModuleDict | None:
    """Build the branches of a network with this decoder and head; None where none are asked for.

    asked: task -> ``classes`` and ``branch``, one of ``KINDS``. A decoder of its own starts as a copy of the network's.
    Raises ConfigError for anything else.
    """
    branches = {}
    if not isinstance(asked, Mapping):
        raise ConfigError(f"auxiliary: expected tasks, each with its classes and branch, got {asked!r}")
    for task, options in asked.items():
        if (
            not isinstance(options, Mapping)
            or options.keys() != {"classes", "branch"}
            or options["branch"] not in KINDS
        ):
            raise ConfigError(f"auxiliary: expected classes and a branch of {' or '.join(KINDS)}, got {options!r}")
        convolution, *rest = head
        layer = nn.Conv2d(
            convolution.in_channels, options["classes"], convolution.kernel_size, padding=convolution.padding
        )
        layers = nn.Sequential(layer, *deepcopy(rest))
        initialize_head(layers)
        branches[task] = Branch(deepcopy(decoder) if options["branch"] == "decoder" else None, layers)
    return nn.ModuleDict(branches) if branches else None
