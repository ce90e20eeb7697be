"""Reading ahead and writing behind: what goes on at the same time, in which order, and how much of it. Nothing here is
timed: threads wait for one another's events, so a step that came one after the other would wait for ever (TIMEOUT)."""

import threading
import time

import pytest

from lib.inference import pipeline
from lib.inference.pipeline import AHEAD, BEHIND, Admission, Closed, Pipeline, Steps

TIMEOUT = 20


class Stations:
    """Steps that note what begins and ends, and wait where a test holds them up."""

    def __init__(self, weights=(), hold=()):
        """``hold``: names of the moments, such as "write 0", that wait until ``release`` names them."""
        self.lock, self.log, self.inside, self.most = threading.Lock(), [], set(), 0
        self.begun: dict[str, threading.Event] = {}
        self.held = {name: threading.Event() for name in hold}
        self.weights = dict(enumerate(weights))

    def event(self, name: str) -> threading.Event:
        with self.lock:
            return self.begun.setdefault(name, threading.Event())

    def note(self, name: str) -> None:
        with self.lock:
            self.log.append(name)
        self.event(name).set()
        if name in self.held:
            assert self.held[name].wait(TIMEOUT), f"{name} was never released"

    def read(self, item: int) -> int:
        with self.lock:
            self.inside.add(item)
            self.most = max(self.most, len(self.inside))
        self.note(f"read {item}")
        return item

    def compute(self, item: int) -> int:
        self.note(f"compute {item}")
        return item

    def write(self, item: int) -> int:
        self.note(f"write {item}")
        with self.lock:
            self.inside.discard(item)
        return 10 * item

    def pipeline(self, **more) -> Pipeline:
        return Pipeline(Steps(self.read, self.compute, self.write, self.weights.get if self.weights else lambda _: 0,
                              lambda item: self.weights.get(item, 0)), **more)  # fmt: skip


def through(line: Pipeline, items) -> list:
    """Pass items through; returns all results."""
    results = []
    for item in items:
        results += line.feed(item)
    while (more := line.drain()) is not None:
        results += more
    line.close()
    return results


@pytest.mark.parametrize("count", [0, 1, 2, 3, 25])
def test_all_items_come_out_in_their_order(count):
    stations = Stations()
    assert through(stations.pipeline(), range(count)) == [10 * item for item in range(count)]
    for step in ("read", "compute", "write"):
        assert sorted(name for name in stations.log if name.startswith(step)) == sorted(
            f"{step} {item}" for item in range(count)
        )


def test_the_next_item_is_read_and_the_last_one_written_while_one_is_computed():
    stations = Stations(hold=["write 0"])
    own = stations.compute

    def compute(item):
        if item == 1:  # neither would ever come if steps took turns
            assert stations.event("read 2").wait(TIMEOUT) and stations.event("write 0").wait(TIMEOUT)
            stations.held["write 0"].set()
        return own(item)

    stations.compute = compute
    assert through(stations.pipeline(), range(4)) == [0, 10, 20, 30]


def test_while_a_writer_is_blocked_the_network_goes_on_up_to_the_bound_and_no_further():
    stations = Stations(hold=["write 0"])
    line, fed = stations.pipeline(), []

    def feed():
        fed.extend(through(line, range(3 * BEHIND)))

    thread = threading.Thread(target=feed)
    thread.start()
    assert stations.event(f"compute {BEHIND}").wait(TIMEOUT), "one more than are written: it is computed already"
    for _ in range(50):  # were it to go on, it would have begun by now
        time.sleep(0.001)
        assert not stations.event(f"compute {BEHIND + 1}").is_set()
    stations.held["write 0"].set()
    thread.join(TIMEOUT)
    assert fed == [10 * item for item in range(3 * BEHIND)]


def test_no_more_items_are_inside_than_the_bound():
    stations = Stations()
    own = stations.read

    def slow(item):
        time.sleep(0.002)
        return own(item)

    stations.read = slow
    line = stations.pipeline()
    assert len(through(line, range(40))) == 40
    assert 1 < stations.most <= AHEAD + 1 + BEHIND
    assert 1 < line.depth <= AHEAD, "slow readers: more are read ahead"


def test_fast_readers_read_one_item_ahead():
    stations = Stations()
    own = stations.compute

    def compute(item):
        if item < 9:
            assert stations.event(f"read {item + 1}").wait(TIMEOUT)
            line._taken[0][1].result()
        return own(item)

    stations.compute = compute
    line = stations.pipeline()
    through(line, range(10))
    assert line.depth == 1


def test_items_that_fill_the_room_are_inside_alone():
    stations = Stations(weights=[5, 100, 5, 5, 60, 60])
    assert through(stations.pipeline(room=100), range(6)) == [0, 10, 20, 30, 40, 50]
    order = [name for name in stations.log if name.split()[1] in "01245" and name.split()[0] != "compute"]
    for first, then in ((0, 1), (1, 2), (4, 5)):
        assert order.index(f"write {first}") < order.index(f"read {then}"), "it waits until there is room"


def test_an_item_of_unknown_weight_counts_as_the_largest_so_far():
    admission = Admission(100)
    admission.enter(0, None)  # nothing is known: it is alone
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (admission.enter(1, None), entered.set()))
    thread.start()
    assert not entered.wait(0.02)
    admission.correct(0, 40)
    assert entered.wait(TIMEOUT), "two of 40 fit"
    thread.join()
    with pytest.raises(Closed):
        threading.Timer(0.01, admission.close).start()
        admission.enter(2, None)  # a third of 40 does not


@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_what_a_step_raises_is_raised_when_the_item_s_turn_has_come(step):
    stations = Stations()
    own = getattr(stations, step)

    def broken(item):
        if item == 3:
            raise OSError("no space")
        return own(item)

    setattr(stations, step, broken)
    line = stations.pipeline()
    with pytest.raises(OSError, match="no space"):
        through(line, range(20))
    line.close()
    written = {name for name in stations.log if name.startswith("write")}
    assert {"write 0", "write 1", "write 2"} <= written, "those before it are written when it is given up"
    count = len(stations.log)
    time.sleep(0.01)
    assert [name for name in stations.log[count:] if not name.startswith("read")] == []


def test_a_pipeline_that_is_given_up_writes_what_is_computed_and_reads_nothing_new():
    stations = Stations(weights=[100] * 9, hold=["write 0"])
    line = stations.pipeline(room=100)
    line.feed(0)
    line.feed(1)
    assert stations.event("write 0").wait(TIMEOUT)
    threading.Timer(0.01, stations.held["write 0"].set).start()
    line.close()
    assert stations.inside == set() and "read 1" not in stations.log


def test_it_tells_how_long_it_computed(monkeypatch):
    now = iter(range(1, 1000))
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: next(now))
    line = Stations().pipeline()
    through(line, range(3))
    assert line.busy == 3 and line.elapsed == 5, "three times from one tick to the next, one tick between them"
