"""Damage of the same length is noticed before a byte is used; what is built on a unit follows its bytes."""

import json
import os
import shutil

import pytest

from lib.errors import ArtifactError
from lib.files import sha256
from lib.run import manifest
from lib.run.artifacts import MANIFEST, Store, Unit
from lib.run.manifest import check, fault

FILES = {
    "01_folds": {"folds.csv": "id,fold\na,0\nb,1\n", "audit.json": "{}"},
    "02_loc/net/fold0": {
        "best.safetensors": "weights of fold 0",
        "network.json": '{"images": ["a"]}',
        "log.jsonl": "",
    },
    "02_loc/net/fold1": {
        "best.safetensors": "weights of fold 1",
        "network.json": '{"images": ["a"]}',
        "log.jsonl": "",
    },
    "04_probs/loc/net/fold0/oof": {"a.tif": "levels of a", "b.tif": "levels of b"},
    "05_ensemble/decode": {"decode.json": '{"threshold": 0.45}'},
    "06_submission/test": {"submission.csv": "id,rle\nt,1 2\n"},
}


def units():
    """Return key -> unit: each is built on the one before it, the two folds on the folds."""
    folds = Unit("01_folds", {"n": 2}, "python 01.py", beside=("audit.json",))
    nets = [Unit(f"02_loc/net/fold{k}", {"k": k}, f"python 02.py --fold {k}", (folds,), beside=("log.jsonl",))
            for k in (0, 1)]  # fmt: skip
    probs = Unit("04_probs/loc/net/fold0/oof", {"p": 1}, "python 04.py", (nets[0],), per_scene=True)
    decode = Unit("05_ensemble/decode", {"d": 1}, "python 05.py", (probs, folds))
    answer = Unit("06_submission/test", {"s": 1}, "python 06.py", (decode,), portable=False)
    return {unit.key: unit for unit in (folds, *nets, probs, decode, answer)}


def build(store, unit, **changes):
    with store.build(unit, {"stage": unit.key[:2]}) as folder:
        for name, text in {**FILES[unit.key], **changes}.items():
            (folder / name).write_text(text)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    found = Store(tmp_path / "work")
    for unit in units().values():
        build(found, unit)
    return found


def states(store, **changes):
    return {key: store.status(unit) for key, unit in {**units(), **changes}.items()}


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


HARMS = {
    "one bit of the weights": ("02_loc/net/fold0", "best.safetensors", one_bit),
    "fold 1's weights in fold 0": ("02_loc/net/fold0", "best.safetensors",
                                   lambda path: (path.parents[1] / "fold1" / path.name).read_bytes()),
    "one bit of probabilities": ("04_probs/loc/net/fold0/oof", "a.tif", one_bit),
    "two scenes exchanged": ("04_probs/loc/net/fold0/oof", "a.tif", lambda path: (path.parent / "b.tif").read_bytes()),
    "folds exchanged": ("01_folds", "folds.csv", lambda path: b"id,fold\na,1\nb,0\n"),
    "one digit of the decision": ("05_ensemble/decode", "decode.json",
                                  lambda path: path.read_bytes().replace(b"0.45", b"0.46")),
    "one letter of the network": ("02_loc/net/fold0", "network.json", lambda path: b'{"images": ["b"]}'),
    "one byte of the submission": ("06_submission/test", "submission.csv", one_bit),
}  # fmt: skip


@pytest.mark.parametrize("touched", [True, False], ids=["touched", "with its old time"])
@pytest.mark.parametrize("harm", HARMS)
def test_damage_of_the_same_length_is_noticed_before_a_byte_is_used(store, harm, touched):
    key, name, change = HARMS[harm]
    unit, path = units()[key], store.root / key / name
    before, content = path.stat(), change(path)
    assert len(content) == before.st_size and content != path.read_bytes()
    path.write_bytes(content)
    if not touched:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.status(unit) == "damaged"
    with pytest.raises(ArtifactError, match=f"{key} is damaged .*{name}: its bytes changed.*; run: {unit.command}"):
        store.require(unit)
    with pytest.raises(ArtifactError, match=name):
        check(path)
    build(store, unit)
    assert set(states(store).values()) == {"done"}, "mended to the same bytes, nothing else is made again"


def test_a_large_unit_is_checked_file_by_file_when_it_is_read(store, monkeypatch):
    """Only what was touched is hashed to see whether the unit is done; what is read always is."""
    monkeypatch.setattr(manifest, "SMALL", 0)
    unit = units()["04_probs/loc/net/fold0/oof"]
    folder = store.require(unit)
    before = (folder / "a.tif").stat()
    (folder / "a.tif").write_bytes(one_bit(folder / "a.tif"))
    assert "a.tif: its bytes changed" in fault(folder)
    os.utime(folder / "a.tif", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "a.tif: its bytes changed" in fault(folder), "an older time does not hide it"
    manifest.retime(folder)  # as of a disk that forgets: nobody has written the file
    assert not fault(folder), "this is what --force in the next sentence is for"
    assert store.check(folder / "b.tif") == folder / "b.tif"
    with pytest.raises(ArtifactError, match=r"a.tif: its bytes changed.*run: python 04.py --force"):
        store.check(folder / "a.tif")
    weights = units()["02_loc/net/fold0"]
    (store.root / weights.key / "best.safetensors").write_text("weights of fold 9")
    manifest.retime(store.root / weights.key)
    with pytest.raises(ArtifactError, match=r"best.safetensors: its bytes.*run: python 02.py --fold 0 --force"):
        store.require(weights)


def test_the_folder_of_another_unit_is_damage(store, tmp_path):
    net = units()["02_loc/net/fold0"]
    shutil.rmtree(store.root / net.key)
    shutil.copytree(store.root / "02_loc/net/fold1", store.root / net.key)
    assert store.status(net) == "damaged"
    with pytest.raises(ArtifactError, match=r"02_loc/net/fold0 is damaged \(.*fold0: holds 02_loc/net/fold1\); run:"):
        store.require(net)
    with pytest.raises(ArtifactError, match=r"fold0: holds 02_loc/net/fold1; the attached copy"):
        Store(tmp_path / "own", (store.root,)).require(net)


def test_a_file_that_no_manifest_lists_is_not_used(store):
    unit = units()["04_probs/loc/net/fold0/oof"]
    stranger = store.require(unit) / "c.tif"
    shutil.copy(stranger.parent / "a.tif", stranger)
    with pytest.raises(ArtifactError, match=r"c.tif: expected only what .*manifest.json lists, found 1 .*; move"):
        store.require(unit)
    with pytest.raises(ArtifactError, match=r"c.tif: not among the files that .*manifest.json lists"):
        check(stranger)
    stranger.rename(stranger.with_name(".DS_Store"))
    store.require(unit)
    (stranger.parent / MANIFEST).rename(stranger.parents[1] / "elsewhere")
    with pytest.raises(ArtifactError, match="expected a file of a finished unit"):
        check(stranger.parent / "a.tif")


def test_a_file_is_hashed_once_per_process(store, monkeypatch):
    hashed = []
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    manifest._sums.clear()
    unit = units()["02_loc/net/fold0"]
    for _ in range(3):
        store.require(unit)
        store.status(unit)
    assert sorted(hashed.count(name) for name in set(hashed)) == [1] * len(set(hashed)) and len(hashed) >= 3


# ---- what is built on a unit --------------------------------------------------------------------------
AFTER_FOLD_0 = {"04_probs/loc/net/fold0/oof", "05_ensemble/decode", "06_submission/test"}


def stale(found):
    assert set(found.values()) <= {"done", "stale"}
    return {key for key, status in found.items() if status == "stale"}


def test_what_is_built_on_a_unit_follows_its_bytes(store):
    net = units()["02_loc/net/fold0"]
    with store.build(net, {}, fresh=True) as folder:
        for name, text in {**FILES[net.key], "best.safetensors": "weights of another run"}.items():
            (folder / name).write_text(text)
    assert stale(states(store)) == AFTER_FOLD_0, "as after 02 --force with other code"
    with pytest.raises(ArtifactError, match="oof was made from another 02_loc/net/fold0; run: python 04.py"):
        store.require(units()["05_ensemble/decode"])  # what is to be run first
    build(store, units()["04_probs/loc/net/fold0/oof"])
    assert not stale(states(store)), "its bytes are as they were, and nothing after it is made again"


def test_logs_are_no_part_of_what_is_built_on_a_unit(store):
    build(store, units()["02_loc/net/fold0"], **{"log.jsonl": "other seconds"})
    build(store, units()["01_folds"], **{"audit.json": '{"other": 1}'})
    assert not stale(states(store))
    build(store, units()["01_folds"], **{"folds.csv": "id,fold\na,1\nb,0\n"})
    assert stale(states(store)) == AFTER_FOLD_0 | {"02_loc/net/fold0", "02_loc/net/fold1"}


def test_data_that_changed_make_a_unit_stale_and_its_fingerprint_is_as_it_was(store):
    def net(**data):
        return Unit("02_loc/net/fold0", {"k": 0}, "python 02.py", (units()["01_folds"],), data=data)

    assert store.status(net(labels="x")) == "done", "what was not recorded is not compared"
    build(store, net(labels="x", images="y"))
    assert store.status(net(labels="x", images="y")) == "done" and store.status(net()) == "done"
    found = states(store, **{"02_loc/net/fold0": net(labels="z", images="y")})
    assert found["02_loc/net/fold0"] == "stale"
    with pytest.raises(ArtifactError, match=r"was made from other data \(labels: changed, new or gone since\); run:"):
        store.require(net(labels="z", images="y"))
    many = {f"s{k}": "new" for k in range(5)}
    with pytest.raises(ArtifactError, match=r"\(images, labels, s0 and 4 more: "):
        store.require(net(**many))


def test_what_is_built_on_a_unit_that_was_removed_follows_its_data(store):
    def chain(labels):
        net = Unit("02_loc/net/fold0", {"k": 0}, "", (units()["01_folds"],), data={"labels": labels})
        return net, Unit("04_probs/loc/net/fold0/oof", {"p": 1}, "", (net,), data={"images": "y"}, per_scene=True)

    for unit in chain("x"):
        build(store, unit)
    shutil.rmtree(store.root / "02_loc/net/fold0")
    assert [store.status(unit) for unit in chain("x")] == ["missing", "done"], "to save space"
    assert [store.status(unit) for unit in chain("z")] == ["missing", "stale"]
    assert store.outdated(chain("z")[1]) == "from other data than a 02_loc/net/fold0 of today"


def test_a_half_built_unit_is_gone_on_with_only_from_the_same_bytes_and_data(store):
    def net(**data):
        return Unit("02_loc/net/fold0", {"k": 0}, "python 02.py", (units()["01_folds"],), data=data)

    def begin(unit):
        with pytest.raises(RuntimeError), store.build(unit, {}) as folder:
            there = (folder / "begun").exists()
            (folder / "begun").touch()
            raise RuntimeError("killed")
        return there

    assert [begin(net(labels="x")), begin(net(labels="x")), begin(net(labels="y"))] == [False, True, False]
    build(store, units()["01_folds"], **{"folds.csv": "id,fold\na,1\nb,0\n"})
    assert [begin(net(labels="y")), begin(net(labels="y"))] == [False, True]


# ---- earlier versions ---------------------------------------------------------------------------------
def age(folder):
    """Write a manifest as earlier versions did, with sizes alone."""
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(
        json.dumps(
            {key: value for key, value in content.items() if key not in ("sha256", "times", "content", "read", "data")}
        )
    )


def test_units_of_an_earlier_version_are_taken_over_and_checked_from_then_on(store):
    for key in units():
        age(store.root / key)
    assert set(states(store).values()) == {"done"}
    weights = store.root / "02_loc/net/fold0/best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert states(store)["02_loc/net/fold0"] == "damaged", "by size, as before"
    weights.write_text(FILES["02_loc/net/fold0"]["best.safetensors"])
    adopted = [key for key, unit in reversed(units().items()) if store.adopt(unit)]
    assert adopted == ["06_submission/test", "02_loc/net/fold1"], "what they read before them, and each once"
    assert set(states(store).values()) == {"done"}
    weights.write_bytes(one_bit(weights))
    assert states(store)["02_loc/net/fold0"] == "damaged"


def test_a_copy_of_a_large_unit_is_hashed_once(store, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SMALL", 0)
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copy, unit, hashed = Store(tmp_path / "copy"), units()["04_probs/loc/net/fold0/oof"], []
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    before = manifest.read(copy.root / unit.key)
    for expected in (["a.tif", "b.tif"], []):
        manifest._sums.clear()
        hashed.clear()
        assert not fault(copy.root / unit.key) and sorted(hashed) == expected
        assert not copy.adopt(unit)
    after = manifest.read(copy.root / unit.key)
    assert after["times"] != before["times"] and {**after, "times": 0} == {**before, "times": 0}


def test_what_cannot_be_recorded_stops_nothing(store, monkeypatch):
    """Another process records it, or the disk is read-only."""
    net = units()["02_loc/net/fold0"]
    age(store.root / net.key)
    with store._lock(net):
        assert not store.adopt(net) and store.status(net) == "done"
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_json", lambda *_: (_ for _ in ()).throw(OSError(30, "read-only")))
        assert not store.adopt(net) and store.status(net) == "done"
    assert store.adopt(net)


def test_frozen_units_of_an_earlier_version_serve_by_size(store, tmp_path):
    attached = tmp_path / "attached"
    shutil.copytree(store.root, attached)
    own = Store(tmp_path / "own", (attached,))
    for key in ("01_folds", "02_loc/net/fold0"):
        age(attached / key)
    probs = units()["04_probs/loc/net/fold0/oof"]
    shutil.rmtree(attached / probs.key)
    build(own, probs)
    assert own.status(probs) == "done" and own.status(units()["02_loc/net/fold0"]) == "frozen"
    assert own.require(units()["02_loc/net/fold0"]) == attached / "02_loc/net/fold0"
    assert not own.adopt(units()["02_loc/net/fold0"]), "what is attached is never written to"


def test_an_attached_copy_that_is_damaged_or_exchanged_is_noticed(store, tmp_path):
    attached = tmp_path / "attached"
    shutil.copytree(store.root, attached)
    shutil.rmtree(attached / "04_probs")
    own, net = Store(tmp_path / "own", (attached,)), units()["02_loc/net/fold0"]
    build(own, units()["04_probs/loc/net/fold0/oof"])
    weights = attached / net.key / "best.safetensors"
    weights.write_bytes(one_bit(weights))
    with pytest.raises(ArtifactError, match=r"best.safetensors: its bytes changed.*attach it again"):
        own.require(net)
    manifest.write(attached / net.key, manifest.read(attached / net.key), net.beside)  # another upload
    assert own.status(units()["04_probs/loc/net/fold0/oof"]) == "stale"


# ---- scenes that are as they were ---------------------------------------------------------------------
def probs_of(**data):
    return Unit("04_probs/loc/net/fold0/test", {"split": "test", "scenes": sorted(data)}, "python 04.py",
                (units()["02_loc/net/fold0"],), portable=False, data=data, per_scene=True)  # fmt: skip


def predict(store, unit, failed=()):
    """Build a unit as stage 04 does; returns the scenes that were predicted."""
    with store.build(unit, {"failed": dict.fromkeys(failed, "broken")} if failed else {}) as folder:
        kept = store.reuse(unit, {scene: [f"{scene}.tif"] for scene in unit.data})
        for scene in unit.data.keys() - set(kept):
            (folder / f"{scene}.tif").write_text(f"levels of {scene} seen as {unit.data[scene]}")
    assert store.status(unit) == "done" and not manifest.strangers(store.root / unit.key)
    return sorted(unit.data.keys() - set(kept))


def test_only_the_scene_whose_image_changed_is_predicted_again(store):
    assert predict(store, probs_of(a="1", b="1", c="1")) == ["a", "b", "c"]
    assert store.status(probs_of(a="1", b="2", c="1")) == "stale"
    assert predict(store, probs_of(a="1", b="2", c="1")) == ["b"]
    assert (store.root / probs_of().key / "b.tif").read_text() == "levels of b seen as 2"
    assert predict(store, probs_of(a="1", b="2", c="1", d="1")) == ["d"], "one that is new"
    assert predict(store, probs_of(a="1", c="1")) == [], "one that is gone leaves no file"


def test_scenes_that_failed_are_predicted_again_and_damaged_ones_too(store):
    unit = probs_of(a="1", b="1")
    predict(store, unit, failed=["b"])
    assert predict(store, unit) == ["b"]
    path = store.root / unit.key / "a.tif"
    path.write_bytes(one_bit(path))
    assert store.status(unit) == "damaged" and predict(store, unit) == ["a"]
    assert predict(store, unit) == []


def test_with_another_network_or_other_settings_every_scene_is_predicted_again(store):
    unit = probs_of(a="1", b="1")
    predict(store, unit)
    build(store, units()["02_loc/net/fold0"], **{"best.safetensors": "other weights"})
    assert predict(store, unit) == ["a", "b"]
    other = Unit(unit.key, {**unit.facts, "tta": "flips"}, "", unit.upstream, data=unit.data, per_scene=True)
    assert predict(store, other) == ["a", "b"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"fingerprint": "f", "files": []}', "{", "[" * 5000,
                                     '{"fingerprint": "f", "files": {"x": "y"}}',
                                     '{"fingerprint": "f", "files": {}, "sha256": []}',
                                     '{"fingerprint": "f", "files": {"x": 1}, "sha256": {"x": 1}}',
                                     '{"fingerprint": "f", "files": {"x": 1}, "sha256": {"y": "1"}}'])  # fmt: skip
def test_a_manifest_that_is_none_is_damage(store, content):
    unit = units()["02_loc/net/fold0"]
    (store.root / unit.key / MANIFEST).write_text(content)
    assert store.status(unit) == "damaged"
    with pytest.raises(ArtifactError, match="is damaged"):
        store.require(unit)
