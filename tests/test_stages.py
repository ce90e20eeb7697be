"""The six stages end to end on the tiny experiment: what they write, skip, refuse and survive."""

import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from conftest import STAGES, Experiment

from lib.competitions import open_competition
from lib.models import checkpoint
from lib.report.tables import compare
from lib.run import cli
from lib.scenes.probs import read_levels
from lib.scenes.raster import write_png

pytestmark = pytest.mark.slow  # the finished experiment takes a minute


def decode_of(experiment):
    return json.loads((experiment.root / "05_ensemble/decode/decode.json").read_text())


def test_all_six_stages_end_with_a_linted_submission_and_a_report(finished, capsys):
    folder = finished.root / "06_submission/test"
    with zipfile.ZipFile(folder / "xview2.zip") as archive:
        assert sorted(archive.namelist()) == sorted(
            f"test_{part}_{number:05d}_prediction.png" for part in ("localization", "damage") for number in range(2)
        )
    table = pd.read_csv(folder / "submission.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["ImageId_ClassId", "EncodedPixels"] and len(table) == 2 * 5
    assert (finished.root / "report/report.html").exists()
    assert len(list((finished.root / "report/pictures").glob("scene*.jpg"))) == 5 * 5, "five scenes, errors outlined"
    assert finished.run("06_make_submission", "--lint", folder) == 0
    assert finished.run("06_make_submission", "--lint", folder / "submission.csv") == 0
    assert "valid" in capsys.readouterr().out


def test_the_score_of_the_files_is_the_score_of_stage_05(finished):
    manifest = json.loads((finished.root / "06_submission/oof/manifest.json").read_text())
    assert manifest["scores"] == decode_of(finished)["scores"]
    assert decode_of(finished)["coverage"] == "6 of 6 scenes, folds 0-1"


def test_every_scene_is_out_of_fold_once_and_every_test_scene_is_seen_by_all_folds(finished):
    folds = pd.read_csv(finished.root / "01_folds/folds.csv", dtype={"id": str})
    for model, task in (("loc", "loc"), ("cls", "cls")):
        seen = []
        for fold in (0, 1):
            unit = finished.root / f"04_probs/{task}/{model}/fold{fold}"
            names = [p.stem for p in (unit / "oof").glob("*.tif")]
            assert set(names) == set(folds["id"][folds["fold"] == fold])
            seen += names
            assert len(list((unit / "test").glob("*.tif"))) == 2
        assert sorted(seen) == sorted(folds["id"])


def test_the_blend_is_the_mean_of_its_members(finished):
    path = next((finished.root / "05_ensemble/test/cls").glob("*.tif"))
    parts = [read_levels(finished.root / f"04_probs/cls/cls/fold{k}/test/{path.name}")[0] for k in (0, 1)]
    expected = np.floor(np.mean(np.stack(parts).astype(float), 0) + 0.5)
    levels, names = read_levels(path)
    np.testing.assert_array_equal(levels, expected)
    assert names == ("background", "no-damage", "minor-damage", "major-damage", "destroyed")


def test_manifests_say_what_made_a_unit(finished):
    loc = json.loads((finished.root / "02_loc/loc/fold0/manifest.json").read_text())
    cls = json.loads((finished.root / "03_cls/cls/fold0/manifest.json").read_text())
    assert loc["precision"] == {"asked": "float32", "used": "float32", "tf32": False, "judged": "float32"}
    assert cls["precision"]["asked"] == "float16" and cls["precision"]["judged"] == "bfloat16"
    probs = {role: json.loads((finished.root / f"04_probs/{role}/{role}/fold0/oof/manifest.json").read_text())
             for role in ("loc", "cls")}  # fmt: skip
    assert probs["loc"]["precision"] == {"asked": "float32", "used": "float32", "tf32": False}, "its task's promise"
    assert probs["cls"]["precision"] == {"asked": "bfloat16", "used": "bfloat16", "tf32": False}
    for record in probs.values():
        assert list(record["clock"]) == ["read", "forward", "store", "wait"] and min(record["clock"].values()) > 0
        assert 0 < record["network_busy"] <= 1
        assert record["peak_memory_mib"] > 50 and record["cpu_seconds"] > 0
    assert cls["encoder_weights"]["source"] == "checkpoint loc of fold 0"
    assert loc["versions"]["torch"] and loc["seed"] == 3 and loc["files"]["best.safetensors"] > 0
    lines = [json.loads(line) for line in (finished.root / "03_cls/cls/fold0/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for key in ("raw_focal", "weighted_focal", "raw_damage_dice", "lr", "gradient_norm", "images_per_second",
                "peak_memory_mib", "loader_wait", "cpu_cores", "amp"):  # fmt: skip
        assert key in lines[0], key
    assert 0 <= lines[0]["loader_wait"] <= 1 and lines[0]["cpu_cores"] > 0
    assert lines[0]["weighted_damage_dice"] == pytest.approx(lines[0]["raw_damage_dice"] / 2, abs=1e-5)
    assert {"score", "oracle_score"} <= set(lines[1]["scores"]), "the competition's score beside the 2020 oracle score"
    assert "new_best" in lines[1] and "scores" not in lines[0]


def test_a_second_run_skips_everything_and_says_so(experiment, capsys):
    for name in STAGES:
        assert experiment.run(name) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line and line[:2].isdigit()]
    assert len(lines) == 18 and all("skipped, done" in line for line in lines)


def test_a_unit_made_by_other_code_is_kept_and_the_line_says_so(experiment, capsys):
    path = experiment.root / "01_folds/manifest.json"
    path.write_text(path.read_text().replace('"code": "', '"code": "older'))
    assert experiment.run("01_prepare_folds") == 0
    assert "made by other code than today's, --force rebuilds it" in capsys.readouterr().out


def test_a_changed_value_is_refused_downstream_with_the_command_to_run(experiment, capsys):
    change = ("--set", "predict.tta=none")
    assert experiment.run("05_ensemble", *change) == 2
    error = capsys.readouterr().err
    assert "made with other settings; run: python 04_predict_tta.py" in error and "--set predict.tta=none" in error


def test_a_truncated_result_is_noticed_and_rebuilt(experiment, capsys):
    path = next((experiment.root / "05_ensemble/test/loc").glob("*.tif"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    shutil.rmtree(experiment.root / "06_submission")
    assert experiment.run("06_make_submission") == 2
    assert "is damaged" in capsys.readouterr().err
    assert experiment.run("05_ensemble") == 0
    assert path.read_bytes() == whole and "rebuilding" in capsys.readouterr().out


def test_a_corrupt_checkpoint_is_one_sentence(experiment, capsys):
    path = experiment.root / "02_loc/loc/fold0/best.safetensors"
    content = bytearray(path.read_bytes())
    content[:8] = b"\xff" * 8  # of the same size
    path.write_bytes(bytes(content))
    assert experiment.run("04_predict_tta", "--force", "--only", "loc", "--fold", "0", "--split", "test") == 2
    error = capsys.readouterr().err
    assert "best.safetensors: its bytes changed after it was written" in error and "Traceback" not in error
    assert "run: python 02_train_loc.py" in error and "--only loc --fold 0" in error


@pytest.fixture
def with_data(tmp_path, scenes, finished):
    """A copy of the finished experiment with data of its own, which a test may change."""
    data = tmp_path / "xbd"
    shutil.copytree(scenes, data)
    own = Experiment(tmp_path, data)
    shutil.copytree(finished.root, own.root)
    return own


def test_labels_that_changed_make_training_and_choosing_stale(with_data, tmp_path, capsys):
    """As after ``sed 's/"destroyed"/"no-damage"/'``, of which no old score may stand beside the new truth."""
    labels = list((tmp_path / "xbd").rglob("*_post_disaster.json"))
    changed = [path for path in labels if '"destroyed"' in path.read_text()]
    for path in changed:
        path.write_text(path.read_text().replace('"destroyed"', '"no-damage"'))
    scene = min(path.stem.removesuffix("_post_disaster") for path in changed)
    for name in STAGES[1:]:
        assert with_data.run(name) == 2, name
        error = capsys.readouterr().err
        assert f"01_folds was made from other data ({scene}" in error and "run: python 01_prepare_folds.py" in error
    assert with_data.run(STAGES[0]) == 0
    assert f"01_folds: stale (made from other data ({scene}" in capsys.readouterr().out
    run = cli.start("", [*with_data.flags])
    units = [*run.checkpoints("loc"), *run.checkpoints("cls"), run.graph.decode(), run.graph.submission("oof")]
    assert [run.store.status(unit) for unit in units] == ["stale"] * 6


def test_a_folder_of_data_that_was_copied_without_its_times_makes_nothing_stale(with_data, tmp_path, capsys):
    for path in (tmp_path / "xbd").rglob("*"):
        path.touch()
    for name in STAGES:
        assert with_data.run(name) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line and line[:2].isdigit()]
    assert len(lines) == 18 and all("skipped, done" in line for line in lines)


@pytest.mark.slow
def test_a_test_image_that_was_mended_is_predicted_again_and_no_other(with_data, tmp_path, capsys):
    first, second = open_competition("xview2", tmp_path / "xbd").scenes("test")
    shutil.copyfile(first.files["pre"], first.files["post"])
    assert with_data.run(STAGES[0]) == 0 and "skipped, done" in capsys.readouterr().out
    unit = with_data.root / "04_probs/cls/cls/fold1/test"
    before = {path.stem: path.read_bytes() for path in unit.glob("*.tif")}
    for name in STAGES[3:]:
        assert with_data.run(name) == 0
    said = capsys.readouterr().out
    for split in ("loc/loc/fold0", "loc/loc/fold1", "cls/cls/fold0", "cls/cls/fold1"):
        assert f"04_probs/{split}/test: stale (made from other data ({first.id}: " in said
        assert f"04_probs/{split}/oof: skipped, done" in said
    assert said.count("1 of 2 scenes are as they were and are kept") == 4
    assert "05_ensemble/decode: skipped" in said and "05_ensemble/test: stale (made from another 04_probs" in said
    after = {path.stem: path.read_bytes() for path in unit.glob("*.tif")}
    assert after[second.id] == before[second.id] and after[first.id] != before[first.id]
    assert with_data.run(STAGES[5], "--split", "test") == 0 and "skipped, done" in capsys.readouterr().out


def test_a_submission_of_another_byte_is_written_again(experiment, capsys):
    path = experiment.root / "06_submission/test/submission.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"9\n")
    assert experiment.run("06_make_submission", "--split", "test") == 0
    assert path.read_bytes() == whole and "submission.csv: its bytes changed" in capsys.readouterr().out


def test_frozen_inputs_serve_folds_checkpoints_and_decode(finished, tmp_path, scenes, capsys):
    own, attached = Experiment(tmp_path, scenes), tmp_path / "attached"  # what a kernel's weights hold, and no more
    left = shutil.ignore_patterns("04_probs", "oof", "06_submission", "report")
    shutil.copytree(finished.root, attached, ignore=left)
    flags = ("--inputs", attached, "--split", "test")
    for name in STAGES[3:]:
        assert own.run(name, *flags) == 0, name
    assert "03_cls" not in {p.name for p in own.root.iterdir()}, "nothing was trained again"
    for name in ("submission.csv", "xview2.zip"):
        mine, theirs = (e.root / "06_submission/test" / name for e in (own, finished))
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(("arguments", "words"), [
    (("--set", "data.root=/nowhere", "--set", "data.synthetic=null"), "/nowhere"),
    (("--set", "folds.nn=3"), "folds.nn: unknown key"),
    (("--config", "/none.yaml"), "no such experiment file"),
    (("--only", "nobody"), "--only nobody: expected one of"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(finished, arguments, words, capsys):
    assert finished.run("04_predict_tta", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_truncated_image_is_found_by_stage_01_and_strict_makes_it_an_error(tmp_path, scenes, finished, capsys):
    broken = tmp_path / "xbd"
    shutil.copytree(scenes, broken)
    image = next((broken / "train/images").glob("*_post_disaster.png"))
    image.write_bytes(image.read_bytes()[:20000])
    own = Experiment(tmp_path, broken)
    assert own.run("01_prepare_folds", "--strict") == 2
    assert image.stem.removesuffix("_post_disaster") in capsys.readouterr().err
    assert own.run("01_prepare_folds") == 0
    assert image.stem.removesuffix("_post_disaster") in "".join(capsys.readouterr())
    assert own.run("01_prepare_folds", "--strict") == 2, "though the folds are there by now"
    assert "--strict: " in (said := capsys.readouterr().err)
    assert image.stem.removesuffix("_post_disaster") in said


@pytest.mark.slow
def test_test_pairs_that_cannot_be_predicted_have_an_answer_and_stop_nothing(
    tmp_path, scenes, finished, forked, capsys
):
    """One is not to be read, one lacks its twin, one has sides of two sizes, one is known from the sample alone.

    The archive and the linter want 1024 x 1024 pixels of every scene; two workers share them.
    """
    data = tmp_path / "xbd"
    shutil.copytree(scenes, data)
    whole, broken = open_competition("xview2", data).scenes("test")
    for side in ("pre", "post"):
        broken.files[side].write_bytes(b"no image")
    folder = whole.files["pre"].parent
    twinless, unequal, absent = (f"z-storm_0000000{k}" for k in (1, 2, 3))
    for name in (twinless, unequal):
        shutil.copy(whole.files["pre"], folder / f"{name}_pre_disaster.png")
    write_png(folder / f"{unequal}_post_disaster.png", np.ones((1023, 1024, 3), np.uint8))
    ids = [unequal, absent, whole.id, broken.id, twinless]
    rows = [f"{scene}_{part}," for scene in ids for part in range(5)]
    (data / "sample_submission.csv").write_text("\n".join(["ImageId,Runs", *rows]))
    own = Experiment(tmp_path, data)
    flags = ("--inputs", finished.root, "--split", "test")
    assert own.run(STAGES[3], *flags) == 2
    said = capsys.readouterr().err
    for words in ("3 of 5 scenes cannot be predicted: ", f"{twinless} (expected pre and post, found no post beside ",
                  f"{unequal} (expected images of one size, found ", f"{unequal}_post_disaster.png of 1024x1023 pixels",
                  f"{absent} (expected pre and post, found no file of it)", "set predict.fallback"):  # fmt: skip
        assert words in said
    for name in STAGES[3:]:
        assert own.run(name, *flags, "--set", "predict.fallback=0", "--set", "predict.workers=2") == 0, name
    said = capsys.readouterr().out
    assert "4 of 5 scenes could not be predicted and have the fallback 0.0" in said
    assert "test: scenes with the fallback of stage 04: 4 (" in said
    manifest = json.loads((own.root / "04_probs/loc/loc/fold0/test/manifest.json").read_text())
    failed = sorted({*ids} - {whole.id})
    assert list(manifest["failed"]) == failed and manifest["scenes"] == 5
    manifest = json.loads((own.root / "06_submission/test/manifest.json").read_text())
    assert manifest["fallback"] == failed
    mine, theirs = ((e.root / "06_submission/test/submission.csv").read_text().splitlines() for e in (own, finished))
    answered = [line for line in theirs if line.startswith(f"{whole.id}_")]
    assert mine == ["ImageId,Runs", *rows[:10], *answered, *rows[15:]] and any(
        not line.endswith(",") for line in answered
    )
    with zipfile.ZipFile(own.root / "06_submission/test/xview2.zip") as archive:
        assert len(archive.namelist()) == 2 * 5


@pytest.mark.slow
def test_scenes_that_failed_are_tried_again_until_they_are_there(tmp_path, scenes, finished, capsys):
    data = tmp_path / "xbd"
    shutil.copytree(scenes, data)
    scene = open_competition("xview2", data).scenes("test")[1]
    scene.files["post"].write_bytes(b"no image")
    own = Experiment(tmp_path, data)
    flags = ("--inputs", finished.root, "--split", "test", "--set", "predict.fallback=0")
    for name in STAGES[3:]:
        assert own.run(name, *flags) == 0, name
    capsys.readouterr()
    for name in STAGES[3:]:
        assert own.run(name, *flags) == 0, name
    said = capsys.readouterr().out
    assert said.count(f"scenes with the fallback: 1 ({scene.id}), trying them again") == 4
    assert said.count("1 of 2 scenes are as they were and are kept") == 4
    assert said.count(f"test: scenes with the fallback of stage 04: 1 ({scene.id})") == 2, "stages 05 and 06"
    assert "05_ensemble/test: skipped, done" in said, "they failed again, to the same bytes"
    shutil.copyfile(scenes / scene.files["post"].relative_to(data), scene.files["post"])
    for name in STAGES[3:]:
        assert own.run(name, *flags) == 0, name
    assert "fallback of stage 04" not in capsys.readouterr().out
    mine, theirs = ((e.root / "06_submission/test/submission.csv").read_bytes() for e in (own, finished))
    assert mine == theirs


def test_probabilities_open_as_named_bands(finished):
    path = next((finished.root / "04_probs/cls/cls/fold0/test").glob("*.tif"))
    with rasterio.open(path) as file:
        assert file.count == 5 and file.descriptions[4] == "destroyed" and file.dtypes[0] == "uint8"
        assert file.compression.name == "zstd"


def test_two_experiments_are_compared_score_by_score(finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished.root, other)
    path = other / "05_ensemble/decode/decode.json"
    decode = json.loads(path.read_text())
    decode["scores"]["score"] *= 1.25
    path.write_text(json.dumps(decode))
    lines = compare(finished.root, other).splitlines()
    (line,) = [line for line in lines if line.startswith("score ")]
    assert line.endswith("+25.0 %") and "tiny" in lines[0] and "other" in lines[0]


def test_the_report_tells_the_new_bests_of_training(finished):
    page = (finished.root / "report/report.html").read_text()
    assert "cls fold 1, epoch: validation score of each new best: 2: " in page


@pytest.mark.slow
def test_what_training_scored_is_what_the_submission_scores(experiment):
    """Through tiling, levels, average, decode, PNGs and back, without views and search: the score of stage 03."""
    plain = ("--set", "predict.tta=none", "--set", "search=null")
    for name in STAGES[3:]:
        assert experiment.run(name, *plain, "--split", "oof") == 0, name
    per_fold = decode_of(experiment)["per_fold"]
    for fold in (0, 1):
        trained = json.loads((experiment.root / f"03_cls/cls/fold{fold}/manifest.json").read_text())["scores"]
        assert per_fold[str(fold)]["score"] == pytest.approx(trained["score"], abs=1e-3)
    files = json.loads((experiment.root / "06_submission/oof/manifest.json").read_text())["scores"]
    assert files == decode_of(experiment)["scores"]


def test_data_without_a_usable_scene_are_described_by_stage_01_before_it_ends(tmp_path, scenes, finished, capsys):
    broken = tmp_path / "xbd"
    shutil.copytree(scenes, broken)
    for label in broken.rglob("*_post_disaster.json"):
        label.write_text("{")
    own = Experiment(tmp_path, broken)
    assert own.run("01_prepare_folds") == 2
    said = capsys.readouterr()
    findings = own.root / "01_folds.partial/findings.csv"
    assert str(findings) in said.err and len(findings.read_text().splitlines()) > 6
    assert "label" in said.out, "what was found is printed, too"
    assert own.run("04_predict_tta") == 2, "no other stage begins"
    assert "01_prepare_folds.py" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "words"), [
    ("none", "found nothing there"),
    ("file", "found a file"),
    ("", "found none of 01_folds"),
])  # fmt: skip
def test_inputs_are_folders_of_experiments(finished, tmp_path, folder, words, capsys):
    assert finished.run("01_prepare_folds", "--inputs", finished.root) == 2
    assert "another folder than that of this experiment" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert finished.run("04_predict_tta", "--inputs", tmp_path / folder) == 2
    assert words in capsys.readouterr().err


def test_weights_that_are_not_there_are_missed_before_any_model_trains(experiment, capsys):
    change = (
        "--set",
        "models.cls.train.init_from=null",
        "--set",
        "models.cls.network.encoder_weights=/none.safetensors",
    )
    shutil.rmtree(experiment.root / "03_cls")
    assert experiment.run("03_train_cls", *change) == 2
    said = capsys.readouterr()
    assert "models.cls.network.encoder_weights: expected none, hub, bundled, a file" in said.err
    assert "building" not in said.out


def test_a_network_starts_from_another_experiment_unless_that_has_seen_its_validation_scenes(experiment, capsys):
    tree = yaml.safe_load(experiment.config.read_text())
    tree["models"]["loc"]["train"] |= {"init_from": {"experiment": "tiny", "model": "loc"}, "epochs": 1}
    experiment.config.write_text(yaml.safe_dump({**tree, "name": "next"}))
    assert experiment.run("01_prepare_folds") == 0
    assert experiment.run("02_train_loc", "--fold", "0") == 0
    assert "encoder weights: checkpoint loc of fold 0 of tiny" in capsys.readouterr().out
    made = json.loads((experiment.workdir / "next/02_loc/loc/fold0/manifest.json").read_text())
    own = experiment.root / "02_loc/loc/fold0"
    assert made["encoder_weights"]["tensors"] == len(checkpoint.read_weights(own))
    assert experiment.run("02_train_loc", "--fold", "0", "--set", "models.loc.train.init_from.fold=1") == 2
    said = capsys.readouterr().err
    assert "loc of fold 1 of tiny was trained on" in said and "validation scenes of fold 0" in said
