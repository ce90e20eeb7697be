"""A network that is stored and read again, as stages 02 and 04 do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lib.models import checkpoint


def reloaded(net: nn.Module, arguments: Mapping[str, Any], folder: Path) -> nn.Module:
    """Return the network that a checkpoint of ``net``, of three classes, gives.

    Not in inference mode: tensors that are made there take other kernels.
    """
    checkpoint.describe(folder, arguments, ("image",), ("a", "b", "c"))
    checkpoint.save_weights(folder, net.state_dict())
    return checkpoint.load_network(folder)
