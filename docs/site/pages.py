"""What ``mkdocs.yml`` does beside its settings: the files beside docs/ become pages, and links lead to pages.

README.md is the first page. A link to a source file, which the site does not hold, becomes its name. Pages of docs/
that the navigation does not list are put at its end.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md",
         "CHANGELOG.md": "changelog.md"}  # fmt: skip
"""File beside docs/ -> page of the site."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def linked(markdown: str) -> str:
    """Return a text whose links lead to pages of the site; those to anything else of the repository are plain names."""

    def lead(match: re.Match) -> str:
        text, target = match.groups()
        if target.startswith(("http://", "https://", "#", "mailto:")):
            return match[0]
        path, mark, anchor = target.removeprefix("../").removeprefix("docs/").partition("#")
        page = PAGES.get(path, path)
        if page not in PAGES.values() and not (ROOT / "docs" / page).is_file():
            return text
        return f"[{text}]({page}{mark}{anchor})"

    return LINK.sub(lead, markdown)


def on_config(config):
    """Append the pages that the navigation does not list."""
    listed = set(re.findall(r"[\w-]+\.md", repr(config["nav"])))
    more = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in listed)
    if more:
        config["nav"].append({"More": more})
    return config


def on_files(files, config):
    """Add the files beside docs/ as pages."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, **_):
    """Let links lead to pages."""
    return linked(markdown)
