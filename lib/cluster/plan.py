"""Which commands make the units of an experiment, what each waits for, and whether the disk has what it makes."""

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lib.config.sections import Asks, UnitKind
from lib.files import digest
from lib.run.artifacts import Unit
from lib.run.cli import Run
from lib.run.graph import FOLDS, LOGITS, pseudo_folders, teacher_folders
from lib.run.manifest import MANIFEST

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[str, UnitKind] = {"01": "folds", "02": "train", "03": "train", "04": "predict", "05": "ensemble",
                              "06": "submission"}  # fmt: skip
"""Stage -> the name under which ``cluster.asks`` has what its units ask for."""


@dataclass(frozen=True)
class StageJob:
    """One command and the units that it makes."""

    name: str
    """The key of its first unit."""
    command: tuple[str, ...]
    """Script and flags."""
    units: tuple[Unit, ...] = ()
    needs: frozenset[str] = frozenset()
    """Names of the jobs whose units it reads; one that is no part of the run has been run before."""
    after: frozenset[str] = frozenset()
    """Names of jobs that write where it writes: it starts when they have ended, well or not."""
    scenes: int = 0
    """Scenes of which it writes files."""
    asks: Asks = field(default_factory=Asks, hash=False)
    experiment: str = ""
    """Its experiment where a run has several, which its name then begins with."""

    @property
    def title(self) -> str:
        """Return what it makes, for a person."""
        place = f"{self.experiment}/" if self.experiment else ""
        return " + ".join(f"{place}{unit.key}" for unit in self.units) or self.name

    @property
    def stage(self) -> str:
        """Return the two digits of its script."""
        return Path(self.command[0]).name[:2]

    @property
    def parts(self) -> bool:
        """Whether other workers may help with its scenes."""
        return self.stage == "04" and len(self.units) == 1

    @property
    def counts(self) -> bool:
        """Whether it counts scenes, which its command gives to free workers by itself."""
        return any(unit.name == "decode" for unit in self.units)


class JobPlan:
    """The jobs of one run of an experiment, and what the disk says of them."""

    def __init__(self, open_run: Callable[[], Run], stages: Collection[str] = tuple(KINDS)):
        """open_run: looks at experiment, data and disk anew."""
        self.open_run, self.stages = open_run, stages
        self.look()

    def look(self, job: StageJob | None = None) -> None:
        """Look at experiment, data and disk; anew where a job of stage 01 has ended. Raises what opening a run does."""
        self.run = self.open_run()
        self.jobs = {one.name: one for one in jobs(self.run) if one.stage in self.stages}

    def done(self, job: StageJob, before: bool = False) -> bool:
        """Tell whether all units of a job are finished on the disk.

        before: the job has not run yet; scenes that have the fallback of stage 04 are reason enough to run it.
        """
        store = self.run.store
        for unit in job.units:
            status = store.status(unit)
            if status not in ("done", "frozen"):
                return False
            if before and status == "done" and store.manifest(unit).get("failed"):
                return False
        return True

    def needs(self, job: StageJob) -> tuple[str, ...]:
        """Return the files that a worker must see before it starts a job: the manifests of what the job reads.

        Each stage begins with a look at what the experiment learns from.
        """
        own = {unit.key for unit in job.units}
        read = {needed.key: needed for unit in job.units for needed in unit.upstream if needed.key not in own}
        folders = [self.run.store.folder(unit) for unit in read.values()]
        workdir, config = self.run.store.root.parent, self.run.config
        learnt = [folder for model in config.models.values() for fold in config.folds_of(model)
                  for folder in (*teacher_folders(workdir, model, fold), *pseudo_folders(workdir, model, fold))
                  if folder.is_dir()]  # fmt: skip
        return tuple(str(folder.absolute() / MANIFEST) for folder in dict.fromkeys(folders + learnt))

    def mark(self, job: StageJob) -> str:
        """Return a digest of what a job makes, the same in every process that wants it made."""
        units = [self.run.store.fingerprint(unit) for unit in job.units]
        return digest([str(self.run.store.root.absolute()), job.command, units])

    def written(self, job: StageJob) -> int:
        """Return how many scenes of a job are there, of one that is being built too."""
        found = 0
        for unit in job.units if job.scenes else ():
            folder = self.run.store.root / unit.key
            partial = self.run.store.partial(unit)
            names = {path.name for path in (partial if partial.is_dir() else folder).rglob("*.tif")}
            found += len(names)
        return min(found, job.scenes)

    def begun(self, job: StageJob) -> bool:
        """Tell whether another process builds the unit of a job at present, or has begun to."""
        return all(self.run.store.partial(unit).is_dir() for unit in job.units)

    def seconds(self, job: StageJob) -> float | None:
        """Return how long the units of a finished job took, None where the disk does not say."""
        said = [self.run.store.manifest(unit).get("seconds") for unit in job.units if self.done(job)]
        known = [float(one) for one in said if one is not None]
        return sum(known) if known else None


def jobs(run: Run) -> Iterator[StageJob]:
    """Yield the jobs of all six stages, each after those that it needs."""
    graph, config = run.graph, run.config
    splits = [split for split in run.splits if run.has_split(split)]
    pairs = [(name, fold) for name, model in graph.models().items() for fold in config.folds_of(model)]
    sizes = _sizes(run)
    units: list[tuple[Unit, int]] = [(graph.folds(), 0)]
    units += [(graph.checkpoint(name, fold), 0) for name, fold in pairs]
    units += [(graph.probs(name, fold, split), sizes[split if split == "test" else fold])
              for name, fold in pairs for split in splits]  # fmt: skip
    if config.predict.logits:
        units += [(graph.logits(name, fold), len(graph.train_ids) - sizes[fold]) for name, fold in pairs]
    units += [(graph.decode(), 0)] if "oof" in splits else []
    units += [(graph.blend(split), sizes["test"] if split == "test" else len(graph.train_ids)) for split in splits]
    units += [(graph.submission(split), 0) for split in splits]
    by_command: dict[str, list[tuple[Unit, int]]] = {}
    for unit, scenes in units:
        by_command.setdefault(unit.command, []).append((unit, scenes))
    maker = {unit.key: made[0][0].key for made in by_command.values() for unit, _ in made}
    written: list[StageJob] = []
    for command, made in by_command.items():
        own = tuple(unit for unit, _ in made)
        name, words = own[0].key, tuple(shlex.split(command)[1:])
        needs = {maker[needed.key] for unit in own for needed in unit.upstream if needed.key in maker}
        if own[0].name == LOGITS:  # its command looks after the splits of its checkpoint too
            place = name.removesuffix(LOGITS)
            needs |= {other for other in maker.values() if other.startswith(place) and other != name}
        kind = KINDS[words[0][:2]]
        if name == FOLDS and run.strict:
            words += ("--strict",)
        last = frozenset(job.name for job in written if job.stage == "06" == words[0][:2])  # both write the report
        job = StageJob(name, words, own, frozenset(needs - {name}), last, sum(count for _, count in made),
                  config.cluster.asks.get(kind, Asks()))  # fmt: skip
        written.append(job)
        yield job


def _sizes(run: Run) -> Counter:
    """Return fold, and "test", -> how many scenes it has; those of folds where stage 01 has told them."""
    sizes: Counter = Counter(test=len(run.graph.test_ids))
    if run.store.status(run.graph.folds()) in ("done", "frozen"):
        sizes.update(run.folds()["fold"].tolist())
    return sizes
