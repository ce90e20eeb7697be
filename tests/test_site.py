"""The documentation as a site, and the build files of images and environments."""

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
material = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs requirements-docs.txt")


class Sources(HTMLParser):
    """What a page fetches by itself, and where its links lead."""

    def __init__(self):
        super().__init__()
        self.fetched, self.links, self.ids = [], [], set()

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.ids |= {held["id"]} if held.get("id") else set()
        if tag in ("script", "img", "iframe", "source") and held.get("src"):
            self.fetched.append(held["src"])
        elif tag == "link" and held.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.fetched.append(held["href"])
        elif tag == "a" and held.get("href"):
            self.links.append(held["href"])


def read(path: Path) -> Sources:
    found = Sources()
    found.feed(path.read_text(encoding="utf-8"))
    return found


@material
@pytest.mark.slow
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.name: read(path) for path in (tmp_path / "site").glob("*.html")}
    documents = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {f"{name}.html" for name in (*documents, "index", "architecture", "contributing", "changelog")} <= set(pages)
    for name, page in pages.items():
        assert not [source for source in page.fetched if re.match("(https?:)?//", source)], name
        for source in page.fetched:
            assert (tmp_path / "site" / source.partition("?")[0].lstrip("/")).exists(), f"{name}: {source}"
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match("https?:|mailto:", link) or name == "404.html":
                continue
            leads = (tmp_path / "site" / (target or name)).resolve()
            assert leads.exists(), f"{name}: {link}"
            if anchor and leads.suffix == ".html":
                assert anchor in pages[leads.name].ids, f"{name}: {link}"
    assert (tmp_path / "site/demo.jpg").exists() and not (tmp_path / "site/site").exists()


@material
def test_a_link_to_a_source_file_becomes_its_name():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/site/pages.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    written = "[a](docs/masks.md#x) [b](../README.md) [c](lib/tasks.py) [d](https://e.org) ![e](docs/demo.jpg)"
    assert hooks.linked(written) == "[a](masks.md#x) [b](index.md) c [d](https://e.org) ![e](demo.jpg)"
    assert "masks.md" in hooks.on_config({"nav": [{"Home": "index.md"}]})["nav"][-1]["More"]


# ---- images and environments --------------------------------------------------------------------------
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_names_what_is_there(path):
    joined = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    words = [line.split() for line in joined.splitlines() if re.match("[A-Z]", line)]
    assert [line[0] for line in words].count("FROM") == 1 and words[0][1].startswith("python:3.12")
    for line in words:
        if line[0] == "COPY":
            assert all(list(ROOT.glob(pattern)) for pattern in line[1:-1] if pattern != "."), line
    for name in re.findall(r"requirements[\w-]*\.txt", joined):
        assert (ROOT / name).is_file(), name
    pattern = re.search(r"grep -E '(.*?)'", joined)[1]
    taken = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if re.match(pattern, line)]
    assert [re.split("[<>=]", line)[0] for line in taken] == ["torch", "torchvision"]


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_follows_an_image_is_given_to_python_and_nothing_runs_the_stages(path, tmp_path):
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("ENTRYPOINT")]
    entry = yaml.safe_load(line.removeprefix("ENTRYPOINT "))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text('#!/bin/sh\necho ran "$@"\n')
    (tmp_path / "bin/python").chmod(0o755)
    for name in ("01_a.py", "02_b.py"):
        (tmp_path / name).touch()

    def ran(*words: str) -> list[str]:
        said = subprocess.run([*entry, *words], cwd=tmp_path, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
                              capture_output=True, text=True, check=True)  # fmt: skip
        return said.stdout.splitlines()

    assert ran() == ["ran 01_a.py", "ran 02_b.py"]
    assert ran("02_b.py", "--set", "a=b c") == ["ran 02_b.py --set a=b c"]


def test_the_conda_environment_takes_the_tested_versions():
    tree = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in tree["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt"]
    (python,) = [entry for entry in tree["dependencies"] if str(entry).startswith("python=")]
    low, high = re.search(
        r"\((\d+, \d+)\) <= sys.version_info < \((\d+, \d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    version = tuple(map(int, python.removeprefix("python=").split(".")))
    assert tuple(map(int, low.split(","))) <= version < tuple(map(int, high.split(",")))


def test_docker_leaves_results_and_environments_out_and_nothing_that_it_needs():
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {".venv", ".git", "workdir", "demo_data"} <= ignored
    assert not {"lib", "requirements.txt", "configs", "docs"} & ignored
