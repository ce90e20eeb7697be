"""The artifact store: how results lie on disk.

Each leaf folder of ``workdir/<experiment>/`` is a *unit*, written by one stage. It is built in ``<unit>.partial/``,
its ``manifest.json`` is written last, and the folder is renamed: a folder with its final name is whole. The manifest
says what made it and what its files hold (``lib/run/manifest.py``). A unit found under a read-only ``--inputs`` root
is *frozen*: taken as given, never rebuilt.
"""

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import ArtifactError
from lib.files import State, digest, file_state, write_json
from lib.run import faults, lease, manifest
from lib.run.lease import Held
from lib.run.manifest import BEGUN, MANIFEST, SCAFFOLD, read_object
from lib.settings import some

"""Scenes that are named where many have changed."""


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
    data: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What it reads of the data -> a digest of that today, "" where it can no longer be told; {} where nothing is
    known. No part of the fingerprint."""
    beside: tuple[str, ...] = ()
    """Its files that only tell of it (logs); nothing is built on them."""
    per_scene: bool = False
    """Has a file for every scene, each of which is checked when it is read (``Store.check``), not all at once."""

    @property
    def name(self) -> str:
        """Return the last part of its path, which is the split where a unit has one."""
        return self.key.rsplit("/", 1)[-1]


class Store:
    """The folder of one experiment, and the frozen copies it may fall back on."""

    def __init__(self, root: Path, inputs: tuple[Path, ...] = (), code: str = ""):
        """``root`` is ``workdir/<experiment>``; ``inputs`` are folders like it; ``code`` marks the sources."""
        self.root, self.inputs, self.code = root, inputs, code
        self._commands: dict[Path, str] = {}
        self._found: dict[str, State] = {}
        """Key of a unit -> its manifest when it was decided to build it."""

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
            return manifest.read(frozen)["fingerprint"]
        return digest({"key": unit.key, "facts": unit.facts, "upstream": [self.fingerprint(u) for u in unit.upstream]})

    def status(self, unit: Unit) -> str:
        """Return done, frozen, missing, partial, stale or damaged."""
        own = self.root / unit.key
        if not own.exists():
            if self._frozen(unit):
                return "frozen"
            return "partial" if self._matching_partial(unit) else "missing"
        if self.fault(unit):
            return "damaged"
        return "stale" if self.outdated(unit) else "done"

    def fault(self, unit: Unit) -> str:
        """Say what is wrong with the files of a finished unit, or that they are those of another unit, or nothing."""
        folder = self.folder(unit)
        if fault := manifest.fault(folder):
            return fault
        found = self.manifest(unit).get("unit", unit.key)
        return "" if found == unit.key else f"{folder}: holds {found}"

    def outdated(self, unit: Unit) -> str:
        """Say in what a finished unit is not what would be made today ("with other settings"), or nothing.

        It is outdated with each unit that it reads, too, unless that was removed or is taken from ``--inputs``.
        """
        own = self.root / unit.key
        if not own.exists() or (made := manifest.made(own)) is None:
            return ""
        if (changed := self._changed(made, unit)) and _settings(made.get("facts", {})) == _settings(unit.facts):
            return f"from other data ({some(changed)}: changed, new or gone since)"
        if changed or made["fingerprint"] != self.fingerprint(unit):
            return "with other settings"
        for needed in unit.upstream:
            today = manifest.made(self.folder(needed))
            if today is not None and not manifest.reads(made, needed.key, today):
                return f"from another {needed.key}"
            if today is None and made.get("origin", {}).get(needed.key, _origin(needed)) != _origin(needed):
                return f"from other data than a {needed.key} of today"
            if self.outdated(needed):
                return f"from {needed.key}, which is stale"
        return ""

    @staticmethod
    def _changed(made: Mapping[str, Any], unit: Unit) -> list[str]:
        """Return what a unit reads of the data that is not as it was; nothing where either state is not known."""
        then, now = made.get("data") or unit.data, unit.data or made.get("data", {})
        return [name for name in sorted(then.keys() | now.keys()) if (then.get(name) or None) != now.get(name) and
                now.get(name) != ""]  # fmt: skip

    def older_code(self, unit: Unit) -> bool:
        """Tell whether a finished unit was made by sources other than the present ones."""
        return self.manifest(unit).get("code") != self.code

    def require(self, unit: Unit) -> Path:
        """Return the folder of a finished unit; ArtifactError naming the command where it is not usable.

        The bytes of its files are checked, but for one with a file ``per_scene``, whose reader calls ``check``.
        """
        status, folder = self.status(unit), self.folder(unit)
        if status == "frozen" and (fault := self.fault(unit)):
            raise ArtifactError(f"{fault}; the attached copy is incomplete or damaged, attach it again")
        if status in ("done", "frozen"):
            self._commands[folder] = unit.command
            self.refuse_strangers(unit)
            for name in () if unit.per_scene else self.manifest(unit)["files"]:
                manifest.check(folder / name, unit.command)
            return folder
        if status == "stale":
            for needed in unit.upstream:  # what is to be run first
                if self.outdated(needed):
                    self.require(needed)
        reason = {
            "missing": "has not been made",
            "partial": "is unfinished",
            "stale": f"was made {self.outdated(unit)}",
            "damaged": f"is damaged ({self.fault(unit)})",
        }[status]
        raise ArtifactError(f"{unit.key} {reason}; run: {unit.command}")

    def refuse_strangers(self, unit: Unit) -> None:
        """Raise ArtifactError where files lie in a finished unit that are not its own."""
        folder = self.folder(unit)
        if odd := manifest.strangers(folder):
            raise ArtifactError(f"{folder / odd[0]}: expected only what {folder / MANIFEST} lists, found {len(odd)} "
                                "more; move them elsewhere")  # fmt: skip

    def refuse_mixed(self, unit: Unit, source: Unit) -> None:
        """Raise ArtifactError where a unit of ``--inputs``, this one or one below it, was made from another ``source``.

        Each of several folders may hold a part of another experiment: one the folds, one networks that were trained on
        other folds.
        """
        folder, today = self.folder(unit), manifest.made(self.folder(source))
        made = None if (self.root / unit.key).exists() else manifest.made(folder)
        if made is not None and today is not None and not manifest.reads(made, source.key, today):
            raise ArtifactError(f"{folder}: was made from another {source.key} than {self.folder(source)}; take both "
                                "from one experiment, or predict test scenes alone (--split test)")  # fmt: skip
        for needed in unit.upstream:
            self.refuse_mixed(needed, source)

    def check(self, path: Path) -> Path:
        """Return a file of a unit that was required, if its bytes are those that were written. ArtifactError."""
        command = next((self._commands[parent] for parent in path.parents if parent in self._commands), "")
        return manifest.check(path, command)

    def manifest(self, unit: Unit) -> dict[str, Any]:
        """Return what a finished unit says of itself, which the caller must not change."""
        return manifest.read(self.folder(unit))

    def is_old(self, unit: Unit) -> bool:
        """Tell whether a finished unit of this workdir was made by a version that recorded no sums."""
        made = manifest.made(self.root / unit.key)
        return made is not None and not made.get("sha256")

    def adopt(self, unit: Unit) -> bool:
        """Record the sums of a finished unit of an earlier version, which is taken as it lies there.

        So are what it reads and the state of the data, where its manifest does not say. Tells whether anything was, but
        for new times of files that were checked. Where nothing can be written, or another process does it, nothing is.
        """
        own = self.root / unit.key
        made = manifest.made(own)
        if made is None:
            return False
        known = made.get("sha256") and (made.get("data") or not unit.data)
        if known and made.get("times") == manifest.times_of(own):
            return False
        for needed in () if known else unit.upstream:
            self.adopt(needed)
        with contextlib.suppress(ArtifactError, OSError), self._lock(unit, watch=False):
            if known:
                manifest.retime(own)
                return False
            manifest.write(own, {**self._reading(unit), **made, "data": made.get("data") or unit.data}, unit.beside)
            return True
        return False

    def _reading(self, unit: Unit) -> dict[str, Any]:
        """Return what the manifest says of all that a unit is made from but its settings."""
        found = {needed.key: manifest.made(self.folder(needed)) for needed in unit.upstream}
        read = {key: manifest.content(made) for key, made in found.items() if made is not None}
        origins = {needed.key: _origin(needed) for needed in unit.upstream}
        return {"read": read, "data": dict(unit.data), "origin": {key: one for key, one in origins.items() if one}}

    # ---- building -------------------------------------------------------------------------------------
    def partial(self, unit: Unit) -> Path:
        """Return the folder a unit is built in before it gets its final name."""
        return self.root / f"{unit.key}.partial"

    def recover(self, unit: Unit) -> None:
        """Finish a build that was killed after its manifest and before its last rename, and clear what is left of it.

        An older unit that was moved aside comes back where nothing has taken its place.
        """
        if _sealing(self.root / unit.key) or os.path.lexists(_aside(self.root / unit.key)) or self._is_whole(unit):
            with self._lock(unit) as held:
                self._finish(unit, held)
        self._found[unit.key] = file_state(self.root / unit.key / MANIFEST)

    def _is_whole(self, unit: Unit) -> bool:
        """Tell whether the folder it is built in lacks its final name alone."""
        partial = self.partial(unit)
        whole = (partial / MANIFEST).exists() and not manifest.fault(partial)
        return whole and self._is_begun(manifest.read(partial), unit)

    def _finish(self, unit: Unit, held: Held) -> None:
        """Do what ``recover`` says, as the owner of the unit."""
        partial, final = self.partial(unit), self.root / unit.key
        for sealing in _sealing(final):
            if os.path.lexists(partial):
                _remove(sealing)
            else:
                with contextlib.suppress(FileNotFoundError):  # its owner was faster
                    os.rename(sealing, partial)
        if self._is_whole(unit):
            _publish(partial, final, held)
        elif os.path.lexists(final):
            _remove(_aside(final))
        elif os.path.lexists(_aside(final)):
            os.replace(_aside(final), final)

    def _matching_partial(self, unit: Unit) -> bool:
        try:
            return self._is_begun(read_object(self.partial(unit) / BEGUN), unit)
        except ArtifactError:  # there is none, or it cannot be gone on with
            return False

    def _is_begun(self, begun: Mapping[str, Any], unit: Unit) -> bool:
        """Tell whether a half-built unit is what would be built today; earlier versions state its settings alone."""
        today = self._reading(unit).items()
        same = all(not value or begun.get(key) in (value, None, {}) for key, value in today)
        return same and begun.get("fingerprint") == self.fingerprint(unit)

    @contextlib.contextmanager
    def build(self, unit: Unit, record: dict[str, Any], fresh: bool = False) -> Iterator[Path]:
        """Yield the folder to write into; on success seal it with a manifest and give it its final name.

        A matching half-built folder is continued unless ``fresh``. ``record`` holds what the manifest says besides
        (stage, versions, seed); the caller may add to it while building. On an error everything stays for a resume.
        """
        partial, final = self.partial(unit), self.root / unit.key
        found = self._found.pop(unit.key, file_state(final / MANIFEST))
        with self._lock(unit) as held:
            for path in (partial, final):
                if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
                    odd = "a symbolic link" if path.is_symlink() else "a file"
                    raise ArtifactError(f"{path}: expected a folder or nothing, found {odd}, in whose place no "
                                        "result is built; move it elsewhere and run again")  # fmt: skip
            started = time.time()
            try:
                self._finish(unit, held)
                if file_state(final / MANIFEST) != found:
                    raise ArtifactError(f"{unit.key}: another process finished it meanwhile; run the command again")
                if fresh or not self._matching_partial(unit):
                    _remove(partial)
                partial.mkdir(parents=True, exist_ok=True)
                (partial / MANIFEST).unlink(missing_ok=True)  # of a build that was damaged after it
                for leftover in partial.rglob("*.tmp"):
                    leftover.unlink()
                begun = {"fingerprint": self.fingerprint(unit), **self._reading(unit)}
                write_json(partial / BEGUN, {**begun, "token": held.token})
                yield partial
                record = {**begun, **record, "seconds": round(time.time() - started, 1)}
                _publish(partial, final, held, lambda folder: self._seal(unit, folder, record, held))
            except Exception as error:
                if not (said := faults.sentence(error)):
                    raise
                place = f"{partial}: " if getattr(error, "filename", None) is None else ""
                raise ArtifactError(place + said) from error

    def _seal(self, unit: Unit, folder: Path, record: dict, held: Held) -> None:
        if read_object(folder / BEGUN).get("token") != held.token:
            raise ArtifactError(f"{self.partial(unit)}: another process built in it too; run the same command again")
        entries = {
            "unit": unit.key,
            "fingerprint": record["fingerprint"],
            "facts": unit.facts,
            "upstream": {u.key: self.fingerprint(u) for u in unit.upstream},
            "code": self.code,
            **record,
        }
        manifest.write(folder, entries, unit.beside)

    def reuse(self, unit: Unit, files: Mapping[str, Sequence[str]]) -> list[str]:
        """Put files of the finished unit that is being built anew into its partial folder; returns the scenes.

        ``files``: scene -> its files. Those are taken whose data are as they were, if the unit differs in its data or
        its scenes alone, but not where the scene failed or a file is damaged.
        """
        own, made = self.root / unit.key, manifest.made(self.root / unit.key)
        if made is None or not made.get("sha256") or not self._differs_in_data_alone(made, unit):
            return []
        changed = set(self._changed(made, unit))
        whole = not changed & unit.data.keys() - files.keys()  # what is not told by scene is read by all of them
        taken = []
        for scene, names in files.items() if whole else ():
            if scene in changed or scene in made.get("failed", {}):
                continue
            targets = [self.partial(unit) / name for name in names]
            for name, target in zip(names, targets):
                _link(own / name, target)
            if all(target.exists() and manifest.sum_of(target) == made["sha256"].get(name)
                   for name, target in zip(names, targets)):  # fmt: skip
                taken.append(scene)
                continue
            for target in targets:
                target.unlink(missing_ok=True)
        return taken

    def _differs_in_data_alone(self, made: Mapping[str, Any], unit: Unit) -> bool:
        """Tell whether a finished unit is of today's settings and of today's units, whatever scenes there are."""
        upstream = {needed.key: self.fingerprint(needed) for needed in unit.upstream}
        read = made.get("read") == self._reading(unit)["read"]
        return read and upstream == made.get("upstream") and _settings(made.get("facts", {})) == _settings(unit.facts)

    def _lock(self, unit: Unit, watch: bool = True) -> contextlib.AbstractContextManager[Held]:
        """Return the lease of a unit, for the time of a block; ArtifactError where another process has it."""
        return lease.hold(self.root / ".locks" / (unit.key.replace("/", "__") + ".lease"), unit.key, watch)


def _aside(final: Path) -> Path:
    """Return the name under which an older unit waits until the newer one has taken its place."""
    return final.with_name(final.name + ".old")


def _remove(path: Path) -> None:
    """Remove a folder, or whatever stands in its place; of a symbolic link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _origin(unit: Unit) -> str:
    """Return a digest of all data that a unit was made from, for when it is no longer there; "" where not known.

    Without those of stage 01, which sees more than what later stages read.
    """
    return digest([unit.data, *map(_origin, unit.upstream)]) if unit.upstream and unit.data else ""


def _settings(facts: Mapping[str, Any]) -> str:
    """Return a digest of facts but for lists of scenes."""
    return digest({key: value for key, value in facts.items() if not isinstance(value, list | tuple)})


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the disk cannot; one that is not there is left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError):
        pass
    except OSError:
        shutil.copyfile(source, target)


def _sealing(final: Path) -> list[Path]:
    """Return the folders that ``_publish`` moved from the partial one, each under a name of its owner."""
    return list(final.parent.glob(f"{glob.escape(final.name)}.{'[0-9a-f]' * 16}.partial"))


def _publish(partial: Path, final: Path, held: Held, seal: Callable[[Path], None] = lambda folder: None) -> None:
    """Seal the folder ``partial`` and give it the name ``final``; an older unit is moved aside first and removed last.

    It is sealed under a name that only this owner has, so that of two owners one gets through (``lib/run/lease.py``).
    On an error it is the partial folder again.
    """
    own, old = final.with_name(f"{final.name}.{held.token}.partial"), _aside(final)
    held.check()
    os.rename(partial, own)
    try:
        held.check()
        seal(own)
        for name in SCAFFOLD:
            (own / name).unlink(missing_ok=True)
        _remove(old)
        held.check()
        if os.path.lexists(final):
            os.replace(final, old)
        held.check()
        os.replace(own, final)
    except BaseException:
        for there, back in ((own, partial), (old, final)):
            with contextlib.suppress(OSError):
                if not os.path.lexists(back):
                    os.rename(there, back)
        raise
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _remove(old)
