"""Submission files: what is written reads back, scores the same, and the linters find every planted fault."""

import json
import zipfile

import cv2
import numpy as np
import pytest

from lib.competitions import sample as samples
from lib.competitions import tables
from lib.competitions.xview2 import metric as xview2
from lib.competitions.xview2 import pairs
from lib.errors import DataError
from lib.scenes import rle

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
HEADER = "ImageId_ClassId,EncodedPixels\n"
FORM = tables.Form(("ImageId_ClassId", "EncodedPixels"))


def answer(seed):
    rng = np.random.default_rng(seed)
    localization = np.kron(rng.integers(0, 2, (16, 16)), np.ones((64, 64), int)).astype(np.uint8)
    damage = np.kron(rng.integers(0, 5, (32, 32)), np.ones((32, 32), int)).astype(np.uint8)
    return localization, damage * localization


# ---- CSV ----------------------------------------------------------------------------------------------
def test_csv_of_an_answer_reads_back_to_the_same_masks(tmp_path):
    path, (localization, damage) = tmp_path / "submission.csv", answer(0)
    empty = np.zeros_like(damage)
    with tables.write(path, FORM) as add:
        for scene_id, masks in (("0001", (localization, damage)), ("1e5", (empty, damage))):
            for row in pairs.pair_rows(scene_id, *masks):
                add(*row)
    table = dict(tables.read(path, FORM))
    assert list(table) == [f"{scene}_{c}" for scene in ("0001", "1e5") for c in range(5)]
    assert [table[f"1e5_{c}"] for c in range(5)] == [""] * 5  # no building, so no damage either
    np.testing.assert_array_equal(rle.decode(table["0001_0"], (1024, 1024)), localization)
    graded = sum(c * rle.decode(table[f"0001_{c}"], (1024, 1024)) for c in range(1, 5))
    np.testing.assert_array_equal(graded, damage * localization)
    assert path.read_text().startswith(HEADER) and "nan" not in path.read_text().lower()
    assert tables.lint(path, FORM, {(row_id,): (1024, 1024) for row_id in table}, sample=samples.read(path)) == []


def test_csv_is_whole_or_not_there(tmp_path):
    path = tmp_path / "submission.csv"
    with pytest.raises(RuntimeError), tables.write(path, FORM) as add:
        add("a_1", "")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="'a_1' twice"), tables.write(path, FORM) as add:
        add("a_1", "")
        add("a_1", "1 1")
    assert list(tmp_path.iterdir()) == []


def test_csv_ids_with_commas_and_long_runs_survive(tmp_path):
    path, long = tmp_path / "a.csv", " ".join(f"{i} 1" for i in range(1, 60000, 2))
    assert len(long) > 131072  # the csv module's own limit
    with tables.write(path, FORM) as add:
        add('a,"b"_1', long)
    assert tables.read(path, FORM) == [('a,"b"_1', long)]
    assert tables.lint(path, FORM, {('a,"b"_1',): (60000, 1)}) == []


@pytest.mark.parametrize("rows", ["a_1\n", "a_1,\na_1,\n", "a_1,1,1\n", "\n", None, "id,rle\na_1,\n"])
def test_reader_refuses_other_tables(tmp_path, rows):
    (tmp_path / "a.csv").write_text("" if rows is None else rows if rows.startswith("id") else HEADER + rows)
    with pytest.raises(DataError, match="ImageId_ClassId"):
        tables.read(tmp_path / "a.csv", FORM)


SHAPES = {("a_1",): (4, 5), ("a_2",): (4, 5), ("b_x_1",): (2, 2)}
VALID = ["a_1,1 2 5 16", "a_2,", "b_x_1,4 1"]
CSV_FAULTS = [
    ([*VALID[:2], "b_x_1,nan"], "1 row: NaN where an empty mask is an empty text (b_x_1)"),
    ([*VALID[:2], "b_x_1,1 1 1"], "an odd count of numbers (b_x_1)"),
    ([*VALID[:2], "b_x_1,one 1"], "not whole numbers"),
    ([*VALID[:2], "b_x_1,4 2"], "a run outside of the image (b_x_1)"),
    ([*VALID[:2], "b_x_1,0 1"], "a run outside of the image (b_x_1)"),
    ([*VALID[:2], "b_x_1,1 0"], "a run of length 0 (b_x_1)"),
    ([*VALID[:2], "b_x_1,3 1 1 1"], "runs out of order (b_x_1)"),
    (["a_1,1 3 3 1", "a_2,2 2 2 2", VALID[2]], "2 rows: overlapping runs (a_1, a_2)"),
    ([VALID[0], *VALID], "id written more than once (a_1)"),
    (VALID[:2], "missing, it was asked for (b_x_1)"),
    ([*VALID, "c_1,"], "not one of the scenes asked for (c_1)"),
    ([*VALID, "a_3,1 1"], "not one of the scenes asked for (a_3)"),
    ([*VALID, "a_3,1 1,"], "3 instead of 2 fields (line 5)"),
    ([*VALID, ""], "0 instead of 2 fields (line 5)"),
    ([], "expected rows below the header"),
]


@pytest.mark.parametrize(("rows", "finding"), CSV_FAULTS)
def test_csv_linter_finds_each_fault(tmp_path, rows, finding):
    path = tmp_path / "submission.csv"
    path.write_text(HEADER + "\n".join(VALID) + "\n")
    assert tables.lint(path, FORM, SHAPES) == []
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    findings = tables.lint(path, FORM, SHAPES)
    assert any(finding in found for found in findings), findings
    assert all(found.startswith(str(path)) for found in findings)
    assert rows == [] or len(findings) == 1


def test_names_may_be_asked_for_by_their_first_field(tmp_path):
    path, form = tmp_path / "a.csv", tables.Form(("id", "class", "runs"), names=2)
    path.write_text("id,class,runs\na,1,20 1\na,2,\nb,1,1 1\n")
    assert tables.lint(path, form, {("a",): (4, 5), ("b",): (1, 1)}) == []
    assert tables.lint(path, form, {("a",): (4, 4), ("b",): (1, 1)}) == [
        f"{path}: 1 row: a run outside of the image (a,1)"
    ]
    assert tables.lint(path, form, {("a",): (4, 5), ("b",): (1, 1), ("c",): (1, 1)}) == [
        f"{path}: 1 row: missing, it was asked for (c)"
    ]
    assert "missing, it was asked for (b,2)" in tables.lint(path, form, {(i, c): (4, 5) for i in "ab" for c in "12"})[0]
    path.write_text("id,class,runs\na,1,20 1\na,1,\nb,1,1 1\n")
    assert "id written more than once (a,1)" in tables.lint(path, form)[0]


def test_csv_linter_compares_with_the_sample(tmp_path):
    path, sample = tmp_path / "a.csv", tmp_path / "sample_submission.csv"
    sample.write_text(HEADER + "a_1,1 1\na_2,1 1\nb_1,1 1\n")
    cases = {
        HEADER + "a_1,\na_2,\nb_1,3 4\n": [],
        HEADER + "a_2,\na_1,\nb_1,\n": ["expected the sample's order of rows, got 2 moved (first: a_2, line 2)"],
        HEADER + "a_1,\nb_1,\n": ["expected 3 rows as in the sample, got 2", "1 row: missing, the sample has it (a_2)"],
        HEADER + "a_1,\na_2,\nz_1,\n": ["missing, the sample has it (b_1)", "not in the sample (z_1)"],
        "id,rle\na_1,\na_2,\nb_1,\n": ["expected the header 'ImageId_ClassId,EncodedPixels', got 'id,rle'"],
    }
    for text, wanted in cases.items():
        path.write_text(text)
        findings = tables.lint(path, FORM, sample=samples.read(sample))
        assert len(findings) == len(wanted) and all(w in f for w, f in zip(wanted, findings, strict=True)), findings
    sample.write_text("id,rle\na_1,\na_2,\nb_1,\n")  # a competition with a header of its own
    assert tables.lint(path, FORM, sample=samples.read(sample)) == []


def test_csv_linter_of_no_file_and_of_a_picture(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    for name in ("nowhere.csv", "picture.csv"):
        findings = tables.lint(tmp_path / name, FORM)
        assert len(findings) == 1 and name in findings[0] and "expected a CSV file" in findings[0]


def test_many_names_are_shortened(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "".join(f"s{i}_1,1\n" for i in range(40)))
    (finding,) = tables.lint(tmp_path / "a.csv", FORM)
    assert finding.endswith("40 rows: an odd count of numbers (s0_1, s1_1, s2_1, ...)")


# ---- PNG pairs ----------------------------------------------------------------------------------------
def write_pairs(folder, ids):
    with pairs.write_png_pairs(folder) as add:
        for seed, scene_id in enumerate(ids):
            add(scene_id, *answer(seed))


def test_pairs_named_by_disaster_are_numbered_and_read_back(tmp_path):
    ids = ["guatemala-volcano_00000003", "joplin-tornado_00000001", "joplin-tornado_00000010"]
    write_pairs(tmp_path, ids)
    assert (tmp_path / "scene_ids.csv").read_text().splitlines() == [
        "scene_id,pair", *(f"{scene_id},test_0000{i}" for i, scene_id in enumerate(ids)),
    ]  # fmt: skip
    assert pairs.read_pairs(tmp_path) == {scene_id: f"test_0000{i}" for i, scene_id in enumerate(ids)}
    for seed, scene_id in enumerate(ids):
        for written, kind in zip(answer(seed), pairs.KINDS, strict=True):
            read = xview2.read_mask(pairs.png_path(tmp_path, pairs.read_pairs(tmp_path)[scene_id], kind))
            np.testing.assert_array_equal(written, read)
    assert pairs.lint_png_pairs(tmp_path) == []
    assert pairs.lint_png_pairs(tmp_path, ["test_00000", "test_00001", "test_00002"]) == []


def test_challenge_ids_keep_their_numbers(tmp_path):
    write_pairs(tmp_path, ["hold_00004", "test_00007", "test_00100"])
    names = {path.name for path in tmp_path.glob("*.png")}
    assert {"hold_damage_00004_prediction.png", "test_localization_00007_prediction.png"} < names and len(names) == 6
    np.testing.assert_array_equal(xview2.read_mask(tmp_path / "test_damage_00100_prediction.png"), answer(2)[1])


def test_written_pairs_score_as_the_arrays_do(tmp_path):
    ids = [f"socal-fire_0000000{i}" for i in range(3)]
    write_pairs(tmp_path / "predictions", ids)
    (tmp_path / "targets").mkdir()
    counts = 0
    for i in range(3):
        lt, dt = answer(10 + i)
        cv2.imwrite(str(tmp_path / "targets" / f"test_localization_0000{i}_target.png"), lt)
        cv2.imwrite(str(tmp_path / "targets" / f"test_damage_0000{i}_target.png"), dt)
        counts = counts + xview2.count(*answer(i), lt, dt)
    scores = xview2.score_folder(tmp_path / "predictions", tmp_path / "targets")
    assert json.dumps(scores) == json.dumps({key: float(value) for key, value in xview2.official(counts).items()})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["b_00000001", "a_00000001"], "sorted by id, got 'a_00000001' after 'b_00000001'"),
        (["a_00000001", "a_00000001"], "sorted by id"),
        (["joplin-tornado_00000001", "test_00000"], "'test_00000' would be test_00000, as another scene is"),
    ],
)
def test_pairs_refuse_ids_that_have_no_number_of_their_own(tmp_path, ids, message):
    with pytest.raises(DataError, match=message):
        write_pairs(tmp_path, ids)
    assert not (tmp_path / "scene_ids.csv").exists()


@pytest.mark.parametrize("wrong", [np.full((1024, 1024), 5, np.uint8), np.zeros((512, 512), np.uint8),
                                   np.zeros((1024, 1024), bool), np.zeros((1024, 1024, 3), np.uint8)])  # fmt: skip
def test_pairs_refuse_masks_that_the_scorer_would(tmp_path, wrong):
    fine = np.zeros((1024, 1024), np.uint8)
    for masks in ((wrong, fine), (fine, wrong)):
        with pytest.raises(DataError, match="a_1: expected"), pairs.write_png_pairs(tmp_path) as add:
            add("a_1", *masks)


def test_archive_holds_the_official_pngs_in_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_pairs(tmp_path / name, ["test_00000", "test_00001"])
        (tmp_path / name / "overlay.png").write_bytes(name.encode())
        pairs.zip_pngs(tmp_path / name, tmp_path / f"{name}.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"test_{kind}_0000{i}_prediction.png"
                                      for kind in ("damage", "localization") for i in (0, 1)]  # fmt: skip
        name = archive.namelist()[0]
        assert archive.read(name) == (tmp_path / "one" / name).read_bytes()


PNG_FAULTS = {
    "values": (np.full((1024, 1024), 255, np.uint8), "holds values other than 0, 1, 2, 3, 4"),
    "size": (np.zeros((512, 1024), np.uint8), "is 512 x 1024; expected 1024 x 1024"),
    "rgb": (np.zeros((1024, 1024, 3), np.uint8), "is a 8-bit RGB PNG"),
    "depth": (np.zeros((1024, 1024), np.uint16), "is a 16-bit grey PNG"),
}


@pytest.mark.parametrize("case", PNG_FAULTS)
def test_png_linter_finds_what_the_scorer_asserts(tmp_path, case):
    write_pairs(tmp_path, ["test_00000", "test_00001"])
    mask, finding = PNG_FAULTS[case]
    for i in (0, 1):
        cv2.imwrite(str(tmp_path / f"test_damage_0000{i}_prediction.png"), mask)
    (found,) = pairs.lint_png_pairs(tmp_path)
    assert f"2 files: {finding}" in found and "(test_damage_00000_prediction.png, test_damage_00001_" in found


def test_png_linter_finds_missing_cut_and_misnamed_files(tmp_path):
    write_pairs(tmp_path, ["test_00000", "test_00001"])
    (tmp_path / "test_damage_00000_prediction.png").unlink()
    cut = tmp_path / "test_localization_00001_prediction.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    (tmp_path / "joplin-tornado_00000001_damage.png").write_bytes(b"")
    findings = pairs.lint_png_pairs(tmp_path, ["test_00000", "test_00001", "test_00002"])
    assert len(findings) == 3
    assert "official scorer overlooks it (joplin-tornado_00000001_damage.png)" in findings[0]
    assert "3 files: does not exist (test_damage_00000_prediction.png, test_localization_00002" in findings[1]
    assert "1 file: is cut short (test_localization_00001_prediction.png)" in findings[2]
    assert "none" in pairs.lint_png_pairs(tmp_path / "nowhere")[0]
    (tmp_path / "empty").mkdir()
    assert "none" in pairs.lint_png_pairs(tmp_path / "empty")[0]


# ---- CSV under other headers --------------------------------------------------------------------------
ONE_ROW = tables.Form(("id", "rle"), origin=0)
PER_OBJECT = tables.Form(("ImageId", "EncodedPixels"), repeats=True)


def test_a_row_per_scene_under_another_header(tmp_path):
    path = tmp_path / "a.csv"
    with tables.write(path, ONE_ROW) as add:
        add("0001", "0 3")
        add("1e5_2", "")
    assert path.read_text() == "id,rle\n0001,0 3\n1e5_2,\n"
    assert tables.read(path, ONE_ROW) == [("0001", "0 3"), ("1e5_2", "")]
    shapes = {("0001",): (2, 2), ("1e5_2",): (2, 2)}
    assert tables.lint(path, ONE_ROW, shapes) == []
    assert "outside of the image (0001)" in tables.lint(path, tables.Form(("id", "rle")), shapes)[0]
    assert "ImageId_ClassId" in tables.lint(path, FORM, shapes)[0]
    # an id that ends like a class is a scene of its own here
    faults = tables.lint(path, ONE_ROW, {("0001",): (2, 2), ("1e5",): (2, 2)})
    assert any("not one of the scenes asked for (1e5_2)" in fault for fault in faults)


def test_a_row_per_object(tmp_path):
    path = tmp_path / "a.csv"
    with tables.write(path, PER_OBJECT) as add:
        for row in (("a", "1 2 5 1"), ("a", "3 2"), ("b", "")):
            add(*row)
    assert tables.read(path, PER_OBJECT) == [("a", "1 2 5 1"), ("a", "3 2"), ("b", "")]
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageId,EncodedPixels\nb,1 1\na,1 1\n")
    assert tables.lint(path, PER_OBJECT, {("a",): (3, 3), ("b",): (2, 2)}, samples.read(sample)) == []
    with pytest.raises(DataError, match="expected the header 'id,rle'"):
        tables.read(path, tables.Form(("id", "rle"), repeats=True))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("a,1 3\na,5 1 3 1\nb,\n", "1 row: runs out of order (a)"),
        ("a,1 3\na,3 1 5 1\nb,\n", "1 row: objects that overlap (a)"),
        ("a,1 3\na,\nb,\n", "1 row: an empty row beside others (a)"),
        ("a,1 3\na,nan\nb,\n", "1 row: NaN where an empty mask is an empty text (a)"),
        ("a,1 3\n", "1 row: missing, it was asked for (b)"),
        ("a,1 3\nb,\nc,\n", "1 row: not one of the scenes asked for (c)"),
        ("a,1 3\nb,5 1\n", "1 row: a run outside of the image (b)"),
    ],
)
def test_linting_a_row_per_object(tmp_path, rows, fault):
    (tmp_path / "a.csv").write_text("ImageId,EncodedPixels\n" + rows)
    faults = tables.lint(tmp_path / "a.csv", PER_OBJECT, {("a",): (3, 3), ("b",): (2, 2)})
    assert any(fault in found for found in faults), faults


@pytest.mark.parametrize(("longer", "is_cut"), [(False, True), (True, False)])
def test_a_cell_that_a_spreadsheet_cut_off_is_named(tmp_path, longer, is_cut):
    """Cut at 32,767 characters the runs may still be valid, though thousands are gone; nothing else tells."""
    form = tables.Form(("id", "rle"))
    runs = " ".join(f"{start} 11" for start in range(1_000_001, 1_130_001, 20))
    whole = tmp_path / "whole.csv"
    whole.write_text(f"id,rle\na,{runs}\n")
    assert tables.lint(whole, form) == []
    cut = runs[:32_767]
    assert rle.parse(cut)[1] == "" and len(cut) < len(runs)
    edited = tmp_path / "edited.csv"
    edited.write_text(f"id,rle\na,{cut}\n" + (f"b,{runs}\n" if longer else ""))
    found = tables.lint(edited, form)
    assert any("cut off by a spreadsheet" in line and "(a)" in line for line in found) == is_cut == bool(found)


def test_nouns_have_their_plural(tmp_path):
    assert "2 entries: odd" in tables.sentence(tmp_path, "entry", "odd", ["a", "b"])
    assert "1 entry: odd" in tables.sentence(tmp_path, "entry", "odd", ["a"])
