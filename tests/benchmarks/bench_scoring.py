"""Counts and scores of xView2 against the official script and against plain numpy.

The official script (``xview2_metrics.py`` of DIUx-xView/xView2_scoring) runs as it is, but with a serial loop for its
process pool where one thread is compared.
"""

import importlib.util
import os
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from lib.competitions.xview2 import metric as xview2
from tests.benchmarks.harness import Race, Side
from tests.benchmarks.made import tile


def rows(quick: bool) -> list[Race]:
    """Return the kernel, and folders with one and with two threads."""
    scenes = 2 if quick else 10
    return [
        Race("count one scene", _kernel, goals={"official": 4}, repeats=1 if quick else 20),
        *(Race(f"score a folder, a scene of 4 masks, {n} thread{'s' * (n > 1)}", partial(_folder, scenes, n),
               goals={"official": 6}, threads=n, per=scenes) for n in (1, 2)),
    ]  # fmt: skip


def _official() -> ModuleType | str:
    """Import the official script, or say why there is none."""
    if not (path := os.environ.get("XVIEW2_METRICS")):
        return "not given (--official FILE)"
    spec = importlib.util.spec_from_file_location("xview2_metrics", path)
    module = sys.modules["xview2_metrics"] = importlib.util.module_from_spec(spec)  # its processes import it by name
    spec.loader.exec_module(module)
    return module


# ---- counts -------------------------------------------------------------------------------------------
def _kernel(_: Path) -> dict[str, Side | str]:
    masks, official = tile(0), _official()
    return {
        "ours": lambda: xview2.count(*masks),
        "numpy": lambda: plain_count(*masks),
        "official": official if isinstance(official, str) else lambda: official_count(official, masks),
        "limit: read the masks": lambda: [cv2.norm(mask, cv2.NORM_INF) for mask in masks],
    }


def plain_count(lp: np.ndarray, dp: np.ndarray, lt: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Count with whole-mask comparisons, one per sum."""

    def sums(answer, truth, c):
        return [np.sum((answer == c) & (truth == c)), np.sum((answer == c) & (truth != c)),
                np.sum((answer != c) & (truth == c))]  # fmt: skip

    lp, lt, there = (np.where(mask > 0, 1, mask) for mask in (lp, lt, dt))
    graded, truth = (dp * lp)[there == 1], dt[there == 1]
    return np.array(sums(lp, lt, 1) + [n for c in (1, 2, 3, 4) for n in sums(graded, truth, c)])


def official_count(official: ModuleType, masks: tuple[np.ndarray, ...]) -> np.ndarray:
    """Let the official script count masks in memory: it gives tp, fn, fp of each part, ours is tp, fp, fn."""
    loc, damage = official.RowPairCalculator.get_row_pair(SimpleNamespace(load_images=lambda: masks))
    return np.array([*loc, *damage]).reshape(5, 3)[:, [0, 2, 1]].ravel()


# ---- folders ------------------------------------------------------------------------------------------
def _folder(scenes: int, threads: int, folder: Path) -> dict[str, Side | str]:
    predictions, targets = folder / "predictions", folder / "targets"
    predictions.mkdir(), targets.mkdir()
    paths = []
    for i in range(scenes):
        lp, dp, lt, dt = tile(i)
        for place, role, pair in ((predictions, "prediction", (lp, dp)), (targets, "target", (lt, dt))):
            for kind, mask in zip(("localization", "damage"), pair, strict=True):
                paths.append(place / f"test_{kind}_{i:05d}_{role}.png")
                cv2.imwrite(str(paths[-1]), mask)
    pixels = [_packed(path.read_bytes()) for path in paths]
    official = _official()
    peer = official if isinstance(official, str) else _official_folder(official, predictions, targets, threads)
    return {
        "ours": lambda: list(xview2.score_folder(predictions, targets, threads).values()),
        "plain": lambda: list(plain_folder(predictions, targets).values()),
        "official": peer,
        "limit: zlib alone, one thread": lambda: [zlib.decompress(packed) for packed in pixels],
    }


def _packed(png: bytes) -> bytes:
    """Return the compressed pixels of a PNG."""
    at, parts = 8, []
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        parts += [png[at + 8 : at + 8 + length]] * (name == b"IDAT")
        at += 12 + length
    return b"".join(parts)


def plain_folder(predictions: Path, targets: Path) -> dict[str, float]:
    """Score a folder one file after the other with PIL and a full check of the values."""

    def read(path):
        mask = np.array(Image.open(path))
        assert set(np.unique(mask)) <= {0, 1, 2, 3, 4}
        return mask

    numbers = sorted(path.name.split("_")[2] for path in targets.glob("*_damage_*"))
    counts = sum(
        plain_count(*(read(folder / f"test_{kind}_{number}_{role}.png")
                      for folder, role in ((predictions, "prediction"), (targets, "target"))
                      for kind in ("localization", "damage")))
        for number in numbers
    )  # fmt: skip
    return {key: float(value) for key, value in xview2.official(counts).items()}


def _official_folder(official: Any, predictions: Path, targets: Path, threads: int) -> Callable[[], list[float]]:
    """Return the official class on a folder, with its own pool of processes, or a serial loop for one thread."""
    pool = official.Pool

    def score() -> list[float]:
        official.Pool = _Serial if threads == 1 else partial(pool, threads)
        found = official.XviewMetrics(predictions, targets)
        return [found.score, found.df1, found.lf1, *found.df1s]

    return score


class _Serial:
    """What the official script uses of ``multiprocessing.Pool``, in this process."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def map(self, function, items):
        return [function(item) for item in items]
