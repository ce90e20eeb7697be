"""Whole files: a file appears under its name only when all of it is on the disk."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file to write, as text in UTF-8 or with mode "wb"; it gets its name when the block ends without an error.

    It is written beside its place as ``<name>.tmp``, synced to the disk and renamed; after an error nothing is left.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    text: dict[str, Any] = {} if "b" in mode else {"newline": "", "encoding": "utf-8"}
    try:
        with open(partial, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path, "wb") as stream:
        stream.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as a whole JSON file, indented, in UTF-8."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
