"""Views: undo is the inverse of do, the views differ, and the average is taken in the image's own frame."""

import numpy as np
import pytest
import torch

from lib.errors import ConfigError
from lib.inference.tta import VIEWS, average, averages, nested

IMAGE = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)


@pytest.mark.parametrize("views", VIEWS)
def test_undo_is_the_inverse_of_do(views):
    for view in VIEWS[views]:
        assert torch.equal(view.undo(view.do(IMAGE)), IMAGE)


@pytest.mark.parametrize("views, count", [("none", 1), ("hflip", 2), ("flips", 4), ("d4", 8)])
def test_views_are_distinct_and_start_with_the_image_itself(views, count):
    square = torch.arange(9.0).reshape(3, 3)
    seen = {tuple(view.do(square).flatten().tolist()) for view in VIEWS[views]}
    assert len(VIEWS[views]) == len(seen) == count
    assert torch.equal(VIEWS[views][0].do(square), square)


def test_d4_is_numpys_eight_rotations_and_flips():
    square = np.arange(16.0).reshape(4, 4)
    group = {np.rot90(base, k).tobytes() for base in (square, square.T) for k in range(4)}
    assert {view.do(torch.from_numpy(square)).contiguous().numpy().tobytes() for view in VIEWS["d4"]} == group


def uneven(x: torch.Tensor) -> torch.Tensor:
    """A network that sees where it is: every view gives another answer."""
    return x * torch.arange(1.0, x.shape[-1] + 1) + torch.arange(x.shape[-2])[:, None]


def test_average_of_four_flips_by_hand():
    x = IMAGE.numpy()
    column, row = np.arange(1.0, 6), np.arange(4.0)[:, None]
    by_hand = (x * column + row + x * column[::-1] + row + x * column + row[::-1] + x * column[::-1] + row[::-1]) / 4
    np.testing.assert_allclose(average(uneven, IMAGE, VIEWS["flips"]).numpy(), by_hand, rtol=1e-6)


@pytest.mark.parametrize("views", VIEWS)
def test_average_leaves_an_equivariant_network_alone_and_batches_alike(views):
    square = IMAGE[..., :4]
    torch.testing.assert_close(average(lambda x: 2 * x, IMAGE, VIEWS[views]), 2 * IMAGE)
    torch.testing.assert_close(
        average(uneven, square, VIEWS[views], batched=True), average(uneven, square, VIEWS[views])
    )


def test_batching_makes_one_call_for_a_square_and_one_per_view_otherwise():
    shapes = []

    def forward(x):
        shapes.append(tuple(x.shape))
        return x

    average(forward, IMAGE[..., :4], VIEWS["d4"], batched=True)
    assert shapes == [(16, 3, 4, 4)]
    shapes.clear()
    average(forward, IMAGE, VIEWS["d4"], batched=True)
    assert shapes == [(2, 3, 4, 5)] * 4 + [(2, 3, 5, 4)] * 4


def test_every_set_begins_with_the_one_before_and_its_average_is_that_of_the_set_alone():
    names = list(VIEWS)
    for smaller, larger in zip(names, names[1:]):
        assert VIEWS[larger][: len(VIEWS[smaller])] == VIEWS[smaller]
    square = IMAGE[..., :4]
    together = averages(uneven, square, nested(names), [len(VIEWS[name]) for name in names])
    assert all(torch.equal(found, average(uneven, square, VIEWS[name])) for name, found in zip(names, together))


@pytest.mark.parametrize("names", [(), ("flips", "none"), ("none", "none"), ("none", "turns")])
def test_sets_that_do_not_grow_are_refused(names):
    with pytest.raises(ConfigError, match="views: expected"):
        nested(names)
