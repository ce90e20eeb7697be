"""Which picture is which, and whose mask a mask is, where patterns find pictures in several folders.

An id is what ``*`` stands for. Where two folders have a picture of that name, the parts in which the patterns differ
come before it: ``case1/images`` and ``case2/images`` give ``case1_0001`` and ``case2_0001``. A mask belongs to the
picture of its name; where several have it, to the one whose parts are in the mask's own path.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lib.competitions.listing import SUFFIXES, Match

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """Pictures by id."""

    pictures: Mapping[str, Match]
    parts: Mapping[str, Parts]
    """Pattern -> the parts in which it differs from the others."""
    dropped: Sequence[tuple[str, Match, Match]]
    """Id, the picture that has it, and another one that would have it too."""

    def parts_of(self, picture: Match) -> Parts:
        """Return the parts that tell a picture from others of its name."""
        return self.parts[picture.pattern]


def named(found: Iterable[Match]) -> Named:
    """Give every picture an id; of two in one folder that differ in their suffix the first has it."""
    distinct = list({match.path: match for match in found}.values())
    parts = differing([match.pattern for match in distinct])
    first: dict[str, Parts] = {}
    apart = any(first.setdefault(m.stem, parts[m.pattern]) != parts[m.pattern] for m in distinct)
    pictures: dict[str, Match] = {}
    dropped = []
    for match in distinct:
        key = "_".join((*parts[match.pattern], match.stem)) if apart else match.stem
        if pictures.setdefault(key, match) is not match:
            dropped.append((key, pictures[key], match))
    return Named(pictures, parts, dropped)


def differing(patterns: Iterable[str]) -> dict[str, Parts]:
    """Return pattern -> the parts of it, folders and what stands around ``*``, that are not the same in all."""
    rows = {pattern: _parts(pattern) for pattern in dict.fromkeys(patterns)}
    least = min(map(len, rows.values()), default=0)
    lead = next((k for k in range(least) if len({row[k] for row in rows.values()}) > 1), least)
    tail = next((k for k in range(least - lead) if len({row[-1 - k] for row in rows.values()}) > 1), least - lead)
    return {pattern: tuple(filter(None, row[lead : len(row) - tail])) for pattern, row in rows.items()}


def _parts(pattern: str) -> Parts:
    place = PurePosixPath(pattern)
    before, after = place.name.split("*")
    suffix = PurePosixPath("x" + after).suffix
    after = after.removesuffix(suffix) if suffix.lower() in SUFFIXES else after
    return (*place.parent.parts, before.strip("_-. "), after.strip("_-. "))


def masks_of(pictures: Mapping[str, Match], parts: Mapping[str, Parts], masks: Sequence[Match]) -> "Masks":
    """Find the mask of each picture.

    ``pictures``: all that the patterns of a split find, by id. ``parts``: as ``Named`` has them. ``masks``: those of
    the same split.
    """
    by_stem: dict[str, list[Match]] = {}
    for mask in masks:
        by_stem.setdefault(mask.stem, []).append(mask)
    sharing: dict[str, int] = {}
    for picture in pictures.values():
        sharing[picture.stem] = sharing.get(picture.stem, 0) + 1
    found: dict[str, Match] = {}
    unclear: dict[str, list[Match]] = {}
    for key, picture in pictures.items():
        own = by_stem.get(key, []) if key != picture.stem else []
        alike = by_stem.get(picture.stem, [])
        if not own and (len(alike) > 1 or sharing[picture.stem] > 1):
            own = [mask for mask in alike if _holds(mask, parts[picture.pattern])]
            rest = [mask for mask in own if len(own) > 1 and mask.path.parent != own[0].path.parent]
            own = own[:1] if not rest else []
        elif not own:
            own = alike
        if own:
            found[key] = own[0]
        elif alike:
            unclear[key] = alike
    for path in {match.path for match in found.values()}:
        claims = sorted((k for k, match in found.items() if match.path == path),
                        key=lambda k: len(parts[pictures[k].pattern]))  # fmt: skip
        for key in claims[:-1]:  # the picture of the most parts has it
            unclear[key] = [found.pop(key)]
    taken = {match.path for match in found.values()}
    return Masks(found, {key: alike for key, alike in unclear.items() if not {m.path for m in alike} <= taken})


@dataclass(frozen=True)
class Masks:
    """Masks by the id of their picture."""

    found: Mapping[str, Match]
    unclear: Mapping[str, Sequence[Match]]
    """Pictures of which it is not said which of several masks is theirs, or whose a mask is."""


def _holds(mask: Match, parts: Parts) -> bool:
    """Tell whether a mask's pattern has all parts of a picture's; a part may go on in letters (``train`` + ``annot``).

    Without parts no picture is told from another.
    """
    own = _parts(mask.pattern)
    return bool(parts) and all(any(_begins(word, part) for word in own) for part in parts)


def _begins(word: str, part: str) -> bool:
    """Tell whether a word is a part, or begins with it; ``case1`` does not begin ``case10``."""
    return bool(re.match(re.escape(part) + (r"(?!\d)" if part[-1].isdigit() else ""), word))


def listed(word: str, known: Named) -> list[str]:
    """Return the ids of the pictures that a line of a list may mean: one, unless names collide.

    The line is an id, or a path whose folders tell pictures of one name apart.
    """
    path = PurePosixPath(word)
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    flat = "_".join((*(part for part in path.parent.parts if part != "/"), stem))
    for key in (stem, flat):
        if key in known.pictures:
            return [key]
    alike = [key for key, picture in known.pictures.items() if picture.stem == stem]
    own = [key for key in alike if set(known.parts_of(known.pictures[key])) <= set(path.parts)]
    return own if len(own) == 1 else alike
