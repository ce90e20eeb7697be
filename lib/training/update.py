"""One step of an optimizer, whole or not at all, even where the memory of the device ends in the middle of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib.errors import ArtifactError


@contextmanager
def stands_still(optimizer: Optimizer, bad: Tensor) -> Iterator[None]:
    """Let the steps of a fused optimizer move nothing where ``bad``, () float32 on its device, is 1 and not 0.

    The kernels read the number themselves, so nobody waits for it. torch.amp.GradScaler uses the same attribute.
    """
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def make_state(optimizer: Optimizer) -> None:
    """Allocate what the optimizer remembers of each parameter that has a gradient, so that its step allocates nothing.

    It takes a step that moves nothing, and only where some state is missing: at the first step, and when an encoder
    thaws. Momentum starts at zero: torch's fused SGD leaves it as the memory was, where its first step overflows.
    torch.OutOfMemoryError leaves the optimizer as it was.
    """
    new = [p for p in _moving(optimizer) if p not in optimizer.state]
    if not new:
        return
    try:
        with stands_still(optimizer, torch.ones((), device=new[0].device)):
            optimizer.step()
    except torch.OutOfMemoryError:
        for parameter in new:
            optimizer.state.pop(parameter, None)
        raise
    for parameter in new:
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            momentum.zero_()


def move(optimizer: Optimizer, step: Callable[[], object]) -> None:
    """Take the step. torch.OutOfMemoryError passes where no weight has moved, so that the step can be taken again.

    Where some may have moved, nobody can tell which, and there is no second copy: ArtifactError ends the run, which
    goes on from its last saved state.
    """
    before = _marks(optimizer)
    try:
        step()
    except torch.OutOfMemoryError as error:
        if before and before == _marks(optimizer):
            raise
        raise ArtifactError(
            "the device's memory ran out while the weights moved, and some have moved already; lower train.batch_size "
            "or train.crop and start again: the run goes on from the last state that was saved"
        ) from error


def _moving(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _marks(optimizer: Optimizer) -> list[int]:
    """Return what changes when a parameter moves, read on the host; nothing where that cannot be told.

    torch counts the changes of a tensor, but not those by fused kernels. Adam counts its steps in a tensor of each
    parameter before it moves the parameter; SGD does not.
    """
    moving = _moving(optimizer)
    steps = [optimizer.state[p].get("step") for p in moving]
    if not all(isinstance(step, Tensor) for step in steps):
        return []
    return [tensor._version for tensor in (*moving, *steps)]
