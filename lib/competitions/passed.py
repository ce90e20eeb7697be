"""What lies below the data's root and is in no scene: pictures, videos, and other files beside those that are used.

A suffix that is not read, a folder of another name and a picture without a list cost a scene each, so all of them are
findings. Hidden files, and folders of results, are not looked at.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from lib.competitions.suffixes import OTHER_PICTURES, OTHER_VIDEOS, PICTURES, VIDEOS

READ = (*PICTURES, *VIDEOS)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
RESULTS = "01_folds"
"""What the name of a folder in a folder of results begins with."""
MANY = 5
"""Of more folders than this no one is named in the kind of a finding."""


def passed_over(root: Path, used: Iterable[Path], known: Collection[str] = ()) -> list[tuple[str, str, str]]:
    """Return what is in no scene as (what it is, path below ``root``, its folder), sorted by folder and name.

    ``used``: files, and folders with all that is in them. ``known``: names of folders that hold no scenes, and of which
    nothing is said.
    """
    root, paths = Path(root), {place(path) for path in used for place in (os.path.abspath, os.path.realpath)}
    folders = {os.path.dirname(path) for path in paths if _kind(path) in READ or os.path.isdir(path)}
    read: dict[str, list[str]] = {}  # folder -> pictures and videos whose suffix is read
    rest: list[tuple[str, str, str]] = []
    for folder, names in _walk(root, paths, known):
        here = os.path.relpath(folder, root)
        for name in names:
            suffix = _kind(name)
            if suffix in READ:
                read.setdefault(here, []).append(name)
            elif suffix in (*OTHER_PICTURES, *OTHER_VIDEOS):
                rest.append((f"file of a suffix that is not read ({suffix})", _below(here, name), here))
            elif folder in folders:
                rest.append(("file beside pictures or videos that is none", _below(here, name), here))
    apart = len(read) <= MANY
    found = [(f"file in {here} that no scene uses" if apart else "file that no scene uses", _below(here, name), here)
             for here, names in read.items() for name in names]  # fmt: skip
    return found + rest


def archives(root: Path, folders: Collection[str]) -> list[str]:
    """Return the archives in ``root`` whose name begins like one of ``folders`` and that were not unpacked there."""
    names = sorted(path.name for path in Path(root).iterdir() if _kind(path.name) in ARCHIVES)
    return [name for name in names if name.lower().startswith(tuple(folders))
            and not (Path(root) / name.split(".")[0]).is_dir()]  # fmt: skip


def _walk(root: Path, used: Collection[str], known: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with the names of its files that are neither used nor hidden, sorted; links are followed."""
    seen: set[str] = set()
    for folder, inside, names in os.walk(os.path.abspath(root), followlinks=True):
        place = os.path.realpath(folder)
        if place in seen or any(name.startswith(RESULTS) for name in inside):
            inside.clear()
            continue
        seen.add(place)
        inside[:] = sorted(name for name in inside if not name.startswith((".", "__MACOSX")) and name not in known
                           and os.path.join(folder, name) not in used)  # fmt: skip
        yield folder, [name for name in sorted(names)
                       if not name.startswith(".") and os.path.join(folder, name) not in used]  # fmt: skip


def _kind(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _below(folder: str, name: str) -> str:
    return name if folder == os.curdir else f"{folder}/{name}"
