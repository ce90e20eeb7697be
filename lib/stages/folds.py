"""Stage 01: check the data, split the labelled scenes, audit the split."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.competitions.contract import Competition, Finding, Scene, summarize
from lib.competitions.listing import otherwise
from lib.competitions.records import matched, read_records
from lib.competitions.sample import SUFFIXES
from lib.config.sections import Folds
from lib.errors import ArtifactError, ConfigError, DataError
from lib.files import read_json, whole_file, write_json
from lib.run import manifest
from lib.run.cli import Run, say
from lib.run.survey import Survey, frames_of
from lib.scenes import audit, embed, folds, leaks
from lib.scenes.georeference import LABEL, Location
from lib.scenes.matching import Matcher
from lib.scenes.pairs import DUPLICATE_BITS, LOOK_ALIKE, look_alikes, near_duplicates
from lib.settings import some

FINDINGS = "findings.csv"
PLACES = "places.json"
FLAGS = 254
"""The most flags whose counts are told; thousands of classes have one each."""


def check(
    competition: Competition, folder: Path, strict: bool, survey: Survey | None = None, features: bool = False
) -> Iterator[str]:
    """Read all data once, write what was found to findings.csv, yield it in words. DataError under ``strict``.

    survey: who reads the data, and sees for ``split`` how they look, with ``features`` where these are compared.
    """
    if survey is not None:
        survey.see(features)
    findings = competition.inspect()
    columns = list(Finding.__dataclass_fields__)
    with whole_file(folder / FINDINGS) as file:
        pd.DataFrame([vars(f) for f in findings], columns=columns).to_csv(file, index=False)
    lines = summarize(findings)
    if strict:
        refuse(folder)
    yield from (f"  {line}" for line in competition.summary())
    yield from lines or ["data check: nothing to remark"]
    yield from (f"  {remark}" for remark in competition.remarks())


def refuse(folder: Path) -> None:
    """Raise DataError for what ``check`` has written to ``folder`` that it found, if anything."""
    path = folder / FINDINGS
    if not path.is_file():
        return  # folds from elsewhere come without it
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if findings := [Finding(**row) for row in table.to_dict("records")]:
        raise DataError("--strict: " + "; ".join(summarize(findings)))


def split(competition: Competition, section: Folds, folder: Path, survey: Survey | None = None) -> Iterator[str]:
    """Write folds.csv and audit.json, yield the audit in words. DataError where no scene can be used."""
    survey = survey or Survey(competition)
    try:
        scenes = competition.scenes("train")
    except DataError as error:
        raise DataError(f"{error}; all that was found is listed in {folder / FINDINGS}") from error
    groups = folds.groups(scenes, section.scheme, section.block_km)
    looks = None
    if section.cluster is not False:
        looks = looks_of(competition, scenes, needed="folds.cluster", survey=survey)
        groups, said = joined(groups, looks, [scene.id for scene in scenes], section)
        yield from said
    flags = list(competition.flags)
    strata = pd.DataFrame([competition.strata(scene) for scene in scenes], columns=flags)
    table = pd.DataFrame({"id": [s.id for s in scenes], "group": groups, "domain": [s.domain for s in scenes]})
    table = table.join(strata)
    if section.file is None:
        table.insert(1, "fold", _assigned(table, flags, section))
    else:
        table, said = _given(section, table)
        yield from said
    folds.write_folds(folder / "folds.csv", table)
    looks = looks or looks_of(competition, scenes, section.embed, survey=survey)
    report = audit_report(competition, table, groups, looks)
    report["test"] = against_test(competition, scenes, looks, survey)
    write_json(folder / "audit.json", report)
    for k, row in report["folds"].items():
        held = some([f"{flag} {row[flag]}" for flag in flags], FLAGS)
        yield f"  fold {k}: {row['scenes']} scenes; with {held}"
    yield from (f"  audit: {line}" for line in audit.lines(report))
    yield from (f"  audit: {line}" for line in leaks.lines(report["test"]))


def places(competition: Competition, folder: Path) -> Iterator[str]:
    """Write places.json, scene -> its ``Location``, and yield a line of it; nothing where no scene has one."""
    scenes = {scene.id: scene for split in ("train", "test") for scene in competition.scenes(split)}
    found = {name: place for name, scene in sorted(scenes.items()) if (place := competition.place(scene)) is not None}
    if not found:
        return
    write_json(folder / PLACES, {name: place.to_json() for name, place in found.items()})
    labels = [place.residual for place in found.values() if place.told_by == LABEL]
    told = f"{len(found) - len(labels)} by their images, {len(labels)} by their labels"
    furthest = f" (to {max(labels):.2f} pixels)" if labels else ""
    yield f"  place on Earth: known of {len(found)} of {len(scenes)} scenes, {told}{furthest}"


def recorded_places(folder: Path) -> dict[str, Location]:
    """Return scene -> its place as stage 01 wrote it; {} where it wrote none, as earlier versions did."""
    path = folder / PLACES
    if not path.is_file():
        return {}
    try:
        return {name: Location.from_json(held) for name, held in read_json(path).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: expected the places of scenes, got {error!r}; run stage 01 with --force"
        ) from error


def against_test(
    competition: Competition, train: list[Scene], looks: audit.Looks, survey: Survey | None = None
) -> dict[str, Any]:
    """Compare the test scenes with those of training, which look like ``looks``, by bytes, and by hash and pixels."""
    test = competition.scenes("test")
    theirs = looks_of(competition, test, by_features=False, split="test", survey=survey)
    hashes = {"train": looks.hashes, "test": theirs.hashes}

    def matches(test_id: str, train_id: str) -> bool:
        return looks.matcher is None or looks.matcher.copies(train_id, test_id, theirs.matcher)

    return leaks.report(train, test, competition.files, hashes, matches)


def joined(groups: list[str], looks: audit.Looks, ids: list[str], section: Folds) -> tuple[list[str], list[str]]:
    """Join the groups of scenes that look alike; returns them and what is to be said of it.

    Such scenes are near-duplicates by hash, and those that ``section.cluster`` calls alike by their features.
    """
    least = LOOK_ALIKE if section.cluster is True else float(section.cluster)
    embeddings = looks.embeddings or {}
    copies = [(i, j) for i, j, _ in near_duplicates([looks.hashes[i] for i in ids])
              if looks.matcher is None or looks.matcher.copies(ids[i], ids[j])]  # fmt: skip
    found = [np.array(copies, np.int64).reshape(-1, 2), look_alikes([embeddings.get(i) for i in ids], least)[0]]
    alike = np.unique(np.concatenate(found), axis=0)  # (P, 2)
    new = folds.join(groups, alike)
    before = pd.Series(groups).groupby(new).nunique()
    sizes = pd.Series(new).value_counts()[before.index[before > 1]]
    apart = sum(groups[i] != groups[j] for i, j in alike)
    bounds = f"similarity of at least {least:g}, or hashes at most {DUPLICATE_BITS} bits apart"
    if not len(sizes):
        return new, [f"  look-alikes ({bounds}): none in different groups, which stay as they are"]
    lines = [f"  look-alikes ({bounds}): {apart} pairs join {sizes.sum()} scenes into {len(sizes)} clusters, the "
             f"largest of {sizes.max()}; {len(set(new))} groups, {len(set(groups))} before"]  # fmt: skip
    if sizes.max() > len(ids) / section.n:
        lines.append(f"  ! the largest cluster is more than a fold's share of {len(ids)} scenes; if these are only "
                     f"images of one kind, set folds.cluster above {least:g}")  # fmt: skip
    return new, lines


def _assigned(table: pd.DataFrame, flags: list[str], section: Folds) -> np.ndarray:
    try:
        return folds.assign(table, flags, section.n, section.seed)
    except ConfigError as error:
        if section.cluster is False:
            raise
        raise ConfigError(f"{error}; or set folds.cluster higher, so that fewer scenes look alike") from error


def audit_report(
    competition: Competition, table: pd.DataFrame, groups: list[str] | None, looks: audit.Looks
) -> dict[str, Any]:
    """Audit a division of the labelled scenes into folds; ``groups``: what was meant to stay whole."""
    scenes = competition.scenes("train")
    return audit.audit(table, scenes, looks, list(competition.flags), groups, competition.published_split())


def audit_lines(competition: Competition, table: pd.DataFrame) -> list[str]:
    """Audit finished folds again, in words."""
    looks = looks_of(competition, competition.scenes("train"))
    return audit.lines(audit_report(competition, table, None, looks))


def require_same_folds(run: Run, setting: str, experiment: str, fold: int) -> None:
    """Raise ConfigError unless another experiment divides the scenes as this one does."""
    earlier = run.store.root.parent / experiment
    theirs, ours = folds.read_folds(manifest.check(earlier / "01_folds" / "folds.csv")), run.folds()
    if dict(zip(theirs["id"], theirs["fold"])) != dict(zip(ours["id"], ours["fold"])):
        raise ConfigError(f"{setting}: {earlier.name} divides the scenes into other folds, so its networks for fold "
                          f"{fold} may have seen validation scenes; take its folds.csv as folds.file")  # fmt: skip


def _given(section: Folds, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Take the folds of a given file; scenes and flags stay those of the data. Returns what is to be said of it, too.

    The file is read as all tables of users: its ids may have a suffix, and ids and folds may have lost zeros or be
    written as 1.0.
    """
    assert section.file is not None, "only a given file is taken"
    path = Path(section.file)
    read = read_records(path)
    given = pd.DataFrame(read.rows, columns=list(read.columns), dtype=object)
    said = [f"  ! {path.name} line {row.line}: {row.kind} ({row.detail})" for row in read.odd]
    if "id" in given and "fold" in given:
        means = matched(given["id"], {name: name for name in table["id"]}, SUFFIXES)
        changed = {text: name for text, name in means.items() if text != name}
        said += [f"  ! {line}" for line in summarize(otherwise(f"ids of {path.name} read as those of scenes", path.name,
                                                              changed, SUFFIXES))]  # fmt: skip
        given["id"] = [means.get(text, text) for text in given["id"]]
        given["fold"] = given["fold"].str.removesuffix(".0")
    given = folds.checked(path, given)
    here = given["id"].isin(table["id"])
    given, unused = given[here], int((~here).sum())
    folds.check(given, table["id"])
    if empty := sorted(set(range(section.n)) - set(given["fold"])):
        raise ConfigError(
            f"{section.file}: expected scenes in each of the folds 0 to {section.n - 1}, found none in "
            f"fold {some(list(map(str, empty)))}; count folds from 0, or set folds.n to their number"
        )
    if given["fold"].max() >= section.n:
        raise ConfigError(f"folds.n: {section.file} has folds up to {given['fold'].max()}, set folds.n to match")
    table.insert(1, "fold", table["id"].map(given.set_index("id")["fold"]))
    taken = f"  folds taken from {section.file}" + (f"; {unused} of its ids are not in the data" if unused else "")
    return table, [taken, *said]


def looks_of(
    competition: Competition,
    scenes: list[Scene],
    by_features: bool = True,
    needed: str = "",
    split: str = "train",
    survey: Survey | None = None,
) -> audit.Looks:
    """Hash and embed what stands for every scene of a split: its first image, or three frames of it.

    needed: the setting that cannot do without features; ConfigError where they cannot be had, else this is said.
    survey: what was seen of them before.
    """
    embedder, absent = embed.load() if by_features else (None, "")
    if absent and needed:
        raise ConfigError(f"{needed}: expected the features of a network, but {absent}")
    if absent:
        say(f"  {absent}")
    found = (survey or Survey(competition)).looks(split, scenes, embedder is not None)
    named = dict(zip((scene.id for scene in scenes), found, strict=True))
    hashes = {name: look.hashes for name, look in named.items()}
    vectors = {name: look.vectors for name, look in named.items() if look.vectors is not None}
    by_id = {scene.id: scene for scene in scenes}
    matcher = Matcher(lambda scene_id: frames_of(competition, by_id[scene_id]))
    return audit.Looks(hashes, vectors if embedder else None, matcher)
