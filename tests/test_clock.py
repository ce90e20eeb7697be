"""Each second counts under one name, in every thread."""

import threading

import pytest

from lib.run import clock as module
from lib.run.clock import Clock


@pytest.fixture
def hand(monkeypatch):
    """A hand to move the time by, in seconds; each thread has its own time."""
    times = threading.local()

    def move(seconds):
        times.now = getattr(times, "now", 100.0) + seconds

    monkeypatch.setattr(module.time, "perf_counter", lambda: getattr(times, "now", 100.0))
    return move


def test_the_inner_name_alone_counts_and_what_is_outside_of_all_names_counts_nowhere(hand):
    clock = Clock()
    hand(1)
    with clock("read"):
        hand(2)
        with clock("store"):
            hand(4)
            with clock("read"):
                hand(8)
            hand(16)
        hand(32)
    hand(64)
    with clock("decode"):
        hand(0.0004)
    assert clock.seconds == {"read": 2 + 8 + 32, "decode": 0.0, "store": 4 + 16}
    assert list(clock.seconds) == ["read", "decode", "store"]  # the order in which tables show them


def test_time_counts_where_work_fails_and_the_outer_name_goes_on(hand):
    clock = Clock()
    with clock("validate"):
        with pytest.raises(RuntimeError):
            with clock("forward"):
                hand(3)
                raise RuntimeError
        hand(5)
    assert clock.seconds == {"forward": 3, "validate": 5}


def test_threads_do_not_disturb_each_other_and_lose_nothing(hand):
    clock, within = Clock(), threading.Barrier(8)

    def work():
        with clock("wait"):
            within.wait()  # all are inside at once
            for _ in range(200):
                with clock("read"):
                    hand(0.5)
                hand(0.25)
                clock.add("augment", 0.125)

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert clock.seconds == {"read": 800.0, "augment": 200.0, "wait": 400.0}


def test_seconds_are_whole_milliseconds_of_real_time_and_other_names_are_refused():
    clock = Clock()
    with clock("optimizer"):
        threading.Event().wait(0.003)
    assert clock.seconds["optimizer"] >= 0.003 and round(clock.seconds["optimizer"], 3) == clock.seconds["optimizer"]
    for use in (lambda: clock("reed").__enter__(), lambda: clock.add("reed", 1)):
        with pytest.raises(ValueError, match=r"expected one of read, augment, .*, wait, got 'reed'"):
            use()
