"""Cut a training crop out of a scene and vary it: the same geometry for every image and the mask, then colour.

Geometry (place, scale, rotation, elastic bending) is one warp from the scene into the crop, and a flip or quarter
turn. So a rotation takes its corners from the scene, not from a border, and pixels are interpolated once. Where a
window leaves the scene the image is mirrored and the mask is ``IGNORE`` (the 2020 codes wrote a black background).
Colour is albumentations, ``strict=True``: a misspelt argument is an error. A new augmentation is a row in ``PRESETS``.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np

from lib.errors import ConfigError
from lib.scenes.stain import restain
from lib.scenes.warp import bend, bent, cut, elastic, place, slide, turn, warp
from lib.tasks import IGNORE

Images = Mapping[str, np.ndarray]
MASK = "mask "
"""How the name of an image begins that is a further mask."""

EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Principal components of the RGB colours of ImageNet (Krizhevsky et al. 2012), columns are vectors."""


class Lighting(A.ImageOnlyTransform):
    """Shift RGB along the colour axes of ImageNet by normal amounts (PCA lighting, Krizhevsky et al. 2012).

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
        four: Any = (*shift, 0)  # OpenCV's types know no tuples of numbers here
        return cv2.add(img, four)  # saturates


class StainJitter(A.ImageOnlyTransform):
    """Scale and shift the amounts of haematoxylin, eosin and DAB (Tellez et al. 2018).

    scale: half-width of the factors around 1. shift: half-width of what is added, in optical density (natural log).
    albumentations' HEStain projects onto two stains, which turns DAB's brown into violet; here the three vectors of
    Ruifrok & Johnston (2001) span all colours, and a jitter of nothing changes nothing.
    """

    def __init__(self, scale: float = 0.2, shift: float = 0.05, p: float = 0.5):
        super().__init__(p=p)
        self.scale, self.shift = scale, shift

    def get_params(self) -> dict[str, np.ndarray]:
        """Draw factors and shifts of the three stains: (3,) float64 each."""
        return {
            "factors": self.random_generator.uniform(1 - self.scale, 1 + self.scale, 3),
            "shifts": self.random_generator.uniform(-self.shift, self.shift, 3),
        }

    def apply(self, img: np.ndarray, factors: np.ndarray, shifts: np.ndarray, **params) -> np.ndarray:
        return restain(img, factors, shifts)


FLIPS = {"none": 1, "horizontal": 2, "dihedral": 8}
"""How many elements of the dihedral group, from the first, are equally likely: nothing; left-right too, where up is up
(faces, animals); all eight flips and quarter turns (seen from above)."""


@dataclass(frozen=True)
class Preset:
    """Describe an augmentation, one row of ``PRESETS``; ``*_p`` are probabilities per sample."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Side of the window over side of the crop, uniform."""
    scale_p: float = 1.0
    area: tuple[float, float] | None = None
    """Instead of ``scale``: share of the scene's area in the window, uniform; whole pictures of one thing."""
    ratio: tuple[float, float] = (1.0, 1.0)
    """With ``area``: width over height of the window, uniform in its logarithm."""
    rotate: float = 0.0
    """Largest angle in degrees, either way."""
    rotate_p: float = 0.0
    elastic: tuple[float, float] | None = None
    """Strength alpha and smoothness sigma in pixels of the crop, see ``lib.scenes.warp.elastic``."""
    elastic_p: float = 0.0
    flip: str = "none"
    """A key of ``FLIPS``."""
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
    "aerial_strong": Preset(
        scale=(0.7, 1.3),
        scale_p=0.8,
        rotate=45,
        rotate_p=0.4,
        flip="dihedral",
        colour=lambda: [
            A.ImageCompression(quality_range=(99, 100), p=0.1),  # the default of albumentations 0.4.1, hardly visible
            Lighting(sigma=0.3),
            A.RandomBrightnessContrast(p=0.4),
            A.RandomGamma(p=0.4),
            A.OneOf([A.RGBShift(), A.HueSaturationValue()], p=0.2),
        ],
    ),
    # xView2 2nd place, damage.
    "aerial_mild": Preset(
        scale=(0.8, 1.2),
        rotate=10,
        rotate_p=0.1,
        flip="dihedral",
        colour=lambda: [
            A.Blur(p=0.3),
            Lighting(sigma=0.3),
            A.RandomBrightnessContrast(p=0.3),
            A.RandomGamma(p=0.3),
            A.RGBShift(p=0.2),
        ],
    ),
    # A millisecond per sample: for training on a CPU, where workers and network share the cores.
    "light": Preset(
        scale=(0.8, 1.25),
        scale_p=0.5,
        flip="dihedral",
        jitter="per_image",
        colour=lambda: [A.RandomBrightnessContrast(p=0.5), A.RandomGamma(p=0.3)],
    ),
    # Few scenes: every direction, sun and sensor. Chosen on real xBD tiles out of fold, see configs/xview2_cpu.yaml.
    "satellite": Preset(
        scale=(0.75, 1.35),
        rotate=45,
        rotate_p=0.7,
        flip="dihedral",
        jitter="per_image",
        shift=1.5,
        colour=lambda: [
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.25, p=0.8),
            A.RandomGamma(gamma_limit=(75, 130), p=0.6),
            A.RGBShift(r_shift_limit=10, g_shift_limit=10, b_shift_limit=10, p=0.5),
            A.ToGray(p=0.05),
        ],
    ),
    # The animal report's "advanced": these three and no flip.
    "animals": Preset(
        rotate=30,
        rotate_p=0.5,
        elastic=(100, 10),
        elastic_p=0.5,
        colour=lambda: [
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=0, p=0.5),
        ],
    ),
    # Tissue of many organs, scanners and stains: pixels of 0.2 to 6 micrometres, H&E, PAS and DAB.
    "tissue": Preset(
        scale=(0.5, 2.0),
        rotate=45,
        rotate_p=0.3,
        elastic=(60, 10),
        elastic_p=0.3,
        flip="dihedral",
        colour=lambda: [
            StainJitter(scale=0.25, shift=0.05, p=0.7),
            A.HueSaturationValue(hue_shift_limit=12, sat_shift_limit=25, val_shift_limit=10, p=0.4),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.4),
            A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.5)), A.GaussNoise(std_range=(0.01, 0.05))], p=0.3),
        ],
    ),
    # Nuclei under any microscope: bright on black (fluorescence), dark on white, or stained.
    "microscopy": Preset(
        scale=(0.7, 1.4),
        rotate=45,
        rotate_p=0.5,
        elastic=(50, 8),
        elastic_p=0.3,
        flip="dihedral",
        colour=lambda: [
            A.ToGray(p=0.2),
            A.InvertImg(p=0.1),
            A.HueSaturationValue(hue_shift_limit=15, sat_shift_limit=25, val_shift_limit=10, p=0.3),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.3, p=0.5),
            A.RandomGamma(gamma_limit=(70, 140), p=0.3),
            A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.5)), A.GaussNoise(std_range=(0.01, 0.05))], p=0.3),
        ],
    ),
    # Faces on a camera, in the order of its making: lens, exposure, sensor, size, codec. Hue is left alone, the moire
    # of a filmed screen is the cue.
    "faces": Preset(
        scale=(0.8, 1.1),
        rotate=10,
        rotate_p=0.5,
        flip="horizontal",
        colour=lambda: [
            A.OneOf(
                [A.MotionBlur(blur_limit=(3, 7), allow_shifted=False), A.GaussianBlur(sigma_limit=(0.3, 2.0))], p=0.3
            ),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.5),
            A.ISONoise(color_shift=(0.01, 0.03), intensity=(0.1, 0.4), p=0.2),
            A.Downscale(
                scale_range=(0.5, 0.9),
                p=0.2,
                interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
            ),
            A.ImageCompression(quality_range=(40, 95), p=0.6),
            A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), p=0.3),
        ],
    ),
    # Bag of tricks (He et al. 2019). A hue has no coefficient: it turns by up to 0.4 of a half-turn, as MXNet has it.
    "bag_of_tricks": Preset(
        area=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        flip="horizontal",
        colour=lambda: [
            A.ColorJitter(brightness=(0.6, 1.4), contrast=(1, 1), saturation=(0.6, 1.4), hue=(-0.2, 0.2), p=1),
            Lighting(sigma=0.1, p=1),
        ],
    ),
}

OLDER = {
    "selim2020_loc": "aerial_strong",
    "selim2020_cls": "aerial_mild",
    "hubmap": "tissue",
    "liveness": "faces",
}
"""Older names of presets in experiment files."""
PRESETS |= {old: PRESETS[new] for old, new in OLDER.items()}

TRIES = 10
"""How often a window of some area and proportions is drawn before one that fits the scene is taken."""
JITTERS = ("shared", "per_image")


class Focus(NamedTuple):
    """Name what a crop must show, in pixels of the scene."""

    box: tuple[int, int, int, int]
    """Top, left, bottom, right; the ends excluded. Shown whole where it fits the window and no rotation or bending is
    drawn."""
    point: tuple[int, int]
    """Row and column of a pixel inside the box. Always shown."""


def compose(transforms: Sequence[A.BasicTransform], images: Sequence[str]) -> A.Compose:
    """Chain colour transforms over the named images; a call with them draws one set of random values for all."""
    return A.Compose(list(transforms), additional_targets={name: "image" for name in images[1:]}, strict=True)


class Augment:
    """Turn a scene into a training crop by a preset; the result depends on the arguments alone.

    images: name -> (H, W, 3) uint8 of one size; mask: (H, W) uint8; seed: any int >= 0. Returns the same names and
    mask with H = W = ``crop``. A seed gives the same crop in every process, worker and epoch.
    Images of other names than those it was built for, which may be (H, W), only share the geometry: they are what is
    known of the scene (a teacher's logits, float32), not what a camera saw of it, so nothing recolours or shakes them.
    Those whose name begins with ``MASK`` are cut as the mask is.
    """

    def __init__(self, preset: Preset, crop: int, images: Sequence[str]):
        transforms = preset.colour()
        self.preset = replace(preset, colour=list)  # what is done with it; a lambda cannot be sent to loader processes
        self.crop, self.images = crop, tuple(images)
        self.together = preset.jitter == "shared"
        self.pipeline = compose(transforms, images if self.together else images[:1]) if transforms else None

    def __call__(
        self, images: Images, mask: np.ndarray, seed: int, focus: Focus | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rng = np.random.default_rng(seed)
        move = self.draw_geometry(rng, mask.shape, focus)
        known = {name: image for name, image in images.items() if name not in self.images}
        moved = {name: move(image, IGNORE if name.startswith(MASK) else None) for name, image in known.items()}
        images = {name: move(images[name], None) for name in self.images}
        mask = move(mask, IGNORE)
        if self.preset.shift:
            for name in self.images[1:]:
                images[name] = slide(images[name], rng.normal(0, self.preset.shift, 2))
        return self.recolour(images, rng) | moved, mask

    def draw_geometry(
        self, rng: np.random.Generator, shape: tuple[int, int], focus: Focus | None = None
    ) -> Callable[[np.ndarray, int | None], np.ndarray]:
        """Draw place, scale, rotation, bending and turn for a scene of ``shape``; return move(array, fill).

        move gives (crop, crop, ...); fill None is for images (bilinear, mirrored border), a value is for masks
        (nearest, filled border).
        """
        preset, crop, (height, width) = self.preset, self.crop, shape
        tall, wide = self.draw_window(rng, shape)
        angle = 0.0
        if rng.random() < preset.rotate_p:
            angle = math.radians(rng.uniform(-preset.rotate, preset.rotate))
        element = int(rng.integers(FLIPS[preset.flip]))

        rows = columns = point = None
        if focus is not None:
            box, point = focus
            rows, columns = (box[0], box[2], point[0]), (box[1], box[3], point[1])
        top, left = place(rng, height, tall, rows), place(rng, width, wide, columns)
        bending = preset.elastic if preset.elastic is not None and rng.random() < preset.elastic_p else None
        if tall == wide == crop and angle == 0 and bending is None:
            return lambda array, fill: turn(cut(array, top, left, crop, fill), element)

        down, along, cos, sin = tall / crop, wide / crop, math.cos(angle), math.sin(angle)
        y, x = point or (top + tall // 2, left + wide // 2)  # the pixel that rotation and bending leave in its place
        v, u = (y - top + 0.5) / down - 0.5, (x - left + 0.5) / along - 0.5  # where the unturned crop shows the point
        linear = np.array([[along * cos, -down * sin], [along * sin, down * cos]])
        matrix = np.column_stack([linear, (x, y) - linear @ (u, v)])  # crop -> scene, (2, 3)
        if bending is None:
            return lambda array, fill: turn(warp(array, matrix, crop, fill), element)
        points = bent(matrix, elastic(rng, crop, *bending), u, v)
        return lambda array, fill: turn(bend(array, points, fill), element)

    def draw_window(self, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[int, int]:
        """Draw the window that a scene of ``shape`` shows, (height, width) in its pixels.

        With ``area`` it lies inside the scene, as Inception's random resized crop (Szegedy et al. 2015): after TRIES
        windows that stick out, the largest one of allowed proportions.
        """
        preset, crop, (height, width) = self.preset, self.crop, shape
        if preset.area is None:
            side = crop
            if rng.random() < preset.scale_p:
                side = round(crop * rng.uniform(*preset.scale))
            side = min(side, max(height, crop), max(width, crop))  # no border where the scene is large enough
            return side, side
        low, high = preset.ratio
        for _ in range(TRIES):
            area = height * width * rng.uniform(*preset.area)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            tall, wide = max(1, round(math.sqrt(area / ratio))), max(1, round(math.sqrt(area * ratio)))
            if tall <= height and wide <= width:
                return tall, wide
        ratio = min(max(width / height, low), high)
        return max(1, min(height, round(width / ratio))), max(1, min(width, round(height * ratio)))

    def recolour(self, images: Images, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Change the colours of all images alike, or of each on its own, if the preset changes any.

        Reseeded on every call: left alone, albumentations 2.0.8 repeats its numbers in each worker and epoch.
        """
        if self.pipeline is None:
            return dict(images)
        if self.together:
            first, *others = self.images
            out = self.run({"image": images[first], **{name: images[name] for name in others}}, rng)
            return {first: out["image"], **{name: out[name] for name in others}}
        return {name: self.run({"image": image}, rng)["image"] for name, image in images.items()}

    def run(self, images: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Do what a call of the pipeline after its ``set_random_seed`` does, in less time.

        albumentations 2.0.8 gives each transform generators of its own, all of the one seed, and the first number tells
        whether a transform is applied. So the others need no generators, and nothing of them is called.
        """
        assert self.pipeline is not None, "asked for without one"
        seed = int(rng.integers(2**32))
        first = random.Random(seed).random()
        for transform in self.pipeline.transforms:
            if first < transform.p:
                transform.set_random_seed(seed)
                images = transform(**images)
        return images


def build(
    preset: str, crop: int, images: Sequence[str], scale: tuple[float, float] | None = None, jitter: str | None = None
) -> Augment:
    """Build the augmentation named ``preset`` for crops of ``crop`` pixels of the named images of a scene.

    scale, jitter: replace the preset's own; a scale also its area. Raises ConfigError for unknown names.
    """
    if preset not in PRESETS:
        raise ConfigError(f"augment: expected one of {', '.join(PRESETS)}, got {preset!r}")
    row = PRESETS[preset]
    if scale is not None:
        row = replace(row, scale=scale, area=None)
    if jitter is not None:
        row = replace(row, jitter=jitter)
    if row.jitter not in JITTERS:
        raise ConfigError(f"jitter: expected one of {', '.join(JITTERS)}, got {row.jitter!r}")
    return Augment(row, crop, images)
