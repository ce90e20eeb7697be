"""The rooms behind the six stages. ARCHITECTURE.md says what lives where."""

import os

# albumentations asks PyPI for a newer release when it is imported; a kernel has no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# OpenCV and its FFmpeg warn of every file that they cannot open, but a DataError says what is wrong with it. All
# releases of OpenCV read these variables when they are loaded; the calls that do the same differ between 4 and 5.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
