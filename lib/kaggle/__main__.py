"""Build a Kaggle kernel from a finished experiment: a script, a notebook, and a dataset with the weights.

Reads:  01_folds, 02_loc/..., 03_cls/..., 05_ensemble/decode of the experiment
Writes: OUT/script/kernel.py, OUT/notebook/kernel.ipynb, OUT/weights/ (upload it as a dataset), each with its metadata

    python -m lib.kaggle --config configs/xview2_cpu.yaml --workdir workdir --out kernel --user NAME
    kaggle datasets create -p kernel/weights -r zip
    kaggle kernels push -p kernel/script
"""

import shutil
import sys
from pathlib import Path

import yaml

from lib.competitions import module_of
from lib.config.sections import Experiment, plain
from lib.errors import ConfigError
from lib.files import write_bytes, write_json
from lib.kaggle import sources, text, weights
from lib.run import cli

FORMS = {"script": "kernel.py", "notebook": "kernel.ipynb"}
LARGEST = 2**20
"""Bytes of code that Kaggle takes in one kernel."""


def flags():
    """Return the flags of the stages and those of a kernel."""
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("kernel"), help="folder of the bundle (default: kernel)")
    parser.add_argument("--user", default="INSERT_USERNAME_HERE", help="Kaggle user name, for the metadata")
    parser.add_argument("--slug", help="name of the kernel in addresses (default: from the title)")
    parser.add_argument("--title", help="title of the kernel (default: from the experiment's name)")
    parser.add_argument("--competition", default="", help="the competition's name in addresses, to attach its data")
    parser.add_argument("--license", default="other", help="licence of the weights' dataset (default: other)")
    parser.add_argument("--half", nargs="?", const="always", choices=("always", "check"),
                        help="weights as float16; check: only if the out-of-fold score allows it")  # fmt: skip
    parser.add_argument("--wheel", type=Path, action="append", default=[],
                        help="a pure Python wheel to carry along, for an image without the package")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="ask Kaggle for a machine without GPU")
    return parser


@cli.exits
def main(argv=None):
    args = flags().parse_args(argv)
    run = cli.open_run(args)
    name = text.slug(args.slug or args.title or f"{run.config.name} inference")
    title = args.title or name.replace("-", " ")
    if text.slug(title) != name:
        raise ConfigError(f"--slug {name}: Kaggle makes it from the title, which gives {text.slug(title)}; change one")
    weights.remove(args.out / "weights")
    folder = args.out / "weights.partial"  # a build that is refused half-way leaves nothing that looks like one
    shutil.rmtree(folder, ignore_errors=True)

    files, packages = sources.modules([*sources.ENTRY, module_of(run.config.competition)])
    requires = sources.requires(packages | {"packaging"})
    if args.half == "check":
        precision = weights.choose_half(run, args.config, args.overrides, folder)
        cli.say("float16 weights score {score_float16:.4f} out of fold, float32 {score_float32:.4f}: "
                "{dtype} taken".format(**precision))  # fmt: skip
    else:
        weights.pack(run, folder, half=args.half == "always")
        precision = {"dtype": "float16" if args.half else "float32", "float32_models": weights.whole_models(run)}
    if args.half and (whole := precision["float32_models"]):
        cli.say(f"{', '.join(whole)}: weights stay float32, in which the task must be predicted")
    weights.add_wheels(args.wheel, folder)
    bundle = weights.seal(run, folder, requires, sources.PYTHON, precision)
    about = text.dataset_metadata(args.user, f"{name}-weights", f"{title} weights", args.license)
    write_json(folder / "dataset-metadata.json", about)

    parts = text.blocks({"experiment.yaml": experiment(run.config, args), **files}, bundle, args.competition)
    dataset = f"{args.user}/{name}-weights"
    intro = f"""{title}

Inference of the experiment {run.config.name}, built by `python -m lib.kaggle`: build it again instead of editing it.
Attach the dataset {dataset} (weights {bundle}) and the competition's data; no network is needed.

The sources below are written to a temporary folder and run: every checkpoint predicts every test scene, the
probabilities are averaged and decoded with the settings found out of fold. Before that submission.csv is written with
the sample or with empty answers, and only ever replaced by a better one: after the first fold, and after the last. With
BUDGET_MINUTES, views, models and folds that do not fit are left out; what is, is printed.
"""
    for form, file in FORMS.items():
        target = args.out / form
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        code = (text.script if form == "script" else text.notebook)(intro, parts).encode()
        if len(code) > LARGEST:
            cli.say(f"! {target / file} has {len(code)} bytes, Kaggle takes {LARGEST}")
        write_bytes(target / file, code)
        own = title if form == "script" else f"{title} notebook"
        about = text.kernel_metadata(file, args.user, own, dataset, args.competition, not args.cpu)
        write_json(target / "kernel-metadata.json", about)
        cli.say(f"{target / file}: {len(files)} modules, {len(code) / 2**10:.0f} KiB")
    folder = folder.rename(args.out / "weights")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cli.say(f"{folder}: {size / 2**20:.1f} MiB, {precision['dtype']}, id {bundle}")


def experiment(config: Experiment, args) -> str:
    """Return the experiment file: as it stands, or written anew where --set changed it."""
    stated = args.config.read_text(encoding="utf-8")
    if args.overrides or not stated.endswith("\n"):
        return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return stated


if __name__ == "__main__":
    sys.exit(main())
