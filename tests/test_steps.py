"""Deep supervision: what the steps of a decoder say, their losses, and that evaluation knows nothing of it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reloading import reloaded

from lib.config.sections import Loss, Train
from lib.errors import ConfigError
from lib.models import build
from lib.models.recompute import Recomputed
from lib.models.steps import decode
from lib.tasks import MulticlassMask
from lib.training.losses import Criterion

ENCODER = "tu-test_efficientnet"
SMALL = [24, 16, 16, 8, 8]
NETWORKS = {
    "unet": ({"encoder": ENCODER, "decoder_channels": SMALL}, [2, 4, 8, 16]),
    "unet, short": ({"encoder": ENCODER, "decoder_channels": SMALL[:4], "upsample_logits": 2}, [4, 8, 16]),
    "unet, gates": ({"encoder": "tu-test_convnext", "decoder_channels": SMALL, "attention_gates": True}, [2, 4, 8, 16]),
    "manet": ({"encoder": ENCODER, "decoder": "manet", "decoder_channels": SMALL, "norm": "group"}, [2, 4, 8, 16]),
    "manet, short": ({"encoder": ENCODER, "decoder": "manet", "upsample_logits": 4}, [8, 16]),
    "siamese": (
        {"architecture": "siamese", "images": 2, "encoder": "tu-test_resnet", "decoder_channels": SMALL},
        [2, 4, 8, 16],
    ),
    "hybrid": (
        {"architecture": "hybrid", "encoder": ENCODER, "decoder_channels": SMALL[:4], "aspp_channels": 12,
         "fpn_channels": 8, "merge": "bifpn", "upsample_logits": 2},
        [4, 8, 16],
    ),
    "scratch": ({"architecture": "unet", "encoder": "none", "base": 4}, [2, 4, 8]),
    "scratch, gates": ({"architecture": "attention_unet", "encoder": "none", "base": 4, "norm": "group"}, [2, 4, 8]),
}  # fmt: skip


def tiny(**options):
    torch.manual_seed(0)
    return build(**{"architecture": "segmentation", "classes": 3, "images": 1} | options)


def picture(images=1, size=64, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3 * images, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_but_the_last_has_a_head_all_train_and_evaluation_is_as_without(name, tmp_path):
    options, scales = NETWORKS[name]
    arguments = {"architecture": "segmentation", "classes": 3, "images": 1} | options | {"deep_supervision": True}
    plain, net = tiny(**options), tiny(**arguments)
    x = picture(options.get("images", 1))
    outputs = net(x)
    assert [tuple(level.shape) for level in outputs["levels"]] == [(2, 3, 64 // s, 64 // s) for s in scales]
    sum(y.square().mean() for y in (outputs["logits"], *outputs["levels"])).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    missing = net.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == [f"levels.{k}.{part}" for k in range(len(scales)) for part in ("weight", "bias")]
    with torch.inference_mode():
        logits = net.eval()(x)
        assert logits.equal(plain.eval()(x))
    loaded = reloaded(net, arguments, tmp_path)
    with torch.inference_mode():
        assert loaded(x).equal(logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_head_reads_its_own_step(name):
    options, scales = NETWORKS[name]
    net = tiny(**options, deep_supervision=True).eval()
    with torch.inference_mode():
        features = net.encode(net.normalize(picture(options.get("images", 1))))
        output, steps = decode(net.decoder, features)
        assert output.equal(net.decoder(features))
    net.training = True  # of the network alone: statistics stand still
    with torch.inference_mode():
        levels = net(picture(options.get("images", 1)))["levels"]
        for head, step, level in zip(net.levels, steps, levels[::-1], strict=True):
            expected = torch.einsum("bchw,kc->bkhw", step, head.weight[:, :, 0, 0]) + head.bias[:, None, None]
            torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)


def test_steps_are_seen_where_they_are_computed_again():
    net = tiny(**NETWORKS["unet"][0], deep_supervision=True, grad_checkpointing=True)
    plain = tiny(**NETWORKS["unet"][0], deep_supervision=True)
    for each in (net, plain):
        outputs = each(picture())
        sum(y.square().mean() for y in (outputs["logits"], *outputs["levels"])).backward()
    assert any(isinstance(m, Recomputed) for m in net.decoder.modules())
    for p, q in zip(net.parameters(), plain.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


# ---- the loss -----------------------------------------------------------------------------------------


def test_the_loss_at_each_scale_by_hand():
    torch.manual_seed(0)
    logits, half, quarter = (torch.randn(2, 3, s, s, requires_grad=True) for s in (8, 4, 2))
    target = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    target[:, :3] = 255
    criterion = Criterion("multiclass", Loss(terms={"ce": 2.0, "dice": 0}, deep_weight=0.3))
    total, values = criterion({"logits": logits, "levels": [half, quarter]}, target)

    def ce(predicted, step):
        costs = []
        for b, i, j in np.ndindex(2, 8 // step, 8 // step):
            true = int(target[b, step * i + step // 2, step * j + step // 2])
            if true != 255:
                costs.append(-float(predicted[b, :, i, j].detach().log_softmax(0)[true]))
        return 2.0 * np.mean(costs)

    assert values.keys() == {"ce", "dice", "level_2", "level_4"}
    assert values["level_2"].item() == pytest.approx(ce(half, 2), rel=1e-5)
    assert values["level_4"].item() == pytest.approx(ce(quarter, 4), rel=1e-5)
    expected = ce(logits, 1) + 0.3 * ce(half, 2) + 0.09 * ce(quarter, 4)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert all(g.any() for g in torch.autograd.grad(total, [logits, half, quarter]))


def test_at_weight_zero_it_is_reported_and_not_trained():
    logits, half = (torch.randn(2, 3, s, s, requires_grad=True) for s in (8, 4))
    target = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    total, values = Criterion("multiclass", Loss(terms={"ce": 1}, deep_weight=0))(
        {"logits": logits, "levels": [half]}, target
    )
    assert values["level_2"] > 0
    assert torch.autograd.grad(total, half, allow_unused=True) == (None,)


def test_mixed_images_are_mixed_at_every_scale():
    torch.manual_seed(0)
    outputs = {"logits": torch.randn(2, 3, 8, 8), "levels": [torch.randn(2, 3, 4, 4)]}
    one, two = (torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8) for _ in range(2))
    criterion = Criterion("multiclass", Loss(terms={"ce": 1}))
    (a, first), (b, second) = criterion(outputs, one), criterion(outputs, two)
    total, values = criterion(outputs, one, two, 0.25)
    assert total.item() == pytest.approx((0.25 * a + 0.75 * b).item(), rel=1e-5)
    assert values["level_2"].item() == pytest.approx((0.25 * first["level_2"] + 0.75 * second["level_2"]).item())


# ---- trained ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_at_every_scale_and_the_log_has_a_line_for_each(tmp_path):
    from lib.training.fit import Fit, Place

    torch.manual_seed(0)
    net = build("unet", classes=2, images=1, encoder="none", base=8, deep_supervision=True)

    class Squares(torch.utils.data.Dataset):
        """A bright square on a dark ground."""

        order = range(4)

        def __len__(self):
            return 4

        def __getitem__(self, k):
            image, target = torch.full((3, 32, 32), 60, dtype=torch.uint8), torch.zeros(32, 32, dtype=torch.uint8)
            place = (..., slice(k % 4 + 4, k % 4 + 20), slice(6, 26))
            image[place], target[place] = 200, 1
            return {"image": image, "target": target, "id": f"s{k}"}

    train = Train(epochs=40, batch_size=4, crop=32, loss=Loss(terms={"ce": 1}), optimizer={"lr": 1e-2},
                  schedule={"kind": "constant"}, channels_last=False)  # fmt: skip
    place = Place(tmp_path, torch.device("cpu"), 0, lambda line: None)
    task = MulticlassMask(("background", "square"))
    Fit(net, task, Squares(), lambda network: {"select": 0.0, "score": 0.0}, train, place).run()
    first, *_, last = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {n for n in last if n.startswith("raw_")} == {"raw_ce", "raw_level_2", "raw_level_4", "raw_level_8"}
    for scale, weight in ((2, 0.5), (4, 0.25), (8, 0.125)):
        assert last[f"raw_level_{scale}"] < 0.5 * first[f"raw_level_{scale}"]
        assert last[f"weighted_level_{scale}"] == pytest.approx(weight * last[f"raw_level_{scale}"], abs=2e-6)
    parts = sum(value for name, value in last.items() if name.startswith("weighted_"))
    assert last["loss"] == pytest.approx(parts, abs=1e-5)
    with torch.no_grad():
        sample = Squares()[0]
        answer = net.eval()(sample["image"][None]).argmax(1)[0]
    assert F.l1_loss(answer.float(), sample["target"].float()) < 0.05


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"encoder": ENCODER, "decoder": "fpn"},
            "deep_supervision: expected false, or true with decoder unet or manet",
        ),
        ({"encoder": ENCODER, "decoder": "unet2020"}, "deep_supervision: .* decoder unet or manet"),
        ({"architecture": "maskformer", "encoder": ENCODER}, "deep_supervision"),
        ({"architecture": "classifier", "encoder": "test_resnet"}, "unknown option deep_supervision"),
    ],
)
def test_networks_without_steps_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**options, deep_supervision=True)
