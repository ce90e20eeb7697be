"""What tiled prediction costs beyond the bare forwards of its windows.

The network is one 1x1 convolution to five classes, so what is measured is cutting, blending and moving. All sides use
the same windows and make a class map; equal classes are asked for where the two best differ by more than 1e-4. The
goal of 10 ms per megapixel over the bare forwards is the difference of the first line and the last, times are per Mpx.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor, nn

from lib.inference.tiles import predict_bands, predict_tiled, pyramid
from lib.tasks import strongest
from tests.benchmarks.harness import Figure, Race, Side, missing, peak


def rows(quick: bool) -> list[Race | Figure]:
    """Return scenes of 4096 and of 8192 pixels square, in windows of 1024 that share 256; and rasters that are read and
    written by rows, with the peak of memory over the libraries'."""
    found: list[Race | Figure] = []
    for size, tile, overlap in ((384, 128, 32),) if quick else ((4096, 1024, 256), (8192, 1024, 256)):
        clear: list[Tensor] = []
        name = f"{size:,} x {size:,} in windows of {tile:,}, a megapixel"
        make = partial(_sides, size, tile, overlap, clear)
        found.append(Race(name, make, agree=partial(_agree, clear), per=size**2 / 1e6, memory=not quick))
    shapes = ((512, 512),) if quick else ((16_384, 16_384), (8_192, 32_768), (32_768, 32_768))
    return found + [Figure(f"{height:,} x {width:,} from file to file", partial(_raster, height, width))
                    for height, width in shapes]  # fmt: skip


class Raster:
    """An open raster whose rows are read when they are asked for."""

    def __init__(self, file: rasterio.DatasetReader):
        self.file, self.shape = file, (file.count, file.height, file.width)

    def __getitem__(self, part: tuple[slice, slice]) -> Tensor:
        return torch.from_numpy(self.file.read(window=(part[1].indices(self.shape[1])[:2], (0, self.shape[2]))))


def _raster(height: int, width: int, folder: Path) -> dict[str, float]:
    options = {"driver": "GTiff", "height": height, "width": width, "dtype": "uint8", "tiled": True, "compress": "zstd",
               "zstd_level": 1, "bigtiff": "yes"}  # fmt: skip
    rng = np.random.default_rng(0)
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    with rasterio.Env(GDAL_CACHEMAX=64):
        with rasterio.open(folder / "image.tif", "w", count=3, **options) as file:
            for top in range(0, height, 256):
                tall = min(256, height - top)
                rough = rng.integers(0, 256, (3, -(-tall // 8), -(-width // 8)), np.uint8).repeat(8, 1).repeat(8, 2)
                file.write(rough[:, :tall, :width], window=((top, top + tall), (0, width)))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # what others left hides a peak
            mib, wall, cpu = fresh.submit(_measured, folder, options).result()
        with rasterio.open(folder / "image.tif") as file, rasterio.open(folder / "classes.tif") as found:
            _check(Raster(file), found)
    pixels = height * width / 1e6
    return {"peak MiB": mib, "wall ms/Mpx": wall * 1e3 / pixels, "CPU ms/Mpx": cpu * 1e3 / pixels}


def _measured(folder: Path, options: dict) -> tuple[float, float, float]:
    """Predict a raster; returns the peak of memory in MiB, wall and CPU seconds."""
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    torch.set_num_threads(1)
    started = time.perf_counter(), time.process_time()
    with rasterio.Env(GDAL_CACHEMAX=64):
        mib = peak(partial(_from_file_to_file, folder, options))
    return mib, time.perf_counter() - started[0], time.process_time() - started[1]


def _from_file_to_file(folder: Path, options: dict) -> None:
    forward = network()
    with (rasterio.open(folder / "image.tif") as file,
          rasterio.open(folder / "classes.tif", "w", count=1, **options) as out):  # fmt: skip
        for top, band in predict_bands(forward, Raster(file), 1024, 256, 32):
            out.write(strongest(band.numpy()), 1, window=((top, top + band.shape[1]), (0, band.shape[2])))


def _check(image: Raster, found: rasterio.DatasetReader) -> None:
    """Compare some rows with the network's own answer; ValueError where they differ."""
    height, width = image.shape[1:]
    for top in {0, height // 2 // 256 * 256, max(0, height - 256)}:
        rows = image[:, top : top + 256]
        clear, best = _clear(rows), strongest(network()(rows[None])[0].numpy())
        written = found.read(1, window=((top, top + rows.shape[1]), (0, width)))
        if (written != best)[clear.numpy()].any():
            raise ValueError(f"rows from {top} on have other classes")


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
    return torch.from_numpy(strongest(predict_tiled(network(), image, tile, overlap, 32).numpy()))


def bands(image: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict with ``predict_bands``, only the class map in memory."""
    out = torch.empty(image.shape[-2:], dtype=torch.uint8)
    for top, band in predict_bands(network(), image, tile, overlap, 32):
        out[top : top + band.shape[1]] = torch.from_numpy(strongest(band.numpy()))
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
    """Predict with MONAI's sliding window, whose sums have the type of its input."""
    from monai.inferers import sliding_window_inference

    given, share = image[None].float(), overlap / tile
    probs = sliding_window_inference(given, (tile, tile), 1, network(), overlap=share, mode="gaussian")
    return probs[0].max(dim=0).indices.to(torch.uint8)
