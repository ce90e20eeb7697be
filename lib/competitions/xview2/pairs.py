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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lib.competitions.tables import read_rows, sentence
from lib.competitions.xview2 import metric
from lib.errors import DataError
from lib.files import whole_file
from lib.scenes import raster, rle

KINDS = ("localization", "damage")
SCENE_IDS = "scene_ids.csv"

_PAIR = re.compile(r"(test|hold)_\d{5}")
_PNG_NAME = re.compile(r"(test|hold)_(localization|damage)_(\d{5})_prediction\.png")


def pair_rows(scene_id: str, localization: np.ndarray, damage: np.ndarray) -> list[tuple[str, str]]:
    """Return the five (row id, runs) of an xView2 answer; masks: (H, W) uint8, damage in 0..4."""
    texts = [rle.encode(localization), *rle.encode_labels(damage * (localization > 0), count=len(metric.CLASSES))]
    return [(f"{scene_id}_{class_id}", text) for class_id, text in enumerate(texts)]


@contextmanager
def write_png_pairs(folder: Path) -> Iterator[Callable[[str, np.ndarray, np.ndarray], None]]:
    """Open a folder for xView2's PNGs and give ``add(scene_id, localization, damage)``; writes ``scene_ids.csv`` last.

    Masks: (1024, 1024) uint8 in 0..4. Scenes must come sorted by id, so that their numbers do not depend on the run.
    ``add`` raises DataError on another order, on an id that gets a number already used, and on other masks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scene_of: dict[str, str] = {}  # pair -> scene id

    def add(scene_id: str, localization: np.ndarray, damage: np.ndarray) -> None:
        last = next(reversed(scene_of.values()), None)
        if last is not None and scene_id <= last:
            raise DataError(f"{folder}: expected scenes sorted by id, got {scene_id!r} after {last!r}; sort them first")
        pair = scene_id if _PAIR.fullmatch(scene_id) else f"test_{len(scene_of):05d}"
        if pair in scene_of:
            raise DataError(f"{folder}: {scene_id!r} would be {pair}, as another scene is; submit them apart")
        for kind, mask in zip(KINDS, (localization, damage), strict=True):
            if mask.shape != metric.SHAPE or mask.dtype != np.uint8 or mask.max() > len(metric.CLASSES):
                raise DataError(
                    f"{scene_id}: expected a {kind} mask of 1024 x 1024 uint8 in 0..4, got {mask.shape} {mask.dtype} "
                    f"up to {mask.max(initial=0)}; the official scorer would refuse it"
                )
            raster.write_png(png_path(folder, pair, kind), mask)
        scene_of[pair] = scene_id

    yield add
    with whole_file(folder / SCENE_IDS) as file:
        csv.writer(file, lineterminator="\n").writerows([("scene_id", "pair"), *((s, p) for p, s in scene_of.items())])


def png_path(folder: Path, pair: str, kind: str) -> Path:
    """Return where a pair's mask lies: ("test_00000", "damage") -> folder/test_damage_00000_prediction.png."""
    split, number = pair.split("_")
    return Path(folder) / f"{split}_{kind}_{number}_prediction.png"


def read_pairs(folder: Path) -> dict[str, str]:
    """Return scene id -> pair from ``scene_ids.csv``. Raises DataError where it is missing or damaged."""
    rows = list(read_rows(Path(folder) / SCENE_IDS))
    if rows[:1] != [["scene_id", "pair"]] or any(len(row) != 2 or not _PAIR.fullmatch(row[1]) for row in rows[1:]):
        raise DataError(f"{Path(folder) / SCENE_IDS}: expected rows of scene_id,pair; write the submission again")
    return dict(rows[1:])


def read_png_pair(folder: Path, scene_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a scene's (localization, damage), (1024, 1024) uint8 each, back from what ``write_png_pairs`` wrote."""
    pair = scene_id if _PAIR.fullmatch(scene_id) else read_pairs(folder).get(scene_id)
    if pair is None:
        raise DataError(f"{folder}: expected {scene_id!r} in {SCENE_IDS}, found it not; write the submission again")
    localization, damage = (metric.read_mask(png_path(folder, pair, kind)) for kind in KINDS)
    return localization, damage


def zip_pngs(folder: Path, path: Path) -> None:
    """Pack the official PNGs of a folder, and nothing else, into an archive; equal PNGs give equal bytes."""
    names = sorted(file.name for file in Path(folder).iterdir() if _PNG_NAME.fullmatch(file.name))
    with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # else they depend on who packs
            archive.writestr(entry, (Path(folder) / name).read_bytes())  # stored: a PNG does not shrink further


def lint_png_pairs(folder: Path, pairs: Iterable[str] | None = None) -> list[str]:
    """Return what the official scorer would stop at or overlook in a folder, a sentence per kind of fault; [] if valid.

    ``pairs``: the pairs that must be there, as "test_00000"; without them, each PNG must have its partner.
    PNGs under other names are reported too: the official scorer would not see them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder}: expected a folder of PNGs, found none"]
    faults: dict[str, list[str]] = defaultdict(list)
    found = []
    for name in sorted(file.name for file in folder.glob("*.png")):
        if match := _PNG_NAME.fullmatch(name):
            found.append(f"{match[1]}_{match[3]}")
        else:
            faults["is not named like test_damage_00000_prediction.png, the official scorer overlooks it"].append(name)
    wanted = sorted(set(found) if pairs is None else set(pairs))
    if not wanted:
        return [f"{folder}: expected files like test_damage_00000_prediction.png, found none"]
    paths = [png_path(folder, pair, kind) for pair in wanted for kind in KINDS]
    with ThreadPoolExecutor(max_workers=2) as pool:
        for path, refusal in zip(paths, pool.map(lambda path: metric.inspect_mask(path)[1], paths), strict=True):
            if refusal:
                faults[refusal].append(path.name)
    return [sentence(folder, "file", kind, names) for kind, names in faults.items()]
