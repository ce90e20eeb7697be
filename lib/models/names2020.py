"""Networks of 2020 by the names of their tensors: those of published files, and ours.

They are those of xView2's second place, Selim Seferbekov; source of the names: github.com/selimsef/xview2_solution,
``models/``. Layers, their order and their shapes are the same in both, so a tensor only changes its name.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib.models.weights import convert_efficientnet

Rename = Callable[[str], str]


def by_prefix(prefixes: Mapping[str, str]) -> Rename:
    """Return what replaces the beginning of a name. It raises KeyError for a name with none of these beginnings."""

    def rename(name: str) -> str:
        for his, ours in prefixes.items():
            if name.startswith(f"{his}."):
                return ours + name.removeprefix(his)
        raise KeyError(name)

    return rename


def dpn92() -> Rename:
    """Return how the layers of his DPN92 are called here: stages of blocks, of which the pooling is one."""
    prefixes = {"0.0": "model.features_conv1_1.conv", "0.1": "model.features_conv1_1.bn"}
    for stage, blocks in enumerate((3, 4, 20, 3), start=1):
        first = 1 if stage == 1 else 0  # the pooling stands before the first block
        prefixes |= {f"{stage}.{first + i}": f"model.features_conv{stage + 1}_{i + 1}" for i in range(blocks)}
    return by_prefix(prefixes | {"4.3": "model.features_conv5_bn_ac"})


def densenet161() -> Rename:
    """Return how the layers of his DenseNet161 are called here."""
    prefixes = {"0.0": "model.features_conv0", "0.1": "model.features_norm0", "1.1": "model.features_denseblock1"}
    for stage in (2, 3, 4):
        prefixes |= {f"{stage}.0": f"model.features_transition{stage - 1}",
                     f"{stage}.1": f"model.features_denseblock{stage}"}  # fmt: skip
    return by_prefix(prefixes | {"4.2": "model.features_norm5"})


def seresnext50() -> Rename:
    """Return how the layers of his SE-ResNeXt50 are called here."""
    return by_prefix({"0": "layer0", "1.1": "layer1", "2": "layer2", "3": "layer3", "4": "layer4"})


def resnext101() -> Rename:
    """Return how the layers of his ResNeXt101 are called here."""
    later = {str(stage): f"model.layer{stage}" for stage in (2, 3, 4)}
    return by_prefix({"0.0": "model.conv1", "0.1": "model.bn1", "1.1": "model.layer1"} | later)


def efficientnet_b2() -> Rename:
    """Return how the layers of his EfficientNet-B2 are called here: he cuts its row of blocks at 5, 8 and 16."""
    repeats, starts = (2, 3, 3, 4, 4, 5, 2), {"1": 0, "2": 5, "3": 8, "4": 16}

    def rename(name: str) -> str:
        stage, place, rest = name.split(".", 2)
        if stage == "0":
            plain = {"0": "_conv_stem", "1": "_bn0"}[place] + f".{rest}"
        else:
            plain = f"_blocks.{starts[stage] + int(place)}.{rest}"
        return "model." + next(iter(convert_efficientnet({plain: torch.empty(0)}, repeats)))

    return rename


ENCODERS: dict[str, Callable[[], Rename]] = {
    "tu-dpn92": dpn92,
    "tu-densenet161": densenet161,
    "se_resnext50_32x4d": seresnext50,
    "tu-resnext101_32x8d": resnext101,
    "tu-tf_efficientnet_b2": efficientnet_b2,
}
"""Encoder of a network, without timm's tag -> how its layers are renamed."""
SCSE = {"fc1": "squeeze", "fc2": "excite", "spatial_se.0": "pixels"}
STEPS = 4


def decoder() -> Rename:
    """Return how the layers of his decoder and head are called here; his decoder counts its steps from the finest."""
    prefixes = {"last_upsample.layer.1": "decoder.last", "final.0": "head.0"}
    for step in range(STEPS):
        prefixes |= {f"decoder_stages.{STEPS - 1 - step}.layer.1": f"decoder.up.{step}",
                     f"bottlenecks.{step}.seq.0": f"decoder.merge.{step}"}  # fmt: skip
        prefixes |= {f"bottlenecks.{step}.seq.2.{his}": f"decoder.scse.{step}.{ours}" for his, ours in SCSE.items()}
    return by_prefix(prefixes)


def rename(state: Mapping[str, Tensor], encoder: str) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors of his network with this encoder our names; returns them and the names that are unknown.

    state: with ``module.`` of apex before every name, or without.
    """
    inner, outer = ENCODERS[encoder.partition(".")[0]](), decoder()
    renamed, unknown = {}, []
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        try:
            stage = plain.removeprefix("encoder_stages.")
            ours = outer(plain) if stage == plain else f"encoder.{inner(stage)}"
            if ours in renamed:  # with the prefix and without: which one counts cannot be told
                raise KeyError(ours)
            renamed[ours] = tensor
        except (KeyError, IndexError, ValueError):
            unknown.append(plain)
    return renamed, unknown
