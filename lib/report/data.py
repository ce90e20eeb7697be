"""Sections that show the data: scenes, folds on the map, the audit."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain

from lib.report import charts
from lib.report.blocks import ColourKey, DataTable, Lines, Panel, Piece, ScenePanels, Thumbnails, Words
from lib.report.contents import Contents
from lib.report.pictures import THIN, PictureFile, ShownScene

MAPS = 8
"""Most domains that have a map of their own, those with most neighbours in different folds first."""
ROWS = 60
"""Most findings that are listed."""
WHY = {
    "worst": "drags the score down",
    "best": "lifts the score",
    "fullest": "one of those with most in them",
}


def _panels(one: Contents, files: list[PictureFile]) -> list[Panel]:
    """Return pictures inlined; those that are gone are left out."""
    found = []
    for file in files:
        try:
            found.append(Panel(file.title, file.read(one.pictures), file.width, file.height, file.note))
        except OSError:
            continue
    return found


def scenes(one: Contents, key: str) -> Iterator[Piece]:
    """The worst and the best scenes."""
    if one.seen is None or not one.seen.scenes:
        yield Words(
            one.absent.get("seen", "No averages of out-of-fold scenes are here, so none are drawn."), absent=True
        )
        return
    if one.figures is None:
        why = one.absent["figures"]
        yield Words(f"Scenes are shown by how much is in them, since their scores are not known. {why}", absent=True)
    else:
        yield Words("Scenes are ordered by what the score of all others is without them: one that drags the score down "
                    f"comes first, and a small one weighs little. Errors thinner than {THIN} pixels of the picture, "
                    "such as edges, have no outline.")  # fmt: skip
    if one.seen.legend:
        yield ColourKey(one.seen.legend)
    for number, scene in enumerate(one.seen.scenes):
        panels = _panels(one, scene.panels)
        if len(panels) < len(scene.panels):
            yield Words(f"{scene.id}: {len(scene.panels) - len(panels)} of its pictures are gone; stage 06 draws them",
                        absent=True)  # fmt: skip
        if panels:
            yield ScenePanels(f"{key}-{number}", f"{scene.id}: {scene.why}", _facts(one, scene), panels)
    if one.figures is not None:
        ordered = sorted(one.figures.scenes, key=lambda own: (-own.without, own.id))
        rows = [(own.id, own.fold, own.domain, own.score, own.without) for own in ordered[:ROWS]]
        left = len(ordered) - len(rows)
        yield DataTable("Scenes, the worst first" + (f" ({left} more are in figures.json)" if left else ""),
                        ("scene", "fold", "domain", "its own score", "score of all others"), rows)  # fmt: skip


def _facts(one: Contents, scene: ShownScene) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("why", WHY[scene.why])]
    if scene.score is not None:
        facts += [("fold", scene.fold), ("domain", scene.domain), ("its own score", scene.score),
                  ("score of all others", scene.without)]  # fmt: skip
    return facts


# ---- folds --------------------------------------------------------------------------------------------
def folds(one: Contents, key: str) -> Iterator[Piece]:
    """What each fold holds, and where its scenes lie."""
    if coverage := one.audit.get("folds"):
        columns = list(dict.fromkeys(chain.from_iterable(coverage.values())))
        yield DataTable("Scenes of each fold, and how many of them have what", ("fold", *columns),
                        [(fold, *(own.get(name) for name in columns)) for fold, own in coverage.items()])  # fmt: skip
    elif not one.folds:
        yield Words(one.absent.get("audit", "Stage 01 has not been run."), absent=True)
    by_domain = Counter((row["domain"], row["fold"]) for row in one.folds if row.get("domain"))
    domains, numbers = ({name for name, _ in by_domain}, sorted({row["fold"] for row in one.folds}, key=int))
    if domains:
        yield DataTable("Scenes of each event or domain by fold", ("domain", *(f"fold {n}" for n in numbers)), [
            (name, *(by_domain[name, n] for n in numbers)) for name in sorted(domains)[:ROWS]])  # fmt: skip
    yield from _maps(one, key)


def _maps(one: Contents, key: str) -> Iterator[Piece]:
    positions: Mapping[str, tuple[float, float]] = one.seen.positions if one.seen is not None else {}
    placed = [(row["id"], int(row["fold"]), *positions[row["id"]], row.get("domain", "")) for row in one.folds
              if row["id"] in positions]  # fmt: skip
    if not placed:
        why = "No scene has a place on the map." if one.seen is not None else one.absent.get("seen", "")
        yield Words(f"There is no map of the folds. {why}", absent=True)
        return
    from lib.scenes.pairs import NEIGHBOUR_KM, neighbours  # here, since a page without places goes without it

    found = neighbours([scene[2:4] for scene in placed], NEIGHBOUR_KM).tolist()
    across = [(i, j) for i, j in found if placed[i][1] != placed[j][1]]
    yield Words(f"{len(placed)} of {len(one.folds)} scenes have a place. {len(found)} pairs of them lie within "
                f"{NEIGHBOUR_KM:g} km of each other, {len(across)} of these in different folds, where one is scored by "
                "networks that were trained on the other.")  # fmt: skip
    of_domain = Counter(placed[i][4] for i, _ in across)
    names = sorted({scene[4] for scene in placed}, key=lambda name: (-of_domain[name], name))
    for number, name in enumerate(names[:MAPS]):
        own = [place for place, scene in enumerate(placed) if scene[4] == name]
        at = {place: number_ for number_, place in enumerate(own)}
        yield charts.place_map(f"{key}-map{number}", f"{name or 'All scenes'}: folds on the map",
                               [placed[place][:4] for place in own],
                               [(at[i], at[j]) for i, j in across if i in at and j in at])  # fmt: skip
    if left := names[MAPS:]:
        yield Words(f"{len(left)} more domains have no map here: {', '.join(left)}.")


# ---- audit --------------------------------------------------------------------------------------------
def audit(one: Contents, key: str) -> Iterator[Piece]:
    """What the audit and the data doctor found."""
    if one.audit:
        yield Lines("The audit of the folds says", _in_words(one.audit))
    else:
        yield Words(one.absent.get("audit", "Stage 01 has not been run."), absent=True)
    kinds = Counter(finding["kind"] for finding in one.findings)
    if kinds:
        yield DataTable("What the data check found", ("kind", "scenes or files"), list(kinds.most_common()))
        rows = [(own["kind"], own["scene"], own["detail"]) for own in one.findings[:ROWS]]
        left = len(one.findings) - len(rows)
        yield DataTable("Findings" + (f" ({left} more are in findings.csv)" if left else ""),
                        ("kind", "scene", "detail"), rows)  # fmt: skip
    elif one.folds:
        yield Words("The data check found nothing.")
    for own in one.seen.thumbs if one.seen is not None else ():
        if panels := _panels(one, own.panels):
            yield Thumbnails(own.caption, panels)


def _in_words(report: Mapping) -> list[str]:
    from lib.scenes import audit as audits  # here: it takes pandas

    try:
        return audits.lines(report)
    except KeyError as error:
        return [f"an earlier version made it, which had no {error}; stage 01 makes it anew"]
