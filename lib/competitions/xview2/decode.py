"""Join building and damage probabilities into the xView2 answer, for one setting or exactly for a whole grid of them.

Inputs are levels (level / 255 = probability): loc (1, H, W) uint8 is the building; cls (5, H, W) uint8 are background,
no-damage, minor-damage, major-damage, destroyed. The answer is localization (H, W) uint8 in {0, 1} and damage (H, W)
uint8 in {0 .. 4}. ``count_grid`` and ``decode`` share every comparison, so they agree to the last pixel.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

from lib.competitions.decoding import Setting, threshold_level
from lib.competitions.xview2 import objects
from lib.competitions.xview2.postprocess import Decoded, watershed_vote
from lib.ensemble.blend import blend
from lib.ensemble.search import Lattice
from lib.errors import ConfigError

HEAVIEST = 1000
"""The largest factor on a class: 255 * 1000 * HEAVIEST fits int32."""

SETTINGS: dict[str, Setting] = {
    "object_seed": Setting(0.0, "damage is averaged over objects grown from building levels of at least this; 0: per "
                                "pixel", high=1),
    "fuse": Setting(0.0, "share of the damage net's opinion (1 - background) in the building probability", high=1),
    "loc_threshold": Setting(0.5, "a building from here on", high=1),
    "loc_threshold_damaged": Setting(0.5, "a building already from here on where damage is likely (no effect if not "
                                          "lower)", high=1),
    "damage_threshold": Setting(0.5, "damage is likely from here on: minor + major + destroyed", high=1),
    "w_minor": Setting(1.0, "factor on the class probability before the argmax; no-damage has 1", high=HEAVIEST),
    "w_major": Setting(1.0, "as w_minor", high=HEAVIEST),
    "w_destroyed": Setting(1.0, "as w_minor", high=HEAVIEST),
    "preset": Setting(None, "another rule instead of all these settings", choices=("selim2020",)),
}  # fmt: skip
"""What ``decode`` can be told."""
DEFAULTS: dict[str, float] = {name: s.default for name, s in SETTINGS.items() if s.default is not None}
"""The values that mean "no search has run"."""

COUNTS = 15
"""Per scene: true positives, false positives, false negatives of the building, then of damage classes 1 to 4."""

_MAX_CALLED = 50_000_000  # threshold triples times cells: 200 MB of float32


def class_gain(weight: float) -> int:
    """Return a class weight in whole thousandths, so that equal products are equal and go to the lower class."""
    return round(Fraction(str(weight)) * 1000)


def decode(loc: np.ndarray, cls: np.ndarray, params: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Decode one scene with one setting; ``params`` has all keys of ``DEFAULTS``, each within its range in SETTINGS.

    building = L >= loc_threshold, or L >= loc_threshold_damaged where D >= damage_threshold, with L the building level
    fused from both nets and D the summed level of the three damaged classes (capped at 255): the rule of the 1st
    place of xView2 2020. Damage is the weighted argmax of the four classes, 0 outside buildings.
    Returns (localization, damage), both (H, W) uint8. Raises ValueError on arrays.
    """
    _check_levels(loc, cls)
    cls = _pooled(loc, cls, params["object_seed"])
    fused = _building_level(loc[0], cls[0], params["fuse"])
    building = fused >= threshold_level(params["loc_threshold"])
    building |= (fused >= threshold_level(params["loc_threshold_damaged"])) & (
        _damaged_level(cls) >= threshold_level(params["damage_threshold"])
    )
    gains = [class_gain(1), *(class_gain(params[name]) for name in ("w_minor", "w_major", "w_destroyed"))]
    inside = np.flatnonzero(building)
    damage = np.zeros(building.shape, np.uint8)
    damage.put(inside, 1 + _heaviest_class(cls[1:].reshape(4, -1).take(inside, axis=1), gains)[0])
    return building.view(np.uint8), damage


def selim2020(loc: np.ndarray, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decode as the 2nd place of xView2 2020 did, constants, float64 arithmetic and watershed vote included.

    The background gets 0.8 (1 - sum of damage) against the four classes, of which the damaged three count double; a
    building is where that argmax is a class or loc > 0.25. The damage label is the argmax of the unscaled four and is
    written everywhere: the official scorer ignores it outside buildings. Feed it levels that were blended with
    ``truncate=True`` from truncated predictions, as his were. Source: selimsef/xview2_solution, predict_single.py.
    Returns (localization, damage), both (H, W) uint8. Raises ValueError on arrays.
    """
    _check_levels(loc, cls)
    none, minor, major, destroyed = cls[1:] / 255.0
    background = 0.8 * (1 - (none + minor + major + destroyed))  # the order of the sum decides ties, as it did for him
    strongest = np.maximum(none, 2.0 * np.maximum(np.maximum(minor, major), destroyed))
    localization = ((strongest > background) | (loc[0] / 255.0 > 0.25)).view(np.uint8)
    damage = cls[1:].argmax(axis=0).astype(np.uint8) + np.uint8(1)
    return watershed_vote(Decoded(localization, damage, loc[0], cls), faithful=True)[:2]


def count_grid(
    loc: np.ndarray, cls: np.ndarray, loc_truth: np.ndarray, damage_truth: np.ndarray, lattice: Lattice
) -> np.ndarray:
    """Count one scene for every point of a lattice at once: (P, 15) int64, exact for the official metric.

    loc_truth, damage_truth: (H, W) integer, above 0 = building, damage 0 .. 4. Layout of the counts: ``COUNTS``.
    Raises ConfigError on too many thresholds, ValueError on arrays.

    All counts but those of false negatives are sums over the pixels called building, so a pixel matters only through
    the cell it lies in (between which thresholds L and D fall) and its class under each weight vector. Pixels are
    counted into a table (cell, weight vector, count) once per ``fuse``; a 0/1 matrix that says which cells each
    threshold triple calls building turns the table into the counts of all points in one product.
    """
    _check_levels(loc, cls)
    if loc_truth.shape != loc.shape[1:] or damage_truth.shape != loc.shape[1:]:
        raise ValueError(
            f"count_grid: expected truth of shape {loc.shape[1:]}, got {loc_truth.shape} for localization "
            f"and {damage_truth.shape} for damage"
        )
    if damage_truth.size and damage_truth.max() > 4:
        raise ValueError(f"count_grid: expected damage truth in 0..4, got {damage_truth.max()}")
    axes = {name: lattice.axes.get(name, (lattice.defaults[name],)) for name in DEFAULTS}
    cells = _Cells(axes)
    pixels = _Pixels(loc, cls[0], loc_truth, damage_truth, cells)
    counts = np.empty((*(len(values) for values in axes.values()), COUNTS), np.int64)
    for counted, seed in zip(counts, axes["object_seed"]):
        pixels.count(_pooled(loc, cls, seed), counted.reshape(len(cells.fuses), len(cells.called), -1))
    asked = [list(axes).index(name) for name in lattice.axes]
    fixed = [i for i, name in enumerate(axes) if name not in lattice.axes]
    return counts.transpose(*asked, *fixed, len(axes)).reshape(len(lattice), COUNTS)


class _Pixels:
    """The pixels of a scene that some point calls building, and all of them that does not depend on ``object_seed``."""

    def __init__(
        self, loc: np.ndarray, background: np.ndarray, loc_truth: np.ndarray, damage_truth: np.ndarray, cells: "_Cells"
    ):
        self._cells = cells
        self._exact = np.float32 if loc.size < 1 << 24 else np.float64  # holds every whole number that can occur
        # the fused level never exceeds the larger of its two parts
        reach = np.maximum(loc[0], ~background).ravel()
        self._places = np.flatnonzero(reach >= cells.loc_edges[0])
        loc_pixels, no_building = loc.ravel().take(self._places), background.ravel().take(self._places)
        self._is_building = loc_truth.ravel().take(self._places) > 0
        graded = damage_truth.ravel().take(self._places)
        self._damaged = np.flatnonzero(graded > 0)  # only these count for damage: 1 pixel of 10
        self._damage = graded.take(self._damaged) - 1
        self._steps = [cells.loc_step.take(_building_level(loc_pixels, no_building, fuse)) for fuse in cells.fuses]
        self._missed = np.zeros((5, 3), self._exact)  # what holds at every point
        self._missed[0, 2] = np.count_nonzero(loc_truth)
        self._missed[1:, 2] = np.bincount(damage_truth[damage_truth > 0].ravel(), minlength=5)[1:]

    def count(self, cls: np.ndarray, counts: np.ndarray) -> None:
        """Count for all shares, threshold triples and weight vectors, and damage classes (5, H, W) uint8.

        Fills ``counts`` (fuse, threshold triple, weight vector x count) int64.
        """
        cells, exact = self._cells, self._exact
        base = cells.damage_step.take(_damaged_level(cls).ravel().take(self._places)) + self._is_building
        class_levels = cls[1:].reshape(4, -1).take(self._places.take(self._damaged), axis=1)
        classes = _ClassCounter(class_levels, self._damage, cells, exact)
        called = cells.called.astype(exact)
        table = np.zeros((1 + cells.number, classes.vectors, COUNTS), exact)
        table[0] = self._missed.ravel()
        pair_to_counts = _pair_to_counts().astype(exact)
        for counted, step in zip(counts, self._steps):
            key = step + base  # 2 * cell + is building
            building = np.bincount(key, minlength=2 * cells.number).reshape(-1, 1, 2)
            table[1:, :, 0], table[1:, :, 1], table[1:, :, 2] = building[..., 1], building[..., 0], -building[..., 1]
            pairs = classes.count(key.take(self._damaged).astype(np.intp) // 2)  # (weights, cell, truth x prediction)
            table[1:, :, 3:] = (pairs @ pair_to_counts).swapaxes(0, 1)
            counted[...] = called @ table.reshape(1 + cells.number, -1)


class _Cells:
    """The cells that a grid's thresholds cut the plane (L, D) into, and which of them each point calls building.

    Beside them what else a grid tries: ``fuses``, and in ``gains`` the weights of each class in thousandths.
    """

    def __init__(self, axes: Mapping[str, tuple[float, ...]]):
        if faults := threshold_faults(axes):
            raise ConfigError(faults[0])
        self.fuses, weights = axes["fuse"], ((1.0,), axes["w_minor"], axes["w_major"], axes["w_destroyed"])
        self.gains = [[class_gain(weight) for weight in tried] for tried in weights]
        low, high, damage, self.loc_edges, damage_edges = _edges(axes)
        n_loc, n_damage = len(self.loc_edges) + 1, len(damage_edges) + 1
        self.number = n_loc * n_damage
        loc_from = np.concatenate([[-1], self.loc_edges])[:, None]  # lowest L of a cell; (n_loc, 1)
        damage_from = np.concatenate([[-1], damage_edges])[None, :]  # lowest D of a cell; (1, n_damage)
        called = (loc_from >= high[:, None, None, None, None]) | (
            (loc_from >= low[:, None, None, None]) & (damage_from >= damage[:, None, None])
        )  # (loc_threshold, loc_threshold_damaged, damage_threshold, n_loc, n_damage)
        called = called.reshape(-1, self.number)
        self.called = np.column_stack([np.ones(len(called)), called])  # (threshold triple, 1 + cell) float64
        narrow, levels = np.min_scalar_type(2 * self.number), np.arange(256)
        # twice the cell of a pixel is loc_step[L] + damage_step[D]
        self.loc_step = (2 * n_damage * np.searchsorted(self.loc_edges, levels, side="right")).astype(narrow)
        self.damage_step = (2 * np.searchsorted(damage_edges, levels, side="right")).astype(narrow)


def threshold_faults(axes: Mapping[str, Sequence[float]]) -> list[str]:
    """Return what is wrong with the number of thresholds of a search, whose table would be too large to hold."""
    low, high, damage, loc_edges, damage_edges = _edges(
        {name: (s.default,) for name, s in SETTINGS.items()} | dict(axes)
    )
    cells = (len(loc_edges) + 1) * (len(damage_edges) + 1)
    if cells * len(high) * len(low) * len(damage) <= _MAX_CALLED:
        return []
    return [f"search: expected fewer thresholds, got {len(high)} loc_threshold x {len(low)} loc_threshold_damaged "
            f"x {len(damage)} damage_threshold values; halve the longest of them"]  # fmt: skip


def _edges(axes: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, ...]:
    """Return the levels of loc_threshold_damaged, loc_threshold and damage_threshold, then where L and D are cut."""
    names = ("loc_threshold_damaged", "loc_threshold", "damage_threshold")
    low, high, damage = (np.array([threshold_level(t) for t in axes[name]]) for name in names)
    return low, high, damage, np.unique([*low, *high]), np.unique(damage)


class _ClassCounter:
    """Counts truth against predicted class per cell under all weight vectors.

    Most pixels are settled: one class wins under every weight vector. The others are compared for each weight of minor
    and major; along the weights of destroyed it is enough to know from which weight on destroyed wins.
    """

    def __init__(self, levels: np.ndarray, truth: np.ndarray, cells: _Cells, exact: type):
        """levels: (4, N) uint8; truth: (N,) uint8 in 0..3; exact: the float type to count in."""
        gains = cells.gains
        _, minor, major, destroyed = gains
        self.vectors = len(minor) * len(major) * len(destroyed)
        self._pairs = len(minor) * len(major)
        self._rank = np.argsort(np.argsort(destroyed, kind="stable"))  # place of each weight among the sorted ones
        self._cells, self._exact = cells.number, exact

        settled, winner = _settled_class(levels, gains)
        self._settled, self._open = np.flatnonzero(settled), np.flatnonzero(~settled)
        self._settled_code = truth.take(self._settled) * 4 + winner.take(self._settled)
        self._open_truth = truth.take(self._open)

        products = levels.take(self._open, axis=1).astype(np.int32)  # (4, M)
        last = [products[3] * np.int32(gain) for gain in np.sort(destroyed)]
        self._codes = np.empty((self._pairs, len(self._open)), np.int32)  # weights held out, best of the first three
        for i, gain in enumerate(minor):
            first_two = _heaviest_class(products[:2], [gains[0][0], gain])
            for code, gain in zip(self._codes[i * len(major) :], major):
                best, strength = _challenge(*first_two, products[2] * np.int32(gain), 2)
                held_out = np.zeros(len(best), np.uint16)
                for product in last:
                    held_out += product <= strength
                np.multiply(held_out, cells.number * 12, out=code, dtype=np.int32)
                code += best

    def count(self, cell: np.ndarray) -> np.ndarray:
        """Return (weight vector, cell, 16), last axis truth * 4 + prediction, for the pixels' cells (N,) int64."""
        steps = len(self._rank)
        held: np.ndarray = np.empty((self._pairs, (steps + 1) * self._cells * 12), self._exact)
        base = (cell.take(self._open) * 4 + self._open_truth) * 3
        for row, code in zip(held, self._codes):
            row[:] = np.bincount(base + code, minlength=row.size)
        held = held.reshape(self._pairs, steps + 1, self._cells * 4, 3)
        lost = held.cumsum(axis=1)  # [:, s]: the s-th smallest weight of destroyed beats those that held out at most s
        kept, lost = lost[:, -1:] - lost[:, :-1], lost[:, :-1]

        counted: np.ndarray = np.empty((self._pairs, steps, self._cells * 4, 4), self._exact)
        counted[..., :3] = kept
        counted[..., 3] = lost[..., 0] + lost[..., 1] + lost[..., 2]
        settled = np.bincount(cell.take(self._settled) * 16 + self._settled_code, minlength=self._cells * 16)
        counted += settled.reshape(self._cells * 4, 4)
        return counted.take(self._rank, axis=1).reshape(self.vectors, self._cells, 16)


_last = objects.LastScene()


def _pooled(loc: np.ndarray, cls: np.ndarray, seed: float) -> np.ndarray:
    """Average the damage classes over objects grown from building levels of at least ``seed``; 0 leaves them alone."""
    if not seed:
        return cls
    level = threshold_level(seed)
    return _last.get(level, lambda: np.concatenate([cls[:1], objects.pool(cls[1:], objects.segment(loc[0], level))]),
                     loc, cls)  # fmt: skip


def _building_level(loc: np.ndarray, background: np.ndarray, fuse: float) -> np.ndarray:
    """Fuse both nets' building levels: round((1 - fuse) loc + fuse (255 - background)), half up."""
    share = Fraction(str(fuse))
    return blend([loc, ~background], [1 - share, share])


def _damaged_level(cls: np.ndarray) -> np.ndarray:
    """Sum the levels of the three damaged classes; roundings may carry the sum above 255, where it is capped."""
    return cv2.add(cv2.add(cls[2], cls[3]), cls[4])  # saturates


def _heaviest_class(levels: np.ndarray, gains: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted argmax over classes (N,) uint8 and its product (N,) int32; ties go to the lowest class."""
    best, strength = np.zeros(levels.shape[1], np.uint8), np.multiply(levels[0], gains[0], dtype=np.int32)
    for index in range(1, len(gains)):
        best, strength = _challenge(best, strength, np.multiply(levels[index], gains[index], dtype=np.int32), index)
    return best, strength


def _challenge(
    best: np.ndarray, strength: np.ndarray, product: np.ndarray, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Let one more class compete with the best so far: only a larger product wins."""
    return np.where(product > strength, np.uint8(index), best), np.maximum(strength, product)


def _pair_to_counts() -> np.ndarray:
    """Say what a pixel of (truth, prediction) adds to each class's tp, fp and fn: (16, 12); a hit takes back a miss."""
    adds = np.zeros((4, 4, 4, 3))  # (truth, prediction, class, count)
    for label in range(4):
        adds[:, label, label, 1] = 1
        adds[label, label, label] = 1, 0, -1
    return adds.reshape(16, 12)


def _settled_class(levels: np.ndarray, gains: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Say where one class wins under all weights, at its own lowest against the others' highest, and which."""
    weakest = [np.multiply(plane, min(tried), dtype=np.int32) for plane, tried in zip(levels, gains)]
    strongest = [np.multiply(plane, max(tried), dtype=np.int32) for plane, tried in zip(levels, gains)]
    settled, winner = np.zeros(levels.shape[1], bool), np.zeros(levels.shape[1], np.uint8)
    for index in range(4):
        wins = np.ones(levels.shape[1], bool)
        for other in range(4):
            if other < index:
                wins &= weakest[index] > strongest[other]
            elif other > index:
                wins &= weakest[index] >= strongest[other]
        settled |= wins
        winner[wins] = index
    return settled, winner


def _check_levels(loc: np.ndarray, cls: np.ndarray) -> None:
    if loc.dtype != np.uint8 or cls.dtype != np.uint8 or loc.shape[0] != 1 or cls.shape != (5, *loc.shape[1:]):
        raise ValueError(
            f"decode: expected loc (1, H, W) and cls (5, H, W) uint8, got {loc.shape} {loc.dtype} "
            f"and {cls.shape} {cls.dtype}"
        )
