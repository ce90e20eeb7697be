"""A new domain from a few labelled objects: what 20 to 200 labels are worth, judged on domains that were left out.

For every domain that no network of a fold was trained on (``folds.scheme: event`` divides so), its objects are
described by the networks of that fold. Some are drawn as if a person had labelled them; a logistic head learns from
these and names the classes of all others:

- none: what the networks say;
- adapted: the head, beside what the networks say (``lib.ensemble.adapt``);
- labels alone: the same head on the features of the encoder as it was before any training on damage.

    python -m lib.tools.adapt --config configs/xview2_cpu.yaml --set folds.scheme=event --model cls_lite0

With an area that ``python -m lib.maps`` has made, and a file of points or polygons with a class from a GIS, all objects
of the area get classes, and those that should be labelled next are numbered:

    python -m lib.tools.adapt --config configs/xview2_cpu.yaml --model cls_lite0 --area area --labelled labels.geojson
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lib.competitions.contract import Scene
from lib.ensemble import adapt
from lib.errors import ConfigError, DataError
from lib.inference.pooled import Described, Pooled
from lib.inference.scene import read_stack
from lib.metrics import ratio
from lib.models import build, checkpoint
from lib.run import cli
from lib.run.cli import Run, say
from lib.scenes.view import View
from lib.stages.train import split
from lib.tasks import known
from lib.tools import table

LABELS = (0, 20, 50, 100, 200)
NONE, ADAPTED, ALONE = "none", "adapted", "labels alone"


@dataclass
class LeftOut:
    """The objects of one domain, described by networks that were not trained on it."""

    name: str
    fold: int
    trained: Described
    plain: Described
    """The same objects by the encoder as training found it."""
    classes: np.ndarray
    """(N,) int: number of the class in the order of ``names``."""

    def __len__(self) -> int:
        return len(self.classes)


def objects(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the objects of a target (H, W) uint8 of classes, 0 is background: labels (H, W) int32, 1..N, and (N,) int.

    An object is what hangs together (8 neighbours), of the class that most of its pixels have. Ignored pixels are in
    none.
    """
    inside = known(target) & (target > 0)
    count, labels = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    votes = np.zeros((count, 256), np.int64)
    np.add.at(votes, (labels[inside], target[inside]), 1)
    return labels, votes[1:].argmax(1)


def classes_of(run: Run, name: str) -> tuple[str, ...]:
    """Return the classes that objects may have. ConfigError for a model that tells none apart."""
    if name not in run.config.models:
        raise ConfigError(f"--model {name}: expected one of {', '.join(run.config.models)}")
    model = run.config.models[name]
    task = run.competition.tasks[model.task]
    if task.kind != "multiclass" or not task.dense or task.channels < 3:
        raise ConfigError(f"--model {name}: expected a model that names the class of every pixel, background and two "
                          f"others at least, got {', '.join(task.classes)}")  # fmt: skip
    if model.view != View():
        raise ConfigError(f"--model {name}: expected one that sees scenes at their own size, got view "
                          f"{model.view.model_dump(exclude_defaults=True)}")  # fmt: skip
    return task.classes[1:]


def left_out(run: Run) -> tuple[dict[str, int], list[str]]:
    """Return domain -> its fold, of domains that lie in one fold, and the domains that do not."""
    table_ = run.folds().set_index("id")["fold"]
    folds: dict[str, set[int]] = {}
    for scene in run.competition.scenes("train"):
        if scene.id in table_.index:
            folds.setdefault(scene.domain, set()).add(int(table_[scene.id]))
    whole = {domain: next(iter(found)) for domain, found in sorted(folds.items()) if len(found) == 1}
    return whole, sorted(folds.keys() - whole.keys())


def described(run: Run, name: str, fold: int, scenes: Sequence[Scene]) -> Iterator[tuple[Described, Described, Any]]:
    """Yield, of each scene with objects, how the fold's network and its first weights describe them, and their classes.

    One forward pass of each network shows a whole scene.
    """
    model = run.config.models[name]
    task, predict = run.competition.tasks[model.task], run.predict_of(name)
    network = checkpoint.load_network(run.store.require(run.graph.checkpoint(name, fold)))
    start = model.network
    source = start.encoder_weights
    if isinstance(model.train.init_from, str):  # which has the encoder's weights
        source = run.config.models[model.train.init_from].network.encoder_weights
    first = build(encoder_weights=source or "none", **start.arguments(task.channels))
    ways = [Pooled(one, task.activate, run.device, predict.precision) for one in (network, first)]
    for scene in scenes:
        target = run.competition.training_target(scene, model.task, start.images)
        labels, classes = objects(target)
        if len(classes):
            image = read_stack(run.competition, scene, start.images)
            trained, plain = (way(image, labels, len(classes)) for way in ways)
            yield trained, plain, classes


def gathered(run: Run, name: str, domain: str, fold: int) -> LeftOut | None:
    """Describe all objects of a domain; None where it has none."""
    scenes = [scene for scene in split(run, fold)[1] if scene.domain == domain]
    parts = list(described(run, name, fold, scenes))
    if not parts:
        return None
    trained, plain = _joined([part[0] for part in parts]), _joined([part[1] for part in parts])
    return LeftOut(domain, fold, trained, plain, np.concatenate([part[2] for part in parts]) - 1)


def _joined(parts: Sequence[Described]) -> Described:
    return Described(np.concatenate([one.features for one in parts]), np.concatenate([one.probs for one in parts]),
                     parts[0].encoder)  # fmt: skip


def judged(held: LeftOut, names: Sequence[str], counts: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Return a row for each number of labels and way: scores on the objects that have no label, mean over seeds."""
    rows = []
    features, prior = held.trained.features, adapt.normalised(held.trained.probs[:, 1:])
    coarse, even = held.plain.features[:, : held.plain.encoder], np.ones_like(prior)
    for count in counts:
        if count >= len(held):
            say(f"  {held.name}: {count} labels are not tried, it has {len(held)} objects")
            continue
        found: dict[str, list[dict[str, float]]] = {}
        chosen: Counter[str] = Counter()
        for seed in range(seeds):
            labelled = adapt.drawn(held.classes, count, seed)
            others = np.setdiff1d(np.arange(len(held)), labelled)
            answers = {NONE: prior[others]}
            if count:
                head = _learnt(features, prior, held.classes, labelled, seed)
                chosen[head.way] += 1
                answers[ADAPTED] = head.probabilities(features[others], prior[others])
                alone = _learnt(coarse, even, held.classes, labelled, seed)
                answers[ALONE] = alone.probabilities(coarse[others], even[others])
            for way, probs in answers.items():
                found.setdefault(way, []).append(scores(probs, held.classes[others], names))
        for way, all_seeds in found.items():
            mean = {key: float(np.mean([one[key] for one in all_seeds])) for key in all_seeds[0]}
            spread = float(np.std([one["f1"] for one in all_seeds]))
            ways = ", ".join(f"{number} {text}" for text, number in sorted(chosen.items())) if way == ADAPTED else None
            rows.append({"domain": held.name, "labelled": count, "way": way, "f1": mean.pop("f1"), "sd": spread, **mean,
                         "chosen": ways})  # fmt: skip
    return rows


def scores(probs: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Score objects, each one vote: mean F1 of the classes that occur, accuracy, calibration error, log loss, F1 each.

    probs: (N, K) float; classes: (N,) int. A class that does not occur has NaN and is not in the mean.
    """
    called = probs.argmax(1)
    hits = np.array([((called == k) & (classes == k)).sum() for k in range(len(names))])
    sizes = np.bincount(classes, minlength=len(names)) + np.bincount(called, minlength=len(names))
    each = np.where(np.bincount(classes, minlength=len(names)) > 0, ratio(2 * hits, sizes, 0.0), np.nan)
    right = np.maximum(probs[np.arange(len(classes)), classes], adapt.FLOOR)
    return {"f1": float(np.nanmean(each)), "accuracy": float((called == classes).mean()),
            "calibration": adapt.calibration_error(probs, classes), "log_loss": float(-np.log(right).mean()),
            **{f"f1 {name}": float(value) for name, value in zip(names, each, strict=True)}}  # fmt: skip


def _learnt(features: np.ndarray, prior: np.ndarray, classes: np.ndarray, labelled: np.ndarray,
            seed: int) -> adapt.Adapted:  # fmt: skip
    return adapt.fit(features[labelled], prior[labelled], classes[labelled], seed)


def judge(run: Run, name: str, counts: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """Return the rows of all domains that were left out of a fold. ConfigError where there is none."""
    names = classes_of(run, name)
    domains, straddling = left_out(run)
    if straddling:
        say(f"  domains in several folds, of which no network is without them: {', '.join(straddling)}")
    if not domains:
        raise ConfigError("folds: expected domains that lie in one fold each, found none; divide the scenes with --set "
                          "folds.scheme=event, train the model on these folds, and judge again")  # fmt: skip
    rows = []
    for domain, fold in domains.items():
        found = gathered(run, name, domain, fold)
        if found is None:
            say(f"  {domain}: no objects, left out")
            continue
        held = Counter(names[number] for number in found.classes)
        say(f"  {domain or 'all scenes'}, fold {fold}: {len(found)} objects ("
            + ", ".join(f"{text} {held[text]}" for text in names) + ")")  # fmt: skip
        rows += judged(found, names, counts, seeds)
    if not rows:
        raise DataError("no domain has objects of which some could be labelled; check the labels")
    return rows


def relabel(run: Run, args: argparse.Namespace) -> None:
    """Name the classes of all objects of an area by the labels of some."""
    from lib.maps import adapt as maps  # here, since it needs libraries that judging does not

    names = classes_of(run, args.model)
    model = run.config.models[args.model]
    area, found = maps.objects_of(args.area)
    labelled = maps.read_labels(args.labelled, args.column, found, names)
    for note in labelled.notes:
        say(f"  {note}")
    task, precision = run.competition.tasks[model.task], run.predict_of(args.model).precision
    networks = [Pooled(checkpoint.load_network(run.store.require(run.graph.checkpoint(args.model, fold))),
                       task.activate, run.device, precision) for fold in run.config.folds_of(model)]  # fmt: skip
    sides = maps.sides_of(area, model.network.images)
    seen = maps.described(area, sides, np.asarray(found.geometry.array), networks)
    head, probs, suggested = maps.adapted(seen, names, labelled, args.next)
    say(f"{len(labelled.objects)} of {len(found)} objects are labelled; the networks' word is "
        + {adapt.AS_IT_IS: "taken as it is: the labels show nothing better", adapt.SCALED: "scaled class by class",
           adapt.HEAD: "one input of a head on their features"}[head.way])  # fmt: skip
    for way, loss in head.losses.items():
        say(f"  {way}: log loss {loss:.3f} on labels that it was not fitted to")
    out = args.out or args.area / "adapted.gpkg"
    maps.write(out, found, probs, names, labelled, suggested)
    say(f"{out}: {len(found)} objects, of which {len(suggested)} are proposed for labelling (label_next)")


def _mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each number of labels and way, the mean over the domains that have it."""
    means = []
    for labels, way in dict.fromkeys((row["labelled"], row["way"]) for row in rows):
        own = [row for row in rows if (row["labelled"], row["way"]) == (labels, way)]
        means.append({"domain": f"mean of {len(own)}", "labelled": labels, "way": way,
                      **{key: float(np.mean([row[key] for row in own]))
                         for key in ("f1", "sd", "accuracy", "calibration", "log_loss")}})  # fmt: skip
    return means


@cli.exits
def main(argv=None):
    flags = cli.experiment_flags(__doc__)
    flags.formatter_class = argparse.RawDescriptionHelpFormatter
    flags.add_argument("--model", required=True, help="the model that tells the classes apart")
    flags.add_argument("--labels", type=int, nargs="+", default=LABELS, metavar="N",
                       help=f"numbers of labels to try (default: {' '.join(map(str, LABELS))})")  # fmt: skip
    flags.add_argument("--seeds", type=int, default=10, help="draws of the labelled objects (default: 10)")
    flags.add_argument("--out", type=Path, help="write the table to this CSV; of an area, its objects to this "
                       "GeoPackage (default: adapted.gpkg in its folder)")  # fmt: skip
    flags.add_argument("--area", type=Path, metavar="FOLDER", help="what python -m lib.maps has written")
    flags.add_argument("--labelled", type=Path, metavar="FILE", help="points or polygons with a class, on its objects")
    flags.add_argument("--column", default="class", help="the column of --labelled that has the class")
    flags.add_argument("--next", type=int, default=20, metavar="N", help="how many objects to propose for labelling "
                       "(default: 20)")  # fmt: skip
    args = flags.parse_args(argv)
    if (args.area is None) != (args.labelled is None):
        raise ConfigError("--area and --labelled go together: an area, and the labels on its objects")
    if args.seeds < 1 or min(args.labels) < 0:
        raise ConfigError("--seeds, --labels: expected at least 1 seed and no negative number of labels")
    run = cli.open_run(args, brings_scenes=args.area is not None)
    if args.area is not None:
        return relabel(run, args)
    rows = judge(run, args.model, args.labels, args.seeds)
    print(table.text([*rows, *_mean_rows(rows)]))
    if args.out:
        table.write_csv(args.out, rows)
        say(f"{args.out}: {len(rows)} rows")


if __name__ == "__main__":
    sys.exit(main())
