"""The engines of ``lib.cluster`` at work: the stages on this machine, and fakes on Dask workers that are killed."""

import os
import signal
import threading
import time
from pathlib import Path

import kills
import pytest
import starts
import yaml
from conftest import stage
from test_flow import Disk

from lib.cluster import __main__ as command
from lib.cluster.engines import Dask, Local
from lib.cluster.flow import Flow, Rules
from lib.cluster.launch import Call
from lib.errors import ArtifactError, ConfigError


def forked(call: Call, **more: str) -> dict:
    """Run a stage as ``launch.run`` does, in a process that has its imports already."""
    started = time.monotonic()
    code = starts.run(Path(call.command[0]).stem, *call.command[1:], output=Path(call.log))
    return {"code": code, "host": "here", "process": 0, "seconds": time.monotonic() - started, "said": ""}


@pytest.mark.slow
def test_two_at_a_time_give_the_bytes_of_the_six_scripts(tmp_path, monkeypatch, capsys):
    tree = {**kills.EXPERIMENT, "data": {**kills.EXPERIMENT["data"], "root": str(tmp_path / "data")}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    flags = ["--config", str(tmp_path / "tiny.yaml"), "--workdir"]
    for name in kills.STAGES:
        assert stage(name, *flags, str(tmp_path / "six")) == 0
    capsys.readouterr()
    monkeypatch.setattr(command, "Local", lambda count: Local(count, gpus=[], work=forked))
    assert command.main([*flags, str(tmp_path / "two"), "--local", "2"]) == 0
    said = capsys.readouterr().out
    assert "[9/9] 06_submission/test: done in" in said and "report:" in said
    for unit in ("01_folds", "02_loc", "04_probs", "05_ensemble", "06_submission"):
        assert not kills.Trials.differences(tmp_path / "two/tiny" / unit, tmp_path / "six/tiny" / unit), unit
    logs = {path.name for path in (tmp_path / "two/tiny/logs").iterdir()}
    assert "02_loc__net__fold0.log" in logs and len(logs) == 8
    assert "epoch" in (tmp_path / "two/tiny/logs/02_loc__net__fold0.log").read_text()


# ---- Dask ---------------------------------------------------------------------------------------------
SCRIPT = """
import os, signal, sys, time
name = sys.argv[2]
if name == "bad":
    print("error: scene 7 is odd"); os._exit(2)
def stopped(*_):
    open(name + ".stopped", "w").close(); os._exit(130)
signal.signal(15, stopped)
open(f"{name}.begun.{os.getpid()}", "w").write(os.environ["OMP_NUM_THREADS"])
while name in ("slow", "other") and not os.path.exists(name + ".go"):
    time.sleep(0.01)
open(name + ".done", "w").close()
"""


class Files(Disk):
    """Units that are files, made by a script that waits for another file where its name says so."""

    def __init__(self, folder: Path, graph: dict[str, tuple[str, ...]]):
        super().__init__(graph)
        self.folder = folder

    def done(self, job, before=False) -> bool:
        return (self.folder / f"{job.name}.done").exists()


def begun(folder: Path, name: str, count: int = 1) -> list[Path]:
    """Wait until a unit has begun so often; returns what each left."""
    while len(found := list(folder.glob(f"{name}.begun.*"))) < count:
        time.sleep(0.01)
    return found


@pytest.mark.slow
def test_on_dask_lost_workers_clients_and_schedulers_lose_nothing(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "02_x.py").write_text(SCRIPT)
    rules = Rules(tmp_path / "logs", tmp_path, tmp_path, {"OMP_NUM_THREADS": "7"}, tick=0.02)

    def flowing(graph, say):
        engine = Dask(cluster.scheduler_address)
        flow = Flow(Files(tmp_path, graph), engine, rules, say)
        result: dict = {}

        def run():
            try:
                result.update(flow.run(lambda: "stop" in result))
            except BaseException as error:  # noqa: BLE001 told to the test
                result["error"] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return engine, thread, result

    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**how) as cluster:
        said: list[str] = []
        graph = {"first": (), "slow": ("first",), "bad": ("first",), "last": ("slow",)}
        engine, thread, result = flowing(graph, said.append)
        begun(tmp_path, "slow")
        other, second, theirs = flowing(graph, lambda line: None)  # a second client: the same work, not twice
        (worker,) = [name for name, keys in engine.client.processing().items() if any("slow" in key for key in keys)]
        os.kill(engine.client.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)
        begun(tmp_path, "slow", 2)
        while not (tmp_path / "slow.stopped").exists():  # what the killed worker ran has ended with it
            time.sleep(0.01)
        (tmp_path / "slow.go").touch()
        thread.join(), second.join()
        assert result == theirs and result["last"] == result["slow"] == ""
        assert result["bad"].startswith("scene 7 is odd; its log: ")
        assert len(list(tmp_path.glob("slow.begun.*"))) == 2 and len(list(tmp_path.glob("last.begun.*"))) == 1
        assert {path.read_text() for path in tmp_path.glob("*.begun.*")} == {"7"}
        assert (
            "workers: 2, 2 units at a time" in said
            and f"worker {worker} is gone; what it ran goes to another one" in said
        )
        engine.close(), other.close()

        graph = {"other": ()}
        engine, thread, result = flowing(graph, said.append)
        begun(tmp_path, "other")
        result["stop"] = True  # Ctrl-C: what runs on workers saves and stops
        thread.join()
        assert isinstance(result["error"], KeyboardInterrupt) and (tmp_path / "other.stopped").exists()
        engine.close()
        engine, thread, result = flowing(graph, said.append)
        begun(tmp_path, "other", 2)
        (tmp_path / "other.go").touch()
        thread.join()
        assert result == {"other": ""}
        engine.close()

    monkeypatch.setattr("lib.cluster.engines.ATTEMPTS", 0.5)
    with distributed.LocalCluster(**(how | {"n_workers": 0})) as cluster:
        engine, thread, result = flowing({"never": ()}, said.append)
        while not any(line.startswith("no worker has joined tcp://") for line in said):
            time.sleep(0.01)
    thread.join()  # the scheduler is gone
    assert isinstance(result["error"], ArtifactError) and "the scheduler no longer answers" in str(result["error"])
    engine.close()
    with pytest.raises(ConfigError, match="expected a Dask scheduler there, found none"):
        Dask("tcp://127.0.0.1:9")
