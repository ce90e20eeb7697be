"""What is refused before work begins, in which words, and that nothing is refused that works."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TINY, stage
from sisters import COMMON, EXPERIMENTS

from lib.competitions.contract import Scene
from lib.config import check, losses, strict
from lib.config.load import load
from lib.config.sections import Loss
from lib.errors import ConfigError
from lib.tasks import BinaryMask, MulticlassMask, MultilabelMask
from lib.training.terms import TERMS

ROOT = Path(__file__).resolve().parents[1]
TREE = {**TINY, "data": {"root": "data"}}
SECOND = {**TINY["models"]["loc"], "network": {**TINY["models"]["loc"]["network"], "architecture": "segmentation"}}


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(path: Path, *changes: str) -> list[str]:
    """Return the sentences with which an experiment file is refused, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        check.open_experiment(path, changes, path.parent / "workdir", "code")
    assert not (path.parent / "workdir").exists(), "what is refused leaves nothing behind"
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


NAME = (
    "expected the name of an experiment, a folder of the same workdir: a letter or digit, then letters, digits, '_', "
    "'-' and '.', at most 100, and no path"
)
LATE = {
    # found wrong after all epochs, or in stage 05
    "predict.tile=1000":
        "predict.tile: expected a multiple of 32, the stride of loc, cls, got 1000; take 992 or 1024",
    "predict.overlap=0.99":
        "predict.overlap: windows of 256 pixels can share at most 0.875 of their side, since the stride of loc,"
        " cls is 32, got 0.99",
    "folds.file=nowhere.csv":
        "folds.file: expected a folds.csv of an earlier run, found no file nowhere.csv; correct the path",
    "blend.crf={iteration: 3}": "blend.crf.iteration: unknown key; did you mean iterations?",
    "blend.crf={near: -1}": "blend.crf.near: expected greater than or equal to 0, got -1",
    "blend.crf={alike_radius: 2.5}":
        "blend.crf.alike_radius: expected a valid integer, got a number with a fractional part, got 2.5",
    "decode.loc_threshold=.nan": "decode.loc_threshold: expected a finite number, got nan",
    "search.axes.loc_threshold=[0.3, .inf]": "search.axes.loc_threshold.1: expected a finite number, got inf",
    'data.root="a\\0b"':
        "data.root: expected text without the characters \\0 and \\ud800 to \\udfff, got 'a\\x00b'",
    "search.postprocess=[[{name: []}]]": "search.postprocess.0.0.name: expected one of ",
    # found wrong at the first batch
    "models.loc.train.crop=33":
        "models.loc.train.crop: expected a multiple of the network's stride 32, got 33; take 32 or 64",
    "models.loc.train.crop=101":
        "models.loc.train.crop: expected a multiple of the network's stride 32, got 101; take 96 or 128",
    "models.loc.train.augment=ligth":
        "models.loc.train.augment: expected one of none, aerial_strong, aerial_mild, light, satellite, animals, "
        "tissue, microscopy, faces, bag_of_tricks, got 'ligth'; did you mean light?",
    "models.loc.train.loss.terms.dice=.nan": "models.loc.train.loss.terms.dice: expected a finite number, got nan",
    "models.loc.train.loss.terms={ce: 1}":
        "models.loc.train.loss.terms: expected one of dice, focal, bce, jaccard, tversky, lovasz, boundary_bce, "
        "got 'ce'; did you mean bce?",
    "models.loc.train.loss.terms={dice: 1, query_class: 2}":
        "models.loc.train.loss.terms: query_class match the queries of architecture maskformer; leave them out",
    "models.loc.network={architecture: maskformer, images: [post], encoder: resnet18}":
        "models.loc.train.loss.terms: architecture maskformer learns by query_class and query_bce or query_dice, all "
        "three named (its paper: query_class 2, query_bce 5, query_dice 5), got {'dice': 1.0, 'focal': 1.0}",
    "models.loc.train.loss.query_points=2":
        "models.loc.train.loss.query_points: expected greater than or equal to 4, got 2",
    "models.loc.train.loss.class_weights=[1, 2, 3]":
        "models.loc.train.loss.class_weights: expected 2 numbers of at least 0 (background, building), got [1.0, "
        "2.0, 3.0]",
    "models.loc.train.sampling.scale=[2, -1]":
        "models.loc.train.sampling: scale: expected two numbers above 0, the smaller first, got [2.0, -1.0]",
    "models.loc.train.sampling.focus={bilding: 1}":
        "models.loc.train.sampling.focus: expected one of building, got 'bilding'; did you mean building?",
    "models.loc.train.sampling.repeat=[mayor]":
        "models.loc.train.sampling.repeat: expected one of nondamage, minor, major, destroyed, empty, got 'mayor';"
        " did you mean major?",
    "models.loc.train.precision=float16":
        "models.loc.train.precision: expected float32, in which this competition's task loc must be trained, got "
        "float16",
    "models.cls.task=clas": "models.cls.task: expected one of loc, cls, got 'clas'; did you mean cls?",
    "models.loc.network.images=[pre, prost]":
        "models.loc.network.images: expected one of pre, post, got 'prost'; did you mean post?",
    "models.loc.network.encoder=tu-resnet81":
        "models.loc.network: encoder: expected an smp encoder or tu-<timm model>, got 'tu-resnet81'; near it: "
        "tu-resnet",
    "models.loc.network.architecture=unet3":
        "models.loc.network: architecture: expected one of segmentation, siamese, unet, attention_unet, hybrid, "
        "maskformer, classifier, got 'unet3'",
    "models.loc.view={size: 64, fit: short, crop: 64}":
        "models.loc.view.crop: expected a network of one label per image, got one that answers every pixel, which "
        "a centre crop of 64 leaves out; remove it",
    "models.cls.train.init_from=lok":
        "models.cls.train.init_from: no other model is called 'lok'; did you mean loc?",
    "models.loc.train.select=argmax":
        "models.loc.train.select: argmax is for masks of several classes whose foreground answers the competition's "
        "other tasks, which task loc is not; take score or dice2020",
    "models.cls.train.loss.focal_clamp=1.0e-5":
        "models.cls.train.loss.focal_clamp: only binary focal terms take one, this task is multiclass; leave it out",
    "models.loc.train.loss={terms: {dice: 1}, focal_clamp: 0.1}":
        "models.loc.train.loss: focal_clamp belongs to the term focal, and there is none",
    "models.loc.train.schedule={kind: cosine, period: 10}":
        "models.loc.train.schedule: period: only kind poly takes one",
    "models.loc.pad=-1": "models.loc.pad: expected greater than or equal to 0, got -1",
    "models.loc.network.options.normalize=imagenat":
        "models.loc.network: normalize: expected one of encoder, imagenet, got 'imagenat'",
    "models.cls.folds=[0, 5]": "models.cls.folds: expected folds of 0..1, got [5]",
    "models.loc.train.accumulate=3": "models.loc.train.batch_size: expected a multiple of accumulate, got 2 and 3",
    # numbers and names that cannot be
    "models.loc.train.sampling.samples=9223372036854775808":
        "models.loc.train.sampling.samples: expected less than or equal to 100000000, got 9223372036854775808",
    "models.loc.train.batch_size=1000000000000000000000":
        "models.loc.train.batch_size: expected less than or equal to 100000, got 1000000000000000000000",
    "models.loc.train.optimizer.lr=1.0e+308":
        "models.loc.train.optimizer.lr: expected less than or equal to 1000, got 1e+308",
    "models.loc.weight=1.0e+308": "models.loc.weight: expected less than or equal to 1000000, got 1e+308",
    "seed=-5": "seed: expected greater than or equal to 0, got -5",
    "seed=18446744073709551616": "seed: expected less than 4294967296, got 18446744073709551616",
    "folds.seed=-1": "folds.seed: expected greater than or equal to 0, got -1",
    "folds.n=1000000000": "folds.n: expected less than or equal to 1000, got 1000000000",
    "predict.scales=[1, -2]": "predict.scales.1: expected greater than 0, got -2",
    "name=a/b": f"name: {NAME}, got 'a/b'",
    f"name={'x' * 300}": f"name: {NAME}, got '{'x' * 300}'",
    "models.loc.train.distill={experiment: ../teacher}":
        f"models.loc.train.distill.experiment: {NAME}, got '../teacher'",
    "models.loc.train.pseudo={experiment: /tmp/a, models: [x]}":
        f"models.loc.train.pseudo.experiment: {NAME}, got '/tmp/a'",
    "models.loc.train.distill={experiment: teacher, models: [../../x]}":
        "models.loc.train.distill.models.0: a model's name becomes a folder; use letters, digits, '-', '_', '.', at "
        "most 100 of them, got '../../x'",
    "models.loc.train.pseudo={experiment: teacher, models: [/etc]}":
        "models.loc.train.pseudo.models.0: a model's name becomes a folder; use letters, digits, '-', '_', '.', at "
        "most 100 of them, got '/etc'",
    "models.loc.train.distill={experiment: tiny}":
        "models.loc.train.distill.experiment: expected another experiment than this one, got 'tiny'",
    "models.loc.train.pseudo={experiment: tiny, models: [loc]}":
        "models.loc.train.pseudo.experiment: expected another experiment than this one, got 'tiny'",
    "models={}": "models: expected at least one network, got none",
    "competition=xvew2": "competition: expected one of binary_rle, bright, labels, ",
    "data.options.unclasified=ignore": "data.options.unclasified: unknown key; did you mean unclassified?",
    "data.options.unclassified=no": "data.options.unclassified: expected 'ignore' or 'no-damage', got ",
    "search.axes.loc_treshold=[0.3]": "search.axes.loc_treshold: ",
    "search.axes.loc_threshold=[3]": "search.axes.loc_threshold: expected a number from 0 to 1, got 3",
    "decode={foo: 1}": "decode.foo: ",
    "decode.loc_threshold=2": "decode.loc_threshold: expected a number from 0 to 1, got 2",
    "search.unseen={w_minr: 1}": "search.unseen.w_minr: ",
    "search.postprocess=[[{name: object_vot}]]": "search.postprocess.0.0.name: expected one of ",
    "search.postprocess=[[{name: object_vote, conectivity: 8}]]": "search.postprocess.0.0.conectivity: ",
}  # fmt: skip


@pytest.mark.parametrize("change", LATE, ids=lambda change: change[:40])
def test_a_setting_that_cannot_work_is_one_sentence(change, tmp_path):
    said = faults(written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), change)
    assert len(said) == 1 and said[0].startswith(LATE[change]), said


def test_a_model_that_lacks_something_is_not_counted_as_missing(tmp_path):
    tree = copy.deepcopy(TREE)
    tree["models"] = {"loc": tree["models"]["loc"]}
    del tree["models"]["loc"]["train"]["loss"]
    said = faults(written(tmp_path, yaml.safe_dump(tree, sort_keys=False)))
    assert said == ["models.loc.train.loss: required, but missing"]


def test_all_faults_are_said_at_once(tmp_path):
    changes = ["predict.tile=1000", "models.loc.train.crop=33", "blend.crf={iteration: 3}", "seed=-5", "folds.m=3",
               "models.cls.train.loss.terms.dise=1", "decode.w_minor=.nan"]  # fmt: skip
    said = faults(written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), *changes)
    for key in ("predict.tile", "models.loc.train.crop", "blend.crf.iteration", "seed", "folds.m",
                "models.cls.train.loss.terms", "decode.w_minor"):  # fmt: skip
        assert sum(line.startswith(f"{key}: ") for line in said) == 1, (key, said)


@pytest.mark.parametrize("name", ["a b", "x" * 300, "a/b", "..", "ä" * 60])
def test_a_model_has_a_name_that_can_be_a_folder(name, tmp_path):
    said = faults(written(tmp_path, yaml.safe_dump({**TREE, "models": {name: TREE["models"]["loc"]}})))
    assert said[0].startswith(f"models.{name}: a model's name becomes a folder; use letters, digits")


@pytest.mark.parametrize("name", ["id", "fold", "group", "domain"])
def test_no_class_is_called_like_a_column_of_the_folds(name, tmp_path):
    tree = {**COMMON, "name": "x", **EXPERIMENTS["voc"]}
    tree["data"] = {"root": "data", "options": {"classes": ["background", name, *"abcde"]}}
    (said,) = faults(written(tmp_path, yaml.safe_dump(tree)))
    assert said.startswith("data.options") and name in said


# ---- what is no experiment file ---------------------------------------------------------------------------
def bomb() -> str:
    """Nine levels of nine aliases: 9^9 values in 400 bytes."""
    lines = ["k0: &k0 x"] + [f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines) + "\nname: *k9\n"


@pytest.mark.parametrize(("text", "sentence"), [
    (bomb(), "line 6, column 5: more than 50,000 values, each alias (*name) counted with all it stands for"),
    ("a: " + "[" * 5000, "line 1, column 33: nested more than 30 deep"),
    ("a: &a [*a]", "line 1, column 8: an alias stands inside of what it names"),
    ("name: a\nseed: 1\nname: b\n", "line 3, column 1: the key name stands twice in one section, first in line 1"),
    ("models: {a: 1, a: 2}", "line 1, column 16: the key a stands twice in one section, first in line 1"),
    ("name: a\n\tseed: 1\n", "line 2, column 1: found character '\\t' that cannot start any token; indent with spaces, "
                             "YAML takes no tabs"),
    ("a: [1, 2", "line 1, column 9: expected ',' or ']', but got '<stream end>'"),
    ("a: 2020-13-45", "month must be in 1..12"),
    ("a: !!bool x", "line 1, column 4: 'x' is no value of the kind !!bool"),
    ("a: !!timestamp x", "line 1, column 4: 'x' is no value of the kind !!timestamp"),
    ("a: !!int ''", "line 1, column 4: '' is no value of the kind !!int"),
    ("models: {no: 1}", "line 1, column 10: expected a name as the key, got 'no', which YAML reads as true or false; "
                        "put it in quotes"),
    ("a:\n  2020-01-01: 1", "line 2, column 3: expected a name as the key, got '2020-01-01', which YAML reads as a "
                            "date; put it in quotes"),
])  # fmt: skip
def test_what_is_no_yaml_is_one_sentence(text, sentence, tmp_path):
    (said,) = faults(written(tmp_path, text))
    assert said == f"not a YAML file: {sentence}"


@pytest.mark.parametrize(("text", "sentence"), [
    (b"name: a\n# caf\xe9\n", "line 2: expected text in UTF-8, got the byte 0xe9; save the file as UTF-8"),
    ("", "expected sections (name: ..., data: ..., models: ...), got an empty file"),
    ("- a", "expected sections (name: ..., data: ..., models: ...), got a list"),
    ("x" * 1_000_001, "expected an experiment file, this has more than 1,000,000 bytes"),
])  # fmt: skip
def test_what_is_no_experiment_is_one_sentence(text, sentence, tmp_path):
    (said,) = faults(written(tmp_path, text))
    assert said == sentence


def test_the_experiment_file_is_a_file(tmp_path):
    assert "no such experiment file" in faults(tmp_path / "none.yaml")[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    assert faults(folder) == ["expected an experiment file, this is a folder; see configs/"]


@pytest.mark.parametrize(("override", "words"), [
    ("folds.n", "expected section.key=value"),
    ("folds..n=3", "expected section.key=value"),
    ("name.deeper=1", "name is a value, not a section"),
    ("folds.n=[1", "not a YAML value"),
    ("folds.n={a: 1, a: 2}", "the key a stands twice"),
    ("folds.n=" + "[" * 5000, "nested more than 30 deep"),
])  # fmt: skip
def test_a_bad_set_names_itself(override, words, tmp_path):
    (said,) = faults(written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), override)
    assert said.startswith(f"--set {override[:20]}") and words in said


def test_an_alias_is_a_copy():
    tree = strict.parse("a: &a {x: 1}\nb: *a\n")
    tree["a"]["x"] = 2
    assert tree["b"] == {"x": 1}


# ---- losses -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", TERMS)
def test_the_terms_that_may_be_asked_for_are_those_that_there_are(kind):
    assert set(losses.LOSS_TERMS[kind]) == set(TERMS[kind])


@pytest.mark.parametrize(("task", "loss", "words"), [
    (BinaryMask(("a",)), {"focal_mode": "per_class", "focal_alpha": 0.5}, "binary focal losses have one form"),
    (MultilabelMask(("a", "b")), {"class_weights": "auto"}, "auto needs exclusive classes"),
    (MulticlassMask(("a", "b", "c")), {"focal_alpha": [0.1, 0.2]}, "focal_mode softmax takes one number above 0"),
    (MulticlassMask(("a", "b", "c")), {"focal_alpha": [0.1, 0.2], "focal_mode": "per_class"}, "one number or 3"),
    (MulticlassMask(("a", "b", "c")), {"focal_alpha": 1.0, "focal_mode": "per_class"}, "between 0 and 1"),
    (MulticlassMask(("a", "b", "c")), {"class_weights": [1, 1, -1]}, "expected 3 numbers of at least 0 (a, b, c)"),
])  # fmt: skip
def test_a_loss_fits_the_kind_of_its_task(task, loss, words):
    (said,) = losses.loss_faults(Loss(terms={"focal": 1}, **loss), task.kind, task.classes)
    assert words in said


# ---- nothing is refused that works ------------------------------------------------------------------------
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_experiment_passes(path, tmp_path):
    changes = ["data.synthetic=null"]
    if yaml.safe_load(path.read_text())["competition"] == "labels":
        for name in ("a", "b"):
            (tmp_path / "train" / name).mkdir(parents=True)
            (tmp_path / "train" / name / "1.png").touch()
        changes.append(f"data.root={tmp_path}")
    experiment, _ = check.open_experiment(path, changes, tmp_path / "workdir", "code")
    assert (tmp_path / "workdir" / experiment.name / check.MEMORY).exists()


@pytest.mark.parametrize("change", [
    "models.cls.train.precision=bfloat16",
    "predict.tile=4096",
    "models.loc.view={size: 48}",
    "models.loc.train.sampling.scale=[1, 1]",
    "models.loc={task: loc, network: {architecture: maskformer, images: [post], encoder: resnet18}, train: {epochs: 1, "
    "batch_size: 2, crop: 64, optimizer: {lr: 1.0e-4}, loss: {terms: {query_class: 2, query_bce: 5, query_dice: 5}}}}",
    "models.loc.network={architecture: segmentation, images: [post], encoder: mit_b0, options: {decoder: segformer}}",
    "models.loc.train.crop=4096",
])  # fmt: skip
def test_what_works_is_not_refused(change, tmp_path):
    changes = (change, "models.cls.train.init_from=null", "models.cls.train.localization=null")
    check.open_experiment(
        written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), changes, tmp_path / "workdir", "code"
    )


def test_a_network_that_cannot_see_its_crop_is_told(tmp_path):
    """MaxViT divides the image into windows of 7 x 7 at every level."""
    network = "{architecture: segmentation, images: [post], encoder: tu-maxvit_tiny_rw_224}"
    changes = (f"models.loc.network={network}", "models.cls.train.init_from=null")
    (said,) = faults(written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), *changes)
    assert said.startswith("models.loc.train.crop: this network cannot see crops of 64 pixels: ")


@pytest.mark.parametrize(("options", "words"), [
    ({"decodr": "unet"}, "unknown option decodr"),
    ({"decoder": "unett"}, "decoder: expected one of"),
    ({"decoder": "unet", "decoder_channels": [16, 8]}, "cannot be built"),
    ({"fusion": "add"}, "fusion: expected one of concat"),
    ({"upsample_logits": 3}, "upsample_logits: expected 1, or 2 or 4"),
    ({"dropout": "much"}, "dropout"),
    ({"decoder_interpolation": "bilinaer"}, "bilinaer"),
])  # fmt: skip
def test_options_that_no_network_has_are_told(options, words, tmp_path):
    (said, *_) = faults(
        written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), f"models.loc.network.options={options}"
    )
    assert said.startswith("models.loc.network") and words in said


@pytest.mark.parametrize(("places", "words"), [
    (("HPA", "HPA"), "expected one of HPA, got 'HuBMAP'"),
    (("", ""), "expected one of (no scene says where it is from), got 'HuBMAP'"),
    (("HPA", "HuBMAP"), None), ((), None),
])  # fmt: skip
def test_weights_of_sources_that_no_scene_is_from_are_refused(places, words, tmp_path):
    path = written(tmp_path, yaml.safe_dump(TREE, sort_keys=False))
    experiment = load(path, ["models.loc.train.sampling.sources={HuBMAP: 2}"])
    for scenes in ([Scene(str(k), {}, place) for k, place in enumerate(places)],
                   [Scene(str(k), {}, "organ", source=place) for k, place in enumerate(places) if place]):  # fmt: skip
        if scenes or not places:
            said = check.scene_faults(experiment, scenes)
            assert said == ([f"models.loc.train.sampling.sources: {words}"] if words else [])
    for wrong in ("{HPA: -1}", "{HPA: much}"):
        assert "sampling.sources" in faults(path, f"models.loc.train.sampling.sources={wrong}")[0]


# ---- remembered -------------------------------------------------------------------------------------------
def test_networks_are_built_again_only_when_something_changed(tmp_path, monkeypatch):
    path, workdir = written(tmp_path, yaml.safe_dump(TREE, sort_keys=False)), tmp_path / "workdir"
    check.open_experiment(path, (), workdir, "code")
    built = []
    monkeypatch.setattr("lib.config.networks.network_faults", lambda *_: built.append(1) or [])
    check.open_experiment(path, ["models.loc.train.epochs=9"], workdir, "code")
    assert not built, "epochs change nothing that was looked at"
    for changes, code in (((), "other"), (["models.loc.train.crop=32"], "code"), (["predict.tile=512"], "code")):
        before = len(built)
        check.open_experiment(path, changes, workdir, code)
        assert len(built) == before + 1, (changes, code)


def test_faults_of_networks_are_said_again(tmp_path):
    path = written(tmp_path, yaml.safe_dump(TREE, sort_keys=False))
    assert faults(path, "predict.tile=1000") == faults(path, "predict.tile=1000")


HEAVY = ("torch", "timm", "segmentation_models_pytorch", "albumentations", "matplotlib", "sklearn", "skimage.measure",
         "skimage.segmentation")  # fmt: skip
PROBE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *(name for name in %r if name in sys.modules))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["01_prepare_folds", "02_train_loc", "03_train_cls", "04_predict_tta", "05_ensemble",
                                   "06_make_submission"])  # fmt: skip
def test_a_stage_that_has_nothing_to_do_imports_no_heavy_library(stage, finished):
    command = [sys.executable, "-c", PROBE % (HEAVY,), str(ROOT / f"{stage}.py"), *finished.flags]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert "skipped, done" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:", done.stdout.splitlines()[-1]


def test_a_path_that_the_system_refuses_is_one_sentence(tmp_path, capsys):
    path = written(tmp_path, yaml.safe_dump(TREE))
    long = "x" * 300
    for flags in (["--config", long], ["--config", path, "--inputs", long],
                  ["--config", path, "--set", f"data.root={long}"],
                  ["--config", path, "--workdir", path]):  # fmt: skip
        assert stage("01_prepare_folds", *flags) == 2
        assert "error: " in capsys.readouterr().err
