"""xView2 (xBD): find buildings before a disaster, grade their damage after it.

Layout, as the archives unpack (PNG, or the GeoTIFF edition, whose first tier is called ``tier1``)::

    root/train/images/guatemala-volcano_00000003_pre_disaster.png     1024x1024 RGB, before
    root/train/images/guatemala-volcano_00000003_post_disaster.png    the same place, after
    root/train/labels/guatemala-volcano_00000003_pre_disaster.json    outlines only
    root/train/labels/guatemala-volcano_00000003_post_disaster.json   outlines with their damage
    root/tier3/...                                                    more of the same
    root/hold/...                                                     train if it has labels, else test
    root/test/images/test_pre_00000.png, test_post_00000.png          or names as above; always test

Example row (one building of ``features.xy``; ``features.lng_lat`` repeats it in degrees)::

    {"properties": {"feature_type": "building", "subtype": "minor-damage", "uid": "88703461-..."},
     "wkt": "POLYGON ((452.96 86.81, 490.82 90.18, ... 452.96 86.81))"}

Metric: score = 0.3 * F1 of building pixels + 0.7 * harmonic mean of the four damage F1s, damage being looked at only
where the post-event truth has a building; pixels are counted over all scenes before any F1 is taken.
Answer: {"localization": (H, W) uint8 in {0, 1}, "damage": (H, W) uint8 in 0..4}, two PNGs per scene.

Un-classified buildings count as no-damage in the official targets; what a network learns there is an option.
"""

import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from pydantic import Field

from lib.competitions import tables
from lib.competitions.answers import FALSE_ALARM, MISSED, OTHER_CLASS, hex_of
from lib.competitions.class_rows import ClassRows
from lib.competitions.facts import Facts
from lib.competitions.scene import Answer, Axes, Chain, Finding, Levels, Params, Row, Scene
from lib.competitions.tables import Name
from lib.competitions.xview2 import decode as decoding
from lib.competitions.xview2 import metric as scoring
from lib.competitions.xview2 import pairs as official
from lib.competitions.xview2.archive import open_archive
from lib.competitions.xview2.postprocess import STEPS, Decoded
from lib.ensemble.search import Lattice
from lib.errors import ConfigError, DataError
from lib.files import read_json
from lib.scenes import georeference, identical, place, polygons, raster, rle
from lib.scenes.georeference import Location
from lib.settings import Section, limits
from lib.tasks import IGNORE, BinaryMask, MulticlassMask

BUILDING = 1
DAMAGE = {"no-damage": 1, "minor-damage": 2, "major-damage": 3, "destroyed": 4}
UNCLASSIFIED = "un-classified"
FLAGS = {"nondamage": "no-damage", "minor": "minor-damage", "major": "major-damage", "destroyed": "destroyed"}
SIDES = ("pre", "post")
LABELS = ("pre_label", "post_label")
TRAIN_TIERS = ("train", "tier1", "tier3")
TIERS = (*TRAIN_TIERS, "hold", "test")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
TILE = (1024, 1024)
PAIRS, ARCHIVE = "xview2", "xview2.zip"
CSV_ROWS = 5
"""Rows per scene: the building mask, then the damage classes."""
COLOURS = np.array([[255, 255, 255], [70, 190, 90], [250, 220, 60], [245, 140, 30], [220, 40, 40]], np.uint8)
"""RGB of a building without a grade, then of grades 1 to 4."""

EVENT_NAME = re.compile(r"(?P<id>(?P<event>.+)_\d{8})_(?P<side>pre|post)_disaster")
CHALLENGE_NAME = re.compile(r"(?P<split>test|hold)_(?P<side>pre|post)_(?P<number>\d{5})")


class XView2Options(Section):
    """What ``data.options`` may hold."""

    unclassified: Literal["ignore", "no-damage"] = "ignore"
    """What the damage target holds where the graders gave no class."""
    tiers: tuple[str, ...] | None = Field(None, min_length=1)
    """The folders whose labels are used; hold and test are test then, if not stated. null: train, tier1, tier3, and
    hold if it has labels."""
    sample: str | None = ""
    """Sample submission, which says what scenes are answered, in what order and under what header; "": one of the
    usual name. null: none is used."""


class XView2(ClassRows):
    """xView2 under ``root``."""

    name = "xview2"
    Options = XView2Options
    tasks = {"loc": BinaryMask(("building",), float32=True), "cls": MulticlassMask(("background", *DAMAGE))}
    images = SIDES
    together = SIDES
    labels = LABELS
    other_folders = ("targets",)
    flags = (*FLAGS, "empty")
    settings = decoding.SETTINGS
    steps = STEPS
    steps_in_search = False

    # ---- data -----------------------------------------------------------------------------------------
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the scenes of every tier of a split, earlier tiers first, with whichever files they have."""
        scenes, findings = [], []
        for folder in _folders(self.root, split, self.options.tiers):
            found, strange = _list(folder)
            scenes += found
            findings += strange
            if split == "train" and folder.name not in TRAIN_TIERS:
                kind = f"scene of {folder.name} without a label: neither trained on nor answered"
                findings += [
                    Finding(kind, s.id, "state data.options.tiers") for s in found if not {*LABELS} & {*s.files}
                ]
        return scenes, findings

    def places(self, split: str) -> list[str]:
        trained = self.options.tiers or (*TRAIN_TIERS, "hold")
        others = [tier for tier in TIERS if tier not in TRAIN_TIERS and tier not in (self.options.tiers or ())]
        return [f"{tier}/images" for tier in (trained if split == "train" else others)]

    def read_facts(self, scene: Scene) -> Facts:
        """Read both labels and the headers of the images; what makes the scene unusable ends up in ``error``.

        Flags tell which classes have pixels of the damage target; un-classified buildings have none of any.
        """
        try:
            sizes = [raster.image_size(scene.files[side]) for side in SIDES]
            if sizes[0] != sizes[1]:
                raise DataError(f"{scene.files['post']}: expected the size of the pre image {sizes[0]}, got {sizes[1]}")
            place.refuse_apart(scene.files["pre"], scene.files["post"])
            pre = _load(scene.files["pre_label"])
            position = _position(_outlines(scene.files["pre_label"], pre), pre, sizes[0])
            position = position or raster.centre(scene.files["pre"])
            lies = _label_place(scene, pre)
            damage = _damage(scene, IGNORE)
            empty = not damage.any() and not _buildings(scene).any()
            damage = self.without_hidden(damage, scene, "cls")
        except DataError as error:
            return Facts(error=f"scene {scene.id}: {error}")
        held = np.bincount(damage.ravel(), minlength=IGNORE + 1)
        flags = {flag: bool(held[DAMAGE[name]]) for flag, name in FLAGS.items()} | {"empty": empty}
        return Facts(flags, position, more={"place": lies and lies.to_json()})

    def picture(self, scene: Scene, image: str) -> raster.Picture:
        """Read one side as the contract says. Raises DataError, too, for a pair of which no pixel shows one place."""
        found = super().picture(scene, image)
        if all(side in scene.files for side in SIDES):
            try:
                place.refuse_apart(scene.files["pre"], scene.files["post"])
            except DataError as error:
                raise DataError(f"scene {scene.id}: {error}") from error
        return found

    def inspect(self) -> list[Finding]:
        """Read every image and label once and report what is missing, broken or suspicious, ids in two tiers too."""
        findings: list[Finding] = []
        first: dict[str, str] = {}
        for scene in (*self._list("train"), *self._list("test")):
            folder = next(iter(scene.files.values())).parents[1].name
            if first.setdefault(scene.id, folder) != folder:
                findings.append(Finding("duplicate id", scene.id, f"in {first[scene.id]} and in {folder}"))
        return super().inspect() + findings

    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Report which files of a scene are missing, and what is wrong with the others."""
        findings = _inspect_files(scene, split == "train")
        sizes: dict[str, tuple[int, int]] = {}
        for side in SIDES:
            if side in scene.files:
                size, found = self.inspect_image(scene, side)
                findings += found
                sizes |= {side: size} if size else {}
        if len(sizes) == 2:
            remarks = place.remarks(scene.files["pre"], scene.files["post"])
            findings += [Finding(kind, scene.id, detail) for kind, detail in remarks]
            units = [raster.scaling(scene.files[side]) for side in SIDES]
            if units[0] != units[1]:
                detail = f"(scale, offset) {units[0][0]} and {units[1][0]}; write both with the same"
                findings.append(Finding("pre and post count brightness in other units", scene.id, detail))
        return findings + _inspect_contents(scene, sizes)

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8: "loc" holds 1 inside the pre-event outlines; "cls" holds 1..4 inside the post-event
        ones, and 255 (or 1, as the option says) inside un-classified ones."""
        unclassified = IGNORE if self.options.unclassified == "ignore" else DAMAGE["no-damage"]
        return _buildings(scene) if task == "loc" else _damage(scene, unclassified)

    def place(self, scene: Scene) -> Location | None:
        """Return where a scene lies: as its pre image says, or else as the pre-event label tells by its outlines, which
        are there in pixels and in degrees (exact to a hundredth of a pixel on real tiles)."""
        if (known := self.georeference(scene)) is not None or "pre_label" not in scene.files:
            return known
        held = self.facts(scene).more
        if "place" not in held:  # remembered by an earlier version
            with suppress(DataError):
                return _label_place(scene, _load(scene.files["pre_label"]))
        return Location.from_json(held["place"]) if held.get("place") else None

    # ---- answers --------------------------------------------------------------------------------------
    def truth(self, scene: Scene) -> Answer:
        """Return what the official target images hold: un-classified buildings count as no-damage there."""
        return {"localization": _buildings(scene), "damage": _damage(scene, DAMAGE["no-damage"])}

    def faults(self, decode: Params, axes: Axes, chains: Sequence[Chain] = (), unseen: Mapping = {}) -> list[str]:
        """Return what is wrong with what an experiment asks of ``decode``; a preset goes with no other setting."""
        found = super().faults(decode, axes, chains, unseen)
        if decode.get("preset") and (others := list(dict.fromkeys([*axes, *unseen, *_beside_preset(decode)]))):
            found.append(f"decode.preset: fixes every setting, got also {', '.join(others)}; remove them")
        return found or decoding.threshold_faults(axes)

    def answer(self, levels: Levels, settings: Params) -> Answer:
        """Join the levels of both tasks into an answer, as ``decode.py`` says."""
        if "preset" not in settings:
            localization, damage = decoding.decode(levels["loc"], levels["cls"], settings)
        elif others := _beside_preset(settings):
            raise ConfigError(f"decode.preset: fixes every setting, got also {', '.join(others)}; remove them")
        else:
            localization, damage = decoding.selim2020(levels["loc"], levels["cls"])
        return {"localization": localization, "damage": damage}

    def clean(self, answer: Answer, steps: Chain, levels: Levels) -> Answer:
        """Run post-processing steps, which see the levels too."""
        decoded = Decoded(answer["localization"], answer["damage"], levels["loc"][0], levels["cls"])
        localization, damage, *_ = super().clean(decoded, steps, levels)
        return {"localization": localization, "damage": damage}

    def grid(self, axes: Axes, fixed: Params) -> Lattice:
        """Return the lattice of decode settings; ``fixed`` may hold no preset and no post-processing."""
        if fixed.get("preset"):
            raise ConfigError("decode.preset: cannot be searched around; remove it, or leave out search")
        return super().grid(axes, fixed)

    def count(self, levels: Levels, truth: Answer, grid: Lattice) -> np.ndarray:
        """Count one scene for all points at once: (P, 15) int64, laid out as ``metric.py`` says."""
        return decoding.count_grid(levels["loc"], levels["cls"], truth["localization"], truth["damage"], grid)

    @property
    def counted(self) -> int:
        return 15

    def tally(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count one answer: (15,) int64."""
        return scoring.count(answer["localization"], answer["damage"], truth["localization"], truth["damage"])

    def score(self, counts: np.ndarray) -> np.ndarray:
        return scoring.official(counts)["score"]

    def class_scores(self, counts: np.ndarray) -> np.ndarray:
        """Return (..., 5): F1 of localization and of the four damage classes."""
        return scoring.f1(counts.reshape(*counts.shape[:-1], 5, 3))

    def named_scores(self, counts: np.ndarray) -> Mapping[str, Any]:
        """Return the official scores, then those over the classes the truth holds (0 where it holds none)."""
        named = scoring.official(counts) | scoring.present(counts)
        return {name: np.nan_to_num(value) for name, value in named.items()}

    def detail(self, answer: Answer, truth: Answer) -> np.ndarray:
        """Count the 5 x 5 confusion of damage and the 15 object counts of one answer: (40,) int64."""
        masks = answer["localization"], answer["damage"], truth["localization"], truth["damage"]
        return np.concatenate([scoring.confusion(*masks).ravel(), scoring.count_objects(*masks)])

    def tables(self, details: np.ndarray) -> dict[str, Any]:
        """Return object-level F1s (0 where there is no such object) and the confusion of damage, truth by rows."""
        names = ("no building", *DAMAGE)
        matrix = details[:25].reshape(5, 5).tolist()
        objects = scoring.object_f1(details[25:])
        return {
            "objects": {name.removeprefix("object_"): float(np.nan_to_num(f1)) for name, f1 in objects.items()},
            "confusion": {name: dict(zip(names, row)) for name, row in zip(names[1:], matrix[1:])},
        }

    def panels(self, scene: Scene, answer: Answer) -> list[tuple[str, np.ndarray]]:
        """Return before, after, truth (where labelled) and prediction, damage painted over the post-event image."""
        pre, post, *painted = super().panels(scene, answer)
        return [("before", pre[1]), ("after", post[1]), *painted]

    def paint(self, image: np.ndarray, answer: Answer) -> np.ndarray:
        """Paint the answer's buildings in COLOURS, by damage, over a dimmed (H, W, 3) uint8 image."""
        building = answer["localization"] > 0
        painted = image // 2
        painted[building] = COLOURS[answer["damage"][building]]
        return painted

    # ---- rasters --------------------------------------------------------------------------------------
    raster_name = "damage"

    def raster_classes(self) -> dict[str, str]:
        """Return the grades, and as the last class a building without a grade, which some steps may leave."""
        names = (*DAMAGE, UNCLASSIFIED)
        return {name: hex_of(COLOURS[number % 5]) for number, name in enumerate(names, 1)}

    def class_raster(self, answer: Answer) -> np.ndarray:
        """Return the damage of buildings: (H, W) uint8, 0 where there is none, 1 .. 4 as DAMAGE, 5 without a grade."""
        building, damage = answer["localization"] > 0, answer["damage"]
        return np.where(building, np.where(damage > 0, damage, np.uint8(len(DAMAGE) + 1)), np.uint8(0))

    def each_pixel_alone(self, params: Params) -> bool:
        """Tell whether no setting looks at buildings as objects."""
        return not (params.get("object_seed") or params.get("preset") or params.get("postprocess"))

    # ---- errors ---------------------------------------------------------------------------------------
    def errors(self, answer: Answer, truth: Answer) -> dict[str, np.ndarray]:
        """Return buildings that were missed, that are none, and where both have one and its grade is another."""
        ours, theirs = (one["localization"] > 0 for one in (answer, truth))
        graded = ours & (truth["damage"] > 0)
        return {MISSED: theirs & ~ours, FALSE_ALARM: ours & ~theirs,
                OTHER_CLASS: graded & (answer["damage"] != truth["damage"])}  # fmt: skip

    # ---- submission -----------------------------------------------------------------------------------
    def write_submission(self, answers: Iterable[tuple[Scene, Answer]], folder: Path) -> list[Path]:
        """Write Kaggle's CSV, and the folder and archive of official PNG pairs; answers come sorted by scene id.

        Without the pairs where a mask is not of TILE pixels: the official scorer refuses it, and part of them is worth
        nothing. ``caveats`` says so.
        """
        table, images, archive = folder / tables.SUBMISSION, folder / PAIRS, folder / ARCHIVE
        odd = 0
        with tables.write(table, self.form) as add_row, official.write_png_pairs(images) as add_pair:
            for scene, answer in answers:
                odd += answer["localization"].shape != TILE
                if not odd:
                    add_pair(scene.id, answer["localization"], answer["damage"])
                for row in self.rows(scene, answer):
                    add_row(*row)
        self.keep_order(table)
        if odd:
            shutil.rmtree(images)
            return [table]
        official.zip_pngs(images, archive)
        return [table, archive, *sorted(images.iterdir())]

    def caveats(self, scenes: Sequence[Scene]) -> list[str]:
        """Say where the official PNG pairs are left out, since scenes are not of their size."""
        if not (odd := [scene.id for scene in scenes if self.size(scene) != TILE]):
            return []
        return [f"{len(odd)} of {len(scenes)} scenes are not {TILE[0]}x{TILE[1]} pixels (first: {odd[0]}): the "
                f"official PNG pairs, which must be, are left out; {tables.SUBMISSION} has every scene"]  # fmt: skip

    def rows(self, scene: Scene, answer: Answer) -> list[Row]:
        return list(official.pair_rows(self.row_id(scene), answer["localization"], answer["damage"]))

    def answer_from(self, scene: Scene, rows: Sequence[Row]) -> Answer:
        """Draw the five rows of a scene; what was graded outside of the buildings is not in them."""
        size = self.size(scene)
        masks = [rle.decode(text, size) for _, text in rows]
        damage = sum((mask * np.uint8(grade) for grade, mask in enumerate(masks[1:], 1)), np.zeros(size, np.uint8))
        return {"localization": masks[0], "damage": damage}

    def scene_fault(self, rows: Sequence[Row]) -> str:
        """Say whether damage classes share a pixel or lie outside of the buildings, class 0."""
        runs = {row_id.rpartition("_")[2]: rle.parse(text)[0] for row_id, text in rows}
        grades = [own for part, own in runs.items() if part != "0"]
        if rle.overlap(grades):
            return "two damage classes on one pixel"
        within = all(rle.lies_within(own, runs.get("0", own[:0])) for own in grades)
        return "" if within else "damage outside of every building, which is class 0"

    def row_names(self, scene: Scene) -> list[Name]:
        return [(f"{self.row_id(scene)}_{part}",) for part in range(CSV_ROWS)]

    def size(self, scene: Scene) -> tuple[int, int]:
        """Return (height, width) of a pair from the headers of its images.

        Where these differ, or none can be read, that is TILE, the size of a pair in the challenge.
        """
        read = [raster.stated_size(scene.files[side]) for side in SIDES if side in scene.files]
        stated = {(height, width) for height, width in read if height is not None and width is not None}
        return stated.pop() if len(stated) == 1 else TILE

    def lint(self, path: Path, scenes: Sequence[Scene] | None = None, sample: Path | None = None) -> list[str]:
        """Lint what ``write_submission`` wrote, a folder or zip of PNG pairs, or a CSV.

        Formats that lie beside each other must give the same answers. Needs no data unless ``scenes`` are given. Of
        PNGs a ``sample`` says which scenes they must answer.
        """
        path = Path(path)
        if not path.exists():
            return [f"{path}: expected a submission (folder, .zip or .csv), found nothing there"]
        if path.is_dir() and any((path / name).exists() for name in (tables.SUBMISSION, PAIRS, ARCHIVE)):
            faults = super().lint(path, scenes, sample)
            written = any((path / name).exists() for name in (PAIRS, ARCHIVE))
            if not written and (scenes is None or self.caveats(scenes)):  # left out, as ``write_submission`` does
                return faults
            for pictures in (path / PAIRS, path / ARCHIVE):
                faults += self._lint_pictures(pictures, scenes, None, path / PAIRS, compare=not faults)
            return faults
        if path.is_dir() or path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
            named = path if path.is_dir() else path.parent / PAIRS if path.name == ARCHIVE else None
            listed = named if named and (named / official.SCENE_IDS).exists() else None
            return self._lint_pictures(path, scenes, sample, listed, compare=path.name in (PAIRS, ARCHIVE))
        return super().lint(path, scenes, sample)

    def _lint_pictures(
        self, path: Path, scenes: Sequence[Scene] | None, sample: Path | None, listed: Path | None, compare: bool
    ) -> list[str]:
        """Lint a folder or an archive of PNGs, whose scenes are listed in the folder ``listed`` or nowhere.

        ``compare``: with the CSV that stage 06 wrote beside a list.
        """
        try:
            owed = self._owed(scenes, sample, listed)
            agrees = self._agrees(path.parent / tables.SUBMISSION, owed) if compare and listed and owed else None
        except DataError as error:
            return [f"{path}: {error}"]
        pairs = None if owed is None else owed.values()
        if path.is_dir() or path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            return official.lint_png_pairs(path, pairs, agrees)
        with open_archive(path) as (pictures, faults):
            return faults + (official.lint_png_pairs(pictures, pairs, agrees) if pictures else [])

    def _owed(
        self, scenes: Sequence[Scene] | None, sample: Path | None, listed: Path | None
    ) -> Mapping[str, str] | None:
        """Return scene id -> pair of what PNGs must answer, None where nothing says. Raises DataError where lists
        differ."""
        asked: dict[str, set[str]] = {}
        if scenes is not None:
            asked["the scenes asked for"] = {scene.id for scene in scenes}
        if sample is not None:
            asked[f"the scenes of {sample}"] = set(self.scenes_of(sample))
        owed = official.read_pairs(listed) if listed else None
        for words, ids in asked.items():
            owed = official.pairs_of(ids) if owed is None else owed
            if odd := sorted(owed.keys() ^ ids):
                raise DataError(f"expected {words}, {len(ids)}, got {len(owed)} in {official.SCENE_IDS} (differing: "
                                f"{', '.join(odd[:3])})")  # fmt: skip
        return owed

    def _agrees(self, table: Path, owed: Mapping[str, str]) -> official.Agrees | None:
        """Return what tells whether a CSV gives the same answers, None where there is no such file.

        Raises DataError where it has other scenes.
        """
        if not table.is_file():
            return None
        rows_of, scene_of = self._rows_of(table), {pair: scene_id for scene_id, pair in owed.items()}
        if odd := sorted(rows_of.keys() ^ owed.keys()):
            raise DataError(f"expected the scenes of {table.name} beside it, {len(rows_of)}, got {len(owed)} "
                            f"(differing: {', '.join(odd[:3])})")  # fmt: skip

        def agrees(pair: str, localization: np.ndarray, damage: np.ndarray) -> bool:
            said = {row[0]: row[1] for row in rows_of[scene_of[pair]]}
            answer = {"localization": localization, "damage": damage}
            return all(said.get(row[0]) == row[1] for row in self.rows(Scene(scene_of[pair], {}), answer))

        return agrees


def _beside_preset(settings: Params) -> list[str]:
    """Return the settings that are not at their defaults, which a preset would overrule."""
    return [name for name, value in settings.items()
            if name not in ("preset", "postprocess") and value != decoding.DEFAULTS.get(name)]  # fmt: skip


# ---- files --------------------------------------------------------------------------------------------
def _folders(root: Path, split: str, stated: Sequence[str] | None) -> list[Path]:
    """Return the tiers of a split, ``stated`` ones first, then in the order of TIERS; ``root`` may be a tier itself."""
    names = dict.fromkeys((*(stated or ()), *TIERS))
    tiers = [root / tier for tier in names if (root / tier / "images").is_dir()]
    if not tiers and (root / "images").is_dir() and not stated:
        tiers = [root.resolve()]
    if not tiers:
        inside = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        nested = [path for path in inside if any((path / tier / "images").is_dir() for tier in TIERS)]
        found = ", ".join(path.name for path in inside[:8]) or ("no folder" if root.is_dir() else "no such path")
        raise DataError(
            f"{root}: expected xBD as it unpacks ({', '.join(f'{tier}/images' for tier in names)}, any of them), found "
            f"{found}; set data.root to {nested[0] if nested else 'the folder that holds them'}"
        )
    if missing := [tier for tier in stated or () if root / tier not in tiers]:
        raise DataError(f"{root / missing[0] / 'images'}: expected the images of a tier, found no folder; set "
                        "data.options.tiers")  # fmt: skip
    return [tier for tier in tiers if _split_of(tier, stated) == split]


def _split_of(tier: Path, stated: Sequence[str] | None) -> str:
    """Return the split of a tier: as ``stated``, where a training tier that is not stated is in none, "".

    Otherwise "test" for test/ and for a folder without labels that is not a training tier by name, else "train".
    """
    if stated is not None:
        return "train" if tier.name in stated else "" if tier.name in TRAIN_TIERS else "test"
    labelled = any((tier / "labels").glob("*.json"))
    return "train" if tier.name in TRAIN_TIERS or (labelled and tier.name != "test") else "test"


def _parse_name(stem: str) -> tuple[str, str, str] | None:
    """Split a file's stem into (scene id, event, side); the challenge's own names have no event."""
    if match := EVENT_NAME.fullmatch(stem):
        return match["id"], match["event"], match["side"]
    if match := CHALLENGE_NAME.fullmatch(stem):
        return f"{match['split']}_{match['number']}", "", match["side"]
    return None


def _list(tier: Path) -> tuple[list[Scene], list[Finding]]:
    """List the scenes of a tier by file names alone, with whichever files they have, and the names not understood."""
    files: dict[tuple[str, str], dict[str, Path]] = {}
    findings: list[Finding] = []
    for folder, suffixes, roles in (("images", IMAGE_SUFFIXES, SIDES), ("labels", (".json",), LABELS)):
        for path in sorted((tier / folder).glob("*")):
            if path.suffix.lower() not in suffixes or path.name.startswith("."):
                continue
            if (name := _parse_name(path.stem)) is None:
                findings.append(Finding("unknown file name", path.name, f"in {tier.name}/{folder}"))
                continue
            scene_id, event, side = name
            role = roles[SIDES.index(side)]
            first = files.setdefault((scene_id, event), {}).setdefault(role, path)
            if first != path:
                findings.append(Finding("image in two formats", scene_id, f"{first.name} is used, not {path.name}"))
    return [Scene(scene_id, found, event) for (scene_id, event), found in sorted(files.items())], findings


# ---- labels -------------------------------------------------------------------------------------------
def _load(path: Path) -> dict[str, Any]:
    """Read the features of a label, "xy" and "lng_lat" (empty if absent), and its "metadata" ({} if absent). Raises
    DataError unless well formed."""
    return raster.keep((_load, str(path)), lambda: _parsed(path))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        most = limits()
        whole = read_json(path, most.json_depth, most.json_bytes)
        features, metadata = whole["features"], whole.get("metadata")
        if not isinstance(features["xy"], list):
            raise TypeError(f"features.xy is {type(features['xy']).__name__}")
        features = {"xy": features["xy"], "lng_lat": list(features.get("lng_lat", [])),
                    "metadata": metadata if isinstance(metadata, dict) else {}}  # fmt: skip
        for feature in (*features["xy"], *features["lng_lat"]):
            feature["wkt"], feature["properties"].get("subtype")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON label within data.limits (json_bytes, json_depth), got {error}; "
                        "fetch this file again") from error  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected features.xy with wkt and properties per building, got {error!r}") from error
    return features


def _outlines(path: Path, features: Mapping[str, Any]) -> np.ndarray:
    """Return the outlines (pixels, file order) as shapely polygons. Raises DataError for one that is invalid."""
    try:
        return polygons.parse([feature["wkt"] for feature in features["xy"]])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _subtypes(path: Path, features: Mapping[str, Any]) -> list[str]:
    """Return the damage of every building of a post-event label. Raises DataError for a name we do not know."""
    subtypes = [feature["properties"].get("subtype") for feature in features["xy"]]
    unknown = [subtype for subtype in subtypes if subtype not in (*DAMAGE, UNCLASSIFIED)]
    if unknown:
        raise DataError(
            f"{path}: expected subtype {', '.join(DAMAGE)} or {UNCLASSIFIED}, got {unknown[0]!r} "
            f"({len(unknown)} of {len(subtypes)} buildings)"
        )
    return subtypes


def _position(outlines: np.ndarray, features: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float] | None:
    """Return (longitude, latitude) of the centre of a (height, width) tile; None without buildings.

    It comes from the affine map of pixels to degrees of some ten buildings, exact to 1e-7 degrees (1 cm) on real tiles.
    Where there is no such map, it is the mean of the buildings, up to 200 m beside the centre.
    """
    if (affine := _affine(outlines, features)) is not None:
        return tuple(([size[1] / 2, size[0] / 2, 1.0] @ affine).tolist())  # (3,) @ (3, 2)
    lng_lat, _ = _corners(outlines, features)
    return tuple(lng_lat.mean(axis=0).tolist()) if len(lng_lat) and np.isfinite(lng_lat).all() else None


def _label_place(scene: Scene, pre: Mapping[str, Any]) -> Location | None:
    """Return the place that the outlines of a pre-event label tell. Raises DataError as ``_outlines``."""
    outlines = _outlines(scene.files["pre_label"], pre)
    degrees, pixels = _corners(outlines, pre)
    return georeference.fitted(pixels, degrees, raster.image_size(scene.files["pre"]), _affine(outlines, pre))


def _corners(outlines: np.ndarray, features: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return corners of some ten buildings in degrees, (N, 2), and in pixels, (M, 2)."""
    some = slice(None, None, max(1, len(outlines) // 8))
    texts = [str(feature["wkt"]) for feature in features["lng_lat"][some]]
    lng_lat = shapely.get_coordinates(shapely.from_wkt(texts, on_invalid="ignore"))
    return lng_lat, shapely.get_coordinates(outlines[some])


def _affine(outlines: np.ndarray, features: Mapping[str, Any]) -> np.ndarray | None:
    """Return the affine map (3, 2) from (x, y, 1) in pixels to degrees; None where the buildings do not tell it."""
    lng_lat, pixels = _corners(outlines, features)
    if not len(lng_lat) or len(pixels) != len(lng_lat) or not np.isfinite(lng_lat).all():
        return None
    affine, _, rank, _ = np.linalg.lstsq(np.column_stack([pixels, np.ones(len(pixels))]), lng_lat, rcond=None)
    return affine if rank == 3 else None


def _buildings(scene: Scene) -> np.ndarray:
    """Draw the pre-event outlines: (H, W) uint8, 1 = building."""
    path = _label(scene, "pre_label")
    drawn = [(outline, BUILDING) for outline in _outlines(path, _load(path))]
    return polygons.rasterize(drawn, raster.image_size(scene.files["pre"]))


def _damage(scene: Scene, unclassified: int) -> np.ndarray:
    """Draw the post-event outlines: (H, W) uint8 in 0..4, ``unclassified`` where no class was given."""
    path = _label(scene, "post_label")
    features = _load(path)
    values = [DAMAGE.get(subtype, unclassified) for subtype in _subtypes(path, features)]
    return polygons.rasterize(list(zip(_outlines(path, features), values)), raster.image_size(scene.files["pre"]))


def _label(scene: Scene, role: str) -> Path:
    """Return a label's path. Raises DataError for a scene without it."""
    if role not in scene.files:
        raise DataError(f"scene {scene.id}: expected a {role.replace('_', ' ')}, found none; has this scene a truth?")
    return scene.files[role]


# ---- data doctor --------------------------------------------------------------------------------------
def _inspect_files(scene: Scene, labelled: bool) -> list[Finding]:
    """Report which of a scene's files are missing; ``labelled``: its folder promises labels."""
    images = [side for side in SIDES if side in scene.files]
    lonely = [role for side, role in zip(SIDES, LABELS) if role in scene.files and side not in scene.files]
    bare = [side for side, role in zip(SIDES, LABELS) if side in scene.files and role not in scene.files]
    findings = []
    if len(images) == 1:
        findings.append(Finding("pair without twin", scene.id, f"only {scene.files[images[0]]}"))
    if lonely:
        findings.append(Finding("label without image", scene.id, ", ".join(str(scene.files[role]) for role in lonely)))
    if bare and labelled:
        findings.append(Finding("image without label", scene.id, ", ".join(str(scene.files[side]) for side in bare)))
    return findings


def _inspect_contents(scene: Scene, sizes: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Compare the sizes of a scene's images, read its labels, report what is wrong with them."""
    findings = []
    if len(sizes) == 2 and identical.same_bytes([scene], SIDES):
        findings.append(Finding("pre and post are one image", scene.id, f"{scene.files['pre']}, {scene.files['post']}"))
    if len(set(sizes.values())) == 2:
        findings.append(Finding("pre and post differ in size", scene.id, f"{sizes['pre']} and {sizes['post']}"))
    elif sizes and TILE not in sizes.values():
        findings.append(Finding(f"size is not {TILE[0]}x{TILE[1]}", scene.id, f"{[*sizes.values()][0]}"))
    agreed = [*sizes.values()][0] if len(set(sizes.values())) == 1 else None
    for side, role in zip(SIDES, LABELS):
        if role in scene.files:
            findings += _inspect_label(scene, role, sizes.get(side, TILE), agreed)
    with suppress(DataError):  # is said of each label
        held = [len(_load(scene.files[role])["xy"]) for role in LABELS if role in scene.files]
        if len(held) == 2 and not all(held) and any(held):
            findings.append(Finding("buildings in one label of a pair alone", scene.id, f"{held[0]} and {held[1]}"))
    return findings


def _inspect_metadata(scene: Scene, path: Path, metadata: Mapping[str, Any], size: Any) -> list[Finding]:
    """Report a label that says that it was drawn on another image, or on one of another ``size``, (height, width)."""
    found, name = [], metadata.get("img_name")
    if isinstance(name, str) and Path(name).stem.casefold() != path.stem.casefold():
        found.append(Finding("label that names another image", scene.id, f"{path}: {name}"))
    stated = metadata.get("height"), metadata.get("width")
    if size and all(isinstance(side, int | float) for side in stated) and stated != size:
        found.append(Finding("label drawn at another size", scene.id, f"{path}: {stated}, the image has {size}"))
    return found


def _inspect_label(scene: Scene, role: str, size: tuple[int, int], agreed: tuple[int, int] | None) -> list[Finding]:
    """Report what is wrong with one label of a (height, width) tile; ``agreed``: the size of both images, if known."""
    path, findings = scene.files[role], []
    try:
        features = _load(path)
    except DataError as error:
        return [Finding("label does not parse", scene.id, str(error))]
    findings += _inspect_metadata(scene, path, features["metadata"], agreed)
    kinds = {str(feature["properties"].get("feature_type", "building")) for feature in features["xy"]} - {"building"}
    if kinds:
        detail = f"{path}: {', '.join(sorted(kinds))}"
        findings.append(Finding("outline of no building, drawn as one", scene.id, detail))
    try:
        outlines = _outlines(path, features)
        left, top, right, bottom = shapely.bounds(outlines).T
        if empty := int(shapely.is_empty(outlines).sum()):
            findings.append(Finding("outline without a vertex", scene.id, f"{path}: {empty} of {len(outlines)}"))
        elif len(outlines) and np.max([right, bottom], initial=0) <= 1 and np.min([left, top], initial=0) >= 0:
            detail = f"{path}: all are within the first pixel; multiply shares of the sides by these"
            findings.append(Finding("outlines that are not in pixels", scene.id, detail))
        # half a pixel is lost in rounding; real tiles reach beyond their border by 1e-7
        outside = np.flatnonzero((np.minimum(left, top) < -0.5) | (right > size[1] + 0.5) | (bottom > size[0] + 0.5))
        if outside.size:
            detail = f"{path}: {outside.size} of {len(left)}, the first is number {outside[0]}"
            findings.append(Finding("polygon outside the tile", scene.id, detail))
    except DataError as error:
        findings.append(Finding("invalid polygon", scene.id, str(error)))
    if role == "post_label":
        try:
            _subtypes(path, features)
        except DataError as error:
            findings.append(Finding("unknown subtype", scene.id, str(error)))
    return findings
