"""Clean a decoded building answer object by object; each step is one function: step(decoded, **options) -> decoded.

Arrays are never changed; outputs may share memory with them. Whether a step stays in the pipeline is for
``lib.ensemble.search.accept`` to say.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
import skimage  # its parts are imported when they are first used
from pydantic import Field

from lib.competitions.decoding import small_parts
from lib.competitions.xview2 import objects
from lib.ensemble import morphology
from lib.ensemble.morphology import Radius

Share = Annotated[float, Field(ge=0, le=1)]
Area = Annotated[int, Field(ge=0)]


class Decoded(NamedTuple):
    """An answer, and the levels (level / 255 = probability) that it was decoded from."""

    localization: np.ndarray
    """(H, W) uint8 in {0, 1}."""
    damage: np.ndarray
    """(H, W) uint8 in {0 .. 4}."""
    loc_levels: np.ndarray
    """(H, W) uint8."""
    cls_levels: np.ndarray
    """(5, H, W) uint8, background first."""


def watershed_vote(
    decoded: Decoded,
    seed_threshold: Share = 0.8,
    share: Share = 0.6,
    confidence: Share = 0.6,
    faithful: bool = False,
) -> Decoded:
    """Let each region grown from a sure seed vote on the class of its unsure pixels: the 2020 post-processing.

    Seeds are the 8-connected parts where the building probability is above ``seed_threshold``; a watershed grows them
    within the footprint. A region's most frequent class (ties: the lowest) wins if it covers more than ``share`` of the
    region and the region is one piece without holes (Euler number 1); it is then written where the largest damage
    probability is below ``confidence``. The footprint stays.

    ``faithful=True`` keeps two defects of the original: the last region never votes, and the relief that is flooded
    is 1 - probability cut to whole numbers, flat but where the probability is 0, so that touching roofs part half way.
    Here every region votes and the relief is the probability itself, so that they part in the valley between them. A
    third one, an eccentricity test that always passes, is left out of both.
    Source: selimsef/xview2_solution, predict_single.py (2nd place of xView2 2020).
    """
    localization, damage, loc_levels, cls_levels = decoded
    grown = partial(_grown, localization, loc_levels, seed_threshold, faithful)
    regions, whole = _last.get((seed_threshold, faithful), grown, localization, loc_levels)
    inside = np.flatnonzero(regions > 0)
    region, graded = regions.ravel().take(inside), damage.ravel().take(inside)
    votes = np.bincount(region.astype(np.intp) * 5 + graded, minlength=5 * len(whole)).reshape(-1, 5)
    winner = votes.argmax(axis=1).astype(np.uint8)
    decided = (winner > 0) & (votes.max(axis=1) > share * votes.sum(axis=1)) & whole
    decided[0] = False  # outside of all regions
    if faithful:
        decided[-1] = False
    sureness = cls_levels[1:].reshape(4, -1).take(inside, axis=1).max(axis=0)
    written = decided.take(region) & (_LEVELS < confidence).take(sureness)
    voted = damage.copy()
    voted.flat[inside[written]] = winner.take(region[written])
    return decoded._replace(damage=voted)


def _grown(
    localization: np.ndarray, loc_levels: np.ndarray, seed_threshold: float, faithful: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Grow regions from sure seeds within the footprint: (H, W) int32, 0 = none; and which are in one piece, whole.

    The latter (regions + 1,) bool. Regions are numbered as their seeds are in scanning order: "last" means something.
    """
    seeds = skimage.measure.label((_LEVELS > seed_threshold).take(loc_levels), connectivity=2)
    relief = (loc_levels == 0).astype(np.uint8) if faithful else ~loc_levels
    regions = skimage.segmentation.watershed(relief, seeds, mask=localization > 0)
    return regions, objects.euler_numbers(regions) == 1


_LEVELS = np.arange(256) / 255.0
"""The probability of each level."""
_last = objects.LastScene()


def object_vote(decoded: Decoded, connectivity: Literal[4, 8] = 8) -> Decoded:
    """Give each building the damage class most of its pixels have; ties go to the lower class, the footprint stays.

    A building is a component of the footprint under 4- or 8-``connectivity``. Pixels without a class (0) do not vote.
    """
    localization, damage = decoded[:2]
    count, components = cv2.connectedComponents(localization, connectivity=connectivity)
    inside = np.flatnonzero(localization > 0)
    building = components.ravel().take(inside).astype(np.intp)  # 32-bit labels: no limit of 255 buildings
    votes = np.bincount(building * 5 + damage.ravel().take(inside), minlength=5 * count).reshape(count, 5)[:, 1:]
    winner = np.where(votes.any(axis=1), 1 + votes.argmax(axis=1), 0).astype(np.uint8)
    voted = damage.copy()
    voted.flat[inside] = winner.take(building)
    return decoded._replace(damage=voted)


def remove_small(decoded: Decoded, min_area: Area, connectivity: Literal[4, 8] = 8) -> Decoded:
    """Erase buildings (components of the footprint) of fewer than ``min_area`` pixels, with their damage."""
    erased = small_parts(decoded.localization, min_area, connectivity)
    localization, damage = (np.where(erased, np.uint8(0), mask) for mask in decoded[:2])
    return decoded._replace(localization=localization, damage=damage)


def fill_holes(decoded: Decoded, max_area: Area) -> Decoded:
    """Fill gaps of at most ``max_area`` pixels within buildings; they take the class of the nearest building pixel.

    A hole is a 4-connected part of the background (buildings being 8-connected) that does not touch the border.
    """
    height, width = decoded.localization.shape
    _, gaps, stats, _ = cv2.connectedComponentsWithStats((decoded.localization == 0).astype(np.uint8), connectivity=4)
    left, top, right, bottom = stats[:, 0], stats[:, 1], stats[:, 0] + stats[:, 2], stats[:, 1] + stats[:, 3]
    small = (left > 0) & (top > 0) & (right < width) & (bottom < height) & (stats[:, cv2.CC_STAT_AREA] <= max_area)
    small[0] = False  # the buildings
    return _fill(decoded, small[gaps])


def opening(decoded: Decoded, radius: Radius) -> Decoded:
    """Erase what of the footprint no disk of this radius within it covers, with its damage."""
    opened = morphology.opening(decoded.localization, radius)
    damage = np.where(opened < decoded.localization, np.uint8(0), decoded.damage)
    return decoded._replace(localization=opened, damage=damage)


def closing(decoded: Decoded, radius: Radius) -> Decoded:
    """Close cracks and bays of the footprint with a disk of this radius; they take the class of the nearest pixel."""
    return _fill(decoded, morphology.closing(decoded.localization, radius) > decoded.localization)


def _fill(decoded: Decoded, filled: np.ndarray) -> Decoded:
    """Add the pixels ``filled`` (H, W) bool to the footprint; they take the class of the nearest building pixel."""
    localization, damage = decoded[:2]
    if not filled.any():
        return decoded
    _, nearest = cv2.distanceTransformWithLabels(
        (localization == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )  # (H, W) int32: number of the nearest building pixel
    damage_of = np.zeros(nearest.max() + 1, np.uint8)
    damage_of[nearest[localization > 0]] = damage[localization > 0]
    localization = np.where(filled, np.uint8(1), localization)
    return decoded._replace(localization=localization, damage=np.where(filled, damage_of[nearest], damage))


STEPS: Mapping[str, Callable[..., Decoded]] = {
    "watershed_vote": watershed_vote,
    "object_vote": object_vote,
    "remove_small": remove_small,
    "fill_holes": fill_holes,
    "opening": opening,
    "closing": closing,
}
