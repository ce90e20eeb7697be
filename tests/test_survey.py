"""Stage 01 reads every file once, in any number of processes, and says the same as when it is read step by step."""

from collections import Counter
from pathlib import Path

import cv2
import pytest
import torch
from conftest import stage
from sisters import COMMON, EXPERIMENTS

from lib import files
from lib.competitions import open_competition, synthetic
from lib.config.sections import Folds
from lib.run import cores
from lib.run.executor import Pool
from lib.run.index import Index
from lib.run.survey import Survey
from lib.scenes import raster
from lib.stages import folds

SETS = {"xview2": ({"scenes": 8, "test_scenes": 2, "size": 64, "seed": 1}, {}),
        "videos": ({"scenes": 6, "test_scenes": 2, "size": 64, "seed": 1}, {}),
        "labels": ({"scenes": 8, "test_scenes": 2, "size": 64, "seed": 1}, {})}  # fmt: skip


@pytest.fixture(scope="module", params=SETS)
def data(request, tmp_path_factory):
    """Name, folder and options of a small set; one of its files is broken."""
    cv2.setNumThreads(1)  # a forked process does not inherit threads, and would wait for them
    root = tmp_path_factory.mktemp(request.param)
    sizes, options = SETS[request.param]
    synthetic.write(request.param, root, **sizes)
    broken = broken_in(open_competition(request.param, root, options))
    if broken.is_file():
        broken.write_bytes(broken.read_bytes()[:-40])
    yield request.param, root, options
    cv2.setNumThreads(-1)


def broken_in(competition) -> Path:
    """Return the file that is broken: the first of the second scene that is listed."""
    return next(iter(sorted(competition._list("train"), key=lambda scene: scene.id)[1].files.values()))


def made(data, folder: Path, workers: int, features: bool = False, survey: bool = True) -> dict[str, bytes]:
    """Return the files that stage 01 writes with so many workers; without a ``survey`` step by step."""
    name, root, options = data
    folder.mkdir()
    competition = open_competition(name, root, options)
    own = Survey(competition, workers) if survey else None
    if own is not None:
        own._pool = Pool(cores.Hand, [torch.device("cpu")] * workers, "fork")
        own.read_labels()
        own.see(features, sums=True)
    scenes = {split: competition.scenes(split) for split in ("train", "test")}
    index = Index(competition, scenes, {}).look()
    said = [*folds.check(competition, folder, False, own, features),
            *folds.split(competition, Folds(n=2, embed=features), folder, own)]  # fmt: skip
    index.write(folder)
    if own is not None:
        own.close()
    return {"said": "\n".join(said).encode()} | {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_folds_audit_findings_and_index_are_the_same_bytes_whatever_the_number_of_workers(data, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.run.survey.AT_ONCE", 1)
    plain = made(data, tmp_path / "plain", 1, survey=False)
    assert plain.keys() == {"said", "folds.csv", "audit.json", "findings.csv", "index.json"}
    assert data[0] == "videos" or len(plain["findings.csv"].splitlines()) > 1, "the broken file is found"
    for workers in (1, 2, 3):
        assert made(data, tmp_path / str(workers), workers) == plain


def test_each_image_is_decoded_once_and_each_file_is_hashed_once(data, monkeypatch):
    decoded, hashed = Counter(), Counter()
    decode, sha256 = raster._decoded, files.sha256
    monkeypatch.setattr(raster, "_decoded", lambda path, *more, **named: decoded.update([path]) or
                        decode(path, *more, **named))  # fmt: skip
    monkeypatch.setattr(files, "sha256", lambda path: hashed.update([Path(path)]) or sha256(path))
    monkeypatch.setattr(files, "_sums", {})
    competition = open_competition(*data)
    survey = Survey(competition)
    survey.read_labels()
    survey.see(features=False, sums=True)
    folds.looks_of(competition, competition.scenes("train"), by_features=False, survey=survey)
    scenes = {split: competition.scenes(split) for split in ("train", "test")}
    Index(competition, scenes, {}).look()
    pictures = {path for split in scenes.values() for scene in split for path in scene.files.values()
                if path.suffix in (".png", ".tif", ".jpg")} - {broken_in(competition)}  # fmt: skip
    assert pictures <= hashed.keys() and set(hashed.values()) == {1}
    assert {decoded[path] for path in pictures} == ({1} if pictures else set())
    assert bool(pictures) == (data[0] != "videos")


@pytest.mark.slow
def test_the_stage_shares_its_scenes_and_compares_features_to_the_same_bytes(tmp_path, forked):
    import yaml

    found = {}
    for workers in (1, 2):
        config = {**COMMON, **EXPERIMENTS["voc"], "name": "own"}
        config["data"] = {**config["data"], "root": str(tmp_path / "data"), "workers": workers}
        path = tmp_path / f"{workers}.yaml"
        path.write_text(yaml.safe_dump(config))
        work = tmp_path / str(workers)
        assert stage("01_prepare_folds", "--config", str(path), "--workdir", str(work)) == 0
        unit = work / "own" / "01_folds"
        found[workers] = {one.name: one.read_bytes() for one in unit.iterdir() if one.name != "manifest.json"}
    assert found[1] == found[2] and b'"embedded": 10' in found[1]["audit.json"]
