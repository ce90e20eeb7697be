"""Further heads, attention gates and expansion taps: what they give, that all of it trains, and what is refused."""

import hashlib
import json
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.errors import ConfigError
from lib.models import build, checkpoint, segmentation
from lib.models.gates import Gate

pytestmark = pytest.mark.slow  # networks are built and run

ENCODER, LITE = "tu-test_efficientnet", "tu-tf_efficientnet_lite0"
SMALL = [24, 16, 16, 8, 8]
SCRATCH = {"images": 1, "encoder": "none", "base": 4}
UNET = {"architecture": "segmentation", "images": 1, "encoder": ENCODER, "decoder_channels": SMALL}
UPERNET = UNET | {"decoder": "upernet", "decoder_channels": 16}


def tiny(**options):
    torch.manual_seed(0)
    return build(**{"classes": 5} | UNET | options)


def picture(batch=2, size=64, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)


def backward(outputs):
    outputs = outputs.values() if isinstance(outputs, dict) else [outputs]
    sum(output.square().mean() for output in outputs).backward()


def without_gradient(net):
    return {name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()}


# ---- every option: all of it trains, evaluation gives the logits, a checkpoint gives it back ------------

EVERY = {
    "unet": (SCRATCH | {"architecture": "unet", "boundary": True}, {"boundary"}),
    "attention_unet": (SCRATCH | {"architecture": "attention_unet", "boundary": True}, {"boundary"}),
    "boundary": (UNET | {"boundary": True, "dropout": 0.2}, {"boundary"}),
    "aux": (UPERNET | {"aux_head": True}, {"aux"}),
    "both, group norm": (UPERNET | {"aux_head": True, "boundary": True, "norm": "group"}, {"aux", "boundary"}),
    "gates": (UNET | {"attention_gates": True}, set()),
    "gates, siamese": (
        UNET | {"architecture": "siamese", "images": 2, "attention_gates": True, "boundary": True, "aux_head": True},
        {"aux", "boundary"},
    ),
    "taps": (UNET | {"encoder": LITE, "skips": "expansion", "attention_gates": True, "boundary": True}, {"boundary"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_it_trains_as_a_whole_and_a_checkpoint_gives_it_back(name, tmp_path):
    options, further = EVERY[name]
    arguments = {"classes": 5, "images": 1} | options
    torch.manual_seed(0)
    net = build(**arguments)
    x = picture(channels=3 * arguments["images"])
    outputs = net(x)
    if further:
        assert outputs.keys() == {"logits"} | further
        sizes = {"logits": 5, "aux": 5, "boundary": 1}
        assert all(output.shape == (2, sizes[name], 64, 64) for name, output in outputs.items())
    else:
        assert isinstance(outputs, Tensor)
    backward(outputs)
    assert not without_gradient(net)  # an unused parameter stops distributed training

    checkpoint.describe(tmp_path, arguments, ("image",), tuple("abcde"))
    checkpoint.save_weights(tmp_path, net.state_dict())
    with torch.inference_mode():
        logits = net.eval()(x)
        assert logits.shape == (2, 5, 64, 64)
        assert checkpoint.load_network(tmp_path)(x).equal(logits)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"architecture": "unet", "encoder": "none", "base": 4}, "bf52c27d92905d01"),
        ({"architecture": "attention_unet", "encoder": "none", "base": 4}, "c00c7b166f445215"),
        ({"decoder": "unet"}, "cc6abfbf0fbd732b"),
        ({"decoder": "unet2020"}, "ca20b637729f0eac"),
        ({"decoder": "upernet"}, "37e57483b9d869aa"),
        ({"decoder": "unetplusplus"}, "d5361b5d652bea9a"),
        ({"architecture": "siamese", "images": 2}, "6c18b992e9a2108d"),
    ],
)
def test_the_weights_of_plain_networks_keep_their_names(options, names):
    with torch.device("meta"):
        net = build(**{"architecture": "segmentation", "classes": 3, "images": 1, "encoder": ENCODER} | options)
    shapes = json.dumps([[name, list(tensor.shape)] for name, tensor in net.state_dict().items()])
    assert hashlib.sha256(shapes.encode()).hexdigest()[:16] == names  # taken before there were any further heads


# ---- heads --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("decoder", sorted(set(segmentation.DECODERS) - {"dpt"}))
def test_every_decoder_takes_a_boundary_head_which_leaves_the_logits_alone(decoder):
    size = 128 if decoder == "pan" else 64  # PAN pools the features at 1/16 three times more
    options = {"decoder": decoder, "decoder_channels": SMALL} if decoder == "unet" else {"decoder": decoder}
    options = {"classes": 5, "images": 1, "encoder": ENCODER} | options
    plain, net = (build("segmentation", **options, boundary=boundary) for boundary in (False, True))
    missing = net.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["boundary.0.weight", "boundary.0.bias"]
    assert net.boundary[0].kernel_size == (3, 3)
    with torch.no_grad():
        assert net(picture(size=size))["boundary"].shape == (2, 1, size, size)
        net.load_state_dict(plain.state_dict(), strict=False)  # the running statistics have moved
        assert net.eval()(picture(1, size)).equal(plain.eval()(picture(1, size)))


def test_boundary_logits_are_a_convolution_of_what_the_decoder_gives_upsampled_like_the_others():
    net = tiny(decoder_channels=[16, 8, 8, 8], upsample_logits=2, boundary=True).eval()
    net.training = True  # of the network alone: statistics stand still
    with torch.no_grad():
        decoded = net.decoder(net.encode(net.normalize(picture())))
        assert decoded.shape == (2, 8, 32, 32)
        expected = F.conv2d(decoded, net.boundary[0].weight, net.boundary[0].bias, padding=1)
        expected = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(net(picture())["boundary"], expected)


def test_the_auxiliary_head_by_its_definition():
    net = tiny(**UPERNET, aux_head=True).eval()
    net.training = True
    conv, norm, _, dropout, last = net.aux
    assert sum(p.numel() for p in net.aux.parameters()) == 9 * 48 * 256 + 2 * 256 + 256 * 5 + 5
    assert dropout.p == 0.1
    nn.init.normal_(norm.weight)
    with torch.no_grad():
        features = net.encode(net.normalize(picture()))[4]
        assert features.shape == (2, 48, 4, 4)  # the stage at 1/16
        inner = F.conv2d(features, conv.weight, padding=1) * (1 + norm.eps) ** -0.5
        inner = (inner * norm.weight[:, None, None]).clamp(min=0)
        coarse = torch.einsum("bchw,kc->bkhw", inner, last.weight[:, :, 0, 0])
        expected = F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(net(picture())["aux"], expected)


@pytest.mark.parametrize("norm", ["group", "group_everywhere"])
def test_with_group_norm_one_image_trains_all_heads(norm):
    net = tiny(**UPERNET, aux_head=True, boundary=True, norm=norm)
    outputs = net(picture(1))
    assert all(output.isfinite().all() for output in outputs.values())
    backward(outputs)
    assert not without_gradient(net)
    for part in (net.decoder, net.aux, *([net.encoder] if norm == "group_everywhere" else [])):
        assert not any(isinstance(m, _BatchNorm) for m in part.modules())
    assert isinstance(net.aux[1], nn.GroupNorm)


@pytest.mark.slow
def test_classes_and_boundaries_of_one_batch_can_be_learnt_together():
    x, target, edge = picture(size=32) // 16, torch.zeros(2, 32, 32, dtype=torch.long), torch.zeros(2, 1, 32, 32)
    target[:, 8:24, 8:24], edge[:, :, 8:24, 8:24] = 1, 1
    edge[:, :, 10:22, 10:22] = 0
    x[:, :, 8:24, 8:24] += 150
    torch.manual_seed(0)
    net = build("unet", classes=2, boundary=True, **SCRATCH | {"base": 8})
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(40):
        outputs = net(x)
        loss = F.cross_entropy(outputs["logits"], target)
        loss = loss + F.binary_cross_entropy_with_logits(outputs["boundary"], edge)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        outputs = net(x)
    assert (outputs["logits"].argmax(1) == target).float().mean() > 0.97
    assert ((outputs["boundary"] > 0) == edge.bool()).float().mean() > 0.97


# ---- gates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "gates"),
    [
        ({}, 4),
        ({"encoder": "tu-test_resnet"}, 4),
        ({"encoder": "mobilenet_v2"}, 4),
        ({"encoder": "tu-test_convnext"}, 3),  # begins at 1/4: no skip at 1/2
        ({"decoder_channels": [16, 8, 8, 8], "upsample_logits": 2}, 4),
        ({"decoder_channels": [16, 8, 8], "upsample_logits": 4}, 3),
        ({"architecture": "siamese", "images": 2}, 4),
    ],
)
def test_gates_weigh_every_skip_and_with_every_weight_one_it_is_the_plain_network(options, gates):
    plain, gated = tiny(**options).eval(), tiny(**options, attention_gates=True).eval()
    x = picture(channels=plain.normalize.mean.shape[1])
    missing = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all(".gate." in name for name in missing.missing_keys)
    found = [m for m in gated.modules() if isinstance(m, Gate)]
    weights = []
    for gate in found:
        gate.psi.register_forward_hook(lambda module, inputs, output: weights.append(output))
    with torch.inference_mode():
        assert not gated(x).allclose(plain(x))
        assert len(weights) == len(found) == gates
        for weight in weights:
            assert weight.shape[1] == 1 and 0 <= weight.min() < weight.max() <= 1
        assert [w.shape[-1] for w in weights] == [4, 8, 16, 32][:gates]
        for gate in found:
            nn.init.zeros_(gate.psi[2].weight)
            nn.init.constant_(gate.psi[2].bias, 100.0)
        assert gated(x).equal(plain(x))


def test_the_query_of_a_gate_is_the_upsampled_map_of_the_decoder():
    net = tiny(attention_gates=True).eval()
    seen = []
    block = net.decoder.blocks[1]
    block.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    block.gate.register_forward_hook(lambda module, inputs, output: seen.extend(inputs))
    with torch.inference_mode():
        net(picture())
        features = net.encode(net.normalize(picture()))
    query, skip, before = seen
    assert query.equal(before.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))  # smp's U-Net: nearest
    assert skip.equal(features[3])


# ---- expansion taps -----------------------------------------------------------------------------------


def test_the_taps_of_efficientnet_b3_are_those_of_keras():
    net = tiny(encoder="tu-efficientnet_b3", skips="expansion").eval()
    blocks, expected = net.encoder.model.blocks, []
    for layer in (net.encoder.model.bn1, blocks[2][0].bn1, blocks[3][0].bn1, blocks[5][0].bn1, blocks[6]):
        layer.register_forward_hook(lambda module, inputs, output: expected.append(output.clone()))
    x = picture(1)
    with torch.inference_mode():
        features = net.encode(net.normalize(x))
        assert net(x).shape == (1, 5, 64, 64)
    assert net.encoder.out_channels == [3, 40, 192, 288, 816, 384]
    assert [f.shape[1:] for f in features] == [(c, 64 >> i, 64 >> i) for i, c in enumerate(net.encoder.out_channels)]
    assert all(got.equal(tap) for got, tap in zip(features[1:], expected[:5], strict=True))


def test_taps_change_no_weight_and_survive_copying_loading_and_other_norms(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    save_file(state, tmp_path / "tf_efficientnet_lite0.safetensors")
    options = {"encoder": LITE, "encoder_weights": tmp_path}
    net, plain = tiny(**options, skips="expansion").eval(), tiny(**options).eval()
    assert net.source == plain.source and net.source["tensors"] > 100
    assert net.encoder.state_dict().keys() == plain.encoder.state_dict().keys()
    with torch.inference_mode():
        normalised = net.normalize(picture())
        got, stages = net.encoder(normalised), plain.encoder(normalised)
        assert got[-1].equal(stages[-1])
        block = plain.encoder.model.blocks[2][0]
        torch.testing.assert_close(got[2], block.bn1(block.conv_pw(stages[2])))
        copy = deepcopy(net)
        nn.init.zeros_(copy.encoder.model.conv_stem.weight)
        assert not copy(picture()).equal(net(picture()))
        assert all(a.equal(b) for a, b in zip(net.encoder(normalised), got))
    group = tiny(encoder=LITE, skips="expansion", norm="group_everywhere")
    assert not any(isinstance(m, _BatchNorm) for m in group.modules())
    backward(group(picture(1)))
    assert not without_gradient(group)


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention_gates": True, "decoder": "unetplusplus"}, "attention_gates: .* true with decoder unet"),
        ({"boundary": 1}, "boundary: expected false, or true with any decoder but dpt, got 1"),
        ({"boundary": True, "decoder": "dpt"}, "boundary: .* but dpt"),
        ({"aux_head": "yes"}, "aux_head: expected false, or true"),
        ({"aux_head": True, "decoder": "pspnet"}, "aux_head: .* down to 1/16, got one of depth 3"),
        ({"skips": "keras"}, "skips: expected smp or expansion .* got 'keras'"),
        ({"skips": "expansion"}, "skips expansion: expected a tu-efficientnet"),
        ({"skips": "expansion", "encoder": "efficientnet-b0"}, "skips expansion: expected a tu-efficientnet"),
        ({"skips": "expansion", "encoder": LITE, "decoder": "pan"}, "ends at 1/32"),
        ({"skips": "expansion", "encoder": LITE, "grad_checkpointing": True}, "not with dpt or grad_checkpointing"),
        ({"architecture": "unet", "encoder": "none", "boundary": "on"}, "boundary: expected true or false"),
        ({"architecture": "unet", "encoder": "none", "aux_head": True}, "unknown option aux_head"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said_in_the_users_words(options, words):
    with pytest.raises(ConfigError, match=words):
        build(**{"architecture": "segmentation", "classes": 5, "images": 1, "encoder": ENCODER} | options)
