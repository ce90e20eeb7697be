"""A lease: one owner at a time, taken over when it is dead and never while it is alive; two are never both sealed."""

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import leases
import pytest

from lib import files
from lib.errors import ArtifactError
from lib.files import write_bytes
from lib.run import lease
from lib.run.artifacts import Store, Unit

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".locks" / "net.lease"


@pytest.fixture
def quick(monkeypatch):
    """Signs of life every 10 ms, silence after 60."""
    monkeypatch.setattr(lease, "BEAT", 0.01)
    monkeypatch.setattr(lease, "LEASE_SILENCE", 0.06)


@pytest.fixture
def quiet(monkeypatch):
    """An owner that gives no sign of life of its own, as if it were suspended; another is elsewhere at once."""
    monkeypatch.setattr(lease.Held, "_beat", lambda held: None)


def elsewhere(monkeypatch, host: str = "other") -> None:
    """From here on this process looks like one of another machine."""
    monkeypatch.setattr(lease, "_place", lambda: f"place of {host}".replace(" ", "-"))
    monkeypatch.setattr(lease, "_host", lambda: host)


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path)) if path.exists() else []


def test_it_is_there_for_the_time_of_a_block_and_a_second_one_is_told_who_has_it(path):
    with lease.hold(path, "02_loc/net") as held:
        assert names(path) == [held.owner.name] and held.owner.pid == os.getpid()
        for _ in range(2):
            with pytest.raises(ArtifactError, match=f"^02_loc/net is being built by process {os.getpid()} on .*; w"), \
                    lease.hold(path, "02_loc/net"):  # fmt: skip
                pass
        held.check()
    assert not names(path.parent) and not files.guards and not lease._held
    with lease.hold(path, "x"):
        pass


def test_of_many_that_ask_at_once_one_gets_it(path):
    """A folder of one file and an empty one, as a release leaves it for an instant."""
    for empty in (False, True):
        if empty:
            path.mkdir(parents=True)
        asked = [lease.Held(path, "x") for _ in range(8)]
        assert [one._enter() for one in asked] == [True] + [False] * 7
        assert names(path) == [asked[0].owner.name] and names(path.parent) == [path.name]
        asked[0]._release()


# ---- owners that are gone -----------------------------------------------------------------------------
def left_behind(path: Path, **changed) -> lease.Owner:
    """Leave the lease of an owner that differs from this process in so much."""
    asked = lease.Held(path, "x")
    asked.owner = asked.owner._replace(**changed)
    assert asked._enter()
    return asked.owner


def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("changed", ["gone", "number of another", "of this process", "not waited for"])
def test_a_dead_owner_of_this_machine_is_followed_at_once(path, changed):
    child = os.fork() if changed == "not waited for" else 0
    if changed == "not waited for" and child == 0:
        os._exit(0)
    told = {"gone": {"pid": dead()}, "number of another": {"pid": os.getppid(), "started": "1"}, "of this process": {},
            "not waited for": {"pid": child}}[changed]  # fmt: skip
    if child:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        told["started"] = lease._process(child)[1]
    left_behind(path, **told)
    with lease.hold(path, "x") as held:
        assert names(path) == [held.owner.name]
    if child:
        os.waitpid(child, 0)


@pytest.mark.parametrize("started", ["", None])
def test_an_owner_whose_process_is_there_is_not_followed(path, monkeypatch, started):
    """Also where the system hides when it started."""
    known = lease._process(os.getppid())[1]
    left_behind(path, pid=os.getppid(), started=known if started is None else started)
    with pytest.raises(ArtifactError, match=f"process {os.getppid()}"), lease.hold(path, "x"):
        pass


def test_the_number_of_a_process_says_nothing_about_one_elsewhere(path, quick):
    """A container of the same host name has other processes: no process here has this number, and it is waited for."""
    owner = left_behind(path, pid=dead(), place="elsewhere")
    with pytest.raises(ArtifactError, match="being built by .* given no sign of life for 0 s"), \
            lease.hold(path, "x", watch=False):  # fmt: skip
        pass
    assert names(path) == [owner.name]


# ---- owners elsewhere ---------------------------------------------------------------------------------
def test_one_elsewhere_is_taken_over_after_its_silence_and_not_before(path, quick, capsys):
    left_behind(path, place="elsewhere", host="node%207", pid=12)
    begun = time.monotonic()
    with lease.hold(path, "02_loc/net"):
        assert time.monotonic() - begun >= lease.LEASE_SILENCE
    assert "02_loc/net: process 12 on node 7 has its lease; waiting for a sign of life" in capsys.readouterr().err


def test_one_elsewhere_that_gives_a_sign_of_life_is_left_alone(path, quick, monkeypatch):
    with lease.hold(path, "x") as held:
        elsewhere(monkeypatch)
        with pytest.raises(ArtifactError, match="being built by"), lease.hold(path, "x"):
            pass
        held.check()


def test_a_beat_between_the_last_look_and_the_takeover_keeps_the_lease(path, quiet, monkeypatch):
    with lease.hold(path, "x") as held:
        elsewhere(monkeypatch)
        seen, taker = lease._owner(path), lease.Held(path, "x")
        held.check()
        assert not taker._take(seen) and names(path) == [held.owner.name]
        others = [lease.Held(path, "x") for _ in range(4)]
        seen = lease._owner(path)
        assert [one._take(seen) for one in others] == [True, False, False, False]
        with pytest.raises(ArtifactError, match="process .* on other has the lease that this process had"):
            held.check()
        others[0].check()
    assert names(path) == [others[0].owner.name], "what was lost is not released"


def test_seconds_in_which_the_taker_itself_stood_still_do_not_count(path, quick, monkeypatch):
    left_behind(path, place="elsewhere")
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += 1000.0  # each time for far longer than asked

    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lease.time, "sleep", sleep)
    with lease.hold(path, "x"):
        pass
    assert len(slept) >= lease.LEASE_SILENCE / (2 * lease.BEAT / lease.LOOKS)


@pytest.mark.parametrize("done", [False, True])
def test_a_beat_whose_answer_was_lost_is_not_a_loss(path, quiet, monkeypatch, done):
    real = os.rename

    def lost(source, target):
        if done:
            real(source, target)
        raise OSError(5, "Input/output error")

    with lease.hold(path, "x") as held:
        for _ in range(3):
            monkeypatch.setattr(os, "rename", lost)
            with pytest.raises(OSError, match="Input/output"):
                held.check()
            monkeypatch.setattr(os, "rename", real)
        held.check()
    assert not names(path)


# ---- an owner that wakes up ---------------------------------------------------------------------------
def test_an_owner_that_has_lost_its_lease_ends_and_writes_nothing_more(path, quick, monkeypatch, tmp_path):
    said: list[str] = []
    with lease.hold(path, "x", lost=said.append) as held:
        (path / lease._owner(path).name).unlink()
        held._thread.join(5)
        assert len(said) == 1 and "nobody has the lease that this process had" in said[0]
        write_bytes(tmp_path / "a", b"while the last sign of life is young")
        held.beaten -= lease.LEASE_SILENCE
        with pytest.raises(ArtifactError, match="nobody has the lease"):
            write_bytes(tmp_path / "a", b"later")
    assert (tmp_path / "a").read_bytes() == b"while the last sign of life is young"


def _loses(path: Path) -> None:
    lease.BEAT = 0.01
    with lease.hold(path, "x"):
        os.unlink(path / os.listdir(path)[0])
        time.sleep(60)


def test_its_process_ends_at_its_next_beat(path):
    process = FORK.Process(target=_loses, args=(path,))
    process.start()
    process.join(20)
    assert process.exitcode == 2


def test_a_disk_that_is_away_for_a_while_is_no_loss(path, quick, monkeypatch):
    real, away = os.rename, [3]

    def rename(source, target):
        if away[0]:
            away[0] -= 1
            raise OSError(116, "Stale file handle")
        real(source, target)

    said: list[str] = []
    with lease.hold(path, "x", lost=said.append) as held:
        first = held.owner.beat
        monkeypatch.setattr(os, "rename", rename)
        while held.owner.beat < first + 2:
            time.sleep(0.005)
    assert not said and not away[0]


def test_what_lies_in_the_place_of_a_lease_is_named(path, monkeypatch):
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: None)
    path.mkdir(parents=True)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"expected a lease or nothing, found notes.txt; remove it"), \
            lease.hold(path, "x"):  # fmt: skip
        pass
    assert (path / "notes.txt").read_text() == "mine"


# ---- two owners are never both sealed -----------------------------------------------------------------
ITEM = Unit("02_loc/net/fold0", {"a": 1}, "python 02.py")


@pytest.mark.parametrize("sealing", [False, True])
@pytest.mark.parametrize("number", range(1, 16))
def test_an_owner_that_is_stopped_anywhere_in_its_seal_is_not_sealed_beside_the_second(
    tmp_path, monkeypatch, quiet, number, sealing
):
    """Before its n-th change of a name, the second comes, takes over, and builds: to the end, or half."""
    monkeypatch.setattr(lease, "BEAT", 0.0)
    monkeypatch.setattr(lease, "LEASE_SILENCE", 0.0)
    count, second, real = [0], [], {name: getattr(os, name) for name in ("rename", "replace", "unlink")}

    def other() -> None:
        for name, function in real.items():
            monkeypatch.setattr(os, name, function)
        elsewhere(monkeypatch)
        files.guards.clear()  # the first one's, of which another process would know nothing
        store = Store(tmp_path)
        try:
            store.recover(ITEM)
            if store.status(ITEM) == "done":
                second.append("found it done")
                return
            building = store.build(ITEM, {"by": "second"})
            folder = building.__enter__()
            write_bytes(folder / "second", b"half")
            second.append("half")
            if sealing:
                building.__exit__(None, None, None)
                second[-1] = "sealed"
            else:
                kept.append(building)
        except ArtifactError as error:
            second.append(str(error))

    def counted(name):
        def call(*arguments, **more):
            count[0] += 1
            if count[0] == number:
                other()
            return real[name](*arguments, **more)

        return call

    kept: list = []
    first = ""
    try:
        with Store(tmp_path).build(ITEM, {"by": "first"}) as folder:
            write_bytes(folder / "first", b"first")
            for name in real:
                monkeypatch.setattr(os, name, counted(name))
        first = "sealed"
    except (ArtifactError, OSError) as error:
        first = str(error)
    store = Store(tmp_path)
    assert first != "sealed" or second != ["sealed"]
    if count[0] >= number:
        assert second
    if first == "sealed":
        assert second in ([], ["found it done"]) and store.status(ITEM) == "done"
        assert store.manifest(ITEM)["by"] == "first"
    elif second == ["sealed"]:
        assert store.status(ITEM) == "done" and store.manifest(ITEM)["by"] == "second"
    elif second == ["half"]:
        assert store.status(ITEM) in ("partial", "missing"), "the second is at work, and nothing is sealed"
        try:
            kept[0].__exit__(None, None, None)
            assert store.status(ITEM) == "done" and store.manifest(ITEM)["by"] == "second"
        except ArtifactError:
            assert not (tmp_path / ITEM.key).exists()
    assert not store.fault(ITEM) or not (tmp_path / ITEM.key).exists()


# ---- two processes on two mounts ----------------------------------------------------------------------
def test_two_processes_on_two_paths_of_a_folder_are_never_in_at_once(tmp_path):
    with leases.two_paths(tmp_path, mount=False) as (*paths, _):
        found = leases.excluded(paths, 60)
    assert found.acquired >= 60 and found.violations == 0 and min(found.by.values()) > 0


@pytest.mark.slow
def test_owners_that_are_stopped_and_killed_leave_whole_units_and_seal_each_once(tmp_path):
    """A handful; ``python tests/leases.py`` makes as many as one likes."""
    with leases.two_paths(tmp_path) as (*paths, _):
        found = leases.fenced(paths, 12)
    assert found.violations == 0 and found.by["stopped"] + found.by["killed"] > 0


def test_a_unit_that_another_process_finished_since_it_was_looked_at_is_not_built_again(tmp_path):
    mine, theirs = Store(tmp_path), Store(tmp_path)
    mine.recover(ITEM)
    assert mine.status(ITEM) == "missing"
    with theirs.build(ITEM, {}) as folder:
        write_bytes(folder / "a", b"theirs")
    with pytest.raises(ArtifactError, match="another process finished it meanwhile"), mine.build(ITEM, {}):
        pass
    assert mine.status(ITEM) == "done"
