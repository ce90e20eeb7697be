"""What a finished unit says of itself: its manifest, written last, and the files whose bytes it vouches for.

A manifest holds the size, the time and the SHA-256 of every file. A file is hashed before it is used, once per process.
Manifests of earlier versions hold sizes alone; their files are checked by size until ``Store.adopt`` records the rest.
"""

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lib import files
from lib.errors import ArtifactError
from lib.files import digest, sha256, time_of, write_json
from lib.run import faults

MANIFEST = "manifest.json"
BEGUN = "unit.json"
"""In a folder that is being built: what it is to become."""
STATE = "last.pt"
"""In a folder that is being built: where its training stands."""
SCAFFOLD = (BEGUN, STATE)
"""What a finished unit no longer needs; it goes when the manifest is written and no kill can lose anything."""
PARTS = ("sha256", "times", "data", "read", "origin", "failed", "facts", "upstream")
"""Objects in a manifest, beside ``files``."""
SMALL = 1 << 26
"""Bytes of a unit that are hashed whenever it is looked at; of a larger one only files whose time has changed are."""

_sums: dict[tuple[int, ...], str] = {}
_manifests: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}


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


def _state(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file; this process reads a file again only when it was touched since."""
    state = _state(path)
    if state not in _sums:
        _sums[state] = sha256(path)
    return _sums[state]


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a unit's folder, which the caller must not change. ArtifactError where it is none."""
    path = folder / MANIFEST
    try:
        state = _state(path)
    except OSError as error:
        raise ArtifactError(f"{path}: missing") from error
    if path not in _manifests or _manifests[path][0] != state:
        found = read_object(path, fingerprint=str, files=dict)
        odd = [key for key in PARTS if not isinstance(found.get(key, {}), dict)]
        if not odd and found.get("sha256") and not _vouches(found["sha256"], found["files"]):
            odd = ["sha256: expected the sum of each file"]
        if odd or not all(isinstance(size, int) for size in found["files"].values()):
            raise ArtifactError(f"{path}: damaged ({', '.join(odd) or 'files: expected sizes'}); delete its folder and "
                                "rerun the stage")  # fmt: skip
        _manifests[path] = state, found
    return _manifests[path][1]


def _vouches(sums: Mapping[str, Any], listed: Collection[str]) -> bool:
    """Tell whether there is a sum of each file that is listed; a file without one would be used unchecked."""
    return sums.keys() == set(listed) and all(isinstance(one, str) for one in sums.values())


def made(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a unit's folder, None where there is none that can be read."""
    try:
        return read(folder)
    except ArtifactError:
        return None


def write(folder: Path, entries: Mapping[str, Any], beside: Collection[str] = ()) -> None:
    """Write the manifest of a folder: ``entries``, and of each file its size, time and sum.

    ``content`` stands for the bytes of all files but those ``beside`` (logs), on which nothing is built.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for name in (MANIFEST, *SCAFFOLD):
        paths.pop(name, None)
    sums = {name: sum_of(path) for name, path in paths.items()}
    states = {name: path.stat() for name, path in paths.items()}
    write_json(folder / MANIFEST, {
        **entries,
        "content": digest({name: found for name, found in sums.items() if name not in beside}),
        "files": {name: state.st_size for name, state in states.items()},
        "times": {name: time_of(state) for name, state in states.items()},
        "sha256": sums,
    })  # fmt: skip


def content(manifest: Mapping[str, Any]) -> str:
    """Return what stands for the bytes of a unit; its fingerprint where an earlier version recorded no sums."""
    return manifest.get("content") or f"fingerprint {manifest['fingerprint']}"


def reads(manifest: Mapping[str, Any], key: str, upstream: Mapping[str, Any]) -> bool:
    """Tell whether a unit was made from the bytes that its ``upstream`` unit ``key`` holds now, as far as is known."""
    recorded = manifest.get("read", {}).get(key)
    if recorded is None:
        return True
    return recorded in (content(upstream), f"fingerprint {upstream['fingerprint']}")


# ---- damage -------------------------------------------------------------------------------------------
def fault(folder: Path) -> str:
    """Say what is wrong with a finished unit (a file gone, of another size or other bytes), or nothing."""
    manifest = made(folder)
    if manifest is None:
        return f"{folder / MANIFEST}: missing or broken"
    times, small = manifest.get("times", {}), sum(manifest["files"].values()) <= SMALL
    for name, size in manifest["files"].items():
        state = _stat(folder, name)
        if state is None:
            return f"{folder / name}: deleted"
        if state.st_size != size:
            return f"{folder / name}: expected {size} bytes, got {state.st_size}"
        if (small or time_of(state) != times.get(name)) and (other := _other_bytes(folder / name, name, manifest)):
            return other
    return ""


def _stat(folder: Path, name: str) -> os.stat_result | None:
    """Return what the disk says of a file, None where there is none."""
    try:
        found = os.stat(os.path.join(folder, name))
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def times_of(folder: Path) -> dict[str, int]:
    """Return when each file of a unit was last changed."""
    found = {name: _stat(folder, name) for name in read(folder)["files"]}
    return {name: time_of(state) for name, state in found.items() if state is not None}


def retime(folder: Path) -> None:
    """Record the times of a unit that is as it was written, so that a copy of it is not hashed again each time."""
    write_json(folder / MANIFEST, {**read(folder), "times": times_of(folder)})


def _other_bytes(path: Path, name: str, manifest: Mapping[str, Any]) -> str:
    wanted = manifest.get("sha256", {}).get(name)
    if wanted is None or (found := sum_of(path)) == wanted:
        return ""
    return f"{path}: its bytes changed after it was written (SHA-256 {found[:8]}…, the manifest has {wanted[:8]}…)"


def strangers(folder: Path) -> list[str]:
    """Return the files in a unit's folder that its manifest does not list, but for hidden ones.

    None are told of where the manifest holds no sums, for that is of an earlier version.
    """
    manifest = made(folder)
    if manifest is None or "sha256" not in manifest:
        return []
    names = {os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/") if place != str(folder) else name
             for place, _, names in os.walk(folder) for name in names if not name.startswith(".")}  # fmt: skip
    return sorted(names - manifest["files"].keys() - {MANIFEST})


def check(path: Path, command: str = "") -> Path:
    """Return a file of a finished unit if its bytes are those of the manifest.

    ArtifactError with the ``command`` that makes it anew if they are not, or if the manifest does not list it.
    """
    folder = next((parent for parent in path.parents if (parent / MANIFEST).is_file()), None)
    if folder is None:
        raise ArtifactError(f"{path}: expected a file of a finished unit, found no {MANIFEST} above it")
    name, manifest = path.relative_to(folder).as_posix(), read(folder)
    again = f"; run: {command}" if command else "; run the stage that made it again"
    if name not in manifest["files"]:
        raise ArtifactError(f"{path}: not among the files that {folder / MANIFEST} lists, so it is not used; remove "
                            f"it, or put back what belongs there{again}")  # fmt: skip
    if not path.is_file():
        raise ArtifactError(f"{path}: deleted{again}")
    if other := _other_bytes(path, name, manifest):
        raise ArtifactError(f"{other}; put back the file as it was{again if fault(folder) else again + ' --force'}")
    return path
