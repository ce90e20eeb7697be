"""Each loss term against a slow one in float64, and the laws that precision and distribution demand."""

import math
from itertools import accumulate

import numpy as np
import pytest
import torch

from lib.errors import ConfigError
from lib.run import config
from lib.training.losses import TERMS, Loss

WEIGHTS = [1.0, 1.0, 5.0, 3.0, 3.0]
ALL = {kind: dict.fromkeys(terms, 1.0) for kind, terms in TERMS.items()}
SUMS = {kind: {name: 1.0 for name in terms if name != "lovasz"} for kind, terms in TERMS.items()}


def batch(kind, seed=0, shape=(2, 12, 10)):
    rng = np.random.default_rng(seed)
    b, h, w = shape
    logits = rng.normal(0, 2, (b, 1 if kind == "binary" else 5, h, w)).astype(np.float32)
    target = rng.choice([0, 1, 255] if kind == "binary" else [0, 1, 2, 3, 255], shape).astype(np.uint8)
    if kind == "multiclass":  # class 4 has exactly ten pixels, too few for damage_dice; class 3 has eleven
        target[target == 3] = 1
        target[0].flat[:10] = 4
        target[-1].flat[10:21] = 3
    return torch.from_numpy(logits), torch.from_numpy(target)


def slow(kind, logits, target, gamma=2.0, weights=None):
    """Every term in float64, pixel by pixel."""
    logits, target = logits.double().numpy(), target.numpy()
    classes = 2 if kind == "binary" else logits.shape[1]
    weights = weights or [1.0] * classes
    pixels = []  # (probabilities of the classes, true class)
    for b, y, x in np.ndindex(target.shape):
        if target[b, y, x] != 255:
            z = [0.0, logits[b, 0, y, x]] if kind == "binary" else list(logits[b, :, y, x])
            e = np.exp(np.array(z) - max(z))
            pixels.append((e / e.sum(), int(target[b, y, x])))
    norm = sum(weights[t] for _, t in pixels)
    ce = sum(-weights[t] * math.log(p[t]) for p, t in pixels) / norm
    focal = sum(-weights[t] * (1 - p[t]) ** gamma * math.log(p[t]) for p, t in pixels) / norm

    def dice(prob, truth, eps):
        overlap = sum(prob(p) for p, t in pixels if truth(t))
        total = sum(prob(p) for p, _ in pixels) + sum(truth(t) for _, t in pixels)
        return 1 - (2 * overlap + eps) / (total + eps)

    def tversky(c, alpha, beta, eps):
        overlap = sum(p[c] for p, t in pixels if t == c)
        false_positive = sum(p[c] for p, t in pixels if t != c)
        false_negative = sum(1 - p[c] for p, t in pixels if t == c)
        return 1 - (overlap + eps) / (overlap + alpha * false_positive + beta * false_negative + eps)

    def lovasz(errors):
        """Of (error, is true) per pixel: each error times the growth of wrong / (true or wrong) when it joins."""
        ranked = sorted(errors, key=lambda e: -e[0])
        true = sum(t for _, t in ranked)
        extra = accumulate(not t for _, t in ranked)  # wrong and not true
        jaccard = [0.0, *(n / (true + more) for n, more in enumerate(extra, 1))]
        return sum(e * (b - a) for (e, _), a, b in zip(ranked, jaccard, jaccard[1:]))

    if kind == "binary":
        return {
            "bce": ce,
            "focal": focal,
            "dice": dice(lambda p: p[1], lambda t: t == 1, 1e-3),
            "jaccard": tversky(1, 1, 1, 1e-3),
            "tversky": tversky(1, 0.3, 0.7, 1e-3),
            "lovasz": lovasz([(max(0, 1 - (2 * t - 1) * math.log(p[1] / p[0])), t == 1) for p, t in pixels]),
        }
    inside = [(p[1:] / p[1:].sum(), t) for p, t in pixels if t > 0]
    given = sum(-weights[t] * math.log(p[t - 1]) for p, t in inside) / max(sum(weights[t] for _, t in inside), 1e-12)
    each = [dice(lambda p, c=c: p[c], lambda t, c=c: t == c, 1e-5) for c in range(classes)]
    counts = [sum(t == c for _, t in pixels) for c in range(classes)]
    present = [c for c in range(classes) if counts[c]]
    return {
        "ce": ce,
        "focal": focal,
        "dice": np.mean([each[c] for c in present]),
        "jaccard": np.mean([tversky(c, 1, 1, 1e-5) for c in present]),
        "tversky": np.mean([tversky(c, 0.3, 0.7, 1e-5) for c in present]),
        "lovasz": np.mean([lovasz([(abs((t == c) - p[c]), t == c) for p, t in pixels]) for c in present]),
        "damage_dice": sum(d for d, n in zip(each[1:], counts[1:]) if n > 10) / (classes - 1),
        "damage_ce": given,
        "building_bce": np.mean([-math.log(1 - p[0] if t > 0 else p[0]) for p, t in pixels]),
        "building_dice": dice(lambda p: 1 - p[0], lambda t: t > 0, 1e-5),
    }


@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize("kind", TERMS)
def test_terms_by_their_definition(kind, gamma):
    logits, target = batch(kind)
    weights = WEIGHTS if kind == "multiclass" else None
    total, terms = Loss(kind, ALL[kind], class_weights=weights, focal_gamma=gamma)(logits, target)
    expected = slow(kind, logits, target, gamma, weights)
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        assert float(value) == pytest.approx(expected[name], rel=1e-5), name
        assert not value.requires_grad
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-5)


@pytest.mark.parametrize("kind", TERMS)
def test_terms_where_there_is_only_background(kind):
    """Empty truth: every false alarm of the binary terms still costs."""
    logits, target = batch(kind)
    target = torch.where(target == 255, target, 0)
    expected = slow(kind, logits, target)
    terms = Loss(kind, ALL[kind])(logits, target)[1]
    assert {n: float(v) for n, v in terms.items()} == pytest.approx(expected, rel=1e-5)
    if kind == "binary":
        assert min(terms["jaccard"], terms["tversky"], terms["lovasz"]) > 0.9


@pytest.mark.parametrize("kind", TERMS)
def test_tversky_weighs_false_positives_by_alpha_and_false_negatives_by_beta(kind):
    logits, target = batch(kind)
    loss = Loss(kind, {"tversky": 1, "jaccard": 0}, tversky_alpha=1, tversky_beta=1)(logits, target)
    assert loss[0].item() == loss[1]["jaccard"].item()
    target = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)  # one hit, one miss, two false alarms
    logits = torch.tensor([[[[50.0, -50.0, 50.0, 50.0]]]])
    got = Loss("binary", {"tversky": 1}, tversky_alpha=0.5, tversky_beta=4)(logits, target)[0]
    assert got.item() == pytest.approx(1 - 1 / (1 + 0.5 * 2 + 4 * 1), rel=1e-3)


def test_tversky_weights_are_part_of_a_model_only_where_a_term_sees_them():
    """Else they would make every model stale that was trained before there was such a term."""
    before = config.plain(config.Loss(terms={"dice": 1}, tversky_beta=0.9))
    assert before.keys() == {"terms", "class_weights", "focal_gamma"}
    assert config.plain(config.Loss(terms={"dice": 1, "tversky": 1}, tversky_beta=0.9))["tversky_beta"] == 0.9


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    logits, target = batch("multiclass")
    guess = logits.argmax(1)
    certain = 100 * torch.nn.functional.one_hot(guess, 5).permute(0, 3, 1, 2).float()
    ious = [
        ((guess == c) & (target == c)).sum() / (((guess == c) & (target != 255)) | (target == c)).sum()
        for c in target[target != 255].unique()
    ]
    assert Loss("multiclass", {"lovasz": 1})(certain, target)[0].item() == pytest.approx(1 - np.mean(ious), rel=1e-5)


def test_cross_entropy_is_torchs():
    logits, target = batch("multiclass")
    expected = torch.nn.functional.cross_entropy(logits, target.long(), torch.tensor(WEIGHTS), ignore_index=255)
    assert Loss("multiclass", {"ce": 1}, class_weights=WEIGHTS)(logits, target)[0] == pytest.approx(float(expected))


def test_the_damage_loss_of_2020_weighs_three_terms():
    logits, target = batch("multiclass")
    total, terms = Loss("multiclass", {"focal": 5, "damage_dice": 0.5, "building_dice": 0.5})(logits, target)
    expected = 5 * terms["focal"] + 0.5 * terms["damage_dice"] + 0.5 * terms["building_dice"]
    assert total.item() == pytest.approx(float(expected), rel=1e-6)


def test_a_term_of_weight_zero_is_reported_and_not_trained():
    logits, target = batch("binary")
    logits.requires_grad_()
    total, terms = Loss("binary", {"dice": 1, "bce": 0})(logits, target)
    assert terms["bce"] > 0
    assert total.item() == terms["dice"].item()
    with_zero = torch.autograd.grad(total, logits)[0]
    assert with_zero.equal(torch.autograd.grad(Loss("binary", {"dice": 1})(logits, target)[0], logits)[0])


@pytest.mark.parametrize("kind", TERMS)
def test_gradients_against_finite_differences_in_float64(kind):
    logits, target = batch(kind, shape=(1, 8, 6))
    weights = WEIGHTS if kind == "multiclass" else None
    logits.requires_grad_()
    for name in TERMS[kind]:
        gradient = torch.autograd.grad(Loss(kind, {name: 1}, class_weights=weights)(logits, target)[0], logits)[0]
        for place in [(0, c, y, x) for c in range(logits.shape[1]) for y, x in ((0, 0), (3, 2), (7, 5))]:
            values = []
            for step in (1e-5, -1e-5):
                moved = logits.detach().double()
                moved[place] += step
                values.append(slow(kind, moved, target, weights=weights)[name])
            assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("kind", TERMS)
def test_ignored_pixels_have_no_part_in_any_term(kind):
    logits, target = batch(kind)
    logits.requires_grad_()
    ignored = (target == 255)[:, None].expand_as(logits)
    loss = Loss(kind, ALL[kind])
    total, terms = loss(logits, target)
    assert not torch.autograd.grad(total, logits)[0][ignored].any()
    other = torch.where(ignored, torch.full_like(logits, 30.0), logits.detach())
    for name, value in loss(other, target)[1].items():
        assert float(value) == pytest.approx(float(terms[name]), rel=1e-6)


@pytest.mark.parametrize("kind", TERMS)
def test_a_batch_without_any_truth_costs_nothing(kind):
    logits, target = batch(kind)
    logits.requires_grad_()
    total, _ = Loss(kind, ALL[kind])(logits, torch.full_like(target, 255))
    assert total.item() == 0
    assert not torch.autograd.grad(total, logits)[0].any()


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_finite_losses_and_useful_gradients(kind, dtype):
    """At 8 x 512 x 512 a float16 sum overflows, and from logit 9 on a float16 focal gradient vanishes."""
    channels = 1 if kind == "binary" else 5
    logits = torch.full((8, channels, 512, 512), -1.0, dtype=dtype)
    logits[:, -1, :256] = 12.0
    logits[0, :, 0, 0], logits[0, -1, 0, 0] = 60000.0, -60000.0
    logits.requires_grad_()
    target = torch.zeros(8, 512, 512, dtype=torch.uint8)  # 12 is confidently wrong
    target[:, 256:] = channels - 1 or 1
    with torch.autocast("cpu", dtype):
        total, terms = Loss(kind, ALL[kind])(logits, target)
    assert total.dtype == torch.float32
    assert all(value.isfinite() for value in terms.values())
    gradient = torch.autograd.grad(total * 2**16, logits)[0]  # the scale a GradScaler starts with
    assert gradient.dtype == dtype and gradient.isfinite().all()
    assert gradient[:, -1, 1:256].all()


def adding(others):
    """A reduce that adds what the other process put in, call by call."""
    queue = iter(others)
    return lambda own: own + next(queue)


@pytest.mark.parametrize("kind", TERMS)
def test_two_processes_have_the_loss_and_the_gradient_of_one(kind):
    logits, target = batch(kind, shape=(4, 12, 10))
    target[:1] = 255  # uneven shares
    weights = WEIGHTS if kind == "multiclass" else None
    whole = logits.clone().requires_grad_()
    total, terms = Loss(kind, SUMS[kind], class_weights=weights)(whole, target)
    total.backward()

    halves = [logits[:1].clone().requires_grad_(), logits[1:].clone().requires_grad_()]
    targets = [target[:1], target[1:]]
    sums = []  # what each process puts into its calls of reduce, in order
    for half, truth in zip(halves, targets):
        Loss(kind, SUMS[kind], class_weights=weights, reduce=lambda own: (sums.append(own), own)[1])(half, truth)
    calls = len(sums) // 2
    totals = []
    for half, truth, others in ((halves[0], targets[0], sums[calls:]), (halves[1], targets[1], sums[:calls])):
        totals.append(Loss(kind, SUMS[kind], class_weights=weights, reduce=adding(others))(half, truth))
    for got, got_terms in totals:
        assert got.item() == pytest.approx(total.item(), rel=1e-5)
        assert {n: float(v) for n, v in got_terms.items()} == pytest.approx({n: float(v) for n, v in terms.items()})
    # an all-reduce whose backward adds, then DDP's mean over processes
    gradients = torch.autograd.grad(totals[0][0] + totals[1][0], halves)
    assert torch.allclose(torch.cat(gradients) / 2, whole.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "terms", "options", "words"),
    [
        ("multilabel", {"dice": 1}, {}, "kind binary or multiclass"),
        ("binary", {"ce": 1}, {}, "unknown binary term ce; there are dice, focal, bce"),
        ("binary", {}, {}, "one of them positive"),
        ("binary", {"dice": 0}, {}, "one of them positive"),
        ("binary", {"dice": 1, "bce": -1}, {}, "at least 0"),
        ("binary", {"focal": 1}, {"focal_gamma": 0.5}, "focal_gamma"),
        ("binary", {"tversky": 1}, {"tversky_beta": 0}, "tversky weights above 0"),
        ("binary", {"dice": 1, "lovasz": 0}, {"reduce": torch.clone}, "not exact over several processes"),
        ("multiclass", {"lovasz": 1}, {"reduce": torch.clone}, "not exact over several processes"),
        ("binary", {"focal": 1}, {"class_weights": [1, 1, 1]}, "expected 2 class_weights, got 3"),
    ],
)
def test_impossible_losses_are_refused(kind, terms, options, words):
    with pytest.raises(ConfigError, match=words):
        Loss(kind, terms, **options)(*batch("binary"))


def test_shapes_that_do_not_fit_are_refused():
    logits, target = batch("binary")
    with pytest.raises(ValueError, match="do not fit"):
        Loss("binary", {"dice": 1})(logits, target[:1])
    with pytest.raises(ValueError, match="do not fit"):
        Loss("multiclass", {"dice": 1})(logits, target)
