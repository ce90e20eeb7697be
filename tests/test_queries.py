"""The loss of mask classification: matching by brute force, terms by their definition, what is ignored."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_fit import CLASSES, Squares, fit, train
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib.config.sections import Loss
from lib.errors import ConfigError
from lib.models import build
from lib.models.layers import Queries
from lib.training.losses import Criterion
from lib.training.queries import NO_OBJECT, Segments, logits_at, match, pair_costs, target_at, undecided

pytestmark = pytest.mark.slow  # networks are built and run

PAPER = {"query_class": 2.0, "query_bce": 5.0, "query_dice": 5.0}
POINTS = 64


def criterion(kind="multiclass", terms=PAPER, reduce=None, **options):
    return Criterion(kind, Loss(terms=terms, query_points=POINTS, **options), reduce=reduce)


def proposals(classes=4, layers=2, batch=3, queries=6, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Queries(
            (2 * torch.randn(batch, queries, classes + 1, generator=generator)).requires_grad_(),
            (3 * torch.randn(batch, queries, size, size, generator=generator)).requires_grad_(),
        )
        for _ in range(layers)
    ]


def regions(classes=4, batch=3, seed=0):
    """Targets of blocks with some ignored pixels; the first image has no class 2, the second none but 0."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, classes, (batch, 4, 4), dtype=torch.uint8, generator=generator)
    blocks[0][blocks[0] == 2], blocks[1] = 1, 0
    target = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[:, :3, ::2] = 255
    return target


def outputs(layers):
    return {"logits": torch.zeros(len(layers[0].masks), 4, 32, 32), "queries": layers}


def loss_of(layers, target, seed=0, loss=None, **more):
    torch.manual_seed(seed)
    return (loss or criterion())(outputs(layers), target, **more)


# ---- matching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [4, 6])
def test_matching_is_the_best_of_all_permutations(queries):
    generator = torch.Generator().manual_seed(0)
    costs = torch.randn(3, 5, queries, 4, generator=generator)
    present = torch.rand(5, 4, generator=generator) > 0.4
    present[0] = False
    present[1] = True
    owners = match(costs, present)
    for layer, image in np.ndindex(3, 5):
        columns = torch.where(present[image])[0].tolist()
        got = owners[layer, image]
        assert got[~present[image]].eq(queries).all()
        chosen = [int(got[k]) for k in columns]
        assert len(set(chosen)) == len(chosen)
        cost = sum(costs[layer, image, q, k].item() for q, k in zip(chosen, columns))
        best = min(
            sum(costs[layer, image, q, k].item() for q, k in zip(order, columns))
            for order in permutations(range(queries), len(columns))
        )
        assert cost == pytest.approx(best, rel=1e-6)


def test_costs_that_are_no_numbers_are_avoided_and_stop_nothing():
    costs = torch.tensor([[[[torch.nan, 1.0], [0.0, torch.inf], [5.0, -torch.inf]]]])
    assert match(costs, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[[1, 2]]]
    assert match(torch.full_like(costs, torch.nan), torch.ones(1, 2, dtype=torch.bool)).max() < 3


def test_costs_by_their_definition():
    layers, target = proposals(), regions()
    torch.manual_seed(0)
    segments = Segments.of(target, 4, POINTS)
    costs = pair_costs(layers, segments, {"query_class": 2.0, "query_bce": 5.0, "query_dice": 3.0})
    for i, b, q, k in np.ndindex(*costs.shape):
        p = [at(layers[i].masks[b, q], spot) for spot in segments.spots[:POINTS]]
        t = [label(target[b], spot) for spot in segments.spots[:POINTS]]
        bce, dice = compared(p, t, k)
        probability = layers[i].classes[b, q].softmax(0)[k].item()
        assert costs[i, b, q, k].item() == pytest.approx(-2 * probability + 5 * bce + 3 * dice, rel=1e-4, abs=1e-5)


def test_a_step_copies_to_the_cpu_once_and_asks_for_no_number(monkeypatch):
    """A device would be waited for at each: in the loss of three layers and three images, and backward, just once."""
    copies, layers, target = [], proposals(layers=3), regions()
    cpu = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: (copies.append(self.shape), cpu(self))[1])
    with Waits() as waits:
        loss_of(layers, target)[0].backward()
    assert copies == [(3, 3, 6, 4)]
    assert waits.seen == []


class Waits(TorchDispatchMode):
    """Notes the operations that need a value of the device on the host, or whose shape depends on one."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.NAMES):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


# ---- points -------------------------------------------------------------------------------------------


def at(mask, spot):
    """A mask at a spot: bilinear between the centres of its pixels, the outermost pixels go on to the edge."""
    height, width = mask.shape
    x, y = (float(value) * size - 0.5 for value, size in zip(spot, (width, height)))
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    rows = [(1 - a) * mask[top + i, left].item() + a * mask[top + i, left + 1].item() for i in (0, 1)]
    return (1 - b) * rows[0] + b * rows[1]


def label(target, spot):
    height, width = target.shape
    return int(target[int(float(spot[1]) * height), int(float(spot[0]) * width)])


def compared(logits, labels, k):
    """Mean binary cross-entropy of a mask with class k over the points that have truth, and 1 - Dice there."""
    pairs = [(1 / (1 + np.exp(-x)), y == k) for x, y in zip(logits, labels) if y != 255]
    bce = -sum(np.log(p if true else 1 - p) for p, true in pairs) / len(pairs)
    overlap, area = sum(p for p, true in pairs if true), sum(p for p, _ in pairs)
    return bce, 1 - (2 * overlap + 1) / (area + sum(true for _, true in pairs) + 1)


def test_values_at_spots_are_those_of_the_pixels_and_of_the_enlarged_mask():
    target = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    spots = torch.tensor([[0.0, 0.0], [0.24, 0.34], [0.26, 0.34], [0.999, 0.999], [1.0, 1.0]])
    assert target_at(target, spots).tolist() == [[0, 4, 5, 11, 11]]
    mask = torch.randn(1, 1, 3, 4)
    large = F.interpolate(mask, (12, 16), mode="bilinear", align_corners=False)
    y, x = torch.meshgrid((torch.arange(12) + 0.5) / 12, (torch.arange(16) + 0.5) / 16, indexing="ij")
    got = logits_at(mask, torch.stack([x, y], -1).flatten(0, 1))
    torch.testing.assert_close(got.view(12, 16), large[0, 0])


def test_three_of_four_points_are_the_most_undecided_with_truth():
    target, mask = torch.ones(1, 32, 32, dtype=torch.uint8), torch.full((1, 1, 32, 32), 9.0)
    mask[..., 10:14], target[:, 16:] = 0.5, 255
    torch.manual_seed(0)
    segments = Segments.of(target, 1, POINTS)
    places = undecided(mask, segments)[0, 0]
    assert places.shape == (POINTS,)
    assert sorted(set(places.tolist())) == sorted(places.tolist())
    assert places[48:].tolist() == list(range(16))
    values = logits_at(mask, segments.spots)[0, 0].masked_fill(segments.labels[0] == 255, torch.inf)
    others = sorted(set(range(POINTS, 4 * POINTS)) - set(places.tolist()))
    assert values[places[:48]].max() <= values[others].min()


# ---- terms --------------------------------------------------------------------------------------------


def slow(layers, target, loss):
    """Every layer, image and segment in turn, at the points that the seed gives."""
    torch.manual_seed(0)
    classes = layers[0].classes.shape[-1] - 1
    segments = Segments.of(target, classes, POINTS)
    owners = match(pair_costs(layers, segments, loss.terms), segments.present)
    weights = [*(loss.class_weights or [1.0] * classes), NO_OBJECT]
    total = dict.fromkeys(PAPER, 0.0)
    for layer, owner in zip(layers, owners):
        entropies, weighed, bces, dices = [], [], [], []
        for b in range(len(target)):
            wanted = [classes] * layer.masks.shape[1]
            for k in sorted(set(target[b].flatten().tolist()) - {255}):
                query = int(owner[b, k])
                wanted[query] = k
                mask = layer.masks[b, query].detach()
                places = undecided(mask[None, None], Segments(segments.present, segments.spots,
                                                              segments.labels[b : b + 1], POINTS))[0, 0]  # fmt: skip
                spots = [segments.spots[int(place)] for place in places]
                bce, dice = compared([at(mask, s) for s in spots], [label(target[b], s) for s in spots], k)
                bces.append(bce)
                dices.append(dice)
            if wanted == [classes] * len(wanted):
                continue  # nothing is known of this image
            for query, k in enumerate(wanted):
                entropies.append(-weights[k] * layer.classes[b, query].log_softmax(0)[k].item())
                weighed.append(weights[k])
        total["query_class"] += sum(entropies) / sum(weighed)
        total["query_bce"] += sum(bces) / len(bces)
        total["query_dice"] += sum(dices) / len(dices)
    return total


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 2.0, 0.5)])
def test_terms_by_their_definition(weights):
    layers, target = proposals(), regions()
    target[2, 4:] = 255  # little is known of one image
    loss = Loss(terms=PAPER, query_points=POINTS, class_weights=weights)
    total, terms = loss_of(layers, target, loss=Criterion("multiclass", loss))
    expected = slow(layers, target, loss)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(sum(PAPER[name] * value for name, value in expected.items()), rel=1e-4)


def test_terms_of_one_class_and_the_background():
    layers, target = proposals(classes=2), regions(classes=2)
    loss = Loss(terms=PAPER, query_points=POINTS)
    terms = loss_of(layers, target, loss=Criterion("binary", loss))[1]
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(slow(layers, target, loss), rel=1e-4)


def test_a_term_of_weight_zero_is_reported_and_neither_trained_nor_matched():
    layers, target = proposals(), regions()
    terms = PAPER | {"query_bce": 0.0}
    total, values = loss_of(layers, target, loss=criterion(terms=terms))
    assert values["query_bce"] > 0
    assert total.item() == pytest.approx(2 * values["query_class"].item() + 5 * values["query_dice"].item(), rel=1e-5)


def test_pixel_terms_may_stand_beside():
    layers, target = proposals(), regions()
    total, values = loss_of(layers, target, loss=criterion(terms=PAPER | {"ce": 0.5}))
    alone = loss_of(layers, target)[0]
    assert values["ce"].item() == pytest.approx(np.log(4), rel=1e-5)
    assert total.item() == pytest.approx(alone.item() + 0.5 * np.log(4), rel=1e-5)


# ---- what is ignored ----------------------------------------------------------------------------------


def test_ignored_pixels_have_no_gradient_and_no_part():
    layers, target = proposals(), regions()
    target[0, :, 16:] = 255
    total, terms = loss_of(layers, target)
    gradients = torch.autograd.grad(total, [layer.masks for layer in layers])
    assert all(g[0, :, :, :4].any() for g in gradients)
    assert not any(g[0, :, :, 5:].any() for g in gradients)  # column 4 of 8 is read by points just left of the middle
    with torch.no_grad():
        for layer in layers:
            layer.masks[0, :, :, 5:] += torch.randn(6, 8, 3)
    again, same = loss_of(layers, target)
    assert again.equal(total) and same == terms


def test_images_without_truth_cost_nothing():
    layers, target = proposals(), regions()
    target[1] = 255
    total, _ = loss_of(layers, target)
    gradients = torch.autograd.grad(total, [tensor for layer in layers for tensor in layer])
    assert not any(gradient[1].any() for gradient in gradients)
    total, terms = loss_of(layers, torch.full_like(target, 255))
    gradients = torch.autograd.grad(total, [tensor for layer in layers for tensor in layer])
    assert total == 0 and not any(terms.values()) and not any(gradient.any() for gradient in gradients)


# ---- mixing, processes, half precision ----------------------------------------------------------------


def test_mixed_targets_are_matched_each_and_averaged():
    layers, target, other = proposals(), regions(), regions(seed=5)
    points = torch.rand(4 * POINTS, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, device: points)
        loss = criterion()
        a, b, mixed = (loss(outputs(layers), *of)[0].item() for of in ((target,), (other,), (target, other, 0.3)))
    assert mixed == pytest.approx(0.3 * a + 0.7 * b, rel=1e-5)


def test_two_processes_have_the_loss_and_the_gradient_of_one():
    layers, target = proposals(batch=4), regions(batch=4)
    target[3] = 255  # uneven shares
    total, terms = loss_of(layers, target)
    whole = torch.autograd.grad(total, [tensor for layer in layers for tensor in layer])
    shares = (slice(1), slice(1, None))
    halves = [[Queries(*(t[share].detach().requires_grad_() for t in layer)) for layer in layers] for share in shares]
    sums = []
    for half, share in zip(halves, shares):
        loss_of(half, target[share], loss=criterion(reduce=lambda own: (sums.append(own), own)[1]))
    assert len(sums) == 2, "one exchange a step"
    losses = [
        loss_of(half, target[share], loss=criterion(reduce=lambda own, more=more: own + more))
        for half, share, more in zip(halves, shares, sums[::-1])
    ]
    for got, got_terms in losses:
        assert got.item() == pytest.approx(total.item(), rel=1e-5)
        assert {n: float(v) for n, v in got_terms.items()} == pytest.approx({n: float(v) for n, v in terms.items()})
    both = sum(got for got, _ in losses)
    parts = [torch.autograd.grad(both, [t for layer in half for t in layer], retain_graph=True) for half in halves]
    for one, *two in zip(whole, *parts):
        assert torch.allclose(torch.cat(two) / 2, one, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_more_in_the_loss(dtype):
    layers = [Queries(layer.classes.to(dtype), layer.masks.to(dtype)) for layer in proposals()]
    for layer in layers:
        layer.masks.data[:, :, :2] *= 5000
    target = regions()
    with torch.autocast("cpu", dtype):
        total, terms = loss_of(layers, target)
    expected, expected_terms = loss_of([Queries(*(t.float() for t in layer)) for layer in layers], target)
    assert total.dtype == torch.float32 and total.isfinite()
    assert total.equal(expected) and terms == expected_terms
    gradients = torch.autograd.grad(total * 2**16, [layer.masks for layer in layers])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_a_network_that_broke_gives_a_loss_that_says_so():
    layers = proposals()
    layers[0].masks.data[0, :, 3] = torch.nan
    assert loss_of(layers, regions())[0].isnan()


# ---- in the training loop -----------------------------------------------------------------------------

NETWORK = {"queries": 8, "channels": 16, "layers": 3, "heads": 2, "feedforward": 32, "norm": "group_everywhere"}


def network():
    torch.manual_seed(0)
    return build("maskformer", classes=5, images=2, encoder="tu-test_efficientnet", **NETWORK)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "share", "changes"),
    [
        (22, 0.6, {"precision": "bfloat16", "accumulate": 2, "mix": {"mixup": 0.2, "cutmix": 1.0, "probability": 0.5}}),
        (11, 0.95, {"precision": "float16", "cpu_precision": "float16", "ema": None, "swa_from": 4}),  # slow on a CPU
    ],
)
def test_the_loop_trains_it(steps, share, changes, tmp_path):
    section = train(epochs=steps, loss={"terms": PAPER, "query_points": 512}, optimizer={"lr": 1e-2}, **changes)
    log = fit(tmp_path, section, net=network())
    assert log[-1]["loss"] < share * log[0]["loss"]
    assert all(log[-1][f"weighted_{name}"] == pytest.approx(w * log[-1][f"raw_{name}"]) for name, w in PAPER.items())


def test_a_run_in_parts_ends_like_one(tmp_path):
    """The points belong to the random state that is saved: what is resumed follows the same losses."""
    from lib.training.fit import Fit, Place

    logs = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        section = train(epochs=4, loss={"terms": PAPER, "query_points": 128}, optimizer={"lr": 3e-3}, validate_every=1)
        stops = iter([False, name == "parts", *[False] * 9])

        def validate(_, stops=stops):
            if next(stops):
                raise KeyboardInterrupt
            return {"select": 0.0}

        place = Place(tmp_path / name, torch.device("cpu"), 0, lambda line: None)
        for _ in range(2 if name == "parts" else 1):
            try:
                Fit(network(), CLASSES, Squares(), validate, section, place).run()
            except KeyboardInterrupt:
                pass
        logs.append((tmp_path / name / "best.safetensors").read_bytes())
    assert logs[0] == logs[1]


# ---- refusals -----------------------------------------------------------------------------------------


def test_query_terms_need_queries_and_exclusive_classes():
    logits, target = torch.zeros(3, 4, 32, 32), regions()
    with pytest.raises(ConfigError, match="loss: query_class needs a maskformer"):
        criterion()(logits, target)
    with pytest.raises(ConfigError, match="loss.terms: query_class needs exclusive classes"):
        criterion("multilabel")
