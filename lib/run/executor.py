"""Processes that share work, each with its own device: one per GPU, or all on the CPU, or none but this one.

A worker holds an object that was made in its process; the pool calls its methods there. A worker that dies (killed, out
of memory) is noticed at once and ends the work with one sentence; nothing waits for it.
"""

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from lib.errors import ArtifactError, ConfigError, PipelineError
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
        self.processes: list[Any] = []
        self.ends: list[Connection] = []

    def __len__(self) -> int:
        return len(self.devices)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Start the processes, unless they are there; what they need takes its time, meanwhile this returns."""
        if len(self) == 1 or self.processes:
            return
        context: Any = multiprocessing.get_context(self.method)  # its base class declares no Process
        for device in self.devices:
            mine, theirs = context.Pipe()
            self.ends.append(mine)
            inherited = tuple(self.ends) if self.method == "fork" else ()
            process = context.Process(target=_serve, args=(theirs, inherited, self.make, device,
                                                           torch.get_num_threads()), daemon=True)  # fmt: skip
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self.processes.append(process)

    def close(self) -> None:
        """End the processes, whatever they do."""
        for process in self.processes:
            process.terminate()
        for process, end in zip(self.processes, self.ends):
            process.join()
            end.close()
        self.processes, self.ends, self.own = [], [], None

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method in every worker at the same time; returns the results in their order."""
        if len(self) == 1:
            return [self._here(method, arguments)]
        self.start()
        for number in range(len(self)):
            self._send(number, method, arguments)
        busy = set(range(len(self)))
        with self._drained(busy):
            return [self._receive(number, busy) for number in range(len(self))]

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
        busy: set[int] = set()
        with self._drained(busy):
            for number, arguments in zip(range(len(self)), waiting):
                self._send(number, method, arguments)
                busy.add(number)
            while busy:
                ready = wait([self.ends[number] for number in sorted(busy)])
                for number in [one for one in sorted(busy) if self.ends[one] in ready]:
                    result = self._receive(number, busy)
                    for arguments in waiting:
                        self._send(number, method, arguments)
                        busy.add(number)
                        break
                    yield result

    @contextmanager
    def _drained(self, busy: set[int]) -> Iterator[None]:
        """Take what busy workers still send where the work is given up, so that the next call gets its own answer."""
        try:
            yield
        finally:
            for number in sorted(busy):
                with suppress(Exception):
                    self._receive(number, busy)

    def _here(self, method: str, arguments: tuple) -> Any:
        if self.own is None:
            self.own = self.make(self.devices[0])
        return getattr(self.own, method)(*arguments)

    def _send(self, number: int, method: str, arguments: tuple) -> None:
        try:
            self.ends[number].send((method, arguments))
        except OSError as error:
            raise self._dead(number) from error

    def _receive(self, number: int, busy: set[int]) -> Any:
        busy.discard(number)
        try:
            result, error, said = self.ends[number].recv()
        except (EOFError, OSError) as gone:
            raise self._dead(number) from gone
        if error is None:
            return result
        if not isinstance(error, PipelineError):
            print(said, flush=True)  # where it happened; the traceback from here on does not tell
        raise error

    def _dead(self, number: int) -> ArtifactError:
        process = self.processes[number]
        process.join(5)
        return ArtifactError(f"worker {number + 1} of {len(self)} on {self.devices[number]} died (exit code "
                             f"{process.exitcode}), killed or out of memory; run again, with fewer workers if it "
                             "happens again")  # fmt: skip


def _serve(
    end: Connection, inherited: Sequence[Connection], make: Callable, device: torch.device, threads: int
) -> None:
    """Make the object, answer calls with (result, error, its traceback) until the pool closes or goes away.

    As many threads as in the parent: sums of convolutions on a CPU depend on their number.
    """
    for number in runtime.STOPS:  # they are the parent's, which closes the pool with a SIGTERM
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    for other in inherited:  # a forked process holds its parent's ends, and would not see the parent go
        other.close()
    torch.set_num_threads(threads)
    own = None
    while True:
        try:
            method, arguments = end.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Any, Exception | None, str]
        try:
            own = make(device) if own is None else own
            answer = getattr(own, method)(*arguments), None, ""
        except Exception as error:  # noqa: BLE001 raised again in the parent
            answer = None, portable(error), traceback.format_exc()
        try:
            end.send(answer)
        except OSError:
            return


def portable(error: Exception) -> Exception:
    """Return an error that can be sent to another process: itself, or its name and words."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # noqa: BLE001 some errors of libraries cannot
        return RuntimeError(f"{type(error).__name__}: {error}")
