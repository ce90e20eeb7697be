"""The attached dataset: folds, checkpoints and decode settings, laid out as ``--inputs`` takes them.

Nothing but what inference reads goes in: no optimizer state, no logs, no probabilities. ``bundle.json`` lists every
file with its SHA-256 and says what the weights were made and tested with.
"""

import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lib.choose import evidence
from lib.choose.choice import DECODE, Choice, Decision
from lib.ensemble.search import total
from lib.errors import ArtifactError, ConfigError
from lib.files import digest, sha256, write_json
from lib.kaggle import gates, passes, plan
from lib.models import checkpoint
from lib.run import cli, manifest, runtime
from lib.run.cli import Run
from lib.stages.predict import predict

FILES = ("folds.csv", checkpoint.WEIGHTS, checkpoint.DESCRIPTION, DECODE)
"""What is taken of a unit, besides its manifest."""

HALF_MAX = float(torch.finfo(torch.float16).max)
HALF_LOSS = 0.0005
"""The out-of-fold score that float16 weights may cost at most."""


def pack(run: Run, folder: Path, half: bool = False) -> None:
    """Copy folds, checkpoints, decode settings and what the competition carries to ``folder``, which must be new.

    half: weights as float16, but for models whose task is promised float32 (``whole_models``).
    """
    graph, config = run.graph, run.config
    whole = whole_models(run)
    model_of = {
        graph.checkpoint(name, k): name for name, model in config.models.items() for k in config.folds_of(model)
    }
    for key, path in run.competition.carried.items():
        target = folder / gates.CARRIED / key / path.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
    for unit in (graph.folds(), *model_of, graph.decode()):
        source, target = run.store.require(unit), folder / unit.key
        target.mkdir(parents=True)
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        if half and unit in model_of and model_of[unit] not in whole:
            checkpoint.save_weights(target, halved(source))
        manifest.write(target, manifest.read(source), unit.beside)


def whole_models(run: Run) -> list[str]:
    """Return the models whose weights stay float32: those predicted in float32 because their task is promised it."""
    tasks = run.competition.tasks
    return [name for name, model in run.config.models.items()
            if tasks[model.task].float32 and run.predict_of(name).precision == "float32"]  # fmt: skip


def halved(folder: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights with parameters as float16; statistics and all that is no parameter stay.

    A tensor with values beyond float16's range stays as it is. They become float32 again in the network.
    """
    parameters = {name for name, _ in checkpoint.load_network(folder).named_parameters()}
    return {
        name: tensor.half()
        if name in parameters and tensor.dtype == torch.float32 and float(tensor.abs().max()) <= HALF_MAX
        else tensor
        for name, tensor in checkpoint.read_weights(folder).items()
    }


def out_of_fold(config: Path, overrides: Sequence[str], weights: Path) -> dict[str, float]:
    """Predict and score the out-of-fold scenes with packed weights and the decode settings packed with them."""
    with tempfile.TemporaryDirectory(dir=weights.parent, prefix="oof.") as scratch:
        words = ["--config", config, "--workdir", scratch, "--inputs", weights, "--split", "oof"]
        words += [word for override in overrides for word in ("--set", override)]
        run = cli.open_run(cli.parser("").parse_args([str(word) for word in words]))
        decision = Decision.of(run)
        full, _ = plan.subsets_of(run.config, decision)
        run = passes.reduced_run(run, full)
        for units in run.predictions():
            predict(run, list(run.pending(units)))
        choice = Choice(decision.weights, decision.params, decision.variant(evidence.default_variant(run.config)))
        scenes = evidence.out_of_fold(run, decision.temperatures)
        return run.competition.scores(total(item.tally(choice) for item in scenes.each("score")))


def choose_half(run: Run, config: Path, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Pack float16 weights, score them out of fold, and pack float32 instead where they cost too much.

    Returns what bundle.json records: both scores, which weights were taken, and the models that keep float32.
    """
    pack(run, folder, half=True)
    before = Decision.of(run).score
    after = out_of_fold(config, overrides, folder)["score"]
    taken = after >= before - HALF_LOSS
    if not taken:
        shutil.rmtree(folder)
        pack(run, folder)
    return {"dtype": "float16" if taken else "float32", "score_float32": before, "score_float16": after,
            "allowed_loss": HALF_LOSS, "float32_models": whole_models(run)}  # fmt: skip


def add_wheels(wheels: Sequence[Path], folder: Path) -> None:
    """Copy wheels of pure Python packages beside the weights. Raises ConfigError for others."""
    for wheel in wheels:
        if not wheel.name.endswith("-none-any.whl") or not wheel.is_file():
            raise ConfigError(f"--wheel {wheel}: expected the file of a pure Python wheel (...-none-any.whl)")
        (folder / gates.WHEELS).mkdir(exist_ok=True)
        shutil.copyfile(wheel, folder / gates.WHEELS / wheel.name)


def seal(run: Run, folder: Path, requires: Mapping[str, Any], python: str, precision: Mapping[str, Any]) -> str:
    """Write bundle.json; returns the id, which is the same for the same files."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    bundle = digest({"experiment": run.config.name, "files": files})
    content = {
        "id": bundle,
        "experiment": run.config.name,
        "competition": run.config.competition,
        "weights": dict(precision),
        "python": python,
        "built_with": {"python": platform.python_version(), **runtime.provenance(run.device)["versions"]},
        "requires": requires,
        "files": files,
    }
    write_json(folder / gates.BUNDLE, content)
    return bundle


def remove(folder: Path) -> None:
    """Remove what an earlier build left. Raises ArtifactError for a folder that is none."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / gates.BUNDLE).exists():
            raise ArtifactError(f"{folder}: expected weights of an earlier build or nothing; name another --out")
        shutil.rmtree(folder)
