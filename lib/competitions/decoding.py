"""Decode settings: declared once by a competition, and what is wrong with values of them, in sentences.

Nothing here reads data, so an experiment can be refused before work begins.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import inf, prod
from numbers import Real
from typing import Any, get_type_hints

import cv2
import numpy as np
from pydantic import ValidationError, create_model

from lib.ensemble.morphology import open_and_close
from lib.errors import ConfigError
from lib.settings import Section, did_you_mean, one_of, sentences

GAIN_STEPS = 1000
"""Gains are used to a thousandth, as integers: what ties on one machine ties on every other."""
_PROBABILITIES = np.arange(256) / 255.0


@dataclass(frozen=True)
class Setting:
    """One decode setting."""

    default: Any
    """Its value where no search has run; None: it is not set then, and cannot be searched."""
    meaning: str
    """One line."""
    low: float = 0.0
    """The lowest number it may be."""
    high: float = inf
    """The highest one."""
    choices: tuple[Any, ...] = ()
    """Instead of a range: all that it may be."""
    words: tuple[str, ...] = ()
    """Besides the range: what may be stated, but not searched."""
    quiet: bool = False
    """Not written among the settings unless it is stated or searched: so a setting that a later version adds leaves
    finished results as they are."""

    def fault(self, value: Any, searched: bool = False) -> str:
        """Return "expected ..., got ..." for a value that is not allowed, otherwise an empty text."""
        words = () if searched else self.words
        if self.choices:
            allowed, expected = value in self.choices, f"one of {', '.join(map(str, self.choices))}"
        else:
            number = isinstance(value, Real) and not isinstance(value, bool)
            allowed = (
                number and self.low <= value <= self.high and value < inf
            ) or value in words  # NaN is in no range
            limits = f"from {self.low:g} to {self.high:g}" if self.high < inf else f"of at least {self.low:g}"
            expected = " or ".join([f"a number {limits}", *words])
        return "" if allowed else f"expected {expected}, got {value!r}"


def gains(names: Sequence[str]) -> dict[str, Setting]:
    """Return a setting ``gain_<name>`` for each class."""
    return {f"gain_{n}": Setting(1.0, f"factor on the level of {n}, to a thousandth", high=1000) for n in names}


def morphology(what: str, ending: str = "") -> dict[str, Setting]:
    """Return the settings ``opening`` and ``closing``, for the class that ``ending`` names; ``what``: the objects."""
    return {
        f"opening{ending}": Setting(0, f"radius in pixels of the disk that opens {what}; below 1: none", high=100,
                                    quiet=True),
        f"closing{ending}": Setting(0, f"radius in pixels of the disk that closes {what}; below 1: none", high=100,
                                    quiet=True),
    }  # fmt: skip


def settings_of_masks(names: Sequence[str], exclusive: bool) -> dict[str, Setting]:
    """Return the settings of ``foreground`` for each class; exclusive ones are not closed, or they would overlap."""
    found = {f"threshold_{name}": Setting(0.5, "the class from here on", high=1) for name in names}
    found |= {f"min_area_{name}": Setting(0, "smaller parts are erased, in pixels") for name in names}
    for name in names:
        found |= morphology("the class", f"_{name}")
        if exclusive:
            del found[f"closing_{name}"]
    return found


def value_faults(where: str, settings: Mapping[str, Setting], values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with decode settings that stand under the key ``where``."""
    found = [f"{where}.{name}: {fault}" for name, value in values.items()
             if name in settings and (fault := settings[name].fault(value))]  # fmt: skip
    return found + [_unknown(where, name, settings) for name in values if name not in settings]


def axis_faults(settings: Mapping[str, Setting], axes: Mapping[str, Sequence[Any]], most: int) -> list[str]:
    """Return what is wrong with the axes of a search of at most ``most`` points."""
    where, found = "search.axes", []
    searched = {name: setting for name, setting in settings.items() if setting.default is not None}
    for name, values in axes.items():
        if name not in searched:
            found.append(_unknown(where, name, searched))
            continue
        if not len(values) or len(set(values)) < len(values):
            found.append(f"{where}.{name}: expected distinct values, at least one, got {list(values)}")
        faults = (searched[name].fault(value, searched=True) for value in values)
        found += [f"{where}.{name}: {fault}" for fault in dict.fromkeys(faults) if fault]
    shape = [len(values) for values in axes.values()]
    if prod(shape) > most:
        found.append(f"{where}: expected at most {most:,} points, got {prod(shape):,} ({' x '.join(map(str, shape))}); "
                     "use fewer values per axis")  # fmt: skip
    return found


def chain_faults(where: str, steps: Mapping[str, Callable], chain: Any) -> list[str]:
    """Return what is wrong with a chain of post-processing steps."""
    if not isinstance(chain, Sequence) or isinstance(chain, str) or not all(isinstance(s, Mapping) for s in chain):
        return [f"{where}: expected a list of steps such as {{name: {next(iter(steps), '...')}}}, got {chain!r}"]
    found = []
    for number, step in enumerate(chain):
        place, name = f"{where}.{number}", step.get("name")
        if not steps:
            found.append(f"{place}: this competition has no post-processing steps; remove it")
        elif not isinstance(name, str) or name not in steps:
            found.append(one_of(f"{place}.name", name, steps))
        else:
            try:
                _options(steps[name]).model_validate({k: v for k, v in step.items() if k != "name"})
            except ValidationError as error:
                found += sentences(error, place)
    return found


def step_of(step: Mapping[str, Any], steps: Mapping[str, Callable]) -> Callable[[Any], Any]:
    """Return what a post-processing step does to an answer. Raises ConfigError for a faulty one."""
    refuse(chain_faults("decode.postprocess", steps, [step]))
    return partial(steps[step["name"]], **{name: value for name, value in step.items() if name != "name"})


def refuse(faults: Sequence[str]) -> None:
    """Raise ConfigError where there are faults."""
    if faults:
        raise ConfigError("\n".join(faults))


def threshold_level(probability: float) -> int:
    """Return the lowest level whose probability is at least the given one: ceil(255 p), 0.2 being exactly level 51."""
    return int(np.searchsorted(_PROBABILITIES, probability))


def foreground(
    levels: np.ndarray, threshold: float, min_area: float = 0, opened: float = 0, closed: float = 0
) -> np.ndarray:
    """Return where levels (H, W) uint8 reach a threshold, as (H, W) uint8 in {0, 1}; level 0 never does.

    The mask is opened and closed with these radii. Then parts (8 neighbours) of fewer than ``min_area`` pixels are left
    out.
    """
    mask = open_and_close((levels >= max(1, threshold_level(threshold))).view(np.uint8), opened, closed)
    if min_area > 1:
        mask[small_parts(mask, min_area)] = 0
    return mask


def small_parts(mask: np.ndarray, min_area: float, connectivity: int = 8) -> np.ndarray:
    """Mark the parts of a mask (H, W) uint8 that have fewer than ``min_area`` pixels: (H, W) bool."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False  # what is no part
    return small[parts]


@cache
def _options(step: Callable) -> type[Section]:
    """Return a step's options as a section: its parameters after the answer, as they are annotated."""
    hints = get_type_hints(step, include_extras=True)
    parameters = list(inspect.signature(step).parameters.values())[1:]
    fields: dict[str, Any] = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters}
    return create_model(step.__name__, __base__=Section, **fields)


def _unknown(where: str, name: Any, settings: Mapping[str, Setting]) -> str:
    near = did_you_mean(name, settings)
    return f"{where}.{name}: unknown setting{near or ', expected one of ' + ', '.join(settings)}"
