"""Stages in processes of their own that begin at once: forked from a server that has imported the heavy libraries.

Importing torch and its neighbours takes longer than most stages of a tiny experiment; a test that kills many processes
would spend its time there. The server has no threads and no state of ours, so what it forks is as good as new, once
it starts processes in the usual way again: it would import everything in a server of its own for a loader's processes.
"""

import importlib
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from conftest import ROOT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "albumentations", "pandas", "cv2",
                              "rasterio", "scipy.ndimage", "skimage.measure", "sklearn"])  # fmt: skip


def _nothing() -> None:
    """Do nothing before a stage."""


def start(stage: str, *arguments: str | Path, output: Path | None = None,
          before: Callable[[], object] = _nothing) -> BaseProcess:  # fmt: skip
    """Start a stage; the process's ``exitcode`` is the stage's, or minus the signal that killed it.

    output: a file to which what it prints is added. before: a function of a module, called in the process first.
    """
    process = FORKS.Process(target=_run, args=(stage, [str(a) for a in arguments], output, before))
    process.start()
    return process


def run(stage: str, *arguments: str | Path, **options) -> int | None:
    """Run a stage as ``start`` does, to its end; returns its exit code."""
    process = start(stage, *arguments, **options)
    process.join()
    return process.exitcode


def speaking(function: Callable[..., int], *arguments: object) -> tuple[BaseProcess, TextIO]:
    """Call a function of a module in a process group of its own, which ends with the code that it returns.

    Returns the process and what it prints, line by line; close that before another one begins.
    """
    mine, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_speak, args=(function, arguments, theirs))
    process.start()
    theirs.close()
    return process, open(os.dup(mine.fileno()), encoding="utf-8")


def _speak(function: Callable[..., int], arguments: tuple, said: Connection) -> None:
    multiprocessing.set_start_method(None, force=True)
    os.setsid()
    os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
    said.close()
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # of a pipe
    sys.exit(function(*arguments))


def ranks(count: int, script: Path, *arguments: str | Path, **environment: str) -> list[int | None]:
    """Run a script as so many processes of one group, with the environment that torchrun gives them; their exit codes.

    A single process has no group. environment: further variables.
    """
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    given = [str(script), *map(str, arguments)]
    processes = [FORKS.Process(target=_rank, args=(rank, count, port, given, environment)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _rank(rank: int, count: int, port: int, given: list[str], environment: dict[str, str]) -> None:
    multiprocessing.set_start_method(None, force=True)
    os.environ |= environment
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1",
                       "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}  # fmt: skip
    sys.path.insert(0, str(ROOT))
    sys.argv = given
    runpy.run_path(given[0], run_name="__main__")


def _run(stage: str, arguments: list[str], output: Path | None, before: Callable[[], object]) -> None:
    multiprocessing.set_start_method(None, force=True)
    stream = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1), os.dup2(stream, 2)
    sys.path.insert(0, str(ROOT))
    before()
    sys.exit(importlib.import_module(stage).main(arguments))
