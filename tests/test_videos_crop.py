"""Boxes around faces: hand-worked cuts, tables, a detector, and the same cuts in training, prediction and a kernel."""

import math
import os
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import STAGES
from test_kaggle import Kernel
from test_sisters import Sister
from test_videos_frames import write as write_video

from lib.competitions import open_competition
from lib.competitions.synthetic import videos as synthetic
from lib.competitions.videos import competition as videos
from lib.competitions.videos import frames as video
from lib.competitions.videos.crop import Box, Crop, Detector, cut, nearest, read_boxes
from lib.competitions.videos.frames import FrameSampling
from lib.errors import ConfigError, DataError
from lib.scenes.raster import write_png

YUNET = Path(os.environ.get("YUNET_ONNX", "face_detection_yunet_2023mar.onnx"))
HEADER = "id,frame,x0,y0,x1,y1"


def frame(height=10, width=16):
    """A frame in which each pixel says where it is: (y + 1, x + 1, 200)."""
    y, x = np.mgrid[:height, :width]
    return np.dstack([y + 1, x + 1, np.full_like(x, 200)]).astype(np.uint8)


def shown(part):
    """Rows and columns of the frame that a part shows, each from first to last; black ones are None."""
    lit = part[..., 2] > 0
    return [int(n) - 1 for n in (part[lit][:, 0].min(), part[lit][:, 0].max(), part[lit][:, 1].min(),
                                 part[lit][:, 1].max())]  # fmt: skip


def crop(**options):
    return Crop(boxes="faces.csv", **options)


# ---- cuts ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("box", "options", "shape", "where"), [
    ((4, 3, 8, 7), {"margin": 0}, (4, 4), [3, 6, 4, 7]),                   # a square stays
    ((4, 3, 6, 7), {"margin": 0}, (4, 4), [3, 6, 3, 6]),                   # the shorter side grows about its middle
    ((4, 4, 8, 6), {"margin": 0.5}, (8, 8), [1, 8, 2, 9]),                 # both sides grow by their halves: 8 x 4
    ((0, 0, 2, 2), {"margin": 0.5}, (4, 4), [0, 3, 0, 3]),                 # moved into the frame
    ((14, 8, 16, 10), {"margin": 0.5}, (4, 4), [6, 9, 12, 15]),
    ((0, 0, 12, 8), {"margin": 0}, (12, 12), [0, 9, 0, 11]),               # higher than the frame: black beyond
    ((5, 2, 9, 8), {"margin": 0, "shape": "frame"}, (6, 10), [2, 7, 2, 11]),   # 16 : 10
    ((0, 4, 8, 5), {"margin": 0, "shape": "frame"}, (5, 8), [2, 6, 0, 7]),
    ((0, 0, 16, 10), {"margin": 1, "shape": "frame"}, (30, 48), [0, 9, 0, 15]),
])  # fmt: skip
def test_hand_worked_cuts(box, options, shape, where):
    part = cut(frame(), Box(*box), crop(**options))
    assert part.shape == (*shape, 3)
    assert shown(part) == where
    rows, columns = where[1] - where[0] + 1, where[3] - where[2] + 1
    lit = part[..., 2] > 0
    assert lit.sum() == rows * columns  # what is lit is one rectangle, unchanged; the rest is black
    np.testing.assert_array_equal(
        part[lit].reshape(rows, columns, 3), frame()[where[0] : where[1] + 1, where[2] : where[3] + 1]
    )
    assert not part[~lit].any()


def test_a_whole_frame_becomes_a_square_with_black_on_both_sides_and_keeps_its_own_form_otherwise():
    square = cut(frame(), None, crop())
    assert square.shape == (16, 16, 3) and shown(square) == [0, 9, 0, 15]
    assert not square[:3].any() and not square[13:].any()
    np.testing.assert_array_equal(square[3:13], frame())
    np.testing.assert_array_equal(cut(frame(), None, crop(shape="frame", margin=1)), frame())


@pytest.mark.parametrize("seed", range(20))
def test_any_box_keeps_the_proportions_and_shows_all_of_itself_that_is_in_the_frame(seed):
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.uniform(-3, 19, 2)), np.sort(rng.uniform(-3, 13, 2))
    box = Box(x[0], y[0], x[1] + 0.5, y[1] + 0.5)
    for shape in ("square", "frame"):
        part = cut(frame(), box, crop(shape=shape, margin=0.2))
        height, width = part.shape[:2]
        assert height == width if shape == "square" else abs(height - width * 10 / 16) <= 1
        inside = [max(box.y0, 0), min(box.y1, 10), max(box.x0, 0), min(box.x1, 16)]
        if inside[0] < inside[1] and inside[2] < inside[3]:
            first_row, last_row, first, last = shown(part)
            assert first_row <= math.ceil(inside[0]) and last_row >= math.floor(inside[1]) - 1
            assert first <= math.ceil(inside[2]) and last >= math.floor(inside[3]) - 1


def test_the_box_of_a_frame_is_its_own_or_that_of_all_or_the_nearest():
    a, b, every = Box(0, 0, 1, 1), Box(1, 1, 2, 2), Box(2, 2, 3, 3)
    assert [nearest({2: a, 6: b}, k) for k in (0, 2, 4, 5, 9)] == [a, a, a, b, b]
    assert [nearest({2: a, None: every}, k) for k in (2, 3)] == [a, every]
    assert nearest({}, 3) is None


# ---- tables -------------------------------------------------------------------------------------------
def test_a_table_is_read_with_and_without_frames(tmp_path):
    path = tmp_path / "faces.csv"
    path.write_text(f"{HEADER}\na.mp4,,1,2,3.5,4\na.mp4,7,0,0,1,1\nb,0,-2,0,5,5\n")
    assert read_boxes(path)[0] == {"a.mp4": {None: Box(1, 2, 3.5, 4), 7: Box(0, 0, 1, 1)}, "b": {0: Box(-2, 0, 5, 5)}}
    path.write_text("x0,y0,x1,y1,id\n1,2,3,4,a\n")
    assert read_boxes(path) == ({"a": {None: Box(1, 2, 3, 4)}}, [])


def test_a_row_that_is_no_box_is_left_out_and_named(tmp_path):
    path = tmp_path / "faces.csv"
    path.write_text(f"{HEADER}\na,3.0,1,2,3,4\nb,,5,2,5,4\na,3,1,2,4,4\nc,x,1,2,3,4\nd,1,2\ne,,1,2,3,4\n")
    boxes, findings = read_boxes(path)
    assert boxes == {"a": {3: Box(1, 2, 3, 4)}, "e": {None: Box(1, 2, 3, 4)}}
    assert {(finding.kind, finding.scene) for finding in findings} == {
        ("row left out", "faces.csv line 3"), ("two boxes of one frame, the first is used", "a"),
        ("row left out", "faces.csv line 5"), ("row left out", "faces.csv line 6"),
    }  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [
    ("id,x0,y0,x1\na,1,2,3", "found no y1"),
    (f"{HEADER}\na,,5,2,5,4", "a: expected x0 < x1 and y0 < y1 in pixels, got 5, 2, 5, 4"),
    (f"{HEADER}\na,3,1,2,nan,4", "a, frame 3: expected x0 < x1"),
    (f"{HEADER}\na,3,1,2,left,4", "a, frame 3: expected x0 < x1"),
    (f"{HEADER}\na,-1,1,2,3,4", "a, frame -1: expected the number of a frame"),
    (f"{HEADER}\na,1.5,1,2,3,4", "a, frame 1.5: expected the number of a frame"),
    (f"{HEADER}\na,3,1,2", "expected 6 fields"),
])  # fmt: skip
def test_a_table_that_cannot_be_is_named(tmp_path, text, said):
    path = tmp_path / "faces.csv"
    path.write_text(text + "\n")
    with pytest.raises(DataError) as caught:
        read_boxes(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


# ---- videos -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    synthetic.write(root, scenes=6, test_scenes=3, size=64, seed=3)
    return root


@pytest.fixture
def root(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "set")


def opened(root, rows=None, **options):
    if rows is not None:
        (root / "faces.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        options["crop"] = {"boxes": "faces.csv", **options.get("crop", {})}
    return open_competition("videos", root, options)


def test_frames_are_cut_before_they_are_shrunk_and_all_get_one_shape(root):
    rows = ["train/videos/000.mp4,0,8,8,40,40", "train/videos/000.mp4,5,20,10,36,26"]
    competition = opened(root, rows, crop={"margin": 0}, sampling={"every": 5}, size=24)
    (scene,) = [s for s in competition.scenes("train") if s.id == "000.mp4"]
    whole = video.sample(scene.files["video"], FrameSampling(every=5))
    read = competition.read(scene)
    assert read.shape == (len(whole), 24, 24, 3)
    np.testing.assert_array_equal(read[0], cv2.resize(whole[0][8:40, 8:40], (24, 24), interpolation=cv2.INTER_AREA))
    for number in range(
        1, len(whole)
    ):  # frame 5 and, nearest to it, those after: 16 pixels, made as large as the first
        part = whole[number][10:26, 20:36]
        np.testing.assert_array_equal(read[number], cv2.resize(part, (24, 24), interpolation=cv2.INTER_LINEAR))


def test_frames_of_a_folder_are_counted_in_their_order(tmp_path):
    for number in range(3, 9):
        (tmp_path / "clip").mkdir(exist_ok=True)
        write_png(tmp_path / "clip" / f"{number}.png", np.full((12, 20, 3), 10 * number, np.uint8))
    seen = []
    video.sample(tmp_path / "clip", FrameSampling(every=2), look=lambda n, f: seen.append((n, int(f[0, 0, 0]))) or f)
    assert seen == [(0, 30), (2, 50), (4, 70)]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_of_a_file_are_counted_from_0(tmp_path, suffix):
    write_video(tmp_path / f"clip{suffix}", frames=9)
    numbers = []
    video.sample(tmp_path / f"clip{suffix}", FrameSampling(every=4), look=lambda n, f: numbers.append(n) or f)
    assert numbers == [0, 4, 8]


def test_a_path_tells_apart_what_a_name_does_not_and_a_video_without_rows_is_whole(root):
    rows = ["train/videos/000.mp4,,8,8,40,40", "002.mp4,,0,0,30,30"]
    competition = opened(root, rows, crop={"margin": 0})
    shapes = {
        split: {s.id: competition.read(s).shape[1:3] for s in competition.scenes(split)} for split in ("train", "test")
    }
    assert shapes["train"]["000.mp4"] == (32, 32) and shapes["test"]["000.mp4"] == (80, 80)  # 80 x 64, made a square
    assert shapes["train"]["002.mp4"] == shapes["test"]["002.mp4"] == (30, 30)  # the name fits both
    found = {(finding.kind, finding.scene) for finding in competition.inspect()}
    assert ("box of a name in train and test", "002.mp4") in found
    assert ("video without a box", "001.avi") in found and ("video without a box", "000.mp4") in found
    assert len([kind for kind, _ in found if kind == "video without a box"]) == len(
        {s.id for split in ("train", "test") for s in competition.scenes(split)} - {"002.mp4"}
    )
    (caveat,) = competition.caveats(competition.scenes("test"))
    assert caveat == "2 of 3 videos have no box and are looked at whole (000.mp4)"


def test_boxes_of_no_video_are_named_and_a_full_table_has_nothing_to_say(root):
    names = [
        path.relative_to(root).as_posix()
        for part in ("train", "public_test")
        for path in (root / part / "videos").iterdir()
    ]
    competition = opened(root, [f"{name},,4,4,40,40" for name in names])
    assert competition.inspect() == [] and competition.caveats(competition.scenes("test")) == []
    competition = opened(root, [f"{name},,4,4,40,40" for name in [*names, "9.mp4"]])
    assert [(f.kind, f.scene) for f in competition.inspect()] == [("box without video", "9.mp4")]


def test_boxes_that_are_not_in_pixels_of_the_frame_are_named(root):
    """In shares of the sides, beside the frame (of 48 x 64 pixels at most), and one that leaves it only in part."""
    names = sorted(path.name for path in (root / "train/videos").iterdir())
    boxes = ("0.1,0.2,0.6,0.9", "900,4,940,40", "-5,-5,20,20")
    rows = [f"train/videos/{name},,{box}" for name, box in zip(names, boxes, strict=False)]
    found = [f for f in opened(root, rows).inspect() if f.kind.startswith("box that")]
    assert [(f.scene, f.detail) for f in found] == [
        (names[0], "(0.1, 0.2, 0.6, 0.9)"), (names[1], "(900.0, 4.0, 940.0, 40.0)")
    ]  # fmt: skip


def test_without_the_option_nothing_is_looked_up_or_carried(root):
    competition = opened(root)
    assert competition.carried == {} and competition.caveats(competition.scenes("test")) == []
    assert competition.read(competition.scenes("train")[0]).shape[1:3] == (80, 64)


# ---- refused early ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("options", "said"), [
    ({}, "expected one of boxes and detector"),
    ({"boxes": "a.csv", "detector": "b.onnx"}, "expected one of boxes and detector"),
    ({"boxes": "a.csv", "least": 0.5}, "least: belongs to detector"),
    ({"boxes": "a.csv", "margin": -0.1}, "crop.margin: expected greater than or equal to 0"),
    ({"boxes": "a.csv", "shape": "round"}, "crop.shape: expected 'square' or 'frame'"),
    ({"boxes": ""}, "crop.boxes: expected "),
    ({"boxes": "a.csv", "marign": 0.1}, "crop.marign: unknown key; did you mean margin?"),
    ({"detector": "b.onnx", "least": 1}, "crop.least: expected less than 1"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(tmp_path, options, said):
    with pytest.raises(ConfigError) as caught:
        open_competition("videos", tmp_path, {"crop": options})
    assert said in str(caught.value)


def test_files_that_are_not_there_or_are_something_else_are_refused_when_videos_are_listed(root):
    with pytest.raises(DataError, match=r"nowhere.csv: expected a table of boxes"):
        opened(root, crop={"boxes": "nowhere.csv"}).scenes("test")
    with pytest.raises(
        ConfigError, match=r"data.options.crop.detector: expected the ONNX file of YuNet, found no file"
    ):
        opened(root, crop={"detector": "nowhere.onnx"}).scenes("test")
    (root / "odd.onnx").write_bytes(b"no model at all")
    with pytest.raises(ConfigError, match=r"odd.onnx: OpenCV cannot read it .*expected the ONNX file of YuNet"):
        opened(root, crop={"detector": "odd.onnx"}).scenes("test")


# ---- a detector ---------------------------------------------------------------------------------------
class Bright:
    """Stands for YuNet: the bounding box of what is nearly white."""

    def __init__(self, model, least):
        self.model, self.least = model, least

    def largest(self, frame):
        y, x = np.nonzero(frame.min(axis=2) > 200)
        return Box(x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """Clips of 8 frames, 60 x 80: a white face of 20 pixels that moves, and is away at first; and one without any."""
    monkeypatch.setattr(videos, "Detector", Bright)
    rows = ["fname,liveness_score"]
    for name in ("moves", "empty"):
        folder = tmp_path / "train" / "videos" / name
        folder.mkdir(parents=True)
        for number in range(8):
            picture = np.full((60, 80, 3), 40, np.uint8)
            if name == "moves" and number >= 2:
                picture[20:40, 5 * number : 5 * number + 20] = 250
            write_png(folder / f"{number}.png", picture)
        rows.append(f"{name},{int(name == 'moves')}")
    (tmp_path / "train" / "label.csv").write_text("\n".join(rows))
    return tmp_path


def test_the_detected_face_fills_every_frame_also_before_it_was_found(faces):
    competition = opened(faces, crop={"detector": "any.onnx", "margin": 0}, sampling={"every": 1}, test=None)
    moves, empty = sorted(competition.scenes("train"), key=lambda s: s.id, reverse=True)
    read = competition.read(moves)
    assert read.shape == (8, 20, 20, 3)
    assert (read[2:] == 250).all()
    np.testing.assert_array_equal(read[0], np.full((20, 20, 3), 40, np.uint8))  # where the face will be, still away
    assert competition.read(empty).shape == (8, 80, 80, 3)  # whole, made a square
    assert [(f.kind, f.scene) for f in competition.inspect()] == [("video without a face", "empty")]
    assert list(competition.carried) == ["crop.detector"]
    pickle.loads(pickle.dumps(competition)).read(moves)


def test_only_sampled_frames_are_looked_at(faces, monkeypatch):
    looked = []
    monkeypatch.setattr(Bright, "largest", lambda self, frame: looked.append(frame.shape))
    competition = opened(faces, crop={"detector": "any.onnx"}, sampling={"count": 3}, test=None)
    competition.read(competition.scenes("train")[0])
    assert looked == [(60, 80, 3)] * 3


def test_the_detectors_boxes_are_in_pixels_of_the_frame(monkeypatch):
    """It sees a smaller frame; of several faces the largest is taken."""

    class Net:
        def setInputSize(self, size):
            self.size = size

        def detect(self, image):
            assert image.shape == (480, 640, 3) and image[0, 0].tolist() == [30, 20, 10]  # BGR
            return 1, np.array([[10, 10, 20, 20, *[0] * 10, 0.9], [320, 120, 64, 96, *[0] * 10, 0.8]], np.float32)

    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *a, **k: Net())
    detector = Detector(Path(__file__), 0.7)
    picture = np.empty((960, 1280, 3), np.uint8)
    picture[:] = 10, 20, 30
    assert detector.largest(picture) == Box(640, 240, 768, 432)


@pytest.mark.skipif(not YUNET.is_file(), reason="needs YuNet's ONNX file, named by YUNET_ONNX")
def test_yunet_finds_a_face():
    from skimage.data import astronaut

    box = Detector(YUNET, 0.7).largest(astronaut())
    assert 150 < box.x0 < box.x1 < 300 and 30 < box.y0 < box.y1 < 230


# ---- end to end ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_boxes_go_from_training_to_the_kernel(tmp_path, capfd):
    """The kernel has the data without the table: it comes with the weights, and the same answers come out."""
    sister = Sister(tmp_path, "videos", data={})
    data = tmp_path / "data"
    data.mkdir()
    synthetic.write(data, scenes=12, test_scenes=3, size=64, seed=1)
    test = sorted(path.relative_to(data).as_posix() for path in (data / "public_test/videos").iterdir())
    train = [path.relative_to(data).as_posix() for path in (data / "train/videos").iterdir()]
    table = tmp_path / "faces.csv"
    table.write_text("\n".join([HEADER, *(f"{name},,10,10,42,42" for name in [*train, *test[1:]])]) + "\n")
    flags = ("--set", f"data.options={{crop: {{boxes: '{table}'}}}}")
    for name in STAGES:
        assert sister.run(name, *flags) == 0, name
    said = capfd.readouterr().out
    assert "video without a box: 1 (" in said
    submission = sister.root / "06_submission/test/submission.csv"
    kernel = Kernel(tmp_path, (*sister.flags, *flags), data, submission)
    table.unlink()
    carried = list((tmp_path / "kernel/weights/carried").rglob("*.csv"))
    assert [path.relative_to(tmp_path / "kernel/weights").as_posix() for path in carried] == [
        "carried/crop.boxes/faces.csv"
    ]
    code, said = kernel.run(tmp_path / "working")
    assert code == 0, said
    assert (tmp_path / "working/submission.csv").read_bytes() == submission.read_bytes()
    assert "kernel: ! 1 of 3 videos have no box and are looked at whole" in said
