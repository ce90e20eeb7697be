"""The rooms behind the six stages. ARCHITECTURE.md says what lives where."""

import importlib.util
import os
import sys

# A command that is typed with another Python than that of `make install`; within a program the import itself fails.
if sys.argv[0].endswith((".py", "-m")) and importlib.util.find_spec("torch") is None:
    print(f"error: {sys.executable} has not the packages of requirements.txt; source .venv/bin/activate, or make that "
          "environment with `make install`", file=sys.stderr)  # fmt: skip
    sys.exit(2)

# albumentations asks PyPI for a newer release when it is imported; a kernel has no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# timm imports wandb where it is installed, and wandb reports home, offline runs or not.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
# OpenCV and its FFmpeg warn of every file that they cannot open, but a DataError says what is wrong with it. All
# releases of OpenCV read these variables when they are loaded; the calls that do the same differ between 4 and 5.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
