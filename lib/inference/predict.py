"""Predict one scene with one network: size, windows, views, precision."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.inference.tiles import mirror, predict_tiled
from lib.inference.tta import VIEWS, averages, nested
from lib.scenes.view import View, resize

NATIVE = View()
FRAMES = 16
"""Frames of a video that are predicted at once."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Predictor:
    """Hold a network ready to predict: image (C, H, W) uint8 -> probs (K, H, W) float32 in [0, 1] as a numpy array,
    or frames (F, C, H, W) -> (K, 1, F).

    network: forward(x (B, C, h, w) in 0..255) -> logits, ``stride`` = the multiple its input sides must be.
    activate: logits float32 -> probs, a task's ``activate``. views: a row of ``VIEWS``, or several, from the smallest
    to the largest, for ``every_set``. tile, overlap: pixels.
    batch_views: all views in one forward. view: the size the network was trained at; scales: multiples of it whose
    probabilities, each brought back to the scene's own size, are averaged. channels_last: layout of the input; the
    network's own weights are not touched, since it may be in training.
    Raises ValueError for float16 on a CPU (it runs 98 times slower than bfloat16), ConfigError for unknown names.
    """

    def __init__(
        self,
        network: nn.Module,
        activate: Callable[[Tensor], Tensor],
        device: str | torch.device = "cpu",
        precision: str = "float32",
        views: str | Sequence[str] = "none",
        tile: int = 1024,
        overlap: int = 256,
        blend: str = "pyramid",
        channels_last: bool = True,
        batch_views: bool = False,
        view: View = NATIVE,
        scales: Sequence[float] = (1.0,),
    ):
        if precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.device = torch.device(device)
        if precision == "float16" and self.device.type == "cpu":
            raise ValueError("precision: expected float32 or bfloat16 on a CPU, got float16")
        self.network = network.to(self.device)
        self.activate = activate
        self.dtype = PRECISIONS[precision]
        self.sets = (views,) if isinstance(views, str) else tuple(views)
        self.views, self.batch_views = nested(self.sets), batch_views
        self.tile, self.overlap, self.blend = tile, overlap, blend
        self.view, self.scales = view, tuple(scales)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, K, h, w) float32, one plain pass."""
        return self.activate(self.network(x.contiguous(memory_format=self.layout)).float())

    def views_of(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, S * K, h, w): the averages over each of the S sets of views."""
        ends = [len(VIEWS[name]) for name in self.sets]
        return torch.cat(averages(self.forward, x.to(self.device), self.views, ends, self.batch_views), 1)

    def __call__(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> np.ndarray:
        """Predict one scene with the largest set of views; arguments as of ``every_set``."""
        return self.every_set(image, pixel_size)[self.sets[-1]]

    @torch.inference_mode()
    def every_set(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> dict[str, np.ndarray]:
        """Predict one scene: set of views -> probs, each as if it had been predicted with that set alone.

        The network is left in eval mode. pixel_size: the scene's, where the view needs it.
        """
        self.network.eval()
        image = np.asarray(image)
        native = image.shape[-2:]
        height, width = self.view.whole(native, pixel_size)
        predict = self._frames if image.ndim == 4 else self._image
        total = None
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
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
        seen = torch.from_numpy(_resized(image, shape)).contiguous()
        probs = predict_tiled(self.views_of, seen, self.tile, self.overlap, self.network.stride, self.blend)
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


def _resized(planes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W) plane by plane."""
    if planes.shape[-2:] == shape:
        return planes
    return np.stack([resize(np.ascontiguousarray(plane), shape) for plane in planes])
