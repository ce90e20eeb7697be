"""One small data set for each competition, made by hand: three training scenes and the test scenes t1, t2, t3."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lib.competitions import open_competition
from lib.competitions.contract import Answer, Competition, Scene
from lib.scenes.raster import write_png

IDS = ("t1", "t2", "t3")
SIZE = 16
OPTIONS: dict[str, dict] = {
    "binary_rle": {"order": "column", "origin": 1},
    "multiclass_rle": {"classes": ["1", "2"], "order": "column", "origin": 1},
    "voc": {"classes": ["none", "cat"]},
    "xview2": {},
    "labels": {"classes": ["cat", "dog"]},
    "videos": {},
    "bright": {},
}
HEADERS = {
    "binary_rle": "id,rle",
    "multiclass_rle": "ImageId,ClassId,EncodedPixels",
    "voc": "ImageId_ClassId,EncodedPixels",
    "xview2": "ImageId_ClassId,EncodedPixels",
    "labels": "id,label",
    "videos": "fname,liveness_score",
    "bright": "ImageId_ClassId,EncodedPixels",
}
FIELDS = {name: len(header.split(",")) for name, header in HEADERS.items()}


def picture(path: Path, seed: int) -> None:
    """Write a picture of noise that differs from those of other seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.random.default_rng(seed).integers(20, 230, (SIZE, SIZE, 3), np.uint8))


def make(name: str, root: Path, tests: Sequence[str] = IDS) -> Path:
    """Write a competition's data set with these test scenes; returns ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    train = [f"a{k}" for k in range(3)]
    places = {
        "binary_rle": ("train_images/{}.png", "test_images/{}.png"),
        "multiclass_rle": ("train_images/{}.png", "test_images/{}.png"),
        "voc": ("JPEGImages/{}.png", "JPEGImages/{}.png"),
        "labels": ("train/{}.png", "test/{}.png"),
        "videos": ("train/videos/{}/1.png", "test/videos/{}/1.png"),
    }
    for number, (scene, test) in enumerate([*((i, False) for i in train), *((i, True) for i in tests)]):
        if name == "bright":
            stem = f"t_{scene[1:]}" if test and scene in IDS else f"storm_{number:08d}"
            for side, roles in enumerate(("pre", "post")):
                picture(root / f"{roles}-event/{stem}_{roles}_disaster.png", number + 100 * side)
            if not test:
                (root / "target").mkdir(exist_ok=True)
                write_png(root / f"target/{stem}_building_damage.png", np.full((SIZE, SIZE), number, np.uint8))
            continue
        if name != "xview2":
            picture(root / places[name][test].format(scene), number)
            continue
        folder = root / ("test" if test else "train")
        event = scene if test else f"storm_{number:08d}"
        for side in ("pre", "post"):
            stem = f"test_{side}_{number:05d}" if test and scene in IDS else f"{event}_{side}_disaster"
            picture(folder / "images" / f"{stem}.png", number + 100 * (side == "post"))
            if not test:
                (folder / "labels").mkdir(exist_ok=True)
                (folder / "labels" / f"{stem}.json").write_text(json.dumps({"features": {"xy": [], "lng_lat": []}}))
    if name == "binary_rle":
        (root / "train.csv").write_text("id,rle\na0,1 3\na1,5 4\na2,\n")
    elif name == "multiclass_rle":
        (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na0,1,1 3\na0,2,5 4\na1,1,1 3\na2,2,9 9\n")
    elif name == "voc":
        (root / "SegmentationClass").mkdir()
        for number, scene in enumerate(train):
            write_png(root / f"SegmentationClass/{scene}.png", np.full((SIZE, SIZE), number % 2, np.uint8))
        lists = root / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("\n".join(train))
        (lists / "test.txt").write_text("\n".join(tests))
    elif name == "labels":
        (root / "train.csv").write_text("id,label\na0,cat\na1,dog\na2,cat\n")
    elif name == "videos":
        (root / "train/label.csv").write_text("fname,liveness_score\na0,1\na1,0\na2,1\n")
    return root


def ids_of(name: str) -> list[str]:
    """Return the ids of the test scenes t1, t2, t3."""
    if name == "xview2":
        return [f"test_{number:05d}" for number in (3, 4, 5)]
    return [f"t_{i[1:]}" for i in IDS] if name == "bright" else list(IDS)


def rows_for(name: str, ids: Sequence[str]) -> list[str]:
    """Return the rows of a sample submission, each answer empty or nothing known."""
    forms = {
        "binary_rle": ["{},1 1"],
        "multiclass_rle": ["{},1,", "{},2,"],
        "voc": ["{}_1,"],
        "xview2": [f"{{}}_{part}," for part in range(5)],
        "labels": ["{},cat"],
        "videos": ["{},0.5"],
        "bright": [f"{{}}_{part}," for part in (1, 2, 3)],
    }
    return [form.format(i) for i in ids for form in forms[name]]


def sample(name: str, root: Path, ids: Sequence[str], header: str = "") -> Path:
    """Write the sample submission of a data set."""
    path = root / "sample_submission.csv"
    path.write_text("\n".join([header or HEADERS[name], *rows_for(name, ids)]) + "\n")
    return path


def opened(name: str, root: Path, **options: object) -> Competition:
    return open_competition(name, root, OPTIONS[name] | options)


def nothing(competition: Competition, scene: Scene) -> Answer:
    """Return the answer to probabilities of zero."""
    size = competition.size(scene)
    shape = (size[0], size[1]) if size and size[0] and size[1] else (1, 1)
    levels = {role: np.zeros((task.channels, *(shape if task.dense else (1, 1))), np.uint8)
              for role, task in competition.tasks.items()}  # fmt: skip
    return competition.decode(levels, competition.defaults())
