"""One class of objects in images of any size, answered as run-length text: HuBMAP, nuclei (DSB 2018), salt.

Layouts, told apart by what is there; all names can be set as options::

    root/train_images/10044.tiff         or train/images/, train/ (HuBMAP 2021); PNG, JPEG, TIFF, GeoTIFF of any size
    root/train_masks/10044.png           or train/masks/, masks/; optional, used instead of the runs where it is there
    root/train.csv                       id, the runs, and whatever else is known of an image
    root/test_images/, test.csv          or test/images/, test/; the CSV is optional and never has runs
    root/sample_submission.csv           optional; its header is the one that is written

    root/stage1_train/00ae65c1/images/00ae65c1.png      DSB 2018: a folder per image,
    root/stage1_train/00ae65c1/masks/0e548d0a.png       one mask per object,
    root/stage1_train_labels.csv                        or one row per object (ImageId, EncodedPixels)
    root/stage1_test/0114f484/images/0114f484.png

Example row of a train.csv (HuBMAP 2022; the column of runs may also be called encoding, rle_mask or EncodedPixels)::

    id,organ,data_source,img_height,img_width,pixel_size,rle
    10044,prostate,HPA,3000,3000,0.4,1459676 77 1462675 82 1465674 87 ...

Answer: (H, W) uint8 in {0, 1}, or (H, W) int32 with a number per object (truth: where objects are given one by one).
Metric "dice" is the mean over images of Dice at native resolution, where an empty answer to an empty truth counts 1;
"dice_pooled" adds the pixels of all images first; "object_map" is the DSB's (``metric.py``).

This module is longer than 300 lines because the files of several competitions that differ only in their names, and the
data doctor and linter for them, are one layout told in one place.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import metrics as masks
from lib.competitions import contract, tables
from lib.competitions.binary_rle import instances as objects
from lib.competitions.binary_rle import metric as scoring
from lib.competitions.contract import Answer, Finding, Grid, Levels, Scene
from lib.competitions.decoding import Setting
from lib.ensemble import search
from lib.ensemble.thresholds import of_scene
from lib.errors import ConfigError, DataError
from lib.scenes import raster, rle, stain
from lib.scenes.view import resize
from lib.tasks import BinaryMask, MultilabelMask

TRAIN = ("train_images", "train/images", "stage1_train", "train")
TEST = ("test_images", "test/images", "stage1_test", "test")
MASKS = ("train_masks", "train/masks", "masks")
TABLES = ("train.csv", "stage1_train_labels.csv")
TEST_TABLES = ("test.csv",)
SAMPLES = ("sample_submission.csv", "stage1_sample_submission.csv")
ID_COLUMNS = ("id", "ImageId", "image_id", "img")
RLE_COLUMNS = ("rle", "rle_mask", "encoding", "EncodedPixels")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
METRICS = ("dice", "dice_pooled", "object_map")
CSV = "submission.csv"
OTSU = "otsu"
PIXEL_COUNTS = 5
"""Images, the sum of their Dice in fixed point, then tp, fp, fn of pixels; object counts follow for "object_map"."""
COLOURFUL = 8.0
"""Mean saturation (0..255) of an image from which on it is a stained section and not fluorescence, which is grey: the
28 images of DSB 2018 that were looked at have 0.0 or 18.6 to 146.9."""


class Competition(contract.Competition):
    """One class of objects under ``root``. Options (all may be left out):

    class_name: what the objects are called. metric: dice | dice_pooled | object_map. border: also learn where objects
    touch, within ``border_width`` pixels (needs objects one by one). order, origin: how runs count pixels (column |
    row, 0 | 1), or auto: told from the training runs. domain, group: columns of the tables; domain ``colour`` is told
    from the pixels ("brightfield" or "fluorescence"). pixel_size: a column, used where it exists. slices: k images per
    scene, the neighbours in the stack of its ``group``, ordered by ``slice_column`` or else by id. train, test, masks,
    table, test_table, id_column, rle_column, header: names that differ from those above. stain: {mean: [L, a, b], std:
    [L, a, b]} of a slide whose stain all images are given (``python -m lib.scenes.stain IMAGE`` prints them).
    """

    listed = answer = rows = answer_from = None  # of the contract's methods it has its own form of these
    settings = property(lambda self: {name: Setting(value, "") for name, value in self.defaults().items()})
    name = "binary_rle"
    flags = ("empty", "small", "large")
    """No object; objects that cover at most, or more than, what they cover in the median image with an object."""

    def __init__(
        self,
        root: str | Path,
        *,
        class_name: str = "object",
        metric: str = "dice",
        border: bool = False,
        border_width: int = 2,
        order: str = "auto",
        origin: int | str = "auto",
        domain: str = "",
        group: str = "",
        pixel_size: str = "pixel_size",
        slices: int = 1,
        slice_column: str = "",
        train: str = "",
        test: str = "",
        masks: str = "",
        table: str = "",
        test_table: str = "",
        id_column: str = "",
        rle_column: str = "",
        header: Sequence[str] = (),
        stain: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        _check_option("metric", metric, METRICS)
        _check_option("order", order, ("auto", "column", "row"))
        _check_option("origin", origin, ("auto", 0, 1))
        _check_option("border", border, (False, True))
        if slices < 1 or slices % 2 == 0 or (slices > 1 and not group):
            raise ConfigError(
                f"data.options.slices: expected an odd number and a group column that says which images are one stack, "
                f"got {slices} with group {group!r}"
            )
        if border_width < 1 or len(header) not in (0, 2):
            raise ConfigError(
                f"data.options: expected a border_width of at least 1 and a header of two words, got {border_width}, "
                f"{list(header)}"
            )
        self.root = Path(root)
        self.class_name, self.metric, self.border, self.border_width = class_name, metric, border, border_width
        self.order, self.origin = order, origin
        self.domain, self.group, self.pixel_size, self.slice_column = domain, group, pixel_size, slice_column
        reach = range(-(slices // 2), slices // 2 + 1)
        self.images = tuple(f"image{k:+d}" if k else "image" for k in reach)
        self.tasks = {"loc": MultilabelMask((class_name, "border")) if border else BinaryMask((class_name,))}
        self._names = {"train": train, "test": test, "masks": masks, "table": table, "test_table": test_table}
        self._columns = id_column, rle_column
        self._header = tuple(header)
        self.stain = _stain_stats(stain)
        self._listed: dict[str, tuple[dict[str, dict[str, Path]], list[Finding]]] = {}
        self._scenes: dict[str, list[Scene]] = {}
        self._answers: tuple[Any, dict[str, list[str]]] = None, {}

    # ---- data -----------------------------------------------------------------------------------------
    def scenes(self, split: str) -> list[Scene]:
        """Return the scenes of "train" (images with a truth) or "test", sorted by id.

        Pixels are read only for the domain ``colour``. Raises DataError when "train" has no usable scene, ConfigError
        when an option needs a column that is not there, or objects one by one where there is only one mask per image.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split: expected train or test, got {split!r}")
        if split not in self._scenes:
            listed = self._list(split)[0]
            if split == "train":
                listed = {key: files for key, files in listed.items() if self._has_truth(key, files)}
                self._refuse_what_the_truth_cannot_give(listed)
            self._scenes[split] = self._describe(split, listed)
        return self._scenes[split]

    def inspect(self) -> list[Finding]:
        """Read every image and every truth once and report what is missing, broken or suspicious."""
        findings = []
        for split in ("train", "test"):
            listed, strange = self._list(split)
            findings += strange
            if split == "train":
                bare = [key for key, files in listed.items() if not self._has_truth(key, files)]
                findings += [Finding("image without truth", key, str(listed[key]["image"])) for key in bare]
                lonely = sorted(self._runs.keys() - listed.keys())
                findings += [Finding("truth without image", key, "in the table only") for key in lonely]
            scenes = self.scenes(split)
            with ThreadPoolExecutor(max_workers=2) as pool:
                found = pool.map(lambda scene, split=split: self._inspect(scene, split), scenes)
                for some in tqdm(found, f"data check {split}", total=len(scenes), leave=False, disable=None):
                    findings += some
        try:
            _ = self.rule
        except DataError as error:
            return [*findings, Finding("RLE order unknown", "train", str(error))]
        return findings

    def remarks(self) -> list[str]:
        """Return how runs count pixels, where that was told from the data."""
        try:
            rule = self.rule
        except DataError:  # inspect says so
            return []
        if rule.why == "stated":
            return []
        how = "detected" if self._runs else "assumed"
        return [f"RLE order {how}: {rule.order} order from {rule.origin}, {rule.why} "
                "(state data.options.order and origin to end this remark)"]  # fmt: skip

    def read(self, scene: Scene, image: str) -> np.ndarray:
        """Read an image, or its neighbour in the stack ("image+1"; the last one again beyond the end), as (H, W, 3)
        uint8 RGB, in the stain that is wanted; a neighbour of another size is resized. Raises DataError naming scene
        and file."""
        try:
            pixels = raster.read_image(scene.files[image])
            if image != "image":
                pixels = resize(pixels, raster.image_size(scene.files["image"]))
        except DataError as error:
            raise DataError(f"scene {scene.id}: {error}") from error
        return stain.normalise(pixels, self.stain) if self.stain else pixels

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8: 1 = object; with ``border``, bit 0 = object and bit 1 = border between objects."""
        truth = self.truth(scene)
        target = (truth > 0).view(np.uint8)
        if self.border:
            target = target | (objects.borders(truth, self.border_width).view(np.uint8) << 1)
        return target

    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return whether a scene has no object, or small or large ones together."""
        share = self._shares[scene.id]
        return {"empty": share == 0, "small": 0 < share <= self._median_share, "large": share > self._median_share}

    def published_split(self) -> dict[str, str]:
        """Return what a column ``split`` of the tables says of each scene; empty without one."""
        tables = (self._table, self._test_table)
        return {key: text for table in tables if "split" in table for key, text in table["split"].items() if text}

    # ---- truth ----------------------------------------------------------------------------------------
    def truth(self, scene: Scene) -> Answer:
        """Return (H, W) int32 with a number per object where objects are given one by one, else (H, W) uint8 {0, 1}.

        Where masks of two objects overlap, the later one (in the order of file names or rows) has the pixel.
        """
        shape = raster.image_size(scene.files["image"])
        if self.one_by_one:
            truth = np.zeros(shape, np.int32)
            for number, mask in enumerate(self._masks(scene, shape), 1):
                truth[mask > 0] = number
            return truth
        return next(iter(self._masks(scene, shape)))

    def _masks(self, scene: Scene, shape: tuple[int, int]) -> Iterable[np.ndarray]:
        """Yield the masks of a scene, (H, W) uint8 in {0, 1}. Raises DataError naming scene and file."""
        try:
            paths = _mask_files(scene.files)
            if paths is None:
                for text in self._runs[scene.id]:
                    yield rle.decode(text, shape, self.rule.order, self.rule.origin)
                return
            for path in paths:
                mask = raster.read_mask(path)
                if mask.shape != shape:
                    raise DataError(f"{path}: expected the size of its image {shape}, got {mask.shape}")
                yield (mask > 0).view(np.uint8)
        except KeyError as error:
            raise DataError(f"scene {scene.id}: expected a truth, found none; is it a test image?") from error
        except DataError as error:
            raise DataError(f"scene {scene.id}: {error}") from error

    @cached_property
    def one_by_one(self) -> bool:
        """Whether the truth tells objects apart: a folder of masks per image, or ids with several rows."""
        listed = self._list("train")[0]
        if any("masks" in files for files in listed.values()):
            return True
        return any(len(texts) > 1 for key, texts in self._runs.items() if "mask" not in listed.get(key, ()))

    @cached_property
    def rule(self) -> rle.Rule:
        """How runs count pixels: as stated, or told from the training runs, or Kaggle's rule where there are none.

        Raises DataError where the runs fit several rules.
        """
        order = None if self.order == "auto" else self.order
        origin = None if self.origin == "auto" else self.origin
        if order is not None and origin is not None:
            return rle.Rule(order, origin, "stated")
        known = [scene for scene in self.scenes("train") if any(t.strip() for t in self._runs.get(scene.id, ()))]
        if not self._runs:
            return rle.Rule(order or "column", 1 if origin is None else origin, "no training runs, so Kaggle's rule")
        if drawn := [scene for scene in known if "mask" in scene.files][:20]:
            rules = [(o, n) for o, n in rle.RULES if order in (None, o) and origin in (None, n)]
            rules = [rule for rule in rules if all(self._draws_the_mask(scene, rule) for scene in drawn)]
            if len(rules) == 1:
                return rle.Rule(*rules[0], f"so the runs of {len(drawn)} images give their mask files")
        pairs = [(scene, text) for scene in known for text in self._runs[scene.id] if text.strip()]
        sizes = {scene.id: raster.image_size(scene.files["image"]) for scene in known}
        texts, shapes = [text for _, text in pairs], [sizes[scene.id] for scene, _ in pairs]
        try:
            return rle.detect(texts, shapes, lambda i: self.read(pairs[i][0], "image"), order, origin)
        except DataError as error:
            raise DataError(f"{self.root}: {error} (data.options.order and origin)") from error

    def _draws_the_mask(self, scene: Scene, rule: tuple[str, int]) -> bool:
        mask = raster.read_mask(scene.files["mask"]) > 0
        text = " ".join(self._runs[scene.id])
        return not rle.parse(text, mask.size, rule[1])[1] and np.array_equal(rle.decode(text, mask.shape, *rule), mask)

    @cached_property
    def _shares(self) -> dict[str, float]:
        """Return which share of each labelled image its objects cover."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            scenes = self.scenes("train")
            shares = pool.map(lambda scene: float((self.truth(scene) > 0).mean()), scenes)
            return {scene.id: share for scene, share in zip(scenes, shares)}

    @cached_property
    def _median_share(self) -> float:
        return float(np.median([share for share in self._shares.values() if share] or [0.0]))

    # ---- answers --------------------------------------------------------------------------------------
    def decode(self, levels: Levels, params: Mapping[str, Any]) -> Answer:
        """Turn levels into a mask, or with ``instances`` into objects; settings of ``instances.py``.

        "postprocess" may hold a list of its steps; "threshold" may be "otsu", told from the scene's own levels. Raises
        ConfigError for anything else.
        """
        given = dict(params)
        steps = given.pop("postprocess", ())
        if given.get("threshold") == OTSU:
            given["threshold"] = of_scene(levels["loc"][0], objects.DEFAULTS["threshold"])
        return objects.postprocess(steps, objects.decode(levels["loc"], {**self.defaults(), **given}))

    def defaults(self) -> dict[str, Any]:
        """Return the decode settings that mean "no search has run"; objects are parted where the metric needs it."""
        return {**objects.DEFAULTS, "instances": int(self.metric == "object_map")}

    def grid(self, axes: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> Grid:
        """Return the lattice of decode settings; post-processing in ``fixed`` is applied at every point."""
        points = search.lattice(axes, {**self.defaults(), **fixed})
        return Grid(points, points.shape)

    def count(self, levels: Levels, truth: Answer, grid: Grid) -> np.ndarray:
        """Count one scene for all points: (P, K) int64; where only the threshold matters, from one histogram."""
        plain = {**objects.DEFAULTS, "postprocess": ()}
        points = [{**plain, **point} for point in grid.points]
        if self.metric != "object_map" and not any(
            p["fill_holes"] or p["instances"] or p["min_area"] > 1 or p["postprocess"] for p in points
        ):
            thresholds = [point["threshold"] for point in points]
            return _pixel_counts(objects.count_thresholds(levels["loc"][0], truth, thresholds))
        counts = np.zeros((len(points), PIXEL_COUNTS + scoring.K * (self.metric == "object_map")), np.int64)
        wanted = [{k: v for k, v in point.items() if k not in ("min_area", "postprocess")} for point in points]
        last, whole = None, None
        for i in sorted(range(len(points)), key=lambda i: repr(wanted[i])):  # smallest areas differ after the watershed
            if wanted[i] != last:
                last, whole = wanted[i], objects.decode(levels["loc"], {**wanted[i], "min_area": 0})
            steps = [{"name": "remove_small", "min_area": points[i]["min_area"]}, *points[i]["postprocess"]]
            counts[i] = self.tally(objects.postprocess(steps, whole), truth)
        return counts

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (5,) int64 as PIXEL_COUNTS says, (18,) with the objects."""
        counts = _pixel_counts(masks.binary_counts((answer > 0).view(np.uint8), (truth > 0).view(np.uint8)))
        if self.metric != "object_map":
            return counts
        return np.concatenate([counts, scoring.count(objects.components(answer), truth)])

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the score that ``metric`` names."""
        return self._named(counts)[self.metric]

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return (..., 1): the score."""
        return self.score(counts)[..., None]

    def scores(self, counts: np.ndarray) -> dict[str, float]:
        """Return the score, then all that is known by name."""
        named = self._named(counts)
        return {name: float(value) for name, value in {"score": named[self.metric], **named}.items()}

    def _named(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return named scores of counts (..., K)."""
        images, total = counts[..., 0], counts[..., 1] / scoring.FIXED
        named = {
            "dice": np.divide(total, images, out=np.zeros(images.shape), where=images > 0),
            "dice_pooled": masks.dice(counts[..., 2:PIXEL_COUNTS]),
        }
        if self.metric == "object_map":
            rest = counts[..., PIXEL_COUNTS:]
            named["object_map"] = scoring.mean_precision(rest, images)
            named |= {f"object_f1_{round(100 * t)}": scoring.f1(rest, t) for t in (0.5, 0.75)}
        return named

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return the image, the truth where it is known, and the prediction, outlined on the image."""
        image = self.read(scene, "image")
        shown = [("image", image)]
        if self._has_truth(scene.id, scene.files):
            shown.append(("truth", _outline(image, self.truth(scene), (60, 220, 90))))
        return [*shown, ("prediction", _outline(image, answer, (250, 200, 40)))]

    # ---- submission -----------------------------------------------------------------------------------
    @cached_property
    def header(self) -> tuple[str, ...]:
        """The two words above a submission: as stated, else the sample's, the training table's, or Kaggle's."""
        if self._header:
            return self._header
        if sample := _first(self.root, SAMPLES):
            rows = _read_table(sample, self._columns[0])
            return str(rows.index.name), str(rows.columns[0]) if len(rows.columns) else "rle"
        if self._runs:
            return self._run_columns
        nested = any("masks" in files for files in self._list("train")[0].values())
        return ("ImageId", "EncodedPixels") if nested else ("id", "rle")

    @property
    def form(self) -> tables.Form:
        """A row per image, or per object; the runs count as those of the training table do."""
        return tables.Form(self.header, repeats=self.metric == "object_map", origin=self.rule.origin)

    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write the CSV: a row per image, or for "object_map" a row per object and an empty one where there is none."""
        one_by_one = self.metric == "object_map"
        path = Path(folder) / CSV
        with tables.write(path, self.form) as add:
            for scene, answer in answers:
                if one_by_one:
                    texts = rle.encode_labels(objects.components(answer), self.rule.order, self.rule.origin)
                    texts = [text for text in texts if text] or [""]
                else:
                    texts = [rle.encode(answer, self.rule.order, self.rule.origin)]
                for text in texts:
                    add(scene.id, text)
        return [path]

    def read_submission(self, folder: Path, scene: Scene) -> Answer:
        """Read one scene's answer back: (H, W) int32 for "object_map", else (H, W) uint8."""
        path = Path(folder) / CSV
        state = (path, path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        if state is None or state != self._answers[0]:
            objects_of: dict[str, list[str]] = {}
            for key, text in tables.read(path, self.form):
                objects_of.setdefault(key, []).extend([text] if text.strip() else [])
            self._answers = state, objects_of
        if scene.id not in self._answers[1]:
            raise DataError(f"{path}: expected a row for {scene.id!r}, found none; write the submission again")
        shape = raster.image_size(scene.files["image"])
        answer = np.zeros(shape, np.int32)
        for number, text in enumerate(self._answers[1][scene.id], 1):
            answer[rle.decode(text, shape, self.rule.order, self.rule.origin) > 0] = number
        return answer if self.metric == "object_map" else (answer > 0).view(np.uint8)

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Return what is wrong with a submission (its folder or CSV); [] if valid.

        ``scenes``: the ones that must be answered, no others; without them those of the test set, where there is one.
        ``sample``: a sample submission that the CSV must match.
        """
        path = Path(path)
        path = path / CSV if path.is_dir() else path
        if not path.exists():
            return [f"{path}: expected a submission (a CSV, or the folder it lies in), found nothing there"]
        asked = scenes if scenes is not None or sample is not None else self.scenes("test") or None
        shapes = None if asked is None else {(scene.id,): raster.stated_size(scene.files["image"]) for scene in asked}
        return tables.lint(path, self.form, shapes, sample)

    # ---- files ----------------------------------------------------------------------------------------
    def _list(self, split: str) -> tuple[dict[str, dict[str, Path]], list[Finding]]:
        """Return id -> files of a split, sorted, and what is strange about the names. Raises DataError."""
        if split not in self._listed:
            known = TRAIN if split == "train" else TEST
            folder = _first(self.root, (self._names[split],) if self._names[split] else known)
            if folder is None or not folder.is_dir():
                if split == "test" and not self._names[split]:
                    self._listed[split] = {}, []
                    return self._listed[split]
                raise DataError(
                    f"{self.root}: expected a folder of images ({self._names[split] or ', '.join(known)}), found none; "
                    f"set data.root, or data.options.{split} to its name"
                )
            listed, findings = _list_images(folder)
            if split == "train":
                found = _first(self.root, (self._names["masks"],) if self._names["masks"] else MASKS)
                mask_of = {} if found is None else _list_images(found)[0]
                for key, files in listed.items():
                    if key in mask_of and "masks" not in files:
                        files["mask"] = mask_of[key]["image"]
            self._listed[split] = listed, findings
        return self._listed[split]

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The rows of train.csv by id, the first one of each; without columns where there is no such file."""
        return self._rows("table", TABLES).pipe(lambda rows: rows[~rows.index.duplicated()])

    @cached_property
    def _test_table(self) -> pd.DataFrame:
        return self._rows("test_table", TEST_TABLES).pipe(lambda rows: rows[~rows.index.duplicated()])

    @cached_property
    def _runs(self) -> dict[str, list[str]]:
        """Scene id -> the runs of its rows, in the order of the table; an empty mask is one empty text."""
        rows, column = self._rows("table", TABLES), self._run_columns[1]
        runs: dict[str, list[str]] = {}
        for key, text in rows[column].items() if column else ():
            runs.setdefault(key, []).append(text)
        return runs

    @cached_property
    def _run_columns(self) -> tuple[str, str]:
        """The names of the table's id column and of its column of runs, "" where there is none."""
        rows = self._rows("table", TABLES)
        column = self._columns[1] or next((name for name in RLE_COLUMNS if name in rows), "")
        if self._columns[1] and column not in rows:
            raise ConfigError(f"data.options.rle_column: expected one of {', '.join(rows.columns)}, got {column!r}")
        return str(rows.index.name or "id"), column

    def _rows(self, option: str, known: Sequence[str]) -> pd.DataFrame:
        name = self._names[option]
        path = _first(self.root, (name,) if name else known)
        if path is None and name:
            raise DataError(f"{self.root / name}: expected a CSV, found none; set data.options.{option}")
        return pd.DataFrame() if path is None else _read_table(path, self._columns[0])

    def _has_truth(self, key: str, files: Mapping[str, Path]) -> bool:
        return _mask_files(files) is not None or key in self._runs

    def _refuse_what_the_truth_cannot_give(self, listed: Mapping[str, Any]) -> None:
        """Raise DataError without a labelled image, ConfigError where single objects are needed and not known."""
        if not listed:
            raise DataError(
                f"{self.root}: expected images with masks, or with rows of runs ({', '.join(TABLES)}), found none"
            )
        if not self.one_by_one and (self.border or self.metric == "object_map"):
            raise ConfigError(
                f"data.options: border and metric object_map need every object by itself, but {self.root} has one mask "
                "per image; use metric dice without border"
            )

    def _describe(self, split: str, listed: Mapping[str, dict[str, Path]]) -> list[Scene]:
        """Add to each image what the table says of it. Raises ConfigError for a column that is not there."""
        table = self._table if split == "train" else self._test_table
        for option in ("domain", "group", "slice_column"):
            column = getattr(self, option)
            needed = split == "train" or (option != "domain" and len(self.images) > 1)
            if column and column not in table and needed and listed and (option, column) != ("domain", "colour"):
                raise ConfigError(
                    f"data.options.{option}: expected a column of the {split} table out of "
                    f"{', '.join(table.columns) or '(there is no table)'}, got {column!r}"
                )

        def value(key: str, column: str) -> str:
            return str(table.at[key, column]) if column in table and key in table.index else ""

        scenes = []
        for key, files in sorted(listed.items()):
            domain = value(key, self.domain)
            if self.domain == "colour" and "colour" not in table:
                domain = _stain(files["image"])
            size = value(key, self.pixel_size)
            pixel_size = _number(f"{key}: {self.pixel_size}", size) if size else None
            scenes.append(Scene(key, files, domain, group=value(key, self.group), pixel_size=pixel_size))
        if len(self.images) == 1:
            return scenes
        return _stacked(scenes, self.images, lambda key: value(key, self.slice_column))

    # ---- data doctor ----------------------------------------------------------------------------------
    def _inspect(self, scene: Scene, split: str) -> list[Finding]:
        """Decode a scene's image and truth, report what is wrong with them."""
        path = scene.files["image"]
        try:
            image = raster.read_image(path)
        except DataError as error:
            return [Finding("unreadable image", scene.id, str(error))]
        findings = [] if image.any() else [Finding("image all black", scene.id, str(path))]
        table = self._table if split == "train" else self._test_table
        if {"img_height", "img_width"} <= set(table) and scene.id in table.index:
            stated = table.at[scene.id, "img_height"], table.at[scene.id, "img_width"]
            if stated != tuple(map(str, image.shape[:2])):
                findings.append(Finding("size differs from the table", scene.id, f"{stated} and {image.shape[:2]}"))
        if split == "test":
            return findings
        covered, areas = np.zeros(image.shape[:2], np.int32), []
        try:
            for mask in self._masks(scene, image.shape[:2]):
                covered += mask
                areas.append(int(mask.sum()))
        except DataError as error:
            return [*findings, Finding("broken truth", scene.id, str(error))]
        if len(areas) > 1 and 0 in areas:
            findings.append(Finding("object without pixels", scene.id, f"number {areas.index(0) + 1} of {len(areas)}"))
        if (covered > 1).any():
            findings.append(Finding("objects overlap", scene.id, f"{int((covered > 1).sum())} pixels"))
        if areas and covered.all():
            findings.append(Finding("object everywhere", scene.id, str(path)))
        return findings


def _stain_stats(stated: Mapping[str, Sequence[float]] | None) -> stain.StainStats | None:
    """Turn the option ``stain`` into numbers. ConfigError unless it has three of each."""
    if stated is None:
        return None
    if set(stated) != {"mean", "std"} or any(len(values) != 3 for values in stated.values()):
        raise ConfigError(f"data.options.stain: expected {{mean: [L, a, b], std: [L, a, b]}}, got {dict(stated)}")
    return stain.StainStats(tuple(map(float, stated["mean"])), tuple(map(float, stated["std"])))


def _check_option(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
        raise ConfigError(f"data.options.{name}: expected {' | '.join(map(str, allowed))}, got {value!r}")


def _pixel_counts(counts: np.ndarray) -> np.ndarray:
    """Put the number of images (1) and their Dice in fixed point before tp, fp, fn: (..., 3) -> (..., 5) int64."""
    dice = np.rint(masks.dice(counts, empty=1.0) * scoring.FIXED).astype(np.int64)
    return np.concatenate([np.ones_like(dice)[..., None], dice[..., None], counts], axis=-1)


def _outline(image: np.ndarray, answer: Answer, colour: tuple[int, int, int]) -> np.ndarray:
    """Draw the outlines of an answer's objects on an image (H, W, 3) uint8 and tint their inside."""
    painted = image.copy()
    inside = answer > 0
    painted[inside] = (0.7 * painted[inside] + 0.3 * np.array(colour)).astype(np.uint8)
    number = answer.astype(np.float32)
    edge = inside & (cv2.erode(number, np.ones((3, 3))) != cv2.dilate(number, np.ones((3, 3))))
    painted[edge] = colour
    return painted


# ---- files --------------------------------------------------------------------------------------------
def _first(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of the names that exists under ``root``."""
    return next((root / name for name in names if (root / name).exists()), None)


def _list_images(folder: Path) -> tuple[dict[str, dict[str, Path]], list[Finding]]:
    """List the images of a folder by id, the stem of the file, or of one folder per image with images/ and masks/."""
    listed: dict[str, dict[str, Path]] = {}
    findings: list[Finding] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "images").is_dir():
            pictures = [file for file in sorted((path / "images").iterdir()) if _is_image(file)]
            if len(pictures) != 1:
                findings.append(Finding("folder without its one image", path.name, f"{len(pictures)} in {path}/images"))
                continue
            listed[path.name] = {"image": pictures[0]}
            if (path / "masks").is_dir():
                listed[path.name]["masks"] = path / "masks"
        elif _is_image(path):
            first = listed.setdefault(path.stem, {"image": path})["image"]
            if first != path:
                findings.append(Finding("image in two formats", path.stem, f"{first.name} is used, not {path.name}"))
    return listed, findings


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _mask_files(files: Mapping[str, Path]) -> list[Path] | None:
    """Return the mask files of a scene; None where it has neither a mask nor a folder of them."""
    if "masks" in files:
        return [path for path in sorted(files["masks"].iterdir()) if _is_image(path)]
    return [files["mask"]] if "mask" in files else None


def _read_table(path: Path, id_column: str = "") -> pd.DataFrame:
    """Read a CSV as text, indexed by id: an id like 0001 or 1e5 stays what it is, and an empty text no NaN."""
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a CSV file, got {error}") from error
    column = id_column or next((name for name in ID_COLUMNS if name in rows), "")
    if column not in rows:
        wanted = id_column or ", ".join(ID_COLUMNS)
        raise DataError(f"{path}: expected a column {wanted}, got {', '.join(rows)}; set data.options.id_column")
    return rows.set_index(column)


def _number(where: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: expected a number, got {text!r}") from error


def _stain(path: Path) -> str:
    """Tell a stained section from fluorescence by the colour of its pixels; "" for an image that cannot be read."""
    try:
        image = raster.read_image(path)
    except DataError:
        return ""  # inspect names it
    colourful = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean() >= COLOURFUL
    return "brightfield" if colourful else "fluorescence"


def _stacked(scenes: Sequence[Scene], images: Sequence[str], place: Any) -> list[Scene]:
    """Give each scene the files of its neighbours in the stack of its group; the ends of a stack repeat themselves.

    ``place(id)`` is the text of the slice's place in its stack, a number; where it is empty, ids are the order.
    """
    stacks: dict[str, list[Scene]] = {}
    for scene in scenes:
        stacks.setdefault(scene.group or f"\0{scene.id}", []).append(scene)  # no group: a stack of its own
    stacked = []
    for stack in stacks.values():
        stack.sort(key=lambda s: (_number(f"{s.id}: slice", place(s.id)) if place(s.id) else 0.0, s.id))
        for at, scene in enumerate(stack):
            files = dict(scene.files)
            for step, image in enumerate(images, -(len(images) // 2)):
                files[image] = stack[min(max(at + step, 0), len(stack) - 1)].files["image"]
            stacked.append(Scene(scene.id, files, scene.domain, scene.position, scene.group, scene.pixel_size))
    return sorted(stacked, key=lambda scene: scene.id)
