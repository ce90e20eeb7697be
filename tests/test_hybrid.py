"""The hybrid (ASPP + U-Net + FPN): its parts by definition, and what must be refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from overfitting import overfit
from reloading import reloaded
from torch.nn.modules.batchnorm import _BatchNorm

from lib.config.sections import Optimizer
from lib.errors import ConfigError
from lib.models import build
from lib.models.hybrid import Pyramid
from lib.training.optim import param_groups

pytestmark = pytest.mark.slow  # networks are built and run

HYBRID = {"decoder_channels": [16, 16, 8, 8, 8], "aspp_channels": 12, "fpn_channels": 8}


def tiny(**options):
    torch.manual_seed(0)
    return build("hybrid", **{"classes": 3, "images": 1, "encoder": "tu-test_efficientnet"} | HYBRID | options)


def picture(batch=2, size=64, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)


def test_logits_at_the_size_of_the_input_and_a_gradient_everywhere():
    net = tiny(images=2)
    logits = net(picture(channels=6)[..., :32])
    assert logits.shape == (2, 3, 64, 32)
    assert (net.stride, net.source) == (32, None)
    F.cross_entropy(logits, torch.randint(0, 3, (2, 64, 32))).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert {group["name"].partition(",")[0] for group in param_groups(net, Optimizer(lr=1e-3), 1e-3)} == {
        "encoder",
        "rest",
    }


@pytest.mark.parametrize("encoder", ["tu-test_convnext", "tu-swin_tiny_patch4_window7_224", "mobilenet_v2"])
def test_encoders_of_every_kind(encoder):
    swin = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}  # its level at 1/2 has no channels
    options = {"encoder_options": swin} if "swin" in encoder else {}
    with torch.inference_mode():
        assert tiny(encoder=encoder, **options).eval()(picture(1)).shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_one_batch_can_be_overfitted():
    x = picture() // 4
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    for value in (1, 2):
        place = (slice(None), slice(8, 56), slice(24 * value - 12, 24 * value + 4))
        target[place] = value
        x[:, :, 8:56, 24 * value - 12 : 24 * value + 4] += 80 * value
    short = {"upsample_logits": 4, "decoder_channels": [16, 16, 8], "aspp_dropout": 0.0}
    net = tiny(**short)
    overfit(net, x, target, lr=1e-2, steps=30)
    assert (net(x).argmax(1) == target).float().mean() > 0.95


def test_a_checkpoint_gives_the_network_back(tmp_path):
    arguments = {"architecture": "hybrid", "classes": 3, "images": 1, "encoder": "tu-test_resnet"}
    arguments |= HYBRID | {"merge": "bifpn"}
    net = build(**arguments)
    loaded = reloaded(net, arguments, tmp_path)
    with torch.inference_mode():
        assert loaded(picture()).equal(net.eval()(picture()))


# ---- hybrid -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["add", "concat"])  # bifpn: tests/test_bifpn.py
def test_merge_by_its_definition(merge):
    torch.manual_seed(0)
    pyramid = Pyramid([3, 4, 5], 2, merge).eval()
    levels = [torch.randn(1, c, s, s) for c, s in ((3, 2), (4, 4), (5, 8))]
    got = pyramid(levels).detach().numpy()
    maps = []
    for lateral, level in zip(pyramid.lateral, levels):
        y = F.conv2d(level, lateral[0].weight, padding=1).clamp(min=0) / math.sqrt(1 + 1e-5)  # an untouched batch norm
        maps.append(F.interpolate(y, (8, 8), mode="bilinear", align_corners=False).detach().numpy())
    if merge == "add":
        expected = maps[0] + maps[1] + maps[2]
    else:
        expected = np.concatenate(maps, axis=1)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert pyramid.out_channels == expected.shape[1]


@pytest.mark.parametrize(("upsample_logits", "channels"), [(1, [16, 16, 8, 8, 8]), (4, [16, 16, 8])])
def test_the_steps_are_smps_unet_on_top_of_the_aspp(upsample_logits, channels):
    net = tiny(upsample_logits=upsample_logits, decoder_channels=channels).eval()
    seen = []
    net.decoder.pyramid.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    with torch.inference_mode():
        features = net.encode(net.normalize(picture()))
        assert net(picture()).shape == (2, 3, 64, 64)
        centre = net.decoder.aspp(features[-1])
        last = net.decoder.unet([*features[:-1], centre])
    assert [level.shape[1] for level in seen] == [12, *channels]
    assert [level.shape[-1] for level in seen] == [2 << i for i in range(len(channels) + 1)]
    assert seen[0].equal(centre) and seen[-1].equal(last)


def test_one_image_trains_with_group_norm_and_not_without():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        tiny()(picture(1))
    net = tiny(norm="group")
    assert net(picture(1)).isfinite().all()
    assert not any(isinstance(m, _BatchNorm) for m in net.decoder.modules())
    assert any(isinstance(m, _BatchNorm) for m in net.encoder.modules())


def test_further_heads_speak_in_training_only():
    further = {"boundary": True, "aux_head": True, "attention_gates": True}
    net = tiny(upsample_logits=2, decoder_channels=[16, 16, 8, 8], merge="add", **further)
    outputs = net(picture())
    shapes = {name: tuple(y.shape) for name, y in outputs.items()}
    assert shapes == {"logits": (2, 3, 64, 64), "boundary": (2, 1, 64, 64), "aux": (2, 3, 64, 64)}
    assert net.eval()(picture()).shape == (2, 3, 64, 64)


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge": "mean"}, "merge: expected one of add, concat, bifpn, got 'mean'"),
        ({"merge": "weighted"}, "merge: expected one of add, concat, bifpn"),
        ({"merge": "add", "bifpn_layers": 5}, "bifpn_layers: belongs to merge bifpn, got merge add"),
        ({"atrous_rates": [6, 12]}, "atrous_rates: expected three"),
        ({"atrous_rates": [0, 6, 12]}, "atrous_rates: expected three positive"),
        ({"fpn_channels": 0}, "fpn_channels: expected a whole number from 1 up"),
        ({"decoder": "fpn"}, "architecture hybrid: decoder follows from it"),
        ({"boundary": 1}, "boundary: expected false, or true"),
        ({"encoder_depth": 4}, "architecture hybrid: encoder_depth follows from it"),
        ({"norm": "layer"}, "norm: expected one of batch, group"),
        ({"decoder_chanels": [8]}, "unknown option decoder_chanels for decoder unet"),
    ],
)
def test_what_cannot_be_built_is_said_in_the_users_words(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**options)
