"""MaskFormer with masked attention: its parts by definition, what it learns, and what must be refused."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reloading import reloaded
from torch import nn

from lib.config.sections import Loss, Optimizer
from lib.errors import ArtifactError, ConfigError
from lib.models import build, checkpoint
from lib.models.layers import Queries
from lib.models.masked_attention import Attention, DecoderLayer, QueryDecoder, Transformer, foreground, positions
from lib.models.maskformer import QUERIES_AT_ONCE, PixelDecoder, semantic_logits
from lib.training.losses import Criterion
from lib.training.optim import param_groups

pytestmark = pytest.mark.slow  # networks are built and run

SIZES = {"channels": 16, "heads": 2, "queries": 6, "layers": 4, "feedforward": 32}
PAPER = {"query_class": 2.0, "query_bce": 5.0, "query_dice": 5.0}


def tiny(**options):
    torch.manual_seed(0)
    basics = {"classes": 3, "images": 1, "encoder": "tu-test_efficientnet"}
    return build("maskformer", **basics | SIZES | options)


def picture(batch=2, size=64, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator)


def criterion(kind="multiclass", **more):
    return Criterion(kind, Loss(terms=PAPER | more, query_points=512))


# ---- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 4])
def test_every_layer_proposes_and_every_weight_has_a_gradient(layers):
    net = tiny(images=2, layers=layers)
    outputs = net(picture(channels=6)[..., :32])
    assert outputs["logits"].shape == (2, 3, 64, 32)
    shapes = [(tuple(q.classes.shape), tuple(q.masks.shape)) for q in outputs["queries"]]
    assert shapes == [((2, 6, 4), (2, 6, 16, 8))] * (layers + 1)
    criterion()(outputs, torch.randint(0, 3, (2, 64, 32), dtype=torch.uint8))[0].backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []  # an unused parameter stops distributed training
    assert net.eval()(picture(channels=6)).shape == (2, 3, 64, 64)
    assert (net.stride, net.source) == (32, None)


@pytest.mark.parametrize("encoder", ["tu-test_convnext", "tu-swin_tiny_patch4_window7_224", "mobilenet_v2", "mit_b0"])
def test_encoders_of_every_kind(encoder):
    swin = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}  # its level at 1/2 has no channels
    options = {"encoder_options": swin} if "swin" in encoder else {}
    with torch.inference_mode():
        assert tiny(encoder=encoder, **options).eval()(picture(1)).shape == (1, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "kind"), [(3, "multiclass"), (1, "binary")])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_one_batch_can_be_overfitted(classes, kind, precision):
    x, target = picture() // 4, torch.zeros(2, 64, 64, dtype=torch.uint8)
    for value in (1, 2):
        place = (..., slice(8, 56), slice(24 * value - 12, 24 * value + 4))
        target[place] = min(value, max(1, classes - 1))
        x[place] += 80 * value
    net = tiny(classes=classes, layers=3).to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.AdamW(net.parameters(), lr=3e-3), criterion(kind)
    for _ in range(40):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            outputs = net(x)
        total = loss(outputs, target)[0]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.inference_mode():
        logits = net.eval()(x)
    called = logits.argmax(1) if classes > 1 else logits[:, 0] > 0
    assert (called == target).float().mean() > 0.97


def test_a_checkpoint_gives_the_network_back(tmp_path):
    arguments = {"architecture": "maskformer", "classes": 3, "images": 1, "encoder": "tu-test_resnet"} | SIZES
    net = build(**arguments)
    loaded = reloaded(net, arguments, tmp_path)
    with torch.inference_mode():
        assert loaded(picture()).equal(net.eval()(picture()))


def test_checkpoints_of_the_network_that_knew_no_matching_are_refused(tmp_path):
    """Its tensors had these names; its options were others."""
    arguments = {"architecture": "maskformer", "classes": 3, "images": 1, "encoder": "tu-test_resnet"}
    checkpoint.describe(tmp_path, arguments, ("image",), ("a", "b", "c"))
    names = ("queries.weight", "memory.weight", "label.weight", "transformer.norm.weight", "pixels.p5.weight")
    checkpoint.save_weights(tmp_path, {f"decoder.{name}": torch.zeros(1) for name in names})
    with pytest.raises(
        ArtifactError, match="parts that its weights do not know, decoder.pixels.* older version; train with"
    ):
        checkpoint.load_network(tmp_path)
    description = json.loads((tmp_path / checkpoint.DESCRIPTION).read_text())
    description["network"] |= {"dropout": 0.1, "decoder_pyramid_channels": 32}
    (tmp_path / checkpoint.DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="unknown option decoder_pyramid_channels, dropout .* train it again"):
        checkpoint.load_network(tmp_path)


def test_the_order_of_the_queries_does_not_matter():
    net = tiny().eval()
    queries = net.decoder.queries
    with torch.inference_mode():
        before = net(picture())
        for table in (queries.query_embed, queries.query_pos_embed):
            table.weight.copy_(table.weight.flip(0))
        torch.testing.assert_close(net(picture()), before, rtol=1e-4, atol=1e-4)
        queries.query_embed.weight.mul_(-1)
        assert not net(picture()).allclose(before, atol=1e-3)


def test_the_pyramid_by_its_definition():
    torch.manual_seed(0)
    pyramid = PixelDecoder([5, 6, 7, 8], 4)
    features = [torch.randn(1, c, s, s) for c, s in ((5, 16), (6, 8), (7, 4), (8, 2))]
    levels, pixels = pyramid(features)
    y = None
    steps = [(None, pyramid.smooth[0]), *zip(pyramid.lateral, pyramid.smooth[1:])]
    expected = []
    for feature, (lateral, (convolution, _)) in zip(features[::-1], steps):
        if y is None:
            x = feature
        else:
            x = F.group_norm(F.conv2d(feature, lateral[0].weight), lateral[1].num_groups)
            x = x + y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = F.group_norm(F.conv2d(x, convolution[0].weight, padding=1), convolution[1].num_groups).clamp(min=0)
        expected.append(y)
    assert [level.shape[-1] for level in levels] == [2, 4, 8]
    for got, want in zip(levels, expected):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(pixels, F.conv2d(expected[-1], pyramid.pixels.weight, pyramid.pixels.bias, padding=1))


def test_what_is_computed_again_gives_the_same_gradients():
    target, gradients = torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8), []
    for again in (False, True):
        net = tiny(grad_checkpointing=again)
        criterion()(net(picture()), target)[0].backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_queries_and_tables_do_not_decay():
    net = tiny()
    groups = param_groups(net, Optimizer(lr=1e-3, weight_decay=0.05), 1e-3)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    weights = dict(net.named_parameters())
    names = {name.removeprefix("decoder.queries.") for name in weights if id(weights[name]) in decayed}
    assert not names & {"query_embed.weight", "query_pos_embed.weight", "level_embed.weight"}
    assert {"label.weight", "layers.0.to_pixels.query.weight"} <= names
    assert {group["name"].partition(",")[0] for group in groups} == {"encoder", "rest"}


# ---- masked attention ---------------------------------------------------------------------------------


def test_the_foreground_of_a_mask_by_hand():
    """Halved, a 4 x 4 mask has at each place the mean of 2 x 2 logits; an empty mask allows everything."""
    half = torch.tensor([[5.0, 1, -9, 1], [1, 1, 1, 1], [-3, -3, 1, -1], [-3, -3, 0, 0]])
    masks = torch.stack([half, -torch.ones(4, 4)])[None]
    assert foreground(masks, (2, 2)).tolist() == [[[True, False, False, True], [True, True, True, True]]]


def test_attention_by_hand():
    """Two heads, weights of one: equal keys make the mean of the allowed values, a far larger key takes all."""
    attention = Attention(2, 2)
    for linear in (attention.query, attention.key, attention.value, attention.out):
        linear.weight.data, linear.bias.data = torch.eye(2), torch.zeros(2)
    values = torch.tensor([[[1.0, 10], [2, 20], [6, 60]]])
    allowed = torch.tensor([[[True, True, False], [False, False, True]]])
    got = attention(torch.ones(1, 2, 2), torch.zeros(1, 3, 2), values, allowed)
    torch.testing.assert_close(got, torch.tensor([[[1.5, 15], [6, 60]]]))
    keys = torch.tensor([[[0.0, 100], [100, 0], [0, 0]]])
    torch.testing.assert_close(attention(torch.ones(1, 1, 2), keys, values), torch.tensor([[[2.0, 10]]]))


def test_a_layer_is_torchs_attention_in_the_order_of_the_paper():
    torch.manual_seed(0)
    layer = DecoderLayer(8, 2, 16)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    queries, places, keys, values = (torch.randn(s, 8) for s in (5, 5, 12, 12))
    allowed = torch.rand(5, 12) > 0.5
    allowed[:, 0] = True

    def torchs(attention):
        theirs = nn.MultiheadAttention(8, 2)
        parts = (attention.query, attention.key, attention.value)
        theirs.in_proj_weight.data = torch.cat([part.weight for part in parts])
        theirs.in_proj_bias.data = torch.cat([part.bias for part in parts])
        theirs.out_proj.load_state_dict(attention.out.state_dict())
        return theirs

    norm1, norm2, norm3 = layer.norms
    x = norm1(queries + torchs(layer.to_pixels)(queries + places, keys, values, attn_mask=~allowed)[0])
    x = norm2(x + torchs(layer.to_queries)(x + places, x + places, x)[0])
    inner = (x @ layer.feedforward[0].weight.t() + layer.feedforward[0].bias).clamp(min=0)
    x = norm3(x + inner @ layer.feedforward[2].weight.t() + layer.feedforward[2].bias)
    got = layer(queries[None], places, (keys[None], values[None]), allowed[None])[0]
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-5)


def decoder(layers):
    torch.manual_seed(0)
    queries = QueryDecoder(3, Transformer(queries=2, channels=8, layers=layers, heads=2, feedforward=16))
    with torch.no_grad():  # the masks of the two queries before any layer are the left half, and nothing
        queries.norm = nn.Identity()
        queries.mask = nn.Identity()
        queries.query_embed.weight.copy_(torch.eye(2, 8))
    pixels = torch.zeros(1, 8, 8, 8)
    pixels[:, 0] = torch.tensor([1.0] * 4 + [-1] * 4)
    pixels[:, 1] = -1
    return queries, [torch.randn(1, 8, s, s) for s in (2, 4, 8)], pixels


@torch.no_grad()
def test_a_query_looks_at_its_mask_alone_and_everywhere_where_that_is_empty():
    queries, levels, pixels = decoder(layers=1)
    before = queries(levels, pixels)
    assert (before[0].masks[0, 0] > 0).equal(pixels[0, 0] > 0) and (before[0].masks[0, 1] < 0).all()
    queries.layers[0].to_queries.out.weight.zero_()  # else they tell each other
    before = queries(levels, pixels)[1].classes
    levels[0][..., 1] += 1  # the right half, outside the first query's mask
    outside = queries(levels, pixels)[1].classes
    assert outside[0, 0].equal(before[0, 0])
    assert not outside[0, 1].allclose(before[0, 1])
    levels[0][..., 0] += 1
    assert not queries(levels, pixels)[1].classes[0, 0].allclose(before[0, 0])


@torch.no_grad()
def test_layers_take_turns_with_the_levels():
    """Layer i is the first to see a change of level i; the fourth looks at the first level again."""
    queries, levels, pixels = decoder(layers=4)
    before = queries(levels, pixels)
    for level in range(3):
        changed = [features + (k == level) for k, features in enumerate(levels)]
        after = queries(changed, pixels)
        same = [a.classes.equal(b.classes) for a, b in zip(after, before)]
        assert same == [True] * (level + 1) + [False] * (4 - level)
    queries.layers[0] = queries.layers[1] = queries.layers[2] = _Nothing()
    before, after = queries(levels, pixels), queries([levels[0] + 1, *levels[1:]], pixels)
    assert not after[4].classes.equal(before[4].classes)
    after = queries([levels[0], *(level + 1 for level in levels[1:])], pixels)
    assert after[4].classes.equal(before[4].classes)


class _Nothing(nn.Module):
    def forward(self, queries, *_):
        return queries


def test_positions_by_their_formula():
    got = positions(8, 3, 5).numpy()
    assert got.shape == (8, 3, 5)
    for row, column in np.ndindex(3, 5):
        y, x = 2 * math.pi * (row + 0.5) / 3, 2 * math.pi * (column + 0.5) / 5
        expected = [f(a * w) for a in (y, x) for f in (math.sin, math.cos) for w in (1, 0.01)]
        np.testing.assert_allclose(got[:, row, column], expected, atol=1e-6)


# ---- semantic inference -------------------------------------------------------------------------------


def numbers(classes, queries=QUERIES_AT_ONCE + 5, size=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(2, queries, max(2, classes) + 1, generator=generator)
    return Queries(labels, 3 * torch.randn(2, queries, size, size, generator=generator))


def sums(found, size):
    """Every query's probability of each class times its enlarged mask, one after the other."""
    masks = F.interpolate(found.masks.double(), size, mode="bilinear", align_corners=False).numpy()
    total = np.zeros((2, found.classes.shape[-1] - 1, *size))
    for b, q in np.ndindex(*found.classes.shape[:2]):
        exponentials = np.exp(found.classes[b, q].double().numpy())
        for k in range(total.shape[1]):
            total[b, k] += exponentials[k] / exponentials.sum() / (1 + np.exp(-masks[b, q]))
    return total


def test_semantic_inference_by_its_definition():
    found = numbers(4)
    expected = sums(found, (16, 12))
    logits = semantic_logits(found, (16, 12), 4)
    np.testing.assert_allclose(logits.exp().numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected / expected.sum(1, keepdims=True), rtol=1e-4)


def test_one_class_gives_the_logit_of_its_share():
    found = numbers(1)
    expected = sums(found, (8, 8))
    probability = semantic_logits(found, (8, 8), 1).sigmoid().numpy()
    assert probability.shape == (2, 1, 8, 8)
    np.testing.assert_allclose(probability[:, 0], expected[:, 1] / expected.sum(1), rtol=1e-4)


def test_the_largest_logit_is_that_of_the_largest_score_however_small():
    found = numbers(3)
    found = Queries(found.classes, found.masks - 40)
    assert semantic_logits(found, (4, 4), 3).argmax(1).equal(torch.from_numpy(sums(found, (4, 4)).argmax(1)))


def test_logits_stay_finite_and_float32_where_no_query_speaks():
    found = numbers(3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = semantic_logits(Queries(found.classes.bfloat16(), found.masks.bfloat16() - 1000), (8, 8), 3)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert tiny().eval()(picture()).dtype == torch.float32


def test_evaluation_gives_the_semantic_inference_of_the_last_layer():
    net = tiny().eval()
    with torch.inference_mode():
        found = net.decoder(net.features(picture()))
        assert net(picture()).equal(semantic_logits(found[-1], (64, 64), 3))
        net.training = True  # of the network alone
        outputs = net(picture())
    coarse = semantic_logits(found[-1], (16, 16), 3)
    assert outputs["logits"].equal(F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=False))
    assert all(a.masks.equal(b.masks) for a, b in zip(outputs["queries"], found))


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boundary": True}, "architecture maskformer: boundary follows from it"),
        ({"aux_head": True}, "architecture maskformer: aux_head follows from it"),
        ({"channels": 18}, r"channels: expected a multiple of 4 and of heads \(2\), got 18"),
        ({"queries": 0}, "queries: expected a whole number from 1 up"),
        ({"layers": True}, "layers: expected a whole number from 1 up"),
        ({"queries": 2}, "queries: expected one for each of 3 classes at least, got 2"),
        ({"upsample_logits": 2}, "unknown option upsample_logits for maskformer"),
        ({"query": 3}, "unknown option query for maskformer; it has .*queries"),
    ],
)
def test_what_cannot_be_built_is_said_in_the_users_words(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**options)
