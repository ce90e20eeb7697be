"""The competitions: one file each, found by name. ``contract.py`` says what such a file must hold."""

import importlib
from pathlib import Path
from typing import Any

from lib.competitions.contract import Competition
from lib.errors import ConfigError

NAMES = ("binary_rle", "labels", "videos", "voc", "xview2")
"""A file of this folder each, or a folder with a file ``competition.py``."""


def open_competition(name: str, root: str | Path, options: dict[str, Any] | None = None) -> Competition:
    """Open the data of competition ``name`` under ``root``; ``options`` are the competition's own settings."""
    if name not in NAMES:
        raise ConfigError(f"competition: expected one of {', '.join(NAMES)}, got {name!r}")
    return importlib.import_module(module_of(name)).Competition(Path(root), **(options or {}))


def module_of(name: str) -> str:
    """Return the module that holds the class of competition ``name``."""
    folder = Path(__file__).parent / name
    return f"lib.competitions.{name}.competition" if folder.is_dir() else f"lib.competitions.{name}"
