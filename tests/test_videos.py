"""The adapter of real or fake videos: lists, faults, sampling, scores and the submission."""

import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from lib.competitions import open_competition
from lib.competitions.contract import Scene
from lib.competitions.synthetic import videos as synthetic
from lib.competitions.videos import competition as videos
from lib.competitions.videos import frames as video
from lib.competitions.videos.competition import score_of_frames
from lib.ensemble import search
from lib.errors import ConfigError, DataError
from lib.scenes import audit, folds, pairs
from lib.scenes.raster import read_image, write_png

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "video_frames/demo_dataset"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real frames")


DEFAULTS = {name: setting.default for name, setting in videos.Videos.settings.items()}


def Competition(root, **options):
    """Open the competition as an experiment does."""
    return open_competition("videos", root, options)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An embedded set with a test video cut off; read only."""
    root = tmp_path_factory.mktemp("videos")
    synthetic.write(root, scenes=12, test_scenes=3, size=64, seed=3, corrupt_test=True)
    return root


@pytest.fixture
def root(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "set")


def ids(scenes):
    return [scene.id for scene in scenes]


def found(competition):
    return {(finding.kind, finding.scene) for finding in competition.inspect()}


def relabel(root, change):
    """Rewrite the rows of the label file."""
    path = root / "train" / "label.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(change(rows)) + "\n")


# ---- lists --------------------------------------------------------------------------------------------
def test_files_and_folders_are_joined_with_their_labels(drawn):
    competition = Competition(drawn)
    train = competition.scenes("train")
    assert ids(train)[:4] == ["000.mp4", "001.avi", "002.mp4", "003"]
    assert [competition.truth(scene) for scene in train] == [1, 0] * 6
    assert {(scene.group, scene.domain) for scene in train[:6]} == {("person_00", "phone_a"), ("person_01", "phone_b")}
    assert competition.strata(train[1]) == {"live": False} and competition.flags == ("live",)
    assert competition.target(train[0], "cls").tolist() == [[1]]
    assert competition.target(train[0], "cls").dtype == np.uint8
    assert competition.tasks["cls"].classes == ("live",) and not competition.tasks["cls"].dense
    assert ids(competition.scenes("test")) == ["000.mp4", "001.mp4", "002.mp4"]
    pickle.loads(pickle.dumps(competition)).read(train[0], "frames")


def test_a_test_video_is_not_the_training_video_of_its_name(drawn):
    competition = Competition(drawn)
    train, test = competition.scenes("train")[0], competition.scenes("test")[0]
    assert train.id == test.id and competition.truth(train) == 1
    with pytest.raises(DataError, match="expected a label"):
        competition.truth(test)


def test_persons_stay_on_one_side(drawn):
    competition = Competition(drawn)
    scenes = competition.scenes("train")
    table = pd.DataFrame([competition.strata(scene) for scene in scenes])
    table["id"], table["group"] = ids(scenes), folds.groups(scenes, "group")
    fold = folds.assign(table, competition.flags, 2, seed=0)
    persons = [{scene.group for scene, k in zip(scenes, fold) if k == side} for side in (0, 1)]
    assert persons[0].isdisjoint(persons[1]) and len(persons[0] | persons[1]) == 4
    assert set(zip(fold, table["live"])) == {(0, False), (0, True), (1, False), (1, True)}
    # the split as shipped does not respect them, which the audit is to see
    shipped = competition.published_split()
    sides = {scene.group: {shipped[other.id] for other in scenes if other.group == scene.group} for scene in scenes}
    assert {"train", "val"} in sides.values()


def test_without_persons_every_video_is_its_own_group(root):
    relabel(root, lambda rows: [",".join(row.split(",")[:2]) for row in rows])
    competition = Competition(root)
    assert [scene.group for scene in competition.scenes("train")] == ids(competition.scenes("train"))
    assert competition.published_split() == {}


def test_columns_and_folders_may_have_other_names(root):
    relabel(root, lambda rows: ["video,real,source,domain,split", *rows[1:]])
    os.rename(root / "train" / "videos", root / "clips")
    columns = {"id": "video", "label": "real", "group": "source"}
    competition = Competition(root, train="clips", columns=columns, positive="real", test="public_test/videos")
    assert competition.scenes("train")[0].group == "person_00" and competition.flags == ("real",)
    for broken, words in (({"id": "video", "label": "real", "group": "actor"}, "no actor"), ({}, "no fname")):
        with pytest.raises(DataError, match=f"found {words}.*columns"):
            Competition(root, train="clips", columns=broken).scenes("train")


@pytest.mark.parametrize("options, words", [
    ({"metric": "f1"}, "metric: expected 'eer'"),
    ({"columns": {"lable": "x"}}, "columns.lable: unknown key; did you mean label"),
    ({"sampling": {"count": 2, "every": 2}}, "expected one of"),
    ({"sampling": {"evry": 2}}, "sampling.evry: unknown key; did you mean every"),
    ({"fallback": 2}, "fallback: expected less than or equal to 1"),
    ({"size": 0}, "size: expected greater than or equal to 1"),
])  # fmt: skip
def test_impossible_options_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        Competition(tmp_path, **options)


def test_missing_folders_are_named(root, tmp_path):
    with pytest.raises(DataError, match="nowhere.*data.root"):
        Competition(tmp_path / "nowhere").scenes("train")
    with pytest.raises(DataError, match="private.*data.options.test"):
        Competition(root, test="private").scenes("test")
    shutil.rmtree(root / "public_test")
    assert Competition(root).scenes("test") == []


def test_a_test_set_may_be_denied(drawn):
    assert len(Competition(drawn).scenes("test")) == 3 and Competition(drawn, test=None).scenes("test") == []


def test_test_videos_alone_can_be_answered(root, tmp_path):
    shutil.rmtree(root / "train")
    competition = Competition(root, fallback=0.5)
    whole, _, broken = competition.scenes("test")
    assert competition.read(whole, "frames").any() and competition.panels(whole, 0.9)[0][0] == "score 0.900"
    assert competition.fault(broken) and competition.fault(whole) == ""
    competition.write_submission([(scene, 0.9) for scene in competition.scenes("test")], tmp_path)
    assert competition.lint(tmp_path, competition.scenes("test")) == []


def test_what_was_read_of_videos_is_remembered_until_video_or_label_changes(root, tmp_path, monkeypatch):
    def opened():
        return open_competition("videos", root, memo=tmp_path / "memo.json")

    first = opened().scenes("train")
    with monkeypatch.context() as patch:
        patch.setattr(video, "probe", lambda path, span=None: pytest.fail(f"{path} was read again"))
        again = opened()
        assert again.scenes("train") == first and again.strata(first[1]) == {"live": False}
    relabel(root, lambda rows: [row.replace("001.avi,0", "001.avi,1") for row in rows])
    assert opened().strata(first[1]) == {"live": True}
    first[0].files["video"].write_bytes(b"")
    assert ids(opened().scenes("train")) == ids(first)[1:]


def test_group_and_domain_may_be_found_in_the_id(root):
    relabel(root, lambda rows: [",".join(row.split(",")[:3]) for row in rows])
    competition = Competition(root, group="^(..)", domain=r"[.](\w+)$")
    first = competition.scenes("train")[0]
    assert (first.id, first.group, first.domain) == ("000.mp4", "00", "mp4")
    assert [scene.domain for scene in competition.scenes("test")] == ["mp4"] * 3
    named = Competition(root, group="fname", domain="person").scenes("train")[0]  # columns, though not by default
    assert (named.group, named.domain) == ("000.mp4", "person_00")
    with pytest.raises(ConfigError, match=r"data.options.group: expected a column of the table \(fname, liveness"):
        Competition(root, group="^actor").scenes("train")


def test_labels_may_be_words(root):
    relabel(root, lambda rows: [rows[0], *(row.replace(",1,", ",REAL,").replace(",0,", ",FAKE,") for row in rows[1:])])
    competition = Competition(root, positive="REAL")
    assert [competition.truth(scene) for scene in competition.scenes("train")] == [1, 0] * 6
    assert competition.remarks() == ["labels: REAL is class 1 (data.options.positive), FAKE class 0"]
    assert competition.strata(competition.scenes("train")[1]) == {"REAL": False}
    with pytest.raises(ConfigError, match="data.options.positive: expected the label.* one of FAKE, REAL, got 'live'"):
        Competition(root).scenes("train")
    relabel(root, lambda rows: [row.replace("001.avi,FAKE", "001.avi,") for row in rows])
    assert ("video without label", "001.avi") in found(Competition(root, positive="REAL"))


def test_a_folder_may_be_a_class(root):
    places = {}
    for row in (root / "train/label.csv").read_text().splitlines()[1:]:
        name, label = row.split(",")[:2]
        places[name] = root / "train" / ("real" if label == "1" else "fake") / name
    for name, place in places.items():
        place.parent.mkdir(exist_ok=True)
        (root / "train/videos" / name).rename(place)
    (root / "train/videos").rmdir()
    (root / "train/label.csv").unlink()
    competition = Competition(root, positive="real", group="_0*([0-9]+)")
    train = competition.scenes("train")
    assert ids(train) == sorted(f"{place.parent.name}_{name}" for name, place in places.items())
    assert all(competition.truth(scene) == scene.id.startswith("real") for scene in train)
    assert all(scene.group == str(int(scene.files["video"].name[:3])) for scene in train)
    assert competition.read(train[0], "frames").shape[3] == 3 and len(competition.scenes("test")) == 3
    with pytest.raises(ConfigError, match="data.options.positive: .* one of fake, real, got 'live'"):
        Competition(root).scenes("train")
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match="expected the table train/label.csv, or a folder of videos per class"):
        Competition(root).scenes("train")


def test_settings_are_checked_without_data(tmp_path):
    competition = Competition(tmp_path)
    said = "\n".join(competition.faults({"clip": 0.6, "strategy": "best"}, {"quantil": [0.5], "threshold": [0.5, 2]}))
    assert (
        "decode.clip: expected a number from 0 to 0.5, got 0.6" in said and "decode.strategy: expected one of" in said
    )
    assert "search.axes.quantil: unknown setting; did you mean quantile?" in said
    assert "search.axes.threshold: expected a number from 0 to 1, got 2" in said
    assert competition.faults({"strategy": "confident"}, {"strategy": [0.0, 1.0, 2.0], "clip": [0, 0.01]}) == []


# ---- data doctor --------------------------------------------------------------------------------------
def test_a_whole_set_has_nothing_to_remark(root):
    (root / "public_test" / "videos" / "002.mp4").unlink()
    assert found(Competition(root)) == {("the sample names it, there is no file of it", "002.mp4")}
    (root / "sample_submission.csv").unlink()
    assert Competition(root).inspect() == []


def test_faults_are_named_and_left_out(root):
    (root / "public_test" / "videos" / "002.mp4").unlink()
    clips = root / "train" / "videos"
    (clips / "000.mp4").write_bytes(b"")
    (clips / "002.mp4").write_bytes(b"not a video at all")
    (clips / "001.avi").unlink()
    for frame in sorted((clips / "003").glob("*.png"))[4:]:
        frame.write_bytes(b"")
    stream = cv2.VideoWriter(str(clips / "night.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 32))
    for _ in range(4):
        stream.write(np.zeros((32, 32, 3), np.uint8))
    stream.release()
    shutil.copy(clips / "004.mp4", clips / "unlabelled.mp4")

    def change(rows):
        return [*(row.replace("005.avi,0", "005.avi,maybe") for row in rows), rows[7], rows[8].replace(",0,", ",1,"),
                "night.avi,0,person_09,,"]  # fmt: skip

    relabel(root, change)
    competition = Competition(root)
    assert found(competition) == {
        ("unreadable video", "000.mp4"), ("unreadable video", "002.mp4"), ("label without video", "001.avi"),
        ("video cut short", "003"), ("label is not 0 or 1", "005.avi"),
        ("row written twice, read once", "label.csv line 14"),
        ("label given twice", "007.mp4"), ("video without label", "unlabelled.mp4"),
        ("video all black", "night.avi"), ("the sample names it, there is no file of it", "002.mp4"),
    }  # fmt: skip
    good = ["003", "004.mp4", "006.mp4", "008.avi", "009.mp4", "010", "011.mp4", "night.avi"]
    assert ids(competition.scenes("train")) == good
    details = {finding.scene: finding.detail for finding in competition.inspect() if finding.kind == "unreadable video"}
    assert "empty file" in details["000.mp4"] and str(clips / "000.mp4") in details["000.mp4"]


def test_a_set_without_readable_videos_is_refused(root):
    relabel(root, lambda rows: rows[:3])
    for name in ("000.mp4", "001.avi"):
        (root / "train" / "videos" / name).write_bytes(b"")
    with pytest.raises(DataError, match="of which none can be used .*empty file"):
        Competition(root).scenes("train")


# ---- frames -------------------------------------------------------------------------------------------
def test_frames_follow_the_rule(drawn):
    scene = Competition(drawn).scenes("train")[0]
    whole = video.sample(scene.files["video"], video.FrameSampling(every=1))
    assert Competition(drawn).read(scene, "frames").shape == (8, 80, 64, 3)
    for rule in ({"count": 3}, {"every": 5}, {"per_second": 4}):
        frames = Competition(drawn, sampling=rule, size=32).read(scene, "frames")
        assert frames.dtype == np.uint8 and frames.shape[1:] == (40, 32, 3)
    np.testing.assert_array_equal(Competition(drawn, sampling={"every": 5}).read(scene, "frames"), whole[::5])


def test_a_rate_leaves_folders_out_and_says_so(drawn):
    competition = Competition(drawn, sampling={"per_second": 2})
    folders = {path.name for path in (drawn / "train" / "videos").iterdir() if path.is_dir()}
    assert folders and folders.isdisjoint(ids(competition.scenes("train")))
    assert {scene for kind, scene in found(competition) if kind == "unreadable video"} >= folders


def test_an_unreadable_test_video_is_an_error_without_a_fallback(drawn):
    competition = Competition(drawn)
    broken = competition.scenes("test")[-1]
    assert ("unreadable video", broken.id) in found(competition)
    with pytest.raises(DataError, match="scene 002.mp4.*002.mp4.*fallback: 0.5"):
        competition.read(broken, "frames")


def test_an_unreadable_test_video_gets_the_fallback(drawn, tmp_path):
    competition = Competition(drawn, fallback=0.25)
    whole, _, broken = competition.scenes("test")
    frames = competition.read(broken, "frames")
    assert len(frames) == 1 and not frames.any()
    assert "unreadable, score 0.250" in competition.panels(broken, 0.9)[0][0]
    competition.write_submission([(whole, 0.9), (broken, 0.9)], tmp_path)
    assert competition.read_submission(tmp_path, whole) == 0.9
    assert competition.read_submission(tmp_path, broken) == 0.25
    assert competition.lint(tmp_path, [whole, broken]) == []
    table = tmp_path / "submission.csv"
    table.write_text(table.read_text().replace("0.250", "0.900"))
    assert "not the fallback 0.250 (002.mp4)" in competition.lint(tmp_path, [whole, broken])[0]


def test_the_fallback_is_not_for_training_videos(root):
    competition = Competition(root, fallback=0.5)
    scene = competition.scenes("train")[0]
    scene.files["video"].write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        Competition(root, fallback=0.5).read(scene, "frames")


# ---- from frames to a score ---------------------------------------------------------------------------
def test_strategies_on_worked_cases():
    def score(probs, **given):
        return score_of_frames(np.array(probs), **{**DEFAULTS, **given})

    split = [0.9, 0.95, 0.1, 0.2]
    assert score(split) == pytest.approx(0.5375)
    assert score(split, strategy="confident") == pytest.approx(0.925)  # 2 of 4 are above .8: more than 2 in 5
    assert score([0.9, 0.95, 0.1, 0.2, 0.3], strategy=1) == pytest.approx(0.49)  # just 2 in 5
    assert score([0.1] * 9 + [0.9], strategy=1) == pytest.approx(0.18)  # just 9 in 10 below .2
    assert score([0.1] * 10 + [0.7], strategy=1) == pytest.approx(0.1)
    assert score(split, strategy=2, quantile=0.0) == 0.1
    assert score(split, strategy="quantile", quantile=0.5) == pytest.approx(0.55)
    assert [score(split, threshold=threshold) for threshold in (0.5, 0.6)] == [1.0, 0.0]
    assert score([1.0], clip=0.01) == 0.99


def test_confident_strategy_is_that_of_the_source_on_its_32_frames():
    def source(pred, t=0.8):
        fakes = np.count_nonzero(pred > t)
        if fakes > 32 // 2.5 and fakes > 11:
            return np.mean(pred[pred > t])
        return np.mean(pred[pred < 0.2]) if np.count_nonzero(pred < 0.2) > 0.9 * 32 else np.mean(pred)

    rng = np.random.default_rng(0)
    for spread in (0.2, 0.5, 1.5):
        for _ in range(60):
            probs = rng.beta(spread * rng.uniform(0.2, 3), spread, 32)
            mine = score_of_frames(probs, **{**DEFAULTS, "strategy": "confident"})
            assert mine == pytest.approx(source(probs), abs=1e-12)


@pytest.mark.parametrize("params, words", [
    ({"strategy": 3}, "strategy"), ({"strategy": "best"}, "strategy"), ({"quantile": 1.5}, "quantile"),
    ({"clip": 0.6}, "clip"), ({"speed": 1}, "decode.speed: unknown setting"),
    ({"postprocess": [{"name": "x"}]}, "postprocess"),
])  # fmt: skip
def test_unknown_settings_are_refused(tmp_path, params, words):
    with pytest.raises(ConfigError, match=words):
        Competition(tmp_path).decode({"cls": np.full((1, 1, 4), 9, np.uint8)}, params)


def test_count_is_tally_of_decode_at_every_point(tmp_path):
    competition = Competition(tmp_path)
    axes = {"strategy": (0.0, 1.0, 2.0), "quantile": (0.25, 0.75), "threshold": (0.0, 0.5)}
    grid = competition.grid(axes, {**competition.defaults(), "postprocess": []})
    rng = np.random.default_rng(1)
    for truth in (0, 1):
        levels = {"cls": rng.integers(0, 256, (1, 1, 7), dtype=np.uint8)}
        counts = competition.count(levels, truth, grid)
        assert counts.shape == (12, 2002) and counts.dtype == np.int64 and (counts.sum(1) == 1).all()
        for row, point in zip(counts, grid):
            np.testing.assert_array_equal(row, competition.tally(competition.decode(levels, point), truth))
    assert competition.decode({"cls": np.array([[[255, 0, 0]]], np.uint8)}, {}) == 0.333
    with pytest.raises(ConfigError, match="at most 5,000"):
        competition.grid({"quantile": tuple(np.linspace(0, 1, 6000))}, competition.defaults())


@pytest.mark.parametrize("metric", ["eer", "auc", "accuracy", "log_loss"])
def test_scores_are_finite_and_higher_is_better(tmp_path, metric):
    competition = Competition(tmp_path, metric=metric)
    answers = {"good": [(0.9, 1), (0.2, 0), (0.4, 1)], "bad": [(0.1, 1), (0.8, 0), (0.4, 1)]}
    counts = {name: np.stack([competition.tally(*pair) for pair in pairs]) for name, pairs in answers.items()}
    good, bad = (competition.scores(counts[name].sum(0)) for name in ("good", "bad"))
    assert next(iter(good)) == "score" and good["score"] > bad["score"]
    assert good["score"] == competition.score(counts["good"].sum(0)) and good["one_class"] == 0
    assert abs(good["score"]) == pytest.approx({"eer": 1 - good["eer"]}.get(metric, good[metric]))
    assert competition.class_scores(counts["good"].sum(0)).tolist() == [1.0, 0.5]
    alone = competition.scores(competition.tally(0.9, 1))
    assert all(map(np.isfinite, alone.values())) and alone["one_class"] == 1
    low, high = search.bootstrap(counts["good"], competition.score, n=50)
    assert low <= high
    details = sum(competition.detail(*pair) for pair in answers["good"])
    assert competition.tables(details)["confusion"] == {"not live": {"not live": 1, "live": 0},
                                                        "live": {"not live": 1, "live": 1}}  # fmt: skip


def test_panels_show_frames_under_truth_and_score(drawn):
    competition = Competition(drawn)
    ((title, sheet),) = competition.panels(competition.scenes("train")[1], 0.123)
    assert title == "not live, score 0.123" and sheet.shape == (2 * 200, 3 * 160, 3) and sheet.dtype == np.uint8
    frames = competition.read(competition.scenes("train")[1], "frames")
    last = cv2.resize(frames[-1], (160, 200), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(sheet[200:, 320:], last)
    few = Competition(drawn, sampling={"count": 4})
    ((title, sheet),) = few.panels(few.scenes("test")[0], 0.5)
    assert title == "score 0.500" and sheet.shape == (2 * 200, 3 * 160, 3) and (sheet[200:, 160:] == 255).all()


# ---- submission ---------------------------------------------------------------------------------------
def test_submission_comes_back(drawn, tmp_path):
    competition = Competition(drawn)
    scenes = competition.scenes("train")
    answers = [(scene, round(k / 7, 3)) for k, scene in enumerate(scenes[:7])]
    competition.write_submission(iter(answers), tmp_path)
    assert (tmp_path / "submission.csv").read_text().splitlines()[:2] == ["fname,liveness_score", "000.mp4,0.000"]
    assert [competition.read_submission(tmp_path, scene) for scene, _ in answers] == [answer for _, answer in answers]
    assert competition.lint(tmp_path, scenes[:7]) == []
    with pytest.raises(DataError, match="008.avi"):
        competition.read_submission(tmp_path, Scene("008.avi", {}))


def test_rows_keep_the_order_of_the_sample(drawn, tmp_path):
    competition = Competition(drawn, sample="sample_submission.csv", fallback=0.5)
    test = competition.scenes("test")
    competition.write_submission([(scene, 0.5) for scene in test], tmp_path)
    table = tmp_path / "submission.csv"
    assert [row.split(",")[0] for row in table.read_text().splitlines()[1:]] == ["002.mp4", "001.mp4", "000.mp4"]
    assert competition.lint(table) == competition.lint(table, test) == []
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *sorted(rows)]))
    for given in ({"scenes": test}, {"sample": drawn / "sample_submission.csv"}):
        assert "order" in competition.lint(table, **given)[0]
    # the sample says nothing about out-of-fold videos, though some have the same names
    train = competition.scenes("train")
    competition.write_submission([(scene, 0.5) for scene in train], tmp_path)
    assert [row.split(",")[0] for row in table.read_text().splitlines()[1:]] == ids(train)
    assert competition.lint(tmp_path, train) == []


@pytest.mark.parametrize("change, words", [
    (lambda rows: ["id,score", *rows[1:]], "expected the header 'fname,liveness_score'"),
    (lambda rows: rows[:-1], "missing, it was asked for (011.mp4)"),
    (lambda rows: [*rows, rows[1]], "more than once (000.mp4)"),
    (lambda rows: [*rows, "999.mp4,0.5"], "not one of the scenes asked for (999.mp4)"),
    (lambda rows: [*rows[:-1], "011.mp4,nan"], "score in [0, 1] (011.mp4)"),
    (lambda rows: [*rows[:-1], "011.mp4,"], "score in [0, 1] (011.mp4)"),
    (lambda rows: [*rows[:-1], "011.mp4,1.2"], "score in [0, 1] (011.mp4)"),
    (lambda rows: [f"{row},1" for row in rows], "12 rows: 3 instead of 2 fields (line 2, line 3, line 4, ...)"),
    (lambda rows: [*rows[:3], rows[3] + ",1", *rows[4:]], "1 row: 3 instead of 2 fields (line 4)"),
    (lambda rows: [], "expected rows below the header, got none"),
])  # fmt: skip
def test_linter_names_every_fault(drawn, tmp_path, change, words):
    competition = Competition(drawn)
    scenes = competition.scenes("train")
    competition.write_submission([(scene, 0.5) for scene in scenes], tmp_path)
    table = tmp_path / "submission.csv"
    table.write_text("\n".join(change(table.read_text().splitlines())))
    faults = competition.lint(tmp_path, scenes)
    (named,) = [fault for fault in faults if words in fault]
    others = [fault for fault in faults if fault != named]  # a row that cannot be read is missing too
    assert str(table) in named and (not others or "fields" in named or "below the header" in named)


def test_linter_says_when_there_is_nothing(tmp_path):
    assert "found nothing there" in Competition(tmp_path).lint(tmp_path / "nothing.csv")[0]


# ---- annotations --------------------------------------------------------------------------------------
def test_annotations_name_folders_frames_and_labels(tmp_path):
    for folder in ("run/a", "jump/b"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(1, 9):
            write_png(tmp_path / folder / f"img_{number:05d}.png", np.full((32, 40, 3), 10 * number, np.uint8))
    lines = ["run/a 1 4 1", "run/a 5 8 1", "jump/b 2 7 0", "jump/c 1 2 0", "jump/b 1 2 7"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    competition = Competition(tmp_path, annotations="list.txt", positive="run", sampling={"count": 2})
    train = competition.scenes("train")
    assert ids(train) == ["jump_b_2", "run_a_1", "run_a_5"]
    assert [scene.group for scene in train] == ["jump_b", "run_a", "run_a"]  # parts of a video stay together
    assert [competition.truth(scene) for scene in train] == [0, 1, 1]
    assert [competition.read(s, "frames")[:, 0, 0, 0].tolist() for s in train] == [[20, 70], [10, 40], [50, 80]]
    assert found(competition) == {("label without video", "jump_c"), ("label is not 0 or 1", "jump_b_1")}
    (tmp_path / "list.txt").write_text("run/a one 4 1")
    with pytest.raises(DataError, match="lines of folder"):
        Competition(tmp_path, annotations="list.txt").scenes("train")


def test_annotations_are_names_below_the_data_and_no_paths(tmp_path):
    root = tmp_path / "data"
    for folder in (root / "a", root / "b", tmp_path / "outside"):
        folder.mkdir(parents=True)
        write_png(folder / "img_00001.png", np.full((32, 40, 3), 90, np.uint8))
    lines = ["a 1 1 1", "b 1 1 0", "../outside 1 1 1", f"{tmp_path}/outside 1 1 1", "a/../../outside 1 1 0"]
    (root / "list.txt").write_text("\n".join(lines))
    competition = Competition(root, annotations="list.txt")
    assert ids(competition.scenes("train")) == ["a", "b"]
    assert [kind for kind, _ in found(competition)] == ["label without video"] * 3


@real
def test_real_clips_as_folders():
    competition = Competition(SHARED, annotations="annotations.txt", positive="running")
    train = competition.scenes("train")
    assert ids(train) == ["jumping_0001", "jumping_0002", "running_0001", "running_0002"]
    assert [competition.truth(scene) for scene in train] == [0, 0, 1, 1]
    assert competition.inspect() == []
    assert [len(Competition(SHARED, annotations="annotations.txt", sampling={"every": 1}).read(scene, "frames"))
            for scene in train] == [17, 18, 15, 15]  # fmt: skip


@real
def test_real_clips_encoded_to_mp4(tmp_path):
    clips = tmp_path / "train" / "videos"
    clips.mkdir(parents=True)
    rows = ["fname,liveness_score"]
    for folder in sorted(path for path in SHARED.glob("*/*") if path.is_dir()):
        frames = [read_image(path) for path in sorted(folder.iterdir())]
        name = f"{folder.parent.name}_{folder.name}.mp4"
        stream = cv2.VideoWriter(str(clips / name), cv2.VideoWriter_fourcc(*"mp4v"), 25, frames[0].shape[1::-1])
        for frame in frames:
            stream.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        stream.release()
        rows.append(f"{name},{int(folder.parent.name == 'running')}")
    (tmp_path / "train" / "label.csv").write_text("\n".join(rows))
    packed = Competition(tmp_path, sampling={"every": 1}, positive="running")
    loose = Competition(SHARED, annotations="annotations.txt", sampling={"every": 1}, positive="running")
    assert packed.inspect() == []
    for scene, original in zip(packed.scenes("train"), loose.scenes("train")):
        assert packed.truth(scene) == loose.truth(original)
        got, wanted = packed.read(scene, "frames"), loose.read(original, "frames")
        assert got.shape == wanted.shape and np.abs(got.astype(int) - wanted).mean() < 12
        bits = pairs.perceptual_hash(got[0]) ^ pairs.perceptual_hash(wanted[0])
        assert bits.bit_count() <= audit.DUPLICATE_BITS  # the audit would know them for the same


# ---- embedded set -------------------------------------------------------------------------------------
def test_embedded_set_is_the_same_each_time(tmp_path):
    written = []
    for name, scenes in (("a", 5), ("b", 8)):
        (tmp_path / name).mkdir()
        synthetic.write(tmp_path / name, scenes=scenes, test_scenes=2, size=64, seed=1)
        written.append({path.relative_to(tmp_path / name): path.read_bytes()
                        for path in (tmp_path / name).rglob("*") if path.is_file()})  # fmt: skip
    labels = Path("train/label.csv")
    assert written[1][labels].startswith(written[0][labels])
    assert all(written[1][path] == data for path, data in written[0].items() if path != labels)


def test_container_and_person_do_not_give_the_label_away(drawn):
    competition = Competition(drawn)
    pairs = {(scene.files["video"].suffix, competition.truth(scene)) for scene in competition.scenes("train")}
    assert pairs >= {(".mp4", 0), (".mp4", 1), (".avi", 0), (".avi", 1)}
    people = {(scene.group, competition.truth(scene)) for scene in competition.scenes("train")}
    assert len(people) == 8
