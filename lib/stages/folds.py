"""Stage 01: check the data, split the labelled scenes, audit the split."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib.competitions.contract import Competition, Finding, Scene, summarize
from lib.config.sections import Folds
from lib.errors import ConfigError, DataError
from lib.files import whole_file, write_json
from lib.run.cli import Run, say
from lib.scenes import audit, embed, folds, pairs

FINDINGS = "findings.csv"
FLAGS = 254
"""The most flags whose counts are told; thousands of classes have one each."""


def check(competition: Competition, folder: Path, strict: bool) -> Iterator[str]:
    """Read all data once, write what was found to findings.csv, yield it in words. DataError under ``strict``."""
    findings = competition.inspect()
    columns = list(Finding.__dataclass_fields__)
    with whole_file(folder / FINDINGS) as file:
        pd.DataFrame([vars(f) for f in findings], columns=columns).to_csv(file, index=False)
    lines = summarize(findings)
    if strict and findings:
        raise DataError("--strict: " + "; ".join(lines))
    yield from lines or ["data check: nothing to remark"]
    yield from (f"  {remark}" for remark in competition.remarks())


def split(competition: Competition, section: Folds, folder: Path) -> Iterator[str]:
    """Write folds.csv and audit.json, yield the audit in words. DataError where no scene can be used."""
    try:
        scenes = competition.scenes("train")
    except DataError as error:
        raise DataError(f"{error}; all that was found is listed in {folder / FINDINGS}") from error
    groups = folds.groups(scenes, section.scheme, section.block_km)
    flags = list(competition.flags)
    strata = pd.DataFrame([competition.strata(scene) for scene in scenes], columns=flags)
    table = pd.DataFrame({"id": [s.id for s in scenes], "group": groups, "domain": [s.domain for s in scenes]})
    table = table.join(strata)
    if section.file is None:
        table.insert(1, "fold", folds.assign(table, flags, section.n, section.seed))
    else:
        table, unused = _given(section, table)
        yield f"  folds taken from {section.file}" + (f"; {unused} of its ids are not in the data" if unused else "")
    folds.write_folds(folder / "folds.csv", table)
    report = audit_report(competition, table, groups, section.embed)
    write_json(folder / "audit.json", report)
    for k, row in report["folds"].items():
        more = f" and {len(flags) - FLAGS} more" if len(flags) > FLAGS else ""
        held = ", ".join(f"{flag} {row[flag]}" for flag in flags[:FLAGS])
        yield f"  fold {k}: {row['scenes']} scenes; with {held}{more}"
    yield from (f"  audit: {line}" for line in audit.lines(report))


def audit_report(competition: Competition, table: pd.DataFrame, groups: list[str] | None = None,
                 by_features: bool = True) -> dict:  # fmt: skip
    """Audit a division of the labelled scenes into folds; ``groups``: what was meant to stay whole."""
    scenes = competition.scenes("train")
    embedder, absent = embed.load() if by_features else (None, "")
    if absent:
        say(f"  {absent}")
    looks = _looks(competition, scenes, embedder)
    return audit.audit(table, scenes, looks, list(competition.flags), groups, competition.published_split())


def audit_lines(competition: Competition, table: pd.DataFrame) -> list[str]:
    """Audit finished folds again, in words."""
    return audit.lines(audit_report(competition, table))


def require_same_folds(run: Run, setting: str, experiment: str, fold: int) -> None:
    """Raise ConfigError unless another experiment divides the scenes as this one does."""
    earlier = run.store.root.parent / experiment
    theirs, ours = folds.read_folds(earlier / "01_folds" / "folds.csv"), run.folds()
    if dict(zip(theirs["id"], theirs["fold"])) != dict(zip(ours["id"], ours["fold"])):
        raise ConfigError(f"{setting}: {earlier.name} divides the scenes into other folds, so its networks for fold "
                          f"{fold} may have seen validation scenes; take its folds.csv as folds.file")  # fmt: skip


def _given(section: Folds, table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Take the folds of a given file; scenes and flags stay those of the data. Returns how many ids were not needed."""
    assert section.file is not None, "only a given file is taken"
    given = folds.read_folds(section.file)
    here = given["id"].isin(table["id"])
    given, unused = given[here], int((~here).sum())
    folds.check(given, table["id"])
    if given["fold"].max() >= section.n:
        raise ConfigError(f"folds.n: {section.file} has folds up to {given['fold'].max()}, set folds.n to match")
    table.insert(1, "fold", table["id"].map(given.set_index("id")["fold"]))
    return table, unused


def _looks(competition: Competition, scenes: list[Scene], embedder: embed.Embedder | None) -> audit.Looks:
    """Hash and embed what stands for every scene: its first image, or three frames of it."""

    def one(scene: Scene) -> tuple[list[int], np.ndarray | None]:
        frames = pairs.frames(competition.read(scene, competition.images[0]))
        return [pairs.perceptual_hash(frame) for frame in frames], embedder(frames) if embedder else None

    with ThreadPoolExecutor(max_workers=2) as pool:
        found = list(tqdm(pool.map(one, scenes), "audit", total=len(scenes), leave=False, disable=None))
    named = dict(zip((scene.id for scene in scenes), found, strict=True))
    hashes = {name: codes for name, (codes, _) in named.items()}
    vectors = {name: found for name, (_, found) in named.items() if found is not None}
    return audit.Looks(hashes, vectors if embedder else None)
