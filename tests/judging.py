"""Judge a network in one or several processes and write what each of them returns; run by tests/test_judge.py.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/judging.py FOLDER

The competition is invented: its tallies are so many odd float64 numbers that another order of their sum shows.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.competitions.contract import Scene
from lib.config.sections import Predict
from lib.run import runtime
from lib.scenes.view import View
from lib.tasks import BinaryMask, MulticlassMask
from lib.training.judge import Judge

SCENES = [Scene(f"s{number}", {}) for number in range(5)]


class Invented:
    tasks = {"loc": BinaryMask(("x",)), "cls": MulticlassMask(("a", "b"))}

    def __init__(self, broken=""):
        self.broken, self.seen = broken, []

    def defaults(self):
        return {}

    def read(self, scene, _):
        self.seen.append(scene.id)
        if scene.id == self.broken:
            raise OSError("no such picture")
        return np.random.default_rng(int(scene.id[1:])).integers(0, 256, (32, 48, 3), np.uint8)

    def size(self, scene):
        return 32, 48

    def target(self, scene, _):
        return (self.read(scene, "image")[..., 0] > 90).astype(np.uint8)

    def training_target(self, scene, role, images):
        return self.target(scene, role)

    def truth(self, scene):
        return int(scene.id[1:])

    def decode(self, levels, _):
        return sum(float(value.astype(float).sum()) for value in levels.values())

    def tally(self, answer, truth):
        return np.array([answer / (3 + truth + part) for part in range(20)])

    def scores(self, counts):
        return {"score": float(counts.sum()), **{f"part_{part}": float(value) for part, value in enumerate(counts)}}


class Net(nn.Module):
    """A convolution and a norm, whose statistics are other ones in every process, as without SyncBN."""

    stride = 16

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.norm.running_mean += runtime.rank()

    def forward(self, x):
        return self.norm(self.conv(x.float() / 255))


def judged(role, broken="", workers=0):
    competition, asked = Invented(broken), []
    net = Net(competition.tasks[role].channels)

    def others(scene):
        asked.append(scene.id)
        return np.full((1, 32, 48), 10 + int(scene.id[1:]), np.uint8)

    model = SimpleNamespace(task=role, view=View(), train=SimpleNamespace(select="score", workers=workers),
                            network=SimpleNamespace(images=("image",)))  # fmt: skip
    judge = Judge(competition, model, SCENES, Predict(precision="float32", tile=32), {},
                  {"loc": others} if role == "cls" else {})  # fmt: skip
    found = {}
    try:
        found["scores"] = judge(net)
    except Exception as error:  # noqa: BLE001 the test looks at it
        found["error"] = f"{type(error).__name__}: {error}"
    return {**found, "asked": asked, "mean": net.norm.running_mean.tolist(), "training": net.training}


if __name__ == "__main__":
    with runtime.process_group():
        found = {role: judged(role) for role in ("loc", "cls")} | {"broken": judged("loc", broken="s3")}
        found |= {f"{role} ahead": judged(role, workers=2) for role in ("loc", "cls")}
        found |= {"broken ahead": judged("loc", broken="s3", workers=2)}
        (Path(sys.argv[1]) / f"{runtime.rank()}.json").write_text(json.dumps(found))
