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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from lib.competitions import decoding, passed, records, tables
from lib.competitions import sample as samples
from lib.competitions.decoding import Setting
from lib.competitions.facts import Facts, Memo, state_of
from lib.competitions.sample import Owed, Sample
from lib.competitions.tables import Form, Name, Size
from lib.ensemble import search
from lib.ensemble.search import Lattice
from lib.errors import ConfigError, DataError
from lib.files import digest
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


def told(failed: Mapping[str, str], names: int = 3) -> str:
    """Say which scenes failed, scene id -> its error, and of the first ``names`` why."""
    first = [f"{scene} ({error})" for scene, error in list(failed.items())[:names]]
    return "; ".join(first) + (f"; and {len(failed) - names} more" if len(failed) > names else "")


FACTS = "flags from pixels, black and white of a palette as they are seen"
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
    other_folders: tuple[str, ...] = ()
    """Names of folders that come with the data and hold no scenes."""
    together: tuple[str, ...] = ()
    """Images of a scene that are stretched to bytes by one rule where they have more than 8 bits: before and after."""

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

        "test" are the scenes that an answer is owed to: those that the sample submission names, or else those of which
        there is any file. Of these some may lack files (``incomplete``), and one that only the sample knows has none.
        A scene of "train" that lacks one of ``files`` or a label, or whose ``facts`` have an error, is left out;
        ``inspect`` names it. "train" reads each label once, no pixels. Raises DataError when "train" has no scene that
        can be used, and where a sample names none of the test scenes that are there.
        """
        if split not in SPLITS:
            raise ValueError(f"split: expected train or test, got {split!r}")
        if split not in self._scenes:
            listed = self._list(split)
            found = {s.id: s for s in reversed(listed) if all(role in s.files for role in self.files)}
            if split == "train":
                found = self._usable([scene for scene in found.values() if self.labelled(scene)], len(listed))
            else:
                found = {scene.id: scene for scene in reversed(listed)} | found
                if self.owed is not None:
                    found = {key: found.get(key, Scene(key, {})) for key in self.owed.written}
            self._scenes[split] = [found[key] for key in sorted(found)]
        return self._scenes[split]

    @cached_property
    def sample(self) -> Path | None:
        """The sample submission: the one that ``data.options.sample`` states, else one of the usual name.

        Raises DataError where one is stated and not there.
        """
        stated = self.options.sample if "sample" in self.options.model_fields_set else ""
        if stated is None:
            return None
        known = [self.root / name for name in ((stated,) if stated else samples.NAMES)]
        found = next((path for path in known if path.is_file()), None)
        if stated and found is None:
            raise DataError(f"{known[0]}: expected a sample submission, found none; set data.options.sample")
        return found

    @cached_property
    def sampled(self) -> Sample | None:
        """What the sample submission says; None where there is none. Raises DataError."""
        return self.read_sample(self.sample) if self.sample else None

    def read_sample(self, path: Path) -> Sample:
        """Read any sample submission, each row with its names first. Raises DataError."""
        found = samples.read(path)
        return found.ordered(self.column_order(found.header))

    def column_order(self, header: Sequence[str]) -> tuple[int, ...]:
        """Return the column of a file with this header in which each field of a row stands; () where in their order."""
        return ()

    @cached_property
    def owed(self) -> Owed | None:
        """Which scenes the sample names; None where there is none, or it has no rows, or there is no test set here.

        Raises DataError where it names none of the test scenes that are there.
        """
        listed = {scene.id for scene in self._list("test")} if self.sampled and self.sampled.rows else set()
        if self.sampled is None or not listed:
            return None
        texts = [self.id_in(name) for name in self.sampled.names(1)]  # ``form`` may need the training runs
        found = samples.owed(texts, listed)
        if len(found.not_named) == len(listed):
            raise DataError(
                f"{self.sampled.path}: expected the ids of the test scenes, found {len(found.written)} ids of which "
                f"none has a file (the first row is {','.join(self.sampled.rows[0])[:80]!r}, the first file's id is "
                f"{found.not_named[0]!r}); set "
                "data.options.sample to the file of this test set, or to null to do without it"
            )
        return found

    def header_of(self, expected: Sequence[str]) -> tuple[str, ...]:
        """Return the sample's header, () without one.

        ``expected``: what the columns of an answer are, in words. Raises DataError for a header of another length.
        """
        if self.sampled is None:
            return ()
        samples.check_header(self.sampled, expected)
        return self.sampled.header

    def check_sample(self) -> None:
        """Raise DataError for a sample whose header no submission of this competition can have.

        Asked before scenes are listed, since stage 06 would else be the first to notice.
        """
        _ = self.form

    def incomplete(self, scene: Scene) -> str:
        """Say why a scene cannot be predicted, by the names and headers of its files; "" where nothing is missing.

        It lacks one of ``files``, or its ``own_images`` differ in size.
        """
        if missing := [role for role in self.files if role not in scene.files]:
            beside = ", ".join(str(scene.files[role]) for role in self.files if role in scene.files)
            return f"expected {' and '.join(self.files)}, found " + (f"no {' and no '.join(missing)} beside {beside}"
                                                                     if beside else "no file of it")  # fmt: skip
        if len(self.own_images) == 1:
            return ""
        sizes = {image: raster.stated_size(scene.files[image]) for image in self.own_images}
        if len({size for size in sizes.values() if size[0] is not None}) < 2:
            return ""
        found = " and ".join(f"{scene.files[image]} of {_shown(size)}" for image, size in sizes.items())
        return f"expected images of one size, found {found}"

    @property
    def answers_repeat(self) -> bool:
        """Whether a scene may have a row for each of its objects."""
        return False

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
            if self.sampled is not None:
                self.check_sample()
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
            scenes += [(scene, split) for scene in self._list(split) if scene.files]
            findings += self._listed[split][1]
        findings += self.owing()
        findings += self.beside()
        findings += self.passed_over(findings)
        for role in ("group", "domain", "source"):
            names = {getattr(scene, role) for scene in self._list("train")}
            findings += [Finding(f"{role}s that may be one, told apart", several[0], ", ".join(several))
                         for several in records.alike(names)]  # fmt: skip
        with ThreadPoolExecutor(max_workers=2) as pool:
            inspected = pool.map(lambda pair: self.inspect_scene(*pair), scenes)
            for found in tqdm(inspected, "data check", total=len(scenes), leave=False, disable=None):
                findings += found
        return findings

    def owing(self) -> list[Finding]:
        """Report where the sample submission and the test files do not fit: scenes, then rows."""
        if self.sampled is None or self.owed is None:
            return []
        path = str(self.sampled.path)
        found = [Finding("the sample names it, there is no file of it", key, path) for key in self.owed.without_file]
        found += [Finding("test file that the sample does not name", key, path) for key in self.owed.not_named]
        ours = dict.fromkeys(name for scene in self.scenes("test") for name in self.row_names(scene))
        theirs = self.sampled.names(len(next(iter(ours))))
        known = set(theirs)
        times = Counter(row[: len(next(iter(ours)))] for row in self.sampled.rows)
        if not self.answers_repeat:
            found += [Finding("row of the sample that is there more than once", ",".join(n), path)
                      for n, count in times.items() if count > 1]  # fmt: skip
        found += [Finding("row of the sample that no answer has", ",".join(n), path) for n in theirs if n not in ours]
        return found + [Finding("row that the sample has not", ",".join(n), path) for n in ours if n not in known]

    def beside(self) -> list[Finding]:
        """Report archives that were not unpacked, and what looks like a sample submission and is not read."""
        if not self.root.is_dir():
            return []
        places = {part.lower() for split in SPLITS for place in (*self.places(split), *self.usual_folders(split))
                  for part in Path(place).parts if re.fullmatch(r"[\w-]{3,}", part)}  # fmt: skip
        found = [Finding("archive that is not unpacked", name) for name in passed.archives(self.root, places)]
        if self.options.sample is None or (self.sample and "sample" in self.options.model_fields_set):
            return found
        like = sorted(path for path in self.root.glob("*.csv") if re.search("sample.*sub", path.name.lower()))
        return found + [Finding("file like a sample submission that is not used", path.name,
                                "data.options.sample names the one that is") for path in like
                        if path != self.sample]  # fmt: skip

    def passed_over(self, findings: Iterable[Finding] = ()) -> list[Finding]:
        """Report the pictures, videos and files beside them below ``root`` that are in no scene and in no finding."""
        listed = [scene for split in SPLITS for scene in self._list(split)]
        used = [*self.read_files(), *(path for scene in listed for path in scene.files.values())]
        said = {word for f in findings for word in re.split(r"[\s,;()]+", f"{f.scene} {f.detail}")}
        found = [Finding(*found) for found in passed.passed_over(self.root, used, self.other_folders)]
        times = Counter(Path(f.scene).name for f in found)
        return [f for f in found if str(self.root / f.scene) not in said
                and not (times[Path(f.scene).name] == 1 and Path(f.scene).name in said)]  # fmt: skip

    def read_files(self) -> list[Path]:
        """Return the files and folders that are read, or left alone as asked for, besides those of scenes."""
        denied = getattr(self.options, "test", "") is None
        return [
            *self.carried.values(),
            *([self.sample] if self.sample else []),
            *(self.root / folder for folder in self.usual_folders("test") if denied),
        ]

    def usual_folders(self, split: str) -> Sequence[str]:
        """Return the folders below ``root`` in which a split is looked for where no option says so."""
        return ()

    def places(self, split: str) -> list[str]:
        """Return where the scenes of a split are looked for, as folders or patterns below ``root``."""
        return [str(self.root)]

    def summary(self) -> list[str]:
        """Return how many scenes there are of each split, where they were looked for, and what the sample binds."""
        train, test = self._list("train"), self.scenes("test")
        lines = [f"{len(train)} training scenes listed"]
        if not test:
            places = ", ".join(self.places("test"))
            lines[0] += f"; 0 test scenes found; looked in {places}" if places else "; no test set, as asked for"
        else:
            lines[0] += f"; {len(test)} test scenes"
        if self.sampled is not None:
            named = len({self.id_in(name) for name in self.sampled.names(1)})
            header, order = ",".join(self.sampled.header)[:200], " and its order of rows" if named else ""
            lines.append(
                f"{self.sampled.path.name} names {named} scenes; the submission has its header {header}{order}"
            )
        faults = {scene.id: fault for scene in test if (fault := self.incomplete(scene))}
        if faults:
            lines.append(f"{len(faults)} of {len(test)} test scenes cannot be predicted: they take predict.fallback, "
                         f"or stop stage 04 where there is none: {told(faults)}")  # fmt: skip
        return lines

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
        """Return what of these scenes is read or written otherwise than was asked for, in sentences.

        Stage 06 and a kernel print them.
        """
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

    def id_in(self, row: Row) -> str:
        """Return the id in a row as the submission writes it; by default its first field."""
        return row[0]

    def scene_of(self, row: Row) -> str:
        """Return the id of the scene that a row belongs to."""
        text = self.id_in(row)
        return self._scene_of_text.get(text, text)

    def row_id(self, scene: Scene) -> str:
        """Return a scene's id as the submission writes it: as the sample does, where it names the scene."""
        return self._text_of_scene.get(scene.id, scene.id)

    @cached_property
    def _text_of_scene(self) -> dict[str, str]:
        try:
            return dict(self.owed.written) if self.owed else {}
        except DataError:
            return {}  # a submission alone is looked at; where scenes are listed, this is raised

    @cached_property
    def _scene_of_text(self) -> dict[str, str]:
        return {text: scene_id for scene_id, text in self._text_of_scene.items()}

    def row_names(self, scene: Scene) -> list[Name]:
        """Return the names of rows that a submission must have for a scene; by default one, the scene's id."""
        return [(self.row_id(scene),)]

    def row_fault(self, row: Row) -> str:
        """Say what is wrong with the answer in a row that holds no runs, "" if nothing."""
        return ""

    def scene_fault(self, rows: Sequence[Row]) -> str:
        """Say what is wrong with the rows of one scene together, each of which is valid by itself, "" if nothing."""
        return ""

    def size(self, scene: Scene) -> Size:
        """Return (height, width) of a scene from the header of the first of its images that can be read.

        (None, None) where there is none.
        """
        paths = [scene.files[image] for image in self.own_images if image in scene.files]
        return next((size for path in paths if (size := raster.stated_size(path))[0] is not None), (None, None))

    def canvas(self, scene: Scene) -> tuple[int, int]:
        """Return (height, width) to draw a scene's runs on; where no size is known one pixel, for an empty mask."""
        height, width = self.size(scene) or (None, None)
        return (1, 1) if height is None or width is None else (height, width)

    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write every format the competition takes into ``folder``, scene by scene; return the files.

        By default that is ``submission.csv``; an override must write it too.
        """
        return [self.write_table(answers, Path(folder) / SUBMISSION)]

    def write_table(self, answers: Iterable[tuple[Scene, Answer]], path: Path) -> Path:
        """Write a CSV of ``rows`` scene by scene, those of the test set in the order of the competition's sample."""
        with tables.write(path, self.form) as add:
            for scene, answer in answers:
                for row in self.rows(scene, answer):
                    add(*row)
        self.keep_order(path)
        return path

    def keep_order(self, path: Path) -> None:
        """Bring the rows of a written CSV into the order of the sample, unless it answers other scenes."""
        if self.sampled is not None and self.sampled.rows:
            names = self.sampled.names(self.form.names)
            tables.keep_order(path, names, self.form, self.scene_of)

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one scene's answer back from what ``write_submission`` wrote. Raises DataError where there is none."""
        return self._read_back(Path(folder) / SUBMISSION, scene)

    def submit(
        self, answers: Iterable[tuple[Scene, Answer]], folder: Path, owed: Sequence[Scene] | None = None
    ) -> list[str]:
        """Write a submission, read back what lies on the disk and return what is wrong with it; [] if nothing is.

        It must be valid, answer the scenes ``owed`` (by default those of ``answers``), and hold the answers that it was
        given: in the format that ``read_submission`` reads, with which ``lint`` compares the others. Answers are not
        kept while it is written, only digests of their rows.
        """
        folder, given = Path(folder), {}

        def passing() -> Iterator[tuple[Scene, Answer]]:
            for scene, answer in answers:
                given[scene] = _digest(self.written(scene, answer))
                yield scene, answer

        self.write_submission(passing(), folder)
        if faults := self.lint(folder, list(given) if owed is None else owed):
            return faults
        other = [scene.id for scene, rows in given.items()
                 if _digest(self.written(scene, self.read_submission(folder, scene))) != rows]  # fmt: skip
        kind = "holds another answer than was written"
        return [tables.sentence(folder, "scene", kind, other)] if other else []

    def written(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return all rows that the files of a submission hold of a scene; by default those of ``submission.csv``."""
        return self.rows(scene, answer)

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
        try:
            standard = self.read_sample(sample) if sample else self.sampled
        except DataError as error:
            return [str(error)]
        if sample is None and standard is not None and not tables.same_names(path, standard, self.form):
            standard = None
        asked = self._answered(path) if scenes is None else scenes
        sizes = None if asked is None else {name: self.size(s) for s in asked for name in self.row_names(s)}
        if faults := tables.lint(path, self.form, sizes, standard, self.row_fault):
            return faults
        together: dict[str, list[str]] = {}
        for scene_id, rows in self._rows_of(path).items():
            if kind := self.scene_fault(rows):
                together.setdefault(kind, []).append(scene_id)
        if together:
            return [tables.sentence(path, "scene", kind, names) for kind, names in together.items()]
        for scene in scenes or ():
            try:
                if self.size(scene) != (None, None):  # else there is no image to draw on
                    self._draw(path, scene)
            except DataError as error:
                faults.append(str(error))
        return faults

    def scenes_of(self, sample: Path) -> list[str]:
        """Return the ids of the scenes that a sample submission names. Raises DataError where it names none."""
        found = self.read_sample(sample)
        if not found.rows:
            raise DataError(f"{sample}: {tables.NO_ROWS}")
        return list(dict.fromkeys(map(self.scene_of, found.names(1))))

    def _answered(self, path: Path) -> list[Scene] | None:
        """Return the scenes that have a row in a CSV, without files; None where a row has no name but its scene's."""
        try:
            scenes = [Scene(i, {}) for i in dict.fromkeys(map(self.scene_of, tables.read(path, self.form))) if i]
        except DataError:
            return None  # the linter says what is wrong
        return scenes if any(self.form.names > 1 or len(self.row_names(scene)) > 1 for scene in scenes) else None

    def _rows_of(self, path: Path) -> dict[str, list[Row]]:
        """Return the rows of each scene in a CSV, which is read once for all of them. Raises DataError."""
        state = (path, path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        if state is None or state != self._submitted[0]:
            rows_of: dict[str, list[Row]] = {}
            for row in tables.read(path, self.form):
                rows_of.setdefault(self.scene_of(row), []).append(row)
            self._submitted = state, rows_of
        return self._submitted[1]

    def _read_back(self, path: Path, scene: Scene) -> Answer:
        """Read one scene's answer from a CSV. Raises DataError where there is none."""
        if fault := self.scene_fault(self._rows_of(path).get(scene.id, ())):
            raise DataError(f"{path}: scene {scene.id}: {fault}; write the submission again")
        return self._draw(path, scene)

    def _draw(self, path: Path, scene: Scene) -> Answer:
        """Return the answer that the rows of a scene hold, without a look at how they go together."""
        rows = self._rows_of(path).get(scene.id)
        if rows is None:
            raise DataError(f"{path}: expected a row for {scene.id!r}, found none; write the submission again")
        try:
            return self.answer_from(scene, rows)
        except DataError as error:
            raise DataError(f"{path}: scene {scene.id}: {error}") from error


def _digest(rows: Iterable[Row]) -> str:
    """Hash the rows of a scene, whose order is the sample's to say."""
    return digest(sorted(map(list, rows)))


def _shown(size: Size) -> str:
    height, width = size or (None, None)
    return f"{width}x{height} pixels" if height else "unknown size"


def confusion_table(counts: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return a confusion of C classes, (C * C,) counts with truth by rows, as {true class: {answered class: count}}."""
    rows = counts.reshape(len(names), len(names)).tolist()
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as columns and settings have them: letters, digits and underscores."""
    return tuple(re.sub(r"\W+", "_", name).strip("_") or f"class_{name}" for name in classes)
