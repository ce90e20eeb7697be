"""Time counting, scoring of folders and run-length text against straightforward versions of the same work.

Run from the repository's root: ``python tests/benchmarks/bench_scoring.py``. Candidates take turns; each row gives the
median CPU milliseconds of both and the median of their ratios per round. Nothing is asserted but equal results.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lib.competitions.xview2 import metric as xview2
from lib.scenes import rle


def smooth_mask(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw (size, size) uint8 of 0 and 1 with round shapes over a share of the pixels."""
    noise = cv2.GaussianBlur(rng.random((size // 8, size // 8), dtype=np.float32), (0, 0), 1.5)
    noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return (noise > np.quantile(noise[::5, ::5], 1 - share)).astype(np.uint8)


def tile(seed: int) -> tuple[np.ndarray, ...]:
    """Draw the four masks of a scene: 13 % buildings, an answer that is a few pixels off, all classes."""
    rng = np.random.default_rng(seed)
    lt = smooth_mask(rng, 1024, 0.13)
    grades = np.kron(rng.integers(1, 5, (16, 16)), np.ones((64, 64), int)).astype(np.uint8)
    lp = np.roll(lt, 3, axis=1)
    return lp, np.where(rng.random((1024, 1024)) < 0.9, grades, 2).astype(np.uint8) * lp, lt, grades * lt


def plain_count(lp: np.ndarray, dp: np.ndarray, lt: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Count with whole-mask comparisons, one per sum, as the official script goes about it."""

    def sums(answer, truth, c):
        return [np.sum((answer == c) & (truth == c)), np.sum((answer == c) & (truth != c)),
                np.sum((answer != c) & (truth == c))]  # fmt: skip

    lp, lt, there = (np.where(mask > 0, 1, mask) for mask in (lp, lt, dt))
    graded, truth = (dp * lp)[there == 1], dt[there == 1]
    return np.array(sums(lp, lt, 1) + [n for c in (1, 2, 3, 4) for n in sums(graded, truth, c)])


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


def plain_encode(mask: np.ndarray) -> str:
    """Encode as the snippet in most Kaggle notebooks does: pad, compare, join."""
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def plain_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Decode as most Kaggle notebooks do: one slice per run; contiguous, as ours is."""
    numbers = np.asarray(text.split(), dtype=int)
    pixels = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(numbers[0::2] - 1, numbers[1::2], strict=True):
        pixels[start : start + length] = 1
    return np.ascontiguousarray(pixels.reshape(shape[::-1]).T)


def race(name: str, plain: Callable, ours: Callable, repeats: int, rounds: int = 5, clock=time.process_time) -> None:
    """Print milliseconds of both, taking turns."""
    assert np.array_equal(plain(), ours())
    times = np.empty((rounds, 2))
    for row in range(rounds):
        for column, run in list(enumerate((plain, ours)))[:: 1 - 2 * (row % 2)]:
            start = clock()
            for _ in range(repeats):
                run()
            times[row, column] = (clock() - start) / repeats * 1000
    slow, fast = np.median(times, axis=0)
    ratio = np.median(times[:, 0] / times[:, 1])
    print(f"{name:46} {slow:10.2f} {fast:10.2f} {ratio:8.1f}x", flush=True)


def main() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    print(f"{'':46} {'plain ms':>10} {'ours ms':>10} {'ratio':>9}")
    masks = tile(0)
    race("count, one 1024 x 1024 scene", lambda: plain_count(*masks), lambda: xview2.count(*masks), 20)

    with tempfile.TemporaryDirectory() as folder:
        predictions, targets = Path(folder, "predictions"), Path(folder, "targets")
        predictions.mkdir(), targets.mkdir()
        for i in range(10):
            for place, role, pair in ((predictions, "prediction", tile(i)[:2]), (targets, "target", tile(i)[2:])):
                for kind, mask in zip(("localization", "damage"), pair, strict=True):
                    cv2.imwrite(str(place / f"test_{kind}_{i:05d}_{role}.png"), mask)
        for threads, clock in ((1, time.process_time), (2, time.perf_counter)):
            race(
                f"score a folder of 10 scenes, {threads} thread{'s: wall' if threads > 1 else ': CPU'}",
                lambda: list(plain_folder(predictions, targets).values()),
                lambda threads=threads: list(xview2.score_folder(predictions, targets, threads).values()),
                1, 5, clock,
            )  # fmt: skip

    for size, share, repeats, rounds in ((1024, 0.07, 20, 5), (10000, 0.5, 1, 3)):
        mask = smooth_mask(rng, size, share)
        text = rle.encode(mask)
        name = f"{size} x {size}, {text.count(' ') // 2 + 1} runs"
        race(f"encode {name}", partial(plain_encode, mask), partial(rle.encode, mask), repeats, rounds)
        shape = mask.shape
        race(f"decode {name}", partial(plain_decode, text, shape), partial(rle.decode, text, shape), repeats, rounds)

    labels = cv2.connectedComponents(smooth_mask(rng, 1024, 0.2))[1]
    plain = lambda: [plain_encode(labels == i) for i in range(1, labels.max() + 1)]  # noqa: E731
    race(f"encode a map of {labels.max()} labels", plain, lambda: rle.encode_labels(labels), 1, 3)


if __name__ == "__main__":
    main()
