"""The same six stages for every sister competition, and the law that a submission scores what training saw."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import STAGES, made_once, stage
from sisters import COMMON, EXPERIMENTS
from test_page import outside

from lib.competitions import NAMES
from lib.competitions.submission import Submission
from lib.models import checkpoint
from lib.report import page
from lib.run import cli
from lib.stages import train as stage_train


class Sister:
    """One sister's tiny experiment in a folder of its own."""

    def __init__(self, folder: Path, sister: str, **changes):
        experiment = {**COMMON, "name": sister, **EXPERIMENTS[sister], **changes}
        experiment["data"] = {"root": str(folder / "data"), **experiment["data"]}
        self.config = folder / f"{experiment['name']}.yaml"
        self.config.write_text(yaml.safe_dump(experiment))
        self.flags = ("--config", str(self.config), "--workdir", str(folder / "workdir"))
        self.root = folder / "workdir" / experiment["name"]

    def run(self, name: str, *arguments: str) -> int:
        return stage(name, *self.flags, *arguments)

    def json(self, path: str) -> dict:
        return json.loads((self.root / path).read_text())


@pytest.fixture(scope="module", params=sorted(EXPERIMENTS))
def sister(request, tmp_path_factory) -> Sister:
    """A sister with all six stages done; tests must not change it."""
    return made_once(tmp_path_factory, request.param, lambda folder: Sister(folder, request.param))


def test_every_competition_but_the_first_is_a_sister():
    assert set(EXPERIMENTS) == set(NAMES) - {"xview2"}


@pytest.mark.slow
def test_the_submission_is_linted_and_a_report_is_drawn(sister, capsys):
    assert sister.json("06_submission/test/manifest.json")["lint"] == "valid"
    assert sister.run("06_make_submission", "--lint", sister.root / "06_submission/test") == 0
    assert "valid" in capsys.readouterr().out
    assert list((sister.root / "report/pictures").glob("scene*.jpg"))
    assert not outside((sister.root / "report/report.html").read_text())


@pytest.mark.slow
def test_a_submission_that_tells_its_scenes_not_apart_is_said_by_stage_06(sister, monkeypatch, capsys):
    monkeypatch.setattr(Submission, "sameness", lambda self, path: f"{path.parent.name}/{path.name}: all the same")
    monkeypatch.setattr(page, "write", lambda run: "no page")
    assert sister.run("06_make_submission") == 0
    said = capsys.readouterr().out
    assert all(f"! 06_submission/{split}: all the same: what was predicted" in said for split in ("oof", "test"))


@pytest.mark.slow
def test_what_training_scored_is_what_the_submission_scores(sister):
    """Out-of-fold scenes through tiling, levels, average, decode, files and back: the score of training, to 1e-3."""
    per_fold = sister.json("05_ensemble/decode/decode.json")["per_fold"]
    (checkpoints,) = [p for p in (sister.root / "02_loc", sister.root / "03_cls") if p.exists()]
    (model,) = list(checkpoints.iterdir())
    for fold in (0, 1):
        trained = json.loads((model / f"fold{fold}" / "manifest.json").read_text())["scores"]
        assert per_fold[str(fold)]["score"] == pytest.approx(trained["score"], abs=1e-3)
    files = sister.json("06_submission/oof/manifest.json")["scores"]
    assert files == sister.json("05_ensemble/decode/decode.json")["scores"]


@pytest.mark.slow
def test_samples_can_be_sent_to_loader_processes_that_are_not_forked(sister):
    """Python 3.14 no longer forks them."""
    run = cli.start("", [*sister.flags])
    (model,) = run.config.models.values()
    dataset = stage_train.samples(run, model, run.competition.scenes("train"), 0)
    sent = pickle.loads(pickle.dumps(dataset))
    assert sent[5]["image"].equal(dataset[5]["image"]) and sent[5]["target"].equal(dataset[5]["target"])


@pytest.mark.slow
def test_a_test_scene_of_which_nothing_can_be_read_has_an_answer_and_stops_nothing(sister, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(sister.config.parent / "data", data)
    run = cli.start("", [*sister.flags, "--set", f"data.root={data}"])
    (broken, _, _) = run.competition.scenes("test")
    for path in broken.files.values():
        path.write_bytes(b"nothing that can be read")
    flags = ("--set", f"data.root={data}", "--set", "data.synthetic=null", "--set", "predict.fallback=0",
             "--workdir", tmp_path, "--inputs", sister.root, "--split", "test")  # fmt: skip
    for name in STAGES[3:]:
        assert sister.run(name, *flags) == 0, name
    assert f"1 of 3 scenes could not be predicted and have the fallback 0.0: {broken.id} (" in capsys.readouterr().out
    mine, theirs = (
        (root / "06_submission/test/submission.csv").read_text().splitlines()
        for root in (tmp_path / sister.root.name, sister.root)
    )
    others = [[line for line in lines if not line.startswith(broken.id)] for lines in (mine, theirs)]
    assert others[0] == others[1] and len(mine) == len(theirs) > len(others[0])


@pytest.mark.slow
def test_a_second_run_skips_everything(sister, capsys):
    for name in STAGES:
        assert sister.run(name) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line and line[:2].isdigit()]
    assert lines and all("skipped, done" in line for line in lines)


@pytest.mark.slow
def test_without_test_images_stage_06_says_where_the_out_of_fold_answers_are(tmp_path, capsys):
    data = {"synthetic": {**EXPERIMENTS["labels"]["data"]["synthetic"], "test_scenes": 0}}
    alone = Sister(tmp_path, "labels", data=data)
    for name in STAGES:
        assert alone.run(name) == 0, name
    folder = alone.root / "06_submission/oof"
    said = f"submission: no test scenes found, so none to hand in; out-of-fold answers are in {folder}"
    assert said in capsys.readouterr().out.splitlines()
    assert (folder / "submission.csv").is_file() and not (alone.root / "06_submission/test").exists()


@pytest.mark.slow
def test_patches_and_whole_images_are_fused_with_weights_fitted_out_of_fold(tmp_path, capsys):
    base = EXPERIMENTS["binary_rle"]["models"]["patch"]
    images = ["image-1", "image", "image+1"]  # 2.5D: neighbours in the stack as channels
    models = {
        "patch": {**base, "view": {"pixel_size": 0.8}},
        "full": {**base, "view": {"size": 96}, "network": {**base["network"], "images": images}},
    }
    data = {**EXPERIMENTS["binary_rle"]["data"],
            "options": {"slices": 3, "group": "data_source", "domain": "organ"}}  # fmt: skip
    own = Sister(tmp_path, "binary_rle", models=models, data=data, blend={"fit": 0.25},
                 predict={"tta": "hflip", "tile": 128, "overlap": 0.25, "scales": [0.75, 1.0]},
                 search={"axes": {"threshold": [0.3, 0.4, 0.5]}, "per_domain": True})  # fmt: skip
    for name in STAGES:
        assert own.run(name, "--set", "folds.too_good=0.0") == 0, name
    said = capsys.readouterr().out
    assert "is above 0.0: is something of the validation scenes in training?" in said and "audit:" in said
    decode = own.json("05_ensemble/decode/decode.json")
    assert decode["points"] == 5 * 3 and sum(decode["weights"].values()) == 1
    assert decode["scores"]["score"] >= decode["score_without_search"]
    assert own.json("06_submission/oof/manifest.json")["scores"] == decode["scores"]
    assert set(decode["per_domain"]) == {"kidney", "spleen"}
    other = [part for change in ("blend.fit=null", "blend.select=greedy", "blend.rounds=2", "blend.calibrate=true",
                                 "blend.crf={iterations: 1}", "search.per_domain=false")
             for part in ("--set", change)]  # fmt: skip
    for name in STAGES[4:]:
        assert own.run(name, *other) == 0, name
    chosen = own.json("05_ensemble/decode/decode.json")
    assert sum(chosen["weights"].values()) == pytest.approx(1) and set(chosen["temperatures"]) == {"patch", "full"}
    for fitted in chosen["calibration"].values():
        assert fitted["accepted"] == (fitted["after"]["log_loss"] < fitted["before"]["log_loss"])
    assert own.json("06_submission/oof/manifest.json")["scores"] == chosen["scores"]


@pytest.mark.slow
def test_several_classes_of_slices_with_neighbours_are_searched_and_submitted(tmp_path):
    sister = EXPERIMENTS["multiclass_rle"]
    data = {**sister["data"], "options": {**sister["data"]["options"], "slices": 3}}
    base = sister["models"]["organs"]
    organs = {**base, "network": {**base["network"], "images": ["image-1", "image", "image+1"]}}
    own = Sister(tmp_path, "multiclass_rle", data=data, models={"organs": organs},
                 search={"axes": {"threshold_stomach": [0.3, 0.5, 0.7], "min_area_large_bowel": [0, 20]}})  # fmt: skip
    for name in STAGES:
        assert own.run(name) == 0, name
    decode = own.json("05_ensemble/decode/decode.json")
    assert decode["points"] == 6 and decode["scores"]["score"] >= decode["score_without_search"]
    assert own.json("06_submission/oof/manifest.json")["scores"] == decode["scores"]
    lines = (own.root / "06_submission/test/submission.csv").read_text().splitlines()
    sample = (tmp_path / "data/sample_submission.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [line.rpartition(",")[0] for line in sample]


@pytest.mark.slow
def test_views_crf_thresholds_and_settings_for_new_domains_are_chosen_out_of_fold(tmp_path, capsys):
    data = {**EXPERIMENTS["binary_rle"]["data"], "options": {"domain": "organ"}}
    own = Sister(tmp_path, "binary_rle", data=data, blend={"crf": {"iterations": 1}, "choose_crf": True},
                 predict={"tta": ["none", "hflip", "d4"], "tile": 128},
                 search={"axes": {"threshold": [0.3, 0.4, 0.5, 0.6]}, "choose": "median",
                         "unseen": {"threshold": "otsu"}})  # fmt: skip
    for name in STAGES:
        assert own.run(name) == 0, name
    decode = own.json("05_ensemble/decode/decode.json")
    assert decode["points"] == 3 * 2 * 4 and decode["tta"] in ("none", "hflip", "d4")
    assert {row["tta"] for row in decode["plans"]} == {"none", "hflip", "d4"}
    assert {"expected_with_flattest_best", "expected_score"} <= set(decode) and "unseen_domains" in decode
    (known,) = [row for row in decode["plans"] if row["tta"] == decode["tta"]]
    assert known["score"] == decode["scores"]["score"]
    assert own.json("06_submission/oof/manifest.json")["scores"] == decode["scores"]
    said = capsys.readouterr().out
    assert f"views: {decode['tta']}" in said and "seconds a scene" in said
    # the submission is what predicting with the chosen views alone would have given
    alone = [part for change in (f"predict.tta={decode['tta']}", "blend.choose_crf=false",
                                 "blend.crf=" + ("{iterations: 1}" if decode["crf"] else "null"))
             for part in ("--set", change)]  # fmt: skip
    before = (own.root / "06_submission/test/submission.csv").read_bytes()
    for name in STAGES[3:]:
        assert own.run(name, *alone) == 0, name
    assert own.json("05_ensemble/decode/decode.json")["params"] == decode["params"]
    assert (own.root / "06_submission/test/submission.csv").read_bytes() == before


@pytest.mark.slow
def test_a_student_learns_from_networks_that_have_not_seen_its_validation_fold(tmp_path, capsys):
    """Teacher and student share a workdir; a teacher that looks otherwise makes the student stale."""
    teacher = Sister(tmp_path, "labels")
    model = EXPERIMENTS["labels"]["models"]["pictures"]
    train = {**model["train"], "distill": {"experiment": "labels", "temperature": 4}, "mix": {"mixup": 0.2},
             "loss": {"terms": {"ce": 1}, "smoothing": 0.1}}  # fmt: skip
    student = Sister(tmp_path, "labels", name="student", models={"pictures": {**model, "train": train}})
    logits = ("--set", "predict.logits=true")
    for name in STAGES[:4]:
        assert teacher.run(name) == 0, name
    assert student.run("01_prepare_folds") == 2
    assert "labels: the teacher has no logits of the scenes of fold 0 for cls" in capsys.readouterr().err
    assert teacher.run("04_predict_tta", *logits) == 0
    told = capsys.readouterr().out
    assert "fold0/oof: skipped, done" in told and "fold0/logits: building" in told
    assert teacher.run("04_predict_tta", *logits) == 0
    assert "building" not in capsys.readouterr().out
    for name in STAGES[:5]:
        assert student.run(name) == 0, name
    run = cli.start("", [*student.flags])
    table = run.folds().set_index("id")["fold"]
    for fold in (0, 1):
        folder = teacher.root / f"04_probs/cls/pictures/fold{fold}/logits"
        assert {path.stem for path in folder.glob("*.tif")} == set(table.index[table != fold])
        dataset = stage_train.samples(run, run.config.models["pictures"], stage_train.split(run, fold)[0], fold)
        assert dataset.data.teacher.__self__.teachers == (folder,)
        network = checkpoint.load_network(teacher.root / f"03_cls/pictures/fold{fold}")
        for scene in dataset.scenes:
            (frame,) = run.config.models["pictures"].view.image(run.competition.read(scene))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                said = network(torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous()).float()[0, :, :, 0].numpy()
            np.testing.assert_allclose(dataset.data.teacher(scene)[..., 0], said - said.max(0), atol=0.06)
    log = [json.loads(line) for line in (student.root / "03_cls/pictures/fold0/log.jsonl").read_text().splitlines()]
    assert all(line["raw_distill"] > 0 and line["weighted_distill"] == line["raw_distill"] for line in log)
    capsys.readouterr()
    assert teacher.run("04_predict_tta", *logits, "--set", "predict.tta=hflip", "--fold", "0") == 0
    capsys.readouterr()
    assert student.run("03_train_cls") == 0
    told = capsys.readouterr().out
    assert "fold0: stale" in told and "fold1: skipped" in told
    # other folds may not be mixed up
    assert student.run("01_prepare_folds", "--set", "folds.seed=5") == 0
    assert student.run("03_train_cls", "--set", "folds.seed=5") == 2
    assert "train.distill: labels divides the scenes into other folds" in capsys.readouterr().err


@pytest.mark.slow
def test_training_draws_scenes_by_the_weight_of_their_source(tmp_path, capsys):
    sister = Sister(tmp_path, "labels")
    assert sister.run("01_prepare_folds") == 0
    asked = ("--set", "models.pictures.train.sampling.sources={dusk: 3}")
    run = cli.start("", [*sister.flags, *asked])
    scenes, _ = stage_train.split(run, 0)
    dataset = stage_train.samples(run, run.config.models["pictures"], scenes, 0)
    drawn = [scenes[dataset.scene_of(k)].domain for k in range(50 * len(scenes))]
    dusk = sum(scene.domain == "dusk" for scene in scenes)
    assert drawn.count("dusk") / len(drawn) == pytest.approx(3 * dusk / (len(scenes) + 2 * dusk), abs=0.02)
    capsys.readouterr()
    assert sister.run("03_train_cls", "--set", "models.pictures.train.sampling.sources={dawn: 3}") == 2
    assert "sampling.sources: expected one of day, dusk, got 'dawn'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_round_of_pseudo_labels_uses_for_each_fold_the_networks_that_have_not_seen_it(tmp_path, capsys):
    earlier = Sister(tmp_path, "binary_rle")
    model = EXPERIMENTS["binary_rle"]["models"]["patch"]
    pseudo = {"experiment": "binary_rle", "models": ["patch"], "ratio": 1.5, "share": 0.5}
    later = Sister(tmp_path, "binary_rle", name="later",
                   models={"patch": {**model, "train": {**model["train"], "pseudo": pseudo}}})  # fmt: skip
    assert earlier.run("01_prepare_folds") == 0 and later.run("01_prepare_folds") == 2
    assert "no probabilities for pseudo-labels; run stage 04 there first" in capsys.readouterr().err
    for name in STAGES[1:4]:
        assert earlier.run(name) == 0, name
    for name in STAGES[:2]:
        assert later.run(name) == 0, name
    assert "4 scenes to train on and 3 pseudo-labelled" in capsys.readouterr().out
    run = cli.start("", [*later.flags])
    labelled = [run.competition.scenes("train")[k] for k in (0, 1, 2, 3)]
    dataset = stage_train.samples(run, run.config.models["patch"], labelled, 1)
    seen = [dataset[k]["id"] for k in range(8)]  # one round: four labelled, four others
    assert sorted(set(seen) - {s.id for s in labelled}) == [s.id for s in run.competition.scenes("test")]
    assert sum(name in {s.id for s in labelled} for name in seen) == 4
    labels = dataset.data.target.__self__.pseudo
    assert labels.sources == ((later.root.with_name("binary_rle") / "04_probs/loc/patch/fold1/test", ("none",)),)
    # other folds may not be mixed up
    assert later.run("01_prepare_folds", "--set", "folds.seed=5") == 0
    assert later.run("02_train_loc", "--set", "folds.seed=5") == 2
    assert "divides the scenes into other folds" in capsys.readouterr().err


@pytest.mark.slow
def test_masks_train_in_half_precision_where_their_task_allows_it(tmp_path):
    """Row H16; only the task of one competition asks for float32."""
    models = yaml.safe_load(yaml.safe_dump(EXPERIMENTS["binary_rle"]["models"]))
    models["patch"]["train"] |= {"precision": "bfloat16", "epochs": 1, "sampling": {"samples": 8}}
    sister = Sister(tmp_path, "binary_rle", models=models)
    assert sister.run("01_prepare_folds") == 0 and sister.run("02_train_loc", "--fold", "0") == 0
    manifest = sister.json("02_loc/patch/fold0/manifest.json")
    assert manifest["precision"] == {"asked": "bfloat16", "used": "bfloat16", "tf32": False, "judged": "bfloat16"}
