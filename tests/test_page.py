"""The page of the report shows what is there now, whatever the times of files say."""

import html
import os

import pytest

from lib.files import sha256
from lib.report.page import is_current

TABLE = "score  <0.8>"


@pytest.fixture
def page(tmp_path):
    """A page with one picture, both newer than anything it could show."""
    picture, page = tmp_path / "a b.png", tmp_path / "report.html"
    picture.write_bytes(b"drawn")
    page.write_text(f"<meta name='made-from' content='0123'><pre>{html.escape(TABLE)}</pre>"
                    f"<img src='a b.png' data-sha256='{sha256(picture)}' style='width:100%'>")  # fmt: skip
    os.utime(page, (4e9, 4e9))
    return page


def test_a_page_is_kept_that_shows_what_is_there(page):
    assert is_current(page, "0123", TABLE)
    os.utime(page, (1, 1))
    assert is_current(page, "0123", TABLE)


@pytest.mark.parametrize("change", ["other results", "other table", "picture gone", "picture damaged", "no page"])
def test_a_page_is_made_anew_by_what_it_shows_and_not_by_its_time(page, change):
    picture = page.parent / "a b.png"
    if change == "picture gone":
        picture.unlink()
    if change == "picture damaged":
        picture.write_bytes(b"drawm")
        os.utime(picture, (1, 1))
    if change == "no page":
        page.unlink()
    mark, table = (
        ("4567" if change == "other results" else "0123"),
        ("score  <0.9>" if change == "other table" else TABLE),
    )
    assert not is_current(page, mark, table)
