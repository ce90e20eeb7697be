"""The page report/report.html: one file that opens without a network, of one experiment or of several side by side."""

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from lib.files import digest, write_bytes
from lib.report import pictures
from lib.report.blocks import Chapter
from lib.report.contents import REPORT, Contents, read
from lib.report.tables import decision_table
from lib.run import manifest
from lib.run.cli import Run

if TYPE_CHECKING:
    import jinja2

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
BESIDE = ("log.jsonl", "figures.json", "audit.json", "findings.csv")
"""Files that a page shows and that the content of their unit does not stand for."""
SEAL = re.compile(rb"<!-- ([0-9a-f]{64}) -->\n\Z")
"""Ends a page: the SHA-256 of all before it."""


def write(run: Run) -> str:
    """Write report/ (the page and its pictures); returns the closing lines of stage 06 for the terminal."""
    lines = [decision_table(run)]
    submission = run.graph.submission("test")
    if run.store.status(submission) == "done":
        lines.append(f"submission: {run.store.folder(submission)} (linted)")
    elif not run.has_split("test"):
        own = run.store.folder(run.graph.submission("oof"))
        lines.append(f"submission: no test scenes found, so none to hand in; out-of-fold answers are in {own}")
    return "\n".join([*lines, named(run)])


def named(run: Run) -> str:
    """Write report/ where it does not show what is there now; returns the lines that name the page and a picture."""
    folder = run.store.root / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    shown = pictures.seen(run, folder / pictures.FOLDER)
    page, mark = folder / PAGE, _made_from(run, shown)
    if not is_current(page, mark):
        contents = read(run.store.root, run.store.inputs, run.config.reference)
        write_bytes(page, sealed(render([contents], mark)))
    lines = [f"report:     {page}"]
    if files := shown.files():
        lines.append(f"picture:    {folder / pictures.FOLDER / files[0].file}")
    return "\n".join(lines)


def _made_from(run: Run, shown: pictures.SeenData) -> str:
    """Return a digest of all that a page shows: the bytes of units, their seconds and commands, and its own code."""
    made = {path.parent: manifest.made(path.parent) for root in (run.store.root, *run.store.inputs)
            for path in sorted(root.glob("0[1-6]_*/**/manifest.json"))}  # fmt: skip
    states = [[str(folder), manifest.content(one), *(one.get("sha256", {}).get(name) for name in BESIDE),
               one.get("seconds"), one.get("command")] for folder, one in made.items() if one is not None]  # fmt: skip
    reference = run.config.reference.model_dump(mode="json") if run.config.reference else None
    return digest([run.config.name, states, shown.model_dump(mode="json"), reference, _own_code()])


@cache
def _own_code() -> str:
    """Return a digest of what draws the page."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), *sorted(TEMPLATES.iterdir())]
    return digest([manifest.sum_of(path) for path in files if path.is_file()])


def is_current(page: Path, mark: str) -> bool:
    """Tell whether a page was made from what ``mark`` stands for, and is whole, whatever its time says."""
    try:
        content = page.read_bytes()
    except OSError:
        return False
    seal = SEAL.search(content)
    if seal is None or hashlib.sha256(content[: seal.start()]).hexdigest().encode() != seal[1]:
        return False
    return f'<meta name="made-from" content="{mark}">'.encode() in content


def sealed(text: str) -> bytes:
    """Return the bytes of a page with its seal."""
    content = text.encode(errors="backslashreplace")
    return content + f"<!-- {hashlib.sha256(content).hexdigest()} -->\n".encode()


# ---- the template -------------------------------------------------------------------------------------
def render(experiments: Sequence[Contents], mark: str = "", live: str = "") -> str:
    """Return the page of one experiment, or of several side by side.

    mark: what ``is_current`` looks for. live: when it was made, of a page that a server renews.
    """
    from lib.report import sections  # here, as below: they take a second, and a page that is current needs neither

    names = unique([one.name for one in experiments])
    chapters = sections.chapters(experiments)
    about = " ".join(_about(one, name) for one, name in zip(experiments, names, strict=True))
    if len(experiments) > 1:
        from lib.report.compare import differing

        chapters.insert(0, differing(experiments, names))
    return _fill(" beside ".join(names), about, chapters, names, mark, live)


def render_list(workdir: str, chapter: Chapter, names: Sequence[str], mark: str, live: str) -> str:
    """Return the page of a workdir: a table of its experiments, and links to their pages."""
    return _fill(
        workdir, "Every experiment of this workdir, runs in progress included.", [chapter], [], mark, live, names
    )


def _fill(title: str, about: str, chapters: Sequence[Chapter], names: Sequence[str], mark: str, live: str,
          links: Sequence[str] = ()) -> str:  # fmt: skip
    scripts = ["swipe.js", *(["live.js"] if live else [])]
    text = _environment().get_template(PAGE).render(
        title=title, names=names, chapters=chapters, mark=mark, live=live, about=about, links=links,
        style=_text("style.css"), script=Markup("\n").join(map(_text, scripts)),
    )  # fmt: skip
    return text.lstrip()


def unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are the same: a repeated one has its number behind it."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def _about(one: Contents, name: str) -> str:
    models = sorted({key.split("/")[-2] for key in one.manifests if key.startswith(("02", "03"))})
    return f"{name}: {one.standing or 'nothing is known of how far it is'}" + (
        f"; models {', '.join(models)}." if models else "."
    )


def _text(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8").rstrip())


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    found = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                               lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    found.filters |= {"number": number, "breakable": breakable}
    return found


def number(value: Any) -> str:
    """Write a number as tables show it: four digits after the point, whole numbers with commas."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
    return f"{value:,}"


def breakable(name: str) -> Markup:
    """Return a name that a browser may break after each of its underscores."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))
