"""The stated versions: one oldest end, written once, and the suite runs within what is stated."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from lib.kaggle import sources
from lib.kaggle.gates import distributions

ROOT = Path(__file__).resolve().parents[1]
STATED = sources.requirements()
DEVELOPMENT = sources.requirements(ROOT / "requirements-dev.txt")
FAST = sources.requirements(ROOT / "requirements-fast.txt")
CLUSTER = sources.requirements(ROOT / "requirements-cluster.txt")
TESTED = {name: spec for part in ("docs", "export", "maps", "track")
          for name, spec in sources.requirements(ROOT / f"requirements-{part}.txt").items()}  # fmt: skip
"""Optional packages whose use is tested, beside those above."""
NOTEBOOK = sources.requirements(ROOT / "requirements-notebook.txt")
GPU = sources.requirements(ROOT / "requirements-gpu.txt")
OLDEST = sources.requirements(ROOT / "requirements-oldest.txt")


def test_every_range_begins_at_the_oldest_version_that_is_tested():
    """Of the packages for development those with a range run the tests; the pinned ones only read the sources."""
    own = {name: spec for name, spec in DEVELOPMENT.items() if not spec.startswith("==")}
    ranges = STATED | FAST | CLUSTER | TESTED | own
    assert {name: f"=={re.match('[>=]=([0-9.]+)', spec)[1]}" for name, spec in ranges.items()} == OLDEST


def test_every_range_has_an_end():
    everything = STATED | DEVELOPMENT | FAST | CLUSTER | TESTED | NOTEBOOK | GPU
    assert [name for name, spec in everything.items() if "<" not in spec and not spec.startswith("==")] == []


def test_what_runs_a_competition_does_not_install_what_tests_and_lint_need():
    assert {"pytest", "pytest-cov", "ruff", "mypy"} <= DEVELOPMENT.keys()
    assert not STATED.keys() & (DEVELOPMENT | FAST | CLUSTER | TESTED | NOTEBOOK | GPU).keys()


def test_the_suite_runs_within_the_ranges():
    """With the versions of a build's name (2.6.0+cu124) too: images have such."""
    for name, spec in STATED.items():
        assert SpecifierSet(spec).contains(metadata.version(name), prereleases=True), name
    for version in (OLDEST["torch"][2:], re.search("<=([0-9.]+)", STATED["torch"])[1]):
        assert SpecifierSet(STATED["torch"]).contains(f"{version}+cu124")


def test_every_package_that_is_imported_is_stated():
    imported = {name.partition(".")[0] for path in (ROOT / "lib").rglob("*.py")
                for name in sources._imports(ast.parse(path.read_text(encoding="utf-8")))}  # fmt: skip
    known = distributions()
    imported -= {"pydantic_core"}  # pydantic's own half, which pins it
    missing = [name for name in imported - sys.stdlib_module_names - {"lib"}
               if not {sources.plain(one) for one in known[name]} & STATED.keys()]  # fmt: skip
    assert missing == []
