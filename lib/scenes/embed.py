"""Describe a picture by a vector, so that pictures of one place or one video lie close together.

A perceptual hash (``lib/scenes/pairs.py``) finds copies; a crop, a mirror image or the next second of a video has
another hash but nearly the same features in a network trained on ImageNet. Such features see place, light and clothes;
they are no face recognition, and one person in two places is not found.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.errors import ArtifactError, ConfigError
from lib.models import weights
from lib.scenes.pairs import is_flat

ENCODER = "tf_efficientnet_lite0"
"""The smallest of the bundled encoders: 4.7 M parameters, 30 ms per picture on one core."""

SIZE = 224
"""Side in pixels that every image is reduced to (160 takes 19 ms, but its unrelated images reach 0.84, not 0.80)."""

POWER = 3.0
"""Exponent of the generalised mean over positions: 1 is the mean, infinity the maximum."""


def load() -> "tuple[Embedder | None, str]":
    """Return the embedder and "", or None and a sentence that says why there is none; nothing is downloaded."""
    try:
        source = weights.bundled(f"tu-{ENCODER}")
    except (ConfigError, ArtifactError) as error:
        return None, f"images are compared by their hashes alone ({error})"
    net = timm.create_model(ENCODER, pretrained=False)
    net.load_state_dict(dict(source.state))
    return Embedder(_folded(net.eval()).to(memory_format=torch.channels_last)), ""


def _folded(net: nn.Module) -> nn.Module:
    """Fold each norm into the convolution before it: the same features to 1e-4 of their range, in 0.7 of the time."""
    for module in list(net.modules()):
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module.add_module(first, fuse_conv_bn_eval(conv, norm))
                module.add_module(second, getattr(norm, "act", nn.Identity()))
    return net


class Embedder:
    """Turn images, (H, W, 3) uint8 RGB of any sizes, into unit vectors: (n, 1280) float32; CPU, same in same out.

    An image without structure gets the zero vector, which resembles nothing. The vector is the last convolution's
    output under a generalised mean (GeM: Radenovic, Tolias, Chum 2018), which keeps small things in a large scene.
    """

    def __init__(self, net: Any):
        self.net = net.eval()

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        vectors = np.zeros((len(images), self.net.num_features), np.float32)
        for vector, image in zip(vectors, images, strict=True):  # a batch is no faster here, and rounds differently
            if not is_flat(image):
                vector[:] = self._one(image)
        return vectors

    @torch.inference_mode()
    def _one(self, image: np.ndarray) -> np.ndarray:
        small = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        x = torch.from_numpy(small).permute(2, 0, 1)[None].float()  # (1, 3, SIZE, SIZE), 0..255, channels last
        y = self.net.forward_features(x / 127.5 - 1.0)[0]  # (1280, SIZE / 32, SIZE / 32), 0..6
        pooled = y.clamp(min=1e-6).pow(POWER).mean((1, 2)).pow(1 / POWER)  # (1280,)
        return nn.functional.normalize(pooled, dim=0).numpy()
