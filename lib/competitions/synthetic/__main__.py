"""Write an embedded set from the command line."""

import argparse
from pathlib import Path

from lib.competitions import synthetic
from lib.errors import ConfigError

parser = argparse.ArgumentParser(prog="python -m lib.competitions.synthetic", description=synthetic.__doc__)
parser.add_argument("competition", choices=synthetic.names())
parser.add_argument("folder", type=Path)
for name, default in (("scenes", 12), ("test-scenes", 4), ("size", 1024), ("seed", 7)):
    parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
given = vars(parser.parse_args())
folder = given.pop("folder")
try:
    synthetic.write(given.pop("competition"), folder, **given)
except ConfigError as error:
    parser.exit(2, f"{error}\n")
print(f"{folder}: {given['scenes']} labelled and {given['test_scenes']} unlabelled scenes")
