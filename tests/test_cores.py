"""Stage 05 on several cores: the same bytes whatever their number, a worker that dies, how many there are."""

import os
import signal

import cv2
import pytest
import torch
from conftest import TINY, stage
from foretold import foretell, opened
from sisters import COMMON, EXPERIMENTS

from lib.choose import evidence, fit, medians
from lib.choose.evidence import out_of_fold
from lib.errors import ArtifactError
from lib.run import cores
from lib.run.executor import Pool
from lib.stages import ensemble

CPU = torch.device("cpu")
SMALL = {"scenes": 8, "test_scenes": 2, "size": 64, "seed": 1}
BUILDINGS = {
    **TINY,
    "data": {"synthetic": SMALL},
    "folds": {"n": 3},
    "models": {name: {**TINY["models"][name[:3]], "train": {**TINY["models"][name[:3]]["train"], "init_from": None}}
               for name in ("loc", "cls", "cls_two")},
    "predict": {"tta": ["none", "hflip"], "tile": 64},
    "blend": {"fit": 0.5},
    "search": {**TINY["search"], "choose": "median", "unseen": {"loc_threshold": 0.4}},
}  # fmt: skip
LABELS = {**COMMON, **EXPERIMENTS["labels"]}
LABELS = {**LABELS, "data": {"synthetic": {**EXPERIMENTS["labels"]["data"]["synthetic"], "scenes": 12, "size": 64}},
          "models": {name: LABELS["models"]["pictures"] for name in ("one", "two")},
          "blend": {"select": "greedy", "rounds": 2, "calibrate": True}}  # fmt: skip


@pytest.fixture(scope="module", params=["buildings", "labels"])
def run(request, tmp_path_factory):
    """An experiment with three models or fewer, of which stage 04 is done."""
    cv2.setNumThreads(1)  # a forked process does not inherit threads, and would wait for them
    made = opened(tmp_path_factory.mktemp(request.param), BUILDINGS if request.param == "buildings" else LABELS)
    foretell(made)
    yield made
    cv2.setNumThreads(-1)


def made_by(run, workers: int) -> dict[str, bytes]:
    """Return the files that stage 05 writes with so many workers."""
    found = {}
    with Pool(cores.Hand, [CPU] * workers, "fork") as pool:
        for unit in ensemble.units(run):
            with run.store.build(unit, {}, fresh=True) as folder:
                if unit == run.graph.decode():
                    _, clock = fit.choose(run, folder, pool)
                    assert set(clock) == {"read", "decode"}
                else:
                    assert set(ensemble.write(run, unit, folder, pool)["clock"]) == {"read", "store"}
                found |= {
                    str(path.relative_to(folder.parent)): path.read_bytes()
                    for path in folder.rglob("*.*")
                    if path.name != "unit.json"
                }
        assert len(pool.processes) == (workers if workers > 1 else 0)
    return found


@pytest.mark.slow
def test_decode_json_and_averages_are_the_same_bytes_whatever_the_number_of_workers(run, monkeypatch):
    monkeypatch.setattr(evidence, "AT_ONCE", 2)
    monkeypatch.setattr(medians, "DRAWS", 5)
    one = made_by(run, 1)
    tasks = {model.task for model in run.config.models.values()}
    averaged = (*run.graph.train_ids, *run.graph.test_ids)
    assert len(one) == 2 + len(tasks) * len(averaged), "decode.json, figures.json and the averages"
    assert made_by(run, 2) == one and made_by(run, 3) == one


def die(item, workdir):
    """Kill the process that counts a scene."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_a_sentence_and_one_that_fails_raises_what_it_found(run):
    with Pool(cores.Hand, [CPU] * 2, "fork") as pool:
        scenes = out_of_fold(run, pool=pool)
        with pytest.raises(ArtifactError, match="worker . of 2 on cpu died .*fewer workers"):
            scenes.added("", die, None)
    lost = run.store.root / run.graph.probs(next(iter(run.config.models)), 0, "oof").key / "manifest.json"
    with Pool(cores.Hand, [CPU] * 2, "fork") as pool:
        scenes = out_of_fold(run, pool=pool)
        broken = next(path for path in lost.parent.rglob("*.tif"))
        whole = broken.read_bytes()
        broken.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        try:
            with pytest.raises(ArtifactError, match=f"{broken.name}: its bytes changed after it was written"):
                fit.decide(scenes, {}, {})
        finally:
            broken.write_bytes(whole)


# ---- how many -----------------------------------------------------------------------------------------
def test_as_many_processes_as_were_asked_for_or_one_per_core_that_has_enough_scenes(monkeypatch):
    monkeypatch.setattr(cores, "cores", lambda: 4)
    sizes = [len(cores.open_pool(wanted, scenes)) for wanted, scenes in
             ((3, 1), (None, 0), (None, 63), (None, 64), (None, 9168))]  # fmt: skip
    assert sizes == [3, 1, 1, 2, 4]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(cores.open_pool(3, 9168)) == 1, "under torchrun"


def test_cores_are_those_of_the_affinity_and_of_every_control_group_above(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    own, root = tmp_path / "own", tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert cores.cores(own, root) == 8 and cores.cores(tmp_path / "none", root) == 8
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (root / "a" / "cpu.max").write_text("250000 100000\n")
    assert cores.cores(own, root) == 3, "two and a half"
    (root / "cpu.max").write_text("50000 100000\n")
    assert cores.cores(own, root) == 1
    (root / "cpu.max").unlink()
    (root / "cpu").mkdir()
    for name, value in (("quota", "-1"), ("period", "100000")):
        (root / "cpu" / f"cpu.cfs_{name}_us").write_text(value)
    own.write_text("3:cpu:/\n")
    assert cores.cores(own, root) == 8, "version 1 without a limit"
    (root / "cpu" / "cpu.cfs_quota_us").write_text("200000")
    assert cores.cores(own, root) == 2


@pytest.mark.slow
def test_the_stage_counts_in_processes_of_its_own_and_says_the_same(run, tmp_path):
    before = made_by(run, 1)
    flags = ["--config", str(run.store.root.parent.parent / "experiment.yaml"), "--workdir", str(run.store.root.parent)]
    assert stage("05_ensemble", *flags, "--force", "--set", "data.workers=2") == 0
    root = run.store.root / "05_ensemble"
    assert before == {name: (root / name.replace(".partial", "")).read_bytes() for name in before}


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path):
    own, groups, machine = tmp_path / "own", tmp_path / "groups", tmp_path / "meminfo"
    assert cores.free_memory(own, groups, machine) == float("inf"), "a system that does not say"
    machine.write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\n")
    assert cores.free_memory(own, groups, machine) == 50 * 1024
    for folder, names, prefix in (
        (groups, ("memory.max", "memory.current"), ""),
        (groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / names[1]).write_text("9000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file 600\n{prefix}active_file 70\n")
        (folder / names[0]).write_text("10000\n")
        assert cores.free_memory(own, groups, machine) == 1670
        (folder / names[0]).write_text("max\n")
        assert cores.free_memory(own, groups, machine) == 50 * 1024
    inner = groups / "job" / "step"  # as SLURM makes them; the one above binds too
    inner.mkdir(parents=True)
    own.write_text("0::/job/step\n")
    for name, text in {"memory.max": "4000", "memory.current": "1000", "memory.stat": "inactive_file 0\n"}.items():
        (groups / "job" / name).write_text(text)
    assert cores.free_memory(own, groups, machine) == 3000
