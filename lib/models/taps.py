"""Where the skips of a timm EfficientNet are taken: smp takes the narrow ends of its stages, U-Nets on Keras'
EfficientNets the features a block has expanded (to six times the channels) in front of its strided convolution, and
the second place of xView2 2020 the ends of its stages but, at 1/2, the stem."""

from typing import Any

from timm.models import FeatureHooks
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn

SKIPS = ("smp", "expansion", "stem")


def tap_expansions(encoder: Any) -> None:
    """Let smp's ``tu-`` encoder give the stem at 1/2, expansions at 1/4, 1/8, 1/16 and its end at 1/32, in place.

    An expansion is the activation between a block's first 1x1 convolution and its strided one; EfficientNet-B3's
    192, 288 and 816 channels are Keras' block3a, block4a and block6a_expand_activation. Weights and their names stay.
    Each tap is the *input* of the layer after it, so that exchanging a norm cannot lose it. Raises ValueError for an
    encoder that has no such layers.
    """
    model: Any = getattr(encoder, "model", None)
    stages: list[Any] = list(model.blocks) if isinstance(model, EfficientNetFeatures) else []
    strided = [(i, stage[0]) for i, stage in enumerate(stages) if getattr(_depthwise(stage[0]), "stride", 1) == (2, 2)]
    if len(strided) != 4 or encoder.output_stride != 32:
        raise ValueError("skips expansion: expected a tu-efficientnet (not V2) that ends at 1/32; use skips smp")
    hooks = [{"module": "blocks.0", "hook_type": "forward_pre"}]
    hooks += [{"module": f"blocks.{i}.0.conv_dw", "hook_type": "forward_pre"} for i, _ in strided[1:]]
    hooks += [{"module": "blocks", "hook_type": "forward"}]
    model.feature_hooks = FeatureHooks(hooks, model.named_modules())
    expanded = [block.conv_dw.in_channels for _, block in strided[1:]]
    ends = encoder.out_channels
    encoder._out_channels = [ends[0], model.conv_stem.out_channels, *expanded, ends[-1]]


def tap_stem(encoder: Any) -> None:
    """Let smp's ``tu-`` encoder give the stem at 1/2 in place of the first stage, in place; the rest stays.

    In selimsef/xview2_solution EfficientNet-B2 gives 32 channels there instead of 16. Raises ValueError for an encoder
    that has no such layers.
    """
    model: Any = getattr(encoder, "model", None)
    if not isinstance(model, EfficientNetFeatures) or model.feature_info.info[0]["module"] != "blocks.0":
        raise ValueError("skips stem: expected a tu-efficientnet whose first stage ends at 1/2; use skips smp")
    others = [info["module"] for info in model.feature_info.info[1:]]
    hooks = [{"module": "blocks.0", "hook_type": "forward_pre"}]
    hooks += [{"module": name, "hook_type": "forward"} for name in others]
    model.feature_hooks = FeatureHooks(hooks, model.named_modules())
    ends = encoder.out_channels
    encoder._out_channels = [ends[0], model.conv_stem.out_channels, *ends[2:]]


def _depthwise(block: Any) -> nn.Module | None:
    """Return the depthwise convolution of a block that expands its channels first."""
    return block.conv_dw if hasattr(block, "conv_pwl") and hasattr(block, "conv_dw") else None
