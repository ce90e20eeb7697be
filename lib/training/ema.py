"""Exponential moving average of a network's weights, to evaluate and to save."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Average every floating-point tensor of a model's state, norm statistics among them; copy the counters.

    Statistics are averaged, not copied, because they describe the activations of the weights they came with. The
    decay of update t (from 0) is min(decay, (1 + t) / (10 + t)), so that a short run's average is not its random
    start (as in TensorFlow's ExponentialMovingAverage). Averages are float32 at least.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.tensors = {name: _averaged(tensor).clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model; call it after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, tensor in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(tensor.to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Lend the averages to ``model`` and give it its own tensors back, bit for bit, at the end."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: plain numbers and tensors (the live ones, not copies)."""
        return {"decay": self.decay, "updates": self.updates, "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.decay, self.updates = state["decay"], state["updates"]
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])


def _averaged(tensor: Tensor) -> Tensor:
    small = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.detach().float() if small else tensor.detach()
