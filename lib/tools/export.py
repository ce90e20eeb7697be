"""Export trained networks for use elsewhere: ONNX, torch.export, and a folder for the Hugging Face hub.

Reads:  02_loc/..., 03_cls/... and, for averages, 05_ensemble/decode of an experiment; no data
Writes: OUT/<task>/model.onnx (any batch and size), qgis.onnx (one tile, for QGIS Deepness), model.pt2 (torch.export),
        networks/ (weights as this repository reads them), README.md (model card), export.json

Without --only and --fold all models and folds of a task are averaged inside the file, with the weights and temperatures
of decode.json. A file is kept only where its levels (of 255) are at most 1 away from those of stages 04 and 05.

    python -m lib.tools.export --config configs/xview2_cpu.yaml --out exported
    python -m lib.tools.export --config configs/xview2_cpu.yaml --only loc_lite0 --fold 0 --out exported
    python -m lib.tools.export --config configs/xview2_cpu.yaml --out exported --push NAME/REPOSITORY
"""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

from lib.choose.choice import DECODE, Decision
from lib.competitions.contract import Competition
from lib.config import check
from lib.config.sections import Experiment, Model, plain
from lib.errors import ArtifactError, ConfigError
from lib.files import digest, write_bytes, write_json
from lib.inference.tta import VIEWS
from lib.models import checkpoint
from lib.run import cli, manifest
from lib.run.artifacts import Store, Unit
from lib.run.cli import say
from lib.run.graph import Graph, check_only
from lib.settings import one_of
from lib.tools import export_card as cards
from lib.tools import export_graph as graphs
from lib.tools.export_card import Card
from lib.tools.export_graph import Asked, GraphMember


class Finished:
    """A finished experiment, of which nothing but its units is read."""

    def __init__(self, config: Experiment, competition: Competition, store: Store, flags: str):
        self.config, self.competition, self.store = config, competition, store
        self.graph = Graph(config, (), (), flags, tasks=competition.tasks)

    def finished(self, unit: Unit) -> Path:
        """Return the folder of a finished unit; ArtifactError where it is not there, not whole or of other settings.

        The data are not looked at: that they changed since is for the stages to say.
        """
        folder = self.store.folder(unit)
        if not folder.exists():
            raise ArtifactError(f"{unit.key} has not been made; run: {unit.command}")
        if fault := self.store.fault(unit):
            raise ArtifactError(f"{fault}; run: {unit.command}")
        facts = manifest.read(folder).get("facts", {})
        if odd := [name for name in ("task", "network", "view") if name in facts
                   and digest(facts[name]) != digest(unit.facts.get(name))]:  # fmt: skip
            raise ArtifactError(f"{unit.key} was made with another {' and '.join(odd)} than the experiment file "
                                f"states; run: {unit.command}")  # fmt: skip
        for name in manifest.read(folder)["files"]:
            manifest.check(folder / name, unit.command)
        return folder

    def decision(self) -> Decision | None:
        """Return what stage 05 decided; None where it has not been run."""
        unit = self.graph.decode()
        return Decision.read(self.finished(unit) / DECODE) if self.store.folder(unit).exists() else None


@cli.exits
def main(argv: Sequence[str] | None = None) -> None:
    args = flags().parse_args(argv)
    cli.quiet()
    for package in ("onnx", "onnxscript", "onnxruntime"):
        graphs.needed(package)
    config, competition = check.open_experiment(args.config, args.overrides, args.workdir)
    store = Store(args.workdir / config.name, tuple(args.inputs))
    words = ["--config", str(args.config), "--workdir", str(args.workdir)]
    source = Finished(config, competition, store, shlex.join(words))
    check_only(source.graph, args.task, args.only, args.fold)
    if args.task is not None and args.task not in competition.tasks:
        raise ConfigError(one_of("--task", args.task, competition.tasks))
    tasks = [task for task in competition.tasks if source.graph.models(task, args.only)]
    tasks = [task for task in tasks if args.task in (None, task)]
    if args.push and len(tasks) > 1:
        raise ConfigError(f"--push: expected one task, a repository holds one model; name it by --task "
                          f"{' or '.join(tasks)}")  # fmt: skip
    for task in tasks:
        folder = args.out / task
        say(f"{task}: exporting to {folder}")
        export(source, task, folder, args)
        if args.push:
            say(f"{task}: pushed to {push(folder, args.push, args.public)}")


def flags():
    """Return the flags that say which networks, and how they are exported."""
    parser = cli.experiment_flags(__doc__)
    parser.add_argument("--task", help="networks of this task only (default: of all tasks, a folder each)")
    parser.add_argument("--only", metavar="MODEL", help="this model only")
    parser.add_argument("--fold", type=int, metavar="K", help="the networks of this fold only")
    parser.add_argument("--out", type=Path, default=Path("exported"), help="folder to write (default: exported)")
    parser.add_argument("--input", type=int, choices=(1, 255), default=1, dest="largest",
                        help="largest value of the input: 1 (bytes / 255, default) or 255 (bytes)")  # fmt: skip
    parser.add_argument("--tta", choices=list(VIEWS), default="none",
                        help="flips that are averaged inside the file (default: none)")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="PIXELS",
                        help="square images of this side alone, for networks that take no other")  # fmt: skip
    parser.add_argument("--tile", type=int, default=512, metavar="PIXELS", help="side of the tiles of qgis.onnx")
    parser.add_argument("--resolution", type=float, metavar="CM",
                        help="centimetres per pixel at which the networks were trained, for QGIS Deepness")  # fmt: skip
    parser.add_argument("--license", default="other", help="licence of the weights, for the model card")
    parser.add_argument("--push", metavar="NAME/REPOSITORY", help="upload the folder to the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="with --push: the repository is public")
    return parser


def export(source: Finished, task: str, folder: Path, args) -> None:
    """Write everything that is exported of a task's networks, each file after it was compared with ours."""
    known, decision = source.competition.tasks[task], source.decision()
    notes: list[str] = []
    chosen = list(networks(source, task, args.only, args.fold))
    members, images, folders = read_members(source, task, chosen, None if args.fold is not None else decision, notes)
    asked = Asked(args.largest, args.tta, args.size)
    without_tile = no_tile(known.dense, asked, args.tile, graphs.stride_of(members))
    notes += said_of(source, [name for name, _ in chosen], decision, asked)
    card = Card(source.config, task, known, images, members, asked, decision, notes, args.license, args.resolution)
    folder.mkdir(parents=True, exist_ok=True)
    program = graphs.trace(members, known, asked)
    compare = partial(graphs.compare, members=members, task=known, asked=asked)
    meta = cards.metadata(card, args.tile, source.config.predict.overlap)
    model = graphs.onnx_model(program, graphs.metadata_of(meta))
    checked = {"model.onnx": graphs.write_onnx(folder / "model.onnx", model, compare),
               "model.pt2": graphs.write_program(folder / "model.pt2", program, compare)}  # fmt: skip
    if without_tile:
        say(f"  no qgis.onnx: {without_tile}")
    else:
        tile = args.size or args.tile
        one = Asked(asked.largest, asked.views, tile)
        checked["qgis.onnx"] = graphs.write_onnx(
            folder / "qgis.onnx", graphs.fix_size(model, tile), partial(tile_by_tile, members, known, one)
        )
    for own, made in folders.items():
        (folder / "networks" / own).mkdir(parents=True, exist_ok=True)
        for name in (checkpoint.WEIGHTS, checkpoint.DESCRIPTION):
            shutil.copyfile(made / name, folder / "networks" / own / name)
    write_json(folder / "export.json", {**meta, "checked": checked, "notes": notes,
                                        "members": cards.rows(card), "experiment": plain(source.config)})  # fmt: skip
    write_bytes(folder / "README.md", cards.text(card, checked).encode())
    for name, found in checked.items():
        sizes = ", ".join(f"{b}x{h}x{w}" for b, h, w in found["shapes"])
        say(f"  {name}: at most {found['largest']} of 255 levels from ours, {found['share']:.3%} of them differ "
            f"(batch x height x width: {sizes})")  # fmt: skip
        if found.get("to_stage_05", 0) > graphs.ALLOWED:
            say(f"  ! temperatures are applied to probabilities, in stage 05 to whole levels: {found['to_stage_05']} "
                "levels apart at most")  # fmt: skip
    for note in notes:
        say(f"  ! {note}")


def networks(source: Finished, task: str, only: str | None, fold: int | None) -> Iterator[tuple[str, int]]:
    """Yield (model, fold) of the networks that are asked for. ConfigError where models see scenes at several sizes."""
    models = source.graph.models(task, only)
    views = {digest(plain(model.view)) for model in models.values()}
    if len(views) > 1:
        raise ConfigError(f"{', '.join(models)}: expected models that see scenes at one size, since a file takes one "
                          "image; export them one by one (--only)")  # fmt: skip
    for name, model in models.items():
        for own in source.config.folds_of(model):
            if fold in (None, own):
                yield name, own


def read_members(
    source: Finished, task: str, chosen: Sequence[tuple[str, int]], decision: Decision | None, notes: list[str]
) -> tuple[list[GraphMember], tuple[str, ...], dict[str, Path]]:
    """Return the networks with their shares, the images of a file's input, and where each network lies.

    Shares are those of stage 05: the folds of a model share its weight. Without a decision all weights are as the
    experiment states them, and nothing has a temperature.
    """
    folders = {f"{name}/fold{fold}": source.finished(source.graph.checkpoint(name, fold)) for name, fold in chosen}
    found = {own: checkpoint.read_description(folder) for own, folder in folders.items()}
    used = {image for description in found.values() for image in description["images"]}
    images = tuple(image for image in source.competition.images if image in used)
    weights = {name: source.config.models[name].weight for name, _ in chosen}
    if decision is not None:
        weights = {name: decision.weights[name] for name in weights}
    elif len(chosen) > 1:
        notes.append("stage 05 has not been run: models have the weights that the experiment states")
    if not any(weights.values()):
        raise ConfigError(f"{', '.join(weights)}: stage 05 gave none of them a weight; export them one by one "
                          "(--only MODEL --fold K)")  # fmt: skip
    folds = [name for name, _ in chosen]
    shares = [Fraction(str(weights[name])) / folds.count(name) for name, _ in chosen]
    members = []
    for (name, fold), share in zip(chosen, shares, strict=True):
        if not share:
            notes.append(f"{name}: stage 05 gave it no weight, so it is left out")
            del folders[f"{name}/fold{fold}"]
            continue
        own = f"{name}/fold{fold}"
        if tuple(found[own]["classes"]) != tuple(source.competition.tasks[task].classes):
            raise ArtifactError(f"{folders[own]}: is of the classes {', '.join(found[own]['classes'])}, the experiment "
                                f"has {', '.join(source.competition.tasks[task].classes)}")  # fmt: skip
        channels = tuple(3 * images.index(image) + colour for image in found[own]["images"] for colour in range(3))
        temperature = decision.temperatures.get(name, 1.0) if decision is not None else 1.0
        members.append(GraphMember(own, checkpoint.load_network(folders[own]), channels, float(share / sum(shares)),
                              temperature))  # fmt: skip
    return members, images, folders


def said_of(source: Finished, names: Sequence[str], decision: Decision | None, asked: Asked) -> list[str]:
    """Return in what a file differs from what the stages do with these networks, in sentences."""
    said = []
    models: dict[str, Model] = {name: source.config.models[name] for name in names}
    view = next(iter(models.values())).view
    if plain(view):
        said.append(f"the networks see scenes under view {plain(view)}; resize images so before they go in")
    if any(model.pad for model in models.values()):
        said.append("stage 04 mirrors scenes outward before it predicts them (pad), a file does not")
    if decision is not None and decision.crf:
        said.append("stage 05 refines the average by a CRF, a file does not")
    if decision is not None and decision.tta not in (None, asked.views):
        said.append(f"stage 05 averages the views {decision.tta}, this file {asked.views}; --tta {decision.tta} makes "
                    "them the same")  # fmt: skip
    others = {source.config.predict_of(model, source.competition.tasks).precision for model in models.values()}
    if others != {"float32"}:
        said.append(f"files compute in float32, the experiment's stage 04 in {' and '.join(sorted(others))}")
    return said


def no_tile(dense: bool, asked: Asked, tile: int, stride: int) -> str:
    """Say why there is no file for QGIS Deepness, "" where there is one."""
    if not dense:
        return "QGIS Deepness has no use for a label of a whole picture"
    if asked.largest != 1:
        return "QGIS Deepness gives values of 0..1; leave --input 255 out"
    if asked.size is None and tile % stride:
        raise ConfigError(f"--tile {tile}: expected a multiple of the networks' stride {stride}")
    return ""


def tile_by_tile(members: Sequence[GraphMember], task, asked: Asked, run: graphs.Run) -> dict:
    """Compare a file that takes one image at a time."""
    import numpy as np

    return graphs.compare(lambda image: np.concatenate([run(one[None]) for one in image]), members, task, asked)


def push(folder: Path, repository: str, public: bool) -> str:
    """Upload a folder to the Hugging Face hub; returns its address. ConfigError with the way out where that fails."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository)
    except Exception as error:  # of the hub's client, of its library for HTTP, of the system
        status = getattr(getattr(error, "response", None), "status_code", None)
        kept = f"what was exported is whole in {folder}"
        if status in (401, 403):
            raise ConfigError(f"--push {repository}: the hub refuses it ({status}); log in by `hf auth login` or set "
                              f"HF_TOKEN, then run the same command again; {kept}") from error  # fmt: skip
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"--push {repository}: the Hugging Face hub was not reached ({said}); {kept}: run the same "
                          f"command with a network, or `hf upload {repository} {folder}`") from error  # fmt: skip
    return str(address)


if __name__ == "__main__":
    sys.exit(main())
