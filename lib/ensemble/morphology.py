"""Morphological opening and closing of masks and label maps: (H, W) arrays of whole numbers, 0 being nothing.

The structuring element is a disk: all offsets (y, x) with y^2 + x^2 <= radius^2. Radius 1 is a cross of 5 pixels, 1.5 a
square of 9, 2 a disk of 13; below 1 nothing changes. What lies outside of the image counts neither as object nor as
background: objects at its border keep their shape, which ``scipy.ndimage.binary_closing`` eats as it stands.

Every label is treated by itself, so touching objects of an instance map, and classes, do not melt into one. Inputs are
never changed. Definitions: Serra, Image Analysis and Mathematical Morphology, 1982.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from scipy import ndimage

Radius = Annotated[float, Field(ge=1, le=100)]
"""Of the disk, in pixels."""


def opening(labels: np.ndarray, radius: Radius) -> np.ndarray:
    """Keep of each label only what a disk within it can cover; the rest, specks and thin bridges, becomes 0."""
    opened = np.zeros_like(labels)
    for label, box, own in _each(labels, radius):
        disk = _disk(radius)
        opened[box][cv2.dilate(cv2.erode(own, disk), disk) > 0] = label
    return opened


def closing(labels: np.ndarray, radius: Radius) -> np.ndarray:
    """Give each label the zeros around it that no disk outside of it can cover: its cracks, small holes and bays.

    A gap that several labels would take goes to the lowest of them; no label takes from another.
    """
    closed = labels.copy()
    for label, box, own in _each(labels, radius):
        disk = _disk(radius)
        taken = (cv2.erode(cv2.dilate(own, disk), disk) > 0) & (closed[box] == 0)
        closed[box][taken] = label
    return closed


STEPS: Mapping[str, Callable[..., np.ndarray]] = {"opening": opening, "closing": closing}
"""As post-processing steps of an answer that is one such array."""


def open_and_close(labels: np.ndarray, opened: float, closed: float) -> np.ndarray:
    """Open, then close, with the given radii; one below 1 leaves that out."""
    if opened >= 1:
        labels = opening(labels, opened)
    return closing(labels, closed) if closed >= 1 else labels


def _disk(radius: float) -> np.ndarray:
    reach = int(radius)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return (y * y + x * x <= radius * radius).view(np.uint8)


def _each(labels: np.ndarray, radius: float) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Yield each label, the box around it that can matter, and where in the box it is, (h, w) uint8 in {0, 1}."""
    margin = 2 * int(radius) + 1
    for label, found in enumerate(ndimage.find_objects(labels), 1):
        if found is not None:
            rows, columns = (slice(max(0, side.start - margin), side.stop + margin) for side in found)
            yield label, (rows, columns), (labels[rows, columns] == label).view(np.uint8)
