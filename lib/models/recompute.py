"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): memory for time, in any network.

What lies inside a block is not kept for the backward pass but computed again there, block by block. It costs about one
more forward pass. Gradients are the same: dropout draws the same numbers again, and running statistics do not move a
second time, as they would with ``torch.utils.checkpoint`` alone.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Recomputed(nn.Module):
    """A block that keeps its inputs alone; see ``recompute``."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        args = tuple(list(a) if isinstance(a, list) else a for a in args)  # a DenseNet's grows after the call
        if torch.compiler.is_compiling():  # which takes changes in place out of the function and makes them once
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)
        contexts = nullcontext(), _Unmoved(self)
        return checkpoint(super().forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)


def recompute(network: nn.Module) -> int:
    """Let every block below ``network`` compute its activations again in the backward pass; return how many there are.

    A block is one of a row of modules, holds at least two convolutions or linear layers, and no smaller block: a
    residual or transformer block, a step of a U-Net decoder. Weights, their names and all outputs stay as they are. A
    block with a hook inside keeps its activations: the hook would be called twice.
    """
    blocks = list(_blocks(network))
    for block in blocks:
        kind: Any = type(block)
        block.__class__ = _recomputed(kind)
    return len(blocks)


def _blocks(module: nn.Module, in_row: bool = False) -> Iterator[nn.Module]:
    """Yield the blocks below ``module``, or itself where it is one."""
    smaller = [block for child, in_row_too in _children(module) for block in _blocks(child, in_row_too)]
    if smaller:
        yield from smaller
    elif in_row and _is_block(module):
        yield module


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield each child and whether it is one of a row: an entry of a list, or one of several of a class of its own."""
    children = list(module.children())
    kinds = Counter(type(child) for child in children if type(child) not in LISTS)
    for child in children:
        yield child, type(module) in LISTS or kinds[type(child)] > 1


def _is_block(module: nn.Module) -> bool:
    inner = [m for m in module.modules() if m is not module]
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in inner)
    layers = sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in inner)
    return layers > 1 and not hooked and type(module) not in (nn.ModuleList, nn.ModuleDict)


@cache
def _recomputed(kind: Any) -> Any:
    return type(kind.__name__, (Recomputed, kind), {"__module__": kind.__module__})


class _Unmoved:
    """While it is entered, copies stand in for a block's buffers, so that what is done to them is forgotten."""

    def __init__(self, block: nn.Module):
        self.block = block
        self.places: list[tuple[nn.Module, str, Tensor]] = []

    def __enter__(self) -> None:
        self.places = [(m, name, t) for m in self.block.modules() for name, t in m.named_buffers(recurse=False)]
        for module, name, buffer in self.places:
            setattr(module, name, buffer.clone())

    def __exit__(self, *error: object) -> None:
        for module, name, buffer in self.places:
            setattr(module, name, buffer)
