"""Test-time augmentation: a view of the image carries its undo, and the undone probabilities are averaged.

A new set of views is one more row in ``VIEWS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Average ``forward`` over ``views``: x (B, C, H, W) -> probs (B, K, H, W).

    forward: (B, C, h, w) -> probs (B, K, h, w). batched: all views of a square input in one call; it pays on a GPU,
    on a CPU it never did. A running sum holds one view at a time.
    """
    if batched and x.shape[-1] == x.shape[-2]:
        outputs = forward(torch.cat([view.do(x) for view in views])).chunk(len(views))
    else:
        outputs = (forward(view.do(x)) for view in views)
    total = None
    for view, output in zip(views, outputs):
        output = view.undo(output)
        total = output if total is None else total + output
    return total / len(views)
