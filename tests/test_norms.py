"""The norms on a Swin's feature maps: against a plain restatement, in every decoder, and what older weights get."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lib.config.networks import _ShapesAlone
from lib.config.sections import Optimizer
from lib.errors import ArtifactError
from lib.models import build, checkpoint
from lib.models.norms import NormedEncoder
from lib.training.optim import param_groups

pytestmark = pytest.mark.slow  # networks are built and run

SWIN = "tu-swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 24, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 4, 8)}
UPERNET = {"architecture": "segmentation", "classes": 3, "images": 1, "encoder": SWIN, "encoder_options": SMALL,
           "decoder": "upernet", "decoder_channels": 16}  # fmt: skip


def tiny(**options):
    torch.manual_seed(0)
    return build(**UPERNET | options)


def picture(batch=1, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


def layer_norm(x, weight, bias):
    """Return (B, h, w, C) with mean 0 and variance 1 over C, times weight plus bias."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize("encoder", [SWIN, "tu-swinv2_tiny_window8_256"])
def test_heads_see_normed_stages_and_the_next_stage_the_bare_ones(encoder):
    net = tiny(encoder=encoder).eval()
    for norm in net.encoder.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = net.encoder.model
    with torch.inference_mode():
        x = net.normalize(picture())
        features = net.encode(x)
        x = model["patch_embed"](x)
        assert [f.shape[1] for f in features] == [3, 0, 24, 48, 96, 192]
        for k, norm in enumerate(net.encoder.norms):
            x = model[f"layers_{k}"](x)  # (B, h, w, C), not normed
            expected = layer_norm(x, norm.weight, norm.bias).permute(0, 3, 1, 2)
            torch.testing.assert_close(features[2 + k], expected, rtol=1e-4, atol=1e-4)
    assert [norm.eps for norm in net.encoder.norms] == [1e-5] * 4


@pytest.mark.parametrize("decoder", ["segformer", "fpn", "unet"])
def test_every_weight_of_it_learns_in_every_decoder(decoder):
    options = {"decoder_channels": [16, 8, 8, 8, 8]} if decoder == "unet" else {}
    plain = {name: value for name, value in UPERNET.items() if name != "decoder_channels"}
    net = build(**plain | options | {"decoder": decoder})
    net(picture(2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.encoder.norms.parameters())


def test_pretrained_weights_arrive_beside_them_and_other_encoders_have_none(tmp_path):
    torch.manual_seed(1)
    state = timm.create_model(SWIN.removeprefix("tu-"), **SMALL).state_dict()
    save_file(state, tmp_path / "swin_tiny_patch4_window7_224.safetensors")
    net = tiny(encoder_weights=tmp_path)
    assert net.source["tensors"] > 50
    assert net.encoder.model["layers_3"].blocks[1].mlp.fc2.weight.equal(state["layers.3.blocks.1.mlp.fc2.weight"])
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in net.encoder.norms)
    with torch.device("meta"), _ShapesAlone():
        for other in ("tu-test_convnext", "mit_b0", "tu-test_efficientnet"):
            net = build("segmentation", classes=1, images=1, encoder=other)
            assert not isinstance(net.encoder, NormedEncoder)


def test_they_belong_to_the_encoder_do_not_decay_and_lie_above_every_layer():
    net = tiny()
    groups = param_groups(net, Optimizer(lr=1e-3, layer_decay=0.5, weight_decay=0.1), 1e-3)
    (group,) = [g for g in groups if any(p is net.encoder.norms[0].weight for p in g["params"])]
    assert group["name"] == "encoder, 0 below the head, no decay"
    assert (group["lr_scale"], group["weight_decay"]) == (1.0, 0.0)


def test_the_checkpoint_of_a_swin_without_them_is_refused(tmp_path):
    net = tiny()
    checkpoint.describe(tmp_path, UPERNET, ("image",), ("a", "b", "c"))
    checkpoint.save_weights(tmp_path, net.state_dict())
    assert checkpoint.load_network(tmp_path).encoder.norms[0].weight.eq(1).all()
    checkpoint.save_weights(tmp_path, {k: v for k, v in net.state_dict().items() if ".norms." not in k})
    with pytest.raises(ArtifactError, match=r"encoder\.norms\.0\.bias and 7 more.*older version; train with --force"):
        checkpoint.load_network(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "width"),
    [("mit_b0", 256), ("mit_b1", 256), ("mit_b2", 768), ("mit_b3", 768), ("mit_b5", 768), (SWIN, 256)],
)
def test_the_width_of_segformers_decoder_is_its_papers(encoder, width):
    with torch.device("meta"), _ShapesAlone():
        net = build("segmentation", classes=1, images=1, encoder=encoder, decoder="segformer")
        narrow = build("segmentation", classes=1, images=1, encoder=encoder, decoder="segformer",
                       decoder_segmentation_channels=64)  # fmt: skip
    assert net.head[0].in_channels == width
    assert narrow.head[0].in_channels == 64
