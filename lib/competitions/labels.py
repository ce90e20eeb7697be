"""Labels: one class for every picture (ImageNet, and any folder of classes or table of labels).

Layouts, told apart by whether the table is there; ``data.options`` name any other::

    root/train/0001.png                 the pictures, of any size, and
    root/train.csv                      id,label and, where known, group, domain, split
    root/train/cheetah/0001.jpg         or, without a table, a folder per class
    root/test/0002.png                  no labels
    root/sample_submission.csv          where there is one, its header and order of rows are kept

Example rows: ``0001,cheetah``, or ``0001.png,cheetah``: an id is a file's name, with or without its suffix.

Metric: accuracy, mean F1 of the classes, or log-loss; the others are told as well. Probabilities come from levels, so
log-loss takes none for smaller than FLOOR. Answer: (C,) float64 probabilities of 6 decimals, as they are submitted.
Targets are uint8: at most 254 classes.

This module is a little longer than 300 lines because both layouts, their data doctor, the decoding and the linter
speak of the same pictures; every section is plain functions on them.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from lib import metrics as scoring
from lib.competitions import contract
from lib.competitions.contract import Answer, Finding, Grid, Levels, Scene
from lib.ensemble import search
from lib.errors import ConfigError, DataError
from lib.files import whole_file
from lib.scenes import raster
from lib.tasks import IGNORE, Label

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
COLUMNS = {"id": "id", "label": "label", "group": "group", "domain": "domain", "split": "split"}
"""What a column is for -> its name in the table; only the first two must be there."""
RESERVED = ("id", "fold", "group")
"""Columns of folds.csv that no class may be called."""
METRICS = ("accuracy", "macro_f1", "log_loss")
FORMS = ("label", "probabilities")
CSV, PROBABILITIES, SAMPLE = "submission.csv", "probabilities.csv", "sample_submission.csv"

TOP = 5
UNIT = 2**32
"""Log-losses are added as whole numbers of 1 / UNIT, so that no order of adding matters."""
FLOOR = 0.5 / 255
"""Half a level: what a probability of level 0 may have been."""
GAIN_STEPS = 1000
"""Gains are used to a thousandth, as integers."""
TABLE_BYTES = 2**28
"""Largest count table of a search, one per fold."""
SHOWN = 320
"""Shorter side in pixels of a picture in the report."""


@dataclass(frozen=True)
class Row:
    """A labelled picture. ``label``: index of its class; ``split``: as shipped."""

    scene: Scene
    label: int
    split: str = ""


class Competition(contract.Competition):
    """Pictures with one of several exclusive classes under ``root``; two classes are two, not a yes or no.

    classes: names in the order of their indices; without them those of the data, sorted. train, test: folders. table:
    CSV of labels; columns: as COLUMNS, in part. metric: one of METRICS. submit: ``label`` (id and name of the class) or
    ``probabilities`` (id and a column per class). sample: sample submission.
    """

    name = "labels"
    images = ("image",)

    def __init__(
        self, root: str | Path, *, classes: Sequence[str] = (), train: str = "train", test: str = "test",
        table: str = "train.csv", columns: Mapping[str, str] | None = None, metric: str = "accuracy",
        submit: str = "label", sample: str = SAMPLE,
    ) -> None:  # fmt: skip
        for option, value, known in (("metric", metric, METRICS), ("submit", submit, FORMS)):
            if value not in known:
                raise ConfigError(f"data.options.{option}: expected one of {', '.join(known)}, got {value!r}")
        self.asked = dict(columns or {})
        if unknown := self.asked.keys() - COLUMNS.keys():
            raise ConfigError(f"data.options.columns: expected {', '.join(COLUMNS)}, got {', '.join(sorted(unknown))}")
        self.root = Path(root)
        self.train, self.test = self.root / train, self.root / test
        self.table, self.sample = self.root / table, self.root / sample
        self.columns, self.metric, self.submit = COLUMNS | self.asked, metric, submit
        self._listed: tuple[dict[str, Row], list[Finding]] | None = None
        self._scenes: dict[str, list[Scene]] = {}
        self._labels: list[tuple[str, str, dict[str, str], Path | None]] | None = None
        self._submitted: tuple[Any, dict[str, np.ndarray]] = None, {}
        self.classes = _checked(classes) if classes else _checked(sorted({row[1] for row in self._read_labels()}))
        self.flags = tuple(re.sub(r"\W+", "_", name).strip("_") or f"class_{name}" for name in self.classes)
        if len(set(self.flags)) < len(self.flags) or set(self.flags) & set(RESERVED):
            raise ConfigError(f"data.options.classes: expected names that differ in letters and digits and are none of "
                              f"{', '.join(RESERVED)}, got {', '.join(self.classes)}")  # fmt: skip
        self.tasks = {"cls": Label(self.classes)}

    # ---- data -----------------------------------------------------------------------------------------
    def scenes(self, split: str) -> list[Scene]:
        """Return the labelled pictures ("train") or those of the test folder, sorted by id; reads no pixels.

        Raises DataError when "train" has no picture with a label.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split: expected train or test, got {split!r}")
        if split not in self._scenes:
            found = self._list_test() if split == "test" else [row.scene for row in self._rows().values()]
            if split == "train" and not found:
                raise DataError(f"{self.train}: expected pictures with labels, found none whose label is one of "
                                f"{', '.join(self.classes)}; 01_prepare_folds.py lists what is wrong")  # fmt: skip
            self._scenes[split] = sorted(found, key=lambda scene: scene.id)
        return self._scenes[split]

    def inspect(self) -> list[Finding]:
        """Decode every picture once and report what is missing, broken or suspicious."""
        rows = self._rows().values()
        findings = list(self._listed[1])
        held = Counter(row.label for row in rows)
        findings += [Finding("class without picture", name) for i, name in enumerate(self.classes) if not held[i]]
        scenes = [*(row.scene for row in rows), *self._list_test()]
        with ThreadPoolExecutor(max_workers=2) as pool:
            inspected = pool.map(_inspect, scenes)
            for found in tqdm(inspected, "data check", total=len(scenes), leave=False, disable=None):
                findings += found
        return findings

    def read(self, scene: Scene, image: str = "image") -> np.ndarray:
        """Read the picture as its only frame, (1, H, W, 3) uint8 RGB. Raises DataError naming scene and file."""
        try:
            return raster.read_image(scene.files[image])[None]
        except DataError as error:
            raise DataError(f"scene {scene.id}: {error}") from error

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (1, 1) uint8: the index of the class."""
        return np.full((1, 1), self.truth(scene), np.uint8)

    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return which class the picture has, a flag per class."""
        label = self.truth(scene)
        return {name: index == label for index, name in enumerate(self.flags)}

    def published_split(self) -> dict[str, str]:
        """Return the ``split`` column of the table, where it has one."""
        return {row.scene.id: row.split for row in self._rows().values() if row.split}

    # ---- answers --------------------------------------------------------------------------------------
    def truth(self, scene: Scene) -> Answer:
        """Return the index of the class. Raises DataError for a picture without a label."""
        row = self._rows().get(scene.id)
        if row is None or row.scene.files != scene.files:
            raise DataError(f"scene {scene.id}: expected a label, found none; is this a test picture?")
        return row.label

    def decode(self, levels: Levels, params: Mapping[str, Any]) -> Answer:
        """Turn levels (C, 1, F) uint8 into probabilities (C,): level times gain, divided by their sum.

        ``params``: ``gain_<class>``, to a thousandth. Raises ConfigError for anything else.
        """
        given = dict(params)
        if not given.get("postprocess", True):  # no steps, as the search says; there are none for a label
            del given["postprocess"]
        if unknown := given.keys() - self.defaults().keys():
            raise ConfigError(f"decode: expected {', '.join(self.defaults())}, got also {', '.join(sorted(unknown))}")
        return self._decode(levels, [{**self.defaults(), **given}])[0]

    def _decode(self, levels: Levels, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Decode under several settings: (P, C) float64 of 6 decimals; equal shares where all is 0."""
        gains = np.array([[round(point[f"gain_{name}"] * GAIN_STEPS) for name in self.flags] for point in points])
        if gains.min() < 0 or gains.max() > 1000 * GAIN_STEPS:
            raise ConfigError(f"decode: expected gains of 0..1000, got {gains.min() / 1000} .. {gains.max() / 1000}")
        weighed = levels["cls"].sum((1, 2), dtype=np.int64) * gains  # (P, C)
        weighed += ~weighed.any(-1, keepdims=True)
        return np.round(weighed / weighed.sum(-1, keepdims=True), 6)

    def defaults(self) -> dict[str, Any]:
        """Return gains of 1: the class with the highest probability."""
        return {f"gain_{name}": 1.0 for name in self.flags}

    def grid(self, axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> Grid:
        """Return the lattice of decode settings."""
        points = search.lattice(axes, {**self.defaults(), **fixed})
        if len(points) * 8 * self._length > TABLE_BYTES:
            raise ConfigError(f"search: expected at most {TABLE_BYTES // (8 * self._length)} points for "
                              f"{len(self.classes)} classes, got {len(points)}; use fewer values")  # fmt: skip
        return Grid(points, points.shape)

    @property
    def _length(self) -> int:
        return len(self.classes) ** 2 + 2

    def count(self, levels: Levels, truth: Answer, grid: Grid) -> np.ndarray:
        """Count one picture for every point: (P, C * C + 2) int64."""
        return self._tally(self._decode(levels, list(grid.points)), truth)

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: the confusion, truth by rows, whether truth is among the first TOP, log-loss times UNIT."""
        return self._tally(answer[None], truth)[0]

    def _tally(self, probs: np.ndarray, truth: int) -> np.ndarray:
        """Count (P, C) probabilities of one picture: (P, C * C + 2) int64; ties go to the lower class."""
        points, classes = probs.shape
        counts = np.zeros((points, self._length), np.int64)
        counts[np.arange(points), truth * classes + probs.argmax(-1)] = 1
        own = probs[:, truth, None]
        before = (probs > own).sum(-1) + (probs[:, :truth] == own).sum(-1)
        counts[:, -2] = before < TOP
        counts[:, -1] = np.rint(-np.log(np.maximum(own[:, 0], FLOOR)) * UNIT)
        return counts

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the chosen metric, so that higher is better: (..., K) -> (...) float64."""
        return {"accuracy": self._accuracy, "macro_f1": self._macro_f1,
                "log_loss": lambda c: -self._log_loss(c)}[self.metric](np.asarray(counts))  # fmt: skip

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the F1 of each class: (..., K) -> (..., C) float64, 0 for one found in neither truth nor answer."""
        return np.nan_to_num(self._f1(np.asarray(counts)))

    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return the score, accuracy, top-5 accuracy (of more than 5 classes), log-loss and F1, mean and per class."""
        top = float(_share(counts[..., -2], self._total(counts)))
        named = {"score": float(self.score(counts)), "accuracy": float(self._accuracy(counts))}
        named |= {"top5": top} if len(self.classes) > TOP else {}
        named |= {"log_loss": float(self._log_loss(counts)), "macro_f1": float(self._macro_f1(counts))}
        return named | {f"f1_{name}": float(v) for name, v in zip(self.flags, self.class_scores(counts), strict=True)}

    def _confusion(self, counts: np.ndarray) -> np.ndarray:
        return counts[..., :-2].reshape(*counts.shape[:-1], len(self.classes), len(self.classes))

    def _total(self, counts: np.ndarray) -> np.ndarray:
        return counts[..., :-2].sum(-1)

    def _accuracy(self, counts: np.ndarray) -> np.ndarray:
        return np.nan_to_num(scoring.pixel_accuracy(self._confusion(counts)))

    def _f1(self, counts: np.ndarray) -> np.ndarray:
        """Return the F1 of each class, NaN for one found in neither truth nor answer."""
        hits, answered, true = np.moveaxis(scoring.overlaps(self._confusion(counts)), -1, 0)
        return scoring.dice(np.stack([hits, answered - hits, true - hits], -1), empty=np.nan)

    def _macro_f1(self, counts: np.ndarray) -> np.ndarray:
        return np.nan_to_num(scoring.mean_present(self._f1(counts)))

    def _log_loss(self, counts: np.ndarray) -> np.ndarray:
        """Return the mean negative log-likelihood, that of a guess where nothing was counted."""
        return _share(counts[..., -1] / UNIT, self._total(counts), np.log(len(self.classes)))

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the confusion, truth by rows: (C * C,) int64."""
        return self.tally(answer, truth)[:-2]

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of the classes, truth by rows."""
        matrix = details.reshape(len(self.classes), -1).tolist()
        return {"confusion": {name: dict(zip(self.flags, row)) for name, row in zip(self.flags, matrix)}}

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return the picture; its title says the truth (where known), the answer and its probability."""
        if np.ndim(answer) == 0:  # the truth
            answer = np.eye(len(self.classes))[answer]
        picture, best = self.read(scene)[0], int(answer.argmax())
        known = self._rows().get(scene.id)
        truth = f"{self.classes[known.label]}, " if known and known.scene == scene else ""
        scale = SHOWN / min(picture.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        shown = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
        return [(f"{truth}answer {self.classes[best]} {answer[best]:.2f}", shown)]

    # ---- submission -----------------------------------------------------------------------------------
    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write ``submission.csv`` in the order of the sample or of ids; beside names of classes the probabilities."""
        found = {scene.id: answer for scene, answer in answers}
        sample = [row[0] for row in _read_table(self.sample)[1:]] if self.sample.is_file() else []
        ids = sample if set(sample) == found.keys() else sorted(found)  # out-of-fold pictures are not in the sample
        rows = [[i, *(f"{p:.6f}" for p in found[i])] for i in ids]
        tables = {CSV if self.submit == "probabilities" else PROBABILITIES: [self._header("probabilities"), *rows]}
        if self.submit == "label":
            named = [[i, self.classes[int(found[i].argmax())]] for i in ids]
            tables[CSV] = [self._header("label"), *named]
        for name, table in sorted(tables.items(), reverse=True):
            _write_table(folder / name, table)
        return [folder / name for name in sorted(tables, reverse=True)]

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one picture's probabilities back."""
        path = Path(folder) / (CSV if self.submit == "probabilities" else PROBABILITIES)
        state = path, path.stat().st_mtime_ns if path.is_file() else 0
        if self._submitted[0] != state:  # asked once per picture: the file is read once
            _, *rows = _read_table(path)
            self._submitted = state, {row[0]: np.array([float(text) for text in row[1:]]) for row in rows}
        if scene.id not in self._submitted[1]:
            raise DataError(f"{path}: expected a row of {scene.id!r}, found none; write the submission again")
        return self._submitted[1][scene.id]

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a CSV, or those in a folder: header, ids (each once, none foreign), values.

        ``scenes``: the pictures that must be answered. ``sample``: a sample submission with the header, ids and order
        to keep; by default the option's, where it has these ids. Labels and probabilities side by side must agree.
        """
        path = Path(path)
        table = path / CSV if path.is_dir() else path
        try:
            rows = _read_table(table)
            standard = _read_table(sample) if sample else _read_table(self.sample) if self.sample.is_file() else None
            beside = _read_table(path / PROBABILITIES) if (path / PROBABILITIES).is_file() else None
        except DataError as error:
            return [str(error)]
        ids = [row[0] for row in rows[1:]]
        wanted = None if scenes is None else [scene.id for scene in scenes]
        if standard and sample is None and {row[0] for row in standard[1:]} != set(wanted or ids):
            standard = None  # out-of-fold pictures are not those of the sample
        if standard:
            wanted = [row[0] for row in standard[1:]]
        faults = self._lint_rows(table, rows, self.submit, wanted, standard[0] if standard else None)
        if standard and not faults and ids != wanted:
            faults.append(f"{table}: expected the sample's order of rows, got another")
        if beside and self.submit == "label":
            faults += self._lint_rows(path / PROBABILITIES, beside, "probabilities", wanted, None)
        if faults or not beside or self.submit != "label":
            return faults
        best = {row[0]: self.classes[int(np.argmax([float(text) for text in row[1:]]))] for row in beside[1:]}
        differing = [row[0] for row in rows[1:] if best.get(row[0]) != row[1]]
        return [_sentence(table, "label is not the most probable class", differing)] if differing else []

    def _lint_rows(
        self, path: Path, rows: list[list[str]], form: str, wanted: Sequence[str] | None, header: list[str] | None
    ) -> list[str]:
        """Lint one CSV of a form: its header, its ids, the value of every row."""
        expected = header or self._header(form)
        faults = []
        if rows[0] != expected:
            faults.append(f"{path}: expected the header {','.join(expected)!r}, got {','.join(rows[0])[:80]!r}")
        kinds: dict[str, list[str]] = defaultdict(list)
        for row in rows[1:]:
            if fault := self._fault(row, form):
                kinds[fault].append(row[0] if row else "an empty line")
        ids = [row[0] for row in rows[1:] if row]
        kinds["id written more than once"] = [name for name, times in Counter(ids).items() if times > 1]
        if wanted is not None:
            kinds["missing"] = sorted(set(wanted) - set(ids))
            kinds["not one of the pictures asked for"] = sorted(set(ids) - set(wanted))
        return faults + [_sentence(path, kind, names) for kind, names in kinds.items() if names]

    def _fault(self, row: list[str], form: str) -> str:
        """Say what is wrong with a row, "" if nothing."""
        fields = 2 if form == "label" else 1 + len(self.classes)
        if len(row) != fields:
            return f"expected {fields} fields"
        if form == "label":
            return "" if row[1] in self.classes else "label is none of the classes"
        try:
            probs = [float(text) for text in row[1:]]
        except ValueError:
            probs = [np.nan]
        if not all(0 <= p <= 1 for p in probs):  # false for NaN
            return "expected probabilities in [0, 1]"
        return "" if abs(sum(probs) - 1) < 1e-3 else "probabilities do not add up to 1"

    def _header(self, form: str) -> list[str]:
        return [self.columns["id"], *([self.columns["label"]] if form == "label" else self.classes)]

    # ---- files ----------------------------------------------------------------------------------------
    def _read_labels(self) -> list[tuple[str, str, dict[str, str], Path | None]]:
        """Read (id, label, further columns, path or None) of every labelled picture; files are listed once."""
        if self._labels is not None:
            return self._labels
        if self.table.is_file():
            names = _named(self.train)
            header, *rows = _read_table(self.table)
            must = [self.columns[role] for role in ("id", "label", *self.asked)]
            if missing := [column for column in must if column not in header]:
                raise DataError(f"{self.table}: expected the columns {', '.join(dict.fromkeys(must))}, found no "
                                f"{' and no '.join(missing)}; set data.options.columns")  # fmt: skip
            records = [dict(zip(header, row)) for row in rows]
            rows = [{role: record.get(column, "") for role, column in self.columns.items()} for record in records]
            found = [(row["id"], row["label"], row, names.get(row["id"])) for row in rows]
        else:
            folders = sorted(p for p in self.train.iterdir() if p.is_dir()) if self.train.is_dir() else []
            found = [(f"{folder.name}_{path.stem}", folder.name, {}, path)
                     for folder in folders for path in _pictures(folder)]  # fmt: skip
        if not found:
            raise DataError(f"{self.root}: expected the table {self.table.name}, or a folder of pictures per class in "
                            f"{self.train.name}/, found neither; set data.root or data.options")  # fmt: skip
        self._labels = found
        return found

    def _rows(self) -> dict[str, Row]:
        """Return the pictures with a label, by id; what cannot be used is remembered for ``inspect``."""
        if self._listed is None:
            labelled = self._read_labels()
            given: dict[str, set[str]] = defaultdict(set)
            for scene_id, label, _, _ in labelled:
                given[scene_id].add(label)
            rows: dict[str, Row] = {}
            findings = []
            for scene_id, label, more, path in labelled:
                if scene_id in rows or len(given[scene_id]) > 1:
                    findings.append(Finding("label given twice", scene_id, " and ".join(sorted(given[scene_id]))))
                elif path is None:
                    findings.append(Finding("label without picture", scene_id, label))
                elif label not in self.classes:
                    findings.append(Finding("label is none of the classes", scene_id, repr(label)))
                else:
                    scene = Scene(scene_id, {"image": path}, more.get("domain", ""), group=more.get("group", ""))
                    rows[scene_id] = Row(scene, self.classes.index(label), more.get("split", ""))
            if self.table.is_file():
                used = {path for _, _, _, path in labelled}
                bare = [path.name for path in _pictures(self.train) if path not in used]
                findings += [Finding("picture without label", name) for name in bare]
            self._listed = rows, findings
        return self._listed[0]

    def _list_test(self) -> list[Scene]:
        """List the test pictures; their ids have a suffix where the sample's, or else the table's, have one."""
        pictures = _pictures(self.test) if self.test.is_dir() else []
        ids = {row[0] for row in _read_table(self.sample)[1:]} if self.sample.is_file() else set()
        if not ids and self.table.is_file():
            ids = {self._read_labels()[0][0]}
        whole = any(Path(name).suffix.lower() in SUFFIXES for name in ids)
        return [Scene(path.name if whole else path.stem, {"image": path}) for path in pictures]


def _checked(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes. Raises ConfigError unless they are 2 to 254 different names."""
    names = tuple(classes)
    if isinstance(classes, str) or not 2 <= len(names) < IGNORE or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"data.options.classes: expected 2 to {IGNORE - 1} names, got {len(names)}: "
                          f"{', '.join(map(str, names))[:80]}")  # fmt: skip
    if len(set(names)) < len(names):
        raise ConfigError(f"data.options.classes: expected different names, got {', '.join(names)}")
    return names


def _pictures(folder: Path) -> list[Path]:
    """List the pictures of a folder, sorted by name. Raises DataError where there is no such folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of pictures, found none; set data.root or data.options")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _named(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by name, with and without suffix; of two with one stem the first has it."""
    found: dict[str, Path] = {}
    for path in _pictures(folder):
        found.setdefault(path.stem, path)
        found[path.name] = path
    return found


def _read_table(path: Path) -> list[list[str]]:
    """Read a CSV as rows of text, header first. Raises DataError where it is missing, not text, or empty."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8, got {error}") from error
    if not rows:
        raise DataError(f"{path}: expected a header and rows, got an empty file")
    return rows


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV; it appears under its name only when it is whole."""
    with whole_file(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _sentence(path: Path, kind: str, names: list[str]) -> str:
    return f"{path}: {len(names)} row{'s' * (len(names) > 1)}: {kind} ({', '.join(names[:3])})"


def _inspect(scene: Scene) -> list[Finding]:
    """Decode a picture and report what is wrong with it."""
    try:
        picture = raster.read_image(scene.files["image"])
    except DataError as error:
        return [Finding("unreadable picture", scene.id, str(error))]
    return [] if picture.any() else [Finding("picture all black", scene.id, str(scene.files["image"]))]


def _share(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Divide, giving ``empty`` where the whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(whole.shape, empty, np.float64), where=whole != 0)
