"""What a network is given of a scene, and how large the scene is."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lib.competitions.contract import Competition, Scene
from lib.errors import DataError


def read_stack(competition: Competition, scene: Scene, images: Sequence[str]) -> np.ndarray:
    """Read the named images of a scene as one array (3n, H, W) uint8, or its frames as (F, 3n, H, W).

    Raises DataError naming scene, files and sizes where these differ.
    """
    read = [np.moveaxis(competition.read(scene, name), -1, -3) for name in images]
    if len({array.shape[-2:] for array in read}) > 1:
        found = ", ".join(f"{scene.files.get(name, name)} of {array.shape[-1]}x{array.shape[-2]}"
                          for name, array in zip(images, read, strict=True))  # fmt: skip
        raise DataError(f"scene {scene.id}: expected images of one size, found {found} pixels")
    return np.concatenate(read, axis=-3)


def stated_sizes(competition: Competition, scenes: Sequence[Scene]) -> dict[str, tuple[int, int]]:
    """Return scene id -> (height, width) of those whose size is known, from the header of an image or as a rule."""
    found = {scene.id: competition.size(scene) for scene in scenes}
    return {scene_id: (size[0], size[1]) for scene_id, size in found.items() if size[0] and size[1]}


def sizes(competition: Competition, scenes: Sequence[Scene]) -> dict[str, tuple[int, int]]:
    """Return scene id -> (height, width) as ``stated_sizes``; of the others the commonest one.

    DataError where the size of no scene is known.
    """
    stated = stated_sizes(competition, scenes)
    if scenes and not stated:
        raise DataError(f"none of {len(scenes)} scenes ({scenes[0].id}, ...) has an image whose size can be read; "
                        "fetch the images again")  # fmt: skip
    commonest = Counter(stated.values()).most_common(1)
    return {scene.id: stated.get(scene.id) or commonest[0][0] for scene in scenes}
