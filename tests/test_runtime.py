"""The machine: which GPU is refused before anything runs on it, and what becomes of a precision."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch
from conftest import ROOT

from lib.config import check
from lib.errors import ConfigError
from lib.run import cli, meeting, runtime

CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(("capability", "fits"), [
    ((6, 0), False),  # P100
    ((7, 0), False),  # V100
    ((7, 5), True),  # T4
    ((8, 9), True),  # L4 runs sm_86's code
    ((9, 0), True),
    ((11, 0), False),
])  # fmt: skip
def test_code_runs_on_its_own_generation_from_its_own_step_on(capability, fits):
    assert runtime.runs_on(capability, CU130) == fits


def test_a_gpu_without_code_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as a P100 says of itself
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU130)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla P100-PCIE-16GB")
    with pytest.raises(ConfigError, match=r"Tesla P100.* \(sm_60\): torch .* dies at the first operation"):
        runtime.device()


@pytest.fixture
def torchrun(monkeypatch):
    """Two processes on a machine of two GPUs, of which this is the second; yields what is asked of torch, in order."""
    asked = []
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU130)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(f"GPU {index}"))
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(None, 1, 2)]))
    monkeypatch.setattr(meeting, "of_this_start", lambda store, rank, world: asked.append(f"{rank} of {world} meet"))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: asked.append("end"))
    return asked


def test_each_process_takes_its_own_gpu_before_it_talks_to_the_others(torchrun):
    """The first thing that is said is sent over the present GPU; nccl refuses two processes on one."""
    with runtime.process_group():
        assert torchrun == ["GPU 1", "1 of 2 meet", "nccl"]
    assert torchrun[-1] == "end"


def test_more_processes_than_gpus_are_refused_in_one_sentence(torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ConfigError, match="got 2 processes and 1 GPUs; lower --nproc-per-node"),
        runtime.process_group(),
    ):
        pass
    assert "nccl" not in torchrun


def test_float16_is_what_the_config_says_on_a_cpu_and_itself_on_a_gpu():
    assert runtime.precision_on(torch.device("cpu"), "float16") == "bfloat16"
    assert runtime.precision_on(torch.device("cpu"), "float16", "float32") == "float32"
    assert runtime.precision_on(torch.device("cuda"), "float16") == "float16"


def test_versions_are_those_of_the_environment(monkeypatch):
    monkeypatch.setattr(runtime, "PACKAGES", ("torch", "no-such-package"))
    assert runtime.versions() == {"torch": metadata.version("torch"), "no-such-package": "absent"}


def test_networks_are_looked_at_again_with_other_packages(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(check, "open_experiment", lambda *given: asked.append(given[-1]) or (_ for _ in ()).throw(
        ConfigError("enough")))  # fmt: skip
    for version in ("2.14", "2.15"):
        monkeypatch.setattr(runtime, "versions", lambda version=version: {"torch": version})
        with pytest.raises(ConfigError, match="enough"):
            cli.start("", ["--workdir", str(tmp_path)])
    assert asked[0] and asked[1] and asked[0] != asked[1]


@pytest.mark.parametrize("command", [("-m", "lib.cluster"), ("01_prepare_folds.py",)])
def test_a_python_without_the_packages_is_refused_in_one_sentence(command):
    """-S takes away what is installed."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "has not the packages of requirements.txt; source .venv/bin/activate" in done.stderr
