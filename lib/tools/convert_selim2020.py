"""Turn the weights that Selim Seferbekov published in 2020 into checkpoints that stages 04 to 06 take by ``--inputs``.

His release (github.com/selimsef/xview2_solution, tag 0.0.1) has one torch file per network and fold. The model and the
fold are read from a file's name, as he gave it; ``--model`` and ``--fold`` say them for any other name. The folder that
is written is like that of an experiment and, without ``--folds``, serves test scenes alone: its decode.json holds the
settings of the experiment file, and no score.

    python -m lib.tools.convert_selim2020 weights --out selim2020
    python -m lib.tools.convert_selim2020 weights --out selim2020_oof --folds folds.csv
"""

import argparse
import codecs
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.choose.choice import DECODE
from lib.choose.fit import stated, steps
from lib.competitions import open_competition
from lib.competitions.contract import Competition
from lib.config.load import load
from lib.config.sections import Experiment, Model
from lib.errors import ArtifactError, ConfigError, DataError
from lib.files import sha256
from lib.models import build, checkpoint
from lib.models.names2020 import ENCODERS, rename
from lib.run import cli, runtime
from lib.run.artifacts import Store, Unit
from lib.run.graph import Graph
from lib.run.manifest import MANIFEST, read_json
from lib.scenes.folds import read_folds, write_folds

CONFIG = Path("configs/xview2_selim2020.yaml")
MODELS = {
    "localization_dpn_unet_dpn92": "d92_loc",
    "localization_densenet_unet_densenet161_3": "d161_loc",
    "softmax_dpn_seamese_unet_shared_dpn92": "d92_softmax",
    "pseudo_dpn_seamese_unet_shared_dpn92": "d92_pseudo",
    "softmax_densenet_seamese_unet_shared_densenet161": "d161_softmax",
    "pseudo_densenet_seamese_unet_shared_densenet161": "d161_pseudo",
    "pseudo_scseresnext_seamese_unet_shared_seresnext50": "se50_pseudo",
    "softmax_sampling_efficient_seamese_unet_shared_efficientnet-b2": "b2_softmax",
    "sgd_resnext_seamese_unet_shared_resnext101": "r101_sgd",
}
"""What a file's name begins with -> the model of the experiment."""
NAME = re.compile(r"(?P<model>.+)_(?P<fold>\d+)_(?:best_dice|best_xview|last)(?:\.\w+)?")
NAMED = 4
"""Names of tensors that a sentence lists."""


# ---- his files ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Released:
    """One file: the model of the experiment and the fold that it is."""

    path: Path
    model: str
    fold: int


def listed(paths: Sequence[Path], model: str | None, fold: int | None) -> list[Released]:
    """Return what files and folders of files hold, in the order of their names.

    ConfigError for a file that is not there or whose name says nothing, and for two of one model and fold.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(_inside(path)))]
    if (model is None) != (fold is None) or (model is not None and len(files) != 1):
        raise ConfigError(f"--model and --fold go together, with one file; got {len(files)} files")
    found: list[Released] = []
    for path in files:
        said = NAME.fullmatch(path.name)
        if model is not None and fold is not None:
            found.append(Released(path, model, fold))
        elif said is None or said["model"] not in MODELS:
            raise ConfigError(
                f"{path}: its name does not tell model and fold, as sgd_resnext_seamese_unet_shared_resnext101_0_"
                "best_xview does; give --model and --fold, or move it elsewhere"
            )
        else:
            found.append(Released(path, MODELS[said["model"]], int(said["fold"])))
    first: dict[tuple[str, int], Path] = {}
    for one in found:
        if (other := first.setdefault((one.model, one.fold), one.path)) != one.path:
            raise ConfigError(f"{one.path} and {other.name} are both {one.model} of fold {one.fold}; keep one of them")
    return found


def _inside(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a file of weights or a folder of them, found nothing there")
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise ConfigError(f"{path}: expected files of weights, found none")
    return files


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Read a file of his: the tensors of its ``state_dict``, and the numbers beside it (epoch, best scores).

    Nothing but tensors, plain values and numpy's numbers is read, so that a file cannot run code. ArtifactError for any
    other file.
    """
    number = np.float64(0)
    scalar: Any = number.__reduce__()[0]
    allowed = [(scalar, f"numpy.{room}.multiarray.scalar") for room in ("core", "_core")]
    safe: list[Any] = [*allowed, np.dtype, codecs.encode, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8"))]
    try:
        with torch.serialization.safe_globals(safe):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path}: holds more than weights and numbers, or is no file of torch's, and stays shut: {_said(error)}; "
            "fetch it again from its source"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read as a file of torch's: {_said(error)}; fetch it again") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ArtifactError(f"{path}: expected a dict with state_dict, the tensors of a network; found none")
    numbers = {key: float(value) for key, value in content.items() if isinstance(value, (int, float, np.number))}
    return {str(name): tensor for name, tensor in state.items()}, numbers


def _said(error: Exception) -> str:
    """Return in a few words what torch found wrong with a file."""
    text = " ".join(str(error).split())
    if asked := re.search(r"(?i)unsupported global:?(?: global)? (\S+)", text):
        return f"it asks for {asked[1]}"
    found = re.search(r"WeightsUnpickler error: (.+?)(?: Check the documentation|$)", text) or re.match(r"[^.]+", text)
    return found[found.re.groups].strip() if found else type(error).__name__


# ---- the folder ---------------------------------------------------------------------------------------
def convert(
    config: Experiment, competition: Competition, released: Released
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the state of a network of ours from one of his files, and the numbers that stood beside his weights.

    Raises ArtifactError, with names, for tensors that are missing, unknown, of another shape or type, or not finite.
    """
    model = config.models[released.model]
    network = build(encoder_weights="none", **model.network.arguments(competition.tasks[model.task].channels))
    his, numbers = read(released.path)
    state, unknown = rename(his, model.network.encoder)
    own = network.state_dict()
    given = {name for name in own if name.startswith("normalize.")}
    faults = {
        "unknown": unknown + [name for name in state if name not in own],
        "missing": [name for name in own if name not in state and name not in given],
        "of another shape": [name for name in state if name in own and state[name].shape != own[name].shape],
        "not finite": [name for name, tensor in state.items() if not tensor.isfinite().all()],
        "of another type": [name for name in state
                            if name in own and state[name].is_floating_point() != own[name].is_floating_point()],
    }  # fmt: skip
    if any(faults.values()):
        said = [f"{len(names)} {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
                for what, names in faults.items() if names]  # fmt: skip
        raise ArtifactError(f"{released.path}: is not the network of {released.model}; tensors: {'; '.join(said)}")
    return {name: state.get(name, own[name]) for name in own}, numbers


def store_network(model: Model, competition: Competition, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a checkpoint: what the network of a model is, and its weights."""
    task = competition.tasks[model.task]
    checkpoint.describe(folder, model.network.arguments(task.channels), model.network.images, task.classes)
    checkpoint.save_weights(folder, dict(state))


def missing(config: Experiment, released: Sequence[Released]) -> list[str]:
    """Return the settings that leave out of the experiment what has not been converted."""
    there = {(one.model, one.fold) for one in released}
    kept = {name: [fold for fold in config.folds_of(model) if (name, fold) in there]
            for name, model in config.models.items()}  # fmt: skip
    return [f"--set models.{name}.folds={folds}".replace(" ", "").replace("--set", "--set ")
            for name, folds in kept.items() if len(folds) < len(config.folds_of(config.models[name]))]  # fmt: skip


def write(store: Store, unit: Unit, fill: Callable[[Path], None], record: dict[str, Any]) -> None:
    """Write a unit of the folder: ``fill`` writes its files, ``record`` is what its manifest says besides."""
    with store.build(unit, {"stage": unit.key[:2], **record}, fresh=True) as folder:
        fill(folder)


@cli.exits
def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="his files, or a folder of them")
    flags.add_argument("--out", type=Path, required=True, help="folder to write, for --inputs")
    flags.add_argument("--config", type=Path, default=CONFIG, help="experiment file with his models")
    flags.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                       help="change one value of the experiment file")  # fmt: skip
    flags.add_argument("--folds", type=Path, metavar="CSV", help="his folds.csv, to score out-of-fold scenes")
    flags.add_argument("--model", metavar="MODEL", help="what the one file is, if its name does not tell")
    flags.add_argument("--fold", type=int, metavar="K", help="its fold")
    args = flags.parse_args(argv)
    cli.quiet()
    config = load(args.config, args.overrides)
    competition = open_competition(config.competition, config.data.root, config.data.options, limits=config.data.limits)
    released = listed(args.checkpoints, args.model, args.fold)
    for one in released:
        if one.model not in config.models or one.fold not in config.folds_of(config.models[one.model]):
            raise ConfigError(f"{one.path}: {args.config} has no fold {one.fold} of a model {one.model}")
        if config.models[one.model].network.encoder.partition(".")[0] not in ENCODERS:
            raise ConfigError(f"models.{one.model}.network.encoder: expected one of his, {', '.join(ENCODERS)}")
    if args.folds is None and (steps(config) or config.averages_are_fitted):
        raise ConfigError(f"{args.config}: chooses on out-of-fold scenes; give --folds, or leave search out")
    table = pd.DataFrame({"id": [], "fold": []}, dtype=str) if args.folds is None else _folds(args.folds, config)
    store = Store(args.out, code=runtime.code_version())
    graph = Graph(config, list(table["id"]), [], tasks=competition.tasks)
    _refuse_other(store, graph.folds(), args.folds)
    record = {"scenes": len(table), "converted": _for(args.folds)}
    write(store, graph.folds(), lambda folder: write_folds(folder / "folds.csv", table), record)
    for one in released:
        source = {"file": one.path.name, "sha256": sha256(one.path)}
        state, numbers = convert(config, competition, one)
        fill = partial(store_network, config.models[one.model], competition, state)
        write(store, graph.checkpoint(one.model, one.fold), fill, {"converted": source | numbers})
        cli.say(f"{one.path.name}: {one.model} of fold {one.fold}")
    if args.folds is None:
        decision = stated(config, competition)
        write(store, graph.decode(), lambda folder: decision.write(folder / DECODE), {"scores": {}})
    if settings := missing(config, released):
        cli.say("not all networks of the experiment are here; stages 04 to 06 take these with " + " ".join(settings))
    cli.say(f"{args.out}: {len(released)} checkpoints; give it to stages 04 to 06 as --inputs {args.out}"
            + (" --split test" if args.folds is None else ""))  # fmt: skip


def _for(folds: Path | None) -> str:
    return "test scenes" if folds is None else "out-of-fold scenes too"


def _refuse_other(store: Store, unit: Unit, folds: Path | None) -> None:
    """Refuse to write over an experiment that was trained, or over a conversion that serves other scenes.

    unit: the folds, whose manifest says what the folder is.
    """
    if not store.root.is_dir():
        return
    if not (manifest := store.root / unit.key / MANIFEST).is_file():
        if any(store.root.glob("0?_*")):
            raise ConfigError(f"{store.root}: holds results of an experiment; name another folder with --out")
        return
    if (found := read_json(manifest).get("converted")) != _for(folds):
        what = f"was converted for {found}" if found else "holds an experiment that was not converted"
        raise ConfigError(f"{store.root}: {what}; name another folder with --out")


def _folds(path: Path, config: Experiment) -> pd.DataFrame:
    """Return his folds.csv. DataError where it has other folds than the experiment."""
    table = read_folds(path)
    if strange := set(table["fold"]) - set(range(config.folds.n)):
        raise DataError(f"{path}: expected folds 0 to {config.folds.n - 1}, got {', '.join(map(str, sorted(strange)))}")
    return table


if __name__ == "__main__":
    sys.exit(main())
