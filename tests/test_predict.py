"""The predictor: probabilities whatever the memory layout of the image, in the precision that was asked for."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.config.sections import Predict
from lib.inference.predict import FRAMES, Predictor
from lib.scenes.view import View, resize


class Watched(nn.Module):
    """A 1 x 1 convolution that remembers how its input lay in memory."""

    stride = 32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 2, 1)
        self.strides = []

    def forward(self, x):
        self.strides.append(x.stride())
        return self.conv(x.float() / 255)


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 64, 96), dtype=np.uint8)


def looks(**changes) -> Predict:
    """Settings of a prediction: float32, one view, and what is asked; windows may be smaller than in an experiment."""
    return Predict.model_construct(**{"precision": "float32", "tta": "none", **changes})


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_the_layout_of_the_image_changes_neither_result_nor_layout_in_the_network(views):
    plain, stacked = image(), np.concatenate([half.transpose(1, 2, 0).copy().transpose(2, 0, 1)
                                              for half in np.split(image(), 2)])  # fmt: skip
    assert stacked.strides != plain.strides, "as images stacked from (H, W, 3) arrays are"
    network = Watched()
    predict = Predictor(network, lambda z: z.softmax(1), looks(tta=views))
    one = predict(plain)
    seen = list(network.strides)
    network.strides.clear()
    np.testing.assert_array_equal(predict(stacked), one)
    assert network.strides == seen
    assert one.shape == (2, 64, 96) and one.dtype == np.float32
    np.testing.assert_allclose(one.sum(0), 1, atol=1e-5)


def test_float16_becomes_bfloat16_on_a_cpu():
    assert Predictor(Watched(), torch.sigmoid, looks(precision="float16")).precision == "bfloat16"


class Blue(nn.Module):
    """Says how blue each pixel is."""

    stride = 32

    def forward(self, x):
        return x[:, 2:3].float() / 255


def smooth(height=64, width=96) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([np.rint(255 * (x + y * k) / (width + height * k)) for k in (0, 1, 2)]).astype(np.uint8)


@pytest.mark.parametrize("view", [View(scale=0.5), View(size=64), View(size=128, fit="square"), View(pixel_size=2.0)])
def test_a_resized_scene_comes_back_at_its_own_size(view):
    picture = smooth()
    probs = Predictor(Blue(), lambda z: z, looks(), view)(picture, pixel_size=1.0)
    assert probs.shape == (1, 64, 96)
    assert np.abs(probs[0] - picture[2] / 255)[2:-2, 2:-2].max() < 0.02  # smooth: little is lost on the way


def test_scales_are_the_mean_of_single_scales():
    picture = image()[:3]
    scales = (0.5, 1.0, 1.5)
    single = [Predictor(Blue(), lambda z: z, looks(scales=(s,)))(picture) for s in scales]
    together = Predictor(Blue(), lambda z: z, looks(scales=scales))(picture)
    np.testing.assert_allclose(together, np.mean(single, 0), atol=1e-6)
    np.testing.assert_allclose(single[1][0], picture[2] / 255, atol=1e-6)
    small = resize(np.ascontiguousarray(picture[2]), (32, 48))
    np.testing.assert_allclose(single[0][0], resize(small / np.float32(255), (64, 96)), atol=1e-6)


class Mean(nn.Module):
    """One logit per frame, as a classifier gives it."""

    stride = 1

    def forward(self, x):
        return x.float().mean((1, 2, 3), keepdim=True) / 255


def test_frames_are_predicted_one_by_one():
    frames = np.random.default_rng(1).integers(0, 256, (FRAMES + 3, 3, 20, 30), np.uint8)
    probs = Predictor(Mean(), lambda z: z, looks(tta="flips"))(frames)
    assert probs.shape == (1, 1, FRAMES + 3)
    np.testing.assert_allclose(probs[0, 0], frames.mean((1, 2, 3)) / 255, atol=1e-5)
    small = Predictor(Mean(), lambda z: z, looks(), View.model_construct(size=10, fit="square"))(frames)
    np.testing.assert_allclose(small[0, 0], frames.mean((1, 2, 3)) / 255, atol=2e-2)


class Corner(nn.Module):
    """Answers differently in every view: the image weighed by the column and row of the window."""

    stride = 32

    def forward(self, x):
        x = x[:, :2].float() / 255
        return x * torch.arange(1.0, x.shape[-1] + 1) / x.shape[-1] * torch.arange(x.shape[-2])[:, None] / x.shape[-2]


@pytest.mark.parametrize("options", [{}, {"tile": 32, "overlap": 0}, {"scales": (0.75, 1.0)}])
def test_every_set_of_views_is_predicted_as_if_alone(options):
    view = View(scale=0.5) if options.get("scales") else View()
    sets = ("none", "hflip", "d4")
    found = Predictor(Corner(), lambda z: z, looks(tta=sets, **options), view).every_set(image())
    assert list(found) == list(sets)
    for name, probs in found.items():
        np.testing.assert_array_equal(
            probs, Predictor(Corner(), lambda z: z, looks(tta=name, **options), view)(image())
        )
    assert not np.array_equal(found["none"], found["d4"])
