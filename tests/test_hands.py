"""Scenes that several machines count: every call is answered once, whoever is lost, late, odd or not there at all.

The workers are fakes in threads, but for the last tests, which have a Dask cluster.
"""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import closing
from pathlib import Path

import cv2
import pytest
from conftest import TINY
from foretold import foretell, opened
from test_cores import BUILDINGS

from lib.choose import evidence, fit
from lib.cluster import crew, hand, heap, relay
from lib.cluster import hands as module
from lib.cluster.crew import DaskCrew, Helper
from lib.cluster.hands import Hands, helped
from lib.cluster.heap import Heap
from lib.errors import DataError
from lib.run import cores

HOST = threading.local()


# ---- the heap of calls --------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_every_call_is_answered_once_whoever_takes_it_and_whatever_comes_back(seed):
    rng, calls = random.Random(seed), Heap([("call", n) for n in range(30)], (0.0, 0.0) if seed % 2 else (1e9, 0.0))
    out, taken, answers = [], [], []
    for _ in range(10000):
        if not calls.open:
            break
        step = rng.randrange(6)
        if step == 0:
            out.append(calls.take(rng.randrange(1, 5)))
        elif step == 1 and (number := calls.take_here()) is not None:
            taken.append(number)
        elif step == 2 and taken:
            number = taken.pop(rng.randrange(len(taken)))
            answers += [number] if calls.answer(number) else []
        elif step == 3 and out:
            calls.answer_from_afar([(number, number) for number in out.pop(rng.randrange(len(out)))])
        elif step == 4 and out:
            calls.back(out.pop(rng.randrange(len(out))), here=rng.random() < 0.5)
        answers += calls.arrived()
    assert not calls.open and sorted(answers) == list(range(30))


# ---- a pass with fakes --------------------------------------------------------------------------------
class Here:
    """A pool of one process, this one, which is slow enough for others to help."""

    def __init__(self, seconds: float = 0.002):
        self.held, self.seconds, self.made = None, seconds, 0

    def __len__(self) -> int:
        return 1

    def start(self) -> None:
        pass

    def each(self, method, held):
        self.held = held
        return [None]

    def share(self, method, calls):
        for function, *arguments in calls:
            time.sleep(self.seconds)
            HOST.name = "here"
            self.made += 1
            yield function(self.held, *arguments)


class Sent:
    """A batch that a fake worker answers in a thread, unless it is silent."""

    def __init__(self, work):
        self.found, self.cancelled = None, False
        if work is not None:
            threading.Thread(target=lambda: setattr(self, "found", work()), daemon=True).start()

    def done(self):
        return self.found is not None

    def answer(self):
        return self.found

    def cancel(self):
        self.cancelled = True


class Fakes:
    """Workers by name: "ok", "silent", "lost", or a pair that ``relay.serve`` would return instead of an answer."""

    def __init__(self, how: dict[str, object], processes: int = 1, threads: int = 1):
        self.how, self.said, self.held = how, [], {}
        self.places = {name: Helper(name, threads, processes) for name in how}
        self.sent: list[Sent] = []
        self.got: list[str] = []
        """The worker of each object that was sent."""

    def look(self):
        said, self.said = self.said, []
        return said

    def free(self):
        return {name: place.threads for name, place in self.places.items()}

    def send(self, place, batch):
        how = self.how[place.address]
        if batch.held:
            self.got.append(place.address)
            self.held[place.address] = pickle.loads(pickle.loads(batch.held)[1])
        if how == "lost":
            self.places.pop(place.address, None)
            self.said.append(f"worker {place.address} is gone")

        def work():
            if how != "ok":
                return how
            HOST.name = place.address
            time.sleep(0.001)
            own = self.held[place.address]
            return "answer", pickle.dumps([hand.numbered(own, *call) for call in pickle.loads(batch.calls)])

        self.sent.append(Sent(None if how in ("silent", "lost") else work))
        return self.sent[-1]

    def close(self):
        pass


def find(held, number):
    return held + number, HOST.name


def odd(held, number):
    if number == 7:
        raise DataError("scene 7: no label")
    return number


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.001)
    monkeypatch.setattr(module, "NEWS", 0.002)
    monkeypatch.setattr(heap, "LOOK", 0.005)


def shared(workers: Fakes, function=find, count: int = 60, scenes: int = 9999, here: Here | None = None):
    """Return what was found, who made how many calls, and what was said."""
    said: list[str] = []
    with Hands(here or Here(), lambda: workers, scenes, said.append) as hands:
        with closing(cores.share(hands, 100, function, ((n,) for n in range(count)))) as found:
            answers = list(found)
    return answers, said


def test_all_take_part_and_each_worker_gets_the_object_once():
    workers = Fakes({"a": "ok", "b": "ok"}, processes=2)
    answers, said = shared(workers)
    assert sorted(number for number, _ in answers) == list(range(100, 160))
    assert {host for _, host in answers} == {"here", "a", "b"} and sorted(workers.got) == ["a", "b"]
    assert said == ["counting: 1 process here and up to 4 of 2 workers"]


def test_another_object_is_sent_anew_and_the_same_one_is_not():
    workers, said = Fakes({"a": "ok"}), []
    with Hands(Here(), lambda: workers, 9999, said.append) as hands:
        for held in (100, 100, 500):
            found = list(cores.share(hands, held, find, ((n,) for n in range(40))))
            assert sorted(number for number, _ in found) == list(range(held, held + 40))
    assert workers.got == ["a", "a"]


def test_what_a_lost_worker_had_goes_to_others():
    workers = Fakes({"a": "lost", "b": "ok"}, processes=3)
    answers, said = shared(workers)
    assert sorted(number for number, _ in answers) == list(range(100, 160))
    assert "worker a is gone" in said and {host for _, host in answers} == {"here", "b"}


@pytest.mark.parametrize("how", [
    ("raised", "FileNotFoundError: x.tif"),
    ("died", "its process ended with exit code -9"),
    ("differs", "numpy is 1 there and 2 here"),
])  # fmt: skip
def test_a_worker_that_fails_helps_no_more_and_says_why(how):
    workers = Fakes({"a": how})
    answers, said = shared(workers)
    assert sorted(number for number, _ in answers) == list(range(100, 160)) and len(workers.sent) == 1
    assert said[1:] == [f"worker a does not help with the scenes: {how[1]}; what it had is counted here"]


def test_an_error_of_the_data_is_raised_as_itself_and_nothing_stays_out():
    workers = Fakes({"a": ("raised", "DataError: scene 7: no label"), "b": "silent"}, processes=20)
    with pytest.raises(DataError, match="scene 7: no label"):
        shared(workers, odd, here=Here(0.01))
    assert workers.sent and all(sent.cancelled for sent in workers.sent)


def test_an_answer_that_stays_away_is_found_here(monkeypatch):
    workers, here = Fakes({"a": "silent"}, processes=5), Here()
    monkeypatch.setattr(module, "Heap", lambda calls: Heap(calls, (0.05, 3.0)))
    answers, _ = shared(workers, here=here)
    assert [sorted(answers), here.made] == [[(n, "here") for n in range(100, 160)], 60]
    assert all(sent.cancelled for sent in workers.sent)


def test_a_worker_that_does_not_have_the_object_gets_it_again_and_no_call_goes_out_a_third_time():
    workers = Fakes({"a": ("missing", "")})
    answers, said = shared(workers, here=Here(0.005))
    assert len(answers) == 60 and len(said) == 1 and 1 < len(workers.got) == len(workers.sent) <= 120


def test_without_a_scheduler_or_when_it_goes_the_pass_goes_on_here():
    def refuse():
        raise OSError("expected a Dask scheduler there, found none")

    said: list[str] = []
    with Hands(Here(), refuse, 9999, said.append) as hands:
        for _ in range(2):
            assert len(list(cores.share(hands, 0, find, ((n,) for n in range(5))))) == 5
    assert said == ["expected a Dask scheduler there, found none; the scenes are counted on this machine alone"]

    workers = Fakes({"a": "silent"}, processes=4)
    workers.free = refuse
    answers, said = shared(workers)
    assert len(answers) == 60 and said[1:] == [
        "expected a Dask scheduler there, found none; the scenes are counted on this machine alone"]  # fmt: skip


def test_few_scenes_are_counted_here_and_no_more_workers_help_than_have_enough():
    said: list[str] = []
    with helped(Here(), "tcp://nowhere:1", 63, said.append) as pool:
        assert isinstance(pool, Here)
    assert said == ["counting: 1 process here; 63 scenes are too few for more, 32 for each"]
    workers = Fakes({"a": "ok", "b": "ok", "c": "ok"})
    answers, said = shared(workers, scenes=3 * 32 + 1)
    assert {host for _, host in answers} <= {"here", "a", "b"} and said == [
        "counting: 1 process here and up to 2 of 2 workers"]  # fmt: skip


def test_other_versions_are_a_sentence():
    ours = hand.versions()
    assert hand.differs(ours) == ""
    assert hand.differs(ours | {"numpy": "1.0"}) == f"numpy is {ours['numpy']} there and 1.0 here"
    assert "the hash of the code is" in hand.differs(ours | {"the hash of the code": "0"})


def until(happened, seconds: float = 20.0):
    """Wait for something; returns it."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
    return found


# ---- who may help -------------------------------------------------------------------------------------
class Client:
    """A Dask client that knows workers by name: threads, Python, numpy, and what ``relay.seen`` tells of each."""

    status = "running"

    def __init__(self, **workers):
        self.workers, self.asked = workers, []

    def nthreads(self):
        return {name: threads for name, (threads, *_) in self.workers.items()}

    def get_versions(self):
        own = {"host": {"python": f"{hand.versions()['Python']}.final.0"}}
        told = {
            name: {"host": {"python": f"{python}.final.0"}, "packages": {"numpy": numpy}}
            for name, (_, python, numpy, _) in self.workers.items()
        }
        return {"client": own, "workers": told}

    def run(self, function, workers, on_error):
        self.asked += workers
        return {name: self.workers[name][3] for name in workers}

    def processing(self):
        return {name: ["a unit"] for name in self.workers}


def test_workers_share_the_cores_of_their_machine_and_odd_ones_are_named_once(monkeypatch):
    pytest.importorskip("cloudpickle")
    ours = hand.versions()
    own = relay.seen(str(module.__file__), lambda: 1)["place"]

    def worker(place, threads=1, python=ours["Python"], numpy=ours["numpy"], cores=16, there=True):
        return threads, python, numpy, {"place": place, "cores": cores, "there": there}

    odd = {"e": worker("old", python="3.9.1"), "f": worker("odd", numpy="1.0"), "g": worker("empty", there=False)}
    good = {"a": worker("big"), "b": worker("big", threads=3), "c": worker("small", threads=2, cores=1)}
    client = Client(**good, d=worker(own), **odd)
    monkeypatch.setattr(crew, "connect", lambda address, name: client)
    found = DaskCrew("tcp://head:8786")
    said = found.look()
    assert found.places == {"a": Helper("a", 1, 4), "b": Helper("b", 3, 4), "c": Helper("c", 2, 1)}
    assert found.free() == {"a": 0, "b": 2, "c": 1}
    refused = "worker {} does not help with the scenes: "
    assert said == [
        f"{refused.format('e')}Python is 3.9.1 there and {ours['Python']} here",
        f"{refused.format('f')}numpy is 1.0 there and {ours['numpy']} here",
        f"{refused.format('g')}expected the project at {crew.ROOT} there, found nothing",
    ]
    assert "e" not in client.asked and "f" not in client.asked, "no code of ours is sent to another Python"
    del client.workers["b"]
    assert found.look() == ["worker b is gone; its scenes go to others"]
    assert found.places == {"a": Helper("a", 1, 16), "c": Helper("c", 2, 1)} and client.asked.count("a") == 1
    client.status = "closed"
    with pytest.raises(OSError, match="tcp://head:8786 no longer answers"):
        found.look()


# ---- what a worker does -------------------------------------------------------------------------------
FAKE = """
import os, pickle, sys, time

def read():
    return sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "big"))

def write(answer):
    message = pickle.dumps(answer)
    sys.stdout.buffer.write(len(message).to_bytes(8, "big") + message)
    sys.stdout.buffer.flush()

while message := read():
    kind, payload = pickle.loads(message)
    if payload == b"long":
        time.sleep(60)
    if payload == b"odd":
        sys.exit("no memory")
    write(("ready", None) if kind == "hold" else ("answer", os.getpid()))
    if payload == b"last":
        os._exit(0)
"""


class Worker:
    """A Dask worker as far as the relay looks at it."""

    def __init__(self):
        self.state = types.SimpleNamespace(tasks={"key": types.SimpleNamespace(state="executing")})

    def get_current_task(self):
        return "key"


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def test_a_worker_keeps_a_process_for_a_stage_and_ends_it_when_nobody_waits(tmp_path, monkeypatch):
    (tmp_path / "lib" / "cluster").mkdir(parents=True)
    (tmp_path / "lib" / "cluster" / "hand.py").write_text(FAKE)
    worker = Worker()
    monkeypatch.setitem(sys.modules, "distributed", types.SimpleNamespace(get_worker=lambda: worker))
    monkeypatch.setattr(relay, "LOOK", 0.01)
    lending = relay.Lending("session", str(tmp_path), str(tmp_path), 1)

    def served(calls: bytes, token: str = "a", held: bytes = b""):
        return relay.serve(lending, relay.Batch(token, calls, held))

    assert served(b"few") == ("missing", "the worker has not got what the calls look at")
    kind, first = served(b"few", held=b"object")
    assert kind == "answer" and served(b"few") == (kind, first) == served(b"last", token="b", held=b"another")
    until(lambda: worker._lent["session"].idle[0].child.poll() is not None)
    kind, second = served(b"few", token="c", held=b"a third")  # the first was silent and has ended
    assert kind == "answer" and second != first
    assert served(b"odd", token="c") == ("died", "its process ended with exit code 1: no memory") and gone(second)
    _, third = served(b"few", token="c")
    worker.state.tasks["key"].state = "cancelled"
    assert served(b"long", token="c")[0] == "stopped" and gone(third)
    worker.state.tasks["key"].state = "executing"
    _, last = served(b"few", token="c")
    lending, before = relay.Lending("another", str(tmp_path), str(tmp_path), 1), worker._lent["session"]
    assert served(b"last", held=b"object")[0] == "answer" and worker._lent.keys() == {"session", "another"}
    until(lambda: worker._lent["another"].idle[0].child.poll() is not None)
    lending = relay.Lending("session", str(tmp_path), str(tmp_path), 1)
    assert served(b"few", token="c") == ("answer", last) and worker._lent == {"session": before}
    relay.end("session", worker)
    assert gone(last) and not worker._lent


# ---- on Dask ------------------------------------------------------------------------------------------
class Elsewhere(DaskCrew):
    """Takes the workers of this machine for those of another one."""

    def __init__(self, address: str):
        super().__init__(address)
        self._here = {"place": "elsewhere"}


NAP = """
import os, time

def nap(held, number):
    open(f"{os.getpid()}.naps", "w").close()
    time.sleep(60)
"""
CLIENT = """
import sys, time
sys.path[:0] = sys.argv[2:]
import napping
from lib.cluster.hands import DaskCrew, Hands
from lib.run import cores

class Crew(DaskCrew):
    def look(self):
        self._here = {"place": "elsewhere"}
        return super().look()

class Here:
    start = lambda self: None
    each = lambda self, method, held: None
    __len__ = lambda self: 1
    def share(self, method, calls):
        time.sleep(60)
        yield

with Hands(Here(), lambda: Crew(sys.argv[1]), 9999, print) as hands:
    list(cores.share(hands, 1, napping.nap, [(n,) for n in range(9)]))
"""


@pytest.mark.slow
def test_on_dask_the_bytes_are_those_of_one_machine_though_workers_and_clients_are_killed(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)]))
    monkeypatch.setattr(evidence, "AT_ONCE", 1)
    cv2.setNumThreads(1)
    run = opened(tmp_path, {**BUILDINGS, "search": TINY["search"], "blend": {}})
    foretell(run)
    fit.choose(run, tmp_path)
    alone = (tmp_path / "decode.json").read_bytes()
    (tmp_path / "decode.json").unlink()

    said: list[str] = []
    kinds: list[str] = []
    here, answer = Here(5.0), crew.SentByDask.answer  # slow, until others have begun

    def noted(self):
        kinds.append((found := answer(self))[0])
        if kinds.count("answer") == 2:
            os.kill(pids[min(pids)], signal.SIGKILL)
            here.seconds = 0.05
        return found

    monkeypatch.setattr(crew.SentByDask, "answer", noted)
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**how) as cluster:
        address = cluster.scheduler_address
        with distributed.Client(address, set_as_default=False) as client:
            pids = client.run(os.getpid)
        with Hands(here, lambda: Elsewhere(address), 9999, said.append) as hands:
            fit.choose(run, tmp_path, hands)
        assert (tmp_path / "decode.json").read_bytes() == alone and kinds.count("answer") > 2
        assert said[0] == "counting: 1 process here and up to 2 of 2 workers"
        assert f"worker {min(pids)} is gone; its scenes go to others" in said

        (tmp_path / "napping.py").write_text(NAP)
        client = subprocess.Popen([sys.executable, "-c", CLIENT, address, *sys.path])
        until(lambda: len(list(tmp_path.glob("*.naps"))) == 2)
        client.kill()
        client.wait()
        for path in tmp_path.glob("*.naps"):
            until(lambda path=path: not Path(f"/proc/{path.stem}").exists())
