"""Sampling of videos against a slow full decode, for files whose headers are right, wrong or cut off."""

import cv2
import numpy as np
import pytest

from lib.competitions import open_competition
from lib.competitions.videos import frames as video
from lib.competitions.videos.frames import FrameSampling
from lib.errors import ConfigError, DataError
from lib.scenes.raster import write_png

FPS = 10.0
CODES = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}


def picture(number, height=48, width=64):
    """Draw frame ``number``: its brightness says which it is, its left half is reddish."""
    frame = np.full((height, width, 3), 8 * number, np.uint8)
    frame[:, : width // 2, 0] += 40
    return frame


def write(path, frames=20, height=48, width=64):
    if not path.suffix:
        path.mkdir()
        for number in range(frames):
            write_png(path / f"frame_{number + 1}.png", picture(number, height, width))
        return path
    stream = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODES[path.suffix]), FPS, (width, height))
    for number in range(frames):
        stream.write(np.ascontiguousarray(picture(number, height, width)[..., ::-1]))
    stream.release()
    return path


def decoded(path):
    """Decode every frame the plain way: (F, H, W, 3) RGB."""
    stream, frames = cv2.VideoCapture(str(path)), []
    while (got := stream.read())[0]:
        frames.append(got[1][..., ::-1])
    return np.stack(frames)


def numbers(frames):
    """Read off which frames these are."""
    return np.rint(frames[:, :, -8:].mean((1, 2, 3)) / 8).astype(int).tolist()


# ---- rules --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", CODES)
def test_samples_are_those_of_a_full_decode(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}")
    every = decoded(path)
    assert len(every) == 20
    for rule, expected in (
        ({"every": 1}, range(20)),
        ({"every": 7}, [0, 7, 14]),
        ({"count": 1}, [9]),
        ({"count": 2}, [0, 19]),
        ({"count": 5}, [0, 5, 10, 14, 19]),  # 4.75, 9.5 (to even), 14.25
        ({"count": 99}, range(20)),
        ({"per_second": 2}, [0, 5, 10, 15]),
        ({"per_second": 4}, [0, 3, 5, 8, 10, 13, 15, 18]),
        ({"per_second": 60}, range(20)),
        ({"per_second": 0.5}, [0]),
    ):
        np.testing.assert_array_equal(
            video.sample(path, FrameSampling(**rule)), every[list(expected)], err_msg=str(rule)
        )


def test_colours_are_rgb(tmp_path):
    red, green, _ = video.sample(write(tmp_path / "clip.avi"), FrameSampling(count=1))[0, 24, 8].astype(int)
    assert red > green + 20


@pytest.mark.parametrize("total, count", [(3, 2), (2, 5), (5, 5), (30, 7), (31, 30), (1000, 11)])
def test_spread_is_even_and_distinct(total, count):
    chosen = video.spread(total, count)
    assert len(chosen) == len(set(chosen)) == min(total, count)
    assert (chosen[0], chosen[-1]) == (0, total - 1)
    assert np.ptp(np.diff(chosen)) <= 1


def test_ticks_are_the_frames_nearest_to_the_times():
    for total, fps, rate in ((20, 10, 3), (100, 29.97, 4), (50, 25, 24), (9, 12, 30)):
        times = np.arange(200) / rate
        nearest = [min(range(total + 1), key=lambda k: (abs(k / fps - time), -k)) for time in times]
        assert video.ticks(total, fps / rate) == sorted({k for k in nearest if k < total})


@pytest.mark.parametrize("rule, words", [
    ({}, "got none"), ({"count": 2, "every": 3}, "count and every"), ({"count": 0}, "count: .*greater than 0"),
    ({"every": -1}, "every: .*greater than 0"), ({"every": 1.5}, "every: .*integer"),
    ({"count": True}, "count: .*integer"), ({"per_second": "2"}, "per_second: .*number"),
])  # fmt: skip
def test_rules_that_make_no_sense_are_refused(tmp_path, rule, words):
    with pytest.raises(ConfigError, match=f"data.options.sampling.*{words}"):
        open_competition("videos", tmp_path, {"sampling": rule})


# ---- headers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stated", [0, 3, 12, 26, 5000])
@pytest.mark.parametrize("rule", [{"count": 4}, {"every": 6}, {"per_second": 3}])
def test_a_wrong_number_of_frames_changes_nothing(tmp_path, monkeypatch, stated, rule):
    path = write(tmp_path / "clip.avi")
    expected = video.sample(path, FrameSampling(**rule))
    monkeypatch.setattr(video, "_header", lambda path: (stated, FPS))
    np.testing.assert_array_equal(video.sample(path, FrameSampling(**rule)), expected)


def test_a_file_cut_off_gives_what_is_left(tmp_path):
    path = write(tmp_path / "clip.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    left = decoded(path)
    assert 2 < len(left) < 20 and video.probe(path)[0] == 20
    np.testing.assert_array_equal(video.sample(path, FrameSampling(count=3)), left[[0, round((len(left) - 1) / 2), -1]])


def test_a_rate_needs_a_frame_rate(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.avi")
    monkeypatch.setattr(video, "_header", lambda path: (20, 0.0))
    with pytest.raises(DataError, match="frame rate.*use count"):
        video.sample(path, FrameSampling(per_second=2))
    with pytest.raises(DataError, match="frame rate"):
        video.sample(write(tmp_path / "folder"), FrameSampling(per_second=2))


@pytest.mark.parametrize("suffix", CODES)
def test_probe_reads_the_header(tmp_path, suffix):
    assert video.probe(write(tmp_path / f"clip{suffix}")) == (20, pytest.approx(FPS), (48, 64))


# ---- what cannot be read ------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["missing", "empty", "noise", "truncated", "header only", "no frames", "bad frames"])
def test_what_gives_no_frame_is_named(tmp_path, kind):
    path = tmp_path / "broken.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "truncated":
        write(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "header only":
        path = write(tmp_path / "broken.avi")
        path.write_bytes(path.read_bytes()[:5800])
    elif kind.endswith("frames"):
        path.mkdir()
        (path / f"1.{'txt' if kind == 'no frames' else 'jpg'}").write_bytes(b"nothing")
    for read in (lambda: video.probe(path), lambda: video.sample(path, FrameSampling(count=2))):
        with pytest.raises(DataError, match="broken"):
            read()


# ---- folders and sizes --------------------------------------------------------------------------------
def test_folders_are_read_in_the_order_of_their_numbers(tmp_path):
    path = write(tmp_path / "clip")  # frame_10 sorts before frame_2 as text
    (path / "notes.txt").write_text("not a frame")
    assert numbers(video.sample(path, FrameSampling(every=1))) == list(range(20))
    assert numbers(video.sample(path, FrameSampling(count=3))) == [0, 10, 19]
    assert video.probe(path) == (20, 0.0, (48, 64))


def test_a_span_keeps_frames_by_number(tmp_path):
    path = write(tmp_path / "clip")
    assert numbers(video.sample(path, FrameSampling(every=2), span=(5, 9))) == [4, 6, 8]
    with pytest.raises(DataError, match="numbered 30 to 40"):
        video.sample(path, FrameSampling(count=2), span=(30, 40))


@pytest.mark.parametrize("broken", [1, 11, 20])
def test_frames_of_a_folder_that_cannot_be_read_do_not_count(tmp_path, broken):
    path = write(tmp_path / "clip")
    (path / f"frame_{broken}.png").write_bytes(b"nothing")
    left = [number for number in range(20) if number != broken - 1]
    assert numbers(video.sample(path, FrameSampling(count=3))) == [left[k] for k in video.spread(19, 3)]
    assert video.probe(path)[2] == (48, 64)


@pytest.mark.parametrize("name", ["clip.avi", "clip"])
def test_frames_are_shrunk_while_decoding_but_never_grown(tmp_path, name):
    path = write(tmp_path / name)
    whole = video.sample(path, FrameSampling(every=4))
    small = video.sample(path, FrameSampling(every=4), size=24)
    assert small.shape == (5, 24, 32, 3) and small.dtype == np.uint8
    assert np.abs(small.astype(int) - whole[:, ::2, ::2]).mean() < 3
    np.testing.assert_array_equal(video.sample(path, FrameSampling(every=4), size=480), whole)


def test_frames_of_other_shapes_take_that_of_the_first(tmp_path):
    path = write(tmp_path / "clip", frames=3)
    write_png(path / "frame_2.png", picture(1, 96, 128))
    assert numbers(video.sample(path, FrameSampling(every=1))) == [0, 1, 2]


def test_videos_are_known_by_their_names(tmp_path):
    write(tmp_path / "clip", frames=1)
    (tmp_path / "empty").mkdir()
    names = ("clip", "empty", "a.MP4", "a.csv", ".a.mp4")
    assert [video.is_video(tmp_path / name) for name in names] == [True, True, True, False, False]
