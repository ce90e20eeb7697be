"""Mask classification (MaskFormer, Mask2Former): queries are matched to the classes of a target, then trained.

Every class that a target holds is one segment, the background too. Of each image and layer the segments are given to
different queries so that the sum of costs is the smallest (Hungarian matching, as in DETR, Carion et al. 2020). A
matched query learns the class and the mask of its segment, all others learn to say "no object". Masks are compared at
points instead of all pixels (Cheng et al. 2022, arXiv 2112.01527, section 3.3; PointRend, Kirillov et al. 2020): the
matching at random ones, the losses mostly where the mask itself is undecided.

Points are drawn from torch's generator, the same for all images of a step. So processes that start from one seed draw
the same points, and together have the loss of the undivided batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib.config.sections import QUERY, Loss
from lib.models.layers import Queries
from lib.tasks import known
from lib.training.terms import Reduce

NO_OBJECT = 0.1
"""Weight of the class "no object", which most queries have (the papers' value)."""
OVERSAMPLE, UNDECIDED = 3, 0.75
"""So many times the points are drawn to choose from, and this share of the points are the most undecided of them."""
HUGE = 1e10
"""Stands for a cost that is no number."""


@dataclass(frozen=True)
class Segments:
    """The target of a batch as the terms see it: which classes there are, and where masks are looked at."""

    present: Tensor
    """(B, K) bool."""
    spots: Tensor
    """(N, 2) float32, x and y in 0 .. 1: first those of the matching, then those to choose undecided ones from."""
    labels: Tensor
    """(B, N), the target at the spots."""
    count: int
    """How many spots the matching has, and the comparison of a mask with its segment."""

    @classmethod
    def of(cls, target: Tensor, classes: int, points: int) -> "Segments":
        """Look at a target (B, H, W) at so many points, at most one for a pixel, drawn by torch's generator."""
        index = torch.arange(classes, device=target.device)[:, None, None]
        present = (target[:, None] == index).flatten(2).any(2)
        count = min(points, target[0].numel())
        spots = torch.rand((1 + OVERSAMPLE) * count, 2, device=target.device)
        return cls(present, spots, target_at(target, spots), count)


def query_terms(layers: Sequence[Queries], target: Tensor, loss: Loss, reduce: Reduce) -> dict[str, Tensor]:
    """Return query_class, query_bce and query_dice, each the sum over the layers: float32 scalars.

    layers: logits of any float dtype, with K exclusive classes beside "no object" (2 for the binary kind: background
    and foreground). target: (B, H, W), as ``Criterion`` takes it. Ignored pixels have no part in the masks, images
    without truth none at all. query_class: cross-entropy over the queries, weighted by ``class_weights`` and
    ``NO_OBJECT``. query_bce and query_dice: mean over the segments of all images and processes. ``loss.terms`` weigh
    the costs of the matching too.

    The matching is computed on the CPU: the costs of all layers and images go there in one copy, the only time that a
    step waits for the device (once for each target where images are mixed, and for each part of a divided batch).
    """
    segments = Segments.of(target, layers[0].classes.shape[-1] - 1, loss.query_points)
    owners = match(pair_costs(layers, segments, loss.terms), segments.present)  # (L, B, K)
    segment_count = segments.present.sum().float()
    sums, weights = [], []
    for layer, owner in zip(layers, owners):
        losses, weight = _class_sums(layer.classes.float(), owner, segments.present, loss)
        sums += [losses, *_mask_sums(layer.masks, owner, segments)]
        weights += [weight, segment_count, segment_count]
    total, weight = reduce(torch.stack([torch.stack(sums), torch.stack(weights)]))
    by_layer = (total / weight.clamp(min=1e-12)).view(len(layers), len(QUERY))
    return dict(zip(QUERY, by_layer.sum(0)))


def target_at(target: Tensor, spots: Tensor) -> Tensor:
    """Return the target (B, H, W) at spots (N, 2), x and y in 0 .. 1: (B, N), of the pixels that hold them."""
    height, width = target.shape[1:]
    x, y = (spots[:, 0] * width).long(), (spots[:, 1] * height).long()
    return target[:, y.clamp(max=height - 1), x.clamp(max=width - 1)]


def logits_at(masks: Tensor, spots: Tensor) -> Tensor:
    """Return masks (N, Q, h, w) at spots (P, 2), or (N, P, 2) of their own: (N, Q, P) float32, bilinear."""
    grid = (2 * spots - 1).expand(len(masks), -1, -1)[:, :, None]  # (N, P, 1, 2)
    return F.grid_sample(masks.float(), grid, padding_mode="border", align_corners=False)[..., 0]


@torch.no_grad()
def pair_costs(layers: Sequence[Queries], segments: Segments, terms: Mapping[str, float]) -> Tensor:
    """Return what it costs that a query takes a class: (L, B, Q, K) float32.

    The cost is the weighted sum of -p(class), the mean binary cross-entropy over the spots with truth, and
    1 - (2 overlap + 1) / (area of the mask + area of the class + 1) there.
    """
    spots, labels = segments.spots[: segments.count], segments.labels[:, : segments.count]
    valid = known(labels)[:, None].float()  # (B, 1, P)
    index = torch.arange(layers[0].classes.shape[-1] - 1, device=labels.device)
    truth = (labels[:, :, None] == index).float()  # (B, P, K)
    count, areas = valid.sum(2, keepdim=True).clamp(min=1), truth.sum(1)[:, None]  # (B, 1, 1), (B, 1, K)
    of_class, of_bce, of_dice = (terms[name] for name in QUERY)
    costs = []
    for layer in layers:
        logits = logits_at(layer.masks, spots)  # (B, Q, P)
        inside = logits.sigmoid() * valid
        # the cross-entropy of a logit x is softplus(x) where it should be 0, and less by x where 1
        entropy = (F.softplus(logits) * valid).sum(2, keepdim=True) - logits @ truth
        dice = 1 - (2 * inside @ truth + 1) / (inside.sum(2, keepdim=True) + areas + 1)
        wrong = -layer.classes.float().softmax(-1)[..., :-1]
        costs.append(of_class * wrong + of_bce * entropy / count + of_dice * dice)
    return torch.stack(costs)


def match(costs: Tensor, present: Tensor) -> Tensor:
    """Give the classes that are present to different queries, at the smallest sum of costs: (L, B, K) int64.

    costs: (L, B, Q, K) float; present: (B, K) bool. A class that is absent gets Q, one more than the last query.
    """
    absent = ~present[None, :, None]
    finite = costs.nan_to_num(HUGE, HUGE, -HUGE).clamp(-HUGE, HUGE)
    host = finite.masked_fill(absent, torch.inf).cpu().numpy()  # the one copy to the CPU
    layers, images, queries, classes = host.shape
    owners = np.full((layers, images, classes), queries)
    for layer, image in np.ndindex(layers, images):
        columns = np.flatnonzero(np.isfinite(host[layer, image, 0]))
        rows, taken = linear_sum_assignment(host[layer, image][:, columns])
        owners[layer, image, columns[taken]] = rows
    return torch.from_numpy(owners).to(costs.device, non_blocking=True)


def _class_sums(logits: Tensor, owner: Tensor, present: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Return the sum of weighted losses and of weights over the queries; logits (B, Q, K + 1), owner (B, K)."""
    images, queries, answers = logits.shape
    weights = logits.new_ones(answers)
    for place, weight in enumerate([*(loss.class_weights or [1.0] * (answers - 1)), NO_OBJECT]):
        weights[place : place + 1].fill_(weight)  # a tensor of Python's numbers would be a copy that the host waits for
    wanted = torch.full((images, queries + 1), answers - 1, device=logits.device)
    wanted.scatter_(1, owner, torch.arange(answers - 1, device=logits.device).expand(images, -1))  # absent: beyond Q
    wanted = wanted[:, :queries]
    told = present.any(1, keepdim=True)  # images with truth
    losses = F.cross_entropy(logits.transpose(1, 2), wanted, weights, reduction="none")
    return (losses * told).sum(), (weights[wanted] * told).sum()


def _mask_sums(masks: Tensor, owner: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Return the sums over segments of the mean binary cross-entropy and of 1 - Dice, at undecided and other spots.

    masks: logits (B, Q, h, w); owner: (B, K).
    """
    classes, (height, width) = owner.shape[1], masks.shape[2:]
    chosen = owner.clamp(max=masks.shape[1] - 1)[:, :, None, None].expand(-1, -1, height, width)
    own = masks.gather(1, chosen).float()  # (B, K, h, w): the mask that each class got
    places = undecided(own.detach(), segments)  # (B, K, P)
    logits = logits_at(own.view(-1, 1, height, width), segments.spots[places.flatten(0, 1)]).view_as(places)
    labels = segments.labels.gather(1, places.flatten(1)).view_as(places)
    valid = known(labels).float()
    truth = (labels == torch.arange(classes, device=labels.device)[:, None]).float()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    inside = logits.sigmoid() * valid
    dice = 1 - (2 * (inside * truth).sum(2) + 1) / (inside.sum(2) + truth.sum(2) + 1)
    entropy = entropy.sum(2) / valid.sum(2).clamp(min=1)
    return (entropy * segments.present).sum(), (dice * segments.present).sum()


@torch.no_grad()
def undecided(masks: Tensor, segments: Segments) -> Tensor:
    """Return which of the spots a mask is compared with its segment at: (B, K, P) int64.

    masks: logits (B, K, h, w). Three of four are the most undecided with truth among the spots to choose from; the
    others are the first of the matching's.
    """
    count = round(UNDECIDED * segments.count)
    doubt = -logits_at(masks, segments.spots[segments.count :]).abs()  # (B, K, OVERSAMPLE * P)
    doubt = doubt.masked_fill(~known(segments.labels[:, None, segments.count :]), -torch.inf)
    best = doubt.topk(count, dim=2).indices + segments.count
    rest = torch.arange(segments.count - count, device=masks.device).expand(*best.shape[:2], -1)
    return torch.cat([best, rest], dim=2)
