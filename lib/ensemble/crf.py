"""Pull the outlines of probabilities to the edges of the image: mean field of a dense conditional random field.

Krähenbühl and Koltun 2011 let every pixel hear all others, through a Gaussian of the distance and one of distance and
colour, under a Potts model. Here the second message is the guided filter of the image (He et al. 2013), whose
cost does not depend on its reach: a colour line model instead of a Gaussian of colours, much alike at edges.
Off unless asked for; nets that were trained well seldom gain from it, so let ``search.accept`` decide.
"""

import cv2
import numpy as np
from pydantic import Field

from lib.settings import Section

FLOOR = 0.25
"""Level that stands for a stored 0: the middle of what is rounded down to it."""
BORDER = cv2.BORDER_REFLECT


class Crf(Section):
    """How strongly a pixel listens to the others; weights of 0, or no iteration, change nothing."""

    iterations: int = Field(5, ge=0, le=1000)
    """Steps of the mean field."""
    near: float = Field(2.0, ge=0, le=1000)
    """Log-odds that a class gains where all around agree on it in the plane."""
    near_sigma: float = Field(3.0, gt=0, le=1000)
    """Standard deviation in pixels of the Gaussian that says what is around."""
    alike: float = Field(6.0, ge=0, le=1000)
    """Log-odds that a class gains where all agree on it on the same side of the image's edges."""
    alike_radius: int = Field(12, gt=0, le=1000)
    """Radius in pixels of the guided filter that says which these are."""
    alike_colour: float = Field(10.0, gt=0, le=1000)
    """Contrasts below this, of 255, are no edge."""


USUAL = Crf()


def refine(levels: np.ndarray, image: np.ndarray, exclusive: bool, settings: Crf = USUAL) -> np.ndarray:
    """Refine the levels of one scene: (C, H, W) uint8 and image (H, W, 3) uint8 -> (C, H, W) uint8.

    exclusive: the channels are classes of a softmax, else each is a yes or no of its own. Raises ValueError on arrays
    that do not fit.
    """
    if levels.dtype != np.uint8 or image.dtype != np.uint8 or image.shape != (*levels.shape[1:], 3):
        raise ValueError(f"crf: expected uint8 levels (C, H, W) and an image of their size, got {levels.dtype} "
                         f"{levels.shape} and {image.dtype} {image.shape}")  # fmt: skip
    near, alike = settings.near, settings.alike
    if not settings.iterations or not (near or alike):
        return levels
    guide = Guide(image, settings.alike_radius, settings.alike_colour) if alike else None

    def messages(belief: np.ndarray) -> np.ndarray:
        """Return what a pixel hears in favour of a class: (H, W) float32 -> (H, W) float32, in log-odds."""
        heard = np.zeros_like(belief)
        if near:
            heard += near * cv2.GaussianBlur(belief, (0, 0), settings.near_sigma, borderType=BORDER)
        if guide is not None:
            heard += alike * guide.filter(belief).clip(0, 1)  # the line model may leave 0..1 a little
        return heard

    shares = np.maximum(levels, np.float32(FLOOR))
    if exclusive:
        unary = np.log(shares)  # (C, H, W)
        belief = _softmax(unary)
        for _ in range(settings.iterations):
            belief = _softmax(unary + np.stack([messages(plane) for plane in belief]))
        return np.rint(255 * belief).astype(np.uint8)
    unary = np.log(shares) - np.log(np.maximum(255 - levels, np.float32(FLOOR)))
    belief = levels / np.float32(255)
    for _ in range(settings.iterations):  # yes hears m, no hears the rest, near + alike - m
        heard = np.stack([2 * messages(plane) for plane in belief])
        belief = 1 / (1 + np.exp(near + alike - heard - unary))
    return np.rint(255 * belief).astype(np.uint8)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=0))
    return powers / powers.sum(axis=0)


class Guide:
    """The guided filter of one colour image; what depends on the image alone is computed once."""

    def __init__(self, image: np.ndarray, radius: int, colour: float):
        self.side = (2 * radius + 1, 2 * radius + 1)
        self.image = [np.ascontiguousarray(image[..., i], np.float32) / np.float32(255) for i in range(3)]
        self.mean = [self._box(plane) for plane in self.image]
        spread = {}  # (i, j) -> (H, W): covariance of two colours in the window, and a floor on each variance
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
            spread[i, j] = self._box(self.image[i] * self.image[j]) - self.mean[i] * self.mean[j]
            spread[i, j] += np.float32((colour / 255) ** 2) * (i == j)
        self.inverse = _inverse(*spread.values())

    def filter(self, plane: np.ndarray) -> np.ndarray:
        """Smooth (H, W) float32 within the edges of the image."""
        mean = self._box(plane)
        together = [self._box(own * plane) - centre * mean for own, centre in zip(self.image, self.mean)]
        offset, sloped = mean, 0
        for row, own, centre in zip(self.inverse, self.image, self.mean):
            slope = row[0] * together[0] + row[1] * together[1] + row[2] * together[2]  # (H, W)
            offset = offset - slope * centre
            sloped = sloped + self._box(slope) * own
        return sloped + self._box(offset)

    def _box(self, plane: np.ndarray) -> np.ndarray:
        """Average over the window of each pixel: (H, W) float32."""
        return cv2.boxFilter(plane, -1, self.side, borderType=BORDER)


def _inverse(a, b, c, d, e, f) -> list[list[np.ndarray]]:
    """Invert the symmetric matrices [[a, b, c], [b, d, e], [c, e, f]] of all pixels by their cofactors."""
    aa, ab, ac, bb, bc, cc = d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b
    determinant = a * aa + b * ab + c * ac
    for cofactor in (aa, ab, ac, bb, bc, cc):
        cofactor /= determinant
    return [[aa, ab, ac], [ab, bb, bc], [ac, bc, cc]]
