"""Tell which test scenes are training scenes too: the same bytes, or pictures that a perceptual hash calls copies and
whose pixels match. A picture that shows nothing, such as a black tile, is nobody's copy.

Such a scene is known to the networks, whatever its name, and may show its label. Nothing here is an error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from lib.scenes import identical
from lib.scenes.audit import EXAMPLES
from lib.scenes.pairs import DUPLICATE_BITS, FLAT, near_duplicates

Ids = tuple[str, str]
"""A test scene and a training scene."""


def report(
    train: Sequence,
    test: Sequence,
    roles: Sequence[str],
    hashes: Mapping[str, Mapping],
    matches: Callable[[str, str], bool] = lambda test_id, train_id: True,
) -> dict:
    """Compare the scenes of "test" with those of "train", as a dict that JSON can hold; ``lines`` puts it into words.

    ``train``, ``test``: scenes with ``id`` and ``files`` by role. ``roles``: the files to compare. ``hashes``: split ->
    id -> hash or hashes, as ``Looks`` has them. ``matches``: whether the pixels of a test and a training scene do.
    """
    same = [pair for pair in same_files(train, test, roles) if not _shows_nothing(hashes["test"].get(pair[0]))]
    known = set(same)
    hinted = [pair for pair in copies(hashes["train"], hashes["test"]) if pair[:2] not in known]
    alike = [pair for pair in hinted if matches(pair[0], pair[1])]
    return {
        "scenes": len(test),
        "hashed": sum(bool(_codes(hashes["test"].get(scene.id))) for scene in test),
        "max_bits": DUPLICATE_BITS,
        "same_files": {"scenes": len({pair[0] for pair in same}), "pairs": len(same),
                       "examples": [list(pair) for pair in same[:EXAMPLES]]},
        "near_duplicates": {"scenes": len({pair[0] for pair in alike}), "pairs": len(alike),
                            "examples": [{"ids": list(pair[:2]), "bits": pair[2]} for pair in alike[:EXAMPLES]]},
    }  # fmt: skip


def same_files(train: Sequence, test: Sequence, roles: Sequence[str]) -> list[Ids]:
    """Return the pairs (test id, train id) that have a file, or a folder of files, with the same bytes, sorted.

    Only what has the same size on both sides is read.
    """
    places = {"train": identical.by_size(train, roles), "test": identical.by_size(test, roles)}
    found: set[Ids] = set()
    for size in places["train"].keys() & places["test"].keys():
        known: dict[identical.Sums, list[str]] = {}
        for scene_id, path in places["train"][size]:
            known.setdefault(identical.sums_of(path), []).append(scene_id)
        for scene_id, path in places["test"][size]:
            found |= {(scene_id, other) for other in known.get(identical.sums_of(path), ())}
    return sorted(found)


def copies(train: Mapping, test: Mapping) -> list[tuple[str, str, int]]:
    """Return the pairs (test id, train id, bits) whose hashes are at most DUPLICATE_BITS apart, the nearest first."""
    names = [*train, *test]
    codes = [_codes(hashes[name]) for hashes in (train, test) for name in hashes]
    pairs = near_duplicates(codes, DUPLICATE_BITS)
    across = pairs[(pairs[:, 0] < len(train)) & (pairs[:, 1] >= len(train))]
    return sorted(((names[j], names[i], int(bits)) for i, j, bits in across), key=lambda pair: (pair[2], *pair[:2]))


def lines(found: Mapping) -> Iterator[str]:
    """Put a report into sentences; none where no test scene is known."""
    for kind, words in (("same_files", "are training scenes under another name or place, with the same bytes"),
                        ("near_duplicates", "are near-duplicates of training scenes")):  # fmt: skip
        if count := found[kind]["scenes"]:
            first = found[kind]["examples"][0]
            mine, theirs = first if kind == "same_files" else first["ids"]
            yield (f"{count} of {found['scenes']} test scenes {words}, such as {mine} (test) and {theirs} (train): "
                   "what is scored on them says little about new ones")  # fmt: skip


def _shows_nothing(given: object) -> bool:
    """Tell whether all hashes of a scene are those of flat pictures, whose copies are no evidence of anything."""
    codes = _all_codes(given)
    return bool(codes) and set(codes) == {FLAT}


def _codes(given: object) -> list[int]:
    """Return a scene's hashes but those of frames that show nothing."""
    return [code for code in _all_codes(given) if code != FLAT]


def _all_codes(given: object) -> list[int]:
    return [given] if isinstance(given, int) else list(given or ())  # type: ignore[call-overload]
