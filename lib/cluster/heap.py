"""The calls of a pass that several machines share: each is answered once, whoever makes it and whoever is lost."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

LOOK = 0.25
"""Seconds that are waited at once."""
PATIENCE = (15.0, 3.0)
"""An answer is late after so many seconds, and so many times what the slowest took that came."""


class Heap:
    """The calls of one pass: which wait, which are out, which are answered. Several threads use it."""

    def __init__(self, calls: Iterable[tuple], patience: tuple[float, float] = PATIENCE):
        self.calls, self.patience = list(calls), patience
        self.change = threading.Condition()
        self.waiting = deque(range(len(self.calls)))
        self.own: deque[int] = deque()
        """Calls that only this machine may make."""
        self.returned: set[int] = set()
        """Calls that have come back from others."""
        self.out: dict[int, float] = {}
        """Call -> since when it is out with others."""
        self.open = set(self.waiting)
        """Calls without an answer."""
        self.answers: deque[Any] = deque()
        """What others have found and nobody has taken yet."""
        self.slowest = 0.0

    def take(self, count: int) -> list[int]:
        """Take calls for another machine."""
        with self.change:
            taken = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
            self.out |= dict.fromkeys(taken, time.monotonic())
            return taken

    def take_here(self) -> int | None:
        """Take a call for this machine: one that waits, or one whose answer is late; None where there is none."""
        with self.change:
            for heap in (self.own, self.waiting):
                while heap:
                    if (number := heap.popleft()) in self.open:
                        return number
            least, times = self.patience
            late = time.monotonic() - max(least, times * self.slowest)
            overdue = next((number for number, since in self.out.items() if since < late), None)
            if overdue is not None:
                del self.out[overdue]
            return overdue

    def back(self, numbers: Iterable[int], here: bool = False) -> None:
        """Put calls back that have no answer. here: for this machine alone, which a call is that comes back again."""
        with self.change:
            for number in numbers:
                if self.out.pop(number, None) is not None:
                    (self.own if here or number in self.returned else self.waiting).appendleft(number)
                    self.returned.add(number)
            self.change.notify_all()

    def answer(self, number: int) -> bool:
        """Note that a call was answered here; False where it has an answer already."""
        with self.change:
            if number not in self.open:
                return False
            self.open.discard(number)
            return True

    def answer_from_afar(self, found: Iterable[tuple[int, Any]]) -> None:
        """Note the answers to a batch."""
        with self.change:
            for number, result in found:
                if (since := self.out.pop(number, None)) is not None:
                    self.slowest = max(self.slowest, time.monotonic() - since)
                if number in self.open:
                    self.open.discard(number)
                    self.answers.append(result)
            self.change.notify_all()

    def arrived(self) -> Iterator[Any]:
        """Yield what others have found since this was asked last."""
        while True:
            with self.change:
                if not self.answers:
                    return
                found = self.answers.popleft()
            yield found

    def wait(self) -> None:
        """Wait a moment for what others find."""
        with self.change:
            if self.open and not self.answers and not self.own and not self.waiting:
                self.change.wait(LOOK)
