"""Videos on disk: a file (mp4, avi, mov, mkv) or a folder of frames, read as (F, H, W, 3) uint8 RGB.

A file is decoded from its start and only the frames asked for are converted: seeking lands on other frames with some
codecs (the DFDC winner, selimsef/dfdc_deepfake_challenge, reads with grab and retrieve too). The number of frames in a
header is believed only as far as decoding bears it out: where it is wrong, the frames are chosen anew from the true
number. Of a damaged video, what can be decoded counts as the video; one that gives no frame at all is an error.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from pydantic import Field, model_validator

from lib.competitions import suffixes
from lib.competitions.suffixes import is_picture
from lib.errors import DataError
from lib.scenes import raster
from lib.settings import Section

SUFFIXES = suffixes.VIDEOS
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")

Span = tuple[int, int]
"""First and last frame of a folder that belong to a video, by the numbers in the files' names, both included."""

Rule = Callable[[int], list[int]]
"""Number of frames -> the frames to take, ascending."""

Look = Callable[[int, np.ndarray], np.ndarray]
"""Number of a frame, from 0 on, and the frame (H, W, 3) uint8 RGB -> what of it is taken, (h, w, 3) uint8."""


class FrameSampling(Section):
    """Which frames of a video are read, by one of three rules."""

    count: int | None = Field(None, gt=0, strict=True)
    """So many, evenly spaced from the first to the last (1: the middle one; all, where there are fewer)."""
    every: int | None = Field(None, gt=0, strict=True)
    """Frames 0, n, 2n, ..."""
    per_second: float | None = Field(None, gt=0, strict=True)
    """The frames nearest to 0, 1/n, 2/n, ... seconds, each once."""

    @model_validator(mode="after")
    def _is_one_rule(self) -> "FrameSampling":
        if len(given := self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"expected one of count, every, per_second, got {' and '.join(given) or 'none'}")
        return self

    def frames(self, total: int, fps: float) -> list[int]:
        """Return the frames to take of ``total``, ascending; ``fps``: frames per second, above 0 for ``per_second``."""
        if self.count is not None:
            return spread(total, self.count)
        if self.per_second is not None:
            return ticks(total, fps / self.per_second)
        return list(range(0, total, self.every or 1))


def sample(
    path: str | Path,
    sampling: FrameSampling,
    size: int | None = None,
    span: Span | None = None,
    look: Look | None = None,
) -> np.ndarray:
    """Read some frames of a video: (F, H, W, 3) uint8 RGB, F >= 1, in order.

    size: frames whose shorter side is longer are shrunk to it; all frames get the shape of the first. span: the part of
    a folder to look at. look: takes a part of each frame before that; all get the shape of the largest. Raises
    DataError naming the file where no frame can be decoded, or where frames per second are asked of a video without a
    frame rate.
    """
    path = Path(path)
    files = _frame_files(path, span) if path.is_dir() else []
    total, fps = (len(files), 0.0) if files else _header(path)
    if sampling.per_second is not None and not fps:
        raise DataError(f"{path}: expected a frame rate to take {sampling.per_second} frames a second by, found none; "
                        "use count")  # fmt: skip

    def rule(total: int) -> list[int]:
        return sampling.frames(total, fps)

    def take(number: int, frame: np.ndarray) -> np.ndarray:
        return _shrink(look(number, frame) if look else frame, size)

    frames = _read_files(files, rule, take) if files else _read_stream(path, total, rule, take)
    if not frames:
        raise DataError(f"{path}: expected a video, got none of its frames decoded; fetch this file again")
    model = max(frames, key=lambda frame: frame.shape[0]) if look else frames[0]
    return np.stack([_resize(frame, model.shape[:2]) for frame in frames])  # (F, H, W, 3)


def probe(path: str | Path, span: Span | None = None) -> tuple[int, float, tuple[int, int]]:
    """Decode the first frame; return (frames, frames per second, (height, width)).

    The number of frames is what the header says, 0 where it is silent, and the number of files of a folder, which has
    0.0 frames per second. Raises DataError naming the file when it is missing, empty or gives no frame.
    """
    path = Path(path)
    files = _frame_files(path, span) if path.is_dir() else []
    total, fps = (len(files), 0.0) if files else _header(path)
    pictures = filter(_readable, map(_read, files)) if files else _decode(path, {0})
    first = next(iter(pictures), None)
    if first is None:
        raise DataError(f"{path}: expected a video, got none of its frames decoded; fetch this file again")
    return total, fps, first.shape[:2]


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` frames spaced evenly over 0 .. total-1, both ends included; all where there are fewer."""
    if count >= total:
        return list(range(total))
    if count == 1:
        return [(total - 1) // 2]
    return np.rint(np.linspace(0, total - 1, count)).astype(int).tolist()  # over one frame apart, so distinct


def ticks(total: int, step: float) -> list[int]:
    """Return the frames of 0 .. total-1 nearest to 0, step, 2 * step, ..., each once; halves go up."""
    nearest = np.floor(np.arange(int(total / step) + 1) * step + 0.5).astype(int)
    return np.unique(nearest[nearest < total]).tolist()


def is_video(path: Path) -> bool:
    """Tell by names whether a path is a video: a file of SUFFIXES, or a folder that holds a frame or nothing at all.

    An empty folder stands for a video whose frames are not there: it cannot be read, and is owed an answer.
    """
    if path.name.startswith("."):
        return False
    if not path.is_dir():
        return path.suffix.lower() in SUFFIXES
    inside = list(path.iterdir())
    return not inside or any(map(_is_frame, inside))


def _resize(frame: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bring a frame to (height, width); one that has it already is returned as it is."""
    if frame.shape[:2] == shape:
        return frame
    interpolation = cv2.INTER_AREA if shape[0] < frame.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(frame, shape[::-1], interpolation=interpolation)


def _shrink(frame: np.ndarray, size: int | None) -> np.ndarray:
    """Shrink a frame until its shorter side is ``size``."""
    height, width = frame.shape[:2]
    if size is None or min(height, width) <= size:
        return frame
    scale = size / min(height, width)
    return _resize(frame, (round(height * scale), round(width * scale)))


# ---- files --------------------------------------------------------------------------------------------
def _read_stream(path: Path, total: int, rule: Rule, take: Look) -> list[np.ndarray]:
    """Decode what ``rule`` takes of ``total`` frames; once more from the true number, if that is another."""
    while True:
        wanted, real, frames = set(rule(total)), 0, []
        for frame in _decode(path, wanted):
            if frame is not None:
                frames.append(take(real, frame))
            real += 1
        if real in (0, total):
            return frames
        total = real


def _decode(path: Path, wanted: set[int]) -> Iterator[np.ndarray | None]:
    """Yield every frame of a file in order: (H, W, 3) uint8 RGB if ``wanted``, else None; end where decoding ends."""
    stream = _open(path)
    try:
        frame = 0
        while stream.grab():
            picture = None
            if frame in wanted:
                decoded, picture = stream.retrieve()  # (H, W, 3) BGR
                if not decoded:
                    return
                picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            yield picture
            frame += 1
    finally:
        stream.release()


def _header(path: Path) -> tuple[int, float]:
    """Return frames and frames per second as the header states them, 0 where it does not."""
    stream = _open(path)
    frames, fps = stream.get(cv2.CAP_PROP_FRAME_COUNT), stream.get(cv2.CAP_PROP_FPS)
    stream.release()
    return int(frames) if 0 < frames < 2**31 else 0, fps if 0 < fps < 1e4 else 0.0


def _open(path: Path) -> cv2.VideoCapture:
    """Open a file for decoding, on one thread. Raises DataError where it is missing, empty or no video."""
    if not path.is_file():
        raise DataError(f"{path}: expected a video file or a folder of frames, found none")
    if not path.stat().st_size:
        raise DataError(f"{path}: expected a video, got an empty file; fetch this file again")
    stream = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not stream.isOpened():
        raise DataError(f"{path}: expected a video, got a file that cannot be opened; fetch this file again")
    return stream


# ---- folders ------------------------------------------------------------------------------------------
def _read_files(files: list[Path], rule: Rule, take: Look) -> list[np.ndarray]:
    """Read what ``rule`` takes of the files; where one of these cannot be read, of those that can."""
    frames = [_read(files[number]) for number in rule(len(files))]
    if not all(map(_readable, frames)):
        files = [file for file in files if _readable(_read(file))]
        frames = [_read(files[number]) for number in rule(len(files))]
    return [take(number, frame) for number, frame in zip(rule(len(files)), frames) if frame is not None]


def _read(file: Path) -> np.ndarray | None:
    try:
        return raster.read_image(file)
    except DataError:
        return None


def _readable(frame: np.ndarray | None) -> bool:
    return frame is not None


def _frame_files(folder: Path, span: Span | None) -> list[Path]:
    """List the frames of a folder in the order of the numbers in their names. Raises DataError where there is none."""
    files = sorted(filter(_is_frame, folder.iterdir()), key=_numbers)
    if span:
        files = [file for file in files if span[0] <= int((re.findall(r"\d+", file.stem) or [-1])[-1]) <= span[1]]
    if not files:
        within = f" numbered {span[0]} to {span[1]}" if span else ""
        raise DataError(f"{folder}: expected frames ({', '.join(FRAME_SUFFIXES)}){within}, found none")
    return files


def numbered_sizes(folder: Path, span: Span | None = None) -> tuple[set[tuple[int, int]], int]:
    """Return the sizes (height, width) of the frames of a folder that have a header, and the number of the last frame,
    0 without one. Raises DataError where there is no frame."""
    files = _frame_files(folder, span)
    sizes = {(height, width) for height, width in map(raster.stated_size, files) if height and width}
    return sizes, int((re.findall(r"\d+", files[-1].stem) or ["0"])[-1])


def _numbers(file: Path) -> list:
    """Split a name into texts and numbers, so that frame 10 comes after frame 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.stem)]


def _is_frame(path: Path) -> bool:
    return is_picture(path, FRAME_SUFFIXES)
