"""Read an experiment file: YAML, then the changes of ``--set``, then one sentence for each thing that is wrong."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lib.config.sections import Experiment
from lib.errors import ConfigError
from lib.settings import sentences


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
        raise ConfigError("\n".join(f"{path}: {line}" for line in sentences(error))) from error


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
