"""The log's line on how busy the machine was: waiting for the loader, cores in use, a GPU that tells or does not."""

import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from lib.training import utilisation
from lib.training.utilisation import Utilisation

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose utilisation is what the list says, its last entry for ever; an entry that is an error is raised."""
    told = [0, 50, 100, 90]

    def look(index):
        percent = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(percent, Exception):
            raise percent
        return percent

    monkeypatch.setattr(torch.cuda, "utilization", look)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**20)
    monkeypatch.setattr(utilisation, "SECONDS", 0.02)
    utilisation._look.cache_clear()
    return told


def slow(count: int, seconds: float):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_the_share_of_waiting_is_that_of_the_loader():
    use = Utilisation(CPU, print)
    for _ in use.waits(slow(5, 0.1)):
        time.sleep(0.02)
    line = use.line()  # 0.5 of 0.6 seconds, where nobody else computes
    assert 0.5 < line["loader_wait"] < 0.97
    assert set(line) == {"loader_wait", "cpu_cores"} and line["cpu_cores"] < 0.7


def test_a_loop_that_computes_waits_for_nothing_and_keeps_a_core_busy():
    use = Utilisation(CPU, print)
    for _ in use.waits(range(5)):
        until = time.process_time() + 0.04
        while time.process_time() < until:
            pass
    line = use.line()
    assert line["loader_wait"] < 0.05 and line["cpu_cores"] > 0.1


def test_batches_pass_unchanged_from_a_loader_with_processes():
    loader = DataLoader(list(range(12)), batch_size=4, num_workers=2)
    assert [batch.tolist() for batch in Utilisation(CPU, print).waits(loader)] == [[0, 1, 2, 3], [4, 5, 6, 7],
                                                                                  [8, 9, 10, 11]]  # fmt: skip


def test_a_gpu_is_looked_at_while_the_epoch_runs(gpu):
    use = Utilisation(GPU, print)  # takes the first, to see whether it tells
    gpu[:] = [0, 50, 100, 90]
    for _ in use.waits(slow(4, 0.05)):
        pass
    line = use.line()
    assert len(use._percent) >= 5 and use._percent[:3] == [0, 50, 100]
    assert line["gpu_percent"]["peak"] == 100
    assert line["gpu_percent"]["idle"] == pytest.approx(1 / len(use._percent), abs=1e-4)
    assert line["gpu_percent"]["mean"] == pytest.approx(sum(use._percent) / len(use._percent), abs=0.05)
    assert line["gpu_memory_mib"] == 3.0


def test_the_thread_ends_with_the_epoch_also_when_it_is_broken_off(gpu):
    for use in (Utilisation(GPU, print), Utilisation(GPU, print)):
        with pytest.raises(KeyboardInterrupt):
            for _ in use.waits(slow(3, 0.01)):
                raise KeyboardInterrupt
        assert use._ended.wait(1)
    time.sleep(0.1)
    assert "utilisation" not in {thread.name for thread in threading.enumerate()}


def test_a_short_epoch_has_one_look(gpu, monkeypatch):
    monkeypatch.setattr(utilisation, "SECONDS", 60)
    use = Utilisation(GPU, print)
    list(use.waits(range(2)))
    assert len(use._percent) == 0 and use.line()["gpu_percent"]["mean"] == 50


@pytest.mark.parametrize(("fault", "sentence"), [
    (ModuleNotFoundError("nvidia-ml-py"), "pip install -r requirements-gpu.txt"),
    (RuntimeError("Not Supported"), "its driver does not tell it (Not Supported)"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said_once_and_left_out(gpu, fault, sentence):
    gpu[:] = [fault]
    said = []
    for _ in range(3):
        use = Utilisation(GPU, said.append)
        list(use.waits(range(2)))
        line = use.line()
        assert "gpu_percent" not in line and line["gpu_memory_mib"] == 3.0
    (said_once,) = said
    assert sentence in said_once


def test_a_driver_that_falls_silent_does_not_end_training(gpu):
    use = Utilisation(GPU, print)
    gpu[:] = [40, RuntimeError("GPU is lost")]
    for _ in use.waits(slow(3, 0.05)):
        pass
    assert use.line()["gpu_percent"] == {"mean": 40, "peak": 40, "idle": 0}
