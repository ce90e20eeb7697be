"""What the machine refuses is a sentence with the way out, and the same command goes on when it is mended."""

import errno
import io
import json
import multiprocessing
import os
import resource
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib.errors import ArtifactError, DataError
from lib.files import read_json, run_out, whole_file, whole_path, write_bytes, write_json
from lib.models.checkpoint import save_weights
from lib.run import cli, faults, manifest, runtime
from lib.run.artifacts import MANIFEST, Store, Unit
from lib.scenes.probs import read_levels, write_levels, write_logits
from lib.training import state

SENTENCE = "run the same command again, it resumes"


def unit(key="02_loc/net/fold0", **facts) -> Unit:
    return Unit(key, facts or {"a": 1}, f"python {key}.py")


def make(store: Store, item: Unit, text="content") -> Path:
    with store.build(item, {}) as folder:
        (folder / "file.txt").write_text(text)
    return store.root / item.key


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".locks" not in path.parts)


# ---- a full disk --------------------------------------------------------------------------------------
NOISE = np.random.default_rng(0).integers(0, 255, (1, 400, 512)).astype(np.uint8)
WRITERS = {
    "bytes": lambda folder: write_bytes(folder / "a", NOISE.tobytes()),
    "levels": lambda folder: write_levels(folder / "a.tif", NOISE, ("a",)),
    "logits": lambda folder: write_logits(folder / "a.tif", NOISE.astype(np.float32) / 7, ("a",)),
    "weights": lambda folder: save_weights(folder, {"a": torch.zeros(200, 300)}),
    "state": lambda folder: state.save(folder, {"a": torch.zeros(200, 300)}),
    "table": lambda folder: _table(folder),
    "archive": lambda folder: _archive(folder),
}


def _table(folder: Path) -> None:
    with whole_file(folder / "a.csv") as file:
        pd.DataFrame({"a": np.arange(30_000)}).to_csv(file)


def _archive(folder: Path) -> None:
    with whole_path(folder / "a.zip") as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.writestr("a", NOISE.tobytes())


@pytest.fixture
def little_room():
    """No file of this process may grow beyond 100 kB: its writers meet a real error of the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_fails_is_the_systems_error_whatever_library_writes(tmp_path, little_room, writer):
    with pytest.raises(OSError) as caught:
        WRITERS[writer](tmp_path)
    assert caught.value.errno == errno.EFBIG and str(tmp_path) in caught.value.filename
    assert not left(tmp_path), "neither a half file nor one that passes for whole"
    assert "ulimit -f" in faults.sentence(caught.value)


def _chained(first: Exception, second: Exception) -> Exception:
    try:
        try:
            raise first
        except Exception:
            raise second  # noqa: B904 as libraries do
    except Exception as error:
        return error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [
    FULL,
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    _chained(FULL, RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 832 vs 726")),
    _chained(FULL, RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("Error while serializing: IoError(Os { code: 28, message: \"No space left on device\" })"),
    OSError("Caught OSError in DataLoader worker process 0.\n...\nOSError: [Errno 28] No space left on device"),
], ids=range(7))  # fmt: skip
def test_a_full_disk_is_the_same_sentence_whatever_library_says_so_and_the_command_goes_on(tmp_path, error):
    store, item = Store(tmp_path), unit()
    with pytest.raises(ArtifactError, match=f"disk is full.*{SENTENCE}") as caught, store.build(item, {}) as folder:
        (folder / "first.txt").write_text("whole")
        raise error
    assert str(store.partial(item)) in str(caught.value)
    with store.build(item, {}) as folder:
        assert (folder / "first.txt").read_text() == "whole"
    assert store.status(item) == "done"


@pytest.mark.parametrize("error", [
    KeyError("a bug"), DataError("scene a: no such file"), RuntimeError("shape '[2]' is invalid"),
    _chained(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), KeyError("a bug beside it")),
])  # fmt: skip
def test_other_errors_are_not_the_machines(error):
    assert run_out(error) is None and faults.sentence(error) == ""


def test_a_broken_file_of_a_killed_process_is_not_opened_for_update(tmp_path):
    (tmp_path / "a.tif.tmp").write_bytes(b"II*\0" + b"\xff" * 50)
    write_levels(tmp_path / "a.tif", NOISE, ("a",))
    assert (read_levels(tmp_path / "a.tif")[0] == NOISE).all() and left(tmp_path) == ["a.tif"]


@pytest.mark.parametrize(("error", "words"), [
    (FULL, "disk is full"),
    (OSError(errno.EIO, "Input/output error"), "input/output error"),
    (MemoryError(), "memory is full"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12 (Cannot "
                  "allocate memory)"), "memory is full"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (PermissionError(errno.EACCES, "Permission denied", "/w/x"), "/w/x: Permission denied; change its permissions"),
    (OSError(errno.EROFS, "Read-only file system", "/w/x"), "/w/x: Read-only file system; it cannot be written to"),
    (FileExistsError(errno.EEXIST, "File exists", "/w"), "/w: File exists; a file stands where a folder should be"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/w/x.tmp"), "was it removed or renamed meanwhile"),
])  # fmt: skip
def test_a_stage_ends_with_the_sentence_and_exit_code_2(capsys, error, words):
    @cli.exits
    def main(argv):
        raise error

    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_what_nobody_foresaw_keeps_its_traceback():
    @cli.exits
    def main(argv):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        main([])


# ---- folders that are none ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "place", ["", "02_loc", "02_loc/net", ".locks", "02_loc/net/fold0", "02_loc/net/fold0.partial"]
)
def test_a_file_where_a_folder_should_be_is_a_sentence(tmp_path, place):
    root = tmp_path / "experiment"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text("mine")
    with pytest.raises(ArtifactError, match="a file"):
        make(Store(root), unit())
    assert (root / place).read_text() == "mine"
    (root / place).unlink()
    make(Store(root), unit())


@pytest.mark.parametrize("name", ["fold0", "fold0.partial"])
def test_a_link_in_a_units_place_is_read_and_never_built_over(tmp_path, name):
    store, item = Store(tmp_path / "root"), unit()
    final = make(store, item)
    elsewhere = tmp_path / "elsewhere"
    os.rename(final, elsewhere)
    final.with_name(name).symlink_to(elsewhere)
    assert (store.status(item) == "done") == (name == "fold0")
    for _ in range(3):
        with pytest.raises(ArtifactError, match=f"{name}: expected a folder or nothing, found a symbolic link"):
            make(store, item)
    assert left(elsewhere) == ["file.txt", MANIFEST]
    final.with_name(name).unlink()
    make(store, item, "new")
    assert left(store.root / "02_loc") == ["net", "net/fold0", "net/fold0/file.txt", f"net/fold0/{MANIFEST}"]


@pytest.mark.parametrize("leftover", ["folder", "file", "link"])
def test_an_older_unit_that_a_killed_process_left_goes(tmp_path, leftover):
    store, item = Store(tmp_path / "root"), unit()
    final = make(store, item)
    old = final.with_name("fold0.old")
    if leftover == "folder":
        make(Store(tmp_path / "other"), item)
        os.rename(tmp_path / "other" / item.key, old)
    elif leftover == "file":
        old.write_text("x")
    else:
        (tmp_path / "elsewhere").mkdir()
        old.symlink_to(tmp_path / "elsewhere")
    store.recover(item)
    assert not os.path.lexists(old) and store.status(item) == "done"
    for _ in range(2):
        make(store, item)
    assert left(final.parent) == ["fold0", "fold0/file.txt", f"fold0/{MANIFEST}"]


def test_an_older_unit_comes_back_where_nothing_has_taken_its_place(tmp_path):
    store, item = Store(tmp_path), unit()
    final = make(store, item)
    os.rename(final, final.with_name("fold0.old"))
    store.recover(item)
    assert store.status(item) == "done" and left(final.parent)[0] == "fold0"


def _as_nobody(end, root: Path) -> None:
    os.setegid(65534)
    os.seteuid(65534)
    try:
        make(Store(root), unit())
        end.send("built")
    except Exception as error:  # noqa: BLE001 told to the test
        end.send(f"{type(error).__name__}: {error}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed", ["", "02_loc/net", ".locks"])
def test_a_folder_that_nobody_may_write_to_is_a_sentence(tmp_path, closed):
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and str(path).startswith("/tmp/"):
            path.chmod(0o755)
    root = tmp_path / "root"
    for place in ("", "02_loc/net", ".locks"):
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place).chmod(0o755 if place == closed else 0o777)
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(theirs, root))
    process.start()
    said = mine.recv()
    process.join()
    if closed:
        assert said.startswith("ArtifactError: ") and "Permission denied; change its permissions" in said
        assert str(root / closed) in said
    else:
        assert said == "built", "what is there may be used"


# ---- killed at the seal -------------------------------------------------------------------------------
class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def _dies_at(monkeypatch, number: int) -> None:
    """Die at the n-th call that changes a name or removes one, and do nothing more: a killed process clears nothing."""
    count = [0]

    def counted(real):
        def call(*arguments, **more):
            count[0] += 1
            if count[0] >= number:
                raise Killed
            return real(*arguments, **more)

        return call

    for name in ("replace", "unlink", "rmdir", "mkdir", "rename"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("number", range(1, 24))
def test_a_kill_anywhere_in_the_seal_loses_no_training(tmp_path, monkeypatch, number, older):
    """Whatever step it falls before, the next run has the state of the training, or the finished unit."""
    store, item = Store(tmp_path), unit(a=2)
    if older:
        make(store, unit(a=1), "older")
    trained = []

    def train() -> None:
        with store.build(item, {}) as folder:
            if not (folder / manifest.STATE).exists():
                trained.append(1)
                write_bytes(folder / "best", b"weights")
                write_bytes(folder / manifest.STATE, b"state")
            if len(trained) == 1 and not killed:
                killed.append(1)
                _dies_at(monkeypatch, number)

    killed: list[int] = []
    try:
        train()
    except Killed:
        pass
    monkeypatch.undo()
    store.recover(item)
    if store.status(item) != "done":
        train()
    assert store.status(item) == "done" and len(trained) == 1
    assert left(tmp_path) == ["02_loc", "02_loc/net", "02_loc/net/fold0", "02_loc/net/fold0/best",
                              f"02_loc/net/fold0/{MANIFEST}"]  # fmt: skip


# ---- a lock ends with its owner -----------------------------------------------------------------------
def _owner(end, root: Path) -> None:
    with Store(root).build(unit(), {}):
        loader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        loader.start()
        end.send(loader.pid)
        time.sleep(60)


def test_a_lock_ends_with_its_owner_though_a_forked_process_lives_on(tmp_path):
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_owner, args=(theirs, tmp_path))
    process.start()
    loader = mine.recv()
    try:
        with pytest.raises(ArtifactError, match=f"being built by process {process.pid}"):
            make(Store(tmp_path), unit())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.kill(loader, 0)  # it is still there
        make(Store(tmp_path), unit())
    finally:
        os.kill(loader, signal.SIGKILL)


def test_a_forked_process_that_ends_leaves_its_parent_the_lock(tmp_path):
    with Store(tmp_path).build(unit(), {}):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        process.start()
        process.join()
        with pytest.raises(ArtifactError, match="being built by"):
            make(Store(tmp_path), unit())


def test_a_file_system_that_cannot_rename_a_folder_is_a_sentence(tmp_path, monkeypatch):
    def none(source, target):
        raise OSError(errno.ENOTSUP, "Operation not supported", str(source))

    monkeypatch.setattr(os, "rename", none)
    with pytest.raises(ArtifactError, match=r"\.lease\..*: Operation not supported; .* name another path"):
        make(Store(tmp_path), unit())
    assert not left(tmp_path)


# ---- our own JSON files -------------------------------------------------------------------------------
ODD = ["[]", "null", "3", '"x"', "{}", '{"fingerprint": 3, "files": {}}', '{"fingerprint": "a", "files": []}',
       '{"files": {}}', "[" * 5000, '{"a":' * 300 + "1" + "}" * 300, "{", "\xff", ""]  # fmt: skip


@pytest.mark.parametrize("content", ODD)
def test_an_odd_manifest_is_damage_with_the_command(tmp_path, content):
    store, item = Store(tmp_path), unit()
    (make(store, item) / MANIFEST).write_bytes(content.encode("latin-1"))
    assert store.status(item) == "damaged"
    with pytest.raises(ArtifactError, match=f"is damaged.*run: {item.command}"):
        store.require(item)
    for read in (store.manifest, store.older_code):
        with pytest.raises(ArtifactError, match=f"{MANIFEST}: "):
            read(item)
    make(store, item)
    assert store.status(item) == "done"


@pytest.mark.parametrize("content", ODD)
def test_an_odd_note_in_a_half_built_folder_is_built_anew(tmp_path, content):
    store, item = Store(tmp_path), unit()
    with pytest.raises(KeyError), store.build(item, {}) as folder:
        (folder / "half").write_text("x")
        raise KeyError
    (folder / manifest.BEGUN).write_bytes(content.encode("latin-1"))
    assert store.status(item) == "missing"
    make(store, item)
    assert left(tmp_path / item.key) == ["file.txt", MANIFEST]


def test_json_has_a_depth(tmp_path):
    for depth, taken in ((5, True), (6, False)):
        write_bytes(tmp_path / "a", b"[" * depth + b"1" + b"]" * depth)
        if taken:
            assert json.dumps(read_json(tmp_path / "a", 5)) == "[" * depth + "1" + "]" * depth
        else:
            with pytest.raises(ValueError, match="nested more than 5 deep"):
                read_json(tmp_path / "a", 5)
    write_json(tmp_path / "a", {"a": [{"b": "[[[[[[["}]})
    assert read_json(tmp_path / "a", 3) == {"a": [{"b": "[[[[[[["}]}


# ---- signals ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_clears_away_what_is_half_done_and_exits_with_130(tmp_path, capsys, number):
    before = signal.getsignal(number)

    @cli.exits
    def main(argv):
        with whole_path(tmp_path / "a") as partial:
            partial.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    assert main([]) == 130 and "run the same command again" in capsys.readouterr().err
    assert not left(tmp_path) and signal.getsignal(number) == before


def test_a_loop_is_asked_to_stop_by_each_signal_and_an_echo_does_not_break_its_save():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with runtime.interruptible() as pressed:
            assert not pressed()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)  # torchrun passes on what the terminal sent to all
            os.kill(os.getpid(), signal.SIGTERM)
            assert pressed()


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    monkeypatch.setattr(runtime, "ECHO", 0.0)
    with pytest.raises(KeyboardInterrupt), runtime.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_was_ignored_from_the_start_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with runtime.terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_state_with_a_wrong_byte_is_not_gone_on_with(tmp_path):
    state.save(tmp_path, {"a": torch.zeros(1000), "epoch": 3})
    assert state.load(tmp_path)["epoch"] == 3
    content = bytearray((tmp_path / manifest.STATE).read_bytes())
    place = content.index(bytes(4000)) + 2000
    content[place] = 1
    (tmp_path / manifest.STATE).write_bytes(bytes(content))
    assert torch.load(io.BytesIO(bytes(content)))["a"].count_nonzero() == 1, "torch itself takes it"
    with pytest.raises(ArtifactError, match="last.pt: damaged .*checksum.*--force"):
        state.load(tmp_path)


def test_the_state_of_another_unit_is_not_gone_on_with(tmp_path):
    """Fold 1's last.pt in fold 0 has tensors of the same shapes."""
    for fold in (0, 1):
        (tmp_path / f"fold{fold}").mkdir()
        (tmp_path / f"fold{fold}" / manifest.BEGUN).write_text(json.dumps({"fingerprint": f"of fold {fold}"}))
        state.save(tmp_path / f"fold{fold}", {"epoch": fold})
    assert state.load(tmp_path / "fold0")["epoch"] == 0
    (tmp_path / "fold1" / manifest.STATE).replace(tmp_path / "fold0" / manifest.STATE)
    with pytest.raises(ArtifactError, match="last.pt: damaged .*the state of another unit.*--force"):
        state.load(tmp_path / "fold0")


def test_letters_that_a_terminal_does_not_know_stop_nothing(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert cli.exits(lambda argv: cli.say("caf\u00e9 \u2026 \udce9"))([]) == 0
    assert written.getvalue() == b"caf\xe9 \\u2026 \\udce9\n"
