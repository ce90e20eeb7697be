"""Animals in the wild, as PASCAL VOC ships pictures: JPEGs, palette PNGs with an ignored outline, lists of ids.

Six animals and the background. An animal is a body, head, legs and tail, its class is told by the coat alone: spots
(cheetah), plain sand with a mane (lion), grey with a light belly (wolf), dark stripes on orange (tiger), grey-brown
with dark blots (hyena), red with a white tip of the tail (fox). Pictures are frames of short videos, ``<place><video>_
<frame>``, from two places that look different. Hard things in it: a frame without an animal, a grey JPEG, videos of
odd size, and a video that lies in both train.txt and val.txt, as CamVid's do.

To be read with::

    classes: [background, cheetah, lion, wolf, tiger, hyena, fox]
    group: '^[a-z]+\\d+'
    domain: '^[a-z]+'
"""

from pathlib import Path

import cv2
import numpy as np
import rasterio

from lib.competitions.voc.competition import palette
from lib.tasks import IGNORE

CLASSES = ("background", "cheetah", "lion", "wolf", "tiger", "hyena", "fox")
FRAMES = 3
"""Frames of a video."""
HERDS = ((1, 2, 3), (4, 5, 6), (1, 3, 5), (2, 4, 6))
"""Classes of a video's animals, in turn: the first two hold all of them, and so do the last two."""
PLACES = {
    "savanna": np.array([(196, 172, 112), (168, 142, 84), (146, 134, 78), (212, 196, 150)], np.float32),
    "forest": np.array([(70, 96, 54), (46, 72, 40), (94, 106, 66), (112, 98, 70)], np.float32),
}
"""Colours of the ground."""
COATS = {
    1: ((214, 170, 92), (58, 42, 28)), 2: ((206, 164, 106), (116, 72, 38)), 3: ((132, 134, 138), (206, 206, 200)),
    4: ((226, 122, 38), (32, 24, 20)), 5: ((150, 132, 108), (64, 52, 44)), 6: ((190, 78, 34), (238, 232, 224)),
}  # fmt: skip
"""Class -> colour of the fur and of its marks."""
OUTLINE = 3
"""Width in pixels of the ignored seam between classes."""


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write ``scenes`` labelled and ``test_scenes`` unlabelled pictures of about ``size`` pixels into ``root``."""
    folders = {name: root / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    labelled = _ids(scenes, first_video=0)
    for number, frame, scene_id in [*labelled, *_ids(test_scenes, first_video=50)]:
        picture, mask = _draw(number, frame, size, seed)
        stored = picture[..., ::-1] if picture.ndim == 3 else picture
        cv2.imwrite(str(folders["JPEGImages"] / f"{scene_id}.jpg"), stored, [cv2.IMWRITE_JPEG_QUALITY, 92])
        if number < 50:
            _write_palette_png(folders["SegmentationClass"] / f"{scene_id}.png", mask)
    last = labelled[-1][0] if labelled else 0
    # the last frame of the first video is in val, like the whole last video
    val = [i for video, frame, i in labelled if video == last or (video == 0 and frame == FRAMES - 1)]
    ids = [scene_id for _, _, scene_id in labelled]
    lists = {"train": [i for i in ids if i not in val], "val": val, "trainval": ids}
    for name, members in (lists | {"test": [i for _, _, i in _ids(test_scenes, first_video=50)]}).items():
        text = "".join(f"{scene_id}\n" for scene_id in members)
        (folders["ImageSets/Segmentation"] / f"{name}.txt").write_text(text, encoding="utf-8")


def _ids(count: int, first_video: int) -> list[tuple[int, int, str]]:
    """Return (video, frame, id) of ``count`` pictures, videos in turn from both places."""
    named = []
    for ordinal in range(count):
        video, frame = first_video + ordinal // FRAMES, ordinal % FRAMES
        named.append((video, frame, f"{list(PLACES)[video % len(PLACES)]}{video:02d}_{frame:03d}"))
    return named


def _draw(video: int, frame: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a frame: (H, W, 3) or grey (H, W) uint8, and its mask (H, W) uint8 with the outline ignored."""
    rng = np.random.default_rng([seed, video])  # of the video: its frames share the ground and the animals
    height, width = (size, size) if video % 2 == 0 else (size * 3 // 4 - 1, size)
    picture = _ground(rng, PLACES[list(PLACES)[video % len(PLACES)]], height, width)
    mask = np.zeros((height, width), np.uint8)
    animals = [] if video == 0 and frame == 1 else HERDS[video % len(HERDS)]
    for place, index in enumerate(animals):
        length = rng.uniform(0.13, 0.17) * width
        x = (place + rng.uniform(0.35, 0.65)) * width / 3 + rng.choice([-0.03, 0.03]) * frame * width
        y = rng.uniform(0.35, 0.65) * height
        _animal(rng, picture, mask, index, (x, y), length, rng.choice([-1, 1]))
    noisy = picture + 3 * np.random.default_rng([seed, video, frame]).standard_normal(picture.shape, np.float32)
    picture = np.clip(noisy, 0, 255).astype(np.uint8)
    seam = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((OUTLINE, OUTLINE), np.uint8)) > 0
    if video == 2 and frame == FRAMES - 1:  # the camera went over to infrared
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return picture, np.where(seam, np.uint8(IGNORE), mask)


def _animal(
    rng: np.random.Generator, picture: np.ndarray, mask: np.ndarray, index: int, at: tuple[float, float], length: float,
    ahead: int | np.integer,
) -> None:  # fmt: skip
    """Draw one animal of ``length`` half its body into picture and mask; ``ahead``: 1 looks right, -1 left."""

    def ellipse(canvas: np.ndarray, x: float, y: float, a: float, b: float, angle: float = 0.0) -> None:
        """Fill an ellipse given in lengths from the middle of the body."""
        centre = round(at[0] + ahead * x * length), round(at[1] + y * length)
        axes = max(1, round(a * length)), max(1, round(b * length))
        cv2.ellipse(canvas, centre, axes, ahead * angle, 0, 360, 255, -1)

    body, marks = np.zeros_like(mask), np.zeros_like(mask)
    for x, y, a, b, angle in ((0, 0, 1, 0.46, 0), (1.05, -0.45, 0.36, 0.3, 20), (-1.15, -0.15, 0.42, 0.1, 35),
                              (-0.7, 0.62, 0.13, 0.5, 8), (-0.4, 0.62, 0.13, 0.5, -8), (0.45, 0.62, 0.13, 0.5, 8),
                              (0.75, 0.62, 0.13, 0.5, -8)):  # fmt: skip
        ellipse(body, x, y, a, b, angle)
    if index == 1:
        for x, y in rng.uniform((-0.95, -0.4), (0.95, 0.4), (34, 2)):
            ellipse(marks, x, y, 0.06, 0.06)
    elif index == 2:
        ellipse(body, 0.9, -0.4, 0.5, 0.5)
        ellipse(marks, 0.9, -0.4, 0.5, 0.5)
        ellipse(marks, -1.5, -0.4, 0.12, 0.12)
    elif index == 3:
        ellipse(marks, 0, 0.3, 0.85, 0.16)
    elif index == 4:
        for x in np.arange(-0.9, 1.0, 0.22):
            ellipse(marks, x, 0, 0.05, 0.5, rng.uniform(-14, 14))
    elif index == 5:
        for x, y in rng.uniform((-0.9, -0.4), (0.7, 0.35), (9, 2)):
            ellipse(marks, x, y, rng.uniform(0.1, 0.18), 0.1, rng.uniform(-30, 30))
    else:
        ellipse(marks, -1.45, -0.35, 0.16, 0.13)
        ellipse(marks, 1.2, -0.3, 0.2, 0.14)
    fur, mark = (np.array(colour, np.float32) for colour in COATS[index])
    light = 1 + 0.1 * rng.standard_normal() + 0.05 * rng.standard_normal(mask.shape, np.float32)[..., None]
    inside = cv2.GaussianBlur(body, (0, 0), 0.7)[..., None] / np.float32(255)
    marked = cv2.GaussianBlur(marks, (0, 0), 0.7)[..., None] / np.float32(255)
    picture[:] = picture * (1 - inside) + (fur + (mark - fur) * marked) * light * inside
    mask[body > 0] = index


def _ground(rng: np.random.Generator, colours: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw ground and sky: (H, W, 3) float32, patches of the colours with grass on them."""
    field = np.zeros((height, width), np.float32)
    for scale in (48, 16, 4):
        small = rng.standard_normal((height // scale + 2, width // scale + 2), np.float32)
        field += scale**0.5 / 8 * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    place = (field - field.min()) / max(float(np.ptp(field)), 1e-6) * (len(colours) - 1)  # (H, W)
    steps = np.arange(len(colours))
    ground = np.stack([np.interp(place, steps, band) for band in colours.T], axis=-1).astype(np.float32)
    sky = np.clip((0.16 * height - np.arange(height, dtype=np.float32)[:, None, None]) / 3, 0, 1)
    return ground * (1 - sky) + np.array((170, 196, 222), np.float32) * sky


def _write_palette_png(path: Path, mask: np.ndarray) -> None:
    height, width = mask.shape
    with rasterio.open(path, "w", driver="PNG", width=width, height=height, count=1, dtype="uint8") as file:
        file.write_colormap(1, {index: (*map(int, colour), 255) for index, colour in enumerate(palette())})
        file.write(mask, 1)
