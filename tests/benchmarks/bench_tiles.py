"""Overhead of tiled prediction over bare forwards: ``python -m tests.benchmarks.bench_tiles [--size 4096]``.

The network is one 1x1 convolution to five classes, so what is measured is cutting, blending and moving. All sides use
the same windows and make a class map; they take turns. Prints the median CPU milliseconds per megapixel beyond the bare
forwards, and for each the growth of peak memory in a process of its own. ``--peer monai`` needs MONAI installed. One
thread: set OMP_NUM_THREADS=1. Equal class maps are checked where the two best classes differ by more than 1e-4.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.inference.tiles import grid, predict_bands, predict_tiled, pyramid


def network() -> Callable[[Tensor], Tensor]:
    """Build the pointwise network: (B, 3, h, w) uint8 -> probs (B, 5, h, w)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 1).requires_grad_(False)
    return lambda x: torch.sigmoid(conv(x.float() / 64 - 2))


def bare(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Run the forwards of all windows and keep nothing."""
    forward = network()
    tops, lefts = ([start for start, _ in grid(n, tile, tile - overlap, pyramid)] for n in image.shape[-2:])
    for top in tops:
        for left in lefts:
            forward(image[None, :, top : top + tile, left : left + tile])
    return torch.empty(0)


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
    tops, lefts = ([start for start, _ in grid(n, tile, tile - overlap, pyramid)] for n in image.shape[-2:])
    for top in tops:
        for left in lefts:
            down, across = slice(top, top + tile), slice(left, left + tile)
            total[:, down, across] += forward(image[None, :, down, across])[0] * weights
            norm[down, across] += weights
    return (total / norm).max(dim=0).indices.to(torch.uint8)


def monai(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict with MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    probs = sliding_window_inference(image[None], (tile, tile), 1, network(), overlap=overlap / tile, mode="gaussian")
    return probs[0].max(dim=0).indices.to(torch.uint8)


SIDES = {"bare": bare, "bands": bands, "whole": whole, "notebook": notebook, "monai": monai}


def scene(size: int) -> Tensor:
    """Draw (3, size, size) uint8 noise."""
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def peak_memory(side: str, size: int, tile: int, overlap: int, channel) -> None:
    """Send the growth of peak memory in MiB while one side runs (Linux: VmHWM, reset beforehand)."""
    image = scene(size)
    SIDES[side](image[:, :tile, :tile].contiguous(), tile, overlap)  # what the libraries themselves need

    def status(key: str) -> int:
        return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if key in line).split()[1])

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    SIDES[side](image, tile, overlap)
    channel.send((status("VmHWM") - before) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=("monai",))
    asked = parser.parse_args()
    names = [name for name in SIDES if name != "monai" or asked.peer]
    image = scene(asked.size)
    runs = {name: partial(SIDES[name], image, asked.tile, asked.overlap) for name in names}

    probs = network()(image[None])[0].topk(2, dim=0)
    clear = probs.values[0] - probs.values[1] > 1e-4
    for name in names[1:]:
        assert torch.equal(runs[name]()[clear], probs.indices[0].to(torch.uint8)[clear]), name
    del probs, clear

    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(asked.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - started)
    middle = {name: sorted(values)[len(values) // 2] for name, values in times.items()}

    megapixels = asked.size**2 / 1e6
    print(
        f"{asked.size}^2, tile {asked.tile}, overlap {asked.overlap}, {torch.get_num_threads()} threads, "
        f"bare forwards {middle['bare'] / megapixels * 1e3:.1f} ms/Mpx"
    )
    for name in names[1:]:
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=peak_memory, args=(name, asked.size, asked.tile, asked.overlap, send)
        )
        process.start()
        process.join()
        overhead = (middle[name] - middle["bare"]) / megapixels * 1e3
        memory = f"{receive.recv():6.0f}" if receive.poll() else "     ?"
        print(f"{name:9} overhead {overhead:6.1f} ms/Mpx   peak memory {memory} MiB")


if __name__ == "__main__":
    main()
