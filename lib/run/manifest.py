"""What a finished unit says of itself: its manifest, written last, and the files whose bytes it vouches for.

A manifest holds the size, the time and the SHA-256 of every file. A file is hashed before it is used, once per process.
Manifests of earlier versions hold sizes alone; their files are checked by size until ``Store.adopt`` records the rest.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lib.errors import ArtifactError
from lib.files import digest, sha256, write_json

MANIFEST = "manifest.json"
SMALL = 1 << 26
"""Bytes of a unit that are hashed whenever it is looked at; of a larger one only files whose time has changed are."""

_sums: dict[tuple[int, ...], str] = {}
_manifests: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}


def read_json(path: Path) -> Any:
    """Read a JSON file; ArtifactError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: missing") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not valid JSON ({error}); delete its folder and rerun the stage") from error


def _state(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


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
        found = read_json(path)
        parts = {"files": dict, "sha256": dict, "mtime_ns": dict, "data": dict, "read": dict, "failed": dict}
        whole = isinstance(found, dict) and {"fingerprint", "files"} <= found.keys()
        whole = whole and all(isinstance(found.get(key, kind()), kind) for key, kind in parts.items())
        if not whole or not all(isinstance(size, int) for size in found["files"].values()):
            raise ArtifactError(f"{path}: expected a manifest, found other JSON; delete its folder and rerun the stage")
        _manifests[path] = state, found
    return _manifests[path][1]


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
    paths.pop(MANIFEST, None)
    sums = {name: sum_of(path) for name, path in paths.items()}
    stats = {name: path.stat() for name, path in paths.items()}
    write_json(folder / MANIFEST, {
        **entries,
        "content": digest({name: found for name, found in sums.items() if name not in beside}),
        "files": {name: stat.st_size for name, stat in stats.items()},
        "mtime_ns": {name: stat.st_mtime_ns for name, stat in stats.items()},
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
    times, small = manifest.get("mtime_ns", {}), sum(manifest["files"].values()) <= SMALL
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{path}: deleted"
        stat = path.stat()
        if stat.st_size != size:
            return f"{path}: expected {size} bytes, got {stat.st_size}"
        if (small or stat.st_mtime_ns != times.get(name)) and (other := _other_bytes(path, name, manifest)):
            return other
    return ""


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
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*")
             if path.is_file() and not path.name.startswith("."))  # fmt: skip
    return sorted(name for name in names if name != MANIFEST and name not in manifest["files"])


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
