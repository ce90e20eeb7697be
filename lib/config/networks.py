"""Which networks of an experiment cannot be built, or cannot see the crops and windows that they are given.

Networks are built on torch's meta device, where tensors have shapes and no memory: milliseconds for any size.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lib.competitions.contract import Competition
from lib.config.sections import Experiment, Model, Network, plain
from lib.errors import ConfigError
from lib.models import build, layers, weights
from lib.models.classifier import resolve
from lib.models.init import start
from lib.scenes.augment import OLDER, PRESETS
from lib.settings import one_of
from lib.tasks import Task

BROKEN = (TypeError, ValueError, RuntimeError, AssertionError, KeyError, IndexError, ZeroDivisionError)
"""What libraries raise for options or sizes that a network cannot have."""


INITIALISERS = ("normal_", "uniform_", "zero_", "fill_", "erfinv_", "mul_", "add_", "div_", "clamp_", "copy_")
"""Operations in place that change no shape."""

SHAPELESS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.ReLU, nn.SiLU, nn.GELU, nn.Dropout)
"""Layers that change no shape; on the meta device each would take as long as a convolution."""


def network_faults(experiment: Experiment, competition: Competition) -> list[str]:
    """Return which networks cannot be built and which crops, windows and presets they cannot be given.

    Networks that differ in nothing but their training are built once.
    """
    faults: list[str] = []
    known: dict[tuple[Any, ...], tuple[int, list[str]]] = {}
    names_of: dict[int, list[str]] = {}  # stride -> models that predict windows
    for name, model in experiment.models.items():
        if model.train.augment not in PRESETS:
            faults.append(
                one_of(f"models.{name}.train.augment", model.train.augment, [n for n in PRESETS if n not in OLDER])
            )
        task = competition.tasks.get(model.task)
        if task is None or not set(model.network.images) <= set(competition.images):
            continue  # already said
        shape = {**plain(model.network), "encoder_weights": None}
        further = branches(model, competition.tasks)
        key = (repr(shape), task.channels, model.train.crop, model.train.zero_gamma, repr(further))
        if key not in known:
            known[key] = _tried(model, task, further)
        stride, wrong = known[key]
        faults += [f"models.{name}.{fault}" for fault in wrong]
        if stride and task.dense:
            names_of.setdefault(stride, []).append(name)
    for stride, names in names_of.items():
        faults += _window_faults(experiment, stride, names)
    return faults


def weight_faults(experiment: Experiment, names: Iterable[str]) -> list[str]:
    """Return which of the named models' pretrained weights are not to be had; those of the hub are fetched."""
    faults = []
    for name in names:
        network = experiment.models[name].network
        if experiment.models[name].train.init_from is None:
            try:
                own = network.architecture == "classifier"
                weights.locate(f"tu-{resolve(network.encoder)}" if own else network.encoder, network.encoder_weights)
            except ConfigError as error:
                faults.append(f"models.{name}.network.{error}")
    return faults


class _ShapesAlone(TorchFunctionMode):
    """Build without values: no weight is drawn, and ``linspace`` stays on the CPU, since libraries turn it into plain
    numbers (drop path rates) while they build."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in INITIALISERS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))


def branches(model: Model, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Return the options of a network that follow from the auxiliary tasks of its training; empty without any."""
    asked = {role: {"classes": tasks[role].channels, "branch": one.branch}
             for role, one in model.train.auxiliary.items() if role in tasks}  # fmt: skip
    return {"auxiliary": asked} if asked else {}


def _tried(model: Model, task: Task, further: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Build a network and let it see a crop; returns its stride, 0 where it cannot be built, and what went wrong."""
    crop, images = model.train.crop, len(model.network.images)
    try:
        network = _built(model.network, task, further)
        start(network, zero_gamma=model.train.zero_gamma)
    except ConfigError as error:
        return 0, [f"network: {error}"]
    except BROKEN as error:
        return 0, [f"network.options: {model.network.architecture} cannot be built with {model.network.options}: "
                   f"{_first_line(error)}"]  # fmt: skip
    stride = int(network.stride)
    if crop % stride:
        return stride, [f"train.crop: expected a multiple of the network's stride {stride}, got {crop}; take "
                        f"{_multiples(crop, stride)}"]  # fmt: skip
    try:
        with torch.no_grad(), torch.device("meta"):
            network(torch.zeros(1, 3 * images, crop, crop, dtype=torch.uint8))
    except NotImplementedError as error:
        if "meta" not in str(error).lower():  # else torch has not described an operation for it: that says nothing
            return stride, [f"network.options: {model.network.architecture} cannot run with {model.network.options}: "
                            f"{_first_line(error)}"]  # fmt: skip
    except BROKEN as error:
        if "scalarType" not in str(error):  # nor does this: autocast knows no meta device
            return stride, [f"train.crop: this network cannot see crops of {crop} pixels: {_first_line(error)}"]
    return stride, []


def _built(spec: Network, task: Task, further: Mapping[str, Any]) -> layers.Network:
    """Build a network without memory, in evaluation mode."""
    with torch.device("meta"), _ShapesAlone():
        network = build(**spec.arguments(task.channels), **further)
    shapeless: Any
    for shapeless in (module for module in network.modules() if isinstance(module, SHAPELESS)):
        shapeless.forward = lambda x, *_, **__: x
    return network.eval()


def _window_faults(experiment: Experiment, stride: int, names: list[str]) -> Iterator[str]:
    """Yield what is wrong with the windows in which networks of a stride predict scenes."""
    tile, overlap, of = experiment.predict.tile, experiment.predict.overlap, ", ".join(names)
    if tile % stride:
        yield (
            f"predict.tile: expected a multiple of {stride}, the stride of {of}, got {tile}; take "
            f"{_multiples(tile, stride)}"
        )
    elif int(tile * overlap) > tile - stride:
        yield (
            f"predict.overlap: windows of {tile} pixels can share at most {1 - stride / tile:g} of their side, since "
            f"the stride of {of} is {stride}, got {overlap:g}"
        )


def _multiples(size: int, stride: int) -> str:
    below = size // stride * stride
    return f"{below} or {below + stride}" if below else str(stride)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
