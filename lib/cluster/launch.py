"""One command of a unit in a process of its own, on the machine of a worker: what it waits for, its log, its end.

A Dask worker gets this module with the work that is sent to it, so it imports nothing but the standard library.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LOOK = 0.25
"""Seconds between two looks for the file that asks to stop."""
VISIBLE = 60.0
"""Seconds that a file which another machine wrote may take to be seen here (network file systems cache names)."""
GUARD = str(Path(__file__).resolve().with_name("guard.py"))
STOPPED = 130
"""The exit code of a stage that was asked to stop and has saved."""
UNSEEN = -1
"""In place of an exit code: a file that should be here is not."""


@dataclass(frozen=True)
class Call:
    """What a worker is asked to do: a stage script with its flags."""

    command: tuple[str, ...]
    """The script, an absolute path, and its flags."""
    folder: str
    """Where the command runs, so that relative paths in its flags mean the same everywhere."""
    log: str
    """The file that gets what the command prints."""
    stop: str
    """A file that asks to stop as soon as it is there."""
    needs: tuple[str, ...] = ()
    """Files that must be seen before the command starts."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Changes of the worker's environment; None removes a variable."""
    visible: float = VISIBLE
    guard: str = GUARD
    shares: bool = False
    """Whether other workers may take scenes of it; then it is told where its scheduler is."""


def run(call: Call, **more: str) -> dict[str, Any]:
    """Run a call to its end; returns code, host, process, seconds, and ``said``: its error, or else its last line.

    more: further variables of the environment, those of the worker's own slot.
    """
    started, host = time.monotonic(), socket.gethostname()
    if missing := unseen((call.command[0], *call.needs), call.visible):
        said = (f"{host}: expected {missing}, found nothing there; repository, data and workdir must lie under the "
                "same paths on every machine")  # fmt: skip
        return {"code": UNSEEN, "host": host, "process": 0, "seconds": 0.0, "said": said}
    if os.path.exists(call.stop):
        return {"code": STOPPED, "host": host, "process": 0, "seconds": 0.0, "said": "it was to stop before it began"}
    environment = {**os.environ, **more, **call.environment}
    given = {name: value for name, value in environment.items() if value is not None}
    with open(call.log, "ab") as stream:
        line = f"== {time.strftime('%Y-%m-%d %H:%M:%S')} on {host}: python {' '.join(call.command)}\n"
        stream.write(line.encode())
        begin = stream.tell()
    command = [sys.executable, "-S", call.guard, call.log, sys.executable, *call.command]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=call.folder, env=given, start_new_session=True)
    while True:
        try:
            code = child.wait(LOOK)
            break
        except subprocess.TimeoutExpired:
            if os.path.exists(call.stop) and child.stdin is not None:
                child.stdin.close()  # the guard ends the command
    if child.stdin is not None:
        child.stdin.close()
    return {"code": code, "host": host, "process": child.pid, "seconds": time.monotonic() - started,
            "said": last_words(call.log, begin)}  # fmt: skip


def on_worker(call: Call) -> dict[str, Any]:
    """Run a call as ``run`` does on a Dask worker; one that shares scenes gets the address that its worker uses."""
    if call.shares:
        from distributed import get_worker

        call = replace(call, command=(*call.command, "--scheduler", get_worker().scheduler.address))
    return run(call)


def unseen(paths: Sequence[str], seconds: float) -> str:
    """Return the first of the files that is still not there after so many seconds, "" where all are."""
    end = time.monotonic() + seconds
    for path in paths:
        while not os.path.exists(path):
            if time.monotonic() >= end:
                return path
            try:
                os.listdir(os.path.dirname(path))  # makes a network file system ask its server again
            except OSError:
                pass
            time.sleep(min(0.5, max(seconds / 10, 0.01)))
    return ""


def last_words(log: str, begin: int = 0) -> str:
    """Return what a command said last from a place of its log on: its ``error:`` to its end, or else its last line."""
    try:
        with open(log, "rb") as stream:
            stream.seek(begin)
            lines = stream.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        return "\n".join(lines[errors[-1] :]).removeprefix("error: ")
    return lines[-1].strip() if lines else ""


def log_of(folder: Path, name: str) -> Path:
    """Return where the log of a unit lies: ``workdir/<experiment>/logs/02_loc__net__fold0.log``."""
    return folder / (name.replace("/", "__") + ".log")
