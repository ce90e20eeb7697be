"""Image classifiers: any network of timm under a new last layer, one label for a whole image or frame."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

import lib.models.resnet  # noqa: F401 - gives timm the names resnet50a, resnet101a, resnet152a
from lib.errors import ConfigError
from lib.models import weights
from lib.models.layers import Network, Normalize, take, train_depthwise_in_float32
from lib.models.recompute import recompute
from lib.models.segmentation import timm_arguments


class Backbone(nn.Module):
    """timm's ``model`` without its last layer: (B, C, H, W) -> pooled features (B, F); names as in smp's encoders."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.out_features: int = getattr(model, "head_hidden_size", None) or model.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Classifier(Network):
    """Normalise, encode, pool, and give the logits of one label, as a mask of one pixel.

    forward: (B, 3 * images, H, W) uint8 or float in 0..255, H and W multiples of ``stride`` -> (B, classes, 1, 1).
    """

    def __init__(
        self,
        encoder: Backbone,
        normalize: Normalize,
        classes: int,
        drop_rate: float = 0.0,
        source: dict[str, str | int] | None = None,
    ):
        super().__init__()
        self.normalize = normalize
        self.encoder = encoder
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Linear(encoder.out_features, classes)
        nn.init.normal_(self.head.weight, std=0.01)  # near zero, so that it starts without an opinion
        nn.init.zeros_(self.head.bias)
        self.stride = _stride(encoder.model)
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"network input: expected sides in multiples of {self.stride}, got {tuple(x.shape)}")
        features = self.encoder(self.normalize(x))  # (B, F)
        return self.head(self.dropout(features))[..., None, None]  # (B, classes, 1, 1)


@dataclass(frozen=True)
class ClassifierOptions:
    """What a classifier has to choose beside its encoder."""

    encoder_weights: str | Path | None = "none"
    """See ``weights.find``."""
    encoder_options: Mapping[str, Any] | None = None
    """Further keywords of timm's model."""
    drop_rate: float = 0.0
    """Dropout before the last layer."""
    drop_path_rate: float = 0.0
    """Stochastic depth, for networks that have it."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass (see ``recompute``)."""


def build(*, classes: int, images: int, encoder: str, **options: Any) -> Classifier:
    """Build a classifier that sees all ``images`` at once, as 3 * images input channels.

    encoder: a timm name (or one of ``resnet.py``), with or without ``tu-`` or a pretraining tag. Options as in
    ``ClassifierOptions``. Raises ConfigError for names and options that do not exist.
    """
    asked, unknown = take(ClassifierOptions, options)
    if unknown:
        own = ", ".join(field.name for field in fields(ClassifierOptions) if field.name != "encoder_weights")
        raise ConfigError(f"model: unknown option {', '.join(sorted(unknown))} for a classifier; it has {own}")
    name = resolve(encoder)
    source = weights.find(f"tu-{name}", asked.encoder_weights)
    of_timm = dict(asked.encoder_options or {})
    if asked.drop_path_rate:
        of_timm["drop_path_rate"] = asked.drop_path_rate
    arguments = timm_arguments(f"tu-{name}", source, of_timm)
    pretrained = arguments.pop("weights") is not None
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, in_chans=3 * images, **arguments)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"model: no classifier can be built on encoder {encoder}: {error}") from error
    if asked.grad_checkpointing and not recompute(model):
        raise ConfigError(f"grad_checkpointing: encoder {encoder} is not made of blocks; choose another, or false")
    backbone = Backbone(model)
    recorded = weights.install(backbone, source, 3 * images) if source else None
    train_depthwise_in_float32(backbone)
    return Classifier(backbone, Normalize(f"tu-{name}", images), classes, asked.drop_rate, recorded)


def resolve(encoder: str) -> str:
    """Return timm's present name for an encoder, with or without ``tu-``; old names (``..._b4_ns``) become new ones.

    Raises ConfigError for a network or a pretraining tag that timm does not have, naming those that it has.
    """
    old = encoder.removeprefix("tu-")
    name = timm.models.get_deprecated_models().get(old, old) or old  # None: removed without a successor
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        raise ConfigError(
            f"encoder: expected a timm model, got {encoder!r}" + (f"; near it: {', '.join(near)}" if near else "")
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"encoder: {architecture} has the pretraining tags {', '.join(tags) or '(none)'}, got {encoder!r}"
        )
    return name


def _stride(model: nn.Module) -> int:
    """Transformers cut the image into patches, and Swin merges them three times; a CNN takes any size."""
    patches = getattr(model, "patch_embed", None)
    return math.lcm(32, *getattr(patches, "patch_size", ())) if patches is not None else 1
