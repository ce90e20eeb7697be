"""Imports only go down: a room may use the rooms below it, never those above."""

import ast
import functools
import re
from collections.abc import Collection
from pathlib import Path

import pytest

from lib.competitions import NAMES

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"errors", "files", "settings"},
    {"tasks"},
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
    {"maps", "cluster"},
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


def test_a_class_name_occurs_once():
    found: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    allowed = {
        "Competition": len(NAMES) + 1,  # the contract, and the class of that name in every competition
        "Network": 2,  # the section of the experiment file, and what a network must have for the type checker
        "Stain": 2,  # the options of a competition, and how its embedded set is drawn
    }
    more = {name: paths for name, paths in found.items() if len(paths) > allowed.get(name, 1)}
    assert not more


# ---- the spirit: rooms that serve every competition speak of none ---------------------------------------
WORDS = {
    "xview2": "xview2 xbd building buildings damage no-damage minor-damage major-damage destroyed un-classified "
              "localization_f1 damage_f1 disaster pre_disaster post_disaster tier1 tier3 selim2020",
    "binary_rle": "binary_rle nuclei nucleus hubmap hpa kidney spleen stage1_train stage1_test EncodedPixels ImageId",
    "voc": "voc JPEGImages SegmentationClass ImageSets trainval cheetah lion wolf tiger hyena fox camvid pets",
    "multiclass_rle": "multiclass_rle madison severstal stomach bowel large_bowel small_bowel EncodedPixels ClassId",
    "bright": "pre-event post-event building_damage intact earthquake",
    "videos": "zalo liveness liveness_score spoof label.csv",
    "labels": "macro_f1 top5 cassava",
}  # fmt: skip
"""Competition -> its name, its classes, its columns, files and folders: words that belong into its folder."""
OLDER_NAMES = {"damage_ce", "damage_dice", "building_bce", "building_dice", "selim2020_loc", "selim2020_cls"}
EXCEPTIONS = {
    "lib/config/losses.py": OLDER_NAMES,  # of loss terms, which experiment files may still use
    "lib/scenes/augment.py": OLDER_NAMES | {"hubmap", "liveness"},  # of presets
    "lib/tools/convert_selim2020.py": {"configs/xview2_selim2020.yaml"},  # whose published weights it is for
    "lib/run/cli.py": {"building"},  # said of a unit that is being built
}
"""File -> texts in which a word may stand."""


def texts(path: Path) -> list[str]:
    """Return what a file says beside its comments: strings, identifiers and the first lines of docstrings."""
    tree, found, documented = ast.parse(path.read_text(encoding="utf-8")), [], set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                documented.add(statement.value)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            found.append(text.partition("\n")[0])
        found += [
            value for name in ("name", "id", "attr", "arg") if isinstance(value := getattr(node, name, None), str)
        ]
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found + [node.value for node in constants if node not in documented]


@functools.cache
def pattern(words: frozenset[str]) -> re.Pattern:
    return re.compile(rf"(?<![^\W_])({'|'.join(map(re.escape, sorted(words)))})(?![^\W_])", re.IGNORECASE)


def words_in(text: str, words: Collection[str]) -> list[str]:
    """Return which words stand in a text, alone or between signs: ``damage`` in ``damage_ce``, not in ``damaged``."""
    return pattern(frozenset(words)).findall(text)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_but_its_own_speaks_of_a_competition(path):
    name = str(path.relative_to(ROOT))
    if name.startswith(("lib/competitions/", "lib/scoring/")):
        return
    words = {word for line in WORDS.values() for word in line.split()}
    allowed = EXCEPTIONS.get(name, set())
    found = {text: said for text in texts(path) if text not in allowed and (said := words_in(text, words))}
    assert not found


def test_every_competition_has_words_and_every_exception_is_needed():
    assert set(WORDS) == set(NAMES)
    words = {word for line in WORDS.values() for word in line.split()}
    for name, allowed in EXCEPTIONS.items():
        said = {text for text in texts(ROOT / name) if words_in(text, words)}
        assert said and said <= allowed, name


@pytest.mark.parametrize("text", ['def building_area(): ...', 'x = {"minor-damage": 1}', '"""Where buildings are."""',
                                  "self.damage_net = 1", "def f(hubmap): ..."])  # fmt: skip
def test_the_reader_of_words_finds_them(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    words = {word for line in WORDS.values() for word in line.split()}
    assert any(words_in(said, words) for said in texts(tmp_path / "a.py"))
    (tmp_path / "a.py").write_text('"""A damaged file."""\n# buildings\n')
    assert not any(words_in(said, words) for said in texts(tmp_path / "a.py"))


def test_a_stage_script_is_a_page_without_classes():
    for path in sorted(ROOT.glob("0[1-6]_*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, path
        assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef)], path
        for word in ("Reads:", "Writes:", "python 0"):
            assert word in text, f"{path} does not say {word}"
