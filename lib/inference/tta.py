"""Test-time augmentation: a view of the image carries its undo, and the undone probabilities are averaged.

A new set of views is one more row in ``VIEWS``; every row begins with the one before, so that one pass over the largest
set tells what the smaller ones would have given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.errors import ConfigError

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """One look at an image, (..., H, W) in and out: flips, then a transposition. ``undo(do(x)) == x``."""

    flips: tuple[int, ...] = ()
    """Axes that are reversed: -1 left-right, -2 up-down."""
    transpose: bool = False
    """Rows and columns change places after the flips."""

    def do(self, x: Tensor) -> Tensor:
        """Turn (..., H, W) into this view; (..., W, H) where it transposes."""
        x = x.flip(self.flips) if self.flips else x
        return x.transpose(-1, -2) if self.transpose else x

    def undo(self, x: Tensor) -> Tensor:
        """Turn a map of this view back into the image's own frame."""
        x = x.transpose(-1, -2) if self.transpose else x
        return x.flip(self.flips) if self.flips else x


FLIPS = (View(), View((-1,)), View((-2,)), View((-2, -1)))
VIEWS: dict[str, tuple[View, ...]] = {
    "none": FLIPS[:1],
    "hflip": FLIPS[:2],
    "flips": FLIPS,  # the four of the xView2 winners: identity, left-right, up-down, both
    "d4": FLIPS + tuple(View(view.flips, transpose=True) for view in FLIPS),
}


def average(forward: Forward, x: Tensor, views: Sequence[View], batched: bool = False) -> Tensor:
    """Average ``forward`` over ``views``: x (B, C, H, W) -> probs (B, K, H, W)."""
    return averages(forward, x, views, (len(views),), batched)[0]


def averages(
    forward: Forward, x: Tensor, views: Sequence[View], ends: Sequence[int], batched: bool = False
) -> list[Tensor]:
    """Average ``forward`` over the first views, as many as each of ``ends`` says: probs (B, K, H, W) each.

    forward: (B, C, h, w) -> probs (B, K, h, w). batched: all views of a square input in one call; it pays on a GPU,
    on a CPU it never did. A running sum holds one view at a time, so several averages cost no more than the largest.
    """
    if batched and x.shape[-1] == x.shape[-2]:
        outputs = forward(torch.cat([view.do(x) for view in views])).chunk(len(views))
    else:
        outputs = (forward(view.do(x)) for view in views)
    total, found = None, {}
    for number, (view, output) in enumerate(zip(views, outputs), 1):
        output = view.undo(output)
        total = output if total is None else total + output
        if number in ends:
            found[number] = total / number
    return [found[number] for number in ends]


def nested(names: Sequence[str]) -> tuple[View, ...]:
    """Return the views of the largest of several sets, each the beginning of the next. ConfigError for others."""
    for name in names:
        if name not in VIEWS:
            raise ConfigError(f"views: expected one of {', '.join(VIEWS)}, got {name!r}")
    sizes = [len(VIEWS[name]) for name in names]
    if not names or sizes != sorted(set(sizes)):
        raise ConfigError(f"views: expected sets from the smallest to the largest, got {', '.join(names) or 'none'}")
    return VIEWS[names[-1]]
