"""What is chosen on out-of-fold scenes, and decode.json, the file that says so; it is written and read here alone."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from lib.config.sections import Views
from lib.ensemble.search import Lattice
from lib.errors import ArtifactError
from lib.files import write_json
from lib.run.cli import Run
from lib.run.manifest import read_json

DECODE = "decode.json"
Weights = Mapping[str, float]
"""Model -> its weight in the average of its task."""
Numbers = dict[str, int | float]
Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


def _known_views(name: str) -> str:
    if name not in get_args(Views):
        raise ValueError(f"expected one of {', '.join(get_args(Views))}, found {name!r}")
    return name


SetOfViews = Annotated[str, AfterValidator(_known_views)]


@dataclass(frozen=True)
class Variant:
    """What besides the weights decides an average: the set of views, and whether a CRF refines it."""

    tta: str
    crf: bool = False


@dataclass(frozen=True)
class Choice:
    """How scenes are turned into answers: weights of the models, decode settings (also per domain), variant."""

    weights: Weights
    params: Mapping[str, Any]
    variant: Variant

    def to_json(self) -> dict[str, Any]:
        """Return the choice under the keys of decode.json."""
        return {"params": self.params, "weights": self.weights, "tta": self.variant.tta, "crf": self.variant.crf}

    def change(self, **params: Any) -> "Choice":
        """Return the same choice with some decode settings replaced or added."""
        return replace(self, params={**self.params, **params})


@dataclass(frozen=True)
class Chosen:
    """What is chosen so far: on all folds, and in the same way without each of them.

    A step that changes the choice makes the same change without each fold on the other folds alone. So the scenes of a
    fold, decoded with the choice made without it, tell what to expect on unseen scenes.
    """

    fixed: Choice
    """What is used where nothing is chosen: the settings that the experiment states."""
    choice: Choice
    """Chosen on all folds."""
    without: Mapping[int, Choice]
    """Fold -> what is chosen without it; empty where all scenes are of one fold."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Decision`` that say how the choice was found."""
    by_domain: Mapping[str, np.ndarray] | None = None
    """Domain -> count table of ``settings_to_try`` under the weights and variant of ``choice``, if it was counted."""
    counted: tuple[Lattice, np.ndarray] | None = None
    """The settings that a search compared under these weights and this variant, and their counts on all scenes."""

    @classmethod
    def nothing(cls, fixed: Choice, folds: list[int]) -> "Chosen":
        """Return the state before the first step: the fixed settings, with every fold and without it."""
        return cls(fixed, fixed, dict.fromkeys(folds, fixed) if len(folds) > 1 else {})

    def settle(self, every: Mapping[int | None, "Choice"], notes: Mapping[str, Any]) -> "Chosen":
        """Return the state after a step: the choices that it made, in the form of ``every``, and its notes added."""
        without = {fold: choice for fold, choice in every.items() if fold is not None}
        return replace(self, choice=every[None], without=without, notes={**self.notes, **notes})

    def every(self) -> dict[int | None, Choice]:
        """Return left-out fold -> choice; None: no fold is left out."""
        return {None: self.choice} | {fold: choice for fold, choice in self.without.items()}


@dataclass(frozen=True)
class Subset:
    """Some of the models, the set of views they predict, and what that is worth out of fold."""

    models: tuple[str, ...]
    tta: SetOfViews
    score: float | None = None
    """Out-of-fold score; None where it is not known."""
    seconds: NotNegative | None = None
    """Seconds per scene that one network of each model took on the machine of stage 04."""
    best_for_its_seconds: bool = False
    """Whether nothing that is as cheap scores as high."""


@dataclass(frozen=True)
class Chain:
    """A chain of post-processing steps that was tried, and its score with the settings chosen on all folds."""

    steps: list[dict[str, Any]]
    score: float
    accepted: bool


class Decision(BaseModel):
    """The contents of decode.json: the choice, how it was found, what it scores and what to expect of it.

    Fields that do not apply are left out of the file; fields that older files lack have defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # ---- the choice
    params: dict[str, Any]
    """Decode settings, see ``settings_for``."""
    weights: dict[str, NotNegative]
    """Model -> its weight in the average of its task."""
    tta: SetOfViews | None = None
    """Set of views; None in older files."""
    crf: bool | None = None
    """Whether a CRF refines the averages; None in older files."""
    temperatures: dict[str, Positive] = {}
    """Model -> its temperature; empty where nothing was calibrated."""

    # ---- how it was found
    calibration: dict[str, dict[str, Any]] = {}
    """Model -> its fitted temperature, and how reliable its probabilities are without and with it."""
    points: Count | None = None
    """Combinations that the search counted."""
    score_without_search: float | None = None
    """Score of the settings that the experiment states."""
    searched_score: float | None = None
    """Score of what the search found on the scenes it was found on: too good to be expected on others."""
    expected_score: float | None = None
    """What to expect on unseen scenes: each fold's scenes decoded with what was chosen without that fold; None where
    all scenes are of one fold. Only where something was chosen, see ``expected``."""
    expected_gain: float | None = None
    """``expected_score`` less ``score_without_search``."""
    expected_with_equal_weights: float | None = None
    """What to expect where all models had the same weight, after greedy selection."""
    greedy_path: list[dict[str, Any]] = []
    """Weights and score after each round of greedy selection."""
    expected_score_per_domain: float | None = None
    """What to expect with settings of its own for each domain, whether they are used or not."""
    chosen_without_fold: dict[str, dict[str, Any]] = {}
    """Fold -> what the search chose without it; later steps may have changed it."""
    expected_with_flattest_best: float | None = None
    """What was to be expected before medians took the place of the searched settings."""
    stability: dict[str, dict[str, Any]] = {}
    """Axis -> which values win on scenes drawn anew."""
    unseen_domains: dict[str, Any] = {}
    """Scores of held-out domains, with and without ``search.unseen``."""
    postprocess_tried: list[Chain] = []

    # ---- what it is worth
    scenes: Count
    """Out-of-fold scenes that were scored."""
    scores: Numbers
    """Every named score on the scenes it was chosen on; empty where there were none."""
    interval95: tuple[float, float] | None
    """Where the score lies when scenes are drawn anew; None where there were none."""
    per_domain: dict[str, Numbers]
    """Domain -> number of scenes and scores."""
    per_fold: dict[str, Numbers]
    tables: dict[str, Any]
    """Further results of the competition: named scores, or matrices as {row: {column: count}}."""
    plans: list[Subset] = []
    """What fewer models and views would score, see ``lib/choose/plans.py``."""
    coverage: str

    @field_validator("scores", "interval95")
    @classmethod
    def _scored_scenes_have_them(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("scenes") and not value:
            raise ValueError(f"expected those of {info.data['scenes']} scenes, found none")
        return value

    @field_validator("weights")
    @classmethod
    def _one_model_counts(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and not any(weights.values()):
            raise ValueError("expected one above 0, found none")
        return weights

    @field_validator("per_domain", "per_fold")
    @classmethod
    def _scenes_are_counted(cls, parts: dict[str, Numbers]) -> dict[str, Numbers]:
        for name, part in parts.items():
            _refuse_negative(name, [part.get("scenes", 0)])
        return parts

    @field_validator("tables")
    @classmethod
    def _matrices_hold_counts(cls, tables: dict[str, Any]) -> dict[str, Any]:
        for name, table in tables.items():
            held = list(table.values()) if isinstance(table, dict) else [None]
            rows = [row for row in held if isinstance(row, dict)]
            numbers = [one for row in rows for one in row.values()] if rows else held
            if len(rows) not in (0, len(held)) or not all(isinstance(one, int if rows else Real) for one in numbers):
                raise ValueError(f"{name}: expected scores by name, or rows of counts, found {str(table)[:60]}")
            if rows and any(row.keys() != rows[0].keys() for row in rows):
                raise ValueError(f"{name}: expected rows of the same columns, found others")
            _refuse_negative(name, numbers if rows else ())
        return tables

    @field_validator("params")
    @classmethod
    def _settings_are_by_name(cls, params: dict[str, Any]) -> dict[str, Any]:
        apart = params.get("per_domain", {})
        several = [apart, params.get("unseen", {}), *(apart.values() if isinstance(apart, dict) else ())]
        if not all(isinstance(own, dict) for own in several):
            raise ValueError("expected settings by name in per_domain and unseen, found something else")
        if not isinstance(params.get("seen", []), list) or ("unseen" in params) != ("seen" in params):
            raise ValueError("expected unseen with a list of the domains that are seen, found one without the other")
        return params

    @property
    def score(self) -> float:
        """Return the official score on out-of-fold scenes; nan where there were none."""
        return self.scores.get("score", next(iter(self.scores.values()), math.nan))

    @property
    def expected(self) -> float | None:
        """Return the score to expect on unseen scenes, None where it is not known.

        Where nothing was chosen on these scenes, it is their score.
        """
        if not self.scenes:
            return None
        return self.expected_score if "expected_score" in self.model_fields_set else self.score

    def variant(self, otherwise: Variant) -> Variant:
        """Return the set of views and whether a CRF is used; ``otherwise`` fills in what older files do not say."""
        return Variant(self.tta or otherwise.tta, otherwise.crf if self.crf is None else self.crf)

    # ---- the file
    @classmethod
    def read(cls, path: Path, command: str = "python 05_ensemble.py --split oof --force") -> "Decision":
        """Read decode.json; keys of later versions are passed over.

        ArtifactError that names the file, the odd entry and the ``command`` that writes the file anew.
        """
        content = read_json(path)
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key in cls.model_fields}
        again = f"to write it anew, run: {command}"
        if odd := next(_not_finite(content), ""):
            raise ArtifactError(f"{path}: {odd}: expected a finite number; {again}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first, *others = error.errors()
            where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
            more = f" (and {len(others)} more faults)" if others else ""
            raise ArtifactError(f"{path}: {where}{first['msg']}{more}; {again}") from error

    @classmethod
    def of(cls, run: Run) -> "Decision":
        """Read what stage 05 decided for an experiment; ArtifactError where it has not, or for other models."""
        unit = run.graph.decode()
        path = run.store.require(unit) / DECODE
        decision = cls.read(path, f"{unit.command} --force")
        if missing := [name for name in run.config.models if name not in decision.weights]:
            raise ArtifactError(f"{path}: weights: expected one for each model, found none for {', '.join(missing)}; "
                                f"to write it anew, run: {unit.command} --force")  # fmt: skip
        return decision

    def write(self, path: Path) -> None:
        """Write decode.json with all fields that were set, in the order in which they stand here."""
        write_json(path, self.model_dump(exclude_unset=True))


def _refuse_negative(name: str, counts: Iterable[Any]) -> None:
    """Raise ValueError for a number below 0 where counts are told."""
    if negative := [count for count in counts if isinstance(count, int | float) and count < 0]:
        raise ValueError(f"{name}: expected counts, found {negative[0]}")


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    """Yield where a JSON value holds NaN or an infinite number, as "per_fold.0.score"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _not_finite(part, f"{where}.{key}" if where else str(key))
