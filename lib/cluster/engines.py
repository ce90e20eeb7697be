"""Where commands run: on this machine, or on the workers of a Dask scheduler.

An engine takes work and gives a handle at once. It knows nothing of units; that a unit is done is told by the disk.
"""

import itertools
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from types import ModuleType
from typing import Any, Protocol, TypeVar

from lib.cluster import launch
from lib.cluster.launch import Call
from lib.config.sections import Asks, UnitKind
from lib.errors import ArtifactError, ConfigError

T = TypeVar("T")
Result = dict[str, Any]
"""What ``launch.run`` returns."""
ATTEMPTS = 20.0
"""Seconds in which a scheduler has to answer, at the start and after its connection was lost."""


class Handle(Protocol):
    """Work that was given to an engine."""

    def done(self) -> bool:
        """Tell whether it has ended, well or not."""

    def result(self) -> Result:
        """Return what came of it; raises what its worker died of."""


class Engine(Protocol):
    """What ``flow`` needs of the place where commands run."""

    @property
    def slots(self) -> int:
        """How many units can run at the same time now."""

    @property
    def most(self) -> float:
        """How many it takes at once; others wait in the loop."""

    def submit(self, call: Call, asks: Asks, key: str) -> Handle:
        """Start a call as soon as there is a place for what it asks; calls of one key are the same work."""

    def refuse(self, asks: Mapping[UnitKind, Asks]) -> None:
        """Raise ConfigError for asks that can never be met here. asks: their name in ``cluster.asks`` -> them."""

    def threads(self) -> int | None:
        """Return with how many threads a unit must compute, None where its process takes the right number itself."""

    def news(self) -> list[str]:
        """Return what is to be said of the workers since this was asked last; ArtifactError where none can come."""

    def close(self) -> None:
        """Let go of the workers."""


def memory_here() -> float:
    """Return the memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def gpus_here() -> list[str]:
    """Return the GPUs that processes of this machine may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    with suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
        return [str(number) for number, line in enumerate(
            [line for line in listed.splitlines() if line.startswith("GPU ")])]  # fmt: skip
    return []


class Local:
    """So many threads of this process, each of which waits for a command; each has a GPU, in turn, if there are any."""

    def __init__(self, slots: int, gpus: list[str] | None = None, memory: float | None = None,
                 work: Callable[..., Result] = launch.run):  # fmt: skip
        """memory: GiB that the units may ask for. work: runs a call, as ``launch.run`` does."""
        self.slots, self.most, self.work = slots, slots, work
        self.gpus = gpus_here() if gpus is None else gpus
        self.memory = memory_here() if memory is None else memory
        self._free = list(self.gpus)
        self._turn = itertools.count()
        self._change = threading.Condition()
        self._threads = ThreadPoolExecutor(slots, "unit", self._name)
        self._own = threading.local()

    def _name(self) -> None:
        with self._change:
            self._own.number = next(self._turn)

    def submit(self, call: Call, asks: Asks, key: str) -> Handle:
        """Start a call in the next free thread; it waits there for GPUs and memory that others hold."""
        return self._threads.submit(self._run, call, asks)

    def _run(self, call: Call, asks: Asks) -> Result:
        with self._taken(asks) as gpus:
            more = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
            if self.slots > 1:  # threads that wait give their core to the units beside them
                more["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
            return self.work(call, **more)

    @contextmanager
    def _taken(self, asks: Asks) -> Iterator[list[str]]:
        """Hold what a call asks for; a call that asks for no GPU is shown that of its thread."""
        with self._change:
            self._change.wait_for(lambda: len(self._free) >= asks.gpus and self.memory >= asks.memory)
            taken, self._free = self._free[: asks.gpus], self._free[asks.gpus :]
            self.memory -= asks.memory
        try:
            yield taken or self.gpus[self._own.number % len(self.gpus) :][:1] if self.gpus else []
        finally:
            with self._change:
                self._free += taken
                self.memory += asks.memory
                self._change.notify_all()

    def refuse(self, asks: Mapping[UnitKind, Asks]) -> None:
        """Raise ConfigError for asks of more than this machine has."""
        for kind, wanted in asks.items():
            if wanted.gpus > len(self.gpus):
                raise ConfigError(f"cluster.asks.{kind}.gpus: asks for {wanted.gpus}, this machine has "
                                  f"{len(self.gpus)}; --set cluster.asks.{kind}.gpus={len(self.gpus)}")  # fmt: skip
            if wanted.memory > self.memory:
                raise ConfigError(f"cluster.asks.{kind}.memory: asks for {wanted.memory:g} GiB, this machine has "
                                  f"{self.memory:.1f}")  # fmt: skip

    def threads(self) -> int | None:
        """Return None: a stage takes as many as one that is started by hand."""
        return None

    def news(self) -> list[str]:
        """Return nothing: the threads of a process do not come and go."""
        return []

    def close(self) -> None:
        """End the threads, which have nothing to do any more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def connect(address: str, name: str) -> Any:
    """Return a client of the Dask scheduler at an address, under a name that its logs show.

    Raises ConfigError without the package and for what is no address, OSError where no scheduler answers; the error's
    words say what to do.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--scheduler: needs the package dask.distributed, which is not installed here; pip "
                          "install -r requirements-cluster.txt, or use --local N") from error  # fmt: skip
    for logger in ("distributed", "distributed.client", "distributed.comm", "tornado", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # what a user can do is said here
    try:
        return Client(address, timeout=ATTEMPTS, set_as_default=False, name=name)
    except (OSError, ValueError, TypeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        said = (f"expected a Dask scheduler there, found none ({said}); start it with `dask scheduler` and name the "
                "address that it prints")  # fmt: skip
        if isinstance(error, OSError):
            raise OSError(said) from error
        raise ConfigError(f"--scheduler {address}: {said}") from error


class Dask:
    """The workers that have joined a scheduler, each of which runs as many calls at once as it has threads."""

    most = inf
    """A scheduler is shown all that waits, for it may start workers by that."""

    def __init__(self, address: str):
        """Raises ConfigError without the package, and where no scheduler answers at the address."""
        self.address = address
        try:
            self.client: Any = connect(address, "lib.cluster")
        except OSError as error:
            raise ConfigError(f"--scheduler {address}: {error}") from error
        self.workers: dict[str, int] | None = None
        self.wanted: list[Asks] = []
        self._said = ""

    @property
    def slots(self) -> int:
        """Return the threads of all workers that were there at the last look."""
        return sum((self.workers or {}).values())

    def submit(self, call: Call, asks: Asks, key: str) -> Handle:
        """Give a call to the scheduler. A second client that submits the same key waits for the same work."""
        resources = {name: amount for name, amount in (("GPU", asks.gpus), ("MEMORY", asks.memory)) if amount}
        if resources and asks not in self.wanted:
            self.wanted.append(asks)
        return self.client.submit(
            by_value(partial(launch.on_worker, call), launch), key=key, resources=resources, pure=False, retries=0
        )

    def refuse(self, asks: Mapping[UnitKind, Asks]) -> None:
        """Refuse nothing: a worker that offers what is asked for may come later."""

    def threads(self) -> int:
        """Return how many threads a stage takes here: a Dask worker would limit those that it starts to one."""
        import torch

        return torch.get_num_threads()

    def news(self) -> list[str]:
        """Say which workers came and went, and what none of them offers."""
        end = time.monotonic() + ATTEMPTS
        while self.client.status == "connecting" and time.monotonic() < end:
            time.sleep(0.1)
        if self.client.status != "running":
            raise ArtifactError(f"--scheduler {self.address}: the scheduler no longer answers; what is finished is "
                                "kept: start it and its workers and run the same command again")  # fmt: skip
        try:
            now = {address: int(threads) for address, threads in self.client.nthreads().items()}
            known = self.client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TypeError):
            return []
        before, self.workers = self.workers, now
        said = [f"workers: {len(now)}, {sum(now.values())} units at a time"] if before is None else []
        for address in sorted((before or {}).keys() - now.keys()):
            said.append(f"worker {address} is gone; what it ran goes to another one")
        said += [f"worker {address} has come" for address in sorted(now.keys() - before.keys())] if before else []
        line = "" if now else f"no worker has joined {self.address}; start one: dask worker {self.address} --nthreads 1"
        if not now.keys() <= known.keys():  # which the client keeps, and meanwhile may have asked for without workers
            return said
        for asks in self.wanted if now else ():
            offers = [worker.get("resources", {}) for worker in known.values()]
            if not any(o.get("GPU", 0) >= asks.gpus and o.get("MEMORY", 0) >= asks.memory for o in offers):
                line = (f"no worker offers GPU={asks.gpus} MEMORY={asks.memory:g}, which cluster.asks wants; start one "
                        "with --resources, or ask for less")  # fmt: skip
        if line and line != self._said:
            said.append(line)
        self._said = line
        return said

    def close(self) -> None:
        """Leave the scheduler; its workers stay."""
        with suppress(Exception):
            self.client.close(timeout=5)


def by_value(function: Callable[..., T], module: ModuleType) -> Callable[..., T]:
    """Return a function that can be sent to any worker with all that it uses of a module of ours: workers need Dask and
    the standard library alone."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    try:
        work = cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(module)

    def sent(*arguments: Any) -> Any:
        import pickle

        return pickle.loads(work)(*arguments)

    return sent  # a function of a function is sent by value too
