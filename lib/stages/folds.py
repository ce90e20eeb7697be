"""Stage 01: check the data, split the labelled scenes, audit the split."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from lib.competitions.contract import Competition, Finding, Scene, summarize
from lib.errors import ConfigError, DataError
from lib.run.artifacts import write_json
from lib.run.cli import Run
from lib.run.config import Folds
from lib.scenes import audit, folds


def table(run: Run) -> pd.DataFrame:
    """Return the finished folds.csv; ArtifactError naming the command where stage 01 has to run."""
    return folds.read_folds(run.store.require(run.graph.folds()) / "folds.csv")


def check(competition: Competition, folder: Path, strict: bool) -> Iterator[str]:
    """Read all data once, write what was found to findings.csv, yield it in words. DataError under ``strict``."""
    findings = competition.inspect()
    columns = list(Finding.__dataclass_fields__)
    pd.DataFrame([vars(f) for f in findings], columns=columns).to_csv(folder / "findings.csv", index=False)
    lines = summarize(findings)
    if strict and findings:
        raise DataError("--strict: " + "; ".join(lines))
    yield from lines or ["data check: nothing to remark"]


def split(competition: Competition, section: Folds, folder: Path) -> Iterator[str]:
    """Write folds.csv and audit.json, yield the audit in words."""
    scenes = competition.scenes("train")
    groups = folds.groups(scenes, section.scheme, section.block_km)
    flags = list(competition.flags)
    strata = pd.DataFrame([competition.strata(scene) for scene in scenes], columns=flags)
    table = pd.DataFrame({"id": [s.id for s in scenes], "group": groups}).join(strata)
    if section.file is None:
        table.insert(1, "fold", folds.assign(table, flags, section.n, section.seed))
    else:
        table, unused = _given(section, table)
        yield f"  folds taken from {section.file}" + (f"; {unused} of its ids are not in the data" if unused else "")
    folds.write_folds(folder / "folds.csv", table.drop(columns="group"))
    report = audit.audit(table, scenes, _hashes(competition, scenes), flags, groups=groups)
    write_json(folder / "audit.json", report)
    for k, row in report["folds"].items():
        yield f"  fold {k}: {row['scenes']} scenes; with " + ", ".join(f"{flag} {row[flag]}" for flag in flags)
    yield from (f"  audit: {line}" for line in audit.lines(report))


def _given(section: Folds, table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Take the folds of a given file; scenes and flags stay those of the data. Returns how many ids were not needed."""
    given = folds.read_folds(section.file)
    here = given["id"].isin(table["id"])
    given, unused = given[here], int((~here).sum())
    folds.check(given, table["id"])
    if given["fold"].max() >= section.n:
        raise ConfigError(f"folds.n: {section.file} has folds up to {given['fold'].max()}, set folds.n to match")
    table.insert(1, "fold", table["id"].map(given.set_index("id")["fold"]))
    return table, unused


def _hashes(competition: Competition, scenes: list[Scene]) -> dict[str, int]:
    """Hash the first image of every scene."""

    def one(scene: Scene) -> int:
        return audit.perceptual_hash(competition.read(scene, competition.images[0]))

    with ThreadPoolExecutor(max_workers=2) as pool:
        found = tqdm(pool.map(one, scenes), "audit", total=len(scenes), leave=False, disable=None)
        return dict(zip((scene.id for scene in scenes), found, strict=True))
