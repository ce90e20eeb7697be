"""``train.cache: disk``: each sample is that of ``cache: none`` to the bit; what is stale or cut short is made anew."""

import os
import shutil
from collections import Counter, namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sisters import EXPERIMENTS
from test_dataset import PAIR, SCENES, classes_of, frames, read, stream, target

from lib.competitions import synthetic
from lib.competitions.contract import Scene
from lib.config.sections import Sampling
from lib.errors import ArtifactError
from lib.run import cli
from lib.scenes.augment import OLDER, PRESETS, build
from lib.stages import train as stage_train
from lib.tasks import MulticlassMask, MultilabelMask
from lib.training import cache
from lib.training.cache import Part
from lib.training.dataset import CropDataset, FrameDataset, TrainingSet, focus_values, spots_of

CLASSES = ("background", "no-damage", "minor-damage", "major-damage", "destroyed")
DIGESTS = {scene.id: "0123456789abcdef" for scene in SCENES}
SIZE = (60, 70)


def parts(folder: Path, reader=read, goal=target, task=None, names=PAIR) -> dict[str, Part]:
    """A part for each image, the target and its spots."""
    task = task or MulticlassMask(CLASSES)
    made = {name: Part(folder / name, partial(_read, reader, name), DIGESTS, 3) for name in names}
    made["target"] = Part(folder / "target", goal, DIGESTS, 1)
    values = sorted(focus_values(task, dict.fromkeys(task.classes, 1.0)))
    made["spots"] = Part(folder / "spots", partial(_spots, made["target"], values), DIGESTS, 0)
    return made


def _read(reader, name, scene):
    return reader(scene, name)


def _spots(goal, values, scene):
    return spots_of(goal(scene), values)


def written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def fill(made: dict[str, Part], say=lambda line: None, workers=0, scenes=SCENES) -> None:
    cache.fill(list(made.values()), scenes, workers, say, lambda scene: SIZE)


def same(one, two) -> bool:
    """Whether two samples are the same but for the seconds that they took."""
    return one.keys() == two.keys() and all(
        value.equal(two[name]) and value.dtype == two[name].dtype if isinstance(value, torch.Tensor)
        else value == two[name] for name, value in one.items() if name != "seconds")  # fmt: skip


def border(scene: Scene) -> np.ndarray:
    """A further task of the same scenes."""
    return (target(scene) > 0).astype(np.uint8) * (1 + int(scene.id) % 2)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in OLDER])
def test_every_sample_is_that_of_decoding_each_time(tmp_path, preset):
    """All augmentations, with focus by scene and by class, and with a further task."""
    made = parts(tmp_path)
    fill(made)
    further = Part(tmp_path / "border", border, DIGESTS, 1)
    task = MulticlassMask(CLASSES)
    plain = TrainingSet(task, SCENES, PAIR, read, target, auxiliary={"border": (task, border)})
    kept = replace(plain, read=lambda scene, name: made[name](scene), target=made["target"], spots=made["spots"],
                   auxiliary={"border": (task, further)})  # fmt: skip
    for first in ("scene", "class"):
        sampling = Sampling(focus={"no-damage": 1, "minor-damage": 2}, focus_probability=0.7, focus_first=first)
        one, two = (CropDataset(data, build(preset, 32, PAIR), sampling, 5) for data in (plain, kept))
        assert all(same(one[i], two[i]) for i in range(8))
        assert not two.spots, "nothing of the scenes stays in the process"


def test_multilabel_targets_and_a_teacher_are_served_alike(tmp_path):
    def bits(scene):
        return target(scene) & 3

    def teacher(scene):
        return np.stack([target(scene) * 0.5] * 2).astype(np.float16)

    task = MultilabelMask(("a", "b"))
    made = parts(tmp_path, goal=bits, task=task)
    fill(made)
    plain = TrainingSet(task, SCENES, PAIR, read, bits, teacher=teacher)
    kept = replace(plain, read=lambda scene, name: made[name](scene), target=made["target"], spots=made["spots"])
    sampling = Sampling(focus={"a": 1, "b": 2}, focus_probability=0.9)
    one, two = (CropDataset(data, build("tissue", 32, PAIR), sampling, 5) for data in (plain, kept))
    assert all(same(one[i], two[i]) for i in range(16))


def test_frames_are_served_alike_and_none_but_the_drawn_one_is_read(tmp_path):
    made = parts(tmp_path, frames, classes_of, names=("frames",))
    del made["spots"]
    cache.fill(list(made.values()), SCENES, 0, lambda line: None, lambda scene: None)
    options = {"seed": 3, "balance": True}
    plain = stream(FrameDataset, frames, classes_of, SCENES, ("frames",), "bag_of_tricks", **options)
    kept = stream(FrameDataset, lambda scene, name: made[name](scene), made["target"], SCENES, ("frames",),
                  "bag_of_tricks", **options)  # fmt: skip
    assert all(same(plain[i], kept[i]) for i in range(30))


# ---- files ----------------------------------------------------------------------------------------------
def test_each_scene_is_made_once_by_all_who_want_it(tmp_path):
    reads = Counter()

    def counting(scene, name):
        reads[scene.id, name] += 1
        return read(scene, name)

    said = []
    for _ in range(2):
        fill(parts(tmp_path, counting), said.append)
    assert set(reads.values()) == {1} and len(reads) == 14
    assert len(said) == 1 and "for 7 of 7 scenes" in said[0]
    made = parts(tmp_path, counting)
    for scene in SCENES:
        for name in PAIR:
            kept = made[name](scene)
            assert np.array_equal(kept, read(scene, name)) and not kept.flags.writeable
    assert len(reads) == 14 and sum(reads.values()) == 14


def test_loader_processes_write_what_this_one_does(tmp_path):
    fill(parts(tmp_path / "one"))
    fill(parts(tmp_path / "two"), workers=2)
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert [p.relative_to(tmp_path / "one") for p in one] == [p.relative_to(tmp_path / "two") for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two))


def test_a_file_that_is_not_whole_or_gone_is_made_anew(tmp_path):
    made = parts(tmp_path)
    fill(made)
    path = made["pre"].path(SCENES[3])
    whole = path.read_bytes()
    for damage in (whole[:-1], whole + b"x", whole[:40], b"", b"not an array"):
        path.write_bytes(damage)
        assert np.array_equal(made["pre"](SCENES[3]), read(SCENES[3], "pre")) and path.read_bytes() == whole
    path.unlink()
    assert np.array_equal(made["pre"](SCENES[3]), read(SCENES[3], "pre")) and path.read_bytes() == whole


def test_arrays_of_other_data_are_replaced_and_those_of_other_scenes_stay(tmp_path):
    made = parts(tmp_path)
    fill(made)
    before = written(tmp_path / "pre")
    changed = {**DIGESTS, SCENES[0].id: "f" * 16}
    half_done = [tmp_path / "pre" / f"{name}.tmp" for name in ("new", "old")]
    for path in half_done:
        path.write_bytes(b"begun")
    os.utime(half_done[1], (0, 0))
    said = []
    fill({name: replace(part, digests=changed) for name, part in made.items()}, said.append, scenes=SCENES[:3])
    after = written(tmp_path / "pre")
    assert "for 1 of 3 scenes" in said[0]
    assert set(after) - set(before) == {tmp_path / "pre" / f"{SCENES[0].id}.{'f' * 16}.npy", half_done[0]}
    assert set(before) - set(after) == {made["pre"].path(SCENES[0])}


def test_what_other_code_made_of_the_same_is_removed(tmp_path):
    made = {name: replace(part, folder=part.folder.with_name(f"{name}.new")) for name, part in parts(tmp_path).items()}
    others = [tmp_path / name for name in ("pre.old", "pre-other.old", "precise.old")]
    for folder in others:
        folder.mkdir()
    fill(made)
    assert [folder.exists() for folder in others] == [False, True, True]
    assert all(part.folder.is_dir() for part in made.values())


def test_a_disk_without_the_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    needed = 7 * 60 * 70 * (3 + 3 + 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(ArtifactError, match=r"needs 0.00 GiB for 7 of 7 scenes in .*--workdir on another disk"):
        fill(parts(tmp_path))
    assert not written(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    fill(parts(tmp_path))


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*00000000"):
        parts(tmp_path)["pre"](SCENES[0])
    assert not written(tmp_path)


# ---- the stage ------------------------------------------------------------------------------------------
def opened(folder: Path, competition: str, **model):
    """A run of a tiny experiment on a set of its own, without an index of stage 01, and its model."""
    import yaml

    asked = EXPERIMENTS[competition]
    ((name, first),) = asked["models"].items()
    first = {**first, **model, "train": {**first["train"], **model.get("train", {})}}
    own = {"name": "own", "seed": 3, **asked, "models": {name: first}}
    own["data"] = {**asked["data"], "root": str(folder / "data")}
    if not (folder / "data").exists():
        synthetic.write(competition, folder / "data", **own["data"]["synthetic"])
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    run = cli.start("", ["--config", str(folder / "own.yaml"), "--workdir", str(folder / "workdir")])
    return run, run.config.models[name]


def samples(run, model, kind: str):
    model = model.model_copy(update={"train": model.train.model_copy(update={"cache": kind})})
    return stage_train.samples(run, model, run.competition.scenes("train"), 0)


@pytest.mark.parametrize(("competition", "changes"), [
    ("binary_rle", {"view": {"scale": 0.5}}),
    pytest.param("labels", {}, marks=pytest.mark.slow),
    pytest.param("voc", {"view": {"size": 96, "fit": "square"}}, marks=pytest.mark.slow),
    pytest.param("multiclass_rle", {"train": {"augment": "tissue"}}, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_stage_serves_the_same_samples(tmp_path, competition, changes):
    run, model = opened(tmp_path, competition, **changes)
    plain, kept = samples(run, model, "none"), samples(run, model, "disk")
    assert all(same(plain[i], kept[i]) for i in range(12))
    files = written(tmp_path / "workdir" / cache.FOLDER)
    assert files
    times = [path.stat().st_mtime_ns for path in files]
    samples(run, model, "disk")
    assert [path.stat().st_mtime_ns for path in written(tmp_path / "workdir" / cache.FOLDER)] == times
    scene = run.competition.scenes("train")[0]
    picture = next(iter(scene.files.values()))
    shutil.copy(next(iter(run.competition.scenes("train")[1].files.values())), picture)
    run, model = opened(tmp_path, competition, **changes)
    plain, kept = samples(run, model, "none"), samples(run, model, "disk")
    assert all(same(plain[i], kept[i]) for i in range(12)), "a picture changed"
    assert len(written(tmp_path / "workdir" / cache.FOLDER)) == len(files), "the old arrays are gone"


@pytest.mark.slow
def test_pairs_of_both_tasks_share_their_pictures(finished, tmp_path):
    run = cli.start("", [*finished.flags[:2], "--workdir", str(tmp_path)])
    for model in run.config.models.values():
        plain, kept = samples(run, model, "none"), samples(run, model, "disk")
        assert all(same(plain[i], kept[i]) for i in range(6))
    names = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / cache.FOLDER).iterdir())
    assert names == [f"xview2-{kind}" for kind in ("cls", "cls-spots", "loc", "loc-spots", "post", "pre")]


@pytest.mark.slow
def test_another_view_or_option_is_another_folder(tmp_path):
    run, model = opened(tmp_path, "binary_rle")
    root = tmp_path / "workdir" / cache.FOLDER
    samples(run, model, "disk")
    first = set(root.iterdir())
    samples(*opened(tmp_path, "binary_rle", view={"scale": 0.5}), "disk")
    second = set(root.iterdir())
    assert len(second) == 2 * len(first) == 6
    samples(*opened(tmp_path, "binary_rle", view={"scale": 0.5}, train={"augment": "tissue", "crop": 32}), "disk")
    assert set(root.iterdir()) == second
