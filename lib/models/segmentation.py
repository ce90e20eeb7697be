"""Encoder-decoder networks: any decoder of segmentation-models-pytorch (smp), or that of 2020, on any smp or timm
(``tu-``) encoder. A scene's images are stacked as channels; ``siamese.py`` encodes them one by one instead.
"""

import difflib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models import heads, weights
from lib.models.branches import build_branches
from lib.models.dpn import is_dpn, norm_the_end
from lib.models.gates import gate_skips
from lib.models.layers import (
    STATISTICS,
    Network,
    Normalize,
    Outputs,
    head,
    take,
    train_depthwise_in_float32,
    use_group_norm,
)
from lib.models.norms import needs_norms, norm_features
from lib.models.recompute import recompute
from lib.models.steps import decode, level_heads
from lib.models.taps import SKIPS, tap_expansions, tap_stem
from lib.models.unet2020 import UNet2020Options, build_decoder

DECODERS = (*smp.MODEL_ARCHITECTURES_MAPPING, "unet2020")
SHORTENABLE = ("unet", "manet")
"""Decoders whose steps stand in one list, ``blocks``, from the deepest to the finest."""
WIDE = ("mit_b2", "mit_b3", "mit_b4", "mit_b5")
"""Encoders under which SegFormer's decoder has 768 channels by its authors' configurations; it has 256 under B0 and B1
(Xie et al. 2021, arXiv 2105.15203), and here under all others."""
NORMS = ("batch", "group", "group_everywhere")
LOADS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights"}
"""Keywords of timm with which it reads or fetches weights by itself."""
OURS = {"self", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs"}
"""Parameters of smp's architectures that this module fills itself; the others are decoder options."""


@dataclass
class NetworkParts:
    """A network before it is put together; ``source`` says where the encoder's weights came from.

    ``boundary`` reads the decoder's output as ``head`` does, ``aux`` the encoder's features at ``heads.AUX_LEVEL``.
    """

    encoder: Any
    """A module, as are the next two; what smp's have beside that (out_channels, blocks) nn.Module does not declare."""
    decoder: Any
    head: Any
    source: dict[str, str | int] | None = None
    boundary: nn.Module | None = None
    aux: nn.Module | None = None
    levels: nn.ModuleList | None = None
    """Of each step of the decoder but the last, see ``steps``."""
    branches: nn.ModuleDict | None = None
    """Of auxiliary tasks, see ``branches``."""


class SegmentationNet(Network):
    """Normalise, encode, decode, and give logits at the input's size.

    forward: (B, 3 * images, H, W) uint8 or float in 0..255, H and W multiples of ``stride`` -> (B, classes, H, W).
    With further heads, while it trains, ``Outputs``.
    """

    def __init__(self, parts: NetworkParts, normalize: Normalize, dropout: float = 0.0):
        super().__init__()
        self.normalize = normalize
        self.encoder = parts.encoder
        self.decoder = parts.decoder
        self.dropout = nn.Dropout2d(dropout)
        self.head = parts.head
        self.boundary, self.aux, self.levels, self.branches = parts.boundary, parts.aux, parts.levels, parts.branches
        self.stride = math.lcm(32, parts.encoder.output_stride)
        self.source = parts.source

    def encode(self, x: Tensor) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """Return the features at 1/1, 1/2, ... of the input's size (DPT: features and prefix tokens)."""
        return self.encoder(x)

    def features(self, x: Tensor) -> Any:
        """Return what ``encode`` gives for images as they come. ValueError for sides that it cannot take."""
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"network input: expected sides in multiples of {self.stride}, got {tuple(x.shape)}")
        return self.encode(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor | Outputs:
        features = self.features(x)
        further = (self.boundary, self.aux, self.levels, self.branches)
        if not self.training or all(part is None for part in further):
            decoded = self.decoder(*features) if isinstance(features, tuple) else self.decoder(features)
            return self.head(self.dropout(decoded))
        steps: list[Tensor] = []
        if self.levels is None:
            decoded = self.decoder(features)
        else:
            decoded, steps = decode(self.decoder, features)
        decoded = self.dropout(decoded)
        outputs: Outputs = {"logits": self.head(decoded)}
        if self.levels is not None:
            outputs["levels"] = [level(step) for level, step in zip(self.levels, steps, strict=True)][::-1]
        if self.boundary is not None:
            outputs["boundary"] = self.boundary(decoded)
        if self.aux is not None:
            coarse = self.aux(features[heads.AUX_LEVEL])  # (B, classes, H/16, W/16)
            outputs["aux"] = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
        if self.branches is not None:
            tasks = {task: branch(features, decoded) for task, branch in self.branches.items()}
            outputs["tasks"] = tasks
        return outputs


@dataclass(frozen=True)
class Design:
    """Which encoder and decoder a network has, and what else belongs to them."""

    encoder: str
    """An encoder of smp, or ``tu-<timm name>``."""
    encoder_weights: str | Path | None = "none"
    """See ``weights.find``."""
    encoder_options: Mapping[str, Any] | None = None
    """Keywords of timm's model (``tu-`` only), as drop_path_rate."""
    decoder: str = "unet"
    norm: str = "batch"
    """``group`` turns the decoder's batch norms into group norms, ``group_everywhere`` the encoder's too."""
    upsample_logits: int = 1
    """2 or 4 leaves out the last one or two steps of a unet or manet decoder and upsamples the logits; these steps take
    most of a small U-Net's time."""
    grad_checkpointing: bool = False
    """Compute the activations of encoder and decoder again in the backward pass (see ``recompute``)."""
    skips: str = "smp"
    """Of an EfficientNet: ``expansion`` takes the skips before its strided convolutions, ``stem`` the finest one behind
    the stem (see ``taps``)."""
    normalize: str = "encoder"
    """By which mean and std images are normalised: those of the encoder's pretraining, or always ``imagenet``'s."""
    attention_gates: bool = False
    """A gate on every skip of a unet (see ``gates``)."""
    boundary: bool = False
    """A head for boundaries, for training alone (see ``heads``)."""
    aux_head: bool = False
    """A head on the encoder, for training alone (see ``heads``)."""
    deep_supervision: bool = False
    """A head on every step of the decoder, for training alone (see ``steps``)."""
    auxiliary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Branches for further tasks, for training alone (see ``branches``); set by ``train.auxiliary``."""
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of smp's class, as decoder_channels, or fields of ``UNet2020Options``."""

    @classmethod
    def of(cls, **options: Any) -> "Design":
        """Return the design that options of an experiment file describe; what is no field is an option of the decoder.

        Raises ConfigError for names and pairs that do not exist.
        """
        design, others = take(cls, options)
        others = {name: tuple(value) if isinstance(value, list) else value for name, value in others.items()}
        design = replace(design, decoder_options=others)
        _check(design)
        return design

    def normalization(self, images: int) -> Normalize:
        """Build the layer that normalises the inputs of so many images."""
        return Normalize(self.encoder, images, self.normalize)


def build(*, classes: int, images: int, dropout: float = 0.0, **options: Any) -> SegmentationNet:
    """Build a network that sees all ``images`` at once, as 3 * images input channels; options as in ``Design``."""
    design = Design.of(**options)
    parts = build_parts(classes, 3 * images, design)
    parts.branches = build_branches(parts.decoder, parts.head, design.auxiliary)
    return SegmentationNet(parts, design.normalization(images), dropout)


def build_parts(
    classes: int, in_channels: int, design: Design, fuse: Callable[[list[int]], list[int]] | None = None
) -> NetworkParts:
    """Build encoder, decoder and head; ``fuse``: what becomes of the encoder's channel counts before the decoder.

    Raises ConfigError for what cannot be built.
    """
    encoder, decoder, options = design.encoder, design.decoder, dict(design.decoder_options)
    source = weights.find(encoder, design.encoder_weights)

    def create(depth: int = 5, output_stride: int = 32) -> Any:
        native = {"in_channels": 3 if source else in_channels, "weights": None}  # widened after loading
        arguments = timm_arguments(encoder, source, design.encoder_options) if encoder.startswith("tu-") else native
        arguments = {"in_channels": in_channels} | arguments
        module = smp.encoders.get_encoder(encoder, depth=depth, output_stride=output_stride, **arguments)
        if is_dpn(encoder):
            norm_the_end(module, source.state if source else None)
        if design.skips != "smp":
            (tap_expansions if design.skips == "expansion" else tap_stem)(module)
        return module

    try:
        with _quiet_timm():
            if decoder == "unet2020":
                module = create()
                channels = fuse(list(module.out_channels)) if fuse else list(module.out_channels)
                parts = NetworkParts(module, *build_decoder(channels, classes, UNet2020Options(**options)))
            elif decoder == "dpt":
                arguments = timm_arguments(encoder, source, design.encoder_options)
                arguments = {"encoder_weights": arguments.pop("weights"), **arguments}
                net = smp.DPT(encoder, in_channels=in_channels, classes=classes, **arguments, **options)
                parts = NetworkParts(net.encoder, net.decoder, net.segmentation_head)
            else:
                options = _shorten(decoder, design.upsample_logits, options)
                if decoder == "segformer":
                    options = {"decoder_segmentation_channels": 768 if encoder in WIDE else 256} | options
                parts = _around(create, design, classes, fuse, options)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"model: decoder {decoder} cannot be built on encoder {encoder}: {error}") from error
    if source:
        parts.source = weights.install(parts.encoder, source, in_channels)
    if needs_norms(encoder):
        norm_features(parts.encoder)
    if decoder in SHORTENABLE and design.upsample_logits > 1:
        parts.decoder.blocks = parts.decoder.blocks[: -int(math.log2(design.upsample_logits))]
        parts.head = head(options["decoder_channels"][-1], classes, kernel=3, upsampling=design.upsample_logits)
    if design.attention_gates or design.aux_head:
        channels = fuse(list(parts.encoder.out_channels)) if fuse else list(parts.encoder.out_channels)
        if design.attention_gates:
            gate_skips(parts.decoder, channels)
        parts.aux = heads.aux_head(channels, classes) if design.aux_head else None
    if design.boundary:
        parts.boundary = heads.boundary_head(parts.head)
    if design.deep_supervision:
        widths = options.get("decoder_channels") or _default_channels(decoder)
        parts.levels = level_heads(widths[: len(parts.decoder.blocks)], classes)
    train_depthwise_in_float32(parts.encoder)
    train_depthwise_in_float32(parts.decoder)
    if design.norm != "batch":
        for part in filter(None, (parts.decoder, parts.aux)):
            use_group_norm(part)
    if design.norm == "group_everywhere":
        use_group_norm(parts.encoder)
    if design.grad_checkpointing:
        if not recompute(parts.encoder):
            raise ConfigError(f"grad_checkpointing: encoder {encoder} is not made of blocks; choose another, or false")
        recompute(parts.decoder)
    return parts


class _Fused(nn.Module):
    """What smp asks of a custom encoder in order to build a decoder for it; never run."""

    def __init__(self, encoder: Any, channels: list[int]):
        super().__init__()
        self.encoder, self.out_channels, self.output_stride = encoder, channels, encoder.output_stride

    def set_in_channels(self, *args: Any, **kwargs: Any) -> None:
        """Leave the encoder alone: it was created with its channels."""

    def make_dilated(self, *args: Any, **kwargs: Any) -> None:
        """Leave the encoder alone: it was created with its output stride."""


def _around(
    create: Callable[..., Any],
    design: Design,
    classes: int,
    fuse: Callable[[list[int]], list[int]] | None,
    options: Mapping[str, Any],
) -> NetworkParts:
    """Build smp's decoder around our own encoder, by smp's registry of custom encoders.

    The architecture itself decides on depth and output stride and passes them on to ``create``. The entry's name
    keeps a native encoder's beginning, by which smp tells what a vgg needs and a mit cannot do.
    """

    def register(depth: int, output_stride: int) -> nn.Module:
        module = create(depth, output_stride)
        return _Fused(module, fuse(list(module.out_channels)) if fuse else list(module.out_channels))

    name = f"timm {design.encoder}" if design.encoder.startswith("tu-") else f"{design.encoder} of ours"
    smp.encoders.encoders[name] = {"encoder": register, "params": {}, "pretrained_settings": {}}
    try:
        net = smp.create_model(design.decoder, name, encoder_weights=None, classes=classes, **options)
    finally:
        del smp.encoders.encoders[name]
    return NetworkParts(net.encoder.encoder, net.decoder, net.segmentation_head)


def _shorten(decoder: str, upsample_logits: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill ``decoder_channels`` up to the number of steps smp insists on; the surplus steps are cut off again."""
    if upsample_logits == 1:
        return dict(options)
    if decoder not in SHORTENABLE or upsample_logits not in (2, 4):
        raise ConfigError(
            f"upsample_logits: expected 1, or 2 or 4 with decoder {' or '.join(SHORTENABLE)}, "
            f"got {upsample_logits} with {decoder}"
        )
    surplus = int(math.log2(upsample_logits))
    channels = options.get("decoder_channels")
    if channels is None:
        channels = _default_channels(decoder)[:-surplus]
    return {**options, "decoder_channels": (*channels, *channels[-1:] * surplus)}


def _default_channels(decoder: str) -> tuple[int, ...]:
    return inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[decoder]).parameters["decoder_channels"].default


def timm_arguments(
    encoder: str, source: weights.Source | None, encoder_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the keywords with which smp creates a ``tu-`` encoder.

    A Swin is built so that one checkpoint gives one output whatever size the network was built for: timm otherwise
    shrinks windows and drops shifts where the construction size is small. A ViT accepts crops of any size.
    """
    if loads := LOADS & (encoder_options or {}).keys():
        raise ConfigError(
            f"encoder_options: {', '.join(sorted(loads))} would load weights; name them in encoder_weights"
        )
    name, arguments = encoder.removeprefix("tu-"), {}
    if name.startswith("swin"):
        arguments = {"strict_img_size": False, "always_partition": True}
    elif name.startswith(("vit_", "deit", "test_vit")):
        arguments = {"dynamic_img_size": True}
    loading: dict[str, Any] = {"weights": None}
    if source:  # smp: any weights but None mean pretrained; timm prefers the state dict given here to any other place
        loading = {"weights": True, "pretrained_cfg_overlay": {"state_dict": dict(source.state)}}
    return arguments | dict(encoder_options or {}) | loading


def _check(design: Design) -> None:
    """Raise ConfigError for names that do not exist and for options that do not go together."""
    encoder, decoder, is_timm = design.encoder, design.decoder, design.encoder.startswith("tu-")
    if decoder not in DECODERS:
        raise ConfigError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
    if design.norm not in NORMS:
        raise ConfigError(f"norm: expected one of {', '.join(NORMS)}, got {design.norm!r}")
    names = [f"tu-{name}" for name in timm.list_models()] if is_timm else list(smp.encoders.encoders)
    if encoder.partition(".")[0] not in names:
        near = difflib.get_close_matches(encoder, names, n=3)
        raise ConfigError(
            f"encoder: expected an smp encoder or tu-<timm model>, got {encoder!r}"
            + (f"; near it: {', '.join(near)}" if near else "")
        )
    if not is_timm and (design.encoder_options or decoder == "dpt"):
        raise ConfigError(f"encoder: encoder_options and decoder dpt need a tu- encoder, got {encoder}")
    allowed = {option.name for option in fields(UNet2020Options)}
    if decoder != "unet2020":
        allowed = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[decoder]).parameters.keys() - OURS
    if unknown := design.decoder_options.keys() - allowed:
        raise ConfigError(
            f"model: unknown option {', '.join(sorted(unknown))} for decoder {decoder}; "
            f"it has {', '.join(sorted(allowed))}"
        )
    if design.normalize not in STATISTICS:
        raise ConfigError(f"normalize: expected one of {', '.join(STATISTICS)}, got {design.normalize!r}")
    whole = decoder == "dpt" or design.grad_checkpointing
    if design.skips not in SKIPS or (design.skips != "smp" and whole):
        raise ConfigError(
            f"skips: expected {' or '.join(SKIPS)} (not with dpt or grad_checkpointing), got {design.skips!r}"
        )
    _check_switch("grad_checkpointing", design.grad_checkpointing, possible=True, where="any decoder")
    _check_switch("attention_gates", design.attention_gates, possible=decoder == "unet", where="decoder unet")
    _check_switch("deep_supervision", design.deep_supervision, possible=decoder in SHORTENABLE,
                  where=f"decoder {' or '.join(SHORTENABLE)}")  # fmt: skip
    if design.auxiliary and decoder == "dpt":
        raise ConfigError("auxiliary: a network with decoder dpt has no branches; choose another decoder")
    for name, switch in (("boundary", design.boundary), ("aux_head", design.aux_head)):
        _check_switch(name, switch, possible=decoder != "dpt", where="any decoder but dpt")


def _check_switch(name: str, value: object, *, possible: bool, where: str) -> None:
    if not isinstance(value, bool) or (value and not possible):
        raise ConfigError(f"{name}: expected false, or true with {where}, got {value!r}")


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keep timm from reporting the classifier's tensors, which an encoder leaves out, as unexpected."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
