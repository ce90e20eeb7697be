"""How busy stage 04 keeps a network that takes 50 ms for a window, and how long scenes take one after the other.

The network sleeps, as a host does that waits for its GPU, so its time is known. Scenes are one window of 512 pixels
square with one view. "slow": reading a scene takes 120 ms and writing it 80 ms more than it does, as over a network.
The goal is a network that is busy for 95% of the time.

The last row is a real network under four flips: a ResNet-34 U-Net of random weights, compiled and not, against the loop
of the winners of 2020 (float32, one view after the other, the mean of all), of which ours should take 1 / 3.5.
"""

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from lib.competitions.contract import Scene
from lib.config.sections import Predict
from lib.inference.predict import Predictor
from lib.models import build
from lib.scenes.raster import read_image, stated_size, write_png
from lib.stages.predict import Networks, shares
from tests.benchmarks.harness import Figure, Race, Side

SIZE = 512


class Sleeping(nn.Module):
    """A network of five classes that keeps a GPU busy for 50 ms, and no core."""

    stride = 32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return x[:, [0, 1, 2, 0, 1]].float() / 255


class SlowNetworks(Networks):
    """A worker whose disk is far away."""

    reading = writing = 0.0

    def read(self, passing):
        time.sleep(self.reading)
        return super().read(passing)

    def write(self, passing):
        time.sleep(self.writing)
        return super().write(passing)


def rows(quick: bool) -> list[Race | Figure]:
    """Return the network's share of the time with quick and slow disks, and how long the scenes take."""
    count = 4 if quick else 20
    disks = {"a quick disk": (0.0, 0.0), "a slow disk": (0.12, 0.08)}
    found: list[Race | Figure] = [Figure(f"{3 * count} scenes, {name}", partial(_busy, 3 * count, *disk))
                                  for name, disk in disks.items()]  # fmt: skip
    size = 64 if quick else 1024
    found += [Race(f"four flips of {size} x {size}", partial(_flips, size, not quick), agree=_close,
                   goals={"float32 loop of 2020": 3.5}, rounds=1 if quick else 3)]  # fmt: skip
    return found + [Race(f"{count} scenes, {name}, one scene", partial(_sides, count, *disk), wall=True, per=count,
                         rounds=1 if quick else 3)
                    for name, disk in disks.items()]  # fmt: skip


def _networks(folder: Path, count: int, reading: float, writing: float) -> tuple[SlowNetworks, list[Scene]]:
    """Return a worker and its scenes, which are written here."""
    files = [folder / f"image{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        noise = np.random.default_rng(number).integers(0, 256, (SIZE // 8, SIZE // 8, 3), np.uint8)
        write_png(file, noise.repeat(8, 0).repeat(8, 1))
    own = SlowNetworks(torch.device("cpu"))
    own.reading, own.writing = reading, writing
    own.run = SimpleNamespace(config=SimpleNamespace(predict=Predict(tta="none", precision="float32")),
                              competition=SimpleNamespace(incomplete=lambda scene: "", georeference=lambda scene: None,
                                                          read=lambda scene, image: read_image(scene.files[image]),
                                                          size=lambda scene: stated_size(scene.files["image"])))  # type: ignore[assignment]  # fmt: skip
    own.kind, own.description = "multiclass", {"images": ["image"], "classes": list("abcde")}
    own.predictor = Predictor(Sleeping(), lambda z: z, Predict(tta="none", precision="float32"))
    return own, [Scene(f"s{number}", {"image": files[number % len(files)]}) for number in range(count)]


def ahead(own: Networks, scenes: list[Scene], out: Path) -> int:
    """Pass the scenes through a worker as stage 04 does; returns how many came out."""
    out.mkdir()
    done = sum(len(own.feed(scene, out)) for scene in scenes)
    while (more := own.drain()) is not None:
        done += len(more)
    return done


def in_turn(own: Networks, scenes: list[Scene], out: Path) -> int:
    """Read, compute and write one scene after the other."""
    out.mkdir()
    return len([own.predict(scene, out) for scene in scenes])


def _busy(count: int, reading: float, writing: float, folder: Path) -> dict[str, float]:
    own, scenes = _networks(folder, count, reading, writing)
    ahead(own, scenes, folder / "out")
    found = shares([own.spent()])
    return {"network busy": found["network_busy"],
            **{f"{name} s": seconds for name, seconds in found["clock"].items()}}  # fmt: skip


def _sides(count: int, reading: float, writing: float, folder: Path) -> dict[str, Side | str]:
    own, scenes = _networks(folder, count, reading, writing)
    numbers = iter(range(1000))

    def side(way):
        return way(own, scenes, folder / f"out{next(numbers)}")

    return {"ours": partial(side, ahead), "one after the other": partial(side, in_turn),
            "limit: the network": lambda: time.sleep(0.05 * count)}  # fmt: skip


# ---- a real network -----------------------------------------------------------------------------------
def _flips(size: int, compiles: bool, _: Path) -> dict[str, Side | str]:
    torch.manual_seed(0)
    network = build("segmentation", classes=5, images=2, encoder="resnet34", encoder_weights="none",
                    decoder="unet").eval()  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (6, size, size), np.uint8)

    def side(compile: bool) -> Side | str:
        settings = Predict(tta="flips", precision="bfloat16", compile=compile)
        return partial(Predictor(network, lambda z: z.softmax(1), settings), image)

    return {"ours, compiled" if compiles else "ours": side(compiles), "not compiled": side(False),
            "float32 loop of 2020": partial(_loop, network, image)}  # fmt: skip


@torch.inference_mode()
def _loop(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """Predict four flips in float32 one after the other, and average them as arrays, as the codes of 2020 do."""
    x, found = torch.from_numpy(image)[None].float(), []
    for axes in ((), (-1,), (-2,), (-2, -1)):
        probs = network(x.flip(axes)).softmax(1).flip(axes)
        found.append(probs[0].numpy())
    return np.asarray(found).mean(axis=0)


def _close(ours: np.ndarray, other: np.ndarray) -> bool:
    """Whether probabilities in bfloat16 differ from others by less than a level on average."""
    return float(np.abs(ours - other).mean()) < 1 / 255
