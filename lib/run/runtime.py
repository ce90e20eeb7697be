"""The machine a stage runs on: device, precision, processes, versions, memory."""

import hashlib
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lib.errors import ConfigError
from lib.run import meeting

if TYPE_CHECKING:  # torch takes seconds to import; a stage that has nothing to do goes without it
    import torch
    from torch import nn

T = TypeVar("T")

PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "albumentations", "numpy", "pandas",
            "opencv-python-headless", "scikit-learn", "scikit-image", "rasterio", "shapely")  # fmt: skip


def device() -> "torch.device":
    """Return this process's CUDA device, or the CPU. Raises ConfigError for a GPU this torch has no code for."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    capability = torch.cuda.get_device_capability(index)
    built = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if not runs_on(capability, built):
        raise ConfigError(
            f"{torch.cuda.get_device_name(index)} (sm_{capability[0]}{capability[1]}): torch {torch.__version__} is "
            f"built for {', '.join(built)} and dies at the first operation there; choose another GPU, or hide it with "
            "CUDA_VISIBLE_DEVICES="
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Tell whether code built for ``built`` ("sm_75", "sm_90a") runs on a GPU: same major, minor not above it."""
    known = [int(name.removeprefix("sm_").rstrip("af")) for name in built]
    return not known or any(code // 10 == capability[0] and code % 10 <= capability[1] for code in known)


def precision_on(device: "torch.device", wanted: str, cpu_precision: str = "bfloat16") -> str:
    """Return the arithmetic really used: float16 becomes ``cpu_precision`` on a CPU, all else is as wanted."""
    return cpu_precision if wanted == "float16" and device.type == "cpu" else wanted


def rank() -> int:
    """Return this process's number, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Return the number of torchrun's processes on this machine, 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def process_group():
    """Join the group that torchrun started (nccl on CUDA, gloo on a CPU); does nothing for a single process.

    Raises ConfigError as ``device``, and for more processes than GPUs, which nccl does not take.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    device()  # nccl talks over a process's present GPU, which is the first one in all of them until each takes its own
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    here = local_processes()
    if backend == "nccl" and here > torch.cuda.device_count():
        raise ConfigError(f"torchrun: expected at most one process for each GPU, got {here} processes and "
                          f"{torch.cuda.device_count()} GPUs; lower --nproc-per-node")  # fmt: skip
    store, number, count = next(dist.rendezvous("env://"))
    dist.init_process_group(
        backend,
        store=meeting.of_this_start(store, number, count),
        rank=number,
        world_size=count,
        timeout=timedelta(hours=2),  # the first process checks and writes alone meanwhile
    )
    try:
        yield
    finally:
        # Older releases of torch (2.6; pytorch#154976) hold the interpreter while they end gloo's threads; one of these
        # that has yet to let go of a tensor would wait for it for ever.
        time.sleep(0.2)
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if (group := _group()) is not None:
        group.barrier()


def agree(decision: T) -> T:
    """Return the first process's decision, anything that pickles, in every process."""
    if (group := _group()) is None:
        return decision
    box = [decision]
    group.broadcast_object_list(box, src=0)
    return box[0]


def share(tensors: "Iterable[torch.Tensor]") -> None:
    """Give tensors, in place, the values that they have in the first process."""
    if (group := _group()) is None:
        return
    import torch

    kinds: dict[torch.dtype, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        kinds[tensor.dtype].append(tensor.detach())
    for several in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in several])
        group.broadcast(flat, src=0)
        for tensor, part in zip(several, flat.split([t.numel() for t in several]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def gather(value: Any) -> list[Any]:
    """Return what each process gave, in the order of their numbers, in every process; alone, [value]."""
    if (group := _group()) is None:
        return [value]
    box: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(box, value)
    return box


def anywhere(pressed: Callable[[], bool], lag: int) -> Callable[[], bool]:
    """Return a function that tells all processes at the same call whether ``pressed`` is true in one of them.

    Every process calls it once a step. Its question goes out without waiting, over gloo, which needs no GPU; the answer
    is that of ``lag`` calls before, which has come by then. Alone, a process has its own answer at once.
    """
    if (group := _group()) is None:
        return pressed
    import torch

    gloo = group.new_group(backend="gloo")
    asked: deque[tuple[torch.Tensor, Any]] = deque()

    def told() -> bool:
        count = torch.tensor([int(pressed())])
        asked.append((count, group.all_reduce(count, group=gloo, async_op=True)))
        if len(asked) <= lag:
            return False
        count, question = asked.popleft()
        question.wait()
        return bool(count)

    return told


def _group() -> Any:
    """Return torch.distributed where this process has joined a group, else None."""
    if world_size() == 1 and "torch.distributed" not in sys.modules:
        return None
    import torch.distributed as dist

    return dist if dist.is_initialized() else None


STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to stop: Ctrl-C, what job managers and torchrun send, the end of its terminal."""
ECHO = 2.0
"""Seconds in which a second signal counts as the first: torchrun passes on a Ctrl-C that all its processes got."""
GRACE = 30
"""Seconds that a loader process works on after a SIGTERM, while the main process saves; torchrun waits as long."""


@contextmanager
def terminable() -> Iterator[None]:
    """Make the signals of ``STOPS`` end a block as Ctrl-C does, so that what is half done is cleared away."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a signal asked to stop, for a loop to stop safely; a second one stops it."""
    pressed: list[float] = []

    def remember(signum, frame):
        if pressed and signum == signal.SIGINT and time.monotonic() - pressed[0] > ECHO:
            raise KeyboardInterrupt
        pressed.append(time.monotonic())

    with _handling(remember):
        yield lambda: bool(pressed)


@contextmanager
def passing_on(terminate: Callable[[], None]) -> Iterator[None]:
    """Call ``terminate`` too when a SIGTERM comes during a block, for a process that this one waits for."""
    before = signal.getsignal(signal.SIGTERM)

    def both(signum, frame):
        terminate()
        if callable(before):
            before(signum, frame)

    with _handling(both, (signal.SIGTERM,)):
        yield


@contextmanager
def _handling(handler: Callable, numbers: Sequence[int] = STOPS) -> Iterator[None]:
    """Handle signals in a block, but for those ignored from the start (nohup); does nothing but in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Let a loader process work on after a signal to all processes, until the main one has saved and ends it."""

    def wait(*_):
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.alarm(GRACE)

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in STOPS:
        signal.signal(number, wait if number == signal.SIGTERM else signal.SIG_IGN)


def use_tf32(allowed: bool) -> None:
    """Switch TF32 matrix products and convolutions on CUDA on or off."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def tf32(allowed: bool):
    """Allow or forbid TF32 as ``use_tf32`` for the time of a block; afterwards it is as before."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    use_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def deterministic(wanted: bool = True) -> None:
    """Ask cuDNN for the same result from the same inputs, or else let it time its algorithms and take the fastest."""
    import torch

    torch.backends.cudnn.benchmark = not wanted
    torch.backends.cudnn.deterministic = wanted


def compiled(module: "nn.Module") -> "nn.Module":
    """Return what torch.compile makes of a module; the module itself and the names of its state stay as they are.

    Nothing is compiled before the first call, which ``compiling`` should surround. What was compiled before is
    forgotten: a part that froze or thawed since looks the same to torch, for it does not look at hooks.
    """
    import torch._dynamo

    torch._dynamo.reset()
    return cast("nn.Module", torch.compile(module, dynamic=False))


@contextmanager
def compiling(setting: str) -> Iterator[None]:
    """Turn a failure of torch.compile into a ConfigError that names the setting that asked for it."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__  # then come traces and advice
        raise ConfigError(f"{setting}: torch could not compile the network here ({reason}); set it to false") from error


def peak_memory_mib(device: "torch.device") -> float:
    """Return the most memory this process has held: on the GPU if it uses one, else resident on the host."""
    if device.type == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / (2**20 if sys.platform == "darwin" else 2**10), 1)


def code_version(rooms: Sequence[str] = ()) -> str:
    """Return a hash of the pipeline's own sources, or of those in some rooms of ``lib`` alone, so that what was made
    tells which code made it."""
    root = Path(__file__).resolve().parents[2]
    seen = hashlib.sha256()
    stages = [] if rooms else sorted(root.glob("0*.py"))
    for path in stages + sorted(path for room in rooms or ("",) for path in (root / "lib" / room).rglob("*.py")):
        seen.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return seen.hexdigest()[:12]


def provenance(device: "torch.device") -> dict[str, Any]:
    """Return what a manifest records of the machine: versions, git commit, command, device."""
    import torch

    git = {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git,
        "python": platform.python_version(),
        "versions": versions(),
        "device": f"{device.type}: {gpu}",
        "threads": torch.get_num_threads(),
        "processes": world_size(),
    }


def versions() -> dict[str, str]:
    """Return package -> its version here, or "absent"."""
    found = dict.fromkeys(PACKAGES, "absent")
    for name in found:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
