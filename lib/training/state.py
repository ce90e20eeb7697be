"""The resumable state of a training run: everything the next step depends on, in one atomically replaced file."""

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lib.errors import ArtifactError
from lib.files import whole_file
from lib.run.manifest import BEGUN, STATE, read_object


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) and the random generators' states; old file or new, never half."""
    state = {**state, "rng": torch.get_rng_state(), "unit": _unit(folder)}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    with whole_file(folder / STATE, "wb") as stream:
        torch.save(state, stream)


def load(folder: Path) -> dict[str, Any] | None:
    """Return the saved state, or nothing where none was saved; ArtifactError where the file is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    with whole(folder):
        with zipfile.ZipFile(path) as archive:
            if harmed := archive.testzip():  # torch writes checksums and reads past them
                raise ValueError(f"wrong checksum of {harmed}")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if (own := _unit(folder)) and saved.get("unit", own) != own:
            raise ValueError("it is the state of another unit")
        return saved


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Turn what a damaged state ends in, while it is read or taken, into an ArtifactError."""
    try:
        yield
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError,
            AttributeError, zipfile.BadZipFile) as error:  # fmt: skip
        raise ArtifactError(f"{folder / STATE}: damaged ({type(error).__name__}: {str(error).splitlines()[0]}); rerun "
                            "with --force to train anew") from error  # fmt: skip


def _unit(folder: Path) -> str:
    """Return the fingerprint of the unit that is built in a folder, "" where that is none."""
    return str(read_object(folder / BEGUN).get("fingerprint", "")) if (folder / BEGUN).exists() else ""


def restore_rng(state: dict[str, Any]) -> None:
    """Set the random generators to where ``save`` found them."""
    torch.set_rng_state(state["rng"])
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"])
