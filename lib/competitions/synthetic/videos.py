"""Draw short videos of faces, live or re-captured from a screen, in the layout of Zalo's liveness challenge.

``train/videos`` (mp4, avi and folders of frames), ``train/label.csv`` (fname, liveness_score, person, domain, split),
``public_test/videos`` and ``sample_submission.csv``, whose rows are not sorted. A person has live and fake videos, and
the split as shipped has some persons on both sides. A face moves and blinks in front of a soft background with sensor
noise; a fake is the same kind of video shown on a screen and filmed again: a dark frame around it, a moiré of fine
stripes that drifts, a blue cast, and the blocks of one more JPEG. Two phones differ in exposure.

Pictures are (H, W, 3) uint8 RGB, fields float32 in 0..255; lengths are shares of the frame's width.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lib.competitions.synthetic import write_csv
from lib.scenes.raster import write_png

FPS = 12.0
FRAMES = (12, 24)
"""Shortest and longest video."""
PER_PERSON = 3
"""Videos of a person: live, fake, live, or fake, live, fake."""
SUFFIXES = (".mp4", ".avi", ".mp4", "", ".mp4", ".avi", ".mp4")
"""An odd number of them, so that the container does not give the label away; "" is a folder of frames."""
PHONES = {"phone_a": 1.0, "phone_b": 0.8}
"""Domain -> exposure."""
TEST = 1_000_003
"""Where the numbering of test videos starts in the random streams."""


def write(root: Path, *, scenes: int, test_scenes: int, size: int, seed: int, corrupt_test: bool = False) -> None:
    """Write the set into the existing folder ``root``; video k does not depend on how many there are.

    size: width of a frame, which is a quarter higher, both rounded to whole blocks of 16. corrupt_test: cut the last
    test video off in the middle, so that it cannot be opened.
    """
    train, test = root / "train" / "videos", root / "public_test" / "videos"
    train.mkdir(parents=True)
    test.mkdir(parents=True)
    rows: list[Sequence] = [("fname", "liveness_score", "person", "domain", "split")]
    for k in range(scenes):
        live = k % 2 == 0
        suffix = SUFFIXES[k % len(SUFFIXES)]
        domain = list(PHONES)[k // PER_PERSON % len(PHONES)]
        frames = _draw(person=k // PER_PERSON, live=live, domain=domain, size=size, seed=(seed, k))
        _write(train / f"{k:03d}{suffix}", frames)
        split = "val" if k % 5 == 4 else "train"
        rows.append((f"{k:03d}{suffix}", int(live), f"person_{k // PER_PERSON:02d}", domain, split))
    write_csv(root / "train" / "label.csv", rows)
    names = [f"{k:03d}.mp4" for k in range(test_scenes)]
    for k, name in enumerate(names):  # persons of the training set, as in the real test set
        domain = list(PHONES)[k % len(PHONES)]
        _write(test / name, _draw(person=k, live=k % 2 == 1, domain=domain, size=size, seed=(seed, TEST + k)))
    if corrupt_test:
        data = (test / names[-1]).read_bytes()
        (test / names[-1]).write_bytes(data[: len(data) // 2])
    write_csv(root / "sample_submission.csv", [("fname", "liveness_score"), *((name, 0.5) for name in names[::-1])])


def _draw(*, person: int, live: bool, domain: str, size: int, seed: tuple[int, int]) -> list[np.ndarray]:
    """Draw one video: a list of (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    width = max(size // 16, 2) * 16
    height = max(width * 5 // 64, 2) * 16
    looks = np.random.default_rng((seed[0], 7, person))  # the same in all videos of a person
    skin = looks.uniform((150, 100, 80), (235, 190, 170))
    hair, eyes, girth = looks.uniform(20, 120, 3), looks.uniform(20, 90, 3), looks.uniform(0.2, 0.26)
    backdrop = cv2.resize(rng.uniform(60, 200, (3, 3, 3)).astype(np.float32), (width, height))
    start, speed = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.15, 0.35, 2)
    screen = _screen(rng, height, width)
    frames = []
    for t in range(int(rng.integers(FRAMES[0], FRAMES[1] + 1))):
        sway = 0.05 * np.sin(start + speed * t)
        frame = _face(backdrop.copy(), (0.5 + sway[0], 0.6 + sway[1]), girth, skin, hair, eyes, blink=t % 9 == 8)
        frame = frame * PHONES[domain] + rng.normal(0, 4, frame.shape)  # (H, W, 3)
        frames.append(_clip(frame if live else _recapture(frame, screen, t)))
    return frames


def _face(
    frame: np.ndarray, centre: tuple[float, float], girth: float, skin: np.ndarray, hair: np.ndarray, eyes: np.ndarray,
    blink: bool,
) -> np.ndarray:  # fmt: skip
    """Paint a head at ``centre`` into (H, W, 3) float32, then soften it a little."""
    width = frame.shape[1]

    def blob(x: float, y: float, rx: float, ry: float, colour: np.ndarray) -> None:
        place = (round((centre[0] + x) * width), round((centre[1] + y) * width))
        axes = (max(round(rx * width), 1), max(round(ry * width), 1))
        cv2.ellipse(frame, place, axes, 0, 0, 360, tuple(map(float, colour)), -1, cv2.LINE_AA)

    blob(0, -0.08, girth * 1.12, girth * 1.35, hair)
    blob(0, 0, girth, girth * 1.3, skin)
    for side in (-1, 1):
        blob(side * girth * 0.42, -0.06, 0.04, 0.006 if blink else 0.025, np.full(3, 240.0))
        blob(side * girth * 0.42, -0.06, 0.016, 0.004 if blink else 0.02, eyes)
    blob(0, 0.03, 0.02, 0.035, skin * 0.85)
    blob(0, 0.14, 0.07, 0.018, np.array([170.0, 70.0, 80.0]))
    return cv2.GaussianBlur(frame, (0, 0), width / 160)


def _screen(rng: np.random.Generator, height: int, width: int) -> dict[str, np.ndarray | float]:
    """Draw what re-capturing does to every frame of a video: the stripes' waves, the picture's border and tilt."""
    angle, period = rng.uniform(0.2, 1.3), rng.uniform(4, 6)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)  # (H, W)
    shrink = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-3, 3), rng.uniform(0.8, 0.92))
    return {"phase": phase, "drift": rng.uniform(0.2, 1.0), "place": shrink}


def _recapture(frame: np.ndarray, screen: dict, t: int) -> np.ndarray:
    """Show a frame on a screen and film that: (H, W, 3) float -> (H, W, 3) float."""
    height, width = frame.shape[:2]
    stripes = np.sin(screen["phase"] + screen["drift"] * t)[..., None] * (14, 10, 16)  # (H, W, 3)
    shown = frame * (0.88, 0.95, 1.06) + stripes
    filmed = cv2.warpAffine(_clip(shown), screen["place"], (width, height), borderValue=(18, 18, 22))
    _, packed = cv2.imencode(".jpg", filmed, [cv2.IMWRITE_JPEG_QUALITY, 55])  # three channels, whatever their order
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.float32)


def _clip(frame: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def _write(path: Path, frames: list[np.ndarray]) -> None:
    """Write frames as mp4 (mp4v), avi (MJPG), or, without a suffix, as a folder of PNGs."""
    if not path.suffix:
        path.mkdir()
        for number, frame in enumerate(frames, 1):
            write_png(path / f"{number}.png", frame)  # 10.png sorts before 2.png as text
        return
    code = cv2.VideoWriter.fourcc(*{".mp4": "mp4v", ".avi": "MJPG"}[path.suffix])
    stream = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, FPS, frames[0].shape[1::-1])
    for frame in frames:
        stream.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    stream.release()
