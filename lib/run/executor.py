"""Processes that share work, each with its own device: one per GPU, or all on the CPU, or none but this one.

A worker holds an object that was made in its process; the pool calls its methods there, through ``concurrent.futures``.
A worker that dies (killed, out of memory) is noticed at once and ends the work with one sentence; nothing waits for it.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from lib.errors import ArtifactError, ConfigError
from lib.run import runtime

STARTS = ("spawn", "fork")


def devices(wanted: int | None, own: torch.device) -> list[torch.device]:
    """Return the device of each of ``wanted`` workers, in turn; none: one per GPU that this torch has code for.

    Under torchrun there is one worker, with the process's own device.
    """
    if runtime.world_size() > 1:
        return [own]
    known = [own]
    if own.type == "cuda":
        built = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
        known = [torch.device("cuda", index) for index in range(torch.cuda.device_count())
                 if runtime.runs_on(torch.cuda.get_device_capability(index), built)]  # fmt: skip
    return [known[number % len(known)] for number in range(wanted or len(known))]


class Sharing(Protocol):
    """What a pass over scenes needs of the processes that share it; a ``Pool``, or one that others help."""

    def __len__(self) -> int:
        """Return the number of processes."""

    def start(self) -> None:
        """Start the processes, unless they are there."""

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method in every process."""

    def share(self, method: str, calls: Iterable[tuple]) -> Generator[Any, None, None]:
        """Call a method with each of many lists of arguments, by whoever is free; yields results as they come."""


class Pool:
    """Call methods of objects that live in workers, one per device; a single one lives in this process.

    make: device -> the object, importable by name. start: how a process begins; a forked one must not inherit threads
    or a GPU, so start it (``start``) before this process has computed anything. Raises ConfigError for fork with CUDA.
    """

    def __init__(self, make: Callable[[torch.device], Any], devices: Sequence[torch.device], start: str = "spawn"):
        if start not in STARTS:
            raise ConfigError(f"start of workers: expected {' or '.join(STARTS)}, got {start!r}")
        if start == "fork" and len(devices) > 1 and any(device.type == "cuda" for device in devices):
            raise ConfigError("start of workers: CUDA does not work in forked processes; choose spawn")
        self.make, self.devices, self.method = make, tuple(devices), start
        self.own: Any = None
        self.engine: ProcessPoolExecutor | None = None
        self.processes: list[Any] = []
        self.numbers: Any = ()
        """The process number of each worker, 0 until it is there."""

    def __len__(self) -> int:
        return len(self.devices)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Start the processes, unless they are there; what they need takes its time, meanwhile this returns."""
        if len(self) == 1 or self.engine is not None:
            return
        context, before = multiprocessing.get_context(self.method), multiprocessing.active_children()
        self.numbers, threads = context.Array("l", len(self)), torch.get_num_threads()
        given = (self.make, self.devices, self.numbers, context.Barrier(len(self)), threads)
        self.engine = ProcessPoolExecutor(len(self), context, _begin, given)
        for _ in self.devices:  # each waits for the others, so that there is a process for each
            self._submit(True)
        self.processes = [child for child in multiprocessing.active_children() if child not in before]

    def close(self) -> None:
        """End the processes, whatever they do."""
        for process in self.processes:
            process.terminate()
        if self.engine is not None:
            self.engine.shutdown()
        self.engine, self.processes, self.own = None, [], None

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method in every worker at the same time; returns the results in their order."""
        if len(self) == 1:
            return [self._here(method, arguments)]
        self.start()
        calls = [self._submit(True, method, arguments) for _ in self.devices]
        return [result for _, result in sorted(map(self._result, calls), key=lambda found: found[0])]

    def share(self, method: str, calls: Iterable[tuple]) -> Generator[Any, None, None]:
        """Call a method with each of many lists of arguments, by whoever is free; yields results as they come.

        Arguments are taken when a worker is free for them. What a worker raises is raised here.
        """
        if len(self) == 1:
            for arguments in calls:
                yield self._here(method, arguments)
            return
        self.start()
        waiting = iter(calls)
        busy = {self._submit(False, method, arguments) for arguments in islice(waiting, len(self))}
        try:
            while busy:
                done, busy = wait(busy, return_when=FIRST_COMPLETED)
                for call in done:
                    _, result = self._result(call)
                    busy |= {self._submit(False, method, arguments) for arguments in islice(waiting, 1)}
                    yield result
        finally:
            wait(busy)  # where the work is given up, nothing goes on behind its back

    def _here(self, method: str, arguments: tuple) -> Any:
        if self.own is None:
            self.own = self.make(self.devices[0])
        return getattr(self.own, method)(*arguments)

    def _submit(self, together: bool, method: str = "", arguments: tuple = ()) -> Future:
        assert self.engine is not None
        try:
            return self.engine.submit(_call, together, method, arguments)
        except BrokenProcessPool as error:
            raise self._dead() from error

    def _result(self, call: Future) -> tuple[int, Any]:
        """Return the number of the worker and what it answered."""
        try:
            return call.result()
        except BrokenProcessPool as error:
            raise self._dead() from error

    def _dead(self) -> ArtifactError:
        assert self.engine is not None
        self.engine.shutdown()  # which ends the others by a SIGTERM
        gone = min(self.processes, key=lambda process: process.exitcode in (0, -signal.SIGTERM))
        number = list(self.numbers).index(gone.pid) if gone.pid in self.numbers else self.processes.index(gone)
        return ArtifactError(f"worker {number + 1} of {len(self)} on {self.devices[number]} died (exit code "
                             f"{gone.exitcode}), killed or out of memory; run again, with fewer workers if it "
                             "happens again")  # fmt: skip


@dataclass
class _Worker:
    """What a worker process is."""

    number: int
    device: torch.device
    make: Callable[[torch.device], Any]
    barrier: Any
    own: Any = None


_worker: _Worker


def _begin(make: Callable, devices: Sequence[torch.device], numbers: Any, barrier: Any, threads: int) -> None:
    """Make this process the next worker of a pool.

    As many threads as in the parent: sums of convolutions on a CPU depend on their number.
    """
    for stop in runtime.STOPS:  # they are the parent's, which closes the pool with a SIGTERM
        signal.signal(stop, signal.SIG_DFL if stop == signal.SIGTERM else signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with numbers.get_lock():
        number = list(numbers).index(0)
        numbers[number] = os.getpid()
    global _worker
    _worker = _Worker(number, devices[number], make, barrier)


def _end_with_parent() -> None:
    """A killed parent closes no pool."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _call(together: bool, method: str, arguments: tuple) -> tuple[int, Any]:
    """Call a method of the worker's object, with ``together`` once all workers are here. Returns its number too."""
    if together:
        _worker.barrier.wait()
    if not method:
        return _worker.number, None
    try:
        _worker.own = _worker.make(_worker.device) if _worker.own is None else _worker.own
        return _worker.number, getattr(_worker.own, method)(*arguments)
    except Exception as error:
        raise portable(error) from error


def portable(error: Exception) -> Exception:
    """Return an error that can be sent to another process: itself, or its name and words."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # noqa: BLE001 some errors of libraries cannot
        return RuntimeError(f"{type(error).__name__}: {error}")
