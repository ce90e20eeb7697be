"""Draw slices of scans with three organs, two of which may overlap, laid out and named as UW-Madison's GI tract.

``write`` lays them out as ``train/case101/case101_day20/scans/slice_0001_*.png`` with a row per slice and class, whose
runs go along the rows; ``write_flat`` as Severstal did: one folder, ids with a suffix, runs down the columns, rows only
for classes that are there.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from lib.competitions.synthetic import write_csv
from lib.scenes import rle
from lib.scenes.raster import write_png

CLASSES = ("large_bowel", "small_bowel", "stomach")
BRIGHTNESS = (90, 135, 190)
SLICES = 4
"""Slices of a stack: one day of one case."""


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write the set into the existing folder ``root``; four slices are a stack, two stacks a case."""
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for split, count in (("train", scenes), ("test", test_scenes)):
        for case, day, number, image, masks in _drawn(split, count, size, seed):
            folder = Path(root) / split / f"case{case}" / f"case{case}_day{day}" / "scans"
            folder.mkdir(parents=True, exist_ok=True)
            height, width = image.shape
            write_png(folder / f"slice_{number:04d}_{width}_{height}_1.50_1.50.png", image)
            scene_id = f"case{case}_day{day}_slice_{number:04d}"
            rows[split] += [
                (scene_id, name, rle.encode(mask, "row")) for name, mask in zip(CLASSES, masks, strict=True)
            ]
    write_csv(Path(root) / "train.csv", [("id", "class", "segmentation"), *rows["train"]])
    sample = [(scene_id, name, "") for scene_id, name, _ in reversed(rows["test"])]  # in an order of its own
    write_csv(Path(root) / "sample_submission.csv", [("id", "class", "predicted"), *sample])


def write_flat(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write the same slices into the existing folder ``root``, laid out and named as Severstal."""
    rows = []
    for split, count in (("train", scenes), ("test", test_scenes)):
        folder = Path(root) / f"{split}_images"
        folder.mkdir()
        for case, day, number, image, masks in _drawn(split, count, size, seed):
            scene_id = f"{zlib.crc32(f'{case} {day} {number}'.encode()):08x}.png"
            write_png(folder / scene_id, image)
            if split == "train":
                rows += [(scene_id, str(k), rle.encode(mask)) for k, mask in enumerate(masks, 1) if mask.any()]
    write_csv(Path(root) / "train.csv", [("ImageId", "ClassId", "EncodedPixels"), *rows])


def _drawn(split: str, count: int, size: int, seed: int) -> Iterator[tuple[int, int, int, np.ndarray, np.ndarray]]:
    """Yield (case, day, slice, image (H, W) uint8, masks (3, H, W) uint8); slice k does not depend on their number."""
    height, width = size, round(1.15 * size)
    for ordinal in range(count):
        stack, number = divmod(ordinal, SLICES)
        case, day = 101 + stack // 2 + (100 if split == "test" else 0), (0, 20)[stack % 2]
        organs = np.random.default_rng([seed, case, day])  # an organ changes little from slice to slice
        rng = np.random.default_rng([seed, case, day, number])
        masks = np.zeros((len(CLASSES), height, width), np.uint8)
        for index, mask in enumerate(masks):
            x, y = organs.uniform(0.2, 0.8) * width, organs.uniform(0.2, 0.8) * height
            radius = organs.uniform(0.12, 0.2) * size * (1 - 0.1 * number)
            for part in range(2 if index == 1 else 1):
                centre = round(x + 1.6 * part * radius), round(y)
                axes = max(2, round(radius)), max(2, round(0.75 * radius))
                cv2.ellipse(mask, centre, axes, 30 * index, 0, 360, 1, cv2.FILLED)
        if number == SLICES - 1:  # the last slice of a stack lies outside of the body
            masks[:] = 0
        elif number == 0:
            masks[2] = 0
        image: np.ndarray = np.full((height, width), 40, np.float32)
        for mask, brightness in zip(masks, BRIGHTNESS, strict=True):
            image[mask > 0] = brightness
        image = cv2.GaussianBlur(image, (0, 0), 0.8) + rng.normal(0, 7, image.shape)
        yield case, day, number + 1, np.clip(np.rint(image), 0, 255).astype(np.uint8), masks
