"""How busy the machine is during an epoch: a line of the training log says whether a GPU waits for its data.

A thread looks once a second at counters that the driver and the host keep anyway, so nothing waits for the device. The
utilisation of a GPU is the share of time in which any of its kernels runs, as NVIDIA's library measures it
(``nvmlDeviceGetUtilizationRates``); it is asked by the package ``nvidia-ml-py`` (``requirements-gpu.txt``).
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

SECONDS = 1.0
"""Between two looks at the GPU; its driver averages over up to a second itself."""

Batch = TypeVar("Batch")


class Utilisation:
    """What one process measures while the batches of an epoch pass through ``waits``."""

    def __init__(self, device: torch.device, say: Callable[[str], None]):
        """``say`` gets one sentence, the first time, where the utilisation of a GPU cannot be measured."""
        self.device = device
        self._look = _look(device.index, say) if device.type == "cuda" else None
        self._percent: list[int] = []
        self._reserved: list[int] = []
        self.waited = 0.0
        """Seconds spent waiting for a batch so far."""
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._ended = threading.Event()

    def waits(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, measure how long each is waited for, and look at the GPU meanwhile."""
        following, watch = iter(batches), threading.Thread(target=self._watch, name="utilisation", daemon=True)
        try:
            while True:
                began = time.monotonic()
                try:
                    batch = next(following)
                except StopIteration:
                    return
                finally:
                    self.waited += time.monotonic() - began
                if self.device.type == "cuda" and watch.ident is None:
                    watch.start()  # after the loader has started its processes: forks and threads do not go together
                yield batch
        finally:
            self._ended.set()

    def line(self) -> dict[str, Any]:
        """Return what the log gets of the time since this began.

        loader_wait: the share of it spent waiting for a batch, 0 to 1. cpu_cores: how many cores this process, without
        its loader's processes, kept busy on average. On CUDA also gpu_memory_mib, the mean of what torch had reserved,
        and, where it can be measured, gpu_percent: mean and peak of the utilisation in percent, and idle, the share of
        looks that found none.
        """
        wall = max(time.monotonic() - self._wall, 1e-9)
        line: dict[str, Any] = {"loader_wait": round(min(self.waited / wall, 1.0), 4),
                                "cpu_cores": round((time.process_time() - self._cpu) / wall, 2)}  # fmt: skip
        if self.device.type == "cuda":
            self._sample()  # so that an epoch of less than a second has one look, too
            line["gpu_memory_mib"] = round(_mean(self._reserved) / 2**20, 1)
        if self._percent:
            idle = _mean([percent == 0 for percent in self._percent])
            mean, peak = round(_mean(self._percent), 1), max(self._percent)
            line["gpu_percent"] = {"mean": mean, "peak": peak, "idle": round(idle, 4)}
        return line

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._reserved.append(torch.cuda.memory_reserved(self.device))
        if self._look is not None:
            with suppress(Exception):  # whatever the driver's library says, training goes on
                self._percent.append(self._look())


@cache
def _look(index: int | None, say: Callable[[str], None]) -> Callable[[], int] | None:
    """Return what tells the utilisation of a GPU in percent; None, and once a sentence, where it cannot be had."""
    try:
        torch.cuda.utilization(index)
    except ModuleNotFoundError:
        say("  the utilisation of the GPU is not measured: the package nvidia-ml-py is not installed "
            "(pip install -r requirements-gpu.txt)")  # fmt: skip
    except Exception as error:  # a part of a GPU (MIG), an old driver
        say(f"  the utilisation of the GPU is not measured: its driver does not tell it ({error})")
    else:
        return lambda: torch.cuda.utilization(index)
    return None


def _mean(values: list[int] | list[bool]) -> float:
    return sum(values) / len(values)
