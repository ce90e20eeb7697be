"""Where the time of a stage goes: seconds of wall time under a few names, which the unit's manifest keeps as ``clock``.

``with clock("read"): ...`` counts what happens inside. What is used inside of another counts under the inner name
alone, so the names of one thread add up to at most its wall time. Threads add to the same sums; together they may count
more than the wall time. A device is never waited for: work that a GPU still does counts where the host waits for it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("read", "augment", "forward", "backward", "optimizer", "validate", "decode", "store", "wait")
"""What time may go to, in the order in which it is shown. ``wait``: for another process or a queue."""


class Clock:
    """Sums of seconds by name. Any thread may use it; do not hold one of its ``with`` blocks over a ``yield``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}
        self._running = threading.local()  # of each thread: the names that it is within, and since when it counts

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the seconds inside under a name of ``NAMES``; ValueError for another one."""
        _known(name)
        within: list[str] = self._running.__dict__.setdefault("within", [])
        self._count(within)
        within.append(name)
        try:
            yield
        finally:
            self._count(within)
            within.pop()

    def _count(self, within: list[str]) -> None:
        """Give the time since the last change to the innermost name that this thread is within."""
        now = time.perf_counter()
        if within:
            self.add(within[-1], now - self._running.since)
        self._running.since = now

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere, as in a loader's process; ValueError for an unknown name."""
        _known(name)
        with self._lock:
            self._sums[name] = self._sums.get(name, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by name, rounded to milliseconds, in the order of ``NAMES``; only names that were used.

        A block that is still open counts up to where the last one began or ended inside of it.
        """
        with self._lock:
            return {name: round(self._sums[name], 3) for name in NAMES if name in self._sums}


def _known(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"clock: expected one of {', '.join(NAMES)}, got {name!r}")
