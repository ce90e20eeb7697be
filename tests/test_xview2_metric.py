"""The official xView2 metric: the official script's own numbers, hand-worked cases, and a slow second opinion."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.competitions.xview2 import metric as xview2
from lib.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
ORACLE = Path(os.environ.get("SHARED_DATA", ROOT / ".." / "shared" / "data")) / "xview2_metric"
KEYS = ["score", "damage_f1", "localization_f1", *(f"damage_f1_{c.replace('-', '_')}" for c in xview2.CLASSES)]
ONE_CLASS_GONE = 4.0e-6
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


# ---- a second opinion, written for obviousness --------------------------------------------------------
def slow_count(lp, dp, lt, dt):
    predicted, true = lp > 0, lt > 0
    counts = [(predicted & true).sum(), (predicted & ~true).sum(), (~predicted & true).sum()]
    graded, truth = np.where(lp > 0, dp, 0)[dt > 0], dt[dt > 0]
    for c in (1, 2, 3, 4):
        counts += [
            ((graded == c) & (truth == c)).sum(),
            ((graded == c) & (truth != c)).sum(),
            ((graded != c) & (truth == c)).sum(),
        ]
    return np.array(counts)


def slow_scores(counts):
    """The published formulas in plain Python numbers, one after the other."""
    f1s = []
    for tp, fp, fn in counts.reshape(5, 3).tolist():
        precision, recall = (tp / (tp + fp), tp / (tp + fn)) if tp else (0, 0)
        f1s.append((2 * precision * recall) / (precision + recall) if tp else 0)
    inverse = 0.0
    for f in f1s[1:]:  # not sum(): from Python 3.12 on it corrects the rounding of floats, plain addition does not
        inverse += (f + 1e-6) ** -1
    damage = 4 / inverse
    return dict(zip(KEYS, [0.3 * f1s[0] + 0.7 * damage, damage, *f1s], strict=True))


def random_masks(rng, shape, classes=4):
    """Blocky masks that overlap in part; some sides and some classes may be absent."""

    def blocks(values):
        small = rng.choice(values, size=(-(-shape[0] // 5), -(-shape[1] // 5))).astype(np.uint8)
        return np.ascontiguousarray(np.kron(small, np.ones((5, 5), np.uint8))[: shape[0], : shape[1]])

    held = [0, *rng.choice([1, 2, 3, 4], size=classes, replace=False)]
    return blocks([0, 1]), blocks(held), blocks([0, 1]), blocks(held)


@pytest.mark.parametrize("seed", range(12))
def test_count_equals_slow_count(seed):
    rng = np.random.default_rng(seed)
    shape = [(1, 1), (7, 3), (64, 64), (33, 1200), (700, 512), (40, 40)][seed % 6]
    masks = random_masks(rng, shape, classes=1 + seed % 4)
    counts = xview2.count(*masks)
    assert counts.dtype == np.int64 and counts.shape == (15,)
    np.testing.assert_array_equal(counts, slow_count(*masks))


def test_count_takes_views_bools_and_any_building_value():
    rng = np.random.default_rng(5)
    lp, dp, lt, dt = random_masks(rng, (60, 90))
    expected = slow_count(lp, dp, lt, dt)
    np.testing.assert_array_equal(xview2.count(lp * 255, dp, lt * 7, dt), expected)
    np.testing.assert_array_equal(xview2.count(lp > 0, dp, lt > 0, dt), expected)
    np.testing.assert_array_equal(xview2.count(lp.T, dp.T, lt.T, dt.T), expected)
    np.testing.assert_array_equal(xview2.count(lp[:, ::-1], dp[:, ::-1], lt[:, ::-1], dt[:, ::-1]), expected)


def test_count_refuses_what_it_would_miscount():
    mask = np.zeros((8, 8), np.uint8)
    with pytest.raises(DataError, match="dt.*0..4, got 255"):
        xview2.count(mask, mask, mask, np.full_like(mask, 255))
    with pytest.raises(DataError, match="dp.*0..4, got 5"):
        xview2.count(mask, np.full_like(mask, 5), mask, mask)
    with pytest.raises(DataError, match="mask lt"):
        xview2.count(mask, mask, mask[:4], mask)
    with pytest.raises(DataError, match="mask dp"):
        xview2.count(mask, mask.astype(np.int64), mask, mask)


@pytest.mark.parametrize("seed", range(5))
def test_official_equals_plain_python_to_the_last_bit_and_over_leading_axes(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 10 ** (1 + seed), size=(40, 5, 15)) * (rng.random((40, 5, 15)) > 0.2)
    scores = xview2.official(counts)
    assert list(scores) == KEYS
    for i, j in np.ndindex(40, 5):
        expected = slow_scores(counts[i, j])
        assert {key: float(value[i, j]) for key, value in scores.items()} == expected


# ---- the cases of the official script, on one tile with a building per class ---------------------------
def tile():
    truth = np.zeros((1024, 1024), np.uint8)
    for c in (1, 2, 3, 4):
        truth[100:200, 200 * c : 200 * c + 100] = c
    return truth


def scores_of(*scenes):
    total = sum(xview2.count(*scene) for scene in scenes)
    return {key: float(value) for key, value in xview2.official(total).items()}


def expect(scores, localization, damage, score, rel=1e-4):
    assert scores["localization_f1"] == pytest.approx(localization, rel=rel, abs=1e-12)
    assert scores["damage_f1"] == pytest.approx(damage, rel=rel)
    assert scores["score"] == pytest.approx(score, rel=rel)


def test_perfect():
    t = tile()
    expect(scores_of((t > 0, t, t > 0, t)), 1, 1.000001, 1.0000007, rel=1e-9)


def test_a_class_absent_from_the_truth_caps_the_score():
    t = tile()
    t[t == 3] = 0
    expect(scores_of((t > 0, t, t > 0, t)), 1, ONE_CLASS_GONE, 0.3000028, rel=1e-5)


def test_a_class_never_predicted_caps_the_score():
    t = tile()
    dp = np.where(t == 3, 2, t).astype(np.uint8)
    expect(scores_of((t > 0, dp, t > 0, t)), 1, ONE_CLASS_GONE, 0.3000028, rel=1e-5)


def test_everything_no_damage():
    t = tile()
    expect(scores_of((t > 0, (t > 0).astype(np.uint8), t > 0, t)), 1, 1.33e-6, 0.3000009, rel=3e-3)


def test_empty_truth_and_empty_answer_do_not_score_1():
    empty = np.zeros((1024, 1024), np.uint8)
    expect(scores_of((empty, empty, empty, empty)), 0, 1e-6, 7e-7, rel=1e-9)


def test_false_building_hurts_localization_only():
    t = tile()
    lp, dp = (t > 0).astype(np.uint8), t.copy()
    lp[600:900, 300:600], dp[600:900, 300:600] = 1, 4
    expect(scores_of((lp, dp, t > 0, t)), 0.4706, 1.000001, 0.8412)


def test_damage_outside_of_the_truth_is_harmless():
    t = tile()
    expect(scores_of((t > 0, np.where(t, t, 4).astype(np.uint8), t > 0, t)), 1, 1.000001, 1.0000007, rel=1e-9)


def test_damage_is_lost_where_no_building_was_predicted():
    t = tile()
    lp = (t > 0).astype(np.uint8)
    lp[100:150, 200:300] = 0
    scores = scores_of((lp, t, t > 0, t))
    expect(scores, 0.9333, 0.8889, 0.9022)
    assert scores["damage_f1_no_damage"] == pytest.approx(2 / 3)


def test_damage_left_out_inside_a_predicted_building():
    t = tile()
    dp = t.copy()
    dp[100:150, 200:300] = 0
    expect(scores_of((t > 0, dp, t > 0, t)), 1, 0.8889, 0.9222)


def test_localization_may_hold_damage_values():
    t = tile()
    expect(scores_of((t, t, t, t)), 1, 1.000001, 1.0000007, rel=1e-9)


def test_counts_are_pooled_over_scenes():
    t, empty = tile(), np.zeros((1024, 1024), np.uint8)
    false = empty.copy()
    false[:100, :100] = 1
    expect(scores_of((t > 0, t, t > 0, t), (false, false, empty, empty)), 0.8889, 1.000001, 0.9667)


def test_the_two_targets_are_not_compared_with_each_other():
    t = tile()
    lt = ((t > 0) & (t != 1)).astype(np.uint8)
    expect(scores_of((lt, t, lt, t)), 1, ONE_CLASS_GONE, 0.3000028, rel=1e-5)


# ---- files --------------------------------------------------------------------------------------------
NAMES = [("localization", "prediction"), ("damage", "prediction"), ("localization", "target"), ("damage", "target")]


@pytest.fixture
def folders(tmp_path):
    """A perfect answer in official files: (predictions, targets)."""
    for kind, role in NAMES:
        (tmp_path / role).mkdir(exist_ok=True)
        mask = tile() if kind == "damage" else (tile() > 0).astype(np.uint8)
        cv2.imwrite(str(tmp_path / role / f"test_{kind}_00000_{role}.png"), mask)
    return tmp_path / "prediction", tmp_path / "target"


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_raw_png(path, rows, bits, colour, colours=0):
    """Write a 1024 x 1024 PNG of any bit depth and colour type from its rows of bytes, with a palette if asked."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1024, 1024, bits, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(np.linspace(0, 255, 3 * colours).astype(np.uint8))) if colours else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + palette + body + chunk(b"IEND", b""))


def test_files_of_a_perfect_answer_and_extra_predictions(folders):
    predictions, targets = folders
    cv2.imwrite(str(predictions / "test_damage_00009_prediction.png"), np.full((5, 5), 77, np.uint8))
    scores = xview2.score_folder(predictions, targets)
    assert list(scores) == KEYS
    assert scores["score"] == pytest.approx(1.0000007, rel=1e-9)


def test_palette_png_counts_by_its_indices(folders):
    predictions, targets = folders
    path = predictions / "test_damage_00000_prediction.png"
    write_raw_png(path, [row.tobytes() for row in tile()], bits=8, colour=3, colours=5)
    assert xview2.score_folder(predictions, targets)["score"] == pytest.approx(1.0000007, rel=1e-9)


def test_four_bit_palette_png_counts_by_its_indices(tmp_path):
    rows = [(row[0::2] << 4 | row[1::2]).tobytes() for row in tile()]
    write_raw_png(tmp_path / "a.png", rows, bits=4, colour=3, colours=16)
    np.testing.assert_array_equal(xview2.read_mask(tmp_path / "a.png"), tile())


def test_four_bit_grey_png_is_stretched_so_only_empty_ones_pass(tmp_path):
    rows = [(row[0::2] << 4 | row[1::2]).tobytes() for row in tile()]
    write_raw_png(tmp_path / "a.png", rows, bits=4, colour=0)
    write_raw_png(tmp_path / "b.png", [bytes(512)] * 1024, bits=4, colour=0)
    with pytest.raises(DataError, match="values other than"):
        xview2.read_mask(tmp_path / "a.png")
    assert not xview2.read_mask(tmp_path / "b.png").any()


def bad_files():
    zeros = np.zeros((1024, 1024), np.uint8)
    return {
        "values": (zeros + 5, "values other than 0, 1, 2, 3, 4"),
        "mask_0_255": (zeros + 255, "values other than"),
        "size": (zeros[:512, :512], "512 x 512"),
        "rgb": (np.dstack([zeros] * 3), "8-bit RGB"),
        "rgba": (np.dstack([zeros] * 4), "8-bit RGBA"),
        "depth": (zeros.astype(np.uint16), "16-bit grey"),
    }


@pytest.mark.parametrize("case", bad_files())
@pytest.mark.parametrize(("kind", "role"), NAMES[1:3])
def test_files_that_the_official_script_refuses(folders, kind, role, case):
    mask, message = bad_files()[case]
    cv2.imwrite(str(folders[role == "target"] / f"test_{kind}_00000_{role}.png"), mask)
    with pytest.raises(DataError, match=message):
        xview2.score_folder(*folders)


def test_one_bit_png_is_refused_although_its_values_fit(folders):
    write_raw_png(folders[0] / "test_localization_00000_prediction.png", [bytes(128)] * 1024, bits=1, colour=0)
    with pytest.raises(DataError, match="1-bit grey"):
        xview2.score_folder(*folders)


def test_missing_cut_damaged_and_foreign_files_are_named(folders):
    path = folders[0] / "test_damage_00000_prediction.png"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for data, message in ((whole[:-40], "cut short"), (bytes(flipped), "damaged"), (b"GIF89a", "not a PNG")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"test_damage_00000_prediction.png.*{message}"):
            xview2.score_folder(*folders)
    path.unlink()
    with pytest.raises(DataError, match="test_damage_00000_prediction.png.*does not exist"):
        xview2.score_folder(*folders)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joplin-tornado_localization_00000_extra_target.png", "four parts"),
        ("test_joplin-tornado_localization_00000_target.png", "four parts"),
        ("test_roads_00000_target.png", "localization"),
        ("test_localization_00001_prediction.png", "two folders"),
        ("train_localization_00001_target.png", "test or hold"),
    ],
)
def test_names_of_targets(folders, name, message):
    (folders[1] / name).write_bytes((folders[1] / "test_damage_00000_target.png").read_bytes())
    with pytest.raises(DataError, match=message):
        xview2.score_folder(*folders)


def test_folders_must_exist_and_hold_targets(folders, tmp_path):
    with pytest.raises(DataError, match="folder of prediction"):
        xview2.score_folder(tmp_path / "nowhere", folders[1])
    with pytest.raises(DataError, match="folder of target"):
        xview2.score_folder(folders[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="at least one"):
        xview2.score_folder(folders[0], tmp_path / "empty")


def test_command_line_prints_json_or_one_sentence(folders, capsys):
    assert xview2.main([str(folder) for folder in folders]) == 0
    assert json.loads(capsys.readouterr().out) == xview2.score_folder(*folders)
    (folders[0] / "test_damage_00000_prediction.png").unlink()
    assert xview2.main([str(folder) for folder in folders]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "does not exist" in captured.err


@pytest.mark.skipif(not ORACLE.is_dir(), reason="the official script's own numbers are not present")
@pytest.mark.parametrize("folder", [path.stem for path in sorted(ORACLE.glob("expected_*.json"))])
def test_the_official_scripts_own_numbers(folder, capsys):
    assert xview2.main([str(ORACLE / folder.removeprefix("expected_")), str(ORACLE / "targets")]) == 0
    assert capsys.readouterr().out.strip() == (ORACLE / f"{folder}.json").read_text().strip()


def test_module_runs_as_a_program(folders):
    command = [sys.executable, "-m", "lib.scoring.xview2", *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == xview2.score_folder(*folders) and done.stderr == ""


# ---- the other tables ---------------------------------------------------------------------------------
def test_present_leaves_out_classes_that_the_truth_lacks():
    t = tile()
    t[t == 3] = 0
    counts = xview2.count(t > 0, np.where(t == 2, 1, t).astype(np.uint8), t > 0, t)
    f = [float(xview2.official(counts)[key]) for key in KEYS[3:]]
    mean = 3 / sum(1 / (f[i] + 1e-6) for i in (0, 1, 3))  # minor is present and missed: it still counts
    scores = xview2.present(counts)
    assert scores["damage_f1_present_classes"] == pytest.approx(mean)
    assert scores["score_present_classes"] == pytest.approx(0.3 + 0.7 * mean)
    full = xview2.count(tile() > 0, tile(), tile() > 0, tile())
    both = xview2.present(np.stack([full, np.zeros(15, np.int64)]))
    assert both["score_present_classes"][0] == xview2.official(full)["score"]
    assert np.isnan(both["score_present_classes"][1])


def test_confusion_agrees_with_the_counts():
    rng = np.random.default_rng(3)
    masks = random_masks(rng, (200, 150))
    matrix, counts = xview2.confusion(*masks), xview2.count(*masks).reshape(5, 3)[1:]
    lp, dp, _, dt = masks
    for true, predicted in np.ndindex(5, 5):
        assert matrix[true, predicted] == ((dt > 0) & (dt == true) & (np.where(lp, dp, 0) == predicted)).sum()
    np.testing.assert_array_equal(np.diag(matrix)[1:], counts[:, 0])
    np.testing.assert_array_equal(matrix.sum(0)[1:] - np.diag(matrix)[1:], counts[:, 1])
    np.testing.assert_array_equal(matrix.sum(1)[1:] - np.diag(matrix)[1:], counts[:, 2])


def test_objects_worked_by_hand():
    lt, dt, lp, dp = (np.zeros((60, 60), np.uint8) for _ in range(4))
    lt[0:10, 0:10], dt[0:10, 0:10] = 1, 1  # found, 80 of 100 pixels, right class
    lp[0:10, 0:8], dp[0:10, 0:8] = 1, 1
    lt[0:10, 20:30], dt[0:10, 20:30] = 1, 2  # found with IoU exactly 0.5, wrong class
    lp[0:10, 20:25], dp[0:10, 20:25] = 1, 4
    lt[30:40, 0:10], dt[30:40, 0:10] = 1, 3  # too small a part of it found
    lp[30:34, 0:10], dp[30:34, 0:10] = 1, 3
    lp[50:55, 50:55], dp[50:55, 50:55] = 1, 4  # false building
    dp[20:25, 50:55] = 2  # no building predicted here: erased
    counts = xview2.count_objects(lp, dp, lt, dt)
    np.testing.assert_array_equal(counts.reshape(5, 3), [[2, 2, 1], [1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 2, 0]])
    scores = xview2.object_f1(np.stack([counts, counts * 3, np.zeros(15, np.int64)]))
    assert scores["object_localization_f1"][0] == scores["object_localization_f1"][1] == pytest.approx(4 / 7)
    assert scores["object_damage_f1_no_damage"][0] == 1 and scores["object_damage_f1_destroyed"][0] == 0
    assert np.isnan(scores["object_damage_f1_no_damage"][2])


def test_objects_match_one_to_one():
    true, halves = np.zeros((20, 41), np.uint8), np.zeros((20, 41), np.uint8)
    true[:, :40] = 1  # two predicted halves, a pixel apart: only one of them can be this building
    halves[:, :20], halves[:, 21:41] = 1, 1
    counts = xview2.count_objects(halves, halves, true, true).reshape(5, 3)
    np.testing.assert_array_equal(counts[:2], [[1, 1, 0], [1, 1, 0]])
    swapped = xview2.count_objects(true, true, halves, halves).reshape(5, 3)
    np.testing.assert_array_equal(swapped[:2], [[1, 0, 1], [1, 0, 1]])
