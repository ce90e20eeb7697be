"""The experiment file: what is refused, in which words, and what --set changes."""

import json
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from conftest import TINY
from pydantic import ValidationError

from lib.competitions import NAMES, options_of
from lib.config import schema
from lib.config.load import load, read
from lib.config.sections import Experiment, Loss, plain
from lib.errors import ConfigError
from lib.run.graph import Graph
from lib.settings import Section, did_you_mean, sentences

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))
SCHEMA = Path(__file__).resolve().parents[1] / "configs" / "schema.json"
DEMO = next(p for p in CONFIGS if p.name == "demo.yaml")


def written(tmp_path, change):
    tree = yaml.safe_load(DEMO.read_text())
    change(tree)
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_experiment_file_loads_and_says_what_it_is(path):
    experiment = load(path)
    assert experiment.name
    first, second = path.read_text().splitlines()[:2]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == SCHEMA, "the first line tells editors where the schema is"
    assert second.startswith("# "), "the second line says what the experiment is"


def test_the_schema_is_that_of_the_sections():
    """``python -m lib.config.schema > configs/schema.json`` writes it; how types look is pydantic's and changes."""

    def said(node):
        fields = node.get("properties", {}).items()
        return {name: (field.get("description"), field.get("default")) for name, field in fields}

    written, today = json.loads(SCHEMA.read_text(encoding="utf-8")), json.loads(schema.text())
    assert said(written) == said(today) and written["allOf"] == today["allOf"]
    assert {name: said(part) for name, part in written["$defs"].items()} == {
        name: said(part) for name, part in today["$defs"].items()
    }


def test_the_schema_has_the_options_of_the_competition_that_is_named():
    cases = {case["if"]["properties"]["competition"]["const"]: case["then"] for case in schema.schema()["allOf"]}
    assert set(cases) == set(NAMES)
    for name in NAMES:
        reference = cases[name]["properties"]["data"]["properties"]["options"]["$ref"].removeprefix("#/$defs/")
        assert set(schema.schema()["$defs"][reference]["properties"]) == set(options_of(name).model_fields)


def test_an_unknown_key_names_its_place_and_the_nearest_known_one(tmp_path):
    path = written(tmp_path, lambda t: t["models"]["loc_lite0"]["train"].update(batchsize=3))
    with pytest.raises(ConfigError, match=r"models\.loc_lite0\.train\.batchsize: unknown key; did you mean batch_size"):
        load(path)


class Inner(Section):
    """A section below another."""

    crop: int = 1
    """A number."""


class Outer(Section):
    """A section with others below it."""

    parts: dict[str, Inner] = {}
    """Sections by name."""
    cropped: int
    """A number that must be given."""


def test_every_fault_is_one_sentence_and_a_key_is_compared_with_the_fields_beside_it():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"parts": {"a": {"crops": 2, "crop": "x"}, "b": {"zzz": 1}}, "crops": 1})
    assert sorted(sentences(caught.value, "data.options")) == [
        "data.options.cropped: required, but missing",
        "data.options.crops: unknown key; did you mean cropped?",
        "data.options.parts.a.crop: expected a valid integer, unable to parse string as an integer, got 'x'",
        "data.options.parts.a.crops: unknown key; did you mean crop?",
        "data.options.parts.b.zzz: unknown key",
    ]


@pytest.mark.parametrize(("change", "sentence"), [
    ("models.loc_lite0.train.loss.class_weights=no-auto", "models.loc_lite0.train.loss.class_weights: expected a valid "
                                                          "tuple or 'auto', got 'no-auto'"),
    ("predict.tta=flip", "predict.tta: expected 'none', 'hflip', 'flips' or 'd4' or a valid tuple, got 'flip'"),
    ("data.root=3", "data.root: expected a valid path"),
    ("folds.cluster=0.3", "folds.cluster: expected a valid boolean or greater than or equal to 0.5, got 0.3"),
    ("reference={source: a, data: b, scores: {score: [0.9, 0.2]}}",
     "reference.scores.score: expected a valid number or the lower end first, got [0.9, 0.2]"),
])  # fmt: skip
def test_a_field_of_several_types_is_one_sentence(change, sentence):
    with pytest.raises(ConfigError) as caught:
        load(DEMO, [change])
    (said,) = str(caught.value).removeprefix(f"{DEMO}: ").splitlines()
    assert said.startswith(sentence)


def test_did_you_mean_says_nothing_where_nothing_is_near():
    assert did_you_mean("loc_treshold", ["w_minor", "loc_threshold"]) == "; did you mean loc_threshold?"
    assert did_you_mean("foo", ["w_minor", 3]) == ""


def test_a_wrong_type_shows_what_came(tmp_path):
    path = written(tmp_path, lambda t: t["folds"].update(n="many"))
    with pytest.raises(ConfigError, match=r"folds\.n: expected a valid integer.*got 'many'"):
        load(path)


@pytest.mark.parametrize("field", ["init_from", "localization"])
def test_a_reference_to_a_model_that_is_not_there_is_refused(tmp_path, field):
    path = written(tmp_path, lambda t: t["models"]["cls_lite0"]["train"].update({field: "nobody"}))
    with pytest.raises(ConfigError, match="no other model is called 'nobody'"):
        load(path)


def test_a_schedule_table_and_its_kind_belong_together(tmp_path):
    path = written(tmp_path, lambda t: t["models"]["loc_lite0"]["train"]["schedule"].update(kind="piecewise"))
    with pytest.raises(ConfigError, match="piecewise needs a table"):
        load(path)


def test_set_changes_one_value_and_nothing_else():
    plain, changed = load(DEMO), load(DEMO, ["models.cls_lite0.train.loss.class_weights=[1, 1, 2, 2, 2]"])
    assert changed.models["cls_lite0"].train.loss.class_weights == (1, 1, 2, 2, 2)
    loss = plain.models["cls_lite0"].train.loss
    back = changed.model_copy(update={"models": {**changed.models, "cls_lite0": plain.models["cls_lite0"]}})
    assert loss.class_weights == (1, 1, 2, 2, 1) and back == plain


@pytest.mark.parametrize("override", ["folds", "folds.n", "name.deeper=1", "folds.nn=3", "folds.n=[1"])
def test_a_set_that_cannot_be_is_refused(override):
    with pytest.raises(ConfigError):
        load(DEMO, [override])


def test_a_missing_or_broken_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no such experiment file"):
        load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load(broken)


def test_every_field_says_what_it_means():
    """The experiment's own fields and the options of every competition."""

    def sections(annotation):
        if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section):
            yield annotation
            for field in annotation.model_fields.values():
                yield from sections(field.annotation)
        for argument in get_args(annotation):
            yield from sections(argument)

    found = {section for root in (Experiment, *map(options_of, NAMES)) for section in sections(root)}
    assert len(found) > 20
    for section in found:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no line of meaning"


def test_only_what_is_set_enters_a_fingerprint():
    """Else a field that a later version adds would make every trained model stale."""
    assert plain(Loss(terms={"dice": 1})) == {"terms": {"dice": 1.0}}
    assert plain(Loss(terms={"dice": 1}, tversky_beta=0.9))["tversky_beta"] == 0.9


@pytest.mark.parametrize("change", [
    "models.loc.network.options.boundary=true",
    "models.loc.train.loss.terms.boundary_bce=1",
])  # fmt: skip
def test_a_boundary_head_and_its_loss_go_together(change, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    with pytest.raises(ConfigError, match="go together"):
        load(path, [change])


@pytest.mark.parametrize(("option", "weight"), [("aux_head", "aux_weight"), ("deep_supervision", "deep_weight")])
def test_heads_whose_loss_counts_nothing_are_refused(option, weight, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    asked = f"models.loc.network.options.{option}=true"
    load(path, [asked])
    with pytest.raises(ConfigError, match=f"{weight}: .*{option}.* learns? nothing at 0"):
        load(path, [asked, f"models.loc.train.loss.{weight}=0"])


@pytest.mark.parametrize(("path", "role", "precision"), [
    ("animals_unet", "loc", "float32"),
    ("animals_attention_unet", "loc", "float32"),
    ("animals_effnetb3", "loc", "float32"),
    ("xview2", "loc", "float32"),
    ("xview2", "cls", "float16"),
    ("xview2_selim2020", "loc", "float32"),
    ("demo", "loc", "float16"),  # for speed, and said there
])  # fmt: skip
def test_the_precision_in_which_shipped_experiments_predict(path, role, precision):
    from lib.competitions.xview2.competition import XView2

    experiment = load(next(found for found in CONFIGS if found.stem == path))
    tasks = XView2.tasks if experiment.competition == "xview2" else {}
    found = {experiment.predict_of(m, tasks).precision for m in experiment.models.values() if m.task == role}
    assert found == {precision}


def test_a_model_without_folds_is_left_out(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    assert list(load(path, ["models.cls.folds=[]"]).models) == ["loc"]
    with pytest.raises(ConfigError, match="models.cls.train.init_from: no other model is called 'loc'"):
        load(path, ["models.loc.folds=[]"])
    with pytest.raises(ConfigError, match="models: expected at least one network, got none"):
        load(path, ["models.cls.folds=[]", "models.loc.folds=[]"])


def test_a_model_may_have_a_seed_of_its_own(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    plainly, seeded = (Graph(load(path, changes), [], []) for changes in ([], ["models.loc.seed=9"]))
    for name, same in (("loc", False), ("cls", True)):
        facts, others = (graph.checkpoint(name, 0).facts for graph in (plainly, seeded))
        assert (facts == others) == same and facts["seed"] == TINY["seed"]
    assert seeded.checkpoint("loc", 0).facts["seed"] == 9
    padded = Graph(load(path, ["models.loc.pad=16"]), [], [])
    assert padded.checkpoint("loc", 0).facts == plainly.checkpoint("loc", 0).facts, "nothing is trained anew"
    assert padded.probs("loc", 0, "test").facts == {**plainly.probs("loc", 0, "test").facts, "pad": 16}


def test_a_setting_of_a_model_that_is_not_there_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"--set models\.loc_lite\.seed=2: models: expected one of loc_lite0, .*"
                                          r"got 'loc_lite'; did you mean loc_lite0\?$"):  # fmt: skip
        load(DEMO, ["models.loc_lite.seed=2"])
    assert "new" in read(DEMO, ["models.new={task: loc}"])["models"], "a whole model may be added"
