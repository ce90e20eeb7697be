"""What is rerun when: one changed value makes exactly the units stale that depend on it."""

from pathlib import Path

import pytest
from invented import experiment

from lib.config.load import load
from lib.errors import ArtifactError
from lib.run.artifacts import Store
from lib.run.graph import Graph, lessons, taught, teachers
from lib.tasks import BinaryMask, MulticlassMask

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


TASKS = {"loc": BinaryMask(("building",), float32=True), "cls": MulticlassMask(("a", "b"))}


def units(overrides=(), train=("a", "b", "c"), test=("t",)):
    config = load(DEMO, list(overrides))
    graph = Graph(config, train, test, tasks=TASKS)
    found = [graph.folds()]
    for name, model in config.models.items():
        for fold in config.folds_of(model):
            found.append(graph.checkpoint(name, fold))
            found += [graph.probs(name, fold, split) for split in ("oof", "test")]
    found += [graph.blend("oof"), graph.blend("test"), graph.decode()]
    found += [graph.submission("oof"), graph.submission("test")]
    return {unit.key: unit for unit in found}


@pytest.fixture
def finished(tmp_path):
    store = Store(tmp_path)
    for item in units().values():
        with store.build(item, {}) as folder:
            (folder / "x").write_text("x")
    return store


def stale(store, **change):
    return {key for key, item in units(**change).items() if store.status(item) == "stale"}


ALL = set(units())
AFTER_04 = {"05_ensemble/oof", "05_ensemble/test", "05_ensemble/decode", "06_submission/oof", "06_submission/test"}
OF_LOC = {k for k in ALL if k.startswith(("02_loc", "04_probs/loc"))}
OF_CLS = {k for k in ALL if k.startswith(("03_cls", "04_probs/cls"))}


@pytest.mark.parametrize(("override", "expected"), [
    ("folds.seed=9", ALL),
    ("seed=9", ALL - {"01_folds"}),
    ("models.loc_lite0.train.epochs=5", OF_LOC | OF_CLS | AFTER_04),  # damage nets start from localization
    ("models.cls_lite0.train.crop=128", OF_CLS | AFTER_04),
    ("models.cls_lite0.weight=2", AFTER_04),
    ("predict.tta=none", {k for k in ALL if k.startswith("04_")} | AFTER_04),
    ("predict.fallback=0.5", set()),
    ("models.loc_lite0.precision=null", {k for k in ALL if k.startswith("04_probs/loc")} | AFTER_04),  # float32
    ("models.loc_lite0.precision=float32", {k for k in ALL if k.startswith("04_probs/loc")} | AFTER_04),
    ("models.cls_lite0.precision=float32", {k for k in ALL if k.startswith("04_probs/cls")} | AFTER_04),
    ("models.cls_lite0.precision=float16", set()),  # as predict.precision said
    ("predict.tf32=true", {k for k in ALL if k.startswith("04_")} | AFTER_04),
    ("predict.compile=true", {k for k in ALL if k.startswith("04_")} | AFTER_04),
    ("predict.workers=2", set()),
    ("predict.logits=true", set()),
    ("predict.budget_minutes=9", set()),
    ("blend.truncate=true", AFTER_04),
    ("search.plateau=0.01", AFTER_04 - {"05_ensemble/oof", "05_ensemble/test"}),
    ("models.cls_lite0.train.workers=2", set()),
    ("models.cls_lite0.train.save_minutes=2", set()),
    ("data.root=/elsewhere", set()),
])  # fmt: skip
def test_one_value_changed_makes_exactly_its_dependants_stale(finished, override, expected):
    assert stale(finished, overrides=[override]) == expected


def test_a_new_training_scene_changes_all_and_a_new_test_scene_the_test_side_only(finished):
    assert stale(finished, train=("a", "b", "c", "d")) == ALL
    test_side = {k for k in ALL if k.startswith("04_") and k.endswith("test")}
    assert stale(finished, test=("t", "u")) == test_side | {"05_ensemble/test", "06_submission/test"}


def test_logits_become_stale_with_their_checkpoint_and_with_how_it_looks_at_scenes():
    def fingerprint(*overrides):
        graph = Graph(load(DEMO, list(overrides)), ("a", "b"), ("t",))
        return Store(Path("none")).fingerprint(graph.logits("loc_lite0", 0))

    own = fingerprint()
    assert own == fingerprint("predict.logits=true") == fingerprint("predict.fallback=0.5")
    assert len({own, fingerprint("models.loc_lite0.train.epochs=5"), fingerprint("predict.tta=none")}) == 3


def test_a_student_follows_its_teachers_logits_and_refuses_old_ones(tmp_path):
    """Fold by fold; ``models`` and the order of folders do not matter, what lies in them does."""

    def student(**more):
        return experiment("student", train={"distill": {"experiment": "teacher", **more}})

    def finish(*units):
        for unit in units:
            with store.build(unit, {}):
                pass

    teacher, store = experiment("teacher"), Store(tmp_path / "teacher")
    graph = Graph(teacher, ["a", "b"], [])
    with pytest.raises(ArtifactError, match="teacher: the teacher has no logits of the scenes of fold 0 for loc"):
        teachers(student(), tmp_path)
    assert teachers(student(), tmp_path, coming={"teacher"}) == {}  # which the same run is to make
    with pytest.raises(ArtifactError, match="the teacher has no logits"):
        teachers(student(), tmp_path, coming={"other"})
    assert lessons(student()) == [f"teacher/04_probs/loc/*/fold{fold}/logits" for fold in (0, 1)]
    assert lessons(student(models=("a", "b")))[:2] == [f"teacher/04_probs/loc/{m}/fold0/logits" for m in "ab"]
    assert not lessons(teacher)
    for fold in (0, 1):
        finish(graph.folds(), graph.checkpoint("net", fold), graph.logits("net", fold))
    found = teachers(student(), tmp_path)
    assert len(set(found.values())) == len(found) == 2
    assert list(teachers(student(models=("net",)), tmp_path).values()) == list(found.values())
    with pytest.raises(ArtifactError, match=r"fold0/logits: the teacher has no such logits.*train.distill.models"):
        teachers(student(models=("other",)), tmp_path)
    units = {}
    for name, known in (("before", found), ("after", {**found, next(iter(found)): "another"})):
        own = Graph(student(), ["a", "b"], [], teachers=known)
        units[name] = [Store(tmp_path / "student").fingerprint(own.checkpoint("net", fold)) for fold in (0, 1)]
    assert units["before"][0] != units["after"][0] and units["before"][1] == units["after"][1]

    longer = Graph(experiment("teacher", lr=0.5), ["a", "b"], [])
    finish(longer.checkpoint("net", 1))
    with pytest.raises(ArtifactError, match=r"fold1/logits: these logits are not those of today's 02_loc/net/fold1"):
        teachers(student(), tmp_path)
    first = {key: one for key, one in found.items() if key.endswith("/0")}
    assert teachers(student(), tmp_path, coming={"teacher"}) == first  # of fold 1 they are to be made anew
    finish(longer.logits("net", 1))
    again = teachers(student(), tmp_path)
    assert [a == b for a, b in zip(found.values(), again.values(), strict=True)] == [True, False]


def test_a_student_follows_the_bytes_of_its_teachers_logits(tmp_path):
    """Beside the fingerprints, which stay as they are: a checkpoint trained anew by other code has other bytes."""

    def finish(unit, text):
        with store.build(unit, {}) as folder:
            (folder / "x").write_text(text)

    config, store = experiment("teacher"), Store(tmp_path / "teacher")
    graph, student = Graph(config, ["a"], []), experiment("student", train={"distill": {"experiment": "teacher"}})
    for fold in (0, 1):
        for unit in (graph.folds(), graph.checkpoint("net", fold), graph.logits("net", fold)):
            finish(unit, "before")
    found, known = taught(student, tmp_path), teachers(student, tmp_path)
    finish(graph.checkpoint("net", 1), "after")
    with pytest.raises(ArtifactError, match=r"fold1/logits: these logits are not those of today's 02_loc/net/fold1"):
        taught(student, tmp_path)
    finish(graph.logits("net", 1), "after")
    assert teachers(student, tmp_path) == known
    assert [a == b for a, b in zip(found.values(), taught(student, tmp_path).values(), strict=True)] == [True, False]


def test_commands_repeat_the_flags_they_were_called_with():
    graph = Graph(load(DEMO), (), (), "--config configs/x.yaml --set folds.n=2")
    expected = "python 02_train_loc.py --config configs/x.yaml --set folds.n=2 --only loc_lite0 --fold 1"
    assert graph.checkpoint("loc_lite0", 1).command == expected


def test_what_decides_the_kept_epoch_makes_a_checkpoint_stale(finished):
    kept_by_score = "models.loc_lite0.train.select=score"
    before = units(overrides=[kept_by_score])["02_loc/loc_lite0/fold0"]
    after = units(overrides=[kept_by_score, "predict.tile=512"])["02_loc/loc_lite0/fold0"]
    assert before.facts != after.facts
    assert "02_loc/loc_lite0/fold0" not in stale(finished, overrides=["predict.tile=512"])  # select: last


def test_a_task_that_is_promised_float32_is_predicted_in_it_unless_its_model_asks_otherwise():
    def precision(role, overrides):
        config = load(DEMO, overrides)
        model = next(model for model in config.models.values() if model.task == role)
        return config.predict_of(model, TASKS).precision

    silent = "models.loc_lite0.precision=null"
    assert precision("loc", []) == precision("cls", []) == "float16", "as the file says"
    assert precision("loc", [silent]) == "float32" and precision("cls", [silent]) == "float16"
    assert precision("loc", [silent, "predict.precision=bfloat16"]) == "float32"
    assert precision("loc", ["models.loc_lite0.precision=bfloat16", "predict.precision=float32"]) == "bfloat16"
    assert precision("cls", ["models.cls_lite0.precision=float32"]) == "float32"


def test_no_network_is_trained_anew_because_validation_keeps_the_promise_of_float32(finished):
    """Checkpoints of earlier versions were judged in ``predict.precision``; new ones of the same file are not stale."""
    kept_by_score, silent = "models.loc_lite0.train.select=score", "models.loc_lite0.precision=null"
    key = "02_loc/loc_lite0/fold0"
    stated, unstated, other = (
        units(overrides=[kept_by_score, change])[key].facts
        for change in ("seed=0", silent, "models.loc_lite0.precision=float32")
    )
    assert stated == unstated and stated != other


def test_a_model_that_starts_from_another_experiment_follows_that_network(tmp_path):
    """By fingerprint and by bytes; fold by fold, or from the one fold that is named."""

    def starting(**more):
        return experiment("next", train={"init_from": {"experiment": "first", "model": "net", **more}})

    def finish(unit, text):
        with store.build(unit, {}) as folder:
            (folder / "x").write_text(text)

    graph, store = Graph(experiment("first"), ["a", "b"], []), Store(tmp_path / "first")
    with pytest.raises(ArtifactError, match="first: has no trained network net of fold0, from which train.init_from"):
        teachers(starting(), tmp_path)
    assert teachers(starting(), tmp_path, coming={"first"}) == {}
    assert lessons(starting()) == ["first/*/net/fold0", "first/*/net/fold1"]
    assert set(lessons(starting(fold=1))) == {"first/*/net/fold1"}
    for unit in (graph.folds(), graph.checkpoint("net", 0), graph.checkpoint("net", 1)):
        finish(unit, "before")
    found, bytes_before = teachers(starting(), tmp_path), taught(starting(), tmp_path)
    assert len(set(found.values())) == 2 and found.keys() == bytes_before.keys()
    assert len(set(teachers(starting(fold=1), tmp_path).values())) == 1
    own = [Graph(starting(), ["a"], [], teachers=known).checkpoint("net", 0).facts["start"] for known in (found, {})]
    assert own[0] in found.values() and own[1] is None
    with store.build(graph.checkpoint("net", 1), {}, fresh=True) as folder:
        (folder / "x").write_text("after")
    assert teachers(starting(), tmp_path) == found  # the same facts, other bytes
    assert [a == b for a, b in zip(bytes_before.values(), taught(starting(), tmp_path).values())] == [True, False]
    (fault,) = starting().model_copy(update={"name": "first"}).contradictions()
    assert fault.startswith("models.net.train.init_from.experiment: expected another experiment than this one")
