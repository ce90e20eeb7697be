"""Workers: every call once, errors and deaths come back, the next call gets its own answer, which device each has."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lib.errors import ArtifactError, ConfigError, DataError
from lib.run import executor as workers
from lib.run import runtime
from lib.run.executor import Pool

CPU = torch.device("cpu")


class Odd(Exception):
    """Cannot be pickled back."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Adder:
    """Counts what it was asked in its own process."""

    def __init__(self, device):
        self.device, self.calls = device, 0

    def add(self, a, b, wait=0.0):
        time.sleep(wait)
        self.calls += 1
        return a + b, os.getpid(), self.calls

    def threads(self):
        return torch.get_num_threads()

    def fail(self, error):
        raise error

    def odd_error(self):
        raise Odd("x", "y")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=[1, 2])
def pool(request):
    with Pool(Adder, [CPU] * request.param, "fork") as made:
        yield made


@pytest.fixture
def two():
    with Pool(Adder, [CPU] * 2, "fork") as made:
        yield made


def test_every_call_is_answered_once_and_every_worker_takes_part(pool):
    found = list(pool.share("add", ((n, 1, 0.01) for n in range(20))))
    assert sorted(total for total, _, _ in found) == list(range(1, 21))
    processes = {process for _, process, _ in found}
    assert len(processes) == len(pool) and (os.getpid() in processes) == (len(pool) == 1)
    assert sum(max(n for _, p, n in found if p == process) for process in processes) == 20, "the object stays"
    assert {process for _, process, _ in pool.each("add", 1, 2)} == processes
    assert list(pool.share("add", [])) == []


def test_an_error_there_is_raised_here_and_the_next_call_gets_its_own_answer(pool):
    for _ in range(3):
        with pytest.raises(DataError, match="scene 7: gone"):
            list(pool.share("fail", [(DataError("scene 7: gone"),)] * 5))
        with pytest.raises(DataError):
            pool.each("fail", DataError("again"))
        assert sorted(total for total, _, _ in pool.share("add", [(1, 1), (2, 2), (3, 3)])) == [2, 4, 6]


def test_work_that_is_given_up_leaves_nothing_behind(pool):
    with pytest.raises(KeyError), closing(pool.share("add", ((n, 100, 0.02) for n in range(9)))) as answers:
        for _ in answers:
            raise KeyError
    assert {total for total, _, _ in pool.each("add", 1, 1)} == {2}


def test_an_error_that_cannot_be_sent_comes_by_name_and_words(two):
    with pytest.raises(RuntimeError, match="Odd: x and y"):
        two.each("odd_error")


def test_a_worker_that_is_killed_is_one_sentence_and_no_wait(two):
    with pytest.raises(ArtifactError, match=r"worker . of 2 on cpu died \(exit code -9\)"):
        list(two.share("die", [()]))
    two.close()
    assert len(two.each("add", 1, 2)) == 2, "closed, it may be used again"


def test_workers_have_as_many_threads_as_their_parent(two, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    two.start()
    monkeypatch.undo()
    assert two.each("threads") == [3, 3]


PARENT = """
import os, signal, sys, torch
sys.path[:0] = {path!r}
from test_executor import Adder, Pool
if __name__ == "__main__":
    pool = Pool(Adder, [torch.device("cpu")] * 2, "fork")
    print(*[process for _, process, _ in pool.each("add", 1, 2)], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    here = Path(__file__).resolve().parent
    code = PARENT.format(path=[str(here), str(here.parent)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    left = [int(pid) for pid in done.stdout.split()]
    assert len(left) == 2 and done.returncode == -signal.SIGKILL
    for _ in range(100):
        left = [pid for pid in left if alive(pid)]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"{left} are still there")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- devices ------------------------------------------------------------------------------------------
@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs, the second of which this torch has no code for."""
    capabilities = [(7, 5), (6, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


def test_there_is_a_worker_for_each_gpu_that_can_be_used(gpus, monkeypatch):
    own = torch.device("cuda", 0)
    assert workers.devices(None, own) == [torch.device("cuda", 0), torch.device("cuda", 2)]
    assert [device.index for device in workers.devices(3, own)] == [0, 2, 0]
    assert workers.devices(1, own) == [own]
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    assert workers.devices(None, own) == [own], "torchrun has divided the GPUs already"


def test_there_is_one_worker_on_a_cpu_unless_more_are_asked_for():
    assert workers.devices(None, CPU) == [CPU] and workers.devices(2, CPU) == [CPU, CPU]


def test_forked_workers_with_a_gpu_and_unknown_starts_are_refused(gpus):
    both = workers.devices(None, torch.device("cuda", 0))
    with pytest.raises(ConfigError, match="CUDA does not work in forked processes; choose spawn"):
        Pool(Adder, both, "fork")
    with pytest.raises(ConfigError, match="expected spawn or fork, got 'thread'"):
        Pool(Adder, [CPU], "thread")
    Pool(Adder, both, "spawn")
