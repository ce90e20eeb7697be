"""What an experiment's folder says without its data: its finished units, how far it is, and its settings."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.config.sections import Experiment
from lib.errors import ArtifactError
from lib.run.manifest import MANIFEST, fault, read_json, reads

FOLDS = "01_folds"
CHOICE = "05_ensemble/decode"
FINISHED = "finished"

Manifests = Mapping[str, Mapping[str, Any]]
"""Unit -> what it says of itself."""


def experiments(workdir: Path) -> list[Path]:
    """Return the folders of a workdir that hold anything a stage has written, by name. Raises ArtifactError."""
    if not workdir.is_dir():
        raise ArtifactError(f"{workdir}: expected a workdir with experiments, found no such folder; see --workdir")
    return sorted(folder for folder in workdir.iterdir() if folder.is_dir() and any(folder.glob("0[1-6]_*")))


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests of an experiment's finished units. Raises ArtifactError for one that is broken."""
    found = {}
    for path in sorted(folder.glob(f"0[1-6]_*/**/{MANIFEST}")):
        key = path.parent.relative_to(folder).as_posix()
        if not any(part.endswith((".partial", ".old")) for part in key.split("/")):
            found[key] = read_json(path)
    return found


def standing(folder: Path, found: Manifests) -> str:
    """Say how far an experiment is: finished, or what is unfinished, stale or damaged."""
    half = [path.parent.relative_to(folder).as_posix() for path in folder.glob("0[1-6]_*/**/unit.json")]
    begun = sorted(key.removesuffix(".partial") for key in half)
    if CHOICE not in found:
        last = max(found, default="nothing")
        return f"unfinished: {len(found)} units done, last {last}" + (f"; begun {', '.join(begun)}" if begun else "")
    if harm := fault(folder / CHOICE):
        return f"damaged: {harm}"
    if old := _outdated(found):
        return f"stale: {old[0]} was made with another {old[1]}"
    return FINISHED


def _outdated(found: Manifests) -> tuple[str, str] | None:
    """Return a unit below decode.json, and what it reads, where that was made anew since: other settings or bytes."""
    waiting, seen = [CHOICE], {CHOICE}
    while waiting:
        key = waiting.pop()
        for source, fingerprint in found[key]["upstream"].items():
            if source not in found:  # taken from --inputs
                continue
            if found[source]["fingerprint"] != fingerprint or not reads(found[key], source, found[source]):
                return key, source
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return None


# ---- settings -----------------------------------------------------------------------------------------
def stated(found: Manifests) -> dict[str, Any]:
    """Return the settings that finished units were made with: dotted key of the experiment file -> value.

    Of a finished experiment all settings, defaults filled in; of another one those that are known and no default.
    Name, folder of the data and reference are no settings.
    """
    tree: dict[str, Any] = {}
    models: dict[str, Any] = {}
    for key, manifest in found.items():
        facts = manifest["facts"]
        if key == FOLDS:
            tree |= {"competition": facts["competition"], "data": {"options": facts["options"]}}
            tree["folds"] = facts["folds"]
        elif "network" in facts:
            tree["seed"] = facts["seed"]
            parts = {name: facts[name] for name in ("task", "network", "view", "train") if name in facts}
            models.setdefault(key.split("/")[1], {}).update(parts)
        elif "predict" in facts:
            tree["predict"] = facts["predict"]
        elif key == CHOICE:
            tree |= {name: facts[name] for name in ("decode", "search", "blend")}
            for name, weight in facts["weights"].items():
                models.setdefault(name, {})["weight"] = weight
    tree["models"] = models
    return flat(_with_defaults(tree) if CHOICE in found else tree)


def _with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults; the settings stay as they are where units of other experiments or versions are missing."""
    try:
        whole = Experiment.model_validate({**tree, "name": "any", "data": {**tree.get("data", {}), "root": "."}})
    except ValidationError:
        return tree
    return whole.model_dump(mode="json", exclude={"name": True, "reference": True, "data": {"root", "synthetic"}})


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as dotted keys; lists stay values."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differences(settings: Sequence[Mapping[str, Any]], whole: Sequence[bool]) -> list[str]:
    """Return the keys whose values are not the same everywhere, sorted.

    ``whole``: whether all settings of an experiment are known; of others a missing key says nothing.
    """
    differing = []
    for key in sorted({key for own in settings for key in own}):
        values = {json.dumps(own.get(key)) for own, known in zip(settings, whole, strict=True) if known or key in own}
        if len(values) > 1:
            differing.append(key)
    return differing


# ---- tables -------------------------------------------------------------------------------------------
def findings_of(folds: Path) -> list[dict[str, str]]:
    """Return the rows of findings.csv in stage 01's folder: kind, scene, detail; [] where there is none."""
    return rows_of_csv(folds / "findings.csv")


def rows_of_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of ours by the names of its columns; [] where there is none."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        return []
