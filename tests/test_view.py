"""The size at which a network sees a scene."""

import numpy as np
import pytest

from lib.errors import DataError
from lib.scenes.view import View, resize


@pytest.mark.parametrize(("view", "pixel_size", "expected"), [
    (View(), None, (300, 200)),
    (View(scale=0.5), None, (150, 100)),
    (View(pixel_size=0.8), 0.4, (150, 100)),  # pixels of 0.4 become pixels of 0.8: half as many
    (View(size=150), None, (150, 100)),
    (View(size=96, fit="square"), None, (96, 96)),
])  # fmt: skip
def test_the_shape_a_network_sees(view, pixel_size, expected):
    assert view.shape((300, 200), pixel_size) == expected


def test_an_unknown_pixel_size_is_refused():
    with pytest.raises(DataError, match="pixel size is not known"):
        View(pixel_size=0.5).shape((10, 10))


def test_native_images_pass_untouched_and_frames_are_resized_one_by_one():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 40, 60, 3), np.uint8)
    np.testing.assert_array_equal(View().image(frames[0]), frames[0])
    halved = View(scale=0.5).image(frames)
    assert halved.shape == (3, 20, 30, 3)
    blocks = frames.reshape(3, 20, 2, 30, 2, 3).mean((2, 4))  # shrinking by two is the mean of each 2 x 2 block
    assert np.abs(halved - blocks).max() <= 0.5


def test_masks_keep_their_values():
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 20:40] = 3
    mask[40:, :] = 255
    small = View(scale=0.5).mask(mask)
    assert set(np.unique(small)) == {0, 3, 255} and small.shape == (32, 32)
    assert (small == mask[::2, ::2]).mean() > 0.97


def test_resize_keeps_a_constant_and_its_own_shape():
    plane = np.full((17, 23), 0.25, np.float32)
    assert resize(plane, (17, 23)) is plane
    for shape in ((5, 9), (40, 60)):
        np.testing.assert_allclose(resize(plane, shape), 0.25, atol=1e-6)
