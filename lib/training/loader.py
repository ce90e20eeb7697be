"""The processes that load samples: how many the machine has room for, and what goes wrong in them as a sentence."""

import ctypes
import os
import re
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader, Dataset

from lib.errors import ArtifactError, PipelineError
from lib.run import runtime
from lib.run.faults import AGAIN

SHARED = Path("/dev/shm")
"""Where Linux keeps the memory that processes share, through which batches come."""
AHEAD = 2
"""Batches that each process makes ahead of time, which is torch's default."""
SLACK = 1 << 20
"""Bytes beside its batches that a process needs there, for locks and whole pages of memory."""
KEPT, LARGE = 1 << 28, 1 << 25
"""Bytes of freed memory that a process keeps at most, and the size from which on a single array is given back."""
NO_ROOM = re.compile(r"unable to (\w+ shared memory|write to file </torch_)|out of shared memory|Bus error")


class Loader(DataLoader):
    """A loader whose processes can be ended where one of them died.

    torch's handler of ended processes is taken away: it raises wherever it comes, in the middle of what tells of the
    death too. Without it torch looks at its processes every five seconds.
    """

    def __iter__(self) -> Any:
        _running.append(super().__iter__())
        if self.num_workers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return _running[-1]


_running: list[Any] = []
"""The iterators of loaders, which an error must not take along: their processes tell how they ended."""


def loader(
    dataset: Dataset, batches: Iterable[list[int]], workers: int, device: torch.device,
    generator: torch.Generator | None = None,
) -> Loader:  # fmt: skip
    """Return the loader of these batches (lists of sample numbers), which are asked for as they are needed."""
    return Loader(dataset, batch_sampler=batches, num_workers=workers, generator=generator,
                  pin_memory=device.type == "cuda", worker_init_fn=begin)  # fmt: skip


def ahead(dataset: Dataset, workers: int) -> Generator[Any, None, None]:
    """Yield the items of a dataset as they are, in their order; each of the processes makes one ahead.

    They come through pipes, not through shared memory, of which a container may have little.
    """
    stream = iter(Loader(dataset, batch_size=None, num_workers=workers, prefetch_factor=1, collate_fn=_as_it_is,
                         generator=torch.Generator(), worker_init_fn=begin))  # fmt: skip
    try:
        yield from stream
    except GeneratorExit:  # whoever asked has had enough
        stream._shutdown_workers()
        _running.remove(stream)
        raise
    _running.remove(stream)  # after an error it stays, for ``told``


def _as_it_is(item: Any) -> Any:
    return item


def begin(worker: int = 0) -> None:
    """Make this process one that loads samples: it leaves signals to its parent and keeps its memory."""
    runtime.leave_signals_to_parent(worker)
    keep_memory()


def keep_memory() -> None:
    """Ask the C library (glibc; others have no such wish) to use freed memory again instead of giving it back.

    A sample needs the same megabytes over and over. Given back and asked for anew, each page is cleared by the system,
    which is a third of the time that a sample takes.
    """
    trim_threshold, mmap_threshold = -1, -3  # <malloc.h>
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, KEPT)
        library.mallopt(mmap_threshold, LARGE)


def room_for(workers: int, dataset: Dataset, batch: Sequence[int]) -> tuple[int, str]:
    """Return how many of ``workers`` processes the shared memory has room for, and a line where these are fewer.

    batch: sample numbers, of which the first one is made here to see how large it is. Samples do not depend on the
    number of processes.
    """
    if workers == 0:
        return 0, ""
    try:
        get_context().Lock()
        torch.UntypedStorage._new_shared(1)
    except (OSError, RuntimeError) as error:
        words = str(error).splitlines()[0]
        return 0, f"train.workers: {workers} asked, 0 used: processes cannot share memory here ({words})"
    free = _free() / runtime.local_processes()
    size = len(batch) * sum(part.nbytes for part in dataset[batch[0]].values() if isinstance(part, torch.Tensor))
    used = int(min(workers, max((free - AHEAD * size) / (AHEAD * size + SLACK), 0)))
    if used == workers:
        return workers, ""
    mib = 1 << 20
    return used, (f"train.workers: {workers} asked, {used} used: {SHARED} has {free / mib:.0f} MiB free, and batches "
                  f"of {size / mib:.1f} MiB go through it, {AHEAD} ahead for each process; a container has more with "
                  "--shm-size or --ipc=host")  # fmt: skip


@contextmanager
def told() -> Iterator[None]:
    """Turn what goes wrong in loader processes into one sentence: their death, and errors that have one already.

    At the end of the block all loaders' processes are ended, whatever they still hold.
    """
    try:
        yield
    except Exception as error:
        words, died = _words(error), _end(patient=isinstance(error, OSError | EOFError))
        if NO_ROOM.search(words) or "SIGBUS" in died:
            raise ArtifactError(f"the memory that processes share ({SHARED}) is full or cannot be used; {AGAIN}, with "
                                "train.workers: 0, or with more of it (--shm-size or --ipc=host of a "
                                "container)") from error  # fmt: skip
        if died:
            raise ArtifactError(
                f"a process that loads samples died ({', '.join(died)}), out of memory or stopped by someone; {AGAIN}; "
                "if it happens again, with fewer train.workers"
            ) from error
        if isinstance(error, PipelineError) and " in DataLoader worker process " in words:
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        raise
    finally:
        for iterator in _running:
            if getattr(iterator, "_workers", ()):
                iterator._shutdown_workers()
        _running.clear()


def _end(patient: bool) -> list[str]:
    """End all loader processes; return of those that had died how: the name of a signal, or the exit code.

    Nothing is to be read in torch's words: a death shows as any error of the connection to it. patient: it may have
    been this very moment.
    """
    died: list[str] = []
    for iterator in _running:
        processes = getattr(iterator, "_workers", ())
        for process in processes:
            process.join(2 if patient else 0)
            if process.exitcode:
                died.append(signal.Signals(-process.exitcode).name if process.exitcode < 0
                            else f"exit code {process.exitcode}")  # fmt: skip
        if processes:
            iterator._shutdown_workers()
    return died


def _words(error: BaseException | None) -> str:
    """Return what an error says and what those say that lie behind it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return "\n".join(str(one) for one in seen if isinstance(one, RuntimeError | OSError | PipelineError))


def _free() -> float:
    """Return how many bytes can be shared; infinite where the system does not say."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize
