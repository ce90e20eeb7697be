"""Disagreement of submissions: numbers by hand, masks against drawn pixels."""

from pathlib import Path

import numpy as np
import pytest

from lib.errors import DataError
from lib.scenes import rle
from lib.tools import disagree
from lib.tools.probe import WARNING


def write(path: Path, rows: list[tuple], header: str = "id,value") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def compare(tmp_path, *tables, header="id,value"):
    read = {f"s{k}": disagree.read(write(tmp_path / f"s{k}.csv", rows, header)) for k, rows in enumerate(tables)}
    return disagree.disagree(read)


def test_scores_are_ranked_by_how_far_apart_they_are(tmp_path):
    rows = compare(tmp_path, [("a", 0.5), ("01", 0.1), ("c", "1.0")], [("c", 1), ("01", 0.9), ("a", 0.25)])
    assert [(row["id"], row["difference"]) for row in rows] == [("01", pytest.approx(0.8)), ("a", 0.25)]
    assert (rows[1]["s0"], rows[1]["s1"]) == (0.5, 0.25)


def test_of_three_submissions_the_largest_and_the_smallest_count(tmp_path):
    (row,) = compare(tmp_path, [("a", 0.5)], [("a", 0.9)], [("a", 0.2)])
    assert row["difference"] == pytest.approx(0.7)


def test_words_differ_or_they_do_not(tmp_path):
    (row,) = compare(tmp_path, [("a", "cat"), ("b", "dog")], [("a", "dog"), ("b", "dog")])
    assert (row["id"], row["difference"], row["s0"], row["s1"]) == ("a", 1.0, "cat", "dog")


@pytest.mark.parametrize(("order", "origin"), rle.RULES)
def test_masks_overlap_as_their_pixels_do(tmp_path, order, origin):
    rng = np.random.default_rng(3)
    shares = (0.5, 0.5, 0.02, 0.0, 0.5)
    masks = [[(rng.random((13, 17)) < share).astype(np.uint8) for share in shares] for _ in range(2)]
    masks[1][4] = masks[0][4]  # the same: not in the table
    masks[1][2][:] = 0  # one empty: IoU 0
    tables = [[(f"i{k}", rle.encode(m, order, origin)) for k, m in enumerate(own)] for own in masks]
    rows = compare(tmp_path, *tables)
    assert sorted(row["id"] for row in rows) == ["i0", "i1", "i2"]
    for row in rows:
        a, b = (own[int(row["id"][1:])].astype(bool) for own in masks)
        assert row["iou"] == pytest.approx((a & b).sum() / (a | b).sum())
        assert row["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert (row["s0"], row["s1"]) == (a.sum(), b.sum())
    assert [row["difference"] for row in rows] == sorted((1 - row["iou"] for row in rows), reverse=True)


def test_rows_of_one_image_are_one_mask(tmp_path):
    # pixels 1-4 and 8-9 whole, or in pieces, one of which lies in another
    whole, pieces = [("a", "1 4 8 2"), ("b", "")], [("a", "8 2"), ("a", "1 3"), ("a", "2 3"), ("b", "")]
    assert compare(tmp_path, whole, pieces) == []
    (row,) = compare(tmp_path, whole, pieces[:1] + pieces[2:])  # without pixel 1
    assert row["iou"] == pytest.approx(5 / 6)


def test_submissions_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(DataError, match="not the same ids"):
        compare(tmp_path, [("a", 1)], [("b", 1)])
    with pytest.raises(DataError, match="s1: a: .*out of order"):
        compare(tmp_path, [("a", "1 2")], [("a", "5 1 2 1")])
    with pytest.raises(DataError, match="two submissions"):
        compare(tmp_path, [("a", 1)])
    one, other = (write(tmp_path / f"{c}.csv", [("a", 1)], f"id,{c}") for c in "xy")
    with pytest.raises(DataError, match="expected columns x"):
        disagree.disagree({"x": disagree.read(one), "y": disagree.read(other)})
    with pytest.raises(DataError, match="expected a column 'name'"):
        disagree.read(one, "name")


def test_the_command_prints_the_table_and_warns(tmp_path, capsys):
    one = write(tmp_path / "one.csv", [("a", 0.5), ("b", 0.5)])
    two = write(tmp_path / "two.csv", [("a", 0.5), ("b", 0.9)])
    assert disagree.main([str(one), str(two), "--out", str(tmp_path / "all.csv")]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 values differ" in said and WARNING in said
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 2
    assert disagree.main([str(one), str(tmp_path / "none.csv")]) == 2
