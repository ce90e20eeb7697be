"""BRIGHT: building damage from an optical image before and a radar image after (Chen et al. 2025, ESSD 17, 6217-6253).

Layout, as it unpacks; the three folders may also lie one below another, in ``train/``, ``val/``, ``test/``::

    root/pre-event/turkey-earthquake_00000001_pre_disaster.tif      before: red, green, blue, uint8
    root/post-event/turkey-earthquake_00000001_post_disaster.tif    after: one band, radar (SAR), uint8
    root/target/turkey-earthquake_00000001_building_damage.tif      0 background, 1 intact, 2 damaged, 3 destroyed

A scene with a target is labelled, one without is a test scene; lists of names (``train_set.txt`` of the benchmark, one
``turkey-earthquake_00000001`` per line) can say otherwise. The one band of radar is read as three equal ones, so any
network takes it; brightness is stretched, where an image has more than 8 bits, for each side apart, since an echo and
reflected light have no common scale. The event is the scene's domain: ``folds: {scheme: event}`` is the benchmark's
cross-event setting, and scores are told per event.

Metric: mIoU over the four classes, background included, from one confusion matrix of all pixels, as in the benchmark.
Beside it, in the table ``objects``: parts of a class (8 neighbours) found with an IoU above 0.5, 0.55 ... 0.95, as
hits / (hits + false + missed), the mean over these bounds, by class and over classes. That is no COCO AP, the metric of
the instance challenge of 2026, which ranks objects by a confidence that a class map has not.
Answer: (H, W) uint8 class indices. Submission: ``masks/<name>_building_damage.png``, as the contest IEEE GRSS DFC 2025
(track II) took them, zipped without a folder, and the runs of each class as CSV.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lib.competitions.answers import hex_of
from lib.competitions.binary_rle import metric as objects
from lib.competitions.class_maps import ClassMaps
from lib.competitions.facts import Facts
from lib.competitions.records import read_text
from lib.competitions.scene import Finding, Scene
from lib.competitions.suffixes import is_picture
from lib.errors import DataError
from lib.scenes import place, raster
from lib.settings import Section
from lib.tasks import IGNORE

CLASSES = ("background", "intact", "damaged", "destroyed")
FOLDERS = {"pre": "pre-event", "post": "post-event", "target": "target"}
"""Role of a file -> the folder it lies in."""
ENDINGS = {"pre": "_pre_disaster", "post": "_post_disaster", "target": "_building_damage"}
"""Role of a file -> the end of its name."""
COLOURS = np.array([[0, 0, 0], [70, 200, 90], [240, 150, 40], [220, 50, 50]], np.uint8)
"""RGB of the classes in pictures."""
_NAME = re.compile(r"(.+)_\d+")


class BrightOptions(Section):
    """What ``data.options`` may hold."""

    train_list: str | None = None
    """File below root of the names that are trained on and scored; none: every scene with a target that is no test
    scene."""
    test_list: str | None = None
    """File below root of the names to answer; none: every scene without a target. A target of theirs is not read."""
    sample: str | None = ""
    """Sample submission, which says what scenes are answered, in what order and under what header; "": one of the
    usual name. null: none is used."""


class Bright(ClassMaps):
    """Pairs of an optical and a radar image under ``root``."""

    name = "bright"
    Options = BrightOptions
    images = ("pre", "post")
    labels = ("target",)
    ending = ENDINGS["target"]
    raster_name = "damage"

    def __init__(self, root: Path, options: BrightOptions, memo: Path | None = None):
        super().__init__(root, options, memo)
        self.set_classes(CLASSES)

    # ---- scenes ---------------------------------------------------------------------------------------
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the pairs of a split by the names of their files. Raises DataError where ``root`` has none at all."""
        scenes, findings = self._everything
        if not scenes:
            inside = sorted(path.name for path in self.root.iterdir())[:8] if self.root.is_dir() else ["no such path"]
            raise DataError(f"{self.root}: expected {', '.join(FOLDERS.values())} with files such as "
                            f"EVENT_00000000{ENDINGS['pre']}.tif, found {', '.join(inside) or 'nothing'}; set "
                            "data.root")  # fmt: skip
        train, test = self._named("train_list"), self._named("test_list")
        if split == "test":
            own = [scene for scene in scenes.values()
                   if (scene.id in test if test is not None else "target" not in scene.files)
                   and not (test is None and train is not None and scene.id in train)]  # fmt: skip
            return [replace(scene, files={k: v for k, v in scene.files.items() if k != "target"}) for scene in own], []
        own = [scene for scene in scenes.values() if scene.id not in (test or ())
               and (scene.id in train if train is not None else "target" in scene.files)]  # fmt: skip
        for option, names in (("train_list", train), ("test_list", test)):
            findings = findings + [Finding("listed scene is not here", name, str(getattr(self.options, option)))
                                   for name in sorted((names or frozenset()) - scenes.keys())]  # fmt: skip
        both = sorted((train or frozenset()) & (test or frozenset()))
        return own, findings + [Finding("in both lists, it is a test scene", name) for name in both]

    @cached_property
    def _everything(self) -> tuple[dict[str, Scene], list[Finding]]:
        """The scenes of all splits by id, with whichever files they have, and what is strange about the names."""
        files: dict[str, dict[str, Path]] = {}
        findings: list[Finding] = []
        for role, folder in FOLDERS.items():
            for path in self._pictures(folder):
                name = path.stem.removesuffix(ENDINGS[role])
                if name == path.stem or not _NAME.fullmatch(name):
                    wanted = f"EVENT_NUMBER{ENDINGS[role]}"
                    findings.append(Finding("name of no scene, left out", str(path.relative_to(self.root)), wanted))
                elif files.setdefault(name, {}).setdefault(role, path) != path:
                    used = files[name][role]
                    findings.append(Finding("two files of one id", name, f"{used} is used, not {path}"))
        scenes = {name: Scene(name, files[name], _event(name)) for name in sorted(files)}
        return scenes, findings

    def _pictures(self, folder: str) -> Iterable[Path]:
        """Yield the pictures of every folder of this name at most one level below root, in order."""
        for place_ in (self.root / folder, *sorted(self.root.glob(f"*/{folder}"))):
            yield from sorted(path for path in place_.glob("*") if is_picture(path))

    def _named(self, option: str) -> frozenset[str] | None:
        """Return the names of a list, None where none is stated. Raises DataError for one that is not there."""
        stated = getattr(self.options, option)
        if stated is None:
            return None
        if not (path := self.root / stated).is_file():
            raise DataError(f"{path}: expected a list of names, found none; set data.options.{option}, or leave it out")
        words = (line.split()[0] for line in read_text(path).splitlines() if line.strip())
        return frozenset(Path(word).stem.removesuffix(ENDINGS["pre"]) for word in words)

    def read_files(self) -> list[Path]:
        lists = [self.root / name for name in (self.options.train_list, self.options.test_list) if name]
        return [*super().read_files(), *lists]

    def places(self, split: str) -> list[str]:
        return [f"{FOLDERS['pre']} and {FOLDERS['post']}" + (f" and {FOLDERS['target']}" if split == "train" else "")]

    def read_facts(self, scene: Scene) -> Facts:
        """Read the target, where the pair lies, and whether both sides are of one size and show one place."""
        sizes = [raster.image_size(scene.files[side]) for side in self.images]
        if sizes[0] != sizes[1]:
            raise DataError(f"scene {scene.id}: {scene.files['post']}: expected the size of the image before "
                            f"{sizes[0]}, got {sizes[1]}")  # fmt: skip
        place.refuse_apart(*(scene.files[side] for side in self.images))
        return replace(super().read_facts(scene), position=raster.centre(scene.files["pre"]))

    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Report what is wrong with both images and the target, and where the two lie apart."""
        findings = super().inspect_scene(scene, split)
        if all(side in scene.files for side in self.images):
            remarks = place.remarks(*(scene.files[side] for side in self.images))
            findings += [Finding(kind, scene.id, detail) for kind, detail in remarks]
        return findings

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8: 0 background, 1 intact, 2 damaged, 3 destroyed, 255 ignored."""
        if not self.labelled(scene):
            raise DataError(f"scene {scene.id}: expected a target, found none; has this scene a truth?")
        mask = raster.read_mask(path := scene.files["target"])
        if (odd := np.unique(mask[(mask >= len(CLASSES)) & (mask != IGNORE)])).size:
            raise DataError(f"scene {scene.id}: {path}: expected classes 0..{len(CLASSES) - 1} or 255 for ignored, got "
                            f"{', '.join(map(str, odd[:5]))}; is it a target of BRIGHT?")  # fmt: skip
        return mask

    # ---- objects --------------------------------------------------------------------------------------
    def detail(self, answer: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Count the confusion of all classes and the objects of each but the first: (16 + 3 * 13,) int64."""
        counts = [super().detail(answer, truth)]
        known = truth != IGNORE
        for index in range(1, len(CLASSES)):
            parts = [cv2.connectedComponents(((mask == index) & known).astype(np.uint8), connectivity=8)[1]
                     for mask in (answer, truth)]  # fmt: skip
            counts.append(objects.count(*parts))
        return np.concatenate(counts)

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of pixels, truth by rows, and how well objects are found, by class and their mean.

        A class without any object, answered or true, is left out of the mean; its own figure is 0.
        """
        pixels = len(CLASSES) ** 2
        found = [pooled_precision(counts) for counts in details[pixels:].reshape(len(CLASSES) - 1, objects.K)]
        there = [value for value in found if not np.isnan(value)]
        named = dict(zip(CLASSES[1:], np.nan_to_num(found).tolist(), strict=True))
        named["mean"] = float(np.mean(there)) if there else 0.0
        return super().tables(details[:pixels]) | {"objects": named}

    # ---- rasters and pictures -------------------------------------------------------------------------
    def raster_classes(self) -> dict[str, str]:
        """Return the classes of houses with their colours."""
        colours = [hex_of(colour) for colour in COLOURS]
        return dict(zip(CLASSES[1:], colours[1:], strict=True))

    def paint(self, image: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """Lay the colours of the classes over an image; the background stays as it is, ignored pixels are white."""
        colours = np.full((IGNORE + 1, 3), 255, np.uint8)
        colours[: len(COLOURS)] = COLOURS
        return np.where((answer > 0)[..., None], image // 2 + colours[answer] // 2, image)


def pooled_precision(counts: np.ndarray) -> float:
    """Return the mean over IoU bounds of TP / (TP + FP + FN) of all objects together: (13,) -> float, NaN for none."""
    hits, called = counts[1:-2], counts[-2] + counts[-1] - counts[1:-2]
    return float(np.mean(hits / called)) if called.all() else np.nan


def _event(name: str) -> str:
    """Return the event of a scene's name: what precedes its number."""
    match = _NAME.fullmatch(name)
    return match[1] if match else ""
