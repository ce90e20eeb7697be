"""Which scenes have files of the same bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path


def same_bytes(scenes: Sequence, roles: Sequence[str]) -> list[list[str]]:
    """Return the ids, in order, of each set of scenes that have a file, or a folder of files, with the same bytes.

    Only what has the size of another is read.
    """
    found: dict[tuple[tuple[int, int], str], list[str]] = {}
    for size, places in by_size(scenes, roles).items():
        for scene_id, path in places if len(places) > 1 else ():
            found.setdefault((size, digest(path)), []).append(scene_id)
    return [ids for ids in found.values() if len(ids) > 1]


def by_size(scenes: Sequence, roles: Sequence[str]) -> dict[tuple[int, int], list[tuple[str, Path]]]:
    """Return (how many files, how many bytes) -> (scene id, its file or folder), without empty and missing ones."""
    found: dict[tuple[int, int], list[tuple[str, Path]]] = {}
    for scene in scenes:
        for path in (scene.files[role] for role in roles if role in scene.files):
            files = _files(path)
            if size := sum(file.stat().st_size for file in files):
                found.setdefault((len(files), size), []).append((scene.id, path))
    return found


def _files(path: Path) -> list[Path]:
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in inside if file.is_file() and not file.name.startswith(".")]


def digest(path: Path) -> str:
    """Return the hash of a file's bytes, or of those of a folder's files in the order of their names."""
    found = hashlib.sha256()
    for file in _files(path):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()
