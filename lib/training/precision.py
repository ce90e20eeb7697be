"""Arithmetic of the forward pass: the float32 contract, autocast, loss scaling and its health."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.training.optim import is_frozen
from lib.training.update import make_state, move, stands_still


class Arithmetic:
    """Autocast and loss scaling of one run. ``name``: float32, bfloat16 or float16 (the only one that scales).

    Nothing in it waits for the device but ``health``. Under a scaler a step whose loss or gradient is not finite moves
    no weight. Without one no weight moves from the first such step on, until the run has noticed and ends.
    """

    def __init__(self, name: str, device: torch.device):
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")
        self.one = torch.ones((), device=device)
        self.broken = torch.zeros((), device=device)
        """Without a scaler: 1 once a loss or a gradient was not finite."""
        self.skipped, self.in_a_row, self.nonfinite_losses = 0, 0, 0
        self.first_bad_layer: str | None = None

    def autocast(self):
        """Return the context of a forward pass."""
        dtype = getattr(torch, self.name)
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.name != "float32", cache_enabled=True)

    def assert_float32(self, network: nn.Module, tf32: bool) -> None:
        """Hold the contract of the localization stage. Raises RuntimeError where anything is not float32."""
        odd = [name for name, p in network.named_parameters() if p.dtype != torch.float32]
        if odd:
            raise RuntimeError(f"float32 contract: {len(odd)} parameters are not float32, first {odd[0]}")
        if self.name != "float32" or torch.is_autocast_enabled(self.device.type):
            raise RuntimeError("float32 contract: autocast is on")
        if not tf32 and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32):
            raise RuntimeError("float32 contract: TF32 is on although nobody asked for it")

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of a part's loss; that of a loss that is not finite is not finite under a scaler."""
        scaled = self.scaler.scale(loss / parts)
        if self.scaler.is_enabled():  # else an infinite loss could have a gradient of zero, and would pass unseen
            scaled = scaled * (1 + 0 * loss.detach())  # 1, or not a number
        scaled.backward()

    def step(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> Tensor | None:
        """Move the weights where all is finite. Return whether they moved, () bool on the device; None: they did.

        finite: () bool on the device, whether loss and gradient are; read only without a scaler, which looks itself.
        torch.OutOfMemoryError leaves everything as it was after ``unscale_``; then call ``again``.
        """
        make_state(optimizer)
        if not self.scaler.is_enabled():
            self.broken = torch.maximum(self.broken, (~finite).to(self.broken.dtype))
            with stands_still(optimizer, self.broken):
                move(optimizer, optimizer.step)
            return None
        before = self.scaler.scale(self.one)  # get_scale() would wait for the device
        move(optimizer, lambda: self.scaler.step(optimizer))
        self.scaler.update()
        return (self.scaler.scale(self.one) >= before) & (before > 0)  # halved often enough, a scale is 0 and stays so

    def again(self) -> None:
        """Make the scaler forget a step that was begun, so that it can be begun again with the same scale."""
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.scale(self.one))

    def count(self, skipped: bool, nonfinite_loss: bool) -> None:
        """Take note of what became of a step."""
        self.skipped += skipped
        self.nonfinite_losses += nonfinite_loss
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def health(self) -> dict:
        """Return the log's line on loss scaling: present scale, steps skipped so far, first non-finite layer."""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return {"scale": scale, "skipped_steps": self.skipped, "nonfinite_losses": self.nonfinite_losses,
                "first_nonfinite_layer": self.first_bad_layer}  # fmt: skip

    def state_dict(self) -> dict:
        """Return what a checkpoint needs: plain numbers; waits for the device."""
        return {"scaler": self.scaler.state_dict(), "amp": [self.skipped, self.first_bad_layer],
                "skips": [self.in_a_row, self.nonfinite_losses]}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint."""
        self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.first_bad_layer = state["amp"]
        self.in_a_row, self.nonfinite_losses = state.get("skips", (0, 0))


class FiniteStatistics:
    """Puts the running statistics of norms back where a batch left them infinite, without waiting for the device.

    A step of float16 that overflows is skipped, but its forward pass has moved the statistics, and what is infinite
    once stays so. They are put back number by number, so that statistics of layers before the overflow count.
    """

    def __init__(self, network: nn.Module):
        self.buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self.kept = self._values()

    @torch.no_grad()
    def put_back(self) -> None:
        """Look at the statistics after a step."""
        if not self.buffers:
            return
        now = self._values()
        self.kept = torch.where(torch.isfinite(now), now, self.kept)
        parts = self.kept.split([buffer.numel() for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, [part.view_as(b) for part, b in zip(parts, self.buffers, strict=True)])

    def _values(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self.buffers]) if self.buffers else torch.empty(0)


def first_nonfinite(network: nn.Module, image: Tensor, arithmetic: Arithmetic) -> str | None:
    """Return the name of the first layer whose output is not finite for ``image`` (B, C, H, W); waits for the device.

    Run once, after an overflow. Norms use the statistics of the batch, as in training, and leave their own as they
    are; nothing is random, and several processes do not wait for each other. Heads that only training has do not run.
    """
    found: list[str] = []

    def watch(name: str):
        def hook(_module, _inputs, output):
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    frozen = {module for part in network.modules() if is_frozen(part) for module in part.modules()}
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m not in frozen]
    own = [(norm.running_mean, norm.running_var) for norm in norms]
    leaves = [(n, m) for n, m in network.named_modules() if not any(m.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        for norm in norms:
            norm.running_mean = norm.running_var = None  # a norm without statistics takes the batch's
        with torch.no_grad(), arithmetic.autocast():
            network.forward(image)  # not what torch.compile has made of it, which knows no hooks
    finally:
        for norm, (mean, var) in zip(norms, own, strict=True):
            norm.running_mean, norm.running_var = mean, var
        for module, mode in modes.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def last_nonfinite_gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return which of the parameters' gradients is the last that is not finite, -1 for none: () int64 on the device.

    The last parameter is the nearest to the output: the backward pass meets it first.
    """
    norms = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
    places = torch.arange(len(norms), device=norms.device)
    return torch.where(torch.isfinite(norms), -1, places).max()
