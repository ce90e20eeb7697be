"""The contract's defaults, on the smallest competition that fulfils it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lib.competitions import NAMES, contract, open_competition, options_of
from lib.competitions.contract import Finding, Scene
from lib.competitions.decoding import Setting
from lib.competitions.facts import Facts, Memo
from lib.competitions.tables import Form
from lib.config.load import load
from lib.errors import ConfigError, DataError
from lib.scenes import raster
from lib.settings import Section
from lib.tasks import MulticlassMask


def cut(answer: np.ndarray, size: int) -> np.ndarray:
    """A post-processing step: keep the first rows."""
    return np.where(np.arange(len(answer))[:, None] < size, answer, 0)


class Smallest(contract.Competition):
    """Pictures in images/, index masks in masks/; the answer is how many pixels each class has."""

    name = "smallest"
    tasks = {"loc": MulticlassMask(("nothing", "left-over", "rest"))}
    labels = ("mask",)
    settings = {"gain": Setting(1.0, "factor on class 1", high=10), "mode": Setting("a", "a word", choices=("a", "b"))}
    steps = {"cut": cut}
    form = Form(("id", "share"), origin=None)
    masks_read = 0

    def listed(self, split):
        folder = self.root / split
        scenes = []
        for path in sorted(folder.glob("images/*.png"), reverse=True):
            mask = folder / "masks" / path.name
            scenes.append(Scene(path.stem, {"image": path} | ({"mask": mask} if mask.exists() else {})))
        return scenes, [Finding("odd name", path.name) for path in sorted(folder.glob("images/*.txt"))]

    def target(self, scene, task):
        self.masks_read += 1
        return raster.read_mask(scene.files["mask"])

    def answer(self, levels, settings):
        return (levels["loc"] * np.array([1, settings["gain"], 1])[:, None, None]).argmax(0).astype(np.uint8)

    def tally(self, answer, truth):
        return np.array([(answer == truth).sum(), truth.size])

    def score(self, counts):
        return counts[..., 0] / counts[..., 1]

    def rows(self, scene, answer):
        return [(scene.id, f"{(answer > 0).mean():.6f}")]

    def answer_from(self, scene, rows):
        return float(rows[0][1])

    def row_fault(self, row):
        return "" if row[1].replace(".", "").isdigit() else "not a number"


def test_seven_methods_are_abstract():
    assert contract.Competition.__abstractmethods__ == {
        "listed", "target", "answer", "tally", "score", "rows", "answer_from"
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, names in (("train", "dabc"), ("test", "xy")):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "masks").mkdir()
        for name in names:
            raster.write_png(tmp_path / split / "images" / f"{name}.png", rng.integers(1, 255, (8, 9, 3), np.uint8))
            if split == "train":
                mask = np.zeros((8, 9), np.uint8)
                mask[0, 0], mask[1, 1] = (0, 255) if name == "a" else (2, 1)
                raster.write_png(tmp_path / split / "masks" / f"{name}.png", mask)
    return tmp_path


def opened(root: Path, memo: Path | None = None) -> Smallest:
    return Smallest(root, Section(), memo)


# ---- scenes -------------------------------------------------------------------------------------------
def test_scenes_are_sorted_and_those_without_a_usable_label_left_out(root):
    (root / "train/masks/b.png").unlink()
    raster.write_png(root / "train/masks/c.png", np.zeros((3, 3), np.uint8))
    (root / "train/images/readme.txt").write_text("")
    (root / "train/images/d.png").write_bytes(b"nothing")
    raster.write_png(root / "test/images/x.png", np.zeros((8, 9, 3), np.uint8))
    competition = opened(root)
    assert [scene.id for scene in competition.scenes("train")] == ["a"]
    assert [scene.id for scene in competition.scenes("test")] == ["x", "y"]
    found = {(finding.kind, finding.scene) for finding in competition.inspect()}
    assert found == {("odd name", "readme.txt"), ("image without label", "b"), ("label cannot be used", "c"),
                     ("unreadable image", "d"), ("image all black", "x")}  # fmt: skip
    with pytest.raises(ValueError, match="oof"):
        competition.scenes("oof")
    with pytest.raises(DataError, match="scene c: expected a label of its image's size"):
        competition.strata(Scene("c", {r: root / f"train/{r}s/c.png" for r in ("image", "mask")}))


def test_no_usable_scene_is_said_with_the_reason_and_can_still_be_inspected(root):
    for path in root.glob("train/masks/*"):
        path.write_bytes(b"broken")
    competition = opened(root)
    with pytest.raises(DataError, match=r"found 4 scenes of which none can be used \(.*[abcd].png"):
        competition.scenes("train")
    assert [f.kind for f in competition.inspect()] == ["label cannot be used"] * 4


def test_flags_are_the_classes_but_the_background_and_ignored_pixels_have_none(root):
    competition = opened(root)
    assert competition.flags == ("left_over", "rest")
    a, b, _, _ = competition.scenes("train")
    assert competition.strata(a) == {"left_over": False, "rest": False}
    assert competition.strata(b) == {"left_over": True, "rest": True}
    np.testing.assert_array_equal(competition.truth(b), competition.target(b, "loc"))


def test_reading_names_scene_and_file(root):
    competition = opened(root)
    scene = competition.scenes("test")[0]
    assert competition.read(scene, "image").shape == (8, 9, 3)
    with pytest.raises(DataError, match="scene x: expected an image post"):
        competition.read(scene, "post")
    scene.files["image"].unlink()
    with pytest.raises(DataError, match="scene x: .*x.png"):
        competition.read(scene, "image")


# ---- memo ---------------------------------------------------------------------------------------------
def test_a_memo_saves_reading_labels_until_one_changes(root, tmp_path):
    memo = tmp_path / "deep" / "facts.json"
    first = opened(root, memo)
    scenes = first.scenes("train")
    assert first.masks_read == 4 and memo.exists()
    written = memo.read_bytes()
    again = opened(root, memo)
    assert again.scenes("train") == scenes and again.masks_read == 0
    assert [again.strata(s) for s in scenes] == [first.strata(s) for s in scenes]
    assert memo.read_bytes() == written

    path = root / "train/masks/a.png"
    raster.write_png(path, np.full((8, 9), 2, np.uint8))
    changed = opened(root, memo)
    assert changed.strata(changed.scenes("train")[0]) == {"left_over": False, "rest": True}
    assert changed.masks_read == 1
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    later = opened(root, memo)
    later.scenes("train")
    assert later.masks_read == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b'{"owner": "smallest {}"}', b'{"owner": "other", "scenes": {}}',
        b'{"owner": "smallest {}", "scenes": {"a|train/images/a.png|train/masks/a.png": 3}}',
    ],
)  # fmt: skip
def test_a_broken_memo_is_ignored_and_written_anew(root, tmp_path, content):
    memo = tmp_path / "facts.json"
    memo.write_bytes(content)
    competition = opened(root, memo)
    assert len(competition.scenes("train")) == 4 and competition.masks_read == 4
    assert len(json.loads(memo.read_bytes())["scenes"]) == 4
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_scenes_that_cannot_be_used_are_not_remembered_so_that_a_mended_disk_brings_them_back(root, tmp_path):
    memo, path = tmp_path / "facts.json", root / "train/masks/a.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert len(opened(root, memo).scenes("train")) == 3
    assert len(json.loads(memo.read_bytes())["scenes"]) == 3
    path.write_bytes(whole)
    assert len(opened(root, memo).scenes("train")) == 4


def test_a_memo_where_nothing_can_be_written_is_done_without(root, tmp_path):
    (tmp_path / "file").write_text("")
    assert len(opened(root, tmp_path / "file" / "facts.json").scenes("train")) == 4


def test_other_options_have_other_facts(tmp_path):
    memo = Memo(tmp_path / "a.json", "one")
    memo.put("k", [1], Facts({"a": True}, (1.0, 2.0)))
    memo.save()
    assert Memo(tmp_path / "a.json", "one").get("k", [1]) == Facts({"a": True}, (1.0, 2.0))
    assert Memo(tmp_path / "a.json", "one").get("k", [2]) is None
    assert Memo(tmp_path / "a.json", "two").get("k", [1]) is None


# ---- decode settings ----------------------------------------------------------------------------------
LEVELS = {"loc": np.random.default_rng(1).integers(0, 256, (3, 8, 9)).astype(np.uint8)}


def test_counts_of_a_grid_are_tallies_of_decoded_points(root):
    competition = opened(root)
    truth = competition.truth(competition.scenes("train")[1])
    grid = competition.grid({"gain": (0.5, 1.0, 2.0)}, {"mode": "b", "postprocess": [{"name": "cut", "size": 4}]})
    counts = competition.count(LEVELS, truth, grid)
    assert counts.shape == (3, 2) and grid.shape == (3,)
    for point, row in zip(grid, counts, strict=True):
        answer = competition.decode(LEVELS, {"gain": point["gain"]})
        answer[4:] = 0
        np.testing.assert_array_equal(row, competition.tally(answer, truth))
    assert competition.class_scores(counts).shape == (3, 1)
    assert competition.scores(counts[0]) == {"score": counts[0, 0] / 72}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"decode": {"gian": 1}}, "decode.gian: unknown setting; did you mean gain?"),
        ({"decode": {"gain": float("nan")}}, "decode.gain: expected a number from 0 to 10, got nan"),
        ({"decode": {"gain": "1"}}, "decode.gain: expected a number from 0 to 10, got '1'"),
        ({"decode": {"gain": True}}, "decode.gain: expected a number from 0 to 10, got True"),
        ({"decode": {"mode": "c"}}, "decode.mode: expected one of a, b, got 'c'"),
        ({"unseen": {"gain": 11}}, "search.unseen.gain: expected a number from 0 to 10, got 11"),
        ({"axes": {"gain": (1.0, 1.0)}}, "search.axes.gain: expected distinct values, at least one, got [1.0, 1.0]"),
        ({"axes": {"gain": ()}}, "search.axes.gain: expected distinct values, at least one, got []"),
        ({"axes": {"gain": (-1.0,)}}, "search.axes.gain: expected a number from 0 to 10, got -1.0"),
        ({"axes": {"treshold": (1.0,)}}, "search.axes.treshold: unknown setting, expected one of gain, mode"),
        ({"axes": {"gain": [k / 1e6 for k in range(500_001)]}}, "search.axes: expected at most 500,000 points, got"),
        ({"chains": [[{"name": "cuts"}]]}, "search.postprocess.0.0.name: expected one of cut, got 'cuts'; did you"),
        ({"chains": [[{"name": "cut"}]]}, "search.postprocess.0.0.size: required, but missing"),
        ({"chains": [[], [{"name": "cut", "size": "big"}]]}, "search.postprocess.1.0.size: expected a valid integer"),
        ({"decode": {"postprocess": [{"name": "cut", "size": 1, "sise": 2}]}},
         "decode.postprocess.0.sise: unknown key; did you mean size?"),
        ({"decode": {"postprocess": 3}}, "decode.postprocess: expected a list of steps such as {name: cut}, got 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_decode_and_search_is_said_without_data(asked, sentence):
    competition = opened(Path("nowhere"))
    assert competition.faults({"gain": 2}, {"gain": (1.0, 3.0)}, [[{"name": "cut", "size": 3}]], {"mode": "b"}) == []
    (found,) = competition.faults(**{"decode": {}, "axes": {}, **asked})
    assert found.startswith(sentence)


def test_decode_refuses_what_faults_finds():
    with pytest.raises(ConfigError, match="decode.gain: expected a number from 0 to 10, got 11"):
        opened(Path("nowhere")).decode(LEVELS, {"gain": 11})


# ---- options ------------------------------------------------------------------------------------------
def test_wrong_options_are_sentences():
    with pytest.raises(ConfigError, match=r"^data.options.unclasified: unknown key; did you mean unclassified\?$"):
        open_competition("xview2", "nowhere", {"unclasified": "ignore"})
    with pytest.raises(ConfigError, match="competition: expected one of .*got 'xview'; did you mean xview2"):
        open_competition("xview", "nowhere")
    assert options_of("xview2")().unclassified == "ignore"


# ---- submission ---------------------------------------------------------------------------------------
def submitted(root: Path, folder: Path) -> tuple[Smallest, list[Scene]]:
    competition = opened(root)
    scenes = competition.scenes("test")
    answers = [(scene, np.full((8, 9), number)) for number, scene in enumerate(scenes)]
    assert competition.write_submission(iter(answers), folder) == [folder / "submission.csv"]
    return competition, scenes


def test_a_submission_reads_back_and_is_valid(root, tmp_path):
    competition, scenes = submitted(root, tmp_path)
    assert (tmp_path / "submission.csv").read_text() == "id,share\nx,0.000000\ny,1.000000\n"
    assert [competition.read_submission(tmp_path, scene) for scene in scenes] == [0.0, 1.0]
    assert competition.lint(tmp_path, scenes) == [] and competition.lint(tmp_path / "submission.csv") == []
    with pytest.raises(DataError, match="expected a row for 'ghost'"):
        competition.read_submission(tmp_path, Scene("ghost", {}))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("id,share\nx,0.5\n", "1 row: missing, it was asked for (y)"),
        ("id,share\nx,0.5\ny,much\n", "1 row: not a number (y)"),
        ("id,share\nx,0.5\ny,1.2.3\n", "scene y: could not"),
        ("id,part\nx,0.5\ny,1\n", "expected the header 'id,share'"),
        ("id,share\nx,0.5\ny,1\nz,1\n", "1 row: not one of the scenes asked for (z)"),
    ],
)
def test_the_linter_finds(root, tmp_path, text, fault, monkeypatch):
    competition, scenes = submitted(root, tmp_path)

    def strict(scene, rows):
        try:
            return float(rows[0][1])
        except ValueError as error:
            raise DataError(str(error)) from error

    monkeypatch.setattr(competition, "answer_from", strict)
    (tmp_path / "submission.csv").write_text("\ufeff" + text, encoding="utf-8")
    (found,) = competition.lint(tmp_path, scenes)
    assert fault in found


def test_the_order_of_the_sample_is_kept_and_asked_for(root, tmp_path):
    sample = root / "sample_submission.csv"
    sample.write_text("id,share\ny,0\nx,0\n")
    _, scenes = submitted(root, tmp_path)
    (tmp_path / "submission.csv").write_text("id,share\nx,0\ny,0\n")
    competition = opened(root)
    (found,) = competition.lint(tmp_path, scenes)
    assert "expected the sample's order of rows" in found
    competition.write_submission([(scene, np.zeros((8, 9))) for scene in scenes], tmp_path)
    assert (tmp_path / "submission.csv").read_text() == "id,share\ny,0.000000\nx,0.000000\n"
    assert competition.lint(tmp_path, scenes) == []
    sample.write_text("id,share\nq,0\n")  # of other scenes
    competition = opened(root)
    competition.write_submission([(scene, np.zeros((8, 9))) for scene in scenes], tmp_path)
    assert (tmp_path / "submission.csv").read_text() == "id,share\nx,0.000000\ny,0.000000\n"
    assert competition.lint(tmp_path, scenes) == []


def test_pictures_show_image_truth_and_prediction(root):
    competition = opened(root)
    scene, test = competition.scenes("train")[1], competition.scenes("test")[0]
    panels = dict(competition.panels(scene, np.zeros((8, 9), np.uint8)))
    assert list(panels) == ["image", "truth", "prediction"]
    np.testing.assert_array_equal(panels["prediction"], panels["image"])
    changed = (panels["truth"] != panels["image"]).any(-1)
    assert changed.sum() == 2 and changed[0, 0] and changed[1, 1]
    assert list(dict(competition.panels(test, np.zeros((2, 8, 9), np.uint8)))) == ["image", "prediction"]


# ---- options of every competition ---------------------------------------------------------------------
CLASSES = {"voc": ["sky", "road"], "multiclass_rle": ["a", "b"]}
WRONG = [
    None,
    True,
    -1,
    2.5,
    float("nan"),
    "x",
    "",
    "(",
    [],
    [1],
    ["a", "a"],
    [[]],
    {},
    {"a": 1},
    {"mean": "x"},
    object(),
]
OPTIONS = [(name, key) for name in NAMES for key in options_of(name).model_fields]


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_no_option_ends_in_anything_but_a_sentence(name, key, tmp_path):
    refused = 0
    for value in WRONG:
        given = {"classes": CLASSES[name]} if name in CLASSES else {}
        try:
            competition = open_competition(name, tmp_path / "nowhere", {**given, key: value})
            assert isinstance(competition.faults({}, {}), list)
        except ConfigError as error:
            refused += 1
            assert f"data.options.{key}" in str(error), error
    assert refused >= 6


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_line_of_meaning_and_is_asked_by_its_name(name):
    for key, field in options_of(name).model_fields.items():
        assert field.description and field.description.strip().endswith((".", ")")), f"{name}.{key}"
        with pytest.raises(ConfigError, match=f"data.options.{key}x: unknown key; did you mean"):
            open_competition(name, "nowhere", {**({"classes": CLASSES[name]} if name in CLASSES else {}), f"{key}x": 1})


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_options_decode_and_search_of_every_shipped_experiment_are_sound(path):
    config = load(path)
    competition = open_competition(config.competition, "nowhere", config.data.options)
    search = config.search
    asked = (search.axes, search.postprocess, search.unseen) if search else ({},)
    assert competition.faults(config.decode, *asked) == []
