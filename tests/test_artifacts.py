"""The store: whole or not there, stale when a fact changes, frozen when attached, locked while it is built."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from lib.errors import ArtifactError
from lib.files import digest
from lib.run.artifacts import MANIFEST, Store, Unit


def unit(key="01_folds", upstream=(), **facts):
    return Unit(key, facts or {"a": 1}, f"python {key}.py", tuple(upstream))


def make(store, item, text="content"):
    with store.build(item, {"stage": "test"}) as folder:
        (folder / "file.txt").write_text(text)


def test_a_unit_has_its_name_only_when_it_is_whole(tmp_path):
    store, item = Store(tmp_path), unit()
    with pytest.raises(RuntimeError), store.build(item, {}) as folder:
        (folder / "file.txt").write_text("half")
        raise RuntimeError("killed")
    assert not (tmp_path / item.key).exists() and store.status(item) == "partial"
    with store.build(item, {}) as folder:
        assert (folder / "file.txt").read_text() == "half", "a matching partial is continued"
    assert store.status(item) == "done"
    assert json.loads((tmp_path / item.key / MANIFEST).read_text())["files"] == {"file.txt": 4}


def test_a_partial_of_other_facts_is_not_continued(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.build(unit(a=1), {}) as folder:
        (folder / "file.txt").write_text("of other settings")
        raise RuntimeError
    assert store.status(unit(a=2)) == "missing"
    with store.build(unit(a=2), {}) as folder:
        assert not (folder / "file.txt").exists()


def test_one_changed_fact_makes_the_unit_and_all_that_read_it_stale(tmp_path):
    store = Store(tmp_path)

    def chain(value):
        first = unit("01_folds", a=value)
        side = unit("02_loc/side", b=1)
        second = unit("02_loc/net", [first], b=1)
        return first, side, second, unit("04_probs/net", [second], c=1)

    for item in chain(1):
        make(store, item)
    assert [store.status(u) for u in chain(1)] == ["done"] * 4
    assert [store.status(u) for u in chain(2)] == ["stale", "done", "stale", "stale"]
    with pytest.raises(ArtifactError, match="01_folds was made with other settings; run: python 01_folds.py"):
        store.require(chain(2)[0])


@pytest.mark.parametrize("harm", ["truncate", "delete", "manifest"])
def test_harm_to_a_finished_unit_is_noticed(tmp_path, harm):
    store, item = Store(tmp_path), unit()
    make(store, item)
    path = tmp_path / item.key / "file.txt"
    if harm == "truncate":
        path.write_text("cont")
    elif harm == "delete":
        path.unlink()
    else:
        (tmp_path / item.key / MANIFEST).write_text("{")
    assert store.status(item) == "damaged"
    with pytest.raises(ArtifactError, match="is damaged"):
        store.require(item)
    make(store, item)
    assert store.status(item) == "done"


def test_frozen_inputs_are_taken_and_keep_their_fingerprint(tmp_path):
    attached, own = Store(tmp_path / "attached"), Store(tmp_path / "own", (tmp_path / "attached",))
    first = unit("01_folds", a=1)
    make(attached, first)
    changed = unit("01_folds", a="data that are not here")
    assert own.status(changed) == "frozen" and own.require(changed) == tmp_path / "attached" / "01_folds"
    assert own.fingerprint(changed) == attached.fingerprint(first)
    test_side = Unit("04_probs/test", {}, "", (), portable=False)
    make(attached, test_side)
    assert own.status(test_side) == "missing", "results about test scenes are never taken from inputs"


def test_digest_ignores_the_order_of_keys_only():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})


def _hold(root, key):
    with Store(root).build(unit(key), {}) as folder:
        (folder / "begun").write_text("x")
        time.sleep(60)


def test_a_second_process_on_the_same_unit_is_refused_and_a_kill_frees_it(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, "01_folds"))
    process.start()
    try:
        while not (tmp_path / "01_folds.partial" / "begun").exists():
            time.sleep(0.01)
        with pytest.raises(ArtifactError, match=f"being built by process {process.pid}"), \
                Store(tmp_path).build(unit(), {}):  # fmt: skip
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    make(Store(tmp_path), unit())
    assert Store(tmp_path).status(unit()) == "done"


def test_a_kill_between_the_manifest_and_the_rename_is_recovered(tmp_path):
    store, item = Store(tmp_path), unit()
    make(store, item)
    os.rename(tmp_path / "01_folds", tmp_path / "01_folds.partial")
    store.recover(item)
    assert store.status(item) == "done"


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    store, item = Store(tmp_path), unit()
    with pytest.raises(ArtifactError, match="disk is full"), store.build(item, {}) as folder:
        (folder / "first.txt").write_text("whole")
        raise OSError(28, "No space left on device")
    with store.build(item, {}) as folder:
        assert (folder / "first.txt").read_text() == "whole"


def test_older_code_is_told_apart(tmp_path):
    make(Store(tmp_path, code="old"), unit())
    assert Store(tmp_path, code="new").older_code(unit())
    assert not Store(tmp_path, code="old").older_code(unit())


def test_networks_of_other_folds_than_those_that_are_taken_are_refused(tmp_path):
    """Of two folders one holds the folds and the other networks that have seen what is out of fold here."""
    folds = unit("01_folds")
    net = unit("02_loc/net/fold0", [folds])
    oof = unit("04_probs/loc/net/fold0/oof", [net])
    for name in ("a", "b"):
        made = Store(tmp_path / name)
        make(made, folds, f"folds of {name}")
        make(made, net)
    (tmp_path / "b" / "01_folds").rename(tmp_path / "other")
    mixed = Store(tmp_path / "own", (tmp_path / "a", tmp_path / "b"))
    mixed.refuse_mixed(oof, folds)
    mixed = Store(tmp_path / "own", (tmp_path / "b", tmp_path / "a"))
    with pytest.raises(ArtifactError, match="b/02_loc/net/fold0: was made from another 01_folds than .*a/01_folds"):
        mixed.refuse_mixed(oof, folds)
    make(mixed, folds, "folds of b")
    mixed.refuse_mixed(oof, folds)
