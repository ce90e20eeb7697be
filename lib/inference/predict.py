"""Predict one scene with one network: size, windows, views, precision."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.config.sections import Predict
from lib.errors import ConfigError
from lib.inference.tiles import mirrored, predict_tiled
from lib.inference.tta import VIEWS, averages
from lib.models.layers import Network
from lib.run import runtime
from lib.scenes.view import View, resize

NATIVE = View()
FRAMES = 16
"""Frames of a video that are predicted at once."""


@dataclass(frozen=True)
class Prepared:
    """A scene as the network sees it, at each scale."""

    native: tuple[int, int]
    """The scene's own (height, width)."""
    frames: bool
    """Whether it has frames, each of which gets a label."""
    images: list[Tensor]
    """(C, h, w) uint8, sides multiples of the network's stride; of frames (F, C, h, w)."""
    inner: list[tuple[slice, slice]]
    """Rows and columns of each image that are the scene's; the others are its mirror image."""


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
        self.answer = compiled(self.network, self.device) if settings.compile else self.network

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, K, h, w) float32, one plain pass."""
        return self.activate(self.answer(x.contiguous(memory_format=torch.channels_last)).float())

    def views_of(self, x: Tensor) -> Tensor:
        """Turn x (B, C, h, w) into probs (B, S * K, h, w): the averages over each of the S sets of views."""
        ends = [len(VIEWS[name]) for name in self.sets]
        x = x.to(self.device).contiguous(memory_format=torch.channels_last)  # once: a flip keeps the layout
        return torch.cat(averages(self.forward, x, VIEWS[self.sets[-1]], ends), 1)

    def __call__(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> np.ndarray:
        """Predict one scene with the largest set of views; arguments as of ``every_set``."""
        return self.every_set(image, pixel_size)[self.sets[-1]]

    def every_set(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> dict[str, np.ndarray]:
        """Predict one scene: set of views -> probs; each set's are those that it gives alone.

        The network is left in eval mode. pixel_size: the scene's, where the view needs it.
        """
        seen = self.prepare(image, pixel_size)
        return self.finish(seen, self.answers(seen))

    def prepare(self, image: np.ndarray | Tensor, pixel_size: float | None = None) -> Prepared:
        """Resize and pad a scene for the network, without it; arguments as of ``every_set``. Any thread may do it.

        Raises ConfigError for a view that crops an image: what lies outside would have no probabilities.
        """
        image = np.asarray(image)
        if image.ndim == 3 and self.view.crop is not None:
            raise ConfigError(f"view.crop: expected a network of one label per image, got one that answers every "
                              f"pixel, which a centre crop of {self.view.crop} leaves out; remove it")  # fmt: skip
        native, stride = (image.shape[-2], image.shape[-1]), self.network.stride
        height, width = self.view.whole(native, pixel_size)
        images, inner = [], []
        for scale in self.scales:
            shape = (max(1, round(height * scale)), max(1, round(width * scale)))
            if image.ndim == 4:
                rows, columns = self.view.centre(shape)
                cut = np.stack([resized(frame, shape)[:, rows, columns] for frame in image])
                high = wide = 0
            else:
                cut, (high, wide) = resized(image, shape), (min(self.pad, side - 1) for side in shape)
                if high or wide:
                    cut = np.pad(cut, [(0, 0), (high, high), (wide, wide)], mode="reflect")
            # C: an image stacked from (H, W, 3) arrays has other strides, from which a batch of one comes out with a
            # layout that every convolution converts again (twice the time). W: torch takes none that it may not write
            images.append(mirrored(torch.from_numpy(np.require(cut, requirements=["C", "W"])), stride))
            inner.append((slice(high, high + shape[0]), slice(wide, wide + shape[1])))
        return Prepared(native, image.ndim == 4, images, inner)

    @torch.inference_mode()
    def answers(self, seen: Prepared) -> list[Tensor]:
        """Return what the network says of a scene at each scale, on the CPU: probs (S * K, h, w) float32 for the S sets
        of views, or (S * K, 1, F) of frames. The network is left in eval mode."""
        with self._computing():
            if seen.frames:
                return [self._labels(frames) for frames in seen.images]
            return [predict_tiled(self.views_of, image, self.tile, self.overlap, self.network.stride)
                    for image in seen.images]  # fmt: skip

    @torch.inference_mode()
    def window(self, image: np.ndarray) -> Tensor:
        """Return what the network says of a window (C, h, w) uint8, sides multiples of its stride: probs (S * K, h, w)
        float32 on the network's device, as of one of the windows in ``answers``. The network is left in eval mode."""
        with self._computing():
            return self.views_of(torch.from_numpy(np.require(image, requirements=["C", "W"]))[None])[0].float()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        self.network.eval()
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with runtime.tf32(self.tf32), autocast:
            yield

    def finish(self, seen: Prepared, answers: Sequence[Tensor]) -> dict[str, np.ndarray]:
        """Bring answers back to the scene's own size and average the scales: set of views -> probs (K, H, W), or
        (K, 1, F) of frames. Any thread may do it."""
        total: Any = None
        for (rows, columns), answer in zip(seen.inner, answers, strict=True):
            probs = answer.numpy() if seen.frames else resized(answer.numpy()[:, rows, columns], seen.native)
            total = probs if total is None else total + probs
        mean = total if len(answers) == 1 else total / len(answers)
        return dict(zip(self.sets, np.split(mean, len(self.sets))))

    def _labels(self, frames: Tensor) -> Tensor:
        """Predict (F, C, h, w), each frame seen whole: probs (S * K, 1, F)."""
        found = [self.views_of(some)[:, :, 0, 0].float().cpu() for some in frames.split(FRAMES)]  # (B, S * K)
        return torch.cat(found).T[:, None]


def compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the network's forward as ``torch.compile`` makes it, at its first call, for windows of any size.

    On a CPU weights are taken for constants: norms are folded into convolutions, and weights are converted and laid out
    once. So the network must not change afterwards, and is called without gradients. Raises ConfigError, when it is
    called, where compiling fails.
    """
    forward = torch.compile(network)

    def answer(x: Tensor) -> Tensor:
        from torch._inductor import config

        with runtime.compiling("predict.compile"), config.patch(freezing=device.type == "cpu"):
            return forward(x)

    return answer


def resized(planes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (C, H, W), uint8 or float32, plane by plane."""
    if planes.shape[-2:] == shape:
        return planes
    return np.stack([resize(np.ascontiguousarray(plane), shape) for plane in planes])
