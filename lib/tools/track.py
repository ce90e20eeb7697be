"""Tell TensorBoard, Weights & Biases or MLflow of trainings that are over, or that went on without them.

Reads:  log.jsonl and manifest.json of every checkpoint; with --config decode.json, averages and the data too
Writes: WORKDIR/EXPERIMENT/tracking/, where the setting `track` writes as well; what is there already is not told again

    python -m lib.tools.track workdir/demo --to tensorboard
    python -m lib.tools.track workdir/demo --to mlflow wandb --config configs/demo.yaml
    tensorboard --logdir workdir/demo/tracking/tensorboard
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lib.config.sections import TrackerName
from lib.errors import ArtifactError, ConfigError
from lib.run import cli, manifest
from lib.run.cli import say
from lib.stages import track
from lib.training import trackers


@cli.exits
def main(argv: Sequence[str] | None = None) -> None:
    flags = cli.experiment_flags(__doc__)
    flags.prog = "python -m lib.tools.track"
    flags.add_argument("experiment", type=Path, help="folder of an experiment, WORKDIR/NAME")
    flags.add_argument("--to", nargs="+", choices=get_args(TrackerName), required=True, help="which of them")
    flags.set_defaults(config=None)
    args = flags.parse_args(argv)
    trackers.require(args.to)
    found = logs(args.experiment)
    for unit, path in found.items():
        follow(args.experiment, unit, path, args.to)
    if args.config is None:
        say("scores of stage 05 and pictures are told where the experiment file is named (--config)")
        return
    args.workdir = args.experiment.resolve().parent
    run = cli.open_run(args)
    if run.config.name != args.experiment.resolve().name:
        raise ConfigError(f"--config {args.config}: expected the file of experiment {args.experiment.resolve().name}, "
                          f"found that of {run.config.name}")  # fmt: skip
    track.outcome(run, args.to)
    say(f"{run.graph.decode().key}: told")


def logs(experiment: Path) -> dict[str, Path]:
    """Return key of a checkpoint -> its log, those still in training included. ArtifactError where there is none."""
    found = {}
    for path in sorted(experiment.glob("0[23]_*/*/fold*/log.jsonl")):
        if not path.parts[-2].endswith(".old"):
            found["/".join((*path.parts[-4:-2], path.parts[-2].removesuffix(".partial")))] = path
    if not found:
        raise ArtifactError(f"{experiment}: expected the folder of an experiment with logs of training, found none; "
                            "run stage 02 or 03, or name WORKDIR/NAME")  # fmt: skip
    return found


def follow(experiment: Path, unit: str, path: Path, names: Sequence[TrackerName]) -> None:
    """Tell trackers of one log, each of what it has not been told of."""
    lines = manifest.read_lines(path)
    made = manifest.made(path.parent) or {}
    with trackers.follow(names, experiment, unit, lines) as followed:
        before = followed.told()
        followed.begin(track.settings_of(experiment.resolve().name, unit, made.get("facts", {})), lines)
        if any(before.get(name, 0) < len(lines) for name in names) and "scores" in made:
            followed.scores(made["scores"])
        new = {name: len(lines) - before.get(name, 0) for name in names}
        said = ", ".join(f"{count} of {len(lines)} epochs to {name}" if count else f"{name} has them all"
                         for name, count in new.items())  # fmt: skip
        say(f"{unit}: {said}")


if __name__ == "__main__":
    sys.exit(main())
