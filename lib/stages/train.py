"""Stages 02 and 03: one network of a task on one fold. The two stages differ only in their task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.competitions.contract import Competition, Scene
from lib.config.networks import branches
from lib.config.sections import Model, Start, Train
from lib.errors import ConfigError
from lib.inference.scene import read_stack
from lib.models import build, checkpoint, init, licences, weights
from lib.models.layers import Network
from lib.run import manifest, runtime
from lib.run.artifacts import Unit
from lib.run.cli import Run, say
from lib.run.graph import start_folder, teacher_folders
from lib.scenes.augment import build as build_augment
from lib.scenes.folds import read_folds
from lib.scenes.probs import file_name, quantise, read_logits, refuse_other_classes
from lib.scenes.view import View, resize
from lib.stages import cache, folds, pseudo, track
from lib.stages.pseudo import PseudoLabels
from lib.tasks import Task
from lib.training import trackers
from lib.training.balance import median_frequency
from lib.training.dataset import CropDataset, FrameDataset, SampleStream, TrainingSet, repeat_scenes, source_weights
from lib.training.fit import Fit, Place
from lib.training.judge import Judge, plain_predictor


def train(run: Run, unit: Unit) -> None:
    """Train the network of one checkpoint; under torchrun all processes work on it together."""
    _, name, where = unit.key.split("/")
    model, fold = run.config.models[name], int(where.removeprefix("fold"))
    task = run.competition.tasks[model.task]
    record: dict[str, Any] = {"stage": unit.key[:2]}
    trackers.require(run.config.track)
    with run.build(unit, record) as folder, track.training(run, unit, folder) as followed:
        training, validation = split(run, fold)
        network, arrived = start_network(run, model, fold, task, folder)
        dataset = samples(run, model, training, fold)
        judge = Judge(run.competition, model, validation, run.predict_of(name), run.config.decode,
                      localization(run, model, fold))  # fmt: skip
        settings = with_class_weights(run, model, task, training, record)
        place = Place(folder, run.device, run.config.seed_of(model), say, followed.line)
        fit = Fit(network, task, dataset, judge, settings, place)
        extra = len(dataset.scenes) - len(training)
        judged = runtime.precision_on(run.device, judge.predict.precision)
        say(f"  {len(training)} scenes to train on{f' and {extra} pseudo-labelled' if extra else ''}, "
            f"{len(validation)} to validate; {len(dataset)} samples an epoch, "
            f"{fit.steps} steps; {_precision_line(model, fit.arithmetic.name)}, judged in {judged}; "
            f"encoder weights: {arrived['source']}")  # fmt: skip
        record["precision"] = {"asked": model.train.precision, "used": fit.arithmetic.name, "tf32": model.train.tf32,
                               "judged": judged}  # fmt: skip
        record["encoder_weights"] = arrived
        if warning := licences.warning(model.network.encoder, model.network.encoder_weights):
            say(f"  {warning}")
        record["scores"] = fit.run()
        followed.scores(record["scores"])
        record["clock"] = fit.clock.seconds
    alarm(run, record["scores"])
    if run.config.reference is not None:
        for line in run.config.reference.beside(record["scores"]):
            say(f"  {line}")


def split(run: Run, fold: int) -> tuple[list[Scene], list[Scene]]:
    """Return the training and the validation scenes of a fold, in folds.csv order."""
    table = run.folds()
    scenes = {scene.id: scene for scene in run.competition.scenes("train")}
    pairs = [(scenes[i], k) for i, k in zip(table["id"], table["fold"], strict=True)]
    return [s for s, k in pairs if k != fold], [s for s, k in pairs if k == fold]


def start_network(run: Run, model: Model, fold: int, task: Task, folder: Path) -> tuple[Network, dict[str, Any]]:
    """Build the network with its starting weights, write its description, and say where the weights came from."""
    torch.manual_seed(run.config.seed_of(model) * 1_000_003 + fold)
    spec = model.network
    arguments = spec.arguments(task.channels)
    source = None if model.train.init_from else spec.encoder_weights
    arguments |= branches(model, run.competition.tasks)
    network = build(encoder_weights=source or "none", **arguments)
    if model.train.init != "default" or model.train.zero_gamma is not None:
        init.start(network, model.train.init, model.train.zero_gamma)
    arrived: dict[str, Any] = {"source": "none"}
    if model.train.init_from:
        parent, named = first_weights(run, model.train.init_from, model, fold)
        copied, _ = weights.load_matching(network, checkpoint.read_weights(parent))
        arrived = {"source": named, "tensors": len(copied)}
    elif network.source:
        arrived = {"source": spec.encoder_weights, **network.source}
    if runtime.rank() == 0:
        checkpoint.describe(folder, arguments, spec.images, task.classes)
    return network, arrived


def first_weights(run: Run, start: str | Start, model: Model, fold: int) -> tuple[Path, str]:
    """Return the checkpoint that a training starts from, and how it is named.

    ConfigError where a network of another experiment was trained on scenes that validate this fold.
    """
    if isinstance(start, str):
        return run.store.require(run.graph.checkpoint(start, fold)), f"checkpoint {start} of fold {fold}"
    folder = start_folder(run.store.root.parent, model, fold)
    assert folder is not None, "a start has a folder"
    manifest.check(folder / checkpoint.WEIGHTS)
    number = start.fold_for(fold)
    theirs = read_folds(manifest.check(run.store.root.parent / start.experiment / "01_folds" / "folds.csv"))
    trained = {scene for scene, k in zip(theirs["id"], theirs["fold"], strict=True) if k != number}
    if known := [scene.id for scene in split(run, fold)[1] if scene.id in trained]:
        raise ConfigError(
            f"train.init_from: {start.model} of fold {number} of {start.experiment} was trained on {len(known)} "
            f"validation scenes of fold {fold}, such as {known[0]}, which would score as if it were unseen; leave "
            "these scenes out there, or take its folds.csv as folds.file and the same fold"
        )
    return folder, f"checkpoint {start.model} of fold {number} of {start.experiment}"


@dataclass(frozen=True)
class Seen:
    """Scenes as a network sees them in training: everything at the size of its view. Loader processes pickle it."""

    competition: Competition
    role: str
    task: Task
    view: View
    pseudo: PseudoLabels | None = None
    teachers: tuple[Path, ...] = ()
    """Folders with the logits of a teaching experiment."""
    images: tuple[str, ...] | None = None
    """What the network is shown; where one of these has no data, the target is ignored. None: all."""

    def image(self, scene: Scene, name: str) -> np.ndarray:
        """Return an image (H, W, 3), or frames (F, H, W, 3), uint8."""
        return self.view.image(self.competition.read(scene, name), scene.pixel_size)

    def target(self, scene: Scene) -> np.ndarray:
        """Return the target of a scene, or its pseudo-label: (H, W) uint8; that of a label, (1, 1), has no size."""
        if self.pseudo is not None and scene.id in self.pseudo.ids:
            found = self.pseudo(scene)
        else:
            found = self.competition.target(scene, self.role)
        found = self.competition.without_hidden(found, scene, self.role, self.images)
        return self.view.mask(found, scene.pixel_size) if self.task.dense else found

    def logits(self, scene: Scene) -> np.ndarray:
        """Return the teachers' mean logits (C, H, W) float16. ArtifactError where they are of other classes.

        The teachers' networks were trained on this scene, as is usual, and without the student's validation fold, so
        nothing of a validation scene's truth comes back through them.
        """
        total: Any = 0.0
        for folder in self.teachers:
            found, names = read_logits(manifest.check(folder / file_name(scene.id)))
            refuse_other_classes(folder, names, self.task.classes)
            total = total + found.astype(np.float32)
        mean = total / len(self.teachers)
        if self.task.dense:
            shape = self.view.shape(mean.shape[1:], scene.pixel_size)
            mean = np.stack([resize(plane, shape) for plane in mean])
        return mean.astype(np.float16)


def samples(run: Run, model: Model, scenes: list[Scene], fold: int) -> SampleStream:
    """Return the training samples of a model: crops of scenes with their masks, or frames with their label."""
    train, sampling, task = model.train, model.train.sampling, run.competition.tasks[model.task]
    flags = [run.competition.strata(scene) for scene in scenes]
    order = repeat_scenes(flags, sampling.repeat, sampling.multiplier)
    weights_ = source_weights(scenes, sampling.sources, order)
    pseudo_labels = None
    if train.pseudo is not None:
        pseudo_labels = pseudo.labels(run, model, train.pseudo, fold)
        order = pseudo.order(order, len(scenes), len(pseudo_labels.scenes), train.pseudo.share)
        scenes = [*scenes, *pseudo_labels.scenes]
        weights_ = None if weights_ is None else weights_ + [1.0] * len(pseudo_labels.scenes)
    teachers = tuple(teacher_folders(run.store.root.parent, model, fold))
    if train.distill is not None:
        folds.require_same_folds(run, "train.distill", train.distill.experiment, fold)
        say(f"  taught by {', '.join(folder.parents[1].name for folder in teachers)} of {train.distill.experiment}")
    seen = Seen(run.competition, model.task, task, model.view.for_training(), pseudo_labels, teachers,
                model.network.images)  # fmt: skip
    data = TrainingSet(task, scenes, model.network.images, seen.image, seen.target, order, weights_,
                       seen.logits if teachers else None,
                       {role: _auxiliary(seen, role) for role in train.auxiliary})  # fmt: skip
    if train.cache == "disk":
        data = cache.keep(run, model, data, seen, fold)
    augment = build_augment(train.augment, train.crop, model.network.images, sampling.scale, train.colour)
    kind = CropDataset if task.dense else FrameDataset
    return kind(data, augment, sampling, run.config.seed_of(model), train.cache)


def _auxiliary(seen: Seen, role: str) -> tuple[Task, Callable[[Scene], np.ndarray]]:
    """Return another task of the same scenes with its targets."""
    task = seen.competition.tasks[role]
    return task, replace(seen, role=role, task=task).target


def with_class_weights(run: Run, model: Model, task: Task, scenes: list[Scene], record: dict[str, Any]) -> Train:
    """Replace ``class_weights: auto`` by weights from the training targets, which are said and recorded."""
    if model.train.loss.class_weights != "auto":
        return model.train
    targets = (run.competition.training_target(scene, model.task, model.network.images) for scene in scenes)
    weights_ = median_frequency(targets, task)
    say("  class weights " + ", ".join(f"{weight:.2f}" for weight in weights_))
    record["class_weights"] = list(weights_)
    loss = model.train.loss.model_copy(update={"class_weights": weights_})
    return model.train.model_copy(update={"loss": loss})


def alarm(run: Run, scores: dict[str, Any]) -> None:
    """Run the audit of the folds again where a validation score is too good to be true."""
    bound, score = run.config.folds.too_good, scores.get("score")
    if bound is None or score is None or not score > bound:
        return
    say(f"  ! validation score {score:.4f} is above {bound}: is something of the validation scenes in training?")
    for line in folds.audit_lines(run.competition, run.folds()):
        say(f"  audit: {line}")


def localization(run: Run, model: Model, fold: int) -> dict[str, Any]:
    """Return the out-of-fold localization levels that the selection score needs, each scene predicted once, and by the
    process that judges it."""
    name = model.train.localization
    if name is None:
        return {}
    folder = run.store.require(run.graph.checkpoint(name, fold))
    network, images = checkpoint.load_network(folder), checkpoint.read_description(folder)["images"]
    activate = run.competition.tasks["loc"].activate
    view = run.config.models[name].view
    predict = plain_predictor(network.to(run.device), activate, run.predict_of(name), view)
    known: dict[str, np.ndarray] = {}

    def levels(scene: Scene) -> np.ndarray:
        if scene.id not in known:
            known[scene.id] = quantise(predict(read_stack(run.competition, scene, images), scene.pixel_size))
        return known[scene.id]

    return {"loc": levels}


def _precision_line(model: Model, used: str) -> str:
    asked = model.train.precision
    return used if asked == used else f"{asked} asked, {used} used on this CPU (train.cpu_precision)"
