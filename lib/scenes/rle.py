"""Turn masks into run-length text and back, as Kaggle's competitions write it: "start length start length ...".

``order``: "column" numbers pixels top to bottom, then left to right (Kaggle's rule); "row" left to right first.
``origin``: the number of the first pixel, 1 (Kaggle's rule) or 0. An empty mask is the empty text, never NaN.
Runs are of the whole image: they go on from the end of one column into the next, and touch both corners safely.
Which of the four ways somebody else's runs were written, ``detect`` tells from the masks they draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np

from lib.errors import DataError

Order = Literal["column", "row"]

_STRIP = 2**18  # pixels that stay in a core's cache together with their intermediate masks
_RUNS = 2**14  # runs whose text stays there
_CACHED = 2**24  # pixels of a mask of which a core's caches hold most, and its memory another copy
_LARGEST = 2**53


# ---- encode -------------------------------------------------------------------------------------------
def encode(mask: np.ndarray, order: Order = "column", origin: int = 1) -> str:
    """Write one mask as runs: (H, W) bool or integers, all but 0 is foreground. Raises DataError on other arrays."""
    _check(mask)
    edges = _changes(mask, order, np.logical_xor)
    if mask.size:
        edges = np.concatenate([edges[:0] if mask[0, 0] == 0 else edges.dtype.type([0]), edges,
                                edges[:0] if mask[-1, -1] == 0 else edges.dtype.type([mask.size])])  # fmt: skip
    runs = edges.reshape(-1, 2)  # first pixel, first pixel after
    runs[:, 1] -= runs[:, 0]
    runs[:, 0] += edges.dtype.type(origin)
    return _text(runs)


def encode_labels(
    label_map: np.ndarray, order: Order = "column", origin: int = 1, count: int | None = None
) -> list[str]:
    """Write each label of a map as runs, in one pass over the pixels; item i is label i + 1, "" where it is absent.

    label_map: (H, W) integers >= 0, 0 is background. ``count``: the number of labels, else the largest one found.
    Raises DataError on other arrays, on negative labels and on labels above ``count``.
    """
    _check(label_map)
    lowest, highest = (int(label_map.min()), int(label_map.max())) if label_map.size else (0, 0)
    count = highest if count is None else count
    if lowest < 0 or highest > min(count, 2**31 - 1):
        raise DataError(f"label map: expected labels 0..{count}, got {lowest}..{highest}; number them from 1")
    texts = [""] * count
    if not highest:
        return texts
    starts = _changes(label_map, order, np.not_equal)
    starts = np.concatenate([starts.dtype.type([0]), starts])
    lines = label_map if order == "column" else label_map.T
    across = starts // len(lines)
    labels = lines[starts - across * len(lines), across]
    runs = np.stack([starts, np.diff(starts, append=starts.dtype.type(label_map.size))], axis=1)  # (runs, 2)
    runs[:, 0] += starts.dtype.type(origin)
    runs, labels = runs[labels > 0], labels[labels > 0]
    short = labels.astype(np.uint16) if highest < 2**16 else labels  # 16 bits are sorted by counting
    by_label = np.argsort(short, kind="stable")
    runs, labels = runs[by_label], labels[by_label]
    last = np.append(labels[1:] != labels[:-1], True)
    for label, text in zip(labels[last].tolist(), _text(runs, last).split("\n"), strict=True):
        texts[label - 1] = text
    return texts


def _check(mask: np.ndarray) -> None:
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise DataError(f"mask: expected (H, W) bool or integers, got {mask.shape} {mask.dtype}; threshold it first")


def _changes(image: np.ndarray, order: Order, differ: np.ufunc) -> np.ndarray:
    """Return the pixels, numbered from 0, that ``differ`` from the one before them: (N,) uint32 or int64, ascending.

    Rows are compared where they lie, however the pixels are numbered: sorting a few numbers takes less than turning the
    image. The temporaries stay small enough for the cache.
    """
    if order not in ("column", "row"):
        raise ValueError(f'order: expected "column" or "row", got {order!r}')
    lines = image if order == "column" else image.T  # its pixels are numbered down the columns
    height, width = lines.shape
    number: Any = np.uint32 if image.size < 2**32 else np.int64  # 32 bits are divided and sorted faster
    found = [np.zeros(0, number)]
    if lines.flags.f_contiguous:
        flat = lines.T.reshape(-1)
        for first in range(1, flat.size, _STRIP):
            pixels = flat[first - 1 : first + _STRIP]
            found.append(_where(differ(pixels[1:], pixels[:-1])).astype(number) + number(first))
        return np.concatenate(found)
    rows = max(1, _STRIP // width)
    found.append((np.flatnonzero(differ(lines[0, 1:], lines[-1, :-1])).astype(number) + number(1)) * number(height))
    for top in range(1, height, rows):
        strip = lines[top - 1 : top + rows]
        at = _where(differ(strip[1:], strip[:-1]).ravel()).astype(number)
        down = at // number(width)
        found.append((at - down * number(width)) * number(height) + (down + number(top)))
    return np.sort(np.concatenate(found))


def _where(changed: np.ndarray) -> np.ndarray:
    """Return what ``np.flatnonzero`` does for (N,) bool with few True: eight at a time are looked at together."""
    whole = len(changed) // 8 * 8
    words = changed[:whole].view(np.uint64)
    some = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[some].view(bool))
    found = (some << 3)[inside >> 3]
    found += inside & 7
    return found if whole == len(changed) else np.append(found, np.flatnonzero(changed[whole:]) + whole)


def _digits() -> np.ndarray:
    """Build the text of every number below 10000 in 4 bytes, (20001,) uint32: each without and then with leading zeros.

    A left-out zero is a NUL byte. Entry 0 is no digit at all, the last entry is the single digit 0.
    """
    number = np.arange(10000)
    padded = np.stack([number // 10**k % 10 for k in (3, 2, 1, 0)], axis=1).astype(np.uint8) + ord("0")  # (10000, 4)
    plain = np.where(number[:, None] >= (1000, 100, 10, 1), padded, 0).astype(np.uint8)
    zero = np.array([[0, 0, 0, ord("0")]], np.uint8)
    return np.concatenate([plain, padded, zero]).view(np.uint32).ravel()


_DIGITS = _digits()
_SPACE, _NEWLINE = np.frombuffer(b" \0\0\0\n\0\0\0", np.uint32)


def _text(runs: np.ndarray, last: np.ndarray | None = None) -> str:
    """Write (runs, 2) integers >= 0 as text, numbers parted by a space, and by a newline after each ``last`` run.

    Four digits at a time from a table, then all NUL bytes deleted at once: several times the speed of joining strings.
    Where orjson is installed (``requirements-fast.txt``) it writes the numbers.
    """
    if not len(runs):
        return ""
    if last is None and (orjson := _orjson()) is not None:
        return _json_text(runs, orjson)
    starts, lengths = _words(runs[:, 0]), _words(runs[:, 1])
    ends = _SPACE if last is None else np.where(last, _NEWLINE, _SPACE)
    words = np.empty((len(runs), len(starts) + len(lengths) + 2), np.uint32)
    for column, values in enumerate((*starts, _SPACE, *lengths, ends)):
        words[:, column] = values
    return words.tobytes().translate(None, b"\0")[:-1].decode("ascii")


@cache
def _orjson() -> Any:
    """Return the optional package, None where it is not installed: a kernel must not ask for it."""
    try:
        import orjson
    except ImportError:
        return None
    return orjson


def _json_text(runs: np.ndarray, orjson: Any) -> str:
    """Write (runs, 2) as ``_text`` does: lists of numbers in JSON, their commas made spaces while they are cached."""
    pieces = []
    for first in range(0, len(runs), _RUNS):
        text = orjson.dumps(runs[first : first + _RUNS].ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
        piece = np.frombuffer(text, np.uint8)
        piece = piece ^ (piece == ord(",")) * np.uint8(ord(",") ^ ord(" "))
        piece[-1] = ord(" ")  # was the bracket at the end; the one at the beginning goes
        pieces.append(piece[1:])
    return (np.concatenate(pieces) if len(pieces) > 1 else pieces[0])[:-1].tobytes().decode("ascii")


def _words(numbers: np.ndarray) -> list[np.ndarray]:
    """Write numbers (N,) >= 0 as columns of four digits each, most significant first: a list of (N,) uint32."""
    largest = int(numbers.max())
    rest: np.ndarray = numbers.astype(np.uint32 if largest < 2**32 else np.uint64)  # 32 bits divide faster
    zero = rest == 0
    words = []
    while largest >= 10000:
        more = rest // 10000
        words.append(_DIGITS[rest - more * 10000 + 10000 * (more > 0)])
        rest, largest = more, largest // 10000
    words.append(_DIGITS[rest])
    words[0][zero] = _DIGITS[-1]
    return words[::-1]


# ---- decode -------------------------------------------------------------------------------------------
def parse(text: object, size: int | None = None, origin: int = 1) -> tuple[np.ndarray, str]:
    """Read runs: ((runs, 2) int64 of first pixel from 0 and length, "") or (no runs, what is wrong with the text).

    ``size``: number of pixels of the image, if known. Valid runs are sorted, apart, inside and at least 1 long.
    """
    nothing = np.zeros((0, 2), np.int64)
    if not isinstance(text, str):
        return nothing, "not a text (read the CSV with keep_default_na=False)"
    characters = np.frombuffer(text.encode(), np.uint8)
    if not text.strip(" "):
        return nothing, ""
    known = (cv2.countNonZero(cv2.inRange(characters, *limits)) for limits in ((ord("0"), ord("9")), (ord(" "),) * 2))
    if sum(known) < len(characters):
        return nothing, "not whole numbers parted by spaces"
    numbers = np.fromstring(text, np.int64, sep=" ")
    if numbers.size % 2:
        return nothing, "an odd count of numbers"
    runs = numbers.reshape(-1, 2)
    limit = _LARGEST if size is None else size
    if numbers.min() >= 0 and numbers.max() <= _LARGEST:  # so that no sum wraps around
        runs[:, 0] -= origin
        gaps = runs[1:, 0] - (ends := runs[:, 0] + runs[:, 1])[:-1]
        if runs[0, 0] >= 0 and ends[-1] <= limit and runs[:, 1].min() >= 1 and gaps.min(initial=0) >= 0:
            return runs, ""
        runs[:, 0] += origin
    starts, lengths = runs[:, 0] - origin, runs[:, 1]
    if (lengths < 1).any():
        return nothing, "a run of length 0"
    if (starts < 0).any() or (starts >= limit).any() or (lengths > limit - starts).any():
        return nothing, "a run outside of the image"
    if (starts[1:] < starts[:-1]).any():
        return nothing, "runs out of order"
    return nothing, "overlapping runs"


def decode(text: str, shape: tuple[int, int], order: Order = "column", origin: int = 1) -> np.ndarray:
    """Draw runs into a new mask: (H, W) uint8 of 0 and 1. Raises DataError where ``parse`` finds a fault."""
    height, width = shape
    runs, fault = parse(text, height * width, origin)
    if fault:
        raise DataError(
            f"RLE: expected sorted, separate 'start length' pairs within {origin}..{height * width - 1 + origin}, "
            f"got {fault}: {str(text)[:40]!r}; check order, origin and image size"
        )
    if order == "column" and height * width > _CACHED and len(runs):
        return _drawn_down(runs, height, width)
    ends = runs[:, 0] + runs[:, 1]
    lengths = np.empty(2 * len(runs) + 1, np.int64)  # background, foreground, ..., background
    lengths[0:-1:2] = runs[:, 0] - np.concatenate([[0], ends[:-1]]) if len(runs) else 0
    lengths[1::2] = runs[:, 1]
    lengths[-1] = height * width - (ends[-1] if len(runs) else 0)
    values = np.zeros(len(lengths), np.uint8)
    values[1::2] = 1
    flat = np.repeat(values, lengths)  # (pixels,)
    if order == "row":
        return flat.reshape(height, width)
    if order != "column":
        raise ValueError(f'order: expected "column" or "row", got {order!r}')
    return cv2.transpose(flat.reshape(width, height)) if flat.size else flat.reshape(height, width)


def _drawn_down(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw (runs, 2), at least one, down the columns of (H, W) uint8 of 0 and 1, a large image in half the time.

    The pixels at which runs begin and end are marked, then each row is flipped where the row above is set: memory is
    gone through in its own order, where a turned image takes a second image.
    """
    number: Any = np.uint32 if height * width < 2**32 else np.int64
    edges = runs.astype(number)
    edges[:, 1] += edges[:, 0]
    edges = edges.ravel()
    if (touching := edges[2::2] == edges[1:-1:2]).any():  # they are one run
        edges = np.delete(edges, (2 * np.flatnonzero(touching)[:, None] + (1, 2)).ravel())
    tops = np.searchsorted(edges, np.arange(width, dtype=number) * number(height), side="right")
    edges = edges[: len(edges) - (edges[-1] == height * width)]
    across = edges // number(height)
    mask = np.zeros((height, width), np.uint8)
    mask.reshape(-1)[(edges - across * number(height)) * number(width) + across] = 1
    mask[0] = tops & 1  # whether a run goes on, or begins, at the top of each column
    for row, above in zip(mask[1:], mask[:-1]):
        np.bitwise_xor(row, above, out=row)
    return mask


def overlap(masks: Sequence[np.ndarray]) -> bool:
    """Tell whether masks, the runs of each as ``parse`` gives them, (runs, 2) int64, share a pixel."""
    together = np.concatenate([np.zeros((0, 2), np.int64), *masks])
    together = together[together[:, 0].argsort(kind="stable")]
    return bool((together[1:, 0] < together[:-1].sum(axis=1)).any())


def lies_within(inner: np.ndarray, outer: np.ndarray) -> bool:
    """Tell whether all pixels of one mask are pixels of another; both as runs that ``parse`` gives, (runs, 2) int64."""
    if not len(inner) or not len(outer):
        return not len(inner)
    starts, ends = outer[:, 0], outer.sum(axis=1)
    apart = np.append(True, starts[1:] > ends[:-1])  # runs that touch are one
    starts, ends = starts[apart], ends[np.append(apart[1:], True)]
    at = np.searchsorted(starts, inner[:, 0], "right") - 1
    return bool(((at >= 0) & (inner.sum(axis=1) <= ends[at])).all())


# ---- detect -------------------------------------------------------------------------------------------
RULES: tuple[tuple[Order, int], ...] = (("column", 1), ("column", 0), ("row", 1), ("row", 0))

_EDGES = 4
"""So many more edges, at least, must the other way of reading have before it is given up; below, it may be chance."""
_SHARE = 0.01
"""And at least this share of all edges, for the order."""
_FEW = 0.02
"""Texts that contradict an origin are taken for mistakes in it where they are at most this share of all, or one."""
_SIGMA = 3.0
"""So many standard errors must the pictures' edges prefer one order of a square image."""


@dataclass(frozen=True)
class Rule:
    """How runs number the pixels, and ``why`` we think so (in words, for the reader of a log)."""

    order: Order
    origin: int
    why: str


def detect(
    texts: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    picture: Callable[[int], np.ndarray | None] | None = None,
    order: Order | None = None,
    origin: int | None = None,
    budget: int = 50_000_000,
) -> Rule:
    """Find out in which order and from which origin the runs of real masks were written.

    Real objects are compact, so the right reading has the fewest pairs of unequal neighbours. Read in the wrong order,
    a mask is sheared; from the wrong origin, what touches an end of a line wraps around to the start of the next one.
    Both readings of a *square* image are mirror images, equally compact: there ``picture(i)``, the image (H, W, 3) or
    (H, W) uint8 of text i, has to be steeper along the outline of the right one than of the other one; None where it
    cannot be read.

    ``order``, ``origin``: what is known already. ``budget``: pixels to look at, in masks spread over the list; whether
    runs lie inside of their image is looked at in all. Texts that no reading makes valid are left out where they are
    not most of all: their rows are wrong, and whoever draws them is told. So are the few that contradict an origin for
    which the edges of all others speak. Raises DataError where the masks leave more than one reading, or none.
    """
    rules = [rule for rule in RULES if order in (None, rule[0]) and origin in (None, rule[1])]
    if len(rules) == 1:
        return Rule(*rules[0], "stated")
    filled = [i for i, text in enumerate(texts) if text.strip()]
    starts = sorted({rule[1] for rule in rules})
    faults = {n: {i: fault for i in filled if (fault := _fault(texts[i], shapes[i], n))} for n in starts}
    sound = [i for i in filled if any(i not in faults[n] for n in starts)]
    against = {n: [i for i in sound if i in faults[n]] for n in starts}  # valid from the other origin alone
    refused = [n for n in starts if against[n]]
    agreed = [i for i in sound if not any(i in faults[n] for n in refused)]
    spared = bool(agreed) and all(len(against[n]) <= max(1, _FEW * len(sound)) for n in refused)
    if 2 * len(sound) < len(filled) or (len(refused) == len(starts) and not spared):
        wrong = sorted(set(filled) - set(sound)) or against[refused[0]]
        raise DataError(
            f"RLE: no order or origin puts all runs inside of their images: {len(wrong)} of {len(filled)} texts are "
            f"not valid, such as {texts[wrong[0]][:40]!r} ({_fault(texts[wrong[0]], shapes[wrong[0]], starts[-1])})"
        )
    if refused and not spared:
        rules = [rule for rule in rules if rule[1] not in refused]
        agreed = [i for i in sound if i not in faults[rules[0][1]]]
    filled = agreed
    some = _spread(filled, shapes, budget)
    edges = {rule: sum(_count_edges(decode(texts[i], shapes[i], *rule)) for i in some) for rule in rules}
    orders = {name: min(n for rule, n in edges.items() if rule[0] == name) for name, _ in rules}
    why = [f"{len(filled)} masks with an object"]
    if len({rule[1] for rule in rules}) < len(starts):
        why.append(f"runs from {refused[0]} would leave the image")
    best = min(orders, key=orders.__getitem__)
    if len(orders) == 2:
        if max(orders.values()) - orders[best] >= max(_EDGES, _SHARE * orders[best]):
            why.append(f"{best}s give {orders[best]} unequal neighbours, the other order {max(orders.values())}")
        else:
            best, reason = _order_by_picture(texts, shapes, some, rules[0][1], picture)
            why.append(reason)
    starts = [rule[1] for rule in rules if rule[0] == best]
    telling = _spread([i for i in filled if _meets_line_ends(texts[i], shapes[i], best)], shapes, budget)
    origins = {n: sum(_count_edges(decode(texts[i], shapes[i], best, n)) for i in telling) for n in starts}
    first = min(origins, key=origins.__getitem__)
    if len(origins) == 2:
        unsure = origins[1 - first] - origins[first] < _EDGES
        if unsure and len(refused) == 1:
            first = 1 - refused[0]
            return Rule(best, first, "; ".join([*why, f"runs from {refused[0]} would leave the image"]))
        if unsure:
            raise DataError(
                f"RLE: {len(filled)} masks do not show whether runs count from 0 or from 1 (too few of their "
                "objects touch an image's border); state the origin, Kaggle's is 1"
            )
        why.append(f"counted from {first} {origins[first]} unequal neighbours, from {1 - first} {origins[1 - first]}")
    return Rule(best, first, "; ".join(why))


def _fault(text: str, shape: tuple[int, int], origin: int) -> str:
    """Say what is wrong with a text of runs, "" if nothing."""
    return parse(text, shape[0] * shape[1], origin)[1]


def _spread(filled: Sequence[int], shapes: Sequence[tuple[int, int]], budget: int) -> list[int]:
    """Pick indices evenly from the list until their images have ``budget`` pixels together, at least 8 of them."""
    mean = sum(shapes[i][0] * shapes[i][1] for i in filled) / max(1, len(filled))  # pixels
    count = min(len(filled), max(8, int(budget / max(1.0, mean))))
    return [filled[k * len(filled) // count] for k in range(count)]


def _meets_line_ends(text: str, shape: tuple[int, int], order: Order) -> bool:
    """Tell whether a run begins or ends where a line does, counted from 0 or from 1: others do not show the origin."""
    runs = parse(text, origin=0)[0]
    ends = np.concatenate([runs[:, 0], runs.sum(axis=1)])
    return bool((ends % (shape[0] if order == "column" else shape[1]) <= 1).any())


def _count_edges(mask: np.ndarray) -> int:
    """Count the pairs of unequal neighbours of a mask (H, W)."""
    return int((mask[1:] != mask[:-1]).sum()) + int((mask[:, 1:] != mask[:, :-1]).sum())


def _order_by_picture(
    texts: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    some: Sequence[int],
    origin: int,
    picture: Callable[[int], np.ndarray | None] | None,
) -> tuple[Order, str]:
    """Choose the order whose outlines lie on the pictures' edges, and say how sure that is. Raises DataError."""
    gains = []
    for i, image in ((i, picture(i)) for i in some) if picture else ():
        if image is None:
            continue
        grey = cv2.GaussianBlur((image if image.ndim == 2 else image.mean(axis=2)).astype(np.float32), (0, 0), 2)
        slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))  # (H, W)
        outlines = [
            cv2.morphologyEx(decode(texts[i], shapes[i], name, origin), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
            for name in ("column", "row")
        ]
        column, row = (float(slope[outline > 0].mean()) if outline.any() else 0.0 for outline in outlines)
        if column != row:
            gains.append((column - row) / (column + row))
    spread = float(np.std(gains, ddof=1)) / len(gains) ** 0.5 if len(gains) > 2 else np.inf
    sigma = float(np.mean(gains)) / max(spread, 1e-9) if gains else 0.0
    if abs(sigma) < _SIGMA:
        raise DataError(
            f"RLE: {len(some)} masks do not show whether runs go down the columns or along the rows (square images or "
            f"tiny objects; the pictures' edges prefer neither, {abs(sigma):.1f} standard errors); state the order, "
            "Kaggle's is column"
        )
    best: Order = "column" if sigma > 0 else "row"
    return best, f"{len(gains)} images are steeper along outlines read by {best}s ({abs(sigma):.1f} standard errors)"
