"""What of a frame is looked at: a box around the face, from a table or from a detector, its proportions kept.

A table has the columns id, x0, y0, x1, y1 and, where boxes move, frame: pixels of the frame as the video has it, x1 and
y1 just outside, frames counted from 0. An id is a video's path below ``data.root`` or, where that is no other video's,
its id. A row without a frame is for all frames of the video that have no row; a frame between rows has the box of the
nearest frame. A video that no row is about is looked at whole.

The detector is YuNet (Wu, Peng, Yu 2023, https://github.com/opencv/opencv_zoo), whose ONNX file is not part of this
project; OpenCV runs it. It looks at the frames that are sampled and takes the largest face; a frame without one has the
box of the nearest frame with one, and a video without any is looked at whole.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from pydantic import Field, model_validator

from lib.competitions.listing import odd_rows
from lib.competitions.records import read_records
from lib.competitions.scene import Finding
from lib.errors import ConfigError, DataError
from lib.settings import Section

SIDES = ("x0", "y0", "x1", "y1")
DETECTED_AT = 480
"""Shorter side in pixels of the frames that the detector sees; YuNet finds faces of about 10 to 300 pixels."""


class Box(NamedTuple):
    """A part of a frame in pixels; the ends lie outside of it."""

    x0: float
    y0: float
    x1: float
    y1: float


Boxes = Mapping[int | None, Box]
"""Frame -> its box; None: that of all other frames."""


class Crop(Section):
    """The part of a frame that networks see, from one of two sources."""

    boxes: str | None = Field(None, min_length=1)
    """CSV of boxes (id, x0, y0, x1, y1 and, if they move, frame), below data.root or an absolute path."""
    detector: str | None = Field(None, min_length=1)
    """ONNX file of the face detector YuNet, below data.root or an absolute path."""
    least: float = Field(0.7, gt=0, lt=1)
    """How sure the detector must be of a face."""
    margin: float = Field(0.3, ge=0, le=4)
    """Added on each side, as a share of the box's width and height."""
    shape: Literal["square", "frame"] = "square"
    """What the box grows to: a square, or the proportions of the frame. It is moved into the frame as far as it fits;
    what is left outside is black."""

    @model_validator(mode="after")
    def _has_one_source(self):
        if (self.boxes is None) == (self.detector is None):
            raise ValueError("expected one of boxes and detector")
        if self.detector is None and "least" in self.model_fields_set:
            raise ValueError("least: belongs to detector, and there is none")
        return self


def cut(frame: np.ndarray, box: Box | None, crop: Crop) -> np.ndarray:
    """Cut a box with its margin, grown to ``crop.shape``, out of a frame (H, W, 3) uint8; None: the whole frame.

    Returns (h, w, 3) uint8, at least 1 x 1, black where it reaches beyond the frame.
    """
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = box or (0, 0, width, height)
    grown = 1 + 2 * crop.margin * (box is not None)
    w, h = (x1 - x0) * grown, (y1 - y0) * grown
    aspect = 1.0 if crop.shape == "square" else width / height
    w = max(w, h * aspect)
    columns = max(1, round(w))
    rows = columns if crop.shape == "square" else max(1, round(w / aspect))
    left, top = _place((x0 + x1) / 2, columns, width), _place((y0 + y1) / 2, rows, height)
    inside = frame[max(top, 0) : top + rows, max(left, 0) : left + columns]
    if inside.shape[:2] == (rows, columns):
        return inside
    above, before = max(-top, 0), max(-left, 0)
    below, after = rows - above - inside.shape[0], columns - before - inside.shape[1]
    return cv2.copyMakeBorder(inside, above, below, before, after, cv2.BORDER_CONSTANT, value=(0, 0, 0))


def strange(box: Box, shape: tuple[int, int]) -> bool:
    """Tell whether a box cannot be meant in pixels of a frame of this shape (H, W).

    So it is where none of it is inside, or where it lies within the first pixel, as one in shares of the sides does.
    """
    height, width = shape
    return box.x1 <= 0 or box.y1 <= 0 or box.x0 >= width or box.y0 >= height or max(box) <= 1


def _place(centre: float, length: int, whole: int) -> int:
    """Return where a side begins: about its centre, moved into the frame, or so that the frame lies within it."""
    low, high = sorted((0, whole - length))
    return min(max(math.floor(centre - length / 2 + 0.5), low), high)


def nearest(boxes: Boxes, frame: int) -> Box | None:
    """Return the box of a frame: its own, that of all others, or that of the nearest frame (the earlier of two)."""
    if frame in boxes or None in boxes or not boxes:
        return boxes.get(frame, boxes.get(None))
    return boxes[min((number for number in boxes if number is not None), key=lambda n: (abs(n - frame), n))]


# ---- a table ------------------------------------------------------------------------------------------
def read_boxes(path: Path) -> tuple[dict[str, dict[int | None, Box]], list[Finding]]:
    """Read a table of boxes: id -> frame -> box, and the rows that are none, which are left out.

    Raises DataError where no row is one, naming the file and the first row.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a table of boxes, found none; set data.options.crop.boxes")
    read = read_records(path)
    if missing := [name for name in ("id", *SIDES) if name not in read.columns]:
        raise DataError(f"{path}: expected the columns id, {', '.join(SIDES)}, found no {' and no '.join(missing)}")
    found: dict[str, dict[int | None, Box]] = {}
    findings = odd_rows(path, read)
    faults = []
    for row, line in zip(read.rows, read.lines, strict=True):
        try:
            frame, box = _frame_and_box(path, row)
        except DataError as error:
            faults.append(str(error))
            findings.append(Finding("row left out", f"{path.name} line {line}", str(error)))
            continue
        if found.setdefault(row["id"], {}).setdefault(frame, box) != box:
            findings.append(Finding("two boxes of one frame, the first is used", row["id"], f"{path.name} line {line}"))
    if faults and not found:
        raise DataError(f"{faults[0]} ({len(faults)} rows, and none is right)")
    return found, findings


def _frame_and_box(path: Path, row: Mapping[str, str]) -> tuple[int | None, Box]:
    text = row.get("frame", "").removesuffix(".0")
    where = f"{path}: {row['id']}" + (f", frame {text}" if text else "")
    if text and not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: expected the number of a frame, from 0 on, or nothing")
    return int(text) if text else None, _box(where, [row[side] for side in SIDES])


def _box(where: str, texts: list[str]) -> Box:
    try:
        box = Box(*map(float, texts))
    except ValueError:
        box = Box(*[math.nan] * 4)
    if not (math.isfinite(sum(box)) and box.x0 < box.x1 and box.y0 < box.y1):
        raise DataError(f"{where}: expected x0 < x1 and y0 < y1 in pixels, got {', '.join(texts)}")
    return box


# ---- a detector ---------------------------------------------------------------------------------------
class Detector:
    """The largest face of each frame it is shown; one for each video, since OpenCV's is not for several threads."""

    def __init__(self, model: Path, least: float):
        """Raises ConfigError where OpenCV cannot read the model."""
        if not model.is_file():
            raise ConfigError(f"data.options.crop.detector: expected the ONNX file of YuNet, found no file {model}")
        try:
            self._net = cv2.FaceDetectorYN.create(str(model), "", (DETECTED_AT, DETECTED_AT), score_threshold=least)
        except cv2.error as error:
            said = str(error).strip().splitlines()[-1]
            raise ConfigError(f"data.options.crop.detector: {model}: OpenCV cannot read it ({said}); expected the ONNX "
                              "file of YuNet") from error  # fmt: skip

    def largest(self, frame: np.ndarray) -> Box | None:
        """Return the box of the largest face in a frame (H, W, 3) uint8 RGB, in its pixels; None without any."""
        height, width = frame.shape[:2]
        scale = min(1.0, DETECTED_AT / min(height, width))
        seen = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(frame, seen, interpolation=cv2.INTER_AREA)
        self._net.setInputSize(seen)
        _, faces = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))  # (N, 15): x, y, w, h, points, score
        if faces is None or not len(faces):
            return None
        x, y, w, h = (float(value) for value in max(faces, key=lambda face: face[2] * face[3])[:4])
        across, down = width / seen[0], height / seen[1]
        return Box(x * across, y * down, (x + w) * across, (y + h) * down)
