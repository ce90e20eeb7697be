"""The sample submission: it says what scenes are answered, how, in what order, under what header, everywhere."""

import numpy as np
import pytest
from owed import FIELDS, HEADERS, ids_of, make, nothing, opened, picture, rows_for, sample

from lib.competitions import NAMES, open_competition
from lib.competitions import sample as samples
from lib.errors import DataError
from lib.scenes.raster import write_png


def written(competition, folder):
    """Write a submission of the test scenes that says nothing; returns its lines."""
    scenes = competition.scenes("test")
    competition.write_submission([(scene, nothing(competition, scene)) for scene in scenes], folder)
    assert competition.lint(folder / "submission.csv", scenes) == []
    return (folder / "submission.csv").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_scenes_order_and_header_are_those_of_the_sample(name, tmp_path):
    first, second, third = ids_of(name)
    header = ",".join(("image", "kind", "target")[-FIELDS[name] :]) if FIELDS[name] == 3 else "image,target"
    root = make(name, tmp_path / "data")
    path = sample(name, root, [third, "unknown_00000009", first], header)
    (tmp_path / "handed").mkdir()
    competition = opened(name, root)
    assert [scene.id for scene in competition.scenes("test")] == sorted([third, "unknown_00000009", first])
    lines, expected = written(competition, tmp_path), path.read_text().splitlines()
    assert lines[0] == header
    fields = FIELDS[name] - 1
    assert [line.split(",")[:fields] for line in lines[1:]] == [row.split(",")[:fields] for row in expected[1:]]
    assert competition.lint(tmp_path / "submission.csv", sample=path) == []
    assert competition.owed.without_file == ("unknown_00000009",) and competition.owed.not_named == (second,)
    absent = next(scene for scene in competition.scenes("test") if scene.id == "unknown_00000009")
    assert absent.files == {} and competition.incomplete(absent).endswith("found no file of it")
    assert competition.labelled(absent) is False or name == "binary_rle"
    assert len(competition.scenes("train")) == 3
    answers = [(scene, nothing(competition, scene)) for scene in competition.scenes("test")]
    assert competition.submit(answers, tmp_path / "handed", competition.scenes("test")) == []
    assert (tmp_path / "handed/submission.csv").read_text().splitlines() == lines


@pytest.mark.parametrize("name", NAMES)
def test_without_a_sample_the_files_say_what_is_answered(name, tmp_path):
    root = make(name, tmp_path / "data")
    assert [scene.id for scene in opened(name, root).scenes("test")] == ids_of(name)
    sample(name, root, [])  # a header alone, as competitions with a hidden test set have it
    competition = opened(name, root)
    assert [scene.id for scene in competition.scenes("test")] == ids_of(name) and competition.owed is None
    assert written(competition, tmp_path)[0] == HEADERS[name]
    sample(name, root, ["q"])
    assert [scene.id for scene in opened(name, root, sample=None).scenes("test")] == ids_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_other_scenes_or_columns_is_refused_before_anything_is_trained(name, tmp_path):
    root = make(name, tmp_path / "data")
    sample(name, root, ["q_00000001", "r_00000001"])
    with pytest.raises(DataError, match=r"sample_submission.csv: .*found 2 ids of which none has a file .*'q_00000001"):
        opened(name, root).scenes("test")
    path = sample(name, root, [])
    path.write_text("one,two,three,four\nt1,a,b,c\n")
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"sample_submission.csv: expected .*one, two, three, four.*sample to null"):
            opened(name, root).scenes(split)
    path.write_text("")
    with pytest.raises(DataError, match="expected a header and rows of a sample submission, found an empty file"):
        opened(name, root).scenes("test")
    with pytest.raises(DataError, match="own.csv: expected a sample submission, found none; set data.options.sample"):
        opened(name, root, sample="own.csv").scenes("test")


@pytest.mark.parametrize("name", NAMES)
def test_no_test_files_at_all_are_no_test_set(name, tmp_path):
    root = make(name, tmp_path / "data", ())
    sample(name, root, ids_of(name))
    assert opened(name, root).scenes("test") == []


@pytest.mark.parametrize("name", ["binary_rle", "multiclass_rle", "labels"])
def test_ids_of_a_sample_may_be_names_of_files(name, tmp_path):
    root = make(name, tmp_path / "data")
    sample(name, root, ["t2.png", "t1.png", "t3.png"])
    competition = opened(name, root)
    assert [competition.row_id(scene) for scene in competition.scenes("test")] == ["t1.png", "t2.png", "t3.png"]
    lines = written(competition, tmp_path)
    assert [line.split(",")[0] for line in lines[1:]] == [
        row.split(",")[0] for row in rows_for(name, ["t2.png", "t1.png", "t3.png"])
    ]
    scene = competition.scenes("test")[0]
    np.testing.assert_array_equal(competition.read_submission(tmp_path, scene), nothing(competition, scene))


def test_columns_of_probabilities_stand_as_the_sample_has_them(tmp_path):
    root = make("labels", tmp_path / "data")
    path = sample("labels", root, [])
    path.write_text("file,dog,cat\nt3,0.5,0.5\nt1,0.5,0.5\nt2,0.5,0.5\n")
    competition = opened("labels", root, submit="probabilities")
    scenes = competition.scenes("test")
    answers = {"t1": [0.9, 0.1], "t2": [0.2, 0.8], "t3": [0.4, 0.6]}  # cat, dog
    competition.write_submission([(scene, np.array(answers[scene.id])) for scene in scenes], tmp_path)
    assert (tmp_path / "submission.csv").read_text().splitlines() == [
        "file,dog,cat", "t3,0.600000,0.400000", "t1,0.100000,0.900000", "t2,0.800000,0.200000"
    ]  # fmt: skip
    assert competition.lint(tmp_path, scenes) == []
    for scene in scenes:
        np.testing.assert_allclose(competition.read_submission(tmp_path, scene), answers[scene.id])
    with pytest.raises(DataError, match="expected a header of 2 columns .*set data.options.submit: probabilities"):
        opened("labels", root).scenes("train")
    path.write_text("file,dog,bird\nt3,0.5,0.5\n")
    with pytest.raises(DataError, match=r"expected a column for each of 2 classes, found others \(bird, cat\)"):
        opened("labels", root, submit="probabilities").scenes("train")
    path.write_text("file,label\nt3,cat\n")
    with pytest.raises(DataError, match="set data.options.submit: label"):
        opened("labels", root, submit="probabilities").scenes("train")


def test_probabilities_beside_labels_keep_a_header_of_their_own(tmp_path):
    root = make("labels", tmp_path / "data")
    sample("labels", root, ["t3", "t1", "t2"], "image,target")
    competition = opened("labels", root)
    assert written(competition, tmp_path)[0] == "image,target"
    beside = (tmp_path / "probabilities.csv").read_text().splitlines()
    assert beside[0] == "id,cat,dog" and [row.split(",")[0] for row in beside[1:]] == ["t3", "t1", "t2"]
    assert competition.lint(tmp_path, competition.scenes("test")) == []


@pytest.mark.parametrize("metric", ["dice", "object_map"])
def test_the_order_of_runs_is_kept_per_image_and_per_object(metric, tmp_path):
    root = make("binary_rle", tmp_path / "data")
    (root / "train.csv").write_text("id,rle\na0,1 3\na0,9 2\na1,5 4\na2,\n")  # objects one by one
    sample("binary_rle", root, ["t3", "t1", "t2"])
    competition = opened("binary_rle", root, metric=metric)
    answer = np.zeros((16, 16), np.int32)
    answer[2:4, 2:4], answer[8:9, 8:12] = 1, 2
    scenes = competition.scenes("test")
    competition.write_submission([(scene, answer) for scene in scenes], tmp_path)
    ids = [line.split(",")[0] for line in (tmp_path / "submission.csv").read_text().splitlines()[1:]]
    assert ids == (["t3", "t1", "t2"] if metric == "dice" else ["t3", "t3", "t1", "t1", "t2", "t2"])
    assert competition.lint(tmp_path, scenes) == []


@pytest.mark.parametrize(("texts", "listed", "written"), [
    (["b", "a"], {"a", "b"}, {"b": "b", "a": "a"}),
    (["b.png", "a.JPG"], {"a", "b"}, {"b": "b.png", "a": "a.JPG"}),
    (["b", "a"], {"a.mp4", "b.mp4"}, {"b.mp4": "b", "a.mp4": "a"}),
    (["cats/1.png", "dogs/1.png"], {"cats_1", "dogs_1"}, {"cats_1": "cats/1.png", "dogs_1": "dogs/1.png"}),
    (["img.v2"], {"img.v3"}, {"img.v2": "img.v2"}),  # no suffix of a file
    (["a"], {"a.png", "a.jpg"}, {"a": "a"}),  # which of the two is not said
    (["a.png", "a.jpg"], {"a"}, {"a": "a.png", "a.jpg": "a.jpg"}),
    (["a.png", "a"], {"a.png", "a"}, {"a.png": "a.png", "a": "a"}),
    (["2.0", "1"], {"0001", "0002"}, {"0002": "2.0", "0001": "1"}),
    (["1"], {"01", "001"}, {"1": "1"}),  # two could be meant
    (["1e5", "007", "7"], {"007", "1e5"}, {"1e5": "1e5", "007": "007", "7": "7"}),
])  # fmt: skip
def test_ids_match_whatever_their_suffix_and_folder(texts, listed, written):
    found = samples.owed(texts, listed)
    assert found.written == written and list(found.written) == list(written)
    assert set(found.without_file) == set(written) - listed and set(found.not_named) == listed - set(written)


def test_a_pair_without_its_twin_and_one_of_two_sizes_are_owed_an_answer(tmp_path):
    root = make("xview2", tmp_path / "data")
    (root / "test/images/test_post_00003.png").unlink()
    picture(root / "test/images/test_post_00004.png", 9)
    write_png(root / "test/images/test_post_00004.png", np.zeros((15, 16, 3), np.uint8))
    competition = opened("xview2", root)
    faults = {scene.id: competition.incomplete(scene) for scene in competition.scenes("test")}
    assert list(faults) == ["test_00003", "test_00004", "test_00005"] and faults["test_00005"] == ""
    assert faults["test_00003"].startswith("expected pre and post, found no post beside ")
    assert faults["test_00003"].endswith("test_pre_00003.png")
    assert "test_pre_00004.png of 16x16 pixels and " in faults["test_00004"]
    assert faults["test_00004"].endswith("test_post_00004.png of 16x15 pixels")
    sizes = {scene.id: competition.size(scene) for scene in competition.scenes("test")}
    assert sizes == {"test_00003": (16, 16), "test_00004": (1024, 1024), "test_00005": (16, 16)}


def test_whose_answer_is_owed_is_told_without_reading_labels(tmp_path, monkeypatch):
    root = make("binary_rle", tmp_path / "data")
    sample("binary_rle", root, ["t3", "t1"])
    competition = open_competition("binary_rle", root)  # how runs count pixels is not stated
    monkeypatch.setattr(type(competition), "labelled_runs", lambda self: pytest.fail("the runs were read"))
    assert [scene.id for scene in competition.scenes("test")] == ["t1", "t3"]


@pytest.mark.parametrize(("header", "order"), [
    ("ImageId,EncodedPixels,ClassId", (0, 2, 1)),  # Severstal's
    ("ClassId,ImageId,EncodedPixels", (1, 0, 2)), ("EncodedPixels,ClassId,file", (2, 1, 0)), ("a,b,c", (0, 1, 2)),
    ("id,predicted,class", (0, 2, 1)), ("class,image,pixels", (1, 0, 2)),
])  # fmt: skip
def test_columns_of_classes_stand_where_the_sample_has_them(header, order, tmp_path):
    root = make("multiclass_rle", tmp_path / "data")
    path = root / "sample_submission.csv"

    def line(*fields):  # id, class, runs
        return ",".join(fields[order.index(column)] for column in range(3))

    rows = [(i, kind, "1 1") for i in ("t3", "t1", "t2") for kind in ("2", "1")]
    path.write_text("\n".join([header, *(line(*row) for row in rows)]) + "\n")
    competition = opened("multiclass_rle", root)
    scenes = competition.scenes("test")
    assert [scene.id for scene in scenes] == ["t1", "t2", "t3"] and competition.owing() == []
    answers = {scene.id: np.zeros((2, 16, 16), np.uint8) for scene in scenes}
    answers["t1"][1, 2:4, 0] = answers["t3"][0, 0, 0] = 1
    assert competition.submit([(scene, answers[scene.id]) for scene in scenes], tmp_path, scenes) == []
    runs = {("t1", "2"): "3 2", ("t3", "1"): "1 1"}
    expected = [header, *(line(i, kind, runs.get((i, kind), "")) for i, kind, _ in rows)]
    assert (tmp_path / "submission.csv").read_text().splitlines() == expected
    assert competition.lint(tmp_path / "submission.csv", sample=path) == competition.lint(tmp_path, scenes) == []
    for scene in scenes:
        np.testing.assert_array_equal(competition.read_submission(tmp_path, scene), answers[scene.id])
    broken = [*expected[:2], expected[2].replace(line("t3", "1", "1 1"), line("t3", "1", "9999 1")), *expected[3:]]
    (tmp_path / "submission.csv").write_text("\n".join(broken))
    (fault,) = competition.lint(tmp_path / "submission.csv", scenes)
    assert "1 row: a run outside of the image (t3,1)" in fault


def test_a_folder_in_which_the_image_is_missing_is_owed_an_answer(tmp_path):
    for place in ("stage1_train/a/images/a", "stage1_train/a/masks/m", "stage1_test/t/images/t"):
        picture(tmp_path / f"{place}.png", len(place))
    write_png(tmp_path / "stage1_train/a/masks/m.png", np.eye(16, dtype=np.uint8) * 255)
    (tmp_path / "stage1_test/u/images").mkdir(parents=True)
    competition = opened("binary_rle", tmp_path, domain="colour")
    assert [(scene.id, set(scene.files)) for scene in competition.scenes("test")] == [("t", {"image"}), ("u", set())]
    assert [(f.kind, f.scene) for f in competition.inspect()] == [("folder without its one image", "u")]
    assert [line.split(",")[0] for line in written(competition, tmp_path)[1:]] == ["t", "u"]


def test_a_folder_of_no_frames_is_a_video_that_cannot_be_read(tmp_path):
    root = make("videos", tmp_path / "data")
    (root / "test/videos/t2/1.png").unlink()
    competition = opened("videos", root, fallback=0.25)
    assert [scene.id for scene in competition.scenes("test")] == ["t1", "t2", "t3"]
    assert [(f.kind, f.scene) for f in competition.inspect()] == [("unreadable video", "t2")]
    assert "t2,0.250" in written(competition, tmp_path)
