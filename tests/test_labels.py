"""The adapter of labelled pictures: both layouts, their faults, counts and scores, and the submission."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from lib.competitions import open_competition
from lib.competitions.contract import Scene
from lib.competitions.labels import FLOOR
from lib.competitions.synthetic import labels as synthetic
from lib.errors import ConfigError, DataError


def Competition(root, **options):
    """Open the competition as an experiment does."""
    return open_competition("labels", root, options)


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
        Competition(root, columns={"group": "thing"}).scenes("train")


@pytest.mark.parametrize(("options", "words"), [
    ({"metric": "eer"}, "metric: expected 'accuracy'"), ({"submit": "rle"}, "submit: expected 'label'"),
    ({"columns": {"lable": "x"}}, "columns.lable: unknown key; did you mean label"),
    ({"classes": ["one"]}, "2 to 30000 names"), ({"classes": [str(k) for k in range(30_001)]}, "found 30001"),
    ({"classes": ["a", "a"]}, "differ in letters"), ({"classes": ["a b", "c", "a-b"]}, "found 'a b', 'a-b'"),
    ({"classes": ["fold", "x"]}, "none of id, fold, group, domain"),
    ({"classes": [False, True]}, "found False, True; quote them: YAML reads no, yes, on, off"),
    ({"classes": [0, 1]}, "quote them"), ({"grup": "x"}, "data.options.grup: unknown key; did you mean group"),
    ({"group": "("}, "data.options.group: expected a regular expression"), ({"test": 3}, "data.options.test"),
])  # fmt: skip
def test_impossible_options_are_refused(drawn, options, words):
    with pytest.raises(ConfigError, match=words):
        Competition(drawn, **options)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataError, match="train.csv, or a folder of pictures per class.*data.root"):
        Competition(tmp_path).scenes("train")
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/1.png").touch()
    with pytest.raises(DataError, match="a label out of b, c"):
        Competition(tmp_path, classes=["b", "c"]).scenes("train")


def test_a_test_set_may_be_denied_and_a_stated_one_must_be_there(root):
    assert len(Competition(root).scenes("test")) == 3 and Competition(root, test=None).scenes("test") == []
    assert found(Competition(root, test=None)) == set()
    with pytest.raises(DataError, match="private.*data.options.test"):
        Competition(root, test="private").scenes("test")
    shutil.rmtree(root / "test")
    assert Competition(root).scenes("test") == []


def test_test_pictures_alone_can_be_answered(root, tmp_path):
    shutil.rmtree(root / "train")
    (root / "train.csv").unlink()
    competition = Competition(root, classes=synthetic.CLASSES)
    pairs = [(scene, np.array([0.1, 0.2, 0.3, 0.4])) for scene in competition.scenes("test")]
    assert competition.read(pairs[0][0]).shape[0] == 1 and len(pairs) == 3
    competition.write_submission(pairs, tmp_path)
    assert competition.lint(tmp_path, competition.scenes("test")) == []


def test_group_and_domain_may_be_found_in_the_id(root):
    relabel(root, lambda rows: ["id,label,thing", *(",".join(row.split(",")[:3]) for row in rows[1:])])
    competition = Competition(root, group="^(..).", domain="thing")  # the one is no column, the other is
    assert {(scene.id[:2], scene.group) for scene in competition.scenes("train")} == {("00", "00"), ("01", "01")}
    assert competition.scenes("train")[9].domain == "object_04"
    assert competition.scenes("test")[0].group == "10" and found(competition) == set()
    with pytest.raises(ConfigError, match=r"data.options.group: expected a column of the table \(id, label, thing\)"):
        Competition(root, group="person").scenes("train")
    assert ("id in which group finds nothing", "010") in found(Competition(root, group="^00"))


def test_a_data_source_is_a_column_or_in_the_id_or_else_the_domain(root):
    relabel(
        root, lambda rows: [rows[0] + ",source", *(f"{row},{'web' if k % 2 else ''}" for k, row in enumerate(rows[1:]))]
    )
    assert [scene.data_source for scene in Competition(root).scenes("train")[7:10]] == ["web", "dusk", "web"]
    scenes = Competition(root, source="^0(.)").scenes("train")
    assert {scene.id[1] for scene in scenes} == {"0", "1"} and all(s.data_source == s.id[1] for s in scenes)
    assert Competition(root, source="group").scenes("train")[9].data_source == "object_04"
    assert Competition(root, source="group").scenes("train")[9].domain == "dusk"


def test_groups_from_file_names_in_a_folder_per_class(tmp_path):
    for name in ("cat/tom_1", "cat/tom_2", "dog/rex_1", "dog/more/rex_2"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "train" / f"{name}.png"), np.full((8, 8, 3), 9, np.uint8))
    scenes = Competition(tmp_path, group="_([a-z]+)_[0-9]").scenes("train")
    assert [(s.id, s.group) for s in scenes] == [
        ("cat_tom_1", "tom"), ("cat_tom_2", "tom"), ("dog_more_rex_2", "rex"), ("dog_rex_1", "rex")
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_ids_may_be_paths_and_pictures_lie_in_sub_folders(tmp_path, suffix):
    names = {"train": ("cats/1", "cats/2", "dogs/1", "dogs/old/3"), "test": ("a/1", "b/1")}
    for split, places in names.items():
        for number, place in enumerate(places):
            (tmp_path / split / place).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / split / f"{place}.png"), np.eye(8, dtype=np.uint8) + np.uint8(9 + number))
    rows = [f"{place}{suffix},{place[:3]}" for place in names["train"]]
    (tmp_path / "train.csv").write_text("\n".join(["id,label", *rows]))
    competition = Competition(tmp_path, group="^[a-z]+/(.)")
    flat = [place.replace("/", "_") + suffix for place in names["train"]]
    assert [scene.id for scene in competition.scenes("train")] == flat and found(competition) == set()
    assert [scene.group for scene in competition.scenes("train")] == ["1", "2", "1", "o"]
    assert [competition.truth(scene) for scene in competition.scenes("train")] == [0, 0, 1, 1]
    for split in ("train", "test"):
        scenes = competition.scenes(split)
        out = tmp_path / f"out_{split}"
        out.mkdir()
        competition.write_submission([(scene, np.array([0.25, 0.75])) for scene in scenes], out)
        written = [row.split(",")[0] for row in (out / "submission.csv").read_text().splitlines()[1:]]
        assert written == [f"{place}{suffix}" for place in names[split]]
        assert competition.lint(out, scenes) == competition.lint(out) == []
        assert competition.read_submission(out, scenes[0]).tolist() == [0.25, 0.75]


def test_names_alone_are_ids_where_no_other_picture_has_them(tmp_path):
    for place in ("cats/1", "cats/2", "dogs/1", "dogs/3"):
        (tmp_path / "train" / place).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "train" / f"{place}.png"), np.full((8, 8, 3), 9, np.uint8))
    (tmp_path / "train.csv").write_text("id,label\n1,cat\n2,cat\n3,dog\n")
    competition = Competition(tmp_path)
    assert [scene.id for scene in competition.scenes("train")] == ["2", "3"]
    (finding,) = [finding for finding in competition.inspect() if finding.kind == "label without picture"]
    assert finding.scene == "1" and finding.detail == "2 have this name; ids must be paths"


def test_settings_are_checked_without_data(tmp_path):
    stated, told = Competition(tmp_path, classes=["cat", "dog"]), Competition(tmp_path)
    for competition in (stated, told):
        assert competition.faults({"gain_cat": 2}, {"gain_dog": [1, 2]}) == []
        said = "\n".join(competition.faults({"gain_cat": float("nan"), "threshold": 1}, {}, [[{"name": "x"}]]))
        assert "decode.gain_cat: expected a number from 0 to 1000" in said and "no post-processing steps" in said
        assert "decode.threshold: unknown setting" in said
    assert "did you mean gain_cat" in stated.faults({"gain_cta": 1}, {})[0]


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
        ("unreadable image", "000"), ("label without picture", "001"), ("image all black", "006"),
        ("image without label", "extra.png"), ("image of one colour", "extra.png"),
        ("label is none of the classes", "003"), ("row written twice, read once", "train.csv line 18"),
        ("label given twice", "007"), ("class without picture", "spots"),
        ("file beside pictures or videos that is none", "train/notes.txt"),
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
        expected = [competition.tally(competition.decode(some, point), truth) for point in grid]
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
    (lambda rows: [*rows, "zebra,rings"], "not one of the scenes asked for (zebra)"),
    (lambda rows: [*rows, rows[1]], "more than once"),
    (lambda rows: [*rows[:-1], rows[-1].split(",")[0] + ",zebra"], "none of the classes"),
    (lambda rows: [*rows[:-1], rows[-1] + ",1"], "3 instead of 2 fields"),
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
    for text, words in (("nan,0,0,1", r"in \[0, 1\]"), ("1,1,0,0", "add up to 1"), ("1,0,0", "4 instead of 5 fields")):
        path.write_text(f"id,blots,checks,rings,stripes\n{first.id},{text}\n")
        faults = [f for f in competition.lint(tmp_path, [first]) if "probabilities.csv" in f]
        assert any(words.replace("\\", "") in fault for fault in faults)
