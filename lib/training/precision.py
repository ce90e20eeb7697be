"""Arithmetic of the forward pass: the float32 contract, autocast, loss scaling and its health."""

import torch
from torch import Tensor, nn


class Arithmetic:
    """Autocast and loss scaling of one run. ``name``: float32, bfloat16 or float16 (the only one that scales)."""

    def __init__(self, name: str, device: torch.device):
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")
        self.skipped = 0
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

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Move the weights unless a gradient overflowed; return whether they moved."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        moved = not self.scaler.is_enabled() or self.scaler.get_scale() >= before
        self.skipped += not moved
        return moved

    def health(self) -> dict:
        """Return the log's line on loss scaling: present scale, steps skipped so far, first non-finite layer."""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else None
        return {"scale": scale, "skipped_steps": self.skipped, "first_nonfinite_layer": self.first_bad_layer}


def first_nonfinite(network: nn.Module, image: Tensor, arithmetic: Arithmetic) -> str | None:
    """Return the name of the first layer whose output is not finite for ``image``; run once, after an overflow."""
    found: list[str] = []

    def watch(name: str):
        def hook(_module, _inputs, output):
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    leaves = [(n, m) for n, m in network.named_modules() if not any(m.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    training = network.training
    try:
        network.eval()
        with torch.no_grad(), arithmetic.autocast():
            network(image)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def first_nonfinite_gradient(network: nn.Module) -> str | None:
    """Return the parameter nearest the output whose gradient is not finite (the backward pass meets it first)."""
    for name, parameter in reversed(list(network.named_parameters())):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"{name} (gradient)"
    return None
