"""The U-Net and the Attention U-Net: their size, what a gate does, checkpoints, and what must be refused."""

import pytest
import torch
from overfitting import overfit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.errors import ConfigError
from lib.models import build, checkpoint
from lib.models.gates import Gate

BOTH = pytest.mark.parametrize("architecture", ["unet", "attention_unet"])


def tiny(architecture="attention_unet", **options):
    torch.manual_seed(0)
    return build(architecture, **{"classes": 3, "images": 1, "encoder": "none", "base": 4} | options)


def picture(batch=2, size=32, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("architecture", "weights"), [("unet", 31_043_911), ("attention_unet", 34_878_963)])
def test_published_size(architecture, weights):
    with torch.device("meta"):
        net = build(architecture, classes=7, images=1, encoder="none")
    assert sum(p.numel() for p in net.parameters()) == weights


@BOTH
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_logits_at_the_size_of_the_input(architecture, upsampling):
    net = tiny(architecture, images=2, upsampling=upsampling)
    x = picture(channels=6, size=64)[..., :32]
    logits = net(x)
    assert logits.shape == (2, 3, 64, 32)
    assert logits.equal(net(x.float()))
    assert (net.stride, net.source) == (32, None)
    logits.square().mean().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    assert [f.shape[1:] for f in net.encoder(net.normalize(x))] == [(4 << i, 64 >> i, 32 >> i) for i in range(5)]


def test_a_gate_by_its_definition():
    torch.manual_seed(0)
    gate = Gate(8, 8).eval()
    query, skip = torch.randn(2, 2, 8, 5, 5)
    got = gate(query, skip)
    weights = got / skip
    assert 0 < weights.min() and weights.max() < 1
    torch.testing.assert_close(weights, weights[:, :1].expand_as(weights))  # one weight a pixel, for all channels
    one = {name: getattr(gate, name)[0].weight[:, :, 0, 0] @ x[0, :, 2, 3] + getattr(gate, name)[0].bias
           for name, x in (("query", query), ("key", skip))}  # fmt: skip
    scale = (1 + 1e-5) ** -0.5  # a batch norm that has seen nothing
    inner = (scale * (one["query"] + one["key"])).clamp(min=0)
    expected = torch.sigmoid(scale * (gate.psi[1].weight[0, :, 0, 0] @ inner + gate.psi[1].bias))
    torch.testing.assert_close(weights[0, 0, 2, 3], expected[0])


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_with_every_weight_one_it_is_the_unet(upsampling):
    plain, gated = tiny("unet", upsampling=upsampling).eval(), tiny(upsampling=upsampling).eval()
    missing = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(name.startswith("decoder.gates.") for name in missing.missing_keys)
    with torch.inference_mode():
        assert not gated(picture()).allclose(plain(picture()))
        for gate in gated.decoder.gates:
            nn.init.zeros_(gate.psi[2].weight)
            nn.init.constant_(gate.psi[2].bias, 100.0)
        assert gated(picture()).equal(plain(picture()))


@BOTH
@pytest.mark.slow
def test_one_batch_can_be_overfitted(architecture):
    x = picture() // 4
    target = torch.zeros(2, 32, 32, dtype=torch.long)
    for value in (1, 2):
        place = (slice(None), slice(4, 28), slice(12 * value - 6, 12 * value + 2))
        target[place] = value
        x[:, :, 4:28, 12 * value - 6 : 12 * value + 2] += 80 * value
    net = tiny(architecture)
    overfit(net, x, target, lr=1e-2, steps=40)
    with torch.inference_mode():
        assert (net(x).argmax(1) == target).float().mean() > 0.97


@BOTH
def test_group_norm_as_in_the_other_networks(architecture):
    net = tiny(architecture, norm="group")
    assert not any(isinstance(m, _BatchNorm) for m in net.decoder.modules())
    assert any(isinstance(m, _BatchNorm) for m in net.encoder.modules())
    net = tiny(architecture, norm="group_everywhere")
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    assert net(picture(1)).isfinite().all()


@BOTH
def test_a_checkpoint_gives_the_network_back(architecture, tmp_path):
    arguments = {"architecture": architecture, "classes": 3, "images": 1, "encoder": "none", "base": 4, "dropout": 0.2}
    net = build(**arguments)
    net(picture())  # moves the running statistics
    checkpoint.describe(tmp_path, arguments, ("post",), ("a", "b", "c"))
    checkpoint.save_weights(tmp_path, net.state_dict())
    with torch.inference_mode():
        assert checkpoint.load_network(tmp_path)(picture()).equal(net.eval()(picture()))


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "resnet34"}, "encoder: expected none with this architecture, got 'resnet34'"),
        ({"encoder_weights": "bundled"}, "encoder_weights: expected none"),
        ({"upsampling": "nearest"}, "upsampling: expected transposed or bilinear"),
        ({"norm": "layer"}, "norm: expected batch or group"),
        ({"base": 1}, "base: expected a whole number from 2 up"),
        ({"base": 4.5}, "base: expected a whole number"),
        ({"decoder": "unet"}, "unknown option decoder; it has base, upsampling"),
    ],
)
def test_what_cannot_be_built_is_said_in_the_users_words(architecture, options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(architecture, **options)
