"""Scenes that are counted by this machine's cores and, beside them, by free workers of a Dask scheduler.

``Hands`` stands where a ``Pool`` stands (``lib/run/cores.py``) and wraps one. The calls of a pass lie in one heap from
which both sides take: the pool, and a thread that sends batches to workers that have nothing else to do. So the pass
comes to its end whatever happens elsewhere:

- No worker, no scheduler, or too few scenes: the pool makes all calls.
- A worker is lost: what it had comes back into the heap.
- A worker answers with an error, or its process dies: it helps no more, and the pool makes these calls, so that an
  error of the data is raised here, as itself. Others are of that machine alone: a missing disk, too little memory.
- An answer stays away for far longer than others took: the pool makes the call too, and the first answer counts.
- This process ends: its calls are cancelled, whereupon the workers end the processes that made them.

Every call is answered once, and no result depends on who made it.
"""

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from lib.cluster.crew import Crew, DaskCrew, Helper, Sent, refusal
from lib.cluster.hand import numbered, versions
from lib.cluster.heap import Heap
from lib.cluster.relay import Batch
from lib.run.cores import ENOUGH

if TYPE_CHECKING:
    from lib.run.executor import Pool

LOOK = 0.1
"""Seconds between two looks at what was sent."""
NEWS = 2.0
"""Seconds between two looks at who is there."""


class Hands:
    """A pool of this machine and whoever of a crew is free; with the methods of ``Pool`` that ``cores.share`` calls."""

    def __init__(self, here: "Pool", crew: Callable[[], Crew], scenes: int, say: Callable[[str], None]):
        """crew: opens the connection to the others, as ``DaskCrew`` does. scenes: how many there are to share; others
        help where there are ``cores.ENOUGH`` for each process."""
        self.here, self.scenes, self.say = here, scenes, say
        self.crew: Crew | None = None
        self.odd: set[str] = set()
        """Workers that answered with an error."""
        self.lost = ""
        """Why nobody else is asked any more."""
        self._open = crew
        self._token, self._held = "", b""
        self._knows: set[tuple[str, str]] = set()
        """(worker, token of an object that it has)."""
        self._sent: list[Batched] = []
        self._heap: Heap | None = None
        self._wake, self._stop = threading.Event(), False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return the processes that share a pass; 2 or more, since others may come."""
        places = self._useful() if self.crew is not None else []
        return max(2, len(self.here) + sum(place.threads * place.processes for place in places))

    def __enter__(self) -> "Hands":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Start the processes of this machine and look who else is there."""
        self.here.start()
        if self._thread is not None or self.lost:
            return
        try:
            self.crew = self._open()
            said = self.crew.look()
        except OSError as error:
            self._give_up(str(error))
            return
        places = self._useful()
        workers = "no worker of another machine yet"
        if places:
            count = sum(place.threads * place.processes for place in places)
            workers = f"up to {count} of {len(places)} worker{'s' * (len(places) > 1)}"
        for line in (*said, f"counting: {_processes(self.here)} and {workers}"):
            self.say(line)
        self._thread = threading.Thread(target=self._work, name="hands", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let the others go. The pool of this machine stays."""
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        if self.crew is not None:
            self.crew.close()
        self.crew, self._thread = None, None

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Give every process the object that it holds from now on; others get it with their next call."""
        held = pickle.dumps(arguments[0])
        self._held = pickle.dumps((versions(), held))
        self._token = sha256(held).hexdigest()[:16]
        return self.here.each(method, *arguments)

    def share(self, method: str, calls: Iterable[tuple]) -> Generator[Any, None, None]:
        """Make all calls of ``Hand.call``; yields results as they come. Raises what a call raises here."""
        heap = Heap(calls)
        with self._helped(heap):
            while heap.open:
                own = ((numbered, number, *heap.calls[number]) for number in iter(heap.take_here, None))
                with closing(self.here.share(method, own)) as answers:
                    for number, found in answers:
                        if heap.answer(number):
                            yield found
                        yield from heap.arrived()
                heap.wait()
                yield from heap.arrived()

    @contextmanager
    def _helped(self, heap: Heap) -> Iterator[None]:
        """Let the others take from a heap meanwhile."""
        self._heap = heap
        self._wake.set()
        try:
            yield
        finally:
            self._heap = None
            self._wake.set()

    # ---- the thread that looks after the others -----------------------------------------------------------
    def _useful(self) -> list[Helper]:
        """Return the workers that are worth their start: as many as have ENOUGH scenes for each of their processes."""
        room, useful = self.scenes // ENOUGH - len(self.here), []
        assert self.crew is not None
        for place in self.crew.places.values():
            if room > 0 and place.address not in self.odd:
                useful.append(place)
                room -= place.threads * place.processes
        return useful

    def _work(self) -> None:
        """Send batches to whoever is free and take their answers, until the pool is closed."""
        looked = time.monotonic()
        while not self._stop:
            self._wake.wait(LOOK if self._heap is not None else NEWS)
            self._wake.clear()
            try:
                if time.monotonic() - looked > NEWS:
                    looked = time.monotonic()
                    self._look()
                self._collect()
                self._hand_out()
            except Exception as error:  # noqa: BLE001 whatever a network or a scheduler dies of
                self._give_up(f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error))
                return
        for one in self._sent:
            one.sent.cancel()

    def _look(self) -> None:
        """Look who is there; what workers had that are gone comes back."""
        assert self.crew is not None
        before = set(self.crew.places)
        for line in self.crew.look():
            self.say(line)
        for address in self.crew.places.keys() - before:
            self.say(f"worker {address} has come and may help with the scenes")
        self._knows = {(address, token) for address, token in self._knows if address in self.crew.places}
        for one in [one for one in self._sent if one.place.address not in self.crew.places]:
            self._drop(one)

    def _collect(self) -> None:
        """Take the answers that have come, and call back what nobody waits for any more."""
        for one in list(self._sent):
            if one.heap is not self._heap:
                self._drop(one)
            elif one.sent.done():
                kind, found = one.sent.answer()
                if kind == "answer":
                    self._knows.add((one.place.address, one.token))
                    one.heap.answer_from_afar(pickle.loads(found))
                elif kind == "missing":
                    self._knows.discard((one.place.address, one.token))
                elif kind not in ("lost", "stopped"):
                    self.odd.add(one.place.address)
                    self.say(refusal(one.place.address, f"{found}; what it had is counted here"))
                self._drop(one, here=kind in ("raised", "died"))

    def _drop(self, one: "Batched", here: bool = False) -> None:
        """Forget a batch; calls of it without an answer come back."""
        self._sent.remove(one)
        one.sent.cancel()
        one.heap.back(one.numbers, here)

    def _hand_out(self) -> None:
        """Send batches to all workers that do nothing else, as long as calls wait."""
        heap = self._heap
        if heap is None or not heap.waiting or self.crew is None:
            return
        out = Counter(one.place.address for one in self._sent)
        places = [place for place in self._useful() if out[place.address] < place.threads]
        free = self.crew.free() if places else {}
        for place in places:
            for _ in range(free.get(place.address, 0)):
                if not (numbers := heap.take(place.processes)):
                    return
                known = (place.address, self._token) in self._knows
                calls = pickle.dumps([(number, *heap.calls[number]) for number in numbers])
                batch = Batch(self._token, calls, b"" if known else self._held)
                self._sent.append(Batched(self.crew.send(place, batch), place, heap, numbers, self._token))

    def _give_up(self, why: str) -> None:
        """Ask nobody else any more."""
        self.lost = why
        self.say(f"{why}; the scenes are counted on this machine alone")
        for one in self._sent:
            one.heap.back(one.numbers)
        self._sent = []


@dataclass(frozen=True)
class Batched:
    """A batch that is out."""

    sent: Sent
    place: Helper
    heap: Heap
    numbers: list[int]
    token: str


def _processes(here: "Pool") -> str:
    return f"{len(here)} process{'es' * (len(here) > 1)} here"


@contextmanager
def helped(here: "Pool", address: str | None, scenes: int, say: Callable[[str], None]) -> Iterator["Pool | Hands"]:
    """Yield what shares scenes between this machine and the workers of a scheduler; ``here`` alone without an address,
    and where scenes are too few. ConfigError without Dask, or for what is no address."""
    if address is None or scenes // ENOUGH <= len(here):
        if address is not None:
            say(f"counting: {_processes(here)}; {scenes} scenes are too few for more, {ENOUGH} for each")
        yield here
        return
    with Hands(here, partial(DaskCrew, address), scenes, say) as hands:
        yield hands
