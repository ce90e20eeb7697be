"""Which scenes have files of the same bytes."""

from collections.abc import Sequence
from pathlib import Path

from lib.files import sum_of


def same_bytes(scenes: Sequence, roles: Sequence[str]) -> list[list[str]]:
    """Return the ids, in order, of each set of scenes that have a file, or a folder of files, with the same bytes.

    Only what has the size of another is read.
    """
    found: dict[tuple[tuple[int, int], Sums], list[str]] = {}
    for size, places in by_size(scenes, roles).items():
        for scene_id, path in places if len(places) > 1 else ():
            found.setdefault((size, sums_of(path)), []).append(scene_id)
    return [ids for ids in found.values() if len(ids) > 1]


Sums = tuple[str, ...]
"""SHA-256 of a file, or of each file of a folder."""


def sums_of(path: Path) -> Sums:
    """Return what tells the bytes of a file or folder; a file that this process has hashed is not read again."""
    return tuple(map(sum_of, files_of(path)))


def by_size(scenes: Sequence, roles: Sequence[str]) -> dict[tuple[int, int], list[tuple[str, Path]]]:
    """Return (how many files, how many bytes) -> (scene id, its file or folder), without empty and missing ones."""
    found: dict[tuple[int, int], list[tuple[str, Path]]] = {}
    for scene in scenes:
        for path in (scene.files[role] for role in roles if role in scene.files):
            files = files_of(path)
            if size := sum(file.stat().st_size for file in files):
                found.setdefault((len(files), size), []).append((scene.id, path))
    return found


def files_of(path: Path) -> list[Path]:
    """Return a file, or the files of a folder that are not hidden, sorted."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in inside if file.is_file() and not file.name.startswith(".")]
