"""The numbers of a step, read without making anybody wait.

A host that reads a number of a GPU waits until the GPU has computed it, and then the GPU waits for the host. So a step
reads nothing. ``Meter`` adds up on the device. ``Watch`` copies a few numbers of each step to the host, beside the
computation, and gives them out some steps later, when they have arrived.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LAG = 10
"""Steps after which a GPU's numbers are looked at. A host that runs so far ahead of its GPU never lets it starve."""


class Meter:
    """Sums over the steps of an epoch, by name, kept on the device in float64: what Python's additions give."""

    def __init__(self, sums: Mapping[str, float] | None = None):
        self._known = dict(sums or {})
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None

    def add(self, names: Sequence[str], values: Tensor) -> None:
        """Add the values of a step: (number of names,) float64."""
        if self._sums is None or tuple(names) != self._names:  # the first step
            known, self._names = self.read(), tuple(names)
            start = torch.tensor([known.get(name, 0.0) for name in names], dtype=torch.float64)
            self._sums = start.to(values.device)
        self._sums += values

    def read(self) -> dict[str, float]:
        """Return the sums; waits for the device."""
        if self._sums is not None:
            self._known |= zip(self._names, self._sums.tolist(), strict=True)
        return dict(self._known)


@dataclass(frozen=True)
class PastStep:
    """What is known of a step on the host when its numbers are read."""

    epoch: int
    number: int
    """In its epoch, both from 0."""
    ids: tuple[str, ...]
    """Scenes of this process."""
    parameters: list[str] = field(default_factory=list)
    """Names of the parameters that got a gradient; empty without loss scaling."""


class Watch:
    """The numbers of the last steps, on their way to the host.

    lag: steps between a step and the look at its numbers; on a CPU, which has computed them already, none.
    """

    def __init__(self, device: torch.device, lag: int | None = None):
        self.on_gpu = device.type == "cuda"
        self.lag = lag if lag is not None else LAG if self.on_gpu else 0
        self._pending: deque[tuple[PastStep, Sequence[str], Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: PastStep, names: Sequence[str], values: Tensor) -> None:
        """Send the numbers of a step, (number of names,) float64, on their way."""
        if not self.on_gpu:
            self._pending.append((step, names, values, None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((step, names, host, arrived))

    def seen(self, everything: bool = False) -> Iterator[tuple[PastStep, dict[str, float]]]:
        """Yield the steps that are ``lag`` steps old, with their numbers; or all, waiting for the device."""
        while len(self._pending) > (0 if everything else self.lag):
            step, names, host, arrived = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()  # of a step long past: the device has other steps to go on with
            yield step, dict(zip(names, host.tolist(), strict=True))
