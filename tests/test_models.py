"""The networks: shapes for every decoder, the laws of fusion and normalisation, and what must be refused."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from overfitting import overfit
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.errors import ArtifactError, ConfigError
from lib.models import build, checkpoint, segmentation, siamese
from lib.models.layers import Normalize, head, train_depthwise_in_float32, use_group_norm
from lib.models.unet2020 import UNet2020Decoder

pytestmark = pytest.mark.slow  # networks are built and run

ENCODER = "tu-test_efficientnet"
SMALL = (24, 16, 16, 8, 8)


def tiny(architecture="siamese", **options):
    torch.manual_seed(0)
    options = {"classes": 5, "images": 2, "encoder": ENCODER} | options
    if options.get("decoder", "unet") == "unet":
        options = {"decoder_channels": SMALL} | options
    return build(architecture, **options)


def pair(batch=2, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 6, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("decoder", sorted(set(segmentation.DECODERS) - {"dpt"}))
@pytest.mark.parametrize("architecture", ["segmentation", "siamese"])
def test_every_decoder_gives_logits_at_the_size_of_the_input(architecture, decoder):
    options = {"bottleneck": "both"} if architecture == "siamese" else {}
    size = 128 if decoder == "pan" else 64  # PAN pools the features at 1/16 three times more
    net = tiny(architecture, decoder=decoder, **options)
    logits = net(pair(size=size))
    assert logits.shape == (2, 5, size, size)
    assert net.stride == 32
    logits.square().mean().backward()
    for weight in (net.encoder.model.conv_stem.weight, net.head[0].weight):
        assert weight.grad.isfinite().all() and weight.grad.any()


def test_dpt_runs_on_a_vit_at_a_size_of_its_own():
    options = {"decoder_intermediate_channels": [8, 8, 16, 16], "decoder_fusion_channels": 16}
    net = tiny("segmentation", encoder="tu-test_vit", decoder="dpt", images=1, **options).eval()
    with torch.inference_mode():
        assert net(pair()[:, :3, :, :32].contiguous()).shape == (2, 5, 64, 32)


@pytest.mark.parametrize("encoder", ["tu-test_convnext", "mobilenet_v2"])
def test_siamese_takes_transformer_style_and_native_encoders(encoder):
    net = tiny(encoder=encoder).eval()
    with torch.inference_mode():
        assert net(pair(1)).shape == (1, 5, 64, 64)


# ---- normalisation ------------------------------------------------------------------------------------


def test_normalisation_is_the_encoders_own_for_each_image():
    x = pair()
    expected = (x.numpy() / 255 - 0.5) / 0.5
    for typed in (x, x.float()):
        got = Normalize("tu-tf_efficientnet_lite0", 2)(typed)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    mean = np.tile([0.485, 0.456, 0.406], 2)[:, None, None]
    std = np.tile([0.229, 0.224, 0.225], 2)[:, None, None]
    np.testing.assert_allclose(Normalize("resnet34", 2)(x).numpy(), (x.numpy() / 255 - mean) / std, atol=1e-5)
    assert torch.allclose(Normalize("dpn92", 1).std, Normalize("tu-dpn92", 1).std)  # smp's table against timm's


def test_normalisation_stays_float32_under_autocast_and_follows_a_half_network():
    layer = Normalize("resnet34", 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(pair()).equal(layer(pair()))
        assert layer(pair()).dtype == torch.float32
    assert layer.bfloat16()(pair()).dtype == torch.bfloat16


# ---- fusion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bottleneck", siamese.BOTTLENECKS)
@pytest.mark.parametrize("fusion", siamese.FUSIONS)
def test_fusion_by_its_definition(fusion, bottleneck):
    pre = [torch.randn(2, c, 4, 4) for c in (3, 5, 7)]
    post = [torch.randn(2, c, 4, 4) for c in (3, 5, 7)]
    levels = siamese.fuse(pre, post, fusion, bottleneck)
    assert [level.shape[1] for level in levels] == siamese.fused_channels([3, 5, 7], fusion, bottleneck)
    if fusion == "concat":
        assert levels[1][:, :5].equal(pre[1]) and levels[1][:, 5:].equal(post[1])
    else:
        sign = -1 if fusion == "diff" else 1
        np.testing.assert_allclose(levels[1].numpy(), post[1].numpy() + sign * pre[1].numpy(), atol=1e-6)
    assert levels[-1].equal(post[-1]) == (bottleneck == "post")


def test_diff_sees_nothing_in_two_equal_images():
    net = tiny(fusion="diff", bottleneck="both").eval()
    with torch.inference_mode():
        a, b = (net(image.repeat(1, 2, 1, 1)) for image in (pair(seed=1)[:, :3], pair(seed=2)[:, :3]))
        change = net(pair(seed=1))
    assert (a - b).abs().max() < 1e-5 * (change - a).abs().max()


def test_sum_does_not_care_which_image_came_first():
    x = pair()
    swapped = torch.cat([x[:, 3:], x[:, :3]], dim=1)
    with torch.inference_mode():
        for fusion, symmetric in (("sum", True), ("concat", False), ("diff", False)):
            net = tiny(fusion=fusion, bottleneck="both").eval()
            assert torch.allclose(net(x), net(swapped), atol=1e-5) == symmetric


def test_the_encoder_is_shared_and_both_ways_of_running_it_agree_in_evaluation():
    x = pair()
    joint, separate = tiny().eval(), tiny(statistics="separate").eval()
    separate.load_state_dict(joint.state_dict())
    with torch.inference_mode():
        normalised = joint.normalize(x)
        pre, post = joint.encoder(normalised[:, :3].contiguous()), joint.encoder(normalised[:, 3:].contiguous())
        for got, a, b in zip(joint.encode(normalised)[1:-1], pre[1:-1], post[1:-1]):
            torch.testing.assert_close(got, torch.cat([a, b], dim=1), rtol=1e-3, atol=1e-3 * float(b.std()))
        torch.testing.assert_close(joint.encode(normalised)[-1], post[-1], rtol=1e-3, atol=1e-3 * float(post[-1].std()))
        torch.testing.assert_close(joint(x), separate(x), rtol=1e-3, atol=1e-3 * float(joint(x).std()))


@pytest.mark.parametrize("statistics", siamese.STATISTICS)
def test_batch_norm_statistics_of_a_training_step(statistics):
    net, x = tiny(statistics=statistics), pair()
    x[:, 3:] //= 4  # a dark post image
    with torch.no_grad():
        stem = net.encoder.model.conv_stem
        pre, post = (stem(part).mean((0, 2, 3)) for part in net.normalize(x).split(3, dim=1))
        net.train()(x)
    if statistics == "joint":
        expected = 0.1 * (pre + post) / 2
    else:
        expected = 0.9 * (0.1 * pre) + 0.1 * post  # momentum 0.1, once per image
    assert torch.allclose(net.encoder.model.bn1.running_mean, expected, atol=1e-5)


# ---- decoders and heads -------------------------------------------------------------------------------


def test_unet2020_step_by_step():
    torch.manual_seed(0)
    decoder = UNet2020Decoder([3, 4, 6, 8], [5, 7])
    features = [torch.randn(1, c, 16 >> i, 16 >> i) for i, c in enumerate((3, 4, 6, 8))]
    x = features[3]
    for i, skip in enumerate((features[2], features[1])):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # nearest
        x = F.conv2d(x, decoder.up[i].weight, decoder.up[i].bias, padding=1).clamp(min=0)
        x = F.conv2d(torch.cat([x, skip], 1), decoder.merge[i].weight, decoder.merge[i].bias, padding=1).clamp(min=0)
    assert torch.allclose(decoder(features), x, atol=1e-6)
    last = head(7, 5, kernel=1, upsampling=2)
    upsampled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(last(x), last[0](upsampled), atol=1e-5)  # 2020 upsamples before the 1x1 convolution


def test_the_options_of_the_2020_decoder_are_its_other_form():
    options = {"decoder": "unet2020", "decoder_channels": [12, 8, 6, 4], "scse": True, "last_channels": 2}
    net = tiny(**options, start="he_normal").eval()
    assert [conv.in_channels for conv in net.decoder.up][1:] == [24, 16, 12], "scSE doubles the channels of a step"
    with torch.inference_mode():
        decoded = net.decoder(net.encode(net.normalize(pair())))
    assert decoded.shape == (2, 2, 64, 64) and (decoded >= 0).all() and decoded.any()
    assert len(net.head) == 1, "nothing is left to upsample"
    weight = net.decoder.merge[0].weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.1)
    assert weight.abs().max() > 3 * weight.std(), "drawn from a normal, whose tails a uniform has not"
    assert not any(conv.bias.any() for conv in (*net.decoder.up, *net.decoder.merge, net.head[0]))
    assert net.decoder.last.bias.any(), "made after the others had been started, in 2020"


def test_logits_are_upsampled_to_aligned_corners_where_2020_is_asked_for():
    options = {"decoder": "unet2020", "decoder_channels": [8, 8, 8, 8]}
    plain, aligned = tiny(**options).eval(), tiny(**options, align_corners=True).eval()
    aligned.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        coarse = plain.head[0](plain.decoder(plain.encode(plain.normalize(pair()))))
        for net, corners in ((plain, False), (aligned, True)):
            expected = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=corners)
            assert torch.allclose(net(pair()), expected, atol=1e-6)
    assert aligned(pair())[..., 0, 0].equal(aligned.head[0](aligned.decoder(aligned.encode(
        aligned.normalize(pair()))))[..., 0, 0])  # fmt: skip


def test_a_dpn_ends_with_its_norm_and_relu():
    """2,688 raw sums and concatenations otherwise; the stages before stay raw, as in 2020."""
    with torch.device("meta"):
        net = build("segmentation", classes=1, images=1, encoder="tu-dpn92", decoder="unet2020")
    assert net.encoder.out_channels == [3, 64, 336, 704, 1552, 2688]
    torch.manual_seed(0)
    net = build("segmentation", classes=1, images=1, encoder="tu-dpn68", decoder="unet2020").eval()
    norm = net.encoder.model["features_conv5_bn_ac"].bn
    with torch.no_grad():
        norm.running_mean.normal_(), norm.weight.uniform_(0.5, 2), norm.bias.normal_()
    seen = []
    net.encoder.model["features_conv5_3"].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.inference_mode():
        last = net.encoder(net.normalize(pair()[:, :3]))[-1]
    raw = torch.cat(seen[0], 1) if isinstance(seen[0], tuple) else seen[0]
    scale = norm.weight / (norm.running_var + 1e-3).sqrt()
    expected = ((raw - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    assert raw.min() < 0 and norm.eps == 1e-3


def test_a_checkpoint_of_a_dpn_without_that_norm_is_refused(tmp_path):
    options = {"architecture": "segmentation", "classes": 1, "images": 1, "encoder": "tu-dpn68", "decoder": "unet2020"}
    state = build(**options).state_dict()
    checkpoint.describe(tmp_path, options, ("pre",), ("building",))
    checkpoint.save_weights(tmp_path, {name: tensor for name, tensor in state.items() if "conv5_bn_ac" not in name})
    with pytest.raises(ArtifactError, match="conv5_bn_ac.*older version; train with --force"):
        checkpoint.load_network(tmp_path)


def test_pretrained_weights_of_a_dpn_reach_its_last_norm(tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("dpn68").state_dict()
    state["features.conv5_bn_ac.bn.running_mean"].normal_()
    file = tmp_path / "dpn68.pth"
    torch.save(state, file)
    options = {"classes": 1, "images": 1, "encoder": "tu-dpn68", "decoder": "unet2020", "encoder_weights": str(file)}
    norm = build("segmentation", **options).encoder.model["features_conv5_bn_ac"].bn
    assert norm.running_mean.equal(state["features.conv5_bn_ac.bn.running_mean"])
    torch.save({name: tensor for name, tensor in state.items() if "conv5_bn_ac" not in name}, file)
    with pytest.raises(ConfigError, match="conv5_bn_ac"):
        build("segmentation", **options)


def test_the_stem_of_an_efficientnet_may_be_its_finest_skip():
    net = tiny("segmentation", images=1, skips="stem", decoder="unet2020", decoder_channels=[8, 8, 8, 8]).eval()
    plain = tiny("segmentation", images=1, decoder="unet2020", decoder_channels=[8, 8, 8, 8]).eval()
    plain.encoder.load_state_dict(net.encoder.state_dict())
    model, x = net.encoder.model, torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        levels, others = net.encoder(x), plain.encoder(x)
        assert levels[1].equal(model.bn1(model.conv_stem(x)))
    assert [level.shape[1] for level in levels] == net.encoder.out_channels
    for level, other in zip(levels[2:], others[2:]):
        assert level.equal(other)


def test_images_may_be_normalised_as_imagenets_whatever_the_encoder():
    own, imagenet = (Normalize("tu-dpn92", 2, statistics) for statistics in ("encoder", "imagenet"))
    assert not own.std.equal(imagenet.std)
    assert imagenet(pair()).equal(Normalize("resnet34", 2)(pair()))
    assert tiny(encoder="tu-tf_efficientnet_lite0", normalize="imagenet").normalize.mean.equal(imagenet.mean)


def test_upsampled_logits_leave_out_the_finest_steps():
    channels = (16, 8, 8, 8)
    full, half = tiny(), tiny(decoder_channels=channels, upsample_logits=2)
    quarter = tiny(decoder="manet", upsample_logits=4)
    with torch.inference_mode():
        for net, scale in ((full, 1), (half, 2), (quarter, 4)):
            net.eval()
            features = net.encode(net.normalize(pair()))
            assert net.decoder(features).shape[-1] == 64 // scale
            assert net(pair()).shape == (2, 5, 64, 64)
    assert half.head[0].in_channels == 8
    assert len(quarter.decoder.blocks) == 3


def test_a_swin_checkpoint_gives_the_same_logits_however_the_network_was_built():
    small = {"embed_dim": 24, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 4, 8)}
    nets = []
    for size in (64, 224):
        encoder_options = small | {"img_size": size}
        net = tiny(encoder="tu-swin_tiny_patch4_window7_224", decoder="upernet", encoder_options=encoder_options,
                   decoder_channels=16)  # fmt: skip
        net.load_state_dict(nets[0].state_dict() if nets else net.state_dict())
        nets.append(net.eval())
    with torch.inference_mode():
        assert nets[0](pair(1, 96)).equal(nets[1](pair(1, 96)))


# ---- norms, memory, precision -------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["upernet", "deeplabv3plus"])
def test_group_norm_lets_one_image_train(decoder):
    options = {"decoder": decoder, "decoder_channels": 16}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        tiny(**options)(pair(1))
    net = tiny(norm="group", **options)
    assert net(pair(1)).isfinite().all()
    assert not any(isinstance(m, _BatchNorm) for m in net.decoder.modules())
    assert any(isinstance(m, _BatchNorm) for m in net.encoder.modules())


def test_group_norm_everywhere_keeps_activations_and_affine_weights():
    net = tiny(norm="group_everywhere")
    assert not any(isinstance(m, _BatchNorm) for m in net.modules())
    assert isinstance(net.encoder.model.bn1.act, nn.SiLU)
    layers = nn.Sequential(*(nn.BatchNorm2d(c) for c in (64, 48, 8, 7, 1)))
    nn.init.uniform_(layers[0].weight)
    weight = layers[0].weight.detach().clone()
    use_group_norm(layers)
    assert [layer.num_groups for layer in layers] == [32, 24, 4, 1, 1]
    assert layers[0].weight.equal(weight)


def test_checkpointed_gradients_are_the_same():
    gradients = []
    for switch in (False, True):
        net = tiny(grad_checkpointing=switch)
        net(pair()).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_depthwise_convolutions_train_in_float32_under_autocast():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
    names = list(conv.state_dict())
    x = torch.randn(2, 8, 16, 16).bfloat16()
    exact = torch.autograd.grad(conv(x.float()).bfloat16().square().sum(), conv.weight)[0]
    layers = nn.Sequential(conv, nn.Conv2d(8, 4, 1))
    train_depthwise_in_float32(layers)
    assert list(conv.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
        assert y.dtype == layers(x).dtype == torch.bfloat16
    assert torch.autograd.grad(y.square().sum(), conv.weight)[0].equal(exact)
    assert type(layers[1]) is nn.Conv2d
    assert any("Float32" in type(m).__name__ for m in tiny().encoder.modules())


@pytest.mark.slow
def test_one_batch_can_be_overfitted():
    x = pair(seed=3) // 4
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    for value in range(1, 5):  # each class a square of its own place and brightness in the post image
        place = (slice(None), slice(8, 56), slice(12 * value - 4, 12 * value + 4))
        target[place] = value
        x[:, 3:][:, :, 8:56, 12 * value - 4 : 12 * value + 4] += 45 * value - 20
    net = tiny(dropout=0.1)
    overfit(net, x, target, lr=1e-2, steps=40)
    with torch.inference_mode():
        net.dropout.eval()
        assert (net(x).argmax(1) == target).float().mean() > 0.95


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "siames"}, "architecture: expected one of segmentation, siamese"),
        ({"images": 3}, "expected 2 images, got 3"),
        ({"fusion": "product"}, "fusion: expected one of concat, diff, sum"),
        ({"decoder": "unet3"}, "decoder: expected one of unet"),
        ({"decoder": "dpt"}, "cannot fuse"),
        ({"decoder": "pspnet"}, "bottleneck both"),
        ({"encoder": "tu-tf_efficientnet_light0"}, "tu-tf_efficientnet_lite0"),
        ({"encoder": "resnet43"}, "near it: resnet34"),
        ({"decoder_channel": [8]}, "unknown option decoder_channel for decoder unet"),
        ({"decoder_channels": [8, 8]}, "decoder unet cannot be built"),
        ({"decoder": "unet2020", "decoder_channels": [8, 8]}, "expected 4 numbers"),
        ({"decoder": "unet2020", "start": "he"}, "start: expected one of smp, he_normal, got 'he'"),
        ({"decoder": "unet2020", "scse": 1}, "scse: expected true or false, got 1"),
        ({"decoder": "unet2020", "last_channels": 0}, "last_channels: expected a whole number from 1 up, got 0"),
        ({"decoder": "unet2020", "last_channels": 8, "align_corners": True}, "no logits are upsampled"),
        ({"decoder": "unet", "align_corners": True}, "unknown option align_corners for decoder unet"),
        ({"normalize": "imagenat"}, "normalize: expected one of encoder, imagenet, got 'imagenat'"),
        ({"encoder": "resnet18", "skips": "stem"}, "skips stem: expected a tu-efficientnet"),
        ({"decoder": "fpn", "upsample_logits": 2}, "with decoder unet or manet"),
        ({"in_channels": 9}, "in_channels follows from it"),
        ({"norm": "layer"}, "norm: expected one of batch, group"),
        ({"encoder": "resnet18", "encoder_options": {"drop_path_rate": 0.1}}, "need a tu- encoder"),
        ({"encoder": "vgg11", "grad_checkpointing": True}, "grad_checkpointing: encoder vgg11 is not made of blocks"),
        ({"encoder_options": {"drop_pth_rate": 0.1}}, "drop_pth_rate"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said_in_the_users_words(options, words):
    with pytest.raises(ConfigError, match=words):
        build(**{"architecture": "siamese", "classes": 5, "images": 2, "encoder": ENCODER} | options)


def test_wrong_inputs_are_refused():
    net = tiny("segmentation", images=1)
    with pytest.raises(ValueError, match="expected 3 channels"):
        net(pair())
    with pytest.raises(ValueError, match="multiples of 32"):
        net(pair(size=48)[:, :3])
