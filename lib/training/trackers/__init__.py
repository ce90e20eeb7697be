"""What people follow trainings in: TensorBoard, Weights & Biases, MLflow, fed from the lines of log.jsonl.

All of them write into ``workdir/<experiment>/tracking/`` and reach no network unless their own variables say so
(``WANDB_MODE``, ``MLFLOW_TRACKING_URI``). A unit of the store is one run of a tracker. ``tracking/runs/<unit>.json``
remembers the run and how far each tracker has been fed, so a training that is resumed goes on in the same run, and each
epoch is told once. What a tracker raises is said, and the training goes on without it: nothing is built on it.
"""

import importlib
import importlib.util
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lib.config.sections import TrackerName
from lib.errors import ConfigError
from lib.files import digest, read_json, write_json
from lib.run import runtime
from lib.run.cli import say

FOLDER = "tracking"
"""In an experiment's folder: what trackers write."""
REQUIREMENTS = "requirements-track.txt"
PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
GROUPS = ("scores", "amp", "gpu_percent")
"""Groups of values in a line of log.jsonl."""
PARTS = ("raw_", "weighted_")
"""Beginnings of the names of loss terms, which make groups of their own."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that is told of."""

    experiment: str
    unit: str
    """Key of the unit in the store, as 02_loc/unet/fold0."""
    folder: Path
    """Where trackers write."""
    run: str
    """Tells this training of the unit from an earlier one."""
    goes_on: bool
    """Whether the tracker has been told of this run before."""

    @property
    def id(self) -> str:
        """Return a name of the run that is unique within the experiment, of letters, digits, '-', '_' and '.'."""
        return f"{self.unit.replace('/', '-')}-{self.run}"


class Tracker(Protocol):
    """One package that shows runs; whatever it raises ends it alone."""

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Take the settings of a run that begins, nested."""

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take the values at the end of an epoch, counted from 1."""

    def scores(self, scores: Mapping[str, float]) -> None:
        """Take what a run ends with."""

    def picture(self, name: str, image: np.ndarray) -> None:
        """Take a picture (H, W, 3) uint8."""

    def close(self, failed: bool) -> None:
        """Write what is left; ``failed``: the run did not end well."""


class Followed:
    """A run and its trackers, of which one that raises is said once and left out from then on."""

    def __init__(self, path: Path, known: dict[str, Any], trackers: dict[str, Tracker]):
        """path, known: the file that remembers how far each tracker has been fed, and what it holds."""
        self._path, self._known, self._trackers = path, known, trackers

    @property
    def listens(self) -> bool:
        """Whether any tracker is left."""
        return bool(self._trackers)

    def leave(self, names: Iterable[str]) -> None:
        """Tell some trackers nothing further; they are closed."""
        left = [name for name in names if name in self._trackers]
        self._each("close", False, only=left)
        for name in left:
            self._trackers.pop(name, None)

    def told(self) -> dict[str, int]:
        """Return how many epochs each tracker has been told of."""
        return dict(self._known["epochs"])

    def begin(self, settings: Mapping[str, Any], lines: Sequence[Mapping[str, Any]] = ()) -> None:
        """Tell the trackers that begin a run what its settings are, and all of them what its log has already."""
        new = [name for name in self._trackers if name not in self._known["epochs"]]
        self._each("settings", settings, only=new)
        if began := [name for name in new if name in self._trackers]:
            self._known["epochs"].update(dict.fromkeys(began, 0))
            self._remember()
        for line in lines:
            self.line(line)

    def line(self, line: Mapping[str, Any]) -> None:
        """Tell of a line of log.jsonl, each tracker that has not been told of that epoch."""
        if not self._trackers:
            return
        epochs, epoch = self._known["epochs"], int(line["epoch"])
        new = [name for name in self._trackers if epoch > epochs.get(name, 0)]
        self._each("epoch", epoch, flat(line), only=new)
        if epoch == 1:
            self._known["first"] = _mark(line)
        epochs.update({name: epoch for name in new if name in self._trackers})
        self._remember()

    def scores(self, scores: Mapping[str, Any]) -> None:
        """Tell what a run ends with."""
        self._each("scores", numbers(scores))

    def picture(self, name: str, image: np.ndarray) -> None:
        """Show a picture (H, W, 3) uint8."""
        self._each("picture", name, image)

    def close(self, failed: bool) -> None:
        """Let the trackers write what is left."""
        self._each("close", failed)

    def _each(self, method: str, *arguments: Any, only: Sequence[str] | None = None) -> None:
        for name in list(self._trackers if only is None else only):
            try:
                getattr(self._trackers[name], method)(*arguments)
            except Exception as error:
                del self._trackers[name]
                say(_given_up(name, error))

    def _remember(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)
        except OSError as error:
            self._trackers.clear()
            say(_given_up("all of them", error))


def require(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError where the package of a tracker is not installed; imports none of them."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(f"track: {name} needs the package {PACKAGES[name]}, which is not installed here; pip "
                              f"install -r {REQUIREMENTS}, or --set track=[]")  # fmt: skip


@contextmanager
def follow(names: Sequence[TrackerName], experiment: Path, unit: str,
           lines: Sequence[Mapping[str, Any]] = ()) -> Iterator[Followed]:  # fmt: skip
    """Open the trackers of a run, and close them at the end.

    experiment: its folder in the workdir. unit: the unit's key. lines: what its log has already, by which a training
    that goes on is told from a new one. Without names, and in all processes of torchrun but the first, nothing is
    opened and nothing happens.
    """
    names = list(dict.fromkeys(names)) if runtime.rank() == 0 else []
    root = experiment / FOLDER
    path = root / "runs" / f"{unit.replace('/', '__')}.json"
    known = _run_of(path, lines) if names else {"epochs": {}}
    opened: dict[str, Tracker] = {}
    for name in names:
        subject = TrackedRun(experiment.name, unit, root, known["run"], name in known["epochs"])
        try:
            opened[name] = importlib.import_module(f"{__name__}.{name}").open_run(subject)
        except Exception as error:
            say(_given_up(name, error))
    followed, failed = Followed(path, known, opened), True
    try:
        yield followed
        failed = False
    finally:
        followed.close(failed)


def _run_of(path: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is remembered of the run that a log belongs to, or a new run where it belongs to none."""
    try:
        known = read_json(path)
        if known["run"] and (not any(known["epochs"].values()) or (lines and known.get("first") == _mark(lines[0]))):
            return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {"run": f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", "epochs": {}}


def _mark(line: Mapping[str, Any]) -> str:
    return digest(dict(line))


def _given_up(name: str, error: Exception) -> str:
    said = (str(error).strip().splitlines() or [""])[0]
    return f"  ! track: {name} failed ({type(error).__name__}: {said[:200]}); the run goes on without it"


# ---- values -------------------------------------------------------------------------------------------
def flat(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of log.jsonl by name, groups before a slash: scores/score, raw/dice, lr."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if name in GROUPS and isinstance(value, Mapping):
            found |= {f"{name}/{key}": number for key, number in numbers(value).items()}
        elif name != "epoch":
            start = next((part for part in PARTS if name.startswith(part)), "")
            key = f"{start[:-1]}/{name.removeprefix(start)}" if start else name
            found |= numbers({key: value})
    return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are finite numbers or yes and no, as floats."""
    return {name: float(value) for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)}  # fmt: skip


def leaves(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found
