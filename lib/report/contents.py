"""What is known of one experiment, read from its folder alone; what is missing has a sentence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lib.choose.choice import DECODE, Decision
from lib.choose.figures import FIGURES, Figures
from lib.config.reference import Reference
from lib.errors import ArtifactError
from lib.report.logs import Log, read_logs
from lib.report.pictures import FOLDER, SeenData
from lib.report.units import CHOICE, FOLDS, findings_of, manifests, rows_of_csv, standing
from lib.run.manifest import read_object

REPORT = "report"
Found = TypeVar("Found")


@dataclass
class Contents:
    """What the folder of an experiment holds for a report."""

    name: str
    folder: Path
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    standing: str = ""
    """How far it is, as ``units.standing`` says."""
    decision: Decision | None = None
    figures: Figures | None = None
    logs: Mapping[str, Log] = field(default_factory=dict)
    """Checkpoint ("net/fold0") -> its log, of networks still in training too."""
    folds: Sequence[Mapping[str, str]] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)
    findings: Sequence[Mapping[str, str]] = ()
    reference: Reference | None = None
    seen: SeenData | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    """Part -> why it is not there, and how to get it."""

    @property
    def pictures(self) -> Path:
        """The folder of pictures."""
        return self.folder / REPORT / FOLDER


def read(folder: Path, inputs: Sequence[Path] = (), reference: Reference | None = None) -> Contents:
    """Read what an experiment's folder holds; what it lacks is looked for in ``inputs``.

    reference: the source's figures; else those that stage 05 recorded. Raises ArtifactError for a folder of something
    else, and for a broken manifest.
    """
    if not any(folder.glob("0[1-6]_*")):
        raise ArtifactError(f"{folder}: expected an experiment's folder of a workdir, found "
                            + ("one without any stage" if folder.is_dir() else "no such folder"))  # fmt: skip
    found = manifests(folder)
    places = [folder, *inputs]

    def unit(key: str) -> Path:
        return next((place / key for place in places if (place / key / "manifest.json").exists()), folder / key)

    absent: dict[str, str] = {}

    def part(name: str, reading: Callable[[], Found], otherwise: Found, way_out: str) -> Found:
        try:
            return reading()
        except ArtifactError as error:
            absent[name] = f"{error}. {way_out}" if way_out else str(error)
            return otherwise

    stage5 = "Stage 05 writes it: python 05_ensemble.py --split oof"
    recorded = found.get(CHOICE, {}).get("reference")
    none: dict[str, Log] = {}
    logs = part("logs", lambda: read_logs(folder), none, "")
    return Contents(
        name=folder.resolve().name,
        folder=folder,
        manifests=found,
        standing=part("standing", lambda: standing(folder, found), "", ""),
        decision=part("decision", lambda: Decision.read(unit(CHOICE) / DECODE), None, stage5),
        figures=part("figures", lambda: Figures.read(unit(CHOICE) / FIGURES), None,
                     f"{stage5} --force (an earlier version did not write it)"),
        logs=logs,
        folds=rows_of_csv(unit(FOLDS) / "folds.csv"),
        audit=part("audit", lambda: read_object(unit(FOLDS) / "audit.json"), {}, "Stage 01 writes it"),
        findings=findings_of(unit(FOLDS)),
        reference=reference or (Reference.model_validate(recorded) if recorded else None),
        seen=part("seen", lambda: SeenData.read(folder / REPORT / FOLDER), None,
                  "Pictures need the data; stages 05 and 06 draw them"),
        absent=absent,
    )  # fmt: skip
