"""What ``gpu_check`` measures of one network on the machine at hand: times, memory, and differences of arithmetic.

Images are random, so no data are needed. Where there is no finished checkpoint, weights are random too, and the norm
statistics are those of random images, so that activations are as large as in a trained network.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lib.config.networks import branches
from lib.config.sections import Model, Predict, Train
from lib.errors import ArtifactError
from lib.inference.predict import FRAMES, Predictor
from lib.models import build, checkpoint
from lib.models.layers import Network
from lib.scenes.probs import quantise
from lib.tasks import Task
from lib.training.dataset import BatchSampler, SampleStream
from lib.training.ema import estimate_norms
from lib.training.loader import loader, told
from lib.training.stepper import Place, Stepper, share_norms

BLOCK = 8
"""Pixels of a random image that have one colour, along each axis."""
SPREAD = 4.0
"""Root mean square to which random logits are stretched before levels are compared, about that of trained networks."""
MOST = 4096
"""Largest batch that is tried."""


@dataclass(frozen=True)
class Subject:
    """A model of an experiment, its task, how it predicts, and the device."""

    model: Model
    task: Task
    predict: Predict
    device: torch.device
    checkpoint: Path | None = None
    """Folder of a finished checkpoint, whose weights are used then."""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    """All tasks of the competition, by name, for networks that learn further ones."""

    @property
    def part(self) -> int:
        """Return how many crops are computed at once in training."""
        return self.model.train.batch_size // self.model.train.accumulate

    @cached_property
    def _built(self) -> Network:
        if self.checkpoint is not None:
            return checkpoint.load_network(self.checkpoint)
        arguments = self.model.network.arguments(self.task.channels) | branches(self.model, self.tasks)
        torch.manual_seed(0)
        network = build(**arguments, encoder_weights="none").to(self.device)
        estimate_norms(network, [{"image": self.images(2)}], device=self.device)
        return network.eval().cpu()

    def network(self) -> Network:
        """Return a network of its own on the device, in evaluation mode."""
        return copy.deepcopy(self._built).to(self.device)

    def images(self, count: int, side: int | None = None) -> Tensor:
        """Return random images (count, 3n, side, side) uint8 on the device; side: the crop of training if None."""
        side = side or self.model.train.crop
        small = np.random.default_rng(0).integers(
            0, 256, (count, 3 * len(self.model.network.images), *[-(-side // BLOCK)] * 2), np.uint8
        )
        blocks = torch.from_numpy(small).to(self.device)
        return blocks.repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)[..., :side, :side].contiguous()

    def targets(self, count: int) -> Tensor:
        """Return random targets (count, side, side) in the form and type of the task; a label's are (count, 1, 1).

        With further tasks they are (count, 1 + further tasks, side, side), as training has them.
        """
        further = [self.tasks[role] for role in self.model.train.auxiliary]
        drawn = [self._targets(task, count) for task in (self.task, *further)]
        return torch.stack(drawn, 1) if further else drawn[0]

    def _targets(self, task: Task, count: int) -> Tensor:
        side = self.model.train.crop if task.dense else 1
        classes = task.channels
        most = {"binary": 2, "multiclass": classes, "multilabel": 1 << classes}[task.kind]
        drawn = np.random.default_rng(1).integers(0, most, (count, side, side))
        return torch.from_numpy(drawn.astype(np.int32 if task.is_wide else np.uint8)).to(self.device)


# ---- differences --------------------------------------------------------------------------------------
@torch.no_grad()
def sync_batchnorm_difference(subject: Subject) -> float:
    """Return by how much the logits of a network change when its norms are converted for several GPUs, at most."""
    network, images = subject.network(), subject.images(1)
    before = network(images).float()
    return float((share_norms(copy.deepcopy(network)).eval()(images).float() - before).abs().max())


@dataclass(frozen=True)
class Difference:
    """How the levels of half precision differ from those of float32."""

    levels: int
    """Largest difference of two levels."""
    changed: float
    """Share of pixels (of frames) whose called classes are others."""
    finite: bool
    """Whether all probabilities are numbers."""


def precision_difference(subject: Subject, network: Network, precision: str) -> Difference:
    """Compare the levels of one random image (``FRAMES`` frames for a label) in ``precision`` with those in float32.

    The logits of random weights are stretched alike in both, since they hardly differ from 0.
    """
    images = subject.images(1 if subject.task.dense else FRAMES).cpu().numpy()
    scene = images[0] if subject.task.dense else images

    def probs(precision: str, scale: float) -> np.ndarray:
        settings = subject.predict.model_copy(update={"precision": precision, "tta": "none", "scales": (1.0,)})
        return Predictor(
            network, lambda z: subject.task.activate(z * scale), settings, device=subject.device
        )(scene)  # fmt: skip

    scale = 1.0
    if subject.checkpoint is None:
        with torch.no_grad():
            logits = network(torch.from_numpy(images).to(subject.device)).float()
        scale = SPREAD / max(float(logits.square().mean().sqrt()), 1e-12)
    exact, half = (probs(name, scale) for name in ("float32", precision))
    if not np.isfinite(half).all():
        return Difference(255, 1.0, False)
    old, new = quantise(exact), quantise(half)
    changed = (subject.task.called(old) != subject.task.called(new)).any(0)
    return Difference(int(np.abs(old.astype(int) - new).max()), float(changed.mean()), True)


# ---- times --------------------------------------------------------------------------------------------
def seconds_per_call(call: Callable[[], Any], device: torch.device, budget: float) -> float:
    """Return the median time of a call in seconds, after one that warms up; ``budget``: seconds for all the others."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    timed()  # warms up: kernels are chosen, memory is taken
    times: list[float] = []
    while not times or sum(times) < budget:
        times.append(timed())
    return median(times)


class Crops:
    """Random crops in place of the stream of samples."""

    def __init__(self, subject: Subject):
        self.subject = subject
        further = {role: (subject.tasks[role], None) for role in subject.model.train.auxiliary}
        self.data = SimpleNamespace(auxiliary=further)

    def __len__(self) -> int:
        return MOST

    def __getitem__(self, _: int) -> dict[str, Any]:
        return {name: value[0] for name, value in self.batch(1).items()}

    def batch(self, count: int) -> dict[str, Any]:
        """Return a batch of so many crops, on the device, so that nothing of a step is spent on making it."""
        subject = self.subject
        found: dict[str, Any] = {"id": ["random"] * count, "image": subject.images(count)}
        found["target"] = target = subject.targets(count)
        if subject.model.train.distill:
            shape = (count, subject.task.channels, *target.shape[-2:])
            found["teacher"] = torch.randn(shape, device=subject.device).half()  # logits
        return found


class Step:
    """Steps of training as ``Fit`` makes them, on random crops, a batch in one part and with all weights learning."""

    def __init__(self, subject: Subject, **changes: Any):
        """changes: settings of ``train`` in place of the model's own."""
        changes = {"accumulate": 1, "freeze_encoder_epochs": 0, **changes}
        train = _without_auto(subject.model.train.model_copy(update=changes))
        self.crops, self.number = Crops(subject), 0
        stream = cast(SampleStream, self.crops)
        place = Place(Path(), subject.device, 0, lambda _: None)
        self.stepper = Stepper(subject.network(), subject.task, stream, train, place)
        self.stepper.network.train()
        self.stepper.prepare(0)
        self.batch: dict[str, Any] = {"id": []}

    def __call__(self, batch: int) -> None:
        """Move the weights once by a batch of so many crops. Raises torch.OutOfMemoryError where these do not fit."""
        stepper = self.stepper
        if len(self.batch["id"]) != batch:
            self.batch = {"id": []}  # makes room first
            self.batch = self.crops.batch(batch)
        try:
            stepper.take(self.batch, 0, self.number % len(stepper.sampler), 0)
        except ArtifactError as error:
            raise error.__cause__ or error from None
        self.number += 1
        if stepper.accumulate > 1:  # it did not fit, and was computed in parts
            stepper.accumulate = 1
            raise torch.OutOfMemoryError(f"{batch} crops do not fit")


def _without_auto(train: Train) -> Train:
    """Return the settings without class weights that would be counted on data; they change no time."""
    if train.loss.class_weights != "auto":
        return train
    return train.model_copy(update={"loss": train.loss.model_copy(update={"class_weights": None})})


def forward_seconds(subject: Subject, budget: float, layout: torch.memory_format, compiles: bool = False) -> float:
    """Return the seconds of a prediction: one window of the largest side, a crop on a CPU, 16 frames for a label.

    layout: of the network's weights. Images go to the device and probabilities come back, as in stage 04.
    """
    settings = subject.predict.model_copy(update={"tta": "none", "scales": (1.0,), "compile": compiles})
    network = subject.network().to(memory_format=layout)
    predictor = Predictor(network, subject.task.activate, settings, device=subject.device)
    if not subject.task.dense:
        scene = subject.images(FRAMES)
    elif subject.device.type == "cpu":
        scene = subject.images(1)[0]
    else:
        scene = subject.images(1, subject.predict.tile)[0]
    pixels = scene.cpu().numpy()
    return seconds_per_call(lambda: predictor(pixels), subject.device, budget)


def loader_pace(dataset: SampleStream, train: Train, device: torch.device, budget: float) -> float:
    """Return how many samples a second the loader of training gives when nothing but it works.

    The first batches, which start the processes and fill their queues, are not counted.
    """
    sampler = BatchSampler(MOST * train.batch_size, train.batch_size)
    stream = loader(dataset, list(sampler), train.workers, device)
    uncounted, count, now = 1 + 2 * train.workers, 0, 0.0
    with told():
        for number, batch in enumerate(stream, 1):
            now = time.perf_counter()
            if number <= uncounted:
                started = now
                continue
            count += len(batch["id"])
            if now - started > budget:
                break
    return count / (now - started)


# ---- memory -------------------------------------------------------------------------------------------
def largest_batch(step: Callable[[int], None], start: int, more_time: Callable[[], bool]) -> tuple[int, int | None]:
    """Find the largest batch that a step fits by doubling, then by halving the gap.

    step: raises torch.OutOfMemoryError for what does not fit. Returns (the largest that did, 0 for none; the smallest
    that did not, None for none). ``start`` is tried; where ``more_time`` then says no, or at ``MOST``, the search ends
    as it stands.
    """
    fits, full, batch = 0, None, start
    while batch <= MOST:
        try:
            step(batch)
            fits = batch
        except torch.OutOfMemoryError:
            full = batch
        torch.cuda.empty_cache()  # here, since the error holds what fills the memory
        batch = 2 * fits if full is None else (fits + full) // 2
        if batch == fits or not more_time():
            break
    return fits, full
