"""Every command that README.md and docs/ show is run, on embedded data, with networks of a few layers.

A document's blocks of bash run from top to bottom in a folder that holds the repository. Bash itself reads them, so
loops and variables mean what they mean to a reader; only the words for which ``Reader`` has a method ``on_<word>`` are
answered here: ``python`` by calling the script or module in this process (torch is imported once, not for every
command), the others as ``EXCEPTIONS`` says. What is substituted stands in ``Reader.substitutions``, what lies in the
folder beforehand in ``PREPARED``.
"""

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import areas
import pytest
import shapely
import yaml
from test_docs import GUIDES, blocks

from lib.competitions import synthetic
from lib.report import serve
from lib.tools import sweep

ROOT = Path(__file__).resolve().parents[1]
DOCS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

EXCEPTIONS = {
    "make": "only what it would do is asked (make -n), since it installs an environment of its own",
    "kaggle": "needs an account: the folder it names must be there with its metadata and the file that these name; a "
              "dataset is then attached, that is copied below inputs/",
    "torchrun": "two processes with gloo on the CPU instead of four with nccl",
    "configs/xview2_cpu.yaml, configs/xview2.yaml": "the suite's finished tiny experiment of the same competition "
                                                    "stands for them; that they load is tested in test_config.py",
    "lib.report serve": "the server is opened at any free port and answers nobody, since it would not end",
    "configs/bag_of_tricks": "a ladder of two rungs on fewer pictures stands for it: the ladder itself takes a GPU",
}  # fmt: skip
"""What is not run as it stands, and why."""

SEGMENTATION = (
    "{architecture: segmentation, images: [%s], encoder: tu-test_efficientnet, "
    "options: {decoder_channels: [16, 16, 8, 8], upsample_logits: 2}}"
)
CLASSIFIER = "{architecture: classifier, images: [%s], encoder: tu-test_efficientnet}"
SIZES = {
    "binary_rle": (8, 3, 96),
    "voc": (9, 3, 96),
    "bright": (6, 2, 96),
    "multiclass_rle": (16, 3, 96),
    "labels": (12, 3, 64),
    "videos": (8, 3, 64),
}
"""Embedded set of a competition -> labelled scenes, test scenes, pixels. xView2's is the suite's tiny experiment's."""


def tiny(guide: str) -> list[str]:
    """Return the changes that make a guide's example small: folds, networks, steps."""
    changes = ["folds.n=2", "folds.embed=false", "predict.tta=none", "predict.tile=128"]
    networks = {
        "masks": {"unet": SEGMENTATION % "image"},
        "rows": {"unet": SEGMENTATION % "image"},
        "classes": {"unet": SEGMENTATION % "image"},
        "radar": {"unet": SEGMENTATION % "pre, post"},
        "labels": {"lite0": CLASSIFIER % "image"},
        "videos": {"lite0": CLASSIFIER % "frames"},
        "pairs": {"loc": SEGMENTATION % "pre", "cls": (SEGMENTATION % "pre, post").replace("segmentation", "siamese")},
    }
    for model, network in networks[guide].items():
        changes += [f"models.{model}.network={network}"]
        changes += [f"models.{model}.train.{change}" for change in ("epochs=1", "batch_size=4", "crop=64")]
        changes += [f"models.{model}.train.sampling={{samples: 8}}"]
        changes += [f"models.{model}.view.size=64"] * (guide in ("labels", "videos"))
        changes += ["predict.tile=1024", f"models.{model}.folds=[0]"] * (guide == "pairs")
    return changes


class Reader:
    """Someone who types what a document shows, in a folder of their own."""

    def __init__(self, folder: Path, name: str, request: pytest.FixtureRequest):
        self.folder, self.name, self.request = folder, name, request
        for path in ROOT.iterdir():
            if not path.name.startswith(".") and path.name not in ("workdir", "demo_data", "kernel"):
                (folder / path.name).symlink_to(path)

    @property
    def finished(self):
        """The suite's tiny experiment, made on first demand."""
        return self.request.getfixturevalue("finished")

    def data(self, competition: str) -> Path:
        """Return the folder of an embedded set, written on first demand."""
        if competition == "xview2":
            return Path(yaml.safe_load(self.finished.config.read_text())["data"]["root"])
        root = self.folder / "data" / competition
        scenes, test_scenes, size = SIZES[competition]
        synthetic.write(competition, root, scenes=scenes, test_scenes=test_scenes, size=size, seed=1)
        return root

    def substitutions(self) -> dict[str, str]:
        """Return what is written instead of what the document shows; the same for all documents."""
        table = {
            "configs/xview2_cpu.yaml": "tiny.yaml",
            "--nproc-per-node 4": "--nproc-per-node 2",
            "configs/xview2.yaml --only dpn92": "tiny.yaml --only loc --workdir parallel",
            "workdir/old": "workdir/tiny",
            "workdir/new": "workdir/tiny",
            "configs/bag_of_tricks --seeds 0 1 --set data.root=building_crops": "ladder --seeds 0 1",
            "PREDICTIONS_DIR TARGETS_DIR": "workdir/tiny/06_submission/oof/xview2 targets",
            "--lint PATH": "--lint workdir/tiny/06_submission/test",
            "SLUG": "embedded",
            "serve workdir": "serve workdir --port 0",
        }
        for guide, competition in GUIDES.items():
            changes = " ".join(f"--set '{change}'" for change in tiny(guide))
            for config in (f"my_{guide}.yaml", f"docs/examples/{guide}.yaml"):
                table[f"--config {config}"] = f"--config {config} {changes}"
            if f"/data/{guide}" in "".join(blocks(self.name, "bash")):
                table[f"/data/{guide}"] = str(self.data(competition))
        if "/data/xbd" in "".join(blocks(self.name, "bash")):
            table["/data/xbd"] = str(self.data("xview2"))
        return table

    def type(self, block: str) -> None:
        """Let bash read a block; fails if a command of it does."""
        for shown, instead in self.substitutions().items():
            block = block.replace(shown, instead)
        words = sorted(word.removeprefix("on_") for word in dir(self) if word.startswith("on_"))
        asking, request = os.pipe()
        answer, answering = os.pipe()
        functions = "".join(
            f'{word}() {{ printf "%s\\0" "$(($# + 1))" {word} "$@" >&{request}; read -r code <&{answer}; '
            'return "$code"; }\n'
            for word in words
        )
        kernel = f'_kernel() {{ "{sys.executable}" "$@"; }}\n'
        block = re.sub(r"\bpython (kernel/)", r"_kernel \1", block)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        bash = subprocess.Popen(["bash", "-e", "-o", "pipefail", "-c", functions + kernel + block], cwd=self.folder,
                                pass_fds=(request, answer), env=environment, stdin=subprocess.DEVNULL)  # fmt: skip
        os.close(request), os.close(answer)
        with open(asking, "rb", buffering=0) as questions, open(answering, "wb", buffering=0) as answers:
            while count := self._word(questions):
                word, *arguments = (self._word(questions) for _ in range(int(count)))
                code = getattr(self, f"on_{word}")(*arguments)
                assert code == 0, f"{self.name}: {word} {' '.join(arguments)} ended with {code}"
                answers.write(b"%d\n" % code)
        assert bash.wait() == 0, f"{self.name}: {block}"

    @staticmethod
    def _word(stream) -> str:
        """Read one word; "" where bash has ended."""
        found = b""
        while (byte := stream.read(1)) not in (b"\0", b""):
            found += byte
        return found.decode()

    # ---- words that are answered here ------------------------------------------------------------------
    def on_python(self, *arguments: str) -> int:
        """Run a script, or a module's ``main``, in this process and this folder; returns its exit code."""
        if arguments[0] == "-m":
            module = importlib.import_module(arguments[1])
            package = hasattr(module, "__path__")
            what = f"{arguments[1]}.__main__" if package else arguments[1]
            if hasattr(importlib.import_module(what), "main"):
                return sys.modules[what].main(list(arguments[2:]))
            del sys.modules[what]
            run, rest = runpy.run_module, arguments[2:]
        else:
            run, what, rest = runpy.run_path, arguments[0], arguments[1:]
        before, sys.argv = sys.argv, [what, *rest]
        try:
            run(what, run_name="__main__")
        except SystemExit as end:
            return end.code or 0
        finally:
            sys.argv = before
        return 0

    def on_make(self, *arguments: str) -> int:
        return subprocess.run(["make", "-n", *arguments], cwd=self.folder, stdout=subprocess.DEVNULL).returncode

    def on_torchrun(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
        return subprocess.run(command, cwd=self.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    def on_kaggle(self, *arguments: str) -> int:
        folder = self.folder / arguments[arguments.index("-p") + 1]
        if arguments[:2] == ("datasets", "create"):
            assert json.loads((folder / "dataset-metadata.json").read_text())["id"].startswith("NAME/")
            shutil.copytree(folder, self.folder / "inputs/weights")
        else:
            assert (folder / json.loads((folder / "kernel-metadata.json").read_text())["code_file"]).is_file()
        return 0


# ---- what a document takes as given ---------------------------------------------------------------------
def with_tiny_experiment(reader: Reader) -> None:
    """Put the suite's finished experiment and its file into the folder."""
    shutil.copy(reader.finished.config, reader.folder / "tiny.yaml")
    shutil.copytree(reader.finished.root, reader.folder / "workdir/tiny")


def for_running(reader: Reader) -> None:
    """Folds for torchrun, targets for the metric, a submission and a sample to check."""
    with_tiny_experiment(reader)
    shutil.copytree(reader.finished.root / "01_folds", reader.folder / "parallel/tiny/01_folds")
    (reader.folder / "targets").mkdir()
    for path in (reader.finished.root / "06_submission/oof/xview2").glob("*_prediction.png"):
        shutil.copy(path, reader.folder / "targets" / path.name.replace("_prediction", "_target"))
    for name in ("submission.csv", "sample_submission.csv"):  # every answer empty
        shutil.copy(reader.data("binary_rle") / "sample_submission.csv", reader.folder / name)


def for_tools(reader: Reader) -> None:
    """Two submissions, a ladder of two rungs, the grid that the document shows, a slide."""
    with_tiny_experiment(reader)
    for name in ("old", "new"):
        (reader.folder / name).mkdir()
        shutil.copy(reader.finished.root / "06_submission/test/submission.csv", reader.folder / name)
    (reader.folder / "grid.yaml").write_text(next(b for b in blocks(reader.name, "yaml") if "seed: [0, 1]" in b))
    (reader.folder / "ladder").mkdir()
    example = reader.folder / "tiny_labels.yaml"
    write_tiny(example, "labels", str(reader.data("labels")))
    for number, lr in enumerate((1.0e-3, 2.0e-3)):
        tree = yaml.safe_load(example.read_text()) | {"name": f"rung{number}"}
        tree["models"]["lite0"]["train"]["optimizer"]["lr"] = lr
        (reader.folder / f"ladder/{number}_rung.yaml").write_text(yaml.safe_dump(tree))
    shutil.copy(next((reader.data("binary_rle") / "train_images").glob("*.png")), reader.folder / "slide.png")


def for_maps(reader: Reader) -> None:
    """Images of an area before and after, and a polygon in it."""
    with_tiny_experiment(reader)
    (reader.folder / "before").mkdir()
    for number, path in enumerate(("before/a.tif", "after.tif")):
        areas.write(reader.folder / path, areas.image(256, 256, number))
    inside = shapely.geometry.mapping(shapely.box(-94.5741, 37.0350, -94.5731, 37.0357))
    (reader.folder / "aoi.geojson").write_text(json.dumps(inside))


def for_kaggle(reader: Reader) -> None:
    """An experiment file, and inputs/ with the competition's data attached."""
    write_tiny(reader.folder / "X.yaml", "labels", str(reader.data("labels")))
    shutil.copytree(reader.data("labels"), reader.folder / "inputs/embedded")


def write_tiny(path: Path, guide: str, root: str) -> None:
    """Write a guide's example with its changes made."""
    from lib.config.load import load
    from lib.config.sections import plain

    config = load(ROOT / f"docs/examples/{guide}.yaml", [f"data.root={root}", *tiny(guide)])
    path.write_text(yaml.safe_dump(plain(config)))


PREPARED = {"README.md": with_tiny_experiment, "docs/cluster.md": with_tiny_experiment,
            "docs/map_outputs.md": with_tiny_experiment, "docs/maps.md": for_maps,
            "docs/export.md": with_tiny_experiment, "docs/tracking.md": with_tiny_experiment,
            "docs/report.md": with_tiny_experiment,
            "docs/running.md": for_running, "docs/tools.md": for_tools,
            "docs/kaggle.md": for_kaggle}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DOCS if blocks(name, "bash")])
def test_the_commands_of_a_document_run(name, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, name, request)
    monkeypatch.setattr(sweep, "run_command", lambda command: reader.on_python(*command[1:]))
    monkeypatch.setattr(serve.ThreadingHTTPServer, "serve_forever", lambda self: None)
    if name in PREPARED:
        PREPARED[name](reader)
    for block in blocks(name, "bash"):
        reader.type(block)
    for result in re.findall(r"`(workdir/[\w./]+)`", (ROOT / name).read_text()):
        assert (tmp_path / result).exists(), f"{name} says that {result} is there"


def test_every_command_is_in_a_block():
    """Outside of tables and blocks no line begins with a command, where no test would run it."""
    for name in DOCS:
        assert not [line for line in re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL).splitlines()
                    if re.match(r"\s*(python|torchrun|make|kaggle|pip) ", line)], name  # fmt: skip
