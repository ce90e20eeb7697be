"""ResNet variants A (ours), B, C, D (timm's), by looking where their strides are."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import BlurPool2d
from torch import nn

from lib.models import build

pytestmark = pytest.mark.slow  # networks are built and run

TINY = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}


def tiny(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **TINY | options)


@pytest.mark.parametrize(
    ("name", "conv1", "conv2", "stem", "shortcut"),
    [
        ("resnet50a", 2, 1, nn.Conv2d, nn.Conv2d),
        ("resnet50", 1, 2, nn.Conv2d, nn.Conv2d),
        ("resnet50c", 1, 2, nn.Sequential, nn.Conv2d),
        ("resnet50d", 1, 2, nn.Sequential, nn.AvgPool2d),
    ],
)
def test_where_the_variants_have_their_strides(name, conv1, conv2, stem, shortcut):
    network = tiny(name)
    for layer in (network.layer2, network.layer3, network.layer4):
        block = layer[0]
        strides = (block.conv1.stride, block.conv2.stride, block.conv3.stride)
        assert strides == ((conv1, conv1), (conv2, conv2), (1, 1))
        assert (block.conv1.kernel_size, block.conv2.kernel_size) == ((1, 1), (3, 3))
        strided = next(m for m in block.downsample.modules() if getattr(m, "stride", (1, 1)) in (2, (2, 2)))
        assert isinstance(strided, shortcut)
    assert network.layer1[0].conv1.stride == network.layer1[0].conv2.stride == (1, 1)
    assert isinstance(network.conv1, stem)
    if stem is nn.Sequential:
        assert [m.kernel_size for m in network.conv1 if isinstance(m, nn.Conv2d)] == [(3, 3)] * 3
    assert network.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet50a", (3, 4, 6, 3)), ("resnet101a", (3, 4, 23, 3)), ("resnet152a", (3, 8, 36, 3))]
)
def test_depths(name, layers):
    network = timm.create_model(name, channels=(1, 1, 1, 1), stem_width=1)
    assert tuple(len(getattr(network, f"layer{i}")) for i in (1, 2, 3, 4)) == layers


def test_b_has_as_many_weights_but_more_to_compute():
    """He et al. 2018, table 5: 3.8 GFLOPs against 4.1 for 50 layers; here the products of one stage's entry."""
    counts = {}
    for name in ("resnet50a", "resnet50"):
        network, products = tiny(name), []
        for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
            conv.register_forward_hook(lambda m, x, y, seen=products: seen.append(y[0, 0].numel() * m.weight.numel()))
        network.eval()(torch.rand(1, 3, 64, 64))
        counts[name] = (sum(p.numel() for p in network.parameters()), sum(products))
    assert counts["resnet50a"][0] == counts["resnet50"][0]
    assert counts["resnet50a"][1] < counts["resnet50"][1]


@pytest.mark.parametrize(("name", "stem", "giga"), [
    ("resnet50a", [64], 3.8), ("resnet50", [64], 4.1), ("resnet50c", [32, 32, 64], 4.3),
    ("resnet50d", [32, 32, 64], 4.3),
])  # fmt: skip
def test_the_whole_networks_cost_what_the_source_says(name, stem, giga):
    """He et al. 2019, table 5: 3.8, 4.1, 4.3, 4.3 GFLOPs (products and sums as one), counted on shapes alone."""
    with torch.device("meta"):
        network, products = timm.create_model(name).eval(), []
        for layer in (m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            layer.register_forward_hook(lambda m, x, y: products.append(y[0, 0].numel() * m.weight.numel()))
        network(torch.empty(1, 3, 224, 224))
    assert sum(products) / 1e9 == pytest.approx(giga, abs=0.1)
    first = [m for m in network.conv1.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in first] == stem and [m.stride[0] for m in first] == [2, 1, 1][: len(stem)]


@pytest.mark.parametrize("kind", [{"architecture": "classifier"}, {"architecture": "segmentation", "decoder": "fpn"}])
def test_it_is_an_encoder_and_takes_the_weights_of_b(tmp_path, kind):
    state = {name: torch.rand_like(t) for name, t in tiny("resnet50").state_dict().items() if t.is_floating_point()}
    state |= {name: t for name, t in tiny("resnet50").state_dict().items() if not t.is_floating_point()}
    save_file(state, tmp_path / "resnet50.safetensors")
    network = build(classes=2, images=2, encoder="tu-resnet50a", encoder_options=TINY,
                    encoder_weights=str(tmp_path / "resnet50.safetensors"), **kind)  # fmt: skip
    assert network.encoder.model.layer2[0].conv1.stride == (2, 2)
    assert network.encoder.model.layer4[0].conv3.weight.equal(state["layer4.0.conv3.weight"])
    assert network.source["file"] == "resnet50.safetensors"
    size = (1, 1) if kind["architecture"] == "classifier" else (64, 64)
    assert network.eval()(torch.zeros(1, 6, 64, 64)).shape == (1, 2, *size)


def test_no_anti_aliasing():
    with pytest.raises(ValueError, match="anti-aliasing"):
        tiny("resnet50a", aa_layer=BlurPool2d)
