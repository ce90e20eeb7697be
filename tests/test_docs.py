"""README and docs stay true: links and names lead somewhere, shown YAML loads, tables state real defaults."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from lib.competitions import NAMES, open_competition
from lib.config.load import load
from lib.config.sections import Experiment
from lib.tools.sweep import read_grid

ROOT = Path(__file__).resolve().parents[1]
DOCS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
GUIDES = {"masks": "binary_rle", "rows": "multiclass_rle", "classes": "voc", "labels": "labels", "videos": "videos",
          "pairs": "xview2", "radar": "bright"}  # fmt: skip
"""Guide, and example file of the same name -> the competition it is about."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "yaml", "json", "text"}
MADE = {
    "best.safetensors", "network.json", "log.jsonl", "folds.csv", "audit.json", "findings.csv", "decode.json",
    "figures.json", "report.html", "beside.html",
    "manifest.json", "submission.csv", "probabilities.csv", "sample_submission.csv", "train.csv", "label.csv",
    "test.csv", "labels.csv", "annotations.txt", "trainval.txt", "test.txt", "train.txt", "val.txt", "train_set.txt",
    "test_set.txt",
}  # fmt: skip
"""Files that are named in the docs and lie in a data set or in a workdir, not in this repository."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a document."""
    return [body for found, body in FENCE.findall(text(name)) if found == language]


def prose(name: str) -> str:
    """Return a document without its drawings: what is left names real things."""
    return FENCE.sub(lambda block: block[2] if block[1] in ("bash", "yaml") else "", text(name))


def tables(name: str, first: str) -> list[list[str]]:
    """Return the rows (cells as they are written) of every table of a document whose first heading is ``first``."""
    rows, inside = [], False
    for line in text(name).splitlines():
        cells = [cell.strip().replace("\0", "|") for cell in line.replace(r"\|", "\0").strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not set(line) <= set("|- "):
            rows.append(cells)
    return rows


# ---- names and links ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DOCS)
def test_every_fenced_block_says_what_it_is(name):
    assert text(name).count("\n```") == 2 * len(FENCE.findall(text(name)))
    if name.startswith(("README", "docs/")):
        assert {language for language, _ in FENCE.findall(text(name))} <= LANGUAGES


@pytest.mark.parametrize("name", DOCS)
def test_every_link_leads_to_a_file(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(name)):
        if not target.startswith(("http://", "https://", "#")):
            assert (ROOT / name).parent.joinpath(target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", [name for name in DOCS if name != "CHANGELOG.md"])  # it names what was
def test_every_path_exists(name):
    """Words like lib/tasks.py, configs/bag_of_tricks/, 01_prepare_folds.py, requirements.txt; <name> and * are any."""
    words = re.findall(r"(?<![\w/<>.$-])(?:(?:lib|docs|configs|tests)/[\w./*<>-]*|\w+\.(?:py|txt|toml|yaml))",
                       prose(name))  # fmt: skip
    assert words
    mine = {f"my_{guide}.yaml" for guide in GUIDES} | {"X.yaml", "grid.yaml"}
    for word in words:
        pattern = re.sub(r"<\w+>", "*", word.rstrip("./-"))
        places = ("", "configs/bag_of_tricks/", "lib/*/", "lib/competitions/xview2/", "lib/competitions/")
        if pattern not in MADE | mine and not any(list(ROOT.glob(place + pattern)) for place in places):
            raise AssertionError(f"{name}: {word} is not there")


def exists(dotted: str) -> bool:
    """Tell whether ``lib.a.b`` is a module, a package, or a name that a module defines."""
    path = ROOT.joinpath(*dotted.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    for module in (path.parent.with_suffix(".py"), path.parent / "__init__.py"):
        if module.is_file():
            return any(getattr(node, "name", "") == path.name for node in ast.parse(module.read_text()).body)
    return False


@pytest.mark.parametrize("name", DOCS)
def test_every_module_exists(name):
    for dotted in re.findall(r"(?<![\w./])lib(?:\.[A-Za-z_]\w*)+", text(name)):
        assert dotted == "lib.py" or exists(dotted), dotted


@pytest.mark.parametrize("name", DOCS)
def test_every_target_of_make_exists(name):
    known = set(re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text(name), re.MULTILINE)) <= known


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= 120


# ---- shown YAML ---------------------------------------------------------------------------------------
SHOWN = [(name, block) for name in DOCS for block in blocks(name, "yaml")]


@pytest.mark.parametrize(("name", "block"), SHOWN, ids=[f"{name}-{n}" for n, (name, _) in enumerate(SHOWN)])
def test_shown_yaml_loads(name, block, tmp_path):
    """A whole experiment is the example file that its name says; a part fits into one; a grid is a grid."""
    tree = yaml.safe_load(block)
    if "competition" in tree:
        stated = load(ROOT / f"docs/examples/{tree['name']}.yaml")
        tree["data"].setdefault("options", {})
        assert Experiment.model_validate(tree) == stated
        return
    if set(tree) & set(Experiment.model_fields) != set(tree) or "name" in tree:
        (tmp_path / "grid.yaml").write_text(block)
        read_grid(tmp_path / "grid.yaml")
        changes = [f"{key}={json.dumps(values[0])}" for key, values in tree.items()]
        load(ROOT / "docs/examples/labels.yaml", changes)
        return
    whole = yaml.safe_load(text("docs/examples/masks.yaml"))
    Experiment.model_validate({**whole, **tree})


@pytest.mark.parametrize("path", sorted((ROOT / "docs/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_belongs_to_a_guide(path):
    assert load(path).competition == GUIDES[path.stem]
    assert text(f"docs/{path.stem}.md")


def test_every_competition_has_a_guide():
    assert set(GUIDES.values()) == set(NAMES)


def test_words_that_must_be_quoted_are_read_as_the_table_says():
    rows = tables("docs/experiment.md", "you write")
    assert len(rows) >= 5
    for wrong, _, right in rows:
        for code in re.findall(r"`([^`]+)`", wrong)[:1]:
            try:
                (value,) = yaml.safe_load(code).values()
            except yaml.YAMLError:
                continue
            assert not all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])), code
        ((value,),) = (yaml.safe_load(code).values() for code in re.findall(r"`([^`]+)`", right))
        assert all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])), right


def test_the_shown_label_of_a_pair_is_json():
    (block,) = blocks("docs/pairs.md", "json")
    (building,) = json.loads(block)["features"]["xy"]
    assert building["properties"]["subtype"] == "minor-damage" and building["wkt"].startswith("POLYGON")


def test_what_must_fit_together_is_what_the_examples_have():
    stated, real, competition = [], [], ""
    for _, name, *rest in tables("docs/experiment.md", "data"):
        competition = name.strip("`") or competition
        stated.append([competition, *(yaml.safe_load(cell.strip("`")) for cell in rest)])
    for guide, competition in GUIDES.items():
        for model in load(ROOT / f"docs/examples/{guide}.yaml").models.values():
            network = model.network
            terms = dict(model.train.loss.terms)
            real.append([competition, model.task, list(network.images), network.architecture, terms])
    assert stated == real


# ---- tables of the guides -----------------------------------------------------------------------------
def defaults(guide: str, tmp_path: Path) -> dict:
    options = load(ROOT / f"docs/examples/{guide}.yaml").data.options
    if GUIDES[guide] == "labels":
        options = {**options, "classes": ["cat", "dog"]}
    return open_competition(GUIDES[guide], tmp_path, options).complete({})


@pytest.mark.parametrize("guide", GUIDES)
def test_decode_settings_and_their_defaults_are_those_of_the_code(guide, tmp_path):
    stated = {}
    for names, default, _ in tables(f"docs/{guide}.md", "setting"):
        stated |= dict.fromkeys(re.findall(r"`([^`]+)`", names), float(default.split()[0]))
    real = defaults(guide, tmp_path)
    for name in [name for name in stated if name.endswith("<class>")]:
        prefix, value = name.removesuffix("<class>"), stated.pop(name)
        stated |= dict.fromkeys([key for key in real if key.startswith(prefix)], value)
    assert stated == real


def steps(guide: str) -> set[str]:
    """Return the steps a guide names, without their options, which stand in brackets."""
    (listed,) = re.findall(r"^Steps for `search.postprocess`:(.*?)(?:\n\n|\Z)", text(f"docs/{guide}.md"), re.M | re.S)
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", listed)))


@pytest.mark.parametrize(("guide", "module"), [
    ("masks", "lib.competitions.binary_rle.instances"), ("classes", "lib.competitions.label_map"),
    ("pairs", "lib.competitions.xview2.postprocess"), ("radar", "lib.competitions.label_map"),
])  # fmt: skip
def test_post_processing_steps_are_those_of_the_code(guide, module):
    assert steps(guide) == set(importlib.import_module(module).STEPS)


@pytest.mark.parametrize("guide", GUIDES)
def test_what_a_guide_tells_to_write_is_taken(guide, tmp_path):
    """Every snippet in the table "How to say it" is an option of the competition, or a setting of the experiment."""
    example = ROOT / f"docs/examples/{guide}.yaml"
    model = next(iter(load(example).models))
    rows = tables(f"docs/{guide}.md", "you want to say")
    assert len(rows) >= 5
    for _, write in rows:
        options, settings = {}, []
        for code in re.findall(r"`([^`]+)`", write):
            if not re.match(r"[\w.]+: ", code):
                continue
            ((key, value),) = yaml.safe_load(code).items()
            if key in ("view", "train.sampling.focus", "train.sampling.sources"):
                key = f"models.{model}.{key}"
            elif key == "images" and guide in ("masks", "rows"):
                key = f"models.{model}.network.images"
            if key in Experiment.model_fields or "." in key:
                settings.append(f"{key}={json.dumps(value)}")
            else:
                options[key] = value
        if "without `search`" in write:
            settings.append("search=null")
        stated = dict(load(example, settings).data.options)
        stated |= {"classes": ["cat", "dog"]} if GUIDES[guide] == "labels" else {}
        if "classes" in stated and "colours" in options:
            options.setdefault("classes", ["background", "roof"])
        open_competition(GUIDES[guide], tmp_path, {**stated, **options})
