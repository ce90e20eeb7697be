"""An area is what stages 04 to 06 would make of it as one scene, however it is cut into windows."""

from pathlib import Path

import areas
import numpy as np
import pytest
import rasterio
from conftest import stage

from lib.choose.choice import Decision
from lib.choose.evidence import weighted
from lib.competitions.contract import Scene, settings_for
from lib.inference.predict import Predictor
from lib.maps import area, plan
from lib.maps.__main__ import main, parser
from lib.models import checkpoint
from lib.run import cli
from lib.scenes.probs import quantise

ONE = {"loc": ("loc", "pre"), "cls": ("cls", "pre", "post")}


def planned(flags, folder: Path, **asked) -> plan.Plan:
    """Return the plan of an area whose images lie in a folder as pre.tif and post.tif."""
    images = {"pre": [str(folder / "pre.tif")], "post": [str(folder / "post.tif")]}
    run = cli.open_run(parser().parse_args([*flags, "--out", "x"]), brings_scenes=True)
    return plan.prepare(run, plan.Request(**{"images": images, "out": folder / "area", "window": 256, **asked}))


def read(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / name) as page:
        return page.read(1)


def as_one_scene(made: plan.Plan, images: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the levels and class numbers that the functions of stages 04 to 06 give an area that is one scene."""
    run, held = made.run, {}
    for member in made.job.members:
        folder = run.store.require(run.graph.checkpoint(member.model, member.fold))
        network, task = checkpoint.load_network(folder), run.competition.tasks[member.task]
        predictor = Predictor(
            network, task.activate, run.predict_of(member.model), pad=run.config.models[member.model].pad
        )
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
    images = {name: areas.image(300, 330, seed) for seed, name in enumerate(("pre", "post"))}
    for name, planes in images.items():
        areas.write(folder / f"{name}.tif", planes)
    return folder, images


VIEWS = {"tta": "d4", "tile": 192, "overlap": 0.4, "truncate": True, "precision": "float32"}
SETTINGS = {"fuse": 0.3, "w_minor": 2.0, "loc_threshold": 0.4, "postprocess": [{"name": "object_vote"}]}


@pytest.mark.parametrize("changes", [{}, pytest.param({"folds": (0, 1), "decode": SETTINGS}, marks=pytest.mark.slow),
                                     pytest.param({"predict": VIEWS}, marks=pytest.mark.slow)])  # fmt: skip
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
