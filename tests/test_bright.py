"""BRIGHT: layout, the pooled mIoU against hand-worked cases and scikit-learn, submissions, the embedded set."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from sklearn.metrics import jaccard_score

from lib.competitions import open_competition, synthetic
from lib.competitions.bright import CLASSES
from lib.errors import DataError
from lib.inference.scene import read_stack
from lib.scenes import raster

REAL = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "bright"


def opened(root, **options):
    return open_competition("bright", root, options)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bright") / "data"
    synthetic.write("bright", folder, scenes=5, test_scenes=2, size=96, seed=1)
    return folder


def put(root: Path, name: str, target: np.ndarray | None, shape=(8, 9)) -> None:
    """Write a pair, before of three bands and after of one, with its target."""
    rng = np.random.default_rng(0)
    for folder, ending, bands in (("pre-event", "pre_disaster", 3), ("post-event", "post_disaster", 1)):
        write(root / folder / f"{name}_{ending}.tif", rng.integers(1, 256, (bands, *shape), dtype=np.uint8))
    if target is not None:
        write(root / "target" / f"{name}_building_damage.tif", target[None])


def write(path: Path, planes: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = planes.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype="uint8") as file:
        file.write(planes)


def target(*values: int) -> np.ndarray:
    """A target whose first pixels are these, the others background."""
    found = np.zeros((8, 9), np.uint8)
    found.ravel()[: len(values)] = values
    return found


# ---- layout -------------------------------------------------------------------------------------------
def test_scenes_with_a_target_are_labelled_and_the_event_is_the_domain(tmp_path):
    put(tmp_path, "la_palma-volcano_00000279", target(1, 2, 3))
    put(tmp_path / "train", "turkey-earthquake_00000001", target(1))
    put(tmp_path / "val", "turkey-earthquake_00000002", None)
    competition = opened(tmp_path)
    train = competition.scenes("train")
    assert [(s.id, s.domain) for s in train] == [("la_palma-volcano_00000279", "la_palma-volcano"),
                                                 ("turkey-earthquake_00000001", "turkey-earthquake")]  # fmt: skip
    assert [s.id for s in competition.scenes("test")] == ["turkey-earthquake_00000002"]
    assert competition.strata(train[0]) == {"intact": True, "damaged": True, "destroyed": True}
    assert competition.strata(train[1]) == {"intact": True, "damaged": False, "destroyed": False}
    assert [f.kind for f in competition.inspect()] == []


def test_the_one_band_of_radar_reaches_the_network_three_times(tmp_path):
    put(tmp_path, "flood_00000001", target(1))
    competition = opened(tmp_path)
    (scene,) = competition.scenes("train")
    stack = read_stack(competition, scene, ("pre", "post"))
    assert stack.shape == (6, 8, 9)
    with rasterio.open(scene.files["post"]) as file:
        stored = file.read(1)
    assert all((plane == stored).all() for plane in stack[3:])
    assert not (stack[0] == stack[1]).all(), "the image before has colours"


def test_lists_say_which_scenes_are_trained_on_and_which_are_answered(tmp_path):
    for number in range(4):
        put(tmp_path, f"flood_{number:08d}", target(1))
    (tmp_path / "train_set.txt").write_text("flood_00000000\nflood_00000001_pre_disaster.tif\nflood_00000009\n")
    (tmp_path / "test_set.txt").write_text("flood_00000002\n")
    competition = opened(tmp_path, train_list="train_set.txt", test_list="test_set.txt")
    assert [s.id[-1] for s in competition.scenes("train")] == ["0", "1"]
    (test,) = competition.scenes("test")
    assert test.id[-1] == "2" and set(test.files) == {"pre", "post"}, "its target is not read"
    found = {(f.kind, f.scene) for f in competition.inspect()}
    assert ("listed scene is not here", "flood_00000009") in found
    assert [s.id[-1] for s in opened(tmp_path, test_list="test_set.txt").scenes("train")] == ["0", "1", "3"]
    with pytest.raises(DataError, match="none.txt: expected a list of names, found none; set data.options.test_list"):
        opened(tmp_path, test_list="none.txt").scenes("test")


def test_what_is_wrong_is_named_with_the_way_out(tmp_path):
    put(tmp_path, "flood_00000001", target(1))
    put(tmp_path, "flood_00000002", target(7))
    put(tmp_path, "flood_00000003", target(1))
    (tmp_path / "post-event/flood_00000003_post_disaster.tif").unlink()
    write(tmp_path / "pre-event/notes.tif", np.ones((1, 2, 2), np.uint8))
    write(tmp_path / "post-event/flood_00000004_post_disaster.tif", np.ones((1, 8, 9), np.uint8))
    competition = opened(tmp_path)
    assert [s.id for s in competition.scenes("train")] == ["flood_00000001"]
    found = {(f.kind, f.scene): f.detail for f in competition.inspect()}
    assert "expected classes 0..3 or 255 for ignored, got 7" in found["label cannot be used", "flood_00000002"]
    assert ("name of no scene, left out", "pre-event/notes.tif") in found
    assert ("unreadable image", "flood_00000003") in found
    (test,) = competition.scenes("test")
    assert competition.incomplete(test).startswith("expected pre and post, found no pre beside")
    with pytest.raises(DataError, match="expected pre-event, post-event, target with files such as EVENT_00000000_pre"):
        opened(tmp_path / "pre-event").scenes("train")


# ---- metric -------------------------------------------------------------------------------------------
def test_miou_of_a_hand_worked_case_leaves_out_an_absent_class(tmp_path):
    """Truth 0 0 1 1 3 3, answer 0 1 1 1 3 0 and 66 pixels of background in both; nothing is damaged in either.

    Intersection and union: background 67 of 69, intact 2 of 3, destroyed 1 of 2.
    """
    competition = opened(tmp_path)
    counts = competition.tally(target(0, 1, 1, 1, 3, 0), target(0, 0, 1, 1, 3, 3))
    scores = competition.scores(counts)
    assert scores["score"] == pytest.approx((67 / 69 + 2 / 3 + 1 / 2) / 3)
    assert scores["iou_intact"] == pytest.approx(2 / 3) and scores["iou_damaged"] == 0
    assert scores["pixel_accuracy"] == pytest.approx(70 / 72)
    assert competition.score(competition.tally(target(2), target(1))) == pytest.approx((71 / 71 + 0 + 0) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_miou_is_that_of_scikit_learn_over_the_classes_that_are_there(tmp_path, seed):
    rng = np.random.default_rng(seed)
    classes = 4 if seed else 3
    answers, truths = rng.integers(0, classes, (2, 3, 20, 20)).astype(np.uint8)
    truths[:, :2] = 255
    competition = opened(tmp_path)
    counts = sum(competition.tally(a, t) for a, t in zip(answers, truths, strict=True))
    known = truths != 255
    wanted = jaccard_score(truths[known], answers[known], labels=range(classes), average="macro")
    assert competition.score(counts) == pytest.approx(wanted)


def test_objects_of_a_hand_worked_case(tmp_path):
    """Of two intact houses of 6 pixels one is found; of a destroyed one of 6 pixels 4 are, beside a false one.

    Intact: at every bound 1 hit of 1 answered and 2 true, 1 / 2. Destroyed: IoU 4 / 6 is above 0.5, 0.55, 0.6 and 0.65,
    2 answered and 1 true, so 1 / 2 at four bounds of ten. Nothing is damaged.
    """
    truth, answer = np.zeros((2, 12, 12), np.uint8)
    truth[0:2, 0:3] = truth[4:6, 0:3] = answer[0:2, 0:3] = 1
    truth[8:10, 0:3], answer[8:10, 0:2], answer[0:2, 8:11] = 3, 3, 3
    competition = opened(tmp_path)
    tables = competition.tables(competition.detail(answer, truth))
    assert tables["objects"] == pytest.approx({"intact": 0.5, "damaged": 0, "destroyed": 0.2, "mean": 0.35})
    assert tables["confusion"]["destroyed"] == {"background": 2, "intact": 0, "damaged": 0, "destroyed": 4}
    twice = competition.tables(2 * competition.detail(answer, truth))
    assert twice["objects"] == pytest.approx(tables["objects"]), "counts of scenes are added"


# ---- submission ---------------------------------------------------------------------------------------
def test_a_submission_has_pngs_named_like_targets_and_reads_back(drawn, tmp_path):
    competition = opened(drawn)
    scenes = competition.scenes("test")
    answers = [np.random.default_rng(k).integers(0, 4, (96, 96)).astype(np.uint8) for k in range(2)]
    assert competition.submit(zip(scenes, answers, strict=True), tmp_path) == []
    names = sorted(path.name for path in (tmp_path / "masks").iterdir())
    assert names == [f"{scene.id}_building_damage.png" for scene in scenes]
    for scene, answer in zip(scenes, answers, strict=True):
        np.testing.assert_array_equal(competition.read_submission(tmp_path, scene), answer)
        np.testing.assert_array_equal(raster.read_mask(tmp_path / "masks" / competition.png_name(scene)), answer)
    (tmp_path / "masks" / names[0]).unlink()
    (fault, *_) = competition.lint(tmp_path, scenes)
    assert "picture without a PNG: 1" in fault and scenes[0].id in fault
    raster.write_png(tmp_path / "masks" / names[0], answers[1])
    assert any("1 pictures differ from the PNGs" in line for line in competition.lint(tmp_path, scenes))


# ---- the embedded set, the real pair ------------------------------------------------------------------
def test_the_embedded_set_has_all_classes_a_scene_without_houses_and_one_without_data(drawn):
    competition = opened(drawn)
    train = competition.scenes("train")
    assert len(train) == 5 and len({scene.domain for scene in train}) == 2
    held = [set(np.unique(competition.target(scene, "loc")).tolist()) for scene in train]
    assert set().union(*held) == {0, 1, 2, 3} and {0} in held
    hidden = [(competition.training_target(scene, "loc") == 255).mean() for scene in train]
    assert sorted(share > 0 for share in hidden) == [False] * 4 + [True], "where radar has no data nothing is learned"
    assert all(scene.position is not None for scene in train)
    for scene in train:
        with rasterio.open(scene.files["pre"]) as before, rasterio.open(scene.files["post"]) as after:
            assert (before.count, after.count) == (3, 1) and before.transform == after.transform


def test_radar_tells_the_classes_of_the_embedded_set(drawn):
    """The more of a house is rubble, the brighter is its footprint: else nothing could be learned."""
    competition = opened(drawn)
    echo: dict[int, list[float]] = {k: [] for k in range(4)}
    for scene in competition.scenes("train"):
        truth, after = competition.target(scene, "loc"), competition.read(scene, "post")[..., 0]
        for index in echo:
            echo[index] += after[(truth == index) & (after > 0)].tolist()
    mean = [np.mean(echo[index]) for index in range(4)]
    assert mean[0] < mean[1] < mean[2] < mean[3]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real pair")
def test_the_real_pair_is_read_as_it_lies_there(tmp_path):
    for folder, side in (("pre-event", "pre"), ("post-event", "post")):
        (tmp_path / folder).mkdir()
        (path,) = REAL.glob(f"*_{side}_disaster.tif")
        (tmp_path / folder / path.name).symlink_to(path.resolve())
    competition = opened(tmp_path)
    (scene,) = competition.scenes("test")
    assert (scene.id, scene.domain) == ("la_palma-volcano_00000279", "la_palma-volcano")
    assert competition.incomplete(scene) == ""
    assert read_stack(competition, scene, ("pre", "post")).shape == (6, 1024, 1024)
    crs, _, size = raster.place(scene.files["post"])
    assert crs.to_epsg() == 32628 and size == (1024, 1024)
    assert not [f for f in competition.inspect_scene(scene, "test") if "apart" in f.kind]
    assert tuple(competition.tasks["loc"].classes) == CLASSES
    assert list(competition.raster_classes()) == list(CLASSES[1:]), "maps show them by name"
