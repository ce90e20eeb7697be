"""Start inference from a bundle: check what can be checked without any package, then predict.

Exit code 2: something is not as it must be, and nothing was predicted; 1: prediction failed, or nothing fits the
budget, after the first submission was written; the last one that was stands.
"""

import argparse
import sys
import time
from pathlib import Path

from lib.errors import PipelineError
from lib.kaggle import gates

HERE = Path(__file__).resolve().parents[2]
"""Where the sources lie; the experiment file is beside lib/."""


def flags() -> argparse.ArgumentParser:
    """Return the settings that the top of the script or notebook hands over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="id of the weights that belong to these sources")
    parser.add_argument("--input", type=Path, required=True, help="where datasets are attached")
    parser.add_argument("--weights", type=Path, help="folder of the weights (default: found by their id)")
    parser.add_argument("--data", type=Path, help="folder of the competition's data (default: found by its layout)")
    parser.add_argument("--competition", default="", help="name of that folder below --input, where it is known")
    parser.add_argument("--working", type=Path, required=True, help="where submission.csv goes")
    parser.add_argument("--scratch", type=Path, required=True, help="where probabilities lie meanwhile")
    parser.add_argument("--budget-minutes", default="", help="time from start to end (default: as the experiment says)")
    parser.add_argument("--workers", default="", help="processes that share the scenes (default: one per GPU)")
    parser.add_argument("--start", default="spawn", help="how they begin: spawn, or fork without a GPU")
    parser.add_argument("--versions", choices=("tested", "any"), default="tested", help="which packages will do")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the checks and the inference; returns the exit code."""
    started = time.monotonic()
    args = flags().parse_args(argv)
    try:
        args.weights = args.weights or gates.find_weights(args.input, args.bundle)
        bundle = gates.check_weights(args.weights, args.bundle)
        print(f"kernel: weights of {bundle['experiment']} ({args.weights}) are whole", flush=True)
        for wheel in gates.unpack_wheels(args.weights, HERE):
            print(f"kernel: {wheel} unpacked", flush=True)
        if args.versions == "tested":
            gates.check_packages(bundle["requires"], bundle["python"])
        for folder in (args.working, args.scratch):
            gates.check_disk(folder)

        from lib.kaggle import infer  # only now are its packages known to be there

        job = infer.open_job(HERE / "experiment.yaml", args, lambda: time.monotonic() - started)
    except PipelineError as error:
        print(f"kernel: {error}", flush=True)
        return 2
    print(f"kernel: checked in {time.monotonic() - started:.1f} s, nothing is missing", flush=True)
    return infer.predict(job, args.working)


if __name__ == "__main__":
    sys.exit(main())
