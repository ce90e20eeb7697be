"""Everything that can be refused before work begins, all of it at once, in sentences that name the key.

A stage opens its experiment here; no pixel is read. ``load`` says what is wrong with the file itself. Here follows what
only the competition can tell (its options, decode settings, search axes, classes, images), and ``networks`` says which
networks cannot be built. For that torch and the libraries of networks are imported, which takes seconds; so it is
remembered in the experiment's folder that nothing was wrong, until a model, the code or a package changes.
"""

import contextlib
import hashlib
import inspect
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from lib.competitions import open_competition
from lib.competitions.contract import Competition, Scene
from lib.config.load import examine, read, refusal
from lib.config.sections import BOUNDARY, Experiment, Loss, Model, plain
from lib.ensemble.crf import refine
from lib.errors import ConfigError, DataError
from lib.files import write_json
from lib.settings import one_of
from lib.tasks import Task

MEMORY = ".checked.json"
"""In an experiment's folder: the mark of the networks in which nothing was wrong."""
FACTS = ".facts.json"
"""In an experiment's folder: what labels say, so that a stage reads only those that changed."""
PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "albumentations")
"""What the verdict on networks depends on besides the experiment and the code."""
LOSS_TERMS = {
    "binary": ("dice", "focal", "bce", "jaccard", "tversky", "lovasz"),
    "multiclass": ("dice", "focal", "ce", "class_ce", "class_dice", "foreground_bce", "foreground_dice", "jaccard",
                   "tversky", "lovasz", "damage_ce", "damage_dice", "building_bce", "building_dice"),
    "multilabel": ("dice", "focal", "bce", "jaccard", "tversky", "lovasz"),
}  # fmt: skip
"""Kind of a task -> the loss terms it may have, beside that of the boundary head; ``lib/training/terms.py`` has them,
the last four under newer names."""
COLUMNS = ("id", "fold", "group", "domain")
"""Columns of folds.csv beside the flags."""


@dataclass(frozen=True)
class Memory:
    """A file that remembers for which networks nothing was wrong."""

    file: Path
    code: str
    """Marks the sources that found so."""
    networks: Any
    """All that the finding depends on, as JSON values."""

    def holds(self) -> bool:
        """Tell whether nothing was wrong with these very networks."""
        try:
            return json.loads(self.file.read_text(encoding="utf-8")) == self._digest
        except (OSError, ValueError):
            return False

    def keep(self) -> None:
        """Remember that nothing is wrong; where nothing can be written, the networks are built again next time."""
        if not self.holds():
            with contextlib.suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.file, self._digest)

    @cached_property
    def _digest(self) -> str:
        versions = [_version(name) for name in PACKAGES]
        return hashlib.sha256(json.dumps([self.networks, self.code, versions]).encode()).hexdigest()


def open_experiment(
    path: str | Path, overrides: Sequence[str] = (), workdir: Path = Path("workdir"), code: str = ""
) -> tuple[Experiment, Competition]:
    """Read an experiment file and open its competition; where ``data.synthetic`` asks for it, the data are written.

    workdir: where results lie. code: marks the sources; without it the networks are not looked at, since they come
    finished from elsewhere. Raises ConfigError with one line per fault, DataError where the competition's files do not
    even tell its classes.
    """
    experiment, faults = examine(read(path, overrides))
    if experiment is None:
        raise refusal(path, faults)
    said = {fault.partition(": ")[0] for fault in faults}
    if not faults and (wanted := experiment.data.synthetic):
        from lib.competitions import synthetic  # here, since inference elsewhere goes without it

        synthetic.write(experiment.competition, experiment.data.root, scenes=wanted.scenes,
                        test_scenes=wanted.test_scenes, size=wanted.size, seed=wanted.seed)  # fmt: skip
    try:
        competition, wrong = _open(experiment, workdir / experiment.name / FACTS)
    except DataError:
        if faults:  # what was asked for may be why
            raise refusal(path, faults) from None
        raise
    if competition is None:
        raise refusal(path, faults + wrong)
    memory = Memory(workdir / experiment.name / MEMORY, code, _networks(experiment, competition))
    wrong += competition_faults(experiment, competition)
    if code and not memory.holds():
        from lib.config.networks import network_faults  # here, since it imports torch and the libraries of networks

        wrong += network_faults(experiment, competition)
    faults += [fault for fault in wrong if fault.partition(": ")[0] not in said]
    if faults:
        raise refusal(path, faults)
    if code:
        memory.keep()
    return experiment, competition


def _open(experiment: Experiment, memo: Path) -> tuple[Competition | None, list[str]]:
    """Open the competition; where options are wrong, with the others alone, so that more can be said."""
    options, faults = dict(experiment.data.options), []
    for _ in range(2):
        try:
            return open_competition(experiment.competition, experiment.data.root, options, memo), faults
        except ConfigError as error:
            faults = faults or str(error).splitlines()
            wrong = {match[1] for match in re.finditer(r"data\.options\.(\w+)", str(error))}
            options = {key: value for key, value in options.items() if key not in wrong}
    return None, faults


# ---- what the competition tells -----------------------------------------------------------------------
def competition_faults(experiment: Experiment, competition: Competition) -> list[str]:
    """Return what of an experiment does not fit its competition, one sentence per fault."""
    faults = []
    if taken := [flag for flag in competition.flags if flag in COLUMNS]:
        faults.append(f"data.options: no class may be called {', '.join(taken)}, since folds.csv has columns of these "
                      "names; rename it")  # fmt: skip
    for name, model in experiment.models.items():
        faults += [f"models.{name}.{fault}" for fault in _model_faults(model, competition)]
    search = experiment.search
    axes, chains, unseen = (search.axes, search.postprocess, search.unseen) if search else ({}, (), {})
    if hasattr(competition, "faults"):
        faults += competition.faults(experiment.decode, axes, chains, unseen)
    if experiment.blend.crf is not None:
        faults += [f"blend.crf{fault}" for fault in _crf_faults(experiment.blend.crf)]
    return faults


def _model_faults(model: Model, competition: Competition) -> Iterator[str]:
    """Yield what of one model does not fit the competition."""
    task = competition.tasks.get(model.task)
    if task is None:
        yield one_of("task", model.task, competition.tasks)
    for image in model.network.images:
        if image not in competition.images:
            yield one_of("network.images", image, competition.images)
    for flag in model.train.sampling.repeat:
        if flag not in competition.flags:
            yield one_of("train.sampling.repeat", flag, competition.flags)
    if task is None:
        return
    for name in model.train.sampling.focus:
        if name not in task.classes:
            yield one_of("train.sampling.focus", name, task.classes)
    if task.float32 and model.train.precision != "float32":
        yield (
            f"train.precision: expected float32, in which this competition's task {model.task} must be trained, "
            f"got {model.train.precision}"
        )
    if task.dense and model.view.crop is not None:
        yield (
            "view.crop: expected a network of one label per image, got one that answers every pixel, which a centre "
            f"crop of {model.view.crop} leaves out; remove it"
        )
    if task.dense and model.train.sampling.balance:
        yield "train.sampling.balance: expected false, it is for labels; masks are balanced by train.sampling.focus"
    for fault in loss_faults(model.train.loss, task):
        yield f"train.loss.{fault}"


def loss_faults(loss: Loss, task: Task) -> Iterator[str]:
    """Yield what of a loss does not fit the kind of a task and the number of its classes."""
    known = (*LOSS_TERMS[task.kind], BOUNDARY)
    for name in loss.terms:
        if name not in known:
            yield one_of("terms", name, known)
    classes = 2 if task.kind == "binary" else task.channels
    weights = loss.class_weights
    if weights == "auto" and task.kind == "multilabel":
        yield "class_weights: auto needs exclusive classes, this task's may overlap; state them"
    elif isinstance(weights, tuple) and (len(weights) != classes or min(weights) < 0 or not any(weights)):
        named = ("background", *task.classes) if task.kind == "binary" else task.classes
        yield f"class_weights: expected {classes} numbers of at least 0 ({', '.join(named)}), got {list(weights)}"
    mode, alpha = loss.focal_mode, loss.focal_alpha
    if task.kind != "multiclass" and mode != "softmax":
        yield f"focal_mode: {task.kind} focal losses have one form; leave focal_mode out"
    elif alpha is not None:
        yield from _alpha_faults(alpha, mode, task.kind, classes)


def _alpha_faults(alpha: float | tuple[float, ...], mode: str, kind: str, classes: int) -> Iterator[str]:
    values = alpha if isinstance(alpha, tuple) else (alpha,)
    if kind == "multiclass" and mode == "softmax":
        if isinstance(alpha, tuple) or alpha <= 0:
            yield f"focal_alpha: focal_mode softmax takes one number above 0, got {alpha}; see focal_mode per_class"
        return
    if isinstance(alpha, tuple) and len(alpha) != classes:
        yield f"focal_alpha: expected one number or {classes}, one per class, got {len(alpha)}"
    if isinstance(alpha, float) or kind == "multilabel" or mode == "one_vs_rest":  # where 1 - alpha is a factor too
        if not all(0 < value < 1 for value in values):
            yield f"focal_alpha: expected numbers between 0 and 1, got {alpha}"
    elif min(values, default=-1) < 0 or not any(values):
        yield f"focal_alpha: expected numbers of at least 0, one of them positive, got {list(values)}"


def _crf_faults(options: dict[str, int | float]) -> Iterator[str]:
    known = {name: p.default for name, p in inspect.signature(refine).parameters.items() if p.kind == p.KEYWORD_ONLY}
    for name, value in options.items():
        lowest = 0 if name in ("iterations", "near", "alike") else 1e-6
        if name not in known:
            yield one_of("", name, known)
        elif isinstance(known[name], int) and int(value) != value:
            yield f".{name}: expected a whole number, got {value}"
        elif not lowest <= value <= 1000:
            yield f".{name}: expected {'at least' if lowest == 0 else 'above'} 0 and at most 1000, got {value}"


def scene_faults(experiment: Experiment, scenes: Collection[Scene]) -> list[str]:
    """Return which models need a pixel size that scenes do not have."""
    without = [scene.id for scene in scenes if scene.pixel_size is None]
    return [
        f"models.{name}.view.pixel_size: {len(without)} of {len(scenes)} scenes do not say how large their pixels are "
        f"({without[0]}); use view.scale or view.size"
        for name, model in experiment.models.items()
        if model.view.pixel_size is not None and without
    ]


def _networks(experiment: Experiment, competition: Competition) -> dict[str, Any]:
    """Return all that ``networks.network_faults`` looks at, as JSON values."""
    return {
        "models": [
            [name, model.task, plain(model.network), plain(model.view), model.train.crop, model.train.augment,
             model.train.zero_gamma]
            for name, model in experiment.models.items()
        ],
        "tasks": {role: [task.classes, task.kind, task.dense] for role, task in competition.tasks.items()},
        "images": competition.images,
        "windows": [experiment.predict.tile, experiment.predict.overlap],
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
