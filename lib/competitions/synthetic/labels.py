"""Draw small pictures of four classes, told apart by their texture, as PNG or JPEG with a table of labels.

``train/`` and ``train.csv`` (id, label, group, domain, split), ``test/`` and ``sample_submission.csv``, whose rows are
not sorted. The classes are blots, checks, rings and stripes; colour, size and place say nothing. Two pictures in turn
are a group: the same object seen twice, which the split as shipped has torn apart once. Hard things in it: odd sizes
and proportions, a grey PNG, one with an alpha channel, JPEGs, and two domains, of which one is darker.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lib.competitions.synthetic import write_csv

CLASSES = ("blots", "checks", "rings", "stripes")
SHAPES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.6), (0.83, 0.91))
"""Height and width of pictures in turn, as shares of ``size``."""
DOMAINS = {"day": 1.0, "dusk": 0.6}
"""Domain -> exposure."""
TEST = 1_000_003
"""Where the numbering of test pictures starts in the random streams."""


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int) -> None:
    """Write ``scenes`` labelled and ``test_scenes`` unlabelled pictures of about ``size`` pixels into ``root``."""
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    rows: list[Sequence[str]] = [("id", "label", "group", "domain", "split")]
    for k in range(scenes):
        group, domain = k // 2, list(DOMAINS)[k // 8 % len(DOMAINS)]
        label = group % len(CLASSES)
        picture = _draw(label, SHAPES[k % len(SHAPES)], size, DOMAINS[domain], (seed, group), (seed, group, k))
        _write(root / "train" / f"{k:03d}", picture, k)
        rows.append((f"{k:03d}", CLASSES[label], f"object_{group:02d}", domain, "val" if k % 7 == 5 else "train"))
    write_csv(root / "train.csv", rows)
    names = [f"{TEST + k}" for k in range(test_scenes)]
    for k, name in enumerate(names):
        picture = _draw(k % len(CLASSES), SHAPES[k % len(SHAPES)], size, 1.0, (seed, TEST + k), (seed, TEST + k, k))
        _write(root / "test" / name, picture, k)
    write_csv(root / "sample_submission.csv", [("id", "label"), *((name, CLASSES[0]) for name in names[::-1])])


def _draw(
    label: int, shape: tuple[float, float], size: int, light: float, thing: tuple[int, ...], view: tuple[int, ...]
) -> np.ndarray:  # fmt: skip
    """Draw one picture, (H, W, 3) uint8; ``thing`` and ``view`` seed what is seen and how it is seen."""
    looks, rng = np.random.default_rng(thing), np.random.default_rng(view)
    height, width = (max(8, round(side * size)) for side in shape)
    period, angle = looks.uniform(0.11, 0.16) * size, rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32) - rng.uniform(0, period)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    turns = 2 * np.pi / period
    if CLASSES[label] == "blots":
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), period / 4)
        wave = noise / noise.std() * 1.5
    elif CLASSES[label] == "checks":
        wave = 3 * np.sin(u * turns) * np.sin(v * turns)
    elif CLASSES[label] == "rings":
        wave = 2 * np.sin(np.hypot(x - width / 2, y - height / 2) * turns)
    else:
        wave = 2 * np.sin(u * turns)
    share = 1 / (1 + np.exp(-2 * wave))[..., None]  # (H, W, 1)
    dark, bright = looks.uniform(20, 110, 3), looks.uniform(140, 240, 3)
    field = (dark + (bright - dark) * share) * light + rng.normal(0, 5, (height, width, 3))  # (H, W, 3)
    return np.clip(np.rint(field), 0, 255).astype(np.uint8)


def _write(path: Path, picture: np.ndarray, k: int) -> None:
    """Write a picture under ``path`` and a suffix: every third as JPEG, the rest as PNG, of which one in eight is grey
    and one in eight has an alpha channel."""
    bgr = picture[..., ::-1]
    if k % 3 == 2:
        cv2.imwrite(f"{path}.jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
        return
    if k % 8 == 3:
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    elif k % 8 == 4:
        bgr = np.dstack([bgr, np.full(picture.shape[:2], 200, np.uint8)])
    cv2.imwrite(f"{path}.png", bgr)
