"""Predict one scene with one network: windows, views, precision."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.inference.tiles import predict_tiled
from lib.inference.tta import VIEWS, average

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Predictor:
    """Hold a network ready to predict: image (C, H, W) uint8 -> probs (K, H, W) float32 in [0, 1] as a numpy array.

    network: forward(x (B, C, h, w) in 0..255) -> logits, ``stride`` = the multiple its input sides must be.
    activate: logits float32 -> probs, a task's ``activate``. views: a row of ``VIEWS``. tile, overlap: pixels.
    batch_views: all views in one forward. channels_last: layout of the input; the network's own weights are not
    touched, since it may be in training.
    Raises ValueError for float16 on a CPU (it runs 98 times slower than bfloat16), ConfigError for unknown names.
    """

    def __init__(self, network: nn.Module, activate: Callable[[Tensor], Tensor], device: str | torch.device = "cpu",
                 precision: str = "float32", views: str = "none", tile: int = 1024, overlap: int = 256,
                 blend: str = "pyramid", channels_last: bool = True, batch_views: bool = False):
        for key, value, known in (("precision", precision, PRECISIONS), ("views", views, VIEWS)):
            if value not in known:
                raise ConfigError(f"{key}: expected one of {', '.join(known)}, got {value!r}")
        self.device = torch.device(device)
        if precision == "float16" and self.device.type == "cpu":
            raise ValueError("precision: expected float32 or bfloat16 on a CPU, got float16")
        self.network = network.to(self.device)
        self.activate = activate
        self.dtype = PRECISIONS[precision]
        self.views, self.batch_views = VIEWS[views], batch_views
        self.tile, self.overlap, self.blend = tile, overlap, blend
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, K, h, w) float32, one plain pass."""
        return self.activate(self.network(x.contiguous(memory_format=self.layout)).float())

    @torch.inference_mode()
    def __call__(self, image: np.ndarray | Tensor) -> np.ndarray:
        """Predict one scene; the network is left in eval mode."""
        self.network.eval()

        def probs(x: Tensor) -> Tensor:
            return average(self.forward, x.to(self.device), self.views, self.batch_views)

        # contiguous: an image stacked from (H, W, 3) arrays has other strides, from which a batch of one comes out with
        # a layout that every convolution converts again (twice the time)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = predict_tiled(probs, torch.as_tensor(image).contiguous(), self.tile, self.overlap,
                                self.network.stride, self.blend)
        return out.numpy()
