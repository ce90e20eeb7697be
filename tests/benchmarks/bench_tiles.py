"""What tiled prediction costs beyond the bare forwards of its windows.

The network is one 1x1 convolution to five classes, so what is measured is cutting, blending and moving. All sides use
the same windows and make a class map; equal classes are asked for where the two best differ by more than 1e-4. The
goal of 10 ms per megapixel over the bare forwards is the difference of the first line and the last, times are per Mpx.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.inference.tiles import predict_bands, predict_tiled, pyramid
from tests.benchmarks.harness import Race, Side, missing


def rows(quick: bool) -> list[Race]:
    """Return scenes of 4096 and of 8192 pixels square, in windows of 1024 that share 256."""
    found = []
    for size, tile, overlap in ((384, 128, 32),) if quick else ((4096, 1024, 256), (8192, 1024, 256)):
        clear: list[Tensor] = []
        name = f"{size:,} x {size:,} in windows of {tile:,}, a megapixel"
        make = partial(_sides, size, tile, overlap, clear)
        found.append(Race(name, make, agree=partial(_agree, clear), per=size**2 / 1e6, memory=not quick))
    return found


def _sides(size: int, tile: int, overlap: int, clear: list[Tensor], _: Path) -> dict[str, Side | str]:
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    clear[:] = [_clear(image)]
    sides = {"ours, in bands": bands, "ours, whole": whole, "notebook": notebook,
             "MONAI": missing("monai") or monai, "limit: bare forwards": bare}  # fmt: skip
    if callable(side := sides["MONAI"]):
        side(image[:, :tile, :tile], tile, overlap)  # its import is not its time
    return {name: partial(side, image, tile, overlap) if callable(side) else side for name, side in sides.items()}


def _clear(image: Tensor) -> Tensor:
    """Return where the two best classes differ by more than 1e-4, (H, W) bool, strip by strip to spare memory."""
    strips = []
    for strip in image.split(256, dim=1):
        best = network()(strip[None])[0].topk(2, dim=0).values
        strips.append(best[0] - best[1] > 1e-4)
    return torch.cat(strips)


def _agree(clear: list[Tensor], ours: Tensor, other: Tensor) -> bool:
    return torch.equal(ours[clear[0]], other[clear[0]])


def network() -> Callable[[Tensor], Tensor]:
    """Build the pointwise network: (B, 3, h, w) uint8 -> probs (B, 5, h, w)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 1).requires_grad_(False)
    return lambda x: torch.sigmoid(conv(x.float() / 64 - 2))


def _windows(image: Tensor, tile: int, overlap: int) -> list[tuple[slice, slice]]:
    tops, lefts = ([*range(0, n - tile, tile - overlap), n - tile] for n in image.shape[-2:])
    return [(slice(top, top + tile), slice(left, left + tile)) for top in tops for left in lefts]


def bare(image: Tensor, tile: int, overlap: int) -> None:
    """Run the forwards of all windows and keep nothing."""
    forward = network()
    for down, across in _windows(image, tile, overlap):
        forward(image[None, :, down, across])


def whole(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict with ``predict_tiled``, all probabilities in memory."""
    return predict_tiled(network(), image, tile, overlap, 32).max(dim=0).indices.to(torch.uint8)


def bands(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict with ``predict_bands``, only the class map in memory."""
    out = torch.empty(image.shape[-2:], dtype=torch.uint8)
    for top, band in predict_bands(network(), image, tile, overlap, 32):
        out[top : top + band.shape[1]] = band.max(dim=0).indices
    return out


def notebook(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict with the usual two accumulators of the scene's size and a division at the end."""
    forward = network()
    total, norm = torch.zeros(5, *image.shape[-2:]), torch.zeros(image.shape[-2:])
    weights = torch.outer(pyramid(tile), pyramid(tile))
    for down, across in _windows(image, tile, overlap):
        total[:, down, across] += forward(image[None, :, down, across])[0] * weights
        norm[down, across] += weights
    return (total / norm).max(dim=0).indices.to(torch.uint8)


def monai(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict with MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    probs = sliding_window_inference(image[None], (tile, tile), 1, network(), overlap=overlap / tile, mode="gaussian")
    return probs[0].max(dim=0).indices.to(torch.uint8)
