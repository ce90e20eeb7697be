"""The kernel bundle: what goes in, that it reads back, its refusals, the same submission far from the repository."""

import ast
import functools
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import starts
import torch
from conftest import STAGES, made_once, stage
from sisters import EXPERIMENTS

from lib import models
from lib.choose.choice import Decision
from lib.competitions import NAMES, module_of, open_competition, synthetic
from lib.config.load import load
from lib.errors import ArtifactError, ConfigError, DataError
from lib.kaggle import driver, gates, infer, passes, sources, text, weights
from lib.kaggle.__main__ import experiment
from lib.kaggle.__main__ import main as build
from lib.kaggle.plan import Costs, Timing, subsets_of
from lib.models import checkpoint
from lib.run import manifest
from lib.stages.predict import Networks

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
NOTEBOOK = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("nbconvert", "ipykernel")),
    reason="notebooks are not executed here: pip install -r requirements-notebook.txt",
)
LOOPBACK = ("import fcntl, socket, struct; "
            "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1))")  # SIOCSIFFLAGS, IFF_UP  # fmt: skip
"""A notebook talks to its kernel through the loopback device, which a new network namespace has switched off."""
ISOLATED = shutil.which("unshare") and not subprocess.run(["unshare", "-n", "-r", "-m", "true"]).returncode


# ---- what goes in -------------------------------------------------------------------------------------
@functools.cache
def everything(competition: str) -> tuple[dict[str, str], set[str]]:
    return sources.modules([*sources.ENTRY, module_of(competition)])


@pytest.mark.parametrize("competition", NAMES)
def test_only_what_inference_needs_goes_in(competition):
    files, packages = everything(competition)
    unwanted = ("lib/training/", "lib/tools/", "lib/report", "lib/competitions/synthetic", "lib/stages/train",
                "lib/scenes/augment", "lib/choose/fit", "lib/kaggle/__main__", "lib/kaggle/text")  # fmt: skip
    assert not [path for path in files if path.startswith(unwanted)]
    adapters = {module_of(name).replace(".", "/") + ".py" for name in NAMES}
    assert adapters & set(files) == {module_of(competition).replace(".", "/") + ".py"}
    assert {"torch", "numpy", "timm"} <= packages and not packages & {"matplotlib", "sklearn", "lib", "os"}
    assert all(files[path] == (ROOT / path).read_text() for path in files)


def test_what_the_stage_scripts_use_of_the_stages_is_there():
    used = set()
    for script in ("04_predict_tta.py", "05_ensemble.py", "06_make_submission.py"):
        for node in ast.parse((ROOT / script).read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module in ("lib.stages", "lib.choose"):
                used |= {f"{node.module.replace('.', '/')}/{alias.name}.py" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module.startswith(("lib.stages.", "lib.choose.")):
                used.add(node.module.replace(".", "/") + ".py")
    assert "lib/stages/ensemble.py" in used
    assert used - {"lib/choose/fit.py"} <= set(everything("voc")[0]), "decode settings are attached, not chosen there"


NASTY = [
    'x = "\\n\\N{DASH}"  # \\ \n',
    '"""doc"""\nr = r"\\d"\n',
    "a = '''b'''\n",
    "\n\nlast = '\\''\n",
    "ö = 'ü→'\n",
    "",
]


@pytest.mark.parametrize("source", NASTY)
def test_a_quoted_source_has_the_same_text(source):
    assert ast.literal_eval(text.quoted("a.py", source)).removeprefix("\n") == source


@pytest.mark.parametrize("source", ["'''a''' + \"\"\"b\"\"\"\n", "no_line_break = 1"])
def test_a_source_without_a_plain_quotation_is_refused(source):
    with pytest.raises(ConfigError, match="a.py: holds both kinds"):
        text.quoted("a.py", source)


def written_by(blocks: list[str], monkeypatch, folder: Path) -> dict[str, str]:
    """Execute all blocks but the last in one namespace; return what they wrote."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(folder))
    monkeypatch.setattr(sys, "argv", ["kernel.py"])
    space = {"__name__": "__main__"}
    for block in blocks[:-1]:
        exec(compile(block, "block", "exec"), space)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("competition", NAMES)
def test_both_forms_write_the_very_sources(competition, tmp_path, monkeypatch):
    files = {"experiment.yaml": "name: a\n", **everything(competition)[0]}
    parts = text.blocks(files, "0123", "slug")
    cells = json.loads(text.notebook("Title\n\nMore.", parts))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown"] + ["code"] * (len(files) + 2)
    assert written_by(["".join(cell["source"]) for cell in cells[1:]], monkeypatch, tmp_path / "n") == files
    script = text.script("Title\n", parts)
    assert ast.get_docstring(ast.parse(script)) == "Title"
    body = script[: script.index("# ---- Run ")]
    assert written_by([body, ""], monkeypatch, tmp_path / "s") == files
    assert 'BUNDLE = "0123"\n' in script and '"COMPETITION": "slug"' in script


def test_tested_versions_come_from_requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# words\ntorch>=2.4,<2.15\nPyYAML>=6.0  # why\nscikit-image\n\na_b[c] == 1.0\n")
    assert sources.requirements(path) == {"torch": ">=2.4,<2.15", "pyyaml": ">=6.0", "scikit-image": "", "a-b": "==1.0"}
    found = sources.requires(["yaml", "numpy"])
    assert found["yaml"]["distribution"].lower() == "pyyaml" and found["yaml"]["tested"].startswith(">=")
    assert found["numpy"]["here"] == np.__version__
    with pytest.raises(ConfigError, match="nothere: not installed"):
        sources.requires(["nothere"])


def test_metadata_is_what_kaggles_client_reads():
    kernel = text.kernel_metadata("kernel.ipynb", "me", "My Best: Kernel", "me/w", "comp", True)
    assert kernel["id"] == "me/my-best-kernel" and kernel["enable_internet"] is False and kernel["enable_gpu"] is True
    assert kernel["dataset_sources"] == ["me/w"] and kernel["competition_sources"] == ["comp"]
    assert text.dataset_metadata("me", "w", "My weights", "other") == {
        "title": "My weights", "id": "me/w", "licenses": [{"name": "other"}]}  # fmt: skip
    with pytest.raises(ConfigError, match="6 to 50"):
        text.dataset_metadata("me", "w", "short", "other")


# ---- float16 ------------------------------------------------------------------------------------------
def test_half_weights_keep_statistics_and_large_values_and_load_as_float32(tmp_path):
    arguments = {"architecture": "segmentation", "images": 1, "classes": 2, "encoder": "tu-test_efficientnet",
                 "decoder": "unet", "decoder_channels": [16, 16, 8, 8], "upsample_logits": 2}  # fmt: skip
    network = models.build(**arguments)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    large = next(name for name, _ in network.named_parameters() if name.endswith("weight"))
    state[large][0] = 1e6
    checkpoint.describe(tmp_path, arguments, ("image",), ("a", "b"))
    checkpoint.save_weights(tmp_path, state)
    half = weights.halved(tmp_path)
    parameters = dict(network.named_parameters())
    for name, tensor in state.items():
        kept = name not in parameters or name == large
        assert half[name].dtype == (tensor.dtype if kept else torch.float16), name
    assert any(name.endswith("running_var") for name in half)
    checkpoint.save_weights(tmp_path, half)
    loaded = checkpoint.load_network(tmp_path).state_dict()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        expected = tensor if name not in parameters or name == large else tensor.half().float()
        assert torch.equal(loaded[name], expected), name


# ---- refusals -----------------------------------------------------------------------------------------
@pytest.fixture
def attached(tmp_path) -> Path:
    """A folder of inputs with the weights "good" three deep, another build, and data beside them."""
    for name, bundle in (("datasets/me/good", "good"), ("other", "bad")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "w.bin").write_bytes(b"12345")
        stated = {"w.bin": {"size": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}}
        (folder / gates.BUNDLE).write_text(json.dumps({"id": bundle, "experiment": "e", "files": stated}))
    (tmp_path / "data" / "images").mkdir(parents=True)
    return tmp_path


def test_weights_are_found_by_their_id(attached):
    found = gates.find_weights(attached, "good")
    assert found == attached / "datasets/me/good"
    assert gates.check_weights(found, "good")["experiment"] == "e"


@pytest.mark.parametrize(("damage", "words"), [
    (lambda w: shutil.rmtree(w), "another build than this file's"),
    (lambda w: (w / "w.bin").write_bytes(b"12346"), "the weights are damaged"),
    (lambda w: (w / "w.bin").write_bytes(b"1234"), "the weights are damaged"),
    (lambda w: (w / "w.bin").unlink(), "this file is missing"),
    (lambda w: (w / gates.BUNDLE).write_text("{"), "bundle.json: damaged"),
])  # fmt: skip
def test_missing_and_damaged_weights_are_one_sentence_and_exit_code_2(attached, damage, words, capsys):
    damage(attached / "datasets/me/good")
    arguments = ["--bundle", "good", "--input", attached, "--working", attached / "w", "--scratch", attached / "s"]
    assert driver.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and words in said[0]


def test_no_weights_and_no_inputs_are_told_apart(tmp_path):
    with pytest.raises(ArtifactError, match="no such folder of inputs"):
        gates.find_weights(tmp_path / "none", "good")
    with pytest.raises(ArtifactError, match="are missing; attach their dataset"):
        gates.find_weights(tmp_path, "good")


def test_all_packages_of_other_versions_are_named_at_once():
    good = {"numpy": {"distribution": "numpy", "tested": f"=={np.__version__}", "here": "1"}}
    gates.check_packages(good, ">=3.10")
    wrong = {"numpy": {"distribution": "numpy", "tested": ">=99", "here": "99.1"},
             "yaml": {"distribution": "PyYAML", "tested": "<0.1", "here": "0.0"}}  # fmt: skip
    with pytest.raises(ConfigError, match=r"numpy \S+, tested with >=99 \(built with 99.1\); PyYAML \S+, tested"):
        gates.check_packages(good | wrong, ">=3.10")
    with pytest.raises(ConfigError, match="Python .*, tested with >=99"):
        gates.check_packages(good, ">=99")
    with pytest.raises(ConfigError, match="Nope is not installed, tested with any version"):
        gates.check_packages({"nope": {"distribution": "Nope", "tested": "", "here": "1"}}, ">=3.10")


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    gates.check_disk(tmp_path / "new")
    with pytest.raises(ArtifactError, match="the disk is full, about .* MiB are needed"):
        gates.check_disk(tmp_path, 2.0**60)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ArtifactError, match="0 are free"):
        gates.check_disk(tmp_path)


def test_a_gpu_that_torch_cannot_use_is_refused(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(infer, "present", lambda: True)
    with pytest.raises(ConfigError, match="has a GPU that torch .* cannot use"):
        infer.check_device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    infer.check_device()
    for name, value in (("is_available", True), ("device_count", 1), ("get_device_capability", (6, 0)),
                        ("get_arch_list", ["sm_75", "sm_90"]), ("get_device_name", "Tesla P100")):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    with pytest.raises(ConfigError, match="Tesla P100 .*is built for sm_75, sm_90"):
        infer.check_device()


def test_wheels_go_first_on_the_path_and_must_be_pure_python(tmp_path):
    wheel = tmp_path / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "VALUE = 7\n")
    weights.add_wheels([wheel], tmp_path)
    (tmp_path / "sources").mkdir()
    assert gates.unpack_wheels(tmp_path, tmp_path / "sources") == [wheel.name]
    assert (tmp_path / "sources/tiny_thing.py").read_text() == "VALUE = 7\n"
    with pytest.raises(ConfigError, match="expected the file of a pure Python wheel"):
        weights.add_wheels([tmp_path / "a-1.0-cp311-cp311-linux_x86_64.whl"], tmp_path)


# ---- first submission and data ------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Function: the embedded set of a sister, and the competition opened on it."""
    made = {}

    def of(name: str):
        if name not in made:
            section = EXPERIMENTS[name]["data"]
            root = tmp_path_factory.mktemp(name) / "data"
            synthetic.write(name, root, **section["synthetic"])
            made[name] = root, section.get("options", {})
        root, options = made[name]
        return root, open_competition(name, root, options)

    return of


def a_run(root: Path, competition, scratch: Path) -> SimpleNamespace:
    section = SimpleNamespace(data=SimpleNamespace(root=root))
    return SimpleNamespace(competition=competition, scenes=competition.scenes, config=section,
                           store=SimpleNamespace(root=scratch))  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_the_first_submission_is_valid(name, data, tmp_path):
    root, competition = data(name)
    target = tmp_path / "submission.csv"
    infer.first_submission(a_run(root, competition, tmp_path / "scratch"), target)
    assert competition.lint(target, competition.scenes("test")) == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["submission.csv"]


def test_a_sample_submission_is_taken_where_it_fits_the_scenes(data, tmp_path):
    root, competition = data("binary_rle")
    own = tmp_path / "data"
    shutil.copytree(root, own)
    ids = [scene.id for scene in competition.scenes("test")]
    sample, target = own / "sample_submission.csv", tmp_path / "submission.csv"
    sample.write_text("id,rle\n" + "".join(f"{i},1 1\n" for i in ids))
    competition = open_competition("binary_rle", own)
    assert "sample_submission.csv" in infer.first_submission(a_run(own, competition, tmp_path / "s"), target)
    assert target.read_text() == sample.read_text()
    sample.write_text("id,rle\n" + "".join(f"{i},5 1 1 1\n" for i in ids))  # runs that no scorer takes
    competition = open_competition("binary_rle", own)
    assert infer.first_submission(a_run(own, competition, tmp_path / "s"), target) == "empty answers"
    assert competition.lint(target, competition.scenes("test")) == []


def test_data_are_found_by_their_test_scenes(data, tmp_path):
    root, _ = data("binary_rle")
    config = tmp_path / "e.yaml"
    models = json.dumps(EXPERIMENTS["binary_rle"]["models"])
    config.write_text(f"name: e\ncompetition: binary_rle\ndata: {{root: gone}}\nmodels: {models}\n")
    inputs = tmp_path / "inputs"
    (inputs / "weights").mkdir(parents=True)
    args = SimpleNamespace(data=None, input=inputs, weights=inputs / "weights", competition="")
    with pytest.raises(DataError, match="no folder with test scenes"):
        infer.find_data(config, args)
    shutil.copytree(root, inputs / "competitions" / "organs")
    assert infer.find_data(config, args) == inputs / "competitions" / "organs"
    shutil.copytree(root, inputs / "again")
    with pytest.raises(DataError, match="each has test scenes; set KERNEL_DATA"):
        infer.find_data(config, args)
    args.competition = "organs"
    assert infer.find_data(config, args) == inputs / "competitions" / "organs"
    args.data = tmp_path / "nowhere"
    with pytest.raises(DataError, match="no such folder of the competition's data"):
        infer.find_data(config, args)


# ---- end to end ---------------------------------------------------------------------------------------
class Kernel:
    """A bundle of a finished experiment, its dataset attached beside a copy of the data under ``inputs``."""

    def __init__(self, folder: Path, flags: tuple[str, ...], data: Path, reference: Path, *more: str):
        assert build([*flags, "--out", str(folder / "kernel"), "--user", "me", *more]) == 0
        self.folder, self.reference, self.config, self.flags = folder, reference, Path(flags[1]), flags
        self.inputs = folder / "inputs"
        shutil.copytree(folder / "kernel" / "weights", self.inputs / "datasets" / "me" / "weights")
        shutil.copytree(data, self.inputs / "competition")

    def command(self, form: str, working: Path) -> list[str]:
        file = self.folder / "kernel" / form / ("kernel.py" if form == "script" else "kernel.ipynb")
        if form == "script":
            return [sys.executable, str(file)]
        if form == "nbconvert":
            file = self.folder / "kernel/notebook/kernel.ipynb"
            return [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute",
                    "--output", str(working.with_name("executed.ipynb")), str(file)]  # fmt: skip
        play = ("import json, sys; space = {'__name__': '__main__'}\n"
                "for cell in json.load(open(sys.argv[1]))['cells']:\n"
                "    if cell['cell_type'] == 'code': exec(''.join(cell['source']), space)")  # fmt: skip
        return [sys.executable, "-c", play, str(file)]

    def open_job(self, folder: Path, data: Path | None = None, config: Path | None = None, **settings) -> infer.Job:
        """Open it in this process, with time standing still."""
        args = {"data": data or self.inputs / "competition", "weights": self.folder / "kernel/weights",
                "competition": "", "working": folder, "scratch": folder / "scratch", "workers": "",
                "budget_minutes": "", "start": "fork"}  # fmt: skip
        return infer.open_job(config or self.config, SimpleNamespace(**args | settings), lambda: 0.0)

    def start(self, working: Path, form: str = "script", alone: bool = False, **settings: str) -> subprocess.Popen:
        """Run in an empty folder; ``alone``: without network, the inputs mounted read-only."""
        working.mkdir(parents=True)
        stated = {"INPUT": str(self.inputs), "WORKING": str(working), **settings}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KERNEL_"))}
        environment |= {f"KERNEL_{key}": value for key, value in stated.items()}
        environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)}
        command = self.command(form, working)
        if alone:
            mount = f"mount --bind {self.inputs} {self.inputs} && mount -o remount,ro,bind {self.inputs} && "
            mount += f'{sys.executable} -c "{LOOPBACK}" && '
            command = ["unshare", "-n", "-r", "-m", "sh", "-c", mount + 'exec "$@"', "sh", *command]
        return subprocess.Popen(command, cwd=working, env=environment, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def run(self, working: Path, **settings) -> tuple[int, str]:
        process = self.start(working, **settings)
        said = process.communicate(timeout=300)[0]
        return process.returncode, said


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Kernel:
    """The bundle of a sister's tiny experiment."""
    from test_sisters import Sister

    sister = made_once(tmp_path_factory, "binary_rle", lambda folder: Sister(folder, "binary_rle"))
    data, reference = sister.config.parent / "data", sister.root / "06_submission/test/submission.csv"
    return Kernel(tmp_path_factory.mktemp("kernel"), sister.flags, data, reference)


@pytest.mark.slow
def test_a_build_that_was_refused_half_way_does_not_stand_in_the_way_of_the_next(kernel, tmp_path, capsys):
    command = [*kernel.flags, "--out", str(tmp_path / "kernel")]
    assert build([*command, "--set", "decode.threshold=0.41"]) == 2
    assert "05_ensemble/decode" in capsys.readouterr().err and not (tmp_path / "kernel/weights").exists()
    assert build(command) == 0
    assert (tmp_path / "kernel/weights" / gates.BUNDLE).is_file()
    assert {path.name for path in (tmp_path / "kernel").iterdir()} == {"script", "notebook", "weights"}


@pytest.mark.slow
def test_a_bundle_holds_what_inference_reads_and_lists_it(kernel):
    folder = kernel.folder / "kernel/weights"
    bundle = json.loads((folder / gates.BUNDLE).read_text())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - set(bundle["files"]) == {gates.BUNDLE, "dataset-metadata.json"}
    assert {Path(name).name for name in bundle["files"]} == {
        "manifest.json", "folds.csv", "best.safetensors", "network.json", "decode.json"}  # fmt: skip
    assert bundle["requires"]["torch"]["here"] and bundle["built_with"]["python"] and bundle["python"] == ">=3.10"
    for form in ("script", "notebook"):
        about = json.loads((kernel.folder / "kernel" / form / "kernel-metadata.json").read_text())
        assert about["kernel_type"] == form and (kernel.folder / "kernel" / form / about["code_file"]).is_file()


@pytest.fixture(scope="module")
def pairs(finished, scenes, tmp_path_factory) -> Kernel:
    """The bundle of xView2's tiny experiment."""
    folder = tmp_path_factory.mktemp("pairs")
    return Kernel(folder, finished.flags, scenes, finished.root / "06_submission/test/submission.csv")


@pytest.mark.slow
@pytest.mark.skipif(not ISOLATED, reason="needs unshare, to cut the network off and to mount read-only")
@pytest.mark.parametrize(("bundle", "form", "workers", "start"), [
    ("kernel", "script", "", "spawn"),
    ("kernel", "notebook", "2", "spawn"),
    pytest.param("kernel", "nbconvert", "", "spawn", marks=NOTEBOOK),
    ("pairs", "script", "2", "fork"),
])  # fmt: skip
def test_without_network_and_with_read_only_inputs_the_submission_has_the_same_bytes(
    bundle, form, workers, start, request, tmp_path
):
    own, working = request.getfixturevalue(bundle), tmp_path / form
    code, said = own.run(working, form=form, alone=True, WORKERS=workers, START=start)
    assert code == 0, said
    assert (working / "submission.csv").read_bytes() == own.reference.read_bytes()
    assert os.listdir(working) == ["submission.csv"]
    if form != "nbconvert":
        assert "nothing is missing" in said and "until the networks have answered" in said
        assert f"predicted by {workers or 1} worker" in said


@pytest.mark.slow
def test_a_hidden_test_set_of_other_number_and_size_is_answered(kernel, tmp_path):
    hidden = tmp_path / "hidden"
    synthetic.write("binary_rle", hidden, scenes=4, test_scenes=5, size=256, seed=9)
    assert infer.predict(kernel.open_job(tmp_path, hidden), tmp_path) == 0
    competition = open_competition("binary_rle", hidden)
    assert len(competition.scenes("test")) == 5
    assert competition.lint(tmp_path / "submission.csv", competition.scenes("test")) == []


def predicted(kernel: Kernel, working: Path, workers: str) -> int:
    return infer.predict(kernel.open_job(working, workers=workers), working)


@pytest.mark.slow
def test_killed_at_any_moment_a_valid_submission_is_there(kernel, tmp_path):
    competition = open_competition("binary_rle", kernel.inputs / "competition")
    some = random.Random(0)
    for number, (words, workers) in enumerate([("until the networks", "2"), ("fold0", ""), ("by 1 network", "")]):
        working = tmp_path / str(number)
        working.mkdir()
        process, lines = starts.speaking(predicted, kernel, working, workers)
        with lines:
            assert any(words in line for line in lines), "it ended before"
            time.sleep(some.uniform(0, 0.3))
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), "killed, or faster than that"
        assert competition.lint(working / "submission.csv", competition.scenes("test")) == []


@pytest.fixture
def broken(kernel, tmp_path) -> tuple[Path, list[Path]]:
    """A copy of the data, and the images of its test scenes."""
    data = tmp_path / "data"
    shutil.copytree(kernel.inputs / "competition", data)
    return data, [scene.files["image"] for scene in open_competition("binary_rle", data).scenes("test")]


@pytest.mark.slow
def test_a_broken_scene_has_the_empty_answer_is_named_and_stops_nothing(kernel, broken, tmp_path, capsys):
    data, images = broken
    images[0].write_bytes(images[0].read_bytes()[: images[0].stat().st_size // 2])
    assert infer.predict(kernel.open_job(tmp_path, data), tmp_path) == 0
    said = capsys.readouterr().out
    assert "Traceback" not in said
    assert "1 of 3 scenes could not be predicted and have the fallback: " in said.splitlines()[-2]
    assert str(images[0]) in said.splitlines()[-2], "and why"
    mine, theirs = ((tmp_path / "submission.csv").read_text(), kernel.reference.read_text())
    assert mine.splitlines()[2:] == theirs.splitlines()[2:] and mine.splitlines()[1].endswith(",")


@pytest.mark.slow
def test_where_every_scene_fails_the_first_submission_stands_and_the_kernel_fails(kernel, broken, tmp_path):
    data, images = broken
    for image in images[1:]:
        image.write_bytes(image.read_bytes()[:-30])
    images[0].write_bytes(b"no image")
    code, said = kernel.run(tmp_path / "working", DATA=str(data), ON_ERROR="stop")
    assert code == 1 and "patch: each of 3 scenes failed, which no fallback is for" in said and "Traceback" not in said
    competition = open_competition("binary_rle", data)
    assert competition.lint(tmp_path / "working/submission.csv", competition.scenes("test")) == []


# ---- budget, views, workers: in this process ----------------------------------------------------------
@pytest.mark.slow
def test_a_budget_too_small_for_anything_leaves_the_first_submission_and_says_so(kernel, tmp_path):
    code, said = kernel.run(tmp_path / "working", BUDGET_MINUTES="0.001")
    assert code == 0 and "0.0 s are left; not even one fold with one view fits" in said and "FAILED" in said
    sample = kernel.inputs / "competition/sample_submission.csv"
    assert (tmp_path / "working/submission.csv").read_bytes() == sample.read_bytes()


@pytest.mark.slow
def test_a_budget_of_a_third_leaves_out_a_fold_and_is_the_experiment_without_it(kernel, tmp_path, monkeypatch, capsys):
    seconds = {"scenes": 3, "workers": 1, "folds": {"patch": 2}, "read": 0.0, "finish": 0.0}
    costs = Costs(**seconds, timings={"patch": Timing(0.0, 0.0, 100.0)})
    monkeypatch.setattr(infer, "measure", lambda *_: costs)
    assert infer.predict(kernel.open_job(tmp_path, budget_minutes="11.5"), tmp_path) == 0
    said = capsys.readouterr().out
    assert "everything needs 11 min 00 s, 11 min 30 s are left; nothing is left out" in said
    assert (tmp_path / "submission.csv").read_bytes() == kernel.reference.read_bytes()
    shutil.rmtree(tmp_path / "scratch")
    assert infer.predict(kernel.open_job(tmp_path, budget_minutes="6"), tmp_path) == 0
    assert "left out: folds: 1 of 2" in capsys.readouterr().out
    flags = ["--config", kernel.config, "--workdir", tmp_path / "repository",
             "--inputs", kernel.reference.parents[2], "--split", "test", "--set", "models.patch.folds=[0]"]  # fmt: skip
    for name in STAGES[3:]:
        assert stage(name, *flags) == 0
    (same,) = (tmp_path / "repository").glob("*/06_submission/test/submission.csv")
    assert (tmp_path / "submission.csv").read_bytes() == same.read_bytes() != kernel.reference.read_bytes()


@pytest.mark.slow
def test_what_is_measured_is_the_cost_of_every_part(kernel, tmp_path):
    for workers in ("1", "2"):
        job = kernel.open_job(tmp_path / workers, workers=workers)
        with job.pool as pool:
            costs = passes.measure(job.run, pool, tmp_path / workers / "measured")
        assert (costs.scenes, costs.workers, costs.folds) == (3, int(workers), {"patch": 2})
        timing = costs.timings["patch"]
        assert min(timing.load, timing.scene, timing.view, costs.read, costs.finish) > 0
        assert not (tmp_path / workers / "measured").exists()


@pytest.mark.slow
def test_scenes_that_fail_are_passed_over_in_measuring(kernel, broken, tmp_path):
    data, images = broken
    images[0].write_bytes(b"no image")
    job = kernel.open_job(tmp_path, data)
    assert passes.measure(job.run, job.pool, tmp_path / "measured").timings["patch"].view > 0
    for image in images[1:]:
        image.write_bytes(b"no image")
    with pytest.raises(ArtifactError, match="none of 3 scenes could be predicted; "):
        passes.measure(job.run, job.pool, tmp_path / "again")


@pytest.mark.slow
def test_only_the_views_that_were_chosen_out_of_fold_are_predicted(kernel, tmp_path):
    config = tmp_path / "views.yaml"
    config.write_text(kernel.config.read_text().replace("tta: none", "tta: [none, hflip, flips]"))

    def attached(change: dict) -> Path:
        """Return a copy of the weights with another decode.json; None takes an entry away."""
        folder = tmp_path / f"weights{len(list(tmp_path.iterdir()))}"
        shutil.copytree(kernel.folder / "kernel/weights", folder)
        unit = folder / "05_ensemble/decode"
        decode = json.loads((unit / "decode.json").read_text()) | change
        text = json.dumps({key: value for key, value in decode.items() if value is not None})
        (unit / "decode.json").write_text(text)
        manifest.write(unit, manifest.read(unit))
        return folder

    older = kernel.open_job(tmp_path, config=config, weights=attached({"tta": None, "plans": None}))
    assert older.run.config.predict.tta_sets == ("flips",) and older.compared == [], "nothing chosen: the largest set"
    weights_with_views = attached({"tta": "hflip"})
    job = kernel.open_job(tmp_path, config=config, weights=weights_with_views)
    assert job.run.config.predict.tta_sets == ("hflip",) and job.full.tta == "hflip"
    assert infer.predict(job, tmp_path) == 0
    assert not list((tmp_path / "scratch").glob("*/04_probs/loc/patch/fold0/test/*/*.tif")), "one set, no folders"


@pytest.mark.slow
def test_of_views_compared_out_of_fold_a_budget_takes_the_best_that_fit(kernel, broken, tmp_path, monkeypatch, capsys):
    """With and without a budget: the submission of the repository with the views that the kernel says it keeps.

    A CRF reads the image again, and must do without where there is none that can be read.
    """
    data, images = broken
    images[0].write_bytes(b"no image")

    def repository(name: str, tta: str) -> tuple[list, Path]:
        root = tmp_path / name / kernel.reference.parents[2].name
        for unit in ("01_folds", "02_loc"):
            shutil.copytree(kernel.reference.parents[2] / unit, root / unit)
        changes = ("data.synthetic=null", f"predict.tta={tta}", "predict.fallback=0", "blend.crf={iterations: 1}")
        flags = ["--config", kernel.config, "--workdir", tmp_path / name, "--set", f"data.root={data}"]
        flags += [word for change in changes for word in ("--set", change)]
        for script in STAGES[3:]:
            assert stage(script, *flags) == 0, script
        return flags, root / "06_submission/test/submission.csv"

    flags, everything = repository("both", "[none, hflip]")
    _, plain = repository("plain", "none")
    (tmp_path / "bundle").mkdir()
    own = Kernel(tmp_path / "bundle", tuple(map(str, flags)), data, everything)
    decode = json.loads((own.folder / "kernel/weights/05_ensemble/decode/decode.json").read_text())
    assert {(*row["models"], row["tta"]) for row in decode["plans"]} == {("patch", "none"), ("patch", "hflip")}
    config = tmp_path / "bundle/experiment.yaml"
    changed = SimpleNamespace(config=kernel.config, overrides=flags[5::2])
    config.write_text(experiment(load(kernel.config, changed.overrides), changed))
    assert infer.predict(own.open_job(tmp_path / "a", config=config), tmp_path) == 0
    assert (tmp_path / "submission.csv").read_bytes() == everything.read_bytes()
    assert f"fallback: {images[0].stem} (" in capsys.readouterr().out

    timings = {"patch": Timing(0.0, 0.0, 100.0)}
    monkeypatch.setattr(infer, "measure", lambda *_: Costs(3, 1, {"patch": 2}, timings, 0.0, 0.0))
    full, compared = subsets_of(load(config), Decision.model_validate(decode))
    monkeypatch.setattr(infer, "subsets_of", lambda *_: (replace(full, tta="hflip"), compared))  # whatever was chosen
    assert infer.predict(own.open_job(tmp_path / "b", config=config, budget_minutes="12"), tmp_path) == 0
    assert "left out: views: none (1) instead of hflip (2); so it needs 11 min 00 s" in capsys.readouterr().out
    assert (tmp_path / "submission.csv").read_bytes() == plain.read_bytes()


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_the_first_submission(kernel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Networks, "compute", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert infer.predict(kernel.open_job(tmp_path, workers="2"), tmp_path) == 1
    assert "of 2 on cpu died (exit code -9)" in capsys.readouterr().out
    competition = open_competition("binary_rle", kernel.inputs / "competition")
    assert competition.lint(tmp_path / "submission.csv", competition.scenes("test")) == []


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, ["predict.fallback=0"]),
    ({"workers": "2", "budget_minutes": "7.5"},
     ["predict.workers=2", "predict.budget_minutes=7.5", "predict.fallback=0"]),
    ({"workers": "0"}, "KERNEL_WORKERS: expected a number above 0, or nothing, got '0'"),
    ({"workers": "1.5"}, "KERNEL_WORKERS"),
    ({"budget_minutes": "soon"}, "KERNEL_BUDGET_MINUTES: expected a number above 0, or nothing, got 'soon'"),
    ({"budget_minutes": "nan"}, "KERNEL_BUDGET_MINUTES"),
    ({"start": "thread"}, "KERNEL_START: expected spawn or fork, got 'thread'"),
])  # fmt: skip
def test_settings_change_the_experiment_or_are_refused(settings, expected):
    args = SimpleNamespace(**{"workers": "", "budget_minutes": "", "start": "spawn"} | settings)
    if isinstance(expected, list):
        assert list(infer.settings(load(DEMO), args)) == expected
        assert list(infer.settings(load(DEMO, ["predict.fallback=0.5"]), args)) == expected[:-1]
    else:
        with pytest.raises(ConfigError, match=re.escape(expected)):
            list(infer.settings(load(DEMO), args))


# ---- refusals by the whole kernel ---------------------------------------------------------------------
@pytest.mark.slow
def test_refusals_come_before_any_prediction_with_exit_code_2(kernel, tmp_path):
    wrong = tmp_path / "weights"
    shutil.copytree(kernel.folder / "kernel/weights", wrong)
    bundle = json.loads((wrong / gates.BUNDLE).read_text())
    bundle["requires"]["torch"]["tested"] = ">=99"
    (wrong / gates.BUNDLE).write_text(json.dumps(bundle))
    cases = [({"DATA": str(tmp_path)}, "no test scenes found"), ({"WEIGHTS": str(wrong)}, "torch"),
             ({"INPUT": str(tmp_path / "w0")}, "are missing; attach")]  # fmt: skip
    for number, (settings, words) in enumerate(cases):
        code, said = kernel.run(tmp_path / f"w{number}", **settings)
        assert code == 2 and words in said.splitlines()[-1] and "Traceback" not in said, said
        assert not (tmp_path / f"w{number}" / "submission.csv").exists()


@pytest.mark.slow
def test_float16_weights_are_taken_where_the_out_of_fold_score_allows(finished, tmp_path, capsys):
    out = ("--out", str(tmp_path / "kernel"))
    assert build([*finished.flags, *out, "--half", "check"]) == 0
    bundle = json.loads((tmp_path / "kernel/weights" / gates.BUNDLE).read_text())["weights"]
    decode = json.loads((finished.root / "05_ensemble/decode/decode.json").read_text())
    assert bundle["score_float32"] == decode["scores"]["score"]
    allowed = bundle["score_float16"] >= bundle["score_float32"] - weights.HALF_LOSS
    assert (bundle["dtype"] == "float16") == allowed and "taken" in capsys.readouterr().out
    stored = {stage: {tensor.dtype for tensor in checkpoint.read_weights(tmp_path / "kernel/weights" / stage).values()}
              for stage in ("02_loc/loc/fold0", "03_cls/cls/fold0")}  # fmt: skip
    assert (torch.float16 in stored["03_cls/cls/fold0"]) == allowed
    assert torch.float16 not in stored["02_loc/loc/fold0"], "localization is predicted in float32"
    assert bundle["float32_models"] == ["loc"]
