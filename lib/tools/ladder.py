"""Run a ladder of experiments over several seeds and print what every rung adds (an ablation table).

A ladder is a folder of experiment files whose names begin with a digit; each rung is the one before with something
changed. An experiment of it is one rung with one seed, in a folder of its own. What is finished is skipped, so the same
command again goes on after Ctrl-C. A rung that is taught by another experiment of the folder (``experiment`` of its
``train.distill`` is the name inside) has that one trained first, with the same seed; it keeps its logits
(``predict.logits: true``). A rung's ``reference`` has the source's score, which is printed beside ours.

``--set`` changes all files, or, with a prefix, some: ``5-6:`` the rungs of these numbers, ``teacher:`` the file of that
name. The last one that fits wins::

    python -m lib.tools.ladder configs/bag_of_tricks --seeds 0 1 --set data.root=/data/flowers \\
        0-1:models.net.network.encoder=resnet18 2-6:models.net.network.encoder=resnet18d

With ``--local N`` or ``--scheduler ADDRESS`` all rungs and seeds run side by side, as ``lib.tools.sweep`` says; a rung
that is taught waits for its teacher alone.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.config.load import load
from lib.config.reference import Reference
from lib.errors import ConfigError
from lib.report.units import flat
from lib.run import cli
from lib.tools import sweep, table
from lib.tools.sweep import Combination, Outcome

PREFIX = re.compile(r"(?:(\d+)(?:-(\d+))?|([A-Za-z_]\w*)):(?=[\w.-]+=)")
UNTOLD = ("name", "seed", "reference")
"""Sections that are no change of the experiment."""


@dataclass(frozen=True)
class Rung:
    """One experiment file of the ladder with the settings that replace its own."""

    path: Path
    settings: Mapping[str, Any]
    teachers: Mapping[str, Path] = field(default_factory=dict)
    """Setting that names a teacher -> that experiment's file."""

    @property
    def overrides(self) -> list[str]:
        """Return the settings as ``--set`` takes them."""
        return [f"{key}={sweep.yaml_value(value)}" for key, value in self.settings.items()]


# ---- the ladder ---------------------------------------------------------------------------------------
def rungs(folder: Path, sets: Sequence[str] = ()) -> tuple[list[Rung], dict[Path, Rung]]:
    """Return the rungs of a folder in the order of their names, and file -> experiment for all others in it.

    Raises ConfigError where there are none, on a setting for a file that is not there, on faulty files, and where a
    teacher keeps no logits.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not any(path.name[0].isdigit() for path in paths):
        raise ConfigError(f"{folder}: expected experiment files whose names begin with a digit, found none")
    parsed = [_parse(text) for text in sets]
    for text, (wanted, _, _) in zip(sets, parsed, strict=True):
        if not any(_fits(wanted, path) for path in paths):
            raise ConfigError(f"--set {text}: no file of {folder} fits; it has {', '.join(p.stem for p in paths)}")
    files = {}
    for path in paths:
        settings = {key: value for wanted, key, value in parsed if _fits(wanted, path)}
        files[path] = Rung(path, settings)
    names = {load(path, rung.overrides).name: path for path, rung in files.items()}
    if len(names) < len(files):
        raise ConfigError(f"{folder}: two of the files have the same name inside; give each experiment its own")
    for path, rung in files.items():
        taught = {key: names[value] for key, value in flat(tree(rung)).items()
                  if key.endswith(".distill.experiment") and value in names}  # fmt: skip
        for key, teacher in taught.items():
            if not load(teacher, files[teacher].overrides).predict.logits:
                raise ConfigError(
                    f"{teacher}: predict.logits: expected true, since {path.name} is taught by it ({key})"
                )
        files[path] = Rung(path, rung.settings, taught)
    climbed = [rung for path, rung in files.items() if path.name[0].isdigit()]
    return climbed, {path: rung for path, rung in files.items() if not path.name[0].isdigit()}


def _parse(text: str) -> tuple[Any, str, Any]:
    """Take a setting apart: (None, a range of numbers or a file's name; its key; its value)."""
    match = PREFIX.match(text)
    key, sign, value = text[match.end() if match else 0 :].partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {text}: expected section.key=value, or a rung before it, as 0-4:section.key=value")
    if key in UNTOLD:
        raise ConfigError(f"--set {text}: {key} is the ladder's own, leave it out")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: not a YAML value: {error}") from error
    if not match:
        return None, key, parsed
    first, last, name = match.groups()
    return name or range(int(first), int(last or first) + 1), key, parsed


def _fits(wanted: Any, path: Path) -> bool:
    number = re.match(r"\d+", path.stem)
    if isinstance(wanted, range):
        return number is not None and int(number[0]) in wanted
    return wanted in (None, path.stem)


# ---- what changed -------------------------------------------------------------------------------------
def tree(rung: Rung) -> dict[str, Any]:
    """Return what a rung's experiment says, its settings in place; defaults are left out."""
    return load(rung.path, rung.overrides).model_dump(mode="json", exclude_defaults=True)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say in few words what the second experiment has that the first has not: "encoder resnet50d, crop 64 (not 96)"."""
    old, new = ({k: v for k, v in flat(one).items() if k.split(".")[0] not in UNTOLD} for one in (before, after))
    said = []
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) == new.get(key):
            continue
        word = ".".join(key.split(".")[-2:]) if key.count(".") > 2 else key
        if key not in new:
            said.append(f"no {word}")
        else:
            instead = f" (not {sweep.yaml_value(old[key])})" if key in old else ""
            said.append(f"{word} {sweep.yaml_value(new[key])}{instead}")
    return ", ".join(said)


# ---- running ------------------------------------------------------------------------------------------
def experiments(
    climbed: Sequence[Rung], others: Mapping[Path, Rung], seeds: Sequence[int]
) -> tuple[list[Combination], dict[Path, list[Combination]]]:
    """Return all experiments in the order to run them, a teacher before the first it teaches, and those of each rung.

    All rungs with the first seed come first, so that an early look at the table shows the whole ladder.
    """
    by_path = {rung.path: rung for rung in climbed} | dict(others)
    made: dict[str, Combination] = {}

    def add(rung: Rung, seed: int, waiting: tuple[Path, ...] = ()) -> Combination:
        if rung.path in waiting:
            raise ConfigError(f"{rung.path}: train.distill.experiment: this experiment would teach itself")
        taught = {key: add(by_path[path], seed, (*waiting, rung.path)).name for key, path in rung.teachers.items()}
        name = f"{load(rung.path, rung.overrides).name}_seed{seed}"
        return made.setdefault(name, Combination(name, rung.path, {**rung.settings, **taught, "seed": seed}))

    of_rung: dict[Path, list[Combination]] = {rung.path: [] for rung in climbed}
    for seed in seeds:
        for rung in climbed:
            of_rung[rung.path].append(add(rung, seed))
    return list(made.values()), of_rung


def ablation(climbed: Sequence[Rung], of_rung: Mapping[Path, Sequence[Combination]], outcome: Mapping[str, str],
             workdir: Path) -> list[dict[str, Any]]:  # fmt: skip
    """Return a row per rung: what changed, mean and spread (standard deviation, n - 1) of the score over the seeds that
    are finished, the source's own score where one has a reference, the score expected on unseen scenes, the gain over
    the rung before, seconds of all seeds."""
    rows: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    for rung in climbed:
        now = tree(rung)
        (found,) = sweep.results(of_rung[rung.path], outcome, workdir)
        last = rows[-1]["score"] if rows else None
        gain = found["score"] - last if None not in (found["score"], last) else None
        rows.append({
            "rung": rung.path.stem, "changed": changes(before, now) if rows else "", "score": found["score"],
            "spread": found["spread"], "gain": gain, "expected": found["expected_score"],
            "seeds": found["seeds"], "seconds": found["seconds"],
        })  # fmt: skip
        before = now
        theirs = Reference.model_validate(now["reference"]).scores if now.get("reference") else {}
        if "score" in theirs:
            rows[-1]["source"] = theirs["score"]
    return rows


def climb(folder: Path, seeds: Sequence[int], workdir: Path, sets: Sequence[str],
          run: Callable[[Sequence[Combination]], Outcome]) -> tuple[list[dict[str, Any]], Outcome]:  # fmt: skip
    """Run a ladder; returns the table's rows, and experiment -> why it failed, for those that did.

    run: runs experiments, as ``sweep.runs`` does.
    """
    climbed, others = rungs(folder, sets)
    todo, of_rung = experiments(climbed, others, list(dict.fromkeys(seeds)))
    outcome = run(todo)
    for combinations in of_rung.values():  # one row per rung, whatever a seed's teacher is called
        combinations[:] = [Combination(c.name, c.config, {"seed": c.settings["seed"]}) for c in combinations]
    rows = ablation(climbed, of_rung, outcome, workdir)
    return rows, {name: why for name, why in outcome.items() if why}


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("folder", type=Path, help="folder of experiment files whose names begin with a digit")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of every rung (default: 0)")
    sweep.add_flags(flags)
    flags.add_argument("--set", action="extend", nargs="+", default=[], metavar="[RUNG:]SECTION.KEY=VALUE", dest="sets",
                       help="change one value in all experiments, or in some")  # fmt: skip
    flags.add_argument("--csv", type=Path, help="write the table here too")
    args = flags.parse_args(argv)
    with sweep.runs(args) as run:
        rows, failed = climb(args.folder, args.seeds, args.workdir, args.sets, run)
    print(table.text(rows))
    if args.csv:
        table.write_csv(args.csv, rows)
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    return 2 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
