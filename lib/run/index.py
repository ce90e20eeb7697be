"""The index of the data: scene -> files -> size, time, SHA-256, so that a change is noticed when a stage begins.

Stage 01 writes it. Later stages compare sizes and times, hash again only the files in which one of them differs, and
remember what they found beside the results: a folder that was moved or touched changes nothing.
"""

import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.competitions.contract import SPLITS, Competition, Scene
from lib.files import digest, read_json, sum_of, time_of, write_json
from lib.scenes import raster

INDEX = "index.json"
"""In the unit of stage 01."""
MEMORY = ".data.json"
"""In an experiment's folder: sizes, times and sums of files that differ from the index in size or time."""

Entry = list[Any]
"""Size in bytes, time of the last change in nanoseconds, SHA-256."""


@dataclass(frozen=True)
class DataState:
    """Digests of what the files of all scenes hold today, from which units take the part that they read."""

    scenes: Mapping[str, Mapping[str, Mapping[str, str]]]
    """Split -> id -> role of a file -> digest; "" is the role of what the listing says (domain, group, pixel size), and
    of the files that all images are read with."""
    tables: Mapping[str, str]
    """Further files that labels or all images are read with (tables of labels or of boxes) -> digest."""
    images: frozenset[str]
    """Roles that are images."""
    sample: str = ""
    """Digest of the sample submission, "" without one."""
    _known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def everything(self) -> Mapping[str, str]:
        """What stage 01 reads: all of the labelled scenes; of test scenes it must know which files there are."""
        there = {f"test scene {i}": digest(sorted(roles)) for i, roles in self.scenes["test"].items()}
        return {**self.tables, **self.by_scene("train", self.images), **there}

    def by_scene(self, split: str, images: Collection[str], labels: bool = True) -> Mapping[str, str]:
        """Return id -> digest of a scene's ``images`` and, where wanted, of all its files that are no images.

        Images that are no roles of files (frames of a video) are in all its files.
        """
        key = split, tuple(sorted(images)), labels
        if key not in self._known:
            dropped = self.images - set(images) if self.images >= set(images) else set()
            self._known[key] = {
                i: digest({role: one for role, one in roles.items()
                           if role not in dropped and (labels or not role or role in self.images)})
                for i, roles in self.scenes[split].items()
            }  # fmt: skip
        return self._known[key]

    def whole(self, split: str, images: Collection[str], labels: bool = True) -> str:
        """Return one digest of what ``by_scene`` returns, and of the tables."""
        key = "whole", split, tuple(sorted(images)), labels
        if key not in self._known:
            self._known[key] = digest([self.by_scene(split, images, labels), self.tables])
        return self._known[key]


class Index:
    """The files of all scenes, as they lie there now."""

    def __init__(self, competition: Competition, scenes: Mapping[str, Sequence[Scene]], known: Mapping[str, Entry]):
        """``known``: file -> entry of earlier; of these, what has the same size and time is not hashed again."""
        self.root, self._competition, self._scenes = Path(os.path.abspath(competition.root)), competition, scenes
        self.known = dict(known)
        self.files: dict[str, Entry] = {}
        """File -> entry. Paths are relative to ``data.root`` where they are below it."""

    @cached_property
    def roles(self) -> dict[str, dict[str, dict[str, list[str]]]]:
        """Split -> id -> role -> its files; a role may be a folder of them."""
        return {split: {scene.id: {role: self._inside(path) for role, path in scene.files.items()}
                        for scene in self._scenes[split]} for split in SPLITS}  # fmt: skip

    @cached_property
    def tables(self) -> list[str]:
        """Further files that labels or images are read with: tables that scenes share, what a kernel must carry."""
        found = dict.fromkeys(self._competition.carried.values())
        for scene in self._scenes["train"]:
            own = set(scene.files.values())
            found |= dict.fromkeys(path for path in self._competition.fact_files(scene) if path not in own)
        return [self._name(path) for path in found if path.is_file()]

    def _name(self, path: Path) -> str:
        text, root = str(path), f"{self._competition.root}{os.sep}"
        if not text.startswith(root):
            text, root = os.path.abspath(path), f"{self.root}{os.sep}"
        return text.removeprefix(root).replace(os.sep, "/")

    def _inside(self, path: Path) -> list[str]:
        try:
            return [self._name(path / name) for name in sorted(os.listdir(path)) if (path / name).is_file()]
        except OSError:  # a file, or nothing
            return [self._name(file) for file in (path, *raster.with_image(path))]

    def look(self, by_time: bool = False) -> "Index":
        """Stat all files, hash those that are not known; ``by_time``: size and time of a file stand for its bytes."""
        names = dict.fromkeys(name for roles in self.roles.values() for files in roles.values()
                              for inside in files.values() for name in inside)  # fmt: skip
        sample = [self._name(self._competition.sample)] if self._competition.sample else []
        new = {}
        for name in [*names, *self.tables, *sample]:
            try:
                there = os.stat(os.path.join(self.root, name))
            except OSError:  # named in a list, and not there; whoever reads it says so
                self.files[name] = [None, None, "missing"]
                continue
            if not stat.S_ISREG(there.st_mode):  # a pipe has no end; whoever reads it says so
                self.files[name] = [None, None, "no file"]
                continue
            entry = self.known.get(name, [])
            state = [there.st_size, time_of(there)]
            if entry[:2] == state:
                self.files[name] = entry
            else:
                new[name] = state
        if by_time:
            self.files |= {name: [*state, f"{state[0]} bytes of {state[1]}"] for name, state in new.items()}
            return self
        with ThreadPoolExecutor(max_workers=2) as pool:
            sums = pool.map(lambda name: _sum(self.root / name), new)
            for (name, state), found in zip(new.items(), tqdm(sums, "data index", len(new), leave=False, disable=None)):
                self.files[name] = [*state, found]
        return self

    @cached_property
    def data(self) -> DataState:
        """What units take their part of."""
        scenes: dict[str, dict[str, dict[str, str]]] = {split: {} for split in SPLITS}
        images = frozenset(self._competition.files)
        carried = {name: self._digest([name]) for name in map(self._name, self._competition.carried.values())}
        placed = not set(self.tables) - carried.keys()  # no table tells labels: where no file does, folders do
        for split in SPLITS:
            for scene in self._scenes[split]:
                roles = self.roles[split][scene.id]
                said = repr([scene.domain, scene.group, scene.pixel_size, carried])
                if split == "train" and placed and images >= roles.keys():
                    said += repr([os.path.dirname(name) for names in roles.values() for name in names])
                files = {role: self._digest(names) for role, names in roles.items()}
                scenes[split][scene.id] = {"": said, **files}
        sample = self._competition.sample
        tables = {name: self._digest([name]) for name in self.tables}
        return DataState(scenes, tables, images, self._digest([self._name(sample)]) if sample else "")

    def _digest(self, names: Iterable[str]) -> str:
        """Return what stands for the bytes of files: the sum of one, of several a digest with their names."""
        sums = [(name.rpartition("/")[2], self.files.get(name, ["missing"])[-1]) for name in names]
        return sums[0][1] if len(sums) == 1 else digest(sums)

    def write(self, folder: Path) -> None:
        """Write index.json into a folder."""
        write_json(folder / INDEX, {"scenes": self.roles, "tables": self.tables,
                                    "files": dict(sorted(self.files.items()))})  # fmt: skip


def _sum(path: Path) -> str:
    try:
        return sum_of(path)
    except OSError as error:  # stage 01 names it
        return f"unreadable: {error.strerror}"


def known_files(folder: Path, root: Path) -> dict[str, Entry] | None:
    """Return file -> entry of the index in a folder of stage 01 and of what was remembered since; None without one."""
    index = _read(folder / INDEX)
    return None if index is None else {**_entries(index.get("files")), **_entries(_read(root / MEMORY))}


def remember(root: Path, index: Index) -> None:
    """Write down in an experiment's folder what had to be hashed, so that it need not be the next time."""
    there = {name: entry for name, entry in index.files.items() if entry[0] is not None}
    new = {name: entry for name, entry in there.items() if entry != index.known.get(name)}
    if new:
        with suppress(OSError):  # where nothing can be written, it is hashed again
            root.mkdir(parents=True, exist_ok=True)
            write_json(root / MEMORY, {**_entries(_read(root / MEMORY)), **new})


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) else None
    return None


def _entries(found: Any) -> dict[str, Entry]:
    """Return the entries of files in what was read; what is none is left out, and its file is hashed again."""
    return {name: entry for name, entry in found.items() if isinstance(entry, list)} if isinstance(found, dict) else {}


def current(root: Path, folds: Path, competition: Competition, scenes: Mapping[str, Sequence[Scene]],
            first: bool = False) -> Index | None:  # fmt: skip
    """Return today's index; None where there is none of stage 01 to compare with, unless this is the ``first``.

    root: the experiment's folder. folds: that of stage 01; where it lies elsewhere (``--inputs``), it is of other test
    scenes, nothing is hashed, and the time of a file stands for its bytes.
    """
    known = known_files(folds, root)
    if folds.is_relative_to(root):
        if known is None and not first:
            return None
        index = Index(competition, scenes, known or _entries(_read(root / MEMORY))).look()
        remember(root, index)
        return index
    return Index(competition, scenes, {}).look(by_time=True)
