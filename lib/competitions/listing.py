"""Scenes by the names of their files: folders, patterns with one ``*``, what an id says, and names of classes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from lib.competitions import suffixes
from lib.competitions.records import Records, bare
from lib.competitions.scene import Finding, is_text
from lib.competitions.suffixes import is_picture
from lib.errors import ConfigError
from lib.settings import some
from lib.tasks import IGNORE, names_of

SUFFIXES = suffixes.PICTURES
RESERVED = ("id", "fold", "group", "domain")
"""Columns of folds.csv that no class may be called."""


# ---- types of options ---------------------------------------------------------------------------------
def checked_classes(given: Any, most: int = IGNORE - 1) -> tuple[str, ...]:
    """Return names of 2 to ``most`` classes as a tuple. Raises ValueError for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError("expected a list of names in the order of their indices")
    if odd := [name for name in given if not isinstance(name, str)]:
        shown = ", ".join(map(str, odd[:5]))
        raise ValueError(f"expected names, found {shown}; quote them: YAML reads no, yes, on, off and numbers as "
                         "something else")  # fmt: skip
    if odd := [name for name in given if not is_text(name)]:
        raise ValueError(f"expected names in UTF-8, found {odd[0]!a}; rename the folder that is called so")
    if not 2 <= len(given) <= most:
        raise ValueError(f"expected 2 to {most} names in the order of their indices, found {len(given)}")
    columns = names_of(given)
    times = Counter([*columns, *RESERVED])
    if odd := [repr(name) for name, column in zip(given, columns, strict=True) if times[column] > 1]:
        raise ValueError(f"expected names that differ in letters and digits and are none of {', '.join(RESERVED)}, "
                         f"found {some(odd, 6)}")  # fmt: skip
    return tuple(given)


def _checked_expression(given: str) -> str:
    try:
        re.compile(given)
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from error
    return given


def checked_pattern(given: str) -> str:
    """Return a folder, or a pattern with one ``*`` in the name of its files. Raises ValueError for anything else."""
    if not given or _whole(given).count("*") != 1:
        raise ValueError("expected a folder, or a pattern with one * in the name of its files")
    return given


Classes = Annotated[tuple[str, ...], BeforeValidator(checked_classes)]
"""Names of classes in the order of their indices."""
Expression = Annotated[str, AfterValidator(_checked_expression)]
"""A regular expression; its first group, or all of the match, is what it finds."""
Pattern = Annotated[str, AfterValidator(checked_pattern)]
"""A folder, or a pattern with one ``*``, the id, in the name of its files."""


# ---- files --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Match:
    """A picture that a pattern finds."""

    path: Path
    stem: str
    """What ``*`` stands for."""
    pattern: str
    """The pattern, with a ``*`` and the name of the split in it."""


def matches(root: Path, patterns: Iterable[str], split: str = "") -> list[Match]:
    """Return each picture that one of the patterns finds, once; ``{split}`` in a pattern is the split's name.

    Earlier patterns and names go first.
    """
    found: dict[Path, Match] = {}
    for pattern in patterns:
        whole = _whole(pattern).replace("{split}", split)
        place = PurePosixPath(whole)
        before, after = place.name.split("*")
        for path in sorted((root / place.parent).glob(place.name)):
            if is_picture(path):
                stem = path.name.removesuffix(after) if after else path.stem
                found.setdefault(path, Match(path, stem.removeprefix(before), whole))
    return list(found.values())


def by_pattern(root: Path, pattern: str) -> dict[str, Path]:
    """Return id -> picture for all that match a pattern; the id is what ``*`` stands for. Earlier names go first."""
    found: dict[str, Path] = {}
    for match in matches(root, [pattern]):
        found.setdefault(match.stem, match.path)
    return found


def _whole(pattern: str) -> str:
    """Return a pattern; a folder stands for all files in it."""
    return pattern if "*" in PurePosixPath(pattern).name else str(PurePosixPath(pattern) / "*")


# ---- tables -------------------------------------------------------------------------------------------
def odd_rows(path: Path, read: Records) -> list[Finding]:
    """Return the rows of a table that were left out, each under the file's name and its line."""
    return [Finding(row.kind, f"{path.name} line {row.line}", row.detail) for row in read.odd]


def otherwise(kind: str, where: str, means: Mapping[str, str], suffixes: Sequence[str] = ()) -> list[Finding]:
    """Return a finding, one for all, where texts of a table were not only written without or with a suffix.

    ``means``: as ``records.matched`` gives it.
    """
    changed = [f"{text!r} as {name!r}" for text, name in means.items() if bare(text, suffixes) != bare(name, suffixes)]
    return [Finding(kind, where, some(changed, 1))] if changed else []


# ---- ids ----------------------------------------------------------------------------------------------
def find_in_ids(
    option: str, expression: str | None, ids: Sequence[str], columns: Iterable[str] | None = None, strict: bool = True
) -> tuple[dict[str, str], list[Finding]]:
    """Return id -> the first group of a match, or all of it, and the ids in which nothing is found.

    Nothing is looked for where there is no ``expression``.
    Raises ConfigError where nothing is found in any and this is ``strict``; ``columns``: those of the table, which
    might have been meant.
    """
    if not expression:
        return {}, []
    compiled = re.compile(expression)
    found = {i: (m[1] if compiled.groups else m[0]) or "" for i in ids if (m := compiled.search(i))}
    if strict and ids and not found:
        column = "" if columns is None else f"a column of the table ({', '.join(columns) or 'there is none'}) or "
        raise ConfigError(f"data.options.{option}: expected {column}a pattern that ids match, got {expression!r}, "
                          f"which finds nothing in any of {len(ids)} ids, such as {ids[0]!r}")  # fmt: skip
    return found, [Finding(f"id in which {option} finds nothing", i) for i in ids if i not in found]
