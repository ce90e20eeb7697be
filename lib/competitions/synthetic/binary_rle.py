"""Draw microscopy-like images with one class of objects: two stains, touching discs, every kind of file.

``write`` lays them out as HuBMAP 2022 did (train_images, train.csv with runs), ``write_nested`` as DSB 2018 (a folder
per image, one mask per object). Images are (H, W, 3) uint8 RGB, label maps (H, W) int32 with 1, 2 ... the objects.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio

from lib.competitions.synthetic import write_csv
from lib.scenes import rle
from lib.scenes.raster import write_png

FIRST_IDS = ("0001", "1e5", "007f3a")
"""Ids that a careless reader turns into numbers; the others are counted."""
SHAPES = ((1.0, 1.0), (0.78, 1.0), (0.7, 1.17), (1.0, 0.9))
"""(height, width) of an image as shares of the size asked for."""
COLUMNS = ("id", "patient", "organ", "data_source", "img_height", "img_width", "pixel_size", "rle")


@dataclass(frozen=True)
class Stain:
    """One way of making tissue visible. ``radius``: of its objects at size 256, in pixels."""

    organ: str
    source: str
    pixel_size: float
    ground: tuple[int, int, int]
    object: tuple[int, int, int]
    noise: float
    radius: tuple[float, float]
    suffix: str


STAINS = (
    Stain("kidney", "HPA", 0.4, (228, 206, 222), (112, 62, 138), 9.0, (9, 17), "tiff"),
    Stain("spleen", "Hubmap", 0.494, (14, 14, 16), (150, 152, 150), 6.0, (7, 13), "png"),
)


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write the set into the existing folder ``root``, laid out and named as HuBMAP 2022."""
    root = Path(root)
    rows: dict[str, list[tuple]] = {"train": [], "test": []}
    for split, count in (("train", scenes), ("test", test_scenes)):
        folder = root / f"{split}_images"
        folder.mkdir()
        for scene_id, ordinal, image, labels in _drawn(split, count, size, seed):
            stain = STAINS[ordinal % 2]
            _write_image(folder, scene_id, ordinal, image)
            patient = f"{stain.organ}-{ordinal // 4}"
            facts = scene_id, patient, stain.organ, stain.source, *labels.shape, stain.pixel_size
            rows[split].append((*facts, rle.encode(labels)) if split == "train" else facts)
    write_csv(root / "train.csv", [COLUMNS, *rows["train"]])
    write_csv(root / "test.csv", [COLUMNS[:-1], *rows["test"]])
    write_csv(root / "sample_submission.csv", [("id", "rle"), *((row[0], "") for row in rows["test"])])


def write_nested(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write the same images into the existing folder ``root``, laid out and named as DSB 2018, RGBA throughout."""
    for split, count in (("train", scenes), ("test", test_scenes)):
        for scene_id, _, image, labels in _drawn(split, count, size, seed):
            folder = Path(root) / f"stage1_{split}" / scene_id
            (folder / "images").mkdir(parents=True)
            _write_rgba(folder / "images" / f"{scene_id}.png", image)
            if split == "train":
                (folder / "masks").mkdir()
                for number in range(1, labels.max() + 1):
                    name = f"{zlib.crc32(f'{scene_id} {number}'.encode()):08x}{number:03d}.png"
                    write_png(folder / "masks" / name, np.where(labels == number, np.uint8(255), np.uint8(0)))


def _drawn(split: str, count: int, size: int, seed: int) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Yield (id, ordinal, image, label map); scene k does not depend on how many there are."""
    for ordinal in range(count):
        if split == "train":
            scene_id = FIRST_IDS[ordinal] if ordinal < len(FIRST_IDS) else f"{ordinal + 1:04d}"
        else:
            scene_id = "2e3" if ordinal == 0 else f"9{ordinal:03d}"
        rng = np.random.default_rng([seed, zlib.crc32(f"{split} {scene_id}".encode())])
        height, width = (round(size * share) for share in SHAPES[ordinal // 2 % len(SHAPES)])
        labels = np.zeros((height, width), np.int32)
        if ordinal % 5 != 3:  # every fifth image is empty
            labels = _objects(rng, (height, width), STAINS[ordinal % 2].radius, size / 256)
        yield scene_id, ordinal, _picture(rng, labels, STAINS[ordinal % 2], ordinal), labels


def _objects(rng: np.random.Generator, shape: tuple[int, int], radius: tuple[float, float], scale: float) -> np.ndarray:
    """Place ellipses, most alone and some in touching pairs; the first two are cut by the top and the bottom."""
    height, width = shape
    rows, columns = np.ogrid[:height, :width]
    labels = np.zeros(shape, np.int32)
    free = np.ones(shape, np.uint8)  # where no object is, nor comes near one
    count = 0
    for attempt in range(round(14 * height * width / 256**2 / scale**2)):
        r = scale * rng.uniform(*radius)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if attempt < 2:
            y = (0.3 * r, height - 0.3 * r)[attempt]
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.85, 1.0)
        pair = attempt >= 2 and attempt % 3 == 0
        step = 1.8 * r * np.array([np.cos(angle), np.sin(angle)])
        centres = [(round(x), round(y)), (round(x + step[0]), round(y + step[1]))][: 2 if pair else 1]
        axes = (max(2, round(r)), max(2, round(r * (1.0 if pair else stretch))))
        discs = np.zeros((len(centres), *shape), np.uint8)
        for disc, centre in zip(discs, centres):
            cv2.ellipse(disc, centre, axes, float(np.degrees(angle)), 0, 360, 1, cv2.FILLED)
        together = np.any(discs, axis=0)
        if not together.any() or not free[together].all():
            continue
        distances = [(columns - cx) ** 2 + (rows - cy) ** 2 for cx, cy in centres]
        nearest = np.argmin(distances, axis=0)  # where two overlap, they part half way
        for k in range(len(centres)):
            mine = together & (nearest == k)
            if mine.any():
                count += 1
                labels[mine] = count
        margin = np.ones((2 * round(4 * scale) + 1,) * 2, np.uint8)
        free[cv2.dilate(together.astype(np.uint8), margin) > 0] = 0
    return labels


def _picture(rng: np.random.Generator, labels: np.ndarray, stain: Stain, ordinal: int) -> np.ndarray:
    """Draw what the microscope shows: uneven ground, objects brighter or darker than it, a blur and noise."""
    shape = labels.shape
    uneven = cv2.resize(rng.normal(0, 1, (5, 5)).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)
    picture = np.empty((*shape, 3), np.float32)
    picture[:] = np.array(stain.ground, np.float32) * (1 + 0.06 * uneven[..., None])
    gain = rng.uniform(0.75, 1.15, labels.max() + 1).astype(np.float32)[labels]
    inside = labels > 0
    picture[inside] = np.array(stain.object, np.float32) * gain[inside, None]
    edge = inside & (cv2.erode(labels.astype(np.float32), np.ones((3, 3))) != labels)
    picture[edge] = 0.6 * picture[edge] + 0.4 * np.array(stain.ground, np.float32)  # rims are thin: touching ones part
    picture = cv2.GaussianBlur(picture, (0, 0), 0.7).astype(np.float32, copy=False)
    picture += rng.normal(0, stain.noise, shape)[..., None] if ordinal % 2 else rng.normal(0, stain.noise, (*shape, 3))
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return np.repeat(picture[..., 1:2], 3, axis=2) if ordinal % 2 else picture  # fluorescence is grey


def _write_image(folder: Path, scene_id: str, ordinal: int, image: np.ndarray) -> None:
    """Write TIFF for one stain and PNG for the other, and for some scenes RGBA, one grey band or JPEG instead."""
    if ordinal % 6 == 2:
        _write_rgba(folder / f"{scene_id}.png", image)
    elif ordinal % 6 == 4:
        (folder / f"{scene_id}.jpg").write_bytes(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())
    elif ordinal % 4 == 1:
        write_png(folder / f"{scene_id}.png", image[..., 0])
    elif STAINS[ordinal % 2].suffix == "png":
        write_png(folder / f"{scene_id}.png", image)
    else:
        height, width = image.shape[:2]
        with rasterio.open(
            folder / f"{scene_id}.tiff", "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8",
            photometric="RGB", compress="deflate",
        ) as file:  # fmt: skip
            file.write(image.transpose(2, 0, 1))


def _write_rgba(path: Path, image: np.ndarray) -> None:
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    path.write_bytes(cv2.imencode(".png", np.concatenate([image[..., ::-1], alpha], axis=2))[1].tobytes())
