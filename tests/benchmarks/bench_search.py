"""Cost of the whole decode grid against one point of it: ``python -m tests.benchmarks.bench_search [--size 1024]``.

Counts a scene for every point of a grid at once and, in turns with it, decodes and counts the same scene at single
points: with ``decode`` and ``count`` of this library, and plainly, in float32 masks. Prints the medians of CPU times
and of per-round ratios (one thread: set OMP_NUM_THREADS=1). All sides are checked to agree on those points.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial

import cv2
import numpy as np

from lib.competitions.xview2.decode import DEFAULTS, count_grid, decode
from lib.competitions.xview2.metric import count
from lib.ensemble.search import lattice

AXES = {
    "fuse": [0.0, 0.3, 0.5],
    "loc_threshold": [0.2, 0.25, 0.3, 0.34, 0.38, 0.42, 0.46, 0.5, 0.55, 0.6, 0.65, 0.7],
    "loc_threshold_damaged": [0.08, 0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.4],
    "damage_threshold": [0.2, 0.35, 0.5, 0.65],
    "w_minor": [0.6, 1.0, 1.5, 2.0, 3.0],
    "w_major": [0.6, 1.0, 1.5, 2.0, 3.0],
    "w_destroyed": [0.6, 1.0, 1.5, 2.0, 3.0],
}


def scene(size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make levels as an unsure network gives them (loc, cls) and the damage truth; about 13 % of it is building."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((size, size), np.uint8)
    while np.count_nonzero(truth) < 0.13 * truth.size:
        (row, column), (height, width) = rng.integers(0, size, 2), rng.integers(12, 48, 2)
        truth[row : row + height, column : column + width] = rng.choice([1, 1, 1, 2, 3, 4])

    def noise(sigma: float, strength: float) -> np.ndarray:
        field = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), sigma)
        return field * np.float32(strength / field.std())

    classes = np.stack([(truth == value).astype(np.float32) for value in range(5)])
    logits = np.stack([4 * cv2.GaussianBlur(plane, (0, 0), 3) + noise(9, 1.5) + noise(2, 0.3) for plane in classes])
    logits[0] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=0)
    building = 1 / (1 + np.exp(4 - 9 * cv2.GaussianBlur((truth > 0).astype(np.float32), (0, 0), 2) + noise(6, 1)))
    return np.rint(building[None] * 255).astype(np.uint8), np.rint(probs * 255).astype(np.uint8), truth


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


def seconds(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the CPU seconds of one call and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main(argv: list[str] | None = None) -> None:
    """Print points, cost of the grid, cost of one point and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)

    grid = lattice(AXES, DEFAULTS)
    loc, cls, truth = scene(options.size, seed=0)
    rng = np.random.default_rng(1)
    rows = []
    for point in rng.integers(len(grid), size=options.rounds):
        params = grid[point]
        naive, wanted = seconds(partial(plain, loc, cls, truth, params))
        one, expected = seconds(lambda params=params: count(*decode(loc, cls, params), truth, truth))
        everything, counts = seconds(partial(count_grid, loc, cls, truth, truth, grid))
        if not np.array_equal(counts[point], expected) or np.abs(counts[point] - wanted).max() > 1e-4 * truth.size:
            raise SystemExit(f"point {point}: the grid counts {counts[point]}, decode {expected}, plainly {wanted}")
        rows.append((everything, one, naive, everything / one, everything / naive))
    everything, one, naive, ratio, ratio_naive = np.median(rows, axis=0)
    print(f"{len(grid):,} points, {options.size} x {options.size}, {np.count_nonzero(truth) / truth.size:.0%} building")
    print(
        f"whole grid {everything * 1e3:.1f} ms = {ratio_naive:.1f} plain evaluations of one point "
        f"({naive * 1e3:.1f} ms) = {ratio:.1f} of decode and count ({one * 1e3:.1f} ms)"
    )


if __name__ == "__main__":
    main()
