"""Stages 02 and 03: one network of a task on one fold. The two stages differ only in their task."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lib.competitions.contract import Competition, Scene
from lib.config.sections import Model, Train
from lib.errors import ArtifactError, ConfigError
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack
from lib.models import build, checkpoint, init, licences, weights
from lib.run import runtime
from lib.run.artifacts import Unit
from lib.run.cli import Run, say
from lib.run.graph import teacher_folder
from lib.scenes.augment import build as build_augment
from lib.scenes.dataset import CropDataset, FrameDataset, SampleStream, focus_values, repeat_scenes
from lib.scenes.probs import file_name, quantise, read_levels
from lib.scenes.view import View, resize
from lib.stages import folds, pseudo
from lib.stages.predict import view_of
from lib.tasks import Task
from lib.training.balance import median_frequency
from lib.training.fit import Fit
from lib.training.judge import Judge

Target = Callable[[Scene], np.ndarray]


def train(run: Run, unit: Unit) -> None:
    """Train the network of one checkpoint; under torchrun all processes work on it together."""
    _, name, fold = unit.key.split("/")
    model, fold = run.config.models[name], int(fold.removeprefix("fold"))
    task = run.competition.tasks[model.task]
    record: dict[str, Any] = {"stage": unit.key[:2]}
    with run.build(unit, record) as folder:
        training, validation = split(run, fold)
        network, arrived = start_network(run, model, fold, task, folder)
        dataset = samples(run, model, training, fold)
        judge = Judge(run.competition, model.task, validation, model.network.images,
                      partial(validation_predictor, run, view_of(model)), model.train.select, run.config.decode,
                      localization(run, model, fold))  # fmt: skip
        settings = with_class_weights(run, model, task, training, record)
        fit = Fit(network, task, dataset, judge, settings, run.config.seed, folder, run.device, say)
        extra = len(dataset.scenes) - len(training)
        say(f"  {len(training)} scenes to train on{f' and {extra} pseudo-labelled' if extra else ''}, "
            f"{len(validation)} to validate; {len(dataset)} samples an epoch, "
            f"{fit.steps} steps; {_precision_line(model, fit.arithmetic.name)}; "
            f"encoder weights: {arrived['source']}")  # fmt: skip
        record["precision"] = {"asked": model.train.precision, "used": fit.arithmetic.name, "tf32": model.train.tf32}
        record["encoder_weights"] = arrived
        if warning := licences.warning(model.network.encoder, model.network.encoder_weights):
            say(f"  {warning}")
        record["scores"] = fit.run()
    alarm(run, record["scores"])


def split(run: Run, fold: int) -> tuple[list[Scene], list[Scene]]:
    """Return the training and the validation scenes of a fold, in folds.csv order."""
    table = run.folds()
    scenes = {scene.id: scene for scene in run.scenes("train")}
    pairs = [(scenes[i], k) for i, k in zip(table["id"], table["fold"], strict=True)]
    return [s for s, k in pairs if k != fold], [s for s, k in pairs if k == fold]


def start_network(run: Run, model: Model, fold: int, task: Task, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network with its starting weights, write its description, and say where the weights came from."""
    torch.manual_seed(run.config.seed * 1_000_003 + fold)
    spec = model.network
    arguments = {"architecture": spec.architecture, "classes": task.channels, "images": len(spec.images),
                 "encoder": spec.encoder, **spec.options}  # fmt: skip
    source = None if model.train.init_from else spec.encoder_weights
    network = build(encoder_weights=source or "none", **arguments)
    if model.train.init != "default" or model.train.zero_gamma is not None:
        init.start(network, model.train.init, model.train.zero_gamma)
    arrived: dict[str, Any] = {"source": "none"}
    if model.train.init_from:
        parent = run.store.require(run.graph.checkpoint(model.train.init_from, fold))
        copied, _ = weights.load_matching(network, checkpoint.read_weights(parent))
        arrived = {"source": f"checkpoint {model.train.init_from} of fold {fold}", "tensors": len(copied)}
    elif network.source:
        arrived = {"source": spec.encoder_weights, **network.source}
    if runtime.rank() == 0:
        checkpoint.describe(folder, arguments, spec.images, task.classes)
    return network, arrived


def samples(run: Run, model: Model, scenes: list[Scene], fold: int) -> SampleStream:
    """Return the training samples of a model: crops of scenes with their masks, or frames with their label."""
    train, sampling = model.train, model.train.sampling
    competition, view, task = run.competition, view_of(model).for_training(), run.competition.tasks[model.task]
    order = repeat_scenes([competition.strata(scene) for scene in scenes], sampling.repeat, sampling.multiplier)
    augment = build_augment(train.augment, train.crop, model.network.images, sampling.scale, train.colour)

    read = partial(read_seen, competition, view)
    resized = view if task.dense else None
    target = partial(target_seen, competition, model.task, resized)
    if train.pseudo:
        unlabelled = pseudo.scenes(run, model, fold)
        order = pseudo.order(order, len(scenes), len(unlabelled), train.pseudo.share)
        target = partial(target_of, target, pseudo.target(run, model, fold, resized), frozenset(s.id for s in scenes))
        scenes = [*scenes, *unlabelled]
    if sampling.balance and task.dense:
        raise ConfigError("sampling.balance: for labels; masks are balanced by sampling.focus")
    common = {"seed": run.config.seed, "order": order, "samples_per_epoch": sampling.samples, "cache": train.cache,
              "teacher": teacher_levels(run, model, task, view)}  # fmt: skip
    if not task.dense:
        return FrameDataset(read, target, scenes, model.network.images, augment, **common, balance=sampling.balance)
    return CropDataset(read, target, scenes, model.network.images, augment, **common,
                       focus=focus_values(task, sampling.focus), focus_probability=sampling.focus_probability,
                       focus_first=sampling.focus_first)  # fmt: skip


def read_seen(competition: Competition, view: View, scene: Scene, name: str) -> np.ndarray:
    """Read an image at the size a network sees; a function of the module, since loader processes must pickle it."""
    return view.image(competition.read(scene, name), scene.pixel_size)


def target_seen(competition: Competition, task: str, view: View | None, scene: Scene) -> np.ndarray:
    """Return a target at the size a network sees; a label has none."""
    target = competition.target(scene, task)
    return view.mask(target, scene.pixel_size) if view else target


def target_of(labelled: Target, unlabelled: Target, known: frozenset[str], scene: Scene) -> np.ndarray:
    """Return a scene's target: its label's, or its pseudo-label."""
    return labelled(scene) if scene.id in known else unlabelled(scene)


def teacher_levels(run: Run, model: Model, task: Task, view: View) -> Callable[[Scene], np.ndarray] | None:
    """Return the averaged out-of-fold levels of the teaching experiment, at the size the student sees.

    The teacher's networks for a scene have seen the scenes of the student's validation fold, so a distilled student's
    out-of-fold score is a little too good.
    """
    if model.train.distill is None:
        return None
    folder = teacher_folder(run.store.root.parent, model.train.distill.experiment) / model.task
    return partial(levels_seen, folder, task, view)


def levels_seen(folder: Path, task: Task, view: View, scene: Scene) -> np.ndarray:
    """Read a scene's levels of ``folder`` at the size a network sees. ArtifactError where they are of other classes."""
    found, names = read_levels(folder / file_name(scene.id))
    if names != task.classes:
        raise ArtifactError(f"{folder}: expected channels {task.classes}, got {names}")
    if not task.dense:
        return found
    shape = view.shape(found.shape[1:], scene.pixel_size)
    return np.stack([resize(plane, shape) for plane in found])


def with_class_weights(run: Run, model: Model, task: Task, scenes: list[Scene], record: dict[str, Any]) -> Train:
    """Replace ``class_weights: auto`` by weights from the training targets, which are said and recorded."""
    if model.train.loss.class_weights != "auto":
        return model.train
    targets = (run.competition.target(scene, model.task) for scene in scenes)
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


def validation_predictor(run: Run, view: View, network: nn.Module, task: Task) -> Predictor:
    """Return the predictor of a validation: one view, the arithmetic of stage 04."""
    predict = run.config.predict
    return Predictor(network, task.activate, run.device, runtime.precision_on(run.device, predict.precision),
                     tile=predict.tile, overlap=int(predict.tile * predict.overlap), view=view)  # fmt: skip


def localization(run: Run, model: Model, fold: int) -> dict[str, Any]:
    """Return the out-of-fold localization levels that the selection score needs, each scene predicted once."""
    name = model.train.localization
    if name is None:
        return {}
    folder = run.store.require(run.graph.checkpoint(name, fold))
    network, images = checkpoint.load_network(folder), checkpoint.read_description(folder)["images"]
    view = view_of(run.config.models[name])
    predict = validation_predictor(run, view, network.to(run.device), run.competition.tasks["loc"])
    known: dict[str, np.ndarray] = {}

    def levels(scene: Scene) -> np.ndarray:
        if scene.id not in known:
            known[scene.id] = quantise(predict(read_stack(run.competition, scene, images), scene.pixel_size))
        return known[scene.id]

    return {"loc": levels}


def _precision_line(model: Model, used: str) -> str:
    asked = model.train.precision
    return used if asked == used else f"{asked} asked, {used} used on this CPU (train.cpu_precision)"
