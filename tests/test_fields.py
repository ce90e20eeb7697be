"""Every setting of an experiment file is used: by a shipped experiment, or by one that is run here from end to end."""

import ast
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, STAGES
from pydantic import BaseModel
from sisters import EXPERIMENTS
from test_sisters import Sister

from lib.config.sections import Experiment


def merged(base: Any, changes: Any) -> Any:
    """Return a tree with changes, mapping by mapping."""
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**base, **{key: merged(base.get(key), value) for key, value in changes.items()}}


def model_of(sister: str, changes: dict) -> dict:
    (model,) = EXPERIMENTS[sister]["models"].values()
    return merged(model, changes)


MASKS = {
    "folds": {"n": 2, "scheme": "block", "block_km": 1.5, "embed": False},
    "models": {
        "patch": model_of("binary_rle", {
            "view": {"scale": 0.5},
            "weight": 2.0,
            "train": {
                "loss": {"terms": {"bce": 1, "tversky": 1}, "ohem": 0.5, "ohem_min": 10, "tversky_alpha": 0.4,
                         "tversky_beta": 0.6},
                "mix": {"cutmix": 1.0, "probability": 0.5},
                "optimizer": {"layer_decay": 0.9},
                "schedule": {"kind": "plateau", "factor": 0.5, "patience": 1, "min_lr": 1.0e-5},
                "swa_from": 0, "swa_batches": 2, "tf32": True, "channels_last": False, "patience": 3, "select": "score",
                "save_minutes": 0.001, "validate_every": 1, "max_skipped_steps": 5, "deterministic": False,
            },
        }),
    },
    "predict": {"tta": ["none", "hflip"], "tile": 128, "overlap": 0.5, "scales": [1.0, 0.75], "fallback": 0.0,
                "workers": 1, "tf32": True},
    "blend": {"calibrate": True, "crf": {"iterations": 1}, "choose_crf": True},
    "search": {"axes": {"threshold": [0.4, 0.5]}, "choose": "median", "unseen": {"threshold": "otsu"}},
    "reference": {"source": "nobody", "data": "these scenes", "scores": {"score": 0.9}},
}  # fmt: skip
CLASSES = {
    "models": {
        name: model_of("voc", {"network": {"options": {"deep_supervision": True}}, "train": {
            "loss": {"terms": {"ce": 1, "focal": 1, "boundary_bce": 0.3}, "focal_mode": "per_class", "focal_alpha": 0.7,
                     "boundary_width": 2, "deep_weight": 0.5},
            "schedule": {"kind": "one_cycle", "peak_at": 0.4, "div": 10, "final_div": 100},
        }})
        for name in ("one", "two")
    },
    "blend": {"select": "greedy", "rounds": 2},
}  # fmt: skip
PICTURES = {
    "models": {
        "pictures": model_of("labels", {"train": {
            "sampling": {"balance": True}, "schedule": {"kind": "step", "factor": 0.5, "every": 1},
        }}),
    },
}  # fmt: skip
ELSEWHERE = {
    "cluster.asks.*.gpus": "test_flow.py::test_units_ask_for_what_the_experiment_says",
    "cluster.asks.*.memory": "test_flow.py::test_units_ask_for_what_the_experiment_says",
    "cluster.retries": "test_flow.py::test_the_experiment_says_how_units_are_started",
    "cluster.part": "test_flow.py::test_the_experiment_says_how_units_are_started",
    "cluster.threads": "test_flow.py::test_the_experiment_says_how_units_are_started",
    "data.limits.json_bytes": "test_xview2.py::test_a_label_of_odd_contents_is_named_and_stops_nothing",
    "data.limits.json_depth": "test_xview2.py::test_a_label_of_odd_contents_is_named_and_stops_nothing",
    "data.limits.image_pixels": "test_raster.py::test_an_image_above_the_limit_is_named_and_not_read",
    "data.workers": "test_cores.py::test_the_stage_counts_in_processes_of_its_own_and_says_the_same",
    "folds.cluster": "test_cluster.py::test_look_alikes_lie_in_one_fold_and_the_audit_finds_none_across",
    "folds.file": "test_fields.py::test_settings_of_classes_and_given_folds",
    "models.*.train.auxiliary.*.branch": "test_branches.py::test_a_damage_network_learns_localization_beside_and"
                                         "_predicts_damage",
    "models.*.train.compile": "test_compile.py::test_a_compiled_network_learns_the_same_under_the_same_names_through_a"
                               "_thaw",
    **dict.fromkeys(
        [f"models.*.train.init_from.{field}" for field in ("experiment", "model", "fold")],
        "test_graph.py::test_a_model_that_starts_from_another_experiment_follows_that_network",
    ),
    "models.*.train.distill.models": "test_graph.py::test_a_student_follows_its_teachers_logits_and_refuses_old_ones",
    "models.*.train.pseudo.experiment": "test_sisters.py::test_a_round_of_pseudo_labels_uses_for_each_fold_the_networks"
                                        "_that_have_not_seen_it",
    "track": "test_track.py::test_a_training_that_is_followed_has_the_same_weights_and_fingerprint",
    "predict.budget_minutes": "test_kaggle.py::test_a_budget_of_a_third_leaves_out_a_fold_and_is_the_experiment"
                              "_without_it",
    "predict.compile": "test_predict.py::test_a_compiled_network_answers_as_the_plain_one",
    "models.*.train.sampling.sources": "test_sisters.py::test_training_draws_scenes_by_the_weight_of_their_source",
}  # fmt: skip
"""Fields set by a test elsewhere, not by a tree above; with one of pseudo or auxiliary goes the whole section."""


# ---- which fields there are, and which are set --------------------------------------------------------
def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if typing.get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from sections_in(argument)


def inner(section: type[BaseModel], name: str) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that a field holds, and whether it holds several by name."""
    annotation = section.model_fields[name].annotation
    return next(sections_in(annotation), None), typing.get_origin(annotation) is dict


def all_fields(section: type[BaseModel] = Experiment, above: str = "") -> Iterator[str]:
    for name in section.model_fields:
        held, named = inner(section, name)
        if held is None:
            yield above + name
        else:
            yield from all_fields(held, f"{above}{name}.{'*.' if named else ''}")


def set_fields(tree: Mapping, section: type[BaseModel] = Experiment, above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        held, named = inner(section, name)
        if held is None:
            yield above + name
        elif isinstance(value, Mapping):
            for part in value.values() if named else [value]:
                yield from set_fields(part, held, f"{above}{name}.{'*.' if named else ''}")


def test_every_field_is_set_by_a_shipped_experiment_or_by_one_that_is_run_here():
    trees = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs").rglob("*.yaml")]
    trees += [{key: value for key, value in tree.items()} for tree in (MASKS, CLASSES, PICTURES)]
    known = {name for tree in trees for name in set_fields(tree)} | set(ELSEWHERE)
    whole = tuple(name.rpartition(".")[0] for name in ELSEWHERE if "pseudo" in name or "auxiliary" in name)
    unused = [name for name in all_fields() if name not in known and not name.startswith(whole)]
    assert not unused
    assert set(ELSEWHERE) <= set(all_fields())


@pytest.mark.parametrize("field", ELSEWHERE)
def test_the_tests_that_set_a_field_are_there(field):
    file, _, name = ELSEWHERE[field].partition("::")
    source = (Path(__file__).parent / file).read_text(encoding="utf-8")
    (found,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name]
    assert field.rpartition(".")[2] in ast.get_source_segment(source, found)


# ---- the experiments ----------------------------------------------------------------------------------
def log_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_settings_of_masks_from_training_to_submission(tmp_path, capsys):
    own = Sister(tmp_path, "binary_rle", **MASKS)
    said = {}
    for name in STAGES:
        assert own.run(name) == 0, name
        said[name] = capsys.readouterr().out
    for name in ("02_train_loc", "05_ensemble", "06_make_submission"):
        assert "figures of nobody, measured on these scenes" in said[name] and "source 0.9" in said[name], name
    assert own.json("05_ensemble/decode/manifest.json")["reference"]["scores"] == {"score": 0.9}
    log = log_of(own.root / "02_loc/patch/fold0")
    assert all(line["raw_tversky"] > 0 for line in log)
    weights = own.json("02_loc/patch/fold0/manifest.json")["facts"]["train"]
    assert weights["loss"]["ohem_min"] == 10 and weights["swa_batches"] == 2
    decode = own.json("05_ensemble/decode/decode.json")
    assert set(decode["temperatures"]) == {"patch"} and decode["crf"] in (True, False)
    assert own.json("06_submission/oof/manifest.json")["scores"] == decode["scores"]
    assert len(list((own.root / "04_probs/loc/patch/fold0/oof/hflip").glob("*.tif"))) == 4


@pytest.mark.slow
def test_settings_of_classes_and_given_folds(tmp_path):
    first = Sister(tmp_path, "voc", name="first")
    assert first.run("01_prepare_folds") == 0
    given = first.root / "01_folds/folds.csv"
    own = Sister(tmp_path, "voc", **CLASSES, folds={"n": 2, "scheme": "group", "file": str(given)})
    for name in STAGES:
        assert own.run(name) == 0, name
    assert (own.root / "01_folds/folds.csv").read_bytes() == given.read_bytes()
    rates = [line["lr"] for line in log_of(own.root / "02_loc/one/fold0")]  # at the end of each epoch
    assert rates[0] > 3.0e-4 and rates[-1] == pytest.approx(3.0e-3 / 10 / 100)  # up from a tenth, down to a thousandth
    weights = own.json("05_ensemble/decode/decode.json")["weights"]
    assert set(weights) == {"one", "two"} and sum(weights.values()) == pytest.approx(1)


@pytest.mark.slow
def test_settings_of_labels(tmp_path):
    own = Sister(tmp_path, "labels", **PICTURES)
    for name in STAGES:
        assert own.run(name) == 0, name
    first, second = (line["lr"] for line in log_of(own.root / "03_cls/pictures/fold0"))
    assert second == pytest.approx(first / 2)
