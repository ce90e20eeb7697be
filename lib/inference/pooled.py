"""Describe objects by what a network computes under them: pooled features, and its probabilities.

A few labelled buildings are too few to train a network and enough to train a logistic head on such features (Microsoft
HASTE, arXiv 2607.11838, does so with the embeddings of a foundation model).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from lib.errors import ConfigError
from lib.inference.tiles import mirrored
from lib.models.layers import Network
from lib.models.segmentation import SegmentationNet
from lib.run import runtime

LEVELS = (3, 4)
"""Which of the encoder's features are pooled: those at 1/8 and 1/16 of the image's size. Finer ones know edges and
colours, the coarsest one knows the scene."""


@dataclass(frozen=True)
class Described:
    """N objects as a network sees them."""

    features: np.ndarray
    """(N, F) float32: means of the encoder's features and then of the decoder's last ones."""
    probs: np.ndarray
    """(N, K) float32: mean probability of each channel of the task."""
    encoder: int
    """How many of the features are the encoder's."""


class Pooled:
    """Pools the features of one network under the objects of an image.

    network: of an encoder and a decoder (``SegmentationNet``); others are refused by ConfigError. activate: logits ->
    probabilities, the task's. precision: of the forward pass, as ``predict.precision``.
    """

    def __init__(self, network: Network, activate: Callable[[Tensor], Tensor], device: torch.device, precision: str):
        if not isinstance(network, SegmentationNet):
            raise ConfigError(f"features under objects: expected a network of an encoder and a decoder, got "
                              f"{type(network).__name__}; name another model")  # fmt: skip
        self.network, self.activate, self.device = network.to(device).eval(), activate, device
        self.dtype = getattr(torch, runtime.precision_on(device, precision))

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, labels: np.ndarray, count: int) -> Described:
        """Describe the objects 1..``count`` of ``labels`` (H, W) int in an image (C, H, W) uint8.

        Of an object without a pixel everything is 0.
        """
        x = mirrored(torch.from_numpy(np.require(image, requirements=["C", "W"])), self.network.stride)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            levels = self.network.features(x[None].to(self.device))
            decoded = self.network.decoder(*levels) if isinstance(levels, tuple) else self.network.decoder(levels)
            probs = self.activate(self.network.head(decoded).float())
        spatial = [level for level in (levels[0] if isinstance(levels, tuple) else levels) if level.ndim == 4]
        taken = [spatial[number] for number in LEVELS if number < len(spatial)] or [spatial[-1]]
        size = x.shape[-2:]
        coarse = [pool(level[0], labels, size, count) for level in taken]
        fine = pool(decoded[0], labels, size, count)
        return Described(np.concatenate([*coarse, fine], axis=1), pool(probs[0], labels, size, count),
                         sum(level.shape[1] for level in coarse))  # fmt: skip


def pool(features: Tensor, labels: np.ndarray, size: tuple[int, int] | torch.Size, count: int) -> np.ndarray:
    """Return the mean of features (C, h, w) over each object 1..``count`` of ``labels`` (H, W): (count, C) float32.

    Each pixel of an object takes the feature in whose cell it lies, so no object is too small. size: height and width
    of the image that the features are of, of which ``labels`` is the upper left part.
    """
    high, wide = features.shape[-2:]
    rows, columns = np.nonzero(labels)
    cells = (rows * high // size[0]) * wide + columns * wide // size[1]
    owners = labels[rows, columns].astype(np.int64) - 1
    hits = sparse.coo_matrix((np.ones(len(cells), np.float32), (owners, cells)), (count, high * wide)).tocsr()
    sums = hits @ features.float().cpu().numpy().reshape(features.shape[0], -1).T
    return (sums / np.maximum(np.asarray(hits.sum(1)), 1)).astype(np.float32)
