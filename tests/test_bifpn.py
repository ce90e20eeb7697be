"""EfficientDet's BiFPN against the paper's equations, pixel by pixel, and inside the hybrid."""

import numpy as np
import pytest
import torch
from overfitting import overfit

from lib.errors import ConfigError
from lib.models import build
from lib.models.bifpn import BiFPN, BiFPNLayer, NormalisedFusion

WIDTH, SIZES = 2, (2, 4, 8)
"""Channels, and sides of the levels from the deepest (the paper's highest number) to the finest."""


def numbers(layer):
    """Draw weights, positive and negative, and running statistics for every node of a layer."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
            elif name.endswith("fusion.weights"):
                tensor[0].abs_()
    return layer.eval()


def levels_of(sizes=SIZES, width=WIDTH):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1, width, s, s, generator=generator) for s in sizes]


# ---- the paper, in plain numpy, pixel by pixel --------------------------------------------------------


def fused(weights, maps):
    """Fast normalised fusion: O = sum_i w_i / (eps + sum_j w_j) * I_i, w_i >= 0 by a ReLU, eps = 0.0001."""
    positive = [max(float(w), 0.0) for w in weights.detach()]
    return sum(w * m for w, m in zip(positive, maps, strict=True)) / (0.0001 + sum(positive))


def conv(node, x):
    """A depthwise 3x3 convolution, a pointwise one, batch norm, x * sigmoid(x)."""
    depthwise, pointwise, norm, _ = node.convolution
    kernel, mix = depthwise.weight.detach().numpy(), pointwise.weight.detach().numpy()[:, :, 0, 0]
    channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    spatial = np.zeros_like(x)
    for c, i, j in np.ndindex(channels, height, width):
        spatial[c, i, j] = (padded[c, i : i + 3, j : j + 3] * kernel[c, 0]).sum()
    y = np.einsum("oc,chw->ohw", mix, spatial)
    mean, var, gamma, beta = (
        t.detach().numpy()[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    y = (y - mean) / np.sqrt(var + norm.eps) * gamma + beta
    return y / (1 + np.exp(-y))


def up(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def down(x):
    """The largest of the 3x3 pixels around every second one."""
    channels, height, width = x.shape
    y = np.empty((channels, height // 2, width // 2))
    for c, i, j in np.ndindex(*y.shape):
        y[c, i, j] = x[c, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].max()
    return y


def one_layer(layer, inputs):
    """P5, P4, P3 -> out. Section 3.3: P_td = Conv((w1 P_in + w2 up(P_td above)) / ...), P_out with three inputs."""
    p5, p4, p3 = inputs

    def node(module, *maps):
        return conv(module, fused(module.fusion.weights, maps))

    td4 = node(layer.finer[0], p4, up(p5))
    out3 = node(layer.finer[1], p3, up(td4))
    out4 = node(layer.deeper[1], p4, td4, down(out3))
    out5 = node(layer.deeper[0], p5, down(out4))
    return [out5, out4, out3]


def test_a_layer_by_the_papers_equations():
    layer, levels = numbers(BiFPNLayer(3, WIDTH)), levels_of()
    expected = one_layer(layer, [level[0].double().numpy() for level in levels])
    with torch.inference_mode():
        outputs = layer(levels)
    assert len(outputs) == 3
    for got, exact in zip(outputs, expected):
        np.testing.assert_allclose(got[0].numpy(), exact, rtol=1e-4, atol=1e-5)


def test_layers_are_repeated_with_weights_of_their_own():
    net, levels = numbers(BiFPN(3, WIDTH, layers=2)), levels_of()
    net.fusion.weights.data = torch.tensor([0.5, -1.0, 1.5])
    p5, p4, p3 = one_layer(net.layers[1], one_layer(net.layers[0], [x[0].double().numpy() for x in levels]))
    large = torch.nn.functional.interpolate(torch.from_numpy(p5)[None], (8, 8), mode="bilinear")[0].numpy()
    expected = (0.5 * large + 1.5 * p3) / 2.0001  # the negative one is off
    with torch.inference_mode():
        np.testing.assert_allclose(net(levels)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_no_positive_weight_is_no_division_by_zero():
    fusion = NormalisedFusion(2)
    fusion.weights.data.fill_(-1.0)
    assert fusion(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)).eq(0).all()


def test_the_deepest_level_learns_from_the_finest_and_the_finest_from_the_deepest():
    layer = BiFPNLayer(3, WIDTH).eval()
    for end, other in ((0, -1), (-1, 0)):
        levels = [level.requires_grad_() for level in levels_of()]
        layer(levels)[end].square().sum().backward()
        assert levels[other].grad.any()


# ---- in the hybrid ------------------------------------------------------------------------------------

TINY = {"classes": 3, "images": 1, "encoder": "tu-test_efficientnet", "aspp_channels": 12, "fpn_channels": 8,
        "merge": "bifpn", "upsample_logits": 4, "decoder_channels": [16, 16, 8], "aspp_dropout": 0.0}  # fmt: skip


def test_every_weight_has_a_gradient_and_one_image_trains_with_group_norm():
    torch.manual_seed(0)
    net = build("hybrid", **TINY, bifpn_layers=2, norm="group")
    assert len(net.decoder.pyramid.bifpn.layers) == 2
    logits = net(torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8))
    assert logits.shape == (1, 3, 64, 32)
    logits.square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    x = torch.randint(0, 64, (2, 3, 64, 64), dtype=torch.uint8)
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    for value in (1, 2):
        place = (..., slice(8, 56), slice(24 * value - 12, 24 * value + 4))
        target[place] = value
        x[place] += 80 * value
    net = build("hybrid", **TINY)
    overfit(net, x, target, lr=1e-2, steps=30)
    assert (net(x).argmax(1) == target).float().mean() > 0.95


@pytest.mark.parametrize("layers", [0, 1.5, "two"])
def test_a_number_of_layers_that_cannot_be_is_refused(layers):
    with pytest.raises(ConfigError, match="bifpn_layers: expected a whole number from 1 up"):
        build("hybrid", **TINY, bifpn_layers=layers)
