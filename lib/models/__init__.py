"""The networks, by the name of their architecture. Arrays in, arrays out: they know nothing of configs and folders."""

from collections.abc import Callable
from typing import Any

from lib.errors import ConfigError
from lib.models import attention_unet, classifier, hybrid, maskformer, segmentation, siamese
from lib.models.layers import Network

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    "segmentation": segmentation.build,
    "siamese": siamese.build,
    "unet": attention_unet.build_unet,
    "attention_unet": attention_unet.build_attention_unet,
    "hybrid": hybrid.build,
    "maskformer": maskformer.build,
    "classifier": classifier.build,
}
FIXED = {"hybrid": {"decoder", "encoder_depth"}, "maskformer": {"decoder", "encoder_depth", "boundary", "aux_head"}}
"""Fields of ``segmentation.Design`` that an architecture settles itself, beside its channels and their fusion."""


def build(architecture: str, *, classes: int, images: int, encoder: str, **options: Any) -> Network:
    """Build a network: forward(x (B, 3 * images, H, W) uint8 or float in 0..255) -> logits (B, classes, H, W).

    A ``classifier`` gives (B, classes, 1, 1). A network with further heads gives, in training mode only,
    ``layers.Outputs``.

    It has ``stride`` (what H and W must be multiples of), ``encoder`` (a module, for freezing) and ``source`` (where
    the encoder's pretrained weights came from, or None). Options are those that the architecture's own module declares.
    Raises ConfigError for what is unknown or impossible.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if inner := options.keys() & ({"in_channels", "fuse"} | FIXED.get(architecture, set())):
        raise ConfigError(f"architecture {architecture}: {', '.join(sorted(inner))} follows from it and cannot be set")
    return ARCHITECTURES[architecture](classes=classes, images=images, encoder=encoder, **options)
