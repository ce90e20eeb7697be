"""Masks of several classes, a row of runs per image and class: UW-Madison GI Tract, Severstal steel.

Layouts, as they unpack, and the options for them::

    root/train/case123/case123_day20/scans/slice_0065_266_266_1.50_1.50.png    train: "train/*/*/scans/*.png" and
    root/train.csv                                          id: "(case\\d+_day\\d+)/scans/(slice_\\d+)"
    root/train_images/0002cc93b.jpg                         neither is needed
    root/sample_submission.csv                              its header, and its order of rows where it has these scenes

Example rows of a train.csv: ``case123_day20_slice_0065,stomach,28094 3 28358 7`` under ``id,class,segmentation``, where
every class has a row, with an empty text for an empty mask; or ``0002cc93b.jpg,1,29102 12`` under
``ImageId,ClassId,EncodedPixels``, where a class that is not there has none and an image without rows has no class.

Metric: the mean of Dice over all pairs of image and class, 1 where answer and truth are both empty: the score of
Severstal (Kaggle 2019, its evaluation page). UW-Madison (2022) weighs a Dice by 0.4 and a 3D Hausdorff distance, which
is not computed here, by 0.6. Answer: (C, H, W) uint8 in {0, 1}.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.competitions import layout, mean_dice
from lib.competitions.decoding import foreground, settings_of_masks
from lib.competitions.listing import SUFFIXES, Classes, Expression, find_in_ids, otherwise
from lib.competitions.records import matched
from lib.competitions.runs import RunsCompetition, RunsOptions
from lib.competitions.scene import Answer, Finding, Levels, Params, Row, Scene
from lib.competitions.tables import Form, Name
from lib.ensemble.search import Lattice
from lib.errors import ConfigError, DataError
from lib.scenes import raster, rle
from lib.tasks import MulticlassMask, MultilabelMask, names_of, strongest


class MulticlassRLEOptions(RunsOptions):
    """What ``data.options`` may hold; ``train`` and ``test`` may also be patterns of files."""

    classes: Classes
    """The classes as the table writes them, in the order of the channels."""
    exclusive: bool = False
    """A pixel has one class at most; otherwise classes may overlap, and there are at most seven."""
    table: str = "train.csv"
    """Table of the labelled images, with columns of ids, classes and runs."""
    id: Expression = ""
    """Searched in a file's path below the root; its groups, joined by _, are the id; "": the file's name."""
    group: Expression = ""
    """Searched in an id: what must stay together in a fold, such as a case; ``slices`` also share a folder."""


class MulticlassRLE(mean_dice.PerClass, RunsCompetition):
    """Masks of several classes under ``root``."""

    name, Options, labels, needs = "multiclass_rle", MulticlassRLEOptions, ("runs",), "rows of runs"

    def __init__(self, root: Path, options: MulticlassRLEOptions, memo: Path | None = None):
        super().__init__(root, options, memo)
        self.classes, self.names = options.classes, names_of(options.classes)
        if not options.exclusive and len(self.classes) > 7:
            raise ConfigError(f"data.options.classes: expected at most seven that may overlap, got {len(self.classes)}")
        task, rest = (MulticlassMask, ("background",)) if options.exclusive else (MultilabelMask, ())
        self.tasks = {"loc": task((*rest, *self.classes))}
        self.settings = settings_of_masks(self.names, options.exclusive)

    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the images of a split; "runs", the table, is a file of those that it says the truth of."""
        files, findings = self._files(split)
        group_of, odd_ids = find_in_ids("group", self.options.group, list(files))
        findings = findings + odd_ids
        known = self._truths if split == "train" else {}
        rows = [row for rows in known.values() for row in rows if any(row)]  # an image may be listed with no class
        fits = bool(known.keys() & files.keys())  # else no image has the truth that none of the classes is there
        labelled = files if fits and rows and all(runs for _, runs in rows) else known
        if split == "train":
            findings += self._odd_rows
        findings += [Finding("truth without image", key) for key in sorted(known.keys() - files.keys())]
        own = {True: {"runs": self._table.path}, False: {}}
        scenes = [Scene(k, {"image": p, **own[k in labelled]}, group=group_of.get(k, "")) for k, p in files.items()]
        stacks = {key: f"{name}|{files[key].parent}" for key, name in group_of.items()}
        return layout.stacked(scenes, self.images, stacks), findings

    def _files(self, split: str) -> tuple[dict[str, Path], list[Finding]]:
        """Return id -> image, and what is strange about the names; ids have a suffix where a table has them so."""
        sampled = self.sampled.names(1) if self.sampled else ()
        suffix = self._written.names_files or any(Path(text).suffix.lower() in SUFFIXES for (text,) in sampled)
        return layout.find_images(self.root, split, getattr(self.options, split), self.options.id, suffix)

    @cached_property
    def _written(self) -> layout.Table:
        """The table of truths, with its ids as it writes them."""
        return layout.read_table(layout.first(self.root, [self.options.table]))

    @cached_property
    def _table(self) -> layout.Table:
        """The table of truths, by the ids of the images."""
        try:
            return self._written.of_images(self._files("train")[0]) if self._written.columns else self._written
        except DataError:  # no training images, as where only test images are
            return self._written

    @cached_property
    def _truths(self) -> dict[str, list[tuple[str, str]]]:
        """Image id -> (class, runs) of each of its rows, classes as the options write them."""
        return {key: [(self._means.get(name, name), runs) for name, runs in rows]
                for key, rows in self._table.classes_and_runs().items()}  # fmt: skip

    @cached_property
    def _means(self) -> dict[str, str]:
        written = {name for rows in self._table.classes_and_runs().values() for name, _ in rows}
        return matched(written, {name: name for name in self.classes}, shared=True)

    @property
    def _odd_rows(self) -> list[Finding]:
        """What is strange about the rows of the table."""
        findings = list(self._table.findings)
        findings += otherwise("classes written otherwise than in the options, read as those", self._table.path.name,
                              self._means)  # fmt: skip
        rows = [(key, *row) for key, rows in self._truths.items() for row in rows if any(row)]
        odd = sorted({name for _, name, _ in rows} - set(self.classes))
        findings += [Finding("class not in data.options.classes", name) for name in odd]
        times = Counter((key, name) for key, name, _ in rows)
        return findings + [Finding("several rows of one image and class, joined", key, f"{number} of {name}")
                           for (key, name), number in times.items() if number > 1]  # fmt: skip

    def read_files(self) -> list[Path]:
        return [*super().read_files(), self._table.path]

    def labelled_runs(self) -> list[tuple[Scene, str]]:
        listed = self._list("train") if self._truths else ()
        return [(scene, runs) for scene in listed for _, runs in self._truths.get(scene.id, ())]

    def truth(self, scene: Scene) -> Answer:
        """Draw the runs of an image: (C, H, W) uint8 in {0, 1}. Raises DataError."""
        if not self.labelled(scene):
            raise DataError(f"scene {scene.id}: expected rows in {self.options.table}, found none; is it a test image?")
        shape = raster.image_size(scene.files["image"])
        drawn = np.zeros((len(self.classes), *shape), np.uint8)
        for number, (name, runs) in enumerate(self._truths.get(scene.id, ())):
            if name in self.classes:  # the data doctor names others
                drawn[self.classes.index(name)] |= self.draw(runs, shape, self._table.where(scene.id, number))
        return drawn

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8: bit c is class c; of exclusive classes 1 + c, the later of two in one pixel."""
        numbers = np.arange(len(self.classes), dtype=np.uint8)[:, None, None]
        truth = self.truth(scene)
        return (truth * (numbers + 1)).max(0) if self.options.exclusive else (truth << numbers).sum(0, dtype=np.uint8)

    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Cut each class at its threshold, of exclusive ones the strongest of a pixel, and clean its mask."""
        return np.stack([foreground(plane, *own) for plane, own in zip(self._planes(levels), self._own(settings))])

    def _own(self, settings: Params) -> list[tuple[float, ...]]:
        """Return what each class has of the settings: the arguments of ``foreground`` after the levels."""
        parts = ("threshold", "min_area", "opening", "closing")
        return [tuple(settings.get(f"{part}_{name}", 0) for part in parts) for name in self.names]

    def _planes(self, levels: Levels) -> np.ndarray:
        planes = levels["loc"][-len(self.classes) :]
        if not self.options.exclusive:
            return planes
        return np.where(np.arange(len(planes))[:, None, None] == strongest(planes), planes, np.uint8(0))

    def count(self, levels: Levels, truth: Answer, grid: Lattice) -> np.ndarray:
        """Count one image for all points: (P, 5 C) int64; a class is counted once for each of its own settings."""
        points = [self._own(point) for point in grid]
        known = [{own: mean_dice.tally(foreground(plane, *own), true) for own in {point[c] for point in points}}
                 for c, (plane, true) in enumerate(zip(self._planes(levels), truth, strict=True))]  # fmt: skip
        return np.array([[known[c][own] for c, own in enumerate(point)] for point in points]).reshape(len(points), -1)

    @property
    def form(self) -> Form:  # type: ignore[override]  # read from the data when asked for
        """A row per image and class, under the sample's header or else the table's."""
        return Form(self._header, names=2, origin=self.rule.origin, order=self.column_order(self._header))

    def column_order(self, header: Sequence[str]) -> tuple[int, ...]:
        return layout.order_of_classes(header)

    def check_sample(self) -> None:
        _ = self._header

    @property
    def _header(self) -> tuple[str, ...]:
        return layout.header_of_classes(self._written, self.sampled)

    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return a row for every class, the runs empty where there is none of it."""
        row_id = self.row_id(scene)
        return [(row_id, name, self.encode(mask)) for name, mask in zip(self.classes, answer, strict=True)]

    def row_names(self, scene: Scene) -> list[Name]:
        return [(self.row_id(scene), name) for name in self.classes]

    def scene_fault(self, rows: Sequence[Row]) -> str:
        """Say whether two classes that exclude each other share a pixel."""
        masks = [rle.parse(runs, origin=self.rule.origin)[0] for *_, runs in rows] if self.options.exclusive else []
        return "two classes on one pixel, which are exclusive" if rle.overlap(masks) else ""

    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        shape = self.canvas(scene)
        drawn = np.zeros((len(self.classes), *shape), np.uint8)
        for _, name, runs in rows:
            if name in self.classes:  # the data doctor names others
                drawn[self.classes.index(name)] |= self.draw(runs, shape)
        return drawn
