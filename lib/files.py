"""Whole files: a file appears under its name only when all of it is on the disk; and what files and values hash to."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

RUN_OUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What the system says when it has no more of something: space, memory, open files; or when a disk fails."""
TEXTS = {os.strerror(number): number for number in RUN_OUT}
State = tuple[str, int, int]
"""Path, size and time of a file."""
DEPTH = 100
"""Most brackets inside one another in a JSON file; a label of a scene has five."""
guards: list[Callable[[], None]] = []
"""Called before a file that was written gets its name; where one raises, the older file stays."""


@contextmanager
def whole_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file to write, as text in UTF-8 or with mode "wb"; it gets its name as ``whole_path`` says."""
    text: dict[str, Any] = {} if "b" in mode else {"newline": "", "encoding": "utf-8"}
    with whole_path(path) as partial, open(partial, mode, **text) as stream:
        yield stream


@contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """Give the name ``<name>.tmp`` to write a file under, for writers that open their files themselves.

    When the block ends without an error the file is synced to the disk and renamed to ``path``; after an error nothing
    is left, and an older file keeps its place. What a killed process left under the name goes first, for some libraries
    would open it and go on. Raises OSError with ``errno`` and ``path`` where a library says in its own way that the
    disk is full.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with open(partial, "rb+") as stream:
            os.fsync(stream.fileno())
        for guard in tuple(guards):
            guard()
        os.replace(partial, path)
    except Exception as error:
        if (number := run_out(error)) is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def run_out(error: BaseException | None) -> int | None:
    """Return the number, of ``RUN_OUT``, of the system's error that lies behind an error; None where there is none.

    Libraries pass it on as the cause of their own error, or in words alone.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in RUN_OUT:
            return error.errno
        if isinstance(error, MemoryError):
            return errno.ENOMEM
        words = str(error)
        if (named := re.search(r"\(os error (\d+)\)", words)) and int(named[1]) in RUN_OUT:
            return int(named[1])
        for text, number in TEXTS.items():
            if text in words:
                return number
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path, "wb") as stream:
        stream.write(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as a whole JSON file, indented, in UTF-8."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass"))


def read_json(path: str | Path, depth: int = DEPTH, most: int | None = None) -> Any:
    """Return the value of a JSON file. Raises OSError, and ValueError as ``parse_json`` or for over ``most`` bytes."""
    with open(path, "rb") as stream:
        text = stream.read(-1 if most is None else most + 1)
    if most is not None and len(text) > most:
        raise ValueError(f"more than {most:,} bytes")
    return parse_json(text, depth)


def parse_json(text: str | bytes, depth: int = DEPTH) -> Any:
    """Return the value of a JSON text. Raises ValueError for what is no JSON or nested too deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {depth} deep") from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        level = [part for node in level for part in (node.values() if isinstance(node, dict) else node)
                 if isinstance(part, (dict, list))]  # fmt: skip
        if not any(level):  # what is empty holds nothing deeper
            return value
    raise ValueError(f"nested more than {depth} deep")


def digest(value: Any) -> str:
    """Hash a JSON value: 16 hex digits, equal for equal values whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def time_of(state: os.stat_result) -> int:
    """Return when a file was last changed, in nanoseconds, even where it was given an older time afterwards.

    Archives and copies give times that are the same for files of other bytes; the system's own (ctime) tells.
    """
    return max(state.st_mtime_ns, state.st_ctime_ns)


def file_state(path: str | Path) -> State:
    """Return what tells whether a file is still the same."""
    with suppress(OSError):
        state = Path(path).stat()
        return str(path), state.st_size, state.st_mtime_ns
    return str(path), 0, 0


def sha256(*paths: str | Path) -> str:
    """Return the SHA-256 of a file as hex digits; of several that of their bytes one after the other."""
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


Inode = tuple[int, int, int, int, int]
"""Device, number, size and times of a file: the same as long as nobody touches it."""
_sums: dict[Inode, str] = {}


def sum_of(path: str | Path) -> str:
    """Return the SHA-256 of a file; this process reads a file again only when it was touched since."""
    state = inode(path)
    if state not in _sums:
        _sums[state] = sha256(path)
    return _sums[state]


def inode(path: str | Path) -> Inode:
    """Return what tells a file and its state."""
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def know_sums(sums: Mapping[Inode, str]) -> None:
    """Take over what another process has hashed, which ``sum_of`` then need not."""
    _sums.update(sums)
