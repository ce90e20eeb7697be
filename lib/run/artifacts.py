"""The artifact store: how results lie on disk.

Each leaf folder of ``workdir/<experiment>/`` is a *unit*, written by one stage. It is built in ``<unit>.partial/``,
its ``manifest.json`` is written last, and the folder is renamed: a folder with its final name is whole. The manifest
says what made it. A unit found under a read-only ``--inputs`` root is *frozen*: taken as given, never rebuilt.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import ArtifactError
from lib.files import digest, write_json

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Unit:
    """One result: where it lies, what it depends on, and the command that makes it."""

    key: str
    """Path below the experiment's folder, e.g. ``02_loc/lite0/fold0``."""
    facts: dict[str, Any] = field(hash=False)
    """The facts its content depends on (config section, fold, scene ids); JSON values."""
    command: str = ""
    """What to type to build it."""
    upstream: tuple["Unit", ...] = ()
    """The units it reads."""
    portable: bool = True
    """May be taken from ``--inputs``; never true for results about test scenes."""

    @property
    def name(self) -> str:
        """Return the last part of its path, which is the split where a unit has one."""
        return self.key.rsplit("/", 1)[-1]


def read_json(path: Path) -> Any:
    """Read a JSON file; ArtifactError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); delete its folder and rerun the stage") from error


class Store:
    """The folder of one experiment, and the frozen copies it may fall back on."""

    def __init__(self, root: Path, inputs: tuple[Path, ...] = (), code: str = ""):
        """``root`` is ``workdir/<experiment>``; ``inputs`` are folders like it; ``code`` marks the sources."""
        self.root, self.inputs, self.code = root, inputs, code

    # ---- looking --------------------------------------------------------------------------------------
    def folder(self, unit: Unit) -> Path:
        """Return where the unit is read: in the workdir, else the frozen copy, else where it will be written."""
        own = self.root / unit.key
        return own if own.exists() else self._frozen(unit) or own

    def _frozen(self, unit: Unit) -> Path | None:
        if unit.portable:
            for root in self.inputs:
                if (root / unit.key / MANIFEST).exists():
                    return root / unit.key
        return None

    def fingerprint(self, unit: Unit) -> str:
        """Return the hash of everything the unit depends on; a frozen unit keeps the one it was made with."""
        if not (self.root / unit.key).exists() and (frozen := self._frozen(unit)):
            return read_json(frozen / MANIFEST)["fingerprint"]
        return digest({"key": unit.key, "facts": unit.facts, "upstream": [self.fingerprint(u) for u in unit.upstream]})

    def status(self, unit: Unit) -> str:
        """Return done, frozen, missing, partial, stale or damaged."""
        own = self.root / unit.key
        if not own.exists():
            if self._frozen(unit):
                return "frozen"
            return "partial" if self._matching_partial(unit) else "missing"
        if self.fault(own):
            return "damaged"
        return "done" if read_json(own / MANIFEST)["fingerprint"] == self.fingerprint(unit) else "stale"

    @staticmethod
    def fault(folder: Path) -> str:
        """Say what is wrong with a finished unit (a file gone or of another size), or nothing."""
        try:
            files = read_json(folder / MANIFEST)["files"]
        except (ArtifactError, KeyError, TypeError):
            return f"{folder / MANIFEST}: missing or broken"
        for name, size in files.items():
            path = folder / name
            if not path.is_file():
                return f"{path}: deleted"
            if path.stat().st_size != size:
                return f"{path}: expected {size} bytes, got {path.stat().st_size}"
        return ""

    def older_code(self, unit: Unit) -> bool:
        """Tell whether a finished unit was made by sources other than the present ones."""
        return read_json(self.folder(unit) / MANIFEST).get("code") != self.code

    def require(self, unit: Unit) -> Path:
        """Return the folder of a finished unit; ArtifactError naming the command where it is not usable."""
        status = self.status(unit)
        if status == "frozen" and (fault := self.fault(self.folder(unit))):
            raise ArtifactError(f"{fault}; the attached copy is incomplete, attach it again")
        if status in ("done", "frozen"):
            return self.folder(unit)
        reason = {
            "missing": "has not been made",
            "partial": "is unfinished",
            "stale": "was made with other settings",
            "damaged": f"is damaged ({self.fault(self.root / unit.key)})",
        }[status]
        raise ArtifactError(f"{unit.key} {reason}; run: {unit.command}")

    def manifest(self, unit: Unit) -> dict[str, Any]:
        """Return what a finished unit says of itself."""
        return read_json(self.folder(unit) / MANIFEST)

    # ---- building -------------------------------------------------------------------------------------
    def partial(self, unit: Unit) -> Path:
        """Return the folder a unit is built in before it gets its final name."""
        return self.root / f"{unit.key}.partial"

    def recover(self, unit: Unit) -> None:
        """Finish a build that was killed after its manifest and before its last rename."""
        partial = self.partial(unit)
        whole = (partial / MANIFEST).exists() and not self.fault(partial)
        if whole and read_json(partial / MANIFEST)["fingerprint"] == self.fingerprint(unit):
            with self._lock(unit):
                _swap(partial, self.root / unit.key)

    def _matching_partial(self, unit: Unit) -> bool:
        begun = self.partial(unit) / "unit.json"
        return begun.exists() and read_json(begun).get("fingerprint") == self.fingerprint(unit)

    @contextlib.contextmanager
    def build(self, unit: Unit, record: dict[str, Any], fresh: bool = False) -> Iterator[Path]:
        """Yield the folder to write into; on success seal it with a manifest and give it its final name.

        A matching half-built folder is continued unless ``fresh``. ``record`` holds what the manifest says besides
        (stage, versions, seed); the caller may add to it while building. On an error everything stays for a resume.
        """
        with self._lock(unit):
            partial, final = self.partial(unit), self.root / unit.key
            if fresh or not self._matching_partial(unit):
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True, exist_ok=True)
            fingerprint = self.fingerprint(unit)
            write_json(partial / "unit.json", {"fingerprint": fingerprint})
            started = time.time()
            try:
                yield partial
                self._seal(unit, partial, record, fingerprint, time.time() - started)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise ArtifactError(
                        f"{partial}: the disk is full; free some space and run the same command again, it resumes"
                    ) from error
                raise
            _swap(partial, final)

    def _seal(self, unit: Unit, folder: Path, record: dict, fingerprint: str, seconds: float) -> None:
        (folder / "unit.json").unlink()
        for leftover in folder.rglob("*.tmp"):
            leftover.unlink()
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        files.pop(MANIFEST, None)
        manifest = {
            "unit": unit.key,
            "fingerprint": fingerprint,
            "facts": unit.facts,
            "upstream": {u.key: self.fingerprint(u) for u in unit.upstream},
            "code": self.code,
            **record,
            "seconds": round(seconds, 1),
            "files": files,
        }
        write_json(folder / MANIFEST, manifest)

    @contextlib.contextmanager
    def _lock(self, unit: Unit) -> Iterator[None]:
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / (unit.key.replace("/", "__") + ".lock"), "a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                raise ArtifactError(f"{unit.key} is being built by {stream.read().strip()}; wait or stop it") from error
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            yield


def _swap(partial: Path, final: Path) -> None:
    """Give ``partial`` the name ``final``; an older unit is moved aside first and removed last."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)
