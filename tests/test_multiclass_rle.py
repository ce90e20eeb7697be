"""UW-Madison and Severstal: what is written natively reads back, scores as slow loops do, and is submitted as asked."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lib.competitions import open_competition
from lib.competitions.synthetic import multiclass_rle as synthetic
from lib.errors import ConfigError, DataError
from lib.scenes import raster, rle
from lib.tasks import MulticlassMask, MultilabelMask

SIZE = 96
ORGANS = {
    "classes": list(synthetic.CLASSES),
    "train": "train/*/*/scans/*.png",
    "test": "test/*/*/scans/*.png",
    "id": r"(case\d+_day\d+)/scans/(slice_\d+)",
    "group": r"case\d+",
    "origin": 1,
}
STEEL = {"classes": ["1", "2", "3"], "origin": 1}


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    root = tmp_path_factory.mktemp("organs")
    synthetic.write(root, scenes=16, test_scenes=3, size=SIZE, seed=1)
    return root


@pytest.fixture(scope="module")
def steel(tmp_path_factory):
    root = tmp_path_factory.mktemp("steel")
    synthetic.write_flat(root, scenes=16, test_scenes=3, size=SIZE, seed=1)
    return root


def opened(root, **options):
    return open_competition("multiclass_rle", root, options)


def drawn(split="train", count=16):
    """The masks as they were drawn, before any file."""
    return {f"case{c}_day{d}_slice_{n:04d}": masks for c, d, n, _, masks in synthetic._drawn(split, count, SIZE, 1)}


def noisy(competition, scene, seed=0):
    """Levels of a network that is roughly right."""
    (task,) = competition.tasks.values()
    rng = np.random.default_rng([seed, *scene.id.encode()])
    right = task.truth(competition.target(scene, "loc")).astype(np.float32)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, plane.shape), 2) for plane in right])
    return {"loc": np.clip(150 * right + 50 + 350 * noise, 0, 255).astype(np.uint8)}


# ---- reading ------------------------------------------------------------------------------------------
def test_scans_have_ids_cases_and_all_classes(organs):
    competition = opened(organs, **ORGANS)
    scenes = competition.scenes("train")
    assert [scene.id for scene in scenes] == sorted(drawn())
    assert {scene.group for scene in scenes} == {"case101", "case102"}
    assert competition.tasks == {"loc": MultilabelMask(synthetic.CLASSES)}
    for scene in scenes:
        masks = drawn()[scene.id]
        np.testing.assert_array_equal(competition.truth(scene), masks)
        target = competition.target(scene, "loc")
        assert target.dtype == np.uint8
        for c, mask in enumerate(masks):
            np.testing.assert_array_equal(target >> c & 1, mask)
        assert competition.strata(scene) == {name: bool(m.any()) for name, m in zip(synthetic.CLASSES, masks)}
    assert any((masks.sum(0) > 1).any() for masks in drawn().values()), "classes overlap"
    assert [s.id for s in competition.scenes("test")] == [f"case201_day0_slice_000{k}" for k in (1, 2, 3)]
    assert opened(organs, **{**ORGANS, "test": None}).scenes("test") == []
    assert competition.inspect() == []
    assert competition.remarks()[0].startswith("RLE order detected: row order from 1")
    with pytest.raises(DataError, match="scene case201_day0_slice_0001: expected rows in train.csv"):
        competition.truth(competition.scenes("test")[0])


def test_steel_without_rows_has_no_class_and_ids_keep_their_suffix(steel):
    competition = opened(steel, **STEEL)
    scenes = competition.scenes("train")
    with open(steel / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(scenes) == 16 and {row["ImageId"] for row in rows} < {scene.id for scene in scenes}
    empty = [scene for scene in scenes if not competition.truth(scene).any()]
    assert len(empty) == 4 and all(competition.strata(scene) == {"1": False, "2": False, "3": False} for scene in empty)
    for row in rows:
        (scene,) = [scene for scene in scenes if scene.id == row["ImageId"]]
        mask = rle.decode(row["EncodedPixels"], (SIZE, round(1.15 * SIZE)))
        np.testing.assert_array_equal(competition.truth(scene)[int(row["ClassId"]) - 1], mask)
    assert all(scene.id.endswith(".png") and scene.group == "" for scene in competition.scenes("test"))
    assert competition.form.columns == ("ImageId", "ClassId", "EncodedPixels") and competition.inspect() == []


def test_where_empty_masks_are_listed_an_image_without_rows_has_no_label(organs, tmp_path):
    (tmp_path / "train").symlink_to(organs / "train")
    lines = (organs / "train.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("case101_day0_slice_0001")]
    kept += ["case101_day0_slice_0002,liver,1 2", "ghost,stomach,"]
    (tmp_path / "train.csv").write_text("\ufeff" + "\n".join(kept) + "\n", encoding="utf-8")
    competition = opened(tmp_path, **ORGANS)
    assert len(competition.scenes("train")) == 15
    found = {(f.kind, f.scene) for f in competition.inspect()}
    assert found == {("image without label", "case101_day0_slice_0001"), ("truth without image", "ghost"),
                     ("class not in data.options.classes", "liver")}  # fmt: skip


def test_broken_runs_leave_the_scene_out(organs, tmp_path):
    (tmp_path / "train").symlink_to(organs / "train")
    text = (organs / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("slice_0001,stomach,", "slice_0001,stomach,9 2 4 1", 1))
    competition = opened(tmp_path, **{**ORGANS, "order": "row"})
    assert len(competition.scenes("train")) == 15
    (finding,) = competition.inspect()
    assert (finding.kind, finding.scene) == ("label cannot be used", "case101_day0_slice_0001")
    assert "runs out of order" in finding.detail


def test_slices_are_neighbours_of_one_day(organs):
    competition = opened(organs, **ORGANS, slices=3)
    assert competition.images == ("image-1", "image", "image+1")
    scenes = {scene.id: scene for scene in competition.scenes("train")}
    path = {key: scene.files["image"] for key, scene in scenes.items()}
    for day in ("case101_day0", "case101_day20"):
        stack = [f"{day}_slice_000{k}" for k in (1, 2, 3, 4)]
        for at, key in enumerate(stack):
            assert scenes[key].files["image-1"] == path[stack[max(at - 1, 0)]]
            assert scenes[key].files["image+1"] == path[stack[min(at + 1, 3)]]
    first = scenes["case101_day0_slice_0001"]
    np.testing.assert_array_equal(competition.read(first, "image+1"), raster.read_image(first.files["image+1"]))
    assert [title for title, _ in competition.panels(first, competition.truth(first))] == [
        "image",
        "truth",
        "prediction",
    ]


def test_exclusive_classes_are_indices_and_the_later_one_wins(organs):
    competition = opened(organs, **ORGANS, exclusive=True)
    assert competition.tasks == {"loc": MulticlassMask(("background", *synthetic.CLASSES))}
    for scene in competition.scenes("train"):
        expected = np.zeros(drawn()[scene.id].shape[1:], np.uint8)
        for c, mask in enumerate(drawn()[scene.id], 1):
            expected[mask > 0] = c
        np.testing.assert_array_equal(competition.target(scene, "loc"), expected)
    scene = competition.scenes("train")[1]
    answer = competition.decode(noisy(competition, scene), {})
    assert answer.shape == drawn()[scene.id].shape and answer.any() and answer.sum(0).max() == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"classes": ["a"]}, "data.options.classes: expected 2 to 254 names"),
        ({"classes": [1, 2]}, "data.options.classes: .*quote them"),
        ({"classes": ["a", "domain"]}, "data.options.classes: .*none of id, fold, group, domain"),
        ({"classes": list("abcdefgh")}, "at most seven that may overlap, got 8"),
        ({}, "data.options.classes: required"),
        ({"classes": ["a", "b"], "slices": 3}, "data.options.slices: expected an odd number, and a group"),
        ({"classes": ["a", "b"], "slices": 2, "group": "a"}, "data.options.slices: expected an odd number"),
        ({"classes": ["a", "b"], "group": "("}, "data.options.group: expected a regular expression"),
        ({"classes": ["a", "b"], "ordre": "row"}, "data.options.ordre: unknown key; did you mean order"),
        ({"classes": ["a", "b"], "order": 3}, "data.options.order: expected 'auto', 'column' or 'row', got 3"),
        ({"classes": ["a", "b"], "train": ["a"]}, "data.options.train: expected a valid string"),
    ],
)
def test_impossible_options_are_refused(options, fault):
    with pytest.raises(ConfigError, match=fault):
        opened("nowhere", **options)


def test_missing_data_are_named(tmp_path, organs):
    with pytest.raises(DataError, match="expected a folder of images"):
        opened(tmp_path, **STEEL).scenes("train")
    (tmp_path / "train_images").mkdir()
    raster.write_png(tmp_path / "train_images" / "a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="expected labelled scenes with rows of runs, found 1"):
        opened(tmp_path, **STEEL).scenes("train")
    (tmp_path / "train.csv").write_text("id,runs\na,1 1\n")
    with pytest.raises(DataError, match="expected a column out of class, ClassId"):
        opened(tmp_path, **STEEL).scenes("train")
    with pytest.raises(ConfigError, match="group: expected a pattern that ids match"):
        opened(organs, **{**ORGANS, "group": "patient"}).scenes("train")
    assert opened(tmp_path, **STEEL).scenes("test") == []


# ---- scores -------------------------------------------------------------------------------------------
def slow_dice(answer, truth):
    pairs = list(zip(answer.ravel().tolist(), truth.ravel().tolist(), strict=True))
    both, size = sum(a and t for a, t in pairs), sum(a + t for a, t in pairs)
    return 2 * both / size if size else 1.0


def test_the_score_is_the_mean_over_images_and_classes(organs):
    competition = opened(organs, **ORGANS)
    single, total = {name: [] for name in synthetic.CLASSES}, 0
    for scene in competition.scenes("train")[:8]:
        truth = competition.truth(scene)
        answer = competition.decode(noisy(competition, scene), {"min_area_stomach": 20})
        total = total + competition.tally(answer, truth)
        for c, name in enumerate(synthetic.CLASSES):
            single[name].append(slow_dice(answer[c], truth[c]))
    scores = competition.scores(total)
    everything = [value for values in single.values() for value in values]
    assert 0.0 in everything and len(set(everything)) > 10
    assert scores["score"] == pytest.approx(np.mean(everything), abs=1e-9)
    assert {k: v for k, v in scores.items() if k != "score"} == pytest.approx(
        {f"dice_{name}": np.mean(values) for name, values in single.items()}, abs=1e-9
    )
    np.testing.assert_allclose(competition.score(np.stack([total, 3 * total])), scores["score"])
    assert competition.scores(np.zeros_like(total))["score"] == 0.0


def test_perfect_levels_score_one_and_an_empty_answer_the_share_of_empty_masks(organs):
    competition = opened(organs, **ORGANS)
    perfect, nothing = 0, 0
    scenes = competition.scenes("train")
    for scene in scenes:
        truth = competition.truth(scene)
        perfect = perfect + competition.tally(competition.decode({"loc": truth * 255}, {}), truth)
        nothing = nothing + competition.tally(competition.decode({"loc": truth * 0}, {}), truth)
    empty = [not mask.any() for masks in drawn().values() for mask in masks]
    assert competition.scores(perfect)["score"] == 1.0
    assert competition.scores(nothing)["score"] == pytest.approx(np.mean(empty)) and 0 < np.mean(empty) < 1


@pytest.mark.parametrize("exclusive", [False, True])
def test_counting_a_grid_equals_decoding_every_point(organs, exclusive):
    competition = opened(organs, **ORGANS, exclusive=exclusive)
    axes = {
        "threshold_stomach": (0.0, 0.4, 1.0),
        "min_area_small_bowel": (0, 30.0),
        "threshold_small_bowel": (0.3, 0.5),
    }
    grid = competition.grid(axes, {"min_area_large_bowel": 9})
    for scene in competition.scenes("train")[:2]:
        truth, levels = competition.truth(scene), noisy(competition, scene)
        counted = competition.count(levels, truth, grid)
        assert counted.shape == (12, 15) and counted.dtype == np.int64 and len(np.unique(counted, axis=0)) > 6
        for point, row in zip(grid, counted, strict=True):
            np.testing.assert_array_equal(row, competition.tally(competition.decode(levels, point), truth))


@pytest.mark.parametrize("exclusive", [False, True])
def test_decoding_equals_a_slow_loop(organs, exclusive):
    competition = opened(organs, **ORGANS, exclusive=exclusive)
    levels = noisy(competition, competition.scenes("train")[1])
    answer = competition.decode(levels, {"threshold_large_bowel": 0.4, "min_area_large_bowel": 25})
    planes = levels["loc"].astype(int)[-3:]
    for c, threshold, area in ((0, 0.4, 25), (1, 0.5, 0), (2, 0.5, 0)):
        expected = planes[c] / 255 >= threshold
        if exclusive:
            others = [planes[k] + (k < c) for k in range(3) if k != c]  # a tie goes to the first class
            expected &= np.all([planes[c] >= other for other in others], axis=0)
        labels, count = ndimage.label(expected, np.ones((3, 3)))
        for number in range(1, count + 1):
            if (labels == number).sum() < area:
                expected[labels == number] = False
        np.testing.assert_array_equal(answer[c], expected)


def test_settings_are_named_after_the_classes_and_checked():
    competition = opened("nowhere", **STEEL)
    assert competition.defaults() == {f"{what}_{k}": value for what, value in (("threshold", 0.5), ("min_area", 0))
                                      for k in (1, 2, 3)}  # fmt: skip
    assert competition.faults({"threshold_1": 0.3}, {"min_area_3": (0.0, 200.0)}) == []
    said = competition.faults({"treshold_1": 0.3}, {"threshold_2": (1.5,)}, [[{"name": "fill_holes"}]])
    assert said == [
        "decode.treshold_1: unknown setting; did you mean threshold_1?",
        "search.axes.threshold_2: expected a number from 0 to 1, got 1.5",
        "search.postprocess.0.0: this competition has no post-processing steps; remove it",
    ]


# ---- submission ---------------------------------------------------------------------------------------
def submit(competition, split, folder: Path):
    scenes = competition.scenes(split)
    answers = [(scene, drawn(split, len(scenes))[scene.id]) for scene in scenes]
    (path,) = competition.write_submission(iter(answers), folder)
    return scenes, answers, path


def test_a_submission_keeps_the_samples_header_and_order_and_reads_back(organs, tmp_path):
    competition = opened(organs, **ORGANS)
    scenes, answers, path = submit(competition, "test", tmp_path)
    rows = list(csv.reader(path.open(newline="")))
    sample = list(csv.reader((organs / "sample_submission.csv").open(newline="")))
    assert [row[:2] for row in rows] == [row[:2] for row in sample] and len(rows) == 1 + 3 * 3
    assert competition.lint(tmp_path, scenes) == [] and competition.lint(path) == []
    assert competition.lint(path, scenes, organs / "sample_submission.csv") == []
    for scene, answer in answers:
        np.testing.assert_array_equal(competition.read_submission(tmp_path, scene), answer)
    first = dict(((i, c), text) for i, c, text in rows[1:])[scenes[1].id, "stomach"]
    assert first == rle.encode(answers[1][1][2], "row")


def test_out_of_fold_scenes_are_not_in_the_sample(organs, tmp_path):
    competition = opened(organs, **ORGANS)
    scenes, answers, path = submit(competition, "train", tmp_path)
    assert competition.lint(tmp_path, scenes) == []
    assert path.read_text().splitlines()[1].startswith("case101_day0_slice_0001,large_bowel,")
    tallies = [competition.tally(competition.read_submission(tmp_path, s), competition.truth(s)) for s in scenes]
    assert competition.scores(np.sum(tallies, 0))["score"] == 1.0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda rows: rows[:-1], "missing, it was asked for (case201_day0_slice_0001,large_bowel)"),
        (lambda rows: [*rows, rows[1]], "id written more than once (case201_day0_slice_0003,stomach)"),
        (lambda rows: [rows[0], *rows[:0:-1]], "expected the sample's order of rows"),
        (lambda rows: [["id", "class", "rle"], *rows[1:]], "expected the header 'id,class,predicted'"),
        (
            lambda rows: [*rows[:-1], [*rows[-1][:2], "9999999 3"]],
            "a run outside of the image (case201_day0_slice_0001,",
        ),
        (lambda rows: [*rows[:-1], [*rows[-1][:2], "nan"]], "NaN where an empty mask is an empty text"),
        (lambda rows: [*rows, ["case201_day0_slice_0001", "liver", ""]], "not one of the scenes asked for (case201"),
        (lambda rows: [row[:2] for row in rows], "2 instead of 3 fields"),
    ],
)
def test_the_linter_finds(organs, tmp_path, change, fault):
    competition = opened(organs, **ORGANS)
    scenes, _, path = submit(competition, "test", tmp_path)
    rows = list(csv.reader(path.open(newline="")))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(change(rows))
    found = competition.lint(tmp_path, scenes)
    assert any(fault in line for line in found), found


def test_steel_is_submitted_under_the_tables_header(steel, tmp_path):
    competition = opened(steel, **STEEL)
    scenes = competition.scenes("test")
    (path,) = competition.write_submission(((s, np.zeros((3, SIZE, 110), np.uint8)) for s in scenes), tmp_path)
    lines = path.read_text().splitlines()
    assert lines[0] == "ImageId,ClassId,EncodedPixels" and lines[1] == f"{scenes[0].id},1," and len(lines) == 10
    assert competition.lint(path, scenes) == []


def test_the_header_of_a_submission_is_in_the_order_of_its_rows(tmp_path):
    (tmp_path / "train_images").mkdir()
    raster.write_png(tmp_path / "train_images" / "a.png", np.full((20, 30, 3), 90, np.uint8))
    (tmp_path / "train.csv").write_text("ClassId,ImageId,EncodedPixels\n1,a.png,1 3\n")
    competition = open_competition("multiclass_rle", tmp_path, {"classes": ["1", "2"], "order": "column", "origin": 1})
    (scene,) = competition.scenes("train")
    written = competition.write_table([(scene, competition.truth(scene))], tmp_path / "own.csv")
    assert written.read_text().splitlines() == ["ImageId,ClassId,EncodedPixels", "a.png,1,1 3", "a.png,2,"]


@pytest.mark.parametrize("header", ["ImageId,EncodedPixels", "ImageId,ClassId,EncodedPixels,Usage"])
def test_a_sample_of_another_form_is_refused_when_scenes_are_listed(header, tmp_path):
    (tmp_path / "train_images").mkdir()
    raster.write_png(tmp_path / "train_images" / "a.png", np.full((20, 30, 3), 90, np.uint8))
    (tmp_path / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.png,1,1 3\n")
    (tmp_path / "sample_submission.csv").write_text(f"{header}\n")
    competition = open_competition("multiclass_rle", tmp_path, {"classes": ["1", "2"], "order": "column", "origin": 1})
    with pytest.raises(
        DataError, match=r"sample_submission.csv: expected a header of 3 columns .ids: id or .*, runs., found ImageId"
    ):
        competition.scenes("train")
