"""From the rasters of levels to the raster of class numbers, block by block, on the cores of the CPU.

The blocks are those of the area, CORE pixels from its origin on, however it was cut into windows. Where decode settings
look at objects as a whole (votes, watershed, areas), a block is decoded together with HALO pixels around it. An object
that is no further across than that has one answer, the same as if the area were one scene; a larger one (a connected
row of roofs at the lowest level that steps grow to) may change its class at the border of a block. An area of at most
CORE + HALO pixels to a side is one block and is decoded just as a scene is.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.windows import Window
from tqdm import tqdm

from lib.competitions.contract import Competition
from lib.errors import ConfigError
from lib.maps.grid import Grid
from lib.maps.rasters import NODATA, WindowFile
from lib.maps.sources import environment
from lib.run import cores
from lib.scenes.probs import write_levels

if TYPE_CHECKING:
    from lib.run.executor import Pool

CORE = 2048
"""Sides of a block in pixels."""
HALO = 512
"""Pixels around a block that are decoded with it where settings look at objects."""


@dataclass(frozen=True)
class Decoding:
    """How the levels of an area become class numbers."""

    competition: Competition
    settings: Mapping[str, Any]
    grid: Grid
    levels: Mapping[str, list[Path]]
    """Task -> the raster of each of its classes."""
    folder: Path

    def parts(self) -> list[WindowFile]:
        """Return the blocks of the area; a rest that is no wider than HALO belongs to the block before it."""
        found = []
        for top, bottom in _cut(self.grid.height):
            for left, right in _cut(self.grid.width):
                window = Window(left, top, right - left, bottom - top)
                found.append(WindowFile(window, self.folder / f"{top}_{left}.tif"))
        return found

    @property
    def halo(self) -> int:
        """Pixels around a block that are decoded with it."""
        return 0 if self.competition.each_pixel_alone(self.settings) else HALO

    def write(self, part: WindowFile) -> None:
        """Decode one block and write its class numbers."""
        top, left = int(part.window.row_off), int(part.window.col_off)
        height, width = int(part.window.height), int(part.window.width)
        up, west = max(0, top - self.halo), max(0, left - self.halo)
        down, east = (min(self.grid.height, top + height + self.halo), min(self.grid.width, left + width + self.halo))
        around = Window(west, up, east - west, down - up)
        own = slice(top - up, top - up + height), slice(left - west, left - west + width)
        levels, valid = self._read(around)
        if valid[own].any():
            answer = self.competition.decode(levels, self.settings)
            numbers = np.where(valid, self.competition.class_raster(answer), np.uint8(NODATA))[own]
        else:
            numbers = np.full((height, width), NODATA, np.uint8)
        write_levels(part.path, numbers[None], ("class",))

    def _read(self, window: Window) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return task -> levels (C, h, w) uint8 of a window, and where they are valid, (h, w) bool."""
        found, valid = {}, np.zeros((int(window.height), int(window.width)), bool)
        with environment():
            for task, paths in self.levels.items():
                planes = []
                for path in paths:
                    with rasterio.open(path) as page:
                        planes.append(page.read(1, window=window))
                        if not valid.any():
                            valid = page.dataset_mask(window=window) > 0
                found[task] = np.stack(planes)
        return found, valid


def _cut(size: int) -> list[tuple[int, int]]:
    starts = [start for start in range(0, size, CORE) if not start or size - start > HALO]
    return list(zip(starts, [*starts[1:], size]))


def run(decoding: Decoding, pool: "Pool") -> list[WindowFile]:
    """Decode all blocks, which the pool shares; returns them."""
    decoding.folder.mkdir(parents=True, exist_ok=True)
    parts = decoding.parts()
    with closing(cores.share(pool, decoding, Decoding.write, [(part,) for part in parts])) as written:
        for _ in tqdm(written, "decode", len(parts), leave=False, disable=None):
            pass
    return parts


def refuse_scene_settings(competition: Competition, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a setting that is told from a scene's own levels: blocks of an area would differ in it."""
    for name, value in settings.items():
        if name in competition.settings and value in competition.settings[name].words:
            raise ConfigError(f"decode.{name}: expected a number for an area, got {value!r}, which is told from the "
                              f"levels of each scene; state one (--decode {name}=0.5)")  # fmt: skip
