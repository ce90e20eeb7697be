"""What a competition is: where its scenes are, what they look like, and how an answer is scored and submitted.

A new competition is one new file with a class that derives from ``Competition`` and a row in
``lib/competitions/__init__.py``; no other room names it. It must state the attributes that have no value below and
those whose value does not fit, and seven methods:

    listed       which scenes there are, by file names alone       target    what a network learns
    answer       probabilities and decode settings -> an answer    tally     an answer and the truth -> counts
    score        counts -> the official score                      rows      an answer -> rows of the submission
    answer_from  rows of the submission -> the answer

Everything else has a default, which it may override:

    dataset.py     which scenes can be used, their images, targets and facts
    doctor.py      what is said of the data: missing, broken, suspicious
    sample.py      which scenes the sample submission asks for, and how it writes their ids
    answers.py     decode settings, how answers are made, counts and scores, pictures of answers
    submission.py  how a submission is written, linted and read back

Ids are strings; images are uint8; probabilities cross this border as uint8 *levels* (level / 255 = probability).
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from lib.competitions.answers import FALSE_ALARM, MISSED, OTHER_CLASS, Answers
from lib.competitions.decoding import Setting
from lib.competitions.doctor import Doctor
from lib.competitions.scene import (
    APART,
    SPLITS,
    Answer,
    Finding,
    Levels,
    Params,
    Row,
    Scene,
    settings_for,
    summarize,
    told,
)
from lib.competitions.submission import Submission
from lib.competitions.tables import SUBMISSION, Form
from lib.ensemble import search
from lib.settings import Section
from lib.tasks import Task

__all__ = ["APART", "FALSE_ALARM", "MISSED", "OTHER_CLASS", "SPLITS", "SUBMISSION", "Answer", "Competition", "Finding",
           "Levels", "Scene", "settings_for", "summarize", "told"]  # fmt: skip
"""All that other rooms need of competitions."""


class Competition(Doctor, Answers, Submission):
    """One competition's data, truth, metric and submission. Opening one reads no file."""

    name: ClassVar[str]
    """Its name in experiment files."""
    Options: ClassVar[type[Section]] = Section
    """What ``data.options`` may hold: typed fields with defaults and a line of meaning each."""
    tasks: Mapping[str, Task]
    """Stage role ("loc", "cls") -> what its network outputs."""
    images: tuple[str, ...] = ("image",)
    """Names of the images of a scene ("pre", "post"); a model's config picks among them."""
    labels: tuple[str, ...] = ()
    """Roles of the label files that a scene of "train" must have; none where labels stand in a table."""
    settings: Mapping[str, Setting] = {}
    """The decode settings, by name."""
    steps: Mapping[str, Callable] = {}
    """Post-processing steps, by name; each takes and returns an answer, its options come after."""
    steps_in_search: bool = True
    """Whether a search may go on around stated post-processing, which is then run at every point."""
    max_points: int = search.MAX_POINTS
    """The largest grid a search may span."""
    form: Form
    """What the rows of ``submission.csv`` look like."""
    other_folders: tuple[str, ...] = ()
    """Names of folders that come with the data and hold no scenes."""
    together: tuple[str, ...] = ()
    """Images of a scene that are stretched to bytes by one rule where they have more than 8 bits: before and after."""

    @abstractmethod
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List every scene of "train" or "test" by file names and tables alone, and what is strange about the names.

        Scenes that lack a file are listed too; of those with one id the first whole one is used. No "test" scenes is
        an empty list. Raises DataError where ``root`` is not this competition's data. Asked for once per split.
        """

    @abstractmethod
    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return the training target of a task: (H, W) uint8 in the form the task states, 255 = ignored.

        Raises DataError naming the scene where it has no label or one that cannot be used.
        """

    @abstractmethod
    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Turn one scene's blended probabilities into its answer; ``settings`` are complete and within their ranges."""

    @abstractmethod
    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one decoded answer: (K,) int64; equals ``count`` at the point that decoded it."""

    @abstractmethod
    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the official score of summed counts: (..., K) int64 -> (...) float64, higher is better, never NaN."""

    @abstractmethod
    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return the rows that a scene has in ``submission.csv``."""

    @abstractmethod
    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        """Return the answer that a scene's rows hold. Raises DataError where they hold none."""
