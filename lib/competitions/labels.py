"""Labels: one class for every picture (ImageNet, and any folder of classes or table of labels).

Layouts are those of ``classification.py``; ``data.options`` name any other. Example rows of ``train.csv``:
``0001,cheetah``, ``0001.png,cheetah`` or ``cats/0001.png,cheetah``: an id is a file's name or path, with or without its
suffix.

Metric: accuracy, mean F1 of the classes, or log-loss; the others are told as well. Probabilities come from levels, so
log-loss takes none for smaller than FLOOR. Answer: (C,) float64 probabilities of 6 decimals, as they are submitted.
There may be thousands of classes (MOST). Where a network gives none of them 0.2 %, all levels are 0, and the answer is
equal shares.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import BeforeValidator

from lib import metrics as scoring
from lib.competitions import sample as samples
from lib.competitions import tables
from lib.competitions.classification import Classification, ClassificationOptions
from lib.competitions.decoding import GAIN_STEPS, Setting, gains
from lib.competitions.listing import SUFFIXES, checked_classes, otherwise
from lib.competitions.records import matched, spellings
from lib.competitions.scene import Answer, Axes, Chain, Finding, Levels, Params, Row, Scene
from lib.competitions.suffixes import is_picture
from lib.competitions.tables import SUBMISSION, Form
from lib.ensemble import search
from lib.ensemble.search import Lattice
from lib.errors import DataError
from lib.tasks import Label, Task, names_of

PROBABILITIES = "probabilities.csv"
TOP = 5
MOST = 30_000
"""The most classes."""
MOST_CONFUSED = 254
"""Of more classes neither the confusion is told, which would be the square of their number, nor the F1 of each."""
UNIT = 2**32
"""Log-losses are added as whole numbers of 1 / UNIT, so that no order of adding matters."""
FLOOR = 0.5 / 255
"""Half a level: what a probability of level 0 may have been."""
TABLE_BYTES = 2**28
"""Largest count table of a search, one per fold."""
SHOWN_CLASSES = 10
"""So many classes that were told from the data are named."""
SHOWN = 320
"""Shorter side in pixels of a picture in the report."""


class LabelsOptions(ClassificationOptions):
    """What ``data.options`` may hold."""

    classes: Annotated[tuple[str, ...], BeforeValidator(partial(checked_classes, most=MOST))] | None = None
    """Names in the order of their indices; without them those of the data, sorted."""
    table: str = "train.csv"
    """CSV of labels; where it is not there, the folders in ``train`` are the classes."""
    metric: Literal["accuracy", "macro_f1", "log_loss"] = "accuracy"
    """The score that is searched for."""
    submit: Literal["label", "probabilities"] = "label"
    """What a submission holds: id and the name of the class, or id and a column per class."""


class Labels(Classification):
    """Pictures with one of several exclusive classes under ``root``; two classes are two, not a yes or no."""

    name = "labels"
    Options = LabelsOptions
    noun = "picture"
    suffixes = SUFFIXES
    _beside = False
    """Whether this is the table of probabilities that lies beside one of labels, which no sample is for."""

    # ---- scenes ---------------------------------------------------------------------------------------
    @property
    def table(self) -> Path:
        return self.root / self.options.table

    def is_scene(self, path: Path) -> bool:
        return is_picture(path)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, as stated or read from the data. Raises DataError where those cannot be used."""
        if self.options.classes:
            return self.options.classes
        try:
            return checked_classes(spellings(record.label for record in self.records if record.label), MOST)
        except ValueError as error:
            raise DataError(f"{self.root}: classes of the data: {error}; state data.options.classes") from error

    @property
    def tasks(self) -> Mapping[str, Task]:  # type: ignore[override]
        """One label out of the classes."""
        return {"cls": Label(self.classes)}

    @property
    def settings(self) -> Mapping[str, Setting]:  # type: ignore[override]
        """A gain for each class."""
        return gains(self.flags)

    @property
    def needs(self) -> str:
        few = len(self.classes) <= MOST_CONFUSED
        return f"a picture and a label out of {', '.join(self.classes) if few else f'{len(self.classes)} classes'}"

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    @cached_property
    def _meant(self) -> dict[str, int]:
        """Label as the data writes it -> index of its class; upper case and ``1.0`` may stand for lower case and 1."""
        return matched({record.label for record in self.records if record.label}, self._indices, shared=True)

    def index_of(self, label: str) -> int | None:
        return self._meant.get(label)

    @property
    def stated_classes(self) -> Sequence[str]:
        return self.options.classes or ()

    def odd_labels(self) -> list[Finding]:
        means = {label: self.classes[index] for label, index in self._meant.items()}
        kind = "labels written otherwise than their class, read as that"
        return [*super().odd_labels(), *otherwise(kind, self.table.name, means)]

    def remarks(self) -> list[str]:
        """Tell which classes there are, where the options do not state them."""
        if self.options.classes:
            return []
        count, shown = len(self.classes), ", ".join(self.classes[:SHOWN_CLASSES])
        more = f" and {count - SHOWN_CLASSES} more" if count > SHOWN_CLASSES else ""
        pictures = sum(map(self.labelled, self._list("train")))
        odd = 2 * count > pictures and count >= SHOWN_CLASSES
        question = f", for {pictures} pictures: are the labels classes, or numbers that are measured?" if odd else ""
        return [f"{count} classes told from the labels (data.options.classes states them): {shown}{more}{question}"]

    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the pictures of a split, and the classes that have none."""
        scenes, findings = super().listed(split)
        if split == "train":
            held = Counter(self.truth(scene) for scene in scenes if self.labelled(scene))
            lacking = [name for index, name in enumerate(self.classes) if not held[index]]
            findings = findings + [Finding("class without picture", name) for name in lacking]
        return scenes, findings

    def read(self, scene: Scene, image: str = "image") -> np.ndarray:
        """Read the picture as its only frame, (1, H, W, 3) uint8 RGB. Raises DataError naming scene and file."""
        return super().read(scene, image)[None]

    # ---- answers --------------------------------------------------------------------------------------
    def faults(self, decode: Params, axes: Axes, chains: Sequence[Chain] = (), unseen: Mapping = {}) -> list[str]:
        """Return what is wrong with settings; where no classes are stated, any name of a class is taken for right."""
        known = copy(self)
        if not self.options.classes:  # their names are in the data, which is not read here
            gains = (str(name) for name in (*decode, *axes, *unseen) if str(name).startswith("gain_"))
            known.classes = ("class", *dict.fromkeys(name.removeprefix("gain_") for name in gains))
            known.flags = names_of(known.classes)
        return super(Labels, known).faults(decode, axes, chains, unseen)

    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Turn levels (C, 1, F) uint8 into probabilities (C,): level times gain, divided by their sum."""
        return self._decode(levels, [settings])[0]

    def _decode(self, levels: Levels, points: Sequence[Params]) -> np.ndarray:
        """Decode under several settings: (P, C) float64 of 6 decimals; equal shares where all is 0."""
        gains = np.array([[round(point[f"gain_{name}"] * GAIN_STEPS) for name in self.flags] for point in points])
        weighed = levels["cls"].sum((1, 2), dtype=np.int64) * gains  # (P, C)
        weighed += ~weighed.any(-1, keepdims=True)
        return np.round(weighed / weighed.sum(-1, keepdims=True), 6)

    @property
    def max_points(self) -> int:  # type: ignore[override]
        return min(search.MAX_POINTS, TABLE_BYTES // (8 * self._length))

    @property
    def _length(self) -> int:
        return 3 * len(self.classes) + 2

    def count(self, levels: Levels, truth: Answer, grid: Lattice) -> np.ndarray:
        """Count one picture for every point: (P, 3 * C + 2) int64."""
        return self._tally(self._decode(levels, grid), truth)

    @property
    def counted(self) -> int | None:
        return self._length if self.options.classes else None  # else their names are in the data

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: per class hits, answers and truths, whether truth is among the first TOP, log-loss times
        UNIT."""
        return self._tally(answer[None], truth)[0]

    def _tally(self, probs: np.ndarray, truth: int) -> np.ndarray:
        """Count (P, C) probabilities of one picture: (P, 3 * C + 2) int64; ties go to the lower class."""
        points, classes = probs.shape
        counts = np.zeros((points, self._length), np.int64)
        each, answered = np.arange(points), probs.argmax(-1)
        counts[each, answered] = answered == truth
        counts[each, classes + answered] = counts[:, 2 * classes + truth] = 1
        own = probs[:, truth, None]
        before = (probs > own).sum(-1) + (probs[:, :truth] == own).sum(-1)
        counts[:, -2] = before < TOP
        counts[:, -1] = np.rint(-np.log(np.maximum(own[:, 0], FLOOR)) * UNIT)
        return counts

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the chosen metric, so that higher is better: (..., K) -> (...) float64."""
        return {"accuracy": self._accuracy, "macro_f1": self._macro_f1,
                "log_loss": lambda c: -self._log_loss(c)}[self.options.metric](np.asarray(counts))  # fmt: skip

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the F1 of each class: (..., K) -> (..., C) float64, 0 for one found in neither truth nor answer."""
        return np.nan_to_num(self._f1(np.asarray(counts)))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return accuracy, top-5 accuracy (of more than 5 classes), log-loss and F1, mean and per class (of not more
        than MOST_CONFUSED)."""
        top = {"top5": scoring.ratio(counts[..., -2], self._total(counts), 0.0)} if len(self.classes) > TOP else {}
        named = {"accuracy": self._accuracy(counts), **top, "log_loss": self._log_loss(counts)}
        each = {f"f1_{name}": value for name, value in zip(self.flags, self.class_scores(counts), strict=True)}
        return {**named, "macro_f1": self._macro_f1(counts), **(each if len(each) <= MOST_CONFUSED else {})}

    def _parts(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return hits, answers and truths of each class, (..., C) each."""
        hits, answered, true = np.split(counts[..., :-2], 3, axis=-1)
        return hits, answered, true

    def _total(self, counts: np.ndarray) -> np.ndarray:
        return self._parts(counts)[2].sum(-1)

    def _accuracy(self, counts: np.ndarray) -> np.ndarray:
        return scoring.ratio(self._parts(counts)[0].sum(-1), self._total(counts), 0.0)

    def _f1(self, counts: np.ndarray) -> np.ndarray:
        """Return the F1 of each class, NaN for one found in neither truth nor answer."""
        hits, answered, true = self._parts(counts)
        return scoring.dice(np.stack([hits, answered - hits, true - hits], -1), empty=np.nan)

    def _macro_f1(self, counts: np.ndarray) -> np.ndarray:
        return np.nan_to_num(scoring.mean_present(self._f1(counts)))

    def _log_loss(self, counts: np.ndarray) -> np.ndarray:
        """Return the mean negative log-likelihood, that of a guess where nothing was counted."""
        return scoring.ratio(counts[..., -1] / UNIT, self._total(counts), np.log(len(self.classes)))

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the confusion, truth by rows: (C * C,) int64; nothing of more than MOST_CONFUSED classes."""
        classes = len(self.classes)
        if classes > MOST_CONFUSED:
            return np.zeros(0, np.int64)
        confusion = np.zeros((classes, classes), np.int64)
        confusion[truth, answer.argmax()] = 1
        return confusion.ravel()

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of the classes, truth by rows, of not too many."""
        return super().tables(details) if len(self.classes) <= MOST_CONFUSED else {}

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return the picture; its title says the truth (where known), the answer and its probability."""
        if np.ndim(answer) == 0:  # the truth
            answer = np.eye(len(self.classes))[answer]
        picture, best = self.read(scene)[0], int(answer.argmax())
        truth = f"{self.classes[self.truth(scene)]}, " if self.labelled(scene) else ""
        scale = SHOWN / min(picture.shape[:2])
        size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        shown = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
        return [(f"{truth}answer {self.classes[best]} {answer[best]:.2f}", shown)]

    # ---- submission -----------------------------------------------------------------------------------
    @property
    def form(self) -> Form:  # type: ignore[override]
        """Id and label, or id and a column per class, under the sample's header where there is one.

        Raises DataError for a sample that asks for something else.
        """
        columns = self.options.columns
        own = (columns.id, *((columns.label,) if self._submits_label else self.classes))
        if self.sampled is None or self._beside:
            return Form(own, origin=None)
        names = self.sampled.header[1:]
        other, fits = "probabilities" if self._submits_label else "label", sorted(names) == sorted(self.classes)
        way_out = f"set data.options.submit: {other}" if fits or len(names) == 1 else ""
        samples.check_header(self.sampled, ("an id", *own[1:]), way_out)
        if not self._submits_label and not fits:
            odd = ", ".join(sorted({*names} ^ {*self.classes})[:8])
            raise DataError(f"{self.sampled.path}: expected a column for each of {len(self.classes)} classes, found "
                            f"others ({odd}); state data.options.classes as the header has them, or set "
                            "data.options.sample to null to do without it")  # fmt: skip
        return Form(self.sampled.header, origin=None)

    @property
    def _columns(self) -> list[int]:
        """The index of the class whose probability stands in each column but the first."""
        return [self._indices[name] for name in self.form.columns[1:]]

    @property
    def _submits_label(self) -> bool:
        return self.options.submit == "label"

    @cached_property
    def _probabilities(self) -> "Labels":
        """The same competition as one that submits probabilities, which lie beside labels."""
        other = copy(self)
        other.options, other._beside = self.options.model_copy(update={"submit": "probabilities"}), self._submits_label
        return other

    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return a picture's row: its class, or its probabilities."""
        label = self.classes[int(answer.argmax())]
        if self._submits_label:
            return [(self.row_id(scene), label)]
        return [(self.row_id(scene), *(f"{answer[index]:.6f}" for index in self._columns))]

    def written(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return a picture's row and, beside the name of a class, that of its probabilities."""
        return self.rows(scene, answer) + (self._probabilities.rows(scene, answer) if self._submits_label else [])

    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        """Return a row's probabilities; those of a label are 0 and 1."""
        texts = rows[0][1:]
        if self._submits_label:
            return np.array([name == texts[0] for name in self.classes], np.float64)
        answer = np.zeros(len(self.classes))
        answer[self._columns] = texts
        return answer

    def row_fault(self, row: Row) -> str:
        if self._submits_label:
            return "" if row[1] in self.classes else "label is none of the classes"
        probs = [tables.number(text) for text in row[1:]]
        if not all(0 <= p <= 1 for p in probs):  # false for NaN
            return "expected probabilities in [0, 1]"
        return "" if abs(sum(probs) - 1) < 1e-3 else "probabilities do not add up to 1"

    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write ``submission.csv`` and, beside names of classes, their probabilities."""
        pairs = list(answers)
        written = super().write_submission(pairs, folder)
        beside = Path(folder) / PROBABILITIES
        return [*written, self._probabilities.write_table(pairs, beside)] if self._submits_label else written

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        path = Path(folder) / (PROBABILITIES if self._submits_label else SUBMISSION)
        return self._probabilities._read_back(path, scene)

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a CSV, or those in a folder; labels and probabilities side by side must agree."""
        faults = super().lint(path, scenes, sample)
        beside = Path(path) / PROBABILITIES
        if not self._submits_label or not beside.is_file():
            return faults
        other = self._probabilities
        asked = None if scenes is None else {name: (None, None) for scene in scenes for name in self.row_names(scene)}
        if faults := faults + tables.lint(beside, other.form, asked, None, other.row_fault):
            return faults
        rows = tables.read(beside, other.form)
        best = {row[0]: self.classes[np.argmax([float(text) for text in row[1:]])] for row in rows}
        table = Path(path) / SUBMISSION
        labels = {row[0]: row[1] for row in tables.read(table, self.form)}
        if odd := sorted(best.keys() ^ labels.keys()):
            return [tables.sentence(beside, "row", f"in one of it and {table.name} alone", odd)]
        differing = [name for name, label in labels.items() if best[name] != label]
        return [tables.sentence(table, "row", "label is not the most probable class", differing)] if differing else []
