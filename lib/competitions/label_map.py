"""From the levels of exclusive classes to a label map, and steps that clean one: (H, W) uint8 class indices.

step(label_map, **options) -> label_map. Inputs are never changed; outputs may share memory with them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from lib.competitions.decoding import GAIN_STEPS, small_parts
from lib.ensemble import morphology

Pixels = Annotated[int, Field(ge=0)]


def winner(levels: np.ndarray, gains: Sequence[float]) -> np.ndarray:
    """Return the class with the highest level times gain: (C, H, W) uint8 -> (H, W) uint8; ties go to the lower class.

    gains: C numbers in 0..1000.
    """
    factors = [round(gain * GAIN_STEPS) for gain in gains]
    best, label_map = levels[0].astype(np.int32) * factors[0], np.zeros(levels.shape[1:], np.uint8)
    for index, (level, factor) in enumerate(zip(levels[1:], factors[1:], strict=True), 1):
        value = level.astype(np.int32) * factor
        label_map[value > best] = index
        np.maximum(best, value, out=best)
    return label_map


def remove_small(label_map: np.ndarray, min_area: Pixels) -> np.ndarray:
    """Turn the parts (8 neighbours) of any class that have fewer than ``min_area`` pixels into class 0."""
    if min_area <= 1:
        return label_map
    cleaned = label_map.copy()
    for index in np.unique(label_map[label_map > 0]):
        cleaned[small_parts((label_map == index).view(np.uint8), min_area)] = 0
    return cleaned


def majority(label_map: np.ndarray, radius: Pixels) -> np.ndarray:
    """Give each pixel the most frequent class of the square ``radius`` pixels around it; ties go to the lower class."""
    side = (2 * radius + 1, 2 * radius + 1)
    most, voted = np.full(label_map.shape, -1, np.float32), np.zeros_like(label_map)
    for index in np.unique(label_map):
        own = (label_map == index).astype(np.float32)
        votes = np.rint(cv2.boxFilter(own, -1, side, normalize=False, borderType=cv2.BORDER_REFLECT))
        voted[votes > most] = index
        np.maximum(most, votes, out=most)
    return voted


def object_vote(label_map: np.ndarray) -> np.ndarray:
    """Give each object, a part (8 neighbours) of all that is not class 0, the class most of its pixels have.

    Ties go to the lower class. Right where objects of different classes seldom touch.
    """
    count, parts = cv2.connectedComponents((label_map > 0).view(np.uint8), connectivity=8)
    classes = int(label_map.max(initial=0)) + 1
    pairs = parts.ravel().astype(np.intp) * classes + label_map.ravel()
    winner = np.bincount(pairs, minlength=count * classes).reshape(count, classes).argmax(axis=1)
    return winner[parts].astype(np.uint8)


STEPS: Mapping[str, Callable[..., np.ndarray]] = {
    "remove_small": remove_small,
    "majority": majority,
    "object_vote": object_vote,
    **morphology.STEPS,
}
