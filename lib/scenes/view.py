"""At which size a network sees a scene: as it is, scaled, at a pixel size of the real world, or as a whole.

Only images and training targets are resized. Probabilities come back to the scene's own size before anything is
decided, so masks are never scaled where probabilities can be. A centre crop has no way back: it is for labels only.
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from lib.errors import DataError
from lib.settings import Section


class View(Section):
    """At which size a network sees a scene, in training and in prediction; at most one of scale, pixel_size, size."""

    scale: float = Field(1.0, gt=0)
    """Factor on the scene's sides."""
    pixel_size: float | None = Field(None, gt=0)
    """Resample so that a pixel has this physical size, in the competition's unit."""
    size: int | None = Field(None, ge=32)
    """The whole image at this many pixels."""
    fit: Literal["longest", "short", "square"] = "longest"
    """With ``size``: the longer side gets it and proportions stay, the shorter side, or both sides."""
    crop: int | None = Field(None, ge=32)
    """With ``fit: short``, labels only: the square of so many pixels in the middle (224 of 256 is how ImageNet networks
    are judged)."""

    @model_validator(mode="after")
    def _fits_together(self):
        if (self.scale != 1.0) + (self.pixel_size is not None) + (self.size is not None) > 1:
            raise ValueError("give one of scale, pixel_size and size")
        if self.crop is not None and (self.fit != "short" or self.size is None or self.crop > self.size):
            raise ValueError(f"crop: expected fit short and a size of at least the crop {self.crop}, got {self.fit} "
                             f"and {self.size}")  # fmt: skip
        return self

    def for_training(self) -> "View":
        """Return how training sees scenes: as they are in place of a centre crop, training draws crops of its own."""
        return self if self.crop is None else self.model_copy(update={"size": None, "crop": None})

    def shape(self, shape: tuple[int, int], pixel_size: float | None = None) -> tuple[int, int]:
        """Return the (height, width) in which a scene of ``shape`` is seen. DataError for an unknown pixel size."""
        rows, columns = self.centre(self.whole(shape, pixel_size))
        return rows.stop - rows.start, columns.stop - columns.start

    def centre(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns that are seen of a scene resized to ``shape``, which may be a multiple of the
        view's size: all, or the centre crop."""
        height, width = shape
        if self.crop is not None and self.size is not None:  # a crop is stated in pixels of a size
            height = width = max(1, round(min(shape) * self.crop / self.size))
        top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
        return slice(top, top + height), slice(left, left + width)

    def whole(self, shape: tuple[int, int], pixel_size: float | None = None) -> tuple[int, int]:
        """Return the (height, width) to which a scene of ``shape`` is resized. DataError for an unknown pixel size."""
        height, width = shape
        if self.size is not None and self.fit == "square":
            return self.size, self.size
        factor = self.scale
        if self.size is not None:
            factor = self.size / (min(shape) if self.fit == "short" else max(shape))
        elif self.pixel_size is not None:
            if not pixel_size:
                raise DataError("view.pixel_size: the scene's own pixel size is not known; use view.scale or view.size")
            factor = pixel_size / self.pixel_size
        return max(1, round(height * factor)), max(1, round(width * factor))

    def image(self, image: np.ndarray, pixel_size: float | None = None) -> np.ndarray:
        """Resize (H, W, 3) or frames (F, H, W, 3) uint8 to what the network sees."""
        wanted = self.whole(image.shape[-3:-1], pixel_size)
        rows, columns = self.centre(wanted)
        if image.ndim == 4:
            return np.stack([resize(frame, wanted)[rows, columns] for frame in image])
        return resize(image, wanted)[rows, columns]

    def mask(self, mask: np.ndarray, pixel_size: float | None = None) -> np.ndarray:
        """Resize a training target (H, W) uint8 alike, by nearest pixels."""
        height, width = self.whole(mask.shape, pixel_size)
        rows, columns = self.centre((height, width))
        if (height, width) != mask.shape:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return mask[rows, columns]


def resize(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, 3), uint8 or float32, to ``shape``: area means where it shrinks, bilinear else."""
    height, width = shape
    if plane.shape[:2] == shape:
        return plane
    shrinks = height * width < plane.shape[0] * plane.shape[1]
    return cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
