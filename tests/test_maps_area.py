"""An area is what stages 04 to 06 would make of it as one scene, however it is cut into windows."""

from pathlib import Path

import areas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from conftest import stage

from lib.choose.choice import Decision
from lib.choose.evidence import weighted
from lib.competitions import open_competition
from lib.competitions.contract import Scene, settings_for
from lib.errors import ConfigError
from lib.files import write_bytes, write_json
from lib.inference.predict import Predictor
from lib.maps import area, decode, networks, plan
from lib.maps.__main__ import main, parser
from lib.maps.area_file import Area
from lib.maps.grid import Grid
from lib.models import checkpoint
from lib.run import cli
from lib.scenes.probs import quantise

ONE = {"loc": ("loc", "pre"), "cls": ("cls", "pre", "post")}


def planned(flags, folder: Path, **asked) -> plan.AreaPlan:
    """Return the plan of an area whose images lie in a folder as pre.tif and post.tif."""
    images = {"pre": [str(folder / "pre.tif")], "post": [str(folder / "post.tif")]}
    run = cli.open_run(parser().parse_args([*flags, "--out", "x"]), brings_scenes=True)
    return plan.prepare(run, plan.Request(**{"images": images, "out": folder / "area", "window": 256, **asked}))


def read(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / name) as page:
        return page.read(1)


def as_one_scene(made: plan.AreaPlan, images: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the levels and class numbers that the functions of stages 04 to 06 give an area that is one scene."""
    run, held = made.run, {}
    for member in made.job.members:
        folder = run.store.require(run.graph.checkpoint(member.model, member.fold))
        network, task = checkpoint.load_network(folder), run.competition.tasks[member.task]
        model = run.config.models[member.model]
        predictor = Predictor(network, task.activate, run.predict_of(member.model), model.view, pad=model.pad)
        stack = np.concatenate([images[name] for name in checkpoint.read_description(folder)["images"]])
        levels = quantise(predictor(stack), run.config.predict.truncate)
        held.setdefault(member.task, []).append((member.model, member.folds, levels))
    levels = {task: weighted(own, made.job.weights, run.config.blend.truncate) for task, own in held.items()}
    params = settings_for(Scene("area", {}), Decision.of(run).params)
    return levels, run.competition.class_raster(run.competition.decode(levels, params))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with two images of one grid, beside them as arrays."""
    folder = tmp_path_factory.mktemp("pair")
    images = {name: areas.image(270, 300, seed) for seed, name in enumerate(("pre", "post"))}
    for name, planes in images.items():
        areas.write(folder / f"{name}.tif", planes)
    return folder, images


VIEWS = {"tta": "hflip", "tile": 192, "overlap": 0.4, "truncate": True, "precision": "float32"}
SETTINGS = {
    "w_minor": 2.0,
    "loc_threshold": 0.95,
    "loc_threshold_damaged": 0.9,
    "postprocess": [{"name": "object_vote"}],
}


CASES = [{"folds": (0, 1), "decode": SETTINGS}, {"predict": VIEWS}, {"view": {"scale": 0.5}, "pad": 16}]


@pytest.mark.parametrize("changes", [{}, *(pytest.param(case, marks=pytest.mark.slow) for case in CASES)])
def test_an_area_is_what_one_scene_would_be_for_every_size_of_windows(tmp_path, pair, changes):
    folder, images = pair
    flags = areas.experiment(tmp_path, **changes)
    for window in (256, 512):
        made = planned(flags, folder, out=tmp_path / str(window), window=window)
        told = area.make(made)
        levels, numbers = as_one_scene(made, images)
        classes = {"loc": ["building"], "cls": ["background", *list(told.classes)[:4]]}
        for task, names in classes.items():
            for name, expected in zip(names, levels[task], strict=True):
                np.testing.assert_array_equal(read(tmp_path / str(window), told.levels[name]), expected)
        np.testing.assert_array_equal(read(tmp_path / str(window), told.answer), numbers)
        assert len(np.unique(numbers)) > 2


@pytest.mark.slow
def test_an_area_of_a_scene_has_the_mask_of_its_submission(tmp_path):
    flags = areas.experiment(tmp_path, (0, 1), decode={"loc_threshold": 0.45, "w_major": 1.5})
    images = tmp_path / "data" / "test" / "images"
    images.mkdir(parents=True)
    for seed, side in enumerate(("pre", "post")):
        areas.write(images / f"flood_00000001_{side}_disaster.tif", areas.image(260, 300, seed))
    data = ["--set", f"data.root={tmp_path / 'data'}"]
    for name in ("04_predict_tta", "05_ensemble", "06_make_submission"):
        assert stage(name, *flags, *data, "--split", "test") == 0
    given = [f"--{side}={images / f'flood_00000001_{side}_disaster.tif'}" for side in ("pre", "post")]
    assert main([*flags, *given, "--out", str(tmp_path / "area"), "--window", "256"]) == 0
    run = cli.open_run(cli.parser("").parse_args([*flags, *data, "--split", "test"]))
    [scene] = run.competition.scenes("test")
    answer = run.competition.read_submission(tmp_path / "workdir" / "tiny" / "06_submission" / "test", scene)
    numbers = read(tmp_path / "area", "damage.tif")
    np.testing.assert_array_equal(numbers > 0, answer["localization"] > 0)
    np.testing.assert_array_equal(numbers, answer["damage"])
    assert len(np.unique(numbers)) > 2


# ---- what is cut, kept and left out -------------------------------------------------------------------
@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags of an experiment with one network for each task."""
    return areas.experiment(tmp_path_factory.mktemp("experiment"))


def counted(monkeypatch) -> list[tuple]:
    """Return a list of which networks' tiles are asked for from now on."""
    asked: list[tuple] = []
    original = Predictor.window
    monkeypatch.setattr(Predictor, "window", lambda self, image: (asked.append(image.shape), original(self, image))[1])
    return asked


@pytest.mark.slow
def test_a_tile_is_computed_once_and_a_run_that_was_stopped_goes_on(tmp_path, pair, flags, monkeypatch, capsys):
    folder, _ = pair
    asked = counted(monkeypatch)
    area.make(planned(flags, folder, out=tmp_path / "whole"))
    once = len(asked)
    assert once == 2 * 3 * 3  # networks, rows and columns of tiles, in 2 x 2 windows

    def stop(self, reading, original=networks.AreaNetworks.write):
        if reading.place == (1, 0):
            raise KeyboardInterrupt
        return original(self, reading)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(networks.AreaNetworks, "write", stop)
        area.make(planned(flags, folder, out=tmp_path / "stopped"))
    kept = sorted(path.stem for path in (tmp_path / "stopped" / ".parts" / "windows").iterdir())
    assert {"0_0", "0_1"} <= {*kept} and "1_0" not in kept
    del asked[:]
    capsys.readouterr()
    told = area.make(planned(flags, folder, out=tmp_path / "stopped"))
    assert f"windows of 256 pixels: 4, {len(kept)} of them done already" in capsys.readouterr().out
    assert len(asked) < once / 2
    for name in (told.answer, *told.levels.values()):
        np.testing.assert_array_equal(read(tmp_path / "stopped", name), read(tmp_path / "whole", name))
    assert not (tmp_path / "stopped" / ".parts").exists()
    del asked[:]
    area.make(planned(flags, folder, out=tmp_path / "stopped", decode={"loc_threshold": 0.99}))
    assert not asked and "there already" in capsys.readouterr().out
    assert (read(tmp_path / "stopped", told.answer) > 0).sum() < (read(tmp_path / "whole", told.answer) > 0).sum()


def test_windows_of_other_images_are_not_gone_on_with(tmp_path, pair, flags, capsys):
    folder, _ = pair
    made = planned(flags, folder, out=tmp_path)
    parts = tmp_path / ".parts"
    (parts / "windows").mkdir(parents=True)
    write_json(parts / "run.json", {"facts": "others"})
    (parts / "windows" / "0_0.tif").write_bytes(b"of another run")
    area._begin(made)
    assert not (parts / "windows").exists()
    assert "windows of another run (other images, networks or settings), begun anew" in capsys.readouterr().out
    write_bytes(parts / "kept", b"")
    area._begin(made)
    assert (parts / "kept").exists()


@pytest.mark.slow
def test_two_workers_make_the_same_as_one(tmp_path, pair, flags, monkeypatch):
    folder, _ = pair
    told = area.make(planned(flags, folder, out=tmp_path / "one"))
    asked = counted(monkeypatch)

    class Two:
        """Two workers in one process that take turns."""

        def __init__(self, make, devices, start="spawn"):
            self.workers = [make(torch.device("cpu")) for _ in range(2)]

        def __len__(self):
            return 2

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def each(self, method, *arguments):
            return [getattr(worker, method)(*arguments) for worker in self.workers]

        def share(self, method, calls):
            for number, arguments in enumerate(calls):
                yield getattr(self.workers[number % 2], method)(*arguments)

    monkeypatch.setattr(area, "Pool", Two)
    area.make(planned(flags, folder, out=tmp_path / "two"))
    assert len(asked) == 2 * 3 * 3  # what one worker has said of another's window is not computed again
    for name in (told.answer, *told.levels.values()):
        np.testing.assert_array_equal(read(tmp_path / "two", name), read(tmp_path / "one", name))


def test_outside_of_the_overlap_and_of_the_aoi_there_is_no_data(tmp_path, pair, flags):
    folder, images = pair
    areas.write(tmp_path / "pre.tif", images["pre"])
    areas.write(tmp_path / "post.tif", images["post"], transform=rasterio.Affine(0.5, 0, 360040, 0, -0.5, 4099970))
    circle = shapely.Point(360110, 4099900).buffer(30)
    made = planned(flags, tmp_path, out=tmp_path / "a", limit=(circle, areas.PLACE[0]))
    told = area.make(made)
    assert any("km2 that pre shows lie outside of what post shows" in note for note in told.notes)
    numbers, levels = read(tmp_path / "a", told.answer), read(tmp_path / "a", told.levels["building"])
    grid = told.grid
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    x, y = grid.transform.c + 0.5 * columns, grid.transform.f - 0.5 * rows
    inside = np.hypot(x - 360110, y - 4099900) < 30
    odd = (numbers != 255) != inside
    assert odd.mean() < 0.002 and inside.any()  # the buffer is a polygon
    assert not levels[numbers == 255].any()
    with rasterio.open(tmp_path / "a" / told.levels["building"]) as page:
        np.testing.assert_array_equal(page.dataset_mask() > 0, numbers != 255)
    assert told.grid.bounds[0] >= 360079 and Area.read(tmp_path / "a") == told


def test_an_image_that_networks_need_is_asked_for(tmp_path, pair, flags):
    folder, _ = pair
    with pytest.raises(ConfigError, match="--post: expected an image that the networks of this experiment look at"):
        planned(flags, folder, images={"pre": [str(folder / "pre.tif")]})
    with pytest.raises(ConfigError, match="--window: expected a multiple of 256 pixels, got 300"):
        planned(flags, folder, window=300)


@pytest.mark.slow
def test_several_networks_of_a_task_disagree(tmp_path, pair):
    folder, images = pair
    made = planned(areas.experiment(tmp_path, (0, 1)), folder, out=tmp_path / "a", window=512)
    told = area.make(made)
    run, found = made.run, {"loc": [], "cls": []}
    for member in made.job.members:
        network = checkpoint.load_network(run.store.require(run.graph.checkpoint(member.model, member.fold)))
        task = run.competition.tasks[member.task]
        stack = np.concatenate([images[name] for name in (("pre",) if member.task == "loc" else ("pre", "post"))])
        levels = quantise(Predictor(network, task.activate, run.predict_of(member.model))(stack))
        found[member.task].append(levels.astype(int))
    spread = np.maximum(*(np.abs(first - second).max(axis=0) for first, second in found.values()))
    np.testing.assert_array_equal(read(tmp_path / "a", told.disagreement), spread)


def test_decoding_in_blocks_leaves_objects_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    loc, cls = np.zeros((1, 200, 220), np.uint8), rng.integers(0, 120, (5, 200, 220), np.uint8)
    for top, left in rng.integers(0, 180, (60, 2)):
        loc[0, top : top + 14, left : left + 11] = 230
    competition = open_competition("xview2", Path("none"), {})
    settings = {"postprocess": [{"name": "object_vote"}]}
    whole = competition.class_raster(competition.decode({"loc": loc, "cls": cls}, settings))
    levels: dict[str, list[Path]] = {"loc": [], "cls": []}
    for task, planes in (("loc", loc), ("cls", cls)):
        for number, plane in enumerate(planes):
            levels[task].append(areas.write(tmp_path / f"{task}{number}.tif", plane[None], photometric="MINISBLACK"))
    grid = Grid(*areas.PLACE, 220, 200)

    def decoded(core, halo):
        monkeypatch.setattr(decode, "CORE", core)
        monkeypatch.setattr(decode, "HALO", halo)
        held = decode.Decoding(competition, settings, grid, levels, tmp_path / f"{core}_{halo}")
        held.folder.mkdir()
        found = np.zeros((200, 220), np.uint8)
        for part in held.parts():
            held.write(part)
            found[part.window.toslices()] = read(part.path.parent, part.path.name)
        return found

    np.testing.assert_array_equal(decoded(64, 60), whole)
    assert (decoded(64, 0) != whole).any()  # blocks cut objects, whose parts vote apart


def test_settings_that_are_told_from_a_scene_are_refused():
    competition = open_competition("binary_rle", Path("none"), {})
    with pytest.raises(ConfigError, match="decode.threshold: expected a number for an area, got 'otsu'"):
        decode.refuse_scene_settings(competition, {"threshold": "otsu"})


def test_answers_of_every_kind_become_class_numbers():
    held = {name: open_competition(name, Path("none"), options) for name, options in (
        ("voc", {"classes": ["ground", "roof", "road"]}), ("binary_rle", {}),
        ("multiclass_rle", {"classes": ["a", "b"], "train": "a", "test": "b", "id": "(c)"}),
    )}  # fmt: skip
    indices = np.array([[0, 1], [2, 0]], np.uint8)
    assert [*held["voc"].raster_classes()] == ["roof", "road"]
    np.testing.assert_array_equal(held["voc"].class_raster(indices), indices)
    assert len(held["binary_rle"].raster_classes()) == 1
    np.testing.assert_array_equal(held["binary_rle"].class_raster(indices.astype(np.int32)), indices > 0)
    masks = np.stack([indices > 0, indices == 2]).astype(np.uint8)  # b lies over a
    np.testing.assert_array_equal(held["multiclass_rle"].class_raster(masks), indices)
    both = {"localization": np.array([[0, 1], [1, 1]], np.uint8), "damage": np.array([[3, 3], [0, 4]], np.uint8)}
    xview2 = open_competition("xview2", Path("none"), {})
    assert xview2.class_raster(both).tolist() == [[0, 3], [5, 4]] and [*xview2.raster_classes()][4] == "un-classified"


def test_a_competition_of_labels_has_no_map():
    with pytest.raises(ConfigError, match="expected answers that give every pixel a class"):
        open_competition("labels", Path("none"), {"classes": ["a", "b"]}).raster_classes()


def test_workers_go_through_rows_of_their_own():
    places = [(row, column) for row in range(4) for column in range(3)]
    assert area.in_bands(places, 2)[:4] == [(0, 0), (2, 0), (0, 1), (2, 1)]
    assert sorted(area.in_bands(places, 3)) == places == area.in_bands(places, 1)
