"""Predict one scene with one network: size, windows, views, precision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.config.sections import Predict
from lib.errors import ConfigError
from lib.inference.tiles import mirror, predict_tiled
from lib.inference.tta import VIEWS, averages
from lib.models.layers import Network
from lib.run import runtime
from lib.scenes.view import View, resize

NATIVE = View()
FRAMES = 16
"""Frames of a video that are predicted at once."""


class Predictor:
    """Hold a network ready to predict: image (C, H, W) uint8 -> probs (K, H, W) float32 in [0, 1] as a numpy array,
    or frames (F, C, H, W) -> (K, 1, F).

    network: forward(x (B, C, h, w) in 0..255) -> logits, ``stride`` = the multiple its input sides must be.
    activate: logits float32 -> probs, a task's ``activate``. settings: windows, sets of views, scales (whose
    probabilities, each brought back to the scene's own size, are averaged) and precision; ``precision`` is what is
    really used on the device, and under float32 no TF32 unless ``tf32`` allows it. With ``compile`` the network is
    compiled at the first scene, and ConfigError says why where that fails. view: the size at which the network was
    trained to see scenes. pad: pixels that a scene, at that size, is mirrored outward on each side before it is
    predicted, as the 2nd place of xView2 2020 did for its DPN; fewer where it is no larger.
    The network's weights keep their memory format, since it may be in training.
    """

    def __init__(self, network: Network, activate: Callable[[Tensor], Tensor], settings: Predict,
                 view: View = NATIVE, device: torch.device | str = "cpu", pad: int = 0):  # fmt: skip
        self.device = torch.device(device)
        self.precision = runtime.precision_on(self.device, settings.precision)
        self.network, self.activate, self.view = network.to(self.device), activate, view
        self.dtype, self.pad = getattr(torch, self.precision), pad
        self.sets, self.scales = settings.tta_sets, settings.scales
        self.tile, self.overlap = settings.tile, int(settings.tile * settings.overlap)
        self.tf32 = settings.tf32
        self.answer = compiled(self.network) if settings.compile else self.network

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, K, h, w) float32, one plain pass."""
        return self.activate(self.answer(x.contiguous(memory_format=torch.channels_last)).float())

    def views_of(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, S * K, h, w): the averages over each of the S sets of views."""
        ends = [len(VIEWS[name]) for name in self.sets]
        return torch.cat(averages(self.forward, x.to(self.device), VIEWS[self.sets[-1]], ends), 1)

    def __call__(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> np.ndarray:
        """Predict one scene with the largest set of views; arguments as of ``every_set``."""
        return self.every_set(image, pixel_size)[self.sets[-1]]

    @torch.inference_mode()
    def every_set(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> dict[str, np.ndarray]:
        """Predict one scene: set of views -> probs; each set's are those that it gives alone.

        The network is left in eval mode. pixel_size: the scene's, where the view needs it.
        """
        self.network.eval()
        image = np.asarray(image)
        native = image.shape[-2:]
        height, width = self.view.whole(native, pixel_size)
        predict = self._frames if image.ndim == 4 else self._image
        total: Any = None
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with runtime.tf32(self.tf32), autocast:
            for scale in self.scales:
                probs = predict(image, (max(1, round(height * scale)), max(1, round(width * scale))))
                total = probs if total is None else total + probs
        mean = total if len(self.scales) == 1 else total / len(self.scales)
        return dict(zip(self.sets, np.split(mean, len(self.sets))))

    def _image(self, image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Predict (C, H, W) seen at ``shape``: probs (K, H, W), at the image's own size again.

        Raises ConfigError for a view that crops: what lies outside would have no probabilities.
        """
        if self.view.crop is not None:
            raise ConfigError(f"view.crop: expected a network of one label per image, got one that answers every "
                              f"pixel, which a centre crop of {self.view.crop} leaves out; remove it")  # fmt: skip
        # contiguous: an image stacked from (H, W, 3) arrays has other strides, from which a batch of one comes out with
        # a layout that every convolution converts again (twice the time)
        high, wide = (min(self.pad, side - 1) for side in shape)
        padded = np.pad(_resized(image, shape), [(0, 0), (high, high), (wide, wide)], mode="reflect")
        seen = torch.from_numpy(padded).contiguous()
        probs = predict_tiled(self.views_of, seen, self.tile, self.overlap, self.network.stride)
        probs = probs[:, high : high + shape[0], wide : wide + shape[1]]
        return _resized(probs.numpy(), image.shape[-2:])

    def _frames(self, frames: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Predict (F, C, H, W), each frame seen whole at ``shape``: probs (K, 1, F)."""
        stride = self.network.stride
        rows, columns = self.view.centre(shape)
        height, width = (-(-(part.stop - part.start) // stride) * stride for part in (rows, columns))
        found = []
        for first in range(0, len(frames), FRAMES):
            some = [_resized(frame, shape)[:, rows, columns] for frame in frames[first : first + FRAMES]]
            x = torch.stack([mirror(torch.from_numpy(frame), height, width) for frame in some])  # (B, C, height, width)
            found.append(self.views_of(x)[:, :, 0, 0].float().cpu().numpy())  # (B, K)
        return np.concatenate(found).T[:, None]  # (K, 1, F)


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the network's forward as ``torch.compile`` makes it, at its first call, for windows of any size.

    Raises ConfigError, when it is called, where compiling fails.
    """
    forward = torch.compile(network)

    def answer(x: Tensor) -> Tensor:
        with runtime.compiling("predict.compile"):
            return forward(x)

    return answer


def _resized(planes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) plane by plane."""
    if planes.shape[-2:] == shape:
        return planes
    return np.stack([resize(np.ascontiguousarray(plane), shape) for plane in planes])
