"""The section ``reference``: what the source of an experiment reports, printed beside our scores and used nowhere."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lib.settings import Section, one_of


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("expected the lower end first")
    return ends


Finite = Annotated[float, Field(allow_inf_nan=False)]
Figure = Finite | Annotated[tuple[Finite, Finite], AfterValidator(_ordered)]
"""A score as a source states it: a number, or the two ends of a range."""


class Reference(Section):
    """Scores that somebody else reports for what this experiment follows."""

    source: str = Field(min_length=1)
    """Where the figures are from: a paper, a report and its table, a leaderboard."""
    data: str = Field(min_length=1)
    """What they were measured on: the data set, its split, which epoch."""
    scores: dict[str, Figure] = Field(min_length=1)
    """Score by our name -> the figure, or [lowest, highest] where the source gives a range."""

    @model_validator(mode="before")
    @classmethod
    def _older_form(cls, given: Any) -> Any:
        """Take the older form, scores alone, which said neither where they are from nor what they were measured on."""
        if isinstance(given, Mapping) and given and all(type(value) in (int, float) for value in given.values()):
            return {"source": "a source that is not named", "data": "data that are not named", "scores": dict(given)}
        return given

    def faults(self, known: Iterable[str]) -> list[str]:
        """Return a sentence for every score that is none of the ``known`` names."""
        known = list(known)
        return [one_of("reference.scores", name, known) for name in self.scores if name not in known]

    def beside(self, ours: Mapping[str, float]) -> list[str]:
        """Return lines with our scores, the source's and the difference; [] where no score has a name of ours."""
        shared = [name for name in self.scores if name in ours]
        if not shared:
            return []
        width = max(map(len, shared))
        lines = [f"beside the figures of {self.source}, measured on {self.data}:"]
        for name in shared:
            apart = difference(ours[name], self.scores[name])
            lines.append(f"  {name:{width}s}  ours {ours[name]:.4f}  source {written(self.scores[name])}  "
                         f"difference {apart:+.4f}")  # fmt: skip
        return lines


def difference(ours: float, theirs: Figure) -> float:
    """Return our score less the source's; of a range, less its nearer end, and 0 within it."""
    low, high = theirs if isinstance(theirs, tuple) else (theirs, theirs)
    return ours - min(max(ours, low), high)


def written(figure: Figure) -> str:
    """Write a figure with the digits that the source gives; a range as its two ends."""
    return " to ".join(f"{end:.10g}" for end in (figure if isinstance(figure, tuple) else (figure,)))
