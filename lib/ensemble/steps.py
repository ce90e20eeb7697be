"""Post-processing steps by name, as an experiment file states them."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lib.errors import ConfigError


def resolve(step: Mapping[str, Any], known: Mapping[str, Callable], inputs: int) -> Callable:
    """Return what ``{"name": <one of known>, <option>: <value>, ...}`` does, a function of ``inputs`` arrays.

    Raises ConfigError for an unknown name, and for options that the step does not have or that it lacks.
    """
    options = {key: value for key, value in step.items() if key != "name"}
    if step.get("name") not in known:
        raise ConfigError(f"postprocess: expected a name out of {', '.join(known)}, got {step.get('name')!r}")
    function = known[step["name"]]
    try:
        inspect.signature(function).bind_partial(**options)  # names what is unknown, before what is missing
        inspect.signature(function).bind(*[None] * inputs, **options)
    except TypeError as error:
        own = list(inspect.signature(function).parameters)[inputs:]
        raise ConfigError(f"postprocess.{step['name']}: {error}; its options are {', '.join(own)}") from error
    return partial(function, **options)
