"""One pass over the files of all scenes, shared by the cores: what stage 01 has to know of each is told in one go.

While the bytes of a scene's files are at hand, its images are decoded once, inspected, hashed for look-alikes and given
to the network that compares them, and its files are hashed for the index. Labels come before, since which scenes there
are depends on them, and how some competitions read an image depends on all labels.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lib.competitions.contract import Competition, Finding, Scene
from lib.errors import DataError
from lib.files import Inode, inode, know_sums, sum_of
from lib.run import cores
from lib.run.clock import Clock
from lib.scenes import pairs, raster
from lib.scenes.identical import files_of

if TYPE_CHECKING:  # imported where they are used: torch takes seconds
    from lib.run.executor import Pool
    from lib.scenes.embed import Embedder

AT_ONCE = 4
"""Scenes that a process is given at a time."""


class Look(NamedTuple):
    """What a scene looks like: hashes of the frames that stand for it, and their vectors where they were wanted."""

    hashes: list[int]
    vectors: np.ndarray | None


@dataclass(frozen=True)
class Surveyed:
    """What one process has told of a scene's files."""

    findings: list[Finding] | None
    look: Look | None
    sums: Mapping[Inode, str]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a scene; ``look``: how it looks, ``features``: to a network, too; ``sums``: of its files."""

    findings: bool = False
    look: bool = False
    features: bool = False
    sums: bool = False


class Survey:
    """What was told of the scenes of a competition, each once; ``workers``: ``data.workers``.

    Its processes begin when they are first needed, and go on until it is closed.
    """

    def __init__(self, competition: Competition, workers: int | None = 1):
        self.competition, self.workers, self.clock = competition, workers, Clock()
        self._looks: dict[tuple[str, str], Look] = {}
        self._pool: Pool | None = None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def read_labels(self) -> None:
        """Read the facts that are not known yet; ``Competition.scenes`` finds them then."""
        scenes = self.competition.unknown()
        for some in self._share("read labels", read_labels, [(scene,) for scene in scenes]):
            for scene, state, facts in some:
                self.competition.learn(scene, state, facts)

    def see(self, features: bool, sums: bool = False) -> None:
        """Inspect all listed scenes and see how they look, labelled ones with ``features``; ``sums``: hash files."""
        calls = [
            (scene, split, Wanted(True, True, features and split == "train", sums))
            for scene, split in self.competition.to_inspect()
            if (split, self.competition.key(scene)) not in self.competition.findings
        ]
        self._see("data check", calls)

    def looks(self, split: str, scenes: Sequence[Scene], features: bool) -> list[Look]:
        """Return how scenes look; those that were not seen before are seen now."""
        keys = [(split, self.competition.key(scene)) for scene in scenes]
        known = [key in self._looks and not (features and self._looks[key].vectors is None) for key in keys]
        new = [(scene, split, Wanted(look=True, features=features)) for scene, there in zip(scenes, known) if not there]
        self._see("audit", new)
        return [self._looks[key] for key in keys]

    def _see(self, title: str, calls: Sequence[tuple[Scene, str, Wanted]]) -> None:
        for some in self._share(title, see, calls):
            for scene, split, seen in some:
                key = split, self.competition.key(scene)
                if seen.look is not None:
                    self._looks[key] = seen.look
                if seen.findings is not None:
                    self.competition.findings[key] = seen.findings
                know_sums(seen.sums)

    def _share(self, title: str, function: Any, calls: Sequence[tuple]) -> Iterator[Any]:
        if not calls:
            return
        some = [(calls[start : start + AT_ONCE],) for start in range(0, len(calls), AT_ONCE)]
        self._pool = self._pool or cores.open_pool(self.workers, len(calls))
        with (
            closing(cores.share(self._pool, self.competition, timed, [(function, *one) for one in some])) as answers,
            tqdm(total=len(calls), desc=title, leave=False, disable=None) as bar,
        ):
            for found, seconds in answers:
                self.clock.add("read", seconds)
                yield found
                bar.update(len(found))


# ---- in a worker --------------------------------------------------------------------------------------
def timed(competition: Competition, function: Callable, calls: Sequence[tuple]) -> tuple[list, float]:
    """Return what a function tells of some scenes, and the seconds that it took."""
    started = time.perf_counter()
    return function(competition, calls), time.perf_counter() - started


def read_labels(competition: Competition, calls: Sequence[tuple[Scene]]) -> list[tuple[Scene, list[Any], Any]]:
    """Return scene, state of its files and facts of some scenes."""
    found = []
    for (scene,) in calls:
        with raster.kept():
            found.append((scene, *competition.told(scene)))
    return found


def see(competition: Competition, calls: Sequence[tuple[Scene, str, Wanted]]) -> list[tuple[Scene, str, Surveyed]]:
    """Return scene, split and what was wanted of some scenes."""
    return [(scene, split, _seen(competition, scene, split, wanted)) for scene, split, wanted in calls]


def _seen(competition: Competition, scene: Scene, split: str, wanted: Wanted) -> Surveyed:
    with raster.kept():
        findings = competition.inspect_scene(scene, split) if wanted.findings else None
        look = None
        if wanted.look:
            frames = frames_of(competition, scene)
            embedder = _embedder() if wanted.features else None
            look = Look([pairs.perceptual_hash(frame) for frame in frames], _vectors(embedder, frames))
    sums: dict[Inode, str] = {}
    for path in scene.files.values() if wanted.sums else ():
        with suppress(OSError):  # whoever reads it says so
            sums |= {inode(file): sum_of(file) for file in files_of(Path(path))}
    return Surveyed(findings, look, sums)


def frames_of(competition: Competition, scene: Scene) -> list[np.ndarray]:
    """Return what stands for a scene: its first image, or three of its frames; none where it cannot be read."""
    try:
        return pairs.frames(competition.read(scene, competition.images[0]))
    except DataError:  # the data check names it
        return []


@cache
def _embedder() -> "Embedder | None":
    from lib.scenes import embed

    return embed.load()[0]


def _vectors(embedder: "Embedder | None", frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the vectors of frames; with one thread, since sums of convolutions on a CPU depend on their number."""
    if embedder is None:
        return None
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return embedder(frames)
    finally:
        torch.set_num_threads(before)
