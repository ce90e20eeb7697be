"""A process on another machine that makes calls of stage 05: messages come on its input, answers go to its output.

    python -m lib.cluster.hand PROCESSES

A Dask worker starts it (``lib/cluster/relay.py``). "hold" brings the object that later calls look at, after the
versions of its sender, which must be those of this process. "calls" brings calls, which so many processes share. It
ends with its input, whatever it does then, and after ``SILENCE`` seconds without a message.
"""

import functools
import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, BinaryIO

from lib.cluster import relay
from lib.run import cores, runtime

SILENCE = 60.0
"""Seconds without a message after which the process ends: whoever asked it is gone, or does something else."""


@functools.cache
def versions() -> dict[str, str]:
    """Return what must be the same where calls come from and where they are made."""
    return {"Python": sys.version.split()[0], "the hash of the code": runtime.code_version(), **runtime.versions()}


def differs(theirs: dict[str, str]) -> str:
    """Say in what this process differs from the versions of another one, "" where it does not."""
    ours = versions()
    for name, version in theirs.items():
        if ours.get(name) != version:
            return f"{name} is {ours.get(name)} there and {version} here"
    return ""


def numbered(held: Any, number: int, function: Any, *arguments: Any) -> tuple[int, Any]:
    """Call ``function(held, *arguments)``; returns the number of the call beside what it found."""
    return number, function(held, *arguments)


class Server:
    """Answers messages by a pool of processes of this machine, or by this process alone, which then needs no torch."""

    def __init__(self, processes: int):
        self.alone, self.pool = cores.Hand(), None if processes == 1 else cores.open_pool(processes, 0)

    def answer(self, kind: str, payload: bytes) -> relay.Answer:
        """Return what came of a message."""
        try:
            if kind == "hold":
                theirs, held = pickle.loads(payload)
                if odd := differs(theirs):
                    return "differs", odd
                self.hold(pickle.loads(held))
                return "ready", None
            return "answer", pickle.dumps(list(self.made([(numbered, *call) for call in pickle.loads(payload)])))
        except Exception as error:  # noqa: BLE001 the caller says it, and makes the calls itself
            return "raised", f"{type(error).__name__}: {error}"

    def hold(self, held: Any) -> None:
        """Keep an object for later calls."""
        self.pool.each("hold", held) if self.pool else self.alone.hold(held)

    def made(self, calls: Sequence[tuple]) -> Iterator[Any]:
        """Yield what calls return."""
        if self.pool is None:
            yield from (self.alone.call(*call) for call in calls)
            return
        with closing(self.pool.share("call", calls)) as found:
            yield from found


def main(processes: int) -> None:
    """Answer messages until the input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    inbox: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, inbox), daemon=True).start()
    server = Server(processes)
    while True:
        try:
            message = inbox.get(timeout=SILENCE)
        except queue.Empty:
            break
        answer = server.answer(*pickle.loads(message))
        relay.write(out, pickle.dumps(answer))
    if server.pool is not None:
        server.pool.close()
    sys.stderr.flush()
    os._exit(0)  # the thread waits for the pipe still


def _receive(stream: BinaryIO, inbox: "queue.Queue[bytes]") -> None:
    """Take messages in; with the pipe everything ends, for nobody waits for an answer."""
    try:
        while True:
            inbox.put(relay.read(stream))
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
