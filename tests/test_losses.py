"""Each loss term against a slow one in float64, and the laws that precision and distribution demand."""

import math
from itertools import accumulate

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from packaging import version
from pydantic import ValidationError
from torchvision.ops import sigmoid_focal_loss

from lib.config.losses import ALIASES
from lib.config.sections import Distill, Loss
from lib.errors import ConfigError
from lib.training.boundary import boundaries
from lib.training.losses import Criterion
from lib.training.terms import TERMS, hardest

CHANNELS = {"binary": 1, "multiclass": 5, "multilabel": 3}
WEIGHTS = {"binary": None, "multiclass": [1.0, 1.0, 5.0, 3.0, 3.0], "multilabel": [1.0, 4.0, 2.0]}
ONE_VS_REST = {"focal_mode": "one_vs_rest", "focal_alpha": 0.75}
ALL = {kind: dict.fromkeys(terms, 1.0) for kind, terms in TERMS.items()}
SUMS = {kind: {name: 1.0 for name in terms if name != "lovasz"} for kind, terms in TERMS.items()}


def criterion(kind, terms, *, distill=None, reduce=None, **options):
    """The loss of a section with these terms and options."""
    teacher = distill and Distill(experiment="teacher", **distill)
    return Criterion(kind, Loss(terms=terms, **options), teacher, reduce)


def batch(kind, seed=0, shape=(2, 12, 10)):
    rng = np.random.default_rng(seed)
    b, h, w = shape
    logits = rng.normal(0, 2, (b, CHANNELS[kind], h, w)).astype(np.float32)
    # of the three labels, bits 0 and 2 are used, alone and together; label 1 has no pixel
    values = {"binary": [0, 1, 255], "multiclass": [0, 1, 2, 3, 255], "multilabel": [0, 1, 4, 5, 255]}[kind]
    target = rng.choice(values, shape).astype(np.uint8)
    if kind == "multiclass":  # class 4 has exactly ten pixels, too few for class_dice; class 3 has eleven
        target[target == 3] = 1
        target[0].flat[:10] = 4
        target[-1].flat[10:21] = 3
    return torch.from_numpy(logits), torch.from_numpy(target)


def slow(kind, logits, target, gamma=2.0, weights=None, eps=1e-3):
    """Every term in float64, pixel by pixel; ``eps`` is the binary kind's."""
    if kind == "multilabel":
        return slow_multilabel(logits, target, gamma, weights)
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
            "dice": dice(lambda p: p[1], lambda t: t == 1, eps),
            "jaccard": tversky(1, 1, 1, eps),
            "tversky": tversky(1, 0.3, 0.7, eps),
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
        "class_dice": sum(d for d, n in zip(each[1:], counts[1:]) if n > 10) / (classes - 1),
        "class_ce": given,
        "foreground_bce": np.mean([-math.log(1 - p[0] if t > 0 else p[0]) for p, t in pixels]),
        "foreground_dice": dice(lambda p: 1 - p[0], lambda t: t > 0, 1e-5),
    }


def bit(target, c):
    """The binary target of one label."""
    return torch.where(target == 255, target, (target >> c) & 1)


def slow_multilabel(logits, target, gamma, weights):
    """Each label is a binary task; bce and focal average all of them, the other terms those with target pixels."""
    labels = range(logits.shape[1])
    each = [slow("binary", logits[:, c : c + 1], bit(target, c), gamma, eps=1e-5) for c in labels]
    present = [c for c in labels if (bit(target, c) == 1).any()]
    weights = weights or [1.0] * len(each)
    means = {name: np.average([e[name] for e in each], weights=weights) for name in ("bce", "focal")}
    names = ("dice", "jaccard", "tversky", "lovasz")
    return means | {name: np.mean([each[c][name] for c in present]) if present else 0.0 for name in names}


@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize("kind", TERMS)
def test_terms_by_their_definition(kind, gamma):
    logits, target = batch(kind)
    weights = WEIGHTS[kind]
    total, terms = criterion(kind, ALL[kind], class_weights=weights, focal_gamma=gamma)(logits, target)
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
    terms = criterion(kind, ALL[kind])(logits, target)[1]
    assert {n: float(v) for n, v in terms.items()} == pytest.approx(expected, rel=1e-5)
    if kind == "binary":
        assert min(terms["jaccard"], terms["tversky"], terms["lovasz"]) > 0.9


@pytest.mark.parametrize("kind", TERMS)
def test_tversky_weighs_false_positives_by_alpha_and_false_negatives_by_beta(kind):
    logits, target = batch(kind)
    loss = criterion(kind, {"tversky": 1, "jaccard": 0}, tversky_alpha=1, tversky_beta=1)(logits, target)
    assert loss[0].item() == loss[1]["jaccard"].item()
    target = torch.tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)  # one hit, one miss, two false alarms
    logits = torch.tensor([[[[50.0, -50.0, 50.0, 50.0]]]])
    got = criterion("binary", {"tversky": 1}, tversky_alpha=0.5, tversky_beta=4)(logits, target)[0]
    assert got.item() == pytest.approx(1 - 1 / (1 + 0.5 * 2 + 4 * 1), rel=1e-3)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    logits, target = batch("multiclass")
    guess = logits.argmax(1)
    certain = 100 * torch.nn.functional.one_hot(guess, 5).permute(0, 3, 1, 2).float()
    ious = [
        ((guess == c) & (target == c)).sum() / (((guess == c) & (target != 255)) | (target == c)).sum()
        for c in target[target != 255].unique()
    ]
    assert criterion("multiclass", {"lovasz": 1})(certain, target)[0].item() == pytest.approx(
        1 - np.mean(ious), rel=1e-5
    )


def test_cross_entropy_is_torchs():
    logits, target = batch("multiclass")
    weights = WEIGHTS["multiclass"]
    expected = torch.nn.functional.cross_entropy(logits, target.long(), torch.tensor(weights), ignore_index=255)
    assert criterion("multiclass", {"ce": 1}, class_weights=weights)(logits, target)[0] == pytest.approx(
        float(expected)
    )


def test_the_damage_loss_of_2020_weighs_three_terms():
    logits, target = batch("multiclass")
    total, terms = criterion("multiclass", {"focal": 5, "damage_dice": 0.5, "building_dice": 0.5})(logits, target)
    expected = 5 * terms["focal"] + 0.5 * terms["damage_dice"] + 0.5 * terms["building_dice"]
    assert total.item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("spread", "apart"), [(2.0, 7e-5), (12.0, 0.32)])
def test_the_clamped_focal_loss_of_2020(spread, apart):
    """Its formula in float64, and how far the plain focal loss is from it where networks are sure of themselves."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 64, 64, generator=generator) * spread
    target = torch.randint(0, 2, (2, 64, 64), generator=generator).byte()
    target[0, :3] = 255
    valid, eps = target != 255, 1e-5
    p = logits.double().sigmoid()[:, 0][valid].clamp(eps, 1 - eps)
    t = target[valid].double().clamp(eps, 1 - eps)
    pt = t * p + (1 - t) * (1 - p)
    expected = (-((1 - pt) ** 2) * pt.log()).mean().item()
    logits.requires_grad_()
    found = criterion("binary", {"focal": 1}, focal_clamp=eps)(logits, target)[0]
    assert found.item() == pytest.approx(expected, rel=1e-5)
    plain = criterion("binary", {"focal": 1})(logits, target)[0].item()
    assert abs(plain / expected - 1) == pytest.approx(apart, rel=0.5)
    beyond = (logits.detach().sigmoid() - 0.5).abs()[:, 0] > 0.5 - eps
    gradient = torch.autograd.grad(found, logits)[0][:, 0]
    wrong = ((logits.detach() > 0)[:, 0] != (target > 0)) & valid
    assert not gradient[beyond].any() and gradient[wrong & ~beyond].all()


def test_a_term_of_weight_zero_is_reported_and_not_trained():
    logits, target = batch("binary")
    logits.requires_grad_()
    total, terms = criterion("binary", {"dice": 1, "bce": 0})(logits, target)
    assert terms["bce"] > 0
    assert total.item() == terms["dice"].item()
    with_zero = torch.autograd.grad(total, logits)[0]
    assert with_zero.equal(torch.autograd.grad(criterion("binary", {"dice": 1})(logits, target)[0], logits)[0])


@pytest.mark.parametrize("kind", TERMS)
def test_gradients_against_finite_differences_in_float64(kind):
    logits, target = batch(kind, shape=(1, 8, 6))
    weights = WEIGHTS[kind]
    logits.requires_grad_()
    for name in TERMS[kind]:
        gradient = torch.autograd.grad(criterion(kind, {name: 1}, class_weights=weights)(logits, target)[0], logits)[0]
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
    loss = criterion(kind, ALL[kind])
    total, terms = loss(logits, target)
    assert not torch.autograd.grad(total, logits)[0][ignored].any()
    other = torch.where(ignored, torch.full_like(logits, 30.0), logits.detach())
    for name, value in loss(other, target)[1].items():
        assert float(value) == pytest.approx(float(terms[name]), rel=1e-6)


@pytest.mark.parametrize("kind", TERMS)
def test_a_batch_without_any_truth_costs_nothing(kind):
    logits, target = batch(kind)
    logits.requires_grad_()
    total, _ = criterion(kind, ALL[kind])(logits, torch.full_like(target, 255))
    assert total.item() == 0
    assert not torch.autograd.grad(total, logits)[0].any()


# ---- focal losses and their alpha ---------------------------------------------------------------------


def test_one_alpha_on_a_softmax_focal_loss_is_only_a_larger_step():
    logits, target = batch("multiclass")
    logits.requires_grad_()
    gradients = []
    for alpha in (0.75, 0.25):
        total = criterion("multiclass", {"focal": 1}, focal_alpha=alpha)(logits, target)[0]
        gradients.append(torch.autograd.grad(total, logits)[0])
    assert gradients[1].any()
    assert torch.allclose(gradients[0], 3.0 * gradients[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS["multiclass"]])
@pytest.mark.parametrize(
    ("alpha", "mode", "factors"),
    [
        (0.75, "softmax", [0.75] * 5),
        (0.75, "per_class", [0.25, 0.75, 0.75, 0.75, 0.75]),
        ((0.1, 1, 2, 0, 4), "per_class", [0.1, 1, 2, 0, 4]),
    ],
)
def test_alpha_weighs_a_pixel_by_its_true_class(alpha, mode, factors, class_weights):
    """A factor of the loss alone, unlike class weights, which have their sum in the denominator."""
    logits, target = batch("multiclass")
    weights = class_weights or [1.0] * 5
    total = norm = 0.0
    for b, y, x in np.ndindex(*target.shape):
        if (t := int(target[b, y, x])) != 255:
            e = np.exp(logits[b, :, y, x].double().numpy())
            p = e[t] / e.sum()
            total -= weights[t] * factors[t] * (1 - p) ** 3 * math.log(p)
            norm += weights[t]
    loss = criterion("multiclass", {"focal": 1}, focal_alpha=alpha, focal_mode=mode, focal_gamma=3.0,
                class_weights=class_weights)  # fmt: skip
    assert loss(logits, target)[0].item() == pytest.approx(total / norm, rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 2.0), (0.25, 2.0), (0.75, 3.0)])
def test_binary_alpha_is_torchvisions(alpha, gamma):
    logits, target = batch("binary")
    valid = target != 255
    expected = sigmoid_focal_loss(logits[:, 0][valid], target[valid].float(), -1 if alpha is None else alpha, gamma)
    got = criterion("binary", {"focal": 1}, focal_alpha=alpha, focal_gamma=gamma)(logits, target)[0]
    assert got.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    if alpha is not None:
        pair = criterion("binary", {"focal": 1}, focal_alpha=[1 - alpha, alpha], focal_gamma=gamma)(logits, target)[0]
        assert pair.item() == got.item()


@pytest.mark.skipif(version.parse(smp.__version__) < version.parse("0.6"), reason="smp sums over classes before 0.6")
@pytest.mark.parametrize("class_weights", [None, WEIGHTS["multiclass"]])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_one_vs_rest_is_smps_multiclass_focal_loss(alpha, class_weights):
    logits, target = batch("multiclass")
    smps = smp.losses.FocalLoss("multiclass", alpha=alpha, gamma=3.0, ignore_index=255, class_weights=class_weights)
    loss = criterion("multiclass", {"focal": 1}, focal_mode="one_vs_rest", focal_alpha=alpha, focal_gamma=3.0,
                class_weights=class_weights)  # fmt: skip
    assert loss(logits, target)[0].item() == pytest.approx(smps(logits, target.long()).item(), rel=1e-5)


@pytest.mark.parametrize(("alpha", "alphas"), [(0.25, [0.25] * 3), ([0.2, 0.5, 0.9], [0.2, 0.5, 0.9])])
def test_alpha_of_yes_or_no_questions_weighs_positives_against_negatives(alpha, alphas):
    logits, target = batch("multilabel")
    valid = target != 255
    each = [
        sigmoid_focal_loss(logits[:, c][valid], bit(target, c)[valid].float(), alphas[c], 2.0).mean() for c in range(3)
    ]
    got = criterion("multilabel", {"focal": 1}, focal_alpha=alpha)(logits, target)[0]
    assert got.item() == pytest.approx(np.mean(each), rel=1e-5)


def test_alphas_of_exclusive_classes_one_against_the_rest():
    logits, target = batch("multiclass")
    alphas = [0.1, 0.2, 0.3, 0.4, 0.5]
    valid = target != 255
    each = [
        sigmoid_focal_loss(logits[:, c][valid], (target[valid] == c).float(), alphas[c], 2.0).mean() for c in range(5)
    ]
    got = criterion("multiclass", {"focal": 1}, focal_alpha=alphas, focal_mode="one_vs_rest")(logits, target)[0]
    assert got.item() == pytest.approx(np.mean(each), rel=1e-5)


# ---- boundary and auxiliary heads ---------------------------------------------------------------------


def slow_boundaries(target, width):
    """A pixel is boundary if some pixel at most ``width`` rows and columns away has another class."""
    marks = np.zeros(target.shape, bool)
    for b, y, x in np.ndindex(*target.shape):
        window = target[b, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        classes = set(window.flatten().tolist()) - {255}
        marks[b, y, x] = target[b, y, x] != 255 and len(classes) > 1
    return torch.from_numpy(marks)


def regions(kind, shape=(2, 12, 10)):
    """A target of a few blocks, so that not every pixel is a boundary."""
    target = batch(kind, shape=(shape[0], 3, 2))[1]
    return target.repeat_interleave(shape[1] // 3, 1).repeat_interleave(shape[2] // 2, 2)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("kind", TERMS)
def test_boundaries_by_their_definition(kind, width):
    for target in (regions(kind), batch(kind)[1]):
        assert boundaries(target, width).equal(slow_boundaries(target, width))


def test_boundaries_of_a_drawing():
    drawing = ["0001.1", "0001.1", "000111", "000000"]  # a dot is ignored
    edges = ["..##..", "..##..", "..####", "..####"]  # the 1 right of the dots has no other neighbours than 1
    target = torch.tensor([[255 if c == "." else int(c) for c in line] for line in drawing], dtype=torch.uint8)
    expected = torch.tensor([[c == "#" for c in line] for line in edges])
    assert boundaries(target[None], 1)[0].equal(expected)
    assert not boundaries(torch.full((1, 4, 4), 255, dtype=torch.uint8), 1).any()
    assert not boundaries(torch.ones(1, 1, 1, dtype=torch.uint8), 2).any()


@pytest.mark.parametrize("kind", TERMS)
def test_boundary_bce_is_the_mean_over_pixels_with_truth(kind):
    target = regions(kind)
    outputs = {"logits": batch(kind)[0], "boundary": batch("binary", seed=1)[0].requires_grad_()}
    total, terms = criterion(kind, {"dice": 1, "boundary_bce": 0.3}, boundary_width=2)(outputs, target)
    valid, truth = target != 255, slow_boundaries(target, 2)
    assert truth[valid].any() and not truth[valid].all()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["boundary"][:, 0][valid], truth[valid].float()
    )
    assert terms["boundary_bce"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert total.item() == pytest.approx(terms["dice"].item() + 0.3 * expected.item(), rel=1e-5)
    gradient = torch.autograd.grad(total, outputs["boundary"])[0][:, 0]
    assert gradient.ne(0).equal(valid)


def test_a_boundary_term_needs_a_boundary_head():
    logits, target = batch("binary")
    for outputs in (logits, {"logits": logits, "aux": logits}):
        with pytest.raises(ConfigError, match="boundary_bce needs a network with a boundary head"):
            criterion("binary", {"dice": 1, "boundary_bce": 0})(outputs, target)
    with pytest.raises(ValueError, match="boundary logits .* do not fit"):
        criterion("binary", {"dice": 1, "boundary_bce": 1})({"logits": logits, "boundary": logits[..., ::2]}, target)


@pytest.mark.parametrize("kind", TERMS)
def test_an_auxiliary_head_has_the_ordinary_terms_and_its_own_weight(kind):
    logits, target = batch(kind)
    other = batch(kind, seed=1)[0]
    terms = {"dice": 1.0, "focal": 2.0, "jaccard": 0.0, "boundary_bce": 3.0}
    ordinary = {"dice": 1.0, "focal": 2.0}
    outputs = {"logits": logits, "boundary": batch("binary", seed=2)[0], "aux": other}
    total, values = criterion(kind, terms, aux_weight=0.25)(outputs, target)
    assert values.keys() == {*terms, "aux"}
    assert values["aux"].item() == pytest.approx(criterion(kind, ordinary)(other, target)[0].item(), rel=1e-6)
    own = criterion(kind, ordinary)(logits, target)[0] + 3 * values["boundary_bce"]
    assert total.item() == pytest.approx((own + 0.25 * values["aux"]).item(), rel=1e-6)
    outputs["aux"] = other.clone().requires_grad_()
    outputs["logits"] = logits.clone().requires_grad_()
    total, values = criterion(kind, terms, aux_weight=0)(outputs, target)  # reported, not trained
    assert values["aux"] > 0
    assert total.item() == pytest.approx(own.item(), rel=1e-6)
    assert torch.autograd.grad(total, outputs["aux"], allow_unused=True) == (None,)


# ---- label smoothing ----------------------------------------------------------------------------------


PIXEL_TERM = {"binary": "bce", "multiclass": "ce", "multilabel": "bce"}


def smoothed(form, eps, classes):
    """What the true class is given, and what each other one."""
    return (1 - eps, eps / (classes - 1)) if form == "paper" else (1 - eps + eps / classes, eps / classes)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["paper", "torch"])
@pytest.mark.parametrize("kind", TERMS)
def test_smoothing_by_its_closed_form(kind, form, weighted):
    logits, target = batch(kind)
    classes = {"binary": 2, "multiclass": 5, "multilabel": 3}[kind]
    weights = (WEIGHTS[kind] or [1.0, 4.0]) if weighted else [1.0] * classes
    true, other = smoothed(form, 0.1, 5 if kind == "multiclass" else 2)
    total = norm = 0.0
    for b, y, x in np.ndindex(*target.shape):
        z, t = logits[b, :, y, x].double().tolist(), int(target[b, y, x])
        if t == 255:
            continue
        if kind == "multilabel":  # every class a question of its own
            for c, value in enumerate(z):
                answer = math.log1p(math.exp(-value if t >> c & 1 else value))
                opposite = math.log1p(math.exp(value if t >> c & 1 else -value))
                total += weights[c] * (true * answer + other * opposite)
            norm += sum(weights)
        else:
            z = [0.0, *z] if kind == "binary" else z
            log_sum = math.log(sum(math.exp(value) for value in z))
            total += sum(w * (true if c == t else other) * (log_sum - v) for c, (v, w) in enumerate(zip(z, weights)))
            norm += weights[t]
    loss = criterion(kind, {PIXEL_TERM[kind]: 1}, smoothing=0.1, smoothing_form=form, class_weights=weights)
    assert loss(logits, target)[0].item() == pytest.approx(total / norm, rel=1e-5)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS["multiclass"]])
def test_torchs_form_is_torchs(class_weights):
    logits, target = batch("multiclass")
    weights = None if class_weights is None else torch.tensor(class_weights)
    expected = torch.nn.functional.cross_entropy(logits, target.long(), weights, ignore_index=255, label_smoothing=0.2)
    loss = criterion("multiclass", {"ce": 1}, smoothing=0.2, smoothing_form="torch", class_weights=class_weights)
    assert loss(logits, target)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_two_forms_are_far_apart_for_few_classes():
    """Logits 2, 0, 0: -log p is 0.2395 and 2.2395; paper .9 a + .1 b, torch (.9 + .1 / 3) a + .2 / 3 b."""
    logits = torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1)
    target = torch.zeros(1, 1, 1, dtype=torch.uint8)
    values = [criterion("multiclass", {"ce": 1}, smoothing=0.1, smoothing_form=form)(logits, target)[0].item()
              for form in ("paper", "torch")]  # fmt: skip
    assert values == pytest.approx([0.43955, 0.37288], abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, -3.0])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_optimum_is_the_papers(classes, alpha):
    """z_y = log((K - 1)(1 - eps) / eps) + alpha, all others alpha."""
    eps = 0.1
    logits = torch.full((1, classes, 1, 1), alpha)
    logits[0, 1] = math.log((classes - 1) * (1 - eps) / eps) + alpha
    target = torch.ones(1, 1, 1, dtype=torch.uint8)
    for form in ("paper", "torch"):
        logits.requires_grad_()
        total = criterion("multiclass", {"ce": 1}, smoothing=eps, smoothing_form=form)(logits, target)[0]
        gradient = torch.autograd.grad(total, logits)[0].abs().max().item()
        assert (gradient < 1e-6) == (form == "paper")
    logit = torch.tensor(math.log((1 - eps) / eps)).view(1, 1, 1, 1).requires_grad_()
    for kind in ("binary", "multilabel"):
        total = criterion(kind, {"bce": 1}, smoothing=eps)(logit, target)[0]
        assert torch.autograd.grad(total, logit)[0].abs().item() < 1e-6


# ---- hard pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "least"), [(0.3, 1), (0.01, 20), (1.0, 1), (0.2, 10**6)])
@pytest.mark.parametrize("kind", TERMS)
def test_mining_keeps_the_hardest_pixels(kind, share, least):
    logits, target = batch(kind, shape=(2, 6, 5))
    weights = WEIGHTS[kind] or [1.0, 4.0]
    pixels = []  # (weighted loss, its denominator)
    for b, y, x in np.ndindex(*target.shape):
        t = int(target[b, y, x])
        if t == 255:
            continue
        place = (slice(b, b + 1), slice(None), slice(y, y + 1), slice(x, x + 1))
        single = slow(kind, logits[place], target[b : b + 1, y : y + 1, x : x + 1], weights=weights)
        norm = sum(weights) if kind == "multilabel" else weights[t]
        pixels.append((single[PIXEL_TERM[kind]] * norm, norm))
    pixels.sort(key=lambda pixel: -pixel[0])
    kept = pixels[: max(round(share * len(pixels)), least)]
    loss = criterion(kind, {PIXEL_TERM[kind]: 1}, class_weights=weights, ohem=share, ohem_min=least)
    expected = sum(p[0] for p in kept) / sum(p[1] for p in kept)
    logits.requires_grad_()
    total = loss(logits, target)[0]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    moved = torch.autograd.grad(total, logits)[0].abs().sum(1) > 0
    assert moved.sum() == len(kept)


def test_of_equally_hard_pixels_the_first_are_kept():
    losses = torch.tensor([[2.0, 3.0, 2.0], [9.0, 2.0, 1.0]])
    valid = torch.tensor([[True, True, True], [False, True, True]])
    assert hardest(losses, valid, 0.4, 1).tolist() == [[True, True, False], [False, False, False]]
    assert hardest(losses, valid, 0.6, 1).tolist() == [[True, True, True], [False, False, False]]
    assert hardest(losses, valid, 0.1, 9).equal(valid)
    assert not hardest(losses, valid & False, 0.5, 3).any()
    same = torch.zeros(100_000)
    assert hardest(same, same == 0, 0.5, 1).equal(torch.arange(100_000) < 50_000)


# ---- mixed images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERMS)
def test_a_share_of_one_is_no_mixup_to_the_last_bit(kind):
    logits, target = batch(kind)
    heads = {"logits": logits, "boundary": batch("binary", 1)[0], "aux": batch(kind, 2)[0]}
    loss = criterion(kind, ALL[kind] | {"boundary_bce": 1}, smoothing=0.1, ohem=0.5)
    total, terms = loss(heads, target)
    mixed, mixed_terms = loss(heads, target, batch(kind, 5)[1], 1.0)
    assert mixed.equal(total) and mixed_terms == terms


@pytest.mark.parametrize("kind", TERMS)
def test_mixed_targets_are_averaged_in_every_term(kind):
    logits, target = batch(kind)
    other = batch(kind, 5)[1]
    heads = {"logits": logits, "boundary": batch("binary", 1)[0], "aux": batch(kind, 2)[0]}
    loss = criterion(kind, ALL[kind] | {"boundary_bce": 1})
    (first, a), (second, b), (total, mixed) = loss(heads, target), loss(heads, other), loss(heads, target, other, 0.3)
    assert total.item() == pytest.approx(0.3 * first.item() + 0.7 * second.item(), rel=1e-6)
    assert mixed.keys() == a.keys()
    for name, value in mixed.items():
        assert value.item() == pytest.approx(0.3 * a[name].item() + 0.7 * b[name].item(), rel=1e-6), name
    swapped = loss(heads, other, target, 0.7)[0]
    assert swapped.item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_masks_have_the_cross_entropy_of_mixed_labels(smoothing):
    """Where both targets are known the average of losses is the loss of averages, as torch has it for soft labels."""
    logits, target = batch("multiclass")
    target, other = target % 5, batch("multiclass", 5)[1] % 5
    one_hot = [torch.nn.functional.one_hot(t.long(), 5).permute(0, 3, 1, 2) for t in (target, other)]
    soft = 0.3 * one_hot[0] + 0.7 * one_hot[1]
    expected = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing)
    loss = criterion("multiclass", {"ce": 1}, smoothing=smoothing, smoothing_form="torch")
    assert loss(logits, target, other, 0.3)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    logits, target = batch("binary")
    other = batch("binary", 5)[1]
    target, other = target % 2, other % 2
    soft = 0.3 * target.float() + 0.7 * other.float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], soft)
    assert criterion("binary", {"bce": 1})(logits, target, other, 0.3)[0].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_a_share_needs_a_second_target():
    logits, target = batch("binary")
    for other, lam in ((None, 0.5), (target, 1.5), (target, -0.1)):
        with pytest.raises(ValueError, match="expected lam in 0 .. 1"):
            criterion("binary", {"bce": 1})(logits, target, other, lam)


# ---- half precision -----------------------------------------------------------------------------------


FORMS = [
    ("binary", {"focal_alpha": 0.75}),
    ("multiclass", {}),
    ("multiclass", {"focal_mode": "per_class", "focal_alpha": 0.75}),
    ("multiclass", ONE_VS_REST),
    ("multilabel", {"focal_alpha": 0.75}),
]
TRICKS = {"smoothing": 0.1, "ohem": 0.9, "distill": {"weight": 0.5, "temperature": 4.0}}
TRICKED = [(kind, TRICKS) for kind in TERMS]


def half_precision_terms(kind, options, dtype, size):
    """Every term on every head, as under a GradScaler: ordinary, confidently wrong and enormous logits."""
    b, h, w = size
    generator = torch.Generator().manual_seed(0)
    channels = CHANNELS[kind]
    # upper half: background called the last class; lower half: the last class called one; scattered: +-20000, +-60000
    logits = torch.randn(b, channels, h, w, generator=generator).mul_(3)
    logits[:, :, : h // 2] = -1
    logits[:, -1, : h // 2] = 12
    for huge, place in ((20000.0, h - 4), (60000.0, h - 3), (20000.0, 2)):
        logits[:, :, place] = huge * torch.randn(b, channels, w, generator=generator).sign()
    target = torch.zeros(b, h, w, dtype=torch.uint8)
    target[:, h // 2 :] = {"binary": 1, "multiclass": channels - 1, "multilabel": 1 << channels - 1}[kind]
    target[:, 3 * h // 4, ::2] = 255
    heads = {"logits": logits, "boundary": logits[:, -1:].clone(), "aux": logits.clone()}
    heads = {name: head.to(dtype).requires_grad_() for name, head in heads.items()}
    more = {}
    if "distill" in options:  # a certain teacher who is right, and a mixed batch
        p = torch.zeros(b, channels, h, w)
        p[:, -1, h // 2 :] = p[:, 0, : h // 2 if channels > 1 else 0] = 1
        more = {"teacher": p, "other": target.flip(0), "lam": 0.6}
    with torch.autocast("cpu", dtype):
        total, terms = criterion(kind, ALL[kind] | {"boundary_bce": 1}, **options)(heads, target, **more)
    assert total.dtype == torch.float32
    assert terms.keys() - {"distill"} == {*TERMS[kind], "boundary_bce", "aux"}
    assert all(value.isfinite() for value in terms.values())
    gradients = torch.autograd.grad(total * 2**16, list(heads.values()))  # the scale a GradScaler starts with
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in gradients)
    wrong = slice(4, h // 2)
    assert all(gradient[:, -1, wrong].all() for gradient in gradients)


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [
        *((*form, dtype) for form in FORMS for dtype in (torch.float16, torch.bfloat16)),
        *((*form, torch.float16) for form in TRICKED),
    ],
)
def test_half_precision_logits_give_finite_losses_and_useful_gradients(kind, options, dtype):
    """A float16 sum over more than 65504 pixels overflows; from logit 9 on a float16 focal gradient vanishes."""
    half_precision_terms(kind, options, dtype, (2, 192, 192))


@pytest.mark.parametrize(("kind", "options"), FORMS)
def test_half_precision_logits_lose_nothing_more_in_the_loss(kind, options):
    logits, target = batch(kind)
    heads = {"logits": logits.half(), "boundary": batch("binary", 1)[0].half(), "aux": batch(kind, 2)[0].half()}
    loss = criterion(kind, ALL[kind] | {"boundary_bce": 1}, **options)
    with torch.autocast("cpu", torch.float16):
        total, terms = loss(heads, target)
    expected, expected_terms = loss({name: head.float() for name, head in heads.items()}, target)
    assert total.equal(expected)
    assert terms == expected_terms


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [*FORMS, *TRICKED])
def test_half_precision_at_the_size_of_training(kind, options):
    """Sums over more pixels (8 * 160 * 160) than the largest float16 (65,504), as in training."""
    half_precision_terms(kind, options, torch.float16, (8, 160, 160))


def test_smps_dice_is_not_a_number_there():
    """Why the terms are our own: its sums overflow in float16."""
    logits = torch.full((2, 1, 192, 192), 5.0, dtype=torch.float16)
    target = torch.ones(2, 1, 192, 192)
    with torch.autocast("cpu", torch.float16):
        assert smp.losses.DiceLoss("binary")(logits, target.half()).isnan()
        assert criterion("binary", {"dice": 1})(logits, target[:, 0].byte())[0] < 0.01


# ---- several processes --------------------------------------------------------------------------------


def adding(others):
    """A reduce that adds what the other process put in, call by call."""
    queue = iter(others)
    return lambda own: own + next(queue)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {}) for kind in TERMS),
        ("multiclass", ONE_VS_REST),
        *((kind, {"smoothing": 0.1, "distill": TRICKS["distill"]}) for kind in TERMS),
    ],
)
def test_two_processes_have_the_loss_and_the_gradient_of_one(kind, options):
    shape = (4, 12, 10)
    logits, target = batch(kind, shape=shape)
    target[:1] = 255  # uneven shares
    heads = {"logits": logits, "boundary": batch("binary", 1, shape)[0], "aux": batch(kind, 2, shape)[0]}
    options = {**options, "class_weights": WEIGHTS[kind]}
    other, teacher = batch(kind, 3, shape)[1], batch(kind, 4, shape)[0].sigmoid()

    def loss_of(part, reduce=None):
        share = share_of[id(part)]
        more = {"other": other[share], "lam": 0.3, "teacher": teacher[share]} if "distill" in options else {}
        return criterion(kind, SUMS[kind] | {"boundary_bce": 1}, reduce=reduce, **options)(part, target[share], **more)

    whole, *halves = (
        {name: head[share].clone().requires_grad_() for name, head in heads.items()}
        for share in (slice(None), slice(1), slice(1, None))
    )
    share_of = {id(whole): slice(None), id(halves[0]): slice(1), id(halves[1]): slice(1, None)}
    total, terms = loss_of(whole)
    total.backward()

    sums = []  # what each process puts into its calls of reduce, in order
    for half in halves:
        loss_of(half, lambda own: (sums.append(own), own)[1])
    calls = len(sums) // 2
    totals = [loss_of(half, adding(others)) for half, others in zip(halves, (sums[calls:], sums[:calls]))]
    for got, got_terms in totals:
        assert got.item() == pytest.approx(total.item(), rel=1e-5)
        assert {n: float(v) for n, v in got_terms.items()} == pytest.approx({n: float(v) for n, v in terms.items()})
    # an all-reduce whose backward adds, then DDP's mean over processes
    for name, head in whole.items():
        gradients = torch.autograd.grad(totals[0][0] + totals[1][0], [half[name] for half in halves], retain_graph=True)
        assert torch.allclose(torch.cat(gradients) / 2, head.grad, rtol=1e-4, atol=1e-8), name


# ---- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "terms", "options", "words"),
    [
        ("binary", {"ce": 1}, {}, "terms: expected one of dice, focal, bce, .* boundary_bce, got 'ce'"),
        ("binary", {"dice": 1, "lovasz": 0}, {"reduce": torch.clone}, "not exact over several processes"),
        ("multiclass", {"lovasz": 1}, {"reduce": torch.clone}, "not exact over several processes"),
        ("binary", {"focal": 1}, {"class_weights": [1, 1, 1]}, "expected 2 class_weights, got 3"),
        ("multiclass", {"focal": 1}, {"focal_alpha": [0.5, 0.5]}, "softmax takes one number above 0"),
        ("multiclass", {"focal": 1}, {"focal_alpha": 0}, "number above 0, got 0"),
        ("multiclass", {"focal": 1}, {"focal_mode": "per_class", "focal_alpha": 1.5}, "between 0 and 1"),
        ("multiclass", {"focal": 1}, {"focal_mode": "one_vs_rest", "focal_alpha": [0.5, 2]}, "between 0 and 1"),
        ("multiclass", {"focal": 1}, {"focal_mode": "per_class", "focal_alpha": [0, 0]}, "one of them positive"),
        ("multiclass", {"focal": 1}, {"focal_mode": "per_class", "focal_alpha": [1, 2]}, "focal_alpha or 5, got 2"),
        ("binary", {"focal": 1}, {"focal_alpha": 1.0}, "between 0 and 1"),
        ("binary", {"focal": 1}, {"focal_mode": "one_vs_rest"}, "binary focal losses have one form"),
        ("multilabel", {"focal": 1}, {"focal_mode": "per_class", "focal_alpha": 0.5}, "focal losses have one form"),
    ],
)
def test_losses_that_do_not_fit_the_kind_of_target_are_refused(kind, terms, options, words):
    with pytest.raises(ConfigError, match=words):
        criterion(kind, terms, **options)(*batch(kind))


@pytest.mark.parametrize(
    ("terms", "options", "words"),
    [
        ({}, {}, "one of them positive"),
        ({"dice": 0}, {}, "one of them positive"),
        ({"dice": 0, "boundary_bce": 1}, {}, "one of them positive and not boundary_bce's"),
        ({"dice": 1, "bce": -1}, {}, "at least 0"),
        ({"dice": math.nan}, {}, "at least 0"),
        ({"dice": 1, "bce": math.inf}, {}, "at least 0"),
        ({"focal": 1}, {"focal_gamma": 0.5}, "focal_gamma"),
        ({"tversky": 1}, {"tversky_beta": 0}, "tversky_beta"),
        ({"dice": 1}, {"boundary_width": 0}, "boundary_width"),
        ({"dice": 1}, {"aux_weight": -1}, "aux_weight"),
        ({"focal": 1}, {"focal_mode": "sigmoid"}, "focal_mode"),
        ({"focal": 1}, {"focal_mode": "per_class"}, "per_class needs focal_alpha"),
        ({"ce": 1}, {"focal_alpha": 0.25}, "belong to the term focal"),
        ({"ce": 1}, {"focal_mode": "one_vs_rest"}, "belong to the term focal"),
        ({"ce": 1}, {"smoothing": 0.5}, "smoothing"),
        ({"ce": 1}, {"smoothing_form": "keras"}, "smoothing_form"),
        ({"dice": 1}, {"smoothing": 0.1}, "belong to the terms ce and bce"),
        ({"dice": 1}, {"ohem": 0.5}, "belong to the terms ce and bce"),
        ({"bce": 1}, {"ohem": 1.5}, "ohem"),
        ({"bce": 1}, {"ohem": 0.5, "ohem_min": 0}, "ohem_min"),
    ],
)
def test_impossible_sections_are_refused(terms, options, words):
    with pytest.raises(ValidationError, match=words):
        Loss(terms=terms, **options)


def test_the_terms_keep_their_older_names():
    logits, target = batch("multiclass")
    terms = {"damage_ce": 1, "damage_dice": 2, "building_bce": 3, "building_dice": 4}
    old, values = criterion("multiclass", terms)(logits, target)
    new, general = criterion("multiclass", {ALIASES[name]: weight for name, weight in terms.items()})(logits, target)
    assert values.keys() == terms.keys() and old.equal(new)
    assert {ALIASES[name]: value for name, value in values.items()} == general
    assert not set(ALIASES) & {name for names in TERMS.values() for name in names}


def test_a_bit_field_holds_seven_classes():
    target = torch.full((1, 2, 2), 127, dtype=torch.uint8)
    certain = torch.full((1, 7, 2, 2), 30.0)
    assert criterion("multilabel", {"bce": 1, "dice": 1})(certain, target)[0].item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="at most 7 multilabel classes, got 8"):
        criterion("multilabel", {"dice": 1})(torch.zeros(1, 8, 2, 2), target)


def test_shapes_that_do_not_fit_are_refused():
    logits, target = batch("binary")
    with pytest.raises(ValueError, match="do not fit"):
        criterion("binary", {"dice": 1})(logits, target[:1])
    with pytest.raises(ValueError, match="do not fit"):
        criterion("multiclass", {"dice": 1})(logits, target)
