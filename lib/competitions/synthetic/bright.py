"""Pairs of an optical image before and a radar image after, as BRIGHT ships them: GeoTIFFs of three bands and of one.

Houses on coloured ground; after the event radar looks from the west. An intact house has a bright western wall (where
ground and wall throw the echo back together) and a shadow behind it, a damaged one half a wall, half a shadow and a
rough half of its roof, a destroyed one is a rough bright patch without wall or shadow. All of it lies under speckle:
multiplicative noise of four looks. Two events in two zones of UTM. Hard things in it: a scene without a house, and one
whose radar swath ends inside, so that a corner has no data.
"""

from pathlib import Path

import cv2
import numpy as np
import rasterio
from rasterio.transform import Affine

GSD = 0.3
"""Metres per pixel, as in the real set."""
LOOKS = 4
EVENTS = {"synthetic-earthquake": ("EPSG:32637", (330_000.0, 4_160_000.0)),
          "synthetic-flood": ("EPSG:32633", (470_000.0, 3_630_000.0))}  # fmt: skip
"""Event -> CRS and the north-west corner of its first scene."""
GROUND = {"synthetic-earthquake": ((150, 128, 96), (176, 158, 128), (120, 124, 84)),
          "synthetic-flood": ((96, 118, 74), (128, 132, 92), (158, 146, 116))}  # fmt: skip
ROOFS = ((168, 74, 56), (142, 138, 134), (196, 188, 176), (104, 86, 78))
INTACT, DAMAGED, DESTROYED = 1, 2, 3


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write ``scenes`` pairs with and ``test_scenes`` pairs without a target, squares of ``size`` pixels."""
    for folder in ("pre-event", "post-event", "target"):
        (root / folder).mkdir(parents=True)
    for number in range(scenes + test_scenes):
        event = list(EVENTS)[number % len(EVENTS)]
        before, after, target = _draw(np.random.default_rng([seed, number]), event, number, size)
        name = f"{event}_{number:08d}"
        crs, (east, north) = EVENTS[event]
        place = {"crs": crs, "transform": Affine(GSD, 0, east + number * size * GSD, 0, -GSD, north)}
        _write(root / "pre-event" / f"{name}_pre_disaster.tif", before.transpose(2, 0, 1), nodata=0, **place)
        _write(root / "post-event" / f"{name}_post_disaster.tif", after[None], nodata=0, **place)
        if number < scenes:
            _write(root / "target" / f"{name}_building_damage.tif", target[None], **place)


def _draw(rng: np.random.Generator, event: str, number: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a scene: (H, W, 3) uint8 before, (H, W) uint8 after, target; samples are 1..255, 0 is no data."""
    colours = np.array(GROUND[event], np.float32)
    field = cv2.resize(rng.random((size // 24 + 2, size // 24 + 2), np.float32), (size, size),
                       interpolation=cv2.INTER_CUBIC)  # fmt: skip
    steps = np.linspace(0, 1, len(colours))
    before = np.stack([np.interp(field, steps, band) for band in colours.T], axis=-1).astype(np.float32)
    echo = 34 + 22 * field  # what comes back from the ground, before speckle
    target = np.zeros((size, size), np.uint8)
    spacing = 30
    for row in range(spacing // 2, size, spacing):
        for column in range(spacing // 2, size, spacing):
            if number != 2 and rng.random() < 0.8:
                harm = int(rng.choice([INTACT, DAMAGED, DESTROYED], p=[0.45, 0.25, 0.3]))
                _house(rng, (before, echo, target), (column + rng.uniform(-3, 3), row + rng.uniform(-3, 3)), harm)
    before += rng.normal(0, 4, before.shape).astype(np.float32)
    after = np.clip(echo * rng.gamma(LOOKS, 1 / LOOKS, echo.shape), 1, 255).astype(np.uint8)
    if number == 3:
        rows, columns = np.indices(after.shape)
        after[rows + columns < size // 3] = 0
    return np.clip(before, 1, 255).astype(np.uint8), after, target


def _house(rng: np.random.Generator, layers: tuple[np.ndarray, np.ndarray, np.ndarray], at: tuple[float, float],
           harm: int) -> None:  # fmt: skip
    """Draw a house of ``harm`` into the layers: picture before, echo after, target."""
    before, echo, target = layers
    half, angle = rng.uniform(6, 10, 2), rng.uniform(-12, 12)
    height = int(rng.integers(3, 7))  # of wall and shadow, in pixels
    box = cv2.boxPoints(((float(at[0]), float(at[1])), (float(2 * half[0]), float(2 * half[1])), float(angle)))
    shape = np.zeros(target.shape, np.uint8)
    cv2.fillPoly(shape, [np.rint(box).astype(np.int32)], 1)
    inside = shape > 0
    before[inside] = np.array(ROOFS[int(rng.integers(len(ROOFS)))], np.float32) * rng.uniform(0.85, 1.1)
    target[inside] = harm
    rough = 60 + 120 * rng.random(target.shape)
    if harm == DESTROYED:
        echo[inside] = rough[inside]
        return
    moved = [np.roll(shape, shift, axis=1) for shift in (-2, height)]
    wall, shadow = (moved[0] > 0) & ~inside, (moved[1] > 0) & ~inside
    echo[inside] = 70
    kept = np.ones(target.shape, bool)
    if harm == DAMAGED:
        kept = np.indices(target.shape)[0] < at[1]  # the northern half still stands
        echo[inside & ~kept] = rough[inside & ~kept]
    echo[shadow & kept] = 8
    echo[wall & kept] = 230


def _write(path: Path, planes: np.ndarray, **place) -> None:
    count, height, width = planes.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8",
                       compress="deflate", **place) as file:  # fmt: skip
        file.write(planes)
