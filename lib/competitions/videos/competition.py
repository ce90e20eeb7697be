"""Videos, real or fake (liveness): one probability per video, from a network that looks at single frames.

Layout of Zalo AI 2022, or any other of this kind that ``data.options`` describes::

    root/train/videos/7.mp4             a file (mp4, avi, mov, mkv), or a folder of frames of that name
    root/train/label.csv                fname,liveness_score and, where known, person, domain, split
    root/train/real/7.mp4               or, without a table, a folder per class
    root/public_test/videos/3.mp4       or test/videos; no labels

Example rows: ``7.mp4,1`` (live) and ``9.mp4,0`` (fake), or ``7.mp4,real`` where ``positive`` is ``real``. Or, in place
of folder and table, an annotations text whose lines name a folder of frames, its first and last frame number and the
label: ``jumping/0001 1 17 0``.

Videos are divided into folds whole, with all others of the same person, before any frame is cut: the team
"Top 2" of 2022 had 99 % accuracy in validation, and found persons of the training set in the test, labelled otherwise.

Metric: one of METRICS over all videos, exact on scores rounded to 3 decimals, as the submission has them.
Answer: the probability of the positive class, float of 3 decimals. Truth: 0 or 1.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from lib.competitions import tables
from lib.competitions.classification import Classification, ClassificationOptions, Columns, Folders, Record
from lib.competitions.decoding import Setting
from lib.competitions.facts import Facts
from lib.competitions.records import read_text
from lib.competitions.scene import Answer, Finding, Levels, Params, Row, Scene
from lib.competitions.tables import SUBMISSION, Form
from lib.competitions.videos import frames as video
from lib.competitions.videos import metric as scoring
from lib.competitions.videos.crop import Box, Boxes, Crop, Detector, cut, nearest, read_boxes, strange
from lib.competitions.videos.frames import FrameSampling
from lib.errors import ConfigError, DataError
from lib.metrics import confusion_table
from lib.tasks import Label

METRICS = {
    "eer": lambda counts: 1 - scoring.eer(counts),
    "auc": scoring.auc,
    "accuracy": scoring.accuracy,
    "log_loss": lambda counts: -scoring.log_loss(counts),
}
"""Name -> score of (..., 2, 1001) counts, higher is better."""

STRATEGIES = ("mean", "confident", "quantile")

INSPECTED = 32
"""Shorter side in pixels that the data doctor looks at."""
SHEET = 6
"""Frames of a video that the report shows, each with a shorter side of SHOWN pixels."""
SHOWN = 160
BLACK = 64
"""Side in pixels of the black frame that stands for a test video that cannot be read."""


class VideoColumns(Columns):
    """Names of the columns of the label file, as Zalo has them."""

    id: str = "fname"
    """File name of a video."""
    label: str = "liveness_score"
    """0 or 1, or words of which ``positive`` is one."""
    group: str = "person"
    """Who is seen."""


class VideosOptions(ClassificationOptions):
    """What ``data.options`` may hold."""

    train: Folders = ("train/videos", "train")
    """Folder of the labelled videos, or the first one of several that is there."""
    test: Folders | None = ("public_test/videos", "test/videos")
    """Folder of the test videos, or the first one of several that is there; null: there is no test set."""
    labels: str = "train/label.csv"
    """CSV of labels; where it is not there, the folders in ``train`` are the classes."""
    columns: VideoColumns = VideoColumns()
    """Names of its columns, in part."""
    annotations: str | None = None
    """Text file instead of folder and CSV."""
    positive: str = Field("live", min_length=1)
    """Name of class 1: the word in the label column, or the folder, that means it. Every other word means class 0."""
    sampling: FrameSampling = FrameSampling(count=8)
    """Which frames are read."""
    size: int | None = Field(None, ge=1)
    """Shorter side in pixels to shrink frames to."""
    crop: Crop | None = None
    """Look at a part of each frame alone, such as the face; before frames are shrunk."""
    metric: Literal["eer", "auc", "accuracy", "log_loss"] = "eer"
    """The score that is searched for."""
    fallback: float | None = Field(None, ge=0, le=1)
    """Score of test videos that cannot be read, which are an error without it."""


class Videos(Classification):
    """Videos of two classes under ``root``."""

    name = "videos"
    Options = VideosOptions
    images = ("frames",)
    files = ("video",)
    noun = "video"
    suffixes = video.SUFFIXES
    bare_ids = False
    odd_label = "label is not 0 or 1"
    max_points = 5000
    """A point counts 2002 numbers, so this makes a table of 80 MB, one per fold."""
    settings = {
        "strategy": Setting(0, f"how frames are joined: {', '.join(STRATEGIES)}, or its number",
                            choices=(*range(len(STRATEGIES)), *STRATEGIES)),
        "confidence": Setting(0.8, "of strategy confident: above it, or below 1 - it, a frame is sure", high=1),
        "quantile": Setting(0.5, "of strategy quantile: which one", high=1),
        "threshold": Setting(0.0, "above 0 the answer is 1 for a score that reaches it, else 0", high=1),
        "clip": Setting(0.0, "scores stay this far from 0 and 1", high=0.5),
    }  # fmt: skip

    def __init__(self, root: Path, options: VideosOptions, memo: Path | None = None):
        super().__init__(root, options, memo)
        self.tasks = {"cls": Label((options.positive,))}
        self._faults: dict[tuple[str, Path], str] = {}

    # ---- scenes ---------------------------------------------------------------------------------------
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List as the contract says. Raises DataError and ConfigError for boxes or a detector that cannot be used."""
        _ = self._table_of_boxes
        if (crop := self.options.crop) and crop.detector:
            Detector(self.root / crop.detector, crop.least)
        return super().listed(split)

    @property
    def table(self) -> Path:
        return self.root / (self.options.annotations or self.options.labels)

    @property
    def form(self) -> Form:  # type: ignore[override]
        """Id and score, under the sample's header or else the table's."""
        columns = self.options.columns
        return Form(self.header_of(("an id", "a score")) or (columns.id, columns.label), origin=None)

    def is_scene(self, path: Path) -> bool:
        return video.is_video(path)

    def scene(self, row_id: str, path: Path, more: Mapping[str, str]) -> Scene:
        """Return the scene of an id and a file; a labelled video of nobody known is a group of its own."""
        scene = super().scene(row_id, path, more)
        return replace(scene, group=scene.id) if more.get("group") == "" else scene

    def index_of(self, label: str) -> int | None:
        """Return 1 for the positive class, 0 for the other one, None for a label that is neither."""
        if (number := _number(label)) is not None:
            return number
        return int(self._is_positive(label)) if any(map(self._is_positive, self._words)) else None

    def _is_positive(self, word: str) -> bool:
        return word.casefold() == self.options.positive.casefold()

    @cached_property
    def _words(self) -> tuple[str, ...]:
        """The labels that are no numbers. Raises ConfigError where only these are there, and none is ``positive``."""
        found = {record.label for record in self.records if record.label}
        words = tuple(sorted(label for label in found if _number(label) is None))
        if words and len(words) == len(found) and not any(map(self._is_positive, words)):
            raise ConfigError(f"data.options.positive: expected the label that means class 1, one of "
                              f"{', '.join(words[:8])}, got {self.options.positive!r}")  # fmt: skip
        return words

    def remarks(self) -> list[str]:
        """Tell which words were taken for which class."""
        ones = [word for word in self._words if self._is_positive(word)]
        if not ones:
            return []
        others = ", ".join(word for word in self._words if word not in ones)
        return [f"labels: {', '.join(ones)} is class 1 (data.options.positive), {others or 'no other'} class 0"]

    @cached_property
    def _rows(self) -> tuple[tuple[str, ...], list[dict[str, str]]]:
        return ((), []) if self.options.annotations else super()._rows

    @cached_property
    def records(self) -> list[Record]:
        """What label file, folders or annotations say."""
        if self.options.annotations is None:
            return super().records
        records, odd = _annotated(self.root, self.table)
        self._odd_rows += odd
        return records

    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Decode one video whole and report what is wrong with it."""
        bare = split == "train" and not self.labelled(scene)
        findings = [Finding("video without label", scene.id, str(scene.files["video"]))] if bare else []
        if fault := self.fault(scene):
            return [*findings, Finding("unreadable video", scene.id, fault)]
        path, span = scene.files["video"], self._span(scene)
        stated, _, shape = video.probe(path, span)
        frames = video.sample(path, FrameSampling(every=1), INSPECTED, span)
        if path.is_dir():
            sizes, last = video.numbered_sizes(path, span)
            if len(sizes) > 1:
                shown = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:4])
                findings.append(Finding("frames of several sizes, brought to that of the first", scene.id, shown))
            if span and last < span[1]:
                detail = f"{path}: frame {last} is the last of {span[0]} to {span[1]}"
                findings.append(Finding("annotated frames that are not there", scene.id, detail))
        if len(frames) < stated - path.is_file():  # headers that count one frame too many are common, and harmless
            findings.append(Finding("video cut short", scene.id, f"{path}: {len(frames)} of {stated} frames"))
        if not frames.any():
            findings.append(Finding("video all black", scene.id, str(path)))
        if self.options.crop:
            boxes = self._boxes(scene)
            if not boxes:
                findings.append(Finding(self._no_box, scene.id, "looked at whole"))
            elif odd := next((box for box in boxes.values() if strange(box, shape)), None):
                findings.append(Finding("box that is not in pixels of the frame", scene.id, f"{tuple(odd)}"))
        return findings

    def inspect(self) -> list[Finding]:
        """Inspect as the contract says, and tell which boxes are of no video, or may be of two."""
        findings, boxes = super().inspect() + self._read_boxes[1], set(self._table_of_boxes)
        findings += self._shared_frames()
        train, test = self._list("train"), self._list("test")
        names = {key for scene in (*train, *test) for key in self._names(scene)}
        findings += [Finding("box without video", key) for key in sorted(boxes - names)]
        both = boxes & {scene.id for scene in train} & {scene.id for scene in test}
        return findings + [Finding("box of a name in train and test", key, "write the path") for key in sorted(both)]

    def _shared_frames(self) -> list[Finding]:
        """Report the annotated clips that begin before an earlier one of their folder ends."""
        clips = sorted((row.record.paths[0], row.record.span, row.scene.id) for row in self._joined[0].values()
                       if row.record.span)  # fmt: skip
        return [Finding("annotated clips that share frames", key, f"frame {span[0]} is in {other} too")
                for (folder, before, other), (place, span, key) in pairwise(clips)
                if place == folder and span[0] <= before[1]]  # fmt: skip

    def read_facts(self, scene: Scene) -> Facts:
        """Return the class of a labelled video. Raises DataError for one that cannot be read."""
        if fault := self.fault(scene):
            raise DataError(fault)
        return super().read_facts(scene)

    def fault(self, scene: Scene) -> str:
        """Say why a video cannot be read, "" if it can; its first frame is decoded the first time it is asked for."""
        if "video" not in scene.files:
            return super().incomplete(scene)
        path, key = scene.files["video"], (scene.id, scene.files["video"])
        if key not in self._faults:
            try:
                _, fps, _ = video.probe(path, self._span(scene))
                rateless = self.options.sampling.per_second and not fps
                self._faults[key] = f"{path}: has no frame rate, which sampling.per_second needs" if rateless else ""
            except DataError as error:
                self._faults[key] = str(error)
        return self._faults[key]

    def incomplete(self, scene: Scene) -> str:
        """Say that there is no file of a video, unless ``data.options.fallback`` stands for it."""
        return super().incomplete(scene) if self.options.fallback is None else ""

    def read(self, scene: Scene, image: str = "frames") -> np.ndarray:
        """Read the sampled frames, (F, H, W, 3) uint8 RGB; of an unreadable test video with a fallback, a black one.

        Raises DataError naming scene and file where there is no fallback.
        """
        if not (fault := self.fault(scene)):
            path, options, span = scene.files["video"], self.options, self._span(scene)
            return video.sample(path, options.sampling, options.size, span, self._look(scene))
        if self.options.fallback is None or scene not in self.scenes("test"):
            raise DataError(f"scene {scene.id}: {fault}; or give such test videos a score, data.options.fallback: 0.5")
        return np.zeros((1, BLACK, BLACK, 3), np.uint8)

    # ---- parts of frames ------------------------------------------------------------------------------
    @property
    def carried(self) -> Mapping[str, Path]:
        """The table of boxes, or the detector's model."""
        crop = self.options.crop
        stated = {"crop.boxes": crop.boxes, "crop.detector": crop.detector} if crop else {}
        return {key: self.root / name for key, name in stated.items() if name}

    def caveats(self, scenes: Sequence[Scene]) -> list[str]:
        """Say how many videos the table of boxes leaves out; what a detector does not find is known only afterwards."""
        if self.options.crop is None or self.options.crop.boxes is None:
            return []
        left = [scene.id for scene in scenes if "video" in scene.files and not self._boxes(scene)]
        return [f"{len(left)} of {len(scenes)} videos have no box and are looked at whole ({left[0]})"] if left else []

    def _look(self, scene: Scene) -> video.Look | None:
        """Return what cuts the part that is asked for out of each frame; None for whole frames."""
        if (crop := self.options.crop) is None:
            return None
        boxes = self._boxes(scene)
        return lambda number, frame: cut(frame, nearest(boxes, number), crop)

    def _boxes(self, scene: Scene) -> Boxes:
        """Return the boxes of a video: what the table says, or the largest face of each frame that is sampled."""
        crop, table = self.options.crop, self._table_of_boxes
        found: dict[int | None, Box] = {}
        if crop is None or crop.detector is None:
            return next((table[key] for key in self._names(scene) if key in table), found)
        detector = Detector(self.root / crop.detector, crop.least)

        def look(number: int, frame: np.ndarray) -> np.ndarray:
            if (box := detector.largest(frame)) is not None:
                found[number] = box
            return frame[:1, :1]

        video.sample(scene.files["video"], self.options.sampling, span=self._span(scene), look=look)
        return found

    def _names(self, scene: Scene) -> tuple[str, ...]:
        """Return what may name a video in the table of boxes: its path below the root, and its id."""
        path = scene.files["video"]
        return (*([path.relative_to(self.root).as_posix()] if path.is_relative_to(self.root) else []), scene.id)

    @cached_property
    def _read_boxes(self) -> tuple[Mapping[str, Boxes], list[Finding]]:
        path = self.carried.get("crop.boxes")
        return read_boxes(path) if path else ({}, [])

    @property
    def _table_of_boxes(self) -> Mapping[str, Boxes]:
        return self._read_boxes[0]

    @property
    def _no_box(self) -> str:
        return "video without a face" if self.options.crop and self.options.crop.detector else "video without a box"

    def _span(self, scene: Scene) -> video.Span | None:
        """Return the frame numbers that the annotations give a video."""
        return self.known(scene).record.span if self.options.annotations and self.labelled(scene) else None

    # ---- answers --------------------------------------------------------------------------------------
    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Turn the levels of a video's frames, (1, 1, F) uint8, into its score."""
        score = np.asarray(score_of_frames(levels["cls"].ravel() / 255, **settings))
        return int(scoring.per_mille(score)) / scoring.STEPS

    @property
    def counted(self) -> int:
        return 2 * scoring.BINS

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (2002,) int64, a flat histogram of ``metric.py``."""
        return scoring.histogram(np.array([answer]), np.array([truth])).ravel()

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the chosen metric, so that higher is better: 1 - EER, AUC, accuracy or - log-loss."""
        return METRICS[self.options.metric](_unflatten(counts))

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return (..., 2): the share of negative and of positive videos on their side of 0.5."""
        return scoring.recall(_unflatten(counts))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return every metric by name; ``one_class`` is 1 where EER and AUC are undefined (0.5)."""
        metrics = (scoring.eer, scoring.eer_threshold, scoring.auc, scoring.accuracy, scoring.log_loss,
                   scoring.one_class)  # fmt: skip
        return {metric.__name__: metric(_unflatten(counts)) for metric in metrics}

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the 2 x 2 confusion at 0.5, truth by rows: (4,) int64."""
        return np.bincount([2 * truth + (answer >= 0.5)], minlength=4)

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of the two classes at 0.5."""
        return {"confusion": confusion_table(details, (f"not {self.options.positive}", self.options.positive))}

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return one sheet of frames, the truth (where known) and the score in its title."""
        positive = self.options.positive
        truth = "" if scene in self.scenes("test") else f"{'' if self.truth(scene) else 'not '}{positive}, "
        unread = "unreadable, " if self.fault(scene) else ""
        return [(f"{truth}{unread}score {self._final(scene, answer):.3f}", _sheet(self.read(scene)))]

    # ---- submission -----------------------------------------------------------------------------------
    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return the row of a video, its score with 3 decimals; one that cannot be read has the fallback score."""
        return [(self.row_id(scene), f"{self._final(scene, answer):.3f}")]

    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        return float(rows[0][1])

    def row_fault(self, row: Row) -> str:
        return "" if 0 <= tables.number(row[1]) <= 1 else "expected a score in [0, 1]"  # NaN is not

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a CSV, or the one in a folder; videos that cannot be read have the fallback."""
        faults = super().lint(path, scenes, sample)
        if faults or self.options.fallback is None:
            return faults
        table, wanted = Path(path) / SUBMISSION if Path(path).is_dir() else Path(path), f"{self.options.fallback:.3f}"
        said = {row_id: score for row_id, score in tables.read(table, self.form)}
        odd = [s.id for s in scenes or () if self.fault(s) and said[self.row_id(s)] != wanted]
        kind = f"cannot be read, yet its score is not the fallback {wanted}"
        return [tables.sentence(table, "row", kind, odd)] if odd else []

    def _final(self, scene: Scene, answer: Answer) -> float:
        """Return the score that is submitted: the answer, or the fallback of a video that cannot be read."""
        return answer if self.options.fallback is None or not self.fault(scene) else self.options.fallback


# ---- frames to score ----------------------------------------------------------------------------------
def score_of_frames(
    probs: np.ndarray, strategy: str | float, confidence: float, quantile: float, threshold: float, clip: float
) -> float:
    """Join the probabilities of a video's frames, (F,) in [0, 1], into its score; the others are decode settings.

    "mean" of all. "confident" (selimsef, DFDC winner 2020, where it took a single model's log-loss from 0.25 to 0.22):
    where more than 2 in 5 frames lie above ``confidence``, the mean of those; where more than 9 in 10 lie below
    1 - confidence, the mean of those; else of all. He also asked for more than 11 frames of his 32, which 2 in 5 imply.
    "quantile": that of the frames.
    """
    name = strategy if strategy in STRATEGIES else STRATEGIES[int(strategy)]
    if name == "quantile":
        score = np.quantile(probs, quantile)
    else:
        high, low = probs > confidence, probs < 1 - confidence
        if name == "confident" and 5 * high.sum() > 2 * len(probs):
            probs = probs[high]
        elif name == "confident" and 10 * low.sum() > 9 * len(probs):
            probs = probs[low]
        score = probs.mean()
    if threshold > 0:
        score = np.float64(score >= threshold)
    return float(np.clip(score, clip, 1 - clip))


def _unflatten(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts).reshape(*np.shape(counts)[:-1], 2, scoring.BINS)


def _sheet(frames: np.ndarray) -> np.ndarray:
    """Lay some of the frames (F, H, W, 3) out in reading order, upright ones in rows of three, others of two."""
    height, width = frames.shape[1:3]
    scale, columns = SHOWN / min(height, width), 3 if height > width else 2
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    shown = [cv2.resize(frames[number], shape, interpolation=cv2.INTER_AREA)
             for number in video.spread(len(frames), SHEET)]  # fmt: skip
    shown += [np.full_like(shown[0], 255)] * (-len(shown) % columns)
    return np.vstack([np.hstack(shown[start : start + columns]) for start in range(0, len(shown), columns)])


# ---- labels -------------------------------------------------------------------------------------------
def _number(label: str) -> int | None:
    """Return 0 or 1 for a label that is this number (1, 1.0), None for any other."""
    try:
        return {0.0: 0, 1.0: 1}.get(float(label))
    except ValueError:
        return None


def _annotated(root: Path, path: Path) -> tuple[list[Record], list[Finding]]:
    """Read an annotations text: lines of folder, first and last frame number, label; and the lines that are none.

    A folder is a name below ``root``; one that leads out of it names no video. Raises DataError where no line is one.
    """
    rows: dict[tuple[str, int, int, str], None] = {}  # a line that is written twice is one
    findings = []
    lines = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), 1)]
    for number, words in lines:
        try:
            *folder, first, last, label = words
            rows[" ".join(folder).replace("\\", "/"), int(first), int(last), label] = None
        except ValueError:
            if words:
                findings.append(Finding("row left out", f"{path.name} line {number}",
                                        "expected folder, first and last frame and label"))  # fmt: skip
    if not rows:
        raise DataError(f"{path}: expected lines of folder, first and last frame and label, such as jumping/0001 1 17 "
                        f"0, got {len(findings)} other lines")  # fmt: skip
    times = Counter(folder for folder, *_ in rows)
    records = []
    for name, start, end, meaning in rows:
        flat = name.replace("/", "_")
        scene_id = f"{flat}_{start}" if times[name] > 1 else flat
        place = PurePosixPath(name)
        inside = not place.is_absolute() and ".." not in place.parts
        there = [root / name] if inside and (root / name).is_dir() else []
        records.append(Record(scene_id, meaning, there, {"group": flat}, (start, end)))
    return records, findings
