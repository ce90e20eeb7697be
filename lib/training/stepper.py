"""From a batch to moved weights: one step of the training, in one process or several, in any precision.

Nothing here waits for the device between the batch and the moved weights. A loss that is not finite is found some steps
later (``watch``), and until then the weights stand still (``precision``): the layer that made it can still be found.
"""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from lib.config.sections import Train
from lib.errors import ArtifactError, NonFiniteError
from lib.models.layers import Network
from lib.run import runtime
from lib.run.clock import Clock
from lib.tasks import Task
from lib.training.dataset import BatchSampler, SampleStream
from lib.training.distill import soften
from lib.training.ema import Average, Ema, Swa
from lib.training.mix import draw, mix
from lib.training.optim import LearningRate, build_optimizer, freeze, peak_lr, set_lr, unfreeze
from lib.training.precision import Arithmetic, FiniteStatistics, first_nonfinite, last_nonfinite_gradient
from lib.training.tasks import build_criterion
from lib.training.watch import Meter, PastStep, Watch

Part = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Images, targets, second targets of mixed images and the teacher's probabilities of a part of a batch."""


@dataclass(frozen=True)
class Place:
    """Where and how a network is trained, beside its settings."""

    folder: Path
    """Gets the weights, the log and, until the end, the state."""
    device: torch.device
    seed: int
    say: Callable[[str], None]
    """Takes a line for the terminal."""
    track: Callable[[Mapping[str, Any]], None] = lambda line: None
    """Takes each line of the log, in the first process alone, when it and the state are on the disk."""
    clock: Clock = field(default_factory=Clock)
    """Counts where the time goes. A GPU is not waited for: its work counts where the host waits for its numbers."""


class Stepper:
    """Everything that moves the weights of one network: loss, optimizer, arithmetic, averages, sums of the epoch."""

    def __init__(self, network: Network, task: Task, dataset: SampleStream, train: Train, place: Place):
        self.task, self.dataset, self.train = task, dataset, train
        self.device, self.seed, self.say, self.clock = place.device, place.seed, place.say, place.clock
        self.arithmetic = Arithmetic(
            runtime.precision_on(self.device, train.precision, train.cpu_precision), self.device
        )
        runtime.use_tf32(train.tf32)
        runtime.deterministic(train.deterministic)
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.network: Network = network.to(self.device).to(memory_format=self.layout)
        self.synchronised = runtime.world_size() > 1 and self.device.type == "cuda"
        if self.synchronised:
            self.network = share_norms(self.network)
        auxiliary = {name: task for name, (task, _) in dataset.data.auxiliary.items()} if train.auxiliary else {}
        self.loss = build_criterion(task, auxiliary, train, all_sum if runtime.world_size() > 1 else None)
        self.sampler = BatchSampler(len(dataset), train.batch_size, runtime.rank(), runtime.world_size())
        peak = peak_lr(train.optimizer, train.batch_size)
        self.lr = LearningRate(train.schedule, peak, train.epochs, len(self.sampler))
        self.optimizer = build_optimizer(self.network, train.optimizer, peak)
        self.average: Average | None = Ema(self.network, train.ema) if train.ema else None
        if train.swa_from is not None:
            self.average = Swa(self.network)
        self.meter, self.watch, self.last_loss = Meter(), Watch(self.device), math.nan
        self.accumulate = train.accumulate
        self.forward: nn.Module = self.network
        self.ddp: DistributedDataParallel | None = None
        self.frozen: bool | None = None

    def prepare(self, epoch: int) -> None:
        """Begin an epoch: freeze or thaw the encoder; where that changes what learns, wrap and compile anew.

        The wrapper of several processes knows the parameters that learn when it is made, and waits for all of them.
        """
        self.statistics = FiniteStatistics(self.network)
        frozen = epoch < self.train.freeze_encoder_epochs
        if frozen == self.frozen:
            return
        if frozen:
            freeze(self.network.encoder, self.train.freeze_norms)
        else:
            unfreeze(self.network.encoder)
        self.frozen, self.ddp, self.forward = frozen, None, self.network
        if runtime.world_size() > 1:
            gc.collect()  # the old wrapper takes its hooks off the parameters when it goes
            self.forward = self.ddp = DistributedDataParallel(self.network)
        if self.train.compile:
            self.forward = runtime.compiled(self.forward)

    def take(self, batch: dict[str, Any], epoch: int, number: int, reductions: int) -> None:
        """Take step ``number`` of an epoch, both from 0; reductions: of a plateau's learning rate, so far.

        Raises NonFiniteError for this step or one before (see ``look``), ArtifactError where the memory is too small.
        """
        step = PastStep(epoch, number, tuple(batch["id"]))
        set_lr(self.optimizer, self.lr.at(self._position(step), reductions))
        while True:
            try:
                with runtime.compiling("train.compile") if self.train.compile else nullcontext():
                    names, values, moved = self._step(batch, step)
                break
            except torch.OutOfMemoryError as error:
                if len(batch["id"]) % (2 * self.accumulate) or runtime.world_size() > 1:
                    raise ArtifactError("the device's memory is full; lower train.batch_size or train.crop, or set "
                                        "train.accumulate higher") from error  # fmt: skip
            self.accumulate *= 2
            self.say(f"  the device's memory is full; each batch is computed in {self.accumulate} parts from here")
            self.arithmetic.again()
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        with self.clock("optimizer"):
            self._account(step, names, values, moved)
        with self.clock("wait"):
            self.look()

    def _position(self, step: PastStep) -> int:
        return step.epoch * len(self.sampler) + step.number

    def _parts(self, batch: dict[str, Any], step: PastStep) -> tuple[list[Part], float]:
        """Bring a batch to the device, mix it, and divide it into ``accumulate`` equal parts; with the share lam."""
        image = batch["image"].to(self.device, memory_format=self.layout, non_blocking=True)  # (B, 3n, h, w) uint8
        target = batch["target"].to(self.device, non_blocking=True)  # (B, h, w) uint8
        teacher = None
        if self.train.distill:  # logits float16 (B, C, h, w)
            logits = batch["teacher"].to(self.device, non_blocking=True)
            teacher = soften(logits, self.train.distill.temperature, self.task.kind)
        mixed = mix(image, target, self.task.dense, self.train.mix, draw(self.seed, self._position(step)), teacher)
        columns = (mixed.image, mixed.target, mixed.other, mixed.teacher)
        return list(zip(*(_chunks(column, self.accumulate) for column in columns), strict=True)), mixed.lam

    def _step(self, batch: dict[str, Any], step: PastStep) -> tuple[tuple[str, ...], Tensor, Tensor | None]:
        """Move the weights once, without waiting for the device; torch.OutOfMemoryError leaves them where they were.

        Return names, numbers by them, (n,) float64 on the device, and whether the weights moved (``Arithmetic.step``).
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts, lam = self._parts(batch, step)
        names: tuple[str, ...] = ()
        sums = torch.zeros((), dtype=torch.float64, device=self.device)
        for part, (x, y, other, teaching) in enumerate(parts):
            if self.ddp is not None:
                self.ddp.require_backward_grad_sync = part == len(parts) - 1
            with self.clock("forward"):
                with self.arithmetic.autocast():
                    logits = self.forward(x)
                loss, terms = self.loss(logits, y, other, lam, teaching)
            with self.clock("backward"):
                self.arithmetic.backward(loss, len(parts))
            names = ("loss", *(f"raw_{name}" for name in terms))
            sums = sums + torch.stack([loss.detach(), *terms.values()]).double() / len(parts)
        with self.clock("optimizer"):
            self.arithmetic.scaler.unscale_(self.optimizer)
            bad = last_nonfinite_gradient(self._learning().values()) if self.arithmetic.scaler.is_enabled() else sums[0]
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.train.clip or math.inf)
            moved = self.arithmetic.step(self.optimizer, torch.isfinite(sums[0]) & torch.isfinite(norm))
        values = torch.cat([sums, torch.stack([norm.double(), bad.double()])])
        return (*names, "gradient_norm", "parameter"), values, moved

    def _learning(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.grad is not None}

    def _account(self, step: PastStep, names: tuple[str, ...], values: Tensor, moved: Tensor | None) -> None:
        """Do what follows a step: statistics, average, sums of the epoch, and the numbers that are looked at later."""
        if moved is not None:
            self.statistics.put_back()
        if isinstance(self.average, Ema):
            self.average.update(self.network, moved)
        losses, norm, counts = values[:-2], values[-2], torch.isfinite(values[0])
        kept = [norm.where(torch.isfinite(norm), 0), (~counts).double()]
        self.meter.add((*names[:-1], "nonfinite_losses"), torch.cat([losses.where(counts, 0), torch.stack(kept)]))
        if moved is not None:
            names, values = (*names, "skipped"), torch.cat([values, (~moved).double()[None]])
            step.parameters.extend(self._learning())
        self.watch.put(step, names, values)

    # ---- what is not finite ---------------------------------------------------------------------------
    def look(self, everything: bool = False) -> None:
        """Look at the numbers of the steps that have arrived, or of all, for which it waits.

        Without a scaler, a loss or gradient that is not finite is a NonFiniteError; with one, the step was skipped, and
        too many in a row are a NonFiniteError.
        """
        for step, numbers in self.watch.seen(everything):
            self.last_loss = numbers["loss"]
            is_finite = math.isfinite(numbers["loss"])
            if "skipped" in numbers:
                self._count(step, numbers, is_finite)
            elif not is_finite or not math.isfinite(numbers["gradient_norm"]):
                raise NonFiniteError(f"{self._describe(step, numbers, self._layer(step, numbers))}; look at them, or "
                                     "lower the learning rate")  # fmt: skip

    def _count(self, step: PastStep, numbers: dict[str, float], is_finite: bool) -> None:
        """Count a step that the scaler may have skipped; too many in a row end the run."""
        arithmetic, most = self.arithmetic, self.train.max_skipped_steps
        arithmetic.count(bool(numbers["skipped"]), not is_finite)
        if not numbers["skipped"]:
            return
        ends, is_new = arithmetic.in_a_row >= most, not is_finite and arithmetic.nonfinite_losses == 1
        if not (ends or is_new) and arithmetic.first_bad_layer is not None:
            return
        layer = self._layer(step, numbers)
        arithmetic.first_bad_layer = arithmetic.first_bad_layer or layer
        found = self._describe(step, numbers, layer)
        if ends:
            raise NonFiniteError(
                f"{found}; {arithmetic.name} skipped {most} steps in a row, of which this was the last; lower the "
                "learning rate, or set train.precision to bfloat16 or float32 (train.max_skipped_steps allows more)"
            )
        if is_new:
            self.say(f"  ! {found}; the step is skipped, as all such steps, and log.jsonl counts them")

    def _describe(self, step: PastStep, numbers: dict[str, float], layer: str) -> str:
        terms = ", ".join(f"{name[4:]} {value:g}" for name, value in numbers.items() if name.startswith("raw_"))
        what = "gradient" if math.isfinite(numbers["loss"]) else "loss"
        own = f" of process {runtime.rank()}" if runtime.world_size() > 1 else ""  # others may hold the bad scene
        return (f"epoch {step.epoch + 1}, step {step.number + 1}: the {what} is not finite ({terms}); first non-finite "
                f"layer {layer}; scenes{own} {', '.join(sorted(set(step.ids)))}")  # fmt: skip

    def _layer(self, step: PastStep, numbers: dict[str, float]) -> str:
        """Return the first layer of a step that was not finite; for its forward pass, the batch is made once more."""
        if math.isfinite(numbers["loss"]):
            place = int(numbers["parameter"]) if step.parameters else -1
            return f"{step.parameters[place]} (gradient)" if place >= 0 else "none (only the gradient is not finite)"
        self.sampler.set_epoch(step.epoch)
        batch = default_collate([self.dataset[number] for number in list(self.sampler)[step.number]])
        parts, _ = self._parts(batch, step)
        found = (first_nonfinite(self.network, x, self.arithmetic) for x, *_ in parts)
        return next(filter(None, found), "none (the loss itself)")


def share_norms(network: Network) -> Network:
    """Let batch norms use the statistics of all processes; state, names and what they give in evaluation stay.

    The conversion is timm's. torch's own drops the activation that many of timm's norms hold, so that a network would
    be trained, and judged, as another one than prediction builds.
    """
    return convert_sync_batchnorm(network)


def _chunks(value: Tensor | None, parts: int) -> Sequence[Tensor | None]:
    """Divide a batch into equal parts; None stays None in each."""
    return [None] * parts if value is None else value.chunk(parts)


class _AllSum(torch.autograd.Function):
    """What torch.distributed.nn.functional.all_reduce was, which torch 2.14 calls deprecated."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllSum.apply(gradient)


def all_sum(value: Tensor) -> Tensor:
    """Sum over processes, differentiably; DDP then averages the gradients of the common loss to the right one."""
    return _AllSum.apply(value)
