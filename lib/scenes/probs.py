"""Keep what a network says of one scene on disk, in one tiled GeoTIFF per scene: levels, uint8 with level / 255 =
probability, or a teacher's logits, float16.

Bands are named by ``task.classes``, ZSTD with predictor 2: levels take a fifth of half floats and open in QGIS. More
than MANY classes of a label are not bands, each of which would cost a tile, but the rows of one band.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from lib.errors import ArtifactError, DataError, NonFiniteError
from lib.files import parse_json, write_bytes
from lib.scenes.georeference import Location
from lib.settings import some

CREATION = {
    "driver": "GTiff",
    "dtype": "uint8",
    "photometric": "MINISBLACK",
    "interleave": "band",
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "ZSTD",
    "zstd_level": 1,
    "predictor": 2,
}


def quantise(probs: np.ndarray, truncate: bool = False) -> np.ndarray:
    """Round probs (any shape, float in [0, 1]) to levels (uint8, level / 255).

    Rounding, not truncation as in the 2020 codes: their ``astype(uint8)`` lowers probabilities by 0.002 on average.
    Raises NonFiniteError for NaN and for values further outside [0, 1] than float rounding explains.
    """
    low, high = probs.min(initial=0), probs.max(initial=0)
    if not (low > -1e-3 and high < 1 + 1e-3):  # written so that NaN fails too
        raise NonFiniteError(
            f"probabilities: expected values in [0, 1], got {low} .. {high}; check the network's weights and precision"
        )
    levels = probs * np.float32(255)
    if truncate:
        return levels.astype(np.uint8)
    return np.rint(levels, out=levels).astype(np.uint8)


SUFFIX = ".tif"
MANY = 254
"""From more classes than this on, channels are rows of one band, and their names are in the tag CHANNELS."""
CHANNELS = "channels"
SHOWN = 20
"""Of more classes than this the first are named in a message."""
HALF = np.finfo(np.float16)


def write_levels(path: str | Path, probs: np.ndarray, names: Sequence[str], place: Location | None = None) -> None:
    """Write probs (C, H, W), float in [0, 1] or levels uint8, whole or not at all; ``names`` are the C channels.

    ``place``: where the pixels lie, which the file tells then; one of another size is left out.
    Raises NonFiniteError for values outside [0, 1], ValueError when names and channels differ.
    """
    levels = probs if probs.dtype == np.uint8 else quantise(probs)
    if levels.ndim != 3 or len(names) != len(levels):
        raise ValueError(f"{path}: expected (C, H, W) with one name per channel, got {levels.shape} and {list(names)}")
    lies = {"crs": place.crs, "transform": place.affine} if place and place.size == levels.shape[1:] else {}
    _write(path, levels, names, **lies)


def read_levels(path: str | Path, expected: Sequence[str] | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read levels (C, H, W) uint8 and the names of the channels.

    Raises ArtifactError when missing or damaged, and for other channels than those that are ``expected``.
    """
    levels, names = _read(path, "probabilities", np.uint8)
    if expected is not None:
        refuse_other_classes(path, names, expected)
    return levels, names


def refuse_other_classes(path: str | Path, names: Sequence[str], expected: Sequence[str]) -> None:
    """Raise ArtifactError for results of other classes than the experiment's, or of the same in another order."""
    if tuple(names) != tuple(expected):
        raise ArtifactError(f"{path}: expected the classes of this experiment ({some(expected, SHOWN)}), found others "
                            f"({some(names, SHOWN)}); state those that it was made with, or make it anew")  # fmt: skip


def write_logits(path: str | Path, logits: np.ndarray, names: Sequence[str]) -> None:
    """Write logits (C, H, W), any float dtype, as float16, whole or not at all; ``names`` are the C channels.

    Values beyond float16's range are kept at its ends. Raises NonFiniteError for NaN and infinity.
    """
    if not np.isfinite(logits).all():
        raise NonFiniteError(f"{path}: logits: expected finite numbers; check the network's weights and precision")
    halves = np.clip(logits, HALF.min, HALF.max).astype(np.float16)
    _write(path, halves.astype(np.float32), names, dtype="float32", nbits=16)  # GDAL's way to say float16


def read_logits(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read logits (C, H, W) float16 and the names of the channels. Raises ArtifactError when missing or damaged."""
    logits, names = _read(path, "logits", np.float32)
    return logits.astype(np.float16), names


def _write(path: str | Path, planes: np.ndarray, names: Sequence[str], **more: Any) -> None:
    options, tags = CREATION | more, {}
    if len(planes) > MANY:
        tags = {CHANNELS: json.dumps(list(names), ensure_ascii=False)}
        planes, names = planes.reshape(1, -1, planes.shape[-1]), (CHANNELS,)  # (1, C * H, W)
    count, height, width = planes.shape
    with rasterio.MemoryFile() as memory:  # GDAL itself does not always say that a disk is full
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(count=count, height=height, width=width, **options) as file:
                if tags:
                    file.update_tags(**tags)
                file.descriptions = tuple(names)  # before the pixels: afterwards the header would be written twice
                file.write(planes)
        write_bytes(path, memory.getbuffer())


def _read(path: str | Path, what: str, dtype: type) -> tuple[np.ndarray, tuple[str, ...]]:
    advice = "build it again with --force"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                planes, names, tags = file.read(), file.descriptions, file.tags()
        if CHANNELS in tags:
            names = tuple(parse_json(tags[CHANNELS]))
            planes = planes.reshape(len(names), -1, planes.shape[-1])
    except (RasterioError, OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: expected a GeoTIFF of {what}, got {error}; {advice}") from error
    if planes.dtype != dtype or None in names:
        raise ArtifactError(
            f"{path}: expected {dtype.__name__} bands with names, got {planes.dtype} bands {names}; {advice}"
        )
    return planes, names


def file_name(scene_id: str) -> str:
    """Return the file name of a scene's probabilities; an id that would leave its folder is refused with DataError."""
    if not scene_id or scene_id.startswith(".") or "/" in scene_id or "\\" in scene_id or "\0" in scene_id:
        raise DataError(f"scene id {scene_id!r}: cannot be a file name; rename the scene")
    return f"{scene_id}{SUFFIX}"


def levels_path(folder: Path, sets: Sequence[str], views: str, scene_id: str) -> Path:
    """Return where stage 04 has a scene's levels of one of its ``sets`` of views; several sets have a folder each."""
    return (folder if len(sets) == 1 else folder / views) / file_name(scene_id)
