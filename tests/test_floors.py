"""Imports only go down: a room may use the rooms below it, never those above."""

import ast
from pathlib import Path

import pytest

from lib.competitions import NAMES

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"errors", "tasks", "files", "settings"},
    {"models", "metrics"},
    {"ensemble"},
    {"scenes"},
    {"competitions"},
    {"scoring", "config"},
    {"run"},
    {"inference"},
    {"training"},
    {"choose"},
    {"stages"},
    {"report", "kaggle"},
    {"tools"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def rooms(path: Path) -> set[str]:
    """Return the rooms of lib/ that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            if parts[0] == "lib":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lib.")}
    return found


def sources() -> list[Path]:
    return [p for p in sorted((ROOT / "lib").rglob("*.py")) if p != ROOT / "lib" / "__init__.py"]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(path):
    room = path.relative_to(ROOT / "lib").parts[0].removesuffix(".py")
    assert room in FLOOR_OF, f"{room} has no floor: give it one here and in ARCHITECTURE.md"
    above = {other for other in rooms(path) if other != room and FLOOR_OF[other] >= FLOOR_OF[room]}
    assert not above


@pytest.mark.parametrize("room", ["models", "ensemble"])
def test_array_rooms_know_no_configs_folders_or_competitions(room):
    for path in (ROOT / "lib" / room).glob("*.py"):
        assert not rooms(path) & {"run", "competitions", "stages", "training"}, path


def names_in(path: Path) -> set[str]:
    """Return the strings of a file, and the modules of lib/competitions that it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and node.module == "lib.competitions":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib.competitions."):
            found.add(node.module.split(".")[2])
    return found


def test_no_competition_is_named_outside_its_room():
    names = set(NAMES)
    allowed = {"competitions", "scoring"}
    for path in [*sources(), *sorted(ROOT.glob("0*.py"))]:
        if path.is_relative_to(ROOT / "lib") and path.relative_to(ROOT / "lib").parts[0] in allowed:
            continue
        assert not names_in(path) & names, f"{path} names a competition"


def test_the_reader_of_names_finds_them(tmp_path):
    for text in ('x = {"voc": 1}', "if name == 'voc': pass", "from lib.competitions.voc import Competition",
                 "from lib.competitions import voc"):  # fmt: skip
        (tmp_path / "a.py").write_text(text)
        assert "voc" in names_in(tmp_path / "a.py"), text


def test_a_stage_script_is_a_page_without_classes():
    for path in sorted(ROOT.glob("0[1-6]_*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, path
        assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)], path
        for word in ("Reads:", "Writes:", "python 0"):
            assert word in text, f"{path} does not say {word}"
