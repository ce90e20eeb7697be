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
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field, Strict, field_validator

from lib import metrics as masks
from lib.competitions import layout, mean_dice, records
from lib.competitions.binary_rle import instances as objects
from lib.competitions.binary_rle import metric as scoring
from lib.competitions.facts import Facts
from lib.competitions.listing import Expression, by_pattern, find_in_ids
from lib.competitions.runs import RunsCompetition, RunsOptions
from lib.competitions.scene import Answer, Finding, Levels, Params, Row, Scene
from lib.competitions.suffixes import is_picture
from lib.competitions.tables import Form
from lib.ensemble.search import Lattice
from lib.ensemble.thresholds import of_scene
from lib.errors import ConfigError, DataError
from lib.scenes import raster, rle, stain
from lib.scenes.bands import Remark
from lib.scenes.masks import read_objects
from lib.settings import Section
from lib.tasks import BinaryMask, MultilabelMask

MASKS = ("train_masks", "train/masks", "masks")
TABLES = {"train": ("train.csv", "stage1_train_labels.csv"), "test": ("test.csv",)}
OTSU = "otsu"
COLOUR = "colour"
"""A domain that is told from the pixels."""
COLOURFUL = 8.0
"""Mean saturation (0..255) of an image from which on it is a stained section and not fluorescence, which is grey: the
28 images of DSB 2018 that were looked at have 0.0 or 18.6 to 146.9."""
FEW = 0.1
"""Where at most this share of the images with an object have several rows, a table has a row per image."""

CONTRADICTS = 0.01
"""Share of the pixels of mask or runs from which on they contradict each other."""

Statistics = tuple[float, float, float]
"""L, a, b of a stain."""


class Stain(Section):
    """The stain of a slide, as ``python -m lib.scenes.stain IMAGE`` prints it."""

    mean: Statistics
    """Mean of L, a, b."""
    std: Statistics
    """Standard deviation of L, a, b."""


class BinaryRLEOptions(RunsOptions):
    """What ``data.options`` may hold; "" means that the usual names are looked for."""

    class_name: str = "object"
    """What the objects are called."""
    metric: Literal["dice", "dice_pooled", "object_map"] = "dice"
    """The score that is searched for."""
    border: Annotated[bool, Strict()] = False
    """Also learn where objects touch; needs objects one by one."""
    border_width: int = Field(2, ge=1)
    """So many pixels apart objects touch."""
    domain: Expression = ""
    """Where an image comes from: a column, or else a regular expression searched in the id; or ``colour``: brightfield
    or fluorescence, told from the pixels."""
    source: Expression = ""
    """Which data set an image was taken from, for ``train.sampling.sources``: a column, or else a regular expression
    searched in the id; "": its domain."""
    pixel_size: str = "pixel_size"
    """Column of the physical size of a pixel, used where it exists."""
    slice_column: str = ""
    """Column of a slice's place in its stack; "": ids are the order."""
    masks: str | None = ""
    """Folder of mask files, or a pattern with one ``*``, the id, in their names: they are used instead of runs. null:
    the runs are used, even where masks lie beside them."""
    objects: tuple[int, ...] = ()
    """Values of mask files that are objects, where a file holds more than 0 and another value, or where masks are
    inverted ([0]). (): what is not 0."""
    table: str = ""
    """Table of the labelled images."""
    test_table: str = ""
    """Table of the test images."""
    id_column: str = ""
    """Column of ids."""
    rle_column: str = ""
    """Column of runs."""
    header: tuple[str, ...] = ()
    """The two words above a submission, where there is no sample; as the training table has them."""
    stain: Stain | None = None
    """The stain that all images are given."""

    @field_validator("header")
    @classmethod
    def _header_has_two_words(cls, header: tuple[str, ...]) -> tuple[str, ...]:
        if len(header) not in (0, 2):
            raise ValueError("expected a header of two words")
        return header


class BinaryRLE(RunsCompetition):
    """One class of objects under ``root``."""

    name = "binary_rle"
    Options = BinaryRLEOptions
    flags = ("empty", "small", "large")
    """No object; objects that cover at most, or more than, what they cover in the median image with an object."""
    steps = objects.STEPS
    needs = f"masks, or with rows of runs ({', '.join(TABLES['train'])})"

    def __init__(self, root: Path, options: BinaryRLEOptions, memo: Path | None = None):
        super().__init__(root, options, memo)
        self.metric = options.metric
        names = (options.class_name,)
        self.tasks = {"loc": MultilabelMask((*names, "border")) if options.border else BinaryMask(names)}
        self.settings = objects.settings(instances=int(self.metric == "object_map"))
        self.stain = options.stain and stain.StainStats(options.stain.mean, options.stain.std)

    # ---- data -----------------------------------------------------------------------------------------
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the images of a split, with what the tables say of them; slices of a stack are neighbours.

        Pixels are read only for the domain ``colour``. Raises ConfigError when an option needs a column that is not
        there, or objects one by one where there is only one mask per image.
        """
        if split == "test":
            files, findings = self._images(split)
            scenes, odd = self._describe(split, files)
            scenes += [Scene(found.scene, {}) for found in findings if found.kind == layout.NO_ONE_IMAGE]
            table = self._tables[split]
            gone = sorted(table.rows.keys() - files.keys()) if files else []
            findings = [*findings, *table.findings, *odd]
            return scenes, findings + [Finding("row of the test table without image", i, table.path.name) for i in gone]
        files, findings = self._training
        lonely = sorted(self._runs.keys() - files.keys())
        findings = [*findings, *self._tables[split].findings]
        findings += [Finding("truth without image", key, "in the table only") for key in lonely]
        findings += [*self._few_of_several_rows(), *self._lacking_masks(files)]
        runs = [name for name in layout.RLE_COLUMNS if name in self._tables[split].columns]
        if len(runs) > 1 and not self.options.rle_column:
            detail = f"{', '.join(runs)}: data.options.rle_column names the one that is"
            findings.append(
                Finding("several columns of runs, the first is read", self._tables[split].path.name, detail)
            )
        known = {key: own for key, own in files.items() if self._has_truth(key, own)}
        if known and not self.one_by_one and (self.options.border or self.metric == "object_map"):
            raise ConfigError(
                f"data.options: border and metric object_map need every object by itself, but {self.root} has one mask "
                "per image; use metric dice without border"
            )
        bare = [Scene(key, own) for key, own in files.items() if key not in known]
        scenes, odd = self._describe(split, known)
        return scenes + bare, findings + odd

    def labelled(self, scene: Scene) -> bool:
        """Tell whether an image has a mask file or rows of runs."""
        return self._has_truth(scene.id, scene.files) and scene.id in self._training[0]

    def read_files(self) -> list[Path]:
        return [*super().read_files(), *(table.path for table in self._tables.values())]

    def fact_files(self, scene: Scene) -> list[Path]:
        own = [path for role, path in scene.files.items() if role in ("image", "mask", "masks")]
        return [*own, self._tables["train"].path]

    def read_facts(self, scene: Scene) -> Facts:
        """Read which share of an image, and of its border, objects cover."""
        covered = self.truth(scene) > 0
        border = np.concatenate([covered[0], covered[-1], covered[:, 0], covered[:, -1]])
        return Facts(more={"share": float(covered.mean()), "border": float(border.mean())})

    def inspect(self) -> list[Finding]:
        """Inspect as the contract says, and ask what is an object where masks look inverted."""
        return super().inspect() + self._inverted()

    def read(self, scene: Scene, image: str) -> np.ndarray:
        """Read an image as any competition on runs does, in the stain that is wanted."""
        pixels = super().read(scene, image)
        return stain.normalise(pixels, self.stain) if self.stain else pixels

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8: 1 = object; with ``border``, bit 0 = object and bit 1 = border between objects."""
        truth = self.truth(scene)
        target = (truth > 0).view(np.uint8)
        if self.options.border:
            target = target | (objects.borders(truth, self.options.border_width).view(np.uint8) << 1)
        return target

    def strata(self, scene: Scene) -> dict[str, bool]:
        """Return whether a scene has no object, or small or large ones together."""
        super().strata(scene)
        share = self.facts(scene).more["share"]
        return {"empty": share == 0, "small": 0 < share <= self._median_share, "large": share > self._median_share}

    def published_split(self) -> dict[str, str]:
        """Return what a column ``split`` of the tables says of each scene; empty without one."""
        tables = self._tables.values()
        return {key: text for table in tables for key in table.rows if (text := table.value(key, "split"))}

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
                for number, text in enumerate(self._runs[scene.id]):
                    yield self.draw(text, shape, self._tables["train"].where(scene.id, number))
                return
            for path in paths:
                mask = self._read_objects(path)[0]
                if mask.shape != shape:
                    raise DataError(f"{path}: expected the size of its image {shape}, got {mask.shape}")
                yield mask
        except KeyError as error:
            raise DataError(f"scene {scene.id}: expected a truth, found none; is it a test image?") from error
        except DataError as error:
            raise DataError(f"scene {scene.id}: {error}") from error

    def _read_objects(self, path: Path) -> tuple[np.ndarray, list[Remark]]:
        """Read a mask file as (H, W) uint8 in {0, 1}, and what is to be said of it. Raises DataError."""
        try:
            return read_objects(path, self.options.objects)
        except DataError as error:
            hint = " Say data.options.objects" if str(error).endswith("?") else ""
            raise DataError(f"{error}{hint}") from error

    @cached_property
    def one_by_one(self) -> bool:
        """Whether the truth tells objects apart: a folder of masks per image, or ids with several rows."""
        listed = self._training[0]
        if any("masks" in files for files in listed.values()):
            return True
        return any(len(texts) > 1 for key, texts in self._runs.items() if "mask" not in listed.get(key, ()))

    def labelled_runs(self) -> list[tuple[Scene, str]]:
        listed = (Scene(key, files) for key, files in sorted(self._training[0].items()))
        return [(scene, text) for scene in listed for text in self._runs.get(scene.id, ())]

    def _few_of_several_rows(self) -> list[Finding]:
        """Report the images with several rows where these are few: there a second row may be a mistake."""
        filled = [key for key, texts in self._runs.items() if any(texts)]
        several = [key for key in filled if len(self._runs[key]) > 1]
        if not 0 < len(several) <= FEW * len(filled):
            return []
        return [Finding("several rows where most images have one, read as its objects", key) for key in several]

    def _lacking_masks(self, files: Mapping[str, Mapping[str, Path]]) -> list[Finding]:
        """Report the images with objects in their runs and without the mask file that others have."""
        lacking = [key for key, own in files.items() if not {"mask", "masks"} & own.keys()]
        if len(lacking) == len(files):
            return []
        return [Finding("no mask file where others have one, its runs are read", key) for key in lacking
                if any(self._runs.get(key, ()))]  # fmt: skip

    def tell_rule(self) -> rle.Rule:
        """Tell how runs count pixels; beside mask files, so that the runs draw them."""
        drawn = {scene.id: scene for scene, text in self.labelled_runs() if text and "mask" in scene.files}
        some, rules = [*drawn.values()][:20], self.open_rules() if drawn else []
        fits = {rule: sum(self._draws_the_mask(scene, rule) for scene in some) for rule in rules}
        fitting = [rule for rule, count in fits.items() if 2 * count > len(some)]
        if len(rules) > 1 and len(fitting) == 1:
            count = fits[fitting[0]]
            of = f"{len(drawn)}" if count == len(some) else f"{count} of {len(some)}"
            return rle.Rule(*fitting[0], f"so the runs of {of} images give their mask files")
        return super().tell_rule()

    def _draws_the_mask(self, scene: Scene, rule: tuple[rle.Order, int]) -> bool:
        text = " ".join(self._runs[scene.id])
        try:
            mask = self._read_objects(scene.files["mask"])[0]
        except DataError:
            return False  # the data doctor names it
        return not rle.parse(text, mask.size, rule[1])[1] and np.array_equal(rle.decode(text, mask.shape, *rule), mask)

    @cached_property
    def _median_share(self) -> float:
        shares = [self.facts(scene).more["share"] for scene in self.scenes("train")]
        return float(np.median([share for share in shares if share] or [0.0]))

    # ---- answers --------------------------------------------------------------------------------------
    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Turn levels into a mask, or with ``instances`` into objects, as ``instances.py`` says.

        The threshold "otsu" is told from the scene's own levels.
        """
        return objects.decode(levels["loc"], self._resolved(levels, settings))

    @staticmethod
    def _resolved(levels: Levels, settings: Params) -> dict[str, Any]:
        found = dict(settings)
        if found["threshold"] == OTSU:
            found["threshold"] = of_scene(levels["loc"][0], objects.DEFAULTS["threshold"])
        return found

    def raster_classes(self) -> dict[str, str]:
        """Return the object alone: the border between touching ones is no class of an answer."""
        name, colour = next(iter(super().raster_classes().items()))
        return {name: colour}

    def class_raster(self, answer: Answer) -> np.ndarray:
        """Return where there is an object, (H, W) uint8 in {0, 1}."""
        return (answer > 0).astype(np.uint8)

    def count(self, levels: Levels, truth: Answer, grid: Lattice) -> np.ndarray:
        """Count one scene for all points: (P, K) int64; where only the threshold matters, from one histogram."""
        points = [self._resolved(levels, {"postprocess": (), **self.complete(point)}) for point in grid]
        if self.metric != "object_map" and not any(
            p["fill_holes"]
            or p["instances"]
            or p["min_area"] > 1
            or p["postprocess"]
            or max(p["opening"], p["closing"])
            for p in points
        ):
            thresholds = [point["threshold"] for point in points]
            return mean_dice.count(objects.count_thresholds(levels["loc"][0], truth, thresholds))
        counts = np.zeros((len(points), self.counted), np.int64)
        wanted = [{k: v for k, v in point.items() if k not in ("min_area", "postprocess")} for point in points]
        last: dict[str, Any] | None = None
        whole: Any = None  # the objects at the settings ``last``
        for i in sorted(range(len(points)), key=lambda i: repr(wanted[i])):  # smallest areas differ after the watershed
            if wanted[i] != last:
                last, whole = wanted[i], objects.decode(levels["loc"], {**wanted[i], "min_area": 0})
            steps = [{"name": "remove_small", "min_area": points[i]["min_area"]}, *points[i]["postprocess"]]
            counts[i] = self.tally(self.clean(whole, steps, levels), truth)
        return counts

    @property
    def counted(self) -> int:
        return mean_dice.K + scoring.K * (self.metric == "object_map")

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (5,) int64 as ``mean_dice`` has them, (18,) with the objects."""
        counts = mean_dice.count(masks.binary_counts((answer > 0).view(np.uint8), (truth > 0).view(np.uint8)))
        if self.metric != "object_map":
            return counts
        return np.concatenate([counts, scoring.count(objects.components(answer), truth)])

    def score(self, counts: np.ndarray) -> np.ndarray:
        """Return the score that ``metric`` names."""
        return self.named_scores(counts)[self.metric]

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return both means of Dice and, for "object_map", the scores of objects."""
        named = {"dice": mean_dice.mean(counts), "dice_pooled": mean_dice.pooled(counts)}
        if self.metric == "object_map":
            rest = counts[..., mean_dice.K :]
            named["object_map"] = scoring.mean_precision(rest, counts[..., 0])
            named |= {f"object_f1_{round(100 * t)}": scoring.f1(rest, t) for t in (0.5, 0.75)}
        return named

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return the image, the truth where it is known, and the prediction, outlined on the image."""
        image = self.read(scene, "image")
        truth = [("truth", _outline(image, self.truth(scene), (60, 220, 90)))] if self.labelled(scene) else []
        return [("image", image), *truth, ("prediction", _outline(image, answer, (250, 200, 40)))]

    def legend(self) -> dict[str, str]:
        """Return nothing: one class is outlined in one colour, and the title says whose outlines they are."""
        return {}

    def errors(self, answer: Answer, truth: Answer) -> dict[str, np.ndarray]:
        """Return pixels of objects that were missed, and those of none; which object it is does not matter."""
        return super().errors((answer > 0).view(np.uint8), (truth > 0).view(np.uint8))

    # ---- submission -----------------------------------------------------------------------------------
    @cached_property
    def header(self) -> tuple[str, ...]:
        """The two words above a submission: the sample's, else as stated, the training table's, or Kaggle's."""
        if sampled := self.header_of(("an id", "its runs")):
            return sampled
        if self.options.header:
            return self.options.header
        if self._runs:
            return self._tables["train"].id_column, self._rle_column
        nested = any("masks" in files for files in self._training[0].values())
        return ("ImageId", "EncodedPixels") if nested else ("id", "rle")

    def check_sample(self) -> None:
        _ = self.header

    @property
    def form(self) -> Form:  # type: ignore[override]  # read from the data when asked for
        """A row per image, or per object; the runs count as those of the training table do."""
        return Form(self.header, repeats=self.answers_repeat, origin=self.rule.origin)

    @property
    def answers_repeat(self) -> bool:
        return self.metric == "object_map"

    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        """Return a row per image, or for "object_map" a row per object and an empty one where there is none."""
        row_id = self.row_id(scene)
        if self.metric == "object_map":
            texts = rle.encode_labels(objects.components(answer), self.rule.order, self.rule.origin)
            return [(row_id, text) for text in texts if text] or [(row_id, "")]
        return [(row_id, self.encode(answer))]

    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        """Draw the runs of a scene: (H, W) int32 for "object_map", else (H, W) uint8."""
        shape = self.canvas(scene)
        answer = np.zeros(shape, np.int32)
        for number, (_, text) in enumerate((row for row in rows if row[1].strip()), 1):
            answer[self.draw(text, shape) > 0] = number
        return answer if self.metric == "object_map" else (answer > 0).view(np.uint8)

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Lint as the contract says; without ``scenes`` those of the test set must be answered, where there is one."""
        asked = scenes if scenes is not None or sample is not None else self.scenes("test") or None
        return super().lint(path, asked, sample)

    # ---- files ----------------------------------------------------------------------------------------
    def _images(self, split: str) -> tuple[dict[str, layout.Files], list[Finding]]:
        """Return id -> files of a split, and what is strange about the names. Raises DataError."""
        folder = layout.image_folder(self.root, split, getattr(self.options, split))
        return ({}, []) if folder is None else layout.list_images(folder)

    @cached_property
    def _training(self) -> tuple[dict[str, layout.Files], list[Finding]]:
        """The labelled images with their masks, as ``_images`` gives them."""
        (listed, findings), mask_of = self._images("train"), self._mask_of()
        for key, files in listed.items():
            if self.options.masks is None:
                files.pop("masks", None)
            elif key in mask_of and "masks" not in files:
                files["mask"] = mask_of[key]
        return listed, findings

    def _mask_of(self) -> dict[str, Path]:
        """Return id -> mask file. Raises DataError where masks are stated and not there."""
        stated = self.options.masks
        if stated is None:
            return {}
        if "*" in stated:
            found = by_pattern(self.root, stated)
        else:
            folder = layout.first(self.root, (stated,) if stated else MASKS)
            found = {key: own["image"] for key, own in layout.list_images(folder)[0].items()} if folder else {}
        if stated and not found:
            raise DataError(f"{self.root / stated}: expected masks, found none; set data.options.masks (null: the runs "
                            "of the table are used)")  # fmt: skip
        return found

    @cached_property
    def _tables(self) -> dict[str, layout.Table]:
        """What the tables of "train" and "test" say; without columns where there is no such file."""
        found = {}
        for split, stated in (("train", self.options.table), ("test", self.options.test_table)):
            path = layout.first(self.root, (stated,) if stated else TABLES[split])
            if path is None and stated:
                option = "table" if split == "train" else "test_table"
                raise DataError(f"{self.root / stated}: expected a CSV, found none; set data.options.{option}")
            table = layout.read_table(path, self.options.id_column)
            found[split] = table.of_images(self._names(split)) if table.columns else table
        told = {self.options.domain, self.options.source, self.options.group}
        _refuse_classes(found["train"], found["train"].column(layout.CLASS_COLUMNS), self.options.rle_column, told)
        return found

    def _names(self, split: str) -> Iterable[str]:
        """Return the ids of the images of a split; none where there is no such folder, which ``listed`` names."""
        try:
            return self._images(split)[0]
        except DataError:
            return ()

    @cached_property
    def _runs(self) -> dict[str, list[str]]:
        """Scene id -> the runs of its rows, in the order of the table; an empty mask is one empty text."""
        return self._tables["train"].runs(self._rle_column) if self._rle_column else {}

    @property
    def _rle_column(self) -> str:
        """The name of the table's column of runs, "" where there is none."""
        table, stated = self._tables["train"], self.options.rle_column
        if stated and stated not in table.columns:
            raise ConfigError(f"data.options.rle_column: expected one of {', '.join(table.columns)}, got {stated!r}")
        return stated or table.column(layout.RLE_COLUMNS)

    def _has_truth(self, key: str, files: Mapping[str, Path]) -> bool:
        return _mask_files(files) is not None or key in self._runs

    def _describe(self, split: str, listed: Mapping[str, layout.Files]) -> tuple[list[Scene], list[Finding]]:
        """Add to each image what the table or its id says of it. Raises ConfigError where neither can."""
        table, options, ids = self._tables[split], self.options, sorted(listed)
        columns = {name for own in self._tables.values() for name in own.columns}
        named, findings = {}, []
        for option in ("domain", "source", "group", "slice_column"):
            stacks = options.slices > 1 and option in ("group", "slice_column")
            wanted, needed = getattr(options, option), split == "train" or stacks
            if not wanted or wanted in columns or option == "slice_column":
                if wanted and wanted not in table.columns and needed and ids:
                    raise ConfigError(
                        f"data.options.{option}: expected a column of the {split} table out of "
                        f"{', '.join(table.others) or '(there is no table)'}, got {wanted!r}"
                    )
                named[option] = {key: table.value(key, wanted) for key in ids}
            elif (option, wanted) == ("domain", COLOUR):
                named[option] = {key: _stain(listed[key]["image"]) for key in ids}
            else:
                named[option], odd = find_in_ids(option, wanted, ids, table.others, needed)
                findings += odd
        told = (options.domain, options.source, options.group, options.slice_column, options.pixel_size, "split")
        findings = findings + table.differing(told)
        places = named["slice_column"]
        odd_places = [key for key, text in places.items() if text and not layout.is_number(text)]
        findings += [
            Finding("place in its stack that is no number, it stands alone", key, places.pop(key)) for key in odd_places
        ]
        scenes = []
        for key in ids:
            size = table.value(key, options.pixel_size)
            if size and not layout.is_number(size):
                findings.append(Finding("size of a pixel that is no number, not used", key, size))
                size = ""
            domain, source, group = (named[option].get(key, "") for option in ("domain", "source", "group"))
            pixel_size = float(size) if size else None
            scenes.append(Scene(key, listed[key], domain, group=group, pixel_size=pixel_size, source=source))
        stacks = {key: group for key, group in named["group"].items() if key not in odd_places}
        return layout.stacked(scenes, self.images, stacks, places), findings

    # ---- data doctor ----------------------------------------------------------------------------------
    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Decode a scene's image and truth, report what is wrong with them."""
        path = scene.files["image"]
        if split == "train" and not self.labelled(scene):
            return [Finding("image without truth", scene.id, str(path))]
        size, findings = self.inspect_image(scene, "image")
        if size is None:
            return findings
        stated = tuple(self._tables[split].value(scene.id, column) for column in ("img_height", "img_width"))
        if all(stated) and tuple(text.removesuffix(".0") for text in stated) != tuple(map(str, size)):
            findings.append(Finding("size differs from the table", scene.id, f"{stated} and {size}"))
        if split == "test":
            return findings
        if _mask_files(scene.files) == []:
            findings.append(Finding("folder of masks without a mask, read as no object", scene.id, str(path)))
        covered, areas = np.zeros(size, np.int32), []
        try:
            for file in _mask_files(scene.files) or ():
                findings += [Finding(kind, scene.id, detail) for kind, detail in self._read_objects(file)[1]]
            for mask in self._masks(scene, size):
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
        return findings + self._contradiction(scene, covered > 0)

    def _contradiction(self, scene: Scene, covered: np.ndarray) -> list[Finding]:
        """Report a mask (H, W) bool that is used and says something else than the runs of its image."""
        if _mask_files(scene.files) is None or scene.id not in self._runs:
            return []
        try:
            drawn = self.draw(" ".join(self._runs[scene.id]), covered.shape) > 0
        except DataError as error:
            return [Finding("runs beside a mask cannot be drawn", scene.id, str(error))]
        differing, union = np.count_nonzero(drawn != covered), np.count_nonzero(drawn | covered)
        if differing <= CONTRADICTS * union:
            return []
        detail = f"{differing} of {union} pixels; the mask is used, masks: null uses the runs"
        return [Finding("mask contradicts its runs", scene.id, detail)]

    def _inverted(self) -> list[Finding]:
        """Ask whether 0 is the object, where masks cover most of most images and nearly all of their borders."""
        known = [self.facts(scene) for scene in self._list("train") if _mask_files(scene.files) is not None]
        filled = [fact.more for fact in known if not fact.error and fact.more["share"]]
        odd = sum(more["share"] > 0.5 and more.get("border", 0.0) > 0.9 for more in filled)
        if self.options.objects or 2 * odd <= len(filled):
            return []
        detail = (f"what is not 0 covers most of {odd} of {len(filled)} images with their borders; if 0 is the object, "
                  "say data.options.objects: [0], else the value that is")  # fmt: skip
        return [Finding("masks look inverted", "train", detail)]


def _refuse_classes(table: layout.Table, column: str, runs: str, told: set[str]) -> None:
    """Raise ConfigError for a table whose rows of runs are of several classes: they would be merged into one.

    ``column``: that of classes, "" without one; it may be there where it is one of ``told``, what an option reads.
    ``runs``: that of runs, "" for the usual ones.
    """
    runs = runs or table.column(layout.RLE_COLUMNS)
    if not column or column in told or runs not in table.columns:
        return
    several = [{row[column] for row in rows} for rows in table.rows.values()]  # the classes of each image
    drawn = {row[column] for rows in table.rows.values() for row in rows if records.runs_of(row[runs])}
    if len(found := max([drawn, *several], key=lambda names: len(names - {""})) - {""}) > 1:
        raise ConfigError(
            f"{table.path}: column {column!r} gives rows of runs several classes ({', '.join(sorted(found)[:5])}), "
            "which would become one; use competition: multiclass_rle, or, if it says something else of an image, name "
            "it as data.options.domain, source or group"
        )


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
def _mask_files(files: Mapping[str, Path]) -> list[Path] | None:
    """Return the mask files of a scene; None where it has neither a mask nor a folder of them."""
    if "masks" in files:
        return [path for path in sorted(files["masks"].iterdir()) if is_picture(path)]
    return [files["mask"]] if "mask" in files else None


def _stain(path: Path) -> str:
    """Tell a stained section from fluorescence by the colour of its pixels; "" for an image that cannot be read."""
    try:
        picture = raster.read(path)
    except DataError:
        return ""  # inspect names it
    seen = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2HSV)[..., 1][picture.valid]
    colourful = seen.size > 0 and seen.mean() >= COLOURFUL
    return "brightfield" if colourful else "fluorescence"
