"""The page report/report.html: what the terminal says, the history of training, seconds, pictures of some scenes."""

import html
import re
from pathlib import Path
from typing import Any

from lib.choose.choice import Decision
from lib.competitions.contract import Competition, Scene, settings_for
from lib.files import digest, sha256, whole_file, write_bytes
from lib.report.tables import decision_table, milestones
from lib.report.times import page_table
from lib.run import manifest
from lib.run.cli import Run
from lib.stages.ensemble import averages

PICTURES = 4
"""Out-of-fold scenes shown, the ones with most in them first."""


def write(run: Run) -> str:
    """Write report/ (an HTML page and pictures of out-of-fold scenes); returns the closing lines for the terminal."""
    folder = run.store.root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    lines, page = [decision_table(run)], folder / "report.html"
    mark = _made_from(run)
    if not is_current(page, mark, lines[0]):
        write_bytes(page, (_page(run, folder, lines[0], mark) + "\n").encode())
    submission = run.graph.submission("test")
    if run.store.status(submission) == "done":
        lines.append(f"submission: {run.store.folder(submission)} (linted)")
    elif not run.has_split("test"):
        own = run.store.folder(run.graph.submission("oof"))
        lines.append(f"submission: no test scenes found, so none to hand in; out-of-fold answers are in {own}")
    lines.append(f"report:     {page}")
    if first := re.search("<img src='([^']+)'", page.read_text(encoding="utf-8")):
        lines.append(f"picture:    {folder / html.unescape(first[1])}")
    return "\n".join(lines)


def _made_from(run: Run) -> str:
    """Return a digest of the bytes and data of all that a page shows, whatever the clock said then."""
    graph, models = run.graph, run.config.models.items()
    checkpoints = [graph.checkpoint(name, fold) for name, model in models for fold in run.config.folds_of(model)]
    units = (graph.folds(), *checkpoints, graph.decode(), graph.blend("oof"))
    made = [one for unit in units if (one := manifest.made(run.store.folder(unit))) is not None]
    return digest([[one.get("sha256") or manifest.content(one), one.get("data", {})] for one in made])


def is_current(page: Path, mark: str, table: str) -> bool:
    """Tell whether a page was made from what is there now, and its pictures are those that were drawn for it."""
    try:
        text = page.read_text(encoding="utf-8")
        pictures = re.findall("<img src='([^']+)' data-sha256='([0-9a-f]+)'", text)
        same = all(sha256(page.parent / html.unescape(name)) == found for name, found in pictures)
    except (OSError, UnicodeError):
        return False
    return same and f"content='{mark}'" in text and html.escape(table) in text


def _page(run: Run, folder: Path, table: str, mark: str) -> str:
    """Draw the pictures and return the text of the page, which says with ``mark`` what it was made from."""
    history = "\n".join(milestones(run))
    there = run.store.status(run.graph.blend("oof")) in ("done", "frozen")  # not with checkpoints from --inputs alone
    pictures = draw(run, folder) if there else []
    page = ["<!doctype html><meta charset='utf-8'>", f"<meta name='made-from' content='{mark}'>",
            f"<title>{html.escape(run.config.name)}</title>",
            f"<h1>{html.escape(run.config.name)}</h1><pre>{html.escape(table)}</pre>",
            f"<h2>training</h2><pre>{html.escape(history)}</pre>", page_table(run.store.root)]  # fmt: skip
    page += [f"<h2>{html.escape(p.stem)}</h2><img src='{html.escape(p.name)}' data-sha256='{sha256(p)}' "
             "style='width:100%'>" for p in pictures]  # fmt: skip
    return "\n".join(page)


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw the out-of-fold scenes with most in them, side by side: images, truth, prediction."""
    params = Decision.of(run).params
    fullness = {s.id: sum(run.competition.strata(s).values()) for s in run.competition.scenes("train")}
    wanted = sorted(fullness, key=lambda i: (-fullness[i], i))[:PICTURES]
    drawn = {}
    for scene, levels in averages(run, "oof"):
        if scene.id in wanted:
            answer = run.competition.decode(levels, settings_for(scene, params))
            drawn[scene.id] = picture(run.competition, scene, answer, folder)
    return [drawn[i] for i in wanted if i in drawn]


def picture(competition: Competition, scene: Scene, answer: Any, folder: Path) -> Path:
    """Write one scene's panels side by side as a PNG; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = competition.panels(scene, answer)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.4), squeeze=False)
    for axis, (title, image) in zip(axes[0], panels, strict=True):
        axis.imshow(image)
        axis.set_title(title)
        axis.axis("off")
    figure.suptitle(scene.id)
    figure.tight_layout()
    path = folder / f"{scene.id}.png"
    with whole_file(path, "wb") as file:
        figure.savefig(file, dpi=80, format="png")
    plt.close(figure)
    return path
