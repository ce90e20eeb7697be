"""The networks, by the name of their architecture. Arrays in, arrays out: they know nothing of configs and folders."""

from typing import Any

from torch import nn

from lib.errors import ConfigError
from lib.models import attention_unet, segmentation, siamese

ARCHITECTURES = {
    "segmentation": segmentation.build,
    "siamese": siamese.build,
    "unet": attention_unet.build_unet,
    "attention_unet": attention_unet.build_attention_unet,
}


def build(architecture: str, *, classes: int, images: int, encoder: str, **options: Any) -> nn.Module:
    """Build a network: forward(x (B, 3 * images, H, W) uint8 or float in 0..255) -> logits (B, classes, H, W).

    It has ``stride`` (what H and W must be multiples of), ``encoder`` (a module, for freezing) and ``source`` (where
    the encoder's pretrained weights came from, or None). The options are those of the architecture's own ``build``.
    Raises ConfigError for what is unknown or impossible.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if inner := options.keys() & {"in_channels", "fuse"}:
        raise ConfigError(f"architecture {architecture}: {', '.join(inner)} follows from it and cannot be set")
    return ARCHITECTURES[architecture](classes=classes, images=images, encoder=encoder, **options)
