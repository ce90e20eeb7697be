"""The training loop: one network, one fold, one folder.

Every random choice is a function of (seed, position in the stream of samples), and the whole state is saved between
steps, so a run that is killed and started again ends with the same bytes as an unbroken one (on a CPU).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib.config.sections import Train
from lib.files import write_bytes
from lib.models.checkpoint import save_weights
from lib.models.layers import Network
from lib.run import runtime
from lib.tasks import Task
from lib.training import loader, state
from lib.training.dataset import BatchSampler, SampleStream
from lib.training.ema import Average, Swa
from lib.training.optim import Plateau
from lib.training.stepper import Place, Stepper
from lib.training.utilisation import Utilisation
from lib.training.watch import Meter

Validate = Callable[[Network], Mapping[str, float]]
"""Scores a network on full validation scenes, in every process; the key ``select`` decides which epoch is kept."""


class Fit:
    """One run: ``train.select`` decides what ``folder/best.safetensors`` keeps; ``log.jsonl`` gets a line an epoch."""

    def __init__(
        self, network: Network, task: Task, dataset: SampleStream, validate: Validate, train: Train, place: Place
    ):
        self.dataset, self.validate, self.train = dataset, validate, train
        self.folder, self.device, self.seed, self.say = place.folder, place.device, place.seed, place.say
        self.clock, self.track = place.clock, place.track
        self.stepper = stepper = Stepper(network, task, dataset, train, place)
        self.network, self.arithmetic, self.average = stepper.network, stepper.arithmetic, stepper.average
        self.sampler, self.steps = stepper.sampler, len(stepper.sampler)
        self.plateau = Plateau(train.schedule.patience) if train.schedule.patience else None
        self.epoch, self.step, self.since_best, self.stop = 0, 0, 0, False
        self.best: dict[str, float] | None = None
        self.stream: Iterator[dict[str, Any]] | None = None
        self.workers: int | None = None
        """Loader processes that there is room for; None until the first samples are wanted."""

    # ---- the run --------------------------------------------------------------------------------------
    def run(self) -> dict[str, Any]:
        """Train to the end (or from where the last state stands); return the scores of the kept epoch."""
        self._resume()
        runtime.barrier()  # all have read the state before the first process replaces it
        with runtime.interruptible() as pressed, loader.told():
            interrupted = runtime.anywhere(pressed, self.stepper.watch.lag)
            while self.epoch < self.train.epochs and not self.stop:
                self._epoch(interrupted)
            if any(runtime.gather(pressed())):  # since the last step; the next run finds nothing left but to seal
                raise KeyboardInterrupt
        return self.best or {}  # the state stays until the unit has its manifest

    def _epoch(self, interrupted: Callable[[], bool]) -> None:
        train, epoch, stepper = self.train, self.epoch, self.stepper
        stepper.prepare(epoch)
        self.network.train()
        if train.precision == "float32":
            self.arithmetic.assert_float32(self.network, train.tf32)
        if self.step == 0:
            torch.manual_seed(self.seed * 1_000_003 + epoch)
            stepper.meter = Meter()
            torch.empty((), dtype=torch.int64).random_()  # a loader of each epoch took one: weights stay as they were
        if self.stream is None:
            self.stream = self._samples()
        started = saved = time.monotonic()
        bar = tqdm(islice(self.stream, self.steps - self.step), f"epoch {epoch + 1}/{train.epochs}", leave=False,
                   initial=self.step, total=self.steps, disable=None if runtime.rank() == 0 else True)  # fmt: skip
        seen, made, use = 0, 0.0, Utilisation(self.device, self.say)
        for batch in use.waits(bar):
            made += self._count(batch)
            stepper.take(batch, epoch, self.step, self._reductions)
            self.step += 1
            seen += len(batch["id"]) * runtime.world_size()
            bar.set_postfix(loss=f"{stepper.last_loss:.3f}")
            if interrupted():
                self._save()
                runtime.barrier()  # what the first process saves needs the others until it has it
                raise KeyboardInterrupt
            if time.monotonic() - saved > train.save_minutes * 60:
                self._save()
                saved = time.monotonic()
        with self.clock("wait"):
            stepper.look(everything=True)
        self.clock.add("wait", max(use.waited - (0 if self.workers else made), 0))
        seconds = time.monotonic() - started
        pace = round(seen / max(seconds, 1e-9), 2)
        self._finish_epoch({"images_per_second": pace, "train_seconds": round(seconds, 1), **use.line()})

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Return the batches of all epochs from here on: one loader, which works on while a network is validated."""
        if self.workers is None:
            self.workers, line = loader.room_for(self.train.workers, self.dataset, next(iter(self.sampler)))
            if line:
                self.say(f"  {line}")
        batches = self.sampler.stretch(self.epoch, self.train.epochs, self.step)
        return iter(loader.loader(self.dataset, batches, self.workers, self.device, torch.Generator()))

    def _count(self, batch: Mapping[str, Any]) -> float:
        """Count, and return, the seconds that it took to make a batch, in loader processes several at the same time."""
        read, augment = batch["seconds"].sum(0).tolist() if "seconds" in batch else (0.0, 0.0)
        self.clock.add("read", read)
        self.clock.add("augment", augment)
        return read + augment

    @property
    def _reductions(self) -> int:
        return self.plateau.reductions if self.plateau else 0

    # ---- between epochs -------------------------------------------------------------------------------
    def _finish_epoch(self, pace: dict[str, float]) -> None:
        train = self.train
        self.epoch, self.step = self.epoch + 1, 0
        sums = self.stepper.meter.read()
        counted = max(self.steps - sums.pop("nonfinite_losses", 0), 1)
        lr = self.stepper.lr.at(self.epoch * self.steps - 1, self._reductions)
        line: dict[str, Any] = {"epoch": self.epoch, "lr": lr}
        line |= {name: round(value / counted, 6) for name, value in sorted(sums.items()) if name != "lr"}
        weights = self.stepper.loss.weights.items()
        line |= {f"weighted_{n}": round(w * line[f"raw_{n}"], 6) for n, w in weights if f"raw_{n}" in line}
        line["amp"] = {"precision": self.arithmetic.name, **self.arithmetic.health()}
        if train.swa_from is not None and self.average is not None and self.epoch > train.swa_from:
            self.average.update(self.network)
        is_due = self.epoch == train.epochs or self.epoch % train.validate_every == 0
        if is_due:
            self._judge(line)
        line |= {**pace, "peak_memory_mib": runtime.peak_memory_mib(self.device)}
        if runtime.rank() == 0:
            _append(self.folder / "log.jsonl", line, self.epoch)
            self._save()
            self.track(line)

    def _judge(self, line: dict[str, Any]) -> None:
        """Validate, and keep the weights where they are the best so far; all processes do, and find the same."""
        started = time.monotonic()
        with self.clock("validate"):
            average = self._averaged()
            runtime.share([*self.network.buffers(), *(average.tensors.values() if average else ())])
            with average.swapped_in(self.network) if average else nullcontext():
                scores = runtime.agree(dict(self.validate(self.network)))
        line |= {"scores": scores, "validate_seconds": round(time.monotonic() - started, 1)}
        better = self.best is None or scores["select"] > self.best["select"]
        line["new_best"] = keep = self.train.select == "last" or better
        self.since_best = 0 if better else self.since_best + 1
        if keep:
            self.best = {**scores, "epoch": self.epoch}
            if runtime.rank() == 0:
                save_weights(self.folder, average.tensors if average else self.network.state_dict())
        self.stop = self.train.patience is not None and self.since_best >= self.train.patience
        shown = " ".join(f"{name} {scores[name]:.4f}" for name in _heads(scores))
        self.say(f"  epoch {self.epoch}/{self.train.epochs} loss {line['loss']:.4f} {shown}{' *' if keep else ''}")
        if scores.get("collapsed"):
            self.say("  ! the network gives one answer everywhere: look at class weights, sampling, learning rate")
        if self.plateau:
            self.plateau.update(scores["select"])

    def _averaged(self) -> Average | None:
        """Return the average that takes the place of the weights, if there is one and it has begun.

        Weights of a stochastic weight average get the norm statistics that they have on the coming batches. Several
        processes share each batch where their norms do; else each sees the whole batches of a single process.
        """
        if not isinstance(self.average, Swa):
            return self.average
        if not self.average.updates:
            return None
        sampler = self.sampler if self.stepper.synchronised else BatchSampler(len(self.dataset), self.train.batch_size)
        sampler.set_epoch(self.epoch)
        batches = list(sampler)[: self.train.swa_batches]
        stream = DataLoader(self.dataset, batch_sampler=batches, num_workers=0)
        self.average.reestimate(self.network, stream, device=self.device, autocast=self.arithmetic.autocast)
        return self.average

    # ---- state ----------------------------------------------------------------------------------------
    def _save(self) -> None:
        if runtime.rank() != 0:
            return
        with self.clock("store"):
            self._write_state()

    def _write_state(self) -> None:
        self.stepper.look(everything=True)
        state.save(self.folder, {
            "network": self.network.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            **self.arithmetic.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "plateau": self.plateau.state_dict() if self.plateau else None,
            "epoch": self.epoch, "step": self.step, "meter": self.stepper.meter.read(),
            "best": self.best, "since_best": self.since_best, "stop": self.stop,
        })  # fmt: skip

    def _resume(self) -> None:
        saved = state.load(self.folder)
        if saved is None:
            if runtime.rank() == 0:
                (self.folder / "log.jsonl").unlink(missing_ok=True)
            return
        with state.whole(self.folder):
            self.network.load_state_dict(saved["network"])
            self.stepper.optimizer.load_state_dict(saved["optimizer"])
            self.arithmetic.load_state_dict(saved)
            if self.average:
                self.average.load_state_dict(saved["average"])
            if self.plateau:
                self.plateau.load_state_dict(saved["plateau"])
            self.epoch, self.step, self.stepper.meter = saved["epoch"], saved["step"], Meter(saved["meter"])
            self.best, self.since_best, self.stop = saved["best"], saved["since_best"], saved["stop"]
            state.restore_rng(saved)
        self.say(f"  resumed after epoch {self.epoch}" + (f", step {self.step}" if self.step else ""))


def _heads(scores: Mapping[str, float]) -> list[str]:
    """Return the names that do not detail another: score and f1, but not the f1_<class> of each class."""
    named = [name for name in scores if name not in ("select", "collapsed")]
    return [name for name in named if not any(name.startswith(f"{other}_") for other in named)]


def _append(path: Path, line: dict[str, Any], epoch: int) -> None:
    """Write the log with ``line`` as its entry for ``epoch``; a line left by a killed process is replaced."""
    kept = path.read_text(encoding="utf-8").splitlines()[: epoch - 1] if path.exists() else []
    write_bytes(path, ("\n".join([*kept, json.dumps(line)]) + "\n").encode())
