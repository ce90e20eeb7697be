"""A lease: the right of one process, among all that share a disk, to build one result.

``flock`` does not hold on every network file system, so a lease is a folder with one empty file. The file's *name* says
everything: token, beat, process, its start, place and host. All that changes it is one rename, unlink or rmdir, which
the file server does whole or refuses, whatever a client has cached, and no clock of one host is compared with that of
another. The store needs nothing else of a disk to seal a unit.

- **Acquire**: a folder that already holds the file is renamed to the lease's name. This fails where a folder with a
  file is there; an empty one, which a release leaves for an instant, is replaced.
- **Beat**: every ``BEAT`` seconds a thread renames its file to the next beat. This is the check, too: the name is
  there only as long as the lease is the owner's.
- **Take over**: the old owner's file, *of the beat that was seen last*, is renamed to the taker's. Of several takers
  one succeeds, and none where the owner has beaten meanwhile.
- **Release**: the owner's file is removed, then the folder, if it is empty.

Who may be taken over: an owner of the same boot and process namespace, at once if its process is gone (its number may
have been given away again, so its start is compared too); any other after ``LEASE_SILENCE`` seconds in which the taker
saw no other beat. The taker counts only seconds between looks that it took itself, so that one that was suspended, or
a file server that was away, counts for little. What a taker sees late (clients cache a listing for up to a minute)
delays it, and can never let it in.

An owner that was taken over (suspended, cut off, or minutes within one call that lets no thread run) finds out:
its next beat fails, and the process ends with one sentence (``lost``). Until then ``fresh``, called before each file
that it writes, beats first where the last beat is long ago by a clock that counts a suspended machine's time too.

**Two owners are never both sealed.** The store seals so: (1) ``check``; (2) rename ``unit.partial`` to a name with its
own token; (3) write the manifest there; (4) ``check``; (5) rename that to ``unit``. Whoever gets the lease first moves
folders with another token back to ``unit.partial`` (``Store._finish``). Let A be stopped anywhere, and B take over:

- before (1), (2) or (4): A's next check fails. Where A stopped between (1) and (2), its rename takes B's half-built
  folder; A's check (4) fails and it puts the folder back, B meanwhile misses its files and stops with a sentence. B
  looks for its own note (``unit.json``) after its own (2), so that what it made anew meanwhile is not sealed either.
- after (2), before (5): B moved A's folder back, so that (3) and (5) have nothing to work on and fail.
- within (5): A's rename and B's moving back have the same source, and only one of them succeeds. Where A's did, B finds
  a unit that was not there before it waited, and builds nothing.
- after (5): A is sealed, and B finds that, as before.
- B is killed before it has moved A's folder back: C, who takes over from B, does it. C sees the folder, for A made it
  before a beat that is older than the silence.

What A may still do is to remove, or move aside and back, an *older* unit that the new one replaces.
"""

import errno
import functools
import os
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from lib import files
from lib.errors import ArtifactError
from lib.files import digest
from lib.run import faults

BEAT = 15.0
"""Seconds between two signs of life of an owner."""
LEASE_SILENCE = 300.0
"""Seconds without a sign of life after which an owner elsewhere is taken for dead."""
LOOKS = 3
"""How often a taker looks per beat."""
TRIES = 50
"""How often a lease is asked for that is held by nobody; then something else is in its way."""


class Owner(NamedTuple):
    """Who holds a lease, as the name of its file says."""

    token: str
    beat: int
    pid: int
    started: str
    """When its process started, in ticks since boot; "" where the system does not tell."""
    place: str
    """The same for two processes that see each other by their numbers."""
    host: str

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return ".".join(map(str, self))

    def __str__(self) -> str:
        return f"process {self.pid} on {unquote(self.host)}"


def _me() -> Owner:
    pid, host = os.getpid(), quote(_host(), safe="")[:100]
    return Owner(secrets.token_hex(8), 0, pid, _process(pid)[1], _place(), host)


def _host() -> str:
    return socket.gethostname()


@functools.cache
def _place() -> str:
    """Return a digest of host, boot and namespace of processes: containers may share a host's name, not its numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot = str(uuid.getnode()), 0  # where it cannot be told, it is a random number, so that each is elsewhere
    return digest([_host(), *boot])


def _process(pid: int) -> tuple[str, str]:
    """Return the state ("Z": dead, not yet waited for) and the start of a process; "" where the system hides them."""
    with suppress(OSError, IndexError):
        found = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return found[0], found[19]
    return "", ""


def _alive(owner: Owner) -> bool:
    """Tell whether an owner of this place is there; a lease that this process has left behind has none."""
    if owner.pid == os.getpid() and owner.started == _process(owner.pid)[1]:
        return owner.token in _held
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    state, started = _process(owner.pid)
    return state not in ("Z", "X") and (not started or not owner.started or started == owner.started)


def _now() -> float:
    """Return seconds of a clock that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _end(said: str) -> None:
    """End the process: another one builds what it builds, and each of its files would be one too many."""
    os.write(2, f"error: {said}\n".encode())
    os._exit(2)


_held: dict[str, "Held"] = {}
"""Token -> the leases of this process."""


class Held:
    """A lease that this process holds, or asks for. Its methods may be called from any thread."""

    def __init__(self, path: Path, what: str, lost: Callable[[str], None] = _end):
        self.path, self.what, self.lost = path, what, lost
        self.owner, self.beaten = _me(), _now()
        self._mutex, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of {what}", daemon=True)

    @property
    def token(self) -> str:
        """Return what no other owner has."""
        return self.owner.token

    def check(self) -> None:
        """Raise ArtifactError unless the lease is still this process's; OSError where the disk does not tell."""
        with self._mutex:
            for owner in (self.owner, self._next()):  # the second where an answer was lost or cut off by a signal
                self.owner, begun = owner, _now()
                with suppress(FileNotFoundError):
                    os.rename(self.path / owner.name, self.path / self._next().name)
                    self.owner, self.beaten = self._next(), begun
                    return
        now = _owner(self.path)
        raise ArtifactError(f"{self.what}: {now or 'nobody'} has the lease that this process had, for it gave no sign "
                            f"of life for {LEASE_SILENCE:.0f} s, or {self.path} was removed. It stops here and seals "
                            "nothing; run the same command again when no other process builds it")  # fmt: skip

    def _next(self) -> Owner:
        return self.owner._replace(beat=self.owner.beat + 1)

    def fresh(self) -> None:
        """Check, but only where the last sign of life is so long ago that another may have taken over."""
        if _now() - self.beaten > LEASE_SILENCE / 2:
            self.check()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self.check()
            except ArtifactError as error:
                if not self._over.is_set():
                    self.lost(str(error))
                return
            except OSError:
                continue  # the disk is away for a while; ``fresh`` watches how long

    def _enter(self) -> bool:
        """Acquire a lease that nobody holds; tells whether it is this process's now."""
        room = self.path.with_name(f"{self.path.name}.{self.token}")
        room.mkdir(parents=True)
        os.close(os.open(room / self.owner.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        with suppress(OSError):
            self.path.rmdir()  # an empty one, which not every system lets a folder replace
        try:
            os.rename(room, self.path)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            found = _owner(self.path)
            return found is not None and found.token == self.token
        finally:
            with suppress(OSError):
                (room / self.owner.name).unlink(missing_ok=True)
                room.rmdir()

    def _take(self, owner: Owner) -> bool:
        """Take the lease over, if its owner has not beaten since ``owner`` was read; tells whether."""
        with suppress(FileNotFoundError):
            os.rename(self.path / owner.name, self.path / self.owner.name)
            return True
        found = _owner(self.path)
        return found is not None and found.token == self.token

    def _release(self) -> None:
        self._over.set()
        with self._mutex, suppress(OSError):  # what stays is told from a lease in use by its process
            for owner in (self.owner, self._next()):
                (self.path / owner.name).unlink(missing_ok=True)
            self.path.rmdir()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(1)


def _owner(path: Path) -> Owner | None:
    """Return who holds a lease, None where nobody does."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(path):
            parts = name.split(".", 5)
            if len(parts) == 6 and parts[1].isdigit() and parts[2].isdigit():
                return Owner(parts[0], int(parts[1]), int(parts[2]), parts[3], parts[4], parts[5])
    return None


@contextmanager
def hold(path: Path, what: str, watch: bool = True, lost: Callable[[str], None] = _end) -> Iterator[Held]:
    """Hold the lease ``path`` on ``what`` for the time of a block, with a thread that gives signs of life.

    An owner elsewhere is watched until it gives a sign of life, which ends in the refusal, or may be taken over; not
    with ``watch=False``. ``lost`` is called in that thread with a sentence when the lease has been taken over. Raises
    ArtifactError that names the owner where there is one, and where the disk cannot do it. A forked process holds
    nothing.
    """
    held = Held(path, what, lost)
    _held[held.token] = held
    try:
        try:
            _acquire(held, watch)
        except OSError as error:
            raise ArtifactError(faults.sentence(error) or f"{path}: {error}") from error
        held.beaten = _now()
        held._thread.start()
        files.guards.append(held.fresh)
        yield held
    finally:
        mine = _held.pop(held.token, None) is not None  # not in a forked process
        if mine and held.fresh in files.guards:
            files.guards.remove(held.fresh)
        if mine:
            held._release()


def _acquire(mine: Held, watch: bool) -> None:
    tries, silent, seen, looked = 0, 0.0, None, time.monotonic()
    while True:
        owner, now = _owner(mine.path), time.monotonic()
        if owner is None:
            if mine._enter():
                return
            tries += 1
            if tries >= TRIES and _owner(mine.path) is None:
                raise ArtifactError(f"{mine.path}: expected a lease or nothing, found "
                                    f"{', '.join(sorted(os.listdir(mine.path))) or 'a folder'}; remove it")  # fmt: skip
            time.sleep(0.002 * min(tries, 25))
            continue
        if owner.place == mine.owner.place:
            if _alive(owner):
                raise _refusal(mine.what, owner)
        else:
            if not watch or (seen is not None and owner != seen):
                raise _refusal(mine.what, owner, "; it is taken over when it has given no sign of life for "
                               f"{LEASE_SILENCE:.0f} s")  # fmt: skip
            if seen is None:
                print(f"{mine.what}: {owner} has its lease; waiting for a sign of life of it, which it gives every "
                      f"{BEAT:.0f} s. It is taken over if there is none in {LEASE_SILENCE:.0f} s", file=sys.stderr,
                      flush=True)  # fmt: skip
            else:
                silent += min(now - looked, 2 * BEAT / LOOKS)
            seen, looked = owner, now
            if silent < LEASE_SILENCE:
                time.sleep(min(BEAT / LOOKS, LEASE_SILENCE))
                continue
        if mine._take(owner):
            return


def _refusal(what: str, owner: Owner, until: str = "") -> ArtifactError:
    return ArtifactError(f"{what} is being built by {owner}; wait or stop it{until}")


def _leave_to_parent() -> None:
    """Forget all leases in a forked process, such as one that loads samples; they are its parent's."""
    for held in _held.values():
        if held.fresh in files.guards:
            files.guards.remove(held.fresh)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
