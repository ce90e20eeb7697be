"""Whole files: a file appears under its name only when all of it is on the disk; and what files and values hash to."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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
    is left, and an older file keeps its place.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        yield partial
        with open(partial, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path, "wb") as stream:
        stream.write(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as a whole JSON file, indented, in UTF-8."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def digest(value: Any) -> str:
    """Hash a JSON value: 16 hex digits, equal for equal values whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
