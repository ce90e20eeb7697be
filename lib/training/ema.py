"""Averages of a network's weights, to evaluate and to save: exponential (EMA) and equal (SWA)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.training.optim import is_frozen


class Average:
    """Average every floating-point tensor of a model's state, norm statistics among them; copy the counters.

    Statistics are averaged, not copied, because they describe the activations of the weights they came with.
    Averages are float32 at least. ``_keep`` of a subclass says how much of the average an update keeps.
    """

    def __init__(self, model: nn.Module):
        self.updates: int | Tensor = 0
        self.tensors = {name: _averaged(tensor).clone() for name, tensor in model.state_dict().items()}

    def _keep(self) -> Any:
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module, moved: Tensor | None = None) -> None:
        """Move the average towards the model, or, where ``moved`` is false, leave it as it is.

        moved: () bool on the model's device, for callers that do not know and will not wait; the updates are then
        counted on the device too.
        """
        if moved is not None:
            self._update_where(model, moved)
            return
        keep = self._keep()
        self.updates += 1
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        counters: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, tensor in model.state_dict().items():
            average = self.tensors[name]
            averages, tensors = floats if average.is_floating_point() else counters
            averages.append(average)
            tensors.append(tensor.to(average.dtype))
        torch._foreach_lerp_(*floats, weight=1 - keep)
        if counters[0]:
            torch._foreach_copy_(*counters)

    def _update_where(self, model: nn.Module, moved: Tensor) -> None:
        """Update as ``update``, to the same bits; a weight of zero leaves an average alone.

        torch has no such operation for many tensors at once with one weight on the device, so it is one for each.
        """
        self.updates = torch.as_tensor(self.updates, dtype=torch.float64, device=moved.device)
        weight = ((1 - self._keep()) * moved).float()
        self.updates = self.updates + moved
        for name, tensor in model.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(tensor.to(average.dtype), weight.to(average.dtype))
            else:
                average.copy_(torch.where(moved, tensor, average))

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
        return {"updates": int(self.updates), "tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.updates = state["updates"]
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])


class Ema(Average):
    """Exponential moving average, updated after each optimizer step.

    The decay of update t (from 0) is min(decay, (1 + t) / (10 + t)), so that a short run's average is not its random
    start (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def _keep(self) -> Any:
        keep = (1 + self.updates) / (10 + self.updates)
        return keep.clamp(max=self.decay) if isinstance(keep, Tensor) else min(self.decay, keep)

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.decay = state["decay"]
        super().load_state_dict(state)


class Swa(Average):
    """Equal average of the weights at the ends of the last epochs (Izmailov et al. 2018), updated once an epoch.

    Before the first update it is the model it was made from. Averaged weights have other activations than any of
    their parts, so the statistics of batch norms are estimated anew: ``reestimate`` before a validation or a save.
    """

    def _keep(self) -> Any:
        return self.updates / (1 + self.updates)

    def reestimate(self, model: nn.Module, batches: Iterable[Mapping[str, Any]], **options: Any) -> None:
        """Give the average the batch-norm statistics that it has on ``batches``; see ``estimate_norms``."""
        with self.swapped_in(model):
            estimate_norms(model, batches, **options)
            for name, tensor in model.state_dict().items():
                self.tensors[name].copy_(tensor)


@torch.no_grad()
def estimate_norms(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Replace the running statistics of every batch norm by their mean over ``batches``, each batch counting alike.

    batches: items with an ``image`` (B, 3n, h, w) uint8 or float in 0..255, as the training loader gives them. Only
    the norms are in training mode, so that they see what they will see in prediction: no dropout, no stochastic depth.
    Frozen parts keep their statistics. Without batch norms nothing is read. Raises ValueError for no batches.
    """
    frozen = {norm for part in model.modules() if is_frozen(part) for norm in part.modules()}
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    norms = [norm for norm in norms if norm not in frozen]
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches so far
            norm.train()
        for batch in batches:
            with autocast():
                model(batch["image"].to(device, non_blocking=True))
        if not norms[0].num_batches_tracked:
            raise ValueError("batch-norm statistics: expected at least one batch, got none")
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _averaged(tensor: Tensor) -> Tensor:
    small = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.detach().float() if small else tensor.detach()
