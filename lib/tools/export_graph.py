"""What is exported: one module from images as a user has them to probabilities, and how its files are made and checked.

A file is accepted where its levels (of 255) are at most ``ALLOWED`` away from those that stages 04 and 05 give for the
same pictures, at every size and batch of ``shapes``.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lib.config.sections import Predict
from lib.ensemble import blend, calibration
from lib.errors import ArtifactError, ConfigError
from lib.files import whole_path
from lib.inference.predict import Predictor
from lib.inference.tta import VIEWS, averages
from lib.models.layers import Network
from lib.scenes.probs import quantise
from lib.tasks import Task

ALLOWED = 1
"""Levels of 255 that a file may differ from ours."""
REQUIREMENTS = "requirements-export.txt"
INPUT, OUTPUT = "image", "probabilities"
"""Names of the tensors in an ONNX file."""
Run = Callable[[np.ndarray], np.ndarray]
"""Image (B, C, H, W) float32 in the range of the export -> probabilities (B, K, H, W) float32."""


@dataclass(frozen=True)
class GraphMember:
    """One network of an ensemble."""

    name: str
    """Where it is from: model/fold0."""
    network: Network
    channels: tuple[int, ...]
    """Which channels of the export's input it sees, in its own order."""
    share: float
    """Its weight in the average; those of all members add up to 1."""
    temperature: float = 1.0


class Averaged(nn.Module):
    """Average the probabilities of networks: image (B, 3 * images, H, W) float32 -> (B, K, H, W) float32 in [0, 1].

    Sides are multiples of ``stride``. The image's values are 0..``largest``; each network normalises them itself.
    ``views``: a row of ``VIEWS``, the flips that are averaged.
    """

    def __init__(self, members: Sequence[GraphMember], task: Task, largest: int, views: str = "none"):
        super().__init__()
        self.networks = nn.ModuleList([_of_fixed_padding(member.network) for member in members])
        self.shares = [member.share for member in members]
        self.temperatures = [member.temperature for member in members]
        self.factor, self.activate, self.views = 255 / largest, task.activate, VIEWS[views]
        self.exclusive = task.kind == "multiclass"
        for number, member in enumerate(members):
            self.register_buffer(f"channels_{number}", torch.tensor(member.channels), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        image = image * self.factor
        total: Any = None
        for number, (network, share) in enumerate(zip(self.networks, self.shares, strict=True)):
            seen = image.index_select(1, getattr(self, f"channels_{number}"))
            (probs,) = averages(lambda x, net=network: self.activate(net(x)), seen, self.views, [len(self.views)])  # type: ignore[misc]
            probs = tempered(probs, self.temperatures[number], self.exclusive) * share
            total = probs if total is None else total + probs
        return total


class _FixedSame(Conv2dSame):
    """A convolution with TensorFlow's padding for inputs whose sides are multiples of its stride: always the same."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for kernel, stride, dilation in zip(self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1]):
            pad = max(dilation * (kernel - 1) + 1 - stride, 0)
            sides += [pad // 2, pad - pad // 2]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def _of_fixed_padding(network: nn.Module) -> nn.Module:
    """Return a copy of a network in which no padding is told from the size of what comes in, as TensorFlow's is.

    Following such sums for sides that are not known takes torch.export minutes; with sides in multiples of the
    network's stride they come out the same. That they do is compared for every file.
    """
    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if isinstance(layer, Conv2dSame):
            layer.__class__ = _FixedSame
    return copied


def tempered(probs: Tensor, temperature: float, exclusive: bool) -> Tensor:
    """Apply a temperature to probabilities (B, K, H, W), as ``calibration.apply`` does to levels."""
    if temperature == 1:
        return probs
    least = calibration.floor(probs.shape[1] if exclusive else 2) / 255
    if exclusive:
        powered = probs.clamp(min=least) ** (1 / temperature)
        return powered / powered.sum(1, keepdim=True)
    logits = probs.clamp(min=least).log() - (1 - probs).clamp(min=least).log()
    return (logits / temperature).sigmoid()


def stride_of(members: Sequence[GraphMember]) -> int:
    """Return what the sides of an image must be multiples of, for every network; 32 where a network takes any."""
    return int(np.lcm.reduce([32, *(member.network.stride for member in members)]))


# ---- ours ---------------------------------------------------------------------------------------------
def levels_of(members: Sequence[GraphMember], task: Task, pictures: np.ndarray, views: str = "none") -> np.ndarray:
    """Return the levels that stages 04 and 05 give for pictures (B, C, H, W) uint8: (B, K, H, W) uint8.

    Each network is asked by a ``Predictor`` in float32, its probabilities become levels, a temperature is applied to
    these, and levels are averaged in whole numbers.
    """
    settings = Predict(precision="float32", tta=views, tile=max(32, *pictures.shape[-2:]), overlap=0.0)
    found = []
    for picture in pictures:
        own = []
        for member in members:
            seen = picture[list(member.channels)]
            predict = Predictor(member.network, task.activate, settings)
            probs = predict(seen if task.dense else seen[None])
            own.append(calibration.apply(quantise(probs), member.temperature, task.kind == "multiclass"))
        found.append(blend.blend(own, [member.share for member in members]))
    return np.stack(found)


def shapes(stride: int, fixed: int | None = None) -> list[tuple[int, int, int]]:
    """Return the (batch, height, width) at which a file is compared with ours; ``fixed``: the one side it takes."""
    if fixed is not None:
        return [(1, fixed, fixed), (3, fixed, fixed)]
    return [(1, 2 * stride, 2 * stride), (3, 2 * stride, 3 * stride), (2, 5 * stride, 4 * stride)]


def pictures_of(shape: tuple[int, int, int], channels: int, seed: int = 0) -> np.ndarray:
    """Draw pictures (B, channels, H, W) uint8 to compare on: blurred noise of full contrast, and one of plain noise."""
    from cv2 import GaussianBlur

    batch, height, width = shape
    drawn = np.random.default_rng([seed, *shape]).integers(0, 256, (batch, channels, height, width)).astype(np.float32)
    for number, plane in enumerate(drawn.reshape(-1, height, width)):
        if number < (batch - 1) * channels or batch == 1:
            soft = GaussianBlur(plane, (0, 0), 3)
            plane[:] = (soft - soft.min()) * (255 / max(float(np.ptp(soft)), 1e-6))
    return drawn.astype(np.uint8)


def compare(run: Run, members: Sequence[GraphMember], task: Task, asked: "Asked") -> dict[str, Any]:
    """Return by how many levels a file differs from ours: ``largest``, the share of levels that differ, the shapes.

    Raises ArtifactError where it is more than ``ALLOWED``. Where a member has a temperature, ours applies it to whole
    levels and a file to probabilities, which rounding alone sets several levels apart; then the file is judged by the
    same average in torch, and the difference to ours is returned as ``to_stage_05``.
    """
    channels = 1 + max(channel for member in members for channel in member.channels)
    module = Averaged(members, task, asked.largest, asked.views).eval()
    calibrated = any(member.temperature != 1 for member in members)
    most, off, apart, total = 0, 0, 0, 0
    compared = shapes(stride_of(members), asked.size)
    for shape in compared:
        pictures = pictures_of(shape, channels)
        image = pictures.astype(np.float32) * np.float32(asked.largest / 255)
        found = quantise(run(image)).astype(int)
        ours = levels_of(members, task, pictures, asked.views).astype(int)
        if calibrated:
            apart = max(apart, int(np.abs(found - ours).max()))
            with torch.inference_mode():
                ours = quantise(module(torch.from_numpy(image)).numpy()).astype(int)
        difference = np.abs(found - ours)
        most, off, total = max(most, int(difference.max())), off + int((difference > 0).sum()), total + difference.size
    if most > ALLOWED:
        raise ArtifactError(f"the exported file gives other levels than the networks: expected at most {ALLOWED} of "
                            f"255, found {most} ({off / total:.2%} of them differ); it is not kept")  # fmt: skip
    return {"largest": most, "share": off / total, "shapes": [list(shape) for shape in compared],
            **({"to_stage_05": apart} if calibrated else {})}  # fmt: skip


# ---- files --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Asked:
    """How a module is exported."""

    largest: int = 1
    """What the value 255 of a byte is in the input: 1 or 255."""
    views: str = "none"
    """The flips that are averaged inside, a name of ``VIEWS``."""
    size: int | None = None
    """The one side of square images that the files take; None: any multiple of the stride."""


def trace(members: Sequence[GraphMember], task: Task, asked: Asked) -> torch.export.ExportedProgram:
    """Return the exported program of an average; ConfigError where its networks take no images of any size."""
    channels = 1 + max(channel for member in members for channel in member.channels)
    stride = stride_of(members)
    if asked.size is not None and asked.size % stride:
        raise ConfigError(f"--size {asked.size}: expected a multiple of the networks' stride {stride}")
    module = Averaged(members, task, asked.largest, asked.views).eval()
    sides = (asked.size, asked.size) if asked.size else (2 * stride, 3 * stride)
    dynamic: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}  # a named one is specialised by encoders of two images
    if asked.size is None:  # from two strides on: torch.export takes a side of one for another network
        dynamic |= {2: stride * torch.export.Dim("rows", min=2), 3: stride * torch.export.Dim("columns", min=2)}
    try:
        with torch.no_grad():
            return torch.export.export(module, (torch.rand(2, channels, *sides),), dynamic_shapes=({**dynamic},),
                                       strict=False)  # fmt: skip
    except Exception as error:  # whatever torch says of a network that it cannot follow
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        way_out = "; --size 512 exports it for images of one size" if asked.size is None else ""
        raise ConfigError(f"torch.export cannot follow {members[0].name}: {said[:300]}{way_out}") from error


def onnx_model(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> Any:
    """Return the ONNX model of a program, with named tensors and sizes and its metadata. ConfigError without onnx."""
    onnx = needed("onnx")
    needed("onnxscript")
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports its progress
        exported: Any = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT],
                                          output_names=[OUTPUT])  # fmt: skip
    model = exported.model_proto
    for value, sides in ((model.graph.input[0], ("batch", None, "height", "width")),
                         (model.graph.output[0], ("batch", None, "height", "width"))):  # fmt: skip
        for dim, name in zip(value.type.tensor_type.shape.dim, sides, strict=True):
            if name and dim.dim_param:
                dim.dim_param = name
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def fix_size(model: Any, side: int) -> Any:
    """Return an ONNX model that takes one square image of ``side`` pixels, for readers that know no other."""
    onnx = needed("onnx")
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # sizes in between, which would still be those of any image
    for value in (fixed.graph.input[0], fixed.graph.output[0]):
        for dim, size in zip(value.type.tensor_type.shape.dim, (1, None, side, side), strict=True):
            if size and (dim.dim_param or dim.dim_value != 1):
                dim.dim_value = size
    onnx.checker.check_model(fixed)
    return fixed


def session(path: Path) -> Run:
    """Return a function that runs an ONNX file by onnxruntime on the CPU. ConfigError where that is not installed."""
    runtime = needed("onnxruntime")
    opened = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: opened.run([OUTPUT], {INPUT: image})[0]


def write_onnx(path: Path, model: Any, check: Callable[[Run], Any]) -> Any:
    """Write an ONNX file; it gets its name only where ``check`` passes on what lies on the disk."""
    with whole_path(path) as partial:
        partial.write_bytes(model.SerializeToString())
        return check(session(partial))


def write_program(path: Path, program: torch.export.ExportedProgram, check: Callable[[Run], Any]) -> Any:
    """Write a program as ``torch.export.load`` reads it; it gets its name only where ``check`` passes on it."""
    with whole_path(path) as partial:
        with open(partial, "wb") as stream:
            torch.export.save(program, stream)
        with open(partial, "rb") as written:
            loaded = torch.export.load(written).module()

        def run(image: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return loaded(torch.from_numpy(image)).numpy()

        return check(run)


def metadata_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as an ONNX file keeps them: each as JSON text."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def needed(package: str) -> Any:
    """Import an optional package; ConfigError that names the file of requirements where it is absent."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"exporting to ONNX needs the package {package}, which is not installed here; pip install -r "
                          f"{REQUIREMENTS}") from error  # fmt: skip
