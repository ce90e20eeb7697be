"""Turn levels of one object class into a mask, or into objects parted by a watershed; arrays in, arrays out.

levels: (1, H, W) uint8, the object; or (2, H, W), the object and the border between touching objects.
Answer: (H, W) uint8 in {0, 1}, or with ``instances`` (H, W) int32, where 0 is background and 1, 2 ... the objects.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import cv2
import numpy as np
import skimage  # its parts are imported when they are first used
from pydantic import Field
from scipy import ndimage

from lib.competitions.decoding import Setting, morphology, threshold_level
from lib.ensemble.morphology import STEPS as STEPS_OF_MORPHOLOGY
from lib.ensemble.morphology import open_and_close

SETTINGS: dict[str, Setting] = {
    "threshold": Setting(
        0.5, "an object from here on; otsu: where the scene's own levels part", high=1, words=("otsu",)
    ),
    "min_area": Setting(0, "smaller objects (8-connected parts of a mask) are erased, in pixels"),
    "fill_holes": Setting(0, "1: background that an object encloses becomes object", choices=(0, 1)),
    "instances": Setting(0, "1: a label map, touching objects parted", choices=(0, 1)),
    "seed_threshold": Setting(0.5, "the sure inside of an object from here on: object x (1 - border)", high=1),
    "seed_depth": Setting(0, "pixels that a waist is narrower by, either side, where an object is parted; 0: never"),
    **morphology("the mask"),
}
DEFAULTS: dict[str, Any] = {name: setting.default for name, setting in SETTINGS.items()}


def settings(instances: int) -> dict[str, Setting]:
    """Return SETTINGS with another default of ``instances``: objects are parted where the metric needs it."""
    return {**SETTINGS, "instances": replace(SETTINGS["instances"], default=instances)}


def decode(levels: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Decode one image with settings like DEFAULTS, all of them given and within their ranges in SETTINGS."""
    mask = (levels[0] >= threshold_level(settings["threshold"])).view(np.uint8)
    mask = open_and_close(mask, settings["opening"], settings["closing"])
    if settings["fill_holes"]:
        mask = fill_holes(mask)
    if settings["instances"]:
        seed, depth = threshold_level(settings["seed_threshold"]), settings["seed_depth"]
        mask = split(mask, inside(levels), seed, depth)
    return remove_small(mask, settings["min_area"]) if settings["min_area"] > 1 else mask


# ---- objects ------------------------------------------------------------------------------------------
def borders(labels: np.ndarray, width: int) -> np.ndarray:
    """Mark where objects touch or nearly touch: (H, W) bool, from a label map.

    A pixel, of an object or beside it, is border if the square of ``width`` pixels around it holds two different
    objects. That is the rule of the 1st place of DSB 2018 (selimsef/dsb2018_topcoders, whose squares of 1 to 6 pixels
    depend on the object). No object is border entirely: its innermost pixel stays, so that it keeps a seed.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    number = labels.astype(np.float32)  # exact up to 2**24 objects
    highest = cv2.dilate(number, square, borderType=cv2.BORDER_REPLICATE)
    none = np.float32(2**24)
    lowest = cv2.erode(np.where(number > 0, number, none), square, borderType=cv2.BORDER_REPLICATE)
    border = (highest > lowest) & (lowest < none)
    swallowed = np.setdiff1d(labels[border & (labels > 0)], labels[~border])
    for label in swallowed:
        depth = ndimage.distance_transform_edt(np.pad(labels == label, 1))[1:-1, 1:-1]
        border.flat[depth.argmax()] = False
    return border


def inside(levels: np.ndarray) -> np.ndarray:
    """Return how sure a pixel is of an object and of no border: levels (1 | 2, H, W) uint8 -> (H, W) uint8."""
    if len(levels) == 1:
        return levels[0]
    product = levels[0].astype(np.uint16) * (255 - levels[1].astype(np.uint16))
    return ((product + 127) // 255).astype(np.uint8)


def split(mask: np.ndarray, sure: np.ndarray, seed: int, depth: float = 0) -> np.ndarray:
    """Part a mask (H, W) into objects grown from its 8-connected parts where ``sure`` >= ``seed``: (H, W) int32.

    A watershed floods downhill on ``sure``, and where it is flat all seeds at the same pace, so that objects meet half
    way. With ``depth``, a part that has a waist is several seeds: the tops of the distance to its outline that rise at
    least ``depth`` pixels above the way to a higher one; the flood then goes downhill on that distance. What holds no
    seed is an object of its own.
    """
    region = ((sure >= seed) & (mask > 0)).view(np.uint8)
    seeds = components(region)
    relief: np.ndarray = 255 - sure.astype(np.int16)
    if depth > 0:
        distance = np.rint(16 * cv2.distanceTransform(region, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)).astype(np.int32)
        # sixteenths of a pixel compare exactly
        lowered = skimage.morphology.reconstruction(distance - round(16 * depth), distance)
        # Plateaus of the lowered map, not its residue as in skimage's h_maxima: equal tops of one object are one seed.
        tops = skimage.morphology.local_maxima(lowered) & (lowered > 0)
        seeds, relief = _with_lonely_parts(components(tops), region), -distance
    seeds = _with_lonely_parts(seeds, mask)
    grown = skimage.segmentation.watershed(relief, seeds, mask=mask > 0, connectivity=2)
    return skimage.segmentation.relabel_sequential(grown)[0].astype(np.int32)


def _with_lonely_parts(seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Add to seeds (H, W) int32 the parts of a mask that hold none of them."""
    parts = components(mask)
    lonely = np.ones(parts.max() + 1, bool)
    lonely[parts[seeds > 0]] = False
    return np.where((mask > 0) & lonely[parts], parts + seeds.max(), seeds)


def components(mask: np.ndarray) -> np.ndarray:
    """Number the 8-connected parts of a mask; a label map (int32) is returned as it is: (H, W) int32."""
    if mask.dtype == np.int32:
        return mask
    return cv2.connectedComponents((mask > 0).view(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]


# ---- post-processing of an answer -----------------------------------------------------------------------
def remove_small(answer: np.ndarray, min_area: Annotated[float, Field(ge=0)]) -> np.ndarray:
    """Erase objects of fewer than ``min_area`` pixels; the objects that stay are numbered anew."""
    labels = components(answer)
    kept = np.bincount(labels.ravel()) >= min_area
    kept[0] = False
    if answer.dtype == np.int32:
        return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]
    return kept.astype(np.uint8)[labels]


def fill_holes(answer: np.ndarray) -> np.ndarray:
    """Fill background that objects enclose (4-connected, off the image's border) with the nearest object."""
    holes = ndimage.binary_fill_holes(answer > 0) & (answer == 0)
    if not holes.any():
        return answer
    if answer.dtype != np.int32:
        return answer | holes.view(np.uint8)
    rows, columns = ndimage.distance_transform_edt(answer == 0, return_distances=False, return_indices=True)
    return np.where(holes, answer[rows, columns], answer)


STEPS: Mapping[str, Callable[..., np.ndarray]] = {
    "remove_small": remove_small,
    "fill_holes": fill_holes,
    **STEPS_OF_MORPHOLOGY,
}


# ---- search ---------------------------------------------------------------------------------------------
def count_thresholds(levels: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Count pixels for every threshold at once: levels (H, W) uint8, truth (H, W) -> (P, 3) int64 of tp, fp, fn."""
    inside_truth = truth > 0
    histograms = [np.bincount(levels[where], minlength=257) for where in (inside_truth, ~inside_truth)]
    tp, fp = (histogram[::-1].cumsum()[::-1] for histogram in histograms)  # (257,) pixels at or above a level
    at = np.array([threshold_level(threshold) for threshold in thresholds])
    return np.stack([tp[at], fp[at], tp[0] - tp[at]], axis=1).astype(np.int64)
