"""Training samples by one core: from arrays on disk (``train.cache: disk``), from PNG each time, from memory.

Crops, augmentations and sampling are those of ``configs/xview2.yaml``. Scenes are drawn, or those of an xBD folder that
``--data`` names.
"""

import os
from functools import partial
from pathlib import Path

import yaml

from lib.competitions import synthetic
from lib.config.sections import Model
from lib.run import cli
from lib.stages import train
from tests.benchmarks.harness import Race, Side

ROOT = Path(__file__).resolve().parents[2]
SCENES = 8


def rows(quick: bool) -> list[Race]:
    """Return the samples of the localization and of the damage network."""
    count, size = (2, 128) if quick else (32, 1024)
    return [Race(f"{title}, crops of {crop}", partial(_sides, model, count, size), goals={"PNG each time": goal},
                 rounds=1 if quick else 5, per=count)
            for title, model, crop, goal in (("localization", "dpn92", 512, 200 / 27),
                                             ("damage", "densenet161", 480, 150 / 21))]  # fmt: skip


def _sides(name: str, count: int, size: int, folder: Path) -> dict[str, Side]:
    config = yaml.safe_load((ROOT / "configs" / "xview2.yaml").read_text())
    if not (root := os.environ.get("XVIEW2_DATA")):
        root = str(folder / "data")
        synthetic.write("xview2", Path(root), scenes=SCENES, test_scenes=1, size=size, seed=1)
    config |= {"data": {"root": root}, "folds": {"n": 2}}
    for model in config["models"].values():
        model["network"].pop("encoder_weights")
        model["folds"] = [0]
    (folder / "samples.yaml").write_text(yaml.safe_dump(config))
    run = cli.start("", ["--config", str(folder / "samples.yaml"), "--workdir", str(folder / "workdir")])
    model: Model = run.config.models[name]
    scenes = run.competition.scenes("train")[:SCENES]

    def drawn(cache: str) -> Side:
        kept = model.model_copy(update={"train": model.train.model_copy(update={"cache": cache, "workers": 0})})
        stream = train.samples(run, kept, scenes, 0)

        def draw() -> list:
            samples = [stream[number] for number in range(count)]
            return [one[key] for one in samples for key in sorted(one) if key != "seconds"]

        return draw

    return {"ours: disk": drawn("disk"), "PNG each time": drawn("none"), "memory": drawn("memory")}
