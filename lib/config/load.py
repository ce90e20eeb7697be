"""Read an experiment file: YAML, then the changes of ``--set``, then one sentence for each thing that is wrong."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lib.config.sections import Experiment, Section
from lib.errors import ConfigError


def load(path: str | Path, overrides: list[str] = ()) -> Experiment:
    """Read an experiment file; ``overrides`` are ``section.key=value`` with YAML values. Raises ConfigError."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such experiment file; see configs/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(tree).__name__}")
    for override in overrides:
        _set(tree, override)
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _sentences(error))) from error


def _set(tree: dict, override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override}: expected section.key=value")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(_key(node, parent), {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        node[_key(node, last)] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not a YAML value: {error}") from error


def _key(node: dict, text: str) -> Any:
    """Class indices and epochs are integer keys in YAML."""
    return int(text) if text.isdigit() and int(text) in node else text


def _sentences(error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), _field_names(), n=1)
            lines.append(f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        elif fault["type"] == "missing":
            lines.append(f"{where}: required, but missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            got = "" if isinstance(fault["input"], (dict, BaseModel)) else f", got {fault['input']!r}"
            lines.append(f"{where}: {message}{got}" if where else message)
    return lines


def _field_names() -> list[str]:
    return sorted({name for section in Section.__subclasses__() for name in section.model_fields})
