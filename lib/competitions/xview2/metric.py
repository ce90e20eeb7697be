"""Score xView2 answers as the official script does, on arrays and on folders of its PNG files.

``python -m lib.competitions.xview2.metric PREDICTIONS_DIR TARGETS_DIR`` prints the official script's JSON.

Masks: (H, W) uint8. ``lp, dp``: predicted buildings and damage; ``lt, dt``: their targets. Any value above 0 is a
building in ``lp`` and ``lt``; ``dp`` and ``dt`` hold 0 (none) and 1..4 (``CLASSES``).
Counts: (15,) int64 = localization tp, fp, fn, then tp, fp, fn of each class. Counts of scenes are added, then scored.

Source: DIUx-xView/xView2_scoring, xview2_metrics.py, as of its October 2019 correction of the false positives.
The files are read here too, and not in another room, because the official checks on them are part of the metric.
"""

import argparse
import json
import math
import struct
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from lib.errors import DataError, PipelineError
from lib.scenes import png

CLASSES = ("no-damage", "minor-damage", "major-damage", "destroyed")
"""Damage classes; class i of a mask is ``CLASSES[i - 1]``."""

SHAPE = (1024, 1024)
"""The only tile size that the official script accepts."""

MOST_BYTES = 2**21
"""The largest file that is looked into: a PNG of one byte per pixel takes half of that even where nothing is packed."""

_F1_KEYS = tuple(f"damage_f1_{name.replace('-', '_')}" for name in CLASSES)
_EPSILON = 1e-6
_STRIP = 2**18  # pixels that stay in a core's cache together with their intermediate masks

# The masks are plain PNGs: GDAL's remark that they have no place on Earth is no news, and filters set
# around each read would race between the reading threads.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


# ---- counts -------------------------------------------------------------------------------------------
def count(lp: np.ndarray, dp: np.ndarray, lt: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Count one scene for the official score.

    Damage is erased where no building was predicted and scored only where the damage target has a building.
    lp, dp, lt, dt: (H, W) uint8 or bool. Returns (15,) int64. Raises DataError on unequal shapes or unknown classes.
    """
    lp, dp, lt, dt = _masks(lp, dp, lt, dt)
    buildings = np.zeros(3, np.int64)  # in both, predicted, true
    damage = np.zeros((3, 4), np.int64)  # sums of the masks of hits, of predictions, of the truth
    rows = max(1, _STRIP // max(1, lp.shape[1]))
    for top in range(0, lp.shape[0], rows):
        lps, dps, lts, dts = (mask[top : top + rows] for mask in (lp, dp, lt, dt))
        buildings += cv2.countNonZero(cv2.min(lps, lts)), cv2.countNonZero(lps), cv2.countNonZero(lts)
        if not cv2.countNonZero(dts):
            continue
        scored = cv2.copyTo(cv2.copyTo(dps, lps), dts)  # zero outside of both buildings
        hits = cv2.copyTo(dts, cv2.compare(scored, dts, cv2.CMP_EQ))
        damage += [_sums(mask) for mask in (hits, scored, dts)]
    tp, predicted, true = np.concatenate([buildings[:, None], _histogram(damage)], axis=1)  # (5,) each
    return np.stack([tp, predicted - tp, true - tp], axis=1).reshape(15)


def _masks(*masks: np.ndarray) -> list[np.ndarray]:
    """Return the four masks as uint8, or raise DataError: ``_histogram`` is silent on values above 4."""
    found = [mask.view(np.uint8) if mask.dtype == bool else mask for mask in masks]
    for name, mask in zip(("lp", "dp", "lt", "dt"), found, strict=True):
        if mask.dtype != np.uint8 or mask.ndim != 2 or mask.shape != found[0].shape:
            raise DataError(
                f"mask {name}: expected (H, W) uint8 like the other three, got {mask.shape} {mask.dtype}; "
                "pass class indices, all of one size"
            )
    for name, mask in zip(("dp", "dt"), found[1::2], strict=True):
        if mask.size and (top := int(cv2.norm(mask, cv2.NORM_INF))) > 4:
            raise DataError(f"mask {name}: expected damage classes 0..4, got {top}; map other values to 0..4 first")
    return found


def _sums(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return four sums over a mask of values 0..4: of (v > 0), of v, of v squared, of the one-bits of v."""
    return (
        cv2.countNonZero(mask),
        int(cv2.sumElems(mask)[0]),
        round(cv2.norm(mask, cv2.NORM_L2SQR)),  # whole but for OpenCV's last bits
        int(cv2.norm(mask, cv2.NORM_HAMMING)),
    )


def _histogram(sums: np.ndarray) -> np.ndarray:
    """Solve for how often 1, 2, 3 and 4 occur: (..., 4) from ``_sums`` -> (..., 4) int64.

    Four sums, which write no masks, take 0.6 of the time of comparing the mask with each class. Of 1..4 only 3 has two
    one-bits, so it falls out first; two differences of the other sums then leave 6 times the fours.
    """
    pixels, values, squares, bits = np.moveaxis(sums, -1, 0)
    three = bits - pixels
    pixels, values, squares = pixels - three, values - 3 * three, squares - 9 * three
    four = (squares - pixels - 3 * (values - pixels)) // 6
    two = values - pixels - 3 * four
    return np.stack([pixels - two - four, two, three, four], axis=-1)


def confusion(lp: np.ndarray, dp: np.ndarray, lt: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Count true against predicted damage over the pixels that the official score looks at.

    Returns (5, 5) int64, row = true class, column = predicted class, 0 = no building predicted; row 0 is empty
    because damage is only scored where the target has a building. Same masks and errors as ``count``.
    """
    lp, dp, _, dt = _masks(lp, dp, lt, dt)
    where = dt > 0
    key = dt[where] * np.uint8(5) + dp[where] * (lp[where] > 0)  # (pixels,) in 0..24
    return np.bincount(key, minlength=25).reshape(5, 5)


# ---- scores -------------------------------------------------------------------------------------------
def f1(counts: np.ndarray) -> np.ndarray:
    """Return F1 of tp, fp, fn by the official order of operations: (..., 3) int64 -> (...) float64, 0 without tp."""
    tp, fp, fn = np.moveaxis(np.asarray(counts), -1, 0)
    hit = tp > 0
    precision = np.divide(tp, tp + fp, out=np.zeros(tp.shape), where=hit)
    recall = np.divide(tp, tp + fn, out=np.zeros(tp.shape), where=hit)
    return np.divide(2 * precision * recall, precision + recall, out=np.zeros(tp.shape), where=hit)


def official(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Score summed counts: (..., 15) int64 -> official key -> (...) float64, in the official order of keys.

    A class that is absent from the truth or from the answers caps ``score`` at 0.3000 by the harmonic mean.
    """
    scores = f1(_by_part(counts))  # (..., 5)
    localization, damages = scores[..., 0], scores[..., 1:]
    inverse = _inverse(damages)
    damage = 4 / (((inverse[..., 0] + inverse[..., 1]) + inverse[..., 2]) + inverse[..., 3])
    return {
        "score": 0.3 * localization + 0.7 * damage,
        "damage_f1": damage,
        "localization_f1": localization,
        **{key: damages[..., i] for i, key in enumerate(_F1_KEYS)},
    }


def present(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Score summed counts (..., 15) as ``official`` does, but over the classes that the truth holds.

    Both values are NaN where the truth holds no class at all. Not the competition's score: for small or
    one-event validation sets, where an absent class would hide everything else.
    """
    parts = _by_part(counts)  # (..., 5, 3)
    damages = parts[..., 1:, :]
    there = damages[..., 0] + damages[..., 2] > 0  # (..., 4)
    classes = there.sum(-1)
    inverse = np.where(there, _inverse(f1(damages)), 0).sum(-1)
    damage = np.divide(classes, inverse, out=np.full(classes.shape, np.nan), where=classes > 0)
    return {
        "score_present_classes": 0.3 * f1(parts[..., 0, :]) + 0.7 * damage,
        "damage_f1_present_classes": damage,
    }


def _by_part(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts)
    return counts.reshape(*counts.shape[:-1], 5, 3)


def _inverse(scores: np.ndarray) -> np.ndarray:
    """Return (score + epsilon) ** -1 by the C library's pow, as Python does; 1 / x differs in 1 of 1000 last bits."""
    inverse = [math.pow(value, -1) for value in (scores + _EPSILON).ravel().tolist()]
    return np.array(inverse, np.float64).reshape(scores.shape)


# ---- objects ------------------------------------------------------------------------------------------
def count_objects(lp: np.ndarray, dp: np.ndarray, lt: np.ndarray, dt: np.ndarray, min_iou: float = 0.5) -> np.ndarray:
    """Count matched buildings instead of pixels: same masks, errors and (15,) int64 layout as ``count``.

    An object is an 8-connected component of the buildings (localization) or of one damage class (damage, erased where
    no building was predicted). A predicted and a true object match, one to one, at IoU >= ``min_iou``; unlike the
    pixel score, a false building counts against its damage class too. Idea of object scores for xBD: arXiv 2212.13876.
    """
    lp, dp, lt, dt = _masks(lp, dp, lt, dt)
    dp = cv2.copyTo(dp, lp)
    counts = [_match(lp, lt, min_iou)]
    counts += [_match((dp == c).view(np.uint8), (dt == c).view(np.uint8), min_iou) for c in range(1, 5)]
    return np.array(counts, np.int64).reshape(15)


def _match(predicted: np.ndarray, true: np.ndarray, min_iou: float) -> tuple[int, int, int]:
    """Count matched, surplus predicted and missed true components of two (H, W) masks."""
    (p_total, p_labels), (t_total, t_labels) = (
        cv2.connectedComponents(mask, connectivity=8) for mask in (predicted, true)
    )
    p_area, t_area = (np.bincount(labels.ravel().take(np.flatnonzero(mask > 0)), minlength=1)
                      for mask, labels in ((predicted, p_labels), (true, t_labels)))  # fmt: skip
    both = np.flatnonzero(cv2.min(predicted, true) > 0)
    key = t_labels.ravel().take(both).astype(np.int64) * p_total + p_labels.ravel().take(both)
    if t_total * p_total <= 1 << 22:  # a table of all pairs is faster than sorting pixels
        times = np.bincount(key, minlength=1)
        pairs = np.flatnonzero(times)
        shared = times[pairs]
    else:
        pairs, shared = np.unique(key, return_counts=True)
    t, p = np.divmod(pairs, p_total)
    iou = shared / (t_area[t] + p_area[p] - shared)
    near = np.flatnonzero(iou >= min_iou)
    t_used, p_used = set(), set()
    for i in near[np.argsort(-iou[near], kind="stable")]:  # best first; at 0.5 and above only exact ties compete
        if t[i] not in t_used and p[i] not in p_used:
            t_used.add(t[i])
            p_used.add(p[i])
    tp = len(t_used)
    return tp, p_total - 1 - tp, t_total - 1 - tp


def object_f1(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Turn summed object counts (..., 15) into named F1s of shape (...); NaN where neither side has such an object."""
    parts = _by_part(counts)
    scores = np.where(parts.sum(-1) > 0, f1(parts), np.nan)  # (..., 5)
    return {f"object_{key}": scores[..., i] for i, key in enumerate(("localization_f1", *_F1_KEYS))}


# ---- files --------------------------------------------------------------------------------------------
def inspect_mask(path: Path) -> tuple[np.ndarray | None, str]:
    """Read one official PNG: ((1024, 1024) uint8 of 0..4, "") or (None, the reason why the official script refuses it).

    Palette PNGs give their indices. Colour, alpha, 1-bit and 16-bit PNGs are refused. Stricter than the official
    script here: a PNG that is not whole to its last byte, or another format under a .png name, is refused too.
    """
    if not Path(path).is_file():
        return None, "does not exist"
    with open(path, "rb") as file:
        return inspect_png(file.read(MOST_BYTES + 1))


def inspect_png(data: bytes) -> tuple[np.ndarray | None, str]:
    """Do the same with the bytes of a file; of a larger one the first MOST_BYTES + 1 are enough."""
    if len(data) > MOST_BYTES:
        return None, f"has more than {MOST_BYTES} bytes, more than any such PNG needs"
    if fault := png.fault(data):
        return None, fault
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    palette = colour == 3
    if not palette and (colour != 0 or bits in (1, 16)):
        kind = {0: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}.get(colour, "unknown colour")
        return None, f"is a {bits}-bit {kind} PNG; expected 8-bit with one channel"
    if (height, width) != SHAPE:
        return None, f"is {height} x {width}; expected 1024 x 1024"
    if (pixels := png.inflate(data, MOST_BYTES)) is None:
        return None, "is damaged and cannot be decoded"
    if (mask := png.plain_grey(data, pixels)) is None:
        try:
            with MemoryFile(data) as memory, memory.open(driver="PNG") as image:
                mask = image.read(1)
        except (RasterioError, OSError):
            return None, "is damaged and cannot be decoded"
    top = int(mask.max())
    # Grey of 2 or 4 bits is stretched to 0..255 by the official reader, so only its zeros are zeros.
    if top > (4 if palette or bits == 8 else 0):
        return None, "holds values other than 0, 1, 2, 3, 4"
    return mask, ""


def read_mask(path: Path) -> np.ndarray:
    """Read one official PNG as (1024, 1024) uint8 of 0..4. Raises DataError with the reason of a refusal."""
    mask, refusal = inspect_mask(path)
    if mask is None:
        raise DataError(f"{path}: the file {refusal}; the official scorer would stop here")
    return mask


def find_pairs(targets_dir: Path) -> list[tuple[str, str]]:
    """List the (split, number) of every localization target, by the official rules on names. Raises DataError."""
    if not targets_dir.is_dir():
        raise DataError(f"{targets_dir}: expected a folder of target PNGs, found none")
    pairs = []
    for path in sorted(targets_dir.glob("*.png")):
        parts = path.name.rstrip(".png").split("_")  # strips characters, not a suffix: the official rule
        if len(parts) != 4:
            raise DataError(f"{path}: expected a name in four parts, as test_localization_00000_target.png; rename it")
        split, kind, number, role = parts
        if kind not in ("localization", "damage") or role != "target":
            raise DataError(
                f"{path}: expected <split>_localization_<number>_target.png or <split>_damage_<number>_target.png; "
                "keep targets and predictions in two folders"
            )
        if kind == "localization":
            if split not in ("test", "hold"):
                raise DataError(f"{path}: expected the name to begin with test or hold, got {split!r}; rename it")
            pairs.append((split, number))
    if not pairs:
        raise DataError(f"{targets_dir}: expected at least one *_localization_*_target.png, found none")
    return pairs


def count_folder(predictions_dir: Path, targets_dir: Path, threads: int = 2) -> np.ndarray:
    """Count every target of a folder against its prediction: (N, 15) int64 in the order of ``find_pairs``."""
    predictions_dir, targets_dir = Path(predictions_dir), Path(targets_dir)
    if not predictions_dir.is_dir():
        raise DataError(f"{predictions_dir}: expected a folder of prediction PNGs, found none")

    def count_pair(pair: tuple[str, str]) -> np.ndarray:
        split, number = pair
        return count(
            *(
                read_mask(folder / f"{split}_{kind}_{number}_{role}.png")
                for folder, role in ((predictions_dir, "prediction"), (targets_dir, "target"))
                for kind in ("localization", "damage")
            )
        )

    pairs = find_pairs(targets_dir)
    with ThreadPoolExecutor(threads) as pool:  # decoding and counting both release the interpreter
        return np.array(list(pool.map(count_pair, pairs)))


def score_folder(predictions_dir: Path, targets_dir: Path, threads: int = 2) -> dict[str, float]:
    """Score a folder of official PNGs: official key -> number, equal to the official script's JSON to the last digit.

    Raises DataError where the official script fails, and on a folder without targets (which it scores 7e-7).
    """
    scores = official(count_folder(predictions_dir, targets_dir, threads).sum(axis=0))
    return {key: float(value) if value else 0 for key, value in scores.items()}  # an F1 without hits is printed as 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the official JSON of a folder of predictions; return 2 with one sentence where it cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.competitions.xview2.metric", description=__doc__.splitlines()[0]
    )
    parser.add_argument("predictions_dir", type=Path, help="folder of test_{localization,damage}_00000_prediction.png")
    parser.add_argument("targets_dir", type=Path, help="another folder, of test_{localization,damage}_00000_target.png")
    args = parser.parse_args(argv)
    try:
        scores = score_folder(args.predictions_dir, args.targets_dir)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
