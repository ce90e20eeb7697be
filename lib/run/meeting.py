"""How the processes of torchrun find one another, also after some of them were lost.

torch keeps one store of keys for all starts of the processes, and puts the addresses of each start under the same
names. After a restart a process can so read where another one was before, and wait there until its time is over. The
processes of one start therefore agree on a name first, and use keys under this name alone.
"""

import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = timedelta(minutes=30)
"""How long processes wait for one another at their start."""
STEP = 0.05
"""Seconds between two looks."""


def of_this_start(store: "Store", rank: int, world: int, patience: timedelta = PATIENCE) -> "Store":
    """Return a store whose keys the processes of this start alone use.

    store: the one that torchrun's processes share, with what earlier starts left in it. The first process says the name
    of the start. Each other one answers under it, and takes the name once its own answer was read: what an earlier
    first process left is answered by nobody. torchrun ends the processes of a start before it begins the next.

    Raises torch.distributed.DistStoreError where a process does not come in time.
    """
    from torch.distributed import DistStoreError, PrefixStore

    if rank == 0:
        name = uuid.uuid4().hex
        store.set("start", name)
        for other in range(1, world):
            store.wait([f"{name}/{other}"], patience)
            store.set(f"{name}/{other}/" + store.get(f"{name}/{other}").decode(), "read")
        return PrefixStore(name, store)
    answer, deadline = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    store.wait(["start"], patience)
    while time.monotonic() < deadline:
        name = store.get("start").decode()
        store.set(f"{name}/{rank}", answer)
        if store.check([f"{name}/{rank}/{answer}"]):
            return PrefixStore(name, store)
        time.sleep(STEP)
    raise DistStoreError(f"process {rank} of {world}: the first process did not answer in {patience}")
