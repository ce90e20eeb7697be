"""Read an experiment file: YAML, then the changes of ``--set``, then one sentence for each thing that is wrong."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.config import strict
from lib.config.sections import Experiment
from lib.errors import ConfigError
from lib.settings import one_of, sentences


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; ``overrides`` are ``section.key=value`` with YAML values.

    Raises ConfigError with one line per fault of the file itself; ``lib.config.check`` finds those that only the
    competition and the networks can tell.
    """
    experiment, faults = examine(read(path, overrides))
    if faults or experiment is None:
        raise refusal(path, faults)
    return experiment


def refusal(path: str | Path, faults: Sequence[str]) -> ConfigError:
    """Return the error that lists the faults of an experiment file, one per line."""
    return ConfigError("\n".join(f"{path}: {fault}" for fault in dict.fromkeys(faults)))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the tree of an experiment file with ``overrides`` in it. ConfigError where there is no such tree."""
    path = Path(path)
    text = _text(path)
    try:
        tree = strict.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        got = "an empty file" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: expected sections (name: ..., data: ..., models: ...), got {got}")
    for override in overrides:
        _set(tree, override)
    return tree


def examine(tree: dict[str, Any]) -> tuple[Experiment | None, list[str]]:
    """Return the experiment that a tree describes, and everything that is wrong with the tree itself.

    Where something is wrong, the experiment is what the rest describes, so that a caller can say what is wrong with
    that too; None where the rest is not one.
    """
    faults = list(strict.unusable_values(tree))
    said = [fault.partition(": ")[0] for fault in faults]
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        faults += [fault for fault in sentences(error) if not about(fault, said)]
        rest = copy.deepcopy(tree)
        for fault in error.errors():
            _remove(rest, fault["loc"])
        try:
            experiment = Experiment.model_validate(rest)
        except ValidationError:
            return None, faults
    late = experiment.contradictions()
    if faults and tree.get("models") and not experiment.models:  # each lacks something, as said above
        late = [fault for fault in late if not fault.startswith("models: ")]
    return experiment, faults + late


def about(fault: str, keys: Sequence[str]) -> bool:
    """Tell whether a fault is about one of the keys, or about a section that holds one."""
    where = fault.partition(": ")[0]
    return any(key == where or key.startswith(f"{where}.") for key in keys)


def _text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: expected an experiment file, this is a folder; see configs/")
    try:
        with open(path, "rb") as stream:
            found = stream.read(strict.BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such experiment file; see configs/") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(found) > strict.BYTES:
        raise ConfigError(f"{path}: expected an experiment file, this has more than {strict.BYTES:,} bytes")
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError as error:
        line = found[: error.start].count(b"\n") + 1
        byte = f"{found[error.start]:#04x}"
        raise ConfigError(
            f"{path}: line {line}: expected text in UTF-8, got the byte {byte}; save the file as UTF-8"
        ) from error


def _set(tree: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    *parents, last = key.split(".")
    if not sign or not all((*parents, last)):
        raise ConfigError(f"--set {override}: expected section.key=value")
    models = tree.get("models")
    if (
        parents[:1] == ["models"]
        and len(parents) > 1
        and isinstance(models, dict)
        and parents[1] not in map(str, models)
    ):
        raise ConfigError(f"--set {override}: {one_of('models', parents[1], list(map(str, models)))}")
    node = tree
    for parent in parents:
        node = node.setdefault(_key(node, parent), {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        node[_key(node, last)] = strict.parse(value)
    except ConfigError as error:
        raise ConfigError(f"--set {override}: not a YAML value: {error}") from error


def _key(node: dict[Any, Any], text: str) -> Any:
    """Return a key as YAML has it: class indices and epochs are whole numbers there."""
    return int(text) if text.isdecimal() and len(text) < 10 and int(text) in node else text


def _remove(tree: Any, path: Sequence[int | str]) -> None:
    """Delete what stands at ``path``, as far as the tree goes; a path may end in the name of a member of a union."""
    node, places = tree, []
    for part in path:
        try:
            below = node[part]
        except (KeyError, IndexError, TypeError):
            break
        places.append((node, part))
        node = below
    while places:
        parent, part = places.pop()
        if isinstance(parent, dict):  # an element of a list takes the list with it, whose places would shift
            del parent[part]
            return
