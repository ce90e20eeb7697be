"""The whole decode grid of xView2 on one scene against single points of it.

A point that is decoded and counted, with this library or plainly in float32 masks, gives the counts of one point; the
grid gives those of all. All sides agree on the point that they share.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from lib.competitions.xview2.decode import DEFAULTS, count_grid, decode
from lib.competitions.xview2.metric import count
from lib.ensemble.search import lattice
from tests.benchmarks.harness import Race, Side

AXES = {
    "fuse": [0.0, 0.3, 0.5],
    "loc_threshold": [0.2, 0.25, 0.3, 0.34, 0.38, 0.42, 0.46, 0.5, 0.55, 0.6, 0.65, 0.7],
    "loc_threshold_damaged": [0.08, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.4],
    "damage_threshold": [0.2, 0.35, 0.5, 0.65],
    "w_minor": [0.6, 1.0, 1.5, 2.0, 3.0],
    "w_major": [0.6, 1.0, 1.5, 2.0, 3.0],
    "w_destroyed": [0.6, 1.0, 1.5, 2.0, 3.0],
}
POINTS = 8
"""Of the grid, spread over it, on which the sides must agree."""


def rows(quick: bool) -> list[Race]:
    """Return the grid of some 135,000 points on a scene of 1024 x 1024."""
    size = 128 if quick else 1024
    return [Race(f"count {len(lattice(AXES, DEFAULTS)):,} points of a scene of {size:,} x {size:,}",
                 partial(_grid, size), goals={f"decode and count {POINTS} points": POINTS / 6}, agree=_agree,
                 rounds=1 if quick else 7)]  # fmt: skip


def _grid(size: int, _: Path) -> dict[str, Side | str]:
    grid, (loc, cls, truth) = lattice(AXES, DEFAULTS), scene(size, seed=0)
    points = np.random.default_rng(1).integers(len(grid), size=POINTS)
    return {
        "ours": lambda: count_grid(loc, cls, truth, truth, grid)[points],
        f"decode and count {POINTS} points": lambda: np.array(
            [count(*decode(loc, cls, grid[point]), truth, truth) for point in points]
        ),
        f"plainly {POINTS} points": lambda: np.array([plain(loc, cls, truth, grid[point]) for point in points]),
        "limit: read the levels": lambda: [cv2.norm(plane, cv2.NORM_INF) for plane in (*loc, *cls, truth)],
    }


def _agree(ours: np.ndarray, other: np.ndarray) -> bool:
    """Counts are equal, but plainly by 1e-4 of the pixels, for float32 rounds where ours are whole levels."""
    pixels = ours[:, [0, 2]].sum() + 1
    return np.array_equal(ours, other) or bool(np.abs(ours - other).max() <= 1e-3 * pixels)


def scene(size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make levels as an unsure network gives them (loc, cls) and the damage truth; about 13 % of it is building."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((size, size), np.uint8)
    while np.count_nonzero(truth) < 0.13 * truth.size:
        (row, column), (height, width) = rng.integers(0, size, 2), rng.integers(12, 48, 2)
        truth[row : row + height, column : column + width] = rng.choice([1, 1, 1, 2, 3, 4])
    return *levels(truth, rng), truth


def levels(truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make levels as an unsure network gives them, (1, H, W) and (5, H, W) uint8, for a damage truth (H, W) uint8."""

    def noise(sigma: float, strength: float) -> np.ndarray:
        field = cv2.GaussianBlur(rng.standard_normal(truth.shape, np.float32), (0, 0), sigma)
        return field * np.float32(strength / field.std())

    classes = np.stack([(truth == value).astype(np.float32) for value in range(5)])
    logits = np.stack([4 * cv2.GaussianBlur(plane, (0, 0), 3) + noise(9, 1.5) + noise(2, 0.3) for plane in classes])
    logits[0] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=0)
    building = 1 / (1 + np.exp(4 - 9 * cv2.GaussianBlur((truth > 0).astype(np.float32), (0, 0), 2) + noise(6, 1)))
    return np.rint(building[None] * 255).astype(np.uint8), np.rint(probs * 255).astype(np.uint8)


def plain(loc: np.ndarray, cls: np.ndarray, truth: np.ndarray, params: Mapping[str, float]) -> np.ndarray:
    """Decode and count one point as one would write it down: whole arrays, one mask per class and count."""
    probs = cls.astype(np.float32) / 255
    fused = np.floor((1 - params["fuse"]) * loc[0] + params["fuse"] * (255.0 - cls[0]) + 0.5 + 1e-9) / 255
    likely = np.minimum(probs[2:].sum(axis=0), 1) >= params["damage_threshold"]
    building = (fused >= params["loc_threshold"]) | ((fused >= params["loc_threshold_damaged"]) & likely)
    weights = np.array([1, params["w_minor"], params["w_major"], params["w_destroyed"]], np.float32)
    damage = np.where(building, 1 + np.argmax(probs[1:] * weights[:, None, None], axis=0), 0)
    masks = [(building, truth > 0), *(((damage == c) & (truth > 0), truth == c) for c in (1, 2, 3, 4))]
    return np.array([((p & t).sum(), (p & ~t).sum(), (~p & t).sum()) for p, t in masks]).ravel()
