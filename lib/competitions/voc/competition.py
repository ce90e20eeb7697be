"""VOC: every pixel of a picture gets one class (PASCAL VOC, animals, pets, CamVid).

Layout, as PASCAL VOC ships it; ``data.options`` name any other::

    root/JPEGImages/2007_000032.jpg                  the pictures, of any size
    root/SegmentationClass/2007_000032.png           palette or grey PNG: the stored index is the class, 255 is ignored
    root/ImageSets/Segmentation/train.txt, val.txt, trainval.txt, test.txt

Example row of a list: ``2007_000032``, or a path to the picture, as CamVid's lists have it; what follows a space is
not read. ``images``, ``masks`` and ``lists`` may hold ``{split}``; the first two are folders, or patterns in which
``*`` is the id. So CamVid is ``images: "{split}", masks: "{split}annot", lists: "{split}.txt"``, and a folder of pets
with a folder of labels in it is ``images: "res/*.jpg", masks: res/label, lists: null``.

Metric: mIoU, the mean over classes of intersection / union, from one confusion matrix of all pixels of all pictures.
A class found neither in the truth nor in the answer has no union and is left out of the mean; its own figure is 0.
Answer: (H, W) uint8 class indices. Submission: one row of runs per picture and class but the first, and index PNGs.

This module is longer than 300 lines because the competition, its files and masks, the data doctor and the linter all
speak of this one layout; every section is plain functions on it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from lib import metrics as scoring
from lib.competitions import contract, tables
from lib.competitions.contract import Answer, Finding, Grid, Levels, Scene, summarize
from lib.competitions.decoding import Setting
from lib.competitions.voc import label_map
from lib.ensemble import search
from lib.errors import ConfigError, DataError
from lib.scenes import raster, rle
from lib.tasks import IGNORE, MulticlassMask

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
UNIONS = ("trainval",)
"""Splits that repeat others, so that an id in them and in another is nothing strange."""
FORM = tables.Form(("ImageId_ClassId", "EncodedPixels"))
CSV, MASKS = "submission.csv", "masks"
RESERVED = ("id", "fold", "group")
"""Columns of folds.csv that no class may be called."""


@dataclass(frozen=True)
class Facts:
    """What a mask says, read once: the classes it holds. ``error``: why the scene cannot be used, empty if it can."""

    present: frozenset[int]
    error: str = ""


class Competition(contract.Competition):
    """Pictures with one class per pixel under ``root``.

    classes: names in the order of their indices; index 0 is what fills the rest (background). images, masks, lists:
    where files are, see above; lists null: every picture with a mask is labelled, every other one is test, or, where
    ``images`` holds ``{split}``, the folders are the splits. train_splits: the splits whose masks are used, those that
    are there. test_split: the pictures to answer, null for none. ignore: mask values that count nowhere, besides 255.
    colours: the RGB of each index where masks are coloured pictures, or ``voc`` for PASCAL's palette; other colours are
    ignored. group, domain: patterns searched in the id, their first group or all of the match is the name of what must
    stay together (a video), and of where the picture is from; without ``domain`` that is the group.
    """

    listed = answer = rows = answer_from = None  # of the contract's methods it has its own form of these
    settings = property(lambda self: {name: Setting(value, "") for name, value in self.defaults().items()})
    name = "voc"
    images = ("image",)

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] = (),
        images: str | Sequence[str] = "JPEGImages",
        masks: str | Sequence[str] = "SegmentationClass",
        lists: str | None = "ImageSets/Segmentation/{split}.txt",
        train_splits: Sequence[str] = ("train", "val", "trainval"),
        test_split: str | None = "test",
        ignore: Sequence[int] = (),
        colours: Sequence[Sequence[int]] | str | None = None,
        group: str | None = None,
        domain: str | None = None,
    ) -> None:
        if not 2 <= len(classes) < IGNORE or not all(isinstance(name, str) for name in classes):
            raise ConfigError(f"data.options.classes: expected 2 to 254 names in the order of their indices, "
                              f"got {classes!r}")  # fmt: skip
        self.names = tuple(re.sub(r"\W+", "_", name).strip("_") for name in classes)
        if len(set(self.names)) < len(classes) or not all(self.names) or set(self.names) & set(RESERVED):
            raise ConfigError(f"data.options.classes: expected names that differ in letters and digits and are none of "
                              f"{', '.join(RESERVED)}, got {', '.join(classes)}")  # fmt: skip
        if not train_splits or isinstance(train_splits, str) or (lists is not None and "{split}" not in lists):
            raise ConfigError(f"data.options: expected train_splits, a list of names, and {{split}} in lists, got "
                              f"{train_splits!r} and {lists!r}")  # fmt: skip
        self.root = Path(root)
        self.tasks = {"loc": MulticlassMask(tuple(classes))}
        self.flags = self.names[1:]
        self.image_patterns = _patterns("images", images)
        self.mask_patterns = _patterns("masks", masks)
        self.lists, self.train_splits, self.test_split = lists, tuple(train_splits), test_split
        self.ignore = _ignored(ignore)
        self.colours = _colours(colours, len(classes))
        self.group, self.domain = _expression("group", group), _expression("domain", domain)
        self._listed: tuple[dict[str, list[Scene]], dict[str, str], list[Finding]] | None = None
        self._scenes: dict[str, list[Scene]] = {}
        self._facts: dict[str, Facts] = {}

    # ---- data -----------------------------------------------------------------------------------------
    def scenes(self, split: str) -> list[Scene]:
        """Return the pictures of "train" (every training split that is there) or "test", sorted by id.

        Pictures whose mask is missing or cannot be used are left out of "train"; ``inspect`` names them. "train" reads
        each mask once, "test" none. Raises DataError when "train" has no usable picture.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split: expected train or test, got {split!r}")
        if split not in self._scenes:
            by_split, _, _ = self._list()
            if split == "train":
                listed = {s.id: s for name in reversed(self.train_splits) for s in reversed(by_split.get(name, ()))}
                labelled = [scene for scene in listed.values() if "mask" in scene.files]
                with ThreadPoolExecutor(max_workers=2) as pool:
                    facts = list(pool.map(self._facts_of, labelled))
                scenes = [scene for scene, fact in zip(labelled, facts) if not fact.error]
                if not scenes:
                    first = next((fact.error for fact in facts if fact.error), "none of them has a mask")
                    raise DataError(f"{self.root}: expected pictures with masks, got {len(listed)} pictures in "
                                    f"{', '.join(self.train_splits)} of which none can be used ({first}); check "
                                    f"data.options.masks, classes and ignore")  # fmt: skip
            else:
                scenes = by_split.get(self.test_split, []) if self.test_split not in self.train_splits else []
            self._scenes[split] = sorted(scenes, key=lambda scene: scene.id)
        return self._scenes[split]

    def published_split(self) -> dict[str, str]:
        """Return picture id -> the split it was shipped in, the first one that lists it; {} where no split is given."""
        return dict(self._list()[1]) if self._is_split() else {}

    def inspect(self) -> list[Finding]:
        """Read every picture and mask once and report what is missing, broken or suspicious."""
        by_split, _, findings = self._list()
        scenes = list({scene.id: scene for scene in chain.from_iterable(by_split.values())}.values())
        findings = list(findings)
        with ThreadPoolExecutor(max_workers=2) as pool:
            inspected = pool.map(self._inspect, scenes)
            for found in tqdm(inspected, "data check", total=len(scenes), leave=False, disable=None):
                findings += found
        return findings

    def read(self, scene: Scene, image: str) -> np.ndarray:
        """Read the picture as (H, W, 3) uint8 RGB. Raises DataError naming scene and file."""
        try:
            return raster.read_image(scene.files[image])
        except DataError as error:
            raise DataError(f"scene {scene.id}: {error}") from error

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8 class indices, 255 where the mask holds an ignored value."""
        if "mask" not in scene.files:
            raise DataError(f"scene {scene.id}: expected a mask, found none; has this scene a truth?")
        path = scene.files["mask"]
        mask = read_mask(path, self.colours)
        mask[np.isin(mask, self.ignore)] = IGNORE
        if (unknown := np.unique(mask[(mask >= len(self.names)) & (mask != IGNORE)])).size:
            raise DataError(
                f"scene {scene.id}: {path}: expected classes 0..{len(self.names) - 1} or an ignored value, got "
                f"{', '.join(map(str, unknown[:5]))}; name the class in data.options.classes, or add it to ignore"
            )
        return mask

    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return which classes but the first the mask holds."""
        facts = self._facts_of(scene)
        if facts.error:
            raise DataError(facts.error)
        return {name: index in facts.present for index, name in enumerate(self.flags, 1)}

    def _facts_of(self, scene: Scene) -> Facts:
        """Read what the mask of a scene says, the first time it is asked for."""
        if scene.id not in self._facts:
            try:
                self._facts[scene.id] = self._read_facts(scene)
            except DataError as error:
                self._facts[scene.id] = Facts(frozenset(), str(error))
        return self._facts[scene.id]

    def _read_facts(self, scene: Scene) -> Facts:
        mask, size = self.target(scene, "loc"), raster.image_size(scene.files["image"])
        if mask.shape != size:
            raise DataError(f"scene {scene.id}: {scene.files['mask']}: expected the picture's size {size}, "
                            f"got {mask.shape}")  # fmt: skip
        return Facts(frozenset(np.flatnonzero(np.bincount(mask.ravel(), minlength=IGNORE + 1)[:IGNORE]).tolist()))

    # ---- files ----------------------------------------------------------------------------------------
    def _is_split(self) -> bool:
        """Tell whether the data says which split a picture is in."""
        return self.lists is not None or any("{split}" in pattern for pattern in self.image_patterns)

    def _splits(self) -> dict[str, list[str]]:
        """Return split -> ids as the lists or folders name them, training splits first."""
        names = list(dict.fromkeys([*self.train_splits, *([self.test_split] if self.test_split else [])]))
        if self.lists is not None:
            paths = {name: self.root / self.lists.replace("{split}", name) for name in names}
            found = {name: _read_list(path) for name, path in paths.items() if path.is_file()}
        elif self._is_split():
            found = {name: sorted(_index(self.root, self.image_patterns, name)) for name in names}
            found = {name: ids for name, ids in found.items() if ids}
        else:
            masks = _index(self.root, self.mask_patterns)
            found = {name: [] for name in names}
            for scene_id in sorted(_index(self.root, self.image_patterns)):
                found.get(self.train_splits[0] if scene_id in masks else self.test_split, []).append(scene_id)
        if not any(found.get(name) for name in self.train_splits):
            places = self.lists or ", ".join(self.image_patterns)
            inside = sorted(path.name for path in self.root.iterdir())[:8] if self.root.is_dir() else ["no such path"]
            raise DataError(f"{self.root}: expected {places} for the splits {', '.join(self.train_splits)}, found "
                            f"{', '.join(inside)}; set data.root, or data.options.lists, images, masks")  # fmt: skip
        return found

    def _list(self) -> tuple[dict[str, list[Scene]], dict[str, str], list[Finding]]:
        """List the scenes of each split by file names alone, the split of each id, and what is strange about them."""
        if self._listed is None:
            by_split: dict[str, list[Scene]] = {}
            first: dict[str, tuple[str, Scene]] = {}
            missing: dict[str, str] = {}
            findings: list[Finding] = []
            for split, ids in self._splits().items():
                pictures, masks = (_index(self.root, p, split) for p in (self.image_patterns, self.mask_patterns))
                by_split[split] = []
                for scene_id in dict.fromkeys(ids):
                    if scene_id not in pictures:
                        missing.setdefault(scene_id, split)
                        continue
                    files = {"image": pictures[scene_id]} | ({"mask": masks[scene_id]} if scene_id in masks else {})
                    name = _name(self.group, scene_id)
                    scene = Scene(scene_id, files, _name(self.domain, scene_id) or name, group=name)
                    by_split[split].append(scene)
                    findings += _strange(scene, split, *first.get(scene_id, (split, scene)))
                    if split in self.train_splits and "mask" not in files and scene_id not in first:
                        findings.append(Finding("picture without mask", scene_id, f"in {split}"))
                    first.setdefault(scene_id, (split, scene))
            absent = {scene_id: split for scene_id, split in missing.items() if scene_id not in first}
            findings += [Finding("listed picture is not here", i, f"in {split}") for i, split in absent.items()]
            for option, expression in (("group", self.group), ("domain", self.domain)):
                odd = [scene_id for scene_id in first if expression and not expression.search(scene_id)]
                if odd and len(odd) == len(first):
                    raise ConfigError(f"data.options.{option}: expected a pattern that ids match, got one that finds "
                                      f"nothing in any of {len(odd)}, such as {odd[0]!r}")  # fmt: skip
                findings += [Finding(f"id in which {option} finds nothing", scene_id) for scene_id in odd]
            self._listed = by_split, {scene_id: split for scene_id, (split, _) in first.items()}, findings
        return self._listed

    def _inspect(self, scene: Scene) -> list[Finding]:
        """Decode a picture and its mask, report what is wrong with them."""
        try:
            picture = raster.read_image(scene.files["image"])
        except DataError as error:
            return [Finding("unreadable picture", scene.id, str(error))]
        findings = [] if picture.any() else [Finding("picture all black", scene.id, str(scene.files["image"]))]
        if "mask" not in scene.files:
            return findings
        facts = self._facts_of(scene)
        if facts.error:
            findings.append(Finding("mask cannot be used", scene.id, facts.error))
        elif not facts.present:
            findings.append(Finding("mask all ignored", scene.id, str(scene.files["mask"])))
        elif self.colours is not None and (share := _unknown_colours(scene.files["mask"], self.colours)):
            findings.append(Finding("colours of no class, ignored", scene.id, f"{share:.2%} of the pixels"))
        return findings

    # ---- answers --------------------------------------------------------------------------------------
    def truth(self, scene: Scene) -> Answer:
        """Return the mask: (H, W) uint8 class indices, 255 where pixels count nowhere."""
        return self.target(scene, "loc")

    def decode(self, levels: Levels, params: Mapping[str, Any]) -> Answer:
        """Give every pixel the class with the highest level times its gain, then clean up.

        ``params``: ``gain_<class>`` (to a thousandth; ties go to the lower class), ``min_area``: parts of a class of
        fewer pixels become class 0, and "postprocess", a list of steps of ``label_map.py``. Missing ones
        are as in ``defaults``. Raises ConfigError for anything else.
        """
        settings = {**self.defaults(), **params}
        if unknown := settings.keys() - self.defaults().keys() - {"postprocess"}:
            known = ", ".join(self.defaults())
            raise ConfigError(f"decode: expected settings out of {known}, got {', '.join(unknown)}")
        answer = label_map.winner(levels["loc"], [settings[f"gain_{name}"] for name in self.names])
        answer = label_map.remove_small(answer, settings["min_area"])
        return label_map.apply(settings.get("postprocess", ()), answer)

    def defaults(self) -> dict[str, Any]:
        """Return gains of 1 and no smallest area: the class with the highest probability."""
        return {**{f"gain_{name}": 1.0 for name in self.names}, "min_area": 0}

    def grid(self, axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> Grid:
        """Return the lattice of decode settings; ``fixed`` may hold no post-processing."""
        if fixed.get("postprocess"):
            raise ConfigError("decode.postprocess: cannot be searched around; remove it, or leave out search")
        points = search.lattice(axes, {**self.defaults(), **fixed})
        return Grid(points, points.shape)

    def count(self, levels: Levels, truth: Answer, grid: Grid) -> np.ndarray:
        """Count one scene for every point: (P, 3 C) int64."""
        return np.stack([self.tally(self.decode(levels, point), truth) for point in grid.points])

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (3 C,) int64, for each class the pixels of intersection, answer and truth."""
        return scoring.overlaps(scoring.confusion(answer, truth, len(self.names))).ravel()

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return mIoU over the classes found in truth or answer: (..., 3 C) -> (...) float64, 0 where none is."""
        return np.nan_to_num(scoring.mean_present(scoring.overlap_iou(self._by_class(counts))))

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the IoU of each class: (..., 3 C) -> (..., C) float64, 0 for one found in neither."""
        return np.nan_to_num(scoring.overlap_iou(self._by_class(counts)))

    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return mIoU (as "score" and as "iou"), pixel accuracy and the IoU of each class."""
        hits, _, true = self._by_class(counts).sum(-2)
        score = float(self.score(counts))
        named = {"score": score, "pixel_accuracy": float(hits / true) if true else 0.0, "iou": score}
        return named | {f"iou_{name}": float(v) for name, v in zip(self.names, self.class_scores(counts), strict=True)}

    def _by_class(self, counts: np.ndarray) -> np.ndarray:
        return counts.reshape(*counts.shape[:-1], len(self.names), 3)  # (..., C, 3)

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the confusion of all classes: (C * C,) int64."""
        return scoring.confusion(answer, truth, len(self.names)).ravel()

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return the confusion of pixels, truth by rows."""
        matrix = details.reshape(len(self.names), len(self.names)).tolist()
        return {"confusion": {name: dict(zip(self.names, row)) for name, row in zip(self.names, matrix)}}

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return the picture, its truth (where labelled) and the answer, in PASCAL's colours over the picture."""
        picture = self.read(scene, "image")
        shown = [("image", picture)]
        if "mask" in scene.files:
            shown.append(("truth", _paint(picture, self.truth(scene))))
        return [*shown, ("prediction", _paint(picture, answer))]

    # ---- submission -----------------------------------------------------------------------------------
    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write the CSV of runs, a row per picture and class but the first, and a folder of index PNGs."""
        table, pictures = folder / CSV, folder / MASKS
        pictures.mkdir(parents=True, exist_ok=True)
        written = [table]
        with tables.write(table, FORM) as add_row:
            for scene, answer in answers:
                written.append(pictures / f"{scene.id}.png")
                raster.write_png(written[-1], answer)
                for row_id, runs in self._rows(scene.id, answer):
                    add_row(row_id, runs)
        return written

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read a picture's answer back from its PNG; that the CSV says the same is for ``lint`` to see."""
        return raster.read_mask(Path(folder) / MASKS / f"{scene.id}.png")

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with what ``write_submission`` wrote, a folder of index PNGs, or a CSV.

        ``scenes``: the ones that must be answered, no others. ``sample``: a sample submission that the CSV must match.
        Where both formats are there, they must also give the same answers. Needs no data unless ``scenes`` are given.
        """
        path = Path(path)
        if not path.exists():
            return [f"{path}: expected a submission (folder or .csv), found nothing there"]
        sizes = None if scenes is None else {s.id: raster.stated_size(s.files["image"]) for s in scenes}
        if path.is_file():
            return self._lint_table(path, sizes, sample)
        table, pictures = path / CSV, path / MASKS
        if not table.exists() and not pictures.exists():
            faults = self._lint_masks(path, sizes)
            return faults if sample is None else [*faults, f"{sample}: a sample submission needs a CSV to compare with"]
        faults = self._lint_masks(pictures, sizes) + self._lint_table(table, sizes, sample)
        return faults or self._lint_agreement(table, pictures)

    def _rows(self, scene_id: str, answer: Answer) -> list[tuple[str, str]]:
        """Return the (row id, runs) of an answer, one per class but the first."""
        texts = rle.encode_labels(answer, count=len(self.names) - 1)
        return [(f"{scene_id}_{index}", text) for index, text in enumerate(texts, 1)]

    def _lint_masks(self, folder: Path, sizes: Mapping[str, tuple[int, int]] | None) -> list[str]:
        """Lint index PNGs: all there and no others, readable, of the picture's size, classes only."""
        found = {path.stem: path for path in sorted(folder.glob("*.png"))}
        if not found:
            return [f"{folder}: expected index PNGs, one per picture, found none"]
        wanted = dict.fromkeys(found) if sizes is None else sizes
        missing, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        faults = [Finding("picture without a PNG", scene_id) for scene_id in missing]
        faults += [Finding("not one of the scenes asked for", f"{scene_id}.png") for scene_id in foreign]
        for scene_id in sorted(wanted.keys() & found.keys()):
            path, size = found[scene_id], wanted[scene_id]
            try:
                mask = raster.read_mask(path)
            except DataError:
                faults.append(Finding("not a readable index PNG", path.name))
                continue
            if size not in (None, (None, None)) and mask.shape != tuple(size):
                faults.append(Finding("not of its picture's size", path.name))
            if mask.max(initial=0) >= len(self.names):
                faults.append(Finding(f"values that are none of the classes 0..{len(self.names) - 1}", path.name))
        return [f"{folder}: {line}" for line in summarize(faults)]

    def _lint_table(self, table: Path, sizes: Mapping[str, tuple[int, int]] | None, sample: Path | None) -> list[str]:
        """Lint the CSV; each picture must have the rows of all classes, unless a sample says which rows there are."""
        shapes: dict[str, Any] = {}
        if sizes is None:
            try:
                ids = dict(tables.read(table, FORM))
            except DataError:
                ids = {}  # lint_rle_csv says what is wrong
            sizes = {} if sample else dict.fromkeys((row_id.rpartition("_")[0] for row_id in ids), (None, None))
        for scene_id, size in sizes.items():
            shapes |= {(f"{scene_id}_{index}",): size for index in range(1, len(self.names))}
        return tables.lint(table, FORM, shapes or None, sample)

    def _lint_agreement(self, table: Path, pictures: Path) -> list[str]:
        """Return the pictures whose answers in the CSV and in the PNGs differ, or that are in one of them only."""
        runs, differing = dict(tables.read(table, FORM)), []
        for path in sorted(pictures.glob("*.png")):
            rows = self._rows(path.stem, raster.read_mask(path))
            if [runs.pop(row_id, None) for row_id, _ in rows] != [text for _, text in rows]:
                differing.append(path.stem)
        differing += sorted({row_id.rpartition("_")[0] for row_id in runs})
        return [f"{table}: {len(differing)} pictures differ from the PNGs (first: {differing[0]})"] if differing else []


# ---- masks and colours --------------------------------------------------------------------------------
def palette(count: int = 256) -> np.ndarray:
    """Return PASCAL's colours of the indices 0 .. count - 1: (count, 3) uint8 RGB; bits of the index, dealt in turn."""
    index = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def read_mask(path: Path, colours: np.ndarray | None = None) -> np.ndarray:
    """Read a mask as (H, W) uint8: the stored indices, or, with ``colours`` (N, 3) uint8, the index of each colour.

    Colours that are none of these become 255. Raises DataError on a broken file, and on a picture without ``colours``.
    """
    if colours is None:
        try:
            return raster.read_mask(path)
        except DataError as error:
            raise DataError(f"{error}; if the classes are colours, name them in data.options.colours") from error
    return _look_up(raster.read_image(path), colours)


def _look_up(picture: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Look up each pixel of (H, W, 3) uint8 among the colours: (H, W) uint8, 255 where it is none of them."""
    codes, pixels = (array.astype(np.int32) @ (65536, 256, 1) for array in (colours, picture))  # (N,), (H, W)
    order = np.argsort(codes)
    place = np.searchsorted(codes[order], pixels).clip(max=len(codes) - 1)
    return np.where(codes[order][place] == pixels, order[place], IGNORE).astype(np.uint8)


def _unknown_colours(path: Path, colours: np.ndarray) -> float:
    """Return the share of pixels whose colour is neither a class nor PASCAL's colour of the ignored outline."""
    return float((_look_up(raster.read_image(path), np.vstack([colours, palette()[IGNORE:]])) == IGNORE).mean())


def _paint(picture: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Lay the colours of (H, W) uint8 classes over a picture; class 0 only dims it, ignored pixels are nearly white."""
    return picture // 2 + palette()[answer] // 2


# ---- options and lists --------------------------------------------------------------------------------
def _patterns(option: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """Return patterns with one ``*``, the id, in the file's name; a folder stands for all pictures in it."""
    patterns = (given,) if isinstance(given, str) else tuple(given)
    whole = tuple(p if "*" in PurePosixPath(p).name else str(PurePosixPath(p) / "*") for p in patterns)
    if not whole or any(pattern.count("*") != 1 for pattern in whole):
        raise ConfigError(f"data.options.{option}: expected folders, or patterns with one * in the name, got {given!r}")
    return whole


def _index(root: Path, patterns: Sequence[str], split: str = "") -> dict[str, Path]:
    """Return id -> file for all pictures that match; earlier patterns and names go first."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        place = PurePosixPath(pattern.replace("{split}", split))
        before, after = place.name.split("*")
        for path in sorted((root / place.parent).glob(place.name)):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                stem = path.name.removesuffix(after) if after else path.stem
                found.setdefault(stem.removeprefix(before), path)
    return found


def _read_list(path: Path) -> list[str]:
    """Return the ids of a list: the first word of each line, without folders and without a picture's suffix."""
    try:
        words = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: expected a list of ids in UTF-8, got {error}") from error
    names = [PurePosixPath(word) for word in words]
    return [name.stem if name.suffix.lower() in SUFFIXES else name.name for name in names]


def _ignored(given: Sequence[int]) -> list[int]:
    if not all(isinstance(value, int) and 0 <= value <= IGNORE for value in given):
        raise ConfigError(f"data.options.ignore: expected mask values 0..255, got {given!r}")
    return list(given)


def _colours(given: Sequence[Sequence[int]] | str | None, classes: int) -> np.ndarray | None:
    """Return the colours as (N, 3) uint8, N at least the number of classes; None where masks hold indices."""
    if given is None:
        return None
    if given == "voc":
        return palette(classes)
    try:
        colours = np.array(given, np.uint8)
    except (ValueError, TypeError, OverflowError):
        colours = np.zeros(0, np.uint8)
    right_shape = colours.ndim == 2 and colours.shape[1] == 3 and len(colours) >= classes
    if not right_shape or len(np.unique(colours, axis=0)) < len(colours):
        raise ConfigError(f"data.options.colours: expected voc or a different [red, green, blue] in 0..255 for each of "
                          f"{classes} classes, got {given!r}")  # fmt: skip
    return colours


def _expression(option: str, given: str | None) -> re.Pattern | None:
    try:
        return re.compile(given) if given else None
    except re.error as error:
        raise ConfigError(f"data.options.{option}: expected a regular expression, got {given!r}: {error}") from error


def _name(expression: re.Pattern | None, scene_id: str) -> str:
    """Return the first group of a match, or all of it; "" without an expression or a match."""
    match = expression.search(scene_id) if expression else None
    return "" if match is None else (match[1] if expression.groups else match[0]) or ""


def _strange(scene: Scene, split: str, first_split: str, first: Scene) -> list[Finding]:
    """Report an id that was listed before: with another picture, or in a split that should not share any."""
    if scene.files["image"] != first.files["image"]:
        return [Finding("two pictures of one id", scene.id, f"{first.files['image']} and {scene.files['image']}")]
    if split != first_split and not {split, first_split} & set(UNIONS):
        return [Finding("in two splits", scene.id, f"{first_split} and {split}")]
    return []
