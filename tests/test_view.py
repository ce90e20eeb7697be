"""The size at which a network sees a scene."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lib.config.sections import Predict
from lib.errors import ConfigError, DataError
from lib.inference.predict import Predictor
from lib.scenes.view import View, resize


@pytest.mark.parametrize(("view", "pixel_size", "expected"), [
    (View(), None, (300, 200)),
    (View(scale=0.5), None, (150, 100)),
    (View(pixel_size=0.8), 0.4, (150, 100)),  # pixels of 0.4 become pixels of 0.8: half as many
    (View(size=150), None, (150, 100)),
    (View(size=96, fit="square"), None, (96, 96)),
    (View(size=100, fit="short"), None, (150, 100)),
    (View(size=100, fit="short", crop=80), None, (80, 80)),
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


def test_a_centre_crop_shows_the_middle_of_the_resized_image():
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    view = View.model_construct(size=32, fit="short", crop=28)
    whole = View(size=32, fit="short").image(image)
    assert whole.shape == (32, 48, 3)
    np.testing.assert_array_equal(view.image(image), whole[2:30, 10:38])
    np.testing.assert_array_equal(view.image(image[None])[0], whole[2:30, 10:38])
    np.testing.assert_array_equal(view.mask(image[..., 0]), View(size=32, fit="short").mask(image[..., 0])[2:30, 10:38])
    same = View(size=64, fit="short", crop=64)
    np.testing.assert_array_equal(same.image(image), image[:, 16:80])


def test_training_draws_its_own_crops_from_the_image_as_it_is():
    assert View(size=256, fit="short", crop=224).for_training().shape((300, 200)) == (300, 200)
    assert View(size=150).for_training() == View(size=150)


@pytest.mark.parametrize("faulty", [
    {"size": 64, "crop": 32}, {"fit": "short", "crop": 32}, {"size": 64, "fit": "short", "crop": 65}, {"fit": "wide"},
    {"scale": 0.5, "size": 64}, {"pixel_size": 0.5, "size": 64}, {"scale": 0}, {"size": 8},
])  # fmt: skip
def test_impossible_views_are_refused(faulty):
    with pytest.raises(ValidationError, match="validation error for View"):
        View(**faulty)


PLAIN = Predict(precision="float32", tta="none")


class Mean(nn.Module):
    """Give the mean of red, green and blue as logits of one label."""

    stride = 1

    def forward(self, x):
        return x.float().mean((2, 3), keepdim=True) / 255


def test_prediction_sees_the_crop_of_a_label_and_refuses_it_for_masks():
    frames = np.random.default_rng(2).integers(0, 256, (2, 3, 64, 96), np.uint8)
    view = View.model_construct(size=32, fit="short", crop=28)
    found = Predictor(Mean(), torch.clone, PLAIN, view)(frames)  # (3, 1, F)
    seen = view.image(np.moveaxis(frames, 1, -1)) / 255
    np.testing.assert_allclose(found[:, 0], seen.mean((1, 2)).T, atol=1e-5)
    halved = Predictor(Mean(), torch.clone, PLAIN.model_copy(update={"scales": (0.5,)}), view)(frames)
    half = View.model_construct(size=16, fit="short", crop=14).image(np.moveaxis(frames, 1, -1)) / 255
    np.testing.assert_allclose(halved[:, 0], half.mean((1, 2)).T, atol=1e-5)
    with pytest.raises(ConfigError, match="view.crop: expected a network of one label"):
        Predictor(Mean(), torch.clone, PLAIN, view)(frames[0])
