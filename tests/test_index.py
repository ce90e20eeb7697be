"""The index of the data: what changed is noticed, what was only moved or touched is not, and no more is hashed."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from invented import TRAIN, experiment

from lib.competitions.contract import Scene
from lib.files import sha256, time_of
from lib.run import index
from lib.run.artifacts import Store
from lib.run.graph import Graph
from lib.run.index import INDEX, MEMORY, Index, current

FILES = {
    "train/a.png": "image of a", "train/a.jpg": "infrared of a", "labels/a.json": "label of a",
    "train/b.png": "image of b", "train/b.jpg": "infrared of b", "labels/b.json": "label of b",
    "masks/b/1.png": "one", "masks/b/2.png": "two", "test/t.png": "image of t", "test/u.png": "image of u",
    "train.csv": "table", "sample.csv": "sample",
}  # fmt: skip


@dataclass
class Made:
    """Files in the form of a competition: two images and a label of each scene, masks of one, a table for all."""

    root: Path
    files: tuple[str, ...] = ("image", "infrared")
    carried: dict[str, Path] = field(default_factory=dict)

    @property
    def sample(self):
        return self.root / "sample.csv"

    def fact_files(self, scene):
        return [*scene.files.values(), self.root / "train.csv", Path()]

    def scenes(self):
        train = []
        for path in sorted(self.root.glob("train/*.png")):
            own = {"image": path, "infrared": path.with_suffix(".jpg"), "label": self.root / f"labels/{path.stem}.json"}
            masks = self.root / "masks" / path.stem
            train.append(Scene(path.stem, {**own, **({"masks": masks} if masks.is_dir() else {})}, "place"))
        return {"train": train, "test": [Scene(p.stem, {"image": p}) for p in sorted(self.root.glob("test/*.png"))]}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for name, text in FILES.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    return Made(tmp_path / "data")


class Workdir:
    """An invented experiment on the made files, all of its stages done."""

    def __init__(self, root: Path, data: Made, **changes):
        self.root, self.data, self.config, self.store = root, data, experiment("own", **changes), Store(root)
        for unit in self.units(first=True):
            with self.store.build(unit, {}) as folder:
                (folder / "x").write_text("x")
                if unit.key == "01_folds":
                    self.found.write(folder)

    def units(self, first=False):
        scenes = self.data.scenes()
        graph = Graph(self.config, [s.id for s in scenes["train"]], [s.id for s in scenes["test"]])
        self.found = current(self.root, self.root / "01_folds", self.data, scenes, first)
        graph.data = self.found and self.found.data
        folds = self.config.folds_of(self.config.models["net"])
        return [graph.folds(), *(graph.checkpoint("net", k) for k in folds),
                *(graph.probs("net", k, split) for k in folds for split in ("oof", "test")),
                graph.decode(), graph.blend("oof"), graph.blend("test"),
                graph.submission("oof"), graph.submission("test")]  # fmt: skip

    def stale(self):
        return {unit.key for unit in self.units() if self.store.status(unit) == "stale"}

    def why(self):
        """Return unit -> in what it differs itself, or nothing."""
        return {unit.key: self.store.outdated(unit) for unit in self.units()}


@pytest.fixture
def work(tmp_path, data):
    return Workdir(tmp_path / "work", data)


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed, as they are."""
    names = []
    monkeypatch.setattr(index, "sum_of", lambda path: names.append(Path(path).name) or sha256(path))
    return names


ALL = {"01_folds", *(f"02_loc/net/fold{k}" for k in (0, 1)),
       *(f"04_probs/loc/net/fold{k}/{split}" for k in (0, 1) for split in ("oof", "test")),
       *(f"05_ensemble/{name}" for name in ("oof", "test", "decode")),
       *(f"06_submission/{name}" for name in ("oof", "test"))}  # fmt: skip
OF_TEST = {key for key in ALL if key.endswith("test")}


@pytest.mark.parametrize(("name", "expected"), [
    ("labels/a.json", ALL), ("train/a.png", ALL), ("masks/b/2.png", ALL), ("train.csv", ALL),
    ("test/t.png", OF_TEST), ("sample.csv", {"06_submission/test"}),
])  # fmt: skip
def test_a_file_whose_bytes_changed_makes_stale_what_is_made_from_it(work, data, name, expected):
    path = data.root / name
    path.write_text(path.read_text().upper())
    assert len(FILES[name]) == path.stat().st_size
    assert work.stale() == expected


@pytest.mark.parametrize(("image", "expected"), [("train/a.png", ALL), ("test/t.png", OF_TEST)])
def test_a_mask_of_valid_pixels_beside_an_image_is_read_with_it(work, data, image, expected):
    mask = data.root / f"{image}.msk"
    mask.write_text("which are valid")
    assert work.stale() == expected
    mask.unlink()
    assert not work.stale()


def test_without_the_sample_that_it_followed_a_submission_is_stale(work, data, monkeypatch):
    monkeypatch.setattr(Made, "sample", None)
    assert work.stale() == {"06_submission/test"}


@pytest.mark.parametrize("odd", ['{"files": []}', '{"files": {"train.csv": {"a": 1}}}', '{"files": {"train.csv": []}}'])
def test_what_is_no_entry_of_an_index_is_hashed_again(work, data, odd):
    (work.root / "01_folds" / INDEX).write_text(odd)
    (work.root / MEMORY).write_text('{"test/t.png": {"a": 1}, "test/u.png": null}')
    assert work.stale() == set() and work.found.files["train.csv"][2] == sha256(data.root / "train.csv")


def test_a_pipe_among_the_data_is_not_waited_for(data, tmp_path):
    os.mkfifo(data.root / "test/v.png")
    found = Index(data, data.scenes(), {}).look()
    assert found.files["test/v.png"] == [None, None, "no file"]


def test_the_scene_is_named(work, data):
    (data.root / "labels/b.json").write_text("another")
    why = work.why()
    assert why["01_folds"] == "from other data (b: changed, new or gone since)"
    assert why["02_loc/net/fold0"] == "from other data (training scenes: changed, new or gone since)"
    assert why["04_probs/loc/net/fold0/oof"] == "from 02_loc/net/fold0, which is stale"
    assert why["05_ensemble/decode"] == "from other data (labels of training scenes: changed, new or gone since)"


def test_training_follows_labels_and_the_images_that_its_network_reads(work, data):
    (data.root / "train/a.jpg").write_text("other infrared")
    why = work.why()
    assert "(a: " in why["01_folds"] and why["02_loc/net/fold0"] == "from 01_folds, which is stale"
    folds = work.units()[0]
    with work.store.build(folds, {}) as folder:
        (folder / "x").write_text("x")
        work.found.write(folder)
    assert not work.stale(), "stage 01 found the same folds"


def test_a_test_image_is_told_by_its_scene_and_no_other(work, data):
    (data.root / "test/u.png").write_text("mended")
    why = work.why()
    assert why["01_folds"] == why["05_ensemble/oof"] == why["05_ensemble/decode"] == ""
    assert why["04_probs/loc/net/fold1/test"] == "from other data (u: changed, new or gone since)"


@pytest.mark.parametrize("name", ["train/a.png", "test/t.png", "labels/b.json"])
def test_files_that_disappear_or_come_are_named_with_the_way_out(work, data, name):
    (data.root / name).unlink()
    first = work.units()[0]
    scene = Path(name).stem
    said = f"test scene {scene}" if name.startswith("test") else scene
    assert work.store.outdated(first) == f"from other data ({said}: changed, new or gone since)"
    (data.root / name).write_text(FILES[name])
    assert not work.stale()
    (data.root / name).with_stem("z").write_text("new")
    if not name.startswith("labels"):
        assert "z: changed, new or gone since" in work.store.outdated(work.units()[0])


def moved(data):
    data.root = data.root.rename(data.root.with_name("elsewhere"))


def copied(data):
    shutil.copytree(data.root, data.root.with_name("copy"), copy_function=shutil.copyfile)
    data.root = data.root.with_name("copy")


def touched(data):
    for name in FILES:
        os.utime(data.root / name)


@pytest.mark.parametrize(("what", "again"), [(moved, 0), (copied, len(FILES)), (touched, len(FILES))])
def test_a_folder_that_was_moved_or_touched_makes_nothing_stale_and_is_hashed_once(work, data, hashed, what, again):
    what(data)
    assert not work.stale() and len(hashed) == again
    assert not work.stale() and len(hashed) == again, "the new times are remembered"
    (data.root / "test/t.png").write_text("changed")
    assert work.stale() == OF_TEST and hashed[again:] == ["t.png"]


def test_an_older_time_does_not_hide_other_bytes(work, data):
    """As when a newer archive with the times of the older one is unpacked over it."""
    path = data.root / "labels/a.json"
    before = path.stat()
    path.write_text("LABEL OF A")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and work.stale() == ALL


def test_a_memory_that_cannot_be_read_or_written_costs_time_alone(work, data, hashed):
    touched(data)
    (work.root / MEMORY).unlink()
    (work.root / MEMORY).mkdir()  # so that writing fails, too
    assert not work.stale() and not work.stale() and len(hashed) == 2 * len(FILES)
    (work.root / MEMORY).rmdir()
    (work.root / MEMORY).write_text('["no object"]')
    assert not work.stale()


def test_the_index_tells_scene_role_file_size_time_and_sum(work, data):
    written = json.loads((work.root / "01_folds" / INDEX).read_text())
    assert written["scenes"]["train"]["b"] == {
        "image": ["train/b.png"],
        "infrared": ["train/b.jpg"],
        "label": ["labels/b.json"],
        "masks": ["masks/b/1.png", "masks/b/2.png"],
    }
    assert written["tables"] == ["train.csv"] and written["scenes"]["test"] == {
        "t": {"image": ["test/t.png"]},
        "u": {"image": ["test/u.png"]},
    }
    stat = (data.root / "train/a.png").stat()
    assert written["files"]["train/a.png"] == [stat.st_size, time_of(stat), sha256(data.root / "train/a.png")]
    assert written["files"].keys() == FILES.keys()


def test_without_an_index_nothing_is_hashed_and_nothing_stale(work, data, hashed):
    (work.root / "01_folds" / INDEX).unlink()
    (data.root / "labels/b.json").write_text("another")
    scenes = data.scenes()
    assert current(work.root, work.root / "01_folds", data, scenes) is None and not hashed
    assert current(work.root, work.root / "01_folds", data, scenes, first=True) is not None
    assert hashed == ["b.json"], "the others are remembered from the first time"


def test_with_folds_from_elsewhere_the_time_of_a_test_image_stands_for_its_bytes(work, data, tmp_path, hashed):
    def seen():
        scenes = {"train": [], "test": data.scenes()["test"]}
        found = current(tmp_path / "own", work.root / "01_folds", data, scenes).data
        return found.by_scene("test", ("image",))

    first = seen()
    os.utime(data.root / "test/u.png", ns=(1, 1))
    assert {i for i in first if first[i] != seen()[i]} == {"u"} and not hashed
    graph = Graph(work.config, [], ["t", "u"])
    graph.data = current(tmp_path / "own", work.root / "01_folds", data, {"train": [], "test": []}).data
    assert not graph.folds().data and not graph.checkpoint("net", 0).data and not graph.decode().data


def test_what_the_listing_says_of_a_scene_counts_too(data):
    """A pixel size or a domain from a table, and boxes that all images are cut to."""

    def digests(scene):
        return Index(data, {"train": [], "test": [scene]}, {}).look().data.by_scene("test", ("image",))["t"]

    path = {"image": data.root / "test/t.png"}
    found = [digests(Scene("t", path)), digests(Scene("t", path, "kidney")), digests(Scene("t", path, pixel_size=0.5))]
    data.carried = {"crop.boxes": data.root / "train.csv"}
    found.append(digests(Scene("t", path)))
    assert len(set(found)) == 4


def test_a_picture_that_moved_to_another_class_has_another_label(data):
    """Where the folder is the label and no file says it."""

    def digest(folder):
        path = data.root / folder / "a.png"
        path.parent.mkdir(exist_ok=True)
        path.write_text("image of a")
        found = Index(data, {"train": [Scene("a", {"image": path, "infrared": path})], "test": []}, {}).look().data
        return found.by_scene("train", ("image",))["a"]

    (data.root / "train.csv").unlink()
    assert digest("cats") != digest("dogs") == digest("dogs")


def test_files_that_settings_name_count_by_their_bytes(tmp_path, data):
    folds, weights = tmp_path / "given.csv", tmp_path / "weights.safetensors"
    folds.write_text("id,fold\na,0\nb,1\n")
    weights.write_text("weights")
    network = {"architecture": "unet", "images": ["image"], "encoder": "resnet18", "encoder_weights": str(weights)}
    model = {"task": "loc", "network": network, "train": TRAIN}
    work = Workdir(tmp_path / "work", data, folds={"n": 2, "file": str(folds)}, models={"net": model})
    assert not work.stale()
    weights.write_text("WEIGHTS")
    assert work.why()["02_loc/net/fold1"] == "from other data (encoder_weights: changed, new or gone since)"
    assert not work.why()["01_folds"]
    weights.unlink()
    assert not work.stale(), "a network that was trained needs them no longer"
    folds.write_text("id,fold\na,1\nb,0\n")
    assert work.why()["01_folds"] == "from other data (folds.file: changed, new or gone since)"


def test_a_crf_reads_images_and_pseudo_labels_read_test_images(tmp_path, data):
    def changed(**changes):
        work = Workdir(tmp_path / f"work{len(list(tmp_path.iterdir()))}", data, **changes)
        (data.root / "test/u.png").write_text(f"changed {work.root}")
        return {key for key, why in work.why().items() if why.startswith("from other data")}

    of_04 = {"04_probs/loc/net/fold0/test", "04_probs/loc/net/fold1/test"}
    assert changed() == of_04
    assert changed(blend={"crf": {}}) == of_04 | {"05_ensemble/test"}
    pseudo = {"pseudo": {"experiment": "other", "models": ["net"], "share": 0.5}}
    assert changed(train=pseudo) == of_04 | {"02_loc/net/fold0", "02_loc/net/fold1"}
