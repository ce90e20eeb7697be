"""The experiment file: what is refused, in which words, and what --set changes."""

from pathlib import Path

import pytest
import yaml
from conftest import TINY
from pydantic import ValidationError

from lib.config.load import load
from lib.config.sections import Loss, plain
from lib.errors import ConfigError
from lib.settings import Section, did_you_mean, sentences

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))
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
    first = path.read_text().splitlines()[0]
    assert first.startswith("# "), "the first line says what the experiment is"


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
    def walk(model, seen):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no line of meaning"
        for sub in model.__subclasses__():
            if sub not in seen:
                walk(sub, seen | {sub})

    walk(Section, set())


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
