"""The adapter of labelled pictures: both layouts, their faults, counts and scores, and the submission."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from lib.competitions.contract import Scene
from lib.competitions.labels import FLOOR, Competition
from lib.competitions.synthetic import labels as synthetic
from lib.errors import ConfigError, DataError

FOUR = {"classes": ["no-damage", "minor", "major", "destroyed"]}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The embedded set; read only."""
    root = tmp_path_factory.mktemp("labels")
    synthetic.write(root, scenes=16, test_scenes=3, size=64, seed=3)
    return root


@pytest.fixture
def root(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "set")


def found(competition):
    return {(finding.kind, finding.scene) for finding in competition.inspect()}


def relabel(root, change):
    path = root / "train.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def levels(*values):
    """One picture's levels (C, 1, 1)."""
    return {"cls": np.array(values, np.uint8)[:, None, None]}


# ---- lists --------------------------------------------------------------------------------------------
def test_a_table_says_label_group_domain_and_split(drawn):
    competition = Competition(drawn)
    assert competition.classes == synthetic.CLASSES == competition.tasks["cls"].classes == competition.flags
    train = competition.scenes("train")
    assert [scene.id for scene in train] == [f"{k:03d}" for k in range(16)]
    assert [competition.truth(scene) for scene in train] == [k // 2 % 4 for k in range(16)]
    assert (train[9].group, train[9].domain) == ("object_04", "dusk")
    assert competition.strata(train[2]) == {"blots": False, "checks": True, "rings": False, "stripes": False}
    target = competition.target(train[4], "cls")
    assert target.tolist() == [[2]] and target.dtype == np.uint8
    assert competition.published_split()["005"] == "val" and competition.published_split()["004"] == "train"
    assert [scene.id for scene in competition.scenes("test")] == ["1000003", "1000004", "1000005"]
    pickle.loads(pickle.dumps(competition)).read(train[0])


def test_every_picture_is_one_frame_of_three_colours(drawn):
    competition = Competition(drawn)
    shapes = {competition.read(scene, "image").shape for scene in competition.scenes("train")}
    assert {shape[0] for shape in shapes} == {1} and {shape[3] for shape in shapes} == {3}
    assert len({shape[1:3] for shape in shapes}) == 4
    suffixes = {scene.files["image"].suffix for scene in competition.scenes("train")}
    planes = {cv2.imread(str(p), cv2.IMREAD_UNCHANGED).shape[2:] for p in (drawn / "train").glob("*.png")}
    assert suffixes == {".png", ".jpg"} and planes == {(), (3,), (4,)}
    assert found(competition) == set()


def test_the_embedded_set_is_the_same_every_time(drawn, tmp_path):
    synthetic.write(tmp_path, scenes=16, test_scenes=3, size=64, seed=3)
    files = sorted(path.relative_to(drawn) for path in drawn.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((drawn / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_folders_are_classes_where_there_is_no_table(root):
    for line in (root / "train.csv").read_text().splitlines()[1:]:
        name, label = line.split(",")[:2]
        (root / "train" / label).mkdir(exist_ok=True)
        (path,) = (root / "train").glob(f"{name}.*")
        path.rename(root / "train" / label / path.name)
    (root / "train.csv").unlink()
    competition = Competition(root)
    assert competition.classes == synthetic.CLASSES
    scenes = competition.scenes("train")
    assert len(scenes) == 16 and scenes[0].id == "blots_000" and scenes[-1].id == "stripes_015"
    assert [competition.truth(scene) for scene in scenes] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert all(scene.group == "" for scene in scenes) and competition.published_split() == {}
    turned = Competition(root, classes=["stripes", "rings", "checks", "blots"])
    assert turned.truth(turned.scenes("train")[0]) == 3


def test_ids_may_carry_a_suffix_and_columns_other_names(root):
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    shutil.copy(root / "train/000.png", root / "test/new.png")
    (root / "sample_submission.csv").unlink()
    names = {path.stem: path.name for path in (root / "train").iterdir()}
    relabel(root, lambda rows: ["file,kind,thing,domain,split", *(names[row[:3]] + row[3:] for row in rows[1:])])
    columns = {"id": "file", "label": "kind", "group": "thing"}
    competition = Competition(root, columns=columns)
    assert competition.scenes("train")[2].id == "002.jpg" and competition.scenes("train")[2].group == "object_01"
    assert [scene.id for scene in competition.scenes("test")] == ["new.png"]
    with pytest.raises(DataError, match="found no thing.*|found no id.*"):
        Competition(root, columns={"group": "thing"})


@pytest.mark.parametrize(("options", "words"), [
    ({"metric": "eer"}, "metric: expected one of accuracy"), ({"submit": "rle"}, "submit: expected one of label"),
    ({"columns": {"name": "x"}}, "columns: expected id"), ({"classes": ["one"]}, "2 to 254 names"),
    ({"classes": ["a", "a"]}, "different names"), ({"classes": ["a b", "a-b"]}, "differ in letters"),
    ({"classes": ["fold", "x"]}, "none of id, fold, group"), ({"classes": [str(k) for k in range(255)]}, "got 255"),
])  # fmt: skip
def test_impossible_options_are_refused(drawn, options, words):
    with pytest.raises(ConfigError, match=words):
        Competition(drawn, **options)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataError, match="train.csv, or a folder of pictures per class.*data.root"):
        Competition(tmp_path)
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/1.png").touch()
    with pytest.raises(DataError, match="none whose label is one of b, c"):
        Competition(tmp_path, classes=["b", "c"]).scenes("train")


# ---- data doctor --------------------------------------------------------------------------------------
def test_faults_are_named_and_left_out(root):
    train = root / "train"
    (train / "000.png").write_bytes((train / "000.png").read_bytes()[:200])
    (train / "001.png").unlink()
    cv2.imwrite(str(train / "006.png"), np.zeros((20, 20, 3), np.uint8))
    cv2.imwrite(str(train / "extra.png"), np.full((20, 20, 3), 9, np.uint8))
    (train / "notes.txt").write_text("not a picture")
    relabel(root, lambda rows: [*(row.replace("003,checks", "003,zebra") for row in rows), rows[5], "007,rings,,,"])
    competition = Competition(root, classes=[*synthetic.CLASSES, "spots"])
    assert found(competition) == {
        ("unreadable picture", "000"), ("label without picture", "001"), ("picture all black", "006"),
        ("picture without label", "extra.png"), ("label is none of the classes", "003"), ("label given twice", "004"),
        ("label given twice", "007"), ("class without picture", "spots"),
    }  # fmt: skip
    used = {scene.id for scene in competition.scenes("train")}
    assert used == {f"{k:03d}" for k in range(16)} - {"001", "003", "007"}
    with pytest.raises(DataError, match="scene 000: .*000.png"):
        competition.read(competition.scenes("train")[0])


# ---- answers ------------------------------------------------------------------------------------------
def test_gains_weigh_the_classes_and_ties_go_to_the_lower_one(drawn):
    competition = Competition(drawn)
    four = levels(102, 51, 0, 102)
    np.testing.assert_array_equal(competition.decode(four, {}), [0.4, 0.2, 0, 0.4])
    assert competition.decode(four, {"gain_stripes": 1.5}).argmax() == 3
    np.testing.assert_array_equal(competition.decode(four, {"gain_blots": 0, "gain_stripes": 0}), [0, 1, 0, 0])
    np.testing.assert_array_equal(competition.decode(levels(0, 0, 0, 0), {"postprocess": []}), [0.25] * 4)
    two_frames = {"cls": np.array([[[200, 0]], [[55, 255]], [[0, 0]], [[0, 0]]], np.uint8)}
    np.testing.assert_array_equal(competition.decode(two_frames, {}), np.round([200 / 510, 310 / 510, 0, 0], 6))
    for params in ({"gain_zebra": 1}, {"gain_rings": -1}, {"postprocess": [{"name": "x"}]}):
        with pytest.raises(ConfigError):
            competition.decode(four, params)


def test_scores_equal_those_of_a_plain_loop(tmp_path):
    names = [f"c{k}" for k in range(7)]
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.png").touch()
    rng = np.random.default_rng(0)
    competition = Competition(tmp_path)
    truths = rng.integers(0, 6, 60)  # class 6 never is the truth
    answers = [competition.decode({"cls": rng.integers(0, 40, (7, 1, 1), np.uint8)}, {}) for _ in truths]
    scores = competition.scores(sum(competition.tally(a, int(t)) for a, t in zip(answers, truths)))
    calls = [max(range(7), key=lambda c: (a[c], -c)) for a in answers]
    ranked = [sorted(range(7), key=lambda c: (-a[c], c)) for a in answers]
    f1 = []
    for c in range(7):
        tp = sum(call == t == c for call, t in zip(calls, truths))
        f1.append(2 * tp / (calls.count(c) + list(truths).count(c)))
    assert scores["accuracy"] == scores["score"] == pytest.approx(np.mean(np.array(calls) == truths))
    assert scores["top5"] == pytest.approx(np.mean([t in order[:5] for order, t in zip(ranked, truths)]))
    assert scores["macro_f1"] == pytest.approx(np.mean(f1))
    assert [scores[f"f1_{name}"] for name in names] == pytest.approx(f1)
    losses = [-np.log(max(a[t], FLOOR)) for a, t in zip(answers, truths)]
    assert scores["log_loss"] == pytest.approx(np.mean(losses), abs=1e-8)
    for metric, sign in (("macro_f1", 1), ("log_loss", -1)):
        other = Competition(tmp_path, metric=metric)
        total = sum(other.tally(a, int(t)) for a, t in zip(answers, truths))
        assert other.scores(total)["score"] == pytest.approx(sign * scores[metric])


def test_a_class_in_neither_truth_nor_answer_is_left_out_of_the_mean(drawn):
    competition = Competition(drawn)
    counts = competition.tally(competition.decode(levels(255, 0, 0, 0), {}), 0)
    scores = competition.scores(counts)
    assert scores["macro_f1"] == 1 and scores["f1_rings"] == 0 and "top5" not in scores
    nothing = competition.scores(np.zeros_like(counts))
    assert nothing["accuracy"] == 0 and nothing["log_loss"] == pytest.approx(np.log(4))
    assert all(np.isfinite(value) for value in nothing.values())


def test_counting_a_grid_is_tallying_every_point(drawn):
    competition = Competition(drawn)
    grid = competition.grid({"gain_rings": [0.5, 1, 3], "gain_blots": [1, 2]}, {})
    assert grid.shape == (3, 2)
    rng = np.random.default_rng(1)
    for truth in range(4):
        some = {"cls": rng.integers(0, 256, (4, 1, 3), np.uint8)}
        expected = [competition.tally(competition.decode(some, point), truth) for point in grid.points]
        np.testing.assert_array_equal(competition.count(some, truth, grid), expected)
    tables = competition.tables(competition.detail(competition.decode(levels(0, 0, 9, 0), {}), 1))
    assert tables["confusion"]["checks"] == {"blots": 0, "checks": 0, "rings": 1, "stripes": 0}


def test_the_report_shows_the_picture_and_says_both(drawn):
    competition = Competition(drawn)
    answer = competition.decode(levels(0, 255, 0, 0), {})
    ((title, picture),) = competition.panels(competition.scenes("train")[0], answer)
    assert title == "blots, answer checks 1.00" and picture.shape[2] == 3 and picture.dtype == np.uint8
    assert competition.panels(competition.scenes("test")[0], answer)[0][0] == "answer checks 1.00"


# ---- submission ---------------------------------------------------------------------------------------
def answered(competition, split="test"):
    rng = np.random.default_rng(5)
    scenes = competition.scenes(split)
    return [(s, competition.decode({"cls": rng.integers(0, 256, (4, 1, 1), np.uint8)}, {})) for s in scenes]


@pytest.mark.parametrize("submit", ["label", "probabilities"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_submission_comes_back_as_it_was(root, tmp_path, submit, split):
    if submit == "probabilities":
        (root / "sample_submission.csv").unlink()
    competition = Competition(root, submit=submit)
    pairs = answered(competition, split)
    files = competition.write_submission(iter(pairs), tmp_path)
    assert [path.name for path in files] == ["submission.csv", "probabilities.csv"][: 2 if submit == "label" else 1]
    for scene, answer in pairs:
        np.testing.assert_array_equal(competition.read_submission(tmp_path, scene), answer)
    assert competition.lint(tmp_path, [scene for scene, _ in pairs]) == []
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    if submit == "label":
        first, answer = max(pairs, key=lambda p: p[0].id) if split == "test" else pairs[0]  # the sample is not sorted
        assert lines[:2] == ["id,label", f"{first.id},{competition.classes[int(answer.argmax())]}"]
    else:
        assert lines[0] == "id,blots,checks,rings,stripes"
    with pytest.raises(DataError, match="expected a row"):
        competition.read_submission(tmp_path, Scene("zebra", {}))


@pytest.mark.parametrize(("change", "words"), [
    (lambda rows: ["id,class", *rows[1:]], "expected the header"),
    (lambda rows: rows[:-1], "missing"),
    (lambda rows: [*rows, "zebra,rings"], "not one of the pictures"),
    (lambda rows: [*rows, rows[1]], "more than once"),
    (lambda rows: [*rows[:-1], rows[-1].split(",")[0] + ",zebra"], "none of the classes"),
    (lambda rows: [*rows[:-1], rows[-1] + ",1"], "expected 2 fields"),
    (lambda rows: [rows[0], *rows[:0:-1]], "order of rows"),
])  # fmt: skip
def test_a_broken_submission_is_told(drawn, tmp_path, change, words):
    competition = Competition(drawn)
    competition.write_submission(answered(competition), tmp_path)
    path = tmp_path / "submission.csv"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    assert any(words in fault for fault in competition.lint(tmp_path, competition.scenes("test")))


def test_probabilities_are_linted_and_must_agree_with_the_labels(drawn, tmp_path):
    competition = Competition(drawn)
    ((first, _), *_) = pairs = answered(competition)
    other = [(s, np.roll(a, 1)) for s, a in pairs]
    competition.write_submission(iter(pairs), tmp_path)
    kept = (tmp_path / "submission.csv").read_text()
    competition.write_submission(iter(other), tmp_path)
    (tmp_path / "submission.csv").write_text(kept)
    assert any("not the most probable" in fault for fault in competition.lint(tmp_path))
    path = tmp_path / "probabilities.csv"
    for text, words in (("nan,0,0,1", r"in \[0, 1\]"), ("1,1,0,0", "add up to 1"), ("1,0,0", "expected 5 fields")):
        path.write_text(f"id,blots,checks,rings,stripes\n{first.id},{text}\n")
        (fault,) = [f for f in competition.lint(tmp_path, [first]) if "probabilities.csv" in f]
        assert words.replace("\\", "") in fault
