"""The training loop: one network, one fold, one folder.

Every random choice is a function of (seed, position in the stream of samples), and the whole state is saved between
steps, so a run that is killed and started again ends with the same bytes as an unbroken one (on a CPU).
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib.config.sections import Train
from lib.errors import ArtifactError, ConfigError, NonFiniteError
from lib.files import write_bytes
from lib.models.checkpoint import save_weights
from lib.models.layers import Network
from lib.run import runtime
from lib.tasks import Task
from lib.training import state
from lib.training.dataset import BatchSampler, SampleStream
from lib.training.distill import soften
from lib.training.ema import Average, Ema, Swa
from lib.training.losses import Criterion
from lib.training.mix import draw, mix
from lib.training.optim import LearningRate, Plateau, build_optimizer, freeze, peak_lr, set_lr, unfreeze
from lib.training.precision import Arithmetic, first_nonfinite, first_nonfinite_gradient
from lib.training.utilisation import Utilisation

Validate = Callable[[Network], Mapping[str, float]]
"""Scores a network on full validation scenes; the key ``select`` decides which epoch is kept."""


@dataclass(frozen=True)
class Place:
    """Where and how a network is trained, beside its settings."""

    folder: Path
    """Gets the weights, the log and, until the end, the state."""
    device: torch.device
    seed: int
    say: Callable[[str], None]
    """Takes a line for the terminal."""


class Fit:
    """One run: ``train.select`` decides what ``folder/best.safetensors`` keeps; ``log.jsonl`` gets a line an epoch."""

    def __init__(
        self, network: Network, task: Task, dataset: SampleStream, validate: Validate, train: Train, place: Place
    ):
        self.task, self.dataset, self.validate, self.train = task, dataset, validate, train
        self.folder, self.device, self.seed, self.say = place.folder, place.device, place.seed, place.say
        self.arithmetic = Arithmetic(
            runtime.precision_on(self.device, train.precision, train.cpu_precision), self.device
        )
        runtime.use_tf32(train.tf32)
        runtime.deterministic()
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.network: Network = network.to(self.device).to(memory_format=self.layout)
        if runtime.world_size() > 1 and self.device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        reduce = all_sum if runtime.world_size() > 1 else None
        self.loss = Criterion(task.kind, train.loss, train.distill, reduce)
        self.sampler = BatchSampler(len(dataset), train.batch_size, runtime.rank(), runtime.world_size())
        self.steps = len(self.sampler)
        peak = peak_lr(train.optimizer, train.batch_size)
        self.lr = LearningRate(train.schedule, peak, train.epochs, self.steps)
        self.plateau = Plateau(train.schedule.patience) if train.schedule.patience else None
        self.optimizer = build_optimizer(self.network, train.optimizer, peak)
        if train.swa_from is not None and runtime.world_size() > 1:
            raise ConfigError("train.swa_from: its norm statistics are estimated in one process; leave it out here")
        self.average: Average | None = Ema(self.network, train.ema) if train.ema else None
        if train.swa_from is not None:
            self.average = Swa(self.network)
        self.epoch, self.step, self.since_best, self.stop = 0, 0, 0, False
        self.best: dict[str, float] | None = None
        self.meter: dict[str, float] = {}
        self.accumulate = train.accumulate

    # ---- the run --------------------------------------------------------------------------------------
    def run(self) -> dict[str, Any]:
        """Train to the end (or from where the last state stands); return the scores of the kept epoch."""
        self._resume()
        forward: nn.Module = self.network
        if runtime.world_size() > 1:
            forward = DistributedDataParallel(self.network, find_unused_parameters=self.train.freeze_encoder_epochs > 0)
        with runtime.interruptible() as interrupted:
            while self.epoch < self.train.epochs and not self.stop:
                self._epoch(forward, interrupted)
        if runtime.rank() == 0:
            (self.folder / state.STATE).unlink(missing_ok=True)
        return self.best or {}

    def _epoch(self, forward: nn.Module, interrupted: Callable[[], bool]) -> None:
        train, epoch = self.train, self.epoch
        if epoch < train.freeze_encoder_epochs:
            freeze(self.network.encoder, train.freeze_norms)
        else:
            unfreeze(self.network.encoder)
        self.network.train()
        if train.precision == "float32":
            self.arithmetic.assert_float32(self.network, train.tf32)
        if self.step == 0:
            torch.manual_seed(self.seed * 1_000_003 + epoch)
            self.meter = defaultdict(float)
        self.sampler.set_epoch(epoch)
        batches = list(self.sampler)[self.step :]
        loader = DataLoader(self.dataset, batch_sampler=batches, num_workers=train.workers,
                            pin_memory=self.device.type == "cuda",
                            worker_init_fn=runtime.ignore_interrupts)  # fmt: skip
        started = saved = time.monotonic()
        bar = tqdm(loader, f"epoch {epoch + 1}/{train.epochs}", leave=False, initial=self.step, total=self.steps,
                   disable=None if runtime.rank() == 0 else True)  # fmt: skip
        seen, use = 0, Utilisation(self.device, self.say)
        for batch in use.waits(bar):
            loss = self._step_that_fits(forward, batch)
            self.step += 1
            seen += len(batch["id"]) * runtime.world_size()
            bar.set_postfix(loss=f"{loss:.3f}")
            if interrupted():
                self._save()
                raise KeyboardInterrupt
            if time.monotonic() - saved > train.save_minutes * 60:
                self._save()
                saved = time.monotonic()
        seconds = time.monotonic() - started
        pace = round(seen / max(seconds, 1e-9), 2)
        self._finish_epoch({"images_per_second": pace, "train_seconds": round(seconds, 1), **use.line()})

    def _step_that_fits(self, forward: nn.Module, batch: dict[str, Any]) -> float:
        """Move the weights once; where the memory of the device does not suffice, compute the batch in more parts."""
        while True:
            try:
                return self._step(forward, batch)
            except torch.OutOfMemoryError as error:
                if len(batch["id"]) % (2 * self.accumulate) or runtime.world_size() > 1:
                    raise ArtifactError("the device's memory is full; lower train.batch_size or train.crop, or set "
                                        "train.accumulate higher") from error  # fmt: skip
                self.accumulate *= 2
                self.say(f"  the device's memory is full; each batch is computed in {self.accumulate} parts from here")
                torch.cuda.empty_cache()

    def _step(self, forward: nn.Module, batch: dict[str, Any]) -> float:
        """Move the weights once; returns the loss. The batch is computed in ``accumulate`` equal parts."""
        train = self.train
        step = self.epoch * self.steps + self.step
        lr = self.lr.at(step, self.plateau.reductions if self.plateau else 0)
        set_lr(self.optimizer, lr)
        image = batch["image"].to(self.device, memory_format=self.layout, non_blocking=True)  # (B, 3n, h, w) uint8
        target = batch["target"].to(self.device, non_blocking=True)  # (B, h, w) uint8
        self.optimizer.zero_grad(set_to_none=True)
        teacher = None
        if train.distill:  # logits float16 (B, C, h, w)
            logits = batch["teacher"].to(self.device, non_blocking=True)
            teacher = soften(logits, train.distill.temperature, self.task.kind)
        mixed = mix(image, target, self.task.dense, train.mix, draw(self.seed, step), teacher)
        total = 0.0
        raw: dict[str, float] = defaultdict(float)
        columns = (mixed.image, mixed.target, mixed.other, mixed.teacher)
        parts = list(zip(*(_chunks(column, self.accumulate) for column in columns), strict=True))
        for part, (x, y, other, teaching) in enumerate(parts):
            if isinstance(forward, DistributedDataParallel):
                forward.require_backward_grad_sync = part == len(parts) - 1
            with self.arithmetic.autocast():
                logits = forward(x)
            loss, terms = self.loss(logits, y, other, mixed.lam, teaching)
            if not torch.isfinite(loss):
                self._refuse(batch, x, terms)
            self.arithmetic.scaler.scale(loss / len(parts)).backward()
            total += float(loss.detach()) / len(parts)
            for name, value in terms.items():
                raw[name] += float(value) / len(parts)
        self.arithmetic.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), train.clip or float("inf")))
        if self.arithmetic.scaler.is_enabled() and not math.isfinite(norm) and self.arithmetic.first_bad_layer is None:
            self.arithmetic.first_bad_layer = first_nonfinite_gradient(self.network)
        elif not self.arithmetic.scaler.is_enabled() and not math.isfinite(norm):
            raise NonFiniteError(f"epoch {self.epoch + 1}: the gradient is not finite; scenes {_names(batch)}")
        if self.arithmetic.step(self.optimizer) and isinstance(self.average, Ema):
            self.average.update(self.network)
        for name, share in raw.items():
            self.meter[f"raw_{name}"] += share
        self.meter["loss"] += total
        self.meter["lr"] = lr
        self.meter["gradient_norm"] += norm if math.isfinite(norm) else 0.0
        return total

    def _refuse(self, batch: dict[str, Any], image: Tensor, terms: Mapping[str, Tensor]) -> None:
        layer = first_nonfinite(self.network, image, self.arithmetic)
        parts = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
        raise NonFiniteError(
            f"epoch {self.epoch + 1}, step {self.step + 1}: the loss is not finite ({parts}); first non-finite layer "
            f"{layer or 'none (the loss itself)'}; scenes {_names(batch)}; look at them, or lower the learning rate"
        )

    # ---- between epochs -------------------------------------------------------------------------------
    def _finish_epoch(self, pace: dict[str, float]) -> None:
        train = self.train
        self.epoch, self.step = self.epoch + 1, 0
        line: dict[str, Any] = {"epoch": self.epoch, "lr": self.meter.pop("lr", None)}
        line |= {name: round(value / self.steps, 6) for name, value in sorted(self.meter.items())}
        weights = self.loss.weights.items()
        line |= {f"weighted_{n}": round(w * line[f"raw_{n}"], 6) for n, w in weights if f"raw_{n}" in line}
        line["amp"] = {"precision": self.arithmetic.name, **self.arithmetic.health()}
        if train.swa_from is not None and self.average is not None and self.epoch > train.swa_from:
            self.average.update(self.network)
        is_due = self.epoch == train.epochs or self.epoch % train.validate_every == 0
        falls = runtime.rank() == 0 and is_due and self._judge(line)
        self.stop = runtime.agree(self.stop)
        if runtime.agree(falls) and runtime.rank() > 0 and self.plateau is not None:
            self.plateau.reductions += 1
        line |= {**pace, "peak_memory_mib": runtime.peak_memory_mib(self.device)}
        if runtime.rank() == 0:
            _append(self.folder / "log.jsonl", line, self.epoch)
            self._save()

    def _judge(self, line: dict[str, Any]) -> bool:
        """Validate, keep the weights where they are the best so far, and tell whether the learning rate falls now."""
        started = time.monotonic()
        average = self._averaged()
        with average.swapped_in(self.network) if average else nullcontext():
            scores = dict(self.validate(self.network))
        line |= {"scores": scores, "validate_seconds": round(time.monotonic() - started, 1)}
        better = self.best is None or scores["select"] > self.best["select"]
        line["new_best"] = keep = self.train.select == "last" or better
        self.since_best = 0 if better else self.since_best + 1
        if keep:
            self.best = {**scores, "epoch": self.epoch}
            save_weights(self.folder, average.tensors if average else self.network.state_dict())
        self.stop = self.train.patience is not None and self.since_best >= self.train.patience
        shown = " ".join(f"{name} {scores[name]:.4f}" for name in _heads(scores))
        self.say(f"  epoch {self.epoch}/{self.train.epochs} loss {line['loss']:.4f} {shown}{' *' if keep else ''}")
        if scores.get("collapsed"):
            self.say("  ! the network gives one answer everywhere: look at class weights, sampling, learning rate")
        return bool(self.plateau and self.plateau.update(scores["select"]))

    def _averaged(self) -> Average | None:
        """Return the average that takes the place of the weights, if there is one and it has begun.

        Weights of a stochastic weight average get the norm statistics that they have on the coming batches.
        """
        if not isinstance(self.average, Swa):
            return self.average
        if not self.average.updates:
            return None
        self.sampler.set_epoch(self.epoch)
        batches = list(self.sampler)[: self.train.swa_batches]
        loader = DataLoader(self.dataset, batch_sampler=batches, num_workers=0)
        self.average.reestimate(self.network, loader, device=self.device, autocast=self.arithmetic.autocast)
        return self.average

    # ---- state ----------------------------------------------------------------------------------------
    def _save(self) -> None:
        if runtime.rank() != 0:
            return
        state.save(self.folder, {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.arithmetic.scaler.state_dict(),
            "amp": [self.arithmetic.skipped, self.arithmetic.first_bad_layer],
            "average": self.average.state_dict() if self.average else None,
            "plateau": self.plateau.state_dict() if self.plateau else None,
            "epoch": self.epoch, "step": self.step, "meter": dict(self.meter),
            "best": self.best, "since_best": self.since_best, "stop": self.stop,
        })  # fmt: skip

    def _resume(self) -> None:
        saved = state.load(self.folder)
        if saved is None:
            if runtime.rank() == 0:
                (self.folder / "log.jsonl").unlink(missing_ok=True)
            return
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.arithmetic.scaler.load_state_dict(saved["scaler"])
        self.arithmetic.skipped, self.arithmetic.first_bad_layer = saved["amp"]
        if self.average:
            self.average.load_state_dict(saved["average"])
        if self.plateau:
            self.plateau.load_state_dict(saved["plateau"])
        self.epoch, self.step, self.meter = saved["epoch"], saved["step"], defaultdict(float, saved["meter"])
        self.best, self.since_best, self.stop = saved["best"], saved["since_best"], saved["stop"]
        state.restore_rng(saved)
        self.say(f"  resumed after epoch {self.epoch}" + (f", step {self.step}" if self.step else ""))


def _chunks(value: Tensor | None, parts: int) -> Sequence[Tensor | None]:
    """Divide a batch into equal parts; None stays None in each."""
    return [None] * parts if value is None else value.chunk(parts)


def all_sum(value: Tensor) -> Tensor:
    """Sum over processes, differentiably; DDP then averages the gradients of the common loss to the right one."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value)


def _heads(scores: Mapping[str, float]) -> list[str]:
    """Return the names that do not detail another: score and f1, but not the f1_<class> of each class."""
    named = [name for name in scores if name not in ("select", "collapsed")]
    return [name for name in named if not any(name.startswith(f"{other}_") for other in named)]


def _names(batch: Mapping[str, Any]) -> str:
    return ", ".join(sorted(set(batch["id"])))


def _append(path: Path, line: dict[str, Any], epoch: int) -> None:
    """Write the log with ``line`` as its entry for ``epoch``; a line left by a killed process is replaced."""
    kept = path.read_text(encoding="utf-8").splitlines()[: epoch - 1] if path.exists() else []
    write_bytes(path, ("\n".join([*kept, json.dumps(line)]) + "\n").encode())
