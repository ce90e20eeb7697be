"""What a network is given of a scene, and how large the scene is."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lib.competitions.contract import Competition, Scene
from lib.errors import DataError
from lib.scenes import raster


def read_stack(competition: Competition, scene: Scene, images: Sequence[str]) -> np.ndarray:
    """Read the named images of a scene as one array (3n, H, W) uint8, or its frames as (F, 3n, H, W)."""
    return np.concatenate([np.moveaxis(competition.read(scene, name), -1, -3) for name in images], axis=-3)


def sizes(competition: Competition, scenes: Sequence[Scene]) -> dict[str, tuple[int, int]]:
    """Return scene id -> (height, width) from the header of its images; without one, the commonest size of the others.

    DataError where no scene has a header that can be read.
    """
    roles = dict.fromkeys((*competition.images, "image"))
    stated: dict[str, tuple[int, int]] = {}
    for scene in scenes:
        read = (raster.stated_size(scene.files[role]) for role in roles if role in scene.files)
        if size := next((size for size in read if size[0]), None):
            stated[scene.id] = size
    if scenes and not stated:
        raise DataError(f"none of {len(scenes)} scenes ({scenes[0].id}, ...) has an image whose size can be read; "
                        "fetch the images again")  # fmt: skip
    commonest = Counter(stated.values()).most_common(1)
    return {scene.id: stated.get(scene.id) or commonest[0][0] for scene in scenes}
