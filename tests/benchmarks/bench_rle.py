"""Run-length text against the snippet of most Kaggle notebooks, pycocotools and rlemasklib with orjson."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from lib.scenes import rle
from tests.benchmarks.harness import Race, Side, missing
from tests.benchmarks.made import smooth_mask

STRONGEST = "rlemasklib + orjson"
LABELS = 300


def rows(quick: bool) -> list[Race]:
    """Return encoding and decoding of a tile and of a slide, and a map of some 300 labels."""
    sizes = ((256, 0.07, 1), (1024, 0.5, 1)) if quick else ((1024, 0.07, 20), (10000, 0.5, 1))
    found = []
    for size, share, repeats in sizes:
        name = f"{size:,} x {size:,}, {share:.0%} foreground"
        for kind, make, wanted in (("encode", _encode, 6), ("decode", _decode, 6.5)):
            found.append(Race(f"{kind} {name}", partial(make, size, share), goals={"snippet": wanted, STRONGEST: 1.5},
                              repeats=repeats, memory=size > 5000))  # fmt: skip
    size = 256 if quick else 1024
    return [*found, Race(f"encode {LABELS} labels on {size:,} x {size:,}", partial(_labels, size),
                         goals={"snippet, label by label": 200}, repeats=1 if quick else 3)]  # fmt: skip


def _strongest(make: Callable[[], Side]) -> Side | str:
    return missing("rlemasklib") or missing("orjson") or make()


# ---- encode -------------------------------------------------------------------------------------------
def _encode(size: int, share: float, _: Path) -> dict[str, Side | str]:
    mask = smooth_mask(np.random.default_rng(0), size, share)
    text = rle.encode(mask)
    turned = cv2.transpose(mask)

    def strongest() -> Side:
        import orjson
        from rlemasklib import RLEMask

        def encode() -> str:
            counts = RLEMask.from_array(mask).counts
            ends = np.cumsum(counts)
            runs = np.empty(len(counts) // 2 * 2, np.int64)
            runs[0::2], runs[1::2] = ends[:-1:2] + 1, counts[1::2]
            return orjson.dumps(runs, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].replace(b",", b" ").decode()

        return encode

    def coco() -> Side:
        from pycocotools import mask as coder

        return lambda: coder.encode(np.asfortranarray(mask))

    return {
        "ours": lambda: rle.encode(mask),
        "snippet": lambda: plain_encode(mask),
        STRONGEST: _strongest(strongest),
        "limit: pycocotools, its own text": missing("pycocotools") or coco(),
        "limit: transpose": lambda: cv2.transpose(mask),
        "limit: read once, copy the text": lambda: (cv2.countNonZero(turned), text.encode()),
    }


def plain_encode(mask: np.ndarray) -> str:
    """Encode as the snippet in most Kaggle notebooks does: pad, compare, join."""
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


# ---- decode -------------------------------------------------------------------------------------------
def _decode(size: int, share: float, _: Path) -> dict[str, Side | str]:
    mask = smooth_mask(np.random.default_rng(0), size, share)
    text, shape = rle.encode(mask), mask.shape

    def strongest() -> Side:
        from rlemasklib import RLEMask

        def decode() -> np.ndarray:
            numbers = np.fromstring(text, np.int64, sep=" ")
            starts, lengths = numbers[0::2] - 1, numbers[1::2]
            counts = np.empty(len(numbers) + 1, np.uint32)
            ends = np.concatenate([[0], starts + lengths])
            counts[:-1:2], counts[1::2], counts[-1] = starts - ends[:-1], lengths, mask.size - ends[-1]
            return cv2.transpose(RLEMask.from_counts(counts, shape).to_array(order="F").T)

        return decode

    return {
        "ours": lambda: rle.decode(text, shape),
        "snippet": lambda: plain_decode(text, shape),
        STRONGEST: _strongest(strongest),
        "limit: fill and transpose": lambda: cv2.transpose(np.full(shape[::-1], 1, np.uint8)),
    }


def plain_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Decode as most Kaggle notebooks do: one slice per run; contiguous, as ours is."""
    numbers = np.asarray(text.split(), dtype=int)
    pixels = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(numbers[0::2] - 1, numbers[1::2], strict=True):
        pixels[start : start + length] = 1
    return np.ascontiguousarray(pixels.reshape(shape[::-1]).T)


# ---- label maps ---------------------------------------------------------------------------------------
def _labels(size: int, _: Path) -> dict[str, Side | str]:
    labels, rng = np.zeros((size, size), np.int32), np.random.default_rng(5)
    for label in range(1, LABELS + 1):
        cv2.circle(labels, rng.integers(size, size=2).tolist(), size // 64, label, cv2.FILLED)
    return {
        "ours": lambda: rle.encode_labels(labels),
        "snippet, label by label": lambda: [plain_encode(labels == i) for i in range(1, labels.max() + 1)],
        "limit: transpose": lambda: cv2.transpose(labels),
    }
