"""Sections on what an experiment cost and how to repeat it: seconds, memory, devices, commands, versions."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lib.errors import ArtifactError
from lib.report.blocks import Cell, DataTable, Lines, Piece, Words
from lib.report.contents import Contents
from lib.report.times import by_stage, columns, note, times

MEMORY = "peak_memory_mib"


def costs(one: Contents, key: str) -> Iterator[Piece]:
    """Seconds by stage and by what they went to, and what each checkpoint took."""
    try:
        rows, without = times(one.folder)
    except ArtifactError as error:
        yield Words(str(error), absent=True)
        return
    stages = by_stage(rows)
    if stages:
        names = columns(stages)
        shade = [[None, *(_share(row[name], row["seconds"]) for name in names[2:])] for row in stages]
        yield DataTable("Seconds by stage, and what they went to", names,
                        [[_rounded(row[name]) for name in names] for row in stages], shade)  # fmt: skip
    yield from _by_stage(one.manifests)
    if without:
        sums = {key: made.get("seconds") for key, made in one.manifests.items() if key in without}
        yield Words(note(without), absent=True)
        yield DataTable("Seconds of these", ("unit", "seconds"), list(sums.items()))
    if not one.manifests:
        yield Words("No unit is finished yet.", absent=True)
    if one.logs:
        yield _training(one)
        yield Words("Core-hours are training seconds times the cores that training kept busy. They and the use of a "
                    "GPU say something about energy, which is not measured.")  # fmt: skip
    if predicted := [
        (unit, made.get("device"), made.get("seconds"), made.get("seconds_per_scene"), made.get("network_busy"))
        for unit, made in one.manifests.items()
        if unit.startswith("04")
    ]:
        yield DataTable("Prediction", ("unit", "device", "seconds", "seconds a scene", "network busy"), predicted)


def _by_stage(manifests: Mapping[str, Mapping[str, Any]]) -> Iterator[Piece]:
    """Yield what the units of each stage held and computed, of those that recorded it."""
    known: dict[str, list[Mapping[str, Any]]] = {}
    for unit, made in manifests.items():
        if MEMORY in made:
            known.setdefault(unit.partition("/")[0], []).append(made)
    if known:
        rows = [
            (
                stage,
                max(made[MEMORY] for made in own),
                round(sum(made["cpu_seconds"] for made in own), 1),
                ", ".join(dict.fromkeys(made.get("device", "") for made in own)),
            )
            for stage, own in known.items()
        ]
        yield DataTable("Memory and processors by stage", ("stage", "peak memory, MiB", "CPU seconds", "device"), rows)
        yield Words("Peak memory is the most that a stage's process had held when it finished a unit, on a GPU that of "
                    "its tensors. CPU seconds are those of the process itself, without its helpers.")  # fmt: skip


def _training(one: Contents) -> DataTable:
    """Return a row per checkpoint: device, epochs, seconds, speed, memory, how busy its device and its cores were."""
    rows: list[list[Cell]] = []
    for name, log in one.logs.items():
        made: Mapping[str, Any] = next((made for unit, made in one.manifests.items() if unit.endswith(f"/{name}")), {})
        seconds = sum(row.get("train_seconds", 0.0) for row in log)
        cores = [row["cpu_cores"] * row.get("train_seconds", 0.0) for row in log if "cpu_cores" in row]
        rows.append([
            name, made.get("device", "not known" if made else "in training"), len(log), round(seconds, 1),
            _mean([row["images_per_second"] for row in log if "images_per_second" in row]),
            max((row[MEMORY] for row in log if row.get(MEMORY) is not None), default=None),
            max((row["gpu_memory_mib"] for row in log if "gpu_memory_mib" in row), default=None),
            _mean([row["gpu_percent.mean"] for row in log if "gpu_percent.mean" in row]),
            _mean([row["loader_wait"] for row in log if "loader_wait" in row]),
            round(sum(cores) / 3600, 3) if cores else None,
        ])  # fmt: skip
    names = ("checkpoint", "device", "epochs", "seconds", "images a second", "peak memory, MiB", "GPU memory, MiB",
             "GPU busy, %", "share waiting for data", "core-hours")  # fmt: skip
    return DataTable("Training", names, rows)


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None


def _share(value: float | None, seconds: float) -> float | None:
    return None if value is None or not seconds else min(1.0, value / seconds)


def _rounded(value: Cell) -> Cell:
    return round(value, 1) if isinstance(value, float) else value


# ---- how to repeat it ---------------------------------------------------------------------------------
def repeating(one: Contents, key: str) -> Iterator[Piece]:
    """The commands that made the units, the commit and the versions."""
    commands = commands_of(one.manifests)
    if not commands:
        yield Words("No unit is finished yet, so no command is recorded.", absent=True)
        return
    git = [made["git"] for made in one.manifests.values() if made.get("git")]
    commits = dict.fromkeys(f"git checkout {own['commit']}" for own in git if own.get("commit"))
    yield Lines("These commands made it, in this order", [*commits, "pip install -r requirements.txt", *commands])
    if any(own.get("dirty") for own in git):
        yield Words("Some units were made with changes that were not committed; the commit alone does not give them.",
                    absent=True)  # fmt: skip
    if len(commits) > 1:
        yield Words("Units were made at several commits; check each out for its own stages.", absent=True)
    versions: dict[str, dict[str, None]] = {}
    for made in one.manifests.values():
        own = {"python": made.get("python"), **made.get("versions", {}), "device": made.get("device")}
        for name, version in own.items():
            if version:
                versions.setdefault(name, {})[str(version)] = None
    seeds = dict.fromkeys(str(made["seed"]) for made in one.manifests.values() if "seed" in made)
    rows = [("seed", ", ".join(seeds)), *((name, ", ".join(found)) for name, found in versions.items())]
    yield DataTable("Seeds and versions", ("", "found"), rows)


def commands_of(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the commands that made the units, stage by stage, each once."""
    found: dict[str, None] = {}
    for unit in sorted(manifests):
        if command := manifests[unit].get("command"):
            found[command if re.match(r"\S*python", command) else f"python {command}"] = None
    return list(found)
