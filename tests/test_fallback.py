"""A scene that fails: its size, smaller windows where the GPU is full, the fallback, and when there is none."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from owed import make, opened
from torch import nn

from lib.choose.evidence import Members
from lib.competitions.contract import Competition, Scene
from lib.config.sections import Predict
from lib.errors import ArtifactError, ConfigError, DataError
from lib.inference.predict import Predictor
from lib.inference.scene import read_stack, sizes
from lib.run.executor import Pool
from lib.scenes.probs import read_levels
from lib.scenes.raster import stated_size, write_png
from lib.stages import submit
from lib.stages.predict import Networks, fall_back, halved, passed, require_whole, told
from lib.tasks import BinaryMask, Label


@pytest.fixture
def scenes(tmp_path) -> list[Scene]:
    """Three scenes of 40 x 30, one of 20 x 20, one whose image is none."""
    for name, shape in (("a", (40, 30)), ("b", (20, 20)), ("c", (40, 30)), ("d", (40, 30))):
        write_png(tmp_path / f"{name}.png", np.zeros((*shape, 3), np.uint8))
    (tmp_path / "e.png").write_bytes(b"no image")
    return [Scene(name, {"image": tmp_path / f"{name}.png"}) for name in "abcde"]


def size(scene: Scene) -> tuple[int, int] | tuple[None, None]:
    """The size of the first image that can be read, as the contract has it."""
    return Competition.size(SimpleNamespace(own_images=tuple(scene.files)), scene)


COMPETITION = SimpleNamespace(tasks={"loc": BinaryMask(("x",)), "cls": Label(("p", "q", "r"))}, size=size,
                              georeference=lambda scene: None)  # fmt: skip


def test_a_scene_without_a_size_has_the_commonest_of_the_others(scenes):
    assert sizes(COMPETITION, scenes) == {"a": (40, 30), "b": (20, 20), "c": (40, 30), "d": (40, 30), "e": (40, 30)}
    assert stated_size(scenes[4].files["image"]) == (None, None)
    pair = Scene("f", {"pre": scenes[4].files["image"], "post": scenes[1].files["image"]})
    assert sizes(COMPETITION, [*scenes[:1], pair])["f"] == (20, 20), "any of its images"
    with pytest.raises(DataError, match="none of 1 scenes"):
        sizes(COMPETITION, scenes[4:])
    assert sizes(COMPETITION, []) == {}


class Small(nn.Module):
    """Has no memory for inputs of more than 64 pixels a side."""

    stride = 16

    def forward(self, x):
        if max(x.shape[-2:]) > 64:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return x[:, :1].float() / 255


def networks(predictor: Predictor, **predict) -> Networks:
    found = Networks(torch.device("cpu"))
    competition = SimpleNamespace(read=lambda scene, image: read(scene), incomplete=lambda scene: "",
                                  georeference=lambda scene: None)  # fmt: skip
    found.run = SimpleNamespace(competition=competition, config=SimpleNamespace(predict=Predict(tta="none", **predict)))
    found.predictor, found.description = predictor, {"images": ["image"], "classes": ["x"]}
    return found


def read(scene: Scene) -> np.ndarray:
    if scene.id == "broken":
        raise DataError("scene broken: no pixels")
    return np.random.default_rng(0).integers(0, 256, (128, 112, 3), np.uint8)


def predictor(tile: int, overlap: int) -> Predictor:
    settings = Predict.model_construct(precision="float32", tta="none", tile=tile, overlap=overlap / tile)
    return Predictor(Small(), lambda z: z, settings)


def test_a_scene_too_large_for_the_gpu_is_predicted_in_windows_of_half_the_size(tmp_path, capsys):
    outcome = networks(predictor(128, 32), fallback=0).predict(Scene("s", {}), tmp_path)
    assert outcome.error == ""
    assert "s: the GPU's memory is full, windows of 64 pixels instead" in capsys.readouterr().out
    networks(predictor(64, 16)).predict(Scene("t", {}), tmp_path)
    np.testing.assert_array_equal(read_levels(tmp_path / "s.tif")[0], read_levels(tmp_path / "t.tif")[0])
    too_large = networks(predictor(256, 64), fallback=0).predict(Scene("u", {}), tmp_path)
    assert "OutOfMemoryError: CUDA out of memory" in too_large.error, "once, no more"
    assert not (tmp_path / "u.tif").exists()
    with pytest.raises(ArtifactError, match="scene u: the memory of the GPU is full; lower predict.tile"):
        networks(predictor(256, 64)).predict(Scene("u", {}), tmp_path)


def test_half_a_window_is_a_multiple_of_the_stride():
    assert (halved(predictor(112, 96)).tile, halved(predictor(112, 96)).overlap) == (48, 32)
    assert halved(predictor(16, 0)) is None


def test_the_error_of_a_scene_is_returned_where_there_is_a_fallback_and_raised_where_there_is_none(tmp_path):
    scene = Scene("broken", {})
    assert networks(predictor(64, 16), fallback=0).predict(scene, tmp_path).error == "scene broken: no pixels"
    with pytest.raises(DataError, match="no pixels"):
        networks(predictor(64, 16)).predict(scene, tmp_path)


def fed(own: Networks, scenes: list[Scene], folder: Path) -> list:
    """Pass scenes through one worker as stage 04 does."""
    folder.mkdir()
    return list(passed(Pool(lambda device: own, [torch.device("cpu")]), scenes, folder, logits=False))


def test_many_scenes_have_the_bytes_and_outcomes_that_each_has_alone(tmp_path):
    """Of seven scenes two cannot be read and one is there already: the others go on, in their order."""
    scenes = [Scene(name, {}) for name in ("a", "broken", "b", "c", "broken", "d", "e")]
    own = networks(predictor(64, 16), fallback=0)
    (tmp_path / "alone").mkdir()
    alone = [own.predict(scene, tmp_path / "alone") for scene in scenes]
    outcomes = fed(own, scenes, tmp_path / "together")
    assert [(one.scene, one.error) for one in outcomes] == [(one.scene, one.error) for one in alone]
    assert [one.error != "" for one in outcomes] == [scene.id == "broken" for scene in scenes]
    for scene in "abcde":
        assert (tmp_path / f"together/{scene}.tif").read_bytes() == (tmp_path / f"alone/{scene}.tif").read_bytes()
    assert [one.seconds for one in passed(Pool(lambda device: own, [torch.device("cpu")]),
                                          [scenes[0], scenes[2]], tmp_path / "together", False)] == [0, 0]  # fmt: skip


def test_where_there_is_no_fallback_the_scenes_before_the_one_that_fails_are_written(tmp_path):
    own = networks(predictor(64, 16))
    with pytest.raises(DataError, match="scene broken: no pixels"):
        fed(own, [Scene(name, {}) for name in ("a", "b", "broken", "c", "d", "e", "f", "g")], tmp_path / "out")
    assert {"a.tif", "b.tif"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert own.pipeline is None, "and nothing goes on behind"


def test_work_that_is_stopped_between_scenes_is_whole_and_goes_on_where_it_was(tmp_path):
    own, scenes = networks(predictor(64, 16)), [Scene(name, {}) for name in "abcdefgh"]
    (tmp_path / "out").mkdir()
    outcomes = passed(Pool(lambda device: own, [torch.device("cpu")]), scenes, tmp_path / "out", False)
    assert next(outcomes).scene == "a"
    outcomes.close()  # as a budget's end does
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert "a.tif" in there and len(there) < 8 and not any(name.endswith(".tmp") for name in there)
    again = list(passed(Pool(lambda device: own, [torch.device("cpu")]), scenes, tmp_path / "out", False))
    assert [one.scene for one in again] == list("abcdefgh")
    assert {f"{one.scene}.tif" for one in again if not one.seconds} == there


def test_a_scene_is_expected_to_hold_what_it_holds(tmp_path):
    """Before it is read its header tells; where nobody knows, it is None."""
    own = networks(predictor(64, 16))
    own.kind = "multilabel"
    passing = own.levels_of(Scene("a", {}), tmp_path)
    assert own.expect(passing) is None
    own.run.competition.size = lambda scene: (128, 112)
    assert own.expect(passing) == own.weigh(own.read(passing)) == 128 * 112 * (2 * 3 + 4 + 1 + 4)
    own.predict(passing.scene, tmp_path)
    assert own.expect(passing) == 0, "it is there"


def test_a_gpu_that_does_nothing_any_more_is_not_the_fault_of_a_scene(monkeypatch):
    own = networks(predictor(64, 16), fallback=0)
    own.device = torch.device("cuda", 0)

    def ones(*_, **__):
        raise RuntimeError("CUDA error: device-side assert\nmore")

    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(ArtifactError, match="the GPU no longer answers .CUDA error: device-side assert."):
        own.reason(ValueError("x"))


def test_an_unwritable_disk_is_not_the_fault_of_a_scene(tmp_path):
    with pytest.raises(OSError, match="where"):
        networks(predictor(64, 16), fallback=0).predict(Scene("s", {}), tmp_path / "no" / "where")


@pytest.mark.parametrize(("task", "shape"), [("loc", (1, 40, 30)), ("cls", (3, 1, 1))])
def test_the_fallback_has_the_size_and_classes_of_the_scene(scenes, tmp_path, task, shape):
    predict = Predict(tta=("none", "flips"), fallback=0.2)
    config = SimpleNamespace(predict=predict, models={"m": SimpleNamespace(task=task)})
    run = SimpleNamespace(competition=COMPETITION, config=config)
    assert list(fall_back(run, "m", scenes, {"e": "no image", "d": "too odd"}, tmp_path)) == ["d", "e"]
    for views in ("none", "flips"):
        for scene in "de":
            levels, names = read_levels(tmp_path / views / f"{scene}.tif")
            unseen = scene == "e" and task == "loc"  # of an image without a size nothing is drawn
            assert levels.shape == shape and (levels == (0 if unseen else 51)).all()
            assert names == COMPETITION.tasks[task].classes
    with pytest.raises(ArtifactError, match="m: each of 5 scenes failed"):
        fall_back(run, "m", scenes, dict.fromkeys("abcde", "bad network"), tmp_path)


def test_the_first_failures_are_told():
    assert told({"a": "x"}) == "a (x)"
    assert told(dict.fromkeys("abcde", "x")) == "a (x); b (x); c (x); and 2 more"


def test_a_fault_of_the_settings_is_no_scene_s_fault(tmp_path):
    """A fallback stands for scenes that cannot be read; a network that cannot be compiled would fail at every one."""

    class Refused(Small):
        def forward(self, x):
            raise ConfigError("predict.compile: torch.compile fails here")

    found = predictor(64, 16)
    found.answer = found.network = Refused()
    with pytest.raises(ConfigError, match="predict.compile"):
        networks(found, fallback=0).predict(Scene("s", {}), tmp_path)


def pairs(tmp_path: Path) -> Path:
    """Three test pairs: one whole, one without its twin, one whose sides differ in size."""
    root = make("xview2", tmp_path / "data")
    (root / "test/images/test_post_00003.png").unlink()
    write_png(root / "test/images/test_post_00004.png", np.zeros((15, 16, 3), np.uint8))
    return root


def test_scenes_that_are_not_whole_are_an_error_that_names_files_and_sizes_or_take_the_fallback(tmp_path):
    competition = opened("xview2", pairs(tmp_path))
    scenes, config = competition.scenes("test"), SimpleNamespace(predict=Predict(tta="none"))
    run = SimpleNamespace(competition=competition, config=config)
    with pytest.raises(DataError) as error:
        require_whole(run, scenes)
    for words in ("2 of 3 scenes cannot be predicted: test_00003 (expected pre and post, found no post beside ",
                  "test_pre_00003.png); test_00004 (expected images of one size, found ",
                  "test_pre_00004.png of 16x16 pixels and ", "test_post_00004.png of 16x15 pixels",
                  "set predict.fallback"):  # fmt: skip
        assert words in str(error.value)
    run.config.predict = Predict(tta="none", fallback=0.3)
    require_whole(run, scenes)
    found = Networks(torch.device("cpu"))
    found.run, found.predictor = run, predictor(64, 16)
    found.description = {"images": ["pre"], "classes": ["building"]}  # of which one side is enough
    errors = {scene.id: found.predict(scene, tmp_path).error for scene in scenes}
    assert errors["test_00005"] == "" and errors["test_00003"].startswith("scene test_00003: expected pre and post")
    assert "of 16x15 pixels" in errors["test_00004"]
    run.config.models = {"m": SimpleNamespace(task="loc")}
    failed = {scene: error for scene, error in errors.items() if error}
    fall_back(run, "m", [*scenes, Scene("nobody", {})], {**failed, "nobody": "no file"}, tmp_path)
    levels = {scene: read_levels(tmp_path / f"{scene}.tif")[0] for scene in (*failed, "nobody")}
    assert {scene: found.shape for scene, found in levels.items()} == {
        "test_00003": (1, 16, 16), "test_00004": (1, 1024, 1024), "nobody": (1, 1024, 1024)
    }  # fmt: skip
    assert all((found == 76).all() for found in levels.values())  # 0.3 of 255


def test_images_of_several_sizes_are_no_traceback(tmp_path):
    competition = opened("xview2", pairs(tmp_path))
    scene = competition.scenes("test")[1]
    with pytest.raises(DataError, match=r"scene test_00004: .*test_pre_00004.png of 16x16, .*_00004.png of 16x15 pix"):
        read_stack(competition, scene, ("pre", "post"))
    assert read_stack(competition, competition.scenes("test")[2], ("pre", "post")).shape == (6, 16, 16)


def test_a_fallback_is_not_refined_on_an_image_of_another_size():
    competition = SimpleNamespace(
        read=lambda *_: np.zeros((15, 16, 3), np.uint8), images=("pre",), tasks=COMPETITION.tasks
    )
    run = SimpleNamespace(competition=competition, config=SimpleNamespace(blend=SimpleNamespace(crf={"iterations": 1})))
    levels = np.full((1, 16, 16), 76, np.uint8)
    assert Members(run, Scene("s", {}), {}, {})._refined("loc", levels) is levels


def test_a_submission_that_lacks_a_test_scene_is_not_sealed(tmp_path, monkeypatch):
    competition = opened("binary_rle", make("binary_rle", tmp_path / "data"))
    blank = {"loc": np.zeros((1, 16, 16), np.uint8)}
    monkeypatch.setattr(submit, "averages", lambda *_: ((scene, blank) for scene in competition.scenes("test")[:2]))
    monkeypatch.setattr(submit.Decision, "of", lambda run: SimpleNamespace(params={}))
    folder = tmp_path / "out"
    folder.mkdir()
    run = SimpleNamespace(competition=competition, graph=SimpleNamespace(test_ids=["t1", "t2", "t3"]))
    with pytest.raises(ArtifactError, match=r"the submission is not valid: .*1 row: missing, it was asked for \(t3\)"):
        submit.write(run, SimpleNamespace(name="test"), folder)
