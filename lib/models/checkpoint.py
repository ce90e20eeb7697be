"""Finished checkpoints: weights as safetensors beside the description of the network that takes them.

A reader needs neither the experiment file nor any pretrained weights: ``network.json`` holds the arguments of
``lib.models.build`` and the names of the output channels.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib.errors import ArtifactError, ConfigError
from lib.files import read_json, whole_path, write_bytes
from lib.models import build
from lib.models.layers import Network

WEIGHTS, DESCRIPTION = "best.safetensors", "network.json"


def describe(folder: Path, network: dict[str, Any], images: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Write what the network is: ``network`` are the arguments of ``build`` without any encoder weights."""
    description = {"network": {**network, "encoder_weights": "none"}, "images": list(images), "classes": list(classes)}
    write_bytes(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())


def save_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the weights of ``state``; a reader sees the old file or the new one."""
    with whole_path(folder / WEIGHTS) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, partial)


def read_description(folder: Path) -> dict[str, Any]:
    """Return ``network`` (without encoder weights), ``images`` and ``classes`` of a checkpoint folder.

    Raises ArtifactError where the file is missing or holds anything else.
    """
    try:
        found = read_json(folder / DESCRIPTION)
        network, images, classes = found["network"], found["images"], found["classes"]
        if not isinstance(network, dict):
            raise ValueError(f"network: expected an object, found {network!r}")
        for name, listed in (("images", images), ("classes", classes)):
            if not (isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed)):
                raise ValueError(f"{name}: expected a list of names, found {listed!r}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{folder / DESCRIPTION}: missing or damaged ({error!r}); train again with --force"
        ) from error
    return {"network": {**network, "encoder_weights": "none"}, "images": images, "classes": classes}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint folder; ArtifactError where the file is damaged."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / WEIGHTS}: missing or damaged ({error}); train this fold again with --force"
        ) from error


def load_network(folder: Path) -> Network:
    """Build the network of a checkpoint folder and give it its weights; no download, no pretrained weights.

    Raises ArtifactError for the checkpoint of a network that is no longer built so, and where files do not belong
    together.
    """
    description = read_description(folder)
    try:
        network = build(**description["network"])
    except (ConfigError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, MemoryError) as error:
        raise ArtifactError(f"{folder}: this network can no longer be built ({error}); train with --force") from error
    state = read_weights(folder)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        found = "weights and network.json do not belong together"
        if absent := sorted(network.state_dict().keys() - state.keys()):
            found = (
                f"the network has parts that its weights do not know, {absent[0]} and {len(absent) - 1} more: it was "
                "trained by an older version"
            )
        raise ArtifactError(f"{folder}: {found}; train with --force") from error
    return network.eval()
