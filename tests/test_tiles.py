"""Tiled prediction equals a slow float64 blend, leaves no seams, and takes scenes of any size."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.config.sections import Predict
from lib.errors import ConfigError
from lib.inference.predict import Predictor
from lib.inference.tiles import grid, mirror, predict_bands, predict_tiled

SIZES = [(1, 1), (1, 9), (7, 3), (16, 16), (17, 16), (33, 40), (40, 100), (64, 31)]


def scene(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (channels, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(height * 1000 + width),
    )


def pointwise(x: torch.Tensor) -> torch.Tensor:
    """Two channels that depend on the pixel alone."""
    x = x.float() / 255
    return torch.stack([x[:, 0] * 0.5 + x[:, 1] * 0.25, 1 - x[:, 2]], dim=1)


def crooked(x: torch.Tensor) -> torch.Tensor:
    """Depends on the place in the window, so the blend shows."""
    ramp = torch.linspace(0, 1, x.shape[-1]) + torch.linspace(0, 2, x.shape[-2])[:, None] ** 2
    return pointwise(x) * ramp


@pytest.mark.parametrize("height, width", SIZES)
def test_a_pointwise_network_is_reproduced(height, width):
    image = scene(height, width)
    tiled = predict_tiled(pointwise, image, tile=16, overlap=6, stride=4)
    assert tiled.dtype == torch.float32 and tiled.shape == (2, height, width)
    torch.testing.assert_close(tiled, pointwise(image[None])[0], atol=1e-6, rtol=0)


def slow_blend(image: np.ndarray, tile: int, overlap: int, stride: int, weight) -> np.ndarray:
    """The definition in float64: every window times its weights, summed, over the summed weights."""
    height, width = image.shape[1:]
    pad = [-height % stride, -width % stride]
    mode = {"mode": "reflect"} if min(height, width) > 1 else {"mode": "symmetric"}
    padded = np.pad(image, [(0, 0), (0, pad[0]), (0, pad[1])], **mode)
    high, wide = min(tile, padded.shape[1]), min(tile, padded.shape[2])
    total, norm = np.zeros((2, *padded.shape[1:])), np.zeros(padded.shape[1:])
    step = (tile - overlap) // stride * stride
    tops = sorted({min(top, padded.shape[1] - high) for top in range(0, padded.shape[1], step)})
    lefts = sorted({min(left, padded.shape[2] - wide) for left in range(0, padded.shape[2], step)})
    for top in tops:
        for left in lefts:
            window = torch.from_numpy(padded[:, top : top + high, left : left + wide].copy())[None]
            w = np.array([[weight(i, high) * weight(j, wide) for j in range(wide)] for i in range(high)])
            total[:, top : top + high, left : left + wide] += w * crooked(window)[0].double().numpy()
            norm[top : top + high, left : left + wide] += w
    return (total / norm)[:, :height, :width]


@pytest.mark.parametrize("height, width", [(33, 40), (17, 16), (40, 100), (9, 30)])
def test_blend_equals_the_slow_reference(height, width):
    image = scene(height, width)
    tiled = predict_tiled(crooked, image, tile=16, overlap=6, stride=4)
    reference = slow_blend(image.numpy(), 16, 6, 4, lambda i, n: min(i, n - 1 - i) + 1.0)
    np.testing.assert_allclose(tiled.numpy(), reference, atol=2e-6)


def test_a_band_holds_nothing_of_what_lay_in_its_memory(monkeypatch):
    """It is written before it is read, at every overlap: whatever stood there would show."""
    own = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: own(self, *shape).fill_(torch.nan))
    for tile, overlap in ((16, 0), (16, 4), (16, 12), (32, 20)):
        tiled = predict_tiled(crooked, scene(53, 61), tile, overlap, 4)
        reference = slow_blend(scene(53, 61).numpy(), tile, overlap, 4, lambda i, n: min(i, n - 1 - i) + 1.0)
        np.testing.assert_allclose(tiled.numpy(), reference, atol=3e-6)


@pytest.mark.parametrize("height, width", SIZES)
def test_windows_fit_the_network(height, width):
    shapes = []

    def forward(x):
        shapes.append(x.shape[-2:])
        assert x.dtype == torch.uint8
        return pointwise(x)

    predict_tiled(forward, scene(height, width), tile=16, overlap=4, stride=8)
    assert all(side % 8 == 0 and side <= 16 for shape in shapes for side in shape)
    assert len(shapes) == 1 or max(height, width) > 16


def test_weights_are_positive_and_add_up_to_one():
    total = torch.zeros(100, dtype=torch.float64)
    for start, weights in grid(100, 32, 20):
        assert weights.min() > 0
        total[start : start + 32] += weights.double()
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


def test_bands_give_every_row_once():
    image = scene(45, 20)
    expected, next_row = predict_tiled(crooked, image, 16, 8, 4), 0
    for top, band in predict_bands(crooked, image, 16, 8, 4):
        assert top == next_row
        assert torch.equal(band, expected[:, top : top + band.shape[1]])
        next_row += band.shape[1]
    assert next_row == 45


@pytest.mark.parametrize("height, width", [(45, 20), (41, 33), (17, 40), (3, 50)])
def test_an_image_may_be_read_by_its_rows(height, width):
    """At most one row of windows at a time, and what its last rows mirror."""
    image, asked = scene(height, width), []

    class Raster:
        shape = image.shape

        def __getitem__(self, part):
            asked.append(part[1].stop - part[1].start)
            return image[part]

    for tile, overlap in ((16, 8), (4, 0)):
        expected = predict_tiled(crooked, image, tile, overlap, 4)
        for top, band in predict_bands(crooked, Raster(), tile, overlap, 4):
            assert torch.equal(band, expected[:, top : top + band.shape[1]])
        assert max(asked) <= tile + 4
        asked.clear()


@pytest.mark.parametrize("height, width", [(5, 7), (2, 3), (1, 4), (1, 1)])
def test_mirror_is_numpys_reflection(height, width):
    image = scene(height, width).numpy()
    padded = mirror(torch.from_numpy(image), 16, 24).numpy()
    expected = np.pad(image, [(0, 0), (0, 16 - height), (0, 0)], mode="reflect" if height > 1 else "edge")
    expected = np.pad(expected, [(0, 0), (0, 0), (0, 24 - width)], mode="reflect" if width > 1 else "edge")
    np.testing.assert_array_equal(padded, expected)


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"tile": 20}, "tile"),
        ({"tile": 0}, "tile"),
        ({"overlap": 16}, "overlap"),
        ({"overlap": -1}, "overlap"),
    ],
)
def test_impossible_windows_are_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        predict_tiled(pointwise, scene(40, 40), **({"tile": 16, "overlap": 4, "stride": 8} | wrong))


def looks(**changes) -> Predict:
    """Settings of a prediction: float32, one view, and what is asked; windows may be smaller than in an experiment."""
    return Predict.model_construct(**{"precision": "float32", "tta": "none", **changes})


class Pixel(nn.Module):
    """A pointwise network with dropout, which only eval mode silences; logits of two classes."""

    stride = 8

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dropout = nn.Conv2d(3, 2, 1), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.conv(x.to(self.conv.weight.dtype) / 255))


@pytest.mark.parametrize("views", ["none", "flips", "d4"])
def test_predictor_equals_a_direct_forward(views):
    network = Pixel()
    image = scene(21, 50)
    probs = Predictor(network, torch.sigmoid, looks(tta=views, tile=16, overlap=0.5))(image.numpy())
    assert probs.dtype == np.float32 and isinstance(probs, np.ndarray)
    with torch.no_grad():
        direct = torch.sigmoid(network.eval()(image[None]))[0].numpy()
    np.testing.assert_allclose(probs, direct, atol=1e-6)


def test_views_are_averaged_as_probabilities():
    class Corner(Pixel):
        def forward(self, x):
            return torch.linspace(-9, 9, x.shape[-1]).expand(1, 1, *x.shape[-2:])

    probs = Predictor(Corner(), torch.sigmoid, looks(tta="hflip", tile=16, overlap=0))(scene(8, 16))
    p = 1 / (1 + np.exp(-np.linspace(-9, 9, 16)))
    np.testing.assert_allclose(probs[0, 0], (p + p[::-1]) / 2, atol=1e-6)


def test_bfloat16_autocasts_the_network_and_not_the_activation():
    seen = []

    class Watch(Pixel):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    def activate(logits):
        seen.append(logits.dtype)
        return torch.sigmoid(logits)

    image = scene(16, 16)
    probs = Predictor(Watch(), activate, looks(precision="bfloat16", tile=16, overlap=0))(image)
    assert seen == [torch.bfloat16, torch.float32]
    np.testing.assert_allclose(probs, Predictor(Pixel(), torch.sigmoid, looks(tile=16, overlap=0))(image), atol=0.01)


def test_predictor_leaves_the_weights_layout_alone():
    network = Pixel()
    before = network.conv.weight.stride()
    Predictor(network, torch.sigmoid, looks(tile=16, overlap=0))(scene(16, 16))
    assert network.conv.weight.stride() == before


@pytest.mark.parametrize(("shape", "size"), [((16, 24), (20, 28)), ((1, 9), (1, 13))])
def test_a_scene_may_be_mirrored_outward_before_it_is_predicted(shape, size):
    """As the localization with DPN92 of 2020: np.pad on the image, the same margin cut off the probabilities."""
    seen = []

    class Neighbours(Pixel):
        def forward(self, x):
            seen.append(x[0].clone())
            return nn.functional.avg_pool2d(super().forward(x), 3, 1, 1)

    network, image = Neighbours(), scene(*shape).numpy()
    probs = Predictor(network, torch.sigmoid, looks(tile=32, overlap=0), pad=2)(image)
    high, wide = (min(2, side - 1) for side in shape)
    padded = np.pad(image, [(0, 0), (high, high), (wide, wide)], mode="reflect")
    np.testing.assert_array_equal(seen[0][:, : size[0], : size[1]].numpy(), padded)
    with torch.no_grad():
        expected = torch.sigmoid(network(seen[0][None]))[0].numpy()
    np.testing.assert_allclose(probs, expected[:, high : high + shape[0], wide : wide + shape[1]], atol=1e-6)
