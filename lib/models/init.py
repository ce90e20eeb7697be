"""How a network starts from nothing: Xavier's weights, and residual blocks that begin as the identity.

Pretrained weights replace whatever is set here, so it is for networks without any (or before they are loaded).
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lib.errors import ConfigError

SCHEMES = ("default", "xavier")
BESIDE = ("downsample", "shortcut", "se", "se_module", "attn", "attn_last")
"""Parts of a residual block that do not end its residual path: the way around it, and attention after its last norm."""
SKIPS = ("has_skip", "_has_drop_connect")
"""Switches by which timm's and smp's inverted residual blocks say that they add their input."""


def start(network: nn.Module, scheme: str = "default", zero_gamma: bool | None = None) -> None:
    """Initialise a network without pretrained weights, in place.

    scheme: ``default`` leaves every layer as its library starts it; ``xavier`` see below. zero_gamma: true, the last
    norm of every residual block starts at 0; false, at 1; none, as the library has it (timm's ResNets start at 0,
    EfficientNets and smp's own encoders at 1). Raises ConfigError where there is nothing to set.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"init: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme == "xavier":
        xavier(network)
    if zero_gamma is not None and not set_last_gamma(network, 0.0 if zero_gamma else 1.0):
        raise ConfigError("zero_gamma: this network has no residual block with a batch or group norm; leave it out")


def xavier(network: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers from Xavier's uniform; biases 0; norms' gamma 1, beta 0.

    Glorot and Bengio 2010, as He et al. 2018 (section 2.1) start their baseline.
    """
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def set_last_gamma(network: nn.Module, value: float) -> int:
    """Set gamma of the last norm of every residual block, 0 making the block the identity; return how many there are.

    He et al. 2018, section 3.1. A norm before the last convolution (ResNet-v2) serves too: 0 goes in, 0 comes out.
    """
    norms = list(last_norms(network))
    for norm in norms:
        nn.init.constant_(norm.get_parameter("weight"), value)
    return len(norms)


def last_norms(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the norm that ends the residual path of each residual block, in the order of the network."""
    for block in network.modules():
        if _is_residual(block):
            norms = list(_norms(block))
            if norms:
                yield norms[-1]


def _is_residual(module: nn.Module) -> bool:
    """Tell a residual block by the attributes of timm, smp and torchvision; a stage has them only on its blocks.

    ResNet, ResNeXt, SENet, RegNet, Res2Net have ``downsample`` (maybe None) beside ``conv1``; EfficientNet and
    MobileNet a switch; timm's BYOB nets a ``shortcut`` that is a module where there is one.
    """
    if any(getattr(module, name, False) is True for name in SKIPS):
        return True
    if hasattr(module, "downsample") and hasattr(module, "conv1"):
        return True
    return isinstance(getattr(module, "shortcut", None), nn.Module) and hasattr(module, "attn")


def _norms(block: nn.Module) -> Iterator[nn.Module]:
    for name, child in block.named_children():
        if name in BESIDE:
            continue
        if isinstance(child, _BatchNorm | nn.GroupNorm) and child.weight is not None:
            yield child
        yield from _norms(child)
