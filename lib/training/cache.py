"""Scenes as training sees them, kept on disk as plain arrays: ``train.cache: disk``.

Each image and each target of a scene is one ``.npy`` file, which is mapped into memory: a crop touches the pages of its
window alone, and the pages are those of the system's file cache, which all processes share and which it takes back when
memory is short. A file's name ends with a digest of what it was made from, so a file of other data is not found; one
that is missing or cut short is made anew by whoever wants it.
"""

import glob
import io
import math
import mmap
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.competitions.contract import Scene
from lib.errors import ArtifactError
from lib.run import runtime
from lib.scenes.probs import SUFFIX as LEVELS
from lib.scenes.probs import file_name
from lib.training import loader

FOLDER = ".cache"
"""In a workdir; experiments share it."""
HEADER = 128
"""Bytes before the array in a file of the format, for any array of up to four axes."""
SUFFIX, HALF_DONE = ".npy", ".tmp"
ABANDONED = 3600.0
"""Seconds after which a file that somebody began to write is taken for one that nobody will finish."""
GIB = 1 << 30


@dataclass(frozen=True)
class Part:
    """One array of each scene, in a folder of its own: an image, a target, or where the objects of a target are."""

    folder: Path
    """Its name follows everything but the scene that the arrays depend on; after a dot, what made them."""
    make: Callable[[Scene], np.ndarray]
    """scene -> array; loader processes must be able to pickle it."""
    digests: Mapping[str, str]
    """Scene id -> digest of the files that its array is made from."""
    per_pixel: int | None
    """Bytes of the array for each pixel of the scene, None where that is not known beforehand."""

    def path(self, scene: Scene) -> Path:
        """Return where the array of a scene lies."""
        return self.folder / self.name(scene)

    def name(self, scene: Scene) -> str:
        """Return the name of a scene's file."""
        return f"{file_name(scene.id).removesuffix(LEVELS)}.{self.digests[scene.id]}{SUFFIX}"

    def __call__(self, scene: Scene) -> np.ndarray:
        """Return the array of a scene, read-only; its bytes are read when they are looked at.

        One that is missing or not whole is made and written anew.
        """
        path = os.path.join(self.folder, self.name(scene))
        try:
            return mapped(path)
        except (OSError, ValueError):
            write(Path(path), self.make(scene))
            return mapped(path)


def mapped(path: str | Path) -> np.ndarray:
    """Map the array of a ``.npy`` file. OSError where there is none, ValueError where it is not whole."""
    with open(path, "rb", buffering=0) as file:
        start, shape, dtype = _header(file.read(HEADER))
        size = os.fstat(file.fileno()).st_size
        if size != start + dtype.itemsize * math.prod(shape):
            raise ValueError(f"{path}: expected an array {shape} of {dtype}, found {size} bytes")
        if size == start:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), start)


@lru_cache(maxsize=1024)
def _header(head: bytes) -> tuple[int, tuple[int, ...], np.dtype]:
    """Return where the array begins in a file, its shape and its type; ValueError for anything but a whole header."""
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("expected version 1.0 of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return stream.tell(), shape, dtype


def write(path: Path, array: np.ndarray) -> None:
    """Write a whole ``.npy`` file; several processes may write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(HALF_DONE, f"{path.stem}.", path.parent)
    try:
        with open(handle, "wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), (1, 0), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk has no name of its own
        raise


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


class Filling(Dataset):
    """Item i makes what scene i lacks: {"bytes": how many were written}."""

    def __init__(self, parts: Sequence[Part], scenes: Sequence[Scene]):
        cv2.setNumThreads(1)  # here and not in a forked worker, as in the dataset
        self.parts, self.scenes = parts, scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene = self.scenes[index]
        lacks = [part for part in self.parts if not part.path(scene).exists()]
        return {"bytes": torch.tensor(sum(part(scene).nbytes for part in lacks))}


def fill(parts: Sequence[Part], scenes: Sequence[Scene], workers: int, say: Callable[[str], None],
         size: Callable[[Scene], tuple[int, int] | None]) -> None:  # fmt: skip
    """Write what the disk lacks of the parts of all scenes, by ``workers`` loader processes (0: by this one).

    parts: of one common folder. size: scene -> (height, width) of its arrays, None where that is not known; then the
    first scene is made, and the others are taken to be as large. The size of it all is said before it is written, and
    ArtifactError raised where the disk has not the room. Under torchrun each process makes its share.
    """
    root = parts[0].folder.parent
    found = {part.folder: _names(part.folder) for part in parts}
    lacks = [(scene, [part for part in parts if part.name(scene) not in found[part.folder]]) for scene in scenes]
    missing = runtime.agree([scene for scene, some in lacks if some])
    if not missing:
        return
    for part in parts:
        if runtime.rank() == 0:
            _replace(part)
        part.folder.mkdir(parents=True, exist_ok=True)
    expected = runtime.agree(_expected([(scene, some) for scene, some in lacks if some], size))
    free = runtime.agree(shutil.disk_usage(root).free)
    needed = f"{expected / GIB:.2f} GiB for {len(missing)} of {len(scenes)} scenes"
    if expected > free:
        raise ArtifactError(f"train.cache: disk needs {needed} in {root}, and that disk has {free / GIB:.2f} GiB free; "
                            "free some, name a --workdir on another disk, or set train.cache: none")  # fmt: skip
    say(f"  train.cache: disk writes {needed} to {root}; {free / GIB:.2f} GiB are free")
    mine = missing[runtime.rank() :: runtime.world_size()]
    random.Random(f"{socket.gethostname()} {os.getpid()}").shuffle(mine)  # another stage may fill it at the same time
    if mine:
        _write_all(Filling(parts, mine), workers, say)
    runtime.barrier()
    if runtime.rank() == 0:
        for part in parts:
            _tidy(part, scenes)


def _expected(lacks: Sequence[tuple[Scene, Sequence[Part]]], size: Callable[[Scene], tuple[int, int] | None]) -> int:
    """Return how many bytes are to be written."""
    total = 0
    for scene, some in lacks:
        shape = size(scene)
        if shape is None or any(part.per_pixel is None for part in some):
            first, its = lacks[0]
            return sum(part(first).nbytes for part in its) * len(lacks)
        total += sum(shape[0] * shape[1] * (part.per_pixel or 0) for part in some)
    return total


def _write_all(filling: Filling, workers: int, say: Callable[[str], None]) -> None:
    with loader.told():
        room, line = loader.room_for(min(workers, len(filling)), filling, [0])
        if line:
            say(f"  {line}")
        batches = [[index] for index in range(len(filling))]
        stream = loader.loader(filling, batches, room, torch.device("cpu"), torch.Generator())
        for _ in tqdm(stream, "train.cache", leave=False, disable=None if runtime.rank() == 0 else True):
            pass


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _replace(part: Part) -> None:
    """Remove what other code or libraries made of the same."""
    for other in part.folder.parent.glob(f"{glob.escape(part.folder.stem)}.*"):
        if other != part.folder:
            shutil.rmtree(other, ignore_errors=True)


def _tidy(part: Part, scenes: Collection[Scene]) -> None:
    """Remove arrays of these scenes that are of other data than today's, and what was begun long ago."""
    kept = {part.name(scene) for scene in scenes}
    known = {name.rsplit(".", 2)[0] for name in kept}
    for entry in os.scandir(part.folder):
        stale = entry.name.endswith(SUFFIX) and entry.name not in kept and entry.name.rsplit(".", 2)[0] in known
        if entry.name.endswith(HALF_DONE):
            with suppress(OSError):
                stale = time.time() - entry.stat().st_mtime > ABANDONED
        if stale:
            with suppress(OSError):
                os.unlink(entry.path)
