"""Views: undo is the inverse of do, the views differ, and the average is taken in the image's own frame."""

import numpy as np
import pytest
import torch

from lib.inference.tta import VIEWS, averages

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


def average(forward, x: torch.Tensor, views) -> torch.Tensor:
    return averages(forward, x, views, [len(views)])[0]


def test_average_of_four_flips_by_hand():
    x = IMAGE.numpy()
    column, row = np.arange(1.0, 6), np.arange(4.0)[:, None]
    by_hand = (x * column + row + x * column[::-1] + row + x * column + row[::-1] + x * column[::-1] + row[::-1]) / 4
    np.testing.assert_allclose(average(uneven, IMAGE, VIEWS["flips"]).numpy(), by_hand, rtol=1e-6)


@pytest.mark.parametrize("views", VIEWS)
def test_average_leaves_an_equivariant_network_alone(views):
    torch.testing.assert_close(average(lambda x: 2 * x, IMAGE, VIEWS[views]), 2 * IMAGE)


def test_every_set_begins_with_the_one_before_and_its_average_is_that_of_the_set_alone():
    names = list(VIEWS)
    for smaller, larger in zip(names, names[1:]):
        assert VIEWS[larger][: len(VIEWS[smaller])] == VIEWS[smaller]
    square = IMAGE[..., :4]
    together = averages(uneven, square, VIEWS[names[-1]], [len(VIEWS[name]) for name in names])
    assert all(torch.equal(found, average(uneven, square, VIEWS[name])) for name, found in zip(names, together))
