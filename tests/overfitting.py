"""One batch, a few steps: what a network that can learn at all gets right."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def overfit(net: nn.Module, x: Tensor, target: Tensor, lr: float, steps: int) -> None:
    """Take ``steps`` steps of AdamW on the cross-entropy of one batch."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    for _ in range(steps):
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
