"""Where the PNGs of a submission lie: in a folder, or in an archive, of which nothing is unpacked onto the disk.

Of each entry no more is unpacked than such a PNG can have, so a small archive cannot fill the memory either.
"""

import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lib.competitions.tables import sentence
from lib.competitions.xview2.metric import MOST_BYTES
from lib.errors import DataError

BROKEN = (OSError, ValueError, RuntimeError, EOFError, OverflowError, struct.error, zlib.error, zipfile.BadZipFile)
"""What ``zipfile`` raises on archives that are damaged, encrypted or packed in a way that it does not know."""


@dataclass(frozen=True)
class Pictures:
    """The PNGs of a submission."""

    place: Path
    """The folder, or the archive."""
    names: frozenset[str]
    """Their names; in an archive those of all entries."""
    read: Callable[[str], bytes]
    """Name -> its bytes, of a larger file no more than MOST_BYTES + 1. Raises DataError with the reason alone."""

    @classmethod
    def of_folder(cls, folder: Path) -> "Pictures":
        """Return the files of a folder whose names end in .png."""

        def read(name: str) -> bytes:
            try:
                with open(folder / name, "rb") as file:
                    return file.read(MOST_BYTES + 1)
            except OSError as error:
                raise DataError(f"cannot be read ({error.strerror})") from error

        return cls(folder, frozenset(path.name for path in folder.glob("*.png")), read)


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[Pictures | None, list[str]]]:
    """Open an archive and give its pictures and what is wrong with its entries; no pictures where it cannot be read."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN as error:
        yield None, [f"{path}: expected a zip of PNG pairs, got {error}"]
        return
    with archive:
        entries = archive.infolist()
        faults: dict[str, list[str]] = {}
        for entry in entries:
            if kind := _fault(entry):
                faults.setdefault(kind, []).append(entry.orig_filename)
        twice = [name for name, times in Counter(entry.filename for entry in entries).items() if times > 1]
        if twice:
            faults["is in the archive more than once"] = twice
        names = frozenset(entry.filename for entry in entries if not _fault(entry))
        findings = [sentence(path, "entry", kind, odd) for kind, odd in faults.items()]
        yield Pictures(path, names, partial(_unpack, archive)), findings


def _fault(entry: zipfile.ZipInfo) -> str:
    """Say why an entry of an archive is not looked into, "" if it is."""
    name = entry.orig_filename
    if "/" in name or "\\" in name or name != entry.filename:
        return "lies in a folder, expected PNGs at the top of the archive"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by method {entry.compress_type}, expected stored or deflated"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.file_size > MOST_BYTES:
        return f"unpacks to more than {MOST_BYTES} bytes"
    two_sizes = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size
    return "is stored as it is, yet the archive gives it two sizes" if two_sizes else ""


def _unpack(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of an entry, at most MOST_BYTES + 1. Raises DataError with the reason."""
    try:
        with archive.open(name) as file:
            return file.read(MOST_BYTES + 1)
    except BROKEN as error:
        raise DataError(f"cannot be unpacked ({error})") from error
