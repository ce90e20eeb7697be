"""How far the images of an area lie beside each other: phase correlation (Kuglin and Hines 1975) block by block.

What houses and trees show before and after is alike enough for most blocks to agree on one shift, and those that do not
(water, clouds, ruins) are told by that. The field of shifts is written for a GIS; where it is applied, all of the later
image is moved by the median of the blocks that agree, so turns and bends stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rasterio import warp
from rasterio.crs import CRS
from rasterio.windows import Window

from lib.files import write_json
from lib.maps.grid import Grid
from lib.maps.sides import Side
from lib.scenes.place import applied

BLOCK = 512
"""Most sides of a block in pixels; of a small area a fourth of its shorter side, at least SMALLEST."""
SMALLEST = 64
ACROSS = 8
"""Most blocks in a row and in a column of blocks."""
KNOWN = 0.9
"""Share of a block that both images must show."""
AGREE = 1.5
"""Blocks agree whose shifts are within so many pixels of the median."""
ENOUGH, SHARE = 3, 0.3
"""So many blocks, and this share of all, must agree for a shift to be believed."""
SURE = 0.03
"""Least response of a block that may have a say; noise has about 0.02 on blocks of 512 pixels."""


@dataclass(frozen=True)
class Arrow:
    """What a block of the area says."""

    row: float
    column: float
    """Pixel of the grid in its middle."""
    right: float
    down: float
    """Pixels by which the later image shows things too far right and down."""
    response: float
    """How sharp the peak of the correlation is, about 0 (noise) to 1."""


@dataclass(frozen=True)
class Field:
    """The arrows of an area and what they come to."""

    grid: Grid
    arrows: Sequence[Arrow]

    @property
    def sure(self) -> list[Arrow]:
        """Return the arrows that may have a say."""
        return [arrow for arrow in self.arrows if arrow.response >= SURE]

    @property
    def median(self) -> tuple[float, float]:
        """Return the median (right, down) of the arrows that may have a say; 0 where there are none."""
        told = np.array([(arrow.right, arrow.down) for arrow in self.sure]).reshape(-1, 2)
        if not len(told):
            return 0.0, 0.0
        middle = np.median(told, axis=0)
        near = np.hypot(*(told - middle).T) <= 4 * AGREE
        middle = np.median(told[near], axis=0) if near.any() else middle
        return float(middle[0]), float(middle[1])

    def agrees(self, arrow: Arrow) -> bool:
        """Tell whether an arrow says what most say."""
        right, down = self.median
        return arrow.response >= SURE and float(np.hypot(arrow.right - right, arrow.down - down)) <= AGREE

    @property
    def shift(self) -> tuple[float, float] | None:
        """Return the shift (right, down) in pixels that enough blocks agree on; None where too few do."""
        agreed = [arrow for arrow in self.arrows if self.agrees(arrow)]
        return self.median if len(agreed) >= max(ENOUGH, SHARE * len(self.arrows)) else None

    def sentence(self, name: str) -> str:
        """Say what was found, ``name`` being the later image."""
        agreed = sum(self.agrees(arrow) for arrow in self.arrows)
        if not self.arrows:
            return "registration: not measured, since no block is shown by both images"
        if (shift := self.shift) is None:
            return (f"registration: not told, only {agreed} of {len(self.arrows)} blocks agree on a shift; compare the "
                    "images in a GIS")  # fmt: skip
        wide, high = self.grid.pixel
        east, south = shift[0] * wide, shift[1] * high
        return (f"registration: {name} lies {np.hypot(east, south):.2f} m beside the first image ({_way(east, 'east')}"
                f", {_way(-south, 'north')}), as {agreed} of {len(self.arrows)} blocks agree")  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the field as GeoJSON: an arrow from where a thing is in the first image to where the later one shows
        it, with its length in metres, its response and whether it agrees with the others."""
        wide, high = self.grid.pixel
        features = []
        for arrow in self.arrows:
            ends = [(arrow.column, arrow.row), (arrow.column + arrow.right, arrow.row + arrow.down)]
            x, y = applied(self.grid.transform, np.array(ends)).T
            longitude, latitude = warp.transform(self.grid.crs, CRS.from_epsg(4326), x, y)[:2]
            features.append({
                "type": "Feature",
                "geometry": {"type": "LineString", "coordinates": [list(end) for end in zip(longitude, latitude)]},
                "properties": {
                    "east_m": round(arrow.right * wide, 3),
                    "north_m": round(-arrow.down * high, 3),
                    "response": round(arrow.response, 4),
                    "agrees": self.agrees(arrow),
                },
            })  # fmt: skip
        write_json(path, {"type": "FeatureCollection", "features": features})


def _way(metres: float, name: str) -> str:
    opposite = {"east": "west", "north": "south"}[name]
    return f"{abs(metres):.2f} m to the {name if metres >= 0 else opposite}"


def measure(first: Side, later: Side, asked: Any) -> Field:
    """Compare two sides block by block where both show something; ``asked``: a polygon in the CRS of the grid."""
    grid = first.grid
    fits = [size for size in (BLOCK, BLOCK // 2, BLOCK // 4, SMALLEST) if 4 * size <= min(grid.shape)]
    size = fits[0] if fits else min(SMALLEST, *grid.shape)
    window = cv2.createHanningWindow((size, size), cv2.CV_32F)
    left, bottom, right, top = asked.bounds
    ends = applied(~grid.transform, np.array([(left, top), (right, bottom)]))
    columns = _places(max(0.0, ends[0][0]), min(grid.width, ends[1][0]), size)
    rows = _places(max(0.0, ends[0][1]), min(grid.height, ends[1][1]), size)
    arrows = []
    for row in rows:
        for column in columns:
            block = Window(column, row, size, size)
            (before, known), (after, seen) = first.read(block), later.read(block)
            both = known & seen
            if both.mean() < KNOWN:
                continue
            earlier, now = _grey(before, both), _grey(after, both)
            if min(float(earlier.std()), float(now.std())) < 1.0:  # one colour all over
                continue
            (dx, dy), response = cv2.phaseCorrelate(earlier, now, window)
            arrows.append(Arrow(row + size / 2, column + size / 2, dx, dy, float(response)))
    return Field(grid, arrows)


def _places(low: float, high: float, size: int) -> list[int]:
    """Spread blocks evenly from one end to the other."""
    room = max(0, int(high - low) - size)
    count = max(1, min(ACROSS, 1 + room // size))
    return sorted({int(low) + round(place) for place in np.linspace(0, room, count)})


def _grey(pixels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return brightness as (h, w) float32, that of what is not known being the mean of the rest."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey[~known] = grey[known].mean()
    return grey
