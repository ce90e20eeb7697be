"""Test-time augmentation: a view of the image carries its undo, and the undone probabilities are averaged.

A new set of views is one more row in ``VIEWS``; every row begins with the one before, so that one pass over the largest
set tells what the smaller ones would have given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import; the names of the views are asked for without it
    from torch import Tensor

Forward = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Flip:
    """One look at an image, (..., H, W) in and out: flips, then a transposition. ``undo(do(x)) == x``."""

    flips: tuple[int, ...] = ()
    """Axes that are reversed: -1 left-right, -2 up-down."""
    transpose: bool = False
    """Rows and columns change places after the flips."""

    def do(self, x: "Tensor") -> "Tensor":
        """Turn (..., H, W) into this view; (..., W, H) where it transposes."""
        x = x.flip(self.flips) if self.flips else x
        return x.transpose(-1, -2) if self.transpose else x

    def undo(self, x: "Tensor") -> "Tensor":
        """Turn a map of this view back into the image's own frame."""
        x = x.transpose(-1, -2) if self.transpose else x
        return x.flip(self.flips) if self.flips else x


FLIPS = (Flip(), Flip((-1,)), Flip((-2,)), Flip((-2, -1)))
VIEWS: dict[str, tuple[Flip, ...]] = {
    "none": FLIPS[:1],
    "hflip": FLIPS[:2],
    "flips": FLIPS,  # identity, left-right, up-down, both
    "d4": FLIPS + tuple(Flip(view.flips, transpose=True) for view in FLIPS),
}


def averages(forward: Forward, x: "Tensor", views: Sequence[Flip], ends: Sequence[int]) -> list["Tensor"]:
    """Average ``forward`` over the first views, as many as each of ``ends`` says: probs (B, K, H, W) each.

    forward: (B, C, h, w) -> probs (B, K, h, w). A running sum holds one view at a time, so several averages cost no
    more than the largest.
    """
    total: Any = None  # the first output itself, which may be anybody's; from the second view on our own
    found = {}
    for number, view in enumerate(views, 1):
        output = view.undo(forward(view.do(x)))
        total = output if total is None else total + output if number == 2 else total.add_(output)
        if number in ends:
            found[number] = total / number
    return [found[number] for number in ends]
