"""Starting from nothing: Xavier's bounds, and residual blocks that are the identity."""

import math

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.errors import ConfigError
from lib.models import build
from lib.models.init import last_norms, set_last_gamma, start, xavier
from lib.models.layers import use_group_norm

TINY = {"layers": (2, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}


BLOCKS = ("BasicBlock", "Bottleneck", "BottleneckA", "PreActBottleneck", "InvertedResidual", "DepthwiseSeparableConv",
          "BottleneckBlock", "DarkBlock", "EdgeBlock")  # fmt: skip


def residual_blocks(network):
    """The blocks that add their input, by the names of their classes."""
    blocks = [m for m in network.modules() if type(m).__name__ in BLOCKS and getattr(m, "has_skip", True)]
    return [block for block in blocks if getattr(block, "shortcut", block) is not None]


def is_identity(block, x):
    """Whether a block in training gives what its way around does, after its last activation where it has one."""
    around = getattr(block, "downsample", None) or getattr(block, "shortcut", None) or nn.Identity()
    expected, y = around(x), block(x.clone())
    return torch.equal(y, expected) or torch.equal(y, expected.relu())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"channels": (8, 8, 16, 16)}),
        ("resnet50", TINY),
        ("resnet50a", TINY),
        ("resnet50d", TINY),
        ("seresnet50", TINY),
        ("resnetv2_50", {"layers": (2, 1, 1, 1), "channels": (16, 32, 64, 128)}),
        ("regnety_002", {}),
        ("mobilenetv3_small_050", {}),
        ("test_byobnet", {}),
    ],
)
def test_blocks_start_as_the_identity(name, options):
    torch.manual_seed(0)
    network = timm.create_model(name, **options).train()
    assert set_last_gamma(network, 1.0) == set_last_gamma(network, 0.0) == len(residual_blocks(network)) > 3
    inputs = {}
    for block in residual_blocks(network):
        block.register_forward_pre_hook(lambda module, x: inputs.update({module: x[0].shape}))
    network(torch.rand(2, 3, 64, 64))
    for block in residual_blocks(network):
        if not (name == "resnetv2_50" and block.downsample):  # there the way around starts after the first norm
            assert is_identity(block, torch.rand(inputs[block]))  # not negative, as after an activation


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "se_resnet50"])
def test_smps_own_encoders_too(encoder):
    torch.manual_seed(0)
    network = smp.encoders.get_encoder(encoder, weights=None)
    assert all(norm.weight.eq(1).all() for norm in last_norms(network))
    assert set_last_gamma(network, 0.0) == {"resnet18": 8, "efficientnet-b0": 9, "se_resnet50": 16}[encoder]
    if encoder == "resnet18":
        x = torch.rand(2, 64, 8, 8)
        assert all(is_identity(block, x) for block in network.layer1)


def test_efficientnets_blocks_without_a_skip_are_left_alone():
    network = timm.create_model("mobilenetv3_small_050")
    set_last_gamma(network, 0.0)
    blocks = [block for stage in network.blocks for block in stage if hasattr(block, "has_skip")]
    assert {block.has_skip for block in blocks} == {True, False}
    for block in blocks:
        last = block.bn3 if hasattr(block, "bn3") else block.bn2 if hasattr(block, "bn2") else block.bn1
        assert last.weight.eq(0).all() == block.has_skip


def test_group_norms_too():
    network = timm.create_model("resnet18", channels=(8, 8, 16, 16))
    use_group_norm(network)
    assert set_last_gamma(network, 0.0) == 8
    assert is_identity(network.layer1[1], torch.rand(1, 8, 8, 8))


def test_zero_gamma_can_be_switched_off_where_timm_has_it():
    network = build("classifier", classes=2, images=1, encoder="test_resnet")
    assert all(norm.weight.eq(0).all() for norm in last_norms(network.encoder))
    start(network, zero_gamma=False)
    assert all(m.weight.eq(1).all() for m in network.modules() if isinstance(m, _BatchNorm))
    start(network, "xavier", zero_gamma=True)
    assert all(norm.weight.eq(0).all() for norm in last_norms(network.encoder))
    start(network)  # nothing asked, nothing done
    assert all(norm.weight.eq(0).all() for norm in last_norms(network.encoder))


def test_networks_without_residual_blocks_are_refused():
    with pytest.raises(ConfigError, match="no residual block"):
        start(timm.create_model("test_convnext"), zero_gamma=True)
    with pytest.raises(ConfigError, match="default, xavier, got 'he'"):
        start(nn.Linear(1, 1), "he")


def test_xavier():
    torch.manual_seed(0)
    network = build("segmentation", classes=2, images=2, encoder="tu-test_efficientnet", decoder="fpn")
    xavier(network)
    checked = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1]
            fans = module.weight.shape[1] * taps + module.weight.shape[0] * taps
            bound = math.sqrt(6 / fans)
            assert module.weight.abs().max() <= bound
            if module.weight.numel() > 500:
                assert module.weight.detach().std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
                checked += 1
        elif isinstance(module, _BatchNorm | nn.GroupNorm):
            assert module.weight.eq(1).all()
        if isinstance(module, nn.Conv2d | _BatchNorm | nn.GroupNorm) and module.bias is not None:
            assert module.bias.eq(0).all()
    assert checked > 5
