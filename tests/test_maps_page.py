"""The page of an area: all of it in one file, nothing of it from elsewhere, and what it says is what was found."""

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.crs import CRS

for needed in ("geopandas", "pyogrio", "pyproj"):
    pytest.importorskip(needed, reason="requirements-maps.txt")

from lib.maps import page, vectors
from lib.maps.grid import Grid
from lib.maps.page import Gathered
from lib.maps.polygons import Finder, Layers
from lib.maps.vectors import Legend

GRID = Grid(CRS.from_epsg(32615), rasterio.Affine(0.5, 0, 365000, 0, -0.5, 4105000), 40, 30)
LEGEND = Legend(("one", "</script>"), {"one": "#46be5a"}, ("one",), "<b>An event</b> & more", "a model")


class Reader(HTMLParser):
    """Gathers the tags of a page and the data in it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.data, self.within, self.said = [], "", "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.within = "data" if dict(attributes).get("id") == "data" else tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, text):
        if self.within == "data":
            self.data += text
        elif self.within not in ("script", "style"):
            self.said += text


def made(tmp_path, pictures=None, most=page.MOST, notes=()) -> tuple[str, Reader, dict]:
    answer = np.zeros((30, 40), np.uint8)
    answer[2:8, 3:9], answer[4, 5] = 1, 0
    answer[20:22, 30:35] = 2
    shown = Gathered(most)
    for batch in Finder(Layers.of_arrays(answer, {"one": np.full((30, 40), 128, np.uint8)}), 2, block=8):
        frame = vectors.table(batch, GRID, LEGEND)
        shown.add(frame, batch.outlines, (frame["class"] == "</script>").to_numpy(np.int64))
    page.write(tmp_path / "map.html", GRID, LEGEND, shown, pictures or {}, notes)
    text = (tmp_path / "map.html").read_text()
    reader = Reader(text)
    return text, reader, json.loads(reader.data)


def test_the_page_asks_nobody_for_anything(tmp_path):
    picture = np.zeros((30, 40, 3), np.uint8)
    text, reader, _ = made(tmp_path, {"pre": picture, "post": picture})
    assert not re.search(r"(?:https?:)?//[a-z0-9]+\.", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert not [
        tag for tag, held in reader.tags if {"src", "href", "srcset"} & held.keys() or tag in ("link", "iframe")
    ]
    (policy,) = [held["content"] for tag, held in reader.tags if held.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|url\(", text)


def test_objects_come_back_as_they_were(tmp_path):
    _, reader, data = made(tmp_path)
    assert data["size"] == [40, 30] and data["metres"] == pytest.approx([0.5, 0.5], rel=1e-3)
    back = []
    for (
        *_,
        outer,
    ) in [[*row[:5], row[5]] for row in data["objects"]]:
        back.append(shapely.Polygon(np.cumsum(np.reshape(outer, (-1, 2)), axis=0) / data["fine"]))
    holes = [len(row) - 6 for row in data["objects"]]
    assert {(shape.bounds, hole) for shape, hole in zip(back, holes)} == {((3, 2, 9, 8), 1), ((30, 20, 35, 22), 0)}
    by_class = {row[0]: row for row in data["objects"]}
    assert by_class[0][1] == 50 and by_class[1][1] == -1  # no levels of the second class: not known
    assert by_class[0][2] == pytest.approx(35 / 4, abs=0.1)
    assert by_class[0][3:5] == [pytest.approx(-94.517, abs=0.01), pytest.approx(37.08, abs=0.01)]
    assert [one["colour"] for one in data["classes"]] == ["#46be5a", "#808080"]


def test_text_of_users_is_text(tmp_path):
    text, reader, data = made(tmp_path, notes=["<i>left out</i>"])
    assert data["classes"][1]["name"] == "</script>" and text.count("</script>") == 2
    assert "<b>An event</b> & more" in reader.said and "<i>left out</i>" in reader.said
    assert "b" not in [tag for tag, _ in reader.tags]


def test_images_are_as_large_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PIXELS", 20)
    pre = np.zeros((30, 40, 3), np.uint8)
    pre[..., 0] = 200
    text, reader, data = made(tmp_path, {"pre": pre, "post": pre // 2, "third": pre})
    assert [one["name"] for one in data["images"]] == ["pre", "post"]
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data["images"][0]["src"].partition(",")[2]), np.uint8), 1)
    assert decoded.shape == (15, 20, 3) and abs(int(decoded[5, 5, 2]) - 200) < 6  # BGR
    assert page.preview_size(GRID, 20) == (15, 20) and page.preview_size(GRID) == (30, 40)
    assert "The image pre is shown at 1 pixel for 2.0 of the area's." in reader.said


def test_too_many_objects_are_points_and_the_page_says_so(tmp_path):
    _, reader, data = made(tmp_path, most=1)
    assert data["points"] and "2 objects are drawn as points" in reader.said
    centres = {tuple(row[5]) for row in data["objects"]}
    assert centres == {(60, 50), (325, 210)} and all(len(row) == 6 for row in data["objects"])


def test_points_do_not_depend_on_how_objects_came():
    outlines = np.array([shapely.box(n, 0, n + 2, 2) for n in range(6)], object)
    import pandas as pd

    frame = pd.DataFrame({"confidence": [0.5] * 6, "area_m2": 4.0, "lon": 0.0, "lat": 0.0})
    found = []
    for batch in (1, 2, 6):
        shown = Gathered(most=3)
        for at in range(0, 6, batch):
            shown.add(frame.iloc[at : at + batch], outlines[at : at + batch], np.zeros(batch, np.int64))
        found.append(shown.objects())
    assert found[0] == found[1] == found[2] and found[0][5][5] == [60, 10]


def test_every_control_has_a_name_and_ids_are_there_once(tmp_path):
    text, reader, _ = made(tmp_path)
    ids = [held["id"] for _, held in reader.tags if "id" in held]
    assert len(ids) == len(set(ids))
    labelled = {held["for"] for tag, held in reader.tags if tag == "label" and "for" in held}
    for tag, held in reader.tags:
        if tag == "button" or held.get("role") in ("slider", "img"):
            assert held.get("aria-label"), held
        if held.get("type") == "range":
            assert held["id"] in labelled
    used = set(re.findall(r'by\("([a-z]+)"\)', text))
    assert used <= set(ids), used - set(ids)
    assert dict(reader.tags[0][1]) == {"lang": "en"} or ("html", {"lang": "en"}) in reader.tags


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TYPED = """<script>setTimeout(() => {
  const type = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const said = () => [by("shown").textContent, by("count").textContent, by("area").textContent].join(" ");
  const told = [said()];
  type(canvas, "n");
  told.push(by("about").textContent);
  by("least").value = 60;
  by("least").dispatchEvent(new Event("input"));
  told.push(said(), by("percent").textContent, by("about").textContent);
  by("least").value = 0;
  by("least").dispatchEvent(new Event("input"));
  document.querySelector("#legend input").click();
  told.push(said());
  type(swipe, "End");
  told.push(swipe.getAttribute("aria-valuenow"), by("legend").textContent);
  document.title = JSON.stringify(told);
}, 200);</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium at hand")
def test_a_browser_counts_filters_and_tells_as_the_page_promises(tmp_path):
    picture = np.zeros((30, 40, 3), np.uint8)
    text, *_ = made(tmp_path, {"pre": picture, "post": picture})
    text = text.replace("[1, -1, ", "[-1, -1, ")  # an object of no class, as a footprint where nothing is known
    (tmp_path / "typed.html").write_text(text.replace("</body>", f"{TYPED}</body>"))
    asked = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "typed.html").as_uri()]  # fmt: skip
    seen = subprocess.run(asked, capture_output=True, text=True, timeout=120).stdout
    told = json.loads(html.unescape(re.search("<title>(.*)</title>", seen)[1]))
    assert told[0] == "2 of 2 objects are shown 2 11 m²"  # 35 + 10 pixels of a quarter of a square metre
    assert told[1].startswith("classoneconfidence50 %area9 m²latitude, longitude37.08")
    assert told[2] == "0 of 2 objects are shown 0 0 m²" and told[3] == "60 %" and told[4].startswith("Tap an object")
    assert told[5] == "1 of 2 objects are shown 1 3 m²" and told[6] == "100"
    assert told[7] == "one19 m²</script>00 m²not known13 m²"
