"""ARCHITECTURE.md stays true: every row of the source documents is in its table once, and what it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SOURCES = {"A": 36, "B": 22, "H": 32, "Z": 13}
"""Letter of a source document -> the number of rows it was taken apart into."""


def rows() -> list[tuple[list[str], str]]:
    """Return (row ids, the rest of the line) of each line of the table."""
    found = []
    for line in TEXT.splitlines():
        if match := re.match(r"\| ((?:[ABHZ]\d+(?:, )?)+) \| (.*)", line):
            found.append((match[1].split(", "), match[2]))
    return found


def test_every_row_is_there_once():
    listed = sorted(name for names, _ in rows() for name in names)
    assert listed == sorted(f"{letter}{k}" for letter, n in SOURCES.items() for k in range(1, n + 1))


@pytest.mark.parametrize(("names", "line"), rows(), ids=lambda value: value[0] if isinstance(value, list) else "")
def test_what_a_row_names_exists(names, line):
    for path in re.findall(r"`((?:lib|tests|configs)/[\w./*]+)`", line):
        assert list(ROOT.glob(path)), f"{names}: {path}"
    for tool in re.findall(r"python -m ([\w.]+)", line):
        assert (ROOT / (tool.replace(".", "/") + ".py")).exists() or (ROOT / tool.replace(".", "/")).is_dir(), tool


def test_the_rooms_are_drawn():
    drawn = TEXT.split("```")[1]
    for path in sorted((ROOT / "lib").rglob("*.py")):
        parts = path.relative_to(ROOT / "lib").parts
        if path.stem.startswith("__") or parts[0] in ("competitions", "kaggle"):
            continue
        room = parts[0].removesuffix(".py")
        assert re.search(rf"\b{room}\b", drawn) and re.search(rf"\b{path.stem}\b", drawn), path
