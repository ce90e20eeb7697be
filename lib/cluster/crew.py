"""The workers of a Dask scheduler that may make calls for a stage: who is there, who is free, how calls reach them."""

import threading
import uuid
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lib.cluster import relay
from lib.cluster.engines import by_value, connect
from lib.cluster.hand import versions
from lib.cluster.plan import ROOT
from lib.cluster.relay import Answer, Batch, Lending
from lib.run import cores

URGENCY = -10
"""Below that of units, which are 0: a free worker begins a unit first."""
FAREWELL = 5.0
"""Seconds that the end of a stage waits for workers at most, and for the scheduler."""


@dataclass(frozen=True)
class Helper:
    """A worker that may help."""

    address: str
    threads: int
    """How many batches it takes at the same time."""
    processes: int
    """How many processes make the calls of one batch."""


class Sent(Protocol):
    """A batch that was sent."""

    def done(self) -> bool:
        """Tell whether an answer, or the loss of it, is known."""

    def answer(self) -> Answer:
        """Return what ``relay.serve`` did; "lost" and a sentence where its worker was lost."""

    def cancel(self) -> None:
        """Let its worker stop."""


class Crew(Protocol):
    """What ``hands`` needs of the other machines."""

    def look(self) -> list[str]:
        """Look who is there; returns what is to be said of it. OSError where the scheduler does not answer."""

    @property
    def places(self) -> dict[str, Helper]:
        """Return address -> worker, of those that may help."""

    def free(self) -> dict[str, int]:
        """Return address -> threads that do nothing."""

    def send(self, place: Helper, batch: Batch) -> Sent:
        """Send a batch to a worker."""

    def close(self) -> None:
        """Let go of the workers."""


class SentByDask:
    """A batch that was sent by Dask."""

    def __init__(self, future: Any):
        self.future = future

    def done(self) -> bool:
        """Tell whether an answer, or the loss of it, is known."""
        return self.future.done()

    def answer(self) -> Answer:
        """Return what ``relay.serve`` did; "lost" and a sentence where its worker was lost."""
        if self.future.status == "finished":
            try:
                return self.future.result(timeout=60)
            except Exception as error:  # noqa: BLE001 whatever the network or the worker died of meanwhile
                return "lost", f"{type(error).__name__}: {error}"
        if self.future.status == "error":
            wrong = self.future.exception(timeout=60)
            return "raised", f"{type(wrong).__name__}: {wrong}"
        return "lost", f"its work was {self.future.status}"

    def cancel(self) -> None:
        """Let its worker stop."""
        self.future.cancel()


class DaskCrew:
    """The workers of a scheduler on machines, or with cores, other than those of this process."""

    def __init__(self, address: str):
        """Raises as ``engines.connect`` does."""
        self.address, self.session = address, uuid.uuid4().hex
        self.client = connect(address, "05_ensemble")
        warnings.filterwarnings("ignore", message="Sending large graph")
        self.places: dict[str, Helper] = {}
        self._seen: dict[str, dict[str, Any]] = {}
        """Address -> what ``relay.seen`` told of its worker; nothing of one that may not help."""
        self._here = relay.seen(str(ROOT), cores.cores)
        self._number = 0

    def look(self) -> list[str]:
        """Look who is there; returns what is to be said of it. OSError where the scheduler does not answer."""
        if self.client.status != "running":
            raise OSError(f"the scheduler {self.address} no longer answers")
        threads = {address: int(number) for address, number in self.client.nthreads().items()}
        gone = [address for address in self._seen if address not in threads]
        said = [f"worker {address} is gone; its scenes go to others" for address in gone if address in self.places]
        for address in gone:
            del self._seen[address]
        if new := [address for address in threads if address not in self._seen]:
            said += self._meet(new)
        if gone or new:
            shared: Counter = Counter()
            for address, seen in self._seen.items():
                shared[seen.get("place")] += threads[address]
            self.places = {
                address: Helper(address, threads[address], max(1, seen["cores"] // shared[seen["place"]]))
                for address, seen in sorted(self._seen.items()) if seen and seen["place"] != self._here["place"]
            }  # fmt: skip
        return said

    def _meet(self, new: list[str]) -> list[str]:
        """Ask workers what they are; returns why some of them may not help. One that does not answer is asked again."""
        told, said = self.client.get_versions()["workers"], []
        ours = versions() | {"Python": _python(self.client.get_versions()["client"]["host"]["python"])}
        for address in list(new):
            if not isinstance(worker := told.get(address), dict):
                new.remove(address)
                continue
            theirs = {"Python": _python(worker["host"]["python"]), "numpy": worker["packages"].get("numpy")}
            if odd := [f"{name} is {theirs[name]} there and {ours[name]} here" for name in theirs
                       if theirs[name] != ours[name]]:  # fmt: skip
                said.append(refusal(address, odd[0]))
                self._seen[address] = {}
                new.remove(address)
        if not new:
            return said
        asked = by_value(partial(relay.seen, str(ROOT), by_value(cores.cores, cores)), relay)
        for address, seen in self.client.run(asked, workers=new, on_error="return").items():
            if not isinstance(seen, dict):
                continue
            if not seen["there"]:
                said.append(refusal(address, f"expected the project at {ROOT} there, found nothing"))
            self._seen[address] = seen if seen["there"] else {}
        return said

    def free(self) -> dict[str, int]:
        """Return address -> threads that do nothing."""
        busy = self.client.processing()
        return {address: place.threads - len(busy.get(address, ())) for address, place in self.places.items()}

    def send(self, place: Helper, batch: Batch) -> Sent:
        """Send a batch to a worker."""
        self._number += 1
        lending = Lending(self.session, str(ROOT), str(Path.cwd()), place.processes, dict.fromkeys(cores.THREADS, "1"))
        work = by_value(partial(relay.serve, lending, batch), relay)
        return SentByDask(self.client.submit(work, key=f"scenes-{self.session}-{self._number}", workers=[place.address],
                                       allow_other_workers=False, pure=False, retries=0, priority=URGENCY))  # fmt: skip

    def close(self) -> None:
        """Let go of the workers; what they have lent ends by itself where they cannot be told."""
        end = by_value(partial(relay.end, self.session), relay)

        def told(dask_worker: Any) -> None:
            end(dask_worker)

        def leave() -> None:
            with suppress(Exception):
                self.client.run(told, workers=list(self.places), on_error="ignore")
            with suppress(Exception):
                self.client.close(timeout=FAREWELL)

        leaving = threading.Thread(target=leave, daemon=True)
        leaving.start()
        leaving.join(2 * FAREWELL)  # a worker may just have been lost


def refusal(address: str, why: str) -> str:
    """Say that a worker does not help, and why."""
    return f"worker {address} does not help with the scenes: {why}"


def _python(version: str) -> str:
    """Return the numbers of a version of Python as Dask tells it: 3.11.7.final.0."""
    return ".".join(version.split(".")[:3])
