"""The bundle's sources as one readable script and as one notebook, and the metadata files that Kaggle's client reads.

A module is a call ``source("lib/errors.py", r'''...''')``: plain text that a reader can scroll through, written to
a temporary folder when the file runs. Both forms consist of the same blocks of code.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.errors import ConfigError

RULE = 100
"""Width of a title line."""


@dataclass(frozen=True)
class Block:
    """A titled piece of code: a cell of the notebook."""

    title: str
    code: str


HEAD = '''\
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Change these here, or set KERNEL_INPUT and so on in the environment, or give INPUT=... as an argument.
SETTINGS = {
    "INPUT": "/kaggle/input",  # where datasets are attached
    "WEIGHTS": "",  # folder of the weights; "": the one below INPUT with the id BUNDLE
    "DATA": "",  # folder of the competition's data; "": the one below INPUT with test scenes
    "COMPETITION": @COMPETITION@,  # name of that folder, where there are several
    "WORKING": "/kaggle/working",  # where submission.csv goes
    "SCRATCH": "",  # where probabilities lie meanwhile; "": a temporary folder
    "BUDGET_MINUTES": "",  # from start to end; "": as the experiment says, else as long as it takes
    "WORKERS": "",  # processes that share the scenes; "": as the experiment says, else one per GPU
    "START": "spawn",  # how they begin; "fork" is for the CPU alone
    "VERSIONS": "tested",  # "any": packages of other versions than those tested will do
    "ON_ERROR": "keep",  # a failure after the first submission keeps it and ends well; "stop": ends as a failure
}
BUNDLE = @BUNDLE@

for name in SETTINGS:
    SETTINGS[name] = os.environ.get("KERNEL_" + name, SETTINGS[name])
for argument in sys.argv[1:]:
    name, sign, value = argument.partition("=")
    if sign and name in SETTINGS:
        SETTINGS[name] = value

SOURCES = Path(tempfile.mkdtemp(prefix="sources-"))


def source(path, text):
    """Write one file of the sources."""
    target = SOURCES / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text.removeprefix("\\n"), encoding="utf-8")
'''

TAIL = """\
scratch = os.path.abspath(SETTINGS["SCRATCH"] or SOURCES / "scratch")
command = [sys.executable, "-m", "lib.kaggle.driver", "--bundle", BUNDLE, "--scratch", scratch]
for name in ("INPUT", "WEIGHTS", "DATA", "WORKING"):
    command += ["--" + name.lower(), os.path.abspath(SETTINGS[name])] if SETTINGS[name] else []
for name in ("COMPETITION", "BUDGET_MINUTES", "WORKERS", "START", "VERSIONS"):
    command += ["--" + name.lower().replace("_", "-"), str(SETTINGS[name])]
environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
try:
    with subprocess.Popen(
        command, cwd=SOURCES, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
finally:
    shutil.rmtree(SOURCES, ignore_errors=True)
submission = Path(SETTINGS["WORKING"]) / "submission.csv"
if process.returncode == 2 or (process.returncode and (SETTINGS["ON_ERROR"] == "stop" or not submission.exists())):
    sys.exit(process.returncode)
if process.returncode:
    print(f"kernel: FAILED with exit code {process.returncode}; {submission} is the one from before, valid but worse")
"""


def blocks(sources: Mapping[str, str], bundle: str, competition: str) -> list[Block]:
    """Return the blocks of both forms. ConfigError for a source that cannot be quoted plainly."""
    head = HEAD.replace("@BUNDLE@", json.dumps(bundle)).replace("@COMPETITION@", json.dumps(competition))
    files = [Block(path, f"source({json.dumps(path)}, {quoted(path, text)})\n") for path, text in sources.items()]
    return [Block("Settings", head), *files, Block("Run", TAIL)]


def quoted(path: str, text: str) -> str:
    """Return a raw string literal whose value is a line break and ``text``. Raises ConfigError where there is none."""
    for quotes in ("'''", '"""'):
        literal = f"r{quotes}\n{text}{quotes}"
        if quotes not in text and text[-1:] in ("\n", "") and "\r" not in text:
            return literal
    raise ConfigError(f"{path}: holds both kinds of triple quotes, or does not end with a line break; it cannot be "
                      "bundled as plain text, change one kind")  # fmt: skip


def script(intro: str, parts: Sequence[Block]) -> str:
    """Return the blocks as one Python file under a docstring."""
    pieces = [f'"""{intro}"""\n']
    for block in parts:
        pieces.append(f"\n# ---- {block.title} {'-' * max(4, RULE - len(block.title))}\n{block.code}")
    text = "".join(pieces)
    ast.parse(text)
    return text


def notebook(intro: str, parts: Sequence[Block]) -> str:
    """Return the blocks as a notebook (nbformat 4.5): the intro as markdown, a code cell per block."""
    title, _, rest = intro.partition("\n")
    cells = [_cell(0, "markdown", f"# {title}\n{rest}")]
    cells += [_cell(number, "code", f"# {block.title}\n{block.code}") for number, block in enumerate(parts, 1)]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": f"block-{number}", "metadata": {},
            "source": text.rstrip("\n").splitlines(keepends=True)}  # fmt: skip
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell


# ---- metadata -----------------------------------------------------------------------------------------
def slug(text: str) -> str:
    """Return a name as it stands in Kaggle's addresses: small letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def dataset_metadata(user: str, name: str, title: str, licence: str) -> dict[str, Any]:
    """Return dataset-metadata.json. ConfigError for a title that Kaggle's client refuses (6 to 50 characters)."""
    if not 6 <= len(title) <= 50:
        raise ConfigError(f"--title {title!r}: expected 6 to 50 characters with what is added to it, got {len(title)}")
    return {"title": title, "id": f"{user}/{name}", "licenses": [{"name": licence}]}


def kernel_metadata(file: str, user: str, title: str, dataset: str, competition: str, gpu: bool) -> dict[str, Any]:
    """Return kernel-metadata.json of a script or a notebook; Kaggle wants the id to be the title's slug."""
    return {
        "id": f"{user}/{slug(title)}",
        "title": title,
        "code_file": file,
        "language": "python",
        "kernel_type": "notebook" if file.endswith(".ipynb") else "script",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": False,
        "dataset_sources": [dataset],
        "competition_sources": [competition] if competition else [],
        "kernel_sources": [],
        "model_sources": [],
    }
