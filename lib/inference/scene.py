"""What a network is given of a scene."""

from collections.abc import Sequence

import numpy as np

from lib.competitions.contract import Competition, Scene


def read_stack(competition: Competition, scene: Scene, images: Sequence[str]) -> np.ndarray:
    """Read the named images of a scene as one array (3n, H, W) uint8, or its frames as (F, 3n, H, W)."""
    return np.concatenate([np.moveaxis(competition.read(scene, name), -1, -3) for name in images], axis=-3)
