"""The page of the report: what it shows is what the experiment's folder holds, and it opens without a network."""

import json
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from invented import build, decoded, experiment
from markupsafe import Markup

from lib.errors import ArtifactError, ConfigError
from lib.files import write_bytes, write_json
from lib.report import __main__ as command
from lib.report import charts, contents, page, phases, pictures, serve
from lib.report.blocks import Chart

SCORES = {"score": 0.8323299935463375, "iou": 0.1 + 0.2}
DECODED = decoded(
    0.6,
    scores=SCORES,
    interval95=[0.78, 0.87],
    points=6,
    score_without_search=0.7,
    searched_score=0.84,
    expected_score=0.7576,
    expected_gain=0.0576,
    params={"threshold": 0.45, "postprocess": []},
    tta="flips",
    crf=False,
    per_fold={"0": {"scenes": 3, "score": 0.75}, "1": {"scenes": 4, "score": 0.81}},
    per_domain={"flood <1>": {"scenes": 7, "score": 0.8}},
    chosen_without_fold={"0": {"params": {"threshold": 0.5}, "weights": {"net": 1.0}, "tta": "flips", "crf": False}},
    tables={"objects": {"f1": 0.25}, "confusion": {"a": {"a": 30, "b": 10}, "b": {"a": 0, "b": 5}}},
    calibration={
        "net": {"temperature": 1.5, "accepted": True,
                **{side: {"log_loss": 0.3, "brier": 0.1, "error": error, "bins": [[10, 0.2, 0.1], [0, 0, 0]]}
                   for side, error in (("before", 0.09), ("after", 0.03))}}
    },
)  # fmt: skip
FIGURES = {
    "scenes": [{"id": "a", "fold": 0, "domain": "flood <1>", "score": 0.4, "without": 0.9},
               {"id": "b", "fold": 1, "domain": "flood <1>", "score": 0.9, "without": 0.4}],
    "surface": {"axes": {"threshold": [0.3, 0.45, 0.6], "min_area": [0, 10]}, "point": {"threshold": 1, "min_area": 0},
                "on_grid": True, "score": 0.84, "best": 0.842, "plateau": 0.005, "within": 2, "points": 6,
                "profiles": {"threshold": [0.7, 0.84, 0.6], "min_area": [0.84, 0.842]},
                "planes": [{"axes": ["threshold", "min_area"], "scores": [[0.7, 0.6], [0.84, 0.842], [0.6, 0.5]]}]},
    "reliability": {"loc": {"pixels": 20, "error": 0.02, "bins": [[20, 0.3, 0.32]]}},
}  # fmt: skip
LOG = [{"epoch": e, "lr": 1e-3 / e, "loss": 2 / e, "raw_bce": 1 / e, "weighted_bce": 1 / e, "train_seconds": 10.0,
        "cpu_cores": 1.8, "peak_memory_mib": 100.0 + e, "images_per_second": 4.0,
        **({"scores": {"select": 0.1 * e}, "new_best": True} if e % 2 else {})} for e in range(1, 6)]  # fmt: skip
REFERENCE = {"source": "a paper, https://example.org/1", "data": "its split", "scores": {"score": 0.8, "top5": 0.9}}


def finish(workdir: Path, name: str = "done", decode: dict = DECODED, **changes) -> Path:
    """Return an invented experiment's folder with all that a report shows."""
    root = build(workdir, experiment(name, **changes), decode, LOG)
    unit, folds = root / "05_ensemble/decode", root / "01_folds"
    made = json.loads((unit / "manifest.json").read_text()) | {"reference": REFERENCE, "command": "05_ensemble.py"}
    write_json(unit / "manifest.json", made)
    write_json(unit / "figures.json", FIGURES)
    (folds / "folds.csv").write_text("id,fold,group,domain\na,0,a,flood <1>\nb,1,b,flood <1>\n")
    (folds / "findings.csv").write_text("kind,scene,detail\nodd <kind>,a,a.png\n")
    write_json(folds / "audit.json", {"folds": {"0": {"scenes": 1}, "1": {"scenes": 1}}})
    shown = root / "report/pictures"
    shown.mkdir(parents=True)
    image = pictures._write(shown, "scene0-0", "truth", np.zeros((4, 6, 3), np.uint8))
    other = pictures._write(shown, "scene0-1", "prediction", np.full((4, 6, 3), 9, np.uint8))
    seen = pictures.SeenData(mark="x", positions={"a": (10.0, 50.0), "b": (10.001, 50.0)}, scenes=[
        pictures.ShownScene(id="a", why="worst", fold=0, score=0.4, without=0.9, panels=[image, other])])  # fmt: skip
    write_json(shown / "seen.json", seen.model_dump(mode="json"))
    return root


class Reader(HTMLParser):
    """Reads a page: its tables by caption, attributes, ids, text."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self._open, self._row = "", [], None
        self._caption, self._cell, self._value = "", None, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._cell, self._value = "", []
        elif tag == "data" and self._cell is not None:
            self._value.append(dict(attrs)["value"])

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass
        if tag == "caption":
            self.tables[self._caption.strip()] = self._rows = []
        elif tag in ("td", "th"):
            self._row.append(" ".join(self._value) or self._cell.strip())
            self._cell = None
        elif tag == "tr":
            self._rows.append(self._row)

    def handle_data(self, data):
        if self._open[-1:] == ["caption"]:
            self._caption += data
        if self._cell is not None:
            self._cell += data
        if not {"script", "style"} & set(self._open):
            self.text += data

    def all(self, name: str) -> list[str]:
        """Return the values of an attribute."""
        return [value for _, own, value in self.attributes if own == name]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return finish(tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="module")
def text(root) -> str:
    return page.render([contents.read(root)], "0123")


@pytest.fixture(scope="module")
def read(text) -> Reader:
    return Reader(text)


@pytest.fixture
def undrawn(monkeypatch):
    """Charts with their numbers and without a drawing, which takes a tenth of a second each."""

    def draw(key, title, says, height, paint, data, columns):
        return Chart(key, title, Markup(f'<svg id="{key}"></svg>'), tuple(columns), [tuple(row) for row in data])

    monkeypatch.setattr(charts, "draw", draw)


# ---- what it shows ------------------------------------------------------------------------------------
def test_every_figure_is_that_of_decode_json_to_the_last_digit(read):
    table = {row[0]: row[1:] for row in read.tables["By class, over all scenes"][1:]}
    assert {name: float(value) for name, (value,) in table.items()} == SCORES
    assert [row[1:] for row in read.tables["By fold"][1:]] == [["3", "0.75"], ["4", "0.81"]]
    assert read.tables["By event or domain"][1] == ["flood <1>", "7", "0.8"]
    assert read.tables["By object"][1] == ["f1", "0.25"]
    worth = {row[0]: float(row[1]) for row in read.tables["What the search is worth"][1:]}
    assert worth == {"points that were compared": 6, "score without the search": 0.7, "expected score": 0.7576,
                     "score of the search on its own scenes": 0.84, "expected gain": 0.0576}  # fmt: skip
    assert read.tables["Chosen on all folds, and without each"][1] == ["threshold", "0.45", "0.5"]
    tiles = re.findall(r"\d\.\d{4}", read.text[: read.text.index("Scored on 7 of 7 scenes")])
    assert tiles == ["0.8323", "0.7800", "0.8700", "0.7576", "0.7000", "0.0576"]


def test_matrices_surfaces_and_reliability_have_their_numbers(read):
    (matrix,) = [rows for caption, rows in read.tables.items() if caption.startswith("confusion: truth by rows")]
    assert matrix == [["truth", "a", "b", "all"], ["a", "30", "10", "40"], ["b", "0", "5", "5"]]
    (plane,) = [rows for caption, rows in read.tables.items() if caption.startswith("Score by threshold")]
    assert plane[0] == ["threshold", "0", "10"] and plane[2] == ["0.45", "0.84", "0.842"]
    assert read.tables["Score along each setting"][2] == ["threshold", "0.45", "0.84", "chosen"]
    assert read.tables["net: temperature 1.500, taken"][1:] == [["before", "0.3", "0.1", "0.09"],
                                                                ["after", "0.3", "0.1", "0.03"]]  # fmt: skip
    assert read.tables["net: reliability before and after its temperature"][1:] == [
        ["before", "10", "0.2", "0.1"], ["after, held out", "10", "0.2", "0.1"]]  # fmt: skip


def test_the_shades_and_marks_of_cells_are_those_of_their_numbers(text):
    (row,) = re.findall(r'<tr><th scope="row">a</th>(.*?)</tr>', text[text.index('id="confusion"') :][:3000])
    assert re.findall(r"--shade:(\d+)%", row) == ["75", "25"], "30 and 10 of 40; the sum has none"
    (row,) = re.findall(r'<tr><th scope="row">0.45</th>(.*?)</tr>', text)
    assert re.findall(r'class="([^"]*)"', row) == ["n chosen equal", "hidden", "n equal"]


def test_the_history_of_training_is_that_of_the_log(read):
    assert "net fold 0, epoch: validation score of each new best: 1: 0.1000, 3: 0.3000, 5: 0.5000" in read.text
    rows = read.tables["net: learning curves"]
    assert rows[0] == ["fold", "epoch", "loss", "raw_bce", "lr", "score.select", "best"]
    assert rows[2] == ["fold 0", "2", "1.0", "0.5", "0.0005", "", ""] and rows[3][-1] == "new best"
    costs = read.tables["Training"][1]
    assert costs[:4] == ["net/fold0", "not known", "5", "50.0"] and costs[5] == "105.0" and costs[-1] == "0.025"


def test_the_sources_figures_stand_beside_ours(read):
    rows = read.tables["Beside the source's figures"]
    assert rows[1][:3] == ["score", str(SCORES["score"]), "0.8"] and float(rows[1][3]) == SCORES["score"] - 0.8
    assert rows[2] == ["top5", "", "0.9", ""] and "a paper, https://example.org/1, measured on its split" in read.text


def test_folds_findings_and_commands_are_told(read):
    assert read.tables["Scenes of each event or domain by fold"][1] == ["flood <1>", "1", "1"]
    assert "1 pairs of them lie within 0.75 km of each other, 1 of these in different folds" in read.text
    assert "lines join the 1 pairs of neighbours in different folds." in read.text
    assert read.tables["Findings"][1] == ["odd <kind>", "a", "a.png"]
    assert "git checkout 0123456789abcdef" in read.text and "python 05_ensemble.py" in read.text
    assert "changes that were not committed" in read.text
    assert read.tables["Scenes, the worst first"][1][0] == "a"


# ---- how it is made -----------------------------------------------------------------------------------
def outside(text: str) -> list[str]:
    """Return what a page would fetch from elsewhere."""
    links = [value for tag, name, value in Reader(text).attributes
             if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href")]  # fmt: skip
    links += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
    return [link for link in map(str, links) if not re.match(r"#|data:image/|/|\('#", link) or link.startswith("//")]


def test_nothing_is_fetched_from_elsewhere(text):
    assert not outside(text)
    assert outside(text.replace('href="#summary"', 'href="https://example.org/"')) == ["https://example.org/"]
    assert "default-src 'none'" in text and "<link" not in text and text.count("<script>") == 1


def test_ids_are_unique_and_all_that_is_referred_to_is_there(read, text):
    ids = read.all("id")
    assert len(ids) == len(set(ids)) > 20
    asked = [part for name in ("aria-labelledby", "aria-describedby") for value in read.all(name)
             for part in value.split()]  # fmt: skip
    asked += [value[1:] for value in read.all("href") if value.startswith("#")]
    asked += re.findall(r"url\(#([^)]*)\)", text)
    assert asked and set(asked) <= set(ids)


def test_charts_speak_and_take_the_colours_of_the_page(text):
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 6, "scores, curves, reliability of a model and of a task, profiles, a map"
    for chart in charts:
        assert re.match(r'<svg class="chart" role="img" [^>]*aria-labelledby="(\S+)" aria-describedby="(\S+)">'
                        r'<title id="\1">\w.*?</title><desc id="\2">\w', chart)  # fmt: skip
        assert "var(--ink)" in chart or "var(--soft)" in chart
        assert not re.findall(r"#(?:101010|202020|303030|4000..)", chart) and "<style" not in chart
        assert "font-family" not in chart


def test_what_names_hold_is_no_markup(text):
    assert "flood &lt;1&gt;" in text and "flood <1>" not in text and "odd <kind>" not in text


def test_pictures_are_inlined_with_words_for_who_cannot_see_them(read):
    sources = [value for tag, name, value in read.attributes if tag == "img" and name == "src"]
    assert len(sources) == 2 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert {"a: worst: truth", "a: worst: prediction"} <= set(read.all("alt"))


# ---- what is not there --------------------------------------------------------------------------------
def test_what_an_earlier_version_did_not_write_is_said_with_the_way_to_get_it(tmp_path, undrawn):
    root = finish(tmp_path)
    (root / "05_ensemble/decode/figures.json").unlink()
    (root / "report/pictures/seen.json").unlink()
    (root / "report/pictures/scene0-0.jpg").unlink()
    read = Reader(page.render([contents.read(root)]))
    assert read.text.count("figures.json: missing. Stage 05 writes it: python 05_ensemble.py --split oof --force") == 2
    assert "Pictures need the data; stages 05 and 06 draw them" in read.text and "There is no map" in read.text
    assert "Score along each setting" not in read.tables


def test_a_picture_that_is_gone_is_said(tmp_path, undrawn):
    root = finish(tmp_path)
    (root / "report/pictures/scene0-1.jpg").unlink()
    assert "a: 1 of its pictures are gone" in Reader(page.render([contents.read(root)])).text


def test_a_run_in_progress_has_a_page(tmp_path, undrawn):
    root = build(tmp_path, experiment("half"), None, LOG)
    (root / "02_loc/net/fold1").rename(root / "02_loc/net/fold1.partial")
    read = Reader(page.render([contents.read(root)]))
    assert "Unfinished: " in read.text and "decode.json: missing. Stage 05 writes it" in read.text
    assert {row[0] for row in read.tables["net: learning curves"][1:]} == {"fold 0", "fold 1"}


def test_a_damaged_file_is_a_sentence_and_no_page_less(tmp_path, undrawn):
    root = finish(tmp_path)
    (root / "05_ensemble/decode/figures.json").write_text('{"scenes": 3}')
    (root / "02_loc/net/fold0/log.jsonl").write_text("{")
    text = Reader(page.render([contents.read(root)])).text
    assert "figures.json: scenes: " in text and "log.jsonl, line 1: not valid JSON" in text


# ---- several ------------------------------------------------------------------------------------------
def test_several_stand_side_by_side_with_what_differs(tmp_path, capsys, undrawn):
    roots = [
        finish(tmp_path, "old"),
        finish(tmp_path, "new", {**DECODED, "scores": {"score": 0.9, "iou": 0.3}}, lr=0.5),
    ]
    assert command.main([*map(str, roots)]) == 0
    out = capsys.readouterr().out
    read = Reader((roots[1] / "report/beside.html").read_text())
    assert f"report: {roots[1] / 'report/beside.html'}" in out and "+8.1 %" in out
    assert read.tables["Settings that are not the same"] == [
        ["setting", "old", "new"], ["models.net.train.optimizer.lr", "0.001", "0.5"]]  # fmt: skip
    rows = {row[0]: row[1:] for row in read.tables["Out-of-fold scores"][1:]}
    assert rows["score"] == [str(SCORES["score"]), "0.9", "+8.1\u202f%"]
    ids = read.all("id")
    assert len(ids) == len(set(ids)) and not outside((roots[1] / "report/beside.html").read_text())


def test_one_folder_alone_gets_its_page_and_the_same_twice_two_names(tmp_path, capsys, undrawn):
    root = finish(tmp_path)
    assert (
        command.main([str(root)]) == 0 and command.main([str(root), str(root), "--out", str(tmp_path / "x.html")]) == 0
    )
    assert Reader((root / "report/report.html").read_text()).text.count("What differs") == 0
    assert "done (1) beside done (2)" in (tmp_path / "x.html").read_text()
    assert command.main(["configs/demo.yaml"]) == 2
    assert "a file stands for the figures of its source" in capsys.readouterr().err


# ---- kept or made anew --------------------------------------------------------------------------------
@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "report.html"
    write_bytes(path, page.sealed('<meta name="made-from" content="0123"><p>score  0.8</p>'))
    return path


def test_a_page_is_kept_that_shows_what_is_there(kept):
    assert page.is_current(kept, "0123")


@pytest.mark.parametrize("change", ["other results", "page damaged", "page cut off", "no page"])
def test_a_page_is_made_anew_by_what_it_shows_and_not_by_its_time(kept, change):
    content = kept.read_bytes()
    if change == "page damaged":
        kept.write_bytes(content.replace(b"0.8", b"0.9"))
    if change == "page cut off":
        kept.write_bytes(content[:-10])
    if change == "no page":
        kept.unlink()
    assert not page.is_current(kept, "4567" if change == "other results" else "0123")


@pytest.mark.parametrize("change", ["gone", "damaged"])
def test_pictures_that_are_gone_or_damaged_are_noticed(tmp_path, change):
    shown = finish(tmp_path) / "report/pictures"
    seen = pictures.SeenData.read(shown)
    assert seen.is_whole(shown)
    path = shown / "scene0-1.jpg"
    path.unlink() if change == "gone" else path.write_bytes(b"drawm")
    assert not seen.is_whole(shown)


# ---- phases -------------------------------------------------------------------------------------------
def test_phases_give_the_falls_that_the_report_they_are_from_states():
    """Its table: five phases of 100 epochs, falls of 96.2, 97.1 and 96.7 %."""
    spans = phases.phases(list(range(1, 101)))
    assert spans == [(1, 5), (6, 20), (21, 50), (51, 89), (90, 100)]
    semantic = [(0.879, 0.356), (0.313, 0.165), (0.162, 0.080), (0.087, 0.033), (0.034, 0.083)]
    boundary = [(0.735, 0.102), (0.087, 0.033), (0.033, 0.026), (0.024, 0.021), (0.022, 0.022)]
    both = [(1.614, 0.458), (0.400, 0.198), (0.195, 0.106), (0.115, 0.054), (0.045, 0.105)]
    log = [{"epoch": epoch, "raw_semantic": s, "raw_boundary": b, "loss": t, "new_best": False}
           for span, *values in zip(spans, semantic, boundary, both)
           for epoch, (s, b, t) in zip(span, zip(*values))]  # fmt: skip
    full = [next((row for row in log if row["epoch"] == e), {"epoch": e, "new_best": False}) for e in range(1, 101)]
    table = phases.table("net", full)
    assert table.rows[0] == ["1 to 5", "0.879 → 0.356", "0.735 → 0.102", "1.614 → 0.458"]
    assert table.rows[4] == ["90 to 100", "0.034 → 0.083", "0.022 → 0.022", "0.045 → 0.105"]
    assert table.rows[5] == ["fall to the lowest end", "96.2\u202f%", "97.1\u202f%", "96.7\u202f%"]


@pytest.mark.parametrize(
    ("epochs", "spans"), [(0, []), (1, [(1, 1)]), (2, [(1, 1), (2, 2)]), (3, [(1, 1), (2, 2), (3, 3)])]
)
def test_few_epochs_have_few_phases(epochs, spans):
    assert phases.phases(list(range(1, epochs + 1))) == spans


# ---- a server -----------------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path, undrawn):
    finish(tmp_path / "work dir", "a.b-c")
    with serve.open_server(tmp_path / "work dir", 0) as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


def get(server, path: str, host: str = "") -> str:
    address = f"127.0.0.1:{server.server_address[1]}"
    asked = urllib.request.Request(f"http://{address}{path}", headers={"Host": host or address})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return answer.read().decode()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_workdir_is_served_without_a_write_into_it(server, tmp_path):
    workdir = tmp_path / "work dir"
    before = tree(workdir)
    front, own = Reader(get(server, "/")), get(server, "/a.b-c/")
    assert front.tables["How far each is"][1][:2] == ["a.b-c", "finished"]
    assert front.tables["How far each is"][1][4:] == [str(SCORES["score"]), "0.7576"]
    assert "/a.b-c" in front.all("href") and "By class, over all scenes" in Reader(own).tables
    assert not outside(own) and "connect-src 'self'" in own and "refresh" not in own
    assert tree(workdir) == before


def test_a_page_is_made_anew_when_training_goes_on(server, tmp_path):
    log = tmp_path / "work dir/a.b-c/02_loc/net/fold0/log.jsonl"
    mark = get(server, "/a.b-c/?mark")
    assert mark in get(server, "/a.b-c/") and get(server, "/a.b-c/?mark") == mark
    with open(log, "a") as stream:
        stream.write(json.dumps({**LOG[0], "epoch": 6, "scores": {"select": 0.99}}) + "\n")
    assert get(server, "/a.b-c/?mark") != mark and "6: 0.9900" in get(server, "/a.b-c/")


@pytest.mark.parametrize(("path", "host", "code"), [("/none/", "", 404), ("/../a.b-c", "", 404), ("/%2e%2e/", "", 404),
                                                    ("/", "evil.example:80", 403)])  # fmt: skip
def test_only_experiments_are_served_and_only_to_this_machine(server, path, host, code):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, path, host)
    assert caught.value.code == code


def test_a_server_is_refused_where_there_is_no_workdir_or_no_port(server, tmp_path):
    with pytest.raises(ArtifactError, match="expected a workdir"):
        serve.open_server(tmp_path / "none", 0)
    with pytest.raises(ConfigError, match="expected a free port"):
        serve.open_server(tmp_path / "work dir", server.server_address[1])
    assert server.server_address[0] == "127.0.0.1"


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 2 and command.main([str(tmp_path / "none")]) == 2
    assert "found one without any stage" in (error := capsys.readouterr().err) and "found no such folder" in error


# ---- colours ------------------------------------------------------------------------------------------
def luminance(colour: str) -> float:
    """Return the relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(share: float, one: str, other: str) -> str:
    parts = [(int(one[i : i + 2], 16) * share + int(other[i : i + 2], 16) * (1 - share)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part):02x}" for part in parts)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out_from_what_they_are_on(theme):
    """Of charts and shaded cells axe cannot tell: text wants 4.5 to 1, lines and marks 3 to 1."""
    style = (page.TEMPLATES / "style.css").read_text()
    found = re.findall(r"--([\w-]+): (#[0-9a-f]{6})", style[: style.index("* {")])
    half = len(found) // 2
    light, dark = dict(found[:half]), dict(found[half:])
    assert light.keys() == dark.keys() and "s7" in light
    own = light if theme == "light" else dark
    deepest = float(re.search(r"var\(--shade\) \* \.(\d+)", style)[1]) / 100
    for ink in ("ink", "soft", "accent"):
        for paper in ("paper", "panel"):
            assert contrast(own[ink], own[paper]) >= 4.5, (ink, paper)
    assert contrast(own["warn"], own["warn-paper"]) >= 4.5
    assert contrast(own["ink"], mixed(deepest, own["accent"], own["paper"])) >= 4.5
    for number in range(charts.SERIES):
        assert contrast(own[f"s{number}"], own["paper"]) >= 3, number
