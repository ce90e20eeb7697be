"""The recipes of docs/cluster: what they start and how it ends, with fakes for commands; the parts of the manifest.

They have run with the real commands, too; ``docs/cluster.md`` says where.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lib.cluster import __main__ as command
from lib.run import cli

RECIPES = Path(__file__).resolve().parents[1] / "docs" / "cluster"
FAKES = {
    "dask": 'echo "dask $*" >> said; [ "$1" = scheduler ] || exec sleep 60; file=${!#}; '
            '[[ $* != *scheduler-file* ]] || echo \'{"address": "tcp://10.0.0.1:5"}\' > "$file"; exec sleep 60',
    "srun": 'echo "srun $*" >> said; shift; exec "$@"',
    "ssh": 'echo "ssh ${@:1:4} $5" >> said; exec sleep 60',
    "python": f'[ "$1" = -m ] || exec {sys.executable} "$@"; echo "python $*" >> said; '
              'trap "echo saved >> said; kill %1; exit 130" TERM; '
              'while [ "$(wc -l < said)" -lt 4 ]; do sleep 0.02; done; '
              '[ -e quick ] && exit 7; touch running; sleep 60 & wait',
}  # fmt: skip


@pytest.fixture
def site(tmp_path):
    """A folder in which the commands of the recipes are fakes, and how a recipe is started there."""
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    given = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "5", "SLURM_CPUS_PER_TASK": "8",
             "HEAD": "head"}  # fmt: skip

    def start(recipe: str, *words: str) -> subprocess.Popen:
        return subprocess.Popen(["bash", str(RECIPES / recipe), *words], cwd=tmp_path, env={**os.environ, **given},
                                stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip

    return tmp_path, start


def said(folder: Path, count: int) -> list[str]:
    """Return what was started, once it is so much."""
    for _ in range(500):
        lines = (folder / "said").read_text().splitlines() if (folder / "said").exists() else []
        if len(lines) >= count:
            break
        time.sleep(0.02)
    return sorted(lines)


def test_the_slurm_job_starts_all_of_it_and_ends_with_the_exit_code_of_the_command(site):
    folder, start = site
    (folder / "quick").touch()
    assert start("slurm.sh", "x.yaml", "--set", "seed=1").wait(20) == 7
    assert said(folder, 4) == [
        "dask scheduler --port 0 --no-dashboard --scheduler-file workdir/scheduler-5.json",
        "dask worker --scheduler-file workdir/scheduler-5.json --nthreads 1 --no-dashboard --resources GPU=1 MEMORY=24",
        "python -m lib.cluster --config x.yaml --set seed=1 --scheduler tcp://10.0.0.1:5",
        "srun --cpus-per-task=8 dask worker --scheduler-file workdir/scheduler-5.json --nthreads 1 --no-dashboard "
        "--resources GPU=1 MEMORY=24",
    ]  # fmt: skip
    assert not list((folder / "workdir").iterdir())


@pytest.mark.slow
def test_near_the_end_of_its_time_the_job_lets_units_save(site):
    folder, start = site
    job = start("slurm.sh", "x.yaml")
    while not (folder / "running").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)  # as --signal=B:TERM does, to the script alone
    assert job.wait(20) == 130 and "saved" in said(folder, 5)


def test_over_ssh_each_place_has_a_worker_and_all_end_with_the_command(site):
    folder, start = site
    (folder / "quick").touch()
    assert start("ssh.sh", "a:0 a:1", "x.yaml").wait(20) == 7
    lines = said(folder, 4)
    assert "dask scheduler --port 8786 --no-dashboard" in lines
    assert "python -m lib.cluster --config x.yaml --scheduler tcp://head:8786" in lines
    for gpu in (0, 1):
        assert (f"ssh -tt -o BatchMode=yes a cd '{folder}' && CUDA_VISIBLE_DEVICES={gpu} exec {folder}/bin/dask worker "
                "tcp://head:8786 --nthreads 1 --no-dashboard --resources 'GPU=1 MEMORY=24'") in lines  # fmt: skip


def test_the_parts_of_the_manifest_belong_together():
    parts = {(part["kind"], part["metadata"]["name"]): part["spec"] for part in
             yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())}  # fmt: skip
    pods = {name: part["template"]["spec"] for (_, name), part in parts.items() if "template" in part}
    for (kind, _), part in parts.items():
        if kind == "Deployment":
            assert part["selector"]["matchLabels"] == part["template"]["metadata"]["labels"]
    (port,) = parts["Service", "scheduler"]["ports"]
    assert parts["Service", "scheduler"]["selector"] == {"app": "scheduler"}
    address = f"tcp://scheduler:{port['port']}"
    for pod in pods.values():
        claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod.get("volumes", ())}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container.get("volumeMounts", ())} == claims.keys()
        assert all(claim is None or ("PersistentVolumeClaim", claim["claimName"]) in parts for claim in claims.values())
    assert pods["scheduler"]["containers"][0]["command"] == ["dask", "scheduler", "--port", str(port["port"])]
    assert address in pods["workers"]["containers"][0]["command"]
    python, flag, module, *words = pods["run"]["containers"][0]["command"]
    flags = cli.experiment_flags("")
    command.add_engine(flags)
    asked = flags.parse_args(words)
    assert (module, asked.scheduler, asked.workdir) == ("lib.cluster", address, Path("/shared/workdir"))
