"""Which files are pictures and videos, by the suffix of their names in small letters."""

from collections.abc import Collection
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
"""Pictures that are read."""
OTHER_PICTURES = (".webp", ".gif", ".jp2", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".tga", ".jxl", ".dcm", ".svs")
"""Pictures that are not read, and are named where they lie."""
VIDEOS = (".mp4", ".avi", ".mov", ".mkv")
"""Videos that are read."""
OTHER_VIDEOS = (".webm", ".m4v", ".wmv", ".flv", ".mpg", ".mpeg", ".3gp")
"""Videos that are not read, and are named where they lie."""


def is_picture(path: Path, suffixes: Collection[str] = PICTURES) -> bool:
    """Tell by the name whether a file is a picture, with one of these suffixes, and not hidden."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")
