"""What a competition is: where its scenes are, what they look like, and how an answer is scored and submitted.

A new competition is one new file with a class that fulfils this contract and a row in ``lib/competitions/__init__.py``;
no other room names it. Seven methods are abstract, everything else has a default:

    listed       which scenes there are, by file names alone       target    what a network learns
    answer       probabilities and decode settings -> an answer    tally     an answer and the truth -> counts
    score        counts -> the official score                      rows      an answer -> rows of the submission
    answer_from  rows of the submission -> the answer

Beside them stand a few attributes: ``name``, ``Options``, ``tasks``, ``images``, ``settings``, ``form``.

Ids are strings; images are uint8; probabilities cross this border as uint8 *levels* (level / 255 = probability).
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from lib.competitions import decoding, tables
from lib.competitions.decoding import Setting
from lib.competitions.facts import Facts, Memo, state_of
from lib.competitions.tables import Form, Name, Size
from lib.ensemble import search
from lib.ensemble.search import Lattice
from lib.errors import ConfigError, DataError
from lib.scenes import raster
from lib.scenes.blemishes import blemishes
from lib.settings import Limits, Section, limits, set_limits
from lib.tasks import Task, known

SUBMISSION = "submission.csv"
"""Every competition writes its answers under this name; further formats lie beside it."""
SPLITS = ("train", "test")
COLOURS = np.array([[250, 200, 40], [60, 220, 90], [70, 150, 250], [240, 80, 80], [200, 90, 240], [60, 220, 220]])
"""RGB of the first classes in pictures."""

_AROUND_STEPS = "decode.postprocess: cannot be searched around; remove it, or leave out search"

Answer = Any
"""What a competition wants for one scene, in a shape of its own choice (a mask, two masks by name, a number)."""

Levels = Mapping[str, np.ndarray]
"""Blended probabilities of one scene: task role -> (C, H, W) uint8, level / 255 = probability."""

Params = Mapping[str, Any]
"""Decode settings by name, and under ``postprocess`` a chain of steps."""

Axes = Mapping[str, Sequence[Any]]
"""Decode setting -> the values that a search tries."""

Chain = Sequence[Mapping[str, Any]]
"""Post-processing steps in their order, each ``{"name": ..., <option>: <value>}``."""

Row = Sequence[str]
"""A row of a submission, all text."""


@dataclass(frozen=True)
class Scene:
    """The unit that gets one prediction.

    ``files`` maps a role to its path: each of the competition's ``files`` (by default its ``images``) that is there,
    and on labelled scenes each of its ``labels``. The size of a scene is that of the first of its images.
    """

    id: str
    files: Mapping[str, Path] = field(hash=False)
    domain: str = ""
    """Where it comes from (disaster event, organ, video source); scores are also given per domain."""
    position: tuple[float, float] | None = None
    """(longitude, latitude) of the centre in degrees, where known."""
    group: str = ""
    """What must never be split over folds (a video, a patient, a person); "": the scene stands alone."""
    pixel_size: float | None = None
    """Physical size of a pixel, in the competition's unit, where known."""
    source: str = ""
    """The data set that it was taken from, where that is told apart from its domain."""

    @property
    def data_source(self) -> str:
        """What ``train.sampling.sources`` goes by: the source, or else the domain."""
        return self.source or self.domain


@dataclass(frozen=True)
class Finding:
    """Something the data doctor found. ``kind`` is a short stable phrase, ``scene`` an id or a file name."""

    kind: str
    scene: str
    detail: str = ""


def summarize(findings: Iterable[Finding], names: int = 3) -> list[str]:
    """Return one line per kind of finding, in order of first appearance: how many, and the first ``names`` scenes."""
    scenes_of: dict[str, list[str]] = {}
    for finding in findings:
        scenes_of.setdefault(finding.kind, []).append(finding.scene)
    lines = []
    for kind, scenes in scenes_of.items():
        first = list(dict.fromkeys(scenes))
        more = f" and {len(first) - names} more" if len(first) > names else ""
        lines.append(f"{kind}: {len(scenes)} ({', '.join(first[:names])}{more})")
    return lines


FACTS = "flags from pixels"
"""How facts are read; those that were remembered from another way are read anew."""

APART = ("per_domain", "seen", "unseen")
"""Keys of chosen settings that say for which scenes other settings hold."""


def settings_for(scene: Scene, params: Params) -> dict[str, Any]:
    """Return the decode settings of a scene: ``params``, and over them what holds for its domain.

    That is in ``params["per_domain"]``, or is ``params["unseen"]`` where ``params["seen"]`` does not list the domain.
    """
    common = {name: value for name, value in params.items() if name not in APART}
    if "unseen" in params and scene.domain not in params["seen"]:
        return common | dict(params["unseen"])
    return common | dict(params.get("per_domain", {}).get(scene.domain, {}))


class Competition(ABC):
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
    together: tuple[str, ...] = ()
    """Images of a scene that are stretched to bytes by one rule where they have more than 8 bits: before and after."""
    sample: Path | None = None
    """The competition's sample submission, whose order of rows is kept where it names the scenes that are answered."""

    def __init__(self, root: Path, options: Any, memo: Path | None = None):
        """``options``: an instance of ``Options``. ``memo``: a JSON file in which facts of scenes are remembered."""
        self.root, self.options = Path(root), options
        self._memo = Memo(memo, f"{self.name} {options.model_dump_json()} {FACTS}") if memo else None
        self._listed: dict[str, tuple[list[Scene], list[Finding]]] = {}
        self._scenes: dict[str, list[Scene]] = {}
        self._facts: dict[str, Facts] = {}
        self._submitted: tuple[Any, dict[str, list[Row]]] = None, {}
        self.limits = limits()

    def keep_limits(self, limits: Limits) -> None:
        """Set what files may hold at most, in this process and in each that receives the competition."""
        self.limits = limits
        set_limits(limits)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        set_limits(self.limits)

    # ---- scenes ---------------------------------------------------------------------------------------
    @abstractmethod
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List every scene of "train" or "test" by file names and tables alone, and what is strange about the names.

        Scenes that lack a file are listed too; of those with one id the first whole one is used. No "test" scenes is
        an empty list. Raises DataError where ``root`` is not this competition's data. Asked for once per split.
        """

    def scenes(self, split: str) -> list[Scene]:
        """Return the scenes of "train" (labelled, tiers merged) or "test" that can be used, sorted by id.

        A scene that lacks one of ``files`` is left out; of "train" also one that lacks a label or whose ``facts`` have
        an error; ``inspect`` names them. "train" reads each label once, no pixels. Raises DataError when "train" has
        no scene that can be used.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected train or test, got {split!r}")
        if split not in self._scenes:
            listed = self._list(split)
            whole = {s.id: s for s in reversed(listed) if all(role in s.files for role in self.files)}
            if split == "train":
                whole = self._usable([scene for scene in whole.values() if self.labelled(scene)], len(listed))
            self._scenes[split] = [whole[key] for key in sorted(whole)]
        return self._scenes[split]

    @property
    def files(self) -> tuple[str, ...]:
        """Roles of the files that every scene must have: its images."""
        return self.images

    @property
    def needs(self) -> str:
        """What a labelled scene consists of, in words: for the message where there is none."""
        return " and ".join((*self.files, *self.labels))

    @property
    def own_images(self) -> tuple[str, ...]:
        """Images that are this scene's alone and not its neighbours' too: those that are inspected and shown."""
        return self.images

    def labelled(self, scene: Scene) -> bool:
        """Tell whether a scene has a truth; by default, whether it has the files of all ``labels``."""
        return all(role in scene.files for role in self.labels)

    def facts(self, scene: Scene) -> Facts:
        """Return what the label of a scene says, read the first time it is asked for."""
        key = "|".join([scene.id, *(os.path.relpath(path, self.root) for path in scene.files.values())])
        if key not in self._facts:
            state = state_of(self.fact_files(scene)) if self._memo else []
            known = self._memo.get(key, state) if self._memo else None
            self._facts[key] = known or self._try_facts(scene)
            if self._memo and known is None:
                self._memo.put(key, state, self._facts[key])
        return self._facts[key]

    def fact_files(self, scene: Scene) -> list[Path]:
        """Return the files that ``read_facts`` reads; when one changes, facts are read anew."""
        return list(scene.files.values())

    def read_facts(self, scene: Scene) -> Facts:
        """Read which of ``flags`` a labelled scene has, and what makes it unusable: a DataError, or ``Facts.error``.

        By default from the pixels of the first task's target, which must be of the image's size.
        """
        role, task = next(iter(self.tasks.items()))
        target = self.training_target(scene, role)
        if task.dense and target.shape != (size := raster.image_size(scene.files[self.files[0]])):
            raise DataError(f"scene {scene.id}: expected a label of its image's size {size}, got {target.shape}")
        there = (task.truth(target) & known(target)).any(axis=(1, 2))
        return Facts(dict(zip(self.flags, map(bool, there[len(there) - len(self.flags) :]), strict=True)))

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Names of the yes/no facts that folds balance, in folds.csv order; by default the classes of the first task,
        without the background of exclusive ones."""
        task = next(iter(self.tasks.values()))
        return names_of(task.classes[task.kind == "multiclass" and task.dense :])

    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return ``flags`` of a labelled scene. Raises DataError for one that cannot be used."""
        facts = self.facts(scene)
        if facts.error:
            raise DataError(facts.error)
        return dict(facts.flags)

    def published_split(self) -> dict[str, str]:
        """Return scene id -> the split the data was shipped in, for the audit; empty where there is none to check."""
        return {}

    def _list(self, split: str) -> list[Scene]:
        if split not in self._listed:
            self._listed[split] = self.listed(split)
        return self._listed[split][0]

    def _usable(self, labelled: Sequence[Scene], listed: int) -> dict[str, Scene]:
        """Return the labelled scenes without an error in their facts by id, with the position that these state."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            facts = list(pool.map(self.facts, labelled))
        if self._memo:
            self._memo.save()
        usable = {s.id: replace(s, position=f.position or s.position) for s, f in zip(labelled, facts) if not f.error}
        if not usable:
            first = next((fact.error for fact in facts if fact.error), "none of them is whole")
            raise DataError(
                f"{self.root}: expected labelled scenes with {self.needs}, found {listed} scenes of which none can be "
                f"used ({first}); 01_prepare_folds.py lists what they lack"
            )
        return usable

    def _try_facts(self, scene: Scene) -> Facts:
        try:
            return self.read_facts(scene)
        except DataError as error:
            return Facts(error=str(error))

    # ---- data doctor ----------------------------------------------------------------------------------
    def inspect(self) -> list[Finding]:
        """Read everything once, with a bar of progress, and report what is missing, broken or suspicious."""
        findings: list[Finding] = []
        scenes: list[tuple[Scene, str]] = []
        for split in SPLITS:
            scenes += [(scene, split) for scene in self._list(split)]
            findings += self._listed[split][1]
        with ThreadPoolExecutor(max_workers=2) as pool:
            inspected = pool.map(lambda pair: self.inspect_scene(*pair), scenes)
            for found in tqdm(inspected, "data check", total=len(scenes), leave=False, disable=None):
                findings += found
        return findings

    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Report what is wrong with one scene: images that are missing, broken or black, labels that cannot be used."""
        findings, whole = [], True
        for image in self.own_images:
            size, found = self.inspect_image(scene, image)
            findings += found
            whole &= size is not None
        if split == "train" and not self.labelled(scene):
            findings.append(Finding("image without label", scene.id, ", ".join(map(str, scene.files.values()))))
        elif split == "train" and whole and (fault := self.facts(scene).error):
            findings.append(Finding("label cannot be used", scene.id, fault))
        return findings

    def inspect_image(self, scene: Scene, image: str) -> tuple[tuple[int, int] | None, list[Finding]]:
        """Read an image; return its (height, width), None where it cannot be read, and what is strange about it."""
        try:
            picture = self.picture(scene, image)
        except DataError as error:
            return None, [Finding("unreadable image", scene.id, str(error))]
        path = scene.files.get(image, "")
        remarks = [*picture.remarks, *blemishes(picture)]
        found = [Finding(kind, scene.id, f"{path}: {detail}" if detail else str(path)) for kind, detail in remarks]
        return picture.valid.shape, found

    def remarks(self) -> list[str]:
        """Return what was told from the data rather than stated, in sentences; stage 01 prints them."""
        return []

    def caveats(self, scenes: Sequence[Scene]) -> list[str]:
        """Return what of these scenes is read otherwise than was asked for, in sentences; a kernel prints them."""
        return []

    @property
    def carried(self) -> Mapping[str, Path]:
        """Files beside the data that inference reads: key below ``data.options`` -> path. A kernel takes them along."""
        return {}

    # ---- images and labels ----------------------------------------------------------------------------
    def read(self, scene: Scene, image: str) -> np.ndarray:
        """Read one image of a scene as (H, W, 3) uint8 RGB; for a label task its F frames, (F, H, W, 3).

        Pixels that are not valid are 0. Raises DataError naming scene and file.
        """
        return self.picture(scene, image).pixels

    def picture(self, scene: Scene, image: str) -> raster.Picture:
        """Read one image of a scene with what of it is valid; for frames those of the first. Raises as ``read``."""
        if image not in scene.files:
            raise DataError(f"scene {scene.id}: expected an image {image}, found none")
        others = [other for other in self.together if other != image] if image in self.together else []
        try:
            return raster.read(scene.files[image], [scene.files[other] for other in others if other in scene.files])
        except DataError as error:
            raise DataError(f"scene {scene.id}: {error}") from error

    def training_target(self, scene: Scene, task: str, images: Sequence[str] | None = None) -> np.ndarray:
        """Return the target of a task, 255 (ignored) where one of the images has no data.

        ``images``: those that the network is shown; by default all of the scene's own. The truth that scores go by has
        these pixels still, since the official scorer counts them. Raises DataError as ``target``.
        """
        return self.without_hidden(self.target(scene, task), scene, task, images)

    def without_hidden(
        self, target: np.ndarray, scene: Scene, task: str, images: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return a target of a task, or a pseudo-label, as ``training_target`` does: ignored where nothing is shown."""
        if not self.tasks[task].dense:
            return target
        for image in self.own_images if images is None else [name for name in images if name in self.own_images]:
            try:
                valid = raster.validity(scene.files[image]) if image in scene.files else None
            except DataError as error:
                raise DataError(f"scene {scene.id}: {error}") from error
            if valid is not None and valid.shape == target.shape:
                target = self.tasks[task].as_target(target, valid)
        return target

    @abstractmethod
    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return the training target of a task: (H, W) uint8 in the form the task states, 255 = ignored.

        Raises DataError naming the scene where it has no label or one that cannot be used.
        """

    def truth(self, scene: Scene) -> Answer:
        """Return the answer the official scorer compares with; by default the target of the first task."""
        return self.target(scene, next(iter(self.tasks)))

    # ---- decode settings ------------------------------------------------------------------------------
    def defaults(self) -> dict[str, Any]:
        """Return the decode settings used where no search has run, but for those that are ``quiet``."""
        return {name: value for name, value in self.complete({}).items() if not self.settings[name].quiet}

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return decode settings with the default of every one that is not given."""
        known = {name: setting.default for name, setting in self.settings.items() if setting.default is not None}
        return known | dict(given)

    def faults(self, decode: Params, axes: Axes, chains: Sequence[Chain] = (), unseen: Mapping = {}) -> list[str]:
        """Return what is wrong with what an experiment asks of ``decode``, in sentences; reads no data.

        ``decode``: stated settings. ``axes``: searched ones. ``chains``: the chains of steps to try. ``unseen``:
        settings for new domains.
        """
        stated = {name: value for name, value in decode.items() if name != "postprocess"}
        found = decoding.value_faults("decode", self.settings, stated)
        found += decoding.axis_faults(self.settings, axes, self.max_points)
        for where, chain in (
            ("decode.postprocess", decode.get("postprocess", ())),
            *((f"search.postprocess.{number}", chain) for number, chain in enumerate(chains)),
        ):
            found += decoding.chain_faults(where, self.steps, chain)
        if axes and decode.get("postprocess") and not self.steps_in_search:
            found.append(_AROUND_STEPS)
        return found + decoding.value_faults("search.unseen", self.settings, unseen)

    # ---- answers --------------------------------------------------------------------------------------
    def decode(self, levels: Levels, params: Params) -> Answer:
        """Turn one scene's blended probabilities into its answer, and clean it.

        Missing settings are as in ``defaults``. Raises ConfigError for others than the competition has.
        """
        given = dict(params)
        steps = given.pop("postprocess", ())
        decoding.refuse(decoding.value_faults("decode", self.settings, given))
        return self.clean(self.answer(levels, self.complete(given)), steps, levels)

    @abstractmethod
    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Turn one scene's blended probabilities into its answer; ``settings`` are complete and within their ranges."""

    def clean(self, answer: Answer, steps: Chain, levels: Levels) -> Answer:
        """Run post-processing steps in their order; by default each maps the answer alone to an answer."""
        for step in steps:
            answer = decoding.step_of(step, self.steps)(answer)
        return answer

    def grid(self, axes: Axes, fixed: Params) -> Lattice:
        """Return the lattice of decode settings spanned by the named ``axes``; all others are as in ``fixed``."""
        if fixed.get("postprocess") and not self.steps_in_search:
            raise ConfigError(_AROUND_STEPS)
        decoding.refuse(decoding.axis_faults(self.settings, axes, self.max_points))
        return search.lattice(axes, self.defaults() | dict(fixed))

    def count(self, levels: Levels, truth: Answer, grid: Lattice) -> np.ndarray:
        """Count one scene for every point of the grid: (P, K) int64. Counts of scenes are added before scoring.

        By default every point is decoded and tallied; a metric that can be had faster overrides this.
        """
        return np.stack([self.tally(self.decode(levels, point), truth) for point in grid])

    @abstractmethod
    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one decoded answer: (K,) int64; equals ``count`` at the point that decoded it."""

    @abstractmethod
    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the official score of summed counts: (..., K) int64 -> (...) float64, higher is better, never NaN."""

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the per-part scores that no post-processing may make worse: (..., K) -> (..., S) float64."""
        return self.score(counts)[..., None]

    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return every named score of summed counts (K,): ``score``, then ``named_scores``."""
        return {
            name: float(value) for name, value in {"score": self.score(counts), **self.named_scores(counts)}.items()
        }

    @property
    def counted(self) -> int | None:
        """How many numbers a tally has; None where that is not known before data are read."""
        return None

    def score_names(self) -> tuple[str, ...]:
        """Return the names of ``scores`` without any data; () where ``counted`` is not known."""
        return () if self.counted is None else tuple(self.scores(np.zeros(self.counted, np.int64)))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return what is to be told beside the score, by name, the official scores under their official keys."""
        return {}

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count what further tables need, one scene: (M,) int64, added over scenes; none by default."""
        return np.zeros(0, np.int64)

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return named further results of summed details (M,): scores, or matrices as {row: {column: count}}."""
        return {}

    # ---- pictures -------------------------------------------------------------------------------------
    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return titled (H, W, 3) uint8 pictures for the report: the images, the truth where known, the answer."""
        shown = [(name, self.read(scene, name)) for name in self.own_images]
        image = shown[-1][1]
        if self.labelled(scene):
            shown.append(("truth", self.paint(image, self.truth(scene))))
        return [*shown, ("prediction", self.paint(image, answer))]

    def paint(self, image: np.ndarray, answer: Answer) -> np.ndarray:
        """Paint an answer over an image (H, W, 3) uint8.

        By default the answer is (H, W) class indices, 0 being nothing, or (C, H, W) masks of classes that may overlap.
        """
        masks = answer if answer.ndim == 3 else [answer == index for index in range(1, int(answer.max(initial=0)) + 1)]
        painted = image.copy()
        for index, mask in enumerate(masks):
            inside = np.asarray(mask) > 0
            painted[inside] = (painted[inside] // 2 + COLOURS[index % len(COLOURS)] // 2).astype(np.uint8)
        return painted

    # ---- submission -----------------------------------------------------------------------------------
    @abstractmethod
    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return the rows that a scene has in ``submission.csv``."""

    @abstractmethod
    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        """Return the answer that a scene's rows hold. Raises DataError where they hold none."""

    def scene_of(self, row: Row) -> str:
        """Return the id of the scene that a row belongs to; by default its first field."""
        return row[0]

    def row_names(self, scene: Scene) -> list[Name]:
        """Return the names of rows that a submission must have for a scene; by default one, the scene's id."""
        return [(scene.id,)]

    def row_fault(self, row: Row) -> str:
        """Say what is wrong with the answer in a row that holds no runs, "" if nothing."""
        return ""

    def size(self, scene: Scene) -> Size:
        """Return (height, width) of a scene from its image's header, (None, None) where that cannot be read."""
        path = scene.files.get(self.own_images[0])
        return raster.stated_size(path) if path else (None, None)

    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write every format the competition takes into ``folder``, scene by scene; return the files.

        By default that is ``submission.csv``; an override must write it too.
        """
        return [self.write_table(answers, Path(folder) / SUBMISSION)]

    def write_table(self, answers: Iterable[tuple[Scene, Answer]], path: Path) -> Path:
        """Write a CSV of ``rows`` scene by scene, in the order of the competition's sample where it has these names."""
        with tables.write(path, self.form) as add:
            for scene, answer in answers:
                for row in self.rows(scene, answer):
                    add(*row)
        if self.sample is not None and tables.same_names(path, self.sample, self.form):
            tables.keep_order(path, self.sample, self.form)
        return path

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one scene's answer back from what ``write_submission`` wrote. Raises DataError where there is none."""
        return self._read_back(Path(folder) / SUBMISSION, scene)

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a submission, a CSV or the folder it lies in; [] if it is valid.

        ``scenes``: the ones that must be answered, no others. ``sample``: a sample submission, whose header, names and
        order of rows the submission must have; by default the competition's own, where it has these names, as it has
        not for out-of-fold scenes. The answer of each of ``scenes`` is also read back. Without ``scenes`` and
        ``sample``, each scene that has a row must have all of its rows.
        """
        path = Path(path) / SUBMISSION if Path(path).is_dir() else Path(path)
        if not path.exists():
            return [f"{path}: expected a submission (a CSV, or the folder it lies in), found nothing there"]
        if sample is None and self.sample is not None and tables.same_names(path, self.sample, self.form):
            sample = self.sample
        asked = self._answered(path) if scenes is None and sample is None else scenes
        sizes = None if asked is None else {name: self.size(s) for s in asked for name in self.row_names(s)}
        faults = tables.lint(path, self.form, sizes, sample, self.row_fault)
        if faults:
            return faults
        for scene in scenes or ():
            try:
                if self.size(scene) != (None, None):  # else there is no image to draw on
                    self._read_back(path, scene)
            except DataError as error:
                faults.append(str(error))
        return faults

    def _answered(self, path: Path) -> list[Scene] | None:
        """Return the scenes that have a row in a CSV, without files; None where each has one row."""
        try:
            scenes = [Scene(i, {}) for i in dict.fromkeys(map(self.scene_of, tables.read(path, self.form)))]
        except DataError:
            return None  # the linter says what is wrong
        return scenes if any(len(self.row_names(scene)) > 1 for scene in scenes) else None

    def _read_back(self, path: Path, scene: Scene) -> Answer:
        """Read one scene's answer from a CSV, which is read once for all scenes."""
        state = (path, path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        if state is None or state != self._submitted[0]:
            rows_of: dict[str, list[Row]] = {}
            for row in tables.read(path, self.form):
                rows_of.setdefault(self.scene_of(row), []).append(row)
            self._submitted = state, rows_of
        if scene.id not in self._submitted[1]:
            raise DataError(f"{path}: expected a row for {scene.id!r}, found none; write the submission again")
        try:
            return self.answer_from(scene, self._submitted[1][scene.id])
        except DataError as error:
            raise DataError(f"{path}: scene {scene.id}: {error}") from error


def confusion_table(counts: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return a confusion of C classes, (C * C,) counts with truth by rows, as {true class: {answered class: count}}."""
    rows = counts.reshape(len(names), len(names)).tolist()
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as columns and settings have them: letters, digits and underscores."""
    return tuple(re.sub(r"\W+", "_", name).strip("_") or f"class_{name}" for name in classes)
