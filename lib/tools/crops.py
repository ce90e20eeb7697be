"""Crops: every labelled object of a mask competition as a small picture with its class, for label experiments.

A classifier of crops trains in minutes where a damage network takes an hour: a bench for tricks and losses. An object
is a connected component of one class of the target (4 neighbours, so objects of a class that touch are one). Written
as the ``labels`` layout: ``train/<scene>_<number>.png`` and ``train.csv`` with the scene as group, so that no fold
holds crops of a scene that another one shows.

    python -m lib.tools.crops --config configs/xview2_cpu.yaml --task cls --image post --out building_crops
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lib.errors import ConfigError
from lib.run import cli
from lib.scenes import raster
from lib.tasks import IGNORE
from lib.tools import table


def objects(target: np.ndarray, min_area: int) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield (class, (top, left, bottom, right)) of the components of a target (H, W) uint8, class by class.

    0 is background, 255 ignored; components of fewer than ``min_area`` pixels are left out.
    """
    for value in np.unique(target):
        if value in (0, IGNORE):
            continue
        _, _, stats, _ = cv2.connectedComponentsWithStats((target == value).view(np.uint8), connectivity=4)
        for left, top, width, height, area in stats[1:]:
            if area >= min_area:
                yield int(value), (int(top), int(left), int(top + height), int(left + width))


def crop(image: np.ndarray, box: tuple[int, int, int, int], context: float, side: int) -> np.ndarray:
    """Cut the square around a box, ``context`` times its longer side wide, out of (H, W, 3) uint8: (side, side, 3).

    What lies outside the image mirrors it.
    """
    top, left, bottom, right = box
    half = max(1, round(max(bottom - top, right - left) * context / 2))
    row, column = (top + bottom) // 2, (left + right) // 2
    padded = cv2.copyMakeBorder(image, half, half, half, half, cv2.BORDER_REFLECT_101)
    square = padded[row : row + 2 * half, column : column + 2 * half]
    shrinks = 2 * half > side
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@cli.exits
def main(argv=None):
    flags = cli.parser(__doc__)
    flags.add_argument("--task", required=True, help="the task whose classes are the labels: loc or cls")
    flags.add_argument("--image", help="the image to cut from (default: the scene's last)")
    flags.add_argument("--out", type=Path, required=True, help="folder to write; must be new or empty")
    flags.add_argument("--side", type=int, default=64, help="pixels of a crop's side (default: 64)")
    flags.add_argument("--context", type=float, default=1.5, help="side of the square over that of the object's box")
    flags.add_argument("--min-area", type=int, default=20, help="smallest object in pixels (default: 20)")
    args = flags.parse_args(argv)
    run = cli.open_run(args)
    competition, tasks = run.competition, run.competition.tasks
    if args.task not in tasks or tasks[args.task].kind != "multiclass" or not tasks[args.task].dense:
        fitting = [name for name, task in tasks.items() if task.kind == "multiclass" and task.dense]
        raise ConfigError(f"--task {args.task}: expected a mask task of several classes, one of {fitting}")
    image = args.image or competition.images[-1]
    if image not in competition.images:
        raise ConfigError(f"--image {image}: expected one of {', '.join(competition.images)}")
    if args.out.exists() and any(args.out.iterdir()):
        raise ConfigError(f"--out {args.out}: expected a new or empty folder")
    (args.out / "train").mkdir(parents=True, exist_ok=True)
    rows, classes = [], tasks[args.task].classes
    for scene in tqdm(competition.scenes("train"), "crops", leave=False, disable=None):
        pixels, found = competition.read(scene, image), objects(competition.target(scene, args.task), args.min_area)
        for number, (value, box) in enumerate(found):
            name = f"{scene.id}_{number:04d}"
            cut = crop(pixels, box, args.context, args.side)
            raster.write_png(args.out / "train" / f"{name}.png", cut)
            rows.append({"id": name, "label": classes[value], "group": scene.id, "domain": scene.domain})
    table.write_csv(args.out / "train.csv", rows)
    counted = Counter(row["label"] for row in rows)
    cli.say(f"{args.out}: {len(rows)} crops; " + ", ".join(f"{name} {counted[name]}" for name in classes[1:]))


if __name__ == "__main__":
    sys.exit(main())
