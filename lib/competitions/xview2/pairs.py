"""The official pairs of PNGs, and the five rows that a scene has in the CSV: written, read back and linted.

Two masks per scene, ``test_localization_00000_prediction.png`` and ``test_damage_00000_prediction.png``. A *pair* is a
scene's name in these files, here "test_00000". Scenes with such an id keep it; others, named by their disaster, are
numbered by their place in the order of ids, and ``scene_ids.csv`` beside the PNGs says which is which.

In the CSV class 0 is the building mask and 1..4 are the damage classes, exclusive and erased outside of the buildings.
"""

import csv
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.competitions.tables import SUBMISSION, exact_rows, sentence
from lib.competitions.xview2 import metric
from lib.competitions.xview2.archive import Pictures
from lib.errors import DataError
from lib.files import whole_file
from lib.scenes import raster, rle

KINDS = ("localization", "damage")
SCENE_IDS = "scene_ids.csv"

Agrees = Callable[[str, np.ndarray, np.ndarray], bool]
"""Tells of a pair, its localization and its damage whether another file gives the same answer."""

_PAIR = re.compile(r"(test|hold)_\d{5}")
_PNG_NAME = re.compile(r"(test|hold)_(localization|damage)_(\d{5})_prediction\.png")


def pair_rows(scene_id: str, localization: np.ndarray, damage: np.ndarray) -> list[tuple[str, str]]:
    """Return the five (row id, runs) of an xView2 answer; masks: (H, W) uint8, damage in 0..4."""
    texts = [rle.encode(localization), *rle.encode_labels(damage * (localization > 0), count=len(metric.CLASSES))]
    return [(f"{scene_id}_{class_id}", text) for class_id, text in enumerate(texts)]


@contextmanager
def write_png_pairs(folder: Path) -> Iterator[Callable[[str, np.ndarray, np.ndarray], None]]:
    """Open a folder for xView2's PNGs and give ``add(scene_id, localization, damage)``; writes ``scene_ids.csv`` last.

    Masks: (1024, 1024) uint8 in 0..4; damage is erased where no building is, as the official scorer does. Scenes must
    come sorted by id, so that their numbers do not depend on the run.
    ``add`` raises DataError on another order, on an id that gets a number already used, and on other masks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scene_of: dict[str, str] = {}  # pair -> scene id

    def add(scene_id: str, localization: np.ndarray, damage: np.ndarray) -> None:
        last = next(reversed(scene_of.values()), None)
        if last is not None and scene_id <= last:
            raise DataError(f"{folder}: expected scenes sorted by id, got {scene_id!r} after {last!r}; sort them first")
        pair = pair_name(scene_id, len(scene_of))
        if pair in scene_of:
            raise DataError(f"{folder}: {scene_id!r} would be {pair}, as another scene is; submit them apart")
        for kind, mask in zip(KINDS, (localization, damage), strict=True):
            if mask.shape != metric.SHAPE or mask.dtype != np.uint8 or mask.max() > len(metric.CLASSES):
                raise DataError(
                    f"{scene_id}: expected a {kind} mask of 1024 x 1024 uint8 in 0..4, got {mask.shape} {mask.dtype} "
                    f"up to {mask.max(initial=0)}; the official scorer would refuse it"
                )
        raster.write_png(png_path(folder, pair, "localization"), localization)
        raster.write_png(png_path(folder, pair, "damage"), damage * (localization > 0))
        scene_of[pair] = scene_id

    yield add
    with whole_file(folder / SCENE_IDS) as file:
        csv.writer(file, lineterminator="\n").writerows([("scene_id", "pair"), *((s, p) for p, s in scene_of.items())])


def pair_name(scene_id: str, place: int) -> str:
    """Return the pair of a scene: its id where that is one, else its place in the order of ids, from 0."""
    return scene_id if _PAIR.fullmatch(scene_id) else f"test_{place:05d}"


def pairs_of(scene_ids: Iterable[str]) -> dict[str, str]:
    """Return scene id -> pair, as ``write_png_pairs`` numbers scenes."""
    return {scene_id: pair_name(scene_id, place) for place, scene_id in enumerate(sorted(scene_ids))}


def png_name(pair: str, kind: str) -> str:
    """Return the name of a pair's mask: ("test_00000", "damage") -> test_damage_00000_prediction.png."""
    split, number = pair.split("_")
    return f"{split}_{kind}_{number}_prediction.png"


def png_path(folder: Path, pair: str, kind: str) -> Path:
    """Return where a pair's mask lies in a folder."""
    return Path(folder) / png_name(pair, kind)


def read_pairs(folder: Path) -> dict[str, str]:
    """Return scene id -> pair from ``scene_ids.csv``. Raises DataError where it is missing or damaged."""
    path = Path(folder) / SCENE_IDS
    rows = list(exact_rows(path))
    if rows[:1] != [["scene_id", "pair"]] or any(len(row) != 2 or not _PAIR.fullmatch(row[1]) for row in rows[1:]):
        raise DataError(f"{path}: expected rows of scene_id,pair; write the submission again")
    if any(len(set(column)) < len(rows) - 1 for column in zip(*rows[1:], strict=True)):
        raise DataError(f"{path}: expected each scene and each pair once; write the submission again")
    return {scene_id: pair for scene_id, pair in rows[1:]}


def zip_pngs(folder: Path, path: Path) -> None:
    """Pack the official PNGs of a folder, and nothing else, into an archive; equal PNGs give equal bytes."""
    names = sorted(file.name for file in Path(folder).iterdir() if _PNG_NAME.fullmatch(file.name))
    with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # else they depend on who packs
            archive.writestr(entry, (Path(folder) / name).read_bytes())  # stored: a PNG does not shrink further


def lint_png_pairs(
    pictures: Path | Pictures, pairs: Iterable[str] | None = None, agrees: Agrees | None = None
) -> list[str]:
    """Return what the official scorer would stop at or overlook in PNGs, a sentence per kind of fault; [] if valid.

    ``pictures``: a folder, or where they lie otherwise. ``pairs``: the pairs that must be there and no others, as
    "test_00000"; without them each PNG must have its partner, and the numbers must have no gap. ``agrees``: tells
    whether another file gives a pair the same answer. Without one, pictures that are black where an answer cannot be
    are faults: all localization pictures, or the damage of a scene with buildings. PNGs under other names are reported
    too: the official scorer would not see them.
    """
    if not isinstance(pictures, Pictures):
        if not Path(pictures).is_dir():
            return [f"{pictures}: expected a folder of PNGs, found none"]
        pictures = Pictures.of_folder(Path(pictures))
    faults: dict[str, list[str]] = defaultdict(list)
    found = []
    for name in pictures.names:
        if match := _PNG_NAME.fullmatch(name):
            found.append(f"{match[1]}_{match[3]}")
        else:
            faults["is not named like test_damage_00000_prediction.png, the official scorer overlooks it"].append(name)
    wanted = sorted(set(found) if pairs is None else set(pairs))
    if not wanted:
        return [f"{pictures.place}: expected files like test_damage_00000_prediction.png, found none"]
    if pairs is None:
        faults["no PNG has this number, though others have one below and above it"] = _gaps(wanted)
    faults["is of no scene that is asked for"] = [
        png_name(pair, kind) for pair in sorted(set(found) - set(wanted)) for kind in KINDS
    ]
    built = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for seen in pool.map(lambda pair: _inspect_pair(pictures, pair, agrees), wanted):
            built += seen.built
            for kind, name in seen.faults:
                faults[kind].append(name)
    findings = [sentence(pictures.place, "file", kind, names) for kind, names in faults.items() if names]
    if not built and not findings and agrees is None:
        findings.append(
            f"{pictures.place}: every localization picture is black, {len(wanted)} of {len(wanted)}: expected a "
            "building in one of them; where there is none, lint the folder that stage 06 wrote, whose CSV says the same"
        )
    return findings


class _Seen(NamedTuple):
    faults: list[tuple[str, str]]
    """Kind of fault, name of the file."""
    built: bool
    """Whether there is a building; true where that is not known."""


def _inspect_pair(pictures: Pictures, pair: str, agrees: Agrees | None) -> _Seen:
    """Read both pictures of a pair and say what is wrong with them, each by itself and together."""
    masks, faults = [], []
    for kind in KINDS:
        name = png_name(pair, kind)
        mask, refusal = None, "does not exist"
        if name in pictures.names:
            try:
                mask, refusal = metric.inspect_png(pictures.read(name))
            except DataError as error:
                refusal = str(error)
        masks.append(mask)
        if refusal:
            faults.append((refusal, name))
    localization, damage = masks
    if localization is None or damage is None:
        return _Seen(faults, True)
    building, name = localization > 0, png_name(pair, "damage")
    built = bool(building.any())
    if damage[~building].any():
        faults.append(("damage outside of every building of the localization picture, which the scorer erases", name))
    if agrees is not None:
        if not agrees(pair, localization, damage):
            faults.append((f"gives another answer than {SUBMISSION} beside it", name))
    elif built and not damage.any():
        faults.append(("is black though the localization picture has buildings, each of which needs a grade", name))
    return _Seen(faults, built)


def _gaps(pairs: Sequence[str]) -> list[str]:
    """Return the pairs that are missing between the first and the last one of each split."""
    missing = []
    for split in sorted({pair.split("_")[0] for pair in pairs}):
        numbers = {int(pair.split("_")[1]) for pair in pairs if pair.startswith(split)}
        missing += [f"{split}_{number:05d}" for number in sorted(set(range(min(numbers), max(numbers))) - numbers)]
    return missing
