"""Everything that can be refused before work begins, all of it at once, in sentences that name the key.

A stage opens its experiment here; no pixel is read. ``load`` says what is wrong with the file itself. Here follows what
only the competition can tell (its options, decode settings, search axes, classes, images), and ``networks`` says which
networks cannot be built. For that torch and the libraries of networks are imported, which takes seconds; so it is
remembered in the experiment's folder that nothing was wrong, until a model, the code or a package changes.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.competitions import open_competition
from lib.competitions.contract import Competition, Scene
from lib.competitions.listing import RESERVED
from lib.config.load import about, examine, read, refusal
from lib.config.losses import loss_faults
from lib.config.sections import BOUNDARY, QUERY, Experiment, Loss, Model, plain
from lib.ensemble.crf import Crf
from lib.errors import ConfigError, DataError
from lib.files import digest, read_json, write_json
from lib.settings import one_of, sentences
from lib.tasks import Task

MEMORY = ".checked.json"
"""In an experiment's folder: the mark of the networks in which nothing was wrong."""
FACTS = ".facts.json"
"""In an experiment's folder: what labels say, so that a stage reads only those that changed."""


def open_experiment(
    path: str | Path, overrides: Sequence[str] = (), workdir: Path = Path("workdir"), code: str = ""
) -> tuple[Experiment, Competition]:
    """Read an experiment file and open its competition; where ``data.synthetic`` asks for it, the data are written.

    workdir: where results lie. code: marks the sources and packages; without it the networks are not looked at, since
    they come finished from elsewhere. Raises ConfigError with one line per fault, DataError where the competition's
    files do not even tell its classes.
    """
    experiment, faults = examine(read(path, overrides))
    if experiment is None:
        raise refusal(path, faults)
    said = [fault.partition(": ")[0] for fault in faults]
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
    wrong += competition_faults(experiment, competition)
    memory, seen = workdir / experiment.name / MEMORY, digest([_networks(experiment, competition), code])
    if code and not _holds(memory, seen):
        from lib.config.networks import network_faults  # here, since it imports torch and the libraries of networks

        wrong += network_faults(experiment, competition)
    faults += [fault for fault in wrong if not about(fault, said)]
    if faults:
        raise refusal(path, faults)
    if code and not _holds(memory, seen):
        with contextlib.suppress(OSError):  # where nothing can be written, the networks are built again next time
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, seen)
    return experiment, competition


def _open(experiment: Experiment, memo: Path) -> tuple[Competition | None, list[str]]:
    """Open the competition; where options are wrong, with the others alone, so that more can be said."""
    data = experiment.data
    options = dict(data.options)
    faults: list[str] = []
    for _ in range(2):
        try:
            return open_competition(experiment.competition, data.root, options, memo, data.limits), faults
        except ConfigError as error:
            faults = faults or str(error).splitlines()
            wrong = {match[1] for match in re.finditer(r"data\.options\.(\w+)", str(error))}
            options = {key: value for key, value in options.items() if key not in wrong}
    return None, faults


# ---- what the competition tells -----------------------------------------------------------------------
def competition_faults(experiment: Experiment, competition: Competition) -> list[str]:
    """Return what of an experiment does not fit its competition, one sentence per fault."""
    faults: list[str] = []
    if taken := [flag for flag in competition.flags if flag in RESERVED]:
        faults.append(f"data.options: no class may be called {', '.join(taken)}, since folds.csv has columns of these "
                      "names; rename it")  # fmt: skip
    for name, model in experiment.models.items():
        faults += [f"models.{name}.{fault}" for fault in _model_faults(model, competition)]
    search = experiment.search
    axes, chains, unseen = (search.axes, search.postprocess, search.unseen) if search else ({}, (), {})
    faults += competition.faults(experiment.decode, axes, chains, unseen)
    if experiment.reference is not None and (names := competition.score_names()):
        faults += experiment.reference.faults(names)
    try:
        Crf.model_validate(experiment.blend.crf or {})
    except ValidationError as error:
        faults += sentences(error, "blend.crf")
    if (file := experiment.folds.file) is not None and not file.is_file():
        faults.append(f"folds.file: expected a folds.csv of an earlier run, found no file {file}; correct the path")
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
    others = {role: other for role, other in competition.tasks.items() if role != model.task}
    if model.train.select == "argmax" and not (
        task.dense and task.kind == "multiclass" and others and all(o.channels == 1 for o in others.values())
    ):
        yield (
            "train.select: argmax is for masks of several classes whose foreground answers the competition's other "
            f"tasks, which task {model.task} is not; take score or dice2020"
        )
    if task.dense and model.view.crop is not None:
        yield (
            "view.crop: expected a network of one label per image, got one that answers every pixel, which a centre "
            f"crop of {model.view.crop} leaves out; remove it"
        )
    if task.dense and model.train.sampling.balance:
        yield "train.sampling.balance: expected false, it is for labels; masks are balanced by train.sampling.focus"
    if not task.dense and model.train.sampling.focus:
        yield "train.sampling.focus: expected {}, it is for masks; labels are balanced by train.sampling.balance"
    for fault in loss_faults(model.train.loss, task.kind, task.classes):
        yield f"train.loss.{fault}"
    for role, asked in model.train.auxiliary.items():
        yield from (f"train.auxiliary.{fault}" for fault in _auxiliary_faults(model, role, asked.loss, others))


def _auxiliary_faults(model: Model, role: str, loss: Loss, others: Mapping[str, Task]) -> Iterator[str]:
    """Yield what is wrong with an auxiliary task; ``others`` are the competition's tasks but the model's own."""
    task = others.get(role)
    if not others:
        yield f"{role}: this competition has no task but {model.task}; remove it"
    elif task is None:
        yield one_of(role, role, others)
    elif not task.dense:
        yield f"{role}: expected a task that answers every pixel; remove it"
    else:
        if task.float32 and model.train.precision != "float32":
            yield f"{role}: this task must be trained in float32, got train.precision {model.train.precision}"
        if loss.class_weights == "auto":
            yield f"{role}.loss.class_weights: auto is for the network's own task; state them"
        if beside := [name for name in (BOUNDARY, *QUERY) if name in loss.terms]:
            yield f"{role}.loss.terms: {', '.join(beside)} belongs to the network's own task; leave it out"
        for fault in loss_faults(loss, task.kind, task.classes):
            yield f"{role}.loss.{fault}"


def scene_faults(experiment: Experiment, scenes: Collection[Scene]) -> list[str]:
    """Return which models need a pixel size that scenes do not have, or name sources that no scene has."""
    without = [scene.id for scene in scenes if scene.pixel_size is None]
    sources = sorted({scene.data_source for scene in scenes} - {""})
    faults = [
        one_of(f"models.{name}.train.sampling.sources", source, sources or ["(no scene says where it is from)"])
        for name, model in experiment.models.items()
        for source in model.train.sampling.sources
        if scenes and source not in sources
    ]
    return faults + [
        f"models.{name}.view.pixel_size: {len(without)} of {len(scenes)} scenes do not say how large their pixels are "
        f"({without[0]}); use view.scale or view.size"
        for name, model in experiment.models.items()
        if model.view.pixel_size is not None and without
    ]


def _holds(memory: Path, seen: str) -> bool:
    """Tell whether a file says that nothing was wrong with these very networks."""
    try:
        return bool(read_json(memory) == seen)
    except (OSError, ValueError):
        return False


def _networks(experiment: Experiment, competition: Competition) -> dict[str, Any]:
    """Return all that ``networks.network_faults`` looks at, as JSON values."""
    return {
        "models": [
            [name, model.task, plain(model.network), plain(model.view), model.train.crop, model.train.augment,
             model.train.zero_gamma, {role: asked.branch for role, asked in model.train.auxiliary.items()}]
            for name, model in experiment.models.items()
        ],
        "tasks": {role: [task.classes, task.kind, task.dense] for role, task in competition.tasks.items()},
        "images": competition.images,
        "windows": [experiment.predict.tile, experiment.predict.overlap],
    }  # fmt: skip
