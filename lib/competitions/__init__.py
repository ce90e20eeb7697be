"""The competitions, found by name. ``contract.py`` says what each must hold."""

import importlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.competitions.contract import Competition
from lib.errors import ConfigError
from lib.settings import Limits, Section, one_of, sentences

CLASSES = {
    "binary_rle": "binary_rle.competition.BinaryRLE",
    "bright": "bright.Bright",
    "labels": "labels.Labels",
    "multiclass_rle": "multiclass_rle.MulticlassRLE",
    "videos": "videos.competition.Videos",
    "voc": "voc.competition.VOC",
    "xview2": "xview2.competition.XView2",
}
"""Name in experiment files -> module of this folder and class."""
NAMES = tuple(CLASSES)


def open_competition(
    name: str,
    root: str | Path,
    options: dict[str, Any] | None = None,
    memo: Path | None = None,
    limits: Limits | None = None,
) -> Competition:
    """Open the data of competition ``name`` under ``root``; no file is read yet.

    ``options``: the competition's own settings, ``data.options`` of an experiment. ``memo``: a file in which facts
    about labelled scenes are remembered, so that labels are read again only where they changed. ``limits``: of files,
    ``data.limits``; they hold in this process from now on, and in each that the competition is sent to. Raises
    ConfigError with a sentence for every option that is wrong.
    """
    found = _class_of(name)
    try:
        checked = found.Options.model_validate(options or {})
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, "data.options"))) from error
    opened = found(Path(root), checked, memo)
    opened.keep_limits(limits or Limits())
    return opened


def options_of(name: str) -> type[Section]:
    """Return what ``data.options`` of a competition may hold."""
    return _class_of(name).Options


def module_of(name: str) -> str:
    """Return the module that holds the class of competition ``name``."""
    return f"lib.competitions.{CLASSES[name].rpartition('.')[0]}"


def _class_of(name: str) -> type[Competition]:
    if name not in CLASSES:
        raise ConfigError(one_of("competition", name, NAMES))
    return getattr(importlib.import_module(module_of(name)), CLASSES[name].rpartition(".")[2])
