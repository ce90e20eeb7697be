"""At which size a network sees a scene: as it is, scaled, at a pixel size of the real world, or as a whole.

Only images and training targets are resized. Probabilities come back to the scene's own size before anything is
decided, so masks are never scaled where probabilities can be.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from lib.errors import DataError

FITS = ("longest", "square")


@dataclass(frozen=True)
class View:
    """One of: a factor ``scale``, a target ``pixel_size`` (in the scene's unit), or a whole image of ``size`` pixels.

    fit: ``longest`` makes the longer side ``size`` and keeps proportions; ``square`` makes both sides ``size``.
    """

    scale: float = 1.0
    pixel_size: float | None = None
    size: int | None = None
    fit: str = "longest"

    def shape(self, shape: tuple[int, int], pixel_size: float | None = None) -> tuple[int, int]:
        """Return the (height, width) in which a scene of ``shape`` is seen. DataError for an unknown pixel size."""
        height, width = shape
        if self.size is not None and self.fit == "square":
            return self.size, self.size
        factor = self.scale
        if self.size is not None:
            factor = self.size / max(height, width)
        elif self.pixel_size is not None:
            if not pixel_size:
                raise DataError("view.pixel_size: the scene's own pixel size is not known; use view.scale or view.size")
            factor = pixel_size / self.pixel_size
        return max(1, round(height * factor)), max(1, round(width * factor))

    def image(self, image: np.ndarray, pixel_size: float | None = None) -> np.ndarray:
        """Resize (H, W, 3) or frames (F, H, W, 3) uint8 to what the network sees."""
        wanted = self.shape(image.shape[-3:-1], pixel_size)
        if image.ndim == 4:
            return np.stack([resize(frame, wanted) for frame in image])
        return resize(image, wanted)

    def mask(self, mask: np.ndarray, pixel_size: float | None = None) -> np.ndarray:
        """Resize a training target (H, W) uint8 alike, by nearest pixels."""
        height, width = self.shape(mask.shape, pixel_size)
        if (height, width) == mask.shape:
            return mask
        return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def resize(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3), uint8 or float32, to ``shape``: area means where it shrinks, bilinear else."""
    height, width = shape
    if plane.shape[:2] == shape:
        return plane
    shrinks = height * width < plane.shape[0] * plane.shape[1]
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
