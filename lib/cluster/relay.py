"""What a Dask worker does for a stage that shares its scenes: it keeps processes of the project and passes messages on.

A worker gets this module with the work that is sent to it, so it imports nothing but the standard library and Dask. The
calls themselves are made by processes of ``lib/cluster/hand.py``, one for each thread of the worker that is lent at the
same time. They stay for the next calls of the same stage, and end when their stage closes them, when nothing was asked
for a while, with the worker, and at once when nobody waits for what they compute any more.
"""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

LOOK = 0.25
"""Seconds between two looks whether a call is still wanted."""
SIZE = 8
"""Bytes that state the length of a message, the highest first."""
Answer = tuple[str, Any]
"""What came of a message: "answer" and what was found, or another word and a sentence that says why there is none."""


@dataclass(frozen=True)
class Lending:
    """How the processes of a stage are started on a worker."""

    session: str
    """A name for one run of the stage, which no other has."""
    root: str
    """The repository."""
    folder: str
    """Where the stage runs, so that relative paths mean the same everywhere."""
    processes: int
    """How many processes a lent thread of the worker stands for."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Calls for one process, and the object that they look at."""

    token: str
    """Stands for the object."""
    calls: bytes
    held: bytes = b""
    """The object; empty where the worker has it already."""


class Process:
    """A process of ``lib/cluster/hand.py`` and the pipes to it."""

    def __init__(self, lending: Lending):
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the process
        command = [sys.executable, "-m", "lib.cluster.hand", str(lending.processes)]
        paths = [lending.root, *filter(None, [os.environ.get("PYTHONPATH")])]
        given = {**os.environ, **lending.environment, "PYTHONPATH": os.pathsep.join(paths)}
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
                                      cwd=lending.folder, env=given, start_new_session=True)  # fmt: skip
        self.token = ""
        """Stands for the object that it has; empty while it is new."""

    def ask(self, kind: str, payload: bytes, wanted: Callable[[], bool]) -> Answer:
        """Send a message and wait for its answer; "stopped" as soon as it is not wanted any more."""
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            write(self.child.stdin, pickle.dumps((kind, payload)))
            while not select.select([self.child.stdout], [], [], LOOK)[0]:
                if not wanted():
                    return "stopped", "nobody waits for it any more"
            return pickle.loads(read(self.child.stdout))
        except (EOFError, OSError):
            return "died", self.last_words()

    def last_words(self) -> str:
        """Say how the process ended."""
        code = self.child.wait()
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended with exit code {code}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process and those that it has started, whatever they do; there is nothing to save."""
        with suppress(OSError):
            os.killpg(self.child.pid, signal.SIGKILL)
        for pipe in (self.child.stdin, self.child.stdout):
            with suppress(OSError):  # what was not written yet
                if pipe is not None:
                    pipe.close()
        self.child.wait()
        self.said.close()


class Lent:
    """What one worker has lent to one run of a stage."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[Process] = []
        self.token, self.held = "", b""

    def close(self) -> None:
        """End the processes that do nothing now."""
        with self.lock:
            idle, self.idle = self.idle, []
        for process in idle:
            process.close()


def serve(lending: Lending, batch: Batch) -> Answer:
    """Have a process of this worker make the calls of a batch.

    Returns "answer" and its bytes; "missing" where the object is not here; "differs" where the project is another one
    here; "raised", "died" or "stopped" with a sentence.
    """
    from distributed import get_worker

    worker: Any = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    all_lent: dict[str, Lent] = worker.__dict__.setdefault("_lent", {})
    for session, other in list(all_lent.items()):  # of runs that were killed, which let go of nothing
        if session != lending.session and all(process.child.poll() is not None for process in list(other.idle)):
            all_lent.pop(session, None)
    lent = all_lent.setdefault(lending.session, Lent())
    with lent.lock:
        if batch.held:
            lent.token, lent.held = batch.token, batch.held
        held = lent.held if lent.token == batch.token else b""
    if not held:
        return "missing", "the worker has not got what the calls look at"
    while True:
        with lent.lock:
            process = lent.idle.pop() if lent.idle else Process(lending)
        used, kind, found = process.token != "", "ready", None
        if process.token != batch.token:
            kind, found = process.ask("hold", held, wanted)
        if kind == "ready":
            process.token = batch.token
            kind, found = process.ask("calls", batch.calls, wanted)
        if kind == "answer":
            with lent.lock:
                lent.idle.append(process)
            return kind, found
        process.close()
        if not (kind == "died" and used and process.child.returncode == 0):  # else it was silent for too long
            return kind, found


def end(session: str, worker: Any) -> None:
    """Let go of what a worker has lent to a run of a stage."""
    if (lent := worker.__dict__.get("_lent", {}).pop(session, None)) is not None:
        lent.close()


def seen(root: str, cores: Callable[[], int]) -> dict[str, Any]:
    """Say what a worker's machine is: the cores that it shares with which other workers, whether the project is there.

    Workers of one machine, cores and control group have one ``place``; cores: counts those that may be used.
    """
    groups = ""
    with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as stream:
        groups = stream.read()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {"place": f"{socket.gethostname()} {allowed} {groups}", "cores": cores(), "there": os.path.isdir(root)}


def write(stream: IO[bytes], message: bytes) -> None:
    """Write a message: its length, then itself."""
    stream.write(len(message).to_bytes(SIZE, "big") + message)
    stream.flush()


def read(stream: IO[bytes]) -> bytes:
    """Read a message; EOFError where the other side has ended."""
    length = int.from_bytes(_exactly(stream, SIZE), "big")
    return _exactly(stream, length)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    found = stream.read(length)
    if len(found) < length:
        raise EOFError("the other side has ended")
    return found
