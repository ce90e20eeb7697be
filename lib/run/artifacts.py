"""The artifact store: how results lie on disk.

Each leaf folder of ``workdir/<experiment>/`` is a *unit*, written by one stage. It is built in ``<unit>.partial/``,
its ``manifest.json`` is written last, and the folder is renamed: a folder with its final name is whole. The manifest
says what made it. A unit found under a read-only ``--inputs`` root is *frozen*: taken as given, never rebuilt.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lib import files
from lib.errors import ArtifactError
from lib.files import digest, write_json
from lib.run import faults

MANIFEST = "manifest.json"
BEGUN = "unit.json"
"""In a folder that is being built: what it is to become."""
STATE = "last.pt"
"""In a folder that is being built: where its training stands."""
SCAFFOLD = (BEGUN, STATE)
"""What a finished unit no longer needs; it goes when the manifest is written and no kill can lose anything."""


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
        return files.read_json(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); delete its folder and rerun the stage") from error
    except OSError as error:
        raise ArtifactError(faults.sentence(error) or f"{path}: cannot be read ({error})") from error


def read_object(path: Path, **kinds: type) -> dict[str, Any]:
    """Read a JSON object with at least these keys, each of its kind; ArtifactError where it is anything else."""
    found = read_json(path)
    wrong = "" if isinstance(found, dict) else f"expected an object, found {type(found).__name__}"
    for key, kind in kinds.items() if not wrong else ():
        if not isinstance(found.get(key), kind):
            there = f"found {type(found[key]).__name__}" if key in found else "found none"
            wrong = f"{key}: expected {kind.__name__}, {there}"
            break
    if wrong:
        raise ArtifactError(f"{path}: damaged ({wrong}); delete its folder and rerun the stage")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line, as log.jsonl; ArtifactError that names the line for anything else."""
    found = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not isinstance(entry := files.parse_json(line), dict):
                raise ArtifactError(f"{path}, line {number}: expected an object, found {type(entry).__name__}")
            found.append(entry)
    except ValueError as error:
        raise ArtifactError(f"{path}, line {len(found) + 1}: not valid JSON ({error})") from error
    except OSError as error:
        raise ArtifactError(faults.sentence(error) or f"{path}: cannot be read ({error})") from error
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a unit; ArtifactError where it is missing or damaged."""
    return read_object(folder / MANIFEST, fingerprint=str, files=dict)


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
            return read_manifest(frozen)["fingerprint"]
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
        return "done" if read_manifest(own)["fingerprint"] == self.fingerprint(unit) else "stale"

    @staticmethod
    def fault(folder: Path) -> str:
        """Say what is wrong with a finished unit (a file gone or of another size), or nothing."""
        try:
            files = read_manifest(folder)["files"]
        except ArtifactError:
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
        return read_manifest(self.folder(unit)).get("code") != self.code

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
        return read_manifest(self.folder(unit))

    # ---- building -------------------------------------------------------------------------------------
    def partial(self, unit: Unit) -> Path:
        """Return the folder a unit is built in before it gets its final name."""
        return self.root / f"{unit.key}.partial"

    def recover(self, unit: Unit) -> None:
        """Finish a build that was killed after its manifest and before its last rename, and clear what is left of it.

        An older unit that was moved aside comes back where nothing has taken its place.
        """
        partial, final = self.partial(unit), self.root / unit.key
        whole = (partial / MANIFEST).exists() and not self.fault(partial)
        whole = whole and read_manifest(partial)["fingerprint"] == self.fingerprint(unit)
        if whole or os.path.lexists(_aside(final)):
            with self._lock(unit):
                if whole:
                    _swap(partial, final)
                elif os.path.lexists(final):
                    _remove(_aside(final))
                else:
                    os.replace(_aside(final), final)

    def _matching_partial(self, unit: Unit) -> bool:
        try:
            return read_object(self.partial(unit) / BEGUN).get("fingerprint") == self.fingerprint(unit)
        except ArtifactError:  # there is none, or it cannot be gone on with
            return False

    @contextlib.contextmanager
    def build(self, unit: Unit, record: dict[str, Any], fresh: bool = False) -> Iterator[Path]:
        """Yield the folder to write into; on success seal it with a manifest and give it its final name.

        A matching half-built folder is continued unless ``fresh``. ``record`` holds what the manifest says besides
        (stage, versions, seed); the caller may add to it while building. On an error everything stays for a resume.
        """
        with self._lock(unit):
            partial, final = self.partial(unit), self.root / unit.key
            for path in (partial, final):
                if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
                    found = "a symbolic link" if path.is_symlink() else "a file"
                    raise ArtifactError(f"{path}: expected a folder or nothing, found {found}, in whose place no "
                                        "result is built; move it elsewhere and run again")  # fmt: skip
            started = time.time()
            try:
                if fresh or not self._matching_partial(unit):
                    _remove(partial)
                partial.mkdir(parents=True, exist_ok=True)
                (partial / MANIFEST).unlink(missing_ok=True)  # of a build that was damaged after it
                for leftover in partial.rglob("*.tmp"):
                    leftover.unlink()
                fingerprint = self.fingerprint(unit)
                write_json(partial / BEGUN, {"fingerprint": fingerprint})
                yield partial
                self._seal(unit, partial, record, fingerprint, time.time() - started)
                _swap(partial, final)
            except Exception as error:
                if not (said := faults.sentence(error)):
                    raise
                place = f"{partial}: " if getattr(error, "filename", None) is None else ""
                raise ArtifactError(place + said) from error

    def _seal(self, unit: Unit, folder: Path, record: dict, fingerprint: str, seconds: float) -> None:
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        for name in SCAFFOLD:
            files.pop(name, None)
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
        path = self.root / ".locks" / (unit.key.replace("/", "__") + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 closed below, in forked processes at once
        except OSError as error:
            raise ArtifactError(faults.sentence(error) or f"{path}: {error}") from error
        with stream:
            _held.add(stream)
            try:
                _take(stream, unit)
                yield
            finally:
                _held.discard(stream)


def _take(stream: IO[str], unit: Unit) -> None:
    """Take the lock of a unit and write into it who has it. Raises ArtifactError where another process has it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
    except BlockingIOError as error:
        stream.seek(0)
        owner = stream.read().strip() or "another process"
        raise ArtifactError(f"{unit.key} is being built by {owner}; wait or stop it") from error
    except OSError as error:
        named = OSError(error.errno, error.strerror, stream.name)
        raise ArtifactError(faults.sentence(named) or str(named)) from error


_held: set[IO[str]] = set()
"""The locks of this process."""


def _leave_locks_to_parent() -> None:
    """Close the locks in a forked process, such as one that loads samples: else they would outlive their owner."""
    for stream in _held:
        stream.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def _aside(final: Path) -> Path:
    """Return the name under which an older unit waits until the newer one has taken its place."""
    return final.with_name(final.name + ".old")


def _remove(path: Path) -> None:
    """Remove a folder, or whatever stands in its place; of a symbolic link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _swap(partial: Path, final: Path) -> None:
    """Give the whole folder ``partial`` the name ``final``; an older unit is moved aside first and removed last."""
    for name in SCAFFOLD:
        (partial / name).unlink(missing_ok=True)
    old = _aside(final)
    _remove(old)
    if os.path.lexists(final):
        os.replace(final, old)
    os.replace(partial, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _remove(old)
