"""One unit of stage 04 is predicted by several processes: who gives what, and that a sealed unit never changes."""

import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from lib.errors import ArtifactError, ConfigError
from lib.run import manifest
from lib.run.artifacts import Store, Unit
from lib.stages import parts

UNIT = Unit("04_probs/loc/net/fold0/test", {"tile": 64}, per_scene=True)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_a_part_is_one_of_so_many(text):
    with pytest.raises(ConfigError, match="expected I/N"):
        parts.read(text)
    assert parts.read("2/3") == (2, 3)


def test_a_file_is_given_whole_and_replaces_nothing(tmp_path):
    own, folder = tmp_path / "own", tmp_path / "unit.partial"
    own.mkdir(), folder.mkdir()
    (own / "a.tif").write_text("mine"), (folder / "a.tif").write_text("its")
    (own / "flips").mkdir()
    (own / "flips" / "a.tif").write_text("mine")
    assert parts.publish(own, folder, [Path("a.tif"), Path("flips/a.tif")])
    assert (folder / "a.tif").read_text() == "its" and (folder / "flips" / "a.tif").read_text() == "mine"
    assert [path for path in own.rglob("*") if path.is_file()] == []


def test_without_hard_links_a_file_is_moved(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_a_file_is_given_whole_and_replaces_nothing(tmp_path)


@pytest.mark.parametrize("name", ["a.tif", "flips/a.tif"])
def test_a_unit_that_was_sealed_meanwhile_gets_nothing_more(tmp_path, name):
    path = tmp_path / "own" / name
    path.parent.mkdir(parents=True)
    path.write_text("late")
    assert not parts.publish(tmp_path / "own", tmp_path / "unit.partial", [Path(name)])
    assert not (tmp_path / "unit.partial").exists()


def test_who_comes_first_begins_the_unit_and_the_owner_goes_on_with_it(tmp_path):
    store = Store(tmp_path)
    folder = store.begin(UNIT)
    (folder / "a.tif").write_text("given")
    assert store.begin(UNIT) == folder and store.status(UNIT) == "partial"
    with store.build(UNIT, {}) as mine:
        assert mine == folder and (mine / "a.tif").read_text() == "given"
        other = Unit(UNIT.key, {"tile": 128})
        with pytest.raises(ArtifactError, match="is being built by"):  # not swept away while its owner is at work
            Store(tmp_path).begin(other)
        assert Store(tmp_path).begin(UNIT) == folder  # to help needs no lock
    assert store.status(UNIT) == "done"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_helpers_do_what_the_owner_sealed_stays_as_it_was_sealed(tmp_path, seed):
    """Helpers here write other bytes than the owner, as another GPU might; each name has one of them, for good."""
    names = [Path(f"{n}.tif") for n in range(12)]
    begun, wrong = threading.Event(), []

    def help_out(number: int) -> None:
        own, rng = tmp_path / f"own{number}", random.Random(f"{seed} {number}")
        own.mkdir()
        begun.wait()
        folder = Store(tmp_path / "w").partial(UNIT)
        for name in reversed(names):
            (own / name).write_text(f"helper {number}")
            time.sleep(rng.uniform(0, 0.0005))
            if not parts.publish(own, folder, [name]):
                return

    helpers = [threading.Thread(target=help_out, args=(number,)) for number in range(2)]
    for helper in helpers:
        helper.start()
    store, rng = Store(tmp_path / "w"), random.Random(seed)
    with store.build(UNIT, {}) as folder:
        begun.set()
        for name in names:
            if not (folder / name).exists():
                time.sleep(rng.uniform(0, 0.0005))
                (tmp_path / "owners").write_text("owner")
                os.replace(tmp_path / "owners", folder / name)
    for helper in helpers:
        helper.join()
    sealed = store.folder(UNIT)
    assert not manifest.fault(sealed) and not manifest.strangers(sealed) and not wrong
    assert not store.partial(UNIT).exists() and len(list(sealed.glob("*.tif"))) == len(names)


@pytest.mark.slow
def test_parts_give_all_scenes_and_the_owner_seals_the_same_bytes(experiment, capsys, monkeypatch):
    from lib.stages.predict import Networks

    flags = ("--only", "loc", "--fold", "0", "--split", "test")
    unit = experiment.root / "04_probs/loc/loc/fold0/test"
    before = {path.name: path.read_bytes() for path in unit.glob("*.tif")}
    assert experiment.run("04_predict_tta", *flags, "--part", "1/2") == 0
    assert "finished, nothing to help with" in capsys.readouterr().out
    shutil.rmtree(unit)
    for part in ("2/2", "1/1"):  # of two scenes the first of these gives one, and the next the one that is left
        assert experiment.run("04_predict_tta", *flags, "--part", part) == 0
        assert f"part {part[0]} of {part[2]} has given 1 scenes" in capsys.readouterr().out
    assert not unit.exists() and not list((experiment.root / parts.OWN).iterdir())
    monkeypatch.setattr(Networks, "answers", None)  # nothing is left to predict
    assert experiment.run("04_predict_tta", *flags) == 0
    assert {path.name: path.read_bytes() for path in unit.glob("*.tif")} == before
    assert experiment.run("04_predict_tta", *flags, "--part", "3/2") == 2
