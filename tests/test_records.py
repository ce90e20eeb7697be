"""Tables of users: healthy ones are read as the csv module reads them, each odd form is read right or named."""

import csv
import io

import numpy as np
import pytest

from lib.competitions import records
from lib.errors import DataError


def read(tmp_path, content, name="t.csv"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return records.read_records(tmp_path / name)


def test_tables_of_programs_are_read_as_the_csv_module_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    alphabet = ["a", "7", "é", ",", ";", '"', "\n", " ", "\t", "x1"]
    for seed in range(60):
        part, width = ",;\t"[seed % 3], 2 + seed % 3
        names = [f"c{n}" for n in range(width)]
        rows = [["".join(rng.choice(alphabet, rng.integers(1, 6))) for _ in names] for _ in range(8)]
        written = io.StringIO()
        csv.writer(written, delimiter=part, lineterminator="\n").writerows([names, *rows])
        (tmp_path / "t.csv").write_text(written.getvalue(), encoding="utf-8")
        healthy = [[field.strip() for field in row] for row in rows]
        found = list(records.read_rows(tmp_path / "t.csv"))
        assert found == [names, *filter(any, healthy)], (seed, written.getvalue())


def test_lines_are_those_of_an_editor(tmp_path):
    found = read(tmp_path, 'id,note\n\na,"two\nlines"\n\nb,x\nc\nd,y\n')
    assert [row["id"] for row in found.rows] == ["a", "b", "d"] and list(found.lines) == [3, 6, 8]
    assert found.rows[0]["note"] == "two\nlines"
    assert [(row.line, row.detail) for row in found.odd] == [(7, "expected 2 fields as in the header, got 1")]


def test_a_quotation_mark_spoils_its_own_row_alone(tmp_path):
    found = read(tmp_path, 'id,rle\na,1 2\n"b,3 4\nc,5 6\nd,"7 8\ne,9 10\nf,11" 12\n')
    assert [row["id"] for row in found.rows] == ["a", "c", "d", "e", "f"]
    assert found.rows[2]["rle"] == "7 8" and [row.line for row in found.odd] == [3]


def test_bytes_that_are_not_utf8_spoil_their_own_row_alone(tmp_path):
    found = read(tmp_path, b"id,label\na,cat\nb,c\xe4t\nc,dog\n")
    assert [row["id"] for row in found.rows] == ["a", "c"] and [row.line for row in found.odd] == [3]
    for way in (records.read_rows, lambda path: records.read_text(path).splitlines()):
        with pytest.raises(DataError, match="bytes that are none in line 3; save it as UTF-8"):
            list(way(tmp_path / "t.csv"))


def test_runs_that_a_spreadsheet_has_cut_are_not_used(tmp_path):
    whole = " ".join(f"{n} 3" for n in range(20, 90_000, 10))
    cut = whole[:32_767]
    assert len(whole) > 40_000 and len(cut.split()) % 2 == 0  # an even count of numbers: nothing else would tell
    found = read(tmp_path, f"id,rle\na,{whole}\nb,{cut}\n")
    assert [row["id"] for row in found.rows] == ["a"] and found.rows[0]["rle"] == whole
    assert [row.line for row in found.odd] == [3] and "spreadsheet" in found.odd[0].detail


def test_marks_that_nobody_sees_are_no_part_of_an_id(tmp_path):
    found = read(tmp_path, "\ufeffid,label\na,x\n\ufeffb,y\u200b\nc\u00a0,z\n")
    assert [tuple(row.values()) for row in found.rows] == [("a", "x"), ("b", "y"), ("c", "z")]


def test_a_long_table_is_read_quickly_and_whole(tmp_path):
    text = "id,rle\n" + "".join(f"{n:06d},{n} 3 {n + 9} 4\n" for n in range(1, 20_001))
    found = read(tmp_path, text)
    assert len(found.rows) == 20_000 and found.rows[-1] == {"id": "020000", "rle": "20000 3 20009 4"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "got an empty file"),
        (b"\n \n,,\n", "got an empty file"),
        (b"\x89PNG\r\n\x1a\n\xff", "save it as UTF-8"),
        (b"\xff\xfei", "save it as UTF-8"),
        (b"id,id\n1,2\n", "got 'id' twice; rename one of them"),
        (b"id,rle\n1;2\n3;4\n", "got 2 others \\(line 2: expected 2 fields as in the header, got 1\\)"),
    ],
)
def test_what_is_no_table_is_a_sentence(tmp_path, content, said):
    with pytest.raises(DataError, match=said) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value) and "t.csv" in str(error.value)


@pytest.mark.parametrize(
    ("written", "known", "means"),
    [
        (["0001"], ["0001", "1"], {"0001": "0001"}),  # as it is written, before anything else
        (["1", "2.0", "x"], ["0001", "0002"], {"1": "0001", "2.0": "0002"}),
        (["1"], ["01", "001"], {}),  # two could be meant
        (["a.PNG", "B", "c.tif"], ["a", "b", "c"], {"a.PNG": "a", "B": "b", "c.tif": "c"}),
        (["a"], ["a.png", "a.jpg"], {}),
        (["1", "0001"], ["0001"], {"0001": "0001"}),  # an image that has its row is not meant by another
        (["0", "0.0"], ["000"], {"0": "000", "0.0": "000"}),
        (["v1.0"], ["v1"], {}),  # no number
        (["cafe\u0301.jpg"], ["caf\u00e9"], {"cafe\u0301.jpg": "caf\u00e9"}),  # as macOS names files
        (["cats\\1.png"], ["cats/1"], {"cats\\1.png": "cats/1"}),
        (["Straße"], ["STRASSE"], {"Straße": "STRASSE"}),
        (["./cats/1.png"], ["cats/1"], {"./cats/1.png": "cats/1"}),  # as find writes it
    ],
)
def test_what_an_id_means(written, known, means):
    assert records.matched(written, {name: name for name in known}, (".png", ".jpg", ".tif")) == means


def test_a_class_may_have_several_spellings():
    known = {"cat": 0, "dog": 1, "1": 2}
    assert records.matched(["cat", "Cat", "1.0", "owl"], known, shared=True) == {"cat": 0, "Cat": 0, "1.0": 2}
    assert records.spellings(["Cat", "cat", "cat", "dog", "DOG", "1", "1.0"]) == ["1", "DOG", "cat"]


@pytest.mark.parametrize("empty", ["", " ", "-1", " -1 ", "nan", "NaN", "None", "null", "<NA>"])
def test_an_empty_mask_has_many_names(empty):
    assert records.runs_of(empty) == ""


def test_runs_are_left_as_they_are():
    assert records.runs_of("1 2 30 4") == "1 2 30 4"
    assert records.runs_of("1\t2\t30 4") == "1 2 30 4"
    assert records.runs_of("-1 5") == "-1 5" and records.runs_of("-12") == "-12"  # faults, for whoever draws them
