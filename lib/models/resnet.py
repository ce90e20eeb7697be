"""ResNet-A, the original (He et al. 2015): the first 1x1 convolution of a bottleneck takes the stride.

timm has the variants of the bag of tricks (He et al. 2018, section 4): B ``resnet50`` (stride on the 3x3), C
``resnet50c`` (three 3x3 in the stem), D ``resnet50d`` (average pooling in the shortcut too). Importing this module
adds A to timm's names, so that it is an encoder everywhere. Weights have the names of B, so that B's files load.
Networks of basic blocks (18, 34) have no 1x1 convolution on that path: A and B are the same network.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

LAYERS = {"resnet50a": (3, 4, 6, 3), "resnet101a": (3, 4, 23, 3), "resnet152a": (3, 8, 36, 3)}
"""Blocks of each stage."""

default_cfgs = generate_default_cfgs({
    name: {"url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875,
           "interpolation": "bilinear", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
           "first_conv": "conv1", "classifier": "fc"}
    for name in LAYERS
})  # fmt: skip
"""What timm's registry asks of a module of models; there are no weights to download."""


class BottleneckA(Bottleneck):
    """timm's bottleneck with the stride on ``conv1`` and none on ``conv2``."""

    def __init__(self, *args: Any, aa_layer: type[nn.Module] | None = None, **options: Any):
        if aa_layer is not None:
            raise ValueError("a bottleneck of ResNet-A has no place for anti-aliasing")
        super().__init__(*args, **options)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    arguments: dict[str, Any] = {"block": BottleneckA, "layers": LAYERS[name]} | options
    return build_model_with_cfg(ResNet, name, pretrained, **arguments)


@register_model
def resnet50a(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build ResNet-50-A with timm's options of ``ResNet``."""
    return _create("resnet50a", pretrained, **options)


@register_model
def resnet101a(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build ResNet-101-A with timm's options of ``ResNet``."""
    return _create("resnet101a", pretrained, **options)


@register_model
def resnet152a(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build ResNet-152-A with timm's options of ``ResNet``."""
    return _create("resnet152a", pretrained, **options)
