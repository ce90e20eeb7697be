"""Which loss terms there are for which kind of task, and which settings of a loss do not fit a task."""

from collections.abc import Iterator

from lib.config.sections import BOUNDARY, QUERY, Loss
from lib.settings import one_of

LOSS_TERMS = {
    "binary": ("dice", "focal", "bce", "jaccard", "tversky", "lovasz"),
    "multiclass": ("dice", "focal", "ce", "class_ce", "class_dice", "foreground_bce", "foreground_dice", "jaccard",
                   "tversky", "lovasz"),
    "multilabel": ("dice", "focal", "bce", "jaccard", "tversky", "lovasz"),
}  # fmt: skip
"""Kind of a task -> the terms it may have beside those of further heads; ``lib/training/terms.py`` defines them."""
ALIASES = {
    "damage_ce": "class_ce",
    "damage_dice": "class_dice",
    "building_bce": "foreground_bce",
    "building_dice": "foreground_dice",
}
"""Older names of terms in experiment files; logs call a term as its experiment does."""


def loss_faults(loss: Loss, kind: str, classes: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield what of a loss does not fit the kind of a task and, where they are known, its classes."""
    known = (*LOSS_TERMS[kind], BOUNDARY)
    for name in loss.terms:
        if name in QUERY:
            if kind == "multilabel":
                yield f"terms: {name} needs exclusive classes, this task's may overlap; take another architecture"
        elif ALIASES.get(name, name) not in known:
            yield one_of("terms", name, known)
    named = ("background", *classes) if kind == "binary" and classes else classes
    weights = loss.class_weights
    if weights == "auto" and kind == "multilabel":
        yield "class_weights: auto needs exclusive classes, this task's may overlap; state them"
    elif isinstance(weights, tuple) and ((named and len(weights) != len(named)) or min(weights, default=-1) < 0):
        of = f"{len(named)} numbers of at least 0 ({', '.join(named)})" if named else "numbers of at least 0"
        yield f"class_weights: expected {of}, got {list(weights)}"
    if loss.focal_clamp and kind != "binary":
        yield f"focal_clamp: only binary focal terms take one, this task is {kind}; leave it out"
    mode, alpha = loss.focal_mode, loss.focal_alpha
    if kind != "multiclass" and mode != "softmax":
        yield f"focal_mode: {kind} focal losses have one form; leave focal_mode out"
    elif alpha is not None:
        yield from _alpha_faults(alpha, mode, kind, len(named))


def _alpha_faults(alpha: float | tuple[float, ...], mode: str, kind: str, classes: int) -> Iterator[str]:
    values = alpha if isinstance(alpha, tuple) else (alpha,)
    if kind == "multiclass" and mode == "softmax":
        if isinstance(alpha, tuple) or alpha <= 0:
            yield f"focal_alpha: focal_mode softmax takes one number above 0, got {alpha}; see focal_mode per_class"
        return
    if isinstance(alpha, tuple) and classes and len(alpha) != classes:
        yield f"focal_alpha: expected one number or {classes}, one per class, got {len(alpha)}"
    if isinstance(alpha, float) or kind == "multilabel" or mode == "one_vs_rest":  # where 1 - alpha is a factor too
        if not all(0 < value < 1 for value in values):
            yield f"focal_alpha: expected numbers between 0 and 1, got {alpha}"
    elif min(values, default=-1) < 0 or not any(values):
        yield f"focal_alpha: expected numbers of at least 0, one of them positive, got {list(values)}"
