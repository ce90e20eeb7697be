"""Charts as SVG inside the page, drawn by matplotlib without a display.

Why matplotlib: it is needed anyway, a chart is some kilobytes of SVG without a script, and it draws the same offline. A
library of scripts would put its own megabytes into every report.

Colours are names of the page's style sheet (``var(--ink)``), so that light and dark both fit; text stays text. Every
chart has a title, a sentence that says what it shows, and its numbers as a table.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from lib.choose.choice import Decision
from lib.choose.figures import Bins, Surface
from lib.report.blocks import Chart
from lib.report.logs import TERM, Log, series, terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 360
"""Units of a chart's width: as many pixels as a phone has, so that its text is readable there."""
SERIES = 8
DEPTH = 0.08
"""By how much a score may lie below the best and still be drawn beside the plateau."""
MOST = 24
"""Most folds and domains in a chart of scores."""
MARKERS = "osD^vPX*"
INK, SOFT, LINE = "#101010", "#202020", "#303030"
"""Stand for colours of the style sheet until the SVG is written."""
_NAMES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
_NAMES |= {f"#4000{number:02x}": f"var(--s{number})" for number in range(SERIES)}
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 10, "text.color": INK, "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.5, "lines.linewidth": 1.4,
    "legend.frameon": False, "legend.fontsize": 9, "legend.labelcolor": INK, "axes.titlesize": 10,
    "axes.titlelocation": "left", "axes.facecolor": "none", "figure.facecolor": "none",
}  # fmt: skip


def colour(number: int) -> str:
    """Return the colour of a series; after the last the first comes again."""
    return f"#4000{number % SERIES:02x}"


def draw(key: str, title: str, says: str, height: int, paint: Callable[[Any], None], data: Sequence[Sequence[Any]],
         columns: Sequence[str]) -> Chart:  # fmt: skip
    """Draw a chart: ``paint`` is given a matplotlib figure of WIDTH x ``height`` units.

    key: its name among all charts of a page. says: what it shows, in words. data: its numbers, for a table.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        paint(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    return Chart(key, title, _inline(stream.getvalue(), key, title, says), tuple(columns), [tuple(row) for row in data])


def _fitted(figure: Any, left: int, right: int, below: int, above: int, **between: float) -> Any:
    """Leave room around the axes, in units, and ``between`` them; a layout that measures its texts takes as long as all
    the rest of a chart."""
    width, height = figure.get_size_inches() * 72
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - above / height, **between)
    return figure


def _inline(svg: str, key: str, title: str, says: str) -> Markup:
    """Return an SVG file's content as an element of a page: ids of its own, colours of the style sheet, a title."""
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{key}-', inside)
    inside = re.sub(r"url\(#", f"url(#{key}-", inside)
    inside = re.sub(r'xlink:href="#', f'href="#{key}-', inside)
    inside = re.sub(r"#[0-9a-f]{6}", lambda found: _NAMES.get(found[0], found[0]), inside)
    inside = re.sub(r"font: (?:[\w ]* )?([\d.]+px)[^;\"]*", r"font-size: \1", inside)
    inside = re.sub(r"font-family: [^;\"]+;? ?", "", inside)
    inside = re.sub(r"\n\s*", "\n", inside)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None, "matplotlib writes a viewBox"
    return Markup(
        f'<svg class="chart" role="img" viewBox="{box[1]}" aria-labelledby="{key}-title" '
        f'aria-describedby="{key}-says">'
        f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-says">{escape(says)}</desc>{inside}</svg>'
    )


# ---- scores -------------------------------------------------------------------------------------------
def scores(key: str, decision: Decision) -> Chart:
    """Draw the score with its interval, what to expect, and the score of every fold and domain."""
    rows: list[tuple[str, float]] = []
    if decision.score_without_search is not None:
        rows.append(("without the search", decision.score_without_search))
    rows.append(("score", decision.score))
    if decision.expected is not None:
        rows.append(("expected", decision.expected))
    parts = [(f"fold {name}", own) for name, own in decision.per_fold.items()]
    parts += [(name, own) for name, own in decision.per_domain.items()] if len(decision.per_domain) > 1 else []
    head = len(rows)
    rows += [(name, float(own["score"])) for name, own in parts[:MOST] if "score" in own]

    def paint(figure: Any) -> None:
        axis = _fitted(figure, 136, 12, 38, 6).subplots()
        places = np.arange(len(rows))[::-1]
        for number, ((name, value), place) in enumerate(zip(rows, places, strict=True)):
            if name == "score" and number < head and decision.interval95 is not None:
                axis.plot(decision.interval95, [place, place], color=colour(0), linewidth=5, alpha=0.3)
            axis.plot([value], [place], MARKERS[0 if number < head else 1], color=colour(0 if number < head else 1))
        axis.set_yticks(places, [_short(name, 22) for name, _ in rows])
        axis.set_xlabel("score")
        axis.locator_params(axis="x", nbins=5)
        axis.grid(axis="y", visible=False)

    low = "" if decision.interval95 is None else " The bar is the 95 % interval over scenes."
    low += f" {len(parts) - MOST} more parts are left out." if len(parts) > MOST else ""
    return draw(key, "Score, overall and by part", "Each point is a score; higher is better." + low,
                40 + 17 * len(rows), paint, rows, ("scenes", "score"))  # fmt: skip


# ---- training -----------------------------------------------------------------------------------------
def curves(key: str, model: str, logs: Mapping[str, Log]) -> Chart:
    """Draw a model's validation score with stars at new bests, its loss terms and its learning rate, by epoch.

    logs: fold (or whatever tells them apart) -> log.
    """
    names = list(dict.fromkeys(term for log in logs.values() for term in terms(log)))

    def paint(figure: Any) -> None:
        grid = _fitted(figure, 48, 10, 38, 20, hspace=0.3)
        top, middle, low = grid.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.6))
        for number, (name, log) in enumerate(logs.items()):
            shade = colour(number)
            top.plot(*series(log, "score.select"), color=shade, marker=MARKERS[number % SERIES], markersize=3,
                     label=name)  # fmt: skip
            top.plot(*series([row for row in log if row["new_best"]], "score.select"), "*", color=shade, markersize=9)
            for place, term in enumerate(names):
                middle.plot(*series(log, TERM + term), ("-", "--", ":", "-.")[place % 4], color=shade)
            low.plot(*series(log, "lr"), color=shade, marker=".", markersize=3)
        for place, term in enumerate(names[:6]):
            middle.plot([], [], ("-", "--", ":", "-.")[place % 4], color=INK, label=term)
        top.set_title("validation score (star: new best)")
        middle.set_title("loss terms, unweighted")
        low.set_title("learning rate")
        low.set_xlabel("epoch")
        low.xaxis.get_major_locator().set_params(integer=True)
        for axis, many in ((top, len(logs)), (middle, len(names))):
            if 1 < many <= 12 or axis is middle and names:
                axis.margins(y=0.3)
                axis.legend(ncols=3, loc="upper right", handlelength=1.5, columnspacing=1)

    shown = ["loss", *(TERM + term for term in names), "lr", "score.select"]
    data = [
        (name, row["epoch"], *(row.get(column) for column in shown), "new best" if row["new_best"] else "")
        for name, log in logs.items()
        for row in log
    ]
    return draw(key, f"{model}: learning curves", "Validation score, loss terms and learning rate by epoch, one colour "
                "for each fold.", 430, paint, data, ("fold", "epoch", *shown, "best"))  # fmt: skip


# ---- reliability --------------------------------------------------------------------------------------
def reliability(key: str, title: str, told: Mapping[str, Bins]) -> Chart:
    """Draw the share that was found against the probability that was stated; on the diagonal both agree."""

    def paint(figure: Any) -> None:
        axis = _fitted(figure, 48, 10, 38, 8).subplots()
        axis.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        for number, (name, bins) in enumerate(told.items()):
            there = [(stated, found) for times, stated, found in bins if times]
            axis.plot(*zip(*there), color=colour(number), marker=MARKERS[number], markersize=4, label=name)
        axis.set_xlabel("stated probability")
        axis.set_ylabel("share found")
        axis.set_aspect("equal")
        axis.legend()

    data = [(name, times, stated, found) for name, bins in told.items() for times, stated, found in bins if times]
    return draw(key, title, "Share found by stated probability; on the dotted diagonal both agree, below it the "
                "network is too sure.", 300, paint, data, ("", "pixels", "stated", "found"))  # fmt: skip


# ---- the search ---------------------------------------------------------------------------------------
def profiles(key: str, surface: Surface) -> Chart:
    """Draw the score along each axis through the chosen point, with the plateau of equally good scores."""
    rows = -(-len(surface.axes) // 2)

    def paint(figure: Any) -> None:
        axes = _fitted(figure, 48, 8, 22, 18, hspace=0.85, wspace=0.08).subplots(rows, 2, sharey=True, squeeze=False)
        for axis in axes.flat[len(surface.axes) :]:
            axis.set_visible(False)
        for axis, (name, scores_) in zip(axes.flat, surface.profiles.items()):
            _profile(axis, surface, name, scores_)
        low = min(min(own) for own in surface.profiles.values())
        axes[0, 0].set_ylim(bottom=max(low, surface.best - DEPTH) - 0.005)

    data = [
        (name, str(value), score, "chosen" if place == surface.point[name] else "")
        for name, values in surface.axes.items()
        for place, (value, score) in enumerate(zip(values, surface.profiles[name], strict=True))
    ]
    says = ("The other settings stay at the chosen point, which is marked; the band is the plateau, within "
            f"{surface.plateau:g} of the best of all points. Scores of {DEPTH:g} below it are cut off.")  # fmt: skip
    return draw(key, "Score along each setting", says, 24 + 88 * rows, paint, data, ("setting", "value", "score", ""))


def _profile(axis: "Axes", surface: Surface, name: str, found: Sequence[float]) -> None:
    values = surface.axes[name]
    number = all(isinstance(value, int | float) for value in values)
    places = values if number else range(len(values))
    axis.axhspan(surface.best - surface.plateau, surface.best, color=colour(2), alpha=0.25, linewidth=0)
    axis.plot(places, found, color=colour(0), marker="o", markersize=3)
    axis.plot([places[surface.point[name]]], [found[surface.point[name]]], "D", color=colour(1), markersize=6)
    axis.set_title(_short(name, 24))
    if not number:
        axis.set_xticks(list(places), [_short(str(value), 8) for value in values])


# ---- folds --------------------------------------------------------------------------------------------
LINES = 2000
"""Lines of neighbours that a map of scenes has at most; the places of an archive have hundreds of thousands."""


def place_map(key: str, title: str, scenes: Sequence[tuple[str, int, float, float]],
              pairs: Sequence[tuple[int, int]]) -> Chart:  # fmt: skip
    """Draw scenes by longitude and latitude, coloured by fold, a line between neighbours in different folds.

    scenes: (id, fold, longitude, latitude); pairs: places in ``scenes``.
    """
    from matplotlib.collections import LineCollection  # here, as all of matplotlib: it takes a second

    middle = float(np.mean([latitude for *_, latitude in scenes]))
    lines = [*dict.fromkeys((scenes[i][2:], scenes[j][2:]) for i, j in pairs)]

    def paint(figure: Any) -> None:
        axis = _fitted(figure, 60, 10, 56, 6).subplots()
        axis.add_collection(
            LineCollection(lines[:: max(1, -(-len(lines) // LINES))], colors=INK, linewidths=1.2, zorder=1)
        )
        for fold in sorted({scene[1] for scene in scenes}):
            own = [scene[2:] for scene in scenes if scene[1] == fold]
            axis.plot(*zip(*own), MARKERS[fold % SERIES], color=colour(fold), label=f"fold {fold}", markersize=5)
        axis.set_aspect(1 / max(0.1, float(np.cos(np.radians(middle)))), adjustable="datalim")
        axis.ticklabel_format(useOffset=False)
        axis.tick_params(axis="x", labelrotation=30)
        axis.set_xlabel("longitude")
        axis.set_ylabel("latitude")
        axis.margins(0.1)
        axis.legend(ncols=3, loc="upper left")

    says = (f"{len(scenes)} scenes at their place, one colour for each fold; lines join the {len(pairs)} pairs of "
            "neighbours in different folds" + (f", of which about {LINES} are drawn" if len(lines) > LINES else "")
            + ".")  # fmt: skip
    return draw(key, title, says, 300, paint, scenes, ("scene", "fold", "longitude", "latitude"))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
