"""Activation checkpointing: less is kept, and nothing else is different, in encoders of every kind and in decoders."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.errors import ConfigError
from lib.models import build
from lib.models.recompute import Recomputed, recompute

pytestmark = pytest.mark.slow  # encoders of full size

SMALL = [16, 16, 8, 8, 8]
SWIN = {"encoder": "tu-swin_tiny_patch4_window7_224",
        "encoder_options": {"embed_dim": 24, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 4, 8),
                            "drop_path_rate": 0.3}}  # fmt: skip
NETWORKS = {
    "smp's resnet": {"encoder": "resnet18", "decoder_channels": SMALL},
    "smp's efficientnet, which drops paths": {"encoder": "efficientnet-b0", "decoder_channels": SMALL},
    "smp's mit": {"encoder": "mit_b0", "decoder": "segformer", "decoder_segmentation_channels": 16},
    "smp's densenet": {"encoder": "densenet121", "decoder": "linknet"},
    "smp's dpn": {"encoder": "dpn68", "decoder": "unet2020", "decoder_channels": SMALL[:4]},
    "timm's efficientnet": {"encoder": "tu-test_efficientnet", "decoder": "unetplusplus", "decoder_channels": SMALL},
    "timm's regnet": {"encoder": "tu-regnety_002", "decoder": "manet", "decoder_channels": SMALL},
    "timm's swin": SWIN | {"decoder": "upernet", "decoder_channels": 16},
    "timm's vit": {"encoder": "tu-test_vit", "decoder": "dpt", "decoder_intermediate_channels": [8, 8, 16, 16],
                   "decoder_fusion_channels": 16},
    "siamese": {"architecture": "siamese", "images": 2, "encoder": "tu-test_resnet", "decoder_channels": SMALL},
    "gates": {"encoder": "tu-test_resnet", "decoder_channels": SMALL, "attention_gates": True, "dropout": 0.3},
    "hybrid": {"architecture": "hybrid", "encoder": "tu-test_resnet", "decoder_channels": SMALL, "aspp_channels": 12,
               "fpn_channels": 8, "merge": "bifpn", "bifpn_layers": 2},
    "unet": {"architecture": "unet", "encoder": "none", "base": 4},
    "attention_unet": {"architecture": "attention_unet", "encoder": "none", "base": 4},
    "classifier": {"architecture": "classifier", "encoder": "test_convnext", "drop_path_rate": 0.3},
}  # fmt: skip


def tiny(**options):
    torch.manual_seed(0)
    return build(**{"architecture": "segmentation", "classes": 3, "images": 1} | options)


def picture(images=1, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3 * images, size, size), dtype=torch.uint8, generator=generator)


def step(net, x):
    """Go forward and back; returns the logits and how many numbers were kept for the way back outside the blocks."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = net(x)
    logits.square().mean().backward()
    return logits.detach(), kept


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_are_the_same_and_less_is_kept(name):
    options = NETWORKS[name]
    x = picture(options.get("images", 1))
    plain, net = tiny(**options), tiny(**options, grad_checkpointing=True)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert any(isinstance(m, Recomputed) for m in net.encoder.modules())
    (expected, much), (got, little) = step(plain, x), step(net, x)
    assert got.equal(expected)
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        if q.grad is None:  # a layer that the library builds and does not use
            assert p.grad is None, name
            continue
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6 * float(q.grad.abs().max() + 1), msg=name)
    for (name, p), q in zip(net.named_buffers(), plain.buffers(), strict=True):
        assert p.equal(q), name  # the running statistics have moved once
    assert little < 0.8 * much


@pytest.mark.parametrize(
    ("decoder", "blocks"),
    [("unet", 5), ("manet", 5), ("linknet", 5), ("unetplusplus", 11), ("fpn", 2), ("upernet", 0), ("segformer", 0)],
)
def test_the_steps_of_a_decoder_are_blocks_where_it_has_steps(decoder, blocks):
    net = tiny(encoder="tu-test_resnet", decoder=decoder, grad_checkpointing=True)
    assert sum(isinstance(m, Recomputed) for m in net.decoder.modules()) == blocks


def test_statistics_do_move_and_a_block_is_computed_twice():
    net = tiny(encoder="resnet18", decoder_channels=SMALL, grad_checkpointing=True)
    block = net.encoder.layer1[0]
    calls, before = [], block.bn1.running_mean.clone()
    block.conv1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    step(net, picture())
    assert len(calls) == 2
    assert not block.bn1.running_mean.equal(before) and block.bn1.num_batches_tracked == 1
    with torch.inference_mode():
        net.eval()(picture())
    assert len(calls) == 3


def test_two_ways_back_through_one_graph():
    net = tiny(encoder="tu-test_resnet", decoder_channels=SMALL, grad_checkpointing=True)
    loss = net(picture()).square().mean()
    loss.backward(retain_graph=True)
    once = net.encoder.model.layer1[0].conv1.weight.grad.clone()
    statistics = [m.running_mean.clone() for m in net.modules() if isinstance(m, _BatchNorm)]
    loss.backward()
    torch.testing.assert_close(net.encoder.model.layer1[0].conv1.weight.grad, 2 * once)
    moved = [m.running_mean for m in net.modules() if isinstance(m, _BatchNorm)]
    assert all(a.equal(b) for a, b in zip(statistics, moved, strict=True))


def test_a_copy_is_a_network_of_its_own():
    net = tiny(encoder="tu-test_resnet", decoder_channels=SMALL, grad_checkpointing=True)
    copy = deepcopy(net)
    step(copy, picture())
    assert all(p.grad is None for p in net.parameters()) and all(p.grad is not None for p in copy.parameters())


class Pair(nn.Module):
    """Two convolutions: a block, where it is one of a row."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.second(self.first(x))


def test_what_a_block_is():
    row = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(Pair(), Pair()), nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))
    row[1][1].first.register_forward_hook(lambda *_: None)
    outer = nn.Module()
    outer.row, outer.alone = row, Pair()
    assert recompute(outer) == 1  # the other has a hook inside, and the third is alone
    assert isinstance(row[1][0], Recomputed) and isinstance(row[1][0], Pair)
    assert recompute(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())) == 0


@pytest.mark.parametrize(("architecture", "encoder"), [("segmentation", "vgg11"), ("classifier", "vgg11")])
def test_an_encoder_without_blocks_is_refused(architecture, encoder):
    with pytest.raises(ConfigError, match="grad_checkpointing: encoder vgg11 is not made of blocks; choose another"):
        tiny(architecture=architecture, encoder=encoder, grad_checkpointing=True)


def test_only_a_switch_is_taken():
    with pytest.raises(ConfigError, match="grad_checkpointing: expected false, or true"):
        tiny(encoder="resnet18", grad_checkpointing="all")
    with pytest.raises(ConfigError, match="grad_checkpointing: expected true or false, got 1"):
        tiny(architecture="unet", encoder="none", grad_checkpointing=1)
