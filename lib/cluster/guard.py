"""Run a command, and end it when the process that asked for it goes away.

    python guard.py LOG COMMAND...

A worker that is killed cannot end what it has started; so it holds a pipe to this process, and the end of the pipe is
the end of the worker. The command then gets a SIGTERM, upon which a stage saves what it has, and a SIGKILL after
``GRACE`` seconds. What the command prints is added to LOG. The exit code is the command's, 128 + the signal that
killed it. It needs the standard library alone and starts without ``site``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE = 60.0
"""Seconds between SIGTERM and SIGKILL: a training finishes its step and saves."""


def main(log: str, command: list[str]) -> int:
    """Run the command to its end; returns its exit code."""
    with open(log, "ab") as stream:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: child.terminate())
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(), child), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end_with(pipe: int, child: subprocess.Popen) -> None:
    """Wait for the end of the pipe, which nobody writes into; then end the command."""
    while os.read(pipe, 1024):
        pass
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    child.kill()


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main(sys.argv[1], sys.argv[2:]))  # the thread may wait for the pipe still
