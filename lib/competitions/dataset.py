"""The scenes of a competition: which can be used, their images and targets, and what their labels say."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lib.competitions.facts import Facts, Memo, state_of
from lib.competitions.sample import Sampled
from lib.competitions.scene import SPLITS, Answer, Finding, Scene, is_text
from lib.errors import DataError
from lib.scenes import georeference, raster
from lib.scenes.georeference import Location
from lib.scenes.raster import Size
from lib.settings import Limits, limits, set_limits
from lib.tasks import Task, known, names_of

NOT_TEXT = "name of a file that is not UTF-8, left out"
FACTS = "flags from pixels, black and white of a palette as they are seen"
"""How facts are read; those that were remembered from another way are read anew."""


class Dataset(Sampled):
    """The scenes of a competition, of which the file names, the labels and the images are read when asked for."""

    # What of the contract it goes by; contract.py says what each means.
    name: ClassVar[str]
    tasks: Mapping[str, Task]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    together: tuple[str, ...]
    listed: Callable[[str], tuple[list[Scene], list[Finding]]]
    target: Callable[[Scene, str], np.ndarray]

    def __init__(self, root: Path, options: Any, memo: Path | None = None):
        """``options``: an instance of ``Options``. ``memo``: a JSON file in which facts of scenes are remembered."""
        self.root, self.options = Path(root), options
        self._memo = Memo(memo, f"{self.name} {options.model_dump_json()} {FACTS}") if memo else None
        self._listed: dict[str, tuple[list[Scene], list[Finding]]] = {}
        self._scenes: dict[str, list[Scene]] = {}
        self._facts: dict[str, Facts] = {}
        self.findings: dict[tuple[str, str], list[Finding]] = {}
        """Split and ``key`` of a scene -> what other processes found when they inspected it."""
        self.limits = limits()

    def keep_limits(self, limits: Limits) -> None:
        """Set what files may hold at most, in this process and in each that receives the competition."""
        self.limits = limits
        set_limits(limits)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        set_limits(self.limits)

    # ---- which there are ------------------------------------------------------------------------------------
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
            if split == "train":
                found = self._usable(self._labelled(), len(listed))
            else:
                found = {scene.id: scene for scene in reversed(listed)} | self._whole(split)
                if self.owed is not None:
                    found = {key: found.get(key, Scene(key, {})) for key in self.owed.written}
            self._scenes[split] = [found[key] for key in sorted(found)]
        return self._scenes[split]

    def _whole(self, split: str) -> dict[str, Scene]:
        listed = reversed(self._list(split))
        return {scene.id: scene for scene in listed if all(role in scene.files for role in self.files)}

    def _labelled(self) -> list[Scene]:
        return [scene for scene in self._whole("train").values() if self.labelled(scene)]

    def unknown(self) -> list[Scene]:
        """Return the labelled scenes whose facts ``scenes`` would have to read; what it raises is left to it."""
        try:
            return [scene for scene in self._labelled() if self._known(scene) is None]
        except DataError:
            return []

    def _list(self, split: str) -> list[Scene]:
        if split not in self._listed:
            if self.sampled is not None:
                self.check_sample()
            listed, findings = self.listed(split)
            odd = [s for s in listed if not all(map(is_text, (s.id, s.group, *map(str, s.files.values()))))]
            findings = [*findings, *(Finding(NOT_TEXT, scene.id, "rename it") for scene in odd)]
            self._listed[split] = [scene for scene in listed if scene not in odd] if odd else listed, findings
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

    def labelled(self, scene: Scene) -> bool:
        """Tell whether a scene has a truth; by default, whether it has the files of all ``labels``."""
        return all(role in scene.files for role in self.labels)

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

    def published_split(self) -> dict[str, str]:
        """Return scene id -> the split the data was shipped in, for the audit; empty where there is none to check."""
        return {}

    # ---- what their labels say ------------------------------------------------------------------------------
    def facts(self, scene: Scene) -> Facts:
        """Return what the label of a scene says, read the first time it is asked for."""
        known = self._known(scene)
        return self.learn(scene, *self.told(scene)) if known is None else known

    def told(self, scene: Scene) -> tuple[list[Any], Facts]:
        """Read the facts of a scene; before them the state of the files that hold them."""
        return state_of(self.fact_files(scene)) if self._memo else [], self._try_facts(scene)

    def learn(self, scene: Scene, state: list[Any], facts: Facts) -> Facts:
        """Keep what was ``told``, perhaps in another process."""
        self._facts[self.key(scene)] = facts
        if self._memo:
            self._memo.put(self.key(scene), state, facts)
        return facts

    def key(self, scene: Scene) -> str:
        """Return what stands for a scene and its files; there may be two of one id."""
        return "|".join([scene.id, *(os.path.relpath(path, self.root) for path in scene.files.values())])

    def _known(self, scene: Scene) -> Facts | None:
        key = self.key(scene)
        if key not in self._facts and self._memo and (known := self._memo.get(key, state_of(self.fact_files(scene)))):
            self._facts[key] = known
        return self._facts.get(key)

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

    def _try_facts(self, scene: Scene) -> Facts:
        try:
            return self.read_facts(scene)
        except DataError as error:
            return Facts(error=str(error))

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

    # ---- images and targets ---------------------------------------------------------------------------------
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

    def size(self, scene: Scene) -> Size:
        """Return (height, width) of a scene from the header of the first of its images that can be read.

        (None, None) where there is none.
        """
        paths = [scene.files[image] for image in self.own_images if image in scene.files]
        return next((size for path in paths if (size := raster.stated_size(path))[0] is not None), (None, None))

    def georeference(self, scene: Scene) -> Location | None:
        """Return where the first of a scene's images says that it lies, from its header; None where it says nothing.

        All that is written of the scene pixel by pixel says the same.
        """
        first = self.own_images[0] if self.own_images else ""
        dense = next(iter(self.tasks.values())).dense
        return georeference.of_image(scene.files[first]) if dense and first in scene.files else None

    def place(self, scene: Scene) -> Location | None:
        """Return where a scene lies on Earth, None where that is not known: its georeference, unless a competition
        knows it from elsewhere, too."""
        return self.georeference(scene)

    def canvas(self, scene: Scene) -> tuple[int, int]:
        """Return (height, width) to draw a scene's runs on; where no size is known one pixel, for an empty mask."""
        height, width = self.size(scene)
        return (1, 1) if height is None or width is None else (height, width)

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

    def truth(self, scene: Scene) -> Answer:
        """Return the answer the official scorer compares with; by default the target of the first task."""
        return self.target(scene, next(iter(self.tasks)))

    @property
    def carried(self) -> Mapping[str, Path]:
        """Files beside the data that inference reads: key below ``data.options`` -> path. A kernel takes them along."""
        return {}


def _shown(size: Size) -> str:
    height, width = size
    return f"{width}x{height} pixels" if height else "unknown size"
