"""Cut a training crop out of a scene and vary it: the same geometry for every image and the mask, then colour.

Geometry (place, scale, rotation) is one warp from the scene into the crop, and a flip or quarter turn. So a rotation
takes its corners from the scene, not from a border, and pixels are interpolated once. Where a window leaves the scene
the image is mirrored and the mask is ``IGNORE`` (the 2020 codes wrote black there and called it background).
Colour is albumentations, ``strict=True``: a misspelt argument is an error, not a warning.

A new augmentation is one more row in ``PRESETS``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np

from lib.errors import ConfigError
from lib.tasks import IGNORE

Images = Mapping[str, np.ndarray]

EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Principal components of the RGB colours of ImageNet (Krizhevsky et al. 2012), columns are vectors."""


class Lighting(A.ImageOnlyTransform):
    """Shift RGB along the colour axes of ImageNet by normal amounts (AlexNet's PCA lighting; 2nd place of xView2).

    albumentations' FancyPCA takes the axes from each image instead, so pre and post would shift apart.
    """

    def __init__(self, sigma: float = 0.1, p: float = 0.5):
        super().__init__(p=p)
        self.sigma = sigma

    def get_params(self) -> dict[str, np.ndarray]:
        """Draw the shift: (3,) float64 in levels of 255."""
        alpha = self.random_generator.normal(0, self.sigma, 3)
        return {"shift": 255 * EIGENVECTORS @ (alpha * EIGENVALUES)}

    def apply(self, img: np.ndarray, shift: np.ndarray, **params) -> np.ndarray:
        return cv2.add(img, (*shift, 0))  # saturates


@dataclass(frozen=True)
class Preset:
    """Describe an augmentation, one row of ``PRESETS``; ``*_p`` are probabilities per sample."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Side of the window over side of the crop, uniform."""
    scale_p: float = 1.0
    rotate: float = 0.0
    """Largest angle in degrees, either way."""
    rotate_p: float = 0.0
    dihedral: bool = False
    """One of the eight flips and quarter turns, uniform."""
    colour: Callable[[], list[A.BasicTransform]] = list
    """Gives fresh colour transforms for one pipeline."""
    jitter: str = "shared"
    """The same random values for all images of a scene ("shared"), or drawn for each ("per_image")."""
    shift: float = 0.0
    """Standard deviation in pixels of a small move of all images but the first: registration is never exact (3rd
    place of xView2 jittered the post image alone)."""


PRESETS = {
    "none": Preset(),
    # xView2 2nd place, localization. SafeRotate grew the canvas: the crop after it lay anywhere in the turned scene.
    "selim2020_loc": Preset(
        scale=(0.7, 1.3), scale_p=0.8, rotate=45, rotate_p=0.4, dihedral=True,
        colour=lambda: [
            A.ImageCompression(quality_range=(99, 100), p=0.1),  # the default of albumentations 0.4.1, hardly visible
            Lighting(sigma=0.3),
            A.RandomBrightnessContrast(p=0.4),
            A.RandomGamma(p=0.4),
            A.OneOf([A.RGBShift(), A.HueSaturationValue()], p=0.2),
        ]),
    # xView2 2nd place, damage.
    "selim2020_cls": Preset(
        scale=(0.8, 1.2), rotate=10, rotate_p=0.1, dihedral=True,
        colour=lambda: [
            A.Blur(p=0.3),
            Lighting(sigma=0.3),
            A.RandomBrightnessContrast(p=0.3),
            A.RandomGamma(p=0.3),
            A.RGBShift(p=0.2),
        ]),
    # A millisecond per sample: for training on a CPU, where workers and network share the cores.
    "light": Preset(
        scale=(0.8, 1.25), scale_p=0.5, dihedral=True, jitter="per_image",
        colour=lambda: [A.RandomBrightnessContrast(p=0.5), A.RandomGamma(p=0.3)]),
    # Few scenes: every direction, sun and sensor. Chosen on real xBD tiles out of fold, see configs/xview2_cpu.yaml.
    "satellite": Preset(
        scale=(0.75, 1.35), rotate=45, rotate_p=0.7, dihedral=True, jitter="per_image", shift=1.5,
        colour=lambda: [
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.25, p=0.8),
            A.RandomGamma(gamma_limit=(75, 130), p=0.6),
            A.RGBShift(r_shift_limit=10, g_shift_limit=10, b_shift_limit=10, p=0.5),
            A.ToGray(p=0.05),
        ]),
}

JITTERS = ("shared", "per_image")


class Focus(NamedTuple):
    """Name what a crop must show, in pixels of the scene."""

    box: tuple[int, int, int, int]
    """Top, left, bottom, right; the ends excluded. Shown whole where it fits the window and no rotation is drawn."""
    point: tuple[int, int]
    """Row and column of a pixel inside the box. Always shown."""


def compose(transforms: Sequence[A.BasicTransform], images: Sequence[str]) -> A.Compose:
    """Chain colour transforms over the named images; a call with them draws one set of random values for all."""
    return A.Compose(list(transforms), additional_targets={name: "image" for name in images[1:]}, strict=True)


def place(rng: np.random.Generator, size: int, side: int, show: tuple[int, int, int] | None) -> int:
    """Draw the start of a window of ``side`` pixels along an axis: inside the scene if it fits, around it if not.

    show: (low, high, point): the window holds [low, high) or, where that is longer, a part of it with ``point``.
    """
    first, last = sorted((0, size - side))
    if show and side <= size:
        low, high, point = show
        if high - low <= side:
            first, last = max(first, high - side), min(last, low)
        else:
            first, last = max(low, point - side + 1), min(high - side, point)
    return int(rng.integers(first, last, endpoint=True))


def cut(array: np.ndarray, top: int, left: int, side: int, fill: int | None = None) -> np.ndarray:
    """Cut a square out of (H, W) or (H, W, 3); what lies outside is mirrored, or ``fill``."""
    height, width = array.shape[:2]
    inside = array[max(top, 0):top + side, max(left, 0):left + side]
    if inside.shape[:2] == (side, side):
        return inside.copy()
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(inside, max(-top, 0), max(top + side - height, 0), max(-left, 0),
                              max(left + side - width, 0), border, value=fill)


def turn(array: np.ndarray, element: int) -> np.ndarray:
    """Apply element 0..7 of the dihedral group to (H, W) or (H, W, 3): bits are transpose, up-down, left-right.

    OpenCV copies: numpy's rotated views of interleaved colours are ten times slower to make contiguous.
    """
    if element & 4:
        array = cv2.transpose(array)
    if element & 3:
        array = cv2.flip(array, {1: 1, 2: 0, 3: -1}[element & 3])
    return array


def slide(image: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Move an image by (rows, columns), fractions of a pixel included; the border is mirrored."""
    matrix = np.array([[1, 0, by[1]], [0, 1, by[0]]])
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


class Augment:
    """Turn a scene into a training crop by a preset; the result depends on the arguments alone.

    images: name -> (H, W, 3) uint8 of one size; mask: (H, W) uint8; seed: any int >= 0. Returns the same names and
    mask with H = W = ``crop``. A seed gives the same crop in every process, worker and epoch.
    """

    def __init__(self, preset: Preset, crop: int, images: Sequence[str]):
        self.preset, self.crop, self.images = preset, crop, tuple(images)
        transforms = preset.colour()
        self.together = preset.jitter == "shared"
        self.pipeline = compose(transforms, images if self.together else images[:1]) if transforms else None

    def __call__(self, images: Images, mask: np.ndarray, seed: int,
                 focus: Focus | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rng = np.random.default_rng(seed)
        move = self.draw_geometry(rng, mask.shape, focus)
        images = {name: move(images[name], None) for name in self.images}
        mask = move(mask, IGNORE)
        if self.preset.shift:
            for name in self.images[1:]:
                images[name] = slide(images[name], rng.normal(0, self.preset.shift, 2))
        return (self.recolour(images, rng) if self.pipeline else images), mask

    def draw_geometry(self, rng: np.random.Generator, shape: tuple[int, int],
                      focus: Focus | None = None) -> Callable[[np.ndarray, int | None], np.ndarray]:
        """Draw place, scale, rotation and turn for a scene of ``shape``; return move(array, fill) -> (crop, crop, ...).

        fill None is for images (bilinear, mirrored border), a value is for masks (nearest, filled border).
        """
        preset, crop, (height, width) = self.preset, self.crop, shape
        side = crop
        if rng.random() < preset.scale_p:
            side = round(crop * rng.uniform(*preset.scale))
        side = min(side, max(height, crop), max(width, crop))  # no border where the scene is large enough
        angle = 0.0
        if rng.random() < preset.rotate_p:
            angle = math.radians(rng.uniform(-preset.rotate, preset.rotate))
        element = int(rng.integers(8)) if preset.dihedral else 0

        box, point = focus or (None, None)
        top = place(rng, height, side, focus and (box[0], box[2], point[0]))
        left = place(rng, width, side, focus and (box[1], box[3], point[1]))
        if side == crop and angle == 0:
            return lambda array, fill: turn(cut(array, top, left, crop, fill), element)

        zoom = side / crop
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        y, x = point or (top + side // 2, left + side // 2)  # the pixel that the rotation leaves in its place
        v, u = ((y - top + 0.5) / zoom - 0.5, (x - left + 0.5) / zoom - 0.5)  # where the unturned crop shows the point
        matrix = np.array([[cos, -sin, x - cos * u + sin * v], [sin, cos, y - sin * u - cos * v]])  # crop -> scene

        def move(array: np.ndarray, fill: int | None) -> np.ndarray:
            how, border = (cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101) if fill is None else \
                (cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
            array = cv2.warpAffine(array, matrix, (crop, crop), flags=how | cv2.WARP_INVERSE_MAP, borderMode=border,
                                   borderValue=fill or 0)
            return turn(array, element)

        return move

    def recolour(self, images: Images, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Change the colours of all images alike, or of each on its own.

        Reseeded on every call: left alone, albumentations 2.0.8 repeats its numbers in each worker and epoch.
        """
        if self.together:
            self.pipeline.set_random_seed(int(rng.integers(2**32)))
            first, *others = self.images
            out = self.pipeline(image=images[first], **{name: images[name] for name in others})
            return {first: out["image"], **{name: out[name] for name in others}}
        out = {}
        for name, image in images.items():
            self.pipeline.set_random_seed(int(rng.integers(2**32)))
            out[name] = self.pipeline(image=image)["image"]
        return out


def build(preset: str, crop: int, images: Sequence[str], scale: tuple[float, float] | None = None,
          jitter: str | None = None) -> Augment:
    """Build the augmentation named ``preset`` for crops of ``crop`` pixels of the named images of a scene.

    scale, jitter: replace the preset's own. Raises ConfigError for unknown names.
    """
    if preset not in PRESETS:
        raise ConfigError(f"augment: expected one of {', '.join(PRESETS)}, got {preset!r}")
    row = PRESETS[preset]
    if scale is not None:
        row = replace(row, scale=scale)
    if jitter is not None:
        row = replace(row, jitter=jitter)
    if row.jitter not in JITTERS:
        raise ConfigError(f"jitter: expected one of {', '.join(JITTERS)}, got {row.jitter!r}")
    return Augment(row, crop, images)
