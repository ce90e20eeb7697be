"""Read ahead and write behind: one thread computes while others read what comes next and write what is done.

Items leave in the order in which they came. At most ``AHEAD`` of them are being read or wait to be computed, one is
computed, and at most ``BEHIND`` are being written or wait for that; together they weigh no more than ``ROOM``, but for
one that weighs more alone. What a step raises is raised by ``feed`` or ``drain`` when the item's turn has come.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING, Any, Generic, TypeVar

AHEAD = 8
"""Most items that are read before their turn, and threads that read."""
BEHIND = 4
"""Most items that are computed and not yet written, and threads that write."""
ROOM = 2 * 2**30
"""Bytes that the items inside hold together, as far as their weights tell."""

if TYPE_CHECKING:
    from lib.run.executor import Pool

Item = TypeVar("Item")
Read = TypeVar("Read")
Found = TypeVar("Found")
Result = TypeVar("Result")


class Closed(Exception):
    """The pipeline is given up while an item waits to be let in."""


class Admission:
    """Let items in, one after the other, while those inside weigh no more than ``room``; one may always be alone."""

    def __init__(self, room: int):
        self.room = room
        self._inside: dict[int, int] = {}
        self._next = self._largest = 0
        self._closed = False
        self._changed = Condition()

    def enter(self, turn: int, weight: int | None) -> None:
        """Wait until item number ``turn`` may be read. ``weight``: in bytes; None counts as the largest so far, and as
        the whole room where none was let in. Raises Closed where the gate is closed."""

        def free() -> bool:
            own = (self._largest or self.room) if weight is None else weight
            return turn == self._next and (not self._inside or sum(self._inside.values()) + own <= self.room)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or free())
            if self._closed:
                raise Closed
            self._next += 1
            self._inside[turn] = (self._largest or self.room) if weight is None else weight
            self._changed.notify_all()

    def correct(self, turn: int, weight: int) -> None:
        """Say what an item inside weighs now that it is read."""
        with self._changed:
            self._inside[turn] = weight
            self._largest = max(self._largest, weight)
            self._changed.notify_all()

    def leave(self, turn: int) -> None:
        """Let an item out; once more does nothing."""
        with self._changed:
            self._inside.pop(turn, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Send away whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True)
class Steps(Generic[Item, Read, Found, Result]):
    """What is done with an item. ``read`` and ``write`` run in threads, several at the same time; ``compute`` in the
    caller's alone. ``expect``: the bytes that an item will hold, None where nobody knows; ``weigh``: what it holds."""

    read: Callable[[Item], Read]
    compute: Callable[[Read], Found]
    write: Callable[[Found], Result]
    expect: Callable[[Item], int | None] = lambda item: 0
    weigh: Callable[[Read], int] = lambda read: 0


class Pipeline(Generic[Item, Read, Found, Result]):
    """Pass items through ``steps``, as the head of this module says; ``ahead`` and ``behind`` in place of its own.

    It begins by reading one item ahead, and twice as many each time that the computing thread had to wait for one: so a
    worker that shares items with others takes no more of them than it needs. ``busy``: seconds of computing;
    ``elapsed``: seconds from the first item's computing to the end of the last one's.
    """

    def __init__(self, steps: Steps[Item, Read, Found, Result], room: int = ROOM, ahead: int = AHEAD,
                 behind: int = BEHIND):  # fmt: skip
        self.steps, self.depth, self.busy, self.elapsed = steps, 1, 0.0, 0.0
        self._ahead, self._behind = ahead, behind
        self._admission, self._count, self._began = Admission(room), 0, 0.0
        self._readers = ThreadPoolExecutor(ahead, "read")
        self._writers = ThreadPoolExecutor(behind, "write")
        self._taken: deque[tuple[int, Future[Read]]] = deque()
        self._leaving: deque[Future[Result]] = deque()

    def feed(self, item: Item) -> list[Result]:
        """Take an item in; compute the oldest one if enough are read ahead. Returns the results that have come."""
        turn = self._count
        self._count += 1
        self._taken.append((turn, self._readers.submit(self._read, turn, item)))
        if len(self._taken) > self.depth:
            self._advance()
        return self._results(self._behind)

    def drain(self) -> list[Result] | None:
        """Compute one more of those that were taken in, or wait for the last writers; returns the results that have
        come, None where all have been returned."""
        if not self._taken and not self._leaving:
            return None
        if self._taken:
            self._advance()
        return self._results(self._behind if self._taken else 0)

    def close(self) -> None:
        """Give up what is not computed; what is, is written when this returns."""
        self._admission.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown()

    def _read(self, turn: int, item: Item) -> Read:
        self._admission.enter(turn, self.steps.expect(item))
        try:
            read = self.steps.read(item)
            self._admission.correct(turn, self.steps.weigh(read))
        except BaseException:
            self._admission.leave(turn)
            raise
        return read

    def _advance(self) -> None:
        """Compute the oldest item and hand it to a writer."""
        turn, future = self._taken.popleft()
        waits = self._began > 0 and not future.done()  # nobody can spare it the wait for the first one
        read = future.result()
        if waits:
            self.depth = min(2 * self.depth, self._ahead)
        started = time.perf_counter()
        self._began = self._began or started
        try:
            found = self.steps.compute(read)
        except BaseException:
            self._admission.leave(turn)
            raise
        ended = time.perf_counter()
        self.busy, self.elapsed = self.busy + ended - started, ended - self._began
        self._leaving.append(self._writers.submit(self._write, turn, found))

    def _write(self, turn: int, found: Found) -> Result:
        try:
            return self.steps.write(found)
        finally:
            self._admission.leave(turn)

    def _results(self, most: int) -> list[Result]:
        """Return the results that have come, in order; wait until no more than ``most`` are to come."""
        results = []
        while self._leaving and (len(self._leaving) > most or self._leaving[0].done()):
            results.append(self._leaving.popleft().result())
        return results


def through(pool: "Pool", calls: Iterable[tuple]) -> Generator[Any, None, None]:
    """Pass items through the pipelines of a pool's workers; yields what became of them.

    A worker's ``feed(*call)`` takes an item in, ``drain()`` computes the rest, both as a pipeline's; ``drop()`` gives
    it up. Where this is given up, what has been computed is written before it returns, and nothing afterwards.
    """
    try:
        with closing(pool.share("feed", calls)) as fed:
            for outcomes in fed:
                yield from outcomes
        while rest := [outcomes for outcomes in pool.each("drain") if outcomes is not None]:
            for outcomes in rest:
                yield from outcomes
    except BaseException:
        with suppress(Exception):  # the first error tells more
            pool.each("drop")
        raise
