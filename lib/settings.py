"""What all settings are made of: sections with typed fields, and sentences that say what is wrong with their values.

The experiment file (``lib/config/sections.py``) and the options of each competition are built of sections.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

TYPES = ("int", "float", "str", "bool")
UNKNOWN = "unknown_key"
"""Type of the fault that a section reports for a key it does not have."""


class Section(BaseModel):
    """A group of settings: frozen, unknown keys are refused, and the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_keys(cls, values: Any, handler: Callable[[Any], Any]) -> Any:
        """Say of an unknown key which field of this section is meant; only the section itself knows its fields."""
        try:
            return handler(values)
        except ValidationError as error:
            faults = [_fault_of(fault, cls.model_fields) for fault in error.errors()]
            raise ValidationError.from_exception_data(error.title, faults) from None


class Limits(Section):
    """The most that a file of the data may hold. One that holds more is refused by name and not read: it would fill the
    memory and end the stage whose task is to name it."""

    image_pixels: int = Field(250_000_000, ge=1, strict=True)
    """Pixels of an image or mask (height times width); 250 million are a square of 15,800 and 0.75 GB as RGB."""
    json_bytes: int = Field(100_000_000, ge=1, strict=True)
    """Bytes of a JSON label."""
    json_depth: int = Field(100, ge=1, le=900, strict=True)
    """Brackets inside one another in a JSON label, of which those of xBD have five."""


_limits = [Limits()]


def limits() -> Limits:
    """Return the limits that hold in this process."""
    return _limits[0]


def set_limits(limits: Limits) -> None:
    """Set the limits that hold in this process: opening a competition does it, and receiving one in a new process."""
    _limits[0] = limits


def sentences(error: ValidationError, where: str = "") -> list[str]:
    """Return one sentence per fault of a section; ``where`` is the key under which the section stands.

    An unknown key is compared with the fields of the section in which it stands: ``train.crops: unknown key; did you
    mean crop?``.
    """
    said: dict[tuple[str, str], list[str]] = {}  # (key, what came) -> what was expected there
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "too_short" and any(_is_within(other, fault) for other in faults):
            continue  # it counts only the parts in which nothing is wrong
        key, message, got = _parts(fault, where)
        said.setdefault((key, got), []).append(message)
    return [(f"{key}: " if key else "") + _either(messages) + got for (key, got), messages in said.items()]


def _is_within(fault: ErrorDetails, other: ErrorDetails) -> bool:
    """Tell whether a fault is about a part of what the other one is about."""
    return len(fault["loc"]) > len(other["loc"]) and fault["loc"][: len(other["loc"])] == other["loc"]


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """Return ``; did you mean X?`` with the known name nearest to ``name``, or nothing where none is near."""
    near = difflib.get_close_matches(str(name), sorted(str(other) for other in known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def one_of(key: str, name: Any, known: Iterable[Any]) -> str:
    """Return the sentence about a ``name`` under ``key`` that is none of the ``known`` ones."""
    known = list(known)
    return f"{key}: expected one of {', '.join(map(str, known))}, got {name!r}{did_you_mean(name, known)}"


def some(names: Sequence[str], most: int = 3) -> str:
    """Join the first of many names for a sentence, and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _fault_of(fault: ErrorDetails, fields: Iterable[str]) -> InitErrorDetails:
    """Return a fault as it is raised again, an unknown key of this section with a suggestion."""
    name = fault["type"]
    kind: str | PydanticCustomError = name
    if name == "extra_forbidden" and len(fault["loc"]) == 1:
        kind = PydanticCustomError(UNKNOWN, "{text}", {"text": "unknown key" + did_you_mean(fault["loc"][0], fields)})
    elif name not in get_args(ErrorType):  # one that was made in Python, such as ours
        kind = PydanticCustomError(name, "{text}", {"text": fault["msg"]})
    return InitErrorDetails(type=kind, loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {}))


def _parts(fault: ErrorDetails, where: str) -> tuple[str, str, str]:
    """Return the key that a fault is about, what is wrong with it, and what came."""
    path = [str(part) for part in fault["loc"]]
    while path and (path[-1] in ("[key]", *TYPES) or re.match(r"[\w-]+\[|constrained-", path[-1])):
        path.pop()  # pydantic's word for a member of a union, or for the key of a mapping
    message = "required, but missing" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
    message = re.sub(r"^(\w+ should (be |have )?|Input is not )", "expected ", message)
    message = re.sub("a valid dictionary( or instance of \\w+)?", "keys with values", message)
    plain = fault["type"] in (UNKNOWN, "missing") or isinstance(fault["input"], (dict, BaseModel))
    return ".".join(part for part in (where, *path) if part), message, "" if plain else f", got {fault['input']!r}"


def _either(messages: list[str]) -> str:
    """Join what each type that a field may have expects: expected 'auto' or a valid tuple."""
    if not all(message.startswith("expected ") for message in messages):
        return "; ".join(messages)
    return "expected " + " or ".join(dict.fromkeys(message.removeprefix("expected ") for message in messages))
