"""The predictor: probabilities whatever the memory layout of the image, in the precision that was asked for."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.inference.predict import Predictor


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


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_the_layout_of_the_image_changes_neither_result_nor_layout_in_the_network(views):
    plain, stacked = image(), np.concatenate([half.transpose(1, 2, 0).copy().transpose(2, 0, 1)
                                              for half in np.split(image(), 2)])  # fmt: skip
    assert stacked.strides != plain.strides, "as images stacked from (H, W, 3) arrays are"
    network = Watched()
    predict = Predictor(network, lambda z: z.softmax(1), views=views)
    one = predict(plain)
    seen = list(network.strides)
    network.strides.clear()
    np.testing.assert_array_equal(predict(stacked), one)
    assert network.strides == seen
    assert one.shape == (2, 64, 96) and one.dtype == np.float32
    np.testing.assert_allclose(one.sum(0), 1, atol=1e-5)


def test_float16_on_a_cpu_is_refused_here():
    with pytest.raises(ValueError, match="float16"):
        Predictor(Watched(), torch.sigmoid, "cpu", "float16")
