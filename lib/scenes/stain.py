"""Colours of stained tissue: vary them for training, or bring every scene to those of a reference.

Both are for brightfield slides, where a stain takes light away and glass is white.
``python -m lib.scenes.stain IMAGE ...`` prints what an image would be as a reference.
"""

import sys
from typing import NamedTuple

import cv2
import numpy as np
import skimage  # its parts are imported when they are first used
from numpy.typing import ArrayLike

DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
"""Optical density of each level: Beer-Lambert, a layer of twice the stain has twice the density."""

GLASS = (85.0, 95.0)
"""L* from which a pixel begins to count as glass, and from which it is nothing else."""


def restain(image: np.ndarray, factors: ArrayLike, shifts: ArrayLike) -> np.ndarray:
    """Multiply the amounts of haematoxylin, eosin and DAB in an (H, W, 3) uint8 image and add to them."""
    hed_from_rgb, rgb_from_hed = skimage.color.hed_from_rgb, skimage.color.rgb_from_hed
    mix = hed_from_rgb @ np.diag(factors) @ rgb_from_hed  # density (row) -> amounts -> changed -> density
    matrix = np.column_stack([mix.T, np.asarray(shifts) @ rgb_from_hed])  # as OpenCV multiplies: columns, offset last
    density = cv2.transform(cv2.LUT(image, DENSITY), matrix)  # (H, W, 3) float32
    return cv2.convertScaleAbs(cv2.exp(-density), alpha=255)  # rounds and saturates


class StainStats(NamedTuple):
    """Describe the colours of a scene's tissue in CIE L*a*b*."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def to_lab(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W, 3) float32 L*a*b* and (H, W) float32: how much of each pixel is tissue, 0..1.

    What is 0 in every band is no tissue: pixels without data are, and black rims.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    low, high = GLASS
    return lab, np.clip((high - lab[..., 0]) / (high - low), 0, 1) * image.any(axis=-1)


def describe(lab: np.ndarray, tissue: np.ndarray) -> StainStats | None:
    """Return mean and standard deviation of the tissue's colours, None where there is no tissue."""
    total = tissue.sum(dtype=np.float64)
    if total < 1:
        return None
    mean = row_sums(tissue, lab).sum(0) / total
    std = np.sqrt(row_sums(tissue, (lab - mean.astype(np.float32)) ** 2).sum(0) / total)
    return StainStats(tuple(mean.tolist()), tuple(std.tolist()))


def row_sums(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum weighted (H, W, 3) values over each row: (H, 3) float64; a whole slide is too much for one float32 sum."""
    return np.matmul(weights[:, None], values)[:, 0].astype(np.float64)  # (H, 1, W) @ (H, W, 3)


def measure(image: np.ndarray) -> StainStats | None:
    """Measure the stain of an (H, W, 3) uint8 RGB scene, to be a reference; None if it is glass all over."""
    return describe(*to_lab(image))


def normalise(image: np.ndarray, reference: StainStats) -> np.ndarray:
    """Give a scene's tissue the mean and spread of colour of a reference (Reinhard et al. 2001).

    image: (H, W, 3) uint8 RGB, a whole scene, since a small piece has statistics of its own. Returns the same shape
    and type. Glass stays as it is and does not count: how much of it a slide shows says nothing about its stain. Which
    tissue it shows does count, so a scene of nothing but nuclei comes out pale. The paper's colour space is
    l-alpha-beta; L*a*b* serves the same end and comes with OpenCV.
    """
    lab, tissue = to_lab(image)
    own = describe(lab, tissue)
    if own is None:
        return image.copy()
    gain = np.maximum(reference.std, 1) / np.maximum(own.std, 1)  # an even scene's noise is not blown up
    matrix = np.column_stack([np.diag(gain), reference.mean - gain * own.mean])
    lab += tissue[..., None] * (cv2.transform(lab, matrix) - lab)
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)  # a little outside 0..1 where the colour is out of gamut
    return cv2.convertScaleAbs(np.maximum(rgb, 0), alpha=255)  # rounds and saturates


if __name__ == "__main__":
    from lib.scenes.raster import read_image

    for path in sys.argv[1:]:
        found = measure(read_image(path))
        rounded = found and {name: [round(v, 2) for v in values] for name, values in found._asdict().items()}
        print(f"{path}: {rounded or 'no tissue'}")
