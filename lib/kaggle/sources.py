"""Which modules and packages inference needs: imports are read, nothing is run."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from lib.errors import ConfigError
from lib.kaggle.gates import distributions

ROOT = Path(__file__).resolve().parents[2]
ENTRY = ("lib.kaggle.driver", "lib.kaggle.infer")
"""Where reading starts; the competition's file is added, which is imported by its name."""

PYTHON = ">=3.10"


def modules(names: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Return path -> text of every module of lib/ that ``names`` import, and the packages that these import.

    Imports inside functions do not count: they are for what inference does not do (writing the demo set).
    """
    texts: dict[str, str] = {}
    packages, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None:  # a function or class of a module that is read anyway
            continue
        key = path.relative_to(ROOT).as_posix()
        if key in texts:
            continue
        texts[key] = path.read_text(encoding="utf-8")
        waiting += [name.rpartition(".")[0]] if "." in name else []
        for imported in _imports(ast.parse(texts[key])):
            first = imported.partition(".")[0]
            if first == "lib":
                waiting.append(imported)
            elif first not in sys.stdlib_module_names:
                packages.add(first)
    return dict(sorted(texts.items(), key=_reading_order)), packages


def _reading_order(item: tuple[str, str]) -> tuple[bool, bool, str]:
    """What runs first comes first: the kernel's own modules, then lib/, then its rooms."""
    path = item[0]
    return not path.startswith("lib/kaggle/"), path.count("/") > 1, path


def _file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports when it is imported itself, under ``if`` and ``try`` too."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                waiting.append(node)


def requirements(path: Path = ROOT / "requirements.txt") -> dict[str, str]:
    """Return distribution -> the versions that were tested (">=1.0.31,<1.1"), "" for any; not those of ``-r``."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*([^#;]*)", line.strip()):
            found[plain(match[1])] = match[2].replace(" ", "")
    return found


def plain(distribution: str) -> str:
    """Return a distribution's name as it is compared: PyYAML and pyyaml are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def requires(packages: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return import name -> distribution, tested versions, and the version here. ConfigError for an absent package."""
    tested, installed = requirements(), distributions()
    found = {}
    for package in sorted(packages):
        names = installed.get(package)
        if not names:
            raise ConfigError(f"{package}: not installed; run `pip install -r requirements.txt`")
        name = next((n for n in names if plain(n) in tested), names[0])
        found[package] = {"distribution": name, "tested": tested.get(plain(name), ""), "here": metadata.version(name)}
    return found
