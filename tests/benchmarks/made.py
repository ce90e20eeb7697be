"""Made masks that several benchmarks share."""

import cv2
import numpy as np


def smooth_mask(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw (size, size) uint8 of 0 and 1 with round shapes over a share of the pixels."""
    noise = cv2.GaussianBlur(rng.random((size // 8, size // 8), dtype=np.float32), (0, 0), 1.5)
    noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return (noise > np.quantile(noise[::5, ::5], 1 - share)).astype(np.uint8)


def tile(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw the four masks of an xView2 scene, (1024, 1024) uint8: buildings and damage of an answer, then of the truth.

    13 % are buildings, the answer is a few pixels off, all classes occur.
    """
    rng = np.random.default_rng(seed)
    lt = smooth_mask(rng, 1024, 0.13)
    grades = np.kron(rng.integers(1, 5, (16, 16)), np.ones((64, 64), int)).astype(np.uint8)
    lp = np.roll(lt, 3, axis=1)
    return lp, np.where(rng.random((1024, 1024)) < 0.9, grades, 2).astype(np.uint8) * lp, lt, grades * lt
