"""VOC: every pixel of a picture gets one class (PASCAL VOC, animals, pets, CamVid).

Layout, as PASCAL VOC ships it; ``data.options`` name any other::

    root/JPEGImages/2007_000032.jpg                  the pictures, of any size
    root/SegmentationClass/2007_000032.png           palette or grey PNG: the stored index is the class, 255 is ignored
    root/ImageSets/Segmentation/train.txt, val.txt, trainval.txt, test.txt

Example row of a list: ``2007_000032``, or a path to the picture, as CamVid's lists have it; what follows a space is
not read. ``images``, ``masks`` and ``lists`` may hold ``{split}``; the first two are folders, or patterns in which
``*`` is the id. So CamVid is ``images: "{split}", masks: "{split}annot", lists: "{split}.txt"``, a folder of pets
with a folder of labels in it is ``images: "res/*.jpg", masks: res/label, lists: null``, and a folder per class, whose
masks are 0 and 255, is ``masks: {cat: masks/cat, dog: masks/dog}``.

Metric, answer and submission are those of ``class_maps.py``: mIoU from one confusion matrix of all pixels of all
pictures; (H, W) uint8 class indices; a row of runs per picture and class but the first, and index PNGs.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from lib.competitions.class_maps import ClassMaps, palette
from lib.competitions.listing import SUFFIXES, Classes, Expression, Match, Pattern, find_in_ids, matches, otherwise
from lib.competitions.records import matched, read_text
from lib.competitions.scene import Finding, Scene
from lib.competitions.voc import pictures
from lib.competitions.voc.pictures import Named
from lib.errors import DataError
from lib.scenes import raster
from lib.scenes.bands import Remark
from lib.scenes.masks import black_but_0, read_objects
from lib.settings import Section
from lib.tasks import IGNORE

UNIONS = ("trainval",)
"""Splits that repeat others, so that an id in them and in another is nothing strange."""
MASK = "mask"
"""Role of a scene's mask; where there is a folder per class, ``mask of cat``."""
ZERO_OR_255 = ("255 is ignored; if it is a class, say colours: [[0, 0, 0], [255, 255, 255]], or take competition "
               "binary_rle")  # fmt: skip


Value = Annotated[int, Field(ge=0, le=IGNORE)]


class VOCOptions(Section):
    """What ``data.options`` may hold."""

    classes: Classes
    """Names in the order of their indices; index 0 is what fills the rest (background)."""
    images: Pattern | tuple[Pattern, ...] = "JPEGImages"
    """Where the pictures are."""
    masks: Pattern | tuple[Pattern, ...] | dict[str, Pattern] = "SegmentationClass"
    """Where the masks are; or, by class, masks in which 0 is nothing; where two overlap, the later class is used."""
    lists: str | None = Field("ImageSets/Segmentation/{split}.txt", pattern=r"\{split\}")
    """Lists of ids. null: every picture with a mask is labelled, every other one is test; or, where ``images`` holds
    ``{split}``, the folders are the splits."""
    train_splits: tuple[str, ...] = Field(("train", "val", "trainval"), min_length=1)
    """The splits whose masks are used, those that are there."""
    test_split: str | None = "test"
    """The pictures to answer; null: none."""
    ignore: tuple[Value, ...] = ()
    """Mask values that count nowhere, besides 255."""
    colours: Literal["voc"] | tuple[tuple[Value, Value, Value], ...] | None = None
    """The [red, green, blue] of each index where masks are coloured pictures, or ``voc`` for PASCAL's palette; other
    colours are ignored."""
    group: Expression | None = None
    """Regular expression searched in the id: what it finds (its first group, or all of the match) is the name of what
    must stay together, such as a video."""
    domain: Expression | None = None
    """Regular expression searched in the id: where the picture is from; without it that is the group."""
    sample: str | None = ""
    """Sample submission, which says what scenes are answered, in what order and under what header; "": one of the
    usual name. null: none is used."""

    @field_validator("masks")
    @classmethod
    def _masks_are_of_classes(cls, masks: Any, info: ValidationInfo) -> Any:
        known = info.data.get("classes", ())[1:]
        if isinstance(masks, dict) and (not masks or set(masks) - set(known)):
            raise ValueError(f"expected folders by class ({', '.join(known)})")
        return masks

    @field_validator("colours")
    @classmethod
    def _colours_are_of_classes(cls, colours: Any, info: ValidationInfo) -> Any:
        count = len(info.data.get("classes", ()))
        if colours is not None and isinstance(info.data.get("masks"), dict):
            raise ValueError("expected none, since masks has a folder per class")
        if isinstance(colours, tuple) and (len(colours) < count or len(set(colours)) < len(colours)):
            raise ValueError(f"expected voc or a different [red, green, blue] for each of {count} classes")
        return colours


class VOC(ClassMaps):
    """Pictures with one class per pixel under ``root``."""

    name = "voc"
    Options = VOCOptions

    def __init__(self, root: Path, options: VOCOptions, memo: Path | None = None):
        super().__init__(root, options, memo)
        self.set_classes(options.classes)

    # ---- scenes ---------------------------------------------------------------------------------------
    def listed(self, split: str) -> tuple[list[Scene], list[Finding]]:
        """List the pictures of every training split that is there, or of the test split."""
        by_split, _, findings = self._everything
        if split == "train":
            once: dict[str, Scene] = {}
            for scene in (scene for name in self.options.train_splits for scene in by_split.get(name, ())):
                once.setdefault(scene.id, scene)
            return list(once.values()), findings
        wanted = self.options.test_split
        return ([] if wanted in self.options.train_splits else by_split.get(wanted, [])), []

    def scenes(self, split: str) -> list[Scene]:
        """Return the pictures of a split as the contract says; DataError where no mask has a class but the first."""
        scenes = super().scenes(split)
        if split == "train" and not any(any(self.strata(scene).values()) for scene in scenes):
            if odd := [scene for scene in scenes if self._is_zero_and_255(scene)]:
                raise DataError(f"{self.root}: expected masks that hold one of {', '.join(self.names[1:])}, found "
                                f"only 0 and 255 in {len(odd)} of {len(scenes)}, the first is {odd[0].files[MASK]}; "
                                f"{ZERO_OR_255}")  # fmt: skip
        return scenes

    def places(self, split: str) -> list[str]:
        options = self.options
        names = options.train_splits if split == "train" else [options.test_split] if options.test_split else []
        patterns = [options.lists] if options.lists is not None else [*_several(options.images)]
        return list(dict.fromkeys(pattern.replace("{split}", name) for name in names for pattern in patterns))

    def read_files(self) -> list[Path]:
        options = self.options
        names = (*options.train_splits, *([options.test_split] if options.test_split else []))
        lists = [self.root / options.lists.replace("{split}", name) for name in names] if options.lists else []
        return [*super().read_files(), *lists]

    def labelled(self, scene: Scene) -> bool:
        """Tell whether a scene has a mask, of one class at least."""
        return any(role.startswith(MASK) for role in scene.files)

    def published_split(self) -> dict[str, str]:
        """Return picture id -> the split it was shipped in, the first one that lists it; {} where no split is given."""
        return dict(self._everything[1]) if self._is_split else {}

    def inspect_scene(self, scene: Scene, split: str) -> list[Finding]:
        """Report what is wrong with a picture and its mask, and what in the mask counts nowhere."""
        findings = super().inspect_scene(scene, split)
        if findings or split != "train":
            return findings
        if (self.target(scene, "loc") == IGNORE).all():
            findings.append(Finding("mask all ignored", scene.id, str(scene.files.get(MASK, ""))))
        elif not any(self.strata(scene).values()) and self._is_zero_and_255(scene):
            findings.append(Finding("mask of 0 and 255 alone", scene.id, ZERO_OR_255))
        elif self.colours is not None and (share := _unknown_colours(scene.files[MASK], self.colours)):
            findings.append(Finding("colours of no class, ignored", scene.id, f"{share:.2%} of the pixels"))
        elif self.colours is None and not self._by_class and (odd := self._black_but_0(scene)):
            kind = "palette in which class 0 has a colour and another is black, indices are used"
            findings.append(Finding(kind, scene.id, f"index {odd}; say data.options.colours if colours are meant"))
        if self._by_class:
            for path in (path for role, path in scene.files.items() if role.startswith(MASK)):
                findings += [Finding(kind, scene.id, detail) for kind, detail in self._objects(path)[1]]
            times: Any = sum(drawn for _, drawn in self._masks(scene))  # (H, W), how many classes are drawn
            if overlap := int((times > 1).sum()):
                sentence = "masks of classes overlap, the later class is used"
                findings.append(Finding(sentence, scene.id, f"{overlap} pixels"))
        return findings

    def target(self, scene: Scene, task: str) -> np.ndarray:
        """Return (H, W) uint8 class indices, 255 where the mask holds an ignored value (in masks of classes: 0)."""
        if not self.labelled(scene):
            raise DataError(f"scene {scene.id}: expected a mask, found none; has this scene a truth?")
        if self._by_class:
            joined = np.zeros(raster.image_size(scene.files["image"]), np.uint8)
            for index, drawn in self._masks(scene):
                joined[drawn > 0] = index
            return joined
        path = scene.files[MASK]
        if self.colours is None and not raster.keeps_values(path):
            raise DataError(f"scene {scene.id}: {path}: expected classes 0..{len(self.names) - 1}, got a lossy "
                            "format; a JPEG does not keep the numbers of classes, export masks as PNG")  # fmt: skip
        mask = read_mask(path, self.colours)
        mask[np.isin(mask, self.options.ignore)] = IGNORE
        if (unknown := np.unique(mask[(mask >= len(self.names)) & (mask != IGNORE)])).size:
            raise DataError(
                f"scene {scene.id}: {path}: expected classes 0..{len(self.names) - 1} or an ignored value, got "
                f"{', '.join(map(str, unknown[:5]))}; name the class in data.options.classes, or add it to ignore"
            )
        return mask

    # ---- files ----------------------------------------------------------------------------------------
    @cached_property
    def colours(self) -> np.ndarray | None:
        """The colours of masks as (N, 3) uint8, N at least the number of classes; None where masks hold indices."""
        given = self.options.colours
        return palette(len(self.names)) if given == "voc" else given and np.array(given, np.uint8)

    @property
    def _by_class(self) -> bool:
        """Whether there is a folder of masks per class."""
        return isinstance(self.options.masks, dict)

    def _is_zero_and_255(self, scene: Scene) -> bool:
        """Tell whether a mask of indices holds 0 and 255 and nothing else."""
        if self._by_class or self.colours is not None:
            return False
        return np.unique(raster.read_mask(scene.files[MASK])).tolist() == [0, IGNORE]

    def _black_but_0(self, scene: Scene) -> int:
        colours = raster.palette(scene.files[MASK])
        return 0 if colours is None else black_but_0(colours, np.unique(raster.read_mask(scene.files[MASK])).tolist())

    def _masks(self, scene: Scene) -> Iterable[tuple[int, np.ndarray]]:
        """Yield the masks of classes as (index, (H, W) uint8 in {0, 1}), in the order of the option."""
        shape = raster.image_size(scene.files["image"])
        for name in self.options.masks:
            if (path := scene.files.get(f"{MASK} of {name}")) is None:
                continue
            mask = self._objects(path)[0]
            if mask.shape != shape:
                raise DataError(f"scene {scene.id}: {path}: expected the picture's size {shape}, got {mask.shape}")
            yield self.options.classes.index(name), mask

    def _objects(self, path: Path) -> tuple[np.ndarray, list[Remark]]:
        """Read the mask of a class as (H, W) uint8 in {0, 1}, where ``ignore`` is stated by its other values."""
        objects: list[int] = []
        if self.options.ignore:
            held = set(np.unique(raster.read_mask(path)).tolist())
            objects = sorted(held - {0, *self.options.ignore}) or [IGNORE]
        try:
            return read_objects(path, objects)
        except DataError as error:
            hint = " Say data.options.ignore for those that are not" if str(error).endswith("?") else ""
            raise DataError(f"{error}{hint}") from error

    @property
    def _is_split(self) -> bool:
        """Whether the data says which split a picture is in."""
        return self.options.lists is not None or any("{split}" in pattern for pattern in _several(self.options.images))

    @cached_property
    def _names(self) -> list[str]:
        """The splits that may be there, training splits first."""
        own_test = [self.options.test_split] if self.options.test_split else []
        return list(dict.fromkeys([*self.options.train_splits, *own_test]))

    @cached_property
    def _found(self) -> dict[str, list[Match]]:
        """Split -> the pictures that its patterns find."""
        return {name: matches(self.root, _several(self.options.images), name) for name in self._names}

    @cached_property
    def _sides(self) -> dict[str, Named]:
        """Split -> the pictures of all training splits by id, or those of the test split."""
        trained = self.options.train_splits
        train = pictures.named(match for name in trained for match in self._found[name])
        return {name: train if name in trained else pictures.named(self._found[name]) for name in self._names}

    def _splits(self) -> tuple[dict[str, list[str]], list[Finding]]:
        """Return split -> ids as the lists or folders name them, and the lines that may mean several pictures."""
        options, sides = self.options, self._sides
        findings: list[Finding] = []
        if options.lists is not None:
            paths = {name: self.root / options.lists.replace("{split}", name) for name in self._names}
            found: dict[str, list[str]] = {name: [] for name, path in paths.items() if path.is_file()}
            for name in found:
                words = _read_list(paths[name])
                unknown = [_id_of(word) for word in words if not pictures.listed(word, sides[name])]
                means = matched(unknown, {key: key for key in sides[name].pictures}, SUFFIXES)
                findings += otherwise("ids written otherwise than their pictures, read as those", paths[name].name,
                                      means, SUFFIXES)  # fmt: skip
                for word in words:
                    meant = pictures.listed(word, sides[name])
                    own = _id_of(word)
                    found[name] += meant if len(meant) == 1 else [] if meant else [means.get(own, own)]
                    if len(meant) > 1:
                        findings.append(Finding("listed id of several pictures, none is used", word, ", ".join(meant)))
        elif self._is_split:
            ids = {match.path: key for side in sides.values() for key, match in side.pictures.items()}
            found = {name: sorted(ids[m.path] for m in self._found[name] if m.path in ids) for name in self._names}
            found = {name: ids for name, ids in found.items() if ids}
        else:
            every = sides[options.train_splits[0]]
            masks, _ = self._masks_of_split(options.train_splits[0])
            found = {name: [] for name in self._names}
            if every.pictures and not masks:
                raise DataError(self._unmatched(sorted(every.pictures)))
            for scene_id in sorted(every.pictures):
                found.get(options.train_splits[0] if scene_id in masks else options.test_split, []).append(scene_id)
        if not any(found.get(name) for name in options.train_splits):
            places = options.lists or ", ".join(_several(options.images))
            inside = sorted(path.name for path in self.root.iterdir())[:8] if self.root.is_dir() else ["no such path"]
            raise DataError(f"{self.root}: expected {places} for the splits {', '.join(options.train_splits)}, found "
                            f"{', '.join(inside)}; set data.root, or data.options.lists, images, masks")  # fmt: skip
        return found, findings

    def _unmatched(self, ids: Sequence[str]) -> str:
        """Say that no picture has a mask, by the ids of both."""
        given = self.options.masks
        patterns = [*given.values()] if isinstance(given, dict) else [*_several(given)]
        masks = sorted({match.stem for match in matches(self.root, patterns)})
        first = f"; a picture's id is {ids[0]}, a mask's {masks[0]}" if masks else ""
        asked = ", ".join(_several(self.options.images))
        return (f"{self.root}: expected a mask for some of the {len(ids)} pictures in {asked}, found {len(masks)} "
                f"masks in {', '.join(patterns)}{first}; set data.options.masks")  # fmt: skip

    def _masks_of_split(self, split: str) -> tuple[dict[str, dict[str, Path]], dict[str, list[Finding]]]:
        """Return id -> role -> mask of the pictures that the split's patterns find, and id -> what is not clear."""
        given = self.options.masks
        roles: dict[str, tuple[str, ...]] = (
            {f"{MASK} of {name}": (pattern,) for name, pattern in given.items()}
            if isinstance(given, dict)
            else {MASK: _several(given)}
        )
        side, here = self._sides[split], {match.pattern for match in self._found[split]}
        own = {key: match for key, match in side.pictures.items() if match.pattern in here}
        found: dict[str, dict[str, Path]] = {}
        findings: dict[str, list[Finding]] = {}
        for role, patterns in roles.items():
            masks = pictures.masks_of(own, side.parts, matches(self.root, patterns, split))
            for key, match in masks.found.items():
                found.setdefault(key, {})[role] = match.path
            for key, several in masks.unclear.items():
                which = ", ".join(str(match.path) for match in several)
                finding = Finding("mask that may be of several pictures, none is used", key, which)
                findings.setdefault(key, []).append(finding)
        return found, findings

    @cached_property
    def _everything(self) -> tuple[dict[str, list[Scene]], dict[str, str], list[Finding]]:
        """The scenes of each split by file names alone, the first split of each id, and what is strange about them."""
        splits, unclear = self._splits()
        known = {split: self._sides[split].pictures for split in splits}
        ids = list(dict.fromkeys(i for split, listed in splits.items() for i in listed if i in known[split]))
        groups, findings = find_in_ids("group", self.options.group, ids)
        domains, odd = find_in_ids("domain", self.options.domain, ids)
        findings += odd + unclear
        dropped = dict.fromkeys(drop for side in self._sides.values() for drop in side.dropped)
        findings += [Finding("two pictures of one id", key, f"{one.path} is used, not {other.path}")
                     for key, one, other in dropped]  # fmt: skip
        by_split: dict[str, list[Scene]] = {}
        first: dict[str, tuple[str, Scene]] = {}
        missing: dict[str, str] = {}
        for split, listed in splits.items():
            own = {key: known[split][key] for key in dict.fromkeys(listed) if key in known[split]}
            missing |= {key: split for key in dict.fromkeys(listed) if key not in own and key not in missing}
            masks, not_clear = self._masks_of_split(split)
            findings += [finding for key in own if key not in first for finding in not_clear.get(key, ())]
            by_split[split] = []
            for scene_id, picture in own.items():
                files = {"image": picture.path, **masks.get(scene_id, {})}
                group = groups.get(scene_id, "")
                scene = Scene(scene_id, files, domains.get(scene_id) or group, group=group)
                by_split[split].append(scene)
                findings += _strange(scene, split, *first.setdefault(scene_id, (split, scene)))
        if isinstance(given := self.options.masks, dict):
            held = {role for scenes in by_split.values() for scene in scenes for role in scene.files}
            findings += [Finding("class without a mask of any picture, it is part of the background", name, pattern)
                         for name, pattern in given.items() if f"{MASK} of {name}" not in held]  # fmt: skip
        absent = {scene_id: split for scene_id, split in missing.items() if scene_id not in first}
        findings += [Finding("listed picture is not here", i, f"in {split}") for i, split in absent.items()]
        return by_split, {scene_id: split for scene_id, (split, _) in first.items()}, findings


# ---- masks and colours --------------------------------------------------------------------------------
def read_mask(path: Path, colours: np.ndarray | None = None) -> np.ndarray:
    """Read a mask as (H, W) uint8: the stored indices, or, with ``colours`` (N, 3) uint8, the index of each colour.

    Colours that are none of these become 255. Raises DataError on a broken file, and on a picture without ``colours``.
    """
    if colours is None:
        try:
            return raster.read_mask(path)
        except DataError as error:
            raise DataError(f"{error}; if the classes are colours, name them in data.options.colours; a mask of one "
                            "class alone is for competition binary_rle") from error  # fmt: skip
    return _look_up(raster.read_image(path, turned=False), colours)


def _look_up(picture: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Look up each pixel of (H, W, 3) uint8 among the colours: (H, W) uint8, 255 where it is none of them."""
    codes, pixels = (array.astype(np.int32) @ (65536, 256, 1) for array in (colours, picture))  # (N,), (H, W)
    order = np.argsort(codes)
    place = np.searchsorted(codes[order], pixels).clip(max=len(codes) - 1)
    return np.where(codes[order][place] == pixels, order[place], IGNORE).astype(np.uint8)


def _unknown_colours(path: Path, colours: np.ndarray) -> float:
    """Return the share of pixels whose colour is neither a class nor PASCAL's colour of the ignored outline."""
    return float(
        (_look_up(raster.read_image(path, turned=False), np.vstack([colours, palette()[IGNORE:]])) == IGNORE).mean()
    )


# ---- lists --------------------------------------------------------------------------------------------
def _several(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given


def _read_list(path: Path) -> list[str]:
    """Return the ids or paths of a list: the first word of each line, which a comma or semicolon may end too.

    Lines that begin with # are none.
    """
    lines = (line for line in read_text(path).splitlines() if not line.startswith("#"))
    words = (re.split(r"[\s,;]", line.strip().strip("\"'"), maxsplit=1)[0] for line in lines)
    return [word.strip("\"'").replace("\\", "/") for word in words if word]


def _id_of(word: str) -> str:
    """Return the name of a picture in a list, without folders and without a picture's suffix."""
    name = PurePosixPath(word)
    return name.stem if name.suffix.lower() in SUFFIXES else name.name


def _strange(scene: Scene, split: str, first_split: str, first: Scene) -> list[Finding]:
    """Report an id that was listed before: with another picture, or in a split that should not share any."""
    if scene.files["image"] != first.files["image"]:
        return [Finding("two pictures of one id", scene.id, f"{first.files['image']} and {scene.files['image']}")]
    if split != first_split and not {split, first_split} & set(UNIONS):
        return [Finding("in two splits", scene.id, f"{first_split} and {split}")]
    return []
