"""Videos, real or fake (liveness): one probability per video, from a network that looks at single frames.

Layout of Zalo AI 2022, or any other of this kind that ``data.options`` describes::

    root/train/videos/7.mp4             a file (mp4, avi, mov, mkv), or a folder of frames of that name
    root/train/label.csv                fname,liveness_score and, where known, person, domain, split
    root/public_test/videos/3.mp4       or test/videos; no labels

Example rows: ``7.mp4,1`` (live) and ``9.mp4,0`` (fake). Or, in place of both, an annotations text whose lines name a
folder of frames, its first and last frame number and the label: ``jumping/0001 1 17 0``.

Videos are divided into folds whole, with all others of the same person, before any frame is cut: the team
"Top 2" of 2022 had 99 % accuracy in validation, and found persons of the training set in the test, labelled otherwise.

Metric: one of METRICS over all videos, exact on scores rounded to 3 decimals, as the submission has them.
Answer: the probability of the positive class, float of 3 decimals. Truth: 0 or 1.

This module is longer than 300 lines because the listing of videos, their data doctor, the decoding of frames into a
score and the linter all speak of this one layout; every section is plain functions on it.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.competitions import contract, tables
from lib.competitions.contract import Answer, Finding, Grid, Levels, Scene
from lib.competitions.decoding import Setting
from lib.competitions.videos import frames as video
from lib.competitions.videos import metric as scoring
from lib.ensemble import search
from lib.errors import ConfigError, DataError
from lib.tasks import Label

CSV = "submission.csv"
TRAIN = "train/videos"
TESTS = ("public_test/videos", "test/videos")
COLUMNS = {"id": "fname", "label": "liveness_score", "group": "person", "domain": "domain", "split": "split"}
"""What a column is for -> its name in the label file; only the first two must be there."""
METRICS = {
    "eer": lambda counts: 1 - scoring.eer(counts),
    "auc": scoring.auc,
    "accuracy": scoring.accuracy,
    "log_loss": lambda counts: -scoring.log_loss(counts),
}
"""Name -> score of (..., 2, 1001) counts, higher is better."""

STRATEGIES = ("mean", "confident", "quantile")
DEFAULTS = {"strategy": 0, "confidence": 0.8, "quantile": 0.5, "threshold": 0.0, "clip": 0.0}
"""``strategy``: index into STRATEGIES (a name does too). ``confidence``, ``quantile``: their settings. ``threshold``:
above 0 the answer is 1 for a score that reaches it, else 0. ``clip``: scores stay this far from 0 and 1."""
MAX_POINTS = 5000
"""Largest grid: a point counts 2002 numbers, so this makes a table of 80 MB, one per fold."""

LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
"""How a label may be written."""

INSPECTED = 32
"""Shorter side in pixels that the data doctor looks at."""
SHEET = 6
"""Frames of a video that the report shows, each with a shorter side of SHOWN pixels."""
SHOWN = 160
BLACK = 64
"""Side in pixels of the black frame that stands for a test video that cannot be read."""


Key = tuple[str, Path]
"""What tells two videos apart: folders may use the same names, and clips may share a folder."""


@dataclass(frozen=True)
class Clip:
    """A labelled video. ``span``: the frames of its folder that belong to it; ``split``: as shipped."""

    scene: Scene
    label: int
    span: video.Span | None = None
    split: str = ""


class Competition(contract.Competition):
    """Videos under ``root``; every option is a path below it or a name in its files.

    train, test: folders of videos (test: by default the first of TESTS that is there). labels: CSV; columns: as
    COLUMNS, in part. annotations: text file instead of folder and CSV. positive: name of label 1. sampling: one rule of
    ``frames.py``; size: shorter side to shrink frames to. metric: one of METRICS. fallback: score of test
    videos that cannot be read, which are an error without it. sample: sample submission, whose order is kept.
    """

    listed = answer = rows = answer_from = None  # of the contract's methods it has its own form of these
    settings = property(lambda self: {name: Setting(value, "") for name, value in self.defaults().items()})
    name = "videos"
    images = ("frames",)

    def __init__(
        self, root: str | Path, *, train: str = TRAIN, test: str | None = None, labels: str = "train/label.csv",
        columns: Mapping[str, str] | None = None, annotations: str | None = None, positive: str = "live",
        sampling: Mapping[str, float] | None = None, size: int | None = None, metric: str = "eer",
        fallback: float | None = None, sample: str | None = None,
    ) -> None:  # fmt: skip
        self.root = Path(root)
        self.train, self.labels = self.root / train, self.root / labels
        self.test = None if test is None else self.root / test
        self.annotations = annotations
        self.sample = None if sample is None else self.root / sample
        self.asked = dict(columns or {})
        self.columns = COLUMNS | self.asked
        self.positive, self.metric, self.fallback = positive, metric, fallback
        self.sampling = dict({"count": 8} if sampling is None else sampling)
        self.size = size
        self._check_options()
        self.tasks = {"cls": Label((positive,))}
        self.flags = (positive,)
        self._scenes: dict[str, list[Scene]] = {}
        self._listed: tuple[dict[Key, Clip], list[Finding]] | None = None
        self._faults: dict[Key, str] = {}
        self._submitted: tuple[tuple, dict[str, str]] = (), {}

    def _check_options(self) -> None:
        if unknown := self.asked.keys() - COLUMNS.keys():
            raise ConfigError(f"data.options.columns: expected {', '.join(COLUMNS)}, got {', '.join(sorted(unknown))}")
        if self.metric not in METRICS:
            raise ConfigError(f"data.options.metric: expected one of {', '.join(METRICS)}, got {self.metric!r}")
        if unknown := self.sampling.keys() - {"count", "every", "per_second"}:
            raise ConfigError(f"data.options.sampling: expected count, every or per_second, got {', '.join(unknown)}")
        if self.fallback is not None and not 0 <= self.fallback <= 1:
            raise ConfigError(f"data.options.fallback: expected a score in [0, 1], got {self.fallback!r}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"data.options.size: expected pixels, at least 1, got {self.size!r}")
        video.check_rule(**self.sampling)

    # ---- data -----------------------------------------------------------------------------------------
    def scenes(self, split: str) -> list[Scene]:
        """Return the videos of "train" or "test", sorted by id; an id is a file's name, or a path with "_" for "/".

        "train" decodes the first frame of each and leaves out what cannot be read or has no label; ``inspect`` names
        it. "test" lists every video. Raises DataError when "train" has no usable video.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split: expected train or test, got {split!r}")
        if split not in self._scenes:
            scenes = self._list_test() if split == "test" else [clip.scene for clip in self._clips().values()]
            if split == "train":
                with ThreadPoolExecutor(max_workers=2) as pool:
                    readable = [scene for scene, fault in zip(scenes, pool.map(self.fault, scenes)) if not fault]
                if not readable:
                    raise DataError(
                        f"{self.root}: expected labelled videos that can be read, found {len(scenes)} labelled ones "
                        "of which none can be; 01_prepare_folds.py lists what is wrong with them"
                    )
                scenes = readable
            self._scenes[split] = sorted(scenes, key=lambda scene: scene.id)
        return self._scenes[split]

    def inspect(self) -> list[Finding]:
        """Decode every video once and report what is missing, broken or suspicious."""
        clips = self._clips()
        findings = list(self._listed[1])
        scenes = [*(clip.scene for clip in clips.values()), *self._list_test()]
        with ThreadPoolExecutor(max_workers=2) as pool:
            inspected = pool.map(self._inspect_contents, scenes)
            for found in tqdm(inspected, "data check", total=len(scenes), leave=False, disable=None):
                findings += found
        return findings

    def _inspect_contents(self, scene: Scene) -> list[Finding]:
        """Decode one video whole and report what is wrong with it."""
        if fault := self.fault(scene):
            return [Finding("unreadable video", scene.id, fault)]
        path, span = scene.files["video"], self._span(scene)
        stated = video.probe(path, span)[0]
        frames = video.sample(path, every=1, size=INSPECTED, span=span)
        findings = []
        if len(frames) < stated - 1:  # headers that count one frame too many are common, and harmless
            findings.append(Finding("video cut short", scene.id, f"{path}: {len(frames)} of {stated} frames"))
        if not frames.any():
            findings.append(Finding("video all black", scene.id, str(path)))
        return findings

    def fault(self, scene: Scene) -> str:
        """Say why a video cannot be read, "" if it can; its first frame is decoded the first time it is asked for."""
        path, key = scene.files["video"], _key(scene)
        if key not in self._faults:
            try:
                _, fps, _ = video.probe(path, self._span(scene))
                rateless = "per_second" in self.sampling and not fps
                self._faults[key] = f"{path}: has no frame rate, which sampling.per_second needs" if rateless else ""
            except DataError as error:
                self._faults[key] = str(error)
        return self._faults[key]

    def read(self, scene: Scene, image: str = "frames") -> np.ndarray:
        """Read the sampled frames, (F, H, W, 3) uint8 RGB; of an unreadable test video with a fallback, a black one.

        Raises DataError naming scene and file where there is no fallback.
        """
        fault = self.fault(scene)
        if not fault:
            return video.sample(scene.files["video"], **self.sampling, size=self.size, span=self._span(scene))
        if self.fallback is None or scene not in self.scenes("test"):
            raise DataError(f"scene {scene.id}: {fault}; or give such test videos a score, data.options.fallback: 0.5")
        return np.zeros((1, BLACK, BLACK, 3), np.uint8)

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (1, 1) uint8: 1 for the positive class, else 0."""
        return np.full((1, 1), self.truth(scene), np.uint8)

    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return whether the video is of the positive class."""
        return {self.positive: bool(self.truth(scene))}

    def published_split(self) -> dict[str, str]:
        """Return the ``split`` column of the labels, where they have one."""
        splits = {scene.id: self._clip(scene).split for scene in self.scenes("train")}
        return {scene_id: split for scene_id, split in splits.items() if split}

    def _clip(self, scene: Scene) -> Clip:
        """Return what is known of a labelled video. Raises DataError for one without a label."""
        if (key := _key(scene)) not in self._clips():
            raise DataError(f"scene {scene.id}: expected a label, found none; is this a test video?")
        return self._clips()[key]

    def _span(self, scene: Scene) -> video.Span | None:
        """Return the frame numbers that the annotations give a video."""
        clip = self._clips().get(_key(scene)) if self.annotations else None
        return clip and clip.span

    # ---- answers --------------------------------------------------------------------------------------
    def truth(self, scene: Scene) -> Answer:
        """Return 1 for the positive class, else 0."""
        return self._clip(scene).label

    def decode(self, levels: Levels, params: Mapping[str, Any]) -> Answer:
        """Turn the levels of a video's frames, (1, 1, F) uint8, into its score; ``params``: see DEFAULTS."""
        given = dict(params)
        if not given.get("postprocess", True):  # no steps, as the search says; there are none for a single number
            del given["postprocess"]
        if unknown := given.keys() - DEFAULTS.keys():
            raise ConfigError(f"decode: expected {', '.join(DEFAULTS)}, got also {', '.join(sorted(unknown))}")
        score = score_of_frames(levels["cls"].ravel() / 255, **{**DEFAULTS, **given})
        return int(scoring.per_mille(score)) / scoring.STEPS

    def defaults(self) -> dict[str, Any]:
        """Return DEFAULTS: the mean over frames, as it is."""
        return dict(DEFAULTS)

    def grid(self, axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> Grid:
        """Return the lattice of decode settings."""
        points = search.lattice(axes, {**DEFAULTS, **fixed})
        if len(points) > MAX_POINTS:
            raise ConfigError(f"search: expected at most {MAX_POINTS} points, got {len(points)}; use fewer values")
        return Grid(points, points.shape)

    def count(self, levels: Levels, truth: Answer, grid: Grid) -> np.ndarray:
        """Count one video for every point: (P, 2002) int64, a one where its score lies."""
        counts = np.zeros((len(grid.points), 2 * scoring.BINS), np.int64)
        for row, point in zip(counts, grid.points):
            row += self.tally(self.decode(levels, point), truth)
        return counts

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (2002,) int64, a flat histogram of ``lib/competitions/videos/metric.py``."""
        return scoring.histogram(np.array([answer]), np.array([truth])).ravel()

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the chosen metric, so that higher is better: 1 - EER, AUC, accuracy or - log-loss."""
        return METRICS[self.metric](_unflatten(counts))

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return (..., 2): the share of negative and of positive videos on their side of 0.5."""
        return scoring.recall(_unflatten(counts))

    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return the score, then every metric by name; ``one_class`` is 1 where EER and AUC are undefined (0.5)."""
        named = {"score": self.score(counts)}
        for metric in (scoring.eer, scoring.eer_threshold, scoring.auc, scoring.accuracy, scoring.log_loss,
                       scoring.one_class):  # fmt: skip
            named[metric.__name__] = metric(_unflatten(counts))
        return {name: float(value) for name, value in named.items()}

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the 2 x 2 confusion at 0.5, truth by rows: (4,) int64."""
        return np.bincount([2 * truth + (answer >= 0.5)], minlength=4)

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of the two classes at 0.5."""
        names = (f"not {self.positive}", self.positive)
        return {"confusion": {name: dict(zip(names, row)) for name, row in zip(names, details.reshape(2, 2).tolist())}}

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return one sheet of frames, the truth (where known) and the score in its title."""
        truth = "" if scene in self.scenes("test") else f"{'' if self.truth(scene) else 'not '}{self.positive}, "
        unread = "unreadable, " if self.fault(scene) else ""
        return [(f"{truth}{unread}score {self._final(scene, answer):.3f}", _sheet(self.read(scene)))]

    # ---- submission -----------------------------------------------------------------------------------
    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write ``submission.csv``: a row per video with its score, 3 decimals, in the order of the sample or of ids.

        A video that cannot be read gets the fallback score, whatever its answer.
        """
        scores = {scene.id: self._final(scene, answer) for scene, answer in answers}
        sample = _read_scores(self.sample)[1] if self.sample else []
        names = sample if set(sample) == scores.keys() else sorted(scores)  # out-of-fold videos are not in the sample
        with tables.write(folder / CSV, tables.Form(self._header())) as add_row:
            for name in names:
                add_row(name, f"{scores[name]:.3f}")
        return [folder / CSV]

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one video's score back."""
        path = folder / CSV
        state = path, path.stat().st_mtime_ns if path.is_file() else 0
        if self._submitted[0] != state:  # asked once per video: the file is read once
            self._submitted = state, dict(tables.read(path, tables.Form(self._header())))
        if scene.id not in self._submitted[1]:
            raise DataError(f"{path}: expected a row of {scene.id!r}, found none; write the submission again")
        return float(self._submitted[1][scene.id])

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a CSV, or the one in a folder: header, ids (each once, none foreign), scores.

        ``scenes``: the videos that must be answered; those that cannot be read, with the fallback score. ``sample``: a
        sample submission with the header, ids and order to keep; by default the option's, where it has these ids.
        """
        path = Path(path) / CSV if Path(path).is_dir() else Path(path)
        try:
            header, ids, texts = _read_scores(path)
            standard = _read_scores(sample or self.sample) if sample or self.sample else None
        except DataError as error:
            return [str(error)]
        wanted = None if scenes is None else [scene.id for scene in scenes]
        if standard and sample is None and set(standard[1]) != set(wanted or ids):
            standard = None  # out-of-fold videos are not those of the sample
        if standard:
            wanted = standard[1]
        faults = []
        if header != (expected := standard[0] if standard else self._header()):
            faults.append(f"{path}: expected the header {','.join(expected)!r}, got {','.join(header)!r}")
        kinds = _row_faults(ids, texts, wanted)
        for scene in scenes or ():
            said = dict(zip(ids, texts)).get(scene.id) if self.fallback is not None and self.fault(scene) else None
            if said is not None and said != f"{self.fallback:.3f}":
                kinds[f"cannot be read, yet its score is not the fallback {self.fallback:.3f}"].append(scene.id)
        faults += [f"{path}: {len(names)} row{'s' * (len(names) > 1)}: {kind} ({', '.join(names[:3])})"
                   for kind, names in kinds.items() if names]  # fmt: skip
        if standard and not faults and ids != list(wanted):
            faults.append(f"{path}: expected the sample's order of rows, got another")
        return faults

    def _header(self) -> tuple[str, str]:
        return self.columns["id"], self.columns["label"]

    def _final(self, scene: Scene, answer: Answer) -> float:
        """Return the score that is submitted: the answer, or the fallback of a video that cannot be read."""
        return answer if self.fallback is None or not self.fault(scene) else self.fallback

    # ---- files ----------------------------------------------------------------------------------------
    def _list_test(self) -> list[Scene]:
        """List the test videos, sorted by id."""
        folders = [self.root / name for name in TESTS] if self.test is None else [self.test]
        found = [folder for folder in folders if folder.is_dir()]
        if not found and self.test is not None:
            raise DataError(f"{self.test}: expected a folder of test videos, found none; set data.options.test")
        return [Scene(path.name, {"video": path}) for path in _videos(found[0])] if found else []

    def _clips(self) -> dict[Key, Clip]:
        """Return the labelled videos, readable or not; the lists are read once."""
        if self._listed is None:
            clips, findings = self._labelled() if self.annotations is None else _annotated(self.root, self.annotations)
            self._listed = {_key(clip.scene): clip for clip in clips}, findings
        return self._listed[0]

    def _labelled(self) -> tuple[list[Clip], list[Finding]]:
        """Join the folder of training videos with the rows of the label file."""
        if not self.train.is_dir():
            raise DataError(f"{self.train}: expected a folder of videos, found none; set data.root or data.options")
        paths = {path.name: path for path in _videos(self.train)}
        rows, findings = self._read_labels()
        findings += [Finding("video without label", name) for name in sorted(paths.keys() - rows.keys())]
        clips = []
        for name, row in rows.items():
            label = LABELS.get(row["label"])
            if name not in paths:
                findings.append(Finding("label without video", name))
            elif label is None:
                findings.append(Finding("label is not 0 or 1", name, repr(row["label"])))
            else:
                scene = Scene(name, {"video": paths[name]}, row["domain"], group=row["group"] or name)
                clips.append(Clip(scene, label, split=row["split"]))
        return clips, findings

    def _read_labels(self) -> tuple[dict[str, dict[str, str]], list[Finding]]:
        """Read the label file as id -> what each of COLUMNS says, "" where there is no such column."""
        table = _read_csv(self.labels)
        must = [self.columns[role] for role in ("id", "label", *self.asked)]
        if missing := [column for column in must if column not in table.columns]:
            raise DataError(f"{self.labels}: expected the columns {', '.join(dict.fromkeys(must))}, found no "
                            f"{' and no '.join(missing)}; set data.options.columns")  # fmt: skip
        rows: dict[str, dict[str, str]] = {}
        findings = []
        for record in table.to_dict("records"):
            row = {role: record.get(column, "") for role, column in self.columns.items()}
            first = rows.setdefault(row["id"], row)
            if first is not row:
                findings.append(Finding("label given twice", row["id"], f"{first['label']} and {row['label']}"))
                if first["label"] != row["label"]:
                    first["label"] = "contradictory"
        return rows, findings


# ---- frames to score ----------------------------------------------------------------------------------
def score_of_frames(
    probs: np.ndarray, strategy: str | float, confidence: float, quantile: float, threshold: float, clip: float
) -> float:
    """Join the probabilities of a video's frames, (F,) in [0, 1], into its score.

    "mean" of all. "confident" (selimsef, DFDC winner 2020, where it took a single model's log-loss from 0.25 to 0.22):
    where more than 2 in 5 frames lie above ``confidence``, the mean of those; where more than 9 in 10 lie below
    1 - confidence, the mean of those; else of all. He also asked for more than 11 frames of his 32, which 2 in 5 imply.
    "quantile": that of the frames. Raises ConfigError for anything else.
    """
    if strategy in STRATEGIES:
        name = strategy
    elif strategy in range(len(STRATEGIES)):
        name = STRATEGIES[int(strategy)]
    else:
        raise ConfigError(f"decode.strategy: expected {', '.join(STRATEGIES)} or its number, got {strategy!r}")
    for setting, value, top in (("confidence", confidence, 1), ("quantile", quantile, 1), ("threshold", threshold, 1),
                                ("clip", clip, 0.5)):  # fmt: skip
        if not 0 <= value <= top:
            raise ConfigError(f"decode.{setting}: expected a number from 0 to {top}, got {value!r}")
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


def _key(scene: Scene) -> Key:
    return scene.id, scene.files["video"]


def _sheet(frames: np.ndarray) -> np.ndarray:
    """Lay some of the frames (F, H, W, 3) out in reading order, upright ones in rows of three, others of two."""
    height, width = frames.shape[1:3]
    scale, columns = SHOWN / min(height, width), 3 if height > width else 2
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    shown = [cv2.resize(frames[number], shape, interpolation=cv2.INTER_AREA)
             for number in video.spread(len(frames), SHEET)]  # fmt: skip
    shown += [np.full_like(shown[0], 255)] * (-len(shown) % columns)
    return np.vstack([np.hstack(shown[start : start + columns]) for start in range(0, len(shown), columns)])


# ---- lists --------------------------------------------------------------------------------------------
def _videos(folder: Path) -> list[Path]:
    """List the videos of a folder, files and folders of frames, sorted by name."""
    return sorted((path for path in folder.iterdir() if video.is_video(path)), key=lambda path: path.name)


def _annotated(root: Path, name: str) -> tuple[list[Clip], list[Finding]]:
    """Read an annotations text: lines of folder, first and last frame number, label. Raises DataError."""
    path = root / name
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [(" ".join(folder), (int(first), int(last)), label) for *folder, first, last, label in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected lines of folder, first and last frame and label, got {error}") from error
    times = Counter(folder for folder, _, _ in rows)
    clips, findings = {}, []
    for folder, span, label in rows:
        scene_id = folder.replace("/", "_") + (f"_{span[0]}" if times[folder] > 1 else "")
        if not (root / folder).is_dir():
            findings.append(Finding("label without video", scene_id, str(root / folder)))
        elif label not in LABELS:
            findings.append(Finding("label is not 0 or 1", scene_id, repr(label)))
        elif scene_id in clips:
            findings.append(Finding("label given twice", scene_id, f"{path}: the first is used"))
        else:
            scene = Scene(scene_id, {"video": root / folder}, group=folder.replace("/", "_"))
            clips[scene_id] = Clip(scene, LABELS[label], span)
    return list(clips.values()), findings


# ---- tables -------------------------------------------------------------------------------------------
def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV as text throughout, so that ids stay what they are. Raises DataError where it does not parse."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: expected a CSV file, got {error}") from error


def _read_scores(path: Path) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Read a submission as (header, ids, texts of scores). Raises DataError unless every row has two fields."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file, got {error}") from error
    if wrong := [line for line, row in enumerate([header, *rows], 1) if len(row) != 2]:
        raise DataError(f"{path}: expected two fields in every row, got {len(wrong)} others (first: line {wrong[0]})")
    return tuple(header), [name for name, _ in rows], [text for _, text in rows]


def _row_faults(ids: list[str], texts: list[str], wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """Return kind of fault -> the ids that have it."""
    faults: dict[str, list[str]] = defaultdict(list)
    for name, text in zip(ids, texts):
        try:
            good = 0 <= float(text) <= 1  # false for NaN
        except ValueError:
            good = False
        if not good:
            faults["expected a score in [0, 1]"].append(name)
    faults["id written more than once"] = [name for name, times in Counter(ids).items() if times > 1]
    if wanted is not None:
        faults["missing"] = sorted(set(wanted) - set(ids))
        faults["not one of the videos asked for"] = sorted(set(ids) - set(wanted))
    return faults
