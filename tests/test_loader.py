"""Loader processes: their death and errors are a sentence, they outlive a SIGTERM to all, memory is asked for first."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import starts
import torch
from test_fit import CLASSES, Squares, fit, network, place, train

from lib.errors import ArtifactError, DataError
from lib.run import cli, runtime
from lib.training import loader
from lib.training.fit import Fit

CPU = torch.device("cpu")


class Odd(Squares):
    """Sample 2 does what it is told, in the process that makes it."""

    def __init__(self, act):
        self.act = act

    def __getitem__(self, i):
        if i == 2 and torch.utils.data.get_worker_info() is not None:
            self.act()
        return super().__getitem__(i)


def batches(data, workers=1) -> list:
    with loader.told():
        return list(loader.loader(data, [[0], [1], [2], [3]], workers, CPU))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_of_bus_error():
    signal.signal(signal.SIGBUS, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGBUS)


def leave():
    os._exit(1)


def refuse():
    raise DataError("scene a: expected an image, found none")


def no_pages():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


def no_room():
    raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")


@pytest.mark.parametrize(("act", "kind", "words"), [
    (die, ArtifactError, r"a process that loads samples died \(SIGKILL\).* fewer train.workers$"),
    (leave, ArtifactError, r"a process that loads samples died \(exit code 1\)"),
    (refuse, DataError, "^scene a: expected an image, found none$"),
    (die_of_bus_error, ArtifactError, r"/dev/shm.* is full .*train.workers: 0"),
    (no_pages, ArtifactError, r"/dev/shm.* is full .*train.workers: 0"),
    (no_room, ArtifactError, r"/dev/shm.* is full .*train.workers: 0.*--shm-size"),
])  # fmt: skip
def test_what_goes_wrong_in_a_loader_process_is_one_sentence(act, kind, words):
    with pytest.raises(kind, match=words) as caught:
        batches(Odd(act))
    assert "\n" not in str(caught.value)


def test_an_error_of_the_network_is_not_the_loaders():
    with pytest.raises(RuntimeError, match="^shape '2' is invalid"), loader.told():
        raise RuntimeError("shape '2' is invalid for input of size 3")


# ---- shared memory ------------------------------------------------------------------------------------
SIZE = 32 * 32 * 7
"""Bytes of one sample."""


EACH, OURS = 2 * 4 * SIZE + loader.SLACK, 2 * 4 * SIZE
"""Bytes for each process, and for the batches that this one holds."""


@pytest.mark.parametrize(("free", "used"), [
    (float("inf"), 4), (1e9, 4), (OURS + 4 * EACH, 4), (OURS + 4 * EACH - 1, 3), (OURS + EACH, 1), (1 << 20, 0), (1, 0),
])  # fmt: skip
def test_there_are_as_many_processes_as_shared_memory_has_room_for(monkeypatch, free, used):
    monkeypatch.setattr(loader, "_free", lambda: free)
    count, line = loader.room_for(4, Squares(), [0, 1, 2, 3])
    assert count == used and (line == "") == (used == 4)
    assert used == 4 or f"train.workers: 4 asked, {used} used" in line


def test_the_processes_of_torchrun_share_it(monkeypatch):
    monkeypatch.setattr(loader, "_free", lambda: OURS + 4 * EACH)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader.room_for(4, Squares(), [0, 1, 2, 3])[0] == 1


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), OSError(errno.ENOSYS, "not there")])
def test_without_shared_memory_this_process_loads_the_samples(tmp_path, monkeypatch, error):
    def refused(size):
        raise error

    said = []
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", refused)
    run = Fit(network(), CLASSES, Squares(), lambda _: {"select": 0.0}, train(epochs=1, workers=3), place(tmp_path))
    run.say = said.append
    run.run()
    assert "train.workers: 3 asked, 0 used: processes cannot share memory here" in said[0]
    assert run.workers == 0 and loader.room_for(0, Squares(), [0]) == (0, "")


# ---- signals ------------------------------------------------------------------------------------------
class Slow(Squares):
    """Every sample takes a tenth of a second."""

    def __getitem__(self, i):
        time.sleep(0.1)
        return super().__getitem__(i)


@cli.exits
def steps(argv: list[str]) -> None:
    """Train in the folder ``argv[0]`` with two loader processes, and say each step."""
    section = train(epochs=30, workers=2, batch_size=2, validate_every=1)
    run = Fit(network(), CLASSES, Slow(), lambda _: {"select": 0.0}, section, place(Path(argv[0])))
    step = run.stepper.take
    run.stepper.take = lambda *a: (step(*a), print("step", flush=True))
    run.run()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_saves_the_state(tmp_path, number):
    """Job managers send SIGTERM to each process of a job: loader processes live until the main one has saved."""
    process, lines = starts.speaking(steps, [str(tmp_path)])
    with lines:
        assert [lines.readline() for _ in range(3)] == ["step\n"] * 3
        os.killpg(process.pid, number)
        started = time.monotonic()
        said = lines.read()
    process.join(60)
    assert process.exitcode == 130 and "run the same command again" in said and "Traceback" not in said
    assert (tmp_path / "last.pt").exists() and time.monotonic() - started < 20


def test_a_signal_in_the_last_validation_stops_before_the_next_unit(tmp_path):
    """What remains is the seal, which the next run does."""

    def validate(_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"select": 1.0}

    run = Fit(network(), CLASSES, Squares(), validate, train(epochs=1), place(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    again = Fit(network(), CLASSES, Squares(), lambda _: 1 / 0, train(epochs=1), place(tmp_path))
    assert again.run() == {"select": 1.0, "epoch": 1} and (tmp_path / "best.safetensors").exists()


def test_a_state_of_other_contents_is_damage(tmp_path):
    fit(tmp_path, train(epochs=1))
    torch.save({"epoch": 1, "rng": torch.get_rng_state()}, tmp_path / "last.pt")
    with pytest.raises(ArtifactError, match=r"last.pt: damaged \(KeyError.*--force"):
        fit(tmp_path, train(epochs=2))
    torch.save([1], tmp_path / "last.pt")
    with pytest.raises(ArtifactError, match=r"last.pt: damaged \(TypeError.*--force"):
        fit(tmp_path, train(epochs=2))


def test_a_loader_process_works_on_after_a_sigterm_and_ends_by_itself(monkeypatch):
    """It ends GRACE seconds later where nobody ends it before."""
    monkeypatch.setattr(runtime, "GRACE", 1)
    child = os.fork()
    if child == 0:
        runtime.leave_signals_to_parent()
        while True:
            time.sleep(0.01)
    time.sleep(0.1)
    started = time.monotonic()
    os.kill(child, signal.SIGINT)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGALRM and time.monotonic() - started > 0.5


# ---- one loader for the whole run ---------------------------------------------------------------------
class Marked(Squares):
    """Each sample leaves a file, and its id is the process that made it."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, i):
        (self.folder / str(i)).touch()
        return super().__getitem__(i) | {"id": str(os.getpid())}


def test_one_process_serves_all_epochs_and_works_on_while_the_network_is_validated(tmp_path):
    made, seen = tmp_path / "made", []
    made.mkdir()

    def validate(_):
        following, began = made / str(4 * len({epoch for epoch, _ in seen})), time.monotonic()
        while not following.exists() and time.monotonic() - began < 20:
            time.sleep(0.002)
        return {"select": float(following.exists())}

    section = train(epochs=9, workers=1, validate_every=1, patience=2)
    run = Fit(network(), CLASSES, Marked(made), validate, section, place(tmp_path))
    take = run.stepper.take
    run.stepper.take = lambda batch, epoch, *rest: (seen.append((epoch, *set(batch["id"]))), take(batch, epoch, *rest))
    best = run.run()
    assert best == {"select": 1.0, "epoch": 1} and run.epoch == 3, "patience ended it"
    assert [epoch for epoch, _ in seen] == [0, 1, 2] and len({pid for _, pid in seen}) == 1
    assert str(os.getpid()) not in {pid for _, pid in seen} and not multiprocessing.active_children()


def test_an_epoch_begins_with_the_random_numbers_that_a_loader_of_its_own_left_it(tmp_path):
    """Weights of networks with dropout stay what they were."""
    states = []
    section = train(epochs=2, workers=0)
    run = Fit(network(), CLASSES, Squares(), lambda _: {"select": 0.0}, section, place(tmp_path))
    take = run.stepper.take
    run.stepper.take = lambda *a: (states.append(torch.get_rng_state()), take(*a))
    run.run()
    for epoch, state in enumerate(states):
        torch.manual_seed(epoch)  # the seed of ``place`` is 0
        next(iter(torch.utils.data.DataLoader([0])))
        assert torch.equal(state, torch.get_rng_state())
