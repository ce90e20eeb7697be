"""Carry a plan out: measure what things cost here, then predict fold by fold, with a submission after the first.

``lib/choose/plans.py`` tells how this module, ``lib/kaggle/plan.py`` and stage 05 share the work.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from lib.choose.choice import Decision, Subset
from lib.competitions.contract import Levels, Scene, settings_for
from lib.errors import ArtifactError, PipelineError
from lib.kaggle.plan import Costs, KernelPlan, Timing, reduced
from lib.run.cli import Run, duration, say
from lib.run.executor import Pool
from lib.run.graph import Graph
from lib.scenes.probs import levels_path, read_levels
from lib.stages.predict import predict, told

MEASURED = 3
"""Scenes that are predicted to see what a scene costs, spread over the test set; one more warms up."""


class OutOfTime(PipelineError):
    """The budget is used up while scenes are being predicted."""


@dataclass(frozen=True)
class Budget:
    """Seconds from the kernel's start to its end. ``clock``: seconds since the start."""

    seconds: float
    clock: Callable[[], float]

    def left(self) -> float:
        """Return what is left of it."""
        return self.seconds - self.clock()


def reduced_run(run: Run, subset: Subset, folds: int | None = None) -> Run:
    """Return the run of a reduced experiment on the same data and store."""
    config = reduced(run.config, subset, folds)
    known = run.graph
    graph = Graph(config, known.train_ids, known.test_ids, known.flags, known.teachers, known.tasks)
    graph.data, graph.taught = known.data, known.taught
    return replace(run, config=config, graph=graph)


# ---- measuring ----------------------------------------------------------------------------------------
def measure(run: Run, pool: Pool, folder: Path) -> Costs:
    """Predict a few test scenes with one view and one network of each model, in all workers at the same time.

    The slowest worker counts: they will share memory and processors later, too. What is predicted is decoded, written
    and linted as well, since that takes time. ``folder`` must be new and is removed. ArtifactError where no scene can
    be predicted.
    """
    single, scenes = reduced_run(run, Subset(tuple(run.config.models), "none"), 1), run.competition.scenes("test")
    first = evenly_spaced(scenes, MEASURED)
    candidates = [*first, *(scene for scene in evenly_spaced(scenes, 4 * MEASURED) if scene not in first)]
    timings, folders, known = {}, {}, {scene.id for scene in scenes}
    for name, model in single.config.models.items():
        (fold,) = single.config.folds_of(model)
        found = pool.each("measure", single, name, fold, candidates, MEASURED, folder / name)
        slowest = max(found, key=lambda worker: sum(map(sum, worker.seconds.values())))
        if not slowest.seconds:
            raise ArtifactError(f"{name}: none of {len(candidates)} scenes could be predicted; {told(slowest.failed)}")
        timings[name] = Timing(slowest.load, *(mean(seconds) for seconds in zip(*slowest.seconds.values())))
        folders[name], known = slowest.folder, known & slowest.seconds.keys()
    if not known:
        raise ArtifactError(f"none of {len(candidates)} scenes could be predicted by all models; run without a budget")
    read, finish = rehearse(single, [scene for scene in scenes if scene.id in known], folders, folder / "answers")
    shutil.rmtree(folder)
    folds = {name: len(run.config.folds_of(model)) for name, model in run.config.models.items()}
    return Costs(len(scenes), len(pool), folds, timings, read, finish)


def evenly_spaced(scenes: Sequence[Scene], count: int) -> list[Scene]:
    """Return ``count`` scenes, evenly spaced, in their order; all where there are fewer."""
    return [scenes[k * len(scenes) // count] for k in range(count)] if len(scenes) > count else list(scenes)


def rehearse(run: Run, scenes: Sequence[Scene], folders: Mapping[str, Path], out: Path) -> tuple[float, float]:
    """Decode, write and lint measured scenes; returns the seconds to read a network's levels, and for the rest."""
    params = Decision.of(run).params
    reading: list[float] = []

    def levels(scene: Scene) -> Levels:
        found = {}
        for name, model in run.config.models.items():
            started = time.perf_counter()
            path = levels_path(folders[name], run.config.predict.tta_sets, "none", scene.id)
            found[model.task] = read_levels(path)[0]
            reading.append(time.perf_counter() - started)
        return found

    started = time.perf_counter()
    out.mkdir()
    answers = ((s, run.competition.decode(levels(s), settings_for(s, params))) for s in scenes)
    run.competition.submit(answers, out)
    whole = time.perf_counter() - started
    return mean(reading), max(0.0, whole - sum(reading)) / len(scenes)


# ---- predicting ---------------------------------------------------------------------------------------
def carry_out(
    run: Run, plan: KernelPlan, pool: Pool, hand_in: Callable[[Run], None], budget: Budget, reading: float = 0.0
) -> dict[str, str]:
    """Predict one fold of every model after the other; hand in what is there after the first pass and after the last.

    A further pass begins only if it and the last submission will end in the budget, as far as the earlier ones tell,
    and is given up when the budget is used up. ``reading``: seconds that one network more in a submission takes.
    Returns scene id -> why it has the fallback in some network's answer. OutOfTime where not even the first pass ends
    in time.
    """
    whole = reduced_run(run, plan.subset, plan.folds)
    networks = {name: whole.config.folds_of(model) for name, model in whole.config.models.items()}
    count = max(map(len, networks.values()))
    took: dict[str, float] = {}  # model -> seconds of one network
    failed: dict[str, str] = {}
    done = handed = 0  # passes that are predicted, and in the submission
    finishing = 0.0  # seconds that the last submission took

    def members(passes: int) -> int:
        return sum(min(passes, len(folds)) for folds in networks.values())

    def submit() -> None:
        nonlocal finishing, handed
        started = budget.clock()
        hand_in(reduced_run(run, plan.subset, done))
        finishing, handed = budget.clock() - started, done

    def ending() -> float:
        return finishing + reading * (members(done + 1) - members(handed)) if handed else 0.0

    def tick() -> None:
        if budget.left() < ending():
            raise OutOfTime(f"the budget of {duration(budget.seconds)} is used up in fold {done + 1} of {count}")

    while done < count:
        names = [name for name, folds in networks.items() if len(folds) > done]
        needed = sum(took.get(name, 0) for name in names) + ending()
        if done and needed > budget.left():
            say(f"kernel: {count - done} of {count} folds left out: the next one needs {duration(needed)}, "
                f"{duration(max(0, budget.left()))} are left")  # fmt: skip
            break
        try:
            for name in names:
                started = budget.clock()
                unit = whole.graph.probs(name, networks[name][done], "test")
                predict(whole, list(whole.pending([unit])), pool, tick)
                took[name] = budget.clock() - started
                failed |= whole.store.manifest(unit).get("failed", {})
        except OutOfTime as error:
            if not done:
                raise
            say(f"kernel: {error}; this fold is left out")
            break
        done += 1
        if done == 1:
            submit()
    if done > handed:
        submit()
    return failed
